"""Many prompts through connections that break at random points: each ends as it really ended.

Everything about a run comes from its seed: the prompt, the server's version and every fault. The
seed is in the message of a failure; COMFYUI_FAULTS_SEED=that runs this one alone, and
COMFYUI_FAULTS_BASE=N another set of runs. COMFYUI_FAULTS_RUNS=N runs more or fewer.
"""

from __future__ import annotations

import asyncio
import gc
import io
import json
import os
import queue
import random
import sys
import threading
import time
import traceback
import uuid
from typing import Any, Counter, Dict, List, Mapping, NamedTuple, Set, Tuple

import pytest
import requests
from fault_proxy import HTTP_FAULTS, WEBSOCKET_FAULTS, FaultProxy, total
from support import call, node, wait_until

from comfyui_runner.errors import ExitStatus
from comfyui_runner.limits import Limits
from comfyui_runner.simulator import Simulator

pytestmark = pytest.mark.long

#: Short waits. An answer takes milliseconds here, so what is later than ``read`` is a fault; no
#: fault, nor two in a row with the waits between them, comes near ``give_up``.
LIMITS = Limits(
    connect=2.0, read=0.8, post=0.8, websocket=0.8, settle=1.0, absent=0.4, silence=1.5, poll=0.3,
    give_up=30.0, cancel=4.0,
)  # fmt: skip

#: Longer than any wait for an answer in LIMITS.
HOLD = 1.1

#: No run may take longer, in seconds.
DEADLINE = 60.0

VERSIONS = ("0.33.0", "0.3.64")


class Story(NamedTuple):
    """A prompt and how it must end."""

    prompt: Dict[str, Any]
    status: int
    files: int = 0  # outputs with a file
    texts: int = 0
    accepted: bool = True
    warm: bool = False  # it ran before, so everything is in the cache


def _picture(rng: random.Random) -> Dict[str, Any]:
    return node(
        "SlowProgress",
        "Slow",
        steps=rng.randint(1, 12),
        seconds=rng.choice((0.0, 0.1, 0.4, 0.9)),
        seed=rng.randrange(1 << 48),
        preview=rng.random() < 0.5,
    )


def _save(source: str, prefix: str) -> Dict[str, Any]:
    return node("SaveImage", "Save %s" % prefix, images=[source, 0], filename_prefix=prefix)


def success(rng: random.Random) -> Story:
    """One picture."""
    return Story({"1": _picture(rng), "2": _save("1", "plain")}, ExitStatus.OK, 1)


def cached(rng: random.Random) -> Story:
    """A prompt that has just run: nothing is rendered anew."""
    return success(rng)._replace(warm=True)


def several_outputs(rng: random.Random) -> Story:
    """Pictures in a subfolder, in temp/, several of one node; and a text."""
    prompt = {
        "1": _picture(rng),
        "2": _save("1", "many/first"),
        "3": node("PreviewImage", "Preview", images=["1", 0]),
        "4": node("EmptyImage", "Empty", width=64, height=32, batch_size=3, color=rng.randrange(1 << 24)),
        "5": _save("4", "batch"),
        "6": node("TextOut", "Words", text="words %d" % rng.randrange(1 << 30)),
    }
    return Story(prompt, ExitStatus.OK, 5, 1)


def node_error(rng: random.Random) -> Story:
    """A node raises in the middle of the run."""
    prompt = {
        "1": _picture(rng),
        "2": node("FailNode", "Bad", message="boom %d" % rng.randrange(1 << 30), image=["1", 0]),
        "3": _save("2", "never"),
    }
    return Story(prompt, ExitStatus.FAILED)


def partly_invalid(rng: random.Random) -> Story:
    """One output is refused, the other one runs."""
    prompt = {"1": _picture(rng), "2": _save("1", "kept"), "3": node("SaveImage", "Refused", filename_prefix="no")}
    return Story(prompt, ExitStatus.PARTIAL, 1)


def rejected(rng: random.Random) -> Story:
    """Nothing of it can run."""
    prompts: List[Dict[str, Any]] = [
        {"1": _picture(rng), "2": node("SaveImage", "Save", filename_prefix="no")},
        {"1": _picture(rng), "2": node("NoSuchNode", "What"), "3": _save("1", "no")},
        {"1": node("SlowProgress", "Slow", steps=-1, seconds=0.1, seed=1, preview=False), "2": _save("1", "no")},
        {"1": _picture(rng)},
    ]
    return Story(rng.choice(prompts), ExitStatus.REJECTED, accepted=False)


STORIES = (success, success, cached, several_outputs, several_outputs, node_error, partly_invalid, rejected)


class Result(NamedTuple):
    """What one run showed."""

    story: str
    counts: Counter[str]


def _post(url: str, prompt: Mapping[str, Any], client_id: str) -> str:
    body = {"prompt": prompt, "prompt_id": str(uuid.uuid4()), "client_id": client_id}
    answer = requests.post(url + "/prompt", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["prompt_id"])


def _history(url: str) -> Dict[str, Any]:
    entries: Dict[str, Any] = requests.get(url + "/history", timeout=30).json()
    return entries


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _files_below(folder: str) -> Set[str]:
    return {os.path.join(where, name) for where, _, names in os.walk(folder) for name in names}


def one_run(seed: int, folder: str) -> Result:
    """One prompt against a server of its own behind a proxy of its own; all is asserted here."""
    rng = random.Random(seed)
    make = rng.choice(STORIES)
    story = make(rng)
    save = rng.random() < 0.6
    others = [] if rng.random() < 0.7 else [{"1": _picture(rng), "2": _save("1", "other")}]
    workflow = os.path.join(folder, "workflow_api.json")
    with open(workflow, "w", encoding="utf-8") as file:
        json.dump(story.prompt, file)
    saved_to = os.path.join(folder, "out")
    with Simulator(version=rng.choice(VERSIONS)) as simulator:
        before = []
        if story.warm:
            before = [_post(simulator.url, story.prompt, "warm")]
        else:
            before = [_post(simulator.url, prompt, "other") for prompt in others]
        if story.warm:
            wait_until(lambda: set(before) <= set(_history(simulator.url)), 20.0, "the first run")
        with FaultProxy(
            simulator.url,
            random.Random(rng.random()),
            probability=rng.choice((0.0, 0.15, 0.3, 0.5)),
            ws_probability=rng.choice((0.0, 0.5, 0.9)),
            hold=HOLD,
        ) as proxy:
            out, err = io.StringIO(), io.StringIO()
            arguments = ["--server", proxy.url, "--yes", "--json", workflow] + (["-o", saved_to] if save else [])
            status = call(arguments, io.StringIO(), out, err, {}, LIMITS)
        wait_until(lambda: set(before) <= set(_history(simulator.url)), 20.0, "the others' prompts")
        text = "status %s\n%s\n%s\n%s" % (status, proxy.counts, out.getvalue(), err.getvalue())
        try:
            _check(simulator, story, before, status, out.getvalue(), saved_to if save else None)
        except AssertionError as error:
            raise AssertionError("%s (status %d)\n%s" % (" ".join(str(error).split()), status, text)) from None
    return Result(make.__name__, proxy.counts)


def _check(simulator: Simulator, story: Story, before: List[str], status: int, out: str, saved_to: Any) -> None:
    """The program's word against the server's own record."""
    history = _history(simulator.url)
    ours = [prompt_id for prompt_id in simulator.executions if prompt_id not in before]
    assert len(ours) == story.accepted, "accepted and executed: %s" % ours
    assert all(count == 1 for count in simulator.executions.values()), simulator.executions
    waiting = requests.get(simulator.url + "/queue", timeout=30).json()
    assert waiting == {"queue_running": [], "queue_pending": []}
    for prompt_id in before:
        assert history[prompt_id]["status"]["status_str"] == "success"
    statuses = {story.status}
    if story.status is ExitStatus.PARTIAL:
        statuses.add(ExitStatus.OK)  # only the answer to the POST says what was refused, and it may be lost
    assert status in statuses
    events = [json.loads(line) for line in out.splitlines()]
    names = [event["event"] for event in events]
    if not story.accepted:
        assert names[-1] == "error" and "end" not in names and events[-1]["exit_status"] == status
        return
    end = events[-1]
    assert end["event"] == "end" and end["exit_status"] == status and names.count("end") == 1
    assert end["prompt_id"] == ours[0]
    assert end["wholly_cached"] == story.warm
    entry = history[ours[0]]
    assert entry["status"]["status_str"] == ("error" if status == ExitStatus.FAILED else "success")
    assert ("failure" in names) == (status == ExitStatus.FAILED)
    assert entry["prompt"][2] == story.prompt
    made = [item for ui in entry["outputs"].values() for items in ui.values() for item in items]
    files = {(item["type"], item["subfolder"], item["filename"]) for item in made if isinstance(item, dict)}
    texts = {item for item in made if isinstance(item, str)}
    if status != ExitStatus.FAILED:
        assert (len(files), len(texts)) == (story.files, story.texts)
    reported = [event for event in events if event["event"] == "output"]
    reported_files = [
        (event["type"], event["subfolder"], event["filename"]) for event in reported if event["text"] is None
    ]
    assert sorted(reported_files) == sorted(files)
    assert sorted(event["text"] for event in reported if event["text"] is not None) == sorted(texts)
    assert names.count("not_saved") == 0
    if saved_to is None:
        assert "saved" not in names
        return
    paths = [event["path"] for event in events if event["event"] == "saved"]
    assert len(paths) == len(set(paths)) == len(made)
    assert _files_below(saved_to) == set(map(os.path.abspath, paths)), "left over, or not there"
    originals = [_read(os.path.join(simulator.folder(kind), below, name)) for kind, below, name in files]
    assert sorted(map(_read, paths)) == sorted(originals + [text.encode() for text in texts])


def _stacks() -> str:
    """Where the threads are and the tasks of their loops, and what ended tasks ended with."""
    text = io.StringIO()
    for number, frame in sys._current_frames().items():
        text.write("\nThread %d\n%s" % (number, "".join(traceback.format_stack(frame))))
    for task in [thing for thing in gc.get_objects() if issubclass(type(thing), asyncio.Task)]:
        task.print_stack(file=text)
        if task.done():
            text.write("%r\n" % task)
    return text.getvalue()


class Crew:
    """Runs seeds in several threads and keeps an eye on how long each takes."""

    def __init__(self, seeds: List[int], folder: Any, size: int) -> None:
        self.results: Dict[int, Result] = {}
        self.failures: List[Tuple[int, str, str]] = []
        self._folder = folder
        self._seeds: queue.Queue[int] = queue.Queue()
        for seed in seeds:
            self._seeds.put(seed)
        self._busy: Dict[int, float] = {}
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(size)]

    def _work(self) -> None:
        while True:
            try:
                seed = self._seeds.get_nowait()
            except queue.Empty:
                return
            self._busy[seed] = time.monotonic()
            try:
                folder = self._folder / str(seed)
                folder.mkdir()
                self.results[seed] = one_run(seed, str(folder))
            except BaseException as error:  # raised in the test's own thread
                self.failures.append((seed, str(error), traceback.format_exc()))
            finally:
                self._busy.pop(seed)

    def run(self) -> None:
        """Runs all; fails at once when one takes longer than DEADLINE."""
        for thread in self._threads:
            thread.start()
        for thread in self._threads:
            while thread.is_alive():
                thread.join(0.2)
                now = time.monotonic()
                hanging = [seed for seed, began in list(self._busy.items()) if now - began > DEADLINE]
                if hanging:
                    pytest.fail("These seeds hang: %s\n%s" % (hanging, _stacks()), pytrace=False)


def test_every_run_through_broken_connections_ends_as_it_really_ended(tmp_path: Any) -> None:
    """Requests and WebSockets are cut, frozen, delayed and truncated at random: each prompt is
    executed once, ends with its right status, and its outputs are reported and saved byte by byte."""
    alone = os.environ.get("COMFYUI_FAULTS_SEED")
    base = int(os.environ.get("COMFYUI_FAULTS_BASE", "1"))
    count = int(os.environ.get("COMFYUI_FAULTS_RUNS", "300"))
    seeds = [int(alone)] if alone else [base * 100000 + number for number in range(count)]
    crew = Crew(seeds, tmp_path, size=8)
    crew.run()
    if crew.failures:
        lines = ["COMFYUI_FAULTS_SEED=%d: %s" % (seed, said.partition("\n")[0]) for seed, said, _ in crew.failures]
        heading = "%d of %d runs failed, each can be run alone:" % (len(lines), len(seeds))
        pytest.fail("\n".join([heading, *lines, "", "The first one:", crew.failures[0][2]]), pytrace=False)
    assert set(crew.results) == set(seeds)
    if not alone:
        done = total([result.counts for result in crew.results.values()])
        assert {result.story for result in crew.results.values()} == {story.__name__ for story in STORIES}
        assert all(done[kind] for kind in HTTP_FAULTS + WEBSOCKET_FAULTS), done
        print(sorted(done.items()))
