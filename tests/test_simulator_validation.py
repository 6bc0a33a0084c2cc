"""What the simulator finds wrong with a prompt, beyond the recordings."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any, Callable, List

import pytest
import requests
from simulated import Json, history, post, slow, submit, txt2img

from comfyui_runner.simulator import Simulator, draw


def errors_of(answer: requests.Response, node_id: str) -> List[Json]:
    assert answer.status_code == 400, answer.text
    errors: List[Json] = answer.json()["node_errors"][node_id]["errors"]
    return errors


def test_values_are_checked(sim: Simulator) -> None:
    for inputs, kind, details in (
        ({"steps": 0}, "value_smaller_than_min", "steps"),
        ({"cfg": 100.5}, "value_bigger_than_max", "cfg"),
        ({"sampler_name": "best"}, "value_not_in_list", "(list of length 44)"),
        ({"scheduler": "best"}, "value_not_in_list", "'best' not in ['simple', "),
        ({"model": ["4"]}, "bad_linked_input", "model"),
        ({"model": "name"}, None, None),
        ({"steps": {"__value__": 3}}, None, None),
        ({"seed": "12"}, None, None),
        ({"unknown": 1, "odd": [1, 2, 3], "absent": ["404", 0], "list": [["4"], 0]}, None, None),
    ):
        answer = post(sim, txt2img(**inputs))
        if kind is None:
            assert answer.status_code == 200, answer.text
            assert history(sim, answer.json()["prompt_id"])
            continue
        (error,) = errors_of(answer, "3")
        assert error["type"] == kind
        assert str(details) in error["details"]
        assert (error["extra_info"]["input_config"] is None) == ("length" in str(details))


def test_values_are_converted(sim: Simulator) -> None:
    prompt_id = submit(sim, slow(preview="false", seed="7", steps=2.9))
    inputs = history(sim, prompt_id)["prompt"][2]["1"]["inputs"]
    assert (inputs["preview"], inputs["seed"], inputs["steps"]) == (True, 7, 2)


def test_a_lora_list_is_not_sent_back(sim: Simulator) -> None:
    prompt = txt2img(model=["1", 0])
    inputs: Json = {"model": ["4", 0], "clip": ["4", 1], "lora_name": "x"}
    inputs.update(strength_model=1, strength_clip=1)
    prompt["1"] = {"class_type": "LoraLoader", "inputs": inputs}
    (error,) = errors_of(post(sim, prompt), "1")
    assert error["details"] == "lora_name: 'x' not in (list of length 24)"
    assert error["extra_info"]["input_config"] is None


@pytest.mark.parametrize("link", [["404", 0], [4, 0], ["4", 9], [["4"], 0]])
def test_bad_links_below_an_output(sim: Simulator, link: List[Any]) -> None:
    answer = post(sim, txt2img(model=link))
    assert answer.status_code == 400
    kinds = {each["type"] for each in errors_of(answer, "3")}
    assert kinds == {"exception_during_inner_validation"}


@pytest.mark.parametrize(
    ("version", "kind"),
    [("0.33.0", "dependency_cycle"), ("0.3.64", "exception_during_inner_validation")],
)
def test_cycles(simulate: Callable[..., Simulator], version: str, kind: str) -> None:
    sim = simulate(version=version)
    prompt = slow()
    for node_id, other in (("3", "4"), ("4", "3")):
        prompt[node_id] = {"class_type": "ImageInvert", "inputs": {"image": [other, 0]}}
    prompt["2"]["inputs"]["images"] = ["3", 0]
    answer = post(sim, prompt)
    assert answer.status_code == 400
    found = [each for node in answer.json()["node_errors"].values() for each in node["errors"]]
    assert kind in {each["type"] for each in found}
    if kind == "dependency_cycle":
        assert found[0]["extra_info"]["cycle_nodes"] == ["3", "4"]
        assert found[0]["details"] == "3 (ImageInvert) -> 4 (ImageInvert) -> 3 (ImageInvert)"


def test_loaders_stay_in_their_folders(sim: Simulator) -> None:
    Path(sim.root, "secret.png").write_bytes(draw(9, 9, 1, ["X"]))
    for name in ("../secret.png", sim.root + "/secret.png", "../secret.png [output]"):
        prompt = {"1": {"class_type": "LoadImage", "inputs": {"image": name}}}
        prompt["2"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
        (error,) = errors_of(post(sim, prompt), "1")
        assert error["details"] == "image - Invalid image file: " + name
        both = {**prompt, "3": {"class_type": "TextOut", "inputs": {"text": "x"}}}
        assert history(sim, submit(sim, both))["status"]["completed"]


def test_partial_execution(sim: Simulator) -> None:
    prompt = {**slow(), "5": {"class_type": "TextOut", "inputs": {"text": "x"}}}
    prompt_id = submit(sim, prompt, partial_execution_targets=["5"])
    assert set(history(sim, prompt_id)["outputs"]) == {"5"}
    for targets in ([], ["1"]):
        answer = post(sim, prompt, partial_execution_targets=targets)
        assert answer.json()["error"]["type"] == "prompt_no_outputs"


@pytest.mark.parametrize("version", ["0.33.0", "0.3.64"])
def test_who_chooses_the_prompt_id(simulate: Callable[..., Simulator], version: str) -> None:
    sim = simulate(version=version)
    mine = str(uuid.uuid4())
    answer = post(sim, slow(), prompt_id=mine)
    assert answer.json()["prompt_id"] == mine
    for odd in (mine.upper(), 7, "x", {"a": 1}):
        answer = post(sim, slow(), prompt_id=odd)
        if version == "0.33.0":
            assert answer.status_code == 400
            assert answer.json()["error"]["type"] == "invalid_prompt_id"
        else:
            assert answer.json()["prompt_id"] == str(odd)
    answer = post(sim, slow(), prompt_id=None)
    assert (answer.json()["prompt_id"] == "None") == (version == "0.3.64")
