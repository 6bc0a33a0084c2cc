"""Many runs of one workflow: the rows, the manifest, the tally."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
from contextlib import suppress
from typing import Any, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Tuple, Union

from comfyui_runner.call_values import SHORT_NAMES, resolve_short_name
from comfyui_runner.documents import Prompt, describe_json_type
from comfyui_runner.edits import EditError, InputEdit, check_can_be_set, find_input, input_edit
from comfyui_runner.errors import UsageError
from comfyui_runner.json_text import parse_json
from comfyui_runner.meter import Bar, Meter, divide, overall_bar
from comfyui_runner.nodes import InputRef, spec_of, value_of
from comfyui_runner.reports import nodes_done
from comfyui_runner.seeds import seed_inputs
from comfyui_runner.state import Phase, PromptState, run_seconds
from comfyui_runner.text import JsonObject, as_dict, duration, one_line, plural
from comfyui_runner.upload_inputs import upload_inputs
from comfyui_runner.values import type_of_input

#: Characters of a cell at most: texts may be long.
LONGEST_CELL = 1 << 26

#: The values by which columns are checked, where an empty one would be refused.
VALUES_TO_TRY = {"size": "64x64"}

#: Characters that are shown of why a row cannot be read.
LENGTH_OF_REASON = 200


class Row(NamedTuple):
    """One run of a batch: its ``values``, or in ``error`` why it cannot be read.

    Values are named by NODE.INPUT or by a short name.
    """

    number: int
    values: Mapping[str, Any] = {}
    error: str = ""


def read_rows(lines: Iterable[str], json_lines: bool) -> Iterator[Row]:
    """The rows of a CSV file with a header of NODE.INPUT, or of JSON Lines, numbered from 1.

    Empty lines are not rows. A row that cannot be read has an error. Raises UsageError for a header
    that cannot be used.
    """
    if json_lines:
        return _read_json_rows(lines)
    return _read_csv_rows(lines)


def _read_json_rows(lines: Iterable[str]) -> Iterator[Row]:
    rows = (line for line in lines if line.strip())
    for number, line in enumerate(rows, 1):
        try:
            values = parse_json(line)
        except ValueError as error:
            reason = one_line(error, LENGTH_OF_REASON)
            yield Row(number, error=f"it is not JSON ({reason})")
            continue
        if isinstance(values, dict):
            yield Row(number, values)
        else:
            yield Row(number, error=f"it is {describe_json_type(values)}, not an object")


def _read_csv_rows(lines: Iterable[str]) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_CELL)
    rest = iter(lines)
    first = next(rest, "")
    delimiters = (mark for mark in "\t,;" if mark in first)
    all_lines = itertools.chain([first], rest)
    reader = csv.reader(all_lines, delimiter=next(delimiters, ","), strict=True)
    header = _read_header(reader)
    for number, cells in enumerate(_read_cells(reader), 1):
        if isinstance(cells, csv.Error):
            reason = one_line(cells, LENGTH_OF_REASON)
            yield Row(number, error=f"it is not CSV ({reason})")
        elif len(cells) > len(header):
            yield Row(number, error=f"it has {len(cells)} cells, but the header has {len(header)}")
        else:
            yield Row(number, dict(zip(header, cells)))


def _read_header(reader: Iterator[List[str]]) -> List[str]:
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error:
        header = []
    has_empty_name = not all(header)
    has_name_twice = len(set(header)) < len(header)
    if not header or has_empty_name or has_name_twice:
        raise UsageError(
            "The first line of the batch must name its columns (NODE.INPUT), each only once."
        )
    return header


def _read_cells(reader: Iterator[List[str]]) -> Iterator[Union[List[str], csv.Error]]:
    """The cells of each row that is not empty, or the error of one that is not CSV."""
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield error  # and the rows after it are read
            continue
        if cells is None:
            return
        if cells:
            yield cells


def row_edits(prompt: JsonObject, row: Row, object_info: JsonObject) -> List[InputEdit]:
    """The edits that a row asks for. Raises EditError.

    An empty cell is the empty text where a text belongs; elsewhere the workflow keeps its value.
    ``@FILE`` names a file only in the column of a loader. Elsewhere it is a text: the rows may be
    somebody else's, and must not read files of this machine into prompts.
    """
    edits = []
    loaders = upload_inputs(prompt, object_info)
    for name, cell in row.values.items():
        takes_text = name not in ("size", "seed", "image")
        if cell == "" and not takes_text:
            continue
        for ref, value in resolve_column(prompt, name, cell, object_info):
            input_type = type_of_input(spec_of(prompt, ref, object_info), value_of(prompt, ref))
            is_left_alone = value == "" and input_type != "STRING"
            if is_left_alone:
                continue
            edit = input_edit(ref, value)
            if edit.file and ref not in loaders:
                edit = InputEdit(ref, value)
            is_full_name = "." in name  # not "positive"
            if is_full_name:
                edit = edit._replace(typed=name)
            edits.append(edit)
    return edits


def words_for_columns(
    prompt: JsonObject, row: Row, counts: Mapping[str, int], object_info: JsonObject
) -> Dict[InputRef, str]:
    """What the summary shows for the inputs that rows like ``row`` set.

    ``counts`` is how many values a column has, where that is known. A column that cannot be used is
    left out: its rows say why.
    """
    words = {}
    for name, cell in row.values.items():
        words_for_column = "by row"
        count = counts.get(name)
        if count == 1:
            words_for_column = one_line(cell, 100)
        elif count is not None:
            words_for_column = f"{count} values"
        with suppress(EditError):
            for ref, _ in resolve_column(prompt, name, cell, object_info):
                words[ref] = words_for_column
    return words


def resolve_column(
    prompt: JsonObject, name: str, value: Any, object_info: JsonObject
) -> List[Tuple[InputRef, Any]]:
    """The inputs that a column sets, NODE.INPUT or a short name, and what each gets of ``value``.

    Raises EditError.
    """
    if name not in SHORT_NAMES:
        return [(find_input(prompt, name), value)]
    seeds = seed_inputs(prompt, object_info)
    loaders = upload_inputs(prompt, object_info)
    return resolve_short_name(prompt, name, value, seeds, loaders)


def check_columns(prompt: Prompt, names: Iterable[str], object_info: JsonObject) -> None:
    """Raises EditError for a column that no row can set, as it would fail every row."""
    for name in names:
        value = VALUES_TO_TRY.get(name, "")
        for ref, _ in resolve_column(prompt, name, value, object_info):
            check_can_be_set(prompt, ref, spec_of(prompt, ref, object_info))


def row_key(values: JsonObject) -> str:
    """What distinguishes a row from the one that had its number when the batch began."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class ListedRows(NamedTuple):
    """What a manifest lists: the rows that are done, with their keys, and where it ends."""

    done: Mapping[int, str] = {}
    last: int = 0  # the highest number of a row
    first_of_last: int = 1  # the number at which the call began that ran it

    def first_row(self, resume: bool) -> int:
        """The number at which a --repeat begins: it goes on, or resumes the last one."""
        if resume:
            return self.first_of_last
        return self.last + 1


def read_listed_rows(lines: Iterable[str]) -> ListedRows:
    """The rows that a manifest lists. A line that was cut off by a crash is passed over."""
    done: Dict[int, str] = {}
    last = 0
    first_of_last = 1
    for line in lines:
        try:
            entry = as_dict(parse_json(line))
        except ValueError:
            continue
        number = entry.get("row")
        if not isinstance(number, int):
            continue
        if entry.get("status") == "done":
            done[number] = str(entry.get("key"))
        if number > last:
            last = number
            first_of_last = 1
            if isinstance(entry.get("first"), int):
                first_of_last = entry["first"]
    return ListedRows(done, last, first_of_last)


class Tally(NamedTuple):
    """How far a batch is. ``total`` is None where it is not known (rows from standard input)."""

    total: Optional[int]
    done: int = 0
    failed: int = 0
    skipped: int = 0  # done before
    cancelled: int = 0  # by Ctrl+C
    seconds: float = 0.0
    noun: str = "row"  # or "run", where there are no rows

    @property
    def ended(self) -> int:
        """Rows that need no more work."""
        return self.done + self.failed + self.skipped + self.cancelled

    def in_words(self) -> str:
        """``12/40 rows, 1 failed, 3.1/min, 9:02 left``."""
        if self.total is None:
            words = [plural(self.ended, self.noun)]
        else:
            words = [f"{self.ended}/{plural(self.total, self.noun)}"]
        if self.failed:
            words.append(f"{self.failed} failed")
        worked = self.done + self.failed
        if worked and self.seconds > 0:
            rows_per_second = worked / self.seconds
            words.append(_describe_pace(rows_per_second))
            left = (self.total or 0) - self.ended
            if left > 0:
                words.append(f"{duration(left / rows_per_second)} left")
        return ", ".join(words)

    def end_in_words(self, is_cut_short: bool) -> str:
        """``4 rows done in 12.3 s, 1 failed, 2 cancelled, 6 not started``.

        ``is_cut_short``: it ended before its last row.
        """
        counts = [
            (self.skipped, "done before"),
            (self.failed, "failed"),
            (self.cancelled, "cancelled"),
        ]
        if is_cut_short:
            counts.append((max((self.total or 0) - self.ended, 0), "not started"))
        words = [f"{plural(self.done, self.noun)} done in {duration(self.seconds)}"]
        words += [f"{count} {what}" for count, what in counts if count]
        return ", ".join(words)


def _describe_pace(rows_per_second: float) -> str:
    if rows_per_second >= 1:
        return f"{rows_per_second:.1f}/s"
    return f"{60 * rows_per_second:.1f}/min"


def make_batch_meter(
    tally: Tally, runs: Iterable[Tuple[int, PromptState]], now: float, note: str = ""
) -> Meter:
    """The meter of a batch: all of it, and the rows that have begun, by number."""
    bars = [Bar("Overall", divide(tally.ended, tally.total or 0), tally.in_words(), "bold")]
    for number, state in runs:
        label = f"{tally.noun.capitalize()} {number}"
        if state.phase in (Phase.SUBMITTING, Phase.QUEUED):
            bars.append(Bar(label, 0.0, "waiting"))
        else:
            text = _describe_row(state, now)
            bars.append(overall_bar(state, now)._replace(label=label, text=text, style="ok"))
    return Meter(bars=tuple(bars), note=note)


def _describe_row(state: PromptState, now: float) -> str:
    """``12/25 steps  1.4 s``; nodes, while no node has steps."""
    done, total = nodes_done(state).values()
    text = f"{done}/{total} nodes"
    for progress in state.running.values():
        if progress.max > 1:
            text = f"{progress.value:g}/{progress.max:g} steps"
    return f"{text}  {duration(run_seconds(state, now))}"
