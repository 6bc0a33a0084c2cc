"""Stories of continuous mode: what it remembers from one start to the next."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import sqlite3
import time
import zlib
from pathlib import Path
from typing import Any, Callable, Iterator, List

import pytest
from restarted import ServiceProcess, Story, files_in_history, numbered_prompt, prompts_received
from served import Json, Make, Middleware, phase_elsewhere
from support import node, run, slow_prompt, wait_until

from comfyui_runner.runs import Run
from comfyui_runner.session import Session
from comfyui_runner.simulator import Faults

Start = Callable[..., ServiceProcess]

#: What --verbose says of the state file.
BEGUN = "Runs and edits are kept in "

#: The notice that edits are back.
KEPT = "It has the edits of the last service"


@pytest.fixture
def make_process(tmp_path: Path, simulator: Any) -> Iterator[Start]:
    """Makes services that are killed at the end of the test."""
    made = []

    def make(prompt: Any, *arguments: str) -> ServiceProcess:
        path = tmp_path / "flow.json"
        path.write_text(json.dumps(prompt), encoding="utf-8")
        made.append(ServiceProcess(simulator, str(path), *arguments))
        made[-1].start()
        made[-1].connected()
        return made[-1]

    yield make
    for each in made:
        each.kill()


def restart(process: ServiceProcess) -> None:
    """kill -9, and a new start."""
    process.kill()
    process.start()
    process.connected()


def ids_listed(service: Any) -> List[str]:
    return [each["prompt_id"] for each in service.get("/runs").json["runs"]]


# -- runs, after kill -9 -------------------------------------------------------------------------------


@pytest.mark.long
def test_runs_that_wait_and_run_are_found_again(make_process: Start, simulator: Any) -> None:
    process = make_process(slow_prompt(steps=4, seconds=2.0, seed=1))
    first = process.start_run()
    wait_until(lambda: phase_elsewhere(simulator, first) == "running")
    process.call("POST", "/update/inputs", {"node_id": "1", "inputs": {"seed": 2, "seconds": 0.0}})
    second = process.start_run()
    before = process.get("/runs")["runs"]
    restart(process)
    assert "2 runs of the last service had not ended" in process.said
    runs = process.all_over()
    assert [each["prompt_id"] for each in runs] == [second, first]
    assert [each["phase"] for each in runs] == ["success", "success"]
    assert [each["created"] for each in runs] == [each["created"] for each in before]
    assert [each["seeds"] for each in runs] == [{"1.seed": 2}, {"1.seed": 1}]
    for each in runs:
        assert {output["filename"] for output in each["outputs"]} == files_in_history(simulator, each["prompt_id"])
    assert sorted(prompts_received(simulator)) == sorted([first, second])


def test_the_progress_of_a_run_is_heard_again(make_process: Start, simulator: Any) -> None:
    """Under the same client_id, ComfyUI sends its messages to the new process."""
    process = make_process(slow_prompt(steps=600, seconds=60.0))
    first = process.start_run()
    wait_until(lambda: process.get("/runs/" + first)["phase"] == "running")
    restart(process)
    wait_until(lambda: any(each["value"] for each in process.get("/runs/" + first)["running"]), what="a step")
    assert process.call("POST", "/interrupt").json["prompt_id"] == first
    assert process.all_over()[0]["message"].startswith("Cancelled: ")
    assert phase_elsewhere(simulator, first) == "error"  # ComfyUI's word for interrupted


def test_a_run_that_ended_meanwhile_has_its_outputs(make_process: Start, simulator: Any) -> None:
    process = make_process(slow_prompt(steps=2, seconds=1.0))
    first = process.start_run()
    process.kill()
    wait_until(lambda: phase_elsewhere(simulator, first) == "success")
    process.start()
    (shown,) = process.all_over()
    assert (shown["phase"], len(shown["outputs"])) == ("success", 1)
    assert process.call("GET", "/" + shown["outputs"][0]["url"]).body.startswith(b"\x89PNG")


@pytest.mark.long
def test_a_post_that_was_not_answered_is_looked_up_and_not_sent_again(make_process: Start, simulator: Any) -> None:
    process = make_process(slow_prompt(steps=1, seconds=0.0))
    simulator.faults = Faults(http_hang={"/prompt": 3.0})
    with socket.create_connection(("127.0.0.1", process.port), 10.0) as connection:
        connection.sendall(b"POST /queue HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n")
        wait_until(lambda: ("POST", "/prompt") in simulator.requests, what="the POST")
        process.kill()
    process.start()
    (shown,) = process.all_over()
    assert (shown["phase"], prompts_received(simulator)) == ("success", [shown["prompt_id"]])


def store_open_run(path: Path, is_cancelled: bool = False) -> None:
    """Writes a run into the state file that a process was about to submit."""
    shown: Json = {"outputs": [], "texts": {}, "draw": None}
    prompt = zlib.compress(json.dumps(slow_prompt()).encode())
    text = json.dumps(shown)
    row = (7, "a" * 8, 5.0, "submitting", False, is_cancelled, "{}", text, zlib.crc32(text.encode()), prompt)
    with contextlib.closing(sqlite3.connect(str(path))) as state:
        state.execute("INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        state.commit()


@pytest.mark.parametrize(("is_cancelled", "method"), [(False, "find_again"), (True, "cancel")])
def test_a_fault_of_ours_leaves_no_run_that_never_ends(
    make_middleware: Make,
    simulator: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_cancelled: bool,
    method: str,
) -> None:
    async def fail(session: Session, run: Run) -> None:
        raise ZeroDivisionError

    make_middleware(simulator).stop()
    store_open_run(tmp_path / "held.runs.sqlite3", is_cancelled)
    monkeypatch.setattr(Session, method, fail)
    service = make_middleware(simulator)
    shown = service.get(f"/runs/{'a' * 8}?wait=10").json
    assert (shown["over"], shown["phase"]) == (True, "lost")
    assert "the runner failed (ZeroDivisionError)" in shown["message"]
    assert "The runner failed: ZeroDivisionError" in service.out.getvalue()


def test_a_fault_of_ours_at_the_end_leaves_no_run_that_never_ends(
    service: Middleware, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(run: Run) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Run, "outputs", fail)
    shown = service.get(f"/runs/{service.start()}?wait=10").json
    assert (shown["over"], shown["phase"], shown["outputs"]) == (True, "success", [])
    assert shown["message"].startswith("The runner failed at the end of the run: ")


@pytest.mark.long
def test_a_run_that_never_arrived_says_so(make_process: Start, simulator: Any, tmp_path: Path) -> None:
    process = make_process(slow_prompt(steps=1, seconds=0.0))
    process.kill()
    store_open_run(tmp_path / "flow.runs.sqlite3")
    process.start()
    (ended,) = process.all_over()
    assert ended["phase"] == "rejected" and ended["message"].endswith("and does not send it again.")
    assert prompts_received(simulator) == []


@pytest.mark.long
def test_what_comfyui_has_lost_meanwhile_is_lost(make_process: Start, simulator: Any) -> None:
    process = make_process(slow_prompt(steps=10, seconds=30.0))
    first = process.start_run()
    wait_until(lambda: process.get("/runs/" + first)["phase"] == "running")
    process.kill()
    simulator.restart()
    process.start()
    (shown,) = process.all_over()
    assert shown["phase"] == "lost" and "a restart loses both" in shown["message"]
    assert prompts_received(simulator) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM")
def test_runs_wait_for_a_comfyui_that_is_away_and_may_be_cancelled_meanwhile(
    make_process: Start, simulator: Any
) -> None:
    process = make_process(slow_prompt(steps=10, seconds=30.0))
    first = process.start_run()
    second = process.start_run()
    process.kill()
    address = process.command.index("--server") + 1
    url, process.command[address] = process.command[address], "http://127.0.0.1:9"
    process.start()
    assert [each["phase"] for each in process.get("/runs")["runs"]] == ["queued", "queued"]
    answer = process.call("POST", "/interrupt", {"prompt_id": second})
    assert (answer.status, answer.json["message"]) == (202, "requested")
    restart_at = time.monotonic()
    process.stop()
    assert time.monotonic() - restart_at < 8.0  # nobody waits for a ComfyUI that is not there
    assert "ComfyUI has not confirmed the end of 2 runs" in process.said
    process.command[address] = url
    process.start()
    runs = {each["prompt_id"]: each for each in process.all_over()}
    assert runs[second]["message"].startswith("Cancelled: ")
    assert runs[first]["over"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM")
def test_sigterm_cancels_our_runs_and_the_list_is_back(make_process: Start, simulator: Any) -> None:
    process = make_process(slow_prompt(steps=10, seconds=30.0))
    first = process.start_run()
    wait_until(lambda: phase_elsewhere(simulator, first) == "running")
    process.process.send_signal(signal.SIGTERM)
    process.process.communicate(timeout=30)
    process.process = None
    assert phase_elsewhere(simulator, first) == "error"
    process.start()
    assert "had not ended" not in process.said
    assert [each["phase"] for each in process.runs()] == ["interrupted"]


@pytest.mark.long
def test_nothing_is_missing_and_nothing_is_done_twice_wherever_it_is_killed(
    make_process: Start, simulator: Any
) -> None:
    """test_killed_long.py does so many times."""
    process = make_process(numbered_prompt(0))
    story = Story(process, random.Random(7))
    for seconds in (0.4, 0.05, 0.9):
        story.live(seconds)
        process.start()
        story.check_edits()
    story.check_runs()


# -- from one start to the next ------------------------------------------------------------------------


def test_the_list_and_the_edits_are_back(make_middleware: Make, simulator: Any, tmp_path: Path) -> None:
    service = make_middleware(simulator)
    assert BEGUN not in service.out.getvalue()  # the start shows three lines
    assert service.get("/status").json["state_file"] == str(tmp_path / "held.runs.sqlite3")
    service.post("/update/inputs", {"node_id": "1", "inputs": {"seed": "random"}})
    shown = service.end(service.start())
    held = service.get("/workflow").json
    assert service.stop() == 0

    service = make_middleware(simulator)
    assert KEPT in service.out.getvalue()
    assert service.get("/runs/" + shown["prompt_id"]).json == {
        **shown,
        "outputs": [
            {**output, "absolute_url": f"http://127.0.0.1:{service.port}/{output['url']}"}
            for output in shown["outputs"]
        ],
    }
    again = service.get("/workflow").json
    assert (again["prompt"], again["revision"]) == (held["prompt"], held["revision"])
    assert service.end(service.start())["seeds"] != shown["seeds"]  # it is still drawn
    assert service.get(f"/runs/{shown['prompt_id']}?wait=5").json["over"]
    assert service.get("/view?filename=x&prompt_id=" + shown["prompt_id"]).status == 404


def test_a_workflow_that_a_client_put_there_is_back(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator)
    prompt = {"1": node("EmptyImage", width=8, height=8, batch_size=1, color=0)}
    prompt["2"] = node("SaveImage", "Save", filename_prefix="x", images=["1", 0])
    assert service.call("PUT", "/workflow?name=mine.json", prompt).status == 200
    service.stop()
    service = make_middleware(simulator)
    assert service.held() == prompt and service.get("/status").json["workflow"]["file"] == "mine.json"
    assert service.post("/workflow/reset").status == 200
    service.stop()
    service = make_middleware(simulator)
    assert service.held() == slow_prompt(steps=2, seconds=0.0)
    assert KEPT not in service.out.getvalue()


@pytest.mark.parametrize("flags", [[], ["--set", "1.steps=3"]])
def test_a_file_that_changed_wins(make_middleware: Make, simulator: Any, flags: List[str]) -> None:
    service = make_middleware(simulator)
    service.post("/update/inputs", {"node_id": "1", "inputs": {"seed": 99}})
    revision = service.get("/workflow").json["revision"]
    service.stop()
    changed = slow_prompt(steps=2 if flags else 3, seconds=0.0)
    service = make_middleware(simulator, *flags, prompt=changed)
    held = service.get("/workflow").json
    assert (held["prompt"]["1"]["inputs"]["steps"], held["prompt"]["1"]["inputs"]["seed"]) == (3, 1)
    assert held["revision"] > revision
    assert "has changed since the last service ended" in service.out.getvalue()


def test_nothing_is_said_of_a_file_that_changed_where_nothing_was_edited(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator)
    service.end(service.start())
    service.stop()
    service = make_middleware(simulator, prompt=slow_prompt(steps=3, seconds=0.0))
    assert "has changed" not in service.out.getvalue()


def test_what_only_the_service_had_has_no_address_after_a_restart(make_middleware: Make, simulator: Any) -> None:
    prompt: Json = {
        "1": node("EmptyImage", width=8, height=8, batch_size=1, color=0),
        "2": node("SaveImageWebsocket", "Send", images=["1", 0]),
        "3": node("SaveImage", "Save", filename_prefix="x", images=["1", 0]),
    }
    service = make_middleware(simulator, prompt=prompt)
    wait_until(lambda: service.service.session.connected, what="the WebSocket")
    before = service.end(service.start())
    spooled = [output for output in before["outputs"] if output["url"].startswith("runs/")]
    assert len(spooled) == 1 and service.get("/" + spooled[0]["url"]).status == 200
    service.stop()
    service = make_middleware(simulator, prompt=prompt)
    after = service.get("/runs/" + before["prompt_id"]).json
    urls = [output["url"] for output in before["outputs"]]
    assert [output["url"] for output in after["outputs"]] == [None if url.startswith("runs/") else url for url in urls]
    assert service.get("/" + spooled[0]["url"]).status == 404


def test_a_prompt_id_of_an_earlier_start_is_taken(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator)
    prompt_id = service.start()
    service.end(prompt_id)
    service.stop()
    simulator.restart()
    service = make_middleware(simulator)
    answer = service.post("/prompt", {"prompt": slow_prompt(), "prompt_id": prompt_id})
    assert (answer.status, answer.error) == (409, "prompt_id_taken")


def test_the_runs_are_listed_page_by_page(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator, "--keep-runs", "25")
    started = []
    for _ in range(28):
        started.append(service.start())
        service.end(started[-1])
    assert len(service.service.records.newest_in_memory()) <= 21
    first = service.get("/runs?limit=20").json
    second = service.get("/" + first["next"]).json
    listed = [each["prompt_id"] for each in first["runs"] + second["runs"]]
    assert listed == started[:2:-1] and second["next"] is None
    (_, state), *_ = service.events().until(lambda name, _: name == "state")
    assert [each["prompt_id"] for each in state["runs"]] == listed
    assert service.get("/runs/" + started[0]).status == 404
    (_, state), *_ = service.events("/events?prompt_id=" + started[3]).until(lambda name, _: name == "state")
    assert [each["prompt_id"] for each in state["runs"]] == [started[3]]


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "before=0", "before=", "before=-1"])
def test_a_page_that_cannot_be_is_refused(service: Middleware, query: str) -> None:
    answer = service.get("/runs?" + query)
    assert (answer.status, answer.error) == (400, "wrong_type")


# -- where no file is, or none that can be used --------------------------------------------------------


def test_state_none_and_the_demo_write_nothing(make_middleware: Make, simulator: Any, tmp_path: Path) -> None:
    service = make_middleware(simulator, "--state", "none")
    service.end(service.start())
    assert service.get("/status").json["state_file"] is None and len(ids_listed(service)) == 1
    service.stop()
    assert list(tmp_path.glob("*.sqlite3*")) == []
    assert ids_listed(make_middleware(simulator, "--state", "none")) == []


def test_a_second_service_says_so_and_keeps_its_runs_in_memory(
    make_middleware: Make, simulator: Any, tmp_path: Path
) -> None:
    first = make_middleware(simulator)
    second = make_middleware(simulator)
    path = tmp_path / "held.runs.sqlite3"
    assert f"Another service has the state file {path} open" in second.out.getvalue()
    prompt_id = second.start()
    assert second.end(prompt_id)["phase"] == "success"
    assert ids_listed(second) == [prompt_id] and ids_listed(first) == []
    assert second.get("/status").json["state_file"] is None


def test_a_second_service_whose_file_is_named_does_not_start(
    make_middleware: Make, simulator: Any, tmp_path: Path
) -> None:
    state = str(tmp_path / "kept.db")
    make_middleware(simulator, "--state", state)
    words = ["--mode", "continuous", "--port", "0", "--server", simulator.url, str(tmp_path / "held.json")]
    result = run(*words, "--state", state)
    assert result.status == 2 and f"Another service has the state file {state} open." in result.err


def test_another_programs_file_is_neither_used_nor_touched(simulator: Any, tmp_path: Path) -> None:
    path = tmp_path / "held.json"
    path.write_text(json.dumps(slow_prompt()), encoding="utf-8")
    words = ["--mode", "continuous", "--port", "0", "--server", simulator.url, str(path), "--state", str(path)]
    result = run(*words)
    assert result.status == 2 and "it is not a state file of this program" in result.err
    assert json.loads(path.read_text(encoding="utf-8")) == slow_prompt()


def test_a_damaged_file_is_set_aside(make_middleware: Make, simulator: Any, tmp_path: Path) -> None:
    service = make_middleware(simulator)
    service.end(service.start())
    service.stop()
    path = tmp_path / "held.runs.sqlite3"
    path.write_bytes(b"\0" * 5000)
    service = make_middleware(simulator)
    said = service.out.getvalue()
    assert f"The state file {path} cannot be used" in said and "a new one was started" in said
    (aside,) = tmp_path.glob("held.runs.sqlite3.unusable-*")
    assert aside.read_bytes() == b"\0" * 5000
    assert service.end(service.start())["phase"] == "success"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="whom modes do not stop")
def test_a_folder_that_cannot_be_written_is_no_reason_not_to_serve(
    make_middleware: Make, simulator: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    service = make_middleware(simulator, "--state", str(folder / "x.runs.sqlite3"))
    assert "Runs and edits are kept in memory only." in service.out.getvalue()


def test_a_state_file_that_cannot_be_made_is_no_reason_not_to_serve(
    make_middleware: Make, simulator: Any, tmp_path: Path
) -> None:
    service = make_middleware(simulator, "--state", str(tmp_path / "missing" / "x.runs.sqlite3"))
    assert "No such file or directory. Runs and edits are kept in memory only." in service.out.getvalue()
    prompt_id = service.start()
    service.end(prompt_id)
    assert ids_listed(service) == [prompt_id]


def test_keys_of_api_nodes_are_in_no_file(make_middleware: Make, simulator: Any, tmp_path: Path) -> None:
    key = "sk-0123456789abcdef"
    service = make_middleware(simulator)
    extra = {"extra_data": {"api_key_comfy_org": key, "other": key}}
    prompt = {**slow_prompt(seconds=0.0), "2": node("SaveImage", key, filename_prefix="x", images=["1", 0])}
    answer = service.post("/prompt", {"prompt": prompt, **extra})
    service.end(answer.json["prompt_id"])
    assert service.call("PUT", "/workflow", {"prompt": slow_prompt(seconds=0.0), **extra}).status == 200
    service.stop()
    with contextlib.closing(sqlite3.connect(str(tmp_path / "held.runs.sqlite3"))) as state:
        ((shown, prompt),) = state.execute("SELECT shown, prompt FROM runs").fetchall()
        contents = [content for (content,) in state.execute("SELECT content FROM held WHERE name <> 'client_id'")]
    assert key not in shown and key.encode() not in zlib.decompress(prompt)
    assert not any(key.encode() in zlib.decompress(content) for content in contents)
