"""Prompts of others in ComfyUI's queue. No clock, no socket."""

from __future__ import annotations

from typing import Dict, NamedTuple, Optional


class QueueLength(NamedTuple):
    """How many prompts of all clients ran or waited in ComfyUI at some time."""

    prompts: Optional[int]  #: None: not known
    at: float  #: in seconds of any one clock


#: What is known before ComfyUI has said anything.
UNKNOWN_LENGTH = QueueLength(None, float("-inf"))


class Others(NamedTuple):
    """How many prompts in ComfyUI's queue are not ours."""

    running: int
    waiting: int

    def to_json(self) -> Dict[str, int]:
        """As GET /status shows it."""
        return self._asdict()


def count_others(length: QueueLength, ours: int, ours_is_running: bool) -> Optional[Others]:
    """The prompts in the queue that are not among ``ours``; None if its length is not known.

    ComfyUI runs one prompt at a time. So where ours is not running, one of the others is.
    """
    if length.prompts is None:
        return None
    others = max(length.prompts - ours, 0)
    other_is_running = others > 0 and not ours_is_running
    running = int(other_is_running)
    return Others(running, others - running)


class SettledOthers:
    """What is shown of the others: what has been seen for ``seconds`` without a change.

    When one of our runs begins or ends, ComfyUI's count and ours change at different moments, and
    for that time their difference is wrong.
    """

    def __init__(self, seconds: float) -> None:
        self.shown: Optional[Others] = None
        self._seconds = seconds
        self._seen: Optional[Others] = None
        self._since = float("-inf")

    def look(self, seen: Optional[Others], now: float) -> bool:
        """Takes what is seen ``now``. Returns whether that changes what is shown."""
        if seen != self._seen:
            self._seen = seen
            self._since = now
        is_settled = now - self._since >= self._seconds
        if seen == self.shown or not is_settled:
            return False
        self.shown = seen
        return True
