"""A node of a prompt and its definition in object_info: ids, classes, titles, links, inputs.

A prompt is ComfyUI's API format: ``{node_id: {"class_type": ..., "inputs": {...}}}``. object_info
is the body of GET /object_info: ``{class_type: definition}``.
"""

from __future__ import annotations

import json
import os
import re
from typing import (
    Any,
    Dict,
    FrozenSet,
    Iterable,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Set,
)

from comfyui_runner.text import JsonObject, as_dict, as_list, one_line

# -- nodes and links -------------------------------------------------------------------------------


class InputRef(NamedTuple):
    """One input of one node."""

    node_id: str
    input: str

    @property
    def full_name(self) -> str:
        """The input as NODE.INPUT, with the id of the node."""
        return f"{self.node_id}.{self.input}"


def node_in_prompt(prompt: JsonObject, node_id: str) -> Optional[str]:
    """The id of the node of ``prompt`` that ``node_id`` stands for, or None.

    ComfyUI makes nodes while it runs (``5.0.0.1`` comes from node ``5``); subgraphs have ``12:34``.
    """
    while node_id not in prompt:
        node_id, dot, _ = node_id.rpartition(".")
        if not dot:
            return None
    return node_id


def class_of(prompt: JsonObject, node_id: str) -> str:
    """The class_type of a node, or "" for one that is not in the prompt."""
    known_id = node_in_prompt(prompt, node_id)
    if known_id is None:
        return ""
    return str(prompt[known_id].get("class_type", ""))


def inputs_of(prompt: JsonObject, node_id: str) -> Dict[str, Any]:
    """The inputs of a node, {} for one that is not in the prompt."""
    return as_dict(as_dict(prompt.get(node_id)).get("inputs"))


class InputPart(NamedTuple):
    """One value of an input that has several by name: ``strength`` in a row of LoRAs."""

    input: str
    key: str


def find_part(inputs: JsonObject, name: str) -> Optional[InputPart]:
    """The part that ``INPUT.KEY`` means; None if that is an input itself, or nothing."""
    if name in inputs:
        return None
    input_name, _, key = name.rpartition(".")
    if key not in as_dict(inputs.get(input_name)):
        return None
    return InputPart(input_name, key)


def value_of(prompt: JsonObject, ref: InputRef) -> Any:
    """The value of an input, a link too, or of a part of one; None if it is not in the prompt."""
    inputs = inputs_of(prompt, ref.node_id)
    part = find_part(inputs, ref.input)
    if part:
        return inputs[part.input][part.key]
    return inputs.get(ref.input)


def is_link(value: object) -> bool:
    """Whether an input's value is a link, ``[node_id, slot]``."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], (str, int))
        and isinstance(value[1], int)
    )


def source_of(link: Sequence[Any]) -> str:
    """The id of the node that a link comes from; JSON may have it as a number."""
    return str(link[0])


def linked_nodes(prompt: JsonObject, node_id: str) -> List[str]:
    """The ids of the nodes that a node's inputs link to, whether ``prompt`` has them or not."""
    values = inputs_of(prompt, node_id).values()
    return [source_of(value) for value in values if is_link(value)]


def upstream(prompt: JsonObject, node_ids: Iterable[str]) -> FrozenSet[str]:
    """``node_ids`` and every node of ``prompt`` that they need, over any number of links."""
    needed: Set[str] = set()
    waiting = [node_id for node_id in node_ids if node_id in prompt]
    while waiting:
        node_id = waiting.pop()
        if node_id in needed:
            continue
        needed.add(node_id)
        sources = linked_nodes(prompt, node_id)
        waiting.extend(source for source in sources if source in prompt)
    return frozenset(needed)


def find_cycle(prompt: JsonObject, node_ids: Iterable[str]) -> List[str]:
    """A ring of links among ``node_ids`` and what they need; [] if there is none.

    Each node of the ring links to the next one, and the last one to the first.
    """
    finished: Set[str] = set()
    for start in node_ids:
        if start in finished:
            continue
        # The way to the node that is looked at, and what each node on it links to further.
        path = {start: iter(linked_nodes(prompt, start))}
        while path:
            node_id = next(reversed(path))
            source = next(path[node_id], None)
            if source is None:
                finished.add(node_id)
                del path[node_id]
            elif source in path:
                way = list(path)
                return way[way.index(source) :]
            elif source not in finished:
                path[source] = iter(linked_nodes(prompt, source))
    return []


def ends_of_cycles(prompt: JsonObject) -> List[str]:
    """The nodes that nothing links to and that cannot run: they need a node that needs itself."""
    used = _used_nodes(prompt)
    ends = [node_id for node_id in prompt if node_id not in used]
    if not find_cycle(prompt, ends):  # nearly always: one walk, not one for each end
        return []
    return [node_id for node_id in ends if find_cycle(prompt, [node_id])]


def planned_nodes(prompt: JsonObject, dropped: Iterable[str] = ()) -> FrozenSet[str]:
    """The nodes that will run, when ComfyUI has refused the output nodes ``dropped``."""
    ends = set(prompt) - _used_nodes(prompt)
    if not ends:  # the links go in circles
        ends = set(prompt)
    return upstream(prompt, ends - set(dropped))


def _used_nodes(prompt: JsonObject) -> Set[str]:
    """The ids of the nodes that others link to."""
    used: Set[str] = set()
    for node_id in prompt:
        used.update(linked_nodes(prompt, node_id))
    return used


# -- names for messages ----------------------------------------------------------------------------


def node_title(prompt: JsonObject, node_id: str) -> str:
    """What a person calls the node: its title, else its class, else its id."""
    known_id = node_in_prompt(prompt, node_id)
    if known_id is None:
        return one_line(node_id, 60)
    title = own_title(prompt, known_id)
    return one_line(title or class_of(prompt, known_id) or node_id, 60)


def own_title(prompt: JsonObject, node_id: str) -> str:
    """The title that a person gave to a node of ``prompt``, or ""."""
    title = as_dict(prompt[node_id].get("_meta")).get("title")
    if isinstance(title, str) and title.strip():
        return title
    return ""


def node_in_words(prompt: JsonObject, node_id: str) -> str:
    """``"Positive" (CLIPTextEncode, node 2)``; the class is left out where it is the title."""
    title = node_title(prompt, node_id)
    class_type = class_of(prompt, node_id)
    shown_id = one_line(node_id, 40)
    if class_type in ("", title):
        return f'"{title}" (node {shown_id})'
    return f'"{title}" ({class_type}, node {shown_id})'


def describe_node(prompt: JsonObject, node_id: str) -> Dict[str, str]:
    """A node as answers and reports name it: node_id, title, class_type."""
    return {
        "node_id": node_id,
        "title": node_title(prompt, node_id),
        "class_type": class_of(prompt, node_id),
    }


def describe_nodes(prompt: JsonObject, node_ids: Iterable[str]) -> List[Dict[str, str]]:
    """``describe_node()`` of each, once, in order."""
    return [describe_node(prompt, node_id) for node_id in dict.fromkeys(node_ids)]


def quote_name(name: object) -> str:
    """A name that came from outside, for a message: in quotes, on one line, not too long."""
    return json.dumps(one_line(name, 80), ensure_ascii=False)


# Names come from outside, and difflib would take minutes for 10,000 of them, or for one of a
# megabyte. So a search for the nearest names is limited in three ways.

#: Characters of a name that are compared.
_COMPARED_LENGTH = 200

#: Names that are compared by the letters that they have, in any order.
_COMPARED_ROUGHLY = 2000

#: Names that are compared letter by letter.
_COMPARED_EXACTLY = 50

#: How like a name must be, from 0 to 1, to be offered as what was meant.
_NEAR_ENOUGH = 0.6

#: Names that are offered.
_MOST_OFFERED = 3


def nearest_first(value: object, options: Sequence[object], shown: int = 8) -> str:
    """Options as a list for people: those most like ``value``, then how many more there are."""
    names = [str(option) for option in options]
    nearest = _rank(value, names)[:shown]
    listed = [one_line(each.name, 100) for each in nearest]
    if len(names) > shown:
        listed.append(f"{len(names) - shown} more")
    return ", ".join(listed)


def did_you_mean(value: object, options: Iterable[object], prefix: str = "") -> str:
    """``Did you mean a, b or c?``, of the options that are like ``value``; "" where none is.

    ``prefix`` is shown before each of them. The endings of files, which many share, are not
    compared.
    """
    wanted = _without_ending(str(value))
    by_stem: Dict[str, List[str]] = {}
    for name in dict.fromkeys(str(option) for option in options):
        by_stem.setdefault(_without_ending(name), []).append(name)
    near: List[str] = []
    for stem, likeness, _ in _rank(wanted, list(by_stem)):
        is_abbreviated = len(wanted) > 2 and wanted in stem
        if likeness >= _NEAR_ENOUGH or is_abbreviated:
            near += by_stem[stem]
    offered = [prefix + one_line(name, 100) for name in near[:_MOST_OFFERED]]
    if not offered:
        return ""
    *others, last = offered
    if not others:
        return f"Did you mean {last}?"
    return f"Did you mean {', '.join(others)} or {last}?"


def _without_ending(name: str) -> str:
    """``name`` as it is compared, without the ending of a file (".safetensors")."""
    return re.sub(r"\.[a-z]{2,12}$", "", _as_compared(name))


def only_other_case(name: str, names: Iterable[str]) -> Optional[str]:
    """The one of ``names`` that differs from ``name`` in upper and lower case alone, if it is one.

    None where ``name`` itself is among them.
    """
    folded = name.casefold()
    same = {other for other in names if other.casefold() == folded}
    if len(same) != 1 or name in same:
        return None
    return same.pop()


class _RankedName(NamedTuple):
    """A name, and how like it is to the one that is wanted."""

    name: str
    likeness: float  # from 0 to 1
    common_beginning: int  # in characters: it decides where the likeness is equal


def _rank(value: object, names: List[str]) -> List[_RankedName]:
    """The names that are most like ``value``, the most like ones first."""
    import difflib  # only messages about errors need it

    wanted = _as_compared(str(value))
    matcher = difflib.SequenceMatcher(b=wanted)

    def rough_likeness(name: str) -> float:  # never below ratio()
        matcher.set_seq1(_as_compared(name))
        return matcher.quick_ratio()

    def compare_exactly(name: str) -> _RankedName:
        compared = _as_compared(name)
        matcher.set_seq1(compared)
        beginning = os.path.commonprefix([wanted, compared])  # noqa: RUF071 - not a path
        return _RankedName(name, matcher.ratio(), len(beginning))

    candidates = _sharing_words(wanted, names)
    candidates.sort(key=rough_likeness, reverse=True)
    ranked = [compare_exactly(name) for name in candidates[:_COMPARED_EXACTLY]]
    ranked.sort(key=lambda each: (each.likeness, each.common_beginning), reverse=True)
    return ranked


def _as_compared(name: str) -> str:
    """What of ``name`` is compared: its beginning, in lower case."""
    return name[:_COMPARED_LENGTH].lower()


def _sharing_words(wanted: str, names: List[str]) -> List[str]:
    """All of ``names``; of too many to compare, those that have most of the words of ``wanted``."""
    if len(names) <= _COMPARED_ROUGHLY:
        return list(names)
    words = re.findall(r"[^\W\d_]{3,}|\d+", wanted)

    def shared_words(name: str) -> int:
        compared = _as_compared(name)
        return sum(word in compared for word in words)

    return sorted(names, key=shared_words, reverse=True)[:_COMPARED_ROUGHLY]


# -- the inputs of a class -------------------------------------------------------------------------

MODEL_ENDINGS = (
    ".safetensors",
    ".sft",
    ".ckpt",
    ".pt",
    ".pt2",
    ".pth",
    ".bin",
    ".gguf",
    ".onnx",
    ".pkl",
)

SAMPLING_INPUTS = (
    "seed",
    "noise_seed",
    "steps",
    "cfg",
    "guidance",
    "sampler_name",
    "scheduler",
    "denoise",
)

TEXT_INPUT_NAMES = re.compile(
    r"(?i)(^|_)(text|prompt|wildcard|lyrics|tags|caption|t5xxl|clip_[lg])"
)


class DeclaredInput(NamedTuple):
    """How a class declares one of its inputs."""

    type: str = ""  #: "INT", "MODEL", "COMBO"; "" where nothing is declared
    options: Mapping[str, Any] = {}  #: min, max, multiline, image_upload ...
    choices: Optional[List[Any]] = None  #: what a COMBO offers, where the definition lists it

    @property
    def upload_mark(self) -> str:
        """``image_upload`` or the like where the input takes an uploaded file, else ""."""
        for name, is_on in self.options.items():
            if name.endswith("_upload") and is_on:
                return name
        return ""


def parse_spec(declared: object) -> DeclaredInput:
    """The input that a definition declares as ``[type, options]``.

    A combo is ``[[choices], options]`` or, in nodes of ComfyUI's newer interface,
    ``["COMBO", {"options": [choices]}]``. A remote one gets its choices from another route.
    """
    parts = as_list(declared)
    if not parts:
        return DeclaredInput()
    input_type = parts[0]
    options = as_dict(parts[1]) if len(parts) > 1 else {}
    if isinstance(input_type, list):
        return DeclaredInput("COMBO", options, choices=input_type)
    choices = options.get("options")
    lists_choices = isinstance(choices, list) and "remote" not in options
    if input_type == "COMBO" and lists_choices:
        return DeclaredInput("COMBO", options, choices)
    return DeclaredInput(str(input_type), options)


def input_specs(object_info: JsonObject, class_type: str, group: str) -> Dict[str, DeclaredInput]:
    """The inputs of a class in a ``group``, "required" or "optional", by name."""
    definition = as_dict(object_info.get(class_type))
    declared = as_dict(as_dict(definition.get("input")).get(group))
    return {name: parse_spec(spec) for name, spec in declared.items()}


def input_spec(object_info: JsonObject, class_type: str, name: str) -> DeclaredInput:
    """An input of a class; its type is "" where it is not known."""
    definition = as_dict(object_info.get(class_type))
    groups = as_dict(definition.get("input"))
    for group in ("required", "optional"):
        declared = as_dict(groups.get(group))
        if name in declared:
            return parse_spec(declared[name])
    return DeclaredInput()


#: The type of a part of an input by that of its value: no definition declares it. A part that is 1
#: may become 0.5.
_TYPES_OF_PARTS = {bool: "BOOLEAN", int: "FLOAT", float: "FLOAT", str: "STRING"}


def spec_of(prompt: JsonObject, ref: InputRef, object_info: JsonObject) -> DeclaredInput:
    """``input_spec()`` of an input in a prompt; a part of one takes what is like its value."""
    if find_part(inputs_of(prompt, ref.node_id), ref.input):
        type_of_value = type(value_of(prompt, ref))
        return DeclaredInput(_TYPES_OF_PARTS.get(type_of_value, ""))
    return input_spec(object_info, class_of(prompt, ref.node_id), ref.input)


def outputs_of(prompt: JsonObject, node_id: str, object_info: JsonObject) -> Optional[List[Any]]:
    """The types of a node's outputs by slot, None where they are not known."""
    definition = as_dict(object_info.get(class_of(prompt, node_id)))
    outputs = definition.get("output")
    if not isinstance(outputs, list):
        return None
    return outputs


def has_slot(outputs: Sequence[Any], slot: int) -> bool:
    """Whether a link may lead to ``slot``. ComfyUI takes negative ones too, as Python does."""
    return -len(outputs) <= slot < len(outputs)


def is_seed(name: str, spec: DeclaredInput) -> bool:
    """Whether an input is a seed: an INT that ComfyUI's frontend would draw anew."""
    return name in ("seed", "noise_seed") or bool(spec.options.get("control_after_generate"))
