"""What the tests of the state file share: the service as a process that is killed and started again."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
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
            found = re.search(r"Open http://127\.0\.0\.1:(\d+) in a browser", line)
            self.port = int(found.group(1)) if found else 0

    @property
    def said(self) -> str:
        return "".join(self.lines)

    def kill(self) -> None:
        """SIGKILL; on Windows TerminateProcess()."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.communicate(timeout=20)

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


class Story:
    """Clients that start runs and edit, while the service is killed again and again."""

    def __init__(self, process: ServiceProcess, chance: random.Random) -> None:
        self.process = process
        self.chance = chance
        self.number = 0  # of the last run that was asked for
        self.answered: List[str] = []  # the prompt_ids that clients were told
        self.edited = 0  # the last edit that was answered

    def live(self, seconds: float) -> None:
        """Starts runs and edits for so long, and then kills the service at any point."""
        client = threading.Thread(target=self._use)
        killer = threading.Timer(seconds, self.process.process.kill)
        client.start()
        killer.start()
        client.join(30.0)
        killer.join(30.0)
        assert not client.is_alive(), "a client waits for an answer that never comes"
        self.process.kill()

    def _use(self) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):  # until the service is killed
            while True:
                self.number += 1
                seconds = self.chance.choice([0.0, 0.0, 0.05, 0.2])
                answer = self.process.call("POST", "/prompt", {"prompt": numbered_prompt(self.number, seconds)})
                if answer.status == 503:  # it has not found ComfyUI yet
                    time.sleep(0.02)
                    continue
                assert answer.status == 200, answer
                self.answered.append(answer.json["prompt_id"])
                edit = {"node_id": "1", "inputs": {"seed": self.number}}
                assert self.process.call("POST", "/update/inputs", edit).status == 200
                self.edited = self.number

    def check_edits(self) -> None:
        """What was answered is held; the edit that was not may be, too."""
        held = self.process.get("/workflow")["prompt"]["1"]["inputs"]["seed"]
        assert held in (self.edited, self.edited + 1, self.number), (held, self.edited, self.number)

    def check_runs(self) -> None:
        """No run is missing, none was sent twice, and each has the outputs of its own prompt."""
        simulator = self.process.simulator
        runs = {run["prompt_id"]: run for run in self.process.all_over()}
        assert len(runs) == len(self.process.runs())
        received = prompts_received(simulator)
        assert set(received) <= set(runs) and set(self.answered) <= set(received)
        life = simulator._server.life
        for prompt_id, run in runs.items():
            if prompt_id not in received:
                assert run["phase"] == "rejected", run
                continue
            assert run["phase"] == "success", run
            assert run["seeds"] == {"1.seed": life.history[prompt_id]["prompt"][2]["1"]["inputs"]["seed"]}
            assert {output["filename"] for output in run["outputs"]} == files_in_history(simulator, prompt_id)
