"""Files are written whole or not at all, below one folder, and never over another by accident.

Those that a person names are read only if they end: no pipe, no device.
"""

from __future__ import annotations

import os
import stat
import sys
import threading
import time
import uuid
from typing import Callable, Dict, Iterable, NamedTuple, Optional, Sequence, Tuple

from comfyui_runner.errors import SaveError
from comfyui_runner.text import flat, make_encodable, numbered_name, safe_path_parts
from comfyui_runner.windows_files import is_in_use, is_inside, reason_not_written

#: Seconds to wait before each further try to rename or remove a file that is in use; 2.5 in all.
PAUSES_WHILE_IN_USE = (0.05, 0.1, 0.2, 0.4, 0.75, 1.0)

# -- reading ---------------------------------------------------------------------------------------


def read_regular_file(path: str, most_bytes: int) -> bytes:
    """What a file contains.

    Raises OSError, and ValueError if it is not a regular file, or larger than ``most_bytes``.
    """
    check_is_regular_file(path)
    data = b""
    if os.path.getsize(path) <= most_bytes:
        with open(path, "rb") as file:
            data = file.read(most_bytes + 1)  # files in /proc are larger than their size
        if len(data) <= most_bytes:
            return data
    raise ValueError(f"it is larger than {most_bytes >> 20} MiB")


def read_head(path: str, size: int) -> bytes:
    """The first ``size`` bytes of a file. Raises OSError, and ValueError if it is not regular."""
    check_is_regular_file(path)
    with open(path, "rb") as file:
        return file.read(size)


def check_is_regular_file(path: str) -> None:
    """Raises ValueError with the reason if ``path`` is not a regular file, OSError if it is absent.

    Opening a pipe waits for its writer, and /dev/zero never ends.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise ValueError("it is a folder")
    if stat.S_ISFIFO(mode):
        raise ValueError("it is a pipe, not a file")
    raise ValueError("it is a device or a socket, not a file")


def reason_not_read(path: str, error: OSError) -> str:
    """Why a file could not be read, in words that end a sentence.

    Windows says of a folder that permission is denied.
    """
    if os.path.isdir(path):
        return "it is a folder"
    return str(error.strerror or error)


# -- writing ---------------------------------------------------------------------------------------


class Saved(NamedTuple):
    """A file that was written: its path, and its size in bytes."""

    path: str
    bytes: int


class WrittenFiles:
    """The files that were written so far: none of them is overwritten under another name.

    On most systems names that differ only in case or in Unicode form are one name, and --overwrite
    is meant for old files, not for those of the same batch. May be used in any thread.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()  #: held from the choice of a name until its file is there
        self._paths: Dict[
            Optional[Tuple[int, int]], str
        ] = {}  # by the device and the number of the file

    def has_under_another_name(self, path: str) -> bool:
        """Whether the file at ``path`` was written here, and its name spelled in another way."""
        return self._paths.get(self._identify(path), path) != path

    def add(self, path: str) -> None:
        """The file at ``path`` was written."""
        identity = self._identify(path)
        if identity is not None:
            self._paths[identity] = path

    def _identify(self, path: str) -> Optional[Tuple[int, int]]:
        """What only the file at ``path`` has; None if it does not exist or has no number."""
        try:
            status = os.lstat(path)
        except OSError:
            return None
        if not status.st_ino:  # some network drives
            return None
        return status.st_dev, status.st_ino


def write_file(
    folder: str,
    parts: Sequence[str],
    overwrite: bool,
    chunks: Iterable[bytes],
    written: Optional[WrittenFiles] = None,
) -> Saved:
    """Writes ``chunks`` to ``parts`` below ``folder``: under that name only when all have come.

    What the file system cannot encode becomes "_". With ``overwrite``, files of ``written`` are
    replaced under their own names only. Raises SaveError, OSError, and what ``chunks`` raises;
    nothing is left behind then.
    """
    folder = name_on_disk(folder)
    parts = [name_on_disk(part) for part in parts]
    written = written or WrittenFiles()
    os.makedirs(folder, exist_ok=True)
    temporary = temporary_path(folder)
    try:
        with open(temporary, "xb") as file:
            size = sum(file.write(chunk) for chunk in chunks)
        with written.lock:
            path = reserve(folder, parts, overwrite, written)
            move_to_reserved(temporary, path, overwrite)
            if overwrite:
                written.add(path)
    except BaseException:
        remove_if_there(temporary)
        raise
    return Saved(path, size)


def name_on_disk(path: str) -> str:
    """``path`` with "_" for each character that the file system's encoding does not have.

    In most systems it is UTF-8, which lacks lone surrogates only. In Docker images and cron jobs
    with LC_ALL=C it may be ASCII.
    """
    return make_encodable(path, sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())


def path_for_people(path: str) -> str:
    """``path`` as a person reads it: from the current folder on, where it is inside of that."""
    try:
        here = os.path.join(os.path.realpath(os.getcwd()), "")
    except OSError:  # the folder is gone
        return path
    if path.startswith(here):
        return path[len(here) :]
    return path


def make_writable_folder(folder: str) -> None:
    """Makes ``folder`` unless it is there, and tries whether files can be written in it.

    Raises OSError if they cannot.
    """
    folder = name_on_disk(folder)
    os.makedirs(folder, exist_ok=True)
    temporary = temporary_path(folder)
    try:
        with open(temporary, "xb") as file:
            file.write(b"test")  # on a full disk a file can be made, but not filled
    finally:
        remove_if_there(temporary)


def temporary_path(folder: str) -> str:
    """A name in ``folder`` that no file has.

    Not by tempfile.mkstemp(): where Windows lets nobody write, it tries 10,000 names, and then says
    that all of them exist.
    """
    return os.path.join(folder, f".part-{uuid.uuid4().hex[:12]}")


def move_to_reserved(temporary: str, path: str, overwrite: bool) -> None:
    """Renames a file to the path that reserve() returned. Raises OSError."""
    try:
        when_not_in_use(lambda: os.replace(temporary, path))
    except OSError:
        if not overwrite:
            remove_if_there(path)  # the empty file that reserve() made
        raise


def remove_if_there(path: str) -> None:
    """Removes a file, if it can be removed."""
    try:
        when_not_in_use(lambda: os.unlink(path))
    except OSError:
        pass


def when_not_in_use(action: Callable[[], None]) -> None:
    """Runs ``action``, again while Windows says that a file is in use. Raises OSError.

    Virus scanners and indexers open each new file for a moment.
    """
    for pause in PAUSES_WHILE_IN_USE:
        try:
            return action()
        except OSError as error:
            if not is_in_use(error):
                raise
        time.sleep(pause)
    return action()


def reserve(folder: str, parts: Sequence[str], overwrite: bool, written: WrittenFiles) -> str:
    """The path for ``parts`` below ``folder``; unless ``overwrite``, an empty file is made there.

    A name that is taken gets `` (1)``. Raises OSError, and SaveError if a link leads out of it.
    """
    subfolder = subfolder_inside(folder, parts)
    os.makedirs(subfolder, exist_ok=True)
    for number in range(100000):
        path = os.path.join(subfolder, numbered_name(parts[-1], number))
        may_be_replaced = (
            overwrite
            and not os.path.isdir(path)
            # "A.png", written just now, where "a.png" is the same file
            and not written.has_under_another_name(path)
        )
        if may_be_replaced:
            return path
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            continue
        return path
    raise SaveError(f"There are too many files named {parts[-1]} in {subfolder}.")


def subfolder_inside(folder: str, parts: Sequence[str]) -> str:
    """The real folder of ``parts``. Raises SaveError if a link leads out of ``folder``."""
    root = os.path.realpath(folder)
    subfolder = os.path.realpath(os.path.join(root, *parts[:-1]))
    if not is_inside(subfolder, root):
        raise SaveError(f"{os.path.join(*parts)} leads out of {folder}.", "Remove the link.")
    return subfolder


def write_text_file(path: str, text: str) -> None:
    """Writes a file whole or not at all, in place of one that is there. Raises SaveError.

    A link stays, and what it leads to is written. So /dev/stdout and other devices and pipes can
    be named; they take the text as it comes.
    """
    target = os.path.realpath(name_on_disk(path))
    folder, name = os.path.split(target)
    data = text.encode(errors="replace")
    try:
        if is_device_or_pipe(target):
            write_to_device(target, data)
        elif os.path.isdir(target):
            raise SaveError(f"{path} cannot be written: it is a folder.", "Name a file in it.")
        else:
            write_file(folder, [name], True, [data])
    except OSError as error:
        raise SaveError(f"{path} cannot be written: {reason_not_written(error)}.") from None


def is_device_or_pipe(path: str) -> bool:
    """Whether ``path`` is there, and is neither a file nor a folder."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def write_to_device(path: str, data: bytes) -> None:
    """Writes ``data`` to a device or a pipe. Raises OSError, also for a pipe that nobody reads."""
    without_waiting = getattr(os, "O_NONBLOCK", 0)
    handle = os.open(path, os.O_WRONLY | without_waiting)
    with open(handle, "wb") as file:
        if without_waiting:
            os.set_blocking(handle, True)  # a slow reader is waited for
        file.write(data)


def save_bytes(
    data: bytes, name: str, folder: str, overwrite: bool, written: Optional[WrittenFiles] = None
) -> Saved:
    """Saves ``data`` as ``name`` below ``folder``, as write_file() does. Raises SaveError."""
    try:
        return write_file(folder, safe_path_parts("", flat(name)), overwrite, [data], written)
    except OSError as error:
        reason = f"{name} could not be saved in {folder}: {reason_not_written(error)}."
        raise SaveError(reason, "Choose another folder with -o.") from None
