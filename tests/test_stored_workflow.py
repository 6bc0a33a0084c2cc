"""The held workflow, from one process to the next."""

from __future__ import annotations

import json
import threading
import zlib
from typing import Any, Dict, Optional, Tuple

import pytest
from support import node

from comfyui_runner.documents import Conversion, ValueInFileName
from comfyui_runner.held_workflow import HeldWorkflow
from comfyui_runner.loading import Loaded
from comfyui_runner.nodes import InputRef
from comfyui_runner.stored_workflow import (
    StoredWorkflow,
    fingerprint_of,
    pack_client,
    pack_edits,
    unpack_workflow,
)

PROMPT: Dict[str, Any] = {"1": node("KSampler", seed=7, steps=20), "2": node("LoadImage", image="cat.png")}
SEED = InputRef("1", "seed")
FILE = Loaded(PROMPT, "flow.json", conversion=Conversion(PROMPT))

#: A workflow in UI format with a subgraph, and what it was converted to.
WORKFLOW: Dict[str, Any] = {
    "nodes": [{"id": 5, "widgets_values": [7, "fixed"]}, {"id": 6, "widgets_values": [9]}],
    "definitions": {"subgraphs": [{"nodes": [{"id": 1, "widgets_values": ["a fox"]}]}]},
}
CONVERTED: Dict[str, Any] = {"5": node("KSampler", seed=7), "8:1": node("Text", text="a fox"), "9": node("Note")}
CONVERSION = Conversion(
    CONVERTED,
    places={
        "5": (WORKFLOW["nodes"][0], {"seed": 0}),
        "8:1": (WORKFLOW["definitions"]["subgraphs"][0]["nodes"][0], {"text": 0}),
        "9": ({"id": "made by the conversion"}, {}),
    },
    primitives={"5": {"seed": WORKFLOW["nodes"][1], "steps": {"id": "made by the conversion"}}},
    draws=(InputRef("8:1", "text"),),
    named_values={
        "KSampler.seed": ValueInFileName(InputRef("5", "seed"), None),
        "Date.x": ValueInFileName(None, "y"),
    },
)
CLIENTS = Loaded(CONVERTED, "fox.json", WORKFLOW, CONVERSION, extra_data={"api_key_comfy_org": "secret-key"})


def stored(client: Optional[Loaded] = None, **more: Any) -> StoredWorkflow:
    held = StoredWorkflow(PROMPT, frozenset([SEED]), 12, fingerprint_of(FILE), True, client)
    return held._replace(**more)


def packed(held: StoredWorkflow) -> Dict[str, bytes]:
    contents = {**pack_edits(held), **pack_client(held.client)}
    return {name: content for name, content in contents.items() if content}


def make_held(loaded: Loaded = FILE) -> HeldWorkflow:
    return HeldWorkflow(loaded, threading.RLock(), lambda revision: None)


# -- packing -------------------------------------------------------------------------------------------


def test_nothing_was_held_where_nothing_is_stored() -> None:
    assert unpack_workflow({"client_id": b"x"}) is None


def test_edits_of_the_file_come_back() -> None:
    contents = packed(stored())
    assert sorted(contents) == ["about", "prompt"]
    assert unpack_workflow(contents) == stored()


def test_a_workflow_of_a_client_comes_back_with_its_way_to_the_nodes() -> None:
    """What runs carry along is the workflow with the values that were edited since."""
    back = unpack_workflow(packed(stored(CLIENTS)))
    assert back is not None and back.client is not None
    client = back.client
    assert (client.prompt, client.path, client.workflow) == (CONVERTED, "fox.json", WORKFLOW)
    assert client.workflow is not None
    assert client.conversion.places["5"][0] is client.workflow["nodes"][0]
    assert sorted(client.conversion.places) == ["5", "8:1"]
    assert client.conversion.primitives == {"5": {"seed": WORKFLOW["nodes"][1]}}
    assert client.conversion.draws == CONVERSION.draws
    assert client.conversion.named_values == CONVERSION.named_values

    edited = {**CONVERTED, "8:1": node("Text", text="a cat")}
    extra = client.extra(edited)["extra_data"]
    assert extra == {"extra_pnginfo": CLIENTS.extra(edited)["extra_data"]["extra_pnginfo"]}
    assert extra["extra_pnginfo"]["workflow"]["definitions"]["subgraphs"][0]["nodes"][0]["widgets_values"] == ["a cat"]


def test_a_prompt_of_a_client_comes_back() -> None:
    back = unpack_workflow(packed(stored(Loaded(PROMPT, "", conversion=Conversion(PROMPT)))))
    assert back is not None and back.client is not None
    assert (back.client.workflow, back.client.path, back.client.conversion.prompt) == (None, "", PROMPT)


def test_keys_of_api_nodes_are_not_stored() -> None:
    contents = packed(stored(CLIENTS))
    assert not any(b"secret-key" in zlib.decompress(content) for content in contents.values())


def test_what_a_client_put_there_is_removed_when_the_file_is_held_again() -> None:
    assert set(pack_client(None)) == set(pack_client(CLIENTS)) and not any(pack_client(None).values())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("about", b"no zlib"),
        ("about", b"[]"),
        ("about", b"{}"),
        ("about", b'{"is_clients": false, "random_seeds": [[1, 2, 3]]}'),
        ("prompt", b"{"),
        ("conversion", b'{"places": {"5": [["nodes", 9], {}]}, "primitives": {}, "draws": [], "named_values": {}}'),
        ("conversion", b'{"places": {"5": [["nodes", "x"], {}]}, "primitives": {}, "draws": [], "named_values": {}}'),
    ],
)
def test_what_is_broken_is_an_error(name: str, content: bytes) -> None:
    broken = content if content == b"no zlib" else zlib.compress(content)
    with pytest.raises(ValueError):
        unpack_workflow({**packed(stored(CLIENTS)), name: broken})


# -- whether the file is the same ----------------------------------------------------------------------


def changed(**inputs: Any) -> Dict[str, Any]:
    return {**PROMPT, "1": node("KSampler", **{"seed": 7, "steps": 20, **inputs})}


@pytest.mark.parametrize(
    "other",
    [
        Loaded(changed(seed=8), "flow.json", conversion=Conversion(changed(seed=8))),  # the file
        Loaded(changed(steps=9), "flow.json", conversion=Conversion(PROMPT)),  # --set
        FILE._replace(drawn=(SEED,)),  # --seed random
        FILE._replace(uploads=((InputRef("2", "image"), "dog.png"),)),  # --image
        FILE._replace(workflow=WORKFLOW),
    ],
)
def test_another_file_or_other_flags_are_something_else(other: Loaded) -> None:
    assert fingerprint_of(other) != fingerprint_of(FILE)


def test_where_the_file_is_and_what_comfyui_calls_an_upload_do_not_matter() -> None:
    assert fingerprint_of(FILE._replace(path="moved/flow.json", extra_data={"key": "x"})) == fingerprint_of(FILE)
    upload = FILE._replace(uploads=((InputRef("2", "image"), "cat.png"),))
    renamed = {**PROMPT, "2": node("LoadImage", image="cat (1).png")}
    assert fingerprint_of(upload._replace(prompt=renamed)) == fingerprint_of(upload)


def test_nodes_that_comfyui_has_updated_do_not_change_a_workflow_in_ui_format() -> None:
    before = Loaded(CONVERTED, "fox.json", WORKFLOW, CONVERSION)
    converted = {**CONVERTED, "5": node("KSampler", seed=7, new_input=1)}
    after = Loaded(converted, "fox.json", WORKFLOW, CONVERSION._replace(prompt=converted))
    assert fingerprint_of(before) == fingerprint_of(after)


# -- the held workflow ---------------------------------------------------------------------------------


def hand_over(held: HeldWorkflow, file: Loaded = FILE) -> Tuple[HeldWorkflow, bool]:
    """The held workflow of the next process, and whether it is that of the last one."""
    contents = json.loads(json.dumps({name: list(part) for name, part in packed(held.as_stored()).items()}))
    back = unpack_workflow({name: bytes(part) for name, part in contents.items()})
    assert back is not None
    held = make_held(file)
    return held, held.restore(back)


def test_edits_and_their_revision_survive() -> None:
    held = make_held()
    held.hold(changed(steps=30), [SEED])
    again, is_restored = hand_over(held)
    assert is_restored and again.now == held.now
    assert again.to_json() == held.to_json() == {"file": "flow.json", "nodes": 2, "revision": 2, "changed": True}


def test_the_workflow_of_a_client_survives_with_its_name() -> None:
    held = make_held()
    held.hold_loaded(CLIENTS)
    held.hold({**CONVERTED, "8:1": node("Text", text="a cat")})
    again, is_restored = hand_over(held)
    assert is_restored and again.to_json() == held.to_json()
    assert again.to_json()["file"] == "fox.json" and again.to_json()["changed"]
    assert again.hold_file(FILE) == 4 and again.to_json()["file"] == "flow.json"
    assert again.as_stored().client is None


def test_a_file_that_changed_wins_and_its_revision_is_new() -> None:
    held = make_held()
    held.hold(changed(steps=30))
    file = Loaded(changed(steps=21), "flow.json", conversion=Conversion(changed(steps=21)))
    again, is_restored = hand_over(held, file)
    assert not is_restored and again.now.prompt == changed(steps=21)
    assert again.now.revision == held.now.revision + 1
