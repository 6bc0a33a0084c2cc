"""One WebSocket frame of ComfyUI as an event. No clock, no socket."""

from __future__ import annotations

import json
import struct
from typing import Any, Mapping, NamedTuple, Optional, Tuple, Union

from comfyui_runner.json_text import DEEPEST_JSON, parse_json

#: The ``data`` of a message.
MessageData = Mapping[str, Any]


class Event(NamedTuple):
    """One WebSocket message."""

    type: str
    prompt_id: Optional[str]  #: None: the message does not say which prompt it is about
    data: MessageData
    at: float  #: when it came, in seconds of any one clock


class Preview(NamedTuple):
    """A picture that came over the WebSocket."""

    node_id: Optional[str]  #: None: the frame does not say which node made it
    mime: str
    image: bytes


#: The types of binary frames: their first four bytes, big-endian (ComfyUI's protocol.py).
PICTURE_FRAME = 1
TEXT_FRAME = 3
PICTURE_FRAME_WITH_METADATA = 4

#: The format of a PICTURE_FRAME: its next four bytes.
PICTURE_FORMATS = {1: "image/jpeg", 2: "image/png"}


#: json.loads() without its search for white space, which takes as long as parsing a short message.
_decode_frame = json.JSONDecoder().raw_decode


def parse_message(frame: Union[str, bytes], at: float) -> Event:
    """One WebSocket frame as an Event; never raises.

    A binary frame becomes an event of type "preview" (``data["preview"]`` is a Preview) or
    "progress_text" (``data`` has ``node`` and ``text``). A frame that is broken or of a type that
    is not known becomes an event of type "unknown".
    """
    try:
        if isinstance(frame, str):
            return _parse_json_frame(frame, at)
        return _parse_binary_frame(frame, at)
    except (ValueError, KeyError, TypeError, AttributeError, struct.error):
        return Event("unknown", None, {}, at)


def _parse_json_frame(frame: str, at: float) -> Event:
    # The same as may_be_deep(): a call of it would take as long as parsing a short message, too.
    may_be_too_deep = frame.count("{") + frame.count("[") > DEEPEST_JSON
    if may_be_too_deep:
        message = parse_json(frame)
        end = len(frame)
    else:
        message, end = _decode_frame(frame)
    if end != len(frame):
        raise ValueError("more than one JSON value")
    data = message.get("data") or {}
    return Event(str(message["type"]), _prompt_id_in(data), data, at)


def _parse_binary_frame(frame: bytes, at: float) -> Event:
    (frame_type,) = struct.unpack_from(">I", frame)

    if frame_type == PICTURE_FRAME:
        (picture_format,) = struct.unpack_from(">I", frame, 4)
        mime = PICTURE_FORMATS.get(picture_format, "application/octet-stream")
        return Event("preview", None, {"preview": Preview(None, mime, frame[8:])}, at)

    if frame_type == TEXT_FRAME:
        node_id, text = _split_by_length(frame)
        data = {"node": node_id.decode(), "text": text.decode()}
        return Event("progress_text", None, data, at)

    if frame_type == PICTURE_FRAME_WITH_METADATA:
        metadata, image = _split_by_length(frame)
        about = parse_json(metadata)
        preview = Preview(
            node_id=str(about["display_node_id"]),
            mime=str(about["image_type"]),
            image=image,
        )
        return Event("preview", _prompt_id_in(about), {"preview": preview}, at)

    raise ValueError("an unknown type")


def _split_by_length(frame: bytes) -> Tuple[bytes, bytes]:
    """What follows the type: a part whose length is in the next four bytes, and the rest."""
    (length,) = struct.unpack_from(">I", frame, 4)
    end = 8 + length
    if len(frame) < end:
        raise ValueError("the frame is cut off")
    return frame[8:end], frame[end:]


def prompts_remaining(status: MessageData) -> Optional[int]:
    """How many prompts wait or run, by the data of a ``status`` message; None: it does not say.

    The data is {"status": {"exec_info": {"queue_remaining": 2}}} (ComfyUI's server.py).
    """
    for key in ("status", "exec_info"):
        inner = status.get(key)
        if not isinstance(inner, dict):
            return None
        status = inner
    count = status.get("queue_remaining")
    if not isinstance(count, int) or isinstance(count, bool):
        return None
    return count


def _prompt_id_in(data: MessageData) -> Optional[str]:
    prompt_id = data.get("prompt_id")
    if not isinstance(prompt_id, str):
        return None
    return prompt_id
