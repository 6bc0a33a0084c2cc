"""What a run made: files, pictures and texts."""

from __future__ import annotations

import urllib.parse
from typing import Any, List, Mapping, NamedTuple, Optional

from comfyui_runner.nodes import node_title


class Output(NamedTuple):
    """One thing that a run made. ``text`` outputs have no file; others have a name to fetch."""

    node_id: str
    title: str
    kind: str  # image, video, audio, 3d, text or file
    filename: str = ""
    subfolder: str = ""
    type: str = "output"  # output, temp or input: ComfyUI's folder
    text: Optional[str] = None


_KINDS = {
    "image": "png jpg jpeg webp gif bmp tif tiff avif jxl svg exr hdr psd",
    "video": "mp4 webm mkv mov avi m4v",
    "audio": "flac mp3 wav ogg opus m4a aac",
    "3d": "glb gltf obj stl ply fbx usdz splat ksplat spz",
    "text": "txt json csv md srt yaml xml",
}

_KIND_OF_ENDING = {ending: kind for kind, endings in _KINDS.items() for ending in endings.split()}


def collect_outputs(
    outputs: Mapping[str, Mapping[str, Any]], prompt: Mapping[str, Any]
) -> List[Output]:
    """Every output of every node, whatever its key (``images``, ``gifs``, ``audio``, ``3d``, ``text``,
    a custom node's own): an object with a ``filename`` is a file, a text is a text."""
    found: List[Output] = []
    for node_id, ui in outputs.items():
        title = node_title(prompt, node_id)
        for items in ui.values():
            for item in items if isinstance(items, (list, tuple)) else [items]:
                if (
                    isinstance(item, dict)
                    and isinstance(item.get("filename"), str)
                    and item["filename"]
                ):
                    name = item["filename"]
                    kind = _KIND_OF_ENDING.get(name.rpartition(".")[2].lower(), "file")
                    folder, type_ = item.get("subfolder"), item.get("type")
                    output = Output(
                        node_id, title, kind, name,
                        folder if isinstance(folder, str) else "",
                        type_ if isinstance(type_, str) and type_ else "output",
                    )  # fmt: skip
                elif isinstance(item, str) and item:
                    output = Output(node_id, title, "text", text=item)
                else:
                    continue
                if output not in found:
                    found.append(output)
    return found


def view_path(output: Output) -> str:
    """The path and query of GET /view for a file."""
    query = {"filename": output.filename, "subfolder": output.subfolder, "type": output.type}
    return "/view?" + urllib.parse.urlencode(query, errors="replace")
