"""A workflow in UI format becomes the prompt that ComfyUI's own frontend exports from it."""

from __future__ import annotations

import copy
import datetime
import gzip
import json
import os
import random
import time
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comfyui_runner.documents import Conversion, Document
from comfyui_runner.edits import apply_edits, parse_set, with_values
from comfyui_runner.errors import WorkflowError
from comfyui_runner.extras.conversion import convert_workflow
from comfyui_runner.extras.graph import ConversionError, LGraph, create_template
from comfyui_runner.loading import Loaded, edited_workflow, make_prompt
from comfyui_runner.nodes import InputRef, input_spec

FIXTURES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fixtures", "conversion")
Json = Dict[str, Any]

with open(os.path.join(FIXTURES, "object_info.json"), encoding="utf-8") as file:
    #: What a ComfyUI 0.33.0 said of the classes that these tests use.
    OBJECT_INFO: Json = json.load(file)


def node(
    node_id: Any,
    type_: str,
    inputs: Optional[Mapping[str, Any]] = None,
    outputs: Sequence[Any] = (),
    values: Any = None,
    mode: int = 0,
    **more: Any,
) -> Json:
    """A node of a file. ``inputs``: {name: link}; ``outputs``: (type, link, link, ...) each."""
    made: Json = {"id": node_id, "type": type_, "mode": mode, "properties": {}, **more}
    made["inputs"] = [{"name": name, "type": "*", "link": link} for name, link in (inputs or {}).items()]
    made["outputs"] = [{"name": "", "type": output[0], "links": list(output[1:])} for output in outputs]
    if values is not None:
        made["widgets_values"] = values
    return made


def flow(nodes: Sequence[Any], *links: Sequence[Any], subgraphs: Sequence[Json] = (), **more: Any) -> Json:
    """A file. A link: (id, from node, from slot, to node, to slot)."""
    made: Json = {"version": 0.4, "nodes": list(nodes), "links": [[*link, "*"] for link in links]}
    made.update({"last_node_id": 30, "last_link_id": 99, **more})
    if subgraphs:
        made["definitions"] = {"subgraphs": list(subgraphs)}
    return made


def subgraph(key: str, nodes: Sequence[Any], *links: Sequence[Any], inputs: Any = (), outputs: Any = ()) -> Json:
    """A subgraph. Inputs and outputs: (name, type, link, link, ...)."""
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot")
    return {
        "id": key, "version": 1, "name": "Sub " + key, "nodes": list(nodes), "groups": [], "config": {}, "extra": {},
        "inputNode": {"id": -10, "bounding": [0, 0, 1, 1]}, "outputNode": {"id": -20, "bounding": [0, 0, 1, 1]},
        "links": [{**dict(zip(keys, link)), "type": "*"} for link in links], "widgets": [],
        "inputs": [{"id": key + s[0], "name": s[0], "type": s[1], "linkIds": list(s[2:])} for s in inputs],
        "outputs": [{"id": key + s[0], "name": s[0], "type": s[1], "linkIds": list(s[2:])} for s in outputs],
    }  # fmt: skip


def converted(workflow: Any, **options: Any) -> Dict[str, Json]:
    """{node: its inputs} of the prompt; the arguments must not change."""
    before = copy.deepcopy(workflow)
    prompt = convert_workflow(workflow, OBJECT_INFO, **options).prompt
    assert workflow == before
    return {node_id: made["inputs"] for node_id, made in prompt.items()}


def inputs_of(made: Json, **options: Any) -> Json:
    """The inputs of the one node of a workflow."""
    return converted(flow([made]), **options)["1"]


def refusal(workflow: Any) -> ConversionError:
    with pytest.raises(ConversionError) as caught:
        convert_workflow(workflow, OBJECT_INFO)
    assert caught.value.exit_status == 3
    return caught.value


def warnings(workflow: Any) -> Tuple[str, ...]:
    return convert_workflow(workflow, OBJECT_INFO).warnings


LOAD = node(1, "LoadImage", {}, [("IMAGE", 1), ("MASK",)], ["a.png", "image"])
KSAMPLER = [5, "fixed", 20, 8.5, "euler", "normal", 0.75]


# ------------------------------------------------------------------------------------------------
# What the frontend exported
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", sorted(n for n in os.listdir(FIXTURES) if n.endswith(".json") and n != "object_info.json")
)
def test_a_prompt_is_the_one_that_the_frontend_exported(name: str) -> None:
    with open(os.path.join(FIXTURES, name), encoding="utf-8") as file:
        pair = json.load(file)
    assert convert_workflow(pair["workflow"], OBJECT_INFO).prompt == pair["prompt"]


#: Workflows made by hand, and what frontend 1.49.6 exported from them.
CASES: Dict[str, Tuple[Json, Dict[str, Json]]] = {
    "links in the newer encoding": (
        {
            "version": 1,
            "state": {"lastNodeId": 2, "lastLinkId": 1, "lastGroupId": 0, "lastRerouteId": 0},
            "nodes": [LOAD, node(2, "PreviewImage", {"images": 1})],
            "links": [{"id": 1, "origin_id": 1, "origin_slot": 0, "target_id": 2, "target_slot": 0, "type": "IMAGE"}],
        },
        {"1": {"image": "a.png"}, "2": {"images": ["1", 0]}},
    ),
    "native reroutes lie on a link": (
        flow(
            [LOAD, node(2, "PreviewImage", {"images": 1})],
            (1, 1, 0, 2, 0),
            extra={
                "linkExtensions": [{"id": 1, "parentId": 2}],
                "reroutes": [
                    {"id": 1, "pos": [0, 0], "linkIds": [1]},
                    {"id": 2, "parentId": 1, "pos": [9, 9], "linkIds": [1]},
                ],
            },
        ),
        {"1": {"image": "a.png"}, "2": {"images": ["1", 0]}},
    ),
    "reroute nodes hand on": (
        flow(
            [
                LOAD,
                node(2, "Reroute", {"": 1}, [("IMAGE", 2)]),
                node(3, "Reroute", {"": 2}, [("IMAGE", 3)]),
                node(4, "PreviewImage", {"images": 3}),
                node(5, "Reroute", {"": None}, [("*", 4)]),
                node(6, "PreviewImage", {"images": 4}),
                node(7, "Note", values=["hello"]),
                node(8, "MarkdownNote", values=["# hello"]),
            ],
            (1, 1, 0, 2, 0),
            (2, 2, 0, 3, 0),
            (3, 3, 0, 4, 0),
            (4, 5, 0, 6, 0),
        ),
        {"1": {"image": "a.png"}, "4": {"images": ["1", 0]}, "6": {}},
    ),
    "a widget keeps its value while its link leads to nothing that runs": (
        flow(
            [
                node(1, "PrimitiveInt", {}, [("INT", 1)], [7, "fixed"], mode=2),
                node(2, "EmptyLatentImage", {"width": 1}, [("LATENT",)], [64, 128, 2]),
                node(3, "PrimitiveInt", {}, [("INT", 2)], [9, "fixed"]),
                node(4, "EmptyLatentImage", {"width": 2}, [("LATENT",)], [64, 128, 2]),
            ],
            (1, 1, 0, 2, 0),
            (2, 3, 0, 4, 0),
        ),
        {
            "2": {"width": 64, "height": 128, "batch_size": 2},
            "3": {"value": 9},
            "4": {"width": ["3", 0], "height": 128, "batch_size": 2},
        },
    ),
    "a primitive's value is copied, muted or not": (
        flow(
            [
                node(1, "PrimitiveNode", {}, [("INT", 1, 2)], [100, "fixed"], mode=2),
                node(2, "EmptyLatentImage", {"width": 1, "height": 2}, [("LATENT",)], [64, 128, 2]),
                node(3, "PrimitiveNode", {}, [("FLOAT", 3)]),
                node(4, "KSampler", {"cfg": 3}, [("LATENT",)], KSAMPLER),
                node(5, "PrimitiveNode", {}, [("INT",)], [1]),
                node(6, "PrimitiveNode", {}, [("IMAGE", 4)], ["text"]),
                node(7, "PreviewImage", {"images": 4}),
                node(8, "PrimitiveNode", {}, [("FLOAT", 5)], [-3.5]),
                node(9, "KSampler", {"denoise": 5}, [("LATENT",)], KSAMPLER),
            ],
            (1, 1, 0, 2, 0),
            (2, 1, 0, 2, 1),
            (3, 3, 0, 4, 0),
            (4, 6, 0, 7, 0),
            (5, 8, 0, 9, 0),
        ),
        {
            "2": {"width": 104, "height": 104, "batch_size": 2},
            "4": {"seed": 5, "steps": 20, "cfg": 8.5, "sampler_name": "euler", "scheduler": "normal", "denoise": 0.75},
            "7": {},
            "9": {"seed": 5, "steps": 20, "cfg": 8.5, "sampler_name": "euler", "scheduler": "normal", "denoise": 0},
        },
    ),
    "bypassed: the same slot, the same type, a type that fits, any": (
        flow(
            [
                LOAD,
                node(2, "ImageBatch", {"image1": 1, "image2": 8}, [("IMAGE", 2)], mode=4),
                node(3, "PreviewImage", {"images": 2}),
                node(4, "VAEEncode", {"pixels": 3}, [("LATENT", 4)], mode=4),
                node(5, "VAEDecode", {"samples": 4}, [("IMAGE",)]),
                node(6, "PreviewAny", {"source": 5}, [("STRING",)]),
                node(7, "MaskToImage", {"mask": 6}, [("IMAGE", 5)], mode=4),
                node(8, "PreviewAny", {"source": 7}, [("STRING",)]),
                node(9, "KSampler", {"latent_image": 9, "model": 10}, [("LATENT", 11)], KSAMPLER, mode=4),
                node(10, "EmptyLatentImage", {}, [("LATENT", 9)], [64, 128, 2]),
                node(11, "VAEDecode", {"samples": 11}, [("IMAGE",)]),
            ],
            (1, 1, 0, 2, 0),
            (2, 2, 0, 3, 0),
            (3, 1, 0, 4, 0),
            (4, 4, 0, 5, 0),
            (5, 7, 0, 6, 0),
            (6, 1, 1, 7, 0),
            (7, 4, 0, 8, 0),
            (9, 10, 0, 9, 3),
            (11, 9, 0, 11, 0),
        ),
        {
            "1": {"image": "a.png"},
            "3": {"images": ["1", 0]},
            "5": {},
            "6": {"source": ["1", 1]},
            "8": {"source": ["1", 0]},
            "10": {"width": 64, "height": 128, "batch_size": 2},
            "11": {"samples": ["10", 0]},
        },
    ),
    "a matching type is narrowed to what is connected": (
        flow(
            [
                LOAD,
                node(2, "VAEDecode", {"samples": 2}, [("IMAGE", 3)], mode=4),
                node(3, "ComfySwitchNode", {"on_false": 1, "on_true": 3, "switch": None}, [("*", 4)], [True]),
                node(4, "EmptyLatentImage", {}, [("LATENT", 2)], [64, 128, 2]),
                node(5, "ResizeImageMaskNode", {"input": 4}, [("*", 5)], mode=4),
                node(6, "PreviewImage", {"images": 5}),
                node(7, "ComfySwitchNode", {"on_true": 6}, [("*",)], [True]),
            ],
            (1, 1, 0, 3, 0),
            (2, 4, 0, 2, 0),
            (3, 2, 0, 3, 1),
            (4, 3, 0, 5, 0),
            (5, 5, 0, 6, 0),
            (6, 2, 0, 7, 1),
        ),
        {
            "1": {"image": "a.png"},
            "3": {"on_false": ["1", 0], "switch": True},
            "4": {"width": 64, "height": 128, "batch_size": 2},
            "6": {"images": ["3", 0]},
            "7": {"on_true": ["4", 0], "switch": True},
        },
    ),
    "autogrow: the sockets come back as far as they are linked": (
        flow(
            [
                LOAD,
                node(
                    2,
                    "BatchImagesNode",
                    {"images.image0": 1, "images.image1": 2, "images.image2": 3, "images.image3": None},
                    [("IMAGE",)],
                ),
                node(3, "StringFormat", {"values.b": 4, "values.zz": 5}, [("STRING",)], ["{a}"]),
                node(
                    4,
                    "TextEncodeJoyImageEdit",
                    {"images.image5": 6, "images.image0": 7},
                    [("CONDITIONING", 8)],
                    ["x"],
                    mode=4,
                ),
                node(5, "PreviewAny", {"source": 8}),
            ],
            (1, 1, 0, 2, 0),
            (2, 1, 0, 2, 1),
            (3, 1, 0, 2, 2),
            (4, 1, 0, 3, 1),
            (5, 1, 0, 3, 0),
            (6, 1, 0, 4, 1),
            (7, 1, 1, 4, 0),
            (8, 4, 0, 5, 0),
        ),
        {
            "1": {"image": "a.png"},
            "2": {"images.image0": ["1", 0], "images.image1": ["1", 0], "images.image2": ["1", 0]},
            "3": {"f_string": "{a}", "values.b": ["1", 0], "values.zz": ["1", 0]},
            "5": {},
        },
    ),
    "a dynamic combo has the inputs of its option": (
        flow(
            [
                LOAD,
                node(
                    2,
                    "ResizeImageMaskNode",
                    {"input": 1, "resize_type.width": None, "resize_type.multiplier": 2},
                    [("*",)],
                    ["scale by multiplier", 1.5, "area"],
                ),
                node(3, "ResizeImageMaskNode", {"input": 3}, [("*",)], [None]),
                node(4, "ResizeImageMaskNode", {"input": 4}, [("*",)], ["no such option", "bicubic"]),
                node(5, "PrimitiveFloat", {}, [("FLOAT", 2)], [2.5]),
                node(
                    6,
                    "GeminiNanoBanana2V2",
                    {"prompt": None, "model.images.image_1": 5, "model.images.image_2": 6, "model.files": None},
                    [("IMAGE",)],
                    ["p", "Nano Banana 2 Lite", "1:1", "1K", "HIGH", 42, "fixed", "IMAGE", "be brief"],
                ),
            ],
            (1, 1, 0, 2, 0),
            (2, 5, 0, 2, 2),
            (3, 1, 0, 3, 0),
            (4, 1, 0, 4, 0),
            (5, 1, 0, 6, 1),
            (6, 1, 0, 6, 2),
        ),
        {
            "1": {"image": "a.png"},
            "2": {
                "resize_type": "scale by multiplier",
                "resize_type.multiplier": ["5", 0],
                "scale_method": "area",
                "input": ["1", 0],
            },
            "3": {
                "resize_type": "scale dimensions",
                "resize_type.width": 512,
                "resize_type.height": 512,
                "resize_type.crop": "center",
                "scale_method": "area",
                "input": ["1", 0],
            },
            "4": {"resize_type": "no such option", "scale_method": "bicubic", "input": ["1", 0]},
            "5": {"value": 2.5},
            "6": {
                "prompt": "p",
                "model": "Nano Banana 2 Lite",
                "model.aspect_ratio": "1:1",
                "model.resolution": "1K",
                "model.thinking_level": "HIGH",
                "seed": 42,
                "response_modalities": "IMAGE",
                "system_prompt": "be brief",
                "temperature": 1,
                "top_p": 0.95,
                "model.images.image_1": ["1", 0],
                "model.images.image_2": ["1", 0],
            },
        },
    ),
    "an older file: converted widgets, dummies of forced inputs, sockets that are gone": (
        flow(
            [
                {
                    **node(1, "KSampler", {}, [("LATENT",)], KSAMPLER),
                    "inputs": [
                        {"name": "cfg", "type": "FLOAT", "link": 1, "widget": {"name": "cfg"}},
                        {"name": "gone", "type": "FLOAT", "link": 2, "widget": {"name": "gone"}},
                        {"name": "gone too", "type": "FLOAT", "link": 3, "widget": {"name": "gone too"}},
                        {"name": "extra", "type": "FLOAT", "link": 4},
                    ],
                },
                node(2, "PrimitiveFloat", {}, [("FLOAT", 1, 2, 3, 4)], [2.5]),
                node(3, "SamplerCustom", {}, [("LATENT",)], [True, 4, "fixed", 2.5]),
                node(4, "MergeMeshes", {"meshes.mesh0": 5}, [("MESH",)]),
            ],
            (1, 2, 0, 1, 0),
            (2, 2, 0, 1, 1),
            (3, 2, 0, 1, 2),
            (4, 2, 0, 1, 3),
            (5, 2, 0, 4, 0),
        ),
        {
            "1": {
                "seed": 5,
                "steps": 20,
                "cfg": ["2", 0],
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 0.75,
                "gone too": ["2", 0],
                "extra": ["2", 0],
            },
            "2": {"value": 2.5},
            "3": {"add_noise": True, "noise_seed": 4, "cfg": 2.5},
            "4": {"meshes.mesh0": ["2", 0]},
        },
    ),
    "widgets of the browser": (
        flow(
            [
                node(1, "LoadAudio", {}, [("AUDIO",)], ["a.wav", "", "b"]),
                node(2, "RecordAudio", {}, [("AUDIO",)], ["x", "y"]),
                node(3, "ImageCropV2", {}, [("IMAGE",)], [{"x": 1, "y": 2, "width": 3, "height": 4}, 5, 6, 7, 8]),
                node(4, "ImageCompare", {}, []),
                node(5, "CurveEditor", {}, [("CURVE",)]),
                node(6, "CustomCombo", {}, [("STRING",), ("INT",)], ["b", 9, "a", "b", ""]),
                node(7, "CustomCombo", {}, [("STRING",), ("INT",)], ["c", 0, "", "b"]),
                node(8, "SaveGLB", {}, [], ["3d/x", "y"]),
                node(9, "CLIPTextEncode", {}, [("CONDITIONING",)], [None]),
                node(10, "KSampler", {}, [("LATENT",)], [1, "fixed", 20, 8, None, None, 1]),
                node(11, "CreateBoundingBoxes", {}, [("*",)]),
            ]
        ),
        {
            "1": {"audio": "a.wav"},
            "2": {"audio": ""},
            "3": {"crop_region": {"x": 1, "y": 2, "width": 3, "height": 4}},
            "4": {"compare_view": {"__value__": ["", ""]}},
            "5": {"curve": {"points": [[0, 0], [1, 1]], "interpolation": "monotone_cubic"}},
            "6": {"choice": "b", "index": 1, "option1": "a", "option2": "b", "option3": ""},
            "7": {"choice": "c", "index": -1, "option1": ""},
            "8": {"filename_prefix": "3d/x", "image": ""},
            "9": {"text": ""},
            "10": {"seed": 1, "steps": 20, "cfg": 8, "sampler_name": "euler", "scheduler": "simple", "denoise": 1},
            "11": {
                "width": 1024,
                "height": 1024,
                "editor_state": {"__value__": []},
                "last_incoming": {"__value__": []},
            },
        },
    ),
    "names of files": (
        flow(
            [
                node(1, "SaveImage", {}, [], ["%Empty.width%_%KSampler.seed%_%EmptyLatentImage.height%"]),
                node(2, "SaveImage", {}, [], ["%width%/%No.such%_%Empty.nothing%_%a.b.c%"]),
                node(3, "EmptyLatentImage", {}, [("LATENT",)], [64, 128.0, 2], title="Empty"),
                node(4, "s", {}, [], title="Host"),
                node(5, "SaveImage", {}, [], ["%Inside.text%_%Switch.switch%"]),
                node(6, "ComfySwitchNode", {}, [("*",)], [True], title="Switch"),
            ],
            subgraphs=[
                subgraph("s", [node(7, "CLIPTextEncode", {}, [("CONDITIONING",)], ["a/b:c\n"], title="Inside")])
            ],
        ),
        {
            "1": {"filename_prefix": "64_%KSampler.seed%_128"},
            "2": {"filename_prefix": "%width%/%No.such%_%Empty.nothing%_%a.b.c%"},
            "3": {"width": 64, "height": 128, "batch_size": 2},
            "5": {"filename_prefix": "a_b_c__true"},
            "6": {"switch": True},
            "4:7": {"text": "a/b:c\n"},
        },
    ),
    "a subgraph is written out": (
        flow(
            [
                LOAD,
                node(2, "s", {"text": None, "image": 1}, [("IMAGE", 2)], ["hello"]),
                node(3, "PreviewImage", {"images": 2}),
                node(4, "s", {"image": None, "text": 3}, [("IMAGE",)], [None]),
                node(5, "PrimitiveString", {}, [("STRING", 3)], ["linked"]),
                node(6, "s", {}, [("IMAGE", 4)], ["off"], mode=2),
                node(7, "PreviewImage", {"images": 4}),
                node(8, "s", {"image": 5}, [("IMAGE", 6)], ["off"], mode=4),
                node(9, "PreviewImage", {"images": 6}),
            ],
            (1, 1, 0, 2, 0),
            (2, 2, 0, 3, 0),
            (3, 5, 0, 4, 1),
            (4, 6, 0, 7, 0),
            (5, 1, 0, 8, 0),
            (6, 8, 0, 9, 0),
            subgraphs=[
                subgraph(
                    "s",
                    [
                        node(20, "CLIPTextEncode", {"text": 1}, [("CONDITIONING",)], ["inside"]),
                        node(21, "ImageInvert", {"image": 2}, [("IMAGE", 3)]),
                        node(1, "PreviewAny", {"source": 4}),
                    ],
                    (1, -10, 1, 20, 0),
                    (2, -10, 0, 21, 0),
                    (3, 21, 0, -20, 0),
                    (4, -10, 1, 1, 0),
                    inputs=[("image", "IMAGE", 2), ("text", "STRING", 77)],
                    outputs=[("IMAGE", "IMAGE", 78)],
                )
            ],
        ),
        {
            "1": {"image": "a.png"},
            "3": {"images": ["2:21", 0]},
            "5": {"value": "linked"},
            "7": {},
            "9": {"images": ["1", 0]},
            "2:20": {"text": "hello"},
            "2:21": {"image": ["1", 0]},
            "2:31": {"source": "hello"},
            "4:20": {"text": ["5", 0]},
            "4:21": {},
            "4:31": {"source": ["5", 0]},
        },
    ),
    "subgraphs in subgraphs, the outer one first in the file": (
        flow(
            [node(1, "outer", {}, [("LATENT", 1)], [9, 11]), node(2, "VAEDecode", {"samples": 1}, [("IMAGE",)])],
            (1, 1, 0, 2, 0),
            subgraphs=[
                subgraph(
                    "outer",
                    [
                        node(3, "inner", {"width": 1}, [("LATENT", 3)], [8]),
                        node(4, "inner", {"width": None}, [("LATENT", 2)], [16]),
                        node(5, "inner", {"width": 4}, [("LATENT",)], [24], mode=2),
                    ],
                    (1, -10, 0, 3, 0),
                    (2, 4, 0, -20, 0),
                    (4, -10, 1, 5, 0),
                    inputs=[("a", "INT", 1), ("b", "INT", 4)],
                    outputs=[("LATENT", "LATENT", 2)],
                ),
                subgraph(
                    "inner",
                    [node(6, "EmptyLatentImage", {"width": 1}, [("LATENT", 2)], [64, 128, 2])],
                    (1, -10, 0, 6, 0),
                    (2, 6, 0, -20, 0),
                    inputs=[("width", "INT", 1)],
                    outputs=[("LATENT", "LATENT", 2)],
                ),
            ],
        ),
        {
            "2": {"samples": ["1:4:6", 0]},
            "1:3:6": {"width": 9, "height": 128, "batch_size": 2},
            "1:4:6": {"width": 64, "height": 128, "batch_size": 2},
            "1:5:6": {"width": 11, "height": 128, "batch_size": 2},
        },
    ),
    "promoted the older way": (
        flow(
            [
                node(
                    1,
                    "outer",
                    {},
                    [],
                    [33, "n", 44, 55, "x"],
                    properties={
                        "proxyWidgets": [
                            ["3", "width"],
                            ["-1", "text"],
                            ["4", "value"],
                            ["3", "6: height"],
                            ["9", "no"],
                        ]
                    },
                ),
                node(
                    2,
                    "outer",
                    {},
                    [],
                    ["t", 66, 77],
                    properties={
                        "proxyWidgets": json.dumps(
                            [["3", "width"], ["4", "value"], ["5", "value"], ["11", "value"], ["3", "5", "height"]]
                        )
                    },
                ),
                node(7, "outer", {}, [], [1, 2], properties={"proxyWidgets": [[3, "width"]]}),
                node(8, "outer", {}, [], [], properties={"proxyWidgets": "{"}),
                node(
                    9,
                    "outer",
                    {},
                    [],
                    [],
                    properties={
                        "proxyWidgetErrorQuarantine": [
                            {
                                "originalEntry": ["-1", "text"],
                                "hostValue": "kept",
                                "reason": "missingSubgraphInput",
                                "attemptedAtVersion": 1,
                            }
                        ]
                    },
                ),
            ],
            subgraphs=[
                subgraph(
                    "outer",
                    [
                        node(
                            3,
                            "inner",
                            {},
                            [("LATENT",)],
                            [],
                            properties={"proxyWidgets": [["6", "width"], ["6", "batch_size"]]},
                        ),
                        node(4, "PrimitiveNode", {}, [("INT", 1, 2)], [640, "fixed"]),
                        node(5, "PrimitiveString", {"value": 3}, [("STRING",)], ["inside"]),
                        node(10, "EmptyLatentImage", {"width": 1, "height": 2}, [("LATENT",)], [64, 128, 2]),
                        node(11, "PrimitiveString", {"value": 4}, [("STRING",)], ["other"]),
                    ],
                    (1, 4, 0, 10, 0),
                    (2, 4, 0, 10, 1),
                    (3, -10, 0, 5, 0),
                    (4, -10, 0, 11, 0),
                    inputs=[("text", "STRING", 3, 4)],
                ),
                subgraph(
                    "inner",
                    [node(6, "EmptyLatentImage", {}, [("LATENT",)], [64, 128, 2])],
                    inputs=[("batch_size", "INT")],
                ),
            ],
        ),
        {
            "1:3:6": {"width": 33, "height": 128, "batch_size": 2},
            "1:5": {"value": "n"},
            "1:10": {"width": 44, "height": 44, "batch_size": 2},
            "1:11": {"value": "other"},
            "2:3:6": {"width": "t", "height": 128, "batch_size": 2},
            "2:5": {"value": 77},
            "2:10": {"width": 66, "height": 66, "batch_size": 2},
            "2:11": {"value": "other"},
            "7:3:6": {"width": 64, "height": 128, "batch_size": 2},
            "7:5": {"value": 1},
            "7:10": {"width": 64, "height": 64, "batch_size": 2},
            "7:11": {"value": "other"},
            "8:3:6": {"width": 64, "height": 128, "batch_size": 2},
            "8:5": {"value": "inside"},
            "8:10": {"width": 64, "height": 64, "batch_size": 2},
            "8:11": {"value": "other"},
            "9:3:6": {"width": 64, "height": 128, "batch_size": 2},
            "9:5": {"value": "kept"},
            "9:10": {"width": 64, "height": 64, "batch_size": 2},
            "9:11": {"value": "other"},
        },
    ),
}


CASES["a text area begins anew when one of its links is taken"] = (
    flow(
        [node(1, "s", {}, [], ["kept"], properties={"proxyWidgets": [["-1", "text"], ["3", "text"]]})],
        subgraphs=[
            subgraph(
                "s",
                [
                    node(2, "CLIPTextEncode", {"text": 1}, values=["a"]),
                    node(3, "CLIPTextEncode", {"text": 2}, values=["b"]),
                ],
                (1, -10, 0, 2, 0),
                (2, -10, 0, 3, 0),
                inputs=[("text", "STRING", 1, 2)],
            )
        ],
    ),
    {"1:2": {"text": "a"}, "1:3": {"text": "b"}},
)
CASES["a combo without a value takes its first choice"] = (
    flow(
        [node(1, "s", values=[None, None]), node(4, "s", values=["heun", "simple"])],
        subgraphs=[
            subgraph(
                "s",
                [node(2, "KSampler", {"sampler_name": 1, "seed": 2}, values=KSAMPLER)],
                (1, -10, 0, 2, 0),
                (2, -10, 1, 2, 1),
                inputs=[("sampler", "COMBO", 1), ("seed", "INT", 2)],
            )
        ],
    ),
    {
        "1:2": {"seed": None, "steps": 20, "cfg": 8.5, "sampler_name": "euler", "scheduler": "normal", "denoise": 0.75},
        "4:2": {
            "seed": "simple",
            "steps": 20,
            "cfg": 8.5,
            "sampler_name": "heun",
            "scheduler": "normal",
            "denoise": 0.75,
        },
    },
)


WARNINGS_OF_CASES = {
    "a dynamic combo has the inputs of its option": [
        'node 3 "Resize Image/Mask" (ResizeImageMaskNode): '
        'the file has too few values, so the defaults apply to "scale_method".',
    ],
    "widgets of the browser": [
        'node 1 "Load Audio" (LoadAudio): the file has 1 value that none of its widgets takes (b).',
        'node 2 "Record Audio" (RecordAudio): the browser makes the value of "audio", so the prompt does not have it.',
        'node 7 "Custom Combo" (CustomCombo): the file has 1 value that none of its widgets takes (b).',
    ],
}


@pytest.mark.parametrize("name", CASES)
def test_a_workflow_made_by_hand_becomes_what_the_frontend_makes_of_it(name: str) -> None:
    workflow, prompt = CASES[name]
    assert converted(workflow) == prompt
    assert list(warnings(workflow)) == WARNINGS_OF_CASES.get(name, [])


def test_a_node_of_a_prompt_has_the_shape_that_the_frontend_exports() -> None:
    workflow = flow([LOAD, node(2, "PreviewImage", {"images": 1}, title="Look")], (1, 1, 0, 2, 0))
    made = convert_workflow(workflow, OBJECT_INFO)
    assert (made.prompt, made.warnings) == (
        {
            "1": {"inputs": {"image": "a.png"}, "class_type": "LoadImage", "_meta": {"title": "Load Image"}},
            "2": {"inputs": {"images": ["1", 0]}, "class_type": "PreviewImage", "_meta": {"title": "Look"}},
        },
        (),
    )


# ------------------------------------------------------------------------------------------------
# Rules that no file of the frontend shows alone
# ------------------------------------------------------------------------------------------------


def test_widget_values_may_be_stored_by_name() -> None:
    values = {"steps": 7, "cfg": 2.5, "videopreview": {"hidden": False}}
    made = inputs_of(node(1, "KSampler", values=values))
    assert (made["steps"], made["cfg"], made["seed"]) == (7, 2.5, 0)
    workflow = flow([node(1, "s", values={"text": "by name"})], subgraphs=[TEXT_INSIDE])
    assert converted(workflow) == {"1:2": {"text": "by name"}}


TEXT_INSIDE = subgraph(
    "s", [node(2, "CLIPTextEncode", {"text": 1}, values=["inside"])], (1, -10, 0, 2, 0), inputs=[("text", "STRING", 1)]
)


@pytest.mark.parametrize(("setter", "getter"), [("SetNode", "GetNode"), ("easy setNode", "easy getNode")])
@pytest.mark.parametrize("name", ["picture", ["a", "list"]])
def test_a_getter_takes_what_goes_into_the_setter_of_its_name(setter: str, getter: str, name: Any) -> None:
    inside = subgraph(
        "s",
        [node(20, getter, {}, [("IMAGE", 1)], [name]), node(21, "PreviewImage", {"images": 1})],
        (1, 20, 0, 21, 0),
    )
    workflow = flow(
        [
            LOAD,
            node(2, setter, {"IMAGE": 1}, [("*", 3)], [name]),
            node(3, getter, {}, [("IMAGE", 2)], [name]),
            node(4, "PreviewImage", {"images": 2}),
            node(5, "PreviewImage", {"images": 3}),
            node(6, "s"),
            node(7, getter, {}, [("IMAGE", 4)], ["nothing of that name"]),
            node(8, "PreviewImage", {"images": 4}),
        ],
        (1, 1, 0, 2, 0), (2, 3, 0, 4, 0), (3, 2, 0, 5, 0), (4, 7, 0, 8, 0),
        subgraphs=[inside],
    )  # fmt: skip
    linked = {"images": ["1", 0]}
    assert converted(workflow) == {"1": {"image": "a.png"}, "4": linked, "5": linked, "8": {}, "6:21": linked}
    assert warnings(workflow) == (f"node 7 ({getter}): no setter has its name.",)


@pytest.mark.parametrize("type_", ["PrimitiveNode", "SetNode"])
def test_a_class_of_the_server_may_be_named_as_a_node_of_the_browser(type_: str) -> None:
    """The server's counts: it is in the prompt, and where it is muted, nothing of it is."""
    info = {**OBJECT_INFO, type_: {"input": {"required": {"value": ["INT", {}]}}, "output": ["INT"]}}

    def made(mode: int) -> Json:
        workflow = flow(
            [
                node(1, type_, {"value": 3}, [("INT", 1)], [100], mode=mode),
                node(2, "EmptyLatentImage", {"width": 1}, [("LATENT",)], [64, 128, 2]),
                node(3, "GetNode", {}, [("INT", 2)], [100]),
                node(4, "PreviewAny", {"source": 2}),
                node(5, "PrimitiveInt", {}, [("INT", 3)], [7, "fixed"]),
            ],
            (1, 1, 0, 2, 0),
            (2, 3, 0, 4, 0),
            (3, 5, 0, 1, 0),
        )
        prompt = convert_workflow(workflow, info).prompt
        return {node_id: one["inputs"] for node_id, one in prompt.items()}

    still = {"height": 128, "batch_size": 2}
    others = {"4": {}, "5": {"value": 7}}
    assert made(0) == {"1": {"value": ["5", 0]}, "2": {"width": ["1", 0], **still}, **others}
    assert made(2) == {"2": {"width": 64, **still}, **others}


@pytest.mark.parametrize("type_", ["Reroute (rgthree)", "Node Combiner (rgthree)"])
def test_nodes_of_rgthree_that_live_in_the_browser_are_no_reason_to_refuse(type_: str) -> None:
    workflow = flow(
        [
            LOAD,
            node(2, type_, {"": 1}, [("*", 2)]),
            node(3, "PreviewImage", {"images": 2}),
            node(4, "Fast Groups Muter (rgthree)"),
        ],
        (1, 1, 0, 2, 0), (2, 2, 0, 3, 0),
    )  # fmt: skip
    assert converted(workflow)["3"] == {"images": ["1", 0]}


class Chooses(random.Random):
    """Chooses by a list of fractions."""

    def __init__(self, *fractions: float) -> None:
        super().__init__()
        self.fractions = list(fractions)

    def random(self) -> float:
        return self.fractions.pop(0)


@pytest.mark.parametrize(
    ("text", "fractions", "chosen"),
    [
        ("a {red|green|blue} fox", [0.5], "a green fox"),
        ("{a|b} {c|d}", [0.0, 0.9], "a d"),
        ("{a|{b|c}}", [0.9, 0.0], "b"),
        ("{a|{b|c}}", [0.0], "a"),
        ("{|x}", [0.0], ""),
        ("{a|b", [0.9], "b"),
        ("a}|b", [], "a}|b"),
        (r"\{a\|b\} \x", [], r"{a|b} \x"),
        (r"{a\|b|c}", [0.0], "a|b"),
        ("a // rest\nb /* c\nd */ e", [], "a \nb  e"),
        ("end\\", [], "end\\"),
    ],
)
def test_a_dynamic_prompt_is_chosen_from(text: str, fractions: List[float], chosen: str) -> None:
    made = node(1, "CLIPTextEncode", values=[text])
    assert inputs_of(made, rng=Chooses(*fractions)) == {"text": chosen}


def test_a_promoted_text_is_not_chosen_from() -> None:
    workflow = flow([node(1, "s", values=["{a|b}"])], subgraphs=[TEXT_INSIDE])
    assert converted(workflow) == {"1:2": {"text": "{a|b}"}}


def test_braces_without_end_are_left_as_they_are() -> None:
    text = inputs_of(node(1, "CLIPTextEncode", values=["{" * 5000 + "a" + "}" * 5000]))["text"]
    assert text == "{" * 4900 + "a" + "}" * 4900


def test_the_date_in_the_name_of_a_file() -> None:
    now = datetime.datetime(2026, 3, 4, 5, 6, 7)
    name = "%date:yyyy-MM-dd hh.mm.ss%"
    made = inputs_of(node(1, "SaveImage", values=["%date:yyyy-MM-dd_hh:mm:ss%/%date:yy M d h m s yyy%"]), now=now)
    assert made == {"filename_prefix": "2026-03-04_05:06:07/26 3 4 5 6 7 yyy"}
    # As in the frontend: a dot ends the date.
    assert inputs_of(node(1, "SaveImage", values=[name]), now=now) == {"filename_prefix": "2026-03-04 05"}


def test_without_a_time_and_a_source_of_chance_the_clock_and_chance_decide() -> None:
    made = converted(
        flow([node(1, "SaveImage", values=["%date:yyyyMMdd%"]), node(2, "CLIPTextEncode", values=["{a|a}"])])
    )
    before = datetime.datetime.now() - datetime.timedelta(minutes=5)  # midnight may have come meanwhile
    assert made["1"]["filename_prefix"] in {before.strftime("%Y%m%d"), datetime.datetime.now().strftime("%Y%m%d")}
    assert made["2"]["text"] == "a"


def test_values_in_the_name_of_a_file_are_written_as_javascript_writes_them() -> None:
    workflow = flow(
        [
            node(1, "SaveImage", values=["%A.width%_%B.switch%_%C.text%_%A.height%"]),
            node(2, "EmptyLatentImage", values=[64.0, 64.5], title="A"),
            node(3, "ComfySwitchNode", values=[False], title="B"),
            node(4, "PrimitiveString", values=[None], properties={"Node name for S&R": "C"}, title="D"),
        ]
    )
    assert converted(workflow)["1"] == {"filename_prefix": "64_false_%C.text%_64.5"}
    workflow["nodes"][0]["widgets_values"] = ["%C.value%!"]
    assert converted(workflow)["1"] == {"filename_prefix": "!"}
    workflow["nodes"][0]["widgets_values"] = [5]
    assert converted(workflow)["1"] == {"filename_prefix": 5}


#: Specs that the classes of OBJECT_INFO do not have.
SPECS: Json = {
    "Special": {
        "input": {
            "required": {
                "many": ["COMBO", {"multi_select": True, "options": ["a"], "control_after_generate": True}],
                "old": [["x", "y"], {"control_after_generate": "fixed"}],
                "remote": ["COMBO", {"remote": {"route": "/x", "refresh_button": True}}],
                "bare": ["COMBO", {"remote": {"route": "/x"}}],
                "empty": ["COMBO", {}],
                "speed": ["FLOAT", {"control_after_generate": True}],
                "seed": ["INT", {"control_after_generate": False}],
                "picture": ["COMBO", {"image_upload": True, "options": ["p.png"]}],
                "note": ["MARKDOWN", {}],
                "choice": ["COMFY_DYNAMICCOMBO_V3", {"options": []}],
                "numbers": ["COMFY_DYNAMICCOMBO_V3", {"options": [{"key": "ten"}, {"key": "10"}, {"key": "2"}]}],
                "yes": [
                    "COMFY_DYNAMICCOMBO_V3",
                    {"options": [{"key": "false"}, {"key": "true", "inputs": {"optional": {"deep": ["INT", {}]}}}]},
                ],
            },
            "optional": {
                "seed_override": ["INT", {"defaultInput": True}],
                "wide": ["FLOAT,INT", {"widgetType": "FLOAT", "default": 2}],
                "pairs": [
                    "COMFY_AUTOGROW_V3",
                    {"template": {"input": {"required": {"a": ["IMAGE", {}], "b": ["INT", {}]}}, "min": 0, "max": 2}},
                ],
            },
        },
        "output": [["x", "y"], "IMAGE"],
    },
    "Scene": {"input": {"required": {"model_file": ["COMBO", {"options": ["none"]}], "image": ["LOAD_3D", {}]}}},
    "Bare": {},
}


def special(values: Any) -> Json:
    return dict(convert_workflow(flow([node(1, "Special", values=values)]), SPECS).prompt["1"]["inputs"])


def test_the_widgets_of_rarer_specs_have_their_defaults() -> None:
    assert special(None) == {
        "many": {"__value__": []}, "old": "x", "remote": "Loading...", "refresh": "refresh", "bare": "Loading...",
        "speed": 0, "seed": 0, "picture": "p.png", "note": "", "numbers": "2", "yes": "false", "wide": 2,
        "pairs.b0": 0,
    }  # fmt: skip


def test_the_widgets_of_rarer_specs_take_their_places_in_the_stored_values() -> None:
    values = [3, ["m"], "fixed", "y", "fixed", "/x/", "r", False, "refresh", "b", False, "e", 1.5, "fixed", 7, "q.png",
              None, "?", 10, True, 5, "image", 1.25]  # fmt: skip
    assert special(values) == {
        "many": {"__value__": ["m"]}, "old": "y", "remote": "r", "refresh": "refresh", "bare": "b", "empty": "e",
        "speed": 1.5, "seed": 7, "picture": "q.png", "note": "", "choice": "?", "numbers": 10, "yes": True,
        "yes.deep": 5, "wide": 1.25, "pairs.b0": 3,
    }  # fmt: skip


def test_the_places_of_an_autogrow_group_of_two_are_added_together() -> None:
    nodes = [node(1, "Special", {"pairs.a0": 1, "pairs.a1": 2}), node(2, "Bare", {}, [("*", 1, 2)])]
    made = convert_workflow(flow(nodes, (1, 2, 0, 1, 0), (2, 2, 0, 1, 1)), SPECS).prompt["1"]["inputs"]
    assert {name: value for name, value in made.items() if name.startswith("pairs")} == {
        "pairs.a0": ["2", 0], "pairs.b0": 0, "pairs.a1": ["2", 0], "pairs.b1": 0,
    }  # fmt: skip


def test_a_scene_is_made_in_the_browser() -> None:
    result = convert_workflow(flow([node(1, "Scene", values=["a.glb", "x", "y", "z", "w"])]), SPECS)
    assert result.prompt["1"]["inputs"] == {
        "model_file": "a.glb", "upload 3d model": "x", "upload extra resources": "y", "clear": "z", "image": "",
    }  # fmt: skip
    assert result.warnings == (
        'node 1 (Scene): the browser makes the value of "image", so the prompt does not have it.',
    )


def test_types_are_narrowed_along_a_row_of_switches() -> None:
    row = [node(k, "ComfySwitchNode", {"on_false": k - 1, "on_true": k + 100}, [("*", k)]) for k in range(20, 1, -1)]
    links = [(k - 1, k - 1, 0, k, 0) for k in range(2, 21)]
    workflow = flow([*row, {**LOAD, "outputs": [{"name": "", "type": "IMAGE", "links": [1]}]}], *links)
    assert converted(workflow)["20"] == {"on_false": ["19", 0], "switch": False}


def matching(template: str, allowed: Any = None) -> List[Any]:
    """The spec of an input whose type is that of what is connected, one of ``allowed``."""
    return [
        "COMFY_MATCHTYPE_V3",
        {"template": {"template_id": template, **({"allowed_types": allowed} if allowed else {})}},
    ]


#: Classes with inputs that take several types, and what they can be connected to.
MATCHING: Json = {
    "Source": {"input": {}, "output": ["LATENT", "IMAGE", "MASK"]},
    "Between": {
        "input": {"required": {"latent": ["LATENT", {}], "image": ["IMAGE", {}], "mask": ["MASK", {}]}},
        "output": ["*"],
    },
    "Picture": {
        "input": {
            "required": {
                "first": matching("t", "IMAGE,MASK"),
                "second": matching("t", "IMAGE,MASK"),
                "other": matching("u", "MASK,LATENT"),
                "any": matching("v"),
            }
        },
        "output": [],
    },
    "Words": {
        "input": {
            "required": {
                "text": ["COMFY_MATCHTYPE_V3", {"template": {"template_id": "t", "allowed_types": "STRING"}}],
                "free": matching("t"),
            }
        },
        "output": [],
    },
}


@pytest.mark.parametrize(
    ("asking", "slot"),
    [
        ({"first": 9}, 1),  # IMAGE comes before MASK among the inputs that are allowed
        ({"second": 9}, 1),
        ({"other": 9}, 0),  # LATENT is allowed here
        ({"any": 9}, 0),  # everything is
        ({"first": 9, "second": 3}, 2),  # a mask is connected to the other input of its kind
        ({"first": 3, "second": 9}, 2),
        ({"first": 9, "other": 3}, 1),  # this one is of another kind
        ({"first": 9, "second": 1}, 1),  # a latent image is allowed to neither, so it narrows nothing
    ],
)
def test_a_bypassed_node_hands_on_what_a_matching_input_allows(asking: Dict[str, int], slot: int) -> None:
    """The bypassed node has a latent image, an image and a mask, and an output of any type."""
    straight = [(link, 1, link - 1, 3, place) for place, link in enumerate(asking.values()) if link != 9]
    workflow = flow(
        [
            node(1, "Source", {}, [("LATENT", 1, 4), ("IMAGE", 2, 5), ("MASK", 3, 6)]),
            node(2, "Between", {"latent": 4, "image": 5, "mask": 6}, [("*", 9)], mode=4),
            node(3, "Picture", asking),
        ],
        *straight, (4, 1, 0, 2, 0), (5, 1, 1, 2, 1), (6, 1, 2, 2, 2), (9, 2, 0, 3, list(asking.values()).index(9)),
    )  # fmt: skip
    made = convert_workflow(workflow, MATCHING).prompt["3"]["inputs"]
    (name,) = (name for name, link in asking.items() if link == 9)
    assert made[name] == ["1", slot]


def test_a_matching_input_of_texts_has_a_widget() -> None:
    for values, text in ((None, ""), (["a fox"], "a fox")):
        workflow = flow([node(1, "Words", values=values)])
        assert convert_workflow(workflow, MATCHING).prompt["1"]["inputs"] == {"text": text}


#: What an input has in a prompt where neither its spec nor the file gives a value (scripts/widgets.ts).
DEFAULTS: Json = {
    "INT": 0, "FLOAT": 0, "BOOLEAN": False, "STRING": "", "MARKDOWN": "", "TEXTAREA": "", "PAINTER": "",
    "AUDIO_RECORD": "", "WEBCAM": "", "LOAD_3D": "", "PREVIEW_3D": "", "LOAD_3D_ADVANCED": "", "COLOR": "#000000",
    "COLORS": {"__value__": []}, "GALLERIA": {"__value__": []}, "BOUNDING_BOXES": {"__value__": []}, "CHART": {},
    "COMPOSITOR": {}, "IMAGECOMPARE": {"__value__": ["", ""]},
    "BOUNDING_BOX": {"x": 0, "y": 0, "width": 512, "height": 512}, "RANGE": {"min": 0.0, "max": 1.0},
    "CURVE": {"points": [[0, 0], [1, 1]], "interpolation": "monotone_cubic"},
    "VIDEO_EDIT": {"trim": {"start_time": 0, "duration": 0}, "crop": {"x": 0, "y": 0, "width": 0, "height": 0}},
}  # fmt: skip


@pytest.mark.parametrize("kind", DEFAULTS)
def test_each_kind_of_widget_has_its_default(kind: str) -> None:
    info = {"Class": {"input": {"required": {"it": [kind, {}], "given": [kind, {"default": "d"}]}}}}
    made = convert_workflow(flow([node(1, "Class")]), info).prompt["1"]["inputs"]
    assert {name: made[name] for name in ("it", "given")} == {"it": DEFAULTS[kind], "given": "d"}


@pytest.mark.parametrize("kind", ["AUDIO_UI", "AUDIOUPLOAD", "IMAGEUPLOAD", "IMAGE", "int"])
def test_what_is_no_widget_or_sends_nothing_is_not_in_the_prompt(kind: str) -> None:
    info = {"Class": {"input": {"required": {"it": [kind, {}]}}}}
    assert convert_workflow(flow([node(1, "Class")]), info).prompt["1"]["inputs"] == {}


def test_a_box_is_one_value_and_its_four_parts_take_places_in_the_file() -> None:
    """The parts are not inputs, but the name of a file may have them in it."""
    info = {
        "Box": {
            "input": {
                "required": {
                    "box": ["BOUNDING_BOX", {"default": {"x": 1, "y": 2, "width": 30, "height": 40}}],
                    "after": ["INT", {"default": 5}],
                }
            }
        },
        **OBJECT_INFO,
    }
    parts = "%B.x%,%B.y%,%B.width%,%B.height%"

    def made(values: Any) -> List[Json]:
        nodes = [node(1, "Box", values=values, title="B"), node(2, "SaveImage", values=[parts])]
        prompt = convert_workflow(flow(nodes), info).prompt
        return [prompt["1"]["inputs"], prompt["2"]["inputs"]["filename_prefix"]]

    default = {"x": 1, "y": 2, "width": 30, "height": 40}
    assert made(None) == [{"box": default, "after": 5}, "1,2,30,40"]
    assert made([{"x": 9}, 6, 7, 8, 9, 50]) == [{"box": {"x": 9}, "after": 50}, "6,7,8,9"]


def test_what_is_no_link_is_passed_over() -> None:
    workflow = flow(
        [LOAD, node(2, "PreviewImage", {"images": 1}), node(3, "PrimitiveNode", {}, [("INT", 2, 3, [])], [8])]
    )
    workflow["nodes"] += [node(4, "EmptyLatentImage"), node(5, "Reroute", {"": 3}, [("*",)])]
    workflow["links"] = [5, [1], {"id": {}}, [[], 1, 0, 2, 0], [1, 1, 0, 2, 0], [2, 3, 0, 4, 0, "INT"], [3, 3, 0, 5, 0]]
    workflow["nodes"][3]["inputs"] = [5, {"name": "width", "link": 2}]
    made = converted(workflow)
    assert made["2"] == {"images": ["1", 0]} and made["4"]["width"] == 16


def test_slots_that_are_no_numbers_are_the_first_ones() -> None:
    workflow = flow([LOAD, node(2, "PreviewImage", {"images": 1})], (1, 1, "x", 2, -3))
    assert converted(workflow)["2"] == {"images": ["1", 0]}


def test_a_last_id_that_is_no_number_is_passed_over() -> None:
    workflow = flow([node(1, "s")], subgraphs=[subgraph("s", [node(1, "PreviewAny")])], last_node_id="x")
    assert list(converted(workflow)) == ["1:2"]


def test_a_primitive_without_an_output_gives_its_value_to_nothing() -> None:
    assert converted(flow([node(1, "PrimitiveNode", values=[5]), {**LOAD, "id": 2}])) == {"2": {"image": "a.png"}}


def test_a_primitive_gives_nothing_to_a_slot_that_does_not_exist() -> None:
    workflow = flow(
        [node(1, "PrimitiveNode", {}, [("INT", 1)], [5]), node(2, "EmptyLatentImage", values=[64, 128, 2])],
        (1, 1, 0, 2, 99),
    )
    assert converted(workflow) == {"2": {"width": 64, "height": 128, "batch_size": 2}}


def test_an_inner_input_without_a_widget_is_not_promoted() -> None:
    inner = subgraph("inner", [node(4, "ImageInvert", {"image": 1})], (1, -10, 0, 4, 0), inputs=[("image", "IMAGE", 1)])
    outer = subgraph("outer", [node(3, "inner", {"image": None})])
    host = node(1, "outer", values=["outside"], properties={"proxyWidgets": [["3", "image"]]})
    assert converted(flow([host], subgraphs=[outer, inner])) == {"1:3:4": {}}


def test_a_host_promotes_nothing_if_one_of_its_entries_is_broken() -> None:
    inner = subgraph("s", [node(2, "CLIPTextEncode", values=["inside"])])
    for entries, text in (([["2", "text"]], "outside"), ([["2", "text"], ["2"]], "inside")):
        host = node(1, "s", values=["outside"], properties={"proxyWidgets": entries})
        assert converted(flow([host], subgraphs=[inner])) == {"1:2": {"text": text}}


def test_a_link_that_no_socket_has_promotes_nothing() -> None:
    inner = subgraph(
        "s", [node(2, "CLIPTextEncode", {"text": None}, values=["inside"])], (1, -10, 0, 2, 5),
        inputs=[("text", "STRING", 1)],
    )  # fmt: skip
    assert converted(flow([node(1, "s", values=["outside"])], subgraphs=[inner])) == {"1:2": {"text": "inside"}}


def test_a_subgraph_may_hold_several_and_be_defined_inside_of_another() -> None:
    inner = [subgraph(key, [node(key + "1", "PreviewAny")]) for key in ("b", "c")]
    outer = subgraph("a", [node(2, "b"), node(3, "c")])
    outer["definitions"] = {"subgraphs": [*inner, 5, {"id": 5}, {"id": "b"}]}
    assert list(converted(flow([node(1, "a")], subgraphs=[outer]))) == ["1:2:b1", "1:3:c1"]


@pytest.mark.parametrize(
    "entry", [None, {}, {"originalEntry": ["-1", "text"]}, {"originalEntry": ["2", "text"], "hostValue": 1}]
)
def test_what_a_host_could_not_promote_changes_nothing(entry: Any) -> None:
    host = node(1, "s", values=["kept"], properties={"proxyWidgetErrorQuarantine": [entry]})
    assert converted(flow([host], subgraphs=[TEXT_INSIDE])) == {"1:2": {"text": "kept"}}


def test_a_subgraph_may_lead_straight_through() -> None:
    straight = subgraph("s", [], (1, -10, 0, -20, 0), inputs=[("in", "IMAGE", 1)], outputs=[("out", "IMAGE", 1)])
    workflow = flow(
        [
            LOAD,
            node(2, "s", {"in": 1}, [("IMAGE", 2)]),
            node(3, "PreviewImage", {"images": 2}),
            node(4, "s", {}, [("IMAGE", 3)]),
            node(5, "PreviewImage", {"images": 3}),
            node(6, "PreviewImage", {"images": 4}),
        ],
        (1, 1, 0, 2, 0), (2, 2, 0, 3, 0), (3, 4, 0, 5, 0), (4, 4, 9, 6, 0),
        subgraphs=[straight],
    )  # fmt: skip
    assert converted(workflow) == {"1": {"image": "a.png"}, "3": {"images": ["1", 0]}, "5": {}, "6": {}}


def test_an_output_that_nothing_leads_to_gives_nothing() -> None:
    """Not what goes into the subgraph."""
    inside = subgraph(
        "s", [], (8, 99, 0, -20, 1),  # from a node that does not exist
        inputs=[("in", "IMAGE")], outputs=[("out", "IMAGE"), ("broken", "IMAGE", 8)],
    )  # fmt: skip
    workflow = flow(
        [
            LOAD,
            node(2, "s", {"in": 1}, [("IMAGE", 2)]),
            node(3, "PreviewImage", {"images": 2}),
            node(4, "PreviewImage", {"images": 3}),
            node(5, "PreviewImage", {"images": 4}),
        ],
        (1, 1, 0, 2, 0), (2, 2, 0, 3, 0), (3, 2, 1, 4, 0), (4, 2, 2, 5, 0),  # it has two outputs
        subgraphs=[inside],
    )  # fmt: skip
    assert converted(workflow) == {"1": {"image": "a.png"}, "3": {}, "4": {}, "5": {}}


def test_an_input_of_another_name_that_is_promoted_the_older_way_keeps_all_its_links() -> None:
    """The input "w" of the inner subgraph is its widget "width"; "a" of the outer one leads to two widgets."""
    inner = subgraph("inner", [node(6, "EmptyLatentImage", {"width": 1}, values=[64, 128, 2])], (1, -10, 0, 6, 0),
                     inputs=[("w", "INT", 1)])  # fmt: skip
    outer = subgraph(
        "outer",
        [node(3, "inner", {"w": 1}), node(5, "EmptyLatentImage", {"height": 2}, values=[64, 128, 2])],
        (1, -10, 0, 3, 0), (2, -10, 0, 5, 1),
        inputs=[("a", "INT", 1, 2)],
    )  # fmt: skip
    host = node(1, "outer", values=[7, 33], properties={"proxyWidgets": [["-1", "gone"], ["3", "w"]]})
    assert converted(flow([host], subgraphs=[outer, inner])) == {
        "1:5": {"width": 64, "height": 33, "batch_size": 2},
        "1:3:6": {"width": 33, "height": 128, "batch_size": 2},
    }


def test_later_nodes_take_other_numbers_where_ids_are_the_same() -> None:
    a = subgraph("a", [node(1, "PreviewAny"), node(2.0, "PreviewAny"), node("x", "PreviewAny")])
    b = subgraph("b", [node(2, "PreviewAny"), node(7, "PreviewAny"), node("x", "PreviewAny")])
    workflow = flow([node(1, "a"), node(3, "b"), node(6, "PreviewAny")], subgraphs=[a, b], last_node_id=5)
    assert list(converted(workflow)) == ["6", "1:7", "1:2", "1:x", "3:8", "3:9", "3:10"]


def test_a_bypassed_node_without_the_slot_passes_on_another_one() -> None:
    workflow = flow(
        [
            LOAD,
            node(2, "Gone", {"a": 1}, [("IMAGE",), ("MASK", 2)], mode=4),
            node(3, "PreviewAny", {"source": 2}),  # takes any type: the first input will do
            node(4, "ImageInvert", {"image": 3}, [("IMAGE",)], mode=4),
            node(5, "PreviewImage", {"images": 4}),  # the output that its link names does not exist
        ],
        (1, 1, 0, 2, 0), (2, 2, 1, 3, 0), (3, 1, 0, 4, 0), (4, 4, 5, 5, 0),
    )  # fmt: skip
    assert converted(workflow) == {
        "1": {"image": "a.png"}, "3": {"source": ["1", 0]}, "5": {"images": ["1", 0]},
    }  # fmt: skip


def test_an_input_of_a_subgraph_narrows_the_types_that_match_it() -> None:
    """As test_a_bypassed_node_hands_on_what_a_matching_input_allows, with a mask from outside."""
    inner = subgraph(
        "s",
        [
            node(11, "Source", {}, [("LATENT", 4), ("IMAGE", 5), ("MASK", 6)]),
            node(12, "Between", {"latent": 4, "image": 5, "mask": 6}, [("*", 9)], mode=4),
            node(13, "Picture", {"first": 3, "second": 9}),
        ],
        (3, -10, 0, 13, 0), (4, 11, 0, 12, 0), (5, 11, 1, 12, 1), (6, 11, 2, 12, 2), (9, 12, 0, 13, 1),
        inputs=[("mask", "MASK", 3)],
    )  # fmt: skip
    workflow = flow([node(1, "s", {"mask": None})], subgraphs=[inner])
    assert convert_workflow(workflow, MATCHING).prompt["1:13"]["inputs"] == {"second": ["1:11", 2]}


def test_a_link_from_nowhere_narrows_no_types() -> None:
    workflow = flow(
        [
            node(1, "Source", {}, [("LATENT", 4), ("IMAGE", 5), ("MASK", 6)]),
            node(2, "Between", {"latent": 4, "image": 5, "mask": 6}, [("*", 9)], mode=4),
            node(3, "Picture", {"first": 3, "second": 9}),
        ],
        (3, 99, 0, 3, 0), (4, 1, 0, 2, 0), (5, 1, 1, 2, 1), (6, 1, 2, 2, 2), (9, 2, 0, 3, 1),
    )  # fmt: skip
    assert convert_workflow(workflow, MATCHING).prompt["3"]["inputs"] == {"second": ["1", 1]}


def test_a_primitive_above_the_range_gives_the_highest_value() -> None:
    workflow = flow(
        [node(1, "PrimitiveNode", {}, [("FLOAT", 1)], [1e9]), node(2, "KSampler", {"cfg": 1}, values=KSAMPLER)],
        (1, 1, 0, 2, 0),
    )
    assert converted(workflow)["2"]["cfg"] == 100


def test_a_primitive_in_a_subgraph_that_also_led_elsewhere_is_promoted() -> None:
    primitive = node(4, "PrimitiveNode", {}, [("FLOAT", 1)], [640])
    primitive["outputs"][0]["links"] = [99, 1]  # a link that is gone, and one that is there
    inner = subgraph("s", [primitive, node(5, "KSampler", {"cfg": 1}, values=KSAMPLER)], (1, 4, 0, 5, 6))
    host = node(1, "s", values=[44], properties={"proxyWidgets": [["4", "value"]]})
    assert converted(flow([host], subgraphs=[inner]))["1:5"]["cfg"] == 44


@pytest.mark.parametrize(
    ("type_", "promoted", "link", "target", "inputs"),
    [
        # Its number is not one that the widget takes, so it stays a primitive.
        ("INT", ["value"], (1, 4, 0, 5, 6), node(5, "KSampler", {"cfg": 1}, values=KSAMPLER), {"cfg": 100}),
        # It has one value, which cannot be promoted as two.
        ("*", ["value", "other"], (1, 4, 0, 5, 6), node(5, "KSampler", {"cfg": 1}, values=KSAMPLER), {"cfg": 100}),
        # No widget could be promoted.
        ("*", ["value"], (1, 4, 0, 5, 0), node(5, "PreviewAny", {"source": 1}), {}),
    ],
)
def test_a_primitive_that_no_input_can_replace_is_not_promoted(
    type_: str, promoted: List[str], link: Any, target: Json, inputs: Json
) -> None:
    inner = subgraph("s", [node(4, "PrimitiveNode", {}, [(type_, 1)], [640]), target], link)
    entries = [["4", name] for name in promoted]
    host = node(1, "s", values=[44, 55], properties={"proxyWidgets": entries})
    made = converted(flow([host], subgraphs=[inner]))["1:5"]
    assert {name: made[name] for name in made if name in ("cfg", "source")} == inputs


def test_a_link_from_an_input_that_a_subgraph_does_not_have_is_replaced() -> None:
    inner = subgraph("s", [node(5, "PrimitiveString", {"value": 1}, values=["inside"])], (1, -10, 9, 5, 0))
    host = node(1, "s", values=["outside"], properties={"proxyWidgets": [["5", "value"]]})
    assert converted(flow([host], subgraphs=[inner])) == {"1:5": {"value": "outside"}}


# ------------------------------------------------------------------------------------------------
# What cannot be converted
# ------------------------------------------------------------------------------------------------


def test_every_node_whose_class_is_missing_is_named_with_its_package() -> None:
    error = refusal(
        flow(
            [
                node(1, "WanVideoSampler", title="My sampler", properties={"cnr_id": "wan-wrapper", "ver": "1.2.3"}),
                node(2, "RIFE VFI", properties={"aux_id": "someone/pack"}),
                node(3, "s", mode=2),
                node(4, "s"),
                node(8, "s"),
                node(5, "Gone", mode=4),
                node(6, "workflow>mine", properties={"cnr_id": 5, "ver": 6}),
            ],
            (1, 1, 0, 2, 0),
            (2, 2, 0, 6, 0),
            subgraphs=[subgraph("s", [node(7, "Inside")], (1, -10, 0, 7, 0))],
        )
    )
    assert error.message == (
        "The server does not have the classes of 4 nodes:\n"
        'node 1 "My sampler" (WanVideoSampler), from the package wan-wrapper 1.2.3\n'
        "node 2 (RIFE VFI), from the package someone/pack\n"
        "node 6 (workflow>mine)\n"
        "node 7 (Inside) in the subgraph Sub s"
    )
    assert "ComfyUI-Manager" in error.remedy and "group node" in error.remedy
    lone = flow([node(1, "Gone", {"a": 1}), node(2, "Gone", {}, [("*", 1)])], (1, 2, 0, 1, 0))
    assert "group node" not in refusal(lone).remedy


def test_a_node_of_an_unknown_class_that_nothing_is_linked_to_is_left_out() -> None:
    workflow = flow([LOAD, node(2, "Sticker", {"a": None}, [("*",)], ["hello"])])
    assert converted(workflow) == {"1": {"image": "a.png"}}
    assert warnings(workflow) == ("node 2 (Sticker): the server does not have its class; nothing is linked to it.",)


def test_a_muted_or_bypassed_node_may_be_of_any_class() -> None:
    workflow = flow(
        [
            LOAD,
            node(2, "Gone", {"a": 1}, [("IMAGE", 2)], mode=4),
            node(3, "PreviewImage", {"images": 2}),
            node(4, "Gone", mode=2),
        ],
        (1, 1, 0, 2, 0), (2, 2, 0, 3, 0),
    )  # fmt: skip
    assert converted(workflow)["3"] == {"images": ["1", 0]}


@pytest.mark.parametrize("workflow", [None, [], {}, {"nodes": {}}, {"1": {"class_type": "X", "inputs": {}}}])
def test_what_is_no_workflow_is_refused(workflow: Any) -> None:
    assert refusal(workflow).message == "This is not a workflow in UI format: it has no list of nodes."


@pytest.mark.parametrize(
    "entry", [None, 5, {}, {"id": 1}, {"type": "X"}, {"id": True, "type": "X"}, {"id": "", "type": "X"}]
)
def test_what_is_no_node_is_refused_with_its_place(entry: Any) -> None:
    message = "Entry 1 of the nodes of the workflow is not a node with an id and a type."
    assert refusal(flow([LOAD, entry])).message == message
    assert "of the subgraph Sub s is not a node" in refusal(flow([], subgraphs=[subgraph("s", [entry])])).message


def test_a_second_node_with_an_id_gets_the_next_free_one() -> None:
    """Links lead to the first."""
    workflow = flow(
        [LOAD, node(1, "EmptyLatentImage", values=[8, 8, 1]), node(2, "PreviewImage", {"images": 1})],
        (1, 1, 0, 2, 0),
    )
    latent = {"width": 8, "height": 8, "batch_size": 1}
    assert converted(workflow) == {"1": {"image": "a.png"}, "2": {"images": ["1", 0]}, "31": latent}


@pytest.mark.parametrize(("type_", "mode"), [("Reroute", 0), ("ImageInvert", 4)])
def test_links_in_a_circle_lead_to_nothing_or_are_refused(type_: str, mode: int) -> None:
    """Reroutes in a circle lead to nothing; ComfyUI cannot export bypassed nodes in a circle either."""
    ring = [node(k, type_, {"image": k}, [("IMAGE", k % 3 + 1)], mode=mode) for k in (1, 2, 3)]
    workflow = flow(
        [*ring, node(4, "PreviewImage", {"images": 4})],
        (1, 3, 0, 1, 0), (2, 1, 0, 2, 0), (3, 2, 0, 3, 0), (4, 1, 0, 4, 0),
    )  # fmt: skip
    if mode:
        expected = 'The links around node 1 "Invert Image Colors" (ImageInvert) form a loop.'
        assert refusal(workflow).message.replace('"Invert Image"', '"Invert Image Colors"') == expected
    else:
        assert converted(workflow) == {"4": {}}
        assert warnings(workflow) == ("node 1 (Reroute): its links form a loop, so nothing comes out of it.",)
    for one in ring:
        one.update(type="ImageInvert", mode=4)
        one["inputs"][0]["name"] = "image"
    assert "form a loop" in refusal(workflow).message


def test_a_subgraph_that_holds_itself_is_refused() -> None:
    workflow = flow([node(1, "a")], subgraphs=[subgraph("a", [node(2, "b")]), subgraph("b", [node(3, "a")])])
    assert refusal(workflow).message == "The subgraph Sub a contains itself."


def nest(depth: int, width: int) -> Json:
    """A workflow with subgraphs in each other, ``width`` times the next one in each."""
    inner = [
        subgraph("s%d" % k, [node(10 * k + n + 2, "s%d" % (k + 1)) for n in range(width)]) for k in range(depth - 1)
    ]
    return flow([node(1, "s0")], subgraphs=[*inner, subgraph("s%d" % (depth - 1), [node("in", "PreviewAny")])])


def test_subgraphs_may_lie_in_each_other_a_hundred_times() -> None:
    assert len(converted(nest(100, 1))) == 1
    assert refusal(nest(101, 1)).message == "The subgraph Sub s0 contains more than 100 levels of subgraphs."
    assert "levels of subgraphs" in refusal(nest(5000, 1)).message


def test_a_file_that_unfolds_without_end_is_refused() -> None:
    assert len(converted(nest(10, 2))) == 512
    assert "more than 50000 nodes" in refusal(nest(60, 2)).message


def test_links_from_nowhere_are_reported_and_left_out() -> None:
    workflow = flow(
        [
            node(1, "PreviewImage", {"images": 7}),
            node(2, "PreviewImage", {"images": 1}),
            node(3, "s"),
            {**LOAD, "id": 9},
        ],
        (1, 99, 0, 2, 0),
        subgraphs=[
            subgraph("s", [node(20, "PreviewImage", {"images": 1})], (1, -10, 5, 20, 0), inputs=[("a", "IMAGE", 1)])
        ],
    )
    assert converted(workflow) == {"1": {}, "2": {}, "9": {"image": "a.png"}, "3:20": {}}
    assert [warning.split(": ", 1)[1] for warning in warnings(workflow)] == [
        'the link to its input "images" comes from nowhere.'
    ] * 2


@pytest.mark.parametrize(
    ("shape", "count"),
    [("reroutes", 5000), ("bypassed", 5000), ("switches", 5000), ("links to one", 20000), ("flat", 5000)],
)
def test_a_large_workflow_is_no_quadratic_work(shape: str, count: int) -> None:
    links = [(k, k - 1, 0, k, 0) for k in range(1, count)]
    if shape == "links to one":
        nodes = [node(0, "PrimitiveNode", {}, [("INT", *range(count))], [3]), node(1, "EmptyLatentImage")]
        links = [(k, 0, 0, 1, 0) for k in range(count)]
    else:
        kind, mode, name = {
            "reroutes": ("Reroute", 0, ""),
            "bypassed": ("ImageInvert", 4, "image"),
            "flat": ("KSampler", 0, "latent_image"),
            "switches": ("ComfySwitchNode", 0, "on_false"),
        }[shape]
        nodes = [node(k, kind, {name: k}, [("*", k + 1)], mode=mode) for k in range(1, count)]
        nodes += [node(count + k, "PreviewAny", {"source": k}) for k in range(1, count)] if shape == "reroutes" else []
        nodes += [node(0, "LoadImage", {}, [("IMAGE", 1)])]
    began = time.process_time()
    assert convert_workflow(flow(nodes, *links), OBJECT_INFO).prompt
    assert time.process_time() - began < 5


# ------------------------------------------------------------------------------------------------
# What frontend 1.58.1 does otherwise than 1.49.6
# ------------------------------------------------------------------------------------------------


def linked_latents(*links: Sequence[Any], latent: Any, positive: Any = None) -> Json:
    """The links of a KSampler, where two latent images and a text could be linked to it."""
    workflow = flow(
        [
            node(1, "EmptyLatentImage", {}, [("LATENT", 1)], [64, 128, 2]),
            node(2, "EmptyLatentImage", {}, [("LATENT", 2)], [64, 128, 2]),
            node(3, "KSampler", {"latent_image": latent, "positive": positive}, values=KSAMPLER),
            node(4, "VAEDecode", {"samples": 7}),
        ],
        *links,
    )
    sampler = converted(workflow)["3"]
    return {name: value[0] for name, value in sampler.items() if isinstance(value, list)}


def test_the_table_of_links_decides_what_is_connected() -> None:
    # The input does not know of its link.
    assert linked_latents((1, 1, 0, 3, 0), latent=None) == {"latent_image": "1"}
    # The link leads to another node.
    assert linked_latents((1, 1, 0, 4, 0), latent=1) == {}
    # The link leads to another slot of the node: the class has changed since, so the input is right.
    assert linked_latents((1, 1, 0, 3, 5), latent=1) == {"latent_image": "1"}
    assert linked_latents((1, 1, 0, 3, 1), (2, 2, 0, 3, 0), latent=1, positive=2) == {
        "latent_image": "1",
        "positive": "2",
    }
    # Of two links to one slot, the one that the input names counts, else the first.
    rivals = (1, 1, 0, 3, 0), (2, 2, 0, 3, 0)
    assert linked_latents(*rivals, latent=1) == {"latent_image": "1"}
    assert linked_latents(*rivals, latent=2) == {"latent_image": "2"}
    assert linked_latents(*rivals, latent=None) == {"latent_image": "1"}
    assert linked_latents(*rivals, latent=1, positive=2) == {"latent_image": "1"}


def test_what_frontend_1_58_1_loses_is_kept() -> None:
    """Faults of that version; what it does with a group node that is off has a test of its own."""
    workflow = flow([LOAD, node(2, "PreviewImage", {"images": 1})], (1, 1, 0, 2, 0))
    del workflow["version"]
    assert converted(workflow)["2"] == {"images": ["1", 0]}

    seed = 2**53 + 1
    assert inputs_of(node(1, "KSampler", values=[seed, *KSAMPLER[1:]]))["seed"] == seed

    # There, the text of the prompt becomes the link.
    gone = node(2, "CLIPTextEncode", {"model.images.image_1": 1}, values=["a fox"])
    assert converted(flow([LOAD, gone], (1, 1, 0, 2, 0)))["2"]["text"] == "a fox"

    # There, values land in other widgets where the inner nodes list theirs as inputs.
    latent = node(-1, "EmptyLatentImage", {"width": None, "height": None}, [("LATENT",)], [8, 8, 1])
    for raw_input in latent["inputs"]:
        raw_input["widget"] = {"name": raw_input["name"]}
    group = with_groups(flow([node(5, "workflow>g", values=[1, 2, 3])]), g={"nodes": [latent], "links": []})
    assert converted(group)["32:31"] == {"width": 1, "height": 2, "batch_size": 3}


def test_a_text_area_makes_a_text_of_what_is_none() -> None:
    texts = [12, 1.0, 2.5, True, None, ["a", [1, None]], {"a": 1}]
    nodes = [node(k, "CLIPTextEncode", values=[text]) for k, text in enumerate(texts)]
    made = converted(flow(nodes))
    assert [made[str(k)]["text"] for k in range(len(texts))] == [
        "12", "1", "2.5", "true", "", "a,1,", "[object Object]",
    ]  # fmt: skip
    # A field of one line keeps it.
    assert inputs_of(node(1, "SaveImage", values=[12])) == {"filename_prefix": 12}


def test_the_samplers_of_2023_have_other_names_today() -> None:
    values = [5, "fixed", 20, 8.5, "sample_euler", "normal", 0.75]
    assert inputs_of(node(1, "KSampler", values=values))["sampler_name"] == "euler"
    assert inputs_of(node(1, "KSamplerSelect", values=["sample_euler"])) == {"sampler_name": "sample_euler"}


@pytest.mark.parametrize(
    ("options", "value", "fitted"),
    [
        ({"step": 0.1, "round": 0.01}, 3.14159, 3.1),
        ({"step": 0.01}, 3.14159, 3.14),
        ({}, 3.14159, 3.1),  # a step of 0.5
        ({"step": 1}, 3.14159, 3.14159),  # no digits: nothing to round to
        ({"step": 1, "round": 0.5}, 3.3, 4),
        ({"step": 0}, -2.55, -2.5),
        ({"step": 0.1, "max": 3}, 3.14159, 3),
        ({"step": 0.1}, 1e17, 1e17),
        ({"step": 0.1}, "2.5", 2.5),
        ({"step": 0.1}, "7", 7),
        ({"step": 0.1}, "seven", "seven"),
        ({"step": 0.1}, "1_0", "1_0"),
        ({"step": 0.1}, float("inf"), float("inf")),
        ({"step": 0.1}, True, True),
    ],
)
def test_a_primitive_gives_a_number_as_its_widget_shows_it(options: Json, value: Any, fitted: Any) -> None:
    info = {"Number": {"input": {"required": {"number": ["FLOAT", options]}}, "output": []}}
    workflow = flow(
        [node(1, "PrimitiveNode", {}, [("FLOAT", 1)], [value]), node(2, "Number", {"number": 1}, values=[0])],
        (1, 1, 0, 2, 0),
    )
    made = convert_workflow(workflow, info).prompt["2"]["inputs"]["number"]
    assert made == fitted and type(made) in (type(fitted), int, float)


@pytest.mark.parametrize(
    ("options", "value", "fitted"),
    [({}, 2.5, 3), ({}, -2.5, -2), ({}, -2.6, -3), ({"min": 1, "step": 8}, 6, 9), ({"min": 1, "step": 8}, 4, 1)],
)
def test_a_primitive_gives_a_whole_number_to_an_int(options: Json, value: Any, fitted: int) -> None:
    info = {"Number": {"input": {"required": {"number": ["INT", options]}}, "output": []}}
    workflow = flow(
        [node(1, "PrimitiveNode", {}, [("INT", 1)], [value]), node(2, "Number", {"number": 1}, values=[0])],
        (1, 1, 0, 2, 0),
    )
    assert convert_workflow(workflow, info).prompt["2"]["inputs"]["number"] == fitted


def test_a_promoted_widget_whose_prefix_is_wrong_is_found_by_its_name() -> None:
    """The ids inside of a subgraph may have changed since the prefix was written."""
    inner = subgraph(
        "inner", [node(6, "EmptyLatentImage", {"width": 1}, values=[64, 128, 2])], (1, -10, 0, 6, 0),
        inputs=[("width", "INT", 1)],
    )  # fmt: skip
    outer = subgraph("outer", [node(3, "inner", {"width": None}, values=[32])])
    for entry, width in ((["3", "99: width"], 8), (["3", "6: width"], 8), (["3", "99: height"], 32)):
        host = node(1, "outer", values=[8], properties={"proxyWidgets": [entry]})
        made = converted(flow([host], subgraphs=[outer, inner]))
        assert made["1:3:6"]["width"] == width, entry


# ------------------------------------------------------------------------------------------------
# Group nodes
# ------------------------------------------------------------------------------------------------


def with_groups(workflow: Json, **definitions: Json) -> Json:
    return {**workflow, "extra": {"groupNodes": definitions}}


#: Two texts and a sampler; the second text has another title, so its input gets a name of its own.
SAMPLING = {
    "nodes": [
        node(-1, "CLIPTextEncode", {"clip": None}, [("CONDITIONING",)], ["inner a"]),
        node(-1, "CLIPTextEncode", {"clip": None}, [("CONDITIONING",)], ["inner b"], title="Negative"),
        node(
            -1, "KSampler", {"model": None, "positive": None, "negative": None, "latent_image": None},
            [("LATENT",)], KSAMPLER,
        ),
    ],
    "links": [[0, 0, 2, 1, 4, "CONDITIONING"], [1, 0, 2, 2, 5, "CONDITIONING"], [None, 0, 2, 0, 1, "MODEL"], [0]],
    "external": [],
}  # fmt: skip
SAMPLING_VALUES = ["outer a", "outer b", 99, "fixed", 11, 5, "ddim", "karras", 0.5]


def sampling(mode: int = 0, type_: str = "workflow>sampling", **more: Any) -> Json:
    loader = node(1, "CheckpointLoaderSimple", {}, [("MODEL", 3), ("CLIP", 1, 2), ("VAE",)], ["m.safetensors"])
    group = node(
        5, type_, {"clip": 1, "Negative clip": 2, "model": 3, "latent_image": 4}, [("LATENT", 5)],
        SAMPLING_VALUES, mode, **more,
    )  # fmt: skip
    for raw_input, type_ in zip(group["inputs"], ("CLIP", "CLIP", "MODEL", "LATENT")):
        raw_input["type"] = type_
    workflow = flow(
        [
            loader,
            node(4, "EmptyLatentImage", {}, [("LATENT", 4)], [64, 128, 2]),
            group,
            node(6, "VAEDecode", {"samples": 5}),
        ],
        (1, 1, 1, 5, 0), (2, 1, 1, 5, 1), (3, 1, 0, 5, 2), (4, 4, 0, 5, 3), (5, 5, 0, 6, 0),
    )  # fmt: skip
    return with_groups(workflow, sampling=copy.deepcopy(SAMPLING))


@pytest.mark.parametrize("type_", ["workflow>sampling", "workflow/sampling"])
def test_a_group_node_becomes_a_subgraph_with_its_values_in_order(type_: str) -> None:
    made = converted(sampling(type_=type_))
    assert warnings(sampling()) == ()
    assert made["34:31"] == {"text": "outer a", "clip": ["1", 1]}
    assert made["34:32"] == {"text": "outer b", "clip": ["1", 1]}
    assert made["34:33"] == {
        "seed": 99, "steps": 11, "cfg": 5, "sampler_name": "ddim", "scheduler": "karras", "denoise": 0.5,
        "model": ["1", 0], "positive": ["34:31", 0], "negative": ["34:32", 0], "latent_image": ["4", 0],
    }  # fmt: skip
    assert made["6"] == {"samples": ["34:33", 0]}
    assert set(made) == {"1", "4", "6", "34:31", "34:32", "34:33"}


def test_a_group_node_that_is_off_stays_off() -> None:
    """Frontend 1.58.1 runs it nevertheless: a fault of that version."""
    assert converted(sampling(mode=2))["6"] == {}
    bypassed = converted(sampling(mode=4))
    assert bypassed["6"] == {"samples": ["4", 0]}
    assert set(bypassed) == {"1", "4", "6"}


def test_each_of_two_group_nodes_has_nodes_of_its_own() -> None:
    workflow = sampling()
    workflow["nodes"].append(node(7, "workflow>sampling", values=["x", "y", 1], title="Again"))
    made = converted(workflow)
    assert (made["38:35"]["text"], made["38:36"]["text"], made["38:37"]["seed"]) == ("x", "y", 1)
    assert made["38:37"]["steps"] == 20
    assert warnings(workflow) == (
        'node 38 "Again" (workflow>sampling, node 7 of the file): '
        'the file has too few values, so the defaults apply to "KSampler".',
    )
    workflow["nodes"][-1]["widgets_values"] = []
    assert converted(workflow)["38:35"] == {"text": "inner a"}
    workflow["nodes"][-1]["widgets_values"] = [*SAMPLING_VALUES, "more"]
    (warning,) = warnings(workflow)
    assert "1 value that none of its widgets takes (more)" in warning


def test_a_value_in_a_group_node_that_was_edited_is_in_the_workflow_that_goes_along() -> None:
    workflow = sampling()
    made = convert_workflow(workflow, OBJECT_INFO)
    values = {InputRef("34:32", "text"): "edited", InputRef("34:33", "cfg"): 2}
    edited = edited_workflow(made, workflow, with_values(made.prompt, values))
    group = edited["nodes"][2]["widgets_values"]
    assert group == ["outer a", "edited", 99, "fixed", 11, 2, "ddim", "karras", 0.5]
    assert convert_workflow(edited, OBJECT_INFO).prompt["34:32"]["inputs"]["text"] == "edited"


def test_group_nodes_with_the_same_id_are_two() -> None:
    workflow = sampling()
    workflow["nodes"].append(node(5, "workflow>sampling", values=["x", "y"]))
    made = converted(workflow)
    assert (made["35:32"]["text"], made["39:36"]["text"]) == ("outer a", "x")


def test_what_a_group_node_hides_and_shows() -> None:
    """Hidden inputs keep their values; an output that leads inside is shown where the file says so."""
    invert = node(-1, "ImageInvert", {"image": None}, [("IMAGE",)])
    definition = {
        "nodes": [
            node(-1, "LoadImage", {}, [("IMAGE",), ("MASK",)], ["in.png", "image"]),
            {**invert, "inputs": []},
            invert,
            invert,
            node(-1, "EmptyLatentImage", {}, [("LATENT",)], [8, 8, 1]),
        ],
        "links": [
            [0, 0, 1, 0, 1, "IMAGE"],
            [2, 0, 3, 0, 1, "IMAGE"],
            [3, 0, 5, 0, 1, "IMAGE"],
            [5, 0, 3, 0, 1, "IMAGE"],
        ],
        "external": [[{"index": 0}, 0, "IMAGE"], "?"],
        "config": {
            "2": {"input": {"image": {"name": "picture"}}, "output": {"0": {"visible": True}}},
            "4": {"input": {"width": {"visible": False}}, "output": {"0": {"visible": False}}},
        },
    }
    group = node(
        5, "workflow>g", {"shown as": 1}, [("IMAGE", 2), ("MASK",), ("IMAGE",), ("IMAGE", 3), ("IMAGE", 4)],
        ["out.png", "image", 16, 24, 3],
    )  # fmt: skip
    workflow = flow(
        [
            LOAD,
            group,
            node(6, "PreviewImage", {"images": 2}),
            node(7, "PreviewImage", {"images": 3}),
            node(8, "PreviewImage", {"images": 4}),
        ],
        (1, 1, 0, 5, 0), (2, 5, 0, 6, 0), (3, 5, 3, 7, 0), (4, 5, 4, 8, 0),
    )  # fmt: skip
    made = converted(with_groups(workflow, g=definition))
    assert made["36:31"] == {"image": "out.png"}
    assert made["36:32"] == {"image": ["36:31", 0]}
    assert made["36:33"] == {"image": ["1", 0]}  # named otherwise: by its place
    assert made["36:34"] == {"image": ["36:33", 0]}
    assert made["36:35"] == {"width": 16, "height": 24, "batch_size": 3}
    assert (made["6"], made["7"], made["8"]) == (
        {"images": ["36:31", 0]}, {"images": ["36:33", 0]}, {"images": ["36:34", 0]},
    )  # fmt: skip


def test_a_widget_of_a_group_node_may_be_linked() -> None:
    definition = {"nodes": [node(-1, "EmptyLatentImage", {}, [("LATENT",)], [8, 8, 1])] * 2, "links": []}
    group = node(5, "workflow>g", {"EmptyLatentImage height": 1}, [("LATENT",), ("LATENT",)], [1, 2, 3, 4, 5, 6])
    group["inputs"][0]["widget"] = {"name": "EmptyLatentImage height"}
    group["inputs"].append({"name": "width", "type": "INT", "link": None, "widget": {"name": "width"}})
    group["inputs"].append({"name": "no such", "type": "INT", "link": 1, "widget": {"name": "no such"}})
    workflow = flow([node(1, "PrimitiveInt", {}, [("INT", 1)], [7, "fixed"]), group], (1, 1, 0, 5, 0))
    made = converted(with_groups(workflow, g=definition))
    assert made["33:31"] == {"width": 1, "height": 2, "batch_size": 3}
    assert made["33:32"] == {"width": 4, "height": ["1", 0], "batch_size": 6}


def test_names_in_a_group_node_are_made_unique() -> None:
    invert = node(-1, "ImageInvert", {"image": None}, [("IMAGE",)])
    labelled = {**invert, "inputs": [{"name": "image", "label": "photo", "link": None}]}
    definition = {"nodes": [invert, invert, invert, labelled], "links": []}
    names = ["ImageInvert 2 image", "ImageInvert image", "image", "photo"]
    group = node(5, "workflow>g", {name: link for link, name in enumerate(names, 1)}, [("IMAGE",)] * 4)
    sources = [node(k, "LoadImage", {}, [("IMAGE", k)], [f"{k}.png", "image"]) for k in (1, 2, 3, 4)]
    links = [(k, k, 0, 5, k - 1) for k in (1, 2, 3, 4)]
    made = converted(with_groups(flow([*sources, group], *links), g=definition))
    assert [made[f"35:{k}"]["image"][0] for k in (31, 32, 33, 34)] == ["3", "2", "1", "4"]


def test_a_primitive_in_a_group_node_has_a_value_of_the_group_node() -> None:
    primitive = node(-1, "PrimitiveNode", {}, [("INT",)], title="side")
    latent = node(-1, "EmptyLatentImage", {}, [("LATENT",)], [8, 8, 1])
    latent["inputs"] = [{"name": name, "link": None, "widget": {"name": name}} for name in ("width", "height")]
    text = node(-1, "PrimitiveNode", {}, [("STRING",)])
    prompt = node(-1, "CLIPTextEncode", {"clip": None, "text": None}, values=["inner"])
    definition = {
        "nodes": [primitive, latent, node(-1, "PrimitiveNode", {}, [("INT",)]), text, prompt],
        "links": [[0, 0, 1, 0, 1, "INT"], [0, 0, 1, 1, 1, "INT"], [3, 0, 4, 1, 1, "STRING"]],
    }
    workflow = with_groups(flow([node(5, "workflow>g", {}, [], [640, "fixed", 2, "a fox"])]), g=definition)
    made = converted(workflow)
    assert made == {
        "36:32": {"width": 640, "height": 640, "batch_size": 2},
        "36:35": {"text": "a fox"},
    }
    made_again = convert_workflow(workflow, OBJECT_INFO)
    edited = with_values(made_again.prompt, {InputRef("36:32", "width"): 8, InputRef("36:32", "batch_size"): 3})
    assert edited_workflow(made_again, workflow, edited)["nodes"][0]["widgets_values"] == [640, "fixed", 3, "a fox"]


def test_a_reroute_in_a_group_node() -> None:
    """Between inner nodes it hands on; what comes from outside is lost, as in the frontend."""
    reroute = node(-1, "Reroute", {"": None}, [("IMAGE",)])
    invert = node(-1, "ImageInvert", {"image": None}, [("IMAGE",)])
    invert["inputs"][0]["type"] = "IMAGE"
    definition = {
        "nodes": [reroute, invert, reroute, invert, {**reroute, "inputs": []}],
        "links": [[0, 0, 1, 5, 1, "?"], [0, 0, 1, 0, 1, "IMAGE"], [1, 0, 2, 0, 1, "IMAGE"], [2, 0, 3, 0, 1, "IMAGE"]],
        "config": {"0": {"input": {"IMAGE": {"name": "picture"}}}},
    }
    group = node(5, "workflow>g", {"picture": 1, "*": None}, [("IMAGE",)])
    workflow = with_groups(flow([LOAD, group], (1, 1, 0, 5, 0)), g=definition)
    assert converted(workflow) == {"1": {"image": "a.png"}, "36:32": {}, "36:34": {"image": ["36:32", 0]}}
    assert warnings(workflow) == (
        'node 36 "workflow>g" (workflow>g, node 5 of the file): its input "picture" leads to a Reroute inside, '
        "where ComfyUI's frontend loses it; link it to the nodes themselves.",
    )


@pytest.mark.parametrize("definitions", [None, {}, {"g": None}, {"g": {"nodes": []}}])
def test_a_group_node_that_the_file_does_not_explain_is_an_unknown_class(definitions: Any) -> None:
    workflow = flow([LOAD, node(5, "workflow>g", {"a": 1})], (1, 1, 0, 5, 0), extra={"groupNodes": definitions})
    assert "node 5 (workflow>g)" in refusal(workflow).message


def test_a_class_of_the_server_may_be_named_as_a_group_node() -> None:
    info = {**OBJECT_INFO, "workflow>g": {"input": {"required": {"number": ["INT", {}]}}, "output": []}}
    workflow = with_groups(flow([node(5, "workflow>g", values=[3])]), g=SAMPLING)
    assert convert_workflow(workflow, info).prompt["5"]["inputs"] == {"number": 3}


def test_an_inner_node_that_is_none_is_refused() -> None:
    workflow = with_groups(flow([node(5, "workflow>g")]), g={"nodes": ["?"]})
    assert "is not a node with an id and a type" in refusal(workflow).message


# ------------------------------------------------------------------------------------------------
# Packs whose scripts make widgets
# ------------------------------------------------------------------------------------------------

#: What such classes look like in /object_info, as far as a test needs it.
PACKS: Json = {
    **OBJECT_INFO,
    "Power Lora Loader (rgthree)": {
        "input": {"required": {}, "optional": {"model": ["MODEL"], "clip": ["CLIP"]}},
        "output": ["MODEL", "CLIP"],
    },
    "VHS_VideoCombine": {
        "input": {
            "required": {
                "images": ["IMAGE"],
                "frame_rate": ["FLOAT", {"default": 8, "widgetType": "VHSFLOAT"}],
                "loop_count": ["INT", {"default": 0}],
                "filename_prefix": ["STRING", {"default": "Film"}],
                "format": [
                    ["image/gif", "video/mp4", "video/mkv"],
                    {
                        "formats": {
                            "video/mp4": [
                                ["pix_fmt", ["yuv420p", "yuv420p10le"]],
                                ["crf", "INT", {"default": 19}],
                                ["odd", "MODEL"],
                                "?",
                            ],
                            "video/mkv": [["crf", "INT", {"default": 30}], ["level", ["0", "1"], {"default": "1"}]],
                        }
                    },
                ],
                "pingpong": ["BOOLEAN", {"default": False}],
                "save_output": ["BOOLEAN", {"default": True}],
            }
        },
        "output": [],
    },
    "VHS_LoadVideo": {
        "input": {
            "required": {
                "video": [["a.mp4"]],
                "force_rate": ["FLOAT", {"default": 0}],
                "custom_width": ["INT", {"default": 0}],
                "custom_height": ["INT", {"default": 0}],
                "frame_load_cap": ["INT", {"default": 0}],
                "skip_first_frames": ["INT", {"default": 0}],
                "select_every_nth": ["INT", {"default": 1}],
                "format": [["None", "Wan"], {"formats": {"None": {}, "Wan": {"target_rate": 16}}}],
            }
        },
        "output": ["IMAGE"],
    },
    "Styles": {
        "input": {
            "required": {"style": [["modern", "old"]]},
            "optional": {
                "positive": ["STRING", {"forceInput": True}],
                "chosen": ["STYLE_PICKER", {}],
                "pipe": ["MODEL"],
                "several": ["A,B"],
            },
        },
        "output": [["modern"], "STYLES"],
    },
    "Moment": {
        "input": {
            "required": {
                "start": ["FLOAT", {"widgetType": "TIMESTAMP"}],
                "mark": ["MARK", {"widgetType": ["?"], "default": "x"}],
            }
        },
        "output": [],
    },
}


def packed(made: Json) -> Json:
    inputs: Json = convert_workflow(flow([made]), PACKS).prompt["1"]["inputs"]
    return inputs


def packed_warnings(made: Json) -> Tuple[str, ...]:
    return convert_workflow(flow([made]), PACKS).warnings


LORAS = [
    {},
    {"type": "PowerLoraLoaderHeaderWidget"},
    {"on": True, "lora": "a.safetensors", "strength": 0.8, "strengthTwo": None},
    {"on": False, "lora": "b.safetensors", "strength": 1, "strengthTwo": 0.5},
    {},
    "",
]


def test_every_row_of_a_power_lora_loader_is_sent() -> None:
    made = node(1, "Power Lora Loader (rgthree)", values=LORAS)
    assert packed(made) == {
        "lora_1": {"on": True, "lora": "a.safetensors", "strength": 0.8},
        "lora_2": {"on": False, "lora": "b.safetensors", "strength": 1},
    }
    assert packed_warnings(made) == ()
    made["properties"]["Show Strengths"] = "Separate Model & Clip"
    assert [row["strengthTwo"] for row in packed(made).values()] == [1, 0.5]


FILES_WITH_PACKS = [
    sampling(),
    sampling(mode=4),
    flow(
        [
            node(1, "Power Lora Loader (rgthree)", values=LORAS),
            node(2, "VHS_VideoCombine", {"crf": 1}, values={"format": "video/mp4", "crf": 5}),
            node(3, "VHS_LoadVideo", {}, [("IMAGE", 2)], ["a.mp4", 0, "64x?", 1, 2, 3]),
            node(4, "Styles", values=["old", "", "warm"]),
            node(5, "PrimitiveNode", {}, [("INT", 1)], ["7", "fixed"]),
        ],
        (1, 5, 0, 2, 0), (2, 3, 0, 2, 1),
    ),
]  # fmt: skip


def test_a_part_of_a_row_can_be_set_by_name() -> None:
    workflow = flow([node(1, "Power Lora Loader (rgthree)", values=LORAS)])
    made = convert_workflow(workflow, PACKS)
    text = "Power Lora Loader (rgthree).lora_1.strength=0.5"
    prompt, _ = apply_edits(made.prompt, [parse_set(made.prompt, text)], PACKS)
    assert prompt["1"]["inputs"]["lora_1"] == {"on": True, "lora": "a.safetensors", "strength": 0.5}
    edited = edited_workflow(made, workflow, prompt)
    assert edited["nodes"][0]["widgets_values"][2]["strength"] == 0.5


def test_a_format_of_a_video_brings_its_widgets() -> None:
    values = {
        "frame_rate": 12, "loop_count": 0, "filename_prefix": "A", "format": "video/mp4", "crf": 5,
        "pingpong": False, "save_output": True, "videopreview": {"hidden": False},
    }  # fmt: skip
    made = node(1, "VHS_VideoCombine", values=values)
    assert packed(made) == {
        "frame_rate": 12, "loop_count": 0, "filename_prefix": "A", "format": "video/mp4", "pix_fmt": "yuv420p",
        "crf": 5, "pingpong": False, "save_output": True,
    }  # fmt: skip
    assert packed_warnings(made) == ()
    assert "crf" not in packed(node(1, "VHS_VideoCombine", values={"format": "image/gif"}))
    assert packed_warnings(node(1, "VHS_VideoCombine", values={"tone": 3})) == (
        "node 1 (VHS_VideoCombine): the file has 1 value that none of its widgets takes (tone).",
    )


def test_a_widget_of_a_format_can_be_linked() -> None:
    inputs = [{"name": "crf", "type": ["INT"], "link": 1, "widget": {"name": "crf"}}]
    workflow = flow(
        [
            node(1, "VHS_VideoCombine", values={"format": "video/mp4", "crf": 5}),
            node(2, "PrimitiveInt", {}, [("INT", 1)], [7, "fixed"]),
        ],
        (1, 2, 0, 1, 0),
    )
    workflow["nodes"][0]["inputs"] = inputs
    assert convert_workflow(workflow, PACKS).prompt["1"]["inputs"]["crf"] == ["2", 0]


def test_another_format_replaces_the_widgets_of_the_last_one() -> None:
    """A bound that both formats have begins anew."""
    template = create_template("VHS_VideoCombine", PACKS)
    made = template.create_node({}, "1", LGraph({}), None)
    combo = next(widget for widget in made.widgets if widget.name == "format")
    for chosen, names in (("video/mp4", ["pix_fmt", "crf"]), ("video/mkv", ["crf", "level"]), (None, [])):
        made.set_value(combo, chosen)
        assert [widget.name for widget in made.widgets if widget.format_of] == names
    assert "crf" not in made.values


def test_the_date_in_the_name_of_a_video() -> None:
    workflow = flow([node(1, "VHS_VideoCombine", values={"filename_prefix": "a%date:yyyy%"})])
    made = convert_workflow(workflow, PACKS, now=datetime.datetime(2026, 3, 4)).prompt
    assert made["1"]["inputs"]["filename_prefix"] == "a2026"


def test_values_of_older_video_nodes_have_other_names_today() -> None:
    made = node(1, "VHS_VideoCombine", values=[12, 0, "A", "image/gif", True, False, "more"])
    assert (packed(made)["pingpong"], packed(made)["save_output"]) == (True, False)
    assert packed_warnings(made) == ()
    short = packed(node(1, "VHS_VideoCombine", values=[12, 3]))
    assert (short["frame_rate"], short["loop_count"], short["filename_prefix"]) == (12, 3, "Film")


@pytest.mark.parametrize(
    ("size", "width", "height"),
    [
        ("512x?", 512, 0), ("?x384", 0, 384), ("512x384", 512, 384), ("Disabled", 0, 0), ("Custom Height", 0, 2),
        ("Custom Width", 1, 0), ("Custom", 1, 2), (7, 1, 2),
    ],
)  # fmt: skip
def test_the_size_of_an_older_video_loader_is_a_width_and_a_height_today(size: Any, width: int, height: int) -> None:
    values = {"video": "a.mp4", "force_size": size, "custom_width": 1, "custom_height": 2, "format": "Wan"}
    made = packed(node(1, "VHS_LoadVideo", values=values))
    assert (made["custom_width"], made["custom_height"], made["format"]) == (width, height, "Wan")
    assert packed(node(1, "VHS_LoadVideo", values=["a.mp4", 0, "64x?", 1, 2, 3]))["custom_width"] == 64


@pytest.mark.parametrize("values", [["old", "", "warm"], {"style": "old", "chosen": "warm"}])
def test_a_widget_that_only_a_script_knows_sends_what_the_file_has(values: Any) -> None:
    """The file shows that it is a widget: it is not among the sockets, and the values fit."""
    made = node(1, "Styles", {"pipe": None}, values=values)
    assert packed(made) == {"style": "old", "chosen": "warm"}
    two = convert_workflow(flow([made, {**made, "id": 2}]), PACKS).prompt
    assert two["2"]["inputs"] == two["1"]["inputs"]
    assert packed_warnings(made) == ()


@pytest.mark.parametrize(
    ("inputs", "values"),
    [
        ({"chosen": None}, ["old"]),
        ({"chosen": None}, ["old", "warm"]),  # it is a socket
        ({}, ["old"]),  # no value is left for it
        ({}, ["old", "dummy"]),  # the second value is that of the forced input
        ({}, ["old", "warm", "a", "b", "c"]),  # the values fit neither way
        ({}, {"style": "old"}),
        ({"chosen": None, "positive": None, "pipe": None, "several": None}, ["old", "warm", "x"]),
    ],
)
def test_what_may_be_a_socket_gets_no_value(inputs: Json, values: Any) -> None:
    assert packed(node(1, "Styles", inputs, values=values)) == {"style": "old"}


def test_a_widget_type_that_only_a_script_knows_is_a_plain_widget() -> None:
    assert packed(node(1, "Moment")) == {"start": 0, "mark": "x"}
    assert packed(node(1, "Moment", values=[1.5, "y"])) == {"start": 1.5, "mark": "y"}


def test_a_socket_may_have_choices_for_a_type() -> None:
    made = node(1, "Reroute", {"": None}, [(["a", "b"], 1)])
    made["inputs"][0]["type"] = {"no": "type"}
    choice = node(2, "KSampler", {"sampler_name": 1}, values=KSAMPLER)
    choice["inputs"][0].update(type=["euler", "ddim"], name="my sampler")
    workflow = flow([made, choice, node(3, "PrimitiveNode", {}, [(["a"],)])], (1, 1, 0, 2, 0))
    assert converted(workflow)["2"]["sampler_name"] == "euler"


# ------------------------------------------------------------------------------------------------
# Values that fit no widget
# ------------------------------------------------------------------------------------------------


def test_values_that_no_widget_takes_are_reported() -> None:
    values = [*KSAMPLER, "a", {"b": 1}, None, "", "c", "d"]
    assert warnings(flow([node(1, "KSampler", values=values)])) == (
        "node 1 (KSampler): the file has 4 values that none of its widgets takes (a, {'b': 1}, c).",
    )


def test_too_few_values_are_reported() -> None:
    assert warnings(flow([node(1, "KSampler", values=KSAMPLER[:2])])) == (
        'node 1 (KSampler): the file has too few values, so the defaults apply to "steps", "cfg", "sampler_name".',
    )
    # A file without any values means the defaults; what is optional or made here is not missed.
    assert warnings(flow([node(1, "KSampler"), node(2, "KSampler", values=[])])) == ()
    assert warnings(flow([node(1, "PrimitiveInt", values=[7])])) == ()
    assert warnings(flow([node(1, "UNETLoader", values=["a.safetensors", "default"])])) == ()


def test_values_of_nodes_that_do_not_run_are_not_reported() -> None:
    assert warnings(flow([node(1, "KSampler", values=[1], mode=2)])) == ()


def test_what_only_shows_something_is_not_reported() -> None:
    nodes = [
        node(1, "PreviewAny", values=["shown", "again"]),
        node(2, "ImageCompare", values=[{"before": "a"}]),
        node(3, "LoadImage", values=["a.png", "image", "upload"]),
    ]
    assert warnings(flow(nodes)) == ()


# ------------------------------------------------------------------------------------------------
# The larger set, and files that nothing wrote
# ------------------------------------------------------------------------------------------------

#: Workflows with what the frontend exported from them, beside the repository.
SHARED = os.environ.get("CONVERSION_SET") or os.path.join(
    os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "shared", "comfyui", "conversion"
)


def test_every_workflow_of_the_larger_set_becomes_what_the_frontend_exported() -> None:
    if not os.path.isdir(SHARED):
        pytest.skip("the larger set is not here: %s (CONVERSION_SET says where else)" % SHARED)
    with gzip.open(os.path.join(SHARED, "object_info.json.gz")) as packed:
        object_info = json.load(packed)
    with open(os.path.join(SHARED, "index.json"), encoding="utf-8") as file:
        index = json.load(file)
    different = []
    for name, about in index.items():
        with open(os.path.join(SHARED, "workflows", name + ".json"), encoding="utf-8") as file:
            workflow = json.load(file)
        if not about["comparable"]:
            try:
                convert_workflow(workflow, object_info)
            except ConversionError as error:
                assert any(one in error.message for one in about["missing_types"])
            continue
        with open(os.path.join(SHARED, "prompts", name + ".json"), encoding="utf-8") as file:
            truth = json.load(file)
        made = convert_workflow(workflow, object_info).prompt
        if {k: (v["class_type"], v["inputs"]) for k, v in made.items()} != {
            k: (v["class_type"], v["inputs"]) for k, v in truth.items()
        }:
            different.append(name)
    assert different == []


def small_files() -> List[Json]:
    found = [copy.deepcopy(workflow) for workflow, _ in CASES.values()]
    for name in sorted(os.listdir(FIXTURES)):
        if name.endswith(".json") and name != "object_info.json":
            with open(os.path.join(FIXTURES, name), encoding="utf-8") as file:
                found.append(json.load(file)["workflow"])
    return found


def test_a_value_that_was_edited_is_in_the_workflow_that_goes_along() -> None:
    """Converting the edited workflow gives the edited prompt."""
    edits = 0
    for workflow in small_files():
        before = copy.deepcopy(workflow)
        try:
            made = convert_workflow(workflow, OBJECT_INFO)
        except ConversionError:
            continue
        for node_id, (_, places) in made.places.items():
            for name, value in made.prompt[node_id]["inputs"].items():
                spec = input_spec(OBJECT_INFO, made.prompt[node_id]["class_type"], name)
                plain = spec.type in ("INT", "STRING") and type(value) in (int, str) and "{" not in str(value)
                if name not in places or not plain or name == "filename_prefix":
                    continue
                edited = with_values(made.prompt, {InputRef(node_id, name): value * 2})
                again = convert_workflow(edited_workflow(made, workflow, edited), OBJECT_INFO).prompt
                assert again[node_id]["inputs"].get(name) in (value * 2, value), (node_id, name)
                edits += again[node_id]["inputs"].get(name) == value * 2 != value
        assert workflow == before
    assert edits > 50


def test_a_document_is_converted_only_if_it_has_no_prompt() -> None:
    def ask(classes: Any) -> Any:
        assert classes is None
        return OBJECT_INFO

    def refuse(classes: Any) -> Any:
        raise AssertionError("asked")

    workflow = flow([node(1, "LoadImage", values=["a.png", "image"])])
    made = make_prompt(Document(None, workflow), ask)
    assert made.prompt["1"]["inputs"] == {"image": "a.png"}
    assert make_prompt(Document(made.prompt, workflow), refuse) == Conversion(made.prompt)
    loaded = Loaded(made.prompt, "w.json", workflow, made)
    sent = loaded.extra(with_values(made.prompt, {InputRef("1", "image"): "b.png"}))
    assert sent["extra_data"]["extra_pnginfo"]["workflow"]["nodes"][0]["widgets_values"] == ["b.png", "image"]
    with pytest.raises(WorkflowError, match="has nothing to run"):
        make_prompt(Document(None, flow([node(1, "LoadImage", mode=2)])), ask)


def test_a_value_that_a_primitive_gives_is_edited_in_the_primitive_too() -> None:
    """It would give its own again when the workflow is opened; the value of several stays."""
    named = {"value": 100}
    workflow = flow(
        [
            node(1, "PrimitiveNode", {}, [("INT", 1)], [104, "fixed"], widgets_values_named=named),
            node(2, "EmptyLatentImage", {"width": 1, "height": 2}, [("LATENT",)], [64, 128, 2]),
            node(3, "PrimitiveNode", {}, [("INT", 2, 3)], [200, "fixed"]),
            node(4, "EmptyLatentImage", {"width": 3}, [("LATENT",)], [64, 128, 2]),
        ],
        (1, 1, 0, 2, 0), (2, 3, 0, 2, 1), (3, 3, 0, 4, 0),
    )  # fmt: skip
    made = convert_workflow(workflow, OBJECT_INFO)
    values = {InputRef("2", "width"): 512, InputRef("2", "height"): 768}
    edited = edited_workflow(made, workflow, with_values(made.prompt, values))
    assert [raw["widgets_values"] for raw in edited["nodes"]] == [
        [512, "fixed"], [512, 768, 2], [200, "fixed"], [64, 128, 2],
    ]  # fmt: skip
    assert edited["nodes"][0]["widgets_values_named"] == {"value": 512} and named == {"value": 100}


def test_a_value_that_stands_by_name_too_is_edited_in_both_places() -> None:
    values = {"image": "a.png", "upload": "image"}
    workflow = flow([node(1, "LoadImage", values=["a.png", "image"], widgets_values_named=values)])
    made = convert_workflow(workflow, OBJECT_INFO)
    edited = edited_workflow(made, workflow, with_values(made.prompt, {InputRef("1", "image"): "b.png"}))
    assert edited["nodes"][0]["widgets_values"] == ["b.png", "image"]
    assert edited["nodes"][0]["widgets_values_named"] == {"image": "b.png", "upload": "image"}
    assert values["image"] == "a.png"


def test_nodes_of_a_subgraph_that_stands_twice_keep_their_values_in_the_file() -> None:
    inner = subgraph("s", [node(1, "LoadImage", values=["a.png", "image"])])
    once = flow([node(5, "s")], subgraphs=[inner])
    twice = flow([node(5, "s"), node(6, "s")], subgraphs=[inner])
    assert convert_workflow(once, OBJECT_INFO).places["5:1"][1]["image"] == 0
    assert set(convert_workflow(twice, OBJECT_INFO).places) == set()


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-20, 40), st.floats(), st.text(max_size=3),
    st.sampled_from(["-10", "-20", "Reroute", "PrimitiveNode", "GetNode", "KSampler", "s", "inner", "outer"]),
    st.builds(list), st.builds(dict), st.lists(st.integers(-2, 9), max_size=6),
)  # fmt: skip


def places(value: Any) -> List[Tuple[Any, Any]]:
    """Every (container, key) of a document."""
    found: List[Tuple[Any, Any]] = []
    waiting = [value]
    for one in waiting:
        for key in one if isinstance(one, dict) else range(len(one)) if isinstance(one, list) else ():
            found.append((one, key))
            waiting.append(one[key])
    return found


@pytest.mark.long
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_conversion_fuzz(data: st.DataObject) -> None:
    """A broken file ends in a prompt that is JSON, or in a ConversionError; never in anything else."""
    workflow: Any = copy.deepcopy(data.draw(st.sampled_from(FILES)))
    for _ in range(data.draw(st.integers(1, 10))):
        holder, key = data.draw(st.sampled_from(places(workflow)))
        how = data.draw(st.sampled_from(["replace", "delete", "double", "move"]))
        if how == "replace":
            holder[key] = data.draw(JUNK)
        elif how == "delete":
            del holder[key]
        elif how == "double" and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        else:
            other, name = data.draw(st.sampled_from(places(workflow)))
            holder[key] = copy.deepcopy(other[name])
        if not places(workflow):
            break
    before = copy.deepcopy(workflow)
    try:
        result = convert_workflow(workflow, PACKS)
    except ConversionError as error:
        assert error.message
    else:
        json.dumps(result.prompt)
        for made in result.prompt.values():
            assert made["class_type"] in PACKS
            for value in made["inputs"].values():
                assert not isinstance(value, list) or (value[0] in result.prompt and isinstance(value[1], int))
        edits = {InputRef(node_id, name): 7 for node_id, (_, names) in result.places.items() for name in names}
        edited_workflow(result, workflow, with_values(result.prompt, edits))
    assert repr(workflow) == repr(before)


FILES = [*small_files(), *FILES_WITH_PACKS]
