"""Packages that are not Python's own, imported when they are first needed."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from comfyui_runner.errors import RunnerError


def import_third_party(name: str) -> Any:
    """The module ``name``. Raises RunnerError, which says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise RunnerError(
            f"The Python package {package} is missing ({error}).",
            "Install what the runner needs: "
            f'"{sys.executable}" -m pip install websockets requests rich',
        ) from None
