"""Which connections have one of the places of the service. No socket is touched here.

Each connection holds a thread, so there are only so many places. Nobody may take them all without
the token by sending nothing, or little: such a connection loses its place to a new one.
"""

from __future__ import annotations

import threading
from typing import Any, Dict, NamedTuple

#: Connections that are served, and how many more for /health alone: a watchdog must not take a busy
#: service for a dead one.
PLACES, PLACES_FOR_HEALTH = 64, 8


class Entry(NamedTuple):
    """What becomes of a new connection, and which one loses its place for it (None: no other)."""

    is_let_in: bool
    loser: Any = None


class Places:
    """The connections that are open. Any hashable objects can stand for them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_crowded: Dict[Any, bool] = {}
        #: connections that have not shown yet that they may use the service, or have asked for
        #: nothing since their last answer; the one that has waited longest comes first
        self._waiting: Dict[Any, None] = {}

    def __len__(self) -> int:
        return len(self._is_crowded)

    def enter(self, connection: Any) -> Entry:
        """A place for a new connection, if there is one, or one that another can do without."""
        with self._lock:
            loser = None
            if len(self._is_crowded) >= PLACES:
                loser = next(iter(self._waiting), None)
            if loser is not None:
                del self._waiting[loser]
                del self._is_crowded[loser]

            is_crowded = len(self._is_crowded) >= PLACES
            if len(self._is_crowded) >= PLACES + PLACES_FOR_HEALTH:
                return Entry(False)
            self._is_crowded[connection] = is_crowded
            if not is_crowded:
                self._waiting[connection] = None
            return Entry(True, loser)

    def leave(self, connection: Any) -> None:
        """A connection is closed."""
        with self._lock:
            self._is_crowded.pop(connection, None)
            self._waiting.pop(connection, None)

    def is_crowded(self, connection: Any) -> bool:
        """Whether it came when all places were taken: it may ask for /health alone."""
        return self._is_crowded.get(connection, False)

    def hold(self, connection: Any) -> bool:
        """It may use the service, and keeps its place from now on; False if it has lost it."""
        with self._lock:
            self._waiting.pop(connection, None)
            return connection in self._is_crowded

    def offer(self, connection: Any) -> None:
        """It has its answer: its place is for others again until it asks for more."""
        with self._lock:
            if self._is_crowded.get(connection) is False:
                self._waiting.pop(connection, None)
                self._waiting[connection] = None
