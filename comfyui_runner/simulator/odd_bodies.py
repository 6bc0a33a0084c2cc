"""Bodies that a client must not take as they come: without an end, or packed. Pure."""

from __future__ import annotations

import gzip
import itertools
import zlib
from typing import Callable, Iterator, Mapping

from comfyui_runner.simulator.replies import Reply

#: What an endless body begins with: a text in an object, neither of which is ever closed.
BEGINNING_OF_JSON = b'{"text": "'
#: Bytes that a piece of an endless body has, unpacked.
PIECE_OF_ENDLESS_BODY = 1 << 20
#: Seconds between two bytes of a dripping body.
DRIP_SECONDS = 0.05
#: The window for which zlib writes the format of gzip.
GZIP_WBITS = 16 + zlib.MAX_WBITS


def endless_json() -> Iterator[bytes]:
    """The beginning of a JSON text that never ends."""
    piece = b"x" * PIECE_OF_ENDLESS_BODY
    return itertools.chain([BEGINNING_OF_JSON], itertools.repeat(piece))


def dripping_json() -> Iterator[bytes]:
    """The same, a byte at a time."""
    return itertools.chain([BEGINNING_OF_JSON], itertools.repeat(b"x"))


def gzip_bomb() -> Iterator[bytes]:
    """The same, packed: each piece of a kilobyte unpacks to a megabyte."""
    packer = zlib.compressobj(wbits=GZIP_WBITS)
    beginning = packer.compress(BEGINNING_OF_JSON)
    beginning += packer.flush(zlib.Z_FULL_FLUSH)
    # After a full flush nothing refers to what came before, so the same piece can follow again.
    piece = packer.compress(b"x" * PIECE_OF_ENDLESS_BODY)
    piece += packer.flush(zlib.Z_FULL_FLUSH)
    return itertools.chain([beginning], itertools.repeat(piece))


#: The bodies without an end, by their names in Faults.bodies.
ENDLESS: Mapping[str, Callable[[], Iterator[bytes]]] = {
    "endless": endless_json,
    "drip": dripping_json,
    "bomb": gzip_bomb,
}


def with_odd_body(reply: Reply, name: str) -> Reply:
    """`reply` with the body that Faults.bodies calls `name`."""
    if name in ENDLESS:
        return with_endless_body(reply, name)
    body = reply.body
    if reply.path:
        with open(reply.path, "rb") as file:
            body = file.read()
    if name == "gzip":
        body = gzip.compress(body)
    # Any other name is declared as the encoding, but the body is not packed.
    return with_encoding(reply._replace(path="", body=body), name)


def with_endless_body(reply: Reply, name: str) -> Reply:
    """`reply` with a body that never ends."""
    reply = reply._replace(path="", pieces=ENDLESS[name]())
    if name == "drip":
        return reply._replace(pause=DRIP_SECONDS)
    if name == "bomb":
        return with_encoding(reply, "gzip")
    return reply


def with_encoding(reply: Reply, encoding: str) -> Reply:
    """`reply` with a Content-Encoding: it says that its body is packed."""
    header = ("Content-Encoding", encoding)
    return reply._replace(headers=(*reply.headers, header))
