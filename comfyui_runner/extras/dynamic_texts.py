"""Texts that the frontend works on whenever it queues: dynamic prompts, and names of files.

Both are different for each run, so a prompt keeps them open until it runs.
"""

from __future__ import annotations

import datetime
import json
import random
import re
from typing import Any, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Tuple, Union

from comfyui_runner.documents import Conversion, Prompt, ValueInFileName
from comfyui_runner.nodes import InputRef, class_of, inputs_of, is_link, own_title, value_of

#: How many braces inside each other are chosen from. Deeper ones stay as they are.
DEEPEST_BRACES = 100

#: The classes whose filename_prefix takes %Node.widget% and %date:...%
#: (extensions/core/saveImageExtraOutput.ts).
SAVING_CLASSES = {
    "SaveImage",
    "SaveImageAdvanced",
    "SaveAnimatedPNG",
    "SaveAnimatedWEBP",
    "SaveSVGNode",
    "SaveVideo",
    "SaveWEBM",
    "SaveAudio",
    "SaveAudioMP3",
    "SaveAudioOpus",
    "SaveAudioAdvanced",
    "SaveGLB",
    "Save3DAdvanced",
    "SaveGaussianSplat",
    "SavePointCloud",
    "SaveLatent",
    "CLIPSave",
    "VAESave",
    "ModelSave",
    "LoraSave",
}

#: What the name of a file has between % and %.
_NAMES_IN_FILE_NAME = re.compile("%([^%]+)%")

#: Of an input that does not exist: None is a value.
NO_VALUE = object()

#: A comment of a dynamic prompt: between /* and */, or from // to the end of the line.
_COMMENT = re.compile(r"/\*[\s\S]*?\*/|//[^\n\r\u2028\u2029]*")

#: A character of a dynamic prompt, with the backslash before it.
_TOKEN = re.compile(r"\\[\s\S]?|[^\\]")

#: A character that a backslash makes an ordinary one.
_ESCAPED_MARK = re.compile(r"\\([{}|])")

_has_markup = re.compile(r"[{/\\]").search  # what a dynamic prompt may be changed by
_has_choice = re.compile(r"(?<!\\)\{[^{}]*\|").search


class FilledTexts(NamedTuple):
    """The texts of one run that differ from those that are open."""

    drawn: Dict[InputRef, str]
    file_names: Dict[InputRef, str]


def fill_texts(
    prompt: Prompt, conversion: Conversion, rng: random.Random, now: datetime.datetime
) -> FilledTexts:
    """The texts of one run of ``prompt``, which came from ``conversion`` and may be edited since.

    ``rng`` chooses in texts like ``{day|night}``; ``now`` is the time for ``%date:...%`` in the
    names of files. The prompt is not changed.
    """
    drawn = {
        ref: choose_from_dynamic_prompt(value_of(prompt, ref), rng)
        for ref in open_texts(prompt, conversion)
    }
    values = ValuesInFileNames(prompt, conversion.named_values)
    file_names = {}
    for ref, text in _file_names(prompt):
        name = fill_file_name(text, values, now)
        if name != text:
            file_names[ref] = name
    return FilledTexts(drawn, file_names)


def open_texts(prompt: Prompt, conversion: Conversion) -> List[InputRef]:
    """The inputs that something is drawn in for each run.

    A text as the file has it is read as the frontend reads it. One that was set since must have a
    choice in it: nothing is taken out of any other, such as // of an address.
    """
    refs = []
    for ref in conversion.draws:
        text = value_of(prompt, ref)
        if not isinstance(text, str):
            continue
        is_edited = text != value_of(conversion.prompt, ref)
        is_open = bool(_has_markup(text))
        if is_edited:
            is_open = bool(_has_choice(text))
        if is_open:
            refs.append(ref)
    return refs


# -- dynamic prompts -------------------------------------------------------------------------------


def choose_from_dynamic_prompt(text: str, rng: random.Random, depth: int = 0) -> str:
    """``text`` without comments, and with one of the choices of each {a|b} (formatUtil.ts).

    A backslash before a brace or a bar makes it an ordinary character. What follows a brace that is
    never closed is a choice like any other.
    """
    if not _has_markup(text):
        return text
    text = _COMMENT.sub("", text)
    tokens = [text]
    if depth < DEEPEST_BRACES:
        tokens = _TOKEN.findall(text)
    chosen: List[str] = []
    for part in _parts_of_dynamic_prompt(tokens):
        if isinstance(part, str):
            chosen.append(part)
        else:
            choice = part[int(rng.random() * len(part))]
            chosen.append(choose_from_dynamic_prompt(choice, rng, depth + 1))
    return _ESCAPED_MARK.sub(r"\1", "".join(chosen))


def _parts_of_dynamic_prompt(tokens: Iterable[str]) -> Iterator[Union[str, List[str]]]:
    """The parts of a text: what is outside of braces, and the choices in each {a|b}.

    Braces within a choice are left in it, with what they contain.
    """
    choices: List[str] = []
    open_braces = 0
    for token in tokens:
        if open_braces == 0 and token == "{":
            open_braces = 1
            choices = [""]
        elif open_braces == 0:
            yield token
        elif open_braces == 1 and token == "|":
            choices.append("")
        elif open_braces == 1 and token == "}":
            open_braces = 0
            yield choices
        else:
            choices[-1] += token
            if token == "{":
                open_braces += 1
            elif token == "}":
                open_braces -= 1
    if open_braces:
        yield choices


# -- names of files --------------------------------------------------------------------------------


def _file_names(prompt: Prompt) -> Iterator[Tuple[InputRef, str]]:
    """The inputs of ``prompt`` that name files and may be filled in, and their texts."""
    for node_id in prompt:
        class_type = class_of(prompt, node_id)
        text = inputs_of(prompt, node_id).get("filename_prefix")
        is_filled_in = class_type in SAVING_CLASSES or class_type == "VHS_VideoCombine"
        if is_filled_in and isinstance(text, str):
            yield InputRef(node_id, "filename_prefix"), text


def names_in_file_names(prompt: Prompt) -> Iterator[Tuple[str, str]]:
    """The node and the widget of each %Node.widget% in the names of files."""
    for _, text in _file_names(prompt):
        for name in _NAMES_IN_FILE_NAME.findall(text):
            node_name, dot, widget_name = name.partition(".")
            if dot and "." not in widget_name:
                yield node_name, widget_name


class ValuesInFileNames:
    """What %Node.widget% stands for in a run of ``prompt``, as far as ``named_values`` says it.

    What it does not name is looked for in the prompt, as the frontend does it for a file in API
    format: the first node of this class or, if there is none, with this title.
    """

    def __init__(self, prompt: Prompt, named_values: Mapping[str, ValueInFileName]) -> None:
        self._prompt = prompt
        self._named_values = named_values
        classes: Dict[str, str] = {}
        titles: Dict[str, str] = {}
        for node_id in prompt:
            class_type = class_of(prompt, node_id)
            if class_type not in SAVING_CLASSES:
                classes.setdefault(class_type, node_id)
            titles.setdefault(own_title(prompt, node_id), node_id)
        self._node_ids = {**titles, **classes}

    def find(self, node_name: str, widget_name: str) -> Any:
        """The value; ``NO_VALUE`` where nothing has this name, or a link feeds it."""
        named = self._named_values.get(f"{node_name}.{widget_name}")
        if named is not None and named.ref is None:
            return named.value
        node_id = self._node_ids.get(node_name, "")
        if named is not None and named.ref is not None:
            node_id = named.ref.node_id
        value = inputs_of(self._prompt, node_id).get(widget_name, NO_VALUE)
        if is_link(value):
            return NO_VALUE
        return value


def fill_file_name(text: str, values: ValuesInFileNames, now: datetime.datetime) -> str:
    """``text`` with the date for %date:...%, and values for %Node.widget% (searchAndReplace.ts).

    What names nothing stays as it is.
    """

    def fill(match: re.Match[str]) -> str:
        parts = match.group(1).split(".")
        if len(parts) == 2:
            value = values.find(*parts)
            if value is not NO_VALUE:
                return text_in_file_name(value)
        elif parts[0].startswith("date:"):  # as in the frontend, a dot ends the pattern
            return format_date(parts[0][len("date:") :], now)
        return match.group()

    return _NAMES_IN_FILE_NAME.sub(fill, text)


def format_date(pattern: str, now: datetime.datetime) -> str:
    """``now`` as a pattern like "yyyy-MM-dd" says (formatUtil.ts, formatDate)."""
    numbers = {"d": now.day, "M": now.month, "h": now.hour, "m": now.minute, "s": now.second}

    def format_part(match: re.Match[str]) -> str:
        part = match.group()
        if part == "yyyy":
            return str(now.year)
        if part == "yy":
            return f"{now.year % 100:02}"
        if part == "yyy":
            return part
        return str(numbers[part[0]]).zfill(len(part))

    return re.sub("dd?|MM?|hh?|mm?|ss?|yyy?y?", format_part, pattern)


def text_in_file_name(value: Any) -> str:
    """A value as JavaScript writes it, with "_" for what a file name cannot have.

    searchAndReplace.ts.
    """
    if value is None:
        return ""
    if isinstance(value, float) and value % 1 == 0:
        value = int(value)
    text = str(value)
    if isinstance(value, bool):
        text = json.dumps(value)
    return re.sub(r'[/?<>\\:*|"\x00-\x1f\x7f]', "_", text)
