"""What the simulator does differently as an older server."""

from __future__ import annotations

import json
import uuid
from typing import Callable

from simulated import busy, drain, get, history, interrupt, slow, submit, types
from websockets.sync.client import ClientConnection

from comfyui_runner.simulator import Simulator


def test_a_server_of_early_2024(simulate: Callable[..., Simulator], open_ws: Callable[..., ClientConnection]) -> None:
    sim = simulate(version="0.0.0")
    ws = open_ws(sim, "me")
    ids = [submit(sim, slow(), client_id="me") for _ in range(2)]
    messages = drain(ws)
    kinds = types(messages)
    assert not {"execution_success", "progress_state"} & set(kinds)
    assert "progress" in kinds
    assert all("timestamp" not in each.get("data", {}) for each in messages)
    assert "executed" not in types(drain(ws))  # the second run was cached
    entry = history(sim, ids[0])
    assert "meta" not in entry
    assert [each[0] for each in entry["status"]["messages"]] == [
        "execution_start",
        "execution_cached",
    ]
    assert "comfyui_version" not in get(sim, "/system_stats").json()["system"]
    assert get(sim, "/api/queue").status_code == 404
    ws.send(json.dumps({"type": "feature_flags", "data": {}}))
    submit(sim, slow(seed=2), client_id="me")
    assert "feature_flags" not in types(drain(ws))


def test_older_servers_stop_whatever_runs(simulate: Callable[..., Simulator]) -> None:
    sim = simulate(version="0.3.56")
    running = busy(sim)
    interrupt(sim, prompt_id=str(uuid.uuid4()))
    kind, data = history(sim, running)["status"]["messages"][-1]
    assert (kind, data["node_id"]) == ("execution_interrupted", "1")
    assert get(sim, "/api/jobs").status_code == 404
