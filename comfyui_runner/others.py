"""Prompts of others in ComfyUI's queue. No clock, no socket."""

from __future__ import annotations

from typing import Dict, NamedTuple, Optional


class QueueLength(NamedTuple):
    """How many prompts ran or waited in ComfyUI at some time, all clients together.

    ``prompts`` is None if that was not known.
    """

    prompts: Optional[int]
    at: float  # in seconds of any one clock


#: Before anything was heard.
UNKNOWN_LENGTH = QueueLength(None, float("-inf"))


class Others(NamedTuple):
    """How many prompts in ComfyUI's queue are not ours."""

    running: int
    waiting: int

    def to_json(self) -> Dict[str, int]:
        """As GET /status shows it."""
        return self._asdict()


def count_others(length: QueueLength, ours: int, ours_is_running: bool) -> Optional[Others]:
    """Who else is in the queue of ``length``, with ``ours`` in it; None if it is not known.

    ComfyUI runs one prompt at a time.
    """
    if length.prompts is None:
        return None
    others = max(length.prompts - ours, 0)
    running = 1 if others and not ours_is_running else 0
    return Others(running, others - running)


class SettledOthers:
    """What is shown of the others: what was seen for ``seconds``.

    ComfyUI's number and ours do not change at the same moment when one of our runs begins or ends.
    """

    def __init__(self, seconds: float) -> None:
        self.shown: Optional[Others] = None
        self._seconds = seconds
        self._seen: Optional[Others] = None
        self._since = float("-inf")

    def look(self, seen: Optional[Others], now: float) -> bool:
        """Takes what is seen ``now``; whether something else is to be shown by it."""
        if seen != self._seen:
            self._seen, self._since = seen, now
        is_settled = now - self._since >= self._seconds
        if seen == self.shown or not is_settled:
            return False
        self.shown = seen
        return True
