"""Files are written whole or not at all, below one folder, and never over another by accident.

Those that a person names are read only if they end: no pipe, no device.
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from typing import Iterable, NamedTuple, Sequence

from comfyui_runner.errors import SaveError
from comfyui_runner.text import flat, make_encodable, numbered_name, safe_path_parts

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


# -- writing ---------------------------------------------------------------------------------------


class Saved(NamedTuple):
    """A file that was written: its path, and its size in bytes."""

    path: str
    bytes: int


def write_file(
    folder: str, parts: Sequence[str], overwrite: bool, chunks: Iterable[bytes]
) -> Saved:
    """Writes ``chunks`` to ``parts`` below ``folder``: under that name only when all have come.

    What the file system cannot encode becomes "_". Raises SaveError, OSError, and what ``chunks``
    raises; nothing is left behind then.
    """
    folder = name_on_disk(folder)
    parts = [name_on_disk(part) for part in parts]
    os.makedirs(folder, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".part-", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            size = sum(file.write(chunk) for chunk in chunks)
        let_others_read(temporary)
        path = reserve(folder, parts, overwrite)
        move_to_reserved(temporary, path, overwrite)
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


def make_writable_folder(folder: str) -> None:
    """Makes ``folder`` unless it is there, and tries whether files can be written in it.

    Raises OSError if they cannot.
    """
    folder = name_on_disk(folder)
    os.makedirs(folder, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".part-", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(b"test")  # on a full disk a file can be made, but not filled
    finally:
        os.unlink(temporary)


def move_to_reserved(temporary: str, path: str, overwrite: bool) -> None:
    """Renames a file to the path that reserve() returned. Raises OSError."""
    try:
        os.replace(temporary, path)
    except OSError:
        if not overwrite:
            os.unlink(path)  # the empty file that reserve() made
        raise


def let_others_read(path: str) -> None:
    """Gives ``path``, which mkstemp() made for us alone, the mode of any new file."""
    if os.name == "posix":
        mask = os.umask(0)  # it cannot be read without being set
        os.umask(mask)
        os.chmod(path, 0o666 & ~mask)


def remove_if_there(path: str) -> None:
    """Removes a file, if it can be removed."""
    try:
        os.unlink(path)
    except OSError:
        pass


def reserve(folder: str, parts: Sequence[str], overwrite: bool) -> str:
    """The path for ``parts`` below ``folder``; unless ``overwrite``, an empty file is made there.

    A name that is taken gets `` (1)``. Raises OSError, and SaveError if a link leads out of it.
    """
    subfolder = subfolder_inside(folder, parts)
    os.makedirs(subfolder, exist_ok=True)
    for number in range(100000):
        path = os.path.join(subfolder, numbered_name(parts[-1], number))
        may_be_replaced = overwrite and not os.path.isdir(path)
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
    if os.path.commonpath([root, subfolder]) != root:
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
        raise SaveError(f"{path} cannot be written: {error.strerror or error}.") from None


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


def save_bytes(data: bytes, name: str, folder: str, overwrite: bool) -> Saved:
    """Saves ``data`` as ``name`` below ``folder``. Raises SaveError."""
    try:
        return write_file(folder, safe_path_parts("", flat(name)), overwrite, [data])
    except OSError as error:
        reason = f"{name} could not be saved in {folder}: {error.strerror or error}."
        raise SaveError(reason, "Choose another folder with -o.") from None
