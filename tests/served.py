"""What the tests of continuous mode share: the program in a thread, its clients, prompts."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import socket
import threading
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple

import pytest
from support import FAST, ROOT, call, node, slow_prompt, wait_until

from comfyui_runner.http_server import HttpListener
from comfyui_runner.interrupts import Interrupts
from comfyui_runner.limits import Limits
from comfyui_runner.simulator import Faults, Simulator, draw

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
        """The type of the error."""
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
        """The text before the next empty line; None at the end of the stream."""
        lines: List[bytes] = []
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
        seen: List[Any] = []
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
            patch.setattr(HttpListener, "start", self._note_listener(HttpListener.start))
            patch.setattr(Interrupts, "bind", lambda _, loop, event: self.inside.update(loop=loop, event=event))
            self.thread.start()
            ready = re.compile(r"Open http://\S+:(\d+)\b")
            wait_until(lambda: "listener" in self.inside or not self.thread.is_alive(), what="the start")
        match = ready.search(self.out.getvalue())
        assert match, self.out.getvalue() + self.err.getvalue()
        self.port = int(match.group(1))
        self.listener = self.inside["listener"]
        self.service = self.listener.routes.service

    def _note_listener(self, start: Callable[[Any], None]) -> Callable[[Any], None]:
        def start_and_note(listener: Any) -> None:
            self.inside["listener"] = listener
            start(listener)

        return start_and_note

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
        body, content_type = multipart(name, data, **fields)
        return self.post(path, body, Content_Type=content_type)

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
        run: Json = answer.json
        return run

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
            self.service.streams.publish("x", {})
            return not len(self.service.streams)

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
        is_open: bool = True,
    ) -> Middleware:
        """``is_open``: it asks for no token, so its status can be waited for."""
        path = tmp_path / "held.json"
        path.write_text(json.dumps(prompt or slow_prompt(steps=2, seconds=0.0)), encoding="utf-8")
        server = simulator if isinstance(simulator, str) else simulator.url
        program = Middleware(["--server", server, str(path), *arguments], environment or {}, limits)
        started.append(program)
        if is_open and not isinstance(simulator, str) and simulator._server is not None:
            wait_until(lambda: program.get("/status").json["comfyui"]["connected"], what="the connection to ComfyUI")
        return program

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
    for record in program.service.records.not_over():
        program.post("/interrupt", {"prompt_id": record.prompt_id})
        record.over.wait(10.0)
    for job in [job for jobs in simulator._server.life.snapshot() for job in jobs]:
        simulator._server.life.interrupt(job.item()[1]) or simulator._server.life.delete(job.item()[1])


def put_file(simulator: Any, name: str, data: bytes, folder: str = "output") -> None:
    with open(os.path.join(simulator.folder(folder), name), "wb") as file:
        file.write(data)
