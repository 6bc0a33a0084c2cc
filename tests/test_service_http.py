"""Stories of continuous mode: HTTP as such."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from typing import Any, List

import pytest
from served import TEXTS, Make, Middleware, read_answer
from support import node, wait_until

from comfyui_runner.http_head import MAX_HEAD_BYTES
from comfyui_runner.limits import SERVICE_LIMITS
from comfyui_runner.resources import read_resource
from comfyui_runner.routes import ROUTES


def test_every_path_is_there_under_api_too(service: Middleware) -> None:
    for row in ROUTES:
        path = row.path.replace("{prompt_id}", "none")
        if row.method == "GET" and row.path not in ("/queue", "/events"):
            plain, other = service.get(path), service.get("/api" + path)
            assert (plain.status, plain.headers["content-type"]) == (other.status, other.headers["content-type"])
        assert service.call("OPTIONS", "/api" + path).headers["allow"] == service.call("OPTIONS", path).headers["allow"]
    assert service.get("/api").body == service.get("/").body
    assert service.get("/api/api/status").status == service.get("/apis").status == 404


def test_asking_with_head_starts_nothing(service: Middleware, comfyui: Any) -> None:
    for path in ("/queue", "/api/queue", "/events", "/status", "/"):
        assert service.raw(b"HEAD %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode()).status == 200
    assert ("POST", "/prompt") not in comfyui.requests
    assert not len(service.service.streams)


def test_what_is_sent_leaves_at_once(service: Middleware) -> None:
    """Nagle's algorithm would keep the small pieces of an event stream back until the client has answered."""
    service.events().next()
    (connection,) = service.listener.busy
    assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_status_health_and_the_documents(service: Middleware, comfyui: Any) -> None:
    status = service.get("/status").json
    assert status["comfyui"].pop("others") in (None, {"running": 0, "waiting": 0})  # known in a moment
    assert status["comfyui"] == {
        "url": comfyui.url,
        "connected": True,
        "version": comfyui.version,
        "device": "simulated (no GPU)",
    }
    assert status["workflow"]["nodes"] == 7
    assert status["runs"] == {"waiting": 0, "running": None}
    assert status["token_required"] is False
    assert service.get("/health").json == {"status": "ok", "comfyui": True}
    assert service.get("/openapi.json").json == json.loads(read_resource("openapi.json"))
    page = service.get("/", Accept="*/*")
    assert page.headers["content-type"] == "text/plain; charset=utf-8"
    assert "curl http://127.0.0.1:%d/queue" % service.port in page.body.decode()


def test_answers_in_json_end_with_their_line(service: Middleware) -> None:
    answers = [service.get(path) for path in ("/status", "/runs", "/nowhere", "/openapi.json")]
    answers.append(service.post("/prompt", {"prompt": {}}))  # ComfyUI's own answer
    for answer in answers:
        assert answer.body.endswith(b"}\n") and answer.body.count(b"\n") == answer.body.strip().count(b"\n") + 1


def test_a_browser_at_a_route_that_takes_post_is_shown_the_line_of_curl(service: Middleware) -> None:
    for path in ("/update/inputs", "/api/update/inputs"):
        answer = service.get(path, Host=f"localhost:{service.port}")
        assert answer.status == 405
        command = "curl -d node_id=5 -d inputs.seed=random http://localhost:%d/update/inputs"
        assert answer.json["error"]["message"].endswith(command % service.port)


def test_a_browser_gets_the_page_and_curl_the_routes(service: Middleware, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.listener.routes, "page", b"<!doctype html><title>x</title>")
    page = service.get("/", Accept="text/html,*/*")
    assert (page.body, page.headers["content-type"]) == (b"<!doctype html><title>x</title>", "text/html; charset=utf-8")
    assert service.get("/", Accept="*/*").headers["content-type"].startswith("text/plain")
    monkeypatch.setattr(service.listener.routes, "page", b"")
    assert service.get("/", Accept="text/html").headers["content-type"].startswith("text/plain")


def test_every_answer_is_guarded_against_guessing_and_framing(service: Middleware) -> None:
    for answer in (service.get("/status"), service.get("/nowhere"), service.raw(b"rubbish\r\n\r\n")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


def test_many_requests_go_over_one_connection(service: Middleware) -> None:
    with service.connect() as connection, connection.makefile("rb") as file:
        for path, status in [("/status", 200), ("/nowhere", 404), ("/queue/x", 404), ("/runs/none", 404)]:
            connection.sendall(b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode())
            assert read_answer(file).status == status
        body = b'{"node_id": "none", "text": "a"}'
        for path in ("/update/prompt", "/status", "/nowhere"):  # read, and not read
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 32\r\n\r\n"
            connection.sendall(head.encode() + body)
            assert read_answer(file).status in (400, 404, 405)
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3)  # pipelined
        assert [read_answer(file).status for _ in range(3)] == [200, 200, 200]


def test_a_connection_is_closed_where_the_client_asks_so(service: Middleware) -> None:
    with service.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert read_answer(file).headers["connection"] == "close"
        assert file.read() == b""
    with service.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")
        assert read_answer(file).status == 200
        assert file.read() == b""


def test_a_chunked_body_needs_a_length(service: Middleware) -> None:
    with service.connect() as connection, connection.makefile("rb") as file:
        head = b"POST /queue HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head + b"2\r\n{}\r\n0\r\n\r\n")
        answer = read_answer(file)
        assert (answer.status, answer.error, answer.headers["connection"]) == (411, "length_required", "close")
        assert file.read() == b""


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (b"Transfer-Encoding: chunked", 411),
        (b"Content-Length: many", 400),
        (b"X: " + b"x" * MAX_HEAD_BYTES, 431),
    ],
)
def test_a_body_that_is_still_coming_does_not_cost_the_client_the_answer_to_its_head(
    header: bytes, status: int, service: Middleware
) -> None:
    with service.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(b"POST /queue HTTP/1.1\r\nHost: localhost\r\n" + header + b"\r\n\r\n")
        connection.sendall(bytes(8 << 20))  # more than the buffers of a connection hold
        connection.shutdown(socket.SHUT_WR)
        assert read_answer(file).status == status


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "BREW"])
def test_an_unknown_method_gets_the_list_of_those_that_are_allowed(service: Middleware, method: str) -> None:
    answer = service.raw(b"%s /queue HTTP/1.1\r\nHost: localhost\r\n\r\n" % method.encode())
    assert (answer.status, answer.error) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, POST, HEAD, OPTIONS"


def test_options_lists_what_a_path_takes(service: Middleware) -> None:
    answer = service.call("OPTIONS", "/queue")
    assert (answer.status, answer.headers["allow"], answer.body) == (204, "GET, POST, HEAD, OPTIONS", b"")
    assert "access-control-allow-origin" not in answer.headers
    assert service.call("OPTIONS", "/nowhere").status == 404
    assert service.call("OPTIONS", "/queue", None, {"Origin": "http://evil.example"}).headers.get(
        "access-control-allow-origin"
    ) is None  # fmt: skip


@pytest.mark.parametrize(
    "head",
    [
        b"rubbish\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/x\r\nHost: localhost\r\n\r\n",
        b"GET / FTP/1.1\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # TLS
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 70000 + b"\r\n\r\n",
        b"GET /" + b"y" * 70000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET //[ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: localhost\r\nReferer: http://[\r\n\r\n",
        b"GET /status HTTP/1.1\r\n\r\n",
        b"GET /status\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: evil.example\r\nHost: localhost\r\n\r\n",
        b"POST /queue HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /queue HTTP/1.1\r\nHost: localhost\r\nContent-Length: two\r\n\r\n{}",
        b"POST /queue HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2, 2\r\n\r\n{}",
        b"POST /queue HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Length: 0\r\n\r\n{}",
        b"POST /queue HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        b"POST /queue HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: localhost\r\nno colon here\r\n\r\n",
    ],
)
def test_a_malformed_head_is_answered_in_json(service: Middleware, comfyui: Any, head: bytes) -> None:
    answer = service.raw(head)
    assert 400 <= answer.status < 500
    assert answer.headers["content-type"] == "application/json"
    assert answer.error and "Traceback" not in answer.body.decode()
    assert service.get("/health").status == 200
    assert ("POST", "/prompt") not in comfyui.requests


@pytest.mark.parametrize(
    "head",
    [
        b"POST /queue HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Length: 0\r\n\r\n{}",
        b"POST /queue HTTP/1.1\r\nHost: localhost\r\nContent-Length: two\r\n\r\n{}",
        b"POST /queue HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2, 2\r\n\r\n{}",
        b"POST /queue HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST queue HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}",
        b"GET /health HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nno colon here\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\r\n\r\n",
    ],
)
def test_nothing_behind_a_bad_head_is_answered(service: Middleware, comfyui: Any, head: bytes) -> None:
    """Where it ends is not certain, so what follows may be a part of it."""
    with service.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(head + b"GET /queue HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2)
        answer = read_answer(file)
        assert 400 <= answer.status < 500
        assert answer.headers["connection"] == "close"
        assert file.read() == b""
    assert ("POST", "/prompt") not in comfyui.requests


def test_a_head_that_breaks_off_starts_nothing(service: Middleware, comfyui: Any) -> None:
    for head in (b"GET /queue HTTP/1.1\r\nHost: localhost\r\n", b"POST /queue HTTP/1.1\r\nHost: localhost\r\nX-Mo"):
        with service.connect() as connection:
            connection.sendall(head)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(65536) == b""
    assert ("POST", "/prompt") not in comfyui.requests


def test_a_body_that_breaks_off_changes_nothing(service: Middleware) -> None:
    with service.connect() as connection, connection.makefile("rb") as file:
        head = b"POST /update/prompt HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n"
        connection.sendall(head + b'{"type": "positive", "text": "a"}')
        connection.shutdown(socket.SHUT_WR)
        assert read_answer(file).status == 400
    assert service.held() == TEXTS


@pytest.mark.parametrize("size", [100, 1000000])
def test_a_body_that_does_not_come_ends_the_connection(
    service: Middleware, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(service.listener, "limits", SERVICE_LIMITS._replace(idle=0.2))
    head = b"POST /update/prompt HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n{"
    with service.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(head % size)
        answer = read_answer(file)
        assert (answer.status, answer.headers["connection"]) == (408, "close"), answer
        assert file.read() == b""


def test_a_body_above_its_limit_ends_the_connection(service: Middleware) -> None:
    head = b"PUT /workflow HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    with service.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(head % ((16 << 20) + 1))
        answer = read_answer(file)
        assert (answer.status, answer.headers["connection"]) == (413, "close")
        connection.sendall(b"GET /queue HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert file.read() == b""


def test_no_answer_has_what_json_cannot_hold(service: Middleware) -> None:
    prompt = {"1": node("KSampler", cfg=float("nan"), denoise=float("inf"))}
    service.service.held.hold(prompt)
    answer = service.get("/workflow")
    assert answer.status == 200
    assert json.loads(answer.body, parse_constant=pytest.fail)["prompt"]["1"]["inputs"] == {
        "cfg": None,
        "denoise": None,
    }


@pytest.mark.parametrize("part", [b"G", b"GET /queue HTTP/1.1\r\n", b"GET /queue HTTP/1.1\r\nHost: localhost\r\nX: "])
def test_a_head_that_takes_too_long_is_cut_off(service: Middleware, comfyui: Any, part: bytes) -> None:
    wait_until(lambda: not len(service.listener.places))
    began = time.monotonic()
    with service.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(part)
        wait_until(lambda: service.listener.deadlines, 2.0, "a deadline")
        (slow,) = service.listener.deadlines
        assert 8.0 < service.listener.deadlines[slow] - began < 15.0
        service.listener.deadlines[slow] = 0.0
        answer = read_answer(file)
        assert (answer.status, answer.headers["connection"]) == (408, "close")
        assert file.read() == b""
    assert ("POST", "/prompt") not in comfyui.requests


def test_64_connections_are_served_and_8_more_for_health(service: Middleware) -> None:
    wait_until(lambda: not len(service.listener.places))
    connections: List[socket.socket] = []
    try:
        for _ in range(64):
            service.events()
        assert len(service.listener.places) == 64
        with service.connect() as crowded, crowded.makefile("rb") as file:
            crowded.sendall(b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2)
            answer = read_answer(file)
            assert (answer.status, answer.error) == (503, "too_many_connections")
            assert "retry-after" in answer.headers and answer.headers["connection"] == "close"
            assert file.read() == b""  # its place is free for others
        wait_until(lambda: len(service.listener.places) == 64)
        assert service.get("/health").status == 200
        wait_until(lambda: len(service.listener.places) == 64)
        connections += [service.connect() for _ in range(8)]
        wait_until(lambda: len(service.listener.places) == 72)
        with service.connect() as beyond:
            assert beyond.recv(1) == b""
        connections.pop().close()
        wait_until(lambda: len(service.listener.places) == 71)
        assert service.get("/health").status == 200
    finally:
        service.end_streams()
        for connection in connections:
            connection.close()
    wait_until(lambda: not len(service.listener.places))
    assert service.get("/status").status == 200


def test_a_body_that_drips_is_cut_off(service: Middleware, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = SERVICE_LIMITS._replace(body_grace=0.5, body_rate=1e9)
    monkeypatch.setattr(service.listener, "limits", limits)
    head = b"POST /update/prompt HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
    with service.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(head)
        over = threading.Event()

        def drip() -> None:
            with contextlib.suppress(OSError):
                while not over.wait(0.02):
                    connection.sendall(b" ")

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            answer = read_answer(file)
        finally:
            over.set()
            thread.join()
    assert (answer.status, answer.headers["connection"]) == (408, "close")
    assert "too slowly" in answer.json["error"]["message"]


@pytest.mark.parametrize("part", [b"", b"GET /status HTTP/1.1\r\nHost: ", b"POST /login HTTP/1.1\r\n"
                                  b"Host: localhost\r\nContent-Length: 100\r\n\r\n{"])  # fmt: skip
def test_who_does_not_show_the_token_loses_a_place_to_a_new_connection(
    make_middleware: Make, simulator: Any, part: bytes
) -> None:
    service = make_middleware(simulator, "--token", "s3cret", prompt=TEXTS, is_open=False)
    with_token = {"Authorization": "Bearer s3cret"}
    used = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20.0)
    used.request("GET", "/events", headers=with_token)
    stream = used.getresponse()
    connections = [service.connect() for _ in range(63)]
    try:
        for connection in connections:
            connection.sendall(part)
        wait_until(lambda: len(service.listener.places) == 64)
        for _ in range(3):
            assert service.call("GET", "/status", None, with_token).status == 200
        assert connections[0].recv(1) == b""
        connections[-1].settimeout(0.0)
        with pytest.raises(BlockingIOError):
            connections[-1].recv(1)
        assert stream.readline() == b"event: state\n"
    finally:
        used.close()
        for connection in connections:
            connection.close()


def test_text_that_is_not_unicode_is_refused(service: Middleware) -> None:
    odd = {"1": node("\ud800", "\ud800", **{"\ud800": "\ud800"})}
    for answer in (service.call("PUT", "/workflow", odd), service.post("/prompt", {"prompt": odd}),
                   service.post("/update/inputs", {"node_id": "\ud800", "inputs": {}}),
                   service.post("/update/inputs", {"node_id": "5", "inputs": {"sampler_name": "\ud800"}})):  # fmt: skip
        assert answer.status == 400, answer
    assert service.post("/interrupt", {"prompt_id": "\ud800"}).status == 409
    assert service.get("/runs/%ed%a0%80").status == 404
