"""What is done when runs have ended. It never changes how they ended."""

from __future__ import annotations

import asyncio
from typing import Callable, Optional

from comfyui_runner.conclusion import Ending
from comfyui_runner.console import Console
from comfyui_runner.reports import Report
from comfyui_runner.runs import Run
from comfyui_runner.session import Session
from comfyui_runner.settings import Settings

#: Takes what is to be said of it.
TakeReport = Callable[[Report], None]


class Afterwards:
    """Does nothing: neither --hook nor --free asks for something."""

    def note_run(self) -> None:
        """A run begins."""

    def note_end(
        self,
        session: Session,
        run: Run,
        ending: Ending,
        report: TakeReport,
        row: Optional[int] = None,
    ) -> None:
        """A run has ended, and its files are saved. ``row`` is the number of the row of a batch.

        ``report`` is called until finish() has come back.
        """

    def look_around(self, has_runs: Callable[[], bool], now: float, report: TakeReport) -> None:
        """Called from time to time by what runs until it is stopped. ``has_runs()``: some are open.

        ``now`` is a time in seconds of any one clock.
        """

    async def finish(self, report: TakeReport, stopping: Optional["asyncio.Event"] = None) -> None:
        """Comes back when all is done, after a limited time, or when ``stopping`` is set."""


def make_afterwards(settings: Settings, console: Console) -> Afterwards:
    """What --hook and --free ask for. Called in the event loop."""
    if not settings.hooks and not settings.free:
        return Afterwards()
    from comfyui_runner.extras.after_runs import HooksAndFreeing  # only these flags need it

    return HooksAndFreeing(settings, console)
