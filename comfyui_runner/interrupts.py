"""Ctrl+C and SIGTERM."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any, Callable, Dict, NamedTuple, Optional

from comfyui_runner.errors import ExitStatus

#: The live display hides the cursor of a terminal; this shows it again.
SHOW_CURSOR = b"\x1b[?25h"


class Stop(NamedTuple):
    """What ends work early ("Ctrl+C", "--timeout expired"), and the exit status it leads to."""

    name: str
    exit_status: ExitStatus


class Interrupts:
    """Ctrl+C and SIGTERM. The first press sets an event, the second leaves at once.

    While a question is asked, a press ends the question (KeyboardInterrupt) instead. The handler
    does as little as it can: it runs between any two steps of the program.
    """

    def __init__(self) -> None:
        self.signal: Optional[int] = None  #: the number of the first press, then of the second
        self.asking = False  #: a question is asked
        self.farewell = "Left at once."  #: what the second press says
        self._wake: Callable[[], object] = lambda: None
        self._replaced_handlers: Dict[int, Any] = {}

    @property
    def name(self) -> str:
        """What was pressed, for people."""
        return "SIGTERM" if self.signal == signal.SIGTERM else "Ctrl+C"

    @property
    def exit_status(self) -> ExitStatus:
        """130 for Ctrl+C, 143 for SIGTERM."""
        return ExitStatus.TERMINATED if self.name == "SIGTERM" else ExitStatus.CANCELLED

    def install(self) -> None:
        """Takes the signals over; in a thread, which cannot, they stay as they are."""
        numbers = [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGBREAK"):  # Ctrl+Break on Windows
            numbers.append(signal.SIGBREAK)
        for number in numbers:
            try:
                self._replaced_handlers[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread
                return

    def restore(self) -> None:
        """Gives the signals back."""
        for number, handler in self._replaced_handlers.items():
            signal.signal(number, handler)
        self._replaced_handlers = {}

    def bind(self, loop: "asyncio.AbstractEventLoop", event: "asyncio.Event") -> None:
        """From now on the first press sets ``event`` of ``loop``.

        Not loop.add_signal_handler(), which Windows does not have; call_soon_threadsafe() wakes a
        loop that waits.
        """
        self._wake = lambda: loop.call_soon_threadsafe(event.set)
        if self.signal is not None:
            event.set()

    def _handle(self, number: int, frame: object) -> None:
        is_second = self.signal is not None
        self.signal = number
        if is_second:
            self._leave_at_once()
        if self.asking:
            raise KeyboardInterrupt
        try:
            self._wake()
        except RuntimeError:
            pass  # the loop is closed: the program is at its end

    def _leave_at_once(self) -> None:
        """Ends the process by system calls alone: the streams may be in the middle of a write."""
        try:
            if os.isatty(2):
                os.write(2, SHOW_CURSOR)
            os.write(2, f"\n{self.farewell}\n".encode(errors="replace"))
        finally:
            os._exit(self.exit_status)
