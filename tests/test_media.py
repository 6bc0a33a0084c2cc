"""Kinds of files by their names and their first bytes, and files in base64."""

from __future__ import annotations

import base64
from typing import Optional, Tuple

import pytest

from comfyui_runner.media import (
    decode_base64,
    ending_of_data,
    find_base64,
    kind_of_name,
    media_type_of_name,
)
from comfyui_runner.simulator import draw


@pytest.mark.parametrize(
    ("name", "kind", "media_type"),
    [
        ("a.PNG", "image", "image/png"),
        ("a.jpg", "image", "image/jpeg"),
        ("a.b.mp4", "video", "video/mp4"),
        ("a.mp3", "audio", "audio/mpeg"),
        ("a.glb", "3d", ""),
        ("a.csv", "text", ""),
        ("a.html", "file", ""),
        ("png", "image", "image/png"),
        ("", "file", ""),
    ],
)
def test_the_ending_of_a_name_says_what_it_is(name: str, kind: str, media_type: str) -> None:
    assert (kind_of_name(name), media_type_of_name(name)) == (kind, media_type)


@pytest.mark.parametrize(
    ("data", "ending"),
    [
        (draw(8, 8, 1, ["A"]), "png"),
        (b"\xff\xd8\xff\xe0", "jpg"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "webp"),
        (b"RIFF\0\0\0\0WAVEfmt ", "wav"),
        (b"\0\0\0\x20ftypisom", "mp4"),
        (b"\0\0\0\x20ftypavif", "avif"),
        (b"glTF\2\0\0\0", "glb"),
        (b"not a picture", ""),
        (b"", ""),
    ],
)
def test_the_first_bytes_say_what_it_is(data: bytes, ending: str) -> None:
    assert ending_of_data(data) == ending


DATA = draw(8, 8, 1, ["A"])
PNG = base64.b64encode(DATA).decode()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (PNG, ("png", len(DATA))),
        (base64.encodebytes(DATA).decode(), ("png", len(DATA))),
        ("data:image/jpeg;base64," + PNG, ("png", len(DATA))),  # it is what it is
        ("data:;base64," + PNG, ("png", len(DATA))),
        ("data:image/svg+xml;charset=utf-8;base64,PHN2Zz4=", ("svg", 5)),
        ("data:audio/mpeg;base64,AAAA", ("mp3", 3)),
        ("data:text/html;base64,AAA=", ("bin", 2)),
        ("data:application/x-thing;base64,AA==", ("bin", 1)),
        ("data:image/png;base64,", None),
        ("data:image/png;base64,ä", None),
        ("data:image/png,AAAA", None),
        ("SUQz", None),  # begins as an MP3 does, and is a word
        ("a" * 400, None),
        ("a red fox, masterpiece", None),
        ("", None),
    ],
)
def test_base64_is_found_by_how_the_file_begins(text: str, found: Optional[Tuple[str, int]]) -> None:
    file = find_base64(text)
    assert (file and (file.ending, file.size)) == found


def test_base64_may_be_in_lines_and_must_be_whole() -> None:
    assert decode_base64(base64.encodebytes(DATA).decode()) == DATA
    assert decode_base64(PNG + "!") is None
    assert decode_base64("ä") is None
