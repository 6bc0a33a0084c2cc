"""The simulator's WebSockets."""

from __future__ import annotations

import socket
import time
from typing import Callable

import pytest
from simulated import WAIT, drain, receive, slow, submit, types, until
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from comfyui_runner.simulator import Simulator


def test_events_go_to_their_client_only(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    mine, other = open_ws(sim, "me"), open_ws(sim, "other")
    prompt_id = submit(sim, slow(), client_id="me")
    assert "execution_success" in types(drain(mine))
    submit(sim, slow(seed=2), client_id="other")
    assert prompt_id not in {each["data"].get("prompt_id") for each in drain(other)}
    submit(sim, slow(seed=3))  # of nobody: progress goes to all, the rest to nobody
    for ws in (mine, other):
        seen = [receive(ws) for _ in range(12)]
        assert set(types(seen)) <= {"status", "progress_state", "progress"}
        assert "progress" in types(seen)


def test_the_last_socket_of_a_client_wins(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    first = open_ws(sim, "me")
    receive(first)
    second = open_ws(sim, "me")
    assert receive(second)["data"]["sid"] == "me"
    first.close()
    submit(sim, slow(), client_id="me")
    assert "execution_success" in types(drain(second))
    with pytest.raises(ConnectionClosed):
        first.recv(timeout=WAIT)


def test_a_client_that_does_not_read_holds_up_nobody(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    with socket.create_connection(("127.0.0.1", sim.port)) as lazy:
        key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        lazy.sendall(b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n")
        lazy.sendall(b"Connection: Upgrade\r\n" + key)
        ws = open_ws(sim, "me")
        sim.faults.big_frame = 1 << 22
        begun = time.monotonic()
        for seed in range(3):
            submit(sim, slow(seed=seed), client_id="me")
            drain(ws)
            submit(sim, slow(seed=seed + 10))  # its big frames go to all
        until(lambda: len(sim.executions) == 6)
        assert time.monotonic() - begun < 5


def test_many_steps_are_fast(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    ws = open_ws(sim, "me")
    begun = time.monotonic()
    submit(sim, slow(steps=20000), client_id="me")
    frames = 0
    while '"node": null' not in str(ws.recv(timeout=WAIT)):
        frames += 1
    assert frames > 40000
    assert time.monotonic() - begun < 15


def test_pings_are_answered_and_closing_is_clean(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    ws = open_ws(sim, "me")
    receive(ws)  # older versions of websockets read no pong behind an unread message
    assert ws.ping().wait(WAIT)
    ws.send("x" * 100000)
    ws.send([b"in ", b"pieces"])
    assert ws.ping().wait(WAIT)
    ws.close(1000)
    assert ws.protocol.close_code == 1000
    until(lambda: not sim._server.life.sockets)  # type: ignore[union-attr]
