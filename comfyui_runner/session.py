"""Submit prompts, follow them, survive drops, cancel exactly."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from typing import Any, Callable, Dict, FrozenSet, List, Mapping, Optional, Sequence, Union

from comfyui_runner.documents import Prompt
from comfyui_runner.errors import (
    PromptRejected,
    PromptUnknown,
    RunnerError,
    ServerAnswer,
    ServerError,
    ServerGone,
    ServerUnreachable,
)
from comfyui_runner.events import Event, MessageData, parse_message, prompts_remaining
from comfyui_runner.nodes import class_of, ends_of_cycles, node_title, planned_nodes
from comfyui_runner.others import UNKNOWN_LENGTH, QueueLength
from comfyui_runner.problems import (
    TYPES_WITHOUT_A_REASON,
    Problem,
    classes_to_look_up,
    dropped_outputs,
    explain_answer,
)
from comfyui_runner.remedies import NO_ORIGIN, Origin, add_remedies
from comfyui_runner.reports import NO_RUN_TEXTS, Report, RunTexts, changes, problem_report
from comfyui_runner.retries import Patience, backoff, may_be_retried
from comfyui_runner.runs import Run
from comfyui_runner.server import Server, new_uuid, split_look_up
from comfyui_runner.state import (
    NOT_IN_QUEUE,
    REDUCERS,
    NextCheck,
    Phase,
    PromptState,
    QueuePlace,
    Reading,
    is_hint,
    lost,
    place_in_queue,
    prompt_on_server,
    reconcile,
    reduce,
    seconds_to_check,
    seconds_to_hinted_look,
)
from comfyui_runner.text import as_dict, duration, one_line
from comfyui_runner.third_party import import_third_party
from comfyui_runner.threads import bounded, end_tasks
from comfyui_runner.websocket import close_websocket, connect_websocket

#: Seconds for which messages that came together are taken before others have a turn.
TURN = 0.02

#: Why a run is lost whose affinity cookie changed.
GONE = "its server is gone: the load balancer sends us to another"

#: Tries to open the first WebSocket before a run is followed without one.
OPENING_TRIES = 3

#: Tries in a row to read definitions; when they are used up, an error is explained with less.
LOOK_UP_TRIES = 6

#: Seconds for each of the requests that take a copy of a prompt off the queue when its run is over.
COPY_SECONDS = 5.0

#: Seconds after which a cancelled prompt that is in neither queue nor history counts as gone.
CANCEL_SETTLE = 1.0

#: Seconds between two requests to cancel the same prompt.
CANCEL_INTERVAL = 1.0

#: The longest wait, in seconds, before a socket that stays silent is opened anew once more.
LONGEST_DEAF_PATIENCE = 600.0


def is_lost(server: Server, error: ServerError) -> bool:
    """Whether a run that failed with ``error`` is lost with its server, and others may take it."""
    if isinstance(error, ServerGone):
        return True
    return bool(server.affinity) and may_be_retried(error)


def may_be_about_prompt(error: RunnerError) -> bool:
    """Whether the error of a POST /prompt may have its cause in the prompt.

    ComfyUI raises (500) where its validation meets what is odd, and packs refuse (400) in texts.
    """
    if not isinstance(error, ServerAnswer):
        return False
    return error.status in (400, 500) and not error.from_proxy


def as_rejection(error: RunnerError, problems: List[Problem]) -> PromptRejected:
    """``error`` of a POST /prompt as a refusal of the prompt, with ``problems`` that explain it.

    Its ``answer`` has the form of ComfyUI's other refusals.
    """
    details = "\n".join(problem.message for problem in problems)
    failure = {"type": "comfyui_failed", "message": error.message, "details": details}
    answer = {"error": {**failure, "extra_info": {}}, "node_errors": {}}
    rejection = PromptRejected(error.message, error.remedy, answer=answer)
    rejection.problems = problems
    return rejection


class Session:
    """One WebSocket to one server, by which any number of prompts are followed.

    ``report(run, report)`` is called for all that happens (``run`` is None for what concerns all).
    The socket only hints; _watch() reads queue and history whenever it may have missed something.
    """

    def __init__(self, server: Server, report: Callable[[Optional[Run], Report], None]) -> None:
        self.server = server
        self.limits = server.limits
        self.client_id = new_uuid()
        self.note = ""  #: what is wrong with the connection at the moment, for the meter

        self.report = report
        self._runs: Dict[str, Run] = {}
        self._tasks: List["asyncio.Task[None]"] = []
        self._wake = asyncio.Event()  # something happened that _watch() must look at

        self._socket: Any = None
        self._was_connected = False
        self._queue_moved = False  # a status message came since the last reading
        self._remaining: Optional[int] = None  # prompts on the server, by its last status message
        self.queue_length = UNKNOWN_LENGTH  #: the same, and when that message came
        self._patience = Patience(self.limits.give_up)  # with a server that answers no reading
        self._readings_fail = False  # the last reading of queue and history failed
        self._is_trouble_reported = False

        # ComfyUI can leave a socket that was opened anew without messages (issue 16010).
        self._deaf_since: Optional[float] = None  # opened anew then, and silent since
        self._deaf_patience = self.limits.silence

    # -- beginning and end -----------------------------------------------------------------------

    async def open(self, patience: float = 0.0) -> None:
        """Opens the WebSocket and reads its first status.

        A connection that is refused is tried again for ``patience`` seconds; then
        ServerUnreachable is raised. Other failures that may pass are tried again for as long, with
        at least OPENING_TRIES tries. If there is no WebSocket after that, or if the failure will
        not pass (a proxy without WebSockets), runs are followed without one.
        """
        waiting = Patience(patience, least_tries=1)
        for attempt in itertools.count():
            try:
                self._use_socket(await connect_websocket(self.server, self.client_id))
                break
            except ServerError as error:
                waiting.note_failure(time.monotonic())
                if error.refused and waiting.has_ended:
                    message = f"{self.server.address.url} does not answer any more."
                    raise ServerUnreachable(message, refused=True) from None

                tried_enough = waiting.has_ended and attempt + 1 >= OPENING_TRIES
                if tried_enough or not may_be_retried(error):
                    self._report_trouble("unavailable", error.message)
                    break
            await asyncio.sleep(backoff(attempt))
        self.begin()

    def begin(self) -> None:
        """Starts to follow. Without open(), the WebSocket is opened as soon as that succeeds."""
        self._tasks = [asyncio.ensure_future(self._listen()), asyncio.ensure_future(self._watch())]

    @property
    def connected(self) -> bool:
        """Whether the WebSocket is open."""
        return self._socket is not None

    async def __aenter__(self) -> "Session":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the tasks and closes the socket."""
        await end_tasks(self._tasks)
        if self._socket is not None:
            await close_websocket(self._socket)

    # -- runs ------------------------------------------------------------------------------------

    def new_run(
        self,
        prompt: Prompt,
        prompt_id: str,
        extra: Mapping[str, Any] = {},
        origin: Origin = NO_ORIGIN,
        texts: RunTexts = NO_RUN_TEXTS,
        *,
        own_extra_data: Mapping[str, Any] = {},
    ) -> Run:
        """A run of ``prompt`` under ``prompt_id``, a new UUID.

        ``extra`` are more fields of POST /prompt; ``origin`` helps to explain why it is refused;
        ``texts`` were drawn for this run. ``own_extra_data`` is added to the extra_data that is
        sent, where ``extra`` says nothing else, and is stored nowhere.
        """
        run = Run(prompt, prompt_id, time.monotonic(), asyncio.Event())
        if not self.connected:
            run.note_gap()
        run.extra = extra
        run.origin = origin
        run.texts = texts
        run.own_extra_data = own_extra_data
        self._runs[prompt_id] = run
        return run

    async def attach(self, prompt_id: str) -> Run:
        """The run of a prompt that anybody submitted. Raises PromptUnknown, ServerError."""
        queue = await self._read_queue()
        entry = await self._read_entry(prompt_id)
        prompt = prompt_on_server(queue, entry, prompt_id)
        if prompt is None:
            raise PromptUnknown(
                f"ComfyUI does not know the prompt {one_line(prompt_id, 60)}.",
                "It is neither in its queue nor in its history, which a restart empties.",
            )

        run = self.new_run(prompt, prompt_id)
        run.attached = True
        run.note_gap()  # its messages go to the client that submitted it
        self._change(run, run.state._replace(phase=Phase.QUEUED))
        self._apply(run, Reading(place_in_queue(queue, prompt_id), entry))
        self._wake.set()
        return run

    def adopt(self, run: Run) -> None:
        """Follows ``run``, which an earlier process has submitted under our client_id."""
        run.note_gap()  # nobody heard its messages meanwhile
        run.repeated = True  # that process may have posted it twice
        self._runs[run.prompt_id] = run
        self._wake.set()

    async def find_again(self, run: Run) -> None:
        """Sees whether the server has ``run``, which is adopted and may never have been submitted.

        It is not submitted now: if the server does not have it, it is over. What a process sent
        before it was killed may come late, so that is waited for longer than for a POST of our own.
        """
        patience = Patience(self.limits.give_up)
        if await self._find_on_server(run, patience, absent=5 * self.limits.absent):
            self._accept(run, {})
        elif patience.has_ended:
            reason = f"it is unknown whether {self.server.address.url} accepted it"
            self._change(run, lost(run.state, reason, time.monotonic()))
        else:
            self._change(run, run.state._replace(phase=Phase.REJECTED))

    async def knows(self, prompt_id: str) -> bool:
        """Whether the server has a prompt of that id in queue or history. Raises ServerError."""
        queue = await self._read_queue()
        entry = await self._read_entry(prompt_id)  # in this order: a prompt that ends goes there
        return entry is not None or place_in_queue(queue, prompt_id).found

    async def follow(self, run: Run) -> None:
        """Follows ``run``, which is submitted, to its end, which is ``run.state``."""
        over = asyncio.ensure_future(run.over.wait())
        try:
            await asyncio.wait([over, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        finally:
            over.cancel()
        for task in self._tasks:
            if task.done():  # only by a fault of ours, which must not pass in silence
                task.result()
        if run.repeated:
            await self._delete_copies(run)

    def forget(self, run: Run) -> None:
        """Stops following ``run``, which is over."""
        self._runs.pop(run.prompt_id, None)

    # -- submitting ------------------------------------------------------------------------------

    async def submit(self, run: Run) -> Dict[str, Any]:
        """Submits ``run`` and reports what the server refused of it.

        Returns the server's answer, {} if it was lost. Raises PromptRejected, with ``problems``
        that say why, or ServerError if the prompt could not be submitted.
        """
        try:
            answer = await self._submit_once(run)
        except PromptRejected as error:
            self._change(run, run.state._replace(phase=Phase.REJECTED))
            run.problems = error.problems = await self._explain(error.answer, run)
            raise
        except RunnerError as error:
            self._change(run, run.state._replace(phase=Phase.REJECTED))
            if not may_be_about_prompt(error):
                raise
            run.problems = await self._explain({}, run)
            if not run.problems:
                raise
            raise as_rejection(error, run.problems) from None
        if not answer.get("node_errors"):
            await self._find_parts_dropped_silently(run)
        if run.dropped or answer.get("node_errors"):
            await self._report_refused_parts(run, answer)
        return answer

    async def _submit_once(self, run: Run) -> Dict[str, Any]:
        """POSTs the prompt until the server has it, and once only; {} when the answer was lost.

        POST /prompt is not idempotent: the same prompt_id twice is two items in the queue. A POST
        that was cut may have been taken, so it is sent again only after the prompt was absent from
        queue and history for ``limits.absent`` seconds.
        """
        patience = Patience(self.limits.give_up if run.patience is None else run.patience)
        may_be_taken = False

        for attempt in itertools.count():
            if run.cancelling:
                break
            try:
                answer = await self._post(run)
                self._accept(run, answer)
                return answer
            except ServerGone:
                self._lose_all_runs()
                return {}
            except ServerError as error:
                # ComfyUI's own 500 can come after it has put the prompt into its queue.
                comfyui_raised = error.status == 500
                if not comfyui_raised and not may_be_retried(error):
                    raise

                patience.note_failure(time.monotonic())
                may_be_taken = may_be_taken or not error.refused
                if not may_be_taken and run.patience is not None:
                    raise
                if await self._find_on_server(run, patience):
                    self._accept(run, {})
                    return {}
                if comfyui_raised:
                    raise

                if patience.has_ended:
                    if not may_be_taken:
                        raise
                    reason = (
                        "it is unknown whether the server accepted it "
                        f"({error.message.rstrip('.')})"
                    )
                    self._change(run, lost(run.state, reason, time.monotonic()))
                    return {}

                if attempt == 0:
                    message = f"ComfyUI did not accept the prompt: trying again. ({error.message})"
                    self.report(run, {"event": "notice", "message": message})
            run.repeated = may_be_taken
            await asyncio.sleep(backoff(attempt))
        raise ServerUnreachable("Nothing was submitted.")

    async def _post(self, run: Run) -> Dict[str, Any]:
        """One POST /prompt. Raises PromptRejected, ServerError."""
        body = {
            **run.extra,
            "prompt": run.prompt,
            "client_id": self.client_id,
            "prompt_id": run.prompt_id,
        }
        if run.own_extra_data:
            extra_data = as_dict(run.extra.get("extra_data"))
            body["extra_data"] = {**run.own_extra_data, **extra_data}
        wait = self.limits.post + self.limits.connect
        run.posting = True
        try:
            answer = await bounded(self.server.submit, body, seconds=wait)
        finally:
            run.posting = False
        self._patience.note_answer()
        return answer

    def _accept(self, run: Run, answer: Mapping[str, Any]) -> None:
        """The server has the prompt. ``answer`` is its answer to the POST, {} if that was lost."""
        self._drop(run, dropped_outputs(answer))
        state = run.state
        if state.phase is Phase.SUBMITTING:
            state = state._replace(phase=Phase.QUEUED)
        run.heard = run.checked = time.monotonic()
        self._change(run, state)
        self._wake.set()

    def _drop(self, run: Run, outputs: FrozenSet[str]) -> None:
        """Notes the ``outputs`` that the server does not run."""
        run.dropped = outputs
        if outputs:
            run.state = run.state._replace(planned=planned_nodes(run.prompt, outputs))

    async def _find_parts_dropped_silently(self, run: Run) -> None:
        """Finds the outputs whose links go in a circle: ComfyUI 0.3.64 drops them without a word.

        Where every output is one, it refuses the prompt.
        """
        ends = ends_of_cycles(run.prompt)
        if not ends:
            return
        definitions = await self._look_up(sorted({class_of(run.prompt, end) for end in ends}))
        outputs = [
            end
            for end in ends
            if as_dict(definitions.get(class_of(run.prompt, end))).get("output_node")
        ]
        self._drop(run, frozenset(outputs))

    async def _find_on_server(
        self, run: Run, patience: Patience, absent: Optional[float] = None
    ) -> bool:
        """Whether nothing is left to do: the server has the prompt, or it is lost with its server.

        False when it was absent for ``absent`` seconds (None: limits.absent), or when ``patience``,
        which counts readings that fail, has ended.
        """
        if absent is None:
            absent = self.limits.absent
        absent_since: Optional[float] = None
        for attempt in itertools.count():
            if run.state.phase is not Phase.SUBMITTING:
                return True  # messages about it came, or it is lost
            if patience.has_ended:
                return False

            try:
                reading = await self._look(run)
            except ServerGone:
                self._lose_all_runs()
            except ServerError:
                # Two readings that do not find it prove as much, whatever failed between them.
                patience.note_failure(time.monotonic())
            else:
                if reading.found:
                    return True
                now = time.monotonic()
                if absent_since is None:
                    absent_since = now
                if now - absent_since >= absent:
                    return False
            await asyncio.sleep(backoff(attempt, longest=self.limits.absent / 8))
        raise AssertionError("unreachable")

    async def _report_refused_parts(self, run: Run, answer: Mapping[str, Any]) -> None:
        """Reports what the server refused of a prompt that it took."""
        titles = [f'"{node_title(run.prompt, node_id)}"' for node_id in sorted(run.dropped)]
        missing = ", ".join(titles) or "(it does not say which)"
        message = f"ComfyUI refused part of the workflow and runs the rest, without: {missing}."
        self.report(run, {"event": "notice", "message": message})

        run.problems = await self._explain(answer, run)
        for problem in run.problems:
            self.report(run, problem_report(problem))

    async def _explain(self, answer: Mapping[str, Any], run: Run) -> List[Problem]:
        """All that is wrong with the prompt of ``run``, by the server's ``answer`` to it.

        Where that names no node, the prompt is looked at as by --check. Definitions are used as far
        as the server gives them.
        """
        prompt = run.prompt
        definitions = await self._look_up(classes_to_look_up(answer, prompt))
        problems = explain_answer(answer, prompt, definitions)
        names_a_node = any(problem.node_id for problem in problems)
        if not names_a_node:
            # Only such a refusal needs it.
            from comfyui_runner.extras.checks import check_prompt

            definitions = await self._look_up(
                sorted({class_of(prompt, key) for key in prompt} - {""})
            )
            types = {problem.type for problem in problems}
            found = check_prompt(prompt, definitions)
            problems += [problem for problem in found if problem.type not in types]
            # The first one is shown where there is room for one: not "invalid prompt".
            problems.sort(key=lambda problem: problem.type in TYPES_WITHOUT_A_REASON)
        return add_remedies(problems, prompt, run.origin)

    async def _look_up(self, classes: Sequence[str]) -> Dict[str, Any]:
        """The definitions of ``classes``, without those that could not be read."""
        definitions: Dict[str, Any] = {}
        failures = 0  # in a row
        for part in split_look_up(classes):
            seconds = self.limits.read if len(part) == 1 else self.limits.post
            while part[0] not in definitions and failures < LOOK_UP_TRIES:
                try:
                    definitions.update(
                        await bounded(self.server.definitions, part, seconds=seconds)
                    )
                    failures = 0
                except RunnerError:
                    failures += 1
        return definitions

    # -- what is known of a run ------------------------------------------------------------------

    def _change(self, run: Run, after: PromptState) -> None:
        """Gives ``run`` another state, and reports what that changes."""
        before = run.state
        if after is before:
            return
        run.state = after

        now = time.monotonic()
        reports = changes(
            before,
            after,
            run.prompt,
            run.progress_throttle,
            now,
            run_texts=run.texts,
            attached=run.attached,
        )
        for report in reports:
            self.report(run, report)
        if after.phase.over:
            run.over.set()
        if after.ending is not before.ending or after.over_seen is not before.over_seen:
            self._wake.set()

    def _lose_all_runs(self) -> None:
        """A load balancer took the server from us, and all that is on it."""
        for run in list(self._runs.values()):
            self._change(run, lost(run.state, GONE, time.monotonic()))

    def _report_trouble(self, state: str, reason: str, note: str = "") -> None:
        """Reports that the connection is "lost" or "unavailable", once until it is restored."""
        self.note = note
        if not self._is_trouble_reported:
            self._is_trouble_reported = True
            self.report(None, {"event": "connection", "state": state, "reason": reason})

    def _report_restored(self) -> None:
        """Reports that all is well again, when both the socket is open and readings succeed."""
        if self._is_trouble_reported and self.connected and not self._readings_fail:
            self._is_trouble_reported = False
            self.note = ""
            self.report(None, {"event": "connection", "state": "restored"})

    # -- the socket ------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Reads the socket, and opens it again whenever it ends."""
        attempt = 0
        while True:
            if self._socket is not None:
                await self._read_socket()
                attempt = 0

            # Many clients of one server that restarts must not come back at the same moment.
            await asyncio.sleep(backoff(attempt, longest=10.0, jitter=random.random()))
            attempt += 1
            try:
                self._use_socket(await connect_websocket(self.server, self.client_id))
            except ServerGone:
                self._lose_all_runs()
            except ServerError:
                pass  # whatever it is, it may pass; queue and history tell the rest meanwhile

    def _use_socket(self, socket: Any) -> None:
        self._socket = socket
        self._remaining = None  # prompts may have come and gone meanwhile
        self._patience.note_answer()
        if self._was_connected or self._runs:  # messages to these runs may have been sent before
            self._deaf_since = time.monotonic()
        self._was_connected = True
        self._report_restored()
        self._wake.set()

    async def _read_socket(self) -> None:
        """Takes messages until the socket ends."""
        exceptions = import_third_party("websockets.exceptions")
        reason = "closed by the server"
        try:
            turned = time.monotonic()
            async for frame in self._socket:
                self._receive(frame)
                # Frames that came together are taken without a turn of the loop. Thousands of them,
                # about a prompt with many nodes, would hold up Ctrl+C and everything else.
                if time.monotonic() - turned > TURN:
                    await asyncio.sleep(0)
                    turned = time.monotonic()
        except exceptions.ConnectionClosed:
            reason = "broken off"

        # Fully closed before the next one is opened: ComfyUI drops the new one's messages when the
        # old one ends after it (issue 16010).
        await close_websocket(self._socket)
        self._socket = None
        for run in self._runs.values():
            run.note_gap()
        self._report_trouble("lost", reason, note="connection lost, trying again")
        self._wake.set()

    def _receive(self, frame: Union[str, bytes]) -> None:
        event = parse_message(frame, time.monotonic())
        if event.prompt_id is not None:
            run = self._runs.get(event.prompt_id)
            if run is not None:
                self._hear(run, event)
            return

        if event.type == "status":
            self._note_status(event.data, event.at)
            return

        # Messages of custom nodes to everybody (monitors send one a second) say nothing about our
        # runs: they must not put off the look at queue and history.
        is_about_a_run = event.type in REDUCERS or event.type in ("preview", "progress_text")
        if not is_about_a_run:
            return

        # It does not say which prompt it is about, and one runs at a time.
        for run in self._runs.values():
            if run.state.phase is Phase.RUNNING:
                self._hear(run, event)
            elif event.type == "executing":
                self._wake.set()

    def _note_status(self, status: MessageData, at: float) -> None:
        """Takes a status message: the queue moved, and what runs may be over."""
        remaining = prompts_remaining(status)
        if is_hint(remaining, self._remaining):
            for run in self._runs.values():
                if run.state.phase is Phase.RUNNING:
                    run.hinted_at = at
        self._remaining = remaining
        self.queue_length = QueueLength(remaining, at)
        self._queue_moved = True
        self._wake.set()

    def _hear(self, run: Run, event: Event) -> None:
        """Takes a message about ``run``."""
        run.note_message(event.at)
        self._deaf_since = None
        if event.type == "preview":
            run.keep_preview(event.data["preview"])
            return
        if event.type == "progress":
            run.note_steps(event.data)
        self._change(run, reduce(run.state, event))

    # -- queue and history -----------------------------------------------------------------------

    async def _watch(self) -> None:
        """Reads queue and history whenever seconds_to_check() says so, and follows hints."""
        while True:
            self._wake.clear()
            now = time.monotonic()
            open_runs = [run for run in self._runs.values() if run.is_open]

            checks = [(self._seconds_to_check(run, now), run) for run in open_runs]
            due = [run for wait, run in checks if wait <= 0]
            if due:
                await self._check(due)
                continue

            hints = [
                (seconds_to_hinted_look(run.state, run.hinted_at, run.hint_followed_at, now), run)
                for run in open_runs
            ]
            hinted = [run for wait, run in hints if wait <= 0]
            if hinted:
                await self._follow_hints(hinted)
                continue

            next_check = min((wait for wait, _ in checks + hints), default=3600.0)
            try:
                await asyncio.wait_for(self._wake.wait(), next_check)
            except asyncio.TimeoutError:
                pass

    def _seconds_to_check(self, run: Run, now: float) -> float:
        view = NextCheck(
            now=now,
            heard=run.heard,
            checked=run.checked,
            checks=run.checks,
            connected=self.connected,
            deaf=self._deaf_since is not None or run.attached,
            queue_moved=self._queue_moved,
            repeated=run.repeated or run.attached,
        )
        return seconds_to_check(run.state, view, self.limits)

    async def _check(self, runs: Sequence[Run]) -> None:
        """Reads queue and history for ``runs``, whose time has come."""
        self._queue_moved = False
        queue: Optional[Dict[str, Any]] = None  # one answer serves all
        for run in runs:
            try:
                if run.state.over_seen and not run.checks:
                    # "executing" with null comes after the history is written: one reading will do.
                    entry = await self._read_entry(run.prompt_id)
                    if entry is not None:
                        self._apply(run, Reading(NOT_IN_QUEUE, entry))
                else:
                    if queue is None:
                        queue = await self._read_queue()
                    reading = await self._look(run, queue)
                    await self._act_on_place(run, reading.place)
            except ServerError as error:
                self._note_failed_reading(run, error)
            run.checked = time.monotonic()
            run.checks += 1

    async def _follow_hints(self, runs: Sequence[Run]) -> None:
        """Reads the history of ``runs``, which a status message hints are over.

        This does not count as a reading of the queue: the next one is not put off.
        """
        for run in runs:
            hint = run.hinted_at
            try:
                entry = await self._read_entry(run.prompt_id)
            except ServerError as error:
                self._note_failed_reading(run, error)  # and the hint is followed once more
            else:
                if entry is not None:
                    self._apply(run, Reading(NOT_IN_QUEUE, entry))
                if run.hinted_at == hint:  # else another one came meanwhile
                    run.hinted_at = None
            run.hint_followed_at = time.monotonic()

    async def look(self, run: Run) -> None:
        """Looks once for the place of a prompt that waits, if the server answers."""
        if run.state.phase is not Phase.QUEUED:
            return
        try:
            queue = await self._read_queue()
            if run.state.phase is Phase.QUEUED:  # else messages came that say more
                await self._look(run, queue)
        except ServerError:
            pass

    async def _look(
        self,
        run: Run,
        queue: Optional[Mapping[str, Any]] = None,
        settle: Optional[float] = None,
    ) -> Reading:
        """Reads the queue and then the history, and changes ``run`` by what they say.

        Raises ServerError. In this order: the other way, a prompt could move between the two
        unseen. ``queue`` is an answer of GET /queue that has just come, if there is one; ``settle``
        replaces ``limits.settle``.
        """
        if queue is None:
            queue = await self._read_queue()
        entry = await self._read_entry(run.prompt_id)
        reading = Reading(place_in_queue(queue, run.prompt_id), entry)
        self._apply(run, reading, settle)
        return reading

    def _apply(self, run: Run, reading: Reading, settle: Optional[float] = None) -> None:
        if settle is None:
            settle = self.limits.settle
        self._change(run, reconcile(run.state, reading, run.prompt, time.monotonic(), settle))

    async def _read_queue(self) -> Dict[str, Any]:
        return await bounded(self.server.queue, seconds=self.limits.read + self.limits.connect)

    async def _read_entry(self, prompt_id: str) -> Optional[Dict[str, Any]]:
        wait = self.limits.read + self.limits.connect
        entry = await bounded(self.server.history_entry, prompt_id, seconds=wait)
        self._patience.note_answer()
        self._readings_fail = False
        self._report_restored()
        return entry

    def _note_failed_reading(self, run: Run, error: ServerError) -> None:
        if isinstance(error, ServerGone):
            self._lose_all_runs()
            return

        self._readings_fail = True
        note = "the server does not answer, trying again"
        self._report_trouble("lost", error.message.rstrip("."), note=note)

        now = time.monotonic()
        self._patience.note_failure(now)
        if self._patience.has_ended:
            silence = duration(self._patience.silence)
            reason = f"{self.server.address.url} did not answer for {silence}"
            self._change(run, lost(run.state, reason, now))

    async def _act_on_place(self, run: Run, place: QueuePlace) -> None:
        """What follows from a place in the queue, besides the state of the run."""
        has_copy = place.pending and (place.running or place.pending > 1 or run.state.phase.over)
        if run.repeated and has_copy:
            await self._delete(run, self.limits.read)  # the next look finds what this one leaves
        if place.running:
            self._report_silence(run)
            await self._replace_deaf_socket()

    def _report_silence(self, run: Run) -> None:
        """Reports that a running prompt sends nothing, each time the silence has doubled."""
        silence = time.monotonic() - run.heard
        if run.attached or silence < max(self.limits.silence, 2 * run.silence_reported):
            return
        run.silence_reported = silence
        says = "the server's queue says that it is running."
        self.report(run, {"event": "silence", "seconds": round(silence, 1), "server_says": says})

    async def _replace_deaf_socket(self) -> None:
        """Closes a socket that says nothing although our prompt runs: _listen() opens another."""
        if self._deaf_since is None:
            return
        if time.monotonic() - self._deaf_since <= self._deaf_patience:
            return
        self._deaf_patience = min(self._deaf_patience * 2, LONGEST_DEAF_PATIENCE)
        if self._socket is not None:
            await close_websocket(self._socket)

    async def _delete_copies(self, run: Run) -> None:
        """Takes copies of a prompt that is over off the queue (it was posted twice)."""
        try:
            queue = await bounded(self.server.queue, seconds=COPY_SECONDS)
        except RunnerError:
            return  # a copy that runs finds everything in the cache
        if place_in_queue(queue, run.prompt_id).pending:
            await self._delete(run, COPY_SECONDS)

    async def _delete(self, run: Run, seconds: float) -> None:
        try:
            await bounded(self.server.delete, run.prompt_id, seconds=seconds)
        except RunnerError:
            pass

    # -- cancelling ------------------------------------------------------------------------------

    async def cancel(self, run: Run) -> None:
        """Takes our prompt off the queue or interrupts it, and nobody else's.

        Comes back when the server has confirmed it (``run.state.phase.over``), or after
        ``limits.cancel`` seconds. Races are settled by looking again: a prompt that begins while it
        is deleted is found running at the next look.
        """
        run.cancelling = True
        cancelling = Cancelling()
        deadline = time.monotonic() + self.limits.cancel
        while not run.state.phase.over and time.monotonic() < deadline:
            seconds_left = max(deadline - time.monotonic(), 0.1)
            try:
                await asyncio.wait_for(self._cancel_once(run, cancelling), seconds_left)
            except ServerGone:
                self._lose_all_runs()
            except (ServerError, asyncio.TimeoutError):
                pass  # the next look shows what came of it
            try:
                await asyncio.wait_for(run.over.wait(), 0.15)
            except asyncio.TimeoutError:
                pass

    async def _cancel_once(self, run: Run, cancelling: "Cancelling") -> None:
        """Looks for the prompt, and asks the server to cancel it where it is."""
        reading = await self._look(run, settle=CANCEL_SETTLE)
        now = time.monotonic()

        if reading.place.found:
            cancelling.absent_since = None
            is_running = bool(reading.place.running)
            if cancelling.may_ask(is_running, now):
                cancelling.asked_at[is_running] = now
                await bounded(
                    self._ask_to_cancel, run.prompt_id, is_running, seconds=self.limits.cancel
                )
            return

        is_absent = reading.entry is None and not run.posting
        if not is_absent:
            return
        if cancelling.absent_since is None:
            cancelling.absent_since = now
        absent_for = now - cancelling.absent_since

        was_deleted = False in cancelling.asked_at and run.state.phase is Phase.QUEUED
        never_arrived = (
            run.state.phase is Phase.SUBMITTING
            and absent_for >= self.limits.absent  # a POST that was cut may still arrive
        )
        if was_deleted:
            self._change(run, run.state._replace(phase=Phase.DELETED, ended_at=now))
        elif never_arrived:
            self._change(run, run.state._replace(phase=Phase.REJECTED, ended_at=now))

    def _ask_to_cancel(self, prompt_id: str, is_running: bool) -> None:
        """Blocks. Since ComfyUI 0.26.0 one route does both, so that no prompt begins in between."""
        if self.server.cancel_job(prompt_id):
            return
        if is_running:
            self.server.interrupt(prompt_id)
        else:
            self.server.delete(prompt_id)


class Cancelling:
    """What was asked of the server so far to cancel one run."""

    def __init__(self) -> None:
        self.asked_at: Dict[bool, float] = {}  #: when we asked, by whether the prompt was running
        self.absent_since: Optional[float] = None  #: in neither queue nor history since

    def may_ask(self, is_running: bool, now: float) -> bool:
        """Whether to ask (again): at once when it has begun to run, else after a while."""
        asked_at = self.asked_at.get(is_running)
        return asked_at is None or now - asked_at >= CANCEL_INTERVAL
