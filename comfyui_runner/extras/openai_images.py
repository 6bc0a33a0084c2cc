"""OpenAI's images API: what its requests mean for runs, and how they are answered. Pure.

The fields, the answers and the errors are those of its reference, as the official Python client has
them (openai 3.57: types/image_generate_params.py, image_edit_params.py, images_response.py,
_exceptions.py, _base_client.py; JSON bodies of edits: EditImageBodyJsonParam of openai-openapi).
"""

from __future__ import annotations

import base64
import os
import re
from typing import Any, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Set, Tuple

from comfyui_runner.call_values import CallFile, find_sizes, read_call_values
from comfyui_runner.documents import Prompt
from comfyui_runner.edits import EditError
from comfyui_runner.errors import PromptRejected
from comfyui_runner.messages import (
    RETRY_AFTER,
    HttpError,
    Response,
    as_http_error,
    json_response,
    strict_json,
)
from comfyui_runner.nodes import (
    InputRef,
    class_of,
    inputs_of,
    is_link,
    nearest_first,
    node_in_words,
    own_title,
    quote_name,
)
from comfyui_runner.seeds import seed_inputs
from comfyui_runner.text import JsonObject, plural
from comfyui_runner.upload_inputs import upload_inputs

#: Pictures that one request may ask for.
MOST_PICTURES = 10

#: Input images of one edit.
MOST_INPUT_IMAGES = 16

#: What OpenAI documents and a workflow decides by itself.
IGNORED_FIELDS = frozenset(
    [
        "model",
        "quality",
        "style",
        "background",
        "moderation",
        "complexity",
        "user",
        "output_format",
        "output_compression",
        "input_fidelity",
        "safety_identifier",
        "partial_images",
        "frame_count",
        "frame_duration_ms",
    ]
)

#: Fields that mean something here, besides NODE.INPUT.
KNOWN_FIELDS = ("prompt", "negative_prompt", "seed", "n", "size", "response_format", "stream")

#: Fields that an edit has besides.
FIELDS_OF_EDITS = ("image", "images", "mask")

_is_image_field = re.compile(r"image(\[[0-9]*\])?").fullmatch

#: What keeps the official client from repeating a request (_base_client.py, _should_retry).
NO_REPEAT = ("x-should-retry", "false")

#: Errors by which a client may succeed later without our help, as long as no run has begun.
WORTH_REPEATING = (408, 429, 503)

#: OpenAI's names for errors, by status; others of the client are invalid_request_error.
ERROR_KINDS = {403: "permission_error", 429: "rate_limit_error"}

#: What OpenAI calls a missing or a wrong key. Ours is the token.
WRONG_KEY = "invalid_api_key"


class ParameterError(HttpError):
    """A field of a request that cannot be followed. ``param`` is its name, None for several."""

    def __init__(
        self, param: Optional[str], message: str, type: str = "invalid_value", status: int = 400
    ) -> None:
        super().__init__(status, type, message)
        self.param = param


class ImagesRequest(NamedTuple):
    """What a request asks for."""

    prompt: str
    negative_prompt: Optional[str] = None
    seed: Any = None  # a number, "random", or None: a fresh one
    size: Optional[str] = None  # as "768x512"
    n: int = 1
    response_format: str = "b64_json"  # or "url"
    images: Tuple[Any, ...] = ()  # each a CallFile or a data: URI
    mask: Any = None  # the same, or None
    inputs: Mapping[str, Any] = {}  # by NODE.INPUT


# -- requests --------------------------------------------------------------------------------------


def parse_images_request(fields: Iterable[Tuple[str, Any]], is_edit: bool) -> ImagesRequest:
    """What the ``fields`` of a body ask for.

    They are those of a JSON object, or of a form, where a name may appear several times and values
    are texts or a CallFile. Raises ParameterError.
    """
    images: List[Any] = []
    given: Dict[str, Any] = {}
    for name, value in fields:
        if value is None:
            continue
        if is_edit and (name == "images" or _is_image_field(name)):
            images.extend(_read_images(name, value))
            continue
        if name in given:
            raise ParameterError(name, f"The field {quote_name(name)} appears twice.")
        given[name] = value
    _check_known(given, is_edit)
    _refuse_stream(given)

    mask = None
    if is_edit and "mask" in given:
        mask = _read_image("mask", given["mask"])
    if is_edit and not images:
        message = 'An edit needs the picture that is edited, in the field "image".'
        raise ParameterError("image", message, "missing_required_parameter")
    return ImagesRequest(
        prompt=_read_prompt(given),
        negative_prompt=_read_text_field(given, "negative_prompt") or None,
        seed=_read_seed(given),
        size=_read_size_field(given),
        n=_read_number_of_pictures(given),
        response_format=_read_response_format(given),
        images=tuple(images),
        mask=mask,
        inputs={name: value for name, value in given.items() if "." in name},
    )


def _check_known(given: Mapping[str, Any], is_edit: bool) -> None:
    """Raises ParameterError for a field that OpenAI does not have, and we do not either."""
    known = [*KNOWN_FIELDS]
    if is_edit:
        known += FIELDS_OF_EDITS
    for name in given:
        if name in known or name in IGNORED_FIELDS or "." in name:
            continue
        nearest = nearest_first(name, sorted(known))
        message = f"There is no field {quote_name(name)} here. Nearest: {nearest}, or NODE.INPUT."
        raise ParameterError(name, message, "unknown_parameter")


def _refuse_stream(given: Mapping[str, Any]) -> None:
    """Raises ParameterError where events are asked for: an answer in JSON would look empty."""
    if str(given.get("stream", "false")).lower() == "false":
        return
    message = (
        "This service does not stream pictures: leave stream out. GET /events shows the progress."
    )
    raise ParameterError("stream", message, "unsupported_parameter")


def _read_text_field(given: Mapping[str, Any], name: str) -> str:
    text = given.get(name, "")
    if not isinstance(text, str):
        raise ParameterError(name, f"The field {name} must be a text.", "invalid_type")
    return text


def _read_prompt(given: Mapping[str, Any]) -> str:
    if "prompt" not in given:
        message = "The field prompt is missing: it describes the picture."
        raise ParameterError("prompt", message, "missing_required_parameter")
    return _read_text_field(given, "prompt")


def _read_whole_number(given: Mapping[str, Any], name: str) -> Optional[int]:
    """The number in a field; None if it is not given. Raises ParameterError."""
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,20}", value):
        return int(value)
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if is_whole:
        return int(value)
    message = f"The field {name} must be a whole number, not {quote_name(str(value))}."
    raise ParameterError(name, message, "invalid_type")


def _read_number_of_pictures(given: Mapping[str, Any]) -> int:
    number = _read_whole_number(given, "n")
    if number is None:
        return 1
    if not 1 <= number <= MOST_PICTURES:
        message = f"The field n must be from 1 to {MOST_PICTURES}, not {number}."
        raise ParameterError("n", message)
    return number


def _read_seed(given: Mapping[str, Any]) -> Optional[int]:
    """The seed; None for a fresh one, which clients also write as "random" or as -1."""
    if given.get("seed") == "random":
        return None
    seed = _read_whole_number(given, "seed")
    if seed is None or seed < 0:
        return None
    return seed


def _read_size_field(given: Mapping[str, Any]) -> Optional[str]:
    """The size; None where the workflow decides."""
    size = _read_text_field(given, "size").strip()
    if size in ("", "auto"):
        return None
    return size


def _read_response_format(given: Mapping[str, Any]) -> str:
    wanted = _read_text_field(given, "response_format") or "b64_json"
    if wanted not in ("b64_json", "url"):
        shown = quote_name(wanted)
        message = f'The field response_format must be "b64_json" or "url", not {shown}.'
        raise ParameterError("response_format", message)
    return wanted


def _read_images(name: str, value: Any) -> List[Any]:
    """The pictures in a field: one, or a list of them."""
    values = [value]
    if isinstance(value, list):
        values = value
    if len(values) > MOST_INPUT_IMAGES:
        message = f"An edit takes {MOST_INPUT_IMAGES} pictures at most."
        raise ParameterError(name, message)
    return [_read_image(name, each) for each in values]


def _read_image(name: str, value: Any) -> Any:
    """A picture: a file of a form, a data: URI, or an object with one. Raises ParameterError."""
    if isinstance(value, dict):
        value = value.get("image_url")
    if isinstance(value, CallFile):
        return value
    if isinstance(value, str) and value.startswith("data:"):
        return value
    # Neither URLs nor file_ids: what they name would have to be fetched.
    message = f"{quote_name(name)} must be a file of a form, or a data: URI. URLs are not fetched."
    raise ParameterError(name, message)


# -- from requests to runs -------------------------------------------------------------------------


def values_of_request(
    request: ImagesRequest, prompt: Prompt, object_info: JsonObject
) -> List[Dict[str, Any]]:
    """What each of the runs of a request sets, as read_call_values() takes it.

    Nothing is uploaded or drawn yet. Raises ParameterError if the workflow does not take it.
    """
    params = {"positive": "prompt"}
    values: Dict[str, Any] = {"positive": request.prompt}
    if request.negative_prompt is not None:
        params["negative"] = "negative_prompt"
        values["negative"] = request.negative_prompt
    if request.size is not None and len(find_sizes(prompt)) == 1:
        values["size"] = request.size
    for ref, param, picture in _place_pictures(request, prompt, object_info):
        key = f"{ref.node_id}.{ref.input}"
        params[key] = param
        values[key] = picture
    values.update(request.inputs)
    seeds = _seeds_of_runs(request, prompt, object_info)
    runs = [{**values, **seed} for seed in seeds]
    _check_values(runs[-1], params, prompt, object_info)  # its seed is the highest
    return runs


def _seeds_of_runs(
    request: ImagesRequest, prompt: Prompt, object_info: JsonObject
) -> List[Dict[str, Any]]:
    """The ``seed`` of each run: fresh ones, or that of the request and those that follow it."""
    if request.seed is not None:
        return [{"seed": request.seed + turn} for turn in range(request.n)]
    if not seed_inputs(prompt, object_info):
        return [{}] * request.n
    return [{"seed": "random"}] * request.n


def _check_values(
    values: Mapping[str, Any],
    params: Mapping[str, str],
    prompt: Prompt,
    object_info: JsonObject,
) -> None:
    """Raises ParameterError for a value that the workflow does not take."""
    try:
        read_call_values(prompt, object_info, values)
        return
    except EditError as error:
        refusal = error
    raise ParameterError(
        _find_param(values, params, prompt, object_info),
        refusal.message,
        refusal.type,
        refusal.http_status,
    )


def _find_param(
    values: Mapping[str, Any],
    params: Mapping[str, str],
    prompt: Prompt,
    object_info: JsonObject,
) -> Optional[str]:
    """The field that cannot be followed by itself; None where only several together cannot."""
    for key, value in values.items():
        try:
            read_call_values(prompt, object_info, {key: value})
        except EditError:
            return params.get(key, key)
    return None


def _place_pictures(
    request: ImagesRequest, prompt: Prompt, object_info: JsonObject
) -> List[Tuple[InputRef, str, Any]]:
    """Where the pictures of an edit are loaded: the input, the field, and the picture.

    Raises ParameterError where that is not certain.
    """
    if not request.images:
        return []
    loaders = []
    for ref, media in upload_inputs(prompt, object_info).items():
        is_set_by_name = f"{ref.node_id}.{ref.input}" in request.inputs
        if media == "image" and not is_set_by_name:
            loaders.append(ref)
    mask_loaders = [ref for ref in loaders if loads_mask(prompt, ref.node_id, object_info)]
    image_loaders = [ref for ref in loaders if ref not in mask_loaders]
    placed = _place(prompt, "image", request.images, image_loaders)
    if request.mask is not None:
        placed += _place(prompt, "mask", (request.mask,), mask_loaders)
    return placed


def _place(
    prompt: Prompt, param: str, pictures: Tuple[Any, ...], loaders: List[InputRef]
) -> List[Tuple[InputRef, str, Any]]:
    """Each of the ``pictures`` with its loader, in their order. Raises ParameterError."""
    if len(pictures) == len(loaders):
        return [(ref, param, picture) for ref, picture in zip(loaders, pictures)]
    if not loaders:
        message = "The workflow has no node that loads a picture."
        if param == "mask":
            message = (
                "The workflow has no node that loads a mask, such as Load Image (as Mask). Without "
                "one, leave mask out and make the picture transparent where it is to be edited."
            )
        raise ParameterError(param, message, "no_loader", 409)
    names = ", ".join(node_in_words(prompt, ref.node_id) for ref in loaders)
    keys = ", ".join(f"{ref.node_id}.{ref.input}" for ref in loaders)
    message = (
        f"The request has {plural(len(pictures), 'picture')} in the field {param}, but the workflow"
        f" loads {len(loaders)}: {names}. Send as many, or name the fields {keys}."
    )
    raise ParameterError(param, message, "ambiguous_node", 409)


def loads_mask(prompt: Prompt, node_id: str, object_info: JsonObject) -> bool:
    """Whether a node that loads a picture is meant for a mask.

    It is if its title says so, or if masks are all that other nodes take from it: LoadImage has a
    picture and a mask, which is what is transparent in the picture, as in OpenAI's masks.
    """
    if "mask" in own_title(prompt, node_id).lower():
        return True
    class_type = class_of(prompt, node_id)
    outputs = object_info.get(class_type, {}).get("output", [])
    mask_slots = {slot for slot, output_type in enumerate(outputs) if output_type == "MASK"}
    linked_slots = _linked_slots(prompt, node_id)
    return bool(linked_slots) and linked_slots <= mask_slots


def _linked_slots(prompt: Prompt, node_id: str) -> Set[int]:
    """The slots of a node's outputs that other nodes take something from."""
    slots = set()
    for other_id in prompt:
        for value in inputs_of(prompt, other_id).values():
            if is_link(value) and str(value[0]) == node_id:
                slots.add(value[1])
    return slots


# -- answers ---------------------------------------------------------------------------------------


def name_model(workflow_path: str) -> str:
    """What the held workflow is called as a model: its file's name without the ending."""
    name = os.path.splitext(re.split(r"[\\/]", workflow_path)[-1])[0]
    return name or "workflow"


def describe_model(name: str, created: int) -> JsonObject:
    """A model of GET /v1/models; ``created`` is in seconds since 1970."""
    return {"id": name, "object": "model", "created": created, "owned_by": "comfyui"}


#: The endings of files that OpenAI has a name for, as clients put it into a media type.
OUTPUT_FORMATS = {"png": "png", "webp": "webp", "jpg": "jpeg", "jpeg": "jpeg", "gif": "gif"}


def describe_answer(created: int, filenames: Iterable[str]) -> JsonObject:
    """What an answer says besides its pictures."""
    formats = {OUTPUT_FORMATS.get(name.rpartition(".")[2].lower()) for name in filenames}
    answer: JsonObject = {"created": created}
    if len(formats) == 1 and None not in formats:
        answer = {**answer, "output_format": formats.pop()}
    return answer


def encode_pictures(about: JsonObject, pictures: Iterable[Iterable[bytes]]) -> Iterator[bytes]:
    """An answer in pieces: ``about`` and the contents of ``pictures`` in base64."""
    opening, closing = '{"b64_json": "', '"}'
    yield f'{strict_json(about)[:-1]}, "data": ['.encode()
    separator = ""
    for picture in pictures:
        yield f"{separator}{opening}".encode()
        yield from encode_base64(picture)
        yield closing.encode()
        separator = ", "
    yield b"]}\n"


def length_of_answer(about: JsonObject, sizes: List[int]) -> int:
    """The bytes of what encode_pictures() makes of pictures with these ``sizes``."""
    empty_pictures: List[Iterable[bytes]] = [()] * len(sizes)
    length = sum(len(piece) for piece in encode_pictures(about, empty_pictures))
    for size in sizes:
        groups = (size + 2) // 3  # of three bytes each, the last one filled up
        length += 4 * groups
    return length


def encode_base64(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The base64 of all ``pieces`` together, in pieces."""
    rest = b""
    for piece in pieces:
        data = rest + piece
        end = len(data) // 3 * 3  # three bytes become four characters: nothing is filled up here
        yield base64.b64encode(data[:end])
        rest = data[end:]
    yield base64.b64encode(rest)


# -- errors ----------------------------------------------------------------------------------------


def forbid_repeat(error: BaseException) -> HttpError:
    """``error`` of a request of which a run began already.

    The official client repeats 408, 409, 429 and 5xx twice by itself, unless ``x-should-retry``
    forbids it: a node that fails must not fail three times.
    """
    http_error = _as_api_error(error)
    http_error.headers = (*http_error.headers, NO_REPEAT)
    return http_error


def openai_error(error: BaseException) -> Response:
    """The answer to a request that ended with ``error``.

    What will not pass by itself is not to be repeated, whether a run began or not.
    """
    http_error = _as_api_error(error)
    status = http_error.http_status
    headers = http_error.headers
    names = [name for name, _ in headers]
    is_forbidden = NO_REPEAT in headers
    if not is_forbidden and status not in WORTH_REPEATING:
        headers = (*headers, NO_REPEAT)
    elif not is_forbidden and "Retry-After" not in names:
        headers = (*headers, ("Retry-After", RETRY_AFTER))
    code = http_error.type
    if status == 401:
        code = WRONG_KEY
    body = {
        "message": http_error.message,
        "type": _kind_of_error(status),
        "param": getattr(http_error, "param", None),
        "code": code,
    }
    return json_response(status, {"error": body}, headers)


def _as_api_error(error: BaseException) -> HttpError:
    if isinstance(error, PromptRejected):
        return HttpError(400, "prompt_rejected", error.message)
    return as_http_error(error)


def _kind_of_error(status: int) -> str:
    """OpenAI's ``type`` of an error."""
    if status >= 500:
        return "server_error"
    return ERROR_KINDS.get(status, "invalid_request_error")
