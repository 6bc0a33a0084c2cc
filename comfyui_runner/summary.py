"""What a person wants to know of a prompt before it runs."""

from __future__ import annotations

import re
from typing import Any, List, Mapping, NamedTuple, Tuple

from comfyui_runner.nodes import (
    MODEL_ENDINGS,
    SAMPLING_INPUTS,
    TEXT_INPUT_NAMES,
    class_of,
    node_title,
)
from comfyui_runner.text import as_dict, as_number, one_line


class Summary(NamedTuple):
    """What a person wants to know of a prompt before it runs; each list holds (title, text)."""

    nodes: int
    models: List[Tuple[str, str]]
    texts: List[Tuple[str, str]]
    sampling: List[Tuple[str, str]]
    sizes: List[Tuple[str, str]]
    files: List[Tuple[str, str]]
    saves: List[Tuple[str, str]]


_SAVING_CLASSES = re.compile(r"(?i)save|preview|videocombine|export")


def summarize(prompt: Mapping[str, Any]) -> Summary:
    """The summary of a prompt, from the prompt alone (a server's object_info is not needed)."""
    summary = Summary(len(prompt), [], [], [], [], [], [])
    for node_id, node in prompt.items():
        title = node_title(prompt, node_id)
        inputs = {
            str(k): v
            for k, v in as_dict(node.get("inputs")).items()
            if not isinstance(v, (list, dict))
        }
        class_type = class_of(prompt, node_id)
        saves = "filename_prefix" in inputs or bool(_SAVING_CLASSES.search(class_type))
        for name, value in inputs.items():
            if not isinstance(value, str) or not value.strip():
                continue
            if value.lower().endswith(MODEL_ENDINGS):
                summary.models.append((title, one_line(value, 100)))
            elif TEXT_INPUT_NAMES.search(name):
                summary.texts.append((title, one_line(value, 160)))
            elif name in ("image", "video", "audio", "mask", "file") and "." in value:
                summary.files.append((title, one_line(value, 100)))
        known = [name for name in SAMPLING_INPUTS if name in inputs]
        if len(known) > 1 or known in (["seed"], ["noise_seed"]):
            summary.sampling.append(
                (title, ", ".join("%s %s" % (n, one_line(inputs[n], 40)) for n in known))
            )
        if "width" in inputs and "height" in inputs and not saves:
            size = "%s x %s" % (one_line(inputs["width"], 12), one_line(inputs["height"], 12))
            for name, word in (("length", "frames"), ("batch_size", "in a batch")):
                if as_number(inputs.get(name), 1) > 1:
                    size += ", %s %s" % (one_line(inputs[name], 12), word)
            summary.sizes.append((title, size))
        if saves:
            prefix = inputs.get("filename_prefix")
            summary.saves.append(
                (title, one_line(prefix, 80) if isinstance(prefix, str) else class_type)
            )
    return summary
