"""How long each wait may take."""

from __future__ import annotations

from typing import NamedTuple


class Limits(NamedTuple):
    """How long each wait may take, in seconds. No wait of the runner is without one."""

    connect: float = 5.0  # a TCP connection
    read: float = 30.0  # an answer from ComfyUI
    post: float = 60.0  # the answer to POST /prompt: it comes after ComfyUI has checked the prompt
    websocket: float = 10.0  # the handshake, and again the first status message
    settle: float = 5.0  # absent from queue and history for so long: gone
    absent: float = 2.0  # absent for so long: a prompt whose POST was cut is posted again
    silence: float = 30.0  # no message for so long while running: report what the queue says
    poll: float = 5.0  # silence before queue and history are read
    give_up: float = 300.0  # no answer at all for so long: the run counts as lost
    cancel: float = 8.0  # ComfyUI's confirmation of a cancel


DEFAULT_LIMITS = Limits()
