"""The routes: which function answers which request."""

from __future__ import annotations

import re
import uuid
from typing import Callable, NamedTuple

from comfyui_runner.simulator.file_routes import get_view, post_upload
from comfyui_runner.simulator.http_request import Request
from comfyui_runner.simulator.info_routes import (
    get_embeddings,
    get_extensions,
    get_features,
    get_models,
    get_models_of_folder,
    get_object_info,
    get_object_info_of_class,
    get_system_stats,
)
from comfyui_runner.simulator.job_routes import (
    get_job,
    get_jobs,
    post_cancel_of_job,
    post_cancel_of_jobs,
)
from comfyui_runner.simulator.queue_routes import (
    get_history,
    get_history_entry,
    get_prompt,
    get_queue,
    post_free,
    post_history,
    post_interrupt,
    post_prompt,
    post_queue,
)
from comfyui_runner.simulator.replies import Reply, as_text
from comfyui_runner.simulator.sockets import Socket


def get_websocket(request: Request) -> Reply:
    """Turn into a WebSocket until it is closed; then there is nothing left to answer."""
    if "websocket" not in request.headers.get("Upgrade", "").lower():
        text = 'No WebSocket UPGRADE hdr: None\n Can "Upgrade" only to "WebSocket".'
        return as_text(text, 400)
    client_id = request.query.get("clientId") or uuid.uuid4().hex
    Socket(request.handler, request.life, client_id).serve()
    request.handler.close_connection = True
    return Reply(101)


class Route(NamedTuple):
    """A route; the groups of the pattern become arguments of the function."""

    method: str
    pattern: str
    answer: Callable[..., Reply]
    #: The behavior of versions.SINCE that a server must have; "" for every server.
    behavior: str = ""


#: All but the jobs are also there below /api.
ROUTES = [
    Route("GET", "/ws", get_websocket),
    Route("GET", "/prompt", get_prompt),
    Route("POST", "/prompt", post_prompt),
    Route("GET", "/queue", get_queue),
    Route("POST", "/queue", post_queue),
    Route("POST", "/interrupt", post_interrupt),
    Route("GET", "/history", get_history),
    Route("POST", "/history", post_history),
    Route("GET", "/history/([^/]+)", get_history_entry),
    Route("GET", "/view", get_view),
    Route("POST", "/upload/(image|mask)", post_upload),
    Route("GET", "/object_info", get_object_info),
    Route("GET", "/object_info/([^/]+)", get_object_info_of_class),
    Route("GET", "/system_stats", get_system_stats),
    Route("GET", "/features", get_features),
    Route("GET", "/embeddings", get_embeddings),
    Route("GET", "/models", get_models),
    Route("GET", "/models/([^/]+)", get_models_of_folder),
    Route("GET", "/extensions", get_extensions),
    Route("POST", "/free", post_free),
    Route("GET", "/api/jobs", get_jobs, "jobs"),
    Route("POST", "/api/jobs/cancel", post_cancel_of_jobs, "jobs"),
    Route("GET", "/api/jobs/([^/]+)", get_job, "jobs"),
    Route("POST", "/api/jobs/([^/]+)/cancel", post_cancel_of_job, "jobs"),
]

NOT_FOUND = Reply(404, content_type="application/octet-stream")


def answer_request(request: Request) -> Reply:
    """Find the route and answer; 405 if the path has only other methods."""
    method = request.method
    if method == "HEAD":
        method = "GET"
    is_path_known = False
    for path in (request.path, request.bare_path):
        for route in ROUTES:
            match = re.fullmatch(route.pattern, path)
            if match is None:
                continue
            if route.behavior and not request.installation.has(route.behavior):
                continue
            if route.method == method:
                return route.answer(request, *match.groups())
            is_path_known = True
    if is_path_known:
        return as_text("405: Method Not Allowed", 405)
    return NOT_FOUND
