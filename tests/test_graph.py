"""Rules of a graph that no whole workflow shows by itself."""

from __future__ import annotations

from typing import Any, Dict

import pytest

from comfyui_runner.extras.graph import LGraphNode, NodeSocket, Socket
from comfyui_runner.extras.widgets import Widget


def host_with(promoted: Widget) -> LGraphNode:
    """A host whose one socket promotes a widget, with a value of its own."""
    host = LGraphNode("host")
    socket = Socket("value", promoted.type)
    socket.promoted = promoted
    host.inputs, host.values = [socket], {"value": "outside"}
    return host


def node_with(widget: Widget) -> LGraphNode:
    """A node inside the subgraph with one widget, and the socket of it."""
    node = LGraphNode("inside")
    node.widgets, node.values = [widget], {widget.name: "inside"}
    node.inputs = [Socket(widget.name, widget.type, widget.name)]
    return node


@pytest.mark.parametrize(
    ("type_", "options", "value"),
    [("INT", {}, "outside"), ("FLOAT", {}, "inside"), ("INT", {"multiline": True}, "inside")],
)
def test_a_host_keeps_its_value_for_a_widget_of_the_same_type(type_: str, options: Dict[str, Any], value: str) -> None:
    host, widget = host_with(Widget("old", "INT")), Widget("new", type_, options=options)
    node = node_with(widget)
    host.promote_first_widget(host.inputs[0], [NodeSocket(node, node.inputs[0])])
    assert host.inputs[0].promoted is widget
    assert host.values == {"value": value}


def test_a_host_without_a_promoted_widget_takes_the_value_from_inside() -> None:
    host = host_with(Widget("old", "INT"))
    host.inputs[0].promoted = None
    node = node_with(Widget("new", "INT"))
    host.promote_first_widget(host.inputs[0], [NodeSocket(node, node.inputs[0])])
    assert host.values == {"value": "inside"}


def test_a_host_promotes_the_first_socket_that_has_a_widget() -> None:
    host, plain, node = host_with(Widget("old", "INT")), LGraphNode("plain"), node_with(Widget("new", "INT"))
    without_widget = NodeSocket(plain, Socket("image", "IMAGE"))
    host.promote_first_widget(host.inputs[0], [without_widget, NodeSocket(node, node.inputs[0])])
    assert host.inputs[0].promoted == Widget("new", "INT")
    host.promote_first_widget(host.inputs[0], [without_widget])
    assert host.inputs[0].promoted is None
    assert host.values == {"value": "outside"}
