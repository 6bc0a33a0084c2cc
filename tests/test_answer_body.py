"""The bodies of answers as they come: what is kept of them, and what is refused."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from typing import Iterable, Optional

import pytest

from comfyui_runner.answer_body import AnswerBody, UnreadableBody, is_packed, stated_length

TEXT = b'{"queue_running": []}' * 100


def received(pieces: Iterable[bytes], encoding: str = "", limit: int = 1 << 20) -> bytes:
    body = AnswerBody(encoding, limit)
    for piece in pieces:
        body.add(piece)
    return body.finish()


def cut(data: bytes, size: int) -> Iterable[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 7, 1 << 16])
@pytest.mark.parametrize("encoding", ["", "identity", " Identity "])
def test_a_body_is_kept_as_it_came(size: int, encoding: str) -> None:
    assert received(cut(TEXT, size), encoding) == TEXT


@pytest.mark.parametrize("size", [1, 7, 1 << 16])
@pytest.mark.parametrize("encoding", ["gzip", " GZip"])
def test_a_packed_body_is_unpacked(size: int, encoding: str) -> None:
    assert received(cut(gzip.compress(TEXT), size), encoding) == TEXT


def test_an_empty_body_is_empty_packed_or_not() -> None:
    assert received([]) == received([], "gzip") == received([gzip.compress(b"")], "gzip") == b""


def test_what_was_sent_is_counted_before_it_is_unpacked() -> None:
    packed = gzip.compress(TEXT)
    body = AnswerBody("gzip", 1 << 20)
    body.add(packed)
    assert body.came == len(packed)


@pytest.mark.parametrize("encoding", ["", "gzip"])
def test_a_body_may_have_as_much_as_the_limit_and_no_more(encoding: str) -> None:
    data = gzip.compress(TEXT) if encoding else TEXT
    assert received([data], encoding, limit=len(TEXT)) == TEXT
    with pytest.raises(UnreadableBody, match=r"^it is larger than 2\.0 KB$"):
        received([data], encoding, limit=len(TEXT) - 1)


def test_a_bomb_is_not_even_unpacked() -> None:
    bomb = gzip.compress(b"\0" * (64 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableBody, match=r"larger than 1\.0 MB"):
            received([bomb], "gzip", limit=1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("encoding", ["br", "zstd", "deflate", "gzip, gzip", "x"])
def test_a_packing_that_was_not_asked_for_is_refused(encoding: str) -> None:
    assert is_packed(encoding)
    with pytest.raises(UnreadableBody, match="did not ask for"):
        AnswerBody(encoding, 1 << 20)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (TEXT, "it cannot be unpacked"),
        (zlib.compress(TEXT), "it cannot be unpacked"),
        (gzip.compress(TEXT)[:-9], "its end is missing"),
        (gzip.compress(TEXT) + gzip.compress(TEXT), "more follows its end"),
        (gzip.compress(TEXT) + b"x", "more follows its end"),
    ],
    ids=["plain", "zlib", "cut", "twice", "longer"],  # gzip writes the time: the data cannot be names
)
@pytest.mark.parametrize("size", [5, 1 << 16])
def test_a_packed_body_that_is_broken_is_refused(data: bytes, reason: str, size: int) -> None:
    with pytest.raises(UnreadableBody, match=reason):
        received(cut(data, size), "gzip")


@pytest.mark.parametrize(
    ("value", "length"),
    [("0", 0), ("12", 12), ("", None), ("-5", None), ("+5", None), ("\xb2", None), ("5, 5", None), ("9" * 5000, None)],
)
def test_a_length_is_a_number_or_it_is_not_stated(value: str, length: Optional[int]) -> None:
    """isdigit() takes "\xb2" for a number, which int() does not; and int() refuses very long ones."""
    assert stated_length({"Content-Length": value}) == length


def test_a_length_beside_chunks_does_not_count() -> None:
    assert stated_length({"Content-Length": "5", "Transfer-Encoding": "chunked"}) is None
    assert stated_length({}) is None
