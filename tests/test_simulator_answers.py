"""What the simulator's routes answer, whole bodies at a time, without a socket."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import pytest
from simulated import Json, Listener, accept, ask, ask_json, output_of, run_next, slow, until

from comfyui_runner.simulator.actions import Result
from comfyui_runner.simulator.bodies import Cut
from comfyui_runner.simulator.file_routes import draw_small
from comfyui_runner.simulator.folders import path_inside
from comfyui_runner.simulator.installation import MODELS, REMEMBERED_REQUESTS, Installation
from comfyui_runner.simulator.jobs import describe_job, summarize_outputs
from comfyui_runner.simulator.life import Life
from comfyui_runner.simulator.pictures import draw, measure
from comfyui_runner.simulator.prompts import Job, is_job_id, is_link
from comfyui_runner.simulator.replies import (
    TROUBLE,
    Reply,
    as_json,
    as_text,
    has_etag,
    make_etag,
    range_counts,
)

NEW, OLD = "0.33.0", "0.3.64"
FIRST, SECOND = "8648f36e-120c-4bc8-b562-45d5528b2c87", "7797d760-77c2-4007-be0f-62ab1642a9f2"


def error_of(reply: Reply) -> Any:
    assert (reply.status, reply.content_type) == (400, "application/json; charset=utf-8")
    return json.loads(reply.body)


# ------------------------------------------------------------------------------------------------
# Which route answers
# ------------------------------------------------------------------------------------------------

#: Path -> the methods that it has, and whether only newer servers have it.
METHODS: Dict[str, Any] = {
    "/ws": ("GET", False),
    "/prompt": ("GET POST", False),
    "/queue": ("GET POST", False),
    "/interrupt": ("POST", False),
    "/history": ("GET POST", False),
    "/history/x": ("GET", False),
    "/view": ("GET", False),
    "/upload/image": ("POST", False),
    "/upload/mask": ("POST", False),
    "/object_info": ("GET", False),
    "/object_info/KSampler": ("GET", False),
    "/system_stats": ("GET", False),
    "/features": ("GET", False),
    "/embeddings": ("GET", False),
    "/models": ("GET", False),
    "/models/loras": ("GET", False),
    "/extensions": ("GET", False),
    "/free": ("POST", False),
    "/api/jobs": ("GET", True),
    "/api/jobs/x": ("GET", True),
    "/api/jobs/cancel": ("GET POST", True),  # GET asks for the job of that name
    "/api/jobs/x/cancel": ("POST", True),
}
NOT_ALLOWED = as_text("405: Method Not Allowed", 405)
NOT_FOUND = Reply(404, content_type="application/octet-stream")


@pytest.mark.parametrize("version", [NEW, OLD])
def test_each_path_has_its_methods(begin: Callable[..., Life], version: str) -> None:
    life = begin(version=version)
    for path, (methods, is_new) in METHODS.items():
        paths = [path] if path.startswith("/api") else [path, "/api" + path]
        for each in paths:
            for method in ("GET", "HEAD", "POST", "PUT", "DELETE"):
                reply = ask(life, method, each, {})
                if is_new and version == OLD:
                    assert reply == NOT_FOUND, (method, each)
                    continue
                is_allowed = method.replace("HEAD", "GET") in methods.split()
                assert (reply != NOT_ALLOWED) is is_allowed, (method, each)
                assert reply != NOT_FOUND, (method, each)
    for path in ("/", "/nowhere", "/jobs", "/jobs/x", "/upload/video", "/history/x/y", "/api/api/queue"):
        assert ask(life, "GET", path) == NOT_FOUND, path


def test_a_websocket_must_be_asked_for(begin: Callable[..., Life]) -> None:
    text = 'No WebSocket UPGRADE hdr: None\n Can "Upgrade" only to "WebSocket".'
    assert ask(begin(), "GET", "/ws") == as_text(text, 400)
    assert ask(begin(), "GET", "/ws", Upgrade="h2c") == as_text(text, 400)


# ------------------------------------------------------------------------------------------------
# What a server is and has
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "system"), [(NEW, sys.platform), (OLD, os.name)])
def test_system_stats_say_that_the_device_is_simulated(begin: Callable[..., Life], version: str, system: str) -> None:
    device = {
        "name": "simulated (no GPU)",
        "type": "cpu",
        "index": None,
        "vram_total": 16 * 2**30,
        "vram_free": 8 * 2**30,
        "torch_vram_total": 16 * 2**30,
        "torch_vram_free": 8 * 2**30,
    }
    assert ask_json(begin(version=version), "GET", "/system_stats") == {
        "system": {
            "os": system,
            "ram_total": 16 * 2**30,
            "ram_free": 8 * 2**30,
            "comfyui_version": version,
            "python_version": sys.version,
            "embedded_python": False,
            "pytorch_version": "simulated",
            "argv": ["main.py"],
        },
        "devices": [device],
    }


def test_features_are_those_of_the_version(begin: Callable[..., Life]) -> None:
    old = {"supports_preview_metadata": True, "max_upload_size": 104857600}
    assert ask_json(begin(version=OLD), "GET", "/features") == old
    assert ask_json(begin(version=NEW), "GET", "/features") == {
        **old,
        "supports_model_type_tags": True,
        "node_replacements": True,
        "assets": False,
        "extension": {"manager": {"supports_v4": True}},
    }
    assert ask_json(begin(max_upload_size=5), "GET", "/features")["max_upload_size"] == 5


def test_models_are_listed_by_folder(begin: Callable[..., Life]) -> None:
    life = begin()
    folders = [
        "checkpoints",
        "configs",
        "loras",
        "vae",
        "text_encoders",
        "diffusion_models",
        "embeddings",
        "controlnet",
        "upscale_models",
    ]
    assert ask_json(life, "GET", "/models") == folders
    for folder in folders:
        assert ask_json(life, "GET", "/models/" + folder) == MODELS[folder]
    loras = ask_json(life, "GET", "/models/loras")
    assert (loras[0], loras[-1], len(loras)) == ("style_01.safetensors", "style_24.safetensors", 24)
    assert ask(life, "GET", "/models/none") == Reply(404)
    assert ask_json(life, "GET", "/embeddings") == ["easynegative"]
    assert ask_json(life, "GET", "/extensions") == []


# ------------------------------------------------------------------------------------------------
# The queue and the history
# ------------------------------------------------------------------------------------------------


def test_an_accepted_prompt_is_shown_in_the_queue_as_it_came(begin: Callable[..., Life]) -> None:
    life = begin()
    life.sockets["a"] = listener = Listener()
    body = {
        "prompt": slow(),
        "prompt_id": FIRST,
        "client_id": "me",
        "number": 7,
        "extra_data": {"extra_pnginfo": {}, "api_key_comfy_org": "k", "auth_token_comfy_org": "t"},
    }
    answer = {"prompt_id": FIRST, "number": 7.0, "node_errors": {}}
    assert ask_json(life, "POST", "/prompt", body) == answer
    assert len(listener.frames) == 1
    assert ask_json(life, "GET", "/prompt") == {"exec_info": {"queue_remaining": 1}}
    queue = ask_json(life, "GET", "/queue")
    created = queue["queue_pending"][0][3].pop("create_time")
    assert isinstance(created, int) and abs(created - time.time() * 1000) < 60000
    extra_data = {"extra_pnginfo": {}, "client_id": "me"}
    item = [7.0, FIRST, slow(), extra_data, ["2"]]
    assert queue == {"queue_running": [], "queue_pending": [item]}
    life.take()
    queue = ask_json(life, "GET", "/queue")
    assert (len(queue["queue_running"]), queue["queue_pending"]) == (1, [])
    assert ask_json(life, "GET", "/prompt") == {"exec_info": {"queue_remaining": 1}}


def test_an_older_server_shows_secrets_and_no_time(begin: Callable[..., Life]) -> None:
    life = begin(version=OLD)
    secrets = {"api_key_comfy_org": "k", "auth_token_comfy_org": "t"}
    for extra_data, expected in ((secrets, secrets), (None, {})):
        prompt_id = ask_json(life, "POST", "/prompt", {"prompt": slow(), "extra_data": extra_data})["prompt_id"]
        job = next(job for job in life.snapshot()[1] if job.prompt_id == prompt_id)
        assert job.extra_data == expected


def test_numbers_count_up_and_front_is_before_all(begin: Callable[..., Life]) -> None:
    life = begin()
    numbers: List[float] = []
    for more in ({}, {}, {"front": True}, {"front": False}, {"number": "2.5", "front": True}, {}):
        numbers.append(ask_json(life, "POST", "/prompt", {"prompt": slow(), **more})["number"])
    assert numbers == [0, 1, -2, 3, 2.5, 4]


def test_a_prompt_that_is_refused_takes_a_number_and_is_not_queued(begin: Callable[..., Life]) -> None:
    life = begin()
    no_prompt = {"type": "no_prompt", "message": "No prompt provided", "details": "No prompt provided"}
    assert error_of(ask(life, "POST", "/prompt", {})) == {
        "error": {**no_prompt, "extra_info": {}},
        "node_errors": {},
    }
    refused = error_of(ask(life, "POST", "/prompt", {"prompt": slow(), "prompt_id": "x"}))
    assert refused == {
        "error": {
            "type": "invalid_prompt_id",
            "message": "prompt_id must be a valid UUID",
            "details": "prompt_id must be a UUID string in canonical lowercase hyphenated form; "
            "omit it to let the server generate one",
            "extra_info": {},
        },
        "node_errors": {},
    }
    assert life.snapshot() == ([], [])
    assert ask_json(life, "POST", "/prompt", {"prompt": slow()})["number"] == 2


@pytest.mark.parametrize(
    ("fault", "is_queued"),
    [("500", False), ("502", False), ("unnamed", False), ("before", False), ("after", True), ("ok", True)],
)
def test_a_lost_post(begin: Callable[..., Life], fault: str, is_queued: bool) -> None:
    life = begin()
    life.installation.faults.lose_post = [fault]
    body = {"prompt": slow(), "prompt_id": FIRST}
    if fault in ("before", "after"):
        with pytest.raises(Cut):
            ask(life, "POST", "/prompt", body)
    else:
        reply = ask(life, "POST", "/prompt", body)
        expected = {
            "500": as_text("500: simulated", 500),
            "502": as_text("502: simulated", 502),
            "unnamed": as_json({"error": "invalid prompt", "node_errors": []}, 400),
            "ok": as_json({"prompt_id": FIRST, "number": 0, "node_errors": {}}),
        }
        assert reply == expected[fault]
    assert [job.prompt_id for job in life.snapshot()[1]] == ([FIRST] if is_queued else [])
    assert life.installation.faults.lose_post == []


def test_a_late_post_is_queued_later(begin: Callable[..., Life]) -> None:
    life = begin()
    life.installation.faults.lose_post = ["late:0.02", "ok"]
    begun = time.monotonic()
    with pytest.raises(Cut):
        ask(life, "POST", "/prompt", {"prompt": slow()})
    until(lambda: life.snapshot()[1])
    assert time.monotonic() - begun >= 0.015
    assert life.installation.faults.lose_post == ["ok"]


def test_the_queue_is_cleared_and_deleted_from(begin: Callable[..., Life]) -> None:
    life = begin()
    for prompt_id in "abcd":
        accept(life, slow(), prompt_id)
    life.take()

    def pending() -> List[str]:
        return sorted(job.prompt_id for job in life.snapshot()[1])

    assert ask(life, "POST", "/queue", {"delete": ["c", "unknown", "a"]}) == Reply(200)
    assert pending() == ["b", "d"]
    assert ask(life, "POST", "/queue", {"clear": False}) == Reply(200)
    assert pending() == ["b", "d"]
    assert ask(life, "POST", "/queue", {"clear": True}) == Reply(200)
    assert pending() == []
    assert life.running is not None


def test_an_interrupt_may_name_its_prompt(begin: Callable[..., Life]) -> None:
    life = begin()
    accept(life, slow(), "a")
    life.take()
    for body, expected in (({"prompt_id": "b"}, False), ({"prompt_id": "a"}, True), ({}, True), ("{", True)):
        assert ask(life, "POST", "/interrupt", body) == Reply(200)
        assert life.take_interrupt() is expected
    assert ask(life, "POST", "/interrupt") == Reply(200)
    assert life.take_interrupt() is True


def history_of(life: Life, query: str = "") -> List[str]:
    return list(ask_json(life, "GET", "/history" + query))


def test_the_history_is_shown_in_parts_and_deleted_from(begin: Callable[..., Life]) -> None:
    life = begin()
    for prompt_id in "abcde":
        life.remember(prompt_id, {"of": prompt_id})
    assert ask_json(life, "GET", "/history/c") == {"c": {"of": "c"}}
    assert ask_json(life, "GET", "/history/x") == {}
    for query, expected in (
        ("", "abcde"),
        ("?max_items=2", "de"),
        ("?max_items=9", "abcde"),
        ("?max_items=2&offset=1", "bc"),
        ("?max_items=2&offset=0", "ab"),
        ("?max_items=2&offset=-1", "de"),
        ("?max_items=0", ""),
        ("?max_items=0&offset=1", "b"),
        ("?offset=0", "abcde"),
        ("?offset=3", "de"),
        ("?offset=-2", "abcde"),
    ):
        assert history_of(life, query) == list(expected), query
    assert ask(life, "POST", "/history", {"delete": ["b", "unknown", "d"]}) == Reply(200)
    assert history_of(life) == list("ace")
    assert ask(life, "POST", "/history", {"clear": False}) == Reply(200)
    assert history_of(life) == list("ace")
    assert ask(life, "POST", "/history", {"clear": True}) == Reply(200)
    assert history_of(life) == []


@pytest.mark.parametrize("is_running", [False, True])
@pytest.mark.parametrize(
    "body, forgets, unloads",
    [
        ({}, False, 0),
        ({"unload_models": True}, False, 1),
        ({"free_memory": False}, False, 0),
        ({"free_memory": True}, True, 1),
        ({"free_memory": True, "unload_models": False}, True, 0),
    ],
)
def test_memory_is_freed_only_if_asked_for(
    begin: Callable[..., Life], body: Json, forgets: bool, unloads: int, is_running: bool
) -> None:
    """At once, or when what runs has ended."""
    life = begin()
    life.cache["signature"] = Result()
    if is_running:
        life.running = Job(0, "a", {}, {}, [])
    assert ask(life, "POST", "/free", body) == Reply(200)
    assert (not life.cache) is (forgets and not is_running)
    assert life.should_forget is (forgets and is_running)
    assert life.installation.unloads == unloads


# ------------------------------------------------------------------------------------------------
# Jobs
# ------------------------------------------------------------------------------------------------


def entry_of(prompt_id: str, end: str, created: int, start: int, stop: int, **outputs: Json) -> Json:
    """A prompt in the history, with the times of its run."""
    messages = [
        ["execution_start", {"timestamp": start}],
        ["execution_cached", {"timestamp": start + 1}],
        [end, {"timestamp": stop, "node_id": "1"}],
    ]
    extra = {"create_time": created, "extra_pnginfo": {"workflow": {"id": "flow-" + prompt_id}}}
    return {
        "prompt": [5, prompt_id, {"1": {}}, extra, ["1"]],
        "outputs": outputs,
        "status": {"messages": messages},
    }


@pytest.fixture
def busy_life(begin: Callable[..., Life]) -> Life:
    """A server where "ok", "bad" and "cut" ended, "now" runs and "next" waits."""
    life = begin()
    life.remember("ok", entry_of("ok", "execution_success", 10, 100, 150))
    life.remember("bad", entry_of("bad", "execution_error", 20, 200, 230))
    life.remember("cut", entry_of("cut", "execution_interrupted", 30, 300, 390))
    accept(life, slow(), "now", create_time=40)
    life.take()
    accept(life, slow(), "next", create_time=50)
    return life


def test_jobs_are_filtered_sorted_and_cut_into_pages(busy_life: Life) -> None:
    for query, expected, total, has_more in (
        ("", "next now cut bad ok", 5, False),
        ("?sort_order=asc", "ok bad cut now next", 5, False),
        ("?sort_by=created_at&sort_order=desc", "next now cut bad ok", 5, False),
        ("?sort_by=execution_duration&status=completed,failed,cancelled", "cut ok bad", 3, False),
        ("?sort_by=execution_duration&sort_order=asc", "next now bad ok cut", 5, False),
        ("?status=pending", "next", 1, False),
        ("?status=in_progress", "now", 1, False),
        ("?status=completed", "ok", 1, False),
        ("?status=failed", "bad", 1, False),
        ("?status=cancelled", "cut", 1, False),
        ("?status=%20Failed%20,PENDING,", "next bad", 2, False),
        ("?status=", "next now cut bad ok", 5, False),
        ("?workflow_id=flow-bad", "bad", 1, False),
        ("?workflow_id=none", "", 0, False),
        ("?limit=2", "next now", 5, True),
        ("?limit=5", "next now cut bad ok", 5, False),
        ("?limit=1&offset=4", "ok", 5, False),
        ("?limit=1&offset=3", "bad", 5, True),
        ("?offset=3", "bad ok", 5, False),
        ("?offset=-3", "next now cut bad ok", 5, False),
        ("?offset=9", "", 5, False),
    ):
        answer = ask_json(busy_life, "GET", "/api/jobs" + query)
        assert [job["id"] for job in answer["jobs"]] == expected.split(), query
        pairs = [pair.split("=") for pair in query.strip("?").split("&") if "=" in pair]
        asked: Dict[str, str] = dict(pairs)
        assert answer["pagination"] == {
            "offset": max(0, int(asked.get("offset", 0))),
            "limit": int(asked["limit"]) if "limit" in asked else None,
            "total": total,
            "has_more": has_more,
        }, query


def test_a_question_for_jobs_that_is_wrong_is_refused(begin: Callable[..., Life]) -> None:
    numbers, words = "limit and offset must be integers", "invalid status, sort_by or sort_order"
    for query, error in (
        ("limit=x", numbers),
        ("offset=1.5", numbers),
        ("status=odd", words),
        ("status=pending,odd", words),
        ("sort_by=x", words),
        ("sort_order=x", words),
        ("limit=0", "limit must be a positive integer"),
        ("limit=-1", "limit must be a positive integer"),
    ):
        assert error_of(ask(begin(), "GET", "/api/jobs?" + query)) == {"error": error}, query


def test_a_job_says_what_became_of_it(busy_life: Life) -> None:
    jobs = {job["id"]: job for job in ask_json(busy_life, "GET", "/api/jobs")["jobs"]}
    counts = {"outputs_count": 0, "previewable_outputs_count": 0}
    assert jobs["next"] == {"id": "next", "status": "pending", "priority": 1, "create_time": 50, **counts}
    assert jobs["now"] == {"id": "now", "status": "in_progress", "priority": 0, "create_time": 40, **counts}
    times = {"execution_start_time": 200, "execution_end_time": 230}
    assert jobs["bad"] == {
        "id": "bad",
        "status": "failed",
        "priority": 5,
        "create_time": 20,
        **times,
        **counts,
        "execution_error": {"timestamp": 230, "node_id": "1"},
        "workflow_id": "flow-bad",
    }
    assert (jobs["ok"]["status"], jobs["cut"]["status"]) == ("completed", "cancelled")
    assert "execution_error" not in jobs["cut"]


def test_one_job_is_shown_with_its_prompt_and_its_outputs(busy_life: Life) -> None:
    image = {"filename": "a.png", "subfolder": "", "type": "output"}
    entry = entry_of("two", "execution_success", 60, 1, 2, **{"9": {"images": [image]}})
    busy_life.remember("two", entry)
    assert ask_json(busy_life, "GET", "/api/jobs/two") == {
        "id": "two",
        "status": "completed",
        "priority": 5,
        "create_time": 60,
        "execution_start_time": 1,
        "execution_end_time": 2,
        "workflow_id": "flow-two",
        "outputs_count": 1,
        "previewable_outputs_count": 1,
        "preview_output": {**image, "nodeId": "9", "mediaType": "images"},
        "workflow": {"prompt": {"1": {}}, "extra_data": entry["prompt"][3]},
        "outputs": {"9": {"images": [image]}},
        "execution_status": entry["status"],
    }
    pending = ask_json(busy_life, "GET", "/api/jobs/next")
    assert pending["workflow"] == {"prompt": slow(), "extra_data": {"create_time": 50}}
    assert not {"outputs", "execution_status", "workflow_id", "preview_output"} & set(pending)
    assert ask(busy_life, "GET", "/api/jobs/x") == as_json({"error": "Job not found"}, 404)
    accept(busy_life, slow(), "two", create_time=70)
    assert ask_json(busy_life, "GET", "/api/jobs/two")["status"] == "completed"  # the last one


def test_a_job_is_cancelled_where_it_is(busy_life: Life) -> None:
    for prompt_id, expected in (("next", True), ("next", False), ("ok", False), ("now", True), ("x", False)):
        reply = ask_json(busy_life, "POST", f"/api/jobs/{prompt_id}/cancel")
        assert reply == {"cancelled": expected}, prompt_id
    assert busy_life.snapshot()[1] == []
    assert busy_life.take_interrupt() is True


def test_jobs_are_cancelled_together(begin: Callable[..., Life]) -> None:
    life = begin()
    url = "/api/jobs/cancel"
    assert error_of(ask(life, "POST", url, "{")) == {"error": "Request body must be valid JSON"}
    odd: List[Any] = [{}, [], 7, {"job_ids": "x"}, {"job_ids": None}]
    for wrong in odd:
        assert error_of(ask(life, "POST", url, wrong)) == {"error": "job_ids must be a list"}
    invalid = {"job_ids": [FIRST, FIRST.upper(), 3, None, ""]}
    assert error_of(ask(life, "POST", url, invalid)) == {
        "error": "job_ids contains invalid id(s)",
        "invalid_ids": [FIRST.upper(), "3", "None", ""],
    }
    accept(life, slow(), FIRST)
    for ids, expected in (([], False), ([SECOND], False), ([SECOND, FIRST, SECOND], True), ([FIRST], False)):
        assert ask_json(life, "POST", url, {"job_ids": ids}) == {"cancelled": expected}
    assert life.snapshot()[1] == []


def file_named(name: str, file_type: str = "output", **more: Any) -> Json:
    return {"filename": name, "type": file_type, "subfolder": "", **more}


@pytest.mark.parametrize(
    ("media", "item", "counts", "shown"),
    [
        ("images", file_named("a.png"), (1, 1), file_named("a.png")),
        ("images", file_named("a.unknown"), (1, 1), file_named("a.unknown")),
        ("video", file_named("a.unknown"), (1, 1), file_named("a.unknown")),
        ("audio", file_named("a.unknown"), (1, 1), file_named("a.unknown")),
        ("3d", file_named("a.unknown"), (1, 1), file_named("a.unknown")),
        ("text", file_named("a.unknown"), (1, 1), file_named("a.unknown")),
        ("gifs", file_named("a.unknown"), (1, 0), None),
        ("gifs", file_named("a.mp4", format="video/h264"), (1, 1), file_named("a.mp4", format="video/h264")),
        ("gifs", file_named("a.x", format="audio/x"), (1, 1), file_named("a.x", format="audio/x")),
        ("gifs", file_named("a.x", format="image/x"), (1, 0), None),
        ("files", file_named("a.MD"), (1, 1), file_named("a.MD")),
        ("files", file_named("a.json"), (1, 1), file_named("a.json")),
        ("files", file_named("a.glb"), (1, 1), file_named("a.glb")),
        ("files", {}, (1, 0), None),
        ("result", "mesh/A.GLB", (1, 1), file_named("mesh/A.GLB", mediaType="3d")),
        ("result", "mesh/a.ply", (0, 0), None),
        ("result", 7, (0, 0), None),
        ("text", "words", (0, 0), {"content": "words"}),
        ("text", 7, (0, 0), {"content": "7"}),
        ("text", "x" * 1024, (0, 0), {"content": "x" * 1024}),
        ("text", "x" * 1025, (0, 0), {"content": "x" * 1024, "truncated": True}),
        ("animated", file_named("a.png"), (0, 0), None),
    ],
)
def test_which_output_a_job_shows(media: str, item: Any, counts: Any, shown: Optional[Json]) -> None:
    expected = {"outputs_count": counts[0], "previewable_outputs_count": counts[1]}
    if shown is not None:
        expected["preview_output"] = {"nodeId": "1", "mediaType": media, **shown}
    assert summarize_outputs({"1": {media: [item]}}) == expected
    assert summarize_outputs({"1": {media: item, "flag": True}})["outputs_count"] == 0  # no list


def test_a_job_without_a_workflow_has_no_id_of_one() -> None:
    odd: List[Json] = [{}, {"extra_pnginfo": None}, {"extra_pnginfo": {"workflow": None}}, {"extra_pnginfo": {}}]
    for extra in odd:
        job = describe_job([1, "p", {}, {**extra, "create_time": 3}, []], "pending", None, False)
        assert "workflow_id" not in job
    extra = {"extra_pnginfo": {"workflow": {"id": 0}}}
    assert describe_job([1, "p", {}, extra, []], "pending", None, False)["workflow_id"] == 0
    assert describe_job([1, "p", {}, {}, []], "pending", None, False)["create_time"] is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (FIRST, True),
        (FIRST.upper(), False),
        (FIRST.replace("-", ""), False),
        ("{" + FIRST + "}", False),
        ("x", False),
        ("", False),
        (7, False),
        (None, False),
    ],
)
def test_what_a_newer_server_takes_as_an_id(value: Any, expected: bool) -> None:
    assert is_job_id(value) is expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["1", 0], True),
        (["2", 0], False),
        ([1, 0], False),
        (["1"], False),
        (["1", 0, 0], False),
        (("1", 0), False),
        ("1", False),
    ],
)
def test_what_is_a_link(value: Any, expected: bool) -> None:
    assert is_link(value, {"1": {}, 1: {}}) is expected  # type: ignore[dict-item]


# ------------------------------------------------------------------------------------------------
# Files
# ------------------------------------------------------------------------------------------------


def write(life: Life, folder: str, name: str, content: bytes = b"content") -> str:
    path = Path(life.installation.folder(folder), name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return os.path.realpath(path)


def test_a_file_is_served_as_what_it_is(begin: Callable[..., Life]) -> None:
    octets = "application/octet-stream"
    old_types = ("image/svg+xml", "text/xml", "application/xml")
    for version, (svg, xml, xsl) in ((NEW, (octets, octets, octets)), (OLD, old_types)):
        life = begin(version=version)
        for name, media_type in (
            ("a.png", "image/png"),
            ("a.webp", "image/webp"),
            ("a.mp4", "video/mp4"),
            ("a.flac", "audio/flac"),
            ("a.glb", "model/gltf-binary"),
            ("a.txt", "text/plain"),
            ("a.json", "application/json"),
            ("a.unknown", "application/octet-stream"),
            ("a.html", "application/octet-stream"),
            ("a.css", "application/octet-stream"),
            ("a.js", "application/octet-stream"),
            ("a.svg", svg),
            ("a.xml", xml),
            ("a.xsl", xsl),
        ):
            path = write(life, "output", name)
            headers = (("Content-Disposition", f'filename="{name}"'),)
            expected = Reply(200, content_type=media_type, headers=headers, path=path)
            assert ask(life, "GET", "/view?filename=" + name) == expected, (version, name)


def test_a_file_is_looked_for_where_its_name_says(begin: Callable[..., Life]) -> None:
    life = begin()
    paths = {folder: write(life, folder, f"{folder}.txt") for folder in ("input", "output", "temp")}
    paths["deep"] = write(life, "output", "x/y/deep.txt")
    for query, expected in (
        ("filename=output.txt", "output"),
        ("filename=output.txt&type=output", "output"),
        ("filename=input.txt&type=input", "input"),
        ("filename=temp.txt&type=temp", "temp"),
        ("filename=temp.txt%20[temp]&type=input", "temp"),
        ("filename=input.txt[input]", "input"),
        ("filename=deep.txt&subfolder=x/y", "deep"),
        ("filename=z/deep.txt&subfolder=x/y", "deep"),
        ("filename=x/y/deep.txt", 404),
        ("filename=input.txt", 404),
        ("filename=x", 404),
        ("type=output", 404),
        ("filename=", 400),
        ("filename=/output.txt", 400),
        ("filename=../output.txt", 400),
        ("filename=a..b", 400),
        ("filename=output.txt&type=models", 400),
        ("filename=output.txt&type=", 400),
        ("filename=output.txt&subfolder=..", 403),
        ("filename=output.txt&subfolder=/", 403),
    ):
        reply = ask(life, "GET", "/view?" + query)
        if isinstance(expected, int):
            assert reply == Reply(expected), query
        else:
            assert (reply.status, reply.path) == (200, paths[expected]), query


def test_a_page_comes_in_place_of_a_file_as_often_as_asked(begin: Callable[..., Life]) -> None:
    life = begin()
    write(life, "output", "a.png")
    life.installation.faults.web_pages = ["text/html", "text/plain"]
    page = b"<html><title>Please wait</title></html>"
    assert ask(life, "GET", "/view?filename=a.png") == Reply(200, page, "text/html")
    assert ask(life, "GET", "/view?filename=a.png") == Reply(200, page, "text/plain")
    assert ask(life, "GET", "/view?filename=a.png").path


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 512), (512, 512)),
        ((513, 100), (512, 99)),
        ((100, 1024), (50, 512)),
        ((1024, 100), (512, 50)),
        ((2000, 1), (512, 1)),
        ((1, 2000), (1, 512)),
        ((10, 20), (10, 20)),
    ],
)
def test_a_preview_is_as_large_as_it_may_be(begin: Callable[..., Life], size: Any, expected: Any) -> None:
    life = begin()
    path = write(life, "output", "a.png", draw(size[0], size[1], 1, ["X"]))
    reply = ask(life, "GET", "/view?filename=a.png&preview=webp;90")
    picture = draw(expected[0], expected[1], measure(path).seed, ["SIMULATED", "PREVIEW"])
    headers = (("Content-Disposition", 'filename="a.png"'),)
    assert reply == Reply(200, picture, "image/png", headers)
    assert draw_small(path) == picture


def test_only_images_have_previews(begin: Callable[..., Life]) -> None:
    life = begin()
    write(life, "output", "a.txt")
    assert ask(life, "GET", "/view?filename=a.txt&preview=") == TROUBLE
    assert (
        Reply(500, b"500 Internal Server Error\n\nServer got itself in trouble", "text/plain; charset=utf-8") == TROUBLE
    )


def upload(life: Life, what: str, *fields: str) -> Reply:
    """Upload a form; a field is 'name=text', or 'name@filename=content'."""
    form = ""
    for field in fields:
        name, _, content = field.partition("=")
        name, _, filename = name.partition("@")
        more = f'; filename="{filename}"' if filename else ""
        form += f'--B\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n{content}\r\n'
    return ask(life, "POST", "/upload/" + what, form + "--B--\r\n", Content_Type="Multipart/Form-Data; boundary=B")


def stored(name: str, subfolder: str = "", folder: str = "input") -> Reply:
    return as_json({"name": name, "subfolder": subfolder, "type": folder})


def test_an_upload_is_stored_where_its_form_says(begin: Callable[..., Life]) -> None:
    life = begin()
    root = Path(life.installation.root)
    for more, reply, path in (
        ((), stored("a.bin"), "input/a.bin"),
        (("type=temp",), stored("a.bin", "", "temp"), "temp/a.bin"),
        (("type=output", "subfolder=x/y"), stored("a.bin", "x/y", "output"), "output/x/y/a.bin"),
    ):
        assert upload(life, "image", "image@a.bin=" + path, *more) == reply
        assert (root / path).read_text() == path
    assert not list(root.glob(".upload-*"))


def test_an_upload_gets_a_free_name_unless_it_overwrites(begin: Callable[..., Life]) -> None:
    life = begin()
    path = Path(life.installation.folder("input"), "a.png")
    for content, more, name in (
        ("1", [], "a.png"),
        ("2", [], "a (1).png"),
        ("1", [], "a.png"),
        ("2", ["overwrite=false"], "a (1).png"),
        ("3", ["overwrite=True"], "a (2).png"),
        ("4", ["overwrite=true"], "a.png"),
        ("5", ["overwrite=1"], "a.png"),
    ):
        assert upload(life, "image", "image@a.png=" + content, *more) == stored(name)
    assert path.read_text() == "5"
    assert sorted(each.name for each in path.parent.iterdir()) == ["a (1).png", "a (2).png", "a.png"]


def test_an_upload_that_is_wrong_is_refused_and_leaves_nothing(begin: Callable[..., Life]) -> None:
    life = begin()
    file = "image@a.bin=x"
    for fields in (["other@a.bin=x"], ["type=input"], [file, "subfolder=.."], ["image@../a.bin=x"]):
        assert upload(life, "image", *fields) == Reply(400), fields
    with pytest.raises(ValueError, match="no such folder: models"):
        upload(life, "image", file, "type=models")
    with pytest.raises(TypeError, match="the image is a text field"):
        upload(life, "image", "image=text")
    for content_type in ("multipart/form-data", "text/plain; boundary=B", ""):
        assert ask(life, "POST", "/upload/image", "--B--", Content_Type=content_type) == Reply(400)
    assert not [path for path in Path(life.installation.root).rglob("*") if path.is_file()]


def test_a_mask_is_stored_as_its_original_with_the_mask(begin: Callable[..., Life]) -> None:
    life = begin()
    originals = {
        '{"filename": "o.png"}': write(life, "output", "o.png", draw(30, 20, 1, ["O"])),
        '{"filename": "i.png", "type": "input"}': write(life, "input", "i.png", draw(31, 21, 1, ["I"])),
        '{"filename": "i.png [input]"}': write(life, "input", "i.png", draw(31, 21, 1, ["I"])),
        '{"filename": "s.png", "subfolder": "x"}': write(life, "output", "x/s.png", draw(32, 22, 1, ["S"])),
    }
    masked = Path(life.installation.folder("input"), "m.png")
    for ref, source in originals.items():
        fields = ["image@m.png=mask", "original_ref=" + ref, "overwrite=true"]
        assert upload(life, "mask", *fields) == stored("m.png")
        image = measure(source)
        assert masked.read_bytes() == draw(image.width, image.height, image.seed, ["SIMULATED", "MASKED"])
        masked.unlink()
    for ref in ('{"filename": "none.png"}', '{"filename": "../o.png"}', '{"filename": "o.png", "subfolder": ".."}'):
        assert upload(life, "mask", "image@m.png=mask", "original_ref=" + ref) == stored("m.png")
        assert not masked.exists()
    with pytest.raises(KeyError):
        upload(life, "mask", "image@m.png=mask")


# ------------------------------------------------------------------------------------------------
# An installation
# ------------------------------------------------------------------------------------------------


def test_an_installation_has_the_defaults_of_a_server() -> None:
    made = Installation()
    assert (made.version, made.host, made.port, made.url) == ("0.33.0", "127.0.0.1", 0, "http://127.0.0.1:0")
    assert (made.is_temporary, made.root, made.base_path) == (True, "", "")
    assert (made.step_seconds, made.token, made.previews) == (0.0, None, False)
    assert (made.max_upload_size, made.asked.maxlen, made.received.maxlen) == (104857600, 10000, 10000)
    assert REMEMBERED_REQUESTS == 10000
    assert (made.executions, made.executed_nodes, made.requests) == ({}, {}, [])
    made.log("nothing happens")


@pytest.mark.parametrize(
    ("given", "base_path", "url"),
    [
        ("", "", "http://[::1]:5"),
        ("comfy", "/comfy", "http://[::1]:5/comfy"),
        ("/a/b/", "/a/b", "http://[::1]:5/a/b"),
        ("/", "", "http://[::1]:5"),
    ],
)
def test_the_address_of_an_installation(given: str, base_path: str, url: str) -> None:
    made = Installation(host="::1", port=5, base_path=given, root="x")
    assert (made.base_path, made.url, made.is_temporary, made.root) == (base_path, url, False, "x")


def test_a_loader_finds_files_in_any_folder_and_none_outside(begin: Callable[..., Life]) -> None:
    made = begin().installation
    for name, folder, rest in (
        ("a.png", "input", "a.png"),
        ("x/a.png", "input", "x/a.png"),
        ("a.png [output]", "output", "a.png"),
        ("a.png [temp]", "temp", "a.png"),
    ):
        assert made.annotated(name) == path_inside(made.folder(folder), rest)
    assert made.annotated("../a.png") == ""
    assert made.folder("output") == os.path.join(made.root, "output")
    assert made.folder("output", "x") == path_inside(made.folder("output"), "x")


def test_the_options_of_a_loader_are_its_models_or_its_files(begin: Callable[..., Life]) -> None:
    life = begin()
    for name in ("b.png", "a.webp", "c.mp4", "d.flac", "e.txt", "image"):
        write(life, "input", name)
    options = life.installation.options
    assert options("checkpoints") == MODELS["checkpoints"]
    assert (options("image"), options("video"), options("audio")) == (["a.webp", "b.png"], ["c.mp4"], ["d.flac"])


def test_saved_files_are_numbered(begin: Callable[..., Life]) -> None:
    life = begin()
    for name in ("a_00007_.png", "a_x_.png", "ba_00099_.png", "a_00009.png", "b.c_00003_.png"):
        write(life, "output", name)
    save = life.installation.save
    assert save("output", "a", b"8") == file_named("a_00008_.png")
    assert save("output", "a", b"9", ".flac") == file_named("a_00009_.flac")
    assert save("output", "b.c", b"") == file_named("b.c_00004_.png")
    assert save("output", "bxc", b"") == file_named("bxc_00001_.png")
    assert save("temp", "x/./y/../a", b"1") == {**file_named("a_00001_.png", "temp"), "subfolder": "x"}
    assert Path(life.installation.folder("output"), "a_00008_.png").read_bytes() == b"8"
    with pytest.raises(PermissionError):
        save("output", "../a", b"")


# ------------------------------------------------------------------------------------------------
# Conditional answers
# ------------------------------------------------------------------------------------------------


def test_an_etag_is_of_time_and_size() -> None:
    assert make_etag(255, 4096) == '"1000-ff"'


@pytest.mark.parametrize(
    ("header", "expected"),
    [("", False), ("*", True), (" * ", True), ('"a"', True), ('"b"', False), ('"b", W/"a"', True), ("a", False)],
)
def test_whether_a_client_has_the_file(header: str, expected: bool) -> None:
    assert has_etag(header, '"a"') is expected


@pytest.mark.parametrize(
    ("if_range", "expected"),
    [
        ("", True),
        ('"etag"', True),
        ("Thu, 01 Jan 1970 00:01:40 GMT", True),  # 100 s: not modified since
        ("Thu, 01 Jan 1970 00:01:39 GMT", False),
        ("Thu, 01 Jan 1970 00:01:41 GMT", True),
    ],
)
def test_whether_a_range_counts(if_range: str, expected: bool) -> None:
    assert range_counts(if_range, 100.9) is expected


def test_a_run_is_found_in_the_answers(begin: Callable[..., Life]) -> None:
    life = begin()
    accept(life, output_of({"text": ["x"]}), FIRST, create_time=1)
    run_next(life)
    (entry,) = ask_json(life, "GET", "/history").values()
    assert ask_json(life, "GET", "/history/" + FIRST) == {FIRST: entry}
    job = ask_json(life, "GET", "/api/jobs/" + FIRST)
    assert (job["status"], job["preview_output"]) == (
        "completed",
        {"content": "x", "nodeId": "1", "mediaType": "text"},
    )
