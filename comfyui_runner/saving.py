"""What a run made, to files: downloads, texts, and pictures that came over the WebSocket."""

from __future__ import annotations

import asyncio
import functools
import itertools
from typing import Callable, List, NamedTuple, Optional, Sequence, Tuple

from comfyui_runner.downloads import CHANGES, Download, FileChanged
from comfyui_runner.errors import ExitStatus, SaveError
from comfyui_runner.files import Saved, save_bytes, write_file
from comfyui_runner.nodes import node_title
from comfyui_runner.outputs import Output
from comfyui_runner.reports import Report
from comfyui_runner.runs import Run
from comfyui_runner.server import Server
from comfyui_runner.text import flat, plural, safe_path_parts


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
    server: Server,
    run: Run,
    outputs: Sequence[Output],
    destination: Destination,
    notify: Callable[[str], None],
) -> List[Tuple[Output, Callable[[], Saved]]]:
    """What to call for each thing that ``run`` made. The calls block, and raise SaveError.

    ``outputs`` are what the server lists; pictures that came over the WebSocket only are added.
    ``notify(message)`` is called, in the thread of a call, with what people must know meanwhile.
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
        job = functools.partial(download, server, output, parts, destination, notify)
        jobs.append((output, job))
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
    server: Server,
    output: Output,
    parts: Sequence[str],
    destination: Destination,
    notify: Callable[[str], None],
) -> Saved:
    """Saves an output's file as ``parts`` below the destination's folder. Blocks. Raises SaveError.

    A download that is cut goes on where it was cut, and begins anew if the file has changed.
    """
    folder, overwrite = destination.folder, destination.overwrite
    name, url = output.filename, server.url_of(output)
    for _ in range(CHANGES):
        chunks = Download(server, output, lambda: destination.is_stopped, notify).chunks()
        try:
            # The answer may take long, and the program may leave meanwhile: no file is begun
            # before its first piece is here.
            first = next(chunks, b"")
            return write_file(folder, parts, overwrite, itertools.chain([first], chunks))
        except FileChanged:
            continue
        except OSError as error:
            reason = f"{name} could not be saved in {folder}: {error.strerror or error}."
            remedy = f"Choose another folder with -o; the file is at {url}"
            raise SaveError(reason, remedy) from None
        finally:
            chunks.close()
    message = f"{name} could not be downloaded: it changed each time that it was cut off."
    raise SaveError(message, f"The file is at {url}")
