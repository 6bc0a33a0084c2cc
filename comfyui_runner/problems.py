"""ComfyUI's validation and execution errors in words.

What POST /prompt answers to a prompt that it refuses: ``{"error": {type, message, details,
extra_info}, "node_errors": {node_id: {"errors": [...], "dependent_outputs": [...]}}}``
(execution.py's validate_prompt(); docs/COMFYUI_API.md).
"""

from __future__ import annotations

import re
from typing import Any, Callable, Dict, FrozenSet, List, Mapping, NamedTuple, Optional, Tuple

from comfyui_runner.documents import EXPORT_REMEDY
from comfyui_runner.nodes import (
    DeclaredInput,
    class_of,
    has_slot,
    input_spec,
    inputs_of,
    is_link,
    node_in_words,
    node_title,
    outputs_of,
    parse_spec,
)
from comfyui_runner.text import JsonObject, as_dict, as_list, clean, one_line, plain_json, plural
from comfyui_runner.values import describe_fault, describe_type


class Problem(NamedTuple):
    """One thing that is wrong with a prompt, or with a node that ran."""

    type: str  # ComfyUI's error type
    message: str  # a sentence, without the node
    node_id: str = ""
    title: str = ""
    class_type: str = ""
    input: str = ""
    value: Any = None
    hints: Tuple[str, ...] = ()  # what is allowed, what to do


INSTALL_HINT = (
    "Install the custom node that has it (ComfyUI-Manager: Install Missing Custom Nodes), "
    "then restart ComfyUI."
)
#: The nearest options are looked for in this many problems of one answer: nobody reads more.
PROBLEMS_WITH_NEAREST = 50

#: Errors of a whole prompt that say no more than that it is refused.
TYPES_WITHOUT_A_REASON = ("unknown", "prompt_outputs_failed_validation")

CONNECT_HINT = "Connect it again, or export the workflow again."

#: In what a partner node raises without a valid key (ComfyUI, comfy_api_nodes/util/client.py,
#: _friendly_http_message(); in older versions comfy_api_nodes/apis/client.py).
LOGIN_ERROR = "Please login first to use this node"
LOGIN_HINT = (
    "The node costs credits of a Comfy account. Set the environment variable COMFY_API_KEY to a "
    "key from https://platform.comfy.org, and run it again. If it is set, check the key."
)

# -- an answer to POST /prompt ---------------------------------------------------------------------


def classes_to_look_up(answer: JsonObject, prompt: JsonObject) -> List[str]:
    """The classes whose object_info is needed to explain ``answer`` (a body of POST /prompt)."""
    error = as_dict(answer.get("error"))
    is_about_a_class = error.get("type") == "missing_node_type" or (
        error.get("type") == "invalid_prompt" and not answer.get("node_errors")
    )
    if is_about_a_class:  # the server names only the first class that it does not have
        return sorted({class_of(prompt, node_id) for node_id in prompt} - {""})

    wanted = set()
    for _, class_type, item in _node_errors(answer, prompt):
        # ComfyUI leaves lists of more than 20 options out of its answer.
        extra = as_dict(item.get("extra_info"))
        if item.get("type") == "value_not_in_list" and not extra.get("input_config"):
            wanted.add(class_type)
    return sorted(wanted - {""})


def explain_answer(
    answer: JsonObject, prompt: JsonObject, object_info: JsonObject
) -> List[Problem]:
    """Everything that a body of POST /prompt says is wrong, old forms and new, nothing left out.

    ``object_info`` has what the server answered about ``classes_to_look_up()``; an empty definition
    means that the server does not have the class.
    """
    problems: List[Problem] = []
    for node_id, class_type, item in _node_errors(answer, prompt):
        node_error = _read_node_error(item, node_id, class_type, prompt, object_info)
        names_nearest = len(problems) < PROBLEMS_WITH_NEAREST
        problems.append(_explain_node_error(node_error._replace(names_nearest=names_nearest)))
    error = answer.get("error")
    if error and not problems:
        return explain_prompt_error(error, prompt, object_info)
    return problems


def _node_errors(answer: JsonObject, prompt: JsonObject) -> List[Tuple[str, str, Dict[str, Any]]]:
    """The node_id, the class_type and the error, of each error of a node."""
    errors = []
    for node_id, value in as_dict(answer.get("node_errors")).items():
        node = as_dict(value)
        class_type = str(node.get("class_type") or class_of(prompt, node_id))
        for item in as_list(node.get("errors")):
            errors.append((str(node_id), class_type, as_dict(item)))
    return errors


def dropped_outputs(answer: JsonObject) -> FrozenSet[str]:
    """The output nodes that a body of POST /prompt says will not run."""
    return frozenset(
        str(node_id)
        for node in as_dict(answer.get("node_errors")).values()
        for node_id in as_list(as_dict(node).get("dependent_outputs"))
    )


# -- errors of the whole prompt --------------------------------------------------------------------

_PROMPT_HINTS: Mapping[str, Tuple[str, ...]] = {
    "prompt_no_outputs": (
        "Nothing in it saves or shows a result: "
        "add an output node, such as Save Image, and connect it.",
    ),
    "no_prompt": (EXPORT_REMEDY,),
}


def explain_prompt_error(
    error: object, prompt: JsonObject, object_info: JsonObject
) -> List[Problem]:
    """The ``error`` of an answer, for want of errors of single nodes."""
    if not isinstance(error, dict):  # of an old server, or of a proxy before it
        return [Problem("unknown", one_line(error, 500))]
    missing = find_missing_classes(prompt, object_info)
    if missing:
        return missing

    error_type = str(error.get("type") or "unknown")
    message = one_line(error.get("message") or "ComfyUI gave no reason", 500)
    node_id = _node_of_prompt_error(error)
    if node_id and error_type in ("missing_node_type", "invalid_prompt"):
        hint = INSTALL_HINT
        if not class_of(prompt, node_id):
            hint = EXPORT_REMEDY
        return [_problem_of_node(error_type, message, prompt, node_id)._replace(hints=(hint,))]

    details = one_line(error.get("details") or "", 500)
    hints = _PROMPT_HINTS.get(error_type, ())
    return [Problem(error_type, _sentence(message, details), hints=hints)]


def _problem_of_node(error_type: str, message: str, prompt: JsonObject, node_id: str) -> Problem:
    title, class_type = node_title(prompt, node_id), class_of(prompt, node_id)
    return Problem(error_type, message, node_id, title, class_type)


def find_missing_classes(prompt: JsonObject, object_info: JsonObject) -> List[Problem]:
    """A problem for each node whose class the server does not have: its definition is empty."""
    problems = []
    for node_id in prompt:
        class_type = class_of(prompt, node_id)
        if object_info.get(class_type) == {}:
            message = f"the server does not have the class {one_line(class_type, 80)}."
            problem = _problem_of_node("missing_node_type", message, prompt, node_id)
            problems.append(problem._replace(hints=(INSTALL_HINT,)))
    return problems


def _node_of_prompt_error(error: JsonObject) -> str:
    node_id = as_dict(error.get("extra_info")).get("node_id")
    if node_id:
        return str(node_id)
    # Older servers name it in the details alone: Node ID '#99'
    match = re.search(r"#([^']+)'", str(error.get("details")))
    if match is None:
        return ""
    return match.group(1)


def _sentence(message: str, details: str) -> str:
    if details and details != message:
        message = f"{message}: {details}"
    return message.rstrip(".") + "."


# -- errors of a node ------------------------------------------------------------------------------


class _NodeError(NamedTuple):
    """One error of a node, cleaned, and what is known about the input that it is about."""

    problem: Problem  # without a message
    message: str
    details: str
    extra: JsonObject
    spec: DeclaredInput
    prompt: JsonObject
    object_info: JsonObject
    names_nearest: bool = True

    def to_problem(self, message: str, *hints: str) -> Problem:
        """The problem with its words."""
        return self.problem._replace(message=message, hints=hints)


def _read_node_error(
    item: JsonObject,
    node_id: str,
    class_type: str,
    prompt: JsonObject,
    object_info: JsonObject,
) -> _NodeError:
    error_type = str(item.get("type"))
    extra = as_dict(item.get("extra_info"))
    name = one_line(extra.get("input_name") or "", 80)
    value = extra.get("received_value", inputs_of(prompt, node_id).get(name))
    spec = parse_spec(extra.get("input_config"))
    if not spec.type:
        spec = input_spec(object_info, class_type, name)

    problem = Problem(
        error_type,
        message="",
        node_id=node_id,
        title=node_title(prompt, node_id),
        class_type=class_type,
        input=name,
        value=value,
    )
    return _NodeError(
        problem,
        message=one_line(item.get("message") or "it is wrong", 300),
        details=one_line(item.get("details") or "", 500),
        extra=extra,
        spec=spec,
        prompt=prompt,
        object_info=object_info,
    )


def _explain_node_error(error: _NodeError) -> Problem:
    explain = _EXPLAINERS.get(error.problem.type, _explain_other_error)
    problem = explain(error)
    return problem._replace(value=plain_json(problem.value))


def _explain_missing_input(error: _NodeError) -> Problem:
    name = error.problem.input or error.details
    problem = error.to_problem(
        f"the input {name} is missing.", "Give it a value or a link, or export the workflow again."
    )
    return problem._replace(input=name)


def _explain_value(error: _NodeError) -> Problem:
    problem = error.problem
    fault = describe_fault(
        problem.type,
        error.spec,
        problem.input,
        problem.value,
        names_nearest=error.names_nearest,
    )
    return error.to_problem(fault.message, *fault.hints)


def _explain_mismatch(error: _NodeError) -> Problem:
    name, wanted = error.problem.input, describe_type(error.spec)
    received = one_line(error.extra.get("received_type"), 40)
    link = as_list(error.extra.get("linked_node")) or [""]
    node = node_in_words(error.prompt, str(link[0]))
    return error.to_problem(
        f"{name} needs {wanted}, but {node} gives {received}.",
        "Connect it to an output of the right type.",
    )


def _explain_bad_link(error: _NodeError) -> Problem:
    name = error.problem.input or error.details
    return error.to_problem(f"{name} is a list, but not a link ([node_id, slot]).")


def _explain_exception(error: _NodeError) -> Problem:
    """ComfyUI follows links unchecked (validate_inputs() in execution.py): a broken one raises."""
    inputs = inputs_of(error.prompt, error.problem.node_id)
    links = {name: value for name, value in inputs.items() if is_link(value)}
    broken = [name for name, link in links.items() if link[0] not in error.prompt]
    broken += _links_beyond_outputs(links, error.prompt, error.object_info)
    if not broken:
        return _explain_other_error(error)

    name = error.problem.input
    if name not in broken:
        name = broken[0]
    source, slot = links[name]
    if source in error.prompt:
        node = node_in_words(error.prompt, str(source))
        message = f"{name} links to output {slot} of {node}, which has no such output."
    elif str(source) in error.prompt:
        message = f'the link of {name} must name its node as a string: "{source}", not {source}.'
    else:
        message = f"{name} links to node {one_line(source, 40)}, which is not in the workflow."
    problem = error.to_problem(message, CONNECT_HINT)
    return problem._replace(input=name, value=links[name])


def _explain_custom_validation(error: _NodeError) -> Problem:
    """A class has its own VALIDATE_INPUTS; LoadImage's says ``Invalid image file: cat.png``."""
    if "Invalid" not in error.details or "file" not in error.details:
        return _explain_other_error(error)
    reason = error.details.partition(" - ")[2] or error.details
    message = f"{error.problem.input}: {reason}."
    value = str(error.problem.value)
    if value.endswith(" [output]"):
        return error.to_problem(
            message,
            "ComfyUI looks for it in its output folder: first run the workflow that makes it, or "
            "name a file in that folder.",
        )
    if value.endswith(" [temp]"):
        return error.to_problem(
            message,
            "ComfyUI looks for it in its temp folder, which it empties when it starts: run the "
            "workflow that makes it again, or name another file.",
        )
    return error.to_problem(
        message, "Upload the file to ComfyUI's input folder, or name a file in that folder."
    )


def _explain_other_error(error: _NodeError) -> Problem:
    return error.to_problem(_sentence(error.message, error.details))


def _explain_cycle(error: _NodeError) -> Problem:
    return error.to_problem(
        f"its links go in a circle: {error.details}.", "Remove one of these links."
    )


_EXPLAINERS: Mapping[str, Callable[[_NodeError], Problem]] = {
    "dependency_cycle": _explain_cycle,
    "required_input_missing": _explain_missing_input,
    "value_smaller_than_min": _explain_value,
    "value_bigger_than_max": _explain_value,
    "value_not_in_list": _explain_value,
    "invalid_input_type": _explain_value,
    "return_type_mismatch": _explain_mismatch,
    "bad_linked_input": _explain_bad_link,
    "exception_during_validation": _explain_exception,
    "exception_during_inner_validation": _explain_exception,
    "custom_validation_failed": _explain_custom_validation,
}


def _links_beyond_outputs(
    links: JsonObject, prompt: JsonObject, object_info: JsonObject
) -> List[str]:
    """The names of the inputs whose links lead to an output that the other node does not have."""
    beyond = []
    for name, (source, slot) in links.items():
        outputs = outputs_of(prompt, str(source), object_info)
        if outputs is not None and not has_slot(outputs, slot):
            beyond.append(name)
    return beyond


# -- a node that raised ----------------------------------------------------------------------------


def explain_failure(failure: JsonObject, prompt: JsonObject) -> Problem:
    """The node that raised, from the data of ``execution_error`` (also in history)."""
    node_id = str(failure.get("node_id", ""))
    exception = one_line(failure.get("exception_type") or "an error", 100)
    message = clean(failure.get("exception_message") or "").strip() or "(no message)"
    hints: Tuple[str, ...] = ()
    if "OutOfMemory" in exception or "out of memory" in message.lower():
        hints = (
            "The device has too little memory: "
            "use a smaller image or batch, or start ComfyUI with --lowvram.",
        )
    elif LOGIN_ERROR in message:
        hints = (LOGIN_HINT,)
    title = node_title(prompt, node_id) if node_id else ""
    class_type = one_line(failure.get("node_type") or class_of(prompt, node_id), 80)
    short_name = exception.rpartition(".")[2]
    return Problem(short_name, message, node_id, title, class_type, hints=hints)


def traceback_lines(failure: JsonObject, frames: Optional[int] = 2) -> List[str]:
    """The last ``frames`` frames of a node's traceback (None: all), as lines."""
    entries = [clean(entry).rstrip("\n") for entry in as_list(failure.get("traceback"))]
    lines, omitted = [], 0
    if frames is not None and frames < len(entries):
        omitted = len(entries) - frames
        lines.append(f"  ({plural(omitted, 'frame')} left out: --verbose shows all)")
    for entry in entries[omitted:]:
        # Python underlines what raised with "~~~^^^^".
        lines.extend(line for line in entry.split("\n") if line.strip(" ^~"))
    return lines
