"""The routes of the queue and the history: submitting, looking, stopping, forgetting."""

from __future__ import annotations

import time
import uuid
from typing import Any

from comfyui_runner.simulator.bodies import Cut
from comfyui_runner.simulator.http_request import Request
from comfyui_runner.simulator.installation import Installation
from comfyui_runner.simulator.life import Life
from comfyui_runner.simulator.prompts import Job, Json, is_job_id
from comfyui_runner.simulator.replies import Reply, as_json, as_text
from comfyui_runner.simulator.validation import Validation, make_error

#: What extra_data may have and newer servers do not show.
SECRETS = ("auth_token_comfy_org", "api_key_comfy_org")


def get_prompt(request: Request) -> Reply:
    """The length of the queue."""
    return as_json(request.life.status())


def post_prompt(request: Request) -> Reply:
    """Accept a prompt, or say what is wrong with it, or do what Faults.lose_post says."""
    data = request.json()
    life = request.life
    with life.lock:
        fault = "ok"
        lose_post = request.installation.faults.lose_post
        if lose_post:
            fault = lose_post.pop(0)
    if fault.isdigit():
        return as_text(f"{fault}: simulated", int(fault))
    if fault == "unnamed":
        return as_json({"error": "invalid prompt", "node_errors": []}, 400)
    if fault == "before":
        raise Cut()
    if fault.startswith("late:"):
        seconds = float(fault[len("late:") :])
        life.call_later(seconds, accept_prompt, request.installation, life, data)
        raise Cut()
    reply = accept_prompt(request.installation, life, data)
    if fault == "after":
        raise Cut()
    return reply


def accept_prompt(installation: Installation, life: Life, data: Json) -> Reply:
    """Validate a prompt and queue it."""
    number = choose_number(life, data)
    if "prompt" not in data:
        message = "No prompt provided"
        return refuse_prompt(make_error("no_prompt", message, message))
    prompt_id = choose_prompt_id(installation, data)
    if prompt_id is None:
        return refuse_prompt(
            make_error(
                "invalid_prompt_id",
                "prompt_id must be a valid UUID",
                "prompt_id must be a UUID string in canonical lowercase hyphenated form; "
                "omit it to let the server generate one",
            )
        )
    prompt = data["prompt"]
    validation = Validation(installation, prompt, data.get("partial_execution_targets"))
    if validation.error is not None:
        return refuse_prompt(validation.error, validation.node_errors)
    job = Job(
        number,
        prompt_id,
        prompt,
        extra_data=make_extra_data(installation, data),
        outputs=validation.good,
        secrets=find_secrets(data),
    )
    life.put(job)
    return as_json(
        {
            "prompt_id": prompt_id,
            "number": number,
            "node_errors": validation.node_errors,
        }
    )


def refuse_prompt(error: Json, node_errors: Json | None = None) -> Reply:
    """The answer to a prompt that cannot run."""
    return as_json({"error": error, "node_errors": node_errors or {}}, 400)


def choose_number(life: Life, data: Json) -> float:
    """The client's number, or the next one: it says where in the queue the prompt is."""
    if "number" in data:
        return float(data["number"])
    return life.take_number(is_first=bool(data.get("front")))


def choose_prompt_id(installation: Installation, data: Json) -> str | None:
    """The client's prompt_id, or a new one. Returns None if the client's is refused."""
    new_id = str(uuid.uuid4())
    if not installation.has("jobs"):
        return str(data.get("prompt_id", new_id))  # even null is one: "None"
    wanted = data.get("prompt_id")
    if wanted is None:
        return new_id
    if not is_job_id(wanted):
        return None
    return str(wanted)


def find_secrets(data: Json) -> Json:
    """What only the nodes of a prompt may see of its extra_data."""
    extra_data = data.get("extra_data") or {}
    return {key: extra_data[key] for key in SECRETS if key in extra_data}


def make_extra_data(installation: Installation, data: Json) -> Json:
    """What the queue and the history show beside the prompt."""
    extra_data = dict(data.get("extra_data") or {})
    if "client_id" in data:
        extra_data["client_id"] = data["client_id"]
    if installation.has("jobs"):
        for key in SECRETS:
            extra_data.pop(key, None)
        extra_data["create_time"] = int(time.time() * 1000)
    return extra_data


def get_queue(request: Request) -> Reply:
    """What runs and what waits."""
    running, pending = request.life.snapshot()
    return as_json(
        {
            "queue_running": [job.item() for job in running],
            "queue_pending": [job.item() for job in pending],
        }
    )


def post_queue(request: Request) -> Reply:
    """Clear the queue or delete from it."""
    data = request.json()
    if data.get("clear"):
        request.life.clear()
    for prompt_id in data.get("delete", []):
        request.life.delete(prompt_id)
    return Reply()


def post_interrupt(request: Request) -> Reply:
    """Stop what runs, or only a certain prompt."""
    try:
        data: Any = request.json()
    except ValueError:
        data = {}
    request.life.interrupt(data.get("prompt_id"))
    return Reply()


def get_history(request: Request) -> Reply:
    """Finished prompts, the oldest first: all, or a part of them."""
    with request.life.lock:
        entries = list(request.life.history.items())
    offset = int(request.query.get("offset", -1))
    if "max_items" not in request.query:
        begin = max(0, offset)
        return as_json(dict(entries[begin:]))
    count = int(request.query["max_items"])
    if offset < 0:
        offset = max(0, len(entries) - count)  # the newest ones
    end = offset + max(1, count)
    return as_json(dict(entries[offset:end]))


def get_history_entry(request: Request, prompt_id: str) -> Reply:
    """One finished prompt; {} if it is not one."""
    with request.life.lock:
        entry = request.life.history.get(prompt_id)
    if entry is None:
        return as_json({})
    return as_json({prompt_id: entry})


def post_history(request: Request) -> Reply:
    """Clear the history or delete from it."""
    data = request.json()
    history = request.life.history
    with request.life.lock:
        if data.get("clear"):
            history.clear()
        for prompt_id in data.get("delete", []):
            history.pop(prompt_id, None)
    return Reply()


def post_free(request: Request) -> Reply:
    """Unload the models, and forget the cache if asked to: at once, or after the current prompt."""
    data = request.json()
    free_memory = bool(data.get("free_memory", False))
    if data.get("unload_models", free_memory):
        request.installation.unloads += 1
    if free_memory:
        request.life.forget()
    return Reply()
