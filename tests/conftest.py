"""Fixtures that several test files use."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import socket
import socketserver
import ssl
import threading
from typing import Any, Callable, Dict, Iterator, List

import coarse_clock  # noqa: F401 - first: it may replace the clock
import pytest
import shallow_stacks  # noqa: F401 - before asyncio

os.environ["PYTHONASYNCIODEBUG"] = "1"

# A shell starts background jobs with Ctrl+C ignored, nohup with a closed terminal ignored, and what they
# start inherits it. With a handler here, programs that the tests start have the default again.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda number, frame: None)

from served import comfyui, make_middleware, service, shared  # noqa: F401
from simulated import begin, open_ws, sim, simulate, stack  # noqa: F401
from slow_proxy import SlowProxy
from support import CERTIFICATE, FIXTURES, IS_ONE_FILE, pump_to_port  # first: it decides what comfyui_runner is

from comfyui_runner.limits import Limits

from comfyui_runner.simulator import Simulator  # isort: skip


def pytest_collection_modifyitems(items: List[pytest.Item]) -> None:
    """Tests of the script and its folder say nothing about the one file."""
    if IS_ONE_FILE:
        for item in items:
            if item.get_closest_marker("script_and_folder"):
                item.add_marker(pytest.mark.skip(reason="is about the script and its folder"))


@pytest.fixture
def make_simulator() -> Iterator[Callable[..., Simulator]]:
    """Starts simulators that are stopped at the end of the test."""
    started = []

    def make(**options: Any) -> Simulator:
        simulator = Simulator(**options)
        started.append(simulator)
        return simulator.start()

    yield make
    for simulator in started:
        simulator.stop()


@pytest.fixture
def simulator(make_simulator: Callable[..., Simulator]) -> Simulator:
    """A simulator of the newest version that is known."""
    return make_simulator()


@pytest.fixture
def make_slow() -> Iterator[Callable[[Simulator], SlowProxy]]:
    """Puts a proxy that can be slow before a simulator; they are stopped at the end of the test."""
    started = []

    def make(simulator: Simulator) -> SlowProxy:
        started.append(SlowProxy(simulator.url).start())
        return started[-1]

    yield make
    for proxy in started:
        proxy.stop()


@pytest.fixture
def serve() -> Iterator[Callable[[Any], str]]:
    """Serves a handler class and returns its URL."""
    servers: List[http.server.ThreadingHTTPServer] = []

    def start(handler: Any) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return "http://127.0.0.1:%d" % server.server_address[1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def serve_tcp() -> Iterator[Callable[[Any], int]]:
    """Serves a handler of socketserver, a thread for each connection, and returns its port."""
    servers: List[socketserver.ThreadingTCPServer] = []

    class Listener(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    def start(handler: Any) -> int:
        servers.append(Listener(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.02,), daemon=True).start()
        return int(servers[-1].server_address[1])

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def workflow_file(tmp_path: Any) -> Callable[[Dict[str, Any]], str]:
    """Writes a prompt to a file and returns its path."""

    def write(prompt: Dict[str, Any], name: str = "workflow_api.json") -> str:
        path = tmp_path / name
        path.write_text(json.dumps(prompt), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def fast() -> Limits:
    """Short waits."""
    from support import FAST

    return FAST


@pytest.fixture
def localhost_is_ipv6_first(monkeypatch: Any) -> None:
    """The name localhost means ::1 and 127.0.0.1, in this order, as on Windows."""
    look_up = socket.getaddrinfo

    def windows_look_up(host: Any, *arguments: Any, **options: Any) -> Any:
        if host != "localhost":
            return look_up(host, *arguments, **options)
        return look_up("::1", *arguments, **options) + look_up("127.0.0.1", *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", windows_look_up)


@pytest.fixture
def tls_port(simulator: Any, serve_tcp: Callable[[Any], int]) -> int:
    """The port of a proxy that speaks TLS, with CERTIFICATE, before the simulator."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE, os.path.join(FIXTURES, "tls", "key.pem"))

    class Forward(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError), context.wrap_socket(self.request, server_side=True) as client:
                pump_to_port(client, simulator.port)

    return int(serve_tcp(Forward))
