"""Output is written in a thread of its own: nothing waits for a console that has stopped."""

from __future__ import annotations

import collections
import threading
import time
from typing import Callable, Deque, Optional, TextIO, Tuple, cast

#: Characters that may wait before progress is left out.
MOST_BEFORE_PROGRESS = 64 << 10

#: Seconds for which the end of the program waits for its output, unless it is stopped.
LONGEST_END = 3600.0

#: Seconds between two looks for Ctrl+C, which on Windows does not interrupt a wait for a thread.
STEP = 0.1

#: Characters that may wait at all: any text beyond them is left out.
MOST_WAITING = 16 << 20


class OutputThread:
    """Writes texts to streams, in their order, in a thread that begins with the first one.

    A console may take no text for as long as it likes: after Ctrl+S, and on Windows while somebody
    selects something in it, which a click begins. So does a pager that nobody scrolls.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()  # protects the rest
        self._texts: Deque[Tuple[TextIO, str]] = collections.deque()
        self._waiting = 0  # characters that are not written yet
        self._has_ended = False
        self._thread: Optional[threading.Thread] = None

    @property
    def is_behind(self) -> bool:
        """Whether so much waits that progress would come too late to be of use."""
        return self._waiting > MOST_BEFORE_PROGRESS

    def put(self, stream: TextIO, text: str) -> None:
        """Write ``text`` to ``stream`` when it is its turn. Does not wait."""
        with self._changed:
            has_room = self._waiting + len(text) <= MOST_WAITING
            if self._waiting and not has_room:  # one text alone is taken, however long it is
                return
            self._texts.append((stream, text))
            self._waiting += len(text)
            self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._write_all, daemon=True)
                self._thread.start()

    def end(self, is_stopped: Callable[[], bool], seconds: float) -> None:
        """Ends the thread when all is written, and waits for that.

        Someone who reads slowly must not miss the end of a run. But once ``is_stopped()``, after
        Ctrl+C for example, it waits ``seconds`` at most, and never longer than LONGEST_END.
        """
        with self._changed:
            self._has_ended = True
            self._changed.notify()
        if self._thread is None:
            return
        began = time.monotonic()
        stopped_at: Optional[float] = None
        while self._thread.is_alive() and time.monotonic() - began < LONGEST_END:
            if stopped_at is None and is_stopped():
                stopped_at = time.monotonic()
            if stopped_at is not None and time.monotonic() - stopped_at >= seconds:
                return
            self._thread.join(STEP)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                while not self._texts and not self._has_ended:
                    self._changed.wait()
                if not self._texts:
                    return
                stream, text = self._texts.popleft()
            try:
                stream.write(text)
                stream.flush()
            except (OSError, ValueError):
                pass  # nobody reads any more
            with self._changed:
                self._waiting -= len(text)


class QueuedStream:
    """What a printer needs of a stream; an OutputThread writes the texts."""

    def __init__(self, thread: OutputThread, stream: TextIO) -> None:
        self._thread = thread
        self._stream = stream
        self.encoding = stream.encoding

    def write(self, text: str) -> int:
        """Writes ``text`` later."""
        self._thread.put(self._stream, text)
        return len(text)

    def flush(self) -> None:
        """Does nothing: the thread flushes."""

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """The file descriptor of the stream."""
        return self._stream.fileno()


def queue_for(thread: OutputThread, stream: TextIO) -> TextIO:
    """``stream`` as ``thread`` writes to it; a stream in memory, which never waits, as it is."""
    try:
        stream.fileno()
    except (AttributeError, OSError, ValueError):
        return stream
    return cast(TextIO, QueuedStream(thread, stream))
