"""The listener of continuous mode, without a request: who is waited for, and what is cut off."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any, Iterator

import pytest
from support import seconds_since, wait_until

from comfyui_runner.http_server import HttpListener, RequestHandler


class Routes:
    """Stands for the routes: nobody asks for one."""

    page = b""


@pytest.fixture
def listener() -> Iterator[HttpListener]:
    routes: Any = Routes()
    made = HttpListener(routes, "127.0.0.1", 0)
    yield made
    made.server_close()


def test_answers_that_have_begun_are_waited_for_and_not_for_ever(listener: HttpListener) -> None:
    began = time.monotonic()
    listener.wait_for_answers(30.0)  # nobody is being answered
    listener.busy.add("a connection")
    listener.wait_for_answers(0.05)
    assert time.monotonic() - began >= 0.05
    assert seconds_since(began) < 20.0


def test_a_head_that_takes_too_long_is_read_no_further(listener: HttpListener) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        now = time.monotonic()
        listener.deadlines = {ours: now - 0.001, theirs: now + 600.0}
        listener.service_actions()
        assert list(listener.deadlines) == [theirs]
        assert ours.recv(1) == b""  # its thread sees the end, and answers 408
        ours.sendall(b"408")
        assert theirs.recv(3) == b"408"


def test_a_connection_that_was_closed_meanwhile_is_passed_over(listener: HttpListener) -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    ours.close()
    listener.deadlines = {ours: 0.0}
    listener.service_actions()
    assert listener.deadlines == {}


def test_threads_of_connections_hold_no_exit_up_and_requests_wait_in_line() -> None:
    assert HttpListener.daemon_threads is True
    assert HttpListener.request_queue_size == 128
    assert RequestHandler.protocol_version == "HTTP/1.1"  # connections are kept


def test_late_heads_and_the_end_are_looked_for_ten_times_a_second() -> None:
    intervals = []

    class Noting(HttpListener):
        def serve_forever(self, poll_interval: float = 0.5) -> None:
            intervals.append((poll_interval, threading.current_thread().daemon))

    routes: Any = Routes()
    listener = Noting(routes, "127.0.0.1", 0)
    try:
        listener.start()
        wait_until(lambda: intervals, what="the start")
    finally:
        listener.server_close()
    assert intervals == [(0.1, True)]
