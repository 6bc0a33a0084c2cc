"""A person's side of a call, for tests of what a run does there: without a terminal and without a server."""

from __future__ import annotations

import io

from support import FAST, slow_prompt

from comfyui_runner.addresses import parse_address
from comfyui_runner.console import Console
from comfyui_runner.environment import Environment
from comfyui_runner.flags import Defaults
from comfyui_runner.interrupts import Interrupts, Stop
from comfyui_runner.limits import Limits
from comfyui_runner.server import Server
from comfyui_runner.session import Session
from comfyui_runner.settings import Settings, make_settings
from comfyui_runner.state import Phase
from comfyui_runner.terminal import Printer

#: Where nothing listens.
NOWHERE = "http://127.0.0.1:1"


def settings_of(*arguments: str) -> Settings:
    """The settings of a call with these arguments."""
    defaults = Defaults("a.json", "single_shot", False, (NOWHERE,), ())
    return make_settings(["--yes", *arguments], {}, defaults)


class Desk:
    """A console that prints to ``out`` and ``err``, and one run that is not submitted. Made in a loop."""

    def __init__(self, limits: Limits = FAST) -> None:
        self.out, self.err = io.StringIO(), io.StringIO()
        self.interrupts = Interrupts()
        environment = Environment([], stdin=io.StringIO(), stdout=self.out, stderr=self.err, variables={})
        self.console = Console(Printer(self.out, self.err), self.interrupts, environment)
        self.server = Server(parse_address(NOWHERE), limits)
        self.session = Session(self.server, self.console.report)
        self.run = self.session.new_run(slow_prompt(), "id")

    def press(self, stop: Stop) -> None:
        """Ctrl+C or SIGTERM."""
        self.interrupts.cause = stop
        self.console.stop.set()

    def end_run(self, phase: Phase = Phase.INTERRUPTED) -> None:
        """The run ends on the server, whatever asks for that."""
        self.run.state = self.run.state._replace(phase=phase)
        self.run.over.set()
