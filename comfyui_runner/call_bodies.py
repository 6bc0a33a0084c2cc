"""The bodies of calls: values by their keys, as JSON, as a form, or as a form with files."""

from __future__ import annotations

import contextlib
import tempfile
from typing import Any, BinaryIO, Dict, Iterator, List, Tuple

from comfyui_runner.call_values import CallFile
from comfyui_runner.contents import HEAD_SIZE
from comfyui_runner.http_body import RequestBody
from comfyui_runner.messages import (
    JSON_LIMIT,
    HttpError,
    Request,
    is_form,
    parse_object,
    read_form_text,
    read_form_texts,
)
from comfyui_runner.multipart import MULTIPART_LIMIT, FormPart, find_parts, read_part
from comfyui_runner.nodes import quote_name

#: Bytes of a part that are read at once.
PIECE_OF_PART = 1 << 18


@contextlib.contextmanager
def open_call(request: Request, body: RequestBody) -> Iterator[Dict[str, Any]]:
    """The values of a call by their keys; their files can be read as long as the block runs.

    Raises HttpError as open_fields() does, and 400 for a key that appears twice.
    """
    with open_fields(request, body) as fields:
        values: Dict[str, Any] = {}
        for name, value in fields:
            if name in values:
                message = f"The field {quote_name(name)} appears twice."
                raise HttpError(400, "duplicate_field", message)
            values[name] = value
        yield values


@contextlib.contextmanager
def open_fields(request: Request, body: RequestBody) -> Iterator[List[Tuple[str, Any]]]:
    """The names and values of a body in their order; in a multipart form a name may come again.

    Files of a multipart body are CallFiles and stay on the disk. Raises HttpError: 400 for what is
    neither JSON nor a form, 413 for a body that is too large.
    """
    content_type = request.header("content-type")
    if content_type.partition(";")[0].strip().lower() == "multipart/form-data":
        with tempfile.TemporaryFile() as file:
            body.save(MULTIPART_LIMIT, file)
            yield list(read_parts(file, content_type))
        return
    data = body.read(JSON_LIMIT)
    if is_form(data, content_type):
        yield list(read_form_texts(data).items())
    else:
        yield list(parse_object(data).items())


def read_parts(file: BinaryIO, content_type: str) -> Iterator[Tuple[str, Any]]:
    """The names and values in a multipart form: texts, and files read from ``file`` when wanted.

    Raises HttpError 400.
    """
    for part in find_parts(file, content_type):
        if part.filename == "" and part.length == 0:
            continue  # browsers send this for a file that nobody chose
        if part.filename is None:
            yield part.name, read_form_text(part.name, read_part(file, part))
        else:
            yield part.name, file_of_part(file, part)


def file_of_part(file: BinaryIO, part: FormPart) -> CallFile:
    """The file that a part of the form in ``file`` is."""

    def read() -> Iterator[bytes]:
        for start in range(0, part.length, PIECE_OF_PART):
            file.seek(part.offset + start)
            yield file.read(min(PIECE_OF_PART, part.length - start))

    file.seek(part.offset)
    head = file.read(min(HEAD_SIZE, part.length))
    return CallFile(part.filename or "upload", head, read)
