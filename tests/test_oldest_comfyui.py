"""ComfyUI before 0.3.57 is refused before anything is asked; continuous mode waits until it is updated."""

from __future__ import annotations

from typing import Any, Callable

import pytest
from support import Outcome, run, script, slow_prompt, wait_until

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
    assert "does not say which version it is" in result.event("notice")["message"]


def test_in_continuous_mode_an_older_comfyui_counts_as_not_connected(
    make_simulator: Make, make_middleware: Make
) -> None:
    old = make_simulator(version="0.3.50")
    service = make_middleware(old.url)
    notice = f"ComfyUI 0.3.50 at {old.url} is too old: update it to 0.3.57"
    assert notice in service.out.getvalue()
    assert service.get("/status").json["comfyui"]["connected"] is False
    wait_until(lambda: notice in service.get("/queue").json["error"]["message"], what="the reason")
    assert service.get("/queue").status == 503
    assert ("POST", "/prompt") not in old.requests


def test_in_continuous_mode_a_version_that_cannot_be_read_is_warned_about(
    make_simulator: Make, make_middleware: Make
) -> None:
    service = make_middleware(make_simulator(version="unknown"))
    assert "does not say which version it is" in service.out.getvalue()
    assert service.end(service.start())["phase"] == "success"
