"""ComfyUI's errors in words: what is wrong, at which node and input, and what a person can do."""

from __future__ import annotations

import json
from typing import Any, Dict, List, Mapping, Optional, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import VERSIONS, Json, answers, anything, few
from support import count_calls, node

from comfyui_runner.documents import EXPORT_REMEDY
from comfyui_runner.nodes import DeclaredInput, input_spec, nearest_first, parse_spec
from comfyui_runner.problems import (
    Problem,
    classes_to_look_up,
    dropped_outputs,
    explain_answer,
    explain_failure,
    traceback_lines,
)
from comfyui_runner.reports import describe, problem_report

EXPORT = "    " + EXPORT_REMEDY
MEMORY_HINT = "The device has too little memory: use a smaller image or batch, or start ComfyUI with --lowvram."
INSTALL = (
    "    Install the custom node that has it (ComfyUI-Manager: Install Missing Custom Nodes), then restart ComfyUI."
)


def read(problem: Problem) -> List[str]:
    """What a person reads of a problem."""
    return [text for _, text in describe(problem_report(problem))]


def explained(answer: Mapping[str, Any], prompt: Mapping[str, Any], known: Mapping[str, Any] = {}) -> List[str]:
    """What a person reads of an answer to POST /prompt; ``known`` is what the server's object_info has."""
    definitions = {class_type: known.get(class_type, {}) for class_type in classes_to_look_up(answer, prompt)}
    return [line for problem in explain_answer(answer, prompt, definitions) for line in read(problem)]


# ------------------------------------------------------------------------------------------------
# What real servers refused
# ------------------------------------------------------------------------------------------------

NO_OUTPUTS = [
    "Prompt has no outputs.",
    "    Nothing in it saves or shows a result: add an output node, such as Save Image, and connect it.",
]
NO_CLASS = {
    "0.3.64": "node 99): Cannot execute because a node is missing the class_type property.",
    "0.33.0": "node 99): Node 'ID #99' has no class_type. The workflow may be corrupted or a custom node is missing.",
}
#: By the recorder's note; None where the two versions differ.
RECORDED: Dict[str, Optional[List[str]]] = {
    "unknown class_type": [
        '"NoSuchNode" (NoSuchNode, node 99): the server does not have the class NoSuchNode.',
        INSTALL,
    ],
    "class_type missing": None,
    "required input missing": [
        '"EmptyImage" (EmptyImage, node 1): the input width is missing.',
        "    Give it a value or a link, or export the workflow again.",
    ],
    "value bigger than max": [
        '"EmptyImage" (EmptyImage, node 1): width = 1000000000 is too big.',
        "    Allowed: 1 to 16384.",
    ],
    "value of the wrong type": [
        '"EmptyImage" (EmptyImage, node 1): width = "wide" is not a whole number (INT).',
    ],
    "value not in list: a checkpoint that is not installed": [
        '"Load Checkpoint" (CheckpointLoaderSimple, node 4): '
        'ckpt_name = "sd_xl_base_1.0.safetensors" is not one of the server\'s options.',
        "    The server has random_sd15.safetensors, random_sdxl.safetensors.",
        "    Or put the file into ComfyUI's models/checkpoints folder.",
    ],
    "LoadImage of a file that is not there": [
        '"Load Image" (LoadImage, node 1): image: Invalid image file: no_such_file.png.',
        "    Upload the file to ComfyUI's input folder, or name a file in that folder.",
    ],
    "link to a node that is not there": [
        '"Save Image" (SaveImage, node 3): images links to node 404, which is not in the workflow.',
        "    Connect it again, or export the workflow again.",
    ],
    "link of the wrong type": [
        '"KSampler" (KSampler, node 3): '
        'model needs MODEL, but "Empty Latent Image" (EmptyLatentImage, node 5) gives LATENT.',
        "    Connect it to an output of the right type.",
    ],
    "no output node": NO_OUTPUTS,
    "empty prompt": NO_OUTPUTS,
    "one output good, one bad: accepted in part": [
        '"SaveImage" (SaveImage, node 77): images links to node 404, which is not in the workflow.',
        "    Connect it again, or export the workflow again.",
    ],
    "no 'prompt' key": ["No prompt provided.", EXPORT],
}


def refused(version: str, note: str) -> Tuple[Json, Json]:
    """A recorded answer to POST /prompt, and the prompt that was posted."""
    (found,) = (step for step in answers(version, "validation_errors", "POST /prompt") if step.note == note)
    return found.body, found.request.get("prompt", {})


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("note", [note for note, lines in RECORDED.items() if lines])
def test_a_recorded_refusal_in_words(version: str, note: str) -> None:
    body, prompt = refused(version, note)
    known = {name: {"name": name} for name in ("EmptyImage", "ImageInvert", "SaveImage")}
    assert explained(body, prompt, known) == RECORDED[note]


@pytest.mark.parametrize(
    ("file", "hint"),
    [
        ("cat.png", "Upload the file to ComfyUI's input folder"),
        ("cat.png [input]", "Upload the file to ComfyUI's input folder"),
        ("cat.png [output]", "ComfyUI looks for it in its output folder"),
        ("cat.png [temp]", "ComfyUI looks for it in its temp folder, which it empties"),
    ],
)
def test_a_missing_file_is_said_to_be_missing_where_it_is_looked_for(file: str, hint: str) -> None:
    error = {
        "type": "custom_validation_failed",
        "details": f"image - Invalid image file: {file}",
        "extra_info": {"input_name": "image", "received_value": file},
    }
    prompt = {"1": node("LoadImage", image=file)}
    message, said = explained({"node_errors": {"1": {"errors": [error]}}}, prompt)
    assert message == f'"LoadImage" (LoadImage, node 1): image: Invalid image file: {file}.'
    assert said.strip().startswith(hint)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_recorded_refusal_of_a_node_without_class(version: str) -> None:
    body, prompt = refused(version, "class_type missing")
    known = {name: {"name": name} for name in ("EmptyImage", "ImageInvert", "SaveImage")}
    assert explained(body, prompt, known) == ['"99" (' + NO_CLASS[version], EXPORT]


def test_a_workflow_in_ui_format_that_was_posted_by_mistake() -> None:
    body, _ = refused("0.3.64", "a UI-format workflow posted by mistake")
    assert explained(body, {})[1:] == [EXPORT]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_recorded_refusal_has_its_words(version: str) -> None:
    notes = {step.note for step in answers(version, "validation_errors", "POST /prompt") if isinstance(step.body, dict)}
    assert notes - set(RECORDED) <= {"a UI-format workflow posted by mistake"}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_problem_says_which_input_had_which_value(version: str) -> None:
    (problem,) = explain_answer(*refused(version, "value bigger than max"), {})
    assert (problem.type, problem.node_id, problem.input, problem.value) == (
        "value_bigger_than_max", "1", "width", 1000000000,
    )  # fmt: skip
    (problem,) = explain_answer(*refused(version, "link of the wrong type"), {})
    assert (problem.input, problem.value) == ("model", ["5", 0])


# ------------------------------------------------------------------------------------------------
# Every kind of error that ComfyUI's source has
# ------------------------------------------------------------------------------------------------

PROMPT = {
    "1": node("CheckpointLoaderSimple", "Load Checkpoint", ckpt_name="x.safetensors"),
    "2": node("KSampler", "Sampler", model=["1", 0], steps=-1, sampler_name="eular", denoise="high"),
    "3": node("SaveImage", images=["404", 0]),
}


def node_error(kind: str, message: str, details: str, node_id: str = "2", **extra: Any) -> Json:
    """A body of POST /prompt with one error of one node."""
    item = {"type": kind, "message": message, "details": details, "extra_info": extra}
    class_type = PROMPT[node_id]["class_type"]
    error = {"type": "prompt_outputs_failed_validation", "message": "Prompt outputs failed validation", "details": "x"}
    errors = {node_id: {"errors": [item], "dependent_outputs": ["3"], "class_type": class_type}}
    return {"error": error, "node_errors": errors}


AT = '"Sampler" (KSampler, node 2): '


@pytest.mark.parametrize(
    ("answer", "lines"),
    [
        (
            node_error("required_input_missing", "Required input is missing", "positive", input_name="positive"),
            [AT + "the input positive is missing.", "    Give it a value or a link, or export the workflow again."],
        ),
        (
            node_error("required_input_missing", "Required input is missing", "positive"),
            [AT + "the input positive is missing.", "    Give it a value or a link, or export the workflow again."],
        ),
        (
            node_error("bad_linked_input", "Bad linked input, must be a length-2 list of [node_id, slot_index]",
                       "model", input_name="model", received_value=["1"]),
            [AT + "model is a list, but not a link ([node_id, slot])."],
        ),
        (
            node_error("bad_linked_input", "Bad linked input, must be a length-2 list", "model"),
            [AT + "model is a list, but not a link ([node_id, slot])."],
        ),
        (
            node_error("return_type_mismatch", "Return type mismatch between linked nodes", "model, CLIP != MODEL",
                       input_name="model", input_config=["MODEL"], received_type="CLIP", linked_node=["1", 1]),
            [AT + 'model needs MODEL, but "Load Checkpoint" (CheckpointLoaderSimple, node 1) gives CLIP.',
             "    Connect it to an output of the right type."],
        ),
        (
            node_error("return_type_mismatch", "", "", input_name="sampler_name", input_config=[["euler"], {}],
                       received_type="INT", linked_node=["3", 0]),
            [AT + 'sampler_name needs a COMBO, but "SaveImage" (node 3) gives INT.',
             "    Connect it to an output of the right type."],
        ),
        (
            node_error("value_smaller_than_min", "Value -1 smaller than min of 1", "steps", input_name="steps",
                       input_config=["INT", {"min": 1, "max": 10000}], received_value=-1),
            [AT + "steps = -1 is too small.", "    Allowed: 1 to 10000."],
        ),
        (
            node_error("value_smaller_than_min", "Value -1 smaller than min of 1", "steps", input_name="steps"),
            [AT + "steps = -1 is too small."],
        ),
        (
            node_error("value_not_in_list", "Value not in list", "sampler_name: 'eular' not in ['euler', 'ddim']",
                       input_name="sampler_name", input_config=[["ddim", "euler"], {}], received_value="eular"),
            [AT + 'sampler_name = "eular" is not one of the server\'s options.', "    Did you mean euler?"],
        ),
        (
            node_error("value_not_in_list", "Value not in list", "sampler_name: 'eular' not in ['euler', 'ddim']",
                       input_name="sampler_name", input_config=["COMBO", {"options": ["ddim", "euler"]}]),
            [AT + 'sampler_name = "eular" is not one of the server\'s options.', "    Did you mean euler?"],
        ),
        (
            node_error("value_not_in_list", "Value not in list", "ckpt_name: 'x.safetensors' not in []", "1",
                       input_name="ckpt_name", input_config=[[], {}], received_value="x.safetensors"),
            ['"Load Checkpoint" (CheckpointLoaderSimple, node 1): '
             'ckpt_name = "x.safetensors" is not one of the server\'s options.',
             "    The server has no options to choose from.",
             "    Or put the file into ComfyUI's models/checkpoints folder."],
        ),
        (
            node_error("invalid_input_type", "Failed to convert an input value to a FLOAT value", "denoise, high",
                       input_name="denoise", input_config=["FLOAT", {}], received_value="high",
                       exception_message="could not convert string to float: 'high'"),
            [AT + 'denoise = "high" is not a number (FLOAT).'],
        ),
        (
            node_error("invalid_input_type", "", "", input_name="text", input_config=["STRING"],
                       received_value={"a": 1}),
            [AT + 'text = {"a": 1} is not text (STRING).'],
        ),
        (
            node_error("invalid_input_type", "", "", input_name="steps", input_config=["INT"],
                       received_value="zwölf 狐"),
            [AT + 'steps = "zwölf 狐" is not a whole number (INT).'],
        ),
        (
            node_error("custom_validation_failed", "Custom validation failed for node",
                       "image - Invalid image file: x.png", input_name="image"),
            [AT + "image: Invalid image file: x.png.",
             "    Upload the file to ComfyUI's input folder, or name a file in that folder."],
        ),
        (
            node_error("custom_validation_failed", "Custom validation failed for node", "steps", input_name="steps"),
            [AT + "Custom validation failed for node: steps."],
        ),
        (
            node_error("custom_validation_failed", "Custom validation failed for node", "steps - Must be even."),
            [AT + "Custom validation failed for node: steps - Must be even."],
        ),
        (
            node_error("exception_during_inner_validation", "Exception when validating inner node", "'404'", "3",
                       exception_type="KeyError", input_name="samples", linked_node=["3", 0]),
            ['"SaveImage" (SaveImage, node 3): images links to node 404, which is not in the workflow.',
             "    Connect it again, or export the workflow again."],
        ),
        (
            node_error("exception_during_validation", "Exception when validating node", "list index out of range",
                       exception_type="IndexError", traceback=[]),
            [AT + "Exception when validating node: list index out of range."],
        ),
        (
            node_error("dependency_cycle", "Dependency cycle detected", "2 -> 3 -> 2"),
            [AT + "its links go in a circle: 2 -> 3 -> 2.", "    Remove one of these links."],
        ),
        (
            node_error("invalid_dynamic_input", "Invalid dynamic input", "images.image0", input_name="images.image0"),
            [AT + "Invalid dynamic input: images.image0."],
        ),
        (node_error("a_new_error", "Something new is wrong", ""), [AT + "Something new is wrong."]),
    ],
)  # fmt: skip
def test_an_error_of_a_node_in_words(answer: Json, lines: List[str]) -> None:
    assert explained(answer, PROMPT) == lines


def prompt_error(kind: str, message: str, details: str = "", **extra: Any) -> Json:
    """A body of POST /prompt with an error of the whole prompt."""
    return {"error": {"type": kind, "message": message, "details": details, "extra_info": extra}, "node_errors": {}}


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("ckpt_name", "checkpoints"), ("lora_name", "loras"), ("vae_name", "vae"), ("unet_name", "diffusion_models"),
        ("clip_name", "text_encoders"), ("clip_name1", "text_encoders"), ("clip_name2", "text_encoders"),
        ("clip_name3", "text_encoders"), ("control_net_name", "controlnet"), ("style_model_name", "style_models"),
        ("gligen_name", "gligen"), ("model_name", "upscale_models"),
    ],
)  # fmt: skip
def test_a_model_that_the_server_does_not_have_goes_into_its_folder(name: str, folder: str) -> None:
    """Those of ComfyUI's folder_paths.py."""
    about: Any = {"input_name": name, "input_config": ["INT"], "received_value": "x"}
    (_, *hints) = explained(node_error("value_not_in_list", "", "", **about), PROMPT)
    assert hints == ["    Put the file into ComfyUI's models/%s folder." % folder]


@pytest.mark.parametrize(
    ("answer", "lines"),
    [
        (prompt_error("prompt_no_outputs", "Prompt has no outputs"), NO_OUTPUTS),
        (
            prompt_error("invalid_prompt_id", "prompt_id must be a UUID", "'p' is none"),
            ["prompt_id must be a UUID: 'p' is none."],
        ),
        (
            prompt_error("prompt_outputs_failed_validation", "Prompt outputs failed validation", "a: b\nc: d\n"),
            ["Prompt outputs failed validation: a: b c: d."],
        ),
        (prompt_error("invalid_prompt", "Something is wrong with it"), ["Something is wrong with it."]),
        (prompt_error("a_new_error", "Wrong", "Node ID '#2'"), ["Wrong: Node ID '#2'."]),
        (
            prompt_error("missing_node_type", "Not found.", "", node_id="2", class_type="KSampler"),
            ['"Sampler" (KSampler, node 2): Not found.', INSTALL],
        ),
        ({"error": "a text alone", "node_errors": {}}, ["a text alone"]),
        ({"error": ["a", "list"]}, ["['a', 'list']"]),
        ({"error": {"message": "of a proxy"}}, ["of a proxy."]),
        ({}, []),
        ({"error": None, "node_errors": None}, []),
        ({"error": {}, "node_errors": {"2": {"errors": None}, "3": None, "4": []}}, []),
    ],
)
def test_an_error_of_the_whole_prompt_in_words(answer: Json, lines: List[str]) -> None:
    known = {item["class_type"]: {"name": "known"} for item in PROMPT.values()}
    assert explained(answer, PROMPT, known) == lines


def test_nothing_of_an_answer_is_left_out() -> None:
    answer = node_error("value_smaller_than_min", "", "", input_name="steps")
    first = answer["node_errors"]["2"]["errors"]
    first.append({"type": "new", "message": "Second", "details": "", "extra_info": {}})
    third = {"type": "new", "message": "Third", "details": ""}
    answer["node_errors"]["3"] = {"errors": [third], "class_type": "SaveImage"}
    assert [problem.message for problem in explain_answer(answer, PROMPT, {})] == [
        "steps = -1 is too small.", "Second.", "Third.",
    ]  # fmt: skip


def test_an_error_of_a_node_that_is_not_in_the_prompt() -> None:
    item = {"type": "new", "message": "Wrong", "details": ""}
    answer = {"error": {}, "node_errors": {"2.0.0.1": {"errors": [item]}}}
    assert explained(answer, PROMPT) == ['"Sampler" (KSampler, node 2.0.0.1): Wrong.']


def test_an_error_without_a_message_is_reported_without_python_words() -> None:
    answer = {"error": {"type": "x"}, "node_errors": {"2": {"errors": [{}, None]}}}
    assert not [
        line for line in explained(answer, PROMPT) + explained({"error": {"type": "x"}}, PROMPT) if "None" in line
    ]


def test_a_link_whose_id_is_a_number_is_not_said_to_lead_nowhere() -> None:
    """ComfyUI's keys are texts: [1, 0] does not find node "1", which exists."""
    prompt = {"1": node("EmptyImage"), "3": node("SaveImage", images=[1, 0])}
    answer = node_error("exception_during_validation", "Exception", "1", "3", exception_type="KeyError")
    (line, *_) = explained(answer, prompt)
    assert "which is not in the workflow" not in line


def test_another_key_error_of_a_node_is_not_said_to_be_a_link() -> None:
    prompt = {"1": node("EmptyImage"), "2": node("Custom", image=["1", 0])}
    answer = node_error(
        "exception_during_validation", "Exception when validating node", "'mode'", exception_type="KeyError"
    )
    assert explained(answer, prompt) == ["\"Custom\" (KSampler, node 2): Exception when validating node: 'mode'."]


@pytest.mark.parametrize("extra", [{"input_name": "positive"}, {}])
def test_a_missing_input_is_named_in_the_problem(extra: Json) -> None:
    (problem,) = explain_answer(node_error("required_input_missing", "", "positive", **extra), PROMPT, {})
    assert problem.input == "positive"


def test_what_the_server_sends_is_cleaned_and_shortened() -> None:
    answer = node_error("value_not_in_list", "", "", input_name="a\x1b[31mb", received_value="v" * 500)
    (line,) = explained(answer, {"2": node("KSampler", "two\nlines")})
    assert line == '"two lines" (KSampler, node 2): ab = "' + "v" * 118 + "… is not one of the server's options."


def test_the_value_of_a_problem_is_strict_json() -> None:
    answer = node_error("value_bigger_than_max", "", "", input_name="cfg", received_value=float("nan"))
    (problem,) = explain_answer(answer, PROMPT, {})
    assert problem.value is None and problem.message == "cfg = NaN is too big."
    json.dumps(problem_report(problem), allow_nan=False)


ROLES = st.sampled_from(
    ["input_name", "input_config", "received_value", "received_type", "linked_node", "exception_type"]
)
KINDS = st.sampled_from(
    [
        "required_input_missing", "bad_linked_input", "return_type_mismatch", "invalid_input_type", "value_not_in_list",
        "value_smaller_than_min", "value_bigger_than_max", "custom_validation_failed", "exception_during_validation",
        "exception_during_inner_validation", "dependency_cycle", "missing_node_type", "invalid_prompt", "no_prompt",
        "prompt_no_outputs", "KeyError",
    ]
)  # fmt: skip
ERRORS = st.fixed_dictionaries(
    {},
    optional={
        "type": KINDS | anything,
        "message": anything,
        "details": st.sampled_from(["Node ID '#2'", "image - Invalid file", "'404'"]) | anything,
        "extra_info": st.dictionaries(ROLES, KINDS | anything) | anything,
    },
)
NODE_ERRORS = st.fixed_dictionaries(
    {},
    optional={"errors": st.lists(ERRORS | anything) | anything, "class_type": anything, "dependent_outputs": anything},
)


@few
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "error": ERRORS | anything,
            "node_errors": st.dictionaries(st.sampled_from(["1", "2", "3", "9"]), NODE_ERRORS | anything) | anything,
        },
    ),
    st.dictionaries(st.sampled_from(["KSampler", "SaveImage", "CheckpointLoaderSimple"]), anything),
)
def test_any_answer_can_be_explained(answer: Json, object_info: Json) -> None:
    assert classes_to_look_up(answer, PROMPT) == sorted(set(classes_to_look_up(answer, PROMPT)))
    for problem in explain_answer(answer, PROMPT, object_info):
        assert problem.message and "\n" not in problem.message
        assert all(hint and "\n" not in hint for hint in problem.hints)
        json.dumps(problem_report(problem), allow_nan=False)
    assert all(isinstance(node_id, str) for node_id in dropped_outputs(answer))


# ------------------------------------------------------------------------------------------------
# What object_info is asked for, and what it gives
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_of_an_unknown_class_all_classes_are_looked_up_as_the_server_names_the_first_alone(version: str) -> None:
    body, prompt = refused(version, "unknown class_type")
    assert classes_to_look_up(body, prompt) == ["EmptyImage", "ImageInvert", "NoSuchNode", "SaveImage"]
    prompt = {**prompt, "98": node("AlsoMissing", "Mine")}
    known = {name: {"name": name} for name in ("EmptyImage", "ImageInvert", "SaveImage")}
    assert explained(body, prompt, known) == [
        '"NoSuchNode" (NoSuchNode, node 99): the server does not have the class NoSuchNode.', INSTALL,
        '"Mine" (AlsoMissing, node 98): the server does not have the class AlsoMissing.', INSTALL,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("version", "line"),
    [
        ("0.3.64", '"NoSuchNode" (NoSuchNode, node 99): Cannot execute because node NoSuchNode does not exist.'),
        (
            "0.33.0",
            "\"NoSuchNode\" (NoSuchNode, node 99): Node 'NoSuchNode' not found. The custom node may not be installed.",
        ),
    ],
)
def test_an_unknown_class_is_reported_in_the_servers_words_when_nothing_can_be_looked_up(
    version: str, line: str
) -> None:
    body, prompt = refused(version, "unknown class_type")
    assert [text for problem in explain_answer(body, prompt, {}) for text in read(problem)] == [line, INSTALL]


@pytest.mark.parametrize("version", VERSIONS)
def test_nothing_is_looked_up_that_the_answer_says(version: str) -> None:
    for note in ("value bigger than max", "value not in list: a checkpoint that is not installed", "no output node"):
        assert classes_to_look_up(*refused(version, note)) == []


OPTIONS = ["euler_%02d" % number for number in range(30)]


def test_of_more_than_20_options_the_server_says_only_how_many() -> None:
    answer = node_error("value_not_in_list", "Value not in list", "sampler_name: 'eular' not in (list of length 30)",
                        input_name="sampler_name", input_config=None, received_value="euler_17")  # fmt: skip
    assert classes_to_look_up(answer, PROMPT) == ["KSampler"]
    nearest = "    Did you mean euler_17, euler_"
    for spec in ([OPTIONS, {"tooltip": "x"}], [OPTIONS], ["COMBO", {"options": OPTIONS}]):
        for group in ("required", "optional"):
            known = {"KSampler": {"input": {group: {"sampler_name": spec}}}}
            line, hint = explained(answer, PROMPT, known)
            assert line == AT + 'sampler_name = "euler_17" is not one of the server\'s options.'
            assert hint.startswith(nearest) and hint.endswith("?") and hint.count("euler") == 3


def test_the_class_of_a_node_that_the_answer_does_not_name_comes_from_the_prompt() -> None:
    item = {"type": "value_not_in_list", "extra_info": {"input_name": "sampler_name"}}
    answer = {"node_errors": {"2": {"errors": [item]}, "99": {"errors": [item]}}}
    assert classes_to_look_up(answer, PROMPT) == ["KSampler"]


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("steps", DeclaredInput("INT", {"min": 1})),
        ("mask", DeclaredInput("MASK")),
        ("absent", DeclaredInput()),
        ("broken", DeclaredInput()),
    ],
)
def test_the_declaration_of_an_input(name: str, spec: DeclaredInput) -> None:
    declared = {"required": {"steps": ["INT", {"min": 1}], "broken": None}, "optional": {"mask": ["MASK"]}}
    assert input_spec({"KSampler": {"input": declared}}, "KSampler", name) == spec


@pytest.mark.parametrize(
    "object_info", [{}, {"KSampler": {}}, {"KSampler": None}, {"KSampler": {"input": {"required": []}}}]
)
def test_an_input_of_a_class_that_is_not_known_has_no_declaration(object_info: Json) -> None:
    assert input_spec(object_info, "KSampler", "steps") == DeclaredInput()


@pytest.mark.parametrize(
    ("declared", "input_type", "choices"),
    [
        ([["a", "b"], {"default": "a"}], "COMBO", ["a", "b"]),
        ([["a"]], "COMBO", ["a"]),
        ([[]], "COMBO", []),
        (["COMBO", {"options": ["a", 1]}], "COMBO", ["a", 1]),
        (["COMBO", {"remote": {}}], "COMBO", None),
        (["COMBO", {"remote": {}, "options": ["a"]}], "COMBO", None),
        (["COMBO", {"options": 1}], "COMBO", None),
        (["COMBO"], "COMBO", None),
        (["INT", {}], "INT", None),
        ([], "", None),
    ],
)
def test_the_choices_of_a_combo_in_both_forms(declared: List[Any], input_type: str, choices: Any) -> None:
    spec = parse_spec(declared)
    assert (spec.type, spec.choices) == (input_type, choices)


def test_the_options_most_like_the_value_come_first() -> None:
    files = ["anime.safetensors", "SDXL_base.safetensors", "sd_xl_base_0.9.safetensors", "vae.pt"]
    assert nearest_first("sd_xl_base_1.0.safetensors", files, shown=2) == (
        "sd_xl_base_0.9.safetensors, SDXL_base.safetensors, 2 more"
    )


def test_options_that_are_not_strings_are_shown_as_they_are_and_cleaned() -> None:
    assert nearest_first(2, [1, 2, True, "a\x1b[31m\nb"]) == "2, 1, True, a b"
    assert nearest_first(None, []) == ""


def test_eight_options_are_shown_and_no_more_when_there_are_eight() -> None:
    assert nearest_first("x", list("abcdefgh")).count(",") == 7 and "more" not in nearest_first("x", "abcdefgh")
    assert nearest_first("x", "abcdefghi").endswith(", 1 more")


def test_the_right_one_is_found_among_thousands() -> None:
    files = ["model_%05d_%s.safetensors" % (number, "x" * (number % 40)) for number in range(10000)]
    text = nearest_first("model_4242_xx.safetensors", files)
    assert text.startswith("model_04242_xx.safetensors, model_") and text.endswith(", 9992 more")


#: What difflib calls once for each pair of names.
COMPARISONS = ("quick_ratio", "ratio")


def test_names_are_compared_up_to_a_bound_and_the_nearest_is_found() -> None:
    names = [f"Some custom node number {number} of a long list" for number in range(20000)]
    with count_calls(*COMPARISONS) as calls:
        text = nearest_first("some custom node nr 17321", names)
    assert text.startswith("Some custom node number 17321 of a long list, ") and text.endswith(", 19992 more")
    assert 0 < calls["quick_ratio"] <= 2000 and 0 < calls["ratio"] <= 50


def test_only_the_beginning_of_a_name_is_compared() -> None:
    with count_calls("find_longest_match") as calls:
        nearest_first("abc " * 500000, ["abd " * 500000, "x"])
    assert calls["find_longest_match"] < 1000


def test_the_nearest_options_are_looked_for_in_the_first_problems_alone() -> None:
    known = {"KSampler": {"input": {"required": {"sampler_name": [OPTIONS * 10]}}}}
    prompt = {str(number): node("KSampler", sampler_name=f"euler_x{number}") for number in range(2000)}
    item = {"type": "value_not_in_list", "extra_info": {"input_name": "sampler_name"}}
    answer = {"node_errors": {node_id: {"errors": [item]} for node_id in prompt}}
    with count_calls(*COMPARISONS) as calls:
        problems = explain_answer(answer, prompt, known)
    assert len(problems) == 2000
    assert calls["quick_ratio"] <= 50 * 300
    assert problems[49].hints[0].startswith("Did you mean euler_")
    assert problems[50].hints == ("The server has 300 options to choose from.",)


# ------------------------------------------------------------------------------------------------
# A node that raised
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_a_recorded_failure_in_words(version: str) -> None:
    (answer,) = answers(version, "node_error", "GET /history/")
    ((_, entry),) = answer.body.items()
    (failure,) = (data for kind, data in entry["status"]["messages"] if kind == "execution_error")
    problem = explain_failure(failure, entry["prompt"][2])
    assert problem == Problem("ValueError", "boom", "2", "Fail (test)", "FailNode")
    lines = traceback_lines(failure)
    assert lines[0].startswith("  (") and lines[0].endswith(" left out: --verbose shows all)")
    assert lines[1].startswith('  File "/') and "raise ValueError" in lines[-1]
    assert not [line for line in lines if not line.strip(" ^~")]


@pytest.mark.parametrize(
    ("failure", "problem"),
    [
        ({}, Problem("an error", "(no message)")),
        (
            {"node_id": "2", "exception_type": "torch.OutOfMemoryError", "exception_message": "Allocation failed\n\n"},
            Problem(
                "OutOfMemoryError", "Allocation failed", "2", "Sampler", "KSampler",
                hints=(MEMORY_HINT,),
            ),
        ),
        (
            {"node_id": "2", "exception_type": "RuntimeError", "exception_message": "CUDA Out Of Memory: tried 5 GiB"},
            Problem(
                "RuntimeError", "CUDA Out Of Memory: tried 5 GiB", "2", "Sampler", "KSampler",
                hints=(MEMORY_HINT,),
            ),
        ),
        (
            {"node_id": "2.0.0.1", "node_type": "Inner", "exception_type": "ValueError", "exception_message": "a\nb"},
            Problem("ValueError", "a\nb", "2.0.0.1", "Sampler", "Inner"),
        ),
        (
            {"node_id": "2", "exception_type": "a\x1b[31mb", "exception_message": "\x1b[2J\x07red"},
            Problem("ab", "red", "2", "Sampler", "KSampler"),
        ),
    ],
)  # fmt: skip
def test_a_node_that_raised(failure: Json, problem: Problem) -> None:
    assert explain_failure(failure, PROMPT) == problem


FRAMES = [
    '  File "/ComfyUI/execution.py", line 1, in a\n    await b()\n          ^^^\n',
    '  File "/ComfyUI/nodes.py", line 2, in b\n    c()\n    ~^^\n',
    '  File "/ComfyUI/\x1b[31mcustom.py", line 3, in c\n    raise ValueError\n\n',
]


def test_the_last_frames_of_a_traceback_say_most() -> None:
    assert traceback_lines({"traceback": FRAMES}) == [
        "  (1 frame left out: --verbose shows all)",
        '  File "/ComfyUI/nodes.py", line 2, in b',
        "    c()",
        '  File "/ComfyUI/custom.py", line 3, in c',
        "    raise ValueError",
    ]
    assert traceback_lines({"traceback": FRAMES}, 1)[0] == "  (2 frames left out: --verbose shows all)"


def test_verbose_shows_the_whole_traceback() -> None:
    assert traceback_lines({"traceback": FRAMES}, None) == [
        '  File "/ComfyUI/execution.py", line 1, in a',
        "    await b()",
        '  File "/ComfyUI/nodes.py", line 2, in b',
        "    c()",
        '  File "/ComfyUI/custom.py", line 3, in c',
        "    raise ValueError",
    ]


@pytest.mark.parametrize("failure", [{}, {"traceback": None}, {"traceback": "text"}, {"traceback": []}])
def test_a_failure_without_traceback(failure: Json) -> None:
    assert traceback_lines(failure) == []


@few
@given(
    st.dictionaries(
        st.sampled_from(["node_id", "node_type", "exception_type", "exception_message", "traceback"]), anything
    )
)
def test_any_failure_can_be_explained(failure: Json) -> None:
    problem = explain_failure(failure, PROMPT)
    report: Json = {**problem_report(problem), "event": "failure", "traceback": traceback_lines(failure)}
    assert problem.message and all("\n" not in text for _, text in describe(report))


# ------------------------------------------------------------------------------------------------
# Outputs that will not come
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_the_answer_names_the_outputs_that_will_not_run(version: str) -> None:
    assert dropped_outputs(refused(version, "one output good, one bad: accepted in part")[0]) == {"77"}


@pytest.mark.parametrize(
    ("answer", "dropped"),
    [
        ({}, set()),
        ({"node_errors": {}}, set()),
        ({"node_errors": {"1": {"dependent_outputs": ["7", 9]}, "2": {"dependent_outputs": ["7"]}}}, {"7", "9"}),
        ({"node_errors": {"1": {"dependent_outputs": None}, "2": None, "3": {}}}, set()),
        ({"node_errors": []}, set()),
    ],
)
def test_outputs_that_depend_on_a_bad_node_are_dropped(answer: Json, dropped: Any) -> None:
    assert dropped_outputs(answer) == dropped
