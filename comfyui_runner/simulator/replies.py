"""Answers to HTTP requests, and the part of a file that a Range asks for. Pure."""

from __future__ import annotations

import email.utils
import json
import re
from email.message import Message
from typing import Any, Iterator, NamedTuple, Optional, Tuple


class Reply(NamedTuple):
    """An answer. It has one of `body`, `path` and `pieces`."""

    status: int = 200
    body: bytes = b""
    content_type: str = ""
    headers: Tuple[Tuple[str, str], ...] = ()
    #: A file, of which only a part is sent if a Range asks for one.
    path: str = ""
    #: Each is sent as a chunk.
    pieces: Optional[Iterator[bytes]] = None
    #: Seconds between two pieces.
    pause: float = 0.0


def as_json(data: Any, status: int = 200) -> Reply:
    """A reply with JSON, in which NaN may be, as in a real server's."""
    body = json.dumps(data).encode()
    return Reply(status, body, "application/json; charset=utf-8")


def as_text(text: str, status: int) -> Reply:
    """A reply with plain text."""
    return Reply(status, text.encode(), "text/plain; charset=utf-8")


def as_echo(headers: Message, body: str, status: int, form: str) -> Reply:
    """A reply that quotes a request, as "text" or as "json".

    The last header comes first: a person's own headers follow those that a library adds, and
    clients shorten the messages that they show.
    """
    quoted_headers = [f"{name}: {value}" for name, value in reversed(headers.items())]
    text = "\n".join([f"{status}: refused", *quoted_headers, "", body])
    if form == "text":
        return as_text(text, status)
    error = {
        "type": "refused",
        "message": text,
        "details": "",
        "extra_info": dict(headers),
    }
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
    strong_etags = header.replace("W/", "")  # a weak one counts like a strong one here (RFC 9110)
    return etag in [part.strip() for part in strong_etags.split(",")]


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
    whole_file = Range(200, start=0, length=size, content_range="")
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header)
    if match is None:
        return whole_file
    first, last = match.groups()
    if not first and not last:
        return whole_file

    end = size
    if not first:
        start = max(0, size - int(last))
    else:
        start = int(first)
        if last:
            end = min(size, int(last) + 1)
    if start >= end:
        return Range(416, start=0, length=0, content_range=f"bytes */{size}")
    shown = f"bytes {start}-{end - 1}/{size}"
    return Range(206, start=start, length=end - start, content_range=shown)
