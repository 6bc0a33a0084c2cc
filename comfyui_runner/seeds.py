"""The seeds of a prompt: where they are, and new ones."""

from __future__ import annotations

from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    Set,
)

from comfyui_runner.documents import Prompt
from comfyui_runner.edits import with_values
from comfyui_runner.nodes import (
    InputRef,
    inputs_of,
    is_link,
    is_seed,
    source_of,
    spec_of,
    value_of,
)
from comfyui_runner.text import JsonObject, as_number


def seed_inputs(prompt: JsonObject, object_info: JsonObject) -> List[InputRef]:
    """Every seed of the workflow: the whole numbers in inputs with "seed" in their names.

    Where a link leads to such an input, it is a whole number in the node that the link comes from.
    """
    seeds: Dict[InputRef, None] = {}  # in order, each once
    feeding_nodes: Set[str] = set()
    for node_id in prompt:
        for name, value in inputs_of(prompt, node_id).items():
            if "seed" not in str(name).lower():
                continue
            ref = InputRef(node_id, name)
            if is_link(value):
                source = source_of(value)
                if source not in feeding_nodes:  # thousands of inputs may be fed by one large node
                    seeds.update(dict.fromkeys(_seeds_in(prompt, source, object_info)))
                feeding_nodes.add(source)
                continue
            is_whole_number = type(value) is int  # not a bool
            if is_whole_number and spec_of(prompt, ref, object_info).type in ("INT", ""):
                seeds[ref] = None
    return list(seeds)


def seeds_by_name(prompt: JsonObject, drawn: Iterable[InputRef] = ()) -> Dict[str, Any]:
    """The seeds that ``prompt`` runs with, by NODE.INPUT.

    ``drawn`` are inputs that were drawn for it: they are seeds whatever they are called.
    """
    refs = dict.fromkeys([*seed_inputs(prompt, {}), *drawn])
    return {ref.full_name: value_of(prompt, ref) for ref in refs}


def _seeds_in(prompt: JsonObject, node_id: str, object_info: JsonObject) -> Iterator[InputRef]:
    """The numbers in a node that feeds a seed: PrimitiveInt has a ``value``."""
    for name, value in inputs_of(prompt, node_id).items():
        ref = InputRef(node_id, name)
        is_named_so = name == "value" or is_seed(name, spec_of(prompt, ref, object_info))
        is_whole_number = type(value) is int  # not a bool
        if is_named_so and is_whole_number:
            yield ref


#: Drawn seeds lie within so many numbers. Every reader of JSON keeps them exact: JavaScript's
#: numbers are exact up to 2**53.
_SEED_RANGE = 2**50


def draw_seeds(
    prompt: Prompt,
    random_inputs: Iterable[InputRef],
    draw: Callable[[], float],
    object_info: Mapping[str, Any] = {},
) -> Prompt:
    """A copy of ``prompt`` with new seeds; ``draw`` returns numbers in [0, 1).

    They lie between the bounds of their inputs, at most ``_SEED_RANGE`` above the lower one, and
    are not negative unless the input takes nothing else: to nodes whose minimum is negative
    (rgthree's Seed) -1 to -3 are not seeds, but ask for a random one.
    """
    seeds = {}
    for ref in random_inputs:
        options = spec_of(prompt, ref, object_info).options
        low = int(as_number(options.get("min")))
        high = int(as_number(options.get("max"), _SEED_RANGE))
        takes_positive = high >= 0
        if takes_positive:
            low = max(low, 0)
        high = min(high, low + _SEED_RANGE)
        seeds[ref] = low + int(draw() * (high - low + 1))
    return with_values(prompt, seeds)
