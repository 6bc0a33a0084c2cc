"""Submit prompts, follow them, survive drops, cancel exactly."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from typing import (
    Any,
    Callable,
    Dict,
    FrozenSet,
    Iterable,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    Union,
)

from comfyui_runner.documents import Prompt
from comfyui_runner.errors import (
    PromptUnknown,
    RunnerError,
    ServerError,
    ServerGone,
    ServerUnreachable,
)
from comfyui_runner.nodes import class_of, node_title, planned_nodes
from comfyui_runner.problems import Problem, classes_to_look_up, dropped_outputs, explain_answer
from comfyui_runner.reports import (
    PROGRESS_INTERVAL,
    Report,
    Throttle,
    changes,
    problem_report,
)
from comfyui_runner.server import Server, connect_websocket, import_third_party, new_uuid
from comfyui_runner.state import (
    REDUCERS,
    Event,
    NextCheck,
    Phase,
    Preview,
    PromptState,
    QueuePlace,
    lost,
    parse_message,
    place_in_queue,
    reconcile,
    reduce,
    seconds_to_check,
)
from comfyui_runner.text import as_dict, as_list, duration, one_line
from comfyui_runner.threads import bounded, end_tasks


class Run:
    """One prompt that a Session submits and follows. Made by Session.new_run()."""

    def __init__(self, prompt: Prompt, prompt_id: str, now: float, over: "asyncio.Event") -> None:
        self.prompt = prompt
        self.state = PromptState(prompt_id, planned=planned_nodes(prompt))
        self.over = over  #: set when state.phase.over
        self.began = now
        self.extra: Mapping[str, Any] = {}  #: more fields of POST /prompt
        self.patience: Optional[float] = None  #: seconds to try the POST for; None: limits.give_up
        self.dropped: FrozenSet[str] = frozenset()  #: outputs that the server refused
        self.problems: List[Problem] = []  #: what the server refused of it, in words
        self.preview: Optional[Preview] = None  #: the newest one
        self.received: List[Preview] = []  #: whole pictures of SaveImageWebsocket nodes
        self.posting = False  #: a POST was begun and is not answered yet
        self.repeated = False  #: it was posted twice
        self.cancelling = False
        self.attached = False  #: somebody else submitted it: its messages go elsewhere
        self.heard = self.checked = now
        self.checks = 0
        self.silence_told = 0.0
        self.progress_throttle = Throttle(PROGRESS_INTERVAL)

    @property
    def prompt_id(self) -> str:
        """The id under which it is submitted."""
        return self.state.prompt_id


#: Why a run is lost whose affinity cookie changed.
GONE = "its server is gone: the load balancer sends us to another"


class Session:
    """One WebSocket to one server, by which any number of prompts are followed.

    ``tell(run, report)`` is called for all that happens (``run`` is None for what concerns all).
    The socket only hints; _watch() reads queue and history whenever it may have missed something.
    """

    def __init__(
        self,
        server: Server,
        tell: Callable[[Optional[Run], Report], None],
    ) -> None:
        self.server = server
        self.limits = server.limits
        self.client_id = new_uuid()
        self.note = ""  #: what is wrong with the connection at the moment, for the meter
        self.report = self._tell = tell
        self._runs: Dict[str, Run] = {}
        self._socket: Any = None
        self._tasks: List["asyncio.Task[None]"] = []
        self._wake = asyncio.Event()
        self._connected_once = False
        self._deaf_since: Optional[float] = None  # the socket was opened anew and was silent since
        self._deaf_patience = self.limits.silence
        self._queue_moved = False
        self._answered = time.monotonic()  # when the server last answered
        self._failing = False  # the last read of queue and history failed
        self._lost = False  # that the connection is lost was told

    # -- beginning and end ---------------------------------------------------------------------

    async def open(self, patience: float = 0.0) -> None:
        """Opens the WebSocket and reads its first status; tries for ``patience`` seconds, and three times at least.

        Raises ServerUnreachable if refused. Where a WebSocket cannot be had (a proxy without them), runs are
        followed without it.
        """

        problem: RunnerError = ServerUnreachable("no try")
        began = time.monotonic()
        for attempt in itertools.count():
            try:
                self._connected(await connect_websocket(self.server, self.client_id))
                break
            except ServerError as error:
                problem = error
                late = time.monotonic() - began >= patience
                if error.refused and late:
                    message = "%s does not answer any more." % self.server.address.url
                    raise ServerUnreachable(message, refused=True) from None
                busy = error.status in (None, 502, 503, 504)
                if not busy or (late and attempt > 1):
                    break
                await asyncio.sleep(min(0.2 * 2**attempt, 5.0))
        if self._socket is None:
            self._lost = True
            self._tell(
                None, {"event": "connection", "state": "unavailable", "reason": problem.message}
            )
        self.begin()

    def begin(self) -> None:
        """Starts to follow; where open() was not called, the WebSocket is opened when it can be had."""

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
            await self._socket.close()

    # -- submitting ------------------------------------------------------------------------------

    def new_run(self, prompt: Prompt, prompt_id: str, extra: Mapping[str, Any] = {}) -> Run:
        """A run of ``prompt`` under ``prompt_id``, a new UUID; ``extra`` are more fields of POST /prompt."""

        run = Run(prompt, prompt_id, time.monotonic(), asyncio.Event())
        if self._socket is None:
            run.state = run.state._replace(gaps=1)
        run.extra = extra
        self._runs[run.prompt_id] = run
        return run

    async def attach(self, prompt_id: str) -> Run:
        """The run of a prompt that is in the queue or the history, submitted by whomever. Raises PromptUnknown."""
        wait = self.limits.read + self.limits.connect
        queue = await self._queue()
        entry = await bounded(self.server.history_entry, prompt_id, seconds=wait)
        items = [as_list(as_dict(entry).get("prompt")), *as_list(queue.get("queue_running"))]
        items += as_list(queue.get("queue_pending"))
        prompt = next(
            (item[2] for item in items if len(as_list(item)) > 2 and item[1] == prompt_id), None
        )
        if not isinstance(prompt, dict):
            raise PromptUnknown(
                "ComfyUI knows no prompt %s." % one_line(prompt_id, 60),
                "It is neither in its queue nor in its history, which a restart empties.",
            )
        run = self.new_run(
            {i: node for i, node in prompt.items() if isinstance(node, dict)}, prompt_id
        )
        run.attached = True
        run.state = run.state._replace(gaps=1)
        place = place_in_queue(queue, prompt_id)
        self._change(run, run.state._replace(phase=Phase.QUEUED))
        self._change(
            run,
            reconcile(run.state, place, entry, run.prompt, time.monotonic(), self.limits.settle),
        )
        self._wake.set()
        return run

    def forget(self, run: Run) -> None:
        """Follows ``run``, which is over, no more."""
        self._runs.pop(run.prompt_id, None)

    async def submit(self, run: Run) -> Dict[str, Any]:
        """Submits ``run`` and reports what the server refused of it. The server's answer; {} if it was lost.

        Raises PromptRejected, ServerError if it could not be submitted.
        """
        try:
            answer = await self._submit(run) or {}
        except RunnerError:
            self._change(run, run.state._replace(phase=Phase.REJECTED))
            raise
        if run.dropped or answer.get("node_errors"):
            await self._report_refused_parts(run, answer)
        return answer

    async def follow(self, run: Run) -> None:
        """Follows ``run``, which is submitted, to its end, which is ``run.state``."""
        over = asyncio.ensure_future(run.over.wait())
        try:
            await asyncio.wait([over, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        finally:
            over.cancel()
        for task in self._tasks:
            if task.done():
                task.result()  # it never ends but by a fault of ours, which must not pass in silence
        if run.repeated:
            await self._delete_copies(run)

    async def _submit(self, run: Run) -> Optional[Dict[str, Any]]:
        """POSTs the prompt until it is there, and once only; None when the answer was lost.

        A POST that was cut may have been taken: it is posted again (under the same prompt_id) only
        after it was absent from queue and history for ``limits.absent`` seconds.
        """

        body = {
            **run.extra,
            "prompt": run.prompt,
            "client_id": self.client_id,
            "prompt_id": run.prompt_id,
        }
        began, ambiguous = time.monotonic(), False
        patience = self.limits.give_up if run.patience is None else run.patience
        for attempt in itertools.count():
            if run.cancelling:
                break
            run.posting = True
            try:
                answer = await bounded(
                    self.server.submit, body, seconds=self.limits.post + self.limits.connect
                )
                self._answered = time.monotonic()
                self._accepted(run, answer)
                return answer
            except ServerError as error:
                run.posting = False
                if isinstance(error, ServerGone):
                    self._server_gone()
                    return None
                if error.status not in (None, 500, 502, 503, 504):
                    raise
                ambiguous = ambiguous or not error.refused
                if not ambiguous and run.patience is not None:
                    raise
                if await self._is_there(run, began + patience):
                    self._accepted(run, {})
                    return None
                if error.status == 500:  # ComfyUI itself raised
                    raise
                if time.monotonic() - began > patience:
                    if not ambiguous:
                        raise
                    reason = "whether the server took it is not known (%s)" % error.message.rstrip(
                        "."
                    )
                    self._change(run, lost(run.state, reason, time.monotonic()))
                    return None
                if not attempt:
                    message = "ComfyUI did not take the prompt: trying again. (%s)" % error.message
                    self._tell(run, {"event": "notice", "message": message})
                run.repeated = ambiguous
                await asyncio.sleep(min(0.1 * 2 ** min(attempt, 6), 5.0))
            finally:
                run.posting = False
        raise ServerUnreachable("Nothing was submitted.")

    def _accepted(self, run: Run, answer: Mapping[str, Any]) -> None:
        state = run.state
        run.dropped = dropped_outputs(answer)
        if run.dropped:
            state = state._replace(planned=planned_nodes(run.prompt, run.dropped))
        if state.phase is Phase.SUBMITTING:
            state = state._replace(phase=Phase.QUEUED)
        run.checked = run.heard = time.monotonic()
        self._change(run, state)
        self._wake.set()

    async def _is_there(self, run: Run, deadline: float) -> bool:
        """Whether the server has the prompt; False only after it was absent for long enough."""

        absent_since: Optional[float] = None
        while time.monotonic() < deadline:
            if run.state.phase is not Phase.SUBMITTING:
                return True  # its messages came
            try:
                place, entry = await self._look(run, await self._queue())
            except ServerError:
                pass  # two looks that find nothing prove as much, whatever failed between them
            else:
                now = time.monotonic()
                if place.found or entry is not None:
                    self._change(
                        run, reconcile(run.state, place, entry, run.prompt, now, self.limits.settle)
                    )
                    return True
                absent_since = now if absent_since is None else absent_since
                if now - absent_since >= self.limits.absent:
                    return False
            await asyncio.sleep(self.limits.absent / 8)
        return False

    async def _queue(self) -> Dict[str, Any]:
        return await bounded(self.server.queue, seconds=self.limits.read + self.limits.connect)

    async def _look(
        self, run: Run, queue: Mapping[str, Any]
    ) -> Tuple[QueuePlace, Optional[Dict[str, Any]]]:
        """Where the prompt is, by ``queue`` and by the history, which is read after it (the other way
        a prompt could move between the two unseen)."""
        wait = self.limits.read + self.limits.connect
        entry = await bounded(self.server.history_entry, run.prompt_id, seconds=wait)
        self._answered = time.monotonic()
        return place_in_queue(queue, run.prompt_id), entry

    async def look(self, run: Run) -> None:
        """Looks once where a prompt that waits stands, if that can be had."""
        if run.state.phase is Phase.QUEUED:
            try:
                place, entry = await self._look(run, await self._queue())
            except ServerError:
                return
            self._change(
                run,
                reconcile(
                    run.state, place, entry, run.prompt, time.monotonic(), self.limits.settle
                ),
            )

    async def _report_refused_parts(self, run: Run, answer: Mapping[str, Any]) -> None:
        """Reports what the server refused of a prompt that it took."""
        titles = ", ".join(
            '"%s"' % node_title(run.prompt, node_id) for node_id in sorted(run.dropped)
        )
        message = "ComfyUI refused a part of the workflow and runs the rest; without: %s." % (
            titles or "(not told)"
        )
        self._tell(run, {"event": "notice", "message": message})
        run.problems = await self.explain(answer, run.prompt)
        for problem in run.problems:
            self._tell(run, problem_report(problem))

    async def explain(self, answer: Mapping[str, Any], prompt: Prompt) -> List[Problem]:
        """explain_answer() with what it needs of object_info, as far as the server gives it."""
        return explain_answer(
            answer, prompt, await self._definitions(classes_to_look_up(answer, prompt))
        )

    async def _definitions(self, classes: Iterable[str]) -> Dict[str, Any]:
        definitions: Dict[str, Any] = {}
        tries = 6  # in a row
        for class_type in classes:
            while class_type not in definitions and tries:
                try:
                    info = await bounded(
                        self.server.object_info, class_type, seconds=self.limits.read
                    )
                    definitions[class_type], tries = info, 6
                except RunnerError:
                    tries -= 1  # when they are used up, less is told
        return definitions

    async def _delete_copies(self, run: Run) -> None:
        """Takes copies of a prompt that is over off the queue (it was posted twice)."""
        try:
            if place_in_queue(await bounded(self.server.queue, seconds=5.0), run.prompt_id).pending:
                await bounded(self.server.delete, run.prompt_id, seconds=5.0)
        except RunnerError:
            pass  # a copy that runs finds all in the cache

    # -- following -------------------------------------------------------------------------------

    def _change(self, run: Run, after: PromptState) -> None:
        before = run.state
        if after is before:
            return
        run.state = after
        for report in changes(before, after, run.prompt, run.progress_throttle, time.monotonic()):
            self._tell(run, report)
        if after.phase.over:
            run.over.set()
        if after.ending is not before.ending or after.over_seen is not before.over_seen:
            self._wake.set()

    def _receive(self, frame: Union[str, bytes]) -> None:
        now = time.monotonic()
        event = parse_message(frame, now)
        if event.prompt_id is not None:
            run = self._runs.get(event.prompt_id)
            if run is not None:
                self._hear(run, event)
        elif event.type == "status":
            self._queue_moved = True
            self._wake.set()
        elif event.type in REDUCERS or event.type in ("preview", "progress_text"):
            # it does not say whose it is: one prompt runs at a time (what custom nodes tell everybody is no news of it)
            for run in self._runs.values():
                if run.state.phase is Phase.RUNNING:
                    self._hear(run, event)
                elif event.type == "executing":
                    self._wake.set()

    def _hear(self, run: Run, event: Event) -> None:
        run.heard, run.checks, run.silence_told = event.at, 0, 0.0
        self._deaf_since = None
        if event.type == "preview":
            self._keep_preview(run, event.data["preview"])
        else:
            self._change(run, reduce(run.state, event))

    def _keep_preview(self, run: Run, preview: Preview) -> None:
        node_id = preview.node_id or next(iter(run.state.running), None)
        run.preview = preview._replace(node_id=node_id)
        if node_id is not None and class_of(run.prompt, node_id) == "SaveImageWebsocket":
            run.received.append(run.preview)

    def _connected(self, socket: Any) -> None:
        self._socket = socket
        self._answered = time.monotonic()
        if self._connected_once or self._runs:  # messages to these runs may have been sent before
            self._deaf_since = self._answered
        self._connected_once = True
        self._regain()
        self._wake.set()

    def _server_gone(self) -> None:
        """All that is on a server that a load balancer took from us is lost."""
        for run in list(self._runs.values()):
            self._change(run, lost(run.state, GONE, time.monotonic()))

    def _lose(self, note: str, reason: str) -> None:
        self.note = note
        if not self._lost:
            self._lost = True
            self._tell(None, {"event": "connection", "state": "lost", "reason": reason})

    def _regain(self) -> None:
        if self._lost and self._socket is not None and not self._failing:
            self._lost, self.note = False, ""
            self._tell(None, {"event": "connection", "state": "restored"})

    async def _listen(self) -> None:
        """Reads the socket, and opens it again (after closing it: ComfyUI issue 16010) for ever."""

        exceptions = import_third_party("websockets.exceptions")
        attempt = 0
        while True:
            if self._socket is not None:
                reason = "closed by the server"
                try:
                    async for frame in self._socket:
                        self._receive(frame)
                except exceptions.ConnectionClosed:
                    reason = "broken off"
                await self._socket.close()
                self._socket = None
                attempt = 0
                for run in self._runs.values():
                    run.state = run.state._replace(gaps=run.state.gaps + 1)
                self._lose("connection lost, trying again", reason)
                self._wake.set()
            await asyncio.sleep(min(0.1 * 2 ** min(attempt, 7), 10.0) * random.uniform(0.5, 1.5))
            attempt += 1
            try:
                self._connected(await connect_websocket(self.server, self.client_id))
            except ServerError as error:
                if isinstance(error, ServerGone):
                    self._server_gone()
                continue

    def _seconds_to_check(self, run: Run, now: float) -> float:
        connected, deaf = self._socket is not None, self._deaf_since is not None or run.attached
        again = run.repeated or run.attached
        view = NextCheck(
            now, run.heard, run.checked, run.checks, connected, deaf, self._queue_moved, again
        )
        return seconds_to_check(run.state, view, self.limits)

    async def _watch(self) -> None:
        """Reads queue and history whenever seconds_to_check() says so."""

        while True:
            self._wake.clear()
            now = time.monotonic()
            open_runs = [
                run
                for run in self._runs.values()
                if run.state.phase in (Phase.QUEUED, Phase.RUNNING)
            ]
            waits = [(self._seconds_to_check(run, now), run) for run in open_runs]
            due = [run for wait, run in waits if wait <= 0]
            if due:
                await self._check(due)
                continue
            try:
                await asyncio.wait_for(
                    self._wake.wait(), min((wait for wait, _ in waits), default=3600.0)
                )
            except asyncio.TimeoutError:
                pass

    async def _check(self, runs: Sequence[Run]) -> None:
        self._queue_moved = False
        wait = self.limits.read + self.limits.connect
        queue: Optional[Dict[str, Any]] = None  # one answer serves all
        for run in runs:
            place: Optional[QueuePlace] = None
            try:
                if (
                    run.state.over_seen and not run.checks
                ):  # history is written by now: one read will do
                    entry = await bounded(self.server.history_entry, run.prompt_id, seconds=wait)
                    self._answered = time.monotonic()
                else:
                    queue = await self._queue() if queue is None else queue
                    place, entry = await self._look(run, queue)
            except ServerError as error:
                self._unanswered(run, error)
            else:
                self._failing = False
                self._regain()
                now = time.monotonic()
                self._change(
                    run, reconcile(run.state, place, entry, run.prompt, now, self.limits.settle)
                )
                if place is not None:
                    await self._after_look(run, place, now)
            run.checked = time.monotonic()
            run.checks += 1

    def _unanswered(self, run: Run, error: RunnerError) -> None:
        now = time.monotonic()
        if isinstance(error, ServerGone):
            self._server_gone()
            return
        self._failing = True
        self._lose("the server does not answer, trying again", error.message.rstrip("."))
        if now - self._answered > self.limits.give_up:
            silent = duration(now - self._answered)
            self._change(
                run,
                lost(
                    run.state, "%s did not answer for %s" % (self.server.address.url, silent), now
                ),
            )

    async def _after_look(self, run: Run, place: QueuePlace, now: float) -> None:
        """What follows from a look at the queue, besides the state."""
        if (
            run.repeated
            and place.pending
            and (place.running or place.pending > 1 or run.state.phase.over)
        ):
            try:
                await bounded(self.server.delete, run.prompt_id, seconds=self.limits.read)
            except RunnerError:
                pass  # the next look finds it again
        quiet = now - run.heard
        if (
            place.running
            and not run.attached
            and quiet >= max(self.limits.silence, 2 * run.silence_told)
        ):
            run.silence_told = quiet
            says = "the server's queue says that it is running."
            self._tell(run, {"event": "silence", "seconds": round(quiet, 1), "server_says": says})
        if (
            place.running
            and self._deaf_since is not None
            and now - self._deaf_since > self._deaf_patience
        ):
            self._deaf_patience = min(self._deaf_patience * 2, 600.0)
            if self._socket is not None:
                await self._socket.close()  # _listen() opens it anew

    # -- cancelling ------------------------------------------------------------------------------

    async def cancel(self, run: Run) -> None:
        """Takes our prompt off the queue or interrupts it, and nobody else's.

        Comes back when the server has confirmed it (``run.state.phase.over``), or after
        ``limits.cancel`` seconds. Races are settled by looking again: a prompt that begins while it
        is deleted is found running at the next look.
        """

        run.cancelling = True
        deadline = time.monotonic() + self.limits.cancel
        asked: Dict[bool, float] = {}  # running or not -> when we asked
        absent_since: Optional[float] = None
        while not run.state.phase.over and time.monotonic() < deadline:
            now = time.monotonic()
            try:
                queue = await asyncio.wait_for(self._queue(), max(deadline - now, 0.1))
                place, entry = await asyncio.wait_for(
                    self._look(run, queue), max(deadline - now, 0.1)
                )
                now = time.monotonic()
                self._change(run, reconcile(run.state, place, entry, run.prompt, now, 1.0))
                running = bool(place.running)
                if place.found:
                    absent_since = None
                    if now - asked.get(running, 0.0) >= 1.0:
                        asked[running] = now
                        await bounded(
                            self._ask_to_cancel,
                            run.prompt_id,
                            running,
                            seconds=max(deadline - now, 0.1),
                        )
                elif entry is None and not run.posting:
                    absent_since = now if absent_since is None else absent_since
                    if False in asked and run.state.phase is Phase.QUEUED:
                        self._change(run, run.state._replace(phase=Phase.DELETED, ended_at=now))
                    elif (
                        run.state.phase is Phase.SUBMITTING
                        and now - absent_since >= self.limits.absent
                    ):
                        self._change(run, run.state._replace(phase=Phase.REJECTED, ended_at=now))
            except ServerGone:
                self._server_gone()
            except (ServerError, asyncio.TimeoutError):
                pass
            try:
                await asyncio.wait_for(run.over.wait(), 0.15)
            except asyncio.TimeoutError:
                pass

    def _ask_to_cancel(self, prompt_id: str, running: bool) -> None:
        if self.server.cancel_job(prompt_id):
            return
        if running:
            self.server.interrupt(prompt_id)
        else:
            self.server.delete(prompt_id)


def is_lost(server: Server, error: ServerError) -> bool:
    """Whether a run that failed with ``error`` is lost with its server, behind a load balancer that has others."""
    if isinstance(error, ServerGone):
        return True
    return bool(server.affinity) and error.status in (None, 502, 503, 504)  # the balancer's own
