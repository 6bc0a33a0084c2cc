"""Blocking calls beside asyncio, and tasks that end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import queue
import socket
import threading
import time
from functools import partial
from typing import Any, Awaitable, Callable, Iterable, List, Mapping, Optional, Tuple, TypeVar

from comfyui_runner.errors import ServerUnreachable
from comfyui_runner.text import duration

Result = TypeVar("Result")

#: Work for a thread; then it does there what this returns, which must be quick.
ThreadCall = Callable[[], Callable[[], None]]

#: Seconds that a thread waits for more work. To start one takes as long as a small request.
IDLE_THREAD_SECONDS = 0.1


def start_thread(
    function: Callable[..., Result], *arguments: Any
) -> "concurrent.futures.Future[Result]":
    """``function(*arguments)`` in a daemon thread: unlike an executor's, it holds no exit up."""
    future: "concurrent.futures.Future[Result]" = concurrent.futures.Future()
    future.set_running_or_notify_cancel()  # the caller may stop waiting, but the call goes on

    def call() -> Callable[[], None]:
        try:
            result = function(*arguments)
        except BaseException as error:  # raised again where the result is waited for
            return partial(future.set_exception, error)
        return partial(future.set_result, result)

    WORKERS.give(call)
    return future


class Workers:
    """Daemon threads that end when they have had nothing to do for IDLE_THREAD_SECONDS.

    There are as many as calls go on: none waits for another.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: List["queue.SimpleQueue[ThreadCall]"] = []

    def give(self, call: ThreadCall) -> None:
        """Does ``call()`` in a thread."""
        with self._lock:
            inbox = self._idle.pop() if self._idle else None
        if inbox is not None:
            inbox.put(call)
        else:
            threading.Thread(target=self._work, args=(call,), daemon=True).start()

    def _work(self, call: ThreadCall) -> None:
        inbox: "queue.SimpleQueue[ThreadCall]" = queue.SimpleQueue()
        while True:
            finish = call()
            with self._lock:
                self._idle.append(inbox)
            finish()  # now: what the result leads to may be work for the same thread
            del call, finish  # and what they hold
            try:
                call = inbox.get(timeout=IDLE_THREAD_SECONDS)
            except queue.Empty:
                with self._lock:
                    if inbox in self._idle:
                        self._idle.remove(inbox)
                        return
                call = inbox.get()  # it came at the last moment


WORKERS = Workers()


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
        self.has_ended = False  #: whether the block has
        # A copy: the number itself may stand for another connection by then.
        self._socket = socket.fromfd(file_descriptor, socket.AF_INET, socket.SOCK_STREAM)
        self._seconds = seconds

    def __enter__(self) -> "ConnectionDeadline":
        DEADLINES.add(self, self._seconds)
        return self

    def __exit__(self, *error: object) -> None:
        self.has_ended = True
        self._socket.close()

    def cut(self) -> None:
        """Cut the connection."""
        self.has_passed = True
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it was closed meanwhile


class Deadlines:
    """One thread for all ConnectionDeadlines: each request has two, which nearly always end first.

    It is a daemon: it holds no exit up. It ends soon after the last of them.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._waiting: List[Tuple[float, ConnectionDeadline]] = []  # with when they are due
        self._is_watched = False

    def add(self, deadline: ConnectionDeadline, seconds: float) -> None:
        """Cut the connection of ``deadline`` after ``seconds``, unless its block has ended."""
        with self._condition:
            self._waiting.append((time.monotonic() + seconds, deadline))
            if not self._is_watched:
                self._is_watched = True
                threading.Thread(target=self._watch, daemon=True).start()
            elif seconds < IDLE_THREAD_SECONDS:
                self._condition.notify()  # else the thread wakes in time

    def _watch(self) -> None:
        with self._condition:
            while self._waiting:
                seconds = min(due for due, _ in self._waiting) - time.monotonic()
                self._condition.wait(min(max(seconds, 0.0), IDLE_THREAD_SECONDS))
                self._cut_due(time.monotonic())
            self._is_watched = False

    def _cut_due(self, now: float) -> None:
        """Cuts what is due, and forgets what has ended."""
        waiting = [(due, deadline) for due, deadline in self._waiting if not deadline.has_ended]
        for due, deadline in waiting:
            if due <= now:
                deadline.cut()
        self._waiting = [(due, deadline) for due, deadline in waiting if due > now]


DEADLINES = Deadlines()


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
