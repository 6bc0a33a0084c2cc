"""Stories of a drive on which a file takes forever to open: Ctrl+C does not wait for it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from typing import Any, Callable, Iterator, List

import pytest
from support import Outcome, node, run, wait_until

from comfyui_runner.errors import ExitStatus

if sys.platform == "linux":
    import fcntl
else:
    pytest.skip("leases on files are Linux's", allow_module_level=True)

PROMPT = {
    "1": node("LoadImage", "Photo", image="example.png"),
    "2": node("SaveImage", images=["1", 0], filename_prefix="pic"),
    "3": node("TextOut", "Words", text=""),
}

#: Seconds in which the program must be over. The kernel lets an opener wait longer (lease-break-time).
AT_ONCE = 20.0


@contextlib.contextmanager
def slow_drive(path: Any) -> Iterator[Callable[[], bool]]:
    """Whoever opens the file waits until the block ends; what it yields says whether somebody does.

    A write lease is the kernel's own way to have others wait for a file.
    """
    ignored = signal.signal(signal.SIGIO, signal.SIG_IGN)  # it says that the lease is asked back
    file = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError as error:
            pytest.skip(f"this file system has no leases: {error}")
        yield lambda: fcntl.fcntl(file, fcntl.F_GETLEASE) != fcntl.F_WRLCK
    finally:
        os.close(file)
        signal.signal(signal.SIGIO, ignored)


def press_while_it_waits(is_awaited: Callable[[], bool], call: Callable[[], Outcome]) -> Outcome:
    """Presses Ctrl+C as soon as the file is opened, and checks that ``call`` ends then."""
    pressed_at: List[float] = []
    is_over = threading.Event()

    def press() -> None:
        wait_until(lambda: is_over.is_set() or is_awaited(), seconds=60.0, what="the opening of the file")
        if not is_over.is_set():
            pressed_at.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    try:
        result = call()
    finally:
        is_over.set()
        thread.join()
    assert pressed_at, f"the file was not opened: {result}"
    assert time.monotonic() - pressed_at[0] < AT_ONCE
    return result


@pytest.mark.parametrize(
    ("slow", "arguments"),
    [
        ("flow.json", []),
        ("flow.json", ["--mode", "continuous", "--port", "0"]),
        ("info.json", ["--check", "--object-info", "info.json"]),
        ("text.txt", ["--set", "3.text=@text.txt"]),
        ("cat.png", ["--image", "cat.png"]),
        ("cat.png", ["--set", "1.image=@cat.png"]),
        ("rows.csv", ["--batch", "rows.csv"]),
        ("cat.png", ["--batch", "rows.csv"]),
        ("manifest.jsonl", ["--batch", "rows.csv", "--manifest", "manifest.jsonl", "--resume"]),
    ],
)
def test_a_press_does_not_wait_for_a_slow_drive(
    slow: str, arguments: List[str], simulator: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = {
        "flow.json": json.dumps(PROMPT),
        "info.json": "{}",
        "text.txt": "a fox",
        "cat.png": "a picture",
        "rows.csv": "1.image\n@cat.png\n",
        "manifest.jsonl": "{}\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")

    with slow_drive(slow) as is_awaited:
        result = press_while_it_waits(
            is_awaited, lambda: run("flow.json", "--server", simulator.url, "--yes", *arguments)
        )
    is_service = "continuous" in arguments  # it ends well by Ctrl+C
    assert result.status == (ExitStatus.OK if is_service else ExitStatus.CANCELLED), result
    assert ("POST", "/prompt") not in simulator.requests
