"""The forms of uploads (multipart/form-data), read in pieces; their files go to the disk."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import tempfile
import urllib.parse
from typing import Any, Callable, Dict, NamedTuple, Union

from comfyui_runner.simulator.bodies import PIECE, Body
from comfyui_runner.simulator.folders import when_not_in_use


class Upload(NamedTuple):
    """A file field of a form, kept in a temporary file."""

    filename: str
    path: str


Form = Dict[str, Union[str, Upload]]

#: name=..., filename="..." or filename*=UTF-8''... in a Content-Disposition. Its groups: the key,
#: the star, the value in quotation marks (with a backslash before those in it), the bare value.
PARAMETER = re.compile(
    r"""
    ;\s* (name|filename) (\*?)
    = (?: "( (?: [^"\\] | \\. )* )" | ([^;\s]+) )
    """,
    re.IGNORECASE | re.VERBOSE,
)


class FormReader:
    """Reads a form from a body; see read_form()."""

    def __init__(self, body: Body, boundary: str, folder: str) -> None:
        self.body = body
        self.boundary = b"\r\n--" + boundary.encode()
        self.folder = folder
        self.buffer = b"\r\n"  # so that the first boundary is like the others
        self.form: Form = {}

    def read(self) -> None:
        """Read every field. Raises ValueError if the form ends too early."""
        discard = len  # what comes before the first field is passed to it, and counts for nothing
        self.copy_until(self.boundary, discard)
        while True:
            head = bytearray()
            self.copy_until(b"\n", head.extend)
            if head.startswith(b"--"):
                return  # the last boundary
            self.copy_until(b"\r\n\r\n", head.extend)
            self.read_field(parse_disposition(bytes(head)))

    def read_field(self, parameters: dict[str, str]) -> None:
        """Read the content of a field: of a file to the disk, else to memory."""
        name = parameters["name"]
        filename = parameters.get("filename")
        if not filename:
            content = bytearray()
            self.copy_until(self.boundary, content.extend)
            self.form[name] = content.decode()
            return
        handle, path = tempfile.mkstemp(dir=self.folder, prefix=".upload-")
        with os.fdopen(handle, "wb") as file:
            self.form[name] = Upload(filename, path)
            self.copy_until(self.boundary, file.write)

    def copy_until(self, end: bytes, write: Callable[[bytes], Any]) -> None:
        """Give what comes before `end` to `write`, piece by piece, and skip `end` itself."""
        while end not in self.buffer:
            # The last bytes of the buffer may be the beginning of `end`, so they are kept.
            most_of_end = len(end) - 1
            certain = max(0, len(self.buffer) - most_of_end)
            write(self.buffer[:certain])
            data = self.body.read()
            if not data:
                raise ValueError("the form ends too early")
            self.buffer = self.buffer[certain:] + data
        content, _, self.buffer = self.buffer.partition(end)
        write(content)


def read_form(body: Body, boundary: str, folder: str) -> Form:
    """Read multipart/form-data in pieces; files go to temporary files in `folder`.

    Raises ValueError if the form ends too early, KeyError for a field without a name, and what
    Body.read() raises; then no file is left.
    """
    reader = FormReader(body, boundary, folder)
    try:
        reader.read()
    except BaseException:
        discard_form(reader.form)
        raise
    return reader.form


def parse_disposition(head: bytes) -> dict[str, str]:
    """The name, and perhaps the filename, in the head of a field."""
    disposition = re.search(rb"content-disposition:(.*)", head, re.IGNORECASE)
    if disposition is None:
        return {}
    text = disposition[1].decode("utf-8", "replace")
    parameters = {}
    for key, star, quoted, bare in PARAMETER.findall(text):
        value = re.sub(r"\\(.)", r"\1", quoted) or bare
        if star:  # RFC 5987: charset'language'percent-encoded
            encoded = value.split("''")[-1]
            value = urllib.parse.unquote(encoded)
        parameters[key] = value
    return parameters


def discard_form(form: Form) -> None:
    """Remove the temporary files of a form that are still there."""
    for field in form.values():
        if isinstance(field, Upload) and os.path.exists(field.path):
            when_not_in_use(functools.partial(os.unlink, field.path))


def hash_file(path: str) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        data = file.read(PIECE)
        while data:
            digest.update(data)
            data = file.read(PIECE)
    return digest.hexdigest()
