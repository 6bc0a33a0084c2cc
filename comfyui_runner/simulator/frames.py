"""The frames of a WebSocket: messages, previews, and what no client can use. Pure."""

from __future__ import annotations

import json
import struct
import uuid
from typing import Any, Iterator, Tuple, Union

from comfyui_runner.simulator.pictures import draw

# The types of binary frames (protocol.py, BinaryEventTypes).
#: A picture.
PREVIEW_IMAGE = 1
#: A picture that is not encoded: ComfyUI uses it inside, and sends a PREVIEW_IMAGE in its place.
UNENCODED_PREVIEW_IMAGE = 2
#: A text of a node.
TEXT_OF_NODE = 3
#: JSON, then a picture.
PREVIEW_WITH_METADATA = 4

#: The format of the picture in a PREVIEW_IMAGE (1 is JPEG).
PNG = 2


def make_message(event: str, data: Any) -> str:
    """A message: a text frame."""
    return json.dumps({"type": event, "data": data})


def make_preview(picture: bytes) -> bytes:
    """A binary frame with a PNG."""
    head = struct.pack(">II", PREVIEW_IMAGE, PNG)
    return head + picture


def make_preview_with_metadata(metadata: Any, picture: bytes) -> bytes:
    """A binary frame with JSON and a picture."""
    encoded = json.dumps(metadata).encode()
    head = struct.pack(">II", PREVIEW_WITH_METADATA, len(encoded))
    return head + encoded + picture


def make_noise_messages() -> Iterator[Tuple[str, Any]]:
    """(type, data) of other prompts' messages and of unknown ones."""
    other = {"prompt_id": str(uuid.uuid4()), "node": "1"}
    yield "simulated_unknown_event", {"anything": [1, None]}
    yield "progress", {"value": 1, "max": 2, **other}
    yield "executing", {**other, "node": None}
    yield "execution_error", other
    yield "progress", {"value": float("nan"), "max": float("inf")}


def make_noise_frames() -> Iterator[Union[str, bytes]]:
    """Broken text frames, then binary ones."""
    yield '{"type": "executed"}'
    yield '{"type": "progress", "data": null}'
    yield "[1, 2]"
    yield "this is not JSON"

    yield make_preview(b"not a picture")
    yield struct.pack(">II", UNENCODED_PREVIEW_IMAGE, 1) + b"never sent by a real server"
    length_of_node_id = 1
    text_of_node = b"1" + "SIMULATED text \u00fc".encode()
    yield struct.pack(">II", TEXT_OF_NODE, length_of_node_id) + text_of_node
    yield make_preview_with_metadata({"node_id": "1"}, b"not a picture")
    yield struct.pack(">II", PREVIEW_WITH_METADATA, 4096) + b"{"  # its JSON is not that long
    yield struct.pack(">I", 99) + b"unknown type"
    yield b"\0\0"  # too short for a type
    yield b""


def make_big_preview(size: int) -> bytes:
    """A preview padded by so many bytes."""
    padding = ("padding", "x" * size)
    picture = draw(64, 64, seed=0, lines=["SIMULATED"], texts=[padding])
    return make_preview(picture)
