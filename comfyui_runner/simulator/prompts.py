"""Prompts: the links between their nodes, and the job that an accepted prompt becomes."""

from __future__ import annotations

import dataclasses
import uuid
from typing import Any, Dict

#: A JSON object.
Json = Dict[str, Any]


@dataclasses.dataclass
class Job:
    """A prompt that was accepted."""

    #: Its priority: the lowest number runs first.
    number: float
    prompt_id: str
    prompt: Json
    extra_data: Json
    #: The ids of the output nodes that are to run.
    outputs: list[str]
    #: What the client sent in extra_data for its nodes alone: newer servers do not show it.
    secrets: Json = dataclasses.field(default_factory=dict)

    def item(self) -> list[Any]:
        """The job in the form of /queue and /history."""
        return [self.number, self.prompt_id, self.prompt, self.extra_data, self.outputs]


def is_link(value: Any, prompt: Json) -> bool:
    """Whether the value of an input is [node_id, slot], with a node that the prompt has."""
    if not isinstance(value, list) or len(value) != 2:
        return False
    node_id = value[0]
    return isinstance(node_id, str) and node_id in prompt


def is_job_id(value: Any) -> bool:
    """Whether a value is a UUID in the one form that newer servers take."""
    if not isinstance(value, str):
        return False
    try:
        return str(uuid.UUID(value)) == value
    except ValueError:
        return False
