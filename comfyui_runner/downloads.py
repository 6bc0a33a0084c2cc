"""One output's file, whole: a download that is cut goes on where it was cut."""

from __future__ import annotations

import itertools
import re
import time
from typing import Any, Callable, Dict, Generator, Iterator, Mapping, NamedTuple, Optional

from comfyui_runner.answer_body import stated_length
from comfyui_runner.errors import SaveError, ServerAnswer, ServerError, ServerUnreachable
from comfyui_runner.http_failures import broken_bodies
from comfyui_runner.outputs import Output, view_path
from comfyui_runner.retries import Patience, backoff, may_be_retried
from comfyui_runner.server import Server, read_pieces, refuse_packed_file, refuse_web_page
from comfyui_runner.text import size_in_words

#: Answers in a row that bring nothing new before a download is given up.
FRUITLESS_ANSWERS = 3

#: Times that a file may change while it is downloaded.
CHANGES = 3


class FileChanged(Exception):
    """The server's file is not the one whose first part came: the download must start again."""


class FileMissing(SaveError):
    """The server has no file of that name."""


class Part(NamedTuple):
    """What an answer to GET /view has: a file from byte ``start`` on.

    ``total`` is the size of the file (None: not announced), ``version`` its ETag or time ("": not
    announced).
    """

    start: int
    total: Optional[int]
    version: str


def part_in_answer(status: int, headers: Mapping[str, str]) -> Part:
    """The part of the file that an answer has. Raises ServerUnreachable if that is not clear."""
    refuse_packed_file(headers)
    version = version_in(headers)
    if status != 206:
        return Part(0, stated_length(headers), version)

    content_range = re.fullmatch(
        r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)", headers.get("Content-Range", "")
    )
    if content_range is None:
        raise ServerUnreachable("the answer does not say which part of the file it contains")
    start, total = content_range.groups()
    if total == "*":  # the server does not know
        return Part(int(start), None, version)
    return Part(int(start), int(total), version)


def version_in(headers: Mapping[str, str]) -> str:
    """What changes when the file does, in the form that If-Range takes."""
    etag = headers.get("ETag", "")
    if etag.startswith('"'):  # a weak one (W/"...") does not stand for the very bytes
        return etag
    return headers.get("Last-Modified", "")


def range_headers(size: int, version: str) -> Dict[str, str]:
    """The headers that ask for a file of that ``version``, of which ``size`` bytes are here."""
    headers = {"Accept-Encoding": "identity"}  # ranges count the bytes as they are sent
    if size:
        headers["Range"] = f"bytes={size}-"
    if size and version:
        headers["If-Range"] = version
    return headers


def is_same_file(part: Part, first: Part) -> bool:
    """Whether ``part`` is of the file that ``first`` was of.

    ComfyUI's web server ignores an ETag in If-Range and sends the part of whatever it has.
    """
    if part.version or first.version:
        return part.version == first.version
    return part.total is not None and part.total == first.total


class Download:
    """One download of an output's file.

    ``is_stopped()`` says whether it must end, ``notify(message)`` is called with what people must
    know. Both are called in the thread of chunks().
    """

    def __init__(
        self,
        server: Server,
        output: Output,
        is_stopped: Callable[[], bool],
        notify: Callable[[str], None],
    ) -> None:
        self._server = server
        self._output = output
        self._is_stopped = is_stopped
        self._notify = notify
        self._url = server.url_of(output)
        self._size = 0  # bytes that came so far
        self._first: Optional[Part] = None  # what the first answer had
        self._fruitless = 0  # answers in a row that brought nothing new
        self._patience = Patience(server.limits.give_up)
        self._is_cut_reported = False

    def chunks(self) -> Generator[bytes, None, None]:
        """The file in pieces. Blocks. Raises SaveError and FileChanged.

        A server that does not answer is asked again for ``limits.give_up`` seconds. One that
        answers, and brings nothing new, is asked FRUITLESS_ANSWERS times.
        """
        for attempt in itertools.count():
            size_before = self._size
            try:
                response = self._open()
            except ServerError as error:
                self._note_no_answer(error)
                time.sleep(backoff(attempt))
                continue

            try:
                yield from self._read(response)
                return
            except (ServerUnreachable, *broken_bodies()) as error:
                self._note_cut(error, has_progressed=self._size > size_before)
            finally:
                response.close()
            time.sleep(backoff(self._fruitless, first=0.25))

    def _open(self) -> Any:
        """The answer to one GET /view. Raises SaveError, FileChanged, ServerError."""
        version = ""
        if self._first is not None:
            version = self._first.version
        headers = range_headers(self._size, version)
        try:
            return self._server.open(
                "GET", view_path(self._output), headers=headers, accept=(200, 206)
            )
        except ServerAnswer as error:
            if error.status == 416 and self._size:
                raise FileChanged from None  # it is shorter now
            if may_be_retried(error):
                raise
            raise no_file(error, self._output.filename, self._url) from None

    def _read(self, response: Any) -> Iterator[bytes]:
        """What is new in an answer.

        Raises ServerUnreachable and broken_bodies() if it is cut short or is not the file,
        SaveError if the download must end, FileChanged.
        """
        refuse_web_page(response.headers)
        part = part_in_answer(response.status_code, response.headers)
        if self._first is None:
            self._first = part
        if part.start > self._size:
            raise ServerUnreachable("the answer contains the wrong part of the file")
        if self._size and not is_same_file(part, self._first):
            raise FileChanged

        position = part.start  # a server without ranges sends the file from its beginning
        for chunk in read_pieces(response):
            if self._is_stopped():
                message = f"Stopped while saving {self._output.filename}."
                raise SaveError(message, f"The file is still at {self._url}")
            known_bytes = max(self._size - position, 0)
            new = chunk[known_bytes:]
            position += len(chunk)
            if new:
                self._size += len(new)
                yield new
        if part.total is not None and position != part.total:
            raise ServerUnreachable("it was cut short")

    def _note_no_answer(self, error: ServerError) -> None:
        """Raises SaveError if the server has been asked for long enough."""
        self._patience.note_failure(time.monotonic())
        gives_up = self._is_stopped() or self._server.gone or self._patience.has_ended
        if gives_up:
            raise self._given_up(str(error)) from None

    def _note_cut(self, error: Exception, has_progressed: bool) -> None:
        """An answer broke off, or was not the file. Raises SaveError if that is enough."""
        reason = str(error)
        if not isinstance(error, ServerError):
            reason = f"the connection broke: {type(error).__name__}"
        self._fruitless += 1
        if has_progressed:
            self._fruitless = 0
            self._patience.note_answer()

        if self._is_stopped() or self._server.gone:
            raise self._given_up(reason) from None
        if self._fruitless >= FRUITLESS_ANSWERS:
            tries = f"{FRUITLESS_ANSWERS} tries in a row brought no new data"
            raise self._given_up(f"{tries}: {reason}") from None
        if has_progressed and not self._is_cut_reported:
            self._is_cut_reported = True
            self._notify(f"{self._output.filename} was cut off at {self._progress()}: continuing.")

    def _progress(self) -> str:
        """How much came of how much."""
        came = size_in_words(self._size)
        if self._first is None or self._first.total is None:
            return came
        return f"{came} of {size_in_words(self._first.total)}"

    def _given_up(self, reason: str) -> SaveError:
        """The error for a download that is given up."""
        message = f"{self._output.filename} could not be downloaded"
        if self._size:
            message += f" after {self._progress()}"
        return SaveError(f"{message} ({reason})", f"The file is at {self._url}")


def no_file(error: ServerAnswer, name: str, url: str) -> SaveError:
    """The error for a file for which the server answers with an error."""
    remedy = f"The file is at {url}"
    if error.from_proxy:
        reason = f"HTTP {error.status} of a proxy in front of ComfyUI"
        return SaveError(f"{name} could not be downloaded ({reason}).", remedy)
    message = f"{name} could not be downloaded (HTTP {error.status})."
    if error.status in (400, 403):  # a name that it does not allow
        return FileMissing(message, remedy)
    if error.status == 404:
        return FileMissing(
            message,
            "The server has the result in its cache, but the file is gone: "
            "change a seed to render it again.",
        )
    return SaveError(message, remedy)
