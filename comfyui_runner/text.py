"""Text that is safe to print, durations and sizes in words, names of files, plain JSON."""

from __future__ import annotations

import re
from typing import Any, Dict, List, Mapping, Sequence

#: An object of JSON to look at: a prompt, object_info, an answer, a message.
JsonObject = Mapping[str, Any]

#: Escape sequences (CSI, and OSC up to its end), control characters (C0, DEL, C1), the marks that
#: turn the direction of text, and lone surrogates: in a terminal they are commands or lies, not text.
_UNPRINTABLE = re.compile(
    "\x1b\\[[0-?]*[ -/]*[@-~]|\x1b\\][^\x07\x1b]*(?:\x07|\x1b\\\\)?"
    "|[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def clean(text: object) -> str:
    """``text`` without anything that a terminal would obey; newlines stay, tabs become spaces."""
    return _UNPRINTABLE.sub("", str(text).replace("\r\n", "\n").replace("\t", "    "))


def one_line(text: object, limit: int = 0) -> str:
    """``text`` cleaned, on one line, at most ``limit`` characters (0: any number)."""
    line = " ".join(clean(text).split())
    return line if not limit or len(line) <= limit else line[: max(limit - 1, 0)] + "…"


def duration(seconds: float) -> str:
    """``seconds`` as a person says it: "0.4 s", "12.3 s", "2:05", "1:02:03"."""
    if seconds < 59.95:
        return "%.1f s" % max(seconds, 0.0)
    whole = int(min(seconds, 1e9) + 0.5)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return "%d:%02d:%02d" % (hours, minutes, rest) if hours else "%d:%02d" % (minutes, rest)


def size_in_words(count: float) -> str:
    """``count`` bytes as "512 B", "1.5 MB" (steps of 1024, as file managers show them)."""
    if count < 1024:
        return "%d B" % count
    for unit in ("KB", "MB"):
        count /= 1024
        if count < 1023.95:
            return "%.1f %s" % (count, unit)
    return "%.1f GB" % (count / 1024)


def plural(count: int, noun: str) -> str:
    """``1 node``, ``2 nodes``."""
    return "%d %s%s" % (count, noun, "" if count == 1 else "s")


def hide_secrets(text: str, secrets: Sequence[str]) -> str:
    """``text`` with every secret replaced by ``***``, the longest first."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


#: Names that Windows keeps for devices, with any ending (learn.microsoft.com, "Naming Files").
_DEVICE_NAMES = re.compile(
    r"(?i)^(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³]) *(\..*)?$"
)


def safe_path_parts(subfolder: str, filename: str) -> List[str]:
    """The parts of a path below the output folder for what the server calls ``subfolder/filename``.

    No part is empty, ``.`` or ``..``, holds a separator, a drive, a character that Windows forbids
    or a control character, is a device name, or is longer than 200 bytes: the same on every system,
    so a name never leads out of the folder, whatever the server says.
    """
    parts = []
    for part in re.split(r"[\\/]", subfolder + "/" + filename):
        part = re.sub(r'[<>:"|?*]', "_", clean(part).replace("\n", "_")).rstrip(". ").lstrip(" ")
        if _DEVICE_NAMES.match(part):
            part = "_" + part
        stem, dot, ending = part.rpartition(".")
        if dot and len(ending) <= 16:
            part = cut_to_bytes(stem, 200 - len(ending.encode()) - 1) + dot + ending
        else:
            part = cut_to_bytes(part, 200).rstrip(". ")
        if part:
            parts.append(part)
    return parts or ["output"]


def cut_to_bytes(text: str, limit: int) -> str:
    return text.encode()[:limit].decode(errors="ignore")


def flat(text: str) -> str:
    """``text`` as one part of a path."""
    return re.sub(r"[\\/]", "_", text)


def numbered_name(name: str, number: int) -> str:
    """``name`` for the ``number``-th try: ``a.png``, then ``a (1).png``, as ComfyUI names uploads."""
    if not number:
        return name
    stem, dot, ending = name.rpartition(".")
    return "%s (%d).%s" % (stem, number, ending) if dot and stem else "%s (%d)" % (name, number)


def as_dict(value: object) -> Dict[str, Any]:
    """``value`` where it is a dict, else an empty one: what a server sends may be anything."""
    return value if isinstance(value, dict) else {}


def as_list(value: object) -> List[Any]:
    """``value`` where it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def as_number(value: object, default: float = 0.0) -> float:
    """``value`` where it is a finite number, else ``default`` (``NaN`` may come in JSON)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return default
    return value if abs(value) < 1e300 else default


def plain_json(value: object, depth: int = 0) -> Any:
    """``value`` as strict JSON can hold it: ``NaN`` and infinities become null, keys text, and what
    lies 60 levels deep "…"."""
    if depth > 60:
        return "…"
    if isinstance(value, dict):
        return {str(key): plain_json(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain_json(item, depth + 1) for item in value]
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, bytes):
        return "<%d bytes>" % len(value)
    return value
