"""What keeps the state of the service: a thread that alone uses the state file.

Whoever wants something of the file hands the thread a job. The loop never waits for a disk, nobody
waits longer than STATE_SECONDS, and where the file fails, the service goes on in memory.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import datetime
import queue
import threading
from contextlib import suppress
from typing import Any, Callable, List, NamedTuple, Optional, Tuple

from comfyui_runner.documents import Prompt
from comfyui_runner.messages import strict_json
from comfyui_runner.redaction import Secrets
from comfyui_runner.server import new_uuid
from comfyui_runner.state import Phase
from comfyui_runner.state_file import StateFile, StateFileError, set_aside
from comfyui_runner.stored_state import StoredRun, check_run, pack_text
from comfyui_runner.stored_workflow import (
    StoredWorkflow,
    pack_client,
    pack_edits,
    unpack_workflow,
)
from comfyui_runner.threads import start_thread

#: Seconds that anybody waits for the disk. A network drive that is gone answers after minutes.
STATE_SECONDS = 5.0

#: Seconds that close() waits for a file that was given up.
SECONDS_FOR_LOST_FILE = 0.2

#: Jobs that may wait for the disk: more of them mean that it stands still.
MOST_JOBS = 1000

#: Why a file is given up that takes so long.
NO_ANSWER = "its disk does not answer"

Job = Callable[[StateFile], Any]


class Restored(NamedTuple):
    """What the last process left in the file."""

    held: Optional[StoredWorkflow] = None
    runs: Tuple[StoredRun, ...] = ()  # those that have not ended, oldest first, with their prompts
    last_number: int = 0
    #: Our name in ComfyUI: with the same one, messages about these runs come to us.
    client_id: str = ""


def read_state(file: StateFile) -> Restored:
    """What ``file`` has. Raises StateFileError."""
    contents = file.held()
    client_id = contents.get("client_id", b"").decode(errors="replace")
    if not client_id:
        client_id = new_uuid()
        file.hold({"client_id": client_id.encode()})
    runs = tuple(file.open_runs())
    try:
        held = unpack_workflow(contents)
        for run in runs:
            check_run(run)
    except ValueError as error:
        raise StateFileError(f"what is in it cannot be read ({error})", damaged=True) from None
    return Restored(held, runs, file.last_number(), client_id)


class Work(NamedTuple):
    """A job, and where its result goes."""

    job: Job
    future: "concurrent.futures.Future[Any]"


class StateKeeper:
    """The state of the service. May be used in any thread.

    ``file`` is None where nothing is kept beyond the end of the process; ``kept`` is how many runs
    it has at most. ``secrets`` are not written. ``notify`` is called in any thread, with a message
    for people.
    """

    def __init__(
        self,
        file: Optional[StateFile],
        kept: int,
        secrets: Secrets,
        notify: Callable[[str], None],
    ) -> None:
        self.kept = kept
        self.path = None if file is None else file.path
        self._secrets = secrets
        self._notify = notify
        self._works: "queue.Queue[Optional[Work]]" = queue.Queue(MOST_JOBS)
        self._lock = threading.Lock()
        self._is_closed = False
        self._to_hold: Optional[StoredWorkflow] = None  # what is held and not yet written
        self._held_client: Any = None  # the client's workflow that was written last
        self._thread: Optional["concurrent.futures.Future[None]"] = None
        if file is not None:
            self._thread = start_thread(self._work, file)

    @property
    def has_file(self) -> bool:
        """Whether runs are kept in a file."""
        return self.path is not None

    # -- runs --------------------------------------------------------------------------------------

    async def add(self, run: StoredRun, prompt: Prompt) -> None:
        """Store a new run of ``prompt``; comes back when that is done."""

        def add_packed(file: StateFile) -> None:
            packed = pack_text(self._secrets.hide_in_json(strict_json(prompt)))
            file.add(self._without_secrets(run)._replace(prompt=packed), self.kept)

        await self._finish(self._do(add_packed))

    def change(self, prompt_id: str, phase: Phase, is_cancelled: bool) -> None:
        """Store where a run is that has not ended."""
        self._do(lambda file: file.change(prompt_id, phase, is_cancelled))

    async def end(self, run: StoredRun) -> None:
        """Store how a run has ended; comes back when that is done."""
        await self._finish(self._do(lambda file: file.end(self._without_secrets(run))))

    def get(self, prompt_id: str) -> Optional[StoredRun]:
        """The run of that prompt_id, without its prompt; None if none is stored. Blocks."""
        run: Optional[StoredRun] = self._wait(self._do(lambda file: file.get(prompt_id)))
        return run

    def prompt_of(self, prompt_id: str) -> bytes:
        """The packed prompt of a stored run; empty where it was not kept. Blocks."""
        packed: Optional[bytes] = self._wait(self._do(lambda file: file.prompt_of(prompt_id)))
        return packed or b""

    def remove(self, prompt_id: str) -> None:
        """Have a run that has ended forgotten. Blocks."""
        self._wait(self._do(lambda file: file.remove(prompt_id)))

    def page(self, limit: int, before: Optional[int]) -> List[StoredRun]:
        """The newest ``limit`` runs, with numbers below ``before`` if it is given. Blocks."""
        return self._wait(self._do(lambda file: file.page(limit, before))) or []

    def _without_secrets(self, run: StoredRun) -> StoredRun:
        return run._replace(shown=self._secrets.hide_in_json(run.shown))

    # -- the held workflow -------------------------------------------------------------------------

    def hold(self, held: StoredWorkflow) -> None:
        """Store what is held now. Edits that come quickly are written once."""
        if not self.has_file:
            return
        with self._lock:
            is_due = self._to_hold is None
            self._to_hold = held
        if is_due:
            self._do(self._write_held)

    def _write_held(self, file: StateFile) -> None:
        with self._lock:
            held, self._to_hold = self._to_hold, None
        if held is None:
            return
        contents = pack_edits(held)
        if held.client is not self._held_client:
            contents.update(pack_client(held.client))
        file.hold(contents)
        self._held_client = held.client

    # -- waiting, and the end ----------------------------------------------------------------------

    def flush(self) -> None:
        """Blocks until everything is written that was handed over before."""
        self._wait(self._do(lambda file: None))

    def close(self) -> None:
        """Write what is left, and close the file. Blocks."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        with self._lock:
            self._is_closed = True
        seconds = STATE_SECONDS
        if not self.has_file:  # it was given up, perhaps because its disk stands still
            seconds = SECONDS_FOR_LOST_FILE
        with suppress(queue.Full):
            self._works.put(None, timeout=seconds)
        with suppress(concurrent.futures.TimeoutError):
            thread.result(seconds)

    def _do(self, job: Job) -> "concurrent.futures.Future[Any]":
        """Have ``job`` done with the file: its result, None where there is no file or it fails."""
        future: "concurrent.futures.Future[Any]" = concurrent.futures.Future()
        future.set_running_or_notify_cancel()  # who waits may stop, but the job is done
        with self._lock:  # nothing comes behind the end that close() puts there
            if not self.has_file or self._is_closed:
                future.set_result(None)
                return future
            try:
                self._works.put_nowait(Work(job, future))
                return future
            except queue.Full:
                future.set_result(None)
        self._give_up(NO_ANSWER)
        return future

    def _wait(self, future: "concurrent.futures.Future[Any]") -> Any:
        """The result of a job; None where it takes too long. Blocks."""
        try:
            return future.result(STATE_SECONDS)
        except concurrent.futures.TimeoutError:
            self._give_up(NO_ANSWER)
            return None

    async def _finish(self, future: "concurrent.futures.Future[Any]") -> None:
        """Waits for a job in the loop."""
        try:
            await asyncio.wait_for(asyncio.wrap_future(future), STATE_SECONDS)
        except asyncio.TimeoutError:
            self._give_up(NO_ANSWER)

    # -- the thread --------------------------------------------------------------------------------

    def _work(self, file: StateFile) -> None:
        """Does the jobs in their order, until close()."""
        try:
            for work in iter(self._works.get, None):
                work.future.set_result(self._try_job(work.job, file))
        finally:
            file.close()

    def _try_job(self, job: Job, file: StateFile) -> Any:
        if not self.has_file:  # it has failed before
            return None
        try:
            return job(file)
        except StateFileError as error:
            self._give_up(error.reason)
            if error.damaged:
                self._set_aside(file)
        except Exception as error:  # a fault of ours must not end the thread that others wait for
            self._give_up(f"{type(error).__name__}: {error}")
        return None

    def _give_up(self, reason: str) -> None:
        """Go on in memory."""
        path, self.path = self.path, None
        if path is not None:
            self._notify(
                f"The state file {path} can no longer be used: {reason}. From now on, runs and "
                "edits are kept in memory only."
            )

    def _set_aside(self, file: StateFile) -> None:
        file.close()
        with suppress(OSError):
            new_path = set_aside(file.path, datetime.datetime.now())
            self._notify(f"It was renamed to {new_path}; the next start creates a new one.")
