"""A proxy between a client and a server that injures their connections at random points.

It reads HTTP/1.1 requests on kept-alive connections and decides for each *request* (not for each
connection) whether to pass it or what to do to it; a WebSocket is passed frame by frame and has
faults of its own. A request that was not forwarded before its connection was cut is never
forwarded later, and one that was forwarded is cut only after the server has answered it: so what
the server did is certain, and only the client cannot know it.

All choices come from one ``random.Random``; ``counts`` says what was really done.
"""

from __future__ import annotations

import asyncio
import collections
import random
import socket
import struct
import threading
import urllib.parse
from typing import Awaitable, Callable, Counter, Dict, List, NamedTuple, Sequence, Tuple

#: What can happen to a request.
HTTP_FAULTS = (
    "cut_before",  # cut, and the server never gets it
    "cut_after",  # the server has answered it; cut without a byte of the answer
    "truncate",  # cut somewhere in the answer, its head included
    "close_after",  # answered, then the kept-alive connection is cut
    "freeze_before",  # held and then cut; the server never gets it
    "freeze_after",  # the server has answered it; the answer is held, then cut
    "delay",  # passed a little later
)

#: What can happen to a WebSocket.
WEBSOCKET_FAULTS = (
    "ws_refuse",  # cut before the handshake reaches the server
    "ws_cut_handshake",  # cut in the answer to the handshake
    "ws_cut",  # cut after some frames
    "ws_cut_mid_frame",  # cut after some frames and a part of the next
    "ws_freeze",  # nothing from the server passes for a while, then all of it
    "ws_freeze_cut",  # nothing from the server passes for a while, then it is cut
    "ws_delay",  # the next frames come a little later
)

#: After these the client has its answer, so they may follow each other without end.
HARMLESS = ("close_after", "delay")


class Message(NamedTuple):
    """A request or an answer, as the bytes that it came in."""

    head: bytes
    body: bytes

    @property
    def first(self) -> List[str]:
        """The words of its first line."""
        return self.head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)

    def header(self, name: str) -> str:
        """The value of a header, "" without it."""
        for line in self.head.decode("latin-1").split("\r\n")[1:]:
            key, _, value = line.partition(":")
            if key.strip().lower() == name:
                return value.strip()
        return ""


async def read_message(reader: asyncio.StreamReader, answers: str = "") -> Message:
    """One message; ``answers``: the method of the request that it answers, "" for a request.

    Raises asyncio.IncompleteReadError at the end of the connection.
    """
    head = Message(await reader.readuntil(b"\r\n\r\n"), b"")
    length = head.header("content-length")
    if answers == "HEAD" or (answers and head.first[1] in ("101", "204", "304")):
        return head
    if "chunked" in head.header("transfer-encoding").lower():
        body = b""
        while True:
            line = await reader.readuntil(b"\r\n")
            size = int(line.partition(b";")[0], 16)
            body += line + await reader.readexactly(size + 2)  # no trailers: nobody here sends any
            if not size:
                return head._replace(body=body)
    if length:
        return head._replace(body=await reader.readexactly(int(length)))
    return head._replace(body=await reader.read()) if answers else head


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    """One WebSocket frame of a server (not masked), as it came."""
    head = await reader.readexactly(2)
    length = head[1] & 0x7F
    if length > 125:
        more = await reader.readexactly(2 if length == 126 else 8)
        head, length = head + more, int.from_bytes(more, "big")
    return head + await reader.readexactly(length)


class FaultProxy:
    """Listens on a free port, in a thread of its own, and passes everything on to ``target``.

    Args:
        target: The server's URL.
        rng: Where all choices come from.
        probability: How likely a request meets a fault of ``kinds``.
        kinds: Some of HTTP_FAULTS.
        ws_probability: How likely a WebSocket meets a fault of ``ws_kinds``, and one more after it.
        ws_kinds: Some of WEBSOCKET_FAULTS.
        streak: After so many harmful faults in a row for one route, it is passed: a client that
            tries once more gets through.
        hold: Seconds that a freeze takes (longer than the client waits for an answer).
        delay: The longest delay, in seconds.
        frames: A fault of a WebSocket comes after so many frames at most.
    """

    def __init__(
        self,
        target: str,
        rng: random.Random,
        *,
        probability: float = 0.2,
        kinds: Sequence[str] = HTTP_FAULTS,
        ws_probability: float = 0.5,
        ws_kinds: Sequence[str] = WEBSOCKET_FAULTS,
        streak: int = 2,
        hold: float = 1.0,
        delay: float = 0.1,
        frames: int = 20,
    ) -> None:
        parts = urllib.parse.urlsplit(target)
        assert set(kinds) <= set(HTTP_FAULTS) and set(ws_kinds) <= set(WEBSOCKET_FAULTS)
        self._host, self._port, self._path = parts.hostname, parts.port or 80, parts.path
        self._rng, self._hold, self._delay, self._frames = rng, hold, delay, frames
        self._probability, self._kinds = probability, tuple(kinds)
        self._ws_probability, self._ws_kinds = ws_probability, tuple(ws_kinds)
        self._streak = streak
        self._streaks: Counter[str] = collections.Counter()
        self._accepted: List[Tuple[asyncio.StreamWriter, asyncio.Future[None]]] = []
        #: kind -> how many times it was done; "pass" and "ws_pass" are unharmed ones.
        self.counts: Counter[str] = collections.Counter()
        #: Method and path of every request that reached the server.
        self.forwarded: List[str] = []
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)

    # -- life ------------------------------------------------------------------------------------

    def start(self) -> FaultProxy:
        """Listens; ``url`` is known after this."""
        self._thread.start()
        assert self._ready.wait(10.0)
        return self

    def stop(self) -> None:
        """Cuts all connections and ends the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(10.0)

    def __enter__(self) -> FaultProxy:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._listen())
        finally:
            asyncio.set_event_loop(None)
            self._loop.close()

    async def _listen(self) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=1 << 20)
        self.url = "http://127.0.0.1:%d%s" % (server.sockets[0].getsockname()[1], self._path)
        self._ready.set()
        await self._stop.wait()
        server.close()
        quiet = 0
        while quiet < 5:  # what was just accepted brings a task some turns later; cut transports call back
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
            for writer, _ in self._accepted:  # also those that were closed gently and wait for a reader
                writer.transport.abort()
            self._accepted.clear()
            quiet = 0 if tasks else quiet + 1
            await asyncio.sleep(0)

    # -- cutting ---------------------------------------------------------------------------------

    def _cut(self, writer: asyncio.StreamWriter, gently: bool = False) -> None:
        """Cuts a connection: with a reset, or (always if ``gently``) with an end that looks regular."""
        connection = writer.get_extra_info("socket")
        reset = not gently and self._rng.random() < 0.5
        if reset and connection is not None and connection.fileno() >= 0:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if gently:
            writer.close()  # what was written still goes out
        else:
            writer.transport.abort()

    def _draw(self, kinds: Sequence[str], probability: float, otherwise: str, route: str = "") -> str:
        """A fault, or ``otherwise``."""
        unlucky, kind = self._rng.random() < probability, self._rng.choice(kinds or (otherwise,))
        if not unlucky:
            kind = otherwise
        if route:
            harmful = kind != otherwise and kind not in HARMLESS
            if harmful and self._streaks[route] >= self._streak:
                harmful, kind = False, otherwise
            self._streaks[route] = self._streaks[route] + 1 if harmful else 0
        return kind

    # -- HTTP ------------------------------------------------------------------------------------

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Known from the first moment on, so that stop() cuts it even if _serve() has not begun."""
        self._accepted.append((writer, asyncio.ensure_future(self._serve(reader, writer))))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = await read_message(reader)
                if "websocket" in request.header("upgrade").lower():
                    await self._websocket(request, reader, writer)
                    return
                if not await self._answer(request, reader, writer):
                    return
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # one of the two is gone, or stop() was called
        finally:
            if not writer.is_closing():
                writer.transport.abort()

    async def _answer(self, request: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Passes or injures one request; whether the connection lives on."""
        method, path = request.first[:2]
        route = "%s /%s" % (method, path.partition("?")[0].split("/")[1])
        kind = self._draw(self._kinds, self._probability, "pass", route)
        self.counts[kind] += 1
        if kind == "freeze_before":
            await asyncio.sleep(self._hold)
        if kind in ("cut_before", "freeze_before"):
            self._cut(writer)
            return False
        if kind == "delay":
            await asyncio.sleep(self._rng.uniform(0.0, self._delay))
            if reader.at_eof():
                return False  # the client cut: it is not forwarded later
        answer = await self._forward(request)
        data = answer.head + answer.body
        if kind == "freeze_after":
            await asyncio.sleep(self._hold)
        if kind in ("cut_after", "freeze_after"):
            self._cut(writer)
            return False
        if kind == "truncate":
            writer.write(data[: self._rng.randrange(1, len(data))])
            self._cut(writer, gently=True)
            return False
        writer.write(data)
        await writer.drain()
        if kind == "close_after":
            self._cut(writer, gently=True)
            return False
        return request.header("connection").lower() != "close"

    async def _forward(self, request: Message) -> Message:
        """The server's answer; each request has a connection of its own to it."""
        reader, writer = await asyncio.open_connection(self._host, self._port, limit=1 << 20)
        try:
            self.forwarded.append(" ".join(request.first[:2]))
            writer.write(request.head + request.body)
            return await read_message(reader, request.first[0])
        finally:
            writer.transport.abort()

    # -- WebSocket -------------------------------------------------------------------------------

    async def _websocket(self, request: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kind = self._draw(self._ws_kinds, self._ws_probability, "ws_pass")
        if kind in ("ws_refuse", "ws_pass"):
            self.counts[kind] += 1
        if kind == "ws_refuse":
            self._cut(writer)
            return
        their_reader, their_writer = await asyncio.open_connection(self._host, self._port, limit=1 << 20)
        try:
            their_writer.write(request.head)
            answer = (await read_message(their_reader, "GET")).head
            if kind == "ws_cut_handshake":
                self.counts[kind] += 1
                writer.write(answer[: self._rng.randrange(1, len(answer))])
                self._cut(writer, gently=True)
                return
            writer.write(self._opened(answer))
            pumps: List[Awaitable[None]] = [
                self._pump_up(reader, their_writer),
                self._pump_down(kind, their_reader, writer),
            ]
            tasks = [asyncio.ensure_future(pump) for pump in pumps]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            their_writer.transport.abort()

    def _opened(self, answer: bytes) -> bytes:
        """The head by which a WebSocket opens, as it is passed on."""
        return answer

    async def _pump_up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            data = await reader.read(1 << 16)
            if not data:
                return
            writer.write(data)
            await writer.drain()

    async def _pump_down(self, kind: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Passes the server's frames on; faults come after random numbers of frames."""
        injure: Dict[str, Callable[[bytes, asyncio.StreamWriter], Awaitable[bool]]] = {
            "ws_cut": self._ws_cut,
            "ws_cut_mid_frame": self._ws_cut_mid_frame,
            "ws_freeze": self._ws_freeze,
            "ws_freeze_cut": self._ws_freeze_cut,
            "ws_delay": self._ws_delay,
        }
        left = self._rng.randrange(self._frames + 1)
        while True:
            frame = await read_frame(reader)
            if kind in injure and left <= 0:
                self.counts[kind] += 1
                if not await injure[kind](frame, writer):
                    return
                kind = self._draw(self._ws_kinds, self._ws_probability, "ws_pass")
                left = self._rng.randrange(self._frames + 1)
            left -= 1
            writer.write(frame)
            await writer.drain()

    async def _ws_cut(self, frame: bytes, writer: asyncio.StreamWriter) -> bool:
        self._cut(writer)
        return False

    async def _ws_cut_mid_frame(self, frame: bytes, writer: asyncio.StreamWriter) -> bool:
        writer.write(frame[: self._rng.randrange(1, len(frame))])
        self._cut(writer, gently=True)
        return False

    async def _ws_freeze(self, frame: bytes, writer: asyncio.StreamWriter) -> bool:
        await asyncio.sleep(self._hold * self._rng.uniform(0.5, 2.0))
        return True

    async def _ws_freeze_cut(self, frame: bytes, writer: asyncio.StreamWriter) -> bool:
        await self._ws_freeze(frame, writer)
        return await self._ws_cut(frame, writer)

    async def _ws_delay(self, frame: bytes, writer: asyncio.StreamWriter) -> bool:
        await asyncio.sleep(self._rng.uniform(0.0, self._delay))
        return True


def total(counts: Sequence[Counter[str]]) -> Counter[str]:
    """What several proxies did."""
    done: Counter[str] = collections.Counter()
    for each in counts:
        done.update(each)
    return done
