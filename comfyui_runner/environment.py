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
    """Opens the null device where Python has no stream.

    That is so in pythonw, in services, and where one was closed. The order matters: the number of a
    stream that is closed (0, 1, 2) is given to the next file or socket that is opened, and what the
    system writes to stream 2 would go there.
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
        if arguments is None:
            arguments = sys.argv[1:]
        if variables is None:  # an empty one is meant
            variables = os.environ
        self.arguments = list(arguments)
        self.stdin = stdin or sys.stdin
        self.stdout = stdout or sys.stdout
        self.stderr = stderr or sys.stderr
        self.variables = variables
        self.limits = limits
        self.ends_process = ends_process

        for stream in (self.stdout, self.stderr):
            prepare_output(stream, self.variables)


def names_encoding(python_io_encoding: str) -> bool:
    """Whether a PYTHONIOENCODING names an encoding: ``:replace`` names only what errors become."""
    encoding, _, _ = python_io_encoding.partition(":")
    return encoding != ""


def prepare_output(stream: TextIO, variables: Mapping[str, str]) -> None:
    """Makes ``stream`` take every text."""
    reconfigure = getattr(stream, "reconfigure", None)  # not every stand-in has it
    if reconfigure is None:
        return

    # A console has all characters (on Windows since Python 3.6), or gets "?".
    if stream.isatty():
        reconfigure(errors="replace")
        return

    # The CR of Windows would become part of the paths that a Unix shell there takes from --quiet.
    reconfigure(newline="\n")
    # Python would write in Windows' code page, which lacks most characters.
    if names_encoding(variables.get("PYTHONIOENCODING", "")):
        reconfigure(errors="replace")
    else:
        reconfigure(encoding="utf-8", errors="replace")
