"""The program in a terminal, and what its screen shows, as text that can be compared."""

from __future__ import annotations

import codecs
import os
import re
import select
import struct
import subprocess
import sys
import time
from itertools import groupby
from typing import Any, List, Mapping, NamedTuple, Optional, Sequence

from support import FIXTURES, SCRIPT

FOLDER = os.path.join(FIXTURES, "screens")

#: Set to renew the golden files: look at what git diff shows of them.
RENEW = "COMFYUI_TESTS_RENEW_SCREENS"

SECONDS = 60.0  # a deadline, not a delay

#: Becomes the leader of the terminal, so that Ctrl+C that is typed comes as a signal, then the program.
TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.executable, sys.argv[1:])"
)

_UUID = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b")

#: What differs from run to run, and what stands for it. Each has the length that it mostly has.
CHANGING = (
    (_UUID, "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx"),
    (re.compile(r"\[[0-9a-f]{8}\]"), "[xxxxxxxx]"),
    (re.compile(r"(:|[Pp]ort )[0-9]{5}\b"), r"\g<1>54321"),
    (re.compile(r"\b[0-9]+\.[0-9] s\b"), "0.0 s"),
    (re.compile(r"\b[0-9]+\.[0-9] KB\b"), "0.0 KB"),
    (re.compile(r"\b[0-9]+\.[0-9]/(s|min)\b"), r"0.0/\1"),
)  # fmt: skip


class Size(NamedTuple):
    """Of a terminal."""

    columns: int
    lines: int

    def __str__(self) -> str:
        return f"{self.columns}x{self.lines}"


SIZES = (Size(80, 24), Size(50, 20))


class InTerminal:
    """The program in a terminal of its own, with what it has shown. close() ends it."""

    def __init__(
        self,
        arguments: Sequence[str],
        size: Size,
        folder: Any,
        *,
        colors: bool = True,
        variables: Optional[Mapping[str, str]] = None,
    ) -> None:
        import fcntl
        import pty
        import termios

        import pyte

        self.screen = pyte.HistoryScreen(size.columns, size.lines, history=2000)
        self.stream = pyte.Stream(self.screen)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", size.lines, size.columns, 0, 0))
        environment = {**os.environ, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **(variables or {})}
        for name in ("NO_COLOR", "COLUMNS", "LINES", "COLORTERM", "FORCE_COLOR", "PYTHONASYNCIODEBUG"):
            environment.pop(name, None)
        if not colors:
            environment["NO_COLOR"] = "1"
        self.process = subprocess.Popen(
            [sys.executable, "-c", TAKE_TERMINAL, sys.executable, SCRIPT, *arguments],
            cwd=folder,
            env=environment,
            stdin=follower,
            stdout=follower,
            stderr=follower,
            start_new_session=True,
        )
        os.close(follower)

    def close(self) -> None:
        """Ends the program, and closes the terminal."""
        self.process.kill()
        self.process.wait()
        os.close(self._leader)

    def _read(self, seconds: float) -> bool:
        """Takes what the program has written; False at its end."""
        if not select.select([self._leader], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self._leader, 65536)
        except OSError:  # the other end is closed
            return False
        text = self._decoder.decode(data)
        # pyte knows no dim text: italics, which the program does not use, stand for it.
        self.stream.feed(text.replace("\x1b[2m", "\x1b[3m"))
        return bool(data)

    def wait_for(self, text: str) -> "InTerminal":
        """Comes back when ``text`` is on the screen."""
        end = time.monotonic() + SECONDS
        while text not in self.text():
            assert self._read(0.1), f"{text!r} never came:\n{self.text()}"
            assert time.monotonic() < end, f"{text!r} did not come in time:\n{self.text()}"
        return self

    def type(self, keys: str) -> "InTerminal":
        """Types ``keys``."""
        os.write(self._leader, keys.encode())
        return self

    def end(self) -> int:
        """The exit status of the program, which ends by itself."""
        end = time.monotonic() + SECONDS
        while self._read(0.1):
            assert time.monotonic() < end, f"The program did not end:\n{self.text()}"
        return self.process.wait(SECONDS)

    def _rows(self) -> List[Any]:
        """All lines, those that have scrolled away too."""
        shown = [self.screen.buffer[number] for number in range(self.screen.lines)]
        return [*self.screen.history.top, *shown]

    def text(self) -> str:
        """What is on the screen and above it, without styles."""
        return "\n".join(self._styled_lines(with_styles=False)).strip("\n")

    def picture(self) -> str:
        """What is on the screen and above it, with the styles in brackets, and with stand-ins for what changes."""
        lines = "\n".join(self._styled_lines(with_styles=True)).strip("\n")
        for pattern, stand_in in CHANGING:
            lines = pattern.sub(stand_in, lines)
        return lines + "\n"

    def _styled_lines(self, with_styles: bool) -> List[str]:
        columns = range(self.screen.columns)
        lines = []
        for row in self._rows():
            line = ""
            for style, group in groupby((row[column] for column in columns), key=style_of):
                text = "".join(character.data for character in group)
                line += f"<{style}>{text}</>" if style and text.strip() and with_styles else text
            lines.append(line.rstrip())
        return lines


def style_of(character: Any) -> str:
    """The style of a character of pyte: ``bold red``."""
    words = ["bold"] if character.bold else []
    words += ["dim"] if character.italics else []
    words += [character.fg] if character.fg != "default" else []
    return " ".join(words)


def has_colors(picture: str) -> bool:
    """Whether a picture has anything but bold and dim."""
    styles = re.findall(r"<([a-z0-9 ]+)>", picture)
    return any(word not in ("bold", "dim") for style in styles for word in style.split())


def compare(name: str, picture: str) -> None:
    """Compares a picture with its golden file, or renews that."""
    path = os.path.join(FOLDER, f"{name}.txt")
    if os.environ.get(RENEW):
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            file.write(picture)
    with open(path, encoding="utf-8") as file:
        assert picture == file.read(), f"{path} shows something else: see docs/TESTING.md"
