#!/usr/bin/env python3
# /// script
# requires-python = ">=3.8"
# dependencies = [
#     "websockets>=13.1,<18",
#     "requests>=2.31,<3",
#     "rich>=12.6,<16",
# ]
# ///
"""Run a ComfyUI workflow outside the browser: confirm, follow live, cancel exactly.

    python comfyui_workflow_runner.py                    runs workflow_api.json
    python comfyui_workflow_runner.py my_api.json -o out runs another one, saves what it makes
    python comfyui_workflow_runner.py --demo             needs no ComfyUI and no GPU

``--help`` lists every option and exit status. The file is also a module: importing it does no
work, and every rule below can be called without a server.

Map of this file (each section uses only those above it):

    SETTINGS                what a user edits
    ERRORS                  exit statuses, the error tree
    FLAGS                   what the command line takes
    TEXT                    text that is safe to print, durations, sizes, names of files
    WORKFLOW DOCUMENTS      reading a prompt, titles, links, the summary
    STATE OF A PROMPT       parse_message -> Event; reduce, reconcile -> PromptState; outputs
    WHAT IS WRONG           ComfyUI's validation and execution errors in words
    EDITS                   naming a node, setting an input, finding texts and loaders; all return copies
    REPORTS                 what happened, as data; what a person reads of it; the progress meter
    COMFYUI OVER THE WIRE   HTTP (requests), one call a method; the WebSocket
    RUNNING A PROMPT        Session: submit, follow, survive drops, cancel; saving outputs
    TERMINAL                printers: live, plain lines, JSON lines, quiet
    MIDDLEWARE              continuous mode: Guard, ROUTES, Service, a thin http.server
    COMMAND LINE            settings and their precedence, signals, the program

Up to REPORTS nothing outside the process is touched; the rest hold no rules.
Words are ComfyUI's: a *prompt* is the API-format graph, *workflow* the file; a *link* is
``[node_id, slot]``; *interrupt* stops a running prompt, *delete* takes a waiting one off the queue.
"""

from __future__ import annotations

import enum
import os
import re
import sys
from typing import (
    TYPE_CHECKING,
    Any,
    Awaitable,
    Callable,
    Dict,
    FrozenSet,
    Iterable,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    TextIO,
    Tuple,
    TypeVar,
    Union,
)

if TYPE_CHECKING:  # imported where they are used: they cost more than all of --help
    import asyncio

    import requests

__version__ = "0.1.0"

# ==================================================================================================
# SETTINGS: what a user edits. A flag overrides an environment variable, which overrides these.
# ==================================================================================================

#: The workflow that runs when none is named: a file in API format.
curr_workflow = "workflow_api.json"

#: "single_shot" runs it once; "continuous" keeps a small service on port 8189.
RUN_MODE = "single_shot"

#: Continuous mode: an uploaded picture starts a run at once.
AUTO_EXECUTE_ON_UPLOAD = False

#: Where ComfyUI is when neither --server nor COMFYUI_URL says so; the second one is tried when the
#: first does not answer (8188: ComfyUI's default; 8000: ComfyUI Desktop's).
DEFAULT_SERVERS = ("http://127.0.0.1:8188", "http://127.0.0.1:8000")


class Limits(NamedTuple):
    """How long each wait may take, in seconds. No wait of the runner is without one."""

    connect: float = 5.0  # a TCP connection
    read: float = 30.0  # an answer from ComfyUI
    post: float = 60.0  # the answer to POST /prompt: it comes after ComfyUI has checked the prompt
    websocket: float = 10.0  # the handshake, and again the first status message
    settle: float = 5.0  # absent from queue and history for so long: gone
    absent: float = 2.0  # absent for so long: a prompt whose POST was cut is posted again
    silence: float = 30.0  # no message for so long while running: say what the server says
    poll: float = 5.0  # silence before queue and history are read all the same
    give_up: float = 300.0  # no answer at all for so long: the run is told as lost
    cancel: float = 8.0  # the server's word on a cancel


DEFAULT_LIMITS = Limits()


# ==================================================================================================
# ERRORS: exit statuses and one tree of errors
# ==================================================================================================


class ExitStatus(enum.IntEnum):
    """How the program ended, for the shell. EXIT_MEANINGS says it in words."""

    OK = 0
    ERROR = 1
    USAGE = 2
    BAD_WORKFLOW = 3
    NOT_CONFIRMED = 4
    NO_SERVER = 5
    REJECTED = 6
    FAILED = 7
    INTERRUPTED = 8
    LOST = 9
    PARTIAL = 10
    NOT_SAVED = 11
    TIMEOUT = 124
    CANCELLED = 130
    TERMINATED = 143


EXIT_MEANINGS: Mapping[ExitStatus, str] = {
    ExitStatus.OK: "the run succeeded and every output that was asked for is saved",
    ExitStatus.ERROR: "something else went wrong (the message says what)",
    ExitStatus.USAGE: "the command line or a setting is wrong",
    ExitStatus.BAD_WORKFLOW: "the workflow file is missing, or is no API-format prompt",
    ExitStatus.NOT_CONFIRMED: "the question was answered with no, or could not be asked",
    ExitStatus.NO_SERVER: "no ComfyUI answers, or it refuses us",
    ExitStatus.REJECTED: "ComfyUI refused the prompt: nothing was run",
    ExitStatus.FAILED: "a node raised an error",
    ExitStatus.INTERRUPTED: "somebody else interrupted the run or took it off the queue",
    ExitStatus.LOST: "the server lost the run, or how it ended cannot be known",
    ExitStatus.PARTIAL: "it ran, but without the outputs that ComfyUI had refused",
    ExitStatus.NOT_SAVED: "the run succeeded, but not every output could be saved",
    ExitStatus.TIMEOUT: "--timeout expired: our prompt was cancelled",
    ExitStatus.CANCELLED: "Ctrl+C",
    ExitStatus.TERMINATED: "SIGTERM",
}


class RunnerError(Exception):
    """What went wrong, and what to do next.

    ``message`` and ``remedy`` are for people; neither ends with a newline. The class says which
    exit status it leads to, and which HTTP status where it is an answer to a request.
    """

    exit_status = ExitStatus.ERROR
    http_status = 500

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


class UsageError(RunnerError):
    """A flag or a setting that cannot be followed."""

    exit_status = ExitStatus.USAGE
    http_status = 400


class WorkflowError(RunnerError):
    """A workflow that cannot be read, or is not what can be run."""

    exit_status = ExitStatus.BAD_WORKFLOW
    http_status = 400


class NotConfirmed(RunnerError):
    """The person said no, or there is nobody to ask."""

    exit_status = ExitStatus.NOT_CONFIRMED
    http_status = 409


class ServerUnreachable(RunnerError):
    """No (whole) answer came. ``refused``: nothing listens there, so nothing was received."""

    exit_status = ExitStatus.NO_SERVER
    http_status = 503

    def __init__(self, message: str, remedy: str = "", *, refused: bool = False) -> None:
        super().__init__(message, remedy)
        self.refused = refused


class ServerAnswer(RunnerError):
    """An answer with a status that the call does not expect. ``status`` is the HTTP status."""

    exit_status = ExitStatus.NO_SERVER
    http_status = 503

    def __init__(self, message: str, remedy: str = "", *, status: int, body: Any = None) -> None:
        super().__init__(message, remedy)
        self.status = status
        self.body = body


class PromptRejected(RunnerError):
    """ComfyUI's 400 to POST /prompt. ``answer`` is its body (see contract: error, node_errors)."""

    exit_status = ExitStatus.REJECTED
    http_status = 400

    def __init__(self, message: str, remedy: str = "", *, answer: Mapping[str, Any]) -> None:
        super().__init__(message, remedy)
        self.answer = answer


class SaveError(RunnerError):
    """An output that could not be saved."""

    exit_status = ExitStatus.NOT_SAVED


class Stopped(RunnerError):
    """Ctrl+C or SIGTERM before anything was submitted."""

    exit_status = ExitStatus.CANCELLED


# ==================================================================================================
# FLAGS: what the command line takes
# ==================================================================================================


def make_parser() -> Any:
    """The argparse parser. What it cannot follow raises UsageError."""
    import argparse

    class Parser(argparse.ArgumentParser):
        """argparse's messages repeat what was typed, which may be a secret: ours name the flag alone."""

        def error(self, message: str) -> Any:
            found = re.match(r"(?s)(argument [^:]+): (expected .*argument|not allowed with .*|invalid)", message)
            words = "%s: %s" % found.groups() if found else message.partition(":")[0]
            raise UsageError("%s." % words.rstrip(".").capitalize(), "See --help.")

    statuses = "\n".join("  %3d  %s" % (status, EXIT_MEANINGS[status]) for status in ExitStatus)
    parser = Parser(
        prog="comfyui_workflow_runner.py",
        description="Run a ComfyUI workflow (API format): confirm, follow it live, save what it makes.",
        epilog="exit statuses:\n" + statuses,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=100),
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "workflow",
        nargs="?",
        metavar="WORKFLOW",
        help="the workflow in API format (default: %s; env COMFYUI_WORKFLOW)" % curr_workflow,
    )
    add(
        "--server",
        metavar="URL",
        help="ComfyUI's address, http or https, with a base path and user:password@ if need be "
        "(default: %s; env COMFYUI_URL)" % ", then ".join(DEFAULT_SERVERS),
    )
    add(
        "--header",
        metavar="LINE",
        action="append",
        help="a header for HTTP and WebSocket, 'Name: value'; repeatable (env COMFYUI_HEADERS, one a line)",
    )
    add("--demo", action="store_true", help="run on the simulator that comes along: no ComfyUI, no GPU")
    add("-y", "--yes", action="store_true", help="do not ask before running")
    add("-o", "--output", metavar="DIR", help="save all outputs here (env COMFYUI_OUTPUT)")
    add("--overwrite", action="store_true", help="replace files that are there; else a name gets ' (1)'")
    add("--timeout", metavar="SECONDS", help="cancel the run after so long (env COMFYUI_TIMEOUT)")
    add("--mode", metavar="MODE", help="single_shot or continuous (env COMFYUI_RUN_MODE)")
    served = parser.add_argument_group("continuous mode")
    served.add_argument(
        "--host", metavar="NAME", help="the address to listen on (default: 127.0.0.1; others need a token)"
    )
    served.add_argument("--port", metavar="PORT", help="the port to listen on (default: 8189; env COMFYUI_RUNNER_PORT)")
    served.add_argument("--token", metavar="SECRET", help="what clients must show (env COMFYUI_RUNNER_TOKEN)")
    served.add_argument("--no-token", action="store_true", help="let other machines in without a token")
    served.add_argument("--allow-host", metavar="NAME", action="append", help="another name of this service")
    served.add_argument("--allow-origin", metavar="URL", action="append", help="a web page's origin that may use it")
    served.add_argument("--max-queue", metavar="N", help="runs of ours that may wait (default: 16)")
    served.add_argument(
        "--auto-execute",
        action="store_true",
        help="an upload starts a run (env COMFYUI_AUTO_EXECUTE_ON_UPLOAD)",
    )
    show = parser.add_mutually_exclusive_group()
    show.add_argument("-q", "--quiet", action="store_true", help="print only what was made: a path or URL a line")
    show.add_argument("--json", action="store_true", help="print one JSON object a line (docs/JSON.md)")
    add("-v", "--verbose", action="store_true", help="show whole tracebacks")
    add("--version", action="version", version="%(prog)s " + __version__)
    return parser


def leave(status: int) -> None:
    """Ends the process at once: threads that still wait for a server do not hold the exit up."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        pass  # nobody reads any more
    os._exit(status)


if __name__ == "__main__" and {"-h", "--help"}.intersection(sys.argv):
    try:  # the rest of this file need not run for it: compiling it has taken long enough
        make_parser().parse_known_args()
    except SystemExit:
        leave(0)
    except UsageError:
        pass  # told by main()

import functools  # noqa: E402
import itertools  # noqa: E402
import json  # noqa: E402
import struct  # noqa: E402
import time  # noqa: E402
import urllib.parse  # noqa: E402

# ==================================================================================================
# TEXT: what is safe to print, durations and sizes in words, names of files
# ==================================================================================================

#: Escape sequences (CSI, and OSC up to its end), control characters (C0, DEL, C1), the marks that
#: turn the direction of text, and lone surrogates: in a terminal they are commands or lies, not text.
_UNPRINTABLE = re.compile(
    "\x1b\\[[0-?]*[ -/]*[@-~]|\x1b\\][^\x07\x1b]*(?:\x07|\x1b\\\\)?"
    "|[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def clean(text: object) -> str:
    """``text`` without anything that a terminal would obey; newlines stay, tabs become spaces."""
    return _UNPRINTABLE.sub("", str(text).replace("\r\n", "\n").replace("\t", "    "))


def one_line(text: object, limit: int = 0) -> str:
    """``text`` cleaned, on one line, at most ``limit`` characters (0: any number)."""
    line = " ".join(clean(text).split())
    return line if not limit or len(line) <= limit else line[: max(limit - 1, 0)] + "…"


def duration(seconds: float) -> str:
    """``seconds`` as a person says it: "0.4 s", "12.3 s", "2:05", "1:02:03"."""
    if seconds < 59.95:
        return "%.1f s" % max(seconds, 0.0)
    whole = int(min(seconds, 1e9) + 0.5)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return "%d:%02d:%02d" % (hours, minutes, rest) if hours else "%d:%02d" % (minutes, rest)


def size_in_words(count: float) -> str:
    """``count`` bytes as "512 B", "1.5 MB" (steps of 1024, as file managers show them)."""
    if count < 1024:
        return "%d B" % count
    for unit in ("KB", "MB"):
        count /= 1024
        if count < 1023.95:
            return "%.1f %s" % (count, unit)
    return "%.1f GB" % (count / 1024)


def plural(count: int, noun: str) -> str:
    """``1 node``, ``2 nodes``."""
    return "%d %s%s" % (count, noun, "" if count == 1 else "s")


def hide_secrets(text: str, secrets: Sequence[str]) -> str:
    """``text`` with every secret replaced by ``***``, the longest first."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


#: Names that Windows keeps for devices, with any ending (learn.microsoft.com, "Naming Files").
_DEVICE_NAMES = re.compile(r"(?i)^(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³]) *(\..*)?$")


def safe_path_parts(subfolder: str, filename: str) -> List[str]:
    """The parts of a path below the output folder for what the server calls ``subfolder/filename``.

    No part is empty, ``.`` or ``..``, holds a separator, a drive, a character that Windows forbids
    or a control character, is a device name, or is longer than 200 bytes: the same on every system,
    so a name never leads out of the folder, whatever the server says.
    """
    parts = []
    for part in re.split(r"[\\/]", subfolder + "/" + filename):
        part = re.sub(r'[<>:"|?*]', "_", clean(part).replace("\n", "_")).rstrip(". ").lstrip(" ")
        if _DEVICE_NAMES.match(part):
            part = "_" + part
        stem, dot, ending = part.rpartition(".")
        if dot and len(ending) <= 16:
            part = _cut(stem, 200 - len(ending.encode()) - 1) + dot + ending
        else:
            part = _cut(part, 200).rstrip(". ")
        if part:
            parts.append(part)
    return parts or ["output"]


def _cut(text: str, limit: int) -> str:
    return text.encode()[:limit].decode(errors="ignore")


def numbered_name(name: str, number: int) -> str:
    """``name`` for the ``number``-th try: ``a.png``, then ``a (1).png``, as ComfyUI names uploads."""
    if not number:
        return name
    stem, dot, ending = name.rpartition(".")
    return "%s (%d).%s" % (stem, number, ending) if dot and stem else "%s (%d)" % (name, number)


def as_dict(value: object) -> Dict[str, Any]:
    """``value`` where it is a dict, else an empty one: what a server sends may be anything."""
    return value if isinstance(value, dict) else {}


def as_list(value: object) -> List[Any]:
    """``value`` where it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def as_number(value: object, default: float = 0.0) -> float:
    """``value`` where it is a finite number, else ``default`` (``NaN`` may come in JSON)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return default
    return value if abs(value) < 1e300 else default


def plain_json(value: object, depth: int = 0) -> Any:
    """``value`` as strict JSON can hold it: ``NaN`` and infinities become null, keys text, and what
    lies 60 levels deep "…"."""
    if depth > 60:
        return "…"
    if isinstance(value, dict):
        return {str(key): plain_json(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain_json(item, depth + 1) for item in value]
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, bytes):
        return "<%d bytes>" % len(value)
    return value


# ==================================================================================================
# WORKFLOW DOCUMENTS: reading a prompt, titles, links, the summary
# ==================================================================================================

Prompt = Dict[str, Dict[str, Any]]

EXPORT_REMEDY = (
    "In ComfyUI open it and choose Export (API) in the File menu; in older versions switch on the "
    "dev mode in the settings, then Save (API Format). Run the file that this gives."
)


def _kind_of(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def parse_prompt(data: bytes, name: str) -> Prompt:
    """The API-format prompt in ``data`` (UTF-8, -16 or -32 JSON); ``name`` is for the messages.

    Raises WorkflowError for anything else, and says what was found instead.
    """
    try:
        document = json.loads(data)
    except UnicodeDecodeError:
        raise WorkflowError("%s is not text, so it is no workflow in JSON." % name, EXPORT_REMEDY) from None
    except json.JSONDecodeError as error:
        raise WorkflowError(
            "%s is not JSON: line %d, column %d: %s." % (name, error.lineno, error.colno, error.msg),
            "Mend it there, or export the workflow again.",
        ) from None
    except (RecursionError, ValueError) as error:
        raise WorkflowError("%s cannot be read as JSON: %s." % (name, error)) from None
    if isinstance(document, dict) and isinstance(document.get("nodes"), list):
        raise WorkflowError(
            "%s is a workflow in UI format (%s, as ComfyUI's Save writes it), not in API format."
            % (name, plural(len(document["nodes"]), "node")),
            EXPORT_REMEDY,
        )
    if not isinstance(document, dict):
        raise WorkflowError(
            "%s is no prompt: it holds %s, not an object of nodes." % (name, _kind_of(document)), EXPORT_REMEDY
        )
    if not document:
        raise WorkflowError("%s has no nodes: it is an empty object." % name, EXPORT_REMEDY)
    for node_id, node in document.items():
        if not isinstance(node, dict) or not isinstance(node.get("class_type"), str):
            raise WorkflowError(
                "%s is no prompt: the entry %s is %s without a class_type, not a node."
                % (name, json.dumps(one_line(node_id, 40), ensure_ascii=False), _kind_of(node)),
                EXPORT_REMEDY,
            )
        if not isinstance(node.get("inputs"), dict):
            raise WorkflowError(
                "%s: node %s (%s) has no inputs object."
                % (name, one_line(node_id, 40), one_line(node["class_type"], 60)),
                EXPORT_REMEDY,
            )
    return document


def node_in_prompt(prompt: Mapping[str, Any], node_id: str) -> Optional[str]:
    """The id of the node of ``prompt`` that ``node_id`` stands for, or None.

    ComfyUI makes nodes while it runs (``5.0.0.1`` comes from node ``5``); subgraphs have ``12:34``.
    """
    while node_id not in prompt:
        node_id, dot, _ = node_id.rpartition(".")
        if not dot:
            return None
    return node_id


def class_of(prompt: Mapping[str, Any], node_id: str) -> str:
    """The class_type of a node, or "" for one that is not in the prompt."""
    known = node_in_prompt(prompt, node_id)
    return str(prompt[known].get("class_type", "")) if known else ""


def node_title(prompt: Mapping[str, Any], node_id: str) -> str:
    """What a person calls the node: its title, else its class, else its id."""
    known = node_in_prompt(prompt, node_id)
    title = as_dict(prompt[known].get("_meta")).get("title") if known else None
    return (
        one_line(title, 60)
        if isinstance(title, str) and title.strip()
        else one_line(class_of(prompt, node_id) or node_id, 60)
    )


def is_link(value: object) -> bool:
    """Whether an input's value is a link, ``[node_id, slot]`` (ComfyUI's execution takes any list so)."""
    return (
        isinstance(value, list) and len(value) == 2 and isinstance(value[0], (str, int)) and isinstance(value[1], int)
    )


def upstream(prompt: Mapping[str, Any], node_ids: Iterable[str]) -> FrozenSet[str]:
    """``node_ids`` and every node of ``prompt`` that they need, over any number of links."""
    found: Set[str] = set()
    waiting = [node_id for node_id in node_ids if node_id in prompt]
    while waiting:
        node_id = waiting.pop()
        if node_id in found:
            continue
        found.add(node_id)
        for value in as_dict(prompt[node_id].get("inputs")).values():
            if is_link(value) and str(value[0]) in prompt:
                waiting.append(str(value[0]))
    return frozenset(found)


def planned_nodes(prompt: Mapping[str, Any], dropped: Iterable[str] = ()) -> FrozenSet[str]:
    """The nodes that will run when the outputs ``dropped`` do not: what the other ends need."""
    used = {
        str(value[0]) for node in prompt.values() for value in as_dict(node.get("inputs")).values() if is_link(value)
    }
    ends = (set(prompt) - used or set(prompt)) - set(dropped)
    return upstream(prompt, ends)


class Summary(NamedTuple):
    """What a person wants to know of a prompt before it runs; each list holds (title, text)."""

    nodes: int
    models: List[Tuple[str, str]]
    texts: List[Tuple[str, str]]
    sampling: List[Tuple[str, str]]
    sizes: List[Tuple[str, str]]
    files: List[Tuple[str, str]]
    saves: List[Tuple[str, str]]


_MODEL_ENDINGS = (".safetensors", ".sft", ".ckpt", ".pt", ".pt2", ".pth", ".bin", ".gguf", ".onnx", ".pkl")
_SAMPLING_INPUTS = (
    "seed", "noise_seed", "steps", "cfg", "guidance", "sampler_name", "scheduler", "denoise",
)  # fmt: skip
_TEXT_INPUTS = re.compile(r"(?i)(^|_)(text|prompt|wildcard|lyrics|tags|caption|t5xxl|clip_[lg])")
_SAVING_CLASSES = re.compile(r"(?i)save|preview|videocombine|export")


def summarize(prompt: Mapping[str, Any]) -> Summary:
    """The summary of a prompt, from the prompt alone (a server's object_info is not needed)."""
    summary = Summary(len(prompt), [], [], [], [], [], [])
    for node_id, node in prompt.items():
        title = node_title(prompt, node_id)
        inputs = {str(k): v for k, v in as_dict(node.get("inputs")).items() if not isinstance(v, (list, dict))}
        class_type = class_of(prompt, node_id)
        saves = "filename_prefix" in inputs or bool(_SAVING_CLASSES.search(class_type))
        for name, value in inputs.items():
            if not isinstance(value, str) or not value.strip():
                continue
            if value.lower().endswith(_MODEL_ENDINGS):
                summary.models.append((title, one_line(value, 100)))
            elif _TEXT_INPUTS.search(name):
                summary.texts.append((title, one_line(value, 160)))
            elif name in ("image", "video", "audio", "mask", "file") and "." in value:
                summary.files.append((title, one_line(value, 100)))
        known = [name for name in _SAMPLING_INPUTS if name in inputs]
        if len(known) > 1 or known in (["seed"], ["noise_seed"]):
            summary.sampling.append((title, ", ".join("%s %s" % (n, one_line(inputs[n], 40)) for n in known)))
        if "width" in inputs and "height" in inputs and not saves:
            size = "%s x %s" % (one_line(inputs["width"], 12), one_line(inputs["height"], 12))
            for name, word in (("length", "frames"), ("batch_size", "in a batch")):
                if as_number(inputs.get(name), 1) > 1:
                    size += ", %s %s" % (one_line(inputs[name], 12), word)
            summary.sizes.append((title, size))
        if saves:
            prefix = inputs.get("filename_prefix")
            summary.saves.append((title, one_line(prefix, 80) if isinstance(prefix, str) else class_type))
    return summary


# ==================================================================================================
# STATE OF A PROMPT: events and answers in, PromptState out. No clock, no socket.
# ==================================================================================================


class Phase(enum.Enum):
    """Where a prompt is. The last six are ends; nothing follows them."""

    SUBMITTING = "submitting"  # not (known to be) on the server yet
    QUEUED = "queued"
    RUNNING = "running"
    SUCCESS = "success"
    ERROR = "error"  # a node raised
    INTERRUPTED = "interrupted"
    DELETED = "deleted"  # taken off the queue before it ran
    LOST = "lost"  # gone, or it ended and nobody can say how
    REJECTED = "rejected"  # ComfyUI refused it, or it never got there

    def __init__(self, value: str) -> None:
        self.over = value not in ("submitting", "queued", "running")  #: whether this is an end


class Event(NamedTuple):
    """One WebSocket message. ``at`` is when it came, in seconds of any one clock."""

    type: str
    prompt_id: Optional[str]
    data: Mapping[str, Any]
    at: float


class NodeProgress(NamedTuple):
    """A node that runs: when it began, its last ``value`` of ``max``, and its first one, for the rate."""

    started: float
    value: float = 0.0
    max: float = 0.0
    at: float = 0.0
    first_value: float = 0.0
    first_at: float = 0.0


class Preview(NamedTuple):
    """A picture that came over the WebSocket: the node (None: not told), a MIME type, the bytes."""

    node_id: Optional[str]
    mime: str
    image: bytes


class PromptState(NamedTuple):
    """All that is known of one prompt. Times are on the clock of the events."""

    prompt_id: str
    phase: Phase = Phase.SUBMITTING
    ahead: Optional[int] = None  # prompts before ours in the queue
    planned: FrozenSet[str] = frozenset()  # nodes that will run or are cached
    targets: FrozenSet[str] = frozenset()  # the outputs that the server accepted, when it told
    cached: FrozenSet[str] = frozenset()
    running: Mapping[str, NodeProgress] = {}
    finished: Mapping[str, float] = {}  # seconds that each finished node took
    outputs: Mapping[str, Mapping[str, Any]] = {}
    blocked: Mapping[str, str] = {}  # nodes that gave no result on purpose (ExecutionBlocked)
    failure: Mapping[str, Any] = {}  # data of execution_error or execution_interrupted
    reason: str = ""  # why a run is lost
    ending: Optional[Phase] = None  # the end as the socket told it, until history confirms
    over_seen: bool = False  # executing(null): over, and nothing about how
    per_node_state: bool = False  # the server sends progress_state, so it says when a node ends
    gaps: int = 0  # times that the socket was down: messages may be missing
    missing_since: Optional[float] = None  # absent from queue and history since
    started_at: Optional[float] = None
    ended_at: Optional[float] = None
    seconds: Optional[float] = None  # the run's time by the server's clock


_decode_json = json.JSONDecoder().decode


def parse_message(frame: Union[str, bytes], at: float) -> Event:
    """One WebSocket frame as an Event; never raises.

    Binary frames (big-endian uint32 first, ComfyUI's protocol.py): 1 picture, 3 text of a node,
    4 picture with metadata. What is broken or unknown comes back as type "unknown".
    """
    try:
        if isinstance(frame, str):
            message = _decode_json(frame)
            data = message.get("data") or {}
            prompt_id = data.get("prompt_id")
            return Event(str(message["type"]), prompt_id if isinstance(prompt_id, str) else None, data, at)
        (kind,) = struct.unpack_from(">I", frame)
        if kind == 1:
            (image_format,) = struct.unpack_from(">I", frame, 4)
            mime = {1: "image/jpeg", 2: "image/png"}.get(image_format, "application/octet-stream")
            return Event("preview", None, {"preview": Preview(None, mime, frame[8:])}, at)
        if kind in (3, 4):
            (length,) = struct.unpack_from(">I", frame, 4)
            if len(frame) < 8 + length:
                raise ValueError("cut off")
            head = frame[8 : 8 + length].decode()
            if kind == 3:
                return Event("progress_text", None, {"node": head, "text": frame[8 + length :].decode()}, at)
            data = json.loads(head)
            picture = Preview(str(data["display_node_id"]), str(data["image_type"]), frame[8 + length :])
            prompt_id = data.get("prompt_id")
            return Event("preview", prompt_id if isinstance(prompt_id, str) else None, {"preview": picture}, at)
    except (ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError):
        pass
    return Event("unknown", None, {}, at)


def reduce(state: PromptState, event: Event) -> PromptState:
    """``state`` after ``event``, which is about this prompt (its prompt_id, or none).

    The same object comes back when nothing changed. An end is only noted (``ending``): history is
    written after ``execution_success`` is sent, so reconcile() makes it final.
    """
    handler = _REDUCERS.get(event.type)
    if handler is None or state.phase.over:
        return state
    after = handler(state, event.data, event.at)
    return state if after == state else after


def _began(state: PromptState, at: float) -> PromptState:
    if state.phase is Phase.RUNNING:
        return state
    return state._replace(phase=Phase.RUNNING, ahead=0, missing_since=None, started_at=at)


def _on_start(state: PromptState, data: Mapping[str, Any], at: float) -> PromptState:
    return _began(state, at)


def _on_cached(state: PromptState, data: Mapping[str, Any], at: float) -> PromptState:
    return _began(state, at)._replace(
        cached=state.cached | (frozenset(map(str, as_list(data.get("nodes")))) & state.planned)
    )


def _display_id(data: Mapping[str, Any]) -> Optional[str]:
    node = data.get("display_node") or data.get("node")
    return None if node is None else str(node)


def _on_executing(state: PromptState, data: Mapping[str, Any], at: float) -> PromptState:
    node_id = _display_id(data)
    if node_id is None:  # also follows errors and interrupts, and a 2023 server's end has no other word
        return state._replace(over_seen=True) if "node" in data and data.get("prompt_id") else state
    state = _began(state, at)
    if not state.per_node_state:  # only one node runs at a time, so the others are done
        for other in list(state.running):
            if other != node_id:
                state = _node_done(state, other, at)
    if node_id in state.running:
        return state
    return state._replace(running={**state.running, node_id: NodeProgress(at)})


def _node_done(state: PromptState, node_id: str, at: float) -> PromptState:
    progress = state.running[node_id]
    finished = dict(state.finished)
    finished[node_id] = finished.get(node_id, 0.0) + max(at - progress.started, 0.0)
    return state._replace(running={k: v for k, v in state.running.items() if k != node_id}, finished=finished)


def _ticked(progress: NodeProgress, value: float, maximum: float, at: float) -> NodeProgress:
    if value < progress.value or maximum != progress.max:  # a node may begin anew (several passes)
        return NodeProgress(progress.started, value, maximum, at, value, at)
    return NodeProgress(progress.started, value, maximum, at, progress.first_value, progress.first_at)


def _on_progress(state: PromptState, data: Mapping[str, Any], at: float) -> PromptState:
    node_id = _display_id(data)
    if node_id is None:  # 2023: no node is named, and one runs
        node_id = next(iter(state.running), None)
        if node_id is None:
            return state
    known = state.running.get(node_id)
    if known is None:
        if node_id in state.finished or state.per_node_state:
            return state
        known = NodeProgress(at)
    value, maximum = as_number(data.get("value")), as_number(data.get("max"))
    if value == known.value and maximum == known.max:
        return state
    running = dict(state.running)
    running[node_id] = _ticked(known, value, maximum, at)
    return _began(state, at)._replace(running=running)


def _on_progress_state(state: PromptState, data: Mapping[str, Any], at: float) -> PromptState:
    if not state.per_node_state or state.phase is not Phase.RUNNING:
        state = _began(state, at)._replace(per_node_state=True)
    running: Optional[Dict[str, NodeProgress]] = None
    done: Dict[str, bool] = {}
    for key, node in as_dict(data.get("nodes")).items():
        if not isinstance(node, dict):
            continue
        node_id = str(node.get("display_node_id") or key)
        if node.get("state") == "finished":
            done.setdefault(node_id, True)
            continue
        done[node_id] = False  # a node that was expanded is done when all its parts are
        known = state.running.get(node_id) if running is None else running.get(node_id)
        value, maximum = as_number(node.get("value")), as_number(node.get("max"))
        if known is not None and (maximum <= 1.0 or (value == known.value and maximum == known.max)):
            continue
        running = dict(state.running) if running is None else running
        running[node_id] = NodeProgress(at) if known is None else _ticked(known, value, maximum, at)
    if running is not None:
        state = state._replace(running=running)
    for node_id, is_done in done.items():
        if is_done and node_id in state.running:
            state = _node_done(state, node_id, at)
    return state


def _on_executed(state: PromptState, data: Mapping[str, Any], at: float) -> PromptState:
    node_id, output = _display_id(data), data.get("output")
    if node_id is None or not isinstance(output, dict):
        return state
    return _began(state, at)._replace(outputs={**state.outputs, node_id: output})


def _on_success(state: PromptState, data: Mapping[str, Any], at: float) -> PromptState:
    return _began(state, at)._replace(ending=Phase.SUCCESS)


def _on_error(state: PromptState, data: Mapping[str, Any], at: float) -> PromptState:
    if data.get("exception_type") == "ExecutionBlocked":  # that branch stops, the run goes on
        node_id = str(data.get("node_id"))
        return state._replace(blocked={**state.blocked, node_id: one_line(data.get("exception_message"), 200)})
    return _began(state, at)._replace(ending=Phase.ERROR, failure=data)


def _on_interrupted(state: PromptState, data: Mapping[str, Any], at: float) -> PromptState:
    return _began(state, at)._replace(ending=Phase.INTERRUPTED, failure=data)


_REDUCERS: Mapping[str, Callable[[PromptState, Mapping[str, Any], float], PromptState]] = {
    "execution_start": _on_start,
    "execution_cached": _on_cached,
    "executing": _on_executing,
    "progress": _on_progress,
    "progress_state": _on_progress_state,
    "executed": _on_executed,
    "execution_success": _on_success,
    "execution_error": _on_error,
    "execution_interrupted": _on_interrupted,
}


class QueuePlace(NamedTuple):
    """Where a prompt stands in an answer of GET /queue."""

    running: int  # times that it runs (0 or 1, as ComfyUI has one worker)
    pending: int  # times that it waits: 2 when a POST was taken twice
    ahead: int  # prompts that come before it
    targets: FrozenSet[str]  # the outputs that it will make

    @property
    def found(self) -> bool:
        """Whether it is there at all."""
        return bool(self.running or self.pending)


def place_in_queue(queue: Mapping[str, Any], prompt_id: str) -> QueuePlace:
    """Where ``prompt_id`` stands in ``queue`` (the body of GET /queue; its pending list is unsorted)."""
    items = [item for item in as_list(queue.get("queue_running")) if isinstance(item, list) and len(item) > 1]
    pending = [item for item in as_list(queue.get("queue_pending")) if isinstance(item, list) and len(item) > 1]
    pending.sort(key=lambda item: as_number(item[0]))
    ours_running = [item for item in items if item[1] == prompt_id]
    ours_pending = [index for index, item in enumerate(pending) if item[1] == prompt_id]
    ahead = 0 if ours_running or not ours_pending else len(items) + ours_pending[0]
    ours = ours_running or [pending[index] for index in ours_pending]
    targets = frozenset(map(str, as_list(ours[0][4]))) if ours and len(ours[0]) > 4 else frozenset()
    return QueuePlace(len(ours_running), len(ours_pending), ahead, targets)


def reconcile(
    state: PromptState,
    place: Optional[QueuePlace],
    entry: Optional[Mapping[str, Any]],
    prompt: Mapping[str, Any],
    at: float,
    settle: float = DEFAULT_LIMITS.settle,
) -> PromptState:
    """``state`` after reading the queue and then, in this order, the history.

    ``place`` is None when the queue was not read; ``entry`` is the prompt's history entry or None.
    A prompt only moves from waiting to running to history, so one that is in neither is gone: for
    ``settle`` seconds it may still be a history entry that is written late.
    """
    if state.phase.over:
        return state
    if entry is not None:
        return _conclude(state, entry, prompt, at)
    if place is None:
        return state
    if place.found:
        if place.targets and place.targets != state.targets:
            state = state._replace(targets=place.targets, planned=upstream(prompt, place.targets))
        if place.running:
            return _began(state, at)._replace(missing_since=None)
        if state.phase is Phase.RUNNING:  # the answer is older than the message that it began
            return state._replace(missing_since=None)
        return state._replace(phase=Phase.QUEUED, ahead=place.ahead, missing_since=None)
    if state.phase is Phase.SUBMITTING:
        return state
    if state.missing_since is None:
        return state._replace(missing_since=at)
    if at - state.missing_since < settle:
        return state
    if state.ending is not None:  # the history entry was evicted or cleared: the socket's word counts
        return _ended(state, state.ending, at)
    if state.phase is Phase.QUEUED and not state.gaps and not state.over_seen:
        return _ended(state, Phase.DELETED, at)
    return lost(state, "it is neither in the server's queue nor in its history any more (a restart loses both)", at)


def lost(state: PromptState, reason: str, at: float) -> PromptState:
    """``state`` as lost, for ``reason`` (a clause); an end that is already there stays."""
    return state if state.phase.over else _ended(state, Phase.LOST, at)._replace(reason=reason)


def _ended(state: PromptState, phase: Phase, at: float) -> PromptState:
    if phase is Phase.SUCCESS:
        for node_id in list(state.running):
            state = _node_done(state, node_id, at)
    return state._replace(phase=phase, running={}, ended_at=at, missing_since=None)


def _conclude(state: PromptState, entry: Mapping[str, Any], prompt: Mapping[str, Any], at: float) -> PromptState:
    """The end as a history entry tells it. Its messages are trusted over ``status_str``, which can
    say success after an error while the run was set up; ``status`` may be null (2023)."""
    status = as_dict(entry.get("status"))
    messages = [
        (str(message[0]), as_dict(message[1]))
        for message in as_list(status.get("messages"))
        if isinstance(message, list) and len(message) == 2
    ]
    item = as_list(entry.get("prompt"))
    targets = frozenset(map(str, as_list(item[4]))) if len(item) > 4 else frozenset()
    if targets:
        state = state._replace(targets=targets, planned=upstream(prompt, targets) or state.planned)
    phase = Phase.ERROR if status.get("status_str") == "error" else Phase.SUCCESS
    times = {}
    for name, data in messages:
        times[name] = as_number(data.get("timestamp"))
        if name == "execution_cached":
            state = _on_cached(state, data, at)
        elif name == "execution_interrupted":
            phase, state = Phase.INTERRUPTED, state._replace(failure=data)
        elif name == "execution_error" and data.get("exception_type") != "ExecutionBlocked":
            phase, state = Phase.ERROR, state._replace(failure=data)
    if not status and state.ending in (Phase.ERROR, Phase.INTERRUPTED):
        phase = state.ending
    begin, end = times.get("execution_start", 0.0), max(times.values(), default=0.0)
    outputs = {
        str(node_id): output for node_id, output in as_dict(entry.get("outputs")).items() if isinstance(output, dict)
    }
    state = state._replace(
        outputs={**state.outputs, **outputs},
        seconds=(end - begin) / 1000 if begin and end >= begin else state.seconds,
        started_at=at if state.started_at is None else state.started_at,
    )
    return _ended(state, phase, at)


def wholly_cached(state: PromptState) -> bool:
    """Whether nothing was rendered: every output that the run had to make was in the cache."""
    wanted = state.targets or state.planned
    return state.phase is Phase.SUCCESS and bool(wanted) and wanted <= state.cached and not state.finished


def run_seconds(state: PromptState, now: float) -> float:
    """How long the prompt has run (or ran), in seconds; by the server's clock where it told."""
    if state.seconds is not None:
        return state.seconds
    end = now if state.ended_at is None else state.ended_at
    return end - state.started_at if state.started_at is not None else 0.0


class NextCheck(NamedTuple):
    """What the follower knows of its connection when it asks whether to read queue and history."""

    now: float
    heard: float  # when the last message about this prompt came
    checked: float  # when queue and history were last read
    checks: int  # reads since the last message
    connected: bool
    deaf: bool  # the socket was opened anew and has said nothing about this prompt since
    queue_moved: bool  # a status message came since the last read
    repeated: bool  # the prompt was posted twice, so it may stand in the queue twice


def seconds_to_check(state: PromptState, view: NextCheck, limits: Limits) -> float:
    """How many seconds until queue and history must be read (0 or less: now).

    The socket is a hint. The truth is read at an end, while the socket is down or may be deaf
    (ComfyUI issue 16010), when the queue moved while we wait, and after silence.
    """
    since = view.now - view.checked
    if state.over_seen or state.ending is not None or state.missing_since is not None:
        # execution_success comes before the history entry, executing(null) after it
        patience = 0.0 if state.over_seen else 0.25
        if view.checks:
            patience = (0.1, 0.2, 0.4, 0.8, 1.0)[min(view.checks, 5) - 1]
        return patience - min(since, view.now - view.heard)
    if not view.connected or view.deaf:
        return min((0.5, 1.0, 2.0, 4.0)[min(view.checks, 3)], limits.poll) - since
    if view.queue_moved and (state.phase is not Phase.RUNNING or view.repeated):
        return 0.3 - since
    if state.phase in (Phase.SUBMITTING, Phase.QUEUED) and state.ahead is None:
        return 0.5 - since
    wait = min(limits.poll * (1, 2, 3)[min(view.checks, 2)], 15.0)
    return wait - min(since, view.now - view.heard)


class Output(NamedTuple):
    """One thing that a run made. ``text`` outputs have no file; others have a name to fetch."""

    node_id: str
    title: str
    kind: str  # image, video, audio, 3d, text or file
    filename: str = ""
    subfolder: str = ""
    type: str = "output"  # output, temp or input: ComfyUI's folder
    text: Optional[str] = None


_KINDS = {
    "image": "png jpg jpeg webp gif bmp tif tiff avif jxl svg exr hdr psd",
    "video": "mp4 webm mkv mov avi m4v",
    "audio": "flac mp3 wav ogg opus m4a aac",
    "3d": "glb gltf obj stl ply fbx usdz splat ksplat spz",
    "text": "txt json csv md srt yaml xml",
}
_KIND_OF_ENDING = {ending: kind for kind, endings in _KINDS.items() for ending in endings.split()}


def collect_outputs(outputs: Mapping[str, Mapping[str, Any]], prompt: Mapping[str, Any]) -> List[Output]:
    """Every output of every node, whatever its key (``images``, ``gifs``, ``audio``, ``3d``, ``text``,
    a custom node's own): an object with a ``filename`` is a file, a text is a text."""
    found: List[Output] = []
    for node_id, ui in outputs.items():
        title = node_title(prompt, node_id)
        for items in ui.values():
            for item in items if isinstance(items, (list, tuple)) else [items]:
                if isinstance(item, dict) and isinstance(item.get("filename"), str) and item["filename"]:
                    name = item["filename"]
                    kind = _KIND_OF_ENDING.get(name.rpartition(".")[2].lower(), "file")
                    folder, type_ = item.get("subfolder"), item.get("type")
                    output = Output(
                        node_id, title, kind, name,
                        folder if isinstance(folder, str) else "",
                        type_ if isinstance(type_, str) and type_ else "output",
                    )  # fmt: skip
                elif isinstance(item, str) and item:
                    output = Output(node_id, title, "text", text=item)
                else:
                    continue
                if output not in found:
                    found.append(output)
    return found


def view_path(output: Output) -> str:
    """The path and query of GET /view for a file."""
    query = {"filename": output.filename, "subfolder": output.subfolder, "type": output.type}
    return "/view?" + urllib.parse.urlencode(query, errors="replace")


# ==================================================================================================
# WHAT IS WRONG: ComfyUI's validation and execution errors in words
# ==================================================================================================


class Problem(NamedTuple):
    """One thing that is wrong with a prompt, or with a node that ran."""

    type: str  # ComfyUI's error type
    message: str  # a sentence, without node
    node_id: str = ""
    title: str = ""
    class_type: str = ""
    input: str = ""
    value: Any = None
    hints: Tuple[str, ...] = ()  # what is allowed, what to do


INSTALL_HINT = "Install the custom node that has it (ComfyUI-Manager: Install Missing Custom Nodes), restart ComfyUI."

#: Where ComfyUI looks for what a loader's input names (its folder_paths.py).
_MODEL_FOLDERS = {
    "ckpt_name": "checkpoints", "lora_name": "loras", "vae_name": "vae", "unet_name": "diffusion_models",
    "clip_name": "text_encoders", "clip_name1": "text_encoders", "clip_name2": "text_encoders",
    "clip_name3": "text_encoders", "control_net_name": "controlnet", "style_model_name": "style_models",
    "gligen_name": "gligen", "model_name": "upscale_models",
}  # fmt: skip


def input_spec(object_info: Mapping[str, Any], class_type: str, name: str) -> List[Any]:
    """An input's ``[type, options]`` in ``object_info`` (a body of GET /object_info), or []."""
    declared = as_dict(as_dict(object_info.get(class_type)).get("input"))
    for group in ("required", "optional"):
        if name in as_dict(declared.get(group)):
            return as_list(declared[group][name])
    return []


def combo_options(spec: Sequence[Any]) -> Optional[List[Any]]:
    """The options of a combo input, in both of ComfyUI's forms, or None for any other input."""
    if spec and isinstance(spec[0], list):
        return spec[0]
    if spec and spec[0] == "COMBO" and len(spec) > 1:
        return as_list(as_dict(spec[1]).get("options"))
    return None


def nearest_first(value: object, options: Sequence[object], shown: int = 8) -> str:
    """Options as a list for people: those most like ``value`` first, then how many more there are."""
    import difflib

    wanted = str(value).lower()
    matcher = difflib.SequenceMatcher()
    matcher.set_seq2(wanted)

    def unlike(text: str) -> Tuple[float, int]:
        matcher.set_seq1(text.lower())
        same = next((i for i, (a, b) in enumerate(zip(wanted, text.lower())) if a != b), len(wanted))
        return -matcher.ratio(), -same

    def roughly_unlike(text: str) -> float:  # the exact measure is slow for thousands
        matcher.set_seq1(text.lower())
        return -matcher.quick_ratio()

    ranked = sorted(map(str, options), key=roughly_unlike)
    ranked[:50] = sorted(ranked[:50], key=unlike)
    more = len(ranked) - shown
    return ", ".join(one_line(text, 100) for text in ranked[:shown]) + (", %d more" % more if more > 0 else "")


def classes_to_look_up(answer: Mapping[str, Any], prompt: Mapping[str, Any]) -> List[str]:
    """The classes whose object_info is needed to explain ``answer`` (a body of POST /prompt)."""
    error = as_dict(answer.get("error"))
    if error.get("type") == "missing_node_type" or (
        error.get("type") == "invalid_prompt" and not answer.get("node_errors")
    ):  # the server names only the first class that it does not have
        return sorted({class_of(prompt, node_id) for node_id in prompt} - {""})
    wanted = set()
    for node_id, node in as_dict(answer.get("node_errors")).items():
        for item in as_list(as_dict(node).get("errors")):
            extra = as_dict(as_dict(item).get("extra_info"))
            if as_dict(item).get("type") == "value_not_in_list" and not extra.get("input_config"):
                wanted.add(str(as_dict(node).get("class_type") or class_of(prompt, node_id)))
    return sorted(wanted - {""})


def explain_answer(
    answer: Mapping[str, Any], prompt: Mapping[str, Any], object_info: Mapping[str, Any]
) -> List[Problem]:
    """All that a body of POST /prompt says is wrong, old forms and new, nothing left out.

    ``object_info`` holds what could be had of classes_to_look_up(); an empty answer for a class
    means that the server does not have it.
    """
    problems = []
    for node_id, node in as_dict(answer.get("node_errors")).items():
        for item in as_list(as_dict(node).get("errors")):
            class_type = str(as_dict(node).get("class_type") or class_of(prompt, node_id))
            problems.append(_explain_input(as_dict(item), str(node_id), class_type, prompt, object_info))
    error = answer.get("error")
    if error and not problems:
        problems.extend(_explain_prompt(error, prompt, object_info))
    return problems


def _explain_prompt(error: object, prompt: Mapping[str, Any], object_info: Mapping[str, Any]) -> List[Problem]:
    if not isinstance(error, dict):
        return [Problem("unknown", one_line(error, 500))]
    kind, message = str(error.get("type") or "unknown"), one_line(error.get("message") or "it gave no reason", 500)
    missing = [node_id for node_id in prompt if object_info.get(class_of(prompt, node_id)) == {}]
    if missing:
        return [
            Problem(
                "missing_node_type", "the server does not have the class %s." % one_line(class_of(prompt, node_id), 80),
                node_id, node_title(prompt, node_id), class_of(prompt, node_id), hints=(INSTALL_HINT,),
            )
            for node_id in missing
        ]  # fmt: skip
    extra = as_dict(error.get("extra_info"))
    found = re.search(r"#([^']+)'", str(error.get("details")))
    node_id = str(extra.get("node_id") or (found.group(1) if found else ""))
    if kind in ("missing_node_type", "invalid_prompt") and node_id:
        return [
            Problem(
                kind, message, node_id, node_title(prompt, node_id), class_of(prompt, node_id),
                hints=(INSTALL_HINT,) if class_of(prompt, node_id) else (EXPORT_REMEDY,),
            )
        ]  # fmt: skip
    hints = {
        "prompt_no_outputs": (
            "Nothing in it saves or shows a result: add an output node, such as Save Image, and connect it.",
        ),
        "no_prompt": (EXPORT_REMEDY,),
    }.get(kind, ())
    details = one_line(error.get("details") or "", 500)
    return [Problem(kind, _sentence(message, details), hints=hints)]


def _sentence(message: str, details: str) -> str:
    return (message + (": " + details if details and details != message else "")).rstrip(".") + "."


def _explain_input(
    item: Mapping[str, Any], node_id: str, class_type: str, prompt: Mapping[str, Any], object_info: Mapping[str, Any]
) -> Problem:
    kind, extra = str(item.get("type")), as_dict(item.get("extra_info"))
    details, message = one_line(item.get("details") or "", 500), one_line(item.get("message") or "it is wrong", 300)
    name = one_line(extra.get("input_name") or "", 80)
    spec = as_list(extra.get("input_config")) or input_spec(object_info, class_type, name)
    options = as_dict(spec[1]) if len(spec) > 1 else {}
    inputs = as_dict(as_dict(prompt.get(node_id)).get("inputs"))
    value = extra["received_value"] if "received_value" in extra else inputs.get(name)
    shown = one_line(json.dumps(value, ensure_ascii=False, default=str), 120)
    hints: List[str] = []
    if kind == "required_input_missing":
        name = name or details
        message = "the input %s is missing." % name
        hints.append("Give it a value or a link, or export the workflow again.")
    elif kind in ("value_smaller_than_min", "value_bigger_than_max"):
        message = "%s = %s is too %s." % (name, shown, "small" if "small" in kind else "big")
        hints.append("Allowed: %s to %s." % (options.get("min", "any"), options.get("max", "any")))
    elif kind == "value_not_in_list":
        message = "%s = %s is not one of the server's options." % (name, shown)
        choices = combo_options(spec)
        folder = _MODEL_FOLDERS.get(name)
        if choices:
            hints.append("Nearest: %s." % nearest_first(value, choices))
        elif choices is not None:
            hints.append("The server has none to choose from.")
        if folder:
            hints.append("%s the file into ComfyUI's models/%s folder." % ("Or put" if hints else "Put", folder))
    elif kind == "invalid_input_type":
        message = "%s = %s is not %s." % (name, shown, _a_type(spec))
        hints.append(one_line(extra.get("exception_message") or "", 200))
    elif kind == "return_type_mismatch":
        link = as_list(extra.get("linked_node"))
        source = str(link[0]) if link else ""
        message = "%s needs %s, but %s gives %s." % (
            name, _a_type(spec), _node_name(prompt, source), one_line(extra.get("received_type"), 40),
        )  # fmt: skip
        hints.append("Connect it to an output of the right type.")
    elif kind == "bad_linked_input":
        message = "%s is a list that is no link ([node, slot])." % (name or details)
    elif kind.startswith("exception_during") and any(is_link(v) and v[0] not in prompt for v in inputs.values()):
        name, link = next((n, v) for n, v in inputs.items() if is_link(v) and v[0] not in prompt)
        if str(link[0]) in prompt:
            message = 'the link of %s must name its node as a text: "%s", not %s.' % (name, link[0], link[0])
        else:
            message = "%s links to node %s, which is not in the workflow." % (name, one_line(link[0], 40))
        hints.append("Connect it again, or export the workflow again.")
    elif kind == "custom_validation_failed" and "Invalid" in details and "file" in details:
        message = "%s: %s." % (name, details.partition(" - ")[2] or details)
        hints.append("Upload the file to ComfyUI's input folder, or name one that is there.")
    else:
        message = _sentence(message, details)
    return Problem(
        kind, message, node_id, node_title(prompt, node_id), class_type, name, plain_json(value),
        tuple(hint for hint in hints if hint),
    )  # fmt: skip


def _a_type(spec: Sequence[Any]) -> str:
    if not spec:
        return "a value of the right type"
    kind = "a COMBO" if isinstance(spec[0], list) else one_line(spec[0], 60)
    words = {"INT": "a whole number (INT)", "FLOAT": "a number (FLOAT)", "STRING": "a text (STRING)"}
    return words.get(kind, kind)


def _node_name(prompt: Mapping[str, Any], node_id: str) -> str:
    title, class_type = node_title(prompt, node_id), class_of(prompt, node_id)
    inside = ", ".join(
        part for part in (class_type if class_type != title else "", "node " + one_line(node_id, 40)) if part
    )
    return '"%s" (%s)' % (title, inside)


def explain_failure(failure: Mapping[str, Any], prompt: Mapping[str, Any]) -> Problem:
    """The node that raised, from the data of ``execution_error`` (also in history)."""
    node_id = str(failure.get("node_id", ""))
    kind = one_line(failure.get("exception_type") or "an error", 100)
    message = clean(failure.get("exception_message") or "").strip() or "(no message)"
    hints = []
    if "OutOfMemory" in kind or "out of memory" in message.lower():
        hints.append("The device has too little memory: a smaller picture or batch, or --lowvram for ComfyUI.")
    title = node_title(prompt, node_id) if node_id else ""
    class_type = one_line(failure.get("node_type") or class_of(prompt, node_id), 80)
    return Problem(kind.rpartition(".")[2], message, node_id, title, class_type, hints=tuple(hints))


def traceback_lines(failure: Mapping[str, Any], frames: Optional[int] = 2) -> List[str]:
    """The last ``frames`` frames of a node's traceback (None: all), one text a line."""
    entries = [clean(entry).rstrip("\n") for entry in as_list(failure.get("traceback"))]
    left_out = 0 if frames is None else max(len(entries) - frames, 0)
    lines = ["  (%s left out: --verbose shows all)" % plural(left_out, "frame")] if left_out else []
    for entry in entries[left_out:]:
        lines.extend(line for line in entry.split("\n") if line.strip(" ^~"))
    return lines


def dropped_outputs(answer: Mapping[str, Any]) -> FrozenSet[str]:
    """The output nodes that a body of POST /prompt says will not run."""
    return frozenset(
        str(node_id)
        for node in as_dict(answer.get("node_errors")).values()
        for node_id in as_list(as_dict(node).get("dependent_outputs"))
    )


def silently_dropped(
    prompt: Mapping[str, Any], targets: FrozenSet[str], object_info: Mapping[str, Any]
) -> FrozenSet[str]:
    """The output nodes of ``prompt`` that are not among the accepted ``targets``.

    Tells what was dropped when the answer to POST /prompt, which says so, was lost.
    """
    return frozenset(
        node_id
        for node_id in prompt
        if targets
        and node_id not in targets
        and as_dict(object_info.get(class_of(prompt, node_id))).get("output_node") is True
    )


# ==================================================================================================
# EDITS: one way to name a node, one to set an input. Every edit returns a copy.
# ==================================================================================================


class EditError(RunnerError):
    """An edit that cannot be made; nothing was changed.

    ``type`` is the reason for programs; ``details`` what could have been meant, or what is wrong.
    """

    exit_status = ExitStatus.USAGE
    http_status = 400

    def __init__(self, type: str, message: str, details: Any = None) -> None:
        super().__init__(message)
        self.type = type
        self.details = details
        if type in ("ambiguous_node", "no_such_text", "no_loader", "linked_input"):
            self.http_status = 409  # the request is right, the workflow is not made for it


class InputRef(NamedTuple):
    """One input of one node."""

    node_id: str
    input: str


def describe_nodes(prompt: Mapping[str, Any], node_ids: Iterable[str]) -> List[Dict[str, str]]:
    """Nodes as an answer lists them, each once: node_id, title, class_type."""
    return [
        {"node_id": i, "title": node_title(prompt, i), "class_type": class_of(prompt, i)}
        for i in dict.fromkeys(node_ids)
    ]


def find_node(prompt: Mapping[str, Any], name: str) -> str:
    """The id of the node that ``name`` means: an id, else a title, else a class. Raises EditError."""
    titled = [i for i in prompt if as_dict(prompt[i].get("_meta")).get("title") == name]
    found = [name] if name in prompt else titled or [i for i in prompt if class_of(prompt, i) == name]
    quoted = json.dumps(one_line(name, 80), ensure_ascii=False)
    if not found:
        raise EditError("no_such_node", "The workflow has no node %s." % quoted, describe_nodes(prompt, prompt))
    if len(found) > 1:
        message = "%d nodes are called %s: name one by its id." % (len(found), quoted)
        raise EditError("ambiguous_node", message, describe_nodes(prompt, found))
    return found[0]


def is_seed(name: str, spec: Sequence[Any]) -> bool:
    """Whether an input is a seed: an INT that ComfyUI's frontend would draw anew."""
    options = as_dict(spec[1]) if len(spec) > 1 else {}
    return bool(options.get("control_after_generate")) or name in ("seed", "noise_seed")


def check_value(spec: Sequence[Any], name: str, value: Any) -> Any:
    """``value`` as an input declared as ``spec`` ([type, options]) takes it. Raises EditError.

    The bounds are those of ComfyUI's validation; nothing is bent to fit: "12" is no INT.
    """
    kind, options = spec[0], as_dict(spec[1]) if len(spec) > 1 else {}
    choices = combo_options(spec)
    shown = one_line(json.dumps(value, ensure_ascii=False, default=str), 80)
    if choices is not None and any(key.endswith("_upload") and mark for key, mark in options.items()):
        choices = None  # ComfyUI checks a file itself: it may lie in a subfolder, or be "x.png [output]"
        kind = "STRING"
    if choices is not None:
        wanted = value if isinstance(value, list) and options.get("multiselect") else [value]
        if any(item not in choices for item in wanted):
            nearest = "Nearest: %s." % nearest_first(value, choices) if choices else "The server has none."
            raise EditError(
                "value_not_in_list", "%s = %s is not one of the server's options. %s" % (name, shown, nearest)
            )
        return value
    takes: Dict[Any, Tuple[type, ...]] = {"INT": (int,), "FLOAT": (int, float), "STRING": (str,), "BOOLEAN": (bool,)}
    types = takes.get(kind) if isinstance(kind, str) else None
    if types is None:
        if isinstance(value, (list, dict)):
            raise EditError("linked_input", "%s takes a link, which cannot be set here." % name)
        return value
    if isinstance(value, float) and value - value != 0:  # NaN and infinity
        raise EditError("invalid_input_type", "%s = %s is not %s." % (name, shown, _a_type(spec)))
    if kind == "INT" and isinstance(value, float) and value == value // 1:
        value = int(value)  # JSON writers do not keep the two apart
    if not isinstance(value, types) or (isinstance(value, bool) and kind != "BOOLEAN"):
        raise EditError("invalid_input_type", "%s = %s is not %s." % (name, shown, _a_type(spec)))
    if kind in ("INT", "FLOAT"):
        low, high = (options.get(key) if isinstance(options.get(key), (int, float)) else None for key in ("min", "max"))
        if (low is not None and value < low) or (high is not None and value > high) or abs(value) >= 1e300:  # type: ignore[arg-type]
            bounds = tuple("any" if bound is None else bound for bound in (low, high))
            raise EditError("value_out_of_range", "%s = %s is not between %s and %s." % (name, shown, *bounds))
    return value


def set_inputs(
    prompt: Prompt, node_id: str, inputs: Mapping[str, Any], object_info: Mapping[str, Any]
) -> Tuple[Prompt, bool]:
    """A copy of ``prompt`` with inputs of one node set, and whether all were checked.

    Raises EditError for an input that the class does not have, that a link feeds, or whose value it
    does not take; where ``object_info`` does not have the class, only links are looked at.
    """
    class_type, known = class_of(prompt, node_id), prompt[node_id]["inputs"]
    checked: Dict[str, Any] = {}
    for name, value in inputs.items():
        spec = input_spec(object_info, class_type, name)
        if is_link(known.get(name)):
            source = str(known[name][0])
            message = "%s is fed by %s: set it there." % (name, _node_name(prompt, source))
            raise EditError("linked_input", message, describe_nodes(prompt, [source]))
        if name not in known and not spec:
            names = ", ".join(sorted(map(str, known))) or "none"
            raise EditError("no_such_input", "%s has no input %s. It has: %s." % (
                _node_name(prompt, node_id), json.dumps(one_line(name, 60)), names))  # fmt: skip
        checked[name] = check_value(spec, name, value) if spec else value
    node = {**prompt[node_id], "inputs": {**known, **checked}}
    return {**prompt, node_id: node}, bool(object_info.get(class_type))


def text_inputs(prompt: Mapping[str, Any], node_id: str) -> List[InputRef]:
    """Where the texts of a node are written: its own inputs, or those of the nodes that feed them."""
    found: List[InputRef] = []
    seen: Set[str] = set()
    waiting = [node_id]
    while waiting:
        current = waiting.pop()
        if current in seen or current not in prompt:
            continue
        seen.add(current)
        links = []
        for name, value in as_dict(prompt[current].get("inputs")).items():
            text = bool(_TEXT_INPUTS.search(name))
            if current != node_id:  # in a node that feeds a text any text will do
                text = text or name in ("value", "Text") or name.startswith("string")
            if text and isinstance(value, str):
                found.append(InputRef(current, name))
            elif text and is_link(value):
                links.append(str(value[0]))
        waiting += reversed(links)
    return found


def prompt_texts(prompt: Mapping[str, Any], role: str) -> List[InputRef]:
    """The texts that reach a sampler's ``positive`` or ``negative`` input, by following the links
    back through conditioning nodes; a guider's ``conditioning`` (Flux) counts as positive."""
    found: List[InputRef] = []
    seen: Set[Tuple[str, str]] = set()
    waiting: List[Tuple[Sequence[Any], str]] = []  # links to follow, and the side that they are on
    for node_id in prompt:
        inputs, class_type = as_dict(prompt[node_id].get("inputs")), class_of(prompt, node_id)
        if "latent_image" in inputs or "model" in inputs:  # a sampler, or a guider for one
            names = [role, "cond1", "cond2"] if role == "positive" and "Guider" in class_type else [role]
            names += ["conditioning"] if role == "positive" and "Guider" in class_type else []
            waiting += [(inputs[name], role) for name in names if is_link(inputs.get(name))]
    waiting.reverse()
    while waiting:
        link, side = waiting.pop()
        node_id = str(link[0])
        if node_id not in prompt or (node_id, side) in seen or "ZeroOut" in class_of(prompt, node_id):
            continue  # ConditioningZeroOut makes nothing of what it is given: there is no text
        seen.add((node_id, side))
        texts = text_inputs(prompt, node_id)
        found.extend(ref for ref in texts if ref not in found)
        if texts:
            continue
        inputs = as_dict(prompt[node_id].get("inputs"))
        if is_link(inputs.get("positive")) and is_link(inputs.get("negative")):  # ControlNet: two in, two out
            waiting.append((inputs["negative" if link[1] == 1 else "positive"], side))
            continue
        names = [name for name, value in inputs.items() if is_link(value) and name.startswith(("cond", side))]
        waiting += [(inputs[name], side) for name in reversed(names)]
    return found


def find_text(prompt: Mapping[str, Any], node: Optional[str], role: Optional[str]) -> InputRef:
    """The one text input that a node's name, or "positive" or "negative", means. Raises EditError."""
    if node is not None:
        found = text_inputs(prompt, find_node(prompt, node))
        what = "The node %s" % json.dumps(one_line(node, 80), ensure_ascii=False)
    else:
        what = "The %s prompt" % role
        found = prompt_texts(prompt, str(role))
        if not found:  # links do not tell
            titled = [i for i in prompt if str(role) in node_title(prompt, i).lower()]
            found = [ref for node_id in titled for ref in text_inputs(prompt, node_id)]
    if len(found) == 1:
        return found[0]
    every = [ref.node_id for node_id in prompt for ref in text_inputs(prompt, node_id)]
    if found and len({ref.node_id for ref in found}) == 1:
        names = ", ".join(ref.input for ref in found)
        raise EditError("ambiguous_node", "%s has several texts (%s): use /update/inputs." % (what, names),
                        describe_nodes(prompt, [ref.node_id for ref in found]))  # fmt: skip
    if found:
        candidates = describe_nodes(prompt, [ref.node_id for ref in found])
        raise EditError("ambiguous_node", "%s has several texts: name a node." % what, candidates)
    raise EditError("no_such_text", "%s has no text that can be set." % what, describe_nodes(prompt, every))


def upload_inputs(prompt: Mapping[str, Any], object_info: Mapping[str, Any]) -> Dict[InputRef, str]:
    """The inputs that take an uploaded file, and its kind (image, video, audio, file), by the marks
    in ``object_info`` (``image_upload`` and the like)."""
    found = {}
    for node_id in prompt:
        declared = as_dict(as_dict(object_info.get(class_of(prompt, node_id))).get("input"))
        for group in ("required", "optional"):
            for name, spec in as_dict(declared.get(group)).items():
                options = as_dict(spec[1]) if isinstance(spec, list) and len(spec) > 1 else {}
                marks = [key for key, value in options.items() if key.endswith("_upload") and value]
                if marks and not is_link(as_dict(prompt[node_id].get("inputs")).get(name)):
                    kind = marks[0].rpartition("_upload")[0].rpartition("_")[2]
                    found[InputRef(node_id, name)] = kind if kind in ("image", "video", "audio") else "file"
    return found


def draw_seeds(
    prompt: Prompt, random_inputs: Iterable[InputRef], draw: Callable[[], float], object_info: Mapping[str, Any] = {}
) -> Prompt:
    """A copy of ``prompt`` with new seeds between the bounds of their inputs, and not above 2**50,
    which every reader of JSON keeps exact; ``draw`` gives numbers in [0, 1)."""
    for ref in random_inputs:
        if ref.node_id in prompt:
            node = prompt[ref.node_id]
            spec = input_spec(object_info, class_of(prompt, ref.node_id), ref.input)
            options = as_dict(spec[1]) if len(spec) > 1 else {}
            low = int(as_number(options.get("min")))
            high = min(int(as_number(options.get("max"), 2.0**50)), max(low, 0) + 2**50)
            seed = low + int(draw() * (high - low + 1))
            prompt = {**prompt, ref.node_id: {**node, "inputs": {**node["inputs"], ref.input: seed}}}
    return prompt


def check_prompt(prompt: Mapping[str, Any], object_info: Mapping[str, Any]) -> List[Problem]:
    """What ``object_info`` says is wrong with a prompt: classes that are missing ({}), values."""
    problems = []
    for node_id in prompt:
        class_type, title = class_of(prompt, node_id), node_title(prompt, node_id)
        if object_info.get(class_type) == {}:
            message = "the server does not have the class %s." % one_line(class_type, 80)
            problems.append(Problem("missing_node_type", message, node_id, title, class_type, hints=(INSTALL_HINT,)))
            continue
        for name, value in as_dict(prompt[node_id].get("inputs")).items():
            spec = input_spec(object_info, class_type, name)
            if not spec or is_link(value):
                continue
            try:
                check_value(spec, name, value)
            except EditError as error:
                problems.append(Problem(error.type, error.message, node_id, title, class_type, name, plain_json(value)))
    return problems


def form_fields(
    prompt: Mapping[str, Any], object_info: Mapping[str, Any], random_inputs: Iterable[InputRef]
) -> List[Dict[str, Any]]:
    """What a person can set, in the order to show it: texts, files, seeds, then the rest."""
    roles = {ref: role for role in ("negative", "positive") for ref in prompt_texts(prompt, role)}
    uploads, drawn = upload_inputs(prompt, object_info), set(random_inputs)
    fields = []
    for node_id in prompt:
        class_type = class_of(prompt, node_id)
        for name, value in as_dict(prompt[node_id].get("inputs")).items():
            ref, spec = InputRef(node_id, str(name)), input_spec(object_info, class_type, name)
            if isinstance(value, (list, dict)) or value is None:
                continue
            options, choices = as_dict(spec[1]) if len(spec) > 1 else {}, combo_options(spec)
            kinds = {bool: "toggle", int: "int", float: "float"}
            kind = {"INT": "int", "FLOAT": "float", "BOOLEAN": "toggle"}.get(str(spec[0]) if spec else "")
            kind = kind or ("choice" if choices else kinds.get(type(value), "text"))
            kind = "seed" if kind == "int" and is_seed(str(name), spec) else "upload" if ref in uploads else kind
            order = {"text": 0, "upload": 1, "seed": 2}.get(kind, 3)
            important = kind in ("upload", "seed") or name in (*_SAMPLING_INPUTS, "width", "height", "length")
            if kind == "text":
                important = bool(_TEXT_INPUTS.search(str(name)) or options.get("multiline"))
            sort = (not important, order, roles.get(ref, "z") != "positive", roles.get(ref, "z") != "negative")
            fields.append((sort, {
                **describe_nodes(prompt, [node_id])[0], "input": name, "kind": kind, "role": roles.get(ref, ""),
                "value": plain_json(value), "min": options.get("min"), "max": options.get("max"),
                "step": options.get("step"), "options": (choices or [])[:2000], "media": uploads.get(ref, ""),
                "important": important, "random": ref in drawn, "multiline": bool(options.get("multiline")),
            }))  # fmt: skip
    return [field for _, field in sorted(fields, key=lambda pair: pair[0])]


# ==================================================================================================
# REPORTS: what happened, as data (docs/JSON.md lists them); what a person reads; the meter
# ==================================================================================================

#: A report is a flat dict with "event" and the fields of docs/JSON.md; Program.tell adds prompt_id, JSON a time.
Report = Dict[str, Any]

#: A line for people: a style ("", "ok", "bad", "warn", "dim", "bold") and its text.
Line = Tuple[str, str]


def changes(before: PromptState, after: PromptState, prompt: Mapping[str, Any]) -> Iterator[Report]:
    """The reports that lead from ``before`` to ``after``, whatever the change came from."""

    def node(event: str, node_id: str, **more: Any) -> Report:
        known = {"node_id": node_id, "title": node_title(prompt, node_id), "class_type": class_of(prompt, node_id)}
        return {"event": event, **known, **more}

    if before.phase is Phase.SUBMITTING and after.phase in (Phase.QUEUED, Phase.RUNNING):
        yield {"event": "submitted"}
    if after.phase is Phase.QUEUED and after.ahead is not None and after.ahead != before.ahead:
        yield {"event": "queued", "ahead": after.ahead}
    if before.phase is not Phase.RUNNING and after.phase is Phase.RUNNING:
        yield {"event": "started"}
    if after.cached != before.cached:
        yield {"event": "cached", "nodes": sorted(after.cached), "nodes_total": len(after.planned)}
    if after.finished is not before.finished:
        for node_id, seconds in after.finished.items():
            if seconds != before.finished.get(node_id):
                took = seconds - before.finished.get(node_id, 0.0)
                yield node("node_finished", node_id, seconds=round(took, 3), **nodes_done(after))
    if after.running is not before.running:
        for node_id, progress in after.running.items():
            known = before.running.get(node_id)
            if known is None:
                yield node("node_started", node_id)
            if progress.max > 1 and progress.value and (known is None or progress != known):
                yield node("progress", node_id, value=progress.value, max=progress.max, **nodes_done(after))
    if after.blocked is not before.blocked:
        for node_id in set(after.blocked) - set(before.blocked):
            yield node("node_blocked", node_id, message=after.blocked[node_id])


#: Steps of a node are told at most this often (seconds); the first and the last of a node always.
PROGRESS_INTERVAL = 0.1


def is_mere_progress(before: PromptState, after: PromptState) -> bool:
    """Whether nothing but the values of the same running nodes changed, and none takes its first step."""
    if after.finished is not before.finished or after.phase is not before.phase or after.ending is not before.ending:
        return False
    for node_id, progress in after.running.items():
        known = before.running.get(node_id)
        if known is None or progress.max != known.max:
            return False
    return after.running is not before.running and after.outputs is before.outputs and after.cached is before.cached


def nodes_done(state: PromptState) -> Dict[str, int]:
    """How many nodes are done (cached ones too) of how many."""
    done = (state.cached | frozenset(state.finished)) & state.planned
    if state.phase is Phase.SUCCESS:
        done = state.planned  # what was missed while the socket was down is done too
    return {"nodes_done": len(done), "nodes_total": len(state.planned)}


def describe(report: Report) -> List[Line]:
    """What a person reads of a report; [] for those that only the meter or a program needs."""
    teller = _TELLERS.get(report["event"])
    return teller(report) if teller else []


def _tell_workflow(report: Report) -> List[Line]:
    lines: List[Line] = [("bold", "%s: %s" % (report["file"], plural(report["nodes"], "node")))]
    names = (("models", "Model"), ("texts", "Text"), ("sampling", "Sampling"), ("sizes", "Size"),
             ("files", "File"), ("saves", "Saves"))  # fmt: skip
    for key, word in names:
        for title, text in report[key][:12]:
            lines.append(("", "  %-9s %s: %s" % (word, title, text)))
        if len(report[key]) > 12:
            lines.append(("dim", "  %-9s %d more" % (word, len(report[key]) - 12)))
    return lines


def _tell_server(report: Report) -> List[Line]:
    lines: List[Line] = [("warn", text) for text in report["tried"]]
    version = "ComfyUI %s" % report["version"] if report["version"] else "ComfyUI (it does not tell its version)"
    lines.append(("bold", "%s at %s, %s" % (version, report["url"], report["device"] or "device unknown")))
    return lines


def _tell_queued(report: Report) -> List[Line]:
    if not report["ahead"]:
        return [("", "Waiting: next in the queue.")]
    return [("", "Waiting: %s ahead." % plural(report["ahead"], "prompt"))]


def _tell_cached(report: Report) -> List[Line]:
    count = len(report["nodes"])
    return [("dim", "%d of %s cached." % (count, plural(report["nodes_total"], "node")))] if count else []


def _tell_problem(report: Report) -> List[Line]:
    inside = ", ".join(part for part in (report["class_type"], "node " + report["node_id"]) if part)
    place = '"%s" (%s): ' % (report["title"], inside) if report["node_id"] else ""
    return [("bad", place + report["message"])] + [("", "    " + hint) for hint in report["hints"]]


def _tell_failure(report: Report) -> List[Line]:
    place = (
        '"%s" (%s, node %s)' % (report["title"], report["class_type"], report["node_id"])
        if report["node_id"]
        else "A node"
    )
    first, _, rest = report["message"].partition("\n")
    lines: List[Line] = [("bad", "%s raised %s: %s" % (place, report["type"], first))]
    lines += [("", "    " + line) for line in rest.split("\n") if line.strip()]
    lines += [("dim", line) for line in report["traceback"]]
    lines += [("", "    " + hint) for hint in report["hints"]]
    return lines


def _tell_output(report: Report) -> List[Line]:
    if report["text"] is not None:
        text = clean(report["text"])
        shown = text if len(text) <= 2000 else text[:2000] + "…"
        return [("ok", "%s:" % report["title"])] + [("", "    " + line) for line in shown.split("\n")]
    if report["will_be_saved"]:
        return []  # "saved" follows
    name = report["subfolder"] + "/" + report["filename"] if report["subfolder"] else report["filename"]
    return [("ok", "%s: %s" % (report["title"], name)), ("dim", "    " + report["url"])]


def _tell_saved(report: Report) -> List[Line]:
    return [("ok", "%s: saved %s (%s)" % (report["title"], report["path"], size_in_words(report["bytes"])))]


def _tell_connection(report: Report) -> List[Line]:
    if report["state"] == "restored":
        return [("ok", "Connection restored.")]
    if report["state"] == "unavailable":
        return [("warn", "No WebSocket (%s): following by the queue and history alone." % report["reason"])]
    return [("warn", "Connection lost (%s): trying again; the run goes on." % report["reason"])]


def _tell_silence(report: Report) -> List[Line]:
    return [("warn", "No message for %s; %s" % (duration(report["seconds"]), report["server_says"]))]


def _tell_end(report: Report) -> List[Line]:
    style = {"success": "ok", "cancelled": "warn", "timeout": "warn"}.get(report["status"], "bad")
    if report["status"] == "success" and report["exit_status"]:
        style = "warn"
    return [(style, line) for line in report["message"].split("\n")]


_TELLERS: Mapping[str, Callable[[Report], List[Line]]] = {
    "workflow": _tell_workflow,
    "server": _tell_server,
    "submitted": lambda report: [("dim", "Submitted as %s." % report["prompt_id"])],
    "queued": _tell_queued,
    "started": lambda report: [("", "Running.")],
    "cached": _tell_cached,
    "node_finished": lambda report: [("ok", "%s: %s" % (report["title"], duration(report["seconds"])))],
    "node_blocked": lambda report: [("warn", "%s gave no result: %s" % (report["title"], report["message"]))],
    "problem": _tell_problem,
    "failure": _tell_failure,
    "output": _tell_output,
    "saved": _tell_saved,
    "not_saved": lambda report: (
        [("bad", report["message"])] + ([("", "    " + report["remedy"])] if report["remedy"] else [])
    ),
    "connection": _tell_connection,
    "silence": _tell_silence,
    "listening": lambda report: [
        ("bold", "Continuous mode at %s" % report["url"]),
        *(("", "  " + line) for line in report["routes"]),
    ],
    "notice": lambda report: [("warn", report["message"])],
    "error": lambda report: [("bad", report["message"])] + ([("", report["remedy"])] if report["remedy"] else []),
    "end": _tell_end,
}


def end_report(
    state: PromptState,
    exit_status: ExitStatus,
    now: float,
    prompt: Mapping[str, Any],
    stopped: Optional[str] = None,
    received: int = 0,
) -> Report:
    """The last report. ``stopped`` says who cancelled: "Ctrl+C", "SIGTERM", "the timeout", or None;
    ``received`` counts the pictures that came over the WebSocket alone."""
    took = duration(run_seconds(state, now))
    node = str(state.failure.get("node_id") or "")
    at_node = " at %s" % _node_name(prompt, node) if node else ""
    count = len(collect_outputs(state.outputs, prompt)) + received
    status = state.phase.value
    words = {
        Phase.SUCCESS: "Done in %s, %s." % (took, plural(count, "output")),
        Phase.ERROR: "The run failed after %s%s." % (took, at_node),
        Phase.INTERRUPTED: "Somebody else interrupted the run%s." % at_node,
        Phase.DELETED: "Somebody else took the prompt off the queue: it did not run.",
        Phase.LOST: "The run is lost: %s.\nIf it matters, look at the server's output folder, and run it again."
        % (state.reason or "how it ended cannot be known"),
        Phase.REJECTED: "ComfyUI refused the prompt: nothing was run.",
    }
    message = words.get(state.phase, "The run was left.")
    if wholly_cached(state):
        message = (
            "Nothing new was rendered: ComfyUI had every result in its cache (%s).\n"
            "Change a seed or another value to render anew." % plural(count, "output")
        )
    if exit_status is ExitStatus.PARTIAL:
        message += "\nIt ran in part only: the outputs that ComfyUI refused are missing (see above)."
    if stopped:
        status = "timeout" if exit_status is ExitStatus.TIMEOUT else "cancelled"
        cancelled = {
            Phase.INTERRUPTED: "ComfyUI interrupted our run%s." % at_node,
            Phase.DELETED: "our prompt was waiting and is off the queue: it did not run.",
            Phase.SUCCESS: "it had already finished: %s." % plural(count, "output"),
            Phase.ERROR: "it had already failed%s." % at_node,
            Phase.REJECTED: "nothing was submitted.",
            Phase.LOST: "the server does not have it any more (%s)." % (state.reason or "reason unknown"),
        }
        unconfirmed = (
            "ComfyUI has not confirmed it: prompt %s may still run.\n"
            "See the queue in ComfyUI; a node that never checks ends by itself." % state.prompt_id
        )
        message = "Cancelled by %s: %s" % (stopped, cancelled.get(state.phase, unconfirmed))
    return {
        "event": "end", "status": status, "exit_status": int(exit_status), "message": message,
        "seconds": round(run_seconds(state, now), 3), "wholly_cached": wholly_cached(state), **nodes_done(state),
    }  # fmt: skip


def exit_status_of(state: PromptState, dropped: bool) -> ExitStatus:
    """The exit status for a run that was left to end. ``dropped``: ComfyUI refused some outputs."""
    by_phase = {
        Phase.ERROR: ExitStatus.FAILED,
        Phase.INTERRUPTED: ExitStatus.INTERRUPTED,
        Phase.DELETED: ExitStatus.INTERRUPTED,
        Phase.LOST: ExitStatus.LOST,
        Phase.REJECTED: ExitStatus.REJECTED,
    }
    if state.phase is Phase.SUCCESS:
        return ExitStatus.PARTIAL if dropped else ExitStatus.OK
    return by_phase.get(state.phase, ExitStatus.ERROR)


def bar(fraction: float, width: int, ascii_only: bool) -> Tuple[str, str]:
    """A bar of ``width`` characters as its full and its empty part."""
    full = int(max(0.0, min(fraction, 1.0)) * width)
    marks = ("#", "-") if ascii_only else ("━", "─")
    return marks[0] * full, marks[1] * (width - full)


def rate_in_words(progress: NodeProgress) -> str:
    """The pace of a node and the time that it has left: "3.2 it/s, 0:05 left" (or "s/it")."""
    steps, seconds = progress.value - progress.first_value, progress.at - progress.first_at
    if steps <= 0 or seconds <= 0:
        return ""
    pace = "%.1f it/s" % (steps / seconds) if steps >= seconds else "%.1f s/it" % (seconds / steps)
    return "%s, %s left" % (pace, duration(max(progress.max - progress.value, 0) * seconds / steps))


def meter(
    state: PromptState,
    prompt: Mapping[str, Any],
    now: float,
    began: float,
    width: int,
    ascii_only: bool,
    note: str = "",
) -> List[List[Line]]:
    """The moving part of the screen: lines of (style, text) pieces, none wider than ``width``.

    ``began`` is when we submitted; ``note`` is what is wrong at the moment, if anything.
    """
    name = min(max(width // 4, 8), 26)
    room = max(min(width - name - 34, 40), 6)

    def row(label: str, fraction: float, style: str, text: str) -> List[Line]:
        label = _fit([("", one_line(label, name))], name)[0][1]
        full, empty = bar(fraction, room, ascii_only)
        padding = " " * (name - cells(label) + 1)
        return [("", label + padding), (style, full), ("dim", empty), ("", " " + text)]

    lines: List[List[Line]] = []
    if state.phase in (Phase.SUBMITTING, Phase.QUEUED):
        waiting = "Submitting" if state.ahead is None else "Waiting, next in the queue"
        if state.ahead:
            waiting = "Waiting, %s ahead" % plural(state.ahead, "prompt")
        lines.append([("", "%s  %s" % (waiting, duration(now - began)))])
    else:
        done, total = nodes_done(state).values()
        part = sum(p.value / p.max for p in state.running.values() if p.max > 0 and 0 <= p.value <= p.max)
        text = "%d/%d nodes  %s" % (done, total, duration(run_seconds(state, now)))
        lines.append(row("Overall", (done + min(part, 1.0)) / total if total else 0.0, "bold", text))
        for node_id, progress in list(state.running.items())[:3]:
            fraction = progress.value / progress.max if progress.max > 0 else 0.0
            if progress.max > 1:
                text = "%g/%g  %s" % (progress.value, progress.max, rate_in_words(progress))
            else:
                fraction, text = 0.0, duration(now - progress.started)
            lines.append(row(node_title(prompt, node_id), fraction, "ok", text))
    if note:
        lines.append([("warn", note)])
    return [_fit(line, width) for line in lines]


def cells(text: str) -> int:
    """How many columns a terminal gives ``text``: wide characters (Chinese, emoji) take two."""
    import unicodedata

    return len(text) if text.isascii() else sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def _fit(line: List[Line], width: int) -> List[Line]:
    fitted = []
    for style, text in line:
        while cells(text) > max(width, 0):
            text = text[:-1]
        fitted.append((style, text))
        width -= cells(text)
    return fitted


# ==================================================================================================
# COMFYUI OVER THE WIRE: one call a method; the WebSocket
# ==================================================================================================

Result = TypeVar("Result")


class Address(NamedTuple):
    """Where a server is: ``url`` without credentials and without a last slash; headers to send."""

    url: str
    headers: Tuple[Tuple[str, str], ...] = ()
    secrets: Tuple[str, ...] = ()  # texts that must never be shown

    @property
    def websocket(self) -> str:
        """The URL that the WebSocket paths go behind."""
        return "ws" + self.url[len("http") :]

    @property
    def local(self) -> bool:
        """Whether it is on this machine, so that no proxy of the system may be asked for it."""
        host = urllib.parse.urlsplit(self.url).hostname or ""
        return host in ("localhost", "::1") or host.startswith("127.")


def parse_address(text: str, headers: Sequence[str] = ()) -> Address:
    """The address in ``text`` (``http://user:password@host:8188/base``, or ``host:8188``).

    ``headers`` are "Name: value" lines. Raises UsageError, in whose message no secret stands.
    """
    text = text.strip()
    if "://" not in text:
        text = "http://" + text
    try:
        text.encode()
        parts = urllib.parse.urlsplit(text.strip())
        host, port, username, password = parts.hostname, parts.port, parts.username, parts.password
    except ValueError:
        raise UsageError(
            "The server's URL has a host or port that is none.", "Example: http://127.0.0.1:8188"
        ) from None
    if parts.scheme not in ("http", "https") or not host or re.search(r"[\s\x00-\x1f\x7f]", text.strip()):
        raise UsageError("The server's URL must be http:// or https:// with a host.", "Example: http://127.0.0.1:8188")
    if parts.query or parts.fragment:
        raise UsageError("The server's URL must end before any ? or #.", "Give a token as --header instead.")
    shown = "[%s]" % host if ":" in host else host
    url = "%s://%s%s%s" % (parts.scheme, shown, ":%d" % port if port else "", parts.path.rstrip("/"))
    sent: Dict[str, str] = {}
    secrets: List[str] = []
    if username is not None or password is not None:
        import base64

        pair = "%s:%s" % (urllib.parse.unquote(username or ""), urllib.parse.unquote(password or ""))
        token = base64.b64encode(pair.encode()).decode()
        sent["Authorization"] = "Basic " + token
        secrets += [token, pair, password or "", urllib.parse.unquote(password or "")]
    for line in headers:
        name, colon, value = line.partition(":")
        name, value = name.strip(), value.strip()
        if not colon or not re.match(r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$", name):
            raise UsageError("A header must look like 'Name: value'.", "Example: --header 'Authorization: Bearer …'")
        if re.search(r"[\x00-\x1f\x7f]", value) or not _is_latin_1(value):
            raise UsageError("The value of the header %s has characters that no header may have." % name)
        for other in [other for other in sent if other.lower() == name.lower()]:
            del sent[other]
        sent[name] = value
        secrets += [value, *value.split()[1:]]
    hidden = sorted({secret for secret in secrets if len(secret) > 3}, key=len, reverse=True)
    return Address(url, tuple(sent.items()), tuple(hidden))


def _is_latin_1(text: str) -> bool:
    try:
        text.encode("latin-1")
    except UnicodeEncodeError:
        return False
    return True


class Server:
    """ComfyUI's HTTP routes, one method each. Every call is one try and has a timeout.

    All raise ServerUnreachable when no whole answer came and ServerAnswer for a status that the
    route does not have. The methods block; an event loop calls them through in_thread().
    """

    def __init__(self, address: Address, limits: Limits = DEFAULT_LIMITS) -> None:
        self.address = address
        self.limits = limits
        self._session = self._new_session()
        self._has_jobs: Optional[bool] = None  # /api/jobs/{id}/cancel: found out by the first cancel

    def _new_session(self) -> "requests.Session":
        session: "requests.Session" = _third_party("requests").Session()
        session.trust_env = not self.address.local
        session.auth = _keep_request  # else a ~/.netrc entry would replace our Authorization
        session.headers["User-Agent"] = "comfyui-workflow-runner/" + __version__
        session.headers.update(dict(self.address.headers))
        return session

    def open(
        self,
        method: str,
        path: str,
        timeout: Optional[float] = None,
        body: Any = None,
        accept: Sequence[int] = (200,),
        headers: Mapping[str, str] = {},
    ) -> "requests.Response":
        """The answer to one request, its body unread. Redirects are refused: credentials go nowhere else.

        ``body`` is sent as JSON, but a file as it is.
        """
        library = _third_party("requests")
        data = body if body is None or hasattr(body, "read") else json.dumps(body).encode()
        sent = {"Content-Type": "application/json", **headers} if data is not None else dict(headers)
        try:
            response: "requests.Response" = self._session.request(
                method, self.address.url + path, data=data, headers=sent, stream=True, allow_redirects=False,
                timeout=(self.limits.connect, timeout or self.limits.read),
            )  # fmt: skip
        except (library.RequestException, OSError, ValueError) as error:
            raise self._unreachable(error) from error
        head = response.headers
        if not head.get("Content-Length", "").isdigit() and not (
            "Transfer-Encoding" in head or head.get("Connection", "").lower() == "close"
        ):  # http.client takes the end of the connection for the end of the head
            response.close()
            raise ServerUnreachable("The answer of %s was cut short." % self.address.url)
        if response.status_code in accept:
            return response
        text = self._body(response)
        raise _unexpected(response, text, self.address.url, method + " " + path.partition("?")[0])

    def _body(self, response: "requests.Response") -> bytes:
        """The whole body. Raises ServerUnreachable if it breaks off."""
        library = _third_party("requests")
        try:
            data = response.content
        except (library.RequestException, OSError) as error:
            raise self._unreachable(error) from error
        finally:
            response.close()
        expected = response.headers.get("Content-Length", "")
        if expected.isdigit() and "Content-Encoding" not in response.headers and len(data) != int(expected):
            raise ServerUnreachable("The answer of %s was cut short." % self.address.url)
        return data

    def call(
        self, method: str, path: str, timeout: Optional[float] = None, body: Any = None, accept: Sequence[int] = (200,)
    ) -> Any:
        """The JSON of one answer (None for an empty body)."""
        data = self._body(self.open(method, path, timeout, body, accept))
        try:
            return json.loads(data) if data else None
        except (ValueError, RecursionError):
            raise ServerUnreachable(
                "%s answered %s with something that is not JSON." % (self.address.url, path.partition("?")[0]),
                "Check that it is ComfyUI's address.",
            ) from None

    def _unreachable(self, error: BaseException) -> ServerUnreachable:
        library = _third_party("requests")
        chain: List[BaseException] = []
        waiting: List[Any] = [error]
        while waiting and len(chain) < 20:
            cause = waiting.pop()
            if isinstance(cause, BaseException) and cause not in chain:
                chain.append(cause)
                waiting += [cause.__cause__, cause.__context__, getattr(cause, "reason", None), *cause.args]
        refused = any(isinstance(cause, ConnectionRefusedError) for cause in chain)
        if isinstance(error, library.exceptions.SSLError):
            why, remedy = "the TLS connection failed (%s)" % one_line(chain[-1], 200), ""
            if "CERTIFICATE" in str(error).upper():
                remedy = "Give the server a certificate that this machine trusts (REQUESTS_CA_BUNDLE names your own)."
            elif "VERSION" in str(error).upper() or "RECORD" in str(error).upper():
                remedy = "It does not seem to speak TLS there: use http:// instead."
        elif refused:
            why, remedy = "nothing listens there (connection refused)", ""
        elif isinstance(error, library.Timeout):
            why, remedy = "no answer in time", "It may be busy, or a firewall drops the connection."
        elif any(type(cause).__name__ in ("gaierror", "NameResolutionError") for cause in chain):
            why, remedy = "the host's name is not known", "Check the spelling in --server."
        elif isinstance(error, library.exceptions.ProxyError):
            why, remedy = "the proxy of the system refuses", "Set NO_PROXY for this host."
        else:
            why, remedy = "the connection broke (%s)" % type(chain[-1]).__name__, ""
        return ServerUnreachable("%s: %s." % (self.address.url, why), remedy, refused=refused)

    def system_stats(self) -> Dict[str, Any]:
        """GET /system_stats. Raises ServerAnswer for an answer that is not ComfyUI's."""
        stats = self.call("GET", "/system_stats", min(self.limits.read, 10.0))
        if not isinstance(stats, dict) or "system" not in stats:
            raise ServerAnswer("What answers at %s is not ComfyUI." % self.address.url, "Check --server.", status=200)
        return stats

    def submit(self, body: Mapping[str, Any]) -> Dict[str, Any]:
        """POST /prompt. Raises PromptRejected for ComfyUI's 400."""
        self._session.close()  # a kept-alive connection may be dead by now, and a POST must not be tried twice
        try:
            return as_dict(self.call("POST", "/prompt", self.limits.post, body))
        except ServerAnswer as error:
            if error.status == 400 and isinstance(error.body, dict):
                raise PromptRejected("ComfyUI refused the prompt: nothing was run.", answer=error.body) from None
            raise

    def queue(self) -> Dict[str, Any]:
        """GET /queue."""
        return as_dict(self.call("GET", "/queue"))

    def history_entry(self, prompt_id: str) -> Optional[Dict[str, Any]]:
        """GET /history/{prompt_id}: the entry, or None while there is none."""
        history = as_dict(self.call("GET", "/history/" + urllib.parse.quote(prompt_id, safe="", errors="replace")))
        entry = history.get(prompt_id)
        return entry if isinstance(entry, dict) else None

    def history(self, count: int) -> Dict[str, Any]:
        """GET /history: the newest ``count`` entries by prompt_id."""
        return as_dict(self.call("GET", "/history?max_items=%d" % count))

    def delete(self, prompt_id: str) -> None:
        """Takes one waiting prompt off the queue; an id that waits nowhere is no error."""
        self.call("POST", "/queue", body={"delete": [prompt_id]})

    def interrupt(self, prompt_id: Optional[str]) -> None:
        """Interrupts the prompt if it runs; None: whatever runs (before 0.3.57 an id is not read)."""
        self.call("POST", "/interrupt", body={} if prompt_id is None else {"prompt_id": prompt_id})

    def cancel_job(self, prompt_id: str) -> bool:
        """POST /api/jobs/{id}/cancel, waiting or running; False where the server has no such route."""
        if self._has_jobs is False:
            return False
        try:
            self.call("POST", "/api/jobs/%s/cancel" % urllib.parse.quote(prompt_id, safe="", errors="replace"), body={})
        except ServerAnswer as error:
            if error.status in (404, 405, 501):
                self._has_jobs = False
                return False
            raise
        self._has_jobs = True
        return True

    def object_info(self, class_type: str) -> Optional[Dict[str, Any]]:
        """GET /object_info/{class}: the class's definition, {} if the server does not have it."""
        if class_type in ("", ".", ".."):
            return {}  # as parts of a path they would name something else
        info = self.call("GET", "/object_info/" + urllib.parse.quote(class_type, safe="", errors="replace"))
        return as_dict(as_dict(info).get(class_type))

    def features(self) -> Dict[str, Any]:
        """GET /features; {} where the server has none (before 0.3.45)."""
        try:
            return as_dict(self.call("GET", "/features"))
        except ServerAnswer:
            return {}

    def upload(self, file: Any, content_type: str) -> Dict[str, Any]:
        """POST /upload/image with a multipart body as it is in ``file``."""
        response = self.open("POST", "/upload/image", self.limits.post, file, headers={"Content-Type": content_type})
        try:
            return as_dict(json.loads(self._body(response)))
        except ValueError:
            raise ServerUnreachable("ComfyUI's answer to the upload is not JSON.") from None

    def url_of(self, output: Output) -> str:
        """The URL of an output's file, for people (without credentials)."""
        return self.address.url + view_path(output)


def _keep_request(request: Any) -> Any:
    return request


def _unexpected(response: "requests.Response", text: bytes, url: str, call: str) -> RunnerError:
    status = response.status_code
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        body = one_line(text.decode(errors="replace"), 300)
    if response.headers.get("Server", "").startswith("comfyui-workflow-runner"):
        return UsageError(
            "%s is this program itself in continuous mode, not ComfyUI." % url, "Name ComfyUI's own address."
        )
    if status in (401, 403, 407):
        remedy = "Give the credentials: --server https://user:password@host, or --header 'Authorization: Bearer …'."
        return ServerAnswer("%s refuses us (HTTP %d for %s)." % (url, status, call), remedy, status=status, body=body)
    if 300 <= status < 400:
        there = one_line(response.headers.get("Location", "elsewhere"), 200)
        return ServerAnswer(
            "%s sends us on to %s (HTTP %d)." % (url, there, status), "Give --server the address that it means.",
            status=status,
        )  # fmt: skip
    if status == 413:
        remedy = "Start ComfyUI with a larger --max-upload-size."
        return ServerAnswer("ComfyUI takes no request of this size (HTTP 413 for %s)." % call, remedy, status=status)
    said = ": %s" % body if isinstance(body, str) and body and "<" not in body else ""
    remedy = "ComfyUI's own console says why." if status == 500 else ""
    return ServerAnswer("%s answered HTTP %d to %s%s." % (url, status, call, said), remedy, status=status, body=body)


def _third_party(name: str) -> Any:
    """The module ``name``, or a RunnerError that says how to install it."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RunnerError(
            "The Python package %s is missing (%s)." % (name.partition(".")[0], error),
            'Install what the runner needs: "%s" -m pip install websockets requests rich' % sys.executable,
        ) from None


async def in_thread(function: Callable[..., Result], *arguments: Any) -> Result:
    """``function(*arguments)`` in a daemon thread: unlike an executor's, it holds no exit up."""
    import asyncio
    import threading

    loop = asyncio.get_running_loop()
    future: "asyncio.Future[Result]" = loop.create_future()

    def deliver(result: Optional[Result], error: Optional[BaseException]) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result, error = None, None
        try:
            result = function(*arguments)
        except BaseException as exception:  # handed to whoever waits
            error = exception
        try:
            loop.call_soon_threadsafe(deliver, result, error)
        except RuntimeError:
            pass  # the loop is closed: nobody waits any more

    threading.Thread(target=work, daemon=True).start()
    return await future


async def end_tasks(tasks: Iterable["asyncio.Future[Any]"]) -> None:
    """Cancels tasks until they are over: before Python 3.12, wait_for() can lose a cancellation."""
    import asyncio

    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        done, left = await asyncio.wait(left, timeout=0.1)
        for task in done:
            if not task.cancelled():
                task.exception()  # looked at, so that asyncio does not complain


async def bounded(function: Callable[..., Result], *arguments: Any, seconds: float) -> Result:
    """in_thread() with an end: a server that sends a byte now and then would pass a read timeout."""
    import asyncio

    try:
        return await asyncio.wait_for(in_thread(function, *arguments), seconds)
    except asyncio.TimeoutError:
        raise ServerUnreachable("The server did not answer in %s." % duration(seconds)) from None


#: The largest WebSocket message that is taken, in bytes (SaveImageWebsocket sends whole pictures).
MAX_MESSAGE = 256 << 20


async def connect_websocket(server: Server, client_id: str) -> Any:
    """An open WebSocket whose first message, ``status``, was read; with previews' metadata asked for.

    Raises ServerUnreachable, or ServerAnswer when the handshake is answered with an HTTP status.
    """
    import asyncio
    import logging

    client = _third_party("websockets.asyncio.client")
    exceptions = _third_party("websockets.exceptions")
    logger = logging.getLogger("comfyui_workflow_runner.websocket")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    options: Dict[str, Any] = {"proxy": None} if server.address.local and _takes_proxy() else {}
    wait = server.limits.websocket
    try:
        connecting = client.connect(
            server.address.websocket + "/ws?clientId=" + urllib.parse.quote(client_id),
            additional_headers=list(server.address.headers),
            compression=None,  # previews are compressed already, and the rest is small
            max_size=MAX_MESSAGE,
            open_timeout=wait,
            close_timeout=2.0,
            ping_interval=20.0,
            ping_timeout=60.0,  # ComfyUI may load a model for long without answering
            logger=logger,
            **options,
        )
        connecting.process_redirect = _keep_request  # a redirect would carry our headers elsewhere
        socket = await connecting
        try:
            await socket.send(json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}))
            deadline = time.monotonic() + wait
            while (
                parse_message(await asyncio.wait_for(socket.recv(), max(deadline - time.monotonic(), 0.01)), 0.0).type
                != "status"
            ):
                pass
        except BaseException:
            socket.transport.abort()  # close() waits for the server, and leaks when it is cancelled meanwhile
            raise
        return socket
    except exceptions.InvalidStatus as error:
        status = error.response.status_code
        raise ServerAnswer("HTTP %d to the WebSocket handshake" % status, status=status) from None
    except (OSError, EOFError, asyncio.TimeoutError, exceptions.WebSocketException) as error:
        refused = isinstance(error, ConnectionRefusedError) or "Connect call failed" in str(error)
        raise ServerUnreachable(type(error).__name__, refused=refused) from error


def _takes_proxy() -> bool:
    version = _third_party("websockets.version").version
    return int(version.partition(".")[0]) >= 15


# ==================================================================================================
# RUNNING A PROMPT: submit, follow, survive drops, cancel; save what it made
# ==================================================================================================


def parse_version(stats: Mapping[str, Any]) -> Tuple[int, ...]:
    """ComfyUI's version in an answer of GET /system_stats; () when it does not tell (before 2024-10)."""
    found = re.match(r"v?(\d+)\.(\d+)\.(\d+)", str(as_dict(stats.get("system")).get("comfyui_version")))
    return tuple(map(int, found.groups())) if found else ()


#: From these versions on (commits 260a5ca5 and 464ba1d6) POST /prompt keeps the client's prompt_id,
#: and POST /interrupt reads one; older servers make their own, and interrupt whatever runs.
KEEPS_PROMPT_ID, TARGETED_INTERRUPT = (0, 3, 45), (0, 3, 57)


def prompt_ids_of_client(queue: Mapping[str, Any], history: Mapping[str, Any], client_id: str) -> List[str]:
    """The prompts in queue and history that ``client_id`` submitted."""
    entries = [as_list(as_dict(entry).get("prompt")) for entry in history.values()]
    items = as_list(queue.get("queue_running")) + as_list(queue.get("queue_pending")) + entries
    return [
        str(item[1])
        for item in items
        if isinstance(item, list) and len(item) > 3 and as_dict(item[3]).get("client_id") == client_id
    ]


def new_uuid() -> str:
    """A random id in the form that ComfyUI demands of a prompt_id: lowercase, with hyphens."""
    import uuid

    return str(uuid.uuid4())


class Run:
    """One prompt that a Session submits and follows. Made by Session.new_run()."""

    def __init__(self, prompt: Prompt, prompt_id: str, now: float, over: "asyncio.Event") -> None:
        self.prompt = prompt
        self.state = PromptState(prompt_id, planned=planned_nodes(prompt))
        self.over = over  #: set when state.phase.over
        self.began = now
        self.extra: Mapping[str, Any] = {}  #: more fields of POST /prompt
        self.patience: Optional[float] = None  #: seconds to try the POST for; None: limits.give_up
        self.dropped: FrozenSet[str] = frozenset()  #: outputs that the server refused
        self.preview: Optional[Preview] = None  #: the newest one
        self.received: List[Preview] = []  #: whole pictures of SaveImageWebsocket nodes
        self.posting = False  #: a POST was begun and is not answered yet
        self.repeated = False  #: it was posted twice
        self.cancelling = False
        self.heard = self.checked = now
        self.checks = 0
        self.silence_told = self.progress_told = 0.0

    @property
    def prompt_id(self) -> str:
        """The server's name for it (a server before 0.3.45 gives its own)."""
        return self.state.prompt_id


class Session:
    """One WebSocket to one server, by which any number of prompts are followed.

    ``tell(run, report)`` is called for all that happens (``run`` is None for what concerns all).
    The socket only hints; _watch() reads queue and history whenever it may have missed something.
    """

    def __init__(self, server: Server, version: Tuple[int, ...], tell: Callable[[Optional[Run], Report], None]) -> None:
        import asyncio

        self.server = server
        self.limits = server.limits
        self.client_id = new_uuid()
        self.note = ""  #: what is wrong with the connection at the moment, for the meter
        self.version = version  #: ComfyUI's
        self._tell = tell
        self._runs: Dict[str, Run] = {}
        self._socket: Any = None
        self._tasks: List["asyncio.Task[None]"] = []
        self._wake = asyncio.Event()
        self._connected_once = False
        self._deaf_since: Optional[float] = None  # the socket was opened anew and was silent since
        self._deaf_patience = self.limits.silence
        self._queue_moved = False
        self._answered = time.monotonic()  # when the server last answered
        self._failing = False  # the last read of queue and history failed
        self._lost = False  # that the connection is lost was told

    # -- beginning and end ---------------------------------------------------------------------

    async def open(self) -> None:
        """Opens the WebSocket and reads its first status. Raises ServerUnreachable if refused.

        Where a WebSocket cannot be had (a proxy without them), runs are followed without it.
        """
        import asyncio

        problem: RunnerError = ServerUnreachable("no try")
        for attempt in range(3):
            try:
                self._connected(await connect_websocket(self.server, self.client_id))
                break
            except (ServerUnreachable, ServerAnswer) as error:
                problem = error
                if isinstance(error, ServerUnreachable) and error.refused:
                    raise ServerUnreachable(
                        "%s does not answer any more." % self.server.address.url, refused=True
                    ) from None
                if isinstance(error, ServerAnswer):
                    break
                await asyncio.sleep(0.2 * 2**attempt)
        if self._socket is None:
            self._lost = True
            self._tell(None, {"event": "connection", "state": "unavailable", "reason": problem.message})
        self.begin()

    def begin(self) -> None:
        """Starts to follow; where open() was not called, the WebSocket is opened when it can be had."""
        import asyncio

        self._tasks = [asyncio.ensure_future(self._listen()), asyncio.ensure_future(self._watch())]

    @property
    def connected(self) -> bool:
        """Whether the WebSocket is open."""
        return self._socket is not None

    async def close(self) -> None:
        """Ends the tasks and closes the socket."""
        await end_tasks(self._tasks)
        if self._socket is not None:
            await self._socket.close()

    # -- submitting ------------------------------------------------------------------------------

    def new_run(self, prompt: Prompt, prompt_id: str, extra: Mapping[str, Any] = {}) -> Run:
        """A run of ``prompt`` under ``prompt_id``, a new UUID; ``extra`` are more fields of POST /prompt."""
        import asyncio

        run = Run(prompt, prompt_id, time.monotonic(), asyncio.Event())
        if self._socket is None:
            run.state = run.state._replace(gaps=1)
        run.extra = extra
        self._runs[run.prompt_id] = run
        return run

    def forget(self, run: Run) -> None:
        """Follows ``run``, which is over, no more."""
        self._runs.pop(run.prompt_id, None)

    async def execute(self, run: Run) -> None:
        """Submits ``run`` and follows it to its end, which is ``run.state``.

        Raises PromptRejected, ServerUnreachable or ServerAnswer if it could not be submitted.
        """
        answer = await self.submit(run)
        if answer is not None:
            await self._explain(run, answer)
        await self.finish(run, answer)

    async def submit(self, run: Run) -> Optional[Dict[str, Any]]:
        """Submits ``run``; the server's answer, or None when it was lost. Raises as execute() does."""
        try:
            return await self._submit(run)
        except RunnerError:
            self._change(run, run.state._replace(phase=Phase.REJECTED))
            raise

    async def finish(self, run: Run, answer: Optional[Dict[str, Any]]) -> None:
        """Follows ``run``, to which ``answer`` was given, to its end."""
        import asyncio

        over = asyncio.ensure_future(run.over.wait())
        try:
            await asyncio.wait([over, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        finally:
            over.cancel()
        for task in self._tasks:
            if task.done():
                task.result()  # it never ends but by a fault of ours, which must not pass in silence
        if answer is None and not run.cancelling:
            await self._explain_lost_answer(run)
        if run.repeated:
            await self._delete_copies(run)

    async def _submit(self, run: Run) -> Optional[Dict[str, Any]]:
        """POSTs the prompt until it is there, and once only; None when the answer was lost.

        A POST that was cut may have been taken: it is posted again (under the same prompt_id) only
        after it was absent from queue and history for ``limits.absent`` seconds.
        """
        import asyncio

        body = {**run.extra, "prompt": run.prompt, "client_id": self.client_id, "prompt_id": run.prompt_id}
        began, ambiguous = time.monotonic(), False
        patience = self.limits.give_up if run.patience is None else run.patience
        for attempt in itertools.count():
            if run.cancelling:
                break
            run.posting = True
            try:
                answer = await bounded(self.server.submit, body, seconds=self.limits.post + self.limits.connect)
                self._answered = time.monotonic()
                self._accepted(run, answer)
                return answer
            except (ServerUnreachable, ServerAnswer) as error:
                run.posting = False
                if isinstance(error, ServerAnswer) and error.status not in (500, 502, 503, 504):
                    raise
                refused = isinstance(error, ServerUnreachable) and error.refused
                ambiguous = ambiguous or not refused
                if not ambiguous and run.patience is not None:
                    raise
                if await self._is_there(run, began + patience):
                    self._accepted(run, {})
                    return None
                if isinstance(error, ServerAnswer) and error.status == 500:  # ComfyUI itself raised
                    raise
                if time.monotonic() - began > patience:
                    if not ambiguous:
                        raise
                    reason = "whether the server took it is not known (%s)" % error.message.rstrip(".")
                    self._change(run, lost(run.state, reason, time.monotonic()))
                    return None
                if not attempt:
                    message = "ComfyUI did not take the prompt: trying again. (%s)" % error.message
                    self._tell(run, {"event": "notice", "message": message})
                run.repeated = ambiguous
                await asyncio.sleep(min(0.1 * 2 ** min(attempt, 6), 5.0))
            finally:
                run.posting = False
        raise ServerUnreachable("Nothing was submitted.")

    def _accepted(self, run: Run, answer: Mapping[str, Any]) -> None:
        given = answer.get("prompt_id")
        if isinstance(given, str) and given and given != run.prompt_id:
            self._adopt(run, given)
        state = run.state
        run.dropped = dropped_outputs(answer)
        if run.dropped:
            state = state._replace(planned=planned_nodes(run.prompt, run.dropped))
        if state.phase is Phase.SUBMITTING:
            state = state._replace(phase=Phase.QUEUED)
        run.checked = run.heard = time.monotonic()
        self._change(run, state)
        self._wake.set()

    def _adopt(self, run: Run, prompt_id: str) -> None:
        self._runs.pop(run.prompt_id, None)
        run.state = run.state._replace(prompt_id=prompt_id)
        self._runs[prompt_id] = run

    async def _is_there(self, run: Run, deadline: float) -> bool:
        """Whether the server has the prompt; False only after it was absent for long enough."""
        import asyncio

        absent_since: Optional[float] = None
        while time.monotonic() < deadline:
            if run.state.phase is not Phase.SUBMITTING:
                return True  # its messages came
            try:
                place, entry = await self._look(run, await self._queue())
            except (ServerUnreachable, ServerAnswer):
                pass  # two looks that find nothing prove as much, whatever failed between them
            else:
                now = time.monotonic()
                if place.found or entry is not None:
                    self._change(run, reconcile(run.state, place, entry, run.prompt, now, self.limits.settle))
                    return True
                absent_since = now if absent_since is None else absent_since
                if now - absent_since >= self.limits.absent:
                    return False
            await asyncio.sleep(self.limits.absent / 8)
        return False

    async def _queue(self) -> Dict[str, Any]:
        return await bounded(self.server.queue, seconds=self.limits.read + self.limits.connect)

    async def _look(self, run: Run, queue: Mapping[str, Any]) -> Tuple[QueuePlace, Optional[Dict[str, Any]]]:
        """Where the prompt is, by ``queue`` and by the history, which is read after it (the other way
        a prompt could move between the two unseen)."""
        wait = self.limits.read + self.limits.connect
        if run.state.phase is Phase.SUBMITTING and self.version < KEEPS_PROMPT_ID:
            history = await bounded(self.server.history, 64, seconds=wait)
            others = [i for i in prompt_ids_of_client(queue, history, self.client_id) if i not in self._runs]
            if others:
                self._adopt(run, others[0])
        entry = await bounded(self.server.history_entry, run.prompt_id, seconds=wait)
        self._answered = time.monotonic()
        return place_in_queue(queue, run.prompt_id), entry

    async def look(self, run: Run) -> None:
        """Looks once where a prompt that waits stands, if that can be had."""
        if run.state.phase is Phase.QUEUED:
            try:
                place, entry = await self._look(run, await self._queue())
            except (ServerUnreachable, ServerAnswer):
                return
            self._change(run, reconcile(run.state, place, entry, run.prompt, time.monotonic(), self.limits.settle))

    async def _explain(self, run: Run, answer: Mapping[str, Any]) -> None:
        """Tells what the server refused of a prompt that it took."""
        if run.dropped or answer.get("node_errors"):
            message = "ComfyUI refused a part of the workflow and runs the rest; without: %s." % (
                ", ".join('"%s"' % node_title(run.prompt, node_id) for node_id in sorted(run.dropped)) or "(not told)"
            )
            self._tell(run, {"event": "notice", "message": message})
            for problem in await self.explain(answer, run.prompt):
                self._tell(run, problem_report(problem))

    async def explain(self, answer: Mapping[str, Any], prompt: Prompt) -> List[Problem]:
        """explain_answer() with what it needs of object_info, as far as the server gives it."""
        return explain_answer(answer, prompt, await self._definitions(classes_to_look_up(answer, prompt)))

    async def _definitions(self, classes: Iterable[str]) -> Dict[str, Any]:
        definitions: Dict[str, Any] = {}
        tries = 6  # in a row
        for class_type in classes:
            while class_type not in definitions and tries:
                try:
                    info = await bounded(self.server.object_info, class_type, seconds=self.limits.read)
                    definitions[class_type], tries = info, 6
                except RunnerError:
                    tries -= 1  # when they are used up, less is told
        return definitions

    async def _explain_lost_answer(self, run: Run) -> None:
        """The answer to the POST told what was dropped, and is lost: tell it from what ran."""
        targets = run.state.targets
        if targets and run.state.phase is Phase.SUCCESS:
            others = {class_of(run.prompt, node_id) for node_id in run.prompt if node_id not in targets}
            run.dropped = silently_dropped(run.prompt, targets, await self._definitions(sorted(others)))
            await self._explain(run, {})

    async def _delete_copies(self, run: Run) -> None:
        """Takes copies of a prompt that is over off the queue (it was posted twice)."""
        try:
            if place_in_queue(await bounded(self.server.queue, seconds=5.0), run.prompt_id).pending:
                await bounded(self.server.delete, run.prompt_id, seconds=5.0)
        except RunnerError:
            pass  # a copy that runs finds all in the cache

    # -- following -------------------------------------------------------------------------------

    def _change(self, run: Run, after: PromptState) -> None:
        before = run.state
        if after is before:
            return
        run.state = after
        if is_mere_progress(before, after):
            now = time.monotonic()
            if now - run.progress_told < PROGRESS_INTERVAL and not any(
                p.value == p.max for p in after.running.values()
            ):
                return
            run.progress_told = now
        for report in changes(before, after, run.prompt):
            self._tell(run, report)
        if after.phase.over:
            run.over.set()
        if after.ending is not before.ending or after.over_seen is not before.over_seen:
            self._wake.set()

    def _receive(self, frame: Union[str, bytes]) -> None:
        now = time.monotonic()
        event = parse_message(frame, now)
        if event.prompt_id is not None:
            run = self._runs.get(event.prompt_id)
            if run is not None:
                self._hear(run, event)
        elif event.type == "status":
            self._queue_moved = True
            self._wake.set()
        elif event.type != "unknown":  # it does not say whose it is: one prompt runs at a time
            for run in self._runs.values():
                if run.state.phase is Phase.RUNNING:
                    self._hear(run, event)
                elif event.type == "executing":
                    self._wake.set()

    def _hear(self, run: Run, event: Event) -> None:
        run.heard, run.checks, run.silence_told = event.at, 0, 0.0
        self._deaf_since = None
        if event.type == "preview":
            self._keep_preview(run, event.data["preview"])
        else:
            self._change(run, reduce(run.state, event))

    def _keep_preview(self, run: Run, preview: Preview) -> None:
        node_id = preview.node_id or next(iter(run.state.running), None)
        run.preview = preview._replace(node_id=node_id)
        if node_id is not None and class_of(run.prompt, node_id) == "SaveImageWebsocket":
            run.received.append(run.preview)

    def _connected(self, socket: Any) -> None:
        self._socket = socket
        self._answered = time.monotonic()
        if self._connected_once:
            self._deaf_since = self._answered
        self._connected_once = True
        self._regain()
        self._wake.set()

    def _lose(self, note: str, reason: str) -> None:
        self.note = note
        if not self._lost:
            self._lost = True
            self._tell(None, {"event": "connection", "state": "lost", "reason": reason})

    def _regain(self) -> None:
        if self._lost and self._socket is not None and not self._failing:
            self._lost, self.note = False, ""
            self._tell(None, {"event": "connection", "state": "restored"})

    async def _listen(self) -> None:
        """Reads the socket, and opens it again (after closing it: ComfyUI issue 16010) for ever."""
        import asyncio
        import random

        exceptions = _third_party("websockets.exceptions")
        attempt = 0
        while True:
            if self._socket is not None:
                reason = "closed by the server"
                try:
                    async for frame in self._socket:
                        self._receive(frame)
                except exceptions.ConnectionClosed:
                    reason = "broken off"
                await self._socket.close()
                self._socket = None
                attempt = 0
                for run in self._runs.values():
                    run.state = run.state._replace(gaps=run.state.gaps + 1)
                self._lose("connection lost, trying again", reason)
                self._wake.set()
            await asyncio.sleep(min(0.1 * 2 ** min(attempt, 7), 10.0) * random.uniform(0.5, 1.5))
            attempt += 1
            try:
                self._connected(await connect_websocket(self.server, self.client_id))
            except (ServerUnreachable, ServerAnswer):
                continue

    def _seconds_to_check(self, run: Run, now: float) -> float:
        connected, deaf = self._socket is not None, self._deaf_since is not None
        view = NextCheck(now, run.heard, run.checked, run.checks, connected, deaf, self._queue_moved, run.repeated)
        return seconds_to_check(run.state, view, self.limits)

    async def _watch(self) -> None:
        """Reads queue and history whenever seconds_to_check() says so."""
        import asyncio

        while True:
            self._wake.clear()
            now = time.monotonic()
            open_runs = [run for run in self._runs.values() if run.state.phase in (Phase.QUEUED, Phase.RUNNING)]
            waits = [(self._seconds_to_check(run, now), run) for run in open_runs]
            due = [run for wait, run in waits if wait <= 0]
            if due:
                await self._check(due)
                continue
            try:
                await asyncio.wait_for(self._wake.wait(), min((wait for wait, _ in waits), default=3600.0))
            except asyncio.TimeoutError:
                pass

    async def _check(self, runs: Sequence[Run]) -> None:
        self._queue_moved = False
        wait = self.limits.read + self.limits.connect
        queue: Optional[Dict[str, Any]] = None  # one answer serves all
        for run in runs:
            place: Optional[QueuePlace] = None
            try:
                if run.state.over_seen and not run.checks:  # history is written by now: one read will do
                    entry = await bounded(self.server.history_entry, run.prompt_id, seconds=wait)
                    self._answered = time.monotonic()
                else:
                    queue = await self._queue() if queue is None else queue
                    place, entry = await self._look(run, queue)
            except (ServerUnreachable, ServerAnswer) as error:
                self._unanswered(run, error)
            else:
                self._failing = False
                self._regain()
                now = time.monotonic()
                self._change(run, reconcile(run.state, place, entry, run.prompt, now, self.limits.settle))
                if place is not None:
                    await self._after_look(run, place, now)
            run.checked = time.monotonic()
            run.checks += 1

    def _unanswered(self, run: Run, error: RunnerError) -> None:
        now = time.monotonic()
        self._failing = True
        self._lose("the server does not answer, trying again", error.message.rstrip("."))
        if now - self._answered > self.limits.give_up:
            silent = duration(now - self._answered)
            self._change(run, lost(run.state, "%s did not answer for %s" % (self.server.address.url, silent), now))

    async def _after_look(self, run: Run, place: QueuePlace, now: float) -> None:
        """What follows from a look at the queue, besides the state."""
        if run.repeated and place.pending and (place.running or place.pending > 1 or run.state.phase.over):
            try:
                await bounded(self.server.delete, run.prompt_id, seconds=self.limits.read)
            except RunnerError:
                pass  # the next look finds it again
        quiet = now - run.heard
        if place.running and quiet >= max(self.limits.silence, 2 * run.silence_told):
            run.silence_told = quiet
            says = "the server's queue says that it is running."
            self._tell(run, {"event": "silence", "seconds": round(quiet, 1), "server_says": says})
        if place.running and self._deaf_since is not None and now - self._deaf_since > self._deaf_patience:
            self._deaf_patience = min(self._deaf_patience * 2, 600.0)
            if self._socket is not None:
                await self._socket.close()  # _listen() opens it anew

    # -- cancelling ------------------------------------------------------------------------------

    async def cancel(self, run: Run) -> None:
        """Takes our prompt off the queue or interrupts it, and nobody else's.

        Comes back when the server has confirmed it (``run.state.phase.over``), or after
        ``limits.cancel`` seconds. Races are settled by looking again: a prompt that begins while it
        is deleted is found running at the next look.
        """
        import asyncio

        run.cancelling = True
        deadline = time.monotonic() + self.limits.cancel
        asked: Dict[bool, float] = {}  # running or not -> when we asked
        absent_since: Optional[float] = None
        while not run.state.phase.over and time.monotonic() < deadline:
            now = time.monotonic()
            try:
                queue = await asyncio.wait_for(self._queue(), max(deadline - now, 0.1))
                place, entry = await asyncio.wait_for(self._look(run, queue), max(deadline - now, 0.1))
                now = time.monotonic()
                self._change(run, reconcile(run.state, place, entry, run.prompt, now, 1.0))
                running = bool(place.running)
                if place.found:
                    absent_since = None
                    if now - asked.get(running, 0.0) >= 1.0:
                        asked[running] = now
                        await bounded(self._ask_to_cancel, run.prompt_id, running, seconds=max(deadline - now, 0.1))
                elif entry is None and not run.posting:
                    absent_since = now if absent_since is None else absent_since
                    if False in asked and run.state.phase is Phase.QUEUED:
                        self._change(run, run.state._replace(phase=Phase.DELETED, ended_at=now))
                    elif run.state.phase is Phase.SUBMITTING and now - absent_since >= self.limits.absent:
                        self._change(run, run.state._replace(phase=Phase.REJECTED, ended_at=now))
            except (ServerUnreachable, ServerAnswer, asyncio.TimeoutError):
                pass
            try:
                await asyncio.wait_for(run.over.wait(), 0.15)
            except asyncio.TimeoutError:
                pass

    def _ask_to_cancel(self, prompt_id: str, running: bool) -> None:
        if self.server.cancel_job(prompt_id):
            return
        if not running:
            self.server.delete(prompt_id)
        elif self.version >= TARGETED_INTERRUPT:
            self.server.interrupt(prompt_id)
        elif place_in_queue(self.server.queue(), prompt_id).running:  # it interrupts whatever runs
            self.server.interrupt(None)


def problem_report(problem: Problem) -> Report:
    """The report of a problem."""
    return {"event": "problem", **problem._asdict(), "hints": list(problem.hints)}


class Saved(NamedTuple):
    """A file that was written."""

    path: str
    bytes: int


def reserve(folder: str, parts: Sequence[str], overwrite: bool) -> str:
    """The path below ``folder`` for ``parts``; unless ``overwrite``, a new empty file made there.

    A name that is taken gets `` (1)``. Raises SaveError if a link leads out of ``folder``.
    """
    root = os.path.realpath(folder)
    target = os.path.realpath(os.path.join(root, *parts[:-1]))
    if os.path.commonpath([root, target]) != root:
        raise SaveError("%s leads out of %s." % (os.path.join(*parts), folder), "Remove the link that stands there.")
    os.makedirs(target, exist_ok=True)
    for number in range(100000):
        path = os.path.join(target, numbered_name(parts[-1], number))
        if overwrite and not os.path.isdir(path):
            return path
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            return path
        except FileExistsError:
            continue
    raise SaveError("There are too many files named %s in %s." % (parts[-1], target))


def write_file(folder: str, parts: Sequence[str], overwrite: bool, chunks: Iterable[bytes]) -> Saved:
    """Writes ``chunks`` to a temporary file and renames it to its name below ``folder``, when all are there."""
    import tempfile

    os.makedirs(folder, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".part-", dir=folder)
    count = 0
    try:
        with os.fdopen(handle, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
                count += len(chunk)
        path = reserve(folder, parts, overwrite)
        try:
            if os.name == "posix":
                mask = os.umask(0)
                os.umask(mask)
                os.chmod(temporary, 0o666 & ~mask)  # mkstemp makes files that only we can read
            os.replace(temporary, path)
        except OSError:
            if not overwrite:
                os.unlink(path)
            raise
        return Saved(path, count)
    except BaseException:
        try:
            os.unlink(temporary)
        except OSError:
            pass
        raise


def download(server: Server, output: Output, folder: str, overwrite: bool, stopped: Callable[[], bool]) -> Saved:
    """Streams an output's file to ``folder``; a connection that breaks is tried again for
    ``limits.give_up`` seconds. Raises SaveError; ``stopped()`` is asked between chunks."""
    requests = _third_party("requests")
    url = server.url_of(output)

    def chunks(response: Any) -> Iterator[bytes]:
        expected = response.headers.get("Content-Length", "")
        count = 0
        for chunk in response.iter_content(1 << 16):
            if stopped():
                raise SaveError("Stopped while %s was saved." % output.filename, "It is still at %s" % url)
            count += len(chunk)
            yield chunk
        if expected.isdigit() and "Content-Encoding" not in response.headers and count != int(expected):
            raise ServerUnreachable("%s was cut short." % output.filename)

    began, attempt = time.monotonic(), 0
    while True:
        try:
            response = server.open("GET", view_path(output))  # before a file is made: it may be left in here
            try:
                parts = safe_path_parts(output.subfolder, output.filename)
                return write_file(folder, parts, overwrite, chunks(response))
            finally:
                response.close()
        except (ServerUnreachable, requests.RequestException) as error:
            if stopped() or time.monotonic() - began > server.limits.give_up:
                raise SaveError(
                    "%s could not be fetched (%s)" % (output.filename, error), "It is at %s" % url
                ) from None
            time.sleep(min(0.1 * 2**attempt, 5.0))
            attempt += 1
        except ServerAnswer as error:
            remedy = "It is at %s" % url
            if error.status == 404:
                remedy = (
                    "The server has the result in its cache, but no longer the file: change a seed to render it again."
                )
            raise SaveError("%s could not be fetched (HTTP %d)." % (output.filename, error.status), remedy) from None
        except OSError as error:
            reason = "%s could not be saved in %s: %s." % (output.filename, folder, error.strerror or error)
            raise SaveError(reason, "Choose another folder with -o; the file is at %s" % url) from None


def save_output(server: Server, output: Output, folder: str, overwrite: bool, stopped: Callable[[], bool]) -> Saved:
    """Saves one output, a file or a text, below ``folder``. Raises SaveError."""
    if output.text is None:
        return download(server, output, folder, overwrite, stopped)
    return save_bytes(output.text.encode(errors="replace"), output.title + ".txt", folder, overwrite)


def save_bytes(data: bytes, name: str, folder: str, overwrite: bool) -> Saved:
    """Saves ``data`` as ``name`` below ``folder``. Raises SaveError."""
    try:
        return write_file(folder, safe_path_parts("", name.replace("/", "_").replace("\\", "_")), overwrite, [data])
    except OSError as error:
        raise SaveError(
            "%s could not be saved in %s: %s." % (name, folder, error.strerror or error),
            "Choose another folder with -o.",
        ) from None


def save_jobs(
    server: Server, run: Run, outputs: Sequence[Output], folder: str, overwrite: bool, stopped: Callable[[], bool]
) -> List[Tuple[str, Callable[[], Saved]]]:
    """What to call for each thing that ``run`` made, with its title; each call raises SaveError."""
    jobs: List[Tuple[str, Callable[[], Saved]]] = []
    for output in outputs:
        jobs.append((output.title, functools.partial(save_output, server, output, folder, overwrite, stopped)))
    for number, preview in enumerate(run.received, 1):
        title = node_title(run.prompt, preview.node_id or "")
        name = "%s_%05d.%s" % (title, number, preview.mime.rpartition("/")[2])
        jobs.append((title, functools.partial(save_bytes, preview.image, name, folder, overwrite)))
    return jobs


# ==================================================================================================
# TERMINAL: who prints what. Every text passes clean() and hide_secrets() on its way out.
# ==================================================================================================


class Printer:
    """Plain lines, for pipes, logs and terminals without rich; the base of the other printers."""

    #: Seconds between two lines of progress.
    interval = 2.0

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self.out, self.err = out, err
        self.secrets: Tuple[str, ...] = ()
        self.prefix = ""  #: what each line begins with
        self._last_progress = 0.0

    def report(self, report: Report) -> None:
        """Prints what a person should read of ``report``."""
        if report["event"] == "progress":
            now = time.monotonic()
            if now - self._last_progress >= self.interval:
                self._last_progress = now
                fraction = 100 * report["value"] / report["max"]
                numbers = (
                    report["title"],
                    report["value"],
                    report["max"],
                    fraction,
                    report["nodes_done"],
                    report["nodes_total"],
                )
                self.lines([("dim", "%s: %g/%g (%d%%), %d/%d nodes" % numbers)])
            return
        self.lines(describe(report), error=report["event"] == "error")

    def lines(self, lines: Sequence[Line], error: bool = False) -> None:
        """Prints lines to the output, or to the error stream."""
        stream = self.err if error else self.out
        self.write(stream, "".join(self.prefix + self.safe(text) + "\n" for _, text in lines))

    def safe(self, text: str) -> str:
        """``text`` without control characters and secrets."""
        return hide_secrets(clean(text), self.secrets)

    def write(self, stream: TextIO, text: str) -> None:
        """Writes and flushes; a stream that nobody reads any more does not end the run."""
        try:
            stream.write(text)
            stream.flush()
        except UnicodeEncodeError:
            encoding = getattr(stream, "encoding", None) or "ascii"
            self.write(stream, text.encode(encoding, "replace").decode(encoding))
        except (OSError, ValueError):
            pass

    def question(self, text: str) -> None:
        """Prints a question; the cursor stays behind it."""
        self.write(self.out, text)

    def begin(self, run: Run, session: Session) -> None:
        """A run begins: printers that draw keep it to draw from."""

    def draw(self) -> None:
        """Draws the moving part anew, where there is one."""

    def close(self) -> None:
        """Leaves the terminal as it was."""


class QuietPrinter(Printer):
    """Only what was made, one path or URL (or text) a line; errors go to the error stream."""

    def report(self, report: Report) -> None:
        event = report["event"]
        if event == "saved":
            self.lines([("", report["path"])])
        elif event == "listening":
            self.lines([("", report["url"])])
        elif event == "output" and not report["will_be_saved"]:
            self.lines([("", report["url"] if report["text"] is None else report["text"])])
        elif event in ("error", "problem", "failure", "not_saved", "notice") or (
            event == "end" and report["exit_status"]
        ):
            self.lines(describe(report), error=True)

    def question(self, text: str) -> None:
        self.write(self.err, text)


class JsonPrinter(Printer):
    """One JSON object a line on the output, nothing else there; errors in words on the error stream."""

    def report(self, report: Report) -> None:
        line = {"event": report["event"], "time": round(time.time(), 3), **report}
        self.write(self.out, json.dumps(self._safe(plain_json(line)), allow_nan=False) + "\n")
        if report["event"] == "error":
            self.lines(describe(report), error=True)

    def _safe(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {hide_secrets(key, self.secrets): self._safe(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._safe(item) for item in value]
        return hide_secrets(value, self.secrets) if isinstance(value, str) else value

    def question(self, text: str) -> None:
        self.write(self.err, text)


class LivePrinter(Printer):
    """A terminal: lines scroll above bars that move. Needs rich."""

    _STYLES: Mapping[str, str] = {
        "ok": "green",
        "bad": "bold red",
        "warn": "yellow",
        "dim": "dim",
        "bold": "bold",
        "": "",
    }

    def __init__(self, out: TextIO, err: TextIO) -> None:
        super().__init__(out, err)
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        self._text = Text
        self._console = Console(file=out, highlight=False, markup=False, emoji=False)
        self._ascii = not str(self._console.encoding).lower().replace("-", "").startswith("utf")
        self._live: Any = Live(
            console=self._console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        self._run: Optional[Run] = None
        self._session: Optional[Session] = None

    def lines(self, lines: Sequence[Line], error: bool = False) -> None:
        for style, text in lines:
            line = self._text(self.prefix + self.safe(text), style=self._STYLES[style])
            try:
                self._console.print(line, soft_wrap="://" in text or os.sep in text)  # to be copied in one piece
            except (OSError, ValueError):
                pass

    def report(self, report: Report) -> None:
        if report["event"] == "end":
            self.close()
        if report["event"] != "progress" or self._run is None:
            super().report(report)

    def begin(self, run: Run, session: Session) -> None:
        self._run, self._session = run, session
        self._live.start()

    def draw(self) -> None:
        run, session = self._run, self._session
        if run is None or session is None or not self._live.is_started:
            return
        rows = meter(
            run.state, run.prompt, time.monotonic(), run.began, self._console.width - 1, self._ascii, session.note
        )
        text = self._text(no_wrap=True, overflow="crop", end="")
        for number, row in enumerate(rows):
            text.append("\n" if number else "")
            for style, piece in row:
                text.append(self.safe(piece), style=self._STYLES[style])
        try:
            self._live.update(text, refresh=True)
        except (OSError, ValueError):
            pass

    def close(self) -> None:
        self._run = None
        try:
            self._live.stop()
        except (OSError, ValueError):
            pass


def make_printer(kind: str, out: TextIO, err: TextIO) -> Printer:
    """The printer for ``kind`` ("human", "quiet" or "json"): live in a terminal where rich is there."""
    if kind == "json":
        return JsonPrinter(out, err)
    if kind == "quiet":
        return QuietPrinter(out, err)
    if out.isatty() and os.environ.get("TERM") != "dumb":
        try:
            return LivePrinter(out, err)
        except ImportError:
            pass
    return Printer(out, err)


def is_yes(answer: str) -> Optional[bool]:
    """What an answer to the question means; None: ask again. An empty one means no."""
    return {"y": True, "yes": True, "n": False, "no": False, "": False}.get(answer.strip().lower())


# ==================================================================================================
# MIDDLEWARE: continuous mode. Rules and routes first; the service; a thin http.server at the end.
# ==================================================================================================

#: Content types that a browser may open in place; all else is downloaded (HTML and SVG run scripts).
_OPENS = re.compile(r"^(image/(png|jpeg|webp|gif|avif|bmp)|video/[\w.+-]+|audio/[\w.+-]+|text/plain)\b")


def security_headers(page: bytes) -> Tuple[Tuple[str, str], ...]:
    """Sent with everything: nothing is guessed, framed, or fetched from elsewhere, and no script runs
    but those of ``page``, which are known by their hashes."""
    import base64
    import hashlib

    scripts = re.findall(rb"<script>(.*?)</script>", page, re.S)
    hashes = ["'sha256-%s'" % base64.b64encode(hashlib.sha256(script).digest()).decode() for script in scripts]
    return (
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "same-origin"),
        ("Cache-Control", "no-store"),
        ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; script-src %s; "
         "img-src 'self' blob: data:; media-src 'self' blob:; connect-src 'self'; form-action 'none'; base-uri 'none'; "
         "frame-ancestors 'none'" % (" ".join(hashes) or "'none'")),
    )  # fmt: skip


_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+").fullmatch

JSON_LIMIT = 16 << 20  #: bytes of a JSON body
RUNS_KEPT = 200  #: runs that are told by GET /runs
STREAM_QUEUE = 2000  #: events that wait for a slow reader before it is dropped
EVENT_BYTES_PER_SECOND = 1e6  #: of the `run` events of one run: one with thousands of nodes is told less often
COOKIE = "comfyui_workflow_runner"


class HttpError(RunnerError):
    """An answer that is no success. ``type`` names it for programs."""

    def __init__(self, status: int, type: str, message: str, details: Any = None, **headers: str) -> None:
        super().__init__(message)
        self.http_status = status
        self.type = type
        self.details = details
        self.headers = tuple((name.replace("_", "-"), value) for name, value in headers.items())


class Request(NamedTuple):
    """The head of a request; names of headers in lower case. ``path`` is without ``/api``."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]


class Response(NamedTuple):
    """An answer: a body, or ``stream``, which writes itself to the connection."""

    status: int
    body: bytes = b""
    type: str = "application/json"
    headers: Tuple[Tuple[str, str], ...] = ()
    stream: Optional[Callable[[Any], None]] = None


def json_response(status: int, body: Any, *headers: Tuple[str, str]) -> Response:
    """``body`` as JSON."""
    return Response(status, strict_json(body).encode(), headers=headers)


_STRICT = json.JSONEncoder(allow_nan=False)


def strict_json(value: Any) -> str:
    """``value`` as strict JSON; what that cannot hold is made plain first."""
    try:
        return _STRICT.encode(value)
    except (ValueError, TypeError, RecursionError):
        return _STRICT.encode(plain_json(value))


def error_response(error: BaseException) -> Response:
    """What a client is told of an error."""
    if isinstance(error, ServerAnswer):
        refused = {400: 400, 403: 400, 404: 400, 413: 413}.get(error.status, 503)
        error = HttpError(refused, "comfyui_refused" if refused < 500 else "comfyui_failed", error.message)
    elif not isinstance(error, RunnerError):
        error = HttpError(500, "internal_error", "%s: %s" % (type(error).__name__, error))
    kind = getattr(error, "type", None) or re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(error).__name__).lower()
    message = (error.message + " " + error.remedy).strip()
    body = {"error": {"type": kind, "message": message, "details": getattr(error, "details", None)}}
    headers = getattr(error, "headers", ())
    if error.http_status == 503 and not any(name == "Retry-After" for name, _ in headers):
        headers = (*headers, ("Retry-After", "5"))
    return json_response(error.http_status, body, *headers)


class Guard(NamedTuple):
    """Who may speak to the service: its own names, other origins that are allowed, the token."""

    hosts: FrozenSet[str] = frozenset(("localhost", "127.0.0.1"))
    origins: FrozenSet[str] = frozenset()
    token: Optional[str] = None

    def refusal(self, request: Request) -> Optional[HttpError]:
        """Why a request is not let in, or None.

        A foreign name in Host is DNS rebinding (an address cannot be rebound); a foreign Origin,
        Referer or Sec-Fetch-Site is another web page, which may not even start a run by an <img>.
        """
        host = request.headers.get("host", "")
        name = _host_name(host)
        if name and name not in self.hosts:
            return HttpError(
                403, "foreign_host", "This service is not called %s: --allow-host names it so." % one_line(host, 80)
            )
        ours = ("http://" + host, "https://" + host, *self.origins)
        origin = request.headers.get("origin")
        referer = request.headers.get("referer", "")
        page = request.method in ("GET", "HEAD") and request.path == "/"
        if origin is not None and origin not in ours:
            return HttpError(403, "foreign_origin", "Pages of other origins may not use this service (--allow-origin).")
        site = request.headers.get("sec-fetch-site", "none")
        if not page and origin is None and site not in ("none", "same-origin"):
            return HttpError(403, "foreign_origin", "Pages of other origins may not use this service.")
        if not page and referer and "/".join(referer.lower().split("/")[:3]) not in ours:
            return HttpError(403, "foreign_origin", "Pages of other origins may not use this service.")
        if "prefetch" in request.headers.get("sec-purpose", "") + request.headers.get("purpose", ""):
            return HttpError(403, "prefetch", "A prefetch is not answered.")
        if self.token and not page and request.path not in ("/login", "/health") and not self.knows(request):
            return HttpError(401, "unauthorized", "A token is needed.", WWW_Authenticate="Bearer")
        return None

    def knows(self, request: Request) -> bool:
        """Whether the request bears the token, or the cookie that the login gave."""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        cookie = re.search(r"(?:^|;\s*)%s=([0-9a-f]+)" % COOKIE, request.headers.get("cookie", ""))
        return (scheme.lower() == "bearer" and self.is_token(given.strip())) or bool(
            cookie and _same(cookie.group(1), self.cookie())
        )

    def is_token(self, given: str) -> bool:
        """Whether ``given`` is the token, in a time that does not tell how much of it is right."""
        return self.token is not None and _same(given, self.token)

    def cookie(self) -> str:
        """What the cookie holds: not the token itself."""
        import hashlib
        import hmac

        return hmac.new(str(self.token).encode(), COOKIE.encode(), hashlib.sha256).hexdigest()


@functools.lru_cache(64)
def _host_name(host: str) -> str:
    """The name in a Host header, in lower case; "" for an address ("?" for nothing at all)."""
    name = re.sub(r":\d+$", "", host).strip("[]").lower()
    return "" if re.match(r"^[\d.]+$|^[\da-f:.]*:[\da-f:.]*$", name) else name or "?"


def _same(first: str, second: str) -> bool:
    import hmac

    return hmac.compare_digest(first.encode(errors="replace"), second.encode(errors="replace"))


class Route(NamedTuple):
    """One row of the table of routes, which the help, the documents and OpenAPI are made from."""

    method: str
    path: str  # {name} takes one part
    handler: str  # a method of Service
    summary: str
    statuses: Tuple[int, ...]
    body: str = ""  # a schema of the request's body
    query: Tuple[str, ...] = ()
    curl: str = ""
    answer: str = ""  # a schema of a success's body, or its content types


ROUTES: Tuple[Route, ...] = (
    Route("GET", "/", "get_page", "The page; for curl this list.", (200,), answer="text/html text/plain"),
    Route("GET", "/health", "get_health", "200 while the service runs.", (200,), curl="{}/health", answer="Health"),
    Route("GET", "/status", "get_status", "ComfyUI, the workflow, the queue.", (200,), curl="{}/status",
          answer="Status"),
    Route("GET", "/workflow", "get_workflow", "The held workflow and what can be set in it.", (200,),
          curl="{}/workflow", answer="Workflow"),
    Route("PUT", "/workflow", "put_workflow", "Replaces the held workflow after checking it.", (200, 400),
          "Prompt", curl="-T workflow_api.json {}/workflow", answer="Held"),
    Route("POST", "/workflow/reset", "reset_workflow", "Takes the workflow from its file again.", (200, 400),
          curl="-X POST {}/workflow/reset", answer="Held"),
    Route("POST", "/update/prompt", "update_prompt", "Sets a text, by node, title, or positive and negative.",
          (200, 400, 409), "UpdatePrompt", curl="-d '{{\"type\": \"positive\", \"text\": \"a fox\"}}' {}/update/prompt",
          answer="Edited"),
    Route("POST", "/update/inputs", "update_inputs", "Sets inputs of a node; a \"random\" seed is drawn at each run.",
          (200, 400, 409), "UpdateInputs",
          curl="-d '{{\"node_id\": \"5\", \"inputs\": {{\"seed\": \"random\"}}}}' {}/update/inputs", answer="Edited"),
    Route("POST", "/upload/image", "upload_image", "Uploads a file to ComfyUI and sets it in a loader.",
          (200, 202, 400, 409, 413, 429, 503), "Upload", ("node_id",), "-F image=@cat.png {}/upload/image", "Uploaded"),
    Route("GET", "/queue", "start_run", "Runs the held workflow as it is now.", (202, 400, 429, 503), curl="{}/queue",
          answer="Started"),
    Route("POST", "/queue", "start_run", "The same.", (202, 400, 429, 503), "Empty", curl="-X POST {}/queue",
          answer="Started"),
    Route("POST", "/prompt", "post_prompt", "ComfyUI's own call: runs the prompt in the body.", (200, 400, 429, 503),
          "PostPrompt", curl="-d @request.json {}/prompt", answer="Prompted"),
    Route("POST", "/interrupt", "interrupt", "Stops our run, and nobody else's.", (200, 202, 400, 409), "Interrupt",
          curl="-X POST {}/interrupt", answer="Interrupted"),
    Route("GET", "/runs", "get_runs", "The last 200 runs, the newest first.", (200,), curl="{}/runs", answer="Runs"),
    Route("GET", "/runs/{prompt_id}", "get_run", "One run; ?wait=30 answers when it ends.", (200, 400, 404), "",
          ("wait",), "'{}/runs/PROMPT_ID?wait=30'", "Run"),
    Route("GET", "/events", "get_events", "Server-Sent Events of all runs, or of one.", (200,), "", ("prompt_id",),
          "-N {}/events", "text/event-stream"),
    Route("GET", "/preview", "get_preview", "The newest preview picture.", (200, 404), "", ("prompt_id",),
          "-o preview.jpg {}/preview", "image/*"),
    Route("GET", "/view", "get_view", "A file that ComfyUI made.", (200, 206, 304, 400, 404, 416, 503), "",
          ("filename", "subfolder", "type", "download"), "-OJ '{}/view?filename=ComfyUI_00001_.png'", "*/*"),
    Route("POST", "/login", "login", "Takes the token once, for the page.", (204, 400, 403), "Login"),
    Route("GET", "/openapi.json", "get_openapi", "This table as OpenAPI 3.1.", (200,), curl="{}/openapi.json",
          answer="OpenAPI"),
)  # fmt: skip


@functools.lru_cache(None)
def _fixed_routes() -> Dict[Tuple[str, str], Route]:
    return {(row.method, row.path): row for row in ROUTES if "{" not in row.path}


def find_route(method: str, path: str) -> Tuple[Route, Dict[str, str]]:
    """The route for a request and the parts of its path. Raises HttpError 404, or 405 with Allow."""
    row = _fixed_routes().get((method, path))
    if row is not None:
        return row, {}
    allowed = []
    for row in ROUTES:
        found = re.match("^%s$" % re.sub(r"\\?\{(\w+)\\?\}", r"(?P<\1>[^/]+)", re.escape(row.path)), path)
        if found:
            if row.method == method or (method == "HEAD" and row.method == "GET"):
                return row, {name: urllib.parse.unquote(value) for name, value in found.groupdict().items()}
            allowed.append(row.method)
    if not allowed:
        raise HttpError(404, "not_found", "There is no %s here; GET / lists what there is." % one_line(path, 100))
    names = ", ".join(dict.fromkeys(allowed + (["HEAD"] if "GET" in allowed else []) + ["OPTIONS"]))
    raise HttpError(405, "method_not_allowed", "%s takes %s." % (one_line(path, 100), names), Allow=names)


_TEXT: Dict[str, Any] = {"type": "string"}
_OPEN: Dict[str, Any] = {"type": "object"}
_COUNT: Dict[str, Any] = {"type": "integer", "minimum": 0}
_NUMBER: Dict[str, Any] = {"type": "number"}
_BOOLEAN: Dict[str, Any] = {"type": "boolean"}


def _object(required: Mapping[str, Any], **optional: Any) -> Dict[str, Any]:
    """The schema of an object: fields that must be there, and those that may."""
    return {"type": "object", "required": list(required), "properties": {**required, **optional}}


def _list(item: Mapping[str, Any]) -> Dict[str, Any]:
    return {"type": "array", "items": item}


def _or_null(schema: Mapping[str, Any]) -> Dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


_NODE = {"node_id": _TEXT, "title": _TEXT, "class_type": _TEXT}
_PROBLEM = _object({"type": _TEXT, "message": _TEXT, "node_id": _or_null(_TEXT), "title": _TEXT, "class_type": _TEXT,
                    "input": _TEXT, "value": {}, "hints": _list(_TEXT)})  # fmt: skip

#: The bodies of requests and answers, by the names in ROUTES.
SCHEMAS: Mapping[str, Any] = {
    "Error": _object({"error": _object({"type": _TEXT, "message": _TEXT}, details={})}),
    "Prompt": {"type": "object", "minProperties": 1,
               "additionalProperties": _object({"class_type": _TEXT, "inputs": _OPEN}, _meta={})},
    "UpdatePrompt": {**_object({"text": _TEXT}, node_id=_TEXT, title=_TEXT, type={"enum": ["positive", "negative"]}),
                     "anyOf": [{"required": [name]} for name in ("node_id", "title", "type")]},
    "UpdateInputs": {**_object({"inputs": _OPEN}, node_id=_TEXT, title=_TEXT),
                     "anyOf": [{"required": [name]} for name in ("node_id", "title")]},
    "Upload": _object({"image": {"type": "string", "format": "binary"}}, subfolder=_TEXT, type=_TEXT, overwrite=_TEXT),
    "Empty": _OPEN,
    "PostPrompt": _object({}, prompt=_OPEN, prompt_id={"type": "string", "format": "uuid"}, extra_data=_OPEN,
                          number=_NUMBER, front=_BOOLEAN),
    "Interrupt": _object({}, prompt_id=_TEXT),
    "Login": _object({"token": _TEXT}),
    "Health": _object({"status": {"const": "ok"}, "comfyui": _BOOLEAN}),
    "Status": _object({
        "version": _TEXT,
        "comfyui": _object({"url": _TEXT, "connected": _BOOLEAN, "version": _or_null(_TEXT),
                            "device": _or_null(_TEXT)}),
        "workflow": _object({"file": _TEXT, "nodes": _COUNT, "revision": _COUNT, "changed": _BOOLEAN}),
        "runs": _object({"waiting": _COUNT, "running": _or_null(_TEXT)}),
        "auto_execute_on_upload": _BOOLEAN, "token_required": _BOOLEAN}),
    "Workflow": _object({
        "file": _TEXT, "revision": _COUNT, "prompt": {"$ref": "#/components/schemas/Prompt"},
        "fields": _list(_object({
            **_NODE, "input": _TEXT, "value": {}, "min": {}, "max": {}, "step": {}, "options": {"type": "array"},
            "kind": {"enum": ["text", "upload", "seed", "int", "float", "toggle", "choice"]},
            "role": {"enum": ["", "positive", "negative"]}, "media": {"enum": ["", "image", "video", "audio", "file"]},
            "important": _BOOLEAN, "random": _BOOLEAN, "multiline": _BOOLEAN}))}),
    "Held": _object({"nodes": _COUNT, "revision": _COUNT}, checked=_BOOLEAN),
    "Edited": _object({"node_id": _TEXT, "changed": _OPEN, "checked": _BOOLEAN, "revision": _COUNT}),
    "Uploaded": _object({"name": _TEXT, "subfolder": _TEXT, "type": _TEXT, "nodes": _list(_TEXT), "revision": _COUNT},
                        message=_TEXT, prompt_id=_TEXT, ahead=_or_null(_COUNT)),
    "Started": _object({"message": {"const": "execution started"}, "prompt_id": _TEXT, "ahead": _or_null(_COUNT)}),
    "Prompted": _object({"prompt_id": _TEXT, "number": _or_null(_NUMBER), "node_errors": {}}),
    "Interrupted": _object({"prompt_id": _TEXT, "phase": _TEXT, "message": _TEXT}),
    "Runs": _object({"runs": _list({"$ref": "#/components/schemas/Run"})}),
    "Run": _object({
        "prompt_id": _TEXT, "phase": {"enum": [phase.value for phase in Phase]}, "over": _BOOLEAN,
        "ahead": _or_null(_COUNT), "nodes_done": _COUNT, "nodes_total": _COUNT, "message": _TEXT,
        "wholly_cached": _BOOLEAN, "created": _NUMBER, "seconds": _NUMBER,
        "running": _list(_object({**_NODE, "value": _or_null(_NUMBER), "max": _or_null(_NUMBER)})),
        "nodes": _list(_object({**_NODE, "seconds": _NUMBER})),
        "outputs": _list(_object({
            "node_id": _TEXT, "title": _TEXT, "kind": _TEXT, "filename": _TEXT, "subfolder": _TEXT, "type": _TEXT,
            "text": _or_null(_TEXT), "url": _or_null(_TEXT)})),
        "problems": _list(_PROBLEM),
        "failure": _or_null(_object({**_PROBLEM["properties"], "traceback": _list(_TEXT)}))}),
    "OpenAPI": _object({"openapi": _TEXT, "info": _OPEN, "paths": _OPEN}),
}  # fmt: skip

#: The parameters of queries that are no plain texts.
_PARAMETERS: Mapping[str, Any] = {"wait": {"type": "number", "minimum": 0, "maximum": 60}}


def openapi() -> Dict[str, Any]:
    """The table of routes as an OpenAPI 3.1 document."""
    paths: Dict[str, Any] = {}
    anywhere = (400, 401, 403, 404, 408, 411, 413, 431, 503)
    for row in ROUTES:
        parameters = [
            {"name": name, "in": "path", "required": True, "schema": _TEXT} for name in re.findall(r"{(\w+)}", row.path)
        ]
        parameters += [
            {"name": name, "in": "query", "required": name == "filename", "schema": _PARAMETERS.get(name, _TEXT)}
            for name in row.query
        ]
        answers: Dict[str, Any] = {
            str(status): {"$ref": "#/components/responses/Error"}
            for status in sorted({*row.statuses, *anywhere})
            if status >= 400
        }
        for status in row.statuses:
            if status < 400:
                content: Dict[str, Any] = {kind: {} for kind in row.answer.split()}
                if row.answer in SCHEMAS:
                    content = {"application/json": {"schema": {"$ref": "#/components/schemas/" + row.answer}}}
                answers[str(status)] = {"description": "as described", "content": content if status != 304 else {}}
        operation: Dict[str, Any] = {
            "summary": row.summary,
            "operationId": row.handler if row.method != "POST" or row.handler != "start_run" else "post_queue",
            "responses": answers,
        }
        if parameters:
            operation["parameters"] = parameters
        if row.body:
            media = "multipart/form-data" if row.body == "Upload" else "application/json"
            schema = {media: {"schema": {"$ref": "#/components/schemas/" + row.body}}}
            required = row.body not in ("Empty", "PostPrompt", "Interrupt")
            operation["requestBody"] = {"content": schema, "required": required}
        paths.setdefault(row.path, {})[row.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "ComfyUI Workflow Runner, continuous mode", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": dict(SCHEMAS),
            "responses": {
                "Error": {
                    "description": "an error",
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
                }
            },
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],  # asked for only where the service was started with --token
    }


def curl_lines(url: str) -> List[str]:
    """One line of curl for each route, for the console and for ``curl http://.../``."""
    lines = []
    for row in ROUTES:
        if row.curl:
            lines.append("%-5s %-18s %s" % (row.method, row.path, row.summary))
            lines.append("      curl " + row.curl.format(url))
    return lines


def parse_fields(body: bytes, required: Mapping[str, type], optional: Mapping[str, type]) -> Dict[str, Any]:
    """The fields of a JSON object. Raises HttpError 400 for what is no such object."""
    try:
        document = json.loads(body) if body.strip() else {}
    except (ValueError, RecursionError) as error:
        raise HttpError(400, "not_json", "The body is not JSON: %s." % one_line(error, 200)) from None
    if not isinstance(document, dict):
        raise HttpError(400, "not_an_object", "The body must be a JSON object.")
    for name, kind in {**required, **optional}.items():
        if name not in document and name in required:
            raise HttpError(400, "missing_field", "The field %s is missing." % name)
        if name in document and not isinstance(document[name], kind):
            words = "a text" if kind is str else "an object"
            raise HttpError(400, "wrong_type", "The field %s must be %s." % (name, words))
    return document


class Record:
    """A run as the service tells it."""

    def __init__(self, run: Run) -> None:
        import threading

        self.run = run
        self.created = time.time()
        self.problems: List[Problem] = []
        self.failure: Optional[Report] = None
        self.message = ""
        self.over = threading.Event()
        self.told_preview: Optional[Preview] = None
        self.next_event = 0.0  #: when the streams may be told of it again

    def to_json(self) -> Dict[str, Any]:
        """The run as GET /runs/{prompt_id} answers it."""
        run, state = self.run, self.run.state
        named = {i: describe_nodes(run.prompt, [i])[0] for i in [*state.running, *state.finished]}
        return {
            "prompt_id": run.prompt_id, "phase": state.phase.value, "over": self.over.is_set(), "ahead": state.ahead,
            **nodes_done(state), "message": self.message, "wholly_cached": wholly_cached(state),
            "created": round(self.created, 3), "seconds": round(run_seconds(state, time.monotonic()), 3),
            "running": [{**named[i], "value": p.value, "max": p.max} for i, p in state.running.items()],
            "nodes": [{**named[i], "seconds": round(took, 3)} for i, took in state.finished.items()],
            "outputs": [
                {**output._asdict(), "url": view_path(output)[1:] if output.text is None else None}
                for output in collect_outputs(state.outputs, run.prompt)
            ],
            "problems": [{**problem._asdict(), "hints": list(problem.hints)} for problem in self.problems],
            "failure": self.failure,
        }  # fmt: skip


class Stream:
    """One reader of the events: a queue of what it has not been sent yet."""

    def __init__(self, prompt_id: Optional[str]) -> None:
        import queue

        self.prompt_id = prompt_id
        self.waiting: "queue.Queue[Optional[bytes]]" = queue.Queue(STREAM_QUEUE)
        self.dropped = False

    def put(self, data: Optional[bytes]) -> None:
        """Hands it an event (None: the end); a reader that is too slow is dropped."""
        import queue

        try:
            self.waiting.put_nowait(data)
        except queue.Full:
            self.dropped = True


def sse(event: str, data: Any) -> bytes:
    """A Server-Sent Event."""
    return ("event: %s\ndata: %s\n\n" % (event, strict_json(data))).encode()


class ServiceOptions(NamedTuple):
    """What the service is told."""

    reload: Callable[[], Prompt]  # reads the workflow's file again
    guard: Guard = Guard()
    auto_execute: bool = False
    max_queue: int = 16
    output: Optional[str] = None  # the folder that outputs are saved in
    overwrite: bool = False
    timeout: Optional[float] = None  # seconds after which a run is cancelled


class Service:
    """Continuous mode: the held workflow, the runs, the routes.

    The routes are called in the threads of the http.server; the runs live in the asyncio loop.
    ``_lock`` guards what both touch.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        prompt: Prompt,
        path: str,
        options: "ServiceOptions",
        say: Callable[[Optional[str], Report], None],
    ) -> None:
        import asyncio
        import threading

        self.server = servers[0]
        self._servers = servers  # where ComfyUI may be; the first one that answers is kept
        self.options = options
        self._path = path
        self._say = say
        self._lock = threading.RLock()
        self._prompt, self._from_file, self._revision = prompt, prompt, 1
        self._random: Set[InputRef] = set()
        self._object_info: Dict[str, Any] = {}
        self._records: Dict[str, Record] = {}
        self._dirty: Set[str] = set()
        self._streams: List[Stream] = []
        self._stats: Dict[str, Any] = {}
        self._connected = False
        self._features: Dict[str, Any] = {}
        self._closing = False
        self._tasks: Set["asyncio.Future[None]"] = set()
        self._loop = asyncio.get_event_loop()
        self.session = Session(self.server, (), self.tell)
        self._failures = 0  # of GET /system_stats, in a row
        self.page = b""

    # -- in the loop -----------------------------------------------------------------------------

    async def follow(self) -> None:
        """Keeps in touch with ComfyUI and tells the streams what changes, until it is cancelled."""
        import asyncio

        self.session.begin()
        touched = -60.0
        while True:
            now = time.monotonic()
            steady = self._connected and self.session.connected
            if now - touched >= (15.0 if steady else 2.0):
                await self._touch()
                touched = time.monotonic()
            self._tell_changes()
            await asyncio.sleep(0.1)

    async def _touch(self) -> None:
        was = self._connected
        for server in self._servers:
            try:
                stats = await bounded(server.system_stats, seconds=server.limits.connect + 10.0)
                if not was:
                    self._features = as_dict(await bounded(server.features, seconds=server.limits.read))
            except (ServerUnreachable, ServerAnswer) as error:
                self._failures += 1
                refused = isinstance(error, ServerUnreachable) and error.refused
                if self._connected and (refused or self._failures > 1):  # once is an accident
                    self._connected = False
                    self._notice("ComfyUI does not answer (%s) Trying again." % error.message)
                continue
            self.server = self.session.server = server
            self._servers, self._connected, self._failures = (server,), True, 0
            self._stats, self.session.version = stats, parse_version(stats)
            break
        if self._connected != was:
            if self._connected:
                self._object_info = {}  # it may have other nodes and files now
                self._notice("ComfyUI is there: %s." % self.server.address.url)
                await in_thread(self._learn, self._prompt)
                self._publish(None, sse("workflow", {"revision": self._revision}))  # more is known of it now
            self._publish(None, sse("status", self.status()))

    def _tell_changes(self) -> None:
        with self._lock:
            dirty, self._dirty = self._dirty, set()
        for prompt_id in dirty:
            record = self._records.get(prompt_id)
            if record is None:
                continue
            if time.monotonic() < record.next_event and not record.over.is_set():
                self._dirty.add(prompt_id)
                continue
            data = sse("run", record.to_json())
            record.next_event = time.monotonic() + len(data) / EVENT_BYTES_PER_SECOND
            self._publish(prompt_id, data)
            if record.run.preview is not record.told_preview:
                record.told_preview = record.run.preview
                self._publish(prompt_id, sse("preview", {"prompt_id": prompt_id}))

    def tell(self, run: Optional[Run], report: Report) -> None:
        """What the session says: to the console, the record of the run, and the streams."""
        prompt_id = run.prompt_id if run is not None else None
        self._say(prompt_id, report)
        if run is not None:
            self._dirty.add(run.prompt_id)
        self._publish(prompt_id, sse("report", {"prompt_id": prompt_id, "time": round(time.time(), 3), **report}))

    def _notice(self, message: str) -> None:
        self._say(None, {"event": "notice", "message": message})

    def _publish(self, prompt_id: Optional[str], data: bytes) -> None:
        with self._lock:
            for stream in list(self._streams):
                if prompt_id is None or stream.prompt_id in (None, prompt_id):
                    stream.put(data)
                if stream.dropped:
                    self._streams.remove(stream)

    async def launch(self, prompt: Prompt, extra: Mapping[str, Any]) -> Tuple[Record, Dict[str, Any]]:
        """Submits a run and follows it; comes back when ComfyUI has it. Raises what submit() raises."""
        import asyncio

        run = self.session.new_run(prompt, str(extra.get("prompt_id") or new_uuid()), extra)
        run.patience = 5.0
        record = Record(run)
        given = run.prompt_id
        with self._lock:
            waiting = self._waiting()
            if waiting >= self.options.max_queue:
                self.session.forget(run)
                message = "%s of ours wait already (--max-queue)." % plural(waiting, "run")
                raise HttpError(429, "queue_full", message, Retry_After="10")
            self._records[given] = record
            ended = [i for i, other in self._records.items() if other.over.is_set()]
            for old in ended[: max(len(self._records) - RUNS_KEPT, 0)]:
                del self._records[old]
        try:
            answer = await self.session.submit(run)
            if run.prompt_id != given:  # an older server gives its own
                with self._lock:
                    self._records[run.prompt_id] = self._records.pop(given)
            await self.session.look(run)
        except BaseException as error:
            if isinstance(error, PromptRejected):
                record.problems = await self.session.explain(error.answer, prompt)
            record.message = error.message if isinstance(error, RunnerError) else type(error).__name__
            self._ended(record)
            raise
        task = asyncio.ensure_future(self._finish(record, answer))
        self._tasks.add(task)  # else it may be collected in the middle
        task.add_done_callback(self._tasks.discard)
        return record, answer or {"prompt_id": run.prompt_id, "number": None, "node_errors": {}}

    async def _finish(self, record: Record, answer: Optional[Dict[str, Any]]) -> None:
        import asyncio

        run, stopped = record.run, None
        try:
            if answer is not None:
                record.problems = await self.session.explain(answer, run.prompt)
            try:
                await asyncio.wait_for(self.session.finish(run, answer), self.options.timeout)
            except asyncio.TimeoutError:
                stopped = "the timeout"
                await self.session.cancel(run)
                await self.session.finish(run, answer)
        except Exception as error:  # a fault of ours must not leave a run that never ends
            self._notice("The runner failed: %s: %s" % (type(error).__name__, error))
            run.state = lost(run.state, "the runner failed (%s)" % type(error).__name__, time.monotonic())
        state = run.state
        if state.phase is Phase.ERROR and state.failure:
            problem = explain_failure(state.failure, run.prompt)
            record.failure = {**problem_report(problem), "traceback": traceback_lines(state.failure, None)}
        status = exit_status_of(state, bool(run.dropped))
        if run.cancelling and not stopped:
            stopped = "the end of the service" if self._closing else "POST /interrupt"
        end = end_report(state, status, time.monotonic(), run.prompt, stopped, len(run.received))
        record.message = end["message"]
        if record.failure:
            self.tell(run, {**record.failure, "event": "failure", "traceback": traceback_lines(state.failure)})
        if self.options.output is not None:
            await self._save(run, self.options.output)
        self.tell(run, end)
        self._ended(record)

    async def _save(self, run: Run, folder: str) -> None:
        outputs = collect_outputs(run.state.outputs, run.prompt)
        for title, save in save_jobs(self.server, run, outputs, folder, self.options.overwrite, lambda: self._closing):
            try:
                saved = await in_thread(save)
            except SaveError as error:
                self.tell(run, {"event": "not_saved", "message": error.message, "remedy": error.remedy})
            else:
                self.tell(run, {"event": "saved", "title": title, "path": saved.path, "bytes": saved.bytes})

    def _ended(self, record: Record) -> None:
        record.run.received.clear()  # 200 runs are kept: their pictures would fill the memory
        record.over.set()
        self.session.forget(record.run)
        self._dirty.add(record.run.prompt_id)

    async def stop(self) -> None:
        """Cancels our runs, tells the streams, closes the session."""
        import asyncio

        self._closing = True
        runs = [record.run for record in self._records.values() if not record.over.is_set()]
        if runs:
            self._notice("Stopping: cancelling %s of ours." % plural(len(runs), "run"))
        await asyncio.gather(*(self.session.cancel(run) for run in runs))
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2.0)
        self._tell_changes()
        with self._lock:
            for stream in self._streams:
                stream.put(sse("end", {}))
                stream.put(None)
        await self.session.close()

    # -- in the threads: helpers -------------------------------------------------------------------

    def _in_loop(self, work: Any, seconds: float) -> Any:
        import asyncio
        import concurrent.futures

        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(seconds)
        except concurrent.futures.TimeoutError:
            raise ServerUnreachable("ComfyUI did not answer in time.") from None

    def _learn(self, prompt: Mapping[str, Any], anew: Iterable[str] = ()) -> Dict[str, Any]:
        """object_info of the prompt's classes, as far as it is known or can be had now; of the nodes
        ``anew`` it is read again, as lists of files grow."""
        again = {class_of(prompt, node_id) for node_id in anew}
        for class_type in sorted({class_of(prompt, node_id) for node_id in prompt}):
            if (class_type in again or class_type not in self._object_info) and self._connected:
                try:
                    info = self.server.object_info(class_type)
                except (ServerUnreachable, ServerAnswer):
                    break
                if info is not None:
                    self._object_info[class_type] = info
        return self._object_info

    def _hold(self, prompt: Prompt, random_inputs: Set[InputRef]) -> int:
        with self._lock:
            self._prompt, self._random = prompt, {ref for ref in random_inputs if ref.node_id in prompt}
            self._revision += 1
        self._publish(None, sse("workflow", {"revision": self._revision}))
        return self._revision

    def _edit(self, node_id: str, inputs: Mapping[str, Any]) -> Tuple[bool, int]:
        """Sets inputs of the held workflow. A value that is not in a list is looked up once more, as
        lists of files grow. The look-ups hold no lock; if another edit comes first, ours is made anew."""
        anew: Tuple[str, ...] = ()
        while True:
            prompt, drawn, fixed = self._prompt, set(self._random), dict(inputs)
            if node_id not in prompt:
                raise EditError("no_such_node", "The workflow has no node %s any more." % one_line(node_id, 40))
            info = self._learn(prompt, anew)
            for name, value in inputs.items():
                spec, known = input_spec(info, class_of(prompt, node_id), name), prompt[node_id]["inputs"]
                drawn.discard(InputRef(node_id, name))
                if value == "random" and is_seed(name, spec) and name in known and not is_link(known[name]):
                    drawn.add(InputRef(node_id, name))
                    fixed[name] = known[name]
            try:
                changed, checked = set_inputs(prompt, node_id, fixed, info)
            except EditError as error:
                if error.type != "value_not_in_list" or anew:
                    raise
                anew = (node_id,)
                continue
            with self._lock:
                if self._prompt is prompt:
                    return checked, self._hold(changed, drawn)

    def _ready(self) -> None:
        if self._closing or not self._connected:
            raise HttpError(
                503, "comfyui_unreachable", "ComfyUI at %s does not answer." % self.server.address.url, Retry_After="5"
            )

    def _start(self, prompt: Prompt, extra: Mapping[str, Any]) -> Tuple[Record, Dict[str, Any]]:
        self._ready()
        limits = self.server.limits
        record, answer = self._in_loop(self.launch(prompt, extra), limits.post + limits.give_up + 10.0)
        return record, answer

    def _held(self) -> Prompt:
        """The held workflow for a run. Seeds that are drawn are kept in it, for who likes the picture."""
        import random

        with self._lock:
            if self._random:
                self._hold(draw_seeds(self._prompt, self._random, random.random, self._object_info), self._random)
            return self._prompt

    def _run_held(self) -> Response:
        prompt = self._held()
        try:
            record, _ = self._start(prompt, {})
        except PromptRejected as error:
            record_ = next((r for r in reversed(list(self._records.values())) if r.run.prompt is prompt), None)
            problems = [{**p._asdict(), "hints": list(p.hints)} for p in record_.problems] if record_ else []
            raise HttpError(
                400, "prompt_rejected", error.message, {"problems": problems, "answer": error.answer}
            ) from None
        run = record.run
        return json_response(
            202, {"message": "execution started", "prompt_id": run.prompt_id, "ahead": run.state.ahead}
        )

    def _waiting(self) -> int:
        """How many runs of ours are on their way to ComfyUI or wait in its queue."""
        records = list(self._records.values())
        return sum(not r.over.is_set() and r.run.state.phase is not Phase.RUNNING for r in records)

    def status(self) -> Dict[str, Any]:
        """GET /status."""
        records = list(self._records.values())
        running = [r.run.prompt_id for r in records if r.run.state.phase is Phase.RUNNING and not r.over.is_set()]
        devices = as_list(self._stats.get("devices"))
        return {
            "version": __version__,
            "comfyui": {
                "url": self.server.address.url, "connected": self._connected,
                "version": as_dict(self._stats.get("system")).get("comfyui_version"),
                "device": as_dict(devices[0]).get("name") if devices else None,
            },
            "workflow": {"file": self._path, "nodes": len(self._prompt), "revision": self._revision,
                         "changed": self._prompt != self._from_file},
            "runs": {"waiting": self._waiting(), "running": running[0] if running else None},
            "auto_execute_on_upload": self.options.auto_execute, "token_required": bool(self.options.guard.token),
        }  # fmt: skip

    # -- the routes: one method each; ``body`` reads the request's body ------------------------------

    def get_page(self, request: Request, body: Callable[[int], bytes]) -> Response:
        """The page for browsers; the list of routes for all others."""
        if self.page and "text/html" in request.headers.get("accept", ""):
            return Response(200, self.page, "text/html; charset=utf-8")
        url = "http://" + request.headers.get("host", "127.0.0.1")
        return Response(200, ("\n".join(curl_lines(url)) + "\n").encode(), "text/plain; charset=utf-8")

    def get_health(self, request: Request, body: Callable[[int], bytes]) -> Response:
        """200 as long as this program runs."""
        return json_response(200, {"status": "ok", "comfyui": self._connected})

    def get_status(self, request: Request, body: Callable[[int], bytes]) -> Response:
        """The state of all."""
        return json_response(200, self.status())

    def get_workflow(self, request: Request, body: Callable[[int], bytes]) -> Response:
        """The held workflow, with what can be set in it."""
        info = self._learn(self._prompt)
        with self._lock:
            prompt, fields = self._prompt, form_fields(self._prompt, info, self._random)
            return json_response(
                200, {"file": self._path, "revision": self._revision, "prompt": prompt, "fields": fields}
            )

    def put_workflow(self, request: Request, body: Callable[[int], bytes]) -> Response:
        """Another workflow."""
        prompt = parse_prompt(body(JSON_LIMIT), "The body")
        info = self._learn(prompt)
        problems = check_prompt(prompt, info)
        if problems:
            info = self._learn(prompt, {problem.node_id for problem in problems})
            problems = check_prompt(prompt, info)
        if problems:
            listed = [{**problem._asdict(), "hints": list(problem.hints)} for problem in problems]
            raise HttpError(400, "invalid_workflow", "The workflow cannot run here.", {"problems": listed})
        checked = all(class_of(prompt, node_id) in info for node_id in prompt)
        return json_response(200, {"nodes": len(prompt), "revision": self._hold(prompt, set()), "checked": checked})

    def reset_workflow(self, request: Request, body: Callable[[int], bytes]) -> Response:
        """The workflow from its file, as it is there now."""
        prompt = self.options.reload()
        self._from_file = prompt
        return json_response(200, {"nodes": len(prompt), "revision": self._hold(prompt, set())})

    def update_prompt(self, request: Request, body: Callable[[int], bytes]) -> Response:
        """A text."""
        fields = parse_fields(body(JSON_LIMIT), {"text": str}, {"node_id": str, "title": str, "type": str})
        role, node = fields.get("type"), fields.get("node_id", fields.get("title"))
        if role not in (("positive", "negative") if node is None else ("positive", "negative", None)):
            raise HttpError(
                400, "missing_field", 'Name the text: "node_id", "title", or "type": "positive" or "negative".'
            )
        ref = find_text(self._prompt, node, role)
        checked, revision = self._edit(ref.node_id, {ref.input: fields["text"]})
        changed = {"node_id": ref.node_id, "changed": {ref.input: fields["text"]}}
        return json_response(200, {**changed, "checked": checked, "revision": revision})

    def update_inputs(self, request: Request, body: Callable[[int], bytes]) -> Response:
        """Inputs of one node."""
        fields = parse_fields(body(JSON_LIMIT), {"inputs": dict}, {"node_id": str, "title": str})
        name = fields.get("node_id", fields.get("title"))
        if name is None:
            raise HttpError(400, "missing_field", 'Name the node: "node_id" or "title".')
        node_id = find_node(self._prompt, name)
        checked, revision = self._edit(node_id, fields["inputs"])
        return json_response(
            200, {"node_id": node_id, "changed": fields["inputs"], "checked": checked, "revision": revision}
        )

    def upload_image(self, request: Request, body: Callable[[int], bytes]) -> Response:
        """A file for a loader: spooled first, so that a client that goes away leaves nothing behind."""
        import tempfile

        self._ready()
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise HttpError(400, "not_multipart", "Send the file as multipart/form-data: curl -F image=@cat.png")
        refs = self._loaders(request.query.get("node_id"))
        with tempfile.TemporaryFile() as file:
            limit = int(as_number(self._features.get("max_upload_size"), 100 << 20))
            body(limit, file)  # type: ignore[call-arg]
            file.seek(0)
            try:
                answer = self.server.upload(file, request.headers["content-type"])
            except ServerAnswer as error:
                if error.status not in (400, 403, 413, 500):  # 500: a form that ComfyUI cannot read
                    raise
                status = 413 if error.status == 413 else 400
                message = "ComfyUI does not take this upload (HTTP %d)." % error.status
                raise HttpError(status, "not_uploaded", message) from None
        name, folder, kind = (str(answer.get(key) or "") for key in ("name", "subfolder", "type"))
        if not name:
            raise HttpError(400, "not_uploaded", "ComfyUI took the upload, but names no file.")
        value = (folder + "/" if folder else "") + name + ("" if kind in ("input", "") else " [%s]" % kind)
        self._learn(self._prompt, [ref.node_id for ref in refs])  # its list has grown
        with self._lock:
            prompt = self._prompt
            for ref in refs:
                if ref.node_id in prompt:
                    node = prompt[ref.node_id]
                    prompt = {**prompt, ref.node_id: {**node, "inputs": {**node["inputs"], ref.input: value}}}
            revision = self._hold(prompt, self._random)
        told = {
            "name": name,
            "subfolder": folder,
            "type": kind,
            "nodes": [ref.node_id for ref in refs],
            "revision": revision,
        }
        if self.options.auto_execute:
            started = json.loads(self._run_held().body)
            return json_response(202, {**told, **started})
        return json_response(200, told)

    def _loaders(self, name: Optional[str]) -> List[InputRef]:
        loaders = list(upload_inputs(self._prompt, self._learn(self._prompt)))
        listed = describe_nodes(self._prompt, [ref.node_id for ref in loaders])
        if not loaders:
            raise EditError("no_loader", "The workflow has no node that loads a file.")
        if name == "all":
            return loaders
        if name is None and len(loaders) == 1:
            return loaders
        if name is None:
            raise EditError(
                "ambiguous_node",
                "Several nodes load a file: name one with ?node_id=, or all of them with ?node_id=all.",
                listed,
            )
        found = [ref for ref in loaders if ref.node_id == find_node(self._prompt, name)]
        if not found:
            raise EditError("no_loader", "The node %s loads no file." % json.dumps(one_line(name, 60)), listed)
        return found[:1]

    def start_run(self, request: Request, body: Callable[[int], bytes]) -> Response:
        """A run of the held workflow."""
        if request.method == "POST":
            fields = parse_fields(body(JSON_LIMIT), {}, {})
            if "clear" in fields or "delete" in fields:
                raise HttpError(400, "not_supported", "The queue is ComfyUI's: POST /interrupt stops a run of ours.")
        return self._run_held()

    def post_prompt(self, request: Request, body: Callable[[int], bytes]) -> Response:
        """ComfyUI's POST /prompt, followed like any run."""
        fields = parse_fields(body(JSON_LIMIT), {}, {"prompt": dict, "prompt_id": str, "extra_data": dict})
        prompt = fields["prompt"] if "prompt" in fields else self._held()
        extra = {name: value for name, value in fields.items() if name not in ("prompt", "client_id")}
        if not isinstance(fields.get("number", 0), (int, float)) or not isinstance(
            fields.get("partial_execution_targets", []), list
        ):  # ComfyUI answers these with a 500
            raise HttpError(400, "wrong_type", "number must be a number, partial_execution_targets a list.")
        if "prompt_id" in extra and not re.match(r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", extra["prompt_id"]):
            raise HttpError(400, "invalid_prompt_id", "The prompt_id must be a UUID in lower case.")
        if extra.get("prompt_id") in self._records:
            raise HttpError(400, "invalid_prompt_id", "This prompt_id is taken.")
        if not all(isinstance(node, dict) and isinstance(node.get("inputs"), dict) for node in prompt.values()):
            raise HttpError(400, "invalid_prompt", "Every node needs a class_type and inputs.")
        try:
            return json_response(200, self._start(prompt, extra)[1])
        except PromptRejected as error:
            return json_response(400, error.answer)

    def interrupt(self, request: Request, body: Callable[[int], bytes]) -> Response:
        """Stops the run that is named, else the one that runs, else the one that waits first."""
        wanted = parse_fields(body(JSON_LIMIT), {}, {"prompt_id": str}).get("prompt_id")
        ours = [record for record in list(self._records.values()) if not record.over.is_set()]
        ours.sort(key=lambda record: record.run.state.phase is not Phase.RUNNING)
        found = [record for record in ours if wanted in (None, record.run.prompt_id)]
        if not found:
            raise HttpError(
                409,
                "nothing_to_interrupt",
                "No run of ours %s." % ("has that prompt_id" if wanted else "waits or runs"),
            )
        record = found[0]
        self._in_loop(self.session.cancel(record.run), self.server.limits.cancel + 10.0)
        over = record.run.state.phase.over
        if over:
            record.over.wait(5.0)
        message = record.message if over else "requested"
        told = {"prompt_id": record.run.prompt_id, "phase": record.run.state.phase.value, "message": message}
        return json_response(200 if over else 202, told)

    def get_runs(self, request: Request, body: Callable[[int], bytes]) -> Response:
        """The runs, newest first."""
        return json_response(200, {"runs": [record.to_json() for record in reversed(list(self._records.values()))]})

    def get_run(self, request: Request, body: Callable[[int], bytes], prompt_id: str) -> Response:
        """One run."""
        record = self._records.get(prompt_id)
        if record is None:
            raise HttpError(404, "no_such_run", "No run of ours has this prompt_id (the last %d are kept)." % RUNS_KEPT)
        wait = request.query.get("wait", "0")
        if not re.match(r"^\d{1,9}(\.\d{1,9})?$", wait):
            raise HttpError(400, "wrong_type", "wait must be a number of seconds.")
        record.over.wait(min(float(wait), 60.0))
        return json_response(200, record.to_json())

    def get_events(self, request: Request, body: Callable[[int], bytes]) -> Response:
        """All that happens, as it happens."""
        import queue

        stream = Stream(request.query.get("prompt_id"))

        def write(connection: Any) -> None:
            with self._lock:
                runs = [
                    r.to_json()
                    for r in reversed(list(self._records.values()))
                    if stream.prompt_id in (None, r.run.prompt_id)
                ]
                stream.put(sse("state", {"status": self.status(), "runs": runs}))
                self._streams.append(stream)
            try:
                while not stream.dropped:
                    try:
                        data = stream.waiting.get(timeout=15.0)
                    except queue.Empty:
                        data = b": nothing new\n\n"
                    pieces = [data]
                    while not stream.waiting.empty() and len(pieces) < 500:
                        pieces.append(stream.waiting.get_nowait())
                    connection.write(b"".join(piece for piece in pieces if piece is not None))
                    if None in pieces:
                        return
            finally:
                with self._lock:
                    if stream in self._streams:
                        self._streams.remove(stream)

        return Response(200, type="text/event-stream", stream=write)

    def get_preview(self, request: Request, body: Callable[[int], bytes]) -> Response:
        """The newest preview picture, of one run or of any."""
        wanted = request.query.get("prompt_id")
        for record in reversed(list(self._records.values())):
            preview = record.run.preview
            if preview is not None and wanted in (None, record.run.prompt_id) and _OPENS.match(preview.mime):
                return Response(200, preview.image, preview.mime)
        raise HttpError(404, "no_preview", "There is no preview (ComfyUI sends them with --preview-method auto).")

    def get_view(self, request: Request, body: Callable[[int], bytes]) -> Response:
        """A file of ComfyUI's, streamed."""
        query = {
            name: request.query[name]
            for name in ("filename", "subfolder", "type", "preview", "channel")
            if name in request.query
        }
        sent = {
            name.title(): request.headers[name]
            for name in ("range", "if-range", "if-none-match")
            if name in request.headers
        }
        sent["Accept-Encoding"] = "identity"  # else the lengths would not fit
        if not re.match(r"^(?!/)(?!.*\.\.)[^\0]+$", query.get("filename", "")) or "\0" in query.get("subfolder", ""):
            raise HttpError(400, "wrong_filename", "filename must name a file.")
        path = "/view?" + urllib.parse.urlencode(query, errors="replace")
        try:
            response = self.server.open("GET", path, accept=(200, 206, 304), headers=sent)
        except ServerAnswer as error:
            if error.status in (400, 403, 404, 416):
                status = 400 if error.status == 403 else error.status
                raise HttpError(
                    status, "not_viewable", "ComfyUI does not give this file (HTTP %d)." % error.status
                ) from None
            raise HttpError(503, "comfyui_unreachable", error.message) from None
        kind = response.headers.get("Content-Type", "application/octet-stream")
        opens = bool(_OPENS.match(kind)) and "download" not in request.query
        name = urllib.parse.quote(query["filename"].replace("\\", "/").rpartition("/")[2], errors="replace")
        headers = [
            (k, response.headers[k])
            for k in ("Content-Length", "Content-Range", "Accept-Ranges", "ETag", "Last-Modified")
            if k in response.headers
        ]
        headers.append(("Content-Disposition", "%s; filename*=UTF-8''%s" % ("inline" if opens else "attachment", name)))

        if request.method == "HEAD":
            response.close()

        def write(connection: Any) -> None:
            try:
                for chunk in response.iter_content(1 << 16):
                    connection.write(chunk)
            finally:
                response.close()

        kind = kind if _OPENS.match(kind) else "application/octet-stream"
        return Response(response.status_code, type=kind, headers=tuple(headers), stream=write)

    def login(self, request: Request, body: Callable[[int], bytes]) -> Response:
        """The token for a cookie."""
        guard = self.options.guard
        if not guard.is_token(parse_fields(body(JSON_LIMIT), {"token": str}, {})["token"]):
            raise HttpError(403, "wrong_token", "This is not the token.")
        cookie = "%s=%s; HttpOnly; SameSite=Strict; Path=/; Max-Age=31536000" % (COOKIE, guard.cookie())
        return Response(204, headers=(("Set-Cookie", cookie),))

    def get_openapi(self, request: Request, body: Callable[[int], bytes]) -> Response:
        """The table of routes."""
        return json_response(200, openapi())


def make_http_server(service: Service, host: str, port: int) -> Any:
    """The listening http.server for ``service``; its serve_forever() runs in a thread of its own.

    Raises OSError when the port is taken.
    """
    import http.server
    import socket
    import socketserver
    import threading

    always = (("Server", "comfyui-workflow-runner/" + __version__), *security_headers(service.page))
    on_every_answer = "".join("\r\n%s: %s" % pair for pair in always).encode() + b"\r\n\r\n"

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30.0  # between two pieces of a body or of an answer, and between two requests
        disable_nagle_algorithm = True
        rbufsize = 1 << 16

        def setup(self) -> None:
            super().setup()
            # the kernel's limits: with Python's own every call polls first, and 8 threads lose a third of their time
            self.connection.settimeout(None)
            limit = struct.pack("L", int(1000 * self.timeout))  # Windows: milliseconds
            if os.name == "posix":
                limit = struct.pack("ll", int(self.timeout), int(self.timeout % 1 * 1e6))
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                self.connection.setsockopt(socket.SOL_SOCKET, option, limit)

        def handle_one_request(self) -> None:
            listener: Any = self.server
            self.requestline = self.command = ""
            self.head: Dict[str, str] = {}
            self.unread, self.close_connection = 0, True
            try:
                if not self.rfile.peek(1):  # type: ignore[attr-defined]
                    return
                listener.deadlines[self.connection] = time.monotonic() + listener.head_seconds
                self._read_head()
                listener.busy.add(self.connection)
                self._answer()
            except HttpError as error:
                self.close_connection = True
                self._send(error_response(error), "")
            except OSError:
                self.close_connection = True
            finally:
                listener.deadlines.pop(self.connection, None)
                listener.busy.discard(self.connection)

        def _read_head(self) -> None:
            """Reads command, path and headers (http.server's own way takes half of the time of a short
            answer, the end of a connection for the end of the head, and a length that stands twice)."""
            size = 0
            for count in itertools.count():
                line = self.rfile.readline(65537)
                size += len(line)
                if not line.endswith(b"\n") and len(line) <= 65536:
                    late = self.connection not in self.server.deadlines  # type: ignore[attr-defined]
                    raise HttpError(408, "timeout", "The head did not come in time.") if late else ConnectionError()
                if size > 65536 or count > 101:
                    raise HttpError(431, "head_too_large", "The head is too large.")
                text = line.decode("latin-1").rstrip("\r\n")
                if not self.requestline:
                    self.requestline = text
                    words = text.split(" ")
                    if len(words) != 3 or words[2] not in ("HTTP/1.1", "HTTP/1.0"):
                        raise HttpError(400, "bad_request", "The first line is not HTTP/1.1.")
                    continue
                if not text:
                    break
                name, colon, value = text.partition(":")
                name, value = name.lower(), value.strip()
                if not colon or not _HEADER_NAME(name):
                    raise HttpError(400, "bad_request", "A line of the head is no header.")
                if name in self.head:
                    if name in ("host", "content-length", "transfer-encoding"):
                        raise HttpError(400, "bad_request", "The header %s stands twice in the head." % name)
                    value = self.head[name] + ("; " if name == "cookie" else ", ") + value
                self.head[name] = value
            self.server.deadlines.pop(self.connection, None)  # type: ignore[attr-defined]
            self.command, self.path, self.request_version = words
            wish = self.head.get("connection", "").lower()
            self.close_connection = "close" in wish or (words[2] == "HTTP/1.0" and "keep-alive" not in wish)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Requests are not logged: URLs may hold what is private."""

        def _answer(self) -> None:
            path, _, text = re.sub(r"(?i)^https?://[\w.:-]+(?=[/?]|$)", "", self.path).partition("?")
            if not path.startswith("/"):
                raise HttpError(400, "bad_request", "The path is none.")
            path = re.sub("^/api(?=/|$)", "", path) or "/"
            query = dict(urllib.parse.parse_qsl(text, True, errors="replace")) if text else {}
            request = Request(self.command, path, query, self.head)
            length = self.head.get("content-length", "0")
            self.unread = int(length) if re.match(r"^\d{1,18}$", length) else 0
            try:
                response = self._route(request, length)
            except Exception as error:
                response = error_response(error)
            self.close_connection = self.close_connection or response.status in (408, 411, 413)
            self._drain()
            origin = self.head.get("origin", "")
            self._send(response, origin if origin in service.options.guard.origins else "")
            self._linger()

        def _route(self, request: Request, length: str) -> Response:
            crowded = self.server.crowded(self.connection)  # type: ignore[attr-defined]
            if crowded and request.path != "/health":
                self.close_connection = True
                raise HttpError(503, "too_many_connections", "There are too many connections.", Retry_After="1")
            if "transfer-encoding" in request.headers:
                self.close_connection = True
                raise HttpError(411, "length_required", "Send a Content-Length, not a chunked body.")
            if not re.match(r"^\d{1,18}$", length):
                self.close_connection = True
                raise HttpError(400, "bad_request", "Content-Length must be a number.")
            if request.method == "OPTIONS":
                return self._options(request)
            refusal = service.options.guard.refusal(request)
            if refusal is not None:
                raise refusal
            row, parts = find_route(request.method, request.path)
            if request.method == "HEAD" and row.handler in ("start_run", "get_events"):
                return Response(200)  # asking does not start anything
            response: Response = getattr(service, row.handler)(request, self._read, **parts)
            return response

        def _options(self, request: Request) -> Response:
            try:
                find_route("OPTIONS", request.path)
            except HttpError as error:
                if error.http_status == 404:
                    raise
                allow = dict(error.headers)["Allow"]
                more = [
                    ("Access-Control-Allow-Methods", allow),
                    ("Access-Control-Allow-Headers", "authorization, content-type"),
                ]
                return Response(204, headers=(("Allow", allow), *more))
            raise AssertionError("no route takes OPTIONS")

        def _read(self, limit: int, file: Any = None) -> bytes:
            """The body, or (to ``file``) b""; refused before a byte of it is read when it is too large."""
            if self.unread > limit:
                raise HttpError(413, "too_large", "The body is larger than %s." % size_in_words(limit))
            if self.head.pop("expect", "").lower() == "100-continue":
                self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            pieces = []
            while self.unread:
                asked = time.monotonic()
                try:
                    piece = self.rfile.read1(min(self.unread, 1 << 18))
                except OSError:
                    piece = b""
                if not piece:
                    self.close_connection = True
                    if time.monotonic() - asked > 0.9 * self.timeout:
                        raise HttpError(408, "timeout", "The body did not come in time.")
                    raise HttpError(400, "body_cut_short", "The body ended too early.")
                self.unread -= len(piece)
                if file is None:
                    pieces.append(piece)
                else:
                    file.write(piece)
            return b"".join(pieces)

        def _drain(self) -> None:
            """Reads a small rest of the body, so that the connection can be used again; else it is closed."""
            if self.unread and ("expect" in self.head or self.unread > 1 << 16):
                self.close_connection = True
            while self.unread and not self.close_connection:
                piece = self.rfile.read1(self.unread)
                self.unread -= len(piece)
                self.close_connection = self.close_connection or not piece

        def _linger(self) -> None:
            """Before a close, takes what is still being sent: closing at once would throw our answer away."""
            if self.close_connection and self.unread:
                self.connection.shutdown(socket.SHUT_WR)
                self.connection.settimeout(1.0)
                until = time.monotonic() + 2.0
                while self.unread > 0 and time.monotonic() < until:
                    piece = self.connection.recv(1 << 16)
                    self.unread = self.unread - len(piece) if piece else 0

        def _send(self, response: Response, origin: str) -> None:
            endless = response.stream is not None and not any(name == "Content-Length" for name, _ in response.headers)
            lines = ["HTTP/1.1 %d %s" % (response.status, self.responses.get(response.status, ("",))[0])]
            lines += ["%s: %s" % pair for pair in response.headers]
            if response.status not in (204, 304):
                lines.append("Content-Type: " + response.type)
                if response.stream is None:
                    lines.append("Content-Length: %d" % len(response.body))
            if origin:
                lines += ["Access-Control-Allow-Origin: " + origin, "Vary: Origin"]
            if endless:  # an event stream: it ends with the connection
                self.close_connection = True
            if self.close_connection:
                lines.append("Connection: close")
            head = "\r\n".join(lines).encode("latin-1", "replace") + on_every_answer
            if self.command == "HEAD":
                self.wfile.write(head)
            elif response.stream is None:
                self.wfile.write(head + response.body)  # in one piece: two cost 40 ms on a kept-alive connection
            else:
                self.wfile.write(head)
                try:
                    response.stream(self.wfile)
                except Exception:  # the answer has begun: all that can be said is that it broke off
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)

    class Listener(socketserver.ThreadingMixIn, http.server.HTTPServer):
        daemon_threads = True
        allow_reuse_address = os.name == "posix"
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        request_queue_size = 128
        places, more_for_health = 64, 8
        head_seconds = 30.0

        def __init__(self) -> None:
            self.deadlines: Dict[Any, float] = {}
            self.open: Dict[Any, bool] = {}  # connection -> whether it came when all places were taken
            self.busy: Set[Any] = set()  # connections that are being answered
            super().__init__((host, port), Handler)

        def server_bind(self) -> None:
            socketserver.TCPServer.server_bind(self)  # http.server's looks our name up, which may hang
            self.server_name, self.server_port = host, self.server_address[1]

        def crowded(self, connection: Any) -> bool:
            return self.open.get(connection, False)

        def process_request(self, request: Any, client_address: Any) -> None:
            if len(self.open) >= self.places + self.more_for_health:
                self.shutdown_request(request)
                return
            self.open[request] = len(self.open) >= self.places
            super().process_request(request, client_address)

        def shutdown_request(self, request: Any) -> None:
            self.open.pop(request, None)
            super().shutdown_request(request)

        def service_actions(self) -> None:
            """Called about twice a second: cuts off those that take too long to send a head."""
            now = time.monotonic()
            for connection, deadline in list(self.deadlines.items()):
                if now > deadline:
                    self.deadlines.pop(connection, None)
                    try:
                        connection.shutdown(socket.SHUT_RD)  # the handler answers 408
                    except OSError:
                        pass

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Connections that break are no news."""

        def finish(self, seconds: float) -> None:
            """Waits until every answer that has begun is written, at most so long."""
            until = time.monotonic() + seconds
            while self.busy and time.monotonic() < until:
                time.sleep(0.02)

        def start(self) -> None:
            threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.5}, daemon=True).start()

    return Listener()


# ==================================================================================================
# COMMAND LINE: settings and their precedence, signals, the program
# ==================================================================================================


class Settings(NamedTuple):
    """Everything that a run can be told, after flags, environment and constants were weighed."""

    workflow: str
    workflow_named: bool  # by flag or environment; else it is also looked for beside this file
    mode: str
    auto_execute: bool
    servers: Tuple[Address, ...]
    demo: bool = False
    yes: bool = False
    output: Optional[str] = None
    overwrite: bool = False
    timeout: Optional[float] = None
    printer: str = "human"
    verbose: bool = False
    host: str = "127.0.0.1"  # continuous mode: where it listens
    port: int = 8189
    max_queue: int = 16
    guard: Guard = Guard()
    limits: Limits = DEFAULT_LIMITS


def make_guard(host: str, token: Optional[str], no_token: bool, hosts: Sequence[str], origins: Sequence[str]) -> Guard:
    """Who may speak to the service on ``host``. Raises UsageError for an open door without a token."""
    import socket

    local = host in ("localhost", "::1") or host.startswith("127.")
    if not local and not token and not no_token:
        raise UsageError(
            "--host %s lets other machines in, so it needs a token." % host,
            "Add --token SECRET (or COMFYUI_RUNNER_TOKEN), or --no-token if everybody there may use your GPU.",
        )
    names = {"localhost", host.lower(), *(name.lower() for name in hosts)}
    if not local:
        machine = socket.gethostname().lower()
        names |= {machine, machine + ".local", machine.partition(".")[0], machine.partition(".")[0] + ".local"}
    return Guard(frozenset(names), frozenset(origin.rstrip("/").lower() for origin in origins), token or None)


def make_settings(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """The settings: a flag, else the environment, else the constant at the top of this file.

    Raises UsageError; leaves through SystemExit for --help and --version.
    """
    parser = make_parser()
    flags, unknown = parser.parse_known_args(list(arguments))
    if unknown:
        names = [word.partition("=")[0] if word[:2] == "--" else word[:2] for word in unknown if word[0:1] == "-"]
        raise UsageError(
            "Unknown option: %s." % ", ".join(names) if names else "There is more than one workflow.", "See --help."
        )

    def weigh(flag: Any, variable: str, constant: Any) -> Any:
        return flag if flag not in (None, False) else environment.get(variable) or constant

    mode = str(weigh(flags.mode, "COMFYUI_RUN_MODE", RUN_MODE))
    if mode not in ("single_shot", "continuous"):
        raise UsageError("The mode must be single_shot or continuous.", "Set --mode, COMFYUI_RUN_MODE or RUN_MODE so.")
    auto_execute = weigh(flags.auto_execute, "COMFYUI_AUTO_EXECUTE_ON_UPLOAD", AUTO_EXECUTE_ON_UPLOAD)
    if isinstance(auto_execute, str):
        known = {
            "1": True,
            "true": True,
            "yes": True,
            "on": True,
            "0": False,
            "false": False,
            "no": False,
            "off": False,
        }
        if auto_execute.strip().lower() not in known:
            raise UsageError("COMFYUI_AUTO_EXECUTE_ON_UPLOAD must be true or false.")
        auto_execute = known[auto_execute.strip().lower()]
    timeout = weigh(flags.timeout, "COMFYUI_TIMEOUT", None)
    if timeout is not None:
        try:
            timeout = float(timeout)
        except ValueError:
            timeout = -1.0
        if not 0 < timeout < 1e8:
            raise UsageError("The timeout must be a number of seconds above 0.", "Example: --timeout 600")
    if flags.demo and flags.server:
        raise UsageError("--demo brings its own server, so --server cannot be given with it.", "Leave one of them out.")
    numbers = {"port": 8189, "max-queue": 16}
    given = {"port": weigh(flags.port, "COMFYUI_RUNNER_PORT", None), "max-queue": flags.max_queue}
    for name, text in given.items():
        if text is not None and not (re.match(r"^\d{1,5}$", str(text)) and int(text) < 65536):
            raise UsageError("--%s must be a number below 65536." % name)
        numbers[name] = int(text) if text is not None else numbers[name]
    host = flags.host or "127.0.0.1"
    token = weigh(flags.token, "COMFYUI_RUNNER_TOKEN", None)
    guard = make_guard(host, token, flags.no_token, flags.allow_host or (), flags.allow_origin or ())
    headers = list(filter(None, environment.get("COMFYUI_HEADERS", "").splitlines())) + (flags.header or [])
    url = weigh(flags.server, "COMFYUI_URL", None)
    servers = tuple(parse_address(text, headers) for text in (DEFAULT_SERVERS if url is None else [url]))
    named = weigh(flags.workflow, "COMFYUI_WORKFLOW", None)
    return Settings(
        workflow=str(named or curr_workflow), workflow_named=bool(named), mode=mode, auto_execute=bool(auto_execute),
        servers=servers, demo=flags.demo, yes=flags.yes, output=weigh(flags.output, "COMFYUI_OUTPUT", None),
        overwrite=flags.overwrite, timeout=timeout,
        printer="json" if flags.json else "quiet" if flags.quiet else "human", verbose=flags.verbose,
        host=host, port=numbers["port"], max_queue=numbers["max-queue"], guard=guard,
    )  # fmt: skip


def load_workflow(settings: Settings) -> Tuple[Prompt, str]:
    """The prompt that the settings name, and the path that it was read from. Raises WorkflowError."""
    beside = os.path.join(os.path.dirname(os.path.abspath(__file__)), settings.workflow)
    path = settings.workflow
    if not os.path.exists(path) and not settings.workflow_named and os.path.exists(beside):
        path = beside
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        folder = os.path.dirname(path) or "."
        try:
            there = sorted(name for name in os.listdir(folder) if name.lower().endswith(".json"))
        except OSError:
            there = []
        listed = ", ".join(there[:20]) + (", %d more" % (len(there) - 20) if len(there) > 20 else "")
        remedy = (
            "JSON files there: %s." % listed if there else "There are no JSON files in %s." % os.path.abspath(folder)
        )
        raise WorkflowError("There is no workflow %s." % path, remedy) from None
    except (OSError, ValueError) as error:
        raise WorkflowError("%s cannot be read: %s." % (path, getattr(error, "strerror", None) or error)) from None
    return parse_prompt(data, path), path


class Interrupts:
    """Ctrl+C and SIGTERM. The first press sets ``event``, the second leaves at once.

    While a question is asked, a press ends the question (KeyboardInterrupt) instead. A handler does
    as little as it can: it runs between any two steps of the program.
    """

    def __init__(self) -> None:
        self.signal: Optional[int] = None
        self.asking = False
        self.farewell = "Left at once."
        self._wake: Callable[[], object] = lambda: None
        self._before: Dict[int, Any] = {}

    @property
    def name(self) -> str:
        """What was pressed, for people."""
        import signal

        return "SIGTERM" if self.signal == signal.SIGTERM else "Ctrl+C"

    @property
    def exit_status(self) -> ExitStatus:
        """130 for Ctrl+C, 143 for SIGTERM."""
        return ExitStatus.TERMINATED if self.name == "SIGTERM" else ExitStatus.CANCELLED

    def install(self) -> None:
        """Takes the signals over; in a thread that cannot, they stay as they are."""
        import signal

        for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGBREAK", None)):
            try:
                if number is not None:
                    self._before[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread
                return

    def restore(self) -> None:
        """Gives the signals back."""
        import signal

        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def bind(self, loop: "asyncio.AbstractEventLoop", event: "asyncio.Event") -> None:
        """From now on a press sets ``event`` of ``loop`` (signal.signal, as Windows' loops have no
        add_signal_handler; call_soon_threadsafe wakes the loop up)."""
        self._wake = lambda: loop.call_soon_threadsafe(event.set)
        if self.signal is not None:
            event.set()

    def _handle(self, number: int, frame: object) -> None:
        if self.signal is not None:
            self.signal = number
            try:
                os.write(2, b"\x1b[?25h" if os.isatty(2) else b"")  # the live display hides the cursor
                os.write(2, ("\n%s\n" % self.farewell).encode(errors="replace"))
            finally:
                os._exit(self.exit_status)
        self.signal = number
        if self.asking:
            raise KeyboardInterrupt
        try:
            self._wake()
        except RuntimeError:
            pass  # the loop is closed: the program is at its end


class Program:
    """One call of the runner: what its steps share."""

    def __init__(self, settings: Settings, printer: Printer, interrupts: Interrupts, stdin: TextIO) -> None:
        self.settings = settings
        self.printer = printer
        self.interrupts = interrupts
        self.stdin = stdin
        self.prompt_id = new_uuid()
        self._simulator: Any = None
        self._stop: Optional["asyncio.Event"] = None

    def tell(self, run: Optional[Run], report: Report) -> None:
        """Hands a report to the printer."""
        if run is not None:
            self.prompt_id = run.prompt_id
        self.printer.report({"prompt_id": self.prompt_id, **report})

    async def main(self) -> ExitStatus:
        """Runs what the settings say. Raises RunnerError."""
        import asyncio

        self._stop = asyncio.Event()
        self.interrupts.bind(asyncio.get_running_loop(), self._stop)
        try:
            if self.settings.mode == "continuous":
                return await self._continuous()
            return await self._single_shot()
        finally:
            self.printer.close()
            if self._simulator is not None:
                await in_thread(self._simulator.stop)

    async def _continuous(self) -> ExitStatus:
        """The service on --port, until Ctrl+C or SIGTERM."""
        import asyncio

        settings = self.settings
        assert self._stop is not None
        prompt, path = load_workflow(settings)
        self.tell(None, {"event": "workflow", "file": path, **summarize(prompt)._asdict()})
        try:
            servers = [(await self._or_stop(self._find_server()))[0]]
        except (ServerUnreachable, ServerAnswer) as error:
            if settings.demo:
                raise
            servers = [Server(address, settings.limits) for address in settings.servers]
            message = error.message + " Listening all the same; runs are taken when it is there."
            self.tell(None, {"event": "notice", "message": message})
        except Stopped:
            return ExitStatus.OK
        options = ServiceOptions(
            lambda: load_workflow(settings)[0], settings.guard, settings.auto_execute, settings.max_queue,
            settings.output, settings.overwrite, settings.timeout,
        )  # fmt: skip
        service = Service(servers, prompt, path, options, self._tell_of_run)
        service.page = self._page()
        try:
            listener = make_http_server(service, settings.host, settings.port)
        except OSError as error:
            raise UsageError(
                "Port %d on %s cannot be listened on: %s." % (settings.port, settings.host, error.strerror or error),
                "Something else may be there (comfy-api-proxy uses 8189 too): choose another with --port.",
            ) from None
        port = listener.server_address[1]
        if any(s.address.local and urllib.parse.urlsplit(s.address.url).port == port for s in servers):
            listener.server_close()
            raise UsageError(
                "--server is this service itself (port %d)." % port, "Name ComfyUI's own address, or another --port."
            )
        shown = "[%s]" % settings.host if ":" in settings.host else settings.host
        url = "http://%s:%d" % ("127.0.0.1" if shown in ("0.0.0.0", "[::]") else shown, port)
        self.tell(None, {"event": "listening", "prompt_id": None, "url": url, "routes": curl_lines(url)})
        listener.start()
        following = asyncio.ensure_future(service.follow())
        stop = asyncio.ensure_future(self._stop.wait())
        self.interrupts.farewell = "Left at once: runs of ours may still run on the server."
        try:
            await asyncio.wait([following, stop], return_when=asyncio.FIRST_COMPLETED)
            if following.done():
                following.result()  # it never ends but by a fault of ours
            self.tell(None, {"event": "notice", "prompt_id": None, "message": "%s: stopping." % self.interrupts.name})
        finally:
            await in_thread(listener.shutdown)
            listener.server_close()
            await service.stop()
            await in_thread(listener.finish, 2.0)
            await end_tasks([following, stop])
        return ExitStatus.OK

    def _tell_of_run(self, prompt_id: Optional[str], report: Report) -> None:
        """Hands a report of the service to the printer; lines for people begin with the run's id."""
        self.printer.prefix = "[%s] " % prompt_id[:8] if prompt_id else ""
        self.printer.report({"prompt_id": prompt_id, **report})
        self.printer.prefix = ""

    def _page(self) -> bytes:
        """The page beside the script, or b"" where the script was copied alone."""
        path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_assets", "console.html")
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError:
            return b""

    async def _single_shot(self) -> ExitStatus:
        settings = self.settings
        prompt, path = load_workflow(settings)
        self.tell(None, {"event": "workflow", "file": path, **summarize(prompt)._asdict()})
        if not settings.yes and not self.stdin.isatty():
            raise NotConfirmed(
                "There is no terminal to ask in, so nothing was run.", "Add --yes to run without being asked."
            )
        server, stats = await self._or_stop(self._find_server())
        if not settings.yes:
            self._confirm()
        session = Session(server, parse_version(stats), self.tell)
        try:
            await self._or_stop(session.open())
            return await self._follow(session, session.new_run(prompt, self.prompt_id))
        finally:
            await session.close()

    async def _or_stop(self, work: Awaitable[Result]) -> Result:
        """``work``, unless Ctrl+C comes first: nothing is submitted yet, so it is simply left."""
        import asyncio

        assert self._stop is not None
        task, stop = asyncio.ensure_future(work), asyncio.ensure_future(self._stop.wait())
        await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if self._stopping():  # even if the work is done as well
            await end_tasks([task])
            raise Stopped("Stopped by %s: nothing was submitted." % self.interrupts.name)
        return task.result()

    async def _find_server(self) -> Tuple[Server, Dict[str, Any]]:
        """The first server that answers. A refused connection is told at once, others are tried again."""
        settings = self.settings
        addresses = (self._start_simulator(),) if settings.demo else settings.servers
        self.printer.secrets = tuple({secret: 0 for address in addresses for secret in address.secrets})
        tried: List[str] = []
        first: Optional[RunnerError] = None
        for address in addresses:
            server = Server(address, settings.limits)
            try:
                stats = await self._system_stats(server)
            except (ServerUnreachable, ServerAnswer) as error:
                first = first or error
                tried.append(error.message)
                continue
            devices = as_list(stats.get("devices"))
            device = one_line(as_dict(devices[0]).get("name"), 80) if devices else ""
            version = one_line(as_dict(stats.get("system")).get("comfyui_version") or "", 40)
            self.tell(
                None, {"event": "server", "url": address.url, "version": version, "device": device, "tried": tried}
            )
            return server, stats
        assert first is not None
        if len(addresses) > 1:
            raise ServerUnreachable(
                "No ComfyUI answers. Tried: " + " ".join(tried),
                "Start ComfyUI (in its folder: python main.py, or the Desktop app), name its address with\n"
                "--server URL, or try the runner without it: --demo",
            )
        if not first.remedy:
            first.remedy = "Start ComfyUI there, or name another address with --server URL; --demo needs none."
        raise first

    async def _system_stats(self, server: Server) -> Dict[str, Any]:
        import asyncio

        for attempt in range(3):
            try:
                return await bounded(server.system_stats, seconds=server.limits.connect + 10.0)
            except ServerUnreachable as error:
                if error.refused or attempt == 2:
                    raise
                await asyncio.sleep(0.3 * 2**attempt)
        raise AssertionError("unreachable")

    def _start_simulator(self) -> Address:
        import importlib.util

        path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "comfyui_simulator.py")
        spec = importlib.util.spec_from_file_location("comfyui_simulator", path)
        if not os.path.exists(path) or spec is None or spec.loader is None:
            raise UsageError(
                "--demo needs the file %s, which is not there." % path, "Get the whole project, not this script alone."
            )
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        _third_party("websockets")
        spec.loader.exec_module(module)
        self._simulator = module.Simulator(step_seconds=0.15, previews=True)
        self._simulator.start()
        return parse_address(self._simulator.url)

    def _confirm(self) -> None:
        """Asks. Raises NotConfirmed for no, Stopped for Ctrl+C and for the end of the input."""
        while True:
            self.printer.question("Run it? [y/N] ")
            try:
                try:
                    self.interrupts.asking = True
                    if self.interrupts.signal is not None:
                        raise KeyboardInterrupt
                    answer = self.stdin.readline()
                finally:
                    self.interrupts.asking = False  # a press can come before this very line
            except KeyboardInterrupt:
                self.interrupts.asking = False
                self.printer.question("\n")
                raise Stopped("Stopped by %s: nothing was submitted." % self.interrupts.name) from None
            if not answer:
                self.printer.question("\n")
                raise NotConfirmed(
                    "The input ended before an answer: nothing was submitted.", "Answer y, or add --yes."
                )
            meant = is_yes(answer)
            if meant:
                return
            if meant is False:
                raise NotConfirmed("Not confirmed: nothing was submitted.")
            self.printer.question("Please answer y or n. ")

    async def _follow(self, session: Session, run: Run) -> ExitStatus:
        """Runs to the end, to the timeout or to Ctrl+C, whichever comes first."""
        import asyncio

        assert self._stop is not None
        execution = asyncio.ensure_future(session.execute(run))
        stop = asyncio.ensure_future(self._stop.wait())
        self.interrupts.farewell = "Left at once: prompt %s may still run on the server." % run.prompt_id
        self.printer.begin(run, session)
        ticker = asyncio.ensure_future(self._tick())
        stopped: Optional[str] = None
        try:
            await asyncio.wait([execution, stop], timeout=self.settings.timeout, return_when=asyncio.FIRST_COMPLETED)
            if not execution.done():
                stopped = self.interrupts.name if stop.done() else "the timeout"
                self.tell(
                    run,
                    {
                        "event": "notice",
                        "message": "%s: cancelling our prompt, and nothing else." % (stopped[0].upper() + stopped[1:]),
                    },
                )
                await session.cancel(run)
                if run.state.phase.over:
                    await asyncio.wait([execution], timeout=session.limits.read)
            if execution.done() and not stopped:
                await execution  # raises what it failed with
        except PromptRejected as error:
            for problem in await session.explain(error.answer, run.prompt):
                self.tell(run, problem_report(problem))
            raise
        finally:
            await end_tasks([execution, stop, ticker])
        return await self._finish(session, run, stopped)

    async def _tick(self) -> None:
        import asyncio

        while True:
            self.printer.draw()
            await asyncio.sleep(0.1)

    async def _finish(self, session: Session, run: Run, stopped: Optional[str]) -> ExitStatus:
        """Tells how it ended and what it made, and saves that."""
        state = run.state
        status = exit_status_of(state, bool(run.dropped))
        if stopped:
            finished_in_time = stopped == "the timeout" and state.phase in (Phase.SUCCESS, Phase.ERROR)
            stopped = None if finished_in_time else stopped
            if stopped:
                status = ExitStatus.TIMEOUT if stopped == "the timeout" else self.interrupts.exit_status
        if state.phase is Phase.ERROR and state.failure:
            problem = explain_failure(state.failure, run.prompt)
            frames = traceback_lines(state.failure, None if self.settings.verbose else 2)
            self.tell(run, {**problem_report(problem), "event": "failure", "traceback": frames})
        folder = self.settings.output
        if folder is None and self.settings.demo:
            import tempfile

            folder = tempfile.mkdtemp(prefix="comfyui-demo-")
        outputs = collect_outputs(state.outputs, run.prompt)
        save = None if stopped and stopped != "the timeout" else folder
        for output in outputs:
            url = session.server.url_of(output) if output.text is None else None
            kept = save is not None and not self._stopping()
            self.tell(run, {"event": "output", **output._asdict(), "url": url, "will_be_saved": kept})
        if run.received and save is None:
            message = "%s came over the WebSocket alone (SaveImageWebsocket): give -o to keep them." % plural(
                len(run.received), "picture"
            )
            self.tell(run, {"event": "notice", "message": message})
        if save is not None:
            saved = await self._save(session, run, outputs, save)
            if not saved and self.interrupts.signal:  # a press that came too late changes nothing
                status = self.interrupts.exit_status
            elif not saved and status is ExitStatus.OK:
                status = ExitStatus.NOT_SAVED
        self.tell(run, end_report(state, status, time.monotonic(), run.prompt, stopped, len(run.received)))
        return status

    async def _save(self, session: Session, run: Run, outputs: Sequence[Output], folder: str) -> bool:
        """Saves all; False if one could not be. Ctrl+C leaves the rest on the server."""
        import asyncio

        assert self._stop is not None
        stop = asyncio.ensure_future(self._stop.wait())
        complete = True
        overwrite = self.settings.overwrite
        for title, save in save_jobs(session.server, run, outputs, folder, overwrite, self._stopping):
            task = None
            if not self._stopping():
                task = asyncio.ensure_future(in_thread(save))
                await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
                await asyncio.wait([task], timeout=1.0)  # it sees the stop at the next chunk
            if task is None or not task.done():
                await end_tasks([task] if task else [])
                self.tell(run, {"event": "notice", "message": "Stopped: what is not saved is still on the server."})
                return False
            try:
                saved = task.result()
            except SaveError as error:
                complete = False
                self.tell(run, {"event": "not_saved", "message": error.message, "remedy": error.remedy})
            else:
                self.tell(run, {"event": "saved", "title": title, "path": saved.path, "bytes": saved.bytes})
        return complete

    def _stopping(self) -> bool:
        return self.interrupts.signal is not None


def run_loop(coroutine: Awaitable[Result]) -> Result:
    """asyncio.run() without its wait for executor threads: a name look-up that hangs must not hold
    the exit up."""
    import asyncio

    loop = asyncio.new_event_loop()
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(coroutine)
    finally:
        loop.run_until_complete(end_tasks(asyncio.all_tasks(loop)))
        loop.run_until_complete(asyncio.sleep(0))  # transports that were closed let go of their sockets
        asyncio.set_event_loop(None)
        loop.close()


def main(
    arguments: Optional[Sequence[str]] = None,
    stdin: Optional[TextIO] = None,
    out: Optional[TextIO] = None,
    err: Optional[TextIO] = None,
    environment: Optional[Mapping[str, str]] = None,
    limits: Limits = DEFAULT_LIMITS,
    leaving: bool = False,
) -> int:
    """The program with its exit status; every RunnerError becomes a message and a status.

    ``leaving``: the process ends right after it, so the signals are not given back."""
    stdin, out, err = stdin or sys.stdin, out or sys.stdout, err or sys.stderr
    environment = os.environ if environment is None else environment
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (out, err):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a console that lacks a character must not end a run
    printer: Printer = JsonPrinter(out, err) if "--json" in arguments else Printer(out, err)
    interrupts = Interrupts()
    interrupts.install()
    try:
        settings = make_settings(arguments, environment)._replace(limits=limits)
        printer = make_printer(settings.printer, out, err)
        printer.secrets = tuple({secret: 0 for address in settings.servers for secret in address.secrets})
        program = Program(settings, printer, interrupts, stdin)
        try:
            return int(run_loop(program.main()))
        except RunnerError as error:
            if isinstance(error, Stopped):
                error.exit_status = interrupts.exit_status
            _tell_error(printer, error, program.prompt_id)
            return int(error.exit_status)
    except UsageError as error:
        _tell_error(printer, error, None)
        return int(error.exit_status)
    except SystemExit as error:  # --help, --version
        return int(error.code or 0)
    except Exception as error:
        import traceback

        if "--verbose" in arguments or "-v" in arguments:
            printer.lines([("dim", line) for line in traceback.format_exc().splitlines()], error=True)
        remedy = "This is a fault of the runner: please report it, with what --verbose shows."
        _tell_error(printer, RunnerError("%s: %s" % (type(error).__name__, error), remedy), None)
        return int(ExitStatus.ERROR)
    finally:
        if not leaving:
            interrupts.restore()


def _tell_error(printer: Printer, error: RunnerError, prompt_id: Optional[str]) -> None:
    report: Report = {"event": "error", "prompt_id": prompt_id, "type": type(error).__name__}
    report.update(message=error.message, remedy=error.remedy, exit_status=int(error.exit_status))
    printer.report(report)


if __name__ == "__main__":
    leave(main(leaving=True))
