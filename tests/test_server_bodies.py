"""Answers of ComfyUI without an end, or packed: they cost neither memory nor more than the time limit."""

from __future__ import annotations

import contextlib
import socketserver
import time
import tracemalloc
from typing import Any, Callable, Iterator, List

import pytest
from support import FAST, run, slow_prompt, wait_until

from comfyui_runner.addresses import parse_address
from comfyui_runner.errors import ServerAnswer, ServerUnreachable
from comfyui_runner.server import Server
from comfyui_runner.simulator import Simulator

Make = Callable[..., Any]
MIB = 1 << 20
SMALL = FAST._replace(read=0.5, post=0.5, answer_size=MIB, object_info_size=2 * MIB, error_size=MIB)


def server_at(simulator: Simulator) -> Server:
    return Server(parse_address(simulator.url), SMALL)


@contextlib.contextmanager
def at_most(size: int) -> Iterator[None]:
    """No more than ``size`` bytes of memory are taken in this block (the simulator's own too)."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < size
    finally:
        tracemalloc.stop()


def connections(simulator: Simulator) -> int:
    assert simulator._server is not None
    return len(simulator._server.connections)


CALLS = [
    pytest.param("/queue", lambda server: server.queue(), "GET /queue", id="queue"),
    pytest.param("/history", lambda server: server.history_entry("x"), "GET /history/x", id="history"),
    pytest.param("/object_info", lambda server: server.all_object_info(), "GET /object_info", id="object_info"),
    pytest.param("/object_info", lambda server: server.object_info("X"), "GET /object_info/X", id="class"),
    pytest.param("/system_stats", lambda server: server.system_stats(), "GET /system_stats", id="system_stats"),
    pytest.param("/prompt", lambda server: server.submit({"prompt": {}}), "POST /prompt", id="prompt"),
    pytest.param(
        "/upload", lambda server: server.upload(files={"image": ("a.png", b"x")}), "POST /upload/image", id="upload"
    ),
]


@pytest.mark.parametrize("body", ["bomb", "endless"])
@pytest.mark.parametrize(("path", "ask", "call"), CALLS)
def test_an_answer_without_an_end_is_left_at_the_limit(
    path: str, ask: Callable[[Server], Any], call: str, body: str, simulator: Simulator
) -> None:
    simulator.faults.http_status = {path: 200}
    simulator.faults.bodies = {path: body}
    with at_most(16 * MIB), pytest.raises(ServerUnreachable) as caught:
        ask(server_at(simulator))
    size = "2.0 MB" if call == "GET /object_info" else "1.0 MB"
    message = f"The answer of {simulator.url} to {call} cannot be read: it is larger than {size}."
    assert caught.value.message == message
    wait_until(lambda: connections(simulator) == 0, what="the end of the connection")


@pytest.mark.parametrize(("path", "ask", "call"), CALLS)
def test_an_answer_that_drips_is_left_at_the_time_limit(
    path: str, ask: Callable[[Server], Any], call: str, simulator: Simulator
) -> None:
    """The read timeout begins anew with each byte; and no thread stays behind that reads them."""
    simulator.faults.http_status = {path: 200}
    simulator.faults.bodies = {path: "drip"}
    with pytest.raises(ServerUnreachable) as caught:
        ask(server_at(simulator))
    message = f"The answer of {simulator.url} to {call} did not arrive completely in 0.5 s."
    assert caught.value.message == message
    wait_until(lambda: connections(simulator) == 0, what="the end of the connection")


@pytest.mark.parametrize("body", ["bomb", "endless"])
@pytest.mark.parametrize("status", [302, 400, 500, 503])
def test_an_error_or_a_redirect_without_an_end_says_its_status(status: int, body: str, simulator: Simulator) -> None:
    """requests reads all of a redirect, whether it is followed or not."""
    simulator.faults.http_status = {"/queue": status, "/prompt": status}
    simulator.faults.bodies = {"/queue": body, "/prompt": body}
    calls: List[Callable[[Server], Any]] = [lambda server: server.queue(), lambda server: server.submit({})]
    for ask in calls:
        with at_most(16 * MIB), pytest.raises(ServerAnswer) as caught:
            ask(server_at(simulator))
        assert caught.value.status == status
        assert f"HTTP {status}" in caught.value.message
    wait_until(lambda: connections(simulator) == 0, what="the end of the connections")


@pytest.mark.parametrize("status", [302, 500])
def test_an_error_that_drips_is_left_at_the_time_limit(status: int, simulator: Simulator) -> None:
    simulator.faults.http_status = {"/queue": status}
    simulator.faults.bodies = {"/queue": "drip"}
    with pytest.raises(ServerUnreachable, match=r"to GET /queue did not arrive completely in 0\.5 s"):
        server_at(simulator).queue()


def test_answers_that_are_packed_as_was_asked_for_are_read(simulator: Simulator) -> None:
    simulator.faults.bodies = {"/queue": "gzip", "/object_info": "gzip"}
    server = server_at(simulator)
    assert server.queue() == {"queue_running": [], "queue_pending": []}
    assert "KSampler" in server.all_object_info()
    assert connections(simulator) == 1  # one is kept for both
    asked_for = {headers["Accept-Encoding"] for _, _, headers in simulator.received}
    assert asked_for == {"gzip"}


def test_an_answer_that_is_packed_otherwise_is_refused(simulator: Simulator) -> None:
    simulator.faults.bodies = {"/queue": "br"}
    with pytest.raises(ServerUnreachable, match="it has a content encoding that the runner did not ask for"):
        server_at(simulator).queue()


def test_answers_are_not_cut_once_they_are_read(simulator: Simulator) -> None:
    """The connection is kept for longer than one answer may take."""
    server = server_at(simulator)
    simulator.faults.http_hang = {"/features": 0.4}
    for _ in range(3):
        server.queue()
        server.features()
    assert connections(simulator) == 1


# -- through the program -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--seed", "random"], ["--set", "1.steps=3"], ["--check"]])
@pytest.mark.parametrize("body", ["bomb", "endless", "drip"])
def test_what_needs_object_info_ends_in_time_whatever_that_is(
    arguments: Any, body: str, simulator: Simulator, workflow_file: Make
) -> None:
    simulator.faults.http_status = {"/object_info": 200}
    simulator.faults.bodies = {"/object_info": body}
    path = workflow_file(slow_prompt(steps=2, seconds=0.0))
    with at_most(64 * MIB):
        result = run("--server", simulator.url, "--yes", path, *arguments, limits=SMALL)
    assert result.status == 5
    assert "to GET /object_info" in result.err
    wait_until(lambda: connections(simulator) == 0, what="the end of the connections")


@pytest.mark.parametrize("body", ["bomb", "endless", "drip"])
def test_a_conversion_ends_in_time_whatever_object_info_is(
    body: str, simulator: Simulator, workflow_file: Make
) -> None:
    simulator.faults.http_status = {"/object_info": 200}
    simulator.faults.bodies = {"/object_info": body}
    graph = {"nodes": [{"id": 1, "type": "EmptyImage", "widgets_values": [8, 8, 1, 0]}], "links": [], "version": 0.4}
    with at_most(64 * MIB):
        result = run("--server", simulator.url, "--yes", workflow_file(graph, "flow.json"), limits=SMALL)
    assert result.status == 5
    assert "to GET /object_info" in result.err
    wait_until(lambda: connections(simulator) == 0, what="the end of the connections")


def serve_raw(serve_tcp: Any, head: bytes, endless: bytes = b"") -> str:
    """The address of a server that sends ``head``, and then ``endless`` again and again."""

    class Raw(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            list(iter(self.rfile.readline, b"\r\n"))
            with contextlib.suppress(OSError):
                self.wfile.write(head)
                while endless:
                    self.wfile.write(endless)
                    time.sleep(0.05)

    return f"http://127.0.0.1:{serve_tcp(Raw)}"


@pytest.mark.parametrize(
    ("head", "endless"),
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nX: ", b"x", id="header"),
        pytest.param(b"HTTP/1.1 200 OK\r\n", b"X: x\r\n", id="headers"),
        pytest.param(b"", b"HTTP/1.1 100 Continue\r\n\r\n", id="continue"),
    ],
)
def test_a_head_that_drips_is_left_at_the_time_limit(head: bytes, endless: bytes, serve_tcp: Any) -> None:
    """The read timeout begins anew with each byte."""
    server = Server(parse_address(serve_raw(serve_tcp, head, endless)), SMALL)
    began = time.monotonic()
    with pytest.raises(ServerUnreachable, match="no answer in time"):
        server.queue()
    assert time.monotonic() - began < 4.0  # 100 headers at most take 5 s


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\n{}", id="no number"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: %b\r\n\r\n{}" % (b"9" * 5000), id="long number"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n{}", id="chunk below 0"),
    ],
)
def test_a_length_that_is_none_is_an_answer_that_did_not_come(head: bytes, serve_tcp: Any) -> None:
    with pytest.raises(ServerUnreachable):
        Server(parse_address(serve_raw(serve_tcp, head)), SMALL).queue()
