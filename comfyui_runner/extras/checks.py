"""What can be set in a prompt, and everything that object_info says is wrong with it."""

from __future__ import annotations

import json
from typing import (
    Any,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

from comfyui_runner.layout import cut, pad, width_of
from comfyui_runner.nodes import (
    SAMPLING_INPUTS,
    TEXT_INPUT_NAMES,
    DeclaredInput,
    InputRef,
    class_of,
    describe_node,
    find_cycle,
    has_slot,
    input_specs,
    inputs_of,
    is_link,
    is_seed,
    outputs_of,
    spec_of,
    upstream,
)
from comfyui_runner.problems import (
    Problem,
    explain_answer,
    explain_prompt_error,
    find_missing_classes,
)
from comfyui_runner.prompt_texts import prompt_texts
from comfyui_runner.reports import Line
from comfyui_runner.text import JsonObject, as_dict, one_line, plain_json
from comfyui_runner.upload_inputs import upload_inputs
from comfyui_runner.values import describe_range, find_fault, type_of_input

# -- what is wrong ---------------------------------------------------------------------------------


def check_prompt(prompt: JsonObject, object_info: JsonObject) -> List[Problem]:
    """Everything that ``object_info`` says is wrong, in the words for the server's own answers.

    Classes that the server does not have ({}), missing inputs, links, values. What cannot be known
    from the definitions is left to the server.
    """
    problems = find_missing_classes(prompt, object_info)
    ends = [node_id for node_id in prompt if _may_be_output(class_of(prompt, node_id), object_info)]
    needed = upstream(prompt, ends or prompt)  # ComfyUI does not look at anything else
    errors = {}
    for node_id in prompt:
        if node_id in needed:
            errors_of_node = list(_input_errors(prompt, node_id, object_info))
            errors[node_id] = {"errors": errors_of_node}
    cycle = find_cycle(prompt, ends or prompt)
    if cycle:
        errors[cycle[0]]["errors"].append(_cycle_error(cycle, prompt))
    problems += explain_answer({"node_errors": errors}, prompt, object_info)
    if not ends:
        no_outputs = {"type": "prompt_no_outputs", "message": "Prompt has no outputs"}
        problems += explain_prompt_error(no_outputs, prompt, {})
    return problems


def _cycle_error(cycle: Sequence[str], prompt: JsonObject) -> Dict[str, Any]:
    """The error of links that go in a circle, as newer servers report it.

    ComfyUI 0.3.64 refuses such a prompt without a reason.
    """
    names = [f"{node_id} ({class_of(prompt, node_id)})" for node_id in [*cycle, cycle[0]]]
    return {"type": "dependency_cycle", "details": " -> ".join(names)}


def _may_be_output(class_type: str, object_info: JsonObject) -> bool:
    definition = as_dict(object_info.get(class_type))
    return not definition or bool(definition.get("output_node"))


def _input_errors(
    prompt: JsonObject, node_id: str, object_info: JsonObject
) -> Iterator[Dict[str, Any]]:
    """What ComfyUI's validate_inputs() (execution.py) would say about the inputs of one node."""
    inputs = inputs_of(prompt, node_id)
    for group in ("required", "optional"):
        specs = input_specs(object_info, class_of(prompt, node_id), group)
        for name, spec in specs.items():
            if spec.type.startswith("COMFY_"):
                continue  # a dynamic input: its names and types depend on its value
            error_type: Optional[str] = None
            extra: JsonObject = {}
            if name in inputs:
                error_type, extra = _find_error(inputs[name], spec, prompt, object_info)
            elif group == "required":
                error_type = "required_input_missing"
            if error_type is not None:
                yield {"type": error_type, "extra_info": {"input_name": name, **extra}}


def _find_error(
    value: Any, spec: DeclaredInput, prompt: JsonObject, object_info: JsonObject
) -> Tuple[Optional[str], JsonObject]:
    """The type of the error in an input, None if there is none, and its ``extra_info``."""
    if is_link(value):
        return _find_link_error(value, spec, prompt, object_info)
    if isinstance(value, list):
        return "bad_linked_input", {"received_value": value}
    if isinstance(value, dict) and "__value__" in value:
        value = value["__value__"]  # so the frontend sends a list that is not a link
    return find_fault(spec, value), {"received_value": value}


def _find_link_error(
    link: Sequence[Any], spec: DeclaredInput, prompt: JsonObject, object_info: JsonObject
) -> Tuple[Optional[str], JsonObject]:
    source, slot = link
    outputs = outputs_of(prompt, str(source), object_info)
    if source not in prompt:
        return "exception_during_inner_validation", {}
    if outputs is None:  # its definition is not known
        return None, {}
    if not has_slot(outputs, slot):
        return "exception_during_inner_validation", {}
    if _types_fit(outputs[slot], spec.type):
        return None, {}
    return "return_type_mismatch", {"received_type": outputs[slot], "linked_node": link}


def _types_fit(received: Any, wanted: str) -> bool:
    """Whether ComfyUI's validate_node_input() (comfy_execution/validation.py) may link the two."""
    if not isinstance(received, str) or not wanted:
        return True
    if "*" in (received, wanted) or "COMBO" in (received, wanted):
        return True
    if received.startswith("COMFY_"):
        return True
    # An output or an input may have several types: "INT,FLOAT".
    received_types = {name.strip() for name in received.split(",")}
    wanted_types = {name.strip() for name in wanted.split(",")}
    return not received_types.isdisjoint(wanted_types)


#: Columns of the table of --inputs where no terminal says how many there are.
WIDTH_OF_TABLE = 120

#: Columns of a name and of a type at most.
MOST_OF_NAME = 40
MOST_OF_TYPE = 12

#: Columns of a value at least, and those that it takes beside a range.
LEAST_OF_VALUE = 16
VALUE_WIDTH = 8

#: Columns that a range needs to be below its value, instead of further to the left.
ROOM_FOR_RANGE = 40

#: Options that the table lists of an input, and characters of each.
LISTED_OPTIONS = 4
LONGEST_LISTED_OPTION = 30

# -- what can be set -------------------------------------------------------------------------------


class _Settable(NamedTuple):
    """An input that has a value, not a link."""

    ref: InputRef
    value: Any
    spec: DeclaredInput
    type: str  # declared, else guessed from the value; "" where neither is possible

    def describe(self, prompt: JsonObject) -> Dict[str, Any]:
        """What --inputs and GET /workflow both say about it."""
        return {
            **describe_node(prompt, self.ref.node_id),
            "input": self.ref.input,
            "value": plain_json(self.value),
            "min": self.spec.options.get("min"),
            "max": self.spec.options.get("max"),
        }


def _settable_inputs(prompt: JsonObject, object_info: JsonObject) -> Iterator[_Settable]:
    for node_id in prompt:
        for name, value in inputs_of(prompt, node_id).items():
            if is_link(value):
                continue
            ref = InputRef(node_id, str(name))
            spec = spec_of(prompt, ref, object_info)
            yield _Settable(ref, value, spec, type_of_input(spec, value))


def describe_inputs(prompt: JsonObject, object_info: JsonObject) -> List[Dict[str, Any]]:
    """What can be set, in the order of the workflow: the rows of --inputs (docs/JSON.md)."""
    return [
        {
            **settable.describe(prompt),
            "type": settable.type or "?",
            "options": settable.spec.choices,
        }
        for settable in _settable_inputs(prompt, object_info)
    ]


def inputs_table(rows: Sequence[JsonObject], columns: int = 0) -> List[Line]:
    """``describe_inputs()`` for people, at most ``columns`` wide (0: any width).

    A node, then for each input what to write after --set, its type, its value and its range. What
    has no room beside the value goes below it.
    """
    columns = columns or WIDTH_OF_TABLE
    names = [one_line(f"{row['node_id']}.{row['input']}", MOST_OF_NAME) for row in rows]
    types = [one_line(row["type"], MOST_OF_TYPE) for row in rows]
    name_width = max(map(width_of, names), default=0)
    type_width = max(map(width_of, types), default=0)
    begin = len("  ") + name_width + len("  ") + type_width + len("  ")
    room = max(columns - begin, LEAST_OF_VALUE)
    begin_of_range_below = len("    ")
    if room >= ROOM_FOR_RANGE:
        begin_of_range_below = begin

    lines: List[Line] = []
    node_id = None
    for row, name, input_type in zip(rows, names, types):
        if row["node_id"] != node_id:
            if lines:
                lines.append(("", ""))
            lines.append(("bold", cut(_name_of_table(row), columns)))
            node_id = row["node_id"]
        line = f"  {pad(name, name_width)}  {pad(input_type, type_width)}  "
        value = cut(one_line(json.dumps(row["value"], ensure_ascii=False)), room)
        allowed = _allowed_values(row)
        value_width = max(width_of(value), VALUE_WIDTH)
        fits_beside = value_width + len("  ") + width_of(allowed) <= room
        if fits_beside or not allowed:
            lines.append(("", f"{line}{pad(value, VALUE_WIDTH)}  {allowed}".rstrip()))
            continue
        lines.append(("", line + value))
        indented = " " * begin_of_range_below + cut(allowed, columns - begin_of_range_below)
        lines.append(("dim", indented))
    return lines


def _name_of_table(row: JsonObject) -> str:
    """The heading of a node's inputs."""
    if row["class_type"] in ("", row["title"]):
        return str(row["title"])
    return f"{row['title']} ({row['class_type']})"


def _allowed_values(row: JsonObject) -> str:
    options = row["options"]
    if options is None:
        return describe_range(row["min"], row["max"])
    listed = [one_line(option, LONGEST_LISTED_OPTION) for option in options[:LISTED_OPTIONS]]
    if len(options) > LISTED_OPTIONS:
        listed.append("…")
    return f"one of {len(options)}: {', '.join(listed)}"


# -- the form of the web page ----------------------------------------------------------------------

_FIELD_KINDS = {"INT": "int", "FLOAT": "float", "BOOLEAN": "toggle", "STRING": "text"}

#: Kinds of fields in the order to show them; all others follow.
_FIELD_ORDER = ("text", "model", "upload", "seed")

#: The roles of fields in the order to show them; most have none.
_ROLE_ORDER = ("positive", "negative", "")

#: The inputs that name the model of a workflow: shown with its texts.
_MODEL_INPUTS = ("ckpt_name", "unet_name")

_IMPORTANT_INPUTS = (*SAMPLING_INPUTS, *_MODEL_INPUTS, "width", "height", "length")

#: So many options of a field are sent; more would make the page slow.
_OPTIONS_SENT = 2000


def form_fields(
    prompt: JsonObject, object_info: JsonObject, random_inputs: Iterable[InputRef]
) -> List[Dict[str, Any]]:
    """What a person can set, in the order to show it: texts, files, seeds, then the rest.

    The fields of GET /workflow (docs/MIDDLEWARE.md). ``random_inputs`` are drawn for each run.
    """
    roles = _roles_of_texts(prompt)
    uploads = upload_inputs(prompt, object_info)
    drawn = set(random_inputs)
    fields = []
    for settable in _settable_inputs(prompt, object_info):
        if settable.value is None or isinstance(settable.value, (list, dict)):
            continue
        ref = settable.ref
        options = settable.spec.options
        is_declared_multiline = bool(options.get("multiline"))
        is_known = class_of(prompt, ref.node_id) in object_info
        kind = _field_kind(settable)
        if ref in uploads:
            kind = "upload"
        fields.append(
            {
                **settable.describe(prompt),
                "kind": kind,
                "role": roles.get(ref, ""),
                "step": options.get("step"),
                "options": (settable.spec.choices or [])[:_OPTIONS_SENT],
                "media": uploads.get(ref, ""),
                "important": _is_important(settable, kind),
                "random": ref in drawn,
                "multiline": is_declared_multiline or _is_prompt_text(ref, is_known, roles),
            }
        )
    return sorted(fields, key=_place_in_form)


def _roles_of_texts(prompt: JsonObject) -> Dict[InputRef, str]:
    """The inputs of the prompt texts: "positive" or "negative"; one that is both is positive."""
    roles = {}
    for role in ("negative", "positive"):
        for ref in prompt_texts(prompt, role):
            roles[ref] = role
    return roles


def _is_prompt_text(ref: InputRef, is_known: bool, roles: Mapping[InputRef, str]) -> bool:
    """Whether a text has several lines though ComfyUI, which would say so, has not answered yet."""
    return not is_known and ref in roles


def _field_kind(settable: _Settable) -> str:
    if settable.spec.choices:
        return "choice"
    input_type = settable.type
    if input_type not in _FIELD_KINDS:  # of a custom node's own type: the value shows what it is
        input_type = type_of_input(DeclaredInput(), settable.value)
    if input_type == "INT" and is_seed(settable.ref.input, settable.spec):
        return "seed"
    return _FIELD_KINDS.get(input_type, "text")


def _is_important(settable: _Settable, kind: str) -> bool:
    name = settable.ref.input
    if name in _MODEL_INPUTS:
        return True
    if kind == "text":
        is_multiline = bool(settable.spec.options.get("multiline"))
        return is_multiline or bool(TEXT_INPUT_NAMES.search(name))
    return kind in ("upload", "seed") or name in _IMPORTANT_INPUTS


def _place_in_form(field: JsonObject) -> Tuple[bool, int, int]:
    part = field["kind"]
    if field["input"] in _MODEL_INPUTS:
        part = "model"
    place = len(_FIELD_ORDER)
    if part in _FIELD_ORDER:
        place = _FIELD_ORDER.index(part)
    place_of_role = _ROLE_ORDER.index(field["role"])
    return not field["important"], place, place_of_role
