"""Reading the head of an HTTP request: its first line and its headers. No socket is touched here.

http.server's own reading will not do for a service that starts runs: it runs a request whose head
was cut off by the end of the connection, and takes one of two Content-Lengths. What cannot be read
with certainty is refused, and the connection is closed, because where the next request begins is
then not certain either (RFC 9112, section 11.2: request smuggling).
"""

from __future__ import annotations

import re
import urllib.parse
from typing import Callable, Dict, Iterator, NamedTuple, Tuple

from comfyui_runner.messages import HttpError, Request, is_header_value, is_http_token

#: Bytes of a head, its empty line included, and the number of its headers.
MAX_HEAD_BYTES, MAX_HEADERS = 65536, 100

#: Headers that decide where a request goes and where it ends: two of one kind cannot both be right.
SINGLE_HEADERS = ("host", "content-length", "transfer-encoding")

#: What a target may have: no control characters and no spaces.
_is_target = re.compile(r"[\x21-\x7e\x80-\xff]+").fullmatch

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

    ``read_line(limit)`` returns the next line with its end, or the first ``limit`` bytes of a
    longer one, or what came before the end of the connection: readline() of a file does.

    Raises HttpError (400, 411 or 431) for a head that cannot be followed, with its request if that
    can be read, and HeadCutOff for one that does not end.
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
    for _ in range(1 + MAX_HEADERS + 1):  # the first line, the headers, the empty line
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
    if len(words) != 3 or words[2] not in ("HTTP/1.1", "HTTP/1.0"):
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
    """Put a header into ``headers``. One that is there already becomes a list (RFC 9110, 5.3)."""
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
    # a proxy may be sent the whole URL (RFC 9112, section 3.2.2)
    target = re.sub(r"(?i)^https?://[\w.:-]+(?=[/?]|$)", "", target)
    path, _, query = target.partition("?")
    if not path.startswith("/"):
        raise bad_request("The request has no path.")
    path = re.sub("^/api(?=/|$)", "", path) or "/"
    return path, dict(urllib.parse.parse_qsl(query, keep_blank_values=True, errors="replace"))


def _body_length(headers: Dict[str, str]) -> int:
    """The length of the body in bytes. Raises HttpError where it is not given as a number."""
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
