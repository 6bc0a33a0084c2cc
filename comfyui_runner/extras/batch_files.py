"""The files of a batch: the rows that are read, and the manifest that is written."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import stat
from io import BufferedReader, FileIO, TextIOWrapper
from typing import Any, Generator, Iterable, Iterator, List, Mapping, Optional, TextIO

from comfyui_runner.contents import guess_encoding, save_as_utf_8, text_encoding
from comfyui_runner.edits import EditError
from comfyui_runner.errors import SaveError, UsageError
from comfyui_runner.extras.batches import (
    ListedRows,
    Row,
    check_columns,
    read_listed_rows,
    read_rows,
    row_key,
    words_for_columns,
)
from comfyui_runner.extras.sweeps import (
    Axis,
    FileAccess,
    count_combinations,
    read_axes,
    rows_of_product,
)
from comfyui_runner.files import name_on_disk, reason_not_read
from comfyui_runner.loading import Loaded, files_that_fit, offer_files, read_text_file
from comfyui_runner.nodes import InputRef
from comfyui_runner.patterns import folder_before_fields
from comfyui_runner.redaction import Secrets
from comfyui_runner.settings import Settings
from comfyui_runner.text import plain_json
from comfyui_runner.windows_files import reason_not_written

#: What editors on Windows put before a text in UTF-8.
BYTE_ORDER_MARK = "\ufeff"

# -- the rows --------------------------------------------------------------------------------------


def count_rows(settings: Settings, workflow: Loaded, stdin: TextIO) -> Optional[int]:
    """How many rows there are; None where they can be read once only.

    Then they are read when they run. A file is read through before its first row runs. Raises
    UsageError, and EditError for a header that cannot be used.
    """
    if settings.each:
        return count_combinations(read_axes_of(settings, workflow)) * settings.repeat
    if settings.batch is None:
        return settings.repeat
    if is_streamed(settings.batch):
        return None
    return sum(1 for _ in read_all_rows(settings, workflow, stdin))


def count_done_rows(settings: Settings, workflow: Loaded, stdin: TextIO, manifest: Manifest) -> int:
    """How many rows an earlier batch has done. Raises as count_rows() does.

    Only the rows up to the last one in the manifest are read: there may be a million more.
    """
    rows = read_all_rows(settings, workflow, stdin)
    listed = itertools.takewhile(lambda row: row.number <= manifest.last_row, rows)
    return sum(not row.error and manifest.lists_as_done(row) for row in listed)


def find_varied_inputs(
    settings: Settings, workflow: Loaded, stdin: TextIO
) -> Mapping[InputRef, str]:
    """What the summary shows for the inputs that the rows set, by the first of them.

    Raises UsageError, and EditError for a header that cannot be used.
    """
    if is_streamed(settings.batch):
        return {}
    counts: Mapping[str, int] = {}
    if settings.each:
        axes = read_axes_of(settings, workflow)
        counts = {axis.name: len(axis.values) for axis in axes}
    with open_rows(settings, workflow, stdin) as rows:
        first = next(rows, Row(1))
    return words_for_columns(workflow.prompt, first, counts, workflow.object_info)


def is_streamed(batch: Optional[str]) -> bool:
    """Whether the rows come from standard input or a pipe."""
    if batch is None:
        return False
    if batch == "-":
        return True
    is_file_or_folder = os.path.isfile(batch) or os.path.isdir(batch)
    return os.path.exists(batch) and not is_file_or_folder


@contextlib.contextmanager
def open_rows(settings: Settings, workflow: Loaded, stdin: TextIO) -> Iterator[Iterator[Row]]:
    """The rows; at the end of the block their file is closed, though not all of it is read."""
    rows = read_all_rows(settings, workflow, stdin)
    try:
        yield rows
    finally:
        try:
            rows.close()
        except ValueError:
            pass  # a thread still waits for a line of standard input


def read_all_rows(
    settings: Settings, workflow: Loaded, stdin: TextIO
) -> Generator[Row, None, None]:
    """The rows of --batch or --each, each --repeat times; else --repeat rows without values.

    Raises UsageError, and EditError for a name or a value that cannot be used.
    """
    if settings.each:
        for row in rows_of_product(read_axes_of(settings, workflow)):
            yield from repeat_row(row, settings.repeat)
        return
    if settings.batch is None:
        first = settings.first_row
        yield from (Row(number) for number in range(first, first + settings.repeat))
        return
    try:
        yield from _read_batch(settings.batch, settings.repeat, workflow, stdin)
    except OSError as error:
        raise _batch_not_read(settings.batch, error) from None
    except UnicodeDecodeError as error:
        encoding = guess_encoding(error.object)
        reason = "it is not text in UTF-8"
        if encoding:
            reason = f"it is in {encoding}, not in UTF-8"
        message = f"--batch {settings.batch} cannot be read: {reason}."
        raise UsageError(message, save_as_utf_8(encoding)) from None


def _read_batch(
    batch: str, repeat: int, workflow: Loaded, stdin: TextIO
) -> Generator[Row, None, None]:
    """The rows of a file or of standard input, each ``repeat`` times."""
    with contextlib.ExitStack() as stack:
        if batch == "-":
            file = stack.enter_context(decode_input(stdin))
        else:
            file = decode_rows(stack.enter_context(open(batch, "rb")))
        if batch.lower().endswith(".txt"):
            rows = read_text_rows(file, workflow)
        else:
            rows = read_file(file, workflow)
        for row in rows:
            yield from repeat_row(row, repeat)


def _batch_not_read(path: str, error: OSError) -> UsageError:
    reason = reason_not_read(path, error)
    remedy = ""
    if isinstance(error, FileNotFoundError):
        remedy = offer_files(path)
    return UsageError(f"--batch {path} cannot be read: {reason}.", remedy)


@contextlib.contextmanager
def decode_input(stdin: TextIO) -> Iterator[TextIO]:
    """The text of standard input; at the end of the block it stays open.

    What is not a console is read as a file is: Python would take its bytes for Windows' code page.
    """
    data = getattr(stdin, "buffer", None)  # not every stand-in has it
    if data is None or stdin.isatty():
        yield stdin
        return
    rows = decode_rows(data)
    try:
        yield rows
    finally:
        with contextlib.suppress(ValueError):  # a thread still waits for a line of it
            rows.detach()


def decode_rows(data: BufferedReader) -> TextIOWrapper:
    """The text in ``data``, line by line as it comes: UTF-16 by its mark, else UTF-8."""
    return TextIOWrapper(data, encoding=text_encoding(data.peek(2)), newline="")


def read_file(file: Iterable[str], workflow: Loaded) -> Iterator[Row]:
    """The rows of a CSV or JSON Lines file. The columns of a CSV file are checked once."""
    lines = iter(file)
    lines_with_text = (line for line in lines if line.strip(BYTE_ORDER_MARK + " \t\r\n"))
    first = next(lines_with_text, "").lstrip(BYTE_ORDER_MARK)
    is_json_lines = first.lstrip().startswith("{")
    must_check_columns = not is_json_lines
    for row in read_rows(itertools.chain([first], lines), is_json_lines):
        if must_check_columns and not row.error:
            check_columns(workflow.prompt, row.values, workflow.object_info)
            must_check_columns = False
        yield row


def read_text_rows(file: TextIO, workflow: Loaded) -> Iterator[Row]:
    """The rows of a text file: a positive text on each line that is not empty.

    It is a table where its first line names columns: spreadsheets save "Unicode text" so.
    """
    lines = (line.lstrip(BYTE_ORDER_MARK) for line in file)
    lines_with_text = (line for line in lines if line.strip())
    first = next(lines_with_text, "")
    if names_columns(first, workflow):
        yield from read_file(itertools.chain([first], lines), workflow)
        return
    check_columns(workflow.prompt, ["positive"], workflow.object_info)
    if not first:
        return
    texts = itertools.chain([first], lines_with_text)
    for number, line in enumerate(texts, 1):
        yield Row(number, {"positive": line.strip("\r\n")})


def names_columns(line: str, workflow: Loaded) -> bool:
    """Whether each part of ``line``, between tabs, names what a column can set."""
    names = [name.strip() for name in line.split("\t")]
    try:
        check_columns(workflow.prompt, names, workflow.object_info)
    except EditError:
        return False
    return True


def read_axes_of(settings: Settings, workflow: Loaded) -> List[Axis]:
    """The axes of --each. Raises UsageError for a file, and EditError for a name or a value."""
    files = FileAccess(find=files_that_fit, read_lines=read_lines_of)
    return read_axes(settings.each, workflow.prompt, workflow.object_info, files)


def read_lines_of(path: str) -> List[str]:
    """The lines of a text file. Raises UsageError."""
    return read_text_file(path).split("\n")


def repeat_row(row: Row, repeat: int) -> Iterator[Row]:
    """The row ``repeat`` times, numbered on: the second row of --repeat 3 is rows 4, 5 and 6."""
    first = (row.number - 1) * repeat + 1
    for number in range(first, first + repeat):
        yield row._replace(number=number)


# -- the manifest ----------------------------------------------------------------------------------


def manifest_path(settings: Settings) -> str:
    """Where the manifest is: --manifest, else beside the outputs or the rows.

    "" is nowhere: runs without rows that are not saved leave nothing behind. Raises UsageError if
    --resume needs one.
    """
    if settings.manifest:
        return settings.manifest
    is_pattern = "{" in (settings.output or "")
    if settings.output and not is_pattern:
        return os.path.join(settings.output, "manifest.jsonl")
    if not settings.has_rows:
        return _manifest_of_repeat(settings)
    stem = settings.batch or "-"
    if stem == "-":
        stem = settings.workflow
    if stem == "-":  # both come from standard input
        stem = "batch"
    return os.path.splitext(stem)[0] + ".manifest.jsonl"


def _manifest_of_repeat(settings: Settings) -> str:
    if settings.output:
        return os.path.join(folder_before_fields(settings.output), "manifest.jsonl")
    if settings.resume:
        raise UsageError(
            "--resume reads the manifest, but this --repeat does not write one.",
            "Add -o DIR or --manifest FILE, as in the command that started the batch.",
        )
    return ""


class Manifest:
    """A line of JSON for each row that has ended. It is open in its ``with`` block.

    ``secrets`` are hidden in it. Without a ``path``, nothing is written. ``goes_on``: rows are
    numbered on from those that are listed.

    Raises UsageError if an earlier batch wrote it and neither ``resume`` nor ``goes_on`` is given,
    if it cannot be read and, at the beginning of the block, if it cannot be opened; SaveError if it
    cannot be written.
    """

    def __init__(self, path: str, resume: bool, secrets: Secrets, goes_on: bool = False) -> None:
        self.path = ""
        if path:
            self.path = name_on_disk(path)
        self._secrets = secrets
        self._listed = read_manifest(self.path, resume, goes_on)
        self.first_row = 1
        if goes_on:
            self.first_row = self._listed.first_row(resume)
        self._file: Optional[FileIO] = None

    def __enter__(self) -> "Manifest":
        if not self.path:
            return self
        try:
            os.makedirs(os.path.dirname(os.path.abspath(self.path)), exist_ok=True)
            # Without a buffer, in which what could not be written would wait for the next try.
            self._file = open(self.path, "ab", buffering=0)
        except OSError as error:
            raise UsageError(self._describe_failure(error)) from None
        try:
            self._begin(self._file)
        except SaveError:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is None:
            return
        try:
            self._file.close()
        except OSError as error:  # a network drive may notice only now that it is full
            raise self._not_written(error) from None

    def _begin(self, file: FileIO) -> None:
        """Begins a line; in a new file, it only tries whether there is room for one."""
        status = os.fstat(file.fileno())
        is_new = status.st_size == 0
        if not is_new:
            self._write(b"\n")  # after a crash the last line may be cut off
        elif stat.S_ISREG(status.st_mode):
            self._write(b"\n")
            file.truncate(0)

    @property
    def last_row(self) -> int:
        """The highest number of a row that an earlier batch has listed."""
        return self._listed.last

    def lists_as_done(self, row: Row) -> bool:
        """Whether an earlier batch has done this very row."""
        return self._listed.done.get(row.number) == row_key(row.values)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Writes a line, whole or not at all. Raises SaveError."""
        if self._file is None:
            return
        shown = self._secrets.hide_in(plain_json(entry))
        line = json.dumps(shown, ensure_ascii=False) + "\n"
        self._write(line.encode(errors="replace"))

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        size = os.fstat(self._file.fileno()).st_size
        try:
            while data:
                written = self._file.write(data)
                data = data[written:]
        except OSError as error:
            with contextlib.suppress(OSError):  # a pipe has no size
                self._file.truncate(size)
            raise self._not_written(error) from None

    def _not_written(self, error: OSError) -> SaveError:
        remedy = "Make room there: with --resume, the rows that it does not list run again."
        return SaveError(self._describe_failure(error), remedy)

    def _describe_failure(self, error: OSError) -> str:
        return f"The manifest {self.path} cannot be written: {reason_not_written(error)}."


def read_manifest(path: str, resume: bool, goes_on: bool) -> ListedRows:
    """The rows that a manifest lists. Raises UsageError."""
    if os.path.isdir(path):
        raise UsageError(f"The manifest {path} is a folder.", "Name a file in it.")
    is_new = not os.path.exists(path) or not os.path.getsize(path)
    if is_new:
        return ListedRows()
    if not resume and not goes_on:
        raise UsageError(
            f"{path} is the manifest of an earlier batch.",
            "Add --resume to continue that batch, or choose another file with --manifest.",
        )
    try:
        with open(path, encoding="utf-8", errors="replace") as lines:
            return read_listed_rows(lines)
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"The manifest {path} cannot be read: {reason}.") from None
