"""The table of routes, without a socket."""

from __future__ import annotations

import json
import re
import shlex
import urllib.parse
from typing import List

import pytest

from comfyui_runner import __version__
from comfyui_runner.edits import InputExample
from comfyui_runner.messages import HttpError, parse_object_or_form
from comfyui_runner.nodes import InputRef
from comfyui_runner.resources import read_resource
from comfyui_runner.routes import ROUTES, check_query, curl_lines, find_route, fit_route, options_response, show_body
from comfyui_runner.service_routes import RouteCall
from comfyui_runner.shells import IS_WINDOWS, quote_argument

URL = "http://127.0.0.1:8189"


def test_every_route_is_found_by_its_method_and_path() -> None:
    for row in ROUTES:
        path = row.path.replace("{prompt_id}", "a%2Fb").replace("{number}", "0").replace("{model}", "m")
        route, parts = find_route(row.method, path, URL)
        assert route is row
        known = {"prompt_id": "a/b", "number": "0", "model": "m"}
        assert parts == {name: value for name, value in known.items() if "{%s}" % name in row.path}
        assert callable(getattr(RouteCall, row.handler))


def test_head_is_taken_wherever_get_is() -> None:
    assert find_route("HEAD", "/status", URL)[0].method == "GET"
    with pytest.raises(HttpError) as caught:
        find_route("HEAD", "/interrupt", URL)
    assert caught.value.http_status == 405


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/queue", "GET, POST, HEAD, OPTIONS"),
        ("DELETE", "/workflow", "GET, PUT, HEAD, OPTIONS"),
        ("GET", "/interrupt", "POST, OPTIONS"),
        ("POST", "/runs/x", "GET, DELETE, HEAD, OPTIONS"),
        ("BREW", "/status", "GET, HEAD, OPTIONS"),
        ("get", "/status", "GET, HEAD, OPTIONS"),
    ],
)
def test_another_method_gets_the_list_of_those_that_the_path_takes(method: str, path: str, allow: str) -> None:
    with pytest.raises(HttpError) as caught:
        find_route(method, path, URL)
    assert caught.value.http_status == 405
    assert caught.value.headers == (("Allow", allow),)
    assert caught.value.message.startswith(f"{path} takes {allow}.")


@pytest.mark.parametrize(
    ("method", "path", "message"),
    [
        (
            "GET",
            "/update/prompt",
            "/update/prompt takes POST, OPTIONS. Example: curl -d type=positive "
            '--data-urlencode "text=a fox" http://127.0.0.1:8189/update/prompt',
        ),
        ("GET", "/interrupt", "/interrupt takes POST, OPTIONS. Example: curl -X POST http://127.0.0.1:8189/interrupt"),
        (
            "POST",
            "/workflow",
            "/workflow takes GET, PUT, HEAD, OPTIONS. Example: curl http://127.0.0.1:8189/workflow, "
            "or curl -T workflow_api.json http://127.0.0.1:8189/workflow",
        ),
        ("GET", "/login", "/login takes POST, OPTIONS."),
    ],
)
def test_another_method_gets_the_line_of_curl_that_works(method: str, path: str, message: str) -> None:
    with pytest.raises(HttpError) as caught:
        find_route(method, path, URL)
    assert caught.value.message == message


def test_an_error_of_the_body_shows_what_a_body_is_like() -> None:
    routes = {row.path: row for row in ROUTES}
    of_the_body = "not_json not_an_object not_a_form duplicate_field unknown_field missing_field wrong_type wrong_value"
    for type_ in of_the_body.split():
        error = show_body(HttpError(400, type_, "No."), routes["/update/inputs"])
        assert error.message == (
            'No. Example: {"node_id": "5", "inputs": {"seed": "random"}}'
            ", or with curl: -d node_id=5 -d inputs.seed=random"
        )
        assert show_body(HttpError(400, type_, "No."), routes["/interrupt"]).message == "No."
    assert show_body(HttpError(404, "no_such_node", "No."), routes["/update/inputs"]).message == "No."


def sent_by_curl(words: List[str]) -> bytes:
    """The body that curl makes of -d and --data-urlencode."""
    pairs = []
    for option, value in zip(words, words[1:]):
        name, _, text = value.partition("=")
        if option == "-d":
            pairs.append(value)
        elif option == "--data-urlencode":
            pairs.append(f"{name}={urllib.parse.quote(text)}")
    return "&".join(pairs).encode()


def test_the_examples_are_json_and_the_same_as_forms_in_their_commands() -> None:
    examples = [row for row in ROUTES if row.body]
    assert {row.path for row in examples} == {"/update/prompt", "/update/inputs", "/run", "/v1/images/generations"}
    for row in examples:
        assert f" {row.form} " in row.curl_command(URL)
        body = sent_by_curl(shlex.split(row.form))
        assert parse_object_or_form(body, "application/x-www-form-urlencoded") == json.loads(row.body)


@pytest.mark.parametrize("path", ["", "/queue/", "/Queue", "/runs/", "/runs/a/b", "/view/x", "/.", "/%2e", "*"])
def test_another_path_is_not_found(path: str) -> None:
    with pytest.raises(HttpError) as caught:
        find_route("GET", path, URL)
    assert (caught.value.http_status, caught.value.type) == (404, "not_found")


def test_the_document_of_routes_is_json_and_has_every_route() -> None:
    document = json.loads(read_resource("openapi.json"))
    assert document["openapi"] == "3.1.0" and document["info"]["version"] == __version__
    there = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert there == {(row.method, row.path) for row in ROUTES}
    for row in ROUTES:
        operation = document["paths"][row.path][row.method.lower()]
        assert operation["summary"] == row.summary
        assert set(map(str, row.statuses)) <= set(operation["responses"])
    names = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(set(names)) == len(names)
    for methods in document["paths"].values():
        for operation in methods.values():
            assert {"401", "403", "404", "503"} <= set(operation["responses"])
    references = re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(document))
    assert set(references) <= set(document["components"]["schemas"])


def test_a_name_in_the_url_that_a_route_does_not_take_is_refused() -> None:
    upload, _ = find_route("POST", "/upload/image", URL)
    check_query(["node_id", "force"], upload)
    refused = {
        ("POST", "/upload/image", "node"): 'no "node" in the URL. Nearest: node_id, force.',
        ("POST", "/interrupt", "prompt_id"): 'no "prompt_id" in the URL. Fields go into the body.',
        ("GET", "/queue", "text"): 'no "text" in the URL.',
    }
    for (method, path, name), reason in refused.items():
        route, _ = find_route(method, path, URL)
        with pytest.raises(HttpError) as caught:
            check_query([name], route)
        assert (caught.value.type, caught.value.message) == ("unknown_field", f"{method} {path} takes {reason}")


def test_the_document_says_what_may_be_in_the_url_of_a_route_that_changes_something() -> None:
    document = json.loads(read_resource("openapi.json"))
    for row in ROUTES:
        if row.method == "GET" and row.path != "/queue":
            continue
        parameters = document["paths"][row.path][row.method.lower()].get("parameters", [])
        assert row.query == tuple(entry["name"] for entry in parameters if entry.get("in") == "query")


def test_the_document_says_where_forms_are_taken() -> None:
    document = json.loads(read_resource("openapi.json"))
    taken = {
        path
        for path, methods in document["paths"].items()
        if "application/x-www-form-urlencoded" in methods.get("post", {}).get("requestBody", {}).get("content", {})
    }
    # others take no fields, or JSON alone
    assert taken == {"/update/prompt", "/update/inputs", "/interrupt", "/run", "/v1/images/generations"}


def test_every_line_of_curl_names_the_address() -> None:
    lines = curl_lines("http://127.0.0.1:8189", None)
    commands = [line for line in lines if line.startswith("      curl ")]
    assert len(commands) == len([row for row in ROUTES if row.curl])
    for command in commands:
        assert "http://127.0.0.1:8189/" in command and "{}" not in command.replace("'{}'", "")


def test_an_example_sets_an_input_that_the_workflow_has() -> None:
    update, _ = find_route("POST", "/update/inputs", URL)
    status, _ = find_route("GET", "/status", URL)
    example = InputExample(InputRef("12:3", "noise_seed"), "random")
    fitted = fit_route(update, example)
    assert fitted.body == '{"node_id": "12:3", "inputs": {"noise_seed": "random"}}'
    assert fitted.form == "-d node_id=12:3 -d inputs.noise_seed=random"
    assert fit_route(update, None) is update and fit_route(status, example) is status
    (line,) = (line for line in curl_lines(URL, example) if "/update/inputs" in line and "curl" in line)
    assert "-d node_id=12:3 -d inputs.noise_seed=random" in line
    with pytest.raises(HttpError) as caught:
        find_route("GET", "/update/inputs", URL, lambda: example)
    assert "-d node_id=12:3 " in caught.value.message
    odd = fit_route(update, InputExample(InputRef("it's", "a b"), 1.5)).form
    words = [quote_argument("node_id=it's", IS_WINDOWS), quote_argument("inputs.a b=1.5", IS_WINDOWS)]
    assert odd == f"-d {words[0]} -d {words[1]}"


def test_options_lists_the_methods_of_a_path() -> None:
    response = options_response("/runs/x")
    assert (response.status, response.body) == (204, b"")
    headers = dict(response.headers)
    assert headers["Allow"] == headers["Access-Control-Allow-Methods"] == "GET, DELETE, HEAD, OPTIONS"
    assert headers["Access-Control-Allow-Headers"] == "authorization, content-type"
    for wanted, answer in {
        "authorization,x-stainless-os": "authorization,x-stainless-os",
        "x: y": "authorization, content-type",
        "x" * 1001: "authorization, content-type",
    }.items():
        headers = dict(options_response("/runs/x", wanted).headers)
        assert headers["Access-Control-Allow-Headers"] == answer
    with pytest.raises(HttpError) as caught:
        options_response("/nowhere")
    assert caught.value.http_status == 404
