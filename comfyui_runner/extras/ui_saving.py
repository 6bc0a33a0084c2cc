"""A workflow in UI format with the values of an edited prompt, for ComfyUI's editor.

The conversion knows of most inputs which widget they come from. Of the others, such as those that a
subgraph promotes or that several nodes share, it does not: a place that has the old value is tried,
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
MOST_TRIES_FOR_VALUE, MOST_TRIES = 20, 100

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
    wanting = find_differences(prompt, made)
    tries_left = MOST_TRIES
    for ref in sorted(wanting):
        if ref not in wanting:  # it came with another one
            continue
        old = inputs_of(made, ref.node_id).get(ref.input)
        new = inputs_of(prompt, ref.node_id).get(ref.input)
        if is_link(old) or is_link(new) or old is None or new is None:
            continue
        for place in list(find_places(edited, old, ref.node_id))[:MOST_TRIES_FOR_VALUE]:
            if not tries_left:
                break
            tries_left -= 1
            place.holder[place.key] = new
            still_wanting = differences_when_converted(edited, prompt, object_info)
            if still_wanting < wanting:  # nothing else has changed by it
                wanting = still_wanting
                break
            place.holder[place.key] = old
    return SavedForEditor(edited, sorted(wanting))


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
        inputs, others = inputs_of(first, node_id), inputs_of(second, node_id)
        for name in {**inputs, **others}:
            if inputs.get(name, MISSING) != others.get(name, MISSING):
                different.add(InputRef(node_id, name))
    return different


def find_places(workflow: JsonObject, value: Any, node_id: str) -> Iterator[Place]:
    """Where ``value`` is among the values of nodes; first in the nodes around ``node_id``.

    The nodes of the prompt that come from a subgraph are called after the nodes around them:
    ``8:3`` is node 3 in the subgraph of node 8.
    """
    around = node_id.split(":")
    nodes = sorted(find_nodes(workflow), key=lambda node: str(node.get("id")) not in around)
    for node in nodes:
        values = node.get("widgets_values")
        for key, entry in enumerate_values(values):
            is_same_kind = isinstance(entry, bool) == isinstance(value, bool)
            if is_same_kind and entry == value:
                yield Place(values, key)


def find_nodes(workflow: JsonObject) -> List[JsonObject]:
    """The nodes of a workflow in UI format, those in its subgraphs too."""
    subgraphs = as_list(as_dict(workflow.get("definitions")).get("subgraphs"))
    graphs = [workflow, *map(as_dict, subgraphs)]
    return [as_dict(node) for graph in graphs for node in as_list(graph.get("nodes"))]


def enumerate_values(values: Any) -> Iterator[Tuple[Any, Any]]:
    """The values of a node, by their places: a list, or an object with names."""
    if isinstance(values, dict):
        return iter(values.items())
    return enumerate(as_list(values))
