"""The inputs of a class as ComfyUI's frontend makes them: which have a widget, and its first value.

Everything here follows from /object_info alone; nothing here knows a workflow.
"""

from __future__ import annotations

import re
from typing import (
    Any,
    Collection,
    Container,
    Dict,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
)

from comfyui_runner.text import JsonObject, as_dict, as_list

#: JavaScript's undefined: no value at all. Such an input is left out of the prompt.
UNDEFINED: Any = object()

# The types of inputs that change with what is connected or chosen (dynamicWidgets.ts).
DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
AUTOGROW = "COMFY_AUTOGROW_V3"
MATCH_TYPE = "COMFY_MATCHTYPE_V3"

#: A widget that a custom node's script makes: what the file has for it is sent as it is.
CUSTOM = "CUSTOM"

#: The types of input that have a widget, and its first value where the spec has no default
#: (scripts/widgets.ts and what it imports; getCustomWidgets of the extensions).
FIRST_VALUES: Mapping[str, Any] = {
    "INT": 0,
    "FLOAT": 0,
    "BOOLEAN": False,
    "STRING": "",
    "MARKDOWN": "",
    "TEXTAREA": "",
    "COMBO": None,
    DYNAMIC_COMBO: None,
    CUSTOM: UNDEFINED,
    "COLOR": "#000000",
    "COLORS": [],
    "RANGE": {"min": 0.0, "max": 1.0},
    "CURVE": {"points": [[0, 0], [1, 1]], "interpolation": "monotone_cubic"},
    "BOUNDING_BOX": {"x": 0, "y": 0, "width": 512, "height": 512},
    "BOUNDING_BOXES": [],
    "CHART": {},
    "COMPOSITOR": {},
    "GALLERIA": [],
    "IMAGECOMPARE": ["", ""],
    "IMAGEUPLOAD": "image",
    "PAINTER": "",
    "WEBCAM": "",
    "AUDIO_UI": "",
    "AUDIOUPLOAD": "",
    "AUDIO_RECORD": "",
    "LOAD_3D": "",
    "LOAD_3D_ADVANCED": "",
    "PREVIEW_3D": "",
    "VIDEO_EDIT": {
        "trim": {"start_time": 0, "duration": 0},
        "crop": {"x": 0, "y": 0, "width": 0, "height": 0},
    },
}

#: Widgets whose value the browser makes when it queues, from a microphone, a camera or a 3D view.
MADE_IN_BROWSER = ("AUDIO_RECORD", "WEBCAM", "LOAD_3D", "LOAD_3D_ADVANCED")

#: Widgets that ignore what widgets_values has for them.
IGNORE_STORED_VALUE = (*MADE_IN_BROWSER, "AUDIO_UI", "PREVIEW_3D", "index")

#: Widgets that widgets_values has no value of (widget.serialize is false).
_NOT_IN_WORKFLOW = ("AUDIO_UI", "IMAGECOMPARE")

#: Widgets that are not sent (widget.options.serialize is false).
_NOT_IN_PROMPT = ("AUDIO_UI", "AUDIOUPLOAD", "IMAGEUPLOAD")

#: Widgets that can have a control_after_generate beside them.
_CONTROLLABLE = ("INT", "FLOAT", "COMBO", "MULTISELECT")

#: The inputs that extensions add to a class
#: (extensions/core: uploadAudio.ts, load3d*.ts, saveMesh.ts).
_ADDED_INPUTS: Mapping[str, Tuple[str, str]] = {
    "LoadAudio": ("audioUI", "AUDIO_UI"),
    "SaveAudio": ("audioUI", "AUDIO_UI"),
    "PreviewAudio": ("audioUI", "AUDIO_UI"),
    "SaveAudioMP3": ("audioUI", "AUDIO_UI"),
    "SaveAudioOpus": ("audioUI", "AUDIO_UI"),
    "SaveAudioAdvanced": ("audioUI", "AUDIO_UI"),
    "Preview3D": ("image", "PREVIEW_3D"),
    "SaveGLB": ("image", "PREVIEW_3D"),
    "Load3DAdvanced": ("viewport_state", "LOAD_3D_ADVANCED"),
}

#: The options that give a node a button to upload a picture (extensions/core/uploadImage.ts).
_UPLOAD_OPTIONS = ("image_upload", "video_upload", "animated_image_upload")


class InputSpec(NamedTuple):
    """What /object_info says about an input: ``[type, options]``."""

    type: str
    options: JsonObject

    @property
    def widget_type(self) -> str:
        """The type whose widget the input gets; its socket may take more (FLOAT,INT)."""
        explicit = self.options.get("widgetType")
        if explicit is None:
            return self.type
        if isinstance(explicit, str) and explicit in FIRST_VALUES:
            return explicit
        # A widget of a custom node's script: it may draw one of a known type in a way of its own.
        if self.type in FIRST_VALUES:
            return self.type
        return CUSTOM

    @property
    def has_widget(self) -> bool:
        return self.widget_type in FIRST_VALUES and not self.options.get("forceInput")


def parse_input_spec(value: Any) -> InputSpec:
    type_, options, *_ = [*as_list(value), None, None]
    if isinstance(type_, list):  # the older form of a combo: its choices instead of a type
        return InputSpec("COMBO", {**as_dict(options), "options": type_})
    return InputSpec(str(type_), as_dict(options))


def parse_input_specs(inputs: Any) -> Iterator[Tuple[str, InputSpec]]:
    """The inputs of ``{"required": {name: spec}, "optional": {name: spec}}``, by name."""
    groups = as_dict(inputs)
    for group_name in ("required", "optional"):
        specs = as_dict(groups.get(group_name))
        for name, spec in specs.items():
            yield name, parse_input_spec(spec)


def javascript_text(value: Any) -> str:
    """A value as JavaScript's String() writes it; a text area shows it so. None becomes ""."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(javascript_text(item) for item in value)
    if isinstance(value, dict):
        return "[object Object]"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)


# ------------------------------------------------------------------------------------------------
# The inputs of a class
# ------------------------------------------------------------------------------------------------


class ClassInputs(NamedTuple):
    """The inputs of a class as /object_info lists them, and the order of their creation."""

    specs: Mapping[str, InputSpec]
    creation_order: Sequence[str]
    optional: Collection[str]


def inputs_of_class(
    class_type: str, definition: JsonObject, custom_inputs: Container[str] = ()
) -> ClassInputs:
    """The inputs that a new node of a class has; ``definition`` is what /object_info has of it.

    ``custom_inputs`` are those for which a custom node's script makes a widget.
    """
    inputs = as_dict(definition.get("input"))
    required = dict(parse_input_specs({"required": inputs.get("required")}))
    optional = dict(parse_input_specs({"optional": inputs.get("optional")}))
    for name, spec in optional.items():
        if spec.options.get("defaultInput"):  # nodeDefStore.ts: the older word for forceInput
            optional[name] = spec._replace(options={**spec.options, "forceInput": True})
    _add_browser_inputs(class_type, required)

    specs = {**required, **optional}
    for name, spec in specs.items():
        if name in custom_inputs:
            specs[name] = spec._replace(options={**spec.options, "widgetType": CUSTOM})
    order = as_dict(definition.get("input_order"))
    names = [name for name in as_list(order.get("required")) if name in required]
    names += [name for name in as_list(order.get("optional")) if name in optional]
    names += specs  # those that input_order does not list come last
    creation_order = list(dict.fromkeys(names))
    return ClassInputs(specs, creation_order, list(optional))


def _add_browser_inputs(class_type: str, required: Dict[str, InputSpec]) -> None:
    """Adds the inputs that only the browser needs: players, viewers, upload buttons."""
    if class_type in _ADDED_INPUTS:
        name, type_ = _ADDED_INPUTS[class_type]
        required[name] = InputSpec(type_, {})
    audio = required.get("audio")
    if audio and audio.options.get("audio_upload") is True:
        required["upload"] = InputSpec("AUDIOUPLOAD", {})
    if any(_takes_picture_upload(spec) for spec in required.values()):
        required["upload"] = InputSpec("IMAGEUPLOAD", {})


def _takes_picture_upload(spec: InputSpec) -> bool:
    has_upload_option = any(spec.options.get(key) is True for key in _UPLOAD_OPTIONS)
    return spec.type == "COMBO" and has_upload_option


def output_types_of_all(object_info: JsonObject) -> Set[str]:
    """The types of all outputs of the server's classes: an input of such a type is a socket."""
    types: Set[str] = set()
    for definition in object_info.values():
        outputs = as_list(as_dict(definition).get("output"))
        types.update(output for output in outputs if isinstance(output, str))
    return types


def can_have_custom_widget(socket_type: Any, output_types: Container[str]) -> bool:
    """Whether an input may have a widget of a custom node's script, by its type.

    Nothing can be linked to such an input: no class has an output of its type. Inputs of several
    types (A,B) and of any type (*) have no widgets of scripts.
    """
    is_one_type = isinstance(socket_type, str) and bool(re.fullmatch(r"[^,*]+", socket_type))
    return is_one_type and socket_type not in output_types


def forced_positions(inputs: ClassInputs, widget_names: Container[str]) -> List[bool]:
    """Which of the ``widgets_values`` of a file from before frontend 1.16 are dummies.

    Inputs with forceInput had a value there, without a meaning (litegraphUtil.ts,
    migrateWidgetsValues). One entry for each value.
    """
    forced = []
    for name, spec in inputs.specs.items():
        force_input = bool(spec.options.get("forceInput"))
        if not force_input and name not in widget_names:
            continue
        forced.append(force_input)
        if spec.options.get("control_after_generate"):
            forced.append(False)
    return forced


# ------------------------------------------------------------------------------------------------
# Widgets
# ------------------------------------------------------------------------------------------------


class Widget(NamedTuple):
    """A widget of a node.

    ``type`` is that of its input, or "button", "control", "part" and the like. The two flags are
    two in the frontend, too: widget.serialize and widget.options.serialize.
    """

    name: str
    type: str
    in_workflow: bool = True  # widgets_values has its value
    in_prompt: bool = True
    choices: Sequence[Any] = ()  # of a combo
    options: Mapping[str, Any] = {}
    has_dynamic_prompt: bool = False  # one of {day|night} is chosen when it is sent
    format_of: str = ""  # the combo that has brought it


#: A widget and its first value.
NewWidget = Tuple[Widget, Any]


def create_widgets(name: str, spec: InputSpec, names: Container[str]) -> Iterator[NewWidget]:
    """The widgets of the input ``name``, in their order.

    ``names`` are the names of the widgets that the node already has.
    """
    if spec.widget_type == "LOAD_3D" and "model_file" in names:
        yield Widget("upload 3d model", "button"), "upload3dmodel"
        yield Widget("upload extra resources", "button"), "uploadExtraResources"
        yield Widget("clear", "button"), "clear"
    widget, value = _create_main_widget(name, spec)
    yield widget, value
    yield from _create_parts(widget, value)
    yield from _create_controls(widget)


def _create_main_widget(name: str, spec: InputSpec) -> NewWidget:
    """The widget of an input itself, without its parts and controls."""
    type_, options = spec.widget_type, spec.options
    choices = as_list(options.get("options"))
    value = options.get("default")
    if value is None:
        value = FIRST_VALUES[type_]

    if type_ == DYNAMIC_COMBO:
        choices = _dynamic_combo_keys(choices)
        value = next(iter(choices), UNDEFINED)
    elif type_ == "COMBO" and options.get("multi_select"):
        type_, value = "MULTISELECT", []
    elif type_ == "COMBO" and not value:
        value = _first_choice(choices, options)

    widget = Widget(
        name,
        type_,
        in_workflow=type_ not in _NOT_IN_WORKFLOW,
        in_prompt=type_ not in _NOT_IN_PROMPT,
        choices=choices,
        options=options,
    )
    return widget, value


def _first_choice(choices: Sequence[Any], options: JsonObject) -> Any:
    """What a combo without a default begins with."""
    if choices:
        return choices[0]
    if options.get("remote"):  # useRemoteWidget.ts shows this until the choices have come
        return "Loading..."
    return UNDEFINED


def _create_parts(widget: Widget, value: Any) -> Iterator[NewWidget]:
    """The number fields and buttons that come with some widgets."""
    if widget.type == "BOUNDING_BOX":
        for part in ("x", "y", "width", "height"):
            yield Widget(part, "part", in_prompt=False), as_dict(value).get(part)
    elif widget.type == "AUDIO_RECORD":
        yield Widget("record", "button", in_prompt=False), ""
    elif widget.type == "COMBO" and widget.options.get("remote"):  # useRemoteWidget.ts
        yield Widget("Auto-refresh after generation", "button", in_prompt=False), False
        if as_dict(widget.options["remote"]).get("refresh_button"):
            yield Widget("refresh", "button"), "refresh"


def _create_controls(widget: Widget) -> Iterator[NewWidget]:
    """The control_after_generate of a widget, and the filter of a combo (scripts/widgets.ts)."""
    control = widget.options.get("control_after_generate")
    if widget.type == "INT" and control is None:  # useIntWidget.ts
        control = widget.name in ("seed", "noise_seed")
    if not control or widget.type not in _CONTROLLABLE:
        return
    name = "control_after_generate"
    if isinstance(control, str):
        name = control
    yield Widget(name, "control", in_prompt=False), "fixed"
    if widget.type == "COMBO":
        yield Widget("control_filter_list", "control", in_prompt=False), ""


# ------------------------------------------------------------------------------------------------
# Dynamic combos and autogrow groups (core/graph/widgets/dynamicWidgets.ts)
# ------------------------------------------------------------------------------------------------


def _dynamic_combo_keys(options: Sequence[Any]) -> List[str]:
    """The keys of a dynamic combo's options, in JavaScript's order: whole numbers come first."""

    def javascript_order(key: str) -> Tuple[int, int]:
        if key.isascii() and key.isdigit():
            return 0, int(key)
        return 1, 0

    keys = [str(as_dict(option).get("key")) for option in options]
    return sorted(keys, key=javascript_order)


def inputs_of_option(combo: Widget, value: Any) -> Optional[List[Tuple[str, InputSpec]]]:
    """The inputs that a dynamic combo has while ``value`` is chosen; None for no option of it."""
    if not value:
        return None
    key = str(value)
    if isinstance(value, bool):
        key = key.lower()  # as JavaScript writes it
    options = {}
    for option in map(as_dict, as_list(combo.options.get("options"))):
        options[str(option.get("key"))] = option
    if key not in options:
        return None
    inputs = parse_input_specs(options[key].get("inputs"))
    return [(f"{combo.name}.{name}", spec) for name, spec in inputs]


def widgets_of_format(combo: Widget, value: Any) -> Iterator[NewWidget]:
    """The widgets that a combo with ``formats`` brings while ``value`` is chosen.

    VideoHelperSuite's: VHS.core.js, addFormatWidgets.
    """
    formats = as_dict(combo.options.get("formats"))
    if not isinstance(value, str):
        return
    for entry in as_list(formats.get(value)):
        name, *spec_parts = as_list(entry) or [None]  # name, type, options
        spec = parse_input_spec(spec_parts)
        if isinstance(name, str) and spec.has_widget:
            widget, first_value = _create_main_widget(name, spec)
            yield widget._replace(format_of=combo.name), first_value


class AutogrowGroup:
    """Inputs of which there is always one more than are linked.

    A place in the group has one input or several; the template has their specs. It also has the
    names of all places, or a prefix: then a place's name is the prefix and a number.
    """

    def __init__(self, name: str, template: JsonObject) -> None:
        self.name = name
        self.specs = list(parse_input_specs(template.get("input")))
        self.names: Optional[Sequence[str]] = template.get("names")
        self.prefix = template.get("prefix", "")
        self.least = template.get("min", 1)
        self.most = template.get("max", 100)
        if self.names:
            self.most = len(self.names)

    @property
    def has_rows(self) -> bool:
        """Whether a place has several inputs."""
        return len(self.specs) > 1

    def input_name(self, key: str, place: int) -> str:
        """The name of the input ``key`` at a place."""
        if self.names:
            return f"{self.name}.{self.names[place]}"
        if self.has_rows:
            return f"{self.name}.{key}{place}"
        return f"{self.name}.{self.prefix}{place}"

    def place_of(self, own_name: str) -> Optional[int]:
        """The place of an input, by its name after that of the group; None if it has no place."""
        if self.names and own_name in self.names:
            return self.names.index(own_name)
        digits = re.search("[0-9]{1,9}$", own_name)
        if digits and not self.names:
            return int(digits.group())
        return None
