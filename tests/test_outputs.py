"""What a run made is found in its history entry, under whatever key it is."""

from __future__ import annotations

import json
from typing import Any, Dict, List, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import anything, few, node_ids
from support import node

from comfyui_runner.outputs import Output, collect_outputs, view_path

#: A chain of three nodes; the last one saves.
CHAIN = {
    "1": node("Loader", "Loader"),
    "2": node("Sampler", "Sampler", model=["1", 0]),
    "3": node("SaveImage", "Save", images=["2", 0]),
}


def made(ui: Any) -> List[Tuple[str, ...]]:
    """What is collected of what one node, "Save", made: (kind, filename, subfolder, type), or ("text", text)."""
    outputs = collect_outputs({"3": ui}, CHAIN)
    assert {(output.node_id, output.title) for output in outputs} <= {("3", "Save")}
    return [
        (found.kind, found.filename, found.subfolder, found.type) if found.text is None else (found.kind, found.text)
        for found in outputs
    ]


@pytest.mark.parametrize(
    ("ui", "outputs"),
    [
        (
            {"images": [{"filename": "a.png", "subfolder": "x", "type": "output"}], "animated": [False]},
            [("image", "a.png", "x", "output")],
        ),
        (
            {"images": [{"filename": "a.webp", "subfolder": "", "type": "temp"}], "animated": (True,)},
            [("image", "a.webp", "", "temp")],
        ),
        (
            {"gifs": [{"filename": "v.MP4", "subfolder": "", "type": "output", "format": "video/h264-mp4"}]},
            [("video", "v.MP4", "", "output")],
        ),
        ({"audio": [{"filename": "a.flac", "subfolder": "s", "type": "output"}]}, [("audio", "a.flac", "s", "output")]),
        ({"3d": [{"filename": "m.glb", "subfolder": "mesh", "type": "output"}]}, [("3d", "m.glb", "mesh", "output")]),
        ({"result": ["m.glb", None, {}]}, [("text", "m.glb")]),
        ({"text": ["hello", "", "from comfy"]}, [("text", "hello"), ("text", "from comfy")]),
        ({"text": "hello"}, [("text", "hello")]),
        ({"files": [{"filename": "data.csv"}, {"filename": "x.weird"}, {"filename": "noending"}]},
         [("text", "data.csv", "", "output"), ("file", "x.weird", "", "output"), ("file", "noending", "", "output")]),
        ({"my_node": {"filename": "a.png", "subfolder": None, "type": 5}}, [("image", "a.png", "", "output")]),
        ({"images": [{"filename": "a.png"}], "ui": [{"filename": "a.png", "subfolder": "", "type": "output"}]},
         [("image", "a.png", "", "output")]),
        ({"images": [{"filename": "a.png", "type": "temp"}, {"filename": "a.png", "type": "output"}]},
         [("image", "a.png", "", "temp"), ("image", "a.png", "", "output")]),
        ({"images": None, "a": 5, "b": True, "c": [[], 7, {"filename": 5}, {"filename": ""}, {"name": "a.png"}]}, []),
        ({}, []),
    ],
)  # fmt: skip
def test_what_a_node_made_is_found_under_any_key(ui: Any, outputs: List[Tuple[str, ...]]) -> None:
    assert made(ui) == outputs


def test_outputs_come_node_by_node_with_their_titles() -> None:
    outputs = collect_outputs({"3": {"text": ["a"]}, "2.0.0.1": {"text": ["a"]}, "99": {"text": ["b"]}}, CHAIN)
    assert [(output.node_id, output.title, output.text) for output in outputs] == [
        ("3", "Save", "a"),
        ("2.0.0.1", "Sampler", "a"),
        ("99", "99", "b"),
    ]


@few
@given(st.dictionaries(node_ids.map(str), st.dictionaries(st.text(max_size=4), anything, max_size=3), max_size=3))
def test_any_output_can_be_collected(outputs: Dict[str, Any]) -> None:
    for output in collect_outputs(outputs, CHAIN):
        assert output.filename if output.text is None else output.text


def of_file(filename: str, subfolder: str = "", kind: str = "output") -> Output:
    return Output("3", "Save", "image", filename, subfolder, kind)


@pytest.mark.parametrize(
    ("output", "path"),
    [
        (of_file("a.png"), "/view?filename=a.png&subfolder=&type=output"),
        (of_file("a b&c=d#?.png", "x/y z", "temp"), "/view?filename=a+b%26c%3Dd%23%3F.png&subfolder=x%2Fy+z&type=temp"),
        (of_file("狐.png", "..", "in&put"), "/view?filename=%E7%8B%90.png&subfolder=..&type=in%26put"),
    ],
)
def test_the_path_of_a_file_is_quoted(output: Output, path: str) -> None:
    assert view_path(output) == path


def test_a_file_name_that_is_no_unicode_has_a_path_too() -> None:
    """JSON can hold a lone surrogate: Python makes one of a byte in a file name that is not UTF-8."""
    name = json.loads('"\\udcff.png"')
    assert view_path(of_file(name)).startswith("/view?filename=")
