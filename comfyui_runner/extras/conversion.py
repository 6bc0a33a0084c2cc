"""From UI format to the prompt that ComfyUI's own frontend exports.

The frontend loads the document into a graph and exports the graph; so do we, in the same order,
because the order shows in the result. ``graph_loading.py`` builds each node from /object_info and
lets it take over what the file has; here, each node that runs writes its widget values and, over
them, its links to nodes that run (executionUtil.ts, graphToPrompt). The rules are those of frontend
1.58; each names the file of ComfyUI_frontend that it comes from. Where 1.58.1 loses something that
the file has, the file counts:

- the links of a file without ``version``;
- the link of a subgraph's output that names one that does not exist;
- the last digits of a seed above 2**53;
- the input of a link to a socket that the server's class lacks (another one gets it);
- that a group node is muted or bypassed, and the order of its values.
"""

from __future__ import annotations

import datetime
import random
import re
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Set, Union

from comfyui_runner.documents import Conversion, ValueInFileName
from comfyui_runner.edits import with_values
from comfyui_runner.extras.dynamic_texts import (
    SAVING_CLASSES,
    fill_texts,
    names_in_file_names,
)
from comfyui_runner.extras.graph import (
    BROWSER_NODES,
    GETTERS,
    MODE_BYPASSED,
    MODE_MUTED,
    SAVE_AGAIN,
    SUBGRAPH_INPUT_NODE,
    ConversionError,
    LGraph,
    LGraphNode,
)
from comfyui_runner.extras.graph_loading import load_graph
from comfyui_runner.extras.widgets import MADE_IN_BROWSER, UNDEFINED, Widget
from comfyui_runner.nodes import InputRef
from comfyui_runner.text import JsonObject, one_line, plural

#: How many nodes a workflow may have when all its subgraphs are written out: far more than
#: anybody draws.
MOST_NODES = 50000


def convert_workflow(
    workflow: JsonObject,
    object_info: JsonObject,
    *,
    rng: Optional[random.Random] = None,
    now: Optional[datetime.datetime] = None,
) -> Conversion:
    """The prompt that ComfyUI's frontend exports from ``workflow``, a document in UI format.

    ``object_info`` is the server's. ``rng`` chooses in texts like ``{day|night}``; ``now`` is the
    time for ``%date:...%`` in the names of files. The arguments are not changed; the prompt shares
    values with them.

    Raises ConversionError for what cannot be converted. It names every node whose class the server
    does not have, or the node or subgraph that is broken.
    """
    if rng is None:
        rng = random.Random()
    if now is None:
        now = datetime.datetime.now()
    conversion = convert_with_open_texts(workflow, object_info)
    filled = fill_texts(conversion.prompt, conversion, rng, now)
    prompt = with_values(conversion.prompt, {**filled.drawn, **filled.file_names})
    return conversion._replace(prompt=prompt, draws=(), named_values={})


def convert_with_open_texts(workflow: JsonObject, object_info: JsonObject) -> Conversion:
    """As convert_workflow(), but texts and names of files are as in the file.

    What is drawn in them, dated and named is different for each run: fill_texts() does it.
    """
    if not isinstance(workflow, dict) or not isinstance(workflow.get("nodes"), list):
        raise ConversionError("This is not a workflow in UI format: it has no list of nodes.")
    return Export(load_graph(workflow, object_info)).convert()


# ------------------------------------------------------------------------------------------------
# Where nodes run
# ------------------------------------------------------------------------------------------------


class Scope:
    """Where nodes run: the root graph, or a subgraph inside one of its hosts.

    The ids of its nodes in the prompt begin with ``prefix``, the ids of the hosts around them.
    """

    def __init__(self, graph: LGraph) -> None:
        self.graph = graph
        self.prefix = ""
        self.host: Optional[LGraphNode] = None
        self.parent: Optional[Scope] = None
        self.inner: Dict[str, Scope] = {}  # by the id of the host

    def enter(self, host: LGraphNode, subgraph: LGraph) -> Scope:
        """A new scope for the subgraph inside of a host."""
        scope = Scope(subgraph)
        scope.prefix = f"{self.prefix}{host.id}:"
        scope.host = host
        scope.parent = self
        self.inner[host.id] = scope
        return scope


def find_scopes(root: LGraph) -> Sequence[Scope]:
    """All scopes of a workflow, outer ones first.

    Raises ConversionError if they have too many nodes.
    """
    scopes = [Scope(root)]
    count = 0
    for scope in scopes:  # grows as hosts are found
        nodes = scope.graph.nodes.values()
        count += len(nodes)
        if count > MOST_NODES:
            raise ConversionError(
                f"With the nodes of its subgraphs, the workflow has more than {MOST_NODES} nodes "
                f"({next(iter(nodes))} is one of them).",
                SAVE_AGAIN,
            )
        for node in nodes:
            if node.subgraph and is_written_out(node, scope):
                scopes.append(scope.enter(node, node.subgraph))
    return scopes


def is_written_out(host: LGraphNode, scope: Scope) -> bool:
    """Whether the nodes inside of a host can run: that it is off only counts at the root."""
    return scope.parent is not None or not host.is_off


def check_classes(scopes: Sequence[Scope]) -> Sequence[LGraphNode]:
    """Returns the nodes whose class the server does not have, if no link leads to or from them.

    Raises ConversionError if one of them is linked to others and would run.
    """
    unlinked: List[LGraphNode] = []
    linked: List[LGraphNode] = []
    for scope in scopes:
        linked_ids: Set[str] = set()
        for link in scope.graph.links.values():
            linked_ids.update((link.origin_id, link.target_id))
        for node in scope.graph.nodes.values():
            needs_no_class = node.subgraph or node.type in BROWSER_NODES
            if node.is_known or needs_no_class or node.is_off:
                continue
            if node.id in linked_ids:
                linked.append(node)
            else:
                unlinked.append(node)
    if linked:
        raise missing_classes_error(linked)
    return unlinked


def missing_classes_error(nodes: Sequence[LGraphNode]) -> ConversionError:
    """An error that names every node, and the package of its class where the file has it."""
    lines: Dict[str, None] = {}  # each once: a subgraph may have several hosts
    for node in nodes:
        lines[f"{node}{package_in_words(node)}"] = None
    remedy = (
        "Install the missing custom nodes (ComfyUI-Manager finds them), "
        "or mute these nodes in ComfyUI."
    )
    if any(re.match("workflow[>/]", node.type) for node in nodes):
        remedy += (
            " workflow>... is a group node that the file does not define: "
            "open it in the ComfyUI that it was made in, and convert it to a subgraph."
        )
    count = plural(len(lines), "node")
    listed = "\n".join(lines)
    return ConversionError(f"The server does not have the classes of {count}:\n{listed}", remedy)


def package_in_words(node: LGraphNode) -> str:
    """Where the class of a node comes from, as far as the file says: ``, from the package ...``."""
    package = node.properties.get("cnr_id") or node.properties.get("aux_id")
    version = node.properties.get("ver")
    if not isinstance(package, str):
        return ""
    words = f", from the package {one_line(package, 60)}"
    if isinstance(version, str):
        words += f" {one_line(version, 12)}"
    return words


def traverse_nodes(graph: LGraph, seen: Set[str]) -> Iterator[LGraphNode]:
    """Every node once, those in a subgraph before its first host (graphTraversalUtil.ts).

    ``seen`` collects the ids of the subgraphs that were traversed.
    """
    for node in graph.nodes.values():
        if node.subgraph and node.type not in seen:
            seen.add(node.type)
            yield from traverse_nodes(node.subgraph, seen)
        yield node


# ------------------------------------------------------------------------------------------------
# Bypassed nodes (ExecutableNodeDTO.ts, _getBypassSlotIndex)
# ------------------------------------------------------------------------------------------------


def can_connect(first: Any, second: Any) -> bool:
    """Whether a link may join two types (LiteGraphGlobal.ts, isValidConnection)."""
    any_type = (0, "", "*", None)
    if first in any_type or second in any_type:
        return True
    if first == second:
        return True
    first_types = set(str(first).lower().split(","))
    return not first_types.isdisjoint(str(second).lower().split(","))


def find_bypass_slot(node: LGraphNode, output_slot: int, type_: Any) -> Optional[int]:
    """The input that a bypassed node passes on at an output, for an input of the type ``type_``.

    It is the same slot if its type fits, else the first input of exactly this type, else the first
    that fits; None if none fits.
    """
    input_types = [socket.type for socket in node.inputs]
    takes_any_type = type_ in ("*", "")
    if takes_any_type:
        if output_slot < len(input_types):
            return output_slot
        return 0
    output_type: Any = "*"
    if output_slot < len(node.output_types):
        output_type = node.output_types[output_slot]
    fitting_slots = [
        slot
        for slot, input_type in enumerate(input_types)
        if can_connect(input_type, output_type) and can_connect(input_type, type_)
    ]
    if output_slot in fitting_slots:
        return output_slot
    if type_ in input_types:
        return input_types.index(type_)
    return next(iter(fitting_slots), None)


# ------------------------------------------------------------------------------------------------
# What an input gets (ExecutableNodeDTO.ts, resolveInput and resolveOutput)
# ------------------------------------------------------------------------------------------------


class InputQuestion(NamedTuple):
    """What comes into an input of a node?"""

    scope: Scope
    node: LGraphNode
    slot: int
    type: Any = None  # of the input that asked first; None if that is this one
    from_inside: bool = False  # the node is a host, and a node inside asks


class OutputQuestion(NamedTuple):
    """What comes out of an output of a node, for an input of the type ``type``?"""

    scope: Scope
    node: LGraphNode
    slot: int
    type: Any


class Resolved(NamedTuple):
    """What an input gets in the prompt: a link to a node that runs, or a promoted value."""

    value: Any


#: The answer to a question, or the next question on the way to it; None if nothing that runs is
#: found.
Answer = Union[InputQuestion, OutputQuestion, Resolved, None]


def wrap_list(value: Any) -> Any:
    """A value as a prompt may have it, where a bare list would be taken for a link."""
    if isinstance(value, list):
        return {"__value__": value}
    return value


class Export:
    """The prompt of a loaded workflow."""

    def __init__(self, root: LGraph) -> None:
        self.root = root
        self.warnings: List[str] = []
        #: The answers that are known, by what identifies an OutputQuestion.
        self.resolved: Dict[Any, Optional[Resolved]] = {}
        self.draws: List[InputRef] = []  # the texts in which one of {a|b} is drawn

    def convert(self) -> Conversion:
        scopes = find_scopes(self.root)
        for node in check_classes(scopes):
            self.warn(node, "the server does not have its class; nothing is linked to it")
        for node in self.root.nodes.values():
            if node.subgraph and not node.is_off:
                self.warn_of_file(node)
        prompt: Dict[str, Any] = {}
        places = {}
        primitives = {}
        for scope in scopes:
            # In a subgraph with two hosts, a node of the file is two nodes of the prompt.
            is_written_once = len(scope.graph.hosts) < 2
            for node in scope.graph.nodes.values():
                if not node.is_known or node.subgraph or node.is_off:
                    continue
                self.warn_of_file(node)
                node_id = scope.prefix + node.id
                prompt[node_id] = {
                    "inputs": self.export_inputs(scope, node),
                    "class_type": node.type,
                    "_meta": {"title": node.title},
                }
                if is_written_once:
                    places[node_id] = (node.raw, node.value_positions)
                    primitives[node_id] = node.primitives
        return Conversion(
            prompt,
            tuple(dict.fromkeys(self.warnings)),
            places,
            primitives,
            draws=tuple(self.draws),
            named_values=self.find_named_values(prompt, scopes),
        )

    def export_inputs(self, scope: Scope, node: LGraphNode) -> Dict[str, Any]:
        """The inputs of a node in the prompt: its widget values and, over them, its links."""
        node_id = scope.prefix + node.id
        inputs: Dict[str, Any] = {}
        draws: Dict[str, InputRef] = {}
        for widget in node.widgets:
            if not widget.in_prompt:
                continue
            value = self.export_value(node, widget)
            inputs[widget.name] = value
            if widget.has_dynamic_prompt and isinstance(value, str):
                draws[widget.name] = InputRef(node_id, widget.name)
        for slot, socket in enumerate(node.inputs):
            if socket.link is None:
                continue
            resolved = self.resolve(InputQuestion(scope, node, slot))
            if resolved:  # else the value of the widget stays
                inputs[socket.name] = resolved.value
                draws.pop(socket.name, None)
        self.draws += draws.values()
        return {name: value for name, value in inputs.items() if value is not UNDEFINED}

    def warn(self, node: LGraphNode, what: str) -> None:
        self.warnings.append(f"{node}: {what}.")

    def warn_of_file(self, node: LGraphNode) -> None:
        """Warns where the file and the class of a node do not fit together."""
        for name in node.lost_inputs:
            input_name = one_line(name, 40)
            if node.subgraph:  # it was a group node
                what = (
                    f'its input "{input_name}" leads to a Reroute inside, where '
                    "ComfyUI's frontend loses it; link it to the nodes themselves"
                )
            else:
                what = f'the link to its input "{input_name}" comes from nowhere'
            self.warn(node, what)
        if node.unused_values:
            count = plural(len(node.unused_values), "value")
            listed = ", ".join(one_line(value, 40) for value in node.unused_values[:3])
            self.warn(node, f"the file has {count} that none of its widgets takes ({listed})")
        if node.widgets_without_value:
            listed = ", ".join(f'"{one_line(name, 40)}"' for name in node.widgets_without_value[:3])
            self.warn(node, f"the file has too few values, so the defaults apply to {listed}")

    # --- The values of widgets --------------------------------------------------------------------

    def export_value(self, node: LGraphNode, widget: Widget) -> Any:
        value = node.values[widget.name]
        if widget.type == "index":  # of a CustomCombo (customWidgets.ts)
            return index_of_choice(node)
        if widget.type in MADE_IN_BROWSER:
            what = f'the browser makes the value of "{widget.name}", so the prompt does not have it'
            self.warn(node, what)
        return wrap_list(value)

    def find_named_values(
        self, prompt: Dict[str, Any], scopes: Sequence[Scope]
    ) -> Dict[str, ValueInFileName]:
        """What each %Node.widget% in the names of files stands for.

        It is the input of the prompt where that has the widget's value, as a run may set it. Else,
        as for a muted node or one of several copies, it is the value itself.
        """
        named_values = {}
        for node_name, widget_name in names_in_file_names(prompt):
            node = self.find_named_node(node_name)
            if node is None or widget_name not in node.values:
                continue
            value = node.values[widget_name]
            refs = [
                InputRef(scope.prefix + node.id, widget_name)
                for scope in scopes
                if scope.graph.nodes.get(node.id) is node
            ]
            ref = None
            if len(refs) == 1 and has_value(prompt, refs[0], value):
                ref = refs[0]
            named_values[f"{node_name}.{widget_name}"] = ValueInFileName(ref, value)
        return named_values

    def find_named_node(self, name: str) -> Optional[LGraphNode]:
        """The first node with this "Node name for S&R" or, if none has it, with this title."""
        first_titled = None
        for node in traverse_nodes(self.root, set()):
            default_name = None
            if node.type not in SAVING_CLASSES and not node.subgraph:
                default_name = node.type  # unless somebody gave it another name
            if node.properties.get("Node name for S&R", default_name) == name:
                return node
            if first_titled is None and node.title == name:
                first_titled = node
        return first_titled

    # --- Links ------------------------------------------------------------------------------------

    def resolve(self, question: InputQuestion) -> Optional[Resolved]:
        """Follows the links to an input up to a node that runs or a promoted value, if any.

        The frontend asks recursively; here, each step returns the next question, so that the way
        may be of any length.
        """
        asked: Dict[Any, None] = {}
        answer: Answer = question
        while isinstance(answer, (InputQuestion, OutputQuestion)):
            if isinstance(answer, InputQuestion):
                answer = self.answer_input(answer)
                continue
            key = (answer.scope.prefix, answer.node.id, answer.slot, str(answer.type))
            if key in self.resolved:
                answer = self.resolved[key]
            elif key in asked:
                self.report_loop(answer.node)
                answer = None
            else:
                asked[key] = None
                answer = self.answer_output(answer)
        self.resolved.update(dict.fromkeys(asked, answer))
        return answer

    def report_loop(self, node: LGraphNode) -> None:
        """Warns of links in a loop through a node of the browser.

        Raises ConversionError if it is another node.
        """
        if node.type not in BROWSER_NODES:
            raise ConversionError(f"The links around {node} form a loop.", SAVE_AGAIN)
        self.warn(node, "its links form a loop, so nothing comes out of it")

    def answer_input(self, question: InputQuestion) -> Answer:
        """Goes from an input to the output that it is linked to."""
        scope, node, slot, type_, from_inside = question
        if slot >= len(node.inputs):
            return None
        socket = node.inputs[slot]
        if socket.link is None:
            if from_inside and socket.promoted:
                return Resolved(wrap_list(node.values.get(socket.name, UNDEFINED)))
            return None

        link = scope.graph.links.get(socket.link)
        if link and link.origin_id == SUBGRAPH_INPUT_NODE and scope.host and scope.parent:
            return InputQuestion(scope.parent, scope.host, link.origin_slot, from_inside=True)
        if link and link.origin_id in scope.graph.nodes:
            origin = scope.graph.nodes[link.origin_id]
            if type_ is None:
                type_ = socket.type
            return OutputQuestion(scope, origin, link.origin_slot, type_)
        name = one_line(socket.name, 40)
        self.warn(node, f'the link to its input "{name}" comes from nowhere')
        return None

    def answer_output(self, question: OutputQuestion) -> Answer:
        """Goes from an output to where its node takes it from, unless the node runs itself."""
        scope, node, slot, type_ = question
        if node.mode == MODE_MUTED:
            return None
        if node.mode == MODE_BYPASSED:
            input_slot = find_bypass_slot(node, slot, type_)
            if input_slot is None:
                return None
            return InputQuestion(scope, node, input_slot)
        if node.subgraph:
            return self.answer_host_output(question, node.subgraph)
        if node.is_known:
            return Resolved([scope.prefix + node.id, slot])
        if node.type in GETTERS:
            return self.answer_getter(question)
        return InputQuestion(scope, node, slot, type_)  # Reroute and the like

    def answer_host_output(self, question: OutputQuestion, subgraph: LGraph) -> Answer:
        """Goes from an output of a host to what leads to it inside the subgraph."""
        scope, host, slot, type_ = question
        if slot >= len(subgraph.outputs):
            return None
        link = subgraph.first_link(subgraph.outputs[slot].link_ids)
        if link is None:
            return None
        node = subgraph.nodes.get(link.origin_id)
        if node:
            return OutputQuestion(scope.inner[host.id], node, link.origin_slot, type_)
        if link.origin_id == SUBGRAPH_INPUT_NODE:  # straight through
            return InputQuestion(scope, host, link.origin_slot)
        return None

    def answer_getter(self, question: OutputQuestion) -> Answer:
        """Goes from a getter to the setter with its name, in this graph or one around it."""
        name = question.node.first_stored_value()
        scope: Optional[Scope] = question.scope
        while scope:
            if name in scope.graph.setters:
                return InputQuestion(scope, scope.graph.setters[name], 0, question.type)
            scope = scope.parent
        self.warn(question.node, "no setter has its name")
        return None


def has_value(prompt: Dict[str, Any], ref: InputRef, value: Any) -> bool:
    """Whether an input of ``prompt`` has a widget's own value, and not that of a link."""
    inputs = prompt.get(ref.node_id, {}).get("inputs", {})
    return ref.input in inputs and bool(inputs[ref.input] == value)


def index_of_choice(node: LGraphNode) -> int:
    """The index of a CustomCombo's choice among its options; -1 if it is not one of them."""
    option_widgets = node.widgets[2:]  # the first two are "choice" and "index"
    options = [node.values[widget.name] for widget in option_widgets]
    choice = node.values["choice"]
    if choice in options:
        return options.index(choice)
    return -1
