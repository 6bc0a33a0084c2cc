"""What starts the tests, where Python lacks something."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from run import make_environment


@pytest.mark.parametrize("name", ["venv", "ensurepip"])
def test_a_python_without_virtual_environments_is_explained(name: str, monkeypatch: Any, tmp_path: Any) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit) as caught:
        make_environment(str(tmp_path / "environment"))
    first, *remedies = str(caught.value).splitlines()
    assert first == f"This Python cannot make a virtual environment: it has no module {name} ({sys.executable})."
    assert remedies[0] == "Debian and Ubuntu: sudo apt install python%d.%d-venv" % sys.version_info[:2]
    assert not (tmp_path / "environment").exists()


def test_starting_it_needs_no_virtual_environments(monkeypatch: Any) -> None:
    """--help is shown, and the words about them, where the module venv is missing."""
    import runpy

    import run

    monkeypatch.setitem(sys.modules, "venv", None)
    assert runpy.run_path(str(run.__file__))["main"]
