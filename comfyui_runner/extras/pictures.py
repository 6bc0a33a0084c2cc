"""The prompt and the workflow that ComfyUI embeds in PNG and WebP pictures."""

from __future__ import annotations

import json
import struct
from typing import Any, Dict, Mapping, Optional

from comfyui_runner.documents import Document, unwrap_document
from comfyui_runner.errors import WorkflowError

_EMBEDDED = ("prompt", "workflow")


def parse_embedded_texts(texts: Mapping[str, str], name: str) -> Document:
    """The document that a picture carries: ComfyUI embeds the prompt, and the workflow that it was made from."""
    found: Dict[str, Any] = {}
    for key in _EMBEDDED:
        try:
            found[key] = json.loads(texts.get(key, "null"))
        except (ValueError, RecursionError):
            raise WorkflowError(
                "%s carries a %s that is not JSON." % (name, key), "Run the workflow's file."
            ) from None
    if not found["prompt"] and not found["workflow"]:
        raise WorkflowError(
            "%s is a picture that carries no workflow." % name,
            "ComfyUI writes it into PNG and WebP files, unless it is told not to; many sites and programs strip it.",
        )
    return unwrap_document({key: value for key, value in found.items() if value}, name)


def embedded_texts(data: bytes) -> Optional[Dict[str, str]]:
    """The prompt and workflow in a PNG or WebP file; None for another file."""
    texts = png_texts(data)
    return webp_texts(data) if texts is None else texts


def png_texts(data: bytes) -> Optional[Dict[str, str]]:
    """The prompt and workflow in a PNG file's texts (chunks tEXt, zTXt, iTXt, and comf, which ComfyUI puts into
    animated ones); None for another file. What is broken is left out."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return None
    texts: Dict[str, str] = {}
    at = 8
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        chunk, at = data[at + 8 : at + 8 + length], at + 12 + length
        keyword, _, value = chunk.partition(b"\0")
        key = keyword.decode("latin-1")
        if key not in _EMBEDDED:
            continue
        if kind in (b"tEXt", b"comf"):
            texts[key] = value.decode("latin-1" if kind == b"tEXt" else "utf-8", "replace")
        elif kind == b"zTXt":
            texts[key] = _inflate(value[1:]).decode("latin-1")
        elif kind == b"iTXt":  # compressed or not, method, language, translated keyword, text
            _, _, rest = value[2:].partition(b"\0")
            text = rest.partition(b"\0")[2]
            texts[key] = (_inflate(text) if value[:1] == b"\1" else text).decode(errors="replace")
    return texts


def _inflate(data: bytes) -> bytes:
    """``data`` decompressed, at most 64 MiB of it; b"" for what is broken."""
    import zlib

    try:
        return zlib.decompressobj().decompress(data, 64 << 20)
    except zlib.error:
        return b""


def webp_texts(data: bytes) -> Optional[Dict[str, str]]:
    """The same in the EXIF of a WebP file, where ComfyUI writes ``prompt:{...}`` and ``workflow:{...}`` into
    tags for other things; None for another file. What is broken is left out."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    texts: Dict[str, str] = {}
    at = 12
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        chunk, at = data[at + 8 : at + 8 + length], at + 8 + length + length % 2
        if kind != b"EXIF":
            continue
        exif = chunk[6:] if chunk.startswith(b"Exif\0\0") else chunk
        order = ">" if exif[:2] == b"MM" else "<"
        try:
            (first,) = struct.unpack_from(order + "I", exif, 4)
            (count,) = struct.unpack_from(order + "H", exif, first)
            for number in range(count):
                _, form, size, place = struct.unpack_from(
                    order + "HHII", exif, first + 2 + 12 * number
                )
                key = (
                    exif[place : place + min(size, 9)].partition(b":")[0].decode("latin-1").lower()
                )
                if (
                    form == 2 and size > 4 and key in _EMBEDDED and key not in texts
                ):  # ASCII, not in the place itself
                    text = exif[place : place + size].rstrip(b"\0").decode(errors="replace")
                    texts[key] = text.partition(":")[2]
        except struct.error:
            pass
    return texts
