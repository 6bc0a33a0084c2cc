"""Uploads and GET /view: what is passed on and what is refused, without a socket."""

from __future__ import annotations

import socketserver
from typing import Any, List, Optional, Tuple

import pytest

from comfyui_runner.addresses import parse_address
from comfyui_runner.errors import ServerAnswer, ServerUnreachable
from comfyui_runner.messages import HttpError, Request
from comfyui_runner.server import Server
from comfyui_runner.service_files import (
    keep_to_length,
    open_view,
    require_form,
    upload_refusal,
    view_answer_headers,
    view_query,
    view_refusal,
    view_request_headers,
)


def request(headers: Any = (), **query: str) -> Request:
    return Request("GET", "/view", query, dict(headers))


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"filename": ""},
        {"filename": "/etc/passwd"},
        {"filename": "../secret.txt"},
        {"filename": "a\\..\\secret.txt"},
        {"filename": "a\0.png"},
        {"filename": "a.png", "subfolder": "\0"},
    ],
)
def test_a_name_that_leads_elsewhere_is_not_even_passed_on(query: Any) -> None:
    with pytest.raises(HttpError) as caught:
        view_query(request(**query))
    assert (caught.value.http_status, caught.value.type) == (400, "wrong_filename")


def test_only_comfyuis_own_parameters_are_passed_on() -> None:
    theirs = {"filename": "a.png", "subfolder": "b", "type": "temp", "preview": "webp", "channel": "rgb"}
    assert view_query(request(**theirs, download="1", prompt_id="x", token="y")) == theirs


def test_only_ranges_and_what_the_client_has_are_passed_on() -> None:
    headers = {"range": "bytes=0-1", "if-range": "x", "if-none-match": "y", "cookie": "z", "accept-encoding": "gzip"}
    assert view_request_headers(request(headers)) == {
        "Range": "bytes=0-1",
        "If-Range": "x",
        "If-None-Match": "y",
        "Accept-Encoding": "identity",
    }


def test_the_client_gets_lengths_and_a_name_and_nothing_else() -> None:
    theirs = {"Content-Length": "7", "ETag": "x", "Set-Cookie": "secret", "Content-Disposition": "theirs"}
    assert view_answer_headers(theirs, 'a/b\\狐 "c".png', "inline") == (
        ("Content-Length", "7"),
        ("ETag", "x"),
        ("Content-Disposition", "inline; filename=\"_ _c_.png\"; filename*=UTF-8''%E7%8B%90%20%22c%22.png"),
    )


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [(400, 400), (403, 400), (404, 404), (416, 416), (401, 503), (500, 503)],
)
def test_why_there_is_no_file(theirs: int, ours: int) -> None:
    refusal = view_refusal(ServerAnswer("It failed.", status=theirs))
    assert refusal.http_status == ours
    assert (refusal.message == "It failed.") is (ours == 503)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [(400, 400), (403, 400), (413, 413), (500, 400), (401, None), (404, None), (503, None)],
)
def test_why_an_upload_is_not_taken(theirs: int, ours: Optional[int]) -> None:
    refusal = upload_refusal(ServerAnswer("It failed.", status=theirs))
    assert (refusal and (refusal.http_status, refusal.type)) == (ours and (ours, "not_uploaded"))


def test_what_a_proxy_refuses_is_not_blamed_on_the_file() -> None:
    def by_proxy(status: int) -> ServerAnswer:
        return ServerAnswer("A proxy refuses.", "Ask it.", status=status, from_proxy=True)

    refusal = upload_refusal(by_proxy(413))
    assert refusal is not None
    assert (refusal.http_status, refusal.message) == (413, "A proxy refuses. Ask it.")
    assert upload_refusal(by_proxy(403)) is None
    assert (view_refusal(by_proxy(403)).http_status, view_refusal(by_proxy(403)).message) == (503, "A proxy refuses.")


@pytest.mark.parametrize(
    ("content_type", "taken"),
    [
        ("multipart/form-data; boundary=x", True),
        ("Multipart/Form-Data;boundary=X", True),
        ("multipart/form-database", False),
        ("image/png", False),
        ("", False),
        ("x multipart/form-data", False),
    ],
)
def test_an_upload_is_a_form(content_type: str, taken: bool) -> None:
    headers: Tuple[Any, ...] = (("content-type", content_type),)
    if taken:
        assert require_form(request(headers)) == content_type
    else:
        with pytest.raises(HttpError, match="multipart"):
            require_form(request(headers))


@pytest.mark.parametrize("length", [5, None])
def test_a_body_of_its_stated_length_is_passed_on(length: Optional[int]) -> None:
    assert list(keep_to_length([b"hel", b"lo"], length)) == [b"hel", b"lo"]


@pytest.mark.parametrize("length", [2, 4, 6])
def test_no_more_than_the_stated_length_is_passed_on_and_no_less(length: int) -> None:
    """A client would take what is too much for the next answer, or wait for what is missing."""
    passed_on: List[bytes] = []
    with pytest.raises(ServerUnreachable):
        passed_on.extend(keep_to_length([b"hel", b"lo"], length))
        pytest.fail(f"{passed_on} was passed on")
    assert sum(map(len, passed_on)) <= length


def test_a_length_beside_chunks_is_not_passed_on(serve_tcp: Any) -> None:
    """The chunks would be longer: a second answer of ComfyUI's own making, with a script in it."""
    smuggled = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<script>"

    class Hostile(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            list(iter(self.rfile.readline, b"\r\n"))
            self.wfile.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 5\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n%x\r\nhello%b\r\n0\r\n\r\n" % (5 + len(smuggled), smuggled)
            )

    server = Server(parse_address(f"http://127.0.0.1:{serve_tcp(Hostile)}"))
    response = open_view(request(filename="a.png"), server)
    assert response.ends_with_connection
    assert response.stream is not None
    pieces: List[bytes] = []
    response.stream(pieces.append)
    assert b"".join(pieces) == b"hello" + smuggled
