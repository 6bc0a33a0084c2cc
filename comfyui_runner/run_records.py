"""The runs of the service as clients see them, including those that have ended."""

from __future__ import annotations

import json
import threading
import time
import urllib.parse
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple, Union

from comfyui_runner.documents import Prompt
from comfyui_runner.events import Preview
from comfyui_runner.json_text import parse_json
from comfyui_runner.messages import strict_json
from comfyui_runner.nodes import describe_nodes, value_of
from comfyui_runner.outputs import Output, collect_outputs, view_path
from comfyui_runner.problems import Problem
from comfyui_runner.prompt_texts import prompt_texts
from comfyui_runner.reports import Report, Throttle, nodes_done
from comfyui_runner.runs import Run
from comfyui_runner.seeds import seeds_by_name
from comfyui_runner.server import Server
from comfyui_runner.session import Session
from comfyui_runner.shown_runs import (
    may_have_lost_files,
    with_absolute_urls,
    with_address,
    with_open_address,
    without_lost_files,
)
from comfyui_runner.state import Phase, PromptState, run_seconds, wholly_cached
from comfyui_runner.state_keeper import StateKeeper
from comfyui_runner.stored_state import StoredRun, pack_text, unpack_prompt
from comfyui_runner.text import JsonObject

#: How many runs that have ended stay in memory: with a state file, and without one.
RECENT_IN_MEMORY = 20
MOST_IN_MEMORY = 200

#: The largest prompt, in bytes when it is packed, that stays in memory after its run has ended.
MOST_PROMPT_BYTES_IN_MEMORY = 1 << 16

#: Characters of the positive text that a run shows of itself.
POSITIVE_CHARACTERS = 500


#: What stands for RunRecord.over in runs that have ended: it is set.
OVER = threading.Event()
OVER.set()


class RunRecord:
    """One run, and the session that follows it.

    When it is over, only what clients are shown is kept: the prompts and pictures of 200 runs would
    fill the memory. ``created`` is when it was started, in seconds since 1970; None for now.
    """

    def __init__(self, run: Run, session: Session, created: Optional[float] = None) -> None:
        self.run = run
        self.session = session
        self.created = time.time() if created is None else created
        self.number = 0  #: its turn among all runs of the service
        self.is_cancelled = False  #: somebody has asked to cancel it
        self.stored_phase = Phase.SUBMITTING  #: its phase in the state file
        #: False for a run of an earlier process until it is found in ComfyUI
        self.is_found = True
        self.seeds = seeds_by_name(run.prompt)
        self.positive = positive_text(run.prompt)
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
        #: what clients are shown when it has ended: a text takes less memory than an object
        self._shown_at_end: Optional[str] = None
        #: its prompt when it has ended; b"" if that is too large
        self._packed_prompt = b""

    @property
    def prompt_id(self) -> str:
        """ComfyUI's name for the run."""
        return self.run.prompt_id

    @property
    def phase(self) -> Phase:
        """Where it is, or how it ended."""
        return self.run.state.phase

    @property
    def server(self) -> Server:
        """The ComfyUI that has its files."""
        return self.session.server

    @property
    def is_running(self) -> bool:
        """Whether ComfyUI is working on it."""
        return self.run.state.phase is Phase.RUNNING and not self.over.is_set()

    @property
    def is_waiting(self) -> bool:
        """Whether it is on its way to ComfyUI or in its queue."""
        return self.run.state.phase is not Phase.RUNNING and not self.over.is_set()

    def as_stored(self) -> StoredRun:
        """The run for the state file, without its prompt."""
        shown = self._show(is_over=self.phase.over)
        return StoredRun(
            self.number,
            self.prompt_id,
            self.created,
            self.phase,
            shown=with_open_address(shown),
            is_cancelled=self.is_cancelled,
            spooled=self.spooled,
        )

    def end(self, message: str) -> None:
        """Note that the run is over and how it ended, and let go of what is not shown of it."""
        self.message = message
        self._shown_at_end = with_open_address(self._show(is_over=True))
        packed = pack_text(strict_json(self.run.prompt))
        if len(packed) <= MOST_PROMPT_BYTES_IN_MEMORY:
            self._packed_prompt = packed
        # Another object, because threads may still read the old one.
        self.run = self.run.without_content()
        if self.outputs is not None:  # needed for their files, and not for their texts
            self.outputs = [output._replace(text=None) for output in self.outputs]
        self.published_preview = None
        self.failure = None
        self.over.set()

    @property
    def prompt(self) -> Optional[Prompt]:
        """What it runs; None where that was not kept after its end."""
        run = self.run  # end() may replace it meanwhile
        if run.prompt:
            return run.prompt
        if not self._packed_prompt:
            return None
        return unpack_prompt(self._packed_prompt)

    def to_json(self, service_url: str = "") -> JsonObject:
        """The run as GET /runs/{prompt_id} shows it.

        Where ``service_url`` is known, its outputs have absolute URLs too.
        """
        if self._shown_at_end is None:
            return with_absolute_urls(self._show(is_over=False), service_url)
        shown: JsonObject = json.loads(self.to_text(service_url))
        return shown

    def to_text(self, service_url: str = "") -> str:
        """to_json() as a text."""
        if self._shown_at_end is None:
            return strict_json(self.to_json(service_url))
        return with_address(self._shown_at_end, service_url)

    def _show(self, is_over: bool) -> Dict[str, Any]:
        run = self.run  # end() may replace it meanwhile
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
            "positive": self.positive,
            **run.texts.to_json(),
            "running": running_nodes(run.prompt, state),
            "nodes": finished_nodes(run.prompt, state),
            "outputs": self._outputs(run.prompt, state),
            "problems": [problem_as_json(problem) for problem in run.problems],
            "failure": self.failure,
        }

    def _outputs(self, prompt: JsonObject, state: PromptState) -> List[Dict[str, Any]]:
        outputs = self.outputs
        if outputs is None:  # it is running, so it is not known yet which pictures are previews
            all_outputs = collect_outputs(state.outputs, prompt)
            outputs = [output for output in all_outputs if output.content is None]
        shown = []
        for turn, output in enumerate(outputs):
            url = self._url_of(output, turn)
            shown.append({**output.to_json(), "url": url})
        return shown

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
        """Take what it made. The contents leave the memory."""
        self.outputs = [output._replace(content=None) for output in outputs]
        self.spooled = dict(spooled)
        self.run.state = self.run.state._replace(outputs={})

    def spooled_file(self, turn: int) -> Optional[Tuple[Output, str]]:
        """The output of that turn and its key in the spool; None if it has none."""
        return find_spooled(self.spooled, self.outputs or (), turn)


class EndedRecord:
    """A run that has ended and left the memory, as the state file has it.

    Clients see the same as of its RunRecord. read_ended() makes it.
    """

    def __init__(self, stored: StoredRun, text: str) -> None:
        self.prompt_id = stored.prompt_id
        self.number = stored.number
        self.phase = stored.phase
        self.server: Optional[Server] = None  #: not known: any ComfyUI is asked for its files
        self.over = OVER
        self._text = text
        self._spooled = stored.spooled

    @property
    def message(self) -> str:
        """How it ended."""
        return str(self.to_json()["message"])

    @property
    def outputs(self) -> List[Output]:
        """What it made, without contents."""
        outputs = []
        for shown in self.to_json()["outputs"]:
            fields = {name: shown[name] for name in Output._fields if name != "content"}
            outputs.append(Output(**fields))
        return outputs

    def to_json(self, service_url: str = "") -> JsonObject:
        """The run, as RunRecord.to_json() shows it."""
        shown: JsonObject = parse_json(self.to_text(service_url))
        return shown

    def to_text(self, service_url: str = "") -> str:
        """to_json() as a text."""
        return with_address(self._text, service_url)

    def spooled_file(self, turn: int) -> Optional[Tuple[Output, str]]:
        """The output of that turn and its key in the spool; None if it has none."""
        return find_spooled(self._spooled, self.outputs, turn)


AnyRun = Union[RunRecord, EndedRecord]


class RunsPage(NamedTuple):
    """Some of the runs, newest first."""

    runs: List[AnyRun]
    next_before: Optional[int]  #: older runs have numbers below it; None if there are none


def read_ended(stored: StoredRun) -> Optional[EndedRecord]:
    """The run of a row of the state file.

    None if the row is broken, as on a damaged disk, or if its run has not ended: then it is in
    memory, or lost.
    """
    text = stored.shown
    if not text or not stored.phase.over:
        return None
    if may_have_lost_files(text, stored.spooled):
        shown = parse_json(text)
        text = strict_json(without_lost_files(shown, stored.spooled))
    return EndedRecord(stored, text)


def positive_text(prompt: JsonObject) -> str:
    """The text that reaches a sampler as the positive one, or its beginning; "" if none does."""
    values = (value_of(prompt, ref) for ref in prompt_texts(prompt, "positive"))
    texts = (value for value in values if isinstance(value, str))
    first = next(texts, "")
    return first[:POSITIVE_CHARACTERS]


def find_spooled(
    spooled: Mapping[int, str], outputs: Sequence[Output], turn: int
) -> Optional[Tuple[Output, str]]:
    """The output of that turn and its key in the spool; None if it has none there."""
    key = spooled.get(turn)
    if key is None:
        return None
    return outputs[turn], key


def running_nodes(prompt: JsonObject, state: PromptState) -> List[JsonObject]:
    """The nodes that run, and their steps."""
    nodes = describe_nodes(prompt, state.running)
    shown: List[JsonObject] = []
    for node, progress in zip(nodes, state.running.values()):
        shown.append({**node, "value": progress.value, "max": progress.max})
    return shown


def finished_nodes(prompt: JsonObject, state: PromptState) -> List[JsonObject]:
    """The nodes that have finished, and how long each took."""
    nodes = describe_nodes(prompt, state.finished)
    shown: List[JsonObject] = []
    for node, seconds in zip(nodes, state.finished.values()):
        shown.append({**node, "seconds": round(seconds, 3)})
    return shown


def problem_as_json(problem: Problem) -> JsonObject:
    """A problem with its fields by name."""
    return {**problem._asdict(), "hints": list(problem.hints)}


class RunRecords:
    """The runs, and which of them have changed. ``lock`` is the service's.

    Those that have not ended are in memory, with some that ended last. ``keeper`` has the others,
    if it has a file: methods that may wait for a disk must not be called in the loop.
    """

    def __init__(self, lock: "threading.RLock", keeper: StateKeeper, last_number: int = 0) -> None:
        self._lock = lock
        self._keeper = keeper
        self._last_number = last_number
        self._records: Dict[str, RunRecord] = {}
        self._changed: Set[str] = set()

    @property
    def kept(self) -> int:
        """How many runs that have ended are kept."""
        if self._keeper.has_file:
            return self._keeper.kept
        return min(self._keeper.kept, MOST_IN_MEMORY)

    def add(self, record: RunRecord, max_waiting: int) -> bool:
        """Remember a new run, and forget old ones. False if ``max_waiting`` are waiting already."""
        with self._lock:
            if self.count_waiting() >= max_waiting:
                return False
            self._last_number += 1
            record.number = self._last_number
            self._records[record.prompt_id] = record
            self._forget_old()
            return True

    def take_up(self, record: RunRecord, number: int) -> None:
        """Remember a run that an earlier process has started, by the number that it has."""
        with self._lock:
            record.number = number
            self._records[record.prompt_id] = record

    def _forget_old(self) -> None:
        most = self.kept
        if self._keeper.has_file:
            most = min(most, RECENT_IN_MEMORY)
        surplus = len(self._records) - most
        for prompt_id, record in list(self._records.items()):
            if surplus <= 0:
                break
            # Behind a load balancer, only the session of a run leads to the server that has its
            # files.
            is_needed = record.server.affinity and len(self._records) <= MOST_IN_MEMORY
            if record.over.is_set() and not is_needed:
                del self._records[prompt_id]
                surplus -= 1

    def get(self, prompt_id: Optional[str]) -> Optional[AnyRun]:
        """The run of that prompt_id, or None. May wait for a disk."""
        record = self.in_memory(prompt_id)
        if record is not None or not prompt_id:
            return record
        stored = self._keeper.get(prompt_id)
        if stored is None:
            return None
        return read_ended(stored)

    def in_memory(self, prompt_id: Optional[str]) -> Optional[RunRecord]:
        """The run of that prompt_id if it is in memory, or None."""
        return self._records.get(prompt_id or "")

    def prompt_of(self, run: AnyRun) -> Optional[Prompt]:
        """What a run runs; None where that was not kept after its end or is damaged.

        May wait for a disk.
        """
        if isinstance(run, RunRecord):
            prompt = run.prompt
            if prompt is not None:
                return prompt
        packed = self._keeper.prompt_of(run.prompt_id)
        try:
            return unpack_prompt(packed)
        except ValueError:
            return None

    def remove(self, prompt_id: str) -> None:
        """Forget a run that has ended. May wait for a disk."""
        with self._lock:
            self._records.pop(prompt_id, None)
        self._keeper.remove(prompt_id)

    def page(self, limit: int, before: Optional[int] = None) -> RunsPage:
        """The newest ``limit`` runs, with numbers below ``before``. May wait for a disk."""
        stored = self._keeper.page(limit + 1, before)  # one more shows whether there are others
        return self.with_records(stored, limit, before)

    def read_page(self, limit: int, prompt_id: Optional[str] = None) -> List[StoredRun]:
        """What is stored of the newest ``limit`` runs, or of one, for with_records().

        May wait for a disk.
        """
        if prompt_id is None:
            return self._keeper.page(limit, None)
        stored = self._keeper.get(prompt_id)
        if stored is None:
            return []
        return [stored]

    def with_records(
        self, stored: Sequence[StoredRun], limit: int, before: Optional[int] = None
    ) -> RunsPage:
        """The newest ``limit`` runs of ``stored`` and of those in memory.

        A run that is in both is taken from memory, which is newer. Rows that are broken count as
        runs too, so that the next page has what is older than they are.
        """
        with self._lock:
            records = {record.number: record for record in self._records.values()}
        rows = {run.number: run for run in stored}
        numbers = sorted({*records, *rows}, reverse=True)
        if before is not None:
            numbers = [number for number in numbers if number < before]

        runs: List[AnyRun] = []
        for number in numbers[:limit]:
            run: Optional[AnyRun] = records.get(number) or read_ended(rows[number])
            if run is not None:
                runs.append(run)
        next_before = None
        if len(numbers) > limit:
            next_before = numbers[limit - 1]
        return RunsPage(runs, next_before)

    def newest_in_memory(self) -> List[RunRecord]:
        """The runs that are in memory, newest first."""
        return list(reversed(list(self._records.values())))

    def not_over(self) -> List[RunRecord]:
        """The runs that have not ended, oldest first."""
        return [record for record in list(self._records.values()) if not record.over.is_set()]

    def count_waiting(self) -> int:
        """How many runs are on their way to ComfyUI or in its queue."""
        return sum(record.is_waiting for record in self.not_over())

    def running(self) -> Optional[RunRecord]:
        """The run that ComfyUI is working on, or None."""
        for record in self.not_over():
            if record.is_running:
                return record
        return None

    def to_interrupt(self, prompt_id: Optional[str]) -> Optional[RunRecord]:
        """The run of that prompt_id; for None the one that is running, else the first that waits.

        None if there is no such run, or it has ended.
        """
        records = self.not_over()
        if prompt_id is not None:
            records = [record for record in records if record.prompt_id == prompt_id]
        running_first = sorted(records, key=lambda record: not record.is_running)
        if not running_first:
            return None
        return running_first[0]

    # -- changes, for the event streams ----------------------------------------------------------

    def mark_changed(self, prompt_id: str) -> None:
        """Have take_changed() return the run of that prompt_id."""
        with self._lock:
            self._changed.add(prompt_id)

    def take_changed(self) -> List[RunRecord]:
        """The runs that were marked since the last call."""
        with self._lock:
            changed = self._changed
            self._changed = set()
            return [self._records[key] for key in changed if key in self._records]
