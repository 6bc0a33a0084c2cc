"""Stories of documents and values: what may be run, what is set in it, what reaches ComfyUI, what is reported."""

from __future__ import annotations

import copy
import hashlib
import http.client
import io
import json
import os
import re
import signal
import threading
import time
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import pytest
from served import Middleware, phase_elsewhere, post_elsewhere
from simulated import txt2img
from support import FAST, ROOT, Outcome, call, node, run, slow_prompt, wait_until

from comfyui_runner.errors import ExitStatus
from comfyui_runner.extras.pictures import png_texts
from comfyui_runner.interrupts import Interrupts
from comfyui_runner.simulator import Simulator, draw
from comfyui_runner.simulator.installation import MODELS

Json = Dict[str, Any]
Make = Callable[..., Any]

UI_FILE = os.path.join(ROOT, "workflow.json")
API_FILE = os.path.join(ROOT, "workflow_api.json")
with open(UI_FILE, encoding="utf-8") as file:
    #: A checkpoint, two texts, a sampler, a picture that is saved: in UI format ...
    UI: Json = json.load(file)
with open(API_FILE, encoding="utf-8") as file:
    #: ... and in API format.
    API: Json = json.load(file)

LOADER: Json = {
    "1": node("LoadImage", "Photo", image="example.png"),
    "2": node("SaveImage", "Save", filename_prefix="loaded", images=["1", 0]),
}
TWO_LOADERS: Json = {
    "1": node("LoadImage", "Photo", image="example.png"),
    "2": node("LoadImage", "Style", image="example.png"),
    "3": node("ImageBatch", image1=["1", 0], image2=["2", 0]),
    "4": node("SaveImage", "Save", filename_prefix="two", images=["3", 0]),
}
#: A picture that is loaded and saved, in UI format.
UI_LOADER: Json = {
    "nodes": [
        {
            "id": 1,
            "type": "LoadImage",
            "title": "Photo",
            "mode": 0,
            "inputs": [{"name": "image", "type": "COMBO", "widget": {"name": "image"}, "link": None}],
            "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [1]}, {"name": "MASK", "type": "MASK"}],
            "widgets_values": ["example.png", "image"],
        },
        {
            "id": 2,
            "type": "SaveImage",
            "mode": 0,
            "inputs": [{"name": "images", "type": "IMAGE", "link": 1}],
            "outputs": [],
            "widgets_values": ["loaded"],
        },
    ],
    "links": [[1, 1, 0, 2, 0, "IMAGE"]],
    "version": 0.4,
}
PNG = draw(8, 8, 1, ["A"])
#: For prompts whose messages go elsewhere: queue and history are read more often.
SOON = FAST._replace(poll=0.1, settle=0.3)


def ask(simulator: Any, path: str) -> Any:
    """An answer of ComfyUI to GET, as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", simulator.port, timeout=10.0)
    try:
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def history(simulator: Any) -> List[Tuple[Json, Json]]:
    """The prompt and the extra_data of what ComfyUI has finished, the oldest first."""
    return [(entry["prompt"][2], entry["prompt"][3]) for entry in ask(simulator, "/history").values()]


def last(simulator: Any) -> Json:
    """The prompt that ComfyUI finished last."""
    return history(simulator)[-1][0]


def along(simulator: Any) -> Optional[Json]:
    """The workflow that went along with the prompt that was finished last."""
    workflow: Optional[Json] = (history(simulator)[-1][1].get("extra_pnginfo") or {}).get("workflow")
    return workflow


def same(prompt: Json) -> Json:
    """What a prompt asks for: ComfyUI's history has its numbers as the inputs' types take them."""
    return {i: (each["class_type"], each["inputs"]) for i, each in prompt.items()}


def widgets(workflow: Json, node_id: int) -> List[Any]:
    """The values of a node of a workflow in UI format."""
    (found,) = [each for each in workflow["nodes"] if each["id"] == node_id]
    values: List[Any] = found["widgets_values"]
    return values


def small(document: Json, side: int = 64) -> Json:
    """A copy of UI or API with pictures that are drawn at once."""
    made = copy.deepcopy(document)
    if "nodes" in made:
        widgets(made, 4)[:2] = [side, side]
    else:
        made["4"]["inputs"].update(width=side, height=side)
    return made


def go(simulator: Any, *arguments: str, **options: Any) -> Outcome:
    """A call of the program with this ComfyUI."""
    return run("--server", simulator.url, *arguments, **options)


def pipe(simulator: Any, data: bytes, *arguments: str) -> Outcome:
    """A call of the program with bytes on its standard input, which is not a terminal."""
    stdin = io.TextIOWrapper(io.BytesIO(data), encoding="ascii")
    out, err = io.StringIO(), io.StringIO()
    with stdin:
        status = call(["--server", simulator.url, *arguments], stdin, out, err)
    return Outcome(status, out.getvalue(), err.getvalue())


def ran_nothing(simulator: Any) -> bool:
    """Whether ComfyUI was given nothing to run and nothing to keep."""
    return not [path for method, path in simulator.requests if method == "POST"]


@pytest.fixture(scope="module")
def shared() -> Iterator[Any]:
    """One ComfyUI for the stories in which nothing runs."""
    with Simulator() as simulator:
        yield simulator


@pytest.fixture
def idle(shared: Any) -> Iterator[Any]:
    """A ComfyUI that is given nothing to run and nothing to keep, and says so in the end."""
    shared.asked.clear()
    yield shared
    assert ran_nothing(shared)


@pytest.fixture
def picture(simulator: Any, workflow_file: Make, tmp_path: Any) -> str:
    """A picture that ComfyUI made of a workflow in UI format."""
    folder = str(tmp_path / "made")
    assert go(simulator, "--yes", "-o", folder, workflow_file(small(UI), "ui.json")).status == 0
    return os.path.join(folder, "ComfyUI_00001_.png")


# ------------------------------------------------------------------------------------------------
# Documents
# ------------------------------------------------------------------------------------------------


def test_a_ui_file_runs_as_its_twin_and_goes_along(simulator: Any) -> None:
    assert go(simulator, "--yes", UI_FILE).status == 0
    assert go(simulator, "--yes", API_FILE).status == 0
    (of_ui, extra), (of_api, extra_of_api) = history(simulator)
    assert same(of_ui) == same(of_api)
    assert extra["extra_pnginfo"]["workflow"] == UI
    assert "extra_pnginfo" not in extra_of_api


def test_a_picture_of_a_run_runs_again(simulator: Any, picture: str) -> None:
    with open(picture, "rb") as file:
        texts = png_texts(file.read())
    assert texts and json.loads(texts["workflow"]) == small(UI)
    assert same(json.loads(texts["prompt"])) == same(last(simulator))
    result = go(simulator, "--yes", picture)
    assert result.status == 0
    (first, _), (second, extra) = history(simulator)
    assert same(first) == same(second)
    assert extra["extra_pnginfo"]["workflow"] == small(UI)


def test_a_picture_with_another_value_does_not_carry_a_workflow_that_did_not_run(simulator: Any, picture: str) -> None:
    assert go(simulator, "--yes", "--set", "5.steps=3", picture).status == 0
    assert last(simulator)["5"]["inputs"]["steps"] == 3
    assert along(simulator) is None


@pytest.mark.parametrize("document", [UI, API], ids=["ui", "api"])
def test_standard_input_is_read(document: Json, simulator: Any) -> None:
    result = pipe(simulator, json.dumps(small(document)).encode(), "-", "--yes")
    assert result.status == 0
    assert same(last(simulator)) == same(small(API))


def test_a_picture_comes_through_a_pipe(simulator: Any, picture: str) -> None:
    with open(picture, "rb") as file:
        assert pipe(simulator, file.read(), "-", "--yes").status == 0
    assert len(history(simulator)) == 2


def test_a_workflow_from_a_pipe_cannot_be_confirmed(idle: Any) -> None:
    result = pipe(idle, json.dumps(small(API)).encode(), "-")
    assert result.status == ExitStatus.NOT_CONFIRMED
    assert "--yes" in result.err


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "Standard input is empty."),
        (b"{", "Standard input is not JSON: line 1"),
        (b"[1]", "Standard input is not a workflow: it contains a list"),
        (b"\xff\xfe\xfd", "Standard input is neither text nor"),
        (PNG, "Standard input is a picture without a workflow"),
    ],
)
def test_what_is_not_a_workflow_on_standard_input_is_refused(data: bytes, words: str, idle: Any) -> None:
    result = pipe(idle, data, "-", "--yes")
    assert result.status == ExitStatus.BAD_WORKFLOW
    assert words in result.err
    assert not idle.requests


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/w.json", "https://example.com/w.json", "HTTPS://x/y"])
def test_a_url_is_refused_with_the_remedy(url: str, idle: Any) -> None:
    result = go(idle, "--yes", url)
    assert result.status == ExitStatus.BAD_WORKFLOW
    assert url in result.err and "Download it first" in result.err
    assert not idle.requests


def test_a_ui_file_needs_a_server_to_be_read(tmp_path: Any, simulator: Any) -> None:
    url = simulator.url
    simulator.stop()
    result = run("--server", url, "--yes", UI_FILE)
    assert result.status == ExitStatus.NO_SERVER
    assert "--server" in result.err


def test_a_workflow_of_notes_alone_has_nothing_to_run(idle: Any, workflow_file: Make) -> None:
    muted = copy.deepcopy(UI)
    for each in muted["nodes"]:
        each["mode"] = 2
    result = go(idle, "--yes", workflow_file(muted, "muted.json"))
    assert result.status == ExitStatus.BAD_WORKFLOW
    assert "has nothing to run" in result.err


# ------------------------------------------------------------------------------------------------
# --export-api
# ------------------------------------------------------------------------------------------------


def test_the_export_of_a_ui_file_is_its_twin_and_runs_nothing(idle: Any, tmp_path: Any) -> None:
    path = tmp_path / "exported.json"
    result = go(idle, UI_FILE, "--export-api", str(path), "--json")
    assert result.status == 0
    assert json.loads(path.read_text(encoding="utf-8")) == API
    exported = result.event("exported")
    assert (exported["path"], exported["nodes"]) == (str(path), 7)


def test_an_export_has_the_edits_in_it(idle: Any, tmp_path: Any) -> None:
    path = tmp_path / "exported.json"
    edits = ("--set", "KSampler.steps=7", "--set", "Positive Prompt.text=a red door", "--seed", "42")
    assert go(idle, UI_FILE, *edits, "--export-api", str(path)).status == 0
    expected = copy.deepcopy(API)
    expected["5"]["inputs"].update(steps=7, seed=42)
    expected["2"]["inputs"]["text"] = "a red door"
    assert json.loads(path.read_text(encoding="utf-8")) == expected


@pytest.mark.parametrize("flags", [(), ("--quiet",), ("--json",)], ids=["human", "quiet", "json"])
def test_an_export_to_standard_output_is_the_prompt_alone(flags: Tuple[str, ...], idle: Any) -> None:
    result = go(idle, UI_FILE, "--export-api", "-", *flags)
    assert result.status == 0
    assert json.loads(result.out) == API
    assert '\n  "' in result.out and '\n    "' in result.out  # for people, too


@pytest.fixture
def object_info(idle: Any, tmp_path: Any) -> str:
    """A file with ComfyUI's answer to /object_info."""
    path = tmp_path / "object_info.json"
    path.write_text(json.dumps(ask(idle, "/object_info")), encoding="utf-8")
    idle.asked.clear()
    return str(path)


def test_an_export_with_object_info_needs_no_server(idle: Any, object_info: str, tmp_path: Any) -> None:
    path = tmp_path / "exported.json"
    result = go(idle, UI_FILE, "--set", "5.steps=7", "--object-info", object_info, "--export-api", str(path))
    assert result.status == 0
    assert json.loads(path.read_text(encoding="utf-8"))["5"]["inputs"]["steps"] == 7
    assert not idle.requests


def test_an_export_that_cannot_be_written_is_reported(idle: Any, tmp_path: Any) -> None:
    (tmp_path / "folder").write_text("")
    result = go(idle, API_FILE, "--export-api", str(tmp_path / "folder" / "x.json"))
    assert result.status == ExitStatus.NOT_SAVED
    assert "cannot be written" in result.err


@pytest.mark.parametrize(
    "content, words",
    [(None, "No such file"), (b"{", "is not JSON"), (b"\x1f\x8b??", "is not JSON"), (b"[]", "is not an answer of")],
)
def test_a_bad_object_info_is_reported(content: Optional[bytes], words: str, tmp_path: Any) -> None:
    path = tmp_path / "info.json"
    if content is not None:
        path.write_bytes(content)
    result = run(UI_FILE, "--object-info", str(path), "--export-api", str(tmp_path / "out.json"))
    assert result.status == ExitStatus.USAGE
    assert words in result.err
    assert not (tmp_path / "out.json").exists()


def test_a_folder_in_place_of_an_object_info_is_named_as_one(tmp_path: Any) -> None:
    result = run(UI_FILE, "--object-info", str(tmp_path), "--export-api", str(tmp_path / "out.json"))
    assert result.status == ExitStatus.USAGE
    assert f"--object-info {tmp_path} cannot be read: it is a folder." in result.err


# ------------------------------------------------------------------------------------------------
# --set
# ------------------------------------------------------------------------------------------------


def test_values_are_set_by_id_title_and_class(simulator: Any, workflow_file: Make) -> None:
    edits = ("--set", "5.steps=3", "--set", "Positive Prompt.text=a = b.c", "--set", "EmptyLatentImage.width=128")
    assert go(simulator, "--yes", *edits, workflow_file(small(API))).status == 0
    prompt = last(simulator)
    assert prompt["5"]["inputs"]["steps"] == 3
    assert prompt["2"]["inputs"]["text"] == "a = b.c"
    assert (prompt["4"]["inputs"]["width"], prompt["4"]["inputs"]["height"]) == (128, 64)


def test_the_last_of_two_values_counts(simulator: Any, workflow_file: Make) -> None:
    assert go(simulator, "--yes", "--set", "5.steps=3", "--set", "5.steps=4", workflow_file(small(API))).status == 0
    assert last(simulator)["5"]["inputs"]["steps"] == 4


def test_values_take_the_type_of_their_input(simulator: Any, workflow_file: Make) -> None:
    edits = ("--set", "1.seconds=0", "--set", "1.preview=yes", "--set", "1.steps=2", "--set", "2.filename_prefix=7")
    assert go(simulator, "--yes", *edits, workflow_file(slow_prompt())).status == 0
    prompt = last(simulator)
    assert prompt["1"]["inputs"]["seconds"] == 0 and prompt["1"]["inputs"]["preview"] is True
    assert prompt["1"]["inputs"]["steps"] == 2 and prompt["2"]["inputs"]["filename_prefix"] == "7"


def test_definitions_are_asked_for_by_class_before_anything_runs(simulator: Any, workflow_file: Make) -> None:
    assert go(simulator, "--yes", "--set", "1.steps=2", workflow_file(slow_prompt(seconds=0.0))).status == 0
    asked = [path for _, path in simulator.requests]
    assert "/object_info" not in asked
    assert set(asked[: asked.index("/prompt")]) >= {"/object_info/SlowProgress", "/object_info/SaveImage"}


def test_a_plain_run_asks_for_no_definitions(simulator: Any, workflow_file: Make) -> None:
    assert go(simulator, "--yes", "--seed", "keep", workflow_file(slow_prompt(seconds=0.0))).status == 0
    assert not [path for _, path in simulator.requests if path.startswith("/object_info")]


def test_a_title_may_look_like_an_edit(simulator: Any, workflow_file: Make) -> None:
    prompt = slow_prompt(seconds=0.0)
    prompt["2"]["_meta"]["title"] = "Step 2. a=b"
    assert go(simulator, "--yes", "--set", "Step 2. a=b.filename_prefix=c=d.e", workflow_file(prompt)).status == 0
    assert last(simulator)["2"]["inputs"]["filename_prefix"] == "c=d.e"


@pytest.mark.parametrize(
    "edit, words",
    [
        ("5.steps=0", ['"KSampler" (node 5): steps = 0 is too small. Allowed: 1 to 10000.']),
        ("5.steps=ten", ['steps = "ten" is not a whole number']),
        ("5.steps=1.5", ["steps = 1.5 is not a whole number"]),
        ("5.steps=", ['steps = "" is not a whole number']),
        ("5.steps=random", ['steps = "random" is not a whole number']),
        ("5.cfg=nan", ["cfg = NaN is not a number"]),
        ("5.denoise=1.5", ["denoise = 1.5 is too big. Allowed: 0.0 to 1.0."]),
        ("5.sampler_name=dpmpp2m", ["sampler_name", "Did you mean dpmpp_2m,"]),
        ("1.ckpt_name=sd_xl_base_1.safetensors", ["Did you mean sd_xl_base_1.0.safetensors?"]),
        ("5.stepz=3", ['has no input "stepz"', "Did you mean steps?"]),
        ("KSamplr.steps=3", ['no node "KSamplr"', "Did you mean KSampler?"]),
        ("99.steps=3", ['no node "99"']),
        ("5.model=x", ['model is fed by "Load Checkpoint"', "node 1", "set it there"]),
        ("CLIPTextEncode.text=x", ["2 nodes are called", "node 2", "node 3"]),
        ("5.steps", ["NODE.INPUT=VALUE"]),
        ("steps=3", ["does not name an input", "NODE.INPUT"]),
        ("=3", ["does not name an input"]),
        ("2.text=@nowhere.txt", ["@nowhere.txt cannot be read", "No such file", "@@"]),
    ],
)
def test_what_cannot_be_set_is_reported_and_nothing_runs(edit: str, words: List[str], idle: Any) -> None:
    path = UI_FILE if edit.startswith("5.s") else API_FILE
    result = go(idle, "--yes", "--set", "5.cfg=3", "--set", edit, path)
    assert result.status == ExitStatus.USAGE
    assert not [word for word in words if word not in result.err], result.err


def test_a_value_comes_from_a_file(simulator: Any, workflow_file: Make, tmp_path: Any) -> None:
    text = "ein Leuchtturm\nam Meer – „früh“ = @x\n"
    (tmp_path / "text.txt").write_text(text, encoding="utf-8-sig")
    (tmp_path / "steps.txt").write_text(" 3\n")
    edits = ["--set", "2.text=@%s" % (tmp_path / "text.txt"), "--set", "5.steps=@%s" % (tmp_path / "steps.txt")]
    edits += ["--set", "3.text=@@home"]
    assert go(simulator, "--yes", *edits, workflow_file(small(API))).status == 0
    prompt = last(simulator)
    assert prompt["2"]["inputs"]["text"] == text
    assert prompt["3"]["inputs"]["text"] == "@home"
    assert prompt["5"]["inputs"]["steps"] == 3


def test_a_file_that_is_not_text_is_refused(idle: Any, tmp_path: Any) -> None:
    (tmp_path / "text.txt").write_bytes("狐 in the snow".encode("gbk"))
    result = go(idle, "--yes", "--set", "2.text=@%s" % (tmp_path / "text.txt"), API_FILE)
    assert result.status == ExitStatus.USAGE
    assert "text.txt cannot be read: it is in GBK, not in UTF-8." in result.err
    assert "Save it as UTF-8" in result.err and "@@" not in result.err


def test_an_edited_value_is_in_the_workflow_that_goes_along(simulator: Any, workflow_file: Make) -> None:
    edits = ("--set", "KSampler.steps=3", "--set", "Negative Prompt.text=dark")
    assert go(simulator, "--yes", *edits, workflow_file(small(UI), "ui.json")).status == 0
    workflow = along(simulator)
    assert workflow is not None
    assert widgets(workflow, 5) == [20240817, "fixed", 3, 7, "dpmpp_2m", "karras", 1]
    assert widgets(workflow, 3) == ["dark"]
    (sampler,) = [each for each in workflow["nodes"] if each["id"] == 5]
    assert sampler["widgets_values_named"]["steps"] == 3
    expected = small(UI)
    for each in expected["nodes"] + workflow["nodes"]:
        if each["id"] in (3, 5):
            del each["widgets_values"], each["widgets_values_named"]
    assert workflow == expected


def test_a_primitive_that_leads_to_an_edited_input_goes_along_with_the_value(
    simulator: Any, workflow_file: Make
) -> None:
    document = small(UI)
    (sampler,) = [each for each in document["nodes"] if each["id"] == 5]
    slot = [each["name"] for each in sampler["inputs"]].index("seed")
    sampler["inputs"][slot]["link"] = 50
    output = {"name": "INT", "type": "INT", "widget": {"name": "seed"}, "links": [50]}
    primitive = {"id": 20, "type": "PrimitiveNode", "mode": 0, "outputs": [output], "widgets_values": [777, "fixed"]}
    primitive["widgets_values_named"] = {"value": 777, "control_after_generate": "fixed"}
    document["nodes"].append(primitive)
    document["links"].append([50, 20, 0, 5, slot, "INT"])
    path = workflow_file(document, "ui.json")
    assert go(simulator, "--yes", path).status == 0
    assert last(simulator)["5"]["inputs"]["seed"] == 777 and along(simulator) == document
    assert go(simulator, "--yes", "--seed", "9", path).status == 0
    assert last(simulator)["5"]["inputs"]["seed"] == 9
    workflow = along(simulator) or {}
    assert widgets(workflow, 20) == [9, "fixed"]  # it would give its own value when the workflow is opened
    assert workflow["nodes"][-1]["widgets_values_named"]["value"] == 9


def test_a_picture_of_an_edited_run_opens_with_the_edit(simulator: Any, workflow_file: Make, tmp_path: Any) -> None:
    folder = str(tmp_path / "made")
    path = workflow_file(small(UI), "ui.json")
    assert go(simulator, "--yes", "--set", "5.steps=3", "-o", folder, path).status == 0
    result = go(simulator, "--inputs", "--json", os.path.join(folder, "ComfyUI_00001_.png"))
    (steps,) = [event for event in result.events if event.get("input") == "steps"]
    assert steps["value"] == 3
    with open(os.path.join(folder, "ComfyUI_00001_.png"), "rb") as file:
        workflow = json.loads((png_texts(file.read()) or {})["workflow"])
    assert widgets(workflow, 5)[2] == 3


# ------------------------------------------------------------------------------------------------
# --seed
# ------------------------------------------------------------------------------------------------


def test_seeds_stay_and_a_cached_run_suggests_another(simulator: Any, workflow_file: Make) -> None:
    path = workflow_file(slow_prompt(seconds=0.0, seed=5))
    assert "--seed random" not in go(simulator, "--yes", path).out
    result = go(simulator, "--yes", path)
    assert result.status == 0
    assert "Nothing was rendered" in result.out and "--seed random" in result.out
    assert [prompt["1"]["inputs"]["seed"] for prompt, _ in history(simulator)] == [5, 5]


def test_a_seed_that_the_page_would_change_stays_too(simulator: Any, workflow_file: Make) -> None:
    document = small(UI)
    widgets(document, 5)[1] = "randomize"
    path = workflow_file(document, "ui.json")
    assert go(simulator, "--yes", path).status == go(simulator, "--yes", path).status == 0
    assert [prompt["5"]["inputs"]["seed"] for prompt, _ in history(simulator)] == [20240817, 20240817]
    assert along(simulator) == document


def test_a_random_seed_renders_anew(simulator: Any, workflow_file: Make) -> None:
    path = workflow_file(small(UI), "ui.json")
    seeds = []
    for _ in range(2):
        result = go(simulator, "--yes", "--seed", "random", path)
        assert result.status == 0 and "Nothing new" not in result.out
        seeds.append(last(simulator)["5"]["inputs"]["seed"])
        assert widgets(along(simulator) or {}, 5)[:2] == [seeds[-1], "fixed"]
    assert len({20240817, *seeds}) == 3
    assert all(0 <= seed <= 2**50 for seed in seeds)


def test_a_number_goes_to_every_seed(simulator: Any, workflow_file: Make) -> None:
    prompt = small(API)
    prompt["8"] = node("KSamplerAdvanced", **{k: v for k, v in prompt["5"]["inputs"].items() if k != "denoise"})
    prompt["8"]["inputs"].update(add_noise="enable", start_at_step=0, end_at_step=9, latent_image=["5", 0])
    prompt["8"]["inputs"].update(return_with_leftover_noise="disable", noise_seed=prompt["8"]["inputs"].pop("seed"))
    prompt["6"]["inputs"]["samples"] = ["8", 0]
    assert go(simulator, "--yes", "--seed", "77", workflow_file(prompt)).status == 0
    ran = last(simulator)
    assert (ran["5"]["inputs"]["seed"], ran["8"]["inputs"]["noise_seed"]) == (77, 77)


def test_one_seed_alone_is_drawn_by_set(simulator: Any, workflow_file: Make) -> None:
    prompt = {**slow_prompt(seconds=0.0), "3": node("SlowProgress", steps=1, seconds=0.0, seed=1, preview=False)}
    prompt["4"] = node("SaveImage", filename_prefix="x", images=["3", 0])
    assert go(simulator, "--yes", "--set", "3.seed=random", workflow_file(prompt)).status == 0
    ran = last(simulator)
    assert ran["1"]["inputs"]["seed"] == 1 and ran["3"]["inputs"]["seed"] not in (1, "random")


def test_a_run_shows_the_seeds_that_it_uses(simulator: Any, workflow_file: Make) -> None:
    path = workflow_file(slow_prompt(seconds=0.0))
    result = go(simulator, "--yes", "--seed", "random", path)
    seed = last(simulator)["1"]["inputs"]["seed"]
    assert f"  Sampling  seed {seed}, steps 4\n" in result.out  # before it runs
    assert re.search(rf"\nDone in [\d.]+ s, 1 output, seed {seed}\.\n", result.out)
    result = go(simulator, "--yes", "--json", "--seed", "random", path)
    assert result.event("submitted")["seeds"] == {"1.seed": last(simulator)["1"]["inputs"]["seed"]}


@pytest.mark.parametrize("seed", ["-1", "x", "1.5", " ", "1" * 21])
def test_a_seed_that_is_not_a_number_is_refused(seed: str, idle: Any) -> None:
    result = go(idle, "--yes", "--seed=" + seed, API_FILE)
    assert result.status == ExitStatus.USAGE
    assert "--seed must be a whole number (0 or more), random or keep" in result.err
    assert ("For a random seed, write --seed random." in result.err) is (seed == "-1")
    assert not idle.requests


def test_a_seed_above_the_range_is_reported_before_anything_runs(idle: Any) -> None:
    result = go(idle, "--yes", "--seed", str(2**64), API_FILE)
    assert result.status == ExitStatus.USAGE
    assert "--seed" in result.err and "0 to %d" % (2**64 - 1) in result.err


def test_a_workflow_without_a_seed_is_reported_and_runs(simulator: Any, workflow_file: Make) -> None:
    result = go(simulator, "--yes", "--seed", "random", workflow_file(LOADER))
    assert result.status == 0
    assert "no seed to change" in result.out


# ------------------------------------------------------------------------------------------------
# --image
# ------------------------------------------------------------------------------------------------


@pytest.fixture
def cat(tmp_path: Any) -> str:
    """A picture on this machine."""
    path = tmp_path / "cat.png"
    path.write_bytes(PNG)
    return str(path)


def test_the_texts_and_the_size_have_flags_of_their_own(simulator: Any, workflow_file: Make, tmp_path: Any) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("a fox", encoding="utf-8")
    words = ("-p", f"@{prompt}", "--negative", "blurry", "--size", "128x64", workflow_file(txt2img()))
    assert go(simulator, "--yes", *words).status == ExitStatus.OK
    sent = last(simulator)
    texts = [n["inputs"]["text"] for n in sent.values() if n["class_type"] == "CLIPTextEncode"]
    sizes = [n["inputs"] for n in sent.values() if n["class_type"] == "EmptyLatentImage"]
    assert sorted(texts) == ["a fox", "blurry"]
    assert [(size["width"], size["height"]) for size in sizes] == [(128, 64)]


def test_set_is_more_precise_than_the_flag_of_a_text(simulator: Any, workflow_file: Make) -> None:
    prompt = txt2img()
    sampler = next(n for n in prompt.values() if n["class_type"] == "KSampler")
    node_id = sampler["inputs"]["positive"][0]
    words = ("-p", "a cat", "--set", f"{node_id}.text=a fox", workflow_file(prompt))
    assert go(simulator, "--yes", *words).status == ExitStatus.OK
    assert last(simulator)[node_id]["inputs"]["text"] == "a fox"


def test_a_size_that_is_none_and_a_text_that_is_not_there_are_refused(simulator: Any, workflow_file: Make) -> None:
    wrong = go(simulator, "--yes", "--size", "big", workflow_file(txt2img()))
    assert wrong.status == ExitStatus.USAGE and "write it as 768x512" in wrong.err
    lacking = go(simulator, "--yes", "-p", "a fox", workflow_file(LOADER))
    assert lacking.status == ExitStatus.USAGE and "positive" in lacking.err


def test_a_picture_is_uploaded_first_and_loaded(simulator: Any, workflow_file: Make, cat: str) -> None:
    result = go(simulator, "--yes", "--json", "--image", cat, workflow_file(LOADER))
    assert result.status == 0
    assert last(simulator)["1"]["inputs"]["image"] == "cat.png"
    posts = [path for method, path in simulator.requests if method == "POST"]
    assert posts == ["/upload/image", "/prompt"]
    uploaded = result.event("uploaded")
    assert (uploaded["path"], uploaded["value"], uploaded["node_id"]) == (cat, "cat.png", "1")
    with open(os.path.join(simulator.folder("input"), "cat.png"), "rb") as file:
        assert file.read() == PNG


def test_a_pattern_that_no_shell_expanded_means_the_one_picture_that_fits(
    simulator: Any, workflow_file: Make, cat: str
) -> None:
    pattern = os.path.join(os.path.dirname(cat), "c*.png")
    for flags in (["--image", pattern], ["--image", f"1={pattern}"], ["--set", f"1.image=@{pattern}"]):
        assert go(simulator, "--yes", *flags, workflow_file(LOADER)).status == 0
        assert last(simulator)["1"]["inputs"]["image"] == "cat.png"
    with open(cat.replace("cat.png", "crow.png"), "wb") as file:
        file.write(PNG)
    result = go(simulator, "--yes", "--image", pattern, workflow_file(LOADER))
    assert result.status == ExitStatus.USAGE
    assert f"Several files match {pattern}, and only one can be used." in result.err


def test_the_name_that_is_answered_is_set(simulator: Any, workflow_file: Make, cat: str) -> None:
    taken = os.path.join(simulator.folder("input"), "cat.png")
    with open(taken, "wb") as file:
        file.write(draw(8, 8, 2, ["B"]))
    assert go(simulator, "--yes", "--image", cat, workflow_file(LOADER)).status == 0
    name = last(simulator)["1"]["inputs"]["image"]
    assert name != "cat.png"
    with open(os.path.join(simulator.folder("input"), name), "rb") as file:
        assert file.read() == PNG


def test_what_is_asked_and_uploaded_has_the_token_too(make_simulator: Make, workflow_file: Make, cat: str) -> None:
    simulator = make_simulator(token="s3cret-t0ken", base_path="/comfy")
    header = ("--header", "Authorization: Bearer s3cret-t0ken")
    assert go(simulator, *header, "--yes", "--image", cat, workflow_file(UI_LOADER, "ui.json")).status == 0
    assert go(simulator, *header, "--check", workflow_file(LOADER)).status == 0
    assert go(simulator, "--check", workflow_file(LOADER)).status == ExitStatus.NO_SERVER


@pytest.mark.parametrize("names", [("Photo", "Style"), ("1", "2"), ("1.image", "2.image")])
def test_each_loader_gets_its_picture(
    names: Tuple[str, str], simulator: Any, workflow_file: Make, cat: str, tmp_path: Any
) -> None:
    (tmp_path / "a=b.png").write_bytes(draw(8, 8, 3, ["C"]))
    images = ("--image", "%s=%s" % (names[0], cat), "--image", "%s=%s" % (names[1], tmp_path / "a=b.png"))
    assert go(simulator, "--yes", *images, workflow_file(TWO_LOADERS)).status == 0
    prompt = last(simulator)
    assert [prompt[i]["inputs"]["image"] for i in "12"] == ["cat.png", "a=b.png"]


def test_a_name_with_an_equals_sign_is_a_file(simulator: Any, workflow_file: Make, tmp_path: Any) -> None:
    (tmp_path / "a=b.png").write_bytes(PNG)
    assert go(simulator, "--yes", "--image", str(tmp_path / "a=b.png"), workflow_file(LOADER)).status == 0
    assert last(simulator)["1"]["inputs"]["image"] == "a=b.png"


def test_a_picture_is_uploaded_by_set_as_well(simulator: Any, workflow_file: Make, cat: str) -> None:
    assert go(simulator, "--yes", "--set", "Style.image=@" + cat, workflow_file(TWO_LOADERS)).status == 0
    prompt = last(simulator)
    assert [prompt[i]["inputs"]["image"] for i in "12"] == ["example.png", "cat.png"]


@pytest.mark.parametrize(
    "loader, name, key, saver",
    [("LoadAudio", "song.mp3", "audio", "SaveAudio"), ("LoadVideo", "clip.mp4", "file", "SaveVideo")],
)
def test_other_media_are_uploaded(
    loader: str, name: str, key: str, saver: str, simulator: Any, workflow_file: Make, tmp_path: Any
) -> None:
    (tmp_path / name).write_bytes(b"some bytes")
    prompt = {"1": node(loader, **{key: "none"}), "2": node(saver, filename_prefix="x")}
    more: Json = {"format": "auto", "codec": "auto"} if saver == "SaveVideo" else {}
    prompt["2"]["inputs"].update({"video" if more else "audio": ["1", 0]}, **more)
    assert go(simulator, "--yes", "--image", str(tmp_path / name), workflow_file(prompt)).status == 0
    assert last(simulator)["1"]["inputs"][key] == name


@pytest.mark.parametrize(
    "prompt, image, words",
    [
        (LOADER, "{}/nothing.png", ["There is no file", "nothing.png to upload"]),
        (LOADER, "1={}/nothing.png", ["There is no file"]),
        (LOADER, "{}", ["cannot be uploaded: it is a folder", "Name a file"]),
        (LOADER, "Poto={}/cat.png", ['no node "Poto"', "Did you mean Photo?"]),
        (LOADER, "2={}/cat.png", ["does not load a file"]),
        (TWO_LOADERS, "{}/cat.png", ["Several nodes load a file", '"Photo"', "node 1", '"Style"', "node 2"]),
        (API, "{}/cat.png", ["no node that loads a file"]),
    ],
)
def test_a_picture_that_cannot_be_placed_is_reported(
    prompt: Json, image: str, words: List[str], idle: Any, workflow_file: Make, cat: str
) -> None:
    image = image.format(os.path.dirname(cat))
    result = go(idle, "--yes", "--image", image, workflow_file(prompt))
    assert result.status == ExitStatus.USAGE
    assert not [word for word in words if word not in result.err], result.err


def test_a_server_that_takes_no_file_of_that_size_is_reported(
    make_simulator: Make, workflow_file: Make, cat: str
) -> None:
    simulator = make_simulator(max_upload_size=100)
    result = go(simulator, "--yes", "--image", cat, workflow_file(LOADER))
    assert result.status == ExitStatus.NO_SERVER
    assert "--max-upload-size" in result.err
    assert ("POST", "/prompt") not in simulator.requests


@pytest.mark.parametrize("flags", [("--yes",), ("--check",)], ids=["run", "check"])
def test_a_file_that_is_here_and_not_there_is_offered_for_upload(
    flags: Tuple[str, ...], simulator: Any, workflow_file: Make, cat: str
) -> None:
    prompt = copy.deepcopy(LOADER)
    prompt["1"]["inputs"]["image"] = "cat.png"
    path = workflow_file(prompt)
    result = go(simulator, *flags, path)
    assert result.status == ExitStatus.REJECTED
    offered = re.search(r'--image "([^"]+)"', result.out)
    assert offered and offered.group(1) == "1=" + cat
    assert go(simulator, "--yes", "--image", offered.group(1), path).status == 0


def test_a_file_that_is_nowhere_is_not_offered(idle: Any, workflow_file: Make) -> None:
    prompt = copy.deepcopy(LOADER)
    prompt["1"]["inputs"]["image"] = "dog.png"
    result = go(idle, "--check", workflow_file(prompt))
    assert result.status == ExitStatus.REJECTED
    assert "dog.png" in result.out and "--image" not in result.out


def test_an_uploaded_picture_is_in_the_workflow_that_goes_along(simulator: Any, workflow_file: Make, cat: str) -> None:
    assert go(simulator, "--yes", "--image", "Photo=" + cat, workflow_file(UI_LOADER, "ui.json")).status == 0
    assert last(simulator)["1"]["inputs"]["image"] == "cat.png"
    assert widgets(along(simulator) or {}, 1) == ["cat.png", "image"]


# ------------------------------------------------------------------------------------------------
# --inputs
# ------------------------------------------------------------------------------------------------


def test_the_inputs_are_a_table(idle: Any) -> None:
    result = go(idle, "--inputs", UI_FILE)
    assert result.status == 0
    lines = result.out.splitlines()
    (steps,) = [line for line in lines if line.startswith("  5.steps")]
    assert re.split(r"  +", steps) == ["", "5.steps", "INT", "25", "1 to 10000"]
    (model,) = [number for number, line in enumerate(lines) if line.startswith("  1.ckpt_name")]
    assert '"sd_xl_base_1.0.safetensors"' in lines[model] and "one of 4: random_sd15.safetensors" in lines[model + 1]
    assert lines[lines.index("KSampler") - 1] == ""  # between two nodes
    assert "5.model" not in result.out


def test_the_inputs_are_objects_with_json(idle: Any) -> None:
    result = go(idle, "--inputs", "--json", API_FILE)
    assert result.status == 0
    rows = {"%s.%s" % (e["node_id"], e["input"]): e for e in result.events if e["event"] == "input"}
    assert list(rows) == [
        "%s.%s" % (i, name) for i in API for name, value in API[i]["inputs"].items() if not isinstance(value, list)
    ]
    expected: Json = {"node_id": "5", "title": "KSampler", "class_type": "KSampler", "input": "steps", "type": "INT"}
    expected.update(value=25, min=1, max=10000, options=None)
    assert {name: rows["5.steps"][name] for name in expected} == expected
    assert rows["2.text"]["title"] == "Positive Prompt" and rows["2.text"]["type"] == "STRING"
    assert rows["1.ckpt_name"]["type"] == "COMBO"
    assert rows["1.ckpt_name"]["options"] == MODELS["checkpoints"]


def test_what_inputs_lists_can_be_set(simulator: Any, workflow_file: Make) -> None:
    path = workflow_file(small(API))
    rows = [event for event in go(simulator, "--inputs", "--json", path).events if event["event"] == "input"]
    edits = [word for row in rows for word in ("--set", "%(node_id)s.%(input)s=%(value)s" % row)]
    assert go(simulator, "--yes", *edits, path).status == 0
    assert same(last(simulator)) == same(small(API))


def test_inputs_show_the_values_that_are_set(idle: Any, object_info: str) -> None:
    result = go(idle, "--inputs", "--json", "--set", "5.steps=3", "--object-info", object_info, UI_FILE)
    (steps,) = [event for event in result.events if event.get("input") == "steps"]
    assert steps["value"] == 3
    assert not idle.requests


def test_a_class_that_the_server_lacks_is_listed_by_its_values(idle: Any, workflow_file: Make) -> None:
    prompt = {"1": node("Unheard", "Own", amount=2, exact=0.5, on=True, words="x", fed=["2", 0])}
    result = go(idle, "--inputs", "--json", workflow_file(prompt))
    assert result.status == 0
    rows = [(event["input"], event["type"]) for event in result.events if event["event"] == "input"]
    assert rows == [("amount", "INT"), ("exact", "FLOAT"), ("on", "BOOLEAN"), ("words", "STRING")]


# ------------------------------------------------------------------------------------------------
# --check
# ------------------------------------------------------------------------------------------------

#: One thing wrong in each branch.
WRONG: Json = {
    "1": node("LoadImage", "Photo", image="dog.png"),
    "2": node("SaveImage", "Save", filename_prefix="x", images=["1", 0]),
    "3": node("CheckpointLoaderSimple", "Model", ckpt_name="sd_xl_base_1.safetensors"),
    "4": node("PreviewAny", source=["3", 0]),
    "5": node("EmptyImage", "Empty", width=0, height=64, batch_size=5000, color=1),
    "6": node("PreviewImage", images=["5", 0]),
    "7": node("Unheard", "Own"),
}


def test_a_check_reports_all_problems_at_once_and_runs_nothing(idle: Any, workflow_file: Make) -> None:
    result = go(idle, "--check", workflow_file(WRONG))
    assert result.status == ExitStatus.REJECTED
    for words in (
        '"Own" (Unheard, node 7): the server does not have the class Unheard.',
        "ComfyUI-Manager",
        'ckpt_name = "sd_xl_base_1.safetensors" is not one of the server\'s options.',
        "Did you mean sd_xl_base_1.0.safetensors?",
        "models/checkpoints",
        "width = 0 is too small.",
        "batch_size = 5000 is too big.",
        "Allowed: 1 to 4096.",
        "dog.png",
        "5 problems found; nothing was run.",
    ):
        assert words in result.out


@pytest.mark.parametrize("status", [401, 403, 500, 503])
def test_a_check_does_not_call_a_file_missing_that_it_may_not_ask_for(
    status: int, make_simulator: Make, workflow_file: Make
) -> None:
    simulator = make_simulator()
    simulator.faults.http_status["/view"] = status
    elsewhere = {**LOADER, "1": node("LoadImage", "Photo", image="cat.png [output]")}
    result = go(simulator, "--check", workflow_file(elsewhere))
    assert result.status == ExitStatus.NO_SERVER
    assert "Invalid file" not in result.out + result.err and f"{status}" in result.err


@pytest.mark.parametrize("name", ["none.png [output]", "../cat.png", "a/../../cat.png [temp]"])
def test_a_check_calls_a_file_missing_that_comfyui_does_not_give(name: str, idle: Any, workflow_file: Make) -> None:
    result = go(idle, "--check", workflow_file({**LOADER, "1": node("LoadImage", "Photo", image=name)}))
    assert result.status == ExitStatus.REJECTED
    assert f"Invalid file: {name}" in result.out


@pytest.mark.parametrize("in_head", [True, False])
def test_a_check_does_not_wait_for_ever_for_a_file(
    in_head: bool, idle: Any, make_slow: Make, workflow_file: Make
) -> None:
    proxy = make_slow(idle)
    proxy.trickling, proxy.in_head = {"GET /view": 100}, in_head
    elsewhere = {**LOADER, "1": node("LoadImage", "Photo", image="cat.png [output]")}
    began = time.monotonic()
    result = go(proxy, "--check", workflow_file(elsewhere), limits=FAST._replace(read=0.5))
    if in_head:
        assert result.status == ExitStatus.NO_SERVER
        assert re.search("did not answer in|no answer in time", result.err)
    else:
        assert result.status == ExitStatus.OK  # the head says that it is there
    assert proxy.trickled == 1
    assert time.monotonic() - began < 9.0


@pytest.mark.parametrize("workflow", [LOADER, UI_LOADER], ids=["each class", "all of them"])
@pytest.mark.parametrize("in_head", [True, False])
def test_a_check_does_not_wait_for_ever_for_definitions(
    workflow: Json, in_head: bool, idle: Any, make_slow: Make, workflow_file: Make
) -> None:
    proxy = make_slow(idle)
    proxy.trickling, proxy.in_head = {"GET /object_info": 100}, in_head
    limits = FAST._replace(read=0.5, connect=0.5, post=0.5)
    began = time.monotonic()
    result = go(proxy, "--check", workflow_file(workflow), limits=limits)
    assert result.status == ExitStatus.NO_SERVER
    assert ("no answer in time" if in_head else "did not arrive completely in 0.5 s") in result.err
    assert proxy.trickled == 1
    assert time.monotonic() - began < 9.0


def test_a_check_of_many_unknown_classes_asks_once_for_all(idle: Any, workflow_file: Make) -> None:
    idle.asked.clear()
    result = go(idle, "--check", "--json", workflow_file({str(i): node(f"NoSuchNode{i}") for i in range(300)}))
    assert result.event("checked")["problems"] == 300
    assert idle.requests.count(("GET", "/object_info")) == 1
    assert not [path for _, path in idle.requests if path.startswith("/object_info/")]


def test_a_check_is_reported_as_json_too(idle: Any, workflow_file: Make) -> None:
    result = go(idle, "--check", "--json", workflow_file(WRONG))
    problems = {(event["node_id"], event["input"]): event["type"] for event in result.events if "hints" in event}
    assert problems == {
        ("7", ""): "missing_node_type",
        ("3", "ckpt_name"): "value_not_in_list",
        ("5", "width"): "value_smaller_than_min",
        ("5", "batch_size"): "value_bigger_than_max",
        ("1", "image"): "custom_validation_failed",
    }
    checked = result.event("checked")
    assert (checked["problems"], checked["exit_status"]) == (5, 6)


@pytest.mark.parametrize(
    "node_id, inputs",
    [
        ("5", {"steps": 0}),
        ("5", {"steps": 10001}),
        ("5", {"cfg": "much"}),
        ("5", {"sampler_name": "dpmpp2m"}),
        ("1", {"ckpt_name": "sd_xl_base_1.safetensors"}),
        ("5", {"model": ["1", 1]}),
        ("5", {"positive": ["1", 0]}),
        ("7", {"images": ["5", 0]}),
        ("7", {"images": ["99", 0]}),
        ("5", {"steps": [1, 2, 3]}),
        ("5", {"steps": None}),
        ("5", {"steps": "25x"}),
    ],
)
def test_a_check_says_what_the_server_would_say(
    node_id: str, inputs: Json, simulator: Any, workflow_file: Make
) -> None:
    prompt = small(API)
    prompt[node_id]["inputs"].update(inputs)
    path = workflow_file(prompt)

    def reported(*flags: str) -> List[Json]:
        result = go(simulator, *flags, "--json", path)
        assert result.status == ExitStatus.REJECTED
        problems = [event for event in result.events if event["event"] == "problem"]
        return [{name: event[name] for name in ("message", "node_id", "title", "hints")} for event in problems]

    assert reported("--check") == reported("--yes") != []


def test_a_link_to_an_output_that_does_not_exist_is_reported(simulator: Any, workflow_file: Make) -> None:
    prompt = small(API)
    prompt["5"]["inputs"]["model"] = ["1", 9]
    path = workflow_file(prompt)
    result = go(simulator, "--check", path)
    assert result.status == go(simulator, "--yes", path).status == ExitStatus.REJECTED
    assert 'model links to output 9 of "Load Checkpoint"' in result.out


def test_an_input_that_is_missing_is_reported_as_by_the_server(simulator: Any, workflow_file: Make) -> None:
    prompt = small(API)
    del prompt["5"]["inputs"]["cfg"]
    path = workflow_file(prompt)
    checked, ran = go(simulator, "--check", path), go(simulator, "--yes", path)
    assert checked.status == ran.status == ExitStatus.REJECTED
    (line,) = [line for line in checked.out.splitlines() if "cfg" in line]
    assert line in ran.out


@pytest.mark.parametrize("path", [UI_FILE, API_FILE], ids=["ui", "api"])
def test_a_workflow_without_problems_is_reported_as_such(path: str, idle: Any) -> None:
    result = go(idle, "--check", path)
    assert result.status == 0
    assert "No problems found in 7 nodes." in result.out


@pytest.mark.parametrize("name", ["Wörter?", "a b&c=d#e", "..", "100%"])
def test_a_missing_class_of_any_name_is_reported(name: str, idle: Any, workflow_file: Make) -> None:
    document = {**slow_prompt(), "3": node(name, "Own")}
    result = go(idle, "--check", workflow_file(document))
    assert result.status == ExitStatus.REJECTED
    assert "the server does not have the class %s." % name in result.out
    assert "1 problem found" in result.out


def test_the_missing_classes_of_a_ui_file_are_reported(idle: Any, workflow_file: Make) -> None:
    document = small(UI)
    for each in document["nodes"]:
        each["type"] = {"SaveImage": "SaveBetter", "VAEDecode": "DecodeBetter"}.get(each["type"], each["type"])
    path = workflow_file(document, "ui.json")
    for flag in ("--check", "--yes"):  # it cannot be converted
        result = go(idle, flag, path)
        assert result.status == ExitStatus.BAD_WORKFLOW
        assert "SaveBetter" in result.err and "DecodeBetter" in result.err and "Install" in result.err


def test_a_check_counts_what_is_set_and_what_would_be_uploaded(idle: Any, workflow_file: Make, cat: str) -> None:
    path = workflow_file({i: WRONG[i] for i in "123456"})
    edits = ["--set", "1.image=@" + cat, "--set", "3.ckpt_name=sd_xl_base_1.0.safetensors"]
    edits += ["--set", "5.width=8", "--set", "5.batch_size=1"]
    assert go(idle, "--check", path).status == ExitStatus.REJECTED
    assert go(idle, "--check", *edits, path).status == 0


def test_a_file_in_a_subfolder_or_another_folder_is_there(simulator: Any, workflow_file: Make) -> None:
    os.makedirs(os.path.join(simulator.folder("input"), "cats"))
    for folder, name in (("input", "cats/cat.png"), ("output", "made.png")):
        with open(os.path.join(simulator.folder(folder), *name.split("/")), "wb") as file:
            file.write(PNG)
    prompt = copy.deepcopy(TWO_LOADERS)
    prompt["1"]["inputs"]["image"], prompt["2"]["inputs"]["image"] = "cats/cat.png", "made.png [output]"
    assert go(simulator, "--check", workflow_file(prompt)).status == 0
    prompt["2"]["inputs"]["image"] = "made.png"
    assert go(simulator, "--check", workflow_file(prompt)).status == ExitStatus.REJECTED


def test_a_check_without_a_server(idle: Any, object_info: str, workflow_file: Make) -> None:
    path = workflow_file({i: WRONG[i] for i in "3456"})
    result = go(idle, "--check", "--object-info", object_info, path)
    assert result.status == ExitStatus.REJECTED
    assert "3 problems found" in result.out
    assert not idle.requests


def test_an_upload_needs_a_server(idle: Any, object_info: str, workflow_file: Make, cat: str) -> None:
    result = go(idle, "--check", "--object-info", object_info, "--image", cat, workflow_file(LOADER))
    assert result.status == ExitStatus.USAGE
    assert "--image uploads to a server" in result.err


@pytest.mark.parametrize(
    "flags",
    [
        ("--check", "--inputs"),
        ("--check", "--export-api", "x.json"),
        ("--attach", "x", "--inputs"),
        ("--check", "--mode", "continuous"),
        ("--save-run", "x.json", "--check"),
        ("--object-info", "x.json"),
        ("--object-info", "x.json", "--save-run", "y.json"),
    ],
)
def test_options_that_exclude_each_other(flags: Tuple[str, ...], idle: Any, tmp_path: Any) -> None:
    result = go(idle, "--yes", *flags, API_FILE)
    assert result.status == ExitStatus.USAGE
    assert flags[0] in result.err
    assert not idle.requests


@pytest.mark.parametrize("option", ["--attach", "--export-api", "--object-info", "--save-run"])
def test_an_empty_value_does_not_run_something_else(option: str, idle: Any) -> None:
    result = go(idle, "--yes", option, "", API_FILE)
    assert result.status == ExitStatus.USAGE
    assert option + " is empty" in result.err


# ------------------------------------------------------------------------------------------------
# --save-run
# ------------------------------------------------------------------------------------------------


def read(path: Any) -> Json:
    """A record, or another file with an object of JSON."""
    with open(path, encoding="utf-8") as file:
        made: Json = json.load(file)
    return made


def test_a_record_says_what_ran_and_what_came_of_it(simulator: Any, workflow_file: Make, tmp_path: Any) -> None:
    path, folder = str(tmp_path / "run.json"), str(tmp_path / "made")
    result = go(
        simulator, "--yes", "--json", "--seed", "9", "--save-run", path, "-o", folder, workflow_file(small(API))
    )
    assert result.status == 0
    record = read(path)
    ((prompt_id, entry),) = ask(simulator, "/history").items()
    assert record["prompt_id"] == prompt_id
    assert same(record["prompt"]) == same(entry["prompt"][2])
    assert record["seeds"] == {"5.seed": 9}
    assert record["server"]["version"] == "0.33.0" and record["server"]["url"] == simulator.url
    assert (record["status"], record["exit_status"], record["wholly_cached"]) == ("success", 0, False)
    assert {each["node_id"] for each in record["node_times"]} == set("1234567")
    assert all(each["seconds"] >= 0 for each in record["node_times"])
    (output,) = record["outputs"]
    assert output["path"] == result.event("saved")["path"] == os.path.join(folder, "ComfyUI_00001_.png")
    with open(output["path"], "rb") as file:
        data = file.read()
    assert output["sha256"] == hashlib.sha256(data).hexdigest() and output["bytes"] == len(data)
    assert "workflow" not in record
    assert path in [event["path"] for event in result.events if event["event"] == "exported"]


def test_a_record_runs_again(simulator: Any, workflow_file: Make, tmp_path: Any) -> None:
    path = str(tmp_path / "run.json")
    edits = ("--seed", "random", "--set", "5.steps=3")
    assert go(simulator, "--yes", *edits, "--save-run", path, workflow_file(small(UI), "ui.json")).status == 0
    result = go(simulator, "--yes", path)
    assert result.status == 0
    (first, first_extra), (second, second_extra) = history(simulator)
    assert same(first) == same(second) and first["5"]["inputs"]["seed"] == read(path)["seeds"]["5.seed"]
    assert "Nothing was rendered" in result.out
    assert first_extra["extra_pnginfo"] == second_extra["extra_pnginfo"]
    assert widgets(second_extra["extra_pnginfo"]["workflow"], 5)[2] == 3


def test_a_record_of_outputs_that_stay_on_the_server(simulator: Any, workflow_file: Make, tmp_path: Any) -> None:
    path = tmp_path / "run.json"
    prompt = slow_prompt(seconds=0.0)
    prompt["3"] = node("PreviewAny", source=["4", 0])
    prompt["4"] = node("CheckpointLoaderSimple", ckpt_name="sd_xl_base_1.0.safetensors")
    assert go(simulator, "--yes", "--save-run", str(path), workflow_file(prompt)).status == 0
    outputs = {each["node_id"]: each for each in read(path)["outputs"]}
    assert os.path.exists(os.path.join(simulator.folder("output"), outputs["2"]["filename"]))
    assert outputs["2"]["path"] is None and "sha256" not in outputs["2"]
    assert outputs["3"]["path"] is None and outputs["3"]["text"]


def test_a_record_has_the_pictures_that_came_over_the_websocket_alone(
    simulator: Any, workflow_file: Make, tmp_path: Any
) -> None:
    path, folder = tmp_path / "run.json", tmp_path / "made"
    prompt = {**slow_prompt(seconds=0.0), "2": node("SaveImageWebsocket", "Send", images=["1", 0])}
    assert go(simulator, "--yes", "--save-run", str(path), "-o", str(folder), workflow_file(prompt)).status == 0
    (saved,) = os.listdir(folder)
    (output,) = read(path)["outputs"]
    assert output["sha256"] == hashlib.sha256((folder / saved).read_bytes()).hexdigest()
    assert output["path"] == str(folder / saved) and output["node_id"] == "2"


def test_a_record_of_a_run_that_failed(simulator: Any, workflow_file: Make, tmp_path: Any) -> None:
    path = tmp_path / "run.json"
    prompt = slow_prompt(seconds=0.0)
    prompt["3"] = node("FailNode", "Bad", message="out of luck", image=["1", 0])
    prompt["4"] = node("PreviewImage", images=["3", 0])
    assert go(simulator, "--yes", "--save-run", str(path), workflow_file(prompt)).status == ExitStatus.FAILED
    record = read(path)
    assert (record["status"], record["exit_status"]) == ("error", 7)
    assert "failed" in record["message"] and "Bad" in record["message"]


def test_a_record_of_a_run_that_took_too_long_says_so(simulator: Any, workflow_file: Make, tmp_path: Any) -> None:
    path = tmp_path / "run.json"
    flags = ("--yes", "--json", "--timeout", "0.3", "--save-run", str(path))
    result = go(simulator, *flags, workflow_file(slow_prompt(steps=100, seconds=20.0)))
    assert result.status == ExitStatus.TIMEOUT
    record, end = read(path), result.event("end")
    assert (record["status"], record["exit_status"]) == ("timeout", 124)
    assert record["message"] == end["message"] and "timeout" in record["message"]


def test_a_wholly_cached_run_is_recorded_as_such(simulator: Any, workflow_file: Make, tmp_path: Any) -> None:
    path, record = workflow_file(slow_prompt(seconds=0.0)), tmp_path / "run.json"
    assert go(simulator, "--yes", path).status == 0
    assert go(simulator, "--yes", path, "--save-run", str(record)).status == 0
    assert read(record)["wholly_cached"] is True and read(record)["cached"] == ["1", "2"]


def test_no_record_of_what_was_refused(simulator: Any, workflow_file: Make, tmp_path: Any) -> None:
    path = tmp_path / "run.json"
    result = go(simulator, "--yes", "--save-run", str(path), workflow_file(WRONG))
    assert result.status == ExitStatus.REJECTED
    assert not path.exists()


def test_a_record_that_cannot_be_written_is_reported(simulator: Any, workflow_file: Make, tmp_path: Any) -> None:
    path = workflow_file(slow_prompt(seconds=0.0))
    result = go(simulator, "--yes", "--save-run", os.path.join(path, "run.json"), path)
    assert result.status == ExitStatus.NOT_SAVED
    assert "run.json cannot be written" in result.err


# ------------------------------------------------------------------------------------------------
# --attach
# ------------------------------------------------------------------------------------------------


def in_queue(simulator: Any, prompt_id: str, phase: str) -> None:
    """Comes back when the prompt is in that phase."""
    wait_until(lambda: phase_elsewhere(simulator, prompt_id) == phase, what="the phase " + phase)


def once_followed(simulator: Any, work: Callable[[], Any]) -> threading.Thread:
    """Starts a thread that calls ``work()`` as soon as the program has looked its prompt up."""

    def wait() -> None:
        wait_until(lambda: [path for _, path in simulator.requests if path.startswith("/history/")])
        work()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_a_running_prompt_is_followed_to_its_end(simulator: Any, tmp_path: Any) -> None:
    prompt_id = post_elsewhere(simulator, slow_prompt(seconds=0.5))
    in_queue(simulator, prompt_id, "running")
    result = go(simulator, "--attach", prompt_id, "--json", "-o", str(tmp_path / "made"), limits=SOON)
    assert result.status == 0
    assert {event["prompt_id"] for event in result.events} == {prompt_id}
    assert result.event("end")["status"] == "success"
    assert os.listdir(tmp_path / "made") == ["slow_00001_.png"]
    assert [path for method, path in simulator.requests if method == "POST"] == ["/prompt"]


def test_a_waiting_prompt_is_followed_to_its_end(simulator: Any) -> None:
    first = post_elsewhere(simulator, slow_prompt(seconds=0.5))
    second = post_elsewhere(simulator, slow_prompt(seconds=0.1, seed=2))
    in_queue(simulator, first, "running")
    result = go(simulator, "--attach", second, limits=SOON)
    assert result.status == 0
    assert "slow_00002_.png" in result.out and "Done in" in result.out
    assert f"Following {second}.\n" in result.out and "Submitted" not in result.out
    assert "(ComfyUI sends steps only to the client that submitted it" in result.out
    assert phase_elsewhere(simulator, first) == "success"


def test_a_prompt_that_is_over_reports_how_it_ended(simulator: Any, workflow_file: Make) -> None:
    made = go(simulator, "--yes", "--json", workflow_file(slow_prompt(seconds=0.0)))
    prompt_id = made.event("end")["prompt_id"]
    result = go(simulator, "--attach", prompt_id)
    assert result.status == 0
    assert "slow_00001_.png" in result.out and "1 output" in result.out
    assert f"Following {prompt_id}.\n" in result.out and "steps" not in result.out


def test_a_prompt_that_failed_reports_why(simulator: Any) -> None:
    prompt = slow_prompt(seconds=0.0)
    prompt["2"] = node("FailNode", "Bad", message="out of luck", image=["1", 0])
    prompt["3"] = node("PreviewImage", images=["2", 0])
    prompt_id = post_elsewhere(simulator, prompt)
    in_queue(simulator, prompt_id, "error")
    result = go(simulator, "--attach", prompt_id)
    assert result.status == ExitStatus.FAILED
    assert "out of luck" in result.out and '"Bad"' in result.out


def test_a_running_prompt_that_somebody_stops_is_reported(simulator: Any) -> None:
    prompt_id = post_elsewhere(simulator, slow_prompt(steps=100, seconds=20.0))
    in_queue(simulator, prompt_id, "running")
    thread = once_followed(simulator, lambda: simulator._server.life.interrupt(prompt_id))
    result = go(simulator, "--attach", prompt_id, "--json")
    thread.join(10.0)
    assert result.status == ExitStatus.INTERRUPTED
    assert result.event("end")["status"] == "interrupted"


def test_a_waiting_prompt_that_somebody_takes_away_is_reported(simulator: Any) -> None:
    ids = [post_elsewhere(simulator, slow_prompt(steps=100, seconds=20.0, seed=seed)) for seed in (1, 2)]
    in_queue(simulator, ids[0], "running")
    thread = once_followed(simulator, lambda: simulator._server.life.delete(ids[1]))
    result = go(simulator, "--attach", ids[1], limits=SOON)
    thread.join(10.0)
    assert result.status == ExitStatus.LOST  # its messages went elsewhere, so more cannot be known
    assert "no longer in the server's queue or history" in result.out


@pytest.mark.parametrize("prompt_id", ["3f0c6c1e-0000-4000-8000-000000000000", "nonsense", "a b"])
def test_a_prompt_that_is_not_known_is_reported(prompt_id: str, idle: Any) -> None:
    result = go(idle, "--attach", prompt_id)
    assert result.status == ExitStatus.LOST
    assert "does not know the prompt " + prompt_id in result.err and "restart" in result.err


def test_the_timeout_leaves_an_attached_prompt_alone(simulator: Any) -> None:
    prompt_id = post_elsewhere(simulator, slow_prompt(steps=100, seconds=20.0))
    in_queue(simulator, prompt_id, "running")
    result = go(simulator, "--attach", prompt_id, "--timeout", "0.2")
    assert result.status == ExitStatus.TIMEOUT
    assert "no longer following prompt %s, which continues" % prompt_id in result.err
    assert phase_elsewhere(simulator, prompt_id) == "running"


@pytest.mark.parametrize("phase", ["running", "pending"])
def test_ctrl_c_leaves_an_attached_prompt_alone(phase: str, simulator: Any, monkeypatch: Any) -> None:
    pressed: List[Interrupts] = []
    bind = Interrupts.bind

    def note(self: Interrupts, *more: Any) -> None:
        pressed.append(self)
        bind(self, *more)

    monkeypatch.setattr(Interrupts, "bind", note)
    ids = [post_elsewhere(simulator, slow_prompt(steps=100, seconds=20.0, seed=seed)) for seed in (1, 2)]
    in_queue(simulator, ids[0], "running")
    prompt_id = ids[phase == "pending"]
    thread = once_followed(simulator, lambda: pressed[0]._handle(signal.SIGINT, None))
    result = go(simulator, "--attach", prompt_id)
    thread.join(10.0)
    assert result.status == ExitStatus.CANCELLED
    assert phase_elsewhere(simulator, prompt_id) == phase
    assert [path for method, path in simulator.requests if method == "POST"] == ["/prompt", "/prompt"]


def test_an_attached_prompt_is_recorded_and_runs_again(simulator: Any, tmp_path: Any) -> None:
    path = str(tmp_path / "run.json")
    prompt_id = post_elsewhere(simulator, slow_prompt(seconds=0.0, seed=6))
    in_queue(simulator, prompt_id, "success")
    assert go(simulator, "--attach", prompt_id, "--save-run", path).status == 0
    record = read(path)
    assert (record["prompt_id"], record["status"], record["seeds"]) == (prompt_id, "success", {"1.seed": 6})
    assert record["outputs"][0]["filename"] == "slow_00001_.png"
    assert go(simulator, "--yes", path).status == 0
    (first, _), (second, _) = history(simulator)
    assert same(first) == same(second)


@pytest.mark.parametrize("flags", [("--set", "1.steps=3"), ("--seed", "random"), ("--image", "x.png")])
def test_nothing_can_be_set_in_an_attached_prompt(flags: Tuple[str, str], idle: Any) -> None:
    result = go(idle, "--attach", "x", *flags)
    assert result.status == ExitStatus.USAGE
    assert "--attach" in result.err
    assert not idle.requests


# ------------------------------------------------------------------------------------------------
# Continuous mode
# ------------------------------------------------------------------------------------------------


def message(answer: Any, status: int = 400) -> str:
    """What a refusal says."""
    assert answer.status == status, answer
    return str(answer.json["error"]["message"])


def ran(program: Middleware) -> None:
    """A run of the held workflow, to its end."""
    assert program.end(program.start())["phase"] == "success"


@pytest.mark.parametrize("document", [UI, API], ids=["ui", "api"])
def test_the_held_workflow_comes_from_any_document(document: Json, simulator: Any, make_middleware: Make) -> None:
    program = make_middleware(simulator, prompt=small(document))
    assert same(program.held()) == same(small(API))
    ran(program)
    assert same(last(simulator)) == same(small(API))
    assert along(simulator) == (small(UI) if document is UI else None)


def test_a_ui_document_is_put(simulator: Any, make_middleware: Make) -> None:
    program = make_middleware(simulator)
    answer = program.call("PUT", "/workflow", small(UI))
    assert answer.status == 200 and (answer.json["nodes"], answer.json["checked"]) == (7, True)
    assert same(program.held()) == same(small(API))
    ran(program)
    assert along(simulator) == small(UI)
    program.hold(small(API))  # its runs must not carry the workflow that was held before
    assert program.post("/update/inputs", {"node_id": "5", "inputs": {"seed": 3}}).status == 200
    ran(program)
    assert last(simulator)["5"]["inputs"]["seed"] == 3 and along(simulator) is None


def test_a_picture_is_put(simulator: Any, picture: str, make_middleware: Make) -> None:
    program = make_middleware(simulator)
    with open(picture, "rb") as file:
        answer = program.call("PUT", "/workflow", file.read())
    assert answer.status == 200 and answer.json["nodes"] == 7
    ran(program)
    assert same(last(simulator)) == same(small(API))
    assert along(simulator) == small(UI)


def test_a_record_and_an_entry_of_the_history_are_put(
    simulator: Any, make_middleware: Make, tmp_path: Any, workflow_file: Make
) -> None:
    path = str(tmp_path / "run.json")
    assert go(simulator, "--yes", "--set", "5.steps=3", "--save-run", path, workflow_file(small(UI))).status == 0
    program = make_middleware(simulator)
    for document in (read(path), ask(simulator, "/history")):
        program.hold(slow_prompt())
        program.hold(document)
        assert program.held()["5"]["inputs"]["steps"] == 3
        ran(program)
        assert widgets(along(simulator) or {}, 5)[2] == 3
        assert simulator._server.life.history.popitem()  # one entry stays


@pytest.mark.parametrize(
    "body, words",
    [
        (b"", "The body is empty."),
        (b"[]", "it contains a list"),
        (b"{}", "has no nodes"),
        (PNG, "is a picture without a workflow"),
        (json.dumps({"nodes": [], "links": []}).encode(), "has nothing to run"),
        (b'"http://127.0.0.1/workflow.json"', "it contains a string"),
    ],
)
def test_what_is_not_a_workflow_is_not_put(body: bytes, words: str, simulator: Any, make_middleware: Make) -> None:
    program = make_middleware(simulator)
    held = program.held()
    assert words in message(program.call("PUT", "/workflow", body))
    assert program.held() == held


def test_a_workflow_that_cannot_run_is_reported_as_by_check(
    simulator: Any, make_middleware: Make, workflow_file: Make
) -> None:
    prompt = {i: WRONG[i] for i in "34567"}
    checked = go(simulator, "--check", "--json", workflow_file(prompt, "wrong.json")).events
    program = make_middleware(simulator)
    held = program.held()
    answer = program.call("PUT", "/workflow", prompt)
    assert answer.status == 400
    problems = answer.json["error"]["details"]["problems"]
    reported = [event for event in checked if event["event"] == "problem"]
    assert [(p["node_id"], p["message"], p["hints"]) for p in problems] == [
        (p["node_id"], p["message"], p["hints"]) for p in reported
    ]
    assert len(problems) == 4 and program.held() == held


@pytest.mark.parametrize(
    "name, value",
    [("steps", 0), ("steps", "ten"), ("sampler_name", "dpmpp2m"), ("model", "x"), ("stepz", 1), ("denoise", 1.5)],
)
def test_an_edit_is_refused_in_the_words_of_set(name: str, value: Any, simulator: Any, make_middleware: Make) -> None:
    program = make_middleware(simulator, prompt=small(UI))
    answer = program.post("/update/inputs", {"node_id": "5", "inputs": {name: value}})
    refusal = message(answer, 409 if name == "model" else 400)
    result = go(simulator, "--yes", "--set", "5.%s=%s" % (name, value), UI_FILE)
    assert result.err.strip() == refusal
    assert same(program.held()) == same(small(API))


def test_an_edit_of_a_held_ui_workflow_is_in_the_one_that_goes_along(simulator: Any, make_middleware: Make) -> None:
    program = make_middleware(simulator, prompt=small(UI))
    assert program.post("/update/inputs", {"node_id": "5", "inputs": {"steps": 3, "seed": "random"}}).status == 200
    assert program.post("/update/prompt", {"type": "positive", "text": "a red door"}).status == 200
    ran(program)
    prompt, workflow = last(simulator), along(simulator) or {}
    seed = prompt["5"]["inputs"]["seed"]
    assert seed != 20240817
    assert widgets(workflow, 5)[:3] == [seed, "fixed", 3]
    assert widgets(workflow, 2) == ["a red door"] == [prompt["2"]["inputs"]["text"]]


SECRET = "comfyui-key-of-the-tests"


def test_the_key_in_a_file_goes_along_and_is_neither_stored_nor_shown(
    simulator: Any, workflow_file: Make, tmp_path: Any
) -> None:
    keyed = {"prompt": small(API), "extra_data": {"api_key_comfy_org": SECRET, "note": 1}}
    record = str(tmp_path / "run.json")
    result = go(simulator, "--yes", "--json", "--save-run", record, "--set", "5.steps=2", workflow_file(keyed))
    assert result.status == 0
    assert history(simulator)[-1][1]["note"] == 1
    assert SECRET not in result.out + result.err
    with open(record, encoding="utf-8") as file:
        assert SECRET not in file.read()


def test_the_key_of_a_held_workflow_goes_along_and_is_not_shown(simulator: Any, make_middleware: Make) -> None:
    keyed = {"prompt": small(API), "extra_data": {"api_key_comfy_org": SECRET, "note": 1}}
    program = make_middleware(simulator, prompt=keyed)
    ran(program)
    assert history(simulator)[-1][1]["note"] == 1
    program.hold({**keyed, "extra_data": {"api_key_comfy_org": SECRET, "note": 2}})
    ran(program)
    assert history(simulator)[-1][1]["note"] == 2
    for path in ("/workflow", "/status", "/runs"):
        assert SECRET.encode() not in program.get(path).body
    assert SECRET not in program.out.getvalue() + program.err.getvalue()


def test_the_values_of_the_command_line_are_held_and_come_back(
    simulator: Any, make_middleware: Make, tmp_path: Any, cat: str
) -> None:
    program = make_middleware(simulator, "--set", "4.filename_prefix=mine", "--image", "Style=" + cat,
                              prompt=TWO_LOADERS)  # fmt: skip

    def values() -> List[str]:
        held = program.held()
        return [held["1"]["inputs"]["image"], held["2"]["inputs"]["image"], held["4"]["inputs"]["filename_prefix"]]

    assert values() == ["example.png", "cat.png", "mine"]
    ran(program)
    assert last(simulator)["2"]["inputs"]["image"] == "cat.png"
    program.hold(slow_prompt())
    assert program.post("/workflow/reset").status == 200
    assert values() == ["example.png", "cat.png", "mine"]
    changed = copy.deepcopy(TWO_LOADERS)
    changed["1"]["inputs"]["image"] = "cat.png"
    (tmp_path / "held.json").write_text(json.dumps(changed))
    assert program.post("/workflow/reset").status == 200
    assert values() == ["cat.png", "cat.png", "mine"]
    assert [path for _, path in simulator.requests].count("/upload/image") == 1


def test_a_seed_of_the_command_line_is_drawn_at_each_run(simulator: Any, make_middleware: Make) -> None:
    program = make_middleware(simulator, "--seed", "random", prompt=small(UI))
    for reset in (False, False, True):
        if reset:
            program.hold(slow_prompt())
            assert program.post("/workflow/reset").status == 200
        (seed,) = [field for field in program.get("/workflow").json["fields"] if field["kind"] == "seed"]
        assert seed["random"] is True
        ran(program)
    prompts = [prompt for prompt, _ in history(simulator)]
    seeds = [prompt["5"]["inputs"]["seed"] for prompt in prompts]
    assert len({20240817, *seeds}) == 4
    assert [widgets(extra["extra_pnginfo"]["workflow"], 5)[0] for _, extra in history(simulator)] == seeds


def test_a_fixed_seed_of_the_command_line_is_held(simulator: Any, make_middleware: Make) -> None:
    program = make_middleware(simulator, "--seed", "12", "--set", "5.steps=3", prompt=small(UI))
    program.hold(slow_prompt())
    assert program.post("/workflow/reset").status == 200
    assert (program.held()["5"]["inputs"]["seed"], program.held()["5"]["inputs"]["steps"]) == (12, 3)
    ran(program)
    assert widgets(along(simulator) or {}, 5)[:3] == [12, "fixed", 3]


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--set", "5.steps=0"), "steps = 0 is too small"),
        (("--image", "x.png"), "no node that loads a file"),
        (("--seed", "x"), "--seed must be"),
        (("--save-run", "x.json"), "--save-run is for a single run"),
        (("--object-info", "x.json"), "--object-info is for"),
    ],
)
def test_values_that_continuous_mode_cannot_take_end_it(flags: Tuple[str, str], words: str, idle: Any) -> None:
    result = go(idle, "--mode", "continuous", "--port", "0", *flags, UI_FILE)
    assert result.status == ExitStatus.USAGE
    assert words in result.err


def test_a_file_that_fits_no_more_leaves_the_held_workflow(
    simulator: Any, make_middleware: Make, tmp_path: Any
) -> None:
    program = make_middleware(simulator, "--set", "5.steps=3", prompt=small(UI))
    held = program.held()
    (tmp_path / "held.json").write_text(json.dumps(slow_prompt()))
    assert 'no node "5"' in message(program.post("/workflow/reset"))
    (tmp_path / "held.json").write_text("{")
    assert "is not JSON" in message(program.post("/workflow/reset"))
    (tmp_path / "held.json").unlink()
    assert "does not exist" in message(program.post("/workflow/reset"))
    assert program.held() == held


def test_a_ui_file_is_read_when_comfyui_has_come(make_simulator: Make, make_middleware: Make, tmp_path: Any) -> None:
    simulator = make_simulator()
    simulator.crash()
    program = make_middleware(simulator.url)
    (tmp_path / "held.json").write_text(json.dumps(small(UI)))
    for answer in (program.post("/workflow/reset"), program.call("PUT", "/workflow", small(UI))):
        assert answer.status == 503 and "retry-after" in answer.headers
    simulator.revive()
    wait_until(lambda: program.get("/status").json["comfyui"]["connected"])
    assert program.post("/workflow/reset").status == 200
    ran(program)
    assert along(simulator) == small(UI)


def test_standard_input_is_held_through_a_reset(simulator: Any) -> None:
    program = Middleware(["--server", simulator.url, "-", "--set", "5.steps=3"], {}, FAST, json.dumps(small(UI)))
    try:
        program.hold(slow_prompt())
        assert program.post("/workflow/reset").status == 200
        assert program.held()["5"]["inputs"]["steps"] == 3
        wait_until(lambda: program.get("/status").json["comfyui"]["connected"])
        ran(program)
        assert widgets(along(simulator) or {}, 5)[2] == 3
    finally:
        assert program.stop() == 0


def test_an_upload_is_in_the_workflow_that_goes_along(simulator: Any, make_middleware: Make) -> None:
    program = make_middleware(simulator, prompt=UI_LOADER)
    assert program.upload().status == 200
    ran(program)
    assert last(simulator)["1"]["inputs"]["image"] == "cat.png"
    assert widgets(along(simulator) or {}, 1) == ["cat.png", "image"]
