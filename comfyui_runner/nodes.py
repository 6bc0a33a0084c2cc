"""A node of a prompt and its definition in object_info: ids, classes, titles, links, inputs."""

from __future__ import annotations

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
    Tuple,
)

from comfyui_runner.text import as_dict, as_list, one_line


def node_in_prompt(prompt: Mapping[str, Any], node_id: str) -> Optional[str]:
    """The id of the node of ``prompt`` that ``node_id`` stands for, or None.

    ComfyUI makes nodes while it runs (``5.0.0.1`` comes from node ``5``); subgraphs have ``12:34``.
    """
    while node_id not in prompt:
        node_id, dot, _ = node_id.rpartition(".")
        if not dot:
            return None
    return node_id


def class_of(prompt: Mapping[str, Any], node_id: str) -> str:
    """The class_type of a node, or "" for one that is not in the prompt."""
    known = node_in_prompt(prompt, node_id)
    return str(prompt[known].get("class_type", "")) if known else ""


def node_title(prompt: Mapping[str, Any], node_id: str) -> str:
    """What a person calls the node: its title, else its class, else its id."""
    known = node_in_prompt(prompt, node_id)
    title = as_dict(prompt[known].get("_meta")).get("title") if known else None
    return (
        one_line(title, 60)
        if isinstance(title, str) and title.strip()
        else one_line(class_of(prompt, node_id) or node_id, 60)
    )


def is_link(value: object) -> bool:
    """Whether an input's value is a link, ``[node_id, slot]`` (ComfyUI's execution takes any list so)."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], (str, int))
        and isinstance(value[1], int)
    )


def upstream(prompt: Mapping[str, Any], node_ids: Iterable[str]) -> FrozenSet[str]:
    """``node_ids`` and every node of ``prompt`` that they need, over any number of links."""
    found: Set[str] = set()
    waiting = [node_id for node_id in node_ids if node_id in prompt]
    while waiting:
        node_id = waiting.pop()
        if node_id in found:
            continue
        found.add(node_id)
        for value in as_dict(prompt[node_id].get("inputs")).values():
            if is_link(value) and str(value[0]) in prompt:
                waiting.append(str(value[0]))
    return frozenset(found)


def planned_nodes(prompt: Mapping[str, Any], dropped: Iterable[str] = ()) -> FrozenSet[str]:
    """The nodes that will run when the outputs ``dropped`` do not: what the other ends need."""
    used = {
        str(value[0])
        for node in prompt.values()
        for value in as_dict(node.get("inputs")).values()
        if is_link(value)
    }
    ends = (set(prompt) - used or set(prompt)) - set(dropped)
    return upstream(prompt, ends)


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
    "seed", "noise_seed", "steps", "cfg", "guidance", "sampler_name", "scheduler", "denoise",
)  # fmt: skip

TEXT_INPUT_NAMES = re.compile(
    r"(?i)(^|_)(text|prompt|wildcard|lyrics|tags|caption|t5xxl|clip_[lg])"
)


def input_spec(object_info: Mapping[str, Any], class_type: str, name: str) -> List[Any]:
    """An input's ``[type, options]`` in ``object_info`` (a body of GET /object_info), or []."""
    declared = as_dict(as_dict(object_info.get(class_type)).get("input"))
    for group in ("required", "optional"):
        if name in as_dict(declared.get(group)):
            return as_list(declared[group][name])
    return []


def combo_options(spec: Sequence[Any]) -> Optional[List[Any]]:
    """The options of a combo input, in both of ComfyUI's forms, or None for any other input."""
    if spec and isinstance(spec[0], list):
        return spec[0]
    if spec and spec[0] == "COMBO" and len(spec) > 1:
        return as_list(as_dict(spec[1]).get("options"))
    return None


def nearest_first(value: object, options: Sequence[object], shown: int = 8) -> str:
    """Options as a list for people: those most like ``value`` first, then how many more there are."""
    import difflib

    wanted = str(value).lower()
    matcher = difflib.SequenceMatcher()
    matcher.set_seq2(wanted)

    def unlike(text: str) -> Tuple[float, int]:
        matcher.set_seq1(text.lower())
        same = next(
            (i for i, (a, b) in enumerate(zip(wanted, text.lower())) if a != b), len(wanted)
        )
        return -matcher.ratio(), -same

    def roughly_unlike(text: str) -> float:  # the exact measure is slow for thousands
        matcher.set_seq1(text.lower())
        return -matcher.quick_ratio()

    ranked = sorted(map(str, options), key=roughly_unlike)
    ranked[:50] = sorted(ranked[:50], key=unlike)
    more = len(ranked) - shown
    return ", ".join(one_line(text, 100) for text in ranked[:shown]) + (
        ", %d more" % more if more > 0 else ""
    )


def node_in_words(prompt: Mapping[str, Any], node_id: str) -> str:
    title, class_type = node_title(prompt, node_id), class_of(prompt, node_id)
    inside = ", ".join(
        part
        for part in (class_type if class_type != title else "", "node " + one_line(node_id, 40))
        if part
    )
    return '"%s" (%s)' % (title, inside)


class InputRef(NamedTuple):
    """One input of one node."""

    node_id: str
    input: str


def describe_nodes(prompt: Mapping[str, Any], node_ids: Iterable[str]) -> List[Dict[str, str]]:
    """Nodes as an answer lists them, each once: node_id, title, class_type."""
    return [
        {"node_id": i, "title": node_title(prompt, i), "class_type": class_of(prompt, i)}
        for i in dict.fromkeys(node_ids)
    ]


def is_seed(name: str, spec: Sequence[Any]) -> bool:
    """Whether an input is a seed: an INT that ComfyUI's frontend would draw anew."""
    options = as_dict(spec[1]) if len(spec) > 1 else {}
    return bool(options.get("control_after_generate")) or name in ("seed", "noise_seed")
