"""The rules at the end of a run, without a socket: which stop counts, which exit status, what is whole."""

from __future__ import annotations

import asyncio
from typing import Any, List, Optional

import pytest
from desk import Desk

from comfyui_runner.conclusion import (
    TIMED_OUT,
    exit_status_before_saving,
    exit_status_if_not_saved,
    name_output,
    notices_of_missing,
    report_outputs,
    save_outputs,
    stop_that_counts,
)
from comfyui_runner.errors import ExitStatus, SaveError
from comfyui_runner.interrupts import Stop
from comfyui_runner.outputs import Output
from comfyui_runner.reports import Report, plain_notice
from comfyui_runner.saving import Destination, notice_of_unsaved
from comfyui_runner.state import Phase, PromptState

CTRL_C = Stop("Ctrl+C", ExitStatus.CANCELLED)


def ended(phase: Phase) -> PromptState:
    """The state of a prompt that is in ``phase``."""
    return PromptState("id")._replace(phase=phase)


@pytest.mark.parametrize("phase", [Phase.SUCCESS, Phase.ERROR])
def test_a_timeout_that_comes_as_the_run_ends_by_itself_does_not_count(phase: Phase) -> None:
    assert stop_that_counts(ended(phase), TIMED_OUT) is None


@pytest.mark.parametrize("phase", [Phase.INTERRUPTED, Phase.DELETED, Phase.RUNNING, Phase.LOST])
def test_a_timeout_that_ended_the_run_counts(phase: Phase) -> None:
    assert stop_that_counts(ended(phase), TIMED_OUT) is TIMED_OUT


@pytest.mark.parametrize("phase", [Phase.SUCCESS, Phase.ERROR, Phase.INTERRUPTED])
def test_a_press_counts_however_the_run_ended(phase: Phase) -> None:
    assert stop_that_counts(ended(phase), CTRL_C) is CTRL_C


def test_without_a_stop_there_is_none() -> None:
    assert stop_that_counts(ended(Phase.RUNNING), None) is None


@pytest.mark.parametrize(
    ("phase", "has_dropped", "stop", "expected"),
    [
        (Phase.SUCCESS, False, None, ExitStatus.OK),
        (Phase.SUCCESS, True, None, ExitStatus.PARTIAL),
        (Phase.ERROR, False, None, ExitStatus.FAILED),
        (Phase.LOST, True, None, ExitStatus.LOST),
        (Phase.INTERRUPTED, False, None, ExitStatus.INTERRUPTED),
        (Phase.INTERRUPTED, False, TIMED_OUT, ExitStatus.TIMEOUT),
        (Phase.SUCCESS, True, CTRL_C, ExitStatus.CANCELLED),
    ],
)
def test_a_run_ends_with_its_own_status_or_with_that_of_what_cancelled_it(
    phase: Phase, has_dropped: bool, stop: Optional[Stop], expected: ExitStatus
) -> None:
    assert exit_status_before_saving(ended(phase), has_dropped, stop) is expected


@pytest.mark.parametrize(
    ("before", "stopped_with", "server_is_gone", "expected"),
    [
        (ExitStatus.OK, None, False, ExitStatus.NOT_SAVED),
        (ExitStatus.PARTIAL, None, False, ExitStatus.PARTIAL),
        (ExitStatus.FAILED, None, False, ExitStatus.FAILED),
        (ExitStatus.OK, None, True, ExitStatus.LOST),
        (ExitStatus.PARTIAL, None, True, ExitStatus.LOST),
        (ExitStatus.OK, ExitStatus.CANCELLED, False, ExitStatus.CANCELLED),
        (ExitStatus.OK, ExitStatus.TERMINATED, True, ExitStatus.TERMINATED),
    ],
)
def test_what_is_not_saved_changes_the_status_of_a_run_that_succeeded(
    before: ExitStatus, stopped_with: Optional[ExitStatus], server_is_gone: bool, expected: ExitStatus
) -> None:
    assert exit_status_if_not_saved(before, stopped_with, server_is_gone) is expected


def test_saving_is_stopped_by_its_event_alone() -> None:
    async def story() -> None:
        stopping = asyncio.Event()
        never = Destination("out")
        silent = Destination("out", stopping=stopping)
        stopped = silent._replace(status_if_stopped=lambda: ExitStatus.CANCELLED)
        assert not stopped.is_stopped and stopped.stopped_with() is None
        stopping.set()
        assert not never.is_stopped and never.stopped_with() is None
        assert silent.is_stopped and silent.stopped_with() is None
        assert stopped.is_stopped and stopped.stopped_with() is ExitStatus.CANCELLED

    asyncio.run(story())


# -- what is reported, and in which order ----------------------------------------------------------

PICTURE = Output("1", "Save", "image", filename="a.png", type="")
OTHER = Output("1", "Save", "image", filename="b.png", type="")


def with_reports(desk: Desk) -> List[Report]:
    """What the session of ``desk`` reports from now on."""
    reports: List[Report] = []
    desk.session.report = lambda run, report: reports.append(report)
    return reports


@pytest.mark.parametrize(
    ("has_folder", "is_stopped", "will_be_saved"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_an_output_says_whether_it_will_be_saved(has_folder: bool, is_stopped: bool, will_be_saved: bool) -> None:
    async def story() -> None:
        desk = Desk()
        reports = with_reports(desk)
        stopping = asyncio.Event()
        if is_stopped:
            stopping.set()
        destination = Destination("out", stopping=stopping) if has_folder else None
        report_outputs(desk.session, desk.run, [PICTURE], destination)
        (report,) = reports
        assert (report["event"], report["filename"], report["url"]) == ("output", "a.png", None)
        assert report["will_be_saved"] is will_be_saved

    asyncio.run(story())


def test_each_file_is_reported_and_one_that_cannot_be_saved_does_not_stop_the_rest(tmp_path: Any) -> None:
    async def story() -> None:
        desk = Desk()
        reports = with_reports(desk)
        (tmp_path / "out").mkdir()
        broken, whole = PICTURE._replace(content=b"old"), OTHER._replace(content=b"data")

        def refuse(name: str) -> str:
            if name == "a.png":
                raise SaveError("a.png could not be saved.", "Choose another folder.")
            return name

        destination = Destination(str(tmp_path / "out"), rename=refuse)
        paths, unsaved = await save_outputs(desk.session, desk.run, [broken, whole], destination)
        path = str(tmp_path / "out" / "b.png")
        assert (paths, unsaved) == ({whole: path}, ["a.png"])
        assert reports == [
            {"event": "not_saved", "message": "a.png could not be saved.", "remedy": "Choose another folder."},
            {"event": "saved", "title": "Save", "path": path, "bytes": 4},
        ]

    asyncio.run(story())


def test_what_is_left_when_the_saving_is_stopped_is_on_the_server(tmp_path: Any) -> None:
    async def story() -> None:
        desk = Desk()
        reports = with_reports(desk)
        stopping = asyncio.Event()
        stopping.set()
        outputs = [PICTURE._replace(content=b"x"), OTHER._replace(content=b"y")]
        destination = Destination(str(tmp_path), stopping=stopping)
        assert await save_outputs(desk.session, desk.run, outputs, destination) == ({}, ["a.png", "b.png"])
        assert reports == [plain_notice("Stopped: outputs that are not saved are still on the server.")]
        assert list(tmp_path.iterdir()) == []

    asyncio.run(story())


@pytest.mark.parametrize(
    ("missing", "dropped", "notices"),
    [
        (0, 0, []),
        (
            1,
            0,
            [
                "1 picture sent over the WebSocket did not arrive. ComfyUI does not keep a copy, "
                "and sends them only while the node runs: change a seed and run it again."
            ],
        ),
        (0, 2, ["2 pictures sent over the WebSocket were not kept: the limit for one run is 256.0 MB."]),
    ],
)
def test_what_is_said_of_pictures_that_are_missing(missing: int, dropped: int, notices: List[str]) -> None:
    assert notices_of_missing(missing, dropped) == notices


@pytest.mark.parametrize(
    ("sources", "notice"),
    [
        (["file", "text"], None),
        (["websocket", "file"], "1 picture arrived over the WebSocket only: add -o DIR to save them."),
        (["base64", "base64"], "2 files came as base64 in a text: add -o DIR to save them."),
        (
            ["base64", "websocket"],
            "1 picture arrived over the WebSocket only: add -o DIR to save them. "
            "1 file came as base64 in a text: add -o DIR to save them.",
        ),
    ],
)
def test_what_nobody_asked_to_save_is_mentioned_if_no_server_keeps_it(
    sources: List[str], notice: Optional[str]
) -> None:
    assert notice_of_unsaved([PICTURE._replace(source=source) for source in sources]) == notice


def test_an_output_that_is_not_saved_is_named_by_its_file_or_its_node() -> None:
    assert name_output(PICTURE) == "a.png"
    assert name_output(Output("1", "Caption", "text", text="a fox")) == "Caption"


@pytest.mark.parametrize("has_urls", [True, False])
def test_an_output_has_its_address_where_people_can_open_it(has_urls: bool) -> None:
    async def story() -> None:
        desk = Desk()
        reports = with_reports(desk)
        report_outputs(desk.session, desk.run, [PICTURE._replace(type="output")], None, has_urls=has_urls)
        url = reports[0]["url"]
        assert bool(url) is has_urls
        if has_urls:
            assert url.startswith("http://127.0.0.1:1/view?filename=a.png")

    asyncio.run(story())
