"""What a server keeps in memory: queue, history, cache, sockets and threads."""

from __future__ import annotations

import heapq
import threading
import time
from typing import Any, Callable, Protocol

from comfyui_runner.simulator.actions import Result
from comfyui_runner.simulator.frames import make_message
from comfyui_runner.simulator.installation import Installation
from comfyui_runner.simulator.prompts import Job, Json

#: How many finished prompts the history holds (ComfyUI: execution.py, MAXIMUM_HISTORY_SIZE).
MAXIMUM_HISTORY_SIZE = 10000


class Subscriber(Protocol):
    """A client's socket, as far as the messages to it are concerned."""

    #: The feature flags of the client.
    flags: Json

    def put(self, frame: str | bytes) -> None:
        """Queue a frame; never waits."""

    def abort(self) -> None:
        """Cut the connection."""


class Life:
    """All that a server keeps in memory; a restart begins a new one.

    Attributes:
        lock: Held while anything here is read or changed.
        dead: Set when the server ends; every wait ends then.
        sockets: client_id -> its socket.
        clients: The client_ids that were ever connected.
        client: The client of the running prompt.
        last_node: The node that runs, for a client of that prompt that connects again.
        cache: Signature of a node -> the result of its action.
        should_forget: Whether the cache is to be cleared after the running prompt.
    """

    def __init__(self, installation: Installation) -> None:
        self.installation = installation
        self.lock = threading.RLock()
        self.dead = threading.Event()
        self.threads: set[threading.Thread] = set()

        self.sockets: dict[str, Subscriber] = {}
        self.clients: set[str] = set()
        self.client: str | None = None
        self.last_node: str | None = None

        self.queue_changed = threading.Condition(self.lock)
        #: A heap of (number, prompt_id, order of arrival, job).
        self.pending: list[tuple[float, str, int, Job]] = []
        self.running: Job | None = None
        self.interrupted = False
        #: How many prompts were put in the queue.
        self.accepted = 0
        #: The number of the next prompt that names none.
        self.next_number = 0

        self.history: dict[str, Json] = {}
        self.cache: dict[str, Result] = {}
        self.should_forget = False

    # Threads.

    def spawn(self, target: Callable[..., None], *args: Any) -> None:
        """Start a thread that join() waits for."""

        def run() -> None:
            try:
                target(*args)
            finally:
                with self.lock:
                    self.threads.discard(thread)

        thread = threading.Thread(target=run, name="comfyui-simulator", daemon=True)
        with self.lock:  # join() must not meet a thread that is not started yet
            self.threads.add(thread)
            thread.start()

    def call_later(self, seconds: float, target: Callable[..., Any], *args: Any) -> None:
        """Call something in a while, unless the server is gone by then."""

        def wait() -> None:
            is_dead = self.dead.wait(seconds)
            if not is_dead:
                target(*args)

        self.spawn(wait)

    def end(self) -> None:
        """Cut the sockets and stop the threads."""
        with self.lock:
            self.dead.set()
            self.queue_changed.notify_all()
        self.cut_websockets()

    def join(self, seconds: float) -> None:
        """Wait for the threads, but not for longer than that."""
        end = time.monotonic() + seconds
        with self.lock:
            threads = self.threads - {threading.current_thread()}
        for thread in threads:
            left = end - time.monotonic()
            thread.join(max(0.0, left))

    def cut_websockets(self) -> None:
        """Cut all sockets without a close frame."""
        with self.lock:
            sockets = list(self.sockets.values())
            self.sockets = {}
        for each in sockets:
            each.abort()

    # Messages.

    def send(self, event: str, data: Json, client_id: str | None) -> None:
        """Send a message to one client, or to all; a client that is not connected misses it."""
        faults = self.installation.faults
        if event in faults.drop_events:
            return
        is_end = event == "executing" and data["node"] is None
        if is_end and faults.drop_end:
            return
        self.emit(make_message(event, data), client_id)

    def emit(self, frame: str | bytes, client_id: str | None) -> None:
        """Send a frame as it is, to one client or to all."""
        with self.lock:
            for name, each in list(self.sockets.items()):
                if client_id is None or client_id == name:
                    each.put(frame)

    def takes_metadata(self, client_id: str | None) -> bool:
        """Whether a client asked for previews with metadata (binary type 4 in place of 1)."""
        if client_id is None:
            return False
        with self.lock:
            if client_id not in self.sockets:
                return False
            return self.sockets[client_id].flags.get("supports_preview_metadata") is True

    def status(self) -> Json:
        """The data of a status message."""
        with self.lock:
            remaining = len(self.pending)
            if self.running is not None:
                remaining += 1
        return {"exec_info": {"queue_remaining": remaining}}

    def send_status(self) -> None:
        """Send everybody the new length of the queue."""
        self.send("status", {"status": self.status()}, None)

    # The queue.

    def take_number(self, is_first: bool) -> float:
        """The number of a prompt that names none: the next one, or its negative to go first."""
        with self.lock:
            number = self.next_number
            self.next_number += 1
        if is_first:
            return -number
        return number

    def put(self, job: Job) -> None:
        """Queue a job."""
        with self.lock:
            self.accepted += 1
            heapq.heappush(self.pending, (job.number, job.prompt_id, self.accepted, job))
            self.send_status()
            self.queue_changed.notify()

    def take(self) -> Job | None:
        """Wait for a job and make it the running one. Returns None when the server ends."""
        with self.lock:
            while not self.pending and not self.dead.is_set():
                self.queue_changed.wait()
            if self.dead.is_set():
                return None
            *_, job = heapq.heappop(self.pending)
            self.running = job
            self.interrupted = False
            self.client = job.extra_data.get("client_id")
            self.last_node = None
            self.send_status()
        return job

    def delete(self, prompt_id: str) -> bool:
        """Take one pending prompt off the queue. Returns whether it was there."""
        with self.lock:
            for entry in self.pending:
                if entry[1] == prompt_id:
                    self.pending.remove(entry)
                    heapq.heapify(self.pending)
                    if not self.pending:
                        self.send_status()  # a real server says it twice when none is left
                    self.send_status()
                    return True
        return False

    def clear(self) -> None:
        """Take all pending prompts off the queue."""
        with self.lock:
            self.pending.clear()
            self.send_status()

    def interrupt(self, prompt_id: str | None = None) -> bool:
        """Interrupt what runs, or only a certain prompt. Returns False if that does not run."""
        with self.lock:
            if prompt_id:
                is_running = self.running is not None and self.running.prompt_id == prompt_id
                if not is_running:
                    return False
            self.interrupted = not self.installation.faults.ignore_interrupt
            return True

    def take_interrupt(self) -> bool:
        """Whether there was an interrupt, which is used up by this."""
        with self.lock:
            was_interrupted = self.interrupted
            self.interrupted = False
        return was_interrupted

    def snapshot(self) -> tuple[list[Job], list[Job]]:
        """What runs (one job or none) and what waits, in no order."""
        with self.lock:
            running = []
            if self.running is not None:
                running.append(self.running)
            pending = [job for *_, job in self.pending]
        return running, pending

    def forget(self) -> None:
        """Clear the cache: at once if nothing runs, else after the running prompt."""
        with self.lock:
            self.should_forget = self.running is not None
            if not self.should_forget:
                self.cache.clear()

    # The history.

    def finish(self, job: Job, entry: Json) -> None:
        """End the running job, and write its entry in the history unless a fault delays it."""
        faults = self.installation.faults
        with self.lock:
            self.running = None
            self.last_node = None
            if not faults.history_delay and not faults.history_evict:
                self.remember(job.prompt_id, entry)
            self.send_status()

    def remember(self, prompt_id: str, entry: Json) -> None:
        """Write an entry in the history, where the oldest makes room."""
        with self.lock:
            if len(self.history) > MAXIMUM_HISTORY_SIZE:
                oldest = next(iter(self.history))
                del self.history[oldest]
            self.history[prompt_id] = entry
