"""The versions of ComfyUI between which the simulator distinguishes.

The oldest that it behaves like is 0.3.57; an older one is only claimed in /system_stats.
"""

from __future__ import annotations

import re

#: The first version that has a behavior.
SINCE: dict[str, tuple[int, ...]] = {
    # extra_data.preview_method chooses the previews of a prompt (execution.py, execute_async()).
    "preview_method": (0, 5),
    # /api/jobs; also prompt_ids that must be UUIDs, create_time, missing_node_type, cycles that
    # are named, feature flags beyond the first two, and no outputs of cached nodes in /history.
    "jobs": (0, 26),
}


def has_behavior(version: str, behavior: str) -> bool:
    """Whether a version such as "0.3.64" has a behavior of SINCE."""
    numbers = re.findall(r"\d+", version)[:3]
    return tuple(int(number) for number in numbers) >= SINCE[behavior]
