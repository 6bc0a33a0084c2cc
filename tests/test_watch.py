"""Work on one run ends when it must: by itself, by Ctrl+C or by --timeout. And so does what is said of it."""

from __future__ import annotations

import asyncio
from typing import Any, List, Optional

import pytest
from desk import Desk, settings_of
from support import FAST

from comfyui_runner.conclusion import TIMED_OUT
from comfyui_runner.errors import ExitStatus, PromptRejected, RunnerError, ServerUnreachable, Stopped
from comfyui_runner.interrupts import Stop
from comfyui_runner.problems import Problem
from comfyui_runner.runs import Run
from comfyui_runner.watch import Watch

CTRL_C = Stop("Ctrl+C", ExitStatus.CANCELLED)
SIGTERM = Stop("SIGTERM", ExitStatus.TERMINATED)


def watch_of(desk: Desk, *arguments: str) -> Watch:
    return Watch(desk.session, desk.run, settings_of(*arguments), desk.console)


#: How work ended that goes on for ever.
ENDS: List[str] = []


async def go_on_forever(run: Run) -> None:
    ENDS.clear()
    try:
        await asyncio.sleep(3600.0)
    finally:
        ENDS.append("ended")


def test_work_that_is_done_raises_what_it_failed_with() -> None:
    async def fail(run: Run) -> None:
        raise ServerUnreachable("gone")

    async def story() -> None:
        desk = Desk()
        watch = watch_of(desk)
        with pytest.raises(ServerUnreachable, match="gone"):
            await watch.until_stopped(fail)
        assert watch.stop is None

    asyncio.run(story())


@pytest.mark.parametrize("press", [CTRL_C, SIGTERM, None])
def test_work_that_goes_on_after_its_run_is_over_is_left(press: Optional[Stop]) -> None:
    """Taking copies off the queue must not hold the end up for longer than one answer may take."""

    async def story() -> None:
        desk = Desk(FAST._replace(read=0.05))
        watch = watch_of(desk, "--timeout", "60.0" if press else "0.01")
        desk.end_run()
        if press is not None:
            desk.press(press)
        await asyncio.wait_for(watch.until_stopped(go_on_forever), 20.0)
        assert ENDS == ["ended"]
        stop = press or TIMED_OUT
        assert watch.stop == stop
        assert desk.out.getvalue() == f"{stop.name}: cancelling our prompt and nothing else.\n"

        done: List[Run] = []

        async def work(run: Run) -> None:
            done.append(run)

        await watch.until_stopped(work)
        assert done == []  # no more work is done

    asyncio.run(story())


def test_what_comfyui_refuses_is_reported_before_the_error() -> None:
    async def refuse(run: Run) -> None:
        error = PromptRejected("ComfyUI refused the prompt.", answer={})
        error.problems = [Problem("t", "First."), Problem("t", "Second.")]
        raise error

    async def story() -> None:
        desk = Desk()
        with pytest.raises(PromptRejected):
            await watch_of(desk).until_stopped(refuse)
        first, second = desk.out.getvalue().index("First."), desk.out.getvalue().index("Second.")
        assert first < second

    asyncio.run(story())


def test_work_ends_in_its_own_way_when_its_run_is_cancelled() -> None:
    ends: List[str] = []

    async def tidy_up(run: Run) -> None:
        for _ in range(3):  # as the copies of a prompt are taken off the queue
            await asyncio.sleep(0.01)
        ends.append("tidy")

    async def story() -> None:
        desk = Desk()
        desk.end_run()
        desk.press(CTRL_C)
        await watch_of(desk).until_stopped(tidy_up)

    asyncio.run(story())
    assert ends == ["tidy"]


def test_a_prompt_of_somebody_else_goes_on() -> None:
    async def story() -> None:
        desk = Desk()
        desk.run.attached = True
        desk.press(SIGTERM)
        with pytest.raises(Stopped, match=r"^SIGTERM: no longer following prompt id, which continues\.$") as caught:
            await watch_of(desk).until_stopped(go_on_forever)
        assert caught.value.exit_status is ExitStatus.TERMINATED
        assert not desk.run.cancelling and desk.out.getvalue() == ""

    asyncio.run(story())


@pytest.mark.parametrize(
    ("arguments", "farewell"),
    [
        ((), "Exited at once: prompt id may still be running on the server."),
        (("--repeat", "2"), "Exited at once."),  # the batch says so for all of its rows
    ],
)
def test_a_second_press_says_what_may_still_run(arguments: Any, farewell: str) -> None:
    async def story() -> None:
        desk = Desk()
        watch_of(desk, *arguments)
        assert desk.interrupts.farewell == farewell

    asyncio.run(story())


@pytest.mark.parametrize(
    ("error", "press", "status"),
    [
        (Stopped("x"), CTRL_C, ExitStatus.CANCELLED),
        (Stopped("x"), SIGTERM, ExitStatus.TERMINATED),
        (Stopped("x"), None, ExitStatus.CANCELLED),
        (ServerUnreachable("x"), SIGTERM, ExitStatus.NO_SERVER),  # its own reason counts
    ],
)
def test_an_error_ends_the_call_with_its_own_status_or_that_of_the_press(
    error: RunnerError, press: Optional[Stop], status: ExitStatus
) -> None:
    async def story() -> None:
        desk = Desk()
        if press is not None:
            desk.press(press)
        assert desk.console.report_error(error) is status
        assert desk.err.getvalue() == "x\n"

    asyncio.run(story())
