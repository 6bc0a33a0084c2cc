"""The execution of prompts: messages, progress, and the worker that takes one after the other."""

from __future__ import annotations

import json
import time
import traceback
from typing import Any

from comfyui_runner.simulator.frames import (
    make_big_preview,
    make_noise_frames,
    make_noise_messages,
    make_preview,
    make_preview_with_metadata,
)
from comfyui_runner.simulator.installation import Installation
from comfyui_runner.simulator.life import Life
from comfyui_runner.simulator.node_class import Node
from comfyui_runner.simulator.nodes import NODES
from comfyui_runner.simulator.order import execution_order
from comfyui_runner.simulator.pictures import draw
from comfyui_runner.simulator.prompts import Job, Json, is_link
from comfyui_runner.simulator.signatures import Signatures

#: What a prompt may choose (latent_preview.py, set_preview_method()); else the server's own counts.
PREVIEW_METHODS = ("none", "auto", "latent2rgb", "taesd")

#: The width and the height of a preview.
PREVIEW_SIDE = 128


class Interrupted(Exception):
    """The running prompt was interrupted."""


def sends_previews(installation: Installation, extra_data: Json) -> bool:
    """Whether samplers send previews: as the prompt says, else as the server does by itself."""
    method = extra_data.get("preview_method")
    is_chosen = installation.has("preview_method") and method in PREVIEW_METHODS
    if is_chosen:
        return method != "none"
    return installation.previews


class Running:
    """One execution of a job: its messages, its progress and what its nodes may ask for."""

    def __init__(self, life: Life, job: Job) -> None:
        self.life = life
        self.installation = life.installation
        self.job = job
        self.prompt = job.prompt
        self.extra_data = job.extra_data
        self.client_id: str | None = job.extra_data.get("client_id")
        self.signatures = Signatures(self.installation, self.prompt)
        self.secrets = job.secrets
        self.previews = sends_previews(self.installation, job.extra_data)
        #: Seconds that the first step of this run hangs.
        self.stall = self.installation.faults.stall

        #: What /history keeps: the messages, and what it shows of each node.
        self.messages: list[list[Any]] = []
        self.outputs: Json = {}
        #: The nodes that ran, in their order.
        self.executed: list[str] = []
        #: node_id -> its part of progress_state, as JSON: encoding all at every step is slow.
        self.states: dict[str, str] = {}
        #: The node that runs, the values of its inputs, and how many steps it has.
        self.node_id = job.outputs[0]
        self.current_inputs: Json = {}
        self.total = 1.0

    # What nodes use.

    def check(self) -> None:
        """Raise Interrupted if the prompt was interrupted, or the server killed."""
        if self.life.take_interrupt() or self.life.dead.is_set():
            raise Interrupted()

    def sleep(self, seconds: float) -> None:
        """Wait, though not beyond the end of the server."""
        self.life.dead.wait(seconds)

    def progress(self, value: int, total: int, preview: int | bytes | None = None) -> None:
        """Report a step, with a preview drawn from a seed or an image that is ready to send."""
        if self.stall is not None:
            self.sleep(self.stall)
            self.stall = None
        self.set_state(value, total, "running")
        if isinstance(preview, int):
            preview = self.draw_preview(preview, value, total)
        takes_metadata = self.life.takes_metadata(self.client_id)
        # A preview with metadata is sent before the progress of its step, a plain one after it.
        if preview is not None and takes_metadata:
            metadata = {**self.describe_node(), "image_type": "image/png"}
            frame = make_preview_with_metadata(metadata, preview)
            self.life.emit(frame, self.client_id)
        data = {
            "value": value,
            "max": total,
            "prompt_id": self.job.prompt_id,
            "node": self.node_id,
        }
        self.life.send("progress", data, self.client_id)
        if preview is not None and not takes_metadata:
            self.send_picture(preview)

    def send_picture(self, picture: bytes) -> None:
        """Send a picture that belongs to no step: a plain one, whatever the client takes."""
        frame = make_preview(picture)
        self.life.emit(frame, self.client_id)

    @staticmethod
    def draw_preview(seed: int, value: int, total: int) -> bytes:
        """The preview of a step."""
        lines = ["SIMULATED", f"{value} OF {total}"]
        return draw(PREVIEW_SIDE, PREVIEW_SIDE, seed + value, lines)

    # Messages.

    def announce(self, event: str, for_everyone: bool = False, **data: Any) -> None:
        """Send a message that /history keeps to the prompt's client, or to everyone."""
        data["timestamp"] = int(time.time() * 1000)
        self.messages.append([event, data])
        if self.client_id is not None or for_everyone:
            self.life.send(event, data, self.client_id)

    def send(self, event: str, **data: Any) -> None:
        """Send a message of this prompt to its client, if it has one."""
        if self.client_id is None:
            return
        data["prompt_id"] = self.job.prompt_id
        self.life.send(event, data, self.client_id)

    def send_output(self, output: Json | None) -> None:
        """Send the output of the current node."""
        self.send("executed", node=self.node_id, display_node=self.node_id, output=output)

    def describe_node(self) -> Json:
        """The current node, as progress_state and previews describe it."""
        return {
            "node_id": self.node_id,
            "display_node_id": self.node_id,
            "real_node_id": self.node_id,
            "prompt_id": self.job.prompt_id,
            "parent_node_id": None,
        }

    def set_state(self, value: float, total: float, state: str) -> None:
        """Set the current node's progress, and send progress_state."""
        self.total = total
        part = {"value": value, "max": total, "state": state, **self.describe_node()}
        key = json.dumps(self.node_id)
        self.states[self.node_id] = f"{key}: {json.dumps(part)}"
        if "progress_state" in self.installation.faults.drop_events:
            return
        nodes = ", ".join(self.states.values())
        prompt_id = json.dumps(self.job.prompt_id)
        data = f'{{"prompt_id": {prompt_id}, "nodes": {{{nodes}}}}}'
        self.life.emit(f'{{"type": "progress_state", "data": {data}}}', self.client_id)

    def misbehave(self, is_beginning: bool) -> None:
        """Send what the faults ask for at the beginning and the end of a run."""
        faults = self.installation.faults
        if faults.noise:
            for event, data in make_noise_messages():
                self.life.send(event, data, self.client_id)
            for frame in make_noise_frames():
                self.life.emit(frame, self.client_id)
        if faults.big_frame and is_beginning:
            padding = "x" * faults.big_frame
            self.life.send("simulated_big_event", {"padding": padding}, self.client_id)
            self.life.emit(make_big_preview(faults.big_frame), self.client_id)

    # Execution.

    def is_cached(self, node_id: str) -> bool:
        """Whether a node need not run."""
        return self.signatures.of(node_id) in self.life.cache

    def run(self) -> Json:
        """Execute the prompt. Returns its entry in /history."""
        succeeded = False
        self.announce("execution_start", prompt_id=self.job.prompt_id)
        try:
            self.forget_other_prompts()
            cached = [node_id for node_id in self.prompt if self.is_cached(node_id)]
            self.announce("execution_cached", nodes=cached, prompt_id=self.job.prompt_id)
            self.misbehave(is_beginning=True)
            for node_id in execution_order(self.prompt, self.job.outputs, self.is_cached):
                self.node_id = node_id
                class_type = self.prompt[node_id]["class_type"]
                self.execute(NODES[class_type])
            succeeded = True
            self.misbehave(is_beginning=False)
            self.announce("execution_success", prompt_id=self.job.prompt_id)
        except Interrupted:
            self.announce("execution_interrupted", for_everyone=True, **self.describe_end())
        except Exception as error:  # whatever a node raises is reported to the client
            self.announce("execution_error", **self.describe_end(), **self.describe_error(error))
        if not self.installation.has("jobs"):
            self.add_cached_outputs()
        return self.make_history_entry(succeeded)

    def forget_other_prompts(self) -> None:
        """Keep in the cache only what the previous prompt and this one have in common."""
        own_signatures = {self.signatures.of(node_id) for node_id in self.prompt}
        for signature in set(self.life.cache) - own_signatures:
            del self.life.cache[signature]

    def execute(self, node: Node) -> None:
        """Run the current node, or take what the cache has for it."""
        signature = self.signatures.of(self.node_id)
        self.current_inputs = {}
        if signature in self.life.cache:  # an equal node of the same prompt ran meanwhile
            self.take_from_cache(signature)
            return
        self.set_state(0.0, 1.0, "running")
        if self.client_id is not None:
            self.life.last_node = self.node_id
        self.send("executing", node=self.node_id, display_node=self.node_id)
        self.check()
        self.installation.executed_nodes[self.job.prompt_id].append(self.node_id)
        self.collect_inputs(node)
        result = node.action(self, dict(self.current_inputs))
        if result.ui:
            self.outputs[self.node_id] = result.ui
            self.send_output(result.ui)
        self.life.cache[signature] = result
        self.set_state(self.total, self.total, "finished")
        self.executed.append(self.node_id)

    def take_from_cache(self, signature: str) -> None:
        """Report the result of an equal node as the current node's."""
        ui = self.life.cache[signature].ui
        self.send_output(ui)
        if ui:
            self.outputs[self.node_id] = ui
        self.set_state(1, 1, "finished")

    def collect_inputs(self, node: Node) -> None:
        """Find the values of the current node's inputs: its own, and what links bring."""
        for name, value in self.prompt[self.node_id]["inputs"].items():
            if name not in node.specs:
                continue
            if is_link(value, self.prompt):
                origin, slot = value
                result = self.life.cache[self.signatures.of(origin)]
                value = result.outputs[slot]
            self.current_inputs[name] = value

    # The end.

    def describe_end(self) -> Json:
        """Where an execution ended that failed or was interrupted."""
        return {
            "prompt_id": self.job.prompt_id,
            "node_id": self.node_id,
            "node_type": self.prompt[self.node_id]["class_type"],
            "executed": list(self.executed),
        }

    def describe_error(self, error: Exception) -> Json:
        """Why the current node failed."""
        current_inputs = {}
        for name, value in self.current_inputs.items():
            if not isinstance(value, (int, float, str, type(None))):
                value = f"SIMULATED {value!r}"
            current_inputs[name] = [value]
        return {
            "exception_message": f"{error}\n",
            "exception_type": type(error).__name__,
            "traceback": traceback.format_tb(error.__traceback__),
            "current_inputs": current_inputs,
            "current_outputs": list(self.prompt),
        }

    def add_cached_outputs(self) -> None:
        """Add what the cache has for nodes that did not run; newer servers leave it out."""
        for node_id in self.prompt:
            result = self.life.cache.get(self.signatures.of(node_id))
            if result is not None and result.ui:
                self.outputs[node_id] = result.ui

    def make_history_entry(self, succeeded: bool) -> Json:
        """The prompt's entry in /history."""
        status = "error"
        if succeeded:
            status = "success"
        return {
            "prompt": self.job.item(),
            "outputs": self.outputs,
            "status": {
                "status_str": status,
                "completed": succeeded,
                "messages": self.messages,
            },
            "meta": {node_id: make_meta(node_id) for node_id in self.outputs},
        }


def make_meta(node_id: str) -> Json:
    """What /history says of a node that has outputs."""
    return {
        "node_id": node_id,
        "display_node": node_id,
        "parent_node": None,
        "real_node_id": node_id,
    }


def work(life: Life) -> None:
    """Run one prompt after the other until the server ends."""
    while True:
        job = life.take()
        if job is None:
            return
        run_job(life, job)


def run_job(life: Life, job: Job) -> None:
    """Run a prompt that was taken off the queue, and say that it ended unless the server did."""
    installation = life.installation
    earlier_executions = installation.executions.get(job.prompt_id, 0)
    installation.executions[job.prompt_id] = earlier_executions + 1
    installation.executed_nodes.setdefault(job.prompt_id, [])

    running = Running(life, job)
    entry = running.run()
    if life.dead.is_set():
        return

    # The order of a real server: history, status, then the message that ends the run.
    life.finish(job, entry)
    running.send("executing", node=None)
    faults = installation.faults
    if faults.history_delay and not faults.history_evict:
        life.call_later(faults.history_delay, life.remember, job.prompt_id, entry)
    if life.should_forget:
        life.should_forget = False
        life.cache.clear()
