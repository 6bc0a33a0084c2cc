"""Stories of the Python API: programs that connect, run workflows and take what they made."""

from __future__ import annotations

import asyncio
import base64
import importlib
import inspect
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest
import requests
from simulated import output_of, png_text, txt2img
from support import FAST, ROOT, node, script, slow_prompt, wait_until
from test_cookies import Sticky, make_balancer  # noqa: F401 - a fixture

import comfyui_runner
from comfyui_runner.call_values import CallFile
from comfyui_runner.comfyui import ComfyUI
from comfyui_runner.edits import EditError
from comfyui_runner.errors import (
    ExitStatus,
    NodeFailed,
    NotConfirmed,
    PromptRejected,
    RunCancelled,
    RunInterrupted,
    RunLost,
    RunnerError,
    RunTimeout,
    SaveError,
    ServerUnreachable,
    UsageError,
    WorkflowError,
)
from comfyui_runner.extras.python_api import USUAL_URLS, AsyncComfy, Comfy, connect, connect_async
from comfyui_runner.extras.python_calls import RunReport, read_python_value
from comfyui_runner.extras.python_results import RunOutput, RunResult, choose_destination
from comfyui_runner.simulator import draw
from comfyui_runner.simulator.installation import MODELS as MODELS_OF_SIMULATOR
from comfyui_runner.threads import run_loop

Make = Callable[..., Any]
Json = Dict[str, Any]

LOADER: Json = {
    "1": node("LoadImage", "Photo", image="example.png"),
    "2": node("SaveImage", "Save", filename_prefix="loaded", images=["1", 0]),
}
PICTURE = draw(8, 8, 1, ["A"])
FOREVER: Json = {"steps": 100000, "seconds": 3600.0}


@pytest.fixture
def comfy(simulator: Any) -> Iterator[Comfy]:
    """A connection to the simulator, with short waits."""
    with connect(simulator.url, limits=FAST) as connection:
        yield connection


@pytest.fixture(autouse=True)
def no_threads_are_left() -> Iterator[None]:
    """What was connected is gone when it was closed."""
    before = set(threading.enumerate())
    yield
    ours = [thread for thread in threading.enumerate() if thread not in before]
    wait_until(lambda: not any(thread.is_alive() for thread in ours), what=f"the end of {ours}")


def prompts_of(simulator: Any) -> List[Json]:
    """The prompts that ran or run, in their order."""
    history = requests.get(simulator.url + "/history", timeout=5).json()
    queue = requests.get(simulator.url + "/queue", timeout=5).json()
    items = [entry["prompt"] for entry in history.values()]
    items += [item for items in queue.values() for item in items]
    return [item[2] for item in sorted(items, key=lambda item: item[0])]


def phases(simulator: Any, prompt_id: str) -> List[str]:
    """The messages that the history has of a prompt."""
    entry = requests.get(f"{simulator.url}/history/{prompt_id}", timeout=5).json()[prompt_id]
    return [name for name, _ in entry["status"]["messages"]]


def is_idle(simulator: Any) -> bool:
    """Whether nothing runs and nothing waits there."""
    queue = requests.get(simulator.url + "/queue", timeout=5).json()
    return bool(queue == {"queue_running": [], "queue_pending": []})


def executions(simulator: Any) -> int:
    return sum(simulator.executions.values())


# -- the main job ----------------------------------------------------------------------------------


def test_a_workflow_runs_and_its_picture_is_here(
    comfy: Comfy, simulator: Any, workflow_file: Make, tmp_path: Any
) -> None:
    result = comfy.run(workflow_file(txt2img(seed=5)), {"positive": "a fox"})
    assert result.status == "success"
    assert result.seeds == {"3.seed": 5}
    assert result.seconds > 0 and set(result.node_seconds) == set("3456789")
    assert result.prompt_id in simulator.executions
    assert "Done in" in result.message

    (output,) = result.outputs
    assert (output.kind, output.filename, output.node_id, output.folder) == ("image", "sd_00001_.png", "9", "output")
    assert output.bytes.startswith(b"\x89PNG")
    assert json.loads(png_text(output.bytes)["prompt"])["6"]["inputs"]["text"] == "a fox"
    assert output.url == f"{simulator.url}/view?filename=sd_00001_.png&subfolder=&type=output"
    path = output.save(tmp_path / "out")
    assert path == str(tmp_path / "out" / "sd_00001_.png")
    assert pathlib.Path(path).read_bytes() == output.bytes


def test_a_workflow_is_a_path_a_dict_or_bytes_in_either_format(comfy: Comfy, tmp_path: Any) -> None:
    prompt = slow_prompt()
    path = tmp_path / "flow.json"
    path.write_text(json.dumps(prompt))
    made = comfy.run(path)
    picture = made.outputs[0].bytes
    with open(os.path.join(ROOT, "workflow.json"), encoding="utf-8") as file:
        ui_format = json.load(file)
    workflows: List[Any] = [str(path), prompt, {"prompt": prompt}, json.dumps(prompt).encode(), picture, ui_format]
    for workflow in workflows:
        assert comfy.run(workflow).status == "success"


def test_what_is_not_a_workflow_is_an_error(comfy: Comfy, tmp_path: Any) -> None:
    with pytest.raises(WorkflowError, match=r"nowhere\.json does not exist"):
        comfy.run(tmp_path / "nowhere.json")
    with pytest.raises(WorkflowError, match="The workflow is not JSON"):
        comfy.run(b"{")
    with pytest.raises(WorkflowError, match=r"has a value that is not JSON: .*set"):
        comfy.run({"1": node("EmptyImage", width={1})})
    with pytest.raises(UsageError, match="A workflow must be a path, a dict or bytes, not int"):
        comfy.run(3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"A string must be the path of a workflow(.|\n)*as bytes"):
        comfy.run(json.dumps(slow_prompt()))


def test_the_callers_dict_stays_as_it_is(comfy: Comfy, simulator: Any) -> None:
    prompt = slow_prompt(seed=1)
    comfy.run(prompt, {"Slow.steps": 2}, seed=7)
    assert prompt == slow_prompt(seed=1)
    (submitted,) = prompts_of(simulator)
    assert (submitted["1"]["inputs"]["steps"], submitted["1"]["inputs"]["seed"]) == (2, 7)


def test_values_that_do_not_fit_are_refused_and_nothing_runs(comfy: Comfy, simulator: Any) -> None:
    with pytest.raises(EditError, match=r"There is no value \"stepz\"") as unknown:
        comfy.run(slow_prompt(), {"stepz": 3})
    assert {"key": "1.steps"} in unknown.value.details
    with pytest.raises(EditError, match="steps = 0 is too small"):
        comfy.run(slow_prompt(), {"1.steps": 0})
    with pytest.raises(EditError, match="has no seed"):
        comfy.run(LOADER, seed=3)
    with pytest.raises(UsageError, match="Leave one of them out"):
        comfy.run(slow_prompt(), {"seed": 3}, seed=4)
    assert prompts_of(simulator) == []


def test_arguments_of_the_wrong_kind_are_named_before_anything_happens(comfy: Comfy, simulator: Any) -> None:
    async def report(_: RunReport) -> None: ...

    wrong_calls: List[Tuple[Json, str]] = [
        ({"values": ["positive"]}, "The values must be a dict, not list"),
        ({"values": {5: 30}}, "The key 5 is not a string"),
        ({"on_progress": "print"}, "on_progress must be a function, not str"),
        ({"on_progress": report}, r'which only connect_async\(\) can await(.|\n)*"def" in place of "async def"'),
    ]
    for arguments, words in wrong_calls:
        with pytest.raises(UsageError, match=words):
            comfy.run(slow_prompt(), **arguments)
    assert prompts_of(simulator) == []
    wrong_addresses: List[Tuple[Json, str]] = [
        ({"url": 8188}, "The URL must be a string, not int"),
        ({"headers": ["A: b"]}, "The headers must be a dict, not list"),
    ]
    for arguments, words in wrong_addresses:
        with pytest.raises(UsageError, match=words):
            connect_async(**arguments)


def test_a_random_seed_is_another_one_for_each_run(comfy: Comfy) -> None:
    seeds = [comfy.run(slow_prompt(steps=1, seconds=0.0), seed="random").seeds["1.seed"] for _ in range(3)]
    assert len({*seeds, 1}) == 4


def test_paths_bytes_and_outputs_are_uploaded(comfy: Comfy, simulator: Any, tmp_path: Any) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(PICTURE)
    first = comfy.run(LOADER, {"image": path})
    assert prompts_of(simulator)[-1]["1"]["inputs"]["image"] == "cat.png"
    comfy.run(LOADER, {"Photo.image": bytearray(PICTURE)}, on_progress=print)
    named_by_content = prompts_of(simulator)[-1]["1"]["inputs"]["image"]
    assert named_by_content.endswith(".png")
    comfy.run(LOADER, {"1.image": first.outputs[0]})
    assert prompts_of(simulator)[-1]["1"]["inputs"]["image"] == "loaded_00001_.png"
    said = comfy.run(output_of({"text": ["from a text"]})).outputs[0]
    comfy.run(LOADER, {"Save.filename_prefix": said})
    assert prompts_of(simulator)[-1]["2"]["inputs"]["filename_prefix"] == "from a text"
    comfy.run(LOADER, {"1.image": "cat.png"})  # a text is a file that the server has
    uploads = [path for _, path in simulator.requests if path == "/upload/image"]
    assert len(uploads) == 3


def test_files_that_cannot_be_uploaded_are_refused(comfy: Comfy, simulator: Any, tmp_path: Any) -> None:
    with pytest.raises(UsageError, match=r"There is no file .*gone\.png to upload"):
        comfy.run(LOADER, {"image": tmp_path / "gone.png"})
    with pytest.raises(UsageError, match="cannot be uploaded: it is a folder"):
        comfy.run(LOADER, {"image": tmp_path})
    with pytest.raises(EditError, match="is not a picture"):
        comfy.run(LOADER, {"image": b"not a picture at all"})
    with pytest.raises(EditError, match="does not load a file"):
        comfy.run(slow_prompt(), {"1.steps": PICTURE})
    assert prompts_of(simulator) == []


def test_a_file_that_is_gone_when_it_is_uploaded_is_an_error(tmp_path: Any) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(PICTURE)
    file = read_python_value(path)
    assert isinstance(file, CallFile) and file.name == "cat.png"
    assert b"".join(file.pieces()) == PICTURE
    path.unlink()
    with pytest.raises(UsageError, match="cannot be uploaded"):
        list(file.pieces())


def test_numbers_of_other_packages_are_numbers() -> None:
    """numpy registers its types with these two."""
    import numbers

    class Int64:
        def __int__(self) -> int:
            return 7

    class Float32:
        def __float__(self) -> float:
            return 0.5

    numbers.Integral.register(Int64)
    numbers.Real.register(Float32)
    values = [read_python_value(value) for value in (Int64(), Float32(), True, 3, 0.25, "text")]
    assert values == [7, 0.5, True, 3, 0.25, "text"]
    assert [type(value) for value in values] == [int, float, bool, int, float, str]


def test_what_was_refused_is_looked_at_with_new_definitions(comfy: Comfy, simulator: Any) -> None:
    """A file that came after the first run is one of the choices of the second one."""
    comfy.run(LOADER, {"Save.filename_prefix": "first"})
    asked = [path for _, path in simulator.requests if path == "/object_info/LoadImage"]
    comfy.run(LOADER, {"Save.filename_prefix": "second"})
    assert [path for _, path in simulator.requests if path == "/object_info/LoadImage"] == asked
    with pytest.raises(EditError):
        comfy.run(LOADER, {"Save.nothing": "third"})
    again = [path for _, path in simulator.requests if path == "/object_info/LoadImage"]
    assert len(again) == len(asked) + 1


def test_a_class_that_was_looked_for_in_vain_is_missing_in_a_conversion_too(comfy: Comfy) -> None:
    with pytest.raises(PromptRejected, match="does not have the class NotThere"):
        comfy.run({**slow_prompt(), "8": node("NotThere", a=1)}, {"1.steps": 1})
    assert comfy.run(os.path.join(ROOT, "workflow.json"), {"KSampler.steps": 1, "size": "64x64"}).status == "success"


@pytest.mark.parametrize("values", [{"4.ckpt_name": "mine.safetensors"}, {"3.steps": 1}])
def test_a_model_that_came_after_the_first_run_is_not_mistaken_for_another_one(
    values: Json, comfy: Comfy, simulator: Any, monkeypatch: Any
) -> None:
    workflow = txt2img(steps=1)
    workflow["4"]["inputs"]["ckpt_name"] = "mine.safetensors"
    monkeypatch.setitem(MODELS_OF_SIMULATOR, "checkpoints", ["old/mine.safetensors"])
    (notice,) = comfy.run(workflow, {"3.steps": 2}).notices
    assert "old/mine.safetensors is used" in notice
    monkeypatch.setitem(MODELS_OF_SIMULATOR, "checkpoints", ["old/mine.safetensors", "mine.safetensors"])
    if "4.ckpt_name" in values:
        workflow["4"]["inputs"]["ckpt_name"] = "old/mine.safetensors"
    result = comfy.run(workflow, values)
    assert prompts_of(simulator)[-1]["4"]["inputs"]["ckpt_name"] == "mine.safetensors"
    assert result.notices == ()


def test_what_is_known_is_forgotten_when_comfyui_was_restarted(comfy: Comfy, simulator: Any) -> None:
    comfy.run(LOADER, {"Save.filename_prefix": "first"})
    simulator.restart()
    wait_until(lambda: not comfy._comfy._known.knows_some, what="the restored connection")
    asked = len(simulator.requests)
    comfy.run(LOADER, {"Save.filename_prefix": "second"})
    assert ("GET", "/object_info/SaveImage") in simulator.requests[asked:]


# -- progress --------------------------------------------------------------------------------------


def test_progress_is_reported_in_the_thread_that_called(comfy: Comfy) -> None:
    reports: List[RunReport] = []
    threads = set()

    def on_progress(report: RunReport) -> None:
        reports.append(report)
        threads.add(threading.current_thread())

    result = comfy.run(slow_prompt(), on_progress=on_progress)
    assert threads == {threading.current_thread()}
    assert {report["prompt_id"] for report in reports} == {result.prompt_id}
    names = [report["event"] for report in reports if report["event"] not in ("progress", "queued", "cached")]
    assert names == [
        "submitted", "started", "node_started", "node_finished", "node_started", "node_finished", "output", "end",
    ]  # fmt: skip
    steps = [report["value"] for report in reports if report["event"] == "progress"]
    assert (steps[0], steps[-1]) == (1, 4)


def test_printed_progress_is_in_words(comfy: Comfy, capsys: Any) -> None:
    comfy.run(slow_prompt(), on_progress=print)
    shown = capsys.readouterr().out
    assert "\nRunning.\nnode started: Slow\nSlow: 1/4 (25%), 0/2 nodes\n" in shown
    assert "Done in" in shown and "{" not in shown


def test_a_report_without_words_and_without_a_node_is_its_name() -> None:
    assert str(RunReport(event="cached", nodes=[], nodes_total=3)) == "cached"


def test_an_error_of_on_progress_cancels_the_run(comfy: Comfy, simulator: Any) -> None:
    def on_progress(report: RunReport) -> None:
        if report["event"] == "node_started":
            raise ZeroDivisionError(report["prompt_id"])

    with pytest.raises(ZeroDivisionError) as error:
        comfy.run(slow_prompt(**FOREVER), on_progress=on_progress)
    assert is_idle(simulator)
    assert "execution_interrupted" in phases(simulator, str(error.value))


@pytest.mark.parametrize("values", [{}, {"3.steps": 1}])
def test_a_model_with_another_name_is_a_notice_of_the_result(
    values: Json, comfy: Comfy, simulator: Any, monkeypatch: Any
) -> None:
    monkeypatch.setitem(MODELS_OF_SIMULATOR, "checkpoints", ["SDXL/sd_xl_base_1.0.safetensors"])
    result = comfy.run(txt2img(steps=1), values)
    (notice,) = result.notices
    assert "SDXL/sd_xl_base_1.0.safetensors is used for sd_xl_base_1.0.safetensors" in notice
    assert prompts_of(simulator)[0]["4"]["inputs"]["ckpt_name"] == "SDXL/sd_xl_base_1.0.safetensors"


def test_a_run_without_the_outputs_that_were_refused_is_partial(comfy: Comfy) -> None:
    assert comfy.run(slow_prompt()).notices == ()
    partial = {**slow_prompt(), "3": node("SaveImage", "Broken", filename_prefix="y", images=["404", 0])}
    result = comfy.run(partial)
    assert result.status == "partial"
    assert '"Broken"' in result.notices[0]
    assert "links to node 404" in result.problems[0].message
    assert [output.title for output in result.outputs] == ["Save Image"]


# -- how runs fail ---------------------------------------------------------------------------------


def test_a_refused_prompt_says_what_is_wrong(comfy: Comfy) -> None:
    with pytest.raises(PromptRejected) as error:
        comfy.run({**slow_prompt(), "8": node("NotThere"), "9": node("NorThis")})
    assert [problem.class_type for problem in error.value.problems] == ["NotThere", "NorThis"]
    assert "the server does not have the class NorThis" in str(error.value)


def test_a_traceback_has_nothing_of_the_steps_of_a_run(comfy: Comfy, simulator: Any) -> None:
    with pytest.raises(PromptRejected) as error:
        comfy.run({"1": node("NotThere")})
    assert [frame.name for frame in traceback.extract_tb(error.value.__traceback__)[1:]] == ["run", "result_of_call"]

    async def program() -> None:
        async with connect_async(simulator.url, limits=FAST) as connection:
            await connection.run({"1": node("NotThere")})

    with pytest.raises(PromptRejected) as error:
        run_loop(program())
    names = [frame.name for frame in traceback.extract_tb(error.value.__traceback__)]
    assert names[-3:] == ["program", "run", "result_of_call"]


def test_of_many_problems_a_traceback_shows_the_first(comfy: Comfy) -> None:
    with pytest.raises(PromptRejected, match=r"2 more: see the error's problems\.") as error:
        comfy.run({str(number): node(f"Missing{number}") for number in range(12)})
    assert len(error.value.problems) == 12


def test_a_node_that_raises_is_named_and_what_was_made_before_is_kept(comfy: Comfy) -> None:
    prompt = {
        "1": node("EmptyImage", width=8, height=8, batch_size=1, color=0),
        "2": node("SaveImage", images=["1", 0], filename_prefix="before"),
        "3": node("FailNode", "Breaks", message="no way", image=["1", 0]),
        "4": node("SaveImage", images=["3", 0], filename_prefix="after"),
    }
    with pytest.raises(NodeFailed, match=r'"Breaks" \(FailNode, node 3\) raised ValueError: no way') as caught:
        comfy.run(prompt)
    error = caught.value
    assert (error.node_id, error.title, error.class_type, error.type) == ("3", "Breaks", "FailNode", "ValueError")
    assert any("FailNode" in line or "raise" in line for line in error.traceback)
    assert error.result.status == "error"
    assert error.exit_status is ExitStatus.FAILED
    assert [output.filename[:6] for output in error.result.outputs] in (["before"], [])


def test_a_timeout_cancels_the_run(comfy: Comfy, simulator: Any) -> None:
    with pytest.raises(RunTimeout, match="Cancelled by timeout: ComfyUI interrupted our run") as error:
        comfy.run(slow_prompt(**FOREVER), timeout=0.5)
    assert is_idle(simulator)
    assert "execution_interrupted" in phases(simulator, error.value.result.prompt_id)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), True, "soon"])
def test_a_timeout_is_a_number_of_seconds(timeout: Any, comfy: Comfy) -> None:
    with pytest.raises(UsageError, match="timeout must be a number of seconds above 0"):
        comfy.run(slow_prompt(), timeout=timeout)


def test_somebody_else_interrupts_the_run(comfy: Comfy, simulator: Any) -> None:
    def on_progress(report: RunReport) -> None:
        if report["event"] == "node_started":
            requests.post(simulator.url + "/interrupt", timeout=5)

    with pytest.raises(RunInterrupted, match="Someone else interrupted the run") as error:
        comfy.run(slow_prompt(**FOREVER), on_progress=on_progress)
    assert error.value.result.status == "interrupted"


def test_a_server_that_restarts_has_lost_the_run_and_takes_the_next(comfy: Comfy, simulator: Any) -> None:
    def on_progress(report: RunReport) -> None:
        if report["event"] == "node_started":
            simulator.restart()

    with pytest.raises(RunLost, match="The run is lost"):
        comfy.run(slow_prompt(**FOREVER), on_progress=on_progress)
    assert comfy.run(slow_prompt()).status == "success"


def test_a_connection_that_drops_is_restored_and_the_run_goes_on(comfy: Comfy, simulator: Any) -> None:
    states = []

    def on_progress(report: RunReport) -> None:
        if report["event"] == "node_started" and report["node_id"] == "1":
            simulator.cut_websockets()
        if report["event"] == "connection":
            states.append(report["state"])

    result = comfy.run(slow_prompt(steps=20, seconds=2.0), on_progress=on_progress)
    assert result.status == "success"
    assert states == ["lost", "restored"]
    assert executions(simulator) == 1


@pytest.mark.parametrize("lost", [["after"], ["before"], ["500"]])
def test_a_submission_whose_answer_is_lost_runs_once(lost: List[str], comfy: Comfy, simulator: Any) -> None:
    simulator.faults.lose_post = lost
    if lost == ["500"]:
        with pytest.raises(RunnerError):
            comfy.run(slow_prompt())
    else:
        assert comfy.run(slow_prompt()).status == "success"
        assert executions(simulator) == 1


def test_no_comfyui_answers(simulator: Any) -> None:
    simulator.crash()
    with pytest.raises(ServerUnreachable, match=r"nothing listens there") as error:
        connect(simulator.url)
    assert "connect(demo=True) works without ComfyUI" in str(error.value)
    assert "--" not in str(error.value)


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="must be http:// or https://"):
        connect("ftp://127.0.0.1")
    with pytest.raises(UsageError, match=r"connect\(headers"):
        connect("http://127.0.0.1:8188?token=3")
    with pytest.raises(UsageError, match="starts its own server"):
        connect("http://127.0.0.1:8188", demo=True)


def test_secrets_are_not_part_of_errors(simulator: Any) -> None:
    simulator.faults.echo = {"/prompt": (400, "json")}
    headers = {"Authorization": "Bearer s3cret-token-of-ours"}
    with connect(simulator.url, headers=headers, limits=FAST) as comfy, pytest.raises(PromptRejected) as error:
        comfy.run(slow_prompt())
    said = [str(error.value), error.value.message, repr(error.value.problems), repr(error.value.answer)]
    assert "Authorization: ***" in said[0]
    assert not any("s3cret" in text for text in said)


# -- Ctrl+C ----------------------------------------------------------------------------------------


def press_ctrl_c_in_main_thread() -> None:
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send SIGINT to one thread")
def test_ctrl_c_cancels_the_run_and_no_other(comfy: Comfy, simulator: Any) -> None:
    other = requests.post(simulator.url + "/prompt", json={"prompt": slow_prompt(steps=5, seconds=1.0)}, timeout=5)
    pressing = []
    prompt_ids = set()

    def on_progress(report: RunReport) -> None:
        prompt_ids.add(report["prompt_id"])
        if report["event"] == "node_started":
            pressing.append(threading.Timer(0.1, press_ctrl_c_in_main_thread))
            pressing[-1].start()

    with pytest.raises(KeyboardInterrupt):
        comfy.run(slow_prompt(**FOREVER), on_progress=on_progress)
    (prompt_id,) = prompt_ids
    assert is_idle(simulator)
    assert "execution_interrupted" in phases(simulator, prompt_id)
    assert "execution_success" in phases(simulator, other.json()["prompt_id"])
    assert comfy.run(slow_prompt()).status == "success"  # the connection is as good as before


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send SIGINT to one thread")
def test_a_second_ctrl_c_does_not_wait_for_the_server(comfy: Comfy, simulator: Any) -> None:
    simulator.faults.ignore_interrupt = True

    def press_twice() -> None:
        wait_until(lambda: executions(simulator), what="the run")
        press_ctrl_c_in_main_thread()
        wait_until(lambda: any("cancel" in path for _, path in simulator.requests), what="the cancelling")
        press_ctrl_c_in_main_thread()

    thread = threading.Thread(target=press_twice)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        comfy.run(slow_prompt(**FOREVER))
    assert comfy._comfy._calls, "it waited until the run was cancelled"
    thread.join()


PROGRAM = f"""
from comfyui_runner import connect
with connect() as comfy:
    comfy.run({slow_prompt(**FOREVER)!r})
"""
PROGRAM_WITH_A_LOOP = f"""
import asyncio
from comfyui_runner import connect_async

async def main():
    async with connect_async() as comfy:
        await comfy.run({slow_prompt(**FOREVER)!r})

asyncio.run(main())
"""


@pytest.mark.script_and_folder
@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send SIGINT to one process")
@pytest.mark.parametrize(
    "program",
    [
        PROGRAM,
        pytest.param(
            PROGRAM_WITH_A_LOOP,
            marks=pytest.mark.skipif(
                sys.version_info < (3, 11),
                reason="Ctrl+C may come in the very step that wakes a task, which waits then",
            ),
        ),
    ],
    ids=["plain", "asyncio"],
)
def test_ctrl_c_ends_a_program_and_its_run(program: str, simulator: Any) -> None:
    variables = {**os.environ, "COMFYUI_URL": simulator.url}
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env=variables, stderr=subprocess.PIPE)
    try:
        wait_until(lambda: executions(simulator), seconds=60.0, what="the run")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert is_idle(simulator)
    assert said.rstrip().endswith(b"KeyboardInterrupt"), said
    assert b"never retrieved" not in said and b"never awaited" not in said


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send SIGINT to one thread")
def test_ctrl_c_while_it_connects_leaves_nothing_behind(simulator: Any) -> None:
    simulator.faults.http_hang = {"/system_stats": 2.0}

    def press() -> None:
        wait_until(lambda: ("GET", "/system_stats") in simulator.requests, what="the first request")
        press_ctrl_c_in_main_thread()

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        connect(simulator.url)
    thread.join()


# -- several runs at a time ------------------------------------------------------------------------


def test_several_threads_run_at_a_time_over_one_connection(comfy: Comfy, simulator: Any) -> None:
    def run(seed: int) -> Any:
        result = comfy.run(slow_prompt(steps=3, seconds=0.3, seed=seed))
        return result, result.outputs[0].bytes

    with ThreadPoolExecutor(5) as pool:
        results = list(pool.map(run, range(5)))
    assert [result.seeds for result, _ in results] == [{"1.seed": seed} for seed in range(5)]
    for seed, (_, picture) in enumerate(results):
        assert json.loads(png_text(picture)["prompt"])["1"]["inputs"]["seed"] == seed
    assert [path for _, path in simulator.requests].count("/ws") == 1


def test_closing_cancels_the_runs_of_other_threads(simulator: Any) -> None:
    comfy = connect(simulator.url, limits=FAST)
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(comfy.run, slow_prompt(**FOREVER, seed=seed)) for seed in range(2)]
        try:
            wait_until(lambda: executions(simulator) and len(prompts_of(simulator)) == 2, what="both runs")
        finally:
            comfy.close()
        errors = [run.exception(30) for run in runs]
    assert [type(error) for error in errors] == [RunCancelled, RunCancelled]
    assert is_idle(simulator)
    comfy.close()  # once more does no harm
    with pytest.raises(RunnerError, match="The connection is not open"):
        comfy.run(slow_prompt())


def test_outputs_can_be_read_when_the_connection_is_closed(simulator: Any, tmp_path: Any) -> None:
    with connect(simulator.url, limits=FAST) as comfy:
        (output,) = comfy.run(slow_prompt()).outputs
    assert isinstance(output, RunOutput)
    assert output.save(tmp_path) == str(tmp_path / "slow_00001_.png")
    assert comfy.url == simulator.url


def test_what_the_simulator_made_ends_with_its_connection(tmp_path: Any) -> None:
    with connect(demo=True, limits=FAST._replace(give_up=600.0)) as comfy:
        (output,) = comfy.run(slow_prompt(seconds=0.0)).outputs
        assert output.bytes.startswith(b"\x89PNG")
        text = comfy.run(output_of({"text": ["a text"]})).outputs[0]
    with pytest.raises(SaveError, match=r"stopped when its connection was closed(.|\n)*save outputs before"):
        output.save(tmp_path)
    assert text.bytes == b"a text"


def test_it_works_inside_a_running_event_loop(simulator: Any) -> None:
    async def cell() -> str:
        with connect(simulator.url, limits=FAST) as comfy:
            return comfy.run(slow_prompt()).status

    assert asyncio.run(cell()) == "success"


def test_behind_a_load_balancer_the_next_run_goes_to_another_server(
    make_simulator: Make,
    make_balancer: Make,  # noqa: F811
) -> None:
    servers = [make_simulator(), make_simulator()]
    rule = Sticky(2)
    with connect(make_balancer(servers, rule).url, limits=FAST) as comfy:
        first = comfy.run(slow_prompt())
        (at,) = [number for number, server in enumerate(servers) if executions(server)]
        other = 1 - at

        def lose(report: RunReport) -> None:
            if report["event"] == "node_started":
                rule.up.remove(at)
                servers[at].cut_websockets()

        with pytest.raises(RunLost, match="its server is gone"):
            comfy.run(slow_prompt(**FOREVER), on_progress=lose)
        assert comfy.run(slow_prompt(seed=3)).status == "success"
        assert executions(servers[other]) == 1
        assert len(comfy._comfy._sessions) == 2  # the first one was in use until then
        assert comfy.run(slow_prompt(seed=4)).status == "success"
        assert len(comfy._comfy._sessions) == 1
        with pytest.raises(SaveError):
            _ = first.outputs[0].bytes  # it is where nobody leads us any more


def test_a_comfyui_that_goes_away_while_it_is_connected_to_is_an_error(simulator: Any, monkeypatch: Any) -> None:
    find = ComfyUI.find

    async def find_and_crash(comfyui: ComfyUI) -> Any:
        server = await find(comfyui)
        simulator.crash()
        return server

    monkeypatch.setattr(ComfyUI, "find", find_and_crash)
    with pytest.raises(ServerUnreachable, match="does not answer any more"):
        connect(simulator.url, limits=FAST)


# -- programs with a loop of their own -------------------------------------------------------------


def test_an_async_program_runs_several_at_once(simulator: Any, tmp_path: Any) -> None:
    async def program() -> None:
        reports: List[str] = []

        async def on_progress(report: RunReport) -> None:
            await asyncio.sleep(0)
            reports.append(report["event"])

        async with connect_async(simulator.url, limits=FAST) as comfy:
            assert comfy.url == simulator.url
            runs = [comfy.run(slow_prompt(seed=seed), on_progress=on_progress) for seed in range(3)]
            results = await asyncio.gather(*runs)
            assert [result.seeds["1.seed"] for result in results] == [0, 1, 2]
            assert reports.count("end") == 3
            output = results[0].outputs[0]
            assert (await output.read_async()).startswith(b"\x89PNG")
            assert await output.save_async(tmp_path / "a.png") == str(tmp_path / "a.png")
            with pytest.raises(PromptRejected):
                await comfy.run({"1": node("NotThere")})

    run_loop(program())
    assert [path for _, path in simulator.requests].count("/ws") == 1


def test_cancelling_the_task_cancels_the_run(simulator: Any) -> None:
    async def program() -> None:
        async with connect_async(simulator.url, limits=FAST) as comfy:
            started = asyncio.Event()

            def on_progress(report: RunReport) -> None:
                if report["event"] == "node_started":
                    started.set()

            task = asyncio.ensure_future(comfy.run(slow_prompt(**FOREVER), on_progress=on_progress))
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert is_idle(simulator)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(comfy.run(slow_prompt(**FOREVER)), 0.5)
            assert is_idle(simulator)
            assert (await comfy.run(slow_prompt())).status == "success"

    run_loop(program())


def test_leaving_the_block_cancels_what_runs(simulator: Any) -> None:
    async def program() -> Any:
        async with connect_async(simulator.url, limits=FAST) as comfy:
            task = asyncio.ensure_future(comfy.run(slow_prompt(**FOREVER)))
            while not executions(simulator):
                await asyncio.sleep(0.01)
        ended: Any = (await asyncio.gather(task, return_exceptions=True))[0]
        assert is_idle(simulator)
        with pytest.raises(RunnerError, match="The connection is not open"):
            await comfy.run(slow_prompt())
        return ended

    ended: Any = run_loop(program())
    assert isinstance(ended, RunCancelled)
    assert ended.result.status == "cancelled"


def test_a_run_that_is_closed_before_it_is_submitted_ran_nothing(simulator: Any) -> None:
    simulator.faults.http_hang = {"/object_info": 1.0}

    async def program() -> Any:
        async with connect_async(simulator.url, limits=FAST) as comfy:
            task = asyncio.ensure_future(comfy.run(slow_prompt(), {"1.steps": 2}))
            while not any(path.startswith("/object_info") for _, path in simulator.requests):
                await asyncio.sleep(0.01)
        ended: Any = (await asyncio.gather(task, return_exceptions=True))[0]
        return ended

    ended: Any = run_loop(program())
    assert isinstance(ended, RunCancelled)
    assert str(ended) == "The connection was closed: nothing was submitted."
    assert prompts_of(simulator) == []


def test_a_connection_that_was_never_opened_says_so() -> None:
    async def program() -> None:
        comfy = connect_async("http://127.0.0.1:8188")
        assert isinstance(comfy, AsyncComfy)
        await comfy.run(slow_prompt())

    with pytest.raises(RunnerError, match="The connection is not open"):
        run_loop(program())


def test_a_connection_that_was_never_opened_has_no_address_and_nothing_to_close() -> None:
    comfy = connect_async("http://127.0.0.1:8188")
    run_loop(comfy.close())
    with pytest.raises(RunnerError, match="The connection is not open"):
        _ = comfy.url


def test_a_connection_is_opened_once(simulator: Any) -> None:
    async def program() -> None:
        comfy = connect_async(simulator.url, limits=FAST)
        async with comfy:
            with pytest.raises(RunnerError, match="can be opened only once"):
                await comfy.__aenter__()
            assert (await comfy.run(slow_prompt())).status == "success"
        assert comfy.url == simulator.url
        with pytest.raises(RunnerError, match=r"Create another one: async with connect_async\(\.\.\.\)"):
            await comfy.__aenter__()

    run_loop(program())


def test_a_connection_that_could_not_be_opened_may_be_tried_again(make_simulator: Make) -> None:
    simulator = make_simulator()
    simulator.crash()

    async def program() -> None:
        comfy = connect_async(simulator.url, limits=FAST)
        with pytest.raises(ServerUnreachable):
            await comfy.__aenter__()
        simulator.revive()
        async with comfy:
            assert (await comfy.run(slow_prompt())).status == "success"

    run_loop(program())


# -- outputs ---------------------------------------------------------------------------------------


def test_texts_and_files_of_texts_are_texts(comfy: Comfy, simulator: Any) -> None:
    ui = {"text": ["said"], "files": [{"filename": "notes.txt", "subfolder": "", "type": "output"}]}
    text, file_of_text = sorted(comfy.run(output_of(ui)).outputs, key=lambda output: output.filename)
    with open(os.path.join(simulator.folder("output"), "notes.txt"), "w", encoding="utf-8") as file:
        file.write("in a file")
    assert isinstance(text, RunOutput) and isinstance(file_of_text, RunOutput)
    assert (text.kind, text.text, text.bytes, text.url) == ("text", "said", b"said", None)
    assert (file_of_text.kind, file_of_text.text) == ("text", "in a file")
    assert repr(text) == "<text 'said' of SimulatedOutput>"
    assert "notes.txt" in repr(file_of_text)


def test_what_only_looks_like_a_file_is_a_text(comfy: Comfy) -> None:
    (output,) = comfy.run(output_of({"text": ["gone.png"]})).outputs
    assert output.bytes == b"gone.png"


def test_pictures_that_come_over_the_socket_alone_are_here(comfy: Comfy, tmp_path: Any) -> None:
    prompt = {
        "1": node("EmptyImage", width=8, height=8, batch_size=1, color=0),
        "2": node("SaveImageWebsocket", "Sent", images=["1", 0]),
    }
    (output,) = comfy.run(prompt).outputs
    assert output.url is None
    assert output.bytes.startswith(b"\x89PNG")
    assert os.path.basename(output.save(tmp_path)) == "Sent_00001.png"
    assert repr(output) == "<image Sent_00001.png of Sent>"


def test_base64_in_a_text_is_a_file(comfy: Comfy) -> None:
    (output,) = comfy.run(output_of({"text": [base64.b64encode(PICTURE).decode()]})).outputs
    assert output.bytes == PICTURE


def test_a_file_that_is_gone_is_an_error_in_words(comfy: Comfy, simulator: Any) -> None:
    (output,) = comfy.run(slow_prompt()).outputs
    os.unlink(os.path.join(simulator.folder("output"), output.filename))
    with pytest.raises(SaveError, match="HTTP 404"):
        _ = output.bytes


def test_a_download_that_is_cut_goes_on(comfy: Comfy, simulator: Any) -> None:
    (output,) = comfy.run(slow_prompt()).outputs
    whole = output.bytes
    simulator.faults.cut_files = [100]
    assert output.bytes == whole


def test_a_file_that_changes_while_it_is_cut_off_is_given_up(comfy: Comfy, simulator: Any) -> None:
    from comfyui_runner.downloads import CHANGES

    (output,) = comfy.run(slow_prompt()).outputs
    path = os.path.join(simulator.folder("output"), output.filename)

    class Changing(list):  # type: ignore[type-arg]
        def pop(self, index: Any = -1) -> Any:
            with open(path, "ab") as file:
                file.write(b"more")
            os.utime(path, (len(self), len(self)))
            return super().pop(index)

    simulator.faults.cut_files = Changing([100] * 4 * CHANGES)
    with pytest.raises(SaveError, match="it changed each time"):
        _ = output.bytes


@pytest.mark.parametrize(
    ("where", "folder", "name", "overwrite"),
    [
        ("out/", "out/", "fox.png", False),
        ("out", "out", "fox.png", False),
        ("out/a.jpg", "out", "a.jpg", True),
        ("a.png", ".", "a.png", True),
        (pathlib.Path("out"), "out", "fox.png", False),
        (".", ".", "fox.png", False),
    ],
)
def test_where_an_output_is_saved(where: Any, folder: str, name: str, overwrite: bool) -> None:
    destination = choose_destination(where, overwrite=False)
    found = (destination.folder, destination.rename("fox.png"), destination.overwrite)
    assert found == (folder, name, overwrite)


def test_a_folder_whose_name_has_a_dot_is_a_folder(comfy: Comfy, tmp_path: Any) -> None:
    (output,) = comfy.run(slow_prompt()).outputs
    folder = tmp_path / "version.1"
    folder.mkdir()
    paths = [output.save(folder), output.save(folder), output.save(folder, overwrite=True)]
    assert [os.path.basename(path) for path in paths] == [
        "slow_00001_.png", "slow_00001_ (1).png", "slow_00001_.png",
    ]  # fmt: skip
    named = tmp_path / "named.png"
    named.write_bytes(b"old")
    assert output.save(named) == str(named)
    assert named.read_bytes() == output.bytes


def test_a_folder_that_cannot_be_written_is_an_error_without_flags(comfy: Comfy, tmp_path: Any) -> None:
    (output,) = comfy.run(slow_prompt()).outputs
    blocked = tmp_path / "blocked"
    blocked.write_bytes(b"")
    with pytest.raises(SaveError) as error:
        output.save(blocked / "deeper")
    assert " -o" not in str(error.value)


# -- in a notebook ---------------------------------------------------------------------------------


def test_a_picture_shows_itself(comfy: Comfy) -> None:
    (output,) = comfy.run(slow_prompt()).outputs
    assert output._repr_png_() == output.bytes
    assert output._repr_jpeg_() is None
    assert output._repr_html_() is None


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        ("a.webp", '<img src="data:image/webp;base64,'),
        ("a.svg", '<img src="data:image/svg+xml;base64,'),
        ("a.mp4", '<video src="data:video/mp4;base64,'),
        ("a.flac", '<audio src="data:audio/flac;base64,'),
        ("a.glb", None),
        ("a.txt", None),
    ],
)
def test_what_a_browser_can_show_is_shown(name: str, begins: Any, comfy: Comfy, simulator: Any) -> None:
    with open(os.path.join(simulator.folder("output"), name), "wb") as file:
        file.write(b"<script>")
    ui = {"files": [{"filename": name, "subfolder": "", "type": "output"}]}
    (output,) = comfy.run(output_of(ui)).outputs
    shown = output._repr_html_()
    if begins is None:
        assert shown is None
    else:
        assert shown is not None and shown.startswith(begins)
        assert "<script>" not in shown
    assert output._repr_png_() is None


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such name")
def test_names_are_escaped(comfy: Comfy, simulator: Any) -> None:
    name = 'a"><script>.webp'
    with open(os.path.join(simulator.folder("output"), name), "wb") as file:
        file.write(b"RIFF")
    (output,) = comfy.run(output_of({"files": [{"filename": name, "subfolder": "", "type": "output"}]})).outputs
    shown = output._repr_html_()
    assert shown is not None and "<script>" not in shown and "&lt;script&gt;" in shown


def test_what_is_too_large_is_a_link(comfy: Comfy, simulator: Any, monkeypatch: Any) -> None:
    module = importlib.import_module(RunOutput.__module__)
    monkeypatch.setattr(module, "MOST_BYTES_IN_NOTEBOOK", 10)
    (picture,) = comfy.run(slow_prompt()).outputs
    assert picture._repr_png_() is None
    with open(os.path.join(simulator.folder("output"), "a.mp4"), "wb") as file:
        file.write(b"x" * 100)
    (video,) = comfy.run(output_of({"files": [{"filename": "a.mp4", "subfolder": "", "type": "output"}]})).outputs
    shown = video._repr_html_()
    assert shown == (
        f'<a href="{simulator.url}/view?filename=a.mp4&amp;subfolder=&amp;type=output">a.mp4</a> '
        "(a.mp4 is larger than 10 B.)"
    )


# -- the document ----------------------------------------------------------------------------------


def examples() -> List[str]:
    """The blocks of Python in docs/PYTHON.md."""
    with open(os.path.join(ROOT, "docs", "PYTHON.md"), encoding="utf-8") as file:
        return re.findall(r"(?ms)^```python\n(.*?)^```$", file.read())


@pytest.mark.parametrize("example", examples(), ids=lambda text: text.strip().splitlines()[-1].strip()[:40])
def test_every_example_runs(example: str, simulator: Any, tmp_path: Any, monkeypatch: Any) -> None:
    for name in ("workflow.json", "workflow_api.json"):
        shutil.copy(os.path.join(ROOT, name), str(tmp_path))
    (tmp_path / "photo.json").write_text(json.dumps(LOADER))
    (tmp_path / "cat.png").write_bytes(PICTURE)
    monkeypatch.chdir(tmp_path)
    names: Json = {}
    try:
        exec(example.replace("http://127.0.0.1:8188", simulator.url), names)
    finally:
        if "with connect" not in example and "comfy" in names:
            names["comfy"].close()
    if "demo" not in example:
        assert ("GET", "/ws") in simulator.requests


def test_the_document_names_every_error_and_argument() -> None:
    with open(os.path.join(ROOT, "docs", "PYTHON.md"), encoding="utf-8") as file:
        text = file.read()
    for name in comfyui_runner.__all__:
        is_error = isinstance(getattr(comfyui_runner, name), type) and issubclass(
            getattr(comfyui_runner, name), Exception
        )
        assert not is_error or f"`{name}`" in text, name
    for name in [*inspect.signature(connect).parameters, *inspect.signature(Comfy.run).parameters]:
        assert name == "self" or name in text, name
    for name in RunResult._fields:
        assert f"`{name}`" in text, name
    assert len(examples()) >= 9


# -- what it is to import --------------------------------------------------------------------------


def modules_after(code: str) -> List[str]:
    """The modules that Python has imported after ``code``, which are not there without it."""
    command = f"import sys; before = set(sys.modules); {code}; print('\\n'.join(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.script_and_folder
def test_importing_the_package_imports_nothing_else() -> None:
    assert set(modules_after("import comfyui_runner")) <= {"comfyui_runner", "__future__"}


@pytest.mark.script_and_folder
def test_importing_connect_imports_no_third_party_package() -> None:
    tops = {name.partition(".")[0] for name in modules_after("from comfyui_runner import connect")}
    standard = getattr(sys, "stdlib_module_names", None)
    if standard is None:  # Python 3.9 and older
        assert not tops & {"requests", "urllib3", "certifi", "websockets", "rich", "charset_normalizer", "idna"}
    else:
        assert tops - set(standard) == {"comfyui_runner"}


@pytest.mark.script_and_folder
def test_the_package_has_what_it_says_and_nothing_else() -> None:
    for name in comfyui_runner.__all__:
        assert getattr(comfyui_runner, name).__name__ == name
    assert set(comfyui_runner.__all__) <= set(dir(comfyui_runner))
    assert comfyui_runner.connect is connect
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = comfyui_runner.nonsense  # type: ignore[attr-defined]


@pytest.mark.long
@pytest.mark.script_and_folder
def test_the_one_file_has_connect_too(simulator: Any, tmp_path: Any) -> None:
    path = tmp_path / "one_file.py"
    builder = os.path.join(ROOT, "comfyui_runner", "onefile.py")
    subprocess.run([sys.executable, builder, str(path)], check=True, capture_output=True)
    code = (
        "import one_file, sys; comfy = one_file.connect(sys.argv[1]);"
        f"print(comfy.run({slow_prompt()!r}).status); comfy.close()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, simulator.url], cwd=str(tmp_path), capture_output=True, text=True, check=False
    )
    assert done.stdout == "success\n", done.stderr


def test_the_demo_needs_no_comfyui() -> None:
    with connect(demo=True) as comfy:
        result = comfy.run(os.path.join(ROOT, "workflow.json"), {"KSampler.steps": 1, "size": "64x64"})
        assert result.outputs[0].bytes.startswith(b"\x89PNG")


def test_it_looks_for_comfyui_where_the_script_does(simulator: Any, monkeypatch: Any) -> None:
    assert USUAL_URLS == script.DEFAULT_SERVERS
    monkeypatch.setenv("COMFYUI_URL", simulator.url)
    with connect(limits=FAST) as comfy:
        assert comfy.url == simulator.url


def test_notices_about_the_server_are_logged(make_simulator: Make, caplog: Any) -> None:
    simulator = make_simulator()
    url = simulator.url.replace("127.0.0.1", "0.0.0.0")
    with connect(url, limits=FAST):
        pass
    assert "0.0.0.0 means every address of ComfyUI's machine" in caplog.text


# -- nodes that cost credits -------------------------------------------------------------------------

PAID: Json = {
    "1": node("PartnerImage", "Painter", text="a fox", seed=5),
    "2": node("SaveImage", images=["1", 0], filename_prefix="paid"),
}


def test_credits_are_spent_where_that_is_allowed(simulator: Any, monkeypatch: Any) -> None:
    key = "comfyui-5ec2e7f0a1b2c3d4"
    monkeypatch.setenv("COMFY_API_KEY", key)
    with connect(simulator.url, limits=FAST) as comfy:
        with pytest.raises(NotConfirmed, match="does not allow nodes that cost credits") as error:
            comfy.run(PAID)
        assert '"Painter"' in str(error.value) and "connect(allow_spend=True)" in str(error.value)
        assert "--" not in str(error.value)
        with pytest.raises(NotConfirmed):
            comfy.run({**PAID, "3": LOADER["1"]}, {"image": PICTURE})
        assert ("POST", "/upload/image") not in simulator.requests  # nothing ran
        assert comfy.run(slow_prompt()).status == "success"
    assert simulator.partner_keys == []
    with connect(simulator.url, limits=FAST, allow_spend=True) as comfy:
        result = comfy.run(PAID)
    assert result.status == "success"
    assert simulator.partner_keys == [key]
    assert key not in repr(result)
