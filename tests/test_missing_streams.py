"""Streams that are missing: pythonw, services, and what a shell has closed."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any, Callable

import pytest
from support import SCRIPT, slow_prompt

from comfyui_runner.environment import NullStream
from comfyui_runner.errors import ExitStatus


@pytest.mark.skipif(os.name == "nt", reason="closes the streams as POSIX does")
@pytest.mark.parametrize("closed", [[0, 1, 2], [1], [2], [0]])
def test_a_run_without_streams_saves_what_it_makes(
    closed: Any, simulator: Any, workflow_file: Callable[..., str], tmp_path: Any
) -> None:
    path = workflow_file(slow_prompt(steps=2, seconds=0.1))
    command = [sys.executable, SCRIPT, "--server", simulator.url, "--yes", "-o", str(tmp_path / "out"), path]

    def close() -> None:
        for number in closed:
            os.close(number)

    program = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=close
    )
    try:
        assert program.wait(60) == ExitStatus.OK
    finally:
        program.kill()
        program.wait()
    assert os.listdir(tmp_path / "out") == ["slow_00001_.png"]


def test_the_null_device_is_no_terminal() -> None:
    with NullStream("wb") as out, NullStream("rb") as source:
        assert (out.isatty(), source.isatty()) == (False, False)
        out.write("text")
        assert source.read() == ""
