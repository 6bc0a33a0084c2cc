"""The end of a run as an answer: statuses, and which file a client wants."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

import pytest

from comfyui_runner.messages import HttpError, Request
from comfyui_runner.outputs import Output
from comfyui_runner.run_answers import (
    WantedFile,
    failure_of_run,
    parse_accept,
    prefers_file,
    read_flag,
    read_page_query,
    read_turn,
    read_wait,
    read_wanted_file,
)


def request(accept: str = "", **query: str) -> Request:
    headers = {"accept": accept} if accept else {}
    return Request("POST", "/run", {name.rstrip("_"): value for name, value in query.items()}, headers)


def refused(function: Any, *arguments: Any) -> HttpError:
    with pytest.raises(HttpError) as caught:
        function(*arguments)
    return caught.value


def file(name: str) -> Output:
    return Output("1", "Save", "image", filename=name)


# ------------------------------------------------------------------------------------------------
# how it ended


def shown(phase: str, failure: Optional[Dict[str, str]] = None) -> Dict[str, Any]:
    return {"prompt_id": "abc", "phase": phase, "message": "It ended.", "failure": failure}


@pytest.mark.parametrize(
    ("phase", "status", "type_"),
    [
        ("error", 500, "node_failed"),
        ("interrupted", 409, "run_cancelled"),
        ("deleted", 409, "run_cancelled"),
        ("rejected", 409, "run_cancelled"),
        ("lost", 502, "run_lost"),
    ],
)
def test_each_end_but_success_is_an_error(phase: str, status: int, type_: str) -> None:
    error = failure_of_run(shown(phase))
    assert error is not None
    assert (error.http_status, error.type, error.message) == (status, type_, "It ended.")
    assert error.details == {"run": shown(phase)}
    assert error.headers == (("X-Prompt-Id", "abc"),)
    assert failure_of_run(shown("success")) is None


def test_what_a_node_raised_is_in_the_message() -> None:
    error = failure_of_run(shown("error", {"message": "out of luck"}))
    assert error is not None and error.message == "It ended. out of luck"


# ------------------------------------------------------------------------------------------------
# what the client wants of it


def test_how_long_a_client_waits() -> None:
    assert read_wait({}, 7.0) == 7.0
    assert read_wait({"wait": "1.5"}, 7.0) == 1.5
    for text in ("", "-1", "inf", "soon", "٣"):
        assert refused(read_wait, {"wait": text}, 7.0).message == "wait must be a number of seconds."


def test_a_file_of_a_run_has_one_address() -> None:
    assert [read_turn(text) for text in ("0", "3", "10")] == [0, 3, 10]
    assert [read_turn(text) for text in ("", "x", "03", "-1", "٣", "1000000")] == [None] * 6


def test_a_flag_is_true_or_false() -> None:
    assert [read_flag(query, "detach") for query in ({}, {"detach": "false"}, {"detach": "true"})] == [
        False,
        False,
        True,
    ]
    assert refused(read_flag, {"detach": ""}, "detach").message == "detach must be true or false."


@pytest.mark.parametrize(
    ("accept", "wants"),
    [
        ("", False),
        ("*/*", False),
        ("application/json", False),
        ("text/html", False),
        ("image/*", True),
        ("IMAGE/PNG", True),
        ("video/mp4", True),
        ("audio/*;q=0.5", True),
        ("image/*;q=0", False),
        ("image/*, */*;q=0.1", True),
        ("application/json, image/*", False),
        ("application/json;q=0.9, image/*", True),
        ("application/*, image/*;q=0.9", False),
        ("image/png;q=nonsense", True),
    ],
)
def test_a_file_is_wanted_where_accept_prefers_one_to_json(accept: str, wants: bool) -> None:
    assert prefers_file(parse_accept(accept)) is wants
    assert (read_wanted_file(request(accept)) is not None) is wants


def test_the_url_may_say_what_is_wanted() -> None:
    assert read_wanted_file(request(as_="file")) == WantedFile({}, 0)
    assert read_wanted_file(request("application/json", as_="file")) == WantedFile({}, 0)
    assert read_wanted_file(request("image/*", as_="json")) is None
    assert read_wanted_file(request(as_="file", index="3")) == WantedFile({}, 3)
    assert read_wanted_file(request(), is_required=True) == WantedFile({}, 0)
    assert read_wanted_file(request("image/png"), is_required=True) == WantedFile({"image/png": 1.0}, 0)
    assert refused(read_wanted_file, request(as_="picture")).message == 'as must be "file" or "json".'
    assert refused(read_wanted_file, request(index="-1")).type == "wrong_type"


def test_accept_has_ranges_and_how_much_each_is_wanted() -> None:
    assert parse_accept("image/webp , image/*; q=0.8,*/*;version=1;q=.5,, image/*;q=0.9, text/plain;q=2") == {
        "image/webp": 1.0,
        "image/*": 0.9,
        "*/*": 1.0,  # .5 is not a quality
        "text/plain": 1.0,
    }


OUTPUTS: List[Output] = [
    Output("1", "Shown", "text", text="hello"),
    Output("1", "Shown", "text"),  # a text of a run that is over
    file("a.png"),
    file("b.webp"),
    file("c.mp4"),
    file("d.glb"),
]


def test_a_page_of_the_runs_is_asked_for_by_its_length_and_where_it_begins() -> None:
    assert read_page_query({}) == (200, None)
    assert read_page_query({"limit": "1000", "before": "17"}) == (1000, 17)
    for query in (
        {"limit": "0"},
        {"limit": "1001"},
        {"limit": "x"},
        {"before": "0"},
        {"before": "-1"},
        {"before": "1٣"},
    ):
        assert refused(read_page_query, query).type == "wrong_type"


@pytest.mark.parametrize(
    ("accept", "turns"),
    [
        ("", [2, 3, 4, 5]),
        ("*/*", [2, 3, 4, 5]),
        ("image/*", [2, 3]),
        ("video/*", [4]),
        ("image/webp, image/*;q=0.9", [3, 2]),
        ("video/*;q=0.5, image/png;q=0.4", [4, 2]),
        ("image/webp;q=0, */*", [2, 4, 5]),
    ],
)
def test_the_files_that_are_accepted_are_numbered_the_preferred_ones_first(accept: str, turns: List[int]) -> None:
    qualities = parse_accept(accept)
    assert [WantedFile(qualities, number).choose(OUTPUTS) for number in range(len(turns))] == turns
    error = refused(WantedFile(qualities, len(turns)).choose, OUTPUTS)
    assert (error.http_status, error.type) == (404, "no_such_file")


def test_what_is_there_is_listed_where_nothing_is_accepted() -> None:
    error = refused(WantedFile({"audio/*": 1.0}, 0).choose, OUTPUTS)
    assert (error.http_status, error.type) == (406, "not_acceptable")
    assert error.message.endswith("It made: a.png, b.webp, c.mp4, d.glb.")
    assert refused(WantedFile({}, 0).choose, OUTPUTS[:1]).message.endswith("It made: no file.")
