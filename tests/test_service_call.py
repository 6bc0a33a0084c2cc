"""Stories of continuous mode: POST /run, values in and the result out, and the files of runs."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import threading
import urllib.parse
from typing import Any, Dict, Iterator, List

import pytest
from served import (
    LOADER,
    PNG,
    TEXTS,
    TWO_LOADERS,
    Answer,
    Json,
    Make,
    Middleware,
    multipart,
    phase_elsewhere,
    post_elsewhere,
    read_answer,
    submitted,
)
from support import node, slow_prompt, wait_until

from comfyui_runner.extras.pictures import png_texts
from comfyui_runner.simulator import draw
from comfyui_runner.simulator.installation import MODELS

FORM = "application/x-www-form-urlencoded"
FORM_WITH_TEXTS = multipart("", b"", positive="a fox", **{"5.steps": "3", "seed": "7", "size": "64x32"})
OTHER_PNG = draw(8, 8, 2, ["B"])

#: Two pictures and a text.
TWO_PICTURES: Json = {
    "1": node("EmptyImage", width=8, height=8, batch_size=1, color=1),
    "2": node("SaveImage", "First", filename_prefix="first", images=["1", 0]),
    "3": node("EmptyImage", width=16, height=8, batch_size=1, color=2),
    "4": node("SaveImage", "Second", filename_prefix="second", images=["3", 0]),
}
LONG = slow_prompt(steps=100, seconds=60.0)


def prompt_in(picture: bytes) -> Json:
    """The prompt that a picture was made from, by its own word."""
    texts = png_texts(picture)
    assert texts is not None
    found: Json = json.loads(texts["prompt"])
    return found


@contextlib.contextmanager
def unchanged(service: Middleware) -> Iterator[None]:
    """Fails if what is held is another one afterwards."""
    before = service.get("/workflow").json
    yield
    assert service.get("/workflow").json == before


def start_call(service: Middleware, query: str = "") -> socket.socket:
    """The connection of a client that waits for a run."""
    connection = service.connect()
    head = f"POST /run{query} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
    connection.sendall(head.encode())
    return connection


def running_call(service: Middleware) -> str:
    """The prompt_id of the run that runs."""
    found: str = wait_until(lambda: service.get("/status").json["runs"]["running"], what="the run's start")
    return found


# ------------------------------------------------------------------------------------------------
# values in


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b'{"positive": "a fox", "5.steps": 3, "seed": 7, "size": "64x32"}', "application/json"),
        (b"positive=a+fox&5.steps=3&KSampler.seed=7&size=64x32", FORM),
        FORM_WITH_TEXTS,
    ],
    ids=["json", "form", "multipart"],
)
def test_a_copy_runs_with_the_values_and_the_held_workflow_stays(
    service: Middleware, comfyui: Any, body: bytes, content_type: str
) -> None:
    with unchanged(service):
        answer = service.post("/run", body, Content_Type=content_type)
    assert answer.status == 200, answer
    shown = answer.json
    assert (shown["phase"], shown["over"], shown["seeds"]) == ("success", True, {"5.seed": 7})
    assert answer.headers["x-prompt-id"] == shown["prompt_id"]
    assert shown == service.get("/runs/" + shown["prompt_id"]).json
    (output,) = shown["outputs"]
    assert output["absolute_url"] == f"http://127.0.0.1:{service.port}/{output['url']}"

    ran = submitted(comfyui)[-1]
    assert ran["2"]["inputs"]["text"] == "a fox"
    assert ran["5"]["inputs"]["steps"] == 3
    assert (ran["4"]["inputs"]["width"], ran["4"]["inputs"]["height"]) == (64, 32)


def test_a_model_that_has_come_is_not_mistaken_for_the_one_that_was_known(
    service: Middleware, comfyui: Any, monkeypatch: Any
) -> None:
    monkeypatch.setitem(MODELS, "checkpoints", ["old/mine.safetensors"])
    values = {"1.ckpt_name": "mine.safetensors"}
    assert service.post("/run", values).status == 200
    assert submitted(comfyui)[-1]["1"]["inputs"]["ckpt_name"] == "old/mine.safetensors"
    monkeypatch.setitem(MODELS, "checkpoints", ["old/mine.safetensors", "mine.safetensors"])
    assert service.post("/run", values).status == 200
    assert submitted(comfyui)[-1]["1"]["inputs"]["ckpt_name"] == "mine.safetensors"


def test_without_values_the_held_workflow_itself_runs(service: Middleware, comfyui: Any) -> None:
    bodies: List[Any] = [None, b"", {}]
    for body in bodies:
        assert service.post("/run", body).status == 200
        assert submitted(comfyui)[-1] == TEXTS


def test_a_seed_is_drawn_for_this_run_alone(service: Middleware) -> None:
    with unchanged(service):
        seeds = [service.post("/run", {"seed": "random"}).json["seeds"]["5.seed"] for _ in range(2)]
    assert len({*seeds, TEXTS["5"]["inputs"]["seed"]}) == 3


def test_seeds_that_are_drawn_for_each_run_are_drawn_for_calls_too(service: Middleware) -> None:
    assert service.post("/update/inputs", {"node_id": "5", "inputs": {"seed": "random"}}).status == 200
    with unchanged(service):
        seeds = [service.post("/run").json["seeds"]["5.seed"] for _ in range(2)]
        assert service.post("/run", {"seed": 7}).json["seeds"] == {"5.seed": 7}
    assert len({*seeds, TEXTS["5"]["inputs"]["seed"]}) == 3


def test_a_data_uri_is_uploaded_and_loaded(service: Middleware, comfyui: Any) -> None:
    service.hold(LOADER)
    uri = "data:image/png;base64," + base64.b64encode(PNG).decode()
    with unchanged(service):
        names = []
        for _ in range(2):
            assert service.post("/run", {"image": uri}).status == 200
            names.append(submitted(comfyui)[-1]["1"]["inputs"]["image"])
    assert names[0] == names[1]  # so that ComfyUI's cache has it
    assert names[0].endswith(".png")
    assert service.get(f"/view?filename={names[0]}&type=input").body == PNG


def test_files_of_a_form_are_uploaded_each_to_its_loader(service: Middleware, comfyui: Any) -> None:
    service.hold(TWO_LOADERS)
    parts = {"Photo.image": ("cat.png", PNG), "2.image": ('odd "name"\\x.png', OTHER_PNG)}
    lines = []
    for name, (filename, data) in parts.items():
        escaped = filename.replace("\\", "\\\\").replace('"', '\\"')
        head = f'--cut\r\nContent-Disposition: form-data; name="{name}"; filename="{escaped}"\r\n\r\n'
        lines.append(head.encode() + data + b"\r\n")
    body = b"".join(lines) + b"--cut--\r\n"
    answer = service.post("/run", body, Content_Type="multipart/form-data; boundary=cut")
    assert answer.status == 200, answer
    ran = submitted(comfyui)[-1]
    for node_id, data in (("1", PNG), ("2", OTHER_PNG)):
        name = urllib.parse.quote(ran[node_id]["inputs"]["image"])
        assert service.get(f"/view?filename={name}&type=input").body == data


@pytest.mark.parametrize(
    ("held", "values", "status", "type_"),
    [
        (TEXTS, {"positve": "a fox"}, 400, "unknown_field"),
        (TEXTS, {"9.steps": 3}, 400, "no_such_node"),
        (TEXTS, {"5.step": 3}, 400, "no_such_input"),
        (TEXTS, {"5.steps": 0}, 400, "value_smaller_than_min"),
        (TEXTS, {"5.sampler_name": "none"}, 400, "value_not_in_list"),
        (TEXTS, {"size": "large"}, 400, "wrong_value"),
        (TEXTS, {"image": "cat.png"}, 409, "no_loader"),
        (TWO_LOADERS, {"image": "cat.png"}, 409, "ambiguous_node"),
        (LOADER, {"positive": "a fox"}, 409, "no_such_text"),
        (LOADER, {"image": "https://example.com/cat.png"}, 400, "wrong_value"),
    ],
)
def test_what_does_not_fit_runs_nothing(
    service: Middleware, comfyui: Any, held: Json, values: Json, status: int, type_: str
) -> None:
    service.hold(held)
    comfyui.asked.clear()
    with unchanged(service):
        answer = service.post("/run", values)
    assert (answer.status, answer.error) == (status, type_)
    assert not [call for call in comfyui.requests if call[0] == "POST"]


def test_a_choice_that_is_new_in_comfyui_is_taken(service: Middleware, comfyui: Any) -> None:
    """A list of files grows while the service knows an older one."""
    service.get("/workflow")
    known = service.service.backend.object_info["KSampler"]["input"]["required"]["sampler_name"][0]
    known.remove("euler")
    assert service.post("/run", {"5.sampler_name": "euler"}).status == 200


@pytest.mark.parametrize(
    ("body", "content_type", "type_"),
    [
        (b"{", "", "not_json"),
        (b"[]", "", "not_an_object"),
        (b"nonsense", FORM, "not_a_form"),
        (b"seed=1&seed=2", FORM, "duplicate_field"),
        (b"positive=%ff%fe%fd", FORM, "not_utf_8"),
        (b"--cut--", "multipart/form-data; boundary=other", "bad_form"),
        (b'--cut\r\nContent-Disposition: form-data; name="seed"\r\n\r\n1\r\n' * 2 + b"--cut--", "", "duplicate_field"),
    ],
)
def test_a_body_that_cannot_be_read_runs_nothing(
    service: Middleware, comfyui: Any, body: bytes, content_type: str, type_: str
) -> None:
    if body.startswith(b"--cut\r\n"):
        content_type = "multipart/form-data; boundary=cut"
    answer = service.post("/run", body, Content_Type=content_type)
    assert (answer.status, answer.error) == (400, type_)
    assert ("POST", "/prompt") not in comfyui.requests


def test_a_form_that_is_too_large_is_not_even_read(service: Middleware) -> None:
    head = "POST /run HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    answer = service.raw(f"{head}Content-Length: {(64 << 20) + 1}\r\n\r\n".encode())
    assert (answer.status, answer.error) == (413, "too_large")


@pytest.mark.parametrize(
    "query", ["as=picture", "index=-1", "index=first", "wait=soon", "wait=-1", "detach=yes", "force=true"]
)
def test_a_query_that_cannot_be_read_runs_nothing(service: Middleware, comfyui: Any, query: str) -> None:
    assert service.post("/run?" + query).status == 400
    assert ("POST", "/prompt") not in comfyui.requests


# ------------------------------------------------------------------------------------------------
# the result out


def test_a_client_that_accepts_pictures_gets_the_picture(service: Middleware) -> None:
    answer = service.post("/run", b"positive=a fox&seed=5", Content_Type=FORM, Accept="image/*")
    assert (answer.status, answer.headers["content-type"]) == (200, "image/png")
    assert prompt_in(answer.body)["2"]["inputs"]["text"] == "a fox"
    run = service.get("/runs/" + answer.headers["x-prompt-id"]).json
    name = run["outputs"][0]["filename"]
    assert answer.headers["content-disposition"] == f"inline; filename=\"{name}\"; filename*=UTF-8''{name}"


def test_any_of_the_files_can_be_had(service: Middleware) -> None:
    service.hold(TWO_PICTURES)
    first = service.post("/run?as=file")
    assert 'filename="first_' in first.headers["content-disposition"]
    second = service.post("/run?as=file&index=1", Range="bytes=0-3")
    assert 'filename="second_' in second.headers["content-disposition"]
    assert (second.status, second.body[:4]) == (200, b"\x89PNG")  # a range would be of another answer

    third = service.post("/run?index=2", Accept="image/png")
    assert (third.status, third.error) == (404, "no_such_file")
    assert third.json["error"]["message"] == "The run made 2 such files: ?index= counts from 0."
    video = service.post("/run", Accept="video/*, audio/*;q=0.5")
    assert (video.status, video.error) == (406, "not_acceptable")
    assert "It made: first_" in video.json["error"]["message"]
    assert service.get("/runs/" + video.headers["x-prompt-id"]).json["phase"] == "success"
    assert service.post("/run?as=json", Accept="image/*").json["over"]


def test_a_picture_that_came_over_the_websocket_is_a_file_too(service: Middleware) -> None:
    service.hold({"1": TWO_PICTURES["1"], "2": node("SaveImageWebsocket", images=["1", 0])})
    answer = service.post("/run", {"1.color": 77}, Accept="image/*")
    assert (answer.status, answer.headers["content-type"]) == (200, "image/png")
    assert answer.body.startswith(b"\x89PNG")
    path = f"/runs/{answer.headers['x-prompt-id']}/output"
    assert service.get(path).body == answer.body


def test_a_picture_that_is_not_kept_any_more_is_not_found(service: Middleware) -> None:
    service.hold({"1": TWO_PICTURES["1"], "2": node("SaveImageWebsocket", images=["1", 0])})
    run = service.post("/run", {"1.color": 78}).json
    record = service.service.records.get(run["prompt_id"])
    path = f"/runs/{run['prompt_id']}/output"
    assert service.get(path).status == 200
    record.spooled.clear()  # as where the disk was full
    answer = service.get(path)
    assert (answer.status, answer.error) == (404, "no_such_file")
    assert "is no longer kept" in answer.json["error"]["message"]


def test_who_does_not_wait_gets_the_place_of_the_run(service: Middleware) -> None:
    service.hold(slow_prompt(steps=5, seconds=1.0))
    answer = service.post("/run?wait=0", {"1.seed": 41})
    assert answer.status == 202
    prompt_id = answer.json["prompt_id"]
    assert answer.headers["x-prompt-id"] == prompt_id
    assert answer.headers["location"] == f"/runs/{prompt_id}"
    assert answer.json["over"] is False
    output = answer.headers["location"] + "/output"
    early = service.get(output)
    assert (early.status, early.error) == (409, "not_over")
    assert early.headers["x-prompt-id"] == prompt_id
    picture = service.get(output + "?wait=20")
    assert (picture.status, picture.headers["content-type"]) == (200, "image/png")
    assert service.get("/runs/" + prompt_id).json["seeds"] == {"1.seed": 41}


def test_the_place_has_the_path_of_the_public_url(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator, "--public-url", "https://gpu.example/runner", prompt=LONG)
    answer = service.post("/run?wait=0")
    assert answer.headers["location"] == f"/runner/runs/{answer.json['prompt_id']}"


def test_the_file_of_any_run_is_at_hand(service: Middleware) -> None:
    service.hold(TWO_PICTURES)
    run = service.end(service.start())
    path = f"/runs/{run['prompt_id']}/output"
    whole = service.get(path)
    assert whole.body == service.get("/" + run["outputs"][0]["url"]).body
    assert service.get(path + "?index=1").body == service.get("/" + run["outputs"][1]["url"]).body
    part = service.get(path, Range="bytes=1-3")
    assert (part.status, part.body) == (206, b"PNG")
    assert service.get(path, If_None_Match=whole.headers["etag"]).status == 304
    assert service.call("HEAD", path).headers["content-length"] == str(len(whole.body))
    assert service.get(path + "?index=2").error == "no_such_file"
    assert service.get(path, Accept="video/*").status == 406
    assert service.get(path, Accept="text/html,image/webp,*/*;q=0.8").body == whole.body
    assert service.get("/runs/none/output").error == "no_such_run"


def test_a_run_without_files_says_so(service: Middleware) -> None:
    service.hold({"1": node("PreviewAny", "Shown", source="hello")})
    run = service.end(service.start())
    answer = service.get(f"/runs/{run['prompt_id']}/output")
    assert (answer.status, answer.error) == (404, "no_such_file")
    assert answer.json["error"]["message"].startswith("The run made no file. Done in ")
    answer = service.post("/run?as=file")
    assert answer.status == 406
    assert answer.json["error"]["message"].endswith("It made: no file.")


# ------------------------------------------------------------------------------------------------
# how a run can end


def test_a_node_that_raises_is_an_error_of_the_server(service: Middleware) -> None:
    service.hold({
        "1": node("EmptyImage", width=8, height=8, batch_size=1, color=0),
        "2": node("FailNode", "Broken", message="out of luck", image=["1", 0]),
        "3": node("SaveImage", "Save", filename_prefix="x", images=["2", 0]),
    })  # fmt: skip
    answer = service.post("/run", Accept="image/*")
    assert (answer.status, answer.error) == (500, "node_failed")
    error = answer.json["error"]
    assert error["message"].startswith("The run failed after ")
    assert error["message"].endswith("out of luck")
    assert error["details"]["run"]["failure"]["node_id"] == "2"
    assert answer.headers["x-prompt-id"] == error["details"]["run"]["prompt_id"]
    assert "node_failed" not in service.out.getvalue()  # the run's own end is shown


def test_a_prompt_that_comfyui_refuses_is_an_error_of_the_client(service: Middleware) -> None:
    service.service.held.hold({"1": node("SaveImage", "Save", filename_prefix="x", images=["9", 0])})
    answer = service.post("/run", {"1.filename_prefix": "y"})
    assert (answer.status, answer.error) == (400, "prompt_rejected")
    assert answer.json["error"]["details"]["problems"]


def test_a_refusal_of_the_prompt_is_not_one_of_an_upload(service: Middleware, comfyui: Any) -> None:
    comfyui.faults.http_status = {"/prompt": 403}
    answers = [service.post(path) for path in ("/queue", "/run")]
    assert [(answer.status, answer.error) for answer in answers] == [(400, "comfyui_refused")] * 2
    service.hold(LOADER)
    comfyui.faults.http_status = {"/upload/image": 500}
    body, content_type = multipart("cat.png", PNG)
    answer = service.post("/run", body, Content_Type=content_type)
    assert (answer.status, answer.error) == (400, "not_uploaded")


def test_a_run_that_is_cancelled_elsewhere_is_a_conflict(service: Middleware) -> None:
    service.hold(LONG)
    connection = start_call(service)
    prompt_id = running_call(service)
    assert service.post("/interrupt", {"prompt_id": prompt_id}).status == 200
    answer = read_answer(connection.makefile("rb"))
    connection.close()
    assert (answer.status, answer.error) == (409, "run_cancelled")
    assert answer.json["error"]["details"]["run"]["phase"] == "interrupted"


def test_a_run_that_a_restart_lost_is_a_bad_gateway(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator, prompt=LONG)
    connection = start_call(service)
    running_call(service)
    simulator.restart()
    connection.settimeout(30.0)
    answer = read_answer(connection.makefile("rb"))
    connection.close()
    assert (answer.status, answer.error) == (502, "run_lost")


def test_without_comfyui_a_client_may_try_again(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator)
    simulator.crash()
    wait_until(lambda: not service.get("/health").json["comfyui"], what="the loss")
    answer = service.post("/run", {"1.seed": 3})
    assert (answer.status, answer.error) == (503, "comfyui_unreachable")
    assert int(answer.headers["retry-after"]) > 0


def test_more_than_max_queue_are_refused_before_anything_is_uploaded(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator, "--max-queue", "1", prompt=LOADER)
    foreign = post_elsewhere(simulator, LONG)
    wait_until(lambda: phase_elsewhere(simulator, foreign) == "running")
    assert service.post("/run?wait=0").status == 202
    simulator.asked.clear()
    body, content_type = multipart("cat.png", PNG)
    answer = service.post("/run", body, Content_Type=content_type)
    assert (answer.status, answer.error) == (429, "queue_full")
    assert int(answer.headers["retry-after"]) > 0
    assert not [call for call in simulator.requests if call[0] == "POST"]


def test_so_many_wait_that_others_still_get_answers(
    service: Middleware, comfyui: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = service.service.waiting_room
    monkeypatch.setattr(room, "_most", 3)
    service.hold(LONG)
    connections = [start_call(service)]
    prompt_id = running_call(service)
    for path in (f"/runs/{prompt_id}?wait=50", f"/runs/{prompt_id}/output?wait=50"):
        connections.append(service.connect())
        connections[-1].sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    wait_until(lambda: len(room) == 3, what="the clients that wait")
    comfyui.asked.clear()
    for method, path in [
        ("POST", "/run"),
        ("GET", f"/runs/{prompt_id}?wait=1"),
        ("GET", f"/runs/{prompt_id}/output?wait=1"),
    ]:
        answer = service.call(method, path)
        assert (answer.status, answer.error, answer.headers["retry-after"]) == (429, "too_many_waiting", "2")
    assert ("POST", "/prompt") not in comfyui.requests
    assert service.get(f"/runs/{prompt_id}").status == 200
    assert service.get(f"/runs/{prompt_id}/output").status == 409
    queued = service.post("/run?wait=0")
    assert queued.status == 202
    service.post("/interrupt", {"prompt_id": queued.json["prompt_id"]})
    for connection in connections:
        connection.close()
    wait_until(lambda: len(room) == 0, what="the end of the waiting")


# ------------------------------------------------------------------------------------------------
# clients that leave


def test_a_client_that_leaves_cancels_its_run_and_no_other(service: Middleware, comfyui: Any) -> None:
    foreign = post_elsewhere(comfyui, slow_prompt(steps=2, seconds=1.0, seed=9))
    service.hold(LONG)
    connection = start_call(service)
    prompt_id = running_call(service)
    connection.close()
    assert service.end(prompt_id)["phase"] == "interrupted"
    assert phase_elsewhere(comfyui, foreign) == "success"


def test_a_client_that_waits_in_the_queue_and_leaves_takes_its_prompt_along(service: Middleware, comfyui: Any) -> None:
    foreign = post_elsewhere(comfyui, LONG)
    wait_until(lambda: phase_elsewhere(comfyui, foreign) == "running")
    connection = start_call(service)
    (record,) = wait_until(service.service.records.not_over, what="the run")
    wait_until(lambda: record.run.state.phase.value == "queued", what="its place in the queue")
    connection.close()
    assert service.end(record.prompt_id)["phase"] == "deleted"
    assert phase_elsewhere(comfyui, foreign) == "running"


def test_a_run_of_a_client_that_leaves_goes_on_where_it_asked_for_that(service: Middleware) -> None:
    service.hold(slow_prompt(steps=10, seconds=2.0, seed=12))
    connection = start_call(service, "?detach=true")
    prompt_id = running_call(service)
    connection.close()
    wait_until(lambda: "what it started continues" in service.out.getvalue(), what="a look for the client")
    assert service.end(prompt_id)["phase"] == "success"


def test_nobodys_leaving_cancels_after_a_202(service: Middleware) -> None:
    service.hold(slow_prompt(steps=10, seconds=2.0, seed=13))
    connection = start_call(service, "?wait=0.1")
    answer = read_answer(connection.makefile("rb"))
    assert answer.status == 202
    connection.close()
    assert service.end(answer.json["prompt_id"])["phase"] == "success"


def test_who_watches_a_run_and_leaves_cancels_nothing(service: Middleware) -> None:
    service.hold(slow_prompt(steps=10, seconds=2.0, seed=14))
    prompt_id = service.start()
    for path in (f"/runs/{prompt_id}?wait=50", f"/runs/{prompt_id}/output?wait=50"):
        with service.connect() as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            wait_until(lambda: len(service.service.waiting_room) == 1, what="the client")
        wait_until(lambda: len(service.service.waiting_room) == 0, what="its end")
    assert service.end(prompt_id)["phase"] == "success"


def test_a_client_that_sends_nothing_more_counts_as_gone_and_can_read_so(service: Middleware) -> None:
    service.hold(LONG)
    connection = start_call(service)
    running_call(service)
    connection.shutdown(socket.SHUT_WR)
    answer = read_answer(connection.makefile("rb"))
    connection.close()
    assert (answer.status, answer.error) == (409, "client_left")
    assert answer.json["error"]["message"] == "The client closed its connection, so its run was cancelled."


def test_the_next_request_on_the_connection_is_not_touched(service: Middleware) -> None:
    service.hold(slow_prompt(steps=4, seconds=1.0, seed=15))
    with start_call(service) as connection, connection.makefile("rb") as file:
        running_call(service)
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert read_answer(file).json["phase"] == "success"
        assert read_answer(file).json["status"] == "ok"


# ------------------------------------------------------------------------------------------------
# several at once


def test_clients_at_once_get_their_own_pictures(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator, "--max-queue", "40", prompt=TEXTS)
    answers: Dict[int, Answer] = {}
    failures: List[BaseException] = []

    def call(number: int) -> None:
        try:
            body = {"positive": f"animal {number}", "seed": number, "5.steps": 1, "size": "64x64"}
            answers[number] = service.post("/run", body, Accept="image/*")
        except (OSError, http.client.HTTPException) as error:
            failures.append(error)

    with unchanged(service):
        clients = [threading.Thread(target=call, args=(number,)) for number in range(24)]
        for client in clients:
            client.start()
        for client in clients:
            client.join(60.0)
    assert not failures
    for number, answer in answers.items():
        assert answer.status == 200, answer
        prompt = prompt_in(answer.body)
        assert (prompt["2"]["inputs"]["text"], prompt["5"]["inputs"]["seed"]) == (f"animal {number}", number)
    assert len(answers) == 24


def test_a_call_and_an_edit_at_once_do_not_mix(service: Middleware, comfyui: Any) -> None:
    """An edit that comes while a call runs is not in the call, and the call is not in what is held."""
    service.hold(slow_prompt(steps=4, seconds=1.0, seed=1))
    connection = start_call(service)
    prompt_id = running_call(service)
    assert service.post("/update/inputs", {"node_id": "1", "inputs": {"seed": 2}}).status == 200
    with connection, connection.makefile("rb") as file:
        answer = read_answer(file)
    assert answer.json["prompt_id"] == prompt_id
    assert answer.json["seeds"] == {"1.seed": 1}
    assert service.held()["1"]["inputs"]["seed"] == 2


# ------------------------------------------------------------------------------------------------
# a client that people use


@pytest.mark.skipif(shutil.which("curl") is None, reason="this machine has no curl")
def test_curl_saves_the_picture_under_its_name(service: Middleware, tmp_path: Any) -> None:
    large = tmp_path / "large.png"
    large.write_bytes(PNG + os.urandom(3_000_000))  # so large that curl waits for 100 Continue
    service.hold(LOADER)
    url = f"http://127.0.0.1:{service.port}"
    command = ["curl", "-s", "-S", "-f", "-OJ", "-F", "image=@large.png", "-H", "Accept: image/*", f"{url}/run"]
    done = subprocess.run(command, cwd=str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
    assert done.returncode == 0, done.stdout
    (saved,) = tmp_path.glob("loaded_*.png")
    assert saved.read_bytes().startswith(b"\x89PNG")
