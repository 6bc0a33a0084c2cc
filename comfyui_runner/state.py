"""The state of a prompt: events and answers in, PromptState out. No clock, no socket."""

from __future__ import annotations

import enum
import math
from typing import (
    Any,
    Callable,
    Dict,
    FrozenSet,
    Iterable,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Set,
    Tuple,
)

from comfyui_runner.events import Event, MessageData
from comfyui_runner.limits import DEFAULT_LIMITS, Limits
from comfyui_runner.nodes import upstream
from comfyui_runner.retries import backoff
from comfyui_runner.text import as_dict, as_list, as_number, one_line


class Phase(enum.Enum):
    """Where a prompt is. The first three are on the way; the others are ends."""

    SUBMITTING = "submitting"  # not on the server yet, or not known to be
    QUEUED = "queued"
    RUNNING = "running"
    SUCCESS = "success"
    ERROR = "error"  # a node raised
    INTERRUPTED = "interrupted"
    DELETED = "deleted"  # taken off the queue before it ran
    LOST = "lost"  # gone, or it ended and nobody can say how
    REJECTED = "rejected"  # ComfyUI refused it, or it never got there

    def __init__(self, value: str) -> None:
        #: whether this is an end
        self.over = value not in ("submitting", "queued", "running")


class NodeProgress(NamedTuple):
    """A node that runs. Times are on the clock of the events."""

    started: float
    value: float = 0.0  # the step that it is at
    max: float = 0.0  # of so many
    at: float = 0.0  # when ``value`` changed last
    first_value: float = 0.0  # the first one of this pass: the rate is measured from it
    first_at: float = 0.0


class PromptState(NamedTuple):
    """All that is known of one prompt. Times are on the clock of the events."""

    prompt_id: str
    phase: Phase = Phase.SUBMITTING
    ahead: Optional[int] = None  # prompts before ours in the queue
    planned: FrozenSet[str] = frozenset()  # nodes that will run or are cached
    targets: FrozenSet[str] = frozenset()  # the outputs that the server accepted, once it said so
    cached: FrozenSet[str] = frozenset()
    running: Mapping[str, NodeProgress] = {}
    finished: Mapping[str, float] = {}  # seconds that each finished node took
    outputs: Mapping[str, Mapping[str, Any]] = {}
    blocked: Mapping[str, str] = {}  # nodes that gave no result on purpose (ExecutionBlocked)
    failure: Mapping[str, Any] = {}  # data of execution_error or execution_interrupted
    reason: str = ""  # why a run is lost
    ending: Optional[Phase] = None  # the end that the socket reported, until history confirms it
    over_seen: bool = False  # executing(null) came: it is over, but not known how it ended
    gaps: int = 0  # times that the socket was down: messages may be missing
    missing_since: Optional[float] = None  # absent from queue and history since
    started_at: Optional[float] = None
    ended_at: Optional[float] = None  # when the message of the end came, or the end was read
    server_seconds: Optional[float] = None  # the run's time by the server's clock


# -- the WebSocket's messages --------------------------------------------------------------------


def reduce(state: PromptState, event: Event) -> PromptState:
    """``state`` after ``event``, which is about this prompt (by its prompt_id, or has none).

    The same object comes back when nothing changed. An end is only noted (``ending``): history is
    written after ``execution_success`` is sent (main.py), so reconcile() makes it final.
    """
    reducer = REDUCERS.get(event.type)
    if reducer is None or state.phase.over:
        return state
    after = reducer(state, event.data, event.at)
    if after == state:
        return state
    return after


def _mark_running(state: PromptState, at: float) -> PromptState:
    if state.phase is Phase.RUNNING:
        return state
    return state._replace(phase=Phase.RUNNING, ahead=0, missing_since=None, started_at=at)


def _on_start(state: PromptState, data: MessageData, at: float) -> PromptState:
    return _mark_running(state, at)


def _on_cached(state: PromptState, data: MessageData, at: float) -> PromptState:
    nodes = frozenset(map(str, as_list(data.get("nodes"))))
    cached = state.cached | (nodes & state.planned)
    return _mark_running(state, at)._replace(cached=cached)


def node_on_screen(data: MessageData) -> Optional[str]:
    """The node as the workflow has it: for one that was made at run time, the one that made it."""
    node_id = data.get("display_node") or data.get("node")
    if node_id is None:
        return None
    return str(node_id)


def _on_executing(state: PromptState, data: MessageData, at: float) -> PromptState:
    node_id = node_on_screen(data)
    if node_id is None:
        # "executing" with null follows every end, errors and interrupts too. The one that a
        # reconnect sends has no prompt_id and is about whatever ran last.
        is_end = "node" in data and bool(data.get("prompt_id"))
        if not is_end:
            return state
        return state._replace(over_seen=True)

    state = _mark_running(state, at)
    if node_id in state.running:
        return state
    return state._replace(running={**state.running, node_id: NodeProgress(at)})


def _on_progress(state: PromptState, data: MessageData, at: float) -> PromptState:
    state = _mark_running(state, at)
    node_id = node_on_screen(data)
    if node_id is None or node_id not in state.running:
        return state  # progress_state comes first, so the node is done already
    before = state.running[node_id]
    progress = _advance(before, data, at)
    if progress is before:
        return state  # its twin, progress_state, came just before and said the same
    return state._replace(running={**state.running, node_id: progress})


def _on_progress_state(state: PromptState, data: MessageData, at: float) -> PromptState:
    """Every node that runs or is finished. One in parts is finished when all its parts are."""
    state = _mark_running(state, at)
    running = dict(state.running)
    finished: List[str] = []
    unfinished: Set[str] = set()

    for key, node in as_dict(data.get("nodes")).items():
        if not isinstance(node, dict):
            continue
        node_id = str(node.get("display_node_id") or key)
        if node.get("state") == "finished":
            finished.append(node_id)
            continue

        unfinished.add(node_id)
        if node_id not in running:
            running[node_id] = NodeProgress(at)
        elif as_number(node.get("max")) > 1.0:  # a node without progress of its own has a max of 1
            running[node_id] = _advance(running[node_id], node, at)

    if running != state.running:
        state = state._replace(running=running)
    if not finished:
        return state
    finished_in_all_parts = [node_id for node_id in finished if node_id not in unfinished]
    return _finish_nodes(state, finished_in_all_parts, at)


def _advance(progress: NodeProgress, data: MessageData, at: float) -> NodeProgress:
    value = as_number(data.get("value"))
    maximum = as_number(data.get("max"))
    if value == progress.value and maximum == progress.max:
        return progress

    # A node may have several passes.
    starts_over = value < progress.value or maximum != progress.max
    if starts_over:
        return NodeProgress(progress.started, value, maximum, at=at, first_value=value, first_at=at)
    return NodeProgress(
        progress.started,
        value,
        maximum,
        at=at,
        first_value=progress.first_value,
        first_at=progress.first_at,
    )


def _finish_nodes(state: PromptState, node_ids: Iterable[str], at: float) -> PromptState:
    """``state`` in which those of ``node_ids`` that run are finished, all in one step."""
    node_ids = [node_id for node_id in node_ids if node_id in state.running]
    if not node_ids:
        return state  # they were finished before, or before we saw them run
    if state.ended_at is not None:
        at = min(at, state.ended_at)  # the history is read a little after the end
    running = dict(state.running)
    finished = dict(state.finished)
    for node_id in dict.fromkeys(node_ids):
        progress = running.pop(node_id)
        seconds = max(at - progress.started, 0.0)
        # A node may run several times, as one in a loop does.
        finished[node_id] = finished.get(node_id, 0.0) + seconds
    return state._replace(running=running, finished=finished)


def _on_executed(state: PromptState, data: MessageData, at: float) -> PromptState:
    node_id = node_on_screen(data)
    output = data.get("output")
    if node_id is None or not isinstance(output, dict):
        return state
    return _mark_running(state, at)._replace(outputs={**state.outputs, node_id: output})


def _on_success(state: PromptState, data: MessageData, at: float) -> PromptState:
    return _mark_running(state, at)._replace(ending=Phase.SUCCESS, ended_at=at)


def _on_error(state: PromptState, data: MessageData, at: float) -> PromptState:
    if _is_blocked_branch(data):
        node_id = str(data.get("node_id"))
        message = one_line(data.get("exception_message"), 200)
        return state._replace(blocked={**state.blocked, node_id: message})
    return _mark_running(state, at)._replace(ending=Phase.ERROR, failure=data, ended_at=at)


def _is_blocked_branch(data: MessageData) -> bool:
    """Whether an execution_error only ends a branch, while the run goes on (ExecutionBlocker)."""
    return data.get("exception_type") == "ExecutionBlocked"


def _on_interrupted(state: PromptState, data: MessageData, at: float) -> PromptState:
    state = _mark_running(state, at)
    return state._replace(ending=Phase.INTERRUPTED, failure=data, ended_at=at)


#: What each message does to the state; all others do nothing.
REDUCERS: Mapping[str, Callable[[PromptState, MessageData, float], PromptState]] = {
    "execution_start": _on_start,
    "execution_cached": _on_cached,
    "executing": _on_executing,
    "progress": _on_progress,
    "progress_state": _on_progress_state,
    "executed": _on_executed,
    "execution_success": _on_success,
    "execution_error": _on_error,
    "execution_interrupted": _on_interrupted,
}


# -- the queue and the history -------------------------------------------------------------------


#: The fields of an item of the queue, by their place in its list (execution.py). Versions differ in
#: how many follow.
_ITEM_NUMBER = 0  # items with lower numbers run first
_ITEM_PROMPT_ID = 1
_ITEM_PROMPT = 2
_ITEM_TARGETS = 4  # behind extra_data: the outputs to make


class QueuePlace(NamedTuple):
    """Where a prompt is in an answer of GET /queue."""

    running: int  # how often it is running: 0 or 1, because ComfyUI has one worker
    pending: int  # how often it waits: 2 where a POST was accepted twice
    ahead: int  # prompts that come before it
    targets: FrozenSet[str]  # the outputs that it will make

    @property
    def found(self) -> bool:
        """Whether it is in the queue at all."""
        return bool(self.running or self.pending)


NOT_IN_QUEUE = QueuePlace(running=0, pending=0, ahead=0, targets=frozenset())


def place_in_queue(queue: Mapping[str, Any], prompt_id: str) -> QueuePlace:
    """Where ``prompt_id`` is in ``queue``, the body of GET /queue."""
    running = _queue_items(queue, "queue_running")
    pending = _queue_items(queue, "queue_pending")
    # ComfyUI sends its heap as it is, and that is not in order.
    pending.sort(key=lambda item: as_number(item[_ITEM_NUMBER]))

    ours_running = [item for item in running if item[_ITEM_PROMPT_ID] == prompt_id]
    turns = [turn for turn, item in enumerate(pending) if item[_ITEM_PROMPT_ID] == prompt_id]
    if ours_running:
        ahead = 0
        first = ours_running[0]
    elif turns:
        ahead = len(running) + turns[0]
        first = pending[turns[0]]
    else:
        return NOT_IN_QUEUE
    return QueuePlace(len(ours_running), len(turns), ahead, _target_outputs(first))


def prompts_in_queue(queue: Mapping[str, Any]) -> int:
    """How many prompts run or wait in ``queue``, the body of GET /queue."""
    running = _queue_items(queue, "queue_running")
    pending = _queue_items(queue, "queue_pending")
    return len(running) + len(pending)


def _queue_items(queue: Mapping[str, Any], key: str) -> List[List[Any]]:
    """The items under ``key`` that have a prompt_id, as lists of the fields above."""
    items = as_list(queue.get(key))
    return [item for item in items if isinstance(item, list) and len(item) > _ITEM_PROMPT_ID]


def _target_outputs(item: List[Any]) -> FrozenSet[str]:
    """The outputs that a queue item makes; empty where it does not list them."""
    if len(item) <= _ITEM_TARGETS:
        return frozenset()
    return frozenset(map(str, as_list(item[_ITEM_TARGETS])))


def prompt_on_server(
    queue: Mapping[str, Any], entry: Optional[Mapping[str, Any]], prompt_id: str
) -> Optional[Dict[str, Any]]:
    """The prompt (API format) that was submitted as ``prompt_id``, None if the server has none.

    ``queue`` is the body of GET /queue, ``entry`` the prompt's history entry.
    """
    items = [as_list(as_dict(entry).get("prompt"))]  # a history entry keeps its queue item
    items += _queue_items(queue, "queue_running")
    items += _queue_items(queue, "queue_pending")
    for item in items:
        if len(item) <= _ITEM_PROMPT or item[_ITEM_PROMPT_ID] != prompt_id:
            continue
        prompt = item[_ITEM_PROMPT]
        if isinstance(prompt, dict):
            return {node_id: node for node_id, node in prompt.items() if isinstance(node, dict)}
    return None


class Reading(NamedTuple):
    """What the server has of a prompt: the queue was read first, and then the history."""

    place: QueuePlace
    entry: Optional[Mapping[str, Any]]  # its history entry, None while there is none

    @property
    def found(self) -> bool:
        """Whether the server has the prompt."""
        return self.place.found or self.entry is not None


def reconcile(
    state: PromptState,
    reading: Reading,
    prompt: Mapping[str, Any],
    at: float,
    settle: float = DEFAULT_LIMITS.settle,
) -> PromptState:
    """``state`` after ``reading``, which was made at ``at``.

    A prompt only moves from waiting to running to history, each step at once (execution.py holds a
    mutex). As the queue was read before the history, a prompt that is in neither is gone. Only its
    history entry may still be written late, within ``settle`` seconds.
    """
    if state.phase.over:
        return state
    if reading.entry is not None:
        return _conclude(state, reading.entry, prompt, at)
    if reading.place.found:
        return _apply_place(state, reading.place, prompt, at)
    if state.phase is Phase.SUBMITTING:
        return state  # it may be on its way
    return _apply_absence(state, at, settle)


def _apply_place(
    state: PromptState, place: QueuePlace, prompt: Mapping[str, Any], at: float
) -> PromptState:
    state = state._replace(missing_since=None)
    if place.targets and place.targets != state.targets:
        state = state._replace(targets=place.targets, planned=upstream(prompt, place.targets))
    if place.running:
        return _mark_running(state, at)
    if state.phase is Phase.RUNNING:
        return state  # the answer is older than the message that it began
    return state._replace(phase=Phase.QUEUED, ahead=place.ahead)


def _apply_absence(state: PromptState, at: float, settle: float) -> PromptState:
    if state.missing_since is None:
        return state._replace(missing_since=at)
    if at - state.missing_since < settle:
        return state

    # The history entry was evicted or cleared: what the socket reported counts.
    if state.ending is not None:
        return _end(state, state.ending, at)

    # No message was missed, and none said that it began: somebody took it off the queue.
    never_began = state.phase is Phase.QUEUED and not state.gaps and not state.over_seen
    if never_began:
        return _end(state, Phase.DELETED, at)

    return lost(
        state,
        "it is no longer in the server's queue or history (a restart loses both)",
        at,
    )


def lost(state: PromptState, reason: str, at: float) -> PromptState:
    """``state`` as lost, for ``reason`` (a clause); an end that is already known stays."""
    if state.phase.over:
        return state
    return _end(state, Phase.LOST, at)._replace(reason=reason)


def _end(state: PromptState, phase: Phase, at: float) -> PromptState:
    if phase is Phase.SUCCESS:
        state = _finish_nodes(state, state.running, at)
    ended_at = state.ended_at
    if ended_at is None:
        ended_at = at
    return state._replace(phase=phase, running={}, ended_at=ended_at, missing_since=None)


def _conclude(
    state: PromptState, entry: Mapping[str, Any], prompt: Mapping[str, Any], at: float
) -> PromptState:
    """``state`` at its end, as the history ``entry`` has it."""
    targets = _target_outputs(as_list(entry.get("prompt")))
    if targets:
        state = state._replace(targets=targets, planned=upstream(prompt, targets) or state.planned)

    status = as_dict(entry.get("status"))  # may be null
    messages = _history_messages(status)
    for name, data in messages:
        if name == "execution_cached":
            state = _on_cached(state, data, at)

    seconds = _seconds_in_history(messages)
    if seconds is not None:
        state = state._replace(server_seconds=seconds)
    if state.started_at is None:
        state = state._replace(started_at=at)

    outputs = dict(state.outputs)
    for node_id, output in as_dict(entry.get("outputs")).items():
        if isinstance(output, dict):
            outputs[str(node_id)] = output
    phase, failure = _end_in_history(status, messages, state)
    state = state._replace(failure=failure, outputs=outputs)
    return _end(state, phase, at)


#: The messages of the run that a history entry keeps: their names and data.
HistoryMessages = List[Tuple[str, MessageData]]


def _history_messages(status: Mapping[str, Any]) -> HistoryMessages:
    messages: HistoryMessages = []
    for message in as_list(status.get("messages")):
        if isinstance(message, list) and len(message) == 2:
            name, data = message
            messages.append((str(name), as_dict(data)))
    return messages


#: The messages of a history entry that say that the run did not succeed.
_FAILURES = {"execution_error": Phase.ERROR, "execution_interrupted": Phase.INTERRUPTED}


def _end_in_history(
    status: Mapping[str, Any], messages: HistoryMessages, state: PromptState
) -> Tuple[Phase, MessageData]:
    """How it ended, and the data of the failure.

    The messages count more than ``status_str``. That one says success even if the run failed while
    it was set up: execution.py sets it before that.
    """
    for name, data in reversed(messages):
        if name in _FAILURES and not _is_blocked_branch(data):
            return _FAILURES[name], data
    if status.get("status_str") == "error":
        return Phase.ERROR, state.failure
    if not status and state.ending is not None:
        return state.ending, state.failure
    return Phase.SUCCESS, state.failure


def _seconds_in_history(messages: HistoryMessages) -> Optional[float]:
    """How long the run took by the server's clock, None where its messages do not say so."""
    milliseconds = {name: as_number(data.get("timestamp")) for name, data in messages}
    start = milliseconds.get("execution_start", 0.0)
    end = max(milliseconds.values(), default=0.0)
    if not start or end < start:
        return None
    return (end - start) / 1000


# -- of a state ----------------------------------------------------------------------------------


def wholly_cached(state: PromptState) -> bool:
    """Whether nothing was rendered: every output that the run had to make was in the cache."""
    wanted = state.targets or state.planned
    return (
        state.phase is Phase.SUCCESS
        and bool(wanted)
        and wanted <= state.cached
        and not state.finished
    )


def run_seconds(state: PromptState, now: float) -> float:
    """How long the prompt has run (or ran), in seconds.

    It is measured by the same clock as the nodes, so that no node takes longer than the run. That
    is our clock, because messages about nodes contain no time. The server's own measure counts:

    - where no node was measured, because all of them were cached or nobody listened;
    - where it is longer and the socket was down for a while, or another process had submitted the
      run: then we have not seen all of it.
    """
    if state.server_seconds is not None and not state.finished:
        return state.server_seconds
    if state.started_at is None:
        return 0.0
    end = state.ended_at
    if end is None:
        end = now
    seconds = max(end - state.started_at, 0.0)
    if state.gaps and state.server_seconds is not None:
        return max(seconds, state.server_seconds)
    return seconds


#: Seconds from a hint to the reading of the history: usually, the messages of the end come first.
HINT_PAUSE = 0.3

#: Seconds between two readings that follow hints: other people's prompts send hints too.
HINT_INTERVAL = 1.0

#: Seconds between two readings while the queue moves, and while our place in it is not known.
QUEUE_PAUSE = 0.3
UNKNOWN_PLACE_PAUSE = 0.5

#: Seconds until the history is read where the socket said how the run ended: the entry is written
#: after that message, and before executing(null).
ENDING_PAUSE = 0.25


def is_hint(remaining: Optional[int], before: Optional[int]) -> bool:
    """Whether a ``status`` message hints that the prompt that runs is over.

    ``remaining`` prompts wait or run by this message, and ``before`` by the last one (None: not
    known). ComfyUI writes the history before the ``status`` of an end (execution.py, task_done),
    and sends that to everybody. It sends one where a prompt is deleted or begins, too. Only a
    message with a higher count is never of an end: it is of a prompt that was added.
    """
    if remaining is None or before is None:
        return True
    return remaining <= before


def seconds_to_hinted_look(
    state: PromptState, hinted_at: Optional[float], followed_at: Optional[float], now: float
) -> float:
    """How many seconds until the history must be read because of a hint (0 or less: now).

    The hint came at ``hinted_at``, and ``followed_at`` is when the history was last read for one
    (None: neither happened). Infinity where there is nothing to follow: if the socket itself has
    reported an end, seconds_to_check() says when to read.
    """
    end_was_reported = state.over_seen or state.ending is not None
    if hinted_at is None or end_was_reported:
        return math.inf
    look_at = hinted_at + HINT_PAUSE
    if followed_at is not None:
        look_at = max(look_at, followed_at + HINT_INTERVAL)
    return look_at - now


class NextCheck(NamedTuple):
    """What the follower knows of its connection when it asks whether to read queue and history."""

    now: float
    heard: float  # when the last message about this prompt came
    checked: float  # when queue and history were last read
    checks: int  # readings since the last message
    connected: bool
    deaf: bool  # the socket was opened anew and has said nothing about this prompt since
    queue_moved: bool  # a status message came since the last reading
    repeated: bool  # the prompt was posted twice, so it may be in the queue twice


def seconds_to_check(state: PromptState, view: NextCheck, limits: Limits) -> float:
    """How many seconds until queue and history must be read (0 or less: now).

    Messages of the socket are only hints. What is true is read at an end, while the socket is down
    or may be deaf (ComfyUI issue 16010), when the queue moved while we wait, and after silence. For
    a ``status`` message that comes while our prompt runs, see seconds_to_hinted_look().
    """
    since_check = view.now - view.checked
    since_news = min(since_check, view.now - view.heard)

    may_be_over = (
        state.over_seen
        or state.ending is not None  # the socket has said how it ended
        or state.missing_since is not None  # the server did not have it
    )
    if may_be_over:
        return _pause_before_end(state, view.checks) - since_news

    if not view.connected or view.deaf:
        pause = backoff(view.checks, first=0.5, longest=4.0)
        return min(pause, limits.poll) - since_check

    may_have_moved = view.queue_moved and (state.phase is not Phase.RUNNING or view.repeated)
    if may_have_moved:
        return QUEUE_PAUSE - since_check

    place_is_unknown = state.phase in (Phase.SUBMITTING, Phase.QUEUED) and state.ahead is None
    if place_is_unknown:
        return UNKNOWN_PLACE_PAUSE - since_check

    return limits.poll - since_news


def _pause_before_end(state: PromptState, checks: int) -> float:
    """Seconds from the last news to the next reading where the run may be over."""
    if checks:
        return backoff(checks - 1, longest=1.0)
    if state.over_seen:
        return 0.0
    return ENDING_PAUSE
