"""No secret leaves the program, whatever ComfyUI or a proxy sends back: each way out, each secret."""

from __future__ import annotations

import base64
import http.server
import json
import os
from typing import Any, Callable, Dict, Iterator, List

import pytest
from served import TEXTS, Middleware
from support import ROOT, Outcome, node, run, slow_prompt, wait_until

from comfyui_runner.errors import ExitStatus
from comfyui_runner.redaction import STARS

Make = Callable[..., Any]

#: Signs that JSON, HTML and URLs escape.
PASSWORD = 'pa55"word\\of the/tests'
#: What is sent, by what of it shows that it leaked; however it is spelled, this part is in it.
HEADERS = {
    "h3ader": 'X-Key: h3ader"key\\with signs',
    "b3arer": "X-Auth: Bearer b3arer.token-of-the-tests",
    "c00kie": "Cookie: session=c00kie-of-the-tests",
}
API_KEY = 'ap1key"of\\the tests'
TRACES = ("pa55", base64.b64encode(f"user:{PASSWORD}".encode()).decode()[8:24], "ap1key", *HEADERS)

#: What a proxy or ComfyUI may answer, and how it is spelled.
FORMS = ["text", "json"]

KEYED = {"prompt": slow_prompt(steps=1, seconds=0.0), "extra_data": {"api_key_comfy_org": API_KEY}}


def address(simulator: Any) -> str:
    password = "".join(f"%{byte:02X}" for byte in PASSWORD.encode())
    return str(simulator.url.replace("//", f"//user:{password}@"))


def credentials(simulator: Any) -> List[str]:
    """The arguments that name the server and what it is sent."""
    headers = [argument for header in HEADERS.values() for argument in ("--header", header)]
    return ["--server", address(simulator), *headers]


def require_no_secrets(*texts: str) -> None:
    for text in texts:
        assert [trace for trace in TRACES if trace in text] == []


def require_hidden_secrets(*texts: str) -> None:
    """Fails if one of ``texts`` shows a secret, or if one of them had none to hide."""
    require_no_secrets(*texts)
    assert all(STARS in text for text in texts)


def runs(simulator: Any, *arguments: str, **options: Any) -> Outcome:
    return run(*credentials(simulator), "--yes", *arguments, **options)


# -- the console -----------------------------------------------------------------------------------

MODES = [[], ["--json"], ["--quiet"], ["--verbose"]]


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize(
    "path, status, form, is_quoted",
    [
        ("/system_stats", 500, "text", True),
        ("/prompt", 400, "json", True),
        ("/prompt", 400, "text", True),
        ("/prompt", 500, "text", True),
        ("/prompt", 413, "json", False),
        ("/view", 500, "text", False),
        ("/object_info", 500, "text", True),
    ],
)
def test_an_echo_does_not_show_secrets_on_the_console(
    path: str,
    status: int,
    form: str,
    is_quoted: bool,
    mode: List[str],
    simulator: Any,
    workflow_file: Make,
    tmp_path: Any,
) -> None:
    simulator.faults.echo = {path: (status, form)}
    arguments = ["-o", str(tmp_path / "out")]
    if path == "/object_info":
        arguments += ["--seed", "random"]
    result = runs(simulator, *mode, *arguments, workflow_file(KEYED))
    assert result.status not in (ExitStatus.OK, ExitStatus.ERROR)
    require_no_secrets(result.out, result.err)
    assert is_quoted == (STARS in result.out + result.err)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_node_that_quotes_a_secret_does_not_show_it(mode: List[str], simulator: Any, workflow_file: Make) -> None:
    keyed = {**KEYED, "prompt": failing(f"401: the key {API_KEY} is not valid")}
    result = runs(simulator, *mode, workflow_file(keyed))
    assert result.status == ExitStatus.FAILED
    require_hidden_secrets(result.out + result.err)


def failing(message: str) -> Dict[str, Any]:
    """A node that fails."""
    return {
        "1": node("EmptyImage", width=64, height=64, batch_size=1, color=0),
        "2": node("FailNode", "Fail", message=message, image=["1", 0]),
        "3": node("PreviewImage", images=["2", 0]),
    }


class Login(http.server.BaseHTTPRequestHandler):
    """A proxy that gives a session, and then quotes it in an error."""

    SESSION = "s3ssion-of-the-tests"

    def do_GET(self) -> None:
        body = f"500: your cookie was {self.headers.get('Cookie')}; now {self.SESSION}".encode()
        self.send_response(500)
        self.send_header("Set-Cookie", f"session={self.SESSION}")
        self.send_header("Set-Cookie", "theme=dark")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Nothing is logged."""


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_the_cookie_of_a_session_is_not_shown(mode: List[str], serve: Any, workflow_file: Make) -> None:
    result = run("--server", serve(Login), "--yes", *mode, workflow_file(slow_prompt()))
    assert result.status == ExitStatus.NO_SERVER
    assert Login.SESSION not in result.out + result.err
    assert STARS in result.err


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status, form", [(400, "text"), (400, "json"), (500, "text")])
def test_the_manifest_has_no_secrets(
    status: int, form: str, simulator: Any, workflow_file: Make, tmp_path: Any
) -> None:
    manifest = tmp_path / "manifest.jsonl"
    arguments = ["--repeat", "2", "--manifest", str(manifest), workflow_file(KEYED)]
    assert runs(simulator, *arguments).status == ExitStatus.OK
    simulator.faults.echo = {"/prompt": (status, form)}
    result = runs(simulator, "--resume", *arguments[:1], "3", *arguments[2:])
    assert result.status != ExitStatus.OK
    text = manifest.read_text(encoding="utf-8")
    assert text.count('"failed"') == 1
    require_hidden_secrets(text)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_text_that_a_node_shows_has_no_secrets_on_the_console_and_in_the_record(
    mode: List[str], simulator: Any, workflow_file: Make, tmp_path: Any
) -> None:
    record = tmp_path / "run.json"
    keyed = {**KEYED, "prompt": {"1": node("PreviewAny", source=json.dumps({"key": API_KEY}))}}
    result = runs(simulator, *mode, "--save-run", str(record), workflow_file(keyed))
    assert result.status == ExitStatus.OK
    require_hidden_secrets(result.out, record.read_text(encoding="utf-8"))


def test_the_record_of_a_node_that_failed_has_no_secrets(simulator: Any, workflow_file: Make, tmp_path: Any) -> None:
    record = tmp_path / "run.json"
    keyed = {**KEYED, "prompt": failing(f"the key {API_KEY} is not valid")}
    assert runs(simulator, "--save-run", str(record), workflow_file(keyed)).status == ExitStatus.FAILED
    require_hidden_secrets(record.read_text(encoding="utf-8"))


# -- what is not changed ---------------------------------------------------------------------------


def test_what_goes_to_comfyui_and_what_is_exported_stays_as_it_is(
    simulator: Any, workflow_file: Make, tmp_path: Any
) -> None:
    """Also a prompt that has a secret in it, such as the key of an API in a node."""
    text = f"{API_KEY} and c00kie-of-the-tests"
    keyed = {**KEYED, "prompt": {"1": node("TextOut", "Words", text=text)}}
    path, exported = workflow_file(keyed), tmp_path / "api.json"
    saved = tmp_path / "out"
    assert runs(simulator, "-o", str(saved), path).status == ExitStatus.OK
    (entry,) = simulator._server.life.history.values()
    assert entry["prompt"][2] == keyed["prompt"]
    assert [each.read_text(encoding="utf-8") for each in saved.iterdir()] == [text]

    assert runs(simulator, "--export-api", str(exported), path).status == ExitStatus.OK
    assert json.loads(exported.read_text(encoding="utf-8")) == keyed["prompt"]
    shown = runs(simulator, "--export-api", "-", path)
    assert json.loads(shown.out) == keyed["prompt"]


# -- the service -----------------------------------------------------------------------------------


@pytest.fixture
def program(make_middleware: Make, simulator: Any) -> Iterator[Middleware]:
    """A service with credentials, a workflow with a key, and a token of its own."""
    arguments = credentials(simulator)
    program: Middleware = make_middleware(arguments[1], *arguments[2:], prompt=KEYED)
    wait_until(lambda: program.get("/status").json["comfyui"]["connected"], what="the connection to ComfyUI")
    yield program
    require_no_secrets(program.out.getvalue(), program.err.getvalue())


def ask(program: Middleware, way: str) -> bytes:
    """The answer to a request by which an echo comes back."""
    if way == "POST /prompt":
        return program.post("/prompt", {**KEYED, "extra_data": {"api_key_comfy_org": API_KEY}}).body
    if way == "POST /upload/image":
        program.hold({"1": node("LoadImage", "Photo", image="example.png"), "2": node("PreviewImage", images=["1", 0])})
        return program.upload().body
    if way == "PUT /workflow":
        with open(os.path.join(ROOT, "workflow.json"), encoding="utf-8") as file:
            return program.call("PUT", "/workflow", json.load(file)).body
    return program.get(way.partition(" ")[2]).body


def is_quoted(path: str, status: int, form: str) -> bool:
    """Whether a client is shown what ComfyUI answers."""
    if path == "/upload" or (path == "/view" and status == 400):
        return False
    return form == "text" or (path == "/prompt" and status == 400)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("status", [400, 500])
@pytest.mark.parametrize(
    "way, path",
    [
        ("GET /queue", "/prompt"),
        ("POST /prompt", "/prompt"),
        ("GET /view?filename=a.png", "/view"),
        ("POST /upload/image", "/upload"),
        ("PUT /workflow", "/object_info"),
    ],
)
def test_an_echo_does_not_show_secrets_to_clients(
    way: str, path: str, status: int, form: str, program: Middleware, simulator: Any
) -> None:
    events = program.events()
    simulator.faults.echo = {path: (status, form)}
    answer = ask(program, way).decode()
    listed = [program.get(path).body.decode() for path in ("/runs", "/status", "/workflow")]
    if path == "/prompt":
        seen = repr(events.until(lambda name, data: name == "run" and data["over"]))
        listed.append(seen)
    require_no_secrets(answer, *listed)
    assert is_quoted(path, status, form) == (STARS in answer)


def test_an_echo_is_hidden_in_the_list_of_runs_and_in_one_run(program: Middleware, simulator: Any) -> None:
    simulator.faults.echo = {"/prompt": (400, "json")}
    program.get("/queue")
    (listed,) = program.get("/runs").json["runs"]
    require_hidden_secrets(json.dumps(listed), program.get(f"/runs/{listed['prompt_id']}").body.decode())


def test_a_node_that_quotes_a_secret_does_not_show_it_to_clients(program: Middleware) -> None:
    events = program.events()
    body = {"prompt": failing(f"{API_KEY} is wrong"), "extra_data": {"auth_token_comfy_org": API_KEY}}
    prompt_id = program.post("/prompt", body).json["prompt_id"]
    assert program.end(prompt_id)["phase"] == "error"
    seen = events.until(lambda name, data: name == "run" and data["over"])
    require_hidden_secrets(
        json.dumps(seen), program.get(f"/runs/{prompt_id}").body.decode(), program.get("/runs").body.decode()
    )
    require_hidden_secrets(json.dumps(program.events().until(lambda name, data: name == "state")))
    require_hidden_secrets(program.out.getvalue() + program.err.getvalue())


def test_the_services_own_token_is_not_shown(make_middleware: Make, simulator: Any) -> None:
    token = "t0ken-of-the-tests"
    service = make_middleware(simulator.url, "--token", token, prompt=TEXTS)
    body = {"prompt": failing(f"somebody sent {token}")}
    headers = {"Authorization": f"Bearer {token}"}
    wait_until(lambda: service.service.backend.connected, what="the connection to ComfyUI")
    answer = service.call("POST", "/prompt", body, headers)
    assert answer.status == 200, answer
    prompt_id = answer.json["prompt_id"]
    shown = service.call("GET", f"/runs/{prompt_id}?wait=15", None, headers).body.decode()
    assert STARS in shown and token not in shown
    assert token not in service.out.getvalue() + service.err.getvalue()


def test_a_file_that_has_a_secret_in_it_is_passed_on_as_it_is(program: Middleware, simulator: Any) -> None:
    content = b"c00kie-of-the-tests"
    with open(simulator.folder("output") + "/a.txt", "wb") as file:
        file.write(content)
    assert program.get("/view?filename=a.txt").body == content


def test_comfyui_that_goes_away_with_an_echo_shows_no_secret(program: Middleware, simulator: Any) -> None:
    simulator.faults.echo = {"/system_stats": (500, "text")}
    for _ in range(2):  # one failure may be an accident
        program.service.run_in_loop(program.service.check_comfyui(), 20.0)
    assert "ComfyUI does not answer" in program.out.getvalue()
    assert STARS in program.out.getvalue()
    require_no_secrets(program.get("/status").body.decode())
