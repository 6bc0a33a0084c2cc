"""Who else is in ComfyUI's queue, as the service shows it."""

from __future__ import annotations

from typing import Any, Callable

import requests
from served import Middleware, post_elsewhere
from support import FAST, slow_prompt, wait_until

Make = Callable[..., Any]


def others_of(service: Middleware) -> Any:
    return service.get("/status").json["comfyui"]["others"]


def wait_for_others(service: Middleware, running: int, waiting: int) -> None:
    expected = {"running": running, "waiting": waiting}
    wait_until(lambda: others_of(service) == expected, what=f"{expected} ({others_of(service)})")


def delete(simulator: Any, prompt_id: str) -> None:
    requests.post(simulator.url + "/queue", json={"delete": [prompt_id]}, timeout=5)


def test_prompts_of_others_are_counted_and_ours_are_not(service: Middleware, comfyui: Any) -> None:
    wait_for_others(service, 0, 0)
    reader = service.events()
    service.hold(slow_prompt(steps=1000, seconds=60.0))
    ours = service.start()
    service.running(ours)
    first = post_elsewhere(comfyui, slow_prompt(steps=999, seconds=60.0))
    second = post_elsewhere(comfyui, slow_prompt(steps=998, seconds=60.0))
    wait_for_others(service, 0, 2)

    assert service.post("/interrupt", {"prompt_id": ours}).status == 200
    wait_for_others(service, 1, 1)
    last = service.start()
    assert service.get(f"/runs/{last}").json["ahead"] == 2
    delete(comfyui, second)
    wait_for_others(service, 1, 0)
    assert service.get("/runs/" + last).json["phase"] == "queued"
    comfyui._server.life.interrupt(first)
    service.running(last)
    wait_for_others(service, 0, 0)

    def shows_two(name: str, data: Any) -> bool:
        return name == "status" and data["comfyui"]["others"] == {"running": 1, "waiting": 1}

    reader.until(shows_two)


def test_runs_of_ours_alone_never_look_like_those_of_others(service: Middleware, comfyui: Any) -> None:
    wait_for_others(service, 0, 0)
    reader = service.events()
    for _ in range(5):
        service.end(service.start())
    post_elsewhere(comfyui, slow_prompt(steps=999, seconds=60.0))
    wait_for_others(service, 1, 0)
    seen = reader.until(lambda name, data: name == "status" and data["comfyui"]["others"]["running"])
    shown = [data["comfyui"]["others"] for name, data in seen if name == "status"]
    assert shown == [{"running": 1, "waiting": 0}]


def test_without_a_websocket_the_number_comes_with_each_check(
    simulator: Any, make_middleware: Make, monkeypatch: Any
) -> None:
    monkeypatch.setattr("comfyui_runner.service.CHECK_INTERVAL_IN_TROUBLE", 0.2)
    simulator.faults.http_status = {"/ws": 404}
    service = make_middleware(simulator, limits=FAST)
    wait_for_others(service, 0, 0)
    post_elsewhere(simulator, slow_prompt(steps=999, seconds=60.0))
    wait_for_others(service, 1, 0)


def test_a_server_that_does_not_say_it_is_no_trouble(simulator: Any, make_middleware: Make) -> None:
    simulator.faults.http_status = {"/ws": 404, "/prompt": 404}
    service = make_middleware(simulator)
    assert service.get("/status").json["comfyui"]["connected"] is True
    assert others_of(service) is None
    simulator.crash()
