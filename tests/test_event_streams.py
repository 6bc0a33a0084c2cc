"""The event streams, without a socket."""

from __future__ import annotations

import threading
import tracemalloc
from typing import List

from comfyui_runner.event_streams import BYTES_WAITING, EVENTS_PER_PIECE, KEEP_ALIVE, EventStreams, encode_event
from comfyui_runner.redaction import Secrets


def make_streams(queue_size: int = 10) -> EventStreams:
    return EventStreams(threading.RLock(), Secrets(["hunter22"]), queue_size, keep_alive_seconds=0.01)


def test_an_event_has_a_name_and_strict_json() -> None:
    assert encode_event("run", {"a": float("nan")}, Secrets()) == b'event: run\ndata: {"a": null}\n\n'


def test_what_is_published_goes_to_everybody_who_wants_it_in_one_piece() -> None:
    streams = make_streams()
    everything, one_run, other_run = streams.open(None), streams.open("1"), streams.open("2")
    size = streams.publish("run", {"n": 1}, "1")
    streams.publish("status", {})
    streams.end()
    first, second = b'event: run\ndata: {"n": 1}\n\n', b"event: status\ndata: {}\n\n"
    end = b"event: end\ndata: {}\n\n"
    assert size == len(first)
    for stream, sent in ((everything, first + second), (one_run, first + second), (other_run, second)):
        pieces: List[bytes] = []
        stream.send_until_end(pieces.append, 5.0)
        assert pieces == [sent + end]


def test_what_is_published_has_no_secrets() -> None:
    streams = make_streams()
    stream = streams.open(None)
    streams.publish("report", {"message": "refused: hunter22"})
    streams.end()
    pieces: List[bytes] = []
    stream.send_until_end(pieces.append, 5.0)
    assert pieces == [b'event: report\ndata: {"message": "refused: ***"}\n\nevent: end\ndata: {}\n\n']


def test_many_events_go_in_several_pieces() -> None:
    streams = make_streams(2 * EVENTS_PER_PIECE)
    stream = streams.open(None)
    for number in range(EVENTS_PER_PIECE + 1):
        streams.publish("x", number)
    streams.end()
    pieces: List[bytes] = []
    stream.send_until_end(pieces.append, 5.0)
    assert [piece.count(b"event: ") for piece in pieces] == [EVENTS_PER_PIECE, 2]
    assert b"".join(pieces).count(b"event: x") == EVENTS_PER_PIECE + 1


def test_a_client_that_falls_behind_is_dropped_and_the_others_are_not() -> None:
    streams = make_streams(queue_size=4)
    slow = streams.open(None)
    for number in range(4):
        streams.publish("x", number)
    assert len(streams) == 1 and not slow.was_dropped
    quick = streams.open(None)
    streams.publish("x", 4)
    assert len(streams) == 1 and slow.was_dropped and not quick.was_dropped
    pieces: List[bytes] = []
    slow.send_until_end(pieces.append, 5.0)
    assert pieces == []


def test_a_client_that_many_bytes_wait_for_is_dropped() -> None:
    streams = make_streams(queue_size=2000)
    slow = streams.open(None)
    megabyte = "x" * (1 << 20)
    tracemalloc.start()
    try:
        for _ in range(100):
            streams.publish("x", megabyte)
        assert tracemalloc.get_traced_memory()[1] < BYTES_WAITING + (8 << 20)
    finally:
        tracemalloc.stop()
    assert slow.was_dropped and len(streams) == 0


def test_a_client_that_keeps_up_gets_events_of_any_size() -> None:
    stream = make_streams().open(None)
    pieces: List[int] = []

    def send(piece: bytes) -> None:
        pieces.append(len(piece))
        stream.put(b"x" * (BYTES_WAITING + 1) if len(pieces) < 4 else None)

    stream.put(b"x" * BYTES_WAITING)
    stream.send_until_end(send, 5.0)
    assert not stream.was_dropped
    assert pieces == [BYTES_WAITING, *[BYTES_WAITING + 1] * 3, 0]


def test_a_quiet_stream_is_kept_alive_until_it_ends() -> None:
    stream = make_streams().open(None)
    pieces: List[bytes] = []

    def send(piece: bytes) -> None:
        pieces.append(piece)
        if len(pieces) == 2:
            stream.put(None)

    stream.send_until_end(send, 0.01)
    assert pieces == [KEEP_ALIVE, KEEP_ALIVE, b""]


def test_a_closed_stream_gets_nothing_and_may_be_closed_twice() -> None:
    streams = make_streams()
    stream = streams.open(None)
    for _ in range(2):
        streams.close(stream)
    assert len(streams) == 0
    assert streams.publish("x", {}) > 0
