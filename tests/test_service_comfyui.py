"""Stories of continuous mode: ComfyUI comes and goes."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import Any

import pytest
from served import LOADER, TEXTS, Make, Middleware
from slow_proxy import HurriedLoop
from support import FAST, node, script, slow_prompt, wait_until

from comfyui_runner.simulator.nodes import NODES


def test_a_run_does_not_wait_for_a_comfyui_that_has_just_gone(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator)
    simulator.crash()
    began = time.monotonic()
    answer = service.get("/queue")
    assert answer.status == 503 and "retry-after" in answer.headers
    assert time.monotonic() - began < FAST.give_up / 2


def test_comfyui_may_come_later(make_middleware: Make, simulator: Any) -> None:
    simulator.crash()
    service = make_middleware(simulator, prompt=TEXTS)
    assert "Listening anyway" in service.out.getvalue()
    assert service.get("/health").json == {"status": "ok", "comfyui": False}
    for answer in (service.get("/queue"), service.post("/prompt", {"prompt": slow_prompt()}), service.upload(),
                   service.get("/view?filename=a.png")):  # fmt: skip
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) > 0
    edit = service.post("/update/inputs", {"node_id": "5", "inputs": {"steps": -7}})
    assert (edit.status, edit.json["checked"]) == (200, False)
    assert service.post("/update/prompt", {"type": "positive", "text": "a"}).json["checked"] is False
    assert service.call("PUT", "/workflow", slow_prompt(steps=1, seconds=0.0)).json["checked"] is False
    assert service.get("/workflow").status == 200
    simulator.revive()
    wait_until(lambda: service.get("/health").json["comfyui"], what="ComfyUI's return")
    assert service.end(service.start())["phase"] == "success"
    assert service.post("/update/inputs", {"node_id": "1", "inputs": {"steps": -7}}).status == 400


def test_what_was_known_of_comfyui_is_used_while_it_is_away(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator, prompt=TEXTS)
    assert service.get("/workflow").status == 200
    simulator.crash()
    wait_until(lambda: not service.get("/health").json["comfyui"], what="the loss")
    assert service.post("/update/inputs", {"node_id": "5", "inputs": {"steps": -7}}).status == 400
    assert service.post("/update/inputs", {"node_id": "5", "inputs": {"steps": 7}}).json["checked"] is True


@pytest.mark.long
def test_the_loss_of_a_steady_comfyui_is_seen_soon(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator)
    wait_until(lambda: service.service.session.connected, what="the WebSocket")
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began > 2.5)  # all is well: the next check is due in more than 10 s
    simulator.crash()
    wait_until(lambda: not service.get("/health").json["comfyui"], 8.0, "the loss")


def test_a_run_that_a_restart_lost_is_reported_and_the_service_goes_on(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator, prompt=slow_prompt(steps=10, seconds=30.0))
    prompt_id = service.start()
    service.running(prompt_id)
    simulator.restart()
    shown = service.end(prompt_id)
    assert shown["phase"] == "lost"
    assert service.post("/update/inputs", {"node_id": "1", "inputs": {"seconds": 0.0}}).status == 200
    wait_until(lambda: service.get("/health").json["comfyui"])
    assert service.end(service.start())["phase"] == "success"


def test_nodes_and_files_that_are_new_after_a_restart_are_seen(
    make_middleware: Make, simulator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = make_middleware(simulator, prompt=LOADER)
    newer = {"1": node("NewerNode", images=["2", 0]), "2": node("EmptyImage", width=8, height=8, batch_size=1, color=0)}
    assert service.call("PUT", "/workflow", newer).status == 400
    simulator.crash()
    wait_until(lambda: not service.get("/health").json["comfyui"], what="the loss")
    monkeypatch.setitem(NODES, "NewerNode", NODES["SaveImageWebsocket"])
    simulator.revive()
    wait_until(lambda: service.get("/health").json["comfyui"], what="the return")
    assert service.call("PUT", "/workflow", newer).status == 200


def test_without_a_websocket_comfyui_is_not_asked_without_end(make_middleware: Make, simulator: Any) -> None:
    simulator.faults.http_status["/ws"] = 403
    service = make_middleware(simulator)
    assert service.end(service.start())["phase"] == "success"
    simulator.asked.clear()
    service.get("/runs/none")
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began > 1.0)
    asked = [path for _, path in simulator.requests if path == "/system_stats"]
    assert len(asked) <= 2


def test_definitions_are_kept_while_comfyui_answers(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator, prompt=TEXTS)
    service.get("/workflow")
    backend = service.service.backend
    known = dict(backend.object_info)
    assert known
    asyncio.run_coroutine_threadsafe(backend.check(), service.inside["loop"]).result(10.0)
    assert backend.object_info == known


def test_a_slow_comfyui_does_not_hold_the_events_up(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator, prompt=TEXTS)
    service.get("/workflow")
    simulator.faults.http_hang["/object_info"] = 1.5
    simulator.asked.clear()
    edit = threading.Thread(
        target=service.post, args=("/update/inputs", {"node_id": "5", "inputs": {"sampler_name": "unknown"}})
    )
    edit.start()
    wait_until(lambda: any(path.startswith("/object_info") for _, path in simulator.requests), what="the question")
    began = time.monotonic()
    ticked = threading.Event()
    service.inside["loop"].call_soon_threadsafe(service.service.report, None, {"event": "notice", "message": "x"})
    service.inside["loop"].call_soon_threadsafe(ticked.set)
    ticked.wait(5.0)
    waited = time.monotonic() - began
    simulator.faults.http_hang.clear()
    edit.join()
    assert waited < 1.0, "the loop stood still for %.1f s" % waited


def test_a_single_failure_of_comfyui_is_an_accident(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator)
    simulator.faults.http_status["/system_stats"] = 503
    asked = asyncio.run_coroutine_threadsafe(service.service.check_comfyui(), service.inside["loop"])
    asked.result(10)
    assert service.get("/status").json["comfyui"]["connected"]
    asyncio.run_coroutine_threadsafe(service.service.check_comfyui(), service.inside["loop"]).result(10)
    assert not service.get("/status").json["comfyui"]["connected"]


def test_every_server_is_tried_until_one_answers(
    make_simulator: Make, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = make_simulator(), make_simulator()
    monkeypatch.setattr(script, "DEFAULT_SERVERS", (first.url, second.url))
    first.crash()
    second.crash()
    path = tmp_path / "held.json"
    path.write_text(json.dumps(slow_prompt(steps=1, seconds=0.0)), encoding="utf-8")
    service = Middleware([str(path)], {}, FAST)
    try:
        assert service.get("/queue").status == 503
        second.revive()
        wait_until(lambda: service.get("/status").json["comfyui"]["connected"], what="the second server")
        assert service.get("/status").json["comfyui"]["url"] == second.url
        assert service.end(service.start())["phase"] == "success"
    finally:
        assert service.stop() == 0


@pytest.mark.long
@pytest.mark.parametrize("route", ["GET /system_stats", "GET /features"])
def test_a_comfyui_that_trickles_at_the_start_is_asked_again(
    route: str, make_slow: Make, simulator: Any, workflow_file: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = make_slow(simulator)
    path = workflow_file(slow_prompt(steps=1, seconds=0.0))
    simulator.crash()
    monkeypatch.setattr(asyncio, "new_event_loop", lambda: HurriedLoop(10.0))  # it waits for 12 s
    service = Middleware(["--server", proxy.url, path], {}, FAST._replace(read=5.0, connect=2.0))
    try:
        proxy.trickling = {route: 1}
        simulator.revive()
        wait_until(lambda: proxy.trickled, 30.0, "the look")
        wait_until(lambda: service.get("/status").json["comfyui"]["connected"], 30.0, "the connection to ComfyUI")
    finally:
        assert service.stop() == 0


@pytest.mark.parametrize("body", ["bomb", "endless", "drip"])
def test_definitions_without_an_end_hold_no_request_up(body: str, make_middleware: Make, simulator: Any) -> None:
    """What is not known of a node is not checked."""
    limits = FAST._replace(connect=0.5, read=0.5, post=0.5, answer_size=1 << 20, object_info_size=1 << 20)
    service = make_middleware(simulator, limits=limits)
    backend = service.service.backend
    wait_until(lambda: {"SlowProgress", "SaveImage"} <= set(backend.object_info), what="the first look")
    simulator.faults.http_status = {"/object_info": 200}
    simulator.faults.bodies = {"/object_info": body}
    backend.object_info = {}
    edit = service.post("/update/inputs", {"node_id": "1", "inputs": {"steps": 3}})
    assert (edit.status, edit.json["checked"]) == (200, False)
    graph = {"nodes": [{"id": 1, "type": "EmptyImage", "widgets_values": [8, 8, 1, 0]}], "links": [], "version": 0.4}
    refused = service.call("PUT", "/workflow", graph)
    assert refused.status == 503
    assert "to GET /object_info" in refused.json["error"]["message"]
    assert service.end(service.start())["phase"] == "success"
