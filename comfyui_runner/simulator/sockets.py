"""WebSockets, and how a connection is cut."""

from __future__ import annotations

import collections
import http.server
import json
import os
import socket
import struct
import threading

from comfyui_runner.simulator.frames import make_message
from comfyui_runner.simulator.life import Life
from comfyui_runner.simulator.prompts import Json

#: The two fields of struct linger, which are short on Windows.
LINGER_FORMAT = "hh" if os.name == "nt" else "ii"
#: How many frames go into one call of the system.
FRAMES_AT_A_TIME = 500
#: Opcodes of the frames that make up a text message.
CONTINUATION, TEXT_FRAME = 0, 1


def abort(connection: socket.socket) -> None:
    """Cut a TCP connection with a reset; a thread that waits on it wakes up."""
    linger = struct.pack(LINGER_FORMAT, 1, 0)  # on, 0 s: what was not sent is dropped
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it is gone already


class Socket:
    """A WebSocket: the thread of its HTTP request reads, one of its own writes what is queued."""

    #: Bytes that a client may leave unread before it is cut off, since nobody else is to wait.
    limit = 1 << 28

    def __init__(
        self, handler: http.server.BaseHTTPRequestHandler, life: Life, client_id: str
    ) -> None:
        # Here, so that importing the simulator needs no third-party package.
        from websockets.exceptions import WebSocketException
        from websockets.server import ServerProtocol

        self.handler = handler
        self.life = life
        self.client_id = client_id
        self.protocol = ServerProtocol(max_size=4 << 20)
        #: Held while the protocol is used and its bytes are sent.
        self.wire = threading.Lock()
        #: What reading and writing raise when the connection breaks.
        self.broken: tuple[type[BaseException], ...] = (OSError, WebSocketException)
        self.flags: Json = {}
        #: The frames that wait, their size, and a condition that guards them and `closed`.
        self.queue: collections.deque[str | bytes] = collections.deque()
        self.queued_bytes = 0
        self.changed = threading.Condition()
        self.closed = False
        #: How many frames were sent.
        self.sent = 0
        self.is_deaf = False

    # What others call.

    def put(self, frame: str | bytes) -> None:
        """Queue a frame."""
        with self.changed:
            self.queue.append(frame)
            self.queued_bytes += len(frame)
            self.changed.notify()
        if self.queued_bytes > self.limit:
            self.abort()

    def abort(self) -> None:
        """Cut the connection."""
        self.stop_writing()
        abort(self.handler.connection)

    def serve(self) -> None:
        """Shake hands, then read until the connection is over."""
        # The lock: a client that knows its socket open loses nothing of what it starts then, as in
        # ComfyUI (server.py, websocket_handler), where nothing else runs between the two.
        with self.life.lock:
            is_open = self.shake_hands()
            if not is_open:
                return
            self.register()
        self.life.spawn(self.write)
        try:
            self.read()
        except self.broken:
            pass
        finally:
            self.unregister()
            self.stop_writing()

    # The beginning and the end.

    def shake_hands(self) -> bool:
        """Answer the client's request. Returns whether it was accepted."""
        # The request goes in as bytes: a protocol that did not read one itself stays deaf.
        lines = [self.handler.requestline]
        lines += [f"{name}: {value}" for name, value in self.handler.headers.items()]
        request = "\r\n".join([*lines, "", ""])
        self.protocol.receive_data(request.encode("latin-1"))
        for event in self.protocol.events_received():
            self.protocol.send_response(self.protocol.accept(event))  # type: ignore[arg-type]
        self.send_bytes()
        return self.protocol.handshake_exc is None

    def register(self) -> None:
        """Send the first status, then take part in what is sent to the client.

        A socket that had this client_id before gets nothing any more.
        """
        life = self.life
        with life.lock:
            is_known = self.client_id in life.clients
            self.is_deaf = is_known and life.installation.faults.deaf_reconnect
            life.clients.add(self.client_id)
            first_status = {"status": life.status(), "sid": self.client_id}
            self.put(make_message("status", first_status))
            life.sockets.pop(self.client_id, None)
            if not self.is_deaf:
                life.sockets[self.client_id] = self
                is_waited_for = life.client == self.client_id and life.last_node is not None
                if is_waited_for:
                    life.send("executing", {"node": life.last_node}, self.client_id)
            if life.dead.is_set():
                self.abort()

    def unregister(self) -> None:
        """Leave, unless another socket has the client_id by now."""
        with self.life.lock:
            if self.life.sockets.get(self.client_id) is self:
                del self.life.sockets[self.client_id]

    def stop_writing(self) -> None:
        """End the thread that writes, whatever is still queued."""
        with self.changed:
            self.closed = True
            self.changed.notify()

    # Reading.

    def read(self) -> None:
        """Answer pings and the closing handshake; take the feature flags."""
        is_first = True
        text = b""
        while not self.closed:
            data = self.handler.rfile.read1(65536)
            with self.wire:
                if data:
                    self.protocol.receive_data(data)
                else:
                    self.protocol.receive_eof()
                frames = self.protocol.events_received()
                self.send_bytes()
            if not data or self.protocol.close_expected():
                return
            for frame in frames:
                if frame.opcode not in (CONTINUATION, TEXT_FRAME):  # type: ignore[union-attr]
                    continue
                text += frame.data  # type: ignore[union-attr]
                if frame.fin:  # type: ignore[union-attr]
                    if is_first and self.negotiate(text):
                        is_first = False
                    text = b""

    def negotiate(self, message: bytes) -> bool:
        """Take feature flags. Returns whether the message counts as the first: JSON objects do."""
        try:
            data = json.loads(message)
        except ValueError:
            return False
        if not isinstance(data, dict):
            return False
        installation = self.life.installation
        if data.get("type") == "feature_flags" and not self.is_deaf:
            flags = data.get("data")
            if isinstance(flags, dict):
                self.flags = flags
            self.life.send("feature_flags", installation.features(), self.client_id)
        return True

    # Writing.

    def write(self) -> None:
        """Send what is queued until the connection is over, many frames at a time."""
        while True:
            frames = self.take_frames()
            if frames is None:
                return
            try:
                self.send_frames(frames)
            except self.broken:
                return
            self.sent += len(frames)
            limit = self.life.installation.faults.cut_ws_after
            if limit is not None and self.sent >= limit:
                self.abort()

    def take_frames(self) -> list[str | bytes] | None:
        """Wait for frames and take them off the queue. Returns None if the connection is over."""
        with self.changed:
            while not self.queue and not self.closed:
                self.changed.wait()
            if self.closed:
                return None
            room = FRAMES_AT_A_TIME
            limit = self.life.installation.faults.cut_ws_after
            if limit is not None:
                room = limit - self.sent
            count = min(room, len(self.queue))
            frames = [self.queue.popleft() for _ in range(count)]
            self.queued_bytes -= sum(len(frame) for frame in frames)
        return frames

    def send_frames(self, frames: list[str | bytes]) -> None:
        """Send frames in one piece."""
        with self.wire:
            for frame in frames:
                if isinstance(frame, str):
                    self.protocol.send_text(frame.encode())
                else:
                    self.protocol.send_binary(frame)
            self.send_bytes()

    def send_bytes(self) -> None:
        """Send what the protocol has to say."""
        self.handler.connection.sendall(b"".join(self.protocol.data_to_send()))
