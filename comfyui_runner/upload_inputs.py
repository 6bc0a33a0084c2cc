"""The inputs that take an uploaded file, and which of them is meant."""

from __future__ import annotations

from typing import (
    Dict,
    Iterable,
    List,
    Optional,
)

from comfyui_runner.edits import EditError, find_node
from comfyui_runner.nodes import (
    InputRef,
    class_of,
    describe_nodes,
    input_specs,
    is_link,
    node_in_words,
    quote_name,
    value_of,
)
from comfyui_runner.text import JsonObject


def upload_inputs(prompt: JsonObject, object_info: JsonObject) -> Dict[InputRef, str]:
    """The inputs that take an uploaded file, and what it is: "image", "video", "audio" or "file".

    The definitions mark them with ``image_upload`` and the like.
    """
    uploads: Dict[InputRef, str] = {}
    for node_id in prompt:
        for group in ("required", "optional"):
            specs = input_specs(object_info, class_of(prompt, node_id), group)
            for name, spec in specs.items():
                ref = InputRef(node_id, name)
                if spec.upload_mark and not is_link(value_of(prompt, ref)):
                    uploads[ref] = _media_of(spec.upload_mark)
    return uploads


def _media_of(upload_mark: str) -> str:
    for media in ("image", "video", "audio"):
        if upload_mark.endswith(f"{media}_upload"):  # animated_image_upload too
            return media
    return "file"


def find_loaders(
    prompt: JsonObject, loaders: Iterable[InputRef], name: Optional[str]
) -> List[InputRef]:
    """Those of ``loaders`` (from ``upload_inputs()``) that ``name`` means. Raises EditError.

    ``name`` is a node's name, NODE.INPUT, or "all"; None means the only one.
    """
    known = list(loaders)
    if not known:
        raise EditError("no_loader", "The workflow has no node that loads a file.")
    if name == "all" or (name is None and len(known) == 1):
        return known

    listed = describe_nodes(prompt, [ref.node_id for ref in known])
    if name is None:
        names = ", ".join(node_in_words(prompt, ref.node_id) for ref in known)
        message = f"Several nodes load a file. Name one of them, or all: {names}."
        raise EditError("ambiguous_node", message, listed)

    for ref in known:
        if name == ref.full_name:
            return [ref]
    node_id = find_node(prompt, name)
    for ref in known:
        if ref.node_id == node_id:
            return [ref]
    raise EditError("no_loader", f"The node {quote_name(name)} does not load a file.", listed)
