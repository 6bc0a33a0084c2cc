"""The person's side of a call: what is reported, what is asked, and when to stop."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import Awaitable, Callable, Dict, Iterator, Optional

from comfyui_runner.environment import Environment
from comfyui_runner.errors import ExitStatus, NotConfirmed, RunnerError, Stopped
from comfyui_runner.interrupts import Interrupts, Stop
from comfyui_runner.meter import Meter
from comfyui_runner.redaction import Secrets
from comfyui_runner.reports import Report, plain_notice
from comfyui_runner.runs import Run
from comfyui_runner.server import new_uuid
from comfyui_runner.terminal import Printer, is_yes, report_error
from comfyui_runner.threads import Result, done_or_set, end_tasks

#: Seconds between two drawings of the moving part of the screen.
DRAW_INTERVAL = 0.1


class Console:
    """Reports go through it to a printer, questions to a person; it knows of Ctrl+C and SIGTERM.

    Made in the event loop, in which Ctrl+C and SIGTERM set ``stop`` from then on.
    """

    def __init__(self, printer: Printer, interrupts: Interrupts, environment: Environment) -> None:
        self.printer = printer
        self.interrupts = interrupts
        self.stdin = environment.stdin
        self.variables = environment.variables
        self.stdout = environment.stdout  #: for what is not a report (--export-api -)
        self.prompt_id = new_uuid()  #: of the run that is reported; the first run gets this one
        self.context: Report = {}  #: fields that all reports have
        #: what each workflow of a call leaves for the end of all, by a name; None where it is alone
        self.left_for_end: Optional[Dict[str, Callable[[], Awaitable[None]]]] = None
        self.stop = asyncio.Event()  #: set by Ctrl+C and SIGTERM
        interrupts.bind(asyncio.get_running_loop(), self.stop)

    @property
    def secrets(self) -> Secrets:
        """What is hidden in all that leaves the program."""
        return self.printer.secrets

    # -- reporting ---------------------------------------------------------------------------------

    def report(self, run: Optional[Run], report: Report, prefix: str = "") -> None:
        """Reports what happened to ``run``, or (None) to the call as a whole.

        ``report`` may have a prompt_id of its own. ``prefix`` comes before each line for people.
        """
        if run is not None:
            self.prompt_id = run.prompt_id
        self.printer.report({"prompt_id": self.prompt_id, **self.context, **report}, prefix)

    def notice(self, message: str, run: Optional[Run] = None) -> None:
        """Reports something that a person should know: a warning."""
        self.report(run, {"event": "notice", "message": message})

    def note(self, message: str, run: Optional[Run] = None) -> None:
        """Reports what happens as it was asked for, or as it always does: not a warning."""
        self.report(run, plain_notice(message))

    def say(self, text: str) -> None:
        """Shows people a line that is not a report: programs do not get it."""
        self.printer.say(text)

    def report_error(self, error: RunnerError) -> ExitStatus:
        """Reports the error that ends the call; the exit status that it leads to."""
        if isinstance(error, Stopped) and self.stopping:
            error.exit_status = self.interrupts.exit_status
        return report_error(self.printer, error, self.prompt_id, self.context)

    @contextmanager
    def live(self, read_meter: Callable[[], Meter]) -> Iterator[None]:
        """Draws what ``read_meter()`` returns until the block ends, if the printer draws."""
        self.printer.start_meter(read_meter)
        ticker = asyncio.ensure_future(self._draw())
        try:
            yield
        finally:
            ticker.cancel()

    async def _draw(self) -> None:
        while True:
            self.printer.draw_meter()
            await asyncio.sleep(DRAW_INTERVAL)

    # -- asking ------------------------------------------------------------------------------------

    def confirm(self, question: str) -> None:
        """Asks until the answer is yes or no.

        Raises NotConfirmed for no and at the end of the input, Stopped for Ctrl+C and SIGTERM.
        """
        while True:
            self.printer.question(question)
            answer = self._read_answer()
            if not answer:
                self.printer.question("\n")
                raise NotConfirmed(
                    "The input ended before an answer: nothing was submitted.",
                    "Answer y, or add --yes.",
                )
            confirmed = is_yes(answer)
            if confirmed:
                return
            if confirmed is False:
                raise NotConfirmed("Not confirmed: nothing was submitted.")
            self.printer.question("Please answer y or n. ")

    def _read_answer(self) -> str:
        """A line of the input; "" at its end. Raises Stopped."""
        try:
            try:
                self.interrupts.asking = True
                if self.stopping:
                    raise KeyboardInterrupt
                return self.stdin.readline()
            finally:
                self.interrupts.asking = False  # a press just before this line is caught below
        except KeyboardInterrupt:
            self.interrupts.asking = False
            self.printer.question("\n")
            raise self.stopped() from None

    # -- stopping ----------------------------------------------------------------------------------

    @property
    def stopping(self) -> bool:
        """Whether Ctrl+C or SIGTERM came."""
        return self.interrupts.cause is not None

    @property
    def what_stopped(self) -> Stop:
        """What stops the call: Ctrl+C or SIGTERM."""
        return Stop(self.interrupts.name, self.interrupts.exit_status)

    def event_to_come(self) -> Optional[asyncio.Event]:
        """What Ctrl+C sets, None if it came before: the next press ends the program at once."""
        if self.stopping:
            return None
        return self.stop

    def stopped(self) -> Stopped:
        """The error of a call that Ctrl+C or SIGTERM ended before anything was submitted."""
        return Stopped(f"Stopped by {self.interrupts.name}: nothing was submitted.")

    async def unless_stopped(self, work: Awaitable[Result]) -> Result:
        """The result of ``work``, which is left when Ctrl+C or SIGTERM comes first. Raises Stopped.

        For work before anything is submitted: there is nothing to cancel on the server.
        """
        task = asyncio.ensure_future(work)
        try:
            await self.done_or_stopped(task)
            if self.stopping:  # even if the work is done as well
                raise self.stopped()
            return task.result()
        finally:  # also where the caller is cancelled
            await end_tasks([task])

    async def done_or_stopped(
        self, task: "asyncio.Future[Result]", timeout: Optional[float] = None
    ) -> None:
        """Waits until ``task`` is done, Ctrl+C or SIGTERM came, or ``timeout`` seconds are over."""
        await done_or_set(task, self.stop, timeout)
