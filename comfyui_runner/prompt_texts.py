"""The texts of a prompt: the positive, the negative, and those of a node."""

from __future__ import annotations

import itertools
from typing import (
    Any,
    Dict,
    Iterable,
    Iterator,
    List,
    Optional,
    Sequence,
    Set,
    Tuple,
)

from comfyui_runner.edits import MOST_CANDIDATES, EditError, find_node
from comfyui_runner.nodes import (
    TEXT_INPUT_NAMES,
    InputRef,
    class_of,
    describe_nodes,
    inputs_of,
    is_link,
    node_in_words,
    node_title,
    quote_name,
    source_of,
)
from comfyui_runner.text import JsonObject


def text_inputs(prompt: JsonObject, node_id: str) -> List[InputRef]:
    """Where the texts of a node are: its own inputs, or those of the nodes that feed them."""
    return text_inputs_of_all(prompt, [node_id])


def text_inputs_of_all(prompt: JsonObject, node_ids: Iterable[str]) -> List[InputRef]:
    """``text_inputs()`` of several nodes, each text once."""
    texts: Dict[InputRef, None] = {}  # in order
    seen: Set[Tuple[str, bool]] = set()
    for node_id in node_ids:
        texts.update(dict.fromkeys(_texts_from(prompt, node_id, seen)))
    return list(texts)


def _texts_from(
    prompt: JsonObject, node_id: str, seen: Set[Tuple[str, bool]]
) -> Iterator[InputRef]:
    """The texts of a node, without those of the nodes that were ``seen`` already.

    A node is seen as the one whose texts are wanted, or as one that feeds it (True).
    """
    waiting = [node_id]
    while waiting:
        current = waiting.pop()
        is_feeding = current != node_id
        if (current, is_feeding) in seen:
            continue
        seen.add((current, is_feeding))
        sources = []
        for name, value in inputs_of(prompt, current).items():
            is_text = bool(TEXT_INPUT_NAMES.search(name))
            if is_feeding:  # in a node that feeds a text, any text is one
                is_text = is_text or name in ("value", "Text") or name.startswith("string")
            if is_text and isinstance(value, str):
                yield InputRef(current, name)
            elif is_text and is_link(value):
                sources.append(source_of(value))
        waiting.extend(reversed(sources))  # the first one is taken first


def prompt_texts(prompt: JsonObject, role: str) -> List[InputRef]:
    """The texts that reach a sampler's ``positive`` or ``negative`` input (``role``).

    The links are followed back through conditioning nodes. A guider's ``conditioning`` (Flux)
    counts as positive.
    """
    texts: Dict[InputRef, None] = {}  # in order
    seen: Set[str] = set()
    waiting = list(_sampler_links(prompt, role))
    waiting.reverse()  # the first one is taken first
    while waiting:
        link = waiting.pop()
        node_id = source_of(link)
        if node_id in seen:
            continue
        seen.add(node_id)
        if "ZeroOut" in class_of(prompt, node_id):
            continue  # ConditioningZeroOut makes nothing of what it gets: there is no text
        own_texts = text_inputs(prompt, node_id)
        texts.update(dict.fromkeys(own_texts))
        if not own_texts:
            _, slot = link
            waiting.extend(_conditioning_links(inputs_of(prompt, node_id), slot, role))
    return list(texts)


def _sampler_links(prompt: JsonObject, role: str) -> Iterator[Sequence[Any]]:
    """The links on which samplers, and the guiders before them, get the ``role``'s conditioning."""
    for node_id in prompt:
        inputs = inputs_of(prompt, node_id)
        is_sampler_or_guider = "latent_image" in inputs or "model" in inputs
        if not is_sampler_or_guider:
            continue
        names = [role]
        if role == "positive" and "Guider" in class_of(prompt, node_id):
            names += ["cond1", "cond2", "conditioning"]
        for name in names:
            if is_link(inputs.get(name)):
                yield inputs[name]


def _conditioning_links(inputs: JsonObject, slot: int, role: str) -> Iterator[Sequence[Any]]:
    """Where the conditioning at an output of a node comes from, the last of its inputs first."""
    has_both_sides = is_link(inputs.get("positive")) and is_link(inputs.get("negative"))
    if has_both_sides:  # ControlNet: two in, two out, in this order
        yield inputs["negative"] if slot == 1 else inputs["positive"]
        return
    for name, value in reversed(list(inputs.items())):
        if is_link(value) and name.startswith(("cond", role)):
            yield value


def role_texts(prompt: JsonObject, role: str) -> List[InputRef]:
    """The texts that "positive" or "negative" (``role``) may mean."""
    return prompt_texts(prompt, role) or _titled_texts(prompt, role)


def find_text(prompt: JsonObject, node: Optional[str], role: Optional[str]) -> InputRef:
    """The one text that a node's name, or "positive" or "negative" (``role``), means.

    Raises EditError if there is none, or several.
    """
    if node is not None:
        subject = f"The node {quote_name(node)}"
        texts = text_inputs(prompt, find_node(prompt, node))
    else:
        subject = f"The {role} prompt"
        texts = role_texts(prompt, str(role))

    if len(texts) == 1:
        return texts[0]
    if texts:
        raise _several_texts(prompt, subject, texts)
    others = [ref.node_id for ref in text_inputs_of_all(prompt, prompt)]
    message = f"{subject} has no text that can be set."
    if node is None and not _has_sampler(prompt):
        message = (
            'The workflow has no sampler with a "positive" or "negative" input, so no text '
            f"is its {role} prompt. {_offer_texts(prompt, others)}"
        )
    raise EditError("no_such_text", message, describe_nodes(prompt, others))


def _several_texts(prompt: JsonObject, subject: str, texts: Sequence[InputRef]) -> EditError:
    """The error where ``texts``, of one node or of several, may be meant."""
    candidates = describe_nodes(prompt, [ref.node_id for ref in texts])
    if len(candidates) == 1:
        names = ", ".join(ref.input for ref in texts)
        message = f"{subject} has several texts ({names}): use /update/inputs."
    else:
        message = f"{subject} has several texts: name a node."
    return EditError("ambiguous_node", message, candidates)


def _has_sampler(prompt: JsonObject) -> bool:
    """Whether a node gets a positive or a negative conditioning, as samplers and guiders do."""
    links = itertools.chain(_sampler_links(prompt, "positive"), _sampler_links(prompt, "negative"))
    return next(links, None) is not None


def _offer_texts(prompt: JsonObject, node_ids: Iterable[str]) -> str:
    """What to do instead: name one of the nodes that have a text."""
    nodes = [node_in_words(prompt, node_id) for node_id in dict.fromkeys(node_ids)]
    if not nodes:
        return "No node has a text either."
    listed = ", ".join(nodes[:MOST_CANDIDATES])
    return f"Name a node by its node_id or title instead: {listed}."


def _titled_texts(prompt: JsonObject, role: str) -> List[InputRef]:
    """The texts of nodes with ``role`` in their titles, for samplers whose links say nothing."""
    titled = [node_id for node_id in prompt if role in node_title(prompt, node_id).lower()]
    return text_inputs_of_all(prompt, titled)
