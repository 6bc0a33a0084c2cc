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
    """The nodes that must run, each with those that it waits for: what is cached need not run."""
    waits_for: dict[str, set[str]] = {}
    to_visit = outputs[::-1]  # a stack: the first output is on top
    while to_visit:
        node_id = to_visit.pop()
        if node_id in waits_for:
            continue
        pending_origins = []
        for value in prompt[node_id]["inputs"].values():
            if not is_link(value, prompt):
                continue
            origin = value[0]
            if not is_cached(origin):
                pending_origins.append(origin)
        waits_for[node_id] = set(pending_origins)
        to_visit += pending_origins
    return waits_for


def pick_node(prompt: Json, waits_for: dict[str, set[str]]) -> str:
    """The next of the nodes that wait for nothing.

    The first that is an output, else the first whose result goes straight to an output, or to one
    by way of one other node, else the first of all (ComfyUI: comfy_execution/graph.py,
    ux_friendly_pick_node).
    """
    outputs = {node_id for node_id in waits_for if is_output_node(prompt, node_id)}
    ready = [node_id for node_id, origins in waits_for.items() if not origins]
    # The nodes a number of links behind each ready one: itself at first, then one link further on
    # in each turn.
    behind = {node_id: {node_id} for node_id in ready}
    for _ in range(1 + LOOK_AHEAD):
        for node_id in ready:
            if behind[node_id] & outputs:
                return node_id
        for node_id in ready:
            behind[node_id] = followers_of(behind[node_id], waits_for)
    return ready[0]


def is_output_node(prompt: Json, node_id: str) -> bool:
    """Whether a prompt may end in this node."""
    class_type = prompt[node_id]["class_type"]
    return NODES[class_type].is_output


def followers_of(node_ids: set[str], waits_for: dict[str, set[str]]) -> set[str]:
    """The nodes that wait for any of some nodes."""
    return {follower for follower, origins in waits_for.items() if origins & node_ids}
