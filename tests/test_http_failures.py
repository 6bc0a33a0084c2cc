"""Why a request failed, in words and with a remedy: from the exceptions of requests, and from answers."""

from __future__ import annotations

import socket
from typing import Any, Mapping

import pytest
import requests
import urllib3

from comfyui_runner.errors import ServerAnswer, UsageError
from comfyui_runner.http_failures import (
    broken_bodies,
    causes_of,
    explain_no_answer,
    explain_no_json,
    explain_status,
)

URL = "http://gpu:8188"


def wrapped(kind: Any, reason: Exception) -> BaseException:
    """An exception of requests around urllib3's, as they come."""
    pool = urllib3.HTTPConnectionPool("gpu", 8188)
    error = kind(urllib3.exceptions.MaxRetryError(pool, "/queue", reason))
    assert isinstance(error, BaseException)
    return error


@pytest.mark.parametrize(
    ("error", "message", "remedy"),
    [
        (
            requests.exceptions.SSLError("CERTIFICATE_VERIFY_FAILED"),
            "the TLS connection failed (CERTIFICATE_VERIFY_FAILED)", "REQUESTS_CA_BUNDLE",
        ),
        (
            requests.exceptions.SSLError("WRONG_VERSION_NUMBER"),
            "the TLS connection failed (WRONG_VERSION_NUMBER)", "use http:// instead",
        ),
        (
            requests.exceptions.SSLError("record layer failure"),
            "the TLS connection failed (record layer failure)", "use http:// instead",
        ),
        (
            requests.exceptions.SSLError("NO_CERTIFICATE_OR_CRL_FOUND"),
            "the TLS connection failed (NO_CERTIFICATE_OR_CRL_FOUND)", "has no certificate in PEM format",
        ),
        (
            OSError("Could not find a suitable TLS CA certificate bundle, invalid path: x.pem"),
            "the file of trusted certificates does not exist", "invalid path: x.pem",
        ),
        (requests.exceptions.SSLError("EOF"), "the TLS connection failed (EOF)", ""),
        (requests.exceptions.ReadTimeout("slow"), "no answer in time", "It may be busy"),
        (requests.exceptions.ConnectTimeout("slow"), "no answer in time", "It may be busy"),
        (
            urllib3.exceptions.ReadTimeoutError(urllib3.HTTPConnectionPool("gpu"), "/queue", "slow"),
            "no answer in time", "It may be busy",
        ),
        (
            urllib3.exceptions.ProtocolError("broken", ConnectionResetError("reset by peer")),
            "the connection broke (ConnectionResetError)", "",
        ),
        (
            wrapped(requests.exceptions.ConnectionError, socket.gaierror(-2, "Name or service not known")),
            "the host's name is not known", "--server",
        ),
        (requests.exceptions.ProxyError("no"), "the system's proxy refused the request", "NO_PROXY"),
        (
            wrapped(requests.exceptions.ConnectionError, ConnectionResetError("reset by peer")),
            "the connection broke (ConnectionResetError)", "",
        ),
        (OSError("odd"), "the connection broke (OSError)", ""),
    ],
)  # fmt: skip
def test_no_answer_says_why_and_what_to_do(error: BaseException, message: str, remedy: str) -> None:
    explained = explain_no_answer(error, URL)
    assert explained.message == f"{URL}: {message}."
    assert remedy in explained.remedy and bool(remedy) is bool(explained.remedy)
    assert not explained.refused and explained.status is None


def test_a_socks_proxy_is_named_with_the_package_that_it_needs(monkeypatch: Any) -> None:
    for name in ("ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "socks5://me:secret@proxy:1080")
    for name in ("HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    error = explain_no_answer(requests.exceptions.InvalidSchema("Missing dependencies for SOCKS support."), URL)
    assert error.message == f"{URL}: the proxy socks5://proxy:1080 needs the Python package PySocks."
    assert error.remedy == "Install it (pip install PySocks), or set NO_PROXY for this host."


def test_a_refused_connection_is_known_as_such_however_deep_it_is_wrapped() -> None:
    error = wrapped(requests.exceptions.ConnectionError, ConnectionRefusedError(111, "Connection refused"))
    explained = explain_no_answer(error, URL)
    assert explained.refused
    assert explained.message == f"{URL}: nothing listens there (connection refused)."


def test_causes_that_go_round_in_a_circle_or_on_and_on_come_to_an_end() -> None:
    first, second = ValueError("a"), KeyError("b")
    first.__cause__, second.__cause__ = second, first
    assert causes_of(first) == [first, second]
    chain: BaseException = OSError("the innermost")
    for number in range(50):
        chain = OSError(number, chain)
    assert len(causes_of(chain)) == 20


def explained_status(status: int, body: bytes = b"", headers: Mapping[str, str] = {}) -> Any:
    return explain_status(status, headers, body, url=URL, call="POST /prompt")


@pytest.mark.parametrize(
    ("status", "body", "message", "remedy"),
    [
        (401, b"", f"{URL} refuses us (HTTP 401 for POST /prompt).", '--header "Authorization'),
        (403, b"{}", f"{URL} refuses us (HTTP 403 for POST /prompt).", '--header "Authorization'),
        (407, b"", f"{URL} refuses us (HTTP 407 for POST /prompt).", '--header "Authorization'),
        (302, b"", f"{URL} redirects us to elsewhere (HTTP 302).", "Give --server the address"),
        (
            413,
            b"Maximum request body size 9 exceeded, actual body size 10",
            "The request is too large for ComfyUI (HTTP 413 for POST /prompt).",
            "--max-upload-size",
        ),
        (500, b"boom\n", f"{URL} answered HTTP 500 to POST /prompt: boom.", "ComfyUI's own console says why."),
        (404, b'{"error": 1}', f"{URL} answered HTTP 404 to POST /prompt.", ""),
        (404, b'"gone"', f"{URL} answered HTTP 404 to POST /prompt: gone.", ""),
        (418, b"\xff\x1b[31m", f"{URL} answered HTTP 418 to POST /prompt: \ufffd.", ""),
        (400, b"[" * 100000, None, ""),
    ],
)
def test_another_status_says_what_it_means(status: int, body: bytes, message: Any, remedy: str) -> None:
    error = explained_status(status, body)
    assert isinstance(error, ServerAnswer) and error.status == status
    assert message is None or error.message == message
    assert remedy in error.remedy and bool(remedy) is bool(error.remedy)


def test_the_body_of_another_status_is_kept_as_json_or_as_a_line_of_text() -> None:
    assert explained_status(400, b'{"node_errors": {}}').body == {"node_errors": {}}
    assert explained_status(400, b"two\nlines").body == "two lines"


def test_a_redirect_names_its_target() -> None:
    error = explained_status(301, headers={"Location": "https://gpu/\x1b[0m\nhere"})
    assert error.message == f"{URL} redirects us to https://gpu/ here (HTTP 301)."


@pytest.mark.parametrize(
    ("target", "is_login"),
    [
        ("/login", True),
        ("/users/sign_in", True),
        ("/signin?next=/prompt", True),
        ("/log-on", True),
        ("https://team.cloudflareaccess.com/cdn-cgi/access/login/gpu", True),
        ("https://accounts.google.com/o/oauth2/v2/auth?client_id=1", True),
        ("/oauth2/start", True),
        ("https://sso.company.example/", True),
        ("/authorize", True),
        ("https://gpu:8188/prompt", False),
        ("/comfy/", False),
        ("https://authors.example/blogin", False),
    ],
)
def test_a_redirect_to_a_login_page_asks_for_a_login_not_for_another_address(target: str, is_login: bool) -> None:
    error = explained_status(302, headers={"Location": target})
    assert (error.message, error.remedy.startswith("Log in: --header")) == (
        f"{URL} wants us to log in (HTTP 302 for POST /prompt redirects us to {target})."
        if is_login
        else f"{URL} redirects us to {target} (HTTP 302).",
        is_login,
    )
    assert ("Give --server the address" in error.remedy) is not is_login


NGINX = b"<html>\r\n<head><title>%s</title></head>\r\n<body><hr><center>nginx</center></body></html>"
HTML = {"Content-Type": "text/html", "Server": "nginx/1.24.0"}
BEHIND = "Check that ComfyUI runs there"


@pytest.mark.parametrize(
    ("status", "headers", "body", "message", "remedy"),
    [
        (
            413, HTML, NGINX % b"413 Request Entity Too Large",
            "The request is too large for a proxy in front of ComfyUI "
            '(nginx/1.24.0, "413 Request Entity Too Large"): HTTP 413 for POST /prompt.',
            "client_max_body_size",
        ),
        (
            413, {}, b"Request Entity Too Large",
            "The request is too large for a proxy in front of ComfyUI: HTTP 413 for POST /prompt.",
            "does not lead through it",
        ),
        (
            403, HTML, b"",
            f"{URL} refuses us (HTTP 403 for POST /prompt): "
            "a proxy in front of ComfyUI answers (nginx/1.24.0), not ComfyUI.",
            "Or its rules forbid the request.",
        ),
        (
            403, {"Server": "Python/3.12 aiohttp/3.11"}, b"Blocked by policy",
            f"{URL} refuses us (HTTP 403 for POST /prompt): a proxy in front of ComfyUI answers, not ComfyUI.",
            '--header "Authorization',
        ),
        (
            401, HTML, b"<html>",
            f"{URL} refuses us (HTTP 401 for POST /prompt): "
            "a proxy in front of ComfyUI answers (nginx/1.24.0), not ComfyUI.",
            '--header "Authorization',
        ),
        (
            502, {}, b"",
            f"{URL} answered HTTP 502 to POST /prompt: a proxy gets no answer from the ComfyUI behind it.", BEHIND,
        ),
        (
            503, {}, b"<h1>busy</h1>",
            f"{URL} answered HTTP 503 to POST /prompt: a proxy gets no answer from the ComfyUI behind it.", BEHIND,
        ),
        (
            524, {"Server": "cloudflare"}, b"<title>a.example | 524: A timeout &amp; more</title>",
            f"{URL} answered HTTP 524 to POST /prompt: a proxy "
            '(cloudflare, "a.example | 524: A timeout & more") gets no answer from the ComfyUI behind it.',
            BEHIND,
        ),
        (
            404, {}, b"\n<!doctype html>",
            f"{URL} answered HTTP 404 to POST /prompt with a web page: "
            "a proxy or another program answers, not ComfyUI.",
            "Check the address in --server.",
        ),
        (
            500, {"Content-Type": "Text/HTML; charset=utf-8"}, b"oops",
            f"{URL} answered HTTP 500 to POST /prompt with a web page: "
            "a proxy or another program answers, not ComfyUI.",
            "Check the address in --server.",
        ),
    ],
)  # fmt: skip
def test_an_answer_of_a_proxy_is_not_taken_for_comfyuis(
    status: int, headers: Mapping[str, str], body: bytes, message: str, remedy: str
) -> None:
    error = explained_status(status, body, headers)
    assert isinstance(error, ServerAnswer) and error.from_proxy
    assert error.message == message
    assert remedy in error.remedy


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (403, b""),
        (403, b"403: Forbidden"),
        (403, b'{"error": "no"}'),
        (413, b"Maximum request body size 104857600 exceeded, actual body size 104858000"),
        (413, b"413: Request Entity Too Large"),
        (500, b"500 Internal Server Error\n\nServer got itself in trouble"),
        (404, b"404: Not Found"),
        (400, b"anything"),
    ],
)
def test_what_comfyui_itself_answers_is_not_taken_for_a_proxys(status: int, body: bytes) -> None:
    assert not explained_status(status, body).from_proxy


def test_a_web_page_in_place_of_json_is_called_one() -> None:
    page = b"<html><title>You are about to visit</title></html>"
    error = explain_no_json({}, page, URL, "/queue")
    assert error.message == (
        f'{URL} answered /queue with a web page ("You are about to visit"): a login or another program.'
    )
    assert "Log in" in error.remedy and "--server" in error.remedy
    error = explain_no_json({}, b"oops", URL, "/queue")
    assert error.message == f"{URL} answered /queue with something that is not JSON."


def test_this_program_is_not_taken_for_comfyui() -> None:
    error = explained_status(404, headers={"Server": "comfyui-workflow-runner/0.1.0"})
    assert isinstance(error, UsageError)
    assert "is this program itself" in error.message and error.remedy == "Name ComfyUI's own address."


def test_a_body_breaks_off_with_an_exception_of_urllib3_or_the_system() -> None:
    for error in (urllib3.exceptions.ProtocolError("broken"), ConnectionResetError(), TimeoutError()):
        assert isinstance(error, broken_bodies())
