"""The fields of a multipart/form-data form, and how the files in it begin. Pure.

ComfyUI reads the form itself: it is passed on as it came. Only the mistakes that people make are
looked for here.
"""

from __future__ import annotations

import re
from typing import Any, List, NamedTuple, Tuple

from comfyui_runner.contents import HEAD_SIZE, why_no_picture
from comfyui_runner.messages import HttpError
from comfyui_runner.nodes import nearest_first, quote_name
from comfyui_runner.shells import CURL
from comfyui_runner.text import one_line

#: How many fields of a form are looked at, and how many bytes of the head of each.
MOST_FIELDS = 50
FIELD_HEAD_SIZE = 8192

#: name="..." and filename="..." or filename*=UTF-8''... in a Content-Disposition (RFC 7578).
_find_parameters = re.compile(
    rb';\s*(name|filename)\*?=(?:"((?:[^"\\]|\\.)*)"|([^;\s]+))', re.IGNORECASE
).findall


class FormField(NamedTuple):
    """A field: its name, the name of its file ("" for text), and its first bytes."""

    name: str
    filename: str
    head: bytes


def boundary_in(content_type: str) -> bytes:
    """What separates the fields of a form, b"" if its type does not say."""
    match = re.search(r'(?i)boundary=(?:"([^"]+)"|([^;\s]+))', content_type)
    if match is None:
        return b""
    return (match[1] or match[2]).encode()


def read_form_fields(form: Any, boundary: bytes) -> List[FormField]:
    """The fields of ``form``, bytes or what has their find() and slices; [] for what is not one."""
    separator = b"--" + boundary
    fields: List[FormField] = []
    start = form.find(separator)
    while start >= 0 and len(fields) < MOST_FIELDS:
        start += len(separator)
        head_end = form.find(b"\r\n\r\n", start)
        is_last = form[start : start + 2] == b"--"
        if is_last or head_end < 0:
            break
        content = head_end + len(b"\r\n\r\n")
        end = form.find(b"\r\n" + separator, content - 2)
        name, filename = _parse_disposition(form[start : min(content, start + FIELD_HEAD_SIZE)])
        size = HEAD_SIZE
        if end >= 0:
            size = min(size, max(end - content, 0))
        fields.append(FormField(name, filename, bytes(form[content : content + size])))
        start = end + len(b"\r\n") if end >= 0 else end
    return fields


def _parse_disposition(head: bytes) -> Tuple[str, str]:
    """The name of a field and that of its file, in the ``head`` of the field."""
    line = re.search(rb"(?i)content-disposition:([^\r\n]*)", head)
    names = {"name": "", "filename": ""}
    for key, quoted, bare in _find_parameters(line[1] if line else b""):
        names[key.decode().lower()] = (quoted or bare).decode(errors="replace")
    return names["name"], names["filename"]


#: What ComfyUI reads of the form of POST /upload/image (server.py, image_upload).
UPLOAD_FIELDS = ("image", "type", "subfolder", "overwrite")

#: What our own route reads of the URL, and people put into the form.
URL_FIELDS = ("node_id", "force")


def check_form(fields: List[FormField], must_be_picture: bool) -> None:
    """Raises HttpError 400 if ComfyUI would find no file in the form, or the wrong one.

    Where ``must_be_picture``, the loader of the file loads pictures. A form that has no fields is
    left to ComfyUI.
    """
    if not fields:
        return
    image = next((field for field in fields if field.name == "image"), None)
    if image is None:
        names = ", ".join(quote_name(field.name) for field in fields[:5])
        message = f'The form has {names}, but not the field "image": {CURL} -F image=@cat.png'
        raise HttpError(400, "missing_field", message)
    if not image.filename:
        message = f'The field "image" has no file: {CURL} -F image=@cat.png, with the @.'
        raise HttpError(400, "missing_field", message)
    for field in fields:
        _check_upload_field(field.name)
    if not must_be_picture:
        return
    reason = why_no_picture(image.head)
    if reason:
        name = one_line(image.filename, 80)
        message = f"{name} is not a picture: {reason}. If it is one, add ?force=true to the URL."
        raise HttpError(400, "not_a_picture", message)


def _check_upload_field(name: str) -> None:
    """Raises HttpError 400 for a field that neither ComfyUI nor we would look at."""
    if name in UPLOAD_FIELDS:
        return
    message = f"There is no field {quote_name(name)} in this form."
    if name in URL_FIELDS:
        message += f" It belongs in the URL: /upload/image?{name}=..."
    else:
        message += f" Nearest: {nearest_first(name, sorted(UPLOAD_FIELDS))}."
    raise HttpError(400, "unknown_field", message)
