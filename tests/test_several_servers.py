"""One batch on several ComfyUIs: who gets which row, and what happens when one of them is killed."""

from __future__ import annotations

import collections
import json
import os
import signal
import threading
from typing import Any, Callable, Dict, List

import pytest
import requests
from support import FAST, Outcome, node, run, slow_prompt, wait_until
from test_batch import meanwhile, pressed

from comfyui_runner.errors import ExitStatus

Make = Callable[..., Any]

LOADER = {
    "1": node("LoadImage", "Photo", image="example.png"),
    "2": node("SaveImage", images=["1", 0], filename_prefix="pic"),
    "3": node("TextOut", "Words", text=""),
}


class Two:
    """A batch on two simulators, in a folder of its own."""

    def __init__(self, first: Any, second: Any, folder: Any) -> None:
        self.first, self.second, self.folder = first, second, folder
        self.manifest = folder / "manifest.jsonl"

    def __call__(self, prompt: Dict[str, Any], *arguments: str, **options: Any) -> Outcome:
        path = self.folder / "flow.json"
        path.write_text(json.dumps(prompt), encoding="utf-8")
        servers = ["--server", self.first.url, "--server", self.second.url]
        words = [str(path), *servers, "--yes", "--json", "--manifest", str(self.manifest)]
        return run(*words, *arguments, **options)

    def lines(self) -> List[Dict[str, Any]]:
        """The manifest."""
        if not self.manifest.exists():
            return []
        text = self.manifest.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines() if line]

    def rows(self, status: str) -> List[int]:
        return sorted(line["row"] for line in self.lines() if line["status"] == status)

    def rows_of(self, simulator: Any) -> List[int]:
        """The rows that were done there, by the manifest."""
        return sorted(
            line["row"] for line in self.lines() if line["status"] == "done" and line["server"] == simulator.url
        )


def values_on(simulator: Any, node_id: str, name: str) -> List[Any]:
    """The value of an input in each prompt that succeeded there."""
    history = requests.get(simulator.url + "/history", timeout=10).json()
    succeeded = [entry for entry in history.values() if entry["status"]["status_str"] == "success"]
    return [entry["prompt"][2][node_id]["inputs"][name] for entry in succeeded]


@pytest.fixture
def two(make_simulator: Make, tmp_path: Any) -> Two:
    return Two(make_simulator(), make_simulator(), tmp_path)


def test_rows_go_to_all_servers_and_their_outputs_come_from_the_right_one(two: Two) -> None:
    out = two.folder / "out"
    result = two(slow_prompt(steps=1, seconds=0.1), "--each", "1.seed=1..8", "-o", str(out))
    assert result.status == ExitStatus.OK
    assert two.rows("done") == list(range(1, 9)) and len(two.lines()) == 8
    for simulator in (two.first, two.second):
        assert values_on(simulator, "1", "seed") and sorted(values_on(simulator, "1", "seed")) == two.rows_of(simulator)
    # In the pictures of the simulator is their seed.
    pictures = {row: (out / f"{row:05d}").glob("*.png") for row in range(1, 9)}
    for row, paths in pictures.items():
        (path,) = paths
        assert f'"seed": {row}'.encode() in path.read_bytes()
    servers = [event for event in result.events if event["event"] == "server"]
    assert [event["url"] for event in servers] == [two.first.url, two.second.url]
    rows = {event["row"]: event["server"] for event in result.events if event["event"] == "row"}
    assert rows == {line["row"]: line["server"] for line in two.lines()}


def test_each_server_has_no_more_than_in_flight_rows(two: Two) -> None:
    lives = [simulator._server.life for simulator in (two.first, two.second)]
    most, over = [0, 0], threading.Event()

    def look() -> None:
        while not over.wait(0.01):
            for number, life in enumerate(lives):
                running, waiting = life.snapshot()
                most[number] = max(most[number], len(running) + len(waiting))

    looking = threading.Thread(target=look)
    looking.start()
    result = two(slow_prompt(steps=1, seconds=0.3), "--repeat", "6", "--in-flight", "1")
    over.set()
    looking.join()
    assert result.status == ExitStatus.OK
    assert most == [1, 1]


@pytest.mark.long
def test_a_server_that_is_killed_in_the_middle_leaves_its_rows_to_the_other(two: Two) -> None:
    """Every row is done once: by the manifest, and by what the servers ran."""

    def kill() -> None:
        done_there.update(values_on(two.second, "1", "seed"))
        two.second.crash()

    done_there: Dict[int, Any] = collections.Counter()
    has_begun = lambda: len(two.rows_of(two.second)) >= 2  # noqa: E731
    with meanwhile(has_begun, kill):
        result = two(slow_prompt(steps=2, seconds=0.3), "--each", "1.seed=1..16", "--retries", "2")
    assert result.status == ExitStatus.OK, result.event("batch")
    assert two.rows("done") == list(range(1, 17)) and len(two.lines()) == 16
    done_here = values_on(two.first, "1", "seed")
    assert sorted(done_here) == two.rows_of(two.first) and len(set(done_here)) == len(done_here)
    assert 2 <= len(two.rows_of(two.second)) < 14
    notices = [event["message"] for event in result.events if event["event"] == "notice"]
    assert sum(two.second.url in notice and "gets no rows until" in notice for notice in notices) == 1


@pytest.mark.long
def test_without_retries_the_rows_that_were_on_a_killed_server_fail_and_no_others(two: Two) -> None:
    with meanwhile(lambda: len(two.rows_of(two.second)) >= 1, two.second.crash):
        result = two(slow_prompt(steps=2, seconds=0.3), "--each", "1.seed=1..12")
    assert result.status == ExitStatus.FAILED
    failed = [line for line in two.lines() if line["status"] == "failed"]
    assert 1 <= len(failed) <= 2 and len(two.rows("done")) == 12 - len(failed)
    assert {line["exit_status"] for line in failed} == {ExitStatus.LOST}
    assert all(f"({two.second.url})" in line["message"] for line in failed)


@pytest.mark.long
def test_a_server_that_is_down_at_the_start_is_named_and_used_when_it_comes(two: Two) -> None:
    two.second.crash()
    with meanwhile(lambda: len(two.lines()) >= 2, two.second.revive):
        result = two(slow_prompt(steps=2, seconds=0.5), "--each", "1.seed=1..14")
    assert result.status == ExitStatus.OK
    assert two.rows("done") == list(range(1, 15)) and two.rows_of(two.second)
    notices = [event["message"] for event in result.events if event["event"] == "notice"]
    assert notices[0].startswith(f"{two.second.url} gets no rows until it answers: ")
    assert notices[1] == f"{two.second.url} answers, and gets rows."


def test_if_no_server_answers_all_are_named(two: Two) -> None:
    two.first.crash()
    two.second.crash()
    result = two(slow_prompt(), "--repeat", "2")
    assert result.status == ExitStatus.NO_SERVER
    assert two.first.url in result.err and two.second.url in result.err


@pytest.mark.long
def test_when_all_servers_are_killed_the_batch_ends_and_goes_on_later(two: Two) -> None:
    def kill() -> None:
        two.first.crash()
        two.second.crash()

    arguments = ["--each", "1.seed=1..12", "--retries", "3"]
    prompt = slow_prompt(steps=2, seconds=0.2)
    with meanwhile(lambda: len(two.lines()) >= 2, kill):
        result = two(prompt, *arguments, limits=FAST._replace(give_up=2.0))
    assert result.status == ExitStatus.NO_SERVER
    assert "No server is left" in result.event("batch")["message"]
    two.first.revive()
    two.second.revive()
    assert two(prompt, *arguments, "--resume").status == ExitStatus.OK
    assert two.rows("done") == list(range(1, 13))


def test_files_are_uploaded_to_each_server_that_needs_them(two: Two) -> None:
    """The workflow's own once to each server, a row's where the row runs."""
    cat, dog = two.folder / "cat.png", two.folder / "dog.png"
    cat.write_bytes(b"\x89PNG\r\n\x1a\n cat")
    dog.write_bytes(b"\x89PNG\r\n\x1a\n dog")
    rows = two.folder / "rows.jsonl"
    words = [{"3.text": str(number)} for number in range(7)]
    rows.write_text("\n".join(map(json.dumps, [*words, {"1.image": f"@{dog}"}])), encoding="utf-8")
    for simulator in (two.first, two.second):
        simulator.faults.http_hang = {"/prompt": 0.2}  # so that neither does all rows
    result = two(LOADER, "--batch", str(rows), "--image", str(cat))
    assert result.status == ExitStatus.OK, result.out
    for simulator in (two.first, two.second):
        names = values_on(simulator, "1", "image")
        uploads = simulator.requests.count(("POST", "/upload/image"))
        assert "cat.png" in names and uploads == 1 + names.count("dog.png")
    assert sum(values_on(each, "1", "image").count("dog.png") for each in (two.first, two.second)) == 1


def test_a_row_that_one_server_refuses_goes_to_the_other(two: Two) -> None:
    """It lacks a class or a model, perhaps; the row fails when all have refused it."""
    two.second.faults.echo = {"/prompt": (400, "json")}
    result = two(slow_prompt(steps=1, seconds=0.1), "--each", "1.seed=1..6")
    assert result.status == ExitStatus.OK
    assert two.rows_of(two.first) == list(range(1, 7)) and two.rows_of(two.second) == []

    two.first.faults.echo = {"/prompt": (400, "json")}
    two.manifest.unlink()
    result = two(slow_prompt(), "--each", "1.seed=1..3")
    assert result.status == ExitStatus.FAILED and two.rows("failed") == [1, 2, 3]
    assert {line["exit_status"] for line in two.lines()} == {ExitStatus.REJECTED}


def test_a_server_that_refuses_us_in_the_middle_is_used_no_more(two: Two) -> None:
    def refuse() -> None:
        two.second.faults.http_status = {"/prompt": 401}

    with meanwhile(lambda: len(two.lines()) >= 2, refuse):
        result = two(slow_prompt(steps=2, seconds=0.2), "--each", "1.seed=1..10")
    assert result.status == ExitStatus.OK and two.rows("done") == list(range(1, 11))
    notices = [event["message"] for event in result.events if event["event"] == "notice"]
    assert [two.second.url in notice and "gets no more rows" in notice for notice in notices] == [True]


def test_a_press_cancels_our_rows_on_all_servers(two: Two) -> None:
    if os.name == "nt":
        pytest.skip("Windows cannot send a signal to one process")

    def all_have_rows() -> bool:
        servers = (two.first, two.second)
        return all(each.requests.count(("POST", "/prompt")) == 2 and each.executions for each in servers)

    with pressed(all_have_rows, signal.SIGINT):
        result = two(slow_prompt(steps=50, seconds=20.0), "--each", "1.seed=1..8")
    assert result.status == ExitStatus.CANCELLED
    assert len(two.rows("cancelled")) == 4
    for simulator in (two.first, two.second):
        queue = requests.get(simulator.url + "/queue", timeout=5).json()
        assert queue == {"queue_running": [], "queue_pending": []}


def test_all_servers_are_asked_to_unload_their_models(two: Two) -> None:
    two(slow_prompt(steps=1, seconds=0.2), "--repeat", "4", "--in-flight", "1", "--free")
    wait_until(lambda: (two.first.unloads, two.second.unloads) == (1, 1), what="both to unload")
