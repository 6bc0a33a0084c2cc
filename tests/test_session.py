"""The rules of a session without a server: what is reported once, what loses a run, when to ask again."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Callable, Dict, List

import pytest
from desk import Desk
from support import FAST

from comfyui_runner.errors import (
    PromptRejected,
    RunnerError,
    ServerAnswer,
    ServerError,
    ServerGone,
    ServerUnreachable,
    UsageError,
)
from comfyui_runner.problems import Problem
from comfyui_runner.reports import Report
from comfyui_runner.session import (
    CANCEL_INTERVAL,
    GONE,
    LONGEST_DEAF_PATIENCE,
    Cancelling,
    Session,
    as_rejection,
    is_lost,
    may_be_about_prompt,
)
from comfyui_runner.state import Phase


def tell(story: Callable[[Desk, Session, List[Report]], Any]) -> None:
    """A story of a session that reports into a list."""

    async def work() -> None:
        desk = Desk(FAST._replace(give_up=0.0, silence=60.0))
        reports: List[Report] = []
        desk.session.report = lambda run, report: reports.append(report)
        await story(desk, desk.session, reports)

    asyncio.run(work())


class Socket:
    """Stands for one that is open; it notes that it is closed."""

    def __init__(self) -> None:
        self.is_closed = False
        self.transport = self

    async def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        pass


def events_of(reports: List[Report]) -> List[Any]:
    return [report.get("state", report["event"]) for report in reports]


def test_trouble_is_reported_once_until_all_is_well_again() -> None:
    async def story(desk: Desk, session: Session, reports: List[Report]) -> None:
        session._report_restored()
        assert reports == []
        session._report_trouble("lost", "broken off", note="trying again")
        session._report_trouble("lost", "refused", note="still trying")
        assert reports == [{"event": "connection", "state": "lost", "reason": "broken off"}]
        assert session.note == "still trying"
        session._report_restored()  # the socket is not open yet
        session._socket, session._readings_fail = Socket(), True
        session._report_restored()  # nor can queue and history be read
        assert len(reports) == 1
        session._readings_fail = False
        session._report_restored()
        session._report_restored()
        assert events_of(reports) == ["lost", "restored"] and session.note == ""
        session._report_trouble("lost", "again")
        assert events_of(reports) == ["lost", "restored", "lost"] and session.note == ""

    tell(story)


def test_a_server_that_answers_no_reading_for_too_long_has_lost_the_run() -> None:
    async def story(desk: Desk, session: Session, reports: List[Report]) -> None:
        desk.run.state = desk.run.state._replace(phase=Phase.RUNNING)
        for _ in range(3):
            assert desk.run.state.phase is Phase.RUNNING  # three must fail, whatever the clock says
            session._note_failed_reading(desk.run, ServerUnreachable("Nothing listens."))
        assert reports[0] == {"event": "connection", "state": "lost", "reason": "Nothing listens"}
        assert session.note == "the server does not answer, trying again"
        assert desk.run.state.phase is Phase.LOST and desk.run.over.is_set()
        assert str(desk.run.state.reason).startswith("http://127.0.0.1:1 did not answer for ")

    tell(story)


def test_a_server_that_is_gone_has_lost_all_runs_at_once() -> None:
    async def story(desk: Desk, session: Session, reports: List[Report]) -> None:
        other = session.new_run({}, "other")
        for run in (desk.run, other):
            run.state = run.state._replace(phase=Phase.RUNNING)
        session._note_failed_reading(desk.run, ServerGone("gone"))
        assert [run.state.phase for run in (desk.run, other)] == [Phase.LOST] * 2
        assert desk.run.state.reason == GONE
        assert session.note == "" and "connection" not in [report["event"] for report in reports]

    tell(story)


def test_a_silence_is_reported_each_time_it_has_doubled() -> None:
    async def story(desk: Desk, session: Session, reports: List[Report]) -> None:
        for silence in (59.0, 61.0, 100.0, 123.0, 200.0, 250.0):
            desk.run.heard = time.monotonic() - silence
            session._report_silence(desk.run)
        assert [round(report["seconds"]) for report in reports] == [61, 123, 250]
        assert reports[0]["server_says"] == "the server's queue says that it is running."
        desk.run.attached = True  # its messages go elsewhere
        desk.run.silence_reported = 0.0
        session._report_silence(desk.run)
        assert len(reports) == 3

    tell(story)


def test_a_socket_that_says_nothing_after_it_was_opened_anew_is_replaced_later_and_later() -> None:
    async def story(desk: Desk, session: Session, reports: List[Report]) -> None:
        closed: List[float] = []
        await session._replace_deaf_socket()  # it is not known to be deaf
        for seconds in (59.0, 61.0, 119.0, 121.0):
            socket = session._socket = Socket()
            session._deaf_since = time.monotonic() - seconds
            await session._replace_deaf_socket()
            if socket.is_closed:
                closed.append(seconds)
        assert closed == [61.0, 121.0]
        session._deaf_patience = 500.0
        session._deaf_since = time.monotonic() - 501.0
        await session._replace_deaf_socket()
        assert session._deaf_patience == LONGEST_DEAF_PATIENCE == 600.0

    tell(story)


def test_a_new_run_knows_whether_messages_may_be_missing() -> None:
    async def story(desk: Desk, session: Session, reports: List[Report]) -> None:
        assert session.new_run({}, "a").state.gaps == 1
        session._socket = Socket()
        assert session.new_run({}, "b", {"front": True}).state.gaps == 0
        session.forget(session.new_run({}, "c"))
        assert sorted(session._runs) == ["a", "b", "id"]

    tell(story)


def test_a_session_that_is_closed_closes_its_socket_and_ends_its_tasks() -> None:
    async def story(desk: Desk, session: Session, reports: List[Report]) -> None:
        socket = session._socket = Socket()
        session._tasks = [asyncio.ensure_future(asyncio.sleep(60.0))]
        async with session:
            assert session.connected
        assert socket.is_closed and session._tasks[0].cancelled()

    tell(story)


def test_a_fault_in_a_task_does_not_pass_in_silence() -> None:
    async def story(desk: Desk, session: Session, reports: List[Report]) -> None:
        async def fail() -> None:
            raise ZeroDivisionError

        session._tasks = [asyncio.ensure_future(fail())]
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(session.follow(desk.run), 20.0)

    tell(story)


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "affinity", "lost"),
    [
        (ServerGone("x"), {}, True),
        (ServerUnreachable("x"), {}, False),
        (ServerUnreachable("x"), {"GPU": "1"}, True),
        (ServerAnswer("x", status=503), {"GPU": "1"}, True),
        (ServerAnswer("x", status=400), {"GPU": "1"}, False),
    ],
)
def test_behind_a_balancer_a_run_is_lost_with_its_server(
    error: ServerError, affinity: Dict[str, str], lost: bool
) -> None:
    async def story() -> None:
        desk = Desk()
        desk.server.cookies.affinity = affinity
        assert is_lost(desk.server, error) is lost

    asyncio.run(story())


@pytest.mark.parametrize(
    ("error", "about_prompt"),
    [
        (ServerAnswer("x", status=400), True),
        (ServerAnswer("x", status=500), True),
        (ServerAnswer("x", status=500, from_proxy=True), False),
        (ServerAnswer("x", status=401), False),
        (ServerUnreachable("x"), False),
        (UsageError("x"), False),
    ],
)
def test_an_answer_of_comfyui_itself_may_be_about_the_prompt(error: RunnerError, about_prompt: bool) -> None:
    assert may_be_about_prompt(error) is about_prompt


def test_an_error_becomes_a_refusal_in_comfyuis_form() -> None:
    problems = [Problem("t", "First."), Problem("t", "Second.")]
    rejection = as_rejection(ServerAnswer("HTTP 500.", "Look there.", status=500), problems)
    assert isinstance(rejection, PromptRejected)
    assert (rejection.message, rejection.remedy, rejection.problems) == ("HTTP 500.", "Look there.", problems)
    error = rejection.answer["error"]
    assert error == {
        "type": "comfyui_failed",
        "message": "HTTP 500.",
        "details": "First.\nSecond.",
        "extra_info": {},
    }
    assert rejection.answer["node_errors"] == {}


# -- cancelling ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked_at", "is_running", "may_ask"),
    [
        ({}, False, True),
        ({False: 100.0}, False, False),
        ({False: 100.0}, True, True),  # it has begun to run meanwhile
        ({True: 100.0 - CANCEL_INTERVAL}, True, True),
        ({True: 100.5 - CANCEL_INTERVAL}, True, False),
    ],
)
def test_a_server_is_asked_to_cancel_again_after_a_while(
    asked_at: Dict[bool, float], is_running: bool, may_ask: bool
) -> None:
    cancelling = Cancelling()
    cancelling.asked_at = asked_at
    assert cancelling.may_ask(is_running, 100.0) is may_ask


def test_a_cancel_that_nobody_confirms_has_an_end() -> None:
    async def story(desk: Desk, session: Session, reports: List[Report]) -> None:
        session.limits = FAST._replace(cancel=0.2)
        desk.run.state = desk.run.state._replace(phase=Phase.RUNNING)
        await asyncio.wait_for(session.cancel(desk.run), 20.0)
        assert desk.run.cancelling and desk.run.state.phase is Phase.RUNNING

    tell(story)


# -- submitting ------------------------------------------------------------------------------------


def submit_to(answer: Any) -> Any:
    """The run that was submitted to a server that answers so, and the error."""
    outcomes: List[Any] = []

    async def story(desk: Desk, session: Session, reports: List[Report]) -> None:
        def refuse(body: Any) -> Any:
            outcomes.append(body)
            raise answer

        desk.server.submit = refuse  # type: ignore[method-assign]
        with pytest.raises(RunnerError) as caught:
            await session.submit(desk.run)
        outcomes.extend([desk.run, caught.value])

    tell(story)
    return outcomes


def test_a_prompt_that_is_refused_is_over_and_says_why() -> None:
    error = {"type": "value_not_in_list", "message": "Value not in list", "details": "", "extra_info": {}}
    node_errors = {"1": {"errors": [error], "dependent_outputs": [], "class_type": "SlowProgress"}}
    rejection = PromptRejected("refused", answer={"error": {"type": "x"}, "node_errors": node_errors})
    body, run, raised = submit_to(rejection)
    assert sorted(body) == ["client_id", "prompt", "prompt_id"] and body["prompt_id"] == "id"
    assert raised is rejection and run.state.phase is Phase.REJECTED and not run.posting
    assert run.problems == rejection.problems
    assert [(problem.node_id, problem.type) for problem in run.problems] == [("1", "value_not_in_list")]


def test_an_error_that_is_not_about_the_prompt_ends_the_run_as_it_is() -> None:
    login = ServerAnswer("Log in.", status=401)
    _, run, raised = submit_to(login)
    assert raised is login and run.state.phase is Phase.REJECTED and run.problems == []


def test_a_server_that_refuses_the_websocket_is_not_waited_for() -> None:
    async def story(desk: Desk, session: Session, reports: List[Report]) -> None:
        with pytest.raises(ServerUnreachable, match=r"^http://127\.0\.0\.1:1 does not answer any more\.$") as caught:
            await asyncio.wait_for(session.open(), 20.0)
        assert caught.value.refused and reports == [] and not session._tasks

    tell(story)
