"""The one-file build: the script and the package, joined."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from typing import Any, Callable, Dict, List

import pytest
from support import ROOT, slow_prompt

from comfyui_runner.errors import ExitStatus
from comfyui_runner.onefile import (
    RESOURCES,
    SCRIPT,
    BuildError,
    Module,
    join,
    make_resources_module,
    read_modules,
    read_text,
    sort_modules,
)
from comfyui_runner.resources import read_resource

BUILDER = os.path.join(ROOT, "comfyui_runner", "onefile.py")
SCRIPT_TEXT = '''"""Runs.

This is the script that you read, edit and run.
"""

from __future__ import annotations

import os

setting = 1

# -- the folder beside this script ------
import sys

from comfyui_runner.a import one

def collect_defaults():
    from comfyui_runner.b import two

    return one() + two()

if __name__ == "__main__" and called:
    # answers --help at once
    started = "early"

if __name__ == "__main__":
    started = "late"
'''


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
    namespace: Dict[str, Any] = {"__file__": "runner.py", "__name__": "__main__"}
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


def test_an_import_inside_a_function_goes_with_the_comment_that_explains_it() -> None:
    lazy = """def two():
    # Starting takes longer with it.
    from comfyui_runner.a import one

    return one()
"""
    text = join(SCRIPT_TEXT, [Module("comfyui_runner.a", "def one(): return 1\n"), Module("comfyui_runner.b", lazy)])
    assert "def two():\n    return one()\n" in text


def test_imports_of_others_are_gathered_at_the_top() -> None:
    text = join(
        SCRIPT_TEXT,
        [
            Module("comfyui_runner.a", "import zlib\nfrom typing import List\n"),
            Module("comfyui_runner.b", "import ast\nfrom typing import Dict\n"),
        ],
    )
    top, _, rest = text.partition("setting = 1")
    assert "\n\nimport ast\nimport os\nimport zlib\nfrom typing import Dict, List\n\n" in top
    assert "import" not in rest


def test_the_extras_and_the_files_come_last() -> None:
    text = join(
        SCRIPT_TEXT,
        [
            Module("comfyui_runner.resources", "FILES = 1\n"),
            Module("comfyui_runner.extras.a", "ONE = 1\n"),
            Module("comfyui_runner.z", "TWO = 2\n"),
            Module("comfyui_runner.y", "from comfyui_runner.z import TWO\n\nTHREE = TWO + 1\n"),
        ],
    )
    assert re.findall("(?m)^[A-Z]+ = ", text)[1:] == ["TWO = ", "THREE = ", "ONE = ", "FILES = "]


def test_what_runs_when_the_file_is_called_comes_last_and_once() -> None:
    made = joined(a="def one(): return 1\n", b="def two(): return 1\n")
    assert made["started"] == "late"


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ("def one(): return 1\n", "def one(): return 2\n", "Both comfyui_runner.a and comfyui_runner.b define one"),
        ("_LIMIT = 1\n", "for _LIMIT in (): pass\n", "Both comfyui_runner.a and comfyui_runner.b define _LIMIT"),
        ("def collect_defaults(): pass\n", "", "Both the script and comfyui_runner.a define collect_defaults"),
        ("import copy\n", "def copy(): pass\n", "comfyui_runner.b defines copy"),
        ("def open(): pass\n", "", "comfyui_runner.a defines open, which is a built-in"),
        ("import json as j\n", "", "comfyui_runner.a, line 1: import ... as j"),
        ("def one():\n    from comfyui_runner.b import two as three\n", "", "line 2: import ... as three"),
        ("def one():\n    import comfyui_runner.b\n", "", "line 2: import comfyui_runner.b: import names from it"),
        ("from comfyui_runner.b import two\n", "from comfyui_runner.a import one\n", "in a circle"),
        ("def one():\n    from comfyui_runner.b import two\n", "def two(): pass\n", "is not valid Python"),
    ],
)
def test_what_cannot_be_joined_is_refused(a: str, b: str, message: str) -> None:
    with pytest.raises(BuildError, match=re.escape(message)):
        join(SCRIPT_TEXT, [Module("comfyui_runner.a", a), Module("comfyui_runner.b", b)])


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("def collect_defaults(): pass\n", "has no line"),
        (SCRIPT_TEXT.replace("This is the script", "Here is the script"), "docstring does not say"),
    ],
)
def test_a_script_without_the_words_that_are_replaced_is_refused(script: str, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        join(script, [])


@pytest.mark.parametrize("text", ['a """ b', "a\\", 'a"'])
def test_a_file_that_cannot_be_a_raw_text_is_refused(text: str) -> None:
    with pytest.raises(BuildError, match=r"page.html cannot become a raw Python text"):
        make_resources_module({"page.html": text})


def test_every_module_of_the_program_is_in_it_once_and_no_other() -> None:
    names = [module.name for module in sort_modules(read_modules())]
    assert len(names) == len(set(names)) > 25
    assert "comfyui_runner.extras.conversion" in names or "comfyui_runner.extras.export" in names
    assert not [name for name in names if "simulator" in name or "onefile" in name]


@pytest.mark.long
def test_what_cannot_be_written_is_an_error(tmp_path: Any) -> None:
    done = process(BUILDER, str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "") and "The file was not made" in done.stderr
    assert process(BUILDER).returncode == 2


@pytest.mark.long
def test_a_path_with_letters_that_the_pipe_lacks_is_written_to(tmp_path: Any) -> None:
    command = [sys.executable, BUILDER, str(tmp_path / "狐.py")]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(command, capture_output=True, env=environment, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"") and b"?.py" in done.stdout
    assert (tmp_path / "狐.py").exists()


def test_the_script_is_not_overwritten_with_the_one_file() -> None:
    before = read_text(SCRIPT)
    done = process(BUILDER, SCRIPT)
    assert (done.returncode, done.stdout) == (1, "") and "FILE is the script itself" in done.stderr
    assert read_text(SCRIPT) == before


# -- the file ----------------------------------------------------------------------------------------


def test_it_begins_as_the_script_does_with_the_dependencies_the_settings_and_the_story(one_file: str) -> None:
    text, script = read_text(one_file), read_text(SCRIPT)
    before_the_note = script[: script.index("This is the script that you read")]
    settings = script[script.index("\n# -- settings") : script.index("\n# -- the folder beside this script")]
    assert text.startswith(before_the_note)
    assert settings in text
    assert text.index("async def single_shot(") < text.index("class Session")
    assert len((ast.get_docstring(ast.parse(text)) or "").splitlines()) > 10


def test_its_files_are_those_that_the_program_serves() -> None:
    namespace: Dict[str, Any] = {}
    texts = {name: read_resource(name) for name in RESOURCES}
    exec(make_resources_module(texts).source, namespace)
    assert {name: namespace["read_resource"](name) for name in RESOURCES} == texts


@pytest.mark.parametrize("flags", [[], ["-I"]])
def test_it_runs_a_workflow_alone_in_its_folder(
    flags: List[str], one_file: str, simulator: Any, workflow_file: Callable[..., str], tmp_path: Any
) -> None:
    out = str(tmp_path / "out")
    command = [*flags, one_file, "--server", simulator.url, "--yes", "-o", out, workflow_file(slow_prompt())]
    done = process(*command, cwd=os.path.dirname(one_file))
    assert done.returncode == ExitStatus.OK, done.stderr
    assert os.listdir(tmp_path / "out") == ["slow_00001_.png"]


def test_it_says_that_the_demo_needs_the_project(one_file: str, workflow_file: Callable[..., str]) -> None:
    done = process(one_file, "--demo", "--yes", workflow_file(slow_prompt()), cwd=os.path.dirname(one_file))
    assert done.returncode == ExitStatus.USAGE
    assert "--demo needs" in done.stderr and "Get the whole project" in done.stderr


def test_it_shows_the_same_help_under_its_own_name(one_file: str) -> None:
    whole, ours = process(SCRIPT, "--help").stdout, process(one_file, "--help").stdout
    assert ours.startswith("usage: runner.py [WORKFLOW ...]")
    assert ours == whole.replace(os.path.basename(SCRIPT), "runner.py")
