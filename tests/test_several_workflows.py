"""Several workflows in one call: one after the other, one question, one end, the worst exit status."""

from __future__ import annotations

import io
import json
import os
import signal
from typing import Any, Dict, List, Optional, Tuple

import pytest
import requests
from desk import settings_of
from support import Outcome, Terminal, call, node, run, slow_prompt
from test_batch import pressed

from comfyui_runner.errors import ExitStatus, UsageError, WorkflowError
from comfyui_runner.extras.several_workflows import (
    WORST_FIRST,
    end_of_all,
    expand_workflows,
    find_workflows,
    names_of_folders,
    refuse_flags_for_one,
    split_call,
    worst_status,
)

#: A run that fails, and a prompt that ComfyUI refuses.
FAILING = {
    "1": node("EmptyImage", width=8, height=8, batch_size=1, color=0),
    "2": node("FailNode", message="boom", image=["1", 0]),
    "3": node("SaveImage", images=["2", 0], filename_prefix="x"),
}
REFUSED = {"1": node("Nope")}


class Folder:
    """A folder of workflows, and the program called in it."""

    def __init__(self, path: Any, url: str) -> None:
        self.path, self.url = path, url

    def write(self, **prompts: Dict[str, Any]) -> None:
        """Writes a file NAME.json for each prompt."""
        for name, prompt in prompts.items():
            (self.path / f"{name}.json").write_text(json.dumps(prompt), encoding="utf-8")

    def __call__(self, *arguments: str, **options: Any) -> Outcome:
        return run(*arguments, "--server", self.url, **options)


@pytest.fixture
def folder(simulator: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.chdir(tmp_path)
    return Folder(tmp_path, simulator.url)


# -- rules -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statuses", "worst"),
    [
        ([], 0),
        ([0, 0], 0),
        ([0, 10, 0], 10),
        ([7, 6, 10], 6),
        ([3, 7], 3),
        ([5, 3, 1], 1),
        ([7, 130], 130),
        ([124, 11], 124),
    ],
)
def test_the_worst_status_counts(statuses: List[int], worst: int) -> None:
    assert worst_status(map(ExitStatus, statuses)) == worst


def test_every_status_has_a_rank() -> None:
    assert sorted(WORST_FIRST) == sorted(ExitStatus)


def test_each_workflow_has_a_folder_of_its_own() -> None:
    paths = ["a/flow.json", "b/Flow.png", "c/flow.webp", "x{1}.json", "flow (2).json"]
    assert names_of_folders(paths) == ["flow", "Flow (2)", "flow (3)", "x_1_", "flow (2) (2)"]


def test_each_workflow_has_a_call_of_its_own() -> None:
    parts = split_call(settings_of("a.json", "b.json", "-o", "out"), ["a.json", "b.json"])
    assert [part.settings.workflow for part in parts] == ["a.json", "b.json"]
    assert [part.settings.output and part.settings.output.replace("\\", "/") for part in parts] == ["out/a", "out/b"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--save-run", "x"], "--save-run"),
        (["--attach", "p"], "--attach"),
        (["--export-api", "x"], "--export-api"),
        (["--repeat", "2"], "--batch, --each and --repeat"),
    ],
)
def test_what_takes_one_workflow_refuses_several(arguments: List[str], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        refuse_flags_for_one(settings_of(*arguments), ["a.json", "b.json"])
    assert caught.value.message == f"2 workflows are too many. There can only be one with {words}."


def test_standard_input_is_never_one_of_several() -> None:
    with pytest.raises(UsageError, match="Standard input"):
        refuse_flags_for_one(settings_of("--check"), ["a.json", "-"])


def test_patterns_are_expanded_where_no_shell_has_done_it(folder: Folder) -> None:
    folder.write(a10={}, a2={}, b={})
    (folder.path / "[c].json").write_text("{}", encoding="utf-8")
    assert expand_workflows(["a*.json", "b.json"]) == ["a2.json", "a10.json", "b.json"]
    assert expand_workflows(["[c].json", "d*.json"]) == ["[c].json", "d*.json"]


def test_the_service_can_hold_files_and_those_of_folders(folder: Folder) -> None:
    folder.write(a10={"1": node("A")}, a2={"1": node("A")}, b={"1": node("A")})
    (folder.path / "a1.json").write_text("{", encoding="utf-8")
    (folder.path / "notes.txt").write_text("x", encoding="utf-8")
    in_folder = [os.path.join(".", name) for name in ("a2.json", "a10.json", "b.json", "a1.json")]
    assert find_workflows(["."]) == in_folder  # the first one can be read
    assert find_workflows(["a*.json"]) == ["a1.json", "a2.json", "a10.json"]
    assert [os.path.normpath(path) for path in find_workflows(["b.json", "."])] == [
        "b.json", "a2.json", "a10.json", "a1.json",
    ]  # fmt: skip
    assert find_workflows(["no.json"]) == ["no.json"]  # loading it says so


def test_a_service_without_one_of_its_workflows_does_not_start(folder: Folder) -> None:
    folder.write(a={})
    (folder.path / "empty").mkdir()
    with pytest.raises(WorkflowError, match="Missing: b"):
        find_workflows(["a.json", "b.json"])
    with pytest.raises(UsageError, match="Standard input"):
        find_workflows(["a.json", "-"])
    with pytest.raises(WorkflowError, match="no workflows in the folder empty"):
        find_workflows(["empty"])


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ((ExitStatus.OK, ExitStatus.OK), "2 workflows succeeded."),
        (
            (ExitStatus.OK, None),
            "1 of 2 workflows succeeded.\nb.json: not started",
        ),
        (
            (ExitStatus.CANCELLED, None),
            "0 of 2 workflows succeeded.\na.json: exit status 130 (Ctrl+C)\nb.json: not started",
        ),
    ],
)
def test_the_end_in_words(ends: Tuple[Optional[ExitStatus], ...], message: str) -> None:
    known = {number: status for number, status in enumerate(ends) if status is not None}
    end = end_of_all(["a.json", "b.json"], known, ExitStatus.CANCELLED)
    assert (end["message"], end["exit_status"]) == (message, 130 if None in ends else 0)


def test_of_many_that_did_not_end_well_twenty_are_listed() -> None:
    paths = [f"{number}.json" for number in range(50)]
    message = end_of_all(paths, {0: ExitStatus.OK}, ExitStatus.CANCELLED)["message"]
    assert len(message.splitlines()) == 22 and message.endswith("\nand 29 more")


# -- calls -----------------------------------------------------------------------------------------


def test_several_workflows_run_one_after_the_other(folder: Folder) -> None:
    folder.write(a=slow_prompt(seconds=0.0, seed=1), b=slow_prompt(seconds=0.0, seed=2))
    result = folder("a.json", "b.json", "--yes", "--json", "-o", "out")
    assert result.status == ExitStatus.OK
    names = [(event.get("workflow"), event["event"]) for event in result.events]
    assert [workflow for workflow, name in names if name == "end"] == ["a.json", "b.json"]
    assert {workflow for workflow, name in names if name != "workflows"} == {"a.json", "b.json"}
    saved = [event["path"] for event in result.events if event["event"] == "saved"]
    assert [os.path.relpath(path, os.path.join(os.getcwd(), "out")) for path in saved] == [
        os.path.join("a", "slow_00001_.png"),
        os.path.join("b", "slow_00002_.png"),
    ]
    assert result.events[-1]["event"] == "workflows"
    assert result.events[-1]["workflows"] == [
        {"file": "a.json", "exit_status": 0},
        {"file": "b.json", "exit_status": 0},
    ]
    ids = {event["prompt_id"] for event in result.events if event["event"] == "submitted"}
    assert len(ids) == 2


def test_one_that_fails_does_not_stop_the_rest(folder: Folder) -> None:
    folder.write(a=FAILING, b=REFUSED, c=slow_prompt(seconds=0.0))
    (folder.path / "odd.json").write_text("[1]", encoding="utf-8")
    result = folder("a.json", "b.json", "odd.json", "c.json", "--yes", "--json")
    assert result.status == ExitStatus.BAD_WORKFLOW
    end = result.events[-1]
    assert [part["exit_status"] for part in end["workflows"]] == [7, 6, 3, 0]
    errors = {event["workflow"] for event in result.events if event["event"] == "error"}
    assert errors == {"b.json", "odd.json"}


@pytest.mark.parametrize("order", ["abc", "cba"])
def test_models_are_freed_once_whichever_workflow_runs(folder: Folder, simulator: Any, order: str) -> None:
    folder.write(a=slow_prompt(seconds=0.0), b=slow_prompt(seconds=0.0, seed=2), c=REFUSED)
    result = folder(*(f"{name}.json" for name in order), "--yes", "--json", "--free")
    assert result.status == ExitStatus.REJECTED
    assert simulator.unloads == 1
    events = [event["event"] for event in result.events]
    assert events[-2:] == ["freed", "workflows"] and events.count("freed") == 1


def test_words_of_a_text_without_quotation_marks_run_nothing(folder: Folder, simulator: Any) -> None:
    folder.write(a=slow_prompt())
    result = folder("a.json", "--yes", "--positive", "a", "red", "fox")
    assert result.status == ExitStatus.BAD_WORKFLOW and not simulator.executions
    assert "Not all of the 3 workflows exist. Missing: red, fox." in result.err


def test_all_are_shown_before_the_one_question(folder: Folder) -> None:
    folder.write(a=slow_prompt(seconds=0.0), b=slow_prompt(seconds=0.0))
    result = folder("a.json", "b.json", answers="y\n")
    assert result.status == ExitStatus.OK
    before, _, after = result.out.partition("Run 2 workflows? [y/N] ")
    assert "a.json: 2 nodes" in before and "b.json: 2 nodes" in before
    assert "Run" not in after.partition("1/2  a.json")[0] and "2/2  b.json" in after
    assert result.out.count("[y/N]") == 1 and "2 workflows succeeded." in after


def test_what_was_confirmed_runs_whatever_becomes_of_the_files(folder: Folder, simulator: Any) -> None:
    """Each workflow is shown once, with the seed that it has; what costs credits was not confirmed."""
    prompt = slow_prompt(seconds=0.0)
    folder.write(a=prompt, b=prompt)
    paid = {**prompt, "3": node("PartnerImage", text="a fox", seed=5), "4": node("PreviewImage", images=["3", 0])}

    class Person(Terminal):
        """Answers when another program has written both files anew."""

        def readline(self, *_: Any) -> str:  # type: ignore[override]
            folder.write(a=paid, b=REFUSED)
            return "y\n"

    out = io.StringIO()
    variables = {"COMFY_API_KEY": "comfyui-5ec2e7f0a1b2c3d4"}
    arguments = ["a.json", "b.json", "--seed", "random", "--json", "--server", folder.url]
    status = call(arguments, Person(), out, io.StringIO(), variables)
    events = Outcome(status, out.getvalue(), "").events
    assert status == ExitStatus.OK and simulator.partner_keys == []
    shown = [event for event in events if event["event"] == "workflow"]
    submitted = [event["prompt_id"] for event in events if event["event"] == "submitted"]
    assert [event["prompt_id"] for event in shown] == submitted and len(submitted) == 2
    history = requests.get(f"{folder.url}/history", timeout=10).json()
    for event in shown:
        seed = history[event["prompt_id"]]["prompt"][2]["1"]["inputs"]["seed"]
        assert f"seed {seed}," in event["sampling"][0][1]


def test_credits_of_all_are_named_before_the_question(folder: Folder, simulator: Any) -> None:
    paid = {"1": node("PartnerImage", "Painter", text="a fox", seed=5), "2": node("PreviewImage", images=["1", 0])}
    folder.write(a=slow_prompt(seconds=0.0), b=paid)
    result = folder("a.json", "b.json", answers="y\n", environment={"COMFY_API_KEY": "comfyui-5ec2e7f0a1b2c3d4"})
    assert result.status == ExitStatus.OK and len(simulator.partner_keys) == 1
    assert "b.json: A run costs credits" in result.out and "a.json: A run costs" not in result.out
    assert result.out.count("a.json: 2 nodes") == result.out.count("b.json: 2 nodes") == 1


def test_after_a_demo_the_next_step_is_said_once(folder: Folder) -> None:
    folder.write(a=slow_prompt(seconds=0.0), b=slow_prompt(seconds=0.0))
    result = run("a.json", "b.json", "--demo", answers="y\n")
    assert result.status == ExitStatus.OK
    assert result.out.count("Next, start your own ComfyUI") == result.out.count("built-in simulator, which keeps") == 1
    assert result.out.endswith(" a.json b.json -o results\n")


def test_no_runs_nothing(folder: Folder, simulator: Any) -> None:
    folder.write(a=slow_prompt(), b=slow_prompt())
    result = folder("a.json", "b.json", answers="n\n")
    assert result.status == ExitStatus.NOT_CONFIRMED and not simulator.executions


def test_without_a_terminal_the_question_needs_yes(folder: Folder) -> None:
    folder.write(a=slow_prompt(), b=slow_prompt())
    result = folder("a.json", "b.json")
    assert result.status == ExitStatus.NOT_CONFIRMED and result.err.count("needs a terminal") == 1


def test_one_that_cannot_be_read_is_named_before_the_question(folder: Folder) -> None:
    folder.write(a=slow_prompt(seconds=0.0))
    (folder.path / "b.json").write_text("[1]", encoding="utf-8")
    result = folder("a.json", "b.json", answers="y\n")
    assert result.status == ExitStatus.BAD_WORKFLOW
    assert "Run 1 workflow? [y/N] " in result.out and "1 of 2 workflows succeeded." in result.out
    (folder.path / "a.json").unlink()
    result = folder("a.json", "b.json", answers="")
    assert result.status == ExitStatus.BAD_WORKFLOW and "[y/N]" not in result.out


def test_several_are_checked_by_a_pattern(folder: Folder) -> None:
    folder.write(a=slow_prompt(), b=REFUSED)
    result = folder("*.json", "--check")
    assert result.status == ExitStatus.REJECTED
    assert "1/2  a.json" in result.out and "2/2  b.json" in result.out and "[y/N]" not in result.out
    assert "1 of 2 workflows succeeded." in result.out and "b.json: exit status 6" in result.out
    quiet = folder("*.json", "--check", "--quiet")
    assert "b.json: exit status 6" in quiet.err and not quiet.out


def test_a_pattern_that_one_file_fits_is_that_file(folder: Folder) -> None:
    folder.write(a=slow_prompt(seconds=0.0))
    result = folder("*.json", "--yes", "--json", "--save-run", "run.json")
    assert result.status == ExitStatus.OK and "workflows" not in result.names()
    assert all("workflow" not in event for event in result.events)


def test_several_with_what_takes_one_run_nothing(folder: Folder, simulator: Any) -> None:
    folder.write(a=slow_prompt(), b=slow_prompt())
    result = folder("*.json", "--yes", "--repeat", "2")
    assert result.status == ExitStatus.USAGE and "2 workflows are too many" in result.err
    assert not simulator.executions


def test_ctrl_c_ends_the_rest_too(folder: Folder, simulator: Any) -> None:
    folder.write(a=slow_prompt(seconds=0.0), b=slow_prompt(steps=50, seconds=20.0), c=slow_prompt())
    with pressed(lambda: len(simulator.executions) == 2, signal.SIGINT):
        result = folder("a.json", "b.json", "c.json", "--yes", "--json")
    assert result.status == ExitStatus.CANCELLED
    assert [part["exit_status"] for part in result.events[-1]["workflows"]] == [0, 130, None]
    assert len(simulator.executions) == 2
