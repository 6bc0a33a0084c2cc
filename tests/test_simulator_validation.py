"""What the simulator finds wrong with a prompt, beyond the recordings."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any, Callable, List, Optional

import pytest
import requests
from simulated import Json, history, post, slow, submit, txt2img

from comfyui_runner.simulator import Simulator, draw
from comfyui_runner.simulator.life import Life
from comfyui_runner.simulator.validation import Validation


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


@pytest.mark.parametrize("version", ["0.33.0", "0.3.64"])
def test_cycles(simulate: Callable[..., Simulator], version: str) -> None:
    sim = simulate(version=version)
    prompt = slow()
    for node_id, other in (("3", "4"), ("4", "3")):
        prompt[node_id] = {"class_type": "ImageInvert", "inputs": {"image": [other, 0]}}
    prompt["2"]["inputs"]["images"] = ["3", 0]
    answer = post(sim, prompt)
    assert answer.status_code == 400
    if version == "0.3.64":  # its whole answer: the RecursionError that ends its check is lost on the way up
        error = {
            "type": "prompt_outputs_failed_validation",
            "message": "Prompt outputs failed validation",
            "details": "",
            "extra_info": {},
        }
        assert answer.json() == {"error": error, "node_errors": {}}
        return
    (error,) = answer.json()["node_errors"]["3"]["errors"]
    assert error["type"] == "dependency_cycle"
    assert error["extra_info"]["cycle_nodes"] == ["3", "4"]
    assert error["details"] == "3 (ImageInvert) -> 4 (ImageInvert) -> 3 (ImageInvert)"


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


# ------------------------------------------------------------------------------------------------
# Whole errors, without a socket
# ------------------------------------------------------------------------------------------------


def check(life: Life, prompt: Json, targets: Optional[List[str]] = None) -> Validation:
    return Validation(life.installation, prompt, targets)


def errors_in(life: Life, prompt: Json, node_id: str) -> List[Json]:
    """The errors of a node that keeps every output of its prompt from running."""
    found = check(life, prompt)
    assert found.good == []
    assert found.error is not None
    errors: List[Json] = found.node_errors[node_id]["errors"]
    return errors


def empty_image(**inputs: Any) -> Json:
    values = {"width": 8, "height": 8, "batch_size": 1, "color": 0, **inputs}
    return {
        "1": {"class_type": "EmptyImage", "inputs": values},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }


WIDTH = ["INT", {"default": 512, "min": 1, "max": 16384, "step": 1}]


@pytest.mark.parametrize(
    ("width", "kind", "message"),
    [
        (1, None, ""),
        (16384, None, ""),
        (0, "value_smaller_than_min", "Value 0 smaller than min of 1"),
        (16385, "value_bigger_than_max", "Value 16385 bigger than max of 16384"),
        ("16385", "value_bigger_than_max", "Value 16385 bigger than max of 16384"),
    ],
)
def test_a_number_is_within_its_bounds(
    begin: Callable[..., Life], width: Any, kind: Optional[str], message: str
) -> None:
    if kind is None:
        assert check(begin(), empty_image(width=width)).good == ["2"]
        return
    known = {"input_name": "width", "input_config": WIDTH, "received_value": int(width)}
    error = {"type": kind, "message": message, "details": "width", "extra_info": known}
    found = check(begin(), empty_image(width=width))
    assert found.node_errors == {"1": {"errors": [error], "dependent_outputs": ["2"], "class_type": "EmptyImage"}}
    assert found.error == {
        "type": "prompt_outputs_failed_validation",
        "message": "Prompt outputs failed validation",
        "details": "",
        "extra_info": {},
    }


def test_a_value_that_cannot_be_converted_is_shown_with_the_reason(begin: Callable[..., Life]) -> None:
    for value, reason in (
        ("wide", "invalid literal for int() with base 10: 'wide'"),
        ({"__value__": "wide"}, "invalid literal for int() with base 10: 'wide'"),
        ("1e400", "invalid literal for int() with base 10: '1e400'"),
    ):
        plain = value["__value__"] if isinstance(value, dict) else value
        assert errors_in(begin(), empty_image(width=value), "1") == [
            {
                "type": "invalid_input_type",
                "message": "Failed to convert an input value to a INT value",
                "details": f"width, {plain}, {reason}",
                "extra_info": {
                    "input_name": "width",
                    "input_config": WIDTH,
                    "received_value": plain,
                    "exception_message": reason,
                },
            }
        ]


def test_every_missing_input_of_a_node_is_named(begin: Callable[..., Life]) -> None:
    prompt = empty_image()
    del prompt["1"]["inputs"]["width"], prompt["1"]["inputs"]["color"]
    assert errors_in(begin(), prompt, "1") == [
        {
            "type": "required_input_missing",
            "message": "Required input is missing",
            "details": name,
            "extra_info": {"input_name": name},
        }
        for name in ("width", "color")
    ]
    optional = {"1": {"class_type": "SimulatedOutput", "inputs": {"ui": "{}"}}}
    assert check(begin(), optional).good == ["1"]
    assert check(begin(), {"1": {"class_type": "SimulatedOutput", "inputs": {}}}).good == []


@pytest.mark.parametrize("link", [[], ["1"], ["1", 0, 0]])
def test_a_link_is_a_list_of_two(begin: Callable[..., Life], link: List[Any]) -> None:
    prompt = {**empty_image(), "2": {"class_type": "PreviewImage", "inputs": {"images": link}}}
    known = {"input_name": "images", "input_config": ["IMAGE", {}], "received_value": link}
    error = {
        "type": "bad_linked_input",
        "message": "Bad linked input, must be a length-2 list of [node_id, slot_index]",
        "details": "images",
        "extra_info": known,
    }
    found = check(begin(), prompt)
    assert found.node_errors["2"]["errors"] == [error]
    assert found.error is not None
    assert found.error["details"] == f"{error['message']}: images"


def test_a_link_brings_what_its_input_takes(begin: Callable[..., Life]) -> None:
    prompt = txt2img(model=["5", 0])
    assert errors_in(begin(), prompt, "3") == [
        {
            "type": "return_type_mismatch",
            "message": "Return type mismatch between linked nodes",
            "details": "model, received_type(LATENT) mismatch input_type(MODEL)",
            "extra_info": {
                "input_name": "model",
                "input_config": ["MODEL", {}],
                "received_type": "LATENT",
                "linked_node": ["5", 0],
            },
        }
    ]


@pytest.mark.parametrize(("version", "quoted"), [("0.33.0", "5"), ("0.3.64", "'5'")])
def test_up_to_twenty_options_are_listed(begin: Callable[..., Life], version: str, quoted: str) -> None:
    validation = check(begin(version=version), empty_image())
    for count in (20, 21):
        options = [f"o{number}" for number in range(count)]
        known = {"input_name": "name", "input_config": [options, {}], "received_value": 5}
        listed = str(options) if count == 20 else "(list of length 21)"
        config = [options, {}] if count == 20 else None
        assert validation.report_unlisted(5, options, known) == {
            "type": "value_not_in_list",
            "message": "Value not in list",
            "details": f"name: {quoted} not in {listed}",
            "extra_info": {**known, "input_config": config},
        }


def test_both_forms_of_a_choice_are_checked(begin: Callable[..., Life]) -> None:
    life = begin()
    Path(life.installation.folder("input"), "a.mp4").write_bytes(b"film")
    inputs = {"video": ["1", 0], "filename_prefix": "v", "format": "auto", "codec": "auto"}
    prompt: Json = {
        "1": {"class_type": "LoadVideo", "inputs": {"file": "a.mp4"}},
        "2": {"class_type": "SaveVideo", "inputs": {**inputs, "codec": "h265"}},
    }
    (error,) = errors_in(life, prompt, "2")
    assert error["details"] == "codec: 'h265' not in ['auto', 'h264']"
    prompt["2"]["inputs"] = {**inputs, "codec": "h264"}
    assert check(life, prompt).good == ["2"]
    prompt["1"]["inputs"]["file"] = "b.mp4"
    assert errors_in(life, prompt, "1") == [
        {
            "type": "custom_validation_failed",
            "message": "Custom validation failed for node",
            "details": "file - Invalid video file: b.mp4",
            "extra_info": {"input_name": "file"},
        }
    ]


def test_a_loader_takes_a_file_of_any_folder(begin: Callable[..., Life]) -> None:
    life = begin()
    for folder, name in (("input", "x/a.flac"), ("temp", "b.flac")):
        path = Path(life.installation.folder(folder), name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"sound")
    save = {"audio": ["1", 0], "filename_prefix": "a"}
    for name, is_good in (("x/a.flac", True), ("b.flac [temp]", True), ("b.flac", False), ("x", False), ("", False)):
        prompt = {
            "1": {"class_type": "LoadAudio", "inputs": {"audio": name}},
            "2": {"class_type": "SaveAudio", "inputs": save},
        }
        assert bool(check(life, prompt).good) is is_good, name
    assert errors_in(life, prompt, "1")[0]["details"] == "audio - Invalid audio file: "


@pytest.mark.parametrize("version", ["0.33.0", "0.3.64"])
def test_a_node_without_a_class_that_exists_is_named(begin: Callable[..., Life], version: str) -> None:
    life = begin(version=version)
    titled = {"_meta": {"title": "My node"}}
    missing = "The workflow may be corrupted or a custom node is missing."
    for node, class_type, title, message in (
        ({"class_type": "Foo"}, "Foo", "Foo", "Node 'Foo' not found. The custom node may not be installed."),
        (
            {"class_type": "Foo", **titled},
            *("Foo", "My node", "Node 'My node' not found. The custom node may not be installed."),
        ),
        ({}, None, None, f"Node 'ID #5' has no class_type. {missing}"),
        (titled, None, "My node", f"Node 'My node' has no class_type. {missing}"),
    ):
        error = {
            "type": "missing_node_type",
            "message": message,
            "details": "Node ID '#5'",
            "extra_info": {"node_id": "5", "class_type": class_type, "node_title": title},
        }
        if version == "0.3.64":
            reason = "node Foo does not exist."
            if class_type is None:
                reason = "a node is missing the class_type property."
            error.update(type="invalid_prompt", message="Cannot execute because " + reason, extra_info={})
        found = check(life, {"5": node, **slow()})
        assert (found.error, found.node_errors, found.good) == (error, {}, [])


def test_a_node_that_is_no_object_has_no_class(begin: Callable[..., Life]) -> None:
    for node in ("x", [], ["class"]):
        found = check(begin(version="0.3.64"), {"5": node})
        assert found.error == {
            "type": "invalid_prompt",
            "message": "Cannot execute because a node is missing the class_type property.",
            "details": "Node ID '#5'",
            "extra_info": {},
        }


def test_only_the_outputs_that_are_asked_for_count(begin: Callable[..., Life]) -> None:
    prompt = {**slow(), "5": {"class_type": "TextOut", "inputs": {"text": "x"}}}
    prompt["6"] = {"class_type": "TextOut", "inputs": {}}  # bad
    for targets, good in ((None, ["2", "5"]), (["5"], ["5"]), (["5", "2"], ["2", "5"]), (["5", "1"], ["5"])):
        found = check(begin(), prompt, targets)
        assert (found.good, found.error) == (good, None)
        assert set(found.node_errors) == ({"6"} if targets is None else set())
    for targets in ([], ["1"], ["x"]):
        assert check(begin(), prompt, targets).error == {
            "type": "prompt_no_outputs",
            "message": "Prompt has no outputs",
            "details": "",
            "extra_info": {},
        }


def test_a_bad_node_keeps_only_its_own_outputs_from_running(begin: Callable[..., Life]) -> None:
    prompt = empty_image(width=0)
    prompt["3"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}}
    prompt["4"] = {"class_type": "TextOut", "inputs": {"text": "x"}}
    prompt["5"] = {"class_type": "PreviewImage", "inputs": {}}
    found = check(begin(), prompt)
    assert (found.good, found.error) == (["4"], None)
    blamed = {node_id: error["dependent_outputs"] for node_id, error in found.node_errors.items()}
    assert blamed == {"1": ["2", "3", "5"], "5": ["5"]}  # every node found bad so far
    assert [error["class_type"] for error in found.node_errors.values()] == ["EmptyImage", "PreviewImage"]


def test_a_link_to_a_node_that_is_missing_is_an_exception(begin: Callable[..., Life]) -> None:
    prompt: Json = {"2": {"class_type": "PreviewImage", "inputs": {"images": ["404", 0]}}}
    found = check(begin(), prompt)
    (error,) = found.node_errors["2"]["errors"]
    assert all("validation.py" in line for line in error["extra_info"].pop("traceback"))
    assert error == {
        "type": "exception_during_validation",
        "message": "Exception when validating node",
        "details": "'404'",
        "extra_info": {"exception_type": "KeyError"},
    }
    assert found.error is not None
    assert found.error["details"] == "Exception when validating node: '404'"

    prompt["3"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    prompt["1"] = {"class_type": "ImageInvert", "inputs": {"image": ["404", 0]}}
    found = check(begin(), prompt)
    (error,) = found.node_errors["1"]["errors"]
    assert error["extra_info"].pop("traceback")
    assert error == {
        "type": "exception_during_inner_validation",
        "message": "Exception when validating inner node",
        "details": "'404'",
        "extra_info": {
            "exception_message": "'404'",
            "input_name": "images",
            "input_config": ["IMAGE", {}],
            "linked_node": ["1", 0],
            "exception_type": "KeyError",
        },
    }
    assert found.node_errors["1"]["dependent_outputs"] == ["3"]


def test_a_ring_of_nodes_is_named_node_by_node(begin: Callable[..., Life]) -> None:
    ring: Json = {
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
        "3": {"class_type": "ImageInvert", "inputs": {"image": ["4", 0]}},
        "4": {"class_type": "ImageBatch", "inputs": {"image1": ["3", 0]}},
    }
    found = check(begin(), ring)
    details = "3 (ImageInvert) -> 4 (ImageBatch) -> 3 (ImageInvert)"
    cycles = {
        node_id: {
            "type": "dependency_cycle",
            "message": "Dependency cycle detected",
            "details": details,
            "extra_info": {"node_id": node_id, "cycle_nodes": ["3", "4"]},
        }
        for node_id in ("3", "4")
    }
    assert found.good == []
    assert found.node_errors["3"]["errors"] == [cycles["3"]]
    assert found.node_errors["4"]["errors"][0] == cycles["4"]
    assert [error["details"] for error in found.node_errors["4"]["errors"][1:]] == ["image2"]
    assert set(found.node_errors) == {"3", "4"}
    assert check(begin(version="0.3.64"), ring).good == []

    ring["4"]["inputs"]["image2"] = ["5", 0]  # a ring with the same nodes and one more
    ring["5"] = {"class_type": "ImageInvert", "inputs": {"image": ["3", 0]}}
    found = check(begin(), ring)
    assert {node_id: node["errors"] for node_id, node in found.node_errors.items()} == {
        node_id: [cycle] for node_id, cycle in cycles.items()
    }


def test_values_become_what_their_input_takes(begin: Callable[..., Life]) -> None:
    for name, value, expected in (
        ("steps", 2.9, 2),
        ("steps", {"__value__": "3"}, 3),
        ("steps", True, 1),
        ("cfg", "7", 7.0),
        ("cfg", 7, 7.0),
        ("seed", "0", 0),
        ("scheduler", {"__value__": "karras"}, "karras"),
    ):
        prompt = txt2img(**{name: value})
        assert check(begin(), prompt).good == ["9"], (name, value)
        got = prompt["3"]["inputs"][name]
        assert (got, type(got)) == (expected, type(expected))
    texts: List[Any] = [(5, "5"), (None, "None"), ({"__value__": ["a"]}, "['a']"), ({"a": 1}, "{'a': 1}")]
    for value, text in texts:
        prompt = {"1": {"class_type": "TextOut", "inputs": {"text": value}}}
        assert check(begin(), prompt).good == ["1"]
        assert prompt["1"]["inputs"]["text"] == text
    for switch, is_on in (("false", True), ("", False), (0, False), (None, False)):
        prompt = slow(preview=switch)
        assert check(begin(), prompt).good == ["2"]
        assert prompt["1"]["inputs"]["preview"] is is_on
