"""The body of an answer, as it comes in pieces: unpacked, and never more of it than a limit.

A small packed body can hold a huge one (a "bomb"): what counts is the size after unpacking. Pure.
"""

from __future__ import annotations

import re
import zlib
from typing import Any, List, Mapping, Optional

from comfyui_runner.text import size_in_words

#: The packing that is asked for. ComfyUI packs its answers with --enable-compress-response-body.
PACKING = "gzip"

#: What zlib takes as "gzip, with the largest window".
GZIP_WINDOW = 16 + zlib.MAX_WBITS


_is_stated_length = re.compile(r"[0-9]{1,18}").fullmatch


def stated_length(headers: Mapping[str, str]) -> Optional[int]:
    """The bytes that the body of an answer has, as its ``headers`` say; None if they do not.

    A Content-Length beside a Transfer-Encoding does not count (RFC 9112, section 6.3), and neither
    does one that is not a number, such as "²", which isdigit() takes for one.
    """
    length = headers.get("Content-Length", "")
    if "Transfer-Encoding" in headers or not _is_stated_length(length):
        return None
    return int(length)


class UnreadableBody(Exception):
    """A body that is not read to its end. Its text is a clause: "it is larger than 64.0 MB"."""


def is_packed(encoding: str) -> bool:
    """Whether a body with this ``Content-Encoding`` ("": none) is not as it was before."""
    return encoding.strip().lower() not in ("", "identity")


class AnswerBody:
    """A body with this ``Content-Encoding``, of which at most ``limit`` bytes are kept.

    Raises UnreadableBody if it has a content encoding that the runner did not ask for.
    """

    def __init__(self, encoding: str, limit: int) -> None:
        self.came = 0  #: bytes as they were sent
        self._limit = limit
        self._size = 0  # bytes, unpacked
        self._pieces: List[bytes] = []
        self._unpacker: Any = None
        if not is_packed(encoding):
            return
        if encoding.strip().lower() != PACKING:
            raise UnreadableBody("it has a content encoding that the runner did not ask for")
        self._unpacker = zlib.decompressobj(GZIP_WINDOW)

    def add(self, piece: bytes) -> None:
        """Takes the next bytes, as they were sent. Raises UnreadableBody."""
        self.came += len(piece)
        if self._unpacker is not None:
            piece = self._unpack(piece)
        self._size += len(piece)
        if self._size > self._limit:
            raise UnreadableBody(f"it is larger than {size_in_words(self._limit)}")
        self._pieces.append(piece)

    def _unpack(self, piece: bytes) -> bytes:
        """What ``piece`` unpacks to; of more than there is room for, one byte more than that."""
        room = self._limit - self._size
        try:
            unpacked: bytes = self._unpacker.decompress(piece, room + 1)
        except zlib.error:
            raise UnreadableBody("it cannot be unpacked") from None
        if self._unpacker.unused_data:  # zlib keeps all that comes after the end
            raise UnreadableBody("more follows its end")
        return unpacked

    def finish(self) -> bytes:
        """The whole body. Raises UnreadableBody if a part of it is missing."""
        is_cut = self._unpacker is not None and self.came > 0 and not self._unpacker.eof
        if is_cut:
            raise UnreadableBody("its end is missing")
        return b"".join(self._pieces)
