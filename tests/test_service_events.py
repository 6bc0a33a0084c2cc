"""Stories of continuous mode: the event streams and previews."""

from __future__ import annotations

import json
from typing import Any

import pytest
from served import Middleware, read_answer
from support import node, slow_prompt, wait_until

from comfyui_runner.events import Preview
from comfyui_runner.messages import Response


def test_the_stream_begins_with_the_state_and_follows_a_run(service: Middleware) -> None:
    service.hold(slow_prompt(steps=3, seconds=0.3, seed=41))
    events = service.events()
    assert b"text/event-stream" in events.head and b"no-store" in events.head and b"nosniff" in events.head
    name, state = events.next() or ("", {})
    assert name == "state" and set(state) == {"status", "runs"}
    prompt_id = service.start()
    seen = events.until(lambda name, data: name == "run" and data["prompt_id"] == prompt_id and data["over"])
    reports = [data["event"] for name, data in seen if name == "report" and data["prompt_id"] == prompt_id]
    assert reports[0] == "submitted"
    assert {"started", "node_started", "progress", "node_finished"} <= set(reports)
    assert "output" not in reports  # the run lists its outputs
    service.post("/update/inputs", {"node_id": "1", "inputs": {"seed": 42}})
    events.until(lambda name, data: name == "workflow" and data["revision"] > 1)
    events.close()


def test_a_run_that_is_refused_is_followed_to_its_end(service: Middleware) -> None:
    """Nothing is reported of it before: its end alone makes it one that has changed."""
    service.service.held.hold({"1": node("SaveImage", "Save", filename_prefix="x", images=["9", 0])})
    events = service.events()
    assert service.get("/queue").status == 400
    [*_, (_, shown)] = events.until(lambda name, data: name == "run" and data["over"] and data["problems"])
    assert shown["phase"] == "rejected" and shown["message"].startswith("ComfyUI refused the prompt")
    events.close()


def test_a_stream_of_one_run_has_no_other(service: Middleware) -> None:
    service.hold(slow_prompt(steps=2, seconds=0.0, seed=43))
    mine = service.start()
    service.end(mine)
    events = service.events("/events?prompt_id=" + mine)
    _, state = events.next() or ("", {})
    assert [each["prompt_id"] for each in state["runs"]] == [mine]
    other = service.start()
    service.end(other)
    service.post("/workflow/reset")
    seen = events.until(lambda name, data: name == "workflow")
    events.close()
    assert other not in json.dumps(seen)


def test_a_quiet_stream_is_kept_alive_by_comments(service: Middleware, monkeypatch: pytest.MonkeyPatch) -> None:
    assert service.service.streams.keep_alive_seconds == 15.0
    monkeypatch.setattr(service.service.streams, "keep_alive_seconds", 0.05)
    events = service.events()
    assert (events.block() or "").startswith("event: state")
    while not (events.block() or ":").startswith(":"):
        pass  # what was still to be published of runs before
    events.close()


def test_a_reader_that_is_too_slow_is_dropped(service: Middleware, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.service.streams, "queue_size", 4)
    slow, quick = service.events(buffer=4096), service.events()
    assert slow.next() and quick.next()
    wait_until(lambda: len(service.service.streams) == 2)
    for number in range(60):
        service.service.streams.publish("x", {"number": number, "text": "x" * 200000})

        def is_this_one(name: str, data: Any, number: int = number) -> bool:
            return name == "x" and bool(data["number"] == number)

        quick.until(is_this_one)
    assert len(service.service.streams) == 1
    quick.close()
    slow.close()


def test_a_reader_that_goes_away_is_forgotten(service: Middleware) -> None:
    events = service.events()
    assert events.next()
    wait_until(lambda: len(service.service.streams) == 1)
    service.end_streams()


def test_the_newest_preview_is_shown(service: Middleware) -> None:
    for record in service.service.records.newest_in_memory():
        record.run.preview = None  # of another story
    assert service.get("/preview").status == 404
    service.hold(slow_prompt(steps=600, seconds=60.0, seed=51, preview=True))
    events = service.events()
    prompt_id = service.start()
    events.until(lambda name, data: name == "preview" and data["prompt_id"] == prompt_id)
    events.close()
    paths = ("/preview", "/preview?prompt_id=" + prompt_id)
    for path in paths:
        answer = service.get(path)
        assert answer.status == 200
        assert answer.headers["content-type"].startswith("image/")
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert service.get("/preview?prompt_id=none").status == 404
    service.post("/interrupt")
    service.end(prompt_id)
    for path in paths:
        assert service.get(path).status == 404  # runs that are over keep no pictures


@pytest.mark.parametrize(
    "mime",
    ["image/png,text/html", "text/html", "image/png\r\nContent-Type: text/html\r\n\r\n<script>", "image/svg+xml"],
)
def test_a_preview_of_an_odd_type_is_a_download(service: Middleware, mime: str) -> None:
    prompt_id = service.start()
    service.end(prompt_id)
    record = service.service.records.get(prompt_id)
    record.run.preview = Preview("3", mime, b"<script>alert(1)</script>")
    answer = service.get("/preview?prompt_id=" + prompt_id)
    assert (answer.status, answer.body) == (200, b"<script>alert(1)</script>")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == "attachment"


def test_an_answer_that_cannot_be_sent_becomes_an_error(service: Middleware, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = Response(200, headers=(("ETag", "x\r\n\r\n<script>"),))
    monkeypatch.setattr(service.listener.routes, "respond", lambda *_: odd)
    with service.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = read_answer(file)
        assert (answer.status, answer.error) == (500, "internal_error")
        assert file.read() == b""


def test_very_large_runs_are_sent_less_often(service: Middleware, monkeypatch: pytest.MonkeyPatch) -> None:
    slower = service.service.options._replace(event_bytes_per_second=1.0)
    monkeypatch.setattr(service.service, "options", slower)
    service.hold(slow_prompt(steps=10, seconds=1.0, seed=101))  # nobody else's: it is not in the cache
    events = service.events()
    prompt_id = service.start()
    seen = events.until(lambda name, data: name == "run" and data["prompt_id"] == prompt_id and data["over"])
    sent = [data for name, data in seen if name == "run" and data["prompt_id"] == prompt_id]
    assert len(sent) == 2  # the first one is followed by a pause, which the end does not wait for
