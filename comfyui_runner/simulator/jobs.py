"""Jobs: /api/jobs looks at the queue and the history in another form (comfy_execution/jobs.py)."""

from __future__ import annotations

from typing import Any, Iterator

from comfyui_runner.simulator.folders import SUFFIXES_3D
from comfyui_runner.simulator.life import Life
from comfyui_runner.simulator.prompts import Json

JOB_STATES = ("pending", "in_progress", "completed", "failed", "cancelled")
SUFFIXES_OF_TEXT = (".txt", ".md", ".json")
#: The media types of outputs that can be shown, whatever the file's suffix is.
SHOWN_MEDIA = ("images", "video", "audio", "3d", "text")

#: The ranks of outputs: one of the lowest rank represents its job.
SAVED, TEMPORARY, TEXT_FILE, PLAIN_TEXT = range(4)

#: Characters of a text that an answer shows at most.
LONGEST_TEXT = 1024


def all_jobs(life: Life, is_detailed: bool = False) -> list[Json]:
    """Every job that the server knows of, the pending ones first."""
    with life.lock:
        running, pending = life.snapshot()
        history = dict(life.history)
    jobs = []
    for job in pending:
        jobs.append(describe_job(job.item(), "pending", None, is_detailed))
    for job in running:
        jobs.append(describe_job(job.item(), "in_progress", None, is_detailed))
    for entry in history.values():
        jobs.append(describe_job(entry["prompt"], state_of_finished(entry), entry, is_detailed))
    return jobs


def state_of_finished(entry: Json) -> str:
    """The state of a job by its entry in the history."""
    last_event, _ = entry["status"]["messages"][-1]
    if last_event == "execution_error":
        return "failed"
    if last_event == "execution_interrupted":
        return "cancelled"
    return "completed"


def describe_job(item: list[Any], state: str, entry: Json | None, is_detailed: bool) -> Json:
    """A job in the form of /api/jobs.

    `item` is its five values in /queue and /history, `entry` its history, if it is finished.
    """
    number, prompt_id, prompt, extra_data, _ = item
    job = {
        "id": prompt_id,
        "status": state,
        "priority": number,
        "create_time": extra_data.get("create_time"),
    }
    outputs: Json = {}
    if entry is not None:
        job.update(describe_messages(entry["status"]["messages"]))
        outputs = entry["outputs"]
    job.update(summarize_outputs(outputs))
    extra_pnginfo = extra_data.get("extra_pnginfo") or {}
    workflow = extra_pnginfo.get("workflow") or {}
    if workflow.get("id") is not None:
        job["workflow_id"] = workflow["id"]
    if is_detailed:
        job["workflow"] = {"prompt": prompt, "extra_data": extra_data}
        if entry is not None:
            job["outputs"] = outputs
            job["execution_status"] = entry["status"]
    return job


def describe_messages(messages: list[Any]) -> Json:
    """What a job takes from the messages of its run: the times, and the error."""
    about_run: Json = {}
    for event, data in messages:
        if event == "execution_start":
            about_run["execution_start_time"] = data["timestamp"]
        elif event != "execution_cached":
            about_run["execution_end_time"] = data["timestamp"]
        if event == "execution_error":
            about_run["execution_error"] = data
    return about_run


def summarize_outputs(outputs: Json) -> Json:
    """Count the outputs, and choose one to show: a saved picture before a text."""
    files = 0
    shown_files = 0
    ranked: list[tuple[int, Json]] = []
    for node_id, media, item in each_output(outputs):
        source = {"nodeId": node_id, "mediaType": media}
        if isinstance(item, str) and item.lower().endswith(SUFFIXES_3D):
            item = {"filename": item, "type": "output", "subfolder": "", "mediaType": "3d"}
        if isinstance(item, dict):
            files += 1
            if can_be_shown(item, media):
                shown_files += 1
                rank = rank_file(item, media)
                ranked.append((rank, {**source, **item}))
        elif media == "text":
            shortened = shorten_text(str(item))
            ranked.append((PLAIN_TEXT, {**shortened, **source}))
    summary: Json = {"outputs_count": files, "previewable_outputs_count": shown_files}
    if ranked:
        _, best = min(ranked, key=lambda pair: pair[0])
        summary["preview_output"] = best
    return summary


def each_output(outputs: Json) -> Iterator[tuple[str, str, Any]]:
    """(node_id, media, item) of everything that nodes put out; "animated" is only a flag."""
    for node_id, ui in outputs.items():
        for media, items in ui.items():
            if media == "animated" or not isinstance(items, list):
                continue
            for item in items:
                yield node_id, media, item


def can_be_shown(item: Json, media: str) -> bool:
    """Whether the frontend can show a file."""
    name = item.get("filename", "").lower()
    return (
        media in SHOWN_MEDIA
        or item.get("format", "").startswith(("video/", "audio/"))
        or name.endswith(SUFFIXES_3D + SUFFIXES_OF_TEXT)
    )


def rank_file(item: Json, media: str) -> int:
    """The rank of a file among the outputs of a job."""
    name = item.get("filename", "").lower()
    if media == "text" or name.endswith(SUFFIXES_OF_TEXT):
        return TEXT_FILE
    if item.get("type") == "output":
        return SAVED
    return TEMPORARY


def shorten_text(text: str) -> Json:
    """A text that a node put out, cut if it is long."""
    shortened: Json = {"content": text[:LONGEST_TEXT]}
    if len(text) > LONGEST_TEXT:
        shortened["truncated"] = True
    return shortened
