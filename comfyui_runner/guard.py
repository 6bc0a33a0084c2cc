"""Who may use the service.

Its address is open to every program of this machine, and to every web page that a browser on it
shows: a page needs no permission to make the browser send a request.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import re
import socket
from typing import FrozenSet, NamedTuple, Optional, Sequence

from comfyui_runner.errors import UsageError
from comfyui_runner.messages import Headers, HttpError, Request
from comfyui_runner.text import one_line

#: The name of the cookie that POST /login gives to the page.
COOKIE = "comfyui_workflow_runner"

#: What may be had without a token: the page that asks for it, and what a watchdog asks for.
PATHS_WITHOUT_TOKEN = ("/login", "/health")


class Guard(NamedTuple):
    """The names that the service answers to, the origins that are allowed, and the token."""

    hosts: FrozenSet[str] = frozenset(("localhost", "127.0.0.1"))
    origins: FrozenSet[str] = frozenset()
    token: Optional[str] = None

    def refusal(self, request: Request) -> Optional[HttpError]:
        """Why a request is refused, or None."""
        return (
            self._refuse_foreign_host(request)
            or self._refuse_foreign_page(request)
            or self._refuse_prefetch(request)
            or self._refuse_without_token(request)
        )

    def _refuse_foreign_host(self, request: Request) -> Optional[HttpError]:
        """DNS rebinding: a page of evil.example lets that name point to 127.0.0.1, and then has the
        same origin as the service. The browser still sends Host: evil.example. An address in Host
        cannot be made to point elsewhere, so every address is taken."""
        host = request.header("host")
        name = _host_name(host)
        if name == "" or name in self.hosts:
            return None
        message = (
            f"This service does not answer to the name {one_line(host, 80)}. "
            "Start it with --allow-host NAME if it should."
        )
        return HttpError(403, "foreign_host", message)

    def _refuse_foreign_page(self, request: Request) -> Optional[HttpError]:
        """Other web pages: an <img> with the URL of GET /queue would be enough to start a run.

        A browser names the page in Origin (not with every GET), Referer and Sec-Fetch-Site; other
        clients send none of them.
        """
        origin = request.headers.get("origin")
        if origin is not None and origin not in self._origins_of(request):
            message = "Pages of other origins may not use this service (--allow-origin)."
            return HttpError(403, "foreign_origin", message)

        # A link from anywhere may lead to the page, which then asks on its own behalf.
        if _asks_for_page(request):
            return None

        site = request.headers.get("sec-fetch-site", "none")
        is_foreign_site = origin is None and site not in ("none", "same-origin")
        if is_foreign_site or self._has_foreign_referer(request):
            message = "Pages of other origins may not use this service."
            return HttpError(403, "foreign_origin", message)
        return None

    def _has_foreign_referer(self, request: Request) -> bool:
        referer = request.header("referer")
        if referer == "":
            return False
        origin = "/".join(referer.lower().split("/")[:3])  # scheme, nothing, host and port
        return origin not in self._origins_of(request)

    def _refuse_prefetch(self, request: Request) -> Optional[HttpError]:
        """A browser may ask for what somebody might click on; GET /queue would start a run."""
        purposes = request.header("sec-purpose") + request.header("purpose")  # new and old name
        if "prefetch" not in purposes:
            return None
        return HttpError(403, "prefetch", "This service does not answer prefetch requests.")

    def _refuse_without_token(self, request: Request) -> Optional[HttpError]:
        if (
            self.token is None
            or _asks_for_page(request)
            or request.path in PATHS_WITHOUT_TOKEN
            or self.has_token(request)
        ):
            return None
        headers = (("WWW-Authenticate", "Bearer"),)
        message = "This service needs a token: Authorization: Bearer TOKEN."
        return HttpError(401, "unauthorized", message, headers=headers)

    def _origins_of(self, request: Request) -> FrozenSet[str]:
        """The origins whose pages may send ``request``: its own, and those that are allowed."""
        host = request.header("host")
        return self.origins | {f"http://{host}", f"https://{host}"}

    def cors_headers(self, request: Request) -> Headers:
        """What lets a page of an allowed origin read the answer."""
        origin = request.header("origin")
        if not origin or origin not in self.origins:
            return ()
        return ("Access-Control-Allow-Origin", origin), ("Vary", "Origin")

    def has_token(self, request: Request) -> bool:
        """Whether the request has the token, or the cookie of the login."""
        scheme, _, credentials = request.header("authorization").partition(" ")
        if scheme.lower() == "bearer" and self.is_token(credentials.strip()):
            return True
        cookie = re.search(rf"(?:^|;\s*){COOKIE}=([0-9a-f]+)", request.header("cookie"))
        return cookie is not None and _equal_in_constant_time(cookie[1], self.cookie_value())

    def is_token(self, text: str) -> bool:
        """Whether ``text`` is the token."""
        return self.token is not None and _equal_in_constant_time(text, self.token)

    def cookie_value(self) -> str:
        """What the cookie of the login holds. The token cannot be read from it."""
        return hmac.new(str(self.token).encode(), COOKIE.encode(), hashlib.sha256).hexdigest()


def _asks_for_page(request: Request) -> bool:
    return request.method in ("GET", "HEAD") and request.path == "/"


def _equal_in_constant_time(first: str, second: str) -> bool:
    """The time that it takes says nothing of how much of a guess was right."""
    return hmac.compare_digest(first.encode(errors="replace"), second.encode(errors="replace"))


@functools.lru_cache(64)
def _host_name(host: str) -> str:
    """The name in a Host header, in lower case; "" for an address, "?" where there is none."""
    name = re.sub(r":\d+$", "", host).strip("[]").lower()
    is_ipv4 = re.match(r"^[\d.]+$", name)
    is_ipv6 = re.match(r"^[\da-f:.]*:[\da-f:.]*$", name)
    if is_ipv4 or is_ipv6:
        return ""
    return name or "?"


def make_guard(
    host: str, token: Optional[str], no_token: bool, hosts: Sequence[str], origins: Sequence[str]
) -> Guard:
    """The guard of a service that listens on ``host``.

    ``hosts`` are more names that it answers to, ``origins`` those whose pages are allowed.
    Raises UsageError where other machines could use it without a token, unless ``no_token``.
    """
    is_local = host in ("localhost", "::1") or host.startswith("127.")
    if not is_local and not token and not no_token:
        raise UsageError(
            f"--host {host} lets other machines in, so it needs a token.",
            "Add --token SECRET (or set COMFYUI_RUNNER_TOKEN), "
            "or --no-token if everybody there may use your GPU.",
        )
    names = {"localhost", host.lower(), *(name.lower() for name in hosts)}
    if not is_local:
        names |= _names_of_this_machine()
    allowed_origins = frozenset(origin.rstrip("/").lower() for origin in origins)
    return Guard(frozenset(names), allowed_origins, token or None)


def _names_of_this_machine() -> FrozenSet[str]:
    """What other machines may call this one: with and without its domain, and by mDNS (.local)."""
    name = socket.gethostname().lower()
    short_name = name.partition(".")[0]
    return frozenset((name, f"{name}.local", short_name, f"{short_name}.local"))
