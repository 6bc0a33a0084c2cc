"""The workflow that the service holds: the next run is made from it."""

from __future__ import annotations

import datetime
import functools
import random
import threading
from typing import (
    Any,
    Callable,
    Dict,
    FrozenSet,
    Iterable,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Tuple,
)

from comfyui_runner.documents import Prompt
from comfyui_runner.edits import EditError, set_inputs, with_values
from comfyui_runner.loading import Loaded
from comfyui_runner.nodes import InputRef, class_of, input_spec, is_link, is_seed, value_of
from comfyui_runner.remedies import Origin
from comfyui_runner.run_prompts import RunPrompt, UploadAgain, draw_number, make_run_prompt
from comfyui_runner.seeds import draw_seeds
from comfyui_runner.server import Server
from comfyui_runner.stored_workflow import StoredWorkflow, fingerprint_of
from comfyui_runner.text import JsonObject, one_line


class HeldPrompt(NamedTuple):
    """What is held at one moment. It is never changed: another one takes its place."""

    prompt: Prompt
    random_seeds: FrozenSet[InputRef]  # inputs that are drawn anew for each run
    revision: int


class HeldCopy(NamedTuple):
    """All that a run is made from: what is held at one moment, and where it came from."""

    held: HeldPrompt
    loaded: Loaded
    origin: Origin


class PutAside(NamedTuple):
    """A workflow that was held, with its edits: what is needed to hold it again."""

    now: HeldPrompt
    before_edits: Loaded
    file: Loaded
    fingerprint: str
    uploads: Mapping[InputRef, Tuple[Any, UploadAgain]]


class EditedPrompt(NamedTuple):
    """A held prompt with other values, and whether these could be checked."""

    prompt: Prompt
    random_seeds: FrozenSet[InputRef]
    is_checked: bool


def edit_inputs(
    held: HeldPrompt, node_id: str, inputs: JsonObject, object_info: JsonObject
) -> EditedPrompt:
    """Set inputs of one node, as set_inputs() does.

    A seed that is set to "random" is drawn for each run; until then it keeps its value.

    Raises EditError, also where the node is not held any more.
    """
    if node_id not in held.prompt:
        message = f"The workflow does not have the node {one_line(node_id, 40)} any more."
        raise EditError("no_such_node", message)

    class_type = class_of(held.prompt, node_id)
    old_values = held.prompt[node_id]["inputs"]
    new_values = dict(inputs)
    random_seeds = set(held.random_seeds)
    for name, value in inputs.items():
        ref = InputRef(node_id, name)
        random_seeds.discard(ref)
        can_be_drawn = (
            is_seed(name, input_spec(object_info, class_type, name))
            and name in old_values
            and not is_link(old_values[name])  # it is set in another node
        )
        if value == "random" and can_be_drawn:
            random_seeds.add(ref)
            new_values[name] = old_values[name]

    prompt, is_checked = set_inputs(held.prompt, node_id, new_values, object_info)
    return EditedPrompt(prompt, frozenset(random_seeds), is_checked)


class HeldWorkflow:
    """The held workflow, from its file or from a client.

    ``lock`` is the service's. ``on_change(revision)`` is called after each change, under the lock.
    """

    def __init__(
        self, loaded: Loaded, lock: "threading.RLock", on_change: Callable[[int], object]
    ) -> None:
        self.now = HeldPrompt(loaded.prompt, frozenset(loaded.drawn), revision=1)
        self.clock: Callable[[], datetime.datetime] = datetime.datetime.now  #: dates the runs
        self._lock = lock
        self._on_change = on_change
        self._file = loaded
        self._fingerprint = fingerprint_of(loaded)
        self._before_edits = loaded
        #: inputs that name an uploaded file: their value, and how another server gets the file
        self._uploads: Dict[InputRef, Tuple[Any, UploadAgain]] = {}
        self._remember_uploads_of(loaded)

    def to_json(self) -> JsonObject:
        """The workflow's part of GET /status."""
        return {
            "file": self.path,
            "nodes": len(self.now.prompt),
            "revision": self.now.revision,
            "changed": self.is_edited,
        }

    @property
    def is_edited(self) -> bool:
        """Whether the prompt differs from the one of the name that is shown."""
        return bool(self.now.prompt != self._original().prompt)

    @property
    def differs_from_file(self) -> bool:
        """Whether something would be lost if the file was read again."""
        return self.is_edited or self.now.random_seeds != frozenset(self._file.drawn)

    @property
    def is_clients(self) -> bool:
        """Whether a client has put a workflow of its own in the file's place."""
        return not self.is_called_as_file(self._before_edits)

    def is_called_as_file(self, loaded: Loaded) -> bool:
        """Whether ``loaded`` has the name of the file, or none."""
        return loaded.path in ("", self._file.path)

    @property
    def path(self) -> str:
        """The path of the file, or the name that a client gave; "" if it gave none."""
        return self._before_edits.path

    @property
    def origin(self) -> Origin:
        """What helps to explain what is wrong with it; no files, as clients cannot name ours."""
        return self._before_edits.origin._replace(folder=None)

    def _original(self) -> Loaded:
        """The workflow of the name that is shown; without a name, that of the file."""
        if self.is_clients:
            return self._before_edits
        return self._file

    # -- holding ---------------------------------------------------------------------------------

    def hold(self, prompt: Prompt, random_seeds: Iterable[InputRef] = ()) -> int:
        """Hold ``prompt``: its revision. Random seeds whose node is gone are dropped."""
        with self._lock:
            seeds = frozenset(ref for ref in random_seeds if ref.node_id in prompt)
            self.now = HeldPrompt(prompt, seeds, self.now.revision + 1)
            self._on_change(self.now.revision)
            return self.now.revision

    def hold_edit(self, before: HeldPrompt, edited: EditedPrompt) -> Optional[int]:
        """Hold an edit of ``before``: its revision. None if something else is held by now."""
        with self._lock:
            if self.now is not before:
                return None
            return self.hold(edited.prompt, edited.random_seeds)

    def hold_values(self, values: Mapping[InputRef, Any]) -> int:
        """Set inputs of what is held now: its revision."""
        with self._lock:
            return self.hold(with_values(self.now.prompt, values), self.now.random_seeds)

    def hold_loaded(self, loaded: Loaded) -> int:
        """Hold another workflow: its revision."""
        with self._lock:
            self._before_edits = self._file if self._is_edit_of_file(loaded) else loaded
            return self.hold(loaded.prompt, loaded.drawn)

    def _is_edit_of_file(self, loaded: Loaded) -> bool:
        """Whether a client's prompt is that of the file with other values, as Undo sends it.

        It has no workflow in UI format then, but it still came from that of the file.
        """
        has_file_workflow = loaded.workflow is None and self._file.workflow is not None
        if not has_file_workflow or loaded.path != self._file.path:
            return False
        classes = {node_id: class_of(loaded.prompt, node_id) for node_id in loaded.prompt}
        return classes == {
            node_id: class_of(self._file.prompt, node_id) for node_id in self._file.prompt
        }

    def hold_file(self, loaded: Loaded) -> int:
        """Hold what the workflow's file has now: its revision."""
        with self._lock:
            self._file = loaded
            self._fingerprint = fingerprint_of(loaded)
            self._remember_uploads_of(loaded)
            return self.hold_loaded(loaded)

    # -- one of several --------------------------------------------------------------------------

    def put_aside(self) -> PutAside:
        """What is held now, to be held again later."""
        with self._lock:
            uploads = dict(self._uploads)
            return PutAside(self.now, self._before_edits, self._file, self._fingerprint, uploads)

    def hold_file_again(self, aside: PutAside) -> int:
        """Hold the file that was put aside, with its edits: its revision."""
        with self._lock:
            self._file = aside.file
            self._fingerprint = aside.fingerprint
            return self.hold_clients_again(aside)

    def hold_clients_again(self, aside: PutAside) -> int:
        """Hold the client's workflow that was put aside: its revision. The file stays."""
        with self._lock:
            self._before_edits = aside.before_edits
            self._uploads.update(aside.uploads)
            return self.hold(aside.now.prompt, aside.now.random_seeds)

    # -- from one process to the next ------------------------------------------------------------

    def as_stored(self) -> StoredWorkflow:
        """What is held, for the state file."""
        with self._lock:
            client = None
            if self._before_edits is not self._file:
                client = self._before_edits
            return StoredWorkflow(*self.now, self._fingerprint, self.is_edited, client)

    def restore(self, stored: StoredWorkflow) -> bool:
        """Hold what an earlier process has stored; False if the file has changed since, and wins.

        Nothing is published: nobody listens yet.
        """
        if stored.fingerprint != self._fingerprint:
            self.count_on(stored.revision)
            return False
        self._before_edits = stored.client or self._file
        self.now = HeldPrompt(stored.prompt, stored.random_seeds, stored.revision)
        return True

    def count_on(self, revision: int) -> None:
        """Have revisions begin behind ``revision``, the last one of an earlier process."""
        self.now = self.now._replace(revision=revision + 1)

    def hold_stored(self, file: Loaded, stored: StoredWorkflow) -> Optional[int]:
        """Hold ``file`` as it was stored: its revision. None if it has changed since."""
        fingerprint = fingerprint_of(file)
        if stored.fingerprint != fingerprint:
            return None
        with self._lock:
            self._file = file
            self._fingerprint = fingerprint
            self._remember_uploads_of(file)
            self._before_edits = stored.client or file
            return self.hold(stored.prompt, stored.random_seeds)

    def put_client_aside(self, stored: StoredWorkflow, client: Loaded) -> PutAside:
        """A client's workflow that was stored, to be held again."""
        now = HeldPrompt(stored.prompt, stored.random_seeds, stored.revision)
        return PutAside(now, client, self._file, self._fingerprint, {})

    # -- running ---------------------------------------------------------------------------------

    def take_for_run(self, object_info: JsonObject) -> RunPrompt:
        """The next run.

        Random seeds are drawn, and stay in the held workflow: somebody may like the picture. Texts
        with choices are drawn too, and stay open there: somebody may edit them.
        """
        with self._lock:
            seeds = self.now.random_seeds
            if seeds:
                self.hold(draw_seeds(self.now.prompt, seeds, random.random, object_info), seeds)
            copy = self.copy()
        return self.make_run(copy, copy.held.prompt)

    def copy(self) -> HeldCopy:
        """What is held now, for a run with values of its own."""
        with self._lock:
            return HeldCopy(self.now, self._before_edits, self.origin)

    def make_run(self, copy: HeldCopy, prompt: Prompt) -> RunPrompt:
        """The run of ``prompt``, which is that of ``copy`` with other values."""
        new = make_run_prompt(prompt, copy.loaded, draw_number(), self.clock())
        return new._replace(origin=copy.origin)

    def draws(self, prompt: Prompt) -> List[InputRef]:
        """The inputs of ``prompt``, which is held, that something is drawn in for each run."""
        conversion = self._before_edits.conversion
        if not conversion.draws:
            return []
        from comfyui_runner.extras.dynamic_texts import open_texts  # only such texts need it

        return open_texts(prompt, conversion)

    # -- uploads, behind a load balancer ---------------------------------------------------------

    def _remember_uploads_of(self, loaded: Loaded) -> None:
        for ref, path in loaded.uploads:
            upload_again = functools.partial(Server.upload_file, path=path)
            self.remember_upload([ref], value_of(loaded.prompt, ref), upload_again)

    def remember_upload(
        self, refs: Iterable[InputRef], value: Any, upload_again: UploadAgain
    ) -> None:
        """Remember that ``refs`` are set to ``value``, a file that was uploaded."""
        with self._lock:
            self._uploads.update(dict.fromkeys(refs, (value, upload_again)))

    def uploads_of(self, prompt: Prompt) -> List[Tuple[InputRef, UploadAgain]]:
        """The inputs of ``prompt`` that name an uploaded file, and how to upload it again."""
        with self._lock:
            uploads = list(self._uploads.items())
        return [
            (ref, upload_again)
            for ref, (value, upload_again) in uploads
            if value_of(prompt, ref) == value
        ]
