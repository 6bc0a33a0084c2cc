"""Rows are read, turned into edits and counted; a manifest is read again; names are filled in."""

from __future__ import annotations

import csv
import json
import os
from typing import Any, Dict, List, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import Json, anything, few
from support import node

from comfyui_runner.edits import EditError, InputEdit
from comfyui_runner.errors import UsageError
from comfyui_runner.extras.batches import (
    Row,
    Tally,
    check_columns,
    make_batch_meter,
    read_listed_rows,
    read_rows,
    row_edits,
    row_key,
    words_for_columns,
)
from comfyui_runner.loading import Loaded
from comfyui_runner.nodes import InputRef
from comfyui_runner.patterns import fill_pattern, folder_before_fields

PROMPT: Json = {
    "3": node("KSampler", seed=1, steps=20),
    "6": node("CLIPTextEncode", "Positive", text="a fox", more=["3", 0]),
}
INFO: Json = {
    "CLIPTextEncode": {"input": {"required": {"text": ["STRING"], "more": ["INT"]}}},
    "LoadImage": {"input": {"required": {"image": [[], {"image_upload": True}]}}},
}


def rows(*lines: str, json_lines: bool = False) -> List[Row]:
    return list(read_rows([line + "\n" for line in lines], json_lines))


def values(*lines: str, json_lines: bool = False) -> List[Mapping[str, Any]]:
    return [row.values for row in rows(*lines, json_lines=json_lines)]


def test_the_summary_shows_what_rows_set_and_not_what_the_file_has() -> None:
    row = Row(1, {"3.steps": 4, "Positive.text": "a cat", "3.seed": 7, "Nobody.text": "x"})
    words = words_for_columns(PROMPT, row, {"3.steps": 3, "3.seed": 1}, INFO)
    assert words == {
        InputRef("3", "steps"): "3 values", InputRef("6", "text"): "by row", InputRef("3", "seed"): "7",
    }  # fmt: skip
    summary = Loaded(PROMPT, "a.json", varied=words).summary()
    assert summary.sampling == [("KSampler", "seed 7, steps 3 values")]
    assert summary.texts == [("Positive", "by row")]


# ------------------------------------------------------------------------------------------------
# Rows
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_a_row_has_the_columns_of_the_header(mark: str) -> None:
    lines = [mark.join(line) for line in (("Positive.text", " 3.steps "), ("a fox", "4"), ("a cat", "5"))]
    assert rows(*lines) == [
        Row(1, {"Positive.text": "a fox", "3.steps": "4"}), Row(2, {"Positive.text": "a cat", "3.steps": "5"}),
    ]  # fmt: skip


def test_a_cell_may_hold_marks_and_lines() -> None:
    assert values("6.text", '"a ""fox"",', 'and more"', "x") == [{"6.text": 'a "fox",\nand more'}, {"6.text": "x"}]


def test_empty_lines_are_not_rows_and_short_rows_leave_values_alone() -> None:
    assert rows("6.text,3.steps", "", "a", "", "b,4") == [
        Row(1, {"6.text": "a"}), Row(2, {"6.text": "b", "3.steps": "4"}),
    ]  # fmt: skip
    assert rows("", '{"3.steps": 4}', "  ", "{}", json_lines=True) == [Row(1, {"3.steps": 4}), Row(2, {})]


@pytest.mark.parametrize("lines", [[], ["", "a"], [",,"], ["a.b,a.b"], ["a.b, a.b "], ["a\rb"], ['"a'], ["6.text,"]])
def test_a_header_that_names_no_columns_is_refused(lines: List[str]) -> None:
    with pytest.raises(UsageError) as caught:
        rows(*lines)
    assert caught.value.message == "The first line of the batch must name its columns (NODE.INPUT), each only once."


def test_a_bad_row_does_not_stop_the_rest() -> None:
    found = rows("6.text", "a,b", "c\rd", '"e" f', "g")
    assert [row.number for row in found] == [1, 2, 3, 4]
    assert found[0].error == "it has 2 cells, but the header has 1"
    assert found[1].error.startswith("it is not CSV (") and found[2].error.startswith("it is not CSV (")
    assert found[3] == Row(4, {"6.text": "g"})
    found = rows("{", "[1]", "null", "[" * 100000, '{"3.steps": 1}', json_lines=True)
    assert found[0].error.startswith("it is not JSON (")
    assert [row.error for row in found[1:3]] == ["it is a list, not an object", "it is null, not an object"]
    assert found[3].error.startswith("it is not JSON (")
    assert found[4] == Row(5, {"3.steps": 1})


def test_a_quote_that_never_ends_does_not_swallow_the_rows_after_it_in_silence() -> None:
    found = rows("6.text", '"a fox', "a cat", "a dog")
    assert [bool(row.error) for row in found] == [True]


def test_an_empty_cell_under_a_short_name_keeps_the_value_of_the_workflow() -> None:
    row = Row(1, {"size": "", "seed": "", "image": ""})
    assert row_edits(PROMPT, row, INFO) == []  # no matter whether there are such inputs


def test_what_a_row_sets() -> None:
    row = Row(1, {"Positive.text": "", "3.steps": "", "KSampler.seed": "random", "6.more": "", "6.new": None})
    assert row_edits(PROMPT, row, {}) == [
        InputEdit(InputRef("6", "text"), "", typed="Positive.text"),
        InputEdit(InputRef("3", "seed"), "random", typed="KSampler.seed"),
        InputEdit(InputRef("6", "new"), None, typed="6.new"),
    ]  # fmt: skip
    linked = {**PROMPT, "6": node("CLIPTextEncode", text=["3", 0])}
    (edit,) = row_edits(linked, Row(1, {"6.text": "", "6.more": ""}), INFO)
    assert edit.ref == InputRef("6", "text")
    with pytest.raises(EditError):
        row_edits(PROMPT, Row(1, {"Nobody.text": "x"}), INFO)


def test_a_row_names_files_for_loaders_only() -> None:
    row = Row(1, {"6.text": "@a.txt", "1.image": "@a.png", "3.seed": "@@7", "6.new": ["@b.txt"]})
    assert row_edits({**PROMPT, "1": node("LoadImage", image="x.png")}, row, INFO) == [
        InputEdit(InputRef("6", "text"), "@a.txt", typed="6.text"),
        InputEdit(InputRef("1", "image"), "", file="a.png", typed="1.image"),
        InputEdit(InputRef("3", "seed"), "@7", typed="3.seed"),
        InputEdit(InputRef("6", "new"), ["@b.txt"], typed="6.new"),
    ]


@few
@given(st.lists(st.text('a.b,;"\r\n\t\0{}[] ', max_size=12), max_size=5), st.booleans())
def test_any_lines_are_rows_or_a_usage_error(lines: List[str], json_lines: bool) -> None:
    try:
        found = list(read_rows(lines, json_lines))
    except UsageError as error:
        assert not json_lines and error.message
        return
    assert [row.number for row in found] == list(range(1, len(found) + 1))
    assert all(isinstance(row.values, dict) and not (row.error and row.values) for row in found)


# ------------------------------------------------------------------------------------------------
# The manifest
# ------------------------------------------------------------------------------------------------


def test_a_row_is_known_again_whatever_the_order_of_its_columns() -> None:
    key = row_key({"a.b": "1", "c.d": 2})
    assert key == row_key({"c.d": 2, "a.b": "1"}) and len(key) == 16
    assert len({key, row_key({"a.b": "1"}), row_key({"a.b": "2", "c.d": 2}), row_key({})}) == 4


def test_rows_that_are_done_are_read_and_what_a_crash_cut_off_is_not() -> None:
    entries: List[Dict[str, Any]] = [
        {"row": 1, "status": "done", "key": "k1"}, {"row": 2, "status": "failed", "key": "k2"},
        {"row": "3", "status": "done", "key": "k3"}, {"row": 1, "status": "done", "key": "new"},
    ]  # fmt: skip
    lines = [json.dumps(entry) for entry in entries] + ["", "[]", "[" * 100000, '{"row": 4, "status": "do']
    assert read_listed_rows(lines).done == {1: "new"}


@pytest.mark.parametrize(
    ("entries", "first", "resumed"),
    [
        ([], 1, 1),
        ([{"row": 1}, {"row": 3}, {"row": 2}], 4, 1),
        ([{"row": 3}, {"row": 5, "first": 4}, {"row": 4, "first": 4}], 6, 4),
        ([{"row": 5, "first": "4"}, {"row": "9", "first": 8}], 6, 1),
    ],
)
def test_repetitions_are_numbered_on_or_resumed(entries: List[Json], first: int, resumed: int) -> None:
    listed = read_listed_rows(map(json.dumps, entries))
    assert (listed.first_row(resume=False), listed.first_row(resume=True)) == (first, resumed)


@few
@given(st.lists(anything.map(json.dumps) | st.text(max_size=8), max_size=4), st.dictionaries(st.text(), anything))
def test_any_manifest_is_read_and_any_row_has_a_key(lines: List[str], row: Json) -> None:
    assert all(isinstance(number, int) for number in read_listed_rows(lines).done)
    assert row_key(row) == row_key(dict(reversed(list(row.items()))))


# ------------------------------------------------------------------------------------------------
# Names
# ------------------------------------------------------------------------------------------------

FIELDS = {"row": "00007", "name": ""}


@pytest.mark.parametrize(
    ("pattern", "filled"),
    [
        ("out", "out"), ("out/{row}", "out/00007"), ("{row}_{KSampler.steps}", "00007_20"),
        ("{Positive.text}/x", "a fox/x"), ("{name}", "_"), ("{}{", "{}{"),
    ],
)  # fmt: skip
def test_a_pattern_is_filled_in(pattern: str, filled: str) -> None:
    assert fill_pattern(pattern, FIELDS, PROMPT) == filled


def test_several_long_fields_make_a_name_that_fits() -> None:
    filled = fill_pattern("out/{a}{a}{a}{a}/{row}", {"a": "狐" * 100, "row": "00001"}, {})
    folder, name, row = filled.split("/")
    assert (folder, row) == ("out", "00001")
    assert len(name.encode()) <= 255 and set(name) == {"狐"}


@pytest.mark.parametrize("pattern", ["{rows}", "{KSampler.colour}", "{Nobody.text}", "{CON}", "{3.}"])
def test_what_a_pattern_may_not_name_is_refused_with_what_it_may(pattern: str) -> None:
    with pytest.raises(UsageError) as caught:
        fill_pattern(pattern, FIELDS, PROMPT)
    assert caught.value.message == "%s is not one of {row}, {name} or {NODE.INPUT}." % pattern


@few
@given(
    st.text("a./\\ :\0狐\t~", max_size=30) | st.text() | st.sampled_from(["..", "a" * 79 + " b", "." * 81 + "a", "nul"])
)
def test_what_is_filled_in_is_one_part_of_a_path(text: str) -> None:
    part = fill_pattern("{row}", {"row": text}, PROMPT)
    assert part and len(part.encode()) <= 80 and not part.endswith((".", " "))
    assert "/" not in part and "\\" not in part and os.path.basename(part) == part


@few
@given(st.text("{}.3ab ", max_size=12))
def test_any_pattern_is_filled_in_or_refused(pattern: str) -> None:
    try:
        assert fill_pattern(pattern, FIELDS, PROMPT) or not pattern
    except UsageError as error:
        assert "is not one of" in error.message


# ------------------------------------------------------------------------------------------------
# How far it is
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tally", "words"),
    [
        (Tally(40), "0/40 rows"),
        (Tally(1, skipped=1, seconds=3.0), "1/1 row"),
        (Tally(None, done=2), "2 rows"),
        (Tally(40, done=10, failed=2, seconds=120.0), "12/40 rows, 2 failed, 6.0/min, 4:40 left"),
        (Tally(40, done=10, skipped=20, seconds=5.0), "30/40 rows, 2.0/s, 5.0 s left"),
        (Tally(2, done=2, seconds=1.0), "2/2 rows, 2.0/s"),
        (Tally(None, done=2, seconds=1.0), "2 rows, 2.0/s"),
        (Tally(3, done=1, noun="run"), "1/3 runs"),
    ],
)
def test_how_far_a_batch_is(tally: Tally, words: str) -> None:
    assert tally.in_words() == words


@pytest.mark.parametrize(
    ("tally", "is_cut_short", "words"),
    [
        (Tally(12, done=12, seconds=12.3), False, "12 rows done in 12.3 s"),
        (Tally(12, done=9, skipped=2, failed=1, seconds=3.0), False, "9 rows done in 3.0 s, 2 done before, 1 failed"),
        (
            Tally(12, done=4, cancelled=2, seconds=3.0, noun="run"),
            True,
            "4 runs done in 3.0 s, 2 cancelled, 6 not started",
        ),
        (Tally(2, done=1, failed=1, seconds=3.0), True, "1 row done in 3.0 s, 1 failed"),
        (Tally(None, done=1, cancelled=1, seconds=3.0), True, "1 row done in 3.0 s, 1 cancelled"),
    ],
)
def test_how_a_batch_ended(tally: Tally, is_cut_short: bool, words: str) -> None:
    assert tally.end_in_words(is_cut_short) == words


def test_the_bar_of_a_batch_fills_with_its_rows() -> None:
    def filled(tally: Tally) -> float:
        (bar,) = make_batch_meter(tally, [], now=0.0).bars
        return bar.fraction

    assert filled(Tally(4, done=1, failed=1)) == 0.5
    assert filled(Tally(None, done=2)) == filled(Tally(0)) == 0.0


def test_the_limit_of_a_cell_is_far() -> None:
    assert values("6.text", "x" * 200_000) == [{"6.text": "x" * 200_000}]
    assert csv.field_size_limit() >= 1 << 26


def test_a_column_that_no_row_can_set_is_refused_before_any_row() -> None:
    prompt = {"1": node("A", "Text", text="a", model=["2", 0]), "2": node("B")}
    info = {"A": {"input": {"required": {"text": ["STRING"]}, "optional": {"extra": ["INT", {}]}}}}
    check_columns(prompt, ["Text.text", "1.extra"], info)
    for column, kind in (("1.model", "linked_input"), ("1.texd", "no_such_input"), ("7.text", "no_such_node")):
        with pytest.raises(EditError) as caught:
            check_columns(prompt, ["Text.text", column], info)
        assert caught.value.type == kind


@pytest.mark.parametrize(
    ("pattern", "folder"),
    [
        ("out", "out"),
        ("out/{row}", "out"),
        ("out/a-{row}/b", "out"),
        ("{row}", "."),
        ("{1.seed}/x", "."),
        ("/{row}", "/"),
    ],
)
def test_the_folder_that_all_runs_share_ends_before_the_first_field(pattern: str, folder: str) -> None:
    assert folder_before_fields(pattern) == folder
