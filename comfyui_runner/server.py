"""ComfyUI over the wire: one HTTP call a method; the WebSocket."""

from __future__ import annotations

import asyncio
import base64
import email.message
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import time
import urllib.parse
import uuid
from typing import (
    TYPE_CHECKING,
    Any,
    Dict,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
)

from comfyui_runner import __version__
from comfyui_runner.errors import (
    PromptRejected,
    RunnerError,
    ServerAnswer,
    ServerGone,
    ServerUnreachable,
    UsageError,
)
from comfyui_runner.events import parse_message
from comfyui_runner.limits import DEFAULT_LIMITS, Limits
from comfyui_runner.outputs import Output, view_path
from comfyui_runner.text import as_dict, one_line
from comfyui_runner.threads import bounded
from comfyui_runner.versions import refuse_old_version

if TYPE_CHECKING:
    import requests


class Address(NamedTuple):
    """Where a server is: ``url`` without credentials and without a last slash; headers to send."""

    url: str
    headers: Tuple[Tuple[str, str], ...] = ()
    secrets: Tuple[str, ...] = ()  # texts that must never be shown

    @property
    def websocket(self) -> str:
        """The URL that the WebSocket paths go behind."""
        return "ws" + self.url[len("http") :]

    @property
    def local(self) -> bool:
        """Whether it is on this machine, so that no proxy of the system may be asked for it."""
        host = urllib.parse.urlsplit(self.url).hostname or ""
        return host in ("localhost", "::1") or host.startswith("127.")


def parse_address(text: str, headers: Sequence[str] = ()) -> Address:
    """The address in ``text`` (``http://user:password@host:8188/base``, or ``host:8188``).

    ``headers`` are "Name: value" lines. Raises UsageError, in whose message no secret stands.
    """
    text = text.strip()
    if "://" not in text:
        text = "http://" + text
    try:
        text.encode()
        parts = urllib.parse.urlsplit(text.strip())
        host, port, username, password = parts.hostname, parts.port, parts.username, parts.password
    except ValueError:
        raise UsageError(
            "The server's URL has a host or port that is none.", "Example: http://127.0.0.1:8188"
        ) from None
    if (
        parts.scheme not in ("http", "https")
        or not host
        or re.search(r"[\s\x00-\x1f\x7f]", text.strip())
    ):
        raise UsageError(
            "The server's URL must be http:// or https:// with a host.",
            "Example: http://127.0.0.1:8188",
        )
    if parts.query or parts.fragment:
        raise UsageError(
            "The server's URL must end before any ? or #.", "Give a token as --header instead."
        )
    shown = "[%s]" % host if ":" in host else host
    url = "%s://%s%s%s" % (
        parts.scheme,
        shown,
        ":%d" % port if port else "",
        parts.path.rstrip("/"),
    )
    sent: Dict[str, str] = {}
    secrets: List[str] = []
    if username is not None or password is not None:
        pair = "%s:%s" % (
            urllib.parse.unquote(username or ""),
            urllib.parse.unquote(password or ""),
        )
        token = base64.b64encode(pair.encode()).decode()
        sent["Authorization"] = "Basic " + token
        secrets += [token, pair, password or "", urllib.parse.unquote(password or "")]
    for line in headers:
        name, colon, value = line.partition(":")
        name, value = name.strip(), value.strip()
        if not colon or not re.match(r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$", name):
            raise UsageError(
                "A header must look like 'Name: value'.",
                "Example: --header 'Authorization: Bearer …'",
            )
        if re.search(r"[\x00-\x1f\x7f]", value) or not _is_latin_1(value):
            raise UsageError(
                "The value of the header %s has characters that no header may have." % name
            )
        for other in [other for other in sent if other.lower() == name.lower()]:
            del sent[other]
        sent[name] = value
        secrets += [value, *value.split()[1:]]
    hidden = sorted({secret for secret in secrets if len(secret) > 3}, key=len, reverse=True)
    return Address(url, tuple(sent.items()), tuple(hidden))


def _is_latin_1(text: str) -> bool:
    try:
        text.encode("latin-1")
    except UnicodeEncodeError:
        return False
    return True


def new_uuid() -> str:
    """A random id in the form that ComfyUI demands of a prompt_id: lowercase, with hyphens."""

    return str(uuid.uuid4())


def uploaded_value(answer: Mapping[str, Any]) -> str:
    """How a loader names the file that ComfyUI's ``answer`` to an upload tells of. Raises ServerAnswer for none."""
    name, folder, kind = (str(answer.get(key) or "") for key in ("name", "subfolder", "type"))
    if not name:
        raise ServerAnswer("ComfyUI took the upload, but names no file.", status=400)
    return (
        (folder + "/" if folder else "") + name + ("" if kind in ("input", "") else " [%s]" % kind)
    )


class Server:
    """ComfyUI's HTTP routes, one method each. Every call is one try and has a timeout.

    All raise ServerUnreachable when no whole answer came and ServerAnswer for a status that the
    route does not have. The methods block; an event loop calls them through in_thread().
    """

    def __init__(self, address: Address, limits: Limits = DEFAULT_LIMITS) -> None:
        self.address = address
        self.limits = limits
        self._own: Set[str] = set()  # the cookies that the user gave
        self._session = self._new_session()
        self.affinity: Dict[
            str, str
        ] = {}  #: the cookies by which a load balancer keeps us on one server
        self.gone = False  #: it sent us to another one
        self._has_jobs: Optional[bool] = (
            None  # /api/jobs/{id}/cancel: found out by the first cancel
        )

    def _new_session(self) -> "requests.Session":
        session: "requests.Session" = import_third_party("requests").Session()
        session.trust_env = not self.address.local
        session.auth = _keep_request  # else a ~/.netrc entry would replace our Authorization
        session.headers["User-Agent"] = "comfyui-workflow-runner/" + __version__
        for name, value in self.address.headers:
            if (
                name.lower() == "cookie"
            ):  # beside the cookies that the server gives, which may replace them
                domain = import_third_party("http.cookiejar").eff_request_host(self._handshake())[1]
                for pair in value.split(";"):
                    session.cookies.set(*map(str.strip, pair.partition("=")[::2]), domain=domain)
                    self._own.add(pair.partition("=")[0].strip())
            else:
                session.headers[name] = value
        return session

    # -- one jar of cookies for HTTP and WebSocket: load balancers and login proxies need it ------------

    def fresh(self) -> "Server":
        """The same address with an empty jar, for which a load balancer chooses a server anew."""
        return Server(self.address, self.limits)

    @property
    def given(self) -> Dict[str, str]:
        """The cookies that the server gave."""
        jar: Any = self._session.cookies
        return {
            cookie.name: str(cookie.value) for cookie in list(jar) if cookie.name not in self._own
        }

    def _handshake(self) -> Any:
        """The WebSocket's handshake as a jar of cookies wants to see it."""
        headers = {name: value for name, value in self.address.headers if name.lower() == "host"}
        request = import_third_party("requests").Request(
            "GET", self.address.url + "/ws", headers=headers
        )
        return import_third_party("requests.cookies").MockRequest(request)

    def handshake_headers(self) -> List[Tuple[str, str]]:
        """The headers of the WebSocket's handshake. Raises ServerGone."""
        self._stay()
        request = self._handshake()
        self._session.cookies.add_cookie_header(request)
        found = request.get_new_headers().get("Cookie")
        headers = [pair for pair in self.address.headers if pair[0].lower() != "cookie"]
        return headers + ([("Cookie", found)] if found else [])

    def take_cookies(self, lines: Sequence[str]) -> None:
        """Keeps the cookies of the WebSocket's handshake. Raises ServerGone."""

        message = email.message.Message()
        for line in lines:
            message["Set-Cookie"] = line
        answer = import_third_party("requests.cookies").MockResponse(message)
        self._session.cookies.extract_cookies(answer, self._handshake())
        self._stay()

    def find_affinity(self) -> None:
        """Tells which of the cookies that the server gave stay, and which change with every answer, by one more
        request."""
        before = self.given
        self.queue()
        self.affinity = {
            name: value for name, value in self.given.items() if before.get(name) == value
        }

    def _stay(self) -> None:
        if self.affinity and not self.gone:
            now = self.given
            self.gone = any(now.get(name) != value for name, value in self.affinity.items())
        if self.gone:
            raise ServerGone(
                "The load balancer at %s sends us to another server: ours is gone."
                % self.address.url
            )

    def open(
        self,
        method: str,
        path: str,
        timeout: Optional[float] = None,
        body: Any = None,
        accept: Sequence[int] = (200,),
        headers: Mapping[str, str] = {},
    ) -> "requests.Response":
        """The answer to one request, its body unread. Redirects are refused: credentials go nowhere else.

        ``body`` is sent as JSON, but a file as it is.
        """
        library = import_third_party("requests")
        self._stay()
        data = body if body is None or hasattr(body, "read") else json.dumps(body).encode()
        sent = (
            {"Content-Type": "application/json", **headers} if data is not None else dict(headers)
        )
        try:
            response: "requests.Response" = self._session.request(
                method, self.address.url + path, data=data, headers=sent, stream=True, allow_redirects=False,
                timeout=(self.limits.connect, timeout or self.limits.read),
            )  # fmt: skip
        except (library.RequestException, OSError, ValueError) as error:
            raise self._unreachable(error) from error
        try:
            self._stay()
        except ServerGone:
            response.close()
            raise
        head = response.headers
        if not head.get("Content-Length", "").isdigit() and not (
            "Transfer-Encoding" in head or head.get("Connection", "").lower() == "close"
        ):  # http.client takes the end of the connection for the end of the head
            response.close()
            raise ServerUnreachable("The answer of %s was cut short." % self.address.url)
        if response.status_code in accept:
            return response
        text = self._body(response)
        raise _unexpected(response, text, self.address.url, method + " " + path.partition("?")[0])

    def _body(self, response: "requests.Response") -> bytes:
        """The whole body. Raises ServerUnreachable if it breaks off."""
        library = import_third_party("requests")
        try:
            data = response.content
        except (library.RequestException, OSError) as error:
            raise self._unreachable(error) from error
        finally:
            response.close()
        expected = response.headers.get("Content-Length", "")
        if (
            expected.isdigit()
            and "Content-Encoding" not in response.headers
            and len(data) != int(expected)
        ):
            raise ServerUnreachable("The answer of %s was cut short." % self.address.url)
        return data

    def call(
        self,
        method: str,
        path: str,
        timeout: Optional[float] = None,
        body: Any = None,
        accept: Sequence[int] = (200,),
    ) -> Any:
        """The JSON of one answer (None for an empty body)."""
        data = self._body(self.open(method, path, timeout, body, accept))
        try:
            return json.loads(data) if data else None
        except (ValueError, RecursionError):
            raise ServerUnreachable(
                "%s answered %s with something that is not JSON."
                % (self.address.url, path.partition("?")[0]),
                "Check that it is ComfyUI's address.",
            ) from None

    def _unreachable(self, error: BaseException) -> ServerUnreachable:
        library = import_third_party("requests")
        chain: List[BaseException] = []
        waiting: List[Any] = [error]
        while waiting and len(chain) < 20:
            cause = waiting.pop()
            if isinstance(cause, BaseException) and cause not in chain:
                chain.append(cause)
                waiting += [
                    cause.__cause__,
                    cause.__context__,
                    getattr(cause, "reason", None),
                    *cause.args,
                ]
        refused = any(isinstance(cause, ConnectionRefusedError) for cause in chain)
        if isinstance(error, library.exceptions.SSLError):
            why, remedy = "the TLS connection failed (%s)" % one_line(chain[-1], 200), ""
            if "CERTIFICATE" in str(error).upper():
                remedy = "Give the server a certificate that this machine trusts (REQUESTS_CA_BUNDLE names your own)."
            elif "VERSION" in str(error).upper() or "RECORD" in str(error).upper():
                remedy = "It does not seem to speak TLS there: use http:// instead."
        elif refused:
            why, remedy = "nothing listens there (connection refused)", ""
        elif isinstance(error, library.Timeout):
            why, remedy = "no answer in time", "It may be busy, or a firewall drops the connection."
        elif any(type(cause).__name__ in ("gaierror", "NameResolutionError") for cause in chain):
            why, remedy = "the host's name is not known", "Check the spelling in --server."
        elif isinstance(error, library.exceptions.ProxyError):
            why, remedy = "the proxy of the system refuses", "Set NO_PROXY for this host."
        else:
            why, remedy = "the connection broke (%s)" % type(chain[-1]).__name__, ""
        return ServerUnreachable("%s: %s." % (self.address.url, why), remedy, refused=refused)

    def system_stats(self) -> Dict[str, Any]:
        """GET /system_stats. Raises ServerAnswer for an answer that is not ComfyUI's, ServerTooOld."""
        stats = self.call("GET", "/system_stats", min(self.limits.read, 10.0))
        if not isinstance(stats, dict) or "system" not in stats:
            raise ServerAnswer(
                "What answers at %s is not ComfyUI." % self.address.url,
                "Check --server.",
                status=200,
            )
        refuse_old_version(stats, self.address.url)
        return stats

    def submit(self, body: Mapping[str, Any]) -> Dict[str, Any]:
        """POST /prompt. Raises PromptRejected for ComfyUI's 400."""
        self._session.close()  # a kept-alive connection may be dead by now, and a POST must not be tried twice
        try:
            return as_dict(self.call("POST", "/prompt", self.limits.post, body))
        except ServerAnswer as error:
            if error.status == 400 and isinstance(error.body, dict):
                raise PromptRejected(
                    "ComfyUI refused the prompt: nothing was run.", answer=error.body
                ) from None
            raise

    def queue(self) -> Dict[str, Any]:
        """GET /queue."""
        return as_dict(self.call("GET", "/queue"))

    def history_entry(self, prompt_id: str) -> Optional[Dict[str, Any]]:
        """GET /history/{prompt_id}: the entry, or None while there is none."""
        history = as_dict(
            self.call("GET", "/history/" + urllib.parse.quote(prompt_id, safe="", errors="replace"))
        )
        entry = history.get(prompt_id)
        return entry if isinstance(entry, dict) else None

    def delete(self, prompt_id: str) -> None:
        """Takes one waiting prompt off the queue; an id that waits nowhere is no error."""
        self.call("POST", "/queue", body={"delete": [prompt_id]})

    def interrupt(self, prompt_id: str) -> None:
        """Interrupts the prompt if it runs, and no other."""
        self.call("POST", "/interrupt", body={"prompt_id": prompt_id})

    def cancel_job(self, prompt_id: str) -> bool:
        """POST /api/jobs/{id}/cancel, waiting or running; False where the server has no such route."""
        if self._has_jobs is False:
            return False
        try:
            self.call(
                "POST",
                "/api/jobs/%s/cancel" % urllib.parse.quote(prompt_id, safe="", errors="replace"),
                body={},
            )
        except ServerAnswer as error:
            if error.status in (404, 405, 501):
                self._has_jobs = False
                return False
            raise
        self._has_jobs = True
        return True

    def object_info(self, class_type: str) -> Optional[Dict[str, Any]]:
        """GET /object_info/{class}: the class's definition, {} if the server does not have it."""
        if class_type in ("", ".", ".."):
            return {}  # as parts of a path they would name something else
        info = self.call(
            "GET", "/object_info/" + urllib.parse.quote(class_type, safe="", errors="replace")
        )
        return as_dict(as_dict(info).get(class_type))

    def all_object_info(self) -> Dict[str, Any]:
        """GET /object_info: every class's definition (megabytes)."""
        return as_dict(self.call("GET", "/object_info", self.limits.post))

    def has_input(self, value: str) -> bool:
        """Whether a loader's ``value`` ("cat.png", "folder/cat.png", "cat.png [output]") names a file that is there."""
        found = re.match(r"^(?:(.*)/)?([^/]+?)(?: \[(input|output|temp)\])?$", value)
        if not found:
            return False
        output = Output("", "", "", found.group(2), found.group(1) or "", found.group(3) or "input")
        try:
            self.open("GET", view_path(output)).close()
        except ServerAnswer:
            return False
        return True

    def upload_file(self, path: str) -> str:
        """Uploads a file of this machine; the value by which a loader names it. Raises UsageError if it has none."""

        name = re.sub(r'["\r\n\\]', "_", os.path.basename(path)) or "upload"
        head = '--%s\r\nContent-Disposition: form-data; name="image"; filename="%s"\r\n\r\n'
        cut = new_uuid()
        with tempfile.TemporaryFile() as form:
            try:
                with open(path, "rb") as file:
                    form.write((head % (cut, name)).encode(errors="replace"))
                    shutil.copyfileobj(file, form, 1 << 20)
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise UsageError("%s cannot be uploaded: %s." % (path, reason)) from None
            form.write(("\r\n--%s--\r\n" % cut).encode())
            form.seek(0)
            answer = self.upload(form, "multipart/form-data; boundary=" + cut)
        return uploaded_value(answer)

    def features(self) -> Dict[str, Any]:
        """GET /features: what the server can do."""
        return as_dict(self.call("GET", "/features"))

    def upload(self, file: Any, content_type: str) -> Dict[str, Any]:
        """POST /upload/image with a multipart body as it is in ``file``."""
        response = self.open(
            "POST", "/upload/image", self.limits.post, file, headers={"Content-Type": content_type}
        )
        try:
            return as_dict(json.loads(self._body(response)))
        except ValueError:
            raise ServerUnreachable("ComfyUI's answer to the upload is not JSON.") from None

    def url_of(self, output: Output) -> str:
        """The URL of an output's file, for people (without credentials)."""
        return self.address.url + view_path(output)


def _keep_request(request: Any) -> Any:
    return request


def _unexpected(response: "requests.Response", text: bytes, url: str, call: str) -> RunnerError:
    status = response.status_code
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        body = one_line(text.decode(errors="replace"), 300)
    if response.headers.get("Server", "").startswith("comfyui-workflow-runner"):
        return UsageError(
            "%s is this program itself in continuous mode, not ComfyUI." % url,
            "Name ComfyUI's own address.",
        )
    if status in (401, 403, 407):
        remedy = "Give the credentials: --server https://user:password@host, or --header 'Authorization: Bearer …'."
        return ServerAnswer(
            "%s refuses us (HTTP %d for %s)." % (url, status, call),
            remedy,
            status=status,
            body=body,
        )
    if 300 <= status < 400:
        there = one_line(response.headers.get("Location", "elsewhere"), 200)
        return ServerAnswer(
            "%s sends us on to %s (HTTP %d)." % (url, there, status), "Give --server the address that it means.",
            status=status,
        )  # fmt: skip
    if status == 413:
        remedy = "Start ComfyUI with a larger --max-upload-size."
        return ServerAnswer(
            "ComfyUI takes no request of this size (HTTP 413 for %s)." % call, remedy, status=status
        )
    said = ": %s" % body if isinstance(body, str) and body and "<" not in body else ""
    remedy = "ComfyUI's own console says why." if status == 500 else ""
    return ServerAnswer(
        "%s answered HTTP %d to %s%s." % (url, status, call, said), remedy, status=status, body=body
    )


def import_third_party(name: str) -> Any:
    """The module ``name``, or a RunnerError that says how to install it."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RunnerError(
            "The Python package %s is missing (%s)." % (name.partition(".")[0], error),
            'Install what the runner needs: "%s" -m pip install websockets requests rich'
            % sys.executable,
        ) from None


#: The largest WebSocket message that is taken, in bytes (SaveImageWebsocket sends whole pictures).
MAX_MESSAGE = 256 << 20


async def connect_websocket(server: Server, client_id: str) -> Any:
    """An open WebSocket whose first message, ``status``, was read; with previews' metadata asked for.

    Raises ServerUnreachable, or ServerAnswer when the handshake is answered with an HTTP status.
    """

    client = import_third_party("websockets.asyncio.client")
    exceptions = import_third_party("websockets.exceptions")
    logger = logging.getLogger("comfyui_workflow_runner.websocket")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    options: Dict[str, Any] = {"proxy": None} if server.address.local and _takes_proxy() else {}
    wait = server.limits.websocket
    try:
        connecting = client.connect(
            server.address.websocket + "/ws?clientId=" + urllib.parse.quote(client_id),
            additional_headers=server.handshake_headers(),
            compression=None,  # previews are compressed already, and the rest is small
            max_size=MAX_MESSAGE,
            open_timeout=wait,
            close_timeout=2.0,
            ping_interval=20.0,
            ping_timeout=60.0,  # ComfyUI may load a model for long without answering
            logger=logger,
            **options,
        )
        connecting.process_redirect = _keep_request  # a redirect would carry our headers elsewhere
        socket = await connecting
        try:
            server.take_cookies(socket.response.headers.get_all("Set-Cookie"))
            await socket.send(
                json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
            )
            deadline = time.monotonic() + wait
            while (
                parse_message(
                    await asyncio.wait_for(socket.recv(), max(deadline - time.monotonic(), 0.01)),
                    0.0,
                ).type
                != "status"
            ):
                pass
            if server.given and not server.affinity:
                await bounded(server.find_affinity, seconds=server.limits.read)
        except BaseException:
            socket.transport.abort()  # close() waits for the server, and leaks when it is cancelled meanwhile
            raise
        return socket
    except exceptions.InvalidStatus as error:
        status = error.response.status_code
        raise ServerAnswer("HTTP %d to the WebSocket handshake" % status, status=status) from None
    except (OSError, EOFError, asyncio.TimeoutError, exceptions.WebSocketException) as error:
        refused = isinstance(error, ConnectionRefusedError) or "Connect call failed" in str(error)
        raise ServerUnreachable(type(error).__name__, refused=refused) from error


def _takes_proxy() -> bool:
    version = import_third_party("websockets.version").version
    return int(version.partition(".")[0]) >= 15
