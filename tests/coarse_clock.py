"""The clock of Windows up to Python 3.12, which ticks every 15.6 ms (GetTickCount64), for all of a test's process.

``python tests/run.py --coarse-clock`` switches it on, by the variable COMFYUI_TESTS_CLOCK_TICK (in seconds).
"""

from __future__ import annotations

import math
import os
import time
from types import SimpleNamespace
from typing import Any, Callable

VARIABLE = "COMFYUI_TESTS_CLOCK_TICK"


def make_clock(read: Callable[[], float], tick: float) -> Callable[[], float]:
    """The clock ``read``, but it shows the beginning of each tick."""
    return lambda: math.floor(read() / tick) * tick


def coarsen(tick: float) -> None:
    """Replaces time.monotonic() and time.time(), and what asyncio learns of them."""
    get_clock_info = time.get_clock_info

    def get_coarse_clock_info(name: Any) -> Any:
        info = get_clock_info(name)
        if name not in ("monotonic", "time"):
            return info
        return SimpleNamespace(**{**vars(info), "resolution": tick})

    time.monotonic = make_clock(time.monotonic, tick)
    time.time = make_clock(time.time, tick)
    time.get_clock_info = get_coarse_clock_info


if os.environ.get(VARIABLE):
    coarsen(float(os.environ[VARIABLE]))
