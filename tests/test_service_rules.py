"""The rules of the service's routes that need no service: what a body may be, and what is said of it."""

from __future__ import annotations

from typing import Any, Dict, Optional

import pytest
from support import node

from comfyui_runner.messages import HttpError, Request
from comfyui_runner.service_routes import (
    COOKIE_SECONDS,
    INTERRUPT_WAIT,
    LOGIN_LIMIT,
    MAX_WAIT,
    check_prompt_request,
    name_of_node,
    refusal_of,
    split_prompt_body,
    start_in_words,
    too_many_connections,
)

UUID = "00000000-0000-4000-8000-00000000000a"
PROMPT = {"1": node("A")}


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"number": 1},
        {"number": -0.5, "partial_execution_targets": ["1"], "prompt_id": UUID, "front": True},
    ],
)
def test_what_comfyui_takes_is_passed_on(extra: Dict[str, Any]) -> None:
    check_prompt_request(PROMPT, extra)


@pytest.mark.parametrize(
    ("prompt", "extra", "type_", "message"),
    [
        (PROMPT, {"number": "1"}, "wrong_type", "number must be a number, partial_execution_targets a list."),
        (
            PROMPT,
            {"partial_execution_targets": {}},
            "wrong_type",
            "number must be a number, partial_execution_targets a list.",
        ),
        (PROMPT, {"prompt_id": "mine"}, "invalid_prompt_id", "The prompt_id must be a UUID in lower case."),
        (PROMPT, {"prompt_id": UUID.upper()}, "invalid_prompt_id", "The prompt_id must be a UUID in lower case."),
        (PROMPT, {"prompt_id": UUID + "0"}, "invalid_prompt_id", "The prompt_id must be a UUID in lower case."),
        ({"1": 5}, {}, "invalid_prompt", "Every node needs a class_type and inputs."),
        ({"1": {"class_type": "A"}}, {}, "invalid_prompt", "Every node needs a class_type and inputs."),
        ({"1": {"inputs": []}}, {}, "invalid_prompt", "Every node needs a class_type and inputs."),
    ],
)
def test_what_would_make_comfyui_stumble_is_refused(prompt: Any, extra: Any, type_: str, message: str) -> None:
    with pytest.raises(HttpError) as caught:
        check_prompt_request(prompt, extra)
    error = caught.value
    assert (error.http_status, error.type, error.message) == (400, type_, message)


def test_the_body_of_post_prompt_is_comfyuis_own_or_a_workflow_or_empty() -> None:
    assert split_prompt_body({}) == (None, {})
    assert split_prompt_body(PROMPT) == (PROMPT, {})
    body = {"prompt": PROMPT, "client_id": "theirs", "prompt_id": UUID, "extra_data": {}, "front": True}
    assert split_prompt_body(body) == (PROMPT, {"prompt_id": UUID, "extra_data": {}, "front": True})


@pytest.mark.parametrize(
    ("body", "type_", "message"),
    [
        ({"prompt": []}, "wrong_type", "prompt"),
        ({"prompt": PROMPT, "prompt_id": 5}, "wrong_type", "prompt_id"),
        ({"prompt": PROMPT, "extra_data": []}, "wrong_type", "extra_data"),
        ({**PROMPT, "note": "x"}, "invalid_prompt", 'The entry "note" of the workflow in the body is not a node'),
        ({"a": 1, "b": 2, "c": 3, "d": 4}, "missing_field", 'The body has "a", "b", "c", but not the field "prompt".'),
    ],
)
def test_any_other_body_is_refused(body: Any, type_: str, message: str) -> None:
    with pytest.raises(HttpError) as caught:
        split_prompt_body(body)
    assert (caught.value.http_status, caught.value.type) == (400, type_)
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("ahead", "words"), [(None, "execution started"), (0, "execution started"), (2, "queued, 2 ahead")]
)
def test_what_became_of_a_run_that_was_started(ahead: Optional[int], words: str) -> None:
    assert start_in_words(ahead) == words


def test_a_node_is_named_by_its_id_or_else_by_its_title() -> None:
    assert name_of_node({"node_id": "6", "title": "Prompt"}) == "6"
    assert name_of_node({"title": "Prompt"}) == "Prompt"
    assert name_of_node({}) is None


@pytest.mark.parametrize(
    ("headers", "type_", "page"),
    [
        ({"origin": "http://evil.example"}, "foreign_origin", "http://evil.example"),
        ({"referer": "http://evil.example/page?private"}, "foreign_origin", "http://evil.example/page"),
        ({"origin": "http://evil.example"}, "wrong_token", ""),
    ],
)
def test_the_console_shows_who_was_refused_and_no_query(headers: Any, type_: str, page: str) -> None:
    request = Request("POST", "/queue", {"secret": "1"}, headers)._replace(client="192.0.2.7")
    refusal = refusal_of(request, HttpError(403, type_, "No."))
    assert refusal == ("192.0.2.7", page, "POST", "/queue", 403, type_, "No.")


def test_who_comes_when_all_places_are_taken_is_to_come_again() -> None:
    error = too_many_connections()
    assert (error.http_status, error.type, dict(error.headers)) == (503, "too_many_connections", {"Retry-After": "1"})


def test_how_long_the_service_waits_and_a_login_lasts() -> None:
    assert MAX_WAIT == 60.0  # docs/MIDDLEWARE.md: 60 at most
    assert COOKIE_SECONDS == 31536000  # a year
    assert (INTERRUPT_WAIT, LOGIN_LIMIT) == (5.0, 4096)
