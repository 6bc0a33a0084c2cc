"""The state file: a database of SQLite, in one connection that no other process shares.

Everything here blocks, and is called by one thread at a time. sqlite3 is imported when a file is
opened: single runs need none, and some Pythons are built without it.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import zlib
from typing import Any, Dict, Iterator, List, Mapping, Optional

from comfyui_runner.files import name_on_disk, when_not_in_use
from comfyui_runner.state import Phase
from comfyui_runner.stored_state import (
    APPLICATION_ID,
    MOST_BYTES_OF_PROMPT,
    FileKind,
    StoredRun,
    kind_of_file,
    spooled_as_text,
    spooled_from_text,
)
from comfyui_runner.windows_files import reason_not_written

#: The version of the tables below. One with a higher version was written by a newer program.
SCHEMA_VERSION = 1

#: Seconds to wait for a process that is about to close the same file.
LOCK_SECONDS = 2.0

#: Larger files are not read through at the start.
MOST_BYTES_TO_CHECK = 64 << 20

_TABLES = """
CREATE TABLE runs (
    number INTEGER PRIMARY KEY,
    prompt_id TEXT NOT NULL UNIQUE,
    created REAL NOT NULL,
    phase TEXT NOT NULL,
    is_over INTEGER NOT NULL,
    is_cancelled INTEGER NOT NULL,
    spooled TEXT NOT NULL,
    shown TEXT NOT NULL,
    checksum INTEGER NOT NULL,
    prompt BLOB NOT NULL
);
CREATE INDEX open_runs ON runs (number) WHERE is_over = 0;
CREATE TABLE held (name TEXT PRIMARY KEY, content BLOB NOT NULL);
"""

# Everything but the prompt.
_COLUMNS = "number, prompt_id, created, phase, is_cancelled, spooled, shown, checksum"

# What SQLite says where the tables are not those that were made.
_WORDS_OF_DAMAGE = ("malformed", "no such table", "no such column", "already exists", "columns but")


class StateFileError(Exception):
    """The state file cannot be used; the text is the end of a sentence.

    ``in_use``: another process has it open. ``damaged``: its content is broken, or of a newer
    program, and it should be set aside.
    """

    def __init__(self, reason: str, *, in_use: bool = False, damaged: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.in_use = in_use
        self.damaged = damaged


class ForeignFile(StateFileError):
    """The file is another program's, or no regular file."""


@contextlib.contextmanager
def sqlite_errors() -> Iterator[None]:
    """Raises StateFileError for what sqlite3 and the system raise in the block."""
    import sqlite3  # not every Python has it

    try:
        yield
    except sqlite3.OperationalError as error:
        reason = str(error)
        is_damaged = any(words in reason for words in _WORDS_OF_DAMAGE)
        raise StateFileError(reason, in_use="locked" in reason, damaged=is_damaged) from None
    except sqlite3.DatabaseError as error:
        raise StateFileError(str(error), damaged=True) from None
    except sqlite3.Error as error:
        raise StateFileError(str(error)) from None
    except UnicodeDecodeError:  # SQLite's message quotes what is wrong with the tables
        raise StateFileError("its tables cannot be read", damaged=True) from None
    except (OSError, OverflowError) as error:
        reason = str(error)
        if isinstance(error, OSError):
            reason = reason_not_written(error)
        raise StateFileError(reason) from None


def open_state_file(path: str) -> "StateFile":
    """The state file at ``path``, which is made if it does not exist. Raises StateFileError."""
    path = name_on_disk(path)
    try:
        with sqlite_errors():
            check_is_ours(path)
            return StateFile(path)
    except ImportError:
        raise StateFileError("this Python was built without sqlite3") from None


def check_is_ours(path: str) -> None:
    """Raises StateFileError unless there is no file, or it is a state file. Raises OSError."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise ForeignFile("it is not a regular file")  # reading a pipe could take forever
    # Only its owner may read it: prompts are private. SQLite gives -wal the same mode.
    handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
    with open(handle, "rb") as file:
        kind = kind_of_file(file.read(100), os.path.basename(path))
    if kind is FileKind.FOREIGN:
        raise ForeignFile("it is not a state file of this program")
    if kind is FileKind.DAMAGED:
        raise StateFileError("it is not a database", damaged=True)


def set_aside(path: str, now: datetime.datetime) -> str:
    """Renames a state file that cannot be used: its new path. Raises OSError."""
    path = name_on_disk(path)
    new_path = f"{path}.unusable-{now:%Y%m%d-%H%M%S}"
    when_not_in_use(lambda: os.replace(path, new_path))
    for ending in ("-wal", "-journal", "-shm"):  # they would be taken for those of the new file
        with contextlib.suppress(OSError):
            os.replace(path + ending, new_path + ending)
    return new_path


class StateFile:
    """An open state file. Made by open_state_file(); every method raises StateFileError."""

    def __init__(self, path: str) -> None:
        import sqlite3  # not every Python has it

        self.path = path
        # As an absolute path: the name ":memory:" would mean no file.
        self._connection: Any = sqlite3.connect(
            os.path.abspath(path),
            timeout=LOCK_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        # A text that a disk has changed may not be UTF-8 any more: its checksum finds it. SQLite's
        # own error would lose the whole file, and has the text in its message.
        self._connection.text_factory = lambda text: text.decode(errors="replace")
        try:
            with sqlite_errors():
                self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self) -> None:
        """Locks the file and makes the tables, or checks them."""
        self._run("PRAGMA locking_mode = EXCLUSIVE")
        version = self._value("PRAGMA user_version")
        if version > SCHEMA_VERSION:
            raise StateFileError("a newer version of this program wrote it", damaged=True)
        if version == 0:  # before the log: the mark must be in the file itself
            with self._transaction():
                self._run(f"PRAGMA application_id = {APPLICATION_ID}")
                self._run(f"PRAGMA user_version = {SCHEMA_VERSION}")
                for statement in _TABLES.split(";"):
                    self._run(statement)
        # A log that is opened under an exclusive lock needs no memory that processes share, so it
        # works on network drives too (https://www.sqlite.org/wal.html).
        self._run("PRAGMA journal_mode = WAL")
        self._run("PRAGMA synchronous = NORMAL")  # a commit survives kill -9 without fsync()
        with self._transaction():
            # The spool of the process that wrote it is gone.
            self._run("UPDATE runs SET spooled = '{}' WHERE spooled <> '{}'")
        self._check_content()

    def _check_content(self) -> None:
        if os.path.getsize(self.path) > MOST_BYTES_TO_CHECK:
            return
        found = self._value("PRAGMA quick_check(1)")
        if found != "ok":
            raise StateFileError(str(found), damaged=True)

    def close(self) -> None:
        """Closes it, and gives the log back to the file."""
        with contextlib.suppress(Exception):  # nothing can be done about it any more
            self._run("PRAGMA wal_checkpoint(TRUNCATE)")
        with contextlib.suppress(Exception):
            self._connection.close()

    # -- runs --------------------------------------------------------------------------------------

    def last_number(self) -> int:
        """The number of the newest run; 0 where there is none."""
        with sqlite_errors():
            return int(self._value("SELECT max(number) FROM runs") or 0)

    def count(self) -> int:
        """How many runs it has."""
        with sqlite_errors():
            return int(self._value("SELECT count(*) FROM runs"))

    def add(self, run: StoredRun, kept: int) -> None:
        """Adds a run, and removes the oldest ended ones until ``kept`` runs are there."""
        row = (
            run.number,
            run.prompt_id,
            run.created,
            run.phase.value,
            run.phase.over,
            run.is_cancelled,
            spooled_as_text(run.spooled),
            run.shown,
            checksum_of(run.shown),
            run.prompt,
        )
        with sqlite_errors(), self._transaction():
            self._run("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", *row)
            oldest_kept = self._value(
                "SELECT number FROM runs ORDER BY number DESC LIMIT 1 OFFSET ?", kept - 1
            )
            if oldest_kept is not None:
                self._run("DELETE FROM runs WHERE is_over AND number < ?", oldest_kept)

    def change(self, prompt_id: str, phase: Phase, is_cancelled: bool) -> None:
        """Notes where a run is that has not ended."""
        with sqlite_errors():
            self._run(
                "UPDATE runs SET phase = ?, is_cancelled = ? WHERE prompt_id = ? AND NOT is_over",
                phase.value,
                is_cancelled,
                prompt_id,
            )

    def end(self, run: StoredRun) -> None:
        """Notes how a run has ended: one whose end is not known is taken up at the next start."""
        with sqlite_errors():
            self._run(
                "UPDATE runs SET phase = :phase, is_over = :is_over, spooled = :spooled, "
                "shown = :shown, checksum = :checksum, "
                "prompt = CASE WHEN length(prompt) > :most_bytes THEN x'' ELSE prompt END "
                "WHERE prompt_id = :prompt_id",
                phase=run.phase.value,
                is_over=run.phase.over,
                spooled=spooled_as_text(run.spooled),
                shown=run.shown,
                checksum=checksum_of(run.shown),
                most_bytes=MOST_BYTES_OF_PROMPT,
                prompt_id=run.prompt_id,
            )

    def get(self, prompt_id: str) -> Optional[StoredRun]:
        """The run of that prompt_id, without its prompt; None where there is none."""
        query = f"SELECT {_COLUMNS} FROM runs WHERE prompt_id = ?"
        with sqlite_errors():
            rows = self._run(query, prompt_id)
        return next((_as_run(row) for row in rows), None)

    def prompt_of(self, prompt_id: str) -> bytes:
        """The packed prompt of a run; empty where it was not kept, or the run is not there."""
        query = "SELECT prompt FROM runs WHERE prompt_id = ?"
        with sqlite_errors():
            rows = self._run(query, prompt_id)
        return next((_as_bytes(prompt) for (prompt,) in rows), b"")

    def remove(self, prompt_id: str) -> None:
        """Removes a run that has ended."""
        with sqlite_errors():
            self._run("DELETE FROM runs WHERE prompt_id = ? AND is_over", prompt_id)

    def page(self, limit: int, before: Optional[int]) -> List[StoredRun]:
        """The newest ``limit`` runs (with numbers below ``before``), without their prompts."""
        query = f"SELECT {_COLUMNS} FROM runs WHERE number < ? ORDER BY number DESC LIMIT ?"
        if before is None:
            before = 2**62
        with sqlite_errors():
            rows = self._run(query, before, limit)
        return [_as_run(row) for row in rows]

    def open_runs(self) -> List[StoredRun]:
        """The runs that have not ended, oldest first, with their prompts."""
        query = f"SELECT {_COLUMNS}, prompt FROM runs WHERE is_over = 0 ORDER BY number"
        with sqlite_errors():
            rows = self._run(query)
        return [_as_run(row)._replace(prompt=_as_bytes(row[-1])) for row in rows]

    # -- the held workflow -------------------------------------------------------------------------

    def hold(self, contents: Mapping[str, bytes]) -> None:
        """Writes parts of what is held, by their names; what is empty is removed."""
        with sqlite_errors(), self._transaction():
            for name, content in contents.items():
                self._run("DELETE FROM held WHERE name = ?", name)
                if content:
                    self._run("INSERT INTO held VALUES (?, ?)", name, content)

    def held(self) -> Dict[str, bytes]:
        """All that hold() wrote."""
        with sqlite_errors():
            rows = self._run("SELECT * FROM held")
        return {name: _as_bytes(content) for name, content in rows}

    # -- statements --------------------------------------------------------------------------------

    def _run(self, statement: str, *values: Any, **named_values: Any) -> List[Any]:
        """The rows of an SQL statement whose placeholders are either ``?`` or ``:name``."""
        rows: List[Any] = self._connection.execute(statement, named_values or values).fetchall()
        return rows

    def _value(self, query: str, *values: Any) -> Any:
        rows = self._run(query, *values)
        return rows[0][0] if rows else None

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._run("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            with contextlib.suppress(Exception):  # on a full disk SQLite has rolled back itself
                self._run("ROLLBACK")
            raise
        self._run("COMMIT")


def checksum_of(text: str) -> int:
    """What shows that ``text`` is still as it was written."""
    return zlib.crc32(text.encode())


def _as_run(row: Any) -> StoredRun:
    """The run of a row of _COLUMNS. Raises StateFileError."""
    number, prompt_id, created, phase, is_cancelled, spooled, shown, checksum = row[:8]
    try:
        known_phase = Phase(phase)
    except ValueError:
        raise StateFileError("it has a phase that does not exist", damaged=True) from None
    is_intact = isinstance(shown, str) and checksum_of(shown) == checksum
    if not is_intact:
        shown = ""  # SQLite itself notices only what breaks its own structure
    # A column of SQLite holds values of every type.
    if not isinstance(prompt_id, str) or not isinstance(created, (int, float)):
        raise StateFileError("it has a run with values of other types", damaged=True)
    return StoredRun(
        number,
        prompt_id,
        created,
        known_phase,
        shown,
        is_cancelled=bool(is_cancelled),
        spooled=spooled_from_text(spooled),
    )


def _as_bytes(value: Any) -> bytes:
    """``value``, of a column of bytes. Raises StateFileError for a value of another type."""
    if not isinstance(value, bytes):
        raise StateFileError("it has another value where there should be bytes", damaged=True)
    return value
