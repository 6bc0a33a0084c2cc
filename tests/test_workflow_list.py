"""The workflows that the service can hold, without a socket."""

from __future__ import annotations

import json
import os
import threading
from typing import Any, Callable, Dict, List, Optional, Sequence

import pytest
from support import node

from comfyui_runner.documents import Conversion
from comfyui_runner.errors import WorkflowError
from comfyui_runner.held_workflow import HeldWorkflow
from comfyui_runner.loading import Loaded, read_document
from comfyui_runner.messages import HttpError
from comfyui_runner.nodes import InputRef
from comfyui_runner.stored_workflow import StoredWorkflow
from comfyui_runner.workflow_list import WorkflowList, name_workflows

SEED = InputRef("1", "seed")


def prompt_of(seed: int) -> Dict[str, Any]:
    return {"1": node("KSampler", seed=seed)}


class Desk:
    """Files a.json and b.json, and the list of them; ``loads`` are the names of those that were read."""

    def __init__(self, folder: Any, names: Sequence[str] = ("a.json", "b.json")) -> None:
        self.folder, self.loads = folder, []  # type: Any, List[str]
        self.during_load: Callable[[], object] = lambda: None
        for seed, name in enumerate(names, 1):
            self.write(name, seed)
        paths = [os.path.join(str(folder), name) for name in names]
        lock = threading.RLock()
        self.revisions: List[int] = []
        self.held = HeldWorkflow(self.load(paths[0]), lock, self.revisions.append)
        self.list = WorkflowList(paths, self.held, self.load, lock)
        self.loads.clear()

    def write(self, name: str, seed: int) -> None:
        (self.folder / name).write_text(json.dumps(prompt_of(seed)), encoding="utf-8")

    def load(self, path: str) -> Loaded:
        self.loads.append(os.path.basename(path))
        self.during_load()
        prompt = read_document(path).prompt or {}
        return Loaded(prompt, path, conversion=Conversion(prompt), uploads=((InputRef("1", "image"), "cat.png"),))

    def client(self, seed: int, name: str = "x.json") -> int:
        """A client's workflow is held: its revision."""
        return self.list.hold_client(Loaded(prompt_of(seed), name))

    def edit(self, seed: int) -> None:
        self.held.hold_values({SEED: seed})

    @property
    def seed(self) -> Any:
        return self.held.now.prompt["1"]["inputs"]["seed"]

    def listed(self, key: str) -> List[Any]:
        """What the list says of each workflow under ``key``; of "held" and so on, the names of those that are."""
        entries = self.list.to_json()
        if key in ("held", "changed", "readable", "is_file"):
            return [entry["name"] for entry in entries if entry[key]]
        return [entry[key] for entry in entries]


@pytest.fixture
def desk(tmp_path: Any) -> Desk:
    return Desk(tmp_path)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a.json"], ["a.json"]),
        (["x/a.json", "y/a.json", "a.json", "b"], ["a.json", "a (2).json", "a (3).json", "b"]),
        (["a (2).json", "x/a.json", "a.json"], ["a (2).json", "a.json", "a (3).json"]),
        (["x/a", "a", ""], ["a", "a (2)", ""]),
    ],
)
def test_names_are_those_of_the_files_made_different(paths: List[str], names: List[str]) -> None:
    assert name_workflows(paths) == names


def test_the_first_one_is_held_at_the_start(desk: Desk) -> None:
    assert desk.list.to_status() == {"name": "a.json", "choices": 2}
    assert desk.listed("name") == ["a.json", "b.json"]
    assert desk.listed("held") == ["a.json"] and desk.listed("changed") == []


def test_another_one_is_held_with_a_new_revision(desk: Desk) -> None:
    chosen = desk.list.choose("b.json")
    assert (chosen.revision, desk.seed, desk.list.name) == (2, 2, "b.json")
    assert chosen.loaded.path.endswith("b.json") and desk.held.path.endswith("b.json")
    assert desk.revisions == [2] and not desk.held.is_edited


def test_the_one_that_is_held_stays_as_it_is(desk: Desk) -> None:
    desk.edit(7)
    assert desk.list.choose("a.json").revision == 2
    assert (desk.seed, desk.loads) == (7, [])


def test_edits_come_back_with_their_workflow(desk: Desk) -> None:
    desk.edit(7)
    desk.list.choose("b.json")
    assert desk.listed("changed") == ["a.json"]
    desk.edit(8)
    assert desk.listed("changed") == ["a.json", "b.json"]
    assert desk.list.choose("a.json").revision == 5 and desk.seed == 7 and desk.held.is_edited
    desk.list.choose("b.json")
    assert desk.seed == 8 and desk.loads == ["b.json"]


def test_a_seed_that_is_drawn_comes_back_too(desk: Desk) -> None:
    desk.held.hold(desk.held.now.prompt, [SEED])
    desk.list.choose("b.json")
    desk.list.choose("a.json")
    assert desk.held.now.random_seeds == {SEED}


def test_a_file_without_edits_is_read_again(desk: Desk) -> None:
    desk.list.choose("b.json")
    desk.write("a.json", 9)
    desk.list.choose("a.json")
    assert (desk.seed, desk.held.is_edited, desk.loads) == (9, False, ["b.json", "a.json"])


def test_reset_reads_the_file_of_the_one_that_is_held(desk: Desk) -> None:
    desk.edit(7)
    desk.list.choose("b.json")
    desk.edit(8)
    assert desk.list.reset().loaded.path.endswith("b.json")
    assert desk.seed == 2 and desk.listed("changed") == ["a.json"]


def test_files_that_were_uploaded_for_one_come_back_with_it(desk: Desk) -> None:
    desk.held.remember_upload([SEED], 1, lambda server: "again")
    desk.edit(1)
    desk.held.hold(desk.held.now.prompt, [SEED])
    desk.list.choose("b.json")
    desk.held.remember_upload([SEED], 2, lambda server: "of b")
    desk.list.choose("a.json")
    assert [ref for ref, _ in desk.held.uploads_of(desk.held.now.prompt) if ref == SEED] == [SEED]


@pytest.mark.parametrize("name", ["c.json", "../a.json", "/etc/passwd", "", "A.JSON"])
def test_only_a_name_of_the_list_is_taken_and_never_a_path(desk: Desk, name: str) -> None:
    (desk.folder / "c.json").write_text("{}", encoding="utf-8")
    with pytest.raises(HttpError) as caught:
        desk.list.choose(name)
    assert (caught.value.http_status, caught.value.type) == (404, "no_such_workflow")
    assert "It has: " in caught.value.message and "a.json" in caught.value.message
    assert desk.loads == [] and desk.list.name == "a.json"


def test_one_that_cannot_be_read_says_why_and_changes_nothing(desk: Desk) -> None:
    desk.edit(7)
    (desk.folder / "b.json").write_text("{", encoding="utf-8")
    assert desk.listed("readable") == ["a.json"]
    assert "b.json is not JSON" in desk.listed("message")[1]
    assert "b.json is not JSON" in desk.listed("message")[1]  # it is not read again
    with pytest.raises(WorkflowError, match="is not JSON"):
        desk.list.choose("b.json")
    assert (desk.list.name, desk.seed) == ("a.json", 7)
    desk.write("b.json", 22)
    assert desk.listed("readable") == ["a.json", "b.json"]
    (desk.folder / "b.json").unlink()
    assert "does not exist" in desk.listed("message")[1]


def test_standard_input_is_always_readable() -> None:
    loaded = Loaded(prompt_of(1), "-")
    held = HeldWorkflow(loaded, threading.RLock(), lambda revision: None)
    (entry,) = WorkflowList(["-"], held, lambda path: loaded, threading.RLock()).to_json()
    assert entry["readable"] and entry["name"] == "-"


# -- a client's workflow in between ------------------------------------------------------------------


def test_a_clients_workflow_is_listed_behind_the_files_and_held_again(desk: Desk) -> None:
    desk.edit(7)
    desk.client(50, "a.json")
    assert desk.listed("name") == ["a.json", "b.json", "a (2).json"]
    assert desk.listed("held") == ["a (2).json"] and desk.listed("is_file") == ["a.json", "b.json"]
    assert desk.listed("changed") == ["a.json"]
    desk.edit(51)
    desk.list.choose("a.json")
    assert desk.seed == 7 and desk.list.to_status() == {"name": "a.json", "choices": 3}
    desk.list.choose("b.json")
    desk.list.choose("a (2).json")
    assert (desk.seed, desk.held.path, desk.list.name) == (51, "a.json", "a (2).json")
    assert desk.list.file_name == "b.json"
    desk.list.choose("b.json")
    assert desk.seed == 2


def test_the_newest_one_of_a_client_takes_the_place_of_the_one_before(desk: Desk) -> None:
    desk.client(50)
    desk.client(60, "y.json")
    assert (desk.seed, desk.listed("name")) == (60, ["a.json", "b.json", "y.json"])
    desk.list.choose("b.json")
    desk.client(70, "z.json")
    assert desk.listed("name") == ["a.json", "b.json", "z.json"]


@pytest.mark.parametrize("has_name", [True, False])
def test_one_that_is_called_as_the_file_is_an_edit_of_that(desk: Desk, has_name: bool) -> None:
    name = desk.held.path if has_name else ""
    desk.edit(7)
    desk.client(50)
    desk.client(7, name)  # Undo on the page
    assert desk.list.to_status() == {"name": "a.json", "choices": 2} and desk.listed("changed") == ["a.json"]
    desk.list.choose("b.json")
    desk.list.choose("a.json")
    assert desk.seed == 7


def test_reset_leaves_a_clients_workflow_for_the_file(desk: Desk) -> None:
    desk.client(50)
    desk.list.reset()
    assert desk.seed == 1 and desk.list.to_status() == {"name": "a.json", "choices": 2}


def test_two_who_choose_at_the_same_time_lose_nothing(desk: Desk) -> None:
    def choose_and_edit() -> None:
        desk.during_load = lambda: None
        desk.list.choose("b.json")
        desk.edit(8)

    desk.during_load = choose_and_edit
    desk.list.choose("b.json")
    assert desk.seed == 8


def test_reset_keeps_the_edits_of_one_that_is_chosen_meanwhile(desk: Desk) -> None:
    def choose_and_edit() -> None:
        desk.during_load = lambda: None
        desk.list.choose("b.json")
        desk.edit(8)

    desk.edit(7)
    desk.during_load = choose_and_edit
    desk.list.reset()
    assert (desk.list.name, desk.seed) == ("a.json", 1)
    desk.list.choose("b.json")
    assert desk.seed == 8


# -- from one process to the next --------------------------------------------------------------------


def stored_by(desk: Desk, then: Optional[Callable[[], object]] = None) -> StoredWorkflow:
    """What is stored of b.json, which was edited; ``then`` something happens to it."""
    desk.list.choose("b.json")
    desk.edit(8)
    if then is not None:
        then()
    return desk.list.as_stored()


def test_edits_of_another_file_than_the_first_are_kept_until_that_is_chosen(tmp_path: Any) -> None:
    stored = stored_by(Desk(tmp_path))
    assert stored.name == "b.json"
    again = Desk(tmp_path)
    assert again.list.remember(stored)
    assert again.seed == 1 and again.listed("changed") == ["b.json"]
    assert again.held.now.revision > stored.revision  # pages know it is another one
    assert again.list.choose("b.json").warnings == () and again.seed == 8
    again.list.choose("a.json")
    again.list.choose("b.json")
    assert again.seed == 8


def test_a_file_that_has_changed_since_wins_and_says_so(tmp_path: Any) -> None:
    stored = stored_by(Desk(tmp_path))
    again = Desk(tmp_path)
    again.write("b.json", 9)
    assert again.list.remember(stored)
    (warning,) = again.list.choose("b.json").warnings
    assert warning.startswith("b.json has changed since the last service ended") and again.seed == 9


def test_a_clients_workflow_of_that_time_can_be_chosen(tmp_path: Any) -> None:
    desk = Desk(tmp_path)
    stored = stored_by(desk, then=lambda: desk.client(50))
    again = Desk(tmp_path)
    assert again.list.remember(stored)
    assert again.listed("name") == ["a.json", "b.json", "x.json"] and again.listed("held") == ["a.json"]
    again.list.choose("x.json")
    assert again.seed == 50


def test_what_has_no_edits_is_not_kept_and_the_first_file_is_not_its_matter(tmp_path: Any) -> None:
    desk = Desk(tmp_path)
    of_first = desk.list.as_stored()
    desk.list.choose("b.json")
    of_second = desk.list.as_stored()
    again = Desk(tmp_path)
    assert not again.list.remember(of_first)
    assert not again.list.remember(of_second._replace(name="another.json"))
    assert again.list.remember(of_second) and again.listed("changed") == []
    again.list.reset()
    assert again.seed == 1
