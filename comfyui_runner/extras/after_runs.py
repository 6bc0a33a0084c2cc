"""--hook and --free, in one call of the program."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Callable, Dict, Optional

from comfyui_runner.afterwards import Afterwards, TakeReport
from comfyui_runner.conclusion import Ending
from comfyui_runner.console import Console
from comfyui_runner.extras.freeing import Idleness, free_memory
from comfyui_runner.extras.hooks import Hooks, ended_run, hook_report
from comfyui_runner.runs import Run
from comfyui_runner.server import Server
from comfyui_runner.session import Session
from comfyui_runner.settings import Settings


class HooksAndFreeing(Afterwards):
    """Starts the hooks after each run, and asks ComfyUI to unload its models after the last."""

    def __init__(self, settings: Settings, console: Console) -> None:
        self._hooks = Hooks(settings.hooks, console.variables, settings.limits.hook)
        self._frees = settings.free
        #: what is done after all workflows of the command line; None: after each
        self._left_for_end = console.left_for_end
        if settings.demo:
            self._left_for_end = None  # the simulator ends with its workflow
        self._idleness = Idleness()
        self._servers: Dict[str, Server] = {}  # of the runs that ended last, by address
        self._freeing: Optional["asyncio.Future[None]"] = None

    def note_run(self) -> None:
        self._idleness.note_run()

    def note_end(
        self,
        session: Session,
        run: Run,
        ending: Ending,
        report: TakeReport,
        row: Optional[int] = None,
    ) -> None:
        self._servers[session.server.address.url] = session.server
        if not self._hooks.commands:
            return
        try:
            ended = ended_run(session, run, ending, row)
        except Exception as error:  # a fault of ours: the run itself has not failed
            failure = f"was not started: the runner failed ({type(error).__name__}: {error})"
            for command in self._hooks.commands:
                report(hook_report(command, failure))
            return
        self._hooks.start(ended, report)

    def look_around(self, has_runs: Callable[[], bool], now: float, report: TakeReport) -> None:
        if not self._servers or not self._frees:
            return
        if self._idleness.is_due(has_runs(), now):
            # It is kept because the loop would let it be garbage-collected.
            self._freeing = asyncio.ensure_future(self._free_memory(report))

    async def finish(self, report: TakeReport, stopping: Optional["asyncio.Event"] = None) -> None:
        await self._hooks.finish(report, stopping)
        if self._freeing is not None:
            await self._freeing
        if not self._frees or not self._idleness.had_runs:
            return
        if self._left_for_end is None:
            await self._free_memory(report)
            return
        # Not now: the next workflow may need the same models.
        for url, server in self._servers.items():
            self._left_for_end[url] = partial(free_memory, server, report)

    async def _free_memory(self, report: TakeReport) -> None:
        for server in self._servers.values():
            await free_memory(server, report)
