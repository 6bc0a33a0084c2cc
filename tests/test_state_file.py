"""The state file: a real database in a real folder."""

from __future__ import annotations

import datetime
import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any, List

import pytest
from support import ROOT

from comfyui_runner.state import Phase
from comfyui_runner.state_file import (
    ForeignFile,
    StateFile,
    StateFileError,
    open_state_file,
    set_aside,
)
from comfyui_runner.stored_state import MOST_BYTES_OF_PROMPT, StoredRun

NAME = "flow.runs.sqlite3"


def make_run(number: int, phase: Phase = Phase.QUEUED, **more: Any) -> StoredRun:
    return StoredRun(number, f"id-{number}", 5.0, phase, '{"outputs": []}', b"packed")._replace(**more)


def fill(file: StateFile, count: int, kept: int = 100) -> None:
    """Adds runs that have ended."""
    for number in range(1, count + 1):
        file.add(make_run(number), kept)
        file.end(make_run(number, Phase.SUCCESS))


def numbers(runs: List[StoredRun]) -> List[int]:
    return [run.number for run in runs]


def test_runs_come_back_from_the_file(tmp_path: Path) -> None:
    path = str(tmp_path / NAME)
    file = open_state_file(path)
    assert (file.last_number(), file.open_runs(), file.held()) == (0, [], {})
    fill(file, 3)
    file.add(make_run(4), 100)
    file.change("id-4", Phase.RUNNING, is_cancelled=True)
    file.hold({"about": b"1", "prompt": b"2"})
    file.hold({"about": b"", "prompt": b"3"})
    file.close()

    file = open_state_file(path)
    assert (file.last_number(), file.held()) == (4, {"prompt": b"3"})
    assert file.open_runs() == [make_run(4, Phase.RUNNING, is_cancelled=True)]
    assert file.get("id-2") == make_run(2, Phase.SUCCESS, prompt=b"") and file.get("id-9") is None
    assert numbers(file.page(2, None)) == [4, 3] and numbers(file.page(9, 3)) == [2, 1]
    file.close()


def test_the_oldest_that_have_ended_make_room(tmp_path: Path) -> None:
    file = open_state_file(str(tmp_path / NAME))
    file.add(make_run(1), 3)
    for number in range(2, 8):
        file.add(make_run(number), 3)
        file.end(make_run(number, Phase.ERROR))
    assert numbers(file.page(99, None)) == [7, 6, 5, 1]
    file.close()


def test_a_run_whose_end_is_not_known_stays_open(tmp_path: Path) -> None:
    file = open_state_file(str(tmp_path / NAME))
    file.add(make_run(1, Phase.SUBMITTING), 3)
    file.end(make_run(1, Phase.SUBMITTING))
    assert numbers(file.open_runs()) == [1]
    file.end(make_run(1, Phase.SUCCESS))
    file.change("id-1", Phase.RUNNING, is_cancelled=False)  # it comes too late
    assert file.open_runs() == [] and file.page(1, None)[0].phase is Phase.SUCCESS
    file.close()


def test_a_large_prompt_goes_when_its_run_has_ended(tmp_path: Path) -> None:
    path = str(tmp_path / NAME)
    file = open_state_file(path)
    for number, size in [(1, MOST_BYTES_OF_PROMPT), (2, MOST_BYTES_OF_PROMPT + 1)]:
        file.add(make_run(number, prompt=bytes(size)), 9)
        file.end(make_run(number, Phase.SUCCESS))
    file.close()
    with sqlite3.connect(path) as connection:
        sizes = connection.execute("SELECT length(prompt) FROM runs ORDER BY number").fetchall()
    connection.close()
    assert sizes == [(MOST_BYTES_OF_PROMPT,), (0,)]


def test_the_spool_of_another_process_is_gone(tmp_path: Path) -> None:
    path = str(tmp_path / NAME)
    file = open_state_file(path)
    file.add(make_run(1), 9)
    file.end(make_run(1, Phase.SUCCESS, spooled={2: "7"}))
    assert file.page(1, None)[0].spooled == {2: "7"}
    file.close()
    file = open_state_file(path)
    assert file.page(1, None)[0].spooled == {}
    file.close()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / NAME
    file = open_state_file(str(path))
    fill(file, 1)
    modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in tmp_path.iterdir()}
    assert modes == {NAME: 0o600, NAME + "-wal": 0o600}
    file.close()
    assert [each.name for each in tmp_path.iterdir()] == [NAME]


def test_one_process_has_it(tmp_path: Path) -> None:
    path = str(tmp_path / NAME)
    file = open_state_file(path)
    with pytest.raises(StateFileError) as caught:
        open_state_file(path)
    assert caught.value.in_use and not caught.value.damaged
    file.close()
    open_state_file(path).close()


#: Adds runs until it is killed, and says when each is there.
WRITER = """
import sys
sys.path.insert(0, sys.argv[1])
from comfyui_runner.state import Phase
from comfyui_runner.state_file import open_state_file
from comfyui_runner.stored_state import StoredRun
file = open_state_file(sys.argv[2])
print("0", flush=True)
for number in range(1, 10000):
    file.add(StoredRun(number, str(number), 5.0, Phase.QUEUED, "{}", b"x" * 3000), 20000)
    print(number, flush=True)
"""


@pytest.mark.parametrize("lines", [1, 2, 40])
def test_what_was_added_survives_kill_9(tmp_path: Path, lines: int) -> None:
    path = str(tmp_path / NAME)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, ROOT, path], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    for _ in range(lines):
        said = int(writer.stdout.readline())
    writer.kill()
    rest, _ = writer.communicate(timeout=20)
    said = max([said, *map(int, rest.split()[:-1])])
    file = open_state_file(path)
    assert file.last_number() >= said and len(file.open_runs()) == file.last_number()
    file.close()


# -- files that cannot be used -------------------------------------------------------------------------


def test_a_damaged_file_is_known_as_such_and_set_aside(tmp_path: Path) -> None:
    path = tmp_path / NAME
    file = open_state_file(str(path))
    fill(file, 200)
    file.close()
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * 4096 + content[8192:])
    with pytest.raises(StateFileError) as caught:
        open_state_file(str(path))
    assert caught.value.damaged
    new_path = set_aside(str(path), datetime.datetime(2026, 5, 4, 3, 2, 1))
    assert [each.name for each in tmp_path.iterdir()] == [NAME + ".unusable-20260504-030201"]
    assert new_path == str(path) + ".unusable-20260504-030201"


@pytest.mark.parametrize("content", [bytes(5000), b"SQLite format 3\0", b"text"])
def test_what_a_crash_of_the_disk_leaves_is_damaged(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / NAME
    path.write_bytes(content)
    with pytest.raises(StateFileError) as caught:
        open_state_file(str(path))
    assert caught.value.damaged and path.read_bytes() == content


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"sqlite_autoindex_held", b"sq\xecite_autoindex_held"),  # SQLite quotes it in its message
        (b"TABLE held (name", b"TABLE held (nama"),
    ],
)
def test_tables_that_a_disk_has_changed_are_damage(tmp_path: Path, before: bytes, after: bytes) -> None:
    path = tmp_path / NAME
    open_state_file(str(path)).close()
    content = path.read_bytes()
    assert before in content
    path.write_bytes(content.replace(before, after))
    with pytest.raises(StateFileError) as caught:
        file = open_state_file(str(path))
        try:
            file.hold({"about": b"x"})
        finally:
            file.close()
    assert caught.value.damaged


def test_a_version_that_a_disk_has_changed_is_damage(tmp_path: Path) -> None:
    path = str(tmp_path / NAME)
    open_state_file(path).close()
    change(path, "PRAGMA user_version = 0")
    with pytest.raises(StateFileError) as caught:
        open_state_file(path)
    assert caught.value.damaged


def test_the_log_of_a_damaged_file_goes_with_it(tmp_path: Path) -> None:
    """It would be taken for that of the new file."""
    path = tmp_path / NAME
    path.write_bytes(b"text")
    (tmp_path / (NAME + "-wal")).write_bytes(b"log")
    set_aside(str(path), datetime.datetime(2026, 5, 4, 3, 2, 1))
    ending = ".unusable-20260504-030201"
    assert sorted(each.name for each in tmp_path.iterdir()) == [NAME + ending, NAME + ending + "-wal"]


def test_a_file_of_a_newer_version_is_set_aside(tmp_path: Path) -> None:
    path = str(tmp_path / NAME)
    open_state_file(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(StateFileError, match="newer version") as caught:
        open_state_file(path)
    assert caught.value.damaged


def test_a_file_of_another_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "bookmarks.db"
    connection = sqlite3.connect(str(path))
    connection.execute("CREATE TABLE bookmarks (url)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(ForeignFile):
        open_state_file(str(path))
    assert path.read_bytes() == before


def change(path: str, statement: str) -> None:
    """What a disk with faults, or another program, does to a state file."""
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.skipif(os.name == "nt", reason="pipes have no names in folders there")
def test_a_pipe_or_a_device_is_left_alone(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (str(pipe), os.devnull, str(tmp_path)):
        with pytest.raises(ForeignFile, match="it is not a regular file"):
            open_state_file(path)


@pytest.mark.skipif(os.name == "nt", reason="names have no colons there")
def test_a_file_may_have_the_name_that_means_memory_to_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    open_state_file(":memory:").close()
    assert (tmp_path / ":memory:").read_bytes().startswith(b"SQLite format 3")


@pytest.mark.parametrize("shown", ["'{]'", "CAST(x'7b22c3' AS TEXT)", "x'7b7d'"], ids=["JSON", "UTF-8", "type"])
def test_a_text_that_the_disk_has_changed_is_not_shown(tmp_path: Path, shown: str) -> None:
    path = str(tmp_path / NAME)
    file = open_state_file(path)
    fill(file, 2)
    file.close()
    change(path, f"UPDATE runs SET shown = {shown} WHERE number = 1")
    file = open_state_file(path)
    assert [run.shown for run in file.page(9, None)] == ['{"outputs": []}', ""]
    file.close()


@pytest.mark.parametrize(
    "assignment",
    [
        "phase = 'dreaming'",
        "phase = x'00'",
        "prompt_id = x'00'",
        "created = 'once'",
        "prompt = 'text'",
        "prompt = 5",
    ],
)
def test_a_value_that_no_run_has_is_damage(tmp_path: Path, assignment: str) -> None:
    """A column of SQLite holds values of every type; none of them ends the program."""
    path = str(tmp_path / NAME)
    file = open_state_file(path)
    file.add(make_run(1), 9)
    file.close()
    change(path, f"UPDATE runs SET {assignment}")
    file = open_state_file(path)
    with pytest.raises(StateFileError) as caught:
        file.open_runs()
    assert caught.value.damaged
    file.close()


def test_a_prompt_or_a_workflow_that_is_not_bytes_is_damage(tmp_path: Path) -> None:
    path = str(tmp_path / NAME)
    file = open_state_file(path)
    fill(file, 1)
    file.hold({"about": b"packed"})
    file.close()
    change(path, "UPDATE runs SET prompt = 'text'")
    change(path, "UPDATE held SET content = 'text'")
    file = open_state_file(path)
    for read in (lambda: file.prompt_of("id-1"), file.held):
        with pytest.raises(StateFileError) as caught:
            read()
        assert caught.value.damaged
    file.close()


@pytest.mark.parametrize("name", ["missing/" + NAME, ""])
def test_a_folder_that_is_missing_or_is_named_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(StateFileError) as caught:
        open_state_file(str(tmp_path / name))
    assert not caught.value.damaged and not caught.value.in_use


def test_a_python_without_sqlite3_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sqlite3", None)
    with pytest.raises(StateFileError, match="this Python was built without sqlite3"):
        open_state_file(str(tmp_path / NAME))


def test_a_run_that_has_ended_is_removed_with_its_prompt(tmp_path: Path) -> None:
    file = open_state_file(str(tmp_path / "x.runs.sqlite3"))
    file.add(StoredRun(1, "done", 5.0, Phase.SUCCESS, "{}", b"packed"), kept=9)
    file.add(StoredRun(2, "open", 5.0, Phase.RUNNING, "{}", b"packed"), kept=9)
    assert file.prompt_of("done") == b"packed" and file.prompt_of("x") == b""
    for prompt_id in ("done", "open"):
        file.remove(prompt_id)
    assert [run.prompt_id for run in file.page(9, None)] == ["open"]  # its end is still to be seen
    assert file.prompt_of("done") == b""
    file.close()
