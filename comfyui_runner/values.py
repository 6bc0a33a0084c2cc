"""What a declared input takes: a text read as its value, and what is wrong with a value, in words.

--set, /update/inputs, --seed NUMBER and --check all ask here, and so does the explanation of what
ComfyUI itself refused: the rules are written once, and the words too.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Callable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from comfyui_runner.json_text import parse_json
from comfyui_runner.nodes import (
    MODEL_ENDINGS,
    DeclaredInput,
    did_you_mean,
    is_seed,
    only_other_case,
)
from comfyui_runner.text import one_line, plural

_CONVERTERS: Mapping[str, Callable[[Any], float]] = {"INT": int, "FLOAT": float}

#: The types of JSON that an input of a type takes when it is set.
_JSON_TYPES: Mapping[str, Tuple[type, ...]] = {
    "INT": (int,),
    "FLOAT": (int, float),
    "STRING": (str,),
    "BOOLEAN": (bool,),
}

_TYPES_IN_WORDS = {
    "": "a value of the right type",
    "COMBO": "a COMBO",
    "INT": "a whole number (INT)",
    "FLOAT": "a number (FLOAT)",
    "STRING": "text (STRING)",
}

#: What people write for true and false.
_BOOLEANS = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}

_has_decimal_comma = re.compile(r"\s*[+-]?[0-9]*,[0-9]+\s*").fullmatch

#: Where no option is like what was asked for, all are listed if there are no more than these.
FEW_OPTIONS = 3

#: The folder where ComfyUI looks for what a loader's input names (its folder_paths.py).
MODEL_FOLDERS = {
    "ckpt_name": "checkpoints",
    "lora_name": "loras",
    "vae_name": "vae",
    "unet_name": "diffusion_models",
    "clip_name": "text_encoders",
    "clip_name1": "text_encoders",
    "clip_name2": "text_encoders",
    "clip_name3": "text_encoders",
    "control_net_name": "controlnet",
    "style_model_name": "style_models",
    "gligen_name": "gligen",
    "model_name": "upscale_models",
}

# -- the rules -------------------------------------------------------------------------------------


def find_fault(spec: DeclaredInput, value: Any) -> Optional[str]:
    """What ComfyUI's validate_inputs() (execution.py) says of ``value``: its error type, or None.

    What depends on more than the declaration is left to the server: a combo whose choices come from
    elsewhere, and a file to load, which may be in a subfolder or be "cat.png [output]".
    """
    if spec.type in _CONVERTERS:
        return _find_fault_of_number(spec, value)
    if spec.choices is None or spec.upload_mark:
        return None
    wanted = value if isinstance(value, list) else [value]
    if all(choice in spec.choices for choice in wanted):
        return None
    return "value_not_in_list"


def _find_fault_of_number(spec: DeclaredInput, value: Any) -> Optional[str]:
    """``find_fault()`` of an INT or a FLOAT, whose bounds are both allowed."""
    try:
        number = _CONVERTERS[spec.type](value)
    except (ValueError, TypeError, OverflowError):
        return "invalid_input_type"
    low, high = spec.options.get("min"), spec.options.get("max")
    if isinstance(low, (int, float)) and number < low:
        return "value_smaller_than_min"
    if isinstance(high, (int, float)) and number > high:
        return "value_bigger_than_max"
    return None


def find_fault_to_set(spec: DeclaredInput, value: Any) -> Optional[str]:
    """What is wrong with ``value`` if a person sets it: an error type, or None.

    Stricter than ``find_fault()``: ComfyUI takes the string "12" for an INT and any value for a
    BOOLEAN ("false" becomes true), which is seldom meant; and a link cannot be set.
    """
    input_type = spec.type
    if input_type == "COMBO" and spec.upload_mark:
        input_type = "STRING"  # the name of a file
    is_compound = isinstance(value, (list, dict))

    if input_type in _JSON_TYPES:
        if not _is_of_types(value, _JSON_TYPES[input_type]):
            return "invalid_input_type"
    elif input_type == "COMBO":
        takes_several = isinstance(value, list) and spec.options.get("multiselect")
        if is_compound and not takes_several:
            return "value_not_in_list"
    elif is_compound:
        return "linked_input"
    return find_fault(spec, value)


def _is_of_types(value: Any, types: Tuple[type, ...]) -> bool:
    """Whether JSON can have ``value`` as one of ``types``: NaN and infinities are not in JSON."""
    if isinstance(value, bool):
        return bool in types  # for Python a bool is an int
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return isinstance(value, types)


# -- models ----------------------------------------------------------------------------------------


def is_model_name(value: object) -> bool:
    """Whether the value of an input is the name of a model's file."""
    return isinstance(value, str) and value.lower().endswith(MODEL_ENDINGS)


def name_on_server(spec: DeclaredInput, value: Any) -> Any:
    """What the server calls the model ``value``, which is returned where that is not known.

    It is the choice that has other slashes, or the only one that has this name in a folder.
    """
    choices = spec.choices or []
    if value in choices or not is_model_name(value):
        return value
    path = value.replace("\\", "/")
    names = [choice for choice in choices if isinstance(choice, str)]
    matches = [name for name in names if name.replace("\\", "/") == path]
    has_no_folder = "/" not in path
    if has_no_folder and not matches:
        matches = [name for name in names if name.replace("\\", "/").endswith(f"/{path}")]
    if len(matches) == 1:
        return matches[0]
    return value


# -- the words -------------------------------------------------------------------------------------


class Fault(NamedTuple):
    """What is wrong with the value of an input."""

    type: str  #: ComfyUI's error type, or "linked_input"
    message: str  #: a sentence
    hints: Tuple[str, ...]  #: sentences: what is allowed, what to do


def describe_fault(
    fault_type: str, spec: DeclaredInput, name: str, value: Any, *, names_nearest: bool = True
) -> Fault:
    """A fault that ``find_fault()``, ``find_fault_to_set()`` or ComfyUI found, in words.

    Without ``names_nearest`` the nearest options are not looked for, which takes milliseconds.
    """
    shown = one_line(json.dumps(value, ensure_ascii=False, default=str), 120)
    hints: List[str] = []
    if fault_type == "value_smaller_than_min":
        message = f"{name} = {shown} is too small."
        hints = _hint_at_range(spec)
        if value == -1 and is_seed(name, spec):  # in other programs -1 means a random seed
            hints.append('For a random seed, use --seed random, or set it to "random".')
    elif fault_type == "value_bigger_than_max":
        message = f"{name} = {shown} is too big."
        hints = _hint_at_range(spec)
    elif fault_type == "value_not_in_list":
        message = f"{name} = {shown} is not one of the server's options."
        hints = _hint_at_options(spec, name, value, names_nearest)
    elif fault_type == "linked_input":
        message = f"{name} takes a link from another node, not a value."
    else:
        message = f"{name} = {shown} is not {describe_type(spec)}."
        hints = _hint_at_point(spec, value)
    return Fault(fault_type, message, tuple(hints))


def _hint_at_range(spec: DeclaredInput) -> List[str]:
    allowed = describe_range(spec.options.get("min"), spec.options.get("max"))
    if not allowed:
        return []
    return [f"Allowed: {allowed}."]


def _hint_at_point(spec: DeclaredInput, value: Any) -> List[str]:
    """How to write a decimal number: spreadsheets of many languages write 7,5 for 7.5."""
    is_meant_as_number = spec.type == "FLOAT" and isinstance(value, str)
    if not is_meant_as_number or not _has_decimal_comma(value):
        return []
    return [f"Write it with a decimal point: {value.strip().replace(',', '.')}"]


def _hint_at_options(spec: DeclaredInput, name: str, value: Any, names_nearest: bool) -> List[str]:
    hints = []
    if spec.choices is not None:
        hints.append(_offer_choices(spec.choices, value, names_nearest))
    folder = MODEL_FOLDERS.get(name)
    if folder is not None and hints:
        hints.append(f"Or put the file into ComfyUI's models/{folder} folder.")
    elif folder is not None:
        hints.append(f"Put the file into ComfyUI's models/{folder} folder.")
    return hints


def _offer_choices(choices: Sequence[Any], value: Any, names_nearest: bool) -> str:
    """The choices that are like ``value``, else all of a few, else how many there are."""
    if not choices:
        return "The server has no options to choose from."
    if names_nearest:
        nearest = did_you_mean(value, choices)
        if nearest:
            return nearest
    if len(choices) <= FEW_OPTIONS:
        listed = ", ".join(one_line(choice, 100) for choice in choices)
        return f"The server has {listed}."
    return f"The server has {plural(len(choices), 'option')} to choose from."


def describe_type(spec: DeclaredInput) -> str:
    """What an input takes: "a whole number (INT)"."""
    return _TYPES_IN_WORDS.get(spec.type, one_line(spec.type, 60))


def describe_range(low: object, high: object) -> str:
    """Which numbers are allowed: "1 to 100", "1 or more", "100 or less"; "" where all are."""
    if low is None and high is None:
        return ""
    if high is None:
        return f"{low} or more"
    if low is None:
        return f"{high} or less"
    return f"{low} to {high}"


# -- reading ---------------------------------------------------------------------------------------


def type_of_input(spec: DeclaredInput, value: Any) -> str:
    """The declared type of an input; where none is known, what its value looks like, or ""."""
    guesses = {bool: "BOOLEAN", int: "INT", float: "FLOAT", str: "STRING"}
    return spec.type or guesses.get(type(value), "")


def read_value(spec: DeclaredInput, current: Any, text: str) -> Any:
    """What ``text``, as a person types it, means for an input whose value now is ``current``.

    A text that does not fit is returned as it is, for ``find_fault_to_set()`` to refuse.
    """
    if spec.choices is not None:
        return _read_choice(spec.choices, text)
    input_type = type_of_input(spec, current)
    if input_type in ("STRING", "COMBO"):
        return text
    if input_type == "BOOLEAN":
        return _BOOLEANS.get(text.strip().lower(), text)
    if input_type in ("INT", "FLOAT"):
        return _read_number(text)
    return _read_json(text)  # of a custom node's own type


def _read_choice(choices: Sequence[Any], text: str) -> Any:
    """The one of ``choices`` that is written ``text`` (some are numbers; null is never chosen)."""
    for choice in choices:
        if choice is not None and str(choice) == text:
            return choice
    names = [choice for choice in choices if isinstance(choice, str)]
    return only_other_case(text, names) or text


def _read_number(text: str) -> Any:
    """A whole number, else another one, else ``text``."""
    if "_" in text:
        return text  # 1_000 is a number in Python alone
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            pass
    return text


def _read_json(text: str) -> Any:
    """What ``text`` is in JSON, else ``text``."""
    try:
        return parse_json(text)
    except ValueError:
        return text
