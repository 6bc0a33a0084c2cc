"""When to try again, and how long to wait before. Pure: nothing here sleeps or draws numbers."""

from __future__ import annotations

from comfyui_runner.errors import ServerError, ServerGone, ServerTooOld

#: What a reverse proxy or load balancer answers while the server behind it restarts or is
#: overloaded: Bad Gateway, Service Unavailable, Gateway Timeout. ComfyUI itself has none of them.
PROXY_FAILURES = (502, 503, 504)


def backoff(
    attempt: int, *, first: float = 0.1, longest: float = 5.0, jitter: float = 0.5
) -> float:
    """The seconds to wait after failed attempt number ``attempt``, counted from 0.

    ``first`` seconds after the first one, doubled each time, up to ``longest``. ``jitter`` from 0.0
    to 1.0 turns that into a half to one and a half of it; whoever passes random.random() keeps many
    clients that lost one server from coming back at the same moment.
    """
    doublings = min(attempt, 16)  # far beyond ``longest``, and 2.0**1024 is an OverflowError
    pause = min(first * 2.0**doublings, longest)
    return pause * (0.5 + jitter)


def may_be_retried(error: ServerError) -> bool:
    """Whether the same request can succeed a little later, on the same server."""
    # The load balancer has chosen another server: this one answers no more.
    if isinstance(error, ServerGone):
        return False

    # An old ComfyUI does not become a new one without a person's help.
    if isinstance(error, ServerTooOld):
        return False

    # No answer, or a part of one: a connection that broke, a server that restarts or is busy.
    if error.status is None:
        return True

    # ComfyUI answered, and would answer the same again; but a proxy's word on it can change.
    return error.status in PROXY_FAILURES
