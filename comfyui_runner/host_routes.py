"""Which of a host's IP addresses answers, found out once for HTTP and WebSocket.

``localhost`` is ::1 and 127.0.0.1, and ComfyUI listens on the second alone. Windows keeps trying a
port that refuses it for two seconds: each connection would begin with that pause.
"""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import time
from typing import Any, Collection, Iterable, List, NamedTuple, Optional, Sequence, Tuple

#: Seconds in which a preferred address may still answer when another one has: the shortest delay
#: that RFC 8305, section 5, allows.
GRACE_SECONDS = 0.1

#: What connect_ex() returns while it is connecting; the last is Windows' WSAEWOULDBLOCK.
CONNECTING = (0, errno.EINPROGRESS, errno.EWOULDBLOCK, 10035)


class Endpoint(NamedTuple):
    """One IP address of a name, with the port, as socket.getaddrinfo() has it."""

    family: int
    socket_address: Tuple[Any, ...]

    @property
    def ip(self) -> str:
        """The IP address."""
        return str(self.socket_address[0])


class HostRoute:
    """The way to ``host`` and ``port``: the IP address that answered, until it is forgotten."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._known = ""

    def find(self, seconds: float) -> str:
        """What to connect to, in place of the name. Blocks, ``seconds`` long at most.

        If nothing answers, it is the first address. A name without addresses stays as it is: the
        connection fails then, with the reason.
        """
        if self._known:
            return self._known
        endpoints = look_up_endpoints(self._host, self._port)
        if len(endpoints) < 2:
            self._known = self._host
            return self._host
        answering = connect_to_first(endpoints, seconds)
        if answering is None:
            return endpoints[0].ip
        self._known = answering.ip
        return self._known

    def forget(self) -> None:
        """A connection failed: the server may answer at another address of its name now."""
        self._known = ""


def look_up_endpoints(host: str, port: int) -> List[Endpoint]:
    """The addresses of a name, the preferred one first; none if it is not known."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # UnicodeError: a part of the name that is empty or too long
        return []
    return [Endpoint(entry[0], entry[4]) for entry in dict.fromkeys(found)]


def connect_to_first(endpoints: Sequence[Endpoint], seconds: float) -> Optional[Endpoint]:
    """The most preferred endpoint that takes a connection, None if none does in ``seconds``.

    All are tried at the same time. The connections are closed again.
    """
    answered: List[int] = []
    waiting: List[int] = []
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        for rank, endpoint in enumerate(endpoints):
            with contextlib.suppress(OSError):  # a family that this machine does not have
                connection = socket.socket(endpoint.family, socket.SOCK_STREAM)
                stack.enter_context(connection)
                connection.setblocking(False)
                if connection.connect_ex(endpoint.socket_address) in CONNECTING:
                    selector.register(connection, selectors.EVENT_WRITE, rank)
                    waiting.append(rank)

        deadline = time.monotonic() + seconds
        while waiting and not has_best(answered, waiting):
            ready = selector.select(max(deadline - time.monotonic(), 0.0))
            if not ready:
                break
            for key, _ in ready:
                selector.unregister(key.fileobj)
                waiting.remove(key.data)
                connection = key.fileobj  # type: ignore[assignment]
                if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                    deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
                    answered.append(key.data)
    if not answered:
        return None
    return endpoints[min(answered)]


def has_best(answered: Iterable[int], waiting: Collection[int]) -> bool:
    """Whether no endpoint that is still waited for is preferred to all that have answered."""
    best = min(answered, default=None)
    return best is not None and all(best < rank for rank in waiting)
