"""Requests and answers of continuous mode, before any socket."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any, Callable, Dict, Mapping, NamedTuple, Optional, Tuple

from comfyui_runner.errors import RunnerError, ServerAnswer
from comfyui_runner.text import one_line, plain_json

#: Content types that a browser may open in place; all else is downloaded (HTML and SVG run scripts).
INLINE_TYPES = re.compile(
    r"^(image/(png|jpeg|webp|gif|avif|bmp)|video/[\w.+-]+|audio/[\w.+-]+|text/plain)\b"
)


def security_headers(page: bytes) -> Tuple[Tuple[str, str], ...]:
    """Sent with everything: nothing is guessed, framed, or fetched from elsewhere, and no script runs
    but those of ``page``, which are known by their hashes."""

    scripts = re.findall(rb"<script>(.*?)</script>", page, re.S)
    hashes = [
        "'sha256-%s'" % base64.b64encode(hashlib.sha256(script).digest()).decode()
        for script in scripts
    ]
    return (
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "same-origin"),
        ("Cache-Control", "no-store"),
        ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; script-src %s; "
         "img-src 'self' blob: data:; media-src 'self' blob:; connect-src 'self'; form-action 'none'; base-uri 'none'; "
         "frame-ancestors 'none'" % (" ".join(hashes) or "'none'")),
    )  # fmt: skip


JSON_LIMIT = 16 << 20  #: bytes of a JSON body


class HttpError(RunnerError):
    """An answer that is no success. ``type`` names it for programs."""

    def __init__(
        self, status: int, type: str, message: str, details: Any = None, **headers: str
    ) -> None:
        super().__init__(message)
        self.http_status = status
        self.type = type
        self.details = details
        self.headers = tuple((name.replace("_", "-"), value) for name, value in headers.items())


class Request(NamedTuple):
    """The head of a request; names of headers in lower case. ``path`` is without ``/api``."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]


class Response(NamedTuple):
    """An answer: a body, or ``stream``, which writes itself to the connection."""

    status: int
    body: bytes = b""
    type: str = "application/json"
    headers: Tuple[Tuple[str, str], ...] = ()
    stream: Optional[Callable[[Any], None]] = None


def json_response(status: int, body: Any, *headers: Tuple[str, str]) -> Response:
    """``body`` as JSON."""
    return Response(status, strict_json(body).encode(), headers=headers)


_STRICT = json.JSONEncoder(allow_nan=False)


def strict_json(value: Any) -> str:
    """``value`` as strict JSON; what that cannot hold is made plain first."""
    try:
        return _STRICT.encode(value)
    except (ValueError, TypeError, RecursionError):
        return _STRICT.encode(plain_json(value))


def error_response(error: BaseException) -> Response:
    """What a client is told of an error."""
    if isinstance(error, ServerAnswer):
        refused = {400: 400, 403: 400, 404: 400, 413: 413}.get(error.status, 503)
        error = HttpError(
            refused, "comfyui_refused" if refused < 500 else "comfyui_failed", error.message
        )
    elif not isinstance(error, RunnerError):
        error = HttpError(500, "internal_error", "%s: %s" % (type(error).__name__, error))
    kind = (
        getattr(error, "type", None)
        or re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(error).__name__).lower()
    )
    message = (error.message + " " + error.remedy).strip()
    body = {"error": {"type": kind, "message": message, "details": getattr(error, "details", None)}}
    headers = getattr(error, "headers", ())
    if error.http_status == 503 and not any(name == "Retry-After" for name, _ in headers):
        headers = (*headers, ("Retry-After", "5"))
    return json_response(error.http_status, body, *headers)


def parse_fields(
    body: bytes, required: Mapping[str, type], optional: Mapping[str, type]
) -> Dict[str, Any]:
    """The fields of a JSON object. Raises HttpError 400 for what is no such object."""
    try:
        document = json.loads(body) if body.strip() else {}
    except (ValueError, RecursionError) as error:
        raise HttpError(
            400, "not_json", "The body is not JSON: %s." % one_line(error, 200)
        ) from None
    if not isinstance(document, dict):
        raise HttpError(400, "not_an_object", "The body must be a JSON object.")
    for name, kind in {**required, **optional}.items():
        if name not in document and name in required:
            raise HttpError(400, "missing_field", "The field %s is missing." % name)
        if name in document and not isinstance(document[name], kind):
            words = "a text" if kind is str else "an object"
            raise HttpError(400, "wrong_type", "The field %s must be %s." % (name, words))
    return document
