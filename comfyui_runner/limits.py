"""How long each wait may take, how large each answer may be, and how much the service keeps."""

from __future__ import annotations

from typing import NamedTuple


class Limits(NamedTuple):
    """How long each wait may take, in seconds, and how large each answer may be, in bytes.

    No wait of the runner is without a limit, and nothing that it keeps in memory.
    """

    connect: float = 5.0  # a TCP connection
    read: float = 30.0  # an answer from ComfyUI, and again all of its body
    post: float = 60.0  # the answer to POST /prompt: it comes after ComfyUI has checked the prompt
    websocket: float = 10.0  # the handshake, and again the first status message
    settle: float = 5.0  # absent from queue and history for so long: gone
    absent: float = 2.0  # absent for so long: a prompt whose POST was cut is posted again
    silence: float = 30.0  # no message for this long while running: report what the queue says
    poll: float = 5.0  # silence before queue and history are read
    give_up: float = 300.0  # only failed tries for so long: the run counts as lost
    give_up_one: float = 60.0  # the same of one server, where a batch has others
    cancel: float = 8.0  # ComfyUI's confirmation of a cancel
    hook: float = 30.0  # a command of --hook, and all of them at the end of the program

    # Sizes count after unpacking. Files are not kept in memory, and have none.
    answer_size: int = 64 << 20  # an answer in JSON
    object_info_size: int = 256 << 20  # GET /object_info: the definitions of all classes
    error_size: int = 16 << 20  # the body of an error; that of POST /prompt lists choices


DEFAULT_LIMITS = Limits()


#: Bytes of the pictures that come over the WebSocket for one run of the service.
RECEIVED_BYTES = 256 << 20

#: Files, and their bytes, that the service keeps of all its runs; the oldest go first.
SPOOLED_FILES = 1000
SPOOLED_BYTES = 1 << 30


class ServiceLimits(NamedTuple):
    """How long clients of continuous mode may take, in seconds.

    Whoever is too slow holds a place that others need.
    """

    head: float = 10.0  # a whole head, from its first byte
    idle: float = 30.0  # between two pieces of a body or of an answer, and between two requests
    body: float = 3600.0  # a whole body
    body_grace: float = 20.0  # a body may be slower than body_rate for so long
    body_rate: float = 4096.0  # bytes a second of a body, on average: a third of what EDGE brings
    rest: float = 2.0  # what no route wanted of a body, so that the connection can be used again


SERVICE_LIMITS = ServiceLimits()


def seconds_for_body(limits: ServiceLimits, received: int) -> float:
    """How long a body may take until its next piece comes, when ``received`` bytes have come."""
    return min(limits.body, limits.body_grace + received / limits.body_rate)
