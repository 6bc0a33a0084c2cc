"""Opening a workflow as ComfyUI's frontend does: from the document in UI format to its graph.

The order of the steps is the frontend's, because it shows in the result.
"""

from __future__ import annotations

import math
import re
from typing import (
    Any,
    Container,
    Dict,
    Iterable,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
)

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
    SubgraphSlot,
    parse_link_id,
    parse_node_id,
    parse_type,
)
from comfyui_runner.extras.group_nodes import (
    ExpandedGroup,
    expand_group_node,
    find_group_definition,
)
from comfyui_runner.extras.node_ids import NodeIds, RawNodes, assign_node_ids
from comfyui_runner.extras.pack_values import (
    POWER_LORA_LOADER,
    NamedValue,
    names_that_matter,
    read_named_values,
    read_power_loras,
    values_that_matter,
)
from comfyui_runner.extras.proxy_widgets import (
    HOST_ITSELF,
    migrate_proxy_widgets,
    parse_json_list,
    primitive_targets,
)
from comfyui_runner.extras.templates import Templates
from comfyui_runner.extras.widgets import (
    CUSTOM,
    FIRST_VALUES,
    UNDEFINED,
    Widget,
)
from comfyui_runner.text import JsonObject, as_dict, as_list, as_number, one_line

#: How many levels of subgraphs a workflow may have: far more than anybody draws.
DEEPEST_NESTING = 100

#: What a link in a file has, in the order of the older encoding, which is a list.
LINK_KEYS = ("id", "origin_id", "origin_slot", "target_id", "target_slot")

#: An input of a graph: the id of its node, and its slot in the file.
InputSlot = Tuple[str, int]


def load_graph(workflow: JsonObject, object_info: JsonObject) -> LGraph:
    """The root graph of a workflow, as it is when all is loaded. Raises ConversionError."""
    templates = Templates(object_info)
    root_nodes = list(read_nodes(workflow, "the workflow"))
    definitions = find_subgraph_definitions(workflow)
    groups = expand_group_nodes(workflow, root_nodes, templates)
    group_keys: Dict[str, int] = {}
    for index, group in groups.items():
        key = group.host["type"]
        group_keys[key] = index
        definitions[key] = group.subgraph
        root_nodes[index] = group.host

    subgraphs: Dict[str, LGraph] = {}
    subgraph_nodes: Dict[str, RawNodes] = {}
    for key, raw in definitions.items():
        name = one_line(raw.get("name") or key, 60) or "?"
        subgraphs[key] = LGraph(raw, name)
        subgraph_nodes[key] = read_nodes(raw, f"the subgraph {name}")
    subgraph_ids, root_ids = assign_node_ids(workflow, root_nodes, subgraph_nodes, group_keys)

    root = LGraph(workflow)
    loader = GraphLoader(templates, subgraphs, subgraph_ids)
    for key in order_of_loading(subgraphs, subgraph_nodes):
        loader.load(subgraphs[key], subgraph_nodes[key], subgraph_ids[key])
    loader.load(root, root_nodes, root_ids)
    finish_loading([*subgraphs.values(), root])

    for index, group in groups.items():
        host = root.nodes[root_ids.ids[index]]
        note_losses(host, group)
        raw_group_node = as_list(workflow["nodes"])[index]
        inner_nodes = subgraphs[host.type].nodes.values()
        for inner, group_positions in zip(inner_nodes, group.value_positions):
            point_to_group_node(inner, raw_group_node, group_positions)
    return root


def point_to_group_node(
    inner: LGraphNode, raw_group_node: JsonObject, group_positions: Mapping[int, int]
) -> None:
    """Makes the group node in the file the place where the values of an inner node are edited.

    ``group_positions`` has, for the position of a value among those of the inner node, its position
    among those of the group node. Values that the group node does not have cannot be edited.
    """
    own_positions = inner.value_positions
    inner.value_positions = {}
    for name, position in own_positions.items():
        if position in group_positions:
            inner.value_positions[name] = group_positions[position]
    inner.raw = raw_group_node


def note_losses(host: LGraphNode, group: ExpandedGroup) -> None:
    """Keeps what was lost of a group node, for warnings."""
    links = {socket.name: socket.link for socket in host.inputs}
    host.lost_inputs = [name for name in group.lost_inputs if links[name] is not None]
    host.unused_values = group.unused_values
    host.widgets_without_value = group.widgets_without_value


def finish_loading(graphs: Sequence[LGraph]) -> None:
    """What the frontend does when it has loaded all graphs."""
    for graph in graphs:
        repair_graph(graph)
        for node in graph.nodes.values():
            if node.type == PRIMITIVE and not node.is_known:
                apply_primitive(graph, node)
    narrow_match_types([node for graph in graphs for node in graph.nodes.values()])


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


def order_of_loading(
    subgraphs: Mapping[str, LGraph], subgraph_nodes: Mapping[str, RawNodes]
) -> Sequence[str]:
    """The ids of the subgraphs in the order in which they are loaded: inner ones come first.

    Raises ConversionError where one contains itself, or where they are nested too deep.
    """
    inner_keys = {}  # the subgraphs that each one contains, once for each host
    for key, raw_nodes in subgraph_nodes.items():
        inner_keys[key] = [raw["type"] for raw in raw_nodes if raw["type"] in subgraphs]
    levels = count_levels(inner_keys)
    for key in inner_keys:
        name = subgraphs[key].name
        if key not in levels:
            raise ConversionError(f"The subgraph {name} contains itself.", SAVE_AGAIN)
        if levels[key] > DEEPEST_NESTING:
            raise ConversionError(
                f"The subgraph {name} contains more than {DEEPEST_NESTING} levels of subgraphs.",
                SAVE_AGAIN,
            )
    # Where a subgraph contains another one twice, topologicalSortSubgraphs counts that twice, never
    # gets to the end, and falls back on the order of the file.
    for keys in inner_keys.values():
        contains_one_twice = len(set(keys)) < len(keys)
        if contains_one_twice:
            return list(inner_keys)
    return list(levels)


def count_levels(inner_keys: Mapping[str, Sequence[str]]) -> Dict[str, int]:
    """How many levels of subgraphs each one has, itself included. Inner ones come first.

    ``inner_keys`` are the subgraphs that each one contains. A subgraph that contains itself is left
    out.
    """
    waiting_for = {key: set(keys) for key, keys in inner_keys.items()}
    holders: Dict[str, List[str]] = {key: [] for key in inner_keys}
    for holder, keys in waiting_for.items():
        for key in keys:
            holders[key].append(holder)

    levels = dict.fromkeys(inner_keys, 1)
    ready = [key for key, keys in inner_keys.items() if not keys]
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


def expand_group_nodes(
    workflow: JsonObject, root_nodes: RawNodes, templates: Templates
) -> Dict[int, ExpandedGroup]:
    """The group nodes of a workflow, by their index among its nodes."""
    groups: Dict[int, ExpandedGroup] = {}
    keys: Set[str] = set()
    for index, raw in enumerate(root_nodes):
        definition = find_group_definition(workflow, raw["type"])
        if definition is None or templates.of_class(raw["type"]).is_known:
            continue
        # The key is shown as the class of the node, which gets another id.
        key = f"{raw['type']}, node {raw['id']} of the file"
        if key in keys:
            key += f" (entry {index})"
        keys.add(key)
        groups[index] = expand_group_node(raw, definition, key, templates)
    return groups


class GraphLoader:
    """Fills graphs with what the file has (LGraph.ts, configure)."""

    def __init__(
        self,
        templates: Templates,
        subgraphs: Mapping[str, LGraph],
        subgraph_ids: Mapping[str, NodeIds],
    ) -> None:
        self.templates = templates
        self.subgraphs = subgraphs
        self.subgraph_ids = subgraph_ids

    def load(self, graph: LGraph, raw_nodes: RawNodes, node_ids: NodeIds) -> None:
        read_links(graph, node_ids.renamed)
        settle_links(graph, raw_nodes, node_ids.ids)
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
        template = self.templates.of_node(raw)
        subgraph = self.subgraphs.get(raw["type"])
        graph.nodes[node_id] = template.create_node(raw, node_id, graph, subgraph)


def read_links(graph: LGraph, renamed: Mapping[str, str]) -> None:
    """Reads the links of a graph; ``renamed`` are the ids of nodes that had to change."""
    for entry in as_list(graph.raw.get("links")):
        parts = as_list(entry)  # id, origin, origin slot, target, target slot, type
        if isinstance(entry, dict):  # in schema 1, and in all subgraphs
            parts = [entry.get(key) for key in LINK_KEYS]
        if len(parts) < len(LINK_KEYS):
            continue
        raw_id, raw_origin_id, origin_slot, raw_target_id, target_slot, *_ = parts
        link_id = parse_link_id(raw_id)
        if link_id is None:
            continue
        origin_id = parse_node_id(raw_origin_id)
        target_id = parse_node_id(raw_target_id)
        graph.links[link_id] = LLink(
            renamed.get(origin_id, origin_id),
            parse_slot(origin_slot),
            renamed.get(target_id, target_id),
            parse_slot(target_slot),
        )


def settle_links(graph: LGraph, raw_nodes: RawNodes, ids: Sequence[str]) -> None:
    """Finds the link of each input, by its slot in the file, and removes links without an input.

    Since frontend 1.53, the table of links decides. What an input says of its link only counts
    where the table agrees on the node (slots drift when a class changes), and where two links in
    the table lead to the same slot.
    """
    named_by_inputs = find_links_named_by_inputs(graph, raw_nodes, ids)
    link_ids: Dict[InputSlot, Any] = {}  # as the table says
    for link_id, link in list(graph.links.items()):
        if link.target_id == SUBGRAPH_OUTPUT_NODE:
            continue
        target = (link.target_id, link.target_slot)
        if target not in link_ids:
            link_ids[target] = link_id
        elif named_by_inputs.get(target) == link_id:
            del graph.links[link_ids[target]]
            link_ids[target] = link_id
        else:
            del graph.links[link_id]

    named_ids = set(named_by_inputs.values())
    for target, link_id in link_ids.items():
        if link_id not in named_ids:
            graph.input_links[target] = link_id
    for target, link_id in named_by_inputs.items():
        if link_id in graph.links:
            graph.input_links[target] = link_id


def find_links_named_by_inputs(
    graph: LGraph, raw_nodes: RawNodes, ids: Sequence[str]
) -> Dict[InputSlot, Any]:
    """The links that inputs name as theirs, where the table of links agrees on the node."""
    link_ids: Dict[InputSlot, Any] = {}
    for raw, node_id in zip(raw_nodes, ids):
        for slot, raw_input in enumerate(as_list(raw.get("inputs"))):
            link_id = parse_link_id(as_dict(raw_input).get("link"))
            link = graph.links.get(link_id)
            if link and link.target_id == node_id:
                link_ids[node_id, slot] = link_id
    return link_ids


def parse_slot(value: Any) -> int:
    """The slot that a link names; 0 for what cannot be one."""
    if isinstance(value, int) and value >= 0:
        return value
    return 0


def repair_slot_links(graph: LGraph) -> None:
    """Replaces links of a subgraph's inputs and outputs that do not exist (_repairSlotLinkIds)."""
    first_of_input: Dict[int, Any] = {}
    first_of_output: Dict[int, Any] = {}
    for link_id, link in graph.links.items():
        if link.origin_id == SUBGRAPH_INPUT_NODE:
            first_of_input.setdefault(link.origin_slot, link_id)
        if link.target_id == SUBGRAPH_OUTPUT_NODE:
            first_of_output.setdefault(link.target_slot, link_id)
    replace_missing_links(graph.inputs, first_of_input, graph.links)
    replace_missing_links(graph.outputs, first_of_output, graph.links)


def replace_missing_links(
    subgraph_slots: Sequence[SubgraphSlot],
    first_links: Mapping[int, Any],
    links: Container[Any],
) -> None:
    """Replaces each link id that is not among ``links`` by the first link of its slot, if any."""
    for slot, subgraph_slot in enumerate(subgraph_slots):
        link_ids = subgraph_slot.link_ids
        for index, link_id in enumerate(link_ids):
            if link_id not in links:
                link_ids[index] = first_links.get(slot, link_id)


# ------------------------------------------------------------------------------------------------
# One node
# ------------------------------------------------------------------------------------------------


def configure_node(node: LGraphNode) -> None:
    """Lets a new node take over what the file has (LGraphNode.ts, configure)."""
    configure_inputs(node)
    raw_outputs = as_list(node.raw.get("outputs"))
    for raw in raw_outputs[len(node.output_types) :]:
        node.output_types.append(parse_type(as_dict(raw).get("type")))
    grow_linked_groups(node)
    configure_widgets(node)


class StoredInput(NamedTuple):
    """An input that the file has of a node; ``link_id`` is None if nothing is linked to it."""

    name: str
    link_id: Any
    raw: JsonObject


def stored_inputs(node: LGraphNode) -> Sequence[StoredInput]:
    inputs = []
    for slot, raw in enumerate(as_list(node.raw.get("inputs"))):
        if isinstance(raw, dict):
            link_id = node.graph.input_links.get((node.id, slot))
            inputs.append(StoredInput(str(raw.get("name")), link_id, raw))
    return inputs


def connect_inputs(node: LGraphNode, stored: Sequence[StoredInput]) -> None:
    """Gives the inputs that the node already has the links that the file has for them."""
    link_ids = {one.name: one.link_id for one in stored}  # the last one of two namesakes counts
    for socket in node.inputs:
        if socket.name in link_ids:
            socket.link = link_ids[socket.name]


def configure_inputs(node: LGraphNode) -> None:
    stored = stored_inputs(node)
    lost_inputs = []
    for name, link_id, raw in stored:
        if link_id is None and raw.get("link") is not None:
            lost_inputs.append(name)
    node.lost_inputs = lost_inputs
    connect_inputs(node, stored)
    own_names = {socket.name for socket in node.inputs}
    # Inputs that only the file has: of an older file, or further places of an autogrow group.
    for name, link_id, raw in stored:
        if name in own_names:
            continue
        widget_name = as_dict(raw.get("widget")).get("name")
        if widget_name is not None:
            widget_name = str(widget_name)
        socket = Socket(name, parse_type(raw.get("type")), widget_name)
        socket.link = link_id
        node.inputs.append(socket)


def grow_linked_groups(node: LGraphNode) -> None:
    """Lets the autogrow groups offer their next places."""
    if not node.autogrow_groups:
        return
    slot = 0
    while slot < len(node.inputs):  # on_connected() adds inputs
        if node.inputs[slot].link in node.graph.links:
            node.on_connected(slot)
        slot += 1


def configure_widgets(node: LGraphNode) -> None:
    """Gives the widgets the values that the file has for them."""
    stored = node.raw.get("widgets_values")
    named = read_named_values(node.type, stored)
    if named is not None:
        set_named_values(node, named)
    elif node.type == POWER_LORA_LOADER:
        set_power_loras(node, as_list(stored))
    else:
        set_values_in_order(node, as_list(stored))


def set_named_values(node: LGraphNode, named: Dict[str, NamedValue]) -> None:
    """Gives the widgets the values with their names."""
    for widget in node.widgets:  # set_value() may change what follows
        if widget.name not in named:
            continue
        place, value = named.pop(widget.name)
        if place is not None:
            node.value_positions[widget.name] = place
        node.set_value(widget, value)
    node.unused_values = names_that_matter(named)


def set_power_loras(node: LGraphNode, values: Sequence[Any]) -> None:
    """Gives a Power Lora Loader a widget for each row that the file has (pack_values.py)."""
    for number, (position, row) in enumerate(read_power_loras(values, node.properties), 1):
        widget = node.add_widget(Widget(f"lora_{number}", CUSTOM), row)
        node.value_positions[widget.name] = position


def set_values_in_order(node: LGraphNode, values: Sequence[Any]) -> None:
    """Gives the widgets the values in their order, without the dummies of older files."""
    positions: Iterable[int] = range(len(values))
    has_dummies = len(values) == len(node.forced_positions)
    if has_dummies:  # litegraphUtil.ts, migrateWidgetsValues
        positions = [index for index in positions if not node.forced_positions[index]]
    remaining = iter(positions)
    widgets_without_value = []
    for widget in node.widgets:  # set_value() may change what follows
        if not widget.in_workflow:
            continue
        position = next(remaining, None)
        if position is not None:
            node.value_positions[widget.name] = position
            node.set_value(widget, values[position])
        elif node.is_needed(widget):
            widgets_without_value.append(widget.name)
    if values:  # a file without any means the defaults
        node.widgets_without_value = widgets_without_value
    unused_values = [values[position] for position in remaining]
    node.unused_values = values_that_matter(node.type, unused_values)


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
        proxy_entry = as_list(as_dict(entry).get("originalEntry"))  # node, widget
        is_of_host = proxy_entry[:1] == [HOST_ITSELF]
        if is_of_host and entry.get("hostValue") is not None:
            widget_name = str(proxy_entry[-1])
            values[widget_name] = entry["hostValue"]
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
    if widget.type not in ("INT", "FLOAT"):
        return value
    if isinstance(value, str):
        value = number_in_text(value)
    if not is_finite_number(value):
        return value
    low = widget.options.get("min")
    high = widget.options.get("max")
    step = widget.options.get("step") or 1
    if widget.type == "FLOAT":
        value = round_as_widget(value, widget)
    if low is not None and value < low:
        value = low
    if high is not None and value > high:
        value = high
    # Numbers above 2 ** 53 have no halves in a float.
    can_be_rounded = isinstance(step, int) and abs(value) < 2**53
    if widget.type == "INT" and can_be_rounded:
        value = round_to_step(value, step, (low or 0) % step)
    return value


def is_finite_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    is_nan = value != value
    return not is_nan and abs(value) != math.inf  # math.isfinite() fails on huge integers


def round_to_step(value: float, step: int, offset: float) -> float:
    """The multiple of ``step``, plus ``offset``, that is nearest to a number.

    Halves go up, as with JavaScript's Math.round.
    """
    steps = math.floor((value - offset) / step + 0.5)
    return steps * step + offset


def number_in_text(text: str) -> Any:
    """The number that JavaScript makes of a text. A text that is not a number is returned as is."""
    if not re.fullmatch(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]{1,3})?\s*", text, re.I):
        return text
    number = float(text)
    if number.is_integer():
        return int(number)
    return number


def round_as_widget(value: float, widget: Widget) -> float:
    """A FLOAT with as many digits as its widget shows (useFloatWidget.ts).

    The digits are those of ``step``; ``round`` may ask for a multiple of something else before.
    """
    options = widget.options
    precision = digits_of_step(as_number(options.get("step")) or 0.5)
    unit = as_number(options.get("round"))
    if not unit and precision:
        unit = 0.1**precision
    if unit <= 0 or abs(value) > 2**53:
        return value
    rounded = math.floor(value / unit + 0.5) * unit
    return round(rounded, precision)


def digits_of_step(step: float) -> int:
    """How many digits after the point a step has: 0.05 has two, 1 has none."""
    if not 1e-20 < step < 1:
        return 0
    return -math.floor(math.log10(step))


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
        origin_types = [type_of_origin(node.graph, socket.link) for socket in sockets]
        for index, socket in enumerate(sockets):
            # What it may take: what its class allows, and what the other sockets get.
            types_of_others = [*origin_types[:index], *origin_types[index + 1 :]]
            type_ = common_type([*types_of_others, allowed_types[socket.name]])
            if type_:
                socket.type = type_
        output_type = common_type(origin_types)
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
    """The type of the output that a link begins at; "*" if that does not exist."""
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
    alternatives = [type_.split(",") for type_ in types if isinstance(type_, str) and type_ != "*"]
    if not alternatives:
        return "*"
    first, *others = alternatives
    shared = dict.fromkeys(first)  # each once
    for other in others:
        shared = {type_: None for type_ in shared if type_ in other}
    return ",".join(shared) or None
