"""What a new node of each class has, and what else a node of a file is seen to have."""

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
        self.output_types: Set[str] = set()  # of all classes; collected when they are needed

    def of_class(self, type_: str, custom_inputs: Sequence[str] = ()) -> LGraphNode:
        """The template of a class, with widgets for its ``custom_inputs``."""
        key = (type_, custom_inputs)
        if key not in self.created:
            self.created[key] = create_template(type_, self.object_info, custom_inputs)
        return self.created[key]

    def of_node(self, raw: JsonObject) -> LGraphNode:
        """The template of a node of a file.

        /object_info cannot say for which inputs a custom node's script makes a widget. The file
        shows it: such an input is not among the sockets, nothing can be linked to it, and the
        number of values is only right if it has a widget. Where the values have names, one has its.
        """
        template = self.of_class(raw["type"])
        stored = raw.get("widgets_values")
        if not stored or not template.is_known:
            return template
        if isinstance(stored, dict):
            custom_inputs = self._find_custom_inputs(raw, template)
            with_value = tuple(name for name in custom_inputs if name in stored)
            return self.of_class(raw["type"], with_value)

        count = len(as_list(stored))
        if template.takes_values(count):
            return template
        custom_inputs = self._find_custom_inputs(raw, template)
        extended = self.of_class(raw["type"], custom_inputs)
        if extended.takes_values(count):
            return extended
        return template

    def _find_custom_inputs(self, raw: JsonObject, template: LGraphNode) -> Sequence[str]:
        """The inputs of a node that may have a widget of a script."""
        raw_inputs = [as_dict(raw_input) for raw_input in as_list(raw.get("inputs"))]
        names_in_file = {str(one.get("name")) for one in raw_inputs if not one.get("widget")}
        sockets = [socket for socket in template.inputs if socket.widget_name is None]
        unlisted = [socket for socket in sockets if socket.name not in names_in_file]
        if unlisted and not self.output_types:
            self.output_types = output_types_of_all(self.object_info)
        return tuple(
            socket.name
            for socket in unlisted
            if can_have_custom_widget(socket.type, self.output_types)
        )
