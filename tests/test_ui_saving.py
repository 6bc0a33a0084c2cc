"""Workflows in UI format with the values of an edited prompt."""

from __future__ import annotations

import copy
from typing import Any, Dict, List

import pytest
from test_conversion import OBJECT_INFO, flow, node, small_files, subgraph

from comfyui_runner.edits import with_values
from comfyui_runner.errors import WorkflowError
from comfyui_runner.extras.conversion import convert_with_open_texts
from comfyui_runner.extras.ui_saving import (
    differences_when_converted,
    find_differences,
    find_places,
    save_for_editor,
)
from comfyui_runner.nodes import InputRef, input_spec
from comfyui_runner.values import find_fault

Json = Dict[str, Any]

#: What an edit makes of a value; a combo takes another of its choices.
EDITS: Dict[type, Any] = {
    int: lambda value: value + 8,
    str: lambda value: value + " edited",
    bool: lambda value: not value,
}


def edit_all(prompt: Json) -> Dict[InputRef, Any]:
    """Every plain value of ``prompt``, edited, by its input: those that ComfyUI would take."""
    values = {}
    for node_id, each in prompt.items():
        for name, value in each["inputs"].items():
            spec = input_spec(OBJECT_INFO, each["class_type"], name)
            if type(value) in EDITS and spec.type in ("INT", "STRING", "BOOLEAN"):
                edited = EDITS[type(value)](value)
                if find_fault(spec, edited) is None:
                    values[InputRef(node_id, name)] = edited
    return values


def convert(workflow: Json) -> Json:
    prompt: Json = convert_with_open_texts(workflow, OBJECT_INFO).prompt
    return prompt


def test_what_is_saved_becomes_the_edited_prompt_again() -> None:
    saved_values = lost_values = 0
    for workflow in small_files():
        before = copy.deepcopy(workflow)
        try:
            prompt = convert(workflow)
        except WorkflowError:
            continue
        values = edit_all(prompt)
        edited = with_values(prompt, values)
        saved = save_for_editor(workflow, edited, OBJECT_INFO)
        assert find_differences(edited, convert(dict(saved.workflow))) == set(saved.not_saved)
        assert workflow == before
        lost_values += len(set(saved.not_saved) & set(values))
        saved_values += len(set(values) - set(saved.not_saved))
    assert saved_values > 140 and saved_values > 6 * lost_values


def test_a_workflow_without_edits_stays_as_it_is() -> None:
    count = 0
    for workflow in small_files():
        try:
            prompt = convert(workflow)
        except WorkflowError:
            continue
        assert save_for_editor(workflow, prompt, OBJECT_INFO) == (workflow, [])
        count += 1
    assert count > 20


def prompt_with(workflow: Json, **values: Any) -> Json:
    """The prompt of ``workflow`` with other values: ``n5_1__width`` for the width of node 5:1."""
    edits = {}
    for name, value in values.items():
        node_id, _, input_name = name.partition("__")
        edits[InputRef(node_id[1:].replace("_", ":"), input_name)] = value
    return with_values(convert(workflow), edits)


LATENT = [64, 128, 2]


def test_a_value_that_a_subgraph_promotes_is_written_into_the_node_around_it() -> None:
    inner = subgraph(
        "s",
        [node(1, "EmptyLatentImage", {"width": 1}, [("LATENT",)], LATENT)],
        (1, -10, 0, 1, 0),
        inputs=[("width", "INT", 1)],
    )
    inner["nodes"][0]["inputs"][0]["widget"] = {"name": "width"}
    host = node(5, "s", {"width": None}, values=[256])
    host["inputs"][0]["widget"] = {"name": "width"}
    workflow = flow([node(4, "EmptyLatentImage", {}, [("LATENT",)], [256, 256, 256]), host], subgraphs=[inner])
    assert convert(workflow)["5:1"]["inputs"]["width"] == 256
    saved = save_for_editor(workflow, prompt_with(workflow, n5_1__width=512), OBJECT_INFO)
    assert saved.not_saved == []
    assert saved.workflow["nodes"][1]["widgets_values"] == [512]
    assert saved.workflow["nodes"][0]["widgets_values"] == [256, 256, 256]


def test_what_two_nodes_share_is_saved_only_if_both_have_it() -> None:
    shared = node(3, "PrimitiveNode", {}, [("INT", 1, 2)], [200, "fixed"])
    latents = [node(each, "EmptyLatentImage", {"width": each}, [("LATENT",)], LATENT) for each in (1, 2)]
    workflow = flow([shared, *latents], (1, 3, 0, 1, 0), (2, 3, 0, 2, 0))
    both = save_for_editor(workflow, prompt_with(workflow, n1__width=512, n2__width=512), OBJECT_INFO)
    assert both.not_saved == [] and both.workflow["nodes"][0]["widgets_values"] == [512, "fixed"]
    one = save_for_editor(workflow, prompt_with(workflow, n1__width=512), OBJECT_INFO)
    assert one.not_saved == [InputRef("1", "width")] and one.workflow["nodes"][0]["widgets_values"] == [200, "fixed"]


def test_values_inside_of_a_subgraph_that_is_used_twice_are_named() -> None:
    inner = subgraph("s", [node(1, "EmptyLatentImage", values=LATENT)])
    workflow = flow([node(5, "s"), node(6, "s")], subgraphs=[inner])
    saved = save_for_editor(workflow, prompt_with(workflow, n5_1__width=512), OBJECT_INFO)
    assert (saved.workflow, saved.not_saved) == (workflow, [InputRef("5:1", "width")])


def test_an_input_that_the_workflow_does_not_have_is_named() -> None:
    workflow = flow([node(1, "EmptyLatentImage", values=LATENT)])
    prompt = convert(workflow)
    more = {**prompt, "2": {"class_type": "EmptyLatentImage", "inputs": {"width": 8}}}
    del more["1"]["inputs"]["height"]
    saved = save_for_editor(workflow, more, OBJECT_INFO)
    assert saved.not_saved == [InputRef("1", "height"), InputRef("2", "width")]


def test_tries_have_an_end() -> None:
    """The value of a subgraph that is used many times is also that of many other nodes."""
    inner = subgraph("s", [node(1, "EmptyLatentImage", values=LATENT)])
    hosts = [node(each, "s") for each in range(100, 112)]
    others = [node(each, "EmptyLatentImage", values=[64, 64, 64]) for each in range(200, 230)]
    workflow = flow([*others, *hosts], subgraphs=[inner])
    values = {InputRef(f"{each}:1", "width"): 512 for each in range(100, 111)}  # not all of them
    saved = save_for_editor(workflow, with_values(convert(workflow), values), OBJECT_INFO)
    assert saved.not_saved == sorted(values) and saved.workflow == workflow


def test_a_try_that_breaks_the_workflow_is_no_try() -> None:
    workflow = flow([node(1, "EmptyLatentImage", values=LATENT)])
    prompt = convert(workflow)
    assert differences_when_converted({"nodes": [{"id": 1, "type": "Nope", "inputs": 3}]}, prompt, OBJECT_INFO)
    assert differences_when_converted({}, prompt, OBJECT_INFO) == find_differences(prompt, {})


@pytest.mark.parametrize(
    ("values", "value", "keys"),
    [
        ([64, "64", 64.0, True], 64, [0, 2]),
        ([1, True], True, [1]),
        ([1, True], 1, [0]),
        ({"a": "x", "b": "y"}, "y", ["b"]),
        (None, None, []),
    ],
)
def test_places_of_a_value(values: Any, value: Any, keys: List[Any]) -> None:
    workflow = flow([node(1, "X", values=values)])
    assert [place.key for place in find_places(workflow, value, "1")] == keys


def test_the_nodes_around_come_first() -> None:
    inner = subgraph("s", [node(3, "X", values=[7])])
    workflow = flow([node(1, "X", values=[7]), node(5, "s", values=[7])], subgraphs=[inner])
    found = [place.holder for place in find_places(workflow, 7, "5:3")]
    nodes = [workflow["nodes"][1], inner["nodes"][0], workflow["nodes"][0]]
    assert [id(holder) for holder in found] == [id(each["widgets_values"]) for each in nodes]
