"""Jobs: /api/jobs looks at the queue and the history in another form."""

from __future__ import annotations

from typing import Any

from comfyui_runner.simulator.life import Life
from comfyui_runner.simulator.prompts import Json

_SUFFIXES_3D = (".obj", ".fbx", ".gltf", ".glb", ".usdz")
_SUFFIXES_TEXT = (".txt", ".md", ".json")
JOB_STATES = ("pending", "in_progress", "completed", "failed", "cancelled")


def outputs_summary(outputs: Json) -> Json:
    """Count the outputs and choose one to show: a saved picture before a text."""
    count = shown = 0
    ranked: list[tuple[int, Json]] = []
    for node_id, ui in outputs.items():
        for media, items in ui.items():
            for item in items if isinstance(items, list) and media != "animated" else ():
                entry = {"nodeId": node_id, "mediaType": media}
                if isinstance(item, str) and item.lower().endswith(_SUFFIXES_3D):
                    item = {"filename": item, "type": "output", "subfolder": "", "mediaType": "3d"}
                if isinstance(item, dict):
                    count += 1
                    name = item.get("filename", "").lower()
                    text = media == "text" or name.endswith(_SUFFIXES_TEXT)
                    known = media in ("images", "video", "audio", "3d", "text")
                    form = item.get("format", "").startswith(("video/", "audio/"))
                    if known or form or name.endswith(_SUFFIXES_3D + _SUFFIXES_TEXT):
                        shown += 1
                        rank = 2 if text else 0 if item.get("type") == "output" else 1
                        ranked.append((rank, {**entry, **item}))
                elif media == "text":
                    cut = {"truncated": True} if len(str(item)) > 1024 else {}
                    ranked.append((3, {"content": str(item)[:1024], **cut, **entry}))
    summary: Json = {"outputs_count": count, "previewable_outputs_count": shown}
    if ranked:
        summary["preview_output"] = min(ranked, key=lambda each: each[0])[1]
    return summary


def describe_job(item: list[Any], state: str, entry: Json | None, detailed: bool) -> Json:
    """A prompt in the form of /api/jobs; `entry` is its history."""
    number, prompt_id, prompt, extra_data, _ = item
    job = {"id": prompt_id, "status": state, "priority": number}
    job["create_time"] = extra_data.get("create_time")
    for kind, data in entry["status"]["messages"] if entry else ():
        if kind == "execution_start":
            job["execution_start_time"] = data["timestamp"]
        elif kind != "execution_cached":
            job["execution_end_time"] = data["timestamp"]
        if kind == "execution_error":
            job["execution_error"] = data
    job.update(outputs_summary(entry["outputs"] if entry else {}))
    workflow = (extra_data.get("extra_pnginfo") or {}).get("workflow") or {}
    if workflow.get("id") is not None:
        job["workflow_id"] = workflow["id"]
    if entry and detailed:
        job.update(outputs=entry["outputs"], execution_status=entry["status"])
    if detailed:
        job["workflow"] = {"prompt": prompt, "extra_data": extra_data}
    return job


def all_jobs(life: Life, detailed: bool = False) -> list[Json]:
    """Every job that the server knows of."""
    with life.lock:
        running, pending = life.snapshot()
        history = dict(life.history)
    jobs = [describe_job(job.item(), "pending", None, detailed) for job in pending]
    jobs += [describe_job(job.item(), "in_progress", None, detailed) for job in running]
    for entry in history.values():
        last = entry["status"]["messages"][-1][0]
        state = {"execution_error": "failed", "execution_interrupted": "cancelled"}
        jobs.append(describe_job(entry["prompt"], state.get(last, "completed"), entry, detailed))
    return jobs
