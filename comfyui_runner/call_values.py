"""The values of a call: what they set in a copy of a prompt, and which files they bring. Pure.

Each value has a key: ``NODE.INPUT``, as with --set, or one of SHORT_NAMES. POST /run, /v1 and the
Python API read their values here, so that they mean the same everywhere.
"""

from __future__ import annotations

import hashlib
import random
import re
from typing import (
    Any,
    Callable,
    Collection,
    Dict,
    FrozenSet,
    Iterable,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

from comfyui_runner.contents import HEAD_SIZE, why_no_picture
from comfyui_runner.documents import Prompt
from comfyui_runner.edits import EditError, InputEdit, apply_edits, find_input, with_values
from comfyui_runner.media import decode_base64, find_base64
from comfyui_runner.nodes import (
    InputRef,
    describe_node,
    did_you_mean,
    inputs_of,
    is_link,
    quote_name,
    value_of,
)
from comfyui_runner.prompt_texts import role_texts, text_inputs_of_all
from comfyui_runner.seeds import draw_seeds, seed_inputs
from comfyui_runner.text import JsonObject, one_line
from comfyui_runner.upload_inputs import upload_inputs
from comfyui_runner.values import is_model_name

#: Keys that do not depend on the nodes of a workflow.
SHORT_NAMES = ("positive", "negative", "seed", "image", "size")

#: How many keys the details of an error list, and how many its message.
MOST_OFFERED = 200
MOST_KEYS_IN_MESSAGE = 20

#: Inputs that take latents or pictures: the size of the result comes through them.
_carries_picture = re.compile(r"(?i)(latent|samples|pixels|image)").match

_read_size = re.compile(r"\s*([0-9]{1,6})\s*[xX×*]\s*([0-9]{1,6})\s*").fullmatch

_is_web_address = re.compile(r"(?i)\s*(https?|ftp)://").match

# -- what a call gives -----------------------------------------------------------------------------


class CallFile(NamedTuple):
    """A file for an input that loads one."""

    name: str  #: under which it is uploaded
    head: bytes  #: its first HEAD_SIZE bytes
    pieces: Callable[[], Iterable[bytes]]  #: its content, as often as it is asked for


def file_of_bytes(data: bytes, ending: str, name: str = "") -> CallFile:
    """A file of which we have the content.

    Without a ``name`` it is named after its content. So the same content sent again is the same
    file, and ComfyUI can use its cache.
    """
    if not name:
        digest = hashlib.sha256(data).hexdigest()
        name = f"{digest[:16]}.{ending}"
    return CallFile(name, data[:HEAD_SIZE], lambda: (data,))


class CallValues(NamedTuple):
    """What a call asks for."""

    prompt: Prompt  #: a copy with the values in it, except for files and drawn seeds
    drawn: Tuple[InputRef, ...]  #: seeds that were set to "random"
    files: Tuple[Tuple[InputRef, CallFile], ...]  #: to upload first, each for an input
    named: FrozenSet[InputRef]  #: every input that the call sets
    renamed: FrozenSet[InputRef]  #: those whose model ComfyUI lists under another name

    def complete(
        self,
        uploaded: Mapping[InputRef, str],
        random_seeds: Iterable[InputRef] = (),
        object_info: Mapping[str, Any] = {},
        draw: Callable[[], float] = random.random,
    ) -> Prompt:
        """The prompt to run.

        ``uploaded`` has the names that the server gave to the files. ``random_seeds`` are drawn for
        each run unless the call sets them; ``draw`` returns numbers in [0, 1).
        """
        others = [ref for ref in random_seeds if ref not in self.named]
        prompt = with_values(self.prompt, uploaded)
        return draw_seeds(prompt, [*self.drawn, *others], draw, object_info)


def read_call_values(
    prompt: Prompt, object_info: JsonObject, values: Mapping[str, Any]
) -> CallValues:
    """What ``values``, by their keys, set in ``prompt``.

    A value is JSON, or a text as a person types it, which is read by the type of its input. For an
    input that loads a file it is a CallFile, a ``data:`` URI or the name of a file that the server
    has. "random" draws a seed. ``object_info`` has the definitions of the classes in the prompt.

    Raises EditError, with what could be meant, for a key or a value that does not fit.
    """
    loaders = upload_inputs(prompt, object_info)
    seeds = dict.fromkeys(seed_inputs(prompt, object_info))
    wanted = _find_inputs(prompt, values, seeds, loaders)

    edits: List[InputEdit] = []
    files: List[Tuple[InputRef, CallFile]] = []
    drawn: List[InputRef] = []
    for ref, (key, value) in wanted.items():
        file = _read_file(key, value, loaders.get(ref))
        if file is not None:
            files.append((ref, file))
        elif value == "random" and ref in seeds:
            drawn.append(ref)
        else:
            edits.append(InputEdit(ref, value))

    edited, also_drawn = apply_edits(prompt, edits, object_info)
    renamed = []
    for edit in edits:
        if is_model_name(edit.value) and value_of(edited, edit.ref) != edit.value:
            renamed.append(edit.ref)
    return CallValues(
        prompt=edited,
        drawn=(*drawn, *also_drawn),
        files=tuple(files),
        named=frozenset(wanted),
        renamed=frozenset(renamed),
    )


# -- keys ------------------------------------------------------------------------------------------


def _find_inputs(
    prompt: JsonObject,
    values: Mapping[str, Any],
    seeds: Collection[InputRef],
    loaders: Mapping[InputRef, str],
) -> Dict[InputRef, Tuple[str, Any]]:
    """The inputs that ``values`` set: for each, the key that names it and its value.

    Raises EditError for a key that names nothing, and for two keys that name the same input.
    """
    wanted: Dict[InputRef, Tuple[str, Any]] = {}
    # "seed" comes first. It stands for all seeds, so a key that names one of them replaces it.
    for key in sorted(values, key=lambda each: each != "seed"):
        for ref, value in _resolve_value(prompt, key, values[key], seeds, loaders):
            other_key, _ = wanted.get(ref, ("seed", None))
            if other_key != "seed":
                names = f"{quote_name(other_key)} and {quote_name(key)}"
                message = f"{names} both set {_key_of(ref)}: leave one of them out."
                raise EditError("duplicate_field", message)
            wanted[ref] = (key, value)
    return wanted


def _resolve_value(
    prompt: JsonObject,
    key: str,
    value: Any,
    seeds: Collection[InputRef],
    loaders: Mapping[InputRef, str],
) -> List[Tuple[InputRef, Any]]:
    """The inputs that a key means, and what each of them gets. Raises EditError."""
    if key in SHORT_NAMES:
        return resolve_short_name(prompt, key, value, seeds, loaders)
    if "." in key:
        return [(find_input(prompt, key), value)]

    known = [*SHORT_NAMES, *_keys_of_values(prompt)]
    hint = did_you_mean(key, known) or "Name a value by NODE.INPUT, or by a short name."
    message = f"There is no value {quote_name(key)}. {hint}"
    offered = [{"key": name} for name in known[:MOST_OFFERED]]
    raise EditError("unknown_field", message, offered)


def resolve_short_name(
    prompt: JsonObject,
    name: str,
    value: Any,
    seeds: Collection[InputRef],
    loaders: Mapping[InputRef, str],
) -> List[Tuple[InputRef, Any]]:
    """The inputs that one of SHORT_NAMES means in ``prompt``, and what each gets of ``value``.

    ``seeds`` and ``loaders`` are those of the prompt. Raises EditError.
    """
    if name in ("positive", "negative"):
        return [(_find_text_of_role(prompt, name), value)]
    if name == "seed":
        if not seeds:
            raise EditError("no_seed", "The workflow has no seed to set.")
        return [(ref, value) for ref in seeds]
    if name == "image":
        return [(_find_picture_loader(prompt, loaders), value)]
    width, height = _parse_size(value)
    node = _find_size(prompt)
    return [(node.width, width), (node.height, height)]


def _key_of(ref: InputRef) -> str:
    return f"{ref.node_id}.{ref.input}"


def _keys_of_values(prompt: JsonObject) -> List[str]:
    """The keys of every input that has a value of its own."""
    keys = []
    for node_id in prompt:
        for name, value in inputs_of(prompt, node_id).items():
            if not is_link(value):
                keys.append(f"{node_id}.{name}")
    return keys


def _offer(prompt: JsonObject, refs: Iterable[InputRef]) -> List[JsonObject]:
    """What could be meant, for the details of an error: nodes, and the key of an input of each."""
    return [{"key": _key_of(ref), **describe_node(prompt, ref.node_id)} for ref in refs]


def _list_keys(refs: Sequence[InputRef]) -> str:
    names = [one_line(_key_of(ref), 80) for ref in refs[:MOST_KEYS_IN_MESSAGE]]
    rest = len(refs) - len(names)
    if rest:
        names.append(f"{rest} more")
    return ", ".join(names)


def _find_text_of_role(prompt: JsonObject, role: str) -> InputRef:
    """The positive or the negative text. Raises EditError if there is none, or several."""
    texts = role_texts(prompt, role)
    if len(texts) == 1:
        return texts[0]
    if texts:
        message = f"The workflow has several {role} texts. Set them by name: {_list_keys(texts)}."
        raise EditError("ambiguous_node", message, _offer(prompt, texts))

    others = text_inputs_of_all(prompt, prompt)
    message = f"The workflow has no text that is clearly its {role} prompt."
    if others:
        message += f" Set a text by name: {_list_keys(others)}."
    raise EditError("no_such_text", message, _offer(prompt, others))


def _find_picture_loader(prompt: JsonObject, loaders: Mapping[InputRef, str]) -> InputRef:
    """The only input that loads a picture; without one, the only one that loads a file."""
    pictures = [ref for ref, media in loaders.items() if media == "image"]
    candidates = pictures or list(loaders)
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise EditError("no_loader", "The workflow has no node that loads a file.")
    message = f"Several nodes load a file. Set them by name: {_list_keys(candidates)}."
    raise EditError("ambiguous_node", message, _offer(prompt, candidates))


# -- files -----------------------------------------------------------------------------------------


def _read_file(key: str, value: Any, media: Optional[str]) -> Optional[CallFile]:
    """The file that ``value`` is; None for any other value.

    ``media`` is what the input loads ("image", "video" ...), None where it loads nothing. Raises
    EditError for a file that the input does not take.
    """
    shown = quote_name(key)
    if media is None:
        if isinstance(value, CallFile):
            message = f"{shown} does not load a file: {one_line(value.name, 80)} cannot be used."
            raise EditError("no_loader", message)
        return None

    file: Optional[CallFile] = None
    if isinstance(value, CallFile):
        file = value
    elif isinstance(value, str) and value.startswith("data:"):
        file = _read_data_uri(shown, value)
    elif isinstance(value, str) and _is_web_address(value):
        # The server would fetch what only it can reach (SSRF).
        message = f"{shown} is a URL, which the runner does not fetch: send the file itself."
        raise EditError("wrong_value", message)
    if file is None:
        return None

    reason = why_no_picture(file.head)
    if media == "image" and reason:
        message = f"{shown}: {one_line(file.name, 80)} is not a picture: {reason}."
        raise EditError("not_a_picture", message)
    return file


def _read_data_uri(shown: str, text: str) -> CallFile:
    """The file in a ``data:`` URI. Raises EditError."""
    # Where a form was not encoded (curl -d), each + has become a space.
    beginning, comma, encoded = text.partition(",")
    with_plus = encoded.replace(" ", "+")
    found = find_base64(f"{beginning}{comma}{with_plus}")
    data = None
    if found is not None:
        data = decode_base64(found.encoded)
    if found is None or data is None:
        message = (
            f"{shown} is a data: URI that cannot be read. It begins with "
            '"data:image/png;base64," (or another type), and base64 follows.'
        )
        raise EditError("wrong_value", message)
    return file_of_bytes(data, found.ending)


# -- sizes -----------------------------------------------------------------------------------------


class SizeInputs(NamedTuple):
    """The inputs of a node that say how large the picture is."""

    node_id: str
    width: InputRef
    height: InputRef


def is_size(text: str) -> bool:
    """Whether ``text`` is a size, such as ``768x512``."""
    return _read_size(text) is not None


def _parse_size(value: Any) -> Tuple[int, int]:
    """Width and height in ``768x512``. Raises EditError."""
    match = None
    if isinstance(value, str):
        match = _read_size(value)
    if match is None:
        message = f"size = {quote_name(value)} is not a size: write it as 768x512."
        raise EditError("wrong_value", message)
    return int(match[1]), int(match[2])


def _find_size(prompt: JsonObject) -> SizeInputs:
    """The only node with a size. Raises EditError if there is none, or several."""
    nodes = find_sizes(prompt)
    if len(nodes) == 1:
        return nodes[0]
    if not nodes:
        raise EditError("no_size", "The workflow has no node that sets the size of the picture.")
    refs: List[InputRef] = []
    for node in nodes:
        refs += (node.width, node.height)
    message = f"Several nodes set a size. Set it by name: {_list_keys(refs)}."
    raise EditError("ambiguous_node", message, _offer(prompt, refs))


def find_sizes(prompt: JsonObject) -> List[SizeInputs]:
    """The nodes that set the size of the picture, each once.

    They are those from which samplers get their latents; in a workflow without samplers, all that
    have a width and a height. Other nodes have these too (ModelSamplingFlux) and do not count.
    """
    latents = [inputs_of(prompt, node_id).get("latent_image") for node_id in prompt]
    sources_of_latents = _sources_of(latents)
    if not sources_of_latents:
        sizes = [_size_of_node(prompt, node_id) for node_id in prompt]
        return [size for size in sizes if size is not None]
    return _find_sizes_upstream(prompt, sources_of_latents)


def _find_sizes_upstream(prompt: JsonObject, node_ids: Iterable[str]) -> List[SizeInputs]:
    """The sizes of ``node_ids`` and of what latents and pictures reach them from."""
    sizes: List[SizeInputs] = []
    waiting = list(node_ids)
    seen = set()
    while waiting:
        node_id = waiting.pop(0)
        if node_id in seen:
            continue
        seen.add(node_id)

        size = _size_of_node(prompt, node_id)
        if size is not None:
            sizes.append(size)
        inputs = inputs_of(prompt, node_id)
        makes_its_size = "width" in inputs and "height" in inputs
        if not makes_its_size:
            pictures = [value for name, value in inputs.items() if _carries_picture(name)]
            waiting += _sources_of(pictures)
    return sizes


def _sources_of(values: Iterable[Any]) -> List[str]:
    """The nodes that the links among ``values`` come from."""
    return [str(value[0]) for value in values if is_link(value)]


def _size_of_node(prompt: JsonObject, node_id: str) -> Optional[SizeInputs]:
    """The inputs of a node's size; None if it has no size, or one that cannot be set."""
    width = _number_behind(prompt, InputRef(node_id, "width"))
    height = _number_behind(prompt, InputRef(node_id, "height"))
    if width is None or height is None or width == height:
        return None
    return SizeInputs(node_id, width, height)


def _number_behind(prompt: JsonObject, ref: InputRef) -> Optional[InputRef]:
    """Where the whole number of an input is: in itself, or in the node that feeds it."""
    value = value_of(prompt, ref)
    if type(value) is int:
        return ref
    if not is_link(value):
        return None
    source_id, _ = value
    for name in (ref.input, "value"):  # PrimitiveInt has a ``value``
        source_ref = InputRef(str(source_id), name)
        if type(value_of(prompt, source_ref)) is int:
            return source_ref
    return None
