"""The end of a run: how it ended, what it made, and where that was saved."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from comfyui_runner.errors import ExitStatus, SaveError
from comfyui_runner.files import Saved
from comfyui_runner.interrupts import Stop
from comfyui_runner.limits import RECEIVED_BYTES
from comfyui_runner.outputs import Output
from comfyui_runner.reports import Report, end_report, exit_status_of, failure_report, plain_notice
from comfyui_runner.runs import Run
from comfyui_runner.saving import Destination, notice_of_unsaved, save_jobs
from comfyui_runner.session import GONE, Session
from comfyui_runner.state import Phase, PromptState, lost
from comfyui_runner.text import plural, size_in_words
from comfyui_runner.threads import done_or_set, end_tasks, in_thread

#: What cancels a run when --timeout expires.
TIMED_OUT = Stop("--timeout expired", ExitStatus.TIMEOUT)

#: How many frames of a traceback are reported, unless it is to be whole.
TRACEBACK_FRAMES = 2

#: Seconds for a download to see at its next chunk that the saving must end.
LAST_CHUNK = 1.0


class Ending(NamedTuple):
    """How a run ended: its exit status, its last report, what it made, what is saved."""

    exit_status: ExitStatus
    report: Report
    outputs: List[Output]
    saved: Optional[Dict[Output, str]]  # the paths; None: nothing was to be saved


# -- rules -----------------------------------------------------------------------------------------


def stop_that_counts(state: PromptState, stop: Optional[Stop]) -> Optional[Stop]:
    """``stop``, unless the run had ended by itself when --timeout expired."""
    ended_by_itself = state.phase in (Phase.SUCCESS, Phase.ERROR)
    if stop == TIMED_OUT and ended_by_itself:
        return None
    return stop


def is_saved_after(stop: Optional[Stop]) -> bool:
    """Whether what a single run made is saved: a person who presses Ctrl+C wants to leave."""
    return stop in (None, TIMED_OUT)


def exit_status_before_saving(
    state: PromptState, has_dropped: bool, stop: Optional[Stop]
) -> ExitStatus:
    """How a run ended, which ``stop`` cancelled. ``has_dropped``: ComfyUI refused some outputs."""
    if stop is not None:
        return stop.exit_status
    return exit_status_of(state, has_dropped)


def exit_status_if_not_saved(
    exit_status: ExitStatus, stopped_with: Optional[ExitStatus], server_is_gone: bool
) -> ExitStatus:
    """The exit status of a run that ended with ``exit_status``, but is not saved as a whole.

    ``stopped_with`` is the status that Ctrl+C leads to, where that ended the saving.
    """
    if stopped_with is not None:
        return stopped_with
    if server_is_gone:
        return ExitStatus.LOST  # its outputs are gone too
    if exit_status is ExitStatus.OK:
        return ExitStatus.NOT_SAVED
    return exit_status  # what is wrong with the run itself matters more


# -- the end ---------------------------------------------------------------------------------------


async def conclude(
    session: Session,
    run: Run,
    stop: Optional[Stop],
    destination: Optional[Destination],
    *,
    whole_traceback: bool = False,
    is_served: bool = False,
    has_urls: bool = True,
) -> Ending:
    """Reports how ``run`` ended and what it made, and saves that to ``destination``, if anywhere.

    ``stop`` is what cancelled the run. ``whole_traceback``: where a node failed, all frames of its
    traceback are reported, instead of the last ones. ``is_served``: what is not saved can be
    fetched from the service. ``has_urls``: its files can be fetched from ComfyUI later.
    """
    stop = stop_that_counts(run.state, stop)
    report_failure(session, run, whole_traceback)
    outputs = run.outputs()
    report_outputs(session, run, outputs, destination, has_urls=has_urls)
    if destination is None and not is_served:
        report_unsaved_content(session, run, outputs)
    missing = report_missing_pictures(session, run)

    exit_status = exit_status_before_saving(run.state, bool(run.dropped), stop)
    saved: Optional[Dict[Output, str]] = None
    unsaved: List[str] = []
    if destination is not None:
        saved, unsaved = await save_outputs(session, run, outputs, destination)
        unsaved += missing
        if unsaved:
            exit_status = note_unsaved_outputs(session, run, destination, exit_status)

    end = end_report(
        run.state,
        exit_status,
        time.monotonic(),
        run.prompt,
        cancelled=stop is not None,
        received=sum(output.source == "websocket" for output in outputs),
        unsaved=unsaved,
    )
    session.report(run, end)
    return Ending(exit_status, end, outputs, saved)


def report_failure(session: Session, run: Run, whole_traceback: bool) -> None:
    """Reports the node that failed, if one did."""
    frames: Optional[int] = TRACEBACK_FRAMES
    if whole_traceback:
        frames = None
    failure = failure_report(run.state, run.prompt, frames)
    if failure is not None:
        session.report(run, failure)


def report_outputs(
    session: Session,
    run: Run,
    outputs: List[Output],
    destination: Optional[Destination],
    *,
    has_urls: bool = True,
) -> None:
    """Reports what the run made."""
    will_be_saved = destination is not None and not destination.is_stopped
    for output in outputs:
        report = {"event": "output", **output_entry(session, output)}
        if not has_urls:
            report["url"] = None
        session.report(run, {**report, "will_be_saved": will_be_saved})


def report_unsaved_content(session: Session, run: Run, outputs: List[Output]) -> None:
    """Reports that files came along with the run, and that nothing keeps them."""
    message = notice_of_unsaved(outputs)
    if message is not None:
        session.report(run, {"event": "notice", "message": message})


def report_missing_pictures(session: Session, run: Run) -> List[str]:
    """Reports pictures that were sent over the WebSocket and are not here: what they are called."""
    dropped = run.dropped_pictures
    missing = max(run.count_missing_pictures() - dropped, 0)
    for message in notices_of_missing(missing, dropped):
        session.report(run, {"event": "notice", "message": message})
    if missing + dropped == 0:
        return []
    return [f"{plural(missing + dropped, 'picture')} sent over the WebSocket"]


def notices_of_missing(missing: int, dropped: int) -> List[str]:
    """What is said of pictures that did not come, and of those that were too many to keep."""
    notices = []
    if missing:
        notices.append(
            f"{plural(missing, 'picture')} sent over the WebSocket did not arrive. ComfyUI does "
            "not keep a copy, and sends them only while the node runs: change a seed and run it "
            "again."
        )
    if dropped:
        limit = size_in_words(RECEIVED_BYTES)
        notices.append(
            f"{plural(dropped, 'picture')} sent over the WebSocket were not kept: the limit for "
            f"one run is {limit}."
        )
    return notices


def output_entry(session: Session, output: Output) -> Dict[str, Any]:
    """An output's fields and its URL (None for what is not a file on the server)."""
    url = None
    if output.is_on_server:
        url = session.server.url_of(output)
    return {**output.to_json(), "url": url}


def note_unsaved_outputs(
    session: Session, run: Run, destination: Destination, exit_status: ExitStatus
) -> ExitStatus:
    """The exit status of a run that is not saved as a whole.

    Where its server is gone, its outputs are gone too, and the run counts as lost although it had
    ended. It is set back to RUNNING for that: lost() leaves an end that is known as it is.
    """
    stopped_with = destination.stopped_with()
    server_is_gone = bool(session.server.gone)
    if stopped_with is None and server_is_gone:
        run.state = lost(run.state._replace(phase=Phase.RUNNING), GONE, time.monotonic())
    return exit_status_if_not_saved(exit_status, stopped_with, server_is_gone)


async def save_outputs(
    session: Session, run: Run, outputs: List[Output], destination: Destination
) -> Tuple[Dict[Output, str], List[str]]:
    """Saves all that ``run`` made: the paths of what is saved, and the names of what is not."""
    paths: Dict[Output, str] = {}
    unsaved: List[str] = []
    loop = asyncio.get_running_loop()

    def notify(message: str) -> None:
        """Reports from the thread of a download; nobody listens any more if the loop is closed."""
        with contextlib.suppress(RuntimeError):
            notice = {"event": "notice", "message": message}
            loop.call_soon_threadsafe(session.report, run, notice)

    jobs = save_jobs(session.server, outputs, destination, notify)
    for number, (output, save) in enumerate(jobs):
        try:
            file = await save_unless_stopped(save, destination.stopping)
        except SaveError as error:
            unsaved.append(name_output(output))
            report: Report = {
                "event": "not_saved",
                "message": error.message,
                "remedy": error.remedy,
            }
            session.report(run, report)
            continue
        if file is None:
            message = "Stopped: outputs that are not saved are still on the server."
            session.report(run, plain_notice(message))
            unsaved += [name_output(rest) for rest, _ in jobs[number:]]
            return paths, unsaved
        paths[output] = file.path
        report = {"event": "saved", "title": output.title, "path": file.path, "bytes": file.bytes}
        session.report(run, report)
    return paths, unsaved


def name_output(output: Output) -> str:
    """The name of an output's file; for a text the title of its node."""
    return output.filename or output.title


async def save_unless_stopped(
    save: Callable[[], Saved], stopping: Optional["asyncio.Event"]
) -> Optional[Saved]:
    """What ``save()`` saved; None if ``stopping`` came first. Raises SaveError."""
    if stopping is None:
        return await in_thread(save)
    if stopping.is_set():
        return None
    task = asyncio.ensure_future(in_thread(save))
    try:
        await done_or_set(task, stopping)
        await asyncio.wait([task], timeout=LAST_CHUNK)
        if task.done():
            return task.result()
        return None
    finally:
        await end_tasks([task])
