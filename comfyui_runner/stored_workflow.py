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

#: Where something is in a workflow: the keys of dicts and the indexes of lists that lead to it.
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
    converted = loaded.conversion.prompt
    source: JsonObject = loaded.workflow or converted
    uploaded = {ref for ref, _ in loaded.uploads}  # ComfyUI chooses their names
    values_set = []
    for node_id in converted:
        inputs_in_file = inputs_of(converted, node_id)
        for name, value in inputs_of(loaded.prompt, node_id).items():
            is_set = value != inputs_in_file.get(name)
            if is_set and InputRef(node_id, name) not in uploaded:
                values_set.append([node_id, name, value])
    parts = [source, values_set, sorted(loaded.drawn), sorted(loaded.uploads)]
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
    packed = {"name": b"", "workflow": b"", "converted": b"", "conversion": b""}
    if client is None:
        return packed
    packed["name"] = _pack(client.path)
    if client.workflow is not None:
        packed["workflow"] = _pack(client.workflow)
    packed["converted"] = _pack(client.conversion.prompt)
    packed["conversion"] = _pack(_conversion_as_json(client.conversion, client.workflow or {}))
    return packed


def unpack_workflow(contents: Mapping[str, bytes]) -> Optional[StoredWorkflow]:
    """What pack_edits() and pack_client() made ``contents`` of; None where nothing was held.

    Raises ValueError for anything else.
    """
    if "about" not in contents:
        return None
    try:
        about = as_dict(_unpack(contents["about"]))
        client = None
        if about["is_clients"]:
            client = _unpack_client(contents)
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
# It leads from the inputs of the prompt to nodes of the workflow in UI format. These are the very
# objects in the workflow; the state file has the steps to them instead.


def _conversion_as_json(conversion: Conversion, workflow: JsonObject) -> JsonObject:
    """All of ``conversion`` but its prompt, and what people were warned of."""
    nodes = [node for node, _ in conversion.places.values()]
    for primitives in conversion.primitives.values():
        nodes += primitives.values()
    steps_by_id = _find_objects(workflow, nodes)

    places = {
        node_id: [steps_by_id[id(node)], positions]
        for node_id, (node, positions) in conversion.places.items()
        if id(node) in steps_by_id
    }
    primitives_by_node = {
        node_id: _steps_to_each(primitives, steps_by_id)
        for node_id, primitives in conversion.primitives.items()
    }
    return {
        "places": places,
        "primitives": primitives_by_node,
        "draws": list(conversion.draws),
        "named_values": conversion.named_values,
    }


def _steps_to_each(
    nodes: Mapping[str, JsonObject], steps_by_id: Mapping[int, Steps]
) -> Dict[str, Steps]:
    """``nodes`` by the same names as where they are, without those that are not in the workflow."""
    return {name: steps_by_id[id(node)] for name, node in nodes.items() if id(node) in steps_by_id}


def _conversion_from_json(about: JsonObject, prompt: Prompt, workflow: JsonObject) -> Conversion:
    """What _conversion_as_json() made ``about`` of. Raises KeyError, IndexError, TypeError."""
    places: Dict[str, Tuple[JsonObject, JsonObject]] = {}
    for node_id, (steps, positions) in as_dict(about["places"]).items():
        places[node_id] = (_object_at(workflow, steps), as_dict(positions))

    primitives: Dict[str, Dict[str, JsonObject]] = {}
    for node_id, steps_by_name in as_dict(about["primitives"]).items():
        by_name = as_dict(steps_by_name).items()
        primitives[node_id] = {name: _object_at(workflow, steps) for name, steps in by_name}

    named_values: Dict[str, ValueInFileName] = {}
    for name, (pair, value) in as_dict(about["named_values"]).items():
        ref = InputRef(*pair) if pair else None  # a fixed value has none
        named_values[name] = ValueInFileName(ref, value)

    return Conversion(
        prompt,
        places=places,
        primitives=primitives,
        draws=tuple(_refs(about["draws"])),
        named_values=named_values,
    )


def _find_objects(document: Any, wanted: Iterable[Any]) -> Dict[int, Steps]:
    """The steps to each of the objects ``wanted`` in ``document``, by its id().

    Equal is not enough: it must be the very object. Without recursion, for documents of any depth.
    """
    wanted_ids = {id(each) for each in wanted}
    steps_by_id: Dict[int, Steps] = {}
    waiting: List[Tuple[Any, Steps]] = [(document, [])]
    while waiting:
        value, steps = waiting.pop()
        if id(value) in wanted_ids:
            steps_by_id[id(value)] = steps
        if isinstance(value, dict):
            waiting += [(child, [*steps, key]) for key, child in value.items()]
        elif isinstance(value, list):
            waiting += [(child, [*steps, index]) for index, child in enumerate(value)]
    return steps_by_id


def _object_at(document: Any, steps: Steps) -> JsonObject:
    """What is at ``steps`` in ``document``. Raises KeyError, IndexError, TypeError."""
    for step in as_list(steps):
        document = document[step]
    return as_dict(document)
