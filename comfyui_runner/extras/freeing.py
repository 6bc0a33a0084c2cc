"""--free: ComfyUI is asked to unload its models when no run is left."""

from __future__ import annotations

from typing import Callable, Optional

from comfyui_runner.errors import RunnerError
from comfyui_runner.reports import Report, plain_notice
from comfyui_runner.server import Server
from comfyui_runner.state import prompts_in_queue
from comfyui_runner.text import plural
from comfyui_runner.threads import bounded

#: Seconds for each of the two requests.
FREE_SECONDS = 5.0

#: Seconds without a run before the service asks: a program that starts one run after the other
#: would have its models loaded for each of them.
IDLE_SECONDS = 5.0


async def free_memory(server: Server, report: Callable[[Report], None]) -> None:
    """Asks ``server`` to unload its models, unless prompts run or wait there: ours have ended.

    Reports what came of it, and raises nothing.
    """
    try:
        count = prompts_in_queue(await bounded(server.queue, seconds=FREE_SECONDS))
        if count:
            are_there = f"{plural(count, 'prompt')} in ComfyUI's queue"
            message = f"Nothing was unloaded (--free): ComfyUI still has work ({are_there})."
            report(plain_notice(message))
            return
        await bounded(server.free, seconds=FREE_SECONDS)
    except RunnerError as error:
        message = f"ComfyUI did not unload its models (--free): {error.message}"
        report({"event": "notice", "message": message})
        return
    report({"event": "freed", "message": "Asked ComfyUI to unload its models (--free)."})


class Idleness:
    """When the service is to ask: it had runs since it last did, and none for IDLE_SECONDS."""

    def __init__(self) -> None:
        self.had_runs = False  #: since it last asked
        self._since: Optional[float] = None

    def note_run(self) -> None:
        """A run begins."""
        self.had_runs = True

    def is_due(self, has_runs: bool, now: float) -> bool:
        """Whether to ask now. ``has_runs``: some run or wait."""
        if has_runs or not self.had_runs:
            self._since = None
            return False
        if self._since is None:
            self._since = now
        if now - self._since < IDLE_SECONDS:
            return False
        self.had_runs = False
        return True
