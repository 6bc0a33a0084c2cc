"""The files that calls bring: where they are read from, and how they come to ComfyUI."""

from __future__ import annotations

import os
import re
import tempfile
import uuid
from typing import Iterator

from comfyui_runner.call_values import CallFile
from comfyui_runner.contents import HEAD_SIZE
from comfyui_runner.errors import UsageError
from comfyui_runner.files import read_head
from comfyui_runner.server import Server, uploaded_value

#: Bytes that are read at once.
PIECE_OF_CALL_FILE = 1 << 18


def file_at_path(path: str) -> CallFile:
    """The file of this machine at ``path``. Raises UsageError if it cannot be read.

    Only for callers on this machine: clients of the service cannot name our files.
    """
    try:
        head = read_head(path, HEAD_SIZE)
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path} cannot be uploaded: {reason}.", "Check its path.") from None

    def read() -> Iterator[bytes]:
        with open(path, "rb") as file:
            yield from iter(lambda: file.read(PIECE_OF_CALL_FILE), b"")

    return CallFile(os.path.basename(path), head, read)


def upload_call_file(server: Server, file: CallFile) -> str:
    """Upload ``file``: the value by which a loader names it. Blocks.

    Its content is never in memory as a whole. Raises ServerError.
    """
    boundary = uuid.uuid4().hex
    base_name = re.split(r"[\\/]", file.name)[-1]
    name = re.sub(r'["\r\n]', "_", base_name) or "upload"
    head = (
        f"--{boundary}\r\n"
        f'Content-Disposition: form-data; name="image"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    with tempfile.TemporaryFile() as form:
        form.write(head.encode(errors="replace"))
        for piece in file.pieces():
            form.write(piece)
        form.write(f"\r\n--{boundary}--\r\n".encode())
        form.seek(0)
        content_type = f"multipart/form-data; boundary={boundary}"
        answer = server.upload(data=form, headers={"Content-Type": content_type})
    return uploaded_value(answer)
