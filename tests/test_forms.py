"""The fields of a form: what a person may have got wrong, and what is left to ComfyUI."""

from __future__ import annotations

import io
from typing import List

import pytest

from comfyui_runner.forms import FormField, check_form, read_form_fields
from comfyui_runner.messages import HttpError

PNG = b"\x89PNG\r\n\x1a\n"


def form(*parts: bytes, end: bytes = b"--cut--\r\n") -> bytes:
    """A form with these fields, each from its Content-Disposition up to the next delimiter."""
    return b"".join(b"--cut\r\nContent-Disposition: form-data; %s\r\n" % part for part in parts) + end


def read(body: bytes) -> List[FormField]:
    return read_form_fields(io.BytesIO(body), "multipart/form-data; boundary=cut")


def test_the_fields_of_a_form_are_found() -> None:
    fields = [FormField("type", "", b"input"), FormField("image", "a.png", PNG), FormField("image", "", b"")]
    parts = b'name="type"\r\n\r\ninput', b'name="image"; filename="a.png"\r\n\r\n' + PNG
    assert read(form(*parts, b'name="image"; filename=""\r\n\r\n')) == fields


@pytest.mark.parametrize("body", [b"", b"not a form", form(b'name="image"\r\n\r\ncut off', end=b"")])
def test_what_is_not_a_form_has_no_fields(body: bytes) -> None:
    assert read(body) == []


def test_of_a_large_file_only_the_beginning_is_kept() -> None:
    (field,) = read(form(b'name="image"; filename="a.png"\r\n\r\n' + b"x" * 5000))
    assert field.head == b"x" * 1024


@pytest.mark.parametrize(
    ("fields", "type_", "message"),
    [
        (
            [FormField("file", "a.png", PNG), FormField("type", "", b"")],
            "missing_field",
            'The form has "file", "type", but not the field "image": curl -F image=@cat.png',
        ),
        (
            [FormField("image", "", b"cat.png")],
            "missing_field",
            'The field "image" has no file: curl -F image=@cat.png, with the @.',
        ),
        (
            [FormField("image", "a.png", PNG), FormField("node_id", "", b"7")],
            "unknown_field",
            'There is no field "node_id" in this form. It belongs in the URL: /upload/image?node_id=...',
        ),
        (
            [FormField("image", "a.png", PNG), FormField("sub_folder", "", b"x")],
            "unknown_field",
            'There is no field "sub_folder" in this form. Nearest: subfolder, overwrite, type, image.',
        ),
        (
            [FormField("image", "a\n.png", b"GIF? no")],
            "not_a_picture",
            "a .png is not a picture: it is text. If it is one, add ?force=true to the URL.",
        ),
    ],
)
def test_a_form_that_cannot_be_meant_is_refused(fields: List[FormField], type_: str, message: str) -> None:
    with pytest.raises(HttpError) as caught:
        check_form(fields, must_be_picture=True)
    assert (caught.value.http_status, caught.value.type, caught.value.message) == (400, type_, message)


def test_any_other_form_is_passed_on() -> None:
    check_form([], must_be_picture=True)
    check_form([FormField("type", "", b""), FormField("image", "a.png", PNG)], must_be_picture=True)
    check_form([FormField("image", "a.mp3", b"sound")], must_be_picture=False)
