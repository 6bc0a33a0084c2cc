"""The values of a call: what a key means, what a value becomes, and what is refused with what could be meant."""

from __future__ import annotations

import base64
import copy
import json
import os
from typing import Any, Dict, List

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import anything, few
from support import ROOT, node

from comfyui_runner.call_values import CallFile, CallValues, file_of_bytes, find_sizes, read_call_values
from comfyui_runner.edits import EditError
from comfyui_runner.nodes import InputRef
from comfyui_runner.simulator import draw

Json = Dict[str, Any]
Ref = InputRef

with open(os.path.join(ROOT, "workflow_api.json"), encoding="utf-8") as file:
    TEXTS: Json = json.load(file)

PNG = draw(8, 8, 1, ["A"])
PNG_URI = "data:image/png;base64," + base64.b64encode(PNG).decode()

NUMBER = ["INT", {"min": 0, "max": 4096}]
INFO: Json = {
    "CLIPTextEncode": {"input": {"required": {"text": ["STRING", {"multiline": True}], "clip": ["CLIP"]}}},
    "EmptyLatentImage": {"input": {"required": {"width": NUMBER, "height": NUMBER, "batch_size": NUMBER}}},
    "KSampler": {
        "input": {
            "required": {
                "seed": ["INT", {"min": 0, "max": 2**64 - 1}],
                "steps": ["INT", {"min": 1, "max": 100}],
                "cfg": ["FLOAT", {}],
                "sampler_name": [["euler", "dpmpp_2m"], {}],
            }
        }
    },
    "LoadImage": {"input": {"required": {"image": [["example.png"], {"image_upload": True}]}}},
    "LoadAudio": {"input": {"required": {"audio": [["a.wav"], {"audio_upload": True}]}}},
    "PrimitiveInt": {"input": {"required": {"value": ["INT", {}]}}},
}
LOADER: Json = {
    "1": node("LoadImage", "Photo", image="example.png"),
    "2": node("SaveImage", "Save", filename_prefix="loaded", images=["1", 0]),
}


def read(prompt: Json, **values: Any) -> CallValues:
    return read_call_values(prompt, INFO, {key.replace("__", "."): value for key, value in values.items()})


def refused(prompt: Json, values: Json) -> EditError:
    before = copy.deepcopy(prompt)
    with pytest.raises(EditError) as caught:
        read_call_values(prompt, INFO, values)
    assert prompt == before
    return caught.value


def keys(error: EditError) -> List[str]:
    """The keys that an error offers."""
    return [each["key"] for each in error.details]


# ------------------------------------------------------------------------------------------------
# keys


def test_a_call_without_values_is_the_prompt_itself() -> None:
    call = read_call_values(TEXTS, INFO, {})
    assert call == CallValues(TEXTS, (), (), frozenset(), frozenset())
    assert call.complete({}) == TEXTS


def test_the_texts_are_found_by_their_roles_and_set_in_a_copy() -> None:
    before = copy.deepcopy(TEXTS)
    call = read(TEXTS, positive="a fox", negative="a dog")
    assert call.prompt["2"]["inputs"]["text"] == "a fox"
    assert call.prompt["3"]["inputs"]["text"] == "a dog"
    assert call.named == {Ref("2", "text"), Ref("3", "text")}
    assert before == TEXTS


def test_node_and_input_are_named_as_set_names_them_and_texts_are_read_by_type() -> None:
    values = {"5.steps": "30", "KSampler.cfg": "7.5", "KSampler.sampler_name": "euler", "Negative Prompt.text": "12"}
    inputs = read_call_values(TEXTS, INFO, values).prompt
    assert inputs["5"]["inputs"]["steps"] == 30
    assert inputs["5"]["inputs"]["cfg"] == 7.5
    assert inputs["5"]["inputs"]["sampler_name"] == "euler"
    assert inputs["3"]["inputs"]["text"] == "12"


def test_a_model_that_is_listed_under_another_name_is_renamed_and_noted() -> None:
    info: Json = {
        "Loader": {"input": {"required": {"name": [["old/a.safetensors", "b.safetensors"]], "text": ["STRING"]}}}
    }
    prompt: Json = {"1": node("Loader", name="b.safetensors", text="x")}
    call = read_call_values(prompt, info, {"1.name": "a.safetensors", "1.text": "c.safetensors"})
    assert call.prompt["1"]["inputs"] == {"name": "old/a.safetensors", "text": "c.safetensors"}
    assert call.renamed == {Ref("1", "name")}
    assert read_call_values(prompt, info, {"1.name": "b.safetensors"}).renamed == frozenset()


def test_json_values_are_taken_as_they_are() -> None:
    assert read(TEXTS, **{"5.steps": 30.0, "5.cfg": 7}).prompt["5"]["inputs"]["steps"] == 30


@pytest.mark.parametrize(
    ("values", "type_", "status", "part"),
    [
        ({"5.steps": "many"}, "invalid_input_type", 400, 'steps = "many" is not a whole number (INT).'),
        ({"5.steps": 1000}, "value_bigger_than_max", 400, "Allowed: 1 to 100."),
        ({"5.sampler_name": "oiler"}, "value_not_in_list", 400, "Did you mean euler?"),
        ({"positive": None}, "invalid_input_type", 400, "text = null is not text (STRING)."),
        ({"5.step": 3}, "no_such_input", 400, "Did you mean steps?"),
        ({"5.model": 3}, "linked_input", 409, "model is fed by"),
        ({"KSamplr.steps": 3}, "no_such_node", 400, "Did you mean KSampler?"),
        ({"5.": 3}, "no_such_input", 400, "has no input"),
    ],
)
def test_a_wrong_value_or_name_is_refused_with_what_would_be_right(
    values: Json, type_: str, status: int, part: str
) -> None:
    error = refused(TEXTS, values)
    assert (error.type, error.http_status) == (type_, status)
    assert part in error.message


def test_a_key_that_names_nothing_is_refused_with_the_nearest_ones() -> None:
    error = refused(TEXTS, {"positve": "a fox"})
    assert (error.type, error.http_status) == ("unknown_field", 400)
    assert error.message == 'There is no value "positve". Did you mean positive?'
    assert keys(error)[:6] == ["positive", "negative", "seed", "image", "size", "1.ckpt_name"]
    assert "5.model" not in keys(error)  # a link
    unlike = refused(TEXTS, {"zzz": 1})
    assert unlike.message.endswith("Name a value by NODE.INPUT, or by a short name.")


def test_one_input_under_two_names_is_refused_as_only_one_value_could_count() -> None:
    error = refused(TEXTS, {"positive": "a fox", "2.text": "a dog"})
    assert (error.type, error.http_status) == ("duplicate_field", 400)
    assert error.message == '"positive" and "2.text" both set 2.text: leave one of them out.'
    assert refused(TEXTS, {"size": "8x8", "4.width": 16}).type == "duplicate_field"


def test_several_texts_of_a_role_are_offered_by_their_keys() -> None:
    prompt: Json = {
        "1": node("CLIPTextEncodeSDXL", "Both", text_g="a", text_l="b"),
        "2": node("KSampler", model=["9", 0], positive=["1", 0], seed=1),
    }
    error = refused(prompt, {"positive": "a fox"})
    assert (error.type, error.http_status) == ("ambiguous_node", 409)
    assert error.message == "The workflow has several positive texts. Set them by name: 1.text_g, 1.text_l."
    both = {"node_id": "1", "title": "Both", "class_type": "CLIPTextEncodeSDXL"}
    assert error.details == [{"key": "1.text_g", **both}, {"key": "1.text_l", **both}]


def test_a_workflow_whose_texts_have_no_role_offers_all_of_them() -> None:
    prompt: Json = {str(number): node("Notes", text="a") for number in range(1, 23)}
    error = refused(prompt, {"negative": "a fox"})
    assert (error.type, error.http_status) == ("no_such_text", 409)
    assert error.message.startswith(
        "The workflow has no text that is clearly its negative prompt. Set a text by name: 1.t"
    )
    assert error.message.endswith("20.text, 2 more.")
    assert len(error.details) == 22
    alone = refused({"1": node("X")}, {"positive": "a fox"})
    assert (alone.message, alone.details) == ("The workflow has no text that is clearly its positive prompt.", [])


# ------------------------------------------------------------------------------------------------
# seeds


def two_seeds() -> Json:
    return {
        "1": node("KSampler", "First", seed=1, steps=20),
        "2": node("KSampler", "Second", seed=["3", 0], steps=20),
        "3": node("PrimitiveInt", "Number", value=2),
    }


def test_seed_sets_every_seed_and_a_named_one_is_more_precise() -> None:
    prompt = read(two_seeds(), seed=7).prompt
    assert (prompt["1"]["inputs"]["seed"], prompt["3"]["inputs"]["value"]) == (7, 7)
    prompt = read(two_seeds(), **{"1.seed": 5, "seed": "7"}).prompt
    assert (prompt["1"]["inputs"]["seed"], prompt["3"]["inputs"]["value"]) == (5, 7)


def test_random_draws_seeds_wherever_they_are() -> None:
    call = read(two_seeds(), seed="random")
    assert call.prompt == two_seeds()
    assert set(call.drawn) == {Ref("1", "seed"), Ref("3", "value")}
    complete = call.complete({}, (), INFO, lambda: 0.5)
    assert complete["1"]["inputs"]["seed"] > 2**40
    assert complete["3"]["inputs"]["value"] > 2**40

    assert read(two_seeds(), **{"Number.value": "random"}).drawn == (Ref("3", "value"),)
    assert read(two_seeds(), **{"seed": "random", "1.seed": 3}).drawn == (Ref("3", "value"),)


def test_a_seed_that_is_not_a_whole_number_by_name_is_drawn_too() -> None:
    info = {"Noise": {"input": {"required": {"start": ["INT", {"control_after_generate": True}]}}}}
    call = read_call_values({"1": node("Noise", start=1)}, info, {"1.start": "random"})
    assert call.drawn == (Ref("1", "start"),)


def test_seeds_that_are_drawn_for_each_run_are_drawn_unless_the_call_sets_them() -> None:
    always = [Ref("1", "seed"), Ref("3", "value")]
    complete = read(two_seeds(), **{"1.seed": 5}).complete({}, always, INFO, lambda: 0.5)
    assert complete["1"]["inputs"]["seed"] == 5
    assert complete["3"]["inputs"]["value"] > 2**40


def test_a_seed_of_minus_one_says_what_draws_one() -> None:
    assert 'set it to "random"' in refused(TEXTS, {"seed": -1}).message
    assert refused({"1": node("X")}, {"seed": 1}).type == "no_seed"
    assert refused({"1": node("X")}, {"seed": 1}).http_status == 409


# ------------------------------------------------------------------------------------------------
# files


def test_a_data_uri_becomes_a_file_that_is_named_after_its_content() -> None:
    call = read(LOADER, image=PNG_URI)
    ((ref, sent),) = call.files
    assert ref == Ref("1", "image")
    assert b"".join(sent.pieces()) == b"".join(sent.pieces()) == PNG
    assert sent.head == PNG[:1024]
    assert sent.name.endswith(".png")
    assert sent.name == file_of_bytes(PNG, "png").name
    assert call.prompt == LOADER
    assert call.complete({ref: "x.png"})["1"]["inputs"]["image"] == "x.png"


def test_a_data_uri_may_come_from_a_form_that_was_not_encoded() -> None:
    data = PNG + b"\xfb\xef\xbe" * 3
    encoded = base64.b64encode(data).decode()
    assert "+" in encoded
    ((_, sent),) = read(LOADER, image="data:image/png;base64," + encoded.replace("+", " ")).files
    assert b"".join(sent.pieces()) == data


def test_a_file_is_taken_for_an_input_by_name_and_a_name_of_a_file_of_the_server_stays() -> None:
    sent = file_of_bytes(PNG, "png", "cat.png")
    assert read(LOADER, **{"Photo.image": sent}).files == ((Ref("1", "image"), sent),)
    assert read(LOADER, image="dog.png").prompt["1"]["inputs"]["image"] == "dog.png"


@pytest.mark.parametrize(
    ("value", "type_", "part"),
    [
        ("https://example.com/cat.png", "wrong_value", '"image" is a URL, which the runner does not fetch'),
        ("data:image/png;base64,%%%", "wrong_value", '"image" is a data: URI that cannot be read'),
        ("data:image/png;base64,AAAA" + "A" * 200 + "%", "wrong_value", "cannot be read"),
        ("data:,hello", "wrong_value", "cannot be read"),
        (file_of_bytes(b"hello", "txt", "notes.txt"), "not_a_picture", '"image": notes.txt is not a picture: '),
    ],
)
def test_what_is_no_picture_is_refused(value: Any, type_: str, part: str) -> None:
    error = refused(LOADER, {"image": value})
    assert (error.type, error.http_status) == (type_, 400)
    assert part in error.message


def test_an_input_that_loads_no_file_takes_none() -> None:
    error = refused(TEXTS, {"positive": CallFile("cat.png", PNG, lambda: (PNG,))})
    assert (error.type, error.http_status) == ("no_loader", 409)
    assert error.message == '"positive" does not load a file: cat.png cannot be used.'
    assert read(TEXTS, positive=PNG_URI).prompt["2"]["inputs"]["text"] == PNG_URI
    assert read(TEXTS, positive="https://a.b").prompt["2"]["inputs"]["text"] == "https://a.b"


def test_image_means_the_only_loader() -> None:
    sound: Json = {"7": node("LoadAudio", "Voice", audio="a.wav")}
    assert read({**LOADER, **sound}, image=PNG_URI).files[0][0] == Ref("1", "image")
    wav = file_of_bytes(b"RIFF....WAVE", "wav")
    assert read(sound, image=wav).files == ((Ref("7", "audio"), wav),)

    two = {**LOADER, "9": node("LoadImage", "Style", image="example.png")}
    error = refused(two, {"image": PNG_URI})
    assert (error.type, error.http_status) == ("ambiguous_node", 409)
    assert error.message == "Several nodes load a file. Set them by name: 1.image, 9.image."
    assert keys(error) == ["1.image", "9.image"]
    assert refused(TEXTS, {"image": PNG_URI}).type == "no_loader"


# ------------------------------------------------------------------------------------------------
# sizes


def test_the_size_is_set_where_the_sampler_gets_its_latent_from() -> None:
    prompt = {**TEXTS, "9": node("ModelSamplingFlux", "Shift", width=64, height=64)}
    for text in ("768x512", " 768 X 512 ", "768×512", "768*512"):
        changed = read(prompt, size=text).prompt
        assert changed["4"]["inputs"] == {"width": 768, "height": 512, "batch_size": 1}
        assert changed["9"] == prompt["9"]


@pytest.mark.parametrize("value", ["big", "768", "768x", "x", "-1x8", 768, [768, 512], None, "1x1x1"])
def test_what_is_no_size_is_refused(value: Any) -> None:
    error = refused(TEXTS, {"size": value})
    assert (error.type, error.http_status) == ("wrong_value", 400)
    assert error.message.endswith("is not a size: write it as 768x512.")


def test_a_size_that_the_node_does_not_take_is_refused() -> None:
    assert refused(TEXTS, {"size": "9999x512"}).type == "value_bigger_than_max"


def test_several_size_nodes_are_a_conflict() -> None:
    prompt: Json = {
        "1": node("EmptyLatentImage", "Small", width=64, height=64),
        "2": node("KSampler", latent_image=["1", 0]),
        "3": node("LatentUpscale", "Large", samples=["2", 0], width=128, height=128),
        "4": node("KSampler", latent_image=["3", 0]),
    }
    error = refused(prompt, {"size": "8x8"})
    assert (error.type, error.http_status) == ("ambiguous_node", 409)
    assert error.message == "Several nodes set a size. Set it by name: 1.width, 1.height, 3.width, 3.height."
    assert keys(error) == ["1.width", "1.height", "3.width", "3.height"]


def test_the_size_of_a_picture_that_is_loaded_is_that_of_the_node_that_scales_it() -> None:
    prompt: Json = {
        "1": node("LoadImage", image="example.png"),
        "2": node("ImageScale", image=["1", 0], width=64, height=64),
        "3": node("VAEEncode", pixels=["2", 0], vae=["9", 2]),
        "4": node("KSampler", latent_image=["3", 0]),
        "5": node("KSampler", latent_image=["3", 0]),
    }
    assert [size.node_id for size in find_sizes(prompt)] == ["2"]
    prompt["2"]["inputs"]["width"] = ["8", 0]  # computed: it cannot be set
    assert find_sizes(prompt) == []
    error = refused(prompt, {"size": "8x8"})
    assert (error.type, error.http_status) == ("no_size", 409)


def test_numbers_of_a_size_may_be_in_nodes_of_their_own() -> None:
    prompt: Json = {
        "1": node("EmptyLatentImage", width=["2", 0], height=["3", 0]),
        "2": node("PrimitiveInt", value=64),
        "3": node("Resolution", height=64),
        "4": node("KSampler", latent_image=["1", 0]),
    }
    changed = read(prompt, size="8x16").prompt
    assert (changed["2"]["inputs"]["value"], changed["3"]["inputs"]["height"]) == (8, 16)
    prompt["1"]["inputs"]["height"] = ["2", 0]  # a square
    assert find_sizes(prompt) == []


def test_without_a_sampler_every_node_with_a_width_and_a_height_counts() -> None:
    prompt: Json = {"1": node("EmptyImage", width=8, height=8, color=0), "2": node("SaveImage", images=["1", 0])}
    assert [size.node_id for size in find_sizes(prompt)] == ["1"]


def test_links_that_go_in_circles_end() -> None:
    assert find_sizes({"1": node("KSampler", latent_image=["1", 0])}) == []


# ------------------------------------------------------------------------------------------------
# anything


@few
@given(prompt=anything, values=st.dictionaries(st.sampled_from(["seed", "size", "image", "positive", "1.a"]), anything))
def test_whatever_comes_the_values_are_read_or_refused(prompt: Any, values: Json) -> None:
    nodes = {"1": {"class_type": "KSampler", "inputs": prompt if isinstance(prompt, dict) else {"seed": prompt}}}
    before = copy.deepcopy(nodes)
    try:
        call = read_call_values(nodes, INFO, values)
    except EditError as error:
        assert error.message
    else:
        assert set(call.drawn) <= call.named
    assert nodes == before
