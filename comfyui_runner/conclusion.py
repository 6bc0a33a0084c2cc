"""The end of a run: how it ended, what it made, and where that was saved."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional

from comfyui_runner.errors import ExitStatus, SaveError
from comfyui_runner.outputs import Output, collect_outputs
from comfyui_runner.reports import Report, end_report, exit_status_of, failure_report
from comfyui_runner.saving import Saved, received_outputs, save_jobs, websocket_notice
from comfyui_runner.session import GONE, Run, Session
from comfyui_runner.state import Phase, PromptState, lost
from comfyui_runner.threads import end_tasks, in_thread

#: What cancels a run when --timeout expires, in the words of the reports.
THE_TIMEOUT = "the timeout"


class Stop(NamedTuple):
    """Who cancelled a run, in words ("Ctrl+C", "the timeout"), and the exit status that this leads to."""

    name: str
    exit_status: ExitStatus


class Destination(NamedTuple):
    """Where the outputs of a run are saved. ``rename`` changes the names that ComfyUI gave."""

    folder: str
    overwrite: bool = False
    rename: Callable[[str], str] = lambda name: name


class Ending(NamedTuple):
    """How a run ended: the exit status, the last report, what it made, and the paths of what was saved."""

    exit_status: ExitStatus
    report: Report
    outputs: List[Output]  # as the server lists them
    received: List[Output]  # pictures that came over the WebSocket alone
    saved: Optional[Dict[Output, str]]  # None: nothing was to be saved


def stop_that_counts(state: PromptState, stop: Optional[Stop]) -> Optional[Stop]:
    """``stop``, unless the run had ended by itself when the timeout expired."""
    if stop is None:
        return None
    ended_in_time = state.phase in (Phase.SUCCESS, Phase.ERROR)
    return None if stop.name == THE_TIMEOUT and ended_in_time else stop


async def conclude(
    session: Session,
    run: Run,
    *,
    destination: Optional[Destination],
    stop: Optional[Stop],
    stopping: "asyncio.Event",
    status_if_stopped: Callable[[], ExitStatus],
    report: Callable[[Optional[Run], Report], None],
    traceback_frames: Optional[int],
) -> Ending:
    """Reports how ``run`` ended and what it made, and saves that to ``destination`` (None: nowhere).

    ``stop`` is what cancelled the run. ``stopping`` ends the saving: what is not saved by then stays on the
    server, and the run ends with ``status_if_stopped()``.
    """
    failure = failure_report(run.state, run.prompt, traceback_frames)
    if failure:
        report(run, failure)

    outputs = collect_outputs(run.state.outputs, run.prompt)
    will_be_saved = destination is not None and not stopping.is_set()
    for output in outputs:
        report(run, output_report(session, output, will_be_saved))
    if run.received and destination is None:
        report(run, websocket_notice(run))

    exit_status = stop.exit_status if stop else exit_status_of(run.state, bool(run.dropped))
    saved: Optional[Dict[Output, str]] = None
    if destination is not None:
        saved = {}
        complete = await save_outputs(session, run, outputs, destination, stopping, report, saved)
        if not complete and stopping.is_set():
            exit_status = status_if_stopped()
        elif not complete and session.server.gone:
            run.state = lost(run.state._replace(phase=Phase.RUNNING), GONE, time.monotonic())
            exit_status = ExitStatus.LOST
        elif not complete and exit_status is ExitStatus.OK:
            exit_status = ExitStatus.NOT_SAVED

    stopped_by = stop.name if stop else None
    end = end_report(
        run.state, exit_status, time.monotonic(), run.prompt, stopped_by, len(run.received)
    )
    report(run, end)
    rename = destination.rename if destination else lambda name: name
    return Ending(exit_status, end, outputs, received_outputs(run, rename), saved)


def output_report(session: Session, output: Output, will_be_saved: bool) -> Report:
    """The report of one output, with its URL where it is a file."""
    return {**output_entry(session, output), "event": "output", "will_be_saved": will_be_saved}


def output_entry(session: Session, output: Output) -> Dict[str, Any]:
    """An output's fields and its URL (None for a text)."""
    url = None if output.text is not None else session.server.url_of(output)
    return {**output._asdict(), "url": url}


async def save_outputs(
    session: Session,
    run: Run,
    outputs: List[Output],
    destination: Destination,
    stopping: "asyncio.Event",
    report: Callable[[Optional[Run], Report], None],
    saved: Dict[Output, str],
) -> bool:
    """Saves all that ``run`` made, and puts the paths into ``saved``; False if something could not be saved.

    When ``stopping`` is set, a download ends at its next chunk, and the rest is left on the server.
    """
    complete = True
    jobs = save_jobs(
        session.server,
        run,
        outputs,
        destination.folder,
        destination.overwrite,
        stopping.is_set,
        destination.rename,
    )
    for output, save in jobs:
        try:
            file = await _save_unless_stopped(save, stopping)
        except SaveError as error:
            complete = False
            report(run, {"event": "not_saved", "message": error.message, "remedy": error.remedy})
            continue
        if file is None:
            report(
                run,
                {
                    "event": "notice",
                    "message": "Stopped: what is not saved is still on the server.",
                },
            )
            return False
        saved[output] = file.path
        report(
            run, {"event": "saved", "title": output.title, "path": file.path, "bytes": file.bytes}
        )
    return complete


async def _save_unless_stopped(
    save: Callable[[], Saved], stopping: "asyncio.Event"
) -> Optional[Saved]:
    """What ``save()`` saved; None if ``stopping`` came first. Raises SaveError."""
    if stopping.is_set():
        return None
    task = asyncio.ensure_future(in_thread(save))
    stop = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait([task], timeout=1.0)  # it sees the stop at the next chunk
        return task.result() if task.done() else None
    finally:
        await end_tasks([task, stop])
