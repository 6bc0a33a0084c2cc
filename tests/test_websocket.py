"""The WebSocket as it is opened: what it takes, how it pings, and how long anything may take."""

from __future__ import annotations

import asyncio
import logging
import socketserver
import time
from typing import Any, List

import pytest
from support import FAST, seconds_since

from comfyui_runner.addresses import parse_address
from comfyui_runner.errors import ServerAnswer, ServerUnreachable
from comfyui_runner.server import Server
from comfyui_runner.websocket import _route_options, close_websocket, connect_websocket


def server_at(port: int, seconds: float = 3.0) -> Server:
    return Server(parse_address(f"http://127.0.0.1:{port}"), FAST._replace(websocket=seconds))


def test_it_is_as_the_documents_say(simulator: Any) -> None:
    """docs/COMFYUI_API.md: 256 MiB, a ping every 20 seconds, and a minute for the answer."""

    async def story() -> None:
        websocket = await connect_websocket(server_at(simulator.port), "me & you")
        try:
            # Before version 14, websockets calls it max_size.
            limit = getattr(websocket.protocol, "max_message_size", None) or websocket.protocol.max_size
            assert limit == 256 << 20
            assert (websocket.ping_interval, websocket.ping_timeout, websocket.close_timeout) == (20.0, 60.0, 2.0)
            assert websocket.protocol.extensions == []  # nothing is compressed
            assert websocket.request.path == "/ws?clientId=me%20%26%20you"
        finally:
            await close_websocket(websocket)
        assert websocket.transport.is_closing()

    asyncio.run(story())


def test_the_log_of_the_library_does_not_come_between_our_lines(simulator: Any) -> None:
    names: List[str] = []

    class Noting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            names.append(record.name)

    async def story() -> None:
        await close_websocket(await connect_websocket(server_at(simulator.port), "id"))

    root, handler = logging.getLogger(), Noting()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        asyncio.run(story())
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    assert "websockets.server" in names  # the simulator's
    assert not {name for name in names if name.startswith(("comfyui_workflow_runner", "websockets.client"))}


class Silent(socketserver.StreamRequestHandler):
    """Takes the handshake and says nothing."""

    def handle(self) -> None:
        self.rfile.read()


def test_a_handshake_that_nobody_answers_has_an_end(serve_tcp: Any) -> None:
    began = time.monotonic()
    with pytest.raises(ServerUnreachable) as caught:
        asyncio.run(connect_websocket(server_at(serve_tcp(Silent), seconds=0.2), "id"))
    assert not caught.value.refused
    assert seconds_since(began) < 10.0


def test_nobody_at_the_port_is_a_refusal() -> None:
    with pytest.raises(ServerUnreachable) as caught:
        asyncio.run(connect_websocket(server_at(1), "id"))
    assert caught.value.refused


def test_a_status_to_the_handshake_is_an_answer(serve_tcp: Any) -> None:
    class Refusing(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline().strip():
                pass
            self.wfile.write(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/ws\r\nContent-Length: 0\r\n\r\n")

    with pytest.raises(ServerAnswer, match=r"^HTTP 302 to the WebSocket handshake$") as caught:
        asyncio.run(connect_websocket(server_at(serve_tcp(Refusing)), "id"))
    assert caught.value.status == 302


@pytest.mark.parametrize(
    ("version", "knows_proxies"), [("13.1", False), ("14.2", False), ("15.0", True), ("16.0", True)]
)
def test_a_version_that_uses_proxies_is_told_to_use_none_for_this_machine(
    version: str, knows_proxies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("websockets.version.version", version)
    options = asyncio.run(_route_options(server_at(8188)))
    assert options == {"host": "127.0.0.1", "port": 8188, **({"proxy": None} if knows_proxies else {})}
