"""OpenAI's images API as a client sees it: pictures of the held workflow, errors in its shape, no run left behind."""

from __future__ import annotations

import base64
import datetime
import json
import re
import struct
import time
from typing import Any, List, Mapping, Optional

import pytest
from served import LOADER, PNG, TEXTS, TWO_LOADERS, Answer, Json, Middleware, phase_elsewhere
from support import node, slow_prompt, wait_until

from comfyui_runner.simulator import Faults, draw

TYPE = "multipart/form-data; boundary=cut"
INPAINTING: Json = {
    "11": node("LoadImage", "Photo", image="example.png"),
    "12": node("LoadImage", "The mask", image="example.png"),
    "13": node("VAEEncode", "Encode", pixels=["11", 0], vae=["1", 2]),
    **TEXTS,
}
INPAINTING["5"] = {**TEXTS["5"], "inputs": {**TEXTS["5"]["inputs"], "latent_image": ["13", 0]}}

#: A workflow in which a picture is made from another one, and which has a text.
EDITING: Json = {**LOADER, "3": node("CLIPTextEncode", "Positive", text="x", clip=["4", 1]),
                 "4": node("CheckpointLoaderSimple", ckpt_name="sd_xl_base_1.0.safetensors")}  # fmt: skip


def slow_with_text() -> Json:
    return {
        **slow_prompt(steps=200, seconds=20.0),
        "3": node("CLIPTextEncode", "Positive", text="x", clip=["4", 1]),
        "4": node("CheckpointLoaderSimple", ckpt_name="sd_xl_base_1.0.safetensors"),
    }


def form(*parts: Any) -> bytes:
    """A multipart body of (name, text) and (name, file name, content)."""
    pieces = []
    for name, *names, content in parts:
        filename = f'; filename="{names[0]}"' if names else ""
        head = f'--cut\r\nContent-Disposition: form-data; name="{name}"{filename}\r\n\r\n'
        pieces.append(head.encode() + (content if isinstance(content, bytes) else content.encode()) + b"\r\n")
    return b"".join(pieces) + b"--cut--\r\n"


def generate(
    service: Middleware, fields: Mapping[str, Any] = {}, headers: Optional[Mapping[str, str]] = None
) -> Answer:
    return service.call("POST", "/v1/images/generations", {"prompt": "a fox", **fields}, headers)


def edit(service: Middleware, *parts: Any) -> Answer:
    return service.post("/v1/images/edits", form(("prompt", "a fox"), *parts), Content_Type=TYPE)


def pictures(answer: Answer) -> List[bytes]:
    """The pictures of an answer in base64."""
    assert answer.status == 200, answer
    return [base64.b64decode(entry["b64_json"], validate=True) for entry in answer.json["data"]]


def prompt_of(picture: bytes) -> Json:
    """The prompt that a picture was made from, which ComfyUI writes into it."""
    at = picture.index(b"tEXtprompt\0")
    (length,) = struct.unpack(">I", picture[at - 4 : at])
    prompt: Json = json.loads(picture[at + 11 : at + 4 + length])
    return prompt


def error(answer: Answer) -> Json:
    """The error of an answer in OpenAI's shape."""
    assert list(answer.json) == ["error"]
    shown: Json = answer.json["error"]
    assert set(shown) == {"message", "type", "param", "code"}
    return shown


# -- generations -----------------------------------------------------------------------------------


def test_a_prompt_becomes_a_picture_of_the_held_workflow(service: Middleware) -> None:
    before = service.held()
    answer = generate(
        service, {"model": "dall-e-3", "quality": "hd", "style": "vivid", "user": "me", "size": "640x384"}
    )
    (picture,) = pictures(answer)
    made_from = prompt_of(picture)
    assert made_from["2"]["inputs"]["text"] == "a fox"
    assert made_from["3"]["inputs"]["text"] == TEXTS["3"]["inputs"]["text"]
    assert (made_from["4"]["inputs"]["width"], made_from["4"]["inputs"]["height"]) == (640, 384)
    assert answer.json["output_format"] == "png"
    assert abs(answer.json["created"] - time.time()) < 60
    assert answer.headers["content-type"] == "application/json"
    assert service.held() == before


def test_several_pictures_have_seeds_of_their_own(service: Middleware) -> None:
    seeds = [prompt_of(picture)["5"]["inputs"]["seed"] for picture in pictures(generate(service, {"n": 3}))]
    assert len(set(seeds)) == 3
    assert TEXTS["5"]["inputs"]["seed"] not in seeds


def test_all_pictures_are_of_the_workflow_that_was_held_at_first(
    service: Middleware, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {**TEXTS, "5": {**TEXTS["5"], "inputs": {**TEXTS["5"]["inputs"], "steps": 2}}}
    held = service.service.held

    def edit_and_date() -> datetime.datetime:
        """Each run is dated when its prompt is made: another client's edit comes before the next one."""
        service.hold(other)
        return datetime.datetime.now()

    monkeypatch.setattr(held, "clock", edit_and_date)
    made = pictures(generate(service, {"n": 3}))
    steps = [prompt_of(picture)["5"]["inputs"]["steps"] for picture in made]
    assert steps == [TEXTS["5"]["inputs"]["steps"]] * 3 != [2] * 3


def test_a_seed_and_any_input_can_be_given(service: Middleware) -> None:
    made = pictures(generate(service, {"seed": 41, "n": 2, "negative_prompt": "a dog", "5.steps": 3}))
    inputs = [prompt_of(picture)["5"]["inputs"] for picture in made]
    assert [(each["seed"], each["steps"]) for each in inputs] == [(41, 3), (42, 3)]
    assert prompt_of(made[0])["3"]["inputs"]["text"] == "a dog"


def test_a_form_is_taken_too(service: Middleware) -> None:
    form_type = "application/x-www-form-urlencoded"
    answer = service.post("/v1/images/generations", b"prompt=a+fox&n=1&seed=5", Content_Type=form_type)
    assert prompt_of(pictures(answer)[0])["5"]["inputs"]["seed"] == 5


def test_a_size_is_ignored_where_no_node_has_one(service: Middleware) -> None:
    service.hold(EDITING)
    assert len(pictures(generate(service, {"size": "1024x1024"}))) == 1


def test_a_picture_that_comes_over_the_websocket_is_answered_as_well(service: Middleware) -> None:
    service.hold({**TEXTS, "7": node("SaveImageWebsocket", images=["6", 0])})
    (picture,) = pictures(generate(service))
    assert picture.startswith(b"\x89PNG")


def test_a_url_leads_to_the_picture(service: Middleware) -> None:
    for prompt in (TEXTS, {**TEXTS, "7": node("SaveImageWebsocket", images=["6", 0])}):
        service.hold(prompt)
        (entry,) = generate(service, {"response_format": "url"}).json["data"]
        assert list(entry) == ["url"]
        root = f"http://127.0.0.1:{service.port}"
        assert entry["url"].startswith(root + "/") and "signature" not in entry["url"]
        answer = service.get(entry["url"][len(root) :])
        assert (answer.status, answer.headers["content-type"]) == (200, "image/png")


# -- edits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["image", "image[]"])
def test_the_picture_of_an_edit_goes_to_the_loader(service: Middleware, comfyui: Any, name: str) -> None:
    service.hold(EDITING)
    sent = draw(48, 32, 7, [name])
    (picture,) = pictures(edit(service, (name, "Ein Bär.png", sent)))
    loaded = prompt_of(picture)["1"]["inputs"]["image"]
    assert loaded.startswith("Ein B")
    with open(f"{comfyui.folder('input')}/{loaded}", "rb") as file:
        assert file.read() == sent
    assert struct.unpack(">II", picture[16:24]) == (48, 32)
    assert service.held() == EDITING


def test_a_body_in_json_brings_its_picture_as_a_data_uri(service: Middleware) -> None:
    service.hold(EDITING)
    uri = "data:image/png;base64," + base64.b64encode(draw(24, 16, 7, ["J"])).decode()
    answer = service.post("/v1/images/edits", {"prompt": "a fox", "images": [{"image_url": uri}]})
    assert struct.unpack(">II", pictures(answer)[0][16:24]) == (24, 16)


def test_picture_and_mask_go_to_the_loaders_that_are_for_them(service: Middleware, comfyui: Any) -> None:
    service.hold(INPAINTING)
    answer = edit(service, ("mask", "mask.png", draw(8, 8, 1, ["M"])), ("image", "photo.png", PNG), ("n", "2"))
    for picture in pictures(answer):
        made_from = prompt_of(picture)
        assert made_from["11"]["inputs"]["image"].startswith("photo")
        assert made_from["12"]["inputs"]["image"].startswith("mask")


def test_several_pictures_go_to_several_loaders(service: Middleware) -> None:
    service.hold({**TWO_LOADERS, **{key: EDITING[key] for key in "34" if key not in TWO_LOADERS},
                  "9": node("CLIPTextEncode", "Positive", text="x", clip=["10", 1]),
                  "10": node("CheckpointLoaderSimple", ckpt_name="sd_xl_base_1.0.safetensors")})  # fmt: skip
    both = ("image[]", "photo.png", PNG), ("image[]", "style.png", PNG)
    made_from = prompt_of(pictures(edit(service, *both))[0])
    assert made_from["1"]["inputs"]["image"].startswith("photo")
    assert made_from["2"]["inputs"]["image"].startswith("style")
    refused = edit(service, both[0])
    assert (refused.status, error(refused)["param"]) == (409, "image")
    assert "name the fields 1.image, 2.image." in error(refused)["message"]
    assert edit(service, both[0], ("2.image", "style.png", PNG)).status == 200


# -- models ----------------------------------------------------------------------------------------


def test_the_only_model_is_the_held_workflow(service: Middleware) -> None:
    listed = service.get("/v1/models").json
    assert listed["object"] == "list"
    (model,) = listed["data"]
    assert (model["id"], model["object"], model["owned_by"]) == ("held", "model", "comfyui")
    assert isinstance(model["created"], int)
    assert service.get("/v1/models/held").json == model
    assert error(service.get("/v1/models/dall-e-3"))["code"] == "model_not_found"
    service.call("PUT", "/workflow?name=my%20flux.json", TEXTS)
    assert service.get("/v1/models/my%20flux").json["id"] == "my flux"


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "status", "param", "code"),
    [
        ({"prompt": None}, 400, "prompt", "missing_required_parameter"),
        ({"n": 11}, 400, "n", "invalid_value"),
        ({"steps": 20}, 400, "steps", "unknown_parameter"),
        ({"stream": True}, 400, "stream", "unsupported_parameter"),
        ({"99.steps": 20}, 400, "99.steps", "no_such_node"),
        ({"5.steps": "many"}, 400, "5.steps", "invalid_input_type"),
        ({"size": "large"}, 400, "size", "wrong_value"),
    ],
)
def test_a_request_that_cannot_be_followed_names_the_field_and_runs_nothing(
    service: Middleware, fields: Json, status: int, param: str, code: str
) -> None:
    answer = generate(service, fields)
    shown = error(answer)
    assert (answer.status, shown["type"]) == (status, "invalid_request_error")
    assert (shown["param"], shown["code"]) == (param, code)
    assert answer.headers["x-should-retry"] == "false"
    assert service.get("/runs").json["runs"] == [] or not service.service.records.not_over()


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/images/generations", 405, "method_not_allowed"),
        ("POST", "/v1/chat/completions", 404, "not_found"),
        ("GET", "/v1/nothing", 404, "not_found"),
        ("POST", "/v1/images/generations?quality=hd", 400, "unknown_field"),
        ("POST", "/v1/images/generations?detach=maybe", 400, "wrong_value"),
    ],
)
def test_every_error_below_v1_has_the_shape_of_openai(
    service: Middleware, method: str, path: str, status: int, code: str
) -> None:
    answer = service.call(method, path, {"prompt": "a fox"} if method == "POST" else None)
    assert (answer.status, error(answer)["code"]) == (status, code)


def test_a_body_that_is_not_json_or_a_broken_form_is_refused(service: Middleware) -> None:
    assert error(service.post("/v1/images/generations", b"{"))["code"] == "not_json"
    broken = form(("prompt", "a fox"))[:-6]
    answer = service.post("/v1/images/edits", broken, Content_Type=TYPE)
    assert (answer.status, error(answer)["code"]) == (400, "bad_form")


@pytest.mark.parametrize(("header", "status"), [("Transfer-Encoding: chunked", 411), ("Content-Length: five", 400)])
def test_a_body_of_unknown_length_is_refused_in_the_shape_of_openai(
    service: Middleware, header: str, status: int
) -> None:
    answer = service.raw(f"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\n{header}\r\n\r\n".encode())
    assert answer.status == status and "Content-Length" in error(answer)["message"]


def test_azure_s_version_in_the_url_does_not_matter(service: Middleware) -> None:
    answer = service.post("/v1/images/generations?api-version=2025-04-01-preview", {"prompt": "a fox"})
    assert answer.status == 200


def test_a_node_that_fails_runs_once_and_is_not_to_be_repeated(service: Middleware, comfyui: Any) -> None:
    service.hold({**TEXTS, "7": node("FailNode", "Broken", message="out of luck", image=["6", 0]),
                  "8": node("SaveImage", "Save", filename_prefix="x", images=["7", 0])})  # fmt: skip
    answer = generate(service)
    assert (answer.status, error(answer)["type"], error(answer)["code"]) == (500, "server_error", "node_failed")
    assert "out of luck" in error(answer)["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert "traceback" not in answer.body.decode()


def test_a_prompt_that_comfyui_refuses_is_not_to_be_repeated(service: Middleware) -> None:
    prompt = {**TEXTS, "7": node("SaveImage", "Save", filename_prefix="x", images=["99", 0])}
    service.service.held.hold(prompt)
    answer = generate(service)
    assert (answer.status, error(answer)["code"]) == (400, "prompt_rejected")
    assert answer.headers["x-should-retry"] == "false"


def test_a_run_without_a_picture_says_what_it_made(service: Middleware) -> None:
    service.hold({**TEXTS, "7": node("PreviewAny", "Show", source=["5", 0])})
    answer = generate(service)
    assert (answer.status, error(answer)["code"]) == (406, "not_acceptable")
    assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("faults", "status", "code"),
    [
        (Faults(cut_files=[100]), 502, "picture_cut_short"),
        (Faults(cut_http={"/view": 1}), 503, "server_unreachable"),
    ],
)
def test_a_picture_that_does_not_come_whole_is_an_error_and_not_half_an_answer(
    service: Middleware, comfyui: Any, faults: Faults, status: int, code: str
) -> None:
    comfyui.faults = faults
    answer = generate(service)
    assert (answer.status, error(answer)["type"], error(answer)["code"]) == (status, "server_error", code)
    assert answer.headers["x-should-retry"] == "false"
    assert pictures(generate(service))


def test_where_comfyui_is_away_a_client_may_try_again(make_middleware: Any, make_simulator: Any) -> None:
    simulator = make_simulator()
    service = make_middleware(simulator, prompt=TEXTS)
    simulator.stop()
    wait_until(lambda: not service.get("/status").json["comfyui"]["connected"], what="the loss of ComfyUI")
    answer = generate(service)
    assert (answer.status, error(answer)["type"]) == (503, "server_error")
    assert answer.headers["retry-after"] and "x-should-retry" not in answer.headers


def test_too_many_runs_are_none_at_all(make_middleware: Any, make_simulator: Any) -> None:
    simulator = make_simulator()
    service = make_middleware(simulator, "--max-queue", "2", prompt=slow_with_text())
    blocker = service.start()
    service.running(blocker)
    answer = generate(service, {"n": 3})
    assert (answer.status, error(answer)["type"], error(answer)["code"]) == (429, "rate_limit_error", "queue_full")
    assert answer.headers["x-should-retry"] == "false"  # two runs had begun
    records = service.service.records
    wait_until(lambda: [record.prompt_id for record in records.not_over()] == [blocker], what="the end of both")


# -- clients that leave ----------------------------------------------------------------------------


def send_and_leave(service: Middleware, query: str = "") -> List[str]:
    """Asks for two pictures and leaves when the first run runs: the prompt_ids."""
    body = b'{"prompt": "a fox", "n": 2}'
    head = f"POST /v1/images/generations{query} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    with service.connect() as connection:
        connection.sendall(head.encode() + body)
        wait_until(lambda: len(service.service.records.not_over()) == 2, what="both runs")
        ids = [record.prompt_id for record in service.service.records.not_over()]
        service.running(ids[0])
    return ids


def test_a_client_that_leaves_cancels_its_runs(service: Middleware, comfyui: Any) -> None:
    service.hold(slow_with_text())
    ids = send_and_leave(service)
    wait_until(lambda: not service.service.records.not_over(), what="the end of both runs")
    phases = [service.get("/runs/" + prompt_id).json["phase"] for prompt_id in ids]
    assert sorted(phases) == ["deleted", "interrupted"]


def test_a_client_that_leaves_detached_runs_cancels_nothing(service: Middleware, comfyui: Any) -> None:
    service.hold(slow_with_text())
    ids = send_and_leave(service, "?detach=true")
    wait_until(lambda: "what it started continues" in service.out.getvalue(), what="a look for the client")
    assert phase_elsewhere(comfyui, ids[0]) == "running"
    assert "KeyError" not in service.out.getvalue()


# -- the token -------------------------------------------------------------------------------------


def test_the_key_of_the_client_is_the_token(make_middleware: Any, make_simulator: Any) -> None:
    simulator = make_simulator()
    service = make_middleware(simulator, "--token", "sesame", prompt=TEXTS, is_open=False)
    right = {"Authorization": "Bearer sesame"}
    wait_until(lambda: service.call("GET", "/status", headers=right).json["comfyui"]["connected"])
    for headers in ({}, {"Authorization": "Bearer sk-wrong"}):
        answer = generate(service, {}, headers)
        assert (answer.status, error(answer)["code"]) == (401, "invalid_api_key")
    (entry,) = generate(service, {"response_format": "url"}, right).json["data"]
    path = re.sub(r"^http://127\.0\.0\.1:\d+", "", entry["url"])
    assert "signature=" in path and "sesame" not in path
    assert service.get(path).status == 200  # without the token
    assert service.get(path, Sec_Fetch_Site="cross-site").status == 200  # shown by a page of the client
    other = re.sub("filename=[^&]*", "filename=other.png", path)
    assert service.get(other).status == 401
    assert pictures(generate(service, {}, right))
