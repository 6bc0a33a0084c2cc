"""The ids that nodes get when a file is opened: those of the file, as far as they are free."""

from __future__ import annotations

import re
from typing import Dict, List, Mapping, NamedTuple, Sequence, Set, Tuple

from comfyui_runner.extras.graph import parse_node_id
from comfyui_runner.text import JsonObject, as_dict

#: The nodes of a graph, as they are in the file.
RawNodes = Sequence[JsonObject]


class NodeIds(NamedTuple):
    """The ids of the nodes of a graph, in the order of the file."""

    ids: Sequence[str]
    renamed: Mapping[str, str]  # {id in the file: id} of those that had to change


def assign_node_ids(
    workflow: JsonObject,
    root_nodes: RawNodes,
    nodes: Mapping[str, RawNodes],
    group_keys: Mapping[str, int],
) -> Tuple[Dict[str, NodeIds], NodeIds]:
    """The ids of the nodes: of each subgraph, by its id, and of the root graph.

    The ids of all graphs differ: a node whose id is taken gets the next free number
    (subgraphDeduplication.ts). All nodes of group nodes get new ids: first the inner ones, then the
    group node itself. ``group_keys`` are their subgraphs, with the index of the node.
    """
    counter = NodeIdCounter(workflow, root_nodes)
    root_ids: List[str] = []
    taken_in_root: Set[str] = set()
    for raw in root_nodes:
        node_id = parse_node_id(raw["id"])
        if node_id in taken_in_root:  # since frontend 1.53; links lead to the first one
            node_id = counter.next_free()
        root_ids.append(node_id)
        taken_in_root.add(node_id)

    root_renamed: Dict[str, str] = {}
    assigned: Dict[str, NodeIds] = {}
    for key, raw_nodes in nodes.items():
        ids: List[str] = []
        renamed: Dict[str, str] = {}
        for raw in raw_nodes:
            node_id = parse_node_id(raw["id"])
            if key in group_keys or node_id in counter.taken:
                renamed[node_id] = counter.next_free()
                node_id = renamed[node_id]
            counter.take(node_id)
            ids.append(node_id)
        assigned[key] = NodeIds(ids, renamed)
        if key in group_keys:
            host_index = group_keys[key]
            new_id = counter.next_free()
            root_renamed.setdefault(root_ids[host_index], new_id)
            root_ids[host_index] = new_id
    return assigned, NodeIds(root_ids, root_renamed)


class NodeIdCounter:
    """Hands out numbers that are not the id of any node yet."""

    def __init__(self, workflow: JsonObject, root_nodes: RawNodes) -> None:
        self.taken = {str(raw["id"]) for raw in root_nodes if type(raw["id"]) is int}
        last = workflow.get("last_node_id", as_dict(workflow.get("state")).get("lastNodeId"))
        self.last = last if isinstance(last, int) else 0

    def next_free(self) -> str:
        self.last += 1
        while str(self.last) in self.taken:
            self.last += 1
        self.taken.add(str(self.last))
        return str(self.last)

    def take(self, node_id: str) -> None:
        self.taken.add(node_id)
        if re.fullmatch("0|[1-9][0-9]{0,14}", node_id):
            self.last = max(self.last, int(node_id))
