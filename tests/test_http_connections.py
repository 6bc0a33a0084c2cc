"""What HTTP and the WebSocket connect to: the same proxy."""

from __future__ import annotations

import asyncio
import socketserver
from typing import Any, Dict, Iterator, List

import pytest
import websockets.version
from support import FAST, pump_to_port

from comfyui_runner.addresses import parse_address
from comfyui_runner.http_connections import proxy_of_system
from comfyui_runner.server import Server
from comfyui_runner.websocket import close_websocket, connect_websocket

PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ws_proxy", "wss_proxy", "socks_proxy")

knows_proxies = pytest.mark.skipif(
    int(websockets.version.version.partition(".")[0]) < 15, reason="this websockets uses no proxy"
)


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: Any) -> Iterator[None]:
    """No proxy, whatever the machine has."""
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    yield


@pytest.mark.parametrize(
    ("variables", "proxy"),
    [
        ({}, ""),
        ({"HTTP_PROXY": "http://proxy:3128"}, "http://proxy:3128"),
        ({"HTTP_PROXY": "proxy:3128"}, "http://proxy:3128"),
        ({"HTTPS_PROXY": "http://proxy:3128"}, ""),
        ({"ALL_PROXY": "socks5://proxy:1080"}, "socks5://proxy:1080"),
        ({"HTTP_PROXY": "http://proxy:3128", "NO_PROXY": "comfy.example"}, ""),
        ({"WS_PROXY": "http://proxy:3128", "SOCKS_PROXY": "socks5://proxy:1080"}, ""),  # not HTTP's
    ],
)
def test_the_proxy_of_http(variables: Dict[str, str], proxy: str, monkeypatch: Any) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
        monkeypatch.setenv(name.lower(), value)
    assert proxy_of_system("http://comfy.example:8188") == proxy


@knows_proxies
def test_the_websocket_goes_through_the_proxy_of_http(simulator: Any, serve_tcp: Any, monkeypatch: Any) -> None:
    asked: List[bytes] = []

    class Proxy(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            """Leads to the simulator, whatever host is asked for: the proxy knows its name, we do not."""
            asked.append(self.rfile.readline())
            while self.rfile.readline().strip():
                pass
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            pump_to_port(self.connection, simulator.port)

    port = serve_tcp(Proxy)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("ws_proxy", "http://127.0.0.1:1")
    server = Server(parse_address("http://comfy.invalid:8188"), FAST)

    async def open_and_close() -> None:
        await close_websocket(await connect_websocket(server, "client"))

    asyncio.run(open_and_close())
    assert asked == [b"CONNECT comfy.invalid:8188 HTTP/1.1\r\n"]
