"""The simulator misbehaves as it is asked to."""

from __future__ import annotations

import struct
import time
import uuid
import zlib
from typing import Any, Callable, List

import pytest
import requests
from simulated import WAIT, busy, drain, get, history, interrupt, post, receive, slow, submit, types, until
from support import seconds_since
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from comfyui_runner.simulator import Simulator


def test_dropped_events(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    sim.faults.drop_events = frozenset({"execution_success", "progress", "progress_state"})
    ws = open_ws(sim, "me")
    submit(sim, slow(), client_id="me")
    kinds = types(drain(ws))
    assert "executed" in kinds
    assert not sim.faults.drop_events & set(kinds)


def test_dropped_end(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    sim.faults.drop_end = True
    ws = open_ws(sim, "me")
    history(sim, submit(sim, slow(), client_id="me"))
    sim.faults.drop_end = False
    submit(sim, slow(), client_id="me")
    kinds = types(drain(ws))
    assert kinds.count("execution_success") == 2
    assert kinds.count("executing") == 3  # two nodes of the first run, the end of the second


def test_late_history(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    sim.faults.history_delay = 0.3
    ws = open_ws(sim, "me")
    prompt_id = submit(sim, slow(), client_id="me")
    drain(ws)
    ended = time.monotonic()
    assert get(sim, "/queue").json() == {"queue_running": [], "queue_pending": []}
    assert get(sim, "/history/" + prompt_id).json() == {}
    history(sim, prompt_id)
    assert time.monotonic() - ended > 0.2


def test_evicted_history(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    sim.faults.history_evict = True
    ws = open_ws(sim, "me")
    submit(sim, slow(), client_id="me")
    drain(ws)
    assert get(sim, "/history").json() == {}
    assert get(sim, "/prompt").json()["exec_info"]["queue_remaining"] == 0


def test_lost_posts(sim: Simulator) -> None:
    sim.faults.lose_post = ["before", "after", "late:0.2", "ok", "500", "502", "503"]
    ids = [str(uuid.uuid4()) for _ in range(7)]
    for fault, prompt_id in zip(list(sim.faults.lose_post), ids):
        if fault.isdigit() or fault == "ok":
            answer = post(sim, slow(seed=3), prompt_id=prompt_id)
            assert answer.status_code == (200 if fault == "ok" else int(fault))
        else:
            with pytest.raises(requests.ConnectionError):
                post(sim, slow(), prompt_id=prompt_id)
    assert sim.faults.lose_post == []
    accepted = {ids[1], ids[2], ids[3]}
    until(lambda: set(get(sim, "/history").json()) == accepted)
    assert set(sim.executions) == accepted


def test_a_late_post_dies_with_the_server(sim: Simulator) -> None:
    sim.faults.lose_post = ["late:0.1"]
    with pytest.raises(requests.ConnectionError):
        post(sim, slow())
    sim.restart()
    history(sim, submit(sim, slow(seed=2)))
    assert len(sim.executions) == 1


def test_deaf_reconnect(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    sim.faults.deaf_reconnect = True
    first = open_ws(sim, "me")
    first.close()
    ws = open_ws(sim, "me")
    assert receive(ws)["data"]["sid"] == "me"
    history(sim, submit(sim, slow(), client_id="me"))
    with pytest.raises(TimeoutError):
        ws.recv(timeout=0.1)
    assert ws.ping().wait(WAIT)  # it is alive
    history(sim, submit(sim, slow(seed=2), client_id="new"))
    assert receive(open_ws(sim, "new"))["type"] == "status"


def test_sockets_are_cut_after_a_number_of_messages(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    sim.faults.cut_ws_after = 5
    for _ in range(2):
        ws = open_ws(sim, "me")
        submit(sim, slow(), client_id="me")
        seen = 0
        with pytest.raises(ConnectionClosed) as info:
            while True:
                receive(ws)
                seen += 1
        assert info.value.rcvd is None  # no close frame
        assert seen <= 5
    sim.faults.cut_ws_after = None
    submit(sim, slow(), client_id="me")
    history(sim, submit(sim, slow(), client_id="me"))


def test_cut_websockets(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    sockets = [open_ws(sim, name) for name in ("a", "b")]
    running = busy(sim, client_id="a")
    sim.cut_websockets()
    for ws in sockets:
        with pytest.raises(ConnectionClosed):
            drain(ws)
    ws = open_ws(sim, "a")
    assert types([receive(ws), receive(ws)]) == ["status", "executing"]
    interrupt(sim)
    history(sim, running)


def test_stall(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    sim.faults.stall = 0.3
    ws = open_ws(sim, "me")
    begun = time.monotonic()
    prompt_id = submit(sim, slow(), client_id="me")
    receive(ws, "executing")
    assert get(sim, "/queue").json()["queue_running"][0][1] == prompt_id
    drain(ws)
    assert 0.3 <= seconds_since(begun) < 3


def test_noise(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    sim.faults.noise = True
    ws = open_ws(sim, "me")
    prompt_id = submit(sim, slow(), client_id="me")
    frames: List[Any] = []
    while not frames or prompt_id not in str(frames[-1]) or '"node": null' not in str(frames[-1]):
        frames.append(ws.recv(timeout=WAIT))
    texts = [each for each in frames if isinstance(each, str)]
    binaries = [each for each in frames if isinstance(each, bytes)]
    assert any("NaN" in each for each in texts)
    assert "this is not JSON" in texts
    assert any(each.startswith("[") for each in texts)
    assert any('"type": "executed"}' in each for each in texts)
    assert {1, 2, 3, 4, 99} <= {struct.unpack(">I", each[:4])[0] for each in binaries if each[3:]}
    assert any(len(each) < 4 for each in binaries)
    assert history(sim, prompt_id)["status"]["completed"]


def test_big_frames(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    sim.faults.big_frame = 3 << 20
    ws, small = open_ws(sim, "me"), open_ws(sim, "small", max_size=1 << 20)
    submit(sim, slow(), client_id="me")
    messages = drain(ws)
    assert max(len(each) for each in messages if isinstance(each, bytes)) > 3 << 20
    assert max(len(str(each)) for each in messages if isinstance(each, dict)) > 3 << 20
    submit(sim, slow(), client_id="small")
    with pytest.raises(ConnectionClosed) as info:
        drain(small)
    assert info.value.sent is not None
    assert info.value.sent.code == 1009


def test_http_faults(sim: Simulator) -> None:
    sim.faults.http_status = {"/history": 502, "/queue": 503, "/embeddings": 302}
    sim.faults.http_hang = {"/features": 0.2}
    sim.faults.cut_http = {"/system_stats": 2}
    for path, status in (("/history", 502), ("/api/history/x", 502), ("/queue", 503)):
        answer = get(sim, path)
        assert answer.status_code == status
        assert answer.headers["Content-Type"].startswith("text/plain")
    assert get(sim, "/embeddings", allow_redirects=False).headers["Location"] == "/elsewhere"
    begun = time.monotonic()
    assert get(sim, "/features").ok
    assert seconds_since(begun) >= 0.2
    for _ in range(2):
        with pytest.raises(requests.ConnectionError):
            get(sim, "/api/system_stats")
    assert get(sim, "/system_stats").ok
    assert get(sim, "/prompt").ok


def test_bodies_without_an_end(sim: Simulator) -> None:
    sim.faults.bodies = {"/queue": "endless", "/features": "drip", "/system_stats": "bomb"}
    sim.faults.http_status = {"/features": 500}
    for path in ("/queue", "/api/features", "/system_stats"):
        with get(sim, path, stream=True) as answer:
            piece = next(answer.iter_content(64))
            assert piece.startswith(b'{"text": "')
            assert "Content-Length" not in answer.headers
            assert answer.status_code == (500 if path == "/api/features" else 200)
    with get(sim, "/system_stats", stream=True) as answer:
        assert answer.headers["Content-Encoding"] == "gzip"
        sent = answer.raw.read(1 << 14, decode_content=False)
    unpacked = zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(sent)
    assert len(unpacked) > 200 * len(sent)


def test_bodies_that_are_packed(sim: Simulator) -> None:
    with open(f"{sim.folder('output')}/a.txt", "wb") as file:
        file.write(b"hello")
    sim.faults.bodies = {"/queue": "gzip", "/view": "gzip", "/features": "br"}
    assert get(sim, "/queue").json() == {"queue_running": [], "queue_pending": []}
    assert get(sim, "/view?filename=a.txt").content == b"hello"
    for path in ("/queue", "/view?filename=a.txt", "/features"):
        with get(sim, path, stream=True) as answer:
            encoding = "br" if path == "/features" else "gzip"
            assert answer.headers["Content-Encoding"] == encoding
            assert len(answer.raw.read(decode_content=False)) == int(answer.headers["Content-Length"])


def test_an_answer_quotes_the_request(sim: Simulator) -> None:
    sim.faults.echo = {"/prompt": (400, "json"), "/queue": (500, "text")}
    headers = {"X-Key": "k3y"}
    refused = requests.post(sim.url + "/prompt", json={"prompt": "p"}, headers=headers, timeout=WAIT)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert error["extra_info"]["X-Key"] == "k3y"
    for text in (error["message"], get(sim, "/queue", headers=headers).text):
        assert "X-Key: k3y\n" in text and text.index("X-Key") < text.index("Host")
    assert error["message"].endswith('\n\n{"prompt": "p"}')


def test_ignored_interrupts(sim: Simulator) -> None:
    sim.faults.ignore_interrupt = True
    prompt_id = submit(sim, slow(steps=20, seconds=0.2))
    interrupt(sim)
    interrupt(sim, prompt_id=prompt_id)
    assert history(sim, prompt_id)["status"]["completed"]
