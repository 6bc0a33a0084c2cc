"""docs/SIMULATOR.md: its commands are run, its examples are executed, and its tables are those of the program."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
from typing import Any, Callable, Dict, List, Set, Tuple

import pytest
import requests
from support import ROOT, run

from comfyui_runner.simulator import Faults, Simulator
from comfyui_runner.simulator.command import make_parser, make_simulator, parse_fault
from comfyui_runner.simulator.nodes import NODE_CLASSES
from comfyui_runner.simulator.routes import ROUTES
from comfyui_runner.simulator.versions import SINCE

Make = Callable[..., Any]

with open(os.path.join(ROOT, "docs", "SIMULATOR.md"), encoding="utf-8") as file:
    TEXT = file.read()

COMMANDS = re.findall(r"(?m)^    (\S.*)$", re.sub(r"(?ms)^```.*?^```$", "", TEXT))
SIMULATOR_LINE = "python -m comfyui_runner.simulator "


def rows(heading: str) -> List[List[str]]:
    """The rows of the first table below a heading or a line that ends so, without its head."""
    _, found, rest = TEXT.partition(heading + "\n")
    assert found, heading
    table = re.search(r"(?m)^\|.*\|\n\|[-|]+\|\n((?:\|.*\|\n)+)", rest)
    assert table is not None
    return [line.strip("|").split(" | ") for line in table.group(1).splitlines()]


def names_in(cells: List[str]) -> List[str]:
    """What stands in backquotes in some cells, in their order."""
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def started(line: str) -> Simulator:
    """The server that a line of the document starts, on a free port of this machine."""
    options = make_parser().parse_args(shlex.split(line)[3:])
    options.port = 0
    return make_simulator(options)


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl")
def test_the_commands_do_what_the_document_says(tmp_path: Any, monkeypatch: Any) -> None:
    first, *others = COMMANDS
    monkeypatch.chdir(ROOT)
    with started(first) as server:
        server.step_seconds = 0.0
        asked = 0
        for line in others:
            line = line.replace("http://127.0.0.1:8188", server.url)
            words = [str(tmp_path) if word == "results" else word for word in shlex.split(line)]
            if words[0] == "curl":
                answer = subprocess.run(words, capture_output=True, timeout=30, check=True)
                assert json.loads(answer.stdout)
                asked += 1
            elif words[1] == "comfyui_workflow_runner.py":
                assert run(*words[2:]).status == 0
                assert b"ComfyUI simulator" in next(tmp_path.glob("*.png")).read_bytes()
                asked += 1
        assert asked == 3


def test_every_way_to_start_it_starts_it() -> None:
    lines = [line for line in COMMANDS if line.startswith(SIMULATOR_LINE)]
    assert len(lines) > 3
    for line in lines:
        with started(line) as server:
            headers = {"Authorization": f"Bearer {server.token}"}
            stats = requests.get(server.url + "/system_stats", headers=headers, timeout=5).json()
            assert stats["system"]["comfyui_version"] == server.version
            assert stats["devices"][0]["name"] == "simulated (no GPU)"
            if server.token:
                assert requests.get(server.url + "/system_stats", timeout=5).status_code == 401


def test_the_example_of_a_test_passes_and_can_fail() -> None:
    (example,) = re.findall(r"(?ms)^```python\n(.*?)^```$", TEXT)
    names: Dict[str, Any] = {}
    exec(compile(example, "SIMULATOR.md", "exec"), names)
    tests = [name for name in names if name.startswith("test_")]
    assert len(tests) == 1
    names[tests[0]]()

    def submit_again(url: str, prompt_id: str) -> None:
        for _ in range(2):
            try:
                requests.post(url + "/prompt", json={"prompt": names["PROMPT"]}, timeout=5)
            except requests.ConnectionError:
                continue

    names["submit"] = submit_again
    with pytest.raises(AssertionError):
        names[tests[0]]()


def test_the_flags_and_their_defaults_are_those_of_the_command() -> None:
    options = make_parser().parse_args([])
    documented = {names_in(row[:1])[0]: row[1].strip(" `") for row in rows("-o results")}
    names = {f"--{name.replace('_', '-')}": value for name, value in vars(options).items()}
    assert set(documented) == set(names)
    for name, value in names.items():
        if value:
            assert documented[name] == str(value), name


def test_the_names_for_tests_are_those_of_the_class() -> None:
    with Simulator() as server:
        for name in names_in([row[0] for row in rows("disturb it:")]):
            assert hasattr(server, re.sub(r"\(.*\)", "", name)), name
    (arguments,) = re.findall(r"`Simulator` takes (.*?), a function", TEXT, re.S)
    assert set(names_in([arguments])) == set(Simulator.__init__.__kwdefaults__ or {})


def test_the_routes_are_those_of_the_program() -> None:
    documented = names_in([row[0] for row in rows("the routes of the jobs work only with it.")])
    known: Set[Tuple[str, str]] = set()
    for name in documented:
        method, path = name.split()
        known |= {
            (route.method, route.pattern)
            for route in ROUTES
            if route.method == method and re.fullmatch(route.pattern, path)
        }
        assert any(re.fullmatch(route.pattern, path) for route in ROUTES if route.method == method), name
    assert known == {(route.method, route.pattern) for route in ROUTES}


def test_the_classes_are_those_of_the_program() -> None:
    table = rows("These node classes exist. `/object_info` lists their inputs.")
    documented = {name: "(test)" in row[0] for row in table for name in names_in(row[:1])}
    assert documented == {node.name: node.category == "test" for node in NODE_CLASSES}


def test_the_versions_are_those_of_the_program() -> None:
    table = rows("## Versions")
    documented = {names_in([row[1]])[0]: tuple(map(int, row[0].strip().split("."))) for row in table}
    assert documented == SINCE


def test_the_faults_are_those_of_the_program_and_their_examples_are_taken() -> None:
    table = rows("## Faults")
    documented = {names_in(row[:1])[0]: names_in([row[1]])[0] for row in table}
    assert list(documented) == [field.name for field in dataclasses.fields(Faults)]
    for name, example in documented.items():
        _, value = parse_fault(f"{name}={example}")
        assert value != getattr(Faults(), name)
