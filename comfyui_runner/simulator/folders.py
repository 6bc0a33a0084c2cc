"""The names of files as ComfyUI takes them: "name [output]", subfolders, media types."""

from __future__ import annotations

import mimetypes
import os

FOLDERS = ("input", "output", "temp")

#: The files that an output may name by a bare path (comfy_execution/jobs.py).
SUFFIXES_3D = (".obj", ".fbx", ".gltf", ".glb", ".usdz")

#: The types of files, the same on every system and for every Python.
MEDIA_TYPES = mimetypes.MimeTypes()
MEDIA_TYPES.add_type("image/webp", ".webp")
MEDIA_TYPES.add_type("audio/flac", ".flac")
MEDIA_TYPES.add_type("model/gltf-binary", ".glb")


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
