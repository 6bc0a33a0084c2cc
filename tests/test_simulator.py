"""The simulator is held to recordings of real servers, then to what it promises beyond them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid
import zlib
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import pytest
import requests
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import comfyui_simulator  # noqa: E402
from comfyui_simulator import Faults, Simulator  # noqa: E402

RECORDINGS = sorted((Path(__file__).parent / "fixtures" / "recordings").glob("*/*.json"))
Json = Dict[str, Any]
WAIT = 10.0  # a deadline, not a delay


# ------------------------------------------------------------------------------------------------
# Helpers
# ------------------------------------------------------------------------------------------------


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
    """The history of a prompt, once it is there."""
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


# ------------------------------------------------------------------------------------------------
# The recordings
# ------------------------------------------------------------------------------------------------

#: Two prompts are queued at the same time here, so a status may come a little earlier or later.
TWO_PROMPTS = {"delete_pending", "interrupt_targeted", "jobs_cancel"}
#: Answers about the server itself: their keys and types are compared.
SHAPES = re.compile(
    r"GET /(system_stats|embeddings|models|extensions|object_info/.*|history\?.*|api/jobs(\?.*)?)"
    r"(/checkpoints)?"
)
TIMES = {"timestamp", "create_time", "execution_start_time", "execution_end_time"}
UPLOADS: Dict[str, Tuple[str, bytes]] = {
    "same name, other bytes": ("", b"other bytes"),
    "empty file name": ("", b"bytes"),
    "not a picture: stored all the same": ("note.txt", b"text"),
    "file name with directories": ("../../evil.png", b"bytes"),
}


class Replay:
    """Makes the calls of a recording in its order and compares what the simulator says.

    Each step waits for the messages recorded before it, so the order of messages on each socket is
    compared exactly, and their content after this normalisation, applied to both sides:

    - prompt ids and client ids are translated; queue numbers and timestamps are blanked;
    - `seconds` of SlowProgress is 0 when posted, and blanked: a node makes a step when the replay
      comes to the recorded one (`steps`), and looks for an interrupt while it waits for that;
    - file counters become "#"; tracebacks and values in current_inputs are blanked; tooltips, which
      the simulator does not have, are dropped; lists that are sets on the server are sorted;
    - of media only the type of the binary event is compared, since pixels differ, and a preview is
      a PNG where the real one is a JPEG;
    - with two prompts at a time (TWO_PROMPTS) the order of status messages is a matter of
      microseconds: their number and the last one are compared;
    - SHAPES compares keys and types; the simulator may have fewer keys in system_stats.
    """

    def __init__(
        self,
        recording: Json,
        sim: Simulator,
        open_ws: Callable[..., ClientConnection],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        self.recording, self.sim, self.open_ws = recording, sim, open_ws
        self.loose = recording["scenario"] in TWO_PROMPTS
        self.steps = threading.Semaphore(0)
        progress = comfyui_simulator.Running.progress

        def paced(running: Any, *args: Any) -> None:
            while not self.steps.acquire(timeout=0.005):
                running.check()
            progress(running, *args)

        monkeypatch.setattr(comfyui_simulator.Running, "progress", paced)
        self.sockets: Dict[str, ClientConnection] = {}
        self.ids: Dict[str, str] = {}  # recorded -> simulated
        self.expected: Dict[str, List[Json]] = {}  # the statuses of a socket, if TWO_PROMPTS
        self.seen: Dict[str, List[Json]] = {}
        self.numbers: List[float] = []

    def run(self) -> None:
        steps = self.recording["steps"]
        for at, step in enumerate(steps):  # a POST is noted when it was answered: often too late
            while step.get("http") == "POST /prompt" and at and self.is_status(steps[at - 1]):
                steps[at - 1], steps[at], at = step, steps[at - 1], at - 1
        for at, step in enumerate(steps):
            if "http" in step:
                self.call(step)
            else:
                self.message(step, steps[at:])
        for name, expected in self.expected.items():
            seen = self.seen.setdefault(name, [])
            while len(seen) < len(expected):
                seen.append(receive(self.sockets[name], "status"))
            assert (len(seen), seen[-1]) == (len(expected), expected[-1]), name
        self.sim._server.life.send("fence", {}, None)  # type: ignore[union-attr]
        for name, ws in self.sockets.items():
            assert receive(ws) == {"type": "fence", "data": {}}, "more was sent to " + name

    @staticmethod
    def is_status(step: Json) -> bool:
        message = step.get("json", {})
        return bool(message.get("type") == "status") and "sid" not in message["data"]

    def message(self, step: Json, rest: List[Json]) -> None:
        """Receive what a socket was sent."""
        name = step["ws"]
        if name not in self.sockets:
            self.connect(name, step["json"]["data"]["sid"], rest)
        if self.loose and self.is_status(step):
            self.expected.setdefault(name, []).append(step["json"])
            return
        if step.get("json", {}).get("type") == "progress_state":
            nodes = step["json"]["data"]["nodes"].values()
            if any(node["state"] == "running" and node["value"] for node in nodes):
                self.steps.release()
        got = receive(self.sockets[name])
        while self.loose and self.is_status({"json": got if isinstance(got, dict) else {}}):
            self.seen.setdefault(name, []).append(got)
            got = receive(self.sockets[name])
        if "binary" in step:
            assert struct.unpack(">I", got[:4])[0] == step["binary"]["event_type"]
            return
        assert self.plain(got, simulated=True) == self.plain(step["json"])

    def connect(self, name: str, sid: str, rest: List[Json]) -> None:
        """Open a socket as its client did; the first message tells which id it has."""
        known = {recorded: other for other, recorded in self.ids.items()}.get(sid, "")
        if known:
            old = next(iter(self.sockets))
            self.sockets.pop(old).socket.shutdown(socket.SHUT_RDWR)
            until(lambda: known not in self.sim._server.life.sockets)  # type: ignore[union-attr]
        for each in set(self.sockets) - {step.get("ws") for step in rest}:
            self.sockets.pop(each).close()  # the recorded client had done so, or it would be told
        ws = self.sockets[name] = self.open_ws(self.sim, known)
        if not known:
            sockets = self.sim._server.life.sockets  # type: ignore[union-attr]
            self.ids[until(lambda: set(sockets) - set(self.ids)).pop()] = sid
        kinds = [each.get("json", {}).get("type") for each in rest if each.get("ws") == name]
        if "feature_flags" in kinds:
            flags = {"supports_preview_metadata": True}
            ws.send(json.dumps({"type": "feature_flags", "data": flags}))

    def call(self, step: Json) -> None:
        """Make a request, and compare the answer."""
        method, path = step["http"].split(" ", 1)
        back = {recorded: simulated for simulated, recorded in self.ids.items()}
        for recorded, simulated in back.items():
            path = path.replace(recorded, simulated)
        options: Json = {}
        if "request_json" in step:
            text = json.dumps(step["request_json"])
            for recorded, simulated in back.items():
                text = text.replace(recorded, simulated)
            options["json"] = json.loads(text)
            for node in options["json"].get("prompt", {}).values():
                if isinstance(node, dict) and node.get("class_type") == "SlowProgress":
                    node["inputs"]["seconds"] = 0.0
        if "request_data" in step:
            options["data"] = step["request_data"]
        if path.startswith("/upload") and step.get("note") != "not multipart":
            self.upload(path, step, options)
        if step.get("note") == "cross-origin request":
            options["headers"] = {"Origin": "http://evil.example"}
        answer = requests.request(method, self.sim.url + path, timeout=WAIT, **options)
        assert answer.status_code == step["status"], (step["http"], answer.text)
        assert answer.headers.get("Content-Type", "") == step["content_type"]
        if not answer.headers.get("Content-Type", "").startswith("application/json"):
            expected = step["body"]
            assert expected == answer.text or bool(answer.content) == bool(expected["bytes"])
            return
        body, expected = answer.json(), step["body"]
        if path == "/prompt" and method == "POST" and answer.ok:
            self.ids[body["prompt_id"]] = expected["prompt_id"]
            self.numbers.append(body["number"])
            assert self.numbers == sorted(set(self.numbers))
        if SHAPES.fullmatch(step["http"]):
            self.same_shape(body, expected, path)
        else:
            assert self.plain(body, simulated=True) == self.plain(expected)

    def upload(self, path: str, step: Json, options: Json) -> None:
        """Recordings do not have the files: a note tells what was sent."""
        body, note = step["body"], step.get("note", "")
        name = re.sub(r" \(1\)", "", body.get("name", "a.png") if isinstance(body, dict) else "a.png")
        name, data = UPLOADS.get(note, (name, b"bytes"))
        if note == "same name, other bytes":
            name = re.sub(r" \(1\)", "", body["name"])
        if note == "no image field":
            options["files"] = {"other": ("a.png", b"bytes")}
        else:
            options["files"] = {"image": (name, data)}
        if path == "/upload/mask" and "(1)" in body["name"]:  # an older mask was there
            Path(self.sim.root, "input", name).write_bytes(b"another mask")

    def same_shape(self, got: Any, expected: Any, where: str) -> None:
        """Keys and types are the same; of a list only the first entries."""
        if isinstance(expected, dict):
            assert isinstance(got, dict), where
            if where.endswith("system_stats/system"):
                expected = {key: expected[key] for key in got}
            texts = {"tooltip", "output_tooltips", "essentials_category"}
            expected = {key: item for key, item in expected.items() if key not in texts}
            if re.match(r"/history\?[^/]*$", where):  # keys are ids
                got, expected = {"": list(got.values())}, {"": list(expected.values())}
            assert set(got) == set(expected), where
            for key in expected:
                self.same_shape(got[key], expected[key], where + "/" + key)
        elif isinstance(expected, list):
            assert isinstance(got, list), where
            if where.endswith("]") or re.search(r"/input/\w+/\w+$", where):  # a spec: [type, {}]
                got, expected = [*got, {}][:2], [*expected, {}][:2]
            for at, (mine, other) in enumerate(zip(got, expected)):
                self.same_shape(mine, other, "{}/{}".format(where, at))
        elif isinstance(expected, (int, float)) and not isinstance(expected, bool):
            assert isinstance(got, (int, float)), where
        else:
            assert type(got) is type(expected), where

    def plain(self, value: Any, simulated: bool = False, key: str = "") -> Any:
        """The normalised form of a message or a body."""
        if isinstance(value, str):
            if simulated:
                value = self.ids.get(value, value)
            return re.sub(r"_\d{5}_", "_#_", value)
        if key in ("number", "priority", "seconds") or key in TIMES:
            assert isinstance(value, (int, float)), key
            return "#"
        if key == "traceback":
            assert value and all(isinstance(line, str) for line in value)
            return "#"
        if key == "current_inputs":
            return {name: len(values) for name, values in value.items()}
        if key in ("executed", "current_outputs"):
            return sorted(value)
        if isinstance(value, dict):
            return {
                self.ids.get(name, name) if simulated else name: self.plain(item, simulated, name)
                for name, item in value.items()
                if name != "tooltip"
            }
        if isinstance(value, list):
            items = [self.plain(item, simulated) for item in value]
            if len(items) == 5 and isinstance(items[4], list) and isinstance(items[2], dict):
                items[0] = "#"  # a prompt in /queue or /history
            return items
        return value


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: "-".join(path.parts[-2:])[:-5])
def test_recording(
    path: Path,
    simulate: Callable[..., Simulator],
    open_ws: Callable[..., ClientConnection],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recording = json.loads(path.read_text(encoding="utf-8"))
    installed = ["random_sd15.safetensors", "random_sdxl.safetensors"]
    monkeypatch.setitem(comfyui_simulator.MODELS, "checkpoints", installed)
    sim = simulate(version=recording["comfyui"])
    if recording["scenario"] == "queries":  # its server had done something before
        bodies = [step["body"] for step in recording["steps"] if "max_items" in step["http"]]
        entry = next(iter(bodies[0].values()))
        for _ in range(3):
            history(sim, submit(sim, entry["prompt"][2], client_id="validation"))
    Replay(recording, sim, open_ws, monkeypatch).run()


# ------------------------------------------------------------------------------------------------
# Nodes and pictures
# ------------------------------------------------------------------------------------------------


def test_object_info_is_that_of_a_real_server(sim: Simulator) -> None:
    """Inputs, their order and settings, and outputs; lists of files and tooltips differ."""
    recorded = json.loads((RECORDINGS[0].parent.parent / "object_info.json").read_text())
    Path(sim.root, "input", "example.png").write_bytes(b"")
    mine = get(sim, "/object_info").json()
    assert set(recorded) | {"SlowProgress", "FailNode", "TextOut", "SimulatedOutput"} == set(mine)
    for name, node in recorded.items():
        for key in ("output", "output_name", "output_is_list", "output_node", "category"):
            assert mine[name][key] == node[key], (name, key)
        assert mine[name]["display_name"] == node["display_name"]
        specs = mine[name]["input"]["required"]
        assert list(specs) == mine[name]["input_order"]["required"]
        if name == "SaveVideo":  # its format and codec are simpler here
            continue
        assert list(specs) == list(node["input"]["required"]), name
        for key, (kind, *settings) in node["input"]["required"].items():
            got, *more = specs[key]
            if kind == "COMBO":
                assert isinstance(got, list)
                kind = got
            if key.endswith("_name") and key != "sampler_name":
                kind = got
            assert got == kind, (name, key)
            mine_settings, settings = (more or [{}])[0], (settings or [{}])[0]
            settings.pop("options", None)
            assert mine_settings == settings, (name, key)


def test_pictures_say_that_they_are_simulated(sim: Simulator) -> None:
    files = []
    workflow = {"id": "some-id", "nodes": []}
    for seed in (1, 2):
        prompt = txt2img(seed=seed)
        extra = {"extra_pnginfo": {"workflow": workflow}}
        entry = history(sim, submit(sim, prompt, extra_data=extra))
        image = entry["outputs"]["9"]["images"][0]
        answer = get(sim, "/view", params=image)
        assert answer.headers["Content-Type"] == "image/png"
        files.append(answer.content)
        assert struct.unpack(">II", answer.content[16:24]) == (64, 96)
        texts = png_text(answer.content)
        assert json.loads(texts["prompt"])["3"]["inputs"]["seed"] == seed
        assert json.loads(texts["workflow"]) == workflow
    pixels = [pixels_of(data) for data in files]
    assert pixels[0] != pixels[1]
    assert b"\xff\xff\xff" in pixels[0]  # the ink of the text
    assert pixels_of(comfyui_simulator.draw(64, 96, 1, ["SIMULATED"])) != pixels[0]
    assert "simulated" in get(sim, "/system_stats").json()["devices"][0]["name"]


def pixels_of(data: bytes) -> bytes:
    at, packed = 8, b""
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        if data[at + 4 : at + 8] == b"IDAT":
            packed += data[at + 8 : at + 8 + length]
        at += 12 + length
    return zlib.decompress(packed)


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (40, 9), (300, 20), (20, 300)])
def test_pictures_of_every_size_can_be_drawn(size: Tuple[int, int]) -> None:
    data = comfyui_simulator.draw(*size, 5, ["SIMULATED", "SEED 5"])
    assert struct.unpack(">II", data[16:24]) == size
    assert len(pixels_of(data)) == size[1] * (1 + 3 * size[0])


def test_previews_on_request(simulate: Callable[..., Simulator], open_ws: Callable[..., ClientConnection]) -> None:
    sim = simulate(previews=False)
    ws = open_ws(sim, "me")
    for extra, count in (({}, 0), ({"preview_method": "auto"}, 4), ({"preview_method": "none"}, 0)):
        submit(sim, txt2img(seed=count), client_id="me", extra_data=extra)
        frames = [each for each in drain(ws) if isinstance(each, bytes)]
        assert len(frames) == count
        for frame in frames:
            assert struct.unpack(">II", frame[:8]) == (1, 2)
            png_text(frame[8:])


def test_preview_metadata_names_the_node(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    ws = open_ws(sim, "me")
    flags = {"supports_preview_metadata": True}
    ws.send("not JSON")  # does not count as the first message
    ws.send(json.dumps({"type": "feature_flags", "data": flags}))
    assert receive(ws, "feature_flags")["data"] == get(sim, "/features").json()
    prompt_id = submit(sim, slow(preview=True), client_id="me")
    frames = [each for each in drain(ws) if isinstance(each, bytes)]
    assert len(frames) == 3
    kind, length = struct.unpack(">II", frames[0][:8])
    assert kind == 4
    about = json.loads(frames[0][8 : 8 + length])
    ids = ("node_id", "display_node_id", "real_node_id")
    expected = {**dict.fromkeys(ids, "1"), "prompt_id": prompt_id, "parent_node_id": None}
    assert about == {**expected, "image_type": "image/png"}
    png_text(frames[0][8 + length :])


def test_only_the_first_message_negotiates(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    ws = open_ws(sim, "me")
    ws.send(json.dumps({"type": "hello"}))
    flags = {"supports_preview_metadata": True}
    ws.send(json.dumps({"type": "feature_flags", "data": flags}))
    submit(sim, slow(preview=True), client_id="me")
    messages = drain(ws)
    assert "feature_flags" not in types(messages)
    assert {each[:4] for each in messages if isinstance(each, bytes)} == {b"\0\0\0\1"}


def test_save_image_websocket_sends_the_whole_picture(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    ws = open_ws(sim, "me")
    prompt = txt2img()
    prompt["9"] = {"class_type": "SaveImageWebsocket", "inputs": {"images": ["8", 0]}}
    prompt_id = submit(sim, prompt, client_id="me")
    messages = drain(ws)
    (frame,) = [each for each in messages if isinstance(each, bytes)]
    assert struct.unpack(">II", frame[:8]) == (1, 2)
    assert struct.unpack(">II", frame[24:32]) == (64, 96)
    before = messages[: messages.index(frame)]
    assert before[-2]["data"]["nodes"]["9"]["state"] == "running"
    assert history(sim, prompt_id)["outputs"] == {}


def test_any_output_can_be_simulated(sim: Simulator) -> None:
    ui: Json = {
        "gifs": [{"filename": "a.mp4", "subfolder": "video", "type": "output", "bytes": 100000}],
        "audio": [{"filename": "a.flac", "subfolder": "", "type": "temp"}],
        "result": ["mesh/a.glb", None],
        "images": [{"filename": "a.png", "subfolder": "", "type": "temp"}],
        "animated": [True],
        "text": ["words"],
    }
    prompt_id = submit(sim, output_of(ui))
    outputs = history(sim, prompt_id)["outputs"]["1"]
    del ui["gifs"][0]["bytes"]
    assert outputs == ui
    video = get(sim, "/view", params=ui["gifs"][0])
    assert (len(video.content), video.headers["Content-Type"]) == (100000, "video/mp4")
    for item in (ui["gifs"][0], ui["audio"][0]):
        assert get(sim, "/view", params=item).content.startswith(b"SIMULATED")
    png_text(get(sim, "/view", params=ui["images"][0]).content)
    job = get(sim, "/api/jobs/" + prompt_id).json()
    assert (job["outputs_count"], job["previewable_outputs_count"]) == (4, 3)
    assert job["preview_output"]["mediaType"] == "3d"


def test_outputs_cannot_be_written_elsewhere(sim: Simulator) -> None:
    for prompt in (
        output_of({"images": [{"filename": "../../evil.png"}]}),
        output_of({"images": [{"filename": "evil.png", "subfolder": "../../.."}]}),
        {**txt2img(), "9": {**txt2img()["9"], "inputs": save_in("../../evil")}},
    ):
        entry = history(sim, submit(sim, prompt))
        kind, error = entry["status"]["messages"][-1]
        assert (kind, error["exception_type"]) == ("execution_error", "PermissionError")
    assert not list(Path(sim.root).parent.rglob("evil*"))


def save_in(prefix: str) -> Json:
    return {"filename_prefix": prefix, "images": ["8", 0]}


def test_files_are_counted_in_folders(sim: Simulator) -> None:
    prompt = txt2img()
    names = []
    for seed in (1, 2):
        prompt["3"]["inputs"]["seed"] = seed
        prompt["5"]["inputs"]["batch_size"] = 2
        prompt["9"]["inputs"] = save_in("deep/er/x_%width%")
        images = history(sim, submit(sim, prompt))["outputs"]["9"]["images"]
        names += [(each["subfolder"], each["filename"]) for each in images]
    assert names == [("deep/er", f"x_64_{number:05}_.png") for number in (1, 2, 3, 4)]


def test_media_nodes(sim: Simulator) -> None:
    files = {"image": ("a b.png", comfyui_simulator.draw(30, 20, 1, ["X"]))}
    name = requests.post(sim.url + "/upload/image", files=files, timeout=WAIT).json()["name"]
    Path(sim.root, "input", "a.flac").write_bytes(b"sound")
    Path(sim.root, "input", "a.mp4").write_bytes(b"film")
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": name + " [input]"}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
        "3": {"class_type": "LoadAudio", "inputs": {"audio": "a.flac"}},
        "4": {
            "class_type": "SaveAudio",
            "inputs": {"audio": ["3", 0], "filename_prefix": "audio/x"},
        },
        "5": {"class_type": "LoadVideo", "inputs": {"file": "a.mp4"}},
        "6": {
            "class_type": "SaveVideo",
            "inputs": {
                "video": ["5", 0],
                "filename_prefix": "v",
                "format": "auto",
                "codec": "auto",
            },
        },
        "7": {
            "class_type": "ImageScale",
            "inputs": {
                "image": ["1", 0],
                "upscale_method": "area",
                "width": 60,
                "height": 0,
                "crop": "disabled",
            },
        },
        "8": {"class_type": "PreviewAny", "inputs": {"source": ["7", 0]}},
    }
    outputs = history(sim, submit(sim, prompt))["outputs"]
    assert outputs["2"]["images"][0]["type"] == "temp"
    data = get(sim, "/view", params=outputs["2"]["images"][0]).content
    assert struct.unpack(">II", data[16:24]) == (30, 20)
    entry = {"filename": "x_00001_.flac", "subfolder": "audio", "type": "output"}
    assert outputs["4"] == {"audio": [entry]}
    assert outputs["6"]["animated"] == [True]
    assert json.loads(outputs["8"]["text"][0])[:2] == [60, 40]
    assert name in get(sim, "/object_info/LoadImage").text
    assert "a.mp4" in get(sim, "/object_info/LoadVideo").text


# ------------------------------------------------------------------------------------------------
# Validation beyond the recordings
# ------------------------------------------------------------------------------------------------


def errors_of(answer: requests.Response, node_id: str) -> List[Json]:
    assert answer.status_code == 400, answer.text
    errors: List[Json] = answer.json()["node_errors"][node_id]["errors"]
    return errors


def test_values_are_checked(sim: Simulator) -> None:
    for inputs, kind, details in (
        ({"steps": 0}, "value_smaller_than_min", "steps"),
        ({"cfg": 100.5}, "value_bigger_than_max", "cfg"),
        ({"sampler_name": "best"}, "value_not_in_list", "(list of length 44)"),
        ({"scheduler": "best"}, "value_not_in_list", "'best' not in ['simple', "),
        ({"model": ["4"]}, "bad_linked_input", "model"),
        ({"model": "name"}, None, None),
        ({"steps": {"__value__": 3}}, None, None),
        ({"seed": "12"}, None, None),
        ({"unknown": 1, "odd": [1, 2, 3], "absent": ["404", 0], "list": [["4"], 0]}, None, None),
    ):
        answer = post(sim, txt2img(**inputs))
        if kind is None:
            assert answer.status_code == 200, answer.text
            assert history(sim, answer.json()["prompt_id"])
            continue
        (error,) = errors_of(answer, "3")
        assert error["type"] == kind
        assert str(details) in error["details"]
        assert (error["extra_info"]["input_config"] is None) == ("length" in str(details))


def test_values_are_converted(sim: Simulator) -> None:
    prompt_id = submit(sim, slow(preview="false", seed="7", steps=2.9))
    inputs = history(sim, prompt_id)["prompt"][2]["1"]["inputs"]
    assert (inputs["preview"], inputs["seed"], inputs["steps"]) == (True, 7, 2)


def test_a_lora_list_is_not_sent_back(sim: Simulator) -> None:
    prompt = txt2img(model=["1", 0])
    inputs: Json = {"model": ["4", 0], "clip": ["4", 1], "lora_name": "x"}
    inputs.update(strength_model=1, strength_clip=1)
    prompt["1"] = {"class_type": "LoraLoader", "inputs": inputs}
    (error,) = errors_of(post(sim, prompt), "1")
    assert error["details"] == "lora_name: 'x' not in (list of length 24)"
    assert error["extra_info"]["input_config"] is None


@pytest.mark.parametrize("link", [["404", 0], [4, 0], ["4", 9], [["4"], 0]])
def test_bad_links_below_an_output(sim: Simulator, link: List[Any]) -> None:
    answer = post(sim, txt2img(model=link))
    assert answer.status_code == 400
    kinds = {each["type"] for each in errors_of(answer, "3")}
    assert kinds == {"exception_during_inner_validation"}


@pytest.mark.parametrize(
    ("version", "kind"),
    [("0.33.0", "dependency_cycle"), ("0.3.64", "exception_during_inner_validation")],
)
def test_cycles(simulate: Callable[..., Simulator], version: str, kind: str) -> None:
    sim = simulate(version=version)
    prompt = slow()
    for node_id, other in (("3", "4"), ("4", "3")):
        prompt[node_id] = {"class_type": "ImageInvert", "inputs": {"image": [other, 0]}}
    prompt["2"]["inputs"]["images"] = ["3", 0]
    answer = post(sim, prompt)
    assert answer.status_code == 400
    found = [each for node in answer.json()["node_errors"].values() for each in node["errors"]]
    assert kind in {each["type"] for each in found}
    if kind == "dependency_cycle":
        assert found[0]["extra_info"]["cycle_nodes"] == ["3", "4"]
        assert found[0]["details"] == "3 (ImageInvert) -> 4 (ImageInvert) -> 3 (ImageInvert)"


def test_loaders_stay_in_their_folders(sim: Simulator) -> None:
    Path(sim.root, "secret.png").write_bytes(comfyui_simulator.draw(9, 9, 1, ["X"]))
    for name in ("../secret.png", sim.root + "/secret.png", "../secret.png [output]"):
        prompt = {"1": {"class_type": "LoadImage", "inputs": {"image": name}}}
        prompt["2"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
        (error,) = errors_of(post(sim, prompt), "1")
        assert error["details"] == "image - Invalid image file: " + name
        both = {**prompt, "3": {"class_type": "TextOut", "inputs": {"text": "x"}}}
        assert history(sim, submit(sim, both))["status"]["completed"]


def test_partial_execution(sim: Simulator, simulate: Callable[..., Simulator]) -> None:
    prompt = {**slow(), "5": {"class_type": "TextOut", "inputs": {"text": "x"}}}
    prompt_id = submit(sim, prompt, partial_execution_targets=["5"])
    assert set(history(sim, prompt_id)["outputs"]) == {"5"}
    for targets in ([], ["1"]):
        answer = post(sim, prompt, partial_execution_targets=targets)
        assert answer.json()["error"]["type"] == "prompt_no_outputs"
    old = simulate(version="0.3.47", root=sim.root + "2")
    prompt_id = submit(old, prompt, partial_execution_targets=["5"])
    assert set(history(old, prompt_id)["outputs"]) == {"2", "5"}


@pytest.mark.parametrize("version", ["0.33.0", "0.3.64", "0.3.44", "0.0.0"])
def test_who_chooses_the_prompt_id(simulate: Callable[..., Simulator], version: str) -> None:
    sim = simulate(version=version)
    mine = str(uuid.uuid4())
    answer = post(sim, slow(), prompt_id=mine)
    assert (answer.json()["prompt_id"] == mine) == (version in ("0.33.0", "0.3.64"))
    for odd in (mine.upper(), 7, "x", {"a": 1}):
        answer = post(sim, slow(), prompt_id=odd)
        if version == "0.33.0":
            assert answer.status_code == 400
            assert answer.json()["error"]["type"] == "invalid_prompt_id"
        elif version == "0.3.64":
            assert answer.json()["prompt_id"] == str(odd)
        else:
            uuid.UUID(answer.json()["prompt_id"])
    answer = post(sim, slow(), prompt_id=None)
    assert (answer.json()["prompt_id"] == "None") == (version == "0.3.64")


# ------------------------------------------------------------------------------------------------
# Queue, cache, history, jobs
# ------------------------------------------------------------------------------------------------


def busy(sim: Simulator, **more: Any) -> str:
    """Something that runs until it is interrupted."""
    prompt_id = submit(sim, slow(steps=1000000, seconds=3600.0), **more)
    until(lambda: [each[1] for each in get(sim, "/queue").json()["queue_running"]] == [prompt_id])
    return prompt_id


def interrupt(sim: Simulator, **body: Any) -> None:
    assert requests.post(sim.url + "/interrupt", json=body, timeout=WAIT).status_code == 200


def test_the_queue_is_a_priority_queue(sim: Simulator) -> None:
    running = busy(sim)
    texts = {}
    for name, more in (("a", {}), ("b", {}), ("c", {"front": True}), ("d", {"number": -50})):
        prompt = {"1": {"class_type": "TextOut", "inputs": {"text": name}}}
        texts[submit(sim, prompt, **more)] = name
    queue = get(sim, "/queue").json()["queue_pending"]
    assert [texts[each[1]] for each in sorted(queue)] == ["d", "c", "a", "b"]
    assert get(sim, "/prompt").json() == {"exec_info": {"queue_remaining": 5}}
    interrupt(sim, prompt_id=running)
    until(lambda: len(get(sim, "/history").json()) == 5)
    assert [texts.get(key) for key in get(sim, "/history").json()] == [None, "d", "c", "a", "b"]
    pages = {"max_items=2": ["a", "b"], "max_items=2&offset=1": ["d", "c"], "offset=4": ["b"]}
    for query, expected in pages.items():
        assert [texts[key] for key in get(sim, "/history?" + query).json()] == expected
    assert get(sim, "/history?max_items=abc").status_code == 500


def test_clear_and_delete(sim: Simulator) -> None:
    running = busy(sim)
    ids = [submit(sim, slow(seed=number)) for number in range(4)]
    requests.post(sim.url + "/queue", json={"delete": [ids[1], "unknown"]}, timeout=WAIT)
    pending = get(sim, "/queue").json()["queue_pending"]
    assert sorted(each[1] for each in pending) == sorted(set(ids) - {ids[1]})
    requests.post(sim.url + "/queue", json={"clear": True}, timeout=WAIT)
    queue = get(sim, "/queue").json()
    assert (len(queue["queue_running"]), queue["queue_pending"]) == (1, [])
    interrupt(sim)
    history(sim, running)
    requests.post(sim.url + "/history", json={"delete": [running]}, timeout=WAIT)
    assert get(sim, "/history").json() == {}
    for path in ("/queue", "/history", "/free"):
        assert requests.post(sim.url + path, data="{", timeout=WAIT).status_code == 500


def test_the_cache_holds_the_previous_prompt(sim: Simulator) -> None:
    def executed(seed: int, text: str) -> List[str]:
        prompt = txt2img(seed=seed)
        prompt["6"]["inputs"]["text"] = text
        prompt_id = submit(sim, prompt)
        history(sim, prompt_id)
        return sim.executed_nodes[prompt_id]

    assert executed(1, "a") == ["4", "5", "7", "6", "3", "8", "9"]
    assert executed(1, "a") == []
    assert executed(2, "a") == ["3", "8", "9"]
    assert executed(2, "b") == ["6", "3", "8", "9"]
    assert executed(2, "a") == ["6", "3", "8", "9"]  # the one before is forgotten
    requests.post(sim.url + "/free", json={"free_memory": True}, timeout=WAIT)
    executed(2, "a")
    assert len(executed(2, "a")) == 7


def test_nodes_that_no_output_needs_do_no_harm(sim: Simulator) -> None:
    odd: List[Any] = [{}, {"inputs": [1]}, {"inputs": {"image": ["5", 0]}}, {"inputs": {"x": {}}}]
    for node in odd:
        prompt_id = submit(sim, {**slow(), "5": {"class_type": "ImageInvert", **node}})
        assert history(sim, prompt_id)["status"]["completed"]


def test_finished_nodes_stay_cached_after_an_error(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    ws = open_ws(sim, "me")
    prompt = slow()
    prompt["3"] = {"class_type": "FailNode", "inputs": {"message": "boom", "image": ["1", 0]}}
    prompt["4"] = {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}}
    for known in ([], ["1", "2"]):
        submit(sim, prompt, client_id="me")
        messages = drain(ws)
        (cached,) = [each for each in messages if types([each]) == ["execution_cached"]]
        assert cached["data"]["nodes"] == known
        assert types(messages)[-3:] == ["execution_error", "status", "executing"]
    assert list(sim.executions.values()) == [1, 1]


@pytest.mark.parametrize("version", ["0.33.0", "0.3.64"])
def test_outputs_of_cached_nodes_in_history(simulate: Callable[..., Simulator], version: str) -> None:
    sim = simulate(version=version)
    prompt = {**slow(), "5": {"class_type": "TextOut", "inputs": {"text": "x"}}}
    history(sim, submit(sim, prompt))
    entry = history(sim, submit(sim, prompt, partial_execution_targets=["5"]))
    assert set(entry["outputs"]) == ({"5"} if version == "0.33.0" else {"2", "5"})


def test_jobs(sim: Simulator) -> None:
    done = submit(sim, slow(), extra_data={"extra_pnginfo": {"workflow": {"id": "flow"}}})
    history(sim, done)
    failing = {**slow(seed=2), "3": {"class_type": "FailNode", "inputs": {"message": "m"}}}
    failing["3"]["inputs"]["image"] = ["1", 0]
    failing["2"]["inputs"]["images"] = ["3", 0]
    failed = submit(sim, failing)
    history(sim, failed)
    running = busy(sim)
    pending = submit(sim, slow(seed=3))
    by_status = {
        "pending": pending,
        "in_progress": running,
        "failed": failed,
        "completed": done,
        "cancelled": None,
    }
    for status, prompt_id in by_status.items():
        found = get(sim, "/api/jobs?status=" + status).json()["jobs"]
        assert [each["id"] for each in found] == ([prompt_id] if prompt_id else [])
    page = get(sim, "/api/jobs?limit=2&offset=1&sort_order=asc").json()
    assert [each["id"] for each in page["jobs"]] == [failed, running]
    assert page["pagination"] == {"offset": 1, "limit": 2, "total": 4, "has_more": True}
    assert get(sim, "/api/jobs?workflow_id=flow").json()["pagination"]["total"] == 1
    for query in ("status=odd", "limit=0", "limit=x", "sort_by=x", "sort_order=x", "offset=x"):
        answer = get(sim, "/api/jobs?" + query)
        assert (answer.status_code, list(answer.json())) == (400, ["error"])
    assert get(sim, "/api/jobs/" + pending).json()["workflow"]["prompt"]["1"]
    wrong: List[Any] = [{"job_ids": "x"}, {}, [], {"job_ids": [running.upper(), 3]}]
    for body in wrong:
        answer = requests.post(sim.url + "/api/jobs/cancel", json=body, timeout=WAIT)
        assert answer.status_code == 400
    assert answer.json()["invalid_ids"] == [running.upper(), "3"]
    body = {"job_ids": [pending, running, done, str(uuid.uuid4())]}
    answer = requests.post(sim.url + "/api/jobs/cancel", json=body, timeout=WAIT)
    assert answer.json() == {"cancelled": True}
    history(sim, running)
    assert get(sim, "/api/jobs/" + running).json()["status"] == "cancelled"
    assert get(sim, "/api/jobs/" + pending).status_code == 404
    assert get(sim, "/jobs").status_code == 404


def test_secrets_are_not_shown(simulate: Callable[..., Simulator]) -> None:
    sim = simulate()
    extra = {"api_key_comfy_org": "sk-1", "auth_token_comfy_org": "sk-2"}
    prompt_id = submit(sim, slow(), extra_data=extra)
    history(sim, prompt_id)
    assert "sk-" not in get(sim, "/history").text + get(sim, "/api/jobs").text


# ------------------------------------------------------------------------------------------------
# WebSockets
# ------------------------------------------------------------------------------------------------


def test_events_go_to_their_client_only(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    mine, other = open_ws(sim, "me"), open_ws(sim, "other")
    prompt_id = submit(sim, slow(), client_id="me")
    assert "execution_success" in types(drain(mine))
    submit(sim, slow(seed=2), client_id="other")
    assert prompt_id not in {each["data"].get("prompt_id") for each in drain(other)}
    submit(sim, slow(seed=3))  # of nobody: progress goes to all, the rest to nobody
    for ws in (mine, other):
        seen = [receive(ws) for _ in range(12)]
        assert set(types(seen)) <= {"status", "progress_state", "progress"}
        assert "progress" in types(seen)


def test_the_last_socket_of_a_client_wins(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    first = open_ws(sim, "me")
    receive(first)
    second = open_ws(sim, "me")
    assert receive(second)["data"]["sid"] == "me"
    first.close()
    submit(sim, slow(), client_id="me")
    assert "execution_success" in types(drain(second))
    with pytest.raises(ConnectionClosed):
        first.recv(timeout=WAIT)


def test_a_client_that_does_not_read_holds_up_nobody(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    with socket.create_connection(("127.0.0.1", sim.port)) as lazy:
        key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        lazy.sendall(b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n")
        lazy.sendall(b"Connection: Upgrade\r\n" + key)
        ws = open_ws(sim, "me")
        sim.faults.big_frame = 1 << 22
        begun = time.monotonic()
        for seed in range(3):
            submit(sim, slow(seed=seed), client_id="me")
            drain(ws)
            submit(sim, slow(seed=seed + 10))  # its big frames go to all
        until(lambda: len(sim.executions) == 6)
        assert time.monotonic() - begun < 5


def test_many_steps_are_fast(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    ws = open_ws(sim, "me")
    begun = time.monotonic()
    submit(sim, slow(steps=20000), client_id="me")
    frames = 0
    while '"node": null' not in str(ws.recv(timeout=WAIT)):
        frames += 1
    assert frames > 40000
    assert time.monotonic() - begun < 15


def test_pings_are_answered_and_closing_is_clean(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    ws = open_ws(sim, "me")
    receive(ws)  # older versions of websockets read no pong behind an unread message
    assert ws.ping().wait(WAIT)
    ws.send("x" * 100000)
    ws.send([b"in ", b"pieces"])
    assert ws.ping().wait(WAIT)
    ws.close(1000)
    assert ws.protocol.close_code == 1000
    until(lambda: not sim._server.life.sockets)  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------------------
# Faults
# ------------------------------------------------------------------------------------------------


def test_dropped_events(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    sim.faults.drop_events = frozenset({"execution_success", "progress", "progress_state"})
    ws = open_ws(sim, "me")
    submit(sim, slow(), client_id="me")
    kinds = types(drain(ws))
    assert "executed" in kinds
    assert not sim.faults.drop_events & set(kinds)


def test_dropped_end(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    sim.faults.drop_end = True
    ws = open_ws(sim, "me")
    history(sim, submit(sim, slow(), client_id="me"))
    sim.faults.drop_end = False
    submit(sim, slow(), client_id="me")
    kinds = types(drain(ws))
    assert kinds.count("execution_success") == 2
    assert kinds.count("executing") == 3  # two nodes of the first run, the end of the second


def test_late_history(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    sim.faults.history_delay = 0.3
    ws = open_ws(sim, "me")
    prompt_id = submit(sim, slow(), client_id="me")
    drain(ws)
    ended = time.monotonic()
    assert get(sim, "/queue").json() == {"queue_running": [], "queue_pending": []}
    assert get(sim, "/history/" + prompt_id).json() == {}
    history(sim, prompt_id)
    assert time.monotonic() - ended > 0.2


def test_evicted_history(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    sim.faults.history_evict = True
    ws = open_ws(sim, "me")
    submit(sim, slow(), client_id="me")
    drain(ws)
    assert get(sim, "/history").json() == {}
    assert get(sim, "/prompt").json()["exec_info"]["queue_remaining"] == 0


def test_lost_posts(sim: Simulator) -> None:
    sim.faults.lose_post = ["before", "after", "late:0.2", "ok", "500", "502", "503"]
    ids = [str(uuid.uuid4()) for _ in range(7)]
    for fault, prompt_id in zip(list(sim.faults.lose_post), ids):
        if fault.isdigit() or fault == "ok":
            answer = post(sim, slow(seed=3), prompt_id=prompt_id)
            assert answer.status_code == (200 if fault == "ok" else int(fault))
        else:
            with pytest.raises(requests.ConnectionError):
                post(sim, slow(), prompt_id=prompt_id)
    assert sim.faults.lose_post == []
    accepted = {ids[1], ids[2], ids[3]}
    until(lambda: set(get(sim, "/history").json()) == accepted)
    assert set(sim.executions) == accepted


def test_a_late_post_dies_with_the_server(sim: Simulator) -> None:
    sim.faults.lose_post = ["late:0.1"]
    with pytest.raises(requests.ConnectionError):
        post(sim, slow())
    sim.restart()
    history(sim, submit(sim, slow(seed=2)))
    assert len(sim.executions) == 1


def test_deaf_reconnect(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    sim.faults.deaf_reconnect = True
    first = open_ws(sim, "me")
    first.close()
    ws = open_ws(sim, "me")
    assert receive(ws)["data"]["sid"] == "me"
    history(sim, submit(sim, slow(), client_id="me"))
    with pytest.raises(TimeoutError):
        ws.recv(timeout=0.1)
    assert ws.ping().wait(WAIT)  # it is alive
    history(sim, submit(sim, slow(seed=2), client_id="new"))
    assert receive(open_ws(sim, "new"))["type"] == "status"


def test_sockets_are_cut_after_a_number_of_messages(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    sim.faults.cut_ws_after = 5
    for _ in range(2):
        ws = open_ws(sim, "me")
        submit(sim, slow(), client_id="me")
        seen = 0
        with pytest.raises(ConnectionClosed) as info:
            while True:
                receive(ws)
                seen += 1
        assert info.value.rcvd is None  # no close frame
        assert seen <= 5
    sim.faults.cut_ws_after = None
    submit(sim, slow(), client_id="me")
    history(sim, submit(sim, slow(), client_id="me"))


def test_cut_websockets(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    sockets = [open_ws(sim, name) for name in ("a", "b")]
    running = busy(sim, client_id="a")
    sim.cut_websockets()
    for ws in sockets:
        with pytest.raises(ConnectionClosed):
            drain(ws)
    ws = open_ws(sim, "a")
    assert types([receive(ws), receive(ws)]) == ["status", "executing"]
    interrupt(sim)
    history(sim, running)


def test_stall(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    sim.faults.stall = 0.3
    ws = open_ws(sim, "me")
    begun = time.monotonic()
    prompt_id = submit(sim, slow(), client_id="me")
    receive(ws, "executing")
    assert get(sim, "/queue").json()["queue_running"][0][1] == prompt_id
    drain(ws)
    assert 0.3 <= time.monotonic() - begun < 3


def test_noise(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    sim.faults.noise = True
    ws = open_ws(sim, "me")
    prompt_id = submit(sim, slow(), client_id="me")
    frames: List[Any] = []
    while not frames or prompt_id not in str(frames[-1]) or '"node": null' not in str(frames[-1]):
        frames.append(ws.recv(timeout=WAIT))
    texts = [each for each in frames if isinstance(each, str)]
    binaries = [each for each in frames if isinstance(each, bytes)]
    assert any("NaN" in each for each in texts)
    assert "this is not JSON" in texts
    assert any(each.startswith("[") for each in texts)
    assert any('"type": "executed"}' in each for each in texts)
    assert {1, 2, 3, 4, 99} <= {struct.unpack(">I", each[:4])[0] for each in binaries if each[3:]}
    assert any(len(each) < 4 for each in binaries)
    assert history(sim, prompt_id)["status"]["completed"]


def test_big_frames(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    sim.faults.big_frame = 3 << 20
    ws, small = open_ws(sim, "me"), open_ws(sim, "small", max_size=1 << 20)
    submit(sim, slow(), client_id="me")
    messages = drain(ws)
    assert max(len(each) for each in messages if isinstance(each, bytes)) > 3 << 20
    assert max(len(str(each)) for each in messages if isinstance(each, dict)) > 3 << 20
    submit(sim, slow(), client_id="small")
    with pytest.raises(ConnectionClosed) as info:
        drain(small)
    assert info.value.sent is not None
    assert info.value.sent.code == 1009


def test_http_faults(sim: Simulator) -> None:
    sim.faults.http_status = {"/history": 502, "/queue": 503}
    sim.faults.http_hang = {"/features": 0.2}
    sim.faults.cut_http = {"/system_stats": 2}
    for path, status in (("/history", 502), ("/api/history/x", 502), ("/queue", 503)):
        answer = get(sim, path)
        assert answer.status_code == status
        assert answer.headers["Content-Type"].startswith("text/plain")
    begun = time.monotonic()
    assert get(sim, "/features").ok
    assert time.monotonic() - begun >= 0.2
    for _ in range(2):
        with pytest.raises(requests.ConnectionError):
            get(sim, "/api/system_stats")
    assert get(sim, "/system_stats").ok
    assert get(sim, "/prompt").ok


def test_ignored_interrupts(sim: Simulator) -> None:
    sim.faults.ignore_interrupt = True
    prompt_id = submit(sim, slow(steps=20, seconds=0.2))
    interrupt(sim)
    interrupt(sim, prompt_id=prompt_id)
    assert history(sim, prompt_id)["status"]["completed"]


# ------------------------------------------------------------------------------------------------
# Versions
# ------------------------------------------------------------------------------------------------


def test_a_server_of_early_2024(simulate: Callable[..., Simulator], open_ws: Callable[..., ClientConnection]) -> None:
    sim = simulate(version="0.0.0")
    ws = open_ws(sim, "me")
    ids = [submit(sim, slow(), client_id="me") for _ in range(2)]
    messages = drain(ws)
    kinds = types(messages)
    assert not {"execution_success", "progress_state"} & set(kinds)
    assert "progress" in kinds
    assert all("timestamp" not in each.get("data", {}) for each in messages)
    assert "executed" not in types(drain(ws))  # the second run was cached
    entry = history(sim, ids[0])
    assert "meta" not in entry
    assert [each[0] for each in entry["status"]["messages"]] == [
        "execution_start",
        "execution_cached",
    ]
    assert "comfyui_version" not in get(sim, "/system_stats").json()["system"]
    assert get(sim, "/api/queue").status_code == 404
    ws.send(json.dumps({"type": "feature_flags", "data": {}}))
    submit(sim, slow(seed=2), client_id="me")
    assert "feature_flags" not in types(drain(ws))


def test_older_servers_stop_whatever_runs(simulate: Callable[..., Simulator]) -> None:
    sim = simulate(version="0.3.56")
    running = busy(sim)
    interrupt(sim, prompt_id=str(uuid.uuid4()))
    kind, data = history(sim, running)["status"]["messages"][-1]
    assert (kind, data["node_id"]) == ("execution_interrupted", "1")
    assert get(sim, "/api/jobs").status_code == 404


# ------------------------------------------------------------------------------------------------
# HTTP
# ------------------------------------------------------------------------------------------------


def test_everything_is_also_below_api(sim: Simulator) -> None:
    for path in ("/prompt", "/queue", "/history", "/features", "/object_info", "/models/loras"):
        assert get(sim, path).json() == get(sim, "/api" + path).json()
    assert ("GET", "/api/queue") in sim.requests
    assert get(sim, "/embeddings").json() == ["easynegative"]
    assert get(sim, "/models/none").status_code == 404
    assert requests.put(sim.url + "/queue", timeout=WAIT).status_code == 405
    assert get(sim, "/ws").status_code == 400


def test_base_path(simulate: Callable[..., Simulator], open_ws: Callable[..., ClientConnection]) -> None:
    sim = simulate(base_path="comfy/")
    assert sim.url.endswith("/comfy")
    assert get(sim, "/queue").ok
    assert get(sim, "/api/queue").ok
    for path in ("/queue", "/comfyqueue", "/comfy"):
        answer = requests.get(f"http://127.0.0.1:{sim.port}{path}", timeout=WAIT)
        assert answer.status_code == 404
    assert receive(open_ws(sim, "me"))["data"]["sid"] == "me"


def test_token(simulate: Callable[..., Simulator], open_ws: Callable[..., ClientConnection]) -> None:
    sim = simulate(token="s3cret")
    right = {"Authorization": "Bearer s3cret"}
    assert get(sim, "/queue", headers=right).ok
    assert get(sim, "/queue", auth=("user", "s3cret")).ok
    wrong = [{}, {"Authorization": "Bearer x"}, {"Authorization": "s3cret"}]
    for headers in [*wrong, {"Authorization": "Basic ???"}, {"Authorization": "Basic czNjcmV0"}]:
        assert get(sim, "/queue", headers=headers).status_code in (401, 500)
    with pytest.raises(InvalidStatus) as info:
        open_ws(sim)
    assert info.value.response.status_code == 401
    assert receive(open_ws(sim, additional_headers=right))["type"] == "status"


def test_foreign_origins(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    for headers, status in (
        ({"Origin": f"http://127.0.0.1:{sim.port}"}, 200),
        ({"Origin": f"http://127.0.0.1:{sim.port + 1}"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
    ):
        assert get(sim, "/queue", headers=headers).status_code == status
    with pytest.raises(InvalidStatus):
        open_ws(sim, origin="http://evil.example")


@pytest.fixture
def secret(sim: Simulator) -> Path:
    """A file beside the folders that nobody may read, and one that anybody may."""
    path = Path(sim.root, "secret.txt")
    path.write_text("secret")
    Path(sim.root, "output", "open.txt").write_text("0123456789")
    os.makedirs(Path(sim.root, "outputs"))
    Path(sim.root, "outputs", "secret.txt").write_text("secret")
    return path


@pytest.mark.parametrize(
    "query",
    [
        "filename=../secret.txt",
        "filename=..%2fsecret.txt",
        "filename=%2e%2e%2fsecret.txt",
        "filename=..%5csecret.txt",
        "filename=secret.txt&subfolder=..",
        "filename=secret.txt&subfolder=../outputs",
        "filename=secret.txt&subfolder=x/../..",
        "filename=secret.txt&subfolder=%2f{root}",
        "filename={root}/secret.txt",
        "filename=//{root}/secret.txt",
        "filename=secret.txt&type=..",
        "filename=secret.txt&type=outputs",
        "filename=secret.txt%00.png&subfolder=..",
        "filename=secret.txt [..]",
        "filename=link.txt",
        "filename=",
        "filename=.",
        "filename= [output]",
    ],
)
def test_view_stays_in_its_folders(sim: Simulator, secret: Path, query: str) -> None:
    with contextlib.suppress(OSError, NotImplementedError):
        os.symlink(str(secret), str(Path(sim.root, "output", "link.txt")))
    answer = get(sim, "/view?" + query.format(root=sim.root))
    assert answer.status_code in (400, 403, 404, 500)
    assert b"secret" not in answer.content


def test_view(sim: Simulator, secret: Path) -> None:
    for more in ("", "&type=output", "&subfolder=", "&subfolder=."):
        assert get(sim, "/view?filename=open.txt" + more).text == "0123456789"
    assert get(sim, "/view?filename=open.txt [output]&type=input").ok
    assert get(sim, "/view?filename=folder/open.txt").ok  # the folder is dropped
    assert get(sim, "/view?filename=open.txt&preview=webp").status_code == 500
    Path(sim.root, "output", "a.html").write_text("<script>")
    Path(sim.root, "output", "a.svg").write_text("<svg/>")
    for name in ("a.html", "a.svg"):
        kind = get(sim, "/view?filename=" + name).headers["Content-Type"]
        assert kind == "application/octet-stream"
    Path(sim.root, "output", "a.png").write_bytes(comfyui_simulator.draw(2000, 500, 1, ["X"]))
    small = get(sim, "/view?filename=a.png&preview=webp;90").content
    assert struct.unpack(">II", small[16:24]) == (512, 128)


def test_ranges(sim: Simulator, secret: Path) -> None:
    for wanted, status, content, text in (
        ("bytes=2-4", 206, "bytes 2-4/10", "234"),
        ("bytes=7-", 206, "bytes 7-9/10", "789"),
        ("bytes=-3", 206, "bytes 7-9/10", "789"),
        ("bytes=0-99", 206, "bytes 0-9/10", "0123456789"),
        ("bytes=-99", 206, "bytes 0-9/10", "0123456789"),
        ("bytes=10-", 416, "bytes */10", ""),
        ("bytes=5-2", 416, "bytes */10", ""),
        ("lines=1-2", 200, None, "0123456789"),
        ("bytes=-", 200, None, "0123456789"),
    ):
        answer = get(sim, "/view?filename=open.txt", headers={"Range": wanted})
        assert (answer.status_code, answer.text) == (status, text), wanted
        assert answer.headers.get("Content-Range") == content
    head = requests.head(sim.url + "/view?filename=open.txt", timeout=WAIT)
    assert (head.headers["Content-Length"], head.content) == ("10", b"")


def upload(sim: Simulator, name: str, data: Any = b"data", **form: str) -> requests.Response:
    files = {"image": (name, data)}
    return requests.post(sim.url + "/upload/image", files=files, data=form, timeout=WAIT)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("../evil", {}),
        ("../../evil", {}),
        ("/evil", {}),
        ("evil", {"subfolder": ".."}),
        ("evil", {"subfolder": "x/../../.."}),
        ("evil", {"subfolder": "/"}),
        ("evil", {"subfolder": "/tmp"}),
        ("../evil", {"subfolder": "x"}),
        ("evil", {"type": "../.."}),
        ("evil", {"type": "root"}),
        ("evil", {"subfolder": "link"}),
        ("x/evil", {}),
        ("evil\x00", {}),
    ],
)
def test_uploads_stay_in_their_folders(sim: Simulator, name: str, form: Dict[str, str]) -> None:
    with contextlib.suppress(OSError, NotImplementedError):
        os.symlink("..", str(Path(sim.root, "input", "link")))
    assert upload(sim, name, **form).status_code in (400, 500) or name == "../evil"
    for folder in (Path(sim.root), Path(sim.root).parent, Path("/"), Path("/tmp")):
        assert not (folder / "evil").exists()
    assert not list(Path(sim.root).glob(".upload*"))


def test_uploads_keep_odd_names(sim: Simulator) -> None:
    names = ["a b.png", "\u00fcml\u00e4ut.png", "100%.png", "x.tar.gz"]
    for name in [*names, *([] if os.name == "nt" else ['quo"te.png'])]:
        body = (
            b'--B\r\ncontent-disposition: form-data; name="image"; filename="'
            + name.replace('"', '\\"').encode()
            + b'"\r\nContent-Type: image/png\r\n\r\nline\r\n--not the end\r\n\r\n--B--\r\n'
        )
        headers = {"Content-Type": 'multipart/form-data; boundary="B"'}
        answer = requests.post(sim.url + "/upload/image", data=body, headers=headers, timeout=WAIT)
        assert answer.json()["name"] == name
        assert Path(sim.root, "input", name).read_bytes() == b"line\r\n--not the end\r\n"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_names_do_not_add_headers(sim: Simulator) -> None:
    name = "a\r\nX-Evil: yes.png"
    Path(sim.root, "output", name).write_bytes(b"x")
    answer = get(sim, "/view", params={"filename": name})
    assert (answer.content, "X-Evil" in answer.headers) == (b"x", False)


def test_uploads_with_the_same_name(sim: Simulator) -> None:
    names = [upload(sim, "a.b.png", data).json()["name"] for data in (b"1", b"2", b"1", b"2", b"3")]
    assert names == ["a.b.png", "a.b (1).png", "a.b.png", "a.b (1).png", "a.b (2).png"]
    assert upload(sim, "a.b.png", b"4", overwrite="yes").json()["name"] == "a.b (3).png"
    assert upload(sim, "a.b.png", b"5", overwrite="1").json()["name"] == "a.b.png"
    assert Path(sim.root, "input", "a.b.png").read_bytes() == b"5"


def test_a_mask_needs_its_original(sim: Simulator) -> None:
    Path(sim.root, "output", "o.png").write_bytes(comfyui_simulator.draw(30, 20, 1, ["X"]))
    files = {"image": ("m.png", b"mask")}
    for ref, status, written in (
        (None, 500, False),
        ("not JSON", 500, False),
        ('{"filename": "none.png"}', 200, False),
        ('{"filename": "../secret.png"}', 200, False),
        ('{"filename": "o.png"}', 200, True),
    ):
        form = {"original_ref": ref} if ref else {}
        answer = requests.post(sim.url + "/upload/mask", files=files, data=form, timeout=WAIT)
        assert answer.status_code == status
        assert Path(sim.root, "input", "m.png").exists() == written
    assert struct.unpack(">II", Path(sim.root, "input", "m.png").read_bytes()[16:24]) == (30, 20)


def test_big_uploads_do_not_fill_the_memory(sim: Simulator) -> None:
    import tracemalloc

    size = 50 << 20
    head = b'--B\r\nContent-Disposition: form-data; name="image"; filename="big.bin"\r\n\r\n'
    piece = b"0123456789abcdef" * 4096

    def body() -> Iterator[bytes]:
        yield head
        for _ in range(size // len(piece)):
            yield piece
        yield b"\r\n--B--\r\n"

    headers = {"Content-Type": "multipart/form-data; boundary=B"}
    tracemalloc.start()
    try:
        answer = requests.post(  # a generator is sent in chunks
            sim.url + "/upload/image", data=body(), headers=headers, timeout=30
        )
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert answer.json()["name"] == "big.bin"
    assert Path(sim.root, "input", "big.bin").stat().st_size == size


def test_bodies_over_the_limit(simulate: Callable[..., Simulator]) -> None:
    sim = simulate(max_upload_size=1 << 20)
    big = b"x" * (3 << 20)
    with requests.Session() as session:
        for answer in (
            session.post(sim.url + "/upload/image", files={"image": ("a", big)}, timeout=WAIT),
            session.post(sim.url + "/prompt", data=b'"' + big + b'"', timeout=WAIT),
            session.post(sim.url + "/prompt", data=iter([b'"', big]), timeout=WAIT),
        ):
            assert answer.status_code == 413
            assert "1048576" in answer.text
        assert session.get(sim.url + "/queue", timeout=WAIT).ok
    assert os.listdir(Path(sim.root, "input")) == []
    assert not list(Path(sim.root).glob(".upload*"))


def test_connections_are_kept_and_answers_come_at_once(sim: Simulator) -> None:
    with requests.Session() as session:
        session.get(sim.url + "/queue", timeout=WAIT)
        begun = time.monotonic()
        for _ in range(50):
            session.get(sim.url + "/queue", timeout=WAIT)
            session.post(sim.url + "/nowhere", data="x" * 100, timeout=WAIT)
        assert time.monotonic() - begun < 2  # 4 s if each answer waited for an ACK
    connections = sim._server.connections  # type: ignore[union-attr]
    until(lambda: not connections)


def test_expect_continue(sim: Simulator) -> None:
    with socket.create_connection(("127.0.0.1", sim.port), timeout=WAIT) as connection:
        head = b"POST /interrupt HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n"
        connection.sendall(head + b"Expect: 100-continue\r\nConnection: close\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 100")
        connection.sendall(b"{}")
        assert connection.recv(100).startswith(b"HTTP/1.1 200")


WS = b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /" + b"x" * 70000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n",
        b"BREW /queue HTTP/1.1\r\n\r\n",
        b"POST /prompt HTTP/1.1\r\nContent-Length: -5\r\nConnection: close\r\n\r\n",
        b"POST /prompt HTTP/1.1\r\nContent-Length: x\r\nConnection: close\r\n\r\n",
        b"POST /prompt HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        WS + b"\r\n",
        WS + b"Sec-WebSocket-Key: short\r\nSec-WebSocket-Version: 13\r\n\r\n",
        WS + KEY + b"\xff\xff\xff\xff",  # reserved bits
        WS + KEY + b"\x81\x01x",  # not masked
        WS + KEY + b"\x81\xff\x7f" + b"\xff" * 7 + b"mask",  # too long
        WS + KEY + b"\x88\x80\0\0\0\0",  # a close frame without a code
    ],
)
def test_malformed_requests_do_no_harm(sim: Simulator, data: bytes) -> None:
    begun = time.monotonic()
    raw(sim, data)
    assert time.monotonic() - begun < 5
    assert get(sim, "/queue").ok
    until(lambda: not sim._server.life.sockets)  # type: ignore[union-attr]


@pytest.mark.parametrize("data", [b"", b"POST /upl", WS, b"POST /prompt HTTP/1.1\r\nHost: x\r\n"])
def test_a_client_that_goes_away_does_no_harm(sim: Simulator, data: bytes) -> None:
    if data.endswith(b"x\r\n"):
        data += b"Content-Length: 1000\r\n\r\n{"
    with socket.create_connection(("127.0.0.1", sim.port)) as connection:
        connection.sendall(data)
    assert get(sim, "/queue").ok
    connections = sim._server.connections  # type: ignore[union-attr]
    until(lambda: not connections)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"[]", b"null", b'"text"', b"\xff\xfe", b"[" * 100000),
        *(b'{"prompt": []}', b'{"prompt": "x"}', b'{"prompt": {}, "number": "x"}'),
        *(b'{"prompt": {"1": 5}}', b'{"prompt": {"1": null}}'),
        b'{"prompt": {"1": {"class_type": []}}}',
    ],
)
def test_malformed_prompts_are_answered(sim: Simulator, body: bytes) -> None:
    answer = requests.post(sim.url + "/prompt", data=body, timeout=WAIT)
    assert answer.status_code in (400, 500)
    history(sim, submit(sim, slow()))


# ------------------------------------------------------------------------------------------------
# Life
# ------------------------------------------------------------------------------------------------


def test_stop_leaves_nothing_behind(open_ws: Callable[..., ClientConnection]) -> None:
    threads = set(threading.enumerate())
    sim = Simulator().start()
    root = Path(sim.root)
    assert (root / "input" / "example.png").exists()
    busy(sim, client_id="me")
    sim.faults.http_hang = {"/features": 60.0}
    with socket.create_connection(("127.0.0.1", sim.port)) as connection:
        connection.sendall(b"GET /features HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: ("GET", "/features") in sim.requests)
        key = WS + KEY
        with socket.create_connection(("127.0.0.1", sim.port)) as quiet:
            quiet.sendall(key)
            until(lambda: sim._server.life.sockets)  # type: ignore[union-attr]
            begun = time.monotonic()
            sim.stop()
            sim.stop()
            assert time.monotonic() - begun < 2
    assert set(threading.enumerate()) == threads
    assert not root.exists()
    with pytest.raises(requests.ConnectionError):
        get(sim, "/queue")


def test_a_given_folder_is_kept(tmp_path: Path) -> None:
    with Simulator(root=str(tmp_path)) as sim:
        history(sim, submit(sim, slow()))
    assert [each.name for each in (tmp_path / "output").iterdir()] == ["slow_00001_.png"]


def test_restart(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    done = submit(sim, slow())
    history(sim, done)
    Path(sim.root, "temp", "x.png").write_bytes(b"x")
    ws = open_ws(sim, "me")
    running = busy(sim, client_id="me")
    submit(sim, slow())
    port = sim.port
    sim.restart()
    with pytest.raises(ConnectionClosed) as info:
        drain(ws)
    assert info.value.rcvd is None
    assert sim.port == port
    assert get(sim, "/queue").json() == {"queue_running": [], "queue_pending": []}
    assert get(sim, "/history").json() == {}
    assert not os.listdir(Path(sim.root, "temp"))
    assert os.listdir(Path(sim.root, "output"))
    assert sim.executions == {done: 1, running: 1}
    again = submit(sim, slow())
    assert history(sim, again)["outputs"]["2"]["images"][0]["filename"] == "slow_00002_.png"
    assert sim.executed_nodes[again] == ["1", "2"]  # the cache is gone as well


def test_crash_and_revive(sim: Simulator) -> None:
    sim.crash()
    sim.crash()
    with pytest.raises(requests.ConnectionError):
        get(sim, "/queue")
    sim.revive()
    sim.revive()
    history(sim, submit(sim, slow()))


def test_two_simulators_do_not_share_a_port(sim: Simulator) -> None:
    other = Simulator(port=sim.port)
    with pytest.raises(OSError):
        other.start()
    other.stop()


# ------------------------------------------------------------------------------------------------
# Command line
# ------------------------------------------------------------------------------------------------


def command(*args: str) -> "subprocess.Popen[str]":
    script = str(ROOT / "comfyui_simulator.py")
    line = [sys.executable, script, "--port", "0", *args]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_command_line(tmp_path: Path, number: int) -> None:
    process = command("--version", "0.3.50", "--root", str(tmp_path), "--fault", "drop_end=true")
    with process:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = line.split()[-1]
        assert line.startswith("Simulated ComfyUI 0.3.50 at http://127.0.0.1:")
        stats = requests.get(url + "/system_stats", timeout=WAIT).json()
        assert stats["system"]["comfyui_version"] == "0.3.50"
        process.send_signal(number)
        out, err = process.communicate(timeout=WAIT)
        assert (process.returncode, out, err) == (0, "", "")


def test_command_line_mistakes(sim: Simulator) -> None:
    for args, status, text in (
        (["--port", str(sim.port)], 1, "Cannot listen on 127.0.0.1:"),
        (["--fault", "odd=1"], 2, "there is no fault 'odd'"),
        (["--fault", "stall=odd"], 2, "not JSON"),
    ):
        with command(*args) as process:
            _, err = process.communicate(timeout=WAIT)
            assert process.returncode == status
            assert text in err
            assert "Traceback" not in err


def test_importing_is_fast_and_silent() -> None:
    code = "import sys, comfyui_simulator; print('websockets' in sys.modules)"
    begun = time.monotonic()
    out = subprocess.check_output([sys.executable, "-c", code], cwd=str(ROOT), text=True)
    assert out == "False\n"
    assert time.monotonic() - begun < 3


def test_faults_start_harmless() -> None:
    assert Faults() == Simulator().faults
