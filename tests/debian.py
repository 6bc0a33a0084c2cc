"""Programs that long tests need, from Debian's packages."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Optional

import pytest

#: Where Debian has programs that are not in everybody's PATH.
SYSTEM_FOLDERS = "/usr/sbin:/usr/local/sbin"


def require_program(name: str, package: str) -> str:
    """The path of a program, which is installed where the tests may do that.

    In CI, and for root of a Debian, its absence is a failure; elsewhere the test is skipped.
    """
    has_apt = shutil.which("apt-get") is not None
    must_be_found = bool(os.environ.get("CI")) or (has_apt and os.geteuid() == 0)
    if find_program(name) is None and has_apt and must_be_found:
        install_package(package)
    path = find_program(name)
    if path is not None:
        return path
    reason = f"no {name}: Debian's package {package} has it"
    if must_be_found:
        pytest.fail(reason)
    pytest.skip(reason)


def find_program(name: str) -> Optional[str]:
    """The path of a program, or None."""
    return shutil.which(name) or shutil.which(name, path=SYSTEM_FOLDERS)


def install_package(package: str) -> None:
    """Install a package, as far as apt-get can be used; whether that worked is seen afterwards."""
    install = ["install", "-y", "--no-install-recommends", package]
    for command in (install, ["update"], install):  # often the lists are there
        try:
            done = subprocess.run(
                ["apt-get", *command],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
                timeout=400,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return
        if command == install and done.returncode == 0:
            return
