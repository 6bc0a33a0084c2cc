"""Opening a workflow as ComfyUI's frontend does: from the document in UI format to its graph.

The order of the steps is the frontend's, because it shows in the result.
"""

from __future__ import annotations

import re
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from comfyui_runner.extras.graph import (
    PRIMITIVE,
    SAVE_AGAIN,
    SETTERS,
    SUBGRAPH_INPUT_NODE,
    SUBGRAPH_OUTPUT_NODE,
    ConversionError,
    LGraph,
    LGraphNode,
    LLink,
    NodeSocket,
    Socket,
    create_template,
    parse_link_id,
    parse_node_id,
)
from comfyui_runner.extras.proxy_widgets import (
    migrate_proxy_widgets,
    parse_json_list,
    primitive_targets,
)
from comfyui_runner.extras.widgets import FIRST_VALUES, UNDEFINED, Widget
from comfyui_runner.text import JsonObject, as_dict, as_list, one_line

#: How many levels of subgraphs a workflow may have: far more than anybody draws.
DEEPEST_NESTING = 100

#: The nodes of a graph, as they are in the file.
RawNodes = Sequence[JsonObject]


def load_graph(workflow: JsonObject, object_info: JsonObject) -> LGraph:
    """The root graph of a workflow, as it is when all is loaded. Raises ConversionError."""
    definitions = find_subgraph_definitions(workflow)
    subgraphs = {
        key: LGraph(raw, one_line(raw.get("name") or key, 60) or "?")
        for key, raw in definitions.items()
    }
    nodes = {
        key: read_nodes(raw, f"the subgraph {subgraphs[key].name}")
        for key, raw in definitions.items()
    }
    root = LGraph(workflow)
    root_nodes = read_nodes(workflow, "the workflow")
    subgraph_ids = assign_subgraph_ids(workflow, root_nodes, nodes)
    root_ids = NodeIds([parse_node_id(raw["id"]) for raw in root_nodes], {})

    loader = GraphLoader(object_info, subgraphs, subgraph_ids)
    for key in order_of_loading(subgraphs, nodes):
        loader.load(subgraphs[key], nodes[key], subgraph_ids[key])
    loader.load(root, root_nodes, root_ids)

    graphs = [*subgraphs.values(), root]
    for graph in graphs:
        repair_graph(graph)
        for node in graph.nodes.values():
            if node.type == PRIMITIVE and not node.is_known:
                apply_primitive(graph, node)
    narrow_match_types([node for graph in graphs for node in graph.nodes.values()])
    return root


# ------------------------------------------------------------------------------------------------
# The document
# ------------------------------------------------------------------------------------------------


def find_subgraph_definitions(workflow: JsonObject) -> Dict[str, JsonObject]:
    """The definitions of all subgraphs by their ids; one may hold definitions, too."""
    definitions: Dict[str, JsonObject] = {}
    holders = [workflow]
    for holder in holders:  # grows as definitions are found
        for raw in as_list(as_dict(holder.get("definitions")).get("subgraphs")):
            key = as_dict(raw).get("id")
            if isinstance(key, str) and key not in definitions:
                definitions[key] = raw
                holders.append(raw)
    return definitions


def read_nodes(raw_graph: JsonObject, graph_name: str) -> RawNodes:
    """The nodes of a graph. Raises ConversionError if one cannot be a node."""
    nodes = as_list(raw_graph.get("nodes"))
    for index, raw in enumerate(nodes):
        node = as_dict(raw)
        if not isinstance(node.get("type"), str) or not parse_node_id(node.get("id")):
            raise ConversionError(
                f"Entry {index} of the nodes of {graph_name} is not a node with an id and a type.",
                SAVE_AGAIN,
            )
    return nodes


class NodeIds(NamedTuple):
    """The ids of the nodes of a graph, in the order of the file."""

    ids: Sequence[str]
    renamed: Mapping[str, str]  # {id in the file: id} of those that had to change


def assign_subgraph_ids(
    workflow: JsonObject, root_nodes: RawNodes, nodes: Mapping[str, RawNodes]
) -> Dict[str, NodeIds]:
    """The ids of the nodes of each subgraph, by the id of the subgraph.

    The ids of all graphs differ: a node whose id is taken gets the next free number
    (subgraphDeduplication.ts).
    """
    taken = {str(raw["id"]) for raw in root_nodes if type(raw["id"]) is int}
    last = workflow.get("last_node_id", as_dict(workflow.get("state")).get("lastNodeId"))
    if not isinstance(last, int):
        last = 0
    assigned: Dict[str, NodeIds] = {}
    for key, raw_nodes in nodes.items():
        ids: List[str] = []
        renamed: Dict[str, str] = {}
        for raw in raw_nodes:
            node_id = parse_node_id(raw["id"])
            if node_id in taken:
                last += 1
                while str(last) in taken:
                    last += 1
                renamed[node_id] = str(last)
                node_id = str(last)
            elif re.fullmatch("0|[1-9][0-9]{0,14}", node_id):
                last = max(last, int(node_id))
            taken.add(node_id)
            ids.append(node_id)
        assigned[key] = NodeIds(ids, renamed)
    return assigned


def order_of_loading(
    subgraphs: Mapping[str, LGraph], nodes: Mapping[str, RawNodes]
) -> Sequence[str]:
    """The ids of the subgraphs in the order in which they are loaded: inner ones come first.

    Raises ConversionError where one contains itself, or where they are nested too deep.
    """
    inner = {}
    for key, raw_nodes in nodes.items():
        inner[key] = [raw["type"] for raw in raw_nodes if raw["type"] in subgraphs]
    levels = count_levels(inner)
    for key in inner:
        name = subgraphs[key].name
        if key not in levels:
            raise ConversionError(f"The subgraph {name} contains itself.", SAVE_AGAIN)
        if levels[key] > DEEPEST_NESTING:
            raise ConversionError(
                f"The subgraph {name} contains more than {DEEPEST_NESTING} levels of subgraphs.",
                SAVE_AGAIN,
            )
    # topologicalSortSubgraphs counts a subgraph twice that is twice in another one, never gets to
    # the end, and falls back on the order of the file.
    if any(len(set(inner_keys)) < len(inner_keys) for inner_keys in inner.values()):
        return list(inner)
    return list(levels)


def count_levels(inner: Mapping[str, Sequence[str]]) -> Dict[str, int]:
    """How many levels of subgraphs each one has, itself included. Inner ones come first.

    ``inner`` are the subgraphs that each contains. Those that contain themselves are left out.
    """
    holders: Dict[str, List[str]] = {key: [] for key in inner}
    waiting_for = {key: set(inner_keys) for key, inner_keys in inner.items()}
    for key, inner_keys in waiting_for.items():
        for inner_key in inner_keys:
            holders[inner_key].append(key)

    levels = dict.fromkeys(inner, 1)
    ready = [key for key in inner if not inner[key]]
    for key in ready:  # grows as subgraphs get all that they wait for
        for holder in holders[key]:
            levels[holder] = max(levels[holder], levels[key] + 1)
            waiting_for[holder].discard(key)
            if not waiting_for[holder]:
                ready.append(holder)
    return {key: levels[key] for key in ready}


# ------------------------------------------------------------------------------------------------
# One graph
# ------------------------------------------------------------------------------------------------


class GraphLoader:
    """Fills graphs with what the file has (LGraph.ts, configure)."""

    def __init__(
        self,
        object_info: JsonObject,
        subgraphs: Mapping[str, LGraph],
        subgraph_ids: Mapping[str, NodeIds],
    ) -> None:
        self.object_info = object_info
        self.subgraphs = subgraphs
        self.subgraph_ids = subgraph_ids
        self.templates: Dict[str, LGraphNode] = {}

    def load(self, graph: LGraph, raw_nodes: RawNodes, node_ids: NodeIds) -> None:
        read_links(graph, node_ids.renamed)
        repair_slot_links(graph)
        for raw, node_id in zip(raw_nodes, node_ids.ids):
            self.add_node(graph, raw, node_id)
        for node in graph.nodes.values():
            if node.subgraph:
                configure_host(node, node.subgraph)
            else:
                configure_node(node)
        # Hosts that were loaded before this subgraph: the first link of each input counts.
        for host in graph.hosts:
            for socket, subgraph_input in zip(host.inputs, graph.inputs):
                targets = graph.sockets_of(subgraph_input.link_ids[:1])
                host.promote_first_widget(socket, targets)
        for node in graph.nodes.values():
            if node.subgraph:
                renamed = self.subgraph_ids[node.type].renamed
                migrate_proxy_widgets(node, node.subgraph, renamed)

    def add_node(self, graph: LGraph, raw: JsonObject, node_id: str) -> None:
        type_ = raw["type"]
        if type_ not in self.templates:
            self.templates[type_] = create_template(type_, self.object_info)
        template = self.templates[type_]
        node = template.create_node(raw, node_id, graph, self.subgraphs.get(type_))
        if node_id in graph.nodes:
            raise ConversionError(
                f"Two nodes have the same id: {graph.nodes[node_id]} and {node}.", SAVE_AGAIN
            )
        graph.nodes[node_id] = node


def read_links(graph: LGraph, renamed: Mapping[str, str]) -> None:
    """Reads the links of a graph; ``renamed`` are the ids of nodes that had to change."""
    for raw in as_list(graph.raw.get("links")):
        if isinstance(raw, dict):  # in schema 1, and in all subgraphs
            keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot")
            raw = [raw.get(key) for key in keys]
        if not isinstance(raw, list) or len(raw) < 5:
            continue
        link_id = parse_link_id(raw[0])
        if link_id is None:
            continue
        origin_id = parse_node_id(raw[1])
        target_id = parse_node_id(raw[3])
        graph.links[link_id] = LLink(
            renamed.get(origin_id, origin_id),
            parse_slot(raw[2]),
            renamed.get(target_id, target_id),
            parse_slot(raw[4]),
        )


def parse_slot(value: Any) -> int:
    """The slot that a link names; 0 for what cannot be one."""
    if isinstance(value, int) and value >= 0:
        return value
    return 0


def repair_slot_links(graph: LGraph) -> None:
    """Replaces links of a subgraph's inputs and outputs that are not there (_repairSlotLinkIds)."""
    first_of_input: Dict[int, Any] = {}
    first_of_output: Dict[int, Any] = {}
    for link_id, link in graph.links.items():
        if link.origin_id == SUBGRAPH_INPUT_NODE:
            first_of_input.setdefault(link.origin_slot, link_id)
        if link.target_id == SUBGRAPH_OUTPUT_NODE:
            first_of_output.setdefault(link.target_slot, link_id)
    for slots, first in ((graph.inputs, first_of_input), (graph.outputs, first_of_output)):
        for number, slot in enumerate(slots):
            for index, link_id in enumerate(slot.link_ids):
                if link_id not in graph.links:
                    slot.link_ids[index] = first.get(number, link_id)


# ------------------------------------------------------------------------------------------------
# One node
# ------------------------------------------------------------------------------------------------


def configure_node(node: LGraphNode) -> None:
    """Lets a new node take over what the file has (LGraphNode.ts, configure)."""
    configure_inputs(node)
    raw_outputs = as_list(node.raw.get("outputs"))
    for raw in raw_outputs[len(node.output_types) :]:
        node.output_types.append(as_dict(raw).get("type"))
    grow_linked_groups(node)
    configure_widgets(node)


def stored_inputs(node: LGraphNode) -> Sequence[Tuple[str, JsonObject]]:
    """The inputs that the file has of a node, with their names."""
    raw_inputs = as_list(node.raw.get("inputs"))
    return [(str(raw.get("name")), raw) for raw in raw_inputs if isinstance(raw, dict)]


def connect_inputs(node: LGraphNode, stored: Sequence[Tuple[str, JsonObject]]) -> None:
    """Takes over the links of the inputs that the node already has."""
    raw_inputs = dict(stored)  # of two with the same name, the last one counts
    for socket in node.inputs:
        if socket.name in raw_inputs:
            socket.link = parse_link_id(raw_inputs[socket.name].get("link"))


def configure_inputs(node: LGraphNode) -> None:
    stored = stored_inputs(node)
    connect_inputs(node, stored)
    own_names = {socket.name for socket in node.inputs}
    # Inputs that only the file has: of an older file, or further places of an autogrow group.
    for name, raw in stored:
        if name in own_names:
            continue
        widget_name = as_dict(raw.get("widget")).get("name")
        if widget_name is not None:
            widget_name = str(widget_name)
        socket = Socket(name, raw.get("type"), widget_name)
        socket.link = parse_link_id(raw.get("link"))
        node.inputs.append(socket)


def grow_linked_groups(node: LGraphNode) -> None:
    """Lets the autogrow groups offer their next places."""
    if not node.autogrow_groups:
        return
    slot = 0
    while slot < len(node.inputs):  # the groups grow meanwhile
        if node.inputs[slot].link in node.graph.links:
            node.on_connected(slot)
        slot += 1


def configure_widgets(node: LGraphNode) -> None:
    """Gives the widgets the values that the file has for them."""
    stored = node.raw.get("widgets_values")
    if isinstance(stored, dict):  # by name: some custom nodes store them so (VideoHelperSuite)
        for widget in node.widgets:
            if widget.name in stored:
                node.value_positions[widget.name] = widget.name
                node.set_value(widget, stored[widget.name])
        return

    values = as_list(stored)
    positions: Iterable[int] = range(len(values))
    if len(values) == len(node.forced_positions):  # litegraphUtil.ts, migrateWidgetsValues
        positions = [index for index in positions if not node.forced_positions[index]]
    remaining = iter(positions)
    for widget in node.widgets:  # set_value() may change what follows
        if not widget.in_workflow:
            continue
        position = next(remaining, None)
        if position is not None:
            node.value_positions[widget.name] = position
            node.set_value(widget, values[position])


def configure_host(host: LGraphNode, subgraph: LGraph) -> None:
    """Lets a new host take over what the file has (SubgraphNode.ts, configure)."""
    subgraph.hosts.append(host)
    host.inputs = [Socket(slot.name, slot.type) for slot in subgraph.inputs]
    host.output_types = [slot.type for slot in subgraph.outputs]
    connect_inputs(host, stored_inputs(host))
    for socket, subgraph_input in zip(host.inputs, subgraph.inputs):
        host.promote_first_widget(socket, subgraph.sockets_of(subgraph_input.link_ids))

    names = [socket.name for socket in host.inputs if socket.promoted]
    values = stored_promoted_values(host, names)
    values.update(quarantined_values(host))
    for name in names:
        if name in values:
            host.values[name] = values[name]


def stored_promoted_values(host: LGraphNode, names: Sequence[str]) -> Dict[str, Any]:
    """The values that the file has for the promoted widgets ``names``."""
    stored = host.raw.get("widgets_values")
    if isinstance(stored, dict):
        return dict(stored)
    return dict(zip(names, as_list(stored)))


def quarantined_values(host: LGraphNode) -> Dict[str, Any]:
    """The values of promoted widgets that an earlier frontend found no input for, by name."""
    values: Dict[str, Any] = {}
    quarantine = parse_json_list(host.properties.get("proxyWidgetErrorQuarantine"))
    for entry in reversed(quarantine):  # the first one with a name counts
        original_entry = as_list(as_dict(entry).get("originalEntry"))
        if original_entry[:1] == ["-1"] and entry.get("hostValue") is not None:
            values[str(original_entry[-1])] = entry["hostValue"]
    return values


# ------------------------------------------------------------------------------------------------
# When all graphs are loaded
# ------------------------------------------------------------------------------------------------


def repair_graph(graph: LGraph) -> None:
    """What the frontend repairs when all is loaded (app.ts; widgetInputs.ts, onGraphConfigured)."""
    for node in graph.nodes.values():
        if node.is_known:
            remove_stale_sockets(node)
        node.renumber_links(0)
        choose_missing_values(node)
        if node.type in SETTERS and not node.is_known:
            graph.setters.setdefault(node.first_stored_value(), node)


def remove_stale_sockets(node: LGraphNode) -> None:
    """Removes the sockets of widgets that the class no longer has, with their links."""
    slot = 0
    while slot < len(node.inputs):
        socket = node.inputs[slot]
        group_name = socket.name.rpartition(".")[0]
        is_stale = (
            socket.widget_name is not None
            and not node.widget_of(socket)
            # a place of a group has a widget's name, but not always a widget
            and group_name not in node.autogrow_groups
        )
        if is_stale:
            node.graph.links.pop(socket.link, None)
            del node.inputs[slot]
        slot += 1  # as in the frontend: the one after a removed one is passed over


def choose_missing_values(node: LGraphNode) -> None:
    """Gives combos without a value their first choice."""
    for widget in list(node.widgets):
        value = node.values.get(widget.name, UNDEFINED)
        if value is None and widget.choices:
            node.set_value(widget, widget.choices[0])
    for socket in node.inputs:
        if socket.promoted is None:
            continue
        value = node.values.get(socket.name, UNDEFINED)
        choices = socket.promoted.choices
        if value is None and choices:
            node.values[socket.name] = choices[0]


def apply_primitive(graph: LGraph, primitive: LGraphNode) -> None:
    """Copies the value of a PrimitiveNode into the widgets that it is linked to.

    A primitive without a value takes that of the first widget (widgetInputs.ts,
    widgetValuePropagation.ts).
    """
    targets = list(primitive_targets(graph, primitive))
    if not targets or not gives_a_widget(targets[0]):
        return
    value = primitive.first_stored_value()
    is_only_source = len(targets) == 1 and value is not UNDEFINED
    for node, socket in targets:
        widget = node.widget_of(socket)
        if widget is None:
            continue
        if value is UNDEFINED:
            value = node.value_behind(socket, widget)
        value = fit_into_range(value, widget)
        name = node.value_name(socket, widget)
        node.values[name] = value
        if is_only_source:
            node.primitives[name] = primitive.raw


def gives_a_widget(target: NodeSocket) -> bool:
    """Whether a primitive gets a widget, and so a value, from the first socket that it leads to."""
    node, socket = target
    return bool(node.widget_of(socket)) or socket.type in FIRST_VALUES


def fit_into_range(value: Any, widget: Widget) -> Any:
    """A primitive's number as the widget that it leads to allows it.

    widgetInputs.ts, useIntWidget.ts.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if widget.type not in ("INT", "FLOAT") or not is_number:
        return value
    low = widget.options.get("min")
    high = widget.options.get("max")
    step = widget.options.get("step") or 1
    if low is not None and value < low:
        value = low
    if high is not None and value > high:
        value = high
    # JavaScript's Math.round; numbers above 2 ** 53 have no halves in a float.
    if widget.type == "INT" and isinstance(step, int) and abs(value) < 2**53:
        offset = (low or 0) % step
        value = int(((value - offset) / step + 0.5) // 1) * step + offset
    return value


# ------------------------------------------------------------------------------------------------
# Types that match what is connected (core/graph/widgets/dynamicWidgets.ts)
# ------------------------------------------------------------------------------------------------


def narrow_match_types(nodes: Iterable[LGraphNode]) -> None:
    """Narrows the types of matching inputs and outputs to what is connected."""
    matching = [node for node in nodes if node.match_inputs]
    for _ in range(8):  # each round carries a type at least one node further
        has_changed = False
        for node in matching:
            if narrow_node(node):
                has_changed = True
        if not has_changed:
            return


def narrow_node(node: LGraphNode) -> bool:
    """Narrows the types of one node; returns whether an output changed."""
    has_changed = False
    for template_id, allowed_types in node.match_inputs.items():
        sockets = [socket for socket in node.inputs if socket.name in allowed_types]
        types = [type_of_origin(node.graph, socket.link) for socket in sockets]
        for index, socket in enumerate(sockets):
            others = [*types[:index], *types[index + 1 :], allowed_types[socket.name]]
            socket.type = common_type(others) or socket.type
        output_type = common_type(types)
        if output_type and set_match_outputs(node, template_id, output_type):
            has_changed = True
    return has_changed


def set_match_outputs(node: LGraphNode, template_id: str, type_: str) -> bool:
    """Gives the outputs with this template id a type; returns whether one had another type."""
    has_changed = False
    for slot, output_template_id in enumerate(node.match_outputs[: len(node.output_types)]):
        if output_template_id == template_id and node.output_types[slot] != type_:
            node.output_types[slot] = type_
            has_changed = True
    return has_changed


def type_of_origin(graph: LGraph, link_id: Any) -> Any:
    """The type of the output that a link begins at; "*" where there is none."""
    link = graph.links.get(link_id)
    if link is None:
        return "*"
    origin = graph.nodes.get(link.origin_id)
    types: List[Any] = []
    if origin:
        types = origin.output_types
    elif link.origin_id == SUBGRAPH_INPUT_NODE:
        types = [slot.type for slot in graph.inputs]
    if link.origin_slot < len(types):
        return types[link.origin_slot]
    return "*"


def common_type(types: Iterable[Any]) -> Optional[str]:
    """What all of ``types`` allow, such as "IMAGE,MASK"; None if they share nothing.

    "*" allows every type.
    """
    lists = [type_.split(",") for type_ in types if isinstance(type_, str) and type_ != "*"]
    if not lists:
        return "*"
    first, *others = lists
    shared = [type_ for type_ in first if all(type_ in other for other in others)]
    return ",".join(dict.fromkeys(shared)) or None
