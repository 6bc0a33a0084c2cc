"""What a batch says of itself while it runs and at its end, without a server."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, Dict, Iterator, List, Optional, Set

import pytest
from desk import NOWHERE, Desk, settings_of
from support import FAST, slow_prompt

from comfyui_runner.addresses import parse_address
from comfyui_runner.errors import ExitStatus, RunnerError, SaveError, ServerGone, ServerUnreachable
from comfyui_runner.extras.batch_files import Manifest
from comfyui_runner.extras.batch_job import Attempt, BatchJob, is_lost_by
from comfyui_runner.extras.batch_prompts import warnings_of_new_places
from comfyui_runner.extras.batches import Row
from comfyui_runner.interrupts import Stop
from comfyui_runner.redaction import Secrets
from comfyui_runner.server import Server
from comfyui_runner.session import Session
from comfyui_runner.threads import end_tasks

CTRL_C = Stop("Ctrl+C", ExitStatus.CANCELLED)


def job_of(desk: Desk, folder: Any, *arguments: str) -> BatchJob:
    """A batch of twelve rows, none of which has begun."""
    settings = settings_of("--repeat", "12", *arguments)
    manifest = Manifest(str(folder / "manifest.jsonl"), resume=False, secrets=Secrets())
    return BatchJob(settings, desk.console, manifest, 12, [(desk.server, None)])


def begin_row(job: BatchJob, number: int, note: str = "", has_run: bool = True) -> Attempt:
    session = Session(Server(parse_address(NOWHERE), FAST), job.report)
    session.note = note
    attempt = Attempt(Row(number), job.pool.members[0], session)
    if has_run:
        attempt.run = session.new_run(slow_prompt(), f"run {number}")
    job.attempts[number] = attempt
    return attempt


def test_the_first_rows_on_their_way_are_drawn_in_their_order(tmp_path: Any) -> None:
    async def story() -> None:
        desk = Desk()
        job = job_of(desk, tmp_path)
        for number in (11, 3, 10, 4, 5, 6, 7, 8, 9):
            begin_row(job, number, note={10: "no answer", 4: "connection lost"}.get(number, ""))
        begin_row(job, 2, has_run=False)  # its files are still uploaded
        meter = job.meter()
        assert [bar.label for bar in meter.bars] == ["Overall", *(f"Run {number}" for number in range(3, 11))]
        assert meter.note == "connection lost"

    asyncio.run(story())


def test_what_happens_to_a_row_has_its_number_in_front(tmp_path: Any) -> None:
    async def story() -> None:
        desk = Desk()
        job = job_of(desk, tmp_path)
        first, second = begin_row(job, 1), begin_row(job, 2)
        job.report(second.run, {"event": "notice", "message": "was cut off"})
        job.report(None, {"event": "notice", "message": "of all rows"})
        job.report(first.run, {"event": "status", "message": "nobody reads this in a batch"})
        assert desk.out.getvalue() == "[row 2] was cut off\nof all rows\n"

    asyncio.run(story())


@pytest.mark.parametrize(
    ("tally", "fatal", "stop", "status", "message"),
    [
        ({"done": 12}, None, None, ExitStatus.OK, "12 runs done in {}"),
        ({"done": 1, "skipped": 11}, None, None, ExitStatus.OK, "1 run done in {}, 11 done before"),
        (
            {"done": 10, "failed": 2},
            None,
            None,
            ExitStatus.FAILED,
            "10 runs done in {}, 2 failed\nRun the same command with --resume to run the rest. The manifest is {}.",
        ),
        (
            {"done": 10},
            ServerUnreachable("Nothing answers.", "Start it."),
            None,
            ExitStatus.NO_SERVER,
            "10 runs done in {}, 2 not started\nNothing answers. Start it.\n"
            "Run the same command with --resume to run the rest. The manifest is {}.",
        ),
        (
            {"done": 10, "failed": 2},
            SaveError("The disk is full."),
            CTRL_C,
            ExitStatus.CANCELLED,
            "10 runs done in {}, 2 failed\nThe disk is full. \n"
            "Run the same command with --resume to run the rest. The manifest is {}.",
        ),
    ],
)
def test_how_a_batch_ends(
    tally: Dict[str, Any],
    fatal: Optional[RunnerError],
    stop: Optional[Stop],
    status: ExitStatus,
    message: str,
    tmp_path: Any,
) -> None:
    async def story() -> None:
        desk = Desk()
        job = job_of(desk, tmp_path)
        job.tally = job.tally._replace(**tally)
        job.fatal = fatal
        if stop is not None:
            desk.press(stop)
        assert job.report_end() is status
        said = desk.out.getvalue()
        begin, _, rest = message.partition("{}")
        assert said.startswith(begin)
        assert said.endswith(rest.format(tmp_path / "manifest.jsonl") + "\n")

    asyncio.run(story())


def test_a_row_whose_line_cannot_be_written_is_the_last_one(tmp_path: Any) -> None:
    async def story() -> None:
        desk = Desk()
        job = job_of(desk, tmp_path)
        attempt = begin_row(job, 1)
        reason = SaveError("The disk is full.")

        def refuse(entry: Any) -> None:
            raise reason

        job.manifest.append = refuse  # type: ignore[method-assign]
        job._end_row(attempt, ExitStatus.OK, "It is done.")
        job._end_row(begin_row(job, 2), ExitStatus.FAILED, "It failed.")
        assert job.fatal is reason and job._no_more_rows.is_set()
        assert (job.tally.done, job.tally.failed) == (1, 1)

    asyncio.run(story())


def test_after_a_fatal_error_nothing_waits_for_a_row_or_a_place(tmp_path: Any) -> None:
    async def story() -> None:
        job = job_of(Desk(), tmp_path)
        more = threading.Event()

        def slow_rows() -> Iterator[Row]:
            yield Row(2)
            yield Row(3)
            more.wait(10)

        job.pool.members[0].rows = job.pool.in_flight
        rows = slow_rows()
        prompts: Any = None  # no row begins
        workers = [asyncio.ensure_future(job._work(rows, prompts)) for _ in range(3)]
        while len(job.pool._waiting) < 2:
            await asyncio.sleep(0.001)
        try:
            job._begin_no_more_rows(SaveError("The disk is full."))
            job.pool.leave_place(job.pool.members[0])
            _, waiting = await asyncio.wait(workers, timeout=5)
        finally:
            more.set()
            await end_tasks(workers)
        assert not waiting
        assert job.pool._waiting == set()

    asyncio.run(story())


@pytest.mark.parametrize(
    ("error", "affinity", "lost"),
    [
        (ServerGone("x"), {}, True),
        (ServerUnreachable("x"), {}, False),
        (ServerUnreachable("x"), {"GPU": "1"}, True),
        (SaveError("x"), {"GPU": "1"}, False),
    ],
)
def test_a_row_is_lost_with_its_server(error: RunnerError, affinity: Dict[str, str], lost: bool, tmp_path: Any) -> None:
    async def story() -> None:
        attempt = begin_row(job_of(Desk(), tmp_path), 1)
        attempt.session.server.cookies.affinity = affinity
        assert is_lost_by(error, attempt) is lost

    asyncio.run(story())


def test_a_warning_is_shown_once_for_each_node_and_input() -> None:
    places: Set[str] = set()
    shown: List[str] = []
    for warnings in (["6.text: a text such as @a.txt", "7.text: a text such as @a.txt"], ["6.text: a text such as @b"]):
        shown += warnings_of_new_places(warnings, places)
    assert shown == ["6.text: a text such as @a.txt", "7.text: a text such as @a.txt"]
