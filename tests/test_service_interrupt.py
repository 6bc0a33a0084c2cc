"""Stories of continuous mode: stopping a run."""

from __future__ import annotations

from typing import Any

from served import Middleware, phase_elsewhere, post_elsewhere
from support import slow_prompt, wait_until


def test_the_running_one_is_interrupted_first(service: Middleware) -> None:
    service.hold(slow_prompt(steps=20, seconds=20.0, seed=31))
    first, second = service.start(), service.start()
    service.running(first)
    answer = service.post("/interrupt")
    assert (answer.status, answer.json["prompt_id"], answer.json["phase"]) == (200, first, "interrupted")
    assert "Somebody else" not in answer.json["message"]
    assert service.end(first)["over"]
    service.running(second)
    assert service.post("/interrupt", b"").json["prompt_id"] == second


def test_a_waiting_one_is_taken_off_the_queue_by_its_id(service: Middleware, comfyui: Any) -> None:
    service.hold(slow_prompt(steps=20, seconds=20.0, seed=32))
    first, second = service.start(), service.start()
    service.running(first)
    answer = service.post("/interrupt", {"prompt_id": second})
    assert (answer.status, answer.json["phase"]) == (200, "deleted")
    assert comfyui.executions.get(second, 0) == 0
    assert service.get("/runs/" + first).json["phase"] == "running"


def test_somebody_elses_run_is_never_stopped(service: Middleware, comfyui: Any) -> None:
    foreign = post_elsewhere(comfyui, slow_prompt(steps=10, seconds=20.0, seed=33))
    wait_until(lambda: phase_elsewhere(comfyui, foreign) == "running")
    for body in (None, {}, {"prompt_id": foreign}):
        answer = service.post("/interrupt", body)
        assert (answer.status, answer.error) == (409, "nothing_to_interrupt")
    service.hold(slow_prompt(steps=1, seconds=0.0, seed=34))
    waiting = service.start()
    assert service.post("/interrupt").json["prompt_id"] == waiting
    assert phase_elsewhere(comfyui, foreign) == "running"


def test_an_interrupt_that_comfyui_ignores_is_shown_as_requested(service: Middleware, comfyui: Any) -> None:
    comfyui.faults.ignore_interrupt = True
    service.hold(slow_prompt(steps=4, seconds=2.5, seed=35))
    prompt_id = service.start()
    service.running(prompt_id)
    answer = service.post("/interrupt")
    assert (answer.status, answer.json["message"]) == (202, "requested")
    shown = service.end(prompt_id)
    assert shown["phase"] == "success"
    assert len(shown["outputs"]) == 1


def test_a_misspelled_field_stops_nothing(service: Middleware) -> None:
    service.hold(slow_prompt(steps=20, seconds=20.0, seed=36))
    prompt_id = service.start()
    service.running(prompt_id)
    answer = service.post("/interrupt", {"id": prompt_id})
    assert (answer.status, answer.error) == (400, "unknown_field")
    assert answer.json["error"]["message"] == 'There is no field "id" here. Nearest: prompt_id.'
    answer = service.post("/interrupt?prompt_id=another")  # it is read from the body only
    assert (answer.status, answer.error) == (400, "unknown_field")
    assert service.get("/runs/" + prompt_id).json["phase"] == "running"


def test_what_is_over_or_unknown_cannot_be_interrupted(service: Middleware) -> None:
    prompt_id = service.start()
    service.end(prompt_id)
    for body in ({"prompt_id": prompt_id}, {"prompt_id": ""}, {"prompt_id": "none"}):
        assert service.post("/interrupt", body).status == 409
    assert service.post("/interrupt", {"prompt_id": 7}).status == 400
    assert service.post("/interrupt", b"{").status == 400
