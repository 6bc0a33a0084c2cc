"""What is drawn, dated and named for one run, without a socket."""

from __future__ import annotations

import datetime
from typing import Any, Dict, Sequence

import pytest
from support import node

from comfyui_runner.documents import Conversion, ValueInFileName
from comfyui_runner.extras.conversion import convert_with_open_texts
from comfyui_runner.extras.dynamic_texts import open_texts
from comfyui_runner.loading import Loaded
from comfyui_runner.nodes import InputRef
from comfyui_runner.run_prompts import DRAW_RANGE, RunPrompt, draw_number, make_run_prompt

Json = Dict[str, Any]

MONDAY = datetime.datetime(2026, 3, 2, 23, 59, 59)
TUESDAY = datetime.datetime(2026, 3, 3)
TEXT, NAME = InputRef("6", "text"), InputRef("9", "filename_prefix")

OBJECT_INFO: Json = {
    "CLIPTextEncode": {
        "input": {"required": {"text": ["STRING", {"multiline": True, "dynamicPrompts": True}]}},
        "output": ["CONDITIONING"],
    },
    "KSampler": {
        "input": {"required": {"seed": ["INT", {"default": 0, "min": 0, "max": 1000}], "on": ["BOOLEAN", {}]}},
        "output": ["LATENT"],
    },
    "SaveImage": {
        "input": {"required": {"filename_prefix": ["STRING", {"default": "ComfyUI"}]}},
        "output": [],
        "output_node": True,
    },
}


def ui_node(id: int, type: str, values: Sequence[Any], **more: Any) -> Json:
    """A node in UI format."""
    return {"id": id, "type": type, "mode": 0, "inputs": [], "outputs": [], "widgets_values": list(values), **more}


def load_ui(text: str = "a fox", name: str = "made", **more: Any) -> Loaded:
    """A workflow in UI format: a text, a sampler and what saves a picture."""
    nodes = [
        ui_node(6, "CLIPTextEncode", [text]),
        ui_node(5, "KSampler", [7, "fixed", True], **more),
        ui_node(9, "SaveImage", [name]),
    ]
    workflow = {"nodes": nodes, "links": [], "version": 0.4}
    conversion = convert_with_open_texts(workflow, OBJECT_INFO)
    return Loaded(conversion.prompt, "ui.json", workflow, conversion)


def load_api(**prompt: Json) -> Loaded:
    """A workflow in API format; the nodes are named by a letter and their id."""
    nodes = {key[1:]: each for key, each in prompt.items()}
    return Loaded(nodes, "api.json", conversion=Conversion(nodes))


def run_of(loaded: Loaded, number: int = 1, now: datetime.datetime = MONDAY, **values: Json) -> RunPrompt:
    """A run of a workflow, whose nodes may have other values since."""
    prompt = dict(loaded.prompt)
    for key, inputs in values.items():
        prompt[key[1:]] = {**prompt[key[1:]], "inputs": {**prompt[key[1:]]["inputs"], **inputs}}
    return make_run_prompt(prompt, loaded, number, now)


def text_of(new: RunPrompt) -> Any:
    return new.prompt["6"]["inputs"]["text"]


def name_of(new: RunPrompt) -> Any:
    return new.prompt["9"]["inputs"]["filename_prefix"]


# -- choices ---------------------------------------------------------------------------------------


def test_a_number_always_draws_the_same_text_and_other_numbers_draw_others() -> None:
    loaded = load_ui("a {red|blue|green} {fox|cat}")
    texts = [text_of(run_of(loaded, number)) for number in range(40)]
    assert texts == [text_of(run_of(loaded, number)) for number in range(40)]
    assert len(set(texts)) == 6
    assert loaded.prompt["6"]["inputs"]["text"] == "a {red|blue|green} {fox|cat}"


def test_what_was_drawn_is_known_with_its_number() -> None:
    new = run_of(load_ui("{red|red}"), 2**49)
    assert new.texts.to_json() == {"draw": 2**49, "texts": {"6.text": "red"}}
    assert run_of(load_ui()).texts.to_json() == {"draw": None, "texts": {}}


def test_numbers_are_drawn_that_every_reader_of_json_keeps() -> None:
    numbers = {draw_number() for _ in range(50)}
    assert len(numbers) == 50 and all(0 <= number < DRAW_RANGE <= 2**53 for number in numbers)


@pytest.mark.parametrize(
    ("text", "used"),
    [
        ("a {red|red} fox // note", "a red fox "),
        ("see https://example.com/{x}", "see https://example.com/{x}"),
        ('{"json": 1} | more', '{"json": 1} | more'),
        (r"\{a|b}", r"\{a|b}"),
        ("{a {x|x}|a {x|x}}", "a x"),
        ("{" * 100000, "{" * 100000),
        ("plain", "plain"),
    ],
)
def test_a_text_that_was_set_is_drawn_if_it_has_a_choice_and_else_used_as_it_is(text: str, used: str) -> None:
    assert text_of(run_of(load_ui("{a|b} // c"), n6={"text": text})) == used


def test_the_text_of_the_file_is_read_as_the_frontend_reads_it() -> None:
    assert text_of(run_of(load_ui(r"a \{fox\} // note"))) == "a {fox} "


def test_an_input_that_has_no_text_any_more_is_left_alone() -> None:
    loaded = load_ui("{a|b}")
    assert text_of(run_of(loaded, n6={"text": ["5", 0]})) == ["5", 0]
    other = {"1": node("KSampler", seed=1)}
    assert make_run_prompt(other, loaded, 1, MONDAY).prompt == other


def test_the_texts_that_something_is_drawn_in_are_known() -> None:
    loaded = load_ui("{a|b}")
    assert open_texts(loaded.prompt, loaded.conversion) == [TEXT]
    plain = load_ui()
    assert plain.conversion.draws == (TEXT,) and open_texts(plain.prompt, plain.conversion) == []


def test_braces_in_api_format_are_ordinary_characters_unless_the_document_names_the_input() -> None:
    loaded = load_api(n6=node("CLIPTextEncode", text="{a|a}"))
    assert text_of(run_of(loaded)) == "{a|a}"
    assert text_of(run_of(loaded._replace(conversion=Conversion(loaded.prompt, draws=(TEXT,))))) == "a"


def test_the_workflow_that_goes_along_has_what_was_drawn_and_keeps_the_name_open() -> None:
    new = run_of(load_ui("{red|red} fox", "%date:yyyy%/a"))
    nodes = new.extra["extra_data"]["extra_pnginfo"]["workflow"]["nodes"]
    assert [each["widgets_values"] for each in nodes] == [["red fox"], [7, "fixed", True], ["%date:yyyy%/a"]]
    assert (text_of(new), name_of(new)) == ("red fox", "2026/a")


# -- names of files --------------------------------------------------------------------------------


def test_the_date_is_that_of_the_run_in_every_format() -> None:
    for loaded in (
        load_ui(name="%date:yyyy-MM-dd%/a"),
        load_api(n9=node("SaveImage", filename_prefix="%date:yyyy-MM-dd%/a")),
    ):
        assert name_of(run_of(loaded, now=MONDAY)) == "2026-03-02/a"
        new = run_of(loaded, now=TUESDAY)
        assert name_of(new) == "2026-03-03/a"
        assert new.texts.to_json() == {"draw": None, "texts": {"9.filename_prefix": "2026-03-03/a"}}


def test_a_name_that_was_set_is_dated_too() -> None:
    new = run_of(load_api(n9=node("SaveImage", filename_prefix="a")), n9={"filename_prefix": "%date:MMdd%"})
    assert name_of(new) == "0302"


def test_only_save_nodes_name_files() -> None:
    prompt = {
        "1": node("MySave", filename_prefix="%date:yyyy%"),
        "2": node("SaveImage", images=["1", 0]),
        "3": node("SaveImage", filename_prefix=["1", 0]),
        "4": node("CLIPTextEncode", text="%date:yyyy%"),
        "5": node("VHS_VideoCombine", filename_prefix="%date:yyyy%"),
    }
    made = make_run_prompt(prompt, Loaded(prompt, ""), 1, MONDAY).prompt
    assert made == {**prompt, "5": node("VHS_VideoCombine", filename_prefix="2026")}


@pytest.mark.parametrize("name", ["ComfyUI", "%year%-%month%", "100%", "%%", "%a.b.c%"])
def test_what_the_server_fills_in_is_left_to_it(name: str) -> None:
    loaded = load_api(n9=node("SaveImage", filename_prefix=name))
    assert make_run_prompt(loaded.prompt, loaded, 1, MONDAY).prompt is loaded.prompt


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("%KSampler.seed%", "7"),
        ("%Text.text%", "a_b"),
        ("%Text.nothing%", ""),
        ("%KSampler.model%", "%KSampler.model%"),
        ("%KSampler.no%/%Nobody.x%", "%KSampler.no%/%Nobody.x%"),
        ("%SaveImage.filename_prefix%", "%SaveImage.filename_prefix%"),
        ("%Twin.seed%", "7"),
    ],
)
def test_values_are_named_by_class_or_title_in_api_format(name: str, made: str) -> None:
    loaded = load_api(
        n9=node("SaveImage", "Save", filename_prefix=name),
        n3=node("KSampler", "Twin", seed=7, model=["1", 0]),
        n4=node("KSampler", "Twin", seed=8),
        n6=node("CLIPTextEncode", "Text", text="a/b", nothing=None),
    )
    assert name_of(run_of(loaded)) == made


def test_a_value_is_that_of_the_run_also_in_ui_format() -> None:
    loaded = load_ui(name="%KSampler.seed%-%KSampler.on%", title="Sampler")
    assert loaded.conversion.named_values["KSampler.seed"] == ValueInFileName(InputRef("5", "seed"), 7)
    assert name_of(run_of(loaded)) == "7-true"
    assert name_of(run_of(loaded, n5={"seed": 99})) == "99-true"
    assert name_of(run_of(loaded, n9={"filename_prefix": "%Sampler.seed%"})) == "7"


def test_the_value_of_a_node_that_does_not_run_is_that_of_the_file() -> None:
    loaded = load_ui(name="%KSampler.seed%", mode=2)
    assert "5" not in loaded.prompt and name_of(run_of(loaded)) == "7"
