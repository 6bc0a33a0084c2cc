"""What a person wants to know about a prompt before it runs."""

from __future__ import annotations

import re
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Sequence, Set, Tuple

from comfyui_runner.nodes import (
    MODEL_ENDINGS,
    SAMPLING_INPUTS,
    TEXT_INPUT_NAMES,
    InputRef,
    class_of,
    inputs_of,
    node_title,
    value_of,
)
from comfyui_runner.text import JsonObject, as_number, one_line


class Summary(NamedTuple):
    """What a person wants to know about a prompt before it runs; each list has (title, text).

    The title of a text is "positive" or "negative" where it is that prompt. ``values`` has what was
    set or drawn and appears nowhere else: its title is NODE.INPUT.
    """

    nodes: int
    models: List[Tuple[str, str]]
    texts: List[Tuple[str, str]]
    sampling: List[Tuple[str, str]]
    sizes: List[Tuple[str, str]]
    files: List[Tuple[str, str]]
    saves: List[Tuple[str, str]]
    values: Sequence[Tuple[str, str]] = ()


_SAVING_CLASSES = re.compile(r"(?i)save|preview|videocombine|export")
_FILE_INPUTS = ("image", "video", "audio", "mask", "file")

#: Sampling inputs whose values say what they are.
_NEEDS_NO_NAME = ("sampler_name", "scheduler")

_SIZE_INPUTS = ("width", "height", "length", "batch_size")


def summarize(
    prompt: JsonObject,
    roles: Mapping[InputRef, str] = {},
    uploads: Mapping[InputRef, str] = {},
    changed: Iterable[InputRef] = (),
) -> Summary:
    """The summary of a prompt, from the prompt alone: a server's object_info is not needed.

    ``roles`` says which texts are the positive and the negative prompt, ``uploads`` which files
    will be uploaded, and ``changed`` which inputs the call has set or drawn.
    """
    summary = Summary(
        nodes=len(prompt),
        models=[],
        texts=[],
        sampling=[],
        sizes=[],
        files=[],
        saves=[],
        values=[],
    )
    shown: Set[InputRef] = set()
    for ref, path in uploads.items():
        text = f"{one_line(path, 100)} (to be uploaded)"
        summary.files.append((node_title(prompt, ref.node_id), text))
        shown.add(ref)
    for node_id in prompt:
        title = node_title(prompt, node_id)
        class_type = class_of(prompt, node_id)
        inputs = {
            str(name): value
            for name, value in inputs_of(prompt, node_id).items()
            if not isinstance(value, (list, dict)) and InputRef(node_id, name) not in uploads
        }
        names = _summarize_strings(summary, title, inputs, _roles_in(node_id, roles))

        sampling_names = [name for name in SAMPLING_INPUTS if name in inputs]
        is_sampling = len(sampling_names) > 1 or sampling_names in (["seed"], ["noise_seed"])
        if is_sampling:
            summary.sampling.append((title, _describe_sampling(inputs, sampling_names)))
            names += sampling_names

        prefix = inputs.get("filename_prefix")
        if isinstance(prefix, str):
            summary.saves.append((title, one_line(prefix, 80)))
            names.append("filename_prefix")
        elif "filename_prefix" in inputs or _SAVING_CLASSES.search(class_type):
            summary.saves.append((title, class_type))
        elif "width" in inputs and "height" in inputs:
            summary.sizes.append((title, _describe_size(inputs)))
            names += _SIZE_INPUTS
        shown.update(InputRef(node_id, name) for name in names)

    others = [ref for ref in dict.fromkeys(changed) if ref not in shown]
    values = [
        (f"{ref.node_id}.{ref.input}", one_line(value_of(prompt, ref), 100)) for ref in others
    ]
    return summary._replace(values=values)


def _roles_in(node_id: str, roles: Mapping[InputRef, str]) -> Dict[str, str]:
    """The roles of the texts of a node, by input."""
    return {ref.input: role for ref, role in roles.items() if ref.node_id == node_id}


def _summarize_strings(
    summary: Summary, title: str, inputs: JsonObject, roles: Mapping[str, str]
) -> List[str]:
    """Adds the models, texts and files of a node: the names of their inputs."""
    names = []
    for name, value in inputs.items():
        if not isinstance(value, str) or not value.strip():
            continue
        if value.lower().endswith(MODEL_ENDINGS):
            summary.models.append((title, one_line(value, 100)))
        elif TEXT_INPUT_NAMES.search(name) or name in roles:
            summary.texts.append((roles.get(name, title), one_line(value, 160)))
        elif name in _FILE_INPUTS and "." in value:
            summary.files.append((title, one_line(value, 100)))
        else:
            continue
        names.append(name)
    return names


def _describe_sampling(inputs: JsonObject, names: Iterable[str]) -> str:
    """``seed 42, steps 25, cfg 7, euler, karras, denoise 1``."""
    words = []
    for name in names:
        value = one_line(inputs[name], 40)
        words.append(value if name in _NEEDS_NO_NAME else f"{name} {value}")
    return ", ".join(words)


def _describe_size(inputs: Dict[str, Any]) -> str:
    """``832 x 480, 33 frames, 2 in a batch``."""
    shown = {name: one_line(value, 12) for name, value in inputs.items()}
    words = f"{shown['width']} x {shown['height']}"
    for name, unit in (("length", "frames"), ("batch_size", "in a batch")):
        if as_number(inputs.get(name), 1) > 1:
            words += f", {shown[name]} {unit}"
    return words
