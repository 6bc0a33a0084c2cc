"""Widgets that a host promotes the older way, by its property ``proxyWidgets``.

As in the frontend's proxyWidgetMigration.ts, each becomes an input of the subgraph.
"""

from __future__ import annotations

import re
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from comfyui_runner.extras.graph import (
    PRIMITIVE,
    SUBGRAPH_INPUT_NODE,
    LGraph,
    LGraphNode,
    LLink,
    NodeSocket,
    Socket,
    SubgraphSlot,
    parse_link_id,
)
from comfyui_runner.extras.widgets import UNDEFINED
from comfyui_runner.json_text import parse_json
from comfyui_runner.text import as_dict, as_list

#: Stands for the host itself in an entry of ``proxyWidgets``.
HOST_ITSELF = "-1"


class ProxyWidget(NamedTuple):
    """An entry of ``proxyWidgets``: a widget inside the subgraph, and the host's value for it."""

    node_id: str
    widget_name: str
    inner_node_id: Optional[str]  # where the node is a host: the node inside that has the widget
    value: Any


def parse_json_list(value: Any) -> List[Any]:
    """A property that is a list, or the JSON of one; an empty list for anything else."""
    if not isinstance(value, str):
        return as_list(value)
    try:
        return as_list(parse_json(value))
    except ValueError:
        return []


def parse_proxy_widgets(host: LGraphNode, renamed: Mapping[str, str]) -> Sequence[ProxyWidget]:
    """The host's ``proxyWidgets``; none if one of them is broken."""
    entries = parse_json_list(host.properties.get("proxyWidgets"))
    if not all(is_proxy_entry(entry) for entry in entries):
        return []
    values = as_list(host.raw.get("widgets_values"))
    proxy_widgets = []
    for index, entry in enumerate(entries):
        proxy = parse_proxy_entry(entry)
        node_id = renamed.get(proxy.node_id, proxy.node_id)
        value = UNDEFINED
        if index < len(values) and values[index] is not None:
            value = values[index]
        proxy_widgets.append(proxy._replace(node_id=node_id, value=value))
    return proxy_widgets


def parse_proxy_entry(entry: Sequence[str]) -> ProxyWidget:
    """An entry as is_proxy_entry() wants it, still without a value."""
    node_id, widget_name, *more = entry
    inner_node_id = None
    if more:
        inner_node_id = more[0]
    # Or all in the name, "7: 3: steps": the widget "steps" of the node 3 in the subgraph 7.
    prefixed = re.fullmatch(r"(?:\s*([0-9]+)\s*:\s*)+(.+)", widget_name)
    if prefixed:
        inner_node_id, widget_name = prefixed.groups()
    return ProxyWidget(node_id, widget_name, inner_node_id, UNDEFINED)


def is_proxy_entry(entry: Any) -> bool:
    """Whether an entry is [node id, widget] or [node id, widget, inner node id]."""
    if not isinstance(entry, list) or len(entry) not in (2, 3):
        return False
    return all(isinstance(part, str) for part in entry)


def migrate_proxy_widgets(host: LGraphNode, subgraph: LGraph, renamed: Mapping[str, str]) -> None:
    """Makes inputs of what ``proxyWidgets`` promotes, and gives them their values.

    ``renamed`` has the new ids of nodes inside whose ids had to change.
    """
    proxy_widgets = parse_proxy_widgets(host, renamed)
    if not proxy_widgets:
        return
    promoted: Dict[Any, Socket] = {}  # by what they promote, before anything is added
    for socket, subgraph_input in zip(host.inputs, subgraph.inputs):
        promoted.setdefault(subgraph.promoted_source(subgraph_input), socket)
    cohorts: Dict[str, List[ProxyWidget]] = {}  # by the PrimitiveNode whose value they promote
    for proxy in proxy_widgets:
        host_socket = promoted.get((proxy.node_id, proxy.widget_name))
        node = subgraph.nodes.get(proxy.node_id)
        if proxy.node_id == HOST_ITSELF:
            host_socket = host.socket_named(proxy.widget_name)
        elif host_socket is None and node is not None:
            if node.type != PRIMITIVE:
                host_socket = promote_widget(host, subgraph, node, proxy)
            else:
                host_socket = host.socket_named(node.promoted_as)
                if host_socket is None:
                    cohorts.setdefault(proxy.node_id, []).append(proxy)
        if host_socket and host_socket.promoted and proxy.value is not UNDEFINED:
            host.values[host_socket.name] = proxy.value
    for node_id, cohort in cohorts.items():
        migrate_primitive(host, subgraph, subgraph.nodes[node_id], cohort)


def promote_widget(
    host: LGraphNode, subgraph: LGraph, node: LGraphNode, proxy: ProxyWidget
) -> Optional[Socket]:
    """Gives the subgraph an input for a widget of ``node``, which is inside.

    Returns the new socket of the host; None if the node has no such widget.
    """
    socket = find_promotable(node, proxy)
    if socket is None:
        return None
    targets = [NodeSocket(node, socket)]
    return add_subgraph_input(host, subgraph, proxy.widget_name, socket.type, targets)


def find_promotable(node: LGraphNode, proxy: ProxyWidget) -> Optional[Socket]:
    """The socket of the widget that a proxy widget stands for."""
    if node.subgraph:
        return find_promotable_of_host(node, node.subgraph, proxy)
    for socket in node.inputs:
        if socket.widget_name == proxy.widget_name and node.widget_of(socket):
            return socket
    return None


def find_promotable_of_host(
    node: LGraphNode, inner_subgraph: LGraph, proxy: ProxyWidget
) -> Optional[Socket]:
    """As find_promotable(), where the node inside is a host itself."""
    sources = [inner_subgraph.promoted_source(slot) for slot in inner_subgraph.inputs]
    if proxy.inner_node_id is not None:
        wanted = (proxy.inner_node_id, proxy.widget_name)
        for socket, source in zip(node.inputs, sources):
            if socket.promoted and source == wanted:
                return socket
    # The ids inside may have changed since; the name alone counts then.
    for socket, source in zip(node.inputs, sources):
        _, widget_name = source or ("", "")
        if socket.promoted and proxy.widget_name in (socket.name, widget_name):
            return socket
    return None


# ------------------------------------------------------------------------------------------------
# Primitives
# ------------------------------------------------------------------------------------------------


def primitive_targets(graph: LGraph, primitive: LGraphNode) -> Iterator[NodeSocket]:
    """The sockets that a primitive leads to, as its links in the file say."""
    raw_outputs = as_list(primitive.raw.get("outputs"))
    if not raw_outputs:
        return
    for raw_id in as_list(as_dict(raw_outputs[0]).get("links")):
        link = graph.links.get(parse_link_id(raw_id))
        if link is None or link.target_id not in graph.nodes:
            continue
        node = graph.nodes[link.target_id]
        if link.target_slot < len(node.inputs):
            yield NodeSocket(node, node.inputs[link.target_slot])


def migrate_primitive(
    host: LGraphNode, subgraph: LGraph, primitive: LGraphNode, cohort: Sequence[ProxyWidget]
) -> None:
    """Replaces a promoted primitive by an input of the subgraph that leads where it led."""
    targets = list(primitive_targets(subgraph, primitive))
    if not can_replace_primitive(primitive, targets, cohort):
        return
    name = primitive.title
    if name == PRIMITIVE:  # nobody gave it a title
        name = cohort[0].widget_name
    socket = add_subgraph_input(host, subgraph, name, primitive.output_types[0], targets)
    values = [proxy.value for proxy in cohort if proxy.value is not UNDEFINED]
    if values and socket.promoted:
        host.values[socket.name] = values[0]
    primitive.promoted_as = socket.name  # for the next host of this subgraph


def can_replace_primitive(
    primitive: LGraphNode, targets: Sequence[NodeSocket], cohort: Sequence[ProxyWidget]
) -> bool:
    """Whether one input can do what a primitive does: the widgets that it leads to are alike."""
    if not targets:
        return False
    output_type = primitive.output_types[0]
    for _, socket in targets:
        is_same_type = "*" in (output_type, socket.type) or socket.type == output_type
        if not is_same_type:
            return False
    promoted_names = {proxy.widget_name for proxy in cohort}
    if len(promoted_names) > 1:
        return False
    shapes = [widget_shape(target) for target in targets]
    shapes_of_widgets = [shape for shape in shapes if shape is not None]
    return all(shape == shapes_of_widgets[0] for shape in shapes_of_widgets)


def widget_shape(target: NodeSocket) -> Optional[Tuple[Any, ...]]:
    """The type and the range of the widget behind a socket; None if there is no widget."""
    widget = target.node.widget_of(target.socket)
    if widget is None:
        return None
    options = widget.options
    return widget.type, options.get("min"), options.get("max"), options.get("step")


# ------------------------------------------------------------------------------------------------
# Inputs of a subgraph
# ------------------------------------------------------------------------------------------------


def add_subgraph_input(
    host: LGraphNode, subgraph: LGraph, name: str, type_: Any, targets: Sequence[NodeSocket]
) -> Socket:
    """Gives a subgraph, and so all its hosts, one more input that leads to ``targets``.

    Returns the new socket of ``host``.
    """
    unique_name = make_unique(name, [slot.name for slot in subgraph.inputs])
    subgraph_input = SubgraphSlot(unique_name, type_)
    subgraph.inputs.append(subgraph_input)
    for other in subgraph.hosts:
        other.inputs.append(Socket(unique_name, type_))
    for target in targets:
        disconnect(subgraph, target.socket)
        connect_to_last_input(subgraph, target)
    return host.inputs[-1]


def make_unique(name: str, taken: Sequence[str]) -> str:
    """``name``, or ``name_1`` and so on if that is taken."""
    unique_name = name
    number = 0
    while unique_name in taken:
        number += 1
        unique_name = f"{name}_{number}"
    return unique_name


def disconnect(subgraph: LGraph, socket: Socket) -> None:
    """Removes the link to a socket inside; the hosts may have promoted its widget."""
    link = subgraph.links.pop(socket.link, None)
    if not link or link.origin_id != SUBGRAPH_INPUT_NODE:
        return
    slot = link.origin_slot
    if slot >= len(subgraph.inputs):
        return
    subgraph_input = subgraph.inputs[slot]
    other_ids = [link_id for link_id in subgraph_input.link_ids if link_id != socket.link]
    subgraph_input.link_ids = other_ids
    for host in subgraph.hosts:
        targets = subgraph.sockets_of(other_ids)
        host.promote_first_widget(host.inputs[slot], targets)


def connect_to_last_input(subgraph: LGraph, target: NodeSocket) -> None:
    """Links the last input of a subgraph to a socket inside; the hosts promote its widget."""
    node, socket = target
    subgraph_input = subgraph.inputs[-1]
    input_slot = len(subgraph.inputs) - 1
    link_id = (subgraph_input.name, len(subgraph_input.link_ids))  # no file has such an id
    socket.link = link_id
    subgraph_input.link_ids.append(link_id)
    subgraph.links[link_id] = LLink(
        origin_id=SUBGRAPH_INPUT_NODE,
        origin_slot=input_slot,
        target_id=node.id,
        target_slot=node.inputs.index(socket),
    )
    for host in subgraph.hosts:
        host.promote_first_widget(host.inputs[-1], subgraph.sockets_of(subgraph_input.link_ids))
