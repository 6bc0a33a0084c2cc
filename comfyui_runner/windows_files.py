"""What is different about files on Windows: files in use, long paths, protected folders. Pure."""

from __future__ import annotations

import errno
import os
from types import ModuleType

#: Errors of Windows that pass when another program, often a virus scanner, lets go of the file:
#: ERROR_ACCESS_DENIED, ERROR_SHARING_VIOLATION, ERROR_LOCK_VIOLATION.
IN_USE_ERRORS = (5, 32, 33)

#: ERROR_FILENAME_EXCED_RANGE: a name or a path is too long.
TOO_LONG = 206

#: Windows takes paths of 259 characters for files, and of 247 for folders.
LONG_PATH = 248


def is_in_use(error: OSError) -> bool:
    """Whether the same call may succeed a moment later, because a file is in use."""
    return getattr(error, "winerror", None) in IN_USE_ERRORS


def reason_not_written(error: OSError, *, is_windows: bool = os.name == "nt") -> str:
    """Why a file could not be written, in words that end a sentence.

    For long paths and protected folders, Windows says only that something was not found, or that
    access is denied.
    """
    reason = str(error.strerror or error)
    if not is_windows:
        return reason

    winerror = getattr(error, "winerror", None)  # what open() raises has an errno only
    is_missing = error.errno == errno.ENOENT
    path = str(error.filename2 or error.filename or "")
    is_too_long = winerror == TOO_LONG or (is_missing and len(path) >= LONG_PATH)
    if is_too_long:
        return (
            f"{reason} (the path has {len(path)} characters, and Windows takes 259 unless long "
            "paths are enabled: choose a folder with a shorter path)"
        )

    is_denied = error.errno == errno.EACCES and winerror in (None, 5)
    if is_denied or is_missing:
        return (
            f"{reason} (the folder may be protected, by Controlled folder access or OneDrive, or "
            "the file is open in another program)"
        )
    return reason


def is_inside(path: str, folder: str, *, paths: ModuleType = os.path) -> bool:
    """Whether ``path`` is ``folder`` or below it. Both are real paths.

    Not by commonpath(), which raises ValueError for two drives (a junction leads to another one)
    and for the root of a share (``\\\\server\\share``).
    """
    separator = paths.sep
    folder = paths.normcase(without_prefix(folder)).rstrip(separator)
    path = paths.normcase(without_prefix(path))
    return path == folder or path.startswith(folder + separator)


def without_prefix(path: str) -> str:
    """``path`` without what Windows puts before long ones, and realpath() may leave there."""
    if path.startswith("\\\\?\\UNC\\"):
        return "\\\\" + path[8:]
    if path.startswith("\\\\?\\"):
        return path[4:]
    return path
