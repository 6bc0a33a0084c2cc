"""Why a request to ComfyUI failed, in words: no answer, or one with another status."""

from __future__ import annotations

import html
import re
from typing import Any, List, Mapping, Tuple

from comfyui_runner.addresses import CA_VARIABLES
from comfyui_runner.errors import RunnerError, ServerAnswer, ServerUnreachable, UsageError
from comfyui_runner.json_text import parse_json
from comfyui_runner.proxies import name_proxy_of, proxy_of_system
from comfyui_runner.retries import PROXY_FAILURES
from comfyui_runner.text import one_line
from comfyui_runner.third_party import import_third_party

#: The variables that name trusted certificate authorities, for messages.
CA_VARIABLE_NAMES = " or ".join(CA_VARIABLES)


def broken_bodies() -> Tuple[Any, ...]:
    """The exceptions of a body that breaks off while it is read."""
    return (import_third_party("urllib3.exceptions").HTTPError, OSError)


def explain_no_answer(error: BaseException, url: str) -> ServerUnreachable:
    """The error for an exception of requests, where nothing came from ``url``.

    Also for those of broken_bodies(), where not all came.
    """
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

    is_late = isinstance(error, exceptions.Timeout) or "ReadTimeoutError" in names  # urllib3's
    if is_late:
        remedy = "It may be busy, or a firewall drops the connection."
        return ServerUnreachable(f"{url}: no answer in time.", remedy)

    if names & {"gaierror", "NameResolutionError"}:  # socket's and urllib3's
        remedy = "Check the spelling in --server."
        return ServerUnreachable(f"{url}: the host's name is not known.", remedy)

    if isinstance(error, exceptions.InvalidSchema) and "SOCKS" in str(error):
        proxy = name_proxy_of(proxy_of_system(url))
        remedy = "Install it (pip install PySocks), or set NO_PROXY for this host."
        why = f"the proxy {proxy} needs the Python package PySocks"
        return ServerUnreachable(f"{url}: {why}.", remedy)

    if isinstance(error, exceptions.ProxyError):
        remedy = "Set NO_PROXY for this host."
        return ServerUnreachable(f"{url}: the system's proxy refused the request.", remedy)

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
        content = parse_json(body)
    except ValueError:
        content = one_line(body.decode(errors="replace"), 300)

    if headers.get("Server", "").startswith("comfyui-workflow-runner"):
        message = f"{url} is this program itself in continuous mode, not ComfyUI."
        return UsageError(message, "Name ComfyUI's own address.")

    from_proxy = is_from_proxy(status, headers, body)
    if 300 <= status < 400:
        target = one_line(headers.get("Location", "elsewhere"), 200)
        message, remedy = _explain_redirect(status, target, url, call)
    elif from_proxy:
        proxy = _name_proxy(headers, body)
        message, remedy = _explain_answer_of_proxy(status, proxy, url, call)
    elif status in (401, 403, 407):
        message = f"{url} refuses us (HTTP {status} for {call})."
        remedy = CREDENTIALS_REMEDY
    elif status == 413:
        message = f"The request is too large for ComfyUI (HTTP 413 for {call})."
        remedy = "Start ComfyUI with a larger --max-upload-size."
    else:
        message = f"{url} answered HTTP {status} to {call}{_quoted(content)}."
        remedy = ""
        if status == 500:
            remedy = "ComfyUI's own console says why."
    return ServerAnswer(message, remedy, status=status, body=content, from_proxy=from_proxy)


def _quoted(content: Any) -> str:
    """The text of an answer, to follow a message."""
    if isinstance(content, str) and content:
        return f": {content}"
    return ""


def explain_no_json(
    headers: Mapping[str, str], body: bytes, url: str, call: str
) -> ServerUnreachable:
    """The error for an answer of status 200 that is not the JSON that ``call`` expects."""
    if is_web_page(headers, body):
        page = _name_proxy(headers, body)
        message = f"{url} answered {call} with a web page{page}: a login or another program."
        return ServerUnreachable(message, f"{LOGIN_REMEDY} Or check the address in --server.")
    message = f"{url} answered {call} with something that is not JSON."
    return ServerUnreachable(message, "Check that it is ComfyUI's address.")


# -- what comes from a login or a proxy in between -------------------------------------------------

CREDENTIALS_REMEDY = (
    "Give the credentials: --server https://user:password@host, "
    'or --header "Authorization: Bearer …".'
)

LOGIN_REMEDY = (
    'Log in: --header "Authorization: Bearer …", or --header "Cookie: …" as sent by a browser '
    "that is logged in, or --server https://user:password@host."
)

#: What is in the address of a page where people log in: /login, /users/sign_in, /oauth2/authorize.
_is_about_login = re.compile(
    r"(?i)(?<![a-z])"
    r"((log|sign)[-_]?(in|on)|o?auth2?|authori[sz]e|authenticate|sso|saml2?)"
    r"(?![a-z])"
).search

#: The texts of the HTTP errors of aiohttp, on which ComfyUI runs (aiohttp/web_exceptions.py).
_is_text_of_aiohttp = re.compile(rb"Maximum request body size |\d{3}: ").match

#: What Cloudflare answers in place of the server behind it.
_CLOUDFLARE_FAILURES = range(520, 531)


def is_from_proxy(status: int, headers: Mapping[str, str], body: bytes) -> bool:
    """Whether a proxy in between made the answer, and not ComfyUI.

    ComfyUI has none of the statuses of a gateway, and its errors are not web pages. With 403 and
    413 it sends JSON, a text of aiohttp's, or nothing (its check of Origin in server.py).
    """
    if status in PROXY_FAILURES or status in _CLOUDFLARE_FAILURES or is_web_page(headers, body):
        return True
    if status not in (403, 413):
        return False
    may_be_comfyuis = (
        not body.strip()
        or body.lstrip().startswith((b"{", b"["))
        or bool(_is_text_of_aiohttp(body))
    )
    return not may_be_comfyuis


def is_web_page(headers: Mapping[str, str], body: bytes = b"") -> bool:
    """Whether an answer is a web page by its type, or by how its body begins.

    ComfyUI sends none to a program: HTML files go as application/octet-stream.
    """
    media_type = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return media_type == "text/html" or body.lstrip().startswith(b"<")


def _name_proxy(headers: Mapping[str, str], body: bytes) -> str:
    """What a proxy calls itself and its page, to follow a word: `` (nginx, "502 Bad Gateway")``."""
    names = []
    program = headers.get("Server", "")
    if program and "aiohttp" not in program:
        names.append(one_line(program, 40))
    title = re.search(rb"(?is)<title[^>]*>(.{1,1000}?)</title>", body)
    if title:
        names.append(f'"{one_line(html.unescape(title[1].decode(errors="replace")), 80)}"')
    if not names:
        return ""
    return f" ({', '.join(names)})"


def _explain_redirect(status: int, target: str, url: str, call: str) -> Tuple[str, str]:
    """The message and the remedy for a redirect, which is not followed."""
    if _is_about_login(target):
        message = f"{url} wants us to log in (HTTP {status} for {call} redirects us to {target})."
        return message, LOGIN_REMEDY
    message = f"{url} redirects us to {target} (HTTP {status})."
    return message, "Give --server the address that it means."


def _explain_answer_of_proxy(status: int, proxy: str, url: str, call: str) -> Tuple[str, str]:
    """The message and the remedy for an error that a proxy made, which is called ``proxy``."""
    if status == 413:
        message = (
            f"The request is too large for a proxy in front of ComfyUI{proxy}: HTTP 413 for {call}."
        )
        remedy = (
            "Raise its limit (nginx: client_max_body_size; Cloudflare allows 100 MB), "
            "or give --server an address that does not lead through it."
        )
        return message, remedy

    if status in (401, 403, 407):
        message = (
            f"{url} refuses us (HTTP {status} for {call}): "
            f"a proxy in front of ComfyUI answers{proxy}, not ComfyUI."
        )
        return message, f"{CREDENTIALS_REMEDY} Or its rules forbid the request."

    answer = f"{url} answered HTTP {status} to {call}"
    if status in PROXY_FAILURES or status in _CLOUDFLARE_FAILURES:
        message = f"{answer}: a proxy{proxy} gets no answer from the ComfyUI behind it."
        return message, "Check that ComfyUI runs there, and how long the proxy waits for it."
    message = f"{answer} with a web page{proxy}: a proxy or another program answers, not ComfyUI."
    return message, "Check the address in --server."
