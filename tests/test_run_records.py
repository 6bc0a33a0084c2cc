"""The runs of the service as clients see them, without a socket."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import threading
import time
import tracemalloc
from typing import Any, Dict, Iterator, List, Optional, Sequence

import pytest
from support import node

from comfyui_runner.addresses import parse_address
from comfyui_runner.events import Preview
from comfyui_runner.outputs import Output
from comfyui_runner.problems import Problem
from comfyui_runner.redaction import Secrets
from comfyui_runner.run_records import EndedRecord, RunRecord, RunRecords, positive_text, read_ended
from comfyui_runner.runs import Run
from comfyui_runner.server import Server
from comfyui_runner.session import Session
from comfyui_runner.state import NodeProgress, Phase
from comfyui_runner.state_keeper import StateKeeper
from comfyui_runner.stored_state import StoredRun, pack_text

PROMPT: Dict[str, Any] = {"1": node("KSampler", "Sampler", seed=42), "2": node("SaveImage", "Save")}


@pytest.fixture
def session() -> Iterator[Session]:
    """A session that is not open."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield Session(Server(parse_address("http://127.0.0.1:8188")), lambda run, report: None)
    asyncio.set_event_loop(None)
    loop.close()


def make_record(session: Session, prompt_id: str, phase: Phase = Phase.QUEUED, over: bool = False) -> RunRecord:
    run = Run(PROMPT, prompt_id, time.monotonic(), asyncio.Event())
    run.state = run.state._replace(phase=phase)
    record = RunRecord(run, session)
    if over:
        record.end("Done.")
    return record


def make_records(kept: int = 200) -> RunRecords:
    """Records that are in memory only."""
    return RunRecords(threading.RLock(), StateKeeper(None, kept, Secrets([]), print))


class Keeper(StateKeeper):
    """A keeper that holds what it is given, in place of a file."""

    def __init__(self, kept: int, *runs: StoredRun) -> None:
        super().__init__(None, kept, Secrets([]), print)
        self.path = "x.runs.sqlite3"
        self.runs = {run.prompt_id: run for run in runs}

    def get(self, prompt_id: str) -> Optional[StoredRun]:
        return self.runs.get(prompt_id)

    def page(self, limit: int, before: Optional[int]) -> List[StoredRun]:
        runs = [run for run in self.runs.values() if before is None or run.number < before]
        return sorted(runs, key=lambda run: -run.number)[:limit]

    def prompt_of(self, prompt_id: str) -> bytes:
        return self.runs[prompt_id].prompt

    def remove(self, prompt_id: str) -> None:
        del self.runs[prompt_id]


def stored_after_end(session: Session, prompt_id: str, number: int, **more: Any) -> StoredRun:
    """A run that has ended, as it is stored."""
    record = make_record(session, prompt_id, Phase.SUCCESS)
    record.number = number
    record.conclude(*more.pop("made", ([], {})))
    record.message = "Done."
    return record.as_stored()._replace(**more)


def ids_of(runs: Sequence[Any]) -> List[str]:
    return [run.prompt_id for run in runs]


def test_a_run_is_shown_with_its_nodes_and_outputs(session: Session) -> None:
    record = make_record(session, "a", Phase.RUNNING)
    files = {"images": [{"filename": "b.png", "subfolder": "", "type": "output"}], "text": ["hello"]}
    record.run.state = record.run.state._replace(
        running={"1": NodeProgress(time.monotonic(), value=3.0, max=20.0)},
        finished={"2": 1.23456},
        outputs={"2": files},
    )
    shown = record.to_json()
    assert shown["phase"] == "running" and shown["over"] is False
    assert shown["seeds"] == {"1.seed": 42}
    assert shown["running"] == [
        {"node_id": "1", "title": "Sampler", "class_type": "KSampler", "value": 3.0, "max": 20.0}
    ]
    assert shown["nodes"] == [{"node_id": "2", "title": "Save", "class_type": "SaveImage", "seconds": 1.235}]
    picture, text = shown["outputs"]
    assert (picture["filename"], picture["url"]) == ("b.png", "view?filename=b.png&subfolder=&type=output")
    assert (text["text"], text["url"]) == ("hello", None)
    assert "absolute_url" not in picture


def test_a_file_has_an_absolute_address_where_that_of_the_service_is_known(session: Session) -> None:
    record = make_record(session, "a")
    files = {"images": [{"filename": "b.png"}], "text": ["hello"]}
    record.run.state = record.run.state._replace(outputs={"2": files})
    picture, text = record.to_json("https://gpu.example/runner")["outputs"]
    assert picture["absolute_url"] == "https://gpu.example/runner/" + picture["url"]
    assert text["absolute_url"] is None


def test_what_no_server_keeps_is_fetched_from_the_service(session: Session) -> None:
    """Once the run has ended: while it runs, it is not clear what a preview is. Contents are not held."""
    record = make_record(session, "a/b", Phase.RUNNING)
    shown = {"text": ["hello", "data:image/png;base64,iVBORw0KGgo="], "images": [{"filename": "b.png"}]}
    record.run.state = record.run.state._replace(outputs={"2": shown})
    assert [output["url"] for output in record.to_json()["outputs"]] == [
        None, "view?filename=b.png&subfolder=&type=output",
    ]  # fmt: skip
    picture = Output("2", "Save", "image", "c.png", type="", source="websocket", size=1, content=b"c")
    record.conclude([*record.run.outputs(), picture], {1: "7", 3: "8"})
    assert record.run.state.outputs == {}
    assert [(output["source"], output["size"], output["url"]) for output in record.to_json()["outputs"]] == [
        ("file", None, None),
        ("base64", 8, "runs/a/b/files/1"),
        ("file", None, "view?filename=b.png&subfolder=&type=output"),
        ("websocket", 1, "runs/a/b/files/3"),
    ]
    file = record.spooled_file(3)
    assert file is not None and (file[0].filename, file[0].content, file[1]) == ("c.png", None, "8")
    assert [record.spooled_file(turn) for turn in (0, 2, 9)] == [None] * 3


def test_a_run_that_is_over_is_shown_as_it_was_at_its_end(session: Session) -> None:
    record = make_record(session, "a", Phase.RUNNING)
    record.run.problems = [Problem("odd", "It is odd.", "1", hints=("Look at it.",))]
    record.failure = {"event": "failure", "traceback": ["line 1"]}
    record.run.state = record.run.state._replace(
        phase=Phase.ERROR,
        finished={"1": 1.23456, "2": float("nan")},
        outputs={"2": {"images": [{"filename": "b.png"}], "text": ["hello"]}},
        started_at=1.0,
        ended_at=3.5,
    )
    before = record.to_json()
    record.end("The run failed.")
    expected = {**before, "over": True, "message": "The run failed."}
    expected["nodes"][1]["seconds"] = None  # JSON has no NaN
    assert record.to_json() == expected
    assert list(record.to_json()) == list(before)
    assert record.to_json() is not record.to_json()


def test_runs_that_are_over_keep_no_prompts_and_no_pictures(session: Session) -> None:
    """200 of them with prompts of 5 MB took 401 MB."""

    def end_large_run(number: int) -> RunRecord:
        record = make_record(session, str(number), Phase.SUCCESS)
        run = record.run
        run.prompt = {**PROMPT, "3": node("Text", text="x" * 1_000_000, number=number)}
        run.extra = {"extra_data": {"workflow": "y" * 1_000_000}}
        run.preview = record.published_preview = Preview("1", "image/png", bytes(1_000_000))
        run.pictures = [Preview("2", "image/png", bytes(1_000_000))]
        text = Output("2", "Save", "text", text="t" * 1_000)
        picture = Output("2", "Save", "image", "c.png", source="websocket", content=bytes(1_000_000))
        record.conclude([text, picture], {1: "key"})
        run.state = run.state._replace(failure={"current_inputs": "z" * 1_000_000})
        record.end("Done.")
        return record

    tracemalloc.start()
    try:
        records = [end_large_run(number) for number in range(20)]
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 1_000_000
    finally:
        tracemalloc.stop()
    assert [record.run.state.phase for record in records] == [Phase.SUCCESS] * 20
    assert [record.prompt_id for record in records] == [str(number) for number in range(20)]
    file = records[0].spooled_file(1)
    assert file is not None and (file[0].filename, file[1]) == ("c.png", "key")


def test_problems_are_shown_with_their_fields(session: Session) -> None:
    record = make_record(session, "a")
    record.run.problems = [Problem("odd", "It is odd.", "1", hints=("Look at it.",))]
    [problem] = record.to_json()["problems"]
    assert (problem["node_id"], problem["type"], problem["hints"]) == ("1", "odd", ["Look at it."])


def test_behind_a_load_balancer_a_file_is_on_the_server_of_its_run(session: Session) -> None:
    session.server.cookies.affinity = {"SERVER": "1"}
    record = make_record(session, "a/b")
    files = {"images": [{"filename": "b.png"}]}
    record.run.state = record.run.state._replace(outputs={"2": files})
    [output] = record.to_json()["outputs"]
    assert output["url"] == "view?filename=b.png&subfolder=&type=output&prompt_id=a/b"


def test_runs_are_listed_newest_first(session: Session) -> None:
    records = make_records()
    first, second = make_record(session, "a"), make_record(session, "b", over=True)
    for record in (first, second):
        assert records.add(record, max_waiting=9)
    assert records.page(9).runs == records.newest_in_memory() == [second, first]
    assert records.page(1).runs == [second] and records.page(9, before=2).runs == [first]
    assert records.not_over() == [first]
    assert (records.get("b"), records.get("none"), records.get(None)) == (second, None, None)


def test_only_so_many_may_wait(session: Session) -> None:
    records = make_records()
    assert records.add(make_record(session, "a", Phase.RUNNING), max_waiting=1)
    assert records.add(make_record(session, "b", Phase.SUBMITTING, over=True), max_waiting=1)
    assert records.count_waiting() == 0
    assert records.add(make_record(session, "c", Phase.SUBMITTING), max_waiting=1)
    assert not records.add(make_record(session, "d"), max_waiting=1)
    assert records.count_waiting() == 1 and records.get("d") is None


def test_the_oldest_that_have_ended_are_forgotten_and_no_others(session: Session) -> None:
    records = make_records(kept=3)
    for prompt_id, over in [("a", False), ("b", True), ("c", True), ("d", True), ("e", False)]:
        records.add(make_record(session, prompt_id, over=over), max_waiting=9)
    assert ids_of(records.page(9).runs) == ["e", "d", "a"]
    for prompt_id in ("f", "g"):
        records.add(make_record(session, prompt_id), max_waiting=9)
    assert ids_of(records.page(9).runs) == ["g", "f", "e", "a"]


def test_without_a_file_only_200_are_kept(session: Session) -> None:
    assert make_records(kept=2000).kept == 200
    assert RunRecords(threading.RLock(), Keeper(2000)).kept == 2000


def test_with_a_file_few_that_have_ended_stay_in_memory(session: Session) -> None:
    records = RunRecords(threading.RLock(), Keeper(2000))
    for number in range(30):
        records.add(make_record(session, str(number), over=number != 3), max_waiting=9)
    assert ids_of(records.newest_in_memory()) == [str(number) for number in range(29, 10, -1)] + ["3"]


def test_behind_a_load_balancer_the_way_to_the_files_is_kept(session: Session) -> None:
    """Only the session of a run leads to the server that has its files."""
    session.server.cookies.affinity = {"SERVER": "1"}
    records = RunRecords(threading.RLock(), Keeper(2000))
    for number in range(210):
        records.add(make_record(session, str(number), over=True), max_waiting=9)
    assert len(records.newest_in_memory()) == 200


def test_what_left_the_memory_is_listed_from_the_file(session: Session) -> None:
    old = [stored_after_end(session, "a", 1), stored_after_end(session, "b", 2)]
    open_row = stored_after_end(session, "c", 3, phase=Phase.QUEUED)
    in_both = stored_after_end(session, "d", 4)
    records = RunRecords(threading.RLock(), Keeper(2000, *old, open_row, in_both), last_number=4)
    waiting = make_record(session, "c")
    records.take_up(waiting, 3)
    ended = make_record(session, "d", over=True)
    records.take_up(ended, 4)
    new = make_record(session, "e")
    records.add(new, max_waiting=9)
    assert new.number == 5
    listed = records.page(9).runs
    assert ids_of(listed) == ["e", "d", "c", "b", "a"]
    assert listed[:3] == [new, ended, waiting]
    assert ids_of(records.page(2).runs) == ["e", "d"] and ids_of(records.page(2, before=4).runs) == ["c", "b"]
    assert ids_of(records.with_records(records.read_page(2), 2).runs) == ["e", "d"]
    assert [ids_of(records.read_page(2, prompt_id)) for prompt_id in ("a", "x")] == [["a"], []]
    assert json.loads(waiting.to_text()) == waiting.to_json() and not waiting.to_json()["over"]
    found = records.get("b")
    assert found is not None and found.to_json()["message"] == "Done." and records.get("none") is None


def test_a_row_whose_run_is_nowhere_is_not_listed(session: Session) -> None:
    row = stored_after_end(session, "a", 1, phase=Phase.QUEUED)
    records = RunRecords(threading.RLock(), Keeper(2000, row))
    assert records.page(9).runs == [] and records.get("a") is None


def test_a_broken_row_is_not_listed_and_hides_no_other(session: Session) -> None:
    rows = [stored_after_end(session, "a", 1), stored_after_end(session, "b", 2, shown="")]
    records = RunRecords(threading.RLock(), Keeper(2000, *rows))
    assert ids_of(records.page(9).runs) == ["a"] and records.get("b") is None


def test_the_pages_go_on_behind_broken_rows(session: Session) -> None:
    rows = [stored_after_end(session, prompt_id, turn) for turn, prompt_id in enumerate("abcde", start=1)]
    for turn in (2, 3):
        rows[turn] = rows[turn]._replace(shown="")
    records = RunRecords(threading.RLock(), Keeper(2000, *rows))
    pages: List[str] = []
    before = None
    while not pages or before is not None:
        page = records.page(2, before)
        pages.append("".join(ids_of(page.runs)))
        before = page.next_before
    assert pages == ["e", "b", "a"]


def test_a_prompt_that_cannot_be_read_any_more_is_not_kept(session: Session) -> None:
    records = RunRecords(threading.RLock(), Keeper(9, stored_after_end(session, "a", 1, prompt=b"no zlib")))
    ended = records.get("a")
    assert ended is not None and records.prompt_of(ended) is None


def test_a_run_from_the_file_is_shown_as_at_its_end(session: Session) -> None:
    text = Output("2", "Save", "text", type="", text="hello")
    picture = Output("2", "Save", "image", "c.png", type="", source="websocket", size=1)
    file = Output("2", "Save", "image", "b.png")
    made = ([text, picture, file], {1: "7"})
    stored = stored_after_end(session, "a", 1, made=made)
    record = make_record(session, "a", Phase.SUCCESS)
    record.conclude(*made)
    record.end("Done.")
    ended = read_ended(stored)
    assert ended is not None
    skipped = {"created": 0.0}
    assert {**ended.to_json(), **skipped} == {**record.to_json(), **skipped}
    assert ended.to_json("http://x")["outputs"][1]["absolute_url"] == "http://x/runs/a/files/1"
    assert ended.over.is_set() and (ended.phase, ended.message, ended.server) == (Phase.SUCCESS, "Done.", None)
    assert ended.outputs == [text, picture, file]
    assert ended.spooled_file(1) == (picture, "7") and ended.spooled_file(2) is None


def test_after_a_restart_what_was_in_the_spool_has_no_address(session: Session) -> None:
    picture = Output("2", "Save", "image", "c.png", type="", source="websocket", size=1)
    file = Output("2", "Save", "image", "b.png")
    stored = stored_after_end(session, "a", 1, made=([picture, file], {0: "7"}))
    ended = read_ended(stored._replace(spooled={}))
    assert ended is not None
    urls = [output["url"] for output in ended.to_json("http://x")["outputs"]]
    assert urls == [None, "view?filename=b.png&subfolder=&type=output"]
    assert ended.to_json("http://x")["outputs"][0]["absolute_url"] is None
    assert ended.spooled_file(0) is None


def test_the_running_one_is_interrupted_before_the_first_that_waits(session: Session) -> None:
    records = make_records()
    assert records.to_interrupt(None) is None and records.running() is None
    first, second = make_record(session, "a"), make_record(session, "b")
    running, ended = make_record(session, "c", Phase.RUNNING), make_record(session, "d", Phase.RUNNING, over=True)
    for record in (ended, first, second):
        records.add(record, max_waiting=9)
    assert records.to_interrupt(None) is first and records.running() is None
    records.add(running, max_waiting=9)
    assert records.to_interrupt(None) is running and records.running() is running
    assert records.to_interrupt("b") is second
    assert records.to_interrupt("d") is None and records.to_interrupt("none") is None


def test_changes_are_taken_once(session: Session) -> None:
    records = make_records()
    record = make_record(session, "a")
    records.add(record, max_waiting=9)
    for prompt_id in ("a", "a", "forgotten"):
        records.mark_changed(prompt_id)
    assert records.take_changed() == [record]
    assert (record.phase, record.server) == (Phase.QUEUED, session.server)
    assert records.take_changed() == []


def test_a_run_knows_its_prompt_after_its_end_if_that_is_not_large(session: Session) -> None:
    records = make_records()
    run = make_record(session, "a")
    assert records.prompt_of(run) == PROMPT
    run.end("Done.")
    assert records.prompt_of(run) == PROMPT
    large = make_record(session, "b")
    large.run.prompt = {"1": node("Text", text=os.urandom(100_000).hex())}
    large.end("Done.")
    assert records.prompt_of(large) is None  # there is no file that could have it


def test_the_prompt_of_a_run_that_left_the_memory_is_in_the_file(session: Session) -> None:
    stored = stored_after_end(session, "a", 1, prompt=pack_text(json.dumps(PROMPT)))
    records = RunRecords(threading.RLock(), Keeper(9, stored), last_number=1)
    ended = records.get("a")
    assert isinstance(ended, EndedRecord) and records.prompt_of(ended) == PROMPT


def test_a_run_that_is_removed_is_neither_in_memory_nor_in_the_file(session: Session) -> None:
    records = RunRecords(threading.RLock(), Keeper(9, stored_after_end(session, "a", 1)), last_number=1)
    records.take_up(make_record(session, "a", over=True), 1)
    records.remove("a")
    assert records.page(9).runs == [] and records.get("a") is None


def test_the_positive_text_of_a_run_is_shown_in_short() -> None:
    def prompt(text: Any) -> Any:
        sampler = node("KSampler", model=["4", 0], positive=["1", 0], negative=["1", 0])
        return {"1": node("CLIPTextEncode", text=text), "2": sampler}

    assert positive_text(prompt("a fox")) == "a fox"
    assert positive_text(prompt("x" * 600)) == "x" * 500
    assert positive_text(prompt(["3", 0])) == positive_text({}) == ""
