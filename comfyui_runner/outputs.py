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


_ENDINGS = {
    "image": "png jpg jpeg webp gif bmp tif tiff avif jxl svg exr hdr psd",
    "video": "mp4 webm mkv mov avi m4v",
    "audio": "flac mp3 wav ogg opus m4a aac",
    "3d": "glb gltf obj stl ply fbx usdz splat ksplat spz",
    "text": "txt json csv md srt yaml xml",
}

_KIND_OF_ENDING = {ending: kind for kind, endings in _ENDINGS.items() for ending in endings.split()}


def collect_outputs(
    outputs: Mapping[str, Mapping[str, Any]], prompt: Mapping[str, Any]
) -> List[Output]:
    """Every output of every node, each once. ``outputs`` are those of a history entry.

    The key does not matter (``images``, ``gifs``, ``audio``, ``3d``, ``text``, a custom node's
    own): an object with a ``filename`` is a file, and a text is a text.
    """
    collected: List[Output] = []
    for node_id, ui in outputs.items():
        title = node_title(prompt, node_id)
        for value in ui.values():
            items = value if isinstance(value, (list, tuple)) else [value]
            for item in items:
                output = _output_of(item, node_id, title)
                if output is not None and output not in collected:
                    collected.append(output)
    return collected


def _output_of(item: Any, node_id: str, title: str) -> Optional[Output]:
    """The file or text that ``item`` is; None for anything else, such as a flag."""
    if isinstance(item, str) and item:
        return Output(node_id, title, "text", text=item)
    if not isinstance(item, dict):
        return None

    filename = item.get("filename")
    if not isinstance(filename, str) or not filename:
        return None
    ending = filename.rpartition(".")[2].lower()
    return Output(
        node_id,
        title,
        _KIND_OF_ENDING.get(ending, "file"),
        filename=filename,
        subfolder=_text_or(item.get("subfolder"), ""),
        type=_text_or(item.get("type"), "") or "output",
    )


def _text_or(value: Any, default: str) -> str:
    return value if isinstance(value, str) else default


def view_path(output: Output) -> str:
    """The path and query of GET /view for a file."""
    query = {"filename": output.filename, "subfolder": output.subfolder, "type": output.type}
    return "/view?" + urllib.parse.urlencode(query, errors="replace")
