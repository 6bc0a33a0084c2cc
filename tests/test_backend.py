"""The ComfyUI behind the service: whether it answers, and what is known of its nodes."""

from __future__ import annotations

import asyncio
from typing import Any, Dict, List, Optional, Tuple

import pytest
from asked import Asked, Serve
from support import FAST, node

from comfyui_runner.addresses import parse_address
from comfyui_runner.backend import DEFAULT_UPLOAD_LIMIT, Backend, Check
from comfyui_runner.edits import EditError
from comfyui_runner.messages import HttpError
from comfyui_runner.server import Server

STATS: Dict[str, Any] = {
    "system": {"comfyui_version": "0.31.0"},
    "devices": [{"name": "RTX"}, {"name": "another"}],
}
ANSWERS: Dict[str, Tuple[int, Any]] = {
    "/system_stats": (200, STATS),
    "/features": (200, {"max_upload_size": 5}),
    "/object_info/A": (200, {"A": {"input": {}, "output": ["A"]}}),
    "/object_info/B": (200, {"B": {"input": {}, "output": ["B"]}}),
}


def check(backend: Backend) -> Check:
    return asyncio.run(backend.check())


def nowhere() -> Server:
    return Server(parse_address("http://127.0.0.1:1"), FAST)


def paths_of(asked: Asked) -> List[str]:
    return [path for _, path, _ in asked.requests]


def test_a_comfyui_that_answers_is_connected_once(serve: Serve) -> None:
    asked = Asked(serve, ANSWERS)
    backend = Backend([asked.server])
    assert backend.to_json() == {"url": asked.server.address.url, "connected": False, "version": None, "device": None}
    assert backend.upload_limit == DEFAULT_UPLOAD_LIMIT == 100 << 20
    backend.object_info = {"Old": {}}
    first, second = check(backend), check(backend)
    assert first.has_changed and first.news == f"Connected to ComfyUI at {asked.server.address.url}."
    assert second == Check(False)
    assert backend.to_json() == {
        "url": asked.server.address.url,
        "connected": True,
        "version": "0.31.0",
        "device": "RTX",
    }
    assert backend.upload_limit == 5
    assert backend.object_info == {}  # it may have other nodes and files now
    assert [path for path in paths_of(asked) if path != "/prompt"] == ["/system_stats", "/features", "/system_stats"]


def test_a_comfyui_that_people_have_been_shown_is_news_only_when_it_comes_back(serve: Serve) -> None:
    asked = Asked(serve, dict(ANSWERS))
    backend = Backend([asked.server], is_shown=True)
    assert check(backend) == Check(True)
    asked.answers["/system_stats"] = (503, {})
    check(backend)
    assert check(backend).warnings
    asked.answers["/system_stats"] = (200, STATS)
    assert check(backend).news == f"Connected to ComfyUI at {asked.server.address.url}."


def test_of_several_the_first_that_answers_is_used_and_the_others_are_not_asked_again(serve: Serve) -> None:
    asked, other = Asked(serve, ANSWERS), Asked(serve, ANSWERS)
    backend = Backend([nowhere(), asked.server, other.server])
    check(backend)
    assert backend.server is asked.server
    before = len(other.requests)
    check(backend)
    assert len(other.requests) == before


def test_one_failure_may_be_an_accident_and_two_are_not(serve: Serve) -> None:
    asked = Asked(serve, dict(ANSWERS))
    backend = Backend([asked.server])
    check(backend)
    asked.answers["/system_stats"] = (503, {})
    assert check(backend) == Check(False)
    lost = check(backend)
    assert lost.has_changed and not backend.connected
    assert len(lost.warnings) == 1 and lost.warnings[0].startswith("ComfyUI does not answer; trying again. (")
    assert check(backend) == Check(False)  # that is said once
    asked.answers["/system_stats"] = (200, STATS)
    back = check(backend)
    assert back.has_changed and backend.connected and back.news
    asked.answers["/system_stats"] = (503, {})
    assert not check(backend).has_changed  # failures are counted anew


def test_a_port_that_refuses_is_lost_at_once(serve: Serve) -> None:
    backend = Backend([nowhere()])
    backend.connected = True
    assert check(backend).has_changed and not backend.connected


def test_a_comfyui_that_is_too_old_counts_as_not_connected_and_is_named_once(serve: Serve) -> None:
    asked = Asked(serve, {**ANSWERS, "/system_stats": (200, {"system": {"comfyui_version": "0.3.1"}})})
    backend = Backend([asked.server])
    first, second = check(backend), check(backend)
    assert not backend.connected and not first.has_changed
    assert len(first.warnings) == 1 and "0.3.1" in first.warnings[0]
    assert second.warnings == ()
    with pytest.raises(HttpError) as caught:
        backend.require_connection()
    assert caught.value.message == first.warnings[0]


def test_without_a_connection_requests_are_to_come_again() -> None:
    with pytest.raises(HttpError) as caught:
        Backend([nowhere()]).require_connection()
    error = caught.value
    assert (error.http_status, error.type) == (503, "comfyui_unreachable")
    assert error.message == "ComfyUI at http://127.0.0.1:1 does not answer."
    assert dict(error.headers) == {"Retry-After": "5"}


def test_a_class_is_looked_up_once_or_again_where_that_is_asked_for(serve: Serve) -> None:
    asked = Asked(serve, ANSWERS)
    backend = Backend([asked.server])
    prompt = {"1": node("A"), "2": node("B"), "3": node("A")}
    assert backend.look_up(prompt) == {} and asked.requests == []  # nothing answers, as far as is known
    backend.connected = True
    assert sorted(backend.look_up(prompt)) == ["A", "B"]
    assert paths_of(asked) == ["/object_info/A", "/object_info/B"]
    backend.look_up(prompt)
    assert len(asked.requests) == 2
    backend.look_up(prompt, ["2"])
    assert paths_of(asked)[2:] == ["/object_info/B"]


def test_what_is_in_no_list_is_tried_once_more_with_the_list_of_now(serve: Serve) -> None:
    asked = Asked(serve, ANSWERS)
    backend = Backend([asked.server])
    backend.connected = True
    prompt = {"1": node("A"), "2": node("B")}
    tries: List[int] = []

    def fail(error_type: str, node_id: Optional[str]) -> None:
        tries.append(len(asked.requests))
        error = EditError(error_type, "it is not in the list")
        error.node_id = node_id
        raise error

    for error_type, node_id in [("value_not_in_list", "2"), ("value_not_in_list", None), ("wrong_type", "2")]:
        with pytest.raises(EditError):
            backend.with_fresh_lists(prompt, lambda _: fail(error_type, node_id))  # noqa: B023 - called at once
    assert paths_of(asked) == ["/object_info/A", "/object_info/B", "/object_info/B"]
    assert tries == [2, 3, 3, 3]
    assert sorted(backend.with_fresh_lists(prompt, dict)) == ["A", "B"]
    assert len(asked.requests) == 3
    backend.with_fresh_lists(prompt, dict, lambda known: {"1"} if known else ())
    assert paths_of(asked)[3:] == ["/object_info/A"]


def test_a_look_up_that_fails_is_the_last_one(serve: Serve) -> None:
    asked = Asked(serve, {"/object_info/B": ANSWERS["/object_info/B"], "/object_info/A": (500, {})})
    backend = Backend([asked.server])
    backend.connected = True
    assert backend.look_up({"1": node("A"), "2": node("B")}) == {}
    assert paths_of(asked) == ["/object_info/A"]  # the next ones would fail as slowly
