"""Ctrl+C and SIGTERM."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any, Callable, Dict, NamedTuple, Optional

from comfyui_runner.errors import ExitStatus


class Stop(NamedTuple):
    """What ends work early, in words ("Ctrl+C", "the timeout"), and the exit status that this leads to."""

    name: str
    exit_status: ExitStatus


class Interrupts:
    """Ctrl+C and SIGTERM. The first press sets ``event``, the second leaves at once.

    While a question is asked, a press ends the question (KeyboardInterrupt) instead. A handler does
    as little as it can: it runs between any two steps of the program.
    """

    def __init__(self) -> None:
        self.signal: Optional[int] = None
        self.asking = False
        self.farewell = "Left at once."
        self._wake: Callable[[], object] = lambda: None
        self._before: Dict[int, Any] = {}

    @property
    def name(self) -> str:
        """What was pressed, for people."""

        return "SIGTERM" if self.signal == signal.SIGTERM else "Ctrl+C"

    @property
    def exit_status(self) -> ExitStatus:
        """130 for Ctrl+C, 143 for SIGTERM."""
        return ExitStatus.TERMINATED if self.name == "SIGTERM" else ExitStatus.CANCELLED

    def install(self) -> None:
        """Takes the signals over; in a thread that cannot, they stay as they are."""

        for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGBREAK", None)):
            try:
                if number is not None:
                    self._before[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread
                return

    def restore(self) -> None:
        """Gives the signals back."""

        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def bind(self, loop: "asyncio.AbstractEventLoop", event: "asyncio.Event") -> None:
        """From now on a press sets ``event`` of ``loop`` (signal.signal, as Windows' loops have no
        add_signal_handler; call_soon_threadsafe wakes the loop up)."""
        self._wake = lambda: loop.call_soon_threadsafe(event.set)
        if self.signal is not None:
            event.set()

    def _handle(self, number: int, frame: object) -> None:
        if self.signal is not None:
            self.signal = number
            try:
                os.write(
                    2, b"\x1b[?25h" if os.isatty(2) else b""
                )  # the live display hides the cursor
                os.write(2, ("\n%s\n" % self.farewell).encode(errors="replace"))
            finally:
                os._exit(self.exit_status)
        self.signal = number
        if self.asking:
            raise KeyboardInterrupt
        try:
            self._wake()
        except RuntimeError:
            pass  # the loop is closed: the program is at its end
