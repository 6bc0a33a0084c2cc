"""--open: what was saved is shown by the program that this machine has for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import Iterable, List, Optional, Sequence

from comfyui_runner.threads import start_thread

#: The endings of files that are opened. On Windows to open a file may mean to run it (.bat), and a
#: browser runs the scripts in some (.svg, .html).
OPENED_ENDINGS = (
    *("png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "avif", "jxl"),
    *("mp4", "webm", "mkv", "mov", "avi", "m4v"),
    *("flac", "mp3", "wav", "ogg", "opus", "m4a", "aac"),
)


def choose_what_to_open(paths: Iterable[str]) -> Optional[str]:
    """The first of ``paths`` that may be opened, None if there is none."""
    return next(filter(may_be_opened, paths), None)


def may_be_opened(path: str) -> bool:
    """Whether opening the file cannot start anything but a viewer."""
    ending = os.path.splitext(path)[1][1:].lower()
    return ending in OPENED_ENDINGS


def command_that_opens(path: str, platform: str) -> List[str]:
    """The command that opens a file on macOS ("darwin") and on Linux."""
    if platform == "darwin":
        return ["open", path]
    return ["xdg-open", path]


def open_file(path: str) -> str:
    """Opens a file and does not wait: "", or why it cannot be opened."""
    path = os.path.abspath(path)  # a name that begins with "-" would be an option
    if sys.platform == "win32":
        try:
            os.startfile(path)
        except OSError as error:
            return f"--open: {path} cannot be opened: {error.strerror or error}."
        return ""

    command = command_that_opens(path, sys.platform)
    if shutil.which(command[0]) is None:
        return f"--open: {path} cannot be opened: this machine has no {command[0]}."
    try:
        viewer = start_viewer(command)
    except OSError as error:
        return f"--open: {path} cannot be opened: {error.strerror or error}."
    start_thread(viewer.wait)  # a process that nobody waits for stays in the system's table
    return ""


def start_viewer(command: Sequence[str]) -> "subprocess.Popen[bytes]":
    """Starts a viewer: it runs on return, since the program may leave at once after that.

    Ctrl+C in our terminal does not close it. Raises OSError.
    """
    nothing = subprocess.DEVNULL
    return subprocess.Popen(
        command, stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True
    )
