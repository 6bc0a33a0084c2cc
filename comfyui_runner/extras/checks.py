"""What can be set in a prompt, and all that object_info says is wrong with it."""

from __future__ import annotations

import json
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Sequence

from comfyui_runner.edits import prompt_texts, upload_inputs
from comfyui_runner.nodes import (
    SAMPLING_INPUTS,
    TEXT_INPUT_NAMES,
    InputRef,
    class_of,
    combo_options,
    describe_nodes,
    input_spec,
    is_link,
    is_seed,
    upstream,
)
from comfyui_runner.problems import (
    Problem,
    explain_answer,
    explain_prompt_error,
    links_beyond_outputs,
)
from comfyui_runner.reports import Line
from comfyui_runner.text import as_dict, as_list, one_line, plain_json


def describe_inputs(
    prompt: Mapping[str, Any], object_info: Mapping[str, Any]
) -> List[Dict[str, Any]]:
    """What can be set, in the order of the workflow: an input each with its node, type, value and range."""
    rows = []
    for node_id in prompt:
        for name, value in as_dict(prompt[node_id].get("inputs")).items():
            if is_link(value):
                continue
            spec = input_spec(object_info, class_of(prompt, node_id), name)
            options, choices = as_dict(spec[1]) if len(spec) > 1 else {}, combo_options(spec)
            kinds = {bool: "BOOLEAN", int: "INT", float: "FLOAT", str: "STRING"}
            kind = (
                "COMBO"
                if choices is not None
                else str(spec[0])
                if spec
                else kinds.get(type(value), "?")
            )
            rows.append({
                **describe_nodes(prompt, [node_id])[0], "input": str(name), "type": kind, "value": plain_json(value),
                "min": options.get("min"), "max": options.get("max"), "options": choices,
            })  # fmt: skip
    return rows


def check_prompt(prompt: Mapping[str, Any], object_info: Mapping[str, Any]) -> List[Problem]:
    """All that ``object_info`` says is wrong with a prompt, in the words for the server's own answers: classes
    that are missing ({}), inputs, links, values. What cannot be told from it is left to the server."""
    problems = explain_prompt_error({"type": "missing_node_type"}, prompt, object_info)
    problems = [problem for problem in problems if problem.node_id]
    definitions = {
        node_id: as_dict(object_info.get(class_of(prompt, node_id))) for node_id in prompt
    }
    ends = [
        node_id
        for node_id, definition in definitions.items()
        if not definition or definition.get("output_node")
    ]
    needed = upstream(prompt, ends or prompt)  # ComfyUI looks at nothing else
    errors = {
        i: {"errors": list(_input_errors(prompt, i, object_info))} for i in prompt if i in needed
    }
    problems += explain_answer({"node_errors": errors}, prompt, object_info)
    if not ends:
        problems += explain_prompt_error(
            {"type": "prompt_no_outputs", "message": "Prompt has no outputs"}, prompt, {}
        )
    return problems


def _input_errors(
    prompt: Mapping[str, Any], node_id: str, object_info: Mapping[str, Any]
) -> Iterator[Dict[str, Any]]:
    """What ComfyUI's validate_inputs() (execution.py) would say of one node."""
    definition = as_dict(object_info.get(class_of(prompt, node_id)))
    inputs = as_dict(prompt[node_id].get("inputs"))
    for group in ("required", "optional"):
        for name, declared in as_dict(as_dict(definition.get("input")).get(group)).items():
            spec = as_list(declared)
            kind, options = (spec or [""])[0], as_dict(spec[1]) if len(spec) > 1 else {}
            extra: Dict[str, Any] = {"input_name": name, "input_config": spec}
            if isinstance(kind, str) and kind.startswith("COMFY_"):
                continue  # its names and types depend on its value
            if name not in inputs:
                if group == "required":
                    yield {"type": "required_input_missing", "details": name, "extra_info": extra}
                continue
            value = inputs[name]
            if is_link(value):
                given = as_list(
                    as_dict(object_info.get(class_of(prompt, str(value[0])))).get("output")
                )
                received = given[value[1]] if 0 <= value[1] < len(given) else kind
                if value[0] not in prompt or name in links_beyond_outputs(
                    inputs, prompt, object_info
                ):
                    yield {"type": "exception_during_inner_validation", "extra_info": extra}
                elif not _types_fit(received, kind):
                    more = {"received_type": received, "linked_node": value}
                    yield {"type": "return_type_mismatch", "extra_info": {**extra, **more}}
                continue
            if isinstance(value, list):
                yield {
                    "type": "bad_linked_input",
                    "details": name,
                    "extra_info": {**extra, "received_value": value},
                }
                continue
            value = (
                value["__value__"] if isinstance(value, dict) and "__value__" in value else value
            )
            extra["received_value"] = value
            choices = combo_options(spec)
            try:
                value = {"INT": int, "FLOAT": float}.get(str(kind), lambda same: same)(value)
            except (ValueError, TypeError, OverflowError) as error:
                yield {
                    "type": "invalid_input_type",
                    "extra_info": {**extra, "exception_message": str(error)},
                }
                continue
            low, high = options.get("min"), options.get("max")
            if kind in ("INT", "FLOAT") and isinstance(low, (int, float)) and value < low:
                yield {"type": "value_smaller_than_min", "extra_info": extra}
            elif kind in ("INT", "FLOAT") and isinstance(high, (int, float)) and value > high:
                yield {"type": "value_bigger_than_max", "extra_info": extra}
            elif choices is not None and not any(
                key.endswith("_upload") and on for key, on in options.items()
            ):
                wanted = value if isinstance(value, list) else [value]
                listed = isinstance(kind, list) or (
                    "options" in options and "remote" not in options
                )
                if listed and any(item not in choices for item in wanted):
                    yield {"type": "value_not_in_list", "extra_info": extra}


def _types_fit(given: Any, wanted: Any) -> bool:
    """Whether ComfyUI's validate_node_input() (comfy_execution/validation.py) may take one type for another."""
    if not isinstance(given, str) or not isinstance(wanted, str) or "*" in (given, wanted):
        return True
    if given.startswith("COMFY_") or "COMBO" in (given, wanted):
        return True
    return not {name.strip() for name in given.split(",")}.isdisjoint(
        name.strip() for name in wanted.split(",")
    )


def form_fields(
    prompt: Mapping[str, Any], object_info: Mapping[str, Any], random_inputs: Iterable[InputRef]
) -> List[Dict[str, Any]]:
    """What a person can set, in the order to show it: texts, files, seeds, then the rest."""
    roles = {ref: role for role in ("negative", "positive") for ref in prompt_texts(prompt, role)}
    uploads, drawn = upload_inputs(prompt, object_info), set(random_inputs)
    fields = []
    for node_id in prompt:
        class_type = class_of(prompt, node_id)
        for name, value in as_dict(prompt[node_id].get("inputs")).items():
            ref, spec = InputRef(node_id, str(name)), input_spec(object_info, class_type, name)
            if isinstance(value, (list, dict)) or value is None:
                continue
            options, choices = as_dict(spec[1]) if len(spec) > 1 else {}, combo_options(spec)
            kinds = {bool: "toggle", int: "int", float: "float"}
            kind = {"INT": "int", "FLOAT": "float", "BOOLEAN": "toggle"}.get(
                str(spec[0]) if spec else ""
            )
            kind = kind or ("choice" if choices else kinds.get(type(value), "text"))
            kind = (
                "seed"
                if kind == "int" and is_seed(str(name), spec)
                else "upload"
                if ref in uploads
                else kind
            )
            order = {"text": 0, "upload": 1, "seed": 2}.get(kind, 3)
            important = kind in ("upload", "seed") or name in (
                *SAMPLING_INPUTS,
                "width",
                "height",
                "length",
            )
            if kind == "text":
                important = bool(TEXT_INPUT_NAMES.search(str(name)) or options.get("multiline"))
            sort = (
                not important,
                order,
                roles.get(ref, "z") != "positive",
                roles.get(ref, "z") != "negative",
            )
            fields.append((sort, {
                **describe_nodes(prompt, [node_id])[0], "input": name, "kind": kind, "role": roles.get(ref, ""),
                "value": plain_json(value), "min": options.get("min"), "max": options.get("max"),
                "step": options.get("step"), "options": (choices or [])[:2000], "media": uploads.get(ref, ""),
                "important": important, "random": ref in drawn, "multiline": bool(options.get("multiline")),
            }))  # fmt: skip
    return [field for _, field in sorted(fields, key=lambda pair: pair[0])]


def inputs_table(rows: Sequence[Mapping[str, Any]]) -> List[Line]:
    """describe_inputs() for people: what to write after --set, the node, type, value and range."""
    lines: List[Line] = []
    for row in rows:
        allowed = ""
        if row["options"] is not None:
            allowed = "one of %d: %s" % (
                len(row["options"]),
                ", ".join(one_line(o, 30) for o in row["options"][:4]),
            )
            allowed += ", …" if len(row["options"]) > 4 else ""
        elif row["min"] is not None or row["max"] is not None:
            ends = [("any" if end is None else "%s" % end) for end in (row["min"], row["max"])]
            allowed = "%s to %s" % tuple(ends)
        value = one_line(json.dumps(row["value"], ensure_ascii=False), 50)
        name = one_line("%s.%s" % (row["node_id"], row["input"]), 40)
        title = one_line(row["title"], 28)
        lines.append(
            (
                "",
                ("%-28s %-28s %-8s %s" % (name, title, row["type"], value)).ljust(90)
                + "  "
                + allowed,
            )
        )
    return [(style, line.rstrip()) for style, line in lines]
