"""Request bodies and the forms of uploads, read in pieces."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import urllib.parse
from http.server import BaseHTTPRequestHandler
from typing import Any, Callable, NamedTuple


class Cut(Exception):
    """The connection is to be cut without an answer."""


class TooLarge(Exception):
    """The request body is over the limit."""


class Body:
    """A request body, read in pieces and never beyond its end."""

    def __init__(self, handler: BaseHTTPRequestHandler, limit: int) -> None:
        self.file, self.limit, self.seen = handler.rfile, limit, 0
        self.chunked = "chunked" in handler.headers.get("Transfer-Encoding", "").lower()
        length = handler.headers.get("Content-Length") or "0"
        if not length.isdigit():
            raise Cut()
        self.left = 0 if self.chunked else int(length)

    def read(self, size: int = 65536) -> bytes:
        """Up to `size` bytes; b"" at the end. Raises TooLarge, or Cut if the client went away."""
        if not self.left and self.chunked:
            length = self.file.readline(1024).split(b";")[0].strip()
            if not re.fullmatch(rb"[0-9a-fA-F]{1,16}", length):
                raise Cut()
            self.left = int(length, 16)
            if not self.left:
                self.chunked = False
                while self.file.readline(1024).strip():
                    pass
        data = self.file.read(min(size, self.left))
        if self.left and not data:
            raise Cut()
        self.left -= len(data)
        self.seen += len(data)
        if not self.left and self.chunked:
            self.file.readline(1024)
        if self.seen > self.limit:
            raise TooLarge()
        return data

    def all(self) -> bytes:
        """The whole body."""
        return b"".join(iter(self.read, b""))

    def drop(self) -> None:
        """Read what is left, so that the client hears the answer and may send the next request."""
        self.limit = 1 << 40
        while self.read():
            pass


class Upload(NamedTuple):
    """A file field of a form, kept in a temporary file."""

    filename: str
    path: str


_FIELD = re.compile(r';\s*(name|filename)(\*?)=(?:"((?:[^"\\]|\\.)*)"|([^;\s]+))', re.IGNORECASE)


def read_form(body: Body, boundary: str, folder: str) -> dict[str, str | Upload]:
    """Read multipart/form-data in pieces; files go to temporary files in `folder`."""
    mark, buffer = b"\r\n--" + boundary.encode(), b"\r\n"
    form: dict[str, str | Upload] = {}

    def copy_until(end: bytes, write: Callable[[bytes], Any]) -> None:
        nonlocal buffer
        while end not in buffer:
            keep = max(0, len(buffer) - len(end) + 1)
            write(buffer[:keep])
            data = body.read()
            if not data:
                raise ValueError("the form ends too early")
            buffer = buffer[keep:] + data
        content, _, buffer = buffer.partition(end)
        write(content)

    copy_until(mark, len)
    try:
        while True:
            head = bytearray()
            copy_until(b"\n", head.extend)
            if head.startswith(b"--"):
                return form
            copy_until(b"\r\n\r\n", head.extend)
            names: dict[str, str] = {}
            disposition = re.search(rb"content-disposition:(.*)", head, re.IGNORECASE)
            found = _FIELD.findall((disposition or [b"", b""])[1].decode("utf-8", "replace"))
            for key, extended, quoted, bare in found:
                value = re.sub(r"\\(.)", r"\1", quoted) or bare
                names[key] = urllib.parse.unquote(value.split("''")[-1]) if extended else value
            if names.get("filename"):
                handle, path = tempfile.mkstemp(dir=folder, prefix=".upload-")
                form[names["name"]] = Upload(names["filename"], path)
                with os.fdopen(handle, "wb") as file:
                    copy_until(mark, file.write)
            else:
                value_bytes = bytearray()
                copy_until(mark, value_bytes.extend)
                form[names["name"]] = value_bytes.decode()
    except BaseException:
        discard(form)
        raise


def discard(form: dict[str, str | Upload]) -> None:
    """Remove the temporary files of a form that are still there."""
    for field in form.values():
        if isinstance(field, Upload) and os.path.exists(field.path):
            os.unlink(field.path)


def digest_of(path: str) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for data in iter(lambda: file.read(65536), b""):
            digest.update(data)
    return digest.hexdigest()
