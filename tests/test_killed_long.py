"""Continuous mode is killed at random points, many times: no run is missing, none is there twice."""

from __future__ import annotations

import faulthandler
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from restarted import ServiceProcess, Story, numbered_prompt

pytestmark = pytest.mark.long

KILLS = 12


@pytest.mark.parametrize("seed", range(5))
def test_wherever_it_is_killed_no_run_is_missing_and_none_is_there_twice(
    simulator: Any, tmp_path: Path, seed: int
) -> None:
    faulthandler.cancel_dump_traceback_later()  # it takes longer than a test that hangs
    chance = random.Random(seed)
    path = tmp_path / "flow.json"
    path.write_text(json.dumps(numbered_prompt(0)), encoding="utf-8")
    process = ServiceProcess(simulator, str(path), "--keep-runs", "60000")
    story = Story(process, chance)
    try:
        for _ in range(KILLS):
            process.start()
            story.check_edits()
            story.live(chance.choice([0.0, 0.02, 0.1, 0.5, 1.0]) * chance.random() * 2)
        process.start()
        story.check_runs()
        assert not [name for name in os.listdir(str(tmp_path)) if "unusable" in name]
    finally:
        process.kill()
