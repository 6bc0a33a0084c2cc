"""The sockets of continuous mode. Each connection has a thread.

The rules are elsewhere: http_head and http_body read, service_routes answers.
"""

from __future__ import annotations

import contextlib
import http.server
import math
import os
import socket
import socketserver
import threading
import time
from typing import Any, Dict, List, Set, Tuple

from comfyui_runner import __version__
from comfyui_runner.http_body import RequestBody
from comfyui_runner.http_head import Head, HeadCutOff, parse_head
from comfyui_runner.limits import SERVICE_LIMITS
from comfyui_runner.messages import (
    HttpError,
    Request,
    Response,
    encode_head,
    hide_secrets,
    security_headers,
)
from comfyui_runner.places import Places
from comfyui_runner.service_routes import Client, ServiceRoutes, show_error

#: Seconds between two looks for heads that take too long, and for the end of the service.
POLL_SECONDS = 0.1

#: Bytes that are sent at once. Each piece has the idle time for itself.
SEND_SIZE = 1 << 16

#: Seconds, in all and for each piece, in which what a client still sends is taken before the
#: connection is closed. To close it with bytes unread resets it, and the answer may be lost.
LINGER_SECONDS, LINGER_PIECE_SECONDS = 2.0, 1.0

#: How the header Server of every answer begins.
NAME_IN_ANSWERS = "comfyui-workflow-runner/"

#: Stands for a request whose head could not be read.
UNREADABLE_REQUEST = Request("", "", {}, {})


class RequestHandler(http.server.BaseHTTPRequestHandler):
    """The thread of one connection."""

    server: "HttpListener"
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    rbufsize = 1 << 16

    def setup(self) -> None:
        """Called by the base class first."""
        super().setup()
        self.connection.settimeout(self.server.limits.idle)

    def handle_one_request(self) -> None:
        """Called by the base class until close_connection is set."""
        self.close_connection = True  # unless all goes well
        try:
            if not self.rfile.peek(1):  # type: ignore[attr-defined]
                return  # the client closed the connection
            head = self._read_head()
            request = head.request._replace(client=str(self.client_address[0]))
            if self._has_its_place(request):
                self.server.busy.add(self.connection)
                self._answer(head._replace(request=request))
        except HttpError as error:  # of a head: of a request, or of an answer that cannot be sent
            self.close_connection = True  # where the next request begins may not be certain
            request = error.request or UNREADABLE_REQUEST
            request = request._replace(client=str(self.client_address[0]))
            self.server.routes.note_refusal(request, error)
            self._send(show_error(request, error), request)
            self._linger(math.inf)  # how long its body is, if it has one, may not be known
        except OSError:
            pass  # the connection broke
        finally:
            self.server.busy.discard(self.connection)
            self.server.places.offer(self.connection)

    def _has_its_place(self, request: Request) -> bool:
        """Whether the connection has not lost its place; who has the token keeps it from now on."""
        guard = self.server.routes.guard
        is_trusted = guard.token is None or guard.has_token(request)
        return not is_trusted or self.server.places.hold(self.connection)

    def _read_head(self) -> Head:
        deadlines = self.server.deadlines
        deadlines[self.connection] = time.monotonic() + self.server.limits.head
        try:
            return parse_head(self.rfile.readline)
        except HeadCutOff:
            if self.connection in deadlines:
                raise  # the client left
            raise HttpError(
                408, "timeout", "The head of the request did not arrive in time."
            ) from None
        finally:
            deadlines.pop(self.connection, None)

    def _answer(self, head: Head) -> None:
        set_timeout, limits = self.connection.settimeout, self.server.limits
        body = RequestBody(head, self.rfile, self.wfile.write, set_timeout, limits)
        is_crowded = self.server.places.is_crowded(self.connection)
        client = Client(is_crowded, self._has_left)
        response = self.server.routes.respond(head.request, body, client)
        can_go_on = (
            head.keeps_alive
            and not is_crowded  # its place is for others
            and not response.ends_with_connection
            and body.skip_rest()
        )
        self.close_connection = not can_go_on
        set_timeout(limits.idle)
        self._send(response, head.request)
        if self.close_connection and body.unread:
            self._linger(body.unread)

    def _has_left(self) -> bool:
        """Whether the client has closed its side of the connection, while it waits for an answer.

        A client that sends nothing more but still reads looks the same, and counts as one that has
        left (as in Go's net/http). One that has sent its next request already counts as there:
        what it sent is not read, so that its end is not seen.
        """
        try:
            self.connection.setblocking(False)
            return len(self.connection.recv(1, socket.MSG_PEEK)) == 0
        except (BlockingIOError, InterruptedError):
            return False  # nothing has come
        except OSError:
            return True  # it is broken
        finally:
            self.connection.settimeout(self.server.limits.idle)

    def _send(self, response: Response, request: Request) -> None:
        routes = self.server.routes
        response = hide_secrets(response, routes.service.options.secrets)
        headers = routes.guard.cors_headers(request)
        if self.close_connection:
            headers = (*headers, ("Connection", "close"))
        head = encode_head(response, (*headers, *self.server.headers))

        if request.method == "HEAD":
            self._write(head)
        elif response.stream is None:
            # in one piece: two cost 40 ms on a connection that is kept (Nagle, delayed ACK)
            self._write(head + response.body)
        else:
            self._write(head)
            self._send_stream(response)

    def _send_stream(self, response: Response) -> None:
        assert response.stream is not None
        try:
            response.stream(self._write)
        except Exception:  # the answer has begun: all that can be said is that it broke off
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def _write(self, data: bytes) -> None:
        for start in range(0, len(data), SEND_SIZE):
            self.wfile.write(data[start : start + SEND_SIZE])

    def _linger(self, unread: float) -> None:
        """Take what is still being sent, ``unread`` bytes at most, for a moment."""
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(LINGER_PIECE_SECONDS)
        deadline = time.monotonic() + LINGER_SECONDS
        while unread > 0 and time.monotonic() < deadline:
            piece = self.connection.recv(SEND_SIZE)
            if not piece:
                return
            unread -= len(piece)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Requests are not logged: URLs may hold what is private."""


#: Windows' option SO_EXCLUSIVEADDRUSE (winsock2.h: ~SO_REUSEADDR): nobody else binds the port at
#: another address of this machine, 0.0.0.0 beside 127.0.0.1.
WINDOWS_EXCLUSIVE_USE = -5


def options_of_listener(family: int, is_windows: bool) -> List[Tuple[int, int, int]]:
    """The options of a socket that listens, as setsockopt() takes them: level, option, value."""
    options = []
    if family == socket.AF_INET6:
        # At ``::``, IPv4 is taken too: the default everywhere but on Windows and some BSDs.
        options.append((socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0))
    if is_windows:
        options.append((socket.SOL_SOCKET, WINDOWS_EXCLUSIVE_USE, 1))
    return options


class HttpListener(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """Listens at ``host`` and ``port`` (0: any free one). Raises OSError if it cannot."""

    daemon_threads = True
    allow_reuse_address = os.name == "posix"  # Windows would let two services share a port
    allow_reuse_port = False  # so would others, where the base class of a Python allows it
    request_queue_size = 128
    limits = SERVICE_LIMITS

    def __init__(self, routes: ServiceRoutes, host: str, port: int) -> None:
        self.routes = routes
        self.headers = (
            ("Server", f"{NAME_IN_ANSWERS}{__version__}"),
            *security_headers(routes.page),
        )
        #: connection -> when its head must have come
        self.deadlines: Dict[Any, float] = {}
        self.places = Places()
        #: connections that are being answered
        self.busy: Set[Any] = set()
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), RequestHandler)

    def server_bind(self) -> None:
        """Without http.server's look-up of this machine's name, which may hang."""
        for option in options_of_listener(self.address_family, os.name == "nt"):
            with contextlib.suppress(OSError):  # OpenBSD has no sockets for both
                self.socket.setsockopt(*option)
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Called by the base class for each new connection."""
        entry = self.places.enter(request)
        if entry.loser is not None:
            _shut_down(entry.loser, socket.SHUT_RDWR)  # its thread sees that and ends
        if entry.is_let_in:
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        """Called by the base class at the end of each connection."""
        self.places.leave(request)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Called by the base class every POLL_SECONDS: ends heads that take too long."""
        now = time.monotonic()
        late: List[Tuple[Any, float]] = list(self.deadlines.items())
        for connection, deadline in late:
            if now > deadline:
                self.deadlines.pop(connection, None)
                _shut_down(connection, socket.SHUT_RD)  # its thread answers 408

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that break are not worth a message."""

    def start(self) -> None:
        """Serve in a thread, until shutdown()."""
        options = {"poll_interval": POLL_SECONDS}
        threading.Thread(target=self.serve_forever, kwargs=options, daemon=True).start()

    def wait_for_answers(self, seconds: float) -> None:
        """Wait until every answer that has begun is sent, for ``seconds`` at most."""
        deadline = time.monotonic() + seconds
        while self.busy and time.monotonic() < deadline:
            time.sleep(0.02)


def _shut_down(connection: Any, how: int) -> None:
    """Have the thread of ``connection`` read no more."""
    try:
        connection.shutdown(how)
    except OSError:
        pass  # it was closed meanwhile
