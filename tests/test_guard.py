"""Who may use the service: the rules, without a socket."""

from __future__ import annotations

import contextlib
import socket
import time
import urllib.parse
from typing import Any, Dict

import pytest

from comfyui_runner.errors import UsageError
from comfyui_runner.guard import FailedGuesses, make_guard, starts_or_changes, too_many_guesses, url_of_host
from comfyui_runner.messages import HttpError, Request
from comfyui_runner.routes import ROUTES


def request(method: str = "GET", path: str = "/queue", **headers: str) -> Any:
    sent = {"host": "127.0.0.1:8189", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return Request(method, path, {}, sent)


OPEN = make_guard("127.0.0.1", None, False, ["gpu.example", "192.168.1.20"], ["https://App.example/"])


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": "localhost:8189"},
        {"host": "LocalHost"},
        {"host": "[::1]:8189"},
        {"host": "::1"},
        {"host": "127.0.0.53:8189"},
        {"host": "GPU.example:8189"},
        {"host": "192.168.1.20:8189"},
        {"host": "LOCALHOST:8189", "origin": "http://localhost:8189"},
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
        ({"host": "0.0.0.0:8189"}, "foreign_host"),
        ({"host": "[::]:8189"}, "foreign_host"),
        ({"host": "[::ffff:127.0.0.1]:8189"}, "foreign_host"),
        ({"host": "[::ffff:7f00:1]:8189"}, "foreign_host"),
        ({"host": "192.168.1.21:8189"}, "foreign_host"),
        ({"host": "[::1%eth0]:8189"}, "foreign_host"),
        ({"host": "[localhost]:8189"}, "foreign_host"),
        ({"host": "[127.0.0.1]:8189"}, "foreign_host"),
        ({"host": "localhost:"}, "foreign_host"),
        ({"host": "localhost:80x"}, "foreign_host"),
        ({"host": "localhost:evil.example"}, "foreign_host"),
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
        ({"purpose": "Prefetch"}, "prefetch"),
        ({"sec_purpose": "PREFETCH;anonymous-client-ip"}, "prefetch"),
        ({"x_moz": "prefetch"}, "prefetch"),
        ({"x_purpose": "preview"}, "prefetch"),
    ],
)
def test_a_page_of_somebody_else_may_not_even_start_a_run_by_a_picture(headers: Dict[str, str], reason: str) -> None:
    refusal = OPEN.refusal(request(**headers))
    assert refusal is not None and (refusal.http_status, refusal.type) == (403, reason)


def test_a_request_without_host_gets_400() -> None:
    refusal = OPEN.refusal(Request("GET", "/status", {}, {}))
    assert refusal is not None and refusal.http_status == 400


@pytest.mark.parametrize(
    ("bound", "answers", "refuses"),
    [
        ("127.0.0.1", "127.0.0.1 127.1.2.3 localhost [::1]", "192.168.1.20 0.0.0.0 [::ffff:127.0.0.1]"),
        ("LocalHost", "127.0.0.1 localhost", "192.168.1.20 0.0.0.0"),
        ("192.168.1.20", "192.168.1.20 127.0.0.1 localhost [::1]", "192.168.1.21 0.0.0.0 [::ffff:192.168.1.20]"),
        ("fe80:0::1%eth0", "[fe80::1] [FE80:0:0::1] 127.0.0.1", "[fe80::2] [::] 10.0.0.1"),
        ("gpu.example", "gpu.example 127.0.0.1", "evil.example 10.0.0.1"),
        ("0.0.0.0", "10.0.0.1 [fe80::1] 127.0.0.1 localhost", "0.0.0.0 [::] [::ffff:10.0.0.1] evil.example"),
        ("::", "10.0.0.1 [2001:db8::1] [::1]", "0.0.0.0 [::] [::ffff:10.0.0.1] evil.example"),
    ],
)
def test_the_service_answers_to_where_it_listens(bound: str, answers: str, refuses: str) -> None:
    guard = make_guard(bound, None, True, [], [])
    for host in answers.split():
        assert guard.refusal(request(host=f"{host}:8189")) is None, host
    for host in refuses.split():
        refusal = guard.refusal(request(host=f"{host}:8189"))
        assert refusal is not None and refusal.type == "foreign_host", host
        assert "--allow-host" in refusal.message


def test_addresses_can_be_allowed_and_what_is_neither_name_nor_address_is_a_usage_error() -> None:
    guard = make_guard("127.0.0.1", None, False, ["172.17.0.2", "[FE80::1]", "WSL.local"], [])
    for host in ("172.17.0.2:8189", "[fe80::1]:8189", "wsl.LOCAL"):
        assert guard.refusal(request(host=host)) is None
    for odd in ("", "http://gpu.example", "[gpu.example]", "a:b"):
        with pytest.raises(UsageError, match="--allow-host"):
            make_guard("127.0.0.1", None, False, [odd], [])


# -- browsers ------------------------------------------------------------------------------------------

CHROMIUM = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36"
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
POWERSHELL = "Mozilla/5.0 (Windows NT; Windows NT 10.0; de-DE) WindowsPowerShell/5.1.22621.2506"
STARTS_OR_CHANGES = [(row.method, row.path) for row in ROUTES if row.method != "GET" or row.path == "/queue"]

LAN = make_guard("0.0.0.0", None, True, [], ["https://app.example"])


def browser(method: str, path: str, **headers: str) -> Any:
    """What a browser sends in any case, and ``headers``."""
    return request(method, path, **{"user_agent": CHROMIUM, "accept_language": "en", **headers})


@pytest.mark.parametrize("user_agent", [CHROMIUM, FIREFOX])
@pytest.mark.parametrize(
    "headers",
    [
        {},  # <img referrerpolicy=no-referrer> where the address is not one to trust
        {"host": "192.168.1.20:8189"},
        {"host": "192.168.1.20:8189", "sec_fetch_site": "none"},  # its address bar, behind TLS
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"sec_fetch_site": ""},
        {"sec_fetch_site": "cross-site", "origin": "null"},  # a page of file://, a sandbox
        {"origin": "http://evil.example"},
        {"referer": "http://evil.example/"},
        {"accept_language": ""},  # fetch() may empty it, but not leave it out
    ],
)
def test_a_browser_that_does_not_come_from_our_page_starts_and_changes_nothing(
    user_agent: str, headers: Dict[str, str]
) -> None:
    for method, path in STARTS_OR_CHANGES:
        refusal = LAN.refusal(browser(method, path, user_agent=user_agent, **headers))
        assert refusal is not None and (refusal.http_status, refusal.type) == (403, "foreign_origin")
    assert "open the page" in str(LAN.refusal(browser("GET", "/queue")))


@pytest.mark.parametrize(
    "headers",
    [
        {"sec_fetch_site": "same-origin"},
        {"sec_fetch_site": "same-origin", "origin": "http://127.0.0.1:8189", "referer": "http://127.0.0.1:8189/"},
        {"sec_fetch_site": "none"},  # typed into the address bar
        {"sec_fetch_site": "none", "host": "localhost:8189"},
        {"host": "192.168.1.20:8189", "origin": "http://192.168.1.20:8189"},  # no Sec-Fetch-Site without TLS
        {"host": "192.168.1.20:8189", "referer": "http://192.168.1.20:8189/"},
        {"origin": "https://app.example", "sec_fetch_site": "cross-site"},
    ],
)
def test_a_browser_that_shows_our_page_or_an_allowed_one_may(headers: Dict[str, str]) -> None:
    for method, path in STARTS_OR_CHANGES:
        assert LAN.refusal(browser(method, path, **headers)) is None


def test_a_browser_may_look_without_saying_where_it_comes_from() -> None:
    for path in ("/", "/status", "/runs", "/view", "/events"):
        assert LAN.refusal(browser("GET", path, host="192.168.1.20:8189")) is None
    assert LAN.refusal(browser("HEAD", "/queue")) is None


@pytest.mark.parametrize(
    "headers",
    [
        {"user_agent": "curl/8.5.0"},
        {"user_agent": POWERSHELL},
        {"user_agent": POWERSHELL, "accept_language": "de"},
        {"user_agent": "Mozilla/5.0 (Windows NT 10.0; de-DE) PowerShell/7.4.1", "accept_language": "de"},
        {"user_agent": "axios/1.7.2"},
        {"user_agent": "python-requests/2.32.3"},
        {"user_agent": "node", "accept_language": "*", "sec_fetch_mode": "cors"},  # fetch() of Node.js
        {"user_agent": "Deno/2.1.0", "accept_language": "*"},
        {"user_agent": CHROMIUM},  # a program that calls itself a browser
    ],
)
def test_programs_need_no_page(headers: Dict[str, str]) -> None:
    for method, path in STARTS_OR_CHANGES:
        assert OPEN.refusal(request(method, path, **headers)) is None


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
        ({"cookie": "NAME=s3cret"}, False),
        ({"cookie": "NAME="}, False),
        ({"cookie": "NAME"}, False),
        ({"cookie": "NAME=" + "0" * 64}, False),
        ({"cookie": "a=b; NAME=VALUE; c=d"}, True),
        ({"cookie": "x_NAME=VALUE"}, False),
        ({"cookie": "NAME=of-another-service; NAME=VALUE"}, True),
        ({"cookie": "NAME=VALUE;NAME=0123456789abcdef"}, True),
        ({"cookie": "NAME=0; NAME=1"}, False),
    ],
)
def test_the_token_is_taken_as_bearer_or_as_the_cookie_of_the_login(headers: Dict[str, str], known: bool) -> None:
    guard = make_guard("0.0.0.0", "s3cret", False, [], [])
    if "cookie" in headers:
        headers = {"cookie": headers["cookie"].replace("NAME", guard.cookie_name())}
        headers = {"cookie": headers["cookie"].replace("VALUE", guard.cookie_value())}
    assert (guard.refusal(request(**headers)) is None) is known
    assert "s3cret" not in guard.cookie_name() + guard.cookie_value()


def refusal_type(guard: Any, sent: Any) -> str:
    refusal = guard.refusal(sent)
    assert refusal is not None
    return str(refusal.type)


def follow(target: str, method: str = "GET", **headers: str) -> Any:
    """The request of a client that was given ``target``."""
    path, _, query = target.partition("?")
    return request(method, path, **headers)._replace(query=dict(urllib.parse.parse_qsl(query)))


def test_a_signed_url_needs_no_token_for_an_hour() -> None:
    guard = make_guard("127.0.0.1", "secret", False, [], [])
    now = time.time()
    target = guard.sign_target("/runs/a/output", {"index": "1"}, now)
    assert "secret" not in target
    assert guard.has_signature(follow(target), now + 3590)
    assert not guard.has_signature(follow(target), now + 3610)
    assert guard.refusal(follow(target)) is None
    assert guard.refusal(follow(target, "HEAD")) is None
    # a page that shows the picture says nothing but where it is from
    assert guard.refusal(follow(target, sec_fetch_site="cross-site", referer="http://chat.example/")) is None
    assert refusal_type(guard, follow(target, host="evil.example")) == "foreign_host"


@pytest.mark.parametrize(
    "change",
    [
        ("/runs/a/", "/runs/b/"),
        ("index=1", "index=2"),
        ("index=1", "index=1&as=file"),
        ("expires=", "expires=9"),
        ("signature=", "signature=0"),
        ("&signature=", "&x="),
        ("expires=", "expires=soon"),
        ("&expires=", "&x="),
    ],
)
def test_a_signed_url_is_good_for_nothing_else(change: Any) -> None:
    guard = make_guard("127.0.0.1", "secret", False, [], [])
    target = guard.sign_target("/runs/a/output", {"index": "1"}, time.time())
    assert refusal_type(guard, follow(target.replace(*change))) == "unauthorized"
    assert refusal_type(guard, follow(target, "POST")) == "unauthorized"
    restarted = make_guard("127.0.0.1", "secret", False, [], [])
    assert refusal_type(restarted, follow(target)) == "unauthorized"  # nor is it one to try tokens on


def test_where_no_token_is_needed_nothing_is_signed() -> None:
    assert OPEN.sign_target("/runs/a/output", {"index": "1"}, time.time()) == "/runs/a/output?index=1"
    forged = follow("/queue?expires=99999999999&signature=", sec_fetch_site="cross-site")
    assert refusal_type(OPEN, forged) == "foreign_origin"


def test_two_services_on_one_host_have_cookies_of_their_own() -> None:
    first, second = (make_guard("0.0.0.0", token, False, [], []) for token in ("s3cret", "0ther"))
    assert first.cookie_name() != second.cookie_name()
    both = f"{second.cookie_name()}={second.cookie_value()}; {first.cookie_name()}={first.cookie_value()}"
    assert first.has_token(request(cookie=both)) and second.has_token(request(cookie=both))


def test_each_wrong_token_is_answered_later_than_the_one_before() -> None:
    guesses = FailedGuesses()

    def delay(now: float) -> float:
        with guesses.late_answer(f"192.0.2.{now:.0f}", now) as seconds:  # all of them together
            return seconds

    assert [delay(float(now)) for now in range(9)] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert {delay(10.0) for _ in range(5000)} == {5.0}
    assert delay(69.0) == 5.0
    assert delay(200.0) == 0.05


def test_who_has_four_answers_outstanding_is_not_listened_to() -> None:
    guesses = FailedGuesses()
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            assert guesses.may_guess("192.0.2.1", 0.0)
            assert stack.enter_context(guesses.late_answer("192.0.2.1", 0.0)) > 0
        assert not guesses.may_guess("192.0.2.1", 0.0)
        assert guesses.may_guess("192.0.2.2", 0.0)
    refusal = too_many_guesses()
    assert refusal.http_status == 429 and ("Retry-After", "5") in refusal.headers
    assert guesses.may_guess("192.0.2.1", 0.0)


def test_one_machine_has_all_addresses_of_its_network() -> None:
    guesses = FailedGuesses()
    with contextlib.ExitStack() as stack:
        for number in range(4):
            stack.enter_context(guesses.late_answer(f"2001:db8::{number}%eth0", 0.0))
        assert not guesses.may_guess("2001:db8::ffff", 0.0)
        assert guesses.may_guess("2001:db8:0:1::1", 0.0)
        assert guesses.may_guess("::ffff:192.0.2.1", 0.0)


def test_of_many_guessers_each_has_one_guess_a_minute() -> None:
    guesses = FailedGuesses()
    with contextlib.ExitStack() as stack:
        for number in range(16):
            assert stack.enter_context(guesses.late_answer(f"192.0.2.{number}", 0.0)) > 0
        assert guesses.may_guess("192.0.2.99", 0.0)
        with guesses.late_answer("192.0.2.99", 0.0) as seconds:
            assert seconds == 0.0  # no more threads are held
        assert not guesses.may_guess("192.0.2.99", 59.0)
        assert guesses.may_guess("192.0.2.99", 61.0)
        assert guesses.may_guess("192.0.2.100", 59.0)
    for number in range(2000):
        with guesses.late_answer(f"10.0.{number // 256}.{number % 256}", 0.0):
            pass
    assert len(guesses._failed_at) == 1000


def test_a_session_of_this_service_is_not_a_guess() -> None:
    guard, restarted = (make_guard("0.0.0.0", "s3cret", False, [], []) for _ in range(2))
    name = guard.cookie_name()
    ours = request(cookie=f"{name}={guard.cookie_value()}")
    assert guard.has_token(ours) and not guard.carries_guess(ours)
    assert restarted.has_token(ours) and restarted.carries_guess(ours)
    assert guard.carries_guess(request(authorization="Bearer s3cret"))
    assert guard.carries_guess(request("POST", "/login"))
    assert guard.carries_guess(request(cookie=f"{name}={guard.cookie_value()[-64:]}"))
    assert not guard.carries_guess(request())
    assert not OPEN.carries_guess(request(authorization="Bearer x"))


def test_a_guess_is_a_request_with_a_wrong_token_and_not_one_without() -> None:
    guard = make_guard("0.0.0.0", "s3cret", False, [], [])
    unauthorized = HttpError(401, "unauthorized", "No.")
    assert guard.is_wrong_guess(request(authorization="Bearer x"), unauthorized)
    assert guard.is_wrong_guess(request(cookie=f"{guard.cookie_name()}=0"), unauthorized)
    assert guard.is_wrong_guess(request("POST", "/login"), HttpError(403, "wrong_token", "No."))
    assert not guard.is_wrong_guess(request(), unauthorized)
    assert not guard.is_wrong_guess(request(cookie="other=0"), unauthorized)
    assert not guard.is_wrong_guess(request(cookie="comfyui_workflow_runner_0=0"), unauthorized)
    assert not guard.is_wrong_guess(request(authorization="Bearer x"), HttpError(404, "not_found", "No."))
    assert not guard.is_wrong_guess(request(authorization="Bearer x"), KeyError())


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1:8189", "http://127.0.0.1:8189"),
        ("GPU.example", "http://gpu.example"),
        ("[::1]:8189", "http://[::1]:8189"),
        ("::1", "http://[::1]"),
        ("[0:0:0:0:0:0:0:1]", "http://[::1]"),
    ],
)
def test_the_address_by_which_a_client_reaches_the_service(host: str, url: str) -> None:
    assert url_of_host(host) == url


@pytest.mark.parametrize(
    ("method", "path", "changes"),
    [
        ("GET", "/queue", True),
        ("GET", "/status", False),
        ("HEAD", "/queue", False),
        ("OPTIONS", "/queue", False),
        ("PUT", "/workflow", True),
        ("DELETE", "/nowhere", True),
    ],
)
def test_what_is_meant_to_start_or_change_something(method: str, path: str, changes: bool) -> None:
    assert starts_or_changes(request(method, path)) is changes


def test_nobody_knows_a_token_where_there_is_none() -> None:
    assert not OPEN.is_token("")
    assert not OPEN.is_token("None")


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.20", "gpu.example", "127.evil.example", "::ffff:127.0.0.1"]
)
def test_another_address_needs_a_token_or_a_spoken_no(host: str) -> None:
    with pytest.raises(UsageError, match="needs a token"):
        make_guard(host, None, False, [], [])
    assert make_guard(host, None, True, [], []).token is None
    names = make_guard(host, "t", False, ["More.example"], []).hosts
    assert {socket.gethostname().lower(), "more.example"} <= names


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "::1"])
def test_an_address_of_this_machine_alone_needs_none(host: str) -> None:
    assert make_guard(host, None, False, [], []).token is None


def test_pages_of_allowed_origins_may_read_the_answers() -> None:
    assert OPEN.cors_headers(request(origin="https://app.example")) == (
        ("Access-Control-Allow-Origin", "https://app.example"),
        ("Access-Control-Expose-Headers", "Content-Disposition, Location, Retry-After, X-Prompt-Id"),
        ("Vary", "Origin"),
    )
    for headers in ({}, {"origin": ""}, {"origin": "http://127.0.0.1:8189"}, {"origin": "http://evil.example"}):
        assert OPEN.cors_headers(request(**headers)) == ()
    assert make_guard("127.0.0.1", None, False, [], [""]).cors_headers(request()) == ()
