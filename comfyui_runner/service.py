"""Continuous mode: the runs of the service, from POST /prompt to their end.

The service lives in two worlds:

- the loop, in which the sessions follow the runs: coroutines, and what they call, run there;
- the threads, one for each HTTP connection, in which the routes are answered.

A thread calls into the loop by run_in_loop(), or by call_soon_threadsafe() to have something shown,
which it does not wait for. One lock guards the runs, the streams and the held workflow, which both
worlds change.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from contextlib import suppress
from functools import partial
from typing import (
    Any,
    Callable,
    Coroutine,
    Dict,
    Iterable,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
)

from comfyui_runner import __version__
from comfyui_runner.afterwards import Afterwards
from comfyui_runner.backend import Backend
from comfyui_runner.call_files import upload_call_file
from comfyui_runner.call_values import read_call_values
from comfyui_runner.conclusion import TIMED_OUT, conclude
from comfyui_runner.documents import Prompt
from comfyui_runner.edits import with_values
from comfyui_runner.errors import PromptRejected, RunnerError, ServerAnswer, ServerUnreachable
from comfyui_runner.event_streams import EventStreams
from comfyui_runner.files import WrittenFiles
from comfyui_runner.guard import Guard
from comfyui_runner.held_workflow import HeldCopy, HeldWorkflow
from comfyui_runner.interrupts import Stop
from comfyui_runner.limits import RECEIVED_BYTES
from comfyui_runner.loading import Loaded
from comfyui_runner.messages import HttpError
from comfyui_runner.nodes import InputRef, class_of
from comfyui_runner.others import Others, SettledOthers, count_others
from comfyui_runner.outputs import SENDS_PICTURES, Output
from comfyui_runner.partner_nodes import (
    find_partner_nodes,
    has_credentials,
    key_for_nodes,
    spending_in_words,
)
from comfyui_runner.problems import Problem
from comfyui_runner.redaction import Secrets, secrets_in_extra_data
from comfyui_runner.refusals import Refusal, RefusalLog
from comfyui_runner.reports import (
    ENTRIES_SHOWN,
    Report,
    add_first_problem,
    exit_status_of,
    failure_report,
    plain_notice,
    problem_report,
)
from comfyui_runner.run_prompts import RunPrompt, UploadAgain
from comfyui_runner.run_records import RunRecord, RunRecords
from comfyui_runner.runs import Run
from comfyui_runner.saving import Destination
from comfyui_runner.server import Server, new_uuid
from comfyui_runner.service_files import upload_refusal
from comfyui_runner.session import Session
from comfyui_runner.spool import Spool
from comfyui_runner.state import Phase, lost
from comfyui_runner.state_keeper import Restored, StateKeeper
from comfyui_runner.stored_state import (
    StoredRun,
    TakeUp,
    how_to_take_up,
    seconds_left,
    texts_of_run,
    unpack_prompt,
)
from comfyui_runner.text import JsonObject, plural
from comfyui_runner.threads import done_or_set, end_tasks, in_thread
from comfyui_runner.waiting import WaitingRoom, wait_unless_left
from comfyui_runner.workflow_list import WorkflowList

#: Seconds between two checks of ComfyUI while it answers, and while it does not.
CHECK_INTERVAL = 15.0
CHECK_INTERVAL_IN_TROUBLE = 2.0

#: Seconds between two checks for runs that have changed, whose events are then sent.
PUBLISH_INTERVAL = 0.1

#: For so many seconds after a GET /preview, somebody is assumed to look at previews.
LOOK_SECONDS = 60.0

#: The number of other people's prompts is shown when it has been the same for so many seconds.
OTHERS_SETTLE = 0.5

#: For so many seconds, a prompt is posted again if the POST fails: the client is waiting.
POST_PATIENCE = 5.0

#: For so many seconds, a run whose pictures only come over the WebSocket waits for that to open.
SOCKET_PATIENCE = 3.0

#: When the service stops, the last reports and downloads of runs may take so many seconds.
CONCLUDE_SECONDS = 2.0

#: How a run ended that an earlier process did not send to ComfyUI.
NEVER_ARRIVED = (
    "ComfyUI never got the prompt: the service ended before it sent it, and does not send it again."
)

#: How a run ended where a fault of ours prevented its conclusion.
FAILED_AT_THE_END = "The runner failed at the end of the run: its outputs are only in ComfyUI."


class ServiceOptions(NamedTuple):
    """What the service is asked to do."""

    load: Callable[[str], Loaded]  # reads the workflow at a path
    secrets: Secrets  # what is hidden in the answers and in the events
    guard: Guard
    auto_execute: bool  # an upload starts a run
    max_queue: int  # runs that may wait
    output: Optional[str]  # the folder that outputs are saved in
    overwrite: bool
    timeout: Optional[float]  # seconds after which a run is cancelled
    public_url: str  # where clients reach the service; "": where their requests say
    api_key: str  # of a Comfy account, for nodes that cost credits
    allow_spend: bool  # whether these may run
    afterwards: Afterwards  # what is done when runs have ended
    comfyui_is_shown: bool = False  # people have been shown which ComfyUI answers
    # the limit of the `run` events about one run: one with thousands of nodes has large ones
    event_bytes_per_second: float = 1e6


class Service:
    """The held workflow, the runs and the event streams, and the ComfyUI behind them.

    ``report(prompt_id, report)`` shows on the console what happens. ``keeper`` stores the runs and
    the held workflow, and ``restored`` is what it has stored of an earlier process. ``loaded`` is
    the first workflow; ``paths`` are the files of all that can be held, if they are several. Must
    be made in the loop.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        loaded: Loaded,
        options: ServiceOptions,
        report: Callable[[Optional[str], Report], None],
        keeper: StateKeeper,
        restored: Restored,
        paths: Sequence[str] = (),
    ) -> None:
        # Both worlds take it, but only for moments, and never while something is awaited or ComfyUI
        # is asked: the loop would stand still. It is reentrant because a new revision is published
        # under it.
        self.lock = threading.RLock()
        self.options = options
        self.backend = Backend(servers, is_shown=options.comfyui_is_shown)
        self.streams = EventStreams(self.lock, options.secrets)
        self.keeper = keeper
        self.records = RunRecords(self.lock, keeper, restored.last_number)
        self.refusals = RefusalLog()
        self.spool = Spool()
        self.network_url: Optional[str] = None  #: where other machines reach us; None: nowhere
        self.looked_at = float("-inf")  #: when a preview was last asked for
        self.others = SettledOthers(OTHERS_SETTLE)
        self.waiting_room = WaitingRoom()
        self.held = HeldWorkflow(loaded, self.lock, self._note_revision)
        self.workflows = WorkflowList([loaded.path, *paths[1:]], self.held, options.load, self.lock)
        self.session = Session(self.backend.server, self.report)
        self.session.client_id = restored.client_id or self.session.client_id
        self.stopping = asyncio.Event()
        self._show = report
        self._problems: Sequence[Problem] = []  # of the workflow, as they were last found
        self._loop = asyncio.get_event_loop()
        self._uploading = threading.Lock()  # a file is read by one upload at a time
        self._finishing: Set["asyncio.Future[None]"] = set()
        self._to_take_up = [self._restore(run) for run in restored.runs]

    # -- in the loop: ComfyUI, and what changes --------------------------------------------------

    async def follow(self) -> None:
        """Keep in touch with ComfyUI and publish what changes, until this task is cancelled."""
        self.session.begin()
        for record in self._to_take_up:
            self._finish_later(self._take_up(record))
        last_check = float("-inf")
        while True:
            interval = CHECK_INTERVAL_IN_TROUBLE
            if self.backend.connected and self.session.connected:
                interval = CHECK_INTERVAL
            if time.monotonic() - last_check >= interval:
                await self.check_comfyui()
                last_check = time.monotonic()

            self.publish_changed_runs()
            now = time.monotonic()
            self._publish_others(now)
            self._show_refusals(now)
            self.options.afterwards.look_around(self._has_runs, now, partial(self.report, None))
            await asyncio.sleep(PUBLISH_INTERVAL)

    def _has_runs(self) -> bool:
        return bool(self.records.not_over())

    async def check_comfyui(self) -> None:
        """See whether ComfyUI answers, and publish it if that has changed."""
        check = await self.backend.check()
        self.session.server = self.backend.server
        if check.news:
            self._show(None, plain_notice(check.news))
        for warning in check.warnings:
            self._notify(warning)
        if not check.has_changed:
            return
        if self.backend.connected:
            await self._check_workflow()
            # The same revision again: clients can now see more about its inputs.
            self._publish_revision(self.held.now.revision)
        self.streams.publish("status", self.status())

    async def _check_workflow(self) -> None:
        """Show what ComfyUI would refuse of the held workflow, such as a model that it lacks.

        The same problems are not shown again when ComfyUI comes back, unless they were gone
        meanwhile.
        """
        origin = self.held.origin
        prompt, _ = await in_thread(self.backend.name_models, self.held.now.prompt)
        _, problems = await in_thread(self.backend.find_problems, prompt, origin)
        are_shown = problems == self._problems
        self._problems = problems
        if not problems or are_shown:
            return
        self._notify("ComfyUI would refuse to run the workflow as it is:")
        for problem in problems[:ENTRIES_SHOWN]:
            self._show(None, problem_report(problem))
        rest = len(problems) - ENTRIES_SHOWN
        if rest > 0:
            more = plural(rest, "more problem")
            self._notify(f"{more}.")

    def _publish_others(self, now: float) -> None:
        """Publish how many prompts of others are in ComfyUI's queue, if that has changed."""
        if self.others.look(self._count_others(), now):
            self.streams.publish("status", self.status())

    def _count_others(self) -> Optional[Others]:
        """The prompts in ComfyUI's queue that are not ours, None while that is not known.

        Behind a load balancer it never is: each server has a queue of its own.
        """
        if not self.backend.connected or self.backend.server.affinity:
            return None
        # ComfyUI sends its length over the WebSocket when it changes. Where a connection has fallen
        # silent, the one that a check has read may be newer.
        newest = self.session.queue_length
        if self.backend.queue_length.at > newest.at:
            newest = self.backend.queue_length
        phases = [record.phase for record in self.records.not_over()]
        ours = sum(not phase.over for phase in phases)
        return count_others(newest, ours, ours_is_running=Phase.RUNNING in phases)

    def _show_refusals(self, now: float) -> None:
        """Show how many more requests were refused than were shown at once."""
        for report in self.refusals.take_due(now):
            self._show(None, report)

    def report(self, run: Optional[Run], report: Report) -> None:
        """Show what a session reports, and publish it."""
        if report["event"] == "output":
            return  # GET /runs/{prompt_id} lists them
        prompt_id = None
        if run is not None:
            prompt_id = run.prompt_id
        self._show(prompt_id, report)
        if prompt_id is not None:
            self.records.mark_changed(prompt_id)
        event = {"prompt_id": prompt_id, "time": round(time.time(), 3), **report}
        self.streams.publish("report", event, prompt_id)

    def _notify(self, message: str) -> None:
        self._show(None, {"event": "notice", "message": message})

    def _notify_from_thread(self, message: str) -> None:
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._notify, message)

    def publish_changed_runs(self) -> None:
        """Send a `run` event of each run that has changed, unless a large one was just sent."""
        for record in self.records.take_changed():
            self._store_phase(record)
            is_due = record.throttle.is_due(time.monotonic())
            if is_due or record.over.is_set():
                self._publish_run(record)
            else:
                self.records.mark_changed(record.prompt_id)  # the next call sends it

    def _publish_run(self, record: RunRecord) -> None:
        prompt_id = record.prompt_id
        # Not by the Host of a request: the event goes to all clients.
        shown = record.to_json(self.options.public_url)
        size = self.streams.publish("run", shown, prompt_id)
        record.throttle.interval = size / self.options.event_bytes_per_second
        record.throttle.restart(time.monotonic())
        if record.run.preview is not record.published_preview:
            record.published_preview = record.run.preview
            self.streams.publish("preview", {"prompt_id": prompt_id}, prompt_id)

    def remove_run(self, prompt_id: str) -> None:
        """Forget a run that has ended, and publish that. Called in a thread."""
        self.records.remove(prompt_id)
        self.streams.publish("removed", {"prompt_id": prompt_id}, prompt_id)

    def _publish_revision(self, revision: int) -> None:
        self.streams.publish("workflow", {"revision": revision})

    def _note_revision(self, revision: int) -> None:
        """The held workflow has changed: publish and store it."""
        self._publish_revision(revision)
        self.keeper.hold(self.workflows.as_stored())

    def _store_phase(self, record: RunRecord) -> None:
        """Store the phase of a run that has not ended. _end() stores its end and all of it."""
        phase = record.phase
        if phase.over or phase is record.stored_phase:
            return
        record.stored_phase = phase
        self.keeper.change(record.prompt_id, phase, record.is_cancelled)

    # -- in the loop: runs of an earlier process -------------------------------------------------

    def _restore(self, stored: StoredRun) -> RunRecord:
        """The record of a run that an earlier process has started, and that had not ended."""
        run = Run(unpack_prompt(stored.prompt), stored.prompt_id, time.monotonic(), asyncio.Event())
        run.texts = texts_of_run(stored)
        run.most_picture_bytes = RECEIVED_BYTES
        if stored.phase is not Phase.SUBMITTING:
            run.state = run.state._replace(phase=Phase.QUEUED)
        record = RunRecord(run, self.session, stored.created)
        record.stored_phase = stored.phase
        record.is_cancelled = stored.is_cancelled
        record.is_found = False
        self.records.take_up(record, stored.number)
        return record

    async def _take_up(self, record: RunRecord) -> None:
        """Find a run of an earlier process in ComfyUI and follow it to its end. Never sends it."""
        while not self.backend.connected:
            if self.stopping.is_set():
                return  # the next process takes it up
            await asyncio.sleep(PUBLISH_INTERVAL)
        await self._finish(record)

    async def _find_again(self, record: RunRecord) -> bool:
        """Look up a run of an earlier process in ComfyUI; False if ComfyUI never got it."""
        run = record.run
        self.session.adopt(run)
        record.is_found = True
        how = how_to_take_up(record.stored_phase, record.is_cancelled)
        if how is TakeUp.CANCEL:
            await self.session.cancel(run)
        elif how is TakeUp.LOOK_UP:
            await self.session.find_again(run)
            return run.state.phase is not Phase.REJECTED
        return True

    # -- in the loop: a run from its start to its end --------------------------------------------

    async def launch(self, new: RunPrompt, notices: Sequence[str]) -> Tuple[RunRecord, JsonObject]:
        """Submit a run, report ``notices`` about it, and follow it.

        Returns its record and ComfyUI's answer. A run that was lost meanwhile is over: its record
        says why.

        Raises HttpError 429 if too many runs wait, 409 if the prompt_id among its extra fields is
        taken, 403 if it may not spend what it costs, 503 if the service stops meanwhile, and what
        Session.submit() raises.
        """
        key = self._key_for(new.prompt, new.extra)
        session, prompt = await self._session_for(new.prompt, new.uploads)
        await wait_for_socket(session, prompt)
        prompt_id = new.extra.get("prompt_id")
        if prompt_id is not None:
            await self._require_new(prompt_id, session)
        run = session.new_run(
            prompt,
            prompt_id or new_uuid(),
            extra=new.extra,
            origin=new.origin,
            texts=new.texts,
            own_extra_data={**self._preview_wish(time.monotonic()), **key},
        )
        run.patience = POST_PATIENCE
        run.most_picture_bytes = RECEIVED_BYTES
        record = RunRecord(run, session)
        refusal = None
        # Nothing is awaited between the check of ``stopping`` and the adding of the run: so stop()
        # cancels it, or it is not added.
        if self.stopping.is_set():
            refusal = service_stopping()
        elif not self.records.add(record, self.options.max_queue):
            refusal = self._queue_full()
        if refusal is not None:
            await self._leave(record)
            raise refusal

        for notice in notices:
            self.report(run, plain_notice(notice))
        answer = await self._submit(record)
        self._store_phase(record)
        finishing = self._finish_later(self._finish(record))
        await self._look(record)
        if record.phase is Phase.LOST:
            await asyncio.wait([finishing])
        if not answer:  # it was lost on its way, or with the run
            answer = {"prompt_id": run.prompt_id, "number": None, "node_errors": {}}
        return record, answer

    def _preview_wish(self, now: float) -> Mapping[str, str]:
        """The extra_data that asks ComfyUI for previews of a run, if somebody looks at them.

        They cost time, and ComfyUI makes none by default. Versions before 0.5.0 ignore the wish. If
        the client's own extra_data has another one, that counts.
        """
        is_looked_at = len(self.streams) > 0 or now - self.looked_at < LOOK_SECONDS
        if not is_looked_at:
            return {}
        return {"preview_method": "auto"}

    def _key_for(self, prompt: Prompt, extra: JsonObject) -> Mapping[str, str]:
        """The extra_data with the key of the account, if ``prompt`` has nodes that cost credits.

        {} if ``extra``, more fields of POST /prompt, has a key of its own, whose account then pays.
        Raises HttpError 403 without --allow-spend.
        """
        if not self.options.api_key or has_credentials(extra):
            return {}
        node_ids = find_partner_nodes(prompt, self.backend.object_info)
        if not node_ids:
            return {}
        if not self.options.allow_spend:
            words = spending_in_words(prompt, node_ids)
            message = f"{words} The service was started without --allow-spend: nothing was run."
            raise HttpError(403, "spending_not_allowed", message)
        return key_for_nodes(self.options.api_key)

    def _queue_full(self) -> HttpError:
        waiting = plural(self.records.count_waiting(), "run")
        message = f"The queue of this service is full: {waiting} waiting (--max-queue)."
        return HttpError(429, "queue_full", message, headers=(("Retry-After", "10"),))

    async def _session_for(
        self, prompt: Prompt, uploads: Iterable[Tuple[InputRef, UploadAgain]]
    ) -> Tuple[Session, Prompt]:
        """The session of a run of ``prompt``, and the prompt with the names of its files there.

        A load balancer chooses a server for each connection. So behind one, each run has its own
        session, and its files are uploaded to that server: those of the held workflow, and
        ``uploads``, which only this run has.
        """
        if not self.backend.server.affinity:
            return self.session, prompt
        session = Session(self.backend.server.fresh(), self.report)
        try:
            await session.open()
            all_uploads = [*self.held.uploads_of(prompt), *uploads]
            values = await in_thread(self._upload_again, all_uploads, session.server)
        except BaseException:
            await session.close()
            raise
        return session, with_values(prompt, values)

    async def _require_new(self, prompt_id: str, session: Session) -> None:
        """Raises HttpError 409 if we or ComfyUI know ``prompt_id``, and closes ``session`` then.

        ComfyUI accepts the same prompt_id twice, and cancelling ours would stop the other prompt.
        """
        try:
            is_taken = await session.knows(prompt_id)
            is_taken = is_taken or await in_thread(self.records.get, prompt_id) is not None
            # Last, because nothing is awaited from here until the run is added: another request may
            # have used it meanwhile.
            is_taken = is_taken or self.records.in_memory(prompt_id) is not None
            if is_taken:
                message = "This prompt_id already exists: choose a new UUID."
                raise HttpError(409, "prompt_id_taken", message)
        except BaseException:
            await self._close_own(session)
            raise

    def _upload_again(
        self, uploads: Iterable[Tuple[InputRef, UploadAgain]], server: Server
    ) -> Dict[InputRef, str]:
        """Upload files to ``server`` too. Returns their values there by inputs. Blocks."""
        with self._uploading:
            return {ref: upload_again(server) for ref, upload_again in uploads}

    async def _submit(self, record: RunRecord) -> JsonObject:
        """Submit a run. Returns ComfyUI's answer, {} if that was lost."""
        session, run = record.session, record.run
        try:
            # The run is stored first, so that the next process finds it if this one dies.
            self.options.secrets.learn(secrets_in_extra_data(run.extra.get("extra_data")))
            await self.keeper.add(record.as_stored(), run.prompt)
            answer = await session.submit(run)
        except PromptRejected as error:
            error.message = add_first_problem(error.message, run.problems)
            await self._end(record, error.message)
            raise
        except RunnerError as error:
            await self._end(record, error.message)
            raise
        except BaseException as error:
            await self._end(record, type(error).__name__)
            raise
        return answer

    async def _look(self, record: RunRecord) -> None:
        """Find the place of a run in the queue. A run from the cache may end before that."""
        looking = asyncio.ensure_future(record.session.look(record.run))
        try:
            await done_or_set(looking, record.run.over)
            if looking.done():
                looking.result()  # raises only for a fault of ours
        finally:
            await end_tasks([looking])

    def _finish_later(self, work: Coroutine[Any, Any, None]) -> "asyncio.Future[None]":
        """Start ``work``, which follows a run to its end. stop() waits for it."""
        finishing = asyncio.ensure_future(work)
        self._finishing.add(finishing)  # the loop alone would let it be garbage-collected
        finishing.add_done_callback(self._finishing.discard)
        return finishing

    async def _finish(self, record: RunRecord) -> None:
        """Follow a run to its end, and conclude it. The record ends, whatever goes wrong."""
        self.options.afterwards.note_run()
        stop = None
        try:
            if not record.is_found and not await self._find_again(record):
                await self._end(record, NEVER_ARRIVED)
                return
            stop = await self._follow_run(record)
        except Exception as error:
            self._note_fault(record, error)
        try:
            message = await self._conclude(record, stop)
        except Exception as error:
            self._note_fault(record, error)
            message = FAILED_AT_THE_END
            record.conclude((), {})  # its outputs may be what caused the fault
        await self._end(record, message)

    def _note_fault(self, record: RunRecord, error: Exception) -> None:
        """Show a fault of ours, which must not leave a run that never ends."""
        self._notify(f"The runner failed: {type(error).__name__}: {error}")
        reason = f"the runner failed ({type(error).__name__})"
        record.run.state = lost(record.run.state, reason, time.monotonic())

    async def _conclude(self, record: RunRecord, stop: Optional[Stop]) -> str:
        """Report, save and keep what a run made. Returns how it ended, in words."""
        run, session = record.run, record.session
        record.failure = failure_report(run.state, run.prompt, None)
        destination = None
        if self.options.output is not None:
            folder, overwrite = self.options.output, self.options.overwrite
            destination = Destination(
                folder, overwrite, stopping=self.stopping, written=WrittenFiles()
            )
        ending = await conclude(session, run, stop, destination, is_served=True)
        self.options.afterwards.note_end(session, run, ending, partial(self.report, run))
        kept: Mapping[int, str] = {}
        if any(output.content is not None for output in ending.outputs):
            kept = await in_thread(self._keep, ending.outputs)
        record.conclude(ending.outputs, kept)
        return str(ending.report["message"])

    def _keep(self, outputs: Sequence[Output]) -> Dict[int, str]:
        """Spool the outputs that no server keeps. Returns their keys by their turn. Blocks."""
        keys = {}
        for turn, output in enumerate(outputs):
            content = output.read_content()
            if content is None:
                continue
            try:
                key = self.spool.add(content)
            except OSError as error:
                reason = error.strerror or error
                self._notify_from_thread(f"{output.filename} could not be kept: {reason}.")
                continue
            if key is not None:
                keys[turn] = key
        return keys

    async def _follow_run(self, record: RunRecord) -> Optional[Stop]:
        """Follow a run to its end, and cancel it after --timeout.

        Returns what has cancelled it, or None.
        """
        run, session = record.run, record.session
        timeout = seconds_left(self.options.timeout, record.created, time.time())
        try:
            await asyncio.wait_for(session.follow(run), timeout)
        except asyncio.TimeoutError:
            await session.cancel(run)
            await session.follow(run)
            return TIMED_OUT
        if not run.cancelling:
            return None
        # By POST /interrupt, by a client that left, or by the end of the service.
        return Stop("the service", exit_status_of(run.state, bool(run.dropped)))

    async def _end(self, record: RunRecord, message: str) -> None:
        """Note that a run is over, and how it ended."""
        record.message = message
        # It is stored first, so that an end that a client has seen is never forgotten.
        await self.keeper.end(record.as_stored())
        record.end(message)
        self.records.mark_changed(record.prompt_id)
        await self._leave(record)

    async def _leave(self, record: RunRecord) -> None:
        """End the following of a run by its session."""
        record.session.forget(record.run)
        await self._close_own(record.session)

    async def _close_own(self, session: Session) -> None:
        """Close the session of a single run."""
        if session is not self.session:
            await session.close()

    # -- in the loop: the end --------------------------------------------------------------------

    async def stop(self) -> None:
        """Cancel our runs and no others, end the event streams, close the session."""
        self.stopping.set()
        try:
            await self._end_runs()
        finally:  # streams, files and connections are closed even after a fault
            self.streams.end()
            self.spool.close()
            await self.session.close()
            await in_thread(self.keeper.close)

    async def _end_runs(self) -> None:
        """Cancel our runs, and report how they ended."""
        records = self.records.not_over()
        if records:
            count = plural(len(records), "run")
            self._show(None, plain_notice(f"Stopping: cancelling {count} of this service."))
        await asyncio.gather(*map(self._cancel, records))
        unconfirmed = [record for record in records if not record.phase.over]
        if unconfirmed and self.keeper.has_file:
            count = plural(len(unconfirmed), "run")
            self._notify(
                f"ComfyUI has not confirmed the end of {count}: the next start cancels the rest."
            )
        if self._finishing:
            await asyncio.wait(self._finishing, timeout=CONCLUDE_SECONDS)
        await self.options.afterwards.finish(partial(self.report, None))
        self.publish_changed_runs()
        self._show_refusals(float("inf"))

    async def _cancel(self, record: RunRecord) -> None:
        """Cancel a run. Returns when ComfyUI has confirmed that, or after ``limits.cancel``.

        Where it is not confirmed, the next process cancels the run.
        """
        record.is_cancelled = True
        if not record.phase.over:
            self.keeper.change(record.prompt_id, record.stored_phase, is_cancelled=True)
        if record.is_found:
            await record.session.cancel(record.run)

    # -- in the threads --------------------------------------------------------------------------

    def run_in_loop(self, work: Coroutine[Any, Any, Any], seconds: float) -> Any:
        """Do ``work`` in the loop and return its result.

        Raises ServerUnreachable after ``seconds``.
        """
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(seconds)
        except concurrent.futures.TimeoutError:
            raise ServerUnreachable("ComfyUI did not answer in time.") from None

    def note_refusal(self, refusal: Refusal) -> None:
        """Show a refused request on the console, or count it where it is one of many."""
        report = self.refusals.add(refusal, time.monotonic())
        if report is not None:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._show, None, report)

    def require_comfyui(self) -> None:
        """Raises HttpError 503 while no run can be started."""
        if self.stopping.is_set():
            raise service_stopping()
        self.backend.require_connection()

    def require_room(self) -> None:
        """Raises HttpError 429 while too many runs wait, before files are uploaded for nothing."""
        if self.records.count_waiting() >= self.options.max_queue:
            raise self._queue_full()

    def start(self, new: RunPrompt) -> Tuple[RunRecord, JsonObject]:
        """launch() from a thread. The models in ``new`` get the names that ComfyUI lists."""
        self.require_comfyui()
        prompt, notices = self.backend.name_models(new.prompt)
        launching = self.launch(new._replace(prompt=prompt), notices)
        limits = self.backend.server.limits
        seconds = limits.post + limits.give_up + 10.0
        record, answer = self.run_in_loop(launching, seconds)
        return record, answer

    def start_call(self, copy: HeldCopy, values: Mapping[str, Any]) -> RunRecord:
        """Start a run of ``copy``, of the held workflow, with ``values``, which are not held.

        ``values`` are those of read_call_values(). Raises EditError for values that do not fit,
        HttpError for a file that ComfyUI does not take, and what start() raises. Files are uploaded
        before, and nothing else happens before.
        """
        self.require_comfyui()
        self.require_room()
        prompt = copy.held.prompt
        call = self.backend.with_fresh_lists(
            prompt,
            lambda object_info: read_call_values(prompt, object_info, values),
            lambda call: {ref.node_id for ref in call.renamed},
        )
        if call.files:
            # launch() would refuse a run that may not spend, too, but only after the upload.
            self._key_for(call.prompt, copy.loaded.extra(call.prompt))
        server = self.backend.server
        try:
            uploaded = {ref: upload_call_file(server, file) for ref, file in call.files}
        except ServerAnswer as error:
            raise upload_refusal(error) or error from None
        seeds = copy.held.random_seeds
        complete = call.complete(uploaded, seeds, self.backend.object_info)
        new = self.held.make_run(copy, complete)
        uploads = [(ref, partial(upload_call_file, file=file)) for ref, file in call.files]
        record, _ = self.start(new._replace(uploads=tuple(uploads)))
        return record

    def wait_for_calls(
        self,
        records: Sequence[RunRecord],
        seconds: float,
        has_left: Callable[[], bool],
        *,
        is_detached: bool,
    ) -> bool:
        """Wait for the ends of runs that a client started. Returns whether all have ended.

        It takes ``seconds`` at most, which may be ``inf``. If the client leaves first
        (``has_left()``), the runs that have not ended are cancelled, unless they are detached from
        their client, and HttpError 409 is raised.
        """
        deadline = time.monotonic() + seconds
        for record in records:
            seconds_left = max(deadline - time.monotonic(), 0.0)
            if not wait_unless_left(record.over, seconds_left, has_left):
                message = "The client closed its connection; what it started continues."
                if not is_detached:
                    self.cancel_all(records)
                    message = "The client closed its connection, so its run was cancelled."
                raise HttpError(409, "client_left", message)
        return all(record.over.is_set() for record in records)

    def cancel_all(self, records: Iterable[RunRecord]) -> None:
        """Cancel those of ``records`` that have not ended."""
        # The last one first: otherwise the next would start when the one before it is gone.
        for record in reversed(list(records)):
            if not record.over.is_set():
                with suppress(RunnerError):  # the others are still to be cancelled
                    self.cancel(record)

    def cancel(self, record: RunRecord) -> None:
        """Cancel a run. Returns when ComfyUI has confirmed that, or after a while."""
        seconds = self.backend.server.limits.cancel + 10.0
        self.run_in_loop(self._cancel(record), seconds)

    def _others_as_json(self) -> Optional[JsonObject]:
        others = self.others.shown
        if others is None:
            return None
        return others.to_json()

    def status(self) -> JsonObject:
        """The service as GET /status shows it. May be called in both worlds."""
        running = self.records.running()
        running_id = None
        if running is not None:
            running_id = running.prompt_id
        return {
            "version": __version__,
            "comfyui": {**self.backend.to_json(), "others": self._others_as_json()},
            "workflow": {**self.held.to_json(), **self.workflows.to_status()},
            "runs": {
                "waiting": self.records.count_waiting(),
                "running": running_id,
            },
            "auto_execute_on_upload": self.options.auto_execute,
            "token_required": self.options.guard.token is not None,
            "state_file": self.keeper.path,
            "network_url": self.network_url,
        }


def service_stopping() -> HttpError:
    """The answer to a request for a run while the service stops."""
    return HttpError(503, "service_stopping", "The service is stopping.")


async def wait_for_socket(session: Session, prompt: Prompt) -> None:
    """Give the WebSocket time to open if pictures of ``prompt`` arrive over it only, and once."""
    if all(class_of(prompt, node_id) != SENDS_PICTURES for node_id in prompt):
        return
    deadline = time.monotonic() + SOCKET_PATIENCE
    while not session.connected and time.monotonic() < deadline:
        await asyncio.sleep(PUBLISH_INTERVAL)
