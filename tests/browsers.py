"""The browsers of the tests: Debian's packages, or what else is in PATH."""

from __future__ import annotations

import os
import shutil
from typing import Optional, Sequence

import pytest
from debian import install_package

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FIREFOX = ("firefox-esr", "firefox")


def require_browser(names: Sequence[str]) -> str:
    """The path of the first browser that there is; the first one is also the name of Debian's package.

    In CI, and where the tests may install it, its absence is a failure.
    """
    has_apt = shutil.which("apt-get") is not None
    must_be_found = bool(os.environ.get("CI")) or (has_apt and os.geteuid() == 0)
    if find_browser(names) is None and has_apt and must_be_found:
        install_package(names[0])
    path = find_browser(names)
    if path is not None:
        return path
    reason = "no %s: none of %s is in PATH" % (names[0], ", ".join(names))
    if must_be_found:
        pytest.fail(reason)
    pytest.skip(reason)


def find_browser(names: Sequence[str]) -> Optional[str]:
    """The path of the first browser that is in PATH."""
    return next(filter(None, map(shutil.which, names)), None)
