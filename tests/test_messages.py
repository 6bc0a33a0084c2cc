"""Requests and answers of continuous mode, without a socket."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import anything, few

from comfyui_runner.errors import ServerUnreachable
from comfyui_runner.messages import HttpError, error_response, parse_fields


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "not_json"),
        (b"\xff", "not_json"),
        (b"[" * 100000, "not_json"),
        (b"1" * 5000 + b"x", "not_json"),
        (b"[]", "not_an_object"),
        (b"null", "not_an_object"),
        (b'"text"', "not_an_object"),
        (b"", "missing_field"),
        (b"{}", "missing_field"),
        (b'{"node_id": "1"}', "missing_field"),
        (b'{"text": 1}', "wrong_type"),
        (b'{"text": null}', "wrong_type"),
        (b'{"text": "a", "node_id": 6}', "wrong_type"),
        (b'{"text": "a", "inputs": []}', "wrong_type"),
    ],
)
def test_what_is_no_such_object_is_told_with_400(body: bytes, reason: str) -> None:
    with pytest.raises(HttpError) as caught:
        parse_fields(body, {"text": str}, {"node_id": str, "inputs": dict})
    assert (caught.value.http_status, caught.value.type) == (400, reason)


def test_the_fields_of_an_object_come_as_they_are() -> None:
    assert parse_fields(b'\xef\xbb\xbf{"text": "\xe7\x8b\x90", "more": 1}', {"text": str}, {}) == {
        "text": "狐",
        "more": 1,
    }
    assert parse_fields(b" \r\n", {}, {"prompt": dict}) == {}


@few
@given(st.binary(max_size=40) | anything.map(lambda value: json.dumps(value).encode()))
def test_nothing_but_an_http_error_comes_of_an_odd_body(body: bytes) -> None:
    try:
        assert isinstance(parse_fields(body, {"text": str}, {"inputs": dict}), dict)
    except HttpError as error:
        assert error.http_status == 400


def test_an_error_of_ours_is_json_too() -> None:
    answer = error_response(KeyError("oops"))
    assert answer.status == 500
    assert json.loads(answer.body)["error"]["type"] == "internal_error"
    gone = error_response(ServerUnreachable("No answer.", "Start it."))
    assert (gone.status, dict(gone.headers)["Retry-After"]) == (503, "5")
    assert json.loads(gone.body)["error"]["message"] == "No answer. Start it."
