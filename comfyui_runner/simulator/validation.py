"""The checks of a prompt before it is accepted, with the errors of a real server."""

from __future__ import annotations

import os
import traceback
from typing import Any

from comfyui_runner.simulator.installation import Installation
from comfyui_runner.simulator.nodes import NODES, Node
from comfyui_runner.simulator.prompts import Json


def problem(kind: str, message: str, details: str = "", **extra: Any) -> Json:
    """An error in the form that /prompt answers with."""
    return {"type": kind, "message": message, "details": details, "extra_info": extra}


def _caught(exc: Exception, inner: Json | None = None) -> Json:
    trace = {"traceback": traceback.format_tb(exc.__traceback__)}
    known = {"exception_type": type(exc).__name__, **trace}
    if inner is None:
        return problem("exception_during_validation", "Exception when validating node", str(exc), **known)
    message = "Exception when validating inner node"
    extra = {"exception_message": str(exc), **inner, **known}
    return problem("exception_during_inner_validation", message, str(exc), **extra)


def _types_fit(received: Any, wanted: Any) -> bool:
    if received == wanted:
        return True
    if not isinstance(received, str) or not isinstance(wanted, str):
        return False
    offers, accepts = set(received.split(",")), set(wanted.split(","))
    return "*" in offers | accepts or bool(offers & accepts)


class Validation:
    """Checks a prompt as the server does, converting its values in place.

    An output is good if everything that it depends on is; the good ones run even if others fail.
    """

    def __init__(self, sim: Installation, prompt: Json, targets: list[str] | None) -> None:
        self.sim, self.prompt = sim, prompt
        self.good: list[str] = []
        self.node_errors: Json = {}
        self.checked: dict[str, list[Json]] = {}  # node_id -> its own errors
        self.sound: dict[str, bool] = {}  # False also for a node below a bad one
        self.error = self._check(targets)

    def _check(self, targets: list[str] | None) -> Json | None:
        outputs = []
        for node_id, node in self.prompt.items():
            if "class_type" not in node or node["class_type"] not in NODES:
                return self._unknown_class(node_id, node)
            if NODES[node["class_type"]].output_node and (targets is None or node_id in targets):
                outputs.append(node_id)
        if not outputs:
            return problem("prompt_no_outputs", "Prompt has no outputs")
        details = []
        for output in outputs:
            try:
                sound = self._node(output, [])
            except Exception as exc:  # whatever a malformed prompt raises becomes its error
                sound = self.sound[output] = False
                self.checked[output] = [_caught(exc)]
            if sound:
                self.good.append(output)
                continue
            details += self.checked[output]
            for node_id, errors in self.checked.items():
                if errors:
                    entry: Json = {"errors": errors, "dependent_outputs": []}
                    entry["class_type"] = self.prompt[node_id]["class_type"]
                    self.node_errors.setdefault(node_id, entry)["dependent_outputs"].append(output)
        if self.good:
            return None
        text = "\n".join("{message}: {details}".format(**error) for error in details)
        return problem("prompt_outputs_failed_validation", "Prompt outputs failed validation", text)

    def _unknown_class(self, node_id: str, node: Json) -> Json:
        where = f"Node ID '#{node_id}'"
        class_type = node.get("class_type") if isinstance(node, dict) else None
        if not self.sim.has("jobs"):
            what = f"node {class_type} does not exist."
            if class_type is None:
                what = "a node is missing the class_type property."
            return problem("invalid_prompt", "Cannot execute because " + what, where)
        title = node.get("_meta", {}).get("title", class_type)
        what = f"Node '{title}' not found. The custom node may not be installed."
        if class_type is None:
            what = "Node '{}' has no class_type. The workflow may be corrupted or a custom node is"
            what = what.format(title or "ID #" + node_id) + " missing."
        extra = {"node_id": node_id, "class_type": class_type, "node_title": title}
        return problem("missing_node_type", what, where, **extra)

    def _node(self, node_id: str, path: list[str]) -> bool:
        if node_id in self.sound:
            return self.sound[node_id]
        if node_id in path and self.sim.has("jobs"):
            return self._cycle(path[path.index(node_id) :])
        inputs, node = self.prompt[node_id]["inputs"], NODES[self.prompt[node_id]["class_type"]]
        errors, sound = [], True
        for name, (kind, settings) in node.inputs(self.sim).items():
            known: Json = {"input_name": name}
            if name not in inputs:
                if name not in node.optional:
                    missing = "Required input is missing"
                    errors.append(problem("required_input_missing", missing, name, **known))
                continue
            value = inputs[name]
            known["input_config"] = [kind, settings]
            if isinstance(value, list):  # always read as a link: a literal comes in __value__
                error = self._link(name, value, kind, known)
                if error is None:
                    try:
                        sound = self._node(value[0], [*path, node_id]) and sound
                    except Exception as exc:
                        self.sound[value[0]] = sound = False
                        self.checked[value[0]] = [_caught(exc, {**known, "linked_node": value})]
            else:
                error = self._value(node, inputs, name, kind, settings, known)
            if error is not None:
                errors.append(error)
        errors = self.checked.get(node_id, []) + errors  # a cycle may have been found meanwhile
        self.checked[node_id] = errors
        self.sound[node_id] = sound and not errors
        return self.sound[node_id]

    def _cycle(self, ring: list[str]) -> bool:
        names = ["{} ({})".format(each, self.prompt[each]["class_type"]) for each in ring]
        for each in ring:
            extra = {"node_id": each, "cycle_nodes": ring}
            details = " -> ".join(names + names[:1])
            error = problem("dependency_cycle", "Dependency cycle detected", details, **extra)
            self.sound[each], self.checked[each] = False, [error]
        return False

    def _link(self, name: str, value: list[Any], kind: Any, known: Json) -> Json | None:
        if len(value) != 2:
            message = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
            return problem("bad_linked_input", message, name, **known, received_value=value)
        received = NODES[self.prompt[value[0]]["class_type"]].outputs[value[1]]
        if _types_fit(received, kind):
            return None
        details = f"{name}, received_type({received}) mismatch input_type({kind})"
        extra = {**known, "received_type": received, "linked_node": value}
        message = "Return type mismatch between linked nodes"
        return problem("return_type_mismatch", message, details, **extra)

    def _value(self, node: Node, inputs: Json, name: str, kind: Any, settings: Json, known: Json) -> Json | None:
        value = inputs[name]
        convert = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}.get(str(kind))
        try:
            if isinstance(value, dict) and "__value__" in value:
                inputs[name] = value = value["__value__"]
            if convert:
                inputs[name] = value = convert(value)
        except Exception as exc:
            message = f"Failed to convert an input value to a {kind} value"
            details = f"{name}, {value}, {exc}"
            extra = {**known, "received_value": value, "exception_message": str(exc)}
            return problem("invalid_input_type", message, details, **extra)
        known = {**known, "received_value": value}
        if node.name.startswith("Load") and name in ("image", "audio", "file"):
            if os.path.isfile(self.sim.annotated(value)):  # such a class checks its own input
                return None
            details = "{} - Invalid {} file: {}".format(name, name.replace("file", "video"), value)
            message = "Custom validation failed for node"
            return problem("custom_validation_failed", message, details, input_name=name)
        for key, word, wrong in (("min", "smaller", -1), ("max", "bigger", 1)):
            if key in settings and (value - settings[key]) * wrong > 0:
                message = f"Value {value} {word} than {key} of {settings[key]}"
                return problem(f"value_{word}_than_{key}", message, name, **known)
        choices = settings.get("options") if kind == "COMBO" else kind
        if isinstance(choices, list) and value not in choices:
            listed: Any = choices
            if len(choices) > 20:
                known["input_config"], listed = None, f"(list of length {len(choices)})"
            details = f"{name}: {value!r} not in {listed}"
            if not self.sim.has("jobs"):
                details = f"{name}: '{value}' not in {listed}"
            return problem("value_not_in_list", "Value not in list", details, **known)
        return None
