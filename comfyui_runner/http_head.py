"""Reading the head of an HTTP request: its first line and its headers. No socket is touched here.

A service that starts runs cannot use http.server's own parser: it accepts a request whose head was
cut off by the end of the connection, and picks one of two Content-Lengths. Here, what cannot be
read with certainty is refused and the connection is closed, because it is then not certain either
where the next request begins (RFC 9112, section 11.2: request smuggling).
"""

from __future__ import annotations

import re
import urllib.parse
from typing import Callable, Dict, Iterator, NamedTuple, Tuple

from comfyui_runner.messages import HttpError, Request, is_header_value, is_http_token

#: The size of a head, including its empty line, and the number of its headers.
MAX_HEAD_BYTES = 65536
MAX_HEADERS = 100

HTTP_VERSIONS = ("HTTP/1.1", "HTTP/1.0")

#: Headers that decide where a request goes and where it ends. Where one appears twice, nobody knows
#: which of the two a proxy has followed.
SINGLE_HEADERS = ("host", "content-length", "transfer-encoding")

#: Any characters but spaces and control characters.
_is_target = re.compile(r"[\x21-\x7e\x80-\xff]+").fullmatch

#: The scheme and the host of a target that is a whole URL.
_ORIGIN = re.compile(r"(?i)^https?://[\w.:-]+(?=[/?]|$)")

#: Every route exists with "/api" before it too, as in ComfyUI (server.py).
_API_PREFIX = re.compile("^/api(?=/|$)")

_is_length = re.compile(r"[0-9]{1,18}").fullmatch


def bad_request(message: str) -> HttpError:
    """The answer to a head that cannot be read with certainty."""
    return HttpError(400, "bad_request", message)


class HeadCutOff(ConnectionError):
    """The connection ended before the head did."""


class Head(NamedTuple):
    """A request, the length of its body in bytes, and whether more requests may follow."""

    request: Request
    body_length: int
    keeps_alive: bool


def parse_head(read_line: Callable[[int], bytes]) -> Head:
    """Read one head, line by line, up to its empty line.

    ``read_line(limit)`` returns the next line with its end, the first ``limit`` bytes of a longer
    one, or what came before the end of the connection, as a file's readline() does.

    Raises HttpError (400, 411 or 431) for a head that is refused, with its request if that can be
    read, and HeadCutOff where the connection ends before the head.
    """
    lines = _read_head_lines(read_line)
    method, target, version = _parse_request_line(next(lines, ""))
    headers: Dict[str, str] = {}
    for line in lines:
        name, value = _parse_header_line(line)
        _add_header(headers, name, value)

    path, query = _parse_target(target)
    request = Request(method, path, query, headers)
    try:
        body_length = _body_length(headers)
    except HttpError as error:
        error.request = request  # the answer is in the shape that its route has for errors
        raise
    return Head(request, body_length, _keeps_alive(version, headers))


def _read_head_lines(read_line: Callable[[int], bytes]) -> Iterator[str]:
    """The lines before the empty one, without their ends."""
    bytes_left = MAX_HEAD_BYTES
    most_lines = 1 + MAX_HEADERS + 1  # the first line, the headers, the empty line
    for _ in range(most_lines):
        line = read_line(bytes_left + 1)
        if len(line) > bytes_left:
            break
        if not line.endswith(b"\n"):
            raise HeadCutOff
        bytes_left -= len(line)

        # A line ends with CR LF; LF alone is taken as well (RFC 9112, section 2.2). Any other CR is
        # a control character, which the callers refuse: for some, "\r\r\n" ends the head.
        line = line[:-1]
        if line.endswith(b"\r"):
            line = line[:-1]
        if not line:
            return
        yield line.decode("latin-1")
    raise HttpError(431, "head_too_large", "The head of the request is too large.")


def _parse_request_line(line: str) -> Tuple[str, str, str]:
    """Method, target and version."""
    words = line.split(" ")
    if len(words) != 3 or words[2] not in HTTP_VERSIONS:
        raise bad_request("The first line is not a request of HTTP/1.1.")
    method, target, version = words
    if not is_http_token(method) or not _is_target(target):
        raise bad_request("The first line has characters that HTTP forbids.")
    return method, target, version


def _parse_header_line(line: str) -> Tuple[str, str]:
    """The name of a header in lower case, and its value."""
    name, colon, value = line.partition(":")
    if not colon or not is_http_token(name):
        raise bad_request("A line of the head is not a header.")
    value = value.strip(" \t")
    if not is_header_value(value):
        raise bad_request(f"The header {name} has a control character.")
    return name.lower(), value


def _add_header(headers: Dict[str, str], name: str, value: str) -> None:
    """Put a header into ``headers``. Values of the same name become a list (RFC 9110, 5.3)."""
    if name not in headers:
        headers[name] = value
        return
    if name in SINGLE_HEADERS:
        raise bad_request(f"The header {name} appears twice.")
    if name == "cookie":
        headers[name] += f"; {value}"
    else:
        headers[name] += f", {value}"


def _parse_target(target: str) -> Tuple[str, Dict[str, str]]:
    """The path, without "/api" before it, and the query of a target."""
    # Clients send proxies the whole URL (RFC 9112, section 3.2.2).
    target = _ORIGIN.sub("", target)
    path, _, query = target.partition("?")
    if not path.startswith("/"):
        raise bad_request("The request has no path.")
    path = _API_PREFIX.sub("", path) or "/"
    parameters = urllib.parse.parse_qsl(query, keep_blank_values=True, errors="replace")
    return path, dict(parameters)


def _body_length(headers: Dict[str, str]) -> int:
    """The length of the body in bytes. Raises HttpError where Content-Length does not state it."""
    if "transfer-encoding" in headers:
        raise HttpError(411, "length_required", "Send a Content-Length, not a chunked body.")
    length = headers.get("content-length", "0")
    if not _is_length(length):
        raise bad_request("Content-Length must be a number.")
    return int(length)


def _keeps_alive(version: str, headers: Dict[str, str]) -> bool:
    """Whether the client wants to use the connection again (RFC 9112, section 9.3)."""
    wish = headers.get("connection", "").lower()
    if "close" in wish:
        return False
    return version == "HTTP/1.1" or "keep-alive" in wish
