"""A request, as the functions that answer it see it, and who may make one."""

from __future__ import annotations

import base64
import dataclasses
import http.server
import json
import urllib.parse
from email.message import Message
from typing import Any

from comfyui_runner.simulator.bodies import Body
from comfyui_runner.simulator.installation import Installation
from comfyui_runner.simulator.life import Life


@dataclasses.dataclass
class Request:
    """A request to a server.

    Attributes:
        handler: What reads it; a WebSocket takes its connection over.
        path: Without base path and query, decoded.
        bare_path: The same without a leading "/api".
        query: The first value of each parameter.
    """

    installation: Installation
    life: Life
    handler: http.server.BaseHTTPRequestHandler
    method: str
    path: str
    bare_path: str
    query: dict[str, str]
    body: Body

    @property
    def headers(self) -> Message:
        """The headers; their names match in upper and lower case."""
        return self.handler.headers

    def json(self) -> Any:
        """The body as JSON. Raises ValueError if it is not."""
        return json.loads(self.body.read_all())


def is_authorized(headers: Message, token: str | None) -> bool:
    """Whether a request has the token, as Bearer or as the password of Basic."""
    if token is None:
        return True
    scheme, _, value = headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip() == token
    if scheme.lower() == "basic":
        user_and_password = base64.b64decode(value).decode("utf-8", "replace")
        _, _, password = user_and_password.partition(":")
        return password.strip() == token
    return False


def is_foreign(headers: Message, refuses_cross_site: bool) -> bool:
    """Whether a page of another origin asks a server on a loopback address.

    ComfyUI refuses those (server.py, create_origin_only_middleware); newer versions refuse what
    the browser calls cross-site on any address.
    """
    if refuses_cross_site and headers.get("Sec-Fetch-Site") == "cross-site":
        return True
    host, origin = headers.get("Host"), headers.get("Origin")
    if not host or not origin:
        return False
    ours = urllib.parse.urlsplit("//" + host)
    theirs = urllib.parse.urlsplit(origin)
    is_loopback = ours.hostname in ("localhost", "::1") or str(ours.hostname).startswith("127.")
    is_same_origin = (ours.hostname, ours.port) == (theirs.hostname, theirs.port)
    return is_loopback and not is_same_origin
