"""What a run made, to files: downloads, texts, and pictures that came over the WebSocket."""

from __future__ import annotations

import asyncio
import functools
import itertools
import time
from typing import (
    Any,
    Callable,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

from comfyui_runner.errors import (
    ExitStatus,
    SaveError,
    ServerAnswer,
    ServerError,
    ServerUnreachable,
)
from comfyui_runner.files import Saved, save_bytes, write_file
from comfyui_runner.nodes import node_title
from comfyui_runner.outputs import Output, view_path
from comfyui_runner.reports import Report
from comfyui_runner.retries import backoff, may_be_retried
from comfyui_runner.runs import Run
from comfyui_runner.server import Server
from comfyui_runner.text import flat, plural, safe_path_parts
from comfyui_runner.third_party import import_third_party

#: Bytes that are read of a download at a time.
CHUNK_SIZE = 1 << 16


def keep_name(name: str) -> str:
    """ComfyUI's own name of a file, which is not changed."""
    return name


class Destination(NamedTuple):
    """Where the outputs of a run are saved. ``rename`` changes the names that ComfyUI gave.

    ``stopping``, when it is set, ends the saving (None: nothing does): a download ends at its next
    chunk. The run then ends with ``status_if_stopped()``, or (None) as if a download had failed.
    """

    folder: str
    overwrite: bool = False
    rename: Callable[[str], str] = keep_name
    stopping: Optional[asyncio.Event] = None
    status_if_stopped: Optional[Callable[[], ExitStatus]] = None

    @property
    def is_stopped(self) -> bool:
        """Whether the saving must end."""
        return self.stopping is not None and self.stopping.is_set()

    def stopped_with(self) -> Optional[ExitStatus]:
        """The exit status that the end of the saving leads to, if it was ended."""
        if self.status_if_stopped is None or not self.is_stopped:
            return None
        return self.status_if_stopped()


# -- what a run made -------------------------------------------------------------------------------


def save_jobs(
    server: Server, run: Run, outputs: Sequence[Output], destination: Destination
) -> List[Tuple[Output, Callable[[], Saved]]]:
    """What to call for each thing that ``run`` made. The calls block, and raise SaveError.

    ``outputs`` are what the server lists; pictures that came over the WebSocket only are added.
    """
    folder, overwrite, rename = destination.folder, destination.overwrite, destination.rename
    jobs: List[Tuple[Output, Callable[[], Saved]]] = []

    def add_bytes(output: Output, data: bytes, name: str) -> None:
        jobs.append((output, functools.partial(save_bytes, data, name, folder, overwrite)))

    for output in outputs:
        if output.text is not None:
            data = output.text.encode(errors="replace")
            add_bytes(output, data, rename(flat(output.title) + ".txt"))
            continue
        name = rename(output.filename)
        keeps_its_subfolder = name == output.filename
        parts = safe_path_parts(output.subfolder if keeps_its_subfolder else "", name)
        jobs.append((output, functools.partial(download, server, output, parts, destination)))
    for received, preview in zip(received_outputs(run, rename), run.received):
        add_bytes(received, preview.image, received.filename)
    return jobs


def received_outputs(run: Run, rename: Callable[[str], str]) -> List[Output]:
    """The pictures that came over the WebSocket only, with the names that they are saved under."""
    outputs = []
    for number, preview in enumerate(run.received, 1):
        node_id = preview.node_id or ""
        title = node_title(run.prompt, node_id)
        ending = preview.mime.rpartition("/")[2]
        name = rename(f"{flat(title)}_{number:05d}.{ending}")
        outputs.append(Output(node_id, title, "image", name, type=""))
    return outputs


def websocket_notice(run: Run) -> Report:
    """What is said of pictures that nobody asked to save and no server keeps."""
    pictures = plural(len(run.received), "picture")
    message = (
        f"{pictures} arrived over the WebSocket only (SaveImageWebsocket): add -o DIR to save them."
    )
    return {"event": "notice", "message": message}


# -- downloads -------------------------------------------------------------------------------------


def download(
    server: Server, output: Output, parts: Sequence[str], destination: Destination
) -> Saved:
    """Saves an output's file as ``parts`` below the destination's folder. Blocks. Raises SaveError.

    A connection that breaks is tried again for ``limits.give_up`` seconds.
    """
    requests = import_third_party("requests")
    name, url = output.filename, server.url_of(output)
    deadline = time.monotonic() + server.limits.give_up
    for attempt in itertools.count():
        try:
            return download_once(server, output, parts, destination)
        except (ServerError, requests.RequestException) as error:
            if isinstance(error, ServerAnswer) and not may_be_retried(error):
                raise no_file(error, name, url) from None
            gives_up = destination.is_stopped or server.gone or time.monotonic() > deadline
            if gives_up:
                raise SaveError(
                    f"{name} could not be downloaded ({error})", f"The file is at {url}"
                ) from None
            time.sleep(backoff(attempt))
        except OSError as error:
            reason = (
                f"{name} could not be saved in {destination.folder}: {error.strerror or error}."
            )
            remedy = f"Choose another folder with -o; the file is at {url}"
            raise SaveError(reason, remedy) from None
    raise AssertionError("unreachable")


def download_once(
    server: Server, output: Output, parts: Sequence[str], destination: Destination
) -> Saved:
    """One try of download(). Raises SaveError, ServerError, requests' errors and OSError."""
    # The answer may take long, and the program may leave meanwhile: no file is begun before it.
    response = server.open("GET", view_path(output))
    try:
        chunks = chunks_of(response, output, server.url_of(output), destination)
        return write_file(destination.folder, parts, destination.overwrite, chunks)
    finally:
        response.close()


def chunks_of(response: Any, output: Output, url: str, destination: Destination) -> Iterator[bytes]:
    """The body of ``response``.

    Raises ServerUnreachable if it is cut short, SaveError if the saving must end.
    """
    size = 0
    for chunk in response.iter_content(CHUNK_SIZE):
        if destination.is_stopped:
            raise SaveError(
                f"Stopped while saving {output.filename}.", f"The file is still at {url}"
            )
        size += len(chunk)
        yield chunk
    if not is_whole(response.headers, size):
        raise ServerUnreachable(f"{output.filename} was cut short.")


def is_whole(headers: Mapping[str, str], size: int) -> bool:
    """Whether a body of ``size`` bytes is all that its ``headers`` announce, as far as they do."""
    length = headers.get("Content-Length", "")
    counts_packed_bytes = "Content-Encoding" in headers  # and we count those that came out
    if counts_packed_bytes or not length.isdigit():
        return True
    return size == int(length)


def no_file(error: ServerAnswer, name: str, url: str) -> SaveError:
    """The error for a file for which the server answers with an error."""
    remedy = f"The file is at {url}"
    if error.status == 404:
        remedy = (
            "The server has the result in its cache, but the file is gone: "
            "change a seed to render it again."
        )
    return SaveError(f"{name} could not be downloaded (HTTP {error.status}).", remedy)
