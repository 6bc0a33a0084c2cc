"""Packages that are not Python's own, imported when they are first needed."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import warnings
from typing import Any

from comfyui_runner.errors import RunnerError
from comfyui_runner.shells import IS_WINDOWS, install_commands


def import_third_party(name: str) -> Any:
    """The module ``name``. Raises RunnerError, which says how to install it."""
    if name not in sys.modules:
        # urllib3 warns of the LibreSSL of macOS's own Python, which works and cannot be changed.
        warnings.filterwarnings("ignore", message="urllib3 v2 only supports OpenSSL")
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        found = shutil.which("python")
        commands = install_commands(
            sys.executable,
            ("websockets", "requests", "rich"),
            is_windows=IS_WINDOWS,
            is_found_as_python=found is not None and _is_same_path(found, sys.executable),
        )
        raise RunnerError(
            f"The Python package {package} is missing ({error}).",
            "Let the script create an environment with its packages: start it once with --setup. "
            "With uv, nothing has to be installed: uv run comfyui_workflow_runner.py\n"
            f"Or install the packages for this Python:\n{commands}",
        ) from None


def _is_same_path(path: str, other: str) -> bool:
    # Not whether they are one file: the python of a virtual environment is a link to another one.
    return os.path.normcase(os.path.abspath(path)) == os.path.normcase(os.path.abspath(other))
