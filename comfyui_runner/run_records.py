"""The runs of the service, those that have ended included, as clients see them."""

from __future__ import annotations

import json
import threading
import time
import urllib.parse
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set, Tuple

from comfyui_runner.edits import seeds_by_name
from comfyui_runner.events import Preview
from comfyui_runner.messages import strict_json
from comfyui_runner.nodes import describe_nodes
from comfyui_runner.outputs import Output, collect_outputs, view_path
from comfyui_runner.problems import Problem
from comfyui_runner.reports import Report, Throttle, nodes_done
from comfyui_runner.runs import Run
from comfyui_runner.session import Session
from comfyui_runner.state import Phase, PromptState, run_seconds, wholly_cached
from comfyui_runner.text import JsonObject


class RunRecord:
    """One run, and the session that follows it.

    When it is over, only what clients are shown is kept: the prompts and pictures of 200 runs would
    fill the memory.
    """

    def __init__(self, run: Run, session: Session) -> None:
        self.run = run
        self.session = session
        self.created = time.time()
        self.seeds = seeds_by_name(run.prompt)
        self.message = ""  #: how it ended
        self.failure: Optional[Report] = None
        #: what it made, when it has ended; without contents
        self.outputs: Optional[List[Output]] = None
        #: the keys in the spool of outputs that no server keeps, by their turn in ``outputs``
        self.spooled: Dict[int, str] = {}
        #: set when it has ended and was concluded; threads wait for it
        self.over = threading.Event()
        self.published_preview: Optional[Preview] = None
        self.throttle = Throttle(0.0)  #: of the `run` events about it
        self._shown_at_end: Optional[str] = None  # to_json() as a text, which takes less memory

    @property
    def prompt_id(self) -> str:
        """ComfyUI's name for the run."""
        return self.run.prompt_id

    @property
    def is_running(self) -> bool:
        """Whether ComfyUI is working on it."""
        return self.run.state.phase is Phase.RUNNING and not self.over.is_set()

    @property
    def is_waiting(self) -> bool:
        """Whether it is on its way to ComfyUI or in its queue."""
        return self.run.state.phase is not Phase.RUNNING and not self.over.is_set()

    def end(self, message: str) -> None:
        """Note that the run is over and how it ended, and let go of what is not shown of it."""
        self.message = message
        self._shown_at_end = strict_json(self._show(is_over=True))
        # Threads may still look at the old one.
        self.run = self.run.without_content()
        if self.outputs is not None:  # the files of some can be fetched
            self.outputs = [output._replace(text=None) for output in self.outputs]
        self.published_preview = None
        self.failure = None
        self.over.set()

    def to_json(self, service_url: str = "") -> JsonObject:
        """The run as GET /runs/{prompt_id} shows it.

        Where ``service_url`` is known, its outputs have absolute URLs too.
        """
        if self._shown_at_end is None:
            shown = self._show(is_over=False)
        else:
            shown = json.loads(self._shown_at_end)
        if service_url:
            for output in shown["outputs"]:
                output["absolute_url"] = output["url"] and f"{service_url}/{output['url']}"
        return shown

    def _show(self, is_over: bool) -> Dict[str, Any]:
        run = self.run  # the same one all the time: end() may be called meanwhile
        state = run.state
        return {
            "prompt_id": self.prompt_id,
            "phase": state.phase.value,
            "over": is_over,
            "ahead": state.ahead,
            **nodes_done(state),
            "message": self.message,
            "wholly_cached": wholly_cached(state),
            "created": round(self.created, 3),
            "seconds": round(run_seconds(state, time.monotonic()), 3),
            "seeds": self.seeds,
            **run.texts.to_json(),
            "running": running_nodes(run.prompt, state),
            "nodes": finished_nodes(run.prompt, state),
            "outputs": self._outputs(run.prompt, state),
            "problems": [problem_as_json(problem) for problem in run.problems],
            "failure": self.failure,
        }

    def _outputs(self, prompt: JsonObject, state: PromptState) -> List[Dict[str, Any]]:
        outputs = self.outputs
        if outputs is None:  # while it runs, it is not clear yet which pictures are previews
            listed = collect_outputs(state.outputs, prompt)
            outputs = [output for output in listed if output.content is None]
        return [
            {**output.to_json(), "url": self._url_of(output, turn)}
            for turn, output in enumerate(outputs)
        ]

    def _url_of(self, output: Output, turn: int) -> Optional[str]:
        """Where the service shows a file, relative to its own address; None for a text."""
        prompt_id = urllib.parse.quote(self.prompt_id)
        if turn in self.spooled:
            return f"runs/{prompt_id}/files/{turn}"
        if not output.is_on_server:
            return None
        url = view_path(output).lstrip("/")
        if self.session.server.affinity:  # the file is on the server that this run was on
            url += f"&prompt_id={prompt_id}"
        return url

    def conclude(self, outputs: Sequence[Output], spooled: Mapping[int, str]) -> None:
        """Take what it made: the memory of the contents is given back."""
        self.outputs = [output._replace(content=None) for output in outputs]
        self.spooled = dict(spooled)
        self.run.state = self.run.state._replace(outputs={})

    def spooled_file(self, turn: str) -> Optional[Tuple[Output, str]]:
        """The output of that turn and its key in the spool; None if it has none."""
        for number, key in self.spooled.items():
            if str(number) == turn and self.outputs is not None:
                return self.outputs[number], key
        return None


def running_nodes(prompt: JsonObject, state: PromptState) -> List[JsonObject]:
    """The nodes that run, and their steps."""
    nodes = describe_nodes(prompt, state.running)
    return [
        {**node, "value": progress.value, "max": progress.max}
        for node, progress in zip(nodes, state.running.values())
    ]


def finished_nodes(prompt: JsonObject, state: PromptState) -> List[JsonObject]:
    """The nodes that have finished, and how long each took."""
    nodes = describe_nodes(prompt, state.finished)
    return [
        {**node, "seconds": round(seconds, 3)}
        for node, seconds in zip(nodes, state.finished.values())
    ]


def problem_as_json(problem: Problem) -> JsonObject:
    """A problem with its fields by name."""
    return {**problem._asdict(), "hints": list(problem.hints)}


class RunRecords:
    """The newest runs, and which of them have changed. ``lock`` is the service's."""

    def __init__(self, lock: "threading.RLock", kept: int = 200) -> None:
        self.kept = kept  #: runs that are remembered; those that have not ended come on top
        self._lock = lock
        self._records: Dict[str, RunRecord] = {}
        self._changed: Set[str] = set()

    def add(self, record: RunRecord, max_waiting: int) -> bool:
        """Remember a new run, and forget old ones for it; False if ``max_waiting`` wait already."""
        with self._lock:
            if self.count_waiting() >= max_waiting:
                return False
            self._records[record.prompt_id] = record
            ended = [key for key, other in self._records.items() if other.over.is_set()]
            too_many = max(len(self._records) - self.kept, 0)
            for key in ended[:too_many]:
                del self._records[key]
            return True

    def get(self, prompt_id: Optional[str]) -> Optional[RunRecord]:
        """The run of that prompt_id, or None."""
        return self._records.get(prompt_id or "")

    def newest_first(self, prompt_id: Optional[str] = None) -> List[RunRecord]:
        """All runs that are remembered, or the one of that prompt_id."""
        records = reversed(list(self._records.values()))
        return [record for record in records if prompt_id in (None, record.prompt_id)]

    def not_over(self) -> List[RunRecord]:
        """The runs that have not ended, oldest first."""
        return [record for record in list(self._records.values()) if not record.over.is_set()]

    def count_waiting(self) -> int:
        """How many runs are on their way to ComfyUI or in its queue."""
        return sum(record.is_waiting for record in self.not_over())

    def running(self) -> Optional[RunRecord]:
        """The run that ComfyUI is working on, or None."""
        return next((record for record in self.not_over() if record.is_running), None)

    def to_interrupt(self, prompt_id: Optional[str]) -> Optional[RunRecord]:
        """The run of that prompt_id; for None the one that is running, else the first that waits.

        None if there is no such run, or it has ended.
        """
        records = self.not_over()
        if prompt_id is not None:
            records = [record for record in records if record.prompt_id == prompt_id]
        records.sort(key=lambda record: not record.is_running)
        return next(iter(records), None)

    def clear(self) -> None:
        """Forget all of them."""
        self._records.clear()

    # -- changes, for the event streams ----------------------------------------------------------

    def mark_changed(self, prompt_id: str) -> None:
        """Have take_changed() return the run of that prompt_id."""
        with self._lock:
            self._changed.add(prompt_id)

    def take_changed(self) -> List[RunRecord]:
        """The runs that were marked since the last call."""
        with self._lock:
            changed, self._changed = self._changed, set()
            return [self._records[key] for key in changed if key in self._records]
