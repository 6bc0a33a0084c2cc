"""Why a request failed, in words and with a remedy: from the exceptions of requests, and from answers."""

from __future__ import annotations

import socket
from typing import Any, Mapping

import pytest
import requests
import urllib3

from comfyui_runner.errors import ServerAnswer, UsageError
from comfyui_runner.http_failures import causes_of, explain_no_answer, explain_status

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
            wrapped(requests.exceptions.ConnectionError, socket.gaierror(-2, "Name or service not known")),
            "the host's name is not known", "--server",
        ),
        (requests.exceptions.ProxyError("no"), "the proxy of the system refuses", "NO_PROXY"),
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
        (401, b"", f"{URL} refuses us (HTTP 401 for POST /prompt).", "--header 'Authorization"),
        (403, b"{}", f"{URL} refuses us (HTTP 403 for POST /prompt).", "--header 'Authorization"),
        (407, b"", f"{URL} refuses us (HTTP 407 for POST /prompt).", "--header 'Authorization"),
        (302, b"", f"{URL} redirects us to elsewhere (HTTP 302).", "Give --server the address"),
        (413, b"too much", "The request is too large for ComfyUI (HTTP 413 for POST /prompt).", "--max-upload-size"),
        (500, b"boom\n", f"{URL} answered HTTP 500 to POST /prompt: boom.", "ComfyUI's own console says why."),
        (503, b"<h1>busy</h1>", f"{URL} answered HTTP 503 to POST /prompt.", ""),
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
    error = explained_status(301, headers={"Location": "https://gpu/\x1b[0m\nlogin"})
    assert error.message == f"{URL} redirects us to https://gpu/ login (HTTP 301)."


def test_this_program_is_not_taken_for_comfyui() -> None:
    error = explained_status(404, headers={"Server": "comfyui-workflow-runner/0.1.0"})
    assert isinstance(error, UsageError)
    assert "is this program itself" in error.message and error.remedy == "Name ComfyUI's own address."
