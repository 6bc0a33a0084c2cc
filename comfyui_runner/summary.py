"""What a person wants to know about a prompt before it runs."""

from __future__ import annotations

import re
from typing import Dict, Iterable, List, Mapping, NamedTuple, Sequence, Set, Tuple

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


#: In the names of classes that save or show what a run made.
_SAVING_CLASSES = re.compile(r"(?i)save|preview|videocombine|export")

#: Inputs of loaders: the names of files on the server.
_FILE_INPUTS = ("image", "video", "audio", "mask", "file")

#: Sampling inputs whose values say what they are.
_NEEDS_NO_NAME = ("sampler_name", "scheduler")

_SIZE_INPUTS = ("width", "height", "length", "batch_size")

#: Characters of a value that are shown.
_VALUE_LENGTH = 100


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
        text = f"{one_line(path, _VALUE_LENGTH)} (to be uploaded)"
        summary.files.append((node_title(prompt, ref.node_id), text))
        shown.add(ref)
    for node_id in prompt:
        inputs = {
            str(name): value
            for name, value in inputs_of(prompt, node_id).items()
            if not isinstance(value, (list, dict)) and InputRef(node_id, name) not in uploads
        }
        title = node_title(prompt, node_id)
        names = _add_strings(summary, title, inputs, _roles_in(node_id, roles))
        names += _add_sampling(summary, title, inputs)
        names += _add_saving_or_size(summary, title, inputs, class_of(prompt, node_id))
        shown.update(InputRef(node_id, name) for name in names)

    values = []
    for ref in dict.fromkeys(changed):
        if ref not in shown:
            values.append((ref.full_name, one_line(value_of(prompt, ref), _VALUE_LENGTH)))
    return summary._replace(values=values)


def _roles_in(node_id: str, roles: Mapping[InputRef, str]) -> Dict[str, str]:
    """The roles of the texts of a node, by input."""
    return {ref.input: role for ref, role in roles.items() if ref.node_id == node_id}


# Each of the next three adds what it finds in one node to the summary, and returns the names of the
# inputs that it shows.


def _add_strings(
    summary: Summary, title: str, inputs: JsonObject, roles: Mapping[str, str]
) -> List[str]:
    """Adds the models, texts and files of a node."""
    names = []
    for name, value in inputs.items():
        if not isinstance(value, str) or not value.strip():
            continue
        if value.lower().endswith(MODEL_ENDINGS):
            summary.models.append((title, one_line(value, _VALUE_LENGTH)))
        elif TEXT_INPUT_NAMES.search(name) or name in roles:
            summary.texts.append((roles.get(name, title), one_line(value, 160)))
        elif name in _FILE_INPUTS and "." in value:
            summary.files.append((title, one_line(value, _VALUE_LENGTH)))
        else:
            continue
        names.append(name)
    return names


def _add_sampling(summary: Summary, title: str, inputs: JsonObject) -> List[str]:
    """Adds how a sampler samples; of the parts that some workflows split it into, the seed too."""
    names = [name for name in SAMPLING_INPUTS if name in inputs]
    is_sampling = len(names) > 1 or names in (["seed"], ["noise_seed"])
    if not is_sampling:
        return []
    summary.sampling.append((title, _describe_sampling(inputs, names)))
    return names


def _add_saving_or_size(
    summary: Summary, title: str, inputs: JsonObject, class_type: str
) -> Sequence[str]:
    """Adds where a node saves, else the size of what it makes: what saves has sizes of its own."""
    prefix = inputs.get("filename_prefix")
    if isinstance(prefix, str):
        summary.saves.append((title, one_line(prefix, 80)))
        return ["filename_prefix"]
    if "filename_prefix" in inputs or _SAVING_CLASSES.search(class_type):
        summary.saves.append((title, class_type))
        return []
    if "width" in inputs and "height" in inputs:
        summary.sizes.append((title, _describe_size(inputs)))
        return _SIZE_INPUTS
    return []


def _describe_sampling(inputs: JsonObject, names: Iterable[str]) -> str:
    """``seed 42, steps 25, cfg 7, euler, karras, denoise 1``."""
    parts = []
    for name in names:
        value = one_line(inputs[name], 40)
        if name in _NEEDS_NO_NAME:
            parts.append(value)
        else:
            parts.append(f"{name} {value}")
    return ", ".join(parts)


def _describe_size(inputs: JsonObject) -> str:
    """``832 x 480, 33 frames, 2 in a batch``."""
    shown = {name: one_line(value, 12) for name, value in inputs.items()}
    words = f"{shown['width']} x {shown['height']}"
    if as_number(inputs.get("length"), 1) > 1:
        words += f", {shown['length']} frames"
    if as_number(inputs.get("batch_size"), 1) > 1:
        words += f", {shown['batch_size']} in a batch"
    return words
