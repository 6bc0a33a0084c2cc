"""Files of ComfyUI's that pass through the service: uploads, and GET /view."""

from __future__ import annotations

import re
import tempfile
import urllib.parse
import weakref
from typing import BinaryIO, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Tuple

from comfyui_runner.answer_body import stated_length
from comfyui_runner.errors import RunnerError, ServerAnswer, ServerUnreachable
from comfyui_runner.forms import FormField, read_form_fields
from comfyui_runner.http_body import RequestBody
from comfyui_runner.messages import Headers, HttpError, Request, Response, choose_disposition
from comfyui_runner.outputs import Output
from comfyui_runner.server import (
    Server,
    read_pieces,
    refuse_packed_file,
    refuse_web_page,
    uploaded_value,
)
from comfyui_runner.shells import CURL
from comfyui_runner.text import JsonObject

#: What of GET /view is ComfyUI's.
VIEW_PARAMETERS = ("filename", "subfolder", "type", "preview", "channel")

#: Headers that pass through GET /view, so that a browser can wind a video and keep what it has.
VIEW_REQUEST_HEADERS = ("Range", "If-Range", "If-None-Match")
VIEW_ANSWER_HEADERS = ("Content-Range", "Accept-Ranges", "ETag", "Last-Modified")

#: ComfyUI's statuses that are about an upload itself: 500 is a form that it cannot read.
UPLOAD_REFUSALS = (400, 403, 413, 500)

#: ComfyUI's statuses that are about the file of GET /view, and what the service answers: its 403 is
#: a name that leads out of its folders.
VIEW_REFUSALS = {400: 400, 403: 400, 404: 404, 416: 416}


# -- uploads ---------------------------------------------------------------------------------------


class UploadedFile:
    """A multipart form with a file, spooled before ComfyUI gets it.

    A client that leaves in the middle leaves nothing behind. Raises HttpError if the form does not
    come whole.
    """

    def __init__(self, body: RequestBody, limit: int, content_type: str) -> None:
        self._content_type = content_type
        self._form: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 - close() closes it
        weakref.finalize(self, self._form.close)
        body.save(limit, self._form)

    def fields(self) -> List[FormField]:
        """The fields of the form, [] for what is not one."""
        return read_form_fields(self._form, self._content_type)

    def upload(self, server: Server) -> JsonObject:
        """ComfyUI's answer: the ``name``, ``subfolder`` and ``type`` that it gave to the file."""
        self._form.seek(0)
        return server.upload(data=self._form, headers={"Content-Type": self._content_type})

    def upload_again(self, server: Server) -> str:
        """Upload it to one more server: the value by which a node names it there."""
        return uploaded_value(self.upload(server))

    def close(self) -> None:
        """Remove it from the disk."""
        self._form.close()


def require_form(request: Request) -> str:
    """The content type of a multipart form. Raises HttpError 400 for anything else."""
    content_type = request.header("content-type")
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type != "multipart/form-data":
        message = f"Send the file as multipart/form-data: {CURL} -F image=@cat.png"
        raise HttpError(400, "not_multipart", message)
    return content_type


def upload_refusal(error: ServerAnswer) -> Optional[HttpError]:
    """The answer when a file is not taken; None if it is not the file's fault."""
    if error.status == 413 and error.from_proxy:
        return HttpError(413, "not_uploaded", f"{error.message} {error.remedy}")
    if error.status not in UPLOAD_REFUSALS or error.from_proxy:
        return None
    message = f"ComfyUI refused this upload (HTTP {error.status})."
    if error.status == 413:
        return HttpError(413, "not_uploaded", message)
    return HttpError(400, "not_uploaded", message)


# -- GET /view -------------------------------------------------------------------------------------


def open_view(request: Request, server: Server) -> Response:
    """The answer of ``server`` to GET /view, as the service passes it on. Raises HttpError."""
    query = view_query(request)
    path = "/view?" + urllib.parse.urlencode(query, errors="replace")
    try:
        answer = server.open(
            "GET", path, accept=(200, 206, 304), headers=view_request_headers(request)
        )
    except ServerAnswer as error:
        raise view_refusal(error) from None
    try:
        require_file(answer.headers)
    except RunnerError:
        answer.close()
        raise
    if request.method == "HEAD":
        answer.close()
    length = stated_length(answer.headers)
    if answer.status_code == 304:  # the length that it states is that of the file
        length = None

    def send_file(send: Callable[[bytes], None]) -> None:
        try:
            for piece in keep_to_length(read_pieces(answer), length):
                send(piece)
        finally:
            answer.close()

    content_type, disposition = choose_disposition(answer.headers.get("Content-Type", ""))
    if "download" in request.query:
        disposition = "attachment"
    return Response(
        answer.status_code,
        type=content_type,
        headers=view_answer_headers(answer.headers, query["filename"], disposition),
        stream=send_file,
    )


def keep_to_length(pieces: Iterable[bytes], length: Optional[int]) -> Iterator[bytes]:
    """``pieces`` of a body that has ``length`` bytes (None: any number).

    Raises ServerUnreachable where more or fewer come: on a connection that is kept, the client
    would take what is too much for the next answer, with a content type of its own choice.
    """
    sent = 0
    for piece in pieces:
        sent += len(piece)
        if length is not None and sent > length:
            break
        yield piece
    if length is not None and sent != length:
        raise ServerUnreachable("the file does not have the length that its head states")


def require_file(headers: Mapping[str, str]) -> None:
    """Raises HttpError 502 if an answer with these ``headers`` is compressed.

    Raises ServerUnreachable if it is a web page.
    """
    try:
        refuse_packed_file(headers)
    except ServerUnreachable as error:
        message = f"ComfyUI did not send this file as it is: {error.message}. {error.remedy}"
        raise HttpError(502, "compressed_file", message) from None
    refuse_web_page(headers)


def view_query(request: Request) -> Dict[str, str]:
    """ComfyUI's part of the query. Raises HttpError 400 for a file name that leads elsewhere."""
    query = {name: request.query[name] for name in VIEW_PARAMETERS if name in request.query}
    filename = query.get("filename", "")
    is_wrong = (
        filename == ""
        or filename.startswith("/")
        or ".." in filename
        or "\0" in filename + query.get("subfolder", "")
    )
    if is_wrong:
        raise HttpError(400, "wrong_filename", "filename must name a file.")
    return query


def view_request_headers(request: Request) -> Dict[str, str]:
    """What is sent to ComfyUI with the query."""
    headers = {
        name: request.headers[name.lower()]
        for name in VIEW_REQUEST_HEADERS
        if name.lower() in request.headers
    }
    headers["Accept-Encoding"] = "identity"  # else the lengths would not fit
    return headers


def view_answer_headers(headers: Mapping[str, str], filename: str, disposition: str) -> Headers:
    """What is sent to the client: ``headers`` are those of ComfyUI's answer."""
    length = stated_length(headers)
    passed_on = [(name, headers[name]) for name in VIEW_ANSWER_HEADERS if name in headers]
    if length is not None:
        passed_on.insert(0, ("Content-Length", str(length)))
    passed_on.append(disposition_header(filename, disposition))
    return tuple(passed_on)


def disposition_header(filename: str, disposition: str) -> Tuple[str, str]:
    """The header that names a file; ``disposition`` is "inline" or "attachment"."""
    base_name = filename.replace("\\", "/").rpartition("/")[2]
    quoted_name = urllib.parse.quote(base_name, errors="replace")
    # curl -J and other plain clients know no filename*, which counts for those that do (RFC 6266).
    plain_name = re.sub(r'[^ -~]|["%]', "_", base_name)
    names = f"filename=\"{plain_name}\"; filename*=UTF-8''{quoted_name}"
    return "Content-Disposition", f"{disposition}; {names}"


def open_output(output: Output, server: Server, request: Request) -> Response:
    """A file of a run on ``server``, as open_view() passes it on. Raises HttpError."""
    query = {"filename": output.filename, "subfolder": output.subfolder, "type": output.type}
    return open_view(request._replace(query=query), server)


def view_refusal(error: ServerAnswer) -> HttpError:
    """The answer when ComfyUI does not give a file."""
    status = VIEW_REFUSALS.get(error.status)
    if status is None or error.from_proxy:
        return HttpError(503, "comfyui_unreachable", error.message)
    message = f"ComfyUI did not send this file (HTTP {error.status})."
    return HttpError(status, "not_viewable", message)
