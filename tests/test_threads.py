"""Waits for work in threads, which end."""

from __future__ import annotations

import asyncio
import gc
import random
import socket
import threading
import time
from typing import Any, List, Set

import pytest
from support import seconds_since, wait_until

from comfyui_runner.errors import ServerUnreachable
from comfyui_runner.threads import (
    DEADLINES,
    IDLE_THREAD_SECONDS,
    WORKERS,
    ConnectionDeadline,
    bounded,
    bounded_here,
    done_or_set,
    end_tasks,
    in_thread,
    run_loop,
    start_thread,
)


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


def test_a_task_that_swallows_a_cancellation_is_cancelled_again() -> None:
    ends: List[str] = []

    async def stubborn() -> None:
        try:
            await asyncio.sleep(60.0)
        except asyncio.CancelledError:
            ends.append("swallowed")
        await asyncio.sleep(60.0)

    async def story() -> None:
        task = asyncio.ensure_future(stubborn())
        await asyncio.sleep(0)
        await asyncio.wait_for(end_tasks([task]), 20.0)
        assert task.cancelled()

    asyncio.run(story())
    assert ends == ["swallowed"]


def test_the_error_of_a_task_that_is_ended_is_not_shown(caplog: Any) -> None:
    async def fail() -> None:
        raise ValueError("nobody waits for it")

    async def story() -> None:
        task = asyncio.ensure_future(fail())
        await asyncio.sleep(0)
        await end_tasks([task])

    asyncio.run(story())
    gc.collect()  # then asyncio would complain
    assert caplog.records == []


def test_a_wait_ends_with_the_work_with_an_event_or_with_the_time() -> None:
    async def story() -> None:
        event = asyncio.Event()
        work = asyncio.ensure_future(asyncio.sleep(60.0))
        await asyncio.wait_for(done_or_set(work, event, 0.01), 20.0)
        assert not work.done()
        event.set()
        await asyncio.wait_for(done_or_set(work, event), 20.0)
        event.clear()
        await done_or_set(asyncio.ensure_future(asyncio.sleep(0.0)), event)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task(), work}  # nobody waits for the event any more
        work.cancel()

    asyncio.run(story())


def test_work_in_a_thread_raises_what_it_raises_there() -> None:
    def fail() -> None:
        raise KeyError("here")

    async def story() -> None:
        with pytest.raises(KeyError, match="here"):
            await in_thread(fail)
        with pytest.raises(ServerUnreachable, match=r"did not answer in 0\.1 s"):
            await bounded(over.wait, seconds=0.1)
        assert await bounded(divmod, 7, 2, seconds=20.0) == (3, 1)

    over = threading.Event()
    try:
        asyncio.run(story())
    finally:
        over.set()


def wait_until_threads_are_idle() -> Set[threading.Thread]:
    """The threads that are left when those that only wait for more work have ended."""
    wait_until(lambda: not WORKERS._idle and not DEADLINES._is_watched)
    time.sleep(0.05)  # their last steps
    return set(threading.enumerate())


def test_calls_one_after_the_other_take_one_thread_and_calls_at_once_one_each() -> None:
    before = wait_until_threads_are_idle()

    async def story() -> List[int]:
        return [await in_thread(threading.get_ident) for _ in range(20)]

    assert len(set(asyncio.run(story()))) < 20  # a pause of the machine may cost one more

    async def at_once() -> None:
        together = threading.Barrier(5)
        await asyncio.wait_for(asyncio.gather(*(in_thread(together.wait, 20.0) for _ in range(5))), 20.0)

    asyncio.run(at_once())
    wait_until(lambda: set(threading.enumerate()) == before, what="the end of the threads")


def test_work_that_comes_when_a_thread_is_about_to_end_is_done() -> None:
    for _ in range(20):
        assert start_thread(divmod, 7, 2).result(20.0) == (3, 1)
        time.sleep(IDLE_THREAD_SECONDS + random.uniform(-0.002, 0.002))


def test_a_deadline_that_comes_first_is_not_kept_waiting_by_a_later_one() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, ConnectionDeadline(theirs.fileno(), 3600.0) as later:
        ours.settimeout(20.0)
        with ConnectionDeadline(ours.fileno(), 0.02) as deadline:
            assert ours.recv(1) == b""
        assert deadline.has_passed and not later.has_passed


def test_a_connection_is_cut_at_its_deadline() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(20.0)
        with ConnectionDeadline(ours.fileno(), 0.02) as deadline:
            assert ours.recv(1) == b""
        assert deadline.has_passed


def test_a_connection_whose_block_ends_first_is_not_cut() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        before = wait_until_threads_are_idle()
        with ConnectionDeadline(ours.fileno(), 3600.0) as deadline:
            (watching,) = set(threading.enumerate()) - before
            assert watching.daemon
        watching.join(20.0)  # it does not wait for an hour
        assert not watching.is_alive() and not deadline.has_passed
        assert deadline._socket.fileno() == -1
        theirs.sendall(b"x")
        assert ours.recv(1) == b"x"


def test_a_loop_that_ends_leaves_no_task_and_is_closed() -> None:
    ends: List[str] = []

    async def go_on() -> None:
        try:
            await asyncio.sleep(60.0)
        finally:
            ends.append("ended")

    async def story() -> asyncio.AbstractEventLoop:
        tasks.append(asyncio.ensure_future(go_on()))
        await asyncio.sleep(0)
        return asyncio.get_running_loop()

    tasks: List[Any] = []
    loop = run_loop(story())
    assert ends == ["ended"] and tasks[0].cancelled()
    assert loop.is_closed()


def test_a_loop_that_has_nothing_left_to_do_ends_at_once() -> None:
    took = []
    for _ in range(3):  # a busy machine may hold one of them up
        began = time.monotonic()
        run_loop(asyncio.sleep(0))
        took.append(seconds_since(began))
    assert min(took) < 0.9
