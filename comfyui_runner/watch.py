"""Work on one run, until it is done or must stop: Ctrl+C, SIGTERM and --timeout cancel the run."""

from __future__ import annotations

import asyncio
import time
from typing import Awaitable, Callable, Optional

from comfyui_runner.conclusion import TIMED_OUT
from comfyui_runner.console import Console
from comfyui_runner.errors import PromptRejected, Stopped
from comfyui_runner.interrupts import Stop
from comfyui_runner.meter import Meter, make_meter
from comfyui_runner.reports import problem_report
from comfyui_runner.runs import Run
from comfyui_runner.session import Session
from comfyui_runner.settings import Settings
from comfyui_runner.threads import end_tasks


class Watch:
    """Work on one run, until it is done or must stop. What cancels it cancels no other run."""

    def __init__(self, session: Session, run: Run, settings: Settings, console: Console) -> None:
        self.session = session
        self.run = run
        self.settings = settings
        self.console = console
        self.stop: Optional[Stop] = None  #: what cancelled the run
        self._timed_from: Optional[float] = time.monotonic()  # None: from when the run starts
        self._is_row_of_batch = settings.task == "batch"
        if not self._is_row_of_batch:
            console.interrupts.farewell = (
                f"Exited at once: prompt {run.prompt_id} may still be running on the server."
            )

    async def until_stopped(self, work: Callable[[Run], Awaitable[object]]) -> None:
        """Does ``work(run)``, or cancels the run if it must stop first; then no more work is done.

        Raises what ``work`` raises, unless the run was cancelled.
        """
        if self.stop is not None:
            return
        task = asyncio.ensure_future(work(self.run))
        try:
            await self._done_or_must_stop(task)
            if task.done():
                await task  # raises what it failed with
                return
            self.stop = self._what_stopped()
            await self._cancel(task, self.stop)
        except PromptRejected as error:
            for problem in error.problems:
                self.session.report(self.run, problem_report(problem))
            raise
        finally:
            await end_tasks([task])

    def postpone_timeout(self) -> None:
        """Counts for --timeout from when the run starts, or from start_timeout() if that is first.

        For a run that waits for other runs of ours.
        """
        self._timed_from = None

    def start_timeout(self) -> None:
        """Counts for --timeout from now, if not from an earlier moment."""
        has_started = self.run.state.started_at is not None
        if self._timed_from is None and not has_started:
            self._timed_from = time.monotonic()

    async def _done_or_must_stop(self, task: "asyncio.Future[object]") -> None:
        """Waits until ``task`` is done, Ctrl+C or SIGTERM came, or --timeout expired."""
        while True:
            await self.console.done_or_stopped(task, self._seconds_left())
            if task.done() or self.console.stop.is_set():
                return
            if self._seconds_left() == 0.0:  # else --timeout was postponed
                return

    def _seconds_left(self) -> Optional[float]:
        """Seconds until --timeout expires at the earliest; None without --timeout."""
        if self.settings.timeout is None:
            return None
        now = time.monotonic()
        began = self._timed_from
        if began is None:
            began = self.run.state.started_at
        if began is None:
            began = now
        return max(began + self.settings.timeout - now, 0.0)

    def _what_stopped(self) -> Stop:
        if self.console.stop.is_set():
            return self.console.what_stopped
        return TIMED_OUT

    async def _cancel(self, task: "asyncio.Future[object]", stop: Stop) -> None:
        if self.run.attached:  # somebody else's, perhaps: it is left alone
            error = Stopped(
                f"{stop.name}: no longer following prompt {self.run.prompt_id}, which continues."
            )
            error.exit_status = stop.exit_status
            raise error

        if not self._is_row_of_batch:  # which says once what stops all of its rows
            message = f"{stop.name}: cancelling our prompt and nothing else."
            self.console.note(message, self.run)
        await self.session.cancel(self.run)

        # The work ends by itself when the run is over: it may still take copies off the queue.
        if self.run.state.phase.over:
            await asyncio.wait([task], timeout=self.session.limits.read)

    def meter(self) -> Meter:
        """How far the run is, for the moving part of the screen."""
        run = self.run
        return make_meter(
            run.state,
            run.prompt,
            time.monotonic(),
            run.began,
            self.session.note,
            attached=run.attached,
        )
