"""The steps of a run, without a server: the question, where outputs go, and runs that are lost."""

from __future__ import annotations

import asyncio
import io
import os
from typing import Any, List, Optional, Union

import pytest
from asked import Asked, Serve
from desk import Desk, settings_of
from support import slow_prompt

from comfyui_runner import comfyui
from comfyui_runner.addresses import parse_address
from comfyui_runner.comfyui import FIRST_TRIES, ask_for_stats, definitions_on
from comfyui_runner.conclusion import Ending
from comfyui_runner.errors import (
    ExitStatus,
    NotConfirmed,
    ServerAnswer,
    ServerError,
    ServerGone,
    ServerUnreachable,
    Stopped,
    UsageError,
)
from comfyui_runner.interrupts import Stop
from comfyui_runner.server import MOST_CLASSES_ONE_BY_ONE, Server
from comfyui_runner.settings import Settings
from comfyui_runner.steps import (
    ConcludedRun,
    check_output_folder,
    confirm,
    destination_of_run,
    finish_run,
    make_destination,
    require_terminal_or_yes,
    retry_lost_runs,
)

SIGTERM = Stop("SIGTERM", ExitStatus.TERMINATED)


def without_yes(settings: Settings) -> Settings:
    return settings._replace(yes=False)


# -- the question ----------------------------------------------------------------------------------


def answer(typed: str, press: Optional[Stop] = None) -> str:
    """What is shown where somebody answers a question with ``typed``. Raises what that leads to."""
    shown: List[str] = []

    async def story() -> None:
        desk = Desk()
        desk.console.stdin = io.StringIO(typed)
        if press is not None:
            desk.press(press)
        try:
            confirm("Run it? ", without_yes(settings_of()), desk.console)
        finally:
            shown.append(desk.out.getvalue())
            assert not desk.interrupts.asking

    asyncio.run(story())
    return shown[0]


def test_a_question_is_asked_until_it_is_answered() -> None:
    assert answer("yes\nno\n") == "Run it? "
    assert answer("perhaps\nwell\nY\n") == "Run it? " + 2 * "Please answer y or n. Run it? "


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("n\ny\n", "Not confirmed: nothing was submitted."),
        ("\n", "Not confirmed: nothing was submitted."),
        ("", "The input ended before an answer: nothing was submitted."),
        ("perhaps\n", "The input ended before an answer: nothing was submitted."),
    ],
)
def test_no_and_the_end_of_the_input_submit_nothing(typed: str, message: str) -> None:
    with pytest.raises(NotConfirmed) as caught:
        answer(typed)
    assert caught.value.message == message


def test_a_press_before_the_answer_counts_and_not_the_answer() -> None:
    with pytest.raises(Stopped, match=r"^Stopped by SIGTERM: nothing was submitted\.$"):
        answer("y\n", SIGTERM)


def test_with_yes_nobody_is_asked() -> None:
    async def story() -> None:
        desk = Desk()
        confirm("Run it? ", settings_of(), desk.console)
        require_terminal_or_yes(settings_of(), desk.console)
        assert desk.out.getvalue() == ""
        with pytest.raises(NotConfirmed, match=r"^Nothing was run: the question needs a terminal\.$"):
            require_terminal_or_yes(without_yes(settings_of()), desk.console)

    asyncio.run(story())


# -- where outputs go ------------------------------------------------------------------------------


def test_a_folder_for_outputs_is_made_and_one_that_cannot_be_is_refused(tmp_path: Any) -> None:
    check_output_folder(settings_of())  # nothing is saved
    check_output_folder(settings_of("-o", str(tmp_path / "out" / "{row}")))
    assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError) as caught:
        check_output_folder(settings_of("-o", str(tmp_path / "file")))
    assert caught.value.message == f"Outputs cannot be saved in {tmp_path / 'file'}: it is not a folder."
    assert caught.value.remedy == "Nothing was run. Choose another folder with -o."


def test_a_destination_has_its_row_and_its_names() -> None:
    plain = make_destination(settings_of("--overwrite"), slow_prompt(), 7, "out/{row}")
    assert (plain.folder, plain.overwrite, plain.rename("a.png")) == ("out/00007", True, "a.png")
    named = make_destination(settings_of("--name", "{name}-{row}"), slow_prompt(), 7, "out")
    assert (named.folder, named.overwrite, named.rename("a.b.png")) == ("out", False, "a.b-00007.png")


def test_a_press_ends_the_saving_of_a_single_run() -> None:
    async def story() -> None:
        desk = Desk()
        assert destination_of_run(settings_of(), slow_prompt(), desk.console) is None
        destination = destination_of_run(settings_of("-o", "out"), slow_prompt(), desk.console)
        assert destination is not None and destination.folder == "out"
        assert not destination.is_stopped and destination.stopped_with() is None
        desk.press(SIGTERM)
        assert destination.stopped_with() is ExitStatus.TERMINATED

    asyncio.run(story())


@pytest.mark.parametrize(("press", "notices"), [(None, 1), (SIGTERM, 0)])
def test_a_press_leaves_nothing_to_open_and_nothing_to_say_of_it(press: Optional[Stop], notices: int) -> None:
    async def story() -> None:
        desk = Desk()
        if press is not None:
            desk.press(press)
        concluded = ConcludedRun(desk.session, desk.run, Ending(ExitStatus.OK, {}, [], {}))
        comfyui: Any = None  # for --save-run alone
        await finish_run(concluded, settings_of("--open", "-o", "out"), comfyui, desk.console)
        assert (desk.out.getvalue() + desk.err.getvalue()).count("--open: there is no picture") == notices

    asyncio.run(story())


# -- work that ends --------------------------------------------------------------------------------


def test_work_ends_with_the_caller_that_waits_for_it() -> None:
    async def story() -> None:
        desk = Desk()
        work: "asyncio.Future[None]" = asyncio.get_running_loop().create_future()
        caller = asyncio.ensure_future(desk.console.unless_stopped(work))
        await asyncio.sleep(0)  # it waits now
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert work.cancelled()

    asyncio.run(story())


# -- runs that are lost ----------------------------------------------------------------------------

EndOfAttempt = Union[ExitStatus, ServerError]


def retried(endings: List[EndOfAttempt], retries: int) -> Any:
    """How a call ends whose runs end so, how often it ran, and what was said."""
    servers: List[Server] = []
    prompt_ids: List[str] = []
    said: List[str] = []

    async def story() -> ExitStatus:
        desk = Desk()

        async def run_once(server: Server) -> ExitStatus:
            servers.append(server)
            prompt_ids.append(desk.console.prompt_id)
            ending = endings[len(servers) - 1]
            if isinstance(ending, ServerError):
                raise ending
            return ending

        try:
            settings = settings_of("--retries", str(retries))
            return await retry_lost_runs(run_once, desk.server, settings, desk.console)
        finally:
            said.extend(desk.out.getvalue().splitlines())
            assert desk.server not in servers  # each run has a connection of its own

    try:
        status: Any = asyncio.run(story())
    except ServerError as error:
        status = error
    assert len(set(servers)) == len(servers) == len(set(prompt_ids))
    assert said == ["The run is lost: submitting it again (--retries)."] * (len(servers) - 1)
    return status, len(servers)


LOST = ExitStatus.LOST


@pytest.mark.parametrize(
    ("endings", "retries", "status", "runs"),
    [
        ([ExitStatus.OK], 2, ExitStatus.OK, 1),
        ([ExitStatus.FAILED], 2, ExitStatus.FAILED, 1),
        ([LOST, ExitStatus.OK], 2, ExitStatus.OK, 2),
        ([LOST, LOST, LOST], 2, LOST, 3),
        ([LOST], 0, LOST, 1),
        ([ServerGone("gone"), ExitStatus.OK], 1, ExitStatus.OK, 2),
    ],
)
def test_a_run_that_is_lost_is_submitted_again(
    endings: List[EndOfAttempt], retries: int, status: ExitStatus, runs: int
) -> None:
    assert retried(endings, retries) == (status, runs)


def test_an_error_that_loses_nothing_is_not_tried_again() -> None:
    refused = ServerUnreachable("refused", refused=True)
    assert retried([refused], 2) == (refused, 1)
    assert refused.exit_status is ExitStatus.NO_SERVER
    gone = ServerGone("gone")
    assert retried([LOST, gone], 1) == (gone, 2)  # the last one is raised
    assert gone.exit_status is LOST


# -- the first request -----------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comfyui, "backoff", lambda *_, **__: 0.0)


@pytest.mark.parametrize(("status", "tries"), [(503, FIRST_TRIES), (401, 1), (404, 1)])
def test_a_server_that_stumbles_is_asked_three_times(status: int, tries: int, serve: Serve) -> None:
    asked = Asked(serve, {"/system_stats": (status, {})})
    with pytest.raises(ServerAnswer):
        asyncio.run(ask_for_stats(asked.server))
    assert FIRST_TRIES == 3 and len(asked.requests) == tries


def test_a_server_that_refuses_is_asked_once() -> None:
    calls: List[str] = []

    class Counting(Server):
        def system_stats(self) -> Any:
            calls.append("stats")
            return super().system_stats()

    with pytest.raises(ServerUnreachable):
        asyncio.run(ask_for_stats(Counting(parse_address("http://127.0.0.1:1"))))
    assert len(calls) == 1


# -- definitions -----------------------------------------------------------------------------------


def test_many_definitions_are_read_in_one_answer_and_that_once(serve: Serve) -> None:
    names = [f"C{number:02}" for number in range(MOST_CLASSES_ONE_BY_ONE)]
    answers = {f"/object_info/{name}": (200, {name: {"output": [name]}}) for name in names}
    everything = {name: {"output": [name]} for name in names}
    asked = Asked(serve, {**answers, "/object_info": (200, everything)})
    define = definitions_on(asked.server)
    assert define([*names, names[0]]) == everything
    assert [path for _, path, _ in asked.requests] == [f"/object_info/{name}" for name in names]
    assert define([]) == {}
    assert define([*names, "None of ours"]) == {**everything, "None of ours": {}}
    assert define(None) == everything
    assert define(names[:1]) == {names[0]: everything[names[0]]}
    assert [path for _, path, _ in asked.requests[len(names) :]] == ["/object_info"]
