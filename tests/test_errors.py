"""The tree of errors: what each of them says of itself, and which statuses it leads to."""

from __future__ import annotations

import pickle
from typing import Any, List, Tuple

import pytest

from comfyui_runner.edits import EditError
from comfyui_runner.errors import (
    EXIT_MEANINGS,
    ExitStatus,
    NodeFailed,
    NotConfirmed,
    PromptRejected,
    PromptUnknown,
    RunLost,
    RunnerError,
    SaveError,
    ServerAnswer,
    ServerError,
    ServerGone,
    ServerTooOld,
    ServerUnreachable,
    Stopped,
    UsageError,
    WorkflowError,
)

STATUSES: List[Tuple[RunnerError, ExitStatus, int]] = [
    (RunnerError("m", "r"), ExitStatus.ERROR, 500),
    (UsageError("m", "r"), ExitStatus.USAGE, 400),
    (WorkflowError("m", "r"), ExitStatus.BAD_WORKFLOW, 400),
    (NotConfirmed("m", "r"), ExitStatus.NOT_CONFIRMED, 409),
    (ServerError("m", "r"), ExitStatus.NO_SERVER, 503),
    (ServerUnreachable("m", "r"), ExitStatus.NO_SERVER, 503),
    (ServerGone("m", "r"), ExitStatus.NO_SERVER, 503),
    (ServerAnswer("m", "r", status=401), ExitStatus.NO_SERVER, 503),
    (ServerTooOld("m", "r"), ExitStatus.NO_SERVER, 503),
    (PromptRejected("m", "r", answer={}), ExitStatus.REJECTED, 400),
    (PromptUnknown("m", "r"), ExitStatus.LOST, 404),
    (SaveError("m", "r"), ExitStatus.NOT_SAVED, 500),
    (Stopped("m", "r"), ExitStatus.CANCELLED, 500),
]


@pytest.mark.parametrize(("error", "exit_status", "http_status"), STATUSES, ids=lambda value: type(value).__name__)
def test_an_error_says_what_and_what_next_and_leads_to_its_statuses(
    error: RunnerError, exit_status: ExitStatus, http_status: int
) -> None:
    assert (str(error), error.message, error.remedy) == ("m", "m", "r")
    assert (error.exit_status, error.http_status) == (exit_status, http_status)


@pytest.mark.parametrize("error", [ServerError("m"), ServerUnreachable("m"), ServerGone("m"), ServerTooOld("m")])
def test_a_server_that_does_not_answer_has_refused_only_if_that_is_said(error: Any) -> None:
    assert error.refused is False and error.status is None and error.remedy == ""
    assert ServerUnreachable("m", refused=True).refused is True


def test_errors_come_whole_from_another_process() -> None:
    """An exception that cannot be unpickled breaks the pool of processes that it was raised in."""
    rejected = PromptRejected("m", "r", answer={"error": "no"})
    rejected.problems = ["one"]
    rejected.args = ("m\nr",)
    answer = ServerAnswer("m", "r", status=404, body={"a": 1}, from_proxy=True)
    failure = {"node_id": "1", "title": "T", "class_type": "C", "type": "E", "traceback": []}
    failed = NodeFailed("m", "r", failure=failure, result=None)
    for error in (rejected, answer, failed, EditError("no_size", "m", details=["1"]), RunLost("m")):
        copied = pickle.loads(pickle.dumps(error))
        assert type(copied) is type(error)
        assert (copied.args, copied.__dict__) == (error.args, error.__dict__)


def test_what_a_run_made_stays_in_its_process() -> None:
    error = RunLost("m", result=object())
    assert pickle.loads(pickle.dumps(error)).result is None
    assert error.result is not None


def test_an_answer_keeps_its_status_and_body_and_who_made_it() -> None:
    plain = ServerAnswer("m", status=404)
    assert (plain.status, plain.body, plain.from_proxy, plain.refused) == (404, None, False, False)
    proxy = ServerAnswer("m", status=502, body={"a": 1}, from_proxy=True)
    assert (proxy.status, proxy.body, proxy.from_proxy) == (502, {"a": 1}, True)


def test_a_refused_prompt_keeps_comfyuis_answer() -> None:
    error = PromptRejected("m", answer={"error": {}})
    assert (error.answer, error.problems, error.remedy) == ({"error": {}}, [], "")


def test_every_exit_status_has_its_number_and_a_meaning() -> None:
    assert list(EXIT_MEANINGS) == list(ExitStatus)
    assert [int(status) for status in ExitStatus] == [*range(12), 124, 130, 143]
    assert all(EXIT_MEANINGS.values())
