"""Stories of continuous mode: what its console shows of requests and of the workflow."""

from __future__ import annotations

from typing import Any, Dict, List

import pytest
from served import TEXTS, Json, Make, Middleware
from support import node, wait_until

BROWSER = {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64) Chrome/131.0", "Accept-Language": "en"}

NO_MODEL: Json = {**TEXTS, "1": node("CheckpointLoaderSimple", "Load Checkpoint", ckpt_name="missing.safetensors")}


def shown(service: Middleware, text: str) -> List[str]:
    """The lines of the console that contain ``text``, once there are any."""

    def lines() -> List[str]:
        return [line for line in service.out.getvalue().splitlines() if text in line]

    wait_until(lines, what=f"{text!r} on the console")
    return lines()


def forget(service: Middleware) -> None:
    """What the tests before made the console count does not matter."""
    service.service.refusals._counters.clear()


@pytest.mark.parametrize(
    ("method", "path", "body", "line"),
    [
        (
            "POST",
            "/update/inputs",
            {"node_id": "5", "inputs": {"steps": 0}},
            'POST /update/inputs refused (400): "KSampler" (node 5): steps = 0 is too small. Allowed: 1 to 10000.',
        ),
        (
            "POST",
            "/update/prompt",
            {"node_id": "77", "text": "a"},
            'POST /update/prompt refused (400): The workflow has no node "77". Did you mean 7?',
        ),
        (
            "POST",
            "/interrupt",
            None,
            "POST /interrupt refused (409): No run of this service is running or waiting.",
        ),
        (
            "POST",
            "/prompt",
            {"prompt": {"1": node("SaveImage", "Save", filename_prefix="x", images=["9", 0])}},
            "POST /prompt refused (400): ComfyUI refused the prompt: nothing was run. "
            '"Save" (SaveImage, node 1): images links to node 9, which is not in the workflow.',
        ),
        ("PUT", "/workflow", {"1": {}}, "PUT /workflow refused (400): "),
        ("DELETE", "/queue", None, "DELETE /queue refused (405): /queue takes GET, POST, HEAD, OPTIONS."),
    ],
)
def test_a_refused_run_or_edit_is_a_line_with_who_and_why(
    service: Middleware, method: str, path: str, body: Any, line: str
) -> None:
    forget(service)
    assert service.call(method, path, body).status >= 400
    assert shown(service, f"127.0.0.1: {line}")


def test_a_request_whose_head_cannot_be_followed_is_a_line_too(service: Middleware) -> None:
    forget(service)
    chunked = b"POST /prompt HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert service.raw(chunked).status == 411
    assert shown(service, "127.0.0.1: POST /prompt refused (411): Send a Content-Length, not a chunked body.")


def test_a_foreign_page_that_tries_to_start_a_run_is_named(service: Middleware) -> None:
    forget(service)
    service.call("GET", "/queue", None, {**BROWSER, "Referer": "http://evil.example/page?private=1"})
    [line] = shown(service, "evil.example")
    assert line.startswith("127.0.0.1 (page http://evil.example/page): GET /queue refused (403): ")


def test_what_changes_nothing_is_not_shown_when_it_is_refused(service: Middleware) -> None:
    forget(service)
    for path in ("/runs/none-such", "/nowhere-at-all", "/view?filename=/a", "/update/inputs"):
        assert service.get(path).status >= 400
    assert service.call("OPTIONS", "/nowhere-at-all").status == 404
    service.post("/update/inputs", {"node_id": "the-last-one", "inputs": {}})
    assert shown(service, "the-last-one")
    for request in ("GET /runs/none-such", "/nowhere-at-all", "GET /view refused", "GET /update/inputs refused"):
        assert request not in service.out.getvalue()


def test_escape_codes_of_a_request_do_not_reach_the_terminal(service: Middleware) -> None:
    forget(service)
    service.post("/update/inputs", {"node_id": "\x1b[2J\x07hostile\nline", "inputs": {}})
    [line] = shown(service, "hostile")
    assert "\x1b" not in line and "\x07" not in line and "hostile line" in line


def test_a_flood_of_refused_requests_does_not_flood_the_console(service: Middleware) -> None:
    forget(service)
    for _ in range(60):
        service.post("/interrupt", {"prompt_id": "flood-of-requests"})
        service.post("/queue", {"flood": 1})
    lines = [line for line in service.out.getvalue().splitlines() if "refused" in line]
    assert len([line for line in lines if "with that prompt_id" in line]) == 1
    assert len([line for line in lines if '"flood"' in line]) == 1
    counts = {report["path"]: report["count"] for report in service.service.refusals.take_due(float("inf"))}
    assert counts["/interrupt"] == counts["/queue"] == 59


def test_what_was_counted_is_shown_at_the_end(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator)
    for _ in range(4):
        service.post("/queue", {"text": "a fox"})
    assert service.stop() == 0
    lines = [line for line in service.out.getvalue().splitlines() if "/queue refused" in line]
    assert [line.partition(":")[0] for line in lines] == ["127.0.0.1", "127.0.0.1"]
    assert "refused 3 more times (400)" in lines[1]


def test_what_was_counted_is_shown_after_a_while(
    make_middleware: Make, simulator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comfyui_runner.refusals.COUNTING_SECONDS", 0.3)
    service = make_middleware(simulator)
    for _ in range(3):
        service.post("/queue", {"text": "a fox"})
    assert shown(service, "more times (400)") or shown(service, "refused (400)")


def test_wrong_tokens_are_shown_and_never_repeated(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator.url, environment={"COMFYUI_RUNNER_TOKEN": "s3cret-of-the-tests"})
    assert service.get("/status", Authorization="Bearer gue55ed").status == 401
    assert service.post("/login", {"token": "gue55ed"}).status == 403
    assert shown(service, "127.0.0.1: GET /status refused (401): This service needs a token")
    assert shown(service, "127.0.0.1: POST /login refused (403): This is not the token.")
    assert "gue55ed" not in service.out.getvalue() + service.err.getvalue()


def test_json_has_refusals_as_events(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator)
    assert service.post("/queue", {"text": "a fox"}).status == 400
    shown(service, "/queue refused")
    reports: List[Dict[str, Any]] = []
    service.service._show = lambda prompt_id, report: reports.append(report)
    service.post("/interrupt")
    wait_until(lambda: reports)
    assert (reports[0]["event"], reports[0]["type"]) == ("refused", "nothing_to_interrupt")


def test_a_missing_model_is_reported_at_the_start(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator, prompt=NO_MODEL)
    assert shown(service, "ComfyUI would refuse to run the workflow as it is:")
    [line] = shown(service, 'ckpt_name = "missing.safetensors"')
    assert line.startswith('"Load Checkpoint" (CheckpointLoaderSimple, node 1): ')
    assert shown(service, "options to choose from")


@pytest.mark.long
def test_a_missing_model_is_reported_once_comfyui_comes_and_not_again(make_middleware: Make, simulator: Any) -> None:
    simulator.crash()
    service = make_middleware(simulator, prompt=NO_MODEL)
    assert 'ckpt_name = "missing.safetensors"' not in service.out.getvalue()
    for _ in range(2):
        simulator.revive()
        wait_until(lambda: service.get("/health").json["comfyui"], what="ComfyUI's coming")
        [_] = shown(service, 'ckpt_name = "missing.safetensors"')
        simulator.crash()
        wait_until(lambda: not service.get("/health").json["comfyui"], what="the loss")


def test_a_problem_that_was_gone_and_comes_back_is_reported_again(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator, prompt=NO_MODEL)
    assert len(shown(service, 'ckpt_name = "missing.safetensors"')) == 1
    for prompt in (NO_MODEL, TEXTS, NO_MODEL):
        service.hold(prompt)
        service.service.run_in_loop(service.service._check_workflow(), 10.0)
    wait_until(lambda: len(shown(service, 'ckpt_name = "missing.safetensors"')) == 2, what="the second report")
    assert len(shown(service, "ComfyUI would refuse to run the workflow as it is:")) == 2


def test_many_problems_at_the_start_are_counted(make_middleware: Make, simulator: Any) -> None:
    loaders = {str(number): node("CheckpointLoaderSimple", ckpt_name="none") for number in range(20)}
    links: Json = {f"in{number}": [str(number), 0] for number in range(20)}
    saved = {"a": node("SaveImage", filename_prefix="x", images=["b", 0]), "b": node("Nope", "Nope", **links)}
    service = make_middleware(simulator, prompt={**loaders, **saved})
    assert shown(service, "9 more problems.")
    assert len(shown(service, 'ckpt_name = "none"')) == 11


def test_a_workflow_that_can_run_is_not_complained_about(service: Middleware) -> None:
    assert "would refuse" not in service.out.getvalue()


def test_the_first_problem_is_in_the_message(service: Middleware) -> None:
    save = node("SaveImage", "Save", filename_prefix="x", images=["9", 0])
    service.service.held.hold({"1": save, "2": save})
    answer = service.get("/queue")
    first = (
        '"Save" (SaveImage, node 1): images links to node 9, which is not in the workflow. '
        "Connect it again, or export the workflow again. (1 more problem.)"
    )
    assert answer.json["error"]["message"] == f"ComfyUI refused the prompt: nothing was run. {first}"
    assert len(answer.json["error"]["details"]["problems"]) == 2
    assert service.get("/runs").json["runs"][0]["message"] == answer.json["error"]["message"]


def test_the_first_class_that_is_missing_is_in_the_message(service: Middleware) -> None:
    answer = service.call("PUT", "/workflow", {"1": node("Nope", "Mine"), "2": node("SaveImage", images=["1", 0])})
    assert (answer.status, answer.error) == (400, "invalid_workflow")
    assert '"Mine" (Nope, node 1): the server does not have the class Nope.' in answer.json["error"]["message"]


def test_comfyuis_own_answer_to_a_prompt_stays_as_it_is(service: Middleware) -> None:
    answer = service.post("/prompt", {"prompt": {"1": node("SaveImage", filename_prefix="x", images=["9", 0])}})
    assert answer.status == 400 and set(answer.json) == {"error", "node_errors"}
    assert answer.json["error"]["message"] == "Prompt outputs failed validation"
