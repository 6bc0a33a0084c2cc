"""The simulator's queue, cache, history and jobs."""

from __future__ import annotations

import time
import uuid
from typing import Any, Callable, List

import pytest
import requests
from simulated import WAIT, busy, drain, get, history, interrupt, slow, submit, txt2img, types, until
from websockets.sync.client import ClientConnection

from comfyui_runner.simulator import Simulator


def test_the_queue_is_a_priority_queue(sim: Simulator) -> None:
    running = busy(sim)
    texts = {}
    for name, more in (("a", {}), ("b", {}), ("c", {"front": True}), ("d", {"number": -50})):
        prompt = {"1": {"class_type": "TextOut", "inputs": {"text": name}}}
        texts[submit(sim, prompt, **more)] = name
    queue = get(sim, "/queue").json()["queue_pending"]
    assert [texts[each[1]] for each in sorted(queue)] == ["d", "c", "a", "b"]
    assert get(sim, "/prompt").json() == {"exec_info": {"queue_remaining": 5}}
    interrupt(sim, prompt_id=running)
    until(lambda: len(get(sim, "/history").json()) == 5)
    assert [texts.get(key) for key in get(sim, "/history").json()] == [None, "d", "c", "a", "b"]
    pages = {"max_items=2": ["a", "b"], "max_items=2&offset=1": ["d", "c"], "offset=4": ["b"]}
    for query, expected in pages.items():
        assert [texts[key] for key in get(sim, "/history?" + query).json()] == expected
    assert get(sim, "/history?max_items=abc").status_code == 500


def test_clear_and_delete(sim: Simulator) -> None:
    running = busy(sim)
    ids = [submit(sim, slow(seed=number)) for number in range(4)]
    requests.post(sim.url + "/queue", json={"delete": [ids[1], "unknown"]}, timeout=WAIT)
    pending = get(sim, "/queue").json()["queue_pending"]
    assert sorted(each[1] for each in pending) == sorted(set(ids) - {ids[1]})
    requests.post(sim.url + "/queue", json={"clear": True}, timeout=WAIT)
    queue = get(sim, "/queue").json()
    assert (len(queue["queue_running"]), queue["queue_pending"]) == (1, [])
    interrupt(sim)
    history(sim, running)
    requests.post(sim.url + "/history", json={"delete": [running]}, timeout=WAIT)
    assert get(sim, "/history").json() == {}
    for path in ("/queue", "/history", "/free"):
        assert requests.post(sim.url + path, data="{", timeout=WAIT).status_code == 500


def test_the_cache_holds_the_previous_prompt(sim: Simulator) -> None:
    def executed(seed: int, text: str) -> List[str]:
        prompt = txt2img(seed=seed)
        prompt["6"]["inputs"]["text"] = text
        prompt_id = submit(sim, prompt)
        history(sim, prompt_id)
        return sim.executed_nodes[prompt_id]

    assert executed(1, "a") == ["4", "5", "7", "6", "3", "8", "9"]
    assert executed(1, "a") == []
    assert executed(2, "a") == ["3", "8", "9"]
    assert executed(2, "b") == ["6", "3", "8", "9"]
    assert executed(2, "a") == ["6", "3", "8", "9"]  # the one before is forgotten
    requests.post(sim.url + "/free", json={"free_memory": True}, timeout=WAIT)
    assert len(executed(2, "a")) == 7  # the worker, which waits for prompts, is woken up for it
    assert sim.unloads == 1


def test_nodes_that_no_output_needs_do_no_harm(sim: Simulator) -> None:
    odd: List[Any] = [{}, {"inputs": [1]}, {"inputs": {"image": ["5", 0]}}, {"inputs": {"x": {}}}]
    for node in odd:
        prompt_id = submit(sim, {**slow(), "5": {"class_type": "ImageInvert", **node}})
        assert history(sim, prompt_id)["status"]["completed"]


def test_finished_nodes_stay_cached_after_an_error(sim: Simulator, open_ws: Callable[..., ClientConnection]) -> None:
    ws = open_ws(sim, "me")
    prompt = slow()
    prompt["3"] = {"class_type": "FailNode", "inputs": {"message": "boom", "image": ["1", 0]}}
    prompt["4"] = {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}}
    for known in ([], ["1", "2"]):
        submit(sim, prompt, client_id="me")
        messages = drain(ws)
        (cached,) = [each for each in messages if types([each]) == ["execution_cached"]]
        assert cached["data"]["nodes"] == known
        assert types(messages)[-3:] == ["execution_error", "status", "executing"]
    assert list(sim.executions.values()) == [1, 1]


@pytest.mark.parametrize("version", ["0.33.0", "0.3.64"])
def test_outputs_of_cached_nodes_in_history(simulate: Callable[..., Simulator], version: str) -> None:
    sim = simulate(version=version)
    prompt = {**slow(), "5": {"class_type": "TextOut", "inputs": {"text": "x"}}}
    history(sim, submit(sim, prompt))
    entry = history(sim, submit(sim, prompt, partial_execution_targets=["5"]))
    assert set(entry["outputs"]) == ({"5"} if version == "0.33.0" else {"2", "5"})


def wait_for_tick() -> None:
    """Waits until the clock has gone on: jobs are sorted by its milliseconds, and it may tick."""
    began = time.time()
    until(lambda: time.time() > began + 0.001)


def test_jobs(sim: Simulator) -> None:
    done = submit(sim, slow(), extra_data={"extra_pnginfo": {"workflow": {"id": "flow"}}})
    history(sim, done)
    failing = {**slow(seed=2), "3": {"class_type": "FailNode", "inputs": {"message": "m"}}}
    failing["3"]["inputs"]["image"] = ["1", 0]
    failing["2"]["inputs"]["images"] = ["3", 0]
    wait_for_tick()
    failed = submit(sim, failing)
    history(sim, failed)
    wait_for_tick()
    running = busy(sim)
    wait_for_tick()
    pending = submit(sim, slow(seed=3))
    by_status = {
        "pending": pending,
        "in_progress": running,
        "failed": failed,
        "completed": done,
        "cancelled": None,
    }
    for status, prompt_id in by_status.items():
        found = get(sim, "/api/jobs?status=" + status).json()["jobs"]
        assert [each["id"] for each in found] == ([prompt_id] if prompt_id else [])
    page = get(sim, "/api/jobs?limit=2&offset=1&sort_order=asc").json()
    assert [each["id"] for each in page["jobs"]] == [failed, running]
    assert page["pagination"] == {"offset": 1, "limit": 2, "total": 4, "has_more": True}
    assert get(sim, "/api/jobs?workflow_id=flow").json()["pagination"]["total"] == 1
    for query in ("status=odd", "limit=0", "limit=x", "sort_by=x", "sort_order=x", "offset=x"):
        answer = get(sim, "/api/jobs?" + query)
        assert (answer.status_code, list(answer.json())) == (400, ["error"])
    assert get(sim, "/api/jobs/" + pending).json()["workflow"]["prompt"]["1"]
    wrong: List[Any] = [{"job_ids": "x"}, {}, [], {"job_ids": [running.upper(), 3]}]
    for body in wrong:
        answer = requests.post(sim.url + "/api/jobs/cancel", json=body, timeout=WAIT)
        assert answer.status_code == 400
    assert answer.json()["invalid_ids"] == [running.upper(), "3"]
    body = {"job_ids": [pending, running, done, str(uuid.uuid4())]}
    answer = requests.post(sim.url + "/api/jobs/cancel", json=body, timeout=WAIT)
    assert answer.json() == {"cancelled": True}
    history(sim, running)
    assert get(sim, "/api/jobs/" + running).json()["status"] == "cancelled"
    assert get(sim, "/api/jobs/" + pending).status_code == 404
    assert get(sim, "/jobs").status_code == 404


def test_secrets_are_not_shown(simulate: Callable[..., Simulator]) -> None:
    sim = simulate()
    extra = {"api_key_comfy_org": "sk-1", "auth_token_comfy_org": "sk-2"}
    prompt_id = submit(sim, slow(), extra_data=extra)
    history(sim, prompt_id)
    assert "sk-" not in get(sim, "/history").text + get(sim, "/api/jobs").text
