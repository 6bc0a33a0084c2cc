"""What a person wants to know about a prompt before it runs."""

from __future__ import annotations

import re
from typing import Any, Dict, List, NamedTuple, Tuple

from comfyui_runner.nodes import (
    MODEL_ENDINGS,
    SAMPLING_INPUTS,
    TEXT_INPUT_NAMES,
    class_of,
    inputs_of,
    node_title,
)
from comfyui_runner.text import JsonObject, as_number, one_line


class Summary(NamedTuple):
    """What a person wants to know about a prompt before it runs; each list has (title, text)."""

    nodes: int
    models: List[Tuple[str, str]]
    texts: List[Tuple[str, str]]
    sampling: List[Tuple[str, str]]
    sizes: List[Tuple[str, str]]
    files: List[Tuple[str, str]]
    saves: List[Tuple[str, str]]


_SAVING_CLASSES = re.compile(r"(?i)save|preview|videocombine|export")
_FILE_INPUTS = ("image", "video", "audio", "mask", "file")


def summarize(prompt: JsonObject) -> Summary:
    """The summary of a prompt, from the prompt alone: a server's object_info is not needed."""
    summary = Summary(
        nodes=len(prompt),
        models=[],
        texts=[],
        sampling=[],
        sizes=[],
        files=[],
        saves=[],
    )
    for node_id in prompt:
        title = node_title(prompt, node_id)
        class_type = class_of(prompt, node_id)
        inputs = {
            str(name): value
            for name, value in inputs_of(prompt, node_id).items()
            if not isinstance(value, (list, dict))
        }
        _summarize_strings(summary, title, inputs)

        names = [name for name in SAMPLING_INPUTS if name in inputs]
        is_sampling = len(names) > 1 or names in (["seed"], ["noise_seed"])
        if is_sampling:
            sampling = [f"{name} {one_line(inputs[name], 40)}" for name in names]
            summary.sampling.append((title, ", ".join(sampling)))

        prefix = inputs.get("filename_prefix")
        if isinstance(prefix, str):
            summary.saves.append((title, one_line(prefix, 80)))
        elif "filename_prefix" in inputs or _SAVING_CLASSES.search(class_type):
            summary.saves.append((title, class_type))
        elif "width" in inputs and "height" in inputs:
            summary.sizes.append((title, _describe_size(inputs)))
    return summary


def _summarize_strings(summary: Summary, title: str, inputs: JsonObject) -> None:
    for name, value in inputs.items():
        if not isinstance(value, str) or not value.strip():
            continue
        if value.lower().endswith(MODEL_ENDINGS):
            summary.models.append((title, one_line(value, 100)))
        elif TEXT_INPUT_NAMES.search(name):
            summary.texts.append((title, one_line(value, 160)))
        elif name in _FILE_INPUTS and "." in value:
            summary.files.append((title, one_line(value, 100)))


def _describe_size(inputs: Dict[str, Any]) -> str:
    """``832 x 480, 33 frames, 2 in a batch``."""
    shown = {name: one_line(value, 12) for name, value in inputs.items()}
    words = f"{shown['width']} x {shown['height']}"
    for name, unit in (("length", "frames"), ("batch_size", "in a batch")):
        if as_number(inputs.get(name), 1) > 1:
            words += f", {shown[name]} {unit}"
    return words
