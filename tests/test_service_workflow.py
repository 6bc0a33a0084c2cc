"""Stories of continuous mode: the held workflow."""

from __future__ import annotations

import json
import urllib.parse
from typing import Any

import pytest
from served import LOADER, PNG, TEXTS, Make, Middleware, submitted
from simulated import txt2img
from support import node, slow_prompt

from comfyui_runner.simulator.installation import MODELS

#: A picture that is saved, as ComfyUI's editor saves its workflow.
IN_UI_FORMAT = {
    "nodes": [
        {
            "id": 1,
            "type": "EmptyImage",
            "outputs": [{"type": "IMAGE", "links": [1]}],
            "widgets_values": [64, 128, 1, 0],
        },
        {
            "id": 2,
            "type": "SaveImage",
            "inputs": [{"name": "images", "type": "IMAGE", "link": 1}],
            "widgets_values": ["x"],
        },
    ],
    "links": [[1, 1, 0, 2, 0, "IMAGE"]],
}


def test_the_workflow_is_shown_with_what_can_be_set(service: Middleware) -> None:
    shown = service.get("/workflow").json
    assert shown["prompt"] == TEXTS
    assert shown["file"].endswith("held.json")
    assert [field["role"] for field in shown["fields"]][:2] == ["positive", "negative"]


def test_another_workflow_takes_its_place_and_reset_brings_the_file_back(service: Middleware) -> None:
    answer = service.call("PUT", "/workflow", slow_prompt())
    assert answer.status == 200
    assert answer.json == {
        "nodes": 2,
        "revision": answer.json["revision"],
        "checked": True,
        "warnings": [],
        "problems": [],
    }
    assert service.held() == slow_prompt()
    assert service.get("/status").json["workflow"]["changed"] is True
    back = service.post("/workflow/reset")
    assert (back.status, back.json["nodes"]) == (200, 7)
    assert back.json["revision"] > answer.json["revision"]
    assert service.held() == TEXTS
    assert service.get("/status").json["workflow"]["changed"] is False


def test_reset_reads_the_file_as_it_is_now(make_middleware: Make, simulator: Any, tmp_path: Any) -> None:
    service = make_middleware(simulator)
    (tmp_path / "held.json").write_text(json.dumps(TEXTS), encoding="utf-8")
    assert service.held() != TEXTS
    assert service.post("/workflow/reset").status == 200
    assert service.held() == TEXTS
    (tmp_path / "held.json").write_text("{", encoding="utf-8")
    assert service.post("/workflow/reset").status == 400
    (tmp_path / "held.json").unlink()
    assert service.post("/workflow/reset").status == 400
    assert service.held() == TEXTS


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"1": {}}',
        b'{"nodes": [], "links": []}',
        b'{"1": {"class_type": "KSampler"}}',
        b"[" * 50000,
    ],
)
def test_what_is_not_a_workflow_is_refused(service: Middleware, body: bytes) -> None:
    answer = service.call("PUT", "/workflow", body)
    assert (answer.status, answer.error) == (400, "workflow_error")
    assert service.held() == TEXTS


def test_a_workflow_whose_model_is_missing_is_held_with_its_problems(service: Middleware) -> None:
    missing = {**TEXTS, "1": node("CheckpointLoaderSimple", "Model", ckpt_name="not here.safetensors")}
    answer = service.call("PUT", "/workflow?name=flux.json", missing)
    assert answer.status == 200
    (problem,) = answer.json["problems"]
    assert (problem["node_id"], problem["input"], problem["type"]) == ("1", "ckpt_name", "value_not_in_list")
    assert service.held() == missing
    assert service.get("/queue").status == 400
    model = TEXTS["1"]["inputs"]["ckpt_name"]
    assert service.post("/update/inputs", {"node_id": "1", "inputs": {"ckpt_name": model}}).status == 200
    assert service.end(service.start())["phase"] == "success"


def test_a_model_under_another_name_is_taken_at_put_at_edits_and_at_run(
    service: Middleware, comfyui: Any, monkeypatch: Any
) -> None:
    monkeypatch.setitem(MODELS, "checkpoints", ["SDXL/x.safetensors", "y.safetensors"])
    prompt = txt2img(steps=1)
    prompt["4"]["inputs"]["ckpt_name"] = "SDXL\\x.safetensors"
    answer = service.call("PUT", "/workflow", prompt)
    assert answer.status == 200 and answer.json["problems"] == []
    assert "SDXL/x.safetensors is used for SDXL\\x.safetensors" in answer.json["warnings"][0]
    assert service.held()["4"]["inputs"]["ckpt_name"] == "SDXL/x.safetensors"
    edit = service.post("/update/inputs", {"node_id": "4", "inputs": {"ckpt_name": "x.safetensors"}})
    assert edit.json["changed"] == {"ckpt_name": "SDXL/x.safetensors"}

    events = service.events()
    sent = service.post("/prompt", {"prompt": prompt})
    assert service.end(sent.json["prompt_id"])["phase"] == "success"
    assert submitted(comfyui)[-1]["4"]["inputs"]["ckpt_name"] == "SDXL/x.safetensors"
    events.until(lambda name, data: name == "report" and "is used for SDXL" in str(data.get("message")))
    events.close()
    monkeypatch.setitem(MODELS, "checkpoints", ["new/x.safetensors"])  # while the service runs
    sent = service.post("/prompt", {"prompt": prompt})
    assert sent.status == 400
    prompt["4"]["inputs"]["ckpt_name"] = "new\\x.safetensors"
    assert service.post("/prompt", {"prompt": prompt}).status == 200


def test_the_address_of_a_missing_model_is_a_hint_at_put_and_at_run(service: Middleware) -> None:
    url = "https://huggingface.co/a/b/resolve/main/fox.safetensors"
    models = [{"name": "fox.safetensors", "url": url, "directory": "checkpoints"}]
    prompt = txt2img()
    prompt["4"]["inputs"]["ckpt_name"] = "fox.safetensors"
    workflow = {"nodes": [{"id": 4, "properties": {"models": models}}]}
    answer = service.call("PUT", "/workflow", {"prompt": prompt, "workflow": workflow})
    hints = [problem["hints"][-1] for problem in answer.json["problems"]]
    refused = service.post("/queue", {})
    assert refused.status == 400
    hints += [problem["hints"][-1] for problem in refused.json["error"]["details"]["problems"]]
    body = {"prompt": prompt, "extra_data": {"extra_pnginfo": {"workflow": workflow}}}
    assert service.post("/prompt", body).status == 400
    hints += [problem["hints"][-1] for problem in service.get("/runs").json["runs"][0]["problems"]]
    assert len(hints) == 3
    assert all(hint.startswith("curl") and url in hint for hint in hints), hints


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        ({"1": node("EmptyImage", width=8, height=8, batch_size=1, color=0)}, "prompt_no_outputs"),
        ({"1": node("SaveImage", filename_prefix="x", images=["9", 0])}, "exception_during_inner_validation"),
        ({"1": node("SaveImage", filename_prefix="x")}, "required_input_missing"),
    ],
)
def test_what_is_wrong_with_a_workflow_is_listed_and_it_is_held(service: Middleware, prompt: Any, problem: str) -> None:
    answer = service.call("PUT", "/workflow", prompt)
    assert answer.status == 200
    assert [each["type"] for each in answer.json["problems"]] == [problem]
    assert service.held() == prompt


def test_the_name_that_is_shown_is_that_of_the_held_workflow(service: Middleware) -> None:
    def shown() -> Any:
        workflow = service.get("/status").json["workflow"]
        assert workflow["file"] == service.get("/workflow").json["file"]
        return workflow["file"], workflow["changed"]

    service.call("PUT", "/workflow?name=my%20other.json", slow_prompt())
    assert shown() == ("my other.json", False)
    service.post("/update/inputs", {"node_id": "1", "inputs": {"steps": 7}})
    assert shown() == ("my other.json", True)
    service.call("PUT", "/workflow?name=a%0Ab", slow_prompt())
    assert shown() == ("a b", False)
    service.call("PUT", "/workflow", slow_prompt())
    assert shown() == ("", True)
    service.post("/workflow/reset")
    name, is_changed = shown()
    assert name.endswith("held.json") and not is_changed


def test_a_workflow_of_unknown_classes_is_refused_with_all_that_is_wrong(service: Middleware) -> None:
    prompt = {
        "1": node("NoSuchNode", "Missing", image=["2", 0]),
        "2": node("SlowProgress", steps=-1, seconds=0.0, seed=1, preview=False),
    }
    answer = service.call("PUT", "/workflow", prompt)
    assert (answer.status, answer.error) == (400, "invalid_workflow")
    problems = answer.json["error"]["details"]["problems"]
    assert [(problem["node_id"], problem["type"]) for problem in problems] == [
        ("1", "missing_node_type"),
        ("2", "value_smaller_than_min"),
    ]
    assert service.held() == TEXTS


def test_many_unknown_classes_are_looked_up_in_one_answer(service: Middleware, comfyui: Any) -> None:
    prompt = {str(number): node(f"NoSuchNode{number}") for number in range(300)}
    answer = service.call("PUT", "/workflow", prompt)
    assert answer.status == 400
    assert len(answer.json["error"]["details"]["problems"]) == 300
    service.service.held.hold(prompt)
    refused = service.get("/queue")
    assert (refused.status, len(refused.json["error"]["details"]["problems"])) == (400, 300)
    asked = [path for _, path in comfyui.requests if path.startswith("/object_info")]
    assert 0 < len(asked) < 10, asked


def test_the_workflow_with_an_uploaded_picture_can_be_put_back(service: Middleware) -> None:
    service.hold(LOADER)
    fields: Any
    for fields in ({}, {"subfolder": "deep"}, {"type": "temp"}):
        assert service.upload(name="fresh.png", **fields).status == 200
        held = service.held()
        answer = service.call("PUT", "/workflow", held)
        assert answer.status == 200, answer.body
        assert service.end(service.start())["phase"] == "success"


def test_even_a_deep_chain_of_nodes_is_read(service: Middleware) -> None:
    chain = {str(i): node("ConditioningAverage", conditioning_to=[str(i + 1), 0]) for i in range(1000, 4000)}
    sampler = {**TEXTS["5"]["inputs"], "positive": ["1000", 0]}
    service.service.held.hold({**TEXTS, **chain, "4000": TEXTS["2"], "5": node("KSampler", **sampler)})
    assert service.get("/workflow").status == 200
    assert service.post("/update/prompt", {"type": "positive", "text": "a"}).json["node_id"] == "4000"


@pytest.mark.parametrize("class_type", ["", ".", ".."])
def test_a_class_that_would_be_another_path_is_not_there(service: Middleware, class_type: str) -> None:
    answer = service.call("PUT", "/workflow", {"1": {"class_type": class_type, "inputs": {}}})
    assert answer.status == 400 and answer.error in ("invalid_workflow", "workflow_error")


# -- several workflows -------------------------------------------------------------------------------


@pytest.fixture
def several(make_middleware: Make, simulator: Any, tmp_path: Any) -> Middleware:
    """A service of held.json, of photo.json in a folder, and of broken.json there."""
    folder = tmp_path / "flows"
    folder.mkdir()
    (folder / "photo.json").write_text(json.dumps(LOADER), encoding="utf-8")
    (folder / "broken.json").write_text("{", encoding="utf-8")
    service: Middleware = make_middleware(simulator, str(folder), "--state", "none", prompt=TEXTS)
    return service


def test_one_of_several_workflows_is_held_and_each_keeps_its_edits(several: Middleware) -> None:
    listed = several.get("/workflows").json["workflows"]
    assert [(entry["name"], entry["held"], entry["readable"]) for entry in listed] == [
        ("held.json", True, True),
        ("photo.json", False, True),
        ("broken.json", False, False),
    ]
    assert "is not JSON" in listed[2]["message"] and listed[0]["message"] == ""
    status = several.get("/status").json["workflow"]
    assert (status["name"], status["choices"]) == ("held.json", 3)

    assert several.post("/update/inputs", {"node_id": "5", "inputs": {"steps": 7}}).status == 200
    answer = several.call("PUT", "/workflow?name=photo.json")
    assert answer.status == 200
    assert answer.json == {
        "nodes": 2, "revision": answer.json["revision"], "checked": True, "warnings": [], "problems": [],
    }  # fmt: skip
    assert several.held() == LOADER
    assert several.end(several.start())["phase"] == "success"

    assert several.call("PUT", "/workflow?name=held.json").status == 200
    assert several.held()["5"]["inputs"]["steps"] == 7
    assert several.post("/workflow/reset").status == 200
    assert several.held() == TEXTS


@pytest.mark.parametrize(
    ("name", "status", "type"),
    [
        ("broken.json", 400, "workflow_error"),
        ("../held.json", 404, "no_such_workflow"),
        ("flows/photo.json", 404, "no_such_workflow"),
    ],
)
def test_what_is_not_in_the_list_or_cannot_be_read_is_not_held(
    several: Middleware, name: str, status: int, type: str
) -> None:
    answer = several.call("PUT", "/workflow?" + urllib.parse.urlencode({"name": name}))
    assert (answer.status, answer.error) == (status, type)
    assert several.held() == TEXTS


def test_a_chosen_workflow_that_comfyui_would_refuse_lists_what_is_wrong(
    make_middleware: Make, simulator: Any, tmp_path: Any
) -> None:
    missing = {**TEXTS, "1": node("CheckpointLoaderSimple", "Model", ckpt_name="not here.safetensors")}
    (tmp_path / "b.json").write_text(json.dumps(missing), encoding="utf-8")
    service = make_middleware(simulator, str(tmp_path / "b.json"))
    (problem,) = service.call("PUT", "/workflow?name=b.json").json["problems"]
    assert (problem["node_id"], problem["type"]) == ("1", "value_not_in_list")
    assert service.held() == missing


def test_files_of_the_command_line_are_uploaded_for_the_workflow_that_is_chosen(
    make_middleware: Make, simulator: Any, tmp_path: Any
) -> None:
    (tmp_path / "b.json").write_text(json.dumps(LOADER), encoding="utf-8")
    (tmp_path / "fox.png").write_bytes(PNG)
    image = str(tmp_path / "fox.png")
    service = make_middleware(simulator, str(tmp_path / "b.json"), "--image", image, prompt=LOADER)
    assert service.call("PUT", "/workflow?name=b.json").status == 200
    assert service.held()["1"]["inputs"]["image"] == "fox.png"
    assert service.end(service.start())["phase"] == "success"


def test_files_of_the_command_line_go_to_the_loaders_that_the_file_has_at_a_reset(
    make_middleware: Make, simulator: Any, tmp_path: Any
) -> None:
    (tmp_path / "fox.png").write_bytes(PNG)
    service = make_middleware(simulator, "--image", str(tmp_path / "fox.png"), prompt=LOADER)
    image = node("EmptyImage", width=8, height=8, batch_size=1, color=1)
    edited = {"1": image, "7": LOADER["1"], "2": node("SaveImage", filename_prefix="x", images=["7", 0])}
    (tmp_path / "held.json").write_text(json.dumps(edited), encoding="utf-8")
    assert service.post("/workflow/reset").status == 200
    held = service.held()
    assert (held["1"], held["7"]["inputs"]["image"]) == (image, "fox.png")
    assert simulator.requests.count(("POST", "/upload/image")) == 1  # it is the same file


# -- in UI format ------------------------------------------------------------------------------------


@pytest.fixture
def from_editor(make_middleware: Make, simulator: Any) -> Middleware:
    """A service of a workflow in UI format."""
    service: Middleware = make_middleware(simulator, "--state", "none", prompt=IN_UI_FORMAT)
    return service


def test_a_workflow_is_had_for_comfyuis_editor_with_its_edits(from_editor: Middleware) -> None:
    shown = from_editor.get("/workflow").json
    assert shown["has_ui_format"] is True
    assert from_editor.post("/update/inputs", {"node_id": "1", "inputs": {"width": 256}}).status == 200
    saved = from_editor.get("/workflow?format=ui").json
    assert saved["not_saved"] == [] and saved["file"].endswith("held.json")
    assert saved["workflow"]["nodes"][0]["widgets_values"] == [256, 128, 1, 0]
    assert from_editor.call("PUT", "/workflow?name=again.json", saved["workflow"]).status == 200
    assert from_editor.held()["1"]["inputs"]["width"] == 256


def test_undo_of_the_page_keeps_where_the_workflow_came_from(from_editor: Middleware) -> None:
    shown = from_editor.get("/workflow").json
    assert from_editor.call("PUT", "/workflow?name=other.json", TEXTS).status == 200
    assert from_editor.get("/workflow").json["has_ui_format"] is False
    before = {"prompt": shown["prompt"], "draws": shown["draws"]}
    query = urllib.parse.urlencode({"name": shown["file"]})
    assert from_editor.call("PUT", "/workflow?" + query, before).status == 200
    assert from_editor.get("/workflow?format=ui").json["workflow"] == IN_UI_FORMAT
    assert from_editor.call("PUT", "/workflow?" + query, TEXTS).status == 200
    assert from_editor.get("/workflow").json["has_ui_format"] is False


def test_values_that_cannot_be_written_back_are_named(from_editor: Middleware) -> None:
    prompt = from_editor.held()
    prompt["1"]["inputs"]["more"] = 5
    query = urllib.parse.urlencode({"name": from_editor.get("/workflow").json["file"]})
    assert from_editor.call("PUT", "/workflow?" + query, prompt).status == 200
    assert from_editor.get("/workflow?format=ui").json["not_saved"] == [
        {"node_id": "1", "title": "Empty Image", "class_type": "EmptyImage", "input": "more"}
    ]


def test_a_workflow_in_api_format_is_had_in_no_other(service: Middleware) -> None:
    answer = service.get("/workflow?format=ui")
    assert (answer.status, answer.error) == (409, "not_in_ui_format")
    assert "GET /workflow" in answer.json["error"]["message"]
    assert service.get("/workflow?format=api").json["prompt"] == TEXTS
    answer = service.get("/workflow?format=xml")
    assert (answer.status, answer.error) == (400, "wrong_value")
