"""The contact sheet of a batch: a static page with what each row made, beside the manifest."""

from __future__ import annotations

import html
import os
import threading
import urllib.parse
from pathlib import Path
from typing import (
    Any,
    BinaryIO,
    Dict,
    Iterable,
    Iterator,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

from comfyui_runner.errors import SaveError
from comfyui_runner.files import write_text_file
from comfyui_runner.json_text import parse_json
from comfyui_runner.media import kind_of_name
from comfyui_runner.text import JsonObject, as_dict, duration, one_line, plural

#: The line by which we know a page of ours.
SHEET_MARK = "<!-- made by comfyui-workflow-runner: it may be replaced -->"

#: Values of one name that make an axis of a grid at most.
MOST_ON_AXIS = 40

#: Values of one name that are distinguished at most.
MOST_DISTINCT = 200

#: Characters of a value in a caption; all of it is shown when the pointer is on it.
CAPTION_LENGTH = 120

#: Characters of why a row failed, and of a text that it made.
LONGEST_FAILURE = 500
LONGEST_SHOWN_TEXT = 2000

STYLE = """\
:root { color-scheme: light dark; --line: #8885; --failed: #c33; }
body { font: 15px/1.4 system-ui, sans-serif; margin: 1rem; }
h1 { font-size: 1.2rem; } h2 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
.flow { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(14rem, 100%), 1fr)); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; }
th { font-weight: 600; padding: .4rem; text-align: left; vertical-align: top; max-width: 16rem; }
td { border: 1px solid var(--line); padding: .4rem; vertical-align: top; min-width: 10rem;
  max-width: 18rem; }
figure { margin: 0; }
img, video { display: block; width: 100%; max-height: 24rem; object-fit: contain;
  background: #8882; }
audio { width: 100%; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; }
figcaption { font-size: .85rem; overflow-wrap: anywhere; }
.failed { border-left: 4px solid var(--failed); padding-left: .5rem; }
"""


class Cell(NamedTuple):
    """A row that has ended, as the manifest has it."""

    number: int
    values: Mapping[str, Any]
    seeds: Sequence[Any]
    seconds: float
    outputs: Sequence[JsonObject]
    failure: str  # how it failed or was cancelled, in words; "" if it is done

    @property
    def name(self) -> str:
        """What the row is called."""
        return f"Row {self.number}"


class Index(NamedTuple):
    """Where each row's last line of a manifest begins, and the values that differ between rows."""

    offsets: Mapping[int, int]  # in bytes, by the number of the row
    varying: Mapping[str, Sequence[str]]  # the distinct values by name, as the rows have them


#: The values of several names, in words.
ValuesInWords = Tuple[str, ...]


class Axes(NamedTuple):
    """The names whose values make sections, and the rows and the columns of the grids in them."""

    sections: Sequence[str]
    rows: str
    columns: str


# -- the manifest ----------------------------------------------------------------------------------


def read_cell(entry: JsonObject) -> Cell:
    """The row in a line of the manifest."""
    status = str(entry.get("status"))
    failure = ""
    if status != "done":
        reason = entry.get("message") or "the manifest does not say why."
        failure = f"{status.capitalize()}: {reason}"
    seeds = [str(seed) for seed in as_dict(entry.get("seeds")).values()]
    seconds = entry.get("seconds")
    if not isinstance(seconds, (int, float)):
        seconds = 0.0
    outputs = entry.get("outputs")
    if not isinstance(outputs, list):
        outputs = []
    return Cell(
        number=entry["row"],
        values=as_dict(entry.get("values")),
        seeds=list(dict.fromkeys(seeds)),  # several nodes may have the same
        seconds=seconds,
        outputs=[as_dict(output) for output in outputs],
        failure=failure,
    )


def read_line(line: bytes) -> JsonObject:
    """The entry in a line of the manifest; {} for any other line."""
    try:
        entry = as_dict(parse_json(line))
    except ValueError:  # cut off by a crash, or empty
        return {}
    if not isinstance(entry.get("row"), int):
        return {}
    return entry


def index_manifest(manifest: BinaryIO) -> Index:
    """Reads all lines once. A row that ran again counts as it ended last."""
    offsets: Dict[int, int] = {}
    first_rows: Dict[str, Dict[str, int]] = {}  # of each value, by name and value
    offset = 0
    for line in manifest:
        entry = read_line(line)
        if entry:
            offsets[entry["row"]] = offset
            for name, value in as_dict(entry.get("values")).items():
                rows_by_value = first_rows.setdefault(name, {})
                note_value(rows_by_value, value_in_words(value), entry["row"])
        offset += len(line)
    varying = {}
    for name, rows_by_value in first_rows.items():
        if len(rows_by_value) > 1:
            varying[name] = sorted(rows_by_value, key=rows_by_value.__getitem__)
    return Index(offsets, varying)


def note_value(rows_by_value: Dict[str, int], value: str, row: int) -> None:
    """Notes that ``row`` has ``value``. Rows end in any order: the lowest one is kept."""
    is_full = len(rows_by_value) >= MOST_DISTINCT
    if value in rows_by_value:
        rows_by_value[value] = min(row, rows_by_value[value])
    elif not is_full:
        rows_by_value[value] = row


def read_cells(manifest: BinaryIO, index: Index) -> Iterator[Cell]:
    """The rows in the order of their numbers."""
    for number in sorted(index.offsets):
        manifest.seek(index.offsets[number])
        line = manifest.readline()
        yield read_cell(read_line(line))


def value_in_words(value: Any) -> str:
    """A value on the sheet. ``@FILE`` is a file that was uploaded."""
    text = str(value)
    is_file = text.startswith("@") and text != "@"
    if is_file:
        return text[1:]
    return text


# -- the page --------------------------------------------------------------------------------------


def choose_axes(index: Index) -> Optional[Axes]:
    """The axes of a batch whose rows are all combinations of values; None for any other."""
    names = list(index.varying)
    if len(names) < 2:
        return None
    combinations = 1
    for name in names:
        if len(index.varying[name]) > MOST_ON_AXIS:
            return None
        combinations *= len(index.varying[name])
    rows = len(index.offsets)
    if combinations < rows:  # some combination appears twice
        return None
    is_mostly_empty = combinations > 2 * rows
    if is_mostly_empty:
        return None
    return Axes(names[:-2], names[-2], names[-1])


def make_sheet(title: str, cells: Iterable[Cell], index: Index, folder: str) -> Iterator[str]:
    """The pieces of the page. Files are named as seen from ``folder``, where the page is."""
    ended = plural(len(index.offsets), "row")
    yield (
        f'<!DOCTYPE html>\n{SHEET_MARK}\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="script-src \'none\'">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}: {ended}</h1>\n"
    )
    axes = choose_axes(index)
    if axes is None:
        yield '<div class="flow">\n'
        for cell in cells:
            yield make_figure(cell, index.varying, folder)
        yield "</div>\n"
    else:
        yield from make_grids(list(cells), index, axes, folder)
    yield "</body>\n</html>\n"


def make_grids(cells: Sequence[Cell], index: Index, axes: Axes, folder: str) -> Iterator[str]:
    """A table for each section: a line for each value of one name, a column for each of another."""
    grids: Dict[ValuesInWords, Dict[ValuesInWords, Cell]] = {}  # by section, then by row and column
    for cell in cells:
        section = words_of_values(cell, axes.sections)
        place = words_of_values(cell, [axes.rows, axes.columns])
        grids.setdefault(section, {})[place] = cell

    for section, grid in grids.items():
        if section:
            pairs = zip(axes.sections, section)
            words = ", ".join(f"{name}: {shorten(value)}" for name, value in pairs)
            yield f"<h2>{html.escape(words)}</h2>\n"
        corner = f"{html.escape(axes.rows)} \N{RIGHTWARDS ARROW} {html.escape(axes.columns)}"
        yield f'<div class="scroll"><table>\n<tr><th>{corner}</th>'
        for column in index.varying[axes.columns]:
            yield f'<th scope="col">{caption_of(column)}</th>'
        yield "</tr>\n"
        for row in index.varying[axes.rows]:
            yield f'<tr><th scope="row">{caption_of(row)}</th>'
            for column in index.varying[axes.columns]:
                figure = ""
                if (row, column) in grid:
                    figure = make_figure(grid[row, column], {}, folder)
                yield f"<td>{figure}</td>"
            yield "</tr>\n"
        yield "</table></div>\n"


def words_of_values(cell: Cell, names: Iterable[str]) -> ValuesInWords:
    """The values that a row has for some names, in words; "" for those that it does not have."""
    return tuple(value_in_words(cell.values.get(name, "")) for name in names)


def make_figure(cell: Cell, varying: Mapping[str, Any], folder: str) -> str:
    """What a row made, and under it the values that differ, the seed, and how long it took."""
    lines = []
    for name in varying:
        if name in cell.values:
            value = caption_of(cell.values[name])
            lines.append(f"{html.escape(name)}: {value}")
    facts = [cell.name, *(f"seed {seed}" for seed in cell.seeds)]
    if cell.seconds:
        facts.append(duration(cell.seconds))
    lines.append(html.escape(", ".join(facts)))
    if cell.failure:
        message = html.escape(one_line(cell.failure, LONGEST_FAILURE))
        caption = "<br>".join([f"<strong>{message}</strong>", *lines])
        return f'<figure class="failed"><figcaption>{caption}</figcaption></figure>\n'
    shown = [make_output(cell, output, folder) for output in cell.outputs]
    caption = "<br>".join(lines)
    return f"<figure>{''.join(shown)}<figcaption>{caption}</figcaption></figure>\n"


def make_output(cell: Cell, output: JsonObject, folder: str) -> str:
    """One output: a picture, something that plays, a text, or a link to any other file."""
    path = output.get("path")
    if not isinstance(path, str) or not path:
        text = one_line(output.get("text") or "", LONGEST_SHOWN_TEXT)
        return f"<pre>{html.escape(text)}</pre>"
    name = os.path.basename(path)
    address = html.escape(address_from(path, folder))
    label = html.escape(f"{cell.name}: {name}")
    kind = kind_of_name(name)
    picture = player = ""
    if kind == "image":
        picture = f'<img src="{address}" alt="{label}" loading="lazy">'
    elif kind == "video":
        plays = 'controls loop muted preload="metadata"'
        player = f'<video src="{address}" title="{label}" {plays}></video>'
    elif kind == "audio":
        player = f'<audio src="{address}" title="{label}" controls preload="none"></audio>'
    return f'{player}<a href="{address}">{picture}{html.escape(name)}</a>'


def address_from(path: str, folder: str) -> str:
    """The address of a file for a page in ``folder``: it may be moved together with the files."""
    try:
        relative = os.path.relpath(path, folder)
    except ValueError:  # on another drive of Windows
        return absolute_address(path)
    # A name on Linux need not be text, and half of a surrogate pair has no form in UTF-8.
    return urllib.parse.quote(relative.replace(os.sep, "/"), errors="replace")


def absolute_address(path: str) -> str:
    """The address of a file for a page on another drive.

    On Windows a path may have a drive and yet be relative: ``D:out`` is in D's current folder.
    """
    whole = Path(os.path.abspath(path))
    return whole.as_uri()


def caption_of(value: Any) -> str:
    """A value for a caption, as HTML."""
    text = value_in_words(value)
    short = shorten(text)
    if short == text:
        return html.escape(text)
    return f'<span title="{html.escape(text)}">{html.escape(short)}</span>'


def shorten(text: str) -> str:
    """``text`` in one line, and not too long."""
    return one_line(text, CAPTION_LENGTH)


def sheet_path(manifest: str) -> str:
    """Where the page of a manifest is: ``sheet.html``, or ``x.sheet.html`` of another name.

    Several batches may have their manifests in one folder, and each of them has a page.
    """
    folder, name = os.path.split(manifest)
    stem = os.path.splitext(name)[0]
    if stem == "manifest":
        return os.path.join(folder, "sheet.html")
    if stem.endswith(".manifest"):
        stem = os.path.splitext(stem)[0]
    return os.path.join(folder, f"{stem}.sheet.html")


class Sheet:
    """The page beside a manifest."""

    def __init__(self, manifest: str, title: str) -> None:
        self.path = sheet_path(manifest)
        self._manifest = manifest
        self._title = title
        self._writing = threading.Lock()  # an older page must not come after a newer one

    def write(self) -> None:
        """Writes the page anew. Raises SaveError, also where somebody else's page has its name."""
        with self._writing:
            self._require_ours()
            write_text_file(self.path, self._make())

    def _make(self) -> str:
        try:
            with open(self._manifest, "rb") as manifest:
                index = index_manifest(manifest)
                cells = read_cells(manifest, index)
                folder = os.path.dirname(os.path.abspath(self.path))
                return "".join(make_sheet(self._title, cells, index, folder))
        except OSError as error:
            raise SaveError(
                f"{self._manifest} cannot be read: {error.strerror or error}."
            ) from None

    def _require_ours(self) -> None:
        try:
            with open(self.path, "rb") as file:
                beginning = file.read(200)
        except OSError:
            return  # there is none yet
        if SHEET_MARK.encode() not in beginning:
            raise SaveError(f"{self.path} is not one of our sheets, so it is left as it is.")
