"""What ends the program early: signals, and a terminal or console that is closed."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import http.client
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import pytest
from served import phase_elsewhere, post_elsewhere
from support import ROOT, SCRIPT, node, slow_prompt, wait_until

from comfyui_runner.errors import ExitStatus
from comfyui_runner.interrupts import Interrupts, Stop, last_bytes, signals_to_take, stop_by_signal
from comfyui_runner.threads import run_loop, start_thread
from comfyui_runner.windows_console import CLOSING_SECONDS, seconds_to_hold, turn_on_escape_codes

needs_hangups = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")


# -- a terminal ------------------------------------------------------------------------------------


@pytest.fixture
def hangup() -> Iterator[None]:
    """Leaves SIGHUP as it was."""
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)


@needs_hangups
def test_a_closed_terminal_counts_as_sigterm() -> None:
    assert stop_by_signal(signal.SIGHUP) == Stop("SIGHUP", ExitStatus.TERMINATED)
    assert stop_by_signal(signal.SIGTERM) == Stop("SIGTERM", ExitStatus.TERMINATED)
    assert stop_by_signal(signal.SIGINT) == Stop("Ctrl+C", ExitStatus.CANCELLED)


@needs_hangups
def test_under_nohup_a_closed_terminal_stops_nothing(hangup: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert signal.SIGHUP not in signals_to_take()
    interrupts = Interrupts()
    interrupts.install()
    try:
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        interrupts.restore()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    assert signal.SIGHUP in signals_to_take()


@needs_hangups
@pytest.mark.parametrize("first", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_a_closed_terminal_is_never_the_second_press_that_leaves_at_once(first: int) -> None:
    """Else this process would be over."""
    interrupts = Interrupts()
    interrupts._handle(first, None)
    interrupts._handle(signal.SIGHUP, None)
    assert interrupts.cause == stop_by_signal(first)


def test_the_first_press_sets_the_event_and_a_press_at_a_question_ends_that() -> None:
    async def story() -> None:
        interrupts, event = Interrupts(), asyncio.Event()
        assert (interrupts.name, interrupts.exit_status) == ("Ctrl+C", ExitStatus.CANCELLED)
        interrupts.bind(asyncio.get_running_loop(), event)
        interrupts._handle(signal.SIGTERM, None)
        await asyncio.wait_for(event.wait(), 10.0)
        assert (interrupts.name, interrupts.exit_status) == ("SIGTERM", ExitStatus.TERMINATED)

        late = asyncio.Event()  # a press came before the loop began
        interrupts.bind(asyncio.get_running_loop(), late)
        assert late.is_set()

        asked = Interrupts()
        asked.bind(asyncio.get_running_loop(), asyncio.Event())
        asked.asking = True
        with pytest.raises(KeyboardInterrupt):
            asked._handle(signal.SIGINT, None)
        assert asked.cause == Stop("Ctrl+C", ExitStatus.CANCELLED)

    asyncio.run(story())


def test_a_press_after_the_loop_has_ended_is_noted_and_nothing_fails() -> None:
    async def story() -> Interrupts:
        interrupts = Interrupts()
        interrupts.bind(asyncio.get_running_loop(), asyncio.Event())
        return interrupts

    interrupts = asyncio.run(story())
    interrupts._handle(signal.SIGINT, None)
    assert interrupts.cause == Stop("Ctrl+C", ExitStatus.CANCELLED)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no masks of signals")
def test_a_signal_that_another_thread_gets_wakes_the_loop() -> None:
    """As one that comes just before the main thread begins to wait."""
    interrupts = Interrupts()
    interrupts.install()
    main_thread, is_over = threading.get_ident(), threading.Event()

    def loop_waits() -> bool:
        return sys._current_frames()[main_thread].f_code.co_name == "select"

    def press() -> None:
        wait_until(loop_waits, what="the loop")
        os.kill(os.getpid(), signal.SIGINT)
        is_over.wait(30.0)

    async def wait_for_the_press() -> None:
        event = asyncio.Event()
        interrupts.bind(asyncio.get_running_loop(), event)
        await asyncio.wait_for(event.wait(), 20.0)

    thread = threading.Thread(target=press)
    thread.start()
    start = time.monotonic()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # in this thread alone
    try:
        asyncio.run(wait_for_the_press())
    finally:
        is_over.set()
        thread.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        interrupts.restore()
    assert interrupts.cause is not None and interrupts.cause.name == "Ctrl+C"
    assert time.monotonic() - start < 15.0
    assert signal.set_wakeup_fd(-1) == -1


def test_signals_are_taken_and_given_back() -> None:
    before = {number: signal.getsignal(number) for number in signals_to_take()}
    interrupts = Interrupts()
    interrupts.install()
    taken = {number: signal.getsignal(number) for number in before}
    interrupts.restore()
    assert set(before) >= {signal.SIGINT, signal.SIGTERM}
    assert set(taken.values()) == {interrupts._handle}
    assert {number: signal.getsignal(number) for number in before} == before


def test_the_last_bytes_show_the_cursor_of_a_terminal_again() -> None:
    assert last_bytes("Left.", takes_escape_codes=True) == b"\x1b[?25h\nLeft.\n"
    assert last_bytes("Left \ud800.", takes_escape_codes=False) == b"\nLeft ?.\n"


def in_new_terminal(follower: int) -> Callable[[], None]:
    """What makes a process the first of a session, whose terminal is ``follower``."""
    import fcntl
    import termios

    def begin() -> None:
        os.setsid()
        fcntl.ioctl(follower, termios.TIOCSCTTY, 0)

    return begin


def read_while(leader: int, condition: Callable[[], bool]) -> None:
    """Reads what the program writes to its terminal, as long as the condition is true."""
    end = time.monotonic() + 60.0
    while condition():
        assert time.monotonic() < end
        if select.select([leader], [], [], 0.05)[0]:
            os.read(leader, 4096)


@pytest.fixture
def terminal() -> Iterator[Any]:
    """Both ends of a terminal: the one that a person sees, and that of a program."""
    pty = pytest.importorskip("pty", reason="Windows has no such terminals")
    ends = list(pty.openpty())
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


def without_debug_mode() -> Dict[str, str]:
    """The environment without asyncio's debug mode, which writes to the terminal of slow machines itself."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONASYNCIODEBUG"}


@contextlib.contextmanager
def program_in(terminal: Any, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    """The program, with ``terminal`` as its own."""
    program = subprocess.Popen(
        [sys.executable, SCRIPT, "--yes", *arguments],
        stdin=terminal[1],
        stdout=terminal[1],
        stderr=terminal[1],
        preexec_fn=in_new_terminal(terminal[1]),
        env=without_debug_mode(),
    )
    try:
        yield program
    finally:
        program.kill()
        program.wait()


@needs_hangups
def test_closing_the_terminal_cancels_our_run_and_no_other(
    simulator: Any, workflow_file: Callable[..., str], terminal: Any
) -> None:
    life = simulator._server.life
    path = workflow_file(slow_prompt(steps=20, seconds=60.0, seed=71))
    with program_in(terminal, "--server", simulator.url, path) as program:
        os.close(terminal[1])
        read_while(terminal[0], lambda: life.snapshot() == ([], []))
        foreign = post_elsewhere(simulator, slow_prompt(steps=20, seconds=60.0, seed=72))
        os.close(terminal[0])
        assert program.wait(30) == ExitStatus.TERMINATED
        wait_until(lambda: phase_elsewhere(simulator, foreign) == "running")


# -- a terminal that stands still ------------------------------------------------------------------


def stop_output(terminal: Any) -> None:
    """Ctrl+S: from now on, each write of the program waits."""
    import termios

    termios.tcflow(terminal[1], termios.TCOOFF)


@needs_hangups
@pytest.mark.parametrize("flags", [["--json"], []])
def test_ctrl_c_cancels_our_run_while_the_terminal_stands_still(
    simulator: Any, workflow_file: Callable[..., str], terminal: Any, flags: List[str]
) -> None:
    life = simulator._server.life
    path = workflow_file(slow_prompt(steps=600, seconds=60.0))
    with program_in(terminal, "--server", simulator.url, *flags, path) as program:
        read_while(terminal[0], lambda: life.snapshot() == ([], []))
        stop_output(terminal)
        time.sleep(1.0)  # it draws and prints ten times a second
        program.send_signal(signal.SIGINT)
        wait_until(lambda: life.snapshot() == ([], []), seconds=10.0, what="the end of our run")
        assert program.wait(15) == ExitStatus.CANCELLED


def test_ctrl_c_ends_an_export_that_nobody_reads(workflow_file: Callable[..., str]) -> None:
    """The prompt is larger than a pipe holds, so that its writing waits."""
    path = workflow_file({"1": node("TextOut", text="x" * (1 << 20))})
    arguments = [sys.executable, SCRIPT, path, "--export-api", "-"]
    program = subprocess.Popen(arguments, stdout=subprocess.PIPE)
    assert program.stdout is not None
    try:
        assert program.stdout.read(1) == b"{"
        program.send_signal(signal.SIGINT)
        assert program.wait(40) == ExitStatus.CANCELLED
    finally:
        program.kill()
        program.communicate()


@needs_hangups
def test_a_second_press_leaves_at_once_though_the_terminal_stands_still(
    simulator: Any, workflow_file: Callable[..., str], terminal: Any
) -> None:
    life = simulator._server.life
    simulator.faults.ignore_interrupt = True
    path = workflow_file(slow_prompt(steps=600, seconds=60.0))
    with program_in(terminal, "--server", simulator.url, path) as program:
        read_while(terminal[0], lambda: life.snapshot() == ([], []))
        stop_output(terminal)
        program.send_signal(signal.SIGINT)
        time.sleep(1.0)  # two signals at once are one
        program.send_signal(signal.SIGINT)
        assert program.wait(4) == ExitStatus.CANCELLED


@needs_hangups
def test_the_service_answers_while_its_terminal_stands_still(
    simulator: Any, workflow_file: Callable[..., str], terminal: Any
) -> None:
    path = workflow_file(slow_prompt(steps=4, seconds=0.1))
    words = ["--mode", "continuous", "--port", "0", "--server", simulator.url]
    with program_in(terminal, *words, path) as program:
        port = port_in(terminal[0])
        stop_output(terminal)
        for _ in range(3):
            wait_until(lambda: get(port, "/queue")[0] == 202, what="a run")
        wait_until(lambda: get(port, "/runs")[1].count(b'"success"') >= 3, what="the ends of the runs")
        program.send_signal(signal.SIGINT)
        assert program.wait(20) == ExitStatus.OK


def port_in(leader: int) -> int:
    """The port that a service shows in its terminal."""
    shown = b""
    while True:
        shown += os.read(leader, 4096)
        match = re.search(rb"Open http://127\.0\.0\.1:(\d+)", shown)
        if match:
            return int(match.group(1))


def get(port: int, path: str) -> Tuple[int, bytes]:
    """The status and the body of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10.0)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


# -- the console of Windows ------------------------------------------------------------------------


class Kernel32:
    """The part of Windows that calls handlers of a console, the newest one first."""

    def __init__(self, modes: Optional[Dict[int, int]] = None, knows_escape_codes: bool = True) -> None:
        self.handlers: List[Callable[[int], int]] = []
        #: by the number of the stream; 3: ENABLE_PROCESSED_OUTPUT, ENABLE_WRAP_AT_EOL_OUTPUT
        self.modes = {-11: 3, -12: 3} if modes is None else modes
        self.knows_escape_codes = knows_escape_codes

    def GetStdHandle(self, number: int) -> int:
        return number

    def GetConsoleMode(self, handle: int, mode: Any) -> int:
        mode._obj.value = self.modes.get(handle, 0)
        return int(handle in self.modes)

    def SetConsoleMode(self, handle: int, mode: int) -> int:
        if mode & 4 and not self.knows_escape_codes:
            return 0
        self.modes[handle] = mode
        return 1

    def SetConsoleCtrlHandler(self, handler: Callable[[int], int], add: int) -> int:
        if add:
            self.handlers.append(handler)
        else:
            self.handlers.remove(handler)
        return 1

    def send(self, event: int) -> "concurrent.futures.Future[int]":
        """Calls the handler in a thread of its own; what it answers."""
        return start_thread(self.handlers[-1], event)


@pytest.fixture
def console() -> Iterator[Any]:
    """What the program does with the console of Windows, and that console."""
    kernel32, interrupts = Kernel32(), Interrupts()
    interrupts.take_console_events(kernel32)
    yield interrupts, kernel32
    interrupts.restore()


def test_a_console_that_closes_is_put_off_for_as_long_as_windows_allows() -> None:
    assert [seconds_to_hold(event, False) for event in (2, 5, 6)] == [CLOSING_SECONDS] * 3
    assert CLOSING_SECONDS < 5.0
    assert seconds_to_hold(2, True) == 0.0  # the question can be left as it is
    assert [seconds_to_hold(event, False) for event in (0, 1, 3, 7)] == [None] * 4


def test_a_console_that_closes_stops_the_program_which_ends_in_order(console: Any) -> None:
    interrupts, kernel32 = console

    async def program() -> None:
        stop = asyncio.Event()
        interrupts.bind(asyncio.get_running_loop(), stop)
        answer = kernel32.send(2)
        await asyncio.wait_for(stop.wait(), 10)
        assert interrupts.cause == Stop("CTRL_CLOSE_EVENT", ExitStatus.TERMINATED)
        assert not answer.done()  # Windows would end the process now
        interrupts.restore()
        # As soon as the program is over: the time that Windows allows is not used up.
        assert await asyncio.wait_for(asyncio.wrap_future(answer), CLOSING_SECONDS / 2) == 1

    run_loop(program())
    assert kernel32.handlers == []


@pytest.mark.parametrize("event", [0, 1])  # Ctrl+C, Ctrl+Break
def test_ctrl_c_in_a_console_is_left_to_python(console: Any, event: int) -> None:
    interrupts, kernel32 = console
    assert kernel32.send(event).result(10) == 0
    assert interrupts.cause is None


#: A program whose main thread waits for a socket, in C code that no signal interrupts.
BLOCKED = """
import ctypes, sys
sys.path.insert(0, "tests")
from test_interrupts import Kernel32
from comfyui_runner.interrupts import Interrupts
kernel32, interrupts = Kernel32(), Interrupts()
interrupts.take_console_events(kernel32)
for event in (0, 0):
    kernel32.send(event)
ctypes.CDLL(None).sleep(60)
"""


@pytest.mark.skipif(os.name == "nt", reason="plays Windows")
def test_a_second_press_does_not_wait_for_the_main_thread() -> None:
    program = subprocess.run([sys.executable, "-c", BLOCKED], cwd=ROOT, capture_output=True, timeout=30, check=False)
    assert program.returncode == ExitStatus.CANCELLED
    assert b"Exited at once." in program.stderr


@pytest.mark.parametrize(
    ("modes", "knows", "takes", "after"),
    [
        ({-11: 3, -12: 3}, True, True, {-11: 7, -12: 7}),  # Windows 10, before a program asks
        ({-11: 7, -12: 7}, True, True, {-11: 7, -12: 7}),  # Windows Terminal
        ({-11: 3, -12: 3}, False, False, {-11: 3, -12: 3}),  # Windows 8, and "Use legacy console"
        ({-11: 3}, True, False, {-11: 7}),  # errors go to a file
        ({-12: 3}, True, True, {-12: 7}),
        ({}, True, False, {}),
    ],
)
def test_a_console_takes_escape_codes_where_it_can(
    modes: Dict[int, int], knows: bool, takes: bool, after: Dict[int, int]
) -> None:
    """Else rich takes the console of Windows 10 for an old one, and prints in the loop of events."""
    kernel32 = Kernel32(dict(modes), knows)
    assert turn_on_escape_codes(kernel32) is takes
    assert kernel32.modes == after


def test_the_console_takes_escape_codes_before_anything_is_printed(console: Any) -> None:
    _, kernel32 = console
    assert kernel32.modes == {-11: 7, -12: 7}


def test_a_console_that_closes_at_the_question_is_not_put_off(console: Any) -> None:
    interrupts, kernel32 = console
    interrupts.asking = True
    assert kernel32.send(6).result(CLOSING_SECONDS / 2) == 1


def test_a_console_that_closes_after_ctrl_c_is_not_a_second_press(console: Any) -> None:
    interrupts, kernel32 = console
    interrupts._handle(signal.SIGINT, None)
    answer = kernel32.send(2)
    interrupts.restore()
    assert answer.result(10) == 1
    assert interrupts.cause == stop_by_signal(signal.SIGINT)
