"""Files that runs made and no server keeps, in a temporary folder of the service."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
import threading
from typing import Dict, Optional

from comfyui_runner.files import remove_if_there, when_not_in_use
from comfyui_runner.limits import SPOOLED_BYTES, SPOOLED_FILES


class Spool:
    """A temporary folder with a bounded number of files. May be used in any thread.

    The oldest files are removed for new ones, and all of them by close().
    """

    def __init__(self, most_files: int = SPOOLED_FILES, most_bytes: int = SPOOLED_BYTES) -> None:
        self._most_files = most_files
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._sizes: Dict[str, int] = {}  # by the key of each file, the oldest first
        # It is made when something is to be kept: most services keep nothing.
        self._folder: Optional["tempfile.TemporaryDirectory[str]"] = None
        self._is_closed = False

    def add(self, data: bytes) -> Optional[str]:
        """Keep ``data``: the key by which read() finds it; None after close(). Raises OSError."""
        with self._lock:
            if self._is_closed:
                return None
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="comfyui-runner-")
            key = str(next(self._numbers))
            try:
                with open(self._path_of(key), "wb") as file:
                    file.write(data)
            except OSError:
                self._remove(key)
                raise
            self._sizes[key] = len(data)
            self._make_room()
            return key

    def read(self, key: str) -> Optional[bytes]:
        """What is kept under ``key``; None if it is not kept any more."""
        with self._lock:
            if key not in self._sizes:
                return None
            try:
                with open(self._path_of(key), "rb") as file:
                    return file.read()
            except OSError:  # somebody has emptied the folder
                return None

    def close(self) -> None:
        """Remove all of it."""
        with self._lock:
            self._is_closed = True
            self._sizes.clear()
            folder, self._folder = self._folder, None
            if folder is not None:
                with contextlib.suppress(OSError):
                    when_not_in_use(folder.cleanup)

    def _path_of(self, key: str) -> str:
        assert self._folder is not None
        return os.path.join(self._folder.name, key)

    def _make_room(self) -> None:
        while len(self._sizes) > self._most_files or sum(self._sizes.values()) > self._most_bytes:
            oldest = next(iter(self._sizes))
            del self._sizes[oldest]
            self._remove(oldest)

    def _remove(self, key: str) -> None:
        remove_if_there(self._path_of(key))
