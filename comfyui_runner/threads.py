"""Blocking calls beside asyncio, and tasks that end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import socket
import threading
from typing import Any, Awaitable, Callable, Iterable, List, Mapping, Optional, TypeVar

from comfyui_runner.errors import ServerUnreachable
from comfyui_runner.text import duration

Result = TypeVar("Result")


def start_thread(
    function: Callable[..., Result], *arguments: Any
) -> "concurrent.futures.Future[Result]":
    """``function(*arguments)`` in a daemon thread: unlike an executor's, it holds no exit up."""
    future: "concurrent.futures.Future[Result]" = concurrent.futures.Future()
    future.set_running_or_notify_cancel()  # the caller may stop waiting, but the call goes on

    def work() -> None:
        try:
            future.set_result(function(*arguments))
        except BaseException as error:  # raised again where the result is waited for
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


async def in_thread(function: Callable[..., Result], *arguments: Any) -> Result:
    """The result of ``function(*arguments)``, which blocks."""
    return await asyncio.wrap_future(start_thread(function, *arguments))


async def bounded(function: Callable[..., Result], *arguments: Any, seconds: float) -> Result:
    """in_thread() with an end. Raises ServerUnreachable after ``seconds``.

    A read timeout is not enough: a server that sends a byte now and then never reaches it.
    """
    try:
        return await asyncio.wait_for(in_thread(function, *arguments), seconds)
    except asyncio.TimeoutError:
        raise no_answer_in(seconds) from None


def bounded_here(function: Callable[..., Result], *arguments: Any, seconds: float) -> Result:
    """bounded() for a caller that is not in an event loop: blocks, at most ``seconds`` long."""
    try:
        return start_thread(function, *arguments).result(seconds)
    except concurrent.futures.TimeoutError:
        raise no_answer_in(seconds) from None


def no_answer_in(seconds: float) -> ServerUnreachable:
    """The error of a call that took too long."""
    return ServerUnreachable(f"The server did not answer in {duration(seconds)}.")


class ConnectionDeadline:
    """Cuts the connection with this file descriptor after ``seconds``, unless the block ends first.

    What a thread reads there meanwhile then breaks off. A read timeout is not enough: it begins
    anew with each byte.
    """

    def __init__(self, file_descriptor: int, seconds: float) -> None:
        self.has_passed = False  #: whether the connection was cut
        # A copy: the number itself may stand for another connection by then.
        self._socket = socket.fromfd(file_descriptor, socket.AF_INET, socket.SOCK_STREAM)
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True  # it holds no exit up

    def __enter__(self) -> "ConnectionDeadline":
        self._timer.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._timer.cancel()
        self._socket.close()

    def _cut(self) -> None:
        self.has_passed = True
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it was closed meanwhile


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
    unfinished = set(tasks)
    while unfinished:
        for task in unfinished:
            task.cancel()
        finished, unfinished = await asyncio.wait(unfinished, timeout=0.1)
        for task in finished:
            if not task.cancelled():
                task.exception()  # asyncio complains about exceptions that nobody looks at


def show_unless_reset_at_close(
    loop: "asyncio.AbstractEventLoop", context: Mapping[str, Any]
) -> None:
    """What asyncio does with errors that nobody waits for: shows them, with one exception.

    On Windows it raises ConnectionResetError when it closes a connection that the server has cut
    (_ProactorBasePipeTransport._call_connection_lost; https://bugs.python.org/issue39010).
    """
    is_reset = isinstance(context.get("exception"), ConnectionResetError)
    is_at_close = "_call_connection_lost" in str(context.get("message"))
    if not (is_reset and is_at_close):
        loop.default_exception_handler(dict(context))


def run_loop(coroutine: Awaitable[Result]) -> Result:
    """asyncio.run() that does not wait for threads: a name look-up that hangs holds no exit up."""
    loop = asyncio.new_event_loop()
    try:
        asyncio.set_event_loop(loop)
        loop.set_exception_handler(show_unless_reset_at_close)
        return loop.run_until_complete(coroutine)
    finally:
        loop.run_until_complete(end_tasks(asyncio.all_tasks(loop)))
        # One more turn, in which transports that were closed let go of their sockets.
        loop.run_until_complete(asyncio.sleep(0))
        asyncio.set_event_loop(None)
        loop.close()
