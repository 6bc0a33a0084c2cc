"""Work on one run ends when it must: by itself, by Ctrl+C or by --timeout. And so does what is said of it."""

from __future__ import annotations

import asyncio
import io
from typing import Any, Awaitable, Callable, List, Optional

import pytest
from support import FAST, slow_prompt

from comfyui_runner.addresses import parse_address
from comfyui_runner.conclusion import TIMED_OUT
from comfyui_runner.console import Console
from comfyui_runner.environment import Environment
from comfyui_runner.errors import ExitStatus, RunnerError, ServerUnreachable, Stopped
from comfyui_runner.flags import Defaults
from comfyui_runner.interrupts import Interrupts, Stop
from comfyui_runner.limits import Limits
from comfyui_runner.runs import Run
from comfyui_runner.server import Server
from comfyui_runner.session import Session
from comfyui_runner.settings import Settings, make_settings
from comfyui_runner.state import Phase
from comfyui_runner.terminal import Printer
from comfyui_runner.watch import Watch

CTRL_C = Stop("Ctrl+C", ExitStatus.CANCELLED)
SIGTERM = Stop("SIGTERM", ExitStatus.TERMINATED)

Work = Callable[[Run], Awaitable[object]]


def settings_of(*arguments: str) -> Settings:
    defaults = Defaults("a.json", "single_shot", False, ("http://127.0.0.1:1",), ())
    return make_settings(["--yes", *arguments], {}, defaults)


class Desk:
    """A person's side of a call, without a terminal and without a server."""

    def __init__(self, *arguments: str, limits: Limits = FAST) -> None:
        self.out, self.err = io.StringIO(), io.StringIO()
        self.interrupts = Interrupts()
        environment = Environment([], stdin=io.StringIO(), stdout=self.out, stderr=self.err, variables={})
        self.console = Console(Printer(self.out, self.err), self.interrupts, environment)
        self.session = Session(Server(parse_address("http://127.0.0.1:1"), limits), self.console.report)
        self.run = self.session.new_run(slow_prompt(), "id")
        self.watch = Watch(self.session, self.run, settings_of(*arguments), self.console)

    def press(self, stop: Stop) -> None:
        self.interrupts.cause = stop
        self.console.stop.set()

    def end_run(self) -> None:
        """The run ends on the server, whatever asks for that."""
        self.run.state = self.run.state._replace(phase=Phase.INTERRUPTED)


async def go_on_forever(run: Run) -> None:
    await asyncio.sleep(3600.0)


def test_work_that_is_done_raises_what_it_failed_with() -> None:
    async def fail(run: Run) -> None:
        raise ServerUnreachable("gone")

    async def story() -> None:
        desk = Desk()
        with pytest.raises(ServerUnreachable, match="gone"):
            await desk.watch.until_stopped(fail)
        assert desk.watch.stop is None

    asyncio.run(story())


@pytest.mark.parametrize("press", [CTRL_C, SIGTERM, None])
def test_work_that_goes_on_after_its_run_is_over_is_left(press: Optional[Stop]) -> None:
    """Taking copies off the queue must not hold the end up for longer than one answer may take."""

    async def story() -> None:
        desk = Desk("--timeout", "0.01", limits=FAST._replace(read=0.05)) if press is None else Desk()
        desk.session.limits = FAST._replace(read=0.05)
        desk.end_run()
        if press is not None:
            desk.press(press)
        await asyncio.wait_for(desk.watch.until_stopped(go_on_forever), 20.0)
        stop = press or TIMED_OUT
        assert desk.watch.stop == stop
        assert desk.out.getvalue() == f"{stop.name}: cancelling our prompt and nothing else.\n"

        done: List[Run] = []

        async def work(run: Run) -> None:
            done.append(run)

        await desk.watch.until_stopped(work)
        assert done == []  # no more work is done

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
        await desk.watch.until_stopped(tidy_up)

    asyncio.run(story())
    assert ends == ["tidy"]


def test_a_prompt_of_somebody_else_goes_on() -> None:
    async def story() -> None:
        desk = Desk()
        desk.run.attached = True
        desk.press(SIGTERM)
        with pytest.raises(Stopped, match=r"^SIGTERM: no longer following prompt id, which goes on\.$") as caught:
            await desk.watch.until_stopped(go_on_forever)
        assert caught.value.exit_status is ExitStatus.TERMINATED
        assert not desk.run.cancelling and desk.out.getvalue() == ""

    asyncio.run(story())


@pytest.mark.parametrize(
    ("arguments", "farewell"),
    [
        ((), "Left at once: prompt id may still be running on the server."),
        (("--repeat", "2"), "Left at once."),  # the batch says so for all of its rows
    ],
)
def test_a_second_press_says_what_may_still_run(arguments: Any, farewell: str) -> None:
    async def story() -> None:
        assert Desk(*arguments).interrupts.farewell == farewell

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
