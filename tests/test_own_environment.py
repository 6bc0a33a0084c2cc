"""--setup: what comes before the program, and what it says where it cannot help."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any, Dict, List, Sequence

import pytest
from support import ROOT, SCRIPT

from comfyui_runner.errors import ExitStatus
from comfyui_runner.own_environment import (
    ENVIRONMENT_FOLDER,
    MARK_FILE,
    UNFINISHED,
    EnvironmentState,
    choose_step,
    explain_no_venv,
    find_requirements,
    make_mark,
    python_of,
    read_mark,
    write_mark,
)

MARK = "Made by --setup"
NOTHING_THERE = EnvironmentState(is_inside=False, has_packages=False, has_folder=False, has_python=False, mark="")
COMPLETE = NOTHING_THERE._replace(has_folder=True, has_python=True, mark=MARK)


@pytest.mark.parametrize(
    ("state", "with_setup", "without"),
    [
        (NOTHING_THERE, "make", "nothing"),
        (COMPLETE, "switch", "switch"),
        # where this Python has the packages, it runs the program, unless --setup asks for the other
        (COMPLETE._replace(has_packages=True), "switch", "nothing"),
        (NOTHING_THERE._replace(has_packages=True), "make", "nothing"),
        # the environment's own Python never looks for another one: it is filled
        (COMPLETE._replace(is_inside=True, has_packages=True), "nothing", "nothing"),
        (COMPLETE._replace(is_inside=True), "fill", "nothing"),
        (COMPLETE._replace(is_inside=True, mark=UNFINISHED), "fill", "nothing"),
        (COMPLETE._replace(is_inside=True, has_packages=True, mark="for older packages"), "fill", "nothing"),
        # the program runs in somebody else's, which lacks the packages or has them
        (COMPLETE._replace(is_inside=True, mark=""), "refuse", "nothing"),
        (COMPLETE._replace(is_inside=True, has_packages=True, mark=""), "nothing", "nothing"),
        # stopped half-way; its Python is a link to one that is gone; the requirements have changed
        (COMPLETE._replace(mark=UNFINISHED), "make", "nothing"),
        (COMPLETE._replace(has_python=False), "make", "nothing"),
        (COMPLETE._replace(mark="for older packages"), "make", "switch"),
        # somebody else's
        (COMPLETE._replace(mark=""), "refuse", "nothing"),
        (COMPLETE._replace(mark="", has_python=False), "refuse", "nothing"),
    ],
)
def test_what_comes_before_the_program(state: EnvironmentState, with_setup: str, without: str) -> None:
    assert choose_step(state, wants_setup=True, wanted_mark=MARK) == with_setup
    assert choose_step(state, wants_setup=False, wanted_mark=MARK) == without


def test_the_packages_are_those_that_the_script_lists() -> None:
    """They are those of requirements.txt too; one beside the one file may be ComfyUI's."""
    with open(SCRIPT, encoding="utf-8") as script, open(
        os.path.join(ROOT, "requirements.txt"), encoding="utf-8"
    ) as file:
        lines = [line.strip() for line in file if line.strip() and not line.startswith("#")]
        assert find_requirements(script.read()) == lines
    assert find_requirements("print(1)") == ["websockets", "requests"]


def test_a_mark_changes_with_the_python_and_with_the_packages() -> None:
    mark = make_mark(["rich>=12"], "3.11")
    assert "3.11" in mark and "rich>=12" in mark
    assert len({mark, make_mark(["rich>=13"], "3.11"), make_mark(["rich>=12"], "3.12")}) == 3


def test_a_mark_is_kept(tmp_path: Any) -> None:
    assert read_mark(str(tmp_path)) == ""
    write_mark(str(tmp_path), "two\nlines")
    assert read_mark(str(tmp_path)) == "two\nlines"


def test_a_python_that_cannot_make_an_environment_gets_the_line_that_helps() -> None:
    debian = explain_no_venv("ensurepip", "/usr/bin/python3", "3.11", is_embedded=False)
    assert "does not have the module ensurepip (/usr/bin/python3)" in debian
    assert "sudo apt install python3.11-venv" in debian and "uv run" in debian
    portable = explain_no_venv("venv", "python.exe", "3.12", is_embedded=True)
    assert ".\\python.exe -s -m pip install websockets requests rich" in portable and "apt" not in portable


# -- the script, with a Python that lacks the packages -----------------------------------------------


@pytest.fixture
def start(tmp_path: Any, request: Any) -> Any:
    """Starts a copy of the script whose Python finds no packages."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("comfyui_workflow_runner.py", "comfyui_runner", "requirements.txt", "workflow_api.json"):
        os.symlink(os.path.join(ROOT, name), str(folder / name))
    variables: Dict[str, str] = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def go(*arguments: str, python: Sequence[str] = (sys.executable, "-S")) -> "subprocess.CompletedProcess[str]":
        # -S: without the folder of installed packages. abspath() of the script follows no link.
        command: List[str] = [*python, str(folder / "comfyui_workflow_runner.py"), *arguments]
        return subprocess.run(
            command, cwd=str(tmp_path), env=variables, capture_output=True, text=True, timeout=60, check=False
        )

    go.folder = folder  # type: ignore[attr-defined]
    return go


needs_links = pytest.mark.skipif(os.name == "nt", reason="the copy is made of links")


@needs_links
@pytest.mark.script_and_folder
def test_without_the_packages_and_an_environment_the_message_names_setup(start: Any) -> None:
    done = start("--demo", "--yes")
    assert done.returncode == ExitStatus.ERROR
    assert "--setup" in done.stderr and "uv run" in done.stderr and "pip install" in done.stderr


@pytest.mark.long
@needs_links
@pytest.mark.script_and_folder
def test_a_later_start_uses_the_environment_that_setup_made_and_says_so(start: Any) -> None:
    environment = start.folder / ENVIRONMENT_FOLDER
    (environment / "bin").mkdir(parents=True)
    # what takes over is this Python, with its packages: it needs no second start
    script = f'#!/bin/sh\nexec "{sys.executable}" "$@"\n'
    (environment / "bin" / "python").write_text(script, encoding="utf-8")
    (environment / "bin" / "python").chmod(0o755)
    (environment / MARK_FILE).write_text("for other packages", encoding="utf-8")
    done = start("--demo", "--yes", "--quiet", "-o", "out")
    assert done.returncode == ExitStatus.OK, done.stderr
    assert (
        done.stderr.splitlines()[0]
        == f"This Python does not have the packages: continuing with the one in {environment}."
    )
    assert done.stdout.strip().endswith(".png")


@needs_links
@pytest.mark.script_and_folder
@pytest.mark.parametrize("pip_works", [True, False])
def test_setup_completes_the_environment_whose_python_starts_it(start: Any, pip_works: bool) -> None:
    """The environment is empty, and a script takes the place of its pip, and of the Python that goes on then."""
    environment = start.folder / ENVIRONMENT_FOLDER
    (environment / "bin").mkdir(parents=True)
    (environment / "pyvenv.cfg").write_text(f"home = {os.path.dirname(os.path.realpath(sys.executable))}\n")
    os.symlink(os.path.realpath(sys.executable), str(environment / "bin" / "python3"))
    result = 0 if pip_works else 1
    pip = f'#!/bin/sh\ncase "$2" in pip) echo "$@" >&2; exit {result};; esac\necho started "$@"\n'
    (environment / "bin" / "python").write_text(pip, encoding="utf-8")
    (environment / "bin" / "python").chmod(0o755)
    (environment / MARK_FILE).write_text(UNFINISHED, encoding="utf-8")

    done = start("--setup", "--demo", python=[str(environment / "bin" / "python3")])
    assert f"Installing the packages in {environment}." in done.stderr
    assert "-m pip install" in done.stderr and "websockets>=" in done.stderr
    assert (read_mark(str(environment)) == UNFINISHED) is not pip_works
    if pip_works:
        assert done.stdout == f"started {start.folder / 'comfyui_workflow_runner.py'} --demo\n"
    else:
        assert done.returncode == ExitStatus.ERROR
        assert "is not complete: the lines above say why." in done.stderr and "deactivate" in done.stderr


@needs_links
@pytest.mark.script_and_folder
def test_setup_leaves_an_environment_of_somebody_else_alone(start: Any) -> None:
    environment = start.folder / ENVIRONMENT_FOLDER
    environment.mkdir()
    done = start("--setup", "--demo", "--yes")
    assert done.returncode == ExitStatus.ERROR
    assert f"--setup did not make {environment}, so it leaves it alone." in done.stderr
    assert os.listdir(environment) == []


def test_the_python_of_an_environment_is_where_its_system_has_it(tmp_path: Any) -> None:
    expected = os.path.join("Scripts", "python.exe") if os.name == "nt" else os.path.join("bin", "python")
    assert python_of("x") == os.path.join("x", expected)
