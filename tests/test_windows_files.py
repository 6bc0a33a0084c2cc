"""Files as Windows has them, by its rules alone: no Windows is needed."""

from __future__ import annotations

import errno
import ntpath
import posixpath
from typing import Any, Optional

import pytest

from comfyui_runner.windows_files import is_in_use, is_inside, reason_not_written


def windows_error(number: int, words: str, path: str = "", winerror: Optional[int] = None) -> OSError:
    """An error as Python raises it on Windows; what comes of open() has no ``winerror``."""
    error: Any = OSError(number, words, path)
    error.winerror = winerror
    return error  # type: ignore[no-any-return]


@pytest.mark.parametrize(("winerror", "passes"), [(5, True), (32, True), (33, True), (3, False), (None, False)])
def test_files_in_use_are_known_by_their_error(winerror: Optional[int], passes: bool) -> None:
    assert is_in_use(windows_error(errno.EACCES, "x", winerror=winerror)) is passes


def test_an_error_of_posix_is_not_about_a_file_in_use() -> None:
    assert not is_in_use(PermissionError(errno.EACCES, "Permission denied"))


@pytest.mark.parametrize(
    ("path", "folder", "inside"),
    [
        (r"C:\out", r"C:\out", True),
        (r"C:\OUT\sub", r"c:\out", True),
        (r"C:\output", r"C:\out", False),
        (r"D:\elsewhere", r"C:\out", False),  # a junction to another drive
        (r"\\server\share\sub", r"C:\out", False),  # a link to a share
        (r"\\server\share\sub", r"\\server\share", True),  # the root of a share
        (r"\\server\share\sub", "\\\\server\\share\\", True),
        (r"\\server\other\sub", r"\\server\share", False),
        (r"C:\sub", "C:\\", True),
        (r"\\?\C:\out\long", r"C:\out", True),
        (r"\\?\UNC\server\share\long", r"\\server\share", True),
    ],
)
def test_what_is_inside_a_folder_of_windows(path: str, folder: str, inside: bool) -> None:
    assert is_inside(path, folder, paths=ntpath) is inside


@pytest.mark.parametrize(
    ("path", "folder", "inside"),
    [("/out/sub", "/out", True), ("/output", "/out", False), ("/x", "/", True), ("/Out/x", "/out", False)],
)
def test_what_is_inside_a_folder_elsewhere(path: str, folder: str, inside: bool) -> None:
    assert is_inside(path, folder, paths=posixpath) is inside


LONG = "C:\\" + "x" * 260


@pytest.mark.parametrize(
    "error",
    [
        windows_error(errno.ENOENT, "The filename or extension is too long", LONG, 206),
        windows_error(errno.ENOENT, "The system cannot find the path specified", LONG, 3),
        windows_error(errno.ENOENT, "No such file or directory", LONG),
    ],
)
def test_a_path_that_is_too_long_is_named_as_the_cause(error: OSError) -> None:
    reason = reason_not_written(error, is_windows=True)
    assert reason.startswith(f"{error.strerror} (the path has 263 characters, and Windows takes 259 unless long ")
    assert reason.endswith("choose a folder with a shorter path)")


@pytest.mark.parametrize(
    "error",
    [
        windows_error(errno.EACCES, "Access is denied", "C:\\x", 5),
        windows_error(errno.EACCES, "Permission denied", "C:\\x"),
        windows_error(errno.ENOENT, "No such file or directory", "C:\\x"),
        windows_error(errno.ENOENT, "The system cannot find the path specified", "C:\\x", 3),
    ],
)
def test_a_folder_that_may_be_protected_is_named_as_the_cause(error: OSError) -> None:
    reason = reason_not_written(error, is_windows=True)
    assert reason.startswith(f"{error.strerror} (the folder may be protected, by Controlled folder access or OneDrive")


def test_other_reasons_are_in_the_words_of_the_system() -> None:
    in_use = windows_error(errno.EACCES, "It is being used by another process", "C:\\x", 32)
    assert reason_not_written(in_use, is_windows=True) == "It is being used by another process"
    full = windows_error(errno.ENOSPC, "No space left on device")
    assert reason_not_written(full, is_windows=True) == "No space left on device"
    assert reason_not_written(OSError("odd"), is_windows=True) == "odd"
    denied = windows_error(errno.EACCES, "Permission denied", "/x")
    assert reason_not_written(denied, is_windows=False) == "Permission denied"
