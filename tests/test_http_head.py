"""Reading the head of a request: bytes in, a request or an error out."""

from __future__ import annotations

import io
from typing import Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import few

from comfyui_runner.http_head import MAX_HEAD_BYTES, MAX_HEADERS, Head, HeadCutOff, parse_head
from comfyui_runner.messages import HttpError, Request

HOST = b"Host: localhost\r\n"


def parse(data: bytes) -> Head:
    return parse_head(io.BytesIO(data).readline)


def get(headers: bytes = b"", target: bytes = b"/") -> Head:
    return parse(b"GET " + target + b" HTTP/1.1\r\n" + HOST + headers + b"\r\n")


def refusal(data: bytes) -> Tuple[int, str]:
    """Status and message of the error that a head leads to."""
    with pytest.raises(HttpError) as caught:
        parse(data)
    return caught.value.http_status, caught.value.message


def refused_headers(headers: bytes) -> Tuple[int, str]:
    return refusal(b"POST / HTTP/1.1\r\n" + HOST + headers + b"\r\n")


def test_a_request_with_headers_query_and_body() -> None:
    head = parse(b"POST /upload/image?node_id=7&type= HTTP/1.1\r\nHost: a:1\r\nCONTENT-length: 12\r\n\r\nthe body")
    request = Request("POST", "/upload/image", {"node_id": "7", "type": ""}, {"host": "a:1", "content-length": "12"})
    assert head == Head(request, 12, True)


def test_only_the_head_is_read() -> None:
    file = io.BytesIO(b"GET / HTTP/1.1\r\n\r\nwhat follows\r\n\r\n")
    parse_head(file.readline)
    assert file.read() == b"what follows\r\n\r\n"


def test_lines_may_end_with_lf_alone() -> None:
    assert parse(b"GET /status HTTP/1.1\nHost: a\n\n").request == Request("GET", "/status", {}, {"host": "a"})


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/status", "/status"),
        (b"/api/status", "/status"),
        (b"/api", "/"),
        (b"/api/", "/"),
        (b"/api/api/x", "/api/x"),
        (b"/apis", "/apis"),
        (b"http://localhost:8189/status", "/status"),
        (b"HTTPS://gpu.example/api/status?x=1", "/status"),
        (b"//evil.example/x", "//evil.example/x"),
        (b"/%2e%2E/a%20b", "/%2e%2E/a%20b"),
        (b"/\xe7\x8b\x90", "/ç\x8b\x90"),
    ],
)
def test_the_path_of_a_target(target: bytes, path: str) -> None:
    assert get(target=target).request.path == path


@pytest.mark.parametrize("target", [b"*", b"queue", b"http://[", b"http://localhost", b"http://localhost?x", b"?x=1"])
def test_a_target_without_a_path_is_refused(target: bytes) -> None:
    assert refusal(b"GET " + target + b" HTTP/1.1\r\n\r\n") == (400, "The request has no path.")


def test_the_query_keeps_empty_values_and_replaces_what_is_not_utf_8() -> None:
    assert get(target=b"/view?a=1&b=&c=%ff&d=x+y&a=2").request.query == {"a": "2", "b": "", "c": "�", "d": "x y"}


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b"X: a", "a"),
        (b"X:a", "a"),
        (b"X: \t a b\t \t", "a b"),
        (b"X:", ""),
        (b"X: a: b", "a: b"),
        (b"X: \xc2\xa0a\xc2\xa0", "Â\xa0aÂ\xa0"),  # a space that is not stripped
        (b"X: a\tb", "a\tb"),
    ],
)
def test_spaces_and_tabs_around_a_value_are_no_part_of_it(line: bytes, value: str) -> None:
    assert get(line + b"\r\n").request.headers["x"] == value


@pytest.mark.parametrize("character", [*range(9), *range(11, 32), 127])
def test_control_characters_are_refused(character: int) -> None:
    odd = bytes([character])
    for value in (odd, b"a" + odd + b"b", b"a " + odd):
        assert refused_headers(b"X: " + value + b"\r\n") == (400, "The header X has a control character.")
    assert refused_headers(b"X" + odd + b": a\r\n")[0] == 400
    assert refusal(b"GET /" + odd + b" HTTP/1.1\r\n\r\n")[0] == 400


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n",
    ],
)
def test_a_carriage_return_more_is_not_an_end_of_line(data: bytes) -> None:
    assert refusal(data)[0] == 400


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\r",
        b"rubbish",
        b"GET /",
        b"GET / HTTP/2.0",
        b"GET / HTTP/1.1 ",
        b" GET / HTTP/1.1",
        b"GET  / HTTP/1.1",
        b"GET /a b HTTP/1.1",
        b"GET\t/\tHTTP/1.1",
        b"GET / http/1.1",
        b"G(T / HTTP/1.1",
        b"\x16\x03\x01\x02\x00\x01\x00 / HTTP/1.1",
        b"GET /\t HTTP/1.1",
    ],
)
def test_what_is_not_a_request_of_http_1_1_is_refused(line: bytes) -> None:
    status, message = refusal(line + b"\r\n\r\n")
    assert status == 400 and message.startswith("The first line ")


@pytest.mark.parametrize(
    "line", [b"no colon", b": a", b" X: a", b"X : a", b"X\t: a", b"X y: a", b" folded", b"X\xe4: a"]
)
def test_what_is_not_a_header_is_refused(line: bytes) -> None:
    assert refused_headers(b"First: a\r\n" + line + b"\r\n") == (400, "A line of the head is not a header.")


def test_headers_that_appear_twice_are_one_list() -> None:
    headers = get(b"Accept: a\r\nCookie: b=1\r\naccept: c\r\ncookie: d=2\r\n").request.headers
    assert (headers["accept"], headers["cookie"]) == ("a, c", "b=1; d=2")


@pytest.mark.parametrize(
    ("line", "name"),
    [
        (b"host: evil.example\r\n", "host"),
        (b"Content-Length: 2\r\nContent-Length: 2\r\n", "content-length"),
        (b"Content-Length: 2\r\ncontent-length: 0\r\n", "content-length"),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "transfer-encoding"),
    ],
)
def test_two_headers_that_decide_where_a_request_ends_are_refused(line: bytes, name: str) -> None:
    assert refused_headers(line) == (400, f"The header {name} appears twice.")


@pytest.mark.parametrize("length", [b"0", b"00", b"7", b"9" * 18])
def test_the_length_of_the_body(length: bytes) -> None:
    assert get(b"Content-Length: " + length + b"\r\n").body_length == int(length)


@pytest.mark.parametrize("length", [b"", b"-1", b"+1", b"1.0", b"0x10", b"2, 2", b"1 2", b"two", b"\xb2", b"9" * 19])
def test_a_length_that_is_not_a_number_is_refused(length: bytes) -> None:
    assert refused_headers(b"Content-Length: " + length + b"\r\n") == (400, "Content-Length must be a number.")


@pytest.mark.parametrize("encoding", [b"chunked", b"gzip", b"identity", b""])
def test_a_body_without_a_length_is_refused(encoding: bytes) -> None:
    for more in (b"", b"Content-Length: 5\r\n"):
        assert refused_headers(b"Transfer-Encoding: " + encoding + b"\r\n" + more)[0] == 411


@pytest.mark.parametrize(
    ("version", "connection", "keeps_alive"),
    [
        (b"1.1", b"", True),
        (b"1.1", b"Connection: close\r\n", False),
        (b"1.1", b"Connection: Keep-Alive, CLOSE\r\n", False),
        (b"1.1", b"Connection: keep-alive\r\n", True),
        (b"1.0", b"", False),
        (b"1.0", b"Connection: Keep-Alive\r\n", True),
        (b"1.0", b"Connection: close\r\n", False),
    ],
)
def test_whether_the_connection_stays_open(version: bytes, connection: bytes, keeps_alive: bool) -> None:
    assert parse(b"GET / HTTP/" + version + b"\r\n" + connection + b"\r\n").keeps_alive is keeps_alive


def test_100_headers_are_read_and_no_more() -> None:
    first, header = b"GET / HTTP/1.1\r\n", b"X: y\r\n"
    assert parse(first + header * MAX_HEADERS + b"\r\n").request.headers["x"].count("y") == MAX_HEADERS
    assert refusal(first + header * (MAX_HEADERS + 1) + b"\r\n")[0] == 431


@pytest.mark.parametrize("spare", [0, 1])
def test_64_kib_are_read_and_no_more(spare: int) -> None:
    first, last = b"GET / HTTP/1.1\r\nX: ", b"\r\n\r\n"
    fits = first + b"y" * (MAX_HEAD_BYTES - len(first + last) - spare) + last
    assert parse(fits).request.headers["x"].strip("y") == ""
    assert refusal(fits.replace(b"yy", b"yyyy", 1))[0] == 431
    assert refusal(b"GET /" + b"y" * MAX_HEAD_BYTES)[0] == 431  # before the end of the line has come


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"G",
        b"GET /queue HTTP/1.1",
        b"GET /queue HTTP/1.1\r",
        b"GET /queue HTTP/1.1\r\n",
        b"GET /queue HTTP/1.1\r\nHost: localhost",
        b"GET /queue HTTP/1.1\r\nHost: localhost\r\n",
        b"GET /queue HTTP/1.1\r\nHost: localhost\r\n\r",
    ],
)
def test_a_head_that_does_not_end_is_not_a_request(data: bytes) -> None:
    with pytest.raises(HeadCutOff):
        parse(data)


@few
@given(st.binary(max_size=60).map(lambda data: data + b"\r\n\r\n"))
def test_nothing_but_a_request_or_a_refusal_comes_of_odd_bytes(data: bytes) -> None:
    try:
        assert parse(data).request.path.startswith("/")
    except HttpError as error:
        assert error.http_status in (400, 411)
