"""Stories of continuous mode: runs."""

from __future__ import annotations

import base64
import gc
import json
import sys
import tempfile
import threading
import time
import weakref
from typing import Any, List

import pytest
from served import LOADER, PNG, Answer, Json, Make, Middleware, phase_elsewhere, post_elsewhere
from support import node, seconds_since, slow_prompt, wait_until

from comfyui_runner.service_routes import MAX_WAIT
from comfyui_runner.spool import Spool


def test_a_run_is_started_followed_and_shown_with_its_pictures(service: Middleware) -> None:
    answer = service.get("/queue")
    assert (answer.status, answer.json["message"]) == (202, "execution started")
    assert answer.json["ahead"] == 0  # its place in the queue
    shown = service.end(answer.json["prompt_id"])
    assert shown["phase"] == "success"
    assert shown["message"].startswith("Done in ")
    assert sorted(each["node_id"] for each in shown["nodes"]) == ["1", "2", "3", "4", "5", "6", "7"]
    (output,) = shown["outputs"]
    assert output["absolute_url"] == f"http://127.0.0.1:{service.port}/{output['url']}"
    picture = service.get("/" + output["url"].lstrip("/"))
    assert (picture.status, picture.headers["content-type"]) == (200, "image/png")
    assert picture.body.startswith(b"\x89PNG")
    assert answer.json["prompt_id"] in [each["prompt_id"] for each in service.get("/runs").json["runs"]]


def test_nothing_holds_the_prompt_of_a_run_that_is_over(service: Middleware) -> None:
    service.hold(slow_prompt(steps=4, seconds=0.4, seed=77, preview=True))
    prompt_id = service.start()
    record = service.service.records.get(prompt_id)
    run = weakref.ref(record.run)
    shown = service.end(prompt_id)
    assert [each["title"] for each in shown["nodes"]] == ["Slow", "Save Image"]

    def is_gone() -> bool:
        gc.collect()
        return run() is None

    wait_until(is_gone, what="the end of the run's content")
    assert service.get("/runs/" + prompt_id).json == shown
    assert record.run.preview is None and not record.run.prompt and not record.run.pictures


def test_post_and_paths_under_api_do_the_same(service: Middleware) -> None:
    for method, path in [("POST", "/queue"), ("GET", "/api/queue"), ("POST", "/api/queue")]:
        answer = service.call(method, path)
        assert answer.status == 202
        assert service.end(answer.json["prompt_id"])["over"]
    assert service.post("/queue", {}).status == 202


@pytest.mark.parametrize("body", [{"clear": True}, {"delete": ["x"]}, {"clear": False}])
def test_the_queue_of_comfyui_cannot_be_emptied_from_here(service: Middleware, comfyui: Any, body: Json) -> None:
    answer = service.post("/queue", body)
    assert (answer.status, answer.error) == (400, "not_supported")
    assert not [call for call in comfyui.requests if call[0] == "POST"]


def test_a_body_that_is_not_json_starts_nothing(service: Middleware, comfyui: Any) -> None:
    assert service.post("/queue", b"{").status == 400
    assert service.post("/queue", b"[]").status == 400
    assert ("POST", "/prompt") not in comfyui.requests


def test_an_edit_during_a_run_is_for_the_next_one(service: Middleware, comfyui: Any) -> None:
    service.hold(slow_prompt(steps=10, seconds=3.0, seed=1))
    first = service.start()
    service.running(first)
    second = service.start()
    assert service.post("/update/inputs", {"node_id": "1", "inputs": {"seed": 2, "seconds": 0.0}}).status == 200
    third = service.start()
    for prompt_id in (first, second):
        assert service.post("/interrupt", {"prompt_id": prompt_id}).status == 200
    assert service.end(third)["phase"] == "success"
    life = comfyui._server.life
    entry = life.history[third]["prompt"][2]
    assert entry["1"]["inputs"]["seed"] == 2
    assert life.history[first]["prompt"][2]["1"]["inputs"]["seed"] == 1


def test_the_place_in_the_queue_is_shown(service: Middleware, comfyui: Any) -> None:
    foreign = post_elsewhere(comfyui, slow_prompt(steps=10, seconds=20.0))
    wait_until(lambda: phase_elsewhere(comfyui, foreign) == "running")
    service.hold(slow_prompt(steps=1, seconds=0.0, seed=5))
    first, second = service.get("/queue").json, service.get("/queue").json
    assert (first["ahead"], second["ahead"]) == (1, 2)
    assert (first["message"], second["message"]) == ("queued, 1 ahead", "queued, 2 ahead")
    wait_until(lambda: service.get("/runs/" + second["prompt_id"]).json["ahead"] == 2, what="the place in the queue")
    comfyui._server.life.interrupt(foreign)
    assert service.end(second["prompt_id"])["phase"] == "success"


def test_more_than_max_queue_of_ours_are_refused_for_now(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator, "--max-queue", "2", prompt=slow_prompt(steps=100, seconds=30.0))
    answers = [service.get("/queue") for _ in range(5)]
    refused = [answer for answer in answers if answer.status == 429]
    assert answers[0].status == answers[1].status == 202
    assert refused and refused[0].error == "queue_full"
    assert int(refused[0].headers["retry-after"]) > 0
    assert service.post("/prompt", {"prompt": slow_prompt()}).status == 429
    posted = [call for call in simulator.requests if call == ("POST", "/prompt")]
    assert len(posted) == len(answers) - len(refused)
    service.hold(LOADER)
    assert service.upload().status == 200  # it starts nothing


def test_many_at_once_do_not_pass_max_queue_either(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator, "--max-queue", "2", prompt=slow_prompt(steps=100, seconds=30.0))
    simulator.faults.http_hang["/prompt"] = 0.3
    answers: List[Answer] = []
    clients = [threading.Thread(target=lambda: answers.append(service.get("/queue"))) for _ in range(12)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert {answer.status for answer in answers} == {202, 429}
    assert len([answer for answer in answers if answer.status == 202]) <= 3


@pytest.mark.parametrize("path", ["/queue", "/prompt", "/run?wait=0"])
def test_a_run_that_comfyui_may_not_have_is_not_a_start(
    service: Middleware, comfyui: Any, monkeypatch: Any, path: str
) -> None:
    monkeypatch.setattr("comfyui_runner.service.POST_PATIENCE", 0.0)
    comfyui.faults.lose_post = ["before"]
    comfyui.faults.http_status = {"/queue": 500}
    answer = service.post(path)
    assert (answer.status, answer.error) == (502, "run_lost")
    assert "it is unknown whether the server accepted it" in answer.json["error"]["message"]
    assert service.get("/runs/" + answer.headers["x-prompt-id"]).json["phase"] == "lost"


def test_what_comfyui_refuses_of_a_workflow_is_put_in_words(service: Middleware) -> None:
    service.service.held.hold({"1": node("SaveImage", "Save", filename_prefix="x", images=["9", 0])})
    answer = service.get("/queue")
    assert (answer.status, answer.error) == (400, "prompt_rejected")
    assert answer.json["error"]["details"]["problems"]


def test_what_went_wrong_is_shown_with_the_run(service: Middleware) -> None:
    service.hold({
        "1": node("EmptyImage", width=8, height=8, batch_size=1, color=0),
        "2": node("FailNode", "Broken", message="out of luck", image=["1", 0]),
        "3": node("SaveImage", "Save", filename_prefix="x", images=["2", 0]),
    })  # fmt: skip
    shown = service.end(service.start())
    assert shown["phase"] == "error"
    assert (shown["failure"]["node_id"], shown["failure"]["message"]) == ("2", "out of luck")
    assert shown["failure"]["traceback"]


def test_a_run_that_nobody_knows_is_not_found(service: Middleware) -> None:
    answer = service.get("/runs/none")
    assert (answer.status, answer.error) == (404, "no_such_run")


@pytest.mark.parametrize("wait", ["-1", "soon", "inf", "nan", "1e3", "1" * 20])
def test_a_wait_that_is_not_a_number_is_refused(service: Middleware, wait: str) -> None:
    prompt_id = service.start()
    assert service.get("/runs/%s?wait=%s" % (prompt_id, wait)).status == 400
    service.end(prompt_id)


def test_a_wait_ends_with_the_run_or_in_time(service: Middleware, monkeypatch: pytest.MonkeyPatch) -> None:
    service.hold(slow_prompt(steps=20, seconds=20.0, seed=11))
    prompt_id = service.start()
    began = time.monotonic()
    assert service.get("/runs/%s?wait=0.2" % prompt_id).json["over"] is False
    assert 0.2 <= seconds_since(began) < 5.0
    assert MAX_WAIT == 60.0
    monkeypatch.setattr("comfyui_runner.service_routes.MAX_WAIT", 0.3)
    assert service.get("/runs/%s?wait=100000" % prompt_id).json["over"] is False
    monkeypatch.undo()
    shown: List[Json] = []
    client = threading.Thread(target=lambda: shown.append(service.end(prompt_id)))
    client.start()
    assert service.post("/interrupt").status == 200
    client.join(5.0)
    assert shown[0]["phase"] == "interrupted"


def test_only_so_many_runs_are_kept(service: Middleware, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.service.keeper, "kept", 6)
    service.hold(slow_prompt(steps=1, seconds=0.0, seed=3))
    started = []
    for _ in range(8):
        started.append(service.start())
        service.end(started[-1])
        there = [each["prompt_id"] for each in service.get("/runs").json["runs"]]
        assert there[: min(len(started), 6)] == started[::-1][:6]
    assert len(there) <= 7


def test_refused_runs_do_not_pile_up(service: Middleware, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.service.keeper, "kept", 6)
    service.service.held.hold({"1": node("SaveImage", "Save", filename_prefix="x", images=["9", 0])})
    for _ in range(12):
        assert service.get("/queue").status == 400
    assert len(service.get("/runs").json["runs"]) <= 7


def test_half_of_the_kept_runs_stay_too(service: Middleware, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.service.keeper, "kept", 20)
    assert "(the last 20 are kept)" in service.get("/runs/nowhere").json["error"]["message"]
    service.hold(slow_prompt(steps=1, seconds=0.0, seed=3))
    started = []
    for _ in range(13):
        started.append(service.start())
        service.end(started[-1])
    assert [each["prompt_id"] for each in service.get("/runs").json["runs"]][:13] == started[::-1]


def test_the_console_shows_the_runs(service: Middleware) -> None:
    service.hold(slow_prompt(steps=3, seconds=0.3, seed=61))
    prompt_id = service.start()
    service.end(prompt_id)
    mine = [line for line in service.out.getvalue().splitlines() if "[%s]" % prompt_id[:8] in line]
    assert "Done in" in mine[-1]
    assert any("Slow" in line for line in mine)


def test_outputs_are_saved_where_o_says(make_middleware: Make, simulator: Any, tmp_path: Any) -> None:
    out = tmp_path / "out"
    service = make_middleware(simulator, "-o", str(out), "--timeout", "20")
    run = service.end(service.start())
    [output] = run["outputs"]
    assert (out / output["filename"]).read_bytes() == service.get("/" + output["url"]).body
    assert str(out / output["filename"]) in service.out.getvalue()
    out.joinpath(output["filename"]).unlink()
    out.rmdir()
    out.write_text("a file where the folder should be")
    assert service.end(service.start())["phase"] == "success"
    wait_until(lambda: "could not be saved" in service.out.getvalue() + service.err.getvalue())


def test_the_timeout_cancels_a_run_and_says_so(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator, "--timeout", "0.5", prompt=slow_prompt(steps=100, seconds=30.0))
    run = service.end(service.start())
    assert run["phase"] == "interrupted" and "timeout" in run["message"]
    assert service.get("/health").status == 200


# -- pictures that came over the WebSocket alone ---------------------------------------------------


def sending(pictures: int, color: int = 1) -> Json:
    """A workflow whose pictures come over the WebSocket."""
    return {
        "1": node("EmptyImage", width=16, height=16, batch_size=pictures, color=color),
        "2": node("SaveImageWebsocket", "Over/the Wire", images=["1", 0]),
        "3": node("SimulatedOutput", "Shown", ui=json.dumps({"text": [base64.b64encode(PNG).decode(), "hello"]})),
    }


def test_pictures_that_come_over_the_socket_alone_have_a_url(service: Middleware) -> None:
    service.hold(sending(2))
    shown = service.end(service.start())
    assert [(output["kind"], output["source"]) for output in shown["outputs"]] == [
        ("image", "base64"), ("text", "file"), ("image", "websocket"), ("image", "websocket"),
    ]  # fmt: skip
    assert "notice" not in service.out.getvalue() and "-o DIR" not in service.out.getvalue()
    for output in [shown["outputs"][0], *shown["outputs"][2:]]:
        answer = service.get("/" + output["url"])
        assert (answer.status, answer.headers["content-type"]) == (200, "image/png")
        assert answer.body.startswith(b"\x89PNG") and len(answer.body) == output["size"]
        assert answer.headers["content-disposition"].startswith('inline; filename="')
    name = answer.headers["content-disposition"].partition("''")[2]
    assert name == "Over_the%20Wire_00002.png"
    assert service.get("/" + output["url"] + "?download=1").headers["content-disposition"].startswith("attachment;")
    assert service.call("HEAD", "/" + output["url"]).headers["content-length"] == str(output["size"])


def test_a_run_whose_pictures_come_over_the_socket_waits_until_it_is_open(
    make_middleware: Make, simulator: Any
) -> None:
    simulator.faults.http_hang["/ws"] = 1.0
    service = make_middleware(simulator, prompt=sending(1))
    assert not service.service.session.connected
    shown = service.end(service.start())
    assert "websocket" in [output["source"] for output in shown["outputs"]]


def test_a_file_that_a_run_does_not_have_is_not_found(service: Middleware) -> None:
    service.hold(sending(1))
    prompt_id = service.start()
    shown = service.end(prompt_id)
    assert shown["outputs"][1]["url"] is None  # a text
    for path in ("/runs/none/files/0", f"/runs/{prompt_id}/files/1", f"/runs/{prompt_id}/files/..%2F..%2Fetc"):
        assert service.get(path).status == 404
    assert service.post("/" + shown["outputs"][0]["url"]).status == 405


def test_the_memory_of_pictures_is_given_back(service: Middleware) -> None:
    service.hold(sending(3))
    prompt_id = service.start()
    service.end(prompt_id)
    record = service.service.records.get(prompt_id)
    assert record.run.pictures == [] and record.run.state.outputs == {}
    assert all(output.content is None for output in record.outputs)


def test_only_so_much_of_one_run_is_kept(service: Middleware, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[type(service.service).__module__], "RECEIVED_BYTES", 700)
    service.hold(sending(20))
    shown = service.end(service.start())
    sizes = [output["size"] for output in shown["outputs"] if output["source"] == "websocket"]
    assert sizes and sum(sizes) <= 700 and len(sizes) < 20
    assert f"{20 - len(sizes)} pictures sent over the WebSocket were not kept" in service.out.getvalue()


def test_the_oldest_pictures_make_room_and_all_go_with_the_service(
    make_middleware: Make, simulator: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    service = make_middleware(simulator, prompt=sending(1))
    service.service.spool = Spool(most_files=2)
    wait_until(lambda: service.service.session.connected, what="the WebSocket")
    first = service.end(service.start())["outputs"]
    second = service.end(service.start())["outputs"]
    kept = [service.get("/" + output["url"]).status for output in first + second if output["source"] == "websocket"]
    assert kept == [404, 200]
    assert len(list(tmp_path.glob("comfyui-runner-*/*"))) == 2
    assert service.stop() == 0
    assert list(tmp_path.glob("comfyui-runner-*")) == []


def test_a_full_disk_loses_the_pictures_and_nothing_else(service: Middleware, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(data: bytes) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(service.service.spool, "add", full)
    service.hold(sending(1))
    shown = service.end(service.start())
    assert shown["phase"] == "success" and [output["url"] for output in shown["outputs"]] == [None] * 3
    wait_until(lambda: "could not be kept: No space left on device." in service.out.getvalue())


def test_the_settings_of_a_run_are_shown_during_it_and_after_its_end(service: Middleware) -> None:
    service.hold(slow_prompt(steps=10, seconds=3.0, seed=1))
    running = service.start()
    service.running(running)
    assert service.get(f"/runs/{running}/prompt").json["prompt"]["1"]["inputs"]["seed"] == 1
    assert service.post("/interrupt", {"prompt_id": running}).status == 200
    service.post("/update/inputs", {"node_id": "1", "inputs": {"seed": 2}})
    assert service.get(f"/runs/{running}/prompt").json["prompt"]["1"]["inputs"]["seed"] == 1
    assert service.get("/runs/nobody/prompt").status == 404


def test_a_run_that_has_ended_is_taken_off_the_list_and_no_other(service: Middleware, comfyui: Any) -> None:
    service.hold(slow_prompt(steps=1, seconds=0.0))
    done, kept = service.start(), service.start()
    service.end(done)
    service.end(kept)
    service.hold(slow_prompt(steps=10, seconds=20.0, seed=3))
    running = service.start()
    refused = service.call("DELETE", f"/runs/{running}")
    assert (refused.status, refused.error) == (409, "not_over")

    events = service.events()
    events.until(lambda name, _: name == "state")
    assert service.call("DELETE", f"/runs/{done}").status == 204
    (_, data) = events.until(lambda name, _: name == "removed")[-1]
    assert data == {"prompt_id": done}
    listed = [run["prompt_id"] for run in service.get("/runs").json["runs"]]
    assert listed[:2] == [running, kept] and done not in listed
    assert service.call("DELETE", f"/runs/{done}").status == service.get(f"/runs/{done}").status == 404
    assert done in comfyui._server.life.history  # what it made stays
    service.post("/interrupt", {"prompt_id": running})
