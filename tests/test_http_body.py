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


class Clock:
    """A clock that goes on when something is read, by ``step`` seconds."""

    def __init__(self, step: float = 0.0) -> None:
        self.now, self.step = 1000.0, step

    def __call__(self) -> float:
        return self.now


class Dripping(io.BytesIO):
    """A connection from which a few bytes come at a time."""

    def __init__(self, data: bytes, size: int, clock: Clock) -> None:
        super().__init__(data)
        self.size, self.clock = size, clock

    def read1(self, size: Optional[int] = -1) -> bytes:
        self.clock.now += self.clock.step
        return super().read1(min(self.size, size or 0))


def make_body(source: io.BytesIO, length: int, expect: str = "", clock: Optional[Clock] = None) -> RequestBody:
    """The body, with what was sent to the client in ``body.sent``, and the timeouts that were set."""
    headers = {"expect": expect} if expect else {}
    head = Head(Request("POST", "/", {}, headers), length, True)
    sent: List[bytes] = []
    timeouts: List[float] = []
    body = RequestBody(head, source, sent.append, timeouts.append, clock=clock or Clock())
    body.sent = sent  # type: ignore[attr-defined]
    body.timeouts = timeouts  # type: ignore[attr-defined]
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


def test_a_picture_of_20_mb_comes_over_a_weak_connection() -> None:
    clock = Clock(step=20.0)  # stops for 20 s each time, and then 240 KB at once: 12 KB/s
    source = Dripping(b"x" * 20_000_000, 240_000, clock)
    body = make_body(source, 20_000_000, clock=clock)
    assert len(body.read(20_000_000)) == 20_000_000
    assert max(body.timeouts) <= 30.0  # type: ignore[attr-defined]


@pytest.mark.parametrize(("size", "step", "most_seconds"), [(1, 1.0, 21), (100, 1.0, 22), (4000, 1.0, 1500)])
def test_a_body_that_drips_is_given_up(size: int, step: float, most_seconds: int) -> None:
    clock = Clock(step)
    error = refusal(make_body(Dripping(b"x" * 10_000_000, size, clock), 10_000_000, clock=clock), 10_000_000)
    assert (error.http_status, error.type) == (408, "timeout")
    assert clock.now - 1000.0 <= most_seconds


def test_a_body_ends_however_fast_it_comes() -> None:
    clock = Clock(step=1.0)
    body = make_body(Dripping(b"x" * 50_000_000, 10_000, clock), 50_000_000, clock=clock)
    assert refusal(body, 50_000_000).http_status == 408
    assert clock.now - 1000.0 <= 3601.0


def test_nothing_is_waited_for_longer_than_the_body_may_take() -> None:
    clock = Clock(step=15.0)
    body = make_body(Dripping(b"ab", 1, clock), 2, clock=clock)
    body.read(2)
    assert [round(seconds, 1) for seconds in body.timeouts] == [20.0, 5.0]  # type: ignore[attr-defined]


def test_a_rest_that_drips_is_skipped_for_a_moment() -> None:
    clock = Clock(step=0.5)
    assert not make_body(Dripping(b"x" * 100, 1, clock), 100, clock=clock).skip_rest()
    assert clock.now - 1000.0 <= 2.5
