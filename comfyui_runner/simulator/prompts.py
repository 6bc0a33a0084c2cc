"""Prompts that were accepted, and links between their nodes."""

from __future__ import annotations

import dataclasses
import uuid
from typing import Any, Dict

Json = Dict[str, Any]


def is_link(value: Any, prompt: Json) -> bool:
    """Whether an input is [node_id, slot] of a node that is there."""
    pair = isinstance(value, list) and len(value) == 2
    return pair and isinstance(value[0], str) and value[0] in prompt


@dataclasses.dataclass
class Job:
    """A prompt that was accepted."""

    number: float
    prompt_id: str
    prompt: Json
    extra_data: Json
    outputs: list[str]

    def item(self) -> list[Any]:
        """The form in /queue and /history."""
        return [self.number, self.prompt_id, self.prompt, self.extra_data, self.outputs]


def is_job_id(value: Any) -> bool:
    """Whether a value is a UUID in the one form that newer servers take."""
    try:
        return isinstance(value, str) and str(uuid.UUID(value)) == value
    except ValueError:
        return False
