"""Where a ComfyUI is, and which headers its requests have."""

from __future__ import annotations

import base64
import ipaddress
import re
import urllib.parse
from typing import Dict, Mapping, NamedTuple, Sequence, Tuple

from comfyui_runner.errors import UsageError

#: The characters of a header's name (RFC 9110, "token").
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

#: The variables that name a file (or a folder) of trusted certificate authorities. The first one
#: that is set counts: requests reads the first two in this order, and OpenSSL the third.
CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")

DEFAULT_PORTS = {"http": 80, "https": 443}

URL_EXAMPLE = "Example: http://127.0.0.1:8188"


class Address(NamedTuple):
    """Where a server is, and what is sent to it."""

    url: str  #: without credentials and without a last slash
    headers: Tuple[Tuple[str, str], ...] = ()  #: to send with each request
    ca_bundle: str = ""  #: a file or folder of certificate authorities that are trusted too
    notice: str = ""  #: what was changed in the URL, for people

    @property
    def websocket(self) -> str:
        """``url`` for the WebSocket: with ws:// for http://, and with wss:// for https://."""
        return "ws" + self.url[len("http") :]

    @property
    def host(self) -> str:
        """The host's name or IP address, without brackets."""
        return urllib.parse.urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """The port; where the URL does not state it, the one of its scheme."""
        parts = urllib.parse.urlsplit(self.url)
        return parts.port or DEFAULT_PORTS[parts.scheme]

    @property
    def has_tls(self) -> bool:
        """Whether it is an https:// address."""
        return self.url.startswith("https:")

    @property
    def local(self) -> bool:
        """Whether it is on this machine, so that the system's proxy must not be used for it."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")


def choose_ca_bundle(variables: Mapping[str, str]) -> str:
    """The file or folder of certificate authorities that the environment names, "" for none."""
    for name in CA_VARIABLES:
        path = variables.get(name)
        if path:
            return path
    return ""


def parse_address(text: str, headers: Sequence[str] = (), ca_bundle: str = "") -> Address:
    """The address in ``text`` (``http://user:password@host:8188/base``, or ``host:8188``).

    ``headers`` are "Name: value" lines. A later one replaces an earlier one, and Authorization
    replaces the user and password of the URL. Raises UsageError; its message never shows a secret.
    """
    parts, port = _split_server_url(text)
    typed_host = parts.hostname or ""
    host = _host_that_can_be_called(typed_host)
    notice = ""
    if host != typed_host:
        notice = (
            f"{typed_host} means every address of ComfyUI's machine, not one to connect to: "
            f"using {host}."
        )
    if ":" in host:  # IPv6
        host = f"[{host}]"
    if port:
        host = f"{host}:{port}"
    path = parts.path.rstrip("/")
    url = f"{parts.scheme}://{host}{path}"

    sent: Dict[str, str] = {}
    if parts.username is not None or parts.password is not None:
        sent["Authorization"] = _basic_authorization(parts)
    for line in headers:
        name, value = _parse_header_flag(line)
        replaced = [other for other in sent if other.lower() == name.lower()]
        for other in replaced:
            del sent[other]
        sent[name] = value
    return Address(url, tuple(sent.items()), ca_bundle, notice)


def read_public_url(text: str) -> str:
    """The URL of --public-url, without a last slash. Raises UsageError.

    Its path is where a proxy makes the service available. The message never repeats the text.
    """
    remedy = "Example: https://gpu.example/runner"
    try:
        text.encode()  # lone surrogates are bytes of the command line that are not UTF-8
        parts = urllib.parse.urlsplit(text)
        _ = parts.port  # raises for one that is not a number
    except ValueError:
        raise UsageError("The host or port of --public-url is not valid.", remedy) from None

    is_http = parts.scheme in ("http", "https")
    has_odd_characters = re.search(r"""[\s\x00-\x1f\x7f"'<>\\]""", text)
    if not is_http or not parts.hostname or has_odd_characters:
        raise UsageError("--public-url must be an http:// or https:// URL with a host.", remedy)
    if "@" in parts.netloc or "?" in text or "#" in text:
        message = "--public-url must not have a user, a password, a ? or a #."
        raise UsageError(message, remedy)
    host_and_port = parts.netloc.lower()
    path = parts.path.rstrip("/")
    return f"{parts.scheme}://{host_and_port}{path}"


def split_origin(url: str) -> Tuple[str, str]:
    """The origin of a URL, as browsers name it, and its host."""
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}", str(parts.hostname)


def _split_server_url(text: str) -> Tuple[urllib.parse.SplitResult, int]:
    """The parts of a server's URL and its port (0: the scheme's own). Raises UsageError."""
    text = text.strip()
    if "://" not in text:
        text = "http://" + text
    try:
        text.encode()  # lone surrogates are bytes of the command line that are not UTF-8
        parts = urllib.parse.urlsplit(text)
        port = parts.port or 0
    except ValueError:
        message = "The host or port in the server's URL is not valid."
        raise UsageError(message, URL_EXAMPLE) from None

    is_http = parts.scheme in ("http", "https")
    has_blanks = re.search(r"[\s\x00-\x1f\x7f]", text)  # urlsplit() drops some of them
    if not is_http or not parts.hostname or has_blanks:
        message = "The server's URL must be http:// or https:// with a host."
        raise UsageError(message, URL_EXAMPLE)
    if parts.query or parts.fragment:
        message = "The server's URL must not have a ? or a #."
        raise UsageError(message, "Pass a token with --header instead.")
    return parts, port


def _host_that_can_be_called(host: str) -> str:
    """``host``; for 0.0.0.0 and ::, which mean all addresses of this machine, the local one.

    A ComfyUI that listens everywhere prints http://0.0.0.0:8188, but Windows cannot connect to that
    address.
    """
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return host  # a name
    if not ip.is_unspecified:
        return host
    if ip.version == 6:
        return "::1"
    return "127.0.0.1"


def _basic_authorization(parts: urllib.parse.SplitResult) -> str:
    """The header for the user and password of a URL."""
    user = urllib.parse.unquote(parts.username or "")
    password = urllib.parse.unquote(parts.password or "")
    token = base64.b64encode(f"{user}:{password}".encode()).decode()
    return f"Basic {token}"


def _parse_header_flag(line: str) -> Tuple[str, str]:
    """The name and value of a "Name: value" line. Raises UsageError."""
    name, colon, value = line.partition(":")
    name = name.strip()
    value = value.strip()
    if not colon or not HEADER_NAME.fullmatch(name):
        raise UsageError(
            'A header must look like "Name: value".',
            'Example: --header "Authorization: Bearer …"',
        )
    has_control_characters = re.search(r"[\x00-\x1f\x7f]", value)
    if has_control_characters or not _is_latin_1(value):
        raise UsageError(
            f"The value of the header {name} contains characters that are not allowed in headers."
        )
    return name, value


def _is_latin_1(text: str) -> bool:
    try:
        text.encode("latin-1")
    except UnicodeEncodeError:
        return False
    return True
