"""Packages that are missing, and how they are installed for the very Python that runs."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest

from comfyui_runner.errors import RunnerError
from comfyui_runner.third_party import import_third_party

on_posix = pytest.mark.skipif(os.name == "nt", reason="programs on Windows have an ending")


def missing_package() -> RunnerError:
    with pytest.raises(RunnerError) as caught:
        import_third_party("no_such_package.part")
    assert caught.value.message.startswith("The Python package no_such_package is missing (")
    return caught.value


def test_a_package_that_is_there_is_imported_by_its_whole_name() -> None:
    assert import_third_party("requests.utils") is sys.modules["requests.utils"]


@on_posix
@pytest.mark.parametrize("is_same", [True, False])
def test_python_is_called_by_its_short_name_where_that_is_the_same(
    is_same: bool, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\n", encoding="utf-8")
    python.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    if is_same:
        monkeypatch.setattr(sys, "executable", str(python))
    remedy = missing_package().remedy
    assert (str(sys.executable) in remedy) is not is_same
    for name in ("websockets", "requests", "rich"):
        assert name in remedy


def test_without_a_python_in_the_path_it_is_called_by_its_whole_name(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sys.executable in missing_package().remedy
