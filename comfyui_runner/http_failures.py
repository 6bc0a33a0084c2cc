"""Why a request to ComfyUI failed, in words: no answer, or one with another status."""

from __future__ import annotations

import json
from typing import Any, List, Mapping

from comfyui_runner.addresses import CA_VARIABLES
from comfyui_runner.errors import RunnerError, ServerAnswer, ServerUnreachable, UsageError
from comfyui_runner.text import one_line
from comfyui_runner.third_party import import_third_party

#: The variables that name trusted certificate authorities, for messages.
CA_VARIABLE_NAMES = " or ".join(CA_VARIABLES)


def explain_no_answer(error: BaseException, url: str) -> ServerUnreachable:
    """The error for an exception of requests, where nothing (or not all) came from ``url``."""
    exceptions = import_third_party("requests").exceptions
    causes = causes_of(error)
    names = {type(cause).__name__ for cause in causes}

    if isinstance(error, exceptions.SSLError):
        why = f"the TLS connection failed ({one_line(causes[-1], 200)})"
        return ServerUnreachable(f"{url}: {why}.", _remedy_for_tls(str(error).upper()))

    # requests raises a plain OSError for a file that does not exist.
    if "TLS CA certificate bundle" in str(error):
        why = "the file of trusted certificates does not exist"
        remedy = f"Correct {CA_VARIABLE_NAMES}: {one_line(error, 200)}"
        return ServerUnreachable(f"{url}: {why}.", remedy)

    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        why = "nothing listens there (connection refused)"
        return ServerUnreachable(f"{url}: {why}.", refused=True)

    if isinstance(error, exceptions.Timeout):
        remedy = "It may be busy, or a firewall drops the connection."
        return ServerUnreachable(f"{url}: no answer in time.", remedy)

    if names & {"gaierror", "NameResolutionError"}:  # socket's and urllib3's
        remedy = "Check the spelling in --server."
        return ServerUnreachable(f"{url}: the host's name is not known.", remedy)

    if isinstance(error, exceptions.ProxyError):
        remedy = "Set NO_PROXY for this host."
        return ServerUnreachable(f"{url}: the proxy of the system refuses.", remedy)

    return ServerUnreachable(f"{url}: the connection broke ({type(causes[-1]).__name__}).")


def causes_of(error: BaseException) -> List[BaseException]:
    """``error`` and what it wraps: requests hides the reason behind urllib3's exceptions."""
    causes: List[BaseException] = []
    waiting: List[Any] = [error]
    while waiting and len(causes) < 20:
        cause = waiting.pop()
        if not isinstance(cause, BaseException) or cause in causes:
            continue
        causes.append(cause)
        wrapped = [cause.__cause__, cause.__context__, getattr(cause, "reason", None), *cause.args]
        waiting.extend(wrapped)
    return causes


def _remedy_for_tls(reason: str) -> str:
    if "NO_CERTIFICATE_OR_CRL_FOUND" in reason:
        return f"The file in {CA_VARIABLE_NAMES} has no certificate in PEM format."
    if "CERTIFICATE" in reason:
        return (
            "Give the server a certificate that this machine trusts "
            f"({CA_VARIABLE_NAMES} names the file of your own authority)."
        )
    if "VERSION" in reason or "RECORD" in reason:  # wrong version number, record layer failure
        return "It does not seem to speak TLS there: use http:// instead."
    return ""


def explain_status(
    status: int, headers: Mapping[str, str], body: bytes, url: str, call: str
) -> RunnerError:
    """The error for an answer whose status the call does not expect.

    ``call`` is its method and path ("GET /queue"). It is a ServerAnswer; but a UsageError where the
    address is this program's own.
    """
    content: Any
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        content = one_line(body.decode(errors="replace"), 300)

    if headers.get("Server", "").startswith("comfyui-workflow-runner"):
        message = f"{url} is this program itself in continuous mode, not ComfyUI."
        return UsageError(message, "Name ComfyUI's own address.")

    if status in (401, 403, 407):
        message = f"{url} refuses us (HTTP {status} for {call})."
        remedy = (
            "Give the credentials: --server https://user:password@host, "
            "or --header 'Authorization: Bearer …'."
        )
    elif 300 <= status < 400:
        target = one_line(headers.get("Location", "elsewhere"), 200)
        message = f"{url} redirects us to {target} (HTTP {status})."
        remedy = "Give --server the address that it means."
    elif status == 413:
        message = f"The request is too large for ComfyUI (HTTP 413 for {call})."
        remedy = "Start ComfyUI with a larger --max-upload-size."
    else:
        message = f"{url} answered HTTP {status} to {call}{_quoted(content)}."
        remedy = "ComfyUI's own console says why." if status == 500 else ""
    return ServerAnswer(message, remedy, status=status, body=content)


def _quoted(content: Any) -> str:
    """The text of an answer, to follow a message; not that of a web page."""
    is_text = isinstance(content, str) and bool(content) and "<" not in content
    return f": {content}" if is_text else ""
