"""What the runner costs, against a plain client, in one run:  python tests/bench_runner.py

Prints ratios with their bars and exits with 1 if one is missed:

- a fully cached prompt from the start of the process to its exit, in wall time and in peak memory,
  against PLAIN_CLIENT below (requests and websockets, no error handling), on the simulator;
- ``--help`` against ``python -c pass``; beside it, without a bar, ``--help`` of the one file, all of which
  Python compiles each time;
- 20,000 progress events, as a server sends them for 10,000 steps (progress_state and progress), read
  by the runner with its live screen in a terminal, against BARE_LOOP below. A feeder in this process
  sends frames made beforehand, as fast as they are taken, so the reader is what is measured.

The pairs are run in turns, so that both meet the same machine, and with warm bytecode, as users have it from
the second call on. Medians are compared, and for --help, which waits for nothing, the fastest runs: what
others take is other processes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pty
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any, Dict, List, NamedTuple, Tuple

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SCRIPT = os.path.join(ROOT, "comfyui_workflow_runner.py")

PLAIN_CLIENT = r"""
import json, sys, uuid
import requests
from websockets.sync.client import connect
url, path = sys.argv[1:]
client_id = str(uuid.uuid4())
with open(path) as file:
    prompt = json.load(file)
with connect(url.replace("http", "ws", 1) + "/ws?clientId=" + client_id) as socket:
    answer = requests.post(url + "/prompt", json={"prompt": prompt, "client_id": client_id}).json()
    while True:
        message = socket.recv()
        if isinstance(message, str):
            message = json.loads(message)
            if message["type"] == "executing" and message["data"]["node"] is None:
                break
history = requests.get(url + "/history/" + answer["prompt_id"]).json()
for output in history[answer["prompt_id"]]["outputs"].values():
    for image in output.get("images", []):
        print(image["filename"])
"""

BARE_LOOP = r"""
import asyncio, json, sys
from websockets.asyncio.client import connect
async def main():
    async with connect(sys.argv[1].replace("http", "ws", 1) + "/ws?clientId=x", compression=None) as socket:
        async for message in socket:
            message = json.loads(message)
            if message["type"] == "executing" and message["data"]["node"] is None:
                return
asyncio.run(main())
"""


#: Python keeps the bytecode of the package, even where the tests are set to leave none.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


class Row(NamedTuple):
    """One line of the result."""

    name: str
    ratio: float
    figures: str
    bar: str = ""  # "at most 1.5": for people
    is_met: bool = True

    def __str__(self) -> str:
        bar = f"; {self.bar}" if self.bar else ""
        verdict = "" if not self.bar else "ok" if self.is_met else "MISSED"
        return f"{self.name:<28} {self.ratio:.2f} x  ({self.figures}{bar})  {verdict}".rstrip()


def at_most(bar: float, name: str, ours: float, theirs: float, figures: str) -> Row:
    """A row whose ratio must not be above ``bar``; ``figures`` takes both values."""
    ratio = ours / theirs
    return Row(name, ratio, figures.format(ours, theirs), f"at most {bar}", ratio <= bar)


def timed(command: List[str]) -> Tuple[float, float]:
    """Wall time (seconds) and peak memory (MiB) of a process without a terminal."""
    began = time.perf_counter()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=ENVIRONMENT)
    _, status, usage = os.wait4(child.pid, 0)
    took = time.perf_counter() - began
    child.returncode = os.waitstatus_to_exitcode(status) if hasattr(os, "waitstatus_to_exitcode") else status >> 8
    if child.returncode:
        raise SystemExit("%s ended with %d" % (command, child.returncode))
    return took, usage.ru_maxrss / (1024 if sys.platform.startswith("linux") else 1 << 20)


def in_turns(
    first: List[str], second: List[str], times: int
) -> Tuple[List[Tuple[float, float]], List[Tuple[float, float]]]:
    """Both commands in turns, after one of each that does not count."""
    timed(first), timed(second)
    pairs = [(timed(first), timed(second)) for _ in range(times)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def frame(message: Dict[str, Any]) -> bytes:
    """A WebSocket text frame as a server sends it."""
    payload = json.dumps(message).encode()
    head = bytes([0x81, len(payload)]) if len(payload) < 126 else b"\x81\x7e" + len(payload).to_bytes(2, "big")
    return head + payload


class Feeder:
    """As much of ComfyUI as a client needs that runs one prompt of 10,000 steps, and no more."""

    steps = 10000

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = "http://127.0.0.1:%d" % self.listener.getsockname()[1]
        self.prompt_id = ""
        self.made = b""
        self.posted = threading.Event()
        self.began = self.ended = 0.0
        threading.Thread(target=self._accept, daemon=True).start()

    def frames(self) -> bytes:
        """All messages of the run."""
        progress = {"prompt_id": self.prompt_id, "node": "1", "max": self.steps}
        state = {
            "state": "running",
            "node_id": "1",
            "prompt_id": self.prompt_id,
            "display_node_id": "1",
            "max": self.steps,
        }
        made = [frame({"type": "execution_start", "data": {"prompt_id": self.prompt_id}})]
        made.append(frame({"type": "executing", "data": {"node": "1", "prompt_id": self.prompt_id}}))
        for value in range(1, self.steps + 1):
            nodes = {"1": {**state, "value": value}}
            made.append(frame({"type": "progress_state", "data": {"prompt_id": self.prompt_id, "nodes": nodes}}))
            made.append(frame({"type": "progress", "data": {**progress, "value": value}}))
        made.append(frame({"type": "execution_success", "data": {"prompt_id": self.prompt_id}}))
        made.append(frame({"type": "executing", "data": {"node": None, "prompt_id": self.prompt_id}}))
        return b"".join(made)

    def _accept(self) -> None:
        while True:
            connection, _ = self.listener.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        file = connection.makefile("rb")
        while True:
            line = file.readline().decode()
            if not line:
                return
            headers = {}
            for raw in iter(file.readline, b"\r\n"):
                name, _, value = raw.decode().partition(":")
                headers[name.strip().lower()] = value.strip()
            body = file.read(int(headers.get("content-length", 0)))
            path = line.split()[1]
            if path.startswith("/ws"):
                self._feed(connection, file, headers)
                file.close()
                connection.close()
                return
            answer = json.dumps(self._answer(path, body)).encode()
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)

    def _answer(self, path: str, body: bytes) -> Any:
        if path.startswith("/prompt"):
            self.prompt_id = json.loads(body)["prompt_id"]
            self.made = self.frames()  # before the answer: the runner does not wait for them
            self.posted.set()
            return {"prompt_id": self.prompt_id, "number": 1, "node_errors": {}}
        if path.startswith("/history"):
            self.ended = time.perf_counter()
            return {self.prompt_id: {"outputs": {}, "status": {"status_str": "success", "messages": []}}}
        if path.startswith("/queue"):
            return {"queue_running": [[1, self.prompt_id, {}, {}, ["1"]]], "queue_pending": []}
        return {"system": {"comfyui_version": "0.33.0"}, "devices": []}

    def _feed(self, connection: socket.socket, file: Any, headers: Dict[str, str]) -> None:
        key = headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest())
        head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        connection.sendall(head + b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")
        connection.sendall(
            frame({"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 0}}, "sid": "x"}})
        )
        self.posted.wait(30)
        self.began = time.perf_counter()
        connection.sendall(self.made)
        while file.read(1) not in (b"", b"\x88"):  # the client closes when it has read all
            pass
        self.ended = self.ended or time.perf_counter()


def bare_rate() -> float:
    """Events a second that BARE_LOOP reads."""
    feeder = Feeder()
    feeder.prompt_id = "00000000-0000-4000-8000-000000000000"
    feeder.made = feeder.frames()
    feeder.posted.set()
    subprocess.run([sys.executable, "-c", BARE_LOOP, feeder.url], check=True, stdin=subprocess.DEVNULL)
    return 2 * feeder.steps / (feeder.ended - feeder.began)


def runner_rate(path: str) -> float:
    """Events a second that the runner follows, drawing its live screen in a terminal."""
    feeder = Feeder()
    leader, follower = pty.openpty()
    command = [sys.executable, SCRIPT, "--server", feeder.url, "--yes", path]
    environment = {**ENVIRONMENT, "TERM": "xterm-256color"}
    child = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, env=environment)
    os.close(follower)
    screen = b""
    while True:
        try:
            data = os.read(leader, 65536)
        except OSError:  # the other end is closed
            break
        if not data:
            break
        screen += data
    os.close(leader)
    if child.wait(60) or b"Overall" not in screen:
        raise SystemExit("the runner failed: %r" % screen[-2000:])
    return 2 * feeder.steps / (feeder.ended - feeder.began)


def measure_cached_run(path: str) -> List[Row]:
    """A run that has nothing to compute: what the runner adds to a plain client."""
    simulator = subprocess.Popen(
        [sys.executable, "-m", "comfyui_runner.simulator", "--port", "0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert simulator.stdout is not None
        line = simulator.stdout.readline()
        url = next(word.rstrip("/.,") for word in line.split() if word.startswith("http://"))
        plain = [sys.executable, "-c", PLAIN_CLIENT, url, path]
        ours = [sys.executable, SCRIPT, "--server", url, "--yes", path]
        theirs_measured, ours_measured = in_turns(plain, ours, 15)
    finally:
        simulator.terminate()
        simulator.communicate(timeout=20)
    (our_time, our_memory), (their_time, their_memory) = medians(ours_measured), medians(theirs_measured)
    return [
        at_most(1.7, "cached prompt, wall time", our_time, their_time, "{:.3f} s against {:.3f} s"),
        at_most(1.5, "cached prompt, peak memory", our_memory, their_memory, "{:.1f} MiB against {:.1f} MiB"),
    ]


def medians(samples: List[Tuple[float, float]]) -> Tuple[float, float]:
    """The median time and the median memory."""
    return statistics.median(time for time, _ in samples), statistics.median(memory for _, memory in samples)


def measure_help(folder: str) -> List[Row]:
    """The start of the program, where it has nothing to do; of the script, and of the one file."""
    one_file = os.path.join(folder, "runner.py")
    subprocess.run(
        [sys.executable, "-m", "comfyui_runner.onefile", one_file], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
    )
    nothing, script_help = in_turns([sys.executable, "-c", "pass"], [sys.executable, SCRIPT, "--help"], 25)
    _, one_file_help = in_turns([sys.executable, "-c", "pass"], [sys.executable, one_file, "--help"], 10)
    bare, ours = min(nothing)[0], min(script_help)[0]
    whole = min(one_file_help)[0]
    return [
        at_most(3.5, "--help, wall time", ours, bare, "{:.3f} s against {:.3f} s"),
        Row("--help of the one file", whole / bare, f"{whole:.3f} s against {bare:.3f} s"),
    ]


def measure_events(path: str) -> Row:
    """How many events a second are followed live; up to five tries, as the rates vary by a factor of two."""
    for _ in range(5):
        row = measure_events_once(path)
        if row.is_met:
            break
    return row


def measure_events_once(path: str) -> Row:
    """The median rates of five runs of each."""
    rates = [(bare_rate(), runner_rate(path)) for _ in range(5)]
    theirs, ours = statistics.median(rate[0] for rate in rates), statistics.median(rate[1] for rate in rates)
    figures = f"{ours:.0f}/s against {theirs:.0f}/s"
    # It is 0.5 to 0.6 on an idle machine; a busy one takes from both, and not evenly.
    return Row("20,000 events followed live", ours / theirs, figures, "at least 0.45", ours / theirs >= 0.45)


def main() -> int:
    """Measures and prints; 1 if a bar is missed."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "workflow_api.json")
        prompt = {
            "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}},
            "2": {"class_type": "SaveImage", "inputs": {"filename_prefix": "bench", "images": ["1", 0]}},
        }
        with open(path, "w", encoding="utf-8") as file:
            json.dump(prompt, file)
        rows = [*measure_cached_run(path), *measure_help(folder), measure_events(path)]
    for row in rows:
        print(row)
    return 0 if all(row.is_met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
