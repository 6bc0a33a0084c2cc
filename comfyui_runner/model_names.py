"""Models that the server has under another name. Pure.

Workflows come from machines with other slashes and other folders.
"""

from __future__ import annotations

from typing import Iterable, Iterator, List, NamedTuple, Sequence, Set, Tuple

from comfyui_runner.documents import Prompt
from comfyui_runner.edits import InputEdit, with_values
from comfyui_runner.nodes import (
    InputRef,
    class_of,
    input_spec,
    inputs_of,
    node_in_words,
    value_of,
)
from comfyui_runner.text import JsonObject, one_line
from comfyui_runner.values import is_model_name, name_on_server


class OtherName(NamedTuple):
    """A model as a prompt names it, and as the server does."""

    ref: InputRef
    name_in_prompt: str
    name_on_server: str

    def describe(self, prompt: JsonObject) -> str:
        """The notice that another name is used."""
        node = node_in_words(prompt, self.ref.node_id)
        used = one_line(self.name_on_server, 200)
        wanted = one_line(self.name_in_prompt, 200)
        return (
            f"{node}: {used} is used for {wanted}, which the server does not list under this name."
        )


def classes_that_load_models(prompt: JsonObject) -> Set[str]:
    """The classes whose definitions with_names_of_server() needs."""
    return {class_of(prompt, ref.node_id) for ref in _model_inputs(prompt)}


def nodes_with_unknown_models(prompt: JsonObject, object_info: JsonObject) -> Set[str]:
    """The nodes that name a model which their definition does not list."""
    node_ids = set()
    for ref in _model_inputs(prompt):
        spec = input_spec(object_info, class_of(prompt, ref.node_id), ref.input)
        if spec.choices is not None and value_of(prompt, ref) not in spec.choices:
            node_ids.add(ref.node_id)
    return node_ids


def _find_other_names(prompt: JsonObject, object_info: JsonObject) -> List[OtherName]:
    """The models of ``prompt`` that the server has under another name."""
    others = []
    for ref in _model_inputs(prompt):
        wanted = value_of(prompt, ref)
        spec = input_spec(object_info, class_of(prompt, ref.node_id), ref.input)
        used = name_on_server(spec, wanted)
        if used != wanted:
            others.append(OtherName(ref, wanted, used))
    return others


def with_names_of_server(prompt: Prompt, object_info: JsonObject) -> Tuple[Prompt, Sequence[str]]:
    """A copy of ``prompt`` whose models have the server's names, and a notice for each."""
    others = _find_other_names(prompt, object_info)
    notices = [other.describe(prompt) for other in others]
    names_by_input = {other.ref: other.name_on_server for other in others}
    return with_values(prompt, names_by_input), notices


def other_names_of_edits(prompt: JsonObject, edits: Iterable[InputEdit]) -> Sequence[str]:
    """The notices of ``edits`` that were made in ``prompt``, where a model got another name."""
    notices = []
    for edit in edits:
        used = value_of(prompt, edit.ref)
        if is_model_name(edit.value) and used != edit.value:
            notices.append(OtherName(edit.ref, edit.value, used).describe(prompt))
    return notices


def model_values(prompt: JsonObject, node_id: str, inputs: JsonObject) -> JsonObject:
    """Those of ``inputs`` that name models, with the values that they were given in ``prompt``."""
    names = [name for name, value in inputs.items() if is_model_name(value)]
    return {name: value_of(prompt, InputRef(node_id, name)) for name in names}


def _model_inputs(prompt: JsonObject) -> Iterator[InputRef]:
    """The inputs of ``prompt`` that name the file of a model."""
    for node_id in prompt:
        for name, value in inputs_of(prompt, node_id).items():
            if is_model_name(value):
                yield InputRef(node_id, name)
