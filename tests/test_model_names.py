"""Models that the server has under another name: other slashes, or a folder that the workflow lacks."""

from __future__ import annotations

from typing import Any, List

import pytest
from support import node

from comfyui_runner.edits import InputEdit, set_inputs
from comfyui_runner.model_names import (
    classes_that_load_models,
    model_values,
    nodes_with_unknown_models,
    other_names_of_edits,
    with_names_of_server,
)
from comfyui_runner.nodes import DeclaredInput, InputRef
from comfyui_runner.values import is_model_name, name_on_server

LISTED = ["SDXL/x.safetensors", "root.safetensors", "a/twice.pt", "b/twice.pt", "win\\y.gguf", 7]
INFO = {"Loader": {"input": {"required": {"name": [LISTED]}}}, "Free": {"input": {"required": {"name": ["STRING"]}}}}


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("SDXL/x.safetensors", "SDXL/x.safetensors"),
        ("SDXL\\x.safetensors", "SDXL/x.safetensors"),
        ("win/y.gguf", "win\\y.gguf"),
        ("x.safetensors", "SDXL/x.safetensors"),
        ("y.gguf", "win\\y.gguf"),
        ("root.safetensors", "root.safetensors"),
        ("twice.pt", "twice.pt"),  # which of the two is not known
        ("other/x.safetensors", "other/x.safetensors"),  # perhaps another model
        ("SDXL/root.safetensors", "SDXL/root.safetensors"),
        ("sdxl/X.safetensors", "sdxl/X.safetensors"),
        ("L/x.safetensors", "L/x.safetensors"),
        ("none.safetensors", "none.safetensors"),
        ("SDXL/x", "SDXL/x"),
        (7, 7),
        (None, None),
        (["x.safetensors"], ["x.safetensors"]),
    ],
)
def test_the_same_model_is_known_by_its_path_or_by_a_name_that_exists_once(value: Any, name: Any) -> None:
    assert name_on_server(DeclaredInput("COMBO", {}, LISTED), value) == name


def test_without_a_list_a_name_stays_as_it_is() -> None:
    assert name_on_server(DeclaredInput(), "x.safetensors") == "x.safetensors"
    assert name_on_server(DeclaredInput("COMBO", {}, ["a/x.pt", "a\\x.pt"]), "x.pt") == "x.pt"


@pytest.mark.parametrize(("value", "is_model"), [("a.SafeTensors", True), ("a.png", False), (7, False), (None, False)])
def test_a_model_is_known_by_its_ending(value: Any, is_model: bool) -> None:
    assert is_model_name(value) is is_model


PROMPT = {
    "1": node("Loader", "Base", name="SDXL\\x.safetensors"),
    "2": node("Loader", name="none.safetensors"),
    "3": node("Free", name="SDXL\\x.safetensors"),
    "4": node("Other", name="other.pt"),
    "5": node("Save", name="picture"),
}


def test_a_prompt_gets_the_names_of_the_server_and_each_change_a_notice() -> None:
    named, notices = with_names_of_server(PROMPT, INFO)
    assert named == {**PROMPT, "1": node("Loader", "Base", name="SDXL/x.safetensors")}
    assert notices == [
        '"Base" (Loader, node 1): SDXL/x.safetensors is used for SDXL\\x.safetensors, '
        "which the server does not list under this name."
    ]
    assert with_names_of_server(named, INFO) == (named, [])


def test_only_classes_that_load_models_must_be_known() -> None:
    assert classes_that_load_models(PROMPT) == {"Loader", "Free", "Other"}
    assert nodes_with_unknown_models(PROMPT, INFO) == {"1", "2"}


@pytest.mark.parametrize(
    ("edit", "notices"),
    [
        (InputEdit(InputRef("1", "name"), "x.safetensors"), 1),
        (InputEdit(InputRef("1", "name"), "SDXL/x.safetensors"), 0),
        (InputEdit(InputRef("5", "name"), "picture"), 0),
    ],
)
def test_an_edit_that_names_a_model_otherwise_has_a_notice_too(edit: InputEdit, notices: int) -> None:
    prompt, _ = set_inputs(PROMPT, edit.ref.node_id, {"name": edit.value}, INFO)
    said: List[str] = list(other_names_of_edits(prompt, [edit]))
    assert len(said) == notices
    assert all("SDXL/x.safetensors is used for x.safetensors" in text for text in said)


def test_what_was_set_is_answered_as_it_is_held() -> None:
    prompt, _ = set_inputs(PROMPT, "1", {"name": "x.safetensors"}, INFO)
    assert prompt["1"]["inputs"] == {"name": "SDXL/x.safetensors"}
    assert model_values(prompt, "1", {"name": "x.safetensors", "seed": 5}) == {"name": "SDXL/x.safetensors"}
