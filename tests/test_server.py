"""ComfyUI's routes as the program calls them: what is sent, and what an answer means."""

from __future__ import annotations

import re
import socketserver
from typing import Any, Optional

import pytest
from asked import Asked, Serve
from support import FAST

from comfyui_runner import __version__
from comfyui_runner.addresses import parse_address
from comfyui_runner.errors import PromptRejected, ServerAnswer, ServerUnreachable, UsageError
from comfyui_runner.server import MOST_CLASSES_ONE_BY_ONE, Server, new_uuid, split_look_up


def test_up_to_fifty_classes_are_looked_up_one_by_one(serve: Serve) -> None:
    few = [f"C{number}" for number in range(MOST_CLASSES_ONE_BY_ONE)]
    many = [*few, "one more"]
    assert MOST_CLASSES_ONE_BY_ONE == 50
    assert split_look_up(few) == [[name] for name in few]
    assert split_look_up(many) == [many]

    asked = Asked(serve, {"/object_info": (200, {"C1": {"input": 1}, "C2": 5})})
    definitions = asked.server.definitions(many)
    assert [path for _, path, _ in asked.requests] == ["/object_info"]
    assert definitions == {**{name: {} for name in many}, "C1": {"input": 1}}


def test_a_class_is_asked_for_under_its_quoted_name(serve: Serve) -> None:
    asked = Asked(serve, {"/object_info/a%2Fb%20%3F": (200, {"a/b ?": {"input": 1}, "other": {}})})
    assert asked.server.object_info("a/b ?") == {"input": 1}
    assert asked.server.definitions(["a/b ?"]) == {"a/b ?": {"input": 1}}
    before = len(asked.requests)
    assert [asked.server.object_info(name) for name in ("", ".", "..")] == [{}, {}, {}]
    assert len(asked.requests) == before  # as parts of a path they would name something else


def test_every_request_says_who_asks_and_which_packing_is_understood(serve: Serve) -> None:
    asked = Asked(serve, {"/queue": (200, {})})
    asked.server.queue()
    (headers,) = asked.headers
    assert headers["User-Agent"] == f"comfyui-workflow-runner/{__version__}"
    assert headers["Accept-Encoding"] == "gzip"


@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_server_without_the_route_that_cancels_is_asked_for_it_once(status: int, serve: Serve) -> None:
    asked = Asked(serve, {"/api/jobs/a%2Fb/cancel": (status, {})})
    assert not asked.server.cancel_job("a/b")
    assert not asked.server.cancel_job("a/b")
    assert asked.requests == [("POST", "/api/jobs/a%2Fb/cancel", {})]


def test_a_cancel_that_fails_otherwise_says_so(serve: Serve) -> None:
    asked = Asked(serve, {"/api/jobs/a/cancel": (200, {}), "/api/jobs/b/cancel": (500, {})})
    assert asked.server.cancel_job("a") and asked.server.cancel_job("a")
    with pytest.raises(ServerAnswer):
        asked.server.cancel_job("b")
    assert len(asked.requests) == 3


def test_one_prompt_is_taken_off_the_queue_or_interrupted(serve: Serve) -> None:
    asked = Asked(serve, {"/queue": (200, None), "/interrupt": (200, None)})
    asked.server.delete("a")
    asked.server.interrupt("a")
    assert asked.requests == [("POST", "/queue", {"delete": ["a"]}), ("POST", "/interrupt", {"prompt_id": "a"})]


@pytest.mark.parametrize(
    ("answer", "length"),
    [({"exec_info": {"queue_remaining": 3}}, 3), ({"exec_info": {"queue_remaining": 0}}, 0), ({}, None), ([], None)],
)
def test_the_length_of_the_queue_is_that_of_comfyuis_word(answer: Any, length: Optional[int], serve: Serve) -> None:
    assert Asked(serve, {"/prompt": (200, answer)}).server.queue_length() == length


@pytest.mark.parametrize(
    ("history", "entry"),
    [({}, None), ({"a": {"outputs": {}}}, {"outputs": {}}), ({"a": []}, None), ({"b": {}}, None), ([], None)],
)
def test_an_entry_of_the_history_is_that_of_the_prompt(history: Any, entry: Any, serve: Serve) -> None:
    assert Asked(serve, {"/history/a": (200, history)}).server.history_entry("a") == entry


@pytest.mark.parametrize(
    ("status", "answer", "rejected"), [(400, {"error": {"type": "x"}}, True), (400, [1], False), (500, {}, False)]
)
def test_only_comfyuis_own_400_is_a_refusal_of_the_prompt(
    status: int, answer: Any, rejected: bool, serve: Serve
) -> None:
    server = Asked(serve, {"/prompt": (status, answer)}).server
    if rejected:
        with pytest.raises(PromptRejected, match=r"^ComfyUI refused the prompt: nothing was run\.$") as caught:
            server.submit({"prompt": {}})
        assert caught.value.answer == answer
        assert (caught.value.remedy, caught.value.problems) == ("", [])
    else:
        with pytest.raises(ServerAnswer):
            server.submit({"prompt": {}})


@pytest.mark.parametrize(
    ("value", "query"),
    [
        ("cat.png", "filename=cat.png&type=input"),
        ("pets/cat.png", "filename=cat.png&type=input&subfolder=pets"),
        ("a/b/cat.png [output]", "filename=cat.png&type=output&subfolder=a%2Fb"),
        ("cat [temp].png", "filename=cat+%5Btemp%5D.png&type=input"),
    ],
)
def test_a_file_that_a_loader_names_is_looked_for_where_it_says(value: str, query: str, serve: Serve) -> None:
    asked = Asked(serve, {"/view": (200, {})})
    assert asked.server.has_input(value)
    ((_, path, _),) = asked.requests
    asked_for, wanted = (dict(pair.split("=") for pair in text.split("&")) for text in (path.split("?")[1], query))
    assert {name: text.replace("%20", "+") for name, text in asked_for.items() if text} == wanted


@pytest.mark.parametrize("value", ["", "pets/", " [input]", "pets/ [output]"])
def test_what_names_no_file_is_not_looked_for(value: str, serve: Serve) -> None:
    asked = Asked(serve, {"/view": (404, {})})
    assert not asked.server.has_input(value)


@pytest.mark.parametrize(
    ("value", "status", "has_file"),
    [
        ("cat.png", 404, False),
        ("../cat.png", 400, False),
        ("../cat.png", 403, False),
        ("cat.png", 400, None),  # a login, a proxy or a fault says nothing about the file
        ("cat.png", 403, None),
        ("../cat.png", 500, None),
    ],
)
def test_an_answer_that_is_not_about_the_file_is_an_error(
    value: str, status: int, has_file: Optional[bool], serve: Serve
) -> None:
    server = Asked(serve, {"/view": (status, {})}).server
    if has_file is None:
        with pytest.raises(ServerAnswer):
            server.has_input(value)
    else:
        assert server.has_input(value) is has_file


def test_an_upload_has_the_name_of_its_file_and_no_odd_characters(simulator: Any, tmp_path: Any) -> None:
    server = Server(parse_address(simulator.url), FAST)
    for name, value in (("cat.png", "cat.png"), ('ca"t\r.png', "ca_t_.png")):
        path = tmp_path / name
        path.write_bytes(b"\x89PNG\r\n\x1a\n a picture")
        assert server.upload_file(str(path)) == value


@pytest.mark.parametrize(("name", "reason"), [("missing.png", "No such file or directory"), ("a\0b", "null")])
def test_a_file_that_cannot_be_uploaded_says_why(name: str, reason: str, tmp_path: Any) -> None:
    path = str(tmp_path / name)
    with pytest.raises(UsageError, match=f"^{re.escape(path)} cannot be uploaded: .*{reason}"):
        Server(parse_address("http://127.0.0.1:1"), FAST).upload_file(path)


@pytest.mark.parametrize("stats", [[], {}, {"devices": []}, "x"])
def test_what_is_not_comfyui_says_so(stats: Any, serve: Serve) -> None:
    with pytest.raises(ServerAnswer, match="is not ComfyUI") as caught:
        Asked(serve, {"/system_stats": (200, stats)}).server.system_stats()
    assert (caught.value.remedy, caught.value.status) == ("Check --server.", 200)


def test_an_answer_that_is_no_json_is_not_comfyuis(serve_tcp: Any) -> None:
    class Odd(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline().strip():
                pass
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5\r\n\r\n{oops")

    server = Server(parse_address(f"http://127.0.0.1:{serve_tcp(Odd)}"), FAST)
    with pytest.raises((ServerAnswer, ServerUnreachable), match="/queue"):
        server.queue()


def test_an_id_has_the_form_that_comfyui_demands() -> None:
    first, second = new_uuid(), new_uuid()
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", first)
    assert first != second
