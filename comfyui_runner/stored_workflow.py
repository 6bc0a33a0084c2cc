"""The held workflow as the state file has it: what a restart needs to hold it again. Pure.

The keys in ``extra_data`` of a workflow are never stored.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from typing import Any, Dict, FrozenSet, Iterable, List, Mapping, NamedTuple, Optional, Tuple

from comfyui_runner.documents import Conversion, Prompt, ValueInFileName
from comfyui_runner.json_text import parse_json
from comfyui_runner.loading import Loaded
from comfyui_runner.nodes import InputRef, inputs_of
from comfyui_runner.stored_state import pack_text
from comfyui_runner.text import JsonObject, as_dict, as_list

#: Where something is in a workflow: keys and turns, from the outside to the inside.
Steps = List[Any]


class StoredWorkflow(NamedTuple):
    """What was held: a prompt, which came of a file or of a client's workflow."""

    prompt: Prompt
    random_seeds: FrozenSet[InputRef]
    revision: int
    fingerprint: str  # of the file's workflow at that time
    is_edited: bool  # whether the prompt differs from what it came of
    client: Optional[Loaded] = None  # what a client put in its place
    name: str = ""  # of the file, where the service has several


def fingerprint_of(loaded: Loaded) -> str:
    """What changes when the file does, or the values that the command line sets in it.

    A workflow in UI format is compared as it is in the file: what it is converted to changes with
    the nodes of ComfyUI.
    """
    source: JsonObject = loaded.workflow or loaded.conversion.prompt
    converted = loaded.conversion.prompt
    uploaded = {ref for ref, _ in loaded.uploads}  # ComfyUI chooses their names
    values = [
        [node_id, name, value]
        for node_id in converted
        for name, value in inputs_of(loaded.prompt, node_id).items()
        if value != inputs_of(converted, node_id).get(name)
        and InputRef(node_id, name) not in uploaded
    ]
    parts = [source, values, sorted(loaded.drawn), sorted(loaded.uploads)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


# -- packing ---------------------------------------------------------------------------------------


def pack_edits(held: StoredWorkflow) -> Dict[str, bytes]:
    """What changes with every edit, by the names of StateFile.hold()."""
    about = {
        "revision": held.revision,
        "fingerprint": held.fingerprint,
        "random_seeds": sorted(held.random_seeds),
        "is_edited": held.is_edited,
        "is_clients": held.client is not None,
        "name": held.name,
    }
    return {"about": _pack(about), "prompt": _pack(held.prompt)}


def pack_client(client: Optional[Loaded]) -> Dict[str, bytes]:
    """A client's workflow, by the names of StateFile.hold(); all of them empty where there is none.

    Each document is stored by itself: with something around it, one that nests as deep as JSON may
    could not be read again.
    """
    if client is None:
        return {"name": b"", "workflow": b"", "converted": b"", "conversion": b""}
    workflow = b"" if client.workflow is None else _pack(client.workflow)
    return {
        "name": _pack(client.path),
        "workflow": workflow,
        "converted": _pack(client.conversion.prompt),
        "conversion": _pack(_conversion_as_json(client.conversion, client.workflow or {})),
    }


def unpack_workflow(contents: Mapping[str, bytes]) -> Optional[StoredWorkflow]:
    """What pack_edits() and pack_client() made ``contents`` of; None where nothing was held.

    Raises ValueError for anything else.
    """
    if "about" not in contents:
        return None
    try:
        about = as_dict(_unpack(contents["about"]))
        client = _unpack_client(contents) if about["is_clients"] else None
        return StoredWorkflow(
            prompt=as_dict(_unpack(contents["prompt"])),
            random_seeds=frozenset(_refs(about["random_seeds"])),
            revision=int(about["revision"]),
            fingerprint=str(about["fingerprint"]),
            is_edited=bool(about["is_edited"]),
            client=client,
            name=str(about.get("name", "")),
        )
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


def _unpack_client(contents: Mapping[str, bytes]) -> Loaded:
    workflow = None
    if "workflow" in contents:
        workflow = as_dict(_unpack(contents["workflow"]))
    converted = as_dict(_unpack(contents["converted"]))
    about = as_dict(_unpack(contents["conversion"]))
    conversion = _conversion_from_json(about, converted, workflow or {})
    return Loaded(converted, str(_unpack(contents["name"])), workflow, conversion)


def _pack(value: Any) -> bytes:
    return pack_text(json.dumps(value))


def _unpack(packed: bytes) -> Any:
    try:
        return parse_json(zlib.decompress(packed))
    except zlib.error as error:
        raise ValueError(str(error)) from None


def _refs(pairs: Any) -> Iterable[InputRef]:
    return [InputRef(*pair) for pair in as_list(pairs)]


# -- a conversion ----------------------------------------------------------------------------------
#
# It leads from the inputs of the prompt to nodes of the workflow in UI format. They are objects in
# that, and are stored as where they are in it.


def _conversion_as_json(conversion: Conversion, workflow: JsonObject) -> JsonObject:
    wanted = [node for node, _ in conversion.places.values()]
    for primitives in conversion.primitives.values():
        wanted += primitives.values()
    steps_to = _find_objects(workflow, wanted)

    places = {
        node_id: [steps_to[id(node)], positions]
        for node_id, (node, positions) in conversion.places.items()
        if id(node) in steps_to
    }
    primitives_by_node = {
        node_id: {
            name: steps_to[id(node)] for name, node in primitives.items() if id(node) in steps_to
        }
        for node_id, primitives in conversion.primitives.items()
    }
    return {
        "places": places,
        "primitives": primitives_by_node,
        "draws": list(conversion.draws),
        "named_values": conversion.named_values,
    }


def _conversion_from_json(about: JsonObject, prompt: Prompt, workflow: JsonObject) -> Conversion:
    places: Dict[str, Tuple[JsonObject, JsonObject]] = {
        node_id: (_object_at(workflow, steps), as_dict(positions))
        for node_id, (steps, positions) in as_dict(about["places"]).items()
    }
    primitives = {
        node_id: {name: _object_at(workflow, steps) for name, steps in as_dict(by_name).items()}
        for node_id, by_name in as_dict(about["primitives"]).items()
    }
    named_values = {
        name: ValueInFileName(InputRef(*ref) if ref else None, value)
        for name, (ref, value) in as_dict(about["named_values"]).items()
    }
    return Conversion(
        prompt,
        places=places,
        primitives=primitives,
        draws=tuple(_refs(about["draws"])),
        named_values=named_values,
    )


def _find_objects(document: Any, wanted: Iterable[Any]) -> Dict[int, Steps]:
    """Where the objects ``wanted`` are in ``document``, by their id(). Without recursion."""
    ids = {id(each) for each in wanted}
    found: Dict[int, Steps] = {}
    to_visit: List[Tuple[Any, Steps]] = [(document, [])]
    while to_visit:
        value, steps = to_visit.pop()
        if id(value) in ids:
            found[id(value)] = steps
        if isinstance(value, dict):
            to_visit += [(child, [*steps, key]) for key, child in value.items()]
        elif isinstance(value, list):
            to_visit += [(child, [*steps, turn]) for turn, child in enumerate(value)]
    return found


def _object_at(document: Any, steps: Steps) -> JsonObject:
    """What is at ``steps`` in ``document``. Raises KeyError, IndexError, TypeError."""
    for step in as_list(steps):
        document = document[step]
    return as_dict(document)
