"""The rules of a batch, without a socket: how a failed row ends, which seeds and folders rows get."""

from __future__ import annotations

import gc
import io
import json
import os
from typing import Any, Dict, List, Optional, Tuple

import pytest
from support import Terminal, limited_disk, no_more_files

from comfyui_runner.edits import InputEdit
from comfyui_runner.errors import (
    ExitStatus,
    PromptRejected,
    RunnerError,
    SaveError,
    ServerAnswer,
    ServerGone,
    ServerUnreachable,
    Stopped,
    UsageError,
)
from comfyui_runner.extras.batch_files import Manifest, decode_input, is_streamed, manifest_path, repeat_row
from comfyui_runner.extras.batch_job import (
    exit_status_of_failed_row,
    files_of,
    pattern_of_folder,
    question_about,
    stop_of_row,
)
from comfyui_runner.extras.batch_prompts import seed_of_repetition, warn_of_unread_files
from comfyui_runner.extras.batches import Row, row_key
from comfyui_runner.interrupts import Stop
from comfyui_runner.nodes import InputRef
from comfyui_runner.redaction import Secrets
from comfyui_runner.settings import Settings
from comfyui_runner.state import Phase, PromptState

CTRL_C = Stop("Ctrl+C", ExitStatus.CANCELLED)


def settings(**values: Any) -> Settings:
    """The settings of a batch."""
    return Settings("flow.json", True, "single_shot", False, ())._replace(**{"task": "batch", **values})


# -- how rows end ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UsageError("a wrong value"), ExitStatus.USAGE),
        (PromptRejected("refused", answer={}), ExitStatus.REJECTED),
        (ServerAnswer("too large", status=413), ExitStatus.REJECTED),
        (ServerAnswer("it stumbled", status=500), ExitStatus.REJECTED),
        (ServerAnswer("not allowed", status=401), None),
        (ServerUnreachable("nothing answers"), None),
        (Stopped("Ctrl+C"), None),
    ],
)
def test_an_error_ends_its_row_or_the_whole_batch(error: RunnerError, expected: Optional[ExitStatus]) -> None:
    assert exit_status_of_failed_row(error, is_lost_with_server=False, other_rows_can_run=True) is expected


def test_an_answer_to_the_files_of_all_rows_ends_the_batch() -> None:
    error = ServerAnswer("too large", status=413)
    assert exit_status_of_failed_row(error, is_lost_with_server=False, other_rows_can_run=False) is None


@pytest.mark.parametrize("error", [ServerGone("gone"), ServerAnswer("bad gateway", status=502)])
def test_a_row_that_is_lost_with_its_server_is_lost_alone(error: RunnerError) -> None:
    status = exit_status_of_failed_row(error, is_lost_with_server=True, other_rows_can_run=False)
    assert status is ExitStatus.LOST


@pytest.mark.parametrize(
    ("phase", "has_dropped", "expected"),
    [
        (Phase.SUCCESS, False, ExitStatus.OK),
        (Phase.SUCCESS, True, ExitStatus.PARTIAL),
        (Phase.INTERRUPTED, False, ExitStatus.CANCELLED),
        (Phase.ERROR, True, ExitStatus.CANCELLED),
    ],
)
def test_a_row_that_had_succeeded_when_ctrl_c_came_is_done(
    phase: Phase, has_dropped: bool, expected: ExitStatus
) -> None:
    state = PromptState("id")._replace(phase=phase)
    assert stop_of_row(state, has_dropped, CTRL_C) == Stop("Ctrl+C", expected)
    assert stop_of_row(state, has_dropped, None) is None


# -- what rows get ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "repeat", "expected"),
    [
        ("40", 3, (40, 41, 42, 40, 41, 42)),
        ("40", 1, (None,) * 6),  # every row has that very number already
        ("random", 3, (None,) * 6),
        ("keep", 3, (None,) * 6),
    ],
)
def test_seeds_count_up_in_each_repetition(seed: str, repeat: int, expected: Tuple[Optional[int], ...]) -> None:
    options = settings(seed=seed, repeat=repeat, batch="rows.csv")
    assert tuple(seed_of_repetition(number, options) for number in range(1, 7)) == expected


def test_the_seeds_of_runs_without_rows_go_on_counting() -> None:
    options = settings(seed="40", repeat=3)
    assert [seed_of_repetition(number, options) for number in (1, 3, 4)] == [40, 42, 43]


def test_repeated_rows_are_numbered_on() -> None:
    row = Row(2, {"1.seed": 5})
    assert [again.number for again in repeat_row(row, 3)] == [4, 5, 6]
    assert {again.values["1.seed"] for again in repeat_row(row, 3)} == {5}
    assert list(repeat_row(row, 1)) == [row]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, ""),
        ({"name": "{name}"}, ""),
        ({"output": "out"}, os.path.join("out", "{row}")),
        ({"output": "out/{1.seed}"}, "out/{1.seed}"),
        ({"output": "out", "name": "{row}-{name}"}, "out"),
    ],
)
def test_each_row_has_a_folder_unless_a_pattern_says_otherwise(values: Any, expected: str) -> None:
    assert pattern_of_folder(settings(**values)) == expected


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"manifest": "m.jsonl", "output": "out"}, "m.jsonl"),
        ({"output": "out", "batch": "rows.csv"}, os.path.join("out", "manifest.jsonl")),
        ({"output": "out/{row}", "batch": "a/rows.csv"}, "a/rows.manifest.jsonl"),
        ({"batch": "rows.csv"}, "rows.manifest.jsonl"),
        ({"batch": "-"}, "flow.manifest.jsonl"),
        ({"workflow": "-", "batch": "-"}, "batch.manifest.jsonl"),
        ({"batch": None, "output": "out"}, os.path.join("out", "manifest.jsonl")),
        ({"batch": None, "output": "out/{row}"}, os.path.join("out", "manifest.jsonl")),
        ({"batch": None, "manifest": "m.jsonl"}, "m.jsonl"),
        ({"batch": None}, ""),
    ],
)
def test_the_manifest_lies_beside_the_outputs_the_rows_or_the_workflow(values: Any, expected: str) -> None:
    assert manifest_path(settings(**values)) == expected


def test_runs_that_leave_no_manifest_cannot_be_resumed() -> None:
    with pytest.raises(UsageError, match="--resume reads the manifest, but this --repeat does not write one"):
        manifest_path(settings(batch=None, resume=True))


@pytest.mark.parametrize(
    ("total", "left", "batch", "question"),
    [
        (1, 1, None, "Run it once? [y/N] "),
        (6, 6, None, "Run it 6 times? [y/N] "),
        (6, 6, "rows.csv", "Run 6 rows? [y/N] "),
        (6, 2, "rows.csv", "Run the remaining 2 of 6 rows? [y/N] "),
        (12, 9, None, "Run the remaining 9 of 12 runs? [y/N] "),
        (None, None, "-", "Run the rows as they arrive? [y/N] "),
    ],
)
def test_the_question(total: Optional[int], left: Optional[int], batch: Optional[str], question: str) -> None:
    assert question_about(total, left, settings(batch=batch)) == question


@pytest.mark.parametrize(
    ("outputs", "files"),
    [
        ([], []),
        ([{"kind": "text", "path": "out/a.txt"}, {"kind": "image", "path": "out/a.png"}], ["out/a.png", "out/a.txt"]),
        ([{"kind": "image", "subfolder": "x", "filename": "a.png"}], ["x/a.png"]),
        ([{"kind": "text", "subfolder": "", "filename": ""}], []),
    ],
)
def test_the_files_of_a_row(outputs: List[Dict[str, str]], files: List[str]) -> None:
    assert files_of({"outputs": outputs}) == files


def test_rows_are_streamed_from_standard_input_alone_or_a_pipe(tmp_path: Any) -> None:
    assert is_streamed("-")
    assert not is_streamed(None)
    assert not is_streamed(str(tmp_path)) and not is_streamed(str(tmp_path / "missing.csv"))


def test_a_manifest_lists_a_row_as_done_that_has_the_same_values(tmp_path: Any) -> None:
    path = str(tmp_path / "new" / "manifest.jsonl")
    row, failed = Row(1, {"1.seed": 5}), Row(2, {"1.seed": 6})
    with Manifest(path, resume=False, secrets=Secrets(["hunter22"])) as manifest:
        manifest.append({"row": 1, "key": row_key(row.values), "status": "done", "text": "狐\ud800hunter22"})
        manifest.append({"row": 2, "key": row_key(failed.values), "status": "failed"})
    with open(path, encoding="utf-8") as lines:
        line = lines.readline()
    assert '"狐?***"' in line  # as people can read it
    assert json.loads(line)["text"] == "狐?***"
    again = Manifest(path, resume=True, secrets=Secrets())
    assert again.lists_as_done(row)
    assert not again.lists_as_done(row._replace(values={"1.seed": 7}))
    assert not again.lists_as_done(failed)
    with pytest.raises(UsageError, match="is the manifest of an earlier batch"):
        Manifest(path, resume=False, secrets=Secrets())


def test_a_manifest_that_cannot_be_opened_says_why(tmp_path: Any) -> None:
    path = tmp_path / "manifest.jsonl"
    path.write_text('{"row": 1}\n', encoding="utf-8")
    with no_more_files(), pytest.raises(UsageError) as caught:
        Manifest(str(path), resume=True, secrets=Secrets())
    assert caught.value.message == f"The manifest {path} cannot be read: Too many open files."
    manifest = Manifest(str(path), resume=True, secrets=Secrets())
    with no_more_files(), pytest.raises(UsageError) as caught:
        manifest.__enter__()
    assert caught.value.message == f"The manifest {path} cannot be written: Too many open files."


def test_a_line_for_which_there_is_no_room_leaves_nothing_in_the_manifest(tmp_path: Any) -> None:
    """Also not for the next line, for which there is room again."""
    path = tmp_path / "m.jsonl"
    with Manifest(str(path), resume=False, secrets=Secrets()) as manifest:
        manifest.append({"row": 1})
        with limited_disk(20), pytest.raises(SaveError) as caught:
            manifest.append({"row": 2, "message": "long" * 100})
        assert path.read_bytes() == b'{"row": 1}\n'
        manifest.append({"row": 3})
    assert path.read_bytes() == b'{"row": 1}\n{"row": 3}\n'
    assert caught.value.message == f"The manifest {path} cannot be written: File too large."
    assert "with --resume, the rows that it does not list run again" in caught.value.remedy


@pytest.mark.parametrize("before", [b"", b'{"row": 1}'])
def test_a_manifest_without_room_is_known_before_the_first_row(before: bytes, tmp_path: Any) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(before)
    with limited_disk(len(before)), pytest.raises(SaveError), Manifest(str(path), resume=True, secrets=Secrets()):
        pass
    assert path.read_bytes() == before
    with Manifest(str(path), resume=True, secrets=Secrets()):
        pass
    assert path.read_bytes() == (before + b"\n" if before else b"")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes in folders")
def test_a_manifest_may_be_a_pipe(tmp_path: Any) -> None:
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with Manifest(pipe, resume=False, secrets=Secrets()) as manifest:
            manifest.append({"row": 1})
        assert os.read(reader, 100) == b'{"row": 1}\n'
    finally:
        os.close(reader)


def test_a_text_that_begins_with_at_is_sent_as_it_is_and_warned_of_where_there_is_such_a_file(tmp_path: Any) -> None:
    path = tmp_path / "words.txt"
    path.write_text("x", encoding="utf-8")
    values: Any = [f"@{path}", f"x{path}", f"@{path}.missing", 5, ""]
    edits = [InputEdit(InputRef("6", f"text{number}"), value) for number, value in enumerate(values)]
    (warning,) = warn_of_unread_files(edits)
    assert warning.startswith("6.text0: a text such as @")
    assert warning.endswith("In rows, @FILE works only in the columns of nodes that load files.")


def test_standard_input_stays_open_after_its_rows_are_read() -> None:
    stdin = io.TextIOWrapper(io.BufferedReader(io.BytesIO("text\n狐\n".encode())), encoding="latin-1")
    with decode_input(stdin) as rows:
        assert rows.read() == "text\n狐\n"  # whatever Python takes its encoding for
    del rows
    gc.collect()
    assert not stdin.buffer.closed
    console = Terminal("typed")
    with decode_input(console) as rows:
        assert rows is console
    assert not console.closed
