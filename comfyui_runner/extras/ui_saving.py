"""A workflow in UI format with the values of an edited prompt, for ComfyUI's editor.

The conversion knows which widget most inputs come from. It does not know it of inputs that a
subgraph promotes or that several nodes share: there, each place that has the old value is tried,
and counts if the conversion then makes the wanted prompt. So what is saved is always checked.
"""

from __future__ import annotations

from typing import Any, Iterator, List, NamedTuple, Set, Tuple

from comfyui_runner.documents import Prompt
from comfyui_runner.errors import WorkflowError
from comfyui_runner.extras.conversion import convert_with_open_texts
from comfyui_runner.loading import edited_workflow
from comfyui_runner.nodes import InputRef, inputs_of, is_link
from comfyui_runner.text import JsonObject, as_dict, as_list

#: How many places are tried for one value, and for all of them: each costs a conversion.
MOST_TRIES_FOR_VALUE = 20
MOST_TRIES = 100

#: Stands for the value of an input that a node does not have.
MISSING = object()


class SavedForEditor(NamedTuple):
    """A workflow in UI format, and the inputs whose values could not be written into it."""

    workflow: JsonObject
    not_saved: List[InputRef]


class Place(NamedTuple):
    """Where a value is: ``holder[key]``, in a node's ``widgets_values``."""

    holder: Any
    key: Any


def save_for_editor(
    workflow: JsonObject, prompt: Prompt, object_info: JsonObject
) -> SavedForEditor:
    """A copy of ``workflow`` with the values of ``prompt``, which was converted from it and edited.

    Raises WorkflowError where it cannot be converted any more.
    """
    conversion = convert_with_open_texts(workflow, object_info)
    edited = edited_workflow(conversion, dict(workflow), prompt)
    made = convert_with_open_texts(edited, object_info).prompt
    writer = ValueWriter(edited, prompt, object_info, find_differences(prompt, made))
    for ref in sorted(writer.not_saved):
        if ref not in writer.not_saved:  # it was saved together with another one
            continue
        old = inputs_of(made, ref.node_id).get(ref.input)
        new = inputs_of(prompt, ref.node_id).get(ref.input)
        are_values = not is_link(old) and not is_link(new)
        if are_values and old is not None and new is not None:
            writer.try_places(ref, old, new)
    return SavedForEditor(edited, sorted(writer.not_saved))


class ValueWriter:
    """Writes values of ``prompt`` into ``workflow``, at places where that makes the prompt.

    ``not_saved`` are the inputs in which the workflow does not become ``prompt`` yet.
    """

    def __init__(
        self,
        workflow: JsonObject,
        prompt: Prompt,
        object_info: JsonObject,
        not_saved: Set[InputRef],
    ) -> None:
        self.workflow = workflow
        self.prompt = prompt
        self.object_info = object_info
        self.not_saved = not_saved
        self.tries_left = MOST_TRIES

    def try_places(self, ref: InputRef, old: Any, new: Any) -> None:
        """Writes ``new`` to the first place of ``old`` where it helps and changes nothing else."""
        places = list(find_places(self.workflow, old, ref.node_id))
        for place in places[:MOST_TRIES_FOR_VALUE]:
            if not self.tries_left:
                return
            self.tries_left -= 1
            place.holder[place.key] = new
            not_saved = differences_when_converted(self.workflow, self.prompt, self.object_info)
            only_helps = not_saved < self.not_saved  # fewer differ, and none that did not before
            if only_helps:
                self.not_saved = not_saved
                return
            place.holder[place.key] = old


def differences_when_converted(
    workflow: JsonObject, prompt: Prompt, object_info: JsonObject
) -> Set[InputRef]:
    """The inputs in which ``workflow`` becomes another prompt than ``prompt``."""
    try:
        made = convert_with_open_texts(workflow, object_info).prompt
    except WorkflowError:
        made = {}
    return find_differences(prompt, made)


def find_differences(first: Prompt, second: Prompt) -> Set[InputRef]:
    """The inputs that are not the same in two prompts."""
    different = set()
    for node_id in {**first, **second}:
        first_inputs = inputs_of(first, node_id)
        second_inputs = inputs_of(second, node_id)
        for name in {**first_inputs, **second_inputs}:
            if first_inputs.get(name, MISSING) != second_inputs.get(name, MISSING):
                different.add(InputRef(node_id, name))
    return different


def find_places(workflow: JsonObject, value: Any, node_id: str) -> Iterator[Place]:
    """Where ``value`` is among the values of nodes; first in the nodes around ``node_id``.

    The nodes of the prompt that come from a subgraph are called after the nodes around them:
    ``8:3`` is node 3 in the subgraph of node 8.
    """
    ids_around = node_id.split(":")
    nodes = find_nodes(workflow)
    nodes_around = [node for node in nodes if str(node.get("id")) in ids_around]
    other_nodes = [node for node in nodes if str(node.get("id")) not in ids_around]
    for node in [*nodes_around, *other_nodes]:
        values = node.get("widgets_values")
        for key, entry in enumerate_values(values):
            # To Python, True equals 1.
            is_same_type = isinstance(entry, bool) == isinstance(value, bool)
            if is_same_type and entry == value:
                yield Place(values, key)


def find_nodes(workflow: JsonObject) -> List[JsonObject]:
    """The nodes of a workflow in UI format, those in its subgraphs too."""
    subgraphs = as_list(as_dict(workflow.get("definitions")).get("subgraphs"))
    graphs = [workflow, *map(as_dict, subgraphs)]
    nodes: List[JsonObject] = []
    for graph in graphs:
        nodes += map(as_dict, as_list(graph.get("nodes")))
    return nodes


def enumerate_values(values: Any) -> Iterator[Tuple[Any, Any]]:
    """The values of a node with their indices in a list, or their names in an object."""
    if isinstance(values, dict):
        return iter(values.items())
    return enumerate(as_list(values))
