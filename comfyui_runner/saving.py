"""What a run made, to files: downloads, texts, and pictures that came over the WebSocket."""

from __future__ import annotations

import asyncio
import functools
import itertools
from typing import Callable, List, NamedTuple, Optional, Sequence, Tuple

from comfyui_runner.downloads import CHANGES, Download, FileChanged, FileMissing
from comfyui_runner.errors import ExitStatus, SaveError
from comfyui_runner.files import Saved, WrittenFiles, save_bytes, write_file
from comfyui_runner.outputs import Output
from comfyui_runner.server import Server
from comfyui_runner.text import flat, plural, safe_path_parts
from comfyui_runner.windows_files import reason_not_written


def keep_name(name: str) -> str:
    """ComfyUI's own name of a file, which is not changed."""
    return name


class Destination(NamedTuple):
    """Where the outputs of a run are saved, and how."""

    folder: str
    overwrite: bool = False
    #: changes the names that ComfyUI gave
    rename: Callable[[str], str] = keep_name
    #: when it is set, the saving ends, a download at its next chunk; None: nothing ends it
    stopping: Optional[asyncio.Event] = None
    #: how the run ends where ``stopping`` was set; None: as if a download had failed
    status_if_stopped: Optional[Callable[[], ExitStatus]] = None
    #: what has been written, shared by runs that must not overwrite each other's files: some
    #: systems take two names for the same one (a.png, A.png)
    written: Optional[WrittenFiles] = None

    def save_bytes(self, data: bytes, name: str) -> Saved:
        """Saves ``data`` as ``name``. Raises SaveError."""
        return save_bytes(data, name, self.folder, self.overwrite, self.written)

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
    outputs: Sequence[Output],
    destination: Destination,
    notify: Callable[[str], None],
) -> List[Tuple[Output, Callable[[], Saved]]]:
    """A function for each output of a run that saves it. They block, and raise SaveError.

    They call ``notify(message)``, in their own thread, with what people must know meanwhile.
    """
    jobs: List[Tuple[Output, Callable[[], Saved]]] = []
    for output in outputs:
        if not output.is_on_server:
            jobs.append((output, functools.partial(save_content, output, destination)))
            continue
        name = destination.rename(output.filename)
        subfolder = ""
        if name == output.filename:  # one that was renamed has no subfolder
            subfolder = output.subfolder
        parts = safe_path_parts(subfolder, name)

        fetch = download
        if output.source == "text":
            fetch = download_or_save_text
        save = functools.partial(
            fetch, server, output, parts, destination=destination, notify=notify
        )
        jobs.append((output, save))
    return jobs


def save_content(output: Output, destination: Destination) -> Saved:
    """Saves an output that is not a file on the server. Raises SaveError."""
    name, data = content_of(output)
    return destination.save_bytes(data, destination.rename(name))


def content_of(output: Output) -> Tuple[str, bytes]:
    """The name and the bytes of an output that is not a file on the server."""
    content = output.read_content()
    if content is not None:
        return output.filename, content
    text = output.text
    if text is None:
        text = str(output.content)  # what looked like base64 at its beginning
    return name_of_text(output), text.encode(errors="replace")


def name_of_text(output: Output) -> str:
    """The name of a text's file: the title of its node."""
    return flat(output.title) + ".txt"


def notice_of_unsaved(outputs: Sequence[Output]) -> Optional[str]:
    """What people are told about files that came with the run, where -o is missing; or None."""
    pictures = [output for output in outputs if output.source == "websocket"]
    encoded = [output for output in outputs if output.source == "base64"]
    sentences = []
    if pictures:
        count = plural(len(pictures), "picture")
        sentences.append(f"{count} arrived over the WebSocket only: add -o DIR to save them.")
    if encoded:
        count = plural(len(encoded), "file")
        sentences.append(f"{count} came as base64 in a text: add -o DIR to save them.")
    return " ".join(sentences) or None


# -- downloads -------------------------------------------------------------------------------------


def download_or_save_text(
    server: Server,
    output: Output,
    parts: Sequence[str],
    destination: Destination,
    notify: Callable[[str], None],
) -> Saved:
    """Downloads the file whose name a node shows as a text; without such a file, saves the text.

    Nodes also show the names of inputs and of models, which cannot be downloaded. Blocks. Raises
    SaveError.
    """
    try:
        return download(server, output, parts, destination, notify)
    except FileMissing:
        name = destination.rename(name_of_text(output))
        data = output.path.encode(errors="replace")
        return destination.save_bytes(data, name)


def download(
    server: Server,
    output: Output,
    parts: Sequence[str],
    destination: Destination,
    notify: Callable[[str], None],
) -> Saved:
    """Saves an output's file as ``parts`` below the destination's folder. Blocks. Raises SaveError.

    A download that is cut off goes on where it was cut off; if the file has changed meanwhile, it
    begins anew.
    """
    folder, overwrite = destination.folder, destination.overwrite
    name, url = output.filename, server.url_of(output)
    for _ in range(CHANGES):
        chunks = Download(server, output, lambda: destination.is_stopped, notify).chunks()
        try:
            # No file is begun before its first chunk has come: that may take long, and the program
            # may leave meanwhile.
            first = next(chunks, b"")
            all_chunks = itertools.chain([first], chunks)
            return write_file(folder, parts, overwrite, all_chunks, destination.written)
        except FileChanged:
            continue
        except OSError as error:
            reason = f"{name} could not be saved in {folder}: {reason_not_written(error)}."
            remedy = f"Choose another folder with -o; the file is at {url}"
            raise SaveError(reason, remedy) from None
        finally:
            chunks.close()
    message = f"{name} could not be downloaded: it changed each time that it was cut off."
    raise SaveError(message, f"The file is at {url}")
