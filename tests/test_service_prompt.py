"""Stories of continuous mode: ComfyUI's own POST /prompt."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
from typing import Any

import pytest
from served import TEXTS, Answer, Json, Middleware, phase_elsewhere, post_elsewhere, submitted
from support import node, slow_prompt, wait_until

from comfyui_runner.messages import HttpError
from comfyui_runner.server import new_uuid
from comfyui_runner.service_routes import split_prompt_body


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
    answer = service.post("/prompt", body)
    assert (answer.status, answer.error) == (409, "prompt_id_taken")
    for wrong in ("", "x", prompt_id.upper(), 7, "../../x"):
        assert service.post("/prompt", {**body, "prompt_id": wrong}).status == 400


def test_a_prompt_that_comfyui_stumbles_over_is_explained(service: Middleware, comfyui: Any) -> None:
    broken = {"1": node("NoSuchNode", "Odd"), "2": node("EmptyImage", width=8, height=8, batch_size=0, color=0)}
    comfyui.faults.lose_post = ["500"]
    answer = service.post("/prompt", {"prompt": broken})
    assert answer.status == 400
    assert (answer.json["error"]["type"], answer.json["node_errors"]) == ("comfyui_failed", {})
    assert "the server does not have the class NoSuchNode." in answer.json["error"]["details"]
    run = service.get("/runs").json["runs"][0]
    assert run["phase"] == "rejected"
    assert [(problem["node_id"], problem["type"]) for problem in run["problems"]] == [("1", "missing_node_type")]
    comfyui.faults.lose_post = ["unnamed"]
    assert service.post("/prompt", {"prompt": broken}).json == {"error": "invalid prompt", "node_errors": []}


def test_the_message_names_the_node_where_the_refusal_names_none(service: Middleware, comfyui: Any) -> None:
    image = node("EmptyImage", "Odd", width=8, height=8, batch_size=0, color=0)
    service.hold({"1": image, "2": node("PreviewImage", images=["1", 0])})
    comfyui.faults.lose_post = ["unnamed"]
    answer = service.get("/queue")
    assert (answer.status, answer.error) == (400, "prompt_rejected")
    assert '"Odd" (EmptyImage, node 1): batch_size = 0 is too small.' in answer.json["error"]["message"]


def test_a_prompt_id_of_somebody_else_is_refused_and_their_prompt_goes_on(service: Middleware, comfyui: Any) -> None:
    running = post_elsewhere(comfyui, slow_prompt(steps=10, seconds=20.0, seed=79))
    wait_until(lambda: phase_elsewhere(comfyui, running) == "running")
    waiting = post_elsewhere(comfyui, slow_prompt(steps=1, seconds=0.0, seed=80))
    for prompt_id in (running, waiting):
        body = {"prompt": slow_prompt(steps=1, seconds=0.0), "prompt_id": prompt_id}
        answer = service.post("/prompt", body)
        assert (answer.status, answer.error) == (409, "prompt_id_taken")
        assert service.get("/runs/" + prompt_id).status == 404
        assert service.post("/interrupt", {"prompt_id": prompt_id}).status == 409
    assert phase_elsewhere(comfyui, running) == "running"
    assert phase_elsewhere(comfyui, waiting) == "pending"


def test_a_prompt_id_in_the_history_is_taken(service: Middleware, comfyui: Any) -> None:
    prompt_id = post_elsewhere(comfyui, slow_prompt(steps=1, seconds=0.0, seed=81))
    wait_until(lambda: phase_elsewhere(comfyui, prompt_id) == "success")
    body = {"prompt": slow_prompt(steps=1, seconds=0.0), "prompt_id": prompt_id}
    assert service.post("/prompt", body).status == 409


def test_of_two_requests_with_the_same_prompt_id_one_runs(service: Middleware, comfyui: Any) -> None:
    body: Any = {"prompt": slow_prompt(steps=1, seconds=0.0, seed=82), "prompt_id": new_uuid()}
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: service.post("/prompt", body).status, range(4)))
    assert sorted(answers) == [200, 409, 409, 409]
    assert service.end(body["prompt_id"])["phase"] == "success"
    assert comfyui.requests.count(("POST", "/prompt")) == 1


def test_a_prompt_id_that_cannot_be_looked_up_is_not_submitted(service: Middleware, comfyui: Any) -> None:
    comfyui.faults.http_status = {"/queue": 500}
    body = {"prompt": slow_prompt(steps=1, seconds=0.0), "prompt_id": new_uuid()}
    assert service.post("/prompt", body).status == 503
    assert ("POST", "/prompt") not in comfyui.requests


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


def test_a_workflow_alone_is_the_prompt(service: Middleware, comfyui: Any) -> None:
    prompt = slow_prompt(steps=1, seconds=0.0, seed=78)
    answer = service.post("/prompt", prompt)
    assert answer.status == 200
    service.end(answer.json["prompt_id"])
    assert submitted(comfyui)[-1] == prompt
    assert service.held() == TEXTS


@pytest.mark.parametrize(
    "body",
    [
        {"workflow": TEXTS, "client_id": "x"},
        {"Prompt": TEXTS},
        {"input": {"workflow": TEXTS}},
        {"extra_data": {"x": 1}},
        {"nodes": [], "links": []},
        {**TEXTS, "2": {"inputs": {}}},
        {"prompt": None},
    ],
)
def test_the_held_workflow_never_runs_in_place_of_what_was_sent(service: Middleware, comfyui: Any, body: Json) -> None:
    assert service.post("/prompt", body).status == 400
    assert ("POST", "/prompt") not in comfyui.requests
    assert service.service.records.not_over() == []


NODES: Json = {"1": node("A"), "prompt": node("B")}


def test_a_body_is_divided_into_the_prompt_and_the_other_fields() -> None:
    body = {"prompt": NODES, "client_id": "x", "extra_data": {"a": 1}, "number": 3}
    assert split_prompt_body(body) == (NODES, {"extra_data": {"a": 1}, "number": 3})
    assert split_prompt_body(NODES) == (NODES, {})  # one of the nodes has the id "prompt"
    assert split_prompt_body({}) == (None, {})


@pytest.mark.parametrize(
    ("body", "reason", "message"),
    [
        ({"Prompt": NODES}, "missing_field", 'The body has "Prompt", but not the field "prompt".'),
        ({"id": 1, "workflow": NODES}, "missing_field", 'The body has "id", "workflow", but not the field'),
        ({"1": node("A"), "2": {}}, "invalid_prompt", 'The entry "2" of the workflow in the body is not a node'),
        ({"prompt": []}, "wrong_type", "The field prompt must be an object."),
        ({"prompt": NODES, "extra_data": 1}, "wrong_type", "The field extra_data must be an object."),
    ],
)
def test_a_body_without_a_prompt_is_refused_with_what_it_has(body: Json, reason: str, message: str) -> None:
    with pytest.raises(HttpError) as caught:
        split_prompt_body(body)
    assert caught.value.type == reason
    assert caught.value.message.startswith(message)
