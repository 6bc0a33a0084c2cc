"""The ids that nodes get when a file is opened: their ids in the file, as far as these are free."""

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
    renamed: Mapping[str, str]  # {id in the file: new id} of those that had to change


def assign_node_ids(
    workflow: JsonObject,
    root_nodes: RawNodes,
    subgraph_nodes: Mapping[str, RawNodes],
    group_keys: Mapping[str, int],
) -> Tuple[Dict[str, NodeIds], NodeIds]:
    """The ids of the nodes: of each subgraph, by its id, and of the root graph.

    The ids of all graphs differ: a node whose id is taken gets the next free number
    (subgraphDeduplication.ts). All nodes of group nodes get new ids: first the inner ones, then the
    group node itself. ``group_keys`` has the subgraphs that were made of group nodes, each with the
    index of the group node among ``root_nodes``.
    """
    counter = NodeIdCounter(workflow, root_nodes)
    root_ids = assign_root_ids(root_nodes, counter)
    renamed_in_root: Dict[str, str] = {}
    subgraph_ids: Dict[str, NodeIds] = {}
    for key, raw_nodes in subgraph_nodes.items():
        is_group_node = key in group_keys
        subgraph_ids[key] = assign_inner_ids(raw_nodes, counter, must_change=is_group_node)
        if is_group_node:
            index = group_keys[key]
            new_id = counter.next_free()
            renamed_in_root.setdefault(root_ids[index], new_id)
            root_ids[index] = new_id
    return subgraph_ids, NodeIds(root_ids, renamed_in_root)


def assign_root_ids(root_nodes: RawNodes, counter: NodeIdCounter) -> List[str]:
    """The ids of the nodes of the root graph: those of the file, but no id twice.

    The frontend does so since 1.53. Links lead to the first node with an id, so no id counts as
    renamed.
    """
    ids: List[str] = []
    taken: Set[str] = set()
    for raw in root_nodes:
        node_id = parse_node_id(raw["id"])
        if node_id in taken:
            node_id = counter.next_free()
        ids.append(node_id)
        taken.add(node_id)
    return ids


def assign_inner_ids(raw_nodes: RawNodes, counter: NodeIdCounter, *, must_change: bool) -> NodeIds:
    """The ids of the nodes of a subgraph: new ones for ids that are taken, or for all."""
    ids: List[str] = []
    renamed: Dict[str, str] = {}
    for raw in raw_nodes:
        node_id = parse_node_id(raw["id"])
        if must_change or node_id in counter.taken:
            new_id = counter.next_free()
            renamed[node_id] = new_id
            node_id = new_id
        counter.take(node_id)
        ids.append(node_id)
    return NodeIds(ids, renamed)


class NodeIdCounter:
    """Hands out numbers that are not the id of any node yet."""

    def __init__(self, workflow: JsonObject, root_nodes: RawNodes) -> None:
        self.taken = {str(raw["id"]) for raw in root_nodes if type(raw["id"]) is int}
        state = as_dict(workflow.get("state"))  # of schema 1
        last = workflow.get("last_node_id", state.get("lastNodeId"))
        self.last = 0
        if isinstance(last, int):
            self.last = last

    def next_free(self) -> str:
        """The next number that no node has, which counts as taken from now on."""
        self.last += 1
        while str(self.last) in self.taken:
            self.last += 1
        self.taken.add(str(self.last))
        return str(self.last)

    def take(self, node_id: str) -> None:
        """Marks an id as taken. Numbers that are handed out later are higher than it."""
        self.taken.add(node_id)
        if re.fullmatch("0|[1-9][0-9]{0,14}", node_id):
            self.last = max(self.last, int(node_id))
