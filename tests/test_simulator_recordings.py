"""The simulator is held to recordings of real servers: the same answers and messages in the same order."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import pytest
import requests
from simulated import RECORDINGS, WAIT, Json, history, receive, submit, until
from websockets.sync.client import ClientConnection

from comfyui_runner.simulator import Simulator
from comfyui_runner.simulator.installation import MODELS
from comfyui_runner.simulator.running import Running

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
    "not a picture: stored nevertheless": ("note.txt", b"text"),
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
        progress = Running.progress

        def paced(running: Any, *args: Any) -> None:
            while not self.steps.acquire(timeout=0.005):
                running.check()
            progress(running, *args)

        monkeypatch.setattr(Running, "progress", paced)
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
        """Open a socket as its client did; the first message says which id it has."""
        known = {recorded: other for other, recorded in self.ids.items()}.get(sid, "")
        if known:
            old = next(iter(self.sockets))
            self.sockets.pop(old).socket.shutdown(socket.SHUT_RDWR)
            until(lambda: known not in self.sim._server.life.sockets)  # type: ignore[union-attr]
        for each in set(self.sockets) - {step.get("ws") for step in rest}:
            self.sockets.pop(each).close()  # the recorded client had done so, or it would get messages
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
        """Recordings do not have the files: a note says what was sent."""
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
    monkeypatch.setitem(MODELS, "checkpoints", installed)
    sim = simulate(version=recording["comfyui"])
    if recording["scenario"] == "queries":  # its server had done something before
        bodies = [step["body"] for step in recording["steps"] if "max_items" in step["http"]]
        entry = next(iter(bodies[0].values()))
        for _ in range(3):
            history(sim, submit(sim, entry["prompt"][2], client_id="validation"))
    Replay(recording, sim, open_ws, monkeypatch).run()
