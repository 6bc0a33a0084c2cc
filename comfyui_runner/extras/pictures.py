"""The prompt and the workflow that ComfyUI embeds in PNG and WebP pictures."""

from __future__ import annotations

import struct
import zlib
from typing import Any, Dict, Iterator, Mapping, Optional, Tuple

from comfyui_runner.documents import Document, unwrap_document
from comfyui_runner.errors import WorkflowError
from comfyui_runner.json_text import parse_json

EMBEDDED_KEYS = ("prompt", "workflow")

#: How much of a compressed text is read, in bytes: a small file can hold a huge one.
MOST_INFLATED = 64 << 20

#: The type of an EXIF entry that is ASCII text, and how many bytes fit into the entry itself.
EXIF_ASCII = 2
EXIF_INLINE_SIZE = 4


def parse_embedded_texts(texts: Mapping[str, str], name: str) -> Document:
    """The document that a picture carries: the prompt, and the workflow that it was made from.

    ``texts`` are what embedded_texts() returns, ``name`` is for the messages. Raises WorkflowError.
    """
    embedded: Dict[str, Any] = {}
    for key in EMBEDDED_KEYS:
        try:
            value = parse_json(texts.get(key, "null"))
        except ValueError:
            raise WorkflowError(
                f"{name} carries a {key} that is not JSON.", "Run the workflow's own file."
            ) from None
        if value:
            embedded[key] = value
    if not embedded:
        raise WorkflowError(
            f"{name} is a picture that carries no workflow.",
            "ComfyUI writes it into PNG and WebP files, unless it was started with "
            "--disable-metadata; many sites and programs strip it.",
        )
    return unwrap_document(embedded, name)


def embedded_texts(data: bytes) -> Optional[Dict[str, str]]:
    """The prompt and the workflow in a PNG or WebP file, as JSON; None for another file."""
    texts = png_texts(data)
    if texts is None:
        texts = webp_texts(data)
    return texts


# ------------------------------------------------------------------------------------------------
# PNG
# ------------------------------------------------------------------------------------------------


def png_texts(data: bytes) -> Optional[Dict[str, str]]:
    """The prompt and the workflow in a PNG file; None for another file.

    They are in text chunks; in animated files, in chunks "comf" of ComfyUI's own. What is broken is
    left out.
    """
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return None
    texts: Dict[str, str] = {}
    for chunk_type, chunk in png_chunks(data):
        keyword, _, value = chunk.partition(b"\0")
        key = keyword.decode("latin-1")
        if key in EMBEDDED_KEYS:
            text = decode_png_text(chunk_type, value)
            if text is not None:
                texts[key] = text
    return texts


def png_chunks(data: bytes) -> Iterator[Tuple[bytes, bytes]]:
    """The chunks of a PNG file: their types and contents."""
    position = 8
    while position + 8 <= len(data):
        length, chunk_type = struct.unpack_from(">I4s", data, position)
        begin = position + 8
        end = begin + length
        yield chunk_type, data[begin:end]
        position = end + 4  # the checksum


def decode_png_text(chunk_type: bytes, value: bytes) -> Optional[str]:
    """The text of a chunk, from what follows its keyword; None if it is not a chunk of text."""
    if chunk_type == b"tEXt":
        return value.decode("latin-1")
    if chunk_type == b"comf":
        return value.decode("utf-8", "replace")
    if chunk_type == b"zTXt":  # compression method, text
        return inflate(value[1:]).decode("latin-1")
    if chunk_type == b"iTXt":  # compressed or not, method, language, translated keyword, text
        is_compressed = value[:1] == b"\1"
        _, _, after_language = value[2:].partition(b"\0")
        _, _, text = after_language.partition(b"\0")
        if is_compressed:
            text = inflate(text)
        return text.decode("utf-8", "replace")
    return None


def inflate(data: bytes) -> bytes:
    """``data`` decompressed, at most MOST_INFLATED bytes; nothing if it is broken."""
    try:
        return zlib.decompressobj().decompress(data, MOST_INFLATED)
    except zlib.error:
        return b""


# ------------------------------------------------------------------------------------------------
# WebP
# ------------------------------------------------------------------------------------------------


def webp_texts(data: bytes) -> Optional[Dict[str, str]]:
    """The prompt and the workflow in a WebP file; None for another file.

    ComfyUI writes ``prompt:{...}`` and ``workflow:{...}`` into EXIF tags that are meant for other
    things. What is broken is left out.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    texts: Dict[str, str] = {}
    for chunk_type, chunk in riff_chunks(data):
        if chunk_type == b"EXIF":
            for key, text in exif_texts(chunk):
                texts.setdefault(key, text)
    return texts


def riff_chunks(data: bytes) -> Iterator[Tuple[bytes, bytes]]:
    """The chunks of a RIFF file: their types and contents."""
    position = 12
    while position + 8 <= len(data):
        chunk_type, length = struct.unpack_from("<4sI", data, position)
        begin = position + 8
        end = begin + length
        yield chunk_type, data[begin:end]
        position = end + length % 2  # chunks begin at even positions


def exif_texts(chunk: bytes) -> Iterator[Tuple[str, str]]:
    """The prompt and the workflow in EXIF data, as far as it can be read."""
    exif = chunk
    if chunk.startswith(b"Exif\0\0"):
        exif = chunk[6:]
    order = ">" if exif[:2] == b"MM" else "<"
    try:
        (table,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, table)
        for number in range(count):
            entry = table + 2 + 12 * number
            _, type_, size, begin = struct.unpack_from(order + "HHII", exif, entry)
            if type_ != EXIF_ASCII or size <= EXIF_INLINE_SIZE:
                continue
            # What is before the colon; not all texts are decoded: they may be long, and many.
            longest = len("workflow:")
            key = exif[begin : begin + min(size, longest)].partition(b":")[0]
            name = key.decode("latin-1").lower()
            if name in EMBEDDED_KEYS:
                text = exif[begin : begin + size].rstrip(b"\0").decode("utf-8", "replace")
                yield name, text.partition(":")[2]
    except struct.error:
        pass
