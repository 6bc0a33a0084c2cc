"""The workflows that the service can hold, one at a time: the files of the command line.

Where another one is chosen, the edits of the one before stay in memory and are held again with it.
The same is true of a workflow that a client has sent in place of a file.
"""

from __future__ import annotations

import os
import threading
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from comfyui_runner.errors import RunnerError
from comfyui_runner.held_workflow import HeldWorkflow, PutAside
from comfyui_runner.loading import Loaded, read_document
from comfyui_runner.messages import HttpError
from comfyui_runner.nodes import nearest_first, quote_name
from comfyui_runner.stored_workflow import StoredWorkflow
from comfyui_runner.text import JsonObject

#: The key of the client's workflow among those that are put aside: it has no file.
CLIENTS = ""

#: When a file was changed, in nanoseconds, and its size. While both are the same, so is the file.
FileMark = Tuple[int, int]


class Chosen(NamedTuple):
    """A workflow of the list that is held now."""

    loaded: Loaded
    revision: int
    warnings: Tuple[str, ...] = ()


def name_workflows(paths: Sequence[str]) -> List[str]:
    """A name for each of ``paths``: that of the file, made different where several have the same.

    Requests name workflows by these, and never by a path.
    """
    names: List[str] = []
    for path in paths:
        name = os.path.basename(path)
        stem, ending = os.path.splitext(name)
        number = 1
        while name in names:
            number += 1
            name = f"{stem} ({number}){ending}"
        names.append(name)
    return names


class WorkflowList:
    """The workflows that can be held, by their names. The first one is held at the start.

    ``load`` reads the workflow of a path. ``lock`` is the service's.
    """

    def __init__(
        self,
        paths: Sequence[str],
        held: HeldWorkflow,
        load: Callable[[str], Loaded],
        lock: "threading.RLock",
    ) -> None:
        self._paths = dict(zip(name_workflows(paths), paths))
        self.file_name = next(iter(self._paths))  #: of the file that was chosen last
        self._held = held
        self._load = load
        self._lock = lock
        self._aside: Dict[str, PutAside] = {}  # by name; CLIENTS for a client's workflow
        self._stored: Dict[str, StoredWorkflow] = {}  # what an earlier process held, by its name
        #: by path, why a file cannot be read ("": it can), and its mark at that time
        self._known: Dict[str, Tuple[FileMark, str]] = {}

    # -- what there is -----------------------------------------------------------------------------

    @property
    def names(self) -> List[str]:
        """The names of the files, and that of a client's workflow behind them."""
        client = self._client_path()
        if client is None:
            return list(self._paths)
        return name_workflows([*self._paths.values(), client])

    @property
    def name(self) -> str:
        """The name of the workflow that is held."""
        if self._held.is_clients:
            return self.names[-1]
        return self.file_name

    def _client_path(self) -> Optional[str]:
        """What the client has called its workflow, which is held or put aside; None without one."""
        if self._held.is_clients:
            return self._held.path
        aside = self._aside.get(CLIENTS)
        if aside is None:
            return None
        return aside.before_edits.path

    def to_status(self) -> JsonObject:
        """What GET /status has of the list."""
        with self._lock:
            return {"name": self.name, "choices": len(self.names)}

    def to_json(self) -> List[JsonObject]:
        """GET /workflows."""
        return list(self._describe_all())

    def _describe_all(self) -> Iterator[JsonObject]:
        with self._lock:
            names = self.names
            held_name = self.name
            changed = {*self._aside, *self._stored}
            if self._held.is_edited:
                changed.add(held_name)
        for name in names:
            path = self._paths.get(name)
            reason = ""
            if path is not None:
                reason = self._why_not_readable(path)
            yield {
                "name": name,
                "held": name == held_name,
                "changed": name in changed,
                "is_file": path is not None,
                "readable": not reason,
                "message": reason,
            }

    def _why_not_readable(self, path: str) -> str:
        """Why the file is not a workflow; "" where it is one. It is read only if it has changed."""
        if path == "-":  # standard input, which was read at the start
            return ""
        mark = _mark_of_file(path)
        known_mark, known_reason = self._known.get(path, (None, ""))
        if mark is not None and mark == known_mark:
            return known_reason

        reason = ""
        try:
            read_document(path)
        except RunnerError as error:
            reason = error.message
        if mark is not None:
            self._known[path] = (mark, reason)
        return reason

    # -- choosing ----------------------------------------------------------------------------------

    def choose(self, name: str) -> Chosen:
        """Hold the workflow of that name: with its edits where it has some, else as its file is.

        Raises HttpError 404, and what reading the file raises; nothing changes then.
        """
        with self._lock:
            chosen = self._choose_known(name)
        if chosen is not None:
            return chosen
        loaded = self._load(self._paths[name])  # without the lock: disks and ComfyUI may be slow
        with self._lock:
            chosen = self._choose_known(name)  # another request may have been quicker
            if chosen is not None:
                return chosen
            self._leave()
            self.file_name = name
            return self._hold_file(loaded)

    def _choose_known(self, name: str) -> Optional[Chosen]:
        """Hold a workflow again whose file need not be read; None for any other of the list.

        Raises HttpError 404.
        """
        if name not in self.names:
            raise no_such_workflow(name, self.names)
        if name == self.name:
            return self._chosen(self._held.now.revision)
        is_of_file = name in self._paths
        if not is_of_file:
            return self._hold_again(CLIENTS)
        if name in self._aside:
            return self._hold_again(name)
        return None

    def _chosen(self, revision: int, warnings: Tuple[str, ...] = ()) -> Chosen:
        return Chosen(self._held.copy().loaded, revision, warnings)

    def _hold_again(self, key: str) -> Chosen:
        """Hold what was put aside."""
        self._leave()
        aside = self._aside.pop(key)
        if key == CLIENTS:
            return self._chosen(self._held.hold_clients_again(aside))
        self.file_name = key
        return self._chosen(self._held.hold_file_again(aside))

    def _hold_file(self, loaded: Loaded) -> Chosen:
        """Hold a file, with the edits that an earlier process has stored of it."""
        stored = self._stored.pop(self.file_name, None)
        if stored is None:
            return self._chosen(self._held.hold_file(loaded), loaded.warnings)

        revision = self._held.hold_stored(loaded, stored)
        if revision is not None:
            return self._chosen(revision, loaded.warnings)
        warning = (
            f"{self.file_name} has changed since the last service ended: it is held as it is now, "
            "without its earlier edits."
        )
        return self._chosen(self._held.hold_file(loaded), (*loaded.warnings, warning))

    def _leave(self) -> None:
        """Put aside what is held, if it differs from its file."""
        if self._held.is_clients:
            self._aside[CLIENTS] = self._held.put_aside()
        elif self._held.differs_from_file:
            self._aside[self.file_name] = self._held.put_aside()

    def hold_client(self, loaded: Loaded) -> int:
        """Hold a client's workflow; its revision. The edits of the file that was held are kept.

        One with the name of the file counts as an edit of the file.
        """
        with self._lock:
            if not self._held.is_clients:
                self._leave()
            replaced = CLIENTS
            if self._held.is_called_as_file(loaded):
                replaced = self.file_name
            self._aside.pop(replaced, None)
            return self._held.hold_loaded(loaded)

    def reset(self) -> Chosen:
        """Hold the file that was chosen last, as it is now; its edits are gone."""
        name = self.file_name
        loaded = self._load(self._paths[name])
        with self._lock:
            if self.file_name != name:  # another one was chosen meanwhile
                self._leave()
            self.file_name = name
            self._aside.pop(name, None)
            self._stored.pop(name, None)
            return self._chosen(self._held.hold_file(loaded))

    # -- from one process to the next --------------------------------------------------------------

    def as_stored(self) -> StoredWorkflow:
        """What is held, for the state file."""
        with self._lock:
            return self._held.as_stored()._replace(name=self.file_name)

    def remember(self, stored: StoredWorkflow) -> bool:
        """Keep what an earlier process has stored until it is chosen. Returns whether it is kept.

        It is not where it is of the first file, which is held already, or of none of the list.
        """
        if stored.name == self.file_name or stored.name not in self._paths:
            return False
        self._held.count_on(stored.revision)
        client = stored.client
        names_of_file = ("", self._paths[stored.name])
        if client is not None and client.path not in names_of_file:
            self._aside[CLIENTS] = self._held.put_client_aside(stored, client)
        elif stored.is_edited or client is not None:
            self._stored[stored.name] = stored
        return True


def _mark_of_file(path: str) -> Optional[FileMark]:
    """The mark of a file; None where the system does not say."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size


def no_such_workflow(name: str, names: Sequence[str]) -> HttpError:
    """The answer to a name that is not in the list."""
    message = (
        f"The service has no workflow {quote_name(name)}. It has: {nearest_first(name, names)}."
    )
    return HttpError(404, "no_such_workflow", message)
