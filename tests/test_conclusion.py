"""The rules at the end of a run, without a socket: which stop counts, which exit status, what is whole."""

from __future__ import annotations

import asyncio
from typing import Optional

import pytest

from comfyui_runner.conclusion import (
    TIMED_OUT,
    exit_status_before_saving,
    exit_status_if_not_saved,
    stop_that_counts,
)
from comfyui_runner.errors import ExitStatus
from comfyui_runner.interrupts import Stop
from comfyui_runner.saving import Destination
from comfyui_runner.state import Phase, PromptState

CTRL_C = Stop("Ctrl+C", ExitStatus.CANCELLED)


def ended(phase: Phase) -> PromptState:
    """The state of a prompt that is in ``phase``."""
    return PromptState("id")._replace(phase=phase)


@pytest.mark.parametrize("phase", [Phase.SUCCESS, Phase.ERROR])
def test_a_timeout_that_comes_as_the_run_ends_by_itself_does_not_count(phase: Phase) -> None:
    assert stop_that_counts(ended(phase), TIMED_OUT) is None


@pytest.mark.parametrize("phase", [Phase.INTERRUPTED, Phase.DELETED, Phase.RUNNING, Phase.LOST])
def test_a_timeout_that_ended_the_run_counts(phase: Phase) -> None:
    assert stop_that_counts(ended(phase), TIMED_OUT) is TIMED_OUT


@pytest.mark.parametrize("phase", [Phase.SUCCESS, Phase.ERROR, Phase.INTERRUPTED])
def test_a_press_counts_however_the_run_ended(phase: Phase) -> None:
    assert stop_that_counts(ended(phase), CTRL_C) is CTRL_C


def test_without_a_stop_there_is_none() -> None:
    assert stop_that_counts(ended(Phase.RUNNING), None) is None


@pytest.mark.parametrize(
    ("phase", "has_dropped", "stop", "expected"),
    [
        (Phase.SUCCESS, False, None, ExitStatus.OK),
        (Phase.SUCCESS, True, None, ExitStatus.PARTIAL),
        (Phase.ERROR, False, None, ExitStatus.FAILED),
        (Phase.LOST, True, None, ExitStatus.LOST),
        (Phase.INTERRUPTED, False, None, ExitStatus.INTERRUPTED),
        (Phase.INTERRUPTED, False, TIMED_OUT, ExitStatus.TIMEOUT),
        (Phase.SUCCESS, True, CTRL_C, ExitStatus.CANCELLED),
    ],
)
def test_a_run_ends_with_its_own_status_or_with_that_of_what_cancelled_it(
    phase: Phase, has_dropped: bool, stop: Optional[Stop], expected: ExitStatus
) -> None:
    assert exit_status_before_saving(ended(phase), has_dropped, stop) is expected


@pytest.mark.parametrize(
    ("before", "stopped_with", "server_is_gone", "expected"),
    [
        (ExitStatus.OK, None, False, ExitStatus.NOT_SAVED),
        (ExitStatus.PARTIAL, None, False, ExitStatus.PARTIAL),
        (ExitStatus.FAILED, None, False, ExitStatus.FAILED),
        (ExitStatus.OK, None, True, ExitStatus.LOST),
        (ExitStatus.PARTIAL, None, True, ExitStatus.LOST),
        (ExitStatus.OK, ExitStatus.CANCELLED, False, ExitStatus.CANCELLED),
        (ExitStatus.OK, ExitStatus.TERMINATED, True, ExitStatus.TERMINATED),
    ],
)
def test_what_is_not_saved_changes_the_status_of_a_run_that_succeeded(
    before: ExitStatus, stopped_with: Optional[ExitStatus], server_is_gone: bool, expected: ExitStatus
) -> None:
    assert exit_status_if_not_saved(before, stopped_with, server_is_gone) is expected


def test_saving_is_stopped_by_its_event_alone() -> None:
    async def story() -> None:
        stopping = asyncio.Event()
        never = Destination("out")
        silent = Destination("out", stopping=stopping)
        stopped = silent._replace(status_if_stopped=lambda: ExitStatus.CANCELLED)
        assert not stopped.is_stopped and stopped.stopped_with() is None
        stopping.set()
        assert not never.is_stopped and never.stopped_with() is None
        assert silent.is_stopped and silent.stopped_with() is None
        assert stopped.is_stopped and stopped.stopped_with() is ExitStatus.CANCELLED

    asyncio.run(story())
