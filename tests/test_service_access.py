"""Stories of continuous mode: who is let in, over the wire."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import os
import re
import sys
import time
from typing import Any, Callable

import pytest
from served import LOADER, Json, Make, Middleware, read_answer
from support import FAST, ROOT, run, seconds_since, wait_until

from comfyui_runner.errors import ExitStatus
from comfyui_runner.messages import security_headers
from comfyui_runner.routes import ROUTES


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Referer": "http://evil.example/"},
        {"Sec-Purpose": "prefetch"},
    ],
)
def test_a_foreign_page_starts_edits_and_reads_nothing(service: Middleware, comfyui: Any, headers: Json) -> None:
    for row in ROUTES:
        if row.path == "/" and not {"Host", "Origin", "Sec-Purpose"} & set(headers):
            continue
        answer = service.call(row.method, row.path.replace("{prompt_id}", "x"), None, headers)
        assert answer.status == 403, (row, answer)
        assert "access-control-allow-origin" not in answer.headers
    assert not [call for call in comfyui.requests if call[0] == "POST"]


#: What Chromium and Firefox send with an <img>, an <iframe> and a link of a foreign page that hides
#: itself (referrerpolicy=no-referrer), and with fetch(..., {mode: "no-cors"}).
BROWSER = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "Accept-Language": "en-US,en;q=0.5",
    "Accept": "image/avif,image/webp,*/*",
}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "[::1]", "[::ffff:7f00:1]"])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
        {"Origin": "null"},
        {"X-Moz": "prefetch", "Sec-Fetch-Site": "none"},
    ],
)
def test_a_foreign_page_that_hides_itself_starts_nothing(
    service: Middleware, comfyui: Any, host: str, more: Json
) -> None:
    headers = {"Host": f"{host}:{service.port}", **BROWSER, **more}
    for method, path in [("GET", "/queue"), ("GET", "/api/queue"), ("POST", "/queue"), ("POST", "/prompt")]:
        assert service.call(method, path, None, headers).status == 403
    assert not [call for call in comfyui.requests if call[0] == "POST"]


def test_the_page_and_the_address_bar_start_runs(service: Middleware) -> None:
    typed = {**BROWSER, "Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}
    clicked = {**BROWSER, "Sec-Fetch-Site": "same-origin", "Origin": f"http://127.0.0.1:{service.port}"}
    assert service.call("GET", "/queue", None, typed).status == 202
    assert service.call("POST", "/queue", None, clicked).status == 202


def test_an_origin_that_is_allowed_may_use_all(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator, "--allow-origin", "https://app.example", "--allow-host", "gpu.example")
    headers = {"Origin": "https://app.example", "Sec-Fetch-Site": "cross-site", "Host": "gpu.example:8189"}
    for answer in (service.call("GET", "/status", None, headers), service.call("GET", "/nowhere", None, headers)):
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert answer.headers["vary"] == "Origin"
    before = service.call("OPTIONS", "/update/inputs", None, {**headers, "Access-Control-Request-Method": "POST"})
    assert before.status == 204
    assert before.headers["access-control-allow-origin"] == "https://app.example"
    assert "POST" in before.headers["access-control-allow-methods"]
    assert "content-type" in before.headers["access-control-allow-headers"]


def test_addresses_of_files_lead_to_the_host_that_was_asked(service: Middleware) -> None:
    run = service.end(service.start())
    url = run["outputs"][0]["url"]
    for host in (f"127.0.0.1:{service.port}", f"localhost:{service.port}", "[::1]:80", "127.0.0.2"):
        for path in ("/runs", "/runs/" + run["prompt_id"]):
            shown = service.get(path, Host=host).json
            shown = shown["runs"][0] if "runs" in shown else shown
            assert shown["outputs"][0]["absolute_url"] == f"http://{host}/{url}"
    assert service.get("/runs", Host="evil.example").status == 403


def test_behind_a_proxy_addresses_lead_to_the_public_url(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator, "--public-url", "https://gpu.example/runner/")
    events = service.events()
    run = service.end(service.start())
    [output] = run["outputs"]
    assert output["absolute_url"] == "https://gpu.example/runner/" + output["url"]
    for host in ("gpu.example", f"127.0.0.1:{service.port}"):  # proxies pass either on
        clicked = {**BROWSER, "Host": host, "Sec-Fetch-Site": "same-origin", "Origin": "https://gpu.example"}
        assert service.call("POST", "/interrupt", None, clicked).error == "nothing_to_interrupt"
    assert "curl https://gpu.example/runner/status" in service.get("/").body.decode()
    assert "https://gpu.example/runner/update/inputs" in service.get("/update/inputs").json["error"]["message"]
    _, shown = events.until(lambda name, data: name == "run" and data["over"])[-1]
    assert shown["outputs"] == run["outputs"]


def test_the_token_opens_the_door(simulator: Any) -> None:
    program = Middleware(
        ["--server", simulator.url, "--host", "127.0.0.1", os.path.join(ROOT, "workflow_api.json")],
        {"COMFYUI_RUNNER_TOKEN": "s3cret-of-the-tests"},
        FAST,
    )
    try:
        refused = program.get("/status")
        assert (refused.status, refused.error) == (401, "unauthorized")
        assert refused.headers["www-authenticate"] == "Bearer"
        assert program.get("/queue").status == 401
        assert program.get("/status?token=s3cret-of-the-tests").status == 401
        assert program.get("/health").status == 200
        assert program.get("/").status == 200
        assert program.get("/status", Authorization="Bearer wrong").status == 401
        status = program.get("/status", Authorization="Bearer s3cret-of-the-tests")
        assert status.json["token_required"] is True
        wrong = program.post("/login", {"token": "wrong"})
        assert (wrong.status, wrong.error) == (403, "wrong_token")
        for odd in ({"token": "\ud800"}, {"token": "ü"}):
            assert program.post("/login", odd).status == 403
        odd_type: Any
        for odd_type in ({}, {"token": 7}, []):
            assert program.post("/login", odd_type).status == 400
        login = program.post("/login", {"token": "s3cret-of-the-tests"})
        assert login.status == 204
        cookie = login.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and "s3cret" not in cookie
        assert program.get("/status", Cookie=cookie.partition(";")[0]).status == 200
        assert program.get("/status", Cookie=cookie.partition(";")[0][:-1] + "g").status == 401
        # another service on this host, for the whole domain: its cookie has the same name
        ours, name = cookie.partition(";")[0], cookie.partition("=")[0]
        for both in (f"{name}=of-another; {ours}", f"{ours}; {name}=0123456789abcdef"):
            assert program.get("/status", Cookie=both).status == 200
        foreign = {"Authorization": "Bearer s3cret-of-the-tests", "Origin": "http://evil.example"}
        assert program.call("GET", "/queue", None, foreign).status == 403
    finally:
        assert program.stop() == 0
    assert "s3cret" not in program.out.getvalue() + program.err.getvalue()


def test_guessing_the_token_takes_longer_and_longer(simulator: Any) -> None:
    program = Middleware(
        ["--server", simulator.url, os.path.join(ROOT, "workflow_api.json")],
        {"COMFYUI_RUNNER_TOKEN": "s3cret-of-the-tests"},
        FAST,
    )

    def seconds(status: int, guess: Callable[[], Any]) -> float:
        start = time.monotonic()
        assert guess().status == status
        return seconds_since(start)

    try:
        for delay in (0.05, 0.1, 0.2):
            assert seconds(403, lambda: program.post("/login", {"token": "wrong"})) >= delay
        for delay in (0.4, 0.8):
            assert seconds(401, lambda: program.get("/status", Authorization="Bearer wrong")) >= delay
        # the next failure would wait for 1.6 seconds
        assert seconds(204, lambda: program.post("/login", {"token": "s3cret-of-the-tests"})) < 1.5
        assert seconds(200, lambda: program.get("/status", Authorization="Bearer s3cret-of-the-tests")) < 1.5
        assert seconds(401, lambda: program.get("/status")) < 1.5
    finally:
        assert program.stop() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8")
def test_64_who_guess_do_not_keep_others_out(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator, "--token", "s3cret", is_open=False)
    login = service.post("/login", {"token": "s3cret"})
    session = {"Cookie": login.headers["set-cookie"].partition(";")[0]}
    for _ in range(7):  # from now on wrong tokens are answered 5 seconds late
        with service.listener.routes.failed_guesses.late_answer("192.0.2.1", time.monotonic()):
            pass
    guess = b"GET /status HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer wrong\r\n\r\n"
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        guessers = [stack.enter_context(service.connect()) for _ in range(64)]
        for connection in guessers[:4]:
            connection.sendall(guess)
        late_answers = service.listener.routes.failed_guesses._late_answers
        wait_until(lambda: late_answers.get("127.0.0.1") == 4, what="the late answers")
        for connection in guessers[4:]:
            connection.sendall(guess)
        for connection in guessers[4:]:
            with connection.makefile("rb") as file:
                answer = read_answer(file)
            assert (answer.status, answer.error) == (429, "too_many_guesses")
            assert answer.headers["retry-after"] == "5"
        elsewhere = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20.0, source_address=("127.0.0.2", 0))
        elsewhere.request("GET", "/status", headers={"Authorization": "Bearer s3cret"})
        assert elsewhere.getresponse().status == 200
        elsewhere.close()
        assert service.call("GET", "/status", None, session).status == 200
        assert late_answers["127.0.0.1"] == 4  # all of that while those four wait
    assert time.monotonic() - began < 60.0


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_other_machines_are_not_let_in_without_a_token(simulator: Any, host: str) -> None:
    result = run("--mode", "continuous", "--port", "0", "--server", simulator.url, "--host", host)
    assert result.status == ExitStatus.USAGE
    assert "--token" in result.err and "--no-token" in result.err
    assert not simulator.requests


def test_comfyuis_credentials_never_reach_our_clients(make_middleware: Make, make_simulator: Make) -> None:
    simulator = make_simulator(token="pa55-of-the-tests")
    address = simulator.url.replace("http://", "http://user:pa55-of-the-tests@")
    service = make_middleware(address, prompt=LOADER)
    wait_until(lambda: service.get("/status").json["comfyui"]["connected"])
    events = service.events()
    assert service.upload().status == 200
    prompt_id = service.start()
    shown = service.end(prompt_id)
    assert shown["phase"] == "success"
    seen = [repr(events.until(lambda name, data: name == "run" and data["over"]))]
    answers = [service.get(row.path.replace("{prompt_id}", prompt_id)) for row in ROUTES if row.method == "GET"
               and row.path not in ("/events", "/queue")]  # fmt: skip
    answers.append(service.get("/" + shown["outputs"][0]["url"].lstrip("/")))
    simulator.token = "changed"
    answers += [service.get("/view?filename=none.png"), service.upload(), service.get("/queue"), service.get("/status")]
    events.close()
    import base64

    for secret in ("pa55-of-the-tests", base64.b64encode(b"user:pa55-of-the-tests").decode()):
        for answer in answers:
            assert secret not in repr(answer)
        assert secret not in seen[0] + service.out.getvalue() + service.err.getvalue()


def test_a_comfyui_that_refuses_us_is_as_good_as_absent(make_middleware: Make, make_simulator: Make) -> None:
    simulator = make_simulator(token="right")
    service = make_middleware(simulator.url.replace("http://", "http://user:right@"), prompt=LOADER)
    wait_until(lambda: service.get("/status").json["comfyui"]["connected"])
    assert service.get("/workflow").status == 200
    simulator.token = "changed"
    for answer in (service.get("/view?filename=a.png"), service.upload(), service.get("/queue")):
        assert answer.status == 503 and "retry-after" in answer.headers


def test_no_script_runs_but_the_pages_own(service: Middleware) -> None:
    policy = service.get("/status").headers["content-security-policy"]
    [script] = re.findall(rb"<script>(.*?)</script>", service.listener.routes.page, re.S)
    digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
    assert "script-src 'sha256-%s';" % digest in policy
    assert "script-src 'none';" in dict(security_headers(b""))["Content-Security-Policy"]
