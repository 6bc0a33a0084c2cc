"""--each: runs for every value of an input; several make the product. Pure."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Sequence, Tuple

from comfyui_runner.call_values import SHORT_NAMES
from comfyui_runner.documents import Prompt
from comfyui_runner.edits import EditError, apply_edits, example_of_input, find_input
from comfyui_runner.extras.batches import Row, row_edits
from comfyui_runner.nodes import DeclaredInput, quote_name, spec_of, value_of
from comfyui_runner.text import JsonObject
from comfyui_runner.upload_inputs import upload_inputs
from comfyui_runner.values import type_of_input

#: Values that a range may have.
MOST_VALUES = 1_000_000

#: Values of an input that are tried before anything runs.
MOST_TRIED = 1000

#: Combinations of values: more are a mistake.
MOST_COMBINATIONS = 1_000_000

#: How many "=" may end a name: a title may contain a few, and VALUES any number of them.
MOST_EQUALS = 10

_is_range = re.compile(r"\s*(-?\d{1,18})\s*\.\.\s*(-?\d{1,18})\s*").fullmatch


class Axis(NamedTuple):
    """The values of one input, or of what a short name means."""

    name: str  # NODE.INPUT as it was typed, or a short name
    values: Sequence[Any]


class FileAccess(NamedTuple):
    """This machine's files: those that a pattern or a path means, and the lines of a text."""

    find: Callable[[str], List[str]]
    read_lines: Callable[[str], List[str]]


def read_axes(
    texts: Iterable[str], prompt: Prompt, object_info: JsonObject, files: FileAccess
) -> List[Axis]:
    """The axes in ``NAME=VALUES``, in their order; the same name again adds to its values.

    Raises EditError for a name, for a value that its input does not take, and for more combinations
    than anybody runs.
    """
    values: Dict[str, List[Any]] = {}
    for text in texts:
        name, value_text = _split(text, prompt)
        more_values = _read_values(name, value_text, prompt, object_info, files)
        values.setdefault(name, []).extend(more_values)
    axes = [Axis(name, each) for name, each in values.items()]
    combinations = count_combinations(axes)
    if combinations > MOST_COMBINATIONS:
        message = (
            f"--each makes {combinations} combinations of values, but only {MOST_COMBINATIONS} "
            "are allowed."
        )
        raise EditError("wrong_value", message)
    for axis in axes:
        _try_values(axis, prompt, object_info)
    return axes


def _try_values(axis: Axis, prompt: Prompt, object_info: JsonObject) -> None:
    """Raises EditError if the input does not take one of the first values of an axis."""
    for value in axis.values[:MOST_TRIED]:
        row = Row(0, {axis.name: value})
        edits = row_edits(prompt, row, object_info)
        edits_without_files = [edit for edit in edits if not edit.file]
        apply_edits(prompt, edits_without_files, object_info)


def count_combinations(axes: Iterable[Axis]) -> int:
    """How many rows rows_of_product() makes."""
    return math.prod(len(axis.values) for axis in axes)


def rows_of_product(axes: Sequence[Axis]) -> Iterator[Row]:
    """A row for each combination of values; those of the last axis change first."""
    names = [axis.name for axis in axes]
    combinations = itertools.product(*(axis.values for axis in axes))
    for number, combination in enumerate(combinations, 1):
        yield Row(number, dict(zip(names, combination)))


# -- NAME=VALUES -----------------------------------------------------------------------------------


def _split(text: str, prompt: JsonObject) -> Tuple[str, str]:
    """The name and the text of the values. Raises EditError.

    The first "=" after which the text before it is a name ends the name.
    """
    errors: List[EditError] = []
    for equals in itertools.islice(re.finditer("=", text), MOST_EQUALS):
        name = text[: equals.start()].strip()
        values = text[equals.end() :]
        if name in SHORT_NAMES:
            return name, values
        try:
            find_input(prompt, name)
        except EditError as error:
            errors.append(error)
        else:
            return name, values
    if errors:
        raise errors[0]
    example = example_of_input(prompt) or "NODE.INPUT"
    # Quoted: to PowerShell, a comma outside quotes ends the argument.
    message = f'--each takes NODE.INPUT=VALUES, such as --each "{example}=10,20,30".'
    raise EditError("wrong_name", message)


def _read_values(
    name: str, text: str, prompt: JsonObject, object_info: JsonObject, files: FileAccess
) -> List[Any]:
    """The values that ``text`` stands for, by the type of the input. Raises EditError."""
    if name == "size":
        return _split_list(name, text)
    if name == "seed":
        return _read_numbers(name, text)

    if name == "image":
        return _find_files(name, text, files)
    if name in SHORT_NAMES:
        return _read_texts(name, text, files)

    ref = find_input(prompt, name)
    if ref in upload_inputs(prompt, object_info):
        return _find_files(name, text, files)
    spec = spec_of(prompt, ref, object_info)
    input_type = type_of_input(spec, value_of(prompt, ref))
    if input_type == "STRING":
        return _read_texts(name, text, files)
    if input_type in ("INT", "FLOAT"):
        return _read_numbers(name, text)
    return _read_choices(name, text, spec)


def _split_list(name: str, text: str) -> List[str]:
    """The parts between commas. Raises EditError if there is none."""
    parts = [part.strip() for part in text.split(",")]
    parts = [part for part in parts if part]
    if not parts:
        raise EditError("missing_value", f"--each {name}= has no values.")
    return parts


def _read_numbers(name: str, text: str) -> List[Any]:
    """``4,6,8``, ``1..8``, or both."""
    values: List[Any] = []
    for part in _split_list(name, text):
        match = _is_range(part)
        if match is None:
            values.append(part)
            continue
        first = int(match[1])
        last = int(match[2])
        numbers = range(first, last + 1)
        if first > last:
            numbers = range(first, last - 1, -1)
        if len(numbers) > MOST_VALUES:
            message = (
                f"--each {name}={part} is {len(numbers)} values, but only {MOST_VALUES} "
                "are allowed."
            )
            raise EditError("wrong_value", message)
        values.extend(numbers)
    return values


def _read_choices(name: str, text: str, spec: DeclaredInput) -> List[Any]:
    """The parts between commas, unless all of it is one choice: names of models have commas too."""
    choices = spec.choices or ()
    if any(str(choice) == text for choice in choices):
        return [text]
    return list(_split_list(name, text))


def _read_texts(name: str, text: str, files: FileAccess) -> List[Any]:
    """A text, which may have commas, or the lines of ``@FILE``; ``@@x`` is the text ``@x``."""
    if text.startswith("@@"):
        return [text[1:]]
    if not text.startswith("@") or text == "@":
        return [text]
    lines = [line for line in files.read_lines(text[1:]) if line.strip()]
    if not lines:
        raise EditError("missing_value", f"--each {name}={text}: the file has no text.")
    return list(lines)


def _find_files(name: str, text: str, files: FileAccess) -> List[Any]:
    """Files, as rows name them (``@FILE``), and names on the server, with commas between them.

    A file's own name may have commas. Raises EditError for a pattern and an ``@FILE`` that no file
    fits.
    """
    parts = [text]
    is_one_name = bool(files.find(_without_at(text)))
    if not is_one_name:
        parts = _split_list(name, text)
    values: List[Any] = []
    for part in parts:
        paths = files.find(_without_at(part))
        values += [f"@{path}" for path in paths]
        if paths:
            continue
        is_pattern = any(sign in part for sign in "*?[")
        if part.startswith("@") or is_pattern:
            message = f"--each {name}={quote_name(part)}: no file matches."
            raise EditError("no_such_file", message)
        values.append(part)  # a name on the server
    return values


def _without_at(text: str) -> str:
    """The pattern in ``text``: ``@FILE`` is a file too."""
    if text.startswith("@"):
        return text[1:]
    return text
