"""A proxy whose answers trickle, a byte now and then, and an event loop whose waits pass quickly.

A read timeout begins anew with every byte, so only a bound on the whole answer ends such a wait.
"""

from __future__ import annotations

import asyncio
import json
import random
import selectors
import time
from typing import Any, Dict, List, NamedTuple, Optional

from fault_proxy import FaultProxy, Message, read_frame

#: Seconds after which a slow answer breaks off, so that a program without bounds ends as well, but late.
LIMIT = 12.0


class Asked(NamedTuple):
    """A request that came."""

    method: str
    path: str
    body: bytes


class SlowProxy(FaultProxy):
    """Passes everything on to ``target``, but answers some requests slowly."""

    def __init__(self, target: str) -> None:
        super().__init__(target, random.Random(0), probability=0.0, ws_probability=0.0)
        #: Beginning of "METHOD /path" -> how many of these requests are answered slowly.
        self.trickling: Dict[str, int] = {}
        #: The head of a slow answer trickles, and not its body.
        self.in_head = False
        #: Nothing that the server sends over a WebSocket passes; in its place come ...
        self.mute = False
        #: ... these messages of some custom node, ten a second.
        self.chatter: Optional[Dict[str, Any]] = None
        #: How many seconds the first message of the server over a WebSocket is held back.
        self.first_message_after = 0.0
        #: A header that is added to the answer to a WebSocket handshake.
        self.handshake_header = b""
        self.asked: List[Asked] = []
        self.trickled = 0  #: how many slow answers have begun

    def start(self) -> SlowProxy:
        super().start()
        return self

    def count(self, method: str, path: str) -> int:
        """How many requests for ``path`` came."""
        return len([asked for asked in self.asked if (asked.method, asked.path) == (method, path)])

    async def _answer(self, request: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        method, path = request.first[:2]
        self.asked.append(Asked(method, path, request.body))
        for begin, left in self.trickling.items():
            if left and ("%s %s" % (method, path)).startswith(begin):
                self.trickling[begin] -= 1
                await self._trickle(reader, writer)
                return False
        return await super()._answer(request, reader, writer)

    async def _trickle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """An answer without end; it breaks off when the client goes, and after LIMIT seconds."""
        self.trickled += 1
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n"
        writer.write(head + (b"X-Slow: " if self.in_head else b"\r\n"))
        end = time.monotonic() + LIMIT
        while time.monotonic() < end and not reader.at_eof():
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.05)

    async def _websocket(self, request: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked.append(Asked("GET", "/ws", b""))
        await super()._websocket(request, reader, writer)

    def _opened(self, answer: bytes) -> bytes:
        more = self.handshake_header + b"\r\n" if self.handshake_header else b""
        return answer[:-2] + more + answer[-2:]

    async def _pump_down(self, kind: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.mute:
            await asyncio.sleep(self.first_message_after)
            await super()._pump_down(kind, reader, writer)
            return
        end = time.monotonic() + LIMIT
        while time.monotonic() < end:
            if self.chatter is not None:
                text = json.dumps(self.chatter).encode()
                writer.write(bytes([0x81, len(text)]) + text)
                await writer.drain()
            await asyncio.sleep(0.1)
        await read_frame(reader)


class _HurriedSelector(selectors.DefaultSelector):
    """Waits for a part of the time that is asked for."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self._factor = factor

    def select(self, timeout: Optional[float] = None) -> Any:
        return super().select(timeout and timeout / self._factor)


class HurriedLoop(asyncio.SelectorEventLoop):
    """A loop in which time passes ``factor`` times as fast: for bounds of many seconds.

    Only the waits of asyncio are shorter: time.monotonic(), sockets in threads and other processes are as they were.
    """

    def __init__(self, factor: float) -> None:
        self._factor = factor
        super().__init__(_HurriedSelector(factor))

    def time(self) -> float:
        return super().time() * self._factor
