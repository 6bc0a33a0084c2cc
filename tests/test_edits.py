"""A node is named, an input is set, texts and loaders are found: what may be edited, and what is refused."""

from __future__ import annotations

import copy
import json
import os
from typing import Any, Dict, List, Optional, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import anything, few, many
from support import ROOT, count_calls, node

from comfyui_runner.edits import (
    EditError,
    InputExample,
    apply_edits,
    check_value,
    example_of_edit,
    example_of_input,
    find_input,
    find_node,
    notices_of_names,
    parse_set,
    read_inputs,
    set_inputs,
)
from comfyui_runner.errors import ExitStatus
from comfyui_runner.extras.checks import check_prompt, form_fields
from comfyui_runner.nodes import DeclaredInput, InputRef, did_you_mean, is_seed, parse_spec
from comfyui_runner.problems import INSTALL_HINT
from comfyui_runner.prompt_texts import find_text, prompt_texts, text_inputs
from comfyui_runner.seeds import draw_seeds, seeds_by_name
from comfyui_runner.text import plain_json
from comfyui_runner.upload_inputs import upload_inputs

Json = Dict[str, Any]
Ref = InputRef

with open(os.path.join(ROOT, "workflow_api.json"), encoding="utf-8") as file:
    TEXTS: Json = json.load(file)


def info(class_type: str, optional: Optional[Json] = None, **required: Any) -> Json:
    """object_info of one class."""
    return {class_type: {"input": {"required": required, "optional": optional or {}}}}


def refused(function: Any, *arguments: Any) -> EditError:
    with pytest.raises(EditError) as caught:
        function(*arguments)
    return caught.value


def ids(error: EditError) -> List[str]:
    """The candidates that an error lists."""
    return [each["node_id"] for each in error.details]


# ------------------------------------------------------------------------------------------------
# Naming a node
# ------------------------------------------------------------------------------------------------

NAMED: Json = {
    "1": node("CLIPTextEncode", "Positive"),
    "2": node("CLIPTextEncode", "Twice"),
    "3": node("KSampler", "Twice"),
    "4": node("SaveImage", "1"),
    "12:5": node("VAEDecode"),
}


@pytest.mark.parametrize(
    ("name", "node_id"),
    [("1", "1"), ("12:5", "12:5"), ("Positive", "1"), ("KSampler", "3"), ("VAEDecode", "12:5"), ("SaveImage", "4")],
)
def test_a_node_is_named_by_its_id_else_its_title_else_its_class(name: str, node_id: str) -> None:
    assert find_node(NAMED, name) == node_id


def test_a_name_of_several_nodes_is_refused_with_those_nodes() -> None:
    for name, found in [("Twice", ["2", "3"]), ("CLIPTextEncode", ["1", "2"])]:
        error = refused(find_node, NAMED, name)
        assert (error.type, error.http_status, ids(error)) == ("ambiguous_node", 409, found)
        assert name in error.message


def test_a_name_of_no_node_is_refused_with_all_nodes() -> None:
    error = refused(find_node, NAMED, "positive\x1b[31m")
    assert (error.type, error.http_status, error.exit_status) == ("no_such_node", 400, ExitStatus.USAGE)
    assert ids(error) == list(NAMED)
    assert "\x1b" not in error.message
    assert error.details[0] == {"node_id": "1", "title": "Positive", "class_type": "CLIPTextEncode"}


# ------------------------------------------------------------------------------------------------
# Checking a value
# ------------------------------------------------------------------------------------------------

INT = ["INT", {"min": 1, "max": 100}]
FLOAT = ["FLOAT", {"min": 0.0, "max": 1.0}]
OLD = [["euler", "heun"], {}]
NEW = ["COMBO", {"options": ["euler", "heun"]}]
MANY = ["COMBO", {"options": ["a", "b", 3], "multiselect": True}]


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        (INT, 1), (INT, 100), (["INT"], -(2**70)), (["INT", {"max": 2**64 - 1}], 2**64 - 1),
        (FLOAT, 0), (FLOAT, 1), (FLOAT, 0.5), (["FLOAT"], -1e9),
        (["STRING"], ""), (["STRING", {"multiline": True}], "a\nfox"),
        (["BOOLEAN"], True), (["BOOLEAN", {}], False),
        (OLD, "heun"), (NEW, "heun"), ([["a", 3, True]], 3), ([["a"]], "a"), (MANY, ["a", 3]), (MANY, []), (MANY, "b"),
        (["COMBO", {}], "a"), (["COMBO", {"remote": {}, "options": ["b"]}], "a"),
        ([["a"], {"image_upload": True}], "b"),
        (["MODEL"], "text"), (["*"], 7), (["CUSTOM", {"min": 9}], None), (["INT", None], 3),
    ],
)  # fmt: skip
def test_a_value_that_fits_is_taken_as_it_is(spec: Any, value: Any) -> None:
    taken = check_value(parse_spec(spec), "x", value)
    assert taken == value and type(taken) is type(value)


def test_a_whole_number_may_be_written_with_a_point() -> None:
    taken = check_value(parse_spec(INT), "steps", 30.0)
    assert taken == 30 and type(taken) is int


@pytest.mark.parametrize(
    ("spec", "value", "reason"),
    [
        (INT, "12", "invalid_input_type"), (INT, 1.5, "invalid_input_type"), (INT, True, "invalid_input_type"),
        (INT, None, "invalid_input_type"), (INT, [1], "invalid_input_type"), (INT, {}, "invalid_input_type"),
        (INT, float("nan"), "invalid_input_type"), (INT, float("inf"), "invalid_input_type"),
        (INT, 0, "value_smaller_than_min"), (INT, 101, "value_bigger_than_max"), (INT, 101.0, "value_bigger_than_max"),
        (INT, 10**400, "value_bigger_than_max"), (INT, -(10**400), "value_smaller_than_min"),
        (["INT", {"max": 2**64 - 1}], 2**64, "value_bigger_than_max"),
        (FLOAT, "1", "invalid_input_type"), (FLOAT, False, "invalid_input_type"),
        (FLOAT, float("nan"), "invalid_input_type"), (["FLOAT"], float("nan"), "invalid_input_type"),
        (FLOAT, float("inf"), "invalid_input_type"), (FLOAT, 1e308, "value_bigger_than_max"),
        (FLOAT, 1.01, "value_bigger_than_max"), (FLOAT, -0.01, "value_smaller_than_min"),
        (["FLOAT"], 10**400, "invalid_input_type"),
        (["STRING"], 7, "invalid_input_type"), (["STRING"], None, "invalid_input_type"),
        (["STRING"], ["1", 0], "invalid_input_type"),
        (["BOOLEAN"], 1, "invalid_input_type"), (["BOOLEAN"], "true", "invalid_input_type"),
        (OLD, "eular", "value_not_in_list"), (NEW, "eular", "value_not_in_list"), (OLD, 0, "value_not_in_list"),
        (OLD, ["euler"], "value_not_in_list"), (OLD, None, "value_not_in_list"),
        (["COMBO", {}], ["a"], "value_not_in_list"), (["COMBO", {}], {"a": 1}, "value_not_in_list"),
        (["INT", {"min": 0, "max": 9}], 10**400, "value_bigger_than_max"),
        ([["a"], {"image_upload": True}], 7, "invalid_input_type"),
        (MANY, ["a", "c"], "value_not_in_list"), (MANY, [["a"]], "value_not_in_list"),
        (["MODEL"], ["1", 0], "linked_input"), (["*"], {}, "linked_input"),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_is_refused(spec: Any, value: Any, reason: str) -> None:
    error = refused(check_value, parse_spec(spec), "x", value)
    assert error.type == reason
    assert error.message.startswith("x ")


def test_a_refusal_says_what_is_allowed() -> None:
    def message(spec: Any, name: str, value: Any) -> str:
        return refused(check_value, parse_spec(spec), name, value).message

    assert message(OLD, "sampler_name", "eular") == (
        'sampler_name = "eular" is not one of the server\'s options. Did you mean euler?'
    )
    assert "The server has no options to choose from. Or put the file into" in message([[]], "lora_name", "a")
    assert message(INT, "steps", 0) == "steps = 0 is too small. Allowed: 1 to 100."
    assert message(["INT", {"min": 1}], "steps", 0) == "steps = 0 is too small. Allowed: 1 or more."
    assert message(["INT", {"max": 9}], "steps", 10) == "steps = 10 is too big. Allowed: 9 or less."
    assert message(INT, "steps", "x") == 'steps = "x" is not a whole number (INT).'
    assert message(["MODEL"], "model", {}) == "model takes a link from another node, not a value."


@few
@given(
    st.sampled_from([INT, FLOAT, OLD, NEW, MANY, ["STRING"], ["BOOLEAN"], ["MODEL"], ["INT", None], ["FLOAT", []]]),
    anything,
)
def test_every_value_that_is_taken_is_json_that_every_server_reads(spec: Any, value: Any) -> None:
    try:
        taken = check_value(parse_spec(spec), "x", value)
    except EditError:
        return
    if spec[0] in ("INT", "FLOAT"):
        json.dumps(taken, allow_nan=False)


# ------------------------------------------------------------------------------------------------
# Setting inputs
# ------------------------------------------------------------------------------------------------

SAMPLER = info("KSampler", seed=["INT", {"control_after_generate": True}], steps=INT, cfg=["FLOAT"], model=["MODEL"])


def test_inputs_are_set_in_a_copy() -> None:
    before = copy.deepcopy(TEXTS)
    after, checked = set_inputs(TEXTS, "5", {"steps": 7.0, "cfg": 2}, SAMPLER)
    assert checked
    assert after["5"]["inputs"]["steps"] == 7 and after["5"]["inputs"]["cfg"] == 2
    assert after["5"]["_meta"] == TEXTS["5"]["_meta"]
    assert before == TEXTS
    assert {i: after[i] for i in after if i != "5"} == {i: TEXTS[i] for i in TEXTS if i != "5"}


def test_an_input_that_the_class_has_may_be_added() -> None:
    prompt = {"1": node("KSampler", seed=1)}
    assert set_inputs(prompt, "1", {"steps": 3}, SAMPLER)[0]["1"]["inputs"] == {"seed": 1, "steps": 3}


def test_without_object_info_only_links_are_looked_at() -> None:
    unknown: Any
    for unknown in ({}, {"KSampler": {}}):
        after, checked = set_inputs(TEXTS, "5", {"steps": "many"}, unknown)
        assert not checked and after["5"]["inputs"]["steps"] == "many"
        error = refused(set_inputs, TEXTS, "5", {"model": "x"}, unknown)
        assert (error.type, error.http_status, ids(error)) == ("linked_input", 409, ["1"])
        assert refused(set_inputs, TEXTS, "5", {"more": "x"}, unknown).type == "no_such_input"


def test_what_cannot_be_set_is_refused() -> None:
    error = refused(set_inputs, TEXTS, "5", {"steps": 3, "colour": 1}, SAMPLER)
    assert error.type == "no_such_input"
    assert error.message.endswith('has no input "colour". It has cfg, denoise, sampler_name and 3 more.')
    assert refused(set_inputs, {"1": node("X")}, "1", {"a": 1}, {}).message == '"X" (node 1) has no input "a".'
    assert refused(set_inputs, TEXTS, "5", {"steps": 0}, SAMPLER).type == "value_smaller_than_min"
    assert refused(set_inputs, TEXTS, "5", {"model": "x"}, SAMPLER).type == "linked_input"
    assert refused(set_inputs, {"1": node("KSampler")}, "1", {"model": ["9", 0]}, SAMPLER).type == "linked_input"


def rows(**more: Any) -> Json:
    row = {"on": True, "lora": "a.safetensors", "strength": 1, "two": None}
    return {"1": node("Loader", lora_1=row, lora_2={"strength": 0.5}, **more)}


@pytest.mark.parametrize(
    ("key", "value"), [("strength", 0.25), ("strength", 2), ("on", False), ("lora", "b"), ("two", 3)]
)
def test_a_part_of_an_input_is_set_alone(key: str, value: Any) -> None:
    before = rows()
    prompt, _ = set_inputs(before, "1", {f"lora_1.{key}": value, "lora_2.strength": 0.75}, {})
    assert prompt["1"]["inputs"]["lora_1"] == {**before["1"]["inputs"]["lora_1"], key: value}
    assert prompt["1"]["inputs"]["lora_2"] == {"strength": 0.75}
    assert before == rows()


@pytest.mark.parametrize(("key", "value"), [("strength", "much"), ("on", 1), ("lora", 5)])
def test_a_part_of_an_input_keeps_its_type(key: str, value: Any) -> None:
    error = refused(set_inputs, rows(), "1", {f"lora_1.{key}": value}, {})
    assert error.type == "invalid_input_type" and f"lora_1.{key}" in error.message


@pytest.mark.parametrize("name", ["lora_1.weight", "lora_3.strength", "strength"])
def test_a_part_that_an_input_does_not_have_is_refused(name: str) -> None:
    assert refused(set_inputs, rows(), "1", {name: 1}, {}).type == "no_such_input"


def test_an_input_whose_name_has_a_dot_is_no_part() -> None:
    """The inputs of a dynamic combo have such names."""
    inputs: Dict[str, Any] = {"format": {"codec": "h264"}, "format.codec": "av1"}
    before = {"1": node("Saver", **inputs)}
    prompt, _ = set_inputs(before, "1", {"format.codec": "vp9"}, {})
    assert prompt["1"]["inputs"] == {"format": {"codec": "h264"}, "format.codec": "vp9"}


@pytest.mark.parametrize(
    ("text", "value"),
    [("strength=0.5", 0.5), ("on=false", False), ("lora=b.safetensors", "b.safetensors"), ("two=[1]", [1])],
)
def test_a_part_is_typed_as_its_value_is(text: str, value: Any) -> None:
    prompt, drawn = apply_edits(rows(), [parse_set(rows(), f"Loader.lora_1.{text}")], {})
    assert prompt["1"]["inputs"]["lora_1"][text.partition("=")[0]] == value
    assert drawn == []


def test_a_seed_is_known_by_its_mark_or_its_name() -> None:
    assert is_seed("seed", DeclaredInput()) and is_seed("noise_seed", DeclaredInput("INT"))
    assert is_seed("value", DeclaredInput("INT", {"control_after_generate": True}))
    assert not is_seed("steps", parse_spec(INT))
    assert not is_seed("value", DeclaredInput("INT", {"control_after_generate": False}))


# ------------------------------------------------------------------------------------------------
# Finding texts
# ------------------------------------------------------------------------------------------------


def text(words: str, title: str = "") -> Json:
    return node("CLIPTextEncode", title, text=words, clip=["99", 1])


def sampler(positive: Any, negative: Any, class_type: str = "KSampler") -> Json:
    return node(class_type, model=["99", 0], latent_image=["98", 0], positive=positive, negative=negative)


def test_a_text_is_in_the_node_itself() -> None:
    assert text_inputs(TEXTS, "2") == [Ref("2", "text")]
    assert text_inputs(TEXTS, "5") == []
    assert text_inputs(TEXTS, "none") == []


@pytest.mark.parametrize("name", ["value", "string", "Text", "text"])
def test_a_text_that_a_link_feeds_is_found_at_its_source(name: str) -> None:
    prompt = {"1": text("unused"), "2": node("PrimitiveString", "Words", **{name: "a fox"})}
    prompt["1"]["inputs"]["text"] = ["2", 0]
    assert text_inputs(prompt, "1") == [Ref("2", name)]
    assert find_text(prompt, "1", None) == Ref("2", name)


def test_links_of_texts_are_followed_further() -> None:
    prompt = {"1": text(""), "2": node("Join", text_a=["3", 0], text_b="b"), "3": node("PrimitiveString", value="a")}
    prompt["1"]["inputs"]["text"] = ["2", 0]
    assert text_inputs(prompt, "1") == [Ref("2", "text_b"), Ref("3", "value")]


def test_one_source_of_two_inputs_is_one_text() -> None:
    prompt = {
        "1": node("CLIPTextEncodeSDXL", text_g=["2", 0], text_l=["2", 0]),
        "2": node("PrimitiveString", value="a fox"),
    }
    assert find_text(prompt, "1", None) == Ref("2", "value")


def test_links_that_go_round_or_nowhere_end() -> None:
    prompt = {"1": node("A", text=["2", 0]), "2": node("B", text=["1", 0]), "3": node("C", text=["9", 0])}
    assert text_inputs(prompt, "1") == []
    assert text_inputs(prompt, "3") == []


def test_a_link_to_nowhere_does_not_hide_a_text_beside_it() -> None:
    """Nor does a source that was seen before."""
    prompt = {"1": node("Join", text_a=["9", 0], text_b=["2", 0], text_c=["2", 0], text_d=["3", 0])}
    prompt.update({"2": node("PrimitiveString", value="a"), "3": node("PrimitiveString", value="b")})
    assert text_inputs(prompt, "1") == [Ref("2", "value"), Ref("3", "value")]


def test_a_guider_for_two_has_two_positive_texts_and_a_sampler_has_none_of_them() -> None:
    inputs: Any = {
        "model": ["99", 0],
        "cond1": ["1", 0],
        "cond2": ["2", 0],
        "conditioning": ["3", 0],
        "negative": ["4", 0],
    }
    prompt = {key: text(key) for key in "1234"}
    guided = {**prompt, "5": node("DualCFGGuider", **inputs)}
    assert prompt_texts(guided, "positive") == [Ref("1", "text"), Ref("2", "text"), Ref("3", "text")]
    assert prompt_texts(guided, "negative") == [Ref("4", "text")]
    assert prompt_texts({**prompt, "5": node("Sampler", **inputs)}, "positive") == []


def test_a_value_that_is_refused_names_its_node() -> None:
    error = refused(
        set_inputs, {"7": node("A", "Mine", n=1)}, "7", {"n": "x"}, {"A": {"input": {"required": {"n": ["INT"]}}}}
    )
    assert error.message.startswith('"Mine" (A, node 7): ') and error.type == "invalid_input_type"


def test_a_text_on_the_way_to_another_is_the_one_that_counts() -> None:
    prompt = {"1": sampler(["2", 0], ["9", 0]), "2": node("Encode", text="a", conditioning=["3", 0]), "3": text("b")}
    assert prompt_texts(prompt, "positive") == [Ref("2", "text")]


def test_a_value_that_json_does_not_have_is_refused_in_words() -> None:
    assert "is not a whole number" in refused(check_value, DeclaredInput("INT"), "steps", {5}).message


def test_texts_that_are_shared_on_many_levels_are_found_at_once() -> None:
    prompt = {str(i): node("Join", text_a=[str(i + 1), 0], text_b=[str(i + 1), 0]) for i in range(18)}
    prompt["18"] = node("PrimitiveString", value="a fox")
    assert set(text_inputs(prompt, "0")) == {Ref("18", "value")}
    assert find_text(prompt, "0", None) == Ref("18", "value")


@pytest.mark.parametrize("class_type", ["KSampler", "KSamplerAdvanced", "SamplerCustom"])
def test_a_sampler_separates_positive_from_negative(class_type: str) -> None:
    prompt = {"1": text("n"), "2": text("p"), "3": sampler(["2", 0], ["1", 0], class_type)}
    assert prompt_texts(prompt, "positive") == [Ref("2", "text")]
    assert prompt_texts(prompt, "negative") == [Ref("1", "text")]
    assert find_text(prompt, None, "positive") == Ref("2", "text")
    assert find_text(prompt, None, "negative") == Ref("1", "text")


def test_a_text_that_two_samplers_share_is_found_once() -> None:
    prompt = {"1": text("n"), "2": text("p"), "3": sampler(["2", 0], ["1", 0]), "4": sampler(["2", 0], ["1", 0])}
    assert prompt_texts(prompt, "positive") == [Ref("2", "text")]


def test_a_controlnet_in_between_keeps_the_two_sides_apart() -> None:
    prompt = {
        "1": text("n"), "2": text("p"), "4": sampler(["3", 0], ["3", 1]),
        "3": node("ControlNetApplyAdvanced", positive=["2", 0], negative=["1", 0], strength=1.0),
    }  # fmt: skip
    assert prompt_texts(prompt, "positive") == [Ref("2", "text")]
    assert prompt_texts(prompt, "negative") == [Ref("1", "text")]


@pytest.mark.parametrize(
    "between",
    [
        node("ConditioningCombine", conditioning_1=["2", 0], conditioning_2=["3", 0]),
        node("ConditioningConcat", conditioning_to=["2", 0], conditioning_from=["3", 0]),
    ],
)
def test_what_is_combined_of_two_texts_is_ambiguous(between: Json) -> None:
    prompt = {"1": between, "2": text("a", "First"), "3": text("b", "Second"), "4": text("n")}
    prompt["5"] = sampler(["1", 0], ["4", 0])
    assert prompt_texts(prompt, "positive") == [Ref("2", "text"), Ref("3", "text")]
    error = refused(find_text, prompt, None, "positive")
    assert (error.type, error.http_status, ids(error)) == ("ambiguous_node", 409, ["2", "3"])
    assert [each["title"] for each in error.details] == ["First", "Second"]


def test_a_flux_guider_is_positive() -> None:
    prompt = {
        "1": text("a fox"),
        "2": node("FluxGuidance", conditioning=["1", 0], guidance=3.5),
        "3": node("BasicGuider", model=["99", 0], conditioning=["2", 0]),
        "4": node("SamplerCustomAdvanced", guider=["3", 0], latent_image=["98", 0]),
    }
    assert prompt_texts(prompt, "positive") == [Ref("1", "text")]
    assert prompt_texts(prompt, "negative") == []
    assert refused(find_text, prompt, None, "negative").type == "no_such_text"


def test_a_cfg_guider_has_both() -> None:
    prompt = {
        "1": text("p"), "2": text("n"),
        "3": node("CFGGuider", model=["99", 0], positive=["1", 0], negative=["2", 0], cfg=7.0),
    }  # fmt: skip
    assert prompt_texts(prompt, "positive") == [Ref("1", "text")]
    assert prompt_texts(prompt, "negative") == [Ref("2", "text")]


def test_what_is_zeroed_out_has_no_text() -> None:
    prompt = {
        "1": text("p"), "2": node("ConditioningZeroOut", conditioning=["1", 0]), "3": sampler(["1", 0], ["2", 0]),
    }  # fmt: skip
    assert prompt_texts(prompt, "positive") == [Ref("1", "text")]
    assert prompt_texts(prompt, "negative") == []
    error = refused(find_text, prompt, None, "negative")
    assert (error.type, error.http_status, ids(error)) == ("no_such_text", 409, ["1"])


def test_conditionings_that_go_round_or_nowhere_end() -> None:
    prompt = {
        "1": node("ConditioningCombine", conditioning_1=["2", 0], conditioning_2=["2", 0]),
        "2": node("ConditioningCombine", conditioning_1=["1", 0], conditioning_2=["77", 0]),
        "3": sampler(["1", 0], ["78", 0]),
    }
    assert prompt_texts(prompt, "positive") == prompt_texts(prompt, "negative") == []


def test_titles_count_only_where_links_say_nothing() -> None:
    prompt = {"1": text("a", "My Positive words"), "2": text("b", "Negative"), "3": node("OddSampler", a=["1", 0])}
    assert find_text(prompt, None, "positive") == Ref("1", "text")
    assert find_text(prompt, None, "negative") == Ref("2", "text")
    misnamed = {"1": text("a", "negative"), "2": text("b", "positive"), "3": sampler(["1", 0], ["2", 0])}
    assert find_text(misnamed, None, "positive") == Ref("1", "text")


def test_a_node_with_several_texts_needs_another_edit() -> None:
    prompt = {"1": node("CLIPTextEncodeFlux", "Flux", clip_l="a", t5xxl="b")}
    error = refused(find_text, prompt, "Flux", None)
    assert (error.type, ids(error)) == ("ambiguous_node", ["1"])
    assert "clip_l, t5xxl" in error.message and "/update/inputs" in error.message


def test_a_node_without_a_text_is_refused_with_those_that_have_one() -> None:
    error = refused(find_text, TEXTS, "5", None)
    assert (error.type, error.http_status, ids(error)) == ("no_such_text", 409, ["2", "3"])
    assert refused(find_text, TEXTS, "none", None).type == "no_such_node"
    assert refused(find_text, {"1": node("X")}, None, "positive").details == []


def test_a_workflow_without_a_sampler_has_no_positive_prompt_and_says_so() -> None:
    prompt = {"1": node("AskModel", "Question", prompt="a fox"), "2": node("AskModel", prompt="b", more="c")}
    error = refused(find_text, prompt, None, "positive")
    assert (error.type, error.http_status, ids(error)) == ("no_such_text", 409, ["1", "2"])
    assert error.message == (
        'The workflow has no sampler with a "positive" or "negative" input, so no text is its positive prompt. '
        'Name a node by its node_id or title instead: "Question" (AskModel, node 1), "AskModel" (node 2).'
    )
    assert "No node has a text either." in refused(find_text, {"1": node("X")}, None, "negative").message
    with_sampler = {"1": node("Zero"), "2": sampler(["1", 0], ["1", 0])}
    assert refused(find_text, with_sampler, None, "positive").message == (
        "The positive prompt has no text that can be set."
    )
    assert refused(find_text, {"1": node("X")}, "1", None).message == 'The node "1" has no text that can be set.'


@pytest.mark.parametrize("length", [10, 5000])
def test_a_long_chain_is_followed_to_its_end(length: int) -> None:
    prompt = {str(i): node("ConditioningSetArea", conditioning=[str(i + 1), 0]) for i in range(length)}
    prompt[str(length)] = text("a fox")
    prompt["s"] = sampler(["0", 0], ["x", 0])
    assert prompt_texts(prompt, "positive") == [Ref(str(length), "text")]
    words = {str(i): node("Pass", text=[str(i + 1), 0]) for i in range(length)}
    words[str(length)] = node("PrimitiveString", value="a fox")
    assert text_inputs(words, "0") == [Ref(str(length), "value")]


def test_candidates_are_looked_for_once_in_each_node() -> None:
    prompt = {str(i): node("Pass", text=[str(i + 1), 0]) for i in range(5000)}
    with count_calls("inputs_of") as calls:
        assert refused(find_text, prompt, None, "positive").details == []
    assert calls["inputs_of"] < 10 * 5000
    prompt["5000"] = node("PrimitiveString", value="a fox")
    assert ids(refused(find_text, prompt, None, "positive")) == ["5000"]


def test_titles_that_share_a_text_mean_that_text() -> None:
    prompt = {
        "1": node("Encode", "positive, base", text=["3", 0]),
        "2": node("Encode", "positive, refiner", text=["3", 0]),
        "3": node("PrimitiveString", value="a fox"),
    }
    assert find_text(prompt, None, "positive") == Ref("3", "value")


def test_a_name_with_thousands_of_dots_is_looked_up_in_one_list() -> None:
    prompt = {str(i): node(f"Class {i}", x=1) for i in range(100)}
    with count_calls("class_of") as calls:
        assert refused(parse_set, prompt, "x" + ".a" * 5000 + "=1").type == "no_such_node"
    assert calls["class_of"] < 1000


# ------------------------------------------------------------------------------------------------
# Loaders, seeds, checks, fields
# ------------------------------------------------------------------------------------------------


def test_loaders_are_known_by_their_marks() -> None:
    marks = {
        "LoadImage": "image_upload", "LoadVideo": "video_upload", "LoadAudio": "audio_upload",
        "Load3D": "file_upload", "LoadAnimated": "animated_image_upload",
    }  # fmt: skip
    known: Json = {}
    for class_type, mark in marks.items():
        known.update(info(class_type, x=[["a"], {mark: True}], other=["STRING", {}]))
    known.update(info("Maybe", {"x": [["a"], {"image_upload": True}]}, y=["IMAGE"]))
    known.update(info("Not", x=[["a"], {"image_upload": False}], y="odd"))
    prompt = {name: node(name, x="a") for name in [*marks, "Maybe", "Not", "Unknown"]}
    prompt["Fed"] = node("LoadImage", x=["1", 0])
    assert upload_inputs(prompt, known) == {
        Ref("LoadImage", "x"): "image", Ref("LoadVideo", "x"): "video", Ref("LoadAudio", "x"): "audio",
        Ref("Load3D", "x"): "file", Ref("LoadAnimated", "x"): "image", Ref("Maybe", "x"): "image",
    }  # fmt: skip


def test_seeds_are_drawn_in_a_copy() -> None:
    before = copy.deepcopy(TEXTS)
    drawn = draw_seeds(TEXTS, [Ref("5", "seed"), Ref("gone", "seed")], lambda: 0.5)
    assert drawn["5"]["inputs"]["seed"] == 2**49
    assert before == TEXTS
    assert draw_seeds(TEXTS, [], lambda: 0.5) is TEXTS
    assert draw_seeds(TEXTS, [Ref("5", "seed")], lambda: 1 - 2**-53)["5"]["inputs"]["seed"] < 2**53


@pytest.mark.parametrize(
    ("low", "high", "first", "last"),
    [
        (-1125899906842624, 1125899906842624, 0, 2**50),  # Seed (rgthree), where -1 asks for a random seed
        (-1, 5, 0, 5),
        (-5, 0, 0, 0),
        (3, 5, 3, 5),
        (-5, -3, -5, -3),  # it takes nothing else
        (0, 2**64 - 1, 0, 2**50),
        (2**60, 2**64 - 1, 2**60, 2**60 + 2**50),
    ],
)
def test_seeds_lie_in_the_range_of_the_input_and_not_below_0(low: int, high: int, first: int, last: int) -> None:
    known = info("Seed (rgthree)", seed=["INT", {"min": low, "max": high}])
    prompt = {"1": node("Seed (rgthree)", seed=7)}

    def drawn(number: float) -> Any:
        return draw_seeds(prompt, [Ref("1", "seed")], lambda: number, known)["1"]["inputs"]["seed"]

    assert drawn(0.0) == first
    assert drawn(1 - 2**-53) == last


def test_the_seeds_of_a_prompt_are_shown_by_name_with_those_that_were_drawn() -> None:
    prompt = {
        "1": node("KSampler", seed=["3", 0], noise_seed=4, steps=20),
        "2": node("KSampler", seed=["3", 0]),
        "3": node("PrimitiveInt", value=5),
        "4": node("Randomized", number=6),
    }
    assert seeds_by_name(prompt) == {"3.value": 5, "1.noise_seed": 4}
    assert seeds_by_name(prompt, [Ref("4", "number"), Ref("3", "value")])["4.number"] == 6


def test_a_prompt_is_checked_by_what_is_known_of_its_classes() -> None:
    prompt = {
        "1": node("Gone", "Lost node", a=1), "2": node("KSampler", steps=0, cfg=float("nan"), model=["1", 0], more=1),
        "3": node("Unknown", a=1),
    }  # fmt: skip
    prompt["3"]["inputs"]["b"] = ["2", 0]
    problems = check_prompt(prompt, {**SAMPLER, "Gone": {}})
    assert [(each.type, each.node_id, each.input) for each in problems] == [
        ("missing_node_type", "1", ""), ("required_input_missing", "2", "seed"),
        ("value_smaller_than_min", "2", "steps"),
    ]  # fmt: skip
    assert problems[0].hints == (INSTALL_HINT,) and problems[0].title == "Lost node"
    complete = {"2": node("KSampler", seed=1, steps=5, cfg=1.0, model=["3", 0]), "3": node("Unknown")}
    complete["4"] = node("Unknown", a=["2", 0])
    assert check_prompt(complete, SAMPLER) == []


def test_a_file_that_is_not_listed_may_still_exist() -> None:
    known = info("LoadImage", image=[["example.png"], {"image_upload": True}])
    known["LoadImage"]["output_node"] = True
    for value in ("deep/cat.png", "cat.png [output]", "cat.png [temp]"):
        assert check_prompt({"1": node("LoadImage", image=value)}, known) == []
        assert set_inputs({"1": node("LoadImage", image="example.png")}, "1", {"image": value}, known)


def test_fields_come_in_the_order_to_show_them() -> None:
    known = {
        **SAMPLER,
        **info("CLIPTextEncode", text=["STRING", {"multiline": True}], clip=["CLIP"]),
        **info("LoadImage", image=[["example.png"], {"image_upload": True}]),
    }
    prompt = {**TEXTS, "8": node("LoadImage", "Photo", image="example.png"), "9": node("Odd", on=True, f=0.5, n=None)}
    fields = form_fields(prompt, known, [Ref("5", "seed")])
    assert [(f["node_id"], f["input"], f["kind"], f["role"]) for f in fields][:5] == [
        ("2", "text", "text", "positive"), ("3", "text", "text", "negative"), ("1", "ckpt_name", "text", ""),
        ("8", "image", "upload", ""), ("5", "seed", "seed", ""),
    ]  # fmt: skip
    by_name = {f["input"]: f for f in fields}
    assert by_name["seed"]["random"] and not by_name["steps"]["random"]
    assert (by_name["steps"]["kind"], by_name["steps"]["min"], by_name["steps"]["max"]) == ("int", 1, 100)
    assert by_name["image"]["media"] == "image" and by_name["image"]["options"] == ["example.png"]
    assert (by_name["on"]["kind"], by_name["f"]["kind"], by_name["cfg"]["kind"]) == ("toggle", "float", "float")
    assert not by_name["on"]["important"] and by_name["steps"]["important"]
    assert by_name["text"]["multiline"] and by_name["text"]["important"]
    assert "n" not in by_name and "model" not in by_name and "clip" not in by_name
    json.dumps(fields, allow_nan=False)


def test_the_model_follows_the_texts() -> None:
    fields = form_fields({**TEXTS, "8": node("LoadImage", image="example.png")}, {}, [])
    inputs = [field["input"] for field in fields if field["important"]]
    assert inputs[:3] == ["text", "text", "ckpt_name"]


def test_a_prompt_has_several_lines_though_nothing_is_known_of_its_class() -> None:
    prompt = {**TEXTS, "7": node("SaveImage", filename_prefix="x", images=["6", 0])}
    unknown = {field["input"]: field["multiline"] for field in form_fields(prompt, {}, [])}
    assert unknown["text"] and not unknown["filename_prefix"]
    one_line = info("CLIPTextEncode", text=["STRING", {}], clip=["CLIP"])
    known = {field["input"]: field["multiline"] for field in form_fields(prompt, one_line, [])}
    assert not known["text"]  # ComfyUI says so


def test_a_list_of_options_is_a_choice() -> None:
    for spec in (OLD, NEW):
        (field,) = form_fields({"1": node("A", s="euler")}, info("A", s=spec), [])
        assert (field["kind"], field["options"]) == ("choice", ["euler", "heun"])
    (field,) = form_fields({"1": node("A", s="x")}, info("A", s=[[]]), [])
    assert field["kind"] == "text"


# ------------------------------------------------------------------------------------------------
# At its worst
# ------------------------------------------------------------------------------------------------

_links = st.tuples(st.sampled_from(["1", "2", "3", "4", "9", 1]), st.integers(0, 1)).map(list)
_values = st.sampled_from(["", "a fox", "random"]) | _links | anything
_names = st.sampled_from(
    ["text", "text_g", "value", "seed", "steps", "positive", "negative", "conditioning", "conditioning_1", "model",
     "latent_image", "image", "clip_l"]
)  # fmt: skip
_classes = st.sampled_from(["KSampler", "CFGGuider", "CLIPTextEncode", "ConditioningZeroOut", "LoadImage", "Odd"])
_titles = st.sampled_from(["positive", "negative", "A"]) | anything
_nodes = st.builds(
    lambda kind, inputs, title: {"class_type": kind, "inputs": inputs, "_meta": {"title": title}},
    _classes, st.dictionaries(_names, _values, max_size=5), _titles,
)  # fmt: skip
prompts = st.dictionaries(st.sampled_from(["1", "2", "3", "4"]), _nodes, min_size=1, max_size=4)
_specs = (
    st.sampled_from([INT, FLOAT, OLD, NEW, MANY, ["STRING"], ["IMAGE"], [["a"], {"image_upload": True}]]) | anything
)
infos = st.dictionaries(
    _classes,
    st.just({}) | st.builds(lambda r, o: {"input": {"required": r, "optional": o}},
                            st.dictionaries(_names, _specs, max_size=4), anything) | anything,
    max_size=4,
)  # fmt: skip


@pytest.mark.long
@many
@given(prompts, infos, st.sampled_from(["1", "A", "KSampler", "positive", "none", ""]), _names, anything)
def test_odd_prompts_raise_nothing_but_edit_errors(
    prompt: Json, known: Json, name: str, input_name: str, value: Any
) -> None:
    before = copy.deepcopy(prompt)
    for function, arguments in [
        (find_node, (prompt, name)),
        (find_text, (prompt, name, None)),
        (find_text, (prompt, None, "positive")),
        (find_text, (prompt, None, "negative")),
        (set_inputs, (prompt, next(iter(prompt)), {input_name: value}, known)),
        (upload_inputs, (prompt, known)),
        (check_prompt, (prompt, known)),
        (form_fields, (prompt, known, [])),
        (draw_seeds, (prompt, [Ref("1", "seed")], lambda: 0.1)),
    ]:
        try:
            function(*arguments)  # type: ignore[operator]
        except EditError as error:
            assert error.message and error.http_status in (400, 409)
            json.dumps(plain_json(error.details), allow_nan=False)
    assert repr(prompt) == repr(before)


def test_texts_of_inputs_are_read_by_their_types() -> None:
    prompt = {"1": node("A", steps=1, cfg=1.5, name="a", parts={"strength": 1.0})}
    known = info("A", steps=["INT"], cfg=["FLOAT"], name=["STRING"])
    texts = {"steps": "30", "cfg": "x", "name": "7", "parts.strength": "0.5", "more": "1"}
    assert read_inputs(prompt, "1", texts, known) == {
        "steps": 30, "cfg": "x", "name": "7", "parts.strength": 0.5, "more": 1,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------
# What was meant
# ------------------------------------------------------------------------------------------------

CASES = {
    "1": node("KSampler", "Main Sampler", Steps=20, sampler_name="euler", model=["2", 0]),
    "2": node("Loader", "loader", ckpt_name="a.pt"),
    "3": node("Loader", "LOADER", ckpt_name="a.pt", a=1, A=2),
}
CASE_INFO = {"KSampler": {"input": {"required": {"sampler_name": [["euler", "Heun", "DDIM", "ddim"]]}}}}


@pytest.mark.parametrize(
    ("name", "ref"),
    [
        ("main sampler.steps", ("1", "Steps")),
        ("ksampler.Steps", ("1", "Steps")),
        ("1.SAMPLER_NAME", ("1", "sampler_name")),
        ("loader.ckpt_name", ("2", "ckpt_name")),  # its own spelling comes first
        ("3.A", ("3", "A")),
        ("1.sigma", ("1", "sigma")),
    ],
)
def test_a_name_in_another_case_is_taken_where_only_one_fits(name: str, ref: Tuple[str, str]) -> None:
    assert find_input(CASES, name) == ref


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Loadre.x", 'The workflow has no node "Loadre". Did you mean LOADER, Loader or loader?'),
        ("LOader.x", 'The workflow has no node "LOader". Did you mean LOADER, Loader or loader?'),
        (
            "quite different.x",
            'The workflow has no node "quite different". It has "Main Sampler" (KSampler, node 1), "loader" '
            '(Loader, node 2), "LOADER" (Loader, node 3).',
        ),
        ("steps", '"steps" does not name an input: write NODE.INPUT, such as 1.Steps.'),
    ],
)
def test_a_name_that_fits_nothing_comes_with_what_is_near(name: str, message: str) -> None:
    assert refused(find_input, CASES, name).message == message


def test_an_example_is_of_the_workflow_at_hand() -> None:
    assert example_of_input({"1": node("A", text="a"), "2": node("B", width=3), "7": node("K", steps=3)}) == "7.steps"
    assert example_of_input({"1": node("A", text="a"), "2": node("B", width=3)}) == "2.width"
    assert example_of_input({"1": node("A", text="a", model=["2", 0])}) == "1.text"
    assert example_of_input({"1": node("A", model=["2", 0])}) == ""
    assert refused(parse_set, {}, "x").message == "--set takes NODE.INPUT=VALUE."
    assert refused(parse_set, {"7": node("K", steps=3)}, "x").message.endswith("such as 7.steps=VALUE.")
    assert refused(find_input, {}, "x").message == '"x" does not name an input: write NODE.INPUT.'
    assert refused(find_input, {}, "x.y").message == 'The workflow has no node "x".'


def test_what_was_taken_in_another_case_is_said() -> None:
    texts = ["ksampler.steps=3", "1.sampler_name=EULER", "1.Steps=4", "2.ckpt_name=A.PT"]
    edits = [parse_set(CASES, text) for text in texts]
    prompt, _ = apply_edits(CASES, edits, CASE_INFO)
    assert notices_of_names(prompt, edits) == [
        '1.Steps is used for "ksampler.steps".',
        '1.sampler_name: euler is used for "EULER".',
    ]
    assert prompt["1"]["inputs"]["sampler_name"] == "euler"
    for text in ("Ddim", "DDIMM"):  # two fit, and none
        error = refused(apply_edits, CASES, [parse_set(CASES, f"1.sampler_name={text}")], CASE_INFO)
        assert error.type == "value_not_in_list"


@pytest.mark.parametrize(
    ("value", "options", "offer"),
    [
        ("eular", ["euler", "heun", "euler_pp"], "Did you mean euler or euler_pp?"),
        ("sd.safetensors", ["x.safetensors", "SD.ckpt", "sd.pt"], "Did you mean SD.ckpt or sd.pt?"),
        ("sdxl", ["a/sdxl_base.safetensors", "flux.safetensors"], "Did you mean a/sdxl_base.safetensors?"),
        ("ab", ["xxabxx"], ""),
        ("abcd", ["abce", "abcf", "abcg", "abch"], "Did you mean abce, abcf or abcg?"),
        (7, ["7", "7"], "Did you mean 7?"),
        ("x", [], ""),
    ],
)
def test_at_most_three_near_names_are_offered(value: Any, options: List[str], offer: str) -> None:
    assert did_you_mean(value, options) == offer


@pytest.mark.parametrize(
    ("inputs", "example"),
    [
        ({"steps": 4, "seed": 1}, ("seed", "random")),
        ({"text": "a", "on": True, "cfg": 7.5}, ("cfg", 7.5)),
        ({"text": "a", "on": True, "image": ["1", 0]}, None),
    ],
)
def test_an_example_for_a_message_is_an_input_of_the_workflow(inputs: Json, example: Any) -> None:
    expected = example and InputExample(InputRef("9", example[0]), example[1])
    assert example_of_edit({"9": {"class_type": "A", "inputs": inputs}}) == expected
