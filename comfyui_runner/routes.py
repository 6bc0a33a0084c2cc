"""The table of routes of continuous mode."""

from __future__ import annotations

import functools
import re
import urllib.parse
from typing import Dict, List, NamedTuple, Tuple

from comfyui_runner.messages import HttpError
from comfyui_runner.text import one_line


class Route(NamedTuple):
    """One row of the table of routes, which the help, the documents and OpenAPI are made from."""

    method: str
    path: str  # {name} takes one part
    handler: str  # a method of Service
    summary: str
    statuses: Tuple[int, ...]
    body: str = ""  # a schema of the request's body
    query: Tuple[str, ...] = ()
    curl: str = ""
    answer: str = ""  # a schema of a success's body, or its content types


ROUTES: Tuple[Route, ...] = (
    Route("GET", "/", "get_page", "The page; for curl this list.", (200,), answer="text/html text/plain"),
    Route("GET", "/health", "get_health", "200 while the service runs.", (200,), curl="{}/health", answer="Health"),
    Route("GET", "/status", "get_status", "ComfyUI, the workflow, the queue.", (200,), curl="{}/status",
          answer="Status"),
    Route("GET", "/workflow", "get_workflow", "The held workflow and what can be set in it.", (200,),
          curl="{}/workflow", answer="Workflow"),
    Route("PUT", "/workflow", "put_workflow", "Replaces the held workflow after checking it.", (200, 400, 503),
          "Document", curl="-T workflow_api.json {}/workflow", answer="Held"),
    Route("POST", "/workflow/reset", "reset_workflow", "Takes the workflow from its file again.", (200, 400),
          curl="-X POST {}/workflow/reset", answer="Held"),
    Route("POST", "/update/prompt", "update_prompt", "Sets a text, by node, title, or positive and negative.",
          (200, 400, 409), "UpdatePrompt", curl="-d '{{\"type\": \"positive\", \"text\": \"a fox\"}}' {}/update/prompt",
          answer="Edited"),
    Route("POST", "/update/inputs", "update_inputs", "Sets inputs of a node; a \"random\" seed is drawn at each run.",
          (200, 400, 409), "UpdateInputs",
          curl="-d '{{\"node_id\": \"5\", \"inputs\": {{\"seed\": \"random\"}}}}' {}/update/inputs", answer="Edited"),
    Route("POST", "/upload/image", "upload_image", "Uploads a file to ComfyUI and sets it in a loader.",
          (200, 202, 400, 409, 413, 429, 503), "Upload", ("node_id",), "-F image=@cat.png {}/upload/image", "Uploaded"),
    Route("GET", "/queue", "start_run", "Runs the held workflow as it is now.", (202, 400, 429, 503), curl="{}/queue",
          answer="Started"),
    Route("POST", "/queue", "start_run", "The same.", (202, 400, 429, 503), "Empty", curl="-X POST {}/queue",
          answer="Started"),
    Route("POST", "/prompt", "post_prompt", "ComfyUI's own call: runs the prompt in the body.", (200, 400, 429, 503),
          "PostPrompt", curl="-d @request.json {}/prompt", answer="Prompted"),
    Route("POST", "/interrupt", "interrupt", "Stops our run, and nobody else's.", (200, 202, 400, 409), "Interrupt",
          curl="-X POST {}/interrupt", answer="Interrupted"),
    Route("GET", "/runs", "get_runs", "The last 200 runs, the newest first.", (200,), curl="{}/runs", answer="Runs"),
    Route("GET", "/runs/{prompt_id}", "get_run", "One run; ?wait=30 answers when it ends.", (200, 400, 404), "",
          ("wait",), "'{}/runs/PROMPT_ID?wait=30'", "Run"),
    Route("GET", "/events", "get_events", "Server-Sent Events of all runs, or of one.", (200,), "", ("prompt_id",),
          "-N {}/events", "text/event-stream"),
    Route("GET", "/preview", "get_preview", "The newest preview picture.", (200, 404), "", ("prompt_id",),
          "-o preview.jpg {}/preview", "image/*"),
    Route("GET", "/view", "get_view", "A file that ComfyUI made.", (200, 206, 304, 400, 404, 416, 503), "",
          ("filename", "subfolder", "type", "download", "prompt_id"),
          "-OJ '{}/view?filename=ComfyUI_00001_.png'", "*/*"),
    Route("POST", "/login", "login", "Takes the token once, for the page.", (204, 400, 403), "Login"),
    Route("GET", "/openapi.json", "get_openapi", "This table as OpenAPI 3.1.", (200,), curl="{}/openapi.json",
          answer="OpenAPI"),
)  # fmt: skip


@functools.lru_cache(None)
def _fixed_routes() -> Dict[Tuple[str, str], Route]:
    return {(row.method, row.path): row for row in ROUTES if "{" not in row.path}


def find_route(method: str, path: str) -> Tuple[Route, Dict[str, str]]:
    """The route for a request and the parts of its path. Raises HttpError 404, or 405 with Allow."""
    row = _fixed_routes().get((method, path))
    if row is not None:
        return row, {}
    allowed = []
    for row in ROUTES:
        found = re.match(
            "^%s$" % re.sub(r"\\?\{(\w+)\\?\}", r"(?P<\1>[^/]+)", re.escape(row.path)), path
        )
        if found:
            if row.method == method or (method == "HEAD" and row.method == "GET"):
                return row, {
                    name: urllib.parse.unquote(value) for name, value in found.groupdict().items()
                }
            allowed.append(row.method)
    if not allowed:
        raise HttpError(
            404,
            "not_found",
            "There is no %s here; GET / lists what there is." % one_line(path, 100),
        )
    names = ", ".join(dict.fromkeys(allowed + (["HEAD"] if "GET" in allowed else []) + ["OPTIONS"]))
    raise HttpError(
        405, "method_not_allowed", "%s takes %s." % (one_line(path, 100), names), Allow=names
    )


def curl_lines(url: str) -> List[str]:
    """One line of curl for each route, for the console and for ``curl http://.../``."""
    lines = []
    for row in ROUTES:
        if row.curl:
            lines.append("%-5s %-18s %s" % (row.method, row.path, row.summary))
            lines.append("      curl " + row.curl.format(url))
    return lines
