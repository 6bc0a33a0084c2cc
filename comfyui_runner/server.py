"""ComfyUI's HTTP routes, one method each."""

from __future__ import annotations

import json
import os
import re
import urllib.parse
import uuid
from typing import TYPE_CHECKING, Any, Collection, Dict, Iterator, List, Mapping, Optional, Sequence

from comfyui_runner import __version__
from comfyui_runner.addresses import Address
from comfyui_runner.answer_body import (
    PACKING,
    AnswerBody,
    UnreadableBody,
    is_packed,
    stated_length,
)
from comfyui_runner.certificates import certifi_bundle, make_ssl_context_for_http
from comfyui_runner.cookies import Cookies
from comfyui_runner.errors import PromptRejected, ServerAnswer, ServerUnreachable, UsageError
from comfyui_runner.events import prompts_remaining
from comfyui_runner.host_routes import HostRoute
from comfyui_runner.http_connections import make_adapter
from comfyui_runner.http_failures import (
    broken_bodies,
    explain_no_answer,
    explain_no_json,
    explain_status,
    is_web_page,
)
from comfyui_runner.json_text import parse_json
from comfyui_runner.limits import DEFAULT_LIMITS, Limits
from comfyui_runner.outputs import Output, view_path
from comfyui_runner.redaction import Secrets, secrets_in_extra_data
from comfyui_runner.text import as_dict, duration
from comfyui_runner.third_party import import_third_party
from comfyui_runner.threads import ConnectionDeadline
from comfyui_runner.versions import refuse_old_version

if TYPE_CHECKING:
    import requests

#: How many classes are looked up one by one. For more, a single answer with all classes of the
#: server (megabytes) costs less than so many requests.
MOST_CLASSES_ONE_BY_ONE = 50

#: The longest wait for GET /system_stats in seconds: it comes first, while a person waits.
STATS_SECONDS = 10.0

#: How many bytes of a body are read at a time.
ANSWER_PIECE_SIZE = 1 << 16


def split_look_up(classes: Sequence[str]) -> List[Sequence[str]]:
    """``classes`` in parts: definitions() is called once for each."""
    if len(classes) > MOST_CLASSES_ONE_BY_ONE:
        return [classes]
    return [[name] for name in classes]


def new_uuid() -> str:
    """A random id in the form that ComfyUI demands of a prompt_id: lowercase, with hyphens."""
    return str(uuid.uuid4())


def uploaded_value(answer: Mapping[str, Any]) -> str:
    """The value by which a loader names an uploaded file, from ComfyUI's ``answer``.

    Raises ServerAnswer if the answer names no file.
    """
    name = str(answer.get("name") or "")
    subfolder = str(answer.get("subfolder") or "")
    folder = str(answer.get("type") or "")
    if not name:
        raise ServerAnswer("ComfyUI accepted the upload, but did not name the file.", status=400)
    value = name
    if subfolder:
        value = f"{subfolder}/{name}"
    if folder in ("", "input"):
        return value
    return f"{value} [{folder}]"


class Server:
    """ComfyUI's HTTP routes, one method each. Every call is one try and has a timeout.

    All raise ServerUnreachable if no whole answer came, ServerAnswer for a status that the route
    does not have, and ServerGone if a load balancer sends us elsewhere. The methods block, so an
    event loop calls them through bounded(). ``secrets`` learns the credentials that are sent and
    that the program did not start with: cookies, and keys in extra_data.
    """

    def __init__(
        self,
        address: Address,
        limits: Limits = DEFAULT_LIMITS,
        secrets: Optional[Secrets] = None,
        route: Optional[HostRoute] = None,
    ) -> None:
        self.address = address
        self.route = route or HostRoute(address.host, address.port)
        self.limits = limits
        self.secrets = secrets or Secrets()
        self._session = self._new_session()
        self.cookies = Cookies(address, self._session.cookies)
        self._has_jobs: Optional[bool] = None  # /api/jobs/{id}/cancel: the first cancel shows it

    def _new_session(self) -> "requests.Session":
        session: "requests.Session" = import_third_party("requests").Session()
        session.trust_env = not self.address.local  # no proxy of the system for this machine
        bundle = self.address.ca_bundle
        tls = None
        if self.address.has_tls:
            tls = make_ssl_context_for_http(bundle)
        adapter = make_adapter(self.route, tls)
        session.mount("http://", adapter)
        session.mount("https://", adapter)
        # A path and not True, for which requests 2.32.0 uses a context of its own.
        session.verify = bundle or certifi_bundle()
        session.auth = keep_request  # else a ~/.netrc entry would replace our Authorization
        # requests reads the whole body of a redirect, even if it does not follow it. So it must not
        # see that there is one.
        session.get_redirect_target = lambda *_: None  # type: ignore[method-assign]
        session.headers["User-Agent"] = f"comfyui-workflow-runner/{__version__}"
        session.headers["Accept-Encoding"] = PACKING
        for name, value in self.address.headers:
            if name.lower() != "cookie":
                session.headers[name] = value
        return session

    def fresh(self) -> "Server":
        """The same address with an empty jar, for which a load balancer chooses a server anew."""
        return Server(self.address, self.limits, self.secrets, self.route)

    def close(self) -> None:
        """Closes the connections that are kept for more requests. Later requests open new ones."""
        self._session.close()

    @property
    def affinity(self) -> Mapping[str, str]:
        """The cookies by which a load balancer keeps us on one server; {} without one."""
        return self.cookies.affinity

    @property
    def gone(self) -> bool:
        """Whether the load balancer sends us to another server."""
        return self.cookies.gone

    def find_affinity(self) -> None:
        """Finds out by one more request which cookies stay the same: those are for affinity."""
        before = self.cookies.from_server
        self.queue()
        self.cookies.find_affinity(before)

    # -- requests --------------------------------------------------------------------------------

    def open(
        self,
        method: str,
        path: str,
        *,
        data: Any = None,
        files: Any = None,
        headers: Mapping[str, str] = {},
        timeout: Optional[float] = None,
        accept: Sequence[int] = (200,),
    ) -> "requests.Response":
        """The answer to one request. Its body is not read yet.

        ``data`` and ``files`` are the body, as requests takes them. Redirects are not followed, so
        that credentials go nowhere else.
        """
        requests_errors = import_third_party("requests").RequestException
        self.cookies.require_same_server()
        try:
            response: "requests.Response" = self._session.request(
                method,
                self.address.url + path,
                data=data,
                files=files,
                headers=dict(headers),
                stream=True,
                allow_redirects=False,
                timeout=(self.limits.connect, timeout or self.limits.read),
            )
        except (requests_errors, OSError, ValueError) as error:
            raise explain_no_answer(error, self.address.url) from error

        self.secrets.learn(self.cookies.credentials)
        try:
            self.cookies.require_same_server()
            self._require_whole_head(response)
        except ServerUnreachable:
            response.close()
            raise

        if response.status_code in accept:
            return response
        call = call_in_words(method, path)
        body = self._read_error(response, call, timeout or self.limits.read)
        raise explain_status(
            response.status_code, response.headers, body, url=self.address.url, call=call
        )

    def _require_whole_head(self, response: "requests.Response") -> None:
        """Raises ServerUnreachable for a head that was cut off, which http.client does not notice.

        What is cut off is the headers that say where the body ends.
        """
        headers = response.headers
        says_where_it_ends = (
            response.status_code in (204, 304)  # these have no body (RFC 9112, section 6.3)
            or stated_length(headers) is not None
            or "Transfer-Encoding" in headers
            or headers.get("Connection", "").lower() == "close"
        )
        if not says_where_it_ends:
            raise ServerUnreachable(f"The answer of {self.address.url} was cut short.")

    def _read_error(self, response: "requests.Response", call: str, seconds: float) -> bytes:
        """The body of an answer whose status is an error; nothing if it cannot be read."""
        try:
            return self._read_body(response, call, seconds, self.limits.error_size)
        except UnreadableBody:
            return b""  # the status says enough

    def _read_body(
        self, response: "requests.Response", call: str, seconds: float, limit: int
    ) -> bytes:
        """The whole body, unpacked. It may take ``seconds``, and have ``limit`` bytes.

        All bodies that are kept in memory are read here. Raises UnreadableBody if it is too large
        or its packing is broken, ServerUnreachable if it breaks off or takes too long.
        """
        try:
            body = AnswerBody(response.headers.get("Content-Encoding", ""), limit)
            has_body = not response.raw.closed
            if has_body:
                self._receive(response, body, call, seconds)
        finally:
            response.close()

        expected = stated_length(response.headers)
        if expected is not None and body.came != expected:
            raise ServerUnreachable(f"The answer of {self.address.url} was cut short.")
        return body.finish()

    def _receive(
        self, response: "requests.Response", body: AnswerBody, call: str, seconds: float
    ) -> None:
        """Reads all of an answer into ``body``. Raises UnreadableBody, ServerUnreachable."""
        with ConnectionDeadline(response.raw.fileno(), seconds) as deadline:
            try:
                for piece in read_pieces(response):
                    body.add(piece)
            except broken_bodies() as error:
                if not deadline.has_passed:
                    raise explain_no_answer(error, self.address.url) from error
        if deadline.has_passed:
            message = (
                f"The answer of {self.address.url} to {call} did not arrive completely "
                f"in {duration(seconds)}."
            )
            raise ServerUnreachable(message, "It may be busy, or the connection is slow.")

    def call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        timeout: Optional[float] = None,
        limit: Optional[int] = None,
    ) -> Any:
        """The JSON of one answer (None for an empty one). ``body`` is sent as JSON.

        ``timeout`` (seconds) and ``limit`` (bytes) replace ``limits.read`` and
        ``limits.answer_size``.
        """
        data = None
        headers: Dict[str, str] = {}
        if body is not None:
            data = json.dumps(body).encode()
            headers = {"Content-Type": "application/json"}
        response = self.open(method, path, data=data, headers=headers, timeout=timeout)
        return self._read_json(response, call_in_words(method, path), timeout, limit)

    def _read_json(
        self,
        response: "requests.Response",
        call: str,
        timeout: Optional[float],
        limit: Optional[int] = None,
    ) -> Any:
        """The JSON of an answer to ``call`` ("GET /queue"), None for an empty one."""
        url = self.address.url
        seconds = timeout or self.limits.read
        most_bytes = limit or self.limits.answer_size
        try:
            answer = self._read_body(response, call, seconds, most_bytes)
        except UnreadableBody as error:
            message = f"The answer of {url} to {call} cannot be read: {error}."
            raise ServerUnreachable(message, "Check that it is ComfyUI's address.") from None
        if not answer:
            return None
        try:
            return parse_json(answer)
        except ValueError:
            _, _, route = call.partition(" ")
            raise explain_no_json(response.headers, answer, url, route) from None

    # -- the server ------------------------------------------------------------------------------

    def system_stats(self) -> Dict[str, Any]:
        """GET /system_stats. Raises ServerAnswer if that is not ComfyUI, and ServerTooOld."""
        timeout = min(self.limits.read, STATS_SECONDS)
        stats = self.call("GET", "/system_stats", timeout=timeout)
        if not isinstance(stats, dict) or "system" not in stats:
            message = f"What answers at {self.address.url} is not ComfyUI."
            raise ServerAnswer(message, "Check --server.", status=200)
        refuse_old_version(stats, self.address.url)
        return stats

    def features(self) -> Dict[str, Any]:
        """GET /features: what the server can do."""
        return as_dict(self.call("GET", "/features"))

    def object_info(self, class_type: str) -> Dict[str, Any]:
        """GET /object_info/{class}: the class's definition, {} if the server does not have it."""
        if class_type in ("", ".", ".."):
            return {}  # as parts of a path they would name something else
        info = self.call("GET", "/object_info/" + quote_part(class_type))
        return as_dict(as_dict(info).get(class_type))

    def definitions(self, classes: Collection[str]) -> Dict[str, Dict[str, Any]]:
        """The definition of each of ``classes``, {} if the server does not have it.

        If they are many, one answer with all classes is read.
        """
        if len(classes) <= MOST_CLASSES_ONE_BY_ONE:
            return {name: self.object_info(name) for name in classes}
        everything = self.all_object_info()
        return {name: as_dict(everything.get(name)) for name in classes}

    def all_object_info(self) -> Dict[str, Any]:
        """GET /object_info: every class's definition (megabytes)."""
        info = self.call(
            "GET", "/object_info", timeout=self.limits.post, limit=self.limits.object_info_size
        )
        return as_dict(info)

    # -- prompts ---------------------------------------------------------------------------------

    def submit(self, body: Mapping[str, Any]) -> Dict[str, Any]:
        """POST /prompt. Raises PromptRejected for ComfyUI's 400."""
        self.secrets.learn(secrets_in_extra_data(body.get("extra_data")))
        # A kept-alive connection may be dead by now, and requests would then send the POST twice.
        self._session.close()
        try:
            return as_dict(self.call("POST", "/prompt", body=body, timeout=self.limits.post))
        except ServerAnswer as error:
            if error.status != 400 or not isinstance(error.body, dict):
                raise
            message = "ComfyUI refused the prompt: nothing was run."
            raise PromptRejected(message, answer=error.body) from None

    def queue(self) -> Dict[str, Any]:
        """GET /queue."""
        return as_dict(self.call("GET", "/queue"))

    def queue_length(self) -> Optional[int]:
        """GET /prompt: how many prompts run or wait, None if the answer does not say."""
        return prompts_remaining({"status": self.call("GET", "/prompt")})

    def history_entry(self, prompt_id: str) -> Optional[Dict[str, Any]]:
        """GET /history/{prompt_id}: the entry, or None while there is none."""
        history = as_dict(self.call("GET", "/history/" + quote_part(prompt_id)))
        entry = history.get(prompt_id)
        if not isinstance(entry, dict):
            return None
        return entry

    def delete(self, prompt_id: str) -> None:
        """Takes a prompt off the queue. It is not an error if the prompt is not waiting."""
        self.call("POST", "/queue", body={"delete": [prompt_id]})

    def interrupt(self, prompt_id: str) -> None:
        """Interrupts the prompt if it is running, and no other one."""
        self.call("POST", "/interrupt", body={"prompt_id": prompt_id})

    def cancel_job(self, prompt_id: str) -> bool:
        """Cancels a prompt, waiting or running; False where the route is missing (before 0.26)."""
        if self._has_jobs is False:
            return False
        try:
            self.call("POST", f"/api/jobs/{quote_part(prompt_id)}/cancel", body={})
        except ServerAnswer as error:
            if error.status not in (404, 405, 501):
                raise
            self._has_jobs = False
            return False
        self._has_jobs = True
        return True

    def free(self) -> None:
        """Asks ComfyUI to unload its models and to forget its cache, when no prompt runs."""
        self.call("POST", "/free", body={"unload_models": True, "free_memory": True})

    # -- files -----------------------------------------------------------------------------------

    def has_input(self, value: str) -> bool:
        """Whether a loader's ``value`` names a file that the server has.

        ``value`` is the name of an input ("cat.png", "folder/cat.png"), or ends with the name of
        another folder ("cat.png [output]").
        """
        match = re.match(r"^(?:(.*)/)?([^/]+?)(?: \[(input|output|temp)\])?$", value)
        if not match:
            return False
        subfolder, name, folder = match.groups()
        file = Output("", "", "", name, subfolder=subfolder or "", type=folder or "input")
        try:
            response = self.open("GET", view_path(file))
        except ServerAnswer as error:
            # ComfyUI refuses names that lead out of its folders (view_image() in server.py).
            is_outside = ".." in value and error.status in (400, 403)
            is_missing = error.status == 404 or is_outside
            if is_missing and not error.from_proxy:
                return False
            raise  # from a login, a proxy or a fault: it says nothing about the file
        response.close()
        refuse_web_page(response.headers)
        return True

    def upload_file(self, path: str) -> str:
        """Uploads a file of this machine. Returns the value by which a loader names it.

        Raises UsageError if it cannot be read, ServerAnswer if the answer names no file.
        """
        try:
            with open(path, "rb") as file:
                content = file.read()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(f"{path} cannot be uploaded: {reason}.") from None
        # ComfyUI would accept any name, and changes one that is taken. But people recognize theirs.
        name = re.sub(r'["\r\n\\]', "_", os.path.basename(path)) or "upload"
        name = name.encode(errors="replace").decode()
        return uploaded_value(self.upload(files={"image": (name, content)}))

    def upload(
        self, *, data: Any = None, files: Any = None, headers: Mapping[str, str] = {}
    ) -> Dict[str, Any]:
        """POST /upload/image with a form: made by requests from ``files`` and ``data``, or one that
        a client sent, in ``data`` with its own ``headers``.
        """
        response = self.open(
            "POST",
            "/upload/image",
            data=data,
            files=files,
            headers=headers,
            timeout=self.limits.post,
        )
        return as_dict(self._read_json(response, "POST /upload/image", self.limits.post))

    def url_of(self, output: Output) -> str:
        """The URL of an output's file, for people (without credentials)."""
        return self.address.url + view_path(output)


def read_pieces(response: "requests.Response") -> Iterator[bytes]:
    """The body of an answer in pieces, as it was sent. Raises one of broken_bodies().

    Not urllib3's stream(): that reads the line before a chunk without a limit.
    """
    while True:
        try:
            piece: bytes = response.raw.read(ANSWER_PIECE_SIZE, decode_content=False)
        except ValueError as error:  # from http.client, for a chunk whose size is negative
            raise ConnectionError("a chunk of the answer is malformed") from error
        if not piece:
            return
        yield piece


def refuse_packed_file(headers: Mapping[str, str]) -> None:
    """Raises ServerUnreachable if the ``headers`` of an answer to GET /view say that it is packed.

    ``Accept-Encoding: identity`` was sent. Its Content-Length would be of the packed file, and what
    it unpacks to could fill the disk.
    """
    if is_packed(headers.get("Content-Encoding", "")):
        message = "it arrived compressed, which the runner did not ask for: a proxy does that"
        raise ServerUnreachable(message, "Use an address that leads directly to ComfyUI.")


def refuse_web_page(headers: Mapping[str, str]) -> None:
    """Raises ServerUnreachable if the ``headers`` of an answer to GET /view are of a web page.

    ComfyUI sends HTML files as application/octet-stream, so the page is from a proxy.
    """
    if is_web_page(headers):
        message = "a web page arrived instead of the file: a proxy or a login page answered"
        raise ServerUnreachable(
            message, "Log in there, or use an address that leads directly to ComfyUI."
        )


def keep_request(request: Any) -> Any:
    """The ``auth`` of requests that adds nothing."""
    return request


def call_in_words(method: str, path: str) -> str:
    """A call as messages name it, without its query: "GET /view"."""
    route, _, _ = path.partition("?")
    return f"{method} {route}"


def quote_part(text: str) -> str:
    """``text`` as one part of a path."""
    return urllib.parse.quote(text, safe="", errors="replace")
