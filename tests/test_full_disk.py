"""Stories of disks that are full, and of file systems that cannot encode every name."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from typing import Any, Callable, Dict, List, Mapping, Optional

import pytest
from support import SCRIPT, node, run, slow_prompt

from comfyui_runner.errors import ExitStatus

if os.name == "nt":
    pytest.skip("needs /dev/full, and limits for the size of a file", allow_module_level=True)

import resource

Make = Callable[..., Any]


@pytest.fixture
def full(tmp_path: Any) -> str:
    """A file on a full disk, by a link: a program that is wrong would put a file in the place of the device."""
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    (tmp_path / "full").symlink_to("/dev/full")
    return str(tmp_path / "full")


def run_process(
    *arguments: str, largest_file: int = resource.RLIM_INFINITY, environment: Optional[Mapping[str, str]] = None
) -> "subprocess.CompletedProcess[str]":
    """The program as a process, whose files can have ``largest_file`` bytes; its output is UTF-8 or ASCII."""
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (largest_file, largest_file))
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONASYNCIODEBUG"}
    return subprocess.run(
        [sys.executable, SCRIPT, "--yes", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        env={**variables, "PYTHONDONTWRITEBYTECODE": "1", **(environment or {})},
        preexec_fn=limit,
        timeout=100,
        check=False,
    )


def files_in(folder: Any) -> List[str]:
    return sorted(
        os.path.relpath(os.path.join(where, name), folder) for where, _, names in os.walk(folder) for name in names
    )


def test_an_output_for_which_there_is_no_room(simulator: Any, workflow_file: Make, tmp_path: Any) -> None:
    """The run is not thrown away: what is too large is named, with its reason and where it still is."""
    prompt: Dict[str, Any] = {**slow_prompt(seconds=0.0), "3": node("TextOut", "Words", text="a fox")}
    out = tmp_path / "out"
    arguments = ("--server", simulator.url, "-o", str(out), workflow_file(prompt))
    result = run_process(*arguments, largest_file=60)
    assert result.returncode == ExitStatus.NOT_SAVED, result
    assert "slow_00001_.png could not be saved in" in result.stdout and "File too large" in result.stdout
    assert "/view?filename=slow_00001_.png" in result.stdout
    assert files_in(out) == ["Words.txt"]


def test_a_record_for_which_there_is_no_room(simulator: Any, workflow_file: Make, full: str) -> None:
    path = workflow_file(slow_prompt(seconds=0.0))
    result = run(path, "--server", simulator.url, "--yes", "--save-run", full)
    assert result.status == ExitStatus.NOT_SAVED
    assert f"{full} cannot be written: No space left on device." in result.err


def test_what_is_wrong_with_a_run_matters_more_than_its_record(simulator: Any, workflow_file: Make, full: str) -> None:
    prompt = slow_prompt(seconds=0.0)
    prompt["3"] = node("FailNode", "Bad", message="out of luck", image=["1", 0])
    prompt["4"] = node("PreviewImage", images=["3", 0])
    result = run(workflow_file(prompt), "--server", simulator.url, "--yes", "--save-run", full)
    assert result.status == ExitStatus.FAILED
    assert "cannot be written: No space left on device." in result.err


def test_a_manifest_for_which_there_is_no_room_ends_the_batch(
    simulator: Any, workflow_file: Make, tmp_path: Any, full: str
) -> None:
    """What the first row made is saved; no other row is begun, as nobody would know of it."""
    rows = tmp_path / "rows.csv"
    rows.write_text("1.seed\n1\n2\n3\n")
    path = workflow_file(slow_prompt(seconds=0.0))
    flags = ("--json", "--in-flight", "1", "-o", str(tmp_path / "out"), "--batch", str(rows), "--manifest", full)
    result = run(path, "--server", simulator.url, "--yes", *flags)
    assert result.status == ExitStatus.NOT_SAVED, result
    assert simulator.requests.count(("POST", "/prompt")) == 1
    assert files_in(tmp_path / "out") == [os.path.join("00001", "slow_00001_.png")]
    assert result.event("row")["status"] == "done"
    message = result.event("batch")["message"]
    assert f"The manifest {full} cannot be written: No space left on device." in message
    assert "Make room there" in message and "--resume" in message


def test_a_manifest_that_is_full_in_the_middle_has_whole_lines(
    simulator: Any, workflow_file: Make, tmp_path: Any
) -> None:
    rows, manifest = tmp_path / "rows.csv", tmp_path / "m.jsonl"
    rows.write_text("1.seed\n" + "\n".join(map(str, range(1, 21))) + "\n")
    path = workflow_file(slow_prompt(seconds=0.0))
    arguments = ("--server", simulator.url, "--batch", str(rows), "--manifest", str(manifest), path)
    result = run_process("--in-flight", "1", *arguments, largest_file=1500)
    assert result.returncode == ExitStatus.NOT_SAVED, result
    assert "cannot be written: File too large." in result.stdout and "bug" not in result.stdout + result.stderr
    done = [json.loads(line)["row"] for line in manifest.read_text().splitlines()]
    assert done and done == list(range(1, len(done) + 1))
    assert run_process("--resume", *arguments).returncode == ExitStatus.OK
    rest = [json.loads(line)["row"] for line in manifest.read_text().splitlines() if line]
    assert sorted(rest) == list(range(1, 21))


def test_names_that_the_file_system_cannot_encode(simulator: Any, workflow_file: Make, tmp_path: Any) -> None:
    """As in a container or a cron job whose locale is C: everything is saved, with marks in the names."""
    prompt: Dict[str, Any] = {**slow_prompt(seconds=0.0), "3": node("TextOut", "狐 Words", text="狐")}
    prompt["2"]["inputs"]["filename_prefix"] = "狐"
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    folder = os.path.join(str(tmp_path), "out", "{3.text}")
    arguments = ("--server", simulator.url, "-o", folder, workflow_file(prompt))
    result = run_process(*arguments, environment=ascii_only)
    assert result.returncode == ExitStatus.OK, result
    assert files_in(tmp_path / "out") == [os.path.join("_", "_ Words.txt"), os.path.join("_", "__00001_.png")]
    assert (tmp_path / "out" / "_" / "_ Words.txt").read_text(encoding="utf-8") == "狐"
