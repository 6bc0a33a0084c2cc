"""When to try again, for how long, and how long to wait before. Pure: nothing here sleeps, draws
numbers or reads a clock."""

from __future__ import annotations

from comfyui_runner.errors import ServerError, ServerGone, ServerTooOld

#: What a reverse proxy or load balancer answers while the server behind it restarts or is
#: overloaded: Bad Gateway, Service Unavailable, Gateway Timeout. ComfyUI itself has none of them.
PROXY_FAILURES = (502, 503, 504)

#: Failed tries in a row before a server that does not answer is given up, whatever the clock says.
LEAST_TRIES = 3

#: Seconds between two failed tries that are not the server's: this machine slept meanwhile. It is
#: longer than any try takes, with the pauses around it.
ASLEEP = 240.0


class Patience:
    """How long a server that does not answer is asked again: ``seconds`` from the first failed try.

    At least ``least_tries`` must fail. What passes between a good answer and the first failed try
    does not count, and when the clock has jumped between two tries, the wait starts anew: on
    Windows, monotonic clocks count the time that a computer sleeps.
    """

    def __init__(self, seconds: float, least_tries: int = LEAST_TRIES) -> None:
        self._seconds = seconds
        self._least_tries = least_tries
        self._failures = 0
        self._first = 0.0  # the time of the first failed try
        self._last = 0.0  # the time of the last one

    def note_answer(self) -> None:
        """The server has answered."""
        self._failures = 0

    def note_failure(self, now: float) -> None:
        """A try has failed."""
        has_slept = self._failures > 0 and now - self._last > ASLEEP
        if has_slept:
            self._failures = 0
        if self._failures == 0:
            self._first = now
        self._failures += 1
        self._last = now

    @property
    def silence(self) -> float:
        """The seconds from the first failed try to the last one."""
        return self._last - self._first

    @property
    def has_ended(self) -> bool:
        """Whether the last failed try was one too many."""
        return self._failures >= self._least_tries and self.silence >= self._seconds


def backoff(
    attempt: int, *, first: float = 0.1, longest: float = 5.0, jitter: float = 0.5
) -> float:
    """The seconds to wait after failed attempt number ``attempt``, counted from 0.

    ``first`` seconds after the first one, doubled each time, up to ``longest``. ``jitter`` from 0.0
    to 1.0 turns that into a half to one and a half of it; random.random() keeps many clients that
    lost one server from coming back at the same moment.
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
