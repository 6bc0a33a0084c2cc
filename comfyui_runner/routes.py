"""The routes of continuous mode: what there is, and which route a request means.

extras/openapi.json describes requests and answers; the tests compare it with this table and with
what the service answers.
"""

from __future__ import annotations

import functools
import json
import re
import urllib.parse
from typing import Callable, Dict, Iterable, List, NamedTuple, Optional, Tuple

from comfyui_runner.edits import InputExample
from comfyui_runner.messages import HttpError, Response
from comfyui_runner.nodes import nearest_first, quote_name
from comfyui_runner.shells import CURL, IS_WINDOWS, quote_argument
from comfyui_runner.text import one_line


class Route(NamedTuple):
    """One row of the table. The console, ``curl http://.../`` and docs/MIDDLEWARE.md show it."""

    method: str
    path: str  # {prompt_id} stands for one part
    handler: str  # a method of RouteCall
    summary: str
    statuses: Tuple[
        int, ...
    ]  # of its own: any route may answer 400, 401, 403, 408, 411, 413, 429, 431, 503
    curl: str = ""  # arguments of an example; {url} is the service's address, {form} is ``form``
    body: str = ""  # an example of the JSON that it takes
    form: str = ""  # the same as a form: arguments of curl, which every shell takes as they are
    query: Tuple[str, ...] = ()  # names in the query of a route that starts or changes something

    def curl_command(self, url: str, curl: str = CURL) -> str:
        """The example for a service at ``url``. ``curl`` is the program's name."""
        return f"{curl} {self.curl.format(url=url, form=self.form)}"


ROUTES: Tuple[Route, ...] = (
    Route(
        method="GET",
        path="/",
        handler="get_page",
        summary="Shows the page in a browser, and this list to curl.",
        statuses=(200,),
    ),
    Route(
        method="GET",
        path="/health",
        handler="get_health",
        summary="Answers 200 while the service runs.",
        statuses=(200,),
        curl="{url}/health",
    ),
    Route(
        method="GET",
        path="/status",
        handler="get_status",
        summary="Shows the state of ComfyUI, the workflow and the queue.",
        statuses=(200,),
        curl="{url}/status",
    ),
    Route(
        method="GET",
        path="/workflow",
        handler="get_workflow",
        summary="Shows the held workflow and what you can set; ?format=ui for ComfyUI's editor.",
        statuses=(200, 400, 409, 503),
        curl="{url}/workflow",
    ),
    Route(
        method="PUT",
        path="/workflow",
        handler="put_workflow",
        summary="Holds another workflow, and lists what is wrong with it.",
        statuses=(200, 400, 404, 503),
        curl="-T workflow_api.json {url}/workflow",
        query=("name",),
    ),
    Route(
        method="GET",
        path="/workflows",
        handler="get_workflows",
        summary="Lists the workflows; PUT /workflow?name=NAME without a body holds one of them.",
        statuses=(200,),
        curl="{url}/workflows",
    ),
    Route(
        method="POST",
        path="/workflow/reset",
        handler="reset_workflow",
        summary="Reads the workflow from its file again.",
        statuses=(200, 400),
        curl="-X POST {url}/workflow/reset",
    ),
    Route(
        method="POST",
        path="/update/prompt",
        handler="update_prompt",
        summary='Sets the text of a node, or the "positive" or "negative" text.',
        statuses=(200, 400, 409),
        curl="{form} {url}/update/prompt",
        body='{"type": "positive", "text": "a fox"}',
        form='-d type=positive --data-urlencode "text=a fox"',
    ),
    Route(
        method="POST",
        path="/update/inputs",
        handler="update_inputs",
        summary='Sets inputs of a node; a "random" seed is drawn for each run.',
        statuses=(200, 400, 409),
        curl="{form} {url}/update/inputs",
        body='{"node_id": "5", "inputs": {"seed": "random"}}',
        form="-d node_id=5 -d inputs.seed=random",
    ),
    Route(
        method="POST",
        path="/upload/image",
        handler="upload_image",
        summary="Uploads a file to ComfyUI and sets it in the node that loads one.",
        statuses=(200, 202, 400, 409, 413, 429, 502, 503),
        curl="-F image=@cat.png {url}/upload/image",
        query=("node_id", "force"),
    ),
    Route(
        method="GET",
        path="/queue",
        handler="start_run",
        summary="Runs the held workflow as it is now.",
        statuses=(202, 400, 429, 502, 503),
        curl="{url}/queue",
    ),
    Route(
        method="POST",
        path="/queue",
        handler="start_run",
        summary="Does the same.",
        statuses=(202, 400, 429, 502, 503),
        curl="-X POST {url}/queue",
    ),
    Route(
        method="POST",
        path="/run",
        handler="run_call",
        summary="Runs a copy of the held workflow with the values in the body; waits for the end.",
        statuses=(200, 202, 400, 404, 406, 409, 413, 429, 500, 502, 503),
        curl='{form} -H "Accept: image/*" -o fox.png {url}/run',
        body='{"positive": "a fox", "seed": "random"}',
        form='--data-urlencode "positive=a fox" -d seed=random',
        query=("as", "index", "wait", "detach"),
    ),
    Route(
        method="POST",
        path="/prompt",
        handler="post_prompt",
        summary="Runs the prompt in the body, as ComfyUI's own route does.",
        statuses=(200, 400, 409, 429, 502, 503),
        curl='-d "@request.json" {url}/prompt',
    ),
    Route(
        method="POST",
        path="/interrupt",
        handler="interrupt_run",
        summary="Stops a run of this service, and nobody else's.",
        statuses=(200, 202, 400, 409),
        curl="-X POST {url}/interrupt",
    ),
    Route(
        method="GET",
        path="/runs",
        handler="get_runs",
        summary="Lists the runs, newest first; ?limit=20 lists fewer.",
        statuses=(200, 400),
        curl="{url}/runs",
    ),
    Route(
        method="GET",
        path="/runs/{prompt_id}",
        handler="get_run",
        summary="Shows one run; ?wait=30 waits for its end.",
        statuses=(200, 400, 404, 429),
        curl='"{url}/runs/PROMPT_ID?wait=30"',
    ),
    Route(
        method="DELETE",
        path="/runs/{prompt_id}",
        handler="remove_run",
        summary="Removes a run that has ended from the list; its files stay in ComfyUI.",
        statuses=(204, 404, 409),
        curl="-X DELETE {url}/runs/PROMPT_ID",
    ),
    Route(
        method="GET",
        path="/runs/{prompt_id}/prompt",
        handler="get_run_prompt",
        summary="Shows the prompt of a run: the settings that it ran with.",
        statuses=(200, 404),
        curl="{url}/runs/PROMPT_ID/prompt",
    ),
    Route(
        method="GET",
        path="/runs/{prompt_id}/output",
        handler="get_run_output",
        summary="Fetches a file that a run made; ?index=1 the next one, ?wait=30 waits for it.",
        statuses=(200, 206, 304, 400, 404, 406, 409, 416, 429, 502, 503),
        curl='-OJ "{url}/runs/PROMPT_ID/output?wait=30"',
    ),
    Route(
        method="GET",
        path="/runs/{prompt_id}/files/{number}",
        handler="get_run_file",
        summary="Fetches a file of a run that ComfyUI does not keep.",
        statuses=(200, 404),
    ),
    Route(
        method="GET",
        path="/events",
        handler="get_events",
        summary="Streams Server-Sent Events of all runs, or of one.",
        statuses=(200,),
        curl="-N {url}/events",
    ),
    Route(
        method="GET",
        path="/preview",
        handler="get_preview",
        summary="Shows the newest preview picture.",
        statuses=(200, 404),
        curl="-o preview.jpg {url}/preview",
    ),
    Route(
        method="GET",
        path="/view",
        handler="get_view",
        summary="Fetches a file that ComfyUI made.",
        statuses=(200, 206, 304, 400, 404, 416, 502, 503),
        curl='-o fox.png "{url}/view?filename=ComfyUI_00001_.png"',
    ),
    Route(
        method="POST",
        path="/v1/images/generations",
        handler="create_images",
        summary="Generates pictures with the held workflow, as OpenAI's images API does.",
        statuses=(200, 400, 406, 409, 413, 429, 500, 502, 503),
        curl="{form} {url}/v1/images/generations",
        body='{"prompt": "a fox", "response_format": "url"}',
        form='--data-urlencode "prompt=a fox" -d response_format=url',
        query=("detach", "api-version"),
    ),
    Route(
        method="POST",
        path="/v1/images/edits",
        handler="edit_images",
        summary="Does the same with pictures, which the workflow's loaders load.",
        statuses=(200, 400, 406, 409, 413, 429, 500, 502, 503),
        curl='-F image=@cat.png -F "prompt=a cat in the snow" {url}/v1/images/edits',
        query=("detach", "api-version"),
    ),
    Route(
        method="GET",
        path="/v1/models",
        handler="get_models",
        summary="Names the held workflow as a model, for clients of OpenAI's API.",
        statuses=(200,),
        curl="{url}/v1/models",
    ),
    Route(
        method="GET",
        path="/v1/models/{model}",
        handler="get_model",
        summary="Shows that model.",
        statuses=(200, 404),
    ),
    Route(
        method="POST",
        path="/login",
        handler="log_in",
        summary="Takes the token once and gives the page a cookie for it.",
        statuses=(204, 400, 403),
    ),
    Route(
        method="GET",
        path="/openapi.json",
        handler="get_openapi",
        summary="Describes these routes as OpenAPI 3.1.",
        statuses=(200,),
        curl="{url}/openapi.json",
    ),
)

_are_header_names = re.compile(r"[A-Za-z0-9_, -]{1,1000}").fullmatch

#: The routes whose path has no part to fill in, for a quick look-up.
_FIXED_ROUTES = {(route.method, route.path): route for route in ROUTES if "{" not in route.path}


def find_route(
    method: str,
    path: str,
    url: str,
    find_example: Callable[[], Optional[InputExample]] = lambda: None,
) -> Tuple[Route, Dict[str, str]]:
    """The route that a request means, and the parts of its path ({"prompt_id": ...}).

    HEAD is taken wherever GET is. Raises HttpError 404, or 405 with what the path takes: its lines
    of curl have ``url``, the address of the service.
    """
    fixed_route = _FIXED_ROUTES.get((method, path))
    if fixed_route is not None:
        return fixed_route, {}

    wanted_method = "GET" if method == "HEAD" else method
    for route in ROUTES:
        match = _path_pattern(route.path).fullmatch(path)
        if match and route.method == wanted_method:
            parts = match.groupdict()
            return route, {name: urllib.parse.unquote(part) for name, part in parts.items()}

    allowed = ", ".join(methods_of(path))
    message = f"{one_line(path, 100)} takes {allowed}."
    fitting = (fit_route(route, find_example()) for route in _routes_of(path))
    examples = [route.curl_command(url) for route in fitting if route.curl]
    if examples:
        message += " Example: " + ", or ".join(examples)
    raise HttpError(405, "method_not_allowed", message, headers=(("Allow", allowed),))


#: The types of errors in which a request has another body than the route takes.
ERRORS_OF_BODY = (
    "not_json",
    "not_an_object",
    "not_a_form",
    "duplicate_field",
    "unknown_field",
    "missing_field",
    "wrong_type",
    "wrong_value",
)


def fit_route(route: Route, example: Optional[InputExample]) -> Route:
    """``route``; where its example sets an input, that is ``example``: an input, and its value.

    So the held workflow has the input. None: it has none that fits.
    """
    if route.handler != "update_inputs" or example is None:
        return route
    ref, value = example
    body = json.dumps({"node_id": ref.node_id, "inputs": {ref.input: value}}, ensure_ascii=False)
    words = (f"node_id={ref.node_id}", f"inputs.{ref.input}={value}")
    form = " ".join(f"-d {quote_argument(word, IS_WINDOWS)}" for word in words)
    return route._replace(body=body, form=form)


def show_body(error: HttpError, route: Route) -> HttpError:
    """``error`` of a request to ``route``, with an example where it is about the body."""
    if error.type in ERRORS_OF_BODY and route.body:
        error.message += f" Example: {route.body}"
    if error.type in ERRORS_OF_BODY and route.form:
        error.message += f", or with curl: {route.form}"
    return error


def check_query(names: Iterable[str], route: Route) -> None:
    """Raises HttpError 400 for a name in the query that ``route`` does not know.

    POST /interrupt?prompt_id=... would stop another run than the one that is named.
    """
    for name in names:
        if name in route.query:
            continue
        shown = quote_name(name)
        message = f"{route.method} {route.path} takes no {shown} in the URL."
        if route.query:
            message += f" Nearest: {nearest_first(name, sorted(route.query))}."
        elif route.method != "GET":
            message += " Fields go into the body."
        raise HttpError(400, "unknown_field", message)


def methods_of(path: str) -> List[str]:
    """The methods that a path takes, HEAD and OPTIONS included. Raises HttpError 404."""
    methods = [route.method for route in _routes_of(path)]
    if not methods:
        message = f"There is no route {one_line(path, 100)}. GET / lists the routes."
        raise HttpError(404, "not_found", message)
    if "GET" in methods:
        methods.append("HEAD")
    return [*methods, "OPTIONS"]


def _routes_of(path: str) -> List[Route]:
    return [route for route in ROUTES if _path_pattern(route.path).fullmatch(path)]


def options_response(path: str, wanted_headers: str = "") -> Response:
    """The answer to OPTIONS. Raises HttpError 404.

    A browser asks so before a page of another origin may send something (CORS preflight);
    ``wanted_headers`` are those that the page wants to send. OpenAI's client for JavaScript has
    some of its own. It is the origin that decides, and the guard knows which are allowed.
    """
    allowed = ", ".join(methods_of(path))
    if not _are_header_names(wanted_headers):
        wanted_headers = "authorization, content-type"
    headers = (
        ("Allow", allowed),
        ("Access-Control-Allow-Methods", allowed),
        ("Access-Control-Allow-Headers", wanted_headers),
    )
    return Response(204, headers=headers)


@functools.lru_cache(None)
def _path_pattern(path: str) -> "re.Pattern[str]":
    """Matches the paths that ``path`` stands for; {name} is a group of that name."""
    return re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(path)))


def curl_lines(url: str, example: Optional[InputExample]) -> List[str]:
    """Each route with a line of curl that calls it at ``url``; ``example`` is as in fit_route()."""
    lines = []
    for route in (fit_route(route, example) for route in ROUTES):
        if route.curl:
            lines.append(f"{route.method:<5} {route.path:<18} {route.summary}")
            lines.append(f"      {route.curl_command(url)}")
    return lines
