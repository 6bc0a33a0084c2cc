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
    value: str
    name: str

    def describe(self, prompt: JsonObject) -> str:
        """The notice that another name is used."""
        node = node_in_words(prompt, self.ref.node_id)
        name, value = one_line(self.name, 200), one_line(self.value, 200)
        return (
            f"{node}: {name} is used for {value}, which the server does not list under this name."
        )


def classes_that_load_models(prompt: JsonObject) -> Set[str]:
    """The classes whose definitions with_names_of_server() needs."""
    return {class_of(prompt, ref.node_id) for ref in _model_inputs(prompt)}


def nodes_with_unknown_models(prompt: JsonObject, object_info: JsonObject) -> Set[str]:
    """The nodes that name a model which their definition does not list."""
    unknown = set()
    for ref in _model_inputs(prompt):
        spec = input_spec(object_info, class_of(prompt, ref.node_id), ref.input)
        if spec.choices is not None and value_of(prompt, ref) not in spec.choices:
            unknown.add(ref.node_id)
    return unknown


def _find_other_names(prompt: JsonObject, object_info: JsonObject) -> List[OtherName]:
    """The models of ``prompt`` that the server has under another name."""
    others = []
    for ref in _model_inputs(prompt):
        value = value_of(prompt, ref)
        spec = input_spec(object_info, class_of(prompt, ref.node_id), ref.input)
        name = name_on_server(spec, value)
        if name != value:
            others.append(OtherName(ref, value, name))
    return others


def with_names_of_server(prompt: Prompt, object_info: JsonObject) -> Tuple[Prompt, Sequence[str]]:
    """A copy of ``prompt`` whose models have the server's names, and a notice for each."""
    others = _find_other_names(prompt, object_info)
    notices = [other.describe(prompt) for other in others]
    return with_values(prompt, {other.ref: other.name for other in others}), notices


def other_names_of_edits(prompt: JsonObject, edits: Iterable[InputEdit]) -> Sequence[str]:
    """The notices of ``edits`` that were made in ``prompt``, where a model got another name."""
    others = [
        OtherName(edit.ref, edit.value, value_of(prompt, edit.ref))
        for edit in edits
        if is_model_name(edit.value)
    ]
    return [other.describe(prompt) for other in others if other.name != other.value]


def model_values(prompt: JsonObject, node_id: str, inputs: JsonObject) -> JsonObject:
    """Those of ``inputs`` that name models, with the values that they were given in ``prompt``."""
    names = [name for name, value in inputs.items() if is_model_name(value)]
    return {name: value_of(prompt, InputRef(node_id, name)) for name in names}


def _model_inputs(prompt: JsonObject) -> Iterator[InputRef]:
    for node_id in prompt:
        for name, value in inputs_of(prompt, node_id).items():
            if is_model_name(value):
                yield InputRef(node_id, name)
