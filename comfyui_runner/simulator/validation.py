"""The checks of a prompt before it is accepted, with the errors of a real server."""

from __future__ import annotations

import os
import traceback
from typing import Any, Callable

from comfyui_runner.simulator.installation import Installation
from comfyui_runner.simulator.node_class import Node
from comfyui_runner.simulator.nodes import NODES
from comfyui_runner.simulator.prompts import Json

#: How a value that is not a link becomes one of the input's type.
CONVERSIONS: dict[str, Callable[[Any], Any]] = {
    "INT": int,
    "FLOAT": float,
    "STRING": str,
    "BOOLEAN": bool,
}
#: The inputs that a loader checks itself: they name a file in input/ (or "name [output]").
FILE_INPUTS = ("image", "audio", "file")
#: Of a longer list of options, an error shows only the length.
MOST_LISTED_OPTIONS = 20


def make_error(error_type: str, message: str, details: str = "", **extra: Any) -> Json:
    """An error in the form that /prompt answers with."""
    return {"type": error_type, "message": message, "details": details, "extra_info": extra}


class Validation:
    """Checks a prompt as the server does, converting its values in place.

    An output is good if everything that it depends on is; the good ones run even if others fail.

    Attributes:
        good: The ids of the output nodes that can run.
        error: Why nothing can run, or None.
        node_errors: What /prompt answers of each bad node, even if others run.
    """

    def __init__(self, installation: Installation, prompt: Json, targets: list[str] | None) -> None:
        self.installation = installation
        self.prompt = prompt
        self.good: list[str] = []
        self.node_errors: Json = {}
        #: node_id -> its own errors.
        self.checked: dict[str, list[Json]] = {}
        #: node_id -> whether it and all that it depends on is good.
        self.sound: dict[str, bool] = {}
        self.error = self.check_prompt(targets)

    # The prompt.

    def check_prompt(self, targets: list[str] | None) -> Json | None:
        """Check every output, or only the targets. Returns the error if nothing can run."""
        outputs = []
        for node_id, node in self.prompt.items():
            if "class_type" not in node or node["class_type"] not in NODES:
                return self.report_unknown_class(node_id, node)
            is_output = NODES[node["class_type"]].is_output
            is_target = targets is None or node_id in targets
            if is_output and is_target:
                outputs.append(node_id)
        if not outputs:
            return make_error("prompt_no_outputs", "Prompt has no outputs")
        errors = []
        for output in outputs:
            if self.check_output(output):
                self.good.append(output)
            else:
                errors += self.checked[output]
                self.blame_nodes(output)
        if self.good:
            return None
        lines = [f"{error['message']}: {error['details']}" for error in errors]
        return make_error(
            "prompt_outputs_failed_validation",
            "Prompt outputs failed validation",
            "\n".join(lines),
        )

    def check_output(self, output: str) -> bool:
        """Check an output and all that it depends on."""
        try:
            return self.check_node(output, [])
        except Exception as error:  # whatever a malformed prompt raises becomes its error
            self.sound[output] = False
            self.checked[output] = [report_exception(error)]
            return False

    def blame_nodes(self, output: str) -> None:
        """Note in node_errors that an output cannot run because of every node found bad so far."""
        for node_id, errors in self.checked.items():
            if not errors:
                continue
            if node_id not in self.node_errors:
                self.node_errors[node_id] = {
                    "errors": errors,
                    "dependent_outputs": [],
                    "class_type": self.prompt[node_id]["class_type"],
                }
            self.node_errors[node_id]["dependent_outputs"].append(output)

    def report_unknown_class(self, node_id: str, node: Json) -> Json:
        """The error of a node that has no class, or one that is not installed."""
        where = f"Node ID '#{node_id}'"
        class_type = None
        if isinstance(node, dict):
            class_type = node.get("class_type")
        if not self.installation.has("jobs"):
            message = f"Cannot execute because node {class_type} does not exist."
            if class_type is None:
                message = "Cannot execute because a node is missing the class_type property."
            return make_error("invalid_prompt", message, where)

        title = node.get("_meta", {}).get("title", class_type)
        message = f"Node '{title}' not found. The custom node may not be installed."
        if class_type is None:
            name = title or f"ID #{node_id}"
            message = (
                f"Node '{name}' has no class_type. "
                "The workflow may be corrupted or a custom node is missing."
            )
        extra = {"node_id": node_id, "class_type": class_type, "node_title": title}
        return make_error("missing_node_type", message, where, **extra)

    # A node.

    def check_node(self, node_id: str, path: list[str]) -> bool:
        """Check a node, and first those that it links to; `path` leads here from an output.

        Returns whether it and all of them are good. Each node is checked once.
        """
        if node_id in self.sound:
            return self.sound[node_id]
        if node_id in path:
            # Older servers go round until Python ends the recursion, and keep no error of it.
            if self.installation.has("jobs"):
                self.report_cycle(path[path.index(node_id) :])
            return False
        inputs = self.prompt[node_id]["inputs"]
        node = NODES[self.prompt[node_id]["class_type"]]
        errors = []
        are_origins_sound = True
        for name, (input_type, settings) in node.inputs(self.installation).items():
            if name not in inputs:
                if name not in node.optional:
                    errors.append(report_missing_input(name))
                continue
            about_input: Json = {"input_name": name, "input_config": [input_type, settings]}
            value = inputs[name]
            if isinstance(value, list):  # always read as a link: a literal list is in __value__
                error = self.check_link(value, input_type, about_input)
                if error is None and not self.check_origin(value, [*path, node_id], about_input):
                    are_origins_sound = False
            else:
                error = self.check_value(node, inputs, about_input)
            if error is not None:
                errors.append(error)
        errors = self.checked.get(node_id, []) + errors  # a cycle may have been found meanwhile
        self.checked[node_id] = errors
        self.sound[node_id] = are_origins_sound and not errors
        return self.sound[node_id]

    def check_origin(self, link: list[Any], path: list[str], about_input: Json) -> bool:
        """Check the node that a link comes from; what that raises is an error of that node."""
        origin = link[0]
        try:
            return self.check_node(origin, path)
        except Exception as error:
            self.sound[origin] = False
            about_link = {**about_input, "linked_node": link}
            self.checked[origin] = [report_inner_exception(error, about_link)]
            return False

    def report_cycle(self, ring: list[str]) -> None:
        """Note an error for each node of a ring, in place of its other errors."""
        names = []
        for node_id in ring:
            class_type = self.prompt[node_id]["class_type"]
            names.append(f"{node_id} ({class_type})")
        details = " -> ".join([*names, names[0]])
        for node_id in ring:
            extra = {"node_id": node_id, "cycle_nodes": ring}
            error = make_error("dependency_cycle", "Dependency cycle detected", details, **extra)
            self.sound[node_id] = False
            self.checked[node_id] = [error]

    # An input. `about_input` is what each error about it has in its extra_info: input_name and
    # input_config, which is a list of its type and its settings.

    def check_link(self, link: list[Any], input_type: Any, about_input: Json) -> Json | None:
        """The error if a link is not one, or if the other node's output is of another type."""
        name = about_input["input_name"]
        if len(link) != 2:
            return make_error(
                "bad_linked_input",
                "Bad linked input, must be a length-2 list of [node_id, slot_index]",
                name,
                **about_input,
                received_value=link,
            )
        origin, slot = link
        class_type = self.prompt[origin]["class_type"]
        received_type = NODES[class_type].outputs[slot]
        if types_fit(received_type, input_type):
            return None
        return make_error(
            "return_type_mismatch",
            "Return type mismatch between linked nodes",
            f"{name}, received_type({received_type}) mismatch input_type({input_type})",
            **about_input,
            received_type=received_type,
            linked_node=link,
        )

    def check_value(self, node: Node, inputs: Json, about_input: Json) -> Json | None:
        """The error if a value is not of its type or not one of those allowed; converts it."""
        name = about_input["input_name"]
        input_type, settings = about_input["input_config"]
        error = convert_value(inputs, input_type, about_input)
        if error is not None:
            return error
        value = inputs[name]
        is_loader = node.name.startswith("Load")
        if is_loader and name in FILE_INPUTS:
            return self.check_file(name, value)
        about_input = {**about_input, "received_value": value}
        error = check_bounds(value, settings, about_input)
        if error is not None:
            return error
        options = input_type  # it is the list of options, or the name of a type
        if input_type == "COMBO":
            options = settings.get("options")
        if isinstance(options, list) and value not in options:
            return self.report_unlisted(value, options, about_input)
        return None

    def check_file(self, name: str, value: Any) -> Json | None:
        """The error if a loader's file is missing: its class checks that input by itself."""
        if os.path.isfile(self.installation.annotated(value)):
            return None
        media = name
        if name == "file":
            media = "video"
        return make_error(
            "custom_validation_failed",
            "Custom validation failed for node",
            f"{name} - Invalid {media} file: {value}",
            input_name=name,
        )

    def report_unlisted(self, value: Any, options: list[Any], about_input: Json) -> Json:
        """The error of a value that is not one of the options."""
        listed = str(options)
        if len(options) > MOST_LISTED_OPTIONS:
            listed = f"(list of length {len(options)})"
            about_input = {**about_input, "input_config": None}
        quoted = repr(value)
        if not self.installation.has("jobs"):
            quoted = f"'{value}'"
        details = f"{about_input['input_name']}: {quoted} not in {listed}"
        return make_error("value_not_in_list", "Value not in list", details, **about_input)


def types_fit(received_type: Any, input_type: Any) -> bool:
    """Whether an output can be linked to an input: "A,B" is any of several, "*" any at all."""
    if received_type == input_type:
        return True
    if not isinstance(received_type, str) or not isinstance(input_type, str):
        return False
    offered = set(received_type.split(","))
    accepted = set(input_type.split(","))
    if "*" in offered or "*" in accepted:
        return True
    return not offered.isdisjoint(accepted)


def convert_value(inputs: Json, input_type: Any, about_input: Json) -> Json | None:
    """Take a value out of __value__ and convert it, in place. Returns the error if it cannot be."""
    name = about_input["input_name"]
    value = inputs[name]
    convert = CONVERSIONS.get(str(input_type))
    try:
        if isinstance(value, dict) and "__value__" in value:
            value = value["__value__"]
            inputs[name] = value
        if convert is not None:
            inputs[name] = convert(value)
    except Exception as error:  # int() and float() raise several kinds
        return make_error(
            "invalid_input_type",
            f"Failed to convert an input value to a {input_type} value",
            f"{name}, {value}, {error}",
            **about_input,
            received_value=value,
            exception_message=str(error),
        )
    return None


def check_bounds(value: Any, settings: Json, about_input: Json) -> Json | None:
    """The error if a number is below the input's minimum or above its maximum."""
    name = about_input["input_name"]
    if "min" in settings and value < settings["min"]:
        message = f"Value {value} smaller than min of {settings['min']}"
        return make_error("value_smaller_than_min", message, name, **about_input)
    if "max" in settings and value > settings["max"]:
        message = f"Value {value} bigger than max of {settings['max']}"
        return make_error("value_bigger_than_max", message, name, **about_input)
    return None


def report_missing_input(name: str) -> Json:
    """The error of an input that a node needs and does not have."""
    message = "Required input is missing"
    return make_error("required_input_missing", message, name, input_name=name)


def report_exception(error: Exception) -> Json:
    """The error that stands for an exception in the check of an output."""
    return make_error(
        "exception_during_validation",
        "Exception when validating node",
        str(error),
        exception_type=type(error).__name__,
        traceback=traceback.format_tb(error.__traceback__),
    )


def report_inner_exception(error: Exception, about_input: Json) -> Json:
    """The error that stands for an exception in the check of a node that is linked to."""
    return make_error(
        "exception_during_inner_validation",
        "Exception when validating inner node",
        str(error),
        exception_message=str(error),
        **about_input,
        exception_type=type(error).__name__,
        traceback=traceback.format_tb(error.__traceback__),
    )
