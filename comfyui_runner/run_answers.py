"""The end of a run as an answer: its status, and which of its files a client wants. Pure."""

from __future__ import annotations

import re
from typing import Dict, Mapping, NamedTuple, Optional, Sequence, Tuple

from comfyui_runner.media import media_type_of_name
from comfyui_runner.messages import Headers, HttpError, Request
from comfyui_runner.outputs import Output
from comfyui_runner.text import JsonObject, plural

#: Statuses and types of the answers to a run that ended in one of these phases, and in no success.
_FAILED_RUNS = {
    "error": (500, "node_failed"),
    "interrupted": (409, "run_cancelled"),
    "deleted": (409, "run_cancelled"),
    "rejected": (409, "run_cancelled"),  # before ComfyUI had it: else POST /run says why
    "lost": (502, "run_lost"),
}

#: Runs that GET /runs lists, and how many ?limit= may ask for.
RUNS_LISTED, MOST_RUNS_LISTED = 200, 1000

# Digits are those of ASCII: \d takes those of every script.
_is_count = re.compile(r"[1-9][0-9]{0,15}").fullmatch
_is_seconds = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?").fullmatch
_is_index = re.compile(r"[0-9]{1,6}").fullmatch
_is_turn = re.compile(r"0|[1-9][0-9]{0,5}").fullmatch
_is_quality = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?").fullmatch

#: The kinds of files for whose types a client may ask in place of JSON.
_KINDS = ("image", "video", "audio")

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
    """Whether ``?NAME=true`` is there. Raises HttpError 400 for any other value but ``false``."""
    text = query.get(name, "false")
    if text not in ("true", "false"):
        raise HttpError(400, "wrong_value", f"{name} must be true or false.")
    return text == "true"


def read_page_query(query: Mapping[str, str]) -> Tuple[int, Optional[int]]:
    """How many runs are asked for, and the number that theirs are below. Raises HttpError."""
    limit, before = query.get("limit", str(RUNS_LISTED)), query.get("before")
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
    """The turn of a file among those of its run, as its URL has it; None for anything else."""
    if not _is_turn(text):
        return None
    return int(text)


class WantedFile(NamedTuple):
    """Which file of a run a client wants."""

    qualities: Mapping[str, float]  #: by the ranges of media types in Accept; {}: any will do
    number: int  #: among the files that it accepts, those that it prefers first

    def choose(self, outputs: Sequence[Output]) -> int:
        """The turn of the file among ``outputs``. Raises HttpError 406, or 404 for the index."""
        accepted: Dict[int, float] = {}
        for turn, output in enumerate(outputs):
            quality = quality_of(media_type_of_name(output.filename), self.qualities)
            if output.filename and quality > 0.0:  # texts have no name
                accepted[turn] = quality
        if not accepted:
            names = [output.filename for output in outputs if output.filename]
            made = ", ".join(names[:20]) or "no file"
            message = f"The run made no file of a type that the request accepts. It made: {made}."
            raise HttpError(406, "not_acceptable", message)
        if self.number >= len(accepted):
            files = plural(len(accepted), "such file")
            message = f"The run made {files}: ?index= counts from 0."
            raise HttpError(404, "no_such_file", message)
        in_order = sorted(accepted, key=lambda turn: -accepted[turn])
        return in_order[self.number]


def read_wanted_file(request: Request, *, is_required: bool = False) -> Optional[WantedFile]:
    """Which file a client wants of a run; None where it wants the run as JSON.

    It wants a file if ``?as=file`` says so, or if Accept prefers pictures, videos or sounds to
    JSON. ``is_required``: the route has nothing but files. Raises HttpError 400.
    """
    text = request.query.get("index", "0")
    if not _is_index(text):
        raise HttpError(400, "wrong_type", "index must be a whole number: 0 is the first file.")
    form = request.query.get("as")
    if form not in (None, "file", "json"):
        raise HttpError(400, "wrong_value", 'as must be "file" or "json".')

    qualities = parse_accept(request.header("accept"))
    if form is None and not is_required:
        form = "file" if prefers_file(qualities) else "json"
    if form == "json" and not is_required:
        return None
    if not _names_files(qualities):
        qualities = {}  # the URL asks for a file, whatever the client accepts elsewhere
    return WantedFile(qualities, int(text))


def _names_files(qualities: Mapping[str, float]) -> bool:
    """Whether an Accept header has types of pictures, videos or sounds."""
    return any(name.partition("/")[0] in _KINDS for name in qualities)


def parse_accept(text: str) -> Dict[str, float]:
    """The ranges of media types in an Accept header, and how much each is wanted: 0 to 1.

    A quality that cannot be read counts as 1.
    """
    qualities: Dict[str, float] = {}
    for part in text.split(","):
        media_range, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q" and _is_quality(value.strip()):
                quality = float(value)
        if media_range:
            qualities[media_range] = max(quality, qualities.get(media_range, 0.0))
    return qualities


def prefers_file(qualities: Mapping[str, float]) -> bool:
    """Whether an Accept header asks for pictures, videos or sounds, and not rather for JSON."""
    of_files = [quality for name, quality in qualities.items() if name.partition("/")[0] in _KINDS]
    of_json = [qualities.get(name, 0.0) for name in ("application/json", "application/*")]
    return max(of_files, default=0.0) > max(of_json)


def quality_of(media_type: str, qualities: Mapping[str, float]) -> float:
    """How much a type is wanted; the most precise range counts. ``media_type`` may be ""."""
    if not qualities:
        return 1.0
    names: Tuple[str, ...] = (media_type, media_type.partition("/")[0] + "/*", "*/*")
    return next((qualities[name] for name in names if name in qualities), 0.0)
