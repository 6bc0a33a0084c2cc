"""Ctrl+C, SIGTERM, and a terminal that is closed."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import socket
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from comfyui_runner.errors import ExitStatus
from comfyui_runner.last_words import try_for
from comfyui_runner.windows_console import ConsoleHandler, turn_on_escape_codes

#: The live display hides the cursor of a terminal; this shows it again.
SHOW_CURSOR = b"\x1b[?25h"

#: Seconds for the console to take what the second press says.
FAREWELL_SECONDS = 0.5


class Stop(NamedTuple):
    """What ends work early."""

    name: str  #: for people: "Ctrl+C", "--timeout expired"
    exit_status: ExitStatus  #: what it leads to


def stop_by_signal(number: int) -> Stop:
    """What a signal leads to. SIGHUP, which is sent when a terminal closes, counts as SIGTERM."""
    name = signal.Signals(number).name
    if name in ("SIGTERM", "SIGHUP"):
        return Stop(name, ExitStatus.TERMINATED)
    return Stop("Ctrl+C", ExitStatus.CANCELLED)


def signals_to_take() -> List[int]:
    """The signals after which the program ends in order, as far as this system has them."""
    numbers: List[int] = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGBREAK"):  # Ctrl+Break on Windows
        numbers.append(signal.SIGBREAK)
    if hasattr(signal, "SIGHUP"):
        is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        if not is_ignored:  # nohup ignores it: the run outlives its terminal
            numbers.append(signal.SIGHUP)
    return numbers


class Interrupts:
    """Ctrl+C, SIGTERM and a terminal that is closed. The first press sets an event, the second
    leaves at once.

    While a question is asked, a press ends the question (KeyboardInterrupt) instead. The handler
    does as little as it can: it runs between any two steps of the program.
    """

    def __init__(self) -> None:
        self.cause: Optional[Stop] = None  #: the first press, then the second
        self.asking = False  #: a question is asked
        self.farewell = "Exited at once."  #: what the second press says
        self._wake: Callable[[], object] = lambda: None
        self._replaced_handlers: Dict[int, Any] = {}
        self._wakers: Optional[Tuple[socket.socket, socket.socket]] = None
        self._console_handler: Optional[ConsoleHandler] = None
        self._takes_escape_codes = True  # an old console of Windows would show them

    @property
    def name(self) -> str:
        """What was pressed, for people."""
        if self.cause is None:
            return "Ctrl+C"
        return self.cause.name

    @property
    def exit_status(self) -> ExitStatus:
        """130 for Ctrl+C, 143 for SIGTERM and a terminal that is closed."""
        if self.cause is None:
            return ExitStatus.CANCELLED
        return self.cause.exit_status

    def install(self) -> None:
        """Takes over the signals. In another than the main thread, Python does not allow that."""
        for number in signals_to_take():
            try:
                self._replaced_handlers[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread
                return
        if os.name == "nt":
            import ctypes  # it takes milliseconds, and only Windows needs it

            self.take_console_events(getattr(ctypes, "windll").kernel32)  # noqa: B009

    def take_console_events(self, kernel32: Any) -> None:
        """Cancels our run when the console of Windows is closed, and leaves at the second Ctrl+C.

        Must be called before anything is printed: from now on the console understands escape codes,
        if it can. ``kernel32`` is the library of the console.
        """
        self._takes_escape_codes = turn_on_escape_codes(kernel32)
        self._console_handler = ConsoleHandler(
            kernel32, lambda: self.asking, self._close, self._leave_at_once
        )
        self._console_handler.install()

    def restore(self) -> None:
        """Gives the signals back."""
        self._close_wakers()
        for number, handler in self._replaced_handlers.items():
            signal.signal(number, handler)
        self._replaced_handlers = {}
        if self._console_handler is not None:
            self._console_handler.remove()
            self._console_handler = None

    def bind(self, loop: "asyncio.AbstractEventLoop", event: "asyncio.Event") -> None:
        """From now on the first press sets ``event`` of ``loop``.

        Not loop.add_signal_handler(), which Windows does not have; call_soon_threadsafe() wakes a
        loop that waits.
        """
        self._wake = lambda: loop.call_soon_threadsafe(event.set)
        if self.cause is not None:
            event.set()
        takes_signals = bool(self._replaced_handlers)
        # The loop of Windows has wakers of its own (ProactorEventLoop.run_forever()).
        if takes_signals and os.name != "nt":
            self._let_signals_wake(loop)

    def _let_signals_wake(self, loop: "asyncio.AbstractEventLoop") -> None:
        """Signals end the system call in which ``loop`` waits.

        Python calls handlers in the main thread, between two of its steps. Without this, a handler
        would not be called until the loop wakes up, where the system delivers the signal to another
        thread, or just before the main thread begins to wait.
        """
        self._close_wakers()
        reader, writer = socket.socketpair()
        for waker in (reader, writer):
            waker.setblocking(False)
        self._wakers = (reader, writer)
        loop.add_reader(reader, functools.partial(reader.recv, 4096))
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def _close_wakers(self) -> None:
        if self._wakers is None:
            return
        signal.set_wakeup_fd(-1)
        for waker in self._wakers:
            waker.close()
        self._wakers = None

    def _handle(self, number: int, frame: object) -> None:
        stop = stop_by_signal(number)
        is_second = self.cause is not None
        if is_second and stop.name == "SIGHUP":
            # Nobody pressed anything: the shell and the system both send SIGHUP when a terminal is
            # closed, and systemd may send it right after SIGTERM.
            return
        self.cause = stop
        if is_second:
            self._leave_at_once()
        if self.asking:
            raise KeyboardInterrupt
        self._wake_loop()

    def stop(self, cause: Stop) -> None:
        """Does what the first press does, and never what the second does. From any thread."""
        if self.cause is None:
            self.cause = cause
        self._wake_loop()

    def _close(self, event: str) -> None:
        """The console is closed. Called in a thread of Windows; never a second press either."""
        self.stop(Stop(event, ExitStatus.TERMINATED))

    def _wake_loop(self) -> None:
        try:
            self._wake()
        except RuntimeError:
            pass  # the loop is closed: the program is at its end

    def _leave_at_once(self) -> None:
        """Ends the process by system calls alone: the streams may be in the middle of a write."""
        try_for(FAREWELL_SECONDS, self._say_farewell)
        os._exit(self.exit_status)

    def _say_farewell(self) -> None:
        try:
            takes_escape_codes = os.isatty(2) and self._takes_escape_codes
            os.write(2, last_bytes(self.farewell, takes_escape_codes))
        except OSError:
            pass  # nobody reads it


def last_bytes(farewell: str, takes_escape_codes: bool) -> bytes:
    """What the process writes last: a ``farewell``, with the cursor of a terminal shown again."""
    said = f"\n{farewell}\n".encode(errors="replace")
    if takes_escape_codes:
        return SHOW_CURSOR + said
    return said
