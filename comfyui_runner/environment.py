"""What a call gets from outside: arguments, streams, variables.

Nothing else in the program reads them from sys or os.environ.
"""

from __future__ import annotations

import os
import sys
from typing import Mapping, Optional, Sequence, TextIO

from comfyui_runner.limits import DEFAULT_LIMITS, Limits


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

        # A console that lacks a character must not end a run.
        for stream in (self.stdout, self.stderr):
            reconfigure = getattr(stream, "reconfigure", None)  # not every stand-in has it
            if reconfigure is not None:
                reconfigure(errors="replace")
