"""One way to name a node, one to set an input. Every edit returns a copy."""

from __future__ import annotations

import itertools
import json
import re
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
)

from comfyui_runner.documents import Prompt
from comfyui_runner.errors import ExitStatus, RunnerError
from comfyui_runner.nodes import (
    TEXT_INPUT_NAMES,
    InputRef,
    class_of,
    combo_options,
    describe_nodes,
    input_spec,
    is_link,
    is_seed,
    nearest_first,
    node_in_words,
    node_title,
)
from comfyui_runner.problems import describe_type
from comfyui_runner.text import as_dict, as_number, one_line


class EditError(RunnerError):
    """An edit that cannot be made; nothing was changed.

    ``type`` is the reason for programs; ``details`` what could have been meant, or what is wrong.
    """

    exit_status = ExitStatus.USAGE
    http_status = 400

    def __init__(self, type: str, message: str, details: Any = None) -> None:
        super().__init__(message)
        self.type = type
        self.details = details
        if type in ("ambiguous_node", "no_such_text", "no_loader", "linked_input"):
            self.http_status = 409  # the request is right, the workflow is not made for it


def _nodes_called(prompt: Mapping[str, Any], name: str) -> List[str]:
    titled = [i for i in prompt if as_dict(prompt[i].get("_meta")).get("title") == name]
    return (
        [name] if name in prompt else titled or [i for i in prompt if class_of(prompt, i) == name]
    )


def find_node(prompt: Mapping[str, Any], name: str) -> str:
    """The id of the node that ``name`` means: an id, else a title, else a class. Raises EditError."""
    found = _nodes_called(prompt, name)
    quoted = json.dumps(one_line(name, 80), ensure_ascii=False)
    if not found:
        names = (
            {node_title(prompt, i) for i in prompt}
            | {class_of(prompt, i) for i in prompt}
            | set(prompt)
        )
        message = "The workflow has no node %s. Nearest: %s." % (
            quoted,
            nearest_first(name, sorted(names)),
        )
        raise EditError("no_such_node", message, describe_nodes(prompt, prompt))
    if len(found) > 1:
        listed = ", ".join(node_in_words(prompt, i) for i in found[:20])
        message = "%d nodes are called %s: name one by its id. They are: %s." % (
            len(found),
            quoted,
            listed,
        )
        raise EditError("ambiguous_node", message, describe_nodes(prompt, found))
    return found[0]


def check_value(spec: Sequence[Any], name: str, value: Any) -> Any:
    """``value`` as an input declared as ``spec`` ([type, options]) takes it. Raises EditError.

    The bounds are those of ComfyUI's validation; nothing is bent to fit: "12" is no INT.
    """
    kind, options = spec[0], as_dict(spec[1]) if len(spec) > 1 else {}
    choices = combo_options(spec)
    shown = one_line(json.dumps(value, ensure_ascii=False, default=str), 80)
    if choices is not None and any(
        key.endswith("_upload") and mark for key, mark in options.items()
    ):
        choices = (
            None  # ComfyUI checks a file itself: it may lie in a subfolder, or be "x.png [output]"
        )
        kind = "STRING"
    if choices is not None:
        wanted = value if isinstance(value, list) and options.get("multiselect") else [value]
        if any(item not in choices for item in wanted):
            nearest = (
                "Nearest: %s." % nearest_first(value, choices)
                if choices
                else "The server has none."
            )
            raise EditError(
                "value_not_in_list",
                "%s = %s is not one of the server's options. %s" % (name, shown, nearest),
            )
        return value
    takes: Dict[Any, Tuple[type, ...]] = {
        "INT": (int,),
        "FLOAT": (int, float),
        "STRING": (str,),
        "BOOLEAN": (bool,),
    }
    types = takes.get(kind) if isinstance(kind, str) else None
    if types is None:
        if isinstance(value, (list, dict)):
            raise EditError("linked_input", "%s takes a link, which cannot be set here." % name)
        return value
    if isinstance(value, float) and value - value != 0:  # NaN and infinity
        raise EditError(
            "invalid_input_type", "%s = %s is not %s." % (name, shown, describe_type(spec))
        )
    if kind == "INT" and isinstance(value, float) and value == value // 1:
        value = int(value)  # JSON writers do not keep the two apart
    if not isinstance(value, types) or (isinstance(value, bool) and kind != "BOOLEAN"):
        raise EditError(
            "invalid_input_type", "%s = %s is not %s." % (name, shown, describe_type(spec))
        )
    if kind in ("INT", "FLOAT"):
        low, high = options.get("min"), options.get("max")
        number: float = value  # type: ignore[assignment]
        too_low = isinstance(low, (int, float)) and number < low
        too_high = isinstance(high, (int, float)) and number > high
        if too_low or too_high or abs(number) >= 1e300:
            bounds = tuple(
                bound if isinstance(bound, (int, float)) else "any" for bound in (low, high)
            )
            raise EditError(
                "value_out_of_range", "%s = %s is not between %s and %s." % (name, shown, *bounds)
            )
    return value


def read_value(spec: Sequence[Any], current: Any, text: str) -> Any:
    """What ``text``, as a person types it, means for an input: by its declared type, else by the type of
    its ``current`` value. A text that does not fit comes back as it is, for check_value() to tell."""
    kind = (
        spec[0]
        if spec
        else {bool: "BOOLEAN", int: "INT", float: "FLOAT", str: "STRING"}.get(type(current), "")
    )
    choices = combo_options(spec)
    if choices is not None:
        return next((choice for choice in choices if str(choice) == text), text)
    if kind == "BOOLEAN":
        words = {
            "true": True,
            "yes": True,
            "on": True,
            "1": True,
            "false": False,
            "no": False,
            "off": False,
            "0": False,
        }
        return words.get(text.strip().lower(), text)
    if kind in ("INT", "FLOAT"):
        for number in (int, float):
            try:
                return number(text.replace("_", "?"))  # 1_000 is a number in Python alone
            except ValueError:
                pass
        return text
    if kind != "STRING":
        try:
            return json.loads(text)  # of a custom node's own type
        except (ValueError, RecursionError):
            pass
    return text


def find_input(prompt: Mapping[str, Any], name: str) -> InputRef:
    """The input that ``NODE.INPUT`` means. Titles and inputs may contain dots: the longest NODE that
    exists wins. Raises EditError."""
    for end in range(len(name) - 1, 0, -1):
        if name[end] == "." and name[end + 1 :] and _nodes_called(prompt, name[:end]):
            return InputRef(find_node(prompt, name[:end]), name[end + 1 :])
    if "." not in name:
        quoted = json.dumps(one_line(name, 80), ensure_ascii=False)
        raise EditError(
            "wrong_name", "%s names no input: write NODE.INPUT, such as 3.steps." % quoted
        )
    return InputRef(find_node(prompt, name.rpartition(".")[0]), "")  # raises


class InputEdit(NamedTuple):
    """One value to set: a text as a person types it, any other value of JSON, or what is in ``file``."""

    ref: InputRef
    value: Any
    file: str = ""


def input_edit(ref: InputRef, value: Any) -> InputEdit:
    """The edit that ``value`` asks for: ``@FILE`` is what is in the file, ``@@x`` the text ``@x``, ``@`` itself."""
    if isinstance(value, str) and value.startswith("@") and value != "@":
        return (
            InputEdit(ref, value[1:]) if value.startswith("@@") else InputEdit(ref, "", value[1:])
        )
    return InputEdit(ref, value)


def parse_set(prompt: Mapping[str, Any], text: str) -> InputEdit:
    """The edit in ``NODE.INPUT=VALUE``. Raises EditError."""
    first: Optional[EditError] = None
    for found in itertools.islice(
        re.finditer("=", text), 10
    ):  # a title may contain some, and VALUE many
        try:
            return input_edit(find_input(prompt, text[: found.start()]), text[found.end() :])
        except EditError as error:
            first = first or error
    raise first or EditError("wrong_name", "--set takes NODE.INPUT=VALUE, such as 3.steps=30.")


def apply_edits(
    prompt: Prompt, edits: Iterable[InputEdit], object_info: Mapping[str, Any]
) -> Tuple[Prompt, List[InputRef]]:
    """A copy of ``prompt`` with ``edits`` made, and the seeds that are to be drawn ("random"). Raises EditError."""
    drawn: List[InputRef] = []
    for ref, value, _ in edits:
        current = as_dict(prompt[ref.node_id].get("inputs")).get(ref.input)
        spec = input_spec(object_info, class_of(prompt, ref.node_id), ref.input)
        drawn = [other for other in drawn if other != ref]
        if value == "random" and is_seed(ref.input, spec) and isinstance(current, (int, float)):
            drawn.append(ref)
            continue
        value = read_value(spec, current, value) if isinstance(value, str) else value
        prompt, _ = set_inputs(prompt, ref.node_id, {ref.input: value}, object_info)
    return prompt, drawn


def seed_inputs(prompt: Mapping[str, Any], object_info: Mapping[str, Any]) -> List[InputRef]:
    """Every seed of the workflow: whole numbers named so, or that a node hands on to an input named so."""
    found = {}
    for node_id in prompt:
        for name, value in as_dict(prompt[node_id].get("inputs")).items():
            if "seed" not in str(name).lower():
                continue
            spec = input_spec(object_info, class_of(prompt, node_id), name)
            if type(value) is int and (not spec or spec[0] == "INT"):
                found[InputRef(node_id, name)] = True
            elif is_link(value) and str(value[0]) in prompt:
                source = str(value[0])
                for given, number in as_dict(prompt[source].get("inputs")).items():
                    spec = input_spec(object_info, class_of(prompt, source), given)
                    if type(number) is int and (is_seed(given, spec) or given == "value"):
                        found[InputRef(source, given)] = True
    return list(found)


def with_values(prompt: Prompt, values: Mapping[InputRef, Any]) -> Prompt:
    """A copy of ``prompt`` with ``values`` in its inputs, which are not checked."""
    for ref, value in values.items():
        if ref.node_id in prompt:
            node = prompt[ref.node_id]
            prompt = {
                **prompt,
                ref.node_id: {**node, "inputs": {**node["inputs"], ref.input: value}},
            }
    return prompt


def set_inputs(
    prompt: Prompt, node_id: str, inputs: Mapping[str, Any], object_info: Mapping[str, Any]
) -> Tuple[Prompt, bool]:
    """A copy of ``prompt`` with inputs of one node set, and whether all were checked.

    Raises EditError for an input that the class does not have, that a link feeds, or whose value it
    does not take; where ``object_info`` does not have the class, only links are looked at.
    """
    class_type, known = class_of(prompt, node_id), prompt[node_id]["inputs"]
    checked: Dict[str, Any] = {}
    for name, value in inputs.items():
        spec = input_spec(object_info, class_type, name)
        if is_link(known.get(name)):
            source = str(known[name][0])
            message = "%s is fed by %s: set it there." % (name, node_in_words(prompt, source))
            raise EditError("linked_input", message, describe_nodes(prompt, [source]))
        if name not in known and not spec:
            names = nearest_first(name, sorted(map(str, known)), 20) or "none"
            raise EditError("no_such_input", "%s has no input %s. It has: %s." % (
                node_in_words(prompt, node_id), json.dumps(one_line(name, 60)), names))  # fmt: skip
        try:
            checked[name] = check_value(spec, name, value) if spec else value
        except EditError as error:
            message = "%s: %s" % (node_in_words(prompt, node_id), error.message)
            raise EditError(error.type, message, error.details) from None
    node = {**prompt[node_id], "inputs": {**known, **checked}}
    return {**prompt, node_id: node}, bool(object_info.get(class_type))


def text_inputs(prompt: Mapping[str, Any], node_id: str) -> List[InputRef]:
    """Where the texts of a node are written: its own inputs, or those of the nodes that feed them."""
    found: List[InputRef] = []
    seen: Set[str] = set()
    waiting = [node_id]
    while waiting:
        current = waiting.pop()
        if current in seen or current not in prompt:
            continue
        seen.add(current)
        links = []
        for name, value in as_dict(prompt[current].get("inputs")).items():
            text = bool(TEXT_INPUT_NAMES.search(name))
            if current != node_id:  # in a node that feeds a text any text will do
                text = text or name in ("value", "Text") or name.startswith("string")
            if text and isinstance(value, str):
                found.append(InputRef(current, name))
            elif text and is_link(value):
                links.append(str(value[0]))
        waiting += reversed(links)
    return found


def prompt_texts(prompt: Mapping[str, Any], role: str) -> List[InputRef]:
    """The texts that reach a sampler's ``positive`` or ``negative`` input, by following the links
    back through conditioning nodes; a guider's ``conditioning`` (Flux) counts as positive."""
    found: List[InputRef] = []
    seen: Set[Tuple[str, str]] = set()
    waiting: List[Tuple[Sequence[Any], str]] = []  # links to follow, and the side that they are on
    for node_id in prompt:
        inputs, class_type = as_dict(prompt[node_id].get("inputs")), class_of(prompt, node_id)
        if "latent_image" in inputs or "model" in inputs:  # a sampler, or a guider for one
            names = (
                [role, "cond1", "cond2"]
                if role == "positive" and "Guider" in class_type
                else [role]
            )
            names += ["conditioning"] if role == "positive" and "Guider" in class_type else []
            waiting += [(inputs[name], role) for name in names if is_link(inputs.get(name))]
    waiting.reverse()
    while waiting:
        link, side = waiting.pop()
        node_id = str(link[0])
        if (
            node_id not in prompt
            or (node_id, side) in seen
            or "ZeroOut" in class_of(prompt, node_id)
        ):
            continue  # ConditioningZeroOut makes nothing of what it is given: there is no text
        seen.add((node_id, side))
        texts = text_inputs(prompt, node_id)
        found.extend(ref for ref in texts if ref not in found)
        if texts:
            continue
        inputs = as_dict(prompt[node_id].get("inputs"))
        if is_link(inputs.get("positive")) and is_link(
            inputs.get("negative")
        ):  # ControlNet: two in, two out
            waiting.append((inputs["negative" if link[1] == 1 else "positive"], side))
            continue
        names = [
            name
            for name, value in inputs.items()
            if is_link(value) and name.startswith(("cond", side))
        ]
        waiting += [(inputs[name], side) for name in reversed(names)]
    return found


def find_text(prompt: Mapping[str, Any], node: Optional[str], role: Optional[str]) -> InputRef:
    """The one text input that a node's name, or "positive" or "negative", means. Raises EditError."""
    if node is not None:
        found = text_inputs(prompt, find_node(prompt, node))
        what = "The node %s" % json.dumps(one_line(node, 80), ensure_ascii=False)
    else:
        what = "The %s prompt" % role
        found = prompt_texts(prompt, str(role))
        if not found:  # links do not tell
            titled = [i for i in prompt if str(role) in node_title(prompt, i).lower()]
            found = [ref for node_id in titled for ref in text_inputs(prompt, node_id)]
    if len(found) == 1:
        return found[0]
    every = [ref.node_id for node_id in prompt for ref in text_inputs(prompt, node_id)]
    if found and len({ref.node_id for ref in found}) == 1:
        names = ", ".join(ref.input for ref in found)
        raise EditError("ambiguous_node", "%s has several texts (%s): use /update/inputs." % (what, names),
                        describe_nodes(prompt, [ref.node_id for ref in found]))  # fmt: skip
    if found:
        candidates = describe_nodes(prompt, [ref.node_id for ref in found])
        raise EditError("ambiguous_node", "%s has several texts: name a node." % what, candidates)
    raise EditError(
        "no_such_text", "%s has no text that can be set." % what, describe_nodes(prompt, every)
    )


def upload_inputs(prompt: Mapping[str, Any], object_info: Mapping[str, Any]) -> Dict[InputRef, str]:
    """The inputs that take an uploaded file, and its kind (image, video, audio, file), by the marks
    in ``object_info`` (``image_upload`` and the like)."""
    found = {}
    for node_id in prompt:
        declared = as_dict(as_dict(object_info.get(class_of(prompt, node_id))).get("input"))
        for group in ("required", "optional"):
            for name, spec in as_dict(declared.get(group)).items():
                options = as_dict(spec[1]) if isinstance(spec, list) and len(spec) > 1 else {}
                marks = [key for key, value in options.items() if key.endswith("_upload") and value]
                if marks and not is_link(as_dict(prompt[node_id].get("inputs")).get(name)):
                    kind = marks[0].rpartition("_upload")[0].rpartition("_")[2]
                    found[InputRef(node_id, name)] = (
                        kind if kind in ("image", "video", "audio") else "file"
                    )
    return found


def find_loaders(
    prompt: Mapping[str, Any], loaders: Iterable[InputRef], name: Optional[str]
) -> List[InputRef]:
    """Which of ``loaders`` (from upload_inputs()) are meant by a node's name, NODE.INPUT, "all", or None where
    there is but one. Raises EditError."""
    known = list(loaders)
    listed = describe_nodes(prompt, [ref.node_id for ref in known])
    if not known:
        raise EditError("no_loader", "The workflow has no node that loads a file.")
    if name == "all" or (name is None and len(known) == 1):
        return known
    if name is None:
        names = ", ".join(node_in_words(prompt, ref.node_id) for ref in known)
        raise EditError(
            "ambiguous_node", "Several nodes load a file: name one of %s, or all." % names, listed
        )
    exact = [ref for ref in known if "." in name and name == "%s.%s" % ref]
    found = exact or [ref for ref in known if ref.node_id == find_node(prompt, name)]
    if not found:
        raise EditError(
            "no_loader", "The node %s loads no file." % json.dumps(one_line(name, 60)), listed
        )
    return found[:1]


def draw_seeds(
    prompt: Prompt,
    random_inputs: Iterable[InputRef],
    draw: Callable[[], float],
    object_info: Mapping[str, Any] = {},
) -> Prompt:
    """A copy of ``prompt`` with new seeds between the bounds of their inputs, and not above 2**50,
    which every reader of JSON keeps exact; ``draw`` gives numbers in [0, 1)."""
    seeds = {}
    for ref in random_inputs:
        spec = input_spec(object_info, class_of(prompt, ref.node_id), ref.input)
        options = as_dict(spec[1]) if len(spec) > 1 else {}
        low = int(as_number(options.get("min")))
        high = min(int(as_number(options.get("max"), 2.0**50)), max(low, 0) + 2**50)
        seeds[ref] = low + int(draw() * (high - low + 1))
    return with_values(prompt, seeds)
