"""What a run made is found in its history entry, under whatever key it is."""

from __future__ import annotations

import base64
import json
from typing import Any, Dict, List, Optional, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import anything, few, node_ids
from support import node

from comfyui_runner.events import Preview
from comfyui_runner.outputs import (
    Output,
    choose_received,
    collect_outputs,
    count_missing,
    declared_pictures,
    received_outputs,
    split_media_path,
    view_path,
)
from comfyui_runner.simulator import draw

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
        ({"result": ["m.glb", None, {}]}, [("3d", "m.glb", "", "output")]),
        ({"text": ["hello", "", "from comfy"]}, [("text", "hello"), ("text", "from comfy")]),
        ({"text": "hello"}, [("text", "hello")]),
        ({"files": [{"filename": "data.csv"}, {"filename": "x.weird"}, {"filename": "noending"}]},
         [("text", "data.csv", "", "output"), ("file", "x.weird", "", "output"), ("file", "noending", "", "output")]),
        ({"my_node": {"filename": "a.png", "subfolder": None, "type": 5}}, [("image", "a.png", "", "output")]),
        ({"images": [{"filename": "a.png"}], "ui": [{"filename": "a.png", "subfolder": "", "type": "output"}]},
         [("image", "a.png", "", "output")]),
        ({"images": [{"filename": "a.png", "type": "temp"}, {"filename": "a.png", "type": "output"}]},
         [("image", "a.png", "", "output"), ("image", "a.png", "", "temp")]),
        ({"images": [{"filename": "a.png", "type": "input"}, {"filename": "b.png", "type": "temp"}], "text": ["b"]},
         [("text", "b"), ("image", "b.png", "", "temp")]),
        ({"images": None, "a": 5, "b": True, "c": [[], None, 7]}, [("text", "5"), ("text", "true"), ("text", "7")]),
        ({"c": [{"filename": 5}, {"filename": ""}, {"name": "a.png"}]}, []),
        ({}, []),
        # Numbers and booleans that are shown; beside files they are settings, unless they are under "text".
        ({"text": [832]}, [("text", "832")]),
        ({"value": [0.75, True, None]}, [("text", "0.75"), ("text", "true")]),
        ({"text": [[1, 2, 3]], "more": [[{}], ["a", "ä"]]}, [("text", "[1, 2, 3]"), ("text", '["a", "ä"]')]),
        ({"animated": [True]}, []),
        ({"images": [{"filename": "a.png"}], "aspect": [1.5], "text": [2]},
         [("image", "a.png", "", "output"), ("text", "2")]),
        ({"result": ["m.glb", None, [1]]}, [("3d", "m.glb", "", "output")]),
        # Paths in texts.
        ({"result": ["3d/a b/mesh_00001.glb", {"position": {}}, [{}]]},
         [("3d", "mesh_00001.glb", "3d/a b", "output")]),
        ({"result": ["3d\\mesh_00001.ply"]}, [("3d", "mesh_00001.ply", "3d", "output")]),
        ({"images": [{"filename": "a.png", "subfolder": "x"}], "text": ["x/a.png"]},
         [("image", "a.png", "x", "output")]),
        ({"text": ["notes.txt", "x.weird", "a.png\n", " a.png", ".png", "a/.png", "http://x/a.png", "C:\\a.png"]},
         [("text", text) for text in
          ["notes.txt", "x.weird", "a.png\n", " a.png", ".png", "a/.png", "http://x/a.png", "C:\\a.png"]]),
    ],
)  # fmt: skip
def test_what_a_node_made_is_found_under_any_key(ui: Any, outputs: List[Tuple[str, ...]]) -> None:
    assert made(ui) == outputs


@pytest.mark.parametrize(
    "text",
    ["../a.png", "..\\a.png", "/etc/a.png", "a/../../b.png", "a//b.png", "./a.png", "a/ .. /b.png", "a/.../b.png",
     "\\\\host\\a.png", "temp/../a.png", "a\0.png", "x" * 1000 + ".png"],
)  # fmt: skip
def test_a_path_that_leads_elsewhere_is_only_a_text(text: str) -> None:
    assert made({"result": [text], "text": [text]}) == [("text", text)]


@few
@given(st.text(alphabet="ab./\\: \n", max_size=12))
def test_no_path_in_a_text_leads_out_of_the_folder(text: str) -> None:
    parts = split_media_path(text + ".glb")
    assert not any(part.strip(". ") == "" or "/" in part or "\\" in part for part in parts)


@pytest.mark.parametrize(
    ("class_type", "path", "found"),
    [
        ("Save3DAdvanced", "temp/a.glb", ("a.glb", "temp", "output")),
        ("SaveGaussianSplat", "3d/a.splat", ("a.splat", "3d", "output")),
        ("ShowPath", "temp\\deep/a.MP4", ("a.MP4", "deep", "temp")),
        ("Preview3D", "temp/bg.png", ("bg.png", "", "temp")),
        ("Preview3D", "preview3d_1.glb", ("preview3d_1.glb", "", "output")),
        ("Preview3DAdvanced", "preview3d_advanced_1.glb", ("preview3d_advanced_1.glb", "", "temp")),
        ("PreviewGaussianSplat", "preview_splat_1.spz", ("preview_splat_1.spz", "", "temp")),
        ("PreviewPointCloud", "temp/preview_pointcloud_1.ply", ("preview_pointcloud_1.ply", "", "temp")),
    ],
)
def test_comfyuis_own_3d_nodes_mean_one_folder_each(class_type: str, path: str, found: Tuple[str, ...]) -> None:
    (output,) = collect_outputs({"1": {"result": [path, None, []]}}, {"1": node(class_type)})
    assert (output.filename, output.subfolder, output.type) == found
    assert (output.source, output.is_on_server) == ("file", True)


def test_a_name_that_another_node_shows_may_be_that_of_no_output() -> None:
    (output,) = collect_outputs({"1": {"text": ["cats/a.png"]}}, {"1": node("ShowText")})
    assert (output.source, output.path) == ("text", "cats/a.png")


PNG = base64.b64encode(draw(8, 8, 1, ["A"])).decode()


@pytest.mark.parametrize("text", [PNG, "data:image/png;base64," + PNG])
def test_base64_is_the_file_that_it_is(text: str) -> None:
    (output,) = collect_outputs({"3": {"text": [text]}}, {"3": node("ToBase64", "To/Text")})
    assert (output.kind, output.filename, output.text, output.source) == ("image", "To_Text.png", None, "base64")
    assert output.read_content() == base64.b64decode(PNG) and output.size == len(base64.b64decode(PNG))
    assert not output.is_on_server and output.type == ""
    assert "content" not in output.to_json() and PNG not in json.dumps(output.to_json())


def test_what_only_begins_as_base64_has_no_content() -> None:
    (output,) = collect_outputs({"3": {"text": [PNG + "!"]}}, CHAIN)
    assert output.source == "base64" and output.read_content() is None


def picture(node_id: Optional[str], image: bytes = b"x") -> Preview:
    return Preview(node_id, "image/png", image)


SENDERS = {"1": node("KSampler"), "2": node("SaveImageWebsocket"), "3": node("ETN_SendImageWebSocket")}
WEBSOCKET = {"source": "websocket", "content-type": "image/png", "type": "output"}


def test_of_a_node_with_steps_the_pictures_are_previews() -> None:
    came = [picture("1", b"a"), picture("2", b"b"), picture("3", b"c"), picture(None, b"d")]
    chosen = choose_received(came, {}, SENDERS, {"1", "2", ""})
    assert [each.image for each in chosen] == [b"b", b"c"]


def test_of_a_node_that_says_how_many_it_sent_so_many_count() -> None:
    came = [picture("3", b"a"), picture("3", b"b"), picture("2", b"c"), picture("3", b"d")]
    outputs: Dict[str, Any] = {"3": {"images": [WEBSOCKET, WEBSOCKET, {"filename": "x.png"}]}, "2": {"text": ["a"]}}
    assert declared_pictures(outputs) == {"3": 2}
    assert [each.image for each in choose_received(came, outputs, SENDERS, {"3"})] == [b"b", b"c", b"d"]
    assert count_missing(came, outputs) == 0
    assert count_missing([picture("3"), picture("2")], outputs) == 1


def test_received_pictures_are_named_after_their_nodes_and_numbered() -> None:
    """The ending is that of the picture, else of its type."""
    prompt = {"1": node("SaveImageWebsocket", "O/ne"), "2": node("SaveImageWebsocket")}
    came = [picture("1", draw(8, 8, 1, ["A"])), Preview("2", "image/jpeg", b"b"), Preview(None, "image/x", b"c")]
    outputs = received_outputs(came, prompt)
    assert [output.filename for output in outputs] == ["O_ne_00001.png", "SaveImageWebsocket_00002.jpeg", "_00003.x"]
    assert [output.size for output in outputs] == [len(came[0].image), 1, 1]
    assert {(output.kind, output.type, output.text, output.source) for output in outputs} == {
        ("image", "", None, "websocket")
    }
    assert outputs[1].read_content() == b"b"


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
        assert json.dumps(output.to_json())


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
