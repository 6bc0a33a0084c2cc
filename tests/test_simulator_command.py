"""The simulator's command line, and what importing it costs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests
from simulated import WAIT
from support import ROOT

import comfyui_runner.simulator
from comfyui_runner.simulator import Faults, Simulator

SCRIPT = os.path.join(ROOT, "comfyui_runner", "simulator", "__main__.py")


def command(*args: str) -> "subprocess.Popen[str]":
    line = [sys.executable, SCRIPT, "--port", "0", *args]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_command_line(tmp_path: Path, number: int) -> None:
    process = command("--version", "0.3.50", "--root", str(tmp_path), "--fault", "drop_end=true")
    with process:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = line.split()[-1]
        assert line.startswith("Simulated ComfyUI 0.3.50 at http://127.0.0.1:")
        stats = requests.get(url + "/system_stats", timeout=WAIT).json()
        assert stats["system"]["comfyui_version"] == "0.3.50"
        process.send_signal(number)
        try:
            out, err = process.communicate(timeout=WAIT)
        finally:
            process.kill()  # leaving the block waits for its end
        assert (process.returncode, out, err) == (0, "", "")


def test_command_line_mistakes(sim: Simulator) -> None:
    for args, status, text in (
        (["--port", str(sim.port)], 1, "Cannot listen on 127.0.0.1:"),
        (["--fault", "odd=1"], 2, "there is no fault 'odd'"),
        (["--fault", "stall=odd"], 2, "not JSON"),
    ):
        with command(*args) as process:
            _, err = process.communicate(timeout=WAIT)
            assert process.returncode == status
            assert text in err
            assert "Traceback" not in err


def help_of(*line: str, cwd: str) -> str:
    """What --help prints, on one line."""
    done = subprocess.run(
        [sys.executable, *line, "--help"],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split())


def test_it_starts_as_a_module_and_as_a_file(tmp_path: Path) -> None:
    text = "A ComfyUI stand-in: no GPU, simulated pictures."
    assert text in help_of("-m", "comfyui_runner.simulator", cwd=ROOT)
    assert text in help_of(SCRIPT, cwd=str(tmp_path))


def test_importing_is_fast_and_silent() -> None:
    code = "import sys, comfyui_runner.simulator; print('websockets' in sys.modules)"
    begun = time.monotonic()
    out = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    assert out == "False\n"
    assert time.monotonic() - begun < 3


def test_the_package_offers_what_its_users_need() -> None:
    assert comfyui_runner.simulator.__all__ == ["Faults", "Simulator", "draw", "measure"]


def test_faults_start_harmless() -> None:
    assert Faults() == Simulator().faults
