"""One way to name a node, one to set an input. Every edit returns a copy."""

from __future__ import annotations

import itertools
import re
from typing import (
    Any,
    Dict,
    Iterable,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
)

from comfyui_runner.documents import Prompt
from comfyui_runner.errors import ExitStatus, RunnerError
from comfyui_runner.nodes import (
    DeclaredInput,
    InputRef,
    class_of,
    describe_nodes,
    did_you_mean,
    find_part,
    inputs_of,
    is_link,
    is_seed,
    node_in_words,
    only_other_case,
    own_title,
    quote_name,
    source_of,
    spec_of,
    value_of,
)
from comfyui_runner.text import JsonObject, one_line
from comfyui_runner.values import (
    describe_fault,
    find_fault_to_set,
    is_model_name,
    name_on_server,
    read_value,
)

#: Names that a message lists where none is like the one that was meant.
MOST_LISTED = 3

#: Nodes that a message lists where any of them may be meant.
MOST_CANDIDATES = 20

#: The types of errors where the request is right, but this workflow is not made for it: HTTP 409.
_CONFLICTS = (
    "ambiguous_node",
    "no_such_text",
    "no_loader",
    "no_seed",
    "no_size",
    "linked_input",
)


class EditError(RunnerError):
    """An edit that cannot be made; nothing was changed.

    ``type`` is the reason for programs. ``details`` lists what could have been meant. ``node_id``
    is the node whose input was not set, where that is known.
    """

    exit_status = ExitStatus.USAGE
    http_status = 400

    def __init__(self, type: str, message: str, details: Any = None) -> None:
        super().__init__(message)
        self.type = type
        self.details = details
        self.node_id: Optional[str] = None
        if type in _CONFLICTS:
            self.http_status = 409


# -- naming nodes and inputs -----------------------------------------------------------------------


def find_node(prompt: JsonObject, name: str) -> str:
    """The id of the node that ``name`` means: an id, else a title, else a class.

    Raises EditError if there is none, or several.
    """
    matches = _nodes_called(prompt, name)
    if len(matches) == 1:
        return matches[0]

    shown = quote_name(name)
    if matches:
        candidates = matches[:MOST_CANDIDATES]
        listed = ", ".join(node_in_words(prompt, node_id) for node_id in candidates)
        message = f"{len(matches)} nodes are called {shown}. Use an id: {listed}."
        raise EditError("ambiguous_node", message, describe_nodes(prompt, matches))

    known_names = sorted(_names_of_nodes(prompt))
    offer = did_you_mean(name, known_names) or _offer_some_nodes(prompt)
    message = f"The workflow has no node {shown}. {offer}"
    raise EditError("no_such_node", message.rstrip(), describe_nodes(prompt, prompt))


def _offer_some_nodes(prompt: JsonObject) -> str:
    """The first nodes, and how many more there are: nothing is like the name."""
    listed = [node_in_words(prompt, node_id) for node_id in itertools.islice(prompt, MOST_LISTED)]
    if not listed:
        return ""
    return f"It has {list_first(listed, len(prompt))}."


def list_first(first: Sequence[str], count: int) -> str:
    """The ``first`` of ``count`` names, and how many more there are."""
    listed = ", ".join(first)
    if count > len(first):
        listed += f" and {count - len(first)} more"
    return listed


def _names_of_nodes(prompt: JsonObject) -> Set[str]:
    """Everything that find_node() takes: ids, titles and classes."""
    names = set(prompt)
    for node_id in prompt:
        names.update([own_title(prompt, node_id), class_of(prompt, node_id)])
    return names - {""}


def _nodes_called(prompt: JsonObject, name: str) -> List[str]:
    """The nodes that ``name`` may mean: an id is preferred to titles, and titles to classes.

    Where nothing is spelled so, it is the only node whose title or class differs in upper and lower
    case alone.
    """
    if name in prompt:
        return [name]
    if not name:  # it would mean every node without a title
        return []
    titled = [node_id for node_id in prompt if own_title(prompt, node_id) == name]
    of_class = [node_id for node_id in prompt if class_of(prompt, node_id) == name]
    if titled or of_class:
        return titled or of_class

    folded = name.casefold()
    in_other_case = []
    for node_id in prompt:
        title = own_title(prompt, node_id)
        class_type = class_of(prompt, node_id)
        if folded in (title.casefold(), class_type.casefold()):
            in_other_case.append(node_id)
    if len(in_other_case) == 1:
        return in_other_case
    return []


def find_input(prompt: JsonObject, name: str) -> InputRef:
    """The input that ``NODE.INPUT`` means. Raises EditError.

    Titles and inputs may contain dots: the longest NODE that exists wins. Where one differs in
    upper and lower case alone, that is the one.
    """
    parts = name.split(".")
    known_names = _names_of_nodes(prompt)  # once: NAME may have thousands of dots
    known_names |= {known.casefold() for known in known_names}
    for count in range(len(parts) - 1, 0, -1):
        node_name = ".".join(parts[:count])
        input_name = ".".join(parts[count:])
        is_known = node_name in known_names or node_name.casefold() in known_names
        if is_known and input_name:
            node_id = find_node(prompt, node_name)
            names_of_inputs = map(str, inputs_of(prompt, node_id))
            own_name = only_other_case(input_name, names_of_inputs)
            return InputRef(node_id, own_name or input_name)

    if len(parts) == 1:
        example = example_of_input(prompt)
        such_as = f", such as {example}" if example else ""
        message = f"{quote_name(name)} does not name an input: write NODE.INPUT{such_as}."
        raise EditError("wrong_name", message)
    node_name = ".".join(parts[:-1])
    return InputRef(find_node(prompt, node_name), "")  # raises, unless the input is missing: "3."


def example_of_input(prompt: JsonObject) -> str:
    """An input of ``prompt`` to name in a message, as NODE.INPUT; "" if it has none.

    It is one called ``steps`` if possible, and a text only if there is nothing else.
    """
    settable = _inputs_with_values(prompt)
    if not settable:
        return ""
    best = min(settable, key=_rank_as_example)
    return one_line(best.ref.full_name, 60)


class InputExample(NamedTuple):
    """An input of a prompt, and a value for it."""

    ref: InputRef
    value: Any


def _rank_as_example(example: InputExample) -> Tuple[bool, bool]:
    """The key that sorts inputs: steps come first, texts last."""
    is_steps = example.ref.input == "steps"
    is_text = isinstance(example.value, str)
    return not is_steps, is_text


def example_of_edit(prompt: JsonObject) -> Optional[InputExample]:
    """An input of ``prompt`` and a value for it, for a message: a random seed, else a number.

    None where there is neither.
    """
    settable = _inputs_with_values(prompt)
    for ref, _ in settable:
        if ref.input in ("seed", "noise_seed"):
            return InputExample(ref, "random")
    for ref, value in settable:
        if not isinstance(value, (str, bool)):
            return InputExample(ref, value)
    return None


def _inputs_with_values(prompt: JsonObject) -> List[InputExample]:
    """The inputs of ``prompt`` that are texts, numbers or switches, with their values."""
    return [
        InputExample(InputRef(node_id, name), value)
        for node_id in prompt
        for name, value in inputs_of(prompt, node_id).items()
        if isinstance(value, (str, int, float))
    ]


def notices_of_names(prompt: JsonObject, edits: Iterable[InputEdit]) -> List[str]:
    """What was taken for something spelled in another case, by ``edits`` that ``prompt`` has now.

    That may be the name of an input, and one of the options of a combo.
    """
    notices = []
    for edit in edits:
        name = edit.ref.full_name
        if edit.typed and not _is_spelled_so(prompt, edit.typed, edit.ref):
            notices.append(f"{name} is used for {quote_name(edit.typed)}.")
        value = value_of(prompt, edit.ref)
        if _has_other_case(edit, value):
            notices.append(f"{name}: {one_line(value, 100)} is used for {quote_name(edit.value)}.")
    return notices


def _is_spelled_so(prompt: JsonObject, typed: str, ref: InputRef) -> bool:
    """Whether ``typed`` names ``ref`` letter for letter."""
    node_names = (ref.node_id, own_title(prompt, ref.node_id), class_of(prompt, ref.node_id))
    return any(typed == f"{node_name}.{ref.input}" for node_name in node_names)


def _has_other_case(edit: InputEdit, value: Any) -> bool:
    """Whether ``edit`` was taken for ``value``, which differs in upper and lower case alone.

    Not of models: other_names_of_edits() has the notices of those.
    """
    if edit.file or not isinstance(value, str) or is_model_name(value):
        return False
    return value != edit.value and value.casefold() == str(edit.value).casefold()


# -- setting inputs --------------------------------------------------------------------------------


class InputEdit(NamedTuple):
    """One value to set: text as a person types it, another JSON value, or that of a file."""

    ref: InputRef
    value: Any
    file: str = ""
    typed: str = ""  # the name, where a person has typed it


def input_edit(ref: InputRef, value: Any) -> InputEdit:
    """The edit that ``value`` asks for.

    ``@FILE`` is the text in a file, or a file to upload; ``@@x`` is the text ``@x``; and ``@``
    alone is itself.
    """
    if not isinstance(value, str) or value == "@":
        return InputEdit(ref, value)
    if value.startswith("@@"):
        return InputEdit(ref, value[1:])
    if value.startswith("@"):
        return InputEdit(ref, "", file=value[1:])
    return InputEdit(ref, value)


#: How many of the "=" in a --set are tried as the end of NODE.INPUT.
MOST_EQUALS_TRIED = 10


def parse_set(prompt: JsonObject, text: str) -> InputEdit:
    """The edit in ``NODE.INPUT=VALUE``. Raises EditError."""
    first_error: Optional[EditError] = None
    # A title may contain "=" too, and VALUE any number of them: the first one is taken behind which
    # NODE.INPUT is known.
    for equals in itertools.islice(re.finditer("=", text), MOST_EQUALS_TRIED):
        name = text[: equals.start()]
        value = text[equals.end() :]
        try:
            ref = find_input(prompt, name)
        except EditError as error:
            first_error = first_error or error
        else:
            return input_edit(ref, value)._replace(typed=name)
    if first_error is not None:
        raise first_error

    example = example_of_input(prompt)
    such_as = f", such as {example}=VALUE" if example else ""
    raise EditError("wrong_name", f"--set takes NODE.INPUT=VALUE{such_as}.")


def apply_edits(
    prompt: Prompt, edits: Iterable[InputEdit], object_info: JsonObject
) -> Tuple[Prompt, List[InputRef]]:
    """A copy of ``prompt`` with ``edits`` made, and the seeds to draw: those set to "random".

    Raises EditError.
    """
    drawn: List[InputRef] = []
    for edit in edits:
        ref, value = edit.ref, edit.value
        if ref in drawn:
            drawn.remove(ref)  # the last edit of an input counts
        current = value_of(prompt, ref)
        spec = spec_of(prompt, ref, object_info)
        has_seed = is_seed(ref.input, spec) and isinstance(current, (int, float))
        if has_seed and value == "random":
            drawn.append(ref)
            continue
        if isinstance(value, str):
            value = read_value(spec, current, value)
        prompt, _ = set_inputs(prompt, ref.node_id, {ref.input: value}, object_info)
    return prompt, drawn


def read_inputs(
    prompt: JsonObject, node_id: str, texts: Mapping[str, str], object_info: JsonObject
) -> Dict[str, Any]:
    """What ``texts``, as a person types them, mean for inputs of a node, by their names."""
    values = {}
    for name, text in texts.items():
        ref = InputRef(node_id, name)
        spec = spec_of(prompt, ref, object_info)
        values[name] = read_value(spec, value_of(prompt, ref), text)
    return values


def set_inputs(
    prompt: Prompt, node_id: str, inputs: JsonObject, object_info: JsonObject
) -> Tuple[Prompt, bool]:
    """A copy of ``prompt`` with inputs of one node set, and whether their values were checked.

    Raises EditError for an input that the class does not have, that a link feeds, or that does not
    take its value. Where ``object_info`` does not have the class, values are not checked.
    """
    checked: Dict[str, Any] = {}
    for name, value in inputs.items():
        ref = InputRef(node_id, name)
        spec = spec_of(prompt, ref, object_info)
        check_can_be_set(prompt, ref, spec)
        value = _check_value_in_node(prompt, ref, spec, value)
        part = find_part(inputs_of(prompt, node_id), name)
        if part is None:
            checked[name] = value
            continue
        # Of one input several parts may be set: each adds to what the ones before it made.
        whole = checked.get(part.input) or value_of(prompt, InputRef(node_id, part.input))
        checked[part.input] = {**whole, part.key: value}

    node = prompt[node_id]
    changed = {**node, "inputs": {**node["inputs"], **checked}}
    is_known = bool(object_info.get(class_of(prompt, node_id)))
    return {**prompt, node_id: changed}, is_known


def check_can_be_set(prompt: JsonObject, ref: InputRef, spec: DeclaredInput) -> None:
    """Raises EditError for an input that the node does not have, or that a link feeds."""
    value = value_of(prompt, ref)
    if is_link(value):
        source = source_of(value)
        message = f"{ref.input} is fed by {node_in_words(prompt, source)}: set it there."
        raise EditError("linked_input", message, describe_nodes(prompt, [source]))

    inputs = inputs_of(prompt, ref.node_id)
    is_in_prompt = ref.input in inputs or find_part(inputs, ref.input) is not None
    if is_in_prompt or spec.type:
        return
    settable = sorted(str(name) for name, value in inputs.items() if not is_link(value))
    offer = did_you_mean(ref.input, settable)
    if not offer and settable:
        offer = f"It has {list_first(settable[:MOST_LISTED], len(settable))}."
    node = node_in_words(prompt, ref.node_id)
    message = f"{node} has no input {quote_name(ref.input)}. {offer}"
    raise EditError("no_such_input", message.rstrip())


def _check_value_in_node(prompt: JsonObject, ref: InputRef, spec: DeclaredInput, value: Any) -> Any:
    """``check_value()``, whose error names the node too."""
    try:
        return check_value(spec, ref.input, value)
    except EditError as error:
        message = f"{node_in_words(prompt, ref.node_id)}: {error.message}"
        refusal = EditError(error.type, message, error.details)
        refusal.node_id = ref.node_id
        raise refusal from None


def check_value(spec: DeclaredInput, name: str, value: Any) -> Any:
    """``value`` as the input ``name`` takes it. Raises EditError.

    Where nothing is declared, it is returned as it is.
    """
    if not spec.type:
        return value
    is_whole = isinstance(value, float) and value.is_integer()
    if is_whole and spec.type == "INT":
        value = int(value)  # JSON writers do not keep 30 and 30.0 apart
    value = name_on_server(spec, value)
    fault_type = find_fault_to_set(spec, value)
    if fault_type is not None:
        fault = describe_fault(fault_type, spec, name, value)
        raise EditError(fault.type, " ".join([fault.message, *fault.hints]))
    return value


def with_values(prompt: Prompt, values: Mapping[InputRef, Any]) -> Prompt:
    """A copy of ``prompt`` with ``values`` in its inputs, unchecked.

    Values for nodes that it does not have are passed over.
    """
    if not values:
        return prompt
    changed = dict(prompt)
    for ref, value in values.items():
        node = changed.get(ref.node_id)
        if node is not None:
            changed[ref.node_id] = {**node, "inputs": {**node["inputs"], ref.input: value}}
    return changed
