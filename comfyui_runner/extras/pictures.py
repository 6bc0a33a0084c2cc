"""The prompt and the workflow that ComfyUI embeds in PNG and WebP pictures."""

from __future__ import annotations

import struct
import zlib
from typing import Any, Dict, Iterator, Mapping, Optional, Tuple

from comfyui_runner.documents import Document, unwrap_document
from comfyui_runner.errors import WorkflowError
from comfyui_runner.json_text import parse_json
from comfyui_runner.text import size_in_words

EMBEDDED_KEYS = ("prompt", "workflow")

PNG_FILE_HEAD = b"\x89PNG\r\n\x1a\n"
PNG_CHECKSUM_SIZE = 4

#: "RIFF", the size of the file, and "WEBP".
WEBP_HEAD_SIZE = 12

#: The length and the type that each chunk of a PNG or WebP file begins with.
CHUNK_HEAD_SIZE = 8

#: How large the compressed texts of a picture may be in all, unpacked, in bytes: a small file can
#: hold huge ones.
MOST_INFLATED = 64 << 20

#: PNG chunks that hold a text behind a keyword, and how it is encoded.
PNG_ENCODINGS = {b"tEXt": "latin-1", b"zTXt": "latin-1", b"iTXt": "utf-8", b"comf": "utf-8"}

#: Bytes in which the zero behind a keyword is looked for: more than EMBEDDED_KEYS have.
KEYWORD_SIZE = 16

#: What may come before EXIF data.
EXIF_PREFIX = b"Exif\0\0"

#: The size of a table's count and of each entry behind it; the type of an entry that is ASCII text,
#: and how many bytes of text fit into the entry itself.
EXIF_COUNT_SIZE = 2
EXIF_ENTRY_SIZE = 12
EXIF_ASCII = 2
EXIF_INLINE_SIZE = 4

#: Bytes in which the colon behind a key is looked for.
LONGEST_EXIF_KEY = len("workflow:")


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
                f"{name} contains a {key} that is not JSON.", "Run the workflow's own file."
            ) from None
        if value:
            embedded[key] = value
    if not embedded:
        raise WorkflowError(
            f"{name} is a picture without a workflow.",
            "ComfyUI writes it into PNG and WebP files, unless it was started with "
            "--disable-metadata; many sites and programs strip it.",
        )
    return unwrap_document(embedded, name)


def embedded_texts(data: bytes) -> Optional[Dict[str, str]]:
    """The prompt and the workflow in a PNG or WebP file, as JSON; None for another file.

    Raises WorkflowError if they are too large when they are unpacked.
    """
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
    left out. Raises WorkflowError if they are too large when they are unpacked.
    """
    if not data.startswith(PNG_FILE_HEAD):
        return None
    chunks: Dict[str, Tuple[bytes, bytes]] = {}  # the last one of each key counts
    for chunk_type, chunk in png_chunks(data):
        keyword = chunk[:KEYWORD_SIZE].partition(b"\0")[0]
        key = keyword.decode("latin-1")
        if chunk_type in PNG_ENCODINGS and key in EMBEDDED_KEYS:
            chunks[key] = (chunk_type, chunk[len(keyword) + 1 :])

    texts: Dict[str, str] = {}
    room = MOST_INFLATED
    for key, (chunk_type, value) in chunks.items():
        text = png_text(chunk_type, value, room)
        room = max(room - len(text), 0)
        texts[key] = text.decode(PNG_ENCODINGS[chunk_type], "replace")
    return texts


def png_chunks(data: bytes) -> Iterator[Tuple[bytes, bytes]]:
    """The chunks of a PNG file: their types and contents."""
    position = len(PNG_FILE_HEAD)
    while position + CHUNK_HEAD_SIZE <= len(data):
        length, chunk_type = struct.unpack_from(">I4s", data, position)
        begin = position + CHUNK_HEAD_SIZE
        end = begin + length
        yield chunk_type, data[begin:end]
        position = end + PNG_CHECKSUM_SIZE


def png_text(chunk_type: bytes, value: bytes, room: int) -> bytes:
    """The text of one of PNG_ENCODINGS, encoded, from what follows its keyword.

    Of a compressed one, at most ``room`` bytes. Raises WorkflowError if it is larger.
    """
    if chunk_type == b"zTXt":  # compression method, text
        return inflate(value[1:], room)
    if chunk_type == b"iTXt":  # compressed or not, method, language, translated keyword, text
        is_compressed = value[:1] == b"\1"
        _, _, after_language = value[2:].partition(b"\0")
        _, _, text = after_language.partition(b"\0")
        if is_compressed:
            return inflate(text, room)
        return text
    return value


def inflate(data: bytes, room: int) -> bytes:
    """``data`` unpacked; nothing if it is broken. Raises WorkflowError beyond ``room`` bytes."""
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(data, room + 1)  # a limit of 0 would mean no limit
    except zlib.error:
        return b""
    if len(text) > room:
        size = size_in_words(MOST_INFLATED)
        raise WorkflowError(
            f"The texts in the picture are larger than {size} when they are unpacked.",
            "Run the workflow's own file.",
        )
    return text


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
            texts = {**exif_texts(chunk), **texts}  # the first one of each key counts
    return texts


def riff_chunks(data: bytes) -> Iterator[Tuple[bytes, bytes]]:
    """The chunks of a RIFF file: their types and contents."""
    position = WEBP_HEAD_SIZE
    while position + CHUNK_HEAD_SIZE <= len(data):
        chunk_type, length = struct.unpack_from("<4sI", data, position)
        begin = position + CHUNK_HEAD_SIZE
        end = begin + length
        yield chunk_type, data[begin:end]
        position = end + length % 2  # chunks begin at even positions


def exif_texts(chunk: bytes) -> Dict[str, str]:
    """The prompt and the workflow in EXIF data, as far as it can be read.

    The first one of each counts. Others are not even decoded: they may be many, and all the same
    long bytes.
    """
    exif = chunk
    if chunk.startswith(EXIF_PREFIX):
        exif = chunk[len(EXIF_PREFIX) :]
    texts: Dict[str, str] = {}
    for begin, size in exif_ascii_entries(exif):
        head = exif[begin : begin + min(size, LONGEST_EXIF_KEY)]
        key = head.partition(b":")[0].decode("latin-1").lower()
        if key in EMBEDDED_KEYS and key not in texts:
            text = exif[begin : begin + size].rstrip(b"\0").decode("utf-8", "replace")
            texts[key] = text.partition(":")[2]
    return texts


def exif_ascii_entries(exif: bytes) -> Iterator[Tuple[int, int]]:
    """Where the texts of the first table of EXIF data are: their positions and sizes in bytes.

    It ends where the data is broken.
    """
    order = "<"
    if exif.startswith(b"MM"):
        order = ">"
    try:
        (table,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, table)
        for index in range(count):
            entry = table + EXIF_COUNT_SIZE + EXIF_ENTRY_SIZE * index
            _tag, type_, size, begin = struct.unpack_from(order + "HHII", exif, entry)
            if type_ == EXIF_ASCII and size > EXIF_INLINE_SIZE:
                yield begin, size
    except struct.error:
        return
