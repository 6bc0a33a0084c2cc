"""From UI format to the prompt that ComfyUI's own frontend exports."""

from __future__ import annotations

import copy
import datetime
import json
import random
import re
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple

from comfyui_runner.documents import Conversion
from comfyui_runner.errors import WorkflowError
from comfyui_runner.text import as_dict, as_list, one_line, plural

#
# The frontend loads the file into a graph and exports the graph; so does this section, in the same
# order, because the order shows in the result. Each node is built from object_info and then takes over
# what the file has (_Node); nodes that stand for a subgraph ("hosts") promote widgets from inside it;
# then every node that runs writes its widget values and, over them, its links to nodes that run
# (_Export). The rules are those of frontend 1.49; each names the file that it comes from.


class ConversionError(WorkflowError):
    """A workflow in UI format that cannot become a prompt. The message names the nodes."""


_SAVE_AGAIN = "Open the workflow in ComfyUI, mend it there and save it again."

_OFF = _MUTED, _BYPASSED = 2, 4  # the modes of a node that does not run (LGraphEventMode)

_ABOVE, _BELOW = "-10", "-20"  # where links begin and end that cross the border of a subgraph

#: Bounds for files that nobody draws: nodes when all subgraphs are written out, and subgraphs (or
#: braces in a text) inside each other.
_MOST_NODES, _MOST_NESTED = 50000, 100

#: A getter takes what goes into the setter of the same name (KJNodes, easy-use).
_SETTERS = ("SetNode", "easy setNode")

_GETTERS = ("GetNode", "easy getNode")

#: Nodes that live in the browser alone, the frontend's own and those of common packs. They hand on
#: what comes in, by the slot.
_RGTHREE = (
    "Reroute", "Label", "Bookmark", "Node Collector", "Fast Muter", "Fast Bypasser", "Fast Groups Muter",
    "Fast Groups Bypasser", "Fast Actions Button", "Mute / Bypass Repeater", "Mute / Bypass Relay", "Random Unmuter",
)  # fmt: skip

_IN_BROWSER = {"Reroute", "PrimitiveNode", "Note", "MarkdownNote", *_SETTERS, *_GETTERS}.union(
    name + " (rgthree)" for name in _RGTHREE
)

#: What the frontend adds to a class (extensions/core: uploadAudio.ts, load3d*.ts, saveMesh.ts).
_AUDIO = (
    "LoadAudio",
    "SaveAudio",
    "PreviewAudio",
    "SaveAudioMP3",
    "SaveAudioOpus",
    "SaveAudioAdvanced",
)

_ADDED_INPUTS: Mapping[str, Tuple[str, str]] = {
    **dict.fromkeys(_AUDIO, ("audioUI", "AUDIO_UI")),
    **dict.fromkeys(("Preview3D", "SaveGLB"), ("image", "PREVIEW_3D")),
    "Load3DAdvanced": ("viewport_state", "LOAD_3D_ADVANCED"),
}

#: The types of input that have a widget, and its value where the spec has no default
#: (scripts/widgets.ts and what it imports; getCustomWidgets of the extensions).
_WIDGETS: Mapping[str, Any] = {
    "INT": 0, "FLOAT": 0, "BOOLEAN": False, "COMBO": None, "COMFY_DYNAMICCOMBO_V3": None, "IMAGEUPLOAD": "image",
    "STRING": "", "MARKDOWN": "", "TEXTAREA": "", "PAINTER": "", "AUDIO_UI": "", "AUDIOUPLOAD": "", "AUDIO_RECORD": "",
    "WEBCAM": "", "LOAD_3D": "", "PREVIEW_3D": "", "LOAD_3D_ADVANCED": "", "COLOR": "#000000", "COLORS": [],
    "GALLERIA": [], "BOUNDING_BOXES": [], "CHART": {}, "COMPOSITOR": {}, "IMAGECOMPARE": ["", ""],
    "BOUNDING_BOX": {"x": 0, "y": 0, "width": 512, "height": 512}, "RANGE": {"min": 0.0, "max": 1.0},
    "CURVE": {"points": [[0, 0], [1, 1]], "interpolation": "monotone_cubic"},
    "VIDEO_EDIT": {"trim": {"start_time": 0, "duration": 0}, "crop": {"x": 0, "y": 0, "width": 0, "height": 0}},
}  # fmt: skip

#: Widgets that make their value at the moment of queueing, from a camera or a 3D view, and all that
#: keep none: theirs is "" whatever the file has.
_MADE_IN_BROWSER = ("AUDIO_RECORD", "WEBCAM", "LOAD_3D", "LOAD_3D_ADVANCED")

_KEEP_NOTHING = (*_MADE_IN_BROWSER, "AUDIO_UI", "PREVIEW_3D", "index")

#: Whose filename_prefix takes %Node.widget% and %date:...% (extensions/core/saveImageExtraOutput.ts).
_SAVERS = {
    "SaveImage", "SaveImageAdvanced", "SaveSVGNode", "SaveVideo", "SaveAnimatedWEBP", "SaveWEBM", "SaveAudio",
    "SaveAudioMP3", "SaveAudioOpus", "SaveAudioAdvanced", "SaveGLB", "Save3DAdvanced", "SaveGaussianSplat",
    "SavePointCloud", "SaveAnimatedPNG", "CLIPSave", "VAESave", "ModelSave", "LoraSave", "SaveLatent",
}  # fmt: skip

_NOTHING = object()  # no value at all, as JavaScript's undefined: left out of the prompt


class _Widget(NamedTuple):
    name: str
    kind: str  # the type of its input, or what else it is
    stored: bool = True  # has a place in widgets_values
    sent: bool = True  # has a place in the prompt
    choices: Sequence[Any] = ()  # of a combo
    options: Mapping[str, Any] = {}
    dynamic_prompt: bool = False


class _Input:
    """A socket. ``widget``: the name of the widget behind it; ``promoted``: on a host, the one inside."""

    __slots__ = ("link", "name", "promoted", "type", "widget")

    def __init__(
        self, name: str, type_: Any, link: Any = None, widget: Optional[str] = None
    ) -> None:
        self.name, self.type, self.link, self.widget = name, type_, link, widget
        self.promoted: Optional[_Widget] = None


class _Link:
    __slots__ = ("origin", "origin_slot", "target", "target_slot")

    def __init__(self, origin: str, origin_slot: int, target: str, target_slot: int) -> None:
        self.origin, self.origin_slot, self.target, self.target_slot = (
            origin,
            origin_slot,
            target,
            target_slot,
        )


class _Slot:
    """An input or output of a subgraph, and the ids of its links inside."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.name, self.type = str(raw.get("name")), raw.get("type")
        self.links = [
            link_id for link_id in as_list(raw.get("linkIds")) if _id(link_id) is not None
        ]


class _Graph:
    """The root graph (without a name), or the definition of a subgraph."""

    def __init__(self, raw: Mapping[str, Any], name: str) -> None:
        self.raw, self.name = raw, name
        self.nodes: Dict[str, _Node] = {}
        self.links: Dict[Any, _Link] = {}
        self.hosts: List[_Node] = []
        self.setters: Dict[Any, _Node] = {}
        self.inputs = [_Slot(slot) for slot in map(as_dict, as_list(raw.get("inputs"))) if name]
        self.outputs = [_Slot(slot) for slot in map(as_dict, as_list(raw.get("outputs"))) if name]

    def ends(self, links: Sequence[Any]) -> Iterator[Tuple["_Node", _Input]]:
        """The sockets that ``links`` of this graph lead to."""
        for link_id in links:
            link = self.links.get(link_id)
            node = self.nodes.get(link.target) if link else None
            socket = next((i for i in node.inputs if i.link == link_id), None) if node else None
            if node and socket:
                yield node, socket

    def source(self, slot: _Slot) -> Optional[Tuple[str, str]]:
        """The node and the widget that an input of this subgraph promotes (resolveSubgraphInputTarget.ts)."""
        for node, socket in self.ends(slot.links):
            widget = node.widget_of(socket)
            if node.inner or widget:
                return node.id, socket.name if node.inner or not widget else widget.name
        return None


class _Node:
    """A node as the frontend holds it. Without a graph: what a fresh one of its class has."""

    def __init__(self, type_: str) -> None:
        self.type = self.title = type_
        self.id = ""
        self.known = False  # the server has this class
        self.mode: Any = 0
        self.raw: Mapping[str, Any] = {}
        self.properties: Mapping[str, Any] = {}
        self.graph: Any = None
        self.inner: Optional[_Graph] = None  # of a host
        self.inputs: List[_Input] = []
        self.outputs: List[Any] = []  # their types
        self.widgets: List[_Widget] = []
        self.values: Dict[str, Any] = {}  # by the name of the widget, as in widgetValueStore.ts
        self.groups: Dict[str, Mapping[str, Any]] = {}  # the templates of autogrow groups
        self.matches: Dict[
            str, Dict[str, Any]
        ] = {}  # match types: {template: {input: its allowed types}}
        self.match_outputs: List[Any] = []
        self.places: Dict[str, Any] = {}  # where widgets_values has the value of a widget
        self.primitives: Dict[str, Mapping[str, Any]] = {}  # which PrimitiveNode gives it instead
        self.forced: List[bool] = []  # which widgets_values are dummies in a file of before 1.16

    def __str__(self) -> str:
        title = ' "%s"' % one_line(self.title, 40) if self.title != self.type else ""
        place = " in the subgraph %s" % one_line(self.graph.name, 40) if self.graph.name else ""
        return "node %s%s (%s)%s" % (one_line(self.id, 40), title, one_line(self.type, 60), place)

    def instance(
        self, raw: Mapping[str, Any], node_id: str, graph: _Graph, inner: Optional[_Graph]
    ) -> "_Node":
        node = copy.copy(self)
        node.raw, node.id, node.graph, node.inner, node.mode = (
            raw,
            node_id,
            graph,
            inner,
            raw.get("mode"),
        )
        title = raw.get("title")
        node.title = (
            title if isinstance(title, str) and title else inner.name if inner else self.title
        )
        node.properties, node.places, node.primitives = as_dict(raw.get("properties")), {}, {}
        node.inputs = [_Input(i.name, i.type, None, i.widget) for i in self.inputs]
        node.outputs, node.widgets, node.values = (
            self.outputs[:],
            self.widgets[:],
            dict(self.values),
        )
        node.groups, node.matches = dict(self.groups), dict(self.matches)
        return node

    def widget_of(self, socket: _Input) -> Optional[_Widget]:
        """The widget behind a socket."""
        if socket.promoted or socket.widget is None:
            return socket.promoted
        return next((widget for widget in self.widgets if widget.name == socket.widget), None)

    def first_value(self) -> Any:
        value = (as_list(self.raw.get("widgets_values")) or [_NOTHING])[0]
        return str(value) if isinstance(value, (dict, list)) else value

    # --- sockets and widgets from specs (litegraphService.ts, dynamicWidgets.ts) ---------------------

    def put(self, value: Any, *about: Any, **more: Any) -> _Widget:
        widget = _Widget(*about, **more)
        self.widgets.append(widget)
        self.values.setdefault(widget.name, value)
        return widget

    def add(self, name: str, kind: str, options: Mapping[str, Any]) -> None:
        self.add_socket(name, kind, options)
        self.add_widget(name, kind, options)

    def add_socket(self, name: str, kind: str, options: Mapping[str, Any]) -> None:
        """The socket of an input without a widget; of a dynamic one, what it begins with."""
        if options.get("widgetType", kind) in _WIDGETS and not options.get("forceInput"):
            return
        template = as_dict(options.get("template"))
        if kind == "COMFY_AUTOGROW_V3":
            self.groups[name] = template
            for place in range(template.get("min", 1) + 1):
                self.grow(name, place)
        elif kind == "COMFY_MATCHTYPE_V3":
            allowed, key = template.get("allowed_types", "*"), str(template.get("template_id"))
            self.matches[key] = {**self.matches.get(key, {}), name: allowed}
            self.add(name, allowed, options)
        else:
            self.inputs.append(_Input(name, kind))

    def add_widget(self, name: str, socket_type: str, options: Mapping[str, Any]) -> None:
        """The widgets of an input that has any, and its socket."""
        kind = options.get("widgetType", socket_type)
        if kind not in _WIDGETS or options.get("forceInput"):
            return
        value = _WIDGETS[kind] if options.get("default") is None else options["default"]
        control, choices = options.get("control_after_generate"), as_list(options.get("options"))
        if kind == "COMFY_DYNAMICCOMBO_V3":
            choices = [str(as_dict(choice).get("key")) for choice in choices]
            # JavaScript puts keys that are numbers first.
            choices.sort(
                key=lambda key: (0, int(key)) if key.isascii() and key.isdigit() else (1, 0)
            )
            value = choices[0] if choices else _NOTHING
        elif kind == "COMBO" and options.get("multi_select"):
            kind, value = "MULTISELECT", []
        elif kind == "COMBO" and not value:
            value = choices[0] if choices else "Loading..." if options.get("remote") else _NOTHING
        elif kind == "LOAD_3D" and "model_file" in self.values:
            self.put("upload3dmodel", "upload 3d model", "button")
            self.put("uploadExtraResources", "upload extra resources", "button")
            self.put("clear", "clear", "button")
        widget = self.put(
            value, name, kind, kind not in ("AUDIO_UI", "IMAGECOMPARE"),
            kind not in ("AUDIO_UI", "AUDIOUPLOAD", "IMAGEUPLOAD"), choices, options,
            self.graph is None and options.get("dynamicPrompts") is True,  # dynamicPrompts.ts sees fresh nodes alone
        )  # fmt: skip
        if kind == "COMFY_DYNAMICCOMBO_V3":
            self.choose(widget, value)
        elif kind == "BOUNDING_BOX":
            for part in ("x", "y", "width", "height"):
                self.put(as_dict(value).get(part), part, "part", sent=False)
        elif kind == "AUDIO_RECORD":
            self.put("", "record", "button", sent=False)
        elif kind == "COMBO" and options.get("remote"):  # useRemoteWidget.ts
            self.put(False, "Auto-refresh after generation", "button", sent=False)
            if as_dict(options["remote"]).get("refresh_button"):
                self.put("refresh", "refresh", "button")
        elif kind == "INT" and control is None:  # useIntWidget.ts
            control = name in ("seed", "noise_seed")
        if control and kind in ("INT", "FLOAT", "COMBO", "MULTISELECT"):
            self.put(
                "fixed",
                control if isinstance(control, str) else "control_after_generate",
                "control",
                sent=False,
            )
            if kind == "COMBO":
                self.put("", "control_filter_list", "control", sent=False)
        self.inputs.append(_Input(name, socket_type, None, name))

    def choose(self, combo: _Widget, value: Any) -> None:
        """Gives a dynamic combo a value: the inputs of that option replace those of the last one."""
        begins = combo.name + "."
        removed = [i for i in self.inputs if i.name.startswith(begins)]
        self.inputs[:] = [i for i in self.inputs if not i.name.startswith(begins)]
        for widget in [w for w in self.widgets if w.name.startswith(begins)]:
            self.widgets.remove(widget)  # in place: load() walks along this list
            self.values.pop(widget.name, None)
        key = str(value).lower() if isinstance(value, bool) else str(value)
        option = {
            str(as_dict(o).get("key")): as_dict(o) for o in as_list(combo.options.get("options"))
        }.get(key)
        if not value or option is None:
            return
        inputs, widgets = len(self.inputs), len(self.widgets)
        for part in ("required", "optional"):
            for key, spec in as_dict(as_dict(option.get("inputs")).get(part)).items():
                self.add(begins + key, *_spec(spec))
        place = self.widgets.index(combo) + 1
        self.widgets[place:] = self.widgets[widgets:] + self.widgets[place:widgets]
        place = next((index + 1 for index, i in enumerate(self.inputs) if i.name == combo.name), 0)
        if place:  # else the socket of the combo comes after these
            self.inputs[place:] = self.inputs[inputs:] + self.inputs[place:inputs]
            self.renumber(place)
        for old in removed:  # a link stays if its socket is there again
            for index, socket in enumerate(self.inputs):
                if socket.name == old.name:
                    socket.link = old.link
                    if old.link in self.graph.links:
                        self.graph.links[old.link].target_slot = index
                        self.connected(index)
                    break

    def grow(self, group: str, place: int) -> None:
        """Adds one more place to an autogrow group, after the place before it."""
        template = self.groups[group]
        names, prefix, parts = (
            template.get("names"),
            template.get("prefix", ""),
            as_dict(template.get("input")),
        )
        if place >= (len(names) if names else template.get("max", 100)):
            return
        specs = [
            (key, *_spec(spec))
            for part in ("required", "optional")
            for key, spec in as_dict(parts.get(part)).items()
        ]
        added: List[_Input] = []
        before = "\n"
        for key, kind, options in specs:
            stem = prefix if len(specs) == 1 else key
            own, before = (
                "%s.%s" % (group, names[n] if names else stem + str(n)) for n in (place, place - 1)
            )
            self.add(own, kind, options)
            added.append(self.inputs.pop())
            if len(specs) > 1:
                added[-1].widget = added[-1].name
        for new in added:
            for old in [i for i in self.inputs if i.name == new.name]:
                self.inputs.remove(old)
                new.link = old.link if new.link is None else new.link
        index = max(
            (n + 1 for n, i in enumerate(self.inputs) if place and i.name.startswith(before)),
            default=len(self.inputs),
        )
        self.inputs[index:index] = added
        self.renumber(index)

    def renumber(self, begin: int) -> None:
        """Tells the links to the sockets from ``begin`` on where they are now."""
        for index in range(begin, len(self.inputs)):
            if self.inputs[index].link in (self.graph.links if self.graph else ()):
                self.graph.links[self.inputs[index].link].target_slot = index

    def connected(self, index: int) -> None:
        """A link came to the socket ``index``: its autogrow group, if it has one, offers the next place."""
        group, _, own = self.inputs[index].name.rpartition(".")
        if group in self.groups:
            names, digits = self.groups[group].get("names"), re.search("[0-9]{1,9}$", own)
            if names and own in names:
                self.grow(group, names.index(own) + 1)
            elif digits and not names:
                self.grow(group, int(digits.group()) + 1)

    # --- what the file has (LGraphNode.ts and SubgraphNode.ts, configure) -----------------------------

    def load(self) -> None:
        stored = [
            (str(raw.get("name")), raw)
            for raw in as_list(self.raw.get("inputs"))
            if isinstance(raw, dict)
        ]
        by_name = dict(stored)
        if self.inner:
            self.inner.hosts.append(self)
            self.inputs = [_Input(slot.name, slot.type) for slot in self.inner.inputs]
            self.outputs = [slot.type for slot in self.inner.outputs]
        for socket in self.inputs:
            socket.link = _id(by_name.get(socket.name, {}).get("link"))
        if self.inner:
            self.load_host(self.inner)
            return
        own = {socket.name for socket in self.inputs}
        for name, raw in stored:  # of an older file, or of a place in an autogrow group
            if name not in own:
                widget = as_dict(raw.get("widget")).get("name")
                widget = None if widget is None else str(widget)
                self.inputs.append(_Input(name, raw.get("type"), _id(raw.get("link")), widget))
        self.outputs += [
            as_dict(raw).get("type")
            for raw in as_list(self.raw.get("outputs"))[len(self.outputs) :]
        ]
        index = 0
        while self.groups and index < len(self.inputs):
            if self.inputs[index].link in self.graph.links:
                self.connected(index)
            index += 1
        values = self.raw.get("widgets_values")
        if isinstance(values, dict):  # by name: custom nodes store them so (VideoHelperSuite)
            for widget in self.widgets:
                if widget.name in values:
                    self.places[widget.name] = widget.name
                    self.set(widget, values[widget.name])
            return
        values = as_list(values)
        left = iter(range(len(values)))
        if len(values) == len(self.forced):  # litegraphUtil.ts, migrateWidgetsValues
            left = iter([place for place, forced in enumerate(self.forced) if not forced])
        for widget in self.widgets:  # set() may change what follows
            place = next(left, None) if widget.stored else None
            if place is not None:
                self.places[widget.name] = place
                self.set(widget, values[place])

    def set(self, widget: _Widget, value: Any) -> None:
        if widget.kind in _KEEP_NOTHING:
            return
        if value is None and (widget.kind == "MARKDOWN" or widget.options.get("multiline")):
            value = ""  # a text area holds no null
        self.values[widget.name] = value
        if widget.kind == "COMFY_DYNAMICCOMBO_V3":
            self.choose(widget, value)
        elif widget.kind == "option" and value and self.widgets[-1] is widget:
            self.put("", "option%d" % (len(self.widgets) - 1), "option")  # customWidgets.ts

    def load_host(self, inner: _Graph) -> None:
        for socket, slot in zip(self.inputs, inner.inputs):
            self.promote_first(socket, inner.ends(slot.links))
        names = [socket.name for socket in self.inputs if socket.promoted]
        stored = self.raw.get("widgets_values")
        values = dict(stored if isinstance(stored, dict) else zip(names, as_list(stored)))
        for entry in reversed(_json_list(self.properties.get("proxyWidgetErrorQuarantine"))):
            original = as_list(as_dict(entry).get("originalEntry"))
            if original[:1] == ["-1"] and entry.get("hostValue") is not None:
                values[str(original[-1])] = entry["hostValue"]
        self.values.update({name: values[name] for name in names if name in values})

    def promote_first(self, socket: _Input, ends: Iterator[Tuple["_Node", _Input]]) -> None:
        """Promotes the first widget among ``ends``; a value stays, but not in a text area or another kind."""
        for node, end in ends:
            widget = node.widget_of(end)
            if widget:
                if (
                    not socket.promoted
                    or socket.promoted.kind != widget.kind
                    or widget.options.get("multiline")
                ):
                    self.values[socket.name] = node.values.get(
                        end.name if node.inner else widget.name, _NOTHING
                    )
                socket.promoted = widget
                return
        socket.promoted = None


def _id(value: Any) -> Any:
    """A link's id, or None for what is none."""
    return value if isinstance(value, (int, float, str)) else None


def _key(value: Any) -> str:
    """A node's id as text, as the frontend compares them; "" for what is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return (
        str(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else ""
    )


def _json_list(value: Any) -> List[Any]:
    """A property that is a list, or the JSON of one."""
    try:
        return as_list(json.loads(value) if isinstance(value, str) else value)
    except (ValueError, RecursionError):
        return []


def _spec(value: Any) -> Tuple[str, Mapping[str, Any]]:
    """The type and the options of an input's spec; the choices of an older combo become an option."""
    kind, options = (*as_list(value), None, None)[:2]
    return (
        ("COMBO", {**as_dict(options), "options": kind})
        if isinstance(kind, list)
        else (str(kind), as_dict(options))
    )


def _fresh(type_: str, object_info: Mapping[str, Any]) -> _Node:
    """What a new node of a class has; nothing if the server does not know it."""
    node, about = _Node(type_), object_info.get(type_)
    if not isinstance(about, dict):
        return node
    groups, order = as_dict(about.get("input")), as_dict(about.get("input_order"))
    required = {name: _spec(spec) for name, spec in as_dict(groups.get("required")).items()}
    optional = {name: _spec(spec) for name, spec in as_dict(groups.get("optional")).items()}
    for name, (kind, options) in optional.items():
        if options.get("defaultInput"):  # nodeDefStore.ts: the older word
            optional[name] = kind, {**options, "forceInput": True}
    if type_ in _ADDED_INPUTS:
        required[_ADDED_INPUTS[type_][0]] = _ADDED_INPUTS[type_][1], {}
    if required.get("audio", ("", {}))[1].get("audio_upload") is True:
        required["upload"] = "AUDIOUPLOAD", {}
    marks = ("image_upload", "video_upload", "animated_image_upload")  # uploadImage.ts
    if any(
        kind == "COMBO" and any(options.get(m) is True for m in marks)
        for kind, options in required.values()
    ):
        required["upload"] = "IMAGEUPLOAD", {}
    specs = {**required, **optional}
    ordered = [n for n in as_list(order.get("required")) if n in required]
    ordered += [n for n in as_list(order.get("optional")) if n in optional]
    ordered = list(dict.fromkeys([*ordered, *specs]))
    for name in ordered:
        node.add_socket(name, *specs[name])
    for name in ordered:
        node.add_widget(name, *specs[name])
    if type_ == "CustomCombo":  # customWidgets.ts
        node.put(None, "index", "index")
        node.put("", "option1", "option")
    node.known, node.title = True, str(about.get("display_name") or type_)
    node.outputs = [
        "COMBO" if isinstance(o, list) else "*" if o == "COMFY_MATCHTYPE_V3" else o
        for o in as_list(about.get("output"))
    ]
    node.match_outputs = as_list(about.get("output_matchtypes"))
    for name, (_, options) in specs.items():
        if name in node.values or options.get("forceInput"):
            node.forced += [bool(options.get("forceInput"))] + [False] * bool(
                options.get("control_after_generate")
            )
    return node


def _nodes_in(raw: Mapping[str, Any], where: str) -> List[Mapping[str, Any]]:
    nodes = as_list(raw.get("nodes"))
    for index, node in enumerate(nodes):
        if (
            not isinstance(node, dict)
            or not isinstance(node.get("type"), str)
            or not _key(node.get("id"))
        ):
            raise ConversionError(
                "Entry %d of the nodes of %s is no node with an id and a type." % (index, where),
                _SAVE_AGAIN,
            )
    return nodes


def _load(workflow: Mapping[str, Any], object_info: Mapping[str, Any]) -> _Graph:
    """The root graph, as it is when all is loaded."""
    raws: Dict[str, Mapping[str, Any]] = {}
    holders = [workflow]
    for holder in holders:
        for raw in as_list(as_dict(holder.get("definitions")).get("subgraphs")):
            if isinstance(raw, dict) and isinstance(raw.get("id"), str) and raw["id"] not in raws:
                raws[raw["id"]] = raw
                holders.append(raw)
    graphs = {
        key: _Graph(raw, one_line(raw.get("name") or key, 60) or "?") for key, raw in raws.items()
    }
    nodes = {key: _nodes_in(raw, "the subgraph " + graphs[key].name) for key, raw in raws.items()}
    root, root_nodes = _Graph(workflow, ""), _nodes_in(workflow, "the workflow")
    renamed = _renumber(workflow, root_nodes, nodes)
    classes: Dict[str, _Node] = {}

    def fill(
        graph: _Graph,
        nodes: Sequence[Mapping[str, Any]],
        ids: Sequence[str],
        new: Mapping[str, str],
    ) -> None:
        _read_links(graph, new)
        for raw, node_id in zip(nodes, ids):
            type_ = raw["type"]
            if type_ not in classes:
                classes[type_] = _fresh(type_, object_info)
            node = classes[type_].instance(raw, node_id, graph, graphs.get(type_))
            if node_id in graph.nodes:
                raise ConversionError(
                    "Two nodes have the same id: %s and %s." % (graph.nodes[node_id], node),
                    _SAVE_AGAIN,
                )
            graph.nodes[node_id] = node
        for node in graph.nodes.values():
            node.load()
        for (
            host
        ) in graph.hosts:  # loaded before this subgraph was: the first link of each input counts
            for socket, slot in zip(host.inputs, graph.inputs):
                host.promote_first(socket, graph.ends(slot.links[:1]))
        for node in graph.nodes.values():
            if node.inner:
                _migrate(node, node.inner, renamed[node.type][1])

    for key in _inner_first(graphs, nodes):
        fill(graphs[key], nodes[key], *renamed[key])
    fill(root, root_nodes, [_key(node["id"]) for node in root_nodes], {})
    every = [*graphs.values(), root]
    for graph in every:
        _finish(graph)
    _match_types([node for graph in every for node in graph.nodes.values() if node.matches])
    return root


def _read_links(graph: _Graph, new: Mapping[str, str]) -> None:
    for raw in as_list(graph.raw.get("links")):
        if isinstance(raw, dict):  # schema 1, and all subgraphs
            raw = [
                raw.get(k) for k in ("id", "origin_id", "origin_slot", "target_id", "target_slot")
            ]
        if isinstance(raw, list) and len(raw) >= 5 and _id(raw[0]) is not None:
            origin, target = _key(raw[1]), _key(raw[3])
            out, into = (
                slot if isinstance(slot, int) and slot >= 0 else 0 for slot in (raw[2], raw[4])
            )
            graph.links[raw[0]] = _Link(new.get(origin, origin), out, new.get(target, target), into)
    border: Dict[Tuple[str, int], Any] = {}
    for link_id, link in graph.links.items():
        if link.origin == _ABOVE:
            border.setdefault((_ABOVE, link.origin_slot), link_id)
        if link.target == _BELOW:
            border.setdefault((_BELOW, link.target_slot), link_id)
    for side, slots in ((_ABOVE, graph.inputs), (_BELOW, graph.outputs)):  # _repairSlotLinkIds
        for number, slot in enumerate(slots):
            slot.links = [
                k if k in graph.links else border.get((side, number), k) for k in slot.links
            ]


def _renumber(
    workflow: Mapping[str, Any],
    root: Sequence[Mapping[str, Any]],
    nodes: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Dict[str, Tuple[List[str], Dict[str, str]]]:
    """The ids of the nodes of each subgraph, and {old: new} for those that had to change.

    All ids of a workflow differ; a later node takes the next free number (subgraphDeduplication.ts).
    """
    used = {str(node["id"]) for node in root if type(node["id"]) is int}
    last = workflow.get("last_node_id", as_dict(workflow.get("state")).get("lastNodeId"))
    last = last if isinstance(last, int) else 0
    found: Dict[str, Tuple[List[str], Dict[str, str]]] = {}
    for key, inside in nodes.items():
        ids, new = found[key] = [], {}
        for node in inside:
            node_id = _key(node["id"])
            if node_id in used:
                last += 1
                while str(last) in used:
                    last += 1
                new[node_id] = node_id = str(last)
            elif re.fullmatch("0|[1-9][0-9]{0,14}", node_id):
                last = max(last, int(node_id))
            used.add(node_id)
            ids.append(node_id)
    return found


def _inner_first(
    graphs: Mapping[str, _Graph], nodes: Mapping[str, Sequence[Mapping[str, Any]]]
) -> List[str]:
    """The subgraphs in the order of loading: those that others hold come first.

    But if one holds another twice, the order is that of the file (topologicalSortSubgraphs counts so).
    """
    held = {
        key: [node["type"] for node in inside if node["type"] in graphs]
        for key, inside in nodes.items()
    }
    waits_for = {key: set(inside) for key, inside in held.items()}
    holders: Dict[str, List[str]] = {key: [] for key in held}
    for key, inside in waits_for.items():
        for one in inside:
            holders[one].append(key)
    depth = dict.fromkeys(held, 1)
    ordered = [key for key in held if not held[key]]
    for key in ordered:
        for holder in holders[key]:
            waits_for[holder].discard(key)
            depth[holder] = max(depth[holder], depth[key] + 1)
            if not waits_for[holder]:
                ordered.append(holder)
    for key in held:
        if waits_for[key] or depth[key] > _MOST_NESTED:
            how = (
                "holds itself"
                if waits_for[key]
                else "holds more than %d levels of subgraphs" % _MOST_NESTED
            )
            raise ConversionError("The subgraph %s %s." % (graphs[key].name, how), _SAVE_AGAIN)
    twice = any(len(set(inside)) < len(inside) for inside in held.values())
    return list(held) if twice else ordered


def _migrate(host: _Node, graph: _Graph, new: Mapping[str, str]) -> None:
    """Makes inputs of what properties.proxyWidgets promotes, the older way (proxyWidgetMigration.ts)."""
    entries = _json_list(host.properties.get("proxyWidgets"))
    if not all(
        isinstance(e, list) and len(e) in (2, 3) and all(isinstance(p, str) for p in e)
        for e in entries
    ):
        return
    values = as_list(host.raw.get("widgets_values"))
    promoted = {
        graph.source(slot): socket for socket, slot in zip(host.inputs[::-1], graph.inputs[::-1])
    }
    plans = []
    for number, (node_id, name, *inside) in enumerate(entries):
        value = values[number] if number < len(values) and values[number] is not None else _NOTHING
        prefix = re.fullmatch(
            r"(?:\s*([0-9]+)\s*:\s*)+(.+)", name
        )  # "7: 3: steps": a widget in a subgraph inside
        if prefix:
            inside, name = [prefix.group(1)], prefix.group(2)
        node_id = new.get(node_id, node_id)
        plans.append(
            (graph.nodes.get(node_id), node_id, name, inside, value, promoted.get((node_id, name)))
        )
    primitives: Dict[str, List[Tuple[str, Any]]] = {}
    for node, node_id, name, inside, value, socket in plans:
        if node_id == "-1":
            socket = next((i for i in host.inputs if i.name == name), None)
        elif node and not socket and node.type == "PrimitiveNode":
            socket = next((i for i in host.inputs if i.name == node.values.get("")), None)
            if not socket:
                primitives.setdefault(node_id, []).append((name, value))
        elif node and not socket:
            end = _promotable(node, name, inside)
            socket = _add_input(host, graph, name, end.type, [(node, end)]) if end else None
        if socket and socket.promoted and value is not _NOTHING:
            host.values[socket.name] = value
    for node_id, cohort in primitives.items():
        _migrate_primitive(host, graph, graph.nodes[node_id], cohort)


def _promotable(node: _Node, name: str, inside: Sequence[str]) -> Optional[_Input]:
    """The socket of the widget ``name`` of a node; of a host, of what it promotes."""
    if not node.inner:
        return next((i for i in node.inputs if i.widget == name and node.widget_of(i)), None)
    for socket, slot in zip(node.inputs, node.inner.inputs):
        source = node.inner.source(slot) or ("", "")
        if source == (inside[0], name) if inside else name in (socket.name, source[1]):
            return socket if socket.promoted else None
    return None


def _migrate_primitive(
    host: _Node, graph: _Graph, primitive: _Node, cohort: Sequence[Tuple[str, Any]]
) -> None:
    """Lets what a promoted primitive led to be led to by the subgraph's input."""
    ends: List[Tuple[_Node, _Input]] = []
    for node, socket in _targets(graph, primitive):
        if socket.type not in ("*", primitive.outputs[0]) and primitive.outputs[0] != "*":
            return
        ends.append((node, socket))
    shapes = [
        (w.kind, *(w.options.get(k) for k in ("min", "max", "step")))
        for w in (n.widget_of(i) for n, i in ends)
        if w
    ]
    if (
        not ends
        or len({name for name, _ in cohort}) > 1
        or any(shape != shapes[0] for shape in shapes)
    ):
        return
    name = cohort[0][0] if primitive.title == "PrimitiveNode" else primitive.title
    socket = _add_input(host, graph, name, primitive.outputs[0], ends)
    for _, value in cohort:
        if value is not _NOTHING and socket.promoted:
            host.values[socket.name] = value
            break
    primitive.values[""] = socket.name  # for the next host of this subgraph


def _add_input(
    host: _Node, graph: _Graph, name: str, type_: Any, ends: Sequence[Tuple[_Node, _Input]]
) -> _Input:
    """Gives a subgraph, and so all its hosts, one more input, that leads to ``ends``; returns the host's."""
    taken, number, unique = {slot.name for slot in graph.inputs}, 0, name
    while unique in taken:
        number += 1
        unique = "%s_%d" % (name, number)
    slot = _Slot({"name": unique, "type": type_})
    graph.inputs.append(slot)
    for one in graph.hosts:
        one.inputs.append(_Input(unique, type_))
    for node, end in ends:
        old = graph.links.pop(end.link, None)
        if old and old.origin == _ABOVE and old.origin_slot < len(graph.inputs):
            before = graph.inputs[old.origin_slot]
            before.links = [link_id for link_id in before.links if link_id != end.link]
            for one in graph.hosts:
                one.promote_first(one.inputs[old.origin_slot], graph.ends(before.links))
        end.link = (unique, len(slot.links))  # an id that no file has
        slot.links.append(end.link)
        graph.links[end.link] = _Link(
            _ABOVE, len(graph.inputs) - 1, node.id, node.inputs.index(end)
        )
        for one in graph.hosts:
            one.promote_first(one.inputs[-1], graph.ends(slot.links))
    return host.inputs[-1]


def _targets(graph: _Graph, primitive: _Node) -> Iterator[Tuple[_Node, _Input]]:
    """The sockets that a primitive leads to, by the slots that its links name."""
    outputs = as_list(primitive.raw.get("outputs"))
    for link_id in as_list(as_dict(outputs[0]).get("links")) if outputs else ():
        link = graph.links.get(_id(link_id))
        node = graph.nodes.get(link.target) if link else None
        if link and node and link.target_slot < len(node.inputs):
            yield node, node.inputs[link.target_slot]


def _finish(graph: _Graph) -> None:
    """What the frontend mends when all is loaded (app.ts; widgetInputs.ts, onGraphConfigured)."""
    for node in graph.nodes.values():
        index = 0
        while node.known and index < len(node.inputs):
            socket = node.inputs[index]
            if (
                socket.widget is not None
                and not node.widget_of(socket)
                and socket.name.rpartition(".")[0] not in node.groups
            ):
                graph.links.pop(socket.link, None)
                del node.inputs[index]
            index += 1  # as there: the one after a removed one is passed over
        node.renumber(0)
        for widget in list(node.widgets):
            if node.values.get(widget.name, _NOTHING) is None and widget.choices:
                node.set(widget, widget.choices[0])
        for socket in node.inputs:
            if (
                socket.promoted
                and socket.promoted.choices
                and node.values.get(socket.name, _NOTHING) is None
            ):
                node.values[socket.name] = socket.promoted.choices[0]
        if node.type in _SETTERS and not node.known:
            graph.setters.setdefault(node.first_value(), node)
    for primitive in graph.nodes.values():
        if (
            primitive.type == "PrimitiveNode" and not primitive.known
        ):  # widgetInputs.ts, widgetValuePropagation.ts
            value, targets = primitive.first_value(), list(_targets(graph, primitive))
            if (
                targets
                and not targets[0][0].widget_of(targets[0][1])
                and targets[0][1].type not in _WIDGETS
            ):
                continue  # its first link gives it no widget
            for node, socket in targets:
                behind = node.widget_of(socket)
                if behind:
                    name = socket.name if node.inner else behind.name
                    value = _in_range(
                        node.values.get(name, _NOTHING) if value is _NOTHING else value, behind
                    )
                    node.values[name] = value
                    if len(targets) == 1 and primitive.first_value() is not _NOTHING:
                        node.primitives[name] = primitive.raw


def _in_range(value: Any, widget: _Widget) -> Any:
    """A primitive's number as the widget that it leads to lets it be (widgetInputs.ts, useIntWidget.ts)."""
    if (
        widget.kind not in ("INT", "FLOAT")
        or isinstance(value, bool)
        or not isinstance(value, (int, float))
    ):
        return value
    low, high, step = (
        widget.options.get("min"),
        widget.options.get("max"),
        widget.options.get("step") or 1,
    )
    value = value if low is None or value >= low else low
    value = value if high is None or value <= high else high
    if widget.kind == "INT" and isinstance(step, int) and abs(value) < 2**53:
        offset = (low or 0) % step
        value = int(((value - offset) / step + 0.5) // 1) * step + offset
    return value


def _match_types(nodes: Sequence[_Node]) -> None:
    """Narrows the types of matching sockets to what is connected (dynamicWidgets.ts)."""
    for _ in range(8):  # each round carries a type at least one node further
        changed = False
        for node in nodes:
            for key, allowed in node.matches.items():
                sockets = [i for i in node.inputs if i.name in allowed]
                types = [_type_at(node.graph, i.link) for i in sockets]
                for index, socket in enumerate(sockets):
                    others = [*types[:index], *types[index + 1 :], allowed[socket.name]]
                    socket.type = _common_type(others) or socket.type
                common = _common_type(types)
                for index, group in enumerate(node.match_outputs[: len(node.outputs)]):
                    if group == key and common and node.outputs[index] != common:
                        node.outputs[index], changed = common, True
        if not changed:
            return


def _type_at(graph: _Graph, link_id: Any) -> Any:
    """The type of the output that a link begins at."""
    link = graph.links.get(link_id)
    origin = graph.nodes.get(link.origin) if link else None
    types = (
        origin.outputs
        if origin
        else [slot.type for slot in graph.inputs]
        if link and link.origin == _ABOVE
        else []
    )
    return types[link.origin_slot] if link and link.origin_slot < len(types) else "*"


def _common_type(types: Sequence[Any]) -> Optional[str]:
    """What all of ``types`` allow; "*" allows all; None: they share nothing."""
    lists = [type_.split(",") for type_ in types if isinstance(type_, str) and type_ != "*"]
    return (
        ",".join(t for t in dict.fromkeys(lists[0]) if all(t in other for other in lists)) or None
        if lists
        else "*"
    )


class _Scope:
    """A place where nodes run: the root graph, or a subgraph in one of its hosts."""

    def __init__(
        self, graph: _Graph, prefix: str, host: Optional[_Node], parent: Optional["_Scope"]
    ) -> None:
        self.graph, self.prefix, self.host, self.parent = graph, prefix, host, parent
        self.inner: Dict[str, _Scope] = {}


def _fits(first: Any, second: Any) -> bool:
    """Whether a link may join these types (LiteGraphGlobal.ts, isValidConnection)."""
    if first in (0, "", "*", None) or second in (0, "", "*", None) or first == second:
        return True
    return not set(str(first).lower().split(",")).isdisjoint(str(second).lower().split(","))


def _bypass_slot(node: _Node, slot: int, type_: Any) -> int:
    """The input whose link a bypassed node hands on for one of its outputs; -1: none."""
    types = [socket.type for socket in node.inputs]
    if type_ in ("*", ""):
        return slot if slot < len(types) else 0
    made = node.outputs[slot] if slot < len(node.outputs) else "*"
    fitting = [
        n for n, type_in in enumerate(types) if _fits(type_in, made) and _fits(type_in, type_)
    ]
    if slot in fitting:
        return slot
    return types.index(type_) if type_ in types else fitting[0] if fitting else -1


class _Export:
    """The prompt of a loaded workflow."""

    def __init__(self, root: _Graph, rng: random.Random, now: datetime.datetime) -> None:
        self.root, self.rng, self.now = root, rng, now
        self.prompt: Dict[str, Any] = {}
        self.places: Dict[str, Tuple[Mapping[str, Any], Mapping[str, Any]]] = {}
        self.primitives: Dict[str, Mapping[str, Mapping[str, Any]]] = {}
        self.warnings: List[str] = []
        self.resolved: Dict[Any, Optional[Tuple[bool, Any]]] = {}  # what each output on a way gave
        missing: List[_Node] = []
        scopes, count = [_Scope(root, "", None, None)], 0
        for scope in scopes:
            count += len(scope.graph.nodes)
            if count > _MOST_NODES:
                what = "The workflow has more than %d nodes with those of its subgraphs (%s is one of them)."
                raise ConversionError(
                    what % (_MOST_NODES, next(iter(scope.graph.nodes.values()))), _SAVE_AGAIN
                )
            for node in scope.graph.nodes.values():
                if node.inner and (
                    scope.parent or node.mode not in _OFF
                ):  # off counts for a host at the root alone
                    scope.inner[node.id] = _Scope(
                        node.inner, scope.prefix + node.id + ":", node, scope
                    )
                    scopes.append(scope.inner[node.id])
                elif not (
                    node.inner or node.known or node.mode in _OFF or node.type in _IN_BROWSER
                ):
                    missing.append(node)
        if missing:
            raise _missing_classes(missing)
        for scope in scopes:
            for node in scope.graph.nodes.values():
                if node.known and not node.inner and node.mode not in _OFF:
                    about = {"class_type": node.type, "_meta": {"title": node.title}}
                    self.prompt[scope.prefix + node.id] = {
                        "inputs": self.inputs(scope, node),
                        **about,
                    }
                    if len(scope.graph.hosts) < 2:
                        self.places[scope.prefix + node.id] = node.raw, node.places
                        self.primitives[scope.prefix + node.id] = node.primitives

    def inputs(self, scope: _Scope, node: _Node) -> Dict[str, Any]:
        found = {widget.name: self.value(node, widget) for widget in node.widgets if widget.sent}
        for slot, socket in enumerate(node.inputs):
            value = self.resolve(scope, node, slot) if socket.link is not None else None
            if value:
                found[socket.name] = value[1] if value[0] else _no_link(value[1])
        return {name: value for name, value in found.items() if value is not _NOTHING}

    def value(self, node: _Node, widget: _Widget) -> Any:
        value = node.values[widget.name]
        if widget.kind == "index":
            options = [node.values[option.name] for option in node.widgets[2:]]
            return options.index(node.values["choice"]) if node.values["choice"] in options else -1
        if widget.kind in _MADE_IN_BROWSER:
            self.warn(
                node, 'the browser makes the value of "%s", the prompt has none' % widget.name
            )
        if widget.dynamic_prompt and isinstance(value, str):
            return _dynamic_prompt(value, self.rng)
        if widget.name == "filename_prefix" and node.type in _SAVERS and isinstance(value, str):
            return re.sub("%([^%]+)%", self.replacement, value)
        return _no_link(value)

    def replacement(self, match: "re.Match[str]") -> str:
        """What stands for %Node.widget% in the name of a file (searchAndReplace.ts)."""
        parts = match.group(1).split(".")
        if len(parts) != 2:
            return _date(parts[0][5:], self.now) if parts[0].startswith("date:") else match.group()
        named, titled = [], []
        for node in _all_nodes(self.root, set()):
            alias = None if node.type in _SAVERS or node.inner else node.type
            named += [node] if node.properties.get("Node name for S&R", alias) == parts[0] else []
            titled += [node] if node.title == parts[0] else []
        nodes = named or titled
        value = nodes[0].values.get(parts[1], _NOTHING) if nodes else _NOTHING
        if value is _NOTHING:
            return match.group()
        if isinstance(value, float) and value % 1 == 0:
            value = int(value)
        text = json.dumps(value) if isinstance(value, bool) else "" if value is None else str(value)
        return re.sub(r'[/?<>\\:*|"\x00-\x1f\x7f]', "_", text)

    def resolve(self, at: _Scope, node: _Node, slot: int) -> Optional[Tuple[bool, Any]]:
        """What an input gets: (True, a link), (False, the value of a promoted widget) or None.

        Walks from the input to the output that it is linked to, through what does not run, and on.
        """
        found: Optional[Tuple[bool, Any]] = None
        walked: Dict[Any, None] = {}
        type_: Any = None  # of the input that asks; a bypassed node and a host ask anew
        asking, left = True, False  # at an input, else at an output; just came out of a subgraph
        while True:
            if asking:
                socket = node.inputs[slot] if slot < len(node.inputs) else None
                if socket is None or socket.link is None:
                    if socket and left and socket.promoted:
                        found = False, node.values.get(socket.name, _NOTHING)
                    break
                link = at.graph.links.get(socket.link)
                if link and link.origin == _ABOVE and at.host and at.parent:
                    node, slot, at, type_, left = at.host, link.origin_slot, at.parent, None, True
                    continue
                origin = at.graph.nodes.get(link.origin) if link else None
                if not link or not origin:
                    self.warn(
                        node,
                        'the link of its input "%s" comes from nowhere' % one_line(socket.name, 40),
                    )
                    break
                type_ = socket.type if type_ is None else type_
                node, slot, asking = origin, link.origin_slot, False
                continue
            key = (at.prefix, node.id, slot, str(type_))
            if key in self.resolved:
                found = self.resolved[key]
                break
            if key in walked:
                raise ConversionError("The links around %s run in a circle." % node, _SAVE_AGAIN)
            walked[key] = None
            asking, left = True, False
            if node.mode == _MUTED:
                break
            if node.mode == _BYPASSED:
                slot, type_ = _bypass_slot(node, slot, type_), None
                if slot < 0:
                    break
            elif node.inner:
                ids = node.inner.outputs[slot].links if slot < len(node.inner.outputs) else []
                first = next(
                    (node.inner.links[link_id] for link_id in ids if link_id in node.inner.links),
                    None,
                )
                inner = node.inner.nodes.get(first.origin) if first else None
                if not first or not (inner or first.origin == _ABOVE):
                    break
                slot, type_ = first.origin_slot, type_ if inner else None
                if inner:
                    node, at, asking = inner, at.inner[node.id], False
            elif node.known:
                found = True, [at.prefix + node.id, slot]
                break
            elif node.type in _GETTERS:
                name, place = node.first_value(), at
                while name not in place.graph.setters and place.parent:
                    place = place.parent
                if name not in place.graph.setters:
                    self.warn(node, "there is no setter of its name")
                    break
                node, slot, at = place.graph.setters[name], 0, place
        self.resolved.update(dict.fromkeys(walked, found))
        return found

    def warn(self, node: _Node, what: str) -> None:
        self.warnings.append("%s: %s." % (node, what))


def _no_link(value: Any) -> Any:
    """A value as it may stand in a prompt: a bare list would be taken for a link."""
    return {"__value__": value} if isinstance(value, list) else value


def _all_nodes(graph: _Graph, seen: Set[str]) -> Iterator[_Node]:
    """Every node once, those in a subgraph before its host (graphTraversalUtil.ts)."""
    for node in graph.nodes.values():
        if node.inner and node.type not in seen:
            seen.add(node.type)
            yield from _all_nodes(node.inner, seen)
        yield node


def _date(pattern: str, now: datetime.datetime) -> str:
    """formatUtil.ts, formatDate."""

    def part(match: "re.Match[str]") -> str:
        text = match.group()
        parts = {"d": now.day, "M": now.month, "h": now.hour, "m": now.minute, "s": now.second}
        if text[0] == "y":
            return {2: "%02d" % (now.year % 100), 4: str(now.year)}.get(len(text), text)
        return str(parts[text[0]]).zfill(len(text))

    return re.sub("dd?|MM?|hh?|mm?|ss?|yyy?y?", part, pattern)


def _dynamic_prompt(text: str, rng: random.Random, depth: int = 0) -> str:
    """``text`` without comments, and with one of the choices of each {a|b} (formatUtil.ts)."""
    if not re.search(r"[{/\\]", text):
        return text
    text = re.sub(r"/\*[\s\S]*?\*/|//[^\n\r\u2028\u2029]*", "", text)
    made: List[str] = []
    choices: List[str] = []
    braces = 0
    for token in re.findall(r"\\[\s\S]?|[^\\]", text) if depth < _MOST_NESTED else [text]:
        if not braces:
            made.append("" if token == "{" else token)
            choices = [""]
        elif token == "|" and braces == 1:
            choices.append("")
        elif token != "}" or braces > 1:
            choices[-1] += token
        if braces == 1 and token == "}":
            made.append(_dynamic_prompt(choices[int(rng.random() * len(choices))], rng, depth + 1))
        braces += 1 if token == "{" else -1 if token == "}" and braces else 0
    if braces:  # never closed: all that follows is the choice
        made.append(_dynamic_prompt(choices[int(rng.random() * len(choices))], rng, depth + 1))
    return re.sub(r"\\([{}|])", r"\1", "".join(made))


def _missing_classes(nodes: Sequence[_Node]) -> ConversionError:
    """Names every node whose class the server does not have, and where that class comes from."""
    told: Dict[str, None] = {}  # a subgraph may be there several times
    for node in nodes:
        package, version = (
            node.properties.get("cnr_id") or node.properties.get("aux_id"),
            node.properties.get("ver"),
        )
        origin = ", from the package %s" % one_line(package, 60) if isinstance(package, str) else ""
        origin += " " + one_line(version, 12) if origin and isinstance(version, str) else ""
        told["%s%s" % (node, origin)] = None
    remedy = "Install the custom nodes that are missing (ComfyUI-Manager finds them), or mute these nodes in ComfyUI."
    if any(re.match("workflow[>/]", node.type) for node in nodes):
        remedy += (
            " workflow>... is a group node: open the file in ComfyUI, convert it and save again."
        )
    return ConversionError(
        "The server does not have the classes of %s:\n%s"
        % (plural(len(told), "node"), "\n".join(told)),
        remedy,
    )


def convert_workflow(
    workflow: Mapping[str, Any],
    object_info: Mapping[str, Any],
    *,
    rng: Optional[random.Random] = None,
    now: Optional[datetime.datetime] = None,
) -> Conversion:
    """The API-format prompt that ComfyUI's frontend exports from ``workflow``, a document in UI format.

    ``object_info`` is the server's. ``rng`` chooses in texts like ``{day|night}``; ``now`` is the time
    for ``%date:...%`` in the names of files. The arguments are not changed; values are shared with them.

    Raises ConversionError for what cannot be converted. It names every node whose class the server
    does not have, or the node or subgraph that is broken.
    """

    if not isinstance(workflow, dict) or not isinstance(workflow.get("nodes"), list):
        raise ConversionError("This is no workflow in UI format: it has no list of nodes.")
    export = _Export(
        _load(workflow, object_info), rng or random.Random(), now or datetime.datetime.now()
    )
    return Conversion(
        export.prompt, tuple(dict.fromkeys(export.warnings)), export.places, export.primitives
    )
