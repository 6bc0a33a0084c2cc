"""--each: what a line of values stands for, and the runs that several lines make."""

from __future__ import annotations

import io
from typing import Any, Dict, List

import pytest
from desk import settings_of
from support import count_calls, node

from comfyui_runner.edits import EditError
from comfyui_runner.extras.batch_files import count_rows
from comfyui_runner.extras.sweeps import Axis, FileAccess, read_axes, rows_of_product
from comfyui_runner.loading import Loaded, files_that_fit

PROMPT: Dict[str, Any] = {
    "1": node("CLIPTextEncode", "A = B", text="a fox"),
    "2": node("CLIPTextEncode", "Negative", text="bad"),
    "3": node("KSampler", positive=["1", 0], negative=["2", 0], latent_image=["4", 0], seed=5, steps=4, cfg=7.0,
              sampler_name="euler"),
    "4": node("EmptyLatentImage", width=64, height=64, batch_size=1),
    "5": node("LoadImage", image="a.png"),
}  # fmt: skip
INFO: Dict[str, Any] = {
    "KSampler": {
        "input": {
            "required": {
                "seed": ["INT", {"min": 0, "max": 2**64 - 1, "control_after_generate": True}],
                "steps": ["INT", {"min": 1, "max": 100}],
                "cfg": ["FLOAT", {"min": 0.0, "max": 100.0}],
                "sampler_name": [["euler", "ddim", "a, b"]],
            }
        }
    },
    "CLIPTextEncode": {"input": {"required": {"text": ["STRING", {"multiline": True}]}}},
    "LoadImage": {"input": {"required": {"image": [["a.png", "b.png"], {"image_upload": True}]}}},
}
FILES = {"photos/*.png": ["photos/1.png", "photos/2.png"], "cat.png": ["cat.png"], "a, b.png": ["a, b.png"]}
TEXTS = {"prompts.txt": ["a fox", "", "a cat, red", " "], "empty.txt": [""]}
ACCESS = FileAccess(find=lambda pattern: FILES.get(pattern, []), read_lines=lambda path: TEXTS[path])


def axes(*texts: str) -> List[Axis]:
    return read_axes(texts, PROMPT, INFO, ACCESS)


@pytest.mark.parametrize(
    ("text", "name", "values"),
    [
        ("3.steps=4,6, 8", "3.steps", ["4", "6", "8"]),
        ("KSampler.steps=1..4", "KSampler.steps", [1, 2, 3, 4]),
        ("3.steps=3..1,10", "3.steps", [3, 2, 1, "10"]),
        ("3.cfg=1.5,2", "3.cfg", ["1.5", "2"]),
        ("3.sampler_name=euler,ddim", "3.sampler_name", ["euler", "ddim"]),
        ("3.sampler_name=a, b", "3.sampler_name", ["a, b"]),  # one choice that has a comma
        ("3.seed=7,random", "3.seed", ["7", "random"]),
        ("seed=1..3", "seed", [1, 2, 3]),
        ("size=64x64, 128x64", "size", ["64x64", "128x64"]),
        ("positive=a fox, red", "positive", ["a fox, red"]),  # a text may have commas
        ("positive=@prompts.txt", "positive", ["a fox", "a cat, red"]),
        ("negative=@@fox", "negative", ["@fox"]),
        ("negative=@", "negative", ["@"]),
        ("A = B.text=x=y", "A = B.text", ["x=y"]),
        ("5.image=photos/*.png", "5.image", ["@photos/1.png", "@photos/2.png"]),
        ("image=@cat.png", "image", ["@cat.png"]),
        ("image=a.png,b.png", "image", ["a.png", "b.png"]),  # the server's own files
        ("image=cat.png,b.png", "image", ["@cat.png", "b.png"]),  # the first one is here, and uploaded
        ("image=@cat.png, photos/*.png", "image", ["@cat.png", "@photos/1.png", "@photos/2.png"]),
        ("image=a, b.png", "image", ["@a, b.png"]),  # a file's name may have commas too
    ],
)
def test_values_are_read_by_the_type_of_their_input(text: str, name: str, values: List[Any]) -> None:
    assert axes(text) == [Axis(name, values)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3.steps", "--each takes NODE.INPUT=VALUES, such as"),
        ("9.steps=1", 'no node "9"'),
        ("3.step=1", "has no input"),
        ("3.step=x=1", "has no input"),  # the first name that was tried is the one that is meant
        ("3.steps=", "--each 3.steps= has no values."),
        ("3.steps=1,,x", "steps"),
        ("3.steps=99..101", "too big"),
        ("3.seed=1..99999999", "99999999 values, but only 1000000 are allowed"),
        ("3.sampler_name=eulr", "not one of"),
        ("positive=@empty.txt", "the file has no text"),
        ("image=none/*.png", "no file matches"),
        ("image=@none.png", "no file matches"),
        ("image=cat.png,@none.png", '@none.png": no file matches'),
        ("image=", "--each image= has no values."),
        ("size=64", "is not a size"),
        ("3.positive=x", "is fed by"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_runs(text: str, message: str) -> None:
    with pytest.raises(EditError) as caught:
        axes(text)
    assert message in caught.value.message


def test_the_same_name_again_adds_to_its_values() -> None:
    assert axes("positive=a", "3.steps=1", "positive=b") == [Axis("positive", ["a", "b"]), Axis("3.steps", ["1"])]


def test_several_names_make_the_product_and_the_last_one_changes_first() -> None:
    product = axes("positive=@prompts.txt", "seed=1..3")
    rows = list(rows_of_product(product))
    assert len(rows) == 6
    assert [row.number for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row.values["seed"] for row in rows] == [1, 2, 3, 1, 2, 3]
    assert rows[3].values == {"positive": "a cat, red", "seed": 1}


def test_rows_are_counted_by_a_product_and_not_one_by_one() -> None:
    workflow = Loaded(PROMPT, "flow.json", object_info=INFO)
    with count_calls("repeat_row") as calls:
        settings = settings_of("--each", "seed=1..300", "--each", "3.cfg=1,2", "--repeat", "5")
        assert count_rows(settings, workflow, io.StringIO()) == 3000
        assert count_rows(settings_of("--repeat", "5"), workflow, io.StringIO()) == 5
    assert calls["repeat_row"] == 0


def test_more_combinations_than_anybody_runs_are_refused() -> None:
    assert len(axes("seed=1..100000", "3.steps=1..10")) == 2
    with pytest.raises(EditError) as caught:
        axes("seed=1..100000", "3.steps=1..11")
    assert caught.value.message == "--each makes 1100000 combinations of values, but only 1000000 are allowed."


def test_an_input_that_is_not_declared_is_read_by_its_value() -> None:
    assert read_axes(["3.steps=1..2"], PROMPT, {}, ACCESS) == [Axis("3.steps", [1, 2])]
    assert read_axes(["3.sampler_name=a,b"], PROMPT, {}, ACCESS) == [Axis("3.sampler_name", ["a,b"])]


def test_files_that_fit_are_in_the_order_of_their_numbers(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a10.png", "a2.png", "B1.png", "c1.png", "c[1].png"):
        (tmp_path / name).touch()
    (tmp_path / "a3.png").mkdir()
    assert files_that_fit("*1*.png") == ["a10.png", "B1.png", "c1.png", "c[1].png"]
    assert files_that_fit("a*.png") == ["a2.png", "a10.png"]
    assert files_that_fit("c[1].png") == ["c[1].png"]  # not a pattern: it is there
    assert [files_that_fit(name) for name in ("a3.png", "none.png", "none*", ".")] == [[], [], [], []]
