"""What is printed while a console or a pipe takes nothing: it waits in its order, and nobody else does."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
import time
from typing import Any, Iterator, List, TextIO

import pytest
from support import wait_until

from comfyui_runner.output_thread import MOST_BEFORE_PROGRESS, MOST_WAITING, OutputThread, queue_for
from comfyui_runner.terminal import JsonPrinter

#: More than a pipe takes before somebody reads.
MORE_THAN_A_PIPE = "x" * (1 << 20)


@pytest.fixture
def pipe() -> Iterator[Any]:
    """A stream for writing, and the file descriptor that its text comes out of."""
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w", encoding="utf-8", newline="\n")
    yield stream, reader
    os.close(reader)  # a write that waits ends
    try:
        stream.close()
    except OSError:
        pass


def read_to_end(reader: int, text: str) -> str:
    """What comes up to the first ``text``."""
    shown = b""
    while not shown.endswith(text.encode()):
        shown += os.read(reader, 1 << 16)
    return shown.decode()


def test_who_prints_does_not_wait_and_all_comes_in_its_order(pipe: Any) -> None:
    stream, reader = pipe
    thread = OutputThread()
    queued = queue_for(thread, stream)
    for number in range(3):
        queued.write(f"{number}{MORE_THAN_A_PIPE}")
        queued.flush()
    queued.write("end\n")
    assert thread.is_behind
    assert read_to_end(reader, "end\n") == "".join(f"{number}{MORE_THAN_A_PIPE}" for number in range(3)) + "end\n"
    thread.end(lambda: False, 0.0)
    assert not thread.is_behind


def test_two_streams_have_one_order() -> None:
    both: List[str] = []

    class Stream(io.StringIO):
        """One that takes its time."""

        def fileno(self) -> int:
            return 1

        def write(self, text: str) -> int:
            time.sleep(0.01)
            both.append(text)
            return len(text)

    thread = OutputThread()
    out, err = queue_for(thread, Stream()), queue_for(thread, Stream())
    for text in "abcdef":
        (out if text in "ace" else err).write(text)
    thread.end(lambda: False, 0.0)
    assert "".join(both) == "abcdef"


def test_who_reads_slowly_does_not_miss_the_end(pipe: Any) -> None:
    stream, reader = pipe
    thread = OutputThread()
    queued = queue_for(thread, stream)
    queued.write(MORE_THAN_A_PIPE)
    queued.write("end\n")
    looks: List[float] = []

    def look() -> bool:
        looks.append(time.monotonic())
        return False

    ending = threading.Thread(target=thread.end, args=(look, 0.0))
    ending.start()
    wait_until(lambda: len(looks) > 3, what="the program at its end")
    assert ending.is_alive()
    assert read_to_end(reader, "end\n") == MORE_THAN_A_PIPE + "end\n"
    ending.join(30.0)
    assert not ending.is_alive()


def test_after_ctrl_c_the_end_of_the_program_waits_a_limited_time(pipe: Any) -> None:
    stream, _ = pipe
    thread = OutputThread()
    queue_for(thread, stream).write(MORE_THAN_A_PIPE)
    began = time.monotonic()
    thread.end(lambda: True, 0.3)
    assert 0.3 <= time.monotonic() - began < 5.0


def test_progress_is_left_out_while_a_pipe_stands_still_and_the_rest_is_kept(pipe: Any) -> None:
    stream, reader = pipe
    printer = JsonPrinter(stream, sys.stderr)
    printer.print_in(OutputThread())
    printer.report({"event": "notice", "message": MORE_THAN_A_PIPE})
    assert printer.is_behind
    printer.report({"event": "progress", "value": 1})
    printer.report({"event": "saved", "path": "a.png"})
    printer.report({"event": "end"})
    printer.write(printer.out, "END\n")
    *lines, _ = read_to_end(reader, "END\n").splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["notice", "saved", "end"]
    printer.finish(lambda: False)
    assert not printer.is_behind


def test_what_waits_has_a_limit(pipe: Any) -> None:
    stream, _ = pipe
    thread = OutputThread()
    queued = queue_for(thread, stream)
    for _ in range((MOST_WAITING >> 20) + 2):
        queued.write(MORE_THAN_A_PIPE)
    assert MOST_BEFORE_PROGRESS < thread._waiting <= MOST_WAITING


def test_a_text_that_is_longer_than_the_limit_is_written_where_nothing_waits(tmp_path: Any) -> None:
    with open(tmp_path / "out", "w", encoding="utf-8") as stream:
        thread = OutputThread()
        queue_for(thread, stream).write("x" * (MOST_WAITING + 1))
        thread.end(lambda: False, 0.0)
    assert os.path.getsize(tmp_path / "out") == MOST_WAITING + 1


def test_a_stream_that_nobody_reads_any_more_ends_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8", buffering=1, closefd=False) as stream:
        thread = OutputThread()
        queue_for(thread, stream).write("lost\n")
        queue_for(thread, stream).write("lost too\n")
        thread.end(lambda: False, 0.0)
        assert not thread.is_behind
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)  # so that it can be closed
    os.close(writer)


def test_a_stream_in_memory_is_written_at_once() -> None:
    stream: TextIO = io.StringIO()
    assert queue_for(OutputThread(), stream) is stream


def test_a_queued_stream_says_what_its_own_says(pipe: Any) -> None:
    stream, _ = pipe
    queued = queue_for(OutputThread(), stream)
    assert (queued.encoding, queued.isatty(), queued.fileno()) == ("utf-8", False, stream.fileno())


def test_a_text_that_nobody_takes_does_not_keep_the_process_alive(pipe: Any) -> None:
    stream, _ = pipe
    thread = OutputThread()
    thread.put(stream, MORE_THAN_A_PIPE)
    assert thread._thread is not None and thread._thread.daemon


def test_a_stand_in_for_a_stream_is_written_as_it_is() -> None:
    class Bare:
        encoding = "utf-8"

    stream: Any = Bare()
    assert queue_for(OutputThread(), stream) is stream
