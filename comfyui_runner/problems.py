"""ComfyUI's validation and execution errors in words."""

from __future__ import annotations

import json
import re
from typing import Any, Dict, FrozenSet, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from comfyui_runner.documents import EXPORT_REMEDY
from comfyui_runner.nodes import (
    class_of,
    combo_options,
    input_spec,
    is_link,
    nearest_first,
    node_in_words,
    node_title,
)
from comfyui_runner.text import as_dict, as_list, clean, one_line, plain_json, plural


class Problem(NamedTuple):
    """One thing that is wrong with a prompt, or with a node that ran."""

    type: str  # ComfyUI's error type
    message: str  # a sentence, without node
    node_id: str = ""
    title: str = ""
    class_type: str = ""
    input: str = ""
    value: Any = None
    hints: Tuple[str, ...] = ()  # what is allowed, what to do


INSTALL_HINT = "Install the custom node that has it (ComfyUI-Manager: Install Missing Custom Nodes), restart ComfyUI."

#: Where ComfyUI looks for what a loader's input names (its folder_paths.py).
_MODEL_FOLDERS = {
    "ckpt_name": "checkpoints", "lora_name": "loras", "vae_name": "vae", "unet_name": "diffusion_models",
    "clip_name": "text_encoders", "clip_name1": "text_encoders", "clip_name2": "text_encoders",
    "clip_name3": "text_encoders", "control_net_name": "controlnet", "style_model_name": "style_models",
    "gligen_name": "gligen", "model_name": "upscale_models",
}  # fmt: skip


def classes_to_look_up(answer: Mapping[str, Any], prompt: Mapping[str, Any]) -> List[str]:
    """The classes whose object_info is needed to explain ``answer`` (a body of POST /prompt)."""
    error = as_dict(answer.get("error"))
    if error.get("type") == "missing_node_type" or (
        error.get("type") == "invalid_prompt" and not answer.get("node_errors")
    ):  # the server names only the first class that it does not have
        return sorted({class_of(prompt, node_id) for node_id in prompt} - {""})
    wanted = set()
    for node_id, node in as_dict(answer.get("node_errors")).items():
        for item in as_list(as_dict(node).get("errors")):
            extra = as_dict(as_dict(item).get("extra_info"))
            if as_dict(item).get("type") == "value_not_in_list" and not extra.get("input_config"):
                wanted.add(str(as_dict(node).get("class_type") or class_of(prompt, node_id)))
    return sorted(wanted - {""})


def explain_answer(
    answer: Mapping[str, Any], prompt: Mapping[str, Any], object_info: Mapping[str, Any]
) -> List[Problem]:
    """All that a body of POST /prompt says is wrong, old forms and new, nothing left out.

    ``object_info`` holds what could be had of classes_to_look_up(); an empty answer for a class
    means that the server does not have it.
    """
    problems = []
    for node_id, node in as_dict(answer.get("node_errors")).items():
        for item in as_list(as_dict(node).get("errors")):
            class_type = str(as_dict(node).get("class_type") or class_of(prompt, node_id))
            problems.append(
                _explain_input(as_dict(item), str(node_id), class_type, prompt, object_info)
            )
    error = answer.get("error")
    if error and not problems:
        problems.extend(explain_prompt_error(error, prompt, object_info))
    return problems


def explain_prompt_error(
    error: object, prompt: Mapping[str, Any], object_info: Mapping[str, Any]
) -> List[Problem]:
    if not isinstance(error, dict):
        return [Problem("unknown", one_line(error, 500))]
    kind, message = (
        str(error.get("type") or "unknown"),
        one_line(error.get("message") or "it gave no reason", 500),
    )
    missing = [node_id for node_id in prompt if object_info.get(class_of(prompt, node_id)) == {}]
    if missing:
        return [
            Problem(
                "missing_node_type", "the server does not have the class %s." % one_line(class_of(prompt, node_id), 80),
                node_id, node_title(prompt, node_id), class_of(prompt, node_id), hints=(INSTALL_HINT,),
            )
            for node_id in missing
        ]  # fmt: skip
    extra = as_dict(error.get("extra_info"))
    found = re.search(r"#([^']+)'", str(error.get("details")))
    node_id = str(extra.get("node_id") or (found.group(1) if found else ""))
    if kind in ("missing_node_type", "invalid_prompt") and node_id:
        return [
            Problem(
                kind, message, node_id, node_title(prompt, node_id), class_of(prompt, node_id),
                hints=(INSTALL_HINT,) if class_of(prompt, node_id) else (EXPORT_REMEDY,),
            )
        ]  # fmt: skip
    hints = {
        "prompt_no_outputs": (
            "Nothing in it saves or shows a result: add an output node, such as Save Image, and connect it.",
        ),
        "no_prompt": (EXPORT_REMEDY,),
    }.get(kind, ())
    details = one_line(error.get("details") or "", 500)
    return [Problem(kind, _sentence(message, details), hints=hints)]


def _sentence(message: str, details: str) -> str:
    return (message + (": " + details if details and details != message else "")).rstrip(".") + "."


def _explain_input(
    item: Mapping[str, Any],
    node_id: str,
    class_type: str,
    prompt: Mapping[str, Any],
    object_info: Mapping[str, Any],
) -> Problem:
    kind, extra = str(item.get("type")), as_dict(item.get("extra_info"))
    details, message = (
        one_line(item.get("details") or "", 500),
        one_line(item.get("message") or "it is wrong", 300),
    )
    name = one_line(extra.get("input_name") or "", 80)
    spec = as_list(extra.get("input_config")) or input_spec(object_info, class_type, name)
    options = as_dict(spec[1]) if len(spec) > 1 else {}
    inputs = as_dict(as_dict(prompt.get(node_id)).get("inputs"))
    value = extra["received_value"] if "received_value" in extra else inputs.get(name)
    shown = one_line(json.dumps(value, ensure_ascii=False, default=str), 120)
    hints: List[str] = []
    if kind == "required_input_missing":
        name = name or details
        message = "the input %s is missing." % name
        hints.append("Give it a value or a link, or export the workflow again.")
    elif kind in ("value_smaller_than_min", "value_bigger_than_max"):
        message = "%s = %s is too %s." % (name, shown, "small" if "small" in kind else "big")
        hints.append("Allowed: %s to %s." % (options.get("min", "any"), options.get("max", "any")))
    elif kind == "value_not_in_list":
        message = "%s = %s is not one of the server's options." % (name, shown)
        choices = combo_options(spec)
        folder = _MODEL_FOLDERS.get(name)
        if choices:
            hints.append("Nearest: %s." % nearest_first(value, choices))
        elif choices is not None:
            hints.append("The server has none to choose from.")
        if folder:
            hints.append(
                "%s the file into ComfyUI's models/%s folder."
                % ("Or put" if hints else "Put", folder)
            )
    elif kind == "invalid_input_type":
        message = "%s = %s is not %s." % (name, shown, describe_type(spec))
        hints.append(one_line(extra.get("exception_message") or "", 200))
    elif kind == "return_type_mismatch":
        link = as_list(extra.get("linked_node"))
        source = str(link[0]) if link else ""
        message = "%s needs %s, but %s gives %s." % (
            name, describe_type(spec), node_in_words(prompt, source), one_line(extra.get("received_type"), 40),
        )  # fmt: skip
        hints.append("Connect it to an output of the right type.")
    elif kind == "bad_linked_input":
        message = "%s is a list that is no link ([node, slot])." % (name or details)
    elif kind.startswith("exception_during") and any(
        is_link(v) and v[0] not in prompt for v in inputs.values()
    ):
        broken = {n: v for n, v in inputs.items() if is_link(v) and v[0] not in prompt}
        name = name if name in broken else next(iter(broken))
        link = broken[name]
        if str(link[0]) in prompt:
            message = 'the link of %s must name its node as a text: "%s", not %s.' % (
                name,
                link[0],
                link[0],
            )
        else:
            message = "%s links to node %s, which is not in the workflow." % (
                name,
                one_line(link[0], 40),
            )
        hints.append("Connect it again, or export the workflow again.")
    elif kind.startswith("exception_during") and links_beyond_outputs(inputs, prompt, object_info):
        beyond = links_beyond_outputs(inputs, prompt, object_info)
        name = name if name in beyond else next(iter(beyond))
        value = inputs[name]
        message = "%s links to output %d of %s, which has no such output." % (
            name, value[1], node_in_words(prompt, str(value[0])),
        )  # fmt: skip
        hints.append("Connect it again, or export the workflow again.")
    elif kind == "custom_validation_failed" and "Invalid" in details and "file" in details:
        message = "%s: %s." % (name, details.partition(" - ")[2] or details)
        hints.append("Upload the file to ComfyUI's input folder, or name one that is there.")
    else:
        message = _sentence(message, details)
    return Problem(
        kind, message, node_id, node_title(prompt, node_id), class_type, name, plain_json(value),
        tuple(hint for hint in hints if hint),
    )  # fmt: skip


def links_beyond_outputs(
    inputs: Mapping[str, Any], prompt: Mapping[str, Any], object_info: Mapping[str, Any]
) -> Dict[str, Any]:
    """The links among ``inputs`` that name an output which their node does not have."""
    beyond = {}
    for name, link in inputs.items():
        given = (
            as_dict(object_info.get(class_of(prompt, str(link[0])))).get("output")
            if is_link(link)
            else None
        )
        if isinstance(given, list) and not -len(given) <= link[1] < len(given):
            beyond[name] = link
    return beyond


def describe_type(spec: Sequence[Any]) -> str:
    if not spec:
        return "a value of the right type"
    kind = "a COMBO" if isinstance(spec[0], list) else one_line(spec[0], 60)
    words = {
        "INT": "a whole number (INT)",
        "FLOAT": "a number (FLOAT)",
        "STRING": "a text (STRING)",
    }
    return words.get(kind, kind)


def explain_failure(failure: Mapping[str, Any], prompt: Mapping[str, Any]) -> Problem:
    """The node that raised, from the data of ``execution_error`` (also in history)."""
    node_id = str(failure.get("node_id", ""))
    kind = one_line(failure.get("exception_type") or "an error", 100)
    message = clean(failure.get("exception_message") or "").strip() or "(no message)"
    hints = []
    if "OutOfMemory" in kind or "out of memory" in message.lower():
        hints.append(
            "The device has too little memory: a smaller picture or batch, or --lowvram for ComfyUI."
        )
    title = node_title(prompt, node_id) if node_id else ""
    class_type = one_line(failure.get("node_type") or class_of(prompt, node_id), 80)
    return Problem(kind.rpartition(".")[2], message, node_id, title, class_type, hints=tuple(hints))


def traceback_lines(failure: Mapping[str, Any], frames: Optional[int] = 2) -> List[str]:
    """The last ``frames`` frames of a node's traceback (None: all), one text a line."""
    entries = [clean(entry).rstrip("\n") for entry in as_list(failure.get("traceback"))]
    left_out = 0 if frames is None else max(len(entries) - frames, 0)
    lines = ["  (%s left out: --verbose shows all)" % plural(left_out, "frame")] if left_out else []
    for entry in entries[left_out:]:
        lines.extend(line for line in entry.split("\n") if line.strip(" ^~"))
    return lines


def dropped_outputs(answer: Mapping[str, Any]) -> FrozenSet[str]:
    """The output nodes that a body of POST /prompt says will not run."""
    return frozenset(
        str(node_id)
        for node in as_dict(answer.get("node_errors")).values()
        for node_id in as_list(as_dict(node).get("dependent_outputs"))
    )
