"""What a new node of each class has, and what a node of a file shows that it has besides."""

from __future__ import annotations

from typing import Dict, Sequence, Set, Tuple

from comfyui_runner.extras.graph import LGraphNode, create_template
from comfyui_runner.extras.widgets import can_have_custom_widget, output_types_of_all
from comfyui_runner.text import JsonObject, as_dict, as_list


class Templates:
    """The template of each class, created when it is asked for."""

    def __init__(self, object_info: JsonObject) -> None:
        self.object_info = object_info
        self.created: Dict[Tuple[str, Sequence[str]], LGraphNode] = {}
        self.output_types: Set[str] = set()  # of all classes; filled when it is needed

    def of_class(self, type_: str, custom_inputs: Sequence[str] = ()) -> LGraphNode:
        """The template of a class, with widgets for its ``custom_inputs``."""
        key = (type_, custom_inputs)
        if key not in self.created:
            self.created[key] = create_template(type_, self.object_info, custom_inputs)
        return self.created[key]

    def of_node(self, raw: JsonObject) -> LGraphNode:
        """The template of a node of a file.

        /object_info cannot say for which inputs a custom node's script makes a widget. The file
        shows it: such an input is not among the sockets, nothing can be linked to it, and only with
        it the number of values is right.
        """
        template = self.of_class(raw["type"])
        stored = raw.get("widgets_values")
        if not stored or not template.is_known:
            return template
        if isinstance(stored, dict):
            names = self._find_custom_inputs(raw, template)
            return self.of_class(raw["type"], tuple(name for name in names if name in stored))

        count = len(as_list(stored))
        if template.takes_values(count):
            return template
        extended = self.of_class(raw["type"], self._find_custom_inputs(raw, template))
        if extended.takes_values(count):
            return extended
        return template

    def _find_custom_inputs(self, raw: JsonObject, template: LGraphNode) -> Sequence[str]:
        """The inputs of a node that may have a widget of a script."""
        raw_inputs = [as_dict(raw_input) for raw_input in as_list(raw.get("inputs"))]
        socket_names = {str(one.get("name")) for one in raw_inputs if not one.get("widget")}
        unlisted = [
            socket
            for socket in template.inputs
            if socket.widget_name is None and socket.name not in socket_names
        ]
        if unlisted and not self.output_types:
            self.output_types = output_types_of_all(self.object_info)
        return tuple(
            socket.name
            for socket in unlisted
            if can_have_custom_widget(socket.type, self.output_types)
        )
