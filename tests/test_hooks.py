"""--hook: what commands are given after each run, and that none of them harms one."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
import time
from typing import Any, Callable, Dict, List

import pytest
from served import post_elsewhere
from support import FAST, Outcome, node, run, slow_prompt, wait_until

from comfyui_runner.addresses import parse_address
from comfyui_runner.afterwards import make_afterwards
from comfyui_runner.conclusion import Ending
from comfyui_runner.console import Console
from comfyui_runner.errors import ExitStatus
from comfyui_runner.extras.hooks import (
    MOST_AT_ONCE,
    MOST_STARTED,
    EndedRun,
    Hooks,
    end_in_words,
    hook_report,
    last_line,
    variables_for_hook,
)
from comfyui_runner.extras.python_api import make_api_settings
from comfyui_runner.extras.python_calls import silent_environment
from comfyui_runner.interrupts import Interrupts
from comfyui_runner.limits import DEFAULT_LIMITS
from comfyui_runner.outputs import Output
from comfyui_runner.runs import Run
from comfyui_runner.server import Server
from comfyui_runner.session import Session
from comfyui_runner.terminal import Printer
from comfyui_runner.threads import run_loop, start_thread

Make = Callable[..., Any]

#: A run that its server has lost is reported soon.
HASTY = FAST._replace(settle=0.1, absent=0.1, poll=0.1, give_up=0.3)

is_windows = os.name == "nt"

NOTE = """\
import json, os, sys
variables = {name: value for name, value in os.environ.items() if "COMFY" in name}
document = sys.stdin.buffer.read().decode()
saved = [os.path.exists(output["path"]) for output in json.loads(document)["outputs"] if output["path"]]
with open(sys.argv[1], "a", encoding="utf-8") as file:
    file.write(json.dumps({"variables": variables, "run": json.loads(document), "saved": saved}) + "\\n")
"""


@pytest.fixture
def python(tmp_path: Any) -> Callable[..., str]:
    """The command that runs Python code with arguments, in any shell."""

    def make(code: str, *arguments: str) -> str:
        path = tmp_path / f"hook_{len(list(tmp_path.iterdir()))}.py"
        path.write_text(code, encoding="utf-8")
        return " ".join(f'"{part}"' for part in (sys.executable, str(path), *arguments))

    return make


@pytest.fixture
def notes(tmp_path: Any) -> Any:
    return tmp_path / "notes.jsonl"


def read_notes(notes: Any) -> List[Dict[str, Any]]:
    if not notes.exists():
        return []
    return [json.loads(line) for line in notes.read_text("utf-8").splitlines()]


def go(simulator: Any, path: str, *arguments: str, **options: Any) -> Outcome:
    environment = {**os.environ, **options.pop("environment", {})}
    return run("--server", simulator.url, "--yes", "--json", path, *arguments, environment=environment, **options)


# -- rules -----------------------------------------------------------------------------------------


def test_the_last_line_of_the_errors_is_shown_without_escape_codes() -> None:
    assert last_line(b"one\n\x1b[31mtwo\x1b[0m\n\n  \n") == "two"
    assert last_line(b"") == last_line(b"\n") == ""
    assert last_line("ü\xff".encode("latin-1")) == "��"
    assert len(last_line(b"x" * 4000)) <= 300


def test_how_a_hook_failed_in_words() -> None:
    assert end_in_words(0, b"a warning\n") == ""
    assert end_in_words(7, b"curl: (7) Failed\n") == "ended with exit code 7: curl: (7) Failed"
    assert end_in_words(3, b"") == "ended with exit code 3"
    assert end_in_words(-9, b"") == "was ended by signal 9"
    report = hook_report("curl \x1b[1m-d @- URL", "ended with exit code 7: it failed.")
    assert report["message"] == "The hook curl -d @- URL ended with exit code 7: it failed."


def test_a_hook_gets_no_variable_that_lets_somebody_in() -> None:
    variables = {
        "PATH": "/bin", "COMFY_API_KEY": "key", "COMFYUI_RUNNER_TOKEN": "token", "COMFYUI_HEADERS": "A: b",
        "COMFYUI_URL": "http://user:word@gpu", "HTTP_PROXY": "http://user:word@proxy",
    }  # fmt: skip
    given = variables_for_hook(variables, EndedRun("id", "success", b"{}"))
    assert given == {
        "PATH": "/bin", "HTTP_PROXY": "http://user:word@proxy", "COMFYUI_RUN_ID": "id", "COMFYUI_RUN_STATUS": "success",
    }  # fmt: skip
    without_login = {"COMFYUI_URL": "http://gpu:8188"}
    assert variables_for_hook(without_login, EndedRun("id", "error", b""))["COMFYUI_URL"] == "http://gpu:8188"


# -- after runs ------------------------------------------------------------------------------------


def test_after_a_run_a_hook_gets_what_became_of_it_when_its_files_are_saved(
    simulator: Any, workflow_file: Make, tmp_path: Any, python: Make, notes: Any
) -> None:
    out = str(tmp_path / "out")
    result = go(simulator, workflow_file(slow_prompt(seed=7)), "-o", out, "--hook", python(NOTE, str(notes)))
    assert result.status == 0, result
    (note,) = read_notes(notes)
    end, given = result.event("end"), note["run"]
    assert note["variables"]["COMFYUI_RUN_ID"] == end["prompt_id"] == given["prompt_id"]
    assert note["variables"]["COMFYUI_RUN_STATUS"] == given["status"] == "success"
    assert note["saved"] == [True]
    (output,) = given["outputs"]
    saved = result.event("saved")
    assert output["path"] == saved["path"] and output["url"].startswith(simulator.url) and output["kind"] == "image"
    assert given["seeds"] == {"1.seed": 7} and given["exit_status"] == 0 and given["row"] is None
    shared = ("message", "seconds", "wholly_cached", "nodes_done", "nodes_total")
    assert {name: given[name] for name in shared} == {name: end[name] for name in shared}
    assert given["failure"] is None and given["problems"] == [] and given["server"] == simulator.url


def test_a_hook_learns_why_a_run_failed(simulator: Any, workflow_file: Make, python: Make, notes: Any) -> None:
    failing = {
        "1": node("EmptyImage", width=8, height=8, batch_size=1, color=0),
        "2": node("FailNode", "Breaks", message="boom", image=["1", 0]),
        "3": node("SaveImage", images=["2", 0], filename_prefix="x"),
    }
    result = go(simulator, workflow_file(failing), "--hook", python(NOTE, str(notes)))
    assert result.status == 7
    (note,) = read_notes(notes)
    assert note["variables"]["COMFYUI_RUN_STATUS"] == "error"
    failure = note["run"]["failure"]
    assert failure["title"] == "Breaks" and failure["message"] == "boom" and failure["traceback"]


def test_several_hooks_run_and_none_of_them_changes_how_the_run_ended(
    simulator: Any, workflow_file: Make, python: Make, notes: Any
) -> None:
    fails = python("import sys; sys.exit('first\\n\\033[31mno such place')")
    hooks = ["--hook", fails, "--hook", python(NOTE, str(notes)), "--hook", "no-such-command-anywhere"]
    result = go(simulator, workflow_file(slow_prompt()), *hooks)
    assert result.status == 0 and len(read_notes(notes)) == 1
    failures = [event for event in result.events if event["event"] == "hook_failed"]
    assert len(failures) == 2
    assert any(event["message"].endswith("ended with exit code 1: no such place.") for event in failures)
    assert {event["command"] for event in failures} == {fails[:300], "no-such-command-anywhere"}
    quiet = run("--server", simulator.url, "--yes", "-q", workflow_file(slow_prompt()), "--hook", fails)
    assert quiet.status == 0 and "no such place" in quiet.err and "no such place" not in quiet.out


@pytest.mark.parametrize(("comes_back", "status"), [(True, "success"), (False, "lost")])
def test_a_run_that_is_submitted_again_has_its_hook_and_its_record_once(
    comes_back: bool, status: str, simulator: Any, workflow_file: Make, tmp_path: Any, python: Make, notes: Any
) -> None:
    def lose() -> None:
        wait_until(lambda: simulator.executions, what="the first run")
        simulator.crash()
        if comes_back:
            simulator.revive()

    record = tmp_path / "record.json"
    flags = ("--retries", "1", "--free", "--save-run", str(record), "--hook", python(NOTE, str(notes)))
    losing = start_thread(lose)
    result = go(simulator, workflow_file(slow_prompt(seconds=0.3)), *flags, limits=HASTY)
    losing.result(10.0)
    (note,) = read_notes(notes)
    assert note["run"]["status"] == json.loads(record.read_text("utf-8"))["status"] == status
    assert result.out.count("(--free)") == 1
    if comes_back:
        assert result.status == ExitStatus.OK and result.event("freed")
    else:
        assert result.status == ExitStatus.NO_SERVER  # nobody takes the second run


def test_what_a_hook_prints_does_not_come_between_the_results(
    simulator: Any, workflow_file: Make, python: Make, capfd: Any
) -> None:
    result = go(simulator, workflow_file(slow_prompt()), "--hook", python("print('from the hook')"))
    assert result.status == 0 and "from the hook" not in result.out
    assert "from the hook" not in "".join(capfd.readouterr())


def test_no_value_of_a_run_becomes_a_part_of_the_command_line(
    simulator: Any, workflow_file: Make, python: Make, notes: Any, tmp_path: Any
) -> None:
    harm = tmp_path / "harm"
    text = f"\"; $(touch {harm}) `touch {harm}` & touch {harm} | %PATH% ' \n touch {harm}"
    prompt = {"1": node("TextOut", text, text=text)}
    result = go(simulator, workflow_file(prompt), "--hook", python(NOTE, str(notes)))
    assert result.status == 0 and not harm.exists()
    (note,) = read_notes(notes)
    assert note["run"]["outputs"][0]["text"] == text


def test_a_hook_gets_no_secret(simulator: Any, workflow_file: Make, python: Make, notes: Any) -> None:
    prompt = {"1": node("TextOut", text="it says sesame-1234 aloud")}
    header = "Authorization: Bearer sesame-1234"
    environment = {"COMFYUI_HEADERS": header, "COMFYUI_RUNNER_TOKEN": "token-of-the-service"}
    result = go(simulator, workflow_file(prompt), "--hook", python(NOTE, str(notes)), environment=environment)
    assert result.status == 0
    assert "sesame" not in notes.read_text("utf-8") and "token-of-the-service" not in notes.read_text("utf-8")
    (note,) = read_notes(notes)
    assert note["run"]["outputs"][0]["text"] == "it says *** aloud"


@pytest.mark.long
def test_a_hook_that_does_not_end_is_ended_with_its_children(
    simulator: Any, workflow_file: Make, python: Make, tmp_path: Any
) -> None:
    alive = tmp_path / "alive"
    child = f"import time\nwhile True:\n    open({str(alive)!r}, 'a').write('x')\n    time.sleep(0.05)"
    parent = python(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])")
    began = time.monotonic()
    limits = FAST._replace(hook=4.0)
    result = go(simulator, workflow_file(slow_prompt()), "--hook", parent, limits=limits)
    assert result.status == 0 and time.monotonic() - began < 20
    assert "and was killed." in result.event("hook_failed")["message"]
    assert alive.exists()
    size = alive.stat().st_size
    time.sleep(0.3)  # a child that is alive writes six times meanwhile
    assert alive.stat().st_size == size


def test_a_hook_may_leave_something_behind_and_is_not_waited_for(
    simulator: Any, workflow_file: Make, python: Make, tmp_path: Any
) -> None:
    gone = tmp_path / "gone"
    wait = f"import os, time\nwhile not os.path.exists({str(gone)!r}): time.sleep(0.05)"
    leaves = python(f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {wait!r}])")
    result = go(simulator, workflow_file(slow_prompt()), "--hook", leaves, limits=FAST._replace(hook=20.0))
    gone.write_text("")
    assert result.status == 0 and "hook_failed" not in result.names()


def test_ctrl_c_ends_the_wait_for_a_hook() -> None:
    """The event of Ctrl+C is set while a hook runs that would take much longer."""

    async def story() -> float:
        hooks = Hooks([f'"{sys.executable}" -c "import time; time.sleep(60)"'], os.environ, 60.0)
        reports: List[Any] = []
        hooks.start(EndedRun("id", "success", b"{}"), reports.append)
        stopping = asyncio.Event()
        asyncio.get_running_loop().call_later(0.3, stopping.set)
        began = time.monotonic()
        await hooks.finish(reports.append, stopping)
        assert "had not ended, and was killed" in reports[-1]["message"]
        return time.monotonic() - began

    assert run_loop(story()) < 20


def test_people_are_told_what_is_waited_for(python: Make) -> None:
    async def story() -> List[Any]:
        hooks = Hooks([python("import time; time.sleep(1.5)")], os.environ, 20.0)
        reports: List[Any] = []
        hooks.start(EndedRun("id", "success", b"{}"), reports.append)
        await hooks.finish(reports.append)
        return reports

    assert run_loop(story()) == [
        {"event": "notice", "message": "Waiting up to 20.0 s for 1 hook (--hook).", "warning": False},
    ]


@pytest.mark.parametrize("command", ["no\0command", "no\ud800command"])
def test_a_command_that_no_system_takes_is_reported(command: str) -> None:
    async def story() -> List[Any]:
        hooks = Hooks([command], os.environ, 20.0)
        reports: List[Any] = []
        hooks.start(EndedRun("id", "success", b"{}"), reports.append)
        await hooks.finish(reports.append)
        return reports

    (report,) = run_loop(story())
    assert report["event"] == "hook_failed"
    if "\0" in command:
        assert "could not be started: embedded null byte." in report["message"].replace("character", "byte")


def test_a_run_that_cannot_be_put_in_words_is_a_failure_of_its_hooks() -> None:
    async def story() -> List[Any]:
        settings = make_api_settings(None, True, {}, False, DEFAULT_LIMITS)._replace(hooks=("first", "second"))
        console = Console(Printer(io.StringIO(), io.StringIO()), Interrupts(), silent_environment())
        afterwards = make_afterwards(settings, console)
        session = Session(Server(parse_address("http://127.0.0.1:1")), lambda *_: None)
        run = Run({}, "id", time.monotonic(), asyncio.Event())
        no_json: Any = object()
        output = Output("1", "Save", "image", "a.png", size=no_json)
        ending = Ending(ExitStatus.OK, {"status": "success"}, [output], None)
        reports: List[Any] = []
        afterwards.note_end(session, run, ending, reports.append)
        await afterwards.finish(reports.append)
        return reports

    reports = run_loop(story())
    assert [(report["event"], report["command"]) for report in reports] == [
        ("hook_failed", "first"),
        ("hook_failed", "second"),
    ]
    assert "was not started: the runner failed (TypeError" in reports[0]["message"]


def test_only_a_few_hooks_run_at_a_time_and_not_too_many_wait(python: Make, tmp_path: Any) -> None:
    folder = tmp_path / "running"
    folder.mkdir()
    code = f"""\
import os, time
mine = os.path.join({str(folder)!r}, str(os.getpid()))
open(mine, "w").close()
time.sleep(0.2)
count = len(os.listdir({str(folder)!r}))
os.remove(mine)
assert count <= {MOST_AT_ONCE}, "too many"
"""

    async def story(count: int) -> List[Any]:
        hooks = Hooks([python(code)], os.environ, 60.0)
        reports: List[Any] = []
        for _ in range(count):
            hooks.start(EndedRun("id", "success", b"{}"), reports.append)
        await asyncio.sleep(0)
        at_the_start = list(reports)
        await hooks.finish(reports.append, None if count < 20 else stopped())
        return at_the_start if count > 20 else reports

    def stopped() -> asyncio.Event:
        event = asyncio.Event()
        event.set()
        return event

    ended = [report for report in run_loop(story(8)) if report["event"] == "hook_failed"]
    assert ended == []
    (refused,) = run_loop(story(MOST_STARTED + 1))
    assert "was not started: 200 hooks are already running or waiting" in refused["message"]


# -- in the other modes ----------------------------------------------------------------------------


def test_each_row_of_a_batch_has_its_hooks_and_none_waits_for_them(
    simulator: Any, workflow_file: Make, python: Make, notes: Any, tmp_path: Any
) -> None:
    slow = python("import sys, time; time.sleep(0.5); sys.exit('too slow')")
    arguments = ["--repeat", "3", "-o", str(tmp_path / "out"), "--hook", python(NOTE, str(notes)), "--hook", slow]
    result = go(simulator, workflow_file(slow_prompt(seconds=0.0)), *arguments, limits=FAST._replace(hook=30.0))
    assert result.status == 0, result
    found = sorted(read_notes(notes), key=lambda note: int(note["run"]["row"]))
    assert [note["run"]["row"] for note in found] == [1, 2, 3]
    assert all(note["saved"] == [True] and note["run"]["seeds"] for note in found)
    failed = [event for event in result.events if event["event"] == "hook_failed"]
    assert sorted(event["row"] for event in failed) == [1, 2, 3]
    assert result.events[-1]["event"] == "batch"


def test_a_prompt_that_is_followed_has_its_hooks(simulator: Any, python: Make, notes: Any) -> None:
    prompt_id = post_elsewhere(simulator, slow_prompt())
    result = go(simulator, "--attach", prompt_id, "--hook", python(NOTE, str(notes)))
    assert result.status == 0
    assert [note["run"]["prompt_id"] for note in read_notes(notes)] == [prompt_id]


def test_the_runs_of_the_service_have_hooks_and_it_waits_for_them_at_its_end(
    simulator: Any, make_middleware: Make, python: Make, notes: Any
) -> None:
    hooks = ["--hook", python("import time; time.sleep(0.5)\n" + NOTE, str(notes)), "--hook", "no-such-command"]
    service = make_middleware(simulator, *hooks, environment=os.environ, limits=FAST._replace(hook=30.0))
    reader = service.events()
    first = service.start()
    seen = reader.until(lambda name, data: name == "report" and data["event"] == "hook_failed")
    assert seen[-1][1]["prompt_id"] == first and "no-such-command" in seen[-1][1]["message"]
    second = service.start()
    service.end(second)
    assert service.stop() == 0
    assert {note["run"]["prompt_id"] for note in read_notes(notes)} == {first, second}
    assert first[:8] in service.out.getvalue() and "The hook no-such-command" in service.out.getvalue()


def test_a_hook_of_an_interrupted_run_of_the_service_says_so(
    simulator: Any, make_middleware: Make, python: Make, notes: Any
) -> None:
    prompt = slow_prompt(steps=1000, seconds=60.0)
    service = make_middleware(simulator, "--hook", python(NOTE, str(notes)), environment=os.environ, prompt=prompt)
    service.running(service.start())
    assert service.post("/interrupt").status == 200
    (note,) = wait_until(lambda: read_notes(notes))
    assert note["variables"]["COMFYUI_RUN_STATUS"] == "cancelled"


def test_an_empty_command_is_refused(workflow_file: Make) -> None:
    """A shell variable that is not set must not look like a hook."""
    result = run("--yes", "--hook", "", workflow_file(slow_prompt()))
    assert result.status == 2 and "--hook is empty." in result.err
