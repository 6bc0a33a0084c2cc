"""ComfyUI portable's Python finds ComfyUI's own modules first, which have names of ours, and no folder of a script."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from typing import Any, Callable, Iterator, List, Set

import pytest
from support import ROOT, make_decoys, slow_prompt

from comfyui_runner.errors import ExitStatus

PACKAGE = os.path.join(ROOT, "comfyui_runner")
SCRIPT = os.path.join(ROOT, "comfyui_workflow_runner.py")
SIMULATOR = os.path.join(PACKAGE, "simulator")

#: Runs a file as portable's Python does: the path has ComfyUI first, and the file's own folder nowhere.
AS_PORTABLE = """
import os, runpy, sys
sys.path[:1] = [os.environ["PYTHONPATH"]]
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

WAYS = {
    "isolated": ["-I"],
    "safe path": ["-P"],
    "portable": ["-c", AS_PORTABLE],
    "plain": [],
}


@pytest.fixture(params=WAYS)
def call(request: Any, tmp_path: Any) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Calls a file of the project from another folder, in each of these ways."""
    if request.param == "safe path" and sys.version_info < (3, 11):
        pytest.skip("-P is of Python 3.11")
    decoys = make_decoys(tmp_path / "ComfyUI")

    def run_python(*line: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, *WAYS[request.param], *line],
            cwd=str(tmp_path),
            env={**os.environ, "PYTHONPATH": decoys},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=100,
            check=False,
        )

    return run_python


def test_the_script_runs(call: Any, simulator: Any, workflow_file: Callable[..., str]) -> None:
    done = call(SCRIPT, "--server", simulator.url, "--yes", workflow_file(slow_prompt()))
    assert done.returncode == ExitStatus.OK, done.stderr


@pytest.mark.parametrize("path", [SIMULATOR, os.path.join(SIMULATOR, "__main__.py")], ids=["folder", "file"])
def test_the_simulator_starts(path: str, call: Any) -> None:
    done = call(path, "--help")
    assert done.returncode == 0, done.stderr
    assert "A ComfyUI stand-in" in done.stdout


@pytest.mark.long
def test_the_one_file_is_built(call: Any, tmp_path: Any) -> None:
    done = call(os.path.join(PACKAGE, "onefile.py"), "runner.py")
    assert done.returncode == 0, done.stderr
    shown = call(str(tmp_path / "runner.py"), "--version")
    assert shown.returncode == 0, shown.stderr


def test_the_decoys_would_be_noticed(call: Any, tmp_path: Any) -> None:
    (tmp_path / "careless.py").write_text("import server", encoding="utf-8")
    assert call(str(tmp_path / "careless.py")).returncode != 0


# -- how modules are imported --------------------------------------------------------------------------


def module_files() -> Iterator[str]:
    """The script, and the modules of the package."""
    yield SCRIPT
    for parent, _, names in os.walk(PACKAGE):
        yield from (os.path.join(parent, name) for name in names if name.endswith(".py"))


def own_names() -> Set[str]:
    """The names of our modules, without those of the packages that they are in."""
    return {os.path.splitext(os.path.basename(path))[0] for path in module_files()} - {"__init__", "__main__"}


#: What an import must not begin with.
BEGINNINGS = own_names()


def imports_that_may_meet_another_module(source: str) -> List[int]:
    """The lines of imports of ours that are not ``from comfyui_runner.x import name``."""
    lines = []
    for statement in ast.walk(ast.parse(source)):
        if isinstance(statement, ast.Import):
            if any(alias.name.partition(".")[0] in {"comfyui_runner", *BEGINNINGS} for alias in statement.names):
                lines.append(statement.lineno)
        elif isinstance(statement, ast.ImportFrom):
            is_relative = statement.level > 0
            if is_relative or (statement.module or "").partition(".")[0] in BEGINNINGS:
                lines.append(statement.lineno)
    return lines


@pytest.mark.parametrize(
    "source",
    ["import server", "from server import Server", "from .server import Server", "import comfyui_runner.server as x"],
)
def test_an_import_that_may_meet_a_module_of_comfyui_is_noticed(source: str) -> None:
    assert imports_that_may_meet_another_module(source) == [1]


def test_every_module_is_imported_by_its_whole_name() -> None:
    for path in module_files():
        with open(path, encoding="utf-8") as file:
            assert imports_that_may_meet_another_module(file.read()) == [], path


@pytest.mark.skipif(sys.version_info < (3, 10), reason="Python does not list its modules")
def test_no_module_hides_one_of_the_standard_library() -> None:
    """Called by its path, a module has its own folder first on the path."""
    assert BEGINNINGS & sys.stdlib_module_names == set()
