"""What is written as the program leaves: a console that stands still must not keep it."""

from __future__ import annotations

import _thread
from typing import Callable


def try_for(seconds: float, action: Callable[[], None]) -> None:
    """Does ``action``, which raises nothing; goes on without it after ``seconds``.

    By the locks of the interpreter alone: those of ``threading`` may be held by what a signal has
    interrupted, and importing it takes time.
    """
    done = _thread.allocate_lock()
    done.acquire()

    def work() -> None:
        action()
        done.release()

    _thread.start_new_thread(work, ())
    done.acquire(timeout=seconds)
