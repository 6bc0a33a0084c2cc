"""Who may use the service."""

from __future__ import annotations

import functools
import hashlib
import hmac
import re
import socket
from typing import FrozenSet, NamedTuple, Optional, Sequence

from comfyui_runner.errors import UsageError
from comfyui_runner.messages import HttpError, Request
from comfyui_runner.text import one_line

COOKIE = "comfyui_workflow_runner"


class Guard(NamedTuple):
    """Who may speak to the service: its own names, other origins that are allowed, the token."""

    hosts: FrozenSet[str] = frozenset(("localhost", "127.0.0.1"))
    origins: FrozenSet[str] = frozenset()
    token: Optional[str] = None

    def refusal(self, request: Request) -> Optional[HttpError]:
        """Why a request is not let in, or None.

        A foreign name in Host is DNS rebinding (an address cannot be rebound); a foreign Origin,
        Referer or Sec-Fetch-Site is another web page, which may not even start a run by an <img>.
        """
        host = request.headers.get("host", "")
        name = _host_name(host)
        if name and name not in self.hosts:
            return HttpError(
                403,
                "foreign_host",
                "This service is not called %s: --allow-host names it so." % one_line(host, 80),
            )
        ours = ("http://" + host, "https://" + host, *self.origins)
        origin = request.headers.get("origin")
        referer = request.headers.get("referer", "")
        page = request.method in ("GET", "HEAD") and request.path == "/"
        if origin is not None and origin not in ours:
            return HttpError(
                403,
                "foreign_origin",
                "Pages of other origins may not use this service (--allow-origin).",
            )
        site = request.headers.get("sec-fetch-site", "none")
        if not page and origin is None and site not in ("none", "same-origin"):
            return HttpError(
                403, "foreign_origin", "Pages of other origins may not use this service."
            )
        if not page and referer and "/".join(referer.lower().split("/")[:3]) not in ours:
            return HttpError(
                403, "foreign_origin", "Pages of other origins may not use this service."
            )
        if "prefetch" in request.headers.get("sec-purpose", "") + request.headers.get(
            "purpose", ""
        ):
            return HttpError(403, "prefetch", "A prefetch is not answered.")
        if (
            self.token
            and not page
            and request.path not in ("/login", "/health")
            and not self.knows(request)
        ):
            return HttpError(401, "unauthorized", "A token is needed.", WWW_Authenticate="Bearer")
        return None

    def knows(self, request: Request) -> bool:
        """Whether the request bears the token, or the cookie that the login gave."""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        cookie = re.search(r"(?:^|;\s*)%s=([0-9a-f]+)" % COOKIE, request.headers.get("cookie", ""))
        return (scheme.lower() == "bearer" and self.is_token(given.strip())) or bool(
            cookie and _same(cookie.group(1), self.cookie())
        )

    def is_token(self, given: str) -> bool:
        """Whether ``given`` is the token, in a time that does not tell how much of it is right."""
        return self.token is not None and _same(given, self.token)

    def cookie(self) -> str:
        """What the cookie holds: not the token itself."""

        return hmac.new(str(self.token).encode(), COOKIE.encode(), hashlib.sha256).hexdigest()


@functools.lru_cache(64)
def _host_name(host: str) -> str:
    """The name in a Host header, in lower case; "" for an address ("?" for nothing at all)."""
    name = re.sub(r":\d+$", "", host).strip("[]").lower()
    return "" if re.match(r"^[\d.]+$|^[\da-f:.]*:[\da-f:.]*$", name) else name or "?"


def _same(first: str, second: str) -> bool:
    return hmac.compare_digest(first.encode(errors="replace"), second.encode(errors="replace"))


def make_guard(
    host: str, token: Optional[str], no_token: bool, hosts: Sequence[str], origins: Sequence[str]
) -> Guard:
    """Who may speak to the service on ``host``. Raises UsageError for an open door without a token."""

    local = host in ("localhost", "::1") or host.startswith("127.")
    if not local and not token and not no_token:
        raise UsageError(
            "--host %s lets other machines in, so it needs a token." % host,
            "Add --token SECRET (or COMFYUI_RUNNER_TOKEN), or --no-token if everybody there may use your GPU.",
        )
    names = {"localhost", host.lower(), *(name.lower() for name in hosts)}
    if not local:
        machine = socket.gethostname().lower()
        names |= {
            machine,
            machine + ".local",
            machine.partition(".")[0],
            machine.partition(".")[0] + ".local",
        }
    return Guard(
        frozenset(names), frozenset(origin.rstrip("/").lower() for origin in origins), token or None
    )
