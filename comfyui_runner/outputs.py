"""What a run made: files, pictures and texts."""

from __future__ import annotations

import json
import re
import urllib.parse
from typing import (
    Any,
    Collection,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    Union,
)

from comfyui_runner.events import Preview
from comfyui_runner.media import (
    Base64File,
    decode_base64,
    ending_of_data,
    find_base64,
    kind_of_name,
)
from comfyui_runner.nodes import class_of, node_title
from comfyui_runner.text import flat


class Output(NamedTuple):
    """One thing that a run made.

    It is a file on the server, or a text, or a file of which we have the ``content``: a picture
    that came over the WebSocket, or what a text has in base64.
    """

    node_id: str
    title: str
    kind: str  # image, video, audio, 3d, text or file
    filename: str = ""
    subfolder: str = ""
    type: str = "output"  # output or temp: ComfyUI's folder; "" where it is in none
    text: Optional[str] = None
    source: str = "file"  # file: listed by the node; text: a path in a text; websocket; base64
    size: Optional[int] = None  # in bytes, where we have the content
    content: Union[bytes, str, None] = None  # a picture, or base64

    @property
    def is_on_server(self) -> bool:
        """Whether it is a file that GET /view gives."""
        return self.type != "" and self.text is None

    @property
    def path(self) -> str:
        """The file's name with its subfolder, as ComfyUI's 3D nodes write it."""
        return "/".join(filter(None, (self.subfolder, self.filename)))

    def read_content(self) -> Optional[bytes]:
        """The content as bytes; None where there is none, or its base64 is broken."""
        if isinstance(self.content, str):
            return decode_base64(self.content)
        return self.content

    def to_json(self) -> Dict[str, Any]:
        """All but the content."""
        fields = self._asdict()
        del fields["content"]
        return fields


#: The outputs of nodes by node_id, as a history entry has them: lists of files and texts by a key.
NodeOutputs = Mapping[str, Mapping[str, Any]]

#: A key beside ``images`` that says whether they move (comfy_api/latest/_ui.py): it is not a text.
_FLAG = "animated"

#: Classes that list files of temp/ without naming the folder (comfy_extras/nodes_load_3d.py).
_TEMP_CLASSES = ("Preview3DAdvanced", "PreviewGaussianSplat", "PreviewPointCloud")

#: Characters of a path that a node shows; longer texts are texts.
_LONGEST_PATH = 1000


def collect_outputs(outputs: NodeOutputs, prompt: Mapping[str, Any]) -> List[Output]:
    """Every output of every node, each once; those that are only temporary come last.

    The key does not matter (``images``, ``gifs``, ``audio``, ``3d``, ``text``, a custom node's
    own): an object with a ``filename`` is a file, and so is the path of a picture, video, sound or
    3D file. Other texts, numbers and booleans are texts.
    """
    collected: List[Output] = []
    seen = set()
    for node_id, ui in outputs.items():
        for output in _outputs_of_node(ui, node_id, prompt):
            identity: Tuple[Any, ...] = output
            if output.is_on_server:  # several keys, or several nodes, may list one file
                identity = (output.type, output.subfolder, output.filename)
            if identity not in seen:
                seen.add(identity)
                collected.append(output)
    collected.sort(key=lambda output: output.type == "temp")
    return collected


def _outputs_of_node(
    ui: Mapping[str, Any], node_id: str, prompt: Mapping[str, Any]
) -> Iterator[Output]:
    """The outputs in ``ui``, which is what a node gave to the frontend: lists of items by a key."""
    title = node_title(prompt, node_id)
    items = list(_each_item(ui))
    lists_files = any(_names_file(item) for _, item in items)
    for key, item in items:
        output = None
        if isinstance(item, dict):
            output = _file_in_entry(item, node_id, title)
        elif isinstance(item, str):
            output = _output_in_text(item, key, node_id, title, class_of(prompt, node_id))
        elif key == "text" or not lists_files:  # beside files, numbers are flags and settings
            text = _value_in_words(item)
            if text:
                output = Output(node_id, title, "text", text=text)
        if output is not None:
            yield output


def _names_file(item: Any) -> bool:
    """Whether an item is about a file or a picture."""
    if isinstance(item, dict):
        return "filename" in item or "source" in item
    return isinstance(item, str) and bool(split_media_path(item))


def _each_item(ui: Mapping[str, Any]) -> Iterator[Tuple[str, Any]]:
    """The items that a node lists, each with its key; some nodes list a single one without []."""
    for key, value in ui.items():
        if key == _FLAG:
            continue
        if isinstance(value, (list, tuple)):
            for item in value:
                yield key, item
        else:
            yield key, value


def _file_in_entry(item: Mapping[str, Any], node_id: str, title: str) -> Optional[Output]:
    """The file that an entry names; None if it names none, or one that was an input.

    ComfyUI since 0.36 lists files of its input folder too.
    """
    filename = _text_or_empty(item.get("filename"))
    folder = _text_or_empty(item.get("type")) or "output"
    if not filename or folder == "input":
        return None
    return Output(
        node_id,
        title,
        kind_of_name(filename),
        filename=filename,
        subfolder=_text_or_empty(item.get("subfolder")),
        type=folder,
    )


def _text_or_empty(value: Any) -> str:
    """``value`` where it is a text, else ""."""
    if isinstance(value, str):
        return value
    return ""


def _output_in_text(
    text: str, key: str, node_id: str, title: str, class_type: str
) -> Optional[Output]:
    """The file whose path or base64 a text is, else the text itself; None for an empty one."""
    parts = split_media_path(text)
    if parts:
        file = _file_of_path(parts, node_id, title, class_type)
        if key == "result":  # of a 3D node; other nodes show the name of any file
            return file
        return file._replace(source="text")

    found = find_base64(text)
    if found is not None:
        return _file_in_base64(found, node_id, title)
    if not text:
        return None
    return Output(node_id, title, "text", text=text)


def _file_of_path(parts: List[str], node_id: str, title: str, class_type: str) -> Output:
    """The file of a path, whose first part may be ComfyUI's folder ``temp``."""
    *subfolders, filename = parts
    folder = "output"
    if class_type in _TEMP_CLASSES:
        folder = "temp"
    begins_with_temp = subfolders[:1] == ["temp"]
    saves_in_output = class_type.startswith("Save")  # "temp" is a folder of output/ then
    if begins_with_temp and not saves_in_output:
        folder = subfolders.pop(0)
    return Output(
        node_id,
        title,
        kind_of_name(filename),
        filename=filename,
        subfolder="/".join(subfolders),
        type=folder,
    )


def _file_in_base64(file: Base64File, node_id: str, title: str) -> Output:
    """The file that a text holds in base64, named after its node."""
    filename = f"{flat(title)}.{file.ending}"
    return Output(
        node_id,
        title,
        kind_of_name(filename),
        filename=filename,
        type="",
        source="base64",
        size=file.size,
        content=file.encoded,
    )


def split_media_path(text: str) -> List[str]:
    """The parts of the relative path of a picture, video, sound or 3D file; [] for other texts.

    ComfyUI's 3D nodes show paths below output/ or, with ``temp/`` before them, below temp/; on
    Windows with either slash. Nothing leads out of the folder.
    """
    is_plain = len(text) <= _LONGEST_PATH and text == text.strip() and text.isprintable()
    has_forbidden_characters = re.search(r'[<>:"|?*]', text)  # in names on Windows
    if not is_plain or has_forbidden_characters:
        return []
    if kind_of_name(text) not in ("image", "video", "audio", "3d"):
        return []

    parts = re.split(r"[\\/]", text)
    leads_elsewhere = any(part.strip(" .") == "" for part in parts)  # "..", and "/" at the start
    is_only_an_ending = parts[-1].startswith(".")
    if leads_elsewhere or is_only_an_ending:
        return []
    return parts


def _value_in_words(item: Any) -> str:
    """A number, a boolean or a list of such, and of texts, as JSON; "" for anything else."""
    values: Sequence[Any] = [item]
    if isinstance(item, (list, tuple)):
        values = item
    are_plain = all(isinstance(value, (int, float, str)) for value in values)
    if not values or not are_plain:
        return ""
    return json.dumps(item, ensure_ascii=False)


# -- pictures that came over the WebSocket alone ---------------------------------------------------


def declared_pictures(outputs: NodeOutputs) -> Dict[str, int]:
    """How many pictures each node says that it sent over the WebSocket, by node_id.

    ``{"source": "websocket"}`` is what nodes of comfyui-tooling-nodes list for each.
    """
    counts: Dict[str, int] = {}
    for node_id, ui in outputs.items():
        for _, item in _each_item(ui):
            if isinstance(item, dict) and item.get("source") == "websocket":
                counts[node_id] = counts.get(node_id, 0) + 1
    return counts


#: ComfyUI's own class that sends its pictures as if they were previews, one a step.
SENDS_PICTURES = "SaveImageWebsocket"


def choose_received(
    pictures: Iterable[Preview],
    outputs: NodeOutputs,
    prompt: Mapping[str, Any],
    with_steps: Collection[str],
) -> List[Preview]:
    """The outputs among the ``pictures`` that came over the WebSocket; the others are previews.

    ``with_steps`` are the nodes that reported steps: of these only the pictures that the node
    declares count, or all of SaveImageWebsocket.
    """
    chosen: List[Preview] = []
    declared_left = declared_pictures(outputs)
    for picture in reversed(list(pictures)):  # what a node declares are the last that it sent
        node_id = picture.node_id or ""
        if node_id in declared_left:
            is_output = declared_left[node_id] > 0
            declared_left[node_id] -= 1
        else:
            is_output = class_of(prompt, node_id) == SENDS_PICTURES or node_id not in with_steps
        if is_output:
            chosen.append(picture)
    chosen.reverse()
    return chosen


def received_outputs(pictures: Sequence[Preview], prompt: Mapping[str, Any]) -> List[Output]:
    """The ``pictures`` as outputs, which are named after their nodes and numbered."""
    outputs = []
    for number, picture in enumerate(pictures, 1):
        node_id = picture.node_id or ""
        title = node_title(prompt, node_id)
        ending = ending_of_data(picture.image) or picture.mime.rpartition("/")[2]
        output = Output(
            node_id,
            title,
            "image",
            filename=f"{flat(title)}_{number:05d}.{ending}",
            type="",
            source="websocket",
            size=len(picture.image),
            content=picture.image,
        )
        outputs.append(output)
    return outputs


def count_missing(pictures: Iterable[Preview], outputs: NodeOutputs) -> int:
    """How many pictures nodes say that they sent over the WebSocket, and that did not come."""
    missing = declared_pictures(outputs)
    for picture in pictures:
        node_id = picture.node_id or ""
        if node_id in missing:
            missing[node_id] -= 1
    return sum(max(count, 0) for count in missing.values())


def view_path(output: Output) -> str:
    """The path and query of GET /view for a file."""
    query = {"filename": output.filename, "subfolder": output.subfolder, "type": output.type}
    return "/view?" + urllib.parse.urlencode(query, errors="replace")
