"""Bodies that a client must not take as they come: without an end, or packed. Pure."""

from __future__ import annotations

import gzip
import itertools
import zlib
from typing import Callable, Iterator, Mapping

from comfyui_runner.simulator.replies import Reply

#: Bytes that a piece of an endless body has, unpacked.
PIECE_OF_ENDLESS_BODY = 1 << 20
#: Seconds between two bytes of a dripping body.
DRIP_SECONDS = 0.05


def endless_json() -> Iterator[bytes]:
    """The beginning of a JSON text that never ends."""
    return itertools.chain([b'{"text": "'], itertools.repeat(b"x" * PIECE_OF_ENDLESS_BODY))


def dripping_json() -> Iterator[bytes]:
    """The same, a byte at a time."""
    return itertools.chain([b'{"text": "'], itertools.repeat(b"x"))


def gzip_bomb() -> Iterator[bytes]:
    """The same, packed: each piece of a kilobyte unpacks to a megabyte."""
    packer = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    beginning = packer.compress(b'{"text": "') + packer.flush(zlib.Z_FULL_FLUSH)
    # After a full flush nothing refers to what came before, so the same piece can follow again.
    piece = packer.compress(b"x" * PIECE_OF_ENDLESS_BODY) + packer.flush(zlib.Z_FULL_FLUSH)
    return itertools.chain([beginning], itertools.repeat(piece))


#: What has no end, by the names that Faults.bodies gives it.
ENDLESS: Mapping[str, Callable[[], Iterator[bytes]]] = {
    "endless": endless_json,
    "drip": dripping_json,
    "bomb": gzip_bomb,
}


def with_odd_body(reply: Reply, kind: str) -> Reply:
    """`reply` with the body that Faults.bodies calls `kind`."""
    if kind in ENDLESS:
        pause = DRIP_SECONDS if kind == "drip" else 0.0
        reply = reply._replace(path="", pieces=ENDLESS[kind](), pause=pause)
        return with_encoding(reply, "gzip") if kind == "bomb" else reply

    body = reply.body
    if reply.path:
        with open(reply.path, "rb") as file:
            body = file.read()
    if kind == "gzip":
        body = gzip.compress(body)
    return with_encoding(reply._replace(path="", body=body), kind)


def with_encoding(reply: Reply, encoding: str) -> Reply:
    """`reply` that says that it is packed."""
    return reply._replace(headers=(*reply.headers, ("Content-Encoding", encoding)))
