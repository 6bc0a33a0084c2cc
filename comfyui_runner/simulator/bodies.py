"""The bodies of HTTP requests, read in pieces so that a big upload does not fill the memory."""

from __future__ import annotations

import io
import re
from email.message import Message

PIECE = 1 << 16
#: A limit that is none.
UNLIMITED = 1 << 40


class Cut(Exception):
    """The connection is to be cut without an answer."""


class TooLarge(Exception):
    """The request body is over the limit."""


class Body:
    """A request body, read in pieces and never beyond its end.

    Args:
        file: Where the body is read from.
        headers: Of the request. Raises Cut if they give no length.
        limit: The most bytes that it may have.
    """

    def __init__(self, file: io.BufferedIOBase, headers: Message, limit: int) -> None:
        self.file = file
        self.limit = limit
        #: Bytes read so far, and left in the body or in the current chunk.
        self.seen = 0
        self.left = 0
        #: Whether another chunk follows.
        self.is_chunked = "chunked" in headers.get("Transfer-Encoding", "").lower()
        length = headers.get("Content-Length") or "0"
        if not length.isdigit():
            raise Cut()
        if not self.is_chunked:
            self.left = int(length)

    def read(self, size: int = PIECE) -> bytes:
        """Up to `size` bytes; b"" at the end. Raises TooLarge, or Cut if the client went away."""
        if not self.left and self.is_chunked:
            self.begin_chunk()
        data = self.file.read(min(size, self.left))
        if self.left and not data:
            raise Cut()
        self.left -= len(data)
        self.seen += len(data)
        if not self.left and self.is_chunked:
            self.file.readline(1024)  # the end of the chunk's last line
        if self.seen > self.limit:
            raise TooLarge()
        return data

    def begin_chunk(self) -> None:
        """Read the length of the next chunk; after the last one, read the trailer."""
        length = self.file.readline(1024).split(b";")[0].strip()
        if not re.fullmatch(rb"[0-9a-fA-F]{1,16}", length):
            raise Cut()
        self.left = int(length, 16)
        if not self.left:
            self.is_chunked = False
            while self.file.readline(1024).strip():
                pass

    def read_all(self) -> bytes:
        """The whole body."""
        return b"".join(iter(self.read, b""))

    def drop(self) -> None:
        """Read what is left, so that the client hears the answer and may send the next request."""
        self.limit = UNLIMITED
        while self.read():
            pass
