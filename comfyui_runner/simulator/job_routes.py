"""The routes of the jobs, which only newer servers have."""

from __future__ import annotations

from typing import Any, Callable, Mapping

from comfyui_runner.simulator.http_request import Request
from comfyui_runner.simulator.jobs import JOB_STATES, all_jobs
from comfyui_runner.simulator.life import Life
from comfyui_runner.simulator.prompts import Json, is_job_id
from comfyui_runner.simulator.replies import Reply, as_json

SORT_ORDERS = ("asc", "desc")


def get_jobs(request: Request) -> Reply:
    """Jobs, filtered, sorted and cut into pages."""
    query = request.query
    states = split_states(query.get("status", ""))
    sort_by = query.get("sort_by", "created_at")
    sort_order = query.get("sort_order", "desc")
    limit = None
    try:
        if "limit" in query:
            limit = int(query["limit"])
        offset = max(0, int(query.get("offset", 0)))
    except ValueError:
        return refuse_request("limit and offset must be integers")
    are_states_known = set(states) <= set(JOB_STATES)
    is_sorting_known = sort_by in SORT_KEYS and sort_order in SORT_ORDERS
    if not are_states_known or not is_sorting_known:
        return refuse_request("invalid status, sort_by or sort_order")
    if limit is not None and limit <= 0:
        return refuse_request("limit must be a positive integer")

    jobs = all_jobs(request.life)
    if states:
        jobs = [job for job in jobs if job["status"] in states]
    if "workflow_id" in query:
        workflow_id = query["workflow_id"]
        jobs = [job for job in jobs if job.get("workflow_id") == workflow_id]
    jobs.sort(key=SORT_KEYS[sort_by], reverse=sort_order == "desc")
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


def split_states(text: str) -> list[str]:
    """The states in the query of a request, between commas."""
    return [state.strip().lower() for state in text.split(",") if state]


def create_time(job: Json) -> float:
    """When a job was accepted, in milliseconds."""
    return float(job["create_time"])


def execution_duration(job: Json) -> float:
    """How long a job ran, in milliseconds; 0 if it did not."""
    end = job.get("execution_end_time", 0)
    start = job.get("execution_start_time", 0)
    return float(end - start)


#: The values of sort_by.
SORT_KEYS: Mapping[str, Callable[[Json], float]] = {
    "created_at": create_time,
    "execution_duration": execution_duration,
}


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
    job_ids = None
    if isinstance(data, dict):
        job_ids = data.get("job_ids")
    if not isinstance(job_ids, list):
        return refuse_request("job_ids must be a list")
    invalid_ids = [quote_job_id(job_id) for job_id in job_ids if not is_job_id(job_id)]
    if invalid_ids:
        refusal = {"error": "job_ids contains invalid id(s)", "invalid_ids": invalid_ids}
        return as_json(refusal, 400)
    return as_json({"cancelled": cancel_jobs(request.life, job_ids)})


def quote_job_id(job_id: Any) -> str:
    """How an answer shows an id that is invalid."""
    if isinstance(job_id, str):
        return job_id
    return repr(job_id)


def cancel_jobs(life: Life, prompt_ids: list[str]) -> bool:
    """Cancel jobs. Returns False if there was nothing to cancel."""
    was_any_cancelled = False
    for prompt_id in prompt_ids:
        if not prompt_id:
            continue  # without an id, interrupt() would stop whatever runs
        if life.interrupt(prompt_id) or life.delete(prompt_id):
            was_any_cancelled = True
    return was_any_cancelled


def refuse_request(error: str) -> Reply:
    """The answer to a request that is wrong."""
    return as_json({"error": error}, 400)
