"""What a call gets from outside: arguments, streams and variables, of the process or given."""

from __future__ import annotations

import io
import os
import sys
from typing import Any, Dict

import pytest
from support import FAST

from comfyui_runner.environment import (
    Environment,
    NullStream,
    names_encoding,
    prepare_output,
    replace_missing_streams,
)
from comfyui_runner.limits import DEFAULT_LIMITS


def test_what_is_left_out_is_that_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = [io.StringIO() for _ in range(3)]
    for name, stream in zip(("stdin", "stdout", "stderr"), streams):
        monkeypatch.setattr(sys, name, stream)
    monkeypatch.setattr(sys, "argv", ["program", "--yes"])
    environment = Environment()
    assert environment.arguments == ["--yes"]
    assert [environment.stdin, environment.stdout, environment.stderr] == streams
    assert environment.variables is os.environ
    assert environment.limits is DEFAULT_LIMITS and environment.ends_process is False


def test_what_is_given_takes_the_place_of_that() -> None:
    streams = [io.StringIO() for _ in range(3)]
    variables: Dict[str, str] = {}
    environment = Environment(
        [],
        stdin=streams[0],
        stdout=streams[1],
        stderr=streams[2],
        variables=variables,
        limits=FAST,
        ends_process=True,
    )
    assert environment.arguments == []
    assert [environment.stdin, environment.stdout, environment.stderr] == streams
    assert environment.variables is variables
    assert environment.limits is FAST and environment.ends_process is True


def test_null_devices_take_the_places_of_missing_streams_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    replace_missing_streams()
    new = [sys.stdin, sys.stdout, sys.stderr]
    try:
        numbers = [stream.fileno() for stream in new]
        assert numbers == sorted(numbers)  # the lowest free number is given first
        assert not any(stream.isatty() for stream in new)
        assert sys.stdin.read() == ""
        for stream in new[1:]:
            stream.write("狐")
            stream.flush()
        replace_missing_streams()
        assert [sys.stdin, sys.stdout, sys.stderr] == new  # those that are there stay
    finally:
        for stream in new:
            stream.close()


def test_a_null_device_says_that_it_is_no_terminal() -> None:
    with NullStream("wb") as stream:
        assert stream.isatty() is False and stream.encoding == "utf-8"


@pytest.mark.parametrize(
    ("value", "names"), [("", False), (":replace", False), ("latin-1", True), ("latin-1:replace", True)]
)
def test_a_variable_may_name_an_encoding_or_only_what_errors_become(value: str, names: bool) -> None:
    assert names_encoding(value) is names


class Console(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream_class", "variables", "written"),
    [
        (io.TextIOWrapper, {}, "é狐\n".encode()),
        (io.TextIOWrapper, {"PYTHONIOENCODING": ":strict"}, "é狐\n".encode()),
        (io.TextIOWrapper, {"PYTHONIOENCODING": "latin-1"}, b"\xe9?\n"),
        (Console, {}, b"\xe9?\r\n"),  # its lines end as it wants them
    ],
)
def test_every_text_can_be_written(stream_class: Any, variables: Dict[str, str], written: bytes) -> None:
    data = io.BytesIO()
    stream = stream_class(data, encoding="latin-1", newline="\r\n")
    prepare_output(stream, variables)
    stream.write("é狐\n")
    stream.flush()
    assert data.getvalue() == written


def test_a_stand_in_for_a_stream_is_taken_as_it_is() -> None:
    prepare_output(io.StringIO(), {})
