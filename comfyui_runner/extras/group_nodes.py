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
    unused_values: Sequence[Any]  # values of the group node that no inner widget takes
    widgets_without_value: Sequence[str]
    lost_inputs: Sequence[str]
    #: One mapping for each inner node, from the position of a value among its own widgets_values
    #: to the position among those of the group node.
    value_positions: Sequence[Mapping[int, int]]


class InnerLink(NamedTuple):
    """A link between two inner nodes, which are named by their index."""

    origin_index: int
    origin_slot: int
    target_index: int
    target_slot: int


class ShownSlot(NamedTuple):
    """An input or output of an inner node that the group node shows, and its name there."""

    name: str
    node_index: int
    slot: int
    type: Any
    is_widget: bool = False


def find_group_definition(workflow: JsonObject, type_: str) -> Optional[JsonObject]:
    """How the workflow defines the group node ``type_``; None if it does not."""
    if not re.match("workflow[>/]", type_):
        return None
    name = type_[len("workflow>") :]
    definitions = as_dict(as_dict(workflow.get("extra")).get("groupNodes"))
    definition = as_dict(definitions.get(name))
    if not as_list(definition.get("nodes")):
        return None
    return definition


def expand_group_node(
    host: JsonObject, definition: JsonObject, key: str, templates: Templates
) -> ExpandedGroup:
    """The subgraph ``key`` for a group node, and its host. The arguments do not change.

    The ids of the inner nodes are their indices: the caller has to assign others.
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

        self.inner_links = list(self._read_inner_links(definition))
        # Inputs and outputs of inner nodes, each as (index of the node, slot):
        self.linked_inputs = {(link.target_index, link.target_slot) for link in self.inner_links}
        self.linked_outputs = {(link.origin_index, link.origin_slot) for link in self.inner_links}
        self.external_outputs = self._read_external_outputs(definition)

        self.value_positions: List[Dict[int, int]] = [{} for _ in self.nodes]
        self.subgraph_links: List[JsonObject] = []

    def _read_inner_links(self, definition: JsonObject) -> Iterator[InnerLink]:
        for entry in as_list(definition.get("links")):
            parts = as_list(entry)[:4]
            # A link that came from outside begins with null.
            are_numbers = all(type(part) is int and part >= 0 for part in parts)
            if len(parts) < 4 or not are_numbers:
                continue
            link = InnerLink(*parts)
            if link.origin_index < len(self.nodes) and link.target_index < len(self.nodes):
                yield link

    def _read_external_outputs(self, definition: JsonObject) -> List[Tuple[Any, Any]]:
        """The outputs that the group node shows although they also lead to an inner node."""
        external_outputs = []
        for entry in as_list(definition.get("external")):
            index, slot, *_ = [*as_list(entry), None, None]
            if isinstance(index, dict):  # some files have the whole node there
                index = index.get("index")
            external_outputs.append((index, slot))
        return external_outputs

    def _node_config(self, index: int) -> JsonObject:
        """What the group's settings say of the inputs and outputs of an inner node."""
        return as_dict(self.config.get(str(index)))

    # --- The subgraph -----------------------------------------------------------------------------

    def expand(self, key: str) -> ExpandedGroup:
        """The group node as a host of the subgraph ``key``. Only once: the inner nodes change."""
        unused_values, widgets_without_value = self._distribute_values()
        for link in self.inner_links:
            self._add_link(*link)
        inputs, lost_inputs = self._create_inputs()
        outputs = self._create_outputs()
        self._write_links_of_primitives()

        title = self.host.get("title") or self.host["type"]
        host = {**self.host, "type": key, "title": title, "widgets_values": [], "properties": {}}
        subgraph = {
            "id": key,
            "name": title,
            "nodes": self.nodes,
            "links": self.subgraph_links,
            "inputs": inputs,
            "outputs": outputs,
        }
        return ExpandedGroup(
            host,
            subgraph,
            unused_values=unused_values,
            widgets_without_value=widgets_without_value,
            lost_inputs=lost_inputs,
            value_positions=self.value_positions,
        )

    def _add_link(self, origin_id: Any, origin_slot: int, target_id: Any, target_slot: int) -> int:
        """Adds a link to the subgraph; returns its id."""
        link_id = len(self.subgraph_links) + 1
        self.subgraph_links.append(
            {
                "id": link_id,
                "origin_id": origin_id,
                "origin_slot": origin_slot,
                "target_id": target_id,
                "target_slot": target_slot,
            }
        )
        return link_id

    def _create_inputs(self) -> Tuple[List[JsonObject], List[str]]:
        """The inputs of the subgraph, and the names of those that lead nowhere."""
        inputs: List[JsonObject] = []
        lost_inputs = []
        for shown in self._host_inputs():
            link_ids = []
            if self.nodes[shown.node_index].get("type") == REROUTE:
                # The frontend does the same: a Reroute inside loses what comes from outside.
                lost_inputs.append(shown.name)
            else:
                slot = len(inputs)
                link_id = self._add_link(SUBGRAPH_INPUT_NODE, slot, shown.node_index, shown.slot)
                link_ids.append(link_id)
            inputs.append({"name": shown.name, "type": shown.type, "linkIds": link_ids})
        return inputs, lost_inputs

    def _create_outputs(self) -> List[JsonObject]:
        """The outputs of the subgraph."""
        outputs: List[JsonObject] = []
        for shown in self._shown_outputs():
            slot = len(outputs)
            link_id = self._add_link(shown.node_index, shown.slot, SUBGRAPH_OUTPUT_NODE, slot)
            outputs.append({"name": shown.name, "type": shown.type, "linkIds": [link_id]})
        return outputs

    def _write_links_of_primitives(self) -> None:
        """Writes their links into the outputs of PrimitiveNodes: primitive_targets() reads them."""
        for index, node in enumerate(self.nodes):
            if node.get("type") != PRIMITIVE:
                continue
            link_ids = [
                link["id"]
                for link in self.subgraph_links
                if link["origin_id"] == index and link["origin_slot"] == 0
            ]
            node["outputs"] = [{**first_output(node), "links": link_ids}]

    # --- Inputs -----------------------------------------------------------------------------------

    def _host_inputs(self) -> Iterator[ShownSlot]:
        """What the inputs of the group node in the file stand for: sockets, and linked widgets.

        An input belongs to the inner input whose shown name it has. Sockets that have another name,
        given by hand, are taken in their order.
        """
        raw_inputs = [as_dict(raw) for raw in as_list(self.host.get("inputs"))]
        file_names = [str(raw.get("name")) for raw in raw_inputs]

        shown_by_name: Dict[str, ShownSlot] = {}
        sockets_not_named = []
        for shown in self._shown_inputs():
            shown_by_name.setdefault(shown.name, shown)
            if shown.name not in file_names and not shown.is_widget:
                sockets_not_named.append(shown)
        remaining_sockets = iter(sockets_not_named)

        for name, raw in zip(file_names, raw_inputs):
            source = shown_by_name.get(name)
            if source is None and not raw.get("widget"):
                source = next(remaining_sockets, None)
            if source is None:
                continue
            if source.is_widget and raw.get("link") is None:
                continue
            yield source._replace(name=name, type=raw.get("type"))

    def _shown_inputs(self) -> Iterator[ShownSlot]:
        """The inner inputs that no inner link leads to, unless the group's settings hide them."""
        next_numbers: Dict[str, int] = {}
        for index, node in enumerate(self.nodes):
            input_configs = as_dict(self._node_config(index).get("input"))
            for name, is_widget in self._input_names(index):
                slot = self._find_or_add_input(index, name, is_widget)
                if (index, slot) in self.linked_inputs:
                    continue
                raw_input = node["inputs"][slot]
                config = as_dict(input_configs.get(name))
                wanted_name = str(config.get("name") or raw_input.get("label") or name)
                # A hidden input takes its name, too.
                shown_name = name_input_uniquely(node, name, wanted_name, next_numbers)
                if config.get("visible") is not False:
                    yield ShownSlot(shown_name, index, slot, raw_input.get("type"), is_widget)

    def _input_names(self, index: int) -> Sequence[Tuple[str, bool]]:
        """The inputs of an inner node, widgets first: the name, and whether it is a widget."""
        if self.nodes[index].get("type") == REROUTE:
            return self._input_names_of_reroute(index)
        sockets = self.templates[index].inputs
        widgets = [(socket.name, True) for socket in sockets if socket.widget_name is not None]
        others = [(socket.name, False) for socket in sockets if socket.widget_name is None]
        return widgets + others

    def _input_names_of_reroute(self, index: int) -> Sequence[Tuple[str, bool]]:
        """The one input of a Reroute; none if it only joins inner nodes."""
        joins_inner_nodes = (index, 0) in self.linked_inputs and (index, 0) in self.linked_outputs
        if joins_inner_nodes and (index, 0) not in self.external_outputs:
            return []
        return [(self._type_behind_reroute(index), False)]

    def _type_behind_reroute(self, index: int) -> str:
        """The type of the first input that a Reroute leads to. The frontend names its input so."""
        for link in self.inner_links:
            if link.origin_index != index:
                continue
            raw_inputs = self.nodes[link.target_index]["inputs"]
            if link.target_slot < len(raw_inputs):
                return str(raw_inputs[link.target_slot].get("type"))
        return "*"

    def _find_or_add_input(self, index: int, name: str, is_widget: bool) -> int:
        """The slot of an input of an inner node; the node gets it if the file does not have it."""
        raw_inputs = self.nodes[index]["inputs"]
        if self.nodes[index].get("type") == REROUTE and raw_inputs:
            return 0
        for slot, raw in enumerate(raw_inputs):
            if raw.get("name") == name:
                return slot
        added: Dict[str, Any] = {"name": name, "type": "*"}
        if is_widget:
            added["widget"] = {"name": name}
        raw_inputs.append(added)
        return len(raw_inputs) - 1

    # --- Outputs ----------------------------------------------------------------------------------

    def _shown_outputs(self) -> Iterator[ShownSlot]:
        """The outputs of the group node, as its settings say.

        Where they say nothing, it shows an output that leads to no inner node, or outside as well.
        """
        for index in range(len(self.nodes)):
            output_configs = as_dict(self._node_config(index).get("output"))
            for slot, type_ in enumerate(self._output_types(index)):
                is_visible = as_dict(output_configs.get(str(slot))).get("visible")
                if is_visible is None:
                    leads_inside = (index, slot) in self.linked_outputs
                    is_visible = not leads_inside or (index, slot) in self.external_outputs
                if is_visible:
                    name = f"{index} {slot}"  # any unique one: nothing shows it
                    yield ShownSlot(name, index, slot, type_)

    def _output_types(self, index: int) -> Sequence[Any]:
        """The types of an inner node's outputs: of its class or, without one, as in the file."""
        types_of_class = self.templates[index].output_types
        if types_of_class:
            return types_of_class
        raw_outputs = as_list(self.nodes[index].get("outputs"))
        return [as_dict(raw).get("type") for raw in raw_outputs]

    # --- Values -----------------------------------------------------------------------------------

    def _distribute_values(self) -> Tuple[Sequence[Any], Sequence[str]]:
        """Gives the inner nodes the values of the group node, in their plain order.

        Returns the values that are left, and the inner classes that got too few.
        """
        group_values = as_list(self.host.get("widgets_values"))
        if not group_values:  # the inner nodes keep the values of the definition
            return [], []
        remaining = enumerate(group_values)
        classes_without_value: Dict[str, None] = {}
        for index, node in enumerate(self.nodes):
            values = self._values_in_definition(index)
            for position in range(len(values)):
                if self._is_linked_inside(index, position):
                    continue
                following = next(remaining, None)
                if following is None:
                    classes_without_value[str(node.get("type"))] = None
                    continue
                group_position, values[position] = following
                self.value_positions[index][position] = group_position
            if values:
                node["widgets_values"] = values
        unused_values = [value for _, value in remaining]
        return unused_values, list(classes_without_value)

    def _values_in_definition(self, index: int) -> List[Any]:
        """The values of an inner node before it gets those of the group node."""
        stored = as_list(self.nodes[index].get("widgets_values"))
        first_values = self._first_values(index)
        return [*stored[: len(first_values)], *first_values[len(stored) :]]

    def _first_values(self, index: int) -> Sequence[Any]:
        """What the widgets of an inner node begin with, one for each value that a file has."""
        node = self.nodes[index]
        template = self.templates[index]
        if node.get("type") != PRIMITIVE or template.is_known:
            return [template.values[one.name] for one in template.widgets if one.in_workflow]
        if (index, 0) not in self.linked_outputs:
            return []
        if first_output(node).get("type") in ("INT", "FLOAT", "COMBO"):
            return [None, "fixed"]  # the value and its control_after_generate
        return [None]

    def _is_linked_inside(self, index: int, position: int) -> bool:
        """Whether a widget of an inner node gets its value from a link inside the group."""
        widgets = [widget for widget in self.templates[index].widgets if widget.in_workflow]
        if position >= len(widgets):
            return False
        for slot, raw_input in enumerate(self.nodes[index]["inputs"]):
            if raw_input.get("name") == widgets[position].name:
                return (index, slot) in self.linked_inputs
        return False


def name_input_uniquely(
    node: JsonObject, name: str, wanted_name: str, next_numbers: Dict[str, int]
) -> str:
    """The name that a group node shows for an inner input (groupNode.ts, getInputConfig).

    It is ``wanted_name`` the first time; after that, the title of the inner node, a number from the
    third time on, and ``name``, that of the inner input. ``next_numbers`` counts them, by name.
    """
    is_named_after_title = node.get("type") == PRIMITIVE and node.get("title")
    if not is_named_after_title and wanted_name not in next_numbers:
        next_numbers[wanted_name] = 2
        return wanted_name
    prefix = node.get("title") or node.get("type")
    prefixed_name = f"{prefix} {name}"
    number = next_numbers.get(prefixed_name, 1)
    next_numbers[prefixed_name] = number + 1
    if number == 1:
        return prefixed_name
    return f"{prefix} {number} {name}"


def first_output(node: JsonObject) -> JsonObject:
    """The first output of a node of a file; empty if it has none."""
    raw_outputs = as_list(node.get("outputs"))
    return as_dict(next(iter(raw_outputs), None))
