"""What is written as the program exits: a console that has stopped must not hold it up."""

from __future__ import annotations

import _thread
from typing import Callable


def try_for(seconds: float, action: Callable[[], None]) -> None:
    """Runs ``action``, which must not raise, and waits for it ``seconds`` at most.

    It uses only the interpreter's own locks: those of ``threading`` may be held by the code that a
    signal interrupted, and importing it takes time.
    """
    done = _thread.allocate_lock()
    done.acquire()

    def work() -> None:
        action()
        done.release()

    _thread.start_new_thread(work, ())
    done.acquire(timeout=seconds)
