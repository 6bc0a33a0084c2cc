"""ComfyUI before 0.3.57 is refused before anything is asked; continuous mode waits until it is updated."""

from __future__ import annotations

import os
import threading
from typing import Any, Callable, List

import pytest
from served import Middleware
from support import FAST, ROOT, Outcome, run, script, slow_prompt, wait_until

from comfyui_runner.errors import ExitStatus
from comfyui_runner.simulator import Simulator

Make = Callable[..., Any]


def run_at(simulator: Simulator, path: str, *arguments: str, **options: Any) -> Outcome:
    return run("--server", simulator.url, "--json", path, *arguments, **options)


@pytest.mark.parametrize("version", ["0.3.56", "0.3.50", "0.3.40", "0.0.0"])
def test_an_older_comfyui_is_refused_before_the_question(
    version: str, make_simulator: Make, workflow_file: Make
) -> None:
    simulator = make_simulator(version=version)
    result = run_at(simulator, workflow_file(slow_prompt()), answers="y\n")
    assert result.status == ExitStatus.NO_SERVER
    assert f"ComfyUI {version} at {simulator.url} is too old: update it to 0.3.57" in result.err
    assert "git pull" in result.err and "Start ComfyUI" not in result.err
    assert "Run it?" not in result.out + result.err
    assert {path for _, path in simulator.requests} == {"/system_stats"}


def test_one_that_is_too_old_is_named_though_others_do_not_answer(
    make_simulator: Make, workflow_file: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What helps is an update, and not to start ComfyUI."""
    simulator = make_simulator(version="0.3.50")
    monkeypatch.setattr(script, "DEFAULT_SERVERS", ("http://127.0.0.1:1", simulator.url))
    result = run("--yes", workflow_file(slow_prompt()))
    assert result.status == ExitStatus.NO_SERVER
    assert "ComfyUI 0.3.50 at" in result.err and "No ComfyUI answers" not in result.err


@pytest.mark.parametrize("version", ["0.3.57", "0.3.64", "0.33.0"])
def test_from_0_3_57_on_a_workflow_runs(version: str, make_simulator: Make, workflow_file: Make) -> None:
    result = run_at(make_simulator(version=version), workflow_file(slow_prompt()), "--yes")
    assert result.status == ExitStatus.OK
    assert "notice" not in result.names()


def test_a_version_that_cannot_be_read_is_warned_about(make_simulator: Make, workflow_file: Make) -> None:
    result = run_at(make_simulator(version="unknown"), workflow_file(slow_prompt()), "--yes")
    assert result.status == ExitStatus.OK
    assert "does not report its version" in result.event("notice")["message"]


def test_in_continuous_mode_an_older_comfyui_counts_as_not_connected(
    make_simulator: Make, make_middleware: Make
) -> None:
    old = make_simulator(version="0.3.50")
    service = make_middleware(old.url)
    notice = f"ComfyUI 0.3.50 at {old.url} is too old: update it to 0.3.57"
    wait_until(lambda: notice in service.out.getvalue(), what="the notice")
    assert service.get("/status").json["comfyui"]["connected"] is False
    wait_until(lambda: notice in service.get("/queue").json["error"]["message"], what="the reason")
    assert service.get("/queue").status == 503
    assert ("POST", "/prompt") not in old.requests
    assert len(old.requests) >= 2  # it was asked at the start, and by the service
    assert len([line for line in service.out.getvalue().splitlines() if line.startswith(notice)]) == 1


@pytest.mark.parametrize("comes_from_a_pipe", [False, True])
def test_a_workflow_that_needs_comfyui_waits_for_an_update_and_says_so_once(
    make_simulator: Make, monkeypatch: pytest.MonkeyPatch, comes_from_a_pipe: bool
) -> None:
    monkeypatch.setattr("comfyui_runner.serving.LOAD_INTERVAL", 0.05)
    old = make_simulator(version="0.3.50")

    def update_in_time() -> None:
        wait_until(lambda: len(old.requests) > 5, what="more tries")
        waited.append(len(old.requests))
        old.version = "0.3.60"

    waited: List[int] = []
    updating = threading.Thread(target=update_in_time)
    updating.start()
    path, stdin = os.path.join(ROOT, "workflow.json"), ""
    if comes_from_a_pipe:
        with open(path, encoding="utf-8") as file:
            path, stdin = "-", file.read()
    service = Middleware(["--server", old.url, path], {}, FAST, stdin)
    updating.join()
    try:
        assert waited and service.out.getvalue().count("Waiting for it: it is needed to read the workflow.") == 1
    finally:
        assert service.stop() == 0


def test_in_continuous_mode_a_version_that_cannot_be_read_is_warned_about(
    make_simulator: Make, make_middleware: Make
) -> None:
    service = make_middleware(make_simulator(version="unknown"))
    assert "does not report its version" in service.out.getvalue()
    assert service.end(service.start())["phase"] == "success"
