"""What the tests of the simulator share: fixtures, prompts, and a plain client."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import struct
import time
import urllib.parse
import zlib
from email.message import Message
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Dict, Iterator, List, Optional, cast

import pytest
import requests
from support import FIXTURES
from websockets.sync.client import ClientConnection, connect

from comfyui_runner.simulator import Simulator
from comfyui_runner.simulator.bodies import Body
from comfyui_runner.simulator.folders import FOLDERS
from comfyui_runner.simulator.http_request import Request
from comfyui_runner.simulator.installation import Installation
from comfyui_runner.simulator.life import Life
from comfyui_runner.simulator.prompts import Job
from comfyui_runner.simulator.replies import Reply
from comfyui_runner.simulator.routes import answer_request
from comfyui_runner.simulator.running import run_job
from comfyui_runner.simulator.validation import Validation

RECORDINGS = sorted(Path(FIXTURES, "recordings").glob("*/*.json"))
Json = Dict[str, Any]
WAIT = 10.0  # a deadline, not a delay
WS = b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def simulate(stack: contextlib.ExitStack, tmp_path: Path) -> Callable[..., Simulator]:
    """Start a simulator that is stopped after the test."""

    def start(**options: Any) -> Simulator:
        options.setdefault("root", str(tmp_path / "comfyui"))
        return stack.enter_context(Simulator(**options))

    return start


@pytest.fixture
def sim(simulate: Callable[..., Simulator]) -> Simulator:
    return simulate()


@pytest.fixture
def open_ws(stack: contextlib.ExitStack) -> Callable[..., ClientConnection]:
    """Open a WebSocket that is closed after the test."""

    def start(sim: Simulator, client_id: str = "", **options: Any) -> ClientConnection:
        url = sim.url.replace("http", "ws", 1) + "/ws?clientId=" + client_id
        options = {"max_size": None, "open_timeout": WAIT, "close_timeout": 0.5, **options}
        ws: ClientConnection = stack.enter_context(connect(url, **options))
        return ws

    return start


def until(condition: Callable[[], Any], what: str = "condition") -> Any:
    """Wait for a condition, with a deadline."""
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.005)
    raise AssertionError("not in time: " + what)


def receive(ws: ClientConnection, kind: Optional[str] = None) -> Any:
    """The next message, or the next of one type; JSON is parsed."""
    while True:
        frame = ws.recv(timeout=WAIT)
        if isinstance(frame, bytes):
            if kind is None:
                return frame
            continue
        message = json.loads(frame)
        if kind is None or message["type"] == kind:
            return message


def drain(ws: ClientConnection) -> List[Any]:
    """All messages up to the end of a run."""
    messages = []
    while True:
        messages.append(receive(ws))
        last: Json = messages[-1] if isinstance(messages[-1], dict) else {"type": "binary"}
        if last["type"] == "executing" and last["data"]["node"] is None:
            return messages


def types(messages: List[Any]) -> List[str]:
    return [each["type"] for each in messages if isinstance(each, dict)]


def slow(steps: float = 3, seconds: float = 0.0, seed: Any = 1, **more: Any) -> Json:
    """A prompt with progress that saves a picture."""
    inputs = {"steps": steps, "seconds": seconds, "seed": seed, "preview": False, **more}
    save = {"filename_prefix": "slow", "images": ["1", 0]}
    return {
        "1": {"class_type": "SlowProgress", "inputs": inputs},
        "2": {"class_type": "SaveImage", "inputs": save},
    }


def txt2img(**sampler: Any) -> Json:
    links = {"model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0]}
    links["latent_image"] = ["5", 0]
    values = {"seed": 42, "steps": 4, "cfg": 7.0, "sampler_name": "euler", "scheduler": "normal"}
    ckpt = {"ckpt_name": "sd_xl_base_1.0.safetensors"}
    size = {"width": 64, "height": 96, "batch_size": 1}
    nodes: Json = {
        "3": ("KSampler", {**values, "denoise": 1.0, **links, **sampler}),
        "4": ("CheckpointLoaderSimple", ckpt),
        "5": ("EmptyLatentImage", size),
        "6": ("CLIPTextEncode", {"text": "a fox", "clip": ["4", 1]}),
        "7": ("CLIPTextEncode", {"text": "", "clip": ["4", 1]}),
        "8": ("VAEDecode", {"samples": ["3", 0], "vae": ["4", 2]}),
        "9": ("SaveImage", {"filename_prefix": "sd", "images": ["8", 0]}),
    }
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}


def output_of(ui: Json) -> Json:
    return {"1": {"class_type": "SimulatedOutput", "inputs": {"ui": json.dumps(ui)}}}


def post(sim: Simulator, prompt: Json, **more: Any) -> requests.Response:
    return requests.post(sim.url + "/prompt", json={"prompt": prompt, **more}, timeout=WAIT)


def submit(sim: Simulator, prompt: Json, **more: Any) -> str:
    answer = post(sim, prompt, **more)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["prompt_id"])


def get(sim: Simulator, path: str, **options: Any) -> requests.Response:
    return requests.get(sim.url + path, timeout=WAIT, **options)


def history(sim: Simulator, prompt_id: str) -> Json:
    """The history of a prompt, once it exists."""
    path = "/history/" + prompt_id
    entry: Json = until(lambda: get(sim, path).json().get(prompt_id), "history")
    return entry


def raw(sim: Simulator, data: bytes) -> bytes:
    """Send bytes, and return what comes until the server hangs up."""
    with socket.create_connection(("127.0.0.1", sim.port), timeout=WAIT) as connection:
        connection.sendall(data)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while True:
                piece = connection.recv(65536)
                if not piece:
                    break
                answer += piece
    return answer


def png_text(data: bytes) -> Dict[str, str]:
    """The tEXt chunks of a PNG whose checksums are right."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    texts, at = {}, 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        chunk = data[at + 4 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(chunk)
        if chunk[:4] == b"tEXt":
            key, _, value = chunk[4:].partition(b"\0")
            texts[key.decode()] = value.decode()
        at += 12 + length
    return texts


def pixels_of(data: bytes) -> bytes:
    at, packed = 8, b""
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        if data[at + 4 : at + 8] == b"IDAT":
            packed += data[at + 8 : at + 8 + length]
        at += 12 + length
    return zlib.decompress(packed)


def busy(sim: Simulator, **more: Any) -> str:
    """Something that runs until it is interrupted."""
    prompt_id = submit(sim, slow(steps=1000000, seconds=3600.0), **more)
    until(lambda: [each[1] for each in get(sim, "/queue").json()["queue_running"]] == [prompt_id])
    return prompt_id


def interrupt(sim: Simulator, **body: Any) -> None:
    assert requests.post(sim.url + "/interrupt", json=body, timeout=WAIT).status_code == 200


# ------------------------------------------------------------------------------------------------
# A server's memory without its sockets
# ------------------------------------------------------------------------------------------------


class Listener:
    """A client's socket that keeps what it is sent."""

    def __init__(self, **flags: Any) -> None:
        self.flags: Json = flags
        self.frames: List[Any] = []
        self.is_cut = False

    def put(self, frame: Any) -> None:
        self.frames.append(frame)

    def abort(self) -> None:
        self.is_cut = True

    def take(self) -> List[Any]:
        """What came since the last call: (type, data) of messages, bytes of binary frames."""
        taken = [each if isinstance(each, bytes) else open_message(each) for each in self.frames]
        self.frames.clear()
        return taken


def open_message(frame: str) -> Any:
    message = json.loads(frame)
    assert list(message) == ["type", "data"]
    return message["type"], message["data"]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., Life]]:
    """Begin the life of a server that nobody serves; it ends after the test."""
    lives = []

    def start(**options: Any) -> Life:
        installation = Installation(root=str(tmp_path), **options)
        for folder in FOLDERS:
            Path(installation.folder(folder)).mkdir(exist_ok=True)
        lives.append(Life(installation))
        return lives[-1]

    yield start
    for life in lives:
        life.end()


def accept(life: Life, prompt: Json, prompt_id: str = "p", **extra_data: Any) -> Job:
    """Put a prompt in the queue as POST /prompt does."""
    validation = Validation(life.installation, prompt, None)
    assert validation.error is None, validation.error
    number = life.take_number(is_first=False)
    job = Job(number, prompt_id, prompt, extra_data, validation.good)
    life.put(job)
    return job


def run_next(life: Life) -> None:
    """Run the next prompt of the queue to its end."""
    job = life.take()
    assert job is not None
    run_job(life, job)


def ask(life: Life, method: str, url: str, body: Any = None, **headers: str) -> Reply:
    """What a route answers to a request; a body that is not text goes as JSON."""
    text = body if isinstance(body, str) else json.dumps(body)
    content = b"" if body is None else text.encode()
    message = Message()
    for name, value in {"Content-Length": str(len(content)), **headers}.items():
        message[name.replace("_", "-")] = value
    path, _, query = url.partition("?")
    request = Request(
        installation=life.installation,
        life=life,
        handler=cast(Any, SimpleNamespace(headers=message)),
        method=method,
        path=path,
        bare_path=path[len("/api") :] if path.startswith("/api/") else path,
        query=dict(urllib.parse.parse_qsl(query, keep_blank_values=True)),
        body=Body(io.BytesIO(content), message, life.installation.max_upload_size),
    )
    return answer_request(request)


def ask_json(life: Life, method: str, url: str, body: Any = None) -> Any:
    """The JSON of an answer with status 200."""
    reply = ask(life, method, url, body)
    assert (reply.status, reply.content_type) == (200, "application/json; charset=utf-8"), reply
    return json.loads(reply.body)
