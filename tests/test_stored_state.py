"""What is stored of a run, and what follows from it at the next start."""

from __future__ import annotations

import os
from typing import Optional

import pytest

from comfyui_runner.nodes import InputRef
from comfyui_runner.reports import NO_RUN_TEXTS, RunTexts
from comfyui_runner.state import Phase
from comfyui_runner.stored_state import (
    APPLICATION_ID,
    SQLITE_SIGNATURE,
    FileKind,
    StoredRun,
    TakeUp,
    check_run,
    choose_state_path,
    how_to_take_up,
    kind_of_file,
    pack_text,
    seconds_left,
    spooled_as_text,
    spooled_from_text,
    texts_of,
    texts_of_run,
    unpack_prompt,
)


@pytest.mark.parametrize(
    ("state", "workflow", "is_demo", "path"),
    [
        (None, os.path.join("flows", "fox.json"), False, os.path.join("flows", "fox.runs.sqlite3")),
        (None, "fox.v2.png", False, "fox.v2.runs.sqlite3"),
        (None, "fox.json", True, None),
        (None, "-", False, None),
        ("none", "fox.json", False, None),
        ("kept.db", "fox.json", False, "kept.db"),
        ("kept.db", "-", False, "kept.db"),
    ],
)
def test_the_file_is_beside_the_workflow_or_where_somebody_wants_it(
    state: Optional[str], workflow: str, is_demo: bool, path: Optional[str]
) -> None:
    assert choose_state_path(state, workflow, is_demo) == path


def test_prompts_are_packed_and_come_back() -> None:
    text = '{"1": {"class_type": "A", "inputs": {"text": "' + "fox " * 1000 + '"}}}'
    packed = pack_text(text)
    assert len(packed) < len(text) / 5
    assert unpack_prompt(packed)["1"]["class_type"] == "A"


@pytest.mark.parametrize("packed", [b"", b"no zlib", pack_text("{"), pack_text("[]")])
def test_what_is_not_a_packed_prompt_is_an_error(packed: bytes) -> None:
    with pytest.raises(ValueError):
        unpack_prompt(packed)


def test_a_run_that_cannot_be_taken_up_is_an_error() -> None:
    run = StoredRun(1, "a", 5.0, Phase.QUEUED, "{}", pack_text("{}"))
    check_run(run)
    for broken in (run._replace(shown="{"), run._replace(prompt=b"")):
        with pytest.raises(ValueError):
            check_run(broken)


def test_a_run_whose_texts_are_broken_is_taken_up_without_them() -> None:
    run = StoredRun(1, "a", 5.0, Phase.QUEUED, '{"draw": 7, "texts": {"1.text": "fox"}}', pack_text("{}"))
    assert texts_of_run(run) == RunTexts(7, {InputRef("1", "text"): "fox"})
    check_run(run._replace(shown=""))
    assert texts_of_run(run._replace(shown="")) == NO_RUN_TEXTS


def test_keys_of_the_spool_come_back() -> None:
    assert spooled_from_text(spooled_as_text({0: "7", 12: "8"})) == {0: "7", 12: "8"}
    assert [spooled_from_text(text) for text in ("", "[]", '{"x": "1"}')] == [{}, {}, {}]


def test_the_texts_of_a_run_are_read_from_how_it_is_shown() -> None:
    texts = texts_of({"draw": 5, "texts": {"2.text": "a fox", "3.lora_1.name": "x"}})
    assert (texts.number, texts.texts) == (5, {InputRef("2", "text"): "a fox", InputRef("3", "lora_1.name"): "x"})
    assert texts.to_json() == {"draw": 5, "texts": {"2.text": "a fox", "3.lora_1.name": "x"}}


@pytest.mark.parametrize(
    ("phase", "is_cancelled", "how"),
    [
        (Phase.SUBMITTING, False, TakeUp.LOOK_UP),
        (Phase.QUEUED, False, TakeUp.FOLLOW),
        (Phase.RUNNING, False, TakeUp.FOLLOW),
        (Phase.SUBMITTING, True, TakeUp.CANCEL),
        (Phase.RUNNING, True, TakeUp.CANCEL),
    ],
)
def test_a_run_that_had_not_ended_is_taken_up_by_its_phase(phase: Phase, is_cancelled: bool, how: TakeUp) -> None:
    assert how_to_take_up(phase, is_cancelled) is how


def test_every_phase_that_is_no_end_can_be_taken_up() -> None:
    assert [how_to_take_up(phase, False) for phase in Phase if not phase.over]


def test_a_timeout_counts_from_the_start_of_the_run() -> None:
    assert seconds_left(None, 100.0, 160.0) is None
    assert seconds_left(90.0, 100.0, 160.0) == 30.0
    assert seconds_left(10.0, 100.0, 160.0) == 0.0
    assert seconds_left(90.0, 100.0, 50.0) == 90.0  # the clock was set back


def head(application_id: int, signature: bytes = SQLITE_SIGNATURE) -> bytes:
    return signature + bytes(68 - len(signature)) + application_id.to_bytes(4, "big") + bytes(28)


@pytest.mark.parametrize(
    ("content", "name", "kind"),
    [
        (b"", "x.db", FileKind.OURS),
        (head(APPLICATION_ID), "x.db", FileKind.OURS),
        (head(APPLICATION_ID), "x.runs.sqlite3", FileKind.OURS),
        (head(5), "x.runs.sqlite3", FileKind.FOREIGN),
        (head(0), "x.db", FileKind.FOREIGN),
        (head(0), "x.runs.sqlite3", FileKind.DAMAGED),
        (bytes(100), "x.runs.sqlite3", FileKind.DAMAGED),
        (SQLITE_SIGNATURE, "x.runs.sqlite3", FileKind.DAMAGED),
        (b'{"1": {"class_type": "A"', "workflow_api.json", FileKind.FOREIGN),
    ],
)
def test_a_file_of_another_program_is_told_from_a_damaged_one(content: bytes, name: str, kind: FileKind) -> None:
    assert kind_of_file(content, name) is kind
