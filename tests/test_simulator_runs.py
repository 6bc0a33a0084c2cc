"""What the simulator sends and keeps of a run, message by message, without a socket."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import pytest
from simulated import Json, Listener, accept, output_of, run_next, slow, until

from comfyui_runner.simulator.frames import make_big_preview, make_noise_frames, make_noise_messages
from comfyui_runner.simulator.life import MAXIMUM_HISTORY_SIZE, Life
from comfyui_runner.simulator.pictures import Image, draw
from comfyui_runner.simulator.prompts import Job
from comfyui_runner.simulator.running import Interrupted, Running

IMAGE = {"filename": "slow_00001_.png", "subfolder": "", "type": "output"}


def listen(life: Life, client_id: str = "me", **flags: Any) -> Listener:
    life.sockets[client_id] = listener = Listener(**flags)
    return listener


def take(life: Life) -> Job:
    """The next job, which a test runs by itself."""
    job = life.take()
    assert job is not None
    life.installation.executed_nodes.setdefault(job.prompt_id, [])
    return job


def without_times(messages: List[Any]) -> List[Any]:
    """The messages without their timestamps, which are milliseconds of now."""
    plain = []
    for event, data in messages:
        if event.startswith("execution_"):
            assert abs(data["timestamp"] - time.time() * 1000) < 60000
            data = {name: value for name, value in data.items() if name != "timestamp"}
        plain.append((event, data))
    return plain


def status(remaining: int) -> Tuple[str, Json]:
    return "status", {"status": {"exec_info": {"queue_remaining": remaining}}}


def about(node_id: str) -> Json:
    ids = dict.fromkeys(("node_id", "display_node_id", "real_node_id"), node_id)
    return {**ids, "prompt_id": "p", "parent_node_id": None}


def states(**nodes: Tuple[float, float, str]) -> Tuple[str, Json]:
    """A progress_state; `_1` is the node "1"."""
    described = {
        name[1:]: {"value": value, "max": total, "state": state, **about(name[1:])}
        for name, (value, total, state) in nodes.items()
    }
    return "progress_state", {"prompt_id": "p", "nodes": described}


def executing(node_id: Optional[str]) -> Tuple[str, Json]:
    data: Json = {"node": node_id, "prompt_id": "p"}
    if node_id is not None:
        data["display_node"] = node_id
    return "executing", data


def executed(node_id: str, output: Any) -> Tuple[str, Json]:
    data = {"node": node_id, "display_node": node_id, "output": output, "prompt_id": "p"}
    return "executed", data


def progress(value: int, total: int, node_id: str = "1") -> Tuple[str, Json]:
    return "progress", {"value": value, "max": total, "prompt_id": "p", "node": node_id}


BEGIN = [
    status(1),
    status(1),
    ("execution_start", {"prompt_id": "p"}),
    ("execution_cached", {"nodes": [], "prompt_id": "p"}),
]
FIRST_NODE = [
    states(_1=(0.0, 1.0, "running")),
    executing("1"),
    states(_1=(1, 2, "running")),
    progress(1, 2),
    states(_1=(2, 2, "running")),
    progress(2, 2),
    states(_1=(2, 2, "finished")),
]
SECOND_NODE = [
    states(_1=(2, 2, "finished"), _2=(0.0, 1.0, "running")),
    executing("2"),
    executed("2", {"images": [IMAGE]}),
    states(_1=(2, 2, "finished"), _2=(1.0, 1.0, "finished")),
]
END = [("execution_success", {"prompt_id": "p"}), status(0), executing(None)]


# ------------------------------------------------------------------------------------------------
# A run
# ------------------------------------------------------------------------------------------------


def test_a_run_sends_its_messages_in_the_order_of_a_real_server(begin: Callable[..., Life]) -> None:
    life = begin()
    mine, other = listen(life), listen(life, "other")
    job = accept(life, slow(steps=2), client_id="me")
    run_next(life)
    assert without_times(mine.take()) == [*BEGIN, *FIRST_NODE, *SECOND_NODE, *END]
    assert other.take() == [status(1), status(1), status(0)]

    entry = life.history["p"]
    messages = without_times(entry["status"].pop("messages"))
    assert messages == [BEGIN[2], BEGIN[3], END[0]]
    meta = {"node_id": "2", "display_node": "2", "parent_node": None, "real_node_id": "2"}
    assert entry == {
        "prompt": [0, "p", job.prompt, {"client_id": "me"}, ["2"]],
        "outputs": {"2": {"images": [IMAGE]}},
        "status": {"status_str": "success", "completed": True},
        "meta": {"2": meta},
    }
    assert life.installation.executions == {"p": 1}
    assert life.installation.executed_nodes == {"p": ["1", "2"]}


def test_a_run_of_no_client_sends_its_progress_to_everyone_and_nothing_else(begin: Callable[..., Life]) -> None:
    life = begin()
    listeners = [listen(life, "a"), listen(life, "b", supports_preview_metadata=True)]
    accept(life, slow(steps=2, preview=True))
    run_next(life)
    for listener in listeners:
        messages = listener.take()
        assert messages == [
            *(status(1), status(1)),
            *FIRST_NODE[:1],
            *FIRST_NODE[2:4],
            plain_preview(1, 2),
            *FIRST_NODE[4:6],
            plain_preview(2, 2),
            FIRST_NODE[6],
            *(SECOND_NODE[0], SECOND_NODE[3]),
            status(0),
        ]
    assert without_times(life.history["p"]["status"]["messages"]) == [BEGIN[2], BEGIN[3], END[0]]


def plain_preview(value: int, total: int) -> bytes:
    picture = draw(128, 128, 1 + value, ["SIMULATED", f"{value} OF {total}"])
    return b"\0\0\0\1\0\0\0\2" + picture


def test_the_same_prompt_again_only_reports_what_is_cached(begin: Callable[..., Life]) -> None:
    life = begin()
    mine = listen(life)
    for _ in range(2):
        mine.take()
        accept(life, slow(steps=2), client_id="me")
        run_next(life)
    assert without_times(mine.take()) == [
        *BEGIN[:3],
        ("execution_cached", {"nodes": ["1", "2"], "prompt_id": "p"}),
        executed("2", {"images": [IMAGE]}),
        states(_2=(1, 1, "finished")),
        *END,
    ]
    assert life.installation.executions == {"p": 2}
    assert life.installation.executed_nodes == {"p": ["1", "2"]}
    assert set(life.history["p"]["outputs"]) == {"2"}


def test_equal_nodes_of_a_prompt_run_once_and_both_report(begin: Callable[..., Life]) -> None:
    life = begin()
    mine = listen(life)
    prompt = {"1": output_of({"a": ["x"]})["1"], "2": output_of({"a": ["x"]})["1"]}
    prompt["3"] = {"class_type": "SaveImageWebsocket", "inputs": {"images": ["4", 0]}}
    prompt["4"] = {"class_type": "EmptyImage", "inputs": {}}
    prompt["4"]["inputs"] = {"width": 8, "height": 8, "batch_size": 1, "color": 0}
    accept(life, prompt, client_id="me")
    run_next(life)
    messages = [each for each in mine.take() if not isinstance(each, bytes)]
    outputs = [data for event, data in messages if event == "executed"]
    assert outputs == [executed("1", {"a": ["x"]})[1], executed("2", {"a": ["x"]})[1]]
    assert life.installation.executed_nodes["p"] == ["1", "4", "3"]
    assert life.history["p"]["outputs"] == {"1": {"a": ["x"]}, "2": {"a": ["x"]}}


def test_only_a_prompt_asks_for_the_previews_of_a_sampler(begin: Callable[..., Life]) -> None:
    for previews, method, expected in (
        (False, None, False),
        (False, "none", False),
        (False, "default", False),
        (False, "auto", True),
        (False, "latent2rgb", True),
        (True, None, True),
        (True, "default", True),
        (True, "no such method", True),
        (True, "none", False),
    ):
        life = begin(previews=previews)
        extra = {} if method is None else {"preview_method": method}
        job = Job(0, "p", slow(), extra, ["2"])
        assert Running(life, job).previews is expected, (previews, method)


def test_a_preview_with_metadata_comes_before_the_progress_of_its_step(begin: Callable[..., Life]) -> None:
    life = begin()
    mine = listen(life, supports_preview_metadata=True)
    accept(life, slow(steps=1, preview=True), client_id="me")
    run_next(life)
    messages = mine.take()
    at = messages.index(progress(1, 1))
    metadata = (
        '{"node_id": "1", "display_node_id": "1", "real_node_id": "1", "prompt_id": "p", '
        '"parent_node_id": null, "image_type": "image/png"}'
    ).encode()
    head = b"\0\0\0\4" + len(metadata).to_bytes(4, "big") + metadata
    assert messages[at - 2] == states(_1=(1, 1, "running"))
    assert messages[at - 1] == head + plain_preview(1, 1)[8:]
    assert not isinstance(messages[at + 1], bytes)


# ------------------------------------------------------------------------------------------------
# Runs that end badly
# ------------------------------------------------------------------------------------------------


def failing() -> Json:
    prompt = slow(steps=1)
    prompt["3"] = {"class_type": "FailNode", "inputs": {"message": "boom", "image": ["1", 0]}}
    prompt["2"]["inputs"]["images"] = ["3", 0]
    return prompt


def test_an_error_says_where_and_why_the_run_ended(begin: Callable[..., Life]) -> None:
    life = begin()
    mine = listen(life)
    accept(life, failing(), client_id="me")
    run_next(life)
    *_, error, last_status, end = without_times(mine.take())
    assert (last_status, end) == (status(0), executing(None))
    functions = [line.split(", in ")[1].split("\n")[0] for line in error[1].pop("traceback")]
    assert functions == ["run", "execute", "raise_error"]
    assert error == (
        "execution_error",
        {
            "prompt_id": "p",
            "node_id": "3",
            "node_type": "FailNode",
            "executed": ["1"],
            "exception_message": "boom\n",
            "exception_type": "ValueError",
            "current_inputs": {"message": ["boom"], "image": [f"SIMULATED {Image(64, 64, 1)!r}"]},
            "current_outputs": ["1", "2", "3"],
        },
    )
    entry = life.history["p"]
    assert (entry["status"]["status_str"], entry["status"]["completed"]) == ("error", False)
    assert [event for event, _ in entry["status"]["messages"]] == [
        "execution_start",
        "execution_cached",
        "execution_error",
    ]
    assert (entry["outputs"], entry["meta"]) == ({}, {})


def test_an_interrupt_ends_the_run_at_the_next_node(begin: Callable[..., Life]) -> None:
    life = begin()
    mine, other = listen(life), listen(life, "other")
    interrupted = (
        "execution_interrupted",
        {"prompt_id": "p", "node_id": "1", "node_type": "SlowProgress", "executed": []},
    )
    for client, is_heard in (({"client_id": "me"}, False), ({}, True)):
        accept(life, slow(), **client)
        job = take(life)
        life.interrupt()
        mine.take()
        other.take()
        entry = Running(life, job).run()
        heard = without_times(mine.take())
        assert heard[-1] == interrupted
        assert (interrupted in without_times(other.take())) is is_heard
        assert (executing("1") in heard) is not is_heard
        assert entry["status"]["status_str"] == "error"
        assert entry["status"]["completed"] is False
        assert without_times(entry["status"]["messages"])[-1] == interrupted


def test_a_server_that_ends_leaves_no_end_of_a_run(begin: Callable[..., Life]) -> None:
    life = begin()
    mine = listen(life)
    accept(life, slow(), client_id="me")
    job = take(life)
    life.dead.set()
    with pytest.raises(Interrupted):
        Running(life, job).check()
    accept(life, slow(seed=2))
    assert life.take() is None
    assert mine.take()[-1] == status(2)


@pytest.mark.parametrize(("version", "shown"), [("0.33.0", set()), ("0.3.64", {"2"})])
def test_an_older_server_shows_the_outputs_of_cached_nodes(
    begin: Callable[..., Life], version: str, shown: Any
) -> None:
    life = begin(version=version)
    accept(life, slow())
    run_next(life)
    prompt = {**slow(), "5": output_of({"text": ["x"]})["1"]}
    job = accept(life, prompt)
    take(life)
    job.outputs[:] = ["5"]  # as with partial_execution_targets
    entry = Running(life, job).run()
    assert set(entry["outputs"]) == {"5", *shown}
    assert set(entry["meta"]) == {"5", *shown}


# ------------------------------------------------------------------------------------------------
# Faults of a run
# ------------------------------------------------------------------------------------------------


def messages_of(life: Life, **inputs: Any) -> List[Any]:
    """What a run of two steps sends to its client."""
    mine = listen(life)
    life.cache.clear()
    accept(life, slow(steps=2, **inputs), client_id="me")
    run_next(life)
    return mine.take()


def types_of(messages: List[Any]) -> List[str]:
    return ["binary" if isinstance(each, bytes) else each[0] for each in messages]


ALL_TYPES = [
    *("status", "execution_start", "execution_cached", "progress_state", "executing", "progress", "executed"),
    "execution_success",
]


@pytest.mark.parametrize("dropped", ALL_TYPES)
def test_a_dropped_type_of_message_is_the_only_one_that_is_missing(begin: Callable[..., Life], dropped: str) -> None:
    life = begin()
    whole = types_of(messages_of(life))
    assert set(whole) == set(ALL_TYPES)
    life.installation.faults.drop_events = frozenset({dropped})
    expected = [each for each in whole if each != dropped]
    assert types_of(messages_of(life)) == expected


def test_a_dropped_end_is_one_message(begin: Callable[..., Life]) -> None:
    life = begin()
    life.installation.faults.drop_end = True
    messages = messages_of(life)
    assert without_times(messages) == [*BEGIN, *FIRST_NODE, *SECOND_NODE, *END[:-1]]


def test_noise_comes_at_the_begin_and_at_the_end_of_a_run(begin: Callable[..., Life]) -> None:
    life = begin()
    life.installation.faults.noise = True
    life.installation.faults.drop_events = frozenset({"progress"})
    mine = listen(life)
    accept(life, slow(steps=2), client_id="me")
    run_next(life)
    frames = list(make_noise_frames())
    at = [number for number, frame in enumerate(mine.frames) if frame == frames[0]]
    assert len(at) == 2
    for begun in at:
        assert mine.frames[begun : begun + len(frames)] == frames
    kinds = [frame.split('"')[3] for frame in mine.frames if '"data": {' in str(frame)]
    noise = [event for event, _ in make_noise_messages() if event != "progress"]
    first = kinds.index("execution_cached") + 1
    assert kinds[first : first + len(noise)] == noise
    last = kinds.index("execution_success")
    assert kinds[last - len(noise) : last] == noise


def test_big_frames_come_once_a_run_and_only_if_asked_for(begin: Callable[..., Life]) -> None:
    life = begin()
    assert "binary" not in types_of(messages_of(life))
    life.installation.faults.big_frame = 10
    messages = messages_of(life)
    at = types_of(messages).index("binary")
    assert messages[at - 1] == ("simulated_big_event", {"padding": "x" * 10})
    assert messages[at] == make_big_preview(10)
    assert types_of(messages)[at - 2] == "execution_cached"
    assert types_of(messages).count("binary") == 1


class Sleepless(Running):
    """A run that notes how long it would wait."""

    def __init__(self, life: Life, job: Job) -> None:
        super().__init__(life, job)
        self.slept: List[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


def test_a_run_stalls_once_at_its_first_step(begin: Callable[..., Life]) -> None:
    life = begin()
    life.installation.faults.stall = 3.0
    for _ in range(2):
        life.cache.clear()
        accept(life, slow(steps=3))
        job = take(life)
        running = Sleepless(life, job)
        running.run()
        assert running.slept == [3.0]


def test_a_run_waits_unless_there_is_nothing_to_wait_for(begin: Callable[..., Life]) -> None:
    life = begin()
    running = Running(life, Job(0, "p", slow(), {}, ["2"]))
    begun = time.monotonic()
    running.sleep(0.05)
    assert time.monotonic() - begun >= 0.04
    running.sleep(0)
    running.sleep(-1)
    life.dead.set()
    running.sleep(3600)


def test_a_history_that_is_late_or_evicted(begin: Callable[..., Life]) -> None:
    life = begin()
    for delay, is_evicted in ((0.0, True), (0.01, True), (3600.0, False)):
        life.installation.faults.history_delay = delay
        life.installation.faults.history_evict = is_evicted
        accept(life, slow())
        run_next(life)
        assert life.running is None
        assert life.history == {}
        time.sleep(0.03 if is_evicted else 0)
        assert life.history == {}
    assert len(life.threads) == 1
    life.installation.faults.history_delay = 0.01
    accept(life, slow())
    run_next(life)
    entry = until(lambda: life.history.get("p"))
    assert entry["status"]["completed"] is True


# ------------------------------------------------------------------------------------------------
# The memory of a server
# ------------------------------------------------------------------------------------------------


def test_what_a_client_that_connects_again_is_sent_first(begin: Callable[..., Life]) -> None:
    life = begin()
    for client, expected in (({"client_id": "me"}, "2"), ({}, None)):
        accept(life, slow(), **client)
        job = take(life)
        assert life.last_node is None
        assert life.client == client.get("client_id")
        entry = Running(life, job).run()
        assert life.last_node == expected
        life.finish(job, entry)
        assert life.last_node is None
        life.cache.clear()


def test_the_cache_is_forgotten_once_after_the_run_that_was_asked(begin: Callable[..., Life]) -> None:
    life = begin()
    life.should_forget = True
    for expected in (["1", "2"], ["1", "2", "1", "2"], ["1", "2", "1", "2"]):
        accept(life, slow())
        run_next(life)
        assert life.should_forget is False
        assert life.installation.executed_nodes["p"] == expected


def job_of(prompt_id: str, number: float = 0.0) -> Job:
    return Job(number, prompt_id, {}, {}, [])


def test_the_lowest_number_is_taken_first_then_the_lowest_id(begin: Callable[..., Life]) -> None:
    life = begin()
    assert [life.take_number(is_first=False) for _ in range(3)] == [0, 1, 2]
    assert [life.take_number(is_first=True) for _ in range(2)] == [-3, -4]
    assert life.take_number(is_first=False) == 5
    for prompt_id, number in (("b", 1.0), ("a", 1.0), ("c", -4), ("d", 0.5)):
        life.put(job_of(prompt_id, number))
    taken = []
    for _ in range(4):
        life.interrupted = True
        job = take(life)
        taken.append(job.prompt_id)
        assert life.running is job
        assert life.interrupted is False
    assert taken == ["c", "d", "a", "b"]


def test_jobs_of_one_number_and_id_are_taken_as_they_came(begin: Callable[..., Life]) -> None:
    life = begin()
    jobs = [Job(0, "p", {"1": {}}, {"at": at}, []) for at in range(3)]
    for job in jobs:
        life.put(job)
    assert life.accepted == 3
    assert [life.take() for _ in jobs] == jobs


def test_everyone_hears_of_each_change_of_the_queue(begin: Callable[..., Life]) -> None:
    life = begin()
    listeners = [listen(life, "a"), listen(life, "b")]

    def heard() -> List[Any]:
        (first, second) = [listener.take() for listener in listeners]
        assert first == second
        return [data["status"]["exec_info"]["queue_remaining"] for _, data in first]

    for prompt_id in "abc":
        life.put(job_of(prompt_id))
    assert heard() == [1, 2, 3]
    job = take(life)
    assert heard() == [3]
    assert not life.delete("a")  # it runs
    assert not life.delete("unknown")
    assert heard() == []
    assert life.delete("b")
    assert heard() == [2]
    assert life.delete("c")
    assert heard() == [1, 1]
    life.finish(job, {})
    assert heard() == [0]
    life.put(job_of("d"))
    life.put(job_of("d"))
    assert life.delete("d")  # one of the two
    assert heard() == [1, 2, 1]
    assert life.snapshot()[1] == [job_of("d")]
    life.clear()
    assert heard() == [0]
    assert life.snapshot() == ([], [])


def test_deleting_keeps_the_order_of_the_queue(begin: Callable[..., Life]) -> None:
    life = begin()
    for number in (1, 2, 9, 3, 4, 10, 11, 5, 6):
        life.put(job_of(str(number), number))
    assert life.delete("1")
    assert life.delete("9")
    taken = [life.take() for _ in range(7)]
    assert [job.number for job in taken if job] == [2, 3, 4, 5, 6, 10, 11]


def test_an_interrupt_of_one_prompt_spares_the_others(begin: Callable[..., Life]) -> None:
    life = begin()
    assert life.interrupt("a") is False
    assert life.take_interrupt() is False
    assert life.interrupt() is True
    assert life.take_interrupt() is True
    life.put(job_of("a"))
    life.put(job_of("b"))
    life.take()
    assert life.interrupt("b") is False
    assert life.take_interrupt() is False
    for prompt_id in ("a", None, ""):
        assert life.interrupt(prompt_id) is True
        assert (life.take_interrupt(), life.take_interrupt()) == (True, False)
    life.installation.faults.ignore_interrupt = True
    assert life.interrupt("a") is True
    assert life.take_interrupt() is False


def test_a_message_goes_to_its_client_or_to_all(begin: Callable[..., Life]) -> None:
    life = begin()
    first, second = listen(life, "a"), listen(life, "b")
    life.send("x", {"n": 1}, "a")
    life.send("x", {"n": 2}, "gone")
    life.emit(b"all", None)
    assert first.frames == ['{"type": "x", "data": {"n": 1}}', b"all"]
    assert second.frames == [b"all"]


def test_who_takes_previews_with_metadata(begin: Callable[..., Life]) -> None:
    life = begin()
    listen(life, "yes", supports_preview_metadata=True)
    listen(life, "no", supports_preview_metadata=False)
    listen(life, "odd", supports_preview_metadata=1)
    listen(life, "plain")
    takes = {name: life.takes_metadata(name) for name in ("yes", "no", "odd", "plain", "gone", None)}
    assert takes == {"yes": True, "no": False, "odd": False, "plain": False, "gone": False, None: False}


def test_the_history_makes_room_for_the_newest(begin: Callable[..., Life]) -> None:
    life = begin()
    assert MAXIMUM_HISTORY_SIZE == 10000
    for number in range(MAXIMUM_HISTORY_SIZE + 1):  # as execution.py does: one more than it says
        life.remember(str(number), {})
    assert next(iter(life.history)) == "0"
    life.remember("new", {})
    assert (next(iter(life.history)), len(life.history)) == ("1", MAXIMUM_HISTORY_SIZE + 1)


def test_the_end_cuts_the_sockets_and_stops_the_threads(begin: Callable[..., Life]) -> None:
    life = begin()
    mine = listen(life)
    taken: List[Any] = []
    called: List[str] = []
    life.spawn(lambda: taken.append(life.take()))
    life.spawn(lambda: taken.append(life.dead.wait()))
    life.call_later(3600, called.append, "never")
    life.call_later(0, called.append, "at once")
    until(lambda: called == ["at once"])
    until(lambda: len(life.threads) == 3)
    begun = time.monotonic()
    life.join(0.05)
    assert 0.04 <= time.monotonic() - begun < 2
    assert len(life.threads) == 3
    assert {thread.name for thread in life.threads} == {"comfyui-simulator"}
    assert all(thread.daemon for thread in life.threads)

    life.end()
    assert mine.is_cut
    assert life.sockets == {}
    life.join(5)
    assert (sorted(map(str, taken)), life.threads, called) == (["None", "True"], set(), ["at once"])


def test_a_thread_does_not_wait_for_itself(begin: Callable[..., Life]) -> None:
    life = begin()
    ended = threading.Event()

    def end() -> None:
        life.join(60)
        ended.set()

    life.spawn(end)
    assert ended.wait(5)


def test_a_thread_that_fails_is_not_waited_for(begin: Callable[..., Life]) -> None:
    life = begin()

    def fail() -> None:
        raise ValueError

    before = threading.excepthook
    threading.excepthook = lambda args: None
    try:
        life.spawn(fail)
        until(lambda: not life.threads)
    finally:
        threading.excepthook = before


def test_the_files_of_a_run_are_where_its_history_says(begin: Callable[..., Life]) -> None:
    life = begin()
    accept(life, slow(steps=1, seed=7))
    run_next(life)
    image: Dict[str, str] = life.history["p"]["outputs"]["2"]["images"][0]
    path = Path(life.installation.folder(image["type"], image["subfolder"]), image["filename"])
    assert path.read_bytes().startswith(b"\x89PNG")
