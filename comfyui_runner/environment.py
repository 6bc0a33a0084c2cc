"""What a call gets from outside: arguments, streams, variables.

Nothing else in the program reads them from sys or os.environ.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Mapping, Optional, Sequence, TextIO

from comfyui_runner.limits import DEFAULT_LIMITS, Limits


class NullStream(io.TextIOWrapper):
    """The null device, which on Windows says that it is a terminal. ``mode`` is "rb" or "wb"."""

    def __init__(self, mode: str) -> None:
        device = open(os.devnull, mode)  # noqa: SIM115 - it stays open as long as this stream
        super().__init__(device, encoding="utf-8")

    def isatty(self) -> bool:
        return False


def replace_missing_streams() -> None:
    """Opens the null device where Python has no stream: in pythonw, in services, and where one was
    closed.

    In this order: the number of a stream that is closed is given to the next file or socket that is
    opened, and what the system writes to stream 2 would go there.
    """
    if sys.stdin is None:
        sys.stdin = NullStream("rb")
    if sys.stdout is None:
        sys.stdout = NullStream("wb")
    if sys.stderr is None:
        sys.stderr = NullStream("wb")


class Environment:
    """The outside of one call. What is left out is taken from the process.

    ``limits`` say how long each wait may take. ``ends_process``: the process ends right after the
    call, so that its handling of signals need not be restored.
    """

    def __init__(
        self,
        arguments: Optional[Sequence[str]] = None,
        *,
        stdin: Optional[TextIO] = None,
        stdout: Optional[TextIO] = None,
        stderr: Optional[TextIO] = None,
        variables: Optional[Mapping[str, str]] = None,
        limits: Limits = DEFAULT_LIMITS,
        ends_process: bool = False,
    ) -> None:
        self.arguments = list(sys.argv[1:] if arguments is None else arguments)
        self.stdin = stdin or sys.stdin
        self.stdout = stdout or sys.stdout
        self.stderr = stderr or sys.stderr
        self.variables = os.environ if variables is None else variables
        self.limits = limits
        self.ends_process = ends_process

        for stream in (self.stdout, self.stderr):
            prepare_output(stream, self.variables)


def names_encoding(python_io_encoding: str) -> bool:
    """Whether a PYTHONIOENCODING names an encoding: ``:replace`` names only what errors become."""
    return bool(python_io_encoding.partition(":")[0])


def prepare_output(stream: TextIO, variables: Mapping[str, str]) -> None:
    """Makes ``stream`` take every text.

    What is not a console becomes UTF-8, unless the person has chosen an encoding: Python would
    write in Windows' code page there, which lacks most characters. A console has them all (on
    Windows since Python 3.6), or gets "?". What is not a console gets lines that end with LF: the
    CR of Windows would become part of the paths that a Unix shell there takes from --quiet.
    """
    reconfigure = getattr(stream, "reconfigure", None)  # not every stand-in has it
    if reconfigure is None:
        return
    is_console = stream.isatty()
    if not is_console:
        reconfigure(newline="\n")
    keeps_encoding = is_console or names_encoding(variables.get("PYTHONIOENCODING", ""))
    if keeps_encoding:
        reconfigure(errors="replace")
    else:
        reconfigure(encoding="utf-8", errors="replace")
