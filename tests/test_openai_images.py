"""OpenAI's images API: what a request means for the runs of a workflow, and answers and errors in its shape."""

from __future__ import annotations

import base64
import json
from typing import Any, Dict, List, Optional, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import few
from support import node
from test_call_values import INFO, LOADER, PNG, PNG_URI, TEXTS

from comfyui_runner.call_values import file_of_bytes
from comfyui_runner.edits import EditError
from comfyui_runner.errors import PromptRejected, ServerUnreachable
from comfyui_runner.extras.openai_images import (
    IGNORED_FIELDS,
    ImagesRequest,
    ParameterError,
    describe_answer,
    describe_model,
    encode_base64,
    encode_pictures,
    forbid_repeat,
    length_of_answer,
    loads_mask,
    name_model,
    openai_error,
    parse_images_request,
    values_of_request,
)
from comfyui_runner.messages import HttpError, Response

Json = Dict[str, Any]

FILE = file_of_bytes(PNG, "png", "cat.png")
MASK = file_of_bytes(PNG, "png", "mask.png")

INPAINTING_INFO: Json = {
    **INFO,
    "LoadImage": {**INFO["LoadImage"], "output": ["IMAGE", "MASK"]},
    "LoadImageMask": {"input": INFO["LoadImage"]["input"], "output": ["MASK"]},
}
INPAINTING: Json = {
    "1": node("LoadImage", "Photo", image="example.png"),
    "2": node("LoadImage", "Area", image="example.png"),
    "3": node("VAEEncodeForInpaint", "Encode", pixels=["1", 0], mask=["2", 1]),
}


def parse(fields: Json, is_edit: bool = False) -> ImagesRequest:
    return parse_images_request(fields.items(), is_edit)


def refused(*fields: Tuple[str, Any], is_edit: bool = False) -> ParameterError:
    with pytest.raises(ParameterError) as caught:
        parse_images_request(fields, is_edit)
    return caught.value


# -- requests --------------------------------------------------------------------------------------


def test_a_prompt_is_all_that_a_request_needs() -> None:
    assert parse({"prompt": "a fox"}) == ImagesRequest("a fox")
    assert ImagesRequest("a fox").response_format == "b64_json"


@pytest.mark.parametrize("number", [3, "3"])  # JSON and forms
def test_every_field_that_means_something_is_read(number: Any) -> None:
    fields: Json = {"prompt": "a fox", "negative_prompt": "a dog", "seed": 7, "n": number, "size": " 768x512 "}
    assert parse({**fields, "response_format": "url", "5.steps": 30}) == ImagesRequest(
        "a fox", "a dog", 7, "768x512", 3, "url", inputs={"5.steps": 30}
    )


@pytest.mark.parametrize("field", sorted(IGNORED_FIELDS))
def test_what_openai_documents_and_the_workflow_decides_is_ignored(field: str) -> None:
    assert parse({"prompt": "a fox", field: "anything"}) == ImagesRequest("a fox")


@pytest.mark.parametrize(
    "fields",
    [
        {"negative_prompt": "", "size": "auto", "seed": -1, "stream": False},
        {"negative_prompt": None, "size": "", "seed": "random", "stream": "false"},
        {"n": None, "size": None, "seed": None, "stream": None, "response_format": None, "unknown": None},
        {"response_format": "", "seed": "-1"},
    ],
)
def test_what_stands_for_nothing_counts_as_not_sent(fields: Json) -> None:
    assert parse({"prompt": "a fox", **fields}) == ImagesRequest("a fox")


@pytest.mark.parametrize(
    ("field", "value", "code", "part"),
    [
        ("prompt", 7, "invalid_type", "The field prompt must be a text."),
        ("n", 0, "invalid_value", "The field n must be from 1 to 10, not 0."),
        ("n", 11, "invalid_value", "not 11."),
        ("n", 1.5, "invalid_type", 'must be a whole number, not "1.5"'),
        ("n", True, "invalid_type", 'not "True"'),
        ("seed", "lucky", "invalid_type", 'not "lucky"'),
        ("size", 512, "invalid_type", "The field size must be a text."),
        ("response_format", "png", "invalid_value", 'must be "b64_json" or "url", not "png"'),
        ("stream", True, "unsupported_parameter", "leave stream out"),
        ("stream", "true", "unsupported_parameter", "leave stream out"),
        ("steps", 20, "unknown_parameter", 'There is no field "steps" here. Nearest: '),
        ("image", PNG_URI, "unknown_parameter", 'There is no field "image" here.'),  # of a generation
        ("svg", {"model": "x"}, "unknown_parameter", "or NODE.INPUT."),
    ],
)
def test_a_field_that_cannot_be_followed_is_named(field: str, value: Any, code: str, part: str) -> None:
    error = refused(*{"prompt": "a fox", field: value}.items())
    assert (error.http_status, error.param, error.type) == (400, field, code)
    assert part in error.message


def test_a_prompt_must_be_sent_and_no_field_twice() -> None:
    error = refused(("model", "dall-e-3"))
    assert (error.param, error.type) == ("prompt", "missing_required_parameter")
    assert refused(("prompt", "a"), ("prompt", "b")).message == 'The field "prompt" appears twice.'


# -- pictures of edits -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        [("image", FILE)],  # the openai package, one picture; curl
        [("image[]", FILE)],  # the openai package, a list; LibreChat; Open WebUI, a list
        [("image[0]", FILE)],
    ],
)
def test_the_picture_of_a_form_is_spelled_in_several_ways(fields: List[Tuple[str, Any]]) -> None:
    request = parse_images_request([("prompt", "a fox"), *fields, ("mask", MASK)], is_edit=True)
    assert (request.images, request.mask) == ((FILE,), MASK)


@pytest.mark.parametrize(
    "fields",
    [
        {"image": PNG_URI},
        {"image": [PNG_URI]},
        {"images": [{"image_url": PNG_URI}], "mask": {"image_url": PNG_URI}},
    ],
)
def test_the_picture_of_a_body_in_json_is_a_data_uri(fields: Json) -> None:
    request = parse({"prompt": "a fox", **fields}, is_edit=True)
    assert request.images == (PNG_URI,)
    assert request.mask == (PNG_URI if "mask" in fields else None)


@pytest.mark.parametrize(
    ("field", "value", "part"),
    [
        ("image", "https://example.com/cat.png", "URLs are not fetched."),
        ("image", "example.png", "must be a file of a form, or a data: URI."),
        ("images", [{"file_id": "file-123"}], '"images" must be a file'),
        ("mask", {"image_url": "http://169.254.169.254/"}, '"mask" must be a file'),
        ("image", [PNG_URI] * 17, "An edit takes 16 pictures at most."),
    ],
)
def test_pictures_are_never_fetched(field: str, value: Any, part: str) -> None:
    error = refused(("prompt", "a fox"), ("image", PNG_URI), (field, value), is_edit=True)
    assert (error.http_status, error.param, error.type) == (400, field, "invalid_value")
    assert part in error.message


@pytest.mark.parametrize("fields", [{}, {"image": None}, {"images": []}])
def test_an_edit_needs_a_picture(fields: Json) -> None:
    error = refused(("prompt", "a fox"), *fields.items(), is_edit=True)
    assert (error.param, error.type) == ("image", "missing_required_parameter")


# -- from requests to runs -------------------------------------------------------------------------


def test_each_run_has_a_fresh_seed_unless_one_is_given() -> None:
    request = ImagesRequest("a fox", n=2)
    assert values_of_request(request, TEXTS, INFO) == [{"positive": "a fox", "seed": "random"}] * 2
    runs = values_of_request(request._replace(seed=7), TEXTS, INFO)
    assert [run["seed"] for run in runs] == [7, 8]


def test_a_workflow_without_seeds_runs_as_it_is() -> None:
    prompt = {key: value for key, value in TEXTS.items() if key != "5"}
    prompt["9"] = node("KSamplerSelect", "Sampler", positive=["2", 0], negative=["3", 0], latent_image=["4", 0])
    assert values_of_request(ImagesRequest("a fox", n=2), prompt, INFO) == [{"positive": "a fox"}] * 2
    with pytest.raises(ParameterError) as caught:
        values_of_request(ImagesRequest("a fox", seed=7), prompt, INFO)
    assert (caught.value.http_status, caught.value.param, caught.value.type) == (409, "seed", "no_seed")


def test_the_size_is_set_where_one_node_has_it_and_else_ignored() -> None:
    request = ImagesRequest("a fox", size="768x512")
    assert values_of_request(request, TEXTS, INFO)[0]["size"] == "768x512"
    without = {**TEXTS, "4": node("VAEEncode", "Encode", pixels=["8", 0])}
    assert "size" not in values_of_request(request, without, INFO)[0]


def test_the_negative_text_and_any_input_can_be_set() -> None:
    request = ImagesRequest("a fox", negative_prompt="a dog", inputs={"5.steps": "30"})
    (values,) = values_of_request(request, TEXTS, INFO)
    assert values == {"positive": "a fox", "negative": "a dog", "5.steps": "30", "seed": "random"}


@pytest.mark.parametrize(
    ("request_", "status", "param", "code"),
    [
        (ImagesRequest("a fox", size="large"), 400, "size", "wrong_value"),
        (ImagesRequest("a fox", size="99999x512"), 400, "size", "value_bigger_than_max"),
        (ImagesRequest("a fox", seed=2**64), 400, "seed", "value_bigger_than_max"),
        (ImagesRequest("a fox", seed=2**64 - 1, n=2), 400, "seed", "value_bigger_than_max"),
        (ImagesRequest("a fox", inputs={"99.steps": 1}), 400, "99.steps", "no_such_node"),
        (ImagesRequest("a fox", inputs={"2.text": "a dog"}), 400, None, "duplicate_field"),
    ],
)
def test_a_value_that_the_workflow_does_not_take_names_its_field(
    request_: ImagesRequest, status: int, param: Optional[str], code: str
) -> None:
    with pytest.raises(ParameterError) as caught:
        values_of_request(request_, TEXTS, INFO)
    assert (caught.value.http_status, caught.value.param, caught.value.type) == (status, param, code)


def test_a_workflow_without_texts_has_nowhere_to_put_the_prompt() -> None:
    with pytest.raises(ParameterError) as caught:
        values_of_request(ImagesRequest("a fox"), LOADER, INFO)
    assert (caught.value.http_status, caught.value.param, caught.value.type) == (409, "prompt", "no_such_text")


def place(prompt: Json, info: Json = INPAINTING_INFO, **fields: Any) -> Json:
    """What an edit sets, without its texts and seeds."""
    texts = {"9": node("CLIPTextEncode", "Positive", text="x"), **prompt}
    (values,) = values_of_request(ImagesRequest("a fox", **fields), texts, info)
    return {key: value for key, value in values.items() if key not in ("positive", "seed")}


def test_a_picture_goes_to_the_only_loader() -> None:
    assert place(LOADER, images=(FILE,)) == {"1.image": FILE}
    assert place(LOADER, images=(PNG_URI,)) == {"1.image": PNG_URI}


def test_a_generation_leaves_the_loaders_as_they_are() -> None:
    assert place(LOADER) == {}


def test_several_pictures_go_to_as_many_loaders_in_the_order_of_the_workflow() -> None:
    prompt = {**LOADER, "3": node("LoadImage", "Style", image="example.png")}
    assert place(prompt, images=(FILE, MASK)) == {"1.image": FILE, "3.image": MASK}
    assert place(prompt, images=(FILE,), inputs={"3.image": MASK}) == {"1.image": FILE, "3.image": MASK}


def test_a_mask_goes_where_only_a_mask_is_taken() -> None:
    assert place(INPAINTING, images=(FILE,), mask=MASK) == {"1.image": FILE, "2.image": MASK}
    assert place(INPAINTING, images=(FILE,)) == {"1.image": FILE}  # the mask of the workflow stays


@pytest.mark.parametrize(
    ("entry", "is_for_mask"),
    [
        (node("LoadImage", "Photo", image="example.png"), False),  # nothing takes anything from it
        (node("LoadImage", "The Mask", image="example.png"), True),
        (node("LoadImageMask", "Area", image="example.png"), False),
        (node("Unknown", "Area", image="example.png"), False),
    ],
)
def test_a_loader_of_which_nothing_is_taken_is_for_masks_if_its_title_says_so(entry: Json, is_for_mask: bool) -> None:
    assert loads_mask({"1": entry}, "1", INPAINTING_INFO) is is_for_mask


def test_a_loader_of_which_the_picture_is_taken_too_is_not_for_masks() -> None:
    both = {**INPAINTING, "3": node("VAEEncodeForInpaint", "Encode", pixels=["2", 0], mask=["2", 1])}
    assert not loads_mask(both, "2", INPAINTING_INFO)
    masks_only = {**INPAINTING, "2": node("LoadImageMask", "Area", image="x.png", channel="alpha")}
    masks_only["3"] = node("VAEEncodeForInpaint", "Encode", pixels=["1", 0], mask=["2", 0])
    assert loads_mask(masks_only, "2", INPAINTING_INFO)
    assert not loads_mask(masks_only, "1", INPAINTING_INFO)


@pytest.mark.parametrize(
    ("prompt", "fields", "param", "code", "part"),
    [
        (TEXTS, {"images": (FILE,)}, "image", "no_loader", "The workflow has no node that loads a picture."),
        (LOADER, {"images": (FILE, FILE)}, "image", "ambiguous_node", "2 pictures in the field image, but"),
        (LOADER, {"images": (FILE,), "mask": MASK}, "mask", "no_loader", "make the picture transparent"),
    ],
)
def test_where_pictures_belong_must_be_certain(prompt: Json, fields: Json, param: str, code: str, part: str) -> None:
    with pytest.raises(ParameterError) as caught:
        place(prompt, **fields)
    assert (caught.value.http_status, caught.value.param, caught.value.type) == (409, param, code)
    assert part in caught.value.message


def test_a_file_that_is_not_a_picture_names_the_field() -> None:
    with pytest.raises(ParameterError) as caught:
        place(LOADER, images=(file_of_bytes(b"hello", "txt", "cat.png"),))
    assert (caught.value.http_status, caught.value.param, caught.value.type) == (400, "image", "not_a_picture")


# -- answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("workflow_api.json", "workflow_api"),
        ("/home/me/my flux.v2.json", "my flux.v2"),
        (r"C:\flux\dev.json", "dev"),
        ("", "workflow"),
    ],
)
def test_the_model_is_called_as_the_workflow_s_file(path: str, name: str) -> None:
    assert name_model(path) == name


def test_a_model_has_what_clients_require() -> None:
    assert describe_model("flux", 1700000000) == {
        "id": "flux",
        "object": "model",
        "created": 1700000000,
        "owned_by": "comfyui",
    }


@pytest.mark.parametrize(
    ("filenames", "about"),
    [
        (["a.png", "b.PNG"], {"created": 1, "output_format": "png"}),
        (["a.jpg"], {"created": 1, "output_format": "jpeg"}),
        (["a.png", "b.webp"], {"created": 1}),
        (["a.avif"], {"created": 1}),
    ],
)
def test_the_answer_states_the_format_where_openai_has_a_name_for_it(filenames: List[str], about: Json) -> None:
    assert describe_answer(1, filenames) == about


@few
@given(st.lists(st.lists(st.binary(max_size=7), max_size=5), max_size=4))
def test_the_answer_in_base64_has_every_byte_and_the_length_that_it_states(pictures: List[List[bytes]]) -> None:
    about = {"created": 1700000000, "output_format": "png"}
    answer = b"".join(encode_pictures(about, pictures))
    contents = [b"".join(pieces) for pieces in pictures]
    assert json.loads(answer) == {**about, "data": [{"b64_json": base64.b64encode(c).decode()} for c in contents]}
    assert length_of_answer(about, [len(content) for content in contents]) == len(answer)


def test_base64_comes_in_pieces() -> None:
    assert list(encode_base64([b"abcd", b"ef", b"g"])) == [b"YWJj", b"ZGVm", b"", b"Zw=="]


# -- errors ----------------------------------------------------------------------------------------


def error_of(response: Response) -> Json:
    body = json.loads(response.body)
    assert list(body) == ["error"]
    error: Json = body["error"]
    return error


def test_an_error_has_the_four_fields_of_openai() -> None:
    assert error_of(openai_error(ParameterError("n", "The field n must be smaller."))) == {
        "message": "The field n must be smaller.",
        "type": "invalid_request_error",
        "param": "n",
        "code": "invalid_value",
    }


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (HttpError(401, "unauthorized", "x"), 401, "invalid_request_error", "invalid_api_key"),
        (HttpError(403, "foreign_origin", "x"), 403, "permission_error", "foreign_origin"),
        (HttpError(404, "not_found", "x"), 404, "invalid_request_error", "not_found"),
        (HttpError(429, "queue_full", "x"), 429, "rate_limit_error", "queue_full"),
        (EditError("no_such_text", "x"), 409, "invalid_request_error", "no_such_text"),
        (PromptRejected("x", answer={"error": {}}), 400, "invalid_request_error", "prompt_rejected"),
        (ServerUnreachable("x"), 503, "server_error", "server_unreachable"),
        (KeyError("x"), 500, "server_error", "internal_error"),
    ],
)
def test_errors_keep_their_status_and_get_a_type_of_openai(
    error: BaseException, status: int, kind: str, code: str
) -> None:
    response = openai_error(error)
    shown = error_of(response)
    assert (response.status, shown["type"], shown["code"], shown["param"]) == (status, kind, code, None)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 409, 413, 429, 500, 502, 503])
def test_no_error_is_repeated_once_a_run_has_begun(status: int) -> None:
    headers = openai_error(forbid_repeat(HttpError(status, "x", "x"))).headers
    assert headers == (("x-should-retry", "false"),)


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (429, (("Retry-After", "10"),), {"Retry-After": "10"}),
        (503, (), {"Retry-After": "5"}),
        (408, (), {"Retry-After": "5"}),
        (409, (), {"x-should-retry": "false"}),  # the official client repeats 409
        (500, (), {"x-should-retry": "false"}),
        (401, (("WWW-Authenticate", "Bearer"),), {"WWW-Authenticate": "Bearer", "x-should-retry": "false"}),
    ],
)
def test_before_a_run_only_what_may_pass_is_worth_repeating(
    status: int, headers: Any, expected: Dict[str, str]
) -> None:
    assert dict(openai_error(HttpError(status, "x", "x", headers=headers)).headers) == expected
