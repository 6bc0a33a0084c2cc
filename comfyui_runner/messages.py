"""Requests and answers of continuous mode. No socket is touched here."""

from __future__ import annotations

import base64
import functools
import hashlib
import http
import json
import re
import urllib.parse
from typing import (
    Any,
    Callable,
    Collection,
    Dict,
    Iterable,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Tuple,
)

from comfyui_runner.contents import guess_encoding, text_encoding
from comfyui_runner.errors import PromptRejected, RunnerError, ServerAnswer
from comfyui_runner.json_text import parse_json
from comfyui_runner.nodes import nearest_first, quote_name
from comfyui_runner.redaction import Secrets
from comfyui_runner.text import one_line, plain_json

Headers = Tuple[Tuple[str, str], ...]

#: The content type of answers, unless they have another one.
JSON_TYPE = "application/json"

#: The largest JSON body in bytes.
JSON_LIMIT = 16 << 20

#: Content types that a browser may open in place. Others are downloaded: HTML and SVG run scripts.
INLINE_TYPES = frozenset(
    (
        *("image/png", "image/jpeg", "image/webp", "image/gif", "image/avif", "image/bmp"),
        *("video/mp4", "video/webm", "video/ogg", "video/quicktime", "video/x-matroska"),
        *("video/mpeg", "video/x-msvideo", "video/mp2t", "video/3gpp"),
        *("audio/mpeg", "audio/mp3", "audio/wav", "audio/x-wav", "audio/vnd.wave", "audio/wave"),
        *("audio/flac", "audio/x-flac", "audio/ogg", "audio/opus", "audio/webm", "audio/aac"),
        *("audio/mp4", "audio/mp4a-latm", "audio/x-m4a", "audio/x-aiff", "audio/aiff"),
        *("text/plain", "text/plain; charset=utf-8"),
    )
)

#: The names and values that headers may have: the only control character is the tab, in a value
#: (RFC 9110, sections 5.1 and 5.5). Bytes from 0x80 on are accepted because clients send UTF-8.
is_http_token = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
is_header_value = re.compile(r"[\t\x20-\x7e\x80-\xff]*").fullmatch

#: Seconds after which a client may try again when the service or ComfyUI is not available.
RETRY_AFTER = "5"


class Request(NamedTuple):
    """The head of a request. ``path`` is without ``/api``; names of headers are in lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    client: str = ""  # the address that it came from

    def header(self, name: str) -> str:
        """The value of a header, "" if it was not sent."""
        return self.headers.get(name, "")


class Response(NamedTuple):
    """An answer with a ``body``, or with a ``stream``: it is called with a function that sends."""

    status: int
    body: bytes = b""
    type: str = JSON_TYPE
    headers: Headers = ()
    stream: Optional[Callable[[Callable[[bytes], None]], None]] = None

    @property
    def has_no_body(self) -> bool:
        """Whether its status says that the head is all (RFC 9112, section 6.3)."""
        return self.status in (204, 304)

    @property
    def ends_with_connection(self) -> bool:
        """Whether only the end of the connection ends the answer, as with an event stream."""
        if self.stream is None or self.has_no_body:
            return False
        return all(name != "Content-Length" for name, _ in self.headers)


class HttpError(RunnerError):
    """An answer that is not a success. Programs recognize it by its ``type``."""

    def __init__(
        self, status: int, type: str, message: str, details: Any = None, headers: Headers = ()
    ) -> None:
        super().__init__(message)
        self.http_status = status
        self.type = type
        self.details = details
        self.headers = headers
        #: the request whose head was refused, where it could be read
        self.request: Optional[Request] = None


# -- bodies ----------------------------------------------------------------------------------------

#: Without the NaN and Infinity that Python writes by default, and that browsers refuse.
_STRICT_ENCODER = json.JSONEncoder(allow_nan=False)


def strict_json(value: Any) -> str:
    """``value`` as JSON that every parser accepts; what JSON cannot hold is made plain first."""
    try:
        return _STRICT_ENCODER.encode(value)
    except (ValueError, TypeError, RecursionError):
        return _STRICT_ENCODER.encode(plain_json(value))


def json_response(status: int, body: Any, headers: Headers = ()) -> Response:
    """An answer with ``body`` as JSON, and a line break: curl writes none after it."""
    line = strict_json(body).encode() + b"\n"
    return Response(status, line, headers=headers)


def hide_secrets(response: Response, secrets: Secrets) -> Response:
    """``response`` with the secrets in its JSON hidden. Files, pictures and the page stay as is."""
    is_json = response.type == JSON_TYPE and response.stream is None
    if not is_json or not response.body:
        return response
    shown = secrets.hide_in_json(response.body.decode())
    return response._replace(body=shown.encode())


#: The types that parse_fields() can require of a field.
TYPES_IN_WORDS: Mapping[type, str] = {str: "a text", dict: "an object"}


def parse_fields(
    body: bytes,
    required: Mapping[str, type],
    optional: Mapping[str, type],
    content_type: str = "",
) -> Dict[str, Any]:
    """The fields of a JSON object or of a form. An empty body is ``{}``.

    ``required`` and ``optional`` have a type of TYPES_IN_WORDS for each field. Raises HttpError 400
    if the body is neither, has an unknown field or one of another type, or lacks a required field.
    """
    fields = parse_object_or_form(body, content_type)
    if "node_id" in fields:
        fields["node_id"] = read_node_id(fields["node_id"])
    known = {**required, **optional}
    check_names(fields, known)
    for name in required:
        if name not in fields:
            raise HttpError(400, "missing_field", f"The field {name} is missing.")
    check_types(fields, known)
    return fields


def parse_object_or_form(body: bytes, content_type: str) -> Dict[str, Any]:
    """The fields of a JSON object or of a form. Raises HttpError 400 if ``body`` is neither."""
    if is_form(body, content_type):
        return parse_form(body)
    return parse_object(body)


def is_form(body: bytes, content_type: str) -> bool:
    """Whether ``body`` is a form (application/x-www-form-urlencoded).

    curl -d calls every body one. But JSON begins with a brace or a bracket, which forms encode.
    """
    media_type, _, _ = content_type.partition(";")
    if media_type.strip().lower() != "application/x-www-form-urlencoded":
        return False
    without_mark_and_blanks = body.lstrip(b"\xef\xbb\xbf \t\r\n")
    return without_mark_and_blanks[:1] not in (b"", b"{", b"[")


class FormTexts(Dict[str, str]):
    """Texts of a form. The type of an input decides what each one means: "30" may be a number."""


def parse_form(body: bytes) -> Dict[str, Any]:
    """The fields of a form, for shells in which JSON is hard to quote: all of them are texts.

    Those that are called inputs.NAME are collected in the object ``inputs``, by NAME. Raises
    HttpError 400 for what is not a form, is not in UTF-8, or has a field twice.
    """
    fields: Dict[str, Any] = {}
    inputs = FormTexts()
    prefix = "inputs."
    for name, text in read_form_texts(body).items():
        if name == "inputs":
            message = "In a form each input is a field of its own: inputs.NAME=VALUE."
            raise HttpError(400, "wrong_type", message)
        if name.startswith(prefix):
            inputs[name[len(prefix) :]] = text
        else:
            fields[name] = text
    if inputs:
        fields["inputs"] = inputs
    return fields


def read_form_texts(body: bytes) -> Dict[str, str]:
    """The texts of a form, by their names.

    Raises HttpError 400 for what is not a form, is not in UTF-8, or has a field twice.
    """
    texts: Dict[str, str] = {}
    for pair in filter(None, body.split(b"&")):
        encoded_name, equals, encoded_text = pair.partition(b"=")
        if not equals:
            message = "The body is neither a JSON object nor a form: a field is NAME=VALUE."
            raise HttpError(400, "not_a_form", message)
        name = _decode_form(encoded_name).decode(errors="replace")
        text = read_form_text(name, _decode_form(encoded_text))
        if name in texts:
            raise HttpError(400, "duplicate_field", f"The field {quote_name(name)} appears twice.")
        texts[name] = text
    return texts


def _decode_form(encoded: bytes) -> bytes:
    return urllib.parse.unquote_to_bytes(encoded.replace(b"+", b" "))


def read_form_text(name: str, data: bytes) -> str:
    """A text of a form, with plain newlines: ``name@FILE`` of curl sends a file as it is.

    Raises HttpError 400 if it is neither in UTF-8 nor in UTF-16 with a byte order mark.
    """
    try:
        text = data.decode(text_encoding(data))
    except UnicodeDecodeError:
        # curl on Windows sends what is typed in the code page.
        encoding = guess_encoding(data) or "another encoding"
        message = (
            f"The field {quote_name(name)} is not in UTF-8, but probably in {encoding}. "
            'Send it from a file in UTF-8: --data-urlencode "NAME@FILE"'
        )
        raise HttpError(400, "not_utf_8", message) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_object(body: bytes) -> Dict[str, Any]:
    """A JSON object. An empty body is ``{}``. Raises HttpError 400 if it is anything else."""
    if not body.strip():
        return {}
    try:
        fields = parse_json(body)
    except ValueError as error:
        reason = one_line(error, 200)
        raise HttpError(400, "not_json", f"The body is not JSON: {reason}.") from None
    if not isinstance(fields, dict):
        raise HttpError(400, "not_an_object", "The body must be a JSON object.")
    return fields


def read_node_id(value: Any) -> Any:
    """The id of a node as text where ``value`` is a whole number; anything else as it is.

    Programs that count nodes write 5 for "5", and some JSON libraries write 5.0 for 5.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value


def check_names(fields: Iterable[str], known: Collection[str]) -> None:
    """Raises HttpError 400 for the first of ``fields`` that is not known.

    Ignoring it would do something other than what was asked for, and report success.
    """
    for name in fields:
        if name in known:
            continue
        message = f"There is no field {quote_name(name)} here: this route takes no fields."
        if known:
            nearest = nearest_first(name, sorted(known))
            message = f"There is no field {quote_name(name)} here. Nearest: {nearest}."
        raise HttpError(400, "unknown_field", message)


def check_types(fields: Mapping[str, Any], wanted: Mapping[str, type]) -> None:
    """Raises HttpError 400 for a field that is not of the type that is ``wanted`` for it."""
    for name, type_ in wanted.items():
        if name in fields and not isinstance(fields[name], type_):
            message = f"The field {name} must be {TYPES_IN_WORDS[type_]}."
            raise HttpError(400, "wrong_type", message)


# -- errors ----------------------------------------------------------------------------------------

#: The service's own status by that of ComfyUI, where ComfyUI refuses what the client has sent. Any
#: other status of ComfyUI is a failure behind the service (503).
_STATUS_IF_COMFYUI_REFUSES = {400: 400, 403: 400, 404: 400, 413: 413}


def error_response(error: BaseException) -> Response:
    """The answer to a request that ended with ``error``."""
    if isinstance(error, PromptRejected):
        # As ComfyUI's own POST /prompt answers, which clients know.
        return json_response(400, error.answer)

    error = as_http_error(error)
    headers = error.headers
    says_when_to_retry = any(name == "Retry-After" for name, _ in headers)
    if error.http_status == 503 and not says_when_to_retry:
        headers = (*headers, ("Retry-After", RETRY_AFTER))
    body = {"type": error.type, "message": error.message, "details": error.details}
    return json_response(error.http_status, {"error": body}, headers)


def as_http_error(error: BaseException) -> HttpError:
    """Any error as one that has a status and a type."""
    if isinstance(error, HttpError):
        return error
    if not isinstance(error, RunnerError):
        return HttpError(500, "internal_error", f"{type(error).__name__}: {error}")

    message = f"{error.message} {error.remedy}".strip()
    if isinstance(error, ServerAnswer):
        return _error_of_comfyui(error, message)
    type_ = getattr(error, "type", None) or _words_of_class(type(error))
    details = getattr(error, "details", None)
    return HttpError(error.http_status, type_, message, details)


def _error_of_comfyui(answer: ServerAnswer, message: str) -> HttpError:
    """What the service answers where ComfyUI, or a proxy before it, has answered with an error."""
    status = _STATUS_IF_COMFYUI_REFUSES.get(answer.status, 503)
    if answer.from_proxy and status != 413:
        status = 503
    if status == 503:
        return HttpError(status, "comfyui_failed", message)
    return HttpError(status, "comfyui_refused", message)


def _words_of_class(class_: type) -> str:
    """The name of a class in lower case: ServerUnreachable is server_unreachable."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", class_.__name__).lower()


# -- heads of answers ------------------------------------------------------------------------------


def security_headers(page: bytes) -> Headers:
    """The headers that are sent with every answer.

    With them a browser does not guess types, shows nothing in a frame, fetches nothing from
    elsewhere, and runs only the scripts of ``page``, which it recognizes by their hashes.
    """
    hashes = []
    for script in re.findall(rb"<script>(.*?)</script>", page, re.S):
        digest = hashlib.sha256(script).digest()
        hashes.append(f"'sha256-{base64.b64encode(digest).decode()}'")
    allowed_scripts = " ".join(hashes) or "'none'"
    policy = (
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        f"script-src {allowed_scripts}",
        "img-src 'self' blob: data:",
        "media-src 'self' blob:",
        "connect-src 'self'",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
    return (
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "same-origin"),
        ("Cache-Control", "no-store"),
        ("Content-Security-Policy", "; ".join(policy)),
    )


def choose_disposition(content_type: str) -> Tuple[str, str]:
    """The type with which foreign data of ``content_type`` is sent, and "inline" or "attachment".

    The whole value must be a known type: browsers read ``image/png,text/html`` as HTML.
    """
    known_type = content_type.strip().lower()
    if known_type in INLINE_TYPES:
        return known_type, "inline"
    return "application/octet-stream", "attachment"


def encode_head(response: Response, more_headers: Headers) -> bytes:
    """The head of an answer: its status, its own headers, and ``more_headers``.

    Raises HttpError 500 for a header with a control character: a line break in it would split the
    answer in two.
    """
    headers: List[Tuple[str, str]] = [*response.headers]
    if not response.has_no_body:
        headers.append(("Content-Type", response.type))
    if not response.has_no_body and response.stream is None:
        headers.append(("Content-Length", str(len(response.body))))

    phrase = http.HTTPStatus(response.status).phrase
    status_line = f"HTTP/1.1 {response.status} {phrase}\r\n"
    lines = [encode_header(name, value) for name, value in (*headers, *more_headers)]
    return b"".join((status_line.encode(), *lines, b"\r\n"))


@functools.lru_cache(maxsize=256)  # most are the same in every answer
def encode_header(name: str, value: str) -> bytes:
    """One line of the head of an answer. Raises HttpError 500 for what HTTP forbids."""
    plain_value = value.encode("latin-1", "replace").decode("latin-1")
    if not is_http_token(name) or not is_header_value(plain_value):
        message = f"The header {one_line(name, 80)} of the answer has characters that HTTP forbids."
        raise HttpError(500, "internal_error", message)
    return f"{name}: {plain_value}\r\n".encode("latin-1")
