"""One jar of cookies for HTTP and the WebSocket, as load balancers and login proxies need it.

A load balancer gives an affinity cookie, by which it sends the next request to the same server. A
login proxy gives cookies that change with every answer. The WebSocket library knows no cookies, so
its handshake gets those of HTTP, and HTTP gets those of the handshake.
"""

from __future__ import annotations

import email.message
import http.cookiejar
from typing import Any, Dict, List, Sequence, Set, Tuple

from comfyui_runner.addresses import Address
from comfyui_runner.errors import ServerGone
from comfyui_runner.redaction import SHORTEST_COOKIE
from comfyui_runner.third_party import import_third_party


class Cookies:
    """The cookies of one connection. ``jar`` is a requests.Session's, which does HTTP's part."""

    def __init__(self, address: Address, jar: Any) -> None:
        self.affinity: Dict[str, str] = {}  #: those by which a load balancer keeps us on one server
        self.gone = False  #: the load balancer sends us to another server
        self._address = address
        self._jar = jar
        self._names_of_user: Set[str] = set()
        for name, value in address.headers:
            if name.lower() == "cookie":
                self._add_header_of_user(value)

    def _add_header_of_user(self, header: str) -> None:
        """Puts the user's own cookies into the jar, where the server's may replace them."""
        # "localhost" becomes "localhost.local" there, as in the cookies that the server sets.
        handshake = self._handshake()
        _, domain = http.cookiejar.eff_request_host(handshake)  # type: ignore[attr-defined]
        for pair in header.split(";"):
            name, _, value = map(str.strip, pair.partition("="))
            self._jar.set(name, value, domain=domain)
            self._names_of_user.add(name)

    @property
    def from_server(self) -> Dict[str, str]:
        """The cookies that the server set, without those that renew the user's own."""
        return {
            cookie.name: str(cookie.value)
            for cookie in list(self._jar)
            if cookie.name not in self._names_of_user
        }

    @property
    def credentials(self) -> List[str]:
        """The values of the cookies by which the server may know us."""
        values = [str(cookie.value) for cookie in list(self._jar)]
        return [value for value in values if len(value) >= SHORTEST_COOKIE]

    def handshake_headers(self) -> List[Tuple[str, str]]:
        """The headers of the WebSocket's handshake. Raises ServerGone."""
        self.require_same_server()
        request = self._handshake()
        self._jar.add_cookie_header(request)
        cookies = request.get_new_headers().get("Cookie")

        headers = [
            (name, value) for name, value in self._address.headers if name.lower() != "cookie"
        ]
        if cookies:
            headers.append(("Cookie", cookies))
        return headers

    def take(self, lines: Sequence[str]) -> None:
        """Keeps the cookies of the handshake's answer: its Set-Cookie lines. Raises ServerGone."""
        message = email.message.Message()
        for line in lines:
            message["Set-Cookie"] = line
        answer = import_third_party("requests.cookies").MockResponse(message)
        self._jar.extract_cookies(answer, self._handshake())
        self.require_same_server()

    def find_affinity(self, before: Dict[str, str]) -> None:
        """Takes for affinity what one request did not change.

        ``before`` is ``from_server`` as it was before that request.
        """
        now = self.from_server
        self.affinity = {name: value for name, value in now.items() if before.get(name) == value}

    def require_same_server(self) -> None:
        """Raises ServerGone if an affinity cookie has changed, and from then on."""
        now = self.from_server
        is_elsewhere = any(now.get(name) != value for name, value in self.affinity.items())
        if is_elsewhere:
            self.gone = True
        if self.gone:
            url = self._address.url
            raise ServerGone(
                f"The load balancer at {url} sends us to another server: ours is gone."
            )

    def _handshake(self) -> Any:
        """The WebSocket's handshake as a jar of cookies wants to see it."""
        headers = {name: value for name, value in self._address.headers if name.lower() == "host"}
        requests = import_third_party("requests")
        request = requests.Request("GET", self._address.url + "/ws", headers=headers)
        return import_third_party("requests.cookies").MockRequest(request)
