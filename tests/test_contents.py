"""What the bytes of a file are: pictures, web pages and others by how they begin, encodings by a guess."""

from __future__ import annotations

import pytest

from comfyui_runner.contents import Content, describe_content, guess_encoding, save_as_utf_8, text_encoding

PICTURES = [
    (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (b"\xff\xd8\xff\xe0\0\x10JFIF", "a JPEG picture"),
    (b"GIF89a", "a GIF picture"),
    (b"RIFF\x10\0\0\0WEBPVP8L", "a WebP picture"),
    (b"BM\x10\0\0\0\0\0\0\0", "a BMP picture"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"\0\0\0\x20ftypavif", "an AVIF picture"),
    (b"\0\0\0\x20ftypheic", "a HEIC picture"),
    (b"\xff\x0a\x01", "a JPEG XL picture"),
    (b"P6\n8 8\n255\n", "a PNM picture"),
    (b"P7\nWIDTH 8\n", "a PNM picture"),
    (b"v/1\x01", "an OpenEXR picture"),
    (b"#?RADIANCE", "an HDR picture"),
    (b"qoif", "a QOI picture"),
]
OTHERS = [
    (b"", "empty"),
    (b"\xef\xbb\xbf \r\n", "empty"),
    (b"\xef\xbb\xbf\n<!-- x --><!DOCTYPE HTML>", "a web page"),
    (b"<html lang=en>", "a web page"),
    (b"RIFF\x10\0\0\0WAVEfmt ", "a WAV sound"),
    (b"RIFF\x10\0\0\0AVI LIST", "an AVI video"),
    (b"\0\0\0\x20ftypisom", "an MP4 video"),
    (b"\x1aE\xdf\xa3", "a WebM or Matroska video"),
    (b"%PDF-1.7", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"<svg/>", ""),
    (b"a text", ""),
    (b"BM is not always a picture", ""),
    (b"P2 is a text", ""),
    (b'{"1": {}}', ""),
]


@pytest.mark.parametrize(("head", "kind"), PICTURES)
def test_a_picture_is_known_by_its_first_bytes(head: bytes, kind: str) -> None:
    assert describe_content(head) == Content(kind, is_picture=True)
    assert describe_content(head + bytes(5000)).kind == kind


@pytest.mark.parametrize(("head", "kind"), OTHERS)
def test_what_is_something_else_is_known_too(head: bytes, kind: str) -> None:
    assert describe_content(head).kind == kind


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        ("a fox in the snow".encode("utf-16"), "UTF-16"),
        ("a fox".encode("utf-16-le"), "UTF-16"),
        ("a fox".encode("utf-16-be"), "UTF-16"),
        ("狐狸".encode("utf-16"), "UTF-16"),
        ('{"text": "雪地里的狐狸"}'.encode("gbk"), "GBK"),
        ("café über naïve".encode("cp1252"), "Windows-1252"),
        ("naïve".encode("cp1252"), "Windows-1252"),  # ïv would be a character in GBK
        ('{"title": "Größe"}'.encode("cp1252"), "Windows-1252"),  # öß would be one too, a rare one
        ("créée".encode("cp1252"), "Windows-1252"),
        ("时髦的狐狸".encode("gbk"), "GBK"),  # a rare character between others
        (b"\xaa\xfe\xaa\xfe", "Windows-1252"),  # pairs, but none of GBK's
        (b"a\x01\xff", ""),
        (b"\0\0\0\0", ""),
    ],
)
def test_the_encoding_of_a_text_is_guessed(data: bytes, encoding: str) -> None:
    assert guess_encoding(data) == encoding


def test_what_to_do_names_a_command_where_the_encoding_is_known() -> None:
    assert "iconv -f UTF-16 -t UTF-8 FILE > NEW" in save_as_utf_8("UTF-16")
    assert "iconv" not in save_as_utf_8("")
    assert "save as CSV UTF-8" in save_as_utf_8("Windows-1252")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("text", ["", "a", "a fox", "狐狸"])
def test_a_text_is_read_by_its_mark(encoding: str, text: str) -> None:
    data = text.encode(encoding)
    assert data.decode(text_encoding(data)) == text


def test_the_mark_of_utf_16_has_two_orders() -> None:
    for data in ("\ufeffa".encode("utf-16-le"), "\ufeffa".encode("utf-16-be")):
        assert data.decode(text_encoding(data)) == "a"
