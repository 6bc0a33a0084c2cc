"""Text that is safe to print, durations and sizes in words, names of files, plain JSON."""

from __future__ import annotations

import math
import re
from typing import Any, Dict, List, Mapping

#: An object of JSON to look at: a prompt, object_info, an answer, a message.
JsonObject = Mapping[str, Any]

#: To a terminal these are commands, or lies.
_UNPRINTABLE = re.compile(
    "\x1b\\[[0-?]*[ -/]*[@-~]"  # escape sequences: CSI
    "|\x1b\\][^\x07\x1b]*(?:\x07|\x1b\\\\)?"  # OSC, up to its end
    "|[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and newline: C0, DEL, C1
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # they break lines, or turn their direction
    "\ud800-\udfff]"  # lone surrogates
)


def clean(text: object) -> str:
    """``text`` without anything that a terminal would obey; newlines stay, tabs become spaces."""
    return _UNPRINTABLE.sub("", str(text).replace("\r\n", "\n").replace("\t", "    "))


def one_line(text: object, limit: int = 0) -> str:
    """``text`` cleaned, on one line, at most ``limit`` characters (0: any number)."""
    line = " ".join(clean(text).split())
    is_short_enough = limit == 0 or len(line) <= limit
    if is_short_enough:
        return line
    return line[: max(limit - 1, 0)] + "…"


def duration(seconds: float) -> str:
    """``seconds`` as a person says it: "0.4 s", "12.3 s", "2:05", "1:02:03"."""
    if seconds < 59.95:  # from there on it would be rounded to "60.0 s"
        return f"{max(seconds, 0.0):.1f} s"
    whole_seconds = int(min(seconds, 1e9) + 0.5)  # infinity has no int
    minutes, seconds_left = divmod(whole_seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{seconds_left:02d}"
    return f"{minutes}:{seconds_left:02d}"


def size_in_words(count: float) -> str:
    """``count`` bytes as "512 B", "1.5 MB" (steps of 1024, as file managers show them)."""
    if count < 1024:
        return f"{count:.0f} B"
    for unit in ("KB", "MB"):
        count /= 1024
        if count < 1023.95:  # from there on it would be rounded to "1024.0"
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} GB"


def plural(count: int, noun: str) -> str:
    """``1 node``, ``2 nodes``."""
    if count == 1:
        return f"1 {noun}"
    return f"{count} {noun}s"


# -- names of files ------------------------------------------------------------------------------

#: Bytes of one part of a path: file systems allow 255, and a number or an ending may be added.
PART_LIMIT = 200

#: Names that Windows keeps for devices, with any ending (learn.microsoft.com, "Naming Files").
_DEVICE_NAMES = re.compile(
    r"(?i)^(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³]) *(\..*)?$"
)


def safe_path_parts(subfolder: str, filename: str) -> List[str]:
    """The parts of a path below the output folder for what the server calls ``subfolder/filename``.

    The same on every system, so that a name never leads out of the folder, whatever the server
    says: each part is what safe_path_part() makes of it, and none is empty.
    """
    parts = re.split(r"[\\/]", f"{subfolder}/{filename}")
    safe_parts = [safe_path_part(part) for part in parts]
    return [part for part in safe_parts if part] or ["output"]


def safe_path_part(part: str) -> str:
    """``part`` of a path as every system takes it; "" if nothing is left of it.

    It does not begin with a dot (``.bashrc``, ``.git``: such files are hidden, and programs obey
    them), holds no drive, no character that Windows forbids and no control character, is not the
    name of a device, and is at most PART_LIMIT bytes long.
    """
    part = re.sub(r'[<>:"|?*\n]', "_", clean(part)).rstrip(". ").lstrip(" ")
    part = re.sub(r"^\.", "_", part)
    if _DEVICE_NAMES.match(part):
        part = f"_{part}"

    stem, dot, ending = part.rpartition(".")
    has_ending = dot and len(ending) <= 16
    if not has_ending:
        return cut_to_bytes(part, PART_LIMIT).rstrip(". ")
    ending = f".{ending}"
    return cut_to_bytes(stem, PART_LIMIT - len(ending.encode())) + ending


def cut_to_bytes(text: str, limit: int) -> str:
    """The beginning of ``text`` whose UTF-8 has at most ``limit`` bytes."""
    return text.encode()[:limit].decode(errors="ignore")


def make_encodable(name: str, encoding: str, errors: str = "strict") -> str:
    """``name`` with "_" for each character that ``encoding`` cannot express."""
    while True:
        try:
            name.encode(encoding, errors)
        except UnicodeEncodeError as error:
            stand_ins = "_" * (error.end - error.start)
            name = name[: error.start] + stand_ins + name[error.end :]
        else:
            return name


def flat(text: str) -> str:
    """``text`` as one part of a path."""
    return re.sub(r"[\\/]", "_", text)


def numbered_name(name: str, number: int) -> str:
    """``name`` for a try: ``a.png``, then ``a (1).png`` and so on, as ComfyUI names uploads."""
    if not number:
        return name
    stem, dot, ending = name.rpartition(".")
    has_ending = dot and stem  # ".hidden" has none
    if has_ending:
        return f"{stem} ({number}).{ending}"
    return f"{name} ({number})"


# -- JSON from outside ---------------------------------------------------------------------------

#: How deep JSON is passed on. Nothing that is meant to be read is deeper.
DEPTH_LIMIT = 60


def as_dict(value: object) -> Dict[str, Any]:
    """``value`` where it is a dict, else an empty one: what a server sends may be anything."""
    if isinstance(value, dict):
        return value
    return {}


def as_list(value: object) -> List[Any]:
    """``value`` where it is a list, else an empty one."""
    if isinstance(value, list):
        return value
    return []


def as_number(value: object, default: float = 0.0) -> float:
    """``value`` where it is a finite number, else ``default`` (``NaN`` may come in JSON)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return default
    is_finite = abs(value) < 1e300  # not isfinite(): an int of JSON may be too large for it
    if not is_finite:
        return default
    return value


def plain_json(value: object, depth: int = 0) -> Any:
    """``value`` as strict JSON can hold it.

    ``NaN`` and infinities become null, keys become texts, and what lies deeper than DEPTH_LIMIT
    becomes "…".
    """
    if depth > DEPTH_LIMIT:
        return "…"
    if isinstance(value, dict):
        return {str(key): plain_json(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain_json(item, depth + 1) for item in value]
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
