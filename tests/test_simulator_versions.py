"""What the simulator does differently as an older server."""

from __future__ import annotations

import os
from typing import Callable

import pytest
from simulated import get, history, slow, submit

from comfyui_runner.simulator import Simulator
from comfyui_runner.simulator.versions import has_behavior

VERSIONS_WITH_JOBS = ("0.26", "0.26.0", "0.33.0", "1.0rc1")
VERSIONS_WITHOUT_JOBS = ("0.3.64", "0.25.9", "", "unknown")


@pytest.mark.parametrize("version", [*VERSIONS_WITH_JOBS, *VERSIONS_WITHOUT_JOBS])
def test_a_behavior_begins_with_a_version(version: str) -> None:
    assert has_behavior(version, "jobs") is (version in VERSIONS_WITH_JOBS)


@pytest.mark.parametrize(("version", "expected"), [("0.5", True), ("0.5.0", True), ("0.4.9", False), ("0.3.64", False)])
def test_previews_are_chosen_per_prompt_since_a_version(version: str, expected: bool) -> None:
    assert has_behavior(version, "preview_method") is expected


def test_older_servers_have_no_jobs(simulate: Callable[..., Simulator]) -> None:
    sim = simulate(version="0.3.64")
    prompt_id = submit(sim, slow())
    assert "create_time" not in history(sim, prompt_id)["prompt"][3]
    assert get(sim, "/system_stats").json()["system"]["os"] == os.name
    for path in ("/api/jobs", "/api/jobs/" + prompt_id):
        assert get(sim, path).status_code == 404


@pytest.mark.parametrize("version", ["0.3.40", "0.0.0", "unknown"])
def test_a_still_older_version_is_only_claimed(simulate: Callable[..., Simulator], version: str) -> None:
    sim = simulate(version=version)
    assert get(sim, "/system_stats").json()["system"]["comfyui_version"] == version
    kinds = [kind for kind, _ in history(sim, submit(sim, slow()))["status"]["messages"]]
    assert kinds == ["execution_start", "execution_cached", "execution_success"]
