"""Waiting for the ends of runs, in the threads of connections. No socket is touched here.

Each client that waits holds a connection, so only so many may: the others must still get answers.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Callable, Iterator

from comfyui_runner.messages import HttpError
from comfyui_runner.places import PLACES

#: Connections that may wait for runs at a time, of the PLACES that are served.
MOST_CLIENTS_WAITING = PLACES - 16

#: Seconds between two looks whether a client that waits has left.
LEFT_INTERVAL = 0.25

#: Seconds after which a client may try again that may not wait now.
RETRY_WAITING_AFTER = "2"


class WaitingRoom:
    """Counts the connections that wait for runs. May be used in any thread."""

    def __init__(self, most: int = MOST_CLIENTS_WAITING) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place in it, for as long as the block runs. Raises HttpError 429 if all are taken."""
        with self._lock:
            if self._count >= self._most:
                raise too_many_waiting(self._most)
            self._count += 1
        try:
            yield
        finally:
            with self._lock:
                self._count -= 1


def too_many_waiting(most: int) -> HttpError:
    """The answer to a client that would have to wait, when too many do."""
    message = (
        f"{most} clients are already waiting for runs. Try again soon, or do not wait: ?wait=0."
    )
    headers = (("Retry-After", RETRY_WAITING_AFTER),)
    return HttpError(429, "too_many_waiting", message, headers=headers)


def wait_unless_left(over: threading.Event, seconds: float, has_left: Callable[[], bool]) -> bool:
    """Wait until ``over`` is set, for ``seconds`` (``inf``: any time); False if the client left.

    ``has_left()`` says whether it has closed its connection. A client that leaves after the end
    counts as one that stayed.
    """
    deadline = time.monotonic() + seconds
    while True:
        seconds_left = max(deadline - time.monotonic(), 0.0)
        if over.wait(min(seconds_left, LEFT_INTERVAL)) or seconds_left == 0.0:
            return True
        if has_left():
            return over.is_set()
