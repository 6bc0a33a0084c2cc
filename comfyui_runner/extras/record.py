"""--save-run: what ran and what came of it, in a file that the runner can run again."""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any, Dict, List, Mapping

from comfyui_runner import __version__
from comfyui_runner.conclusion import Ending
from comfyui_runner.files import write_text_file
from comfyui_runner.nodes import describe_node
from comfyui_runner.outputs import Output
from comfyui_runner.remedies import workflow_in_extra
from comfyui_runner.runs import Run
from comfyui_runner.seeds import seeds_by_name
from comfyui_runner.session import Session
from comfyui_runner.text import plain_json
from comfyui_runner.versions import server_in_words


def write_record(
    path: str, session: Session, run: Run, ending: Ending, stats: Mapping[str, Any]
) -> None:
    """Writes the record of ``run`` to ``path``. Raises SaveError.

    ``stats`` is the server's answer to GET /system_stats.
    """
    report = ending.report
    record = {
        "runner": __version__,
        "prompt_id": run.prompt_id,
        "created": round(time.time(), 3),
        "server": {"url": session.server.address.url, **server_in_words(stats)},
        "status": report["status"],
        "message": report["message"],
        "seconds": report["seconds"],
        "wholly_cached": report["wholly_cached"],
        "exit_status": int(ending.exit_status),
        "seeds": seeds_by_name(run.prompt),
        **run.texts.to_json(),
        "node_times": node_times_of(run),
        "cached": sorted(run.state.cached),
        "outputs": [record_output(output, ending) for output in ending.outputs],
        "prompt": run.prompt,
    }
    workflow = workflow_in_extra(run.extra)
    if workflow:
        record["workflow"] = workflow
    shown = session.server.secrets.hide_in(plain_json(record))
    write_text_file(path, json.dumps(shown, indent=2, ensure_ascii=False) + "\n")


def node_times_of(run: Run) -> List[Dict[str, Any]]:
    """The nodes that ran, with the seconds that each of them took."""
    return [
        {**describe_node(run.prompt, node_id), "seconds": round(seconds, 3)}
        for node_id, seconds in run.state.finished.items()
    ]


def record_output(output: Output, ending: Ending) -> Dict[str, Any]:
    """An output's fields and its path; where it is saved, also the SHA-256 and size of its file."""
    path = (ending.saved or {}).get(output)
    entry: Dict[str, Any] = {**output.to_json(), "path": path}
    if path is None:
        return entry
    try:
        return {**entry, **fingerprint(path)}
    except OSError as error:
        return {**entry, "error": str(error)}


def fingerprint(path: str) -> Dict[str, Any]:
    """The SHA-256 of a file, and its size in bytes."""
    digest = hashlib.sha256()
    size = 0
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(1 << 16), b""):
            digest.update(chunk)
            size += len(chunk)
    return {"sha256": digest.hexdigest(), "bytes": size}
