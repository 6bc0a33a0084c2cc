"""The names of files as ComfyUI takes them: "name [output]", subfolders, media types."""

from __future__ import annotations

import mimetypes
import os
import time
from typing import Callable

FOLDERS = ("input", "output", "temp")

#: The files that an output may name by a bare path (comfy_execution/jobs.py).
SUFFIXES_3D = (".obj", ".fbx", ".gltf", ".glb", ".usdz")

#: The types of files, the same on every system and for every Python.
MEDIA_TYPES = mimetypes.MimeTypes()
MEDIA_TYPES.add_type("image/webp", ".webp")
MEDIA_TYPES.add_type("audio/flac", ".flac")
MEDIA_TYPES.add_type("model/gltf-binary", ".glb")

#: Windows' errors for a file that another program, often a virus scanner, has open for a moment:
#: ERROR_ACCESS_DENIED, ERROR_SHARING_VIOLATION, ERROR_LOCK_VIOLATION.
IN_USE_ERRORS = (5, 32, 33)

#: Seconds to wait before each new try at a file in use: 2.5 in all.
PAUSES_WHILE_IN_USE = (0.1, 0.2, 0.4, 0.8, 1.0)


def when_not_in_use(action: Callable[[], None]) -> None:
    """Run ``action``, again while Windows says that a file is in use. Raises OSError."""
    for pause in PAUSES_WHILE_IN_USE:
        try:
            return action()
        except OSError as error:
            if getattr(error, "winerror", None) not in IN_USE_ERRORS:
                raise
        time.sleep(pause)
    return action()


def guess_media_type(path: str) -> str:
    """The media type of a file by its suffix, "application/octet-stream" if it is not known."""
    return MEDIA_TYPES.guess_type(path)[0] or "application/octet-stream"


def split_annotation(name: str, default_folder: str) -> tuple[str, str]:
    """Split "name [output]" into name and folder; without such an ending it is the default."""
    for folder in FOLDERS:
        ending = f"[{folder}]"
        if name.endswith(ending):
            return name[: -len(ending)].rstrip(), folder
    return name, default_folder


def path_inside(folder: str, name: str) -> str:
    """The path of a file in a folder.

    Raises PermissionError if it, or what it links to, is outside.
    """
    folder = os.path.realpath(folder)
    path = os.path.realpath(os.path.join(folder, name))
    is_inside = path == folder or path.startswith(os.path.join(folder, ""))
    if not is_inside:
        raise PermissionError("outside of the folder: " + name)
    return path
