"""The files that calls bring, and how they come to ComfyUI."""

from __future__ import annotations

import re
import tempfile
import uuid

from comfyui_runner.call_values import CallFile
from comfyui_runner.server import Server, uploaded_value


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
