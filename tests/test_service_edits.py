"""Stories of continuous mode: setting texts and inputs."""

from __future__ import annotations

from typing import Any

import pytest
from served import Json, Middleware, submitted
from support import node

from comfyui_runner.simulator.nodes import NODES


def test_positive_and_negative_are_found_by_the_links_of_the_sampler(service: Middleware) -> None:
    answer = service.post("/update/prompt", {"type": "positive", "text": "a fox"})
    assert answer.status == 200
    assert (answer.json["node_id"], answer.json["changed"]) == ("2", {"text": "a fox"})
    assert answer.json["checked"] is True
    assert service.post("/update/prompt", {"type": "negative", "text": "blur"}).json["node_id"] == "3"
    held = service.held()
    assert (held["2"]["inputs"]["text"], held["3"]["inputs"]["text"]) == ("a fox", "blur")


def test_a_text_is_named_by_id_or_title(service: Middleware) -> None:
    assert service.post("/update/prompt", {"node_id": "2", "text": "by id"}).json["node_id"] == "2"
    assert service.post("/update/prompt", {"title": "Negative Prompt", "text": "by title"}).json["node_id"] == "3"
    held = service.held()
    assert (held["2"]["inputs"]["text"], held["3"]["inputs"]["text"]) == ("by id", "by title")


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({"text": "a"}, 400, "missing_field"),
        ({"text": "a", "type": "both"}, 400, "wrong_value"),
        ({"text": "a", "type": "both", "node_id": "1"}, 400, "wrong_value"),
        ({"type": "positive"}, 400, "missing_field"),
        ({"type": "positive", "text": 7}, 400, "wrong_type"),
        ({"node_id": 2.5, "text": "a"}, 400, "wrong_type"),
        ({"node_id": 99, "text": "a"}, 400, "no_such_node"),
        ({"type": "positive", "text": "a", "nodeid": "3"}, 400, "unknown_field"),
        ({"node_id": "99", "text": "a"}, 400, "no_such_node"),
        ({"node_id": "5", "text": "a"}, 409, "no_such_text"),
        ({"title": "CLIPTextEncode", "text": "a"}, 409, "ambiguous_node"),
        ([], 400, "not_an_object"),
    ],
)
def test_a_text_that_cannot_be_set_changes_nothing(service: Middleware, body: Any, status: int, reason: str) -> None:
    before = service.get("/workflow").json
    answer = service.post("/update/prompt", body)
    assert (answer.status, answer.error) == (status, reason)
    assert service.get("/workflow").json == before
    if status == 409:
        listed = [(each["node_id"], each["title"]) for each in answer.json["error"]["details"]]
        assert listed == [("2", "Positive Prompt"), ("3", "Negative Prompt")]


def test_a_node_may_be_named_by_a_number(service: Middleware) -> None:
    answer = service.post("/update/prompt", {"node_id": 2, "text": "by number"})
    assert (answer.status, answer.json["node_id"]) == (200, "2")
    assert service.post("/update/inputs", {"node_id": 5, "inputs": {"steps": 4}}).json["node_id"] == "5"
    held = service.held()
    assert (held["2"]["inputs"]["text"], held["5"]["inputs"]["steps"]) == ("by number", 4)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (
            "/update/prompt",
            {"type": "postive", "text": "a"},
            'The field type must be "positive" or "negative", not "postive".'
            ' Example: {"type": "positive", "text": "a fox"}'
            ', or with curl: -d type=positive --data-urlencode "text=a fox"',
        ),
        (
            "/update/inputs",
            {"node_id": "5"},
            'The field inputs is missing. Example: {"node_id": "5", "inputs": {"seed": "random"}}'
            ", or with curl: -d node_id=5 -d inputs.seed=random",
        ),
        (
            "/update/inputs",
            {"node_id": "5", "steps": 4},
            'There is no field "steps" here. Nearest: title, inputs, node_id.'
            ' Example: {"node_id": "5", "inputs": {"seed": "random"}}'
            ", or with curl: -d node_id=5 -d inputs.seed=random",
        ),
    ],
)
def test_an_edit_that_cannot_be_read_shows_what_one_is_like(
    service: Middleware, path: str, body: Json, message: str
) -> None:
    assert service.post(path, body).json["error"]["message"] == message


FORM = "application/x-www-form-urlencoded"


def test_a_text_is_set_by_a_form(service: Middleware) -> None:
    """As ``curl -d type=positive --data-urlencode "text=a fox & ..."`` sends it, in every shell."""
    body = b"type=positive&text=a%20fox+%26%20100%25%0D%0Aof+snow+%E9%9B%AA"
    answer = service.post("/update/prompt", body, Content_Type=FORM)
    assert (answer.status, answer.json["changed"]) == (200, {"text": "a fox & 100%\nof snow 雪"})
    assert service.post("/update/prompt", b"node_id=3&text=", Content_Type=FORM + "; charset=utf-8").status == 200
    held = service.held()
    assert (held["2"]["inputs"]["text"], held["3"]["inputs"]["text"]) == ("a fox & 100%\nof snow 雪", "")


def test_json_that_curl_calls_a_form_is_json(service: Middleware) -> None:
    assert service.post("/update/prompt", b' {"type": "positive", "text": "a=b"}', Content_Type=FORM).status == 200
    assert service.held()["2"]["inputs"]["text"] == "a=b"
    assert service.post("/update/prompt", b"[]", Content_Type=FORM).error == "not_an_object"
    assert service.post("/update/prompt", b"{type: positive}", Content_Type=FORM).error == "not_json"


def test_inputs_are_set_by_a_form_and_read_by_their_types(service: Middleware) -> None:
    body = b"node_id=5&inputs.steps=3&inputs.cfg=4.5&inputs.sampler_name=euler&inputs.seed=random"
    answer = service.post("/update/inputs", body, Content_Type=FORM)
    assert answer.status == 200
    assert answer.json["changed"] == {"steps": 3, "cfg": 4.5, "sampler_name": "euler", "seed": "random"}
    inputs = service.held()["5"]["inputs"]
    assert (inputs["steps"], inputs["cfg"], inputs["sampler_name"]) == (3, 4.5, "euler")
    (seed,) = [field for field in service.get("/workflow").json["fields"] if field["input"] == "seed"]
    assert seed["random"] is True


@pytest.mark.parametrize(
    ("path", "body", "reason", "words"),
    [
        ("/update/prompt", b"a fox", "not_a_form", "NAME=VALUE"),
        ("/update/prompt", b"type=positive&text=a&text=b", "duplicate_field", '"text" appears twice'),
        ("/update/prompt", b"type=positive&text=%E4", "not_utf_8", "probably in Windows-1252"),
        ("/update/prompt", b"type=positive&test=a", "unknown_field", 'no field "test"'),
        ("/update/prompt", b"type=positive", "missing_field", "-d type=positive --data-urlencode"),
        ("/update/inputs", b"node_id=5&steps=3", "unknown_field", 'no field "steps"'),
        ("/update/inputs", b"node_id=5&inputs=3", "wrong_type", "inputs.NAME=VALUE"),
        ("/update/inputs", b"node_id=5&inputs.steps=many", "invalid_input_type", "a whole number"),
        ("/update/inputs", b"node_id=5&inputs.cfg=7,5", "invalid_input_type", "with a decimal point: 7.5"),
        ("/update/inputs", b"node_id=5&inputs.stepz=3", "no_such_input", 'no input "stepz"'),
        ("/workflow/reset", b"a=b", "unknown_field", "takes no fields"),
        ("/queue", b"a=b", "unknown_field", "takes no fields"),
        ("/queue", b"clear=true", "not_supported", "The queue is ComfyUI's"),
    ],
)
def test_a_form_that_cannot_be_carried_out_changes_nothing(
    service: Middleware, path: str, body: bytes, reason: str, words: str
) -> None:
    before = service.get("/workflow").json
    answer = service.post(path, body, Content_Type=FORM)
    assert (answer.status, answer.error) == (400, reason)
    assert words in answer.json["error"]["message"]
    assert service.get("/workflow").json == before


def test_inputs_are_set_together(service: Middleware) -> None:
    answer = service.post("/update/inputs", {"node_id": "5", "inputs": {"seed": 42, "steps": 3, "cfg": 4.5}})
    assert answer.status == 200
    assert answer.json["checked"] is True
    inputs = service.held()["5"]["inputs"]
    assert (inputs["seed"], inputs["steps"], inputs["cfg"]) == (42, 3, 4.5)
    assert service.post("/update/inputs", {"title": "KSampler", "inputs": {"steps": 2}}).status == 200


@pytest.mark.parametrize(
    ("inputs", "status", "reason"),
    [
        ({"steps": 3, "cfg": "high"}, 400, "invalid_input_type"),
        ({"steps": 0}, 400, "value_smaller_than_min"),
        ({"steps": "3"}, 400, "invalid_input_type"),
        ({"steps": 2.5}, 400, "invalid_input_type"),
        ({"steps": True}, 400, "invalid_input_type"),
        ({"steps": None}, 400, "invalid_input_type"),
        ({"steps": 10**400}, 400, "value_bigger_than_max"),
        ({"cfg": 1e308}, 400, "value_bigger_than_max"),
        ({"cfg": float("nan")}, 400, "invalid_input_type"),
        ({"cfg": float("inf")}, 400, "invalid_input_type"),
        ({"sampler_name": "eular"}, 400, "value_not_in_list"),
        ({"sampler_name": "random"}, 400, "value_not_in_list"),
        ({"no_such": 1}, 400, "no_such_input"),
        ({"model": ["1", 0]}, 409, "linked_input"),
        ({"positive": "a fox"}, 409, "linked_input"),
        ({"steps": "random"}, 400, "invalid_input_type"),
    ],
)
def test_a_bad_edit_changes_nothing(service: Middleware, inputs: Json, status: int, reason: str) -> None:
    before = service.get("/workflow").json
    answer = service.post("/update/inputs", {"node_id": "5", "inputs": {"denoise": 0.5, **inputs}})
    assert (answer.status, answer.error) == (status, reason)
    assert service.get("/workflow").json == before


@pytest.mark.parametrize("path", ["/queue", "/workflow/reset"])
def test_a_route_that_takes_no_fields_refuses_any(service: Middleware, path: str) -> None:
    service.post("/update/prompt", {"node_id": "2", "text": "kept"})
    answer = service.post(path, {"text": "a fox"})
    assert (answer.status, answer.error) == (400, "unknown_field")
    answer = service.post(path + "?text=a%20fox")
    assert (answer.status, answer.error) == (400, "unknown_field")
    assert service.held()["2"]["inputs"]["text"] == "kept"
    assert service.service.records.not_over() == []


def test_a_get_that_starts_a_run_refuses_fields_too(service: Middleware) -> None:
    for path, body in (("/queue?text=a%20fox", None), ("/queue", {"text": "a fox"})):
        answer = service.call("GET", path, body)
        assert (answer.status, answer.error) == (400, "unknown_field")
    assert service.service.records.not_over() == []


def test_an_edit_without_a_node_is_refused(service: Middleware) -> None:
    assert service.post("/update/inputs", {"inputs": {}}).error == "missing_field"
    assert service.post("/update/inputs", {"node_id": "5"}).error == "missing_field"


def test_a_random_seed_is_drawn_at_each_run(service: Middleware, comfyui: Any) -> None:
    assert service.post("/update/inputs", {"node_id": "5", "inputs": {"seed": "random", "steps": 1}}).status == 200
    (field,) = [field for field in service.get("/workflow").json["fields"] if field["input"] == "seed"]
    assert field["random"] is True
    for _ in range(2):
        assert service.end(service.start())["phase"] == "success"
    answer = service.post("/prompt")
    assert answer.status == 200
    service.end(answer.json["prompt_id"])
    seeds = [prompt["5"]["inputs"]["seed"] for prompt in submitted(comfyui)[-3:]]
    assert len(set(seeds)) == 3 and all(isinstance(seed, int) for seed in seeds)
    service.post("/update/inputs", {"node_id": "5", "inputs": {"seed": 7}})
    service.end(service.start())
    assert submitted(comfyui)[-1]["5"]["inputs"]["seed"] == 7


def test_a_seed_is_drawn_within_its_bounds(service: Middleware, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = NODES["EmptyImage"]
    marked = ("INT", {**entry.specs["color"][1], "control_after_generate": True})
    monkeypatch.setitem(entry.specs, "color", marked)
    service.service.backend.object_info.pop("EmptyImage", None)
    service.hold({
        "1": node("EmptyImage", width=8, height=8, batch_size=1, color=0),
        "2": node("SaveImage", filename_prefix="drawn", images=["1", 0]),
    })  # fmt: skip
    assert service.post("/update/inputs", {"node_id": "1", "inputs": {"color": "random"}}).status == 200
    assert service.end(service.start())["phase"] == "success"
    service.service.backend.object_info.pop("EmptyImage", None)
