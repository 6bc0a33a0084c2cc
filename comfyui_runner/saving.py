"""Outputs to files."""

from __future__ import annotations

import functools
import os
import re
import tempfile
import time
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Iterable,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Sequence,
    Tuple,
)

from comfyui_runner.edits import EditError, find_input
from comfyui_runner.errors import (
    SaveError,
    ServerAnswer,
    ServerError,
    ServerUnreachable,
    UsageError,
)
from comfyui_runner.nodes import node_title
from comfyui_runner.outputs import Output, view_path
from comfyui_runner.reports import Report
from comfyui_runner.server import Server, import_third_party
from comfyui_runner.session import Run, is_lost
from comfyui_runner.text import cut_to_bytes, flat, numbered_name, one_line, plural, safe_path_parts

if TYPE_CHECKING:
    pass


def fill_pattern(pattern: str, fields: Mapping[str, str], prompt: Mapping[str, Any]) -> str:
    """``pattern`` with each ``{field}`` replaced, and each ``{NODE.INPUT}`` of ``prompt``; what is put in is one part
    of a path, at most 80 bytes. Raises UsageError for what is neither."""

    def value(found: "re.Match[str]") -> str:
        name = found.group(1)
        text: Any = fields.get(name)
        if text is None:
            try:
                ref = find_input(prompt, name)
                text = prompt[ref.node_id]["inputs"][ref.input]
            except (EditError, KeyError):
                names = ", ".join("{%s}" % field for field in fields)
                message = "%s is neither one of %s nor {NODE.INPUT}." % (
                    one_line(found.group(0), 60),
                    names,
                )
                raise UsageError(message) from None
        return cut_to_bytes(safe_path_parts("", flat(str(text)) or "_")[-1], 80).rstrip(". ") or "_"

    return re.sub(r"\{([^{}]+)\}", value, pattern)


def websocket_notice(run: Run) -> Report:
    """What is said of pictures that nobody asked to save and no server keeps."""
    many = plural(len(run.received), "picture")
    message = "%s came over the WebSocket alone (SaveImageWebsocket): give -o to keep them." % many
    return {"event": "notice", "message": message}


class Saved(NamedTuple):
    """A file that was written."""

    path: str
    bytes: int


def reserve(folder: str, parts: Sequence[str], overwrite: bool) -> str:
    """The path below ``folder`` for ``parts``; unless ``overwrite``, a new empty file made there.

    A name that is taken gets `` (1)``. Raises SaveError if a link leads out of ``folder``.
    """
    root = os.path.realpath(folder)
    target = os.path.realpath(os.path.join(root, *parts[:-1]))
    if os.path.commonpath([root, target]) != root:
        raise SaveError(
            "%s leads out of %s." % (os.path.join(*parts), folder),
            "Remove the link that stands there.",
        )
    os.makedirs(target, exist_ok=True)
    for number in range(100000):
        path = os.path.join(target, numbered_name(parts[-1], number))
        if overwrite and not os.path.isdir(path):
            return path
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            return path
        except FileExistsError:
            continue
    raise SaveError("There are too many files named %s in %s." % (parts[-1], target))


def write_file(
    folder: str, parts: Sequence[str], overwrite: bool, chunks: Iterable[bytes]
) -> Saved:
    """Writes ``chunks`` to a temporary file and renames it to its name below ``folder``, when all are there."""

    os.makedirs(folder, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".part-", dir=folder)
    count = 0
    try:
        with os.fdopen(handle, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
                count += len(chunk)
        path = reserve(folder, parts, overwrite)
        try:
            if os.name == "posix":
                mask = os.umask(0)
                os.umask(mask)
                os.chmod(temporary, 0o666 & ~mask)  # mkstemp makes files that only we can read
            os.replace(temporary, path)
        except OSError:
            if not overwrite:
                os.unlink(path)
            raise
        return Saved(path, count)
    except BaseException:
        try:
            os.unlink(temporary)
        except OSError:
            pass
        raise


def download(
    server: Server,
    output: Output,
    folder: str,
    overwrite: bool,
    stopped: Callable[[], bool],
    parts: Sequence[str],
) -> Saved:
    """Streams an output's file to ``parts`` below ``folder``; a connection that breaks is tried again for
    ``limits.give_up`` seconds. Raises SaveError; ``stopped()`` is asked between chunks."""
    requests = import_third_party("requests")
    url = server.url_of(output)

    def chunks(response: Any) -> Iterator[bytes]:
        expected = response.headers.get("Content-Length", "")
        count = 0
        for chunk in response.iter_content(1 << 16):
            if stopped():
                raise SaveError(
                    "Stopped while %s was saved." % output.filename, "It is still at %s" % url
                )
            count += len(chunk)
            yield chunk
        if (
            expected.isdigit()
            and "Content-Encoding" not in response.headers
            and count != int(expected)
        ):
            raise ServerUnreachable("%s was cut short." % output.filename)

    began, attempt = time.monotonic(), 0
    while True:
        try:
            response = server.open(
                "GET", view_path(output)
            )  # before a file is made: it may be left in here
            try:
                return write_file(folder, parts, overwrite, chunks(response))
            finally:
                response.close()
        except (ServerError, requests.RequestException) as error:
            if isinstance(error, ServerAnswer) and not is_lost(server, error):
                remedy = "It is at %s" % url
                if error.status == 404:
                    remedy = (
                        "The server has the result in its cache, but no longer the file: "
                        "change a seed to render it again."
                    )
                reason = "%s could not be fetched (HTTP %d)." % (output.filename, error.status)
                raise SaveError(reason, remedy) from None
            if stopped() or server.gone or time.monotonic() - began > server.limits.give_up:
                raise SaveError(
                    "%s could not be fetched (%s)" % (output.filename, error), "It is at %s" % url
                ) from None
            time.sleep(min(0.1 * 2**attempt, 5.0))
            attempt += 1
        except OSError as error:
            reason = "%s could not be saved in %s: %s." % (
                output.filename,
                folder,
                error.strerror or error,
            )
            raise SaveError(
                reason, "Choose another folder with -o; the file is at %s" % url
            ) from None


def save_bytes(data: bytes, name: str, folder: str, overwrite: bool) -> Saved:
    """Saves ``data`` as ``name`` below ``folder``. Raises SaveError."""
    try:
        return write_file(folder, safe_path_parts("", flat(name)), overwrite, [data])
    except OSError as error:
        raise SaveError(
            "%s could not be saved in %s: %s." % (name, folder, error.strerror or error),
            "Choose another folder with -o.",
        ) from None


def save_jobs(
    server: Server,
    run: Run,
    outputs: Sequence[Output],
    folder: str,
    overwrite: bool,
    stopped: Callable[[], bool],
    rename: Callable[[str], str] = lambda name: name,
) -> List[Tuple[Output, Callable[[], Saved]]]:
    """What to call for each thing that ``run`` made; each call raises SaveError. ``rename`` gives a file
    another name than ComfyUI's."""
    jobs: List[Tuple[Output, Callable[[], Saved]]] = []
    for output in outputs:
        if output.text is None:
            name = rename(output.filename)
            parts = safe_path_parts(output.subfolder if name == output.filename else "", name)
            save = functools.partial(download, server, output, folder, overwrite, stopped, parts)
        else:
            data = output.text.encode(errors="replace")
            save = functools.partial(
                save_bytes, data, rename(flat(output.title) + ".txt"), folder, overwrite
            )
        jobs.append((output, save))
    for received, preview in zip(received_outputs(run, rename), run.received):
        jobs.append(
            (
                received,
                functools.partial(save_bytes, preview.image, received.filename, folder, overwrite),
            )
        )
    return jobs


def received_outputs(run: Run, rename: Callable[[str], str]) -> List[Output]:
    """The pictures that came over the WebSocket alone, with the names that they are saved under."""
    outputs = []
    for number, preview in enumerate(run.received, 1):
        title = node_title(run.prompt, preview.node_id or "")
        name = rename("%s_%05d.%s" % (flat(title), number, preview.mime.rpartition("/")[2]))
        outputs.append(Output(preview.node_id or "", title, "image", name, type=""))
    return outputs


def write_text_file(path: str, text: str) -> None:
    """Writes a file whole or not at all. Raises SaveError."""
    try:
        write_file(
            os.path.dirname(path) or ".",
            [os.path.basename(path)],
            True,
            [text.encode(errors="replace")],
        )
    except OSError as error:
        raise SaveError("%s cannot be written: %s." % (path, error.strerror or error)) from None
