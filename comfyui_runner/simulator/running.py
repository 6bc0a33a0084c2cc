"""The execution of prompts: order of nodes, messages, progress, and the worker."""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import struct
import time
import traceback
from typing import Any, Callable

from comfyui_runner.simulator.life import Life
from comfyui_runner.simulator.nodes import NODES, Node
from comfyui_runner.simulator.pictures import draw
from comfyui_runner.simulator.prompts import Job, Json, is_link


class Interrupted(Exception):
    """The running prompt was told to stop."""


def execution_order(prompt: Json, outputs: list[str], cached: Callable[[str], bool]) -> list[str]:
    """The nodes that must run, in the server's order: outputs and what leads to one come first."""
    pending: dict[str, set[str]] = {}  # node_id -> the pending nodes that it waits for
    stack = outputs[::-1]
    while stack:
        node_id = stack.pop()
        if node_id not in pending:
            values = prompt[node_id]["inputs"].values()
            links = [value[0] for value in values if is_link(value, prompt)]
            links = [origin for origin in links if not cached(origin)]
            pending[node_id] = set(links)
            stack += links
    ends = {each for each in pending if NODES[prompt[each]["class_type"]].output_node}
    order = []
    while pending:
        ready = [node_id for node_id, waits in pending.items() if not waits]
        reach = {each: {each} for each in ready}  # what is up to two links behind a ready node
        chosen = ""
        for _ in range(3):
            chosen = chosen or next((each for each in ready if reach[each] & ends), "")
            for each, seen in reach.items():
                reach[each] = {follower for follower in pending if pending[follower] & seen}
        chosen = chosen or ready[0]
        order.append(chosen)
        del pending[chosen]
        for waits in pending.values():
            waits.discard(chosen)
    return order


class Running:
    """One execution of a job: its messages, its progress and what its nodes may ask for."""

    def __init__(self, life: Life, job: Job) -> None:
        self.life, self.job, self.prompt = life, job, job.prompt
        self.sim, self.extra_data = life.sim, job.extra_data
        self.client: str | None = job.extra_data.get("client_id")
        self.messages: list[list[Any]] = []
        self.ui: Json = {}
        self.executed: list[str] = []
        self.node_id = job.outputs[0]
        self.current: Json = {}
        self.states: dict[str, str] = {}  # node_id -> its part of progress_state, as JSON
        self.signatures: dict[str, str] = {}
        self.stall = life.sim.faults.stall
        method = job.extra_data.get("preview_method", "none")
        self.previews = life.sim.previews or method not in ("none", "default")

    # What nodes use.

    def check(self) -> None:
        """Raise Interrupted if the prompt was told to stop; a killed server stops as well."""
        if self.life.take_interrupt() or self.life.dead.is_set():
            raise Interrupted()

    def sleep(self, seconds: float) -> None:
        """Wait, though not beyond the end of the server."""
        if seconds > 0:
            self.life.dead.wait(seconds)

    def progress(self, value: int, total: int, preview: int | bytes | None = None) -> None:
        """Report a step, with a preview drawn from a seed or an image that is ready to send."""
        node_id, life = self.node_id, self.life
        if self.stall is not None:
            self.sleep(self.stall)
            self.stall = None
        self.set_state(value, total, "running")
        image = preview if isinstance(preview, bytes) else None
        if isinstance(preview, int):
            image = self.draw_preview(preview, value, total)
        if image is not None and life.takes_metadata(self.client):
            head = json.dumps({**self.about(), "image_type": "image/png"}).encode()
            life.emit(struct.pack(">II", 4, len(head)) + head + image, self.client)
            image = None
        done = {"value": value, "max": total, "prompt_id": self.job.prompt_id, "node": node_id}
        life.send("progress", done, self.client)
        if image is not None:
            life.emit(struct.pack(">II", 1, 2) + image, self.client)

    @staticmethod
    def draw_preview(seed: int, value: int, total: int) -> bytes:
        """The preview of a step."""
        return draw(128, 128, seed + value, ["SIMULATED", f"{value} OF {total}"])

    # How it runs.

    def about(self) -> Json:
        """The current node, as progress and previews tell of it."""
        ids: Json = dict.fromkeys(("node_id", "display_node_id", "real_node_id"), self.node_id)
        return {**ids, "prompt_id": self.job.prompt_id, "parent_node_id": None}

    def set_state(self, value: float, total: float, state: str) -> None:
        """Send progress_state; the parts of the other nodes are kept as JSON."""
        sim, node_id = self.life.sim, self.node_id
        part = {"value": value, "max": total, "state": state, **self.about()}
        self.states[node_id] = f"{json.dumps(node_id)}: {json.dumps(part)}"
        self.total = total
        if sim.has("progress_state") and "progress_state" not in sim.faults.drop_events:
            nodes = ", ".join(self.states.values())
            head = f'"prompt_id": {json.dumps(self.job.prompt_id)}, "nodes": {{{nodes}}}'
            self.life.emit(f'{{"type": "progress_state", "data": {{{head}}}}}', self.client)

    def announce(self, kind: str, everyone: bool = False, **data: Any) -> None:
        """Send a message that /history keeps."""
        if self.life.sim.has("released"):
            data["timestamp"] = int(time.time() * 1000)
        self.messages.append([kind, data])
        if self.client is not None or everyone:
            self.life.send(kind, data, self.client)

    def tell(self, kind: str, **data: Any) -> None:
        """Send a message of this prompt to its client, if it has one."""
        if self.client is not None:
            self.life.send(kind, {**data, "prompt_id": self.job.prompt_id}, self.client)

    def signature(self, node_id: str) -> str:
        """What the cache knows a node by: class, values, files and the same of what it links to."""
        if node_id not in self.signatures:
            self.signatures[node_id] = "cycle"
            node = self.prompt[node_id]
            parts: list[Any] = [node["class_type"]]
            inputs = node.get("inputs")
            for name, value in sorted(inputs.items()) if isinstance(inputs, dict) else ():
                if is_link(value, self.prompt):
                    value = [self.signature(value[0]), value[1]]
                elif name == "image" and isinstance(value, str):
                    path = self.life.sim.annotated(value)
                    value = [value, os.path.isfile(path) and os.stat(path).st_mtime_ns]
                parts.append([name, value])
            digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
            self.signatures[node_id] = digest
        return self.signatures[node_id]

    def cached(self, node_id: str) -> bool:
        """Whether a node need not run."""
        return self.signature(node_id) in self.life.cache

    def run(self) -> Json:
        """Execute the prompt and return its entry in /history."""
        life, job = self.life, self.job
        self.announce("execution_start", prompt_id=job.prompt_id)
        success = False
        try:
            signatures = {self.signature(node_id) for node_id in self.prompt}
            for signature in set(life.cache) - signatures:  # only the previous prompt's are kept
                del life.cache[signature]
            known = [node_id for node_id in self.prompt if self.cached(node_id)]
            self.announce("execution_cached", nodes=known, prompt_id=job.prompt_id)
            life.misbehave(self.client, begins=True)
            for node_id in execution_order(self.prompt, job.outputs, self.cached):
                self.node_id = node_id
                self.execute(NODES[self.prompt[node_id]["class_type"]])
            success = True
            life.misbehave(self.client, begins=False)
            if life.sim.has("released"):
                self.announce("execution_success", prompt_id=job.prompt_id)
        except Exception as exc:  # whatever a node raises is the client's to hear of
            self.fail(exc)
        if not life.sim.has("jobs"):  # older servers list what is cached as well
            for node_id in self.prompt:
                if self.cached(node_id) and life.cache[self.signature(node_id)][1]:
                    self.ui[node_id] = life.cache[self.signature(node_id)][1]
        status = {"status_str": "success" if success else "error", "completed": success}
        entry: Json = {"prompt": job.item(), "outputs": self.ui}
        entry["status"] = {**status, "messages": self.messages}
        if life.sim.has("released"):
            ids = ("node_id", "display_node", "real_node_id")
            entry["meta"] = {each: {**dict.fromkeys(ids, each), "parent_node": None} for each in self.ui}
        return entry

    def execute(self, node: Node) -> None:
        """Run the current node, or take what the cache has for it."""
        life, node_id, signature = self.life, self.node_id, self.signature(self.node_id)
        shown = {"display_node": node_id} if life.sim.has("released") else {}
        self.current = {}
        if signature in life.cache:
            ui = life.cache[signature][1]
            if life.sim.has("released"):
                self.tell("executed", node=node_id, **shown, output=ui)
            if ui:
                self.ui[node_id] = ui
            self.set_state(1, 1, "finished")
            return
        self.set_state(0.0, 1.0, "running")
        if self.client is not None:
            life.last_node = node_id
        self.tell("executing", node=node_id, **shown)
        self.check()
        life.sim.executed_nodes[self.job.prompt_id].append(node_id)
        for name, value in self.prompt[node_id]["inputs"].items():
            if name in node.specs:
                if is_link(value, self.prompt):
                    value = life.cache[self.signature(value[0])][0][value[1]]
                self.current[name] = value
        outputs, ui = node.run(self, dict(self.current))
        if ui:
            self.ui[node_id] = ui
            self.tell("executed", node=node_id, **shown, output=ui)
        life.cache[signature] = (outputs, ui)
        self.set_state(self.total, self.total, "finished")
        self.executed.append(node_id)

    def fail(self, exc: Exception) -> None:
        """Tell that the prompt was interrupted, or why its current node failed."""
        about: Json = {"prompt_id": self.job.prompt_id, "node_id": self.node_id}
        about["node_type"] = self.prompt[self.node_id]["class_type"]
        about["executed"] = list(self.executed)
        if isinstance(exc, Interrupted):
            self.announce("execution_interrupted", everyone=True, **about)
            return
        plain = (int, float, str, type(None))
        about["exception_message"] = f"{exc}\n"
        about["exception_type"] = type(exc).__name__
        about["traceback"] = traceback.format_tb(exc.__traceback__)
        about["current_inputs"] = {
            name: [value if isinstance(value, plain) else "SIMULATED " + repr(value)]
            for name, value in self.current.items()
        }
        about["current_outputs"] = list(self.prompt)
        self.announce("execution_error", **about)


def work(life: Life) -> None:
    """Run one prompt after the other."""
    while True:
        with life.lock:
            while not life.pending and not life.dead.is_set():
                life.wake.wait()
            if life.dead.is_set():
                return
            job = life.running = heapq.heappop(life.pending)[3]
            life.interrupted = False
            running = Running(life, job)
            life.client, life.last_node = running.client, None
            life.changed()
        life.sim.executions[job.prompt_id] = life.sim.executions.get(job.prompt_id, 0) + 1
        life.sim.executed_nodes.setdefault(job.prompt_id, [])
        entry = running.run()
        if life.dead.is_set():
            return
        with life.lock:
            life.running, life.last_node = None, None
            if not life.sim.faults.history_delay and not life.sim.faults.history_evict:
                life.remember(job.prompt_id, entry)
            life.changed()
        running.tell("executing", node=None)
        if life.sim.faults.history_delay and not life.sim.faults.history_evict:
            delay = life.sim.faults.history_delay
            life.later(delay, life.remember, job.prompt_id, entry)
        if life.free:
            life.free = False
            life.cache.clear()
