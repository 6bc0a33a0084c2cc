"""One frame of the WebSocket becomes an event, whatever is in it."""

from __future__ import annotations

import json
import struct
from typing import Any, Dict, Optional, Union

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import VERSIONS, anything, few, messages, recorded

from comfyui_runner.events import Event, Preview, parse_message, prompts_remaining


def test_a_message_in_json_becomes_an_event() -> None:
    frame = '{"type": "executing", "data": {"node": "3", "prompt_id": "p"}}'
    assert parse_message(frame, 7.5) == Event("executing", "p", {"node": "3", "prompt_id": "p"}, 7.5)


@pytest.mark.parametrize(
    ("frame", "event"),
    [
        ('{"type": "status", "data": {"status": {}}}', Event("status", None, {"status": {}}, 0)),
        ('{"type": "status"}', Event("status", None, {}, 0)),
        ('{"type": "status", "data": null}', Event("status", None, {}, 0)),
        ('{"type": "x", "data": {"prompt_id": 5}}', Event("x", None, {"prompt_id": 5}, 0)),
        ('{"type": "x", "data": {"value": Infinity}}', Event("x", None, {"value": float("inf")}, 0)),
    ],
)
def test_a_message_need_not_say_whose_it_is(frame: str, event: Event) -> None:
    assert parse_message(frame, 0) == event


def test_a_message_with_many_lists_is_read_whole() -> None:
    """A status of a queue with many prompts: it is wide, not deep."""
    data: Dict[str, Any] = {"lists": [[] for _ in range(500)]}
    text = json.dumps({"type": "x", "data": data})
    assert parse_message(text, 0) == Event("x", None, data, 0)
    assert parse_message(text + "{}", 0) == Event("unknown", None, {}, 0)


def test_a_message_may_hold_nan() -> None:
    event = parse_message('{"type": "progress", "data": {"value": NaN, "max": 5}}', 0)
    assert event.type == "progress" and event.data["value"] != event.data["value"]


@pytest.mark.parametrize(
    ("frame", "mime"),
    [
        (b"\0\0\0\1\0\0\0\1\xff\xd8picture", "image/jpeg"),
        (b"\0\0\0\1\0\0\0\2\xff\xd8picture", "image/png"),
        (b"\0\0\0\1\0\0\0\x63\xff\xd8picture", "application/octet-stream"),
    ],
)
def test_a_binary_frame_of_type_1_is_a_picture(frame: bytes, mime: str) -> None:
    picture = Preview(None, mime, b"\xff\xd8picture")
    assert parse_message(frame, 3) == Event("preview", None, {"preview": picture}, 3)


def test_a_binary_frame_of_type_3_is_a_text_about_a_node() -> None:
    frame = b"\0\0\0\3\0\0\0\5" + b"12:34" + "width: 64 狐".encode()
    assert parse_message(frame, 3) == Event("progress_text", None, {"node": "12:34", "text": "width: 64 狐"}, 3)


def frame_of_type_4(meta: bytes, picture: bytes = b"\x89PNG") -> bytes:
    return struct.pack(">II", 4, len(meta)) + meta + picture


def test_a_binary_frame_of_type_4_is_a_picture_that_says_whose_it_is() -> None:
    meta = b'{"node_id": "5.0.0.1", "prompt_id": "p", "display_node_id": "5", "image_type": "image/png"}'
    picture = Preview("5", "image/png", b"\x89PNG")
    assert parse_message(frame_of_type_4(meta), 3) == Event("preview", "p", {"preview": picture}, 3)
    meta = b'{"display_node_id": 5, "image_type": "image/jpeg"}'
    picture = Preview("5", "image/jpeg", b"")
    assert parse_message(frame_of_type_4(meta, b""), 3) == Event("preview", None, {"preview": picture}, 3)


@pytest.mark.parametrize(
    "frame",
    [
        "", "not json", "[]", "[1, 2]", "null", "7", '"text"', "{}", '{"data": {}}', '{"type": "x", "data": []}{',
        '{"type": "x", "data": [1]}', '{"type": "x", "data": "text"}', '{"type": "x", "data": 5}',
        "[" * 100000, '{"type": ' + "9" * 5000 + "}x",
        b"", b"\0\0\0", b"\0\0\0\1", b"\0\0\0\1\0\0\0", b"\0\0\0\2\0\0\0\1png",
        b"\0\0\0\x09abcdefgh", b"\1\0\0\0\1\0\0\0a",
        b"\0\0\0\3", b"\0\0\0\3\0\0", b"\0\0\0\3\0\0\0\1\xff\xfe", b"\0\0\0\3\0\0\0\1" + b"5\xff",
        b"\0\0\0\3\0\0\0\x64" + b"5 text", b"\0\0\0\3\xff\xff\xff\xff" + b"5 text",
        b"\0\0\0\4", b"\0\0\0\4\0\0\0\x64{}", frame_of_type_4(b"{}"), frame_of_type_4(b"[]"), frame_of_type_4(b"no"),
        frame_of_type_4(b'"text"'), frame_of_type_4(b"5"), frame_of_type_4(b'{"display_node_id": "5"}'),
        frame_of_type_4(b'{"display_node_id": "5", "image_type": "image/png"}')[:30], b'{"type": "status"}',
    ],
)  # fmt: skip
def test_a_frame_that_is_broken_or_unknown_is_no_news(frame: Union[str, bytes]) -> None:
    assert parse_message(frame, 3) == Event("unknown", None, {}, 3)


@few
@given(
    st.text()
    | st.binary()
    | anything.map(json.dumps)
    | messages.map(lambda message: json.dumps({"type": message[0], "data": message[1]}))
    | st.builds(lambda kind, rest: struct.pack(">I", kind) + rest, st.integers(0, 5), st.binary())
    | st.builds(lambda meta, cut: frame_of_type_4(json.dumps(meta).encode())[:cut], anything, st.integers(0, 99))
)
def test_any_frame_becomes_an_event(frame: Union[str, bytes]) -> None:
    event = parse_message(frame, 1.0)
    assert isinstance(event.type, str) and event.at == 1.0
    assert event.prompt_id is None or isinstance(event.prompt_id, str)
    assert isinstance(event.data, dict)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("scenario", "node_id", "mime"),
    [("preview_frames", None, "image/jpeg"), ("preview_frames_with_metadata", "1", "image/jpeg")],
)
def test_recorded_previews(version: str, scenario: str, node_id: Optional[str], mime: str) -> None:
    frames = [step.frame for step in recorded(version, scenario) if isinstance(step.frame, bytes)]
    events = [parse_message(frame, 0) for frame in frames]
    assert len(events) == 5
    assert {(event.data["preview"].node_id, event.data["preview"].mime) for event in events} == {(node_id, mime)}


@pytest.mark.parametrize(
    ("status", "count"),
    [
        ({"status": {"exec_info": {"queue_remaining": 3}}}, 3),
        ({"status": {"exec_info": {"queue_remaining": 0}}, "sid": "x"}, 0),
        ({"status": {"exec_info": {"queue_remaining": True}}}, None),
        ({"status": {"exec_info": {"queue_remaining": "3"}}}, None),
        ({"status": {"exec_info": {}}}, None),
        ({"status": {"exec_info": None}}, None),
        ({"status": []}, None),
        ({}, None),
    ],
)
def test_a_status_says_how_many_prompts_remain(status: Dict[str, Any], count: Optional[int]) -> None:
    assert prompts_remaining(status) == count
