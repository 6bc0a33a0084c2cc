"""The workflow that the service holds: the next run is made from it."""

from __future__ import annotations

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
from comfyui_runner.edits import EditError, draw_seeds, set_inputs, with_values
from comfyui_runner.loading import Loaded
from comfyui_runner.nodes import InputRef, class_of, input_spec, is_link, is_seed, value_of
from comfyui_runner.server import Server
from comfyui_runner.text import one_line

#: Uploads a file to a server once more; the value by which a node names it there.
UploadAgain = Callable[[Server], str]


class EditedWorkflow(NamedTuple):
    """A prompt with inputs set in it, its random seeds, and whether the values could be checked."""

    prompt: Prompt
    random_seeds: FrozenSet[InputRef]
    checked: bool


def edit_inputs(
    prompt: Prompt,
    random_seeds: FrozenSet[InputRef],
    node_id: str,
    inputs: Mapping[str, Any],
    object_info: Mapping[str, Any],
) -> EditedWorkflow:
    """Set inputs of one node. "random" for a seed has it drawn for each run; until then it keeps its value.

    Raises EditError, as set_inputs() does, and where ``prompt`` does not have the node.
    """
    if node_id not in prompt:
        message = f"The workflow does not have the node {one_line(node_id, 40)} any more."
        raise EditError("no_such_node", message)

    old_values = prompt[node_id]["inputs"]
    new_values = dict(inputs)
    new_random_seeds = set(random_seeds)
    for name, value in inputs.items():
        ref = InputRef(node_id, name)
        new_random_seeds.discard(ref)
        spec = input_spec(object_info, class_of(prompt, node_id), name)
        can_be_drawn = (
            is_seed(name, spec)
            and name in old_values
            and not is_link(old_values[name])  # it is set in another node
        )
        if value == "random" and can_be_drawn:
            new_random_seeds.add(ref)
            new_values[name] = old_values[name]

    edited, checked = set_inputs(prompt, node_id, new_values, object_info)
    return EditedWorkflow(edited, frozenset(new_random_seeds), checked)


class HeldWorkflow:
    """The held workflow. ``lock`` is the service's; ``on_change(revision)`` is called after each change.

    A prompt is never changed: another one takes its place. Whoever has read ``prompt`` can go on with it.
    """

    def __init__(
        self, loaded: Loaded, lock: "threading.RLock", on_change: Callable[[int], object]
    ) -> None:
        self.prompt = loaded.prompt
        self.random_seeds: FrozenSet[InputRef] = frozenset(loaded.drawn)
        self.revision = 1
        self.path = loaded.path
        self._lock = lock
        self._on_change = on_change
        self._prompt_of_file = loaded.prompt
        self._before_edits = loaded
        #: inputs that name an uploaded file: their value, and how another server gets the file
        self._uploads: Dict[InputRef, Tuple[Any, UploadAgain]] = {}
        for ref, path in loaded.uploads:
            value = loaded.prompt[ref.node_id]["inputs"].get(ref.input)
            upload_again = functools.partial(Server.upload_file, path=path)
            self.remember_upload([ref], value, upload_again)

    def to_json(self) -> Dict[str, Any]:
        """The workflow's part of GET /status."""
        return {
            "file": self.path,
            "nodes": len(self.prompt),
            "revision": self.revision,
            "changed": self.prompt != self._prompt_of_file,
        }

    # -- holding ---------------------------------------------------------------------------------

    def hold(self, prompt: Prompt, random_seeds: Iterable[InputRef] = ()) -> int:
        """Hold ``prompt``; its revision. Of ``random_seeds`` those count whose node it has."""
        with self._lock:
            self.prompt = prompt
            self.random_seeds = frozenset(ref for ref in random_seeds if ref.node_id in prompt)
            self.revision += 1
            self._on_change(self.revision)
            return self.revision

    def hold_edit(self, before: Prompt, edited: EditedWorkflow) -> Optional[int]:
        """Hold an edit of ``before``; its revision, or None if something else is held by now."""
        with self._lock:
            if self.prompt is not before:
                return None
            return self.hold(edited.prompt, edited.random_seeds)

    def hold_values(self, values: Mapping[InputRef, Any]) -> int:
        """Set inputs of what is held now; its revision."""
        with self._lock:
            return self.hold(with_values(self.prompt, values), self.random_seeds)

    def hold_loaded(self, loaded: Loaded) -> int:
        """Hold another workflow; its revision."""
        with self._lock:
            self._before_edits = loaded
            return self.hold(loaded.prompt, loaded.drawn)

    def hold_file(self, loaded: Loaded) -> int:
        """Hold what the workflow's file has now; its revision."""
        with self._lock:
            self._prompt_of_file = loaded.prompt
            return self.hold_loaded(loaded)

    # -- running ---------------------------------------------------------------------------------

    def take_for_run(self, object_info: Mapping[str, Any]) -> Tuple[Prompt, Dict[str, Any]]:
        """The prompt of the next run, and more fields of its POST /prompt. Random seeds are drawn, and stay
        in the held workflow: somebody may like the picture."""
        with self._lock:
            if self.random_seeds:
                drawn = draw_seeds(self.prompt, self.random_seeds, random.random, object_info)
                self.hold(drawn, self.random_seeds)
            return self.prompt, self._before_edits.extra(self.prompt)

    # -- uploads, behind a load balancer ---------------------------------------------------------

    def remember_upload(
        self, refs: Iterable[InputRef], value: Any, upload_again: UploadAgain
    ) -> None:
        """Remember that ``refs`` were set to ``value``, a file that was uploaded."""
        with self._lock:
            self._uploads.update(dict.fromkeys(refs, (value, upload_again)))

    def uploads_of(self, prompt: Prompt) -> List[Tuple[InputRef, UploadAgain]]:
        """The inputs of ``prompt`` that name a file which was uploaded, and how to upload it again."""
        with self._lock:
            uploads = list(self._uploads.items())
        return [
            (ref, upload_again)
            for ref, (value, upload_again) in uploads
            if value_of(prompt, ref) == value
        ]
