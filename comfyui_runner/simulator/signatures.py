"""Signatures: the cache finds the result of a node by them."""

from __future__ import annotations

import hashlib
import json
import os
import time
from typing import Any

from comfyui_runner.simulator.installation import Installation
from comfyui_runner.simulator.prompts import Json, is_link

#: The classes that run each time: their IS_CHANGED returns the time (websocket_image_save.py).
ALWAYS_CHANGED = ("SaveImageWebsocket",)

#: The signature of a node while its own is computed: for links that lead back to it.
SIGNATURE_IN_CYCLE = "cycle"


class Signatures:
    """The signatures of the nodes of a prompt: equal ones come to the same result.

    A signature covers the class, the values, the files named by them, and the signatures of the
    nodes that are linked to.
    """

    def __init__(self, installation: Installation, prompt: Json) -> None:
        self.installation = installation
        self.prompt = prompt
        self.known: dict[str, str] = {}

    def of(self, node_id: str) -> str:
        """The signature of a node."""
        if node_id not in self.known:
            self.known[node_id] = SIGNATURE_IN_CYCLE
            self.known[node_id] = self.compute(node_id)
        return self.known[node_id]

    def compute(self, node_id: str) -> str:
        """Hash all that the result of a node depends on."""
        node = self.prompt[node_id]
        class_type = node["class_type"]
        parts: list[Any] = [class_type]
        if class_type in ALWAYS_CHANGED:
            parts.append(time.time())
        inputs = node.get("inputs")
        if isinstance(inputs, dict):  # it may be anything in a node that no output needs
            for name, value in sorted(inputs.items()):
                part = self.describe_value(name, value)
                parts.append([name, part])
        encoded = json.dumps(parts).encode()
        return hashlib.sha256(encoded).hexdigest()

    def describe_value(self, name: str, value: Any) -> Any:
        """What counts of a value: the origin of a link, the time of an image file, else itself."""
        if is_link(value, self.prompt):
            origin, slot = value
            return [self.of(origin), slot]
        if name == "image" and isinstance(value, str):
            path = self.installation.annotated(value)
            modified_ns = os.path.isfile(path) and os.stat(path).st_mtime_ns
            return [value, modified_ns]
        return value
