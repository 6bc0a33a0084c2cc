"""The order in which the nodes of a prompt run. Pure."""

from __future__ import annotations

from typing import Callable

from comfyui_runner.simulator.nodes import NODES
from comfyui_runner.simulator.prompts import Json, is_link

#: How many links behind a ready node the server looks for an output.
LOOK_AHEAD = 2


def execution_order(
    prompt: Json, outputs: list[str], is_cached: Callable[[str], bool]
) -> list[str]:
    """The nodes that must run for the outputs, in the server's order."""
    waits_for = find_pending(prompt, outputs, is_cached)
    order = []
    while waits_for:
        node_id = pick_node(prompt, waits_for)
        order.append(node_id)
        del waits_for[node_id]
        for origins in waits_for.values():
            origins.discard(node_id)
    return order


def find_pending(
    prompt: Json, outputs: list[str], is_cached: Callable[[str], bool]
) -> dict[str, set[str]]:
    """The nodes that must run, each with those that it waits for: what is cached need not."""
    waits_for: dict[str, set[str]] = {}
    stack = outputs[::-1]
    while stack:
        node_id = stack.pop()
        if node_id in waits_for:
            continue
        values = prompt[node_id]["inputs"].values()
        origins = [value[0] for value in values if is_link(value, prompt)]
        origins = [origin for origin in origins if not is_cached(origin)]
        waits_for[node_id] = set(origins)
        stack += origins
    return waits_for


def pick_node(prompt: Json, waits_for: dict[str, set[str]]) -> str:
    """The next of the nodes that wait for nothing.

    The first that is an output, else the first whose result goes straight to an output, or to one
    by way of one other node, else the first of all (ComfyUI: comfy_execution/graph.py,
    ux_friendly_pick_node).
    """
    outputs = {node_id for node_id in waits_for if NODES[prompt[node_id]["class_type"]].is_output}
    ready = [node_id for node_id, origins in waits_for.items() if not origins]
    reached = {node_id: {node_id} for node_id in ready}  # what is so many links behind it
    for _ in range(LOOK_AHEAD + 1):
        for node_id in ready:
            if reached[node_id] & outputs:
                return node_id
        for node_id in ready:
            reached[node_id] = followers_of(reached[node_id], waits_for)
    return ready[0]


def followers_of(node_ids: set[str], waits_for: dict[str, set[str]]) -> set[str]:
    """The nodes that wait for any of some nodes."""
    return {follower for follower, origins in waits_for.items() if origins & node_ids}
