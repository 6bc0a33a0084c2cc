"""Who may use the service.

Its address is open to every program of this machine, and to every web page that a browser on it
shows: a page needs no permission to make the browser send a request.
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

#: What may be had without a token: the page that asks for it, and what a watchdog asks for.
PATHS_WITHOUT_TOKEN = ("/login", "/health")

#: Headers of answers that a page of an allowed origin may read too.
EXPOSED_HEADERS = "Content-Disposition, Location, Retry-After, X-Prompt-Id"

#: The only path whose GET starts something.
PATH_THAT_STARTS = "/queue"

#: Headers in which browsers say that nobody has asked for the page yet, and how they say it: the
#: standard, older Chromium, Safari, and Firefox.
PREFETCH_HEADERS = ("sec-purpose", "purpose", "x-purpose", "x-moz")
PREFETCH_WORDS = ("prefetch", "prerender", "preview")

#: Seconds by which wrong tokens are answered late: the first one, and at most. Each failure doubles
#: them; after this many seconds without one they begin anew.
FIRST_DELAY, LONGEST_DELAY, FORGET_FAILURES = 0.05, 5.0, 60.0

#: So many wrong tokens are answered late at a time, of one address and of all.
LATE_ANSWERS_OF_ONE, LATE_ANSWERS_OF_ALL = 4, 16

#: So many addresses are remembered that have sent a wrong token.
NETWORKS_REMEMBERED = 1000

#: Seconds for which a signed URL can be fetched. OpenAI's images can be for as long.
SIGNATURE_SECONDS = 60 * 60

#: Characters of a SHA-256 digest in hexadecimal.
DIGEST_LENGTH = 64

IPAddress = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]

_is_time = re.compile(r"[0-9]{1,12}").fullmatch

#: A Host header: a name or an address, in brackets if it has colons, and a port.
_match_host = re.compile(r"(?:\[([^\[\]]+)\]|([^:\[\]]+))(?::([0-9]{1,5}))?").fullmatch


class Guard(NamedTuple):
    """The hosts that the service answers to, the origins that are allowed, and the token.

    It answers to every loopback address and to ``localhost`` too; ``takes_any_address`` adds all
    other addresses, for a service that listens on all of them.
    """

    hosts: FrozenSet[str] = frozenset()  # names and addresses as read_host() returns them
    origins: FrozenSet[str] = frozenset()
    token: Optional[str] = None
    takes_any_address: bool = False
    session_mark: str = ""  # of the cookies that this service has given out since its start

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
        """DNS rebinding: a page of evil.example lets that name point to 127.0.0.1, and then has the
        same origin as the service. The browser still sends Host: evil.example.

        Addresses that nobody uses on purpose are refused too: browsers reach this machine by
        0.0.0.0 and [::ffff:127.0.0.1], but do not treat them as this machine's, and then leave out
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

        A browser names the page in Origin (not with every GET), Referer and Sec-Fetch-Site; other
        clients send none of them.
        """
        origin = request.headers.get("origin")
        if origin is not None and origin not in self._origins_of(request):
            message = "Pages of other origins may not use this service (--allow-origin)."
            return HttpError(403, "foreign_origin", message)

        # A link from anywhere may lead to the page, which then asks on its own behalf; and a page
        # that was given a signed URL may show what is there.
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
        origin = "/".join(referer.lower().split("/")[:3])  # scheme, nothing, host and port
        return origin not in self._origins_of(request)

    def _refuse_prefetch(self, request: Request) -> Optional[HttpError]:
        """A browser may ask for what somebody might click on; GET /queue would start a run."""
        purposes = " ".join(request.header(name) for name in PREFETCH_HEADERS).lower()
        if not any(word in purposes for word in PREFETCH_WORDS):
            return None
        return HttpError(403, "prefetch", "This service does not answer prefetch requests.")

    def _refuse_browser_without_page(self, request: Request) -> Optional[HttpError]:
        """A browser that starts or changes something must say that our own page wants it.

        A foreign page can make it say nothing: it sends no Sec-Fetch-Site to most addresses over
        plain HTTP, no Origin with an <img>, and no Referer if the page forbids it.
        _refuse_foreign_page() has refused an Origin and a Referer that are not ours.
        """
        if not starts_or_changes(request) or not is_browser(request):
            return None
        if request.header("origin"):
            return None
        site = request.headers.get("sec-fetch-site")
        if site is None and request.header("referer"):
            return None
        # "none" is the address bar or a bookmark.
        is_from_address_bar = site == "none" and is_loopback(read_host(request.header("host")))
        if site == "same-origin" or is_from_address_bar:
            return None
        message = (
            "The browser does not say which page this comes from: open the page instead "
            f"(http://{one_line(request.header('host'), 80)}/)."
        )
        return HttpError(403, "foreign_origin", message)

    def _refuse_without_token(self, request: Request) -> Optional[HttpError]:
        if (
            self.token is None
            or _asks_for_page(request)
            or request.path in PATHS_WITHOUT_TOKEN
            or self.has_token(request)
            or self.has_signature(request, time.time())
        ):
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
        exposed = ("Access-Control-Expose-Headers", EXPOSED_HEADERS)
        return ("Access-Control-Allow-Origin", origin), exposed, ("Vary", "Origin")

    def has_token(self, request: Request) -> bool:
        """Whether the request has the token, or the cookie of the login."""
        scheme, _, credentials = request.header("authorization").partition(" ")
        if scheme.lower() == "bearer" and self.is_token(credentials.strip()):
            return True
        return any(
            _equal_in_constant_time(value[-DIGEST_LENGTH:], self._digest("value"))
            for value in self._cookies_of(request)
        )

    def sign_target(self, path: str, query: Mapping[str, str], now: float) -> str:
        """The path and query by which whoever has them may GET what is there, for a while.

        For those who get a URL and no token, such as the page that shows a picture. Where no token
        is needed, nothing is added.
        """
        if self.token is not None:
            expires = str(int(now) + SIGNATURE_SECONDS)
            query = {**query, "expires": expires}
            query = {**query, "signature": self._signature(path, query)}
        return f"{path}?{urllib.parse.urlencode(query)}"

    def has_signature(self, request: Request, now: float) -> bool:
        """Whether the target of ``request`` is one of sign_target(), as it was and in time."""
        query = dict(request.query)
        signature = query.pop("signature", "")
        expires = query.get("expires", "")
        is_in_time = bool(_is_time(expires)) and now < int(expires)
        if self.token is None or request.method not in ("GET", "HEAD") or not is_in_time:
            return False
        return _equal_in_constant_time(signature, self._signature(request.path, query))

    def _signature(self, path: str, query: Mapping[str, str]) -> str:
        """Whoever sees it cannot try tokens on it: the mark of this start is in the key too."""
        target = f"{path}?{urllib.parse.urlencode(sorted(query.items()))}"
        key = f"{self.session_mark} {self.token}".encode()
        return hmac.new(key, f"{COOKIE} URL {target}".encode(), hashlib.sha256).hexdigest()

    def carries_guess(self, request: Request) -> bool:
        """Whether the answer to ``request`` says whether a token is right that can be guessed.

        The beginning of a cookie that was given out since the start cannot be guessed.
        """
        if self.token is None:
            return False
        cookies = self._cookies_of(request)
        is_our_session = self.session_mark != "" and any(
            _equal_in_constant_time(value[:-DIGEST_LENGTH], self.session_mark) for value in cookies
        )
        if is_our_session:
            return False
        return "authorization" in request.headers or bool(cookies) or request.path == "/login"

    def _cookies_of(self, request: Request) -> List[str]:
        """The values of all cookies with the name of ours.

        There may be several: a page of this host, on another path or for the whole domain, can set
        one of the same name, and its cookie may come first (RFC 6265, section 5.4).
        """
        pairs = [pair.partition("=") for pair in request.header("cookie").split(";")]
        return [value.strip() for name, _, value in pairs if name.strip() == self.cookie_name()]

    def is_wrong_guess(self, request: Request, error: BaseException) -> bool:
        """Whether ``request`` ended with ``error`` because a token was wrong, not missing."""
        if not isinstance(error, HttpError):
            return False
        has_credentials = "authorization" in request.headers or bool(self._cookies_of(request))
        return error.type == "wrong_token" or (error.type == "unauthorized" and has_credentials)

    def is_token(self, text: str) -> bool:
        """Whether ``text`` is the token."""
        return self.token is not None and _equal_in_constant_time(text, self.token)

    def cookie_name(self) -> str:
        """The name of the cookie of the login, another one for each token.

        Browsers keep one cookie of a name for all ports of a host: with a name in common, the login
        to one service would end that to the other.
        """
        return f"{COOKIE}_{self._digest('name')[:8]}"

    def cookie_value(self) -> str:
        """What the cookie of the login holds. The token cannot be read from it.

        It ends with what holds as long as the token does.
        """
        return self.session_mark + self._digest("value")

    def _digest(self, purpose: str) -> str:
        message = f"{COOKIE} {purpose}".encode()
        return hmac.new(str(self.token).encode(), message, hashlib.sha256).hexdigest()


class FailedGuesses:
    """Slows down those who guess the token.

    Wrong tokens are answered late: all of them together, as an attacker can have many addresses.
    A late answer holds a thread, so only a few are late at a time. Who has that many gets further
    guesses refused without a look at them: an answer at once, whatever it is, would say whether a
    guess was right. Times are on the monotonic clock.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures = 0
        self._last_failure = float("-inf")
        self._late_answers: Dict[str, int] = {}  # by network, while they are being delayed
        self._failed_at: Dict[str, float] = {}  # the last failure by network, oldest first

    def may_guess(self, client: str, now: float) -> bool:
        """Whether a token that comes from the address ``client`` is looked at."""
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
        """Count one more failure: the seconds by which its answer, meanwhile, is late."""
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
            del self._failed_at[next(iter(self._failed_at))]
        return min(delay, LONGEST_DELAY)


def _network_of(client: str) -> str:
    """An address; of IPv6 the first half, as a single machine has all addresses that begin so."""
    address = parse_ip(client.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return client


def too_many_guesses() -> HttpError:
    """The answer to a token that is not looked at."""
    message = "Too many wrong tokens came from this address: try again later."
    headers = (("Retry-After", f"{LONGEST_DELAY:.0f}"),)
    return HttpError(429, "too_many_guesses", message, headers=headers)


def _asks_for_page(request: Request) -> bool:
    return request.method in ("GET", "HEAD") and request.path == "/"


def _equal_in_constant_time(first: str, second: str) -> bool:
    """The time that it takes says nothing of how much of a guess was right."""
    return hmac.compare_digest(first.encode(errors="replace"), second.encode(errors="replace"))


def starts_or_changes(request: Request) -> bool:
    """Whether ``request`` is meant to start a run or to change something."""
    if request.method == "GET":
        return request.path == PATH_THAT_STARTS
    return request.method not in ("HEAD", "OPTIONS")


def is_browser(request: Request) -> bool:
    """Whether a browser sends ``request``, and not a program.

    Every browser sends these two headers, and no page can take them away or change User-Agent
    unless it asks first (CORS preflight). PowerShell calls itself Mozilla too; other programs that
    do so send no Accept-Language.
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
    address = parse_ip(text)  # an IPv6 address without brackets: some clients send that
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
    if match and match[3]:
        host += f":{match[3]}"
    return f"http://{host}"


def is_loopback(host: str) -> bool:
    """Whether ``host``, as read_host() returns it, is this machine and nothing else."""
    if host == "localhost":
        return True
    address = parse_ip(host)
    return address is not None and address.is_loopback and not _is_ipv4_mapped(address)


@functools.lru_cache(maxsize=64)  # a client sends the same Host with each request
def parse_ip(text: str) -> Optional[IPAddress]:
    """The address that ``text`` is, or None."""
    if "%" in text:  # a zone (fe80::1%eth0): its interface means nothing to clients
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
    allowed.
    Raises UsageError where other machines could use it without a token, unless ``no_token``.
    """
    bound_host = read_host(host.partition("%")[0])
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
    return Guard(
        hosts=frozenset(allowed_hosts),
        origins=frozenset(origin.rstrip("/").lower() for origin in origins),
        token=token or None,
        takes_any_address=listens_on_all,
        session_mark=secrets.token_hex(16) if token else "",
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
    short_name = name.partition(".")[0]
    return frozenset((name, f"{name}.local", short_name, f"{short_name}.local"))
