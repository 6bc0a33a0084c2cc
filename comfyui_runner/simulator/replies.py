"""Answers to HTTP requests."""

from __future__ import annotations

import json
from typing import Any, NamedTuple


class Reply(NamedTuple):
    """An answer: `body`, or else the file at `path` (a part of it if Range asks for one)."""

    status: int = 200
    body: bytes = b""
    kind: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    path: str = ""


def as_json(data: Any, status: int = 200) -> Reply:
    """A reply with JSON (that may hold NaN, as a real one's may)."""
    return Reply(status, json.dumps(data).encode(), "application/json; charset=utf-8")


def as_text(text: str, status: int) -> Reply:
    """A reply with plain text."""
    return Reply(status, text.encode(), "text/plain; charset=utf-8")


TROUBLE = as_text("500 Internal Server Error\n\nServer got itself in trouble", 500)
