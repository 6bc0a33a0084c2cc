"""Values that the scripts of well-known packs save in a way of their own.

ComfyUI's frontend saves the values of a node's widgets in their order. VideoHelperSuite saves them
by name, and rgthree's Power Lora Loader saves a row for each LoRA.
"""

from __future__ import annotations

from typing import Any, Dict, Iterator, Mapping, NamedTuple, Optional, Sequence, Tuple

from comfyui_runner.text import JsonObject, as_dict, as_list

POWER_LORA_LOADER = "Power Lora Loader (rgthree)"

#: The names of the values that VideoHelperSuite once saved as a list (VHS.core.js, convDict). None:
#: a button.
_NAMES_IN_LIST: Mapping[str, Sequence[Optional[str]]] = {
    "VHS_LoadImages": (
        "directory",
        None,
        "image_load_cap",
        "skip_first_images",
        "select_every_nth",
    ),
    "VHS_LoadImagesPath": (
        "directory",
        "image_load_cap",
        "skip_first_images",
        "select_every_nth",
    ),
    "VHS_VideoCombine": (
        "frame_rate",
        "loop_count",
        "filename_prefix",
        "format",
        "pingpong",
        "save_image",
    ),
    "VHS_LoadVideo": (
        "video",
        "force_rate",
        "force_size",
        "frame_load_cap",
        "skip_first_frames",
        "select_every_nth",
    ),
    "VHS_LoadVideoPath": (
        "video",
        "force_rate",
        "force_size",
        "frame_load_cap",
        "skip_first_frames",
        "select_every_nth",
    ),
}


class NamedValue(NamedTuple):
    """A value of a widget, and where in ``widgets_values`` it is; None: in no single place."""

    place: Any
    value: Any


def read_named_values(type_: str, stored: Any) -> Optional[Dict[str, NamedValue]]:
    """The values that a file has by name; None where it has them in the order of the widgets."""
    if isinstance(stored, dict):
        named = {str(name): NamedValue(name, value) for name, value in stored.items()}
    else:
        values = as_list(stored)
        names = _NAMES_IN_LIST.get(type_, ())
        if not names or len(values) < len(names):
            return None
        named = {name: NamedValue(index, values[index]) for index, name in enumerate(names) if name}
    if type_.startswith("VHS_"):
        _rename_old_values(named)
    return named


def _rename_old_values(named: Dict[str, NamedValue]) -> None:
    """Gives values of older VideoHelperSuites their names of today (VHS.core.js, useKVState)."""
    if "save_image" in named:
        old = named.pop("save_image")
        named.setdefault("save_output", old)
    if "force_size" not in named:
        return
    size = named.pop("force_size").value
    if not isinstance(size, str):
        return
    width, by, height = size.partition("x")
    if by:
        named["custom_width"] = NamedValue(None, _parse_side(width))
        named["custom_height"] = NamedValue(None, _parse_side(height))
        return
    if size in ("Disabled", "Custom Height"):
        named["custom_width"] = NamedValue(None, 0)
    if size in ("Disabled", "Custom Width"):
        named["custom_height"] = NamedValue(None, 0)


def _parse_side(text: str) -> int:
    """The width or height in a size like ``512x?``; 0 lets the video decide."""
    if text.isascii() and text.isdigit():
        return int(text[:9])
    return 0


def read_power_loras(values: Sequence[Any], properties: JsonObject) -> Iterator[Tuple[int, Any]]:
    """The rows of a Power Lora Loader: where each one is among ``values``, and what is sent of it.

    rgthree-comfy, power_lora_loader.ts: every value with a LoRA is a row. The second strength, that
    of CLIP, counts only where the node shows both.
    """
    shows_both = properties.get("Show Strengths") == "Separate Model & Clip"
    for index, value in enumerate(values):
        row = as_dict(value)
        if "lora" not in row:
            continue
        sent = {key: row[key] for key in row if key != "strengthTwo"}
        if shows_both:
            second_strength = row.get("strengthTwo")
            sent["strengthTwo"] = 1 if second_strength is None else second_strength
        yield index, sent


# ------------------------------------------------------------------------------------------------
# Values that no widget takes
# ------------------------------------------------------------------------------------------------

#: Values of buttons: no node of the server misses them.
_BUTTON_VALUES = ("image", "upload", "refresh")

#: Buttons and previews of VideoHelperSuite, by name.
_DISPLAY_ONLY = (
    "audio_file",
    "choose audio to upload",
    "choose folder to upload",
    "choose video to upload",
    "count",
    "upload",
    "videopreview",
)

#: Classes that save what they last showed.
_SHOWING_CLASSES = (
    "GetImageSize",
    "ImageCompare",
    "PreviewAny",
    "PreviewBridge",
    "PreviewBridgeLatent",
    "Image Comparer (rgthree)",
    "Display Any (rgthree)",
    "Display Int (rgthree)",
    "ShowText|pysssss",
    "easy imageSize",
    "easy imageSizeByLongerSide",
    "easy imageSizeBySide",
    "easy imageInterrogator",
    "easy showAnything",
)


def values_that_matter(type_: str, unused_values: Sequence[Any]) -> Sequence[Any]:
    """Those of the values that no widget of a class takes which somebody may miss."""
    if type_ in _SHOWING_CLASSES:
        return []
    return [
        value
        for value in unused_values
        if value not in (None, "", [], {}) and value not in _BUTTON_VALUES
    ]


def names_that_matter(named: Mapping[str, NamedValue]) -> Sequence[str]:
    return [name for name in named if name not in _DISPLAY_ONLY]
