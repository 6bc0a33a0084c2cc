"""Stories of continuous mode: ComfyUI's own POST /prompt."""

from __future__ import annotations

import http.client
import json
from typing import Any

import pytest
from served import TEXTS, Answer, Json, Middleware, submitted
from support import node, slow_prompt

from comfyui_runner.server import new_uuid
from comfyui_runner.service_routes import merge_extra


def straight(simulator: Any, body: Any) -> Answer:
    """ComfyUI's own answer to POST /prompt."""
    connection = http.client.HTTPConnection("127.0.0.1", simulator.port, timeout=10.0)
    connection.request("POST", "/prompt", json.dumps(body))
    response = connection.getresponse()
    answer = Answer(response.status, {}, response.read())
    connection.close()
    return answer


def test_a_prompt_of_a_client_of_comfyui_runs_and_is_followed(service: Middleware, comfyui: Any) -> None:
    events = service.events()
    body = {"prompt": slow_prompt(steps=2, seconds=0.0, seed=77), "client_id": "theirs", "extra_data": {"x": 1}}
    answer = service.post("/prompt", body)
    assert answer.status == 200
    assert set(answer.json) == {"prompt_id", "number", "node_errors"}
    prompt_id = answer.json["prompt_id"]
    assert service.end(prompt_id)["phase"] == "success"
    events.until(lambda name, data: name == "run" and data["prompt_id"] == prompt_id and data["over"])
    events.close()
    item = comfyui._server.life.history[prompt_id]["prompt"]
    assert item[3]["client_id"] == service.service.session.client_id
    assert item[3]["x"] == 1
    assert service.held() == TEXTS


def test_the_prompt_id_of_a_client_is_kept(service: Middleware) -> None:
    prompt_id = new_uuid()
    body = {"prompt": slow_prompt(steps=1, seconds=0.0), "prompt_id": prompt_id}
    assert service.post("/prompt", body).json["prompt_id"] == prompt_id
    service.end(prompt_id)
    assert service.post("/prompt", body).status == 400  # it is taken
    for wrong in ("", "x", prompt_id.upper(), 7, "../../x"):
        assert service.post("/prompt", {**body, "prompt_id": wrong}).status == 400


@pytest.mark.parametrize(
    "prompt",
    [
        {},
        {"1": node("NoSuchNode")},
        {"1": {"inputs": {}}},
        {"1": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x"}}},
        {"1": node("SaveImage", filename_prefix="x", images=["9", 0])},
        {"1": node("EmptyImage", width=1, height=1, batch_size=1, color=0)},
        {"1": node("SlowProgress", steps=-5, seconds="x", seed=1, preview=False), "2": slow_prompt()["2"]},
    ],
)
def test_what_comfyui_says_is_wrong_comes_back_as_it_is(service: Middleware, comfyui: Any, prompt: Json) -> None:
    theirs, ours = straight(comfyui, {"prompt": prompt}), service.post("/prompt", {"prompt": prompt})
    assert ours.status == theirs.status == 400
    assert ours.json == theirs.json


@pytest.mark.parametrize("prompt", [{"1": node("NoSuchNode", "A node")}, {"1": "text"}, {"1": {}}, {"1": None}])
def test_a_prompt_that_is_refused_gets_400(service: Middleware, prompt: Json) -> None:
    assert service.post("/prompt", {"prompt": prompt}).status == 400


def test_half_of_a_prompt_runs_and_what_was_refused_is_listed(service: Middleware, comfyui: Any) -> None:
    prompt = {
        **slow_prompt(steps=1, seconds=0.0, seed=21),
        "3": node("SaveImage", "Other", filename_prefix="y", images=["9", 0]),
    }
    answer = service.post("/prompt", {"prompt": prompt})
    theirs = straight(comfyui, {"prompt": prompt})
    assert answer.status == theirs.status
    if answer.status == 200:
        assert answer.json["node_errors"] == theirs.json["node_errors"]


def test_a_request_that_breaks_comfyui_gets_a_declared_answer(service: Middleware, comfyui: Any) -> None:
    body = {"prompt": slow_prompt(), "number": "first"}
    assert straight(comfyui, body).status == 500
    answer = service.post("/prompt", body)
    assert answer.status in (400, 503), answer


def test_with_no_body_the_held_workflow_runs(service: Middleware, comfyui: Any) -> None:
    answer = service.post("/prompt")
    assert answer.status == 200
    service.end(answer.json["prompt_id"])
    assert submitted(comfyui)[-1] == TEXTS


def test_a_clients_own_fields_come_before_those_of_the_held_workflow() -> None:
    held = {"extra_data": {"extra_pnginfo": {"workflow": 1}, "x": 1}, "number": 1}
    assert merge_extra(held, {"extra_data": {"x": 2}, "front": True}) == {
        "extra_data": {"extra_pnginfo": {"workflow": 1}, "x": 2},
        "number": 1,
        "front": True,
    }
    assert merge_extra({}, {"extra_data": {"x": 2}}) == {"extra_data": {"x": 2}}
    assert merge_extra(held, {}) == held
