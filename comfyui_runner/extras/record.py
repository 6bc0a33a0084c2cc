"""--save-run: what ran and what came of it, in a file that the runner can run again."""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any, Dict, Mapping

from comfyui_runner import __version__
from comfyui_runner.conclusion import Ending
from comfyui_runner.edits import seed_inputs
from comfyui_runner.nodes import describe_nodes
from comfyui_runner.outputs import Output
from comfyui_runner.runs import Run
from comfyui_runner.saving import write_text_file
from comfyui_runner.session import Session
from comfyui_runner.text import as_dict, plain_json
from comfyui_runner.versions import server_in_words


def write_record(
    path: str,
    session: Session,
    run: Run,
    ending: Ending,
    stats: Mapping[str, Any],
) -> None:
    """Writes the record of ``run`` to ``path``. Raises SaveError. ``stats`` is the answer to GET /system_stats."""
    state = run.state
    record = {
        "runner": __version__,
        "prompt_id": run.prompt_id,
        "created": round(time.time(), 3),
        "server": {"url": session.server.address.url, **server_in_words(stats)},
        **{name: ending.report[name] for name in ("status", "message", "seconds", "wholly_cached")},
        "exit_status": int(ending.exit_status),
        "seeds": {
            f"{ref.node_id}.{ref.input}": value_of(run, ref) for ref in seed_inputs(run.prompt, {})
        },
        "node_times": [
            {**describe_nodes(run.prompt, [node_id])[0], "seconds": round(seconds, 3)}
            for node_id, seconds in state.finished.items()
        ],
        "cached": sorted(state.cached),
        "outputs": [
            record_output(output, ending) for output in [*ending.outputs, *ending.received]
        ],
        "prompt": run.prompt,
    }
    workflow = as_dict(as_dict(run.extra.get("extra_data")).get("extra_pnginfo")).get("workflow")
    if workflow:
        record["workflow"] = workflow
    write_text_file(path, json.dumps(plain_json(record), indent=2, ensure_ascii=False) + "\n")


def value_of(run: Run, ref: Any) -> Any:
    """The value of an input of the prompt that ran."""
    return run.prompt[ref.node_id]["inputs"][ref.input]


def record_output(output: Output, ending: Ending) -> Dict[str, Any]:
    """An output's fields, its path, and the SHA-256 and size in bytes of its file where it was saved."""
    entry: Dict[str, Any] = {**output._asdict(), "path": (ending.saved or {}).get(output)}
    if entry["path"] is None:
        return entry
    try:
        entry.update(fingerprint(entry["path"]))
    except OSError as error:
        entry["error"] = str(error)
    return entry


def fingerprint(path: str) -> Dict[str, Any]:
    """SHA-256 and size in bytes of a file."""
    digest = hashlib.sha256()
    size = 0
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(1 << 16), b""):
            digest.update(chunk)
            size += len(chunk)
    return {"sha256": digest.hexdigest(), "bytes": size}
