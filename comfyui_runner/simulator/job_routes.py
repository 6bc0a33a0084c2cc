"""The routes of the jobs, which only newer servers have."""

from __future__ import annotations

from comfyui_runner.simulator.http_request import Request
from comfyui_runner.simulator.jobs import JOB_STATES, all_jobs
from comfyui_runner.simulator.life import Life
from comfyui_runner.simulator.prompts import Json, is_job_id
from comfyui_runner.simulator.replies import Reply, as_json

SORT_KEYS = ("created_at", "execution_duration")
SORT_ORDERS = ("asc", "desc")


def get_jobs(request: Request) -> Reply:
    """Jobs, filtered, sorted and cut into pages."""
    query = request.query
    states = [state.strip().lower() for state in query.get("status", "").split(",") if state]
    sort_by = query.get("sort_by", "created_at")
    sort_order = query.get("sort_order", "desc")
    limit = None
    try:
        if "limit" in query:
            limit = int(query["limit"])
        offset = max(0, int(query.get("offset", 0)))
    except ValueError:
        return refuse_request("limit and offset must be integers")
    is_sorting_known = sort_by in SORT_KEYS and sort_order in SORT_ORDERS
    if not set(states) <= set(JOB_STATES) or not is_sorting_known:
        return refuse_request("invalid status, sort_by or sort_order")
    if limit is not None and limit <= 0:
        return refuse_request("limit must be a positive integer")

    jobs = all_jobs(request.life)
    if states:
        jobs = [job for job in jobs if job["status"] in states]
    if "workflow_id" in query:
        jobs = [job for job in jobs if job.get("workflow_id") == query["workflow_id"]]
    sort_key = create_time if sort_by == "created_at" else execution_duration
    jobs.sort(key=sort_key, reverse=sort_order == "desc")
    page = jobs[offset:]
    if limit is not None:
        page = page[:limit]
    pagination = {
        "offset": offset,
        "limit": limit,
        "total": len(jobs),
        "has_more": offset + len(page) < len(jobs),
    }
    return as_json({"jobs": page, "pagination": pagination})


def create_time(job: Json) -> float:
    """When a job was accepted, in milliseconds."""
    return float(job["create_time"])


def execution_duration(job: Json) -> float:
    """How long a job ran, in milliseconds; 0 if it did not."""
    return float(job.get("execution_end_time", 0) - job.get("execution_start_time", 0))


def get_job(request: Request, prompt_id: str) -> Reply:
    """One job: the last one of that id."""
    for job in reversed(all_jobs(request.life, is_detailed=True)):
        if job["id"] == prompt_id:
            return as_json(job)
    return as_json({"error": "Job not found"}, 404)


def post_cancel_of_job(request: Request, prompt_id: str) -> Reply:
    """Interrupt a job or take it off the queue."""
    return as_json({"cancelled": cancel_jobs(request.life, [prompt_id])})


def post_cancel_of_jobs(request: Request) -> Reply:
    """The same for several jobs."""
    try:
        data = request.json()
    except ValueError:
        return refuse_request("Request body must be valid JSON")
    ids = data.get("job_ids") if isinstance(data, dict) else None
    if not isinstance(ids, list):
        return refuse_request("job_ids must be a list")
    invalid = [job_id for job_id in ids if not is_job_id(job_id)]
    if invalid:
        shown = [job_id if isinstance(job_id, str) else repr(job_id) for job_id in invalid]
        return as_json({"error": "job_ids contains invalid id(s)", "invalid_ids": shown}, 400)
    return as_json({"cancelled": cancel_jobs(request.life, ids)})


def cancel_jobs(life: Life, ids: list[str]) -> bool:
    """Cancel jobs. Returns False if there was nothing to cancel."""
    was_any_cancelled = False
    for prompt_id in ids:
        if prompt_id and (life.interrupt(prompt_id) or life.delete(prompt_id)):
            was_any_cancelled = True
    return was_any_cancelled


def refuse_request(error: str) -> Reply:
    """The answer to a request that is wrong."""
    return as_json({"error": error}, 400)
