"""Refused requests on the console: a line for each, unless there are too many."""

from __future__ import annotations

import threading
from typing import Dict, List, NamedTuple, Optional, Tuple

from comfyui_runner.reports import Report
from comfyui_runner.text import one_line

#: Seconds for which refusals of one kind are counted after the line that showed the first of them.
COUNTING_SECONDS = 10.0

#: Kinds that are counted one by one. A flood of requests may have any number of them.
MOST_KINDS = 30

#: Characters of a line that somebody else chose: a path, and the reason.
PATH_SHOWN, REASON_SHOWN = 60, 400


class Refusal(NamedTuple):
    """A request that was refused, and why."""

    client: str  # the address that it came from
    page: str  # the page of another site that it came from, "" for all others
    method: str
    path: str
    status: int
    type: str
    message: str

    @property
    def kind(self) -> Tuple[str, ...]:
        """What refusals have in common that are counted together."""
        return (self.client, self.path, self.type)

    def report(self, count: int) -> Report:
        """The report of it and of those like it, ``count`` in all."""
        return {
            "event": "refused",
            "client": self.client,
            "page": one_line(self.page, PATH_SHOWN),
            "method": one_line(self.method, PATH_SHOWN),
            "path": one_line(self.path, PATH_SHOWN),
            "status": self.status,
            "type": self.type,
            "message": one_line(self.message, REASON_SHOWN),
            "count": count,
        }


class _Counter:
    """The refusals of one kind since a line was shown: how many, and the last of them."""

    def __init__(self, shown_at: float) -> None:
        self.shown_at = shown_at
        self.count = 0
        self.last: Optional[Refusal] = None


#: The kind of all refusals that are too many to be counted by their own kinds.
_OTHER_KINDS = ("",)


class RefusalLog:
    """Decides which refusals are shown, so that a flood of requests does not flood the console.

    The first of a kind is shown at once. Those that follow are counted, and shown in one line every
    COUNTING_SECONDS. Called from any thread; times are of the monotonic clock.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: Dict[Tuple[str, ...], _Counter] = {}

    def add(self, refusal: Refusal, now: float) -> Optional[Report]:
        """Take note of a refusal: the report to show at once, or None."""
        with self._lock:
            kind = refusal.kind
            if kind not in self._counters and len(self._counters) >= MOST_KINDS:
                kind = _OTHER_KINDS
            counter = self._counters.get(kind)
            if counter is None:
                self._counters[kind] = _Counter(now)
                return refusal.report(1)
            counter.count += 1
            counter.last = refusal
            return None

    def take_due(self, now: float) -> List[Report]:
        """The reports of what has been counted for long enough."""
        reports = []
        with self._lock:
            for kind, counter in list(self._counters.items()):
                if now < counter.shown_at + COUNTING_SECONDS:
                    continue
                if counter.last is None:  # no more of this kind came: the next one is shown at once
                    del self._counters[kind]
                    continue
                last = counter.last
                if kind == _OTHER_KINDS:
                    last = last._replace(client=f"{last.client} and others")
                reports.append(last.report(counter.count))
                self._counters[kind] = _Counter(now)
        return reports
