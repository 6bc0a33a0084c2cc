"""ComfyUI's WebSocket, opened."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import urllib.parse
from typing import Any, Dict

from comfyui_runner.certificates import make_ssl_context
from comfyui_runner.errors import ServerAnswer, ServerUnreachable
from comfyui_runner.events import parse_message
from comfyui_runner.proxies import proxy_of_system, require_package_for_proxy
from comfyui_runner.server import Server
from comfyui_runner.third_party import import_third_party
from comfyui_runner.threads import bounded

#: The largest WebSocket message that is taken, in bytes: SaveImageWebsocket sends whole pictures.
#: The library's own limit is 1 MiB, beyond which it closes the connection (1009).
MAX_MESSAGE = 256 << 20

#: Asks for previews that name their node. ComfyUI reads this in the first frame only.
FEATURE_FLAGS = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}


async def connect_websocket(server: Server, client_id: str) -> Any:
    """An open WebSocket whose first message, ``status``, was read.

    Raises ServerUnreachable, or ServerAnswer when the handshake is answered with an HTTP status.
    """
    exceptions = import_third_party("websockets.exceptions")
    try:
        socket = await _open_socket(server, client_id)
        try:
            await _greet(server, socket)
        except BaseException:
            # close() waits for the server, and leaks when it is cancelled meanwhile.
            socket.transport.abort()
            raise
        return socket
    except exceptions.InvalidStatus as error:
        status = error.response.status_code
        message = f"HTTP {status} to the WebSocket handshake"
        raise ServerAnswer(message, status=status) from None
    except (OSError, EOFError, asyncio.TimeoutError, exceptions.WebSocketException) as error:
        # asyncio puts several addresses that refuse into one OSError: "Multiple exceptions: ..."
        server.route.forget()
        refused = isinstance(error, ConnectionRefusedError) or "Connect call failed" in str(error)
        raise ServerUnreachable(type(error).__name__, refused=refused) from error


async def close_websocket(socket: Any) -> None:
    """Closes what connect_websocket() returned.

    close() waits for the server; where that is cancelled, it leaves the connection open.
    """
    try:
        await socket.close()
    finally:
        socket.transport.abort()  # does nothing where the connection is closed


async def _open_socket(server: Server, client_id: str) -> Any:
    client = import_third_party("websockets.asyncio.client")
    connecting = client.connect(
        server.address.websocket + "/ws?clientId=" + urllib.parse.quote(client_id),
        additional_headers=server.cookies.handshake_headers(),
        compression=None,  # previews are compressed already, and the rest is small
        max_size=MAX_MESSAGE,
        open_timeout=server.limits.websocket,
        close_timeout=2.0,
        ping_interval=20.0,
        ping_timeout=60.0,  # ComfyUI may load a model for long without answering
        logger=_silent_logger(),
        **_tls_options(server),
        **await _route_options(server),
    )
    connecting.process_redirect = keep_error  # a redirect would carry our headers elsewhere
    return await connecting


async def _greet(server: Server, socket: Any) -> None:
    """What comes before any prompt: cookies, feature flags, the first status, the affinity."""
    server.cookies.take(socket.response.headers.get_all("Set-Cookie"))
    await socket.send(json.dumps(FEATURE_FLAGS))

    deadline = time.monotonic() + server.limits.websocket
    while True:
        seconds_left = max(deadline - time.monotonic(), 0.01)
        frame = await asyncio.wait_for(socket.recv(), seconds_left)
        if parse_message(frame, 0.0).type == "status":
            break

    if server.cookies.from_server and not server.affinity:
        await bounded(server.find_affinity, seconds=server.limits.read)


def keep_error(error: Any) -> Any:
    """What websockets does with a redirect: nothing else than with any other refusal."""
    return error


def _silent_logger() -> logging.Logger:
    """Ours reports what happens to the connection; the library's log would come in between."""
    logger = logging.getLogger("comfyui_workflow_runner.websocket")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    return logger


def _tls_options(server: Server) -> Dict[str, Any]:
    """Trusts the same certificate authorities as HTTP does."""
    if not server.address.has_tls:
        return {}
    return {"ssl": make_ssl_context(server.address.ca_bundle)}


async def _route_options(server: Server) -> Dict[str, Any]:
    """Connects as HTTP does: through the same proxy, or to the address of the host that answers.

    Before version 15, websockets uses no proxy. Raises ServerUnreachable.
    """
    version = import_third_party("websockets.version").version
    knows_proxies = int(version.partition(".")[0]) >= 15
    proxy = ""
    if knows_proxies and not server.address.local:
        proxy = proxy_of_system(server.address.url)
    if proxy:
        require_package_for_proxy(proxy)
        return {"proxy": proxy}

    limits = server.limits
    ip = await bounded(server.route.find, limits.connect, seconds=limits.websocket)
    options: Dict[str, Any] = {"host": ip, "port": server.address.port}
    if knows_proxies:
        options["proxy"] = None
    return options
