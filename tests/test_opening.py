"""--open: what is opened, by which command, and what is never opened."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any, List

import pytest
from support import ROOT, run, slow_prompt, wait_until

from comfyui_runner.errors import ExitStatus
from comfyui_runner.extras.opening import choose_what_to_open, command_that_opens, may_be_opened, open_file


@pytest.mark.parametrize("name", ["a.png", "A.JPG", "b.mp4", "c.flac"])
def test_pictures_videos_and_sounds_are_opened(name: str) -> None:
    assert may_be_opened(name)


@pytest.mark.parametrize(
    "name",
    ["a.bat", "a.png.exe", "a.html", "sheet.html", "out/sheet.html", "a.svg", "a.lnk", "png", ".png", "a.", "a.txt"],
)
def test_what_could_start_something_is_not_opened(name: str) -> None:
    assert not may_be_opened(name)


def test_the_first_file_that_may_be_opened_is_chosen() -> None:
    assert choose_what_to_open(["a.txt", "b.png", "c.png"]) == "b.png"
    assert choose_what_to_open(["a.txt"]) is None


def test_each_system_has_its_command() -> None:
    assert command_that_opens("/a.png", "darwin") == ["open", "/a.png"]
    assert command_that_opens("/a.png", "linux") == ["xdg-open", "/a.png"]


@pytest.fixture
def opened(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the system's program was asked to open, a path in each line of this file."""
    if sys.platform == "win32":
        pytest.skip("Windows opens files by a function of its own")
    seen = tmp_path / "opened"
    seen.touch()
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("xdg-open", "open"):
        (folder / name).write_text(f'#!/bin/sh\nprintf "%s\\n" "$1" >> "{seen}"\n', encoding="utf-8")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return seen


def go(simulator: Any, path: str, *arguments: str) -> Any:
    return run("--server", simulator.url, "--yes", path, *arguments)


def test_the_picture_of_a_run_is_opened(simulator: Any, workflow_file: Any, tmp_path: Any, opened: Any) -> None:
    result = go(simulator, workflow_file(slow_prompt()), "-o", str(tmp_path / "out"), "--open")
    assert result.status == ExitStatus.OK
    wait_until(opened.read_text, what="the program that opens files")
    lines: List[str] = opened.read_text().splitlines()
    assert [os.path.dirname(line) for line in lines] == [str(tmp_path / "out")]
    assert lines[0].endswith(".png")


def test_the_sheet_of_a_batch_is_opened(simulator: Any, workflow_file: Any, tmp_path: Any, opened: Any) -> None:
    words = ("--repeat", "2", "-o", str(tmp_path / "out"), "--open")
    assert go(simulator, workflow_file(slow_prompt()), *words).status == ExitStatus.OK
    wait_until(opened.read_text, what="the program that opens files")
    assert opened.read_text().splitlines() == [str(tmp_path / "out" / "sheet.html")]


def test_a_machine_without_a_program_that_opens_files_says_so(
    simulator: Any, workflow_file: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = go(simulator, workflow_file(slow_prompt()), "-o", str(tmp_path / "out"), "--open")
    assert result.status == ExitStatus.OK
    assert "cannot be opened: this machine has no" in result.err + result.out


@pytest.mark.skipif(sys.platform == "win32", reason="Windows opens files by a function of its own")
def test_a_program_that_cannot_be_started_is_said(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("xdg-open", "open"):
        (tmp_path / name).write_text("#!/no/such/interpreter\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert open_file("/a.png") == "--open: /a.png cannot be opened: No such file or directory."


@pytest.mark.skipif(sys.platform == "win32", reason="Windows opens files by a function of its own")
def test_a_viewer_has_been_started_when_the_program_leaves_at_once(opened: Any) -> None:
    code = "import os; from comfyui_runner.extras.opening import open_file; open_file('/a.png'); os._exit(0)"
    for _ in range(5):
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=True)
    wait_until(lambda: len(opened.read_text().splitlines()) == 5, what="the viewers")


def test_nothing_to_open_is_said(simulator: Any, workflow_file: Any, tmp_path: Any, opened: Any) -> None:
    path = workflow_file({"1": {"class_type": "TextOut", "inputs": {"text": "a fox"}}})
    result = go(simulator, path, "-o", str(tmp_path / "out"), "--open")
    assert "--open: there is no picture, video or sound to open." in result.err + result.out
    assert opened.read_text() == ""


def test_open_needs_a_folder_in_which_something_is_saved() -> None:
    result = run("--demo", "--yes", "--open")
    assert result.status == ExitStatus.USAGE and "Add -o DIR." in result.err
