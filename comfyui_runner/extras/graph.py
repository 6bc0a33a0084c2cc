"""The frontend's graph: nodes with their inputs and widgets, links, and subgraphs.

The names are the frontend's. One is ours: a *host* is a node that stands for a subgraph (there, a
SubgraphNode). An input of the subgraph is a socket of each host; if it leads to a widget inside,
the host *promotes* that widget: it shows the widget, and has a value of its own for it.
"""

from __future__ import annotations

import copy
from typing import (
    Any,
    Collection,
    Container,
    Dict,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

from comfyui_runner.errors import WorkflowError
from comfyui_runner.extras.widgets import (
    AUTOGROW,
    DYNAMIC_COMBO,
    IGNORE_STORED_VALUE,
    MATCH_TYPE,
    UNDEFINED,
    AutogrowGroup,
    InputSpec,
    Widget,
    create_widgets,
    forced_positions,
    inputs_of_class,
    inputs_of_option,
    javascript_text,
    widgets_of_format,
)
from comfyui_runner.text import JsonObject, as_dict, as_list, one_line


class ConversionError(WorkflowError):
    """A workflow in UI format that cannot become a prompt. The message names the nodes."""


SAVE_AGAIN = "Open the workflow in ComfyUI, fix it there and save it again."

# Modes of nodes that do not run (LGraphEventMode.NEVER and BYPASS).
MODE_MUTED = 2
MODE_BYPASSED = 4
MODES_OFF = (MODE_MUTED, MODE_BYPASSED)

#: The "nodes" at which links inside a subgraph begin that come from outside, and at which links end
#: that lead outside (SUBGRAPH_INPUT_ID, SUBGRAPH_OUTPUT_ID).
SUBGRAPH_INPUT_NODE = "-10"
SUBGRAPH_OUTPUT_NODE = "-20"

#: Nodes that exist only in the browser. A getter yields what goes into the setter with its name
#: (KJNodes, easy-use); the others pass on what comes in, slot by slot.
SETTERS = ("SetNode", "easy setNode")
GETTERS = ("GetNode", "easy getNode")
PRIMITIVE = "PrimitiveNode"
BROWSER_NODES = {
    PRIMITIVE,
    "Reroute",
    "Note",
    "MarkdownNote",
    *SETTERS,
    *GETTERS,
    "Reroute (rgthree)",
    "Label (rgthree)",
    "Bookmark (rgthree)",
    "Node Collector (rgthree)",
    "Fast Muter (rgthree)",
    "Fast Bypasser (rgthree)",
    "Fast Groups Muter (rgthree)",
    "Fast Groups Bypasser (rgthree)",
    "Fast Actions Button (rgthree)",
    "Mute / Bypass Repeater (rgthree)",
    "Mute / Bypass Relay (rgthree)",
    "Node Combiner (rgthree)",
    "Random Unmuter (rgthree)",
}


#: The classes whose sampler_name once began with "sample_".
OLD_SAMPLERS = ("KSampler", "KSamplerAdvanced")


def parse_type(value: Any) -> Any:
    """The type of a socket. A list is the type of a combo, too: it holds the choices."""
    if isinstance(value, list):
        return "COMBO"
    if isinstance(value, dict):
        return "*"
    return value


def parse_link_id(value: Any) -> Any:
    """The id of a link, or None for what cannot be one."""
    if isinstance(value, (int, float, str)):
        return value
    return None


def parse_node_id(value: Any) -> str:
    """The id of a node as text, as the frontend compares ids; "" for what cannot be one."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)


class LLink:
    """A link of a graph, from an output of one node to an input of another."""

    __slots__ = ("origin_id", "origin_slot", "target_id", "target_slot")

    def __init__(self, origin_id: str, origin_slot: int, target_id: str, target_slot: int) -> None:
        self.origin_id = origin_id
        self.origin_slot = origin_slot
        self.target_id = target_id
        self.target_slot = target_slot


class Socket:
    """An input of a node.

    ``link`` is the id of the link that leads to it. ``widget_name`` names the widget of this node
    behind it; ``promoted``, on a host, is the widget inside the subgraph.
    """

    __slots__ = ("link", "name", "promoted", "type", "widget_name")

    def __init__(self, name: str, type_: Any, widget_name: Optional[str] = None) -> None:
        self.name = name
        self.type = type_
        self.link: Any = None
        self.widget_name = widget_name
        self.promoted: Optional[Widget] = None


class NodeSocket(NamedTuple):
    """A socket and the node that it belongs to: where a link ends."""

    node: LGraphNode
    socket: Socket


class SubgraphSlot:
    """An input or output of a subgraph; ``link_ids`` are its links inside."""

    def __init__(self, name: str, type_: Any, link_ids: Iterable[Any] = ()) -> None:
        self.name = name
        self.type = type_
        self.link_ids = [link_id for link_id in link_ids if parse_link_id(link_id) is not None]


def parse_subgraph_slots(raw_slots: Any) -> List[SubgraphSlot]:
    slots = []
    for entry in as_list(raw_slots):
        raw = as_dict(entry)
        link_ids = as_list(raw.get("linkIds"))
        slots.append(SubgraphSlot(str(raw.get("name")), parse_type(raw.get("type")), link_ids))
    return slots


class LGraph:
    """The root graph, which has no name, or the definition of a subgraph."""

    def __init__(self, raw: JsonObject, name: str = "") -> None:
        self.raw = raw
        self.name = name
        self.nodes: Dict[str, LGraphNode] = {}
        self.links: Dict[Any, LLink] = {}
        self.input_links: Dict[Tuple[str, int], Any] = {}  # by node and slot in the file
        self.setters: Dict[Any, LGraphNode] = {}  # by the name that they set
        # Of a subgraph:
        self.inputs: List[SubgraphSlot] = []
        self.outputs: List[SubgraphSlot] = []
        self.hosts: List[LGraphNode] = []
        if name:
            self.inputs = parse_subgraph_slots(raw.get("inputs"))
            self.outputs = parse_subgraph_slots(raw.get("outputs"))

    def first_link(self, link_ids: Iterable[Any]) -> Optional[LLink]:
        """The first of some links that exists; None if none does."""
        links = (self.links[link_id] for link_id in link_ids if link_id in self.links)
        return next(links, None)

    def sockets_of(self, link_ids: Iterable[Any]) -> Iterator[NodeSocket]:
        """The sockets that links lead to."""
        for link_id in link_ids:
            link = self.links.get(link_id)
            if link is None or link.target_id not in self.nodes:
                continue
            node = self.nodes[link.target_id]
            for socket in node.inputs:
                if socket.link == link_id:
                    yield NodeSocket(node, socket)
                    break

    def promoted_source(self, subgraph_input: SubgraphSlot) -> Optional[Tuple[str, str]]:
        """The node and the widget that an input promotes: an id and a name.

        resolveSubgraphInputTarget.ts.
        """
        for node, socket in self.sockets_of(subgraph_input.link_ids):
            if node.subgraph:
                return node.id, socket.name
            widget = node.widget_of(socket)
            if widget:
                return node.id, widget.name
        return None


class LGraphNode:
    """A node as the frontend holds it.

    A *template* is what a new node of a class has; the nodes of a workflow are copies of it that
    have taken over what the file says.
    """

    def __init__(self, type_: str) -> None:
        self.is_template = True
        self.type = type_
        self.title = type_
        self.id = ""
        self.is_known = False  # the server has this class
        self.mode: Any = 0
        self.raw: JsonObject = {}
        self.properties: JsonObject = {}
        self.graph = LGraph({})
        self.subgraph: Optional[LGraph] = None  # that it is a host of
        self.inputs: List[Socket] = []
        self.output_types: List[Any] = []
        self.widgets: List[Widget] = []
        self.values: Dict[str, Any] = {}  # by the name of the widget, as in widgetValueStore.ts
        self.autogrow_groups: Dict[str, AutogrowGroup] = {}
        # Inputs, and outputs, that share a type have the same template id.
        self.match_inputs: Dict[str, Dict[str, Any]] = {}  # {template id: {input: allowed types}}
        self.match_outputs: List[Any] = []  # the template id of each output
        self.forced_positions: List[bool] = []
        self.optional_inputs: Collection[str] = ()
        self.promoted_as: Optional[str] = None  # the input that replaced this PrimitiveNode
        # For those who edit the file: where in widgets_values the value of a widget is, and which
        # PrimitiveNode overrides it.
        self.value_positions: Dict[str, Any] = {}
        self.primitives: Dict[str, JsonObject] = {}
        # What a person should know: inputs whose links are lost, and where the file has more or
        # fewer values than the node has widgets.
        self.lost_inputs: Sequence[str] = ()
        self.unused_values: Sequence[Any] = ()
        self.widgets_without_value: Sequence[str] = ()

    def __str__(self) -> str:
        name = f"node {one_line(self.id, 40)}"
        if self.title != self.type:
            name += f' "{one_line(self.title, 40)}"'
        name += f" ({one_line(self.type, 60)})"
        if self.graph.name:
            name += f" in the subgraph {one_line(self.graph.name, 40)}"
        return name

    def create_node(
        self, raw: JsonObject, node_id: str, graph: LGraph, subgraph: Optional[LGraph]
    ) -> LGraphNode:
        """A node of a workflow, from this template. It has yet to be configured."""
        node = copy.copy(self)
        node.is_template = False
        node.raw = raw
        node.id = node_id
        node.mode = raw.get("mode")
        node.properties = as_dict(raw.get("properties"))
        node.graph = graph
        node.subgraph = subgraph
        title = raw.get("title")
        if isinstance(title, str) and title:
            node.title = title
        elif subgraph:
            node.title = subgraph.name
        node.inputs = [Socket(old.name, old.type, old.widget_name) for old in self.inputs]
        node.output_types = self.output_types[:]
        node.widgets = self.widgets[:]
        node.values = dict(self.values)
        node.autogrow_groups = dict(self.autogrow_groups)
        node.match_inputs = dict(self.match_inputs)
        node.value_positions = {}
        node.primitives = {}
        return node

    @property
    def is_off(self) -> bool:
        """Whether it is muted or bypassed."""
        return self.mode in MODES_OFF

    def widget_of(self, socket: Socket) -> Optional[Widget]:
        """The widget behind a socket of this node."""
        if socket.promoted:
            return socket.promoted
        if socket.widget_name is None:
            return None
        for widget in self.widgets:
            if widget.name == socket.widget_name:
                return widget
        return None

    def value_name(self, socket: Socket, widget: Widget) -> str:
        """The name that the value of the widget behind a socket has among ``values``."""
        if self.subgraph:
            return socket.name
        return widget.name

    def value_behind(self, socket: Socket, widget: Widget) -> Any:
        """The value of the widget behind a socket; UNDEFINED if it has none."""
        return self.values.get(self.value_name(socket, widget), UNDEFINED)

    def is_needed(self, widget: Widget) -> bool:
        """Whether a file should have a value for a widget: the server cannot do without it."""
        if widget.type in IGNORE_STORED_VALUE or not widget.in_prompt:
            return False
        input_name = widget.name.partition(".")[0]  # "format.codec" comes with "format"
        return input_name not in self.optional_inputs

    def takes_values(self, count: int) -> bool:
        """Whether a file may have ``count`` values of a node: its widgets', or dummies as well."""
        stored_widgets = [widget for widget in self.widgets if widget.in_workflow]
        return count in (len(stored_widgets), len(self.forced_positions))

    def first_stored_value(self) -> Any:
        """The first value that the file has: the one value of a primitive, a setter or a getter."""
        values = as_list(self.raw.get("widgets_values"))
        if not values:
            return UNDEFINED
        value = values[0]
        if isinstance(value, (dict, list)):
            return str(value)
        return value

    # --- Creating inputs and widgets from specs (services/litegraphService.ts) --------------------

    def add_input(self, name: str, spec: InputSpec) -> None:
        if spec.has_widget:
            self.add_widget_input(name, spec)
        else:
            self.add_socket_input(name, spec)

    def add_socket_input(self, name: str, spec: InputSpec) -> None:
        """Adds an input without a widget; for a dynamic one, what it begins with."""
        template = as_dict(spec.options.get("template"))
        if spec.type == AUTOGROW:
            group = AutogrowGroup(name, template)
            self.autogrow_groups[name] = group
            for place in range(group.least + 1):
                self.grow(group, place)
        elif spec.type == MATCH_TYPE:
            allowed_types = template.get("allowed_types", "*")
            template_id = str(template.get("template_id"))
            others = self.match_inputs.get(template_id, {})
            self.match_inputs[template_id] = {**others, name: allowed_types}
            self.add_input(name, InputSpec(allowed_types, spec.options))
        else:
            self.inputs.append(Socket(name, spec.type))

    def add_widget_input(self, name: str, spec: InputSpec) -> None:
        """Adds an input with its widgets."""
        for new_widget, value in create_widgets(name, spec, self.values):
            widget = self.add_widget(new_widget, value)
            if widget.type == DYNAMIC_COMBO:
                self.choose_option(widget, value)
            elif "formats" in widget.options:
                self.choose_format(widget, value)
        self.inputs.append(Socket(name, spec.type, widget_name=name))

    def add_widget(self, widget: Widget, value: Any) -> Widget:
        # dynamicPrompts.ts looks at a node once, when it is new: it misses widgets that come later.
        if self.is_template and widget.options.get("dynamicPrompts") is True:
            widget = widget._replace(has_dynamic_prompt=True)
        self.widgets.append(widget)
        self.values.setdefault(widget.name, value)
        return widget

    def set_value(self, widget: Widget, value: Any) -> None:
        """Gives a widget the value that a file has for it, with all that follows from it."""
        if widget.type in IGNORE_STORED_VALUE:
            return
        is_text_area = widget.type == "MARKDOWN" or widget.options.get("multiline")
        if is_text_area:  # it shows every value as a text
            value = javascript_text(value)
        is_sampler = widget.name == "sampler_name" and self.type in OLD_SAMPLERS
        if is_sampler and isinstance(value, str) and value.startswith("sample_"):
            value = value[len("sample_") :]  # app.ts, loadGraphData: the names of 2023
        self.values[widget.name] = value
        if widget.type == DYNAMIC_COMBO:
            self.choose_option(widget, value)
        elif "formats" in widget.options:
            self.choose_format(widget, value)
        elif widget.type == "option" and value and self.widgets[-1] is widget:
            # customWidgets.ts: a CustomCombo always has one more option, which is empty.
            number = len(self.widgets) - 1
            self.add_widget(Widget(f"option{number}", "option"), "")

    # --- Dynamic combos (core/graph/widgets/dynamicWidgets.ts) ------------------------------------

    def choose_option(self, combo: Widget, value: Any) -> None:
        """Replaces the inputs of a dynamic combo's last option by those of the option ``value``."""
        removed = self._remove_inputs_below(combo)
        specs = inputs_of_option(combo, value)
        if specs is None:
            return
        first_socket = len(self.inputs)
        first_widget = len(self.widgets)
        for name, spec in specs:
            self.add_input(name, spec)

        _move_end(self.widgets, first_widget, self.widgets.index(combo) + 1)
        slot = self.slot_of(combo.name)
        if slot is not None:  # else this combo is new, and its own socket comes after these
            _move_end(self.inputs, first_socket, slot + 1)
            self.renumber_links(slot + 1)
        for old in removed:
            self._take_over_link(old)

    def choose_format(self, combo: Widget, value: Any) -> None:
        """Replaces the widgets of a combo's last format by those of the format ``value``."""
        for widget in list(self.widgets):
            if widget.format_of == combo.name:
                self.widgets.remove(widget)  # in place, as in _remove_inputs_below()
                self.values.pop(widget.name, None)
        first_widget = len(self.widgets)
        for widget, first_value in widgets_of_format(combo, value):
            self.add_widget(widget, first_value)
            if self.slot_of(widget.name) is None:
                self.inputs.append(Socket(widget.name, widget.type, widget_name=widget.name))
        _move_end(self.widgets, first_widget, self.widgets.index(combo) + 1)

    def _remove_inputs_below(self, combo: Widget) -> List[Socket]:
        """Removes the inputs and widgets of a dynamic combo's option; returns the inputs."""
        prefix = f"{combo.name}."
        removed = [socket for socket in self.inputs if socket.name.startswith(prefix)]
        self.inputs[:] = [socket for socket in self.inputs if not socket.name.startswith(prefix)]
        for widget in list(self.widgets):
            if widget.name.startswith(prefix):
                # In place: configure_widgets() goes through this list while it sets the values.
                self.widgets.remove(widget)
                self.values.pop(widget.name, None)
        return removed

    def _take_over_link(self, old: Socket) -> None:
        """Lets the link to a socket that was removed lead to the one that has its name now."""
        slot = self.slot_of(old.name)
        if slot is None:
            return
        self.inputs[slot].link = old.link
        link = self.graph.links.get(old.link)
        if link:
            link.target_slot = slot
            self.on_connected(slot)

    # --- Autogrow groups (core/graph/widgets/dynamicWidgets.ts) -----------------------------------

    def on_connected(self, slot: int) -> None:
        """Lets the autogrow group of the socket at ``slot`` offer the place after it."""
        group_name, _, own_name = self.inputs[slot].name.rpartition(".")
        group = self.autogrow_groups.get(group_name)
        if group is None:
            return
        place = group.place_of(own_name)
        if place is not None:
            self.grow(group, place + 1)

    def grow(self, group: AutogrowGroup, place: int) -> None:
        """Adds one more place to an autogrow group, after the place before it."""
        if place >= group.most:
            return
        added = [self._create_group_socket(group, place, key, spec) for key, spec in group.specs]
        for new in added:  # it replaces what the file already has, and takes over the link
            namesakes = [socket for socket in self.inputs if socket.name == new.name]
            self.inputs[:] = [socket for socket in self.inputs if socket.name != new.name]
            link_ids = [socket.link for socket in namesakes if socket.link is not None]
            new.link = next(iter(link_ids), None)

        slot = self._slot_after_place(group, place - 1)
        self.inputs[slot:slot] = added
        self.renumber_links(slot)

    def _create_group_socket(
        self, group: AutogrowGroup, place: int, key: str, spec: InputSpec
    ) -> Socket:
        """The socket of one input of a place; its widget, if it has one, is added."""
        name = group.input_name(key, place)
        self.add_input(name, spec)
        socket = self.inputs.pop()
        if group.has_rows:
            socket.widget_name = socket.name
        return socket

    def _slot_after_place(self, group: AutogrowGroup, place: int) -> int:
        """The slot after the last input of a place, or after all inputs if the place has none."""
        end = len(self.inputs)
        if place < 0 or not group.specs:
            return end
        last_key, _ = group.specs[-1]
        prefix = group.input_name(last_key, place)
        slots = (slot for slot, socket in enumerate(self.inputs) if socket.name.startswith(prefix))
        last_slot = max(slots, default=end - 1)
        return last_slot + 1

    # --- Slots ------------------------------------------------------------------------------------

    def slot_of(self, name: str) -> Optional[int]:
        """The slot of the first socket with this name."""
        for slot, socket in enumerate(self.inputs):
            if socket.name == name:
                return slot
        return None

    def socket_named(self, name: Optional[str]) -> Optional[Socket]:
        for socket in self.inputs:
            if socket.name == name:
                return socket
        return None

    def renumber_links(self, first_slot: int) -> None:
        """Corrects ``target_slot`` of the links to the sockets from ``first_slot`` on."""
        for slot in range(first_slot, len(self.inputs)):
            link = self.graph.links.get(self.inputs[slot].link)
            if link:
                link.target_slot = slot

    # --- Promoted widgets, of hosts (SubgraphNode.ts) ---------------------------------------------

    def promote_first_widget(self, socket: Socket, targets: Iterable[NodeSocket]) -> None:
        """Makes the first widget among ``targets`` the promoted one of a socket of this host."""
        for node, target in targets:
            widget = node.widget_of(target)
            if widget is None:
                continue
            # The host's own value stays, but a text area or a widget of another type starts anew.
            keeps_value = (
                socket.promoted
                and socket.promoted.type == widget.type
                and not widget.options.get("multiline")
            )
            if not keeps_value:
                self.values[socket.name] = node.value_behind(target, widget)
            socket.promoted = widget
            return
        socket.promoted = None


def _move_end(items: List[Any], begin: int, to: int) -> None:
    """Moves the end of ``items``, from ``begin`` on, to the index ``to``, in place."""
    items[to:] = items[begin:] + items[to:begin]


def create_template(
    type_: str, object_info: JsonObject, custom_inputs: Container[str] = ()
) -> LGraphNode:
    """What a new node of a class has: nothing, if the server does not have the class.

    ``custom_inputs`` are those for which a custom node's script makes a widget.
    """
    template = LGraphNode(type_)
    definition = object_info.get(type_)
    if not isinstance(definition, dict):
        return template
    inputs = inputs_of_class(type_, definition, custom_inputs)
    specs = [(name, inputs.specs[name]) for name in inputs.creation_order]
    # litegraphService.ts: first the inputs without a widget, then those that have one.
    for name, spec in specs:
        if not spec.has_widget:
            template.add_socket_input(name, spec)
    for name, spec in specs:
        if spec.has_widget:
            template.add_widget_input(name, spec)
    if type_ == "CustomCombo":  # customWidgets.ts
        template.add_widget(Widget("index", "index"), None)
        template.add_widget(Widget("option1", "option"), "")

    template.is_known = True
    template.title = str(definition.get("display_name") or type_)
    template.output_types = [_output_type(output) for output in as_list(definition.get("output"))]
    template.match_outputs = as_list(definition.get("output_matchtypes"))
    template.optional_inputs = inputs.optional
    template.forced_positions = forced_positions(inputs, template.values)
    return template


def _output_type(output: Any) -> Any:
    if output == MATCH_TYPE:  # narrow_match_types() decides when all is linked
        return "*"
    return parse_type(output)
