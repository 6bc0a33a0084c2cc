"""What --set, --seed and --image say becomes values of inputs; what can be set is listed; a prompt is checked."""

from __future__ import annotations

import copy
import json
import os
from typing import Any, Dict, Iterator, List

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import Json, anything, few
from support import ROOT, node
from test_edits import info, infos, prompts, refused

from comfyui_runner.edits import EditError, InputEdit, apply_edits, find_input, input_edit, parse_set, with_values
from comfyui_runner.errors import ServerAnswer
from comfyui_runner.extras.checks import check_prompt, describe_inputs
from comfyui_runner.nodes import InputRef, parse_spec
from comfyui_runner.problems import Problem
from comfyui_runner.reports import problem_report
from comfyui_runner.seeds import seed_inputs
from comfyui_runner.server import uploaded_value
from comfyui_runner.upload_inputs import find_loaders
from comfyui_runner.values import read_value

Ref = InputRef

with open(os.path.join(ROOT, "workflow_api.json"), encoding="utf-8") as file:
    WORKFLOW: Json = json.load(file)

INT = ["INT", {"min": 1, "max": 100}]


# ------------------------------------------------------------------------------------------------
# A text becomes a value
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "current", "text", "value"),
    [
        (["INT"], "x", "30", 30), (["INT"], 1, "30.0", 30.0), (["INT"], 1, "1_000", "1_000"),
        (["INT"], 1, "many", "many"),
        (["FLOAT"], 1, "0.5", 0.5), (["FLOAT"], 1, "2", 2), (["STRING"], 1, "123", "123"),
        (["STRING"], 1, "true", "true"),
        (["BOOLEAN"], 1, " Yes ", True), (["BOOLEAN"], 1, "off", False), (["BOOLEAN"], 1, "maybe", "maybe"),
        ([["a", 3]], "a", "3", 3), (["COMBO", {"options": ["a", True]}], "a", "True", True), ([["a"]], "a", "b", "b"),
        ([], True, "no", False), ([], 1, "7", 7), ([], 1.0, "7.5", 7.5), ([], "a", "7", "7"),
        ([], None, "7", 7), ([], {}, '{"a": 1}', {"a": 1}), ([], None, "a fox", "a fox"), (["POINTS"], "x", "[1]", [1]),
        (["POINTS"], "x", "[" * 100000, "[" * 100000),
    ],
)  # fmt: skip
def test_a_text_is_read_by_the_inputs_type_else_by_its_values(spec: Any, current: Any, text: str, value: Any) -> None:
    read = read_value(parse_spec(spec), current, text)
    assert read == value and type(read) is type(value)


# ------------------------------------------------------------------------------------------------
# Naming an input
# ------------------------------------------------------------------------------------------------

DOTTED: Json = {
    "1": node("A", "v1.5", **{"text": "", "lora.0.name": "x"}),
    "2": node("B", "v1.5.text", more=1),
    "3": node("C", "Twice", a=1),
    "4": node("C", "Twice", a=1),
    "5": node("D", "x = y", text="old"),
}


@pytest.mark.parametrize(
    ("name", "ref"),
    [
        ("1.text", Ref("1", "text")), ("v1.5.more", Ref("1", "more")), ("v1.5.text.more", Ref("2", "more")),
        ("v1.5.text", Ref("1", "text")), ("1.lora.0.name", Ref("1", "lora.0.name")), ("A.text", Ref("1", "text")),
    ],
)  # fmt: skip
def test_the_longest_node_that_exists_wins(name: str, ref: InputRef) -> None:
    assert find_input(DOTTED, name) == ref


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("steps", "wrong_name", '"steps" does not name an input: write NODE.INPUT'),
        ("", "wrong_name", "does not name an input"),
        ("Füchse", "wrong_name", '"Füchse" does not name'),
        ("v1.6.text", "no_such_node", 'no node "v1.6". Did you mean v1.5 or v1.5.text?'),
        (".text", "no_such_node", 'no node ""'),
        ("Twice.a", "ambiguous_node", "2 nodes are called"),
    ],
)  # fmt: skip
def test_a_name_that_does_not_mean_an_input_is_refused(name: str, kind: str, words: str) -> None:
    error = refused(find_input, DOTTED, name)
    assert error.type == kind and words in error.message


@pytest.mark.parametrize(
    ("spec", "text", "hint"),
    [
        (["FLOAT"], "7,5", " Write it with a decimal point: 7.5"),
        (["FLOAT", {"max": 100}], " -,5 ", " Write it with a decimal point: -.5"),
        (["FLOAT"], "1,000,000", ""),
        (["FLOAT"], "7,", ""),
        (["INT"], "7,5", ""),
    ],
)
def test_a_number_with_a_comma_is_offered_with_a_point(spec: Any, text: str, hint: str) -> None:
    error = refused(apply_edits, {"1": node("A", cfg=1)}, [InputEdit(Ref("1", "cfg"), text)], info("A", cfg=spec))
    assert error.type == "invalid_input_type" and error.message.endswith(")." + hint)


def test_words_for_yes_and_no() -> None:
    words = ["true", "yes", "on", "1", "false", "no", "off", "0"]
    assert [read_value(parse_spec(["BOOLEAN"]), None, word) for word in words] == [True] * 4 + [False] * 4


@pytest.mark.parametrize(
    ("text", "edit"),
    [
        ("1.text=a=b.c", InputEdit(Ref("1", "text"), "a=b.c")), ("1.text=", InputEdit(Ref("1", "text"), "")),
        ("x = y.text=new", InputEdit(Ref("5", "text"), "new")),
        ("1.text=@a.txt", InputEdit(Ref("1", "text"), "", "a.txt")),
        ("1.text=@@a", InputEdit(Ref("1", "text"), "@a")), ("1.text=@", InputEdit(Ref("1", "text"), "@")),
    ],
)  # fmt: skip
def test_an_edit_is_node_input_and_value(text: str, edit: InputEdit) -> None:
    assert parse_set(DOTTED, text) == edit._replace(typed=text.partition(".text=")[0] + ".text")


def test_an_edit_that_names_nothing_is_refused() -> None:
    assert refused(parse_set, DOTTED, "1.text").message == "--set takes NODE.INPUT=VALUE, such as 2.more=VALUE."
    assert 'no node "Nobody"' in refused(parse_set, DOTTED, "Nobody.text=a=b").message


def test_a_typo_before_a_long_text_is_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    many = {str(number): node("C%d" % number, "Some title %d" % number) for number in range(200)}
    walks: List[int] = []

    class Walked(Dict[str, Any]):
        def __iter__(self) -> Iterator[str]:
            walks[-1] += 1
            return super().__iter__()

    for length in (20, 500):
        walks.append(0)
        assert refused(parse_set, Walked(many), "Typo.text=" + "a fox. = " * length).type == "no_such_node"
    assert walks[0] == walks[1] > 0  # the longer text costs nothing more


def test_values_of_other_kinds_are_taken_as_they_are() -> None:
    assert input_edit(Ref("1", "a"), 7) == InputEdit(Ref("1", "a"), 7)


# ------------------------------------------------------------------------------------------------
# Edits, seeds
# ------------------------------------------------------------------------------------------------

SAMPLER = info(
    "KSampler", seed=["INT", {"min": 0, "control_after_generate": True}], steps=INT, cfg=["FLOAT"], model=["MODEL"]
)


def edits(*texts: str) -> List[InputEdit]:
    return [parse_set(WORKFLOW, text) for text in texts]


def test_edits_are_made_in_a_copy_and_random_seeds_are_listed() -> None:
    before = copy.deepcopy(WORKFLOW)
    made, drawn = apply_edits(WORKFLOW, edits("Positive Prompt.text=12", "5.steps=9", "5.seed=random"), SAMPLER)
    assert (made["2"]["inputs"]["text"], made["5"]["inputs"]["steps"]) == ("12", 9)
    assert drawn == [Ref("5", "seed")] and before == WORKFLOW
    made, drawn = apply_edits(WORKFLOW, edits("5.seed=random", "5.seed=3"), SAMPLER)
    assert (made["5"]["inputs"]["seed"], drawn) == (3, [])
    made, _ = apply_edits(WORKFLOW, [InputEdit(Ref("5", "steps"), 8)], SAMPLER)
    assert made["5"]["inputs"]["steps"] == 8


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("5.model=x", "linked_input", "is fed by"), ("5.colour=1", "no_such_input", "It has cfg, "),
        ("5.steps=0", "value_smaller_than_min", "Allowed: 1 to 100."),
        ("5.steps=random", "invalid_input_type", "random"),
        ("5.seed=-1", "value_smaller_than_min", "For a random seed, use --seed random"),
        ("5.=1", "no_such_input", 'no input ""'),
    ],
)  # fmt: skip
def test_an_edit_that_cannot_be_made_is_refused(text: str, kind: str, words: str) -> None:
    error = refused(apply_edits, WORKFLOW, edits(text), SAMPLER)
    assert error.type == kind and words in error.message


def test_every_seed_is_found_its_own_or_handed_on() -> None:
    prompt = {
        "1": node("A", seed=1, steps=2), "2": node("B", noise_seed=["3", 0]),
        "3": node("PrimitiveInt", value=5, other=6),
        "4": node("C", seed=["99", 0], variation_seed=True), "5": node("D", seed=1.5, seed_mode="fixed"),
        "6": node("E", seed=["3", 0]), "7": node("F", seed=4),
    }  # fmt: skip
    assert seed_inputs(prompt, info("F", seed=["STRING"])) == [Ref("1", "seed"), Ref("3", "value")]
    assert with_values(prompt, {Ref("1", "seed"): 9, Ref("gone", "x"): 1})["1"]["inputs"]["seed"] == 9
    assert prompt["1"]["inputs"]["seed"] == 1


def test_what_can_be_set_is_listed_in_order() -> None:
    prompt = {"1": node("KSampler", "S", steps=4, model=["2", 0], name="a"), "2": node("X", b=True, n=None)}
    known = info("KSampler", steps=INT, name=[["a", "b"]])
    listed = describe_inputs(prompt, known)
    assert listed[0] == {
        "node_id": "1", "title": "S", "class_type": "KSampler", "input": "steps", "type": "INT", "value": 4, "min": 1,
        "max": 100, "options": None,
    }  # fmt: skip
    assert [(row["input"], row["type"], row["options"]) for row in listed[1:]] == [
        ("name", "COMBO", ["a", "b"]), ("b", "BOOLEAN", None), ("n", "?", None),
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------
# Files
# ------------------------------------------------------------------------------------------------

LOADERS: Json = {
    "1": node("LoadImage", "Photo", image="a", mask="b"),
    "2": node("LoadImage", "Other", image="c"),
    "3": node("X"),
}


@pytest.mark.parametrize(
    ("known", "name", "found"),
    [
        ([Ref("1", "image")], None, [Ref("1", "image")]), ([Ref("1", "image"), Ref("2", "image")], "all", None),
        ([Ref("1", "image"), Ref("1", "mask")], "1.mask", [Ref("1", "mask")]),
        ([Ref("1", "image"), Ref("2", "image")], "Other", [Ref("2", "image")]),
    ],
)  # fmt: skip
def test_a_loader_is_named(known: Any, name: Any, found: Any) -> None:
    assert find_loaders(LOADERS, known, name) == (found or known)


def test_a_loader_that_is_not_clear_is_refused() -> None:
    both = [Ref("1", "image"), Ref("2", "image")]
    assert refused(find_loaders, LOADERS, [], None).type == "no_loader"
    assert refused(find_loaders, LOADERS, both, None).type == "ambiguous_node"
    assert refused(find_loaders, LOADERS, both, "X").type == "no_loader"
    assert refused(find_loaders, LOADERS, both, "Nobody").type == "no_such_node"


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ({"name": "a.png", "subfolder": "", "type": "input"}, "a.png"), ({"name": "a.png"}, "a.png"),
        ({"name": "a.png", "subfolder": "x/y", "type": "input"}, "x/y/a.png"),
        ({"name": "a.png", "type": "temp"}, "a.png [temp]"),
    ],
)  # fmt: skip
def test_an_uploaded_file_goes_by_the_answered_name(answer: Json, value: str) -> None:
    assert uploaded_value(answer) == value
    with pytest.raises(ServerAnswer):
        uploaded_value({"subfolder": "x"})


# ------------------------------------------------------------------------------------------------
# The check
# ------------------------------------------------------------------------------------------------


def checked(spec: Any, **inputs: Any) -> List[Problem]:
    """What is wrong with a node that has one input x, declared so."""
    definitions = {**info("N", x=spec), "S": {"output": ["IMAGE", "INT,FLOAT", ["a"], "COMFY_MATCHTYPE_V3"]}}
    definitions["N"]["output_node"] = True
    return check_prompt({"1": node("N", **inputs), "2": node("S")}, definitions)


@pytest.mark.parametrize(
    ("spec", "value", "kind"),
    [
        (INT, 0, "value_smaller_than_min"), (INT, 101, "value_bigger_than_max"), (INT, "x", "invalid_input_type"),
        (["INT"], float("inf"), "invalid_input_type"), (["FLOAT"], None, "invalid_input_type"),
        ([["a"]], "b", "value_not_in_list"), (["COMBO", {"options": ["a"]}], "b", "value_not_in_list"),
        (["IMAGE"], ["2", 1], "return_type_mismatch"), (["IMAGE"], ["9", 0], "exception_during_inner_validation"),
        (["IMAGE"], ["2", 9], "exception_during_inner_validation"),
        (["IMAGE"], ["2"], "bad_linked_input"), (["POINTS"], [1, 2, 3], "bad_linked_input"),
        ([["a"]], {"__value__": ["a", "c"]}, "value_not_in_list"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_reported_as_by_the_server(spec: Any, value: Any, kind: str) -> None:
    (problem,) = checked(spec, x=value)
    assert (problem.type, problem.node_id, problem.input) == (kind, "1", "x")


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        (INT, "12"), (INT, 1), ([["a"]], "a"), ([["a"], {"image_upload": True}], "b"), (["COMBO", {"remote": {}}], "b"),
        ([["a", "b"]], {"__value__": ["a"]}), (["IMAGE"], ["2", 0]), (["INT"], ["2", 1]), (["*"], ["2", 0]),
        (["FLOAT , MASK"], ["2", 1]), ([["a"]], ["2", 2]), (["IMAGE"], ["2", 3]), (["COMFY_DYNAMICCOMBO_V3", {}], 7),
        (["COMBO"], ["2", 0]),
        ("odd", 1), ([], 1),
    ],
)  # fmt: skip
def test_what_may_be_right_is_left_to_the_server(spec: Any, value: Any) -> None:
    assert checked(spec, x=value) == []


def test_a_missing_input_is_reported_where_it_is_required() -> None:
    assert [problem.type for problem in checked(INT)] == ["required_input_missing"]
    assert check_prompt({"1": node("N")}, {"N": {"input": {"optional": {"x": INT}}, "output_node": True}}) == []


def test_a_model_that_the_server_lacks_comes_with_the_nearest() -> None:
    (problem,) = check_prompt(
        {"1": node("L", ckpt_name="sdxl.safetensors")},
        {"L": {"input": {"required": {"ckpt_name": [["sd_xl.safetensors", "flux.sft"]]}}, "output_node": True}},
    )
    assert problem.hints[0] == "Did you mean sd_xl.safetensors?"
    assert "models/checkpoints" in problem.hints[1]


def test_without_an_output_everything_else_is_reported_too() -> None:
    problems = check_prompt({"1": node("N")}, info("N", x=INT))
    assert [problem.type for problem in problems] == ["required_input_missing", "prompt_no_outputs"]


def test_nodes_that_no_output_needs_are_not_checked() -> None:
    """ComfyUI does not, and the frontend exports nodes that lie about unconnected."""
    prompt = {"1": node("Save"), "2": node("N")}
    assert check_prompt(prompt, {**info("N", x=INT), "Save": {"output_node": True}}) == []
    assert [each.type for each in check_prompt(prompt, {"N": {}, "Save": {"output_node": True}})] == [
        "missing_node_type"
    ]


# ------------------------------------------------------------------------------------------------
# At its worst
# ------------------------------------------------------------------------------------------------

_texts = st.text("1A.=@ positive", max_size=14) | st.builds(
    "{}.{}={}".format, st.sampled_from("1A23"), st.text(), st.text()
)


@few
@given(prompts, infos, _texts, anything)
def test_odd_edits_raise_nothing_but_edit_errors(prompt: Json, known: Json, text: str, value: Any) -> None:
    before = repr(prompt)
    try:
        edit = parse_set(prompt, text)
        apply_edits(prompt, [edit, input_edit(edit.ref, value)], known)
    except EditError as error:
        assert error.message
    try:
        assert find_input(prompt, text).node_id in prompt
    except EditError as error:
        assert error.type in ("wrong_name", "no_such_node", "ambiguous_node")
    assert all(ref.node_id in prompt for ref in seed_inputs(prompt, known))
    for problem in check_prompt(prompt, known):
        json.dumps(problem_report(problem), allow_nan=False)
    assert len(describe_inputs(prompt, known)) <= sum(len(each["inputs"]) for each in prompt.values())
    assert repr(prompt) == before


@few
@given(st.lists(anything, max_size=2), anything, st.text(max_size=12))
def test_any_text_is_read_as_something(spec: List[Any], current: Any, text: str) -> None:
    read = read_value(parse_spec(spec), current, text)
    assert read == text or type(read) is not type(text) or read in json.dumps(read) or isinstance(read, str)
