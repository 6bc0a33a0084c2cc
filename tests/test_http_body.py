"""Reading the body of a request, without a socket."""

from __future__ import annotations

import io
import socket
from typing import List, Optional

import pytest

from comfyui_runner.http_body import CONTINUE, SMALL_REST, RequestBody
from comfyui_runner.http_head import Head
from comfyui_runner.messages import HttpError, Request


class Silent(io.BytesIO):
    """A connection that nothing more comes from."""

    def read1(self, size: Optional[int] = -1) -> bytes:
        piece = super().read1(size)
        if not piece:
            raise socket.timeout
        return piece


class Broken(io.BytesIO):
    """A connection that breaks."""

    def read1(self, size: Optional[int] = -1) -> bytes:
        raise ConnectionResetError


def make_body(source: io.BytesIO, length: int, expect: str = "") -> RequestBody:
    """The body, with what was sent to the client in ``body.sent``."""
    headers = {"expect": expect} if expect else {}
    head = Head(Request("POST", "/", {}, headers), length, True)
    sent: List[bytes] = []
    body = RequestBody(head, source, sent.append)
    body.sent = sent  # type: ignore[attr-defined]
    return body


def refusal(body: RequestBody, limit: int = 100) -> HttpError:
    with pytest.raises(HttpError) as caught:
        body.read(limit)
    return caught.value


def test_a_body_is_read_as_long_as_it_is_and_no_further() -> None:
    source = io.BytesIO(b"bodynext")
    body = make_body(source, 4)
    assert body.read(4) == b"body"
    assert (body.unread, body.read(4), source.read()) == (0, b"", b"next")
    assert body.skip_rest()


def test_a_body_is_written_to_a_file() -> None:
    data, file = b"x" * 1000000, io.BytesIO()
    make_body(io.BytesIO(data), len(data)).save(len(data), file)
    assert file.getvalue() == data


def test_a_body_above_the_limit_is_not_read() -> None:
    source = io.BytesIO(b"x" * 101)
    body = make_body(source, 101, "100-continue")
    error = refusal(body)
    assert (error.http_status, error.type, error.message) == (413, "too_large", "The body is larger than 100 B.")
    assert source.tell() == 0 and body.sent == []  # type: ignore[attr-defined]


@pytest.mark.parametrize(("source", "status"), [(io.BytesIO(b"x"), 400), (Broken(), 400), (Silent(b"x"), 408)])
def test_a_body_that_does_not_come_whole_is_an_error(source: io.BytesIO, status: int) -> None:
    body = make_body(source, 2)
    assert refusal(body).http_status == status
    assert not body.skip_rest()


@pytest.mark.parametrize("expect", ["100-continue", "100-Continue"])
def test_a_client_that_asks_first_is_told_to_go_on_once(expect: str) -> None:
    body = make_body(io.BytesIO(b"body"), 4, expect)
    assert body.read(4) == b"body" and body.skip_rest()
    body.read(4)
    assert body.sent == [CONTINUE]  # type: ignore[attr-defined]


def test_what_a_client_holds_back_cannot_be_skipped() -> None:
    assert not make_body(io.BytesIO(b"body"), 4, "100-continue").skip_rest()
    assert make_body(io.BytesIO(b"body"), 4, "something else").skip_rest()
    assert make_body(io.BytesIO(), 0, "100-continue").skip_rest()


@pytest.mark.parametrize(("length", "skipped"), [(0, True), (SMALL_REST, True), (SMALL_REST + 1, False)])
def test_a_small_rest_is_skipped(length: int, skipped: bool) -> None:
    source = io.BytesIO(b"x" * length)
    body = make_body(source, length)
    assert body.skip_rest() is skipped
    assert source.tell() == (length if skipped else 0)


def test_a_rest_that_does_not_come_cannot_be_skipped() -> None:
    assert not make_body(io.BytesIO(b"x"), 2).skip_rest()
