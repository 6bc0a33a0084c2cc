"""--free: ComfyUI is asked to unload its models when no run of ours is left and nobody waits."""

from __future__ import annotations

import threading
from typing import Any, Callable

import requests
from served import post_elsewhere
from support import Outcome, node, run, slow_prompt, wait_until

from comfyui_runner.extras.freeing import IDLE_SECONDS, Idleness

Make = Callable[..., Any]


def go(simulator: Any, path: str, *arguments: str) -> Outcome:
    return run("--server", simulator.url, "--yes", "--json", path, *arguments)


def test_a_service_is_idle_some_time_after_its_last_run_once() -> None:
    idleness = Idleness()
    assert not idleness.is_due(False, 0.0) and not idleness.is_due(False, 100.0)  # it had no run yet
    idleness.note_run()
    assert not idleness.is_due(True, 101.0)
    assert not idleness.is_due(False, 102.0)
    assert not idleness.is_due(True, 102.0 + IDLE_SECONDS)  # another one came meanwhile
    assert not idleness.is_due(False, 110.0)
    assert not idleness.is_due(False, 109.0 + IDLE_SECONDS)
    assert idleness.is_due(False, 110.0 + IDLE_SECONDS)
    assert not idleness.is_due(False, 130.0 + IDLE_SECONDS)
    assert not idleness.had_runs


def test_after_a_run_comfyui_is_asked_to_unload_its_models(simulator: Any, workflow_file: Make) -> None:
    path = workflow_file(slow_prompt())
    assert go(simulator, path).status == 0
    assert simulator.unloads == 0
    result = go(simulator, path, "--free")
    assert result.status == 0 and simulator.unloads == 1
    assert result.event("freed")["message"] == "Asked ComfyUI to unload its models (--free)."
    assert not go(simulator, path).event("end")["wholly_cached"]  # what it had in its cache is gone too
    quiet = run("--server", simulator.url, "--yes", "-q", "--free", path)
    assert quiet.status == 0 and "unload" not in quiet.out + quiet.err


def test_a_run_that_failed_frees_the_memory_too(simulator: Any, workflow_file: Make) -> None:
    failing = {
        "1": node("EmptyImage", width=8, height=8, batch_size=1, color=0),
        "2": node("FailNode", message="out of memory", image=["1", 0]),
        "3": node("SaveImage", images=["2", 0], filename_prefix="x"),
    }
    assert go(simulator, workflow_file(failing), "--free").status == 7
    assert simulator.unloads == 1


def test_nothing_is_unloaded_while_somebody_else_waits(simulator: Any, workflow_file: Make) -> None:
    def submit_behind_ours() -> None:
        wait_until(lambda: requests.get(simulator.url + "/queue", timeout=5).json()["queue_running"])
        post_elsewhere(simulator, slow_prompt(steps=600, seconds=60.0, seed=9))

    other = threading.Thread(target=submit_behind_ours)
    other.start()
    result = go(simulator, workflow_file(slow_prompt(seconds=6.0)), "--free")
    other.join(30)
    assert result.status == 0 and simulator.unloads == 0
    notices = [event["message"] for event in result.events if event["event"] == "notice"]
    assert notices == [
        "Nothing was unloaded (--free): ComfyUI still has work (1 prompt in ComfyUI's queue).",
    ]


def test_a_server_that_does_not_take_it_fails_no_run(simulator: Any, workflow_file: Make) -> None:
    simulator.faults.http_status = {"/free": 404}
    result = go(simulator, workflow_file(slow_prompt()), "--free")
    assert result.status == 0
    (notice,) = [event["message"] for event in result.events if event["event"] == "notice"]
    assert notice.startswith("ComfyUI did not unload its models (--free): ") and "404" in notice


def test_a_prompt_that_is_refused_frees_nothing(simulator: Any, workflow_file: Make) -> None:
    assert go(simulator, workflow_file({"1": node("Nope")}), "--free").status == 6
    assert simulator.unloads == 0


def test_a_batch_asks_once_after_its_last_row(simulator: Any, workflow_file: Make, tmp_path: Any) -> None:
    manifest = str(tmp_path / "m.jsonl")
    result = go(simulator, workflow_file(slow_prompt()), "--free", "--repeat", "3", "--manifest", manifest)
    assert result.status == 0 and simulator.unloads == 1
    names = result.names()
    assert names.index("freed") > max(turn for turn, name in enumerate(names) if name == "row")


def test_the_service_asks_when_it_has_been_idle_and_at_its_end(
    simulator: Any, make_middleware: Make, monkeypatch: Any
) -> None:
    monkeypatch.setattr("comfyui_runner.extras.freeing.IDLE_SECONDS", 0.3)
    service = make_middleware(simulator, "--free")
    service.end(service.start())
    wait_until(lambda: simulator.unloads == 1, what="the unloading")
    reader = service.events()
    service.end(service.start())
    wait_until(lambda: simulator.unloads == 2, what="the unloading after the second run")
    reader.until(lambda name, data: name == "report" and data["event"] == "freed")
    monkeypatch.setattr("comfyui_runner.extras.freeing.IDLE_SECONDS", 3600.0)
    service.end(service.start())
    assert service.stop() == 0
    assert simulator.unloads == 3, service.out.getvalue()
    assert "Asked ComfyUI to unload its models" in service.out.getvalue()


def test_a_service_that_ran_nothing_unloads_nothing(simulator: Any, make_middleware: Make) -> None:
    service = make_middleware(simulator, "--free")
    assert service.stop() == 0 and simulator.unloads == 0
