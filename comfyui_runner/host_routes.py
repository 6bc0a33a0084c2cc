"""Which of a host's IP addresses answers, found out once for HTTP and WebSocket.

``localhost`` is ::1 and 127.0.0.1, but ComfyUI listens only on the second. Windows tries a port
that refuses connections for two seconds, and each connection would begin with that pause.
"""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import time
from typing import Any, Collection, Iterable, List, NamedTuple, Optional, Sequence, Tuple

#: How long a preferred address may still answer after another one has: the shortest delay that
#: RFC 8305, section 5, allows.
GRACE_SECONDS = 0.1

#: EWOULDBLOCK of Windows' sockets.
WSAEWOULDBLOCK = 10035

#: What connect_ex() returns for a socket that is connected or connecting.
CONNECTING = (0, errno.EINPROGRESS, errno.EWOULDBLOCK, WSAEWOULDBLOCK)


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
        self._known = ""  # what find() returned last; "": not known

    def find(self, seconds: float) -> str:
        """What to connect to in place of the name. Blocks for ``seconds`` at most.

        If nothing answers, it is the first address. A name without addresses stays as it is: the
        connection then fails with the reason.
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
        """Look for the address again: a connection failed, and another one may answer now."""
        self._known = ""


def look_up_endpoints(host: str, port: int) -> List[Endpoint]:
    """The addresses of a name, the preferred one first; none if it is not known."""
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # UnicodeError: a part of the name that is empty or too long
        return []
    endpoints = []
    for family, _, _, _, socket_address in dict.fromkeys(entries):
        endpoints.append(Endpoint(family, socket_address))
    return endpoints


def connect_to_first(endpoints: Sequence[Endpoint], seconds: float) -> Optional[Endpoint]:
    """The most preferred endpoint that accepts a connection, None if none does in ``seconds``.

    All are tried at the same time. The connections are closed again.
    """
    answered: List[int] = []  # their indexes in ``endpoints``; lower ones are preferred
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
            seconds_left = max(deadline - time.monotonic(), 0.0)
            ready = selector.select(seconds_left)
            if not ready:
                break
            for key, _ in ready:
                selector.unregister(key.fileobj)
                waiting.remove(key.data)
                connection = key.fileobj  # type: ignore[assignment]
                has_connected = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
                if has_connected:
                    answered.append(key.data)
                    deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
    if not answered:
        return None
    return endpoints[min(answered)]


def has_best(answered: Iterable[int], waiting: Collection[int]) -> bool:
    """Whether one has answered that is preferred to all that are ``waiting``."""
    best = min(answered, default=None)
    if best is None:
        return False
    return all(best < rank for rank in waiting)
