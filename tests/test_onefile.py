"""The one-file build: the script and the package, joined."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from typing import Any, Callable, Dict

import pytest
from support import ROOT, slow_prompt

from comfyui_runner.errors import ExitStatus
from comfyui_runner.onefile import BuildError, Module, build, join, read_modules, sort_modules

BUILDER = os.path.join(ROOT, "comfyui_runner", "onefile.py")
SCRIPT_TEXT = """import os

setting = 1

# -- the folder beside this script ------
import sys

from comfyui_runner.a import one

def collect_defaults():
    from comfyui_runner.b import two

    return one() + two()
"""


def process(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8",
        timeout=60, check=False, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def one_file(tmp_path_factory: Any) -> str:
    """The one file, alone in a folder."""
    path = str(tmp_path_factory.mktemp("alone") / "runner.py")
    done = process(BUILDER, path)
    assert done.returncode == 0, done.stderr
    return path


def joined(**modules: str) -> Dict[str, Any]:
    """What running the joined SCRIPT_TEXT and ``modules`` leaves behind."""
    named = [Module("comfyui_runner." + name, source) for name, source in modules.items()]
    namespace: Dict[str, Any] = {"__file__": "runner.py"}
    exec(compile(join(SCRIPT_TEXT, named), "runner.py", "exec"), namespace)
    return namespace


# -- joining -----------------------------------------------------------------------------------------


def test_modules_come_after_those_that_they_need_and_lose_their_imports() -> None:
    made = joined(
        b="from comfyui_runner.a import one\n\ndef two():\n    return one() + 1\n",
        a="import math\n\nUNIT = 1\n\n\ndef one():\n    return int(math.sqrt(UNIT))\n",
    )
    assert made["collect_defaults"]() == 3


def test_a_text_keeps_its_blank_lines() -> None:
    made = joined(a='TEXT = """x\n\n\n\n  y  \n"""\n\n\ndef one():\n    return 1\n', b="def two():\n    return 1\n")
    assert made["TEXT"] == "x\n\n\n\n  y  \n"


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        ("def one(): return 1\n", "def one(): return 2\n", "Both comfyui_runner.a and comfyui_runner.b define one"),
        ("import copy\n", "def copy(): pass\n", "comfyui_runner.b defines copy"),
        ("import json as j\n", "", "import ... as j"),
        ("from comfyui_runner.b import two\n", "from comfyui_runner.a import one\n", "in a circle"),
    ],
)
def test_what_cannot_be_joined_is_refused(a: str, b: str, said: str) -> None:
    with pytest.raises(BuildError, match=re.escape(said)):
        join(SCRIPT_TEXT, [Module("comfyui_runner.a", a), Module("comfyui_runner.b", b)])


def test_a_script_without_the_line_that_is_replaced_is_refused() -> None:
    with pytest.raises(BuildError, match="has no line"):
        join("def collect_defaults(): pass\n", [])


def test_every_module_of_the_program_is_in_it_once_and_no_other() -> None:
    names = [module.name for module in sort_modules(read_modules())]
    assert len(names) == len(set(names)) > 25
    assert "comfyui_runner.extras.conversion" in names or "comfyui_runner.extras.export" in names
    assert not [name for name in names if "simulator" in name or "onefile" in name]


def test_what_cannot_be_written_is_an_error(tmp_path: Any) -> None:
    done = process(BUILDER, str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "") and "The file was not made" in done.stderr
    assert process(BUILDER).returncode == 2


# -- the file ----------------------------------------------------------------------------------------


def test_it_begins_as_the_script_does() -> None:
    text = build()
    with open(os.path.join(ROOT, "comfyui_workflow_runner.py"), encoding="utf-8") as file:
        script = file.read()
    settings_end = script.index("# -- the folder beside this script")
    assert text.startswith(script[:settings_end].rstrip())
    assert ast.get_docstring(ast.parse(text)) == ast.get_docstring(ast.parse(script))


@pytest.mark.parametrize("flags", [[], ["-I"], ["-P"]])
def test_it_runs_a_workflow_alone_in_its_folder(
    flags: list, one_file: str, simulator: Any, workflow_file: Callable[..., str], tmp_path: Any
) -> None:
    if flags == ["-P"] and sys.version_info < (3, 11):
        pytest.skip("-P is new in 3.11")
    command = [
        *flags,
        one_file,
        "--server",
        simulator.url,
        "--yes",
        "-o",
        str(tmp_path / "out"),
        workflow_file(slow_prompt()),
    ]
    done = process(*command, cwd=os.path.dirname(one_file))
    assert done.returncode == ExitStatus.OK, done.stderr
    assert os.listdir(tmp_path / "out") == ["slow_00001_.png"]


def test_it_says_that_the_demo_needs_the_project(one_file: str, workflow_file: Callable[..., str]) -> None:
    done = process(one_file, "--demo", "--yes", workflow_file(slow_prompt()), cwd=os.path.dirname(one_file))
    assert done.returncode == ExitStatus.USAGE
    assert "--demo needs" in done.stderr and "Get the whole project" in done.stderr


def test_it_shows_the_same_help(one_file: str) -> None:
    assert (
        process(one_file, "--help").stdout == process(os.path.join(ROOT, "comfyui_workflow_runner.py"), "--help").stdout
    )
