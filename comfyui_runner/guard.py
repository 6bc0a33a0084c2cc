"""Who may use the service.

Every program on this machine can reach it, and so can every web page that a browser on it shows:
without asking anybody, a page can make the browser send requests.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import hmac
import ipaddress
import re
import secrets
import socket
import threading
import time
import urllib.parse
from typing import (
    Dict,
    FrozenSet,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Union,
)

from comfyui_runner.errors import UsageError
from comfyui_runner.messages import Headers, HttpError, Request
from comfyui_runner.text import one_line

#: How the name of the cookie begins that POST /login gives to the page.
COOKIE = "comfyui_workflow_runner"

#: What needs no token: the login itself, and what watchdogs ask for.
PATHS_WITHOUT_TOKEN = ("/login", "/health")

#: Headers of answers that pages of allowed origins may read too.
EXPOSED_HEADERS = "Content-Disposition, Location, Retry-After, X-Prompt-Id"

#: The only path whose GET starts something.
PATH_THAT_STARTS = "/queue"

#: Headers in which browsers say that nobody has opened the page yet (those of the standard, older
#: Chromium, Safari and Firefox), and the words in them that mean this.
PREFETCH_HEADERS = ("sec-purpose", "purpose", "x-purpose", "x-moz")
PREFETCH_WORDS = ("prefetch", "prerender", "preview")

#: The answer to the first wrong token is late by so many seconds. Each failure doubles them.
FIRST_DELAY = 0.05
LONGEST_DELAY = 5.0

#: After so many seconds without a failure, delays begin anew.
FORGET_FAILURES = 60.0

#: How many answers to wrong tokens may be late at the same time: to one network, and to all.
LATE_ANSWERS_OF_ONE = 4
LATE_ANSWERS_OF_ALL = 16

#: How many networks that have sent a wrong token are remembered.
NETWORKS_REMEMBERED = 1000

#: How long a signed URL is valid: as long as the URLs of OpenAI's images.
SIGNATURE_SECONDS = 60 * 60

#: Characters of a SHA-256 digest in hexadecimal.
DIGEST_LENGTH = 64

IPAddress = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]

_is_time = re.compile(r"[0-9]{1,12}").fullmatch

#: A Host header: a name or an address, in brackets if it has colons, and a port.
_match_host = re.compile(r"(?:\[([^\[\]]+)\]|([^:\[\]]+))(?::([0-9]{1,5}))?").fullmatch


class Guard(NamedTuple):
    """The hosts that the service answers to, the origins that are allowed, and the token."""

    #: names and addresses as read_host() returns them; localhost and loopback addresses come on top
    hosts: FrozenSet[str] = frozenset()
    #: origins of other web pages that may use the service
    origins: FrozenSet[str] = frozenset()
    token: Optional[str] = None
    #: whether it answers to every address, because it listens on all of them
    takes_any_address: bool = False
    #: how the cookies begin that this service has given out since its start
    session_mark: str = ""

    def refusal(self, request: Request) -> Optional[HttpError]:
        """Why a request is refused, or None."""
        return (
            self._refuse_foreign_host(request)
            or self._refuse_foreign_page(request)
            or self._refuse_prefetch(request)
            or self._refuse_browser_without_page(request)
            or self._refuse_without_token(request)
        )

    def _refuse_foreign_host(self, request: Request) -> Optional[HttpError]:
        """DNS rebinding: a page of evil.example makes that name point to 127.0.0.1, and then has
        the same origin as the service. The browser still sends Host: evil.example.

        Addresses that nobody uses on purpose are refused too. Browsers reach this machine by
        0.0.0.0 and [::ffff:127.0.0.1], but do not treat these as local and so do not send
        Sec-Fetch-Site (W3C Secure Contexts, section 3.1).
        """
        host = request.headers.get("host")
        if host is None:
            return HttpError(400, "bad_request", "The request has no Host header.")
        if self._answers_to(read_host(host)):
            return None
        name = one_line(host, 80)
        message = (
            f"This service does not answer to the host {name}. If it should, start it with "
            "--allow-host and the name or address that clients use "
            "(behind Docker, WSL or ssh -L, for example)."
        )
        return HttpError(403, "foreign_host", message)

    def _answers_to(self, host: str) -> bool:
        if host == "":
            return False
        if host in self.hosts or is_loopback(host):
            return True
        address = parse_ip(host)
        return (
            self.takes_any_address
            and address is not None
            and not address.is_unspecified
            and not _is_ipv4_mapped(address)
        )

    def _refuse_foreign_page(self, request: Request) -> Optional[HttpError]:
        """Other web pages: an <img> with the URL of GET /queue would be enough to start a run.

        A browser says in Origin (but not with every GET), Referer and Sec-Fetch-Site which page
        sends the request. Other clients send none of them.
        """
        origin = request.headers.get("origin")
        if origin is not None and origin not in self._origins_of(request):
            message = "Pages of other origins may not use this service (--allow-origin)."
            return HttpError(403, "foreign_origin", message)

        # Any page may have a link to ours, whose requests are then its own. And a page that was
        # given a signed URL may show what is there.
        if _asks_for_page(request) or self.has_signature(request, time.time()):
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
        scheme_and_host = referer.lower().split("/")[:3]  # "http:", "", "gpu.example:8189"
        return "/".join(scheme_and_host) not in self._origins_of(request)

    def _refuse_prefetch(self, request: Request) -> Optional[HttpError]:
        """A browser may fetch what somebody might click on: GET /queue would start a run."""
        purposes = " ".join(request.header(name) for name in PREFETCH_HEADERS).lower()
        if not any(word in purposes for word in PREFETCH_WORDS):
            return None
        return HttpError(403, "prefetch", "This service does not answer prefetch requests.")

    def _refuse_browser_without_page(self, request: Request) -> Optional[HttpError]:
        """A browser that starts or changes something must say that our own page wants it.

        A foreign page can make it say nothing: the browser sends no Sec-Fetch-Site to most
        addresses over plain HTTP, no Origin with an <img>, and no Referer if the page forbids it.
        """
        if not starts_or_changes(request) or not is_browser(request):
            return None
        # _refuse_foreign_page() has refused those that are not ours.
        if request.header("origin"):
            return None
        site = request.headers.get("sec-fetch-site")
        if site is None and request.header("referer"):
            return None

        if site == "same-origin":
            return None
        # "none" is the address bar or a bookmark.
        is_from_address_bar = site == "none" and is_loopback(read_host(request.header("host")))
        if is_from_address_bar:
            return None
        message = (
            "The browser does not say which page this comes from: open the page instead "
            f"(http://{one_line(request.header('host'), 80)}/)."
        )
        return HttpError(403, "foreign_origin", message)

    def _refuse_without_token(self, request: Request) -> Optional[HttpError]:
        is_allowed = (
            self.token is None
            or _asks_for_page(request)  # it has the field for the token
            or request.path in PATHS_WITHOUT_TOKEN
            or self.has_token(request)
            or self.has_signature(request, time.time())
        )
        if is_allowed:
            return None
        headers = (("WWW-Authenticate", "Bearer"),)
        message = "This service needs a token: Authorization: Bearer TOKEN."
        return HttpError(401, "unauthorized", message, headers=headers)

    def _origins_of(self, request: Request) -> FrozenSet[str]:
        """The origins whose pages may send ``request``: its own, and those that are allowed."""
        host = request.header("host").lower()
        return self.origins | {f"http://{host}", f"https://{host}"}

    def cors_headers(self, request: Request) -> Headers:
        """What lets a page of an allowed origin read the answer."""
        origin = request.header("origin")
        if not origin or origin not in self.origins:
            return ()
        return (
            ("Access-Control-Allow-Origin", origin),
            ("Access-Control-Expose-Headers", EXPOSED_HEADERS),
            ("Vary", "Origin"),
        )

    def has_token(self, request: Request) -> bool:
        """Whether the request has the token, or the cookie of the login."""
        scheme, _, credentials = request.header("authorization").partition(" ")
        if scheme.lower() == "bearer" and self.is_token(credentials.strip()):
            return True
        for value in self._cookies_of(request):
            digest = value[-DIGEST_LENGTH:]  # after the session mark
            if _equal_in_constant_time(digest, self._digest("value")):
                return True
        return False

    def sign_target(self, path: str, query: Mapping[str, str], now: float) -> str:
        """A path and query by which anybody can GET what is there, for a while.

        For those who get a URL and no token, such as a page that shows a picture. Where no token is
        needed, nothing is added.
        """
        signed = dict(query)
        if self.token is not None:
            signed["expires"] = str(int(now) + SIGNATURE_SECONDS)
            signed["signature"] = self._signature(path, signed)
        return f"{path}?{urllib.parse.urlencode(signed)}"

    def has_signature(self, request: Request, now: float) -> bool:
        """Whether sign_target() has made the target of ``request``, and it has not expired."""
        query = dict(request.query)
        signature = query.pop("signature", "")
        expires = query.get("expires", "")
        is_in_time = bool(_is_time(expires)) and now < int(expires)
        only_reads = request.method in ("GET", "HEAD")
        if self.token is None or not only_reads or not is_in_time:
            return False
        return _equal_in_constant_time(signature, self._signature(request.path, query))

    def _signature(self, path: str, query: Mapping[str, str]) -> str:
        """The session mark is part of the key. Without it, the signature of a URL would be enough
        to try out tokens until one gives the same signature.
        """
        sorted_query = urllib.parse.urlencode(sorted(query.items()))
        message = f"{COOKIE} URL {path}?{sorted_query}"
        key = f"{self.session_mark} {self.token}"
        return hmac.new(key.encode(), message.encode(), hashlib.sha256).hexdigest()

    def carries_guess(self, request: Request) -> bool:
        """Whether the answer to ``request`` would say whether a guess of the token is right.

        A cookie with the session mark is not a guess: the mark itself cannot be guessed.
        """
        if self.token is None:
            return False
        cookies = self._cookies_of(request)
        for value in cookies:
            mark = value[:-DIGEST_LENGTH]
            if self.session_mark != "" and _equal_in_constant_time(mark, self.session_mark):
                return False
        return "authorization" in request.headers or bool(cookies) or request.path == "/login"

    def _cookies_of(self, request: Request) -> List[str]:
        """The values of all cookies with the name of ours.

        There may be several: a page of this host, on another path or for the whole domain, can set
        one of the same name, and its cookie may come first (RFC 6265, section 5.4).
        """
        values = []
        for cookie in request.header("cookie").split(";"):
            name, _, value = cookie.partition("=")
            if name.strip() == self.cookie_name():
                values.append(value.strip())
        return values

    def is_wrong_guess(self, request: Request, error: BaseException) -> bool:
        """Whether ``request`` ended with ``error`` because a token was wrong, not missing."""
        if not isinstance(error, HttpError):
            return False
        if error.type != "unauthorized":
            return error.type == "wrong_token"
        return "authorization" in request.headers or bool(self._cookies_of(request))

    def is_token(self, text: str) -> bool:
        """Whether ``text`` is the token."""
        return self.token is not None and _equal_in_constant_time(text, self.token)

    def cookie_name(self) -> str:
        """The name of the cookie of the login; each token has another one.

        Browsers keep one cookie of a name for all ports of a host. If the name were the same, the
        login to one service would end the login to another.
        """
        return f"{COOKIE}_{self._digest('name')[:8]}"

    def cookie_value(self) -> str:
        """The value of the cookie of the login. The token cannot be read from it.

        It begins with the session mark. Its end alone stays valid when the service starts anew.
        """
        return self.session_mark + self._digest("value")

    def _digest(self, purpose: str) -> str:
        message = f"{COOKIE} {purpose}".encode()
        return hmac.new(str(self.token).encode(), message, hashlib.sha256).hexdigest()


class FailedGuesses:
    """Slows down those who guess the token.

    Wrong tokens are answered late. The failures of all addresses count together, because an
    attacker may have many. A late answer occupies a thread, so only a few are late at a time. A
    client that waits for that many has its next guesses refused unseen: an answer to them at once
    would say whether they were right. Times are on the monotonic clock.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures = 0
        self._last_failure = float("-inf")
        self._late_answers: Dict[str, int] = {}  # by network, while they are being delayed
        self._failed_at: Dict[str, float] = {}  # the last failure by network, oldest first

    def may_guess(self, client: str, now: float) -> bool:
        """Whether a token that comes from the address ``client`` is checked."""
        network = _network_of(client)
        with self._lock:
            if self._late_answers.get(network, 0) >= LATE_ANSWERS_OF_ONE:
                return False
            is_full = sum(self._late_answers.values()) >= LATE_ANSWERS_OF_ALL
            last_failure = self._failed_at.get(network, float("-inf"))
            has_failed = now - last_failure <= FORGET_FAILURES
            return not (is_full and has_failed)

    @contextlib.contextmanager
    def late_answer(self, client: str, now: float) -> Iterator[float]:
        """Count one more failure. In the block, its answer waits for the seconds returned."""
        network = _network_of(client)
        with self._lock:
            delay = self._count_failure(network, now)
            is_full = sum(self._late_answers.values()) >= LATE_ANSWERS_OF_ALL
            if is_full:
                delay = 0.0
            self._late_answers[network] = self._late_answers.get(network, 0) + 1
        try:
            yield delay
        finally:
            with self._lock:
                self._late_answers[network] -= 1
                if not self._late_answers[network]:
                    del self._late_answers[network]

    def _count_failure(self, network: str, now: float) -> float:
        if now - self._last_failure > FORGET_FAILURES:
            self._failures = 0
        delay = FIRST_DELAY * 2.0 ** min(self._failures, 30)
        self._failures += 1
        self._last_failure = now
        self._failed_at.pop(network, None)
        self._failed_at[network] = now
        if len(self._failed_at) > NETWORKS_REMEMBERED:
            oldest = next(iter(self._failed_at))
            del self._failed_at[oldest]
        return min(delay, LONGEST_DELAY)


def _network_of(client: str) -> str:
    """An IPv4 address, or the first half of an IPv6 address: one machine may have all of those."""
    without_zone, _, _ = client.partition("%")
    address = parse_ip(without_zone)
    if isinstance(address, ipaddress.IPv6Address) and not _is_ipv4_mapped(address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return client


def too_many_guesses() -> HttpError:
    """The answer to a token that is not checked."""
    message = "Too many wrong tokens came from this address: try again later."
    headers = (("Retry-After", f"{LONGEST_DELAY:.0f}"),)
    return HttpError(429, "too_many_guesses", message, headers=headers)


def _asks_for_page(request: Request) -> bool:
    return request.method in ("GET", "HEAD") and request.path == "/"


def _equal_in_constant_time(first: str, second: str) -> bool:
    """Whether two texts are equal. The time that this takes does not show how much of them is."""
    return hmac.compare_digest(first.encode(errors="replace"), second.encode(errors="replace"))


def starts_or_changes(request: Request) -> bool:
    """Whether ``request`` is meant to start a run or to change something."""
    if request.method == "GET":
        return request.path == PATH_THAT_STARTS
    return request.method not in ("HEAD", "OPTIONS")


def is_browser(request: Request) -> bool:
    """Whether a browser sends ``request``, and not a program.

    Every browser sends these two headers, and a page that removes or changes them must ask first
    (CORS preflight). PowerShell calls itself Mozilla too. Other programs that do so send no
    Accept-Language.
    """
    user_agent = request.header("user-agent")
    return (
        user_agent.startswith("Mozilla/")
        and "PowerShell/" not in user_agent
        and "accept-language" in request.headers
    )


# -- hosts -----------------------------------------------------------------------------------------


@functools.lru_cache(64)
def read_host(text: str) -> str:
    """The name or the address in a Host header: in lower case, without its port.

    Addresses are in their usual spelling, without brackets. "" if ``text`` is neither.
    """
    address = parse_ip(text)  # some clients send IPv6 addresses without brackets
    if address is not None:
        return str(address)
    match = _match_host(text)
    if match is None:
        return ""
    address_in_brackets, name, _ = match.groups()
    if address_in_brackets is None:
        return str(parse_ip(name) or name.lower())
    address = parse_ip(address_in_brackets)
    if not isinstance(address, ipaddress.IPv6Address):
        return ""
    return str(address)


def url_of_host(text: str) -> str:
    """The URL that leads to what a Host header names, without a path."""
    host = read_host(text)
    if ":" in host:
        host = f"[{host}]"
    match = _match_host(text)
    if match is None:
        return f"http://{host}"
    _, _, port = match.groups()
    if port is None:
        return f"http://{host}"
    return f"http://{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether ``host``, as read_host() returns it, is this machine and nothing else."""
    if host == "localhost":
        return True
    address = parse_ip(host)
    return address is not None and address.is_loopback and not _is_ipv4_mapped(address)


@functools.lru_cache(maxsize=64)  # a client sends the same Host with each request
def parse_ip(text: str) -> Optional[IPAddress]:
    """The address that ``text`` is, or None."""
    if "%" in text:  # fe80::1%eth0: the zone is an interface, which clients do not know
        return None
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _is_ipv4_mapped(address: IPAddress) -> bool:
    return isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None


def make_guard(
    host: str, token: Optional[str], no_token: bool, hosts: Sequence[str], origins: Sequence[str]
) -> Guard:
    """The guard of a service that listens on ``host``.

    ``hosts`` are more names and addresses that it answers to, ``origins`` those whose pages are
    allowed. Raises UsageError if other machines could use it without a token, unless ``no_token``.
    """
    without_zone, _, _ = host.partition("%")
    bound_host = read_host(without_zone)
    is_local = is_loopback(bound_host)
    if not is_local and not token and not no_token:
        raise UsageError(
            f"--host {host} lets other machines in, so it needs a token.",
            "Add --token SECRET (or set COMFYUI_RUNNER_TOKEN), "
            "or --no-token if everybody there may use your GPU.",
        )
    allowed_hosts = {read_allowed_host(name) for name in hosts}
    bound_address = parse_ip(bound_host)
    listens_on_all = bound_address is not None and bound_address.is_unspecified
    if not is_local:
        allowed_hosts |= _names_of_this_machine()
        if not listens_on_all:
            allowed_hosts.add(bound_host)
    session_mark = ""
    if token:
        session_mark = secrets.token_hex(16)
    return Guard(
        hosts=frozenset(allowed_hosts),
        origins=frozenset(origin.rstrip("/").lower() for origin in origins),
        token=token or None,
        takes_any_address=listens_on_all,
        session_mark=session_mark,
    )


def read_allowed_host(text: str) -> str:
    """The host of --allow-host. Raises UsageError if it is neither a name nor an address."""
    host = read_host(text)
    if host == "":
        raise UsageError(
            f"--allow-host {one_line(text, 80)} is not a name or an address.",
            "Give it as it appears in the address bar: gpu.example or 192.168.1.20.",
        )
    return host


def _names_of_this_machine() -> FrozenSet[str]:
    """What other machines may call this one: with and without its domain, and by mDNS (.local)."""
    name = socket.gethostname().lower()
    short_name, _, _ = name.partition(".")
    return frozenset((name, f"{name}.local", short_name, f"{short_name}.local"))
