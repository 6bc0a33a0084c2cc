"""The frames of a WebSocket: messages, previews, and what no client can use. Pure."""

from __future__ import annotations

import json
import struct
import uuid
from typing import Any, Iterator, Tuple, Union

from comfyui_runner.simulator.pictures import draw

#: The types of binary frames: a picture; a text; a picture with metadata before it.
PREVIEW_IMAGE, TEXT_OF_NODE, PREVIEW_WITH_METADATA = 1, 3, 4
#: The format of the picture in a PREVIEW_IMAGE (1 is JPEG).
PNG = 2


def make_message(event: str, data: Any) -> str:
    """A text frame."""
    return json.dumps({"type": event, "data": data})


def make_preview(picture: bytes) -> bytes:
    """A binary frame with a PNG."""
    return struct.pack(">II", PREVIEW_IMAGE, PNG) + picture


def make_preview_with_metadata(metadata: Any, picture: bytes) -> bytes:
    """A binary frame with JSON and a picture."""
    head = json.dumps(metadata).encode()
    return struct.pack(">II", PREVIEW_WITH_METADATA, len(head)) + head + picture


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
    yield struct.pack(">II", 2, 1) + b"never sent by a real server"
    yield struct.pack(">II", TEXT_OF_NODE, 1) + b"1" + "SIMULATED text \u00fc".encode()
    yield make_preview_with_metadata({"node_id": "1"}, b"not a picture")
    yield struct.pack(">II", PREVIEW_WITH_METADATA, 4096) + b"{"  # shorter than it says
    yield struct.pack(">I", 99) + b"unknown type"
    yield b"\0\0"  # too short for a type
    yield b""


def make_big_preview(size: int) -> bytes:
    """A preview padded by so many bytes."""
    return make_preview(draw(64, 64, 0, ["SIMULATED"], [("padding", "x" * size)]))
