"""Kinds of files: by the ending of their names, by their first bytes, and within base64."""

from __future__ import annotations

import base64
import binascii
import re
from typing import NamedTuple, Optional

from comfyui_runner.contents import find_signature

_ENDINGS = {
    "image": "png jpg jpeg webp gif bmp tif tiff avif jxl svg exr hdr psd",
    "video": "mp4 webm mkv mov avi m4v",
    "audio": "flac mp3 wav ogg opus m4a aac",
    "3d": "glb gltf obj stl ply fbx usdz splat ksplat spz",
    "text": "txt json csv md srt yaml xml",
}

_KIND_OF_ENDING = {ending: kind for kind, endings in _ENDINGS.items() for ending in endings.split()}

#: The media types of formats whose ending is not their name.
_NAMES_IN_TYPES = {"jpg": "jpeg", "mp3": "mpeg", "m4a": "mp4"}

#: Characters of base64 that are decoded to see how the file in it begins: 48 bytes.
_BEGINNING = 64

#: Bytes that base64 without a media type must have: a short word may look like a beginning.
_SHORTEST_FILE = 24


def kind_of_name(filename: str) -> str:
    """image, video, audio, 3d or text, by the ending of a name; "file" for any other."""
    return _KIND_OF_ENDING.get(filename.rpartition(".")[2].lower(), "file")


def ending_of_data(data: bytes) -> str:
    """The ending for a file that begins with ``data``, "" if its format is not known."""
    signature = find_signature(data)
    if signature is None:
        return ""
    return signature.ending


def media_type_of_name(filename: str) -> str:
    """The media type of a picture, a video or a sound, "" for anything else."""
    ending = filename.rpartition(".")[2].lower()
    kind = kind_of_name(filename)
    if kind not in ("image", "video", "audio"):
        return ""
    return f"{kind}/{_NAMES_IN_TYPES.get(ending, ending)}"


class Base64File(NamedTuple):
    """A file that a node shows as text. ``encoded`` is its base64, ``size`` its size in bytes."""

    ending: str
    encoded: str
    size: int


_read_data_url = re.compile(r"data:(\w+/[\w.+-]*\w)?(?:;[\w-]+=[\w.-]+)*;base64,").match


def find_base64(text: str) -> Optional[Base64File]:
    """The file whose base64 or data URL ``text`` is; None for any other text.

    Only its beginning is looked at, as it may be long. Base64 without a media type must begin as a
    file of a known format: any word of letters could be base64.
    """
    head = _read_data_url(text)
    encoded = text
    ending_in_url = ""
    if head is not None:
        encoded = text[head.end() :]
        ending_in_url = _ending_of_type(head[1] or "")

    beginning = decode_base64("".join(encoded[: 2 * _BEGINNING].split())[:_BEGINNING])
    if not beginning:
        return None
    if head is None and len(beginning) < _SHORTEST_FILE:
        return None
    ending = ending_of_data(beginning) or ending_in_url
    if not ending:
        return None
    return Base64File(ending, encoded, _size_of_decoded(encoded))


def _ending_of_type(media_type: str) -> str:
    """The ending for a media type: ``svg`` for ``image/svg+xml``, ``bin`` where none is known."""
    name = media_type.rpartition("/")[2].partition("+")[0]
    for ending, name_in_type in _NAMES_IN_TYPES.items():
        if name == name_in_type:
            return ending
    if kind_of_name(f".{name}") == "file":
        return "bin"
    return name


def _size_of_decoded(encoded: str) -> int:
    """How many bytes base64 stands for. It may be in lines."""
    breaks = encoded.count("\n") + encoded.count("\r") + encoded.count(" ")
    padding = encoded.count("=", -4)
    return (len(encoded) - breaks) * 3 // 4 - padding


def decode_base64(encoded: str) -> Optional[bytes]:
    """The bytes of base64, which may be in lines; None if it is not base64 to its end."""
    try:
        return base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError):
        return None
