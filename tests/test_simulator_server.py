"""The simulator is started, stopped, killed and started again."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path
from typing import Callable

import pytest
import requests
from simulated import KEY, WS, busy, drain, get, history, slow, submit, until
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from comfyui_runner.simulator import Simulator


def test_stop_leaves_nothing_behind(open_ws: Callable[..., ClientConnection]) -> None:
    threads = set(threading.enumerate())
    sim = Simulator().start()
    root = Path(sim.root)
    assert (root / "input" / "example.png").exists()
    busy(sim, client_id="me")
    sim.faults.http_hang = {"/features": 60.0}
    with socket.create_connection(("127.0.0.1", sim.port)) as connection:
        connection.sendall(b"GET /features HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: ("GET", "/features") in sim.requests)
        key = WS + KEY
        with socket.create_connection(("127.0.0.1", sim.port)) as quiet:
            quiet.sendall(key)
            until(lambda: sim._server.life.sockets)  # type: ignore[union-attr]
            begun = time.monotonic()
            sim.stop()
            sim.stop()
            assert time.monotonic() - begun < 2
    assert set(threading.enumerate()) <= threads  # those of earlier tests may have ended meanwhile
    assert not root.exists()
    with pytest.raises(requests.ConnectionError):
        get(sim, "/queue")


def test_a_given_folder_is_kept(tmp_path: Path) -> None:
    with Simulator(root=str(tmp_path)) as sim:
        history(sim, submit(sim, slow()))
    assert [each.name for each in (tmp_path / "output").iterdir()] == ["slow_00001_.png"]


def test_restart(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    done = submit(sim, slow())
    history(sim, done)
    Path(sim.root, "temp", "x.png").write_bytes(b"x")
    ws = open_ws(sim, "me")
    running = busy(sim, client_id="me")
    submit(sim, slow())
    port = sim.port
    sim.restart()
    with pytest.raises(ConnectionClosed) as info:
        drain(ws)
    assert info.value.rcvd is None
    assert sim.port == port
    assert get(sim, "/queue").json() == {"queue_running": [], "queue_pending": []}
    assert get(sim, "/history").json() == {}
    assert not os.listdir(Path(sim.root, "temp"))
    assert os.listdir(Path(sim.root, "output"))
    assert sim.executions == {done: 1, running: 1}
    again = submit(sim, slow())
    assert history(sim, again)["outputs"]["2"]["images"][0]["filename"] == "slow_00002_.png"
    assert sim.executed_nodes[again] == ["1", "2"]  # the cache is gone as well


def test_crash_and_revive(sim: Simulator) -> None:
    sim.crash()
    sim.crash()
    with pytest.raises(requests.ConnectionError):
        get(sim, "/queue")
    sim.revive()
    sim.revive()
    history(sim, submit(sim, slow()))


def test_two_simulators_do_not_share_a_port(sim: Simulator) -> None:
    other = Simulator(port=sim.port)
    with pytest.raises(OSError):
        other.start()
    other.stop()
