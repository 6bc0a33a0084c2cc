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
    """Where the outputs of a run are saved. ``rename`` changes the names that ComfyUI gave.

    ``written`` is the memory that runs share whose files must not overwrite each other under names
    that only some systems take for one.

    ``stopping``, when it is set, ends the saving (None: nothing does): a download ends at its next
    chunk. The run then ends with ``status_if_stopped()``, or (None) as if a download had failed.
    """

    folder: str
    overwrite: bool = False
    rename: Callable[[str], str] = keep_name
    stopping: Optional[asyncio.Event] = None
    status_if_stopped: Optional[Callable[[], ExitStatus]] = None
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
    """What to call for each thing that a run made. The calls block, and raise SaveError.

    ``notify(message)`` is called, in the thread of a call, with what people must know meanwhile.
    """
    jobs: List[Tuple[Output, Callable[[], Saved]]] = []
    for output in outputs:
        if not output.is_on_server:
            jobs.append((output, functools.partial(save_content, output, destination)))
            continue
        name = destination.rename(output.filename)
        keeps_its_subfolder = name == output.filename
        parts = safe_path_parts(output.subfolder if keeps_its_subfolder else "", name)
        fetch = download_or_save_text if output.source == "text" else download
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
    """What is said of files that came along with the run when nobody asked to save them."""
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
    """download(), where a node shows the name of a file; if there is none, its text is saved.

    Nodes show the names of inputs and of models too. Blocks. Raises SaveError.
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
            chunks_again = itertools.chain([first], chunks)
            return write_file(folder, parts, overwrite, chunks_again, destination.written)
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
