"""The versions of ComfyUI that the simulator tells apart."""

from __future__ import annotations

import re

#: The first version that has a behavior; "0.0.0" stands for a server of early 2024.
SINCE: dict[str, tuple[int, ...]] = {
    "released": (0, 0, 1),  # /api, execution_success, timestamps, display_node, history meta
    "progress_state": (0, 3, 45),  # also feature flags, binary type 4, the client's prompt_id
    "partial_execution": (0, 3, 48),
    "targeted_interrupt": (0, 3, 57),  # older servers ignore the body: whatever runs is stopped
    "jobs": (0, 26),  # also UUID-only prompt ids, create_time, missing_node_type
}


def has_behavior(version: str, behavior: str) -> bool:
    """Whether a version such as "0.3.64" has a behavior of SINCE."""
    numbers = re.findall(r"\d+", version)[:3]
    return tuple(int(number) for number in numbers) >= SINCE[behavior]
