"""Many runs of one workflow: the rows, the manifest, the tally."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
from typing import Any, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Tuple

from comfyui_runner.documents import Prompt, describe_json_type
from comfyui_runner.edits import InputEdit, find_input, input_edit, set_inputs
from comfyui_runner.errors import UsageError
from comfyui_runner.meter import Bar, Meter, divide
from comfyui_runner.nodes import class_of, input_spec
from comfyui_runner.reports import nodes_done
from comfyui_runner.state import Phase, PromptState, run_seconds
from comfyui_runner.text import as_dict, duration, one_line, plural


class Row(NamedTuple):
    """One run of a batch. ``values`` by NODE.INPUT; ``error``: why the row cannot be read."""

    number: int
    values: Mapping[str, Any] = {}
    error: str = ""


def read_rows(lines: Iterable[str], json_lines: bool) -> Iterator[Row]:
    """The rows of a CSV file with a header of NODE.INPUT, or of JSON Lines, numbered from 1; empty lines are no rows.

    A row that cannot be read comes with its error. Raises UsageError for a header that cannot be used.
    """
    if json_lines:
        number = 0
        for line in lines:
            if not line.strip():
                continue
            number += 1
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield Row(number, error="it is not JSON (%s)" % one_line(error, 200))
                continue
            good = isinstance(values, dict)
            yield (
                Row(number, values)
                if good
                else Row(number, error="it is %s, not an object" % describe_json_type(values))
            )
        return

    csv.field_size_limit(1 << 26)
    rest = iter(lines)
    first = next(rest, "")
    marks = [mark for mark in ("\t", ",", ";") if mark in first] or [","]
    reader = csv.reader(itertools.chain([first], rest), delimiter=marks[0], strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error:
        header = []
    if not header or not all(header) or len(set(header)) < len(header):
        raise UsageError(
            "The batch's first line must name its columns, each NODE.INPUT and each once."
        )
    number = 0
    while True:
        try:
            values = next(reader, None)
        except csv.Error as error:
            number += 1
            yield Row(number, error="it is no CSV (%s)" % one_line(error, 200))
            continue
        if values is None:
            return
        if not values:
            continue
        number += 1
        if len(values) > len(header):
            yield Row(number, error="it has %d cells, the header %d" % (len(values), len(header)))
        else:
            yield Row(number, dict(zip(header, values)))


def row_edits(
    prompt: Mapping[str, Any], row: Row, object_info: Mapping[str, Any]
) -> List[InputEdit]:
    """The edits that a row asks for. An empty cell is the empty text where a text belongs, and else leaves the
    workflow's value. Raises EditError."""
    edits = []
    for name, value in row.values.items():
        ref = find_input(prompt, name)
        spec = input_spec(object_info, class_of(prompt, ref.node_id), ref.input)
        current = as_dict(prompt[ref.node_id].get("inputs")).get(ref.input)
        if value != "" or (spec[0] == "STRING" if spec else isinstance(current, str)):
            edits.append(input_edit(ref, value))
    return edits


def check_columns(prompt: Prompt, names: Iterable[str], object_info: Mapping[str, Any]) -> None:
    """Raises EditError for a column that no row can set, which spoils all of them."""
    for name in names:
        ref = find_input(prompt, name)
        known = as_dict(prompt[ref.node_id].get("inputs"))
        if ref.input in known or not input_spec(
            object_info, class_of(prompt, ref.node_id), ref.input
        ):
            set_inputs(
                prompt, ref.node_id, {ref.input: None}, {}
            )  # without a definition no value is looked at


def row_key(values: Mapping[str, Any]) -> str:
    """What tells a row from one that stood in its place when the batch began."""

    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def rows_done(lines: Iterable[str]) -> Dict[int, str]:
    """The rows that a manifest's ``lines`` tell as done, with their keys. A line that was cut off by a crash
    tells nothing."""
    done: Dict[int, str] = {}
    for line in lines:
        try:
            entry = as_dict(json.loads(line))
        except (ValueError, RecursionError):
            continue
        if entry.get("status") == "done" and isinstance(entry.get("row"), int):
            done[entry["row"]] = str(entry.get("key"))
    return done


class Tally(NamedTuple):
    """How far a batch is. ``total`` is None where it is not known (rows from standard input)."""

    total: Optional[int]
    done: int = 0
    failed: int = 0
    skipped: int = 0  # done before
    seconds: float = 0.0

    @property
    def ended(self) -> int:
        """Rows that need no more work."""
        return self.done + self.failed + self.skipped

    def in_words(self) -> str:
        """``12/40 rows, 1 failed, 3.1/min, 9:02 left``."""
        words = (
            plural(self.ended, "row")
            if self.total is None
            else "%d/%s" % (self.ended, plural(self.total, "row"))
        )
        words += ", %d failed" % self.failed if self.failed else ""
        worked = self.done + self.failed
        if worked and self.seconds > 0:
            pace = worked / self.seconds
            words += ", %.1f/s" % pace if pace >= 1 else ", %.1f/min" % (60 * pace)
            if self.total is not None and self.ended < self.total:
                words += ", %s left" % duration((self.total - self.ended) / pace)
        return words


def make_batch_meter(
    tally: Tally, runs: Iterable[Tuple[int, PromptState]], now: float, note: str = ""
) -> Meter:
    """The meter of a batch: all of it, and the rows that have begun, by number."""
    bars = [Bar("Overall", divide(tally.ended, tally.total or 0), tally.in_words(), "bold")]
    for number, state in runs:
        done, total = nodes_done(state).values()
        text = f"{done}/{total} nodes  {duration(run_seconds(state, now))}"
        if state.phase in (Phase.SUBMITTING, Phase.QUEUED):
            text = "waiting"
        bars.append(Bar(f"Row {number}", divide(done, total), text))
    return Meter(bars=tuple(bars), note=note)
