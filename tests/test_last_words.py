"""What is written as the program exits: it is waited for, and a console that stands still is not."""

from __future__ import annotations

import threading
import time

from comfyui_runner.last_words import try_for


def test_what_is_said_at_the_end_is_waited_for() -> None:
    begun, may_end, said = threading.Event(), threading.Event(), threading.Event()

    def say() -> None:
        begun.set()
        may_end.wait(10.0)
        said.set()

    def allow_the_end() -> None:
        begun.wait(10.0)
        may_end.set()

    threading.Thread(target=allow_the_end, daemon=True).start()
    start = time.monotonic()
    try_for(60.0, say)
    assert said.is_set()
    assert time.monotonic() - start < 50.0  # no longer than it takes


def test_a_console_that_stands_still_holds_nothing_up() -> None:
    may_end = threading.Event()
    began = threading.Event()

    def stand_still() -> None:
        began.set()
        may_end.wait(30.0)

    over = threading.Event()

    def leave() -> None:
        try_for(0.05, stand_still)
        over.set()

    threading.Thread(target=leave, daemon=True).start()
    try:
        assert over.wait(10.0) and began.is_set()
    finally:
        may_end.set()
