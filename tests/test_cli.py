"""The command line: what a person, a pipe, a script and a CI step meet."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.server
import io
import json
import os
import re
import shutil
import socket
import socketserver
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any, Callable, Dict, List, Optional, Set

import pytest
from slow_proxy import HurriedLoop
from support import CERTIFICATE, ROOT, SCRIPT, Outcome, Terminal, needs_ipv6, run, script, seconds_since, slow_prompt

from comfyui_runner.addresses import CA_VARIABLES
from comfyui_runner.environment import Environment
from comfyui_runner.errors import EXIT_MEANINGS, ExitStatus
from comfyui_runner.limits import DEFAULT_LIMITS
from comfyui_runner.terminal import LINE_INTERVAL

Make = Callable[..., Any]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def without_debug(**more: str) -> Dict[str, str]:
    """The environment for a process whose error stream is looked at: asyncio's debug mode writes there."""
    return {**{name: value for name, value in os.environ.items() if name != "PYTHONASYNCIODEBUG"}, **more}


def process(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """The program as a process of its own, without a terminal."""
    interpreter = options.pop("interpreter", [sys.executable])
    command = [*interpreter, options.pop("script", SCRIPT), *arguments]
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=False,
        **options,
    )


# -- the question ----------------------------------------------------------------------------------


@pytest.mark.parametrize("answers", ["y\n", "YES\n", " yes \n", "what?\n\x1b\nperhaps\ny\n"])
def test_yes_runs_it(answers: str, simulator: Any, workflow_file: Make) -> None:
    result = run("--server", simulator.url, workflow_file(slow_prompt()), answers=answers)
    assert result.status == ExitStatus.OK
    assert result.out.count("Run it? [y/N]") == answers.count("\n")


@pytest.mark.parametrize("answers", ["n\n", "No\n", "\n", "perhaps\n\n"])
def test_anything_that_means_no_submits_nothing(answers: str, simulator: Any, workflow_file: Make) -> None:
    result = run("--server", simulator.url, workflow_file(slow_prompt()), answers=answers)
    assert result.status == ExitStatus.NOT_CONFIRMED
    assert "nothing was submitted" in result.err
    assert ("POST", "/prompt") not in simulator.requests


def test_the_end_of_the_input_at_the_question_leaves(simulator: Any, workflow_file: Make) -> None:
    result = run("--server", simulator.url, workflow_file(slow_prompt()), answers="")
    assert result.status == ExitStatus.NOT_CONFIRMED
    assert ("POST", "/prompt") not in simulator.requests


def test_without_a_terminal_and_without_yes_it_refuses(simulator: Any, workflow_file: Make) -> None:
    result = run("--server", simulator.url, workflow_file(slow_prompt()))
    assert result.status == ExitStatus.NOT_CONFIRMED
    assert "--yes" in result.err
    assert not simulator.requests


# -- files -----------------------------------------------------------------------------------------


def test_a_file_that_is_not_there_is_reported_with_those_that_are(tmp_path: Any) -> None:
    (tmp_path / "other.json").write_text("{}")
    result = run(str(tmp_path / "mine.json"))
    assert result.status == ExitStatus.BAD_WORKFLOW
    assert "Workflows there: other.json." in result.err


def test_a_ui_format_file_is_converted_and_runs(simulator: Any) -> None:
    result = run("--server", simulator.url, os.path.join(ROOT, "workflow.json"), "--yes", "--json")
    assert result.status == ExitStatus.OK
    assert result.event("workflow")["nodes"] == 7
    assert [event["kind"] for event in result.events if event["event"] == "output"] == ["image"]


@pytest.mark.script_and_folder
def test_the_default_workflow_lies_beside_the_script(simulator: Any, tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("--server", simulator.url, "--yes", "--json")
    assert result.status == ExitStatus.OK
    assert result.event("workflow")["nodes"] == 7


# -- servers ---------------------------------------------------------------------------------------


def test_no_server_at_the_defaults_says_what_was_tried_and_what_to_do(workflow_file: Make, monkeypatch: Any) -> None:
    ports = free_port(), free_port()
    monkeypatch.setattr(script, "DEFAULT_SERVERS", tuple("http://127.0.0.1:%d" % port for port in ports))
    result = run("--yes", workflow_file(slow_prompt()))
    assert result.status == ExitStatus.NO_SERVER
    for expected in (*map(str, ports), "python main.py", "--server", "--demo"):
        assert expected in result.err


def test_the_desktop_app_is_found_where_the_default_does_not_answer(
    simulator: Any, workflow_file: Make, monkeypatch: Any
) -> None:
    dead = "http://127.0.0.1:%d" % free_port()
    monkeypatch.setattr(script, "DEFAULT_SERVERS", (dead, simulator.url))
    result = run("--yes", workflow_file(slow_prompt()))
    assert result.status == ExitStatus.OK
    assert "%s: nothing listens there" % dead in result.out
    assert "ComfyUI 0.33.0 at %s, simulated" % simulator.url in result.out


def test_a_refused_connection_is_reported_at_once(workflow_file: Make) -> None:
    began = time.monotonic()
    result = run("--server", "127.0.0.1:%d" % free_port(), "--yes", workflow_file(slow_prompt()), limits=DEFAULT_LIMITS)
    assert result.status == ExitStatus.NO_SERVER
    assert "connection refused" in result.err and "Start ComfyUI" in result.err
    assert time.monotonic() - began < 5


def test_a_get_that_is_cut_is_tried_again(simulator: Any, workflow_file: Make) -> None:
    simulator.faults.cut_http = {"/system_stats": 2, "/history": 1, "/queue": 1}
    assert run("--server", simulator.url, "--yes", workflow_file(slow_prompt())).status == ExitStatus.OK


def test_a_first_answer_that_trickles_is_asked_for_three_times(
    simulator: Any, make_slow: Make, workflow_file: Make, monkeypatch: Any
) -> None:
    proxy = make_slow(simulator)
    proxy.trickling = {"GET /system_stats": 100}
    monkeypatch.setattr(asyncio, "new_event_loop", lambda: HurriedLoop(20.0))  # it waits for 12 s each time
    began = time.monotonic()
    result = run("--server", proxy.url, "--yes", workflow_file(slow_prompt()))
    assert result.status == ExitStatus.NO_SERVER
    assert "did not answer in" in result.err
    assert proxy.trickled == 3
    assert time.monotonic() - began < 10.0


def test_the_environment_names_the_server(simulator: Any, workflow_file: Make) -> None:
    result = run("--yes", workflow_file(slow_prompt()), environment={"COMFYUI_URL": simulator.url + "/"})
    assert result.status == ExitStatus.OK


def test_a_server_behind_a_base_path_and_a_token(make_simulator: Make, workflow_file: Make) -> None:
    simulator = make_simulator(base_path="/comfy/ui", token="s3cret-t0ken")
    path = workflow_file(slow_prompt())
    assert run("--server", simulator.url, "--yes", path).status == ExitStatus.NO_SERVER
    header = "Authorization: Bearer s3cret-t0ken"
    result = run("--server", simulator.url, "--header", header, "--yes", "--json", path)
    assert result.status == ExitStatus.OK
    assert "connection" not in result.names()  # the WebSocket got the header as well
    assert "s3cret-t0ken" not in result.out + result.err


def test_user_and_password_in_the_url_reach_both_channels_and_no_output(
    make_simulator: Make, workflow_file: Make
) -> None:
    simulator = make_simulator(token="pa:ss/w0rd")
    url = simulator.url.replace("//", "//user:pa%3Ass%2Fw0rd@")
    result = run("--server", url, "--yes", "--json", workflow_file(slow_prompt()))
    assert result.status == ExitStatus.OK
    assert "connection" not in result.names()
    token = base64.b64encode(b"user:pa:ss/w0rd").decode()
    for secret in ("pa:ss/w0rd", "pa%3Ass%2Fw0rd", token):
        assert secret not in result.out + result.err


class Echo(http.server.BaseHTTPRequestHandler):
    """A server that throws everything back at us, as some proxies' error pages do."""

    def do_GET(self) -> None:
        body = ("refused: " + " ".join("%s=%s" % item for item in self.headers.items())).encode()
        self.send_response(401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Nothing is logged."""


@pytest.mark.parametrize("mode", [[], ["--json"], ["--quiet"], ["-v"]])
def test_a_server_that_echoes_our_secrets_does_not_get_them_shown(
    mode: List[str], serve: Any, workflow_file: Make
) -> None:
    url = serve(Echo).replace("//", "//user:hunter22@")
    result = run("--server", url, "--header", "X-Key: abcd1234", "--yes", *mode, workflow_file(slow_prompt()))
    assert result.status == ExitStatus.NO_SERVER
    assert "refuses us (HTTP 401" in result.err
    for secret in ("hunter22", "abcd1234", base64.b64encode(b"user:hunter22").decode()):
        assert secret not in result.out + result.err


def test_a_server_that_wants_credentials_is_not_called_absent(serve: Any, workflow_file: Make) -> None:
    url = serve(Echo)
    result = run("--server", url, "--yes", workflow_file(slow_prompt()))
    assert result.status == ExitStatus.NO_SERVER
    assert "%s refuses us (HTTP 401 for GET /system_stats)." % url in result.err
    assert '--header "Authorization: Bearer' in result.err
    for generic in ("Start ComfyUI", "Tried:", "--demo"):
        assert generic not in result.err


def test_https_where_http_is_spoken_says_so(simulator: Any, workflow_file: Make) -> None:
    url = simulator.url.replace("http:", "https:")
    result = run("--server", url, "--yes", workflow_file(slow_prompt()))
    assert result.status == ExitStatus.NO_SERVER
    assert "%s: the TLS connection failed" % url in result.err
    assert "use http:// instead" in result.err
    assert "Start ComfyUI" not in result.err


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"])
@pytest.mark.parametrize(
    "host", ["127.0.0.1", pytest.param("[::ffff:127.0.0.1]", marks=needs_ipv6)]
)  # the second does not count as local
def test_an_own_certificate_counts_for_http_and_websocket(
    host: str, variable: str, tls_port: int, workflow_file: Make, monkeypatch: Any
) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    for name in CA_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    url = "https://%s:%d" % (host, tls_port)
    path = workflow_file(slow_prompt())
    result = run("--server", url, "--yes", "--json", path, environment={variable: CERTIFICATE})
    assert result.status == ExitStatus.OK
    assert "connection" not in result.names()  # else the WebSocket was refused
    assert "progress" in result.names()


@needs_ipv6
def test_a_certificate_is_that_of_the_name_whatever_address_of_it_answers(
    tls_port: int, workflow_file: Make, localhost_is_ipv6_first: None
) -> None:
    arguments = ["--server", f"https://localhost:{tls_port}", "--yes", "--json", workflow_file(slow_prompt())]
    result = run(*arguments, environment={"SSL_CERT_FILE": CERTIFICATE})
    assert result.status == ExitStatus.OK
    assert "connection" not in result.names()


def test_without_it_the_certificate_is_refused_and_the_message_names_the_variables(
    tls_port: int, workflow_file: Make, monkeypatch: Any
) -> None:
    for name in CA_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    result = run("--server", "https://127.0.0.1:%d" % tls_port, "--yes", workflow_file(slow_prompt()))
    assert result.status == ExitStatus.NO_SERVER
    assert "REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE or SSL_CERT_FILE" in result.err


@pytest.mark.parametrize(
    ("content", "message"), [(None, "does not exist"), ("no PEM", "has no certificate in PEM format")]
)
def test_a_certificate_file_that_is_wrong_is_named(
    content: Optional[str], message: str, tls_port: int, workflow_file: Make, tmp_path: Any
) -> None:
    bundle = tmp_path / "own.pem"
    if content is not None:
        bundle.write_text(content)
    url = "https://127.0.0.1:%d" % tls_port
    result = run("--server", url, "--yes", workflow_file(slow_prompt()), environment={"SSL_CERT_FILE": str(bundle)})
    assert result.status == ExitStatus.NO_SERVER
    assert message in result.err and "SSL_CERT_FILE" in result.err


def test_http_where_https_is_spoken_is_a_connection_that_breaks(workflow_file: Make) -> None:
    class TLS(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            """A handshake that does not contain our request."""
            with contextlib.suppress(OSError):
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).wrap_socket(self.request, server_side=True)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), TLS) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = "http://127.0.0.1:%d" % server.server_address[1]
        result = run("--server", url, "--yes", workflow_file(slow_prompt()))
        server.shutdown()
    assert result.status == ExitStatus.NO_SERVER
    assert "%s: the connection broke" % url in result.err
    assert "Start ComfyUI there" in result.err and "No ComfyUI answers" not in result.err


def test_a_head_that_was_cut_is_no_answer(workflow_file: Make) -> None:
    class Cut(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            """An answer that ends before its head does, which http.client takes for a whole one."""
            self.request.recv(1 << 16)
            self.request.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Cut) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = "http://127.0.0.1:%d" % server.server_address[1]
        result = run("--server", url, "--yes", workflow_file(slow_prompt()))
        server.shutdown()
    assert result.status == ExitStatus.NO_SERVER
    assert "The answer of %s was cut short." % url in result.err


@pytest.mark.parametrize("given", [True, False])
def test_a_netrc_does_not_replace_what_was_given(
    given: bool, serve: Any, workflow_file: Make, tmp_path: Any, monkeypatch: Any
) -> None:
    sent: List[Any] = []

    class Proxy(Echo):
        """The system's proxy: a host that is not this machine is asked for over it."""

        def do_GET(self) -> None:
            sent.append((self.path, self.headers["Authorization"]))
            super().do_GET()

    netrc = tmp_path / "netrc"
    netrc.write_text("machine comfy.example login somebody password else\n", encoding="utf-8")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("http_proxy", serve(Proxy))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    header = ["--header", "Authorization: Bearer given"] if given else []
    result = run("--server", "http://comfy.example", *header, "--yes", workflow_file(slow_prompt()))
    assert result.status == ExitStatus.NO_SERVER
    assert sent == [("http://comfy.example/system_stats", "Bearer given" if given else None)]


@pytest.mark.parametrize("arguments", [
    ["--server", "http://user:hunter22@host:notaport"], ["--server", "ftp://user:hunter22@host"],
    ["--header", "hunter22"], ["--header", "X-Key: hunter22\x01"], ["--heeder", "hunter22"], ["--heeder=hunter22"],
    ["--timeout", "hunter22"], ["--mode", "hunter22"], ["--json=hunter22"],
])  # fmt: skip
def test_a_typing_error_does_not_repeat_what_may_be_a_secret(arguments: List[str]) -> None:
    result = run(*arguments)
    assert result.status == ExitStatus.USAGE
    assert result.err and "hunter22" not in result.out + result.err


def test_something_else_at_the_address_is_reported(serve: Any, workflow_file: Make) -> None:
    class Hello(Echo):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"hello")

    result = run("--server", serve(Hello), "--yes", workflow_file(slow_prompt()))
    assert result.status == ExitStatus.NO_SERVER
    assert "not JSON" in result.err


def test_a_redirect_is_not_followed_with_our_credentials(serve: Any, simulator: Any, workflow_file: Make) -> None:
    class Away(Echo):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", simulator.url + self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()

    result = run("--server", serve(Away), "--yes", workflow_file(slow_prompt()))
    assert result.status == ExitStatus.NO_SERVER
    assert "redirects us to " + simulator.url in result.err
    assert not simulator.requests


def test_a_login_page_in_front_of_comfyui_asks_for_a_login(serve: Any, workflow_file: Make) -> None:
    class Login(Echo):
        def do_GET(self) -> None:
            page = b"<html><title>ComfyUI Login</title></html>"
            self.send_response(302 if self.path == "/system_stats" else 200)
            self.send_header("Location", "/login")
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

    url = serve(Login)
    result = run("--server", url, "--yes", workflow_file(slow_prompt()))
    assert result.status == ExitStatus.NO_SERVER
    assert f"{url} wants us to log in (HTTP 302 for GET /system_stats redirects us to /login)." in result.err
    assert "Log in: --header" in result.err and "Give --server the address" not in result.err
    result = run("--server", url + "/inside", "--yes", workflow_file(slow_prompt()))  # answers 200, with the page
    assert result.status == ExitStatus.NO_SERVER
    assert "/system_stats with a web page (BaseHTTP" in result.err and '"ComfyUI Login"' in result.err
    assert "Log in: --header" in result.err


def test_a_token_in_the_query_of_the_server_belongs_into_a_header(workflow_file: Make) -> None:
    result = run("--server", "http://gpu:8188/?token=abc123", "--yes", workflow_file(slow_prompt()))
    assert result.status == ExitStatus.USAGE
    assert "Pass a token with --header instead." in result.err and "abc123" not in result.err


def test_a_server_without_websocket_is_followed_by_its_queue(simulator: Any, workflow_file: Make) -> None:
    simulator.faults.http_status = {"/ws": 404}
    result = run("--server", simulator.url, "--yes", "--json", workflow_file(slow_prompt()))
    assert result.status == ExitStatus.OK
    assert result.event("connection")["state"] == "unavailable"
    assert result.event("output")["filename"] == "slow_00001_.png"


# -- what is printed -------------------------------------------------------------------------------


def test_quiet_prints_what_was_made_and_nothing_else(simulator: Any, workflow_file: Make, tmp_path: Any) -> None:
    path = workflow_file(slow_prompt())
    result = run("--server", simulator.url, "--yes", "--quiet", path)
    assert result.out == simulator.url + "/view?filename=slow_00001_.png&subfolder=&type=output\n"
    result = run("--server", simulator.url, "--yes", "--quiet", path, "-o", str(tmp_path / "out"))
    assert result.out == os.path.realpath(str(tmp_path / "out" / "slow_00001_.png")) + "\n"
    assert result.err == ""


def test_json_is_one_object_a_line_with_event_time_and_prompt_id(simulator: Any, workflow_file: Make) -> None:
    result = run("--server", simulator.url, "--json", workflow_file(slow_prompt()), answers="maybe\ny\n")
    assert result.status == ExitStatus.OK
    for event in result.events:
        assert isinstance(event["event"], str) and event["time"] > 1.7e9 and len(event["prompt_id"]) == 36
    assert result.err.count("Run it?") == 2


def test_json_tells_a_usage_error_too() -> None:
    result = run("--json", "--timeout", "soon")
    assert result.status == ExitStatus.USAGE
    assert result.event("error")["exit_status"] == ExitStatus.USAGE
    assert "timeout" in result.err


def test_progress_in_plain_lines_is_rate_limited(simulator: Any, workflow_file: Make) -> None:
    began = time.monotonic()
    result = run("--server", simulator.url, "--yes", workflow_file(slow_prompt(steps=200, seconds=0.5)))
    most = 1 + seconds_since(began) // LINE_INTERVAL  # of 200: on Windows, each step takes a tick of the clock
    assert result.status == ExitStatus.OK
    assert result.out.count("/200 (") <= most


def test_the_live_screen_shows_bars_and_ends_clean(simulator: Any, workflow_file: Make, monkeypatch: Any) -> None:
    pytest.importorskip("rich")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    out = Terminal()
    result = run("--server", simulator.url, "--yes", workflow_file(slow_prompt(steps=8, seconds=1.0)), out=out)
    assert result.status == ExitStatus.OK
    assert re.search(r"Overall .*0/2 nodes", result.out)
    assert re.search(r"Slow .*\d/8 .*it/s", result.out)
    assert result.out.rfind("\x1b[?25h") > result.out.rfind("\x1b[?25l") >= 0  # the cursor is back


@pytest.mark.parametrize(
    ("encoding", "mark"), [("utf-8", "━"), ("UTF8", "━"), ("utf_8", "━"), ("cp1252", "-"), ("ascii", "-")]
)
def test_bars_have_the_characters_that_the_terminal_has(
    encoding: str, mark: str, simulator: Any, workflow_file: Make, monkeypatch: Any
) -> None:
    pytest.importorskip("rich")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")

    class Encoded(Terminal):
        @property
        def encoding(self) -> str:  # type: ignore[override]
            return encoding

    out = Encoded()
    assert run("--server", simulator.url, "--yes", workflow_file(slow_prompt(seconds=0.3)), out=out).status == 0
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", out.getvalue())
    assert re.search("Overall +" + mark, text)
    assert ("━" in out.getvalue()) == (mark == "━")


def test_no_color_takes_the_colours_away(simulator: Any, workflow_file: Make, monkeypatch: Any) -> None:
    pytest.importorskip("rich")
    monkeypatch.setenv("TERM", "xterm-256color")
    path = workflow_file(slow_prompt())
    colours = re.compile(r"\x1b\[[\d;]*3\d[\d;]*m")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert colours.search(run("--server", simulator.url, "--yes", path, out=Terminal()).out)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colours.search(run("--server", simulator.url, "--yes", path, out=Terminal()).out)


def test_without_rich_there_are_plain_lines(simulator: Any, workflow_file: Make, monkeypatch: Any) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)
    result = run("--server", simulator.url, "--yes", workflow_file(slow_prompt()), out=Terminal())
    assert result.status == ExitStatus.OK
    assert "\x1b" not in result.out and "Done in" in result.out


def test_a_console_that_lacks_characters_does_not_end_the_run(simulator: Any, workflow_file: Make) -> None:
    prompt = slow_prompt()
    prompt["1"]["_meta"]["title"] = "慢い — ✓"
    environment = without_debug(PYTHONIOENCODING="cp1252", COMFYUI_URL=simulator.url)
    command = [sys.executable, SCRIPT, "--yes", workflow_file(prompt)]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, env=environment, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert b"?? \x97 ?" in done.stdout


def test_a_stream_that_lacks_a_character_ends_nothing() -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Environment([], stdout=out, stderr=out)
    assert out.errors == "replace"


def test_a_pipe_that_is_closed_does_not_end_the_run(simulator: Any, workflow_file: Make, tmp_path: Any) -> None:
    environment = without_debug(COMFYUI_URL=simulator.url)
    command = [sys.executable, SCRIPT, "--yes", workflow_file(slow_prompt()), "-o", str(tmp_path / "out")]
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    assert child.stdout is not None and child.stderr is not None
    child.stdout.close()
    with child.stderr:
        error = child.stderr.read()
    assert (child.wait(30), error) == (0, b"")
    assert os.listdir(tmp_path / "out") == ["slow_00001_.png"]


# -- the rest --------------------------------------------------------------------------------------


@pytest.mark.script_and_folder
def test_the_demo_runs_from_end_to_end_with_nothing_else(tmp_path: Any) -> None:
    done = process("--demo", "--yes", "--json", "-o", str(tmp_path / "out"), cwd=str(tmp_path))
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert "simulated" in next(event for event in events if event["event"] == "server")["device"]
    assert [name[:7] for name in os.listdir(tmp_path / "out")] == ["ComfyUI"]


@pytest.mark.script_and_folder
def test_the_demo_keeps_what_was_to_be_saved_and_nothing_else(
    tmp_path: Any, monkeypatch: Any, workflow_file: Make
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(sys, "argv", ["/home/me/comfyui_workflow_runner.py"])
    path = workflow_file(slow_prompt(seconds=0.0))
    result = run("--demo", "--yes", path)
    assert result.status == ExitStatus.OK
    assert "Save Image: slow_00001_.png\nDone in" in result.out and "/view" not in result.out
    assert "keeps nothing without -o" in result.out
    assert result.out.endswith(f"    python comfyui_workflow_runner.py {path} -o results\n")
    assert os.listdir(tmp_path / "temporary") == []

    monkeypatch.setattr(sys, "argv", ["/home/me/.local/bin/comfyui-workflow-runner"])
    result = run("--demo", "--yes", "-o", str(tmp_path / "out"), path)
    assert result.out.endswith(f"    comfyui-workflow-runner {path} -o results\n")
    assert result.status == ExitStatus.OK and os.listdir(tmp_path / "out") == ["slow_00001_.png"]
    assert "keeps nothing" not in result.out and "Next, start your own ComfyUI" in result.out
    for flag in ("--quiet", "--json"):
        assert "Next, start" not in run("--demo", "--yes", flag, path).out


@pytest.mark.script_and_folder
def test_a_module_that_the_folder_lacks_is_not_taken_for_the_folder(tmp_path: Any) -> None:
    shutil.copy(SCRIPT, tmp_path / "runner.py")
    (tmp_path / "comfyui_runner").mkdir()
    (tmp_path / "comfyui_runner" / "__init__.py").touch()
    (tmp_path / "comfyui_runner" / "flags.py").write_text("import no_such_module\n", encoding="utf-8")
    command = [sys.executable, str(tmp_path / "runner.py"), "--help"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "No module named 'no_such_module'" in done.stderr and "belongs beside" not in done.stderr


@pytest.mark.script_and_folder
def test_the_script_without_its_folder_says_what_is_missing(tmp_path: Any) -> None:
    lone_script = str(shutil.copy(SCRIPT, str(tmp_path)))
    done = process("--yes", script=lone_script, cwd=str(tmp_path))
    assert done.returncode == ExitStatus.ERROR
    assert done.stdout == ""
    first, second = done.stderr.splitlines()
    assert "comfyui_runner" in first and "is missing" in first
    assert "python comfyui_runner/onefile.py FILE" in second


def modules_imported_by(*arguments: str) -> Set[str]:
    """The names of all modules that the script imports in a run with ``arguments``."""
    done = process(*arguments, interpreter=[sys.executable, "-X", "importtime"])
    assert done.returncode == 0, done.stderr
    return set(re.findall(r"(?m)^import time:.*\| +(\S+)$", done.stderr))


@pytest.mark.script_and_folder
def test_help_imports_little_and_is_short_and_lists_every_status_when_asked() -> None:
    imported = modules_imported_by("--help")
    assert {name for name in imported if name.startswith("comfyui_runner")} == {
        "comfyui_runner", "comfyui_runner.errors", "comfyui_runner.flags", "comfyui_runner.last_words",
    }  # fmt: skip
    assert not imported & {"requests", "websockets", "rich", "asyncio", "json"}
    help_lines = process("--help").stdout.splitlines()
    assert len(help_lines) <= 100 and max(map(len, help_lines)) <= 80
    assert sum(line.startswith(" " * 24) for line in help_lines) <= 5  # any other option takes one line
    assert help_lines[-3:] == [
        f"  python {os.path.basename(SCRIPT)} flow.json {more}"
        for more in ("-o out --seed random", "--repeat 6 -o out", "--mode continuous")
    ]
    shown = process("--help", "exit").stdout
    for status in ExitStatus:
        assert re.search(r"^ +%d  %s$" % (status, re.escape(EXIT_MEANINGS[status])), shown, re.M)


@pytest.mark.script_and_folder
def test_a_run_of_an_api_file_imports_only_the_core(simulator: Any, workflow_file: Make) -> None:
    imported = modules_imported_by("--server", simulator.url, "--yes", workflow_file(slow_prompt()))
    ours = {name for name in imported if name.startswith("comfyui_runner.")}
    assert "comfyui_runner.session" in ours
    assert not {name for name in ours if "extras" in name or "simulator" in name}
    assert not ours & {"comfyui_runner.service", "comfyui_runner.http_server", "comfyui_runner.serving"}


@pytest.mark.script_and_folder
def test_importing_the_script_does_nothing(tmp_path: Any) -> None:
    code = "import sys; sys.path.insert(0, %r); import comfyui_workflow_runner" % ROOT
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=str(tmp_path), timeout=30, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_missing_package_says_how_to_install_it(workflow_file: Make, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "requests", None)
    result = run("--server", "127.0.0.1:1", "--yes", workflow_file(slow_prompt()))
    assert result.status == ExitStatus.ERROR
    assert "pip install websockets requests rich" in result.err


class Divided(Dict[str, str]):
    """An environment that no program can read."""

    def get(self, name: str, default: Any = None) -> Any:
        return 1 // 0


class Faulty(io.StringIO):
    """An output that fails once, at the workflow's name."""

    failed = False

    def write(self, text: str) -> int:
        if "flow" in text and not self.failed:
            self.failed = True
            raise ZeroDivisionError("integer division")
        return super().write(text)


@pytest.mark.parametrize("fault", [{"environment": Divided({"": ""})}, {"out": Faulty}])
def test_a_fault_of_the_runner_is_reported_as_one(fault: Any, simulator: Any, workflow_file: Make) -> None:
    """At the start and in the middle."""

    def go(*arguments: str) -> Outcome:
        options: Any = {name: value() if value is Faulty else value for name, value in fault.items()}
        return run("--server", simulator.url, "--yes", workflow_file(slow_prompt()), *arguments, **options)

    result = go()
    assert result.status == ExitStatus.ERROR
    assert "ZeroDivisionError" in result.err and "report" in result.err and "Traceback" not in result.err
    assert "Traceback" in go("-v").err
