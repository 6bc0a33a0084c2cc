"""Who may use the service: the rules, without a socket."""

from __future__ import annotations

import socket
from typing import Any, Dict

import pytest

from comfyui_runner.errors import UsageError
from comfyui_runner.guard import make_guard
from comfyui_runner.messages import Request
from comfyui_runner.routes import ROUTES


def request(method: str = "GET", path: str = "/queue", **headers: str) -> Any:
    sent = {"host": "127.0.0.1:8189", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return Request(method, path, {}, sent)


OPEN = make_guard("127.0.0.1", None, False, ["gpu.example"], ["https://App.example/"])


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": "localhost:8189"},
        {"host": "LocalHost"},
        {"host": "[::1]:8189"},
        {"host": "::1"},
        {"host": "192.168.1.20:8189"},
        {"host": "gpu.example:8189"},
        {"origin": "http://127.0.0.1:8189"},
        {"host": "localhost", "origin": "http://localhost", "sec_fetch_site": "same-origin"},
        {"host": "gpu.example", "origin": "https://gpu.example"},
        {"sec_fetch_site": "none"},
        {"sec_fetch_site": "same-origin", "referer": "http://127.0.0.1:8189/"},
        {"origin": "https://app.example", "sec_fetch_site": "cross-site", "referer": "https://app.example/"},
        {"purpose": "", "sec_purpose": ""},
    ],
)
def test_our_own_pages_scripts_and_those_that_are_allowed_are_let_in(headers: Dict[str, str]) -> None:
    assert OPEN.refusal(request(**headers)) is None
    assert OPEN.refusal(request("POST", "/interrupt", **headers)) is None


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"host": "evil.example"}, "foreign_host"),
        ({"host": "evil.example:8189"}, "foreign_host"),
        ({"host": "127.0.0.1.evil.example"}, "foreign_host"),
        ({"host": "localhost.evil.example"}, "foreign_host"),
        ({"host": "evil.example", "origin": "http://evil.example"}, "foreign_host"),
        ({"host": "a.gpu.example"}, "foreign_host"),
        ({"host": ""}, "foreign_host"),
        ({"host": "[evil.example]"}, "foreign_host"),
        ({"host": "evil.example:127.0.0.1"}, "foreign_host"),
        ({"origin": "http://evil.example"}, "foreign_origin"),
        ({"origin": "null"}, "foreign_origin"),
        ({"origin": ""}, "foreign_origin"),
        ({"origin": "http://127.0.0.1:3000"}, "foreign_origin"),
        ({"origin": "http://127.0.0.1:8189.evil.example"}, "foreign_origin"),
        ({"origin": "http://app.example"}, "foreign_origin"),
        ({"sec_fetch_site": "cross-site"}, "foreign_origin"),
        ({"sec_fetch_site": "same-site"}, "foreign_origin"),
        ({"sec_fetch_site": "anything new"}, "foreign_origin"),
        ({"referer": "http://evil.example/page"}, "foreign_origin"),
        ({"referer": "http://127.0.0.1:3000/"}, "foreign_origin"),
        ({"sec_purpose": "prefetch"}, "prefetch"),
        ({"sec_purpose": "prefetch;prerender"}, "prefetch"),
        ({"purpose": "prefetch"}, "prefetch"),
    ],
)
def test_a_page_of_somebody_else_may_not_even_start_a_run_by_a_picture(headers: Dict[str, str], reason: str) -> None:
    refusal = OPEN.refusal(request(**headers))
    assert refusal is not None and (refusal.http_status, refusal.type) == (403, reason)


def test_a_link_from_elsewhere_may_lead_to_the_page_and_to_nothing_else() -> None:
    elsewhere = {"sec_fetch_site": "cross-site", "referer": "https://forum.example/thread"}
    assert OPEN.refusal(request("GET", "/", **elsewhere)) is None
    for method, path in [("POST", "/"), ("GET", "/queue"), ("GET", "/status"), ("GET", "/view")]:
        assert OPEN.refusal(request(method, path, **elsewhere)) is not None
    assert OPEN.refusal(request("GET", "/", origin="http://evil.example")) is not None
    assert OPEN.refusal(request("GET", "/", host="evil.example")) is not None


def test_a_referer_that_is_not_a_url_is_foreign() -> None:
    for referer in ("http://[", "http://[::1", "//[x"):
        refusal = OPEN.refusal(request(referer=referer))
        assert refusal is not None and refusal.http_status == 403


def test_with_a_token_all_but_the_page_the_login_and_health_need_it() -> None:
    guard = make_guard("0.0.0.0", "s3cret", False, [], [])
    for method, path in [("GET", "/"), ("POST", "/login"), ("GET", "/health")]:
        assert guard.refusal(request(method, path)) is None
    for row in ROUTES:
        if row.path not in ("/", "/login", "/health"):
            refusal = guard.refusal(request(row.method, row.path))
            assert refusal is not None and refusal.http_status == 401
            assert ("WWW-Authenticate", "Bearer") in refusal.headers


@pytest.mark.parametrize(
    ("headers", "known"),
    [
        ({"authorization": "Bearer s3cret"}, True),
        ({"authorization": "bearer  s3cret "}, True),
        ({"authorization": "Bearer s3cre"}, False),
        ({"authorization": "Bearer s3cret2"}, False),
        ({"authorization": "Bearer"}, False),
        ({"authorization": "Basic s3cret"}, False),
        ({"authorization": "s3cret"}, False),
        ({"authorization": "Bearer \xff"}, False),
        ({"cookie": "comfyui_workflow_runner=s3cret"}, False),
        ({"cookie": "comfyui_workflow_runner="}, False),
        ({"cookie": "comfyui_workflow_runner=" + "0" * 64}, False),
        ({"cookie": "a=b; comfyui_workflow_runner=COOKIE; c=d"}, True),
        ({"cookie": "x_comfyui_workflow_runner=COOKIE"}, False),
    ],
)
def test_the_token_is_taken_as_bearer_or_as_the_cookie_of_the_login(headers: Dict[str, str], known: bool) -> None:
    guard = make_guard("0.0.0.0", "s3cret", False, [], [])
    headers = {name: value.replace("COOKIE", guard.cookie_value()) for name, value in headers.items()}
    assert (guard.refusal(request(**headers)) is None) is known
    assert "s3cret" not in guard.cookie_value()


def test_nobody_knows_a_token_where_there_is_none() -> None:
    assert not OPEN.is_token("")
    assert not OPEN.is_token("None")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.20", "gpu.example"])
def test_another_address_needs_a_token_or_a_spoken_no(host: str) -> None:
    with pytest.raises(UsageError, match="needs a token"):
        make_guard(host, None, False, [], [])
    assert make_guard(host, None, True, [], []).token is None
    names = make_guard(host, "t", False, ["More.example"], []).hosts
    assert {"localhost", host, socket.gethostname().lower(), "more.example"} <= names


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "::1"])
def test_an_address_of_this_machine_alone_needs_none(host: str) -> None:
    assert make_guard(host, None, False, [], []).token is None


def test_pages_of_allowed_origins_may_read_the_answers() -> None:
    assert OPEN.cors_headers(request(origin="https://app.example")) == (
        ("Access-Control-Allow-Origin", "https://app.example"),
        ("Vary", "Origin"),
    )
    for headers in ({}, {"origin": ""}, {"origin": "http://127.0.0.1:8189"}, {"origin": "http://evil.example"}):
        assert OPEN.cors_headers(request(**headers)) == ()
    assert make_guard("127.0.0.1", None, False, [], [""]).cors_headers(request()) == ()
