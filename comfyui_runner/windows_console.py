"""What Windows sends to the programs of a console that closes, and how long they may still take."""

from __future__ import annotations

import threading
from typing import Any, Callable, Mapping, Optional

#: The events after which Windows ends the process, by their numbers. The others, Ctrl+C (0) and
#: Ctrl+Break (1), are signals in Python.
#: https://learn.microsoft.com/windows/console/handlerroutine
CLOSING_EVENTS: Mapping[int, str] = {
    2: "CTRL_CLOSE_EVENT",
    5: "CTRL_LOGOFF_EVENT",
    6: "CTRL_SHUTDOWN_EVENT",
}

#: Ctrl+C and Ctrl+Break.
PRESSES = (0, 1)

#: STD_OUTPUT_HANDLE and STD_ERROR_HANDLE: the streams, as Windows numbers them.
STANDARD_STREAMS = (-11, -12)

#: ENABLE_VIRTUAL_TERMINAL_PROCESSING: the console understands escape codes. Old ones show them.
TAKES_ESCAPE_CODES = 0x0004

#: Seconds for which the end of the process is put off. Windows itself waits for 5.
CLOSING_SECONDS = 4.5


def seconds_to_hold(event: int, is_asking: bool) -> Optional[float]:
    """How long the end of the process may be put off after ``event``; None if it does not end.

    While a question is asked nothing runs yet: there is nothing to cancel.
    """
    if event not in CLOSING_EVENTS:
        return None
    return 0.0 if is_asking else CLOSING_SECONDS


def turn_on_escape_codes(kernel32: Any) -> bool:
    """Whether the console of the stream of errors understands escape codes from now on.

    Windows' own console does since Windows 10, but only for programs that ask for it. Without, rich
    takes it for an old one, in which it draws by calls that wait while something is selected.
    """
    # It takes milliseconds, and only Windows needs it.
    import ctypes

    understands = False
    for stream in STANDARD_STREAMS:
        mode = ctypes.c_uint(0)
        handle = kernel32.GetStdHandle(stream)
        is_console = kernel32.GetConsoleMode(handle, ctypes.byref(mode))
        understands = bool(is_console and mode.value & TAKES_ESCAPE_CODES)
        if is_console and not understands:
            new_mode = mode.value | TAKES_ESCAPE_CODES
            understands = bool(kernel32.SetConsoleMode(handle, new_mode))
    return understands


class ConsoleHandler:
    """Takes the events of a console that closes, and the second Ctrl+C, between install() and
    remove().

    Windows calls a handler in a thread of its own, and ends the process when it returns.
    ``is_asking()`` says whether a question is asked, ``stop(name)`` begins to end the program,
    ``leave()`` ends the process at once.
    """

    def __init__(
        self,
        kernel32: Any,
        is_asking: Callable[[], bool],
        stop: Callable[[str], None],
        leave: Callable[[], None],
    ) -> None:
        # It takes milliseconds, and only Windows needs it.
        import ctypes

        # WINFUNCTYPE exists on Windows only, where 64-bit processes call both in the same way.
        function_type = getattr(ctypes, "WINFUNCTYPE", ctypes.CFUNCTYPE)
        self._kernel32 = kernel32
        self._is_asking = is_asking
        self._stop = stop
        self._leave = leave
        self._was_pressed = False
        self._program_is_over = threading.Event()
        # Kept here: Windows must not call a function that Python has freed.
        self._callback = function_type(ctypes.c_int, ctypes.c_uint)(self._handle)

    def install(self) -> None:
        """Registers the handler.

        The newest one is called first. So it comes after signal.signal(): C's runtime makes
        SIGBREAK of these events, and lets the process end at once.
        """
        self._kernel32.SetConsoleCtrlHandler(self._callback, 1)

    def remove(self) -> None:
        """Takes the handler back, and lets the process end if an event waits for it."""
        self._program_is_over.set()
        self._kernel32.SetConsoleCtrlHandler(self._callback, 0)

    def _handle(self, event: int) -> int:
        """1: the event is dealt with. 0: it is for the handler that was installed before."""
        if event in PRESSES:
            return self._handle_press()
        seconds = seconds_to_hold(event, self._is_asking())
        if seconds is None:
            return 0
        self._stop(CLOSING_EVENTS[event])
        self._program_is_over.wait(seconds)
        return 1

    def _handle_press(self) -> int:
        """Leaves at once on the second press.

        The first one is left to Python, whose main thread notices it only after the call that it
        waits in, such as one for a socket. This thread need not wait for that.
        """
        if self._was_pressed:
            self._leave()
        self._was_pressed = True
        return 0
