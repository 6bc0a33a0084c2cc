"""Waits for work in threads, which end."""

from __future__ import annotations

import threading

import pytest

from comfyui_runner.errors import ServerUnreachable
from comfyui_runner.threads import bounded_here


def test_a_wait_outside_of_a_loop_has_an_end() -> None:
    over = threading.Event()
    try:
        with pytest.raises(ServerUnreachable, match=r"^The server did not answer in 0\.1 s\.$"):
            bounded_here(over.wait, seconds=0.1)
    finally:
        over.set()
    assert bounded_here(over.wait, seconds=10.0) is True


def test_a_thread_that_hangs_does_not_keep_the_program_alive() -> None:
    assert bounded_here(lambda: threading.current_thread().daemon, seconds=10.0)
