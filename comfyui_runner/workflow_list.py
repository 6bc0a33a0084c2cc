"""The workflows that the service can hold, one at a time: the files of the command line.

The edits of a workflow that is left stay in memory, and are held again with it. So does a workflow
that a client has put in place of a file's.
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

#: What names the client's workflow among those that are put aside: it has no file.
CLIENTS = ""

#: How a file is known that was read before: when it was changed, and its size.
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
        stem, ending = os.path.splitext(os.path.basename(path))
        name, number = stem + ending, 1
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
        self._known: Dict[str, Tuple[FileMark, str]] = {}  # why files cannot be read

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
        return aside.before_edits.path if aside is not None else None

    def to_status(self) -> JsonObject:
        """What GET /status has of the list."""
        with self._lock:
            return {"name": self.name, "choices": len(self.names)}

    def to_json(self) -> List[JsonObject]:
        """GET /workflows."""
        return list(self._describe_all())

    def _describe_all(self) -> Iterator[JsonObject]:
        with self._lock:
            names, held_name = self.names, self.name
            changed = {*self._aside, *self._stored}
            if self._held.is_edited:
                changed.add(held_name)
        for name in names:
            path = self._paths.get(name)
            reason = "" if path is None else self._why_not_readable(path)
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
        try:
            stat = os.stat(path)
            mark = (stat.st_mtime_ns, stat.st_size)
            known_mark, reason = self._known.get(path, (None, ""))
            if mark == known_mark:
                return reason
        except OSError:
            mark = None
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
        key = name if name in self._paths else CLIENTS
        if key in self._aside:
            return self._hold_again(key)
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
        revision = None
        warnings = loaded.warnings
        if stored is not None:
            revision = self._held.hold_stored(loaded, stored)
            if revision is None:
                warnings += (
                    f"{self.file_name} has changed since the last service ended: it is held as it "
                    "is now, without the edits of that time.",
                )
        if revision is None:
            revision = self._held.hold_file(loaded)
        return self._chosen(revision, warnings)

    def _leave(self) -> None:
        """Put what is held aside, if it has something that its file does not have."""
        if self._held.is_clients:
            self._aside[CLIENTS] = self._held.put_aside()
        elif self._held.differs_from_file:
            self._aside[self.file_name] = self._held.put_aside()

    def hold_client(self, loaded: Loaded) -> int:
        """Hold a client's workflow: its revision. The edits of the file that was held are kept.

        One that is called as the file counts as an edit of that.
        """
        with self._lock:
            if not self._held.is_clients:
                self._leave()
            is_of_file = self._held.is_called_as_file(loaded)
            self._aside.pop(self.file_name if is_of_file else CLIENTS, None)
            return self._held.hold_loaded(loaded)

    def reset(self) -> Chosen:
        """Hold what the file has now that was chosen last; its edits are gone."""
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
        """Keep what an earlier process has stored of another file than the first: whether it is.

        It is held again when it is chosen.
        """
        if stored.name == self.file_name or stored.name not in self._paths:
            return False
        self._held.count_on(stored.revision)
        if stored.client is not None and stored.client.path not in ("", self._paths[stored.name]):
            self._aside[CLIENTS] = self._held.put_client_aside(stored, stored.client)
        elif stored.is_edited or stored.client is not None:
            self._stored[stored.name] = stored
        return True


def no_such_workflow(name: str, names: Sequence[str]) -> HttpError:
    """The answer to a name that is not in the list."""
    message = (
        f"The service has no workflow {quote_name(name)}. It has: {nearest_first(name, names)}."
    )
    return HttpError(404, "no_such_workflow", message)
