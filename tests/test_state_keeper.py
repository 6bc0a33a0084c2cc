"""The thread that uses the state file: order, errors, a disk that stands still."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import zlib
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional, Tuple

import pytest
from support import node, wait_until

from comfyui_runner import state_keeper
from comfyui_runner.documents import Conversion
from comfyui_runner.loading import Loaded
from comfyui_runner.redaction import Secrets
from comfyui_runner.state import Phase
from comfyui_runner.state_file import StateFile, StateFileError, open_state_file
from comfyui_runner.state_keeper import StateKeeper, read_state
from comfyui_runner.stored_state import StoredRun, unpack_prompt
from comfyui_runner.stored_workflow import StoredWorkflow

PROMPT = {"1": node("Text", text="a fox")}
Make = Callable[..., Tuple[StateKeeper, List[str]]]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "flow.runs.sqlite3")


@pytest.fixture
def make_keeper(path: str) -> Iterator[Make]:
    """Makes a keeper and the list of its notices."""
    made = []

    def make(secrets: Tuple[str, ...] = (), wrap: Any = lambda file: file) -> Tuple[StateKeeper, List[str]]:
        notices: List[str] = []
        made.append(StateKeeper(wrap(open_state_file(path)), 100, Secrets(secrets), notices.append))
        return made[-1], notices

    yield make
    for keeper in made:
        keeper.close()


def make_run(number: int, phase: Phase = Phase.QUEUED, shown: str = '{"outputs": []}') -> StoredRun:
    return StoredRun(number, f"id-{number}", 5.0, phase, shown)


def add(keeper: StateKeeper, run: StoredRun) -> None:
    asyncio.run(keeper.add(run, PROMPT))


def end(keeper: StateKeeper, run: StoredRun) -> None:
    asyncio.run(keeper.end(run))


def held(text: str, client: Optional[Loaded] = None) -> StoredWorkflow:
    return StoredWorkflow({"1": node("Text", text=text)}, frozenset(), 2, "fingerprint", True, client)


class Broken:
    """A file that raises ``error`` from now on; everything else is passed on."""

    def __init__(self, file: StateFile, error: Exception) -> None:
        self.file = file
        self.path = file.path
        self.error = error

    def add(self, run: StoredRun, kept: int) -> None:
        raise self.error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def test_what_was_handed_over_is_in_the_file_after_the_end(make_keeper: Make, path: str) -> None:
    keeper, notices = make_keeper()
    add(keeper, make_run(1))
    add(keeper, make_run(2))
    keeper.change("id-2", Phase.RUNNING, is_cancelled=True)
    end(keeper, make_run(1, Phase.SUCCESS))
    keeper.hold(held("a cat"))
    assert [run.phase for run in keeper.page(9, None)] == [Phase.RUNNING, Phase.SUCCESS]
    found = keeper.get("id-1")
    assert found is not None and found.number == 1 and keeper.get("x") is None
    keeper.close()
    keeper.close()

    file = open_state_file(path)
    restored = read_state(file)
    file.close()
    assert restored.held == held("a cat") and restored.last_number == 2 and restored.client_id
    (run,) = restored.runs
    assert (run.prompt_id, run.is_cancelled, unpack_prompt(run.prompt)) == ("id-2", True, PROMPT)
    assert notices == []


def test_the_name_in_comfyui_stays_the_same(path: str) -> None:
    names = []
    for _ in range(2):
        file = open_state_file(path)
        names.append(read_state(file).client_id)
        file.close()
    assert names[0] == names[1] != ""


def test_quick_edits_are_written_once(make_keeper: Make, path: str) -> None:
    keeper, _ = make_keeper()
    go_on = threading.Event()
    keeper._do(lambda file: go_on.wait(10))
    written: List[Any] = []
    keeper._do(lambda file: setattr(file, "hold", written.append))
    for number in range(50):
        keeper.hold(held(str(number)))
    go_on.set()
    keeper.flush()
    assert len(written) == 1 and sorted(written[0]) == ["about", "prompt"]
    assert b'"49"' in zlib.decompress(written[0]["prompt"])


def test_the_workflow_of_a_client_is_written_when_it_comes_and_goes(make_keeper: Make) -> None:
    keeper, _ = make_keeper()
    written: List[Any] = []
    keeper._do(lambda file: setattr(file, "hold", written.append))
    client = Loaded(PROMPT, "fox.json", conversion=Conversion(PROMPT))
    for client_or_none in (client, client, None, None):
        keeper.hold(held("a fox", client_or_none))
        keeper.flush()
    assert ["converted" in contents for contents in written] == [True, False, True, False]
    assert written[2]["converted"] == b""


def test_secrets_are_not_written(make_keeper: Make, path: str) -> None:
    keeper, _ = make_keeper(("pass-word-1",))
    run = make_run(1, shown='{"outputs": [], "message": "401: pass-word-1"}')
    asyncio.run(keeper.add(run, {"1": node("Text", text="pass-word-1")}))
    assert "***" in keeper.page(1, None)[0].shown
    end(keeper, run._replace(phase=Phase.ERROR))
    keeper.close()
    file = open_state_file(path)
    (stored,) = file.page(1, None)
    file.close()
    assert "pass-word-1" not in stored.shown
    with open(path, "rb") as content:
        assert b"pass-word-1" not in content.read()


def test_without_a_file_nothing_is_kept(make_keeper: Make) -> None:
    keeper = StateKeeper(None, 100, Secrets(), print)
    add(keeper, make_run(1))
    keeper.hold(held("x"))
    keeper.flush()
    assert keeper.page(9, None) == [] and keeper.get("id-1") is None
    assert not keeper.has_file and keeper.path is None
    keeper.close()


def test_a_full_disk_is_said_once_and_ends_nothing(make_keeper: Make, path: str) -> None:
    full = StateFileError("database or disk is full")
    keeper, notices = make_keeper(wrap=lambda file: Broken(file, full))
    add(keeper, make_run(1))
    add(keeper, make_run(2))
    assert notices == [
        f"The state file {path} can no longer be used: database or disk is full. "
        "From now on, runs and edits are kept in memory only."
    ]
    assert not keeper.has_file and keeper.page(9, None) == []
    keeper.close()
    assert os.path.exists(path)


def test_a_fault_of_ours_leaves_nobody_waiting(make_keeper: Make) -> None:
    keeper, notices = make_keeper(wrap=lambda file: Broken(file, ZeroDivisionError("oops")))
    add(keeper, make_run(1))
    assert len(notices) == 1 and "ZeroDivisionError: oops" in notices[0]


def test_damage_that_is_found_later_is_set_aside(make_keeper: Make, path: str) -> None:
    malformed = StateFileError("database disk image is malformed", damaged=True)
    keeper, notices = make_keeper(wrap=lambda file: Broken(file, malformed))
    add(keeper, make_run(1))
    wait_until(lambda: len(notices) == 2, what="both notices")
    assert "the next start creates a new one" in notices[1] and not os.path.exists(path)


def test_a_disk_that_stands_still_holds_nobody_up(make_keeper: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_keeper, "STATE_SECONDS", 0.2)
    keeper, notices = make_keeper()
    go_on = threading.Event()
    keeper._do(lambda file: go_on.wait(20))
    began = time.monotonic()
    add(keeper, make_run(1))
    assert keeper.page(9, None) == [] and time.monotonic() - began < 5.0
    assert len(notices) == 1 and "its disk does not answer" in notices[0]
    monkeypatch.undo()
    began = time.monotonic()
    keeper.close()
    assert time.monotonic() - began < 3.0  # Ctrl+C does not wait for it either
    go_on.set()


def test_after_the_end_nobody_waits(make_keeper: Make) -> None:
    keeper, notices = make_keeper()
    add(keeper, make_run(1))
    keeper.close()
    began = time.monotonic()
    assert keeper.page(9, None) == []
    keeper.hold(held("x"))
    keeper.flush()
    assert time.monotonic() - began < 2.0 and notices == []


def test_no_more_jobs_wait_than_a_disk_can_do(make_keeper: Make) -> None:
    keeper, notices = make_keeper()
    go_on = threading.Event()
    keeper._do(lambda file: go_on.wait(20))
    for _ in range(state_keeper.MOST_JOBS + 5):
        keeper.change("id-1", Phase.RUNNING, is_cancelled=False)
    assert len(notices) == 1
    go_on.set()


def test_what_cannot_be_read_is_damage(path: str) -> None:
    file = open_state_file(path)
    file.add(make_run(1)._replace(prompt=b"no zlib"), 9)
    with pytest.raises(StateFileError) as caught:
        read_state(file)
    assert caught.value.damaged
    file.close()
