"""Stories of continuous mode: the service over real HTTP, against the simulator; its rules without a socket."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import http.client
import io
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import anything, few
from slow_proxy import HurriedLoop
from support import FAST, ROOT, SCRIPT, call, node, run, script, slow_prompt, wait_until

from comfyui_runner import __version__
from comfyui_runner.errors import ExitStatus, ServerUnreachable, UsageError
from comfyui_runner.guard import make_guard
from comfyui_runner.http_server import make_http_server
from comfyui_runner.interrupts import Interrupts
from comfyui_runner.limits import Limits
from comfyui_runner.messages import HttpError, Request, error_response, parse_fields, security_headers
from comfyui_runner.resources import read_resource
from comfyui_runner.routes import ROUTES, curl_lines, find_route
from comfyui_runner.server import new_uuid
from comfyui_runner.service import STREAM_QUEUE, Service, Stream, sse
from comfyui_runner.simulator import Faults, Simulator, draw
from comfyui_runner.simulator.nodes import NODES

Json = Dict[str, Any]
Make = Callable[..., Any]

with open(os.path.join(ROOT, "workflow_api.json"), encoding="utf-8") as file:
    #: A checkpoint, two texts, a sampler, a picture that is saved.
    TEXTS: Json = json.load(file)

LOADER: Json = {
    "1": node("LoadImage", "Photo", image="example.png"),
    "2": node("SaveImage", "Save", filename_prefix="loaded", images=["1", 0]),
}
TWO_LOADERS: Json = {
    "1": node("LoadImage", "Photo", image="example.png"),
    "2": node("LoadImage", "Style", image="example.png"),
    "3": node("ImageBatch", image1=["1", 0], image2=["2", 0]),
    "4": node("SaveImage", "Save", filename_prefix="two", images=["3", 0]),
}
PNG = draw(8, 8, 1, ["A"])


# ------------------------------------------------------------------------------------------------
# A client, and the program in a thread
# ------------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """An answer; names of headers in lower case."""

    status: int
    headers: Dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The type of the error that a failure tells."""
        return str(self.json["error"]["type"])


class Events:
    """A reader of the event stream."""

    def __init__(self, port: int, path: str = "/events", buffer: int = 0) -> None:
        self.socket = socket.socket()
        if buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.socket.settimeout(10.0)
        self.socket.connect(("127.0.0.1", port))
        self.socket.sendall(b"GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % path.encode())
        self.file = self.socket.makefile("rb")
        self.head = b"".join(iter(self.file.readline, b"\r\n"))

    def block(self) -> Optional[str]:
        """What stands before the next empty line; None at the end of the stream."""
        lines = []
        while True:
            line = self.file.readline()
            if not line:
                return None
            if line == b"\n":
                return b"".join(lines).decode()
            lines.append(line)

    def next(self) -> Optional[Tuple[str, Any]]:
        """The next event and its data; None at the end of the stream."""
        block = self.block()
        while block is not None and block.startswith(":"):
            block = self.block()
        if block is None:
            return None
        name, data = block.rstrip("\n").split("\n")
        assert name.startswith("event: ") and data.startswith("data: ")
        return name[7:], json.loads(data[6:])

    def until(self, condition: Callable[[str, Any], Any]) -> List[Tuple[str, Any]]:
        """The events up to the one that the condition is true for."""
        seen = []
        while True:
            event = self.next()
            assert event is not None, "the stream ended after %s" % seen
            seen.append(event)
            if condition(*event):
                return seen

    def close(self) -> None:
        self.file.close()
        self.socket.close()


def read_answer(file: Any, method: str = "GET") -> Answer:
    """The next answer on a connection."""
    status_line = file.readline().decode()
    assert re.match(r"HTTP/1\.1 \d{3}( |\r\n)", status_line), "no answer, but %r" % status_line
    status = int(status_line.split()[1])
    lines = [line.decode("latin-1") for line in iter(file.readline, b"\r\n")]
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = b""
    if method != "HEAD" and status not in (100, 204, 304):
        body = file.read(int(headers["content-length"])) if "content-length" in headers else file.read()
    return Answer(status, headers, body)


class Middleware:
    """A running program in continuous mode, as its clients see it, with a look inside."""

    def __init__(self, arguments: List[str], environment: Mapping[str, str], limits: Limits, stdin: str = "") -> None:
        self.out, self.err = io.StringIO(), io.StringIO()
        self.status: Optional[int] = None
        self.inside: Json = {}
        self.readers: List[Events] = []
        arguments = ["--mode", "continuous", "--port", "0", *arguments]

        def work() -> None:
            self.status = call(arguments, io.StringIO(stdin), self.out, self.err, environment, limits)

        self.thread = threading.Thread(target=work)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("comfyui_runner.serving.make_http_server", self._listen(make_http_server))
            patch.setattr(Interrupts, "bind", lambda _, loop, event: self.inside.update(loop=loop, event=event))
            self.thread.start()
            ready = re.compile(r"Continuous mode at http://\S+:(\d+)\b")
            wait_until(lambda: ready.search(self.out.getvalue()) or not self.thread.is_alive(), what="the start")
        found = ready.search(self.out.getvalue())
        assert found, self.out.getvalue() + self.err.getvalue()
        self.port = int(found.group(1))
        self.listener, self.service = self.inside["listener"], self.inside["service"]

    def _listen(self, make: Callable[..., Any]) -> Callable[..., Any]:
        def made(service: Any, *address: Any) -> Any:
            listener = make(service, *address)
            quick = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
            listener.start = quick.start  # the end of a test does not wait for the pace of the real one
            self.inside.update(listener=listener, service=service)
            return listener

        return made

    def stop(self) -> Optional[int]:
        """Ctrl+C; the exit status."""
        if self.thread.is_alive():
            self.inside["loop"].call_soon_threadsafe(self.inside["event"].set)
            self.thread.join(15.0)
        assert not self.thread.is_alive(), "it does not stop"
        return self.status

    def call(self, method: str, path: str, body: Any = None, headers: Optional[Mapping[str, str]] = None) -> Answer:
        """One request on a connection of its own; a body that is not bytes goes as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20.0)
        try:
            connection.request(method, path, data, dict(headers or {}))
            response = connection.getresponse()
            sent = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, sent, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.call("GET", path, None, {name.replace("_", "-"): value for name, value in headers.items()})

    def post(self, path: str, body: Any = None, **headers: str) -> Answer:
        return self.call("POST", path, body, {name.replace("_", "-"): value for name, value in headers.items()})

    def connect(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), 10.0)

    def raw(self, data: bytes) -> Answer:
        """The answer to bytes that http.client would not send."""
        with self.connect() as connection, connection.makefile("rb") as file:
            connection.sendall(data)
            return read_answer(file, "HEAD" if data.startswith(b"HEAD ") else "GET")

    def upload(self, path: str = "/upload/image", name: str = "cat.png", data: bytes = PNG, **fields: str) -> Answer:
        """An upload as ``curl -F image=@cat.png`` sends it."""
        body, kind = multipart(name, data, **fields)
        return self.post(path, body, Content_Type=kind)

    def hold(self, prompt: Json) -> None:
        """Makes ``prompt`` the held workflow."""
        answer = self.call("PUT", "/workflow", prompt)
        assert answer.status == 200, answer

    def held(self) -> Json:
        """The held workflow."""
        prompt: Json = self.get("/workflow").json["prompt"]
        return prompt

    def start(self) -> str:
        """Starts a run; its prompt_id."""
        answer = self.get("/queue")
        assert answer.status == 202, answer
        return str(answer.json["prompt_id"])

    def end(self, prompt_id: str) -> Json:
        """The run when it is over."""
        answer = self.get("/runs/%s?wait=15" % prompt_id)
        assert answer.status == 200 and answer.json["over"], answer
        told: Json = answer.json
        return told

    def running(self, prompt_id: str) -> None:
        """Comes back when the run runs."""
        wait_until(lambda: self.get("/runs/" + prompt_id).json["phase"] == "running", what="the run's start")

    def events(self, path: str = "/events", buffer: int = 0) -> Events:
        """The event stream."""
        self.readers.append(Events(self.port, path, buffer))
        return self.readers[-1]

    def end_streams(self) -> None:
        """Closes what is still open of the event streams; the service sees that when it writes to them."""
        for reader in self.readers:
            reader.close()
        self.readers.clear()

        def gone() -> bool:
            self.service._publish(None, sse("x", {}))
            return not self.service._streams

        wait_until(gone, what="the end of the streams")


def multipart(name: str, data: bytes, **fields: str) -> Tuple[bytes, str]:
    """A multipart body, and its content type."""
    head = 'Content-Disposition: form-data; name="%s"'
    parts = [(head % key).encode() + b"\r\n\r\n" + value.encode() for key, value in fields.items()]
    parts.append(((head + '; filename="%s"') % ("image", name)).encode() + b"\r\n\r\n" + data)
    return b"".join(
        b"--cut\r\n" + part + b"\r\n" for part in parts
    ) + b"--cut--\r\n", "multipart/form-data; boundary=cut"


def submitted(simulator: Any) -> List[Json]:
    """The prompts that ComfyUI has finished, the oldest first."""
    life = simulator._server.life
    with life.lock:
        return [entry["prompt"][2] for entry in life.history.values()]


def post_elsewhere(simulator: Any, prompt: Json) -> str:
    """Somebody else's prompt: its prompt_id."""
    connection = http.client.HTTPConnection("127.0.0.1", simulator.port, timeout=10.0)
    connection.request("POST", "/prompt", json.dumps({"prompt": prompt, "client_id": "somebody else"}))
    prompt_id = str(json.loads(connection.getresponse().read())["prompt_id"])
    connection.close()
    return prompt_id


def phase_elsewhere(simulator: Any, prompt_id: str) -> str:
    """Where a prompt is by ComfyUI's own word."""
    life = simulator._server.life
    running, pending = life.snapshot()
    if any(job.item()[1] == prompt_id for job in running):
        return "running"
    if any(job.item()[1] == prompt_id for job in pending):
        return "pending"
    with life.lock:
        return str(life.history[prompt_id]["status"]["status_str"]) if prompt_id in life.history else "gone"


@pytest.fixture
def make_middleware(make_simulator: Make, tmp_path: Any) -> Iterator[Callable[..., Middleware]]:
    """Starts programs that are stopped at the end of the test, before the simulators are."""
    started = []

    def make(
        simulator: Any,
        *arguments: str,
        prompt: Optional[Json] = None,
        environment: Optional[Mapping[str, str]] = None,
        limits: Limits = FAST,
    ) -> Middleware:
        path = tmp_path / "held.json"
        path.write_text(json.dumps(prompt or slow_prompt(steps=2, seconds=0.0)), encoding="utf-8")
        server = simulator if isinstance(simulator, str) else simulator.url
        made = Middleware(["--server", server, str(path), *arguments], environment or {}, limits)
        started.append(made)
        if not isinstance(simulator, str) and simulator._server is not None:
            wait_until(lambda: made.get("/status").json["comfyui"]["connected"], what="the connection to ComfyUI")
        return made

    yield make
    for each in started:
        for reader in each.readers:
            reader.close()
        each.stop()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: Any) -> Iterator[Tuple[Any, Middleware]]:
    """One simulator and one program for the stories that leave both as they were."""
    path = tmp_path_factory.mktemp("middleware") / "held.json"
    path.write_text(json.dumps(TEXTS), encoding="utf-8")
    with Simulator(max_upload_size=4 << 20) as simulator:
        program = Middleware(["--server", simulator.url, str(path)], {}, FAST._replace(cancel=1.0))
        wait_until(lambda: program.get("/status").json["comfyui"]["connected"])
        wait_until(lambda: program.service.session.connected, what="the WebSocket")
        yield simulator, program
        assert program.stop() == 0


@pytest.fixture
def comfyui(shared: Tuple[Any, Middleware]) -> Any:
    """The ComfyUI of ``service``."""
    return shared[0]


@pytest.fixture
def service(shared: Tuple[Any, Middleware]) -> Iterator[Middleware]:
    """The service with the workflow of its file, and with nothing in the queue."""
    simulator, program = shared
    simulator.faults = Faults()
    assert program.post("/workflow/reset").status == 200
    simulator.asked.clear()
    yield program
    simulator.faults = Faults()
    program.end_streams()
    for record in list(program.service._records.values()):
        if not record.over.is_set():
            program.post("/interrupt", {"prompt_id": record.run.prompt_id})
            record.over.wait(10.0)
    for job in [job for jobs in simulator._server.life.snapshot() for job in jobs]:
        simulator._server.life.interrupt(job.item()[1]) or simulator._server.life.delete(job.item()[1])


# ------------------------------------------------------------------------------------------------
# Rules without a socket: who is let in
# ------------------------------------------------------------------------------------------------


def request(method: str = "GET", path: str = "/queue", **headers: str) -> Any:
    given = {"host": "127.0.0.1:8189", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return Request(method, path, {}, given)


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


def test_a_referer_that_is_no_url_is_foreign_and_no_fault_of_ours() -> None:
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
    headers = {name: value.replace("COOKIE", guard.cookie()) for name, value in headers.items()}
    assert (guard.refusal(request(**headers)) is None) is known
    assert "s3cret" not in guard.cookie()


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


# ------------------------------------------------------------------------------------------------
# Rules without a socket: routes, fields, documents
# ------------------------------------------------------------------------------------------------


def test_every_route_is_found_by_its_method_and_path() -> None:
    for row in ROUTES:
        found, parts = find_route(row.method, row.path.replace("{prompt_id}", "a%2Fb"))
        assert found is row
        assert parts == ({"prompt_id": "a/b"} if "{" in row.path else {})
        assert callable(getattr(Service, row.handler))


def test_head_is_taken_wherever_get_is() -> None:
    assert find_route("HEAD", "/status")[0].method == "GET"
    with pytest.raises(HttpError) as caught:
        find_route("HEAD", "/interrupt")
    assert caught.value.http_status == 405


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/queue", "GET, POST, HEAD, OPTIONS"),
        ("DELETE", "/workflow", "GET, PUT, HEAD, OPTIONS"),
        ("GET", "/interrupt", "POST, OPTIONS"),
        ("POST", "/runs/x", "GET, HEAD, OPTIONS"),
        ("BREW", "/status", "GET, HEAD, OPTIONS"),
        ("get", "/status", "GET, HEAD, OPTIONS"),
    ],
)
def test_another_method_is_told_what_the_path_takes(method: str, path: str, allow: str) -> None:
    with pytest.raises(HttpError) as caught:
        find_route(method, path)
    assert caught.value.http_status == 405
    assert caught.value.headers == (("Allow", allow),)


@pytest.mark.parametrize("path", ["", "/queue/", "/Queue", "/runs/", "/runs/a/b", "/view/x", "/.", "/%2e", "*"])
def test_another_path_is_not_found(path: str) -> None:
    with pytest.raises(HttpError) as caught:
        find_route("GET", path)
    assert (caught.value.http_status, caught.value.type) == (404, "not_found")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "not_json"),
        (b"\xff", "not_json"),
        (b"[" * 100000, "not_json"),
        (b"1" * 5000 + b"x", "not_json"),
        (b"[]", "not_an_object"),
        (b"null", "not_an_object"),
        (b'"text"', "not_an_object"),
        (b"", "missing_field"),
        (b"{}", "missing_field"),
        (b'{"node_id": "1"}', "missing_field"),
        (b'{"text": 1}', "wrong_type"),
        (b'{"text": null}', "wrong_type"),
        (b'{"text": "a", "node_id": 6}', "wrong_type"),
        (b'{"text": "a", "inputs": []}', "wrong_type"),
    ],
)
def test_what_is_no_such_object_is_told_with_400(body: bytes, reason: str) -> None:
    with pytest.raises(HttpError) as caught:
        parse_fields(body, {"text": str}, {"node_id": str, "inputs": dict})
    assert (caught.value.http_status, caught.value.type) == (400, reason)


def test_the_fields_of_an_object_come_as_they_are() -> None:
    assert parse_fields(b'\xef\xbb\xbf{"text": "\xe7\x8b\x90", "more": 1}', {"text": str}, {}) == {
        "text": "狐",
        "more": 1,
    }
    assert parse_fields(b" \r\n", {}, {"prompt": dict}) == {}


@few
@given(st.binary(max_size=40) | anything.map(lambda value: json.dumps(value).encode()))
def test_nothing_but_an_http_error_comes_of_an_odd_body(body: bytes) -> None:
    try:
        assert isinstance(parse_fields(body, {"text": str}, {"inputs": dict}), dict)
    except HttpError as error:
        assert error.http_status == 400


def test_the_document_of_routes_is_json_and_has_every_route() -> None:
    document = json.loads(read_resource("openapi.json"))
    assert document["openapi"] == "3.1.0" and document["info"]["version"] == __version__
    there = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert there == {(row.method, row.path) for row in ROUTES}
    names = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(set(names)) == len(names)
    for methods in document["paths"].values():
        for operation in methods.values():
            assert {"401", "403", "404", "503"} <= set(operation["responses"])
    references = re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(document))
    assert set(references) <= set(document["components"]["schemas"])


def test_every_line_of_curl_names_the_address() -> None:
    lines = curl_lines("http://127.0.0.1:8189")
    commands = [line for line in lines if line.startswith("      curl ")]
    assert len(commands) == len([row for row in ROUTES if row.curl])
    for command in commands:
        assert "http://127.0.0.1:8189/" in command and "{}" not in command.replace("'{}'", "")


def test_an_error_of_ours_is_json_too() -> None:
    answer = error_response(KeyError("oops"))
    assert answer.status == 500
    assert json.loads(answer.body)["error"]["type"] == "internal_error"
    gone = error_response(ServerUnreachable("No answer.", "Start it."))
    assert (gone.status, dict(gone.headers)["Retry-After"]) == (503, "5")
    assert json.loads(gone.body)["error"]["message"] == "No answer. Start it."


# ------------------------------------------------------------------------------------------------
# The texts and the inputs
# ------------------------------------------------------------------------------------------------


def test_positive_and_negative_are_found_by_the_links_of_the_sampler(service: Middleware) -> None:
    answer = service.post("/update/prompt", {"type": "positive", "text": "a fox"})
    assert answer.status == 200
    assert (answer.json["node_id"], answer.json["changed"]) == ("2", {"text": "a fox"})
    assert answer.json["checked"] is True
    assert service.post("/update/prompt", {"type": "negative", "text": "blur"}).json["node_id"] == "3"
    held = service.held()
    assert (held["2"]["inputs"]["text"], held["3"]["inputs"]["text"]) == ("a fox", "blur")


def test_a_text_is_named_by_id_or_title(service: Middleware) -> None:
    assert service.post("/update/prompt", {"node_id": "2", "text": "by id"}).json["node_id"] == "2"
    assert service.post("/update/prompt", {"title": "Negative Prompt", "text": "by title"}).json["node_id"] == "3"
    held = service.held()
    assert (held["2"]["inputs"]["text"], held["3"]["inputs"]["text"]) == ("by id", "by title")


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({"text": "a"}, 400, "missing_field"),
        ({"text": "a", "type": "both"}, 400, "missing_field"),
        ({"text": "a", "type": "both", "node_id": "1"}, 400, "missing_field"),
        ({"type": "positive"}, 400, "missing_field"),
        ({"type": "positive", "text": 7}, 400, "wrong_type"),
        ({"node_id": 2, "text": "a"}, 400, "wrong_type"),
        ({"node_id": "99", "text": "a"}, 400, "no_such_node"),
        ({"node_id": "5", "text": "a"}, 409, "no_such_text"),
        ({"title": "CLIPTextEncode", "text": "a"}, 409, "ambiguous_node"),
        ([], 400, "not_an_object"),
    ],
)
def test_a_text_that_cannot_be_set_changes_nothing(service: Middleware, body: Any, status: int, reason: str) -> None:
    before = service.get("/workflow").json
    answer = service.post("/update/prompt", body)
    assert (answer.status, answer.error) == (status, reason)
    assert service.get("/workflow").json == before
    if status == 409:
        listed = [(each["node_id"], each["title"]) for each in answer.json["error"]["details"]]
        assert listed == [("2", "Positive Prompt"), ("3", "Negative Prompt")]


def test_inputs_are_set_together(service: Middleware) -> None:
    answer = service.post("/update/inputs", {"node_id": "5", "inputs": {"seed": 42, "steps": 3, "cfg": 4.5}})
    assert answer.status == 200
    assert answer.json["checked"] is True
    inputs = service.held()["5"]["inputs"]
    assert (inputs["seed"], inputs["steps"], inputs["cfg"]) == (42, 3, 4.5)
    assert service.post("/update/inputs", {"title": "KSampler", "inputs": {"steps": 2}}).status == 200


@pytest.mark.parametrize(
    ("inputs", "status", "reason"),
    [
        ({"steps": 3, "cfg": "high"}, 400, "invalid_input_type"),
        ({"steps": 0}, 400, "value_out_of_range"),
        ({"steps": "3"}, 400, "invalid_input_type"),
        ({"steps": 2.5}, 400, "invalid_input_type"),
        ({"steps": True}, 400, "invalid_input_type"),
        ({"steps": None}, 400, "invalid_input_type"),
        ({"steps": 10**400}, 400, "value_out_of_range"),
        ({"cfg": 1e308}, 400, "value_out_of_range"),
        ({"cfg": float("nan")}, 400, "invalid_input_type"),
        ({"cfg": float("inf")}, 400, "invalid_input_type"),
        ({"sampler_name": "eular"}, 400, "value_not_in_list"),
        ({"sampler_name": "random"}, 400, "value_not_in_list"),
        ({"no_such": 1}, 400, "no_such_input"),
        ({"model": ["1", 0]}, 409, "linked_input"),
        ({"positive": "a fox"}, 409, "linked_input"),
        ({"steps": "random"}, 400, "invalid_input_type"),
    ],
)
def test_a_bad_edit_changes_nothing(service: Middleware, inputs: Json, status: int, reason: str) -> None:
    before = service.get("/workflow").json
    answer = service.post("/update/inputs", {"node_id": "5", "inputs": {"denoise": 0.5, **inputs}})
    assert (answer.status, answer.error) == (status, reason)
    assert service.get("/workflow").json == before


def test_an_edit_without_a_node_is_refused(service: Middleware) -> None:
    assert service.post("/update/inputs", {"inputs": {}}).error == "missing_field"
    assert service.post("/update/inputs", {"node_id": "5"}).error == "missing_field"


def test_a_random_seed_is_drawn_at_each_run(service: Middleware, comfyui: Any) -> None:
    assert service.post("/update/inputs", {"node_id": "5", "inputs": {"seed": "random", "steps": 1}}).status == 200
    (field,) = [field for field in service.get("/workflow").json["fields"] if field["input"] == "seed"]
    assert field["random"] is True
    for _ in range(2):
        assert service.end(service.start())["phase"] == "success"
    answer = service.post("/prompt")
    assert answer.status == 200
    service.end(answer.json["prompt_id"])
    seeds = [prompt["5"]["inputs"]["seed"] for prompt in submitted(comfyui)[-3:]]
    assert len(set(seeds)) == 3 and all(isinstance(seed, int) for seed in seeds)
    service.post("/update/inputs", {"node_id": "5", "inputs": {"seed": 7}})
    service.end(service.start())
    assert submitted(comfyui)[-1]["5"]["inputs"]["seed"] == 7


# ------------------------------------------------------------------------------------------------
# The held workflow
# ------------------------------------------------------------------------------------------------


def test_the_workflow_is_told_with_what_can_be_set(service: Middleware) -> None:
    told = service.get("/workflow").json
    assert told["prompt"] == TEXTS
    assert told["file"].endswith("held.json")
    assert [field["role"] for field in told["fields"]][:2] == ["positive", "negative"]


def test_another_workflow_takes_its_place_and_reset_brings_the_file_back(service: Middleware) -> None:
    answer = service.call("PUT", "/workflow", slow_prompt())
    assert (answer.status, answer.json["nodes"], answer.json["checked"]) == (200, 2, True)
    assert service.held() == slow_prompt()
    assert service.get("/status").json["workflow"]["changed"] is True
    back = service.post("/workflow/reset")
    assert (back.status, back.json["nodes"]) == (200, 7)
    assert back.json["revision"] > answer.json["revision"]
    assert service.held() == TEXTS
    assert service.get("/status").json["workflow"]["changed"] is False


def test_reset_reads_the_file_as_it_is_now(make_middleware: Make, simulator: Any, tmp_path: Any) -> None:
    service = make_middleware(simulator)
    (tmp_path / "held.json").write_text(json.dumps(TEXTS), encoding="utf-8")
    assert service.held() != TEXTS
    assert service.post("/workflow/reset").status == 200
    assert service.held() == TEXTS
    (tmp_path / "held.json").write_text("{", encoding="utf-8")
    assert service.post("/workflow/reset").status == 400
    (tmp_path / "held.json").unlink()
    assert service.post("/workflow/reset").status == 400
    assert service.held() == TEXTS


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"1": {}}',
        b'{"nodes": [], "links": []}',
        b'{"1": {"class_type": "KSampler"}}',
        b"[" * 50000,
    ],
)
def test_what_is_no_workflow_is_refused(service: Middleware, body: bytes) -> None:
    answer = service.call("PUT", "/workflow", body)
    assert (answer.status, answer.error) == (400, "workflow_error")
    assert service.held() == TEXTS


def test_a_workflow_that_cannot_run_here_is_refused_with_all_reasons(service: Middleware) -> None:
    prompt = {
        "1": node("NoSuchNode", "Missing", image=["2", 0]),
        "2": node("SlowProgress", steps=-1, seconds=0.0, seed=1, preview=False),
    }
    answer = service.call("PUT", "/workflow", prompt)
    assert (answer.status, answer.error) == (400, "invalid_workflow")
    problems = answer.json["error"]["details"]["problems"]
    assert [(problem["node_id"], problem["type"]) for problem in problems] == [
        ("1", "missing_node_type"),
        ("2", "value_smaller_than_min"),
    ]
    assert service.held() == TEXTS


def test_the_workflow_with_an_uploaded_picture_can_be_put_back(service: Middleware) -> None:
    service.hold(LOADER)
    for fields in ({}, {"subfolder": "deep"}, {"type": "temp"}):
        assert service.upload(name="fresh.png", **fields).status == 200
        held = service.held()
        answer = service.call("PUT", "/workflow", held)
        assert answer.status == 200, answer.body
        assert service.end(service.start())["phase"] == "success"


def test_a_deep_chain_of_nodes_is_read_all_the_same(service: Middleware) -> None:
    chain = {str(i): node("ConditioningAverage", conditioning_to=[str(i + 1), 0]) for i in range(1000, 4000)}
    sampler = {**TEXTS["5"]["inputs"], "positive": ["1000", 0]}
    service.service._hold({**TEXTS, **chain, "4000": TEXTS["2"], "5": node("KSampler", **sampler)}, set())
    assert service.get("/workflow").status == 200
    assert service.post("/update/prompt", {"type": "positive", "text": "a"}).json["node_id"] == "4000"


# ------------------------------------------------------------------------------------------------
# Uploads
# ------------------------------------------------------------------------------------------------


def uploads(simulator: Any) -> int:
    return [path for _, path in simulator.requests].count("/upload/image")


def files(simulator: Any) -> List[str]:
    return sorted(name for _, _, names in os.walk(simulator.root) for name in names)


def test_a_picture_goes_into_the_one_loader(service: Middleware, comfyui: Any) -> None:
    service.hold(LOADER)
    answer = service.upload(name="only.png")
    assert answer.status == 200
    assert (answer.json["name"], answer.json["nodes"]) == ("only.png", ["1"])
    assert service.held()["1"]["inputs"]["image"] == "only.png"
    with open(os.path.join(comfyui.folder("input"), "only.png"), "rb") as file:
        assert file.read() == PNG
    assert service.end(service.start())["phase"] == "success"


def test_the_name_that_comfyui_gives_is_the_one_that_is_set(service: Middleware) -> None:
    service.hold(LOADER)
    assert service.upload(name="taken.png").json["name"] == "taken.png"
    other = draw(8, 8, 2, ["B"])
    assert service.upload(name="taken.png", data=other).json["name"] == "taken (1).png"
    assert service.held()["1"]["inputs"]["image"] == "taken (1).png"
    assert service.upload(name="taken.png", data=other, overwrite="true").json["name"] == "taken.png"
    assert service.held()["1"]["inputs"]["image"] == "taken.png"


@pytest.mark.parametrize(
    ("fields", "value"),
    [
        ({"subfolder": "deep"}, "deep/f.png"),
        ({"type": "temp"}, "f.png [temp]"),
        ({"type": "output", "subfolder": "a/b"}, "a/b/f.png [output]"),
    ],
)
def test_every_field_of_the_upload_passes(service: Middleware, fields: Dict[str, str], value: str) -> None:
    service.hold(LOADER)
    assert service.upload(name="f.png", **fields).status == 200
    assert service.held()["1"]["inputs"]["image"] == value
    assert service.end(service.start())["phase"] == "success"


def test_several_loaders_are_listed_and_nothing_is_forwarded(service: Middleware, comfyui: Any) -> None:
    service.hold(TWO_LOADERS)
    answer = service.upload()
    assert (answer.status, answer.error) == (409, "ambiguous_node")
    assert [(each["node_id"], each["title"]) for each in answer.json["error"]["details"]] == [
        ("1", "Photo"),
        ("2", "Style"),
    ]
    assert uploads(comfyui) == 0
    assert service.held() == TWO_LOADERS


@pytest.mark.parametrize(("name", "changed"), [("2", ["2"]), ("Style", ["2"]), ("Photo", ["1"]), ("all", ["1", "2"])])
def test_a_loader_is_named_by_id_or_title_or_all_are(service: Middleware, name: str, changed: List[str]) -> None:
    service.hold(TWO_LOADERS)
    answer = service.upload("/upload/image?node_id=" + name, "named.png")
    assert (answer.status, answer.json["nodes"]) == (200, changed)
    held = service.held()
    assert [i for i in ("1", "2") if held[i]["inputs"]["image"] == "named.png"] == changed


@pytest.mark.parametrize(
    ("name", "status", "reason"),
    [("99", 400, "no_such_node"), ("4", 409, "no_loader"), ("LoadImage", 409, "ambiguous_node")],
)
def test_a_node_that_is_no_loader_is_refused(
    service: Middleware, comfyui: Any, name: str, status: int, reason: str
) -> None:
    service.hold(TWO_LOADERS)
    answer = service.upload("/upload/image?node_id=" + name)
    assert (answer.status, answer.error) == (status, reason)
    assert uploads(comfyui) == 0


def test_without_a_loader_nothing_is_forwarded(service: Middleware, comfyui: Any) -> None:
    answer = service.upload()
    assert (answer.status, answer.error) == (409, "no_loader")
    assert uploads(comfyui) == 0


def test_masks_videos_and_audio_are_loaders_by_their_marks(service: Middleware) -> None:
    for class_type, name, file_name in [("LoadVideo", "file", "a.mp4"), ("LoadAudio", "audio", "a.flac")]:
        service.service._hold({"1": node(class_type, **{name: "old"})}, set())
        assert service.upload(name=file_name, data=b"media").status == 200
        assert service.held()["1"]["inputs"][name] == file_name
    service.service._hold({"1": node("LoadImageMask", image="example.png", channel="red")}, set())
    assert service.upload(name="mask.png").json["nodes"] == ["1"]


def test_an_upload_that_is_no_form_is_refused(service: Middleware, comfyui: Any) -> None:
    service.hold(LOADER)
    assert service.post("/upload/image", PNG, Content_Type="image/png").error == "not_multipart"
    assert service.post("/upload/image", b"").error == "not_multipart"
    assert uploads(comfyui) == 0


def test_what_comfyui_refuses_is_told_with_400(service: Middleware) -> None:
    service.hold(LOADER)
    nothing = service.post("/upload/image", b"--cut--\r\n", Content_Type="multipart/form-data; boundary=cut")
    assert nothing.status == 400
    for fields in ({"subfolder": "../../.."}, {"subfolder": "/etc"}):
        answer = service.upload(name="out.png", **fields)
        assert answer.status == 400, answer
    assert service.held() == LOADER


def test_no_name_leads_out_of_comfyuis_folders(service: Middleware, comfyui: Any) -> None:
    service.hold(LOADER)
    before = {name for name in os.listdir(os.path.dirname(comfyui.root)) if "evil" in name}
    for name in ("../evil.png", "..\\\\evil.png", "/tmp/evil-of-the-tests.png"):
        assert service.upload(name=name).status in (200, 400)
    assert {name for name in os.listdir(os.path.dirname(comfyui.root)) if "evil" in name} == before
    assert not os.path.exists("/tmp/evil-of-the-tests.png")


def test_with_auto_execute_an_upload_runs(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator, "--auto-execute", prompt=LOADER)
    answer = service.upload()
    assert (answer.status, answer.json["name"]) == (202, "cat.png")
    assert service.end(answer.json["prompt_id"])["phase"] == "success"
    assert submitted(simulator)[-1]["1"]["inputs"]["image"] == "cat.png"


def test_a_client_that_goes_away_in_the_middle_leaves_nothing_in_comfyui(service: Middleware, comfyui: Any) -> None:
    service.hold(LOADER)
    before = files(comfyui)
    body, kind = multipart("half.png", b"x" * 300000)
    head = "POST /upload/image HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
    with service.connect() as connection:
        connection.sendall((head % (kind, len(body))).encode() + body[:200000])
    wait_until(lambda: not service.listener.open, what="the end of the connection")
    assert uploads(comfyui) == 0
    assert files(comfyui) == before
    assert service.held() == LOADER


def test_too_large_an_upload_is_refused_before_its_body_is_read(service: Middleware, comfyui: Any) -> None:
    service.hold(LOADER)
    head = b"POST /upload/image HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=cut\r\n"
    answer = service.raw(head + b"Content-Length: %d\r\n\r\n" % (5 << 20))
    assert (answer.status, answer.error) == (413, "too_large")
    assert answer.headers["connection"] == "close"
    assert uploads(comfyui) == 0


def test_a_client_that_sends_on_can_still_read_that_it_is_too_large(service: Middleware) -> None:
    service.hold(LOADER)
    for _ in range(5):
        answer = service.upload(data=b"x" * (5 << 20))
        assert (answer.status, answer.error) == (413, "too_large")
        assert service.call("PUT", "/workflow", b" " * ((16 << 20) + 1)).status == 413


def test_json_of_more_than_16_mib_is_refused(service: Middleware) -> None:
    for method, path in [
        ("PUT", "/workflow"),
        ("POST", "/update/prompt"),
        ("POST", "/update/inputs"),
        ("POST", "/queue"),
        ("POST", "/prompt"),
        ("POST", "/interrupt"),
        ("POST", "/login"),
    ]:
        head = "%s %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (method, path, (16 << 20) + 1)
        assert service.raw(head.encode()).status == 413


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/upload/image", "Content-Type: multipart/form-data; boundary=cut\r\nContent-Length: 99999999", 413),
        ("/upload/image", "Content-Type: image/png\r\nContent-Length: 10", 400),
        ("/upload/image", "Origin: http://evil.example\r\nContent-Length: 10", 403),
        ("/upload/image?node_id=99", "Content-Type: multipart/form-data; boundary=cut\r\nContent-Length: 10", 400),
        ("/nowhere", "Content-Length: 10", 404),
        ("/status", "Content-Length: 10", 405),
    ],
)
def test_a_client_that_asks_first_is_told_no_instead_of_to_go_on(
    service: Middleware, path: str, headers: str, status: int
) -> None:
    service.hold(LOADER)
    head = "POST %s HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n%s\r\n\r\n" % (path, headers)
    answer = service.raw(head.encode())
    assert answer.status == status
    assert answer.headers["connection"] == "close"  # whether the body comes now cannot be known


def test_a_client_that_asks_first_is_told_to_go_on(service: Middleware) -> None:
    service.hold(LOADER)
    body, kind = multipart("asked.png", PNG)
    head = "POST /upload/image HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Type: %s\r\n" % kind
    with service.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body))
        assert read_answer(file).status == 100
        connection.sendall(body)
        assert read_answer(file).json["name"] == "asked.png"
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert read_answer(file).status == 200


# ------------------------------------------------------------------------------------------------
# Runs
# ------------------------------------------------------------------------------------------------


def test_a_run_is_started_followed_and_told_with_its_pictures(service: Middleware) -> None:
    answer = service.get("/queue")
    assert (answer.status, answer.json["message"]) == (202, "execution started")
    assert isinstance(answer.json["ahead"], int)  # its place in the queue
    told = service.end(answer.json["prompt_id"])
    assert told["phase"] == "success"
    assert told["message"].startswith("Done in ")
    assert sorted(each["node_id"] for each in told["nodes"]) == ["1", "2", "3", "4", "5", "6", "7"]
    (output,) = told["outputs"]
    picture = service.get("/" + output["url"].lstrip("/"))
    assert (picture.status, picture.headers["content-type"]) == (200, "image/png")
    assert picture.body.startswith(b"\x89PNG")
    assert answer.json["prompt_id"] in [each["prompt_id"] for each in service.get("/runs").json["runs"]]


def test_post_and_paths_under_api_do_the_same(service: Middleware) -> None:
    for method, path in [("POST", "/queue"), ("GET", "/api/queue"), ("POST", "/api/queue")]:
        answer = service.call(method, path)
        assert answer.status == 202
        assert service.end(answer.json["prompt_id"])["over"]
    assert service.post("/queue", {}).status == 202


def test_every_path_is_there_under_api_too(service: Middleware) -> None:
    for row in ROUTES:
        path = row.path.replace("{prompt_id}", "none")
        if row.method == "GET" and row.path not in ("/queue", "/events"):
            plain, other = service.get(path), service.get("/api" + path)
            assert (plain.status, plain.headers["content-type"]) == (other.status, other.headers["content-type"])
        assert service.call("OPTIONS", "/api" + path).headers["allow"] == service.call("OPTIONS", path).headers["allow"]
    assert service.get("/api").body == service.get("/").body
    assert service.get("/api/api/status").status == service.get("/apis").status == 404


def test_asking_with_head_starts_nothing(service: Middleware, comfyui: Any) -> None:
    for path in ("/queue", "/api/queue", "/events", "/status", "/"):
        assert service.raw(b"HEAD %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode()).status == 200
    assert ("POST", "/prompt") not in comfyui.requests
    assert not service.service._streams


@pytest.mark.parametrize("body", [{"clear": True}, {"delete": ["x"]}, {"clear": False}])
def test_the_queue_of_comfyui_cannot_be_emptied_from_here(service: Middleware, comfyui: Any, body: Json) -> None:
    answer = service.post("/queue", body)
    assert (answer.status, answer.error) == (400, "not_supported")
    assert not [call for call in comfyui.requests if call[0] == "POST"]


def test_a_body_that_is_no_json_starts_nothing(service: Middleware, comfyui: Any) -> None:
    assert service.post("/queue", b"{").status == 400
    assert service.post("/queue", b"[]").status == 400
    assert ("POST", "/prompt") not in comfyui.requests


def test_an_edit_during_a_run_is_for_the_next_one(service: Middleware, comfyui: Any) -> None:
    service.hold(slow_prompt(steps=10, seconds=3.0, seed=1))
    first = service.start()
    service.running(first)
    second = service.start()
    assert service.post("/update/inputs", {"node_id": "1", "inputs": {"seed": 2, "seconds": 0.0}}).status == 200
    third = service.start()
    for prompt_id in (first, second):
        assert service.post("/interrupt", {"prompt_id": prompt_id}).status == 200
    assert service.end(third)["phase"] == "success"
    life = comfyui._server.life
    entry = life.history[third]["prompt"][2]
    assert entry["1"]["inputs"]["seed"] == 2
    assert life.history[first]["prompt"][2]["1"]["inputs"]["seed"] == 1


def test_a_place_in_the_queue_is_told(service: Middleware, comfyui: Any) -> None:
    foreign = post_elsewhere(comfyui, slow_prompt(steps=10, seconds=20.0))
    wait_until(lambda: phase_elsewhere(comfyui, foreign) == "running")
    service.hold(slow_prompt(steps=1, seconds=0.0, seed=5))
    first, second = service.get("/queue").json, service.get("/queue").json
    assert (first["ahead"], second["ahead"]) == (1, 2)
    wait_until(lambda: service.get("/runs/" + second["prompt_id"]).json["ahead"] == 2, what="the place in the queue")
    comfyui._server.life.interrupt(foreign)
    assert service.end(second["prompt_id"])["phase"] == "success"


def test_more_than_max_queue_of_ours_are_refused_for_now(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator, "--max-queue", "2", prompt=slow_prompt(steps=100, seconds=30.0))
    answers = [service.get("/queue") for _ in range(5)]
    refused = [answer for answer in answers if answer.status == 429]
    assert answers[0].status == answers[1].status == 202
    assert refused and refused[0].error == "queue_full"
    assert int(refused[0].headers["retry-after"]) > 0
    assert service.post("/prompt", {"prompt": slow_prompt()}).status == 429
    posted = [call for call in simulator.requests if call == ("POST", "/prompt")]
    assert len(posted) == len(answers) - len(refused)
    service.hold(LOADER)
    assert service.upload().status == 200  # it starts nothing


def test_many_at_once_do_not_pass_max_queue_either(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator, "--max-queue", "2", prompt=slow_prompt(steps=100, seconds=30.0))
    simulator.faults.http_hang["/prompt"] = 0.3
    answers: List[Answer] = []
    clients = [threading.Thread(target=lambda: answers.append(service.get("/queue"))) for _ in range(12)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert {answer.status for answer in answers} == {202, 429}
    assert len([answer for answer in answers if answer.status == 202]) <= 3


def test_a_workflow_that_comfyui_refuses_is_told_in_words(service: Middleware) -> None:
    service.service._hold({"1": node("SaveImage", "Save", filename_prefix="x", images=["9", 0])}, set())
    answer = service.get("/queue")
    assert (answer.status, answer.error) == (400, "prompt_rejected")
    assert answer.json["error"]["details"]["problems"]


def test_what_went_wrong_is_told_with_the_run(service: Middleware) -> None:
    service.hold({
        "1": node("EmptyImage", width=8, height=8, batch_size=1, color=0),
        "2": node("FailNode", "Broken", message="out of luck", image=["1", 0]),
        "3": node("SaveImage", "Save", filename_prefix="x", images=["2", 0]),
    })  # fmt: skip
    told = service.end(service.start())
    assert told["phase"] == "error"
    assert (told["failure"]["node_id"], told["failure"]["message"]) == ("2", "out of luck")
    assert told["failure"]["traceback"]


def test_a_run_that_nobody_knows_is_not_found(service: Middleware) -> None:
    answer = service.get("/runs/none")
    assert (answer.status, answer.error) == (404, "no_such_run")


@pytest.mark.parametrize("wait", ["-1", "soon", "inf", "nan", "1e3", "1" * 20])
def test_a_wait_that_is_no_number_is_refused(service: Middleware, wait: str) -> None:
    prompt_id = service.start()
    assert service.get("/runs/%s?wait=%s" % (prompt_id, wait)).status == 400
    service.end(prompt_id)


def test_a_wait_ends_with_the_run_or_in_time(service: Middleware, monkeypatch: pytest.MonkeyPatch) -> None:
    service.hold(slow_prompt(steps=20, seconds=20.0, seed=11))
    prompt_id = service.start()
    began = time.monotonic()
    assert service.get("/runs/%s?wait=0.2" % prompt_id).json["over"] is False
    assert 0.2 <= time.monotonic() - began < 5.0
    waits: List[float] = []
    over = service.service._records[prompt_id].over
    monkeypatch.setattr(over, "wait", lambda seconds: waits.append(seconds))
    service.get("/runs/%s?wait=100000" % prompt_id)
    assert waits == [60.0]
    monkeypatch.undo()
    told: List[Json] = []
    client = threading.Thread(target=lambda: told.append(service.end(prompt_id)))
    client.start()
    assert service.post("/interrupt").status == 200
    client.join(5.0)
    assert told[0]["phase"] == "interrupted"


def test_the_last_200_runs_are_kept(service: Middleware, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comfyui_runner.service.RUNS_KEPT", 6)
    service.hold(slow_prompt(steps=1, seconds=0.0, seed=3))
    started = []
    for _ in range(8):
        started.append(service.start())
        service.end(started[-1])
        there = [each["prompt_id"] for each in service.get("/runs").json["runs"]]
        assert there[: min(len(started), 6)] == started[::-1][:6]
    assert len(there) <= 7


def test_refused_runs_do_not_pile_up(service: Middleware, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comfyui_runner.service.RUNS_KEPT", 6)
    service.service._hold({"1": node("SaveImage", "Save", filename_prefix="x", images=["9", 0])}, set())
    for _ in range(12):
        assert service.get("/queue").status == 400
    assert len(service.service._records) <= 7


def test_half_of_the_kept_runs_stay_too(service: Middleware, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comfyui_runner.service.RUNS_KEPT", 20)
    assert "(the last 20 are kept)" in service.get("/runs/nowhere").json["error"]["message"]
    service.service._records.clear()
    service.hold(slow_prompt(steps=1, seconds=0.0, seed=3))
    started = []
    for _ in range(13):
        started.append(service.start())
        service.end(started[-1])
    assert [each["prompt_id"] for each in service.get("/runs").json["runs"]] == started[::-1]


# ------------------------------------------------------------------------------------------------
# ComfyUI's own call
# ------------------------------------------------------------------------------------------------


def straight(simulator: Any, body: Any) -> Answer:
    """ComfyUI's own answer to POST /prompt."""
    connection = http.client.HTTPConnection("127.0.0.1", simulator.port, timeout=10.0)
    connection.request("POST", "/prompt", json.dumps(body))
    response = connection.getresponse()
    answer = Answer(response.status, {}, response.read())
    connection.close()
    return answer


def test_a_prompt_of_a_client_of_comfyui_runs_and_is_followed(service: Middleware, comfyui: Any) -> None:
    events = service.events()
    body = {"prompt": slow_prompt(steps=2, seconds=0.0, seed=77), "client_id": "theirs", "extra_data": {"x": 1}}
    answer = service.post("/prompt", body)
    assert answer.status == 200
    assert set(answer.json) == {"prompt_id", "number", "node_errors"}
    prompt_id = answer.json["prompt_id"]
    assert service.end(prompt_id)["phase"] == "success"
    events.until(lambda name, data: name == "run" and data["prompt_id"] == prompt_id and data["over"])
    events.close()
    item = comfyui._server.life.history[prompt_id]["prompt"]
    assert item[3]["client_id"] == service.service.session.client_id
    assert item[3]["x"] == 1
    assert service.held() == TEXTS


def test_the_prompt_id_of_a_client_is_kept(service: Middleware) -> None:
    prompt_id = new_uuid()
    body = {"prompt": slow_prompt(steps=1, seconds=0.0), "prompt_id": prompt_id}
    assert service.post("/prompt", body).json["prompt_id"] == prompt_id
    service.end(prompt_id)
    assert service.post("/prompt", body).status == 400  # it is taken
    for wrong in ("", "x", prompt_id.upper(), 7, "../../x"):
        assert service.post("/prompt", {**body, "prompt_id": wrong}).status == 400


@pytest.mark.parametrize(
    "prompt",
    [
        {},
        {"1": node("NoSuchNode")},
        {"1": {"inputs": {}}},
        {"1": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x"}}},
        {"1": node("SaveImage", filename_prefix="x", images=["9", 0])},
        {"1": node("EmptyImage", width=1, height=1, batch_size=1, color=0)},
        {"1": node("SlowProgress", steps=-5, seconds="x", seed=1, preview=False), "2": slow_prompt()["2"]},
    ],
)
def test_what_comfyui_says_is_wrong_comes_back_as_it_is(service: Middleware, comfyui: Any, prompt: Json) -> None:
    theirs, ours = straight(comfyui, {"prompt": prompt}), service.post("/prompt", {"prompt": prompt})
    assert ours.status == theirs.status == 400
    assert ours.json == theirs.json


@pytest.mark.parametrize("prompt", [{"1": node("NoSuchNode", "A node")}, {"1": "text"}, {"1": {}}, {"1": None}])
def test_a_part_that_is_refused_is_told_with_400(service: Middleware, prompt: Json) -> None:
    assert service.post("/prompt", {"prompt": prompt}).status == 400


def test_half_of_a_prompt_that_runs_is_told_with_what_was_refused(service: Middleware, comfyui: Any) -> None:
    prompt = {
        **slow_prompt(steps=1, seconds=0.0, seed=21),
        "3": node("SaveImage", "Other", filename_prefix="y", images=["9", 0]),
    }
    answer = service.post("/prompt", {"prompt": prompt})
    theirs = straight(comfyui, {"prompt": prompt})
    assert answer.status == theirs.status
    if answer.status == 200:
        assert answer.json["node_errors"] == theirs.json["node_errors"]


def test_a_request_that_breaks_comfyui_is_no_undeclared_answer(service: Middleware, comfyui: Any) -> None:
    body = {"prompt": slow_prompt(), "number": "first"}
    assert straight(comfyui, body).status == 500
    answer = service.post("/prompt", body)
    assert answer.status in (400, 503), answer


def test_with_no_body_the_held_workflow_runs(service: Middleware, comfyui: Any) -> None:
    answer = service.post("/prompt")
    assert answer.status == 200
    service.end(answer.json["prompt_id"])
    assert submitted(comfyui)[-1] == TEXTS


# ------------------------------------------------------------------------------------------------
# Stopping a run
# ------------------------------------------------------------------------------------------------


def test_the_running_one_is_interrupted_first(service: Middleware) -> None:
    service.hold(slow_prompt(steps=20, seconds=20.0, seed=31))
    first, second = service.start(), service.start()
    service.running(first)
    answer = service.post("/interrupt")
    assert (answer.status, answer.json["prompt_id"], answer.json["phase"]) == (200, first, "interrupted")
    assert "Somebody else" not in answer.json["message"]
    assert service.end(first)["over"]
    service.running(second)
    assert service.post("/interrupt", b"").json["prompt_id"] == second


def test_a_waiting_one_is_taken_off_the_queue_by_its_id(service: Middleware, comfyui: Any) -> None:
    service.hold(slow_prompt(steps=20, seconds=20.0, seed=32))
    first, second = service.start(), service.start()
    service.running(first)
    answer = service.post("/interrupt", {"prompt_id": second})
    assert (answer.status, answer.json["phase"]) == (200, "deleted")
    assert comfyui.executions.get(second, 0) == 0
    assert service.get("/runs/" + first).json["phase"] == "running"


def test_somebody_elses_run_is_never_stopped(service: Middleware, comfyui: Any) -> None:
    foreign = post_elsewhere(comfyui, slow_prompt(steps=10, seconds=20.0, seed=33))
    wait_until(lambda: phase_elsewhere(comfyui, foreign) == "running")
    for body in (None, {}, {"prompt_id": foreign}):
        answer = service.post("/interrupt", body)
        assert (answer.status, answer.error) == (409, "nothing_to_interrupt")
    service.hold(slow_prompt(steps=1, seconds=0.0, seed=34))
    waiting = service.start()
    assert service.post("/interrupt").json["prompt_id"] == waiting
    assert phase_elsewhere(comfyui, foreign) == "running"


def test_an_interrupt_that_comfyui_ignores_is_told_as_requested(service: Middleware, comfyui: Any) -> None:
    comfyui.faults.ignore_interrupt = True
    service.hold(slow_prompt(steps=4, seconds=2.5, seed=35))
    prompt_id = service.start()
    service.running(prompt_id)
    answer = service.post("/interrupt")
    assert (answer.status, answer.json["message"]) == (202, "requested")
    told = service.end(prompt_id)
    assert told["phase"] == "success"
    assert len(told["outputs"]) == 1


def test_what_is_over_or_unknown_cannot_be_interrupted(service: Middleware) -> None:
    prompt_id = service.start()
    service.end(prompt_id)
    for body in ({"prompt_id": prompt_id}, {"prompt_id": ""}, {"prompt_id": "none"}):
        assert service.post("/interrupt", body).status == 409
    assert service.post("/interrupt", {"prompt_id": 7}).status == 400
    assert service.post("/interrupt", b"{").status == 400


# ------------------------------------------------------------------------------------------------
# Events and previews
# ------------------------------------------------------------------------------------------------


def test_the_stream_begins_with_the_state_and_tells_a_run(service: Middleware) -> None:
    service.hold(slow_prompt(steps=3, seconds=0.3, seed=41))
    events = service.events()
    assert b"text/event-stream" in events.head and b"no-store" in events.head and b"nosniff" in events.head
    name, state = events.next() or ("", {})
    assert name == "state" and set(state) == {"status", "runs"}
    prompt_id = service.start()
    seen = events.until(lambda name, data: name == "run" and data["prompt_id"] == prompt_id and data["over"])
    reports = [data["event"] for name, data in seen if name == "report" and data["prompt_id"] == prompt_id]
    assert reports[0] == "submitted"
    assert {"started", "node_started", "progress", "node_finished"} <= set(reports)
    service.post("/update/inputs", {"node_id": "1", "inputs": {"seed": 42}})
    events.until(lambda name, data: name == "workflow" and data["revision"] > 1)
    events.close()


def test_a_stream_of_one_run_tells_of_no_other(service: Middleware) -> None:
    service.hold(slow_prompt(steps=2, seconds=0.0, seed=43))
    mine = service.start()
    service.end(mine)
    events = service.events("/events?prompt_id=" + mine)
    _, state = events.next() or ("", {})
    assert [each["prompt_id"] for each in state["runs"]] == [mine]
    other = service.start()
    service.end(other)
    service.post("/workflow/reset")
    seen = events.until(lambda name, data: name == "workflow")
    events.close()
    assert other not in json.dumps(seen)


def test_a_quiet_stream_is_kept_alive_by_comments(service: Middleware, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: List[float] = []

    class Patient(queue.Queue):  # type: ignore[type-arg]
        def get(self, block: bool = True, timeout: Optional[float] = None) -> Any:
            waits.append(timeout or 0.0)
            return super().get(block, 0.05)

    class Quick(Stream):
        def __init__(self, prompt_id: Optional[str]) -> None:
            super().__init__(prompt_id)
            self.waiting = Patient(STREAM_QUEUE)

    monkeypatch.setattr("comfyui_runner.service.Stream", Quick)
    events = service.events()
    assert (events.block() or "").startswith("event: state")
    while not (events.block() or ":").startswith(":"):
        pass  # what was still to be told of runs before
    events.close()
    assert waits[0] == 15.0


def test_a_reader_that_is_too_slow_is_dropped(service: Middleware, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comfyui_runner.service.STREAM_QUEUE", 4)
    slow, quick = service.events(buffer=4096), service.events()
    assert slow.next() and quick.next()
    wait_until(lambda: len(service.service._streams) == 2)
    for number in range(60):
        service.service._publish(None, sse("x", {"number": number, "text": "x" * 200000}))
        quick.until(lambda name, data, number=number: name == "x" and data["number"] == number)
    assert len(service.service._streams) == 1
    quick.close()
    slow.close()


def test_a_reader_that_goes_away_is_forgotten(service: Middleware) -> None:
    events = service.events()
    assert events.next()
    wait_until(lambda: len(service.service._streams) == 1)
    service.end_streams()


def test_the_newest_preview_is_shown(service: Middleware) -> None:
    service.service._records.clear()
    assert service.get("/preview").status == 404
    service.hold(slow_prompt(steps=4, seconds=0.2, seed=51, preview=True))
    events = service.events()
    prompt_id = service.start()
    events.until(lambda name, data: name == "preview" and data["prompt_id"] == prompt_id)
    events.close()
    for path in ("/preview", "/preview?prompt_id=" + prompt_id):
        answer = service.get(path)
        assert answer.status == 200
        assert answer.headers["content-type"].startswith("image/")
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert service.get("/preview?prompt_id=none").status == 404
    service.end(prompt_id)


# ------------------------------------------------------------------------------------------------
# Files that ComfyUI made
# ------------------------------------------------------------------------------------------------


def put_file(simulator: Any, name: str, data: bytes, kind: str = "output") -> None:
    with open(os.path.join(simulator.folder(kind), name), "wb") as file:
        file.write(data)


def test_a_file_is_streamed_with_its_type_and_ranges(service: Middleware, comfyui: Any) -> None:
    data = bytes(range(256)) * 2000
    put_file(comfyui, "clip.mp4", data)
    whole = service.get("/view?filename=clip.mp4")
    assert (whole.status, whole.body, whole.headers["content-type"]) == (200, data, "video/mp4")
    assert whole.headers["content-disposition"].startswith("inline")
    part = service.get("/view?filename=clip.mp4", Range="bytes=10-19")
    assert (part.status, part.body) == (206, data[10:20])
    assert part.headers["content-range"] == "bytes 10-19/%d" % len(data)
    assert service.get("/view?filename=clip.mp4", Range="bytes=9999999-").status == 416
    download = service.get("/view?filename=clip.mp4&download=1")
    assert download.headers["content-disposition"].startswith("attachment")


@pytest.mark.parametrize("name", ["page.html", "drawing.svg", "page.xhtml", "style.css", "data.json", "no_ending"])
def test_what_a_browser_might_run_is_downloaded(service: Middleware, comfyui: Any, name: str) -> None:
    put_file(comfyui, name, b"<script>alert(1)</script>")
    answer = service.get("/view?filename=" + name)
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    "query",
    [
        "",
        "filename=",
        "filename=../secret.txt",
        "filename=..%2Fsecret.txt",
        "filename=..%5Csecret.txt",
        "filename=/etc/passwd",
        "filename=a.png&subfolder=../..",
        "filename=a.png&subfolder=/etc",
        "filename=a.png&type=nonsense",
        "filename=passwd&subfolder=../../../../etc",
    ],
)
def test_no_file_outside_of_comfyuis_folders_is_shown(service: Middleware, query: str) -> None:
    answer = service.get("/view?" + query)
    assert answer.status in (400, 404)
    assert answer.json["error"]["type"]


def test_a_file_that_is_not_there_is_not_found(service: Middleware) -> None:
    assert service.get("/view?filename=none.png").status == 404


def test_a_name_with_odd_characters_stays_in_its_header(service: Middleware, comfyui: Any) -> None:
    put_file(comfyui, '狐 "a".png', PNG)
    answer = service.get("/view?filename=%E7%8B%90%20%22a%22.png")
    assert answer.status == 200
    assert answer.headers["content-disposition"] == "inline; filename*=UTF-8''%E7%8B%90%20%22a%22.png"
    assert service.get("/view?filename=%0d%0aSet-Cookie:x.png").status in (400, 404)


def test_asking_for_a_file_with_head_leaves_no_connection_behind(service: Middleware, comfyui: Any) -> None:
    put_file(comfyui, "head.png", PNG)
    with service.connect() as connection, connection.makefile("rb") as file:
        for _ in range(15):
            connection.sendall(b"HEAD /view?filename=head.png HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = read_answer(file, "HEAD")
            assert (answer.status, answer.headers["content-length"]) == (200, str(len(PNG)))


# ------------------------------------------------------------------------------------------------
# Status, help, HTTP as such
# ------------------------------------------------------------------------------------------------


def test_status_health_and_the_documents(service: Middleware, comfyui: Any) -> None:
    status = service.get("/status").json
    assert status["comfyui"] == {
        "url": comfyui.url,
        "connected": True,
        "version": comfyui.version,
        "device": "simulated (no GPU)",
    }
    assert status["workflow"]["nodes"] == 7
    assert status["runs"] == {"waiting": 0, "running": None}
    assert status["token_required"] is False
    assert service.get("/health").json == {"status": "ok", "comfyui": True}
    assert service.get("/openapi.json").json == json.loads(read_resource("openapi.json"))
    page = service.get("/", Accept="*/*")
    assert page.headers["content-type"] == "text/plain; charset=utf-8"
    assert "curl http://127.0.0.1:%d/queue" % service.port in page.body.decode()


def test_a_browser_gets_the_page_and_curl_the_routes(service: Middleware, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.service, "page", b"<!doctype html><title>x</title>")
    page = service.get("/", Accept="text/html,*/*")
    assert (page.body, page.headers["content-type"]) == (b"<!doctype html><title>x</title>", "text/html; charset=utf-8")
    assert service.get("/", Accept="*/*").headers["content-type"].startswith("text/plain")
    monkeypatch.setattr(service.service, "page", b"")
    assert service.get("/", Accept="text/html").headers["content-type"].startswith("text/plain")


def test_every_answer_is_guarded_against_guessing_and_framing(service: Middleware) -> None:
    for answer in (service.get("/status"), service.get("/nowhere"), service.raw(b"rubbish\r\n\r\n")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


def test_many_requests_go_over_one_connection(service: Middleware) -> None:
    with service.connect() as connection, connection.makefile("rb") as file:
        for path, status in [("/status", 200), ("/nowhere", 404), ("/queue/x", 404), ("/runs/none", 404)]:
            connection.sendall(b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode())
            assert read_answer(file).status == status
        body = b'{"node_id": "none", "text": "a"}'
        for path in (b"/update/prompt", b"/status", b"/nowhere"):  # read, and not read
            connection.sendall(b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 32\r\n\r\n%s" % (path, body))
            assert read_answer(file).status in (400, 404, 405)
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3)  # pipelined
        assert [read_answer(file).status for _ in range(3)] == [200, 200, 200]


def test_a_connection_is_closed_where_the_client_asks_so(service: Middleware) -> None:
    with service.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert read_answer(file).headers["connection"] == "close"
        assert file.read() == b""
    with service.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")
        assert read_answer(file).status == 200
        assert file.read() == b""


def test_a_chunked_body_needs_a_length(service: Middleware) -> None:
    with service.connect() as connection, connection.makefile("rb") as file:
        head = b"POST /queue HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head + b"2\r\n{}\r\n0\r\n\r\n")
        answer = read_answer(file)
        assert (answer.status, answer.error, answer.headers["connection"]) == (411, "length_required", "close")
        assert file.read() == b""


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "BREW"])
def test_an_unknown_method_is_told_what_is_allowed(service: Middleware, method: str) -> None:
    answer = service.raw(b"%s /queue HTTP/1.1\r\nHost: localhost\r\n\r\n" % method.encode())
    assert (answer.status, answer.error) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, POST, HEAD, OPTIONS"


def test_options_tells_what_a_path_takes(service: Middleware) -> None:
    answer = service.call("OPTIONS", "/queue")
    assert (answer.status, answer.headers["allow"], answer.body) == (204, "GET, POST, HEAD, OPTIONS", b"")
    assert "access-control-allow-origin" not in answer.headers
    assert service.call("OPTIONS", "/nowhere").status == 404
    assert service.call("OPTIONS", "/queue", None, {"Origin": "http://evil.example"}).headers.get(
        "access-control-allow-origin"
    ) is None  # fmt: skip


@pytest.mark.parametrize(
    "head",
    [
        b"rubbish\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/x\r\nHost: localhost\r\n\r\n",
        b"GET / FTP/1.1\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # TLS
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 70000 + b"\r\n\r\n",
        b"GET /" + b"y" * 70000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET //[ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: localhost\r\nReferer: http://[\r\n\r\n",
        b"GET /status HTTP/1.1\r\n\r\n",
        b"GET /status\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: evil.example\r\nHost: localhost\r\n\r\n",
        b"POST /queue HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /queue HTTP/1.1\r\nHost: localhost\r\nContent-Length: two\r\n\r\n{}",
        b"POST /queue HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2, 2\r\n\r\n{}",
        b"POST /queue HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Length: 0\r\n\r\n{}",
        b"POST /queue HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        b"POST /queue HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: localhost\r\nno colon here\r\n\r\n",
    ],
)
def test_a_malformed_head_is_answered_in_json(service: Middleware, comfyui: Any, head: bytes) -> None:
    answer = service.raw(head)
    assert 400 <= answer.status < 500
    assert answer.headers["content-type"] == "application/json"
    assert answer.error and "Traceback" not in answer.body.decode()
    assert service.get("/health").status == 200
    assert ("POST", "/prompt") not in comfyui.requests


@pytest.mark.parametrize(
    "head",
    [
        b"POST /queue HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Length: 0\r\n\r\n{}",
        b"POST /queue HTTP/1.1\r\nHost: localhost\r\nContent-Length: two\r\n\r\n{}",
        b"POST /queue HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2, 2\r\n\r\n{}",
        b"POST /queue HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST queue HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}",
        b"GET /health HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nno colon here\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
    ],
)
def test_nothing_behind_a_bad_head_is_answered(service: Middleware, comfyui: Any, head: bytes) -> None:
    """Where it ends is not certain, so what follows may be a part of it."""
    with service.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(head + b"GET /queue HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2)
        answer = read_answer(file)
        assert 400 <= answer.status < 500
        assert answer.headers["connection"] == "close"
        assert file.read() == b""
    assert ("POST", "/prompt") not in comfyui.requests


def test_a_head_that_breaks_off_starts_nothing(service: Middleware, comfyui: Any) -> None:
    for head in (b"GET /queue HTTP/1.1\r\nHost: localhost\r\n", b"POST /queue HTTP/1.1\r\nHost: localhost\r\nX-Mo"):
        with service.connect() as connection:
            connection.sendall(head)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
    assert ("POST", "/prompt") not in comfyui.requests


def test_a_body_that_breaks_off_changes_nothing(service: Middleware) -> None:
    with service.connect() as connection, connection.makefile("rb") as file:
        head = b"POST /update/prompt HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n"
        connection.sendall(head + b'{"type": "positive", "text": "a"}')
        connection.shutdown(socket.SHUT_WR)
        assert read_answer(file).status == 400
    assert service.held() == TEXTS


def test_a_body_that_does_not_come_is_told_so(service: Middleware, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.listener.RequestHandlerClass, "timeout", 0.2)
    for size in (100, 1000000):
        answer = service.raw(b"POST /update/prompt HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n{" % size)
        assert answer.status == 408, answer


@pytest.mark.parametrize("part", [b"G", b"GET /queue HTTP/1.1\r\n", b"GET /queue HTTP/1.1\r\nHost: localhost\r\nX: "])
def test_a_head_that_takes_too_long_is_cut_off(service: Middleware, comfyui: Any, part: bytes) -> None:
    wait_until(lambda: not service.listener.open)
    began = time.monotonic()
    with service.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(part)
        wait_until(lambda: service.listener.deadlines, 2.0, "a deadline")
        (slow,) = service.listener.deadlines
        assert 25.0 < service.listener.deadlines[slow] - began < 35.0
        service.listener.deadlines[slow] = 0.0
        file.read()
    assert ("POST", "/prompt") not in comfyui.requests


def test_64_connections_are_served_and_8_more_for_health(service: Middleware) -> None:
    wait_until(lambda: not service.listener.open)
    connections = [service.connect() for _ in range(64)]
    try:
        wait_until(lambda: len(service.listener.open) == 64)
        answer = service.get("/status")
        assert (answer.status, answer.error) == (503, "too_many_connections")
        assert "retry-after" in answer.headers
        assert service.get("/health").status == 200
        wait_until(lambda: len(service.listener.open) == 64)
        connections += [service.connect() for _ in range(8)]
        wait_until(lambda: len(service.listener.open) == 72)
        with service.connect() as beyond:
            assert beyond.recv(1) == b""
        connections.pop().close()
        wait_until(lambda: len(service.listener.open) == 71)
        assert service.get("/health").status == 200
    finally:
        for connection in connections:
            connection.close()
    wait_until(lambda: not service.listener.open)
    assert service.get("/status").status == 200


# ------------------------------------------------------------------------------------------------
# Attacks over the wire
# ------------------------------------------------------------------------------------------------


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
        for odd_type in ({}, {"token": 7}, []):
            assert program.post("/login", odd_type).status == 400
        login = program.post("/login", {"token": "s3cret-of-the-tests"})
        assert login.status == 204
        cookie = login.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and "s3cret" not in cookie
        assert program.get("/status", Cookie=cookie.partition(";")[0]).status == 200
        assert program.get("/status", Cookie=cookie.partition(";")[0][:-1] + "g").status == 401
        foreign = {"Authorization": "Bearer s3cret-of-the-tests", "Origin": "http://evil.example"}
        assert program.call("GET", "/queue", None, foreign).status == 403
    finally:
        assert program.stop() == 0
    assert "s3cret" not in program.out.getvalue() + program.err.getvalue()


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
    told = service.end(prompt_id)
    assert told["phase"] == "success"
    seen = [repr(events.until(lambda name, data: name == "run" and data["over"]))]
    answers = [service.get(row.path.replace("{prompt_id}", prompt_id)) for row in ROUTES if row.method == "GET"
               and row.path not in ("/events", "/queue")]  # fmt: skip
    answers.append(service.get("/" + told["outputs"][0]["url"].lstrip("/")))
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


def test_what_is_no_text_in_unicode_is_no_fault_of_ours(service: Middleware) -> None:
    odd = {"1": node("\ud800", "\ud800", **{"\ud800": "\ud800"})}
    for answer in (service.call("PUT", "/workflow", odd), service.post("/prompt", {"prompt": odd}),
                   service.post("/update/inputs", {"node_id": "\ud800", "inputs": {}}),
                   service.post("/update/inputs", {"node_id": "5", "inputs": {"sampler_name": "\ud800"}})):  # fmt: skip
        assert answer.status == 400, answer
    assert service.post("/interrupt", {"prompt_id": "\ud800"}).status == 409
    assert service.get("/runs/%ed%a0%80").status == 404


def test_a_seed_is_drawn_within_its_bounds(service: Middleware, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = NODES["EmptyImage"]
    marked = ("INT", {**entry.specs["color"][1], "control_after_generate": True})
    monkeypatch.setitem(entry.specs, "color", marked)
    service.service._object_info.pop("EmptyImage", None)
    service.hold({
        "1": node("EmptyImage", width=8, height=8, batch_size=1, color=0),
        "2": node("SaveImage", filename_prefix="drawn", images=["1", 0]),
    })  # fmt: skip
    assert service.post("/update/inputs", {"node_id": "1", "inputs": {"color": "random"}}).status == 200
    assert service.end(service.start())["phase"] == "success"
    service.service._object_info.pop("EmptyImage", None)


def test_a_run_does_not_wait_for_a_comfyui_that_has_just_gone(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator)
    simulator.crash()
    began = time.monotonic()
    answer = service.get("/queue")
    assert answer.status == 503 and "retry-after" in answer.headers
    assert time.monotonic() - began < FAST.give_up / 2


# ------------------------------------------------------------------------------------------------
# ComfyUI comes and goes
# ------------------------------------------------------------------------------------------------


def test_comfyui_may_come_later(make_middleware: Make, simulator: Any) -> None:
    simulator.crash()
    service = make_middleware(simulator, prompt=TEXTS)
    assert "Listening all the same" in service.out.getvalue()
    assert service.get("/health").json == {"status": "ok", "comfyui": False}
    for answer in (service.get("/queue"), service.post("/prompt", {"prompt": slow_prompt()}), service.upload(),
                   service.get("/view?filename=a.png")):  # fmt: skip
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) > 0
    edit = service.post("/update/inputs", {"node_id": "5", "inputs": {"steps": -7}})
    assert (edit.status, edit.json["checked"]) == (200, False)
    assert service.post("/update/prompt", {"type": "positive", "text": "a"}).json["checked"] is False
    assert service.call("PUT", "/workflow", slow_prompt(steps=1, seconds=0.0)).json["checked"] is False
    assert service.get("/workflow").status == 200
    simulator.revive()
    wait_until(lambda: service.get("/health").json["comfyui"], what="ComfyUI's return")
    assert service.end(service.start())["phase"] == "success"
    assert service.post("/update/inputs", {"node_id": "1", "inputs": {"steps": -7}}).status == 400


def test_what_was_known_of_comfyui_is_used_while_it_is_away(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator, prompt=TEXTS)
    assert service.get("/workflow").status == 200
    simulator.crash()
    wait_until(lambda: not service.get("/health").json["comfyui"], what="the loss")
    assert service.post("/update/inputs", {"node_id": "5", "inputs": {"steps": -7}}).status == 400
    assert service.post("/update/inputs", {"node_id": "5", "inputs": {"steps": 7}}).json["checked"] is True


def test_a_run_that_a_restart_lost_is_told_and_the_service_goes_on(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator, prompt=slow_prompt(steps=10, seconds=30.0))
    prompt_id = service.start()
    service.running(prompt_id)
    simulator.restart()
    told = service.end(prompt_id)
    assert told["phase"] == "lost"
    assert service.post("/update/inputs", {"node_id": "1", "inputs": {"seconds": 0.0}}).status == 200
    wait_until(lambda: service.get("/health").json["comfyui"])
    assert service.end(service.start())["phase"] == "success"


def test_nodes_and_files_that_are_new_after_a_restart_are_seen(
    make_middleware: Make, simulator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = make_middleware(simulator, prompt=LOADER)
    newer = {"1": node("NewerNode", images=["2", 0]), "2": node("EmptyImage", width=8, height=8, batch_size=1, color=0)}
    assert service.call("PUT", "/workflow", newer).status == 400
    simulator.crash()
    wait_until(lambda: not service.get("/health").json["comfyui"], what="the loss")
    monkeypatch.setitem(NODES, "NewerNode", NODES["SaveImageWebsocket"])
    simulator.revive()
    wait_until(lambda: service.get("/health").json["comfyui"], what="the return")
    assert service.call("PUT", "/workflow", newer).status == 200


def test_without_a_websocket_comfyui_is_not_asked_without_end(make_middleware: Make, simulator: Any) -> None:
    simulator.faults.http_status["/ws"] = 403
    service = make_middleware(simulator)
    assert service.end(service.start())["phase"] == "success"
    simulator.asked.clear()
    service.get("/runs/none")
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began > 1.0)
    asked = [path for _, path in simulator.requests if path == "/system_stats"]
    assert len(asked) <= 2


def test_a_slow_comfyui_does_not_hold_the_events_up(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator, prompt=TEXTS)
    service.get("/workflow")
    simulator.faults.http_hang["/object_info"] = 1.5
    simulator.asked.clear()
    edit = threading.Thread(
        target=service.post, args=("/update/inputs", {"node_id": "5", "inputs": {"sampler_name": "unknown"}})
    )
    edit.start()
    wait_until(lambda: any(path.startswith("/object_info") for _, path in simulator.requests), what="the question")
    began = time.monotonic()
    ticked = threading.Event()
    service.inside["loop"].call_soon_threadsafe(service.service.tell, None, {"event": "notice", "message": "x"})
    service.inside["loop"].call_soon_threadsafe(ticked.set)
    ticked.wait(5.0)
    waited = time.monotonic() - began
    simulator.faults.http_hang.clear()
    edit.join()
    assert waited < 1.0, "the loop stood still for %.1f s" % waited


# ------------------------------------------------------------------------------------------------
# Start and stop
# ------------------------------------------------------------------------------------------------


def test_the_start_tells_the_address_the_routes_and_a_line_of_curl_for_each(service: Middleware) -> None:
    printed = service.out.getvalue()
    for row in ROUTES:
        if row.curl:
            assert row.curl.format("http://127.0.0.1:%d" % service.port) in printed


def test_a_port_that_is_taken_is_named_with_the_way_out(simulator: Any, workflow_file: Make) -> None:
    path = workflow_file(slow_prompt())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        result = run("--mode", "continuous", "--server", simulator.url, "--port", str(port), path)
    assert result.status == ExitStatus.USAGE
    assert "Port %d" % port in result.err and "--port" in result.err and "comfy-api-proxy" in result.err


def test_a_server_that_is_this_service_is_refused(workflow_file: Make) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = "http://127.0.0.1:%d" % port
    result = run("--mode", "continuous", "--server", address, "--port", str(port), workflow_file(slow_prompt()))
    assert result.status == ExitStatus.USAGE
    assert "itself" in result.err


def test_a_server_that_is_another_such_service_is_refused(service: Middleware, workflow_file: Make) -> None:
    """Before it listens: its port is taken, and that is not what is wrong."""
    address = "http://127.0.0.1:%d" % service.port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = str(taken.getsockname()[1])
        result = run("--mode", "continuous", "--server", address, "--port", port, workflow_file(slow_prompt()))
    assert result.status not in (ExitStatus.OK, ExitStatus.ERROR)
    assert address in result.err and port not in result.err


def test_a_workflow_that_is_not_there_is_told_at_the_start(simulator: Any) -> None:
    result = run("--mode", "continuous", "--server", simulator.url, "--port", "0", "nowhere.json")
    assert result.status == ExitStatus.BAD_WORKFLOW


def test_the_console_shows_the_runs(service: Middleware) -> None:
    service.hold(slow_prompt(steps=3, seconds=0.3, seed=61))
    prompt_id = service.start()
    service.end(prompt_id)
    mine = [line for line in service.out.getvalue().splitlines() if "[%s]" % prompt_id[:8] in line]
    assert "Done in" in mine[-1]
    assert any("Slow" in line for line in mine)


def test_quiet_prints_the_address_and_nothing_else(make_simulator: Make, tmp_path: Any) -> None:
    path = tmp_path / "held.json"
    path.write_text(json.dumps(slow_prompt(steps=1, seconds=0.0)), encoding="utf-8")
    command = [sys.executable, SCRIPT, "--mode", "continuous", "--port", "0"]
    program = subprocess.Popen(
        [*command, "--server", make_simulator().url, "--quiet", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert program.stdout is not None
        assert re.match(rb"^http://127\.0\.0\.1:\d+\r?\n$", program.stdout.readline())
    finally:
        program.terminate()
        rest, _ = program.communicate(timeout=15)
    assert rest == b""


def test_outputs_are_saved_where_o_says(make_middleware: Make, simulator: Any, tmp_path: Any) -> None:
    out = tmp_path / "out"
    service = make_middleware(simulator, "-o", str(out), "--timeout", "20")
    run = service.end(service.start())
    [output] = run["outputs"]
    assert (out / output["filename"]).read_bytes() == service.get("/" + output["url"]).body
    assert str(out / output["filename"]) in service.out.getvalue()
    out.joinpath(output["filename"]).unlink()
    out.rmdir()
    out.write_text("a file stands where the folder should be")
    assert service.end(service.start())["phase"] == "success"
    wait_until(lambda: "could not be saved" in service.out.getvalue() + service.err.getvalue())


def test_the_timeout_cancels_a_run_and_tells_it(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator, "--timeout", "0.5", prompt=slow_prompt(steps=100, seconds=30.0))
    run = service.end(service.start())
    assert run["phase"] == "interrupted" and "timeout" in run["message"]
    assert service.get("/health").status == 200


def test_a_single_failure_of_comfyui_is_an_accident(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator)
    simulator.faults.http_status["/system_stats"] = 503
    asked = asyncio.run_coroutine_threadsafe(service.service._touch(), service.inside["loop"])
    asked.result(10)
    assert service.get("/status").json["comfyui"]["connected"]
    asyncio.run_coroutine_threadsafe(service.service._touch(), service.inside["loop"]).result(10)
    assert not service.get("/status").json["comfyui"]["connected"]


def test_every_server_is_tried_until_one_answers(
    make_simulator: Make, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = make_simulator(), make_simulator()
    monkeypatch.setattr(script, "DEFAULT_SERVERS", (first.url, second.url))
    first.crash()
    second.crash()
    path = tmp_path / "held.json"
    path.write_text(json.dumps(slow_prompt(steps=1, seconds=0.0)), encoding="utf-8")
    service = Middleware([str(path)], {}, FAST)
    try:
        assert service.get("/queue").status == 503
        second.revive()
        wait_until(lambda: service.get("/status").json["comfyui"]["connected"], what="the second server")
        assert service.get("/status").json["comfyui"]["url"] == second.url
        assert service.end(service.start())["phase"] == "success"
    finally:
        assert service.stop() == 0


def test_no_script_runs_but_the_pages_own(service: Middleware) -> None:
    policy = service.get("/status").headers["content-security-policy"]
    [script] = re.findall(rb"<script>(.*?)</script>", service.service.page, re.S)
    digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
    assert "script-src 'sha256-%s';" % digest in policy
    assert "script-src 'none';" in dict(security_headers(b""))["Content-Security-Policy"]


def test_very_large_runs_are_told_less_often(service: Middleware, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comfyui_runner.service.EVENT_BYTES_PER_SECOND", 1.0)
    service.hold(slow_prompt(steps=10, seconds=1.0, seed=101))  # nobody else's: it is not in the cache
    events = service.events()
    prompt_id = service.start()
    seen = events.until(lambda name, data: name == "run" and data["prompt_id"] == prompt_id and data["over"])
    told = [data for name, data in seen if name == "run" and data["prompt_id"] == prompt_id]
    assert len(told) == 2  # the first one is followed by a pause, which the end does not wait for


@pytest.mark.parametrize("class_type", ["", ".", ".."])
def test_a_class_that_would_be_another_path_is_not_there(service: Middleware, class_type: str) -> None:
    answer = service.call("PUT", "/workflow", {"1": {"class_type": class_type, "inputs": {}}})
    assert answer.status == 400 and answer.error in ("invalid_workflow", "workflow_error")


def test_the_output_as_json_stays_json(make_middleware: Make, simulator: Any, tmp_path: Any) -> None:
    path = tmp_path / "held.json"
    path.write_text(json.dumps(slow_prompt(steps=1, seconds=0.0)), encoding="utf-8")
    command = [sys.executable, SCRIPT, "--mode", "continuous", "--port", "0"]
    program = subprocess.Popen(
        [*command, "--server", simulator.url, "--json", str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert program.stdout is not None
        lines = [program.stdout.readline() for _ in range(3)]
        told = [json.loads(line) for line in lines]
        assert [event["event"] for event in told] == ["workflow", "server", "listening"]
        assert set(told[-1]) == {"event", "time", "prompt_id", "url", "routes"}
    finally:
        program.terminate()
        program.communicate(timeout=15)


def test_a_stop_cancels_our_runs_and_tells_the_streams(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator, prompt=slow_prompt(steps=20, seconds=60.0))
    events = service.events()
    first, second = service.start(), service.start()
    service.running(first)
    assert service.stop() == 0
    seen = []
    while True:
        event = events.next()
        if event is None:
            break
        seen.append(event)
    events.close()
    assert seen[-1][0] == "end"
    phases = {data["prompt_id"]: data["phase"] for name, data in seen if name == "run"}
    assert phases[first] == "interrupted"
    assert phases[second] in ("deleted", "interrupted")  # it may have begun when the first one stopped
    running, pending = simulator._server.life.snapshot()
    assert not running and not pending
    with pytest.raises(OSError):
        service.connect()


def seconds_to_stop(service: Middleware) -> float:
    """Stops the service; how long it took."""
    began = time.monotonic()
    assert service.stop() == 0
    return time.monotonic() - began


def test_a_service_that_does_nothing_stops_at_once(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator)
    with service.connect() as kept, kept.makefile("rb") as file:
        kept.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert read_answer(file).status == 200
        assert seconds_to_stop(service) < 1.5


def slow_reader(service: Middleware, simulator: Any) -> Events:
    """Somebody who has read no more than the head of a file of 16 MB."""
    put_file(simulator, "large.bin", b"x" * (16 << 20))
    return service.events("/view?filename=large.bin&type=output", buffer=1 << 18)


def test_a_stop_waits_for_an_answer_that_is_being_read(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator)
    reader = slow_reader(service, simulator)
    stopping = threading.Thread(target=service.stop)
    stopping.start()
    wait_until(lambda: not service.service._streams and service.service._closing, what="the stop")
    stopping.join(0.7)
    assert stopping.is_alive() and service.listener.busy
    assert len(reader.file.read(16 << 20)) == 16 << 20
    stopping.join(10.0)
    assert service.status == 0 and not service.listener.busy
    reader.close()


def test_a_stop_does_not_wait_for_a_client_that_stops_reading(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator)
    reader = slow_reader(service, simulator)
    assert 1.5 < seconds_to_stop(service) < 6.0
    reader.close()


def test_a_stop_does_not_wait_for_a_client_that_stops_sending(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator)
    with service.connect() as connection:
        connection.sendall(b"POST /update/prompt HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        wait_until(lambda: service.listener.busy, what="the request")
        assert 1.5 < seconds_to_stop(service) < 6.0


def test_a_stop_does_not_wait_for_a_file_that_trickles(
    make_middleware: Make, make_slow: Make, simulator: Any, tmp_path: Any
) -> None:
    proxy = make_slow(simulator)
    service = make_middleware(proxy.url, "-o", str(tmp_path / "out"))
    wait_until(lambda: service.get("/status").json["comfyui"]["connected"], what="the connection to ComfyUI")
    proxy.trickling = {"GET /view": 1}
    service.start()
    wait_until(lambda: proxy.trickled, what="the download")
    assert seconds_to_stop(service) < 6.0


def test_a_stop_does_not_wait_for_a_comfyui_that_says_nothing(
    make_middleware: Make, make_slow: Make, simulator: Any
) -> None:
    proxy = make_slow(simulator)
    prompt = slow_prompt(steps=100, seconds=30.0)
    service = make_middleware(proxy.url, prompt=prompt, limits=FAST._replace(cancel=0.6, read=20.0))
    wait_until(lambda: service.get("/status").json["comfyui"]["connected"], what="the connection to ComfyUI")
    service.running(service.start())
    proxy.trickling = {"GET /queue": 100}
    assert seconds_to_stop(service) < 6.0


def test_a_fault_of_ours_ends_the_service_and_is_no_success(
    make_middleware: Make, simulator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = make_middleware(simulator)
    tell_changes, faults = service.service._tell_changes, [0]
    monkeypatch.setattr(service.service, "_tell_changes", lambda: 1 // faults.pop() if faults else tell_changes())
    service.thread.join(15.0)
    assert service.status == ExitStatus.ERROR
    assert "ZeroDivisionError" in service.err.getvalue()
    with pytest.raises(OSError):
        service.connect()


def test_an_address_of_ipv6_is_told_in_brackets(simulator: Any, workflow_file: Make) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    path = workflow_file(slow_prompt())
    service = Middleware(["--server", simulator.url, "--host", "::1", path], {}, FAST)
    try:
        url = "http://[::1]:%d" % service.port
        assert "Continuous mode at %s" % url in service.out.getvalue()
        assert "curl %s/queue" % url in service.out.getvalue()
        with socket.create_connection(("::1", service.port), 10.0) as connection, connection.makefile("rb") as file:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: [::1]:%d\r\n\r\n" % service.port)
            assert read_answer(file).status == 200
    finally:
        assert service.stop() == 0


@pytest.mark.parametrize("route", ["GET /system_stats", "GET /features"])
def test_a_comfyui_that_trickles_at_the_start_is_asked_again(
    route: str, make_slow: Make, simulator: Any, workflow_file: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = make_slow(simulator)
    path = workflow_file(slow_prompt(steps=1, seconds=0.0))
    simulator.crash()
    monkeypatch.setattr(asyncio, "new_event_loop", lambda: HurriedLoop(10.0))  # it waits for 12 s
    service = Middleware(["--server", proxy.url, path], {}, FAST._replace(read=5.0, connect=2.0))
    try:
        proxy.trickling = {route: 1}
        simulator.revive()
        wait_until(lambda: proxy.trickled, 9.0, "the look")
        wait_until(lambda: service.get("/status").json["comfyui"]["connected"], 9.0, "the connection to ComfyUI")
    finally:
        assert service.stop() == 0


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals between processes")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_what_is_ours_and_leaves_the_rest_alone(number: int, simulator: Any, tmp_path: Any) -> None:
    path = tmp_path / "held.json"
    path.write_text(json.dumps(slow_prompt(steps=20, seconds=60.0, seed=71)), encoding="utf-8")
    foreign = post_elsewhere(simulator, slow_prompt(steps=20, seconds=60.0, seed=72))
    wait_until(lambda: phase_elsewhere(simulator, foreign) == "running")
    command = [sys.executable, SCRIPT, "--mode", "continuous", "--port", "0"]
    program = subprocess.Popen(
        [*command, "--yes", "--server", simulator.url, str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        assert program.stdout is not None
        found = None
        while not found:
            line = program.stdout.readline().decode()
            assert line, "it ended"
            found = re.search(r"Continuous mode at http://127\.0\.0\.1:(\d+)", line)
        port = int(found.group(1))
        events = Events(port)
        assert events.next()

        def start() -> Any:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10.0)
            connection.request("GET", "/queue")
            response = connection.getresponse()
            body = json.loads(response.read())
            connection.close()
            return body["prompt_id"] if response.status == 202 else None

        ours = wait_until(start, what="a run of ours")
        program.send_signal(number)
        rest, _ = program.communicate(timeout=20)
        assert program.returncode == 0, rest
        assert events.until(lambda name, data: name == "end")
        events.close()
        assert phase_elsewhere(simulator, ours) == "gone"
        assert phase_elsewhere(simulator, foreign) == "running"
        assert b"Traceback" not in rest
    finally:
        program.kill()
        program.wait()
