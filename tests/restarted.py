"""What the tests of the state file share: the service as a process that is killed and started again."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from typing import Any, Dict, List, Optional, Set

from served import Answer
from support import ROOT, SCRIPT, node, wait_until

Json = Dict[str, Any]


class ServiceProcess:
    """Continuous mode as a process of its own."""

    def __init__(self, simulator: Any, workflow: str, *arguments: str) -> None:
        self.simulator = simulator
        self.command = [sys.executable, SCRIPT, "--mode", "continuous", "--port", "0", "--server", simulator.url]
        self.command += ["--max-queue", "1000", workflow, *arguments]
        self.process: Any = None
        self.port = 0
        self.lines: List[str] = []  # what it has printed until it listened

    def start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": ROOT, "PYTHONIOENCODING": "utf-8"}
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        self.lines = []
        self.port = 0
        while not self.port:
            line = self.process.stdout.readline()
            assert line, "".join(self.lines)
            self.lines.append(line)
            found = re.search(r"mode at http://127\.0\.0\.1:(\d+)", line)
            self.port = int(found.group(1)) if found else 0

    @property
    def said(self) -> str:
        return "".join(self.lines)

    def kill(self) -> None:
        """SIGKILL; on Windows TerminateProcess()."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate(timeout=20)
            self.process = None

    def stop(self) -> None:
        """SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        rest, _ = self.process.communicate(timeout=30)
        self.lines.append(rest)
        self.process = None

    def call(self, method: str, path: str, body: Any = None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30.0)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            sent = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, sent, response.read())
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        answer = self.call("GET", path)
        assert answer.status == 200, answer
        return answer.json

    def start_run(self) -> str:
        answer = self.call("POST", "/queue")
        assert answer.status == 202, answer
        return str(answer.json["prompt_id"])

    def connected(self) -> None:
        wait_until(lambda: self.get("/status")["comfyui"]["connected"], what="the connection to ComfyUI")

    def runs(self) -> List[Json]:
        """All runs, page by page."""
        runs: List[Json] = []
        path: Optional[str] = "runs?limit=7"
        while path is not None:
            page = self.get("/" + path)
            runs += page["runs"]
            path = page["next"]
        return runs

    def all_over(self, seconds: float = 60.0) -> List[Json]:
        """All runs when none goes on."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            runs = self.runs()
            if all(run["over"] for run in runs):
                return runs
            time.sleep(0.05)
        raise AssertionError([(run["prompt_id"], run["phase"]) for run in runs])


def numbered_prompt(number: int, seconds: float = 0.0) -> Json:
    """A prompt whose picture says its number: SlowProgress draws its seed."""
    return {
        "1": node("SlowProgress", "Slow", steps=2, seconds=seconds, seed=number, preview=False),
        "2": node("SaveImage", "Save", filename_prefix="numbered", images=["1", 0]),
    }


def prompts_received(simulator: Any) -> List[str]:
    """The prompt_ids of all prompts that ComfyUI has: of those that have ended, run and wait."""
    life = simulator._server.life
    with life.lock:
        ended = list(life.history)
    running, pending = life.snapshot()
    ids = ended + [job.item()[1] for job in [*running, *pending]]
    assert len(ids) == len(set(ids)), "a prompt was sent twice"
    return ids


def files_in_history(simulator: Any, prompt_id: str) -> Set[str]:
    """The names of the files that ComfyUI lists for a prompt."""
    life = simulator._server.life
    with life.lock:
        outputs = life.history[prompt_id]["outputs"]
    return {image["filename"] for ui in outputs.values() for image in ui.get("images", [])}
