"""--batch and --repeat: many runs of one workflow, a few of them in ComfyUI's queue at a time."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import time
from typing import (
    Any,
    AsyncIterator,
    Awaitable,
    Dict,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Set,
    Tuple,
)

from comfyui_runner.afterwards import make_afterwards
from comfyui_runner.comfyui import ComfyUI
from comfyui_runner.conclusion import Ending, conclude, output_entry, stop_that_counts
from comfyui_runner.console import Console
from comfyui_runner.documents import Prompt
from comfyui_runner.errors import (
    ExitStatus,
    PromptRejected,
    RunnerError,
    SaveError,
    ServerError,
    ServerGone,
    ServerUnreachable,
    Stopped,
    UsageError,
)
from comfyui_runner.extras.batch_files import (
    Manifest,
    count_done_rows,
    count_rows,
    find_varied_inputs,
    manifest_path,
    open_rows,
)
from comfyui_runner.extras.batch_prompts import RowPrompts
from comfyui_runner.extras.batches import Row, Tally, make_batch_meter, row_key
from comfyui_runner.extras.opening import open_file
from comfyui_runner.extras.server_pool import Member, ServerPool, ask_whether_it_answers
from comfyui_runner.extras.sheet import Sheet
from comfyui_runner.files import WrittenFiles
from comfyui_runner.interrupts import Stop
from comfyui_runner.loading import find_file, notices_of_other_case
from comfyui_runner.meter import Meter
from comfyui_runner.patterns import folder_before_fields
from comfyui_runner.reports import Report, exit_status_of
from comfyui_runner.runs import Run
from comfyui_runner.saving import Destination
from comfyui_runner.server import Server, new_uuid
from comfyui_runner.session import Session, is_lost
from comfyui_runner.settings import Settings
from comfyui_runner.state import Phase, PromptState
from comfyui_runner.steps import (
    check_output_folder,
    check_patterns,
    confirm,
    find_spending,
    load_workflow,
    make_destination,
    require_terminal_or_yes,
    show_workflow,
)
from comfyui_runner.text import plural
from comfyui_runner.threads import Result, done_or_set, end_tasks, in_thread
from comfyui_runner.watch import Watch

#: The servers that were looked for, with the errors of those that did not answer.
Searched = Sequence[Tuple[Server, Optional[ServerError]]]

#: The events of a row that are shown to people: not its progress and its outputs.
READ_BY_PEOPLE = (
    *("problem", "failure", "not_saved", "connection", "notice", "row"),
    *("hook_failed", "freed"),
)

#: How many of the rows that are on their way are drawn.
DRAWN_ROWS = 8

#: Seconds between two sheets at least.
SHEET_INTERVAL = 2.0

#: The same, in multiples of the time that the last sheet took to write.
SHEET_PAUSES = 20.0

#: Seconds for the last sheet.
LAST_SHEET = 60.0

#: Seconds for what runs have made to be saved, after Ctrl+C has cancelled the others.
LAST_SAVING = 2.0


async def run_batch(settings: Settings, console: Console) -> ExitStatus:
    """Runs the workflow for every row that is not done yet; a failed row does not stop the rest."""
    settings = name_existing_batch(settings, console)
    async with ComfyUI(settings, console) as comfyui:
        workflow = await load_workflow(settings, comfyui, console)
        # In threads: Ctrl+C must not wait for a drive that is slow.
        looking = in_thread(find_varied_inputs, settings, workflow, console.stdin)
        varied = await console.unless_stopped(looking)
        show_workflow(workflow._replace(varied=varied), console)
        require_terminal_or_yes(settings, console)
        check_patterns(settings, workflow.prompt)
        check_output_folder(settings)
        server = await comfyui.find()
        counting = in_thread(count_rows, settings, workflow, console.stdin)
        total = await console.unless_stopped(counting)
        resume = settings.resume
        goes_on = not settings.has_rows
        path = manifest_path(settings)
        reading = in_thread(Manifest, path, resume, console.secrets, goes_on)
        manifest = await console.unless_stopped(reading)
        settings = settings._replace(first_row=manifest.first_row)
        left = total
        if resume and total is not None:
            counting_done = in_thread(count_done_rows, settings, workflow, console.stdin, manifest)
            left = total - await console.unless_stopped(counting_done)
        spending = await find_spending(workflow, server, settings, console)
        if left != 0:
            question = spending.before(question_about(total, left, settings))
            confirm(question, settings, console)

        with manifest, open_rows(settings, workflow, console.stdin) as rows:
            job = BatchJob(settings, console, manifest, total, comfyui.searched)
            job.own_extra_data = spending.extra_data
            await job.run(rows, RowPrompts(workflow, settings, console))
            report = functools.partial(job.report, None)
            await job.afterwards.finish(report, console.event_to_come())
        return job.report_end()


def name_existing_batch(settings: Settings, console: Console) -> Settings:
    """``settings`` with the name of the file of rows as it is on the disk. Raises UsageError."""
    if settings.batch is None:
        return settings
    path = find_file(settings.batch, UsageError)
    for notice in notices_of_other_case(settings.batch, path):
        console.note(notice)
    return settings._replace(batch=path)


def question_about(total: Optional[int], left: Optional[int], settings: Settings) -> str:
    """What a person is asked before those rows of ``total`` run that are ``left``.

    None: their number is not known yet.
    """
    if total is None or left is None:
        return "Run the rows as they arrive? [y/N] "
    if left != total:  # --resume
        return f"Run the remaining {left} of {plural(total, noun_of(settings))}? [y/N] "
    if settings.batch is None:
        if total == 1:
            return "Run it once? [y/N] "
        return f"Run it {total} times? [y/N] "
    return f"Run {plural(total, 'row')}? [y/N] "


def noun_of(settings: Settings) -> str:
    """What a run of the batch is called: a file has rows."""
    if settings.batch is None:
        return "run"
    return "row"


# -- rules -----------------------------------------------------------------------------------------


def exit_status_of_failed_row(
    error: RunnerError, is_lost_with_server: bool, other_rows_can_run: bool
) -> Optional[ExitStatus]:
    """The exit status of a row that ended with ``error``; None if that ends the whole batch."""
    if is_lost_with_server:
        return ExitStatus.LOST
    if isinstance(error, Stopped):
        return None
    if not isinstance(error, ServerError):
        return error.exit_status  # a wrong value, or a prompt that ComfyUI rejects

    # A file that ComfyUI does not take (400, 413), or a prompt that makes it stumble (500).
    concerns_one_row = error.status in (400, 413, 500)
    if concerns_one_row and other_rows_can_run:
        return ExitStatus.REJECTED
    return None


def status_of_row(exit_status: ExitStatus) -> str:
    """What the manifest says of a row that ended with ``exit_status``."""
    if exit_status is ExitStatus.OK:
        return "done"
    if exit_status in (ExitStatus.CANCELLED, ExitStatus.TERMINATED):
        return "cancelled"
    return "failed"


def stop_of_row(state: PromptState, has_dropped: bool, stop: Optional[Stop]) -> Optional[Stop]:
    """``stop``, with the row's own exit status if the row had succeeded by then: it is done."""
    stop = stop_that_counts(state, stop)
    if stop is None or state.phase is not Phase.SUCCESS:
        return stop
    return stop._replace(exit_status=exit_status_of(state, has_dropped))


def name_server(message: str, url: str) -> str:
    """``message`` with the server that it is about, in its first line."""
    first, *others = message.split("\n")
    return "\n".join([f"{first} ({url})", *others])


def pattern_of_folder(settings: Settings) -> str:
    """The pattern of a row's folder: one for each row, unless names or patterns differ anyway."""
    folder = settings.output or ""
    is_pattern = "{" in folder or bool(settings.name)
    if is_pattern or not folder:
        return folder
    return os.path.join(folder, "{row}")


def make_sheet_of_batch(settings: Settings, manifest: Manifest) -> Optional[Sheet]:
    """The sheet beside the manifest; None for a batch that saves nothing.

    It is made of what the manifest has, so that must be a file: a pipe or a device never ends.
    """
    can_be_read = bool(manifest.path) and os.path.isfile(manifest.path)
    if not settings.output or not can_be_read:
        return None
    return Sheet(manifest.path, os.path.basename(settings.workflow))


# -- the job ---------------------------------------------------------------------------------------


def files_of(entry: Mapping[str, Any]) -> List[str]:
    """Where a row's files are: their paths, or what ComfyUI calls them where nothing was saved.

    Texts come last: a picture says more of a row.
    """
    outputs = sorted(entry.get("outputs", []), key=lambda output: output["kind"] == "text")
    names = []
    for output in outputs:
        name = output.get("path")
        if not name:
            parts_on_server = (output["subfolder"], output["filename"])
            name = "/".join(filter(None, parts_on_server))
        if name:
            names.append(name)
    return names


class Attempt:
    """One attempt to run a row, on a session of its own with one of the servers."""

    def __init__(self, row: Row, member: Member, session: Session) -> None:
        self.row = row
        self.member = member
        self.session = session
        self.run: Optional[Run] = None  #: once there is a prompt to submit
        self.watch: Optional[Watch] = None  #: of that run
        self.entry: Dict[str, Any] = {  #: what the manifest will say of it
            "row": row.number,
            "key": row_key(row.values),
            "values": row.values,
            "server": member.url,
        }


def is_lost_by(error: RunnerError, attempt: Attempt) -> bool:
    """Whether the attempt is lost with its server, by ``error``."""
    return isinstance(error, ServerError) and is_lost(attempt.session.server, error)


def make_pool(searched: Searched, settings: Settings, console: Console) -> ServerPool:
    """The servers of a batch. Those that do not answer get no rows yet.

    ``searched`` has each server that was looked for, with its error if it did not answer.
    """
    if not settings.spreads_rows:
        searched = [(server, error) for server, error in searched if error is None]
    servers = [server for server, _ in searched]
    pool = ServerPool(servers, settings.in_flight, console.notice, console.note)
    for member, (_, error) in zip(pool.members, searched):
        if error is not None:
            pool.note_loss(member, error)
    return pool


class BatchJob:
    """A batch that runs: how far it is, and what its workers do with a row."""

    def __init__(
        self,
        settings: Settings,
        console: Console,
        manifest: Manifest,
        total: Optional[int],
        searched: Searched,
    ) -> None:
        self.settings = settings
        self.console = console
        self.manifest = manifest
        self.pool = make_pool(searched, settings, console)
        self.tally = Tally(total, noun=noun_of(settings))
        self.began = time.monotonic()
        self.attempts: Dict[int, Attempt] = {}  #: on their way, by the number of the row
        self.fatal: Optional[RunnerError] = None  #: why no row can run any more
        self.own_extra_data: Mapping[str, Any] = {}  #: of each run: it is stored nowhere
        self.afterwards = make_afterwards(settings, console)
        self._written = WrittenFiles()
        self._reading = asyncio.Lock()
        self._no_more_rows = asyncio.Event()  # set once there is a fatal error
        self._sheet = make_sheet_of_batch(settings, manifest)
        self._written_sheet: Optional[str] = None  #: once the one with all rows is written
        self._row_has_ended = asyncio.Event()

    async def run(self, rows: Iterator[Row], prompts: RowPrompts) -> None:
        """Runs the rows with --in-flight workers, until there are no more or Ctrl+C comes."""
        self.console.interrupts.farewell = (
            "Exited at once: our prompts may still be running on the server."
        )
        workers = [
            asyncio.ensure_future(self._work(rows, prompts)) for _ in range(self.pool.places)
        ]
        all_work: "asyncio.Future[Any]" = asyncio.ensure_future(asyncio.wait(workers))
        keeping_sheet = asyncio.ensure_future(self._keep_sheet())
        try:
            with self.console.live(self.meter):
                await self.console.done_or_stopped(all_work)
                if not all_work.done():
                    await self._let_rows_end(all_work)
            for worker in workers:
                if worker.done():
                    worker.result()  # a fault of ours must not pass in silence
        finally:
            await end_tasks([*workers, all_work, keeping_sheet])
            await self.pool.close()
        self.console.printer.close()
        await self._write_last_sheet()

    async def _let_rows_end(self, all_work: "asyncio.Future[Any]") -> None:
        """After Ctrl+C, gives the rows time to cancel their runs and to save what was made.

        At most limits.cancel and LAST_SAVING seconds: what takes longer is left.
        """
        name = self.console.what_stopped.name
        self.console.note(f"{name}: cancelling our prompts and nothing else.")
        runs = [attempt.run for attempt in self.attempts.values() if attempt.run is not None]
        all_over: "asyncio.Future[Any]" = asyncio.gather(*(run.over.wait() for run in runs))
        await asyncio.wait([all_over], timeout=self.settings.limits.cancel)
        await asyncio.wait([all_work], timeout=LAST_SAVING)
        await end_tasks([all_over])

    # -- the sheet ---------------------------------------------------------------------------------

    async def _keep_sheet(self) -> None:
        """Writes the sheet anew when rows have ended, in a small part of the time."""
        while self._sheet is not None:
            await self._row_has_ended.wait()
            self._row_has_ended.clear()
            began = time.monotonic()
            await in_thread(self._write_sheet)
            seconds = time.monotonic() - began
            await asyncio.sleep(max(SHEET_INTERVAL, SHEET_PAUSES * seconds))

    async def _write_last_sheet(self) -> None:
        """Writes the sheet with all rows, and shows it if --open asks for it."""
        if self._sheet is None or not self.tally.ended:
            return
        writing = asyncio.ensure_future(in_thread(self._write_sheet))
        seconds = LAST_SHEET
        if self.console.stopping:  # Ctrl+C must not wait for a drive that is slow
            seconds = LAST_SAVING
        await asyncio.wait([writing], timeout=seconds)
        trouble = f"{self._sheet.path} could not be written within {seconds:g} s."
        if writing.done():
            trouble = writing.result()
        await end_tasks([writing])
        if trouble:
            self.console.notice(f"The sheet was not written: {trouble}")
            return

        self._written_sheet = self._sheet.path
        if self.settings.open and not self.console.stopping:
            trouble = open_file(self._sheet.path)
            if trouble:
                self.console.notice(trouble)

    def _write_sheet(self) -> str:
        """Writes the sheet: "", or why it cannot be written."""
        assert self._sheet is not None
        try:
            self._sheet.write()
        except SaveError as error:
            return error.message
        return ""

    # -- the workers -------------------------------------------------------------------------------

    async def _work(self, rows: Iterator[Row], prompts: RowPrompts) -> None:
        """Runs one row after another, until there are no more or none can run any more."""
        while self.fatal is None:
            try:
                row = await self._next_row(rows)
                if row is None:
                    return
                await self._run_row(row, prompts)
            except Stopped:
                return
            except ServerError as error:
                self._begin_no_more_rows(error)

    def _begin_no_more_rows(self, error: RunnerError) -> None:
        """Lets the rows that are on their way end; ``error`` is fatal if none was before."""
        self.fatal = self.fatal or error
        self._no_more_rows.set()

    async def _unless_no_more_rows(self, work: Awaitable[Result]) -> Result:
        """The result of ``work``, which a row waits for before it begins.

        Raises Stopped if Ctrl+C or a fatal error comes first. A place taken at the same moment
        stays taken, which is no matter: no other row waits for it.
        """
        task = asyncio.ensure_future(work)
        try:
            await self.console.unless_stopped(done_or_set(task, self._no_more_rows))
            if self._no_more_rows.is_set():  # even if the work is done as well
                raise Stopped("No more rows will start.")
            return task.result()
        finally:
            await end_tasks([task])

    async def _next_row(self, rows: Iterator[Row]) -> Optional[Row]:
        """The next row that is not done yet, None at the end. Raises Stopped."""
        while True:
            async with self._reading:
                # Standard input may be slow.
                reading = in_thread(next, rows, None)
                row: Optional[Row] = await self._unless_no_more_rows(reading)
            if row is None or row.error or not self.manifest.lists_as_done(row):
                return row
            self.tally = self.tally._replace(skipped=self.tally.skipped + 1)

    async def _run_row(self, row: Row, prompts: RowPrompts) -> None:
        """Runs a row to its end; again, while its server loses it and --retries last.

        A row that a server does not take goes to another one. Raises Stopped, and ServerError if no
        row can run any more.
        """
        retries_left = self.settings.retries
        refused_by: Set[str] = set()  # addresses of servers
        while True:
            async with self._new_attempt(row, refused_by) as attempt:
                try:
                    ending = await self._run_attempt(attempt, prompts, retries_left > 0)
                except RunnerError as error:
                    must_repeat = retries_left > 0 and is_lost_by(error, attempt)
                    if must_repeat:
                        message = f"Row {row.number} is lost: {error.message} Submitting it again."
                        self.report(attempt.run, {"event": "notice", "message": message})
                        retries_left -= 1
                        continue
                    if self._must_move(attempt, error, prompts, refused_by):
                        continue
                    other_rows_can_run = prompts.has_uploaded_to(attempt.session.server)
                    self._note_error(attempt, error, other_rows_can_run)
                else:
                    self._note_ending(attempt, ending)
                return

    @contextlib.asynccontextmanager
    async def _new_attempt(self, row: Row, refused_by: Set[str]) -> AsyncIterator[Attempt]:
        """An attempt on a connection of its own: by that a load balancer chooses a server anew."""
        taking = self.pool.take_place(self.settings.limits.give_up, refused_by)
        member = await self._unless_no_more_rows(taking)
        attempt = Attempt(row, member, Session(member.server.fresh(), self.report))
        self.attempts[row.number] = attempt
        try:
            yield attempt
        finally:
            del self.attempts[row.number]
            self.pool.leave_place(member)
            self._start_timeouts()
            await attempt.session.close()

    def _is_behind_another(self, attempt: Attempt) -> bool:
        """Whether the same server still has a row of ours that came before this one."""
        on_server = (each for each in self.attempts.values() if each.member is attempt.member)
        return next(on_server) is not attempt

    def _start_timeouts(self) -> None:
        """Starts --timeout for rows that are not behind another one of ours any more."""
        for attempt in self.attempts.values():
            if attempt.watch is not None and not self._is_behind_another(attempt):
                attempt.watch.start_timeout()

    def _must_move(
        self, attempt: Attempt, error: RunnerError, prompts: RowPrompts, refused_by: Set[str]
    ) -> bool:
        """Whether a row that its server did not take, by ``error``, goes to another server.

        ``refused_by`` gets the address of a server that refuses the row itself: the row has failed
        when all have refused it.
        """
        if not self.pool.has_several:
            return False
        member = attempt.member
        if isinstance(error, PromptRejected):  # it may lack a class or a model that others have
            refused_by.add(member.url)
            return self.pool.has_other(refused_by)

        other_rows_can_run = prompts.has_uploaded_to(member.server)
        is_lost_with_server = is_lost_by(error, attempt)
        ends_one_row = exit_status_of_failed_row(error, is_lost_with_server, other_rows_can_run)
        if not isinstance(error, ServerError) or ends_one_row is not None:
            return False
        prompts.forget_uploads(member.server)
        self.pool.note_loss(member, error)
        return True

    async def _run_attempt(self, attempt: Attempt, prompts: RowPrompts, may_repeat: bool) -> Ending:
        """Connects, submits, follows and concludes. Raises ServerGone for a run to be repeated."""
        row, session = attempt.row, attempt.session
        if row.error:
            raise UsageError(f"The row cannot be read: {row.error}.")
        patience = session.limits.give_up
        if self.pool.has_several:
            patience = 0.0  # another server takes the row
        await self.console.unless_stopped(session.open(patience))
        new, seeds = await prompts.make(row, session.server)
        destination = self._make_destination(row, new.prompt)
        run = attempt.run = session.new_run(
            *(new.prompt, new_uuid(), new.extra, new.origin, new.texts),
            own_extra_data=self.own_extra_data,
        )
        attempt.entry.update(prompt_id=run.prompt_id, seeds=seeds, **new.texts.to_json())

        watch = attempt.watch = Watch(session, run, self.settings, self.console)
        if self._is_behind_another(attempt):
            watch.postpone_timeout()
        self.afterwards.note_run()
        await watch.until_stopped(session.submit)
        await watch.until_stopped(session.follow)

        is_lost_run = run.state.phase is Phase.LOST and watch.stop is None
        if is_lost_run:
            self._note_lost_run(attempt, run.state.reason, prompts)
            if may_repeat:
                raise ServerGone(f"{run.state.reason}.")
        ending = await self._conclude(session, run, watch.stop, destination)
        if may_repeat:
            await self._require_outputs(attempt, run, ending, prompts)
        if ending.exit_status is ExitStatus.OK:
            self.pool.note_done(attempt.member)
        return ending

    async def _require_outputs(
        self, attempt: Attempt, run: Run, ending: Ending, prompts: RowPrompts
    ) -> None:
        """Raises ServerGone for a run whose outputs were lost with the server."""
        is_lost_while_saved = ending.exit_status is ExitStatus.LOST and attempt.session.server.gone
        if is_lost_while_saved:
            raise ServerGone(f"{run.state.reason}.")
        is_not_saved = ending.exit_status is ExitStatus.NOT_SAVED
        if is_not_saved and self.pool.has_several:
            error = await ask_whether_it_answers(attempt.member)
            if error is not None:  # what was made is gone with the server
                self._note_lost_run(attempt, error.message.rstrip("."), prompts)
                raise ServerGone(error.message)

    def _note_lost_run(self, attempt: Attempt, reason: str, prompts: RowPrompts) -> None:
        """A run was lost: its server gets no rows until it answers, where there are others."""
        if self.pool.has_several:
            prompts.forget_uploads(attempt.member.server)
            self.pool.note_loss(attempt.member, ServerUnreachable(f"{reason}."))

    def _make_destination(self, row: Row, prompt: Prompt) -> Optional[Destination]:
        """Where the row's outputs are saved, if anywhere. Raises UsageError for a bad pattern."""
        folder = pattern_of_folder(self.settings)
        if not folder:
            return None
        destination = make_destination(self.settings, prompt, row.number, folder)
        return destination._replace(written=self._written)

    async def _conclude(
        self,
        session: Session,
        run: Run,
        stop: Optional[Stop],
        destination: Optional[Destination],
    ) -> Ending:
        """Concludes the run; only a row that succeeded is saved, also when Ctrl+C comes then."""
        if run.state.phase is not Phase.SUCCESS:
            destination = None
        stop = stop_of_row(run.state, bool(run.dropped), stop)
        verbose = self.settings.verbose
        return await conclude(session, run, stop, destination, whole_traceback=verbose)

    # -- how rows end ------------------------------------------------------------------------------

    def _note_error(self, attempt: Attempt, error: RunnerError, other_rows_can_run: bool) -> None:
        """Ends a row with ``error``, which is raised again if it ends the whole batch."""
        exit_status = exit_status_of_failed_row(
            error, is_lost_by(error, attempt), other_rows_can_run
        )
        if exit_status is None:
            raise error
        if isinstance(error, PromptRejected):
            attempt.entry["problems"] = [problem._asdict() for problem in error.problems]
        self._end_row(attempt, exit_status, error.message)

    def _note_ending(self, attempt: Attempt, ending: Ending) -> None:
        """Ends a row whose run has ended, well or not."""
        if ending.saved is not None:
            outputs = [{**output.to_json(), "path": path} for output, path in ending.saved.items()]
        else:
            outputs = [output_entry(attempt.session, output) for output in ending.outputs]
        attempt.entry.update(
            end=ending.report["status"], seconds=ending.report["seconds"], outputs=outputs
        )
        self._end_row(attempt, ending.exit_status, ending.report["message"])
        self._start_hooks(attempt, ending)

    def _start_hooks(self, attempt: Attempt, ending: Ending) -> None:
        """Starts the hooks after a row's run; no row waits for them."""
        run, number = attempt.run, attempt.row.number
        assert run is not None  # it has ended
        prompt_id = run.prompt_id

        def report(report: Report) -> None:
            about_row = {"prompt_id": prompt_id, "row": number, **report}
            self.console.report(None, about_row, f"[row {number}] ")

        self.afterwards.note_end(attempt.session, run, ending, report, number)

    def _end_row(self, attempt: Attempt, exit_status: ExitStatus, message: str) -> None:
        """Writes a row's line of the manifest, counts it, and reports it.

        Where the line cannot be written, no more rows are begun: nobody would know of them.
        """
        status = status_of_row(exit_status)
        if status == "failed" and self.pool.has_several:
            message = name_server(message, attempt.member.url)
        end: Dict[str, Any] = {
            "status": status,
            "exit_status": int(exit_status),
            "message": message,
        }
        if self.settings.first_row > 1:
            attempt.entry["first"] = self.settings.first_row  # for --resume
        try:
            self.manifest.append({**attempt.entry, **end, "time": round(time.time(), 3)})
        except SaveError as error:
            self._begin_no_more_rows(error)
        self._row_has_ended.set()
        count = getattr(self.tally, status)
        self.tally = self.tally._replace(**{status: count + 1})
        number = attempt.row.number
        report: Report = {
            "event": "row",
            "row": number,
            "place": number - self.settings.first_row + 1,
            "values": dict(attempt.row.values),
            "seeds": attempt.entry.get("seeds", {}),
            "draw": attempt.entry.get("draw"),
            "texts": attempt.entry.get("texts", {}),
            "server": attempt.member.url,
            "files": files_of(attempt.entry),
            "seconds": attempt.entry.get("seconds"),
            **end,
            "done": self.tally.ended,
            "total": self.tally.total,
        }
        self.report(attempt.run, report)

    # -- reporting ---------------------------------------------------------------------------------

    def report(self, run: Optional[Run], report: Report) -> None:
        """Reports what happened to a row's run; people see only READ_BY_PEOPLE."""
        event = report["event"]
        if self.settings.printer == "human" and event not in READ_BY_PEOPLE:
            return
        number = self._row_number(run)
        prefix = ""
        names_its_row = event in ("row", "saved", "output")
        if number is not None and not names_its_row:
            prefix = f"[row {number}] "
        prompt_id = None
        if run is not None:
            prompt_id = run.prompt_id
        report = {"prompt_id": prompt_id, "row": number, **report}
        self.console.report(None, report, prefix)

    def _row_number(self, run: Optional[Run]) -> Optional[int]:
        for number, attempt in self.attempts.items():
            if run is not None and attempt.run is run:
                return number
        return None

    def meter(self) -> Meter:
        """How far the batch is, for the moving part of the screen."""
        attempts = sorted(self.attempts.items(), key=lambda item: item[0])
        notes = (attempt.session.note for _, attempt in attempts)
        note = next(filter(None, notes), "")
        states = [(number, attempt.run.state) for number, attempt in attempts if attempt.run]
        drawn_states = states[:DRAWN_ROWS]
        return make_batch_meter(self.timed_tally(), drawn_states, time.monotonic(), note)

    def timed_tally(self) -> Tally:
        """The tally, with the seconds until now."""
        return self.tally._replace(seconds=time.monotonic() - self.began)

    def report_end(self) -> ExitStatus:
        """Reports how the batch ended."""
        exit_status = self._exit_status()
        tally = self.timed_tally()
        report: Report = {
            "event": "batch",
            "prompt_id": None,
            "done": tally.done,
            "failed": tally.failed,
            "skipped": tally.skipped,
            "cancelled": tally.cancelled,
            "seconds": round(tally.seconds, 3),
            "manifest": self.manifest.path or None,
            "sheet": self._written_sheet,
            "message": self._end_in_words(tally, exit_status),
            "exit_status": int(exit_status),
        }
        self.console.report(None, report)
        return exit_status

    def _end_in_words(self, tally: Tally, exit_status: ExitStatus) -> str:
        is_cut_short = self.console.stopping or self.fatal is not None
        message = tally.end_in_words(is_cut_short)
        if tally.done and self.settings.output:
            message += f"\nSaved in {folder_before_fields(self.settings.output)}"
        if self._written_sheet is not None:
            message += f"\nSheet: {self._written_sheet}"
        if self.fatal is not None:
            message += f"\n{self.fatal.message} {self.fatal.remedy}"
        if exit_status is not ExitStatus.OK and self.manifest.path:
            message += "\nRun the same command with --resume to run the rest."
            message += f" The manifest is {self.manifest.path}."
        return message

    def _exit_status(self) -> ExitStatus:
        if self.console.stopping:
            return self.console.what_stopped.exit_status
        if self.fatal is not None:
            return self.fatal.exit_status
        if self.tally.failed or self.tally.cancelled:
            return ExitStatus.FAILED
        return ExitStatus.OK
