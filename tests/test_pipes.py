"""Text through pipes: what a Windows of any code page writes and reads there, played on any system."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from typing import Any, Callable, Dict, List

import pytest
from support import SCRIPT, Terminal, call, node

from comfyui_runner.environment import Environment, names_encoding
from comfyui_runner.errors import ExitStatus

Make = Callable[..., Any]

#: Western Europe's, DOS' and China's code pages, and UTF-8.
CODE_PAGES = ["cp1252", "cp437", "cp936", "utf-8"]

#: No code page has all of it.
TEXT = "é 狐 ß ✓ 😀"

PROMPT = {
    "1": node("SlowProgress", TEXT, steps=1, seconds=0.0, seed=7, preview=False),
    "2": node("SaveImage", "Save Image", filename_prefix="pic", images=["1", 0]),
    "3": node("TextOut", "Words", text=TEXT),
}


def pipe(encoding: str) -> io.TextIOWrapper:
    """A pipe to write to, as Python opens it on a Windows whose code page is ``encoding``."""
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\r\n")


def filled_pipe(encoding: str, data: bytes) -> io.TextIOWrapper:
    """A pipe to read from: the standard input of a program."""
    return io.TextIOWrapper(io.BufferedReader(io.BytesIO(data)), encoding=encoding)


def written(stream: io.TextIOWrapper) -> bytes:
    stream.flush()
    data: bytes = stream.buffer.getvalue()  # type: ignore[attr-defined]
    return data


def in_process(simulator: Any, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[bytes]":
    """The program as a process of its own, with environment variables, between pipes."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONASYNCIODEBUG"}
    command = [sys.executable, SCRIPT, "--server", simulator.url, *arguments]
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={**environment, **variables},
        timeout=100,
        check=False,
    )


def texts_that_ran(simulator: Any) -> List[str]:
    import requests

    history = requests.get(simulator.url + "/history", timeout=10).json()
    return [entry["prompt"][2]["3"]["inputs"]["text"] for entry in history.values()]


# -- what is written -------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", CODE_PAGES)
def test_paths_and_lines_are_utf_8(encoding: str, simulator: Any, workflow_file: Make, tmp_path: Any) -> None:
    folder = str(tmp_path / TEXT)
    for flags in (["--quiet"], []):
        out, err = pipe(encoding), pipe(encoding)
        arguments = ["--server", simulator.url, "--yes", *flags, "-o", folder, workflow_file(PROMPT)]
        assert call(arguments, io.StringIO(), out, err) == ExitStatus.OK
        text = written(out).decode("utf-8")
        saved = [line for line in text.splitlines() if folder in line]
        assert saved and "?" not in text.replace("[y/N]", ""), text
        if flags:
            assert os.path.isfile(text.splitlines()[0])
        else:
            assert TEXT in text


@pytest.mark.parametrize("encoding", CODE_PAGES)
def test_errors_are_utf_8(encoding: str) -> None:
    out, err = pipe(encoding), pipe(encoding)
    assert call([TEXT + ".json", "--yes"], io.StringIO(), out, err) == ExitStatus.BAD_WORKFLOW
    assert TEXT + ".json does not exist" in written(err).decode("utf-8")


@pytest.mark.parametrize(
    ("variables", "encoding"),
    [
        ({"PYTHONIOENCODING": "cp936"}, "cp936"),
        ({"PYTHONIOENCODING": "cp1252:backslashreplace"}, "cp1252"),
        ({"PYTHONIOENCODING": ":strict"}, "utf-8"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "utf-8"),
    ],
)
def test_a_process_writes_utf_8_unless_another_encoding_is_chosen(
    variables: Dict[str, str], encoding: str, simulator: Any, workflow_file: Make
) -> None:
    done = in_process(simulator, "--yes", workflow_file(PROMPT), **variables)
    assert done.returncode == 0, done.stderr
    assert TEXT.encode(encoding, "replace") in done.stdout


def test_a_console_keeps_its_encoding() -> None:
    class Console(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    out, err = Console(io.BytesIO(), encoding="cp437", newline="\r\n"), pipe("cp437")
    Environment([], stdout=out, stderr=err, variables={})
    assert (out.encoding, out.errors) == ("cp437", "replace")
    assert (err.encoding, err.errors) == ("utf-8", "replace")
    for stream in (out, err):
        stream.write("one\n")
    assert (written(out), written(err)) == (b"one\r\n", b"one\n")


@pytest.mark.parametrize("variables", [{}, {"PYTHONIOENCODING": "cp1252"}], ids=["utf-8", "chosen"])
def test_lines_in_pipes_end_with_lf(variables: Dict[str, str], simulator: Any, workflow_file: Make) -> None:
    """Or `$(...)` in Git Bash would take a CR with each path."""
    for flags in (["--quiet"], ["--json"], []):
        out, err = pipe("cp1252"), pipe("cp1252")
        arguments = ["--server", simulator.url, "--yes", *flags, workflow_file(PROMPT)]
        assert call(arguments, io.StringIO(), out, err, variables) == ExitStatus.OK
        data = written(out) + written(err)
        assert data.endswith(b"\n") and b"\r" not in data


def test_an_encoding_is_chosen_by_its_name() -> None:
    assert names_encoding("cp936") and names_encoding("utf-8:strict")
    assert not names_encoding("") and not names_encoding(":strict")


@pytest.mark.parametrize("encoding", CODE_PAGES)
def test_an_exported_prompt_comes_whole_through_any_pipe(encoding: str, workflow_file: Make) -> None:
    """Also where PYTHONIOENCODING chooses a code page."""
    for variables in ({}, {"PYTHONIOENCODING": encoding}):
        out = pipe(encoding)
        arguments = [workflow_file(PROMPT), "--export-api", "-"]
        assert call(arguments, io.StringIO(), out, pipe(encoding), variables) == ExitStatus.OK
        data = written(out)
        assert data.isascii() and json.loads(data) == PROMPT


# -- what is read ----------------------------------------------------------------------------------


@pytest.mark.parametrize("code_page", CODE_PAGES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("kind", ["csv", "json"])
def test_rows_from_a_pipe_are_read_by_their_mark(
    kind: str, encoding: str, code_page: str, simulator: Any, workflow_file: Make
) -> None:
    rows = f"3.text\r\n{TEXT}\r\ntwo\r\n"
    if kind == "json":
        rows = "".join(json.dumps({"3.text": text}, ensure_ascii=False) + "\n" for text in (TEXT, "two"))
    stdin = filled_pipe(code_page, rows.encode(encoding))
    arguments = [workflow_file(PROMPT), "--server", simulator.url, "--yes", "--batch", "-", "--in-flight", "1"]
    err = io.StringIO()
    assert call(arguments, stdin, io.StringIO(), err) == ExitStatus.OK, err.getvalue()
    assert texts_that_ran(simulator) == [TEXT, "two"]
    assert not stdin.closed  # it is the caller's


@pytest.mark.parametrize("code_page", CODE_PAGES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_workflow_from_a_pipe_is_read_by_its_mark(encoding: str, code_page: str, simulator: Any) -> None:
    data = json.dumps(PROMPT, ensure_ascii=False).encode(encoding)
    err = io.StringIO()
    arguments = ["-", "--server", simulator.url, "--yes"]
    assert call(arguments, filled_pipe(code_page, data), io.StringIO(), err) == ExitStatus.OK, err.getvalue()
    assert texts_that_ran(simulator) == [TEXT]


def test_rows_in_a_code_page_are_refused_with_what_to_save_them_as(simulator: Any, workflow_file: Make) -> None:
    arguments = [workflow_file(PROMPT), "--server", simulator.url, "--yes", "--batch", "-"]
    err = io.StringIO()
    rows = "3.text\nun café où\n".encode("cp1252")
    assert call(arguments, filled_pipe("cp1252", rows), io.StringIO(), err) == ExitStatus.USAGE
    assert "--batch - cannot be read: it is in Windows-1252, not in UTF-8." in err.getvalue()
    assert "save as CSV UTF-8" in err.getvalue()
    assert texts_that_ran(simulator) == []


def test_a_spreadsheet_may_save_as_unicode_text(simulator: Any, workflow_file: Make, tmp_path: Any) -> None:
    """UTF-16 with its mark, and tabs between the cells."""
    rows = tmp_path / "rows.txt"
    rows.write_bytes(f"3.text\t1.seed\r\n{TEXT}\t5\r\n".encode("utf-16"))
    arguments = [workflow_file(PROMPT), "--server", simulator.url, "--yes", "--batch", str(rows)]
    err = io.StringIO()
    assert call(arguments, io.StringIO(), io.StringIO(), err) == ExitStatus.OK, err.getvalue()
    assert texts_that_ran(simulator) == [TEXT]


def test_rows_that_are_typed_at_a_console_are_read_as_text(simulator: Any, workflow_file: Make) -> None:
    """A console has no bytes, and the question has read ahead of them."""
    arguments = [workflow_file(PROMPT), "--server", simulator.url, "--batch", "-"]
    typed = Terminal(f"y\n3.text\n{TEXT}\n")
    assert call(arguments, typed, io.StringIO(), io.StringIO()) == ExitStatus.OK
    assert texts_that_ran(simulator) == [TEXT]


def test_a_row_with_a_comma_in_its_number_is_offered_a_point(
    simulator: Any, workflow_file: Make, tmp_path: Any
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("1.seconds;3.text\n0,5;a\n", encoding="utf-8")
    arguments = [workflow_file(PROMPT), "--server", simulator.url, "--yes"]
    out, err = io.StringIO(), io.StringIO()
    assert call([*arguments, "--batch", str(rows)], io.StringIO(), out, err) == ExitStatus.FAILED
    assert "Write it with a decimal point: 0.5" in out.getvalue() + err.getvalue()
