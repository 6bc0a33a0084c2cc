"""A node class: what /object_info says of it, and what it does."""

from __future__ import annotations

from typing import Iterable

from comfyui_runner.simulator.actions import Action
from comfyui_runner.simulator.inputs import FILE_LIST_MARK, Spec
from comfyui_runner.simulator.installation import Installation
from comfyui_runner.simulator.prompts import Json

#: The category of the nodes that ComfyUI does not have.
TEST_CATEGORY = "test"


class Node:
    """A node class: what /object_info says of it, and what it does with its inputs.

    Args:
        name: The class_type.
        title: The display name.
        category: Where it is in the menu of the frontend.
        inputs: Input name -> its type and settings.
        outputs: The types of the outputs.
        action: What it does.
        output_names: If not the types.
        is_output: Whether a prompt may end in it.
        optional: The names of the inputs that may be left out.
        is_api_node: Whether it costs credits of a Comfy account.
    """

    def __init__(
        self,
        name: str,
        *,
        title: str,
        category: str,
        inputs: dict[str, Spec],
        outputs: list[str],
        action: Action,
        output_names: list[str] | None = None,
        is_output: bool = False,
        optional: Iterable[str] = (),
        is_api_node: bool = False,
    ) -> None:
        self.name = name
        self.title = title
        self.category = category
        self.specs = inputs
        self.outputs = outputs
        self.action = action
        self.output_names = output_names or outputs
        self.is_output = is_output
        self.optional = frozenset(optional)
        self.is_api_node = is_api_node

    def inputs(self, installation: Installation) -> dict[str, Spec]:
        """The types and settings of the inputs, with the lists of files of an installation."""
        filled = {}
        for name, (input_type, settings) in self.specs.items():
            if input_type[0].startswith(FILE_LIST_MARK):
                input_type = installation.options(input_type[1:])
            filled[name] = (input_type, settings)
        return filled

    def info(self, installation: Installation) -> Json:
        """The entry in /object_info."""
        groups: dict[str, Json] = {"required": {}}
        for name, (input_type, settings) in self.inputs(installation).items():
            group = "required"
            if name in self.optional:
                group = "optional"
            spec = [input_type]
            if settings:
                spec.append(settings)
            groups.setdefault(group, {})[name] = spec
        module = "nodes"
        if self.category == TEST_CATEGORY:
            module = "comfyui_runner.simulator"
        info: Json = {
            "input": groups,
            "input_order": {group: list(specs) for group, specs in groups.items()},
            "output": self.outputs,
            "output_is_list": [False] * len(self.outputs),
            "output_name": self.output_names,
            "name": self.name,
            "display_name": self.title,
            "description": "",
            "python_module": module,
            "category": self.category,
            "output_node": self.is_output,
        }
        if installation.has("jobs"):
            info["is_input_list"] = False
            info["has_intermediate_output"] = False
            info["search_aliases"] = []
        if self.is_api_node:  # any other node has no such entry (server.py, node_info())
            info["api_node"] = True
        return info
