"""What the simulator's nodes do, what /object_info says of them, and the pictures that they make."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import os
import struct
import time
import zlib
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional, Tuple

import pytest
from simulated import Json, ask_json, png_text

from comfyui_runner.simulator.actions import Result
from comfyui_runner.simulator.faults import Faults, keys_of_path
from comfyui_runner.simulator.frames import (
    make_big_preview,
    make_message,
    make_noise_frames,
    make_noise_messages,
    make_preview,
    make_preview_with_metadata,
)
from comfyui_runner.simulator.inputs import SAMPLERS, SCHEDULERS
from comfyui_runner.simulator.installation import Installation
from comfyui_runner.simulator.life import Life
from comfyui_runner.simulator.nodes import NODES
from comfyui_runner.simulator.odd_bodies import with_odd_body
from comfyui_runner.simulator.pictures import (
    WHITE,
    Image,
    draw,
    draw_rows,
    encode_png,
    make_label,
    measure,
)
from comfyui_runner.simulator.replies import Reply, as_echo, as_json
from comfyui_runner.simulator.signatures import Signatures


class Watched:
    """A run that notes what its node asks of it."""

    def __init__(self, installation: Installation, previews: bool = False) -> None:
        self.installation = installation
        self.previews = previews
        self.prompt: Json = {"1": {"class_type": "X"}}
        self.extra_data: Json = {"extra_pnginfo": {"workflow": {"id": "w"}}}
        self.secrets: Json = {}
        self.notes: List[Any] = []

    def check(self) -> None:
        self.notes.append("check")

    def sleep(self, seconds: float) -> None:
        self.notes.append(("sleep", seconds))

    def progress(self, value: int, total: int, preview: Any = None) -> None:
        self.notes.append((value, total, preview))

    def send_picture(self, picture: bytes) -> None:
        self.notes.append(picture)


@pytest.fixture
def watched(begin: Callable[..., Life]) -> Watched:
    return Watched(begin(step_seconds=0.5).installation)


def act(context: Watched, class_type: str, **inputs: Any) -> Result:
    """What a node makes of its inputs; each of them is one that it has."""
    node = NODES[class_type]
    assert set(node.specs) - set(node.optional) <= set(inputs) <= set(node.specs)
    result: Result = node.action(context, inputs)
    return result


IMAGE = Image(40, 20, 7, 2)


@pytest.mark.parametrize(
    ("class_type", "inputs", "outputs"),
    [
        ("CheckpointLoaderSimple", {"ckpt_name": "x"}, ("MODEL", "CLIP", "VAE")),
        ("VAELoader", {"vae_name": "x"}, ("VAE",)),
        ("UNETLoader", {"unet_name": "x", "weight_dtype": "x"}, ("MODEL",)),
        (
            "LoraLoader",
            {"model": "m", "clip": "c", "lora_name": "x", "strength_model": 1, "strength_clip": 1},
            ("MODEL", "CLIP"),
        ),
        ("CLIPTextEncode", {"text": "words", "clip": "CLIP"}, ("words",)),
        ("EmptyLatentImage", {"width": 8, "height": 16, "batch_size": 3}, (Image(8, 16, 0, 3),)),
        ("EmptyImage", {"width": 8, "height": 16, "batch_size": 3, "color": 5}, (Image(8, 16, 5, 3),)),
        ("VAEDecode", {"samples": IMAGE, "vae": "VAE"}, (IMAGE,)),
        ("VAEEncode", {"pixels": IMAGE, "vae": "VAE"}, (IMAGE,)),
        ("ImageInvert", {"image": IMAGE}, (IMAGE,)),
        ("ImageBatch", {"image1": IMAGE, "image2": Image(1, 1, 1, 3)}, (Image(40, 20, 7, 5),)),
        ("LoadAudio", {"audio": "a.flac"}, ("a.flac",)),
        ("LoadVideo", {"file": "a.mp4"}, ("a.mp4",)),
    ],
)
def test_a_node_passes_on_what_it_is_given(
    watched: Watched, class_type: str, inputs: Json, outputs: Tuple[Any, ...]
) -> None:
    assert act(watched, class_type, **inputs) == Result(outputs)
    assert watched.notes == []


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(10, 30, (10, 30)), (0, 0, (40, 20)), (60, 0, (60, 30)), (0, 60, (120, 60)), (1, 0, (1, 1)), (0, 1, (2, 1))],
)
def test_a_picture_is_scaled(watched: Watched, width: int, height: int, expected: Any) -> None:
    more = {"upscale_method": "area", "crop": "disabled"}
    result = act(watched, "ImageScale", image=IMAGE, width=width, height=height, **more)
    assert result == Result((Image(expected[0], expected[1], 7, 2),))


def test_a_side_of_a_scaled_picture_is_rounded_and_never_nothing(watched: Watched) -> None:
    more = {"upscale_method": "area", "crop": "disabled"}
    for image, width, height, expected in (
        (Image(1000, 3, 1), 10, 0, (10, 1)),
        (Image(3, 1000, 1), 0, 10, (1, 10)),
        (Image(30, 20, 1), 4, 0, (4, 3)),
        (Image(20, 30, 1), 0, 4, (3, 4)),
    ):
        (scaled,) = act(watched, "ImageScale", image=image, width=width, height=height, **more).outputs
        assert scaled[:2] == expected


def test_a_loaded_picture_is_measured_with_its_mask(watched: Watched) -> None:
    Path(watched.installation.folder("input"), "a.png").write_bytes(draw(30, 20, 1, ["X"]))
    Path(watched.installation.folder("temp"), "b.jpg").write_bytes(b"jpeg")
    picture = Image(30, 20, zlib.crc32(draw(30, 20, 1, ["X"])))
    assert act(watched, "LoadImage", image="a.png") == Result((picture, picture))
    other = Image(512, 512, zlib.crc32(b"jpeg"))
    assert act(watched, "LoadImageMask", image="b.jpg [temp]", channel="red").outputs[0] == other


# ------------------------------------------------------------------------------------------------
# Steps
# ------------------------------------------------------------------------------------------------

SAMPLER = dict.fromkeys(("model", "cfg", "sampler_name", "scheduler", "positive", "negative"), 1)


@pytest.mark.parametrize(("previews", "preview"), [(True, 9), (False, None)])
def test_a_sampler_reports_its_steps(watched: Watched, previews: bool, preview: Optional[int]) -> None:
    watched.previews = previews
    result = act(watched, "KSampler", **SAMPLER, latent_image=IMAGE, seed=9, steps=2, denoise=1)
    assert result == Result((Image(40, 20, 9, 2),))
    step = [("sleep", 0.5), "check"]
    assert watched.notes == [*step, (1, 2, preview), *step, (2, 2, preview)]


@pytest.mark.parametrize(
    ("steps", "start", "end", "expected"),
    [(5, 0, 10000, 5), (5, 2, 10000, 3), (5, 0, 3, 3), (5, 1, 4, 3), (5, 5, 9, 0), (5, 7, 9, 0), (5, 4, 5, 1)],
)
def test_an_advanced_sampler_makes_a_part_of_the_steps(
    watched: Watched, steps: int, start: int, end: int, expected: int
) -> None:
    part = {"start_at_step": start, "end_at_step": end, "return_with_leftover_noise": "disable"}
    more = {**SAMPLER, **part, "add_noise": "enable"}
    result = act(watched, "KSamplerAdvanced", **more, latent_image=IMAGE, noise_seed=9, steps=steps)
    assert result == Result((Image(40, 20, 9, 2),))
    made = [note for note in watched.notes if isinstance(note, tuple) and note[0] != "sleep"]
    assert made == [(step, expected, None) for step in range(1, expected + 1)]


@pytest.mark.parametrize(("preview", "expected"), [(True, 9), (False, None)])
def test_slow_progress_reports_its_steps(watched: Watched, preview: bool, expected: Any) -> None:
    result = act(watched, "SlowProgress", steps=2, seconds=0.0, seed=9, preview=preview)
    assert result == Result((Image(64, 64, 9),))
    assert watched.notes == ["check", (1, 2, expected), "check", (2, 2, expected)]


class Impatient(Watched):
    """A run that is interrupted when its node looks for the third time."""

    def check(self) -> None:
        super().check()
        if self.notes.count("check") == 3:
            raise InterruptedError


def test_slow_progress_looks_for_an_interrupt_more_often_than_once_a_step(watched: Watched) -> None:
    impatient = Impatient(watched.installation)
    with pytest.raises(InterruptedError):
        act(impatient, "SlowProgress", steps=2, seconds=7200.0, seed=9, preview=False)
    assert impatient.notes == ["check", ("sleep", 0.05), "check", ("sleep", 0.05), "check"]


def test_slow_progress_takes_its_time(watched: Watched) -> None:
    begun = time.monotonic()
    act(watched, "SlowProgress", steps=2, seconds=0.04, seed=9, preview=False)
    assert time.monotonic() - begun >= 0.04
    pauses = [note[1] for note in watched.notes if note[0] == "sleep"]
    assert 0.0 <= min(pauses) <= max(pauses) <= 0.02
    assert [note for note in watched.notes if note[0] in (1, 2)] == [(1, 2, None), (2, 2, None)]


# ------------------------------------------------------------------------------------------------
# Outputs
# ------------------------------------------------------------------------------------------------


def file_of(watched: Watched, entry: Json) -> bytes:
    folder = watched.installation.folder(entry["type"], entry["subfolder"])
    return Path(folder, entry["filename"]).read_bytes()


def test_a_saved_picture_holds_its_prompt_and_its_workflow(watched: Watched) -> None:
    prefix = "x_%width%x%height%_%batch_num%"
    result = act(watched, "SaveImage", images=IMAGE, filename_prefix=prefix)
    names = ["x_40x20_0_00001_.png", "x_40x20_1_00001_.png"]
    entries = [{"filename": name, "subfolder": "", "type": "output"} for name in names]
    assert result == Result((IMAGE,), {"images": entries})
    texts = [("prompt", '{"1": {"class_type": "X"}}'), ("workflow", '{"id": "w"}')]
    for number, entry in enumerate(entries):
        lines = ["SIMULATED", "SEED 7", f"40x20 NO {number + 1}"]
        assert file_of(watched, entry) == draw(40, 20, 7 + number, lines, texts)
    watched.extra_data = {"extra_pnginfo": None}
    (entry,) = act(watched, "SaveImage", images=Image(9, 9, 1), filename_prefix="y").ui["images"]  # type: ignore
    assert list(png_text(file_of(watched, entry))) == ["Software", "prompt"]


def test_previews_are_temporary(watched: Watched) -> None:
    names = set()
    for _ in range(2):
        result = act(watched, "PreviewImage", images=Image(9, 9, 1))
        assert result.outputs == (Image(9, 9, 1),) and result.ui is not None
        (entry,) = result.ui["images"]
        names.add(entry["filename"])
        assert (entry["type"], entry["subfolder"], len(entry["filename"])) == ("temp", "", 29)
        assert entry["filename"].startswith("ComfyUI_temp_") and entry["filename"].endswith("_00001_.png")
        assert file_of(watched, entry)
    assert len(names) == 2


def test_pictures_sent_over_the_websocket_are_whole(watched: Watched) -> None:
    assert act(watched, "SaveImageWebsocket", images=IMAGE) == Result()
    assert watched.notes == [(number + 1, 2, draw(40, 20, 7 + number, ["SIMULATED", "SEED 7"])) for number in range(2)]


def test_sound_and_film_are_labels(watched: Watched) -> None:
    sound = {"filename": "s_00001_.flac", "subfolder": "a", "type": "output"}
    result = act(watched, "SaveAudio", audio="in", filename_prefix="a/s")
    assert result == Result(("in",), {"audio": [sound]})
    assert file_of(watched, sound) == b"SIMULATED: flac file of the ComfyUI simulator\n"
    film = {"filename": "v_00001_.mp4", "subfolder": "", "type": "output"}
    result = act(watched, "SaveVideo", video="in", filename_prefix="v", format="auto", codec="auto")
    assert result == Result(("in",), {"images": [film], "animated": [True]})
    assert file_of(watched, film) == b"SIMULATED: mp4 file of the ComfyUI simulator\n"


def test_values_and_texts_are_shown(watched: Watched) -> None:
    assert act(watched, "PreviewAny", source="x") == Result(("x",), {"text": ["x"]})
    assert act(watched, "PreviewAny", source=[1, None]) == Result(("[1, null]",), {"text": ["[1, null]"]})
    assert act(watched, "TextOut", text="x") == Result((), {"text": ["x"]})
    with pytest.raises(ValueError, match=r"^boom$"):
        act(watched, "FailNode", message="boom", image=IMAGE)


def simulate_ui(watched: Watched, ui: Json) -> Any:
    return act(watched, "SimulatedOutput", ui=json.dumps(ui)).ui


def test_any_output_is_shown_as_it_is_given_and_its_files_exist(watched: Watched) -> None:
    named = {"filename": "x/a.bin", "type": "temp", "subfolder": "s"}
    ui: Json = {"files": [{**named, "bytes": 60}], "text": ["words"], "flag": True, "n": [1, None]}
    assert simulate_ui(watched, ui) == {**ui, "files": [named]}
    label = b"SIMULATED: x/a.bin of the ComfyUI simulator\n"
    assert file_of(watched, named) == label + b"." * (60 - len(label))

    for name, content in (
        ("b.PNG", draw(64, 64, zlib.crc32(b"b.PNG"), ["SIMULATED"])),
        ("b.jpg", b"SIMULATED: b.jpg of the ComfyUI simulator\n"),
    ):
        simulate_ui(watched, {"images": [{"filename": name}]})
        assert file_of(watched, {"filename": name, "type": "output", "subfolder": ""}) == content
    simulate_ui(watched, {"images": [{"filename": "c.png", "bytes": 1}]})
    entry = {"filename": "c.png", "type": "output", "subfolder": ""}
    assert file_of(watched, entry).startswith(b"SIMULATED: c.png")


def test_an_output_may_name_a_file_by_a_bare_path(watched: Watched) -> None:
    suffixes = ["obj", "fbx", "gltf", "glb", "usdz", "stl", "ply", "splat", "ksplat", "spz"]
    paths = [f"mesh\\a.{suffix.upper()}" for suffix in suffixes]
    ui: Json = {"result": [*paths, "temp/x/b.glb", "../c.glb", "d.png", 7]}
    assert simulate_ui(watched, ui) == ui
    root = Path(watched.installation.root)
    found = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert found == {f"output/mesh/a.{suffix.upper()}" for suffix in suffixes} | {"temp/x/b.glb"}
    assert (root / "output/mesh/a.GLB").read_bytes() == b"SIMULATED: a.GLB of the ComfyUI simulator\n"


def test_an_output_may_send_its_picture(watched: Watched) -> None:
    sent = {"source": "websocket", "type": "output"}
    shown = simulate_ui(watched, {"images": [sent, {**sent, "listed": False}, {**sent, "listed": True}]})
    assert shown == {"images": [sent, sent]}
    assert watched.notes == [draw(64, 64, number, ["SIMULATED"]) for number in (2, 3, 3)]
    assert not list(Path(watched.installation.folder("output")).iterdir())


def test_a_partner_node_needs_credentials_and_prefers_the_token(watched: Watched) -> None:
    inputs = {"text": "a fox", "seed": 7}
    for secrets in ({}, {"api_key_comfy_org": ""}, {"another": "key"}):
        watched.secrets = secrets
        with pytest.raises(Exception, match=r"^Unauthorized: Please login first to use this node\.$"):
            act(watched, "PartnerImage", **inputs)
    assert watched.installation.partner_keys == []
    watched.secrets = {"api_key_comfy_org": "key"}
    assert act(watched, "PartnerImage", **inputs) == Result((Image(64, 64, 7),))
    watched.secrets["auth_token_comfy_org"] = "token"
    act(watched, "PartnerImage", **inputs)
    assert watched.installation.partner_keys == ["key", "token"]


# ------------------------------------------------------------------------------------------------
# /object_info
# ------------------------------------------------------------------------------------------------

TEST_NODES: Json = {
    "SlowProgress": {
        "input": {
            "required": {
                "steps": ["INT", {"default": 20, "min": 1, "max": 1000000}],
                "seconds": ["FLOAT", {"default": 10.0, "min": 0.0, "max": 3600.0}],
                "seed": [
                    "INT",
                    {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True},
                ],
                "preview": ["BOOLEAN", {"default": False}],
            }
        },
        "input_order": {"required": ["steps", "seconds", "seed", "preview"]},
        "output": ["IMAGE"],
        "output_is_list": [False],
        "output_name": ["IMAGE"],
        "display_name": "Slow Progress (test)",
        "output_node": False,
    },
    "FailNode": {
        "input": {"required": {"message": ["STRING", {"default": "boom"}], "image": ["IMAGE"]}},
        "input_order": {"required": ["message", "image"]},
        "output": ["IMAGE"],
        "output_is_list": [False],
        "output_name": ["IMAGE"],
        "display_name": "Fail (test)",
        "output_node": False,
    },
    "PartnerImage": {
        "input": {
            "required": {
                "text": ["STRING", {"multiline": True}],
                "seed": [
                    "INT",
                    {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True},
                ],
            }
        },
        "input_order": {"required": ["text", "seed"]},
        "output": ["IMAGE"],
        "output_is_list": [False],
        "output_name": ["IMAGE"],
        "display_name": "Partner Image (test)",
        "output_node": False,
        "api_node": True,
    },
    "TextOut": {
        "input": {"required": {"text": ["STRING", {"multiline": True}]}},
        "input_order": {"required": ["text"]},
        "output": [],
        "output_is_list": [],
        "output_name": [],
        "display_name": "Text Out (test)",
        "output_node": True,
    },
    "SimulatedOutput": {
        "input": {
            "required": {"ui": ["STRING", {"multiline": True}]},
            "optional": {"source": ["*"]},
        },
        "input_order": {"required": ["ui"], "optional": ["source"]},
        "output": [],
        "output_is_list": [],
        "output_name": [],
        "display_name": "Simulated Output (test)",
        "output_node": True,
    },
}
NEWER = {"is_input_list": False, "has_intermediate_output": False, "search_aliases": []}


@pytest.mark.parametrize(("version", "more"), [("0.33.0", NEWER), ("0.3.64", {})])
def test_the_nodes_for_tests_are_described_like_any(begin: Callable[..., Life], version: str, more: Json) -> None:
    life = begin(version=version)
    whole = ask_json(life, "GET", "/object_info")
    for name, expected in TEST_NODES.items():
        constant = {"name": name, "description": "", "category": "test"}
        assert ask_json(life, "GET", "/object_info/" + name) == {
            name: {**expected, **constant, "python_module": "comfyui_runner.simulator", **more}
        }
        assert whole[name] == ask_json(life, "GET", "/object_info/" + name)[name]
    others = set(whole) - set(TEST_NODES)
    assert {whole[name]["python_module"] for name in others} == {"nodes"}
    assert all(whole[name]["name"] == name for name in whole)
    assert ask_json(life, "GET", "/object_info/NoSuchNode") == {}


def test_a_video_has_its_format_and_codec(begin: Callable[..., Life]) -> None:
    whole = ask_json(begin(), "GET", "/object_info")
    options = {"default": "auto", "multiselect": False}
    assert whole["SaveVideo"]["input"] == {
        "required": {
            "video": ["VIDEO"],
            "filename_prefix": ["STRING", {"default": "video/ComfyUI", "multiline": False}],
            "format": ["COMBO", {**options, "options": ["auto", "mp4"]}],
            "codec": ["COMBO", {**options, "options": ["auto", "h264"]}],
        }
    }


def test_the_inputs_of_real_nodes_are_the_recorded_ones(begin: Callable[..., Life]) -> None:
    """Every fixed choice with its options, and every number with its bounds."""
    fixtures = Path(__file__).parent / "fixtures" / "recordings" / "object_info.json"
    recorded = json.loads(fixtures.read_text(encoding="utf-8"))
    whole = ask_json(begin(), "GET", "/object_info")
    choices = 0
    for name, node in recorded.items():
        if name == "SaveVideo":
            continue
        for key, (kind, *settings) in node["input"]["required"].items():
            is_list_of_files = kind == "COMBO" or key in ("image", "unet_name", "vae_name", "ckpt_name", "lora_name")
            if is_list_of_files:
                continue
            choices += isinstance(kind, list)
            spec = whole[name]["input"]["required"][key]
            assert spec == [kind, *[each for each in settings if each]], (name, key)
    assert choices == 10
    assert (len(SAMPLERS.split()), len(SCHEDULERS.split())) == (44, 9)


# ------------------------------------------------------------------------------------------------
# Signatures
# ------------------------------------------------------------------------------------------------


def test_a_signature_covers_all_that_a_result_depends_on(watched: Watched) -> None:
    path = Path(watched.installation.folder("input"), "a.png")
    path.write_bytes(b"x")
    os.utime(path, (1, 1))

    def sign(**changes: Any) -> str:
        inputs = {"image": "a.png", "text": "x", "link": ["1", 0], **changes.pop("inputs", {})}
        prompt = {
            "1": {"class_type": "EmptyImage", "inputs": {"width": changes.pop("width", 1)}},
            "2": {"class_type": "EmptyImage", "inputs": {"width": 1}},
            "3": {"class_type": "LoadImage", "inputs": inputs, **changes},
        }
        return Signatures(watched.installation, prompt).of("3")

    base = sign()
    assert len(base) == 64
    assert sign() == base
    assert sign(inputs={"link": ["2", 0]}) == base  # an equal node
    assert sign(_meta={"title": "other"}) == base
    signatures = {
        base,
        sign(class_type="SaveImage"),
        sign(inputs={"text": "y"}),
        sign(inputs={"more": 1}),
        sign(inputs={"link": ["1", 1]}),
        sign(inputs={"link": ["4", 0]}),
        sign(inputs={"image": "b.png"}),
        sign(inputs={"image": ["1", 0]}),
        sign(inputs={"image": 7}),
        sign(width=2),
    }
    os.utime(path, (2, 2))
    signatures.add(sign())
    path.unlink()
    signatures.add(sign())
    assert len(signatures) == 12


def test_the_order_of_inputs_does_not_count(watched: Watched) -> None:
    first = {"1": {"class_type": "X", "inputs": {"a": 1, "b": 2}}}
    second = {"1": {"class_type": "X", "inputs": {"b": 2, "a": 1}}}
    signatures = {Signatures(watched.installation, prompt).of("1") for prompt in (first, second)}
    assert len(signatures) == 1


def test_nodes_in_a_ring_have_signatures(watched: Watched) -> None:
    prompt: Json = {
        "1": {"class_type": "X", "inputs": {"a": ["2", 0]}},
        "2": {"class_type": "X", "inputs": {"a": ["1", 0]}},
        "3": {"class_type": "X", "inputs": [1]},
        "4": {"class_type": "X"},
    }
    signatures = Signatures(watched.installation, prompt)
    assert signatures.of("1") != signatures.of("2")
    assert signatures.of("3") == signatures.of("4")


def test_a_node_that_always_changes_is_never_equal(watched: Watched) -> None:
    prompt = {"1": {"class_type": "SaveImageWebsocket", "inputs": {}}}
    first = Signatures(watched.installation, prompt).of("1")
    time.sleep(0.02)
    assert Signatures(watched.installation, prompt).of("1") != first


# ------------------------------------------------------------------------------------------------
# Pictures
# ------------------------------------------------------------------------------------------------


def ink_of(width: int, height: int, *lines: str) -> List[str]:
    """The rows of a picture, "#" for white."""
    rows = list(draw_rows(width, height, 5, lines))
    assert {len(row) for row in rows} == {3 * width}
    return ["".join("#" if row[at : at + 3] == WHITE else "." for at in range(0, len(row), 3)) for row in rows]


TWO_LINES = """
........................................
...............##.###.#.#...............
..............#....#..###...............
...............#...#..###...............
................#..#..#.#...............
..............##..###.#.#...............
........................................
........................................
................#.#..#..................
................#.#.##..................
.................#...#..................
................#.#..#..................
................#.#.###.................
........................................
........................................
........................................
........................................
"""
TWICE_AS_LARGE = """
........................
........................
......##....######......
......##....######......
....##..##....##........
....##..##....##........
....######....##........
....######....##........
....##..##....##........
....##..##....##........
....##..##....##........
....##..##....##........
........................
........................
........................
........................
........................
........................
........................
"""


def test_a_text_is_written_in_the_middle() -> None:
    assert ink_of(40, 17, "sim", "X1") == TWO_LINES.split()
    assert ink_of(24, 19, "AT") == TWICE_AS_LARGE.split()
    unknown = ["###."] * 5
    assert ink_of(4, 7, "??") == [*unknown, "....", "...."]  # what does not fit is cut
    assert ink_of(3, 1, "A") == ["#.#"]


@pytest.mark.parametrize(
    ("width", "height", "scale"),
    [(11, 17, 1), (12, 18, 2), (12, 17, 1), (11, 18, 1), (18, 27, 3), (1, 1, 1)],
)
def test_a_text_is_as_large_as_fits(width: int, height: int, scale: int) -> None:
    rows = ink_of(width, height, "L")  # 4 + 2 columns, 7 + 2 rows
    stroke = max(len(row.strip(".")) for row in rows)
    assert stroke == min(3 * scale, width)


def test_the_colors_go_from_one_to_another() -> None:
    hashed = hashlib.sha256(b"5").digest()
    top, bottom = [part // 2 for part in hashed[:3]], [part // 2 for part in hashed[3:6]]
    rows = [row[:3] for row in draw_rows(60, 100, 5, ["X"])]
    assert list(rows[0]) == top
    assert list(rows[50]) == [above + (below - above) * 50 // 100 for above, below in zip(top, bottom)]
    assert list(rows[99]) == [above + (below - above) * 99 // 100 for above, below in zip(top, bottom)]
    assert max(max(row) for row in rows) < 128


def test_a_picture_is_a_png_with_its_texts() -> None:
    data = encode_png(2, 1, [b"abcdef"], [("k\u00fc", "v")])
    chunks, at = [], 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    pixels = zlib.decompress(chunks[3][1])
    assert pixels == b"\0abcdef"
    assert [*chunks[:3], chunks[4]] == [
        (b"IHDR", b"\0\0\0\2\0\0\0\1\x08\2\0\0\0"),
        (b"tEXt", b"Software\0ComfyUI simulator"),
        (b"tEXt", b"k\xfc\0v"),
        (b"IEND", b""),
    ]
    assert png_text(encode_png(1, 1, [b"abc"], [("k", "v")])) == {
        "Software": "ComfyUI simulator",
        "k": "v",
    }


def test_a_label_is_padded_and_never_cut() -> None:
    text = b"SIMULATED: x of the ComfyUI simulator\n"
    assert make_label("x") == make_label("x", 5) == text
    assert make_label("x", len(text) + 2) == text + b".."


def test_only_the_size_of_a_png_is_known(tmp_path: Path) -> None:
    head = draw(30, 20, 1, ["X"])[:24]
    for content, size in ((head, (30, 20)), (head[:23], (512, 512)), (b"\xff\xd8" + head, (512, 512))):
        path = tmp_path / "a"
        path.write_bytes(content)
        assert measure(str(path)) == Image(*size, zlib.crc32(content), 1)


# ------------------------------------------------------------------------------------------------
# Frames
# ------------------------------------------------------------------------------------------------


def test_frames_are_those_of_the_protocol() -> None:
    assert make_message("x", {"a": [1, None]}) == '{"type": "x", "data": {"a": [1, null]}}'
    assert make_preview(b"png") == b"\0\0\0\1\0\0\0\2png"
    assert make_preview_with_metadata({"a": 1}, b"png") == b'\0\0\0\4\0\0\0\x08{"a": 1}png'


def test_noise_is_of_every_kind_that_no_client_can_use() -> None:
    messages = list(make_noise_messages())
    other = messages[1][1]["prompt_id"]
    assert len(other) == 36
    assert str(messages) == str(
        [
            ("simulated_unknown_event", {"anything": [1, None]}),
            ("progress", {"value": 1, "max": 2, "prompt_id": other, "node": "1"}),
            ("executing", {"prompt_id": other, "node": None}),
            ("execution_error", {"prompt_id": other, "node": "1"}),
            ("progress", {"value": float("nan"), "max": float("inf")}),
        ]
    )
    assert list(make_noise_frames()) == [
        '{"type": "executed"}',
        '{"type": "progress", "data": null}',
        "[1, 2]",
        "this is not JSON",
        b"\0\0\0\1\0\0\0\2not a picture",
        b"\0\0\0\2\0\0\0\1never sent by a real server",
        b"\0\0\0\3\0\0\0\x011SIMULATED text \xc3\xbc",
        b'\0\0\0\4\0\0\0\x10{"node_id": "1"}not a picture',
        b"\0\0\0\4\0\0\x10\0{",
        b"\0\0\0\x63unknown type",
        b"\0\0",
        b"",
    ]


def test_a_big_preview_is_a_padded_picture() -> None:
    frame = make_big_preview(1000)
    assert frame == make_preview(draw(64, 64, 0, ["SIMULATED"], [("padding", "x" * 1000)]))
    assert 1000 < len(frame) < 3000


# ------------------------------------------------------------------------------------------------
# Faults
# ------------------------------------------------------------------------------------------------


def test_every_fault_is_off_at_first() -> None:
    assert vars(Faults()) == {
        "drop_events": frozenset(),
        "drop_end": False,
        "history_delay": 0.0,
        "history_evict": False,
        "lose_post": [],
        "deaf_reconnect": False,
        "cut_ws_after": None,
        "stall": None,
        "noise": False,
        "big_frame": 0,
        "http_status": {},
        "echo": {},
        "http_hang": {},
        "ignore_interrupt": False,
        "cut_http": {},
        "cut_files": [],
        "web_pages": [],
        "bodies": {},
    }


@pytest.mark.parametrize(
    ("path", "keys"),
    [
        ("/history", ("/history", "/history")),
        ("/history/x", ("/history/x", "/history")),
        ("/upload/image", ("/upload/image", "/upload")),
        ("/", ("/", "/")),
    ],
)
def test_a_fault_of_a_path_covers_what_is_below(path: str, keys: Tuple[str, str]) -> None:
    assert keys_of_path(path) == keys


def pieces_of(reply: Reply) -> Iterator[bytes]:
    assert reply.pieces is not None
    return reply.pieces


REPLY = as_json({"a": 1}, 404)


def test_a_body_without_an_end() -> None:
    endless = with_odd_body(REPLY, "endless")
    assert (endless.status, endless.content_type, endless.headers, endless.pause) == (
        *(404, "application/json; charset=utf-8"),
        *((), 0.0),
    )
    assert list(itertools.islice(pieces_of(endless), 3)) == [b'{"text": "', *[b"x" * (1 << 20)] * 2]
    drip = with_odd_body(REPLY._replace(path="x"), "drip")
    assert (drip.status, drip.path, drip.headers, drip.pause) == (404, "", (), 0.05)
    assert list(itertools.islice(pieces_of(drip), 3)) == [b'{"text": "', b"x", b"x"]


def test_a_bomb_is_a_thousand_times_larger_unpacked() -> None:
    bomb = with_odd_body(REPLY._replace(headers=(("A", "b"),)), "bomb")
    assert (bomb.headers, bomb.pause) == ((("A", "b"), ("Content-Encoding", "gzip")), 0.0)
    unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
    begin, *pieces = itertools.islice(pieces_of(bomb), 4)
    assert unpacker.decompress(begin) == b'{"text": "'
    for piece in pieces:
        assert len(piece) < 1100
        assert unpacker.decompress(piece) == b"x" * (1 << 20)


def test_a_body_that_is_packed_or_only_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"file")
    for reply, body in ((REPLY, b'{"a": 1}'), (Reply(206, path=str(path)), b"file")):
        packed = with_odd_body(reply, "gzip")
        assert gzip.decompress(packed.body) == body
        assert packed._replace(body=b"") == reply._replace(body=b"", path="", headers=(("Content-Encoding", "gzip"),))
        headers = (("Content-Encoding", "br"),)
        assert with_odd_body(reply, "br") == reply._replace(body=body, path="", headers=headers)


def test_an_echo_has_the_request_with_its_last_header_first() -> None:
    from email.message import Message

    headers = Message()
    headers["First"], headers["Last"] = "1", "2"
    text = "500: refused\nLast: 2\nFirst: 1\n\nbody"
    plain = as_echo(headers, "body", 500, "text")
    assert plain == Reply(500, text.encode(), "text/plain; charset=utf-8")
    reply = as_echo(headers, "body", 400, "json")
    assert reply == as_json(
        {
            "error": {
                "type": "refused",
                "message": text.replace("500", "400"),
                "details": "",
                "extra_info": {"First": "1", "Last": "2"},
            },
            "node_errors": {},
        },
        400,
    )
    assert as_json(float("nan")) == Reply(200, b"NaN", "application/json; charset=utf-8")
