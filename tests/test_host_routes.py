"""Names with several addresses: the one that answers is found once, and used for HTTP and WebSocket."""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import time
from typing import Any, Callable, Iterator, List

import pytest
from support import FAST, needs_ipv6, run, script, slow_prompt

from comfyui_runner.addresses import parse_address
from comfyui_runner.errors import ExitStatus, ServerUnreachable
from comfyui_runner.host_routes import Endpoint, HostRoute, connect_to_first, has_best
from comfyui_runner.server import Server

Make = Callable[..., Any]


@contextlib.contextmanager
def silent_port(host: str = "127.0.0.1", port: int = 0) -> Iterator[Endpoint]:
    """A port where connections hang, as a refused one does for two seconds on Windows: its queue is full."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        listener.bind((host, port))
        listener.listen(0)
        for _ in range(3):
            connection = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            connection.setblocking(False)
            connection.connect_ex(listener.getsockname())
        time.sleep(0.05)  # the kernel takes them one after the other
        yield Endpoint(family, listener.getsockname())


@contextlib.contextmanager
def open_port(host: str = "127.0.0.1") -> Iterator[Endpoint]:
    """A port that takes connections."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind((host, 0))
        listener.listen(50)
        yield Endpoint(socket.AF_INET, listener.getsockname())


@pytest.mark.parametrize(
    ("answered", "waiting", "is_over"),
    [
        ([], [], False),
        ([], [0, 1], False),
        ([0], [1], True),
        ([1], [0], False),  # the better one may still come
        ([1], [2], True),
        ([1], [], True),
        ([2, 1], [0], False),
        ([0, 1], [2], True),
    ],
)
def test_the_preferred_address_is_waited_for(answered: List[int], waiting: List[int], is_over: bool) -> None:
    assert has_best(answered, waiting) is is_over


def test_of_two_that_answer_the_preferred_one_is_taken() -> None:
    with open_port() as first, open_port() as second:
        assert connect_to_first([first, second], 5.0) == first


def test_one_that_stays_silent_holds_nobody_up() -> None:
    began = time.monotonic()
    with silent_port() as first, open_port() as second:
        assert connect_to_first([first, second], 5.0) == second
    assert time.monotonic() - began < 2.0


def test_one_that_refuses_holds_nobody_up() -> None:
    began = time.monotonic()
    with open_port() as second:
        with open_port() as closed:
            pass
        assert connect_to_first([closed, second], 5.0) == second
        assert connect_to_first([closed], 5.0) is None
    assert time.monotonic() - began < 2.0


def test_nobody_is_waited_for_longer_than_allowed() -> None:
    with silent_port() as first, silent_port() as second:
        assert connect_to_first([first, second], 0.2) is None


def test_a_family_that_this_machine_does_not_have_is_passed_over() -> None:
    unknown = Endpoint(9999, ("x", 1))
    with open_port() as second:
        assert connect_to_first([unknown, second], 5.0) == second


def test_a_name_that_is_not_known_stays_as_it_is() -> None:
    assert HostRoute("nowhere.invalid", 1).find(5.0) == "nowhere.invalid"
    assert HostRoute("a..b", 1).find(5.0) == "a..b"  # no name at all


@needs_ipv6
def test_it_is_found_once_and_anew_when_the_connection_failed(localhost_is_ipv6_first: None) -> None:
    with open_port() as (_, at):
        route = HostRoute("localhost", at[1])
        assert route.find(5.0) == "127.0.0.1"
    assert route.find(5.0) == "127.0.0.1"  # without looking
    route.forget()
    assert route.find(5.0) == "::1"  # nobody answers: the first one


@needs_ipv6
def test_http_and_websocket_use_the_address_that_answers(
    simulator: Any, workflow_file: Make, localhost_is_ipv6_first: None
) -> None:
    began = time.monotonic()
    with silent_port("::1", simulator.port):
        url = f"http://localhost:{simulator.port}"
        result = run("--server", url, "--yes", "--json", workflow_file(slow_prompt(steps=2, seconds=0.0)))
    assert result.status == ExitStatus.OK
    assert "connection" not in result.names()  # the WebSocket was open
    assert result.event("server")["url"] == url
    assert time.monotonic() - began < FAST.connect  # not one connection was tried at ::1 for long


@needs_ipv6
def test_the_host_header_keeps_the_name(serve: Make, localhost_is_ipv6_first: None) -> None:
    hosts: List[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hosts.append(self.headers["Host"])
            body = json.dumps({"queue_running": [], "queue_pending": []}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    port = int(serve(Handler).rpartition(":")[2])
    server = Server(parse_address(f"http://localhost:{port}"), FAST)
    server.queue()
    assert hosts == [f"localhost:{port}"]


@needs_ipv6
def test_a_server_that_answers_at_another_address_of_its_name_is_found_again(localhost_is_ipv6_first: None) -> None:
    with open_port() as (_, at):
        server = Server(parse_address(f"http://localhost:{at[1]}"), FAST)
        assert server.route.find(5.0) == "127.0.0.1"
    with pytest.raises(ServerUnreachable):
        server.queue()
    assert server.route.find(5.0) == "::1"


@pytest.mark.long
def test_all_default_servers_are_asked_at_the_same_time(workflow_file: Make, monkeypatch: Any) -> None:
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(silent_port()).socket_address[1] for _ in range(3)]
        monkeypatch.setattr(script, "DEFAULT_SERVERS", tuple(f"http://127.0.0.1:{port}" for port in ports))
        began = time.monotonic()
        limits = FAST._replace(connect=1.0)
        result = run("--yes", workflow_file(slow_prompt()), limits=limits)
        seconds = time.monotonic() - began
    assert result.status == ExitStatus.NO_SERVER
    assert all(f":{port}: no answer in time" in result.err for port in ports)
    assert seconds < 3 * 3 * limits.connect  # three tries each, one after the other


def test_the_first_default_server_is_preferred(make_simulator: Make, workflow_file: Make, monkeypatch: Any) -> None:
    servers = [make_simulator() for _ in range(2)]
    monkeypatch.setattr(script, "DEFAULT_SERVERS", tuple(server.url for server in servers))
    for _ in range(3):
        result = run("--yes", "--json", workflow_file(slow_prompt(steps=1, seconds=0.0)))
        assert result.event("server")["url"] == servers[0].url


def test_the_address_that_comfyui_prints_can_be_given(simulator: Any, workflow_file: Make) -> None:
    url = f"http://0.0.0.0:{simulator.port}"
    result = run("--server", url, "--yes", workflow_file(slow_prompt(steps=1, seconds=0.0)))
    assert result.status == ExitStatus.OK
    notice = "0.0.0.0 means every address of ComfyUI's machine, not one to connect to: using 127.0.0.1."
    assert result.out.count(notice) == 1
