"""Which ComfyUI answers, and whether the runner works with it."""

from __future__ import annotations

import re
from typing import Any, Dict, Mapping, Tuple

from comfyui_runner.errors import ServerTooOld
from comfyui_runner.text import as_dict, as_list, one_line

#: ComfyUI 0.3.57 (September 2025). From it on POST /interrupt reads a prompt_id (commit 464ba1d6);
#: older versions interrupt whatever runs, and before 0.3.45 (260a5ca5) they choose the prompt_id.
OLDEST_COMFYUI = (0, 3, 57)


def parse_version(stats: Mapping[str, Any]) -> Tuple[int, ...]:
    """ComfyUI's version in an answer of GET /system_stats; () if it is missing or unreadable."""
    text = str(as_dict(stats.get("system")).get("comfyui_version"))
    match = re.match(r"v?(\d+)\.(\d+)\.(\d+)", text)
    if match is None:
        return ()
    return tuple(map(int, match.groups()))


def refuse_old_version(stats: Mapping[str, Any], url: str) -> None:
    """Raises ServerTooOld for the answer of a ComfyUI before OLDEST_COMFYUI.

    A version that cannot be read is not refused, see version_warning(): forks have versions of
    their own.
    """
    version = parse_version(stats)
    is_too_old = version != () and version < OLDEST_COMFYUI
    if not is_too_old:
        return
    raise ServerTooOld(
        f"ComfyUI {version_in_words(version)} at {url} is too old: update it to "
        f"{version_in_words(OLDEST_COMFYUI)} (September 2025) or newer.",
        "To update: git pull in its folder, or use the updater of ComfyUI Desktop, of the portable "
        "version or of ComfyUI-Manager.",
    )


def version_warning(stats: Mapping[str, Any], url: str) -> str:
    """The notice for a person whose ComfyUI does not say which version it is; "" if it does."""
    if parse_version(stats):
        return ""
    return (
        f"ComfyUI at {url} does not report its version. A version before "
        f"{version_in_words(OLDEST_COMFYUI)} would interrupt whatever runs: "
        "make sure that it is newer."
    )


def version_in_words(version: Tuple[int, ...]) -> str:
    """A version as ComfyUI writes it."""
    return ".".join(map(str, version))


def server_in_words(stats: Mapping[str, Any]) -> Dict[str, str]:
    """The version and the first device in an answer of GET /system_stats, "" where it has none."""
    version = as_dict(stats.get("system")).get("comfyui_version")
    devices = map(as_dict, as_list(stats.get("devices")))
    first_device = next(devices, {})
    return {
        "version": one_line(version or "", 40),
        "device": one_line(first_device.get("name") or "", 80),
    }
