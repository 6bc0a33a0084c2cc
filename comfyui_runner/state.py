"""The state of a prompt: events and answers in, PromptState out. No clock, no socket."""

from __future__ import annotations

import enum
import json
import struct
from typing import Any, Callable, Dict, FrozenSet, Mapping, NamedTuple, Optional, Union

from comfyui_runner.limits import DEFAULT_LIMITS, Limits
from comfyui_runner.nodes import upstream
from comfyui_runner.text import as_dict, as_list, as_number, one_line


class Phase(enum.Enum):
    """Where a prompt is. The last six are ends; nothing follows them."""

    SUBMITTING = "submitting"  # not (known to be) on the server yet
    QUEUED = "queued"
    RUNNING = "running"
    SUCCESS = "success"
    ERROR = "error"  # a node raised
    INTERRUPTED = "interrupted"
    DELETED = "deleted"  # taken off the queue before it ran
    LOST = "lost"  # gone, or it ended and nobody can say how
    REJECTED = "rejected"  # ComfyUI refused it, or it never got there

    def __init__(self, value: str) -> None:
        self.over = value not in ("submitting", "queued", "running")  #: whether this is an end


class Event(NamedTuple):
    """One WebSocket message. ``at`` is when it came, in seconds of any one clock."""

    type: str
    prompt_id: Optional[str]
    data: Mapping[str, Any]
    at: float


class NodeProgress(NamedTuple):
    """A node that runs: when it began, its last ``value`` of ``max``, and its first one, for the rate."""

    started: float
    value: float = 0.0
    max: float = 0.0
    at: float = 0.0
    first_value: float = 0.0
    first_at: float = 0.0


class Preview(NamedTuple):
    """A picture that came over the WebSocket: the node (None: not told), a MIME type, the bytes."""

    node_id: Optional[str]
    mime: str
    image: bytes


class PromptState(NamedTuple):
    """All that is known of one prompt. Times are on the clock of the events."""

    prompt_id: str
    phase: Phase = Phase.SUBMITTING
    ahead: Optional[int] = None  # prompts before ours in the queue
    planned: FrozenSet[str] = frozenset()  # nodes that will run or are cached
    targets: FrozenSet[str] = frozenset()  # the outputs that the server accepted, when it told
    cached: FrozenSet[str] = frozenset()
    running: Mapping[str, NodeProgress] = {}
    finished: Mapping[str, float] = {}  # seconds that each finished node took
    outputs: Mapping[str, Mapping[str, Any]] = {}
    blocked: Mapping[str, str] = {}  # nodes that gave no result on purpose (ExecutionBlocked)
    failure: Mapping[str, Any] = {}  # data of execution_error or execution_interrupted
    reason: str = ""  # why a run is lost
    ending: Optional[Phase] = None  # the end as the socket told it, until history confirms
    over_seen: bool = False  # executing(null): over, and nothing about how
    per_node_state: bool = False  # the server sends progress_state, so it says when a node ends
    gaps: int = 0  # times that the socket was down: messages may be missing
    missing_since: Optional[float] = None  # absent from queue and history since
    started_at: Optional[float] = None
    ended_at: Optional[float] = None
    seconds: Optional[float] = None  # the run's time by the server's clock


_decode_json = json.JSONDecoder().decode


def parse_message(frame: Union[str, bytes], at: float) -> Event:
    """One WebSocket frame as an Event; never raises.

    Binary frames (big-endian uint32 first, ComfyUI's protocol.py): 1 picture, 3 text of a node,
    4 picture with metadata. What is broken or unknown comes back as type "unknown".
    """
    try:
        if isinstance(frame, str):
            message = _decode_json(frame)
            data = message.get("data") or {}
            prompt_id = data.get("prompt_id")
            return Event(
                str(message["type"]), prompt_id if isinstance(prompt_id, str) else None, data, at
            )
        (kind,) = struct.unpack_from(">I", frame)
        if kind == 1:
            (image_format,) = struct.unpack_from(">I", frame, 4)
            mime = {1: "image/jpeg", 2: "image/png"}.get(image_format, "application/octet-stream")
            return Event("preview", None, {"preview": Preview(None, mime, frame[8:])}, at)
        if kind in (3, 4):
            (length,) = struct.unpack_from(">I", frame, 4)
            if len(frame) < 8 + length:
                raise ValueError("cut off")
            head = frame[8 : 8 + length].decode()
            if kind == 3:
                return Event(
                    "progress_text", None, {"node": head, "text": frame[8 + length :].decode()}, at
                )
            data = json.loads(head)
            picture = Preview(
                str(data["display_node_id"]), str(data["image_type"]), frame[8 + length :]
            )
            prompt_id = data.get("prompt_id")
            return Event(
                "preview",
                prompt_id if isinstance(prompt_id, str) else None,
                {"preview": picture},
                at,
            )
    except (ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError):
        pass
    return Event("unknown", None, {}, at)


def reduce(state: PromptState, event: Event) -> PromptState:
    """``state`` after ``event``, which is about this prompt (its prompt_id, or none).

    The same object comes back when nothing changed. An end is only noted (``ending``): history is
    written after ``execution_success`` is sent, so reconcile() makes it final.
    """
    handler = REDUCERS.get(event.type)
    if handler is None or state.phase.over:
        return state
    after = handler(state, event.data, event.at)
    return state if after == state else after


def _began(state: PromptState, at: float) -> PromptState:
    if state.phase is Phase.RUNNING:
        return state
    return state._replace(phase=Phase.RUNNING, ahead=0, missing_since=None, started_at=at)


def _on_start(state: PromptState, data: Mapping[str, Any], at: float) -> PromptState:
    return _began(state, at)


def _on_cached(state: PromptState, data: Mapping[str, Any], at: float) -> PromptState:
    return _began(state, at)._replace(
        cached=state.cached | (frozenset(map(str, as_list(data.get("nodes")))) & state.planned)
    )


def _display_id(data: Mapping[str, Any]) -> Optional[str]:
    node = data.get("display_node") or data.get("node")
    return None if node is None else str(node)


def _on_executing(state: PromptState, data: Mapping[str, Any], at: float) -> PromptState:
    node_id = _display_id(data)
    if (
        node_id is None
    ):  # also follows errors and interrupts, and a 2023 server's end has no other word
        return state._replace(over_seen=True) if "node" in data and data.get("prompt_id") else state
    state = _began(state, at)
    if not state.per_node_state:  # only one node runs at a time, so the others are done
        for other in list(state.running):
            if other != node_id:
                state = _node_done(state, other, at)
    if node_id in state.running:
        return state
    return state._replace(running={**state.running, node_id: NodeProgress(at)})


def _node_done(state: PromptState, node_id: str, at: float) -> PromptState:
    progress = state.running[node_id]
    finished = dict(state.finished)
    finished[node_id] = finished.get(node_id, 0.0) + max(at - progress.started, 0.0)
    return state._replace(
        running={k: v for k, v in state.running.items() if k != node_id}, finished=finished
    )


def _ticked(progress: NodeProgress, value: float, maximum: float, at: float) -> NodeProgress:
    if value < progress.value or maximum != progress.max:  # a node may begin anew (several passes)
        return NodeProgress(progress.started, value, maximum, at, value, at)
    return NodeProgress(
        progress.started, value, maximum, at, progress.first_value, progress.first_at
    )


def _on_progress(state: PromptState, data: Mapping[str, Any], at: float) -> PromptState:
    node_id = _display_id(data)
    if node_id is None:  # 2023: no node is named, and one runs
        node_id = next(iter(state.running), None)
        if node_id is None:
            return state
    known = state.running.get(node_id)
    if known is None:
        if node_id in state.finished or state.per_node_state:
            return state
        known = NodeProgress(at)
    value, maximum = as_number(data.get("value")), as_number(data.get("max"))
    if value == known.value and maximum == known.max:
        return state
    running = dict(state.running)
    running[node_id] = _ticked(known, value, maximum, at)
    return _began(state, at)._replace(running=running)


def _on_progress_state(state: PromptState, data: Mapping[str, Any], at: float) -> PromptState:
    if not state.per_node_state or state.phase is not Phase.RUNNING:
        state = _began(state, at)._replace(per_node_state=True)
    running: Optional[Dict[str, NodeProgress]] = None
    done: Dict[str, bool] = {}
    for key, node in as_dict(data.get("nodes")).items():
        if not isinstance(node, dict):
            continue
        node_id = str(node.get("display_node_id") or key)
        if node.get("state") == "finished":
            done.setdefault(node_id, True)
            continue
        done[node_id] = False  # a node that was expanded is done when all its parts are
        known = state.running.get(node_id) if running is None else running.get(node_id)
        value, maximum = as_number(node.get("value")), as_number(node.get("max"))
        if known is not None and (
            maximum <= 1.0 or (value == known.value and maximum == known.max)
        ):
            continue
        running = dict(state.running) if running is None else running
        running[node_id] = NodeProgress(at) if known is None else _ticked(known, value, maximum, at)
    if running is not None:
        state = state._replace(running=running)
    for node_id, is_done in done.items():
        if is_done and node_id in state.running:
            state = _node_done(state, node_id, at)
    return state


def _on_executed(state: PromptState, data: Mapping[str, Any], at: float) -> PromptState:
    node_id, output = _display_id(data), data.get("output")
    if node_id is None or not isinstance(output, dict):
        return state
    return _began(state, at)._replace(outputs={**state.outputs, node_id: output})


def _on_success(state: PromptState, data: Mapping[str, Any], at: float) -> PromptState:
    return _began(state, at)._replace(ending=Phase.SUCCESS)


def _on_error(state: PromptState, data: Mapping[str, Any], at: float) -> PromptState:
    if data.get("exception_type") == "ExecutionBlocked":  # that branch stops, the run goes on
        node_id = str(data.get("node_id"))
        return state._replace(
            blocked={**state.blocked, node_id: one_line(data.get("exception_message"), 200)}
        )
    return _began(state, at)._replace(ending=Phase.ERROR, failure=data)


def _on_interrupted(state: PromptState, data: Mapping[str, Any], at: float) -> PromptState:
    return _began(state, at)._replace(ending=Phase.INTERRUPTED, failure=data)


REDUCERS: Mapping[str, Callable[[PromptState, Mapping[str, Any], float], PromptState]] = {
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


class QueuePlace(NamedTuple):
    """Where a prompt stands in an answer of GET /queue."""

    running: int  # times that it runs (0 or 1, as ComfyUI has one worker)
    pending: int  # times that it waits: 2 when a POST was taken twice
    ahead: int  # prompts that come before it
    targets: FrozenSet[str]  # the outputs that it will make

    @property
    def found(self) -> bool:
        """Whether it is there at all."""
        return bool(self.running or self.pending)


def place_in_queue(queue: Mapping[str, Any], prompt_id: str) -> QueuePlace:
    """Where ``prompt_id`` stands in ``queue`` (the body of GET /queue; its pending list is unsorted)."""
    items = [
        item
        for item in as_list(queue.get("queue_running"))
        if isinstance(item, list) and len(item) > 1
    ]
    pending = [
        item
        for item in as_list(queue.get("queue_pending"))
        if isinstance(item, list) and len(item) > 1
    ]
    pending.sort(key=lambda item: as_number(item[0]))
    ours_running = [item for item in items if item[1] == prompt_id]
    ours_pending = [index for index, item in enumerate(pending) if item[1] == prompt_id]
    ahead = 0 if ours_running or not ours_pending else len(items) + ours_pending[0]
    ours = ours_running or [pending[index] for index in ours_pending]
    targets = frozenset(map(str, as_list(ours[0][4]))) if ours and len(ours[0]) > 4 else frozenset()
    return QueuePlace(len(ours_running), len(ours_pending), ahead, targets)


def reconcile(
    state: PromptState,
    place: Optional[QueuePlace],
    entry: Optional[Mapping[str, Any]],
    prompt: Mapping[str, Any],
    at: float,
    settle: float = DEFAULT_LIMITS.settle,
) -> PromptState:
    """``state`` after reading the queue and then, in this order, the history.

    ``place`` is None when the queue was not read; ``entry`` is the prompt's history entry or None.
    A prompt only moves from waiting to running to history, so one that is in neither is gone: for
    ``settle`` seconds it may still be a history entry that is written late.
    """
    if state.phase.over:
        return state
    if entry is not None:
        return _conclude(state, entry, prompt, at)
    if place is None:
        return state
    if place.found:
        if place.targets and place.targets != state.targets:
            state = state._replace(targets=place.targets, planned=upstream(prompt, place.targets))
        if place.running:
            return _began(state, at)._replace(missing_since=None)
        if state.phase is Phase.RUNNING:  # the answer is older than the message that it began
            return state._replace(missing_since=None)
        return state._replace(phase=Phase.QUEUED, ahead=place.ahead, missing_since=None)
    if state.phase is Phase.SUBMITTING:
        return state
    if state.missing_since is None:
        return state._replace(missing_since=at)
    if at - state.missing_since < settle:
        return state
    if (
        state.ending is not None
    ):  # the history entry was evicted or cleared: the socket's word counts
        return _ended(state, state.ending, at)
    if state.phase is Phase.QUEUED and not state.gaps and not state.over_seen:
        return _ended(state, Phase.DELETED, at)
    return lost(
        state,
        "it is neither in the server's queue nor in its history any more (a restart loses both)",
        at,
    )


def lost(state: PromptState, reason: str, at: float) -> PromptState:
    """``state`` as lost, for ``reason`` (a clause); an end that is already there stays."""
    return state if state.phase.over else _ended(state, Phase.LOST, at)._replace(reason=reason)


def _ended(state: PromptState, phase: Phase, at: float) -> PromptState:
    if phase is Phase.SUCCESS:
        for node_id in list(state.running):
            state = _node_done(state, node_id, at)
    return state._replace(phase=phase, running={}, ended_at=at, missing_since=None)


def _conclude(
    state: PromptState, entry: Mapping[str, Any], prompt: Mapping[str, Any], at: float
) -> PromptState:
    """The end as a history entry tells it. Its messages are trusted over ``status_str``, which can
    say success after an error while the run was set up; ``status`` may be null (2023)."""
    status = as_dict(entry.get("status"))
    messages = [
        (str(message[0]), as_dict(message[1]))
        for message in as_list(status.get("messages"))
        if isinstance(message, list) and len(message) == 2
    ]
    item = as_list(entry.get("prompt"))
    targets = frozenset(map(str, as_list(item[4]))) if len(item) > 4 else frozenset()
    if targets:
        state = state._replace(targets=targets, planned=upstream(prompt, targets) or state.planned)
    phase = Phase.ERROR if status.get("status_str") == "error" else Phase.SUCCESS
    times = {}
    for name, data in messages:
        times[name] = as_number(data.get("timestamp"))
        if name == "execution_cached":
            state = _on_cached(state, data, at)
        elif name == "execution_interrupted":
            phase, state = Phase.INTERRUPTED, state._replace(failure=data)
        elif name == "execution_error" and data.get("exception_type") != "ExecutionBlocked":
            phase, state = Phase.ERROR, state._replace(failure=data)
    if not status and state.ending in (Phase.ERROR, Phase.INTERRUPTED):
        phase = state.ending
    begin, end = times.get("execution_start", 0.0), max(times.values(), default=0.0)
    outputs = {
        str(node_id): output
        for node_id, output in as_dict(entry.get("outputs")).items()
        if isinstance(output, dict)
    }
    state = state._replace(
        outputs={**state.outputs, **outputs},
        seconds=(end - begin) / 1000 if begin and end >= begin else state.seconds,
        started_at=at if state.started_at is None else state.started_at,
    )
    return _ended(state, phase, at)


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
    """How long the prompt has run (or ran), in seconds; by the server's clock where it told."""
    if state.seconds is not None:
        return state.seconds
    end = now if state.ended_at is None else state.ended_at
    return end - state.started_at if state.started_at is not None else 0.0


class NextCheck(NamedTuple):
    """What the follower knows of its connection when it asks whether to read queue and history."""

    now: float
    heard: float  # when the last message about this prompt came
    checked: float  # when queue and history were last read
    checks: int  # reads since the last message
    connected: bool
    deaf: bool  # the socket was opened anew and has said nothing about this prompt since
    queue_moved: bool  # a status message came since the last read
    repeated: bool  # the prompt was posted twice, so it may stand in the queue twice


def seconds_to_check(state: PromptState, view: NextCheck, limits: Limits) -> float:
    """How many seconds until queue and history must be read (0 or less: now).

    The socket is a hint. The truth is read at an end, while the socket is down or may be deaf
    (ComfyUI issue 16010), when the queue moved while we wait, and after silence.
    """
    since = view.now - view.checked
    if state.over_seen or state.ending is not None or state.missing_since is not None:
        # execution_success comes before the history entry, executing(null) after it
        patience = 0.0 if state.over_seen else 0.25
        if view.checks:
            patience = (0.1, 0.2, 0.4, 0.8, 1.0)[min(view.checks, 5) - 1]
        return patience - min(since, view.now - view.heard)
    if not view.connected or view.deaf:
        return min((0.5, 1.0, 2.0, 4.0)[min(view.checks, 3)], limits.poll) - since
    if view.queue_moved and (state.phase is not Phase.RUNNING or view.repeated):
        return 0.3 - since
    if state.phase in (Phase.SUBMITTING, Phase.QUEUED) and state.ahead is None:
        return 0.5 - since
    wait = min(limits.poll * (1, 2, 3)[min(view.checks, 2)], 15.0)
    return wait - min(since, view.now - view.heard)
