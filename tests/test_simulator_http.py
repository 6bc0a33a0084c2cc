"""The simulator's HTTP interface."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Callable

import pytest
import requests
from simulated import KEY, WAIT, WS, get, history, raw, receive, slow, submit, until
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection

from comfyui_runner.simulator import Simulator


def test_everything_is_also_below_api(sim: Simulator) -> None:
    for path in ("/prompt", "/queue", "/history", "/features", "/object_info", "/models/loras"):
        assert get(sim, path).json() == get(sim, "/api" + path).json()
    assert ("GET", "/api/queue") in sim.requests
    assert get(sim, "/embeddings").json() == ["easynegative"]
    assert get(sim, "/models/none").status_code == 404
    assert requests.put(sim.url + "/queue", timeout=WAIT).status_code == 405
    assert get(sim, "/ws").status_code == 400


def test_base_path(simulate: Callable[..., Simulator], open_ws: Callable[..., ClientConnection]) -> None:
    sim = simulate(base_path="comfy/")
    assert sim.url.endswith("/comfy")
    assert get(sim, "/queue").ok
    assert get(sim, "/api/queue").ok
    for path in ("/queue", "/comfyqueue", "/comfy"):
        answer = requests.get(f"http://127.0.0.1:{sim.port}{path}", timeout=WAIT)
        assert answer.status_code == 404
    assert receive(open_ws(sim, "me"))["data"]["sid"] == "me"


def test_token(simulate: Callable[..., Simulator], open_ws: Callable[..., ClientConnection]) -> None:
    sim = simulate(token="s3cret")
    right = {"Authorization": "Bearer s3cret"}
    assert get(sim, "/queue", headers=right).ok
    assert get(sim, "/queue", auth=("user", "s3cret")).ok
    wrong = [{}, {"Authorization": "Bearer x"}, {"Authorization": "s3cret"}]
    for headers in [*wrong, {"Authorization": "Basic ???"}, {"Authorization": "Basic czNjcmV0"}]:
        assert get(sim, "/queue", headers=headers).status_code in (401, 500)
    with pytest.raises(InvalidStatus) as info:
        open_ws(sim)
    assert info.value.response.status_code == 401
    assert receive(open_ws(sim, additional_headers=right))["type"] == "status"


def test_foreign_origins(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    for headers, status in (
        ({"Origin": f"http://127.0.0.1:{sim.port}"}, 200),
        ({"Origin": f"http://127.0.0.1:{sim.port + 1}"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
    ):
        assert get(sim, "/queue", headers=headers).status_code == status
    with pytest.raises(InvalidStatus):
        open_ws(sim, origin="http://evil.example")


def test_bodies_over_the_limit(simulate: Callable[..., Simulator]) -> None:
    sim = simulate(max_upload_size=1 << 20)
    big = b"x" * (3 << 20)
    with requests.Session() as session:
        for answer in (
            session.post(sim.url + "/upload/image", files={"image": ("a", big)}, timeout=WAIT),
            session.post(sim.url + "/prompt", data=b'"' + big + b'"', timeout=WAIT),
            session.post(sim.url + "/prompt", data=iter([b'"', big]), timeout=WAIT),
        ):
            assert answer.status_code == 413
            assert "1048576" in answer.text
        assert session.get(sim.url + "/queue", timeout=WAIT).ok
    assert os.listdir(Path(sim.root, "input")) == []
    assert not list(Path(sim.root).glob(".upload*"))


def test_connections_are_kept_and_answers_come_at_once(sim: Simulator) -> None:
    with requests.Session() as session:
        session.get(sim.url + "/queue", timeout=WAIT)
        begun = time.monotonic()
        for _ in range(50):
            session.get(sim.url + "/queue", timeout=WAIT)
            session.post(sim.url + "/nowhere", data="x" * 100, timeout=WAIT)
        assert time.monotonic() - begun < 2  # 4 s if each answer waited for an ACK
    connections = sim._server.connections  # type: ignore[union-attr]
    until(lambda: not connections)


def test_expect_continue(sim: Simulator) -> None:
    with socket.create_connection(("127.0.0.1", sim.port), timeout=WAIT) as connection:
        head = b"POST /interrupt HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n"
        connection.sendall(head + b"Expect: 100-continue\r\nConnection: close\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 100")
        connection.sendall(b"{}")
        assert connection.recv(100).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /" + b"x" * 70000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n",
        b"BREW /queue HTTP/1.1\r\n\r\n",
        b"POST /prompt HTTP/1.1\r\nContent-Length: -5\r\nConnection: close\r\n\r\n",
        b"POST /prompt HTTP/1.1\r\nContent-Length: x\r\nConnection: close\r\n\r\n",
        b"POST /prompt HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        WS + b"\r\n",
        WS + b"Sec-WebSocket-Key: short\r\nSec-WebSocket-Version: 13\r\n\r\n",
        WS + KEY + b"\xff\xff\xff\xff",  # reserved bits
        WS + KEY + b"\x81\x01x",  # not masked
        WS + KEY + b"\x81\xff\x7f" + b"\xff" * 7 + b"mask",  # too long
        WS + KEY + b"\x88\x80\0\0\0\0",  # a close frame without a code
    ],
)
def test_malformed_requests_do_no_harm(sim: Simulator, data: bytes) -> None:
    begun = time.monotonic()
    raw(sim, data)
    assert time.monotonic() - begun < 5
    assert get(sim, "/queue").ok
    until(lambda: not sim._server.life.sockets)  # type: ignore[union-attr]


@pytest.mark.parametrize("data", [b"", b"POST /upl", WS, b"POST /prompt HTTP/1.1\r\nHost: x\r\n"])
def test_a_client_that_goes_away_does_no_harm(sim: Simulator, data: bytes) -> None:
    if data.endswith(b"x\r\n"):
        data += b"Content-Length: 1000\r\n\r\n{"
    with socket.create_connection(("127.0.0.1", sim.port)) as connection:
        connection.sendall(data)
    assert get(sim, "/queue").ok
    connections = sim._server.connections  # type: ignore[union-attr]
    until(lambda: not connections)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"[]", b"null", b'"text"', b"\xff\xfe", b"[" * 100000),
        *(b'{"prompt": []}', b'{"prompt": "x"}', b'{"prompt": {}, "number": "x"}'),
        *(b'{"prompt": {"1": 5}}', b'{"prompt": {"1": null}}'),
        b'{"prompt": {"1": {"class_type": []}}}',
    ],
)
def test_malformed_prompts_are_answered(sim: Simulator, body: bytes) -> None:
    answer = requests.post(sim.url + "/prompt", data=body, timeout=WAIT)
    assert answer.status_code in (400, 500)
    history(sim, submit(sim, slow()))
