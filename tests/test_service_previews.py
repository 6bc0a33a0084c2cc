"""Previews without another start of ComfyUI: the service asks for them while somebody is watching."""

from __future__ import annotations

import time
from typing import Any, Callable, List

import pytest
from served import Middleware
from simulated import txt2img
from support import wait_until

from comfyui_runner.service import LOOK_SECONDS

Make = Callable[..., Any]
PROMPT = txt2img(steps=3)


@pytest.fixture
def looked_at(make_simulator: Make, make_middleware: Make) -> Callable[..., Middleware]:
    """A service on a ComfyUI that makes no previews by itself."""

    def make(version: str = "0.33.0") -> Middleware:
        service: Middleware = make_middleware(make_simulator(version=version, step_seconds=0.2), prompt=PROMPT)
        wait_until(lambda: service.service.session.connected, what="the WebSocket")
        return service

    return make


def previews_of(service: Middleware, seed: int, **body: Any) -> List[str]:
    """Runs the workflow with another seed: the events about previews that a client of /events gets."""
    with_seed = {**PROMPT, "3": {**PROMPT["3"], "inputs": {**PROMPT["3"]["inputs"], "seed": seed}}}
    answer = service.post("/prompt", {"prompt": with_seed, **body})
    assert answer.status == 200, answer
    prompt_id = answer.json["prompt_id"]
    seen = service.readers[-1].until(lambda name, data: name == "run" and data["over"])
    assert seen[-1][1]["phase"] == "success" and seen[-1][1]["prompt_id"] == prompt_id
    return [name for name, _ in seen if name == "preview"]


def wish(service: Middleware) -> Any:
    """What the next run asks for."""
    return dict(service.service._preview_wish(time.monotonic()))


def test_a_run_that_somebody_looks_at_has_previews(looked_at: Make) -> None:
    service = looked_at()
    service.events()
    # Events about previews come ten times a second at most: on a slow machine a short run may end before the first.
    assert any(previews_of(service, seed) for seed in (1, 11, 12, 13))
    assert not previews_of(service, 2, extra_data={"preview_method": "none"})
    chosen = {"preview_method": "latent2rgb"}
    assert any(previews_of(service, seed, extra_data=chosen) for seed in (3, 14, 15, 16))


def test_a_comfyui_that_does_not_know_the_wish_runs_the_prompt_as_ever(looked_at: Make) -> None:
    service = looked_at("0.3.76")
    service.events()
    assert not previews_of(service, 1)


def test_nobody_looks_at_first_and_a_look_lasts_a_minute(looked_at: Make) -> None:
    service = looked_at()
    assert wish(service) == {}
    answer = service.get("/preview")
    assert answer.status == 404 and "while somebody is watching" in answer.json["error"]["message"]
    assert wish(service) == {"preview_method": "auto"}
    assert service.service._preview_wish(time.monotonic() + LOOK_SECONDS) == {}


def test_a_client_of_the_events_looks_until_it_is_gone(looked_at: Make) -> None:
    service = looked_at()
    reader = service.events("/events?prompt_id=0f9b9df8-17f1-4e5c-92a8-1c4d5b8f2a61")
    assert reader.next() is not None and wish(service) == {"preview_method": "auto"}
    service.end_streams()
    assert wish(service) == {}


def test_the_wish_is_in_no_picture_and_in_no_answer(looked_at: Make) -> None:
    service = looked_at()
    service.get("/preview")
    run = service.end(service.start())
    picture = service.get("/" + run["outputs"][0]["url"])
    assert picture.status == 200 and b"preview_method" not in picture.body
    assert b"preview_method" not in service.get("/runs").body
