"""The fields of a form: what a person may have got wrong, and what is left to ComfyUI."""

from __future__ import annotations

from typing import List

import pytest

from comfyui_runner.forms import FormField, boundary_in, check_form, read_form_fields
from comfyui_runner.messages import HttpError

PNG = b"\x89PNG\r\n\x1a\n"


def form(*parts: bytes, end: bytes = b"--cut--\r\n") -> bytes:
    """A form with these fields, each from its Content-Disposition on."""
    return b"".join(b"--cut\r\nContent-Disposition: form-data; %s\r\n" % part for part in parts) + end


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/form-data; boundary=cut", b"cut"),
        ('Multipart/Form-Data; charset=x; Boundary="a b"', b"a b"),
        ("multipart/form-data", b""),
    ],
)
def test_the_boundary_is_in_the_content_type(content_type: str, boundary: bytes) -> None:
    assert boundary_in(content_type) == boundary


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (b"", []),
        (b"--cut--\r\n", []),
        (b"not a form", []),
        (b"--cut\r\nwithout an end", []),
        (
            form(b'name="type"\r\n\r\ninput', b'name="image"; filename="a.png"\r\n\r\n' + PNG),
            [FormField("type", "", b"input"), FormField("image", "a.png", PNG)],
        ),
        (form(b'name="image"; filename=""\r\n\r\n'), [FormField("image", "", b"")]),
        (form(b"name=image; filename*=UTF-8''a.png\r\n\r\nx"), [FormField("image", "UTF-8''a.png", b"x")]),
        (form(b'NAME="image"\r\nX: y\r\n\r\n\r\nx'), [FormField("image", "", b"\r\nx")]),
        (form(b'name="image"\r\n\r\ncut off', end=b""), [FormField("image", "", b"cut off\r\n")]),
        (b"--cut\r\nX: y\r\n\r\nx\r\n--cut--", [FormField("", "", b"x")]),
    ],
)
def test_the_fields_of_a_form_are_found(body: bytes, fields: List[FormField]) -> None:
    assert read_form_fields(body, b"cut") == fields


def test_of_a_large_file_only_the_beginning_is_kept_and_of_many_fields_the_first() -> None:
    (field,) = read_form_fields(form(b'name="image"\r\n\r\n' + b"x" * 5000), b"cut")
    assert field.head == b"x" * 1024
    assert len(read_form_fields(form(*[b'name="a"\r\n\r\n1'] * 99), b"cut")) == 50


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
