"""Answers to HTTP requests, and the part of a file that a Range asks for. Pure."""

from __future__ import annotations

import email.utils
import json
import re
from email.message import Message
from typing import Any, Iterator, NamedTuple, Optional, Tuple


class Reply(NamedTuple):
    """An answer: `body`, or else the file at `path` (a part of it if a Range asks for one).

    Or else `pieces`, each sent as a chunk, with `pause` seconds between two.
    """

    status: int = 200
    body: bytes = b""
    content_type: str = ""
    headers: Tuple[Tuple[str, str], ...] = ()
    path: str = ""
    pieces: Optional[Iterator[bytes]] = None
    pause: float = 0.0


def as_json(data: Any, status: int = 200) -> Reply:
    """A reply with JSON (that may hold NaN, as a real one's may)."""
    return Reply(status, json.dumps(data).encode(), "application/json; charset=utf-8")


def as_text(text: str, status: int) -> Reply:
    """A reply with plain text."""
    return Reply(status, text.encode(), "text/plain; charset=utf-8")


def as_echo(headers: Message, body: str, status: int, form: str) -> Reply:
    """A reply that quotes a request, as "text" or as "json".

    The last header comes first: those that a library adds are sent before a person's own, and
    messages are cut off.
    """
    lines = [f"{name}: {value}" for name, value in reversed(headers.items())]
    text = "\n".join([f"{status}: refused", *lines, "", body])
    if form == "text":
        return as_text(text, status)
    error = {"type": "refused", "message": text, "details": "", "extra_info": dict(headers)}
    return as_json({"error": error, "node_errors": {}}, status)


#: What aiohttp answers when a handler raises.
TROUBLE = as_text("500 Internal Server Error\n\nServer got itself in trouble", 500)


def make_etag(size: int, modified_ns: int) -> str:
    """The ETag of a file, as aiohttp's FileResponse makes it."""
    return f'"{modified_ns:x}-{size:x}"'


def has_etag(header: str, etag: str) -> bool:
    """Whether an If-None-Match header says that the client has the file of `etag`."""
    if header.strip() == "*":
        return True
    return etag in [part.strip() for part in header.replace("W/", "").split(",")]


class Range(NamedTuple):
    """A part of a file, and how it is answered."""

    status: int
    start: int
    length: int
    #: Of the answer; "" for the whole file.
    content_range: str


def range_counts(if_range: str, modified: float) -> bool:
    """Whether a Range counts beside this If-Range ("": none), for a file of that time.

    aiohttp reads dates only: an ETag is ignored, and the Range counts.
    """
    if not if_range:
        return True
    try:
        wanted = email.utils.parsedate_to_datetime(if_range)
    except (TypeError, ValueError):
        return True
    return int(modified) <= wanted.timestamp()


def choose_range(header: str, size: int) -> Range:
    """The part of a file of `size` bytes that a Range header asks for: "bytes=FIRST-LAST".

    "bytes=FIRST-" is all from there on, "bytes=-N" the last N bytes. Anything else counts for
    nothing, as if there were no Range.
    """
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header)
    if match is None or match[0] == "bytes=-":
        return Range(200, 0, size, "")
    first, last = match.groups()
    if not first:
        start, end = max(0, size - int(last)), size
    elif not last:
        start, end = int(first), size
    else:
        start, end = int(first), min(size, int(last) + 1)
    if start >= end:
        return Range(416, 0, 0, f"bytes */{size}")
    return Range(206, start, end - start, f"bytes {start}-{end - 1}/{size}")
