"""What the runner knows of one run: the pictures that may be its outputs."""

from __future__ import annotations

import asyncio
import time
from typing import Any, List, Optional

import pytest
from support import node

from comfyui_runner.events import Preview
from comfyui_runner.runs import PREVIEWS_KEPT, Run
from comfyui_runner.state import NodeProgress, Phase

PICTURE = b"\x89PNG\r\n\x1a\n and more"


def new_run(prompt: Any) -> Run:
    loop = asyncio.new_event_loop()
    try:
        asyncio.set_event_loop(loop)  # Python 3.8 and 3.9 need it for an Event
        return Run(prompt, "p", time.monotonic(), asyncio.Event())
    finally:
        asyncio.set_event_loop(None)
        loop.close()


@pytest.mark.parametrize(
    ("class_type", "node_id", "gaps", "outputs"),
    [
        ("AnyNode", None, 0, ["6"]),
        ("AnyNode", "6", 1, ["6"]),
        # Without metadata, after messages were missed: it may be a preview of the next node.
        ("AnyNode", None, 1, []),
        ("SaveImageWebsocket", None, 1, ["6"]),
    ],
)
def test_a_picture_is_an_output_where_its_node_is_known(
    class_type: str, node_id: Optional[str], gaps: int, outputs: List[str]
) -> None:
    run = new_run({"6": node(class_type)})
    run.state = run.state._replace(phase=Phase.RUNNING, running={"6": NodeProgress(0.0)}, gaps=gaps)
    run.keep_preview(Preview(node_id, "image/png", PICTURE))
    assert [picture.node_id for picture in run.received()] == outputs
    assert run.preview == Preview("6", "image/png", PICTURE)


def picture_of(size: int, fill: bytes = b".") -> Preview:
    return Preview("6", "image/png", PICTURE + fill * (size - len(PICTURE)))


def test_pictures_are_kept_up_to_a_number_of_bytes() -> None:
    run = new_run({"6": node("SaveImageWebsocket")})
    run.most_picture_bytes = 100
    for size in (60, 41, 40, 20):
        run.keep_preview(picture_of(size))
    assert [len(picture.image) for picture in run.pictures] == [60, 40]
    assert (run.pictures_bytes, run.dropped_pictures) == (100, 2)
    assert run.preview == picture_of(20)  # it is shown, though it is not kept


def test_of_the_previews_of_a_node_with_steps_the_newest_are_kept() -> None:
    run = new_run({"6": node("KSampler"), "7": node("Other")})
    run.note_steps({"node": "6", "value": 1, "max": 99})
    run.keep_preview(picture_of(50)._replace(node_id="7"))
    for number in range(PREVIEWS_KEPT + 2):
        run.keep_preview(picture_of(50, fill=bytes([number])))
    assert [picture.image[-1] for picture in run.pictures] == [ord("."), *range(2, PREVIEWS_KEPT + 2)]
    assert run.pictures_bytes == 50 * (PREVIEWS_KEPT + 1)


def test_what_is_not_a_whole_picture_is_shown_and_not_kept() -> None:
    run = new_run({"6": node("AnyNode"), "7": node("SaveImageWebsocket")})
    run.keep_preview(Preview("6", "image/png", b"not a picture"))
    assert run.preview == Preview("6", "image/png", b"not a picture") and run.pictures == []
    run.keep_preview(Preview("7", "image/png", b"of a format that is not known"))
    assert len(run.pictures) == 1
    run.keep_preview(Preview(None, "image/png", PICTURE))  # no node runs
    assert len(run.pictures) == 1 and run.preview == Preview(None, "image/png", PICTURE)


def test_a_run_that_is_over_keeps_its_end_and_nothing_large() -> None:
    run = new_run({"6": node("SaveImageWebsocket")})
    run.keep_preview(picture_of(50))
    run.state = run.state._replace(phase=Phase.SUCCESS, ahead=3, outputs={"6": {"images": []}})
    rest = run.without_content()
    assert (rest.prompt_id, rest.state.phase, rest.state.ahead) == ("p", Phase.SUCCESS, 3)
    assert (rest.prompt, rest.pictures, rest.state.outputs, rest.outputs()) == ({}, [], {}, [])
    assert rest.over is run.over and rest.began == run.began


def test_a_message_ends_a_silence() -> None:
    run = new_run({"6": node("AnyNode")})
    run.checks, run.silence_reported = 3, 60.0
    run.note_message(run.began + 7.0)
    assert (run.heard, run.checks, run.silence_reported) == (run.began + 7.0, 0, 0.0)
