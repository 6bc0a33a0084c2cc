"""What a run of the Python API came to: its result, and its outputs."""

from __future__ import annotations

import base64
import builtins
import html
import os
from typing import Any, Callable, Mapping, NamedTuple, Optional, Tuple, TypeVar, Union

from comfyui_runner.downloads import CHANGES, Download, FileChanged, FileMissing
from comfyui_runner.errors import SaveError
from comfyui_runner.extras.python_words import errors_in_python_words
from comfyui_runner.media import media_type_of_name
from comfyui_runner.outputs import Output
from comfyui_runner.problems import Problem
from comfyui_runner.redaction import Secrets
from comfyui_runner.saving import Destination, content_of, save_jobs
from comfyui_runner.server import Server
from comfyui_runner.text import one_line, size_in_words
from comfyui_runner.threads import in_thread

#: Bytes of a file that are read into memory at most.
MOST_BYTES_IN_MEMORY = 1 << 30

#: Bytes of a file that become part of a notebook at most.
MOST_BYTES_IN_NOTEBOOK = 32 << 20

Got = TypeVar("Got")

#: A folder or a file, for save().
Where = Union[str, "os.PathLike[str]"]


class RunResult(NamedTuple):
    """How a run ended, and what it made."""

    status: str  #: "success", or "partial": without outputs that ComfyUI refused
    prompt_id: str  #: ComfyUI's name for the run
    message: str  #: how it ended, in words
    seeds: Mapping[str, Any]  #: the seeds that it ran with, by NODE.INPUT
    seconds: float  #: how long it ran
    node_seconds: Mapping[str, float]  #: how long each node ran that was not cached, by node_id
    outputs: Tuple["RunOutput", ...]
    texts: Mapping[str, str]  #: drawn from {a|b}, and dated names of files, by NODE.INPUT
    notices: Tuple[str, ...]  #: what a person should know, such as a model with another name
    problems: Tuple[Problem, ...]  #: what ComfyUI refused of it

    def __repr__(self) -> str:
        return (
            f"<RunResult {self.status} in {self.seconds:.1f} s: "
            f"{', '.join(map(repr, self.outputs)) or 'no outputs'}>"
        )


# -- rules -----------------------------------------------------------------------------------------


def choose_destination(where: Where, overwrite: bool) -> Destination:
    """Where RunOutput.save() puts a file."""
    path = os.fspath(where)
    folder, given_name = os.path.split(path)
    has_ending = bool(os.path.splitext(given_name)[1])
    is_folder = os.path.isdir(path) or not has_ending
    if is_folder:
        return Destination(path, overwrite)
    return Destination(folder or ".", overwrite=True, rename=lambda _: given_name)


def media_type_of_picture_or_sound(filename: str) -> str:
    """The media type of what a browser can show or play, "" for anything else."""
    if filename.lower().endswith(".svg"):
        return "image/svg+xml"
    return media_type_of_name(filename)


def html_of_file(filename: str, media_type: str, data: bytes) -> str:
    """A picture, a video or a sound as HTML that contains it whole.

    Nothing in it is obeyed: the name is escaped, the content is in base64, and scripts in an SVG do
    not run in an <img>.
    """
    name = html.escape(filename, quote=True)
    source = f"data:{media_type};base64,{base64.b64encode(data).decode()}"
    kind = media_type.partition("/")[0]
    if kind == "image":
        return f'<img src="{source}" alt="{name}" style="max-width: 100%">'
    return f'<{kind} src="{source}" title="{name}" controls></{kind}>'


def html_of_link(filename: str, url: str, reason: str) -> str:
    """A link to a file that is not shown, and the reason."""
    address, name = html.escape(url, quote=True), html.escape(filename)
    return f'<a href="{address}">{name}</a> ({html.escape(reason)})'


# -- outputs ---------------------------------------------------------------------------------------


class TooLarge(SaveError):
    """A file that is too large for where it is to be."""


class RunOutput:
    """One thing that a run made: a file on the server, a text, or a picture that came along.

    What it contains is downloaded whenever it is asked for: ``bytes``, ``text``, ``save()`` and the
    notebook do so, and wait for it; the methods whose names end with ``_async`` are for coroutines.
    All of them raise SaveError.
    """

    def __init__(
        self, output: Output, server: Server, secrets: Secrets, is_gone: Callable[[], bool]
    ) -> None:
        self._output = output
        self._server = server
        self._secrets = secrets
        self._server_is_gone = is_gone  # a simulator ends with its connection
        self.node_id = output.node_id
        self.title = output.title  #: of the node
        self.kind = output.kind  #: image, video, audio, 3d, text or file
        self.filename = output.filename  #: ComfyUI's name for it; "" for a text
        self.subfolder = output.subfolder
        self.folder = output.type  #: output or temp: ComfyUI's folder; "" where it is in none

    def __repr__(self) -> str:
        if self._output.text is not None:
            return f"<text {one_line(self._output.text, 60)!r} of {one_line(self.title, 60)}>"
        name = one_line(self._output.path, 200)
        return f"<{self.kind} {name} of {one_line(self.title, 60)}>"

    @property
    def url(self) -> Optional[str]:
        """Where ComfyUI has the file, without credentials; None for what it has no file of."""
        if not self._output.is_on_server:
            return None
        return self._server.url_of(self._output)

    @property
    def bytes(self) -> builtins.bytes:
        """What the file contains; of a text its UTF-8."""
        return self._read(MOST_BYTES_IN_MEMORY)

    @property
    def text(self) -> Optional[str]:
        """The text that it is, or that its file contains; None for other files."""
        if self._output.text is not None:
            return self._output.text
        if self.kind != "text":
            return None
        return self.bytes.decode("utf-8-sig", errors="replace")

    def save(self, where: Where = ".", *, overwrite: bool = False) -> str:
        """Saves it in a folder, or as a file; the path.

        A folder is what is one, ends with a slash, or has no ending. There it gets ComfyUI's name,
        and a number where that is taken, unless ``overwrite``. A file that is named is replaced.
        """
        destination = choose_destination(where, overwrite)
        ((_, save),) = save_jobs(self._server, [self._output], destination, lambda _: None)
        return self._download(lambda: save().path)

    async def read_async(self) -> builtins.bytes:
        """``bytes``, for coroutines."""
        return await in_thread(self._read, MOST_BYTES_IN_MEMORY)

    async def save_async(self, where: Where = ".", *, overwrite: bool = False) -> str:
        """``save()``, for coroutines."""
        return await in_thread(lambda: self.save(where, overwrite=overwrite))

    # -- in a notebook ---------------------------------------------------------------------------

    # Not _repr_mimebundle_(): IPython calls that also where it can show no pictures.

    def _repr_png_(self) -> Optional[builtins.bytes]:
        return self._read_if_it_is("image/png")

    def _repr_jpeg_(self) -> Optional[builtins.bytes]:
        return self._read_if_it_is("image/jpeg")

    def _read_if_it_is(self, media_type: str) -> Optional[builtins.bytes]:
        """The file, if it has that type and is small enough."""
        if media_type_of_name(self.filename) != media_type:
            return None
        try:
            return self._read(MOST_BYTES_IN_NOTEBOOK)
        except TooLarge:
            return None  # it is shown as a text

    def _repr_html_(self) -> Optional[str]:
        media_type = media_type_of_picture_or_sound(self.filename)
        if media_type in ("", "image/png", "image/jpeg"):
            return None
        try:
            data = self._read(MOST_BYTES_IN_NOTEBOOK)
        except TooLarge as error:
            return html_of_link(self.filename, str(self.url), error.message)
        return html_of_file(self.filename, media_type, data)

    # -- downloads -------------------------------------------------------------------------------

    def _read(self, most_bytes: int) -> builtins.bytes:
        return self._download(lambda: read_output(self._server, self._output, most_bytes))

    def _download(self, work: Callable[[], Got]) -> Got:
        """What ``work()`` returns. No connection stays open behind it."""
        try:
            with errors_in_python_words(self._secrets):
                if self._output.is_on_server and self._server_is_gone():
                    raise simulator_is_gone(self._output)
                return work()
        finally:
            self._server.close()


def simulator_is_gone(output: Output) -> SaveError:
    """The error for a file that was on a simulator, which nothing will answer for."""
    return SaveError(
        f"{output.filename} was on the simulator, which stopped when its connection was closed.",
        "With demo=True, save outputs before the connection is closed.",
    )


def read_output(server: Server, output: Output, most_bytes: int) -> bytes:
    """What ``output`` contains. Blocks. Raises SaveError, and TooLarge beyond ``most_bytes``.

    A download that is cut goes on where it was cut, and begins anew if the file has changed.
    """
    if not output.is_on_server:
        return content_of(output)[1]
    for _ in range(CHANGES):
        try:
            return _read_file_of_output(server, output, most_bytes)
        except FileChanged:
            continue
        except FileMissing:
            # Nodes show the names of inputs and of models too.
            if output.source != "text":
                raise
            return output.path.encode(errors="replace")
    message = (
        f"{output.filename} could not be downloaded: it changed each time that it was cut off."
    )
    raise SaveError(message, f"The file is at {server.url_of(output)}")


def _read_file_of_output(server: Server, output: Output, most_bytes: int) -> bytes:
    chunks = Download(server, output, lambda: False, lambda _: None).chunks()
    pieces = []
    size = 0
    try:
        for piece in chunks:
            size += len(piece)
            if size > most_bytes:
                limit = size_in_words(most_bytes)
                raise TooLarge(f"{output.filename} is larger than {limit}.", "Save it: save(PATH).")
            pieces.append(piece)
    finally:
        chunks.close()
    return b"".join(pieces)
