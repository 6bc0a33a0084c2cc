"""The simulator's nodes and pictures."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Callable, Tuple

import pytest
import requests
from simulated import (
    RECORDINGS,
    WAIT,
    Json,
    drain,
    get,
    history,
    output_of,
    pixels_of,
    png_text,
    receive,
    slow,
    submit,
    txt2img,
    types,
)
from websockets.sync.client import ClientConnection

from comfyui_runner.simulator import Simulator, draw


def test_object_info_is_that_of_a_real_server(sim: Simulator) -> None:
    """Inputs, their order and settings, and outputs; lists of files and tooltips differ."""
    recorded = json.loads((RECORDINGS[0].parent.parent / "object_info.json").read_text())
    Path(sim.root, "input", "example.png").write_bytes(b"")
    mine = get(sim, "/object_info").json()
    assert set(recorded) | {"SlowProgress", "FailNode", "TextOut", "SimulatedOutput", "PartnerImage"} == set(mine)
    for name, node in recorded.items():
        for key in ("output", "output_name", "output_is_list", "output_node", "category"):
            assert mine[name][key] == node[key], (name, key)
        assert mine[name]["display_name"] == node["display_name"]
        specs = mine[name]["input"]["required"]
        assert list(specs) == mine[name]["input_order"]["required"]
        if name == "SaveVideo":  # its format and codec are simpler here
            continue
        assert list(specs) == list(node["input"]["required"]), name
        for key, (kind, *settings) in node["input"]["required"].items():
            got, *more = specs[key]
            if kind == "COMBO":
                assert isinstance(got, list)
                kind = got
            if key.endswith("_name") and key != "sampler_name":
                kind = got
            assert got == kind, (name, key)
            mine_settings, settings = (more or [{}])[0], (settings or [{}])[0]
            settings.pop("options", None)
            assert mine_settings == settings, (name, key)


def test_pictures_say_that_they_are_simulated(sim: Simulator) -> None:
    files = []
    workflow = {"id": "some-id", "nodes": []}
    for seed in (1, 2):
        prompt = txt2img(seed=seed)
        extra = {"extra_pnginfo": {"workflow": workflow}}
        entry = history(sim, submit(sim, prompt, extra_data=extra))
        image = entry["outputs"]["9"]["images"][0]
        answer = get(sim, "/view", params=image)
        assert answer.headers["Content-Type"] == "image/png"
        files.append(answer.content)
        assert struct.unpack(">II", answer.content[16:24]) == (64, 96)
        texts = png_text(answer.content)
        assert json.loads(texts["prompt"])["3"]["inputs"]["seed"] == seed
        assert json.loads(texts["workflow"]) == workflow
    pixels = [pixels_of(data) for data in files]
    assert pixels[0] != pixels[1]
    assert b"\xff\xff\xff" in pixels[0]  # the ink of the text
    assert pixels_of(draw(64, 96, 1, ["SIMULATED"])) != pixels[0]
    assert "simulated" in get(sim, "/system_stats").json()["devices"][0]["name"]


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (40, 9), (300, 20), (20, 300)])
def test_pictures_of_every_size_can_be_drawn(size: Tuple[int, int]) -> None:
    data = draw(*size, 5, ["SIMULATED", "SEED 5"])
    assert data.endswith(b"\0\0\0\0IEND\xaeB`\x82")  # without its last chunk, a PNG file is cut off
    assert struct.unpack(">II", data[16:24]) == size
    assert len(pixels_of(data)) == size[1] * (1 + 3 * size[0])


def test_previews_on_request(simulate: Callable[..., Simulator], open_ws: Callable[..., ClientConnection]) -> None:
    sim = simulate(previews=False)
    ws = open_ws(sim, "me")
    for extra, count in (({}, 0), ({"preview_method": "auto"}, 4), ({"preview_method": "none"}, 0)):
        submit(sim, txt2img(seed=count), client_id="me", extra_data=extra)
        frames = [each for each in drain(ws) if isinstance(each, bytes)]
        assert len(frames) == count
        for frame in frames:
            assert struct.unpack(">II", frame[:8]) == (1, 2)
            png_text(frame[8:])


def test_preview_metadata_names_the_node(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    ws = open_ws(sim, "me")
    flags = {"supports_preview_metadata": True}
    ws.send("not JSON")  # does not count as the first message
    ws.send(json.dumps({"type": "feature_flags", "data": flags}))
    assert receive(ws, "feature_flags")["data"] == get(sim, "/features").json()
    prompt_id = submit(sim, slow(preview=True), client_id="me")
    frames = [each for each in drain(ws) if isinstance(each, bytes)]
    assert len(frames) == 3
    kind, length = struct.unpack(">II", frames[0][:8])
    assert kind == 4
    about = json.loads(frames[0][8 : 8 + length])
    ids = ("node_id", "display_node_id", "real_node_id")
    expected = {**dict.fromkeys(ids, "1"), "prompt_id": prompt_id, "parent_node_id": None}
    assert about == {**expected, "image_type": "image/png"}
    png_text(frames[0][8 + length :])


def test_only_the_first_message_negotiates(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    ws = open_ws(sim, "me")
    ws.send(json.dumps({"type": "hello"}))
    flags = {"supports_preview_metadata": True}
    ws.send(json.dumps({"type": "feature_flags", "data": flags}))
    submit(sim, slow(preview=True), client_id="me")
    messages = drain(ws)
    assert "feature_flags" not in types(messages)
    assert {each[:4] for each in messages if isinstance(each, bytes)} == {b"\0\0\0\1"}


def test_save_image_websocket_sends_the_whole_picture(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    ws = open_ws(sim, "me")
    prompt = txt2img()
    prompt["9"] = {"class_type": "SaveImageWebsocket", "inputs": {"images": ["8", 0]}}
    prompt_id = submit(sim, prompt, client_id="me")
    messages = drain(ws)
    (frame,) = [each for each in messages if isinstance(each, bytes)]
    assert struct.unpack(">II", frame[:8]) == (1, 2)
    assert struct.unpack(">II", frame[24:32]) == (64, 96)
    before = messages[: messages.index(frame)]
    assert before[-2]["data"]["nodes"]["9"]["state"] == "running"
    assert history(sim, prompt_id)["outputs"] == {}


def test_any_output_can_be_simulated(sim: Simulator) -> None:
    ui: Json = {
        "gifs": [{"filename": "a.mp4", "subfolder": "video", "type": "output", "bytes": 100000}],
        "audio": [{"filename": "a.flac", "subfolder": "", "type": "temp"}],
        "result": ["mesh/a.glb", None],
        "images": [{"filename": "a.png", "subfolder": "", "type": "temp"}],
        "animated": [True],
        "text": ["words"],
    }
    prompt_id = submit(sim, output_of(ui))
    outputs = history(sim, prompt_id)["outputs"]["1"]
    del ui["gifs"][0]["bytes"]
    assert outputs == ui
    video = get(sim, "/view", params=ui["gifs"][0])
    assert (len(video.content), video.headers["Content-Type"]) == (100000, "video/mp4")
    for item in (ui["gifs"][0], ui["audio"][0]):
        assert get(sim, "/view", params=item).content.startswith(b"SIMULATED")
    png_text(get(sim, "/view", params=ui["images"][0]).content)
    job = get(sim, "/api/jobs/" + prompt_id).json()
    assert (job["outputs_count"], job["previewable_outputs_count"]) == (4, 3)
    assert job["preview_output"]["mediaType"] == "3d"


def test_save_image_websocket_runs_each_time(sim: Simulator) -> None:
    """Its IS_CHANGED returns the time."""
    prompt = txt2img()
    prompt["9"] = {"class_type": "SaveImageWebsocket", "inputs": {"images": ["8", 0]}}
    ran = []
    for _ in range(2):
        prompt_id = submit(sim, prompt)
        history(sim, prompt_id)
        ran.append(sim.executed_nodes[prompt_id])
    assert (len(ran[0]), ran[1]) == (7, ["9"])


def test_files_that_are_named_by_bare_paths_are_there(sim: Simulator) -> None:
    ui: Json = {"result": ["mesh\\a.glb", None, []], "more": ["temp/b.ply", "../c.glb", "d.png"]}
    history(sim, submit(sim, output_of(ui)))
    places = [("a.glb", "mesh", "output"), ("b.ply", "", "temp"), ("d.png", "", "output")]
    queries = [{"filename": name, "subfolder": subfolder, "type": type_} for name, subfolder, type_ in places]
    assert [get(sim, "/view", params=query).status_code for query in queries] == [200, 200, 404]


def test_pictures_are_sent_that_belong_to_no_step(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    """As ETN_SendImageWebSocket sends them: plain ones, also to a client that takes metadata."""
    ws = open_ws(sim, "me")
    ws.send(json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}))
    sent = {"source": "websocket", "content-type": "image/png", "type": "output"}
    prompt_id = submit(sim, output_of({"images": [sent, {**sent, "listed": False}]}), client_id="me")
    messages = drain(ws)
    frames = [each for each in messages if isinstance(each, bytes)]
    assert [struct.unpack(">II", frame[:8]) for frame in frames] == [(1, 2), (1, 2)]
    assert "progress" not in types(messages)
    assert history(sim, prompt_id)["outputs"]["1"] == {"images": [sent]}


def test_outputs_cannot_be_written_elsewhere(sim: Simulator) -> None:
    for prompt in (
        output_of({"images": [{"filename": "../../evil.png"}]}),
        output_of({"images": [{"filename": "evil.png", "subfolder": "../../.."}]}),
        {**txt2img(), "9": {**txt2img()["9"], "inputs": save_in("../../evil")}},
    ):
        entry = history(sim, submit(sim, prompt))
        kind, error = entry["status"]["messages"][-1]
        assert (kind, error["exception_type"]) == ("execution_error", "PermissionError")
    assert not list(Path(sim.root).parent.rglob("evil*"))


def save_in(prefix: str) -> Json:
    return {"filename_prefix": prefix, "images": ["8", 0]}


def test_files_are_counted_in_folders(sim: Simulator) -> None:
    prompt = txt2img()
    names = []
    for seed in (1, 2):
        prompt["3"]["inputs"]["seed"] = seed
        prompt["5"]["inputs"]["batch_size"] = 2
        prompt["9"]["inputs"] = save_in("deep/er/x_%width%")
        images = history(sim, submit(sim, prompt))["outputs"]["9"]["images"]
        names += [(each["subfolder"], each["filename"]) for each in images]
    assert names == [("deep/er", f"x_64_{number:05}_.png") for number in (1, 2, 3, 4)]


def test_a_picture_that_has_changed_is_loaded_again(sim: Simulator) -> None:
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
    }
    path = Path(sim.root, "input", "a.png")
    was_cached = []
    for width, seconds in ((30, 1), (30, 1), (40, 2)):
        path.write_bytes(draw(width, 20, 1, ["X"]))
        os.utime(path, (seconds, seconds))
        messages = history(sim, submit(sim, prompt))["status"]["messages"]
        was_cached += [sorted(data["nodes"]) for name, data in messages if name == "execution_cached"]
    assert was_cached == [[], ["1", "2"], []]


def test_media_nodes(sim: Simulator) -> None:
    files = {"image": ("a b.png", draw(30, 20, 1, ["X"]))}
    name = requests.post(sim.url + "/upload/image", files=files, timeout=WAIT).json()["name"]
    Path(sim.root, "input", "a.flac").write_bytes(b"sound")
    Path(sim.root, "input", "a.mp4").write_bytes(b"film")
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": name + " [input]"}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
        "3": {"class_type": "LoadAudio", "inputs": {"audio": "a.flac"}},
        "4": {
            "class_type": "SaveAudio",
            "inputs": {"audio": ["3", 0], "filename_prefix": "audio/x"},
        },
        "5": {"class_type": "LoadVideo", "inputs": {"file": "a.mp4"}},
        "6": {
            "class_type": "SaveVideo",
            "inputs": {
                "video": ["5", 0],
                "filename_prefix": "v",
                "format": "auto",
                "codec": "auto",
            },
        },
        "7": {
            "class_type": "ImageScale",
            "inputs": {
                "image": ["1", 0],
                "upscale_method": "area",
                "width": 60,
                "height": 0,
                "crop": "disabled",
            },
        },
        "8": {"class_type": "PreviewAny", "inputs": {"source": ["7", 0]}},
        "9": {
            "class_type": "ImageScale",
            "inputs": {
                "image": ["1", 0],
                "upscale_method": "area",
                "width": 0,
                "height": 60,
                "crop": "disabled",
            },
        },
        "10": {"class_type": "PreviewAny", "inputs": {"source": ["9", 0]}},
    }
    outputs = history(sim, submit(sim, prompt))["outputs"]
    assert outputs["2"]["images"][0]["type"] == "temp"
    data = get(sim, "/view", params=outputs["2"]["images"][0]).content
    assert struct.unpack(">II", data[16:24]) == (30, 20)
    entry = {"filename": "x_00001_.flac", "subfolder": "audio", "type": "output"}
    assert outputs["4"] == {"audio": [entry]}
    assert outputs["6"]["animated"] == [True]
    assert json.loads(outputs["8"]["text"][0])[:2] == [60, 40]
    assert json.loads(outputs["10"]["text"][0])[:2] == [90, 60]
    assert name in get(sim, "/object_info/LoadImage").text
    assert "a.mp4" in get(sim, "/object_info/LoadVideo").text
