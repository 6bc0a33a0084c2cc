"""Waits for work in threads, which end."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from comfyui_runner.errors import ServerUnreachable
from comfyui_runner.threads import bounded_here, run_loop


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


def _call_connection_lost() -> None:
    """Named as what the event loop of Windows calls at the end of a connection."""
    raise ConnectionResetError(10054, "An existing connection was forcibly closed by the remote host")


def test_a_connection_that_is_reset_while_it_is_closed_is_not_shown(caplog: Any) -> None:
    async def close() -> None:
        asyncio.get_running_loop().call_soon(_call_connection_lost)
        await asyncio.sleep(0.01)

    run_loop(close())
    assert caplog.records == []


def test_any_other_error_that_nobody_waits_for_is_shown(caplog: Any) -> None:
    def reset() -> None:
        raise ConnectionResetError("elsewhere")

    def _call_connection_lost() -> None:
        raise ValueError("a fault")

    async def fail() -> None:
        for function in (reset, _call_connection_lost):
            asyncio.get_running_loop().call_soon(function)
        await asyncio.sleep(0.01)

    run_loop(fail())
    assert [str(record.exc_info[1]) for record in caplog.records] == ["elsewhere", "a fault"]
