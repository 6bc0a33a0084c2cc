"""OpenAI's images API: its requests start runs, wait for them, and get their pictures."""

from __future__ import annotations

import contextlib
import tempfile
import time
import urllib.parse
from typing import BinaryIO, Callable, Iterator, List, NamedTuple

from comfyui_runner.call_bodies import open_fields
from comfyui_runner.errors import RunnerError
from comfyui_runner.extras.openai_images import (
    ImagesRequest,
    describe_answer,
    describe_model,
    encode_pictures,
    forbid_repeat,
    length_of_answer,
    name_model,
    parse_images_request,
    values_of_request,
)
from comfyui_runner.http_failures import broken_bodies
from comfyui_runner.messages import HttpError, Request, Response, json_response
from comfyui_runner.nodes import quote_name
from comfyui_runner.outputs import Output
from comfyui_runner.run_answers import WantedFile, failure_of_run, read_flag
from comfyui_runner.run_records import RunRecord
from comfyui_runner.service_routes import RouteCall

#: Bytes of a picture that are encoded at once.
PIECE_OF_PICTURE = 3 << 16

#: The first picture that a run made, whatever its format.
FIRST_PICTURE = WantedFile({"image/*": 1.0}, 0)


class Picture(NamedTuple):
    """The picture of a run: which of its outputs it is."""

    record: RunRecord
    turn: int
    output: Output


def make_pictures(call: RouteCall, is_edit: bool) -> Response:
    """The answer to a request for pictures. Raises HttpError.

    All its runs are in ComfyUI's queue at once. A client that leaves cancels them, unless the
    query has ``detach=true``.
    """
    is_detached = read_flag(call.request.query, "detach")
    records: List[RunRecord] = []
    try:
        with call.service.waiting_room.place():
            with open_fields(call.request, call.body) as fields:
                request = parse_images_request(fields, is_edit)
                _start_runs(call, request, records)
            call.service.wait_for_calls(
                records, float("inf"), call.client.has_left, is_detached=is_detached
            )
        return _answer(call, request, [_picture_of(call, record) for record in records])
    except RunnerError as error:
        if records:
            raise forbid_repeat(error) from None
        raise


def _start_runs(call: RouteCall, request: ImagesRequest, records: List[RunRecord]) -> None:
    """Start the runs of a request and put them into ``records``: all of them or none.

    All are of one copy, whatever other clients hold meanwhile.
    """
    copy = call.held.copy()
    prompt = copy.held.prompt
    for values in values_of_request(request, prompt, call.backend.look_up(prompt)):
        try:
            records.append(call.start_call(copy, values))
        except BaseException:
            call.service.cancel_all(records)
            raise


def _picture_of(call: RouteCall, record: RunRecord) -> Picture:
    """The first picture of a run that has ended. Raises HttpError if it made none."""
    failure = failure_of_run(record.to_json())
    if failure is not None:
        raise failure
    outputs = record.outputs or []
    turn = FIRST_PICTURE.choose(outputs)
    return Picture(record, turn, outputs[turn])


# -- answers ---------------------------------------------------------------------------------------


def _answer(call: RouteCall, request: ImagesRequest, pictures: List[Picture]) -> Response:
    about = describe_answer(int(time.time()), [picture.output.filename for picture in pictures])
    if request.response_format == "url":
        data = [{"url": _url_of(call, picture)} for picture in pictures]
        return json_response(200, {**about, "data": data})

    files = [_fetch(call, picture) for picture in pictures]
    sizes = [file.seek(0, 2) for file in files]

    def send_pictures(send: Callable[[bytes], None]) -> None:
        with contextlib.ExitStack() as stack:
            for file in files:
                stack.enter_context(file)
            for piece in encode_pictures(about, map(_read_again, files)):
                send(piece)

    length = ("Content-Length", str(length_of_answer(about, sizes)))
    return Response(200, headers=(length,), stream=send_pictures)


def _url_of(call: RouteCall, picture: Picture) -> str:
    """Where the client, or anybody who gets the URL from it, finds a picture."""
    shown = picture.record.to_json()["outputs"][picture.turn]
    path, _, query = str(shown["url"]).partition("?")
    parameters = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
    target = call.guard.sign_target(f"/{path}", parameters, time.time())
    return call.url_for(call.request) + target


def _fetch(call: RouteCall, picture: Picture) -> BinaryIO:
    """A temporary file with a picture: memory is for the pieces that are sent. Raises HttpError."""
    file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 - it is closed when it is sent
    whole_file = Request("GET", "/view", {}, {})
    try:
        response = call.open_output(picture.record, picture.turn, whole_file)
        file.write(response.body)
        if response.stream is not None:
            response.stream(lambda piece: _write(file, piece))
    except broken_bodies():
        file.close()
        message = f"ComfyUI broke off while it sent {picture.output.filename}."
        raise HttpError(502, "picture_cut_short", message) from None
    except BaseException:
        file.close()
        raise
    return file


def _write(file: BinaryIO, piece: bytes) -> None:
    file.write(piece)


def _read_again(file: BinaryIO) -> Iterator[bytes]:
    file.seek(0)
    return iter(lambda: file.read(PIECE_OF_PICTURE), b"")


# -- models ----------------------------------------------------------------------------------------


def list_models(call: RouteCall) -> Response:
    """The held workflow as the only model."""
    model = describe_model(name_model(call.held.path), call.started)
    return json_response(200, {"object": "list", "data": [model]})


def show_model(call: RouteCall, name: str) -> Response:
    """The held workflow as a model, by its name. Raises HttpError 404 for any other."""
    known = name_model(call.held.path)
    if name != known:
        message = f"There is no model {quote_name(name)}: the workflow is {quote_name(known)}."
        raise HttpError(404, "model_not_found", message)
    return json_response(200, describe_model(known, call.started))
