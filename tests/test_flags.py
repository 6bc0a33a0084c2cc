"""The way out for --help, before the program is imported, and the end of the process."""

from __future__ import annotations

import io
import sys
from typing import Any, List

import pytest

from comfyui_runner import flags
from comfyui_runner.flags import Defaults, flush_streams, leave_if_help_is_asked

DEFAULTS = Defaults("a.json", "single_shot", False, ("http://127.0.0.1:1",))


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> List[int]:
    """The statuses with which the process was to end."""
    statuses: List[int] = []
    monkeypatch.setattr(flags, "leave", statuses.append)
    return statuses


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["-h", "--no-such-flag"]])
def test_help_ends_the_process(arguments: List[str], left: List[int], capsys: Any) -> None:
    leave_if_help_is_asked(DEFAULTS, arguments)
    assert left == [0] and capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--mode", "odd", "--help"], ["flow.json"], ["--set", "--help"]])
def test_what_is_wrong_beside_help_is_left_to_the_program(arguments: List[str], left: List[int], capsys: Any) -> None:
    leave_if_help_is_asked(DEFAULTS, arguments)
    assert left == [] and capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_at_the_end_nobody_needs_to_read_any_more(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError

    monkeypatch.setattr(sys, name, Broken())
    flush_streams()
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, name, closed)
    flush_streams()


def test_both_streams_are_flushed_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = []

    class Kept(io.StringIO):
        def flush(self) -> None:
            flushed.append(self)

    monkeypatch.setattr(sys, "stdout", Kept())
    monkeypatch.setattr(sys, "stderr", Kept())
    flush_streams()
    assert flushed == [sys.stdout, sys.stderr]
