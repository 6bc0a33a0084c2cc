"""Blocking calls beside asyncio, and tasks that end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from typing import Any, Awaitable, Callable, Iterable, List, Optional, TypeVar

from comfyui_runner.errors import ServerUnreachable
from comfyui_runner.text import duration

Result = TypeVar("Result")


async def in_thread(function: Callable[..., Result], *arguments: Any) -> Result:
    """``function(*arguments)`` in a daemon thread: unlike an executor's, it holds no exit up."""

    loop = asyncio.get_running_loop()
    future: "asyncio.Future[Result]" = loop.create_future()

    def deliver(result: Optional[Result], error: Optional[BaseException]) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result, error = None, None
        try:
            result = function(*arguments)
        except BaseException as exception:  # handed to whoever waits
            error = exception
        try:
            loop.call_soon_threadsafe(deliver, result, error)
        except RuntimeError:
            pass  # the loop is closed: nobody waits any more

    threading.Thread(target=work, daemon=True).start()
    return await future


async def done_or_set(
    task: "asyncio.Future[Any]", event: "asyncio.Event", timeout: Optional[float] = None
) -> None:
    """Waits until ``task`` is done, ``event`` is set, or ``timeout`` seconds are over."""
    waiting = asyncio.ensure_future(event.wait())
    either: List["asyncio.Future[Any]"] = [task, waiting]
    try:
        await asyncio.wait(either, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()


async def end_tasks(tasks: Iterable["asyncio.Future[Any]"]) -> None:
    """Cancels tasks until they are over: before Python 3.12, wait_for() can lose a cancellation."""

    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        done, left = await asyncio.wait(left, timeout=0.1)
        for task in done:
            if not task.cancelled():
                task.exception()  # looked at, so that asyncio does not complain


async def bounded(function: Callable[..., Result], *arguments: Any, seconds: float) -> Result:
    """in_thread() with an end: a server that sends a byte now and then would pass a read timeout."""

    try:
        return await asyncio.wait_for(in_thread(function, *arguments), seconds)
    except asyncio.TimeoutError:
        raise ServerUnreachable("The server did not answer in %s." % duration(seconds)) from None


def bounded_here(function: Callable[..., Result], *arguments: Any, seconds: float) -> Result:
    """``bounded()`` for a caller that is not in an event loop: blocks, at most ``seconds`` long."""
    future: "concurrent.futures.Future[Result]" = concurrent.futures.Future()

    def work() -> None:
        try:
            future.set_result(function(*arguments))
        except BaseException as error:  # raised again in the thread that waits
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        return future.result(seconds)
    except concurrent.futures.TimeoutError:
        raise ServerUnreachable(f"The server did not answer in {duration(seconds)}.") from None


def run_loop(coroutine: Awaitable[Result]) -> Result:
    """asyncio.run() without its wait for executor threads: a name look-up that hangs must not hold
    the exit up."""

    loop = asyncio.new_event_loop()
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(coroutine)
    finally:
        loop.run_until_complete(end_tasks(asyncio.all_tasks(loop)))
        loop.run_until_complete(
            asyncio.sleep(0)
        )  # transports that were closed let go of their sockets
        asyncio.set_event_loop(None)
        loop.close()
