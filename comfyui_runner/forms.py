"""The fields of a multipart/form-data form, and how the files in it begin. Pure.

ComfyUI reads the form itself: it is passed on as it came. Only the mistakes that people make are
looked for here.
"""

from __future__ import annotations

from typing import BinaryIO, List, NamedTuple

from comfyui_runner.contents import HEAD_SIZE, why_no_picture
from comfyui_runner.messages import HttpError
from comfyui_runner.multipart import find_parts, read_part
from comfyui_runner.nodes import nearest_first, quote_name
from comfyui_runner.shells import CURL
from comfyui_runner.text import one_line


class FormField(NamedTuple):
    """A field: its name, the name of its file ("" for text), and its first bytes."""

    name: str
    filename: str
    head: bytes


def read_form_fields(form: BinaryIO, content_type: str) -> List[FormField]:
    """The fields of ``form``; [] for what is not one: ComfyUI is left to refuse that."""
    try:
        parts = find_parts(form, content_type)
    except HttpError:
        return []
    return [
        FormField(part.name, part.filename or "", read_part(form, part, HEAD_SIZE))
        for part in parts
    ]


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
