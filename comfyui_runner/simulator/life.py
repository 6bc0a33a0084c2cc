"""What a server keeps in memory: queue, history, cache, sockets and threads."""

from __future__ import annotations

import heapq
import json
import struct
import threading
import time
import uuid
from typing import Any, Callable, Protocol

from comfyui_runner.simulator.installation import Installation
from comfyui_runner.simulator.pictures import draw
from comfyui_runner.simulator.prompts import Job, Json


class Subscriber(Protocol):
    """A client's socket, as far as the messages to it are concerned."""

    flags: Json

    def put(self, frame: str | bytes) -> None: ...

    def abort(self) -> None: ...


class Life:
    """All that a server keeps in memory; a restart begins a new one."""

    def __init__(self, sim: Installation) -> None:
        self.sim = sim
        self.lock = threading.RLock()
        self.wake = threading.Condition(self.lock)
        self.dead = threading.Event()
        self.threads: set[threading.Thread] = set()
        self.sockets: dict[str, Subscriber] = {}
        self.clients: set[str] = set()  # all that were ever connected
        self.pending: list[tuple[float, str, int, Job]] = []
        self.running: Job | None = None
        self.history: dict[str, Json] = {}
        self.cache: dict[str, tuple[tuple[Any, ...], Json | None]] = {}
        self.number = self.accepted = 0
        self.interrupted = self.free = False
        self.client: str | None = None
        self.last_node: str | None = None

    def spawn(self, target: Callable[..., None], *args: Any) -> None:
        """Start a thread that end() will join."""

        def run() -> None:
            try:
                target(*args)
            finally:
                with self.lock:
                    self.threads.discard(thread)

        thread = threading.Thread(target=run, name="comfyui-simulator", daemon=True)
        with self.lock:
            self.threads.add(thread)
        thread.start()

    def later(self, seconds: float, target: Callable[..., Any], *args: Any) -> None:
        """Call something in a while, unless the server is gone by then."""

        def wait() -> None:
            if not self.dead.wait(seconds):
                target(*args)

        self.spawn(wait)

    def end(self) -> None:
        """Cut the sockets and stop the threads."""
        with self.lock:
            self.dead.set()
            self.wake.notify_all()
        self.cut_websockets()

    def join(self, seconds: float) -> None:
        """Wait for the threads, but not for long."""
        until = time.monotonic() + seconds
        with self.lock:
            threads = self.threads - {threading.current_thread()}
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))

    def cut_websockets(self) -> None:
        """Cut all sockets without a close frame."""
        with self.lock:
            sockets, self.sockets = list(self.sockets.values()), {}
        for each in sockets:
            each.abort()

    # Messages.

    def send(self, kind: str, data: Json, sid: str | None) -> None:
        """Send a message to one client, or to all; a client that is not there misses it."""
        faults = self.sim.faults
        if kind in faults.drop_events:
            return
        if faults.drop_end and kind == "executing" and data["node"] is None:
            return
        self.emit(json.dumps({"type": kind, "data": data}), sid)

    def emit(self, frame: str | bytes, sid: str | None) -> None:
        """Send a frame as it is."""
        with self.lock:
            for name, each in list(self.sockets.items()):
                if sid in (None, name):
                    each.put(frame)

    def takes_metadata(self, sid: str | None) -> bool:
        """Whether a client asked for previews with metadata (binary type 4 in place of 1)."""
        with self.lock:
            flags = self.sockets[sid].flags if sid in self.sockets else {}
        return flags.get("supports_preview_metadata") is True

    def status(self) -> Json:
        """The data of a status message."""
        with self.lock:
            remaining = len(self.pending) + (self.running is not None)
        return {"exec_info": {"queue_remaining": remaining}}

    def changed(self) -> None:
        """Tell everybody that the queue changed."""
        self.send("status", {"status": self.status()}, None)

    def misbehave(self, client: str | None, begins: bool) -> None:
        """Send what the faults ask for, at the begin and the end of a run."""
        faults = self.sim.faults
        if faults.noise:
            other = {"prompt_id": str(uuid.uuid4()), "node": "1"}
            self.send("simulated_unknown_event", {"anything": [1, None]}, client)
            self.send("progress", {"value": 1, "max": 2, **other}, client)
            self.send("executing", {**other, "node": None}, client)
            self.send("execution_error", other, client)
            self.send("progress", {"value": float("nan"), "max": float("inf")}, client)
            for frame in ('{"type": "executed"}', '{"type": "progress", "data": null}', "[1, 2]"):
                self.emit(frame, client)
            self.emit("this is not JSON", client)
            head = json.dumps({"node_id": "1"}).encode()
            for body in (
                struct.pack(">II", 1, 2) + b"not a picture",
                struct.pack(">II", 2, 1) + b"never sent by a real server",
                struct.pack(">II", 3, 1) + b"1" + "SIMULATED text \u00fc".encode(),
                struct.pack(">II", 4, len(head)) + head + b"not a picture",
                struct.pack(">II", 4, 4096) + b"{",
                struct.pack(">I", 99) + b"unknown type",
                b"\0\0",
                b"",
            ):
                self.emit(body, client)
        if faults.big_frame and begins:
            self.send("simulated_big_event", {"padding": "x" * faults.big_frame}, client)
            image = draw(64, 64, 0, ["SIMULATED"], [("padding", "x" * faults.big_frame)])
            self.emit(struct.pack(">II", 1, 2) + image, client)

    # The queue.

    def put(self, job: Job) -> None:
        """Queue a job."""
        with self.lock:
            self.accepted += 1
            heapq.heappush(self.pending, (job.number, job.prompt_id, self.accepted, job))
            self.changed()
            self.wake.notify()

    def delete(self, prompt_id: str) -> bool:
        """Take one pending prompt off the queue."""
        with self.lock:
            for entry in self.pending:
                if entry[1] == prompt_id:
                    self.pending.remove(entry)
                    heapq.heapify(self.pending)
                    if not self.pending:
                        self.changed()  # a real server says it twice when none is left
                    self.changed()
                    return True
        return False

    def clear(self) -> None:
        """Take all pending prompts off the queue."""
        with self.lock:
            self.pending.clear()
            self.changed()

    def interrupt(self, prompt_id: str | None = None) -> bool:
        """Interrupt what runs, or only if it is a certain prompt."""
        with self.lock:
            if prompt_id and (self.running is None or self.running.prompt_id != prompt_id):
                return False
            self.interrupted = not self.sim.faults.ignore_interrupt
            return True

    def take_interrupt(self) -> bool:
        """Whether there was an interrupt, which is used up by this."""
        with self.lock:
            taken, self.interrupted = self.interrupted, False
        return taken

    def snapshot(self) -> tuple[list[Job], list[Job]]:
        """What runs and what waits."""
        with self.lock:
            return [self.running] if self.running else [], [entry[3] for entry in self.pending]

    def remember(self, prompt_id: str, entry: Json) -> None:
        """Add to the history, which holds 10000 prompts."""
        with self.lock:
            if len(self.history) > 10000:
                del self.history[next(iter(self.history))]
            self.history[prompt_id] = entry
