"""The end of a run as an answer: its status, and which of its files a client wants. Pure."""

from __future__ import annotations

import re
from typing import Dict, Mapping, NamedTuple, Optional, Sequence, Tuple

from comfyui_runner.media import media_type_of_name
from comfyui_runner.messages import Headers, HttpError, Request
from comfyui_runner.outputs import Output
from comfyui_runner.text import JsonObject, plural

#: The status and the error type of the answer to a run that did not succeed, by the phase that it
#: ended in.
_FAILED_RUNS = {
    "error": (500, "node_failed"),
    "interrupted": (409, "run_cancelled"),
    "deleted": (409, "run_cancelled"),
    "rejected": (409, "run_cancelled"),  # before ComfyUI had it: else POST /run says why
    "lost": (502, "run_lost"),
}

#: How many runs GET /runs lists without ?limit=, and with it at most.
RUNS_LISTED = 200
MOST_RUNS_LISTED = 1000

#: How many of its files are listed where none of a run's files is of a type that is accepted.
MOST_FILES_NAMED = 20

# [0-9] and not \d, which also matches the digits of other scripts.
_is_count = re.compile(r"[1-9][0-9]{0,15}").fullmatch
_is_seconds = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?").fullmatch
_is_index = re.compile(r"[0-9]{1,6}").fullmatch
_is_turn = re.compile(r"0|[1-9][0-9]{0,5}").fullmatch
_is_quality = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?").fullmatch

#: The main types of files, which a client may accept in place of JSON.
_FILE_TYPES = ("image", "video", "audio")

# -- how it ended ----------------------------------------------------------------------------------


def prompt_id_header(prompt_id: str) -> Headers:
    """The header that names the run of an answer."""
    return (("X-Prompt-Id", prompt_id),)


def failure_of_run(shown: JsonObject) -> Optional[HttpError]:
    """The error that is the answer to a run that did not succeed; None for one that did.

    ``shown`` is the run as GET /runs/{prompt_id} shows it, when it is over.
    """
    if shown["phase"] == "success":
        return None
    status, type_ = _FAILED_RUNS[shown["phase"]]
    message = str(shown["message"])
    failure = shown["failure"]
    if failure:
        message += f" {failure['message']}"
    headers = prompt_id_header(shown["prompt_id"])
    return HttpError(status, type_, message, {"run": shown}, headers)


# -- what the client wants of it -------------------------------------------------------------------


def read_wait(query: Mapping[str, str], default: float) -> float:
    """The seconds of ``?wait=``, or ``default``. Raises HttpError 400."""
    text = query.get("wait")
    if text is None:
        return default
    if not _is_seconds(text):
        raise HttpError(400, "wrong_type", "wait must be a number of seconds.")
    return float(text)


def read_flag(query: Mapping[str, str], name: str) -> bool:
    """Whether the query has ``NAME=true``. Raises HttpError 400 for a value that is not a flag."""
    text = query.get(name, "false")
    if text not in ("true", "false"):
        raise HttpError(400, "wrong_value", f"{name} must be true or false.")
    return text == "true"


def read_page_query(query: Mapping[str, str]) -> Tuple[int, Optional[int]]:
    """How many runs a client wants (``?limit=``), and only those with numbers below ``?before=``.

    Raises HttpError 400.
    """
    limit = query.get("limit", str(RUNS_LISTED))
    before = query.get("before")
    if not _is_count(limit) or int(limit) > MOST_RUNS_LISTED:
        message = f"limit must be a whole number from 1 to {MOST_RUNS_LISTED}."
        raise HttpError(400, "wrong_type", message)
    if before is None:
        return int(limit), None
    if not _is_count(before):
        message = "before must be a number from the field next of an earlier answer."
        raise HttpError(400, "wrong_type", message)
    return int(limit), int(before)


def read_turn(text: str) -> Optional[int]:
    """The turn of a file among those of its run, from its URL; None for what is not a turn."""
    if not _is_turn(text):
        return None
    return int(text)


class WantedFile(NamedTuple):
    """Which file of a run a client wants."""

    qualities: Mapping[str, float]  #: as parse_accept() returns them; {}: any file will do
    number: int  #: among the files that the client accepts, those that it prefers first

    def choose(self, outputs: Sequence[Output]) -> int:
        """The turn of the file among ``outputs``. Raises HttpError 406, or 404 for the index."""
        accepted: Dict[int, float] = {}
        for turn, output in enumerate(outputs):
            if not output.filename:
                continue  # a text
            media_type = media_type_of_name(output.filename)
            quality = quality_of(media_type, self.qualities)
            if quality > 0.0:
                accepted[turn] = quality

        if not accepted:
            names = [output.filename for output in outputs if output.filename]
            made = ", ".join(names[:MOST_FILES_NAMED]) or "no file"
            message = f"The run made no file of a type that the request accepts. It made: {made}."
            raise HttpError(406, "not_acceptable", message)

        if self.number >= len(accepted):
            files = plural(len(accepted), "such file")
            message = f"The run made {files}: ?index= counts from 0."
            raise HttpError(404, "no_such_file", message)

        preferred_first = sorted(accepted, key=lambda turn: -accepted[turn])
        return preferred_first[self.number]


def read_wanted_file(request: Request, *, is_required: bool = False) -> Optional[WantedFile]:
    """Which file a client wants of a run; None where it wants the run as JSON.

    It wants a file if ``?as=file`` says so, or if Accept prefers pictures, videos or sounds to
    JSON. ``is_required``: the route answers with files only. Raises HttpError 400.
    """
    index = request.query.get("index", "0")
    if not _is_index(index):
        raise HttpError(400, "wrong_type", "index must be a whole number: 0 is the first file.")
    form = request.query.get("as")
    if form not in (None, "file", "json"):
        raise HttpError(400, "wrong_value", 'as must be "file" or "json".')

    qualities = parse_accept(request.header("accept"))
    wants_file = form == "file" or (form is None and prefers_file(qualities))
    if not wants_file and not is_required:
        return None

    accepts_certain_files = any(_is_of_files(name) for name in qualities)
    if not accepts_certain_files:
        qualities = {}  # the URL asks for a file, so Accept, as of a browser, does not matter
    return WantedFile(qualities, int(index))


def _is_of_files(media_range: str) -> bool:
    """Whether a range of media types, such as image/*, is of pictures, videos or sounds."""
    main_type, _, _ = media_range.partition("/")
    return main_type in _FILE_TYPES


def parse_accept(text: str) -> Dict[str, float]:
    """The ranges of media types in an Accept header, and how much each is wanted: 0 to 1.

    ``image/png, image/*;q=0.5`` is {"image/png": 1.0, "image/*": 0.5} (RFC 9110, section 12.5.1).
    """
    qualities: Dict[str, float] = {}
    for part in text.lower().split(","):
        media_range, *parameters = part.split(";")
        media_range = media_range.strip()
        if media_range:
            quality = _read_quality(parameters)
            qualities[media_range] = max(quality, qualities.get(media_range, 0.0))
    return qualities


def _read_quality(parameters: Sequence[str]) -> float:
    """The value of the last q=; 1 where there is none that can be read."""
    quality = 1.0
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q" and _is_quality(value.strip()):
            quality = float(value)
    return quality


def prefers_file(qualities: Mapping[str, float]) -> bool:
    """Whether an Accept header prefers pictures, videos or sounds to JSON."""
    of_files = [quality for name, quality in qualities.items() if _is_of_files(name)]
    of_json = max(qualities.get("application/json", 0.0), qualities.get("application/*", 0.0))
    return max(of_files, default=0.0) > of_json


def quality_of(media_type: str, qualities: Mapping[str, float]) -> float:
    """How much a type is wanted; the most precise range counts. ``media_type`` may be ""."""
    if not qualities:
        return 1.0
    main_type, _, _ = media_type.partition("/")
    for media_range in (media_type, f"{main_type}/*", "*/*"):
        if media_range in qualities:
            return qualities[media_range]
    return 0.0
