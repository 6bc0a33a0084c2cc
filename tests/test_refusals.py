"""Which refused requests the console shows, without a socket and without a clock."""

from __future__ import annotations

from typing import Any, Dict, List

from comfyui_runner.refusals import COUNTING_SECONDS, MOST_KINDS, Refusal, RefusalLog
from comfyui_runner.reports import describe

REFUSAL = Refusal("192.0.2.1", "", "POST", "/update/inputs", 400, "no_such_node", 'The workflow has no node "7".')


def words(report: Any) -> str:
    """The only line of a report."""
    [(_, line)] = describe(report)
    return line


def test_a_refusal_is_shown_at_once_in_a_line_with_who_and_why() -> None:
    report = RefusalLog().add(REFUSAL, 0.0)
    assert report == {
        "event": "refused",
        "client": "192.0.2.1",
        "page": "",
        "method": "POST",
        "path": "/update/inputs",
        "status": 400,
        "type": "no_such_node",
        "message": 'The workflow has no node "7".',
        "count": 1,
    }
    assert words(report) == '192.0.2.1: POST /update/inputs refused (400): The workflow has no node "7".'


def test_a_foreign_page_is_named() -> None:
    refusal = Refusal("127.0.0.1", "http://evil.example", "GET", "/queue", 403, "foreign_origin", "No.")
    shown = words(RefusalLog().add(refusal, 0.0))
    assert shown == "127.0.0.1 (page http://evil.example): GET /queue refused (403): No."


def test_a_request_whose_head_cannot_be_read_has_neither_method_nor_path() -> None:
    report = RefusalLog().add(REFUSAL._replace(method="", path="", status=411, message="Send a length."), 0.0)
    assert words(report) == "192.0.2.1: a request refused (411): Send a length."


def test_what_others_chose_is_cut_and_stays_on_one_line() -> None:
    odd = Refusal(
        "::1", "http://a\nb" + "x" * 99, "BREW" * 99, "/\x1b[2Jx" + "y" * 99, 400, "t", "line\nline" + "z" * 999
    )
    line = words(RefusalLog().add(odd, 0.0))
    assert "\n" not in line and "\x1b" not in line and len(line) < 700


def test_a_flood_of_one_kind_is_a_line_at_once_and_one_for_each_ten_seconds() -> None:
    log = RefusalLog()
    assert log.add(REFUSAL, 0.0) is not None
    for number in range(500):
        assert log.add(REFUSAL._replace(message=f"Number {number}."), number / 100) is None
    assert log.take_due(COUNTING_SECONDS - 0.1) == []
    [report] = log.take_due(COUNTING_SECONDS)
    assert words(report) == "192.0.2.1: POST /update/inputs refused 500 more times (400): Number 499."
    assert log.add(REFUSAL, COUNTING_SECONDS + 1) is None  # it goes on
    assert log.take_due(2 * COUNTING_SECONDS - 0.1) == []
    [report] = log.take_due(2 * COUNTING_SECONDS)
    assert words(report).startswith("192.0.2.1: POST /update/inputs refused (400):")


def test_after_ten_seconds_of_silence_a_refusal_is_shown_at_once_again() -> None:
    log = RefusalLog()
    assert log.add(REFUSAL, 0.0) is not None
    assert log.take_due(COUNTING_SECONDS) == []
    assert log.add(REFUSAL, COUNTING_SECONDS) is not None


def test_another_client_path_or_reason_is_a_kind_of_its_own() -> None:
    log = RefusalLog()
    others: List[Dict[str, Any]] = [{}, {"client": "192.0.2.2"}, {"path": "/queue"}, {"type": "wrong_type"}]
    for other in others:
        assert log.add(REFUSAL._replace(**other), 0.0) is not None
        assert log.add(REFUSAL._replace(**other), 0.0) is None
    assert log.add(REFUSAL._replace(method="PUT", message="x"), 0.0) is None


def test_a_flood_of_kinds_is_bounded_too() -> None:
    log = RefusalLog()
    refusals = [REFUSAL._replace(path=f"/{number}") for number in range(5000)]
    at_once = [report for report in (log.add(refusal, 0.0) for refusal in refusals) if report]
    assert len(at_once) == MOST_KINDS + 1
    [rest] = log.take_due(COUNTING_SECONDS)
    assert rest["count"] == 5000 - len(at_once)
    assert words(rest).startswith(f"192.0.2.1 and others: POST /4999 refused {rest['count']} more times (400):")
    assert len([report for report in (log.add(refusal, 11.0) for refusal in refusals) if report]) <= MOST_KINDS + 1


def test_at_the_end_everything_is_shown() -> None:
    log = RefusalLog()
    log.add(REFUSAL, 0.0)
    log.add(REFUSAL, 0.0)
    assert [report["count"] for report in log.take_due(float("inf"))] == [1]
