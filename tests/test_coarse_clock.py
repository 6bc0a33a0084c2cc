"""The clock of Windows, played for the tests: it ticks."""

from __future__ import annotations

from coarse_clock import make_clock


def test_a_clock_shows_the_beginning_of_its_tick() -> None:
    times = iter([0.0, 0.015, 0.016, 0.0313, 100.0])
    clock = make_clock(lambda: next(times), 1 / 64)
    assert [clock() for _ in range(5)] == [0.0, 0.0, 1 / 64, 2 / 64, 100.0]
