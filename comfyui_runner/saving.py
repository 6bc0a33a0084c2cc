"""Outputs to files."""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import re
import tempfile
import time
from typing import (
    Any,
    Callable,
    Iterable,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

from comfyui_runner.edits import EditError, find_input
from comfyui_runner.errors import (
    ExitStatus,
    SaveError,
    ServerAnswer,
    ServerError,
    ServerUnreachable,
    UsageError,
)
from comfyui_runner.nodes import node_title
from comfyui_runner.outputs import Output, view_path
from comfyui_runner.reports import Report
from comfyui_runner.retries import backoff, may_be_retried
from comfyui_runner.runs import Run
from comfyui_runner.server import Server
from comfyui_runner.text import cut_to_bytes, flat, numbered_name, one_line, plural, safe_path_parts
from comfyui_runner.third_party import import_third_party

#: Bytes that are read of a download at a time.
CHUNK_SIZE = 1 << 16

#: What a {field} of a pattern becomes is cut to so many bytes: names are mostly limited to 255.
MOST_BYTES_OF_FIELD = 80


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


class Saved(NamedTuple):
    """A file that was written: its path, and its size in bytes."""

    path: str
    bytes: int


# -- patterns of folders and names -----------------------------------------------------------------


def fill_pattern(pattern: str, fields: Mapping[str, str], prompt: Mapping[str, Any]) -> str:
    """``pattern`` with each ``{field}`` replaced, and each ``{NODE.INPUT}`` of ``prompt``.

    What is put in is a part of one name, never a path. Raises UsageError for what is neither.
    """

    def fill(match: "re.Match[str]") -> str:
        text = value_of_field(match.group(1), fields, prompt)
        part = safe_path_parts("", flat(text) or "_")[-1]
        # Windows drops dots and spaces at the end of a name.
        return cut_to_bytes(part, MOST_BYTES_OF_FIELD).rstrip(". ") or "_"

    return re.sub(r"\{([^{}]+)\}", fill, pattern)


def value_of_field(name: str, fields: Mapping[str, str], prompt: Mapping[str, Any]) -> str:
    """What ``{name}`` in a pattern stands for. Raises UsageError."""
    if name in fields:
        return fields[name]
    try:
        ref = find_input(prompt, name)
        return str(prompt[ref.node_id]["inputs"][ref.input])
    except (EditError, KeyError):
        field = one_line(f"{{{name}}}", 60)
        known = ", ".join(f"{{{known}}}" for known in fields)
        raise UsageError(f"{field} is neither one of {known} nor {{NODE.INPUT}}.") from None


# -- writing files ---------------------------------------------------------------------------------


def write_file(
    folder: str, parts: Sequence[str], overwrite: bool, chunks: Iterable[bytes]
) -> Saved:
    """Writes ``chunks`` to ``parts`` below ``folder``: under that name only when all have come.

    Raises SaveError, OSError, and what ``chunks`` raises; nothing is left behind then.
    """
    os.makedirs(folder, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".part-", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            size = sum(file.write(chunk) for chunk in chunks)
        let_others_read(temporary)
        path = reserve(folder, parts, overwrite)
        try:
            os.replace(temporary, path)
        except OSError:
            if not overwrite:
                os.unlink(path)  # the empty file that reserve() made
            raise
    except BaseException:
        remove_if_there(temporary)
        raise
    return Saved(path, size)


def let_others_read(path: str) -> None:
    """Gives ``path``, which mkstemp() made for us alone, the mode of any new file."""
    if os.name == "posix":
        mask = os.umask(0)  # it cannot be read without being set
        os.umask(mask)
        os.chmod(path, 0o666 & ~mask)


def remove_if_there(path: str) -> None:
    """Removes a file, if it can be removed."""
    try:
        os.unlink(path)
    except OSError:
        pass


def reserve(folder: str, parts: Sequence[str], overwrite: bool) -> str:
    """The path for ``parts`` below ``folder``; unless ``overwrite``, an empty file is made there.

    A name that is taken gets `` (1)``. Raises OSError, and SaveError if a link leads out of it.
    """
    subfolder = subfolder_inside(folder, parts)
    os.makedirs(subfolder, exist_ok=True)
    for number in range(100000):
        path = os.path.join(subfolder, numbered_name(parts[-1], number))
        may_be_replaced = overwrite and not os.path.isdir(path)
        if may_be_replaced:
            return path
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            continue
        return path
    raise SaveError(f"There are too many files named {parts[-1]} in {subfolder}.")


def subfolder_inside(folder: str, parts: Sequence[str]) -> str:
    """The real folder of ``parts``. Raises SaveError if a link leads out of ``folder``."""
    root = os.path.realpath(folder)
    subfolder = os.path.realpath(os.path.join(root, *parts[:-1]))
    if os.path.commonpath([root, subfolder]) != root:
        raise SaveError(f"{os.path.join(*parts)} leads out of {folder}.", "Remove the link.")
    return subfolder


def write_text_file(path: str, text: str) -> None:
    """Writes a file whole or not at all, in place of one that is there. Raises SaveError."""
    folder, name = os.path.split(path)
    data = text.encode(errors="replace")
    try:
        write_file(folder or ".", [name], True, [data])
    except OSError as error:
        raise SaveError(f"{path} cannot be written: {error.strerror or error}.") from None


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


def save_bytes(data: bytes, name: str, folder: str, overwrite: bool) -> Saved:
    """Saves ``data`` as ``name`` below ``folder``. Raises SaveError."""
    try:
        return write_file(folder, safe_path_parts("", flat(name)), overwrite, [data])
    except OSError as error:
        reason = f"{name} could not be saved in {folder}: {error.strerror or error}."
        raise SaveError(reason, "Choose another folder with -o.") from None


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
