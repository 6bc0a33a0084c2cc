"""--batch and --repeat: many runs of one workflow, a few of them in ComfyUI's queue at a time."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import time
from typing import (
    Any,
    BinaryIO,
    Dict,
    Generator,
    Iterator,
    Mapping,
    Optional,
    Sequence,
    TextIO,
    Tuple,
)

from comfyui_runner.conclusion import (
    THE_TIMEOUT,
    Ending,
    conclude,
    output_entry,
    stop_that_counts,
)
from comfyui_runner.console import Console
from comfyui_runner.documents import Prompt
from comfyui_runner.edits import apply_edits, with_values
from comfyui_runner.errors import (
    ExitStatus,
    PromptRejected,
    RunnerError,
    ServerError,
    ServerGone,
    Stopped,
    UsageError,
)
from comfyui_runner.extras.batches import (
    Row,
    Tally,
    check_columns,
    make_batch_meter,
    read_rows,
    row_edits,
    row_key,
    rows_done,
)
from comfyui_runner.interrupts import Stop
from comfyui_runner.loading import Loaded, resolve_edits
from comfyui_runner.meter import Meter
from comfyui_runner.nodes import InputRef
from comfyui_runner.reports import Report, exit_status_of, problem_report
from comfyui_runner.runs import Run
from comfyui_runner.saving import Destination
from comfyui_runner.server import Server, new_uuid
from comfyui_runner.session import Session, is_lost
from comfyui_runner.settings import Settings
from comfyui_runner.state import Phase
from comfyui_runner.steps import (
    ComfyUI,
    check_patterns,
    confirm,
    destination_of_row,
    load_workflow,
    prompt_of_run,
    require_somebody_to_ask,
    show_workflow,
    upload_files,
)
from comfyui_runner.text import duration, plain_json, plural
from comfyui_runner.threads import end_tasks, in_thread

#: What a person reads of a row's run, besides how the row ends.
READ_BY_PEOPLE = ("problem", "failure", "not_saved", "connection", "notice", "row")


async def run_batch(settings: Settings, console: Console) -> ExitStatus:
    """Runs the workflow for every row that is not done yet; a row that fails does not stop the rest."""
    async with ComfyUI(settings, console) as comfyui:
        loaded = await load_workflow(settings, comfyui, console)
        show_workflow(loaded, console)
        require_somebody_to_ask(settings, console)
        check_patterns(settings, loaded.prompt)
        server = await comfyui.find()

        # a file is read through once before the first row runs; a pipe can be read once only
        total = (
            None
            if is_streamed(settings.batch)
            else sum(1 for _ in rows_of(settings, loaded, console.stdin))
        )
        path = manifest_path(settings)
        before = read_manifest(path, settings.resume)
        what = "the rows as they come" if total is None else plural(total, "row")
        confirm(f"Run {what}? [y/N] ", settings, console)

        with open_manifest(path) as manifest:
            job = BatchJob(
                settings, loaded, comfyui, server, console, manifest, Tally(total), before
            )
            rows = rows_of(settings, loaded, console.stdin)
            try:
                await job.run(rows)
            finally:
                close_rows(rows)
        return job.report_end(path)


# -- the rows ------------------------------------------------------------------------------------------


def is_streamed(batch: Optional[str]) -> bool:
    """Whether the rows come from standard input or a pipe, so that they can be read once only."""
    if batch is None:
        return False
    if batch == "-":
        return True
    return os.path.exists(batch) and not os.path.isfile(batch) and not os.path.isdir(batch)


def rows_of(settings: Settings, loaded: Loaded, stdin: TextIO) -> Generator[Row, None, None]:
    """The rows of --batch, each --repeat times. Raises UsageError, EditError for a bad header."""
    if settings.batch is None:
        yield from (Row(number) for number in range(1, settings.repeat + 1))
        return
    try:
        with contextlib.ExitStack() as stack:
            file = stdin
            if settings.batch != "-":
                file = stack.enter_context(open(settings.batch, encoding="utf-8-sig", newline=""))
            for row in rows_in(file, loaded):
                for again in range(settings.repeat):
                    yield row._replace(number=(row.number - 1) * settings.repeat + again + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise UsageError(f"--batch {settings.batch} cannot be read: {reason}.") from None


def close_rows(rows: Generator[Row, None, None]) -> None:
    """Closes the file of rows that are not all read."""
    try:
        rows.close()
    except ValueError:
        pass  # a thread still waits for a line of standard input


def rows_in(file: TextIO, loaded: Loaded) -> Iterator[Row]:
    """The rows of a CSV or JSON Lines file. The columns of a CSV file are checked with its first good row."""
    lines = iter(file)
    first = next((line for line in lines if line.strip("\ufeff \t\r\n")), "").lstrip("\ufeff")
    json_lines = first.lstrip().startswith("{")
    must_check_columns = not json_lines
    for row in read_rows(itertools.chain([first], lines), json_lines):
        if must_check_columns and not row.error:
            check_columns(loaded.prompt, row.values, loaded.object_info)
            must_check_columns = False
        yield row


# -- the manifest --------------------------------------------------------------------------------------


def manifest_path(settings: Settings) -> str:
    """Where each row's end is written: --manifest, else beside the outputs, the rows or the workflow."""
    if settings.manifest:
        return settings.manifest
    if settings.output and "{" not in settings.output:
        return os.path.join(settings.output, "manifest.jsonl")
    stem = settings.batch
    if stem in (None, "-"):
        stem = settings.workflow
    if stem == "-":
        stem = "batch"
    return os.path.splitext(str(stem))[0] + ".manifest.jsonl"


def read_manifest(path: str, resume: bool) -> Dict[int, str]:
    """The rows that the manifest lists as done, with their keys. Raises UsageError for one without --resume."""
    if not os.path.exists(path) or not os.path.getsize(path):
        return {}
    if not resume:
        raise UsageError(
            f"There is a manifest of an earlier batch: {path}.",
            "Add --resume to go on with it, or name another with --manifest.",
        )
    try:
        with open(path, encoding="utf-8", errors="replace") as lines:
            return rows_done(lines)
    except OSError as error:
        raise UsageError(
            f"The manifest {path} cannot be read: {error.strerror or error}."
        ) from None


def open_manifest(path: str) -> BinaryIO:
    """The manifest, to append to. Raises UsageError."""
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        manifest = open(path, "ab")  # closed by the caller
    except OSError as error:
        raise UsageError(
            f"The manifest {path} cannot be written: {error.strerror or error}."
        ) from None
    if manifest.tell():
        manifest.write(b"\n")  # after a crash the last line may be cut off
    return manifest


# -- the job -------------------------------------------------------------------------------------------


class BatchJob:
    """A batch that runs: how far it is, and what its workers do with a row."""

    def __init__(
        self,
        settings: Settings,
        loaded: Loaded,
        comfyui: ComfyUI,
        server: Server,
        console: Console,
        manifest: BinaryIO,
        tally: Tally,
        before: Mapping[int, str],
    ) -> None:
        self.settings = settings
        self.loaded = loaded
        self.comfyui = comfyui
        self.server = server
        self.console = console
        self.manifest = manifest
        self.tally = tally
        self.before = before  #: rows that an earlier batch has done, with their keys
        self.began = time.monotonic()
        self.runs: Dict[int, Tuple[Session, Run]] = {}  #: on their way, by the number of the row
        self.fatal: Optional[RunnerError] = None  #: the server is gone: no row can run
        self._next_row = asyncio.Lock()
        self._uploading = asyncio.Lock()
        self._uploaded: Optional[Dict[InputRef, str]] = None

    async def run(self, rows: Iterator[Row]) -> None:
        """Runs the rows with --in-flight workers, until there are no more or Ctrl+C comes."""
        self.console.interrupts.farewell = (
            "Left at once: prompts of ours may still run on the server."
        )
        workers = [asyncio.ensure_future(self._work(rows)) for _ in range(self.settings.in_flight)]
        everything: "asyncio.Future[Any]" = asyncio.ensure_future(asyncio.wait(workers))
        try:
            with self.console.live(self.meter):
                await self.console.first_of(everything)
                if not everything.done():
                    name = self.console.interrupts.name
                    self.console.notice(f"{name}: cancelling our prompts, and nothing else.")
                    await asyncio.gather(
                        *(session.cancel(run) for session, run in list(self.runs.values()))
                    )
                    await asyncio.wait([everything], timeout=2.0)
            for worker in workers:
                if worker.done():
                    worker.result()  # a fault of ours must not pass in silence
        finally:
            await end_tasks([*workers, everything])
        self.console.printer.close()

    # -- telling -------------------------------------------------------------------------------------

    def counted(self) -> Tally:
        """The tally as it is now."""
        return self.tally._replace(seconds=time.monotonic() - self.began)

    def meter(self) -> Meter:
        """What a live terminal shows."""
        flying = sorted(self.runs.items(), key=lambda item: item[0])
        note = next((session.note for _, (session, _) in flying if session.note), "")
        states = [(number, run.state) for number, (_, run) in flying[:8]]
        return make_batch_meter(self.counted(), states, time.monotonic(), note)

    def report(self, run: Optional[Run], report: Report) -> None:
        """Reports what happened to a row's run; a person reads only how the rows end."""
        number = next((number for number, (_, other) in self.runs.items() if other is run), None)
        event = report["event"]
        if self.settings.printer == "human" and event not in READ_BY_PEOPLE:
            return
        names_its_row = event in ("row", "saved", "output")
        prefix = "" if number is None or names_its_row else f"[row {number}] "
        prompt_id = run.prompt_id if run else None
        fields = {"prompt_id": prompt_id, "row": number}
        self.console.report(None, {**fields, **report}, prefix)

    def report_end(self, manifest_path: str) -> ExitStatus:
        """Reports how the batch ended."""
        exit_status = self._exit_status()
        tally = self.counted()
        message = f"{plural(tally.done, 'row')} done in {duration(tally.seconds)}"
        if tally.skipped:
            message += f", {tally.skipped} were done before"
        if tally.failed:
            message += f", {tally.failed} failed"
        if self.fatal is not None:
            message += f"\n{self.fatal.message} {self.fatal.remedy}"
        if exit_status:
            message += (
                f"\nThe same command with --resume does what is left. The manifest: {manifest_path}"
            )
        report = {
            "event": "batch",
            "prompt_id": None,
            "done": tally.done,
            "failed": tally.failed,
            "skipped": tally.skipped,
            "seconds": round(tally.seconds, 3),
            "manifest": manifest_path,
            "message": message,
            "exit_status": int(exit_status),
        }
        self.console.report(None, report)
        return exit_status

    def _exit_status(self) -> ExitStatus:
        if self.console.stopping:
            return self.console.interrupts.exit_status
        if self.fatal is not None:
            return self.fatal.exit_status
        return ExitStatus.FAILED if self.tally.failed else ExitStatus.OK

    # -- working -------------------------------------------------------------------------------------

    async def _work(self, rows: Iterator[Row]) -> None:
        """Runs one row after another, until there are no more."""
        while self.fatal is None:
            try:
                async with self._next_row:  # standard input may be slow
                    row = await self.console.unless_stopped(in_thread(next, rows, None))
                if row is None:
                    return
                done_before = self.before.get(row.number) == row_key(row.values)
                if done_before and not row.error:
                    self.tally = self.tally._replace(skipped=self.tally.skipped + 1)
                    continue
                for retries_left in range(self.settings.retries, -1, -1):
                    must_repeat = await self._run_row(row, retries_left)
                    if not must_repeat:
                        break
            except Stopped:
                return
            except ServerError as error:
                self.fatal = self.fatal or error

    async def _run_row(self, row: Row, retries_left: int) -> bool:
        """One run of a row. Whether it must be repeated: its server lost it, and retries are left.

        It has a connection of its own, by which a load balancer chooses a server anew.
        """
        entry: Dict[str, Any] = {
            "row": row.number,
            "key": row_key(row.values),
            "values": row.values,
        }
        session = Session(self.server.fresh(), self.report)
        try:
            if row.error:
                raise UsageError(f"The row cannot be read: {row.error}.")
            await self.console.unless_stopped(session.open(self.settings.limits.give_up))
            prompt, drawn = await self._prompt_of_row(row, session.server)
            if self.console.stopping:  # while a file of the row was uploaded
                raise Stopped("Stopped: the row was not submitted.")
            destination = self._destination(prompt, row.number)
            run = session.new_run(prompt, new_uuid(), self.loaded.extra(prompt))
            self.runs[row.number] = session, run
            seeds = {
                f"{ref.node_id}.{ref.input}": prompt[ref.node_id]["inputs"].get(ref.input)
                for ref in drawn
            }
            entry.update(prompt_id=run.prompt_id, seeds=seeds)
            await self._execute(session, run, entry)
            if run.state.phase is Phase.LOST and retries_left and not run.cancelling:
                raise ServerGone(run.state.reason + ".")
            ending = await self._conclude(session, run, destination)
            if ending.exit_status is ExitStatus.LOST and session.server.gone:
                raise ServerGone(run.state.reason + ".")
            self._note_ending(session, run, entry, ending)
        except (ServerError, Stopped) as error:
            refused = isinstance(error, ServerError) and error.status in (400, 413, 500)
            gone = isinstance(error, ServerError) and is_lost(session.server, error)
            takes_other_rows = refused and self._uploaded is not None
            if not gone and not takes_other_rows:
                raise
            if gone and retries_left:
                message = f"Row {row.number} is lost: {error.message} Submitting it again."
                self.report(self._run_of(row), {"event": "notice", "message": message})
                return True
            error.exit_status = ExitStatus.LOST if gone else ExitStatus.REJECTED
            self._end_row(self._run_of(row), entry, "failed", error)
        except RunnerError as error:
            self._end_row(self._run_of(row), entry, "failed", error)
        finally:
            self.runs.pop(row.number, None)
            await session.close()
        return False

    def _run_of(self, row: Row) -> Optional[Run]:
        return self.runs[row.number][1] if row.number in self.runs else None

    def _destination(self, prompt: Prompt, number: int) -> Optional[Destination]:
        """Where a row's outputs are saved: a folder for each row, unless the patterns tell them apart."""
        folder = self.settings.output
        pattern = folder or ""
        rows_are_told_apart = folder is None or "{" in folder or bool(self.settings.name)
        if not rows_are_told_apart:
            pattern = os.path.join(str(folder), "{row}")
        destination = destination_of_row(self.settings, prompt, number, pattern)
        return None if folder is None else destination

    async def _prompt_of_row(self, row: Row, server: Server) -> Tuple[Prompt, Sequence[InputRef]]:
        """The workflow with the row's values, files and seeds, and which seeds were drawn."""
        loaded, object_info = self.loaded, self.loaded.object_info
        row_changes = row_edits(loaded.prompt, row, object_info)
        edits, uploads = resolve_edits(row_changes, loaded.prompt, object_info)
        prompt, drawn = apply_edits(loaded.prompt, edits, object_info)
        set_by_row = {edit.ref for edit in edits}
        if self.settings.seed.isdigit() and self.settings.repeat > 1:
            again = (row.number - 1) % self.settings.repeat
            seeds = [ref for ref in loaded.seeds if ref not in set_by_row]
            prompt = with_values(prompt, dict.fromkeys(seeds, int(self.settings.seed) + again))
        async with self._uploading:
            each_server_has_its_own_files = bool(server.affinity)
            if self._uploaded is None or each_server_has_its_own_files:
                self._uploaded = await upload_files(loaded, server, self.console)
        uploaded = {ref: value for ref, value in self._uploaded.items() if ref not in set_by_row}
        for ref, path in uploads:
            uploaded[ref] = await self.console.unless_stopped(in_thread(server.upload_file, path))
        drawn += [ref for ref in loaded.drawn if ref not in set_by_row]
        return prompt_of_run(loaded._replace(prompt=prompt, drawn=tuple(drawn)), uploaded), drawn

    async def _execute(self, session: Session, run: Run, entry: Dict[str, Any]) -> None:
        """Submits and follows; --timeout cancels the run. Raises what the server refuses."""
        work = asyncio.ensure_future(self._submit_and_follow(session, run))
        try:
            await asyncio.wait([work], timeout=self.settings.timeout)
            if not work.done():
                await session.cancel(run)
                await asyncio.wait([work], timeout=2.0)
            if work.done():
                await work  # raises what it failed with
        except PromptRejected as error:
            problems = await session.explain(error.answer, run.prompt)
            for problem in problems:
                self.report(run, problem_report(problem))
            entry["problems"] = [problem._asdict() for problem in problems]
            raise
        finally:
            await end_tasks([work])

    async def _submit_and_follow(self, session: Session, run: Run) -> None:
        await session.submit(run)
        await session.follow(run)

    async def _conclude(
        self, session: Session, run: Run, destination: Optional[Destination]
    ) -> Ending:
        stop = stop_that_counts(run.state, self._what_stopped(run))
        exit_status = exit_status_of(run.state, bool(run.dropped))
        if stop is not None and run.state.phase is Phase.SUCCESS:
            stop = Stop(stop.name, exit_status)  # the row is done
        if (stop.exit_status if stop else exit_status) not in (ExitStatus.OK, ExitStatus.PARTIAL):
            destination = None
        traceback_frames = None if self.settings.verbose else 2
        return await conclude(session, run, stop, destination, traceback_frames)

    def _what_stopped(self, run: Run) -> Optional[Stop]:
        if not run.cancelling:
            return None
        if self.console.stopping:
            return self.console.what_stopped
        return Stop(THE_TIMEOUT, ExitStatus.TIMEOUT)

    def _note_ending(
        self, session: Session, run: Run, entry: Dict[str, Any], ending: Ending
    ) -> None:
        outputs = [output_entry(session, output) for output in ending.outputs]
        if ending.saved is not None:
            outputs = [{**output._asdict(), "path": path} for output, path in ending.saved.items()]
        entry.update(end=ending.report["status"], seconds=ending.report["seconds"], outputs=outputs)
        how = RunnerError(ending.report["message"])
        how.exit_status = ending.exit_status
        self._end_row(run, entry, "failed" if ending.exit_status else "done", how)

    def _end_row(
        self, run: Optional[Run], entry: Dict[str, Any], status: str, error: RunnerError
    ) -> None:
        """Writes a row's line of the manifest, in one piece, and reports it."""
        line = {
            **entry,
            "status": status,
            "exit_status": int(error.exit_status),
            "message": error.message,
            "time": round(time.time(), 3),
        }
        text = json.dumps(plain_json(line), ensure_ascii=False) + "\n"
        self.manifest.write(text.encode(errors="replace"))
        self.manifest.flush()
        counted = (
            {"done": self.tally.done + 1} if status == "done" else {"failed": self.tally.failed + 1}
        )
        self.tally = self.tally._replace(**counted)
        report = {
            "event": "row",
            "row": entry["row"],
            "status": status,
            "message": error.message,
            "exit_status": line["exit_status"],
            "done": self.tally.ended,
            "total": self.tally.total,
        }
        self.report(run, report)
