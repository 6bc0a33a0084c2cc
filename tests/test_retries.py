"""When a request is sent again, and how long is waited before."""

from __future__ import annotations

from typing import Any

import pytest

from comfyui_runner.errors import ServerAnswer, ServerGone, ServerTooOld, ServerUnreachable
from comfyui_runner.retries import backoff, may_be_retried


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
