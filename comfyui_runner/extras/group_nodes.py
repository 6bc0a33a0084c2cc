"""Group nodes, which older frontends had instead of subgraphs.

A group node is a node ``workflow>NAME`` (before, ``workflow/NAME``); ``extra.groupNodes.NAME`` has
its inner nodes and links. Since 1.54, the frontend makes a subgraph of each when it opens a file.
"""

from __future__ import annotations

import re
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from comfyui_runner.extras.graph import (
    PRIMITIVE,
    SUBGRAPH_INPUT_NODE,
    SUBGRAPH_OUTPUT_NODE,
)
from comfyui_runner.extras.templates import Templates
from comfyui_runner.text import JsonObject, as_dict, as_list

REROUTE = "Reroute"


class ExpandedGroup(NamedTuple):
    """A group node as a host of a subgraph of its own."""

    host: JsonObject
    subgraph: JsonObject
    unused_values: Sequence[Any]  # those of the group node that no inner widget takes
    widgets_without_value: Sequence[str]
    lost_inputs: Sequence[str]
    #: For each inner node: where in its values, and where in those of the group node, one is.
    value_positions: Sequence[Mapping[int, int]]


class InnerSlot(NamedTuple):
    """An input or output of an inner node that the group node shows."""

    name: str
    node: int  # the index of the inner node
    slot: int
    type: Any
    is_widget: bool = False


def find_group_definition(workflow: JsonObject, type_: str) -> Optional[JsonObject]:
    """What the workflow says of the group node ``type_``; None if that is not one of its own."""
    if not re.match("workflow[>/]", type_):
        return None
    definitions = as_dict(as_dict(workflow.get("extra")).get("groupNodes"))
    definition = as_dict(definitions.get(type_[len("workflow>") :]))
    if not as_list(definition.get("nodes")):
        return None
    return definition


def expand_group_node(
    host: JsonObject, definition: JsonObject, key: str, templates: Templates
) -> ExpandedGroup:
    """The subgraph ``key`` for a group node, and its host. The arguments do not change.

    The ids of the inner nodes are their indices: others have to be assigned.
    """
    return GroupNode(host, definition, templates).expand(key)


class GroupNode:
    """A group node of a file, and copies of its inner nodes (groupNode.ts)."""

    def __init__(self, host: JsonObject, definition: JsonObject, templates: Templates) -> None:
        self.host = host
        self.config = as_dict(definition.get("config"))
        self.nodes: List[Dict[str, Any]] = []
        for index, raw in enumerate(as_list(definition.get("nodes"))):
            node = {**as_dict(raw), "id": index}
            node["inputs"] = [as_dict(raw_input) for raw_input in as_list(node.get("inputs"))]
            self.nodes.append(node)
        self.templates = [templates.of_class(str(node.get("type"))) for node in self.nodes]
        self.links = list(self._read_links(definition))
        self.targets = {(target, slot) for _, _, target, slot in self.links}
        self.origins = {(origin, slot) for origin, slot, _, _ in self.links}
        self.external = self._read_external(definition)
        self.value_positions: List[Dict[int, int]] = [{} for _ in self.nodes]

    def _read_links(self, definition: JsonObject) -> Iterator[Tuple[int, int, int, int]]:
        """The links between inner nodes: node, slot, node, slot."""
        for entry in as_list(definition.get("links")):
            link = as_list(entry)[:4]
            are_numbers = all(type(part) is int and part >= 0 for part in link)
            if len(link) < 4 or not are_numbers:  # one that came from outside begins with null
                continue
            if link[0] < len(self.nodes) and link[2] < len(self.nodes):
                yield link[0], link[1], link[2], link[3]

    def _read_external(self, definition: JsonObject) -> List[Tuple[Any, Any]]:
        """The outputs that lead inside and outside: node, slot."""
        external = []
        for entry in as_list(definition.get("external")):
            index, slot = (*as_list(entry), None, None)[:2]
            if isinstance(index, dict):  # some files have the whole node there
                index = index.get("index")
            external.append((index, slot))
        return external

    def expand(self, key: str) -> ExpandedGroup:
        unused_values, widgets_without_value = self._distribute_values()
        links: List[Sequence[Any]] = [[number, *link] for number, link in enumerate(self.links, 1)]
        inputs: List[JsonObject] = []
        lost_inputs = []
        for inner in self._host_inputs():
            # So does the frontend: a Reroute inside loses what comes from outside.
            if self.nodes[inner.node].get("type") == REROUTE:
                lost_inputs.append(inner.name)
                inputs.append({"name": inner.name, "type": inner.type, "linkIds": []})
                continue
            link_id = len(links) + 1
            links.append([link_id, SUBGRAPH_INPUT_NODE, len(inputs), inner.node, inner.slot])
            inputs.append({"name": inner.name, "type": inner.type, "linkIds": [link_id]})
        outputs: List[JsonObject] = []
        for inner in self._visible_outputs():
            link_id = len(links) + 1
            links.append([link_id, inner.node, inner.slot, SUBGRAPH_OUTPUT_NODE, len(outputs)])
            outputs.append({"name": inner.name, "type": inner.type, "linkIds": [link_id]})
        self._tell_primitives(links)

        host = {**self.host, "type": key, "widgets_values": [], "properties": {}}
        title = self.host.get("title") or self.host["type"]
        subgraph = {
            "id": key,
            "name": title,
            "nodes": self.nodes,
            "links": links,
            "inputs": inputs,
            "outputs": outputs,
        }
        host["title"] = title
        return ExpandedGroup(
            host,
            subgraph,
            unused_values=unused_values,
            widgets_without_value=widgets_without_value,
            lost_inputs=lost_inputs,
            value_positions=self.value_positions,
        )

    def _tell_primitives(self, links: Sequence[Sequence[Any]]) -> None:
        """Writes their links into the outputs of PrimitiveNodes, where they are looked for."""
        for index, node in enumerate(self.nodes):
            if node.get("type") != PRIMITIVE:
                continue
            link_ids = [link[0] for link in links if link[1:3] == [index, 0]]
            raw_output = as_dict(next(iter(as_list(node.get("outputs"))), None))
            node["outputs"] = [{**raw_output, "links": link_ids}]

    # --- Inputs -----------------------------------------------------------------------------------

    def _host_inputs(self) -> Iterator[InnerSlot]:
        """What the inputs of the group node stand for: its sockets, and widgets with a link.

        Names first: they are those of the inner inputs, made unique. Sockets that have another name
        are taken in their order.
        """
        shown = list(self._visible_inputs())
        raw_inputs = [as_dict(raw) for raw in as_list(self.host.get("inputs"))]
        names = [str(raw.get("name")) for raw in raw_inputs]
        by_name = {inner.name: inner for inner in reversed(shown)}
        unnamed = iter(
            [inner for inner in shown if inner.name not in names and not inner.is_widget]
        )
        for name, raw in zip(names, raw_inputs):
            inner = by_name.get(name)
            if inner is None and not raw.get("widget"):
                inner = next(unnamed, None)
            if inner is None or (inner.is_widget and raw.get("link") is None):
                continue
            yield inner._replace(name=name, type=raw.get("type"))

    def _visible_inputs(self) -> Iterator[InnerSlot]:
        seen: Dict[str, int] = {}
        for index, node in enumerate(self.nodes):
            config = as_dict(as_dict(self.config.get(str(index))).get("input"))
            for name, is_widget in self._input_names(index):
                slot = self._slot_named(index, name, is_widget)
                own_config = as_dict(config.get(name))
                is_hidden = own_config.get("visible") is False
                if (index, slot) in self.targets:
                    continue
                raw_input = node["inputs"][slot]
                own_name = str(own_config.get("name") or raw_input.get("label") or name)
                shown_name = self._make_unique(own_name, name, index, seen)
                if not is_hidden:
                    yield InnerSlot(shown_name, index, slot, raw_input.get("type"), is_widget)

    def _make_unique(self, own_name: str, name: str, index: int, seen: Dict[str, int]) -> str:
        node = self.nodes[index]
        key = own_name
        if (node.get("type") == PRIMITIVE and node.get("title")) or own_name in seen:
            prefix = node.get("title") or node.get("type")
            key = own_name = f"{prefix} {name}"
            if own_name in seen:
                own_name = f"{prefix} {seen[own_name]} {name}"
        seen[key] = seen.get(key, 1) + 1
        return own_name

    def _input_names(self, index: int) -> Sequence[Tuple[str, bool]]:
        """The inputs of an inner node, widgets first, each with whether it is a widget."""
        node = self.nodes[index]
        if node.get("type") == REROUTE:
            # It has the name of its type. One between inner nodes is not shown.
            is_inside = (index, 0) in self.targets and (index, 0) in self.origins
            if is_inside and (index, 0) not in self.external:
                return []
            return [(self._type_of_reroute(index), False)]
        sockets = self.templates[index].inputs
        widgets = [(one.name, True) for one in sockets if one.widget_name is not None]
        return [*widgets, *[(one.name, False) for one in sockets if one.widget_name is None]]

    def _type_of_reroute(self, index: int) -> str:
        for origin, _, target, slot in self.links:
            if origin == index:
                raw_inputs = self.nodes[target]["inputs"]
                if slot < len(raw_inputs):
                    return str(raw_inputs[slot].get("type"))
        return "*"

    def _slot_named(self, index: int, name: str, is_widget: bool) -> int:
        """The slot of an input of an inner node; the node gets it if the file does not have it."""
        raw_inputs = self.nodes[index]["inputs"]
        if self.nodes[index].get("type") == REROUTE and raw_inputs:
            return 0
        for slot, raw in enumerate(raw_inputs):
            if raw.get("name") == name:
                return slot
        raw_inputs.append({"name": name, "type": "*"})
        if is_widget:
            raw_inputs[-1]["widget"] = {"name": name}
        return len(raw_inputs) - 1

    # --- Outputs ----------------------------------------------------------------------------------

    def _visible_outputs(self) -> Iterator[InnerSlot]:
        """The outputs of the group node: those that lead nowhere inside, or outside as well."""
        for index, template in enumerate(self.templates):
            raw_outputs = as_list(self.nodes[index].get("outputs"))
            types = template.output_types or [as_dict(raw).get("type") for raw in raw_outputs]
            config = as_dict(as_dict(self.config.get(str(index))).get("output"))
            for slot, type_ in enumerate(types):
                is_visible = as_dict(config.get(str(slot))).get("visible")
                if is_visible is None:
                    leads_inside = (index, slot) in self.origins
                    is_visible = not leads_inside or (index, slot) in self.external
                if is_visible:
                    yield InnerSlot(f"{index} {slot}", index, slot, type_)

    # --- Values -----------------------------------------------------------------------------------

    def _distribute_values(self) -> Tuple[Sequence[Any], Sequence[str]]:
        """Gives the inner nodes the values of the group node, in plain order.

        Returns those that are left, and the inner classes that got too few.
        """
        values = as_list(self.host.get("widgets_values"))
        host_position = 0
        lacking: Dict[str, None] = {}
        for index, node in enumerate(self.nodes):
            inner_values = as_list(node.get("widgets_values"))
            taken = []
            for position, first_value in enumerate(self._first_values(index)):
                if position < len(inner_values):
                    first_value = inner_values[position]
                if not self._is_linked_inside(index, position):
                    if host_position < len(values):
                        first_value = values[host_position]
                        self.value_positions[index][position] = host_position
                        host_position += 1
                    elif values:
                        lacking[str(node.get("type"))] = None
                taken.append(first_value)
            if taken and values:
                node["widgets_values"] = taken
        return values[host_position:], list(lacking)

    def _first_values(self, index: int) -> Sequence[Any]:
        """What the widgets of an inner node begin with, one for each value that a file has."""
        template = self.templates[index]
        if self.nodes[index].get("type") != PRIMITIVE or template.is_known:
            return [template.values[one.name] for one in template.widgets if one.in_workflow]
        if (index, 0) not in self.origins:
            return []
        output_type = as_dict(next(iter(as_list(self.nodes[index].get("outputs"))), None))
        if output_type.get("type") in ("INT", "FLOAT", "COMBO"):
            return [None, "fixed"]  # the value and its control_after_generate
        return [None]

    def _is_linked_inside(self, index: int, position: int) -> bool:
        """Whether a widget of an inner node gets its value from a link inside the group."""
        widgets = [widget for widget in self.templates[index].widgets if widget.in_workflow]
        if position >= len(widgets):
            return False
        for slot, raw_input in enumerate(self.nodes[index]["inputs"]):
            if raw_input.get("name") == widgets[position].name:
                return (index, slot) in self.targets
        return False
