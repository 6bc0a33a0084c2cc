"""Reading the body of an HTTP request, as far as its route wants it, and no slower than allowed."""

from __future__ import annotations

import socket
import time
from typing import Any, BinaryIO, Callable, Iterator

from comfyui_runner.http_head import Head
from comfyui_runner.limits import SERVICE_LIMITS, ServiceLimits, seconds_for_body
from comfyui_runner.messages import HttpError
from comfyui_runner.text import size_in_words

#: Bytes that are read and thrown away so that the connection can be used again. To read more of
#: what nobody wants takes longer than a new connection.
SMALL_REST = 1 << 16

#: Bytes that are read at once.
PIECE_SIZE = 1 << 18

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class RequestBody:
    """The body of one request.

    Nothing of it is read before a route asks for it: a request that is refused costs no transfer.
    ``source`` is the file of the connection, ``send`` sends bytes to the client, ``set_timeout``
    sets the seconds after which a read from ``source`` ends with socket.timeout.
    """

    def __init__(
        self,
        head: Head,
        source: Any,
        send: Callable[[bytes], object],
        set_timeout: Callable[[float], object],
        limits: ServiceLimits = SERVICE_LIMITS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.unread = head.body_length
        self._length = head.body_length
        self._source = source
        self._send = send
        self._set_timeout = set_timeout
        self._limits = limits
        self._clock = clock
        self._began = 0.0  # when the first piece was waited for
        self._broke_off = False
        expectation = head.request.header("expect")
        #: the client waits for CONTINUE before it sends the body (curl does so with large files)
        self._is_held_back = expectation.lower() == "100-continue"

    def read(self, limit: int) -> bytes:
        """The body.

        Raises HttpError: 413 for more than ``limit`` bytes, 408 or 400 if it does not come whole.
        """
        return b"".join(self._pieces(limit))

    def save(self, limit: int, file: BinaryIO) -> None:
        """Write the body into ``file``. Raises HttpError as read() does."""
        for piece in self._pieces(limit):
            file.write(piece)

    def _pieces(self, limit: int) -> Iterator[bytes]:
        if self.unread > limit:
            raise HttpError(413, "too_large", f"The body is larger than {size_in_words(limit)}.")
        if self._is_held_back:
            self._is_held_back = False
            self._send(CONTINUE)
        self._began = self._clock()
        while self.unread:
            yield self._read_piece(seconds_for_body(self._limits, self._length - self.unread))

    def _read_piece(self, seconds: float) -> bytes:
        """The next bytes. All of the body up to them may take ``seconds``. Raises HttpError."""
        seconds_left = self._began + seconds - self._clock()
        try:
            if seconds_left <= 0:
                raise socket.timeout
            self._set_timeout(min(seconds_left, self._limits.idle))
            piece: bytes = self._source.read1(min(self.unread, PIECE_SIZE))
        except socket.timeout:
            self._broke_off = True
            raise HttpError(408, "timeout", "The body arrives too slowly.") from None
        except OSError:
            piece = b""
        if not piece:
            self._broke_off = True
            raise HttpError(400, "body_cut_short", "The body ended too early.")
        self.unread -= len(piece)
        return piece

    def skip_rest(self) -> bool:
        """Read what no route wanted, if it is little; whether the connection can be used again."""
        if self.unread and (self._is_held_back or self._broke_off or self.unread > SMALL_REST):
            return False
        self._began = self._clock()
        try:
            while self.unread:
                self._read_piece(self._limits.rest)
        except HttpError:
            return False
        return True
