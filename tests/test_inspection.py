"""--inputs and --check, as far as they need no server or a small one."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Dict, List

import pytest
from asked import Asked, Serve
from desk import Desk, settings_of
from support import node

from comfyui_runner.comfyui import ComfyUI
from comfyui_runner.errors import ExitStatus
from comfyui_runner.extras.inspection import check, list_inputs, missing_files
from comfyui_runner.loading import Loaded
from comfyui_runner.nodes import InputRef
from comfyui_runner.terminal import JsonPrinter

OBJECT_INFO: Dict[str, Any] = {
    "LoadImage": {
        "input": {"required": {"image": [["here.png"], {"image_upload": True}]}},
        "output": ["IMAGE", "MASK"],
    },
    "Save": {"input": {"required": {"images": ["IMAGE"]}}, "output": [], "output_node": True},
}


def loaded(image: Any, **more: Any) -> Loaded:
    prompt = {"1": node("LoadImage", "Photo", image=image), "2": node("Save", images=["1", 0])}
    return Loaded(prompt, "a.json", object_info=OBJECT_INFO, **more)


def checked(workflow: Loaded, *arguments: str) -> Any:
    """The status, what a person reads of it, and the report for programs."""
    outcomes: List[Any] = []

    async def story() -> None:
        desk = Desk()
        settings = settings_of("--check", *arguments)
        status = await check(workflow, ComfyUI(settings, desk.console), settings, desk.console)
        outcomes.extend([status, desk.out.getvalue()])

    asyncio.run(story())
    return outcomes


def test_a_workflow_without_problems_says_so() -> None:
    assert checked(loaded("here.png")) == [ExitStatus.OK, "No problems found in 2 nodes.\n"]


def test_what_is_wrong_is_listed_and_counted() -> None:
    workflow = loaded("here.png")
    workflow.prompt["3"] = node("Save")
    workflow.prompt["4"] = node("Missing")
    workflow = workflow._replace(object_info={**OBJECT_INFO, "Missing": {}})
    status, shown = checked(workflow)
    assert status is ExitStatus.REJECTED
    assert "images" in shown and "Missing" in shown
    assert shown.endswith("2 problems found; nothing was run.\n")


@pytest.mark.parametrize("is_json", [False, True])
def test_what_can_be_set_is_listed(is_json: bool) -> None:
    async def story() -> str:
        desk = Desk()
        arguments = ["--inputs"]
        if is_json:
            arguments.append("--json")
            desk.console.printer = JsonPrinter(desk.out, desk.err)
        assert list_inputs(loaded("here.png"), settings_of(*arguments), desk.console) is ExitStatus.OK
        return desk.out.getvalue()

    shown = asyncio.run(story())
    if is_json:
        (row,) = [json.loads(line) for line in shown.splitlines()]
        assert (row["event"], row["node_id"], row["input"], row["value"]) == ("input", "1", "image", "here.png")
    else:
        assert "1.image" in shown and "here.png" in shown


@pytest.mark.parametrize(
    ("image", "uploads", "status", "asked_for", "is_missing"),
    [
        ("gone.png", (), 404, True, True),
        ("there.png", (), 200, True, False),
        ("here.png", (), 404, False, False),  # ComfyUI lists it
        ("gone.png", ((InputRef("1", "image"), "cat.png"),), 404, False, False),  # it is to be uploaded
        (["2", 0], (), 404, False, False),  # a link
    ],
)
def test_a_file_that_comfyui_lacks_is_a_problem(
    image: Any, uploads: Any, status: int, asked_for: bool, is_missing: bool, serve: Serve
) -> None:
    asked = Asked(serve, {"/view": (status, {})})
    problems = asyncio.run(missing_files(loaded(image, uploads=uploads), asked.server))
    assert bool(asked.requests) is asked_for
    assert [(problem.node_id, problem.input, problem.value) for problem in problems] == (
        [("1", "image", image)] if is_missing else []
    )
