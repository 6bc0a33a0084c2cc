"""Lines end with LF: in a clone on Windows, in the page that is served, and in what is written."""

from __future__ import annotations

import ast
import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
from typing import Any, Iterator, List

import pytest
from support import ROOT, copy_with_crlf

from comfyui_runner.page import PAGE_FILES

PICTURES = (".gif", ".png")

#: What opens a text file, if its mode says so.
OPENERS = ("open", "fdopen", "NamedTemporaryFile", "TemporaryFile", "SpooledTemporaryFile")

#: In a copy of the project: what the service serves as its page, and the policy that it sends with it.
SERVED = """
import sys
from comfyui_runner.messages import security_headers
from comfyui_runner.page import read_page
page = read_page()
sys.stdout.buffer.write(dict(security_headers(page))["Content-Security-Policy"].encode() + bytes([0]) + page)
"""


@pytest.fixture
def checkout(tmp_path: Any) -> str:
    """The files as git writes them on Windows, where its installer sets core.autocrlf."""
    if shutil.which("git") is None or not os.path.exists(os.path.join(ROOT, ".git")):
        pytest.skip("This folder is not a clone.")
    folder = str(tmp_path / "clone")
    command = ["git", "-c", "core.autocrlf=true", "checkout-index", "--all", f"--prefix={folder}/"]
    subprocess.run(command, cwd=ROOT, check=True)
    return folder


def test_a_clone_on_windows_has_no_crlf(checkout: str) -> None:
    count = 0
    for parent, _, names in os.walk(checkout):
        for name in names:
            path = os.path.join(parent, name)
            with open(path, "rb") as file:
                data = file.read()
            if name.endswith(PICTURES):
                with open(os.path.join(ROOT, os.path.relpath(path, checkout)), "rb") as file:
                    assert data == file.read(), path
            else:
                assert b"\r\n" not in data, path
            count += 1
    assert count > 200


def hashes_by_a_browser(page: bytes) -> List[str]:
    """What a browser compares with the policy: it hashes the text of a script, whose lines end with LF by then."""
    text = page.decode().replace("\r\n", "\n").replace("\r", "\n")
    scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
    return [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]


@pytest.mark.script_and_folder
def test_the_policy_lets_the_scripts_of_a_page_with_crlf_run(tmp_path: Any) -> None:
    """In a clone that was made before git was told to write LF."""
    copy_with_crlf(tmp_path)
    for name in PAGE_FILES:
        assert b"\r\n" in (tmp_path / "comfyui_runner" / "extras" / name).read_bytes()
    served = subprocess.run([sys.executable, "-c", SERVED], cwd=str(tmp_path), stdout=subprocess.PIPE, check=True)
    policy, _, page = served.stdout.partition(b"\0")
    allowed = re.findall(r"'sha256-([^']+)'", policy.decode())
    assert allowed == hashes_by_a_browser(page)
    assert allowed


@pytest.mark.long
@pytest.mark.script_and_folder
def test_the_one_file_is_the_same_from_a_project_with_crlf(tmp_path: Any) -> None:
    copy_with_crlf(tmp_path)
    texts = []
    for folder in (ROOT, str(tmp_path)):
        target = str(tmp_path / "runner.py")
        builder = os.path.join(folder, "comfyui_runner", "onefile.py")
        subprocess.run([sys.executable, builder, target], stdout=subprocess.DEVNULL, check=True)
        with open(target, "rb") as file:
            texts.append(file.read())
    assert texts[0] == texts[1]
    assert b"\r" not in texts[0]


def text_files_written(path: str) -> Iterator[ast.Call]:
    """The calls in a module that open a text file to write."""
    with open(path, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for call in calls:
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        values = [*call.args, *(word.value for word in call.keywords if word.arg == "mode")]
        texts = [str(value.value) for value in values if isinstance(value, ast.Constant)]
        is_opened = name in OPENERS and any(re.fullmatch(r"[rwaxt+]*[wax+][rwaxt+]*", text) for text in texts)
        if is_opened or name == "write_text":
            yield call


def programs() -> Iterator[str]:
    """The program, and the tools that write files of the project."""
    yield os.path.join(ROOT, "comfyui_workflow_runner.py")
    yield os.path.join(ROOT, "tests", "run.py")
    for folder in ("comfyui_runner", "docs"):
        for parent, _, names in os.walk(os.path.join(ROOT, folder)):
            yield from (os.path.join(parent, name) for name in names if name.endswith(".py"))


def test_whatever_writes_a_text_file_says_how_its_lines_end() -> None:
    """Windows would write CRLF."""
    calls = [(path, call) for path in programs() for call in text_files_written(path)]
    assert len(calls) > 5
    for path, call in calls:
        assert any(word.arg == "newline" for word in call.keywords), f"{path}, line {call.lineno}"
