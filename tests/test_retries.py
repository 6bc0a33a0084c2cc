"""When a request is sent again, and how long is waited before."""

from __future__ import annotations

from typing import Any

import pytest

from comfyui_runner.errors import ServerAnswer, ServerGone, ServerTooOld, ServerUnreachable
from comfyui_runner.retries import ASLEEP, LEAST_TRIES, Patience, backoff, may_be_retried


def test_each_pause_is_twice_the_one_before_up_to_the_longest() -> None:
    assert [backoff(attempt) for attempt in range(7)] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0])
    assert [backoff(attempt, first=0.5, longest=4.0) for attempt in range(5)] == [0.5, 1.0, 2.0, 4.0, 4.0]
    assert backoff(10, longest=1.0) == 1.0


def test_any_number_of_attempts_has_a_pause() -> None:
    assert backoff(10**9) == 5.0
    assert backoff(10**9, longest=0.0) == 0.0


@pytest.mark.parametrize(("jitter", "pause"), [(0.0, 0.4), (0.5, 0.8), (1.0, 1.2)])
def test_jitter_makes_a_pause_shorter_or_longer_by_a_half(jitter: float, pause: float) -> None:
    assert backoff(3, jitter=jitter) == pytest.approx(pause)


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (ServerUnreachable("no answer"), True),
        (ServerUnreachable("refused", refused=True), True),
        (ServerAnswer("a proxy", status=502), True),
        (ServerAnswer("a proxy", status=503), True),
        (ServerAnswer("a proxy", status=504), True),
        (ServerAnswer("not ComfyUI", status=200), False),
        (ServerAnswer("a redirect", status=302), False),
        (ServerAnswer("ComfyUI's own", status=400), False),
        (ServerAnswer("credentials", status=401), False),
        (ServerAnswer("ComfyUI raised", status=500), False),
        (ServerAnswer("not implemented", status=501), False),
        (ServerGone("another server"), False),
        (ServerTooOld("an update helps"), False),
    ],
)
def test_what_may_pass_by_itself_is_tried_again(error: Any, answer: bool) -> None:
    assert may_be_retried(error) is answer


# -- for how long ----------------------------------------------------------------------------------


def after_failures(patience: Patience, *times: float) -> bool:
    """Whether a patience has ended after tries that failed at these times."""
    for now in times:
        patience.note_failure(now)
    return patience.has_ended


def test_the_patience_starts_at_the_first_failed_try() -> None:
    patience = Patience(300.0)
    assert not after_failures(patience, 5000.0, 5100.0, 5299.0)
    assert after_failures(patience, 5300.0)
    assert patience.silence == 300.0


def test_a_patience_needs_several_tries() -> None:
    assert LEAST_TRIES == 3
    assert not after_failures(Patience(200.0), 0.0, 230.0)
    assert after_failures(Patience(200.0), 0.0, 100.0, 230.0)
    assert after_failures(Patience(0.0, least_tries=1), 7.0)


def test_an_answer_ends_the_silence() -> None:
    patience = Patience(300.0)
    after_failures(patience, 0.0, 100.0, 200.0)
    patience.note_answer()
    assert not after_failures(patience, 300.0, 400.0, 500.0)
    assert after_failures(patience, 600.0)


def test_after_a_sleep_the_wait_starts_anew() -> None:
    """On Windows, the clock counts what the computer slept."""
    patience = Patience(300.0)
    assert not after_failures(patience, 0.0, 1.0, 2.0, 2.0 + ASLEEP + 1.0)
    assert patience.silence == 0.0
    assert not after_failures(patience, 400.0, 540.0)
    assert after_failures(patience, 560.0)
