"""How long anything may take, and how much is kept: a change of one of these is a change for people."""

from __future__ import annotations

import pytest

from comfyui_runner.files import PAUSES_WHILE_IN_USE
from comfyui_runner.interrupts import FAREWELL_SECONDS
from comfyui_runner.limits import (
    DEFAULT_LIMITS,
    RECEIVED_BYTES,
    SERVICE_LIMITS,
    SPOOLED_BYTES,
    SPOOLED_FILES,
    seconds_for_body,
)

MIB = 1 << 20


def test_a_single_run_waits_as_long_as_this() -> None:
    promised = {
        "connect": 5.0,
        "read": 30.0,
        "post": 60.0,
        "websocket": 10.0,
        "settle": 5.0,
        "absent": 2.0,
        "silence": 30.0,
        "poll": 5.0,
        "give_up": 300.0,
        "cancel": 8.0,
        "hook": 30.0,
        "answer_size": 64 * MIB,
        "object_info_size": 256 * MIB,
        "error_size": 16 * MIB,
    }
    assert promised.items() <= DEFAULT_LIMITS._asdict().items()


def test_the_waits_fit_each_other() -> None:
    limits = DEFAULT_LIMITS
    assert limits.absent < limits.settle  # a POST that was cut is repeated before a run counts as gone
    assert limits.poll * 3 < limits.silence  # the queue is read several times before a silence is reported
    assert limits.connect < limits.read < limits.post < limits.give_up
    assert limits.error_size < limits.answer_size < limits.object_info_size


def test_clients_of_the_service_may_take_as_long_as_this() -> None:
    promised = {
        "head": 10.0,
        "idle": 30.0,
        "body": 3600.0,
        "body_grace": 20.0,
        "body_rate": 4096.0,
        "rest": 2.0,
    }
    assert promised.items() <= SERVICE_LIMITS._asdict().items()


@pytest.mark.parametrize(("received", "seconds"), [(0, 20.0), (4096, 21.0), (40960, 30.0), (1 << 40, 3600.0)])
def test_a_body_may_take_longer_the_more_of_it_has_come(received: int, seconds: float) -> None:
    assert seconds_for_body(SERVICE_LIMITS, received) == seconds


def test_the_service_keeps_as_much_as_this() -> None:
    assert (RECEIVED_BYTES, SPOOLED_FILES, SPOOLED_BYTES) == (256 * MIB, 1000, 1024 * MIB)


def test_a_file_that_is_in_use_is_tried_again_for_two_and_a_half_seconds() -> None:
    assert sum(PAUSES_WHILE_IN_USE) == pytest.approx(2.5)
    assert list(PAUSES_WHILE_IN_USE) == sorted(PAUSES_WHILE_IN_USE) and PAUSES_WHILE_IN_USE[0] == 0.05


def test_the_last_words_have_half_a_second() -> None:
    assert FAREWELL_SECONDS == 0.5
