"""Requests and answers of continuous mode, without a socket."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import anything, few

from comfyui_runner.edits import EditError
from comfyui_runner.errors import PromptRejected, ServerAnswer, ServerUnreachable, WorkflowError
from comfyui_runner.messages import (
    HttpError,
    Response,
    as_http_error,
    choose_disposition,
    encode_head,
    error_response,
    hide_secrets,
    json_response,
    parse_fields,
    parse_object,
    security_headers,
    strict_json,
)
from comfyui_runner.redaction import Secrets


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "not_json"),
        (b"\xff", "not_json"),
        (b"[" * 100000, "not_json"),
        (b"1" * 5000 + b"x", "not_json"),
        (b"[]", "not_an_object"),
        (b"null", "not_an_object"),
        (b'"text"', "not_an_object"),
        (b"", "missing_field"),
        (b"{}", "missing_field"),
        (b'{"node_id": "1"}', "missing_field"),
        (b'{"text": 1}', "wrong_type"),
        (b'{"text": null}', "wrong_type"),
        (b'{"text": "a", "node_id": 6.5}', "wrong_type"),
        (b'{"text": "a", "node_id": true}', "wrong_type"),
        (b'{"text": "a", "node_id": null}', "wrong_type"),
        (b'{"text": "a", "inputs": []}', "wrong_type"),
        (b'{"text": "a", "more": 1}', "unknown_field"),
        (b'{"Text": "a"}', "unknown_field"),
    ],
)
def test_what_is_not_such_an_object_gets_400(body: bytes, reason: str) -> None:
    with pytest.raises(HttpError) as caught:
        parse_fields(body, {"text": str}, {"node_id": str, "inputs": dict})
    assert (caught.value.http_status, caught.value.type) == (400, reason)


def test_the_fields_of_an_object_come_as_they_are() -> None:
    known = {"text": str}
    assert parse_fields(b'\xef\xbb\xbf{"text": "\xe7\x8b\x90"}', known, {}) == {"text": "狐"}
    assert parse_object(b'{"more": 1}') == {"more": 1}
    assert parse_fields(b" \r\n", {}, {"prompt": dict}) == {}


@pytest.mark.parametrize(("sent", "node_id"), [(b"6", "6"), (b"6.0", "6"), (b"-1", "-1"), (b'"6.0"', "6.0")])
def test_a_whole_number_is_taken_as_the_id_of_a_node(sent: bytes, node_id: str) -> None:
    assert parse_fields(b'{"node_id": %s}' % sent, {}, {"node_id": str}) == {"node_id": node_id}


FORM = "application/x-www-form-urlencoded"


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (b"", {}),
        (b"text=a+fox", {"text": "a fox"}),
        (b"&text=a%3Db=c&", {"text": "a=b=c"}),
        (b"%74ext=%E9%9B%AA%26", {"text": "雪&"}),
        ("text=雪".encode(), {"text": "雪"}),  # curl -d sends what is typed as it is
        (b"text=%EF%BB%BFa%0D%0Ab%0Dc", {"text": "a\nb\nc"}),  # text@FILE, from Notepad
        (b"text=%FF%FEa%00", {"text": "a"}),  # text@FILE, from > of Windows PowerShell
        (b"node_id=5&text=", {"node_id": "5", "text": ""}),
        (b"inputs.a.b=1&inputs.=2", {"inputs": {"a.b": "1", "": "2"}}),
        (b'{"text": "a=b"}', {"text": "a=b"}),
        (b'\xef\xbb\xbf {"text": "a"}', {"text": "a"}),
    ],
)
def test_the_fields_of_a_form_are_texts(body: bytes, fields: Any) -> None:
    known = {"text": str, "node_id": str, "inputs": dict}
    assert parse_fields(body, {}, known, FORM) == fields
    assert parse_fields(body, {}, known, "Application/X-WWW-Form-Urlencoded; charset=utf-8") == fields


@pytest.mark.parametrize(
    ("body", "reason", "words"),
    [
        (b"a fox", "not_a_form", "a field is NAME=VALUE"),
        (b"text=a&b", "not_a_form", "a field is NAME=VALUE"),
        (b"text=a&%74ext=b", "duplicate_field", 'The field "text" appears twice.'),
        (b"inputs.a=1&inputs.a=2", "duplicate_field", 'The field "inputs.a" appears twice.'),
        (b"inputs=1&inputs.a=2", "wrong_type", "inputs.NAME=VALUE"),
        (b"text=caf%E9", "not_utf_8", '"text" is not in UTF-8, but probably in Windows-1252.'),
        (b"text=%01%E9", "not_utf_8", "probably in another encoding."),
        (b"more=1", "unknown_field", 'no field "more"'),
        (b"", "missing_field", "The field text is missing."),
        (b"{text: a}", "not_json", "The body is not JSON"),
        (b"[]", "not_an_object", "must be a JSON object"),
    ],
)
def test_a_form_that_cannot_be_read_gets_400(body: bytes, reason: str, words: str) -> None:
    with pytest.raises(HttpError) as caught:
        parse_fields(body, {"text": str}, {}, FORM)
    assert (caught.value.http_status, caught.value.type) == (400, reason)
    assert words in caught.value.message


def test_what_is_not_called_a_form_is_none() -> None:
    for content_type in ("", "application/json", "multipart/form-data; boundary=x", "text/plain"):
        with pytest.raises(HttpError) as caught:
            parse_fields(b"text=a", {"text": str}, {}, content_type)
        assert caught.value.type == "not_json"


@few
@given(st.binary(max_size=40) | anything.map(lambda value: json.dumps(value).encode()))
def test_nothing_but_an_http_error_comes_of_an_odd_body(body: bytes) -> None:
    try:
        assert isinstance(parse_fields(body, {"text": str}, {"inputs": dict}), dict)
    except HttpError as error:
        assert error.http_status == 400
    try:
        assert isinstance(parse_fields(body, {}, {"text": str, "inputs": dict}, FORM), dict)
    except HttpError as error:
        assert error.http_status == 400


def test_fields_are_named_in_the_message() -> None:
    for body, message in [
        (b"{}", "The field text is missing."),
        (b'{"text": 1}', "The field text must be a text."),
        (b'{"text": "", "inputs": 1}', "The field inputs must be an object."),
        (b'{"txt": ""}', r'There is no field "txt" here\. Nearest: text, inputs\.'),
    ]:
        with pytest.raises(HttpError, match=message):
            parse_fields(body, {"text": str}, {"inputs": dict})
    with pytest.raises(HttpError, match=r'There is no field "text" here: this route takes no fields\.'):
        parse_fields(b'{"text": ""}', {}, {})


# -- JSON ----------------------------------------------------------------------------------------------


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": [1.5, None, "狐"]}, '{"a": [1.5, null, "\\u72d0"]}'),
        (float("nan"), "null"),
        ({"value": float("inf"), "more": [float("-inf")]}, '{"value": null, "more": [null]}'),
        ({"a": {1}}, '{"a": [1]}'),
        ({(1, 2): b"abc"}, '{"(1, 2)": "<3 bytes>"}'),
    ],
)
def test_json_is_strict_whatever_it_is_made_of(value: Any, text: str) -> None:
    assert strict_json(value) == text


def test_json_that_is_too_deep_is_cut() -> None:
    assert "\\u2026" in strict_json(deep(100000))


def test_an_answer_has_json_with_its_length() -> None:
    assert json_response(201, {"a": 1}, (("X", "y"),)) == Response(201, b'{"a": 1}\n', headers=(("X", "y"),))


def test_secrets_are_hidden_in_json_and_in_nothing_else() -> None:
    secrets = Secrets(["hunter22"])
    answer = hide_secrets(json_response(200, {"a": "hunter22", "b": 1}), secrets)
    assert answer.body == b'{"a": "***", "b": 1}\n'
    assert hide_secrets(Response(204), Secrets(["!!!!!"])) == Response(204)
    for untouched in (
        Response(200, b"\xffhunter22", "image/png"),
        Response(200, b"hunter22", "text/html; charset=utf-8"),
        Response(200, stream=print),
    ):
        assert hide_secrets(untouched, secrets) == untouched


# -- errors --------------------------------------------------------------------------------------------


def error_of(error: BaseException) -> Tuple[int, str, str]:
    """Status, type and message that a client gets."""
    answer = error_response(error)
    body = json.loads(answer.body)["error"]
    return answer.status, body["type"], body["message"]


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (KeyError("oops"), (500, "internal_error", "KeyError: 'oops'")),
        (WorkflowError("Not a workflow.", "Take another."), (400, "workflow_error", "Not a workflow. Take another.")),
        (EditError("no_such_node", "No."), (400, "no_such_node", "No.")),
        (EditError("no_loader", "No."), (409, "no_loader", "No.")),
        (HttpError(418, "teapot", "No."), (418, "teapot", "No.")),
        (ServerAnswer("No.", status=400), (400, "comfyui_refused", "No.")),
        (ServerAnswer("No.", status=403), (400, "comfyui_refused", "No.")),
        (ServerAnswer("No.", status=404), (400, "comfyui_refused", "No.")),
        (ServerAnswer("No.", status=413), (413, "comfyui_refused", "No.")),
        (ServerAnswer("No.", status=500), (503, "comfyui_failed", "No.")),
        (ServerAnswer("No.", status=401), (503, "comfyui_failed", "No.")),
        (ServerAnswer("No.", "Wait.", status=502, from_proxy=True), (503, "comfyui_failed", "No. Wait.")),
        (ServerAnswer("No.", status=403, from_proxy=True), (503, "comfyui_failed", "No.")),
        (ServerAnswer("No.", "Less.", status=413, from_proxy=True), (413, "comfyui_refused", "No. Less.")),
        (ServerUnreachable("No answer.", "Start it."), (503, "server_unreachable", "No answer. Start it.")),
    ],
)
def test_every_error_is_an_answer_in_json(error: BaseException, answer: Tuple[int, str, str]) -> None:
    assert error_of(error) == answer


def test_the_details_of_an_error_come_along() -> None:
    for error in (HttpError(400, "x", "y", {"a": 1}), EditError("x", "y", {"a": 1})):
        assert json.loads(error_response(error).body)["error"]["details"] == {"a": 1}
    assert json.loads(error_response(KeyError()).body)["error"]["details"] is None


def test_what_comfyui_refused_is_answered_in_its_own_words() -> None:
    answer = {"error": {"type": "prompt_no_outputs", "message": "Prompt has no outputs"}, "node_errors": {}}
    error = PromptRejected("ComfyUI refused the prompt.", answer=answer)
    assert error_response(error) == json_response(400, answer)
    http_error = as_http_error(error)
    assert (http_error.http_status, http_error.type) == (400, "prompt_rejected")


def test_503_says_when_to_try_again() -> None:
    assert error_response(ServerUnreachable("No answer.")).headers == (("Retry-After", "5"),)
    own = (("Retry-After", "1"),)
    assert error_response(HttpError(503, "x", "y", headers=own)).headers == own
    assert error_response(HttpError(400, "x", "y")).headers == ()


# -- heads of answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "head"),
    [
        (
            Response(200, b"{}", headers=(("A", "b"),)),
            b"HTTP/1.1 200 OK\r\nA: b\r\nContent-Type: application/json\r\nContent-Length: 2\r\nX: y\r\n\r\n",
        ),
        (Response(204), b"HTTP/1.1 204 No Content\r\nX: y\r\n\r\n"),
        (Response(304, stream=print), b"HTTP/1.1 304 Not Modified\r\nX: y\r\n\r\n"),
        (
            Response(200, type="text/event-stream", stream=print),
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX: y\r\n\r\n",
        ),
        (
            Response(404, headers=(("A", "狐"),)),
            b"HTTP/1.1 404 Not Found\r\nA: ?\r\nContent-Type: application/json\r\nContent-Length: 0\r\nX: y\r\n\r\n",
        ),
    ],
)
def test_the_head_of_an_answer(response: Response, head: bytes) -> None:
    assert encode_head(response, (("X", "y"),)) == head


@pytest.mark.parametrize(
    "header",
    [
        ("A", "b\r\nSet-Cookie: c"),
        ("A", "b\r\n c"),  # as http.client reads a folded header of ComfyUI's
        ("A", "b\nc"),
        ("A", "b\rc"),
        ("A", "b\0c"),
        ("A", "b\x7fc"),
        ("A\r\nB", "c"),
        ("A b", "c"),
        ("", "c"),
    ],
)
def test_a_header_with_a_control_character_is_not_sent(header: Tuple[str, str]) -> None:
    for response, more in [(Response(200, headers=(header,)), ()), (Response(200), (header,))]:
        with pytest.raises(HttpError) as caught:
            encode_head(response, more)
        assert caught.value.http_status == 500


def test_a_type_with_a_line_break_does_not_split_the_answer() -> None:
    for type_ in ("image/png\r\nContent-Type: text/html", "image/png\r\n\r\n<script>"):
        with pytest.raises(HttpError, match="Content-Type"):
            encode_head(Response(200, b"", type_), ())


@few
@given(st.text(max_size=20), st.text(max_size=20))
def test_a_header_is_one_line_or_refused(name: str, value: str) -> None:
    try:
        head = encode_head(Response(204), ((name, value),))
    except HttpError:
        return
    assert len(head.splitlines()) == 3 and head.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("content_type", "sent"),
    [
        ("image/png", ("image/png", "inline")),
        (" Image/PNG ", ("image/png", "inline")),
        ("video/mp4", ("video/mp4", "inline")),
        ("audio/flac", ("audio/flac", "inline")),
        ("text/plain; charset=utf-8", ("text/plain; charset=utf-8", "inline")),
    ],
)
def test_known_types_are_shown_in_place(content_type: str, sent: Tuple[str, str]) -> None:
    assert choose_disposition(content_type) == sent


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "text/html",
        "image/svg+xml",
        "image/png,text/html",
        "image/png, text/html",
        "image/png;text/html",
        "image/png; charset=utf-7",
        "image/png\r\n\r\n<script>",
        "image/png-x",
        "image/png+xml",
        "video/anything+xml",
        "text/plain; charset=utf-7",
        "x image/png",
    ],
)
def test_any_other_type_is_a_download(content_type: str) -> None:
    assert choose_disposition(content_type) == ("application/octet-stream", "attachment")


def test_a_stream_without_a_length_ends_with_its_connection() -> None:
    assert Response(200, stream=print).ends_with_connection
    assert Response(200, stream=print, headers=(("ETag", "x"),)).ends_with_connection
    assert not Response(200, stream=print, headers=(("Content-Length", "7"),)).ends_with_connection
    assert not Response(304, stream=print, headers=(("ETag", "x"),)).ends_with_connection
    assert not Response(200).ends_with_connection


def test_only_the_scripts_of_the_page_may_run() -> None:
    page = b"<script>one()</script><p><script>two()\n</script>"
    policy = dict(security_headers(page))["Content-Security-Policy"]
    hashes = [base64.b64encode(hashlib.sha256(script).digest()).decode() for script in (b"one()", b"two()\n")]
    assert "script-src 'sha256-%s' 'sha256-%s';" % tuple(hashes) in policy
    assert "script-src 'none';" in dict(security_headers(b""))["Content-Security-Policy"]
