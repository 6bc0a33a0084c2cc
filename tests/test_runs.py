"""What the runner knows of one run: the pictures that may be its outputs."""

from __future__ import annotations

import asyncio
import time
from typing import List, Optional

import pytest
from support import node

from comfyui_runner.events import Preview
from comfyui_runner.runs import Run
from comfyui_runner.state import NodeProgress, Phase

PICTURE = b"\x89PNG\r\n\x1a\n and more"


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
    loop = asyncio.new_event_loop()
    try:
        asyncio.set_event_loop(loop)  # Python 3.8 and 3.9 need it for an Event
        run = Run({"6": node(class_type)}, "p", time.monotonic(), asyncio.Event())
    finally:
        asyncio.set_event_loop(None)
        loop.close()
    run.state = run.state._replace(phase=Phase.RUNNING, running={"6": NodeProgress(0.0)}, gaps=gaps)
    run.keep_preview(Preview(node_id, "image/png", PICTURE))
    assert [picture.node_id for picture in run.received()] == outputs
    assert run.preview == Preview("6", "image/png", PICTURE)
