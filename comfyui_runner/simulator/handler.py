"""The HTTP server: reads requests, does what the faults say, and writes the answers."""

from __future__ import annotations

import email.utils
import http.client
import http.server
import io
import os
import re
import socket
import socketserver
import traceback
import urllib.parse
from typing import Any, BinaryIO

from comfyui_runner.simulator.bodies import PIECE, Body, Cut, TooLarge
from comfyui_runner.simulator.faults import keys_of_path
from comfyui_runner.simulator.http_request import Request, is_authorized, is_foreign
from comfyui_runner.simulator.installation import Installation
from comfyui_runner.simulator.life import Life
from comfyui_runner.simulator.odd_bodies import with_odd_body
from comfyui_runner.simulator.replies import (
    TROUBLE,
    Reply,
    as_echo,
    as_text,
    choose_range,
    has_etag,
    make_etag,
    range_counts,
)
from comfyui_runner.simulator.routes import NOT_FOUND, answer_request
from comfyui_runner.simulator.running import work
from comfyui_runner.simulator.sockets import abort

SWITCHED_TO_WEBSOCKET = 101


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves the requests of one connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version = "ComfyUI-simulator"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        """Give a line to the installation's log, and not to standard error."""
        self.server.installation.log(format % args)

    def do_GET(self) -> None:
        """Answer one request, of whatever method."""
        try:
            body = Body(self.rfile, self.headers, self.server.installation.max_upload_size)
            reply = self.make_reply(body)
            if reply.status != SWITCHED_TO_WEBSOCKET:
                self.write_reply(reply)
        except Exception:  # a fault, or a client that is gone
            self.close_connection = True
            abort(self.connection)

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_GET

    def make_reply(self, body: Body) -> Reply:
        """Answer, and read the body to its end. Raises Cut if the connection is to be cut."""
        try:
            reply = self.answer(body)
        except TooLarge:
            body.drop()
            message = (
                f"Maximum request body size {self.server.installation.max_upload_size} exceeded, "
                f"actual body size {body.seen}"
            )
            return as_text(message, 413)
        except (Cut, ConnectionError):
            raise
        except Exception:  # whatever a route raises is a 500, as with aiohttp
            self.server.installation.log(traceback.format_exc())
            reply = TROUBLE
        body.drop()
        return reply

    def answer(self, body: Body) -> Reply:
        """Answer a request, unless a fault, a missing token or a foreign origin does."""
        installation = self.server.installation
        url = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(url.path)
        if not path.startswith(installation.base_path + "/"):
            return NOT_FOUND
        path = path[len(installation.base_path) :]
        installation.asked.append((self.command, path))
        installation.received.append((self.command, self.path, dict(self.headers)))
        bare_path = path
        if path.startswith("/api/"):
            bare_path = path[len("/api") :]

        self.misbehave(bare_path)
        if not is_authorized(self.headers, installation.token):
            challenge = ("WWW-Authenticate", 'Bearer realm="ComfyUI simulator"')
            return as_text("401: Unauthorized", 401)._replace(headers=(challenge,))
        if is_foreign(self.headers, refuses_cross_site=installation.has("jobs")):
            return Reply(403)
        reply = self.answer_route(url, path, bare_path, body)
        for key in keys_of_path(bare_path):
            name_of_body = installation.faults.bodies.get(key)
            if name_of_body is not None:
                return with_odd_body(reply, name_of_body)
        return reply

    def answer_route(
        self, url: urllib.parse.SplitResult, path: str, bare_path: str, body: Body
    ) -> Reply:
        """Answer as the route does, or with the status that a fault says."""
        installation = self.server.installation
        for key in keys_of_path(bare_path):
            status = installation.faults.http_status.get(key)
            if status is not None:
                reply = as_text(f"{status}: simulated", status)
                if 300 <= status < 400:
                    reply = reply._replace(headers=(("Location", "/elsewhere"),))
                return reply
            echo = installation.faults.echo.get(key)
            if echo is not None:
                text = body.read_all().decode("utf-8", "replace")
                return as_echo(self.headers, text, *echo)

        parameters = urllib.parse.parse_qs(url.query, keep_blank_values=True)
        request = Request(
            installation=installation,
            life=self.server.life,
            handler=self,
            method=self.command,
            path=path,
            bare_path=bare_path,
            query={name: values[0] for name, values in parameters.items()},
            body=body,
        )
        return answer_request(request)

    def misbehave(self, path: str) -> None:
        """Hang, or raise Cut, if a fault says so."""
        faults = self.server.installation.faults
        life = self.server.life
        for key in keys_of_path(path):
            with life.lock:
                if faults.cut_http.get(key, 0) > 0:
                    faults.cut_http[key] -= 1
                    raise Cut()
        for key in keys_of_path(path):
            seconds = faults.http_hang.get(key)
            if seconds is not None:
                life.dead.wait(seconds)
                break
        if life.dead.is_set():
            raise Cut()

    def write_reply(self, reply: Reply) -> None:
        """Write an answer: its body, its pieces, or its file."""
        headers = list(reply.headers)
        if reply.content_type:
            headers.append(("Content-Type", reply.content_type))
        if reply.pieces is not None:
            self.write_chunks(reply, headers)
            return
        if not reply.path:
            self.write_content(reply.status, headers, io.BytesIO(reply.body), len(reply.body))
            return
        with open(reply.path, "rb") as file:
            self.write_file(file, headers)

    def write_file(self, file: BinaryIO, headers: list[tuple[str, str]]) -> None:
        """Write an answer with a file, or the part of it that was asked for."""
        status = os.fstat(file.fileno())
        etag = make_etag(status.st_size, status.st_mtime_ns)
        headers.append(("ETag", etag))
        if has_etag(self.headers.get("If-None-Match", ""), etag):
            self.connection.sendall(self.make_head(304, headers, None))
            return
        wanted = self.headers.get("Range", "")
        if not range_counts(self.headers.get("If-Range", ""), status.st_mtime):
            wanted = ""
        part = choose_range(wanted, status.st_size)
        modified = email.utils.formatdate(status.st_mtime, usegmt=True)
        headers.append(("Last-Modified", modified))
        headers.append(("Accept-Ranges", "bytes"))
        if part.content_range:
            headers.append(("Content-Range", part.content_range))
        file.seek(part.start)
        cut_after = self.take_cut_of_file()
        if cut_after is not None and cut_after < part.length:
            head = self.make_head(part.status, headers, part.length)
            self.connection.sendall(head + file.read(cut_after))
            self.close_connection = True
            return
        self.write_content(part.status, headers, file, part.length)

    def take_cut_of_file(self) -> int | None:
        """After how many bytes this answer with a file is cut, if a fault says so."""
        with self.server.life.lock:
            cut_files = self.server.installation.faults.cut_files
            if not cut_files:
                return None
            return cut_files.pop(0)

    def write_content(
        self, status: int, headers: list[tuple[str, str]], file: BinaryIO, length: int
    ) -> None:
        """Write an answer with so many bytes of a file; for HEAD, only the head."""
        data = self.make_head(status, headers, length)
        left = length
        if self.command == "HEAD":
            left = 0
        while True:
            piece = file.read(min(left, PIECE))
            left -= len(piece)
            self.connection.sendall(data + piece)  # the head with the first piece: two cost 40 ms
            data = b""
            if not left or not piece:
                return

    def write_chunks(self, reply: Reply, headers: list[tuple[str, str]]) -> None:
        """Write an answer whose pieces are sent as chunks, as far as the client takes them."""
        headers = [*headers, ("Transfer-Encoding", "chunked")]
        self.connection.sendall(self.make_head(reply.status, headers, None))
        for piece in reply.pieces or ():
            self.connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
            if self.server.life.dead.wait(reply.pause):
                raise Cut()

    def make_head(self, status: int, headers: list[tuple[str, str]], length: int | None) -> bytes:
        """The status line and the headers. A 304 has no length (aiohttp sends none)."""
        reason = http.client.responses.get(status, "Simulated")
        if self.close_connection:
            headers = [*headers, ("Connection", "close")]
        if length is not None:
            headers = [*headers, ("Content-Length", str(length))]
        headers = [*headers, ("Date", self.date_time_string())]
        lines = [f"HTTP/1.1 {status} {reason}"]
        for name, value in headers:
            lines.append(re.sub(r"[\r\n]", " ", f"{name}: {value}"))  # a name may have such
        return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """Listens; its threads belong to a life, and it knows its connections to cut them."""

    request_queue_size = 128
    allow_reuse_address = os.name != "nt"  # on Windows it would let two servers share a port
    allow_reuse_port = False  # elsewhere this would

    def __init__(self, installation: Installation, address: tuple[str, int]) -> None:
        self.installation = installation
        self.connections: set[socket.socket] = set()
        super().__init__(address, Handler)
        self.life = Life(installation)
        self.life.spawn(work, self.life)
        self.life.spawn(self.serve_forever, 0.02)

    def server_bind(self) -> None:
        """Bind without the base class's look-up of the host's name, which can take seconds."""
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread of this life."""
        with self.life.lock:
            self.connections.add(request)
        self.life.spawn(self.process_request_thread, request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        with self.life.lock:
            self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Only log it: a connection that breaks is nothing special."""
        self.installation.log(traceback.format_exc())

    def end(self) -> None:
        """Stop listening and cut everything."""
        self.life.end()
        self.shutdown()
        self.server_close()
        with self.life.lock:
            for each in self.connections:
                abort(each)
        self.life.join(3.0)
