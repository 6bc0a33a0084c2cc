"""WebSockets, and how a connection is cut."""

from __future__ import annotations

import collections
import http.server
import json
import os
import socket
import struct
import threading

from comfyui_runner.simulator.life import Life
from comfyui_runner.simulator.prompts import Json

_LINGER = "hh" if os.name == "nt" else "ii"  # the fields of struct linger


def abort(connection: socket.socket) -> None:
    """Cut a TCP connection with a reset; a thread that waits on it wakes up."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack(_LINGER, 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it is gone already


class Socket:
    """A WebSocket: the thread of its HTTP request reads, one of its own writes what is queued."""

    #: What a client may leave unread before it is cut off, since nobody else is to wait for it.
    limit = 1 << 28

    def __init__(self, handler: http.server.BaseHTTPRequestHandler, life: Life, sid: str) -> None:
        from websockets.exceptions import WebSocketException  # here, to import this module fast
        from websockets.server import ServerProtocol

        self.life, self.sid, self.handler = life, sid, handler
        self.protocol = ServerProtocol(max_size=4 << 20)
        self.broken: tuple[type[BaseException], ...] = (OSError, WebSocketException)
        self.flags: Json = {}
        self.queue: collections.deque[str | bytes] = collections.deque()
        self.queued = self.sent = 0
        self.ready = threading.Condition()
        self.wire = threading.Lock()
        self.closed = False

    def put(self, frame: str | bytes) -> None:
        """Queue a frame."""
        with self.ready:
            self.queue.append(frame)
            self.queued += len(frame)
            self.ready.notify()
        if self.queued > self.limit:
            self.abort()

    def abort(self) -> None:
        """Cut the connection."""
        with self.ready:
            self.closed = True
            self.ready.notify()
        abort(self.handler.connection)

    def serve(self) -> None:
        """Shake hands, then read until the connection is over."""
        handler, protocol, life = self.handler, self.protocol, self.life
        lines = [f"{key}: {value}\r\n" for key, value in handler.headers.items()]
        # The request goes in as bytes: a protocol that did not read one itself stays deaf.
        request = handler.requestline.encode("latin-1") + b"\r\n" + "".join(lines).encode("latin-1") + b"\r\n"
        protocol.receive_data(request)
        for event in protocol.events_received():
            protocol.send_response(protocol.accept(event))  # type: ignore[arg-type]
        handler.connection.sendall(b"".join(protocol.data_to_send()))
        if protocol.handshake_exc is not None:
            return
        with life.lock:
            deaf = self.sid in life.clients and life.sim.faults.deaf_reconnect
            life.clients.add(self.sid)
            status = json.dumps({"status": life.status(), "sid": self.sid})
            self.put(f'{{"type": "status", "data": {status}}}')
            life.sockets.pop(self.sid, None)
            if not deaf:
                life.sockets[self.sid] = self  # whoever had this id before gets nothing any more
                if life.client == self.sid and life.last_node is not None:
                    life.send("executing", {"node": life.last_node}, self.sid)
            if life.dead.is_set():
                self.abort()
        life.spawn(self.write)
        try:
            self.read(deaf)
        except self.broken:
            pass
        finally:
            with life.lock:
                if life.sockets.get(self.sid) is self:
                    del life.sockets[self.sid]
            with self.ready:
                self.closed = True
                self.ready.notify()

    def read(self, deaf: bool) -> None:
        """Answer pings and the closing handshake; take the feature flags."""
        first, text = True, b""
        while not self.closed:
            data = self.handler.rfile.read1(65536)
            with self.wire:
                if data:
                    self.protocol.receive_data(data)
                else:
                    self.protocol.receive_eof()
                events = self.protocol.events_received()
                self.handler.connection.sendall(b"".join(self.protocol.data_to_send()))
            if not data or self.protocol.close_expected():
                return
            for frame in events:
                if frame.opcode not in (0, 1):  # type: ignore[union-attr]
                    continue
                text += frame.data  # type: ignore[union-attr]
                if frame.fin:  # type: ignore[union-attr]
                    message, text = text, b""
                    first = first and not self.negotiate(message, deaf)

    def negotiate(self, message: bytes, deaf: bool) -> bool:
        """Only the first message counts, and only if it is about feature flags."""
        try:
            data = json.loads(message)
        except ValueError:
            return False
        if not isinstance(data, dict):
            return False
        if data.get("type") == "feature_flags" and self.life.sim.has("progress_state") and not deaf:
            flags = data.get("data")
            self.flags = flags if isinstance(flags, dict) else {}
            self.life.send("feature_flags", self.life.sim.features(), self.sid)
        return True

    def write(self) -> None:
        """Send what is queued, many frames at a time."""
        while True:
            with self.ready:
                while not self.queue and not self.closed:
                    self.ready.wait()
                if self.closed:
                    return
                limit = self.life.sim.faults.cut_ws_after
                room = 500 if limit is None else limit - self.sent
                frames = [self.queue.popleft() for _ in range(min(room, len(self.queue)))]
                self.queued -= sum(map(len, frames))
            try:
                with self.wire:
                    for frame in frames:
                        if isinstance(frame, str):
                            self.protocol.send_text(frame.encode())
                        else:
                            self.protocol.send_binary(frame)
                    self.handler.connection.sendall(b"".join(self.protocol.data_to_send()))
            except self.broken:
                return
            self.sent += len(frames)
            if limit is not None and self.sent >= limit:
                self.abort()
