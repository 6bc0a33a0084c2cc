"""The HTTP side of continuous mode: reading heads and bodies, sending answers."""

from __future__ import annotations

import http.server
import itertools
import os
import re
import socket
import socketserver
import struct
import threading
import time
import urllib.parse
from typing import Any, Dict, Set

from comfyui_runner import __version__
from comfyui_runner.messages import HttpError, Request, Response, error_response, security_headers
from comfyui_runner.routes import find_route
from comfyui_runner.service import Service
from comfyui_runner.text import size_in_words

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+").fullmatch


def make_http_server(service: Service, host: str, port: int) -> Any:
    """The listening http.server for ``service``; its serve_forever() runs in a thread of its own.

    Raises OSError when the port is taken.
    """

    always = (("Server", "comfyui-workflow-runner/" + __version__), *security_headers(service.page))
    on_every_answer = "".join("\r\n%s: %s" % pair for pair in always).encode() + b"\r\n\r\n"

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30.0  # between two pieces of a body or of an answer, and between two requests
        disable_nagle_algorithm = True
        rbufsize = 1 << 16

        def setup(self) -> None:
            super().setup()
            # the kernel's limits: with Python's own every call polls first, and 8 threads lose a third of their time
            self.connection.settimeout(None)
            limit = struct.pack("L", int(1000 * self.timeout))  # Windows: milliseconds
            if os.name == "posix":
                limit = struct.pack("ll", int(self.timeout), int(self.timeout % 1 * 1e6))
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                self.connection.setsockopt(socket.SOL_SOCKET, option, limit)

        def handle_one_request(self) -> None:
            listener: Any = self.server
            self.requestline = self.command = ""
            self.head: Dict[str, str] = {}
            self.unread, self.close_connection = 0, True
            try:
                if not self.rfile.peek(1):  # type: ignore[attr-defined]
                    return
                listener.deadlines[self.connection] = time.monotonic() + listener.head_seconds
                self._read_head()
                listener.busy.add(self.connection)
                self._answer()
            except HttpError as error:
                self.close_connection = True
                self._send(error_response(error), "")
            except OSError:
                self.close_connection = True
            finally:
                listener.deadlines.pop(self.connection, None)
                listener.busy.discard(self.connection)

        def _read_head(self) -> None:
            """Reads command, path and headers (http.server's own way takes half of the time of a short
            answer, the end of a connection for the end of the head, and a length that stands twice)."""
            size = 0
            for count in itertools.count():
                line = self.rfile.readline(65537)
                size += len(line)
                if not line.endswith(b"\n") and len(line) <= 65536:
                    late = self.connection not in self.server.deadlines  # type: ignore[attr-defined]
                    raise (
                        HttpError(408, "timeout", "The head did not come in time.")
                        if late
                        else ConnectionError()
                    )
                if size > 65536 or count > 101:
                    raise HttpError(431, "head_too_large", "The head is too large.")
                text = line.decode("latin-1").rstrip("\r\n")
                if not self.requestline:
                    self.requestline = text
                    words = text.split(" ")
                    if len(words) != 3 or words[2] not in ("HTTP/1.1", "HTTP/1.0"):
                        raise HttpError(400, "bad_request", "The first line is not HTTP/1.1.")
                    continue
                if not text:
                    break
                name, colon, value = text.partition(":")
                name, value = name.lower(), value.strip()
                if not colon or not _HEADER_NAME(name):
                    raise HttpError(400, "bad_request", "A line of the head is no header.")
                if name in self.head:
                    if name in ("host", "content-length", "transfer-encoding"):
                        raise HttpError(
                            400, "bad_request", "The header %s stands twice in the head." % name
                        )
                    value = self.head[name] + ("; " if name == "cookie" else ", ") + value
                self.head[name] = value
            self.server.deadlines.pop(self.connection, None)  # type: ignore[attr-defined]
            self.command, self.path, self.request_version = words
            wish = self.head.get("connection", "").lower()
            self.close_connection = "close" in wish or (
                words[2] == "HTTP/1.0" and "keep-alive" not in wish
            )

        def log_message(self, format: str, *arguments: Any) -> None:
            """Requests are not logged: URLs may hold what is private."""

        def _answer(self) -> None:
            path, _, text = re.sub(r"(?i)^https?://[\w.:-]+(?=[/?]|$)", "", self.path).partition(
                "?"
            )
            if not path.startswith("/"):
                raise HttpError(400, "bad_request", "The path is none.")
            path = re.sub("^/api(?=/|$)", "", path) or "/"
            query = dict(urllib.parse.parse_qsl(text, True, errors="replace")) if text else {}
            request = Request(self.command, path, query, self.head)
            length = self.head.get("content-length", "0")
            self.unread = int(length) if re.match(r"^\d{1,18}$", length) else 0
            try:
                response = self._route(request, length)
            except Exception as error:
                response = error_response(error)
            self.close_connection = self.close_connection or response.status in (408, 411, 413)
            self._drain()
            origin = self.head.get("origin", "")
            self._send(response, origin if origin in service.options.guard.origins else "")
            self._linger()

        def _route(self, request: Request, length: str) -> Response:
            crowded = self.server.crowded(self.connection)  # type: ignore[attr-defined]
            if crowded and request.path != "/health":
                self.close_connection = True
                raise HttpError(
                    503, "too_many_connections", "There are too many connections.", Retry_After="1"
                )
            if "transfer-encoding" in request.headers:
                self.close_connection = True
                raise HttpError(
                    411, "length_required", "Send a Content-Length, not a chunked body."
                )
            if not re.match(r"^\d{1,18}$", length):
                self.close_connection = True
                raise HttpError(400, "bad_request", "Content-Length must be a number.")
            if request.method == "OPTIONS":
                return self._options(request)
            refusal = service.options.guard.refusal(request)
            if refusal is not None:
                raise refusal
            row, parts = find_route(request.method, request.path)
            if request.method == "HEAD" and row.handler in ("start_run", "get_events"):
                return Response(200)  # asking does not start anything
            response: Response = getattr(service, row.handler)(request, self._read, **parts)
            return response

        def _options(self, request: Request) -> Response:
            try:
                find_route("OPTIONS", request.path)
            except HttpError as error:
                if error.http_status == 404:
                    raise
                allow = dict(error.headers)["Allow"]
                more = [
                    ("Access-Control-Allow-Methods", allow),
                    ("Access-Control-Allow-Headers", "authorization, content-type"),
                ]
                return Response(204, headers=(("Allow", allow), *more))
            raise AssertionError("no route takes OPTIONS")

        def _read(self, limit: int, file: Any = None) -> bytes:
            """The body, or (to ``file``) b""; refused before a byte of it is read when it is too large."""
            if self.unread > limit:
                raise HttpError(
                    413, "too_large", "The body is larger than %s." % size_in_words(limit)
                )
            if self.head.pop("expect", "").lower() == "100-continue":
                self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            pieces = []
            while self.unread:
                asked = time.monotonic()
                try:
                    piece = self.rfile.read1(min(self.unread, 1 << 18))
                except OSError:
                    piece = b""
                if not piece:
                    self.close_connection = True
                    if time.monotonic() - asked > 0.9 * self.timeout:
                        raise HttpError(408, "timeout", "The body did not come in time.")
                    raise HttpError(400, "body_cut_short", "The body ended too early.")
                self.unread -= len(piece)
                if file is None:
                    pieces.append(piece)
                else:
                    file.write(piece)
            return b"".join(pieces)

        def _drain(self) -> None:
            """Reads a small rest of the body, so that the connection can be used again; else it is closed."""
            if self.unread and ("expect" in self.head or self.unread > 1 << 16):
                self.close_connection = True
            while self.unread and not self.close_connection:
                piece = self.rfile.read1(self.unread)
                self.unread -= len(piece)
                self.close_connection = self.close_connection or not piece

        def _linger(self) -> None:
            """Before a close, takes what is still being sent: closing at once would throw our answer away."""
            if self.close_connection and self.unread:
                self.connection.shutdown(socket.SHUT_WR)
                self.connection.settimeout(1.0)
                until = time.monotonic() + 2.0
                while self.unread > 0 and time.monotonic() < until:
                    piece = self.connection.recv(1 << 16)
                    self.unread = self.unread - len(piece) if piece else 0

        def _send(self, response: Response, origin: str) -> None:
            endless = response.stream is not None and not any(
                name == "Content-Length" for name, _ in response.headers
            )
            lines = [
                "HTTP/1.1 %d %s" % (response.status, self.responses.get(response.status, ("",))[0])
            ]
            lines += ["%s: %s" % pair for pair in response.headers]
            if response.status not in (204, 304):
                lines.append("Content-Type: " + response.type)
                if response.stream is None:
                    lines.append("Content-Length: %d" % len(response.body))
            if origin:
                lines += ["Access-Control-Allow-Origin: " + origin, "Vary: Origin"]
            if endless:  # an event stream: it ends with the connection
                self.close_connection = True
            if self.close_connection:
                lines.append("Connection: close")
            head = "\r\n".join(lines).encode("latin-1", "replace") + on_every_answer
            if self.command == "HEAD":
                self.wfile.write(head)
            elif response.stream is None:
                self.wfile.write(
                    head + response.body
                )  # in one piece: two cost 40 ms on a kept-alive connection
            else:
                self.wfile.write(head)
                try:
                    response.stream(self.wfile)
                except Exception:  # the answer has begun: all that can be said is that it broke off
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)

    class Listener(socketserver.ThreadingMixIn, http.server.HTTPServer):
        daemon_threads = True
        allow_reuse_address = os.name == "posix"
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        request_queue_size = 128
        places, more_for_health = 64, 8
        head_seconds = 30.0

        def __init__(self) -> None:
            self.deadlines: Dict[Any, float] = {}
            self.open: Dict[
                Any, bool
            ] = {}  # connection -> whether it came when all places were taken
            self.busy: Set[Any] = set()  # connections that are being answered
            super().__init__((host, port), Handler)

        def server_bind(self) -> None:
            socketserver.TCPServer.server_bind(
                self
            )  # http.server's looks our name up, which may hang
            self.server_name, self.server_port = host, self.server_address[1]

        def crowded(self, connection: Any) -> bool:
            return self.open.get(connection, False)

        def process_request(self, request: Any, client_address: Any) -> None:
            if len(self.open) >= self.places + self.more_for_health:
                self.shutdown_request(request)
                return
            self.open[request] = len(self.open) >= self.places
            super().process_request(request, client_address)

        def shutdown_request(self, request: Any) -> None:
            self.open.pop(request, None)
            super().shutdown_request(request)

        def service_actions(self) -> None:
            """Called about twice a second: cuts off those that take too long to send a head."""
            now = time.monotonic()
            for connection, deadline in list(self.deadlines.items()):
                if now > deadline:
                    self.deadlines.pop(connection, None)
                    try:
                        connection.shutdown(socket.SHUT_RD)  # the handler answers 408
                    except OSError:
                        pass

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Connections that break are no news."""

        def finish(self, seconds: float) -> None:
            """Waits until every answer that has begun is written, at most so long."""
            until = time.monotonic() + seconds
            while self.busy and time.monotonic() < until:
                time.sleep(0.02)

        def start(self) -> None:
            threading.Thread(
                target=self.serve_forever, kwargs={"poll_interval": 0.5}, daemon=True
            ).start()

    return Listener()
