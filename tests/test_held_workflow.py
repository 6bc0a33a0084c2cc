"""The held workflow, without a socket."""

from __future__ import annotations

import datetime
import functools
import threading
from typing import Any, Dict, FrozenSet, List, Tuple

import pytest
from support import node

from comfyui_runner.documents import Conversion
from comfyui_runner.edits import EditError
from comfyui_runner.held_workflow import EditedPrompt, HeldPrompt, HeldWorkflow, edit_inputs
from comfyui_runner.loading import Loaded
from comfyui_runner.nodes import InputRef
from comfyui_runner.remedies import Origin
from comfyui_runner.run_prompts import RunPrompt

SEED, STEPS = InputRef("1", "seed"), InputRef("1", "steps")
PROMPT: Dict[str, Any] = {
    "1": node("KSampler", seed=7, steps=20, noise_seed=["2", 0]),
    "2": node("LoadImage", image="cat.png"),
}
OTHER: Dict[str, Any] = {"1": node("KSampler", seed=8)}
OBJECT_INFO = {"KSampler": {"input": {"required": {
    "seed": ["INT", {"min": 0, "max": 100}], "noise_seed": ["INT", {}], "steps": ["INT", {"min": 1}],
}}}}  # fmt: skip


def make_held(**more: Any) -> Tuple[HeldWorkflow, List[int]]:
    """A held workflow, and the revisions that it was changed to."""
    revisions: List[int] = []
    loaded = Loaded(PROMPT, "flow.json", **more)
    return HeldWorkflow(loaded, threading.RLock(), revisions.append), revisions


# -- edits ---------------------------------------------------------------------------------------------


def edit(random_seeds: FrozenSet[InputRef] = frozenset(), **inputs: Any) -> EditedPrompt:
    return edit_inputs(HeldPrompt(PROMPT, random_seeds, 1), "1", inputs, OBJECT_INFO)


def test_an_edit_is_a_copy() -> None:
    edited = edit(steps=30)
    assert (edited.prompt["1"]["inputs"]["steps"], edited.random_seeds, edited.is_checked) == (30, frozenset(), True)
    assert PROMPT["1"]["inputs"]["steps"] == 20


def test_a_random_seed_keeps_its_value_until_it_is_drawn() -> None:
    edited = edit(seed="random")
    assert edited.random_seeds == {SEED} and edited.prompt == PROMPT


def test_a_value_ends_the_drawing_of_a_seed_and_other_inputs_do_not() -> None:
    assert edit(frozenset([SEED]), seed=3).random_seeds == frozenset()
    assert edit(frozenset([SEED]), steps=3).random_seeds == {SEED}


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({"steps": "random"}, "invalid_input_type"),
        ({"noise_seed": "random"}, "linked_input"),
        ({"no_seed": "random"}, "no_such_input"),
        ({"steps": 0}, "value_smaller_than_min"),
    ],
)
def test_what_cannot_be_set_is_refused(inputs: Dict[str, Any], reason: str) -> None:
    with pytest.raises(EditError) as caught:
        edit(**inputs)
    assert caught.value.type == reason


def test_a_node_that_is_gone_is_refused() -> None:
    with pytest.raises(EditError) as caught:
        edit_inputs(HeldPrompt(PROMPT, frozenset(), 1), "9", {}, OBJECT_INFO)
    assert caught.value.type == "no_such_node"


# -- holding -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "path", "workflow", "is_edit"),
    [
        ({"1": node("KSampler", seed=8), "2": PROMPT["2"]}, "flow.json", None, True),
        ({"1": node("KSampler", seed=8), "2": PROMPT["2"]}, "other.json", None, False),
        ({"1": node("KSampler", seed=8), "2": PROMPT["2"]}, "", None, False),
        ({"1": node("KSampler", seed=8), "2": PROMPT["2"]}, "flow.json", {"nodes": []}, False),
        (OTHER, "flow.json", None, False),
        ({"1": node("Another"), "2": PROMPT["2"]}, "flow.json", None, False),
    ],
)
def test_a_clients_prompt_with_the_nodes_of_the_file_still_comes_from_its_workflow(
    prompt: Dict[str, Any], path: str, workflow: Any, is_edit: bool
) -> None:
    """Undo on the page sends it."""
    held, _ = make_held(workflow={"nodes": ["of the file"]})
    held.hold_loaded(Loaded(prompt, path, workflow))
    assert (held.copy().loaded.workflow == {"nodes": ["of the file"]}) is is_edit
    assert held.now.prompt == prompt


def test_each_change_has_a_revision() -> None:
    held, revisions = make_held()
    assert held.to_json() == {"file": "flow.json", "nodes": 2, "revision": 1, "changed": False}
    assert held.hold(OTHER) == 2
    assert held.hold_values({SEED: 9}) == 3
    assert held.now.prompt["1"]["inputs"]["seed"] == 9 and OTHER["1"]["inputs"]["seed"] == 8
    assert held.to_json() == {"file": "flow.json", "nodes": 1, "revision": 3, "changed": True}
    assert held.hold_file(Loaded(PROMPT, "flow.json", drawn=(SEED,))) == 4
    assert held.to_json()["changed"] is False
    assert held.now.random_seeds == {SEED}
    assert revisions == [2, 3, 4]


def test_what_the_file_has_now_is_what_counts_as_unchanged() -> None:
    held, _ = make_held()
    held.hold_loaded(Loaded(OTHER, "flow.json"))
    assert held.to_json()["changed"] is True
    held.hold_file(Loaded(OTHER, "flow.json"))
    assert held.to_json()["changed"] is False


def test_a_workflow_of_another_name_is_compared_with_itself() -> None:
    held, _ = make_held()
    held.hold_loaded(Loaded(OTHER, "other.json"))
    assert held.to_json() == {"file": "other.json", "nodes": 1, "revision": 2, "changed": False}
    held.hold_values({SEED: 9})
    assert held.to_json()["changed"] is True
    held.hold_loaded(Loaded(PROMPT, "flow.json"))
    assert held.to_json()["changed"] is False
    held.hold_loaded(Loaded(OTHER, ""))
    assert held.to_json()["changed"] is True


def test_an_edit_of_what_is_not_held_any_more_is_not_held() -> None:
    held, revisions = make_held()
    before = held.now
    edited = edit(steps=30)
    assert held.hold_edit(before, edited) == 2
    assert held.hold_edit(before, edited) is None
    assert revisions == [2]


def test_random_seeds_of_nodes_that_are_gone_are_forgotten() -> None:
    held, _ = make_held()
    held.hold(OTHER, [SEED, InputRef("2", "seed")])
    assert held.now.random_seeds == {SEED}


def test_seeds_are_drawn_within_their_bounds_and_stay() -> None:
    held, revisions = make_held(drawn=(SEED,))
    seeds = set()
    for _ in range(20):
        new = held.take_for_run(OBJECT_INFO)
        assert new == RunPrompt(held.now.prompt, origin=held.origin)
        seeds.add(new.prompt["1"]["inputs"]["seed"])
    assert len(seeds) > 5 and max(seeds) <= 100
    assert len(revisions) == 20
    assert held.now.random_seeds == {SEED}


def test_without_random_seeds_nothing_changes_for_a_run() -> None:
    held, revisions = make_held()
    assert held.take_for_run({}) == RunPrompt(PROMPT, origin=held.origin)
    assert revisions == [] and held.draws(PROMPT) == []


def test_a_text_is_drawn_for_a_run_on_its_day_and_stays_open() -> None:
    prompt = {"1": node("Text", text="{a|a}"), "2": node("SaveImage", filename_prefix="%date:yyyyMMdd%")}
    loaded = Loaded(prompt, "flow.json", conversion=Conversion(prompt, draws=(InputRef("1", "text"),)))
    held = HeldWorkflow(loaded, threading.RLock(), lambda revision: None)
    for day in (1, 2):
        held.clock = functools.partial(datetime.datetime, 2026, 3, day)
        new = held.take_for_run({})
        assert [each["inputs"] for each in new.prompt.values()] == [
            {"text": "a"}, {"filename_prefix": f"2026030{day}"},
        ]  # fmt: skip
    assert held.now == HeldPrompt(prompt, frozenset(), 1) and held.draws(prompt) == [InputRef("1", "text")]


# -- uploads -------------------------------------------------------------------------------------------


def test_a_file_is_uploaded_again_only_while_its_value_is_there() -> None:
    image = InputRef("2", "image")
    held, _ = make_held(uploads=((image, "/home/cat.png"),))
    [(ref, upload_again)] = held.uploads_of(PROMPT)
    assert ref == image and upload_again.keywords == {"path": "/home/cat.png"}  # type: ignore[attr-defined]
    prompt: Any
    for prompt in ({}, {"2": "odd"}, {"2": {"inputs": 7}}, {"2": node("LoadImage", image="dog.png")}):
        assert held.uploads_of(prompt) == []

    def upload_dog(server: Any) -> str:
        return "dog.png"

    held.remember_upload([image], "dog.png", upload_dog)
    assert held.uploads_of(PROMPT) == []
    assert held.uploads_of({"2": node("LoadImage", image="dog.png")}) == [(image, upload_dog)]


def test_refusals_are_explained_with_the_workflow_and_without_files_of_this_machine() -> None:
    held, _ = make_held(workflow={"nodes": []})
    assert held.origin == Origin({"nodes": []}, None)
