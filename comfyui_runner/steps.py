"""What a step of the story needs beyond one module: find the server, load, upload, watch, retry."""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
import time
from typing import Any, Awaitable, Callable, Dict, Iterable, List, Mapping, Optional, Tuple

from comfyui_runner.addresses import Address, parse_address
from comfyui_runner.conclusion import THE_TIMEOUT, Ending, conclude, stop_that_counts
from comfyui_runner.console import Console
from comfyui_runner.documents import Prompt
from comfyui_runner.edits import draw_seeds, with_values
from comfyui_runner.errors import (
    ExitStatus,
    NotConfirmed,
    PromptRejected,
    ServerError,
    ServerTooOld,
    ServerUnreachable,
    Stopped,
    UsageError,
)
from comfyui_runner.interrupts import Stop
from comfyui_runner.loading import (
    Define,
    Loaded,
    load_document,
    looks_at_values,
    offer_uploads,
    prepare_workflow,
    read_object_info,
)
from comfyui_runner.meter import Meter, make_meter
from comfyui_runner.nodes import InputRef, describe_nodes
from comfyui_runner.reports import Report, problem_report
from comfyui_runner.retries import backoff, may_be_retried
from comfyui_runner.runs import Run
from comfyui_runner.saving import Destination, fill_pattern
from comfyui_runner.server import Server, new_uuid
from comfyui_runner.session import Session, is_lost
from comfyui_runner.settings import Settings
from comfyui_runner.text import as_dict
from comfyui_runner.third_party import import_third_party
from comfyui_runner.threads import bounded, bounded_here, end_tasks, in_thread
from comfyui_runner.versions import server_in_words, version_warning

#: Tries of the first request to a server that is slow to answer; a refused connection is not tried again.
FIRST_TRIES = 3


class ComfyUI:
    """The server of a call, looked for when a step first needs it. With --demo, the simulator."""

    def __init__(self, settings: Settings, console: Console) -> None:
        self.settings = settings
        self.console = console
        self.server: Optional[Server] = None  #: once it is found
        self.stats: Dict[str, Any] = {}  #: its answer to GET /system_stats
        self._simulator: Any = None

    async def __aenter__(self) -> "ComfyUI":
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._simulator is not None:
            await in_thread(self._simulator.stop)

    async def find(self) -> Server:
        """The first server that answers. Raises ServerError (NO_SERVER), or Stopped."""
        if self.server is not None:
            return self.server
        server, self.stats = await self.console.unless_stopped(self._find())
        self.server = server
        return server

    async def _find(self) -> Tuple[Server, Dict[str, Any]]:
        addresses = self.addresses()
        errors: List[ServerError] = []
        for address in addresses:
            server = Server(address, self.settings.limits)
            try:
                stats = await self._ask_for_stats(server)
            except ServerError as error:
                errors.append(error)
                continue
            tried = [refusal.message for refusal in errors]
            self.console.report(
                None,
                {"event": "server", "url": address.url, **server_in_words(stats), "tried": tried},
            )
            warning = version_warning(stats, address.url)
            if warning:
                self.console.notice(warning)
            return server, stats
        for refusal in errors:
            if isinstance(refusal, ServerTooOld):  # it answers, so what helps is an update of it
                raise refusal
        if len(addresses) > 1:
            raise ServerUnreachable(
                "No ComfyUI answers. Tried: " + " ".join(refusal.message for refusal in errors),
                "Start ComfyUI (in its folder: python main.py, or the Desktop app), name its address with\n"
                "--server URL, or try the runner without it: --demo",
            )
        if not errors[0].remedy:
            errors[
                0
            ].remedy = (
                "Start ComfyUI there, or name another address with --server URL; --demo needs none."
            )
        raise errors[0]

    async def _ask_for_stats(self, server: Server) -> Dict[str, Any]:
        for attempt in range(FIRST_TRIES):
            try:
                return await bounded(server.system_stats, seconds=server.limits.connect + 10.0)
            except ServerError as error:
                is_last = attempt + 1 == FIRST_TRIES
                if error.refused or is_last or not may_be_retried(error):
                    raise
            await asyncio.sleep(backoff(attempt, first=0.3))
        raise AssertionError("unreachable")

    def addresses(self) -> Tuple[Address, ...]:
        """Where ComfyUI may be, in order of preference."""
        addresses = self.settings.servers
        if self.settings.demo:
            addresses = (self._start_simulator(),)
        secrets = (secret for address in addresses for secret in address.secrets)
        self.console.printer.secrets = tuple(dict.fromkeys(secrets))
        return addresses

    def _start_simulator(self) -> Address:
        try:
            from comfyui_runner.simulator import Simulator  # only --demo needs it
        except ImportError:
            raise UsageError(
                "--demo needs the folder comfyui_runner/simulator, which is missing.",
                "Get the whole project, not one file of it.",
            ) from None
        import_third_party("websockets")
        self._simulator = Simulator(step_seconds=0.15, previews=True)
        self._simulator.start()
        return parse_address(self._simulator.url)

    def definitions(self, known: Optional[Dict[str, Any]] = None) -> Define:
        """Looks definitions of classes up: in ``known``, or on the server, where all of them are read once.

        The lookups block, each of them for a bounded time: they are made in threads.
        """

        def define(classes: Optional[Iterable[str]]) -> Mapping[str, Any]:
            nonlocal known
            if classes is None and known is None:
                assert self.server is not None
                seconds = self.server.limits.connect + self.server.limits.post
                known = bounded_here(self.server.all_object_info, seconds=seconds)
            if known is not None:
                return (
                    known
                    if classes is None
                    else {name: as_dict(known.get(name)) for name in classes}
                )
            return {name: self._look_up_class(name) for name in sorted(set(classes or ()))}

        return define

    def _look_up_class(self, class_type: str) -> Optional[Dict[str, Any]]:
        assert self.server is not None
        limits = self.server.limits
        return bounded_here(
            self.server.object_info, class_type, seconds=limits.connect + limits.read
        )


async def load_workflow(settings: Settings, comfyui: ComfyUI, console: Console) -> Loaded:
    """The workflow with the settings' values in it. Raises WorkflowError (BAD_WORKFLOW), UsageError, EditError.

    The server is asked only where it must be: to convert a UI file, and to know what may be set.
    """
    document, path = load_document(settings, console.stdin)
    known = read_object_info(settings.object_info) if settings.object_info else None
    if settings.images and known is not None:
        raise UsageError("--image uploads to a server, so --object-info cannot stand for it.")
    if known is None and needs_definitions(settings, document.prompt is None):
        await comfyui.find()
    work = in_thread(prepare_workflow, document, path, settings, comfyui.definitions(known))
    loaded = await console.unless_stopped(work)
    for warning in loaded.warnings:
        console.notice(warning)
    return loaded


def needs_definitions(settings: Settings, convert: bool) -> bool:
    """Whether the classes' definitions are needed to load a workflow. ``convert``: it is in UI format."""
    return convert or looks_at_values(settings)


def confirm(question: str, settings: Settings, console: Console) -> None:
    """Asks, unless --yes was given. Raises NotConfirmed or Stopped."""
    if not settings.yes:
        console.confirm(question)


def require_somebody_to_ask(settings: Settings, console: Console) -> None:
    """Raises NotConfirmed where the question could not be asked, before anything else is done."""
    if not settings.yes and not console.stdin.isatty():
        raise NotConfirmed(
            "There is no terminal to ask in, so nothing was run.",
            "Add --yes to run without being asked.",
        )


def show_workflow(loaded: Loaded, console: Console) -> None:
    """Reports what is about to run."""
    console.report(None, {"event": "workflow", "file": loaded.path, **loaded.summary()._asdict()})


async def upload_files(loaded: Loaded, server: Server, console: Console) -> Dict[InputRef, str]:
    """Uploads the files that the settings name; what the loaders call them. Raises UsageError, ServerAnswer."""
    values = {}
    for ref, path in loaded.uploads:
        values[ref] = await console.unless_stopped(in_thread(server.upload_file, path))
        report: Report = {
            "event": "uploaded",
            "path": path,
            "value": values[ref],
            "message": f"Uploaded {path} as {values[ref]}.",
            **describe_nodes(loaded.prompt, [ref.node_id])[0],
            "input": ref.input,
        }
        console.report(None, report)
    return values


def prompt_of_run(loaded: Loaded, uploaded: Mapping[InputRef, str]) -> Prompt:
    """The prompt of the next run: with the names of the uploaded files, and with new seeds where they are drawn."""
    prompt = with_values(loaded.prompt, uploaded)
    return draw_seeds(prompt, loaded.drawn, random.random, loaded.object_info)


class Watch:
    """Work on one run, raced with Ctrl+C, SIGTERM and --timeout: these cancel this run and no other."""

    def __init__(self, session: Session, run: Run, settings: Settings, console: Console) -> None:
        self.session = session
        self.run = run
        self.console = console
        self.settings = settings
        self.stop: Optional[Stop] = None  #: what cancelled the run
        self._deadline = None if settings.timeout is None else time.monotonic() + settings.timeout
        console.interrupts.farewell = (
            f"Left at once: prompt {run.prompt_id} may still run on the server."
        )

    async def until_stopped(self, work: Callable[[Run], Awaitable[object]]) -> None:
        """Does ``work(run)``, or cancels the run if it must stop first. After that, there is no work to do.

        Raises what ``work`` raises, unless the run was cancelled.
        """
        if self.stop is not None:
            return
        task = asyncio.ensure_future(work(self.run))
        try:
            await self.console.first_of(task, self._seconds_left())
            if task.done():
                await task  # raises what it failed with
                return
            self.stop = self._what_stopped()
            await self._cancel(task)
        except PromptRejected as error:
            problems = await self.session.explain(error.answer, self.run.prompt)
            for problem in offer_uploads(problems, os.path.dirname(self.settings.workflow)):
                self.console.report(self.run, problem_report(problem))
            raise
        finally:
            await end_tasks([task])

    def _seconds_left(self) -> Optional[float]:
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 0.0)

    def _what_stopped(self) -> Stop:
        if self.console.stop.is_set():
            return self.console.what_stopped
        return Stop(THE_TIMEOUT, ExitStatus.TIMEOUT)

    async def _cancel(self, task: "asyncio.Future[object]") -> None:
        assert self.stop is not None
        if self.run.attached:  # somebody else's, perhaps: it is left alone
            error = Stopped(
                f"Not followed any more ({self.stop.name}): prompt {self.run.prompt_id} goes on."
            )
            error.exit_status = self.stop.exit_status
            raise error
        name = self.stop.name[0].upper() + self.stop.name[1:]
        self.console.notice(f"{name}: cancelling our prompt, and nothing else.", self.run)
        await self.session.cancel(self.run)
        if self.run.state.phase.over:
            await asyncio.wait([task], timeout=self.session.limits.read)

    def meter(self) -> Meter:
        """The moving part of the screen."""
        run = self.run
        return make_meter(run.state, run.prompt, time.monotonic(), run.began, self.session.note)


async def conclude_run(
    session: Session, run: Run, stop: Optional[Stop], settings: Settings, console: Console
) -> Ending:
    """Reports how a single run ended, and saves what it made to -o (with --demo: to a temporary folder)."""
    stop = stop_that_counts(run.state, stop)
    folder = settings.output
    if folder is None and settings.demo:
        folder = tempfile.mkdtemp(prefix="comfyui-demo-")
    stopped_by_person = stop is not None and stop.name != THE_TIMEOUT
    destination = None
    if folder is not None and not stopped_by_person:
        destination = destination_of_row(settings, run.prompt, 1, folder)._replace(
            stopping=console.stop, status_if_stopped=lambda: console.what_stopped.exit_status
        )
    traceback_frames = None if settings.verbose else 2
    return await conclude(session, run, stop, destination, traceback_frames)


def destination_of_row(settings: Settings, prompt: Prompt, number: int, folder: str) -> Destination:
    """Where what row ``number`` makes is saved: patterns in ``folder`` and --name are filled in. Raises UsageError."""
    fields = {"row": "%05d" % number}

    def rename(filename: str) -> str:
        if not settings.name:
            return filename
        stem, ending = os.path.splitext(filename)
        return fill_pattern(settings.name, {"name": stem, **fields}, prompt) + ending

    return Destination(fill_pattern(folder, fields, prompt), settings.overwrite, rename)


def check_patterns(settings: Settings, prompt: Prompt) -> None:
    """Raises UsageError if a pattern in -o or --name names nothing: no run could be saved."""
    destination = destination_of_row(settings, prompt, 1, settings.output or "")
    destination.rename("x")


def keep_record(
    session: Session,
    run: Run,
    ending: Ending,
    settings: Settings,
    comfyui: ComfyUI,
    console: Console,
) -> None:
    """--save-run: writes a record of the run, which can be run again. Raises SaveError."""
    if not settings.save_run:
        return
    from comfyui_runner.extras.record import write_record  # only this flag needs it

    write_record(settings.save_run, session, run, ending, comfyui.stats)
    console.report(run, {"event": "exported", "path": settings.save_run, "nodes": len(run.prompt)})


async def retry_lost_runs(
    run_once: Callable[[Server], Awaitable[ExitStatus]],
    server: Server,
    settings: Settings,
    console: Console,
) -> ExitStatus:
    """Calls ``run_once`` with a fresh connection to ``server``; again, up to --retries times, while the run is LOST."""
    for retries_left in range(settings.retries, -1, -1):
        connection = server.fresh()
        try:
            exit_status = await run_once(connection)
        except ServerError as error:
            if not is_lost(connection, error):
                raise
            error.exit_status = exit_status = ExitStatus.LOST
            if not retries_left:
                raise
        if exit_status is not ExitStatus.LOST or not retries_left:
            break
        console.notice("The run is lost: submitting it again (--retries).")
        console.prompt_id = new_uuid()
    return exit_status
