"""JSON whose depth must not end the program."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from typing import Dict, List

import pytest
from support import ROOT

from comfyui_runner.json_text import DEEPEST_JSON, parse_json


def nested(depth: int) -> str:
    """A document of ``depth`` levels: arrays and objects in turn."""
    opening = "".join('{"a":' if level % 2 else "[" for level in range(depth))
    closing = "".join("}" if level % 2 else "]" for level in reversed(range(depth)))
    return opening + "1" + closing


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32"])
def test_text_and_bytes_are_read(encoding: str) -> None:
    assert parse_json('["ü", {"a": null}]'.encode(encoding)) == parse_json('["ü", {"a": null}]') == ["ü", {"a": None}]


def test_documents_may_nest_a_hundred_levels() -> None:
    assert parse_json(nested(DEEPEST_JSON)) == json.loads(nested(DEEPEST_JSON))
    flat: List[List[int]] = [[] for _ in range(2 * DEEPEST_JSON)]
    assert parse_json(json.dumps(flat)) == flat
    assert parse_json(json.dumps("[" * 1000)) == "[" * 1000


@pytest.mark.parametrize("text", [nested(DEEPEST_JSON + 1), nested(DEEPEST_JSON + 2), nested(100_000), "[" * 100_000])
def test_deeper_ones_are_refused(text: str) -> None:
    for spelling in (text, text.encode()):
        with pytest.raises(ValueError, match=r"^arrays and objects nest deeper than 100 levels$"):
            parse_json(spelling)


def test_a_fault_keeps_its_place() -> None:
    for text in ('{"a":\n x}', "[" + "[]," * 200 + "\nx]"):
        with pytest.raises(json.JSONDecodeError) as caught:
            parse_json(text)
        assert caught.value.lineno == 2
    with pytest.raises(UnicodeDecodeError):
        parse_json(b'"\xff"')


@pytest.mark.parametrize("is_enabled", [True, False])
def test_the_garbage_collector_waits_while_deep_text_is_read(is_enabled: bool) -> None:
    text = json.dumps([[]] * 10_000)
    collections: List[str] = []

    def record(phase: str, info: Dict[str, int]) -> None:
        collections.append(phase)

    (gc.enable if is_enabled else gc.disable)()
    try:
        gc.callbacks.append(record)
        value = parse_json(text)
        seen = list(collections)
        assert gc.isenabled() == is_enabled
    finally:
        gc.callbacks.remove(record)
        gc.enable()
    assert len(value) == 10_000
    assert len(seen) <= 2  # the one that was due when it may go on: its start and its stop


#: Garbage whose finalizer needs many frames, as those of asyncio do where a warning is shown.
GARBAGE = """
class Garbage:
    def __init__(self):
        self.itself = self
    def __del__(self):
        def go_deeper(levels):
            if levels:
                try: go_deeper(levels - 1)
                except RecursionError: go_deeper(levels - 1)
        try: go_deeper(500)
        except RecursionError: pass
for _ in range(200):
    for _ in range(3):
        Garbage()
    try: parse_json("[" * 100_000)
    except ValueError: pass
print("alive")
"""


def test_finalizers_at_the_end_of_the_stack_do_not_abort_python() -> None:
    # This ended Python 3.8 with "Cannot recover from stack overflow".
    program = "from comfyui_runner.json_text import parse_json\n" + GARBAGE
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env={**os.environ, "PYTHONPATH": ROOT},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
