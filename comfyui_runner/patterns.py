"""Patterns in -o and --name: {row}, {name} and {NODE.INPUT} are filled in. Pure."""

from __future__ import annotations

import os
import re
from typing import Any, Mapping

from comfyui_runner.edits import EditError, find_input
from comfyui_runner.errors import UsageError
from comfyui_runner.text import cut_to_bytes, flat, one_line, safe_path_parts

#: What a {field} becomes is cut to this many bytes.
MOST_BYTES_OF_FIELD = 80

#: Most systems limit a name to this many bytes; several fields may be longer together.
MOST_BYTES_OF_NAME = 255


def fill_pattern(pattern: str, fields: Mapping[str, str], prompt: Mapping[str, Any]) -> str:
    """``pattern`` with each ``{field}`` replaced, and each ``{NODE.INPUT}`` of ``prompt``.

    What is put in is a part of one name, never a path. Raises UsageError for what is neither.
    """

    def fill(match: "re.Match[str]") -> str:
        name = match.group(1)
        return part_of_name(value_of_field(name, fields, prompt))

    filled = re.sub(r"\{([^{}]+)\}", fill, pattern)
    return re.sub(r"[^\\/]+", cut_name, filled)


def part_of_name(value: str) -> str:
    """``value`` as a part of the name of a file; "_" if nothing is left of it."""
    *_, part = safe_path_parts("", flat(value) or "_")
    # Windows drops dots and spaces at the end of a name.
    return cut_to_bytes(part, MOST_BYTES_OF_FIELD).rstrip(". ") or "_"


def cut_name(match: "re.Match[str]") -> str:
    """One name of a path, at most as long as a name may be."""
    return cut_to_bytes(match.group(), MOST_BYTES_OF_NAME)


def folder_before_fields(pattern: str) -> str:
    """The part of a folder's ``pattern`` that is the same for every run: ``out`` of ``out/{row}``.

    ``.`` is the current folder.
    """
    constant, brace, _ = pattern.partition("{")
    if not brace:
        return pattern
    return os.path.dirname(constant) or "."


def value_of_field(name: str, fields: Mapping[str, str], prompt: Mapping[str, Any]) -> str:
    """What ``{name}`` in a pattern stands for. Raises UsageError."""
    if name in fields:
        return fields[name]
    try:
        ref = find_input(prompt, name)
        return str(prompt[ref.node_id]["inputs"][ref.input])
    except (EditError, KeyError):
        wrong_field = one_line(in_braces(name), 60)
        known_fields = ", ".join(in_braces(field) for field in fields)
        raise UsageError(f"{wrong_field} is not one of {known_fields} or {{NODE.INPUT}}.") from None


def in_braces(name: str) -> str:
    """A field as it stands in a pattern: ``{name}``."""
    return "{" + name + "}"
