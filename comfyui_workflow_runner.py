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

    python comfyui_workflow_runner.py                     runs workflow_api.json
    python comfyui_workflow_runner.py flow.json -o out    runs another one, saves what it makes
    python comfyui_workflow_runner.py --mode continuous   keeps a service on port 8189
    python comfyui_workflow_runner.py --demo              needs no ComfyUI and no GPU

``--help`` lists every option and exit status. The file is also a module: importing it does no
work, and every rule below can be called without a server.

Map of this file (each section uses only those above it):

    SETTINGS                what a user edits
    ERRORS                  exit statuses, the error tree
    FLAGS                   what the command line takes
    TEXT                    text that is safe to print, durations, sizes, names of files
    WORKFLOW DOCUMENTS      reading prompts, workflows and pictures; titles, links, the summary
    STATE OF A PROMPT       parse_message -> Event; reduce, reconcile -> PromptState; outputs
    WHAT IS WRONG           ComfyUI's validation and execution errors in words
    CONVERSION              convert_workflow: from UI format to the prompt that ComfyUI's frontend exports
    EDITS                   naming a node, setting an input, finding texts and loaders; all return copies
    BATCHES                 many runs of one workflow: the rows, the manifest, names of folders and files
    REPORTS                 what happened, as data; what a person reads of it; the progress meter
    COMFYUI OVER THE WIRE   HTTP (requests), one call a method; the WebSocket
    RUNNING A PROMPT        Session: submit, follow, survive drops, cancel; saving outputs
    TERMINAL                printers: live, plain lines, JSON lines, quiet
    MIDDLEWARE              continuous mode: Guard, ROUTES, Service, a thin http.server
    COMMAND LINE            settings and their precedence, signals, Program; BatchJob for many runs

From TEXT up to REPORTS nothing outside the process is touched; the rest hold no rules.
Words are ComfyUI's: a *prompt* is the API-format graph, *workflow* the file; a *link* is
``[node_id, slot]``; *interrupt* stops a running prompt, *delete* takes a waiting one off the queue.
"""

from __future__ import annotations

import os
import re
import sys
from typing import (
    TYPE_CHECKING,
    Any,
    Awaitable,
    Callable,
    Dict,
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
)

from comfyui_runner import __version__
from comfyui_runner.documents import Conversion, Document, Prompt, parse_document
from comfyui_runner.edits import (
    EditError,
    InputEdit,
    apply_edits,
    draw_seeds,
    find_loaders,
    find_node,
    find_text,
    parse_set,
    seed_inputs,
    set_inputs,
    upload_inputs,
    with_values,
)
from comfyui_runner.errors import (
    EXIT_MEANINGS,
    ExitStatus,
    NotConfirmed,
    PromptRejected,
    PromptUnknown,
    RunnerError,
    SaveError,
    ServerAnswer,
    ServerGone,
    ServerUnreachable,
    Stopped,
    UsageError,
    WorkflowError,
)
from comfyui_runner.extras.batches import (
    Row,
    Tally,
    batch_meter,
    check_columns,
    read_rows,
    row_edits,
    row_key,
    rows_done,
)
from comfyui_runner.extras.checks import check_prompt, describe_inputs, form_fields, inputs_table
from comfyui_runner.extras.conversion import convert_workflow
from comfyui_runner.guard import COOKIE, Guard, make_guard
from comfyui_runner.interrupts import Interrupts
from comfyui_runner.limits import DEFAULT_LIMITS, Limits
from comfyui_runner.messages import (
    INLINE_TYPES,
    JSON_LIMIT,
    HttpError,
    Request,
    Response,
    error_response,
    json_response,
    parse_fields,
    security_headers,
    strict_json,
)
from comfyui_runner.meter import meter
from comfyui_runner.nodes import (
    MODEL_ENDINGS,
    InputRef,
    class_of,
    combo_options,
    describe_nodes,
    input_spec,
    is_link,
    is_seed,
)
from comfyui_runner.outputs import Output, collect_outputs, view_path
from comfyui_runner.problems import Problem, explain_answer
from comfyui_runner.reports import (
    Line,
    Report,
    end_report,
    exit_status_of,
    failure_report,
    nodes_done,
    problem_report,
)
from comfyui_runner.routes import ROUTES, curl_lines, find_route
from comfyui_runner.saving import (
    fill_pattern,
    fingerprint,
    received_outputs,
    save_jobs,
    websocket_notice,
    write_text_file,
)
from comfyui_runner.server import (
    Address,
    Server,
    import_third_party,
    new_uuid,
    parse_address,
    parse_version,
    server_in_words,
    uploaded_value,
)
from comfyui_runner.session import GONE, Run, Session, is_lost
from comfyui_runner.state import Phase, Preview, lost, run_seconds, wholly_cached
from comfyui_runner.summary import Summary, summarize
from comfyui_runner.terminal import JsonPrinter, Printer, is_yes, make_printer
from comfyui_runner.text import as_dict, as_list, as_number, duration, one_line, plain_json, plural, size_in_words
from comfyui_runner.threads import Result, bounded, end_tasks, in_thread, run_loop

if TYPE_CHECKING:  # imported where they are used: they cost more than all of --help
    import asyncio


# ==================================================================================================
# SETTINGS: what a user edits. A flag overrides an environment variable, which overrides these.
# ==================================================================================================

#: The workflow that runs when none is named: a file in API or UI format, or a picture that ComfyUI made.
curr_workflow = "workflow_api.json"

#: "single_shot" runs it once; "continuous" keeps a small service on port 8189.
RUN_MODE = "single_shot"

#: Continuous mode: an uploaded picture starts a run at once.
AUTO_EXECUTE_ON_UPLOAD = False

#: Where ComfyUI is when neither --server nor COMFYUI_URL says so; the second one is tried when the
#: first does not answer (8188: ComfyUI's default; 8000: ComfyUI Desktop's).
DEFAULT_SERVERS = ("http://127.0.0.1:8188", "http://127.0.0.1:8000")


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
        description="Run a ComfyUI workflow: confirm, follow it live, save what it makes.",
        epilog="exit statuses:\n" + statuses,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=100),
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "workflow",
        nargs="?",
        metavar="WORKFLOW",
        help="a workflow in API or UI format, a PNG or WebP picture that ComfyUI made, or - for standard input "
        "(default: %s; env COMFYUI_WORKFLOW)" % curr_workflow,
    )
    add("-y", "--yes", action="store_true", help="do not ask before running")
    add("--demo", action="store_true", help="run on the simulator that comes along: no ComfyUI, no GPU")
    add("--mode", metavar="MODE", help="single_shot or continuous (env COMFYUI_RUN_MODE)")
    add("--timeout", metavar="SECONDS", help="cancel a run after so long (env COMFYUI_TIMEOUT)")
    add("--attach", metavar="PROMPT_ID", help="follow a prompt that waits or runs, or tell how it ended")
    add("--version", action="version", version="%(prog)s " + __version__)
    add = parser.add_argument_group("which ComfyUI").add_argument
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
    add = parser.add_argument_group("change values").add_argument
    add(
        "--set",
        metavar="NODE.INPUT=VALUE",
        action="append",
        help="set an input; NODE is an id, a title, or a class that is there once; @FILE: what is in the file",
    )
    add("--image", metavar="[NODE=]FILE", action="append", help="upload a file and load it in that node; repeatable")
    add("--seed", metavar="SEED", help="every seed of the workflow: a number, random, or keep (default)")
    add = parser.add_argument_group("look, and run nothing").add_argument
    add("--inputs", action="store_true", help="list what can be set (with --json: an object each)")
    add("--check", action="store_true", help="tell all that is wrong: nodes, models, files, values")
    add("--export-api", metavar="FILE", help="write the converted and edited prompt in API format")
    add("--object-info", metavar="FILE", help="for these three: a saved /object_info in place of a server's")
    add = parser.add_argument_group("keep results").add_argument
    add(
        "-o",
        "--output",
        metavar="DIR",
        help="save all outputs here; {row} and {NODE.INPUT} are filled in (env COMFYUI_OUTPUT)",
    )
    add("--name", metavar="PATTERN", help="how to call saved files: {name}, {row}, {NODE.INPUT}")
    add("--overwrite", action="store_true", help="replace files that are there; else a name gets ' (1)'")
    add("--save-run", metavar="FILE", help="write a record of the run, which can be run again")
    add = parser.add_argument_group("many runs").add_argument
    add("--repeat", metavar="N", help="run it N times, with new seeds each time")
    add("--batch", metavar="FILE", help="a run for each row: CSV with a header of NODE.INPUT, JSON Lines, or -")
    add("--in-flight", metavar="K", help="runs that are in ComfyUI's queue at a time (default: 2)")
    add("--manifest", metavar="FILE", help="where each row's end is written (default: beside the outputs or the batch)")
    add("--retries", metavar="N", help="submit a run that its server lost again, up to N times (default: 0)")
    add("--resume", action="store_true", help="leave out the rows that the manifest tells as done")
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
    told = parser.add_argument_group("how it is told")
    show = told.add_mutually_exclusive_group()
    show.add_argument("-q", "--quiet", action="store_true", help="print only what was made: a path or URL a line")
    show.add_argument("--json", action="store_true", help="print one JSON object a line (docs/JSON.md)")
    told.add_argument("-v", "--verbose", action="store_true", help="show whole tracebacks")
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

import contextlib  # noqa: E402
import functools  # noqa: E402
import itertools  # noqa: E402
import json  # noqa: E402
import struct  # noqa: E402
import time  # noqa: E402
import urllib.parse  # noqa: E402

# ==================================================================================================
# CONVERSION: from UI format to the prompt that ComfyUI's own frontend exports
# ==================================================================================================
#
# The frontend loads the file into a graph and exports the graph; so does this section, in the same
# order, because the order shows in the result. Each node is built from object_info and then takes over
# what the file has (_Node); nodes that stand for a subgraph ("hosts") promote widgets from inside it;
# then every node that runs writes its widget values and, over them, its links to nodes that run
# (_Export). The rules are those of frontend 1.49; each names the file that it comes from.


# --- the graphs (LGraph.ts, configure) -------------------------------------------------------------


# --- the prompt (executionUtil.ts, ExecutableNodeDTO.ts) -------------------------------------------


# ==================================================================================================
# EDITS: one way to name a node, one to set an input. Every edit returns a copy.
# ==================================================================================================


#: The definitions of classes, as /object_info has them; None asks for every class.
Define = Callable[[Optional[Iterable[str]]], Mapping[str, Any]]


def make_prompt(document: Document, define: Define) -> Conversion:
    """The prompt of a document, converted if it has none. Raises WorkflowError."""
    if document.prompt is not None:
        return Conversion(document.prompt)
    made = convert_workflow(as_dict(document.workflow), define(None))
    if not made.prompt:
        raise WorkflowError("The workflow has no node that runs: all are muted, bypassed or notes.")
    return made


def edited_workflow(made: Conversion, workflow: Dict[str, Any], prompt: Mapping[str, Any]) -> Dict[str, Any]:
    """A copy of a UI-format ``workflow`` with the values that ``prompt`` has and its conversion ``made`` had not.

    A value that a subgraph promotes, or that stands for several nodes, stays as it is in the file.
    """
    import copy

    memo: Dict[int, Any] = {}
    edited: Dict[str, Any] = copy.deepcopy(workflow, memo)
    for node_id, (raw, places) in made.places.items():
        for name, value in as_dict(as_dict(prompt.get(node_id)).get("inputs")).items():
            if name in places and value != made.prompt[node_id]["inputs"].get(name):
                held = [(raw, places[name], name)]
                primitive = made.primitives.get(node_id, {}).get(name)
                held += [(primitive, 0, "value")] if primitive and id(primitive) in memo else []
                for holder, place, known in held:
                    node = memo[id(holder)]
                    node["widgets_values"][place] = value
                    if known in as_dict(node.get("widgets_values_named")):  # newer frontends may read either
                        node["widgets_values_named"][known] = value
    return edited


class Loaded(NamedTuple):
    """A workflow with the settings' values in it."""

    prompt: Prompt
    path: str
    workflow: Optional[Dict[str, Any]] = None  # in UI format, to be sent along
    made: Conversion = Conversion({})  # the conversion that it came from
    warnings: Tuple[str, ...] = ()
    drawn: Tuple[InputRef, ...] = ()  # seeds that are drawn for each run
    seeds: Tuple[InputRef, ...] = ()  # all of them, where the settings want to change them
    uploads: Tuple[Tuple[InputRef, str], ...] = ()  # files to upload before the first run
    object_info: Mapping[str, Any] = {}  # empty where nobody asked

    def summary(self) -> Summary:
        """What a person is shown before a run; seeds that are drawn for each run are not told as those of the file."""
        return summarize(with_values(self.prompt, dict.fromkeys(self.drawn, "random")))

    def extra(self, prompt: Prompt) -> Dict[str, Any]:
        """More fields of POST /prompt: ComfyUI writes the workflow into the pictures, so it must tell what ran."""
        if not self.workflow or not (self.made.places or prompt == self.made.prompt):
            return {}  # of a picture with both, and now with other values: ComfyUI embeds the prompt by itself
        return {"extra_data": {"extra_pnginfo": {"workflow": edited_workflow(self.made, self.workflow, prompt)}}}


# ==================================================================================================
# MIDDLEWARE: continuous mode. Rules and routes first; the service; a thin http.server at the end.
# ==================================================================================================


_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+").fullmatch

RUNS_KEPT = 200  #: runs that are told by GET /runs
STREAM_QUEUE = 2000  #: events that wait for a slow reader before it is dropped
EVENT_BYTES_PER_SECOND = 1e6  #: of the `run` events of one run: one with thousands of nodes is told less often


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
    "Document": {"type": "object", "minProperties": 1},  # a Prompt, or a workflow in UI format
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
    "Held": _object({"nodes": _COUNT, "revision": _COUNT}, checked=_BOOLEAN, warnings=_list(_TEXT)),
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
            kinds = {"Upload": ["multipart/form-data"], "Document": ["application/json", "image/png", "image/webp"]}
            schema = {"schema": {"$ref": "#/components/schemas/" + row.body}}
            content = {kind: {} if "image/" in kind else schema for kind in kinds.get(row.body, ["application/json"])}
            required = row.body not in ("Empty", "PostPrompt", "Interrupt")
            operation["requestBody"] = {"content": content, "required": required}
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


class Record:
    """A run as the service tells it."""

    def __init__(self, run: Run, session: Session) -> None:
        import threading

        self.run, self.session = run, session
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
        mark = "&prompt_id=" + urllib.parse.quote(run.prompt_id) if self.session.server.affinity else ""
        return {
            "prompt_id": run.prompt_id, "phase": state.phase.value, "over": self.over.is_set(), "ahead": state.ahead,
            **nodes_done(state), "message": self.message, "wholly_cached": wholly_cached(state),
            "created": round(self.created, 3), "seconds": round(run_seconds(state, time.monotonic()), 3),
            "running": [{**named[i], "value": p.value, "max": p.max} for i, p in state.running.items()],
            "nodes": [{**named[i], "seconds": round(took, 3)} for i, took in state.finished.items()],
            "outputs": [
                {**output._asdict(), "url": view_path(output)[1:] + mark if output.text is None else None}
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


def upload_form(file: Any, content_type: str, server: Server) -> str:
    """Uploads the multipart body in ``file``; the value by which a loader names what was in it."""
    file.seek(0)
    return uploaded_value(server.upload(file, content_type))


def sse(event: str, data: Any) -> bytes:
    """A Server-Sent Event."""
    return ("event: %s\ndata: %s\n\n" % (event, strict_json(data))).encode()


class ServiceOptions(NamedTuple):
    """What the service is told."""

    reload: Callable[[], Loaded]  # reads the workflow's file again
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
        loaded: Loaded,
        options: "ServiceOptions",
        say: Callable[[Optional[str], Report], None],
    ) -> None:
        import asyncio
        import threading

        self.server = servers[0]
        self._servers = servers  # where ComfyUI may be; the first one that answers is kept
        self.options = options
        self._path = loaded.path
        self._say = say
        self._lock, self._uploading = threading.RLock(), threading.Lock()
        self._prompt, self._from_file, self._revision = loaded.prompt, loaded.prompt, 1
        self._loaded = loaded  # what was held before all edits
        self._random: Set[InputRef] = set(loaded.drawn)
        #: behind a load balancer: what inputs were set to by an upload, and how to upload it to another server
        self._files: Dict[InputRef, Tuple[Any, Callable[[Server], str]]] = {
            ref: (loaded.prompt[ref.node_id]["inputs"].get(ref.input), functools.partial(Server.upload_file, path=path))
            for ref, path in loaded.uploads
        }
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
                if isinstance(error, ServerGone):  # the load balancer has others
                    self._servers = (server.fresh(),)
                    self.server = self.session.server = self._servers[0]
                    continue
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

        session = self.session
        if session.server.affinity:  # a load balancer chooses a server for each run, by its connection
            session = Session(self.server.fresh(), session.version, self.tell)
            try:
                await session.open()
                prompt = with_values(prompt, await in_thread(self._upload_again, prompt, session.server))
            except BaseException:
                await session.close()
                raise
        run = session.new_run(prompt, str(extra.get("prompt_id") or new_uuid()), extra)
        run.patience = 5.0
        record = Record(run, session)
        given = run.prompt_id
        with self._lock:
            waiting = self._waiting()
            if waiting >= self.options.max_queue:
                await self._leave(record)
                message = "%s of ours wait already (--max-queue)." % plural(waiting, "run")
                raise HttpError(429, "queue_full", message, Retry_After="10")
            self._records[given] = record
            ended = [i for i, other in self._records.items() if other.over.is_set()]
            for old in ended[: max(len(self._records) - RUNS_KEPT, 0)]:
                del self._records[old]
        try:
            answer = await session.submit(run)
            if run.prompt_id != given:  # an older server gives its own
                with self._lock:
                    self._records[run.prompt_id] = self._records.pop(given)
            await session.look(run)
        except BaseException as error:
            if isinstance(error, PromptRejected):
                record.problems = error.problems = await session.explain(error.answer, prompt)
            record.message = error.message if isinstance(error, RunnerError) else type(error).__name__
            await self._ended(record)
            raise
        task = asyncio.ensure_future(self._finish(record, answer))
        self._tasks.add(task)  # else it may be collected in the middle
        task.add_done_callback(self._tasks.discard)
        return record, answer or {"prompt_id": run.prompt_id, "number": None, "node_errors": {}}

    async def _finish(self, record: Record, answer: Optional[Dict[str, Any]]) -> None:
        import asyncio

        run, session, stopped = record.run, record.session, None
        try:
            if answer is not None:
                record.problems = await session.explain(answer, run.prompt)
            try:
                await asyncio.wait_for(session.finish(run, answer), self.options.timeout)
            except asyncio.TimeoutError:
                stopped = "the timeout"
                await session.cancel(run)
                await session.finish(run, answer)
        except Exception as error:  # a fault of ours must not leave a run that never ends
            self._notice("The runner failed: %s: %s" % (type(error).__name__, error))
            run.state = lost(run.state, "the runner failed (%s)" % type(error).__name__, time.monotonic())
        state = run.state
        record.failure = failure_report(state, run.prompt, None)
        status = exit_status_of(state, bool(run.dropped))
        if run.cancelling and not stopped:
            stopped = "the end of the service" if self._closing else "POST /interrupt"
        end = end_report(state, status, time.monotonic(), run.prompt, stopped, len(run.received))
        record.message = end["message"]
        failure = failure_report(state, run.prompt, 2)
        if failure:
            self.tell(run, failure)
        if self.options.output is not None:
            await self._save(run, session.server, self.options.output)
        self.tell(run, end)
        await self._ended(record)

    async def _save(self, run: Run, server: Server, folder: str) -> None:
        outputs = collect_outputs(run.state.outputs, run.prompt)
        for output, save in save_jobs(server, run, outputs, folder, self.options.overwrite, lambda: self._closing):
            try:
                saved = await in_thread(save)
            except SaveError as error:
                self.tell(run, {"event": "not_saved", "message": error.message, "remedy": error.remedy})
            else:
                self.tell(run, {"event": "saved", "title": output.title, "path": saved.path, "bytes": saved.bytes})

    async def _ended(self, record: Record) -> None:
        record.run.received.clear()  # 200 runs are kept: their pictures would fill the memory
        record.over.set()
        self._dirty.add(record.run.prompt_id)
        await self._leave(record)

    async def _leave(self, record: Record) -> None:
        record.session.forget(record.run)
        if record.session is not self.session:
            await record.session.close()

    async def stop(self) -> None:
        """Cancels our runs, tells the streams, closes the session."""
        import asyncio

        self._closing = True
        records = [record for record in self._records.values() if not record.over.is_set()]
        if records:
            self._notice("Stopping: cancelling %s of ours." % plural(len(records), "run"))
        await asyncio.gather(*(record.session.cancel(record.run) for record in records))
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

    def _learn_all(self, classes: Optional[Iterable[str]]) -> Mapping[str, Any]:
        """object_info of every class; where ComfyUI is away nothing can be converted."""
        self._ready()
        self._object_info = self.server.all_object_info()
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

    def _held(self) -> Tuple[Prompt, Dict[str, Any]]:
        """The held workflow for a run, and what goes along with it. Seeds that are drawn are kept in it, for
        who likes the picture."""
        import random

        with self._lock:
            if self._random:
                self._hold(draw_seeds(self._prompt, self._random, random.random, self._object_info), self._random)
            return self._prompt, self._loaded.extra(self._prompt)

    def _run_held(self) -> Response:
        prompt, extra = self._held()
        try:
            record, _ = self._start(prompt, extra)
        except PromptRejected as error:
            problems = [{**p._asdict(), "hints": list(p.hints)} for p in error.problems]
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
        document = parse_document(body(JSON_LIMIT), "The body")
        made = make_prompt(document, self._learn_all)
        prompt = made.prompt
        info = self._learn(prompt)
        problems = check_prompt(prompt, info)
        if problems:
            info = self._learn(prompt, {problem.node_id for problem in problems})
            problems = check_prompt(prompt, info)
        if problems:
            listed = [{**problem._asdict(), "hints": list(problem.hints)} for problem in problems]
            raise HttpError(400, "invalid_workflow", "The workflow cannot run here.", {"problems": listed})
        checked = all(class_of(prompt, node_id) in info for node_id in prompt)
        with self._lock:
            self._loaded = Loaded(prompt, self._path, document.workflow, made)
            revision = self._hold(prompt, set())
        told = {"nodes": len(prompt), "revision": revision, "checked": checked, "warnings": list(made.warnings)}
        return json_response(200, told)

    def reset_workflow(self, request: Request, body: Callable[[int], bytes]) -> Response:
        """The workflow from its file, as it is there now."""
        loaded = self.options.reload()
        with self._lock:
            self._from_file, self._loaded = loaded.prompt, loaded
            revision = self._hold(loaded.prompt, set(loaded.drawn))
        return json_response(200, {"nodes": len(loaded.prompt), "revision": revision})

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
        import weakref

        self._ready()
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise HttpError(400, "not_multipart", "Send the file as multipart/form-data: curl -F image=@cat.png")
        refs = self._loaders(request.query.get("node_id"))
        content_type = request.headers["content-type"]
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(tempfile.TemporaryFile())
            limit = int(as_number(self._features.get("max_upload_size"), 100 << 20))
            body(limit, file)  # type: ignore[call-arg]
            file.seek(0)
            try:
                answer = self.server.upload(file, content_type)
                if self.server.affinity:
                    stack.pop_all()  # the file is kept for the servers of the runs to come
            except ServerAnswer as error:
                if error.status not in (400, 403, 413, 500):  # 500: a form that ComfyUI cannot read
                    raise
                status = 413 if error.status == 413 else 400
                message = "ComfyUI does not take this upload (HTTP %d)." % error.status
                raise HttpError(status, "not_uploaded", message) from None
        value = uploaded_value(answer)
        name, folder, kind = (str(answer.get(key) or "") for key in ("name", "subfolder", "type"))
        self._learn(self._prompt, [ref.node_id for ref in refs])  # its list has grown
        with self._lock:
            if self.server.affinity:
                again = functools.partial(upload_form, file, content_type)
                weakref.finalize(again, file.close)
                self._files.update(dict.fromkeys(refs, (value, again)))
            revision = self._hold(with_values(self._prompt, dict.fromkeys(refs, value)), self._random)
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

    def _upload_again(self, prompt: Prompt, server: Server) -> Dict[InputRef, str]:
        """What ``server`` calls the files that were uploaded for ``prompt``, after it has them too."""
        with self._lock:
            files = list(self._files.items())
        inputs = {ref: as_dict(as_dict(prompt.get(ref.node_id)).get("inputs")).get(ref.input) for ref, _ in files}
        with self._uploading:  # a file is read by one at a time; the loop must not wait for that
            return {ref: upload(server) for ref, (value, upload) in files if inputs[ref] == value}

    def _loaders(self, name: Optional[str]) -> List[InputRef]:
        return find_loaders(self._prompt, upload_inputs(self._prompt, self._learn(self._prompt)), name)

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
        prompt, along = (fields["prompt"], {}) if "prompt" in fields else self._held()
        extra = {**along, **{name: value for name, value in fields.items() if name not in ("prompt", "client_id")}}
        if along and "extra_data" in fields:
            extra["extra_data"] = {**along["extra_data"], **fields["extra_data"]}
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
        self._in_loop(record.session.cancel(record.run), self.server.limits.cancel + 10.0)
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
            if preview is not None and wanted in (None, record.run.prompt_id) and INLINE_TYPES.match(preview.mime):
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
        record = self._records.get(request.query.get("prompt_id", ""))
        server = record.session.server if record else self.server
        try:
            response = server.open("GET", path, accept=(200, 206, 304), headers=sent)
        except ServerAnswer as error:
            if error.status in (400, 403, 404, 416):
                status = 400 if error.status == 403 else error.status
                raise HttpError(
                    status, "not_viewable", "ComfyUI does not give this file (HTTP %d)." % error.status
                ) from None
            raise HttpError(503, "comfyui_unreachable", error.message) from None
        kind = response.headers.get("Content-Type", "application/octet-stream")
        opens = bool(INLINE_TYPES.match(kind)) and "download" not in request.query
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

        kind = kind if INLINE_TYPES.match(kind) else "application/octet-stream"
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
    sets: Tuple[str, ...] = ()  # NODE.INPUT=VALUE
    images: Tuple[str, ...] = ()  # [NODE=]FILE
    seed: str = "keep"  # or "random", or a number
    task: str = "run"  # or "inputs", "check", "export", "attach", "batch"
    object_info: Optional[str] = None  # a file, in place of the server's
    export_api: str = ""
    attach: str = ""
    save_run: Optional[str] = None
    repeat: int = 1
    batch: Optional[str] = None
    in_flight: int = 2
    manifest: str = ""
    resume: bool = False
    retries: int = 0  # of a run that its server lost
    name: str = ""  # the pattern of the names of saved files
    host: str = "127.0.0.1"  # continuous mode: where it listens
    port: int = 8189
    max_queue: int = 16
    guard: Guard = Guard()
    limits: Limits = DEFAULT_LIMITS


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
    numbers = {"port": 8189, "max-queue": 16, "in-flight": 2, "repeat": 1, "retries": 0}
    given = {"port": weigh(flags.port, "COMFYUI_RUNNER_PORT", None), "max-queue": flags.max_queue}
    given.update({"in-flight": flags.in_flight, "repeat": flags.repeat, "retries": flags.retries})
    for name, text in given.items():
        if text is not None and not (re.match(r"^\d{1,5}$", str(text)) and int(text) < 65536):
            raise UsageError("--%s must be a number below 65536." % name)
        numbers[name] = int(text) if text is not None else numbers[name]
    if not numbers["in-flight"] or not numbers["repeat"]:
        raise UsageError("--in-flight and --repeat must be at least 1.")
    seed = (flags.seed or ("random" if flags.repeat else "keep")).lower()
    if not re.match(r"^(keep|random|\d{1,20})$", seed):
        raise UsageError("--seed takes a number, random or keep.")
    many = bool(flags.batch or flags.repeat or flags.resume)
    wished = {"inputs": flags.inputs, "check": flags.check, "export": flags.export_api, "attach": flags.attach,
              "batch": many}  # fmt: skip
    tasks = [task for task, flag in wished.items() if flag]
    for option in ("attach", "export_api", "object_info", "save_run"):
        if getattr(flags, option) == "":  # a variable of a script that is not set: it must not run something else
            raise UsageError("--%s is empty." % option.replace("_", "-"))
    if len(tasks) > 1 or (tasks and flags.mode == "continuous"):
        raise UsageError("--inputs, --check, --export-api, --attach, --batch and continuous mode exclude each other.")
    if flags.save_run and (tasks not in ([], ["attach"]) or mode == "continuous"):
        raise UsageError("--save-run is for a single run; a batch has its manifest.")
    if flags.attach and (flags.set or flags.image or flags.seed):
        raise UsageError("--attach follows a prompt that is submitted already: nothing can be set in it.")
    if flags.object_info and not (flags.inputs or flags.check or flags.export_api):
        raise UsageError("--object-info is for --inputs, --check and --export-api: a run asks its server.")
    host = flags.host or "127.0.0.1"
    token = weigh(flags.token, "COMFYUI_RUNNER_TOKEN", None)
    guard = make_guard(host, token, flags.no_token, flags.allow_host or (), flags.allow_origin or ())
    headers = list(filter(None, environment.get("COMFYUI_HEADERS", "").splitlines())) + (flags.header or [])
    url = weigh(flags.server, "COMFYUI_URL", None)
    servers = tuple(parse_address(text, headers) for text in (DEFAULT_SERVERS if url is None else [url]))
    named = weigh(flags.workflow, "COMFYUI_WORKFLOW", None)
    if named == "-" == flags.batch:
        raise UsageError("Standard input is either the workflow or the rows.", "Put one of them into a file.")
    return Settings(
        workflow=str(named or curr_workflow), workflow_named=bool(named), mode=mode, auto_execute=bool(auto_execute),
        servers=servers, demo=flags.demo, yes=flags.yes, output=weigh(flags.output, "COMFYUI_OUTPUT", None),
        overwrite=flags.overwrite, timeout=timeout,
        printer="quiet" if flags.quiet or flags.export_api == "-" else "json" if flags.json else "human",
        verbose=flags.verbose,
        sets=tuple(flags.set or ()), images=tuple(flags.image or ()), seed=seed, task=tasks[0] if tasks else "run",
        object_info=flags.object_info, export_api=flags.export_api or "", attach=flags.attach or "",
        save_run=flags.save_run, repeat=numbers["repeat"], batch=flags.batch, in_flight=numbers["in-flight"],
        manifest=flags.manifest or "", resume=flags.resume, retries=numbers["retries"], name=flags.name or "",
        host=host, port=numbers["port"], max_queue=numbers["max-queue"], guard=guard,
    )  # fmt: skip


def load_document(settings: Settings, stdin: TextIO) -> Tuple[Document, str]:
    """What the settings' workflow file holds, and the path that it was read from. Raises WorkflowError."""
    path = settings.workflow
    if path == "-":
        data = stdin.buffer.read() if hasattr(stdin, "buffer") else stdin.read().encode()
        return parse_document(data, "Standard input"), "-"
    if re.match(r"(?i)https?://", path):
        raise WorkflowError(
            "%s is a URL, and workflows are not fetched." % path, "Download it first: curl -OL URL, then name the file."
        )
    beside = os.path.join(os.path.dirname(os.path.abspath(__file__)), path)
    if not os.path.exists(path) and not settings.workflow_named and os.path.exists(beside):
        path = beside
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        folder = os.path.dirname(path) or "."
        try:
            there = sorted(name for name in os.listdir(folder) if name.lower().endswith((".json", ".png", ".webp")))
        except OSError:
            there = []
        listed = ", ".join(there[:20]) + (", %d more" % (len(there) - 20) if len(there) > 20 else "")
        remedy = "Files there: %s." % listed if there else "There are no workflows in %s." % os.path.abspath(folder)
        raise WorkflowError("There is no workflow %s." % path, remedy) from None
    except (OSError, ValueError) as error:
        raise WorkflowError("%s cannot be read: %s." % (path, getattr(error, "strerror", None) or error)) from None
    return parse_document(data, path), path


def prepare(document: Document, path: str, settings: Settings, define: Define) -> Loaded:
    """The prompt of ``document``, converted if need be, with --set, --image and --seed in it. Raises RunnerError."""
    made = make_prompt(document, define)
    prompt = made.prompt
    loaded = Loaded(prompt, path, document.workflow, made, made.warnings)
    if not (settings.sets or settings.images or settings.seed != "keep" or settings.task not in ("run", "export")):
        return loaded
    info = define(class_of(prompt, node_id) for node_id in prompt)
    edits, uploads = resolve_edits([parse_set(prompt, text) for text in settings.sets], prompt, info)
    for text in settings.images:
        name, equals, file = text.partition("=")
        loaders = upload_inputs(prompt, info)
        try:
            [ref, *_] = find_loaders(prompt, loaders, name if equals else None)
        except EditError as error:
            if not equals or error.type != "no_such_node" or not os.path.exists(text):
                raise
            [ref, *_], file = find_loaders(prompt, loaders, None), text  # a name that contains a "="
        uploads.append((ref, file if equals else text))
    for _, file in uploads:
        if not os.path.isfile(file):
            raise UsageError("There is no file %s to upload." % file, "Check its path.")
    prompt, drawn = apply_edits(prompt, edits, info)
    named = {edit.ref for edit in edits}  # what --set says counts more than --seed
    seeds = [ref for ref in seed_inputs(prompt, info) if ref not in named] if settings.seed != "keep" else []
    if settings.seed == "random":
        drawn += [ref for ref in seeds if ref not in drawn]
    elif settings.seed != "keep":
        prompt = with_values(prompt, dict.fromkeys(seeds, int(settings.seed)))
        for problem in check_prompt(prompt, info):
            if InputRef(problem.node_id, problem.input) in seeds:
                raise UsageError("--seed: " + problem.message, " ".join(problem.hints))
    if settings.seed != "keep" and not seeds:
        loaded = loaded._replace(warnings=(*loaded.warnings, "The workflow has no seed to change."))
    return loaded._replace(
        prompt=prompt, drawn=tuple(drawn), seeds=tuple(seeds), uploads=tuple(uploads), object_info=info
    )


def resolve_edits(
    edits: Iterable[InputEdit], prompt: Mapping[str, Any], object_info: Mapping[str, Any]
) -> Tuple[List[InputEdit], List[Tuple[InputRef, str]]]:
    """``edits`` with the texts of their files read, and the files that are to be uploaded. Raises UsageError."""
    loaders = upload_inputs(prompt, object_info)
    resolved, uploads = [], []
    for edit in edits:
        if edit.file and edit.ref in loaders:
            uploads.append((edit.ref, edit.file))
        elif edit.file:
            try:
                with open(edit.file, encoding="utf-8-sig") as file:
                    resolved.append(edit._replace(value=file.read(), file=""))
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
                raise UsageError("@%s cannot be read: %s." % (edit.file, reason), "@@ stands for a plain @.") from None
        else:
            resolved.append(edit)
    return resolved, uploads


def read_object_info(path: str) -> Dict[str, Any]:
    """A saved answer of GET /object_info, plain or gzipped. Raises UsageError."""
    import gzip
    import zlib

    try:
        with open(path, "rb") as file:
            data = file.read()
        info = json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "it is not JSON"
        raise UsageError("--object-info %s cannot be read: %s." % (path, reason)) from None
    if not isinstance(info, dict):
        raise UsageError("--object-info %s is no answer of ComfyUI's /object_info." % path)
    return info


#: How many connections --attach opens behind a load balancer before it says that no server has the prompt.
ATTACH_TRIES = 32


class Program:
    """One call of the runner: what its steps share."""

    def __init__(self, settings: Settings, printer: Printer, interrupts: Interrupts, stdin: TextIO) -> None:
        self.settings = settings
        self.printer = printer
        self.interrupts = interrupts
        self.stdin = stdin
        self.out = printer.out
        self.prompt_id = new_uuid()
        self._simulator: Any = None
        self._stop: Optional["asyncio.Event"] = None
        self._server: Optional[Server] = None
        self.stats: Dict[str, Any] = {}
        self._paths: Dict[Output, str] = {}  # where outputs were saved
        self._end: Report = {}  # how the run ended, as it was told
        self._job: Optional["BatchJob"] = None

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
            task = self.settings.task
            if task == "attach":
                return await self._attach()
            if task == "run" and self.settings.mode == "continuous":
                return await self._continuous()
            loaded = await self._load()
            if task in ("inputs", "check", "export"):
                return await {"inputs": self._inputs, "check": self._check, "export": self._export}[task](loaded)
            return await self._run(loaded)
        finally:
            self.printer.close()
            if self._simulator is not None:
                await in_thread(self._simulator.stop)

    async def _continuous(self) -> ExitStatus:
        """The service on --port, until Ctrl+C or SIGTERM."""
        import asyncio

        settings = self.settings
        assert self._stop is not None
        try:
            loaded = await self.or_stop(self._load_when_there())
            uploaded = await self.upload(loaded, await self._connect()) if loaded.uploads else {}
            loaded = loaded._replace(prompt=with_values(loaded.prompt, uploaded))
        except Stopped:
            return ExitStatus.OK
        self.tell(None, {"event": "workflow", "file": loaded.path, **loaded.summary()._asdict()})

        def reload() -> Loaded:
            if settings.workflow == "-":
                return loaded
            self._server = service.server  # the one that answers, which may have come later
            again = prepare(*load_document(settings, self.stdin), settings, self._define(None))
            return again._replace(prompt=with_values(again.prompt, uploaded))

        try:
            servers = [await self._connect()]
        except (ServerUnreachable, ServerAnswer) as error:
            if settings.demo:
                raise
            servers = [Server(address, settings.limits) for address in settings.servers]
            message = error.message + " Listening all the same; runs are taken when it is there."
            self.tell(None, {"event": "notice", "message": message})
        except Stopped:
            return ExitStatus.OK
        options = ServiceOptions(
            reload, settings.guard, settings.auto_execute, settings.max_queue,
            settings.output, settings.overwrite, settings.timeout,
        )  # fmt: skip
        service = Service(servers, loaded, options, self._tell_of_run)
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

    async def _load_when_there(self) -> Loaded:
        """_load(); where it needs a ComfyUI that is not there yet, it waits for it."""
        import asyncio

        while True:
            try:
                return await self._load()
            except ServerUnreachable as error:
                if self.settings.demo:
                    raise
                message = "%s The workflow needs it to be read: waiting for it." % error.message
                self.tell(None, {"event": "notice", "message": message})
                await asyncio.sleep(5.0)

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

    async def _load(self) -> Loaded:
        """The workflow with the settings' values. The server is asked only where it must be: to convert, and
        to know what may be set."""
        settings = self.settings
        document, path = load_document(settings, self.stdin)
        needs = document.prompt is None or settings.sets or settings.images or settings.seed != "keep"
        known = read_object_info(settings.object_info) if settings.object_info else None
        if (needs or settings.task not in ("run", "export")) and known is None:
            await self._connect()
        if settings.images and known is not None:
            raise UsageError("--image uploads to a server, so --object-info cannot stand for it.")
        loaded = await self.or_stop(in_thread(prepare, document, path, settings, self._define(known)))
        for warning in loaded.warnings:
            self.tell(None, {"event": "notice", "message": warning})
        return loaded

    def _define(self, known: Optional[Dict[str, Any]]) -> Define:
        """Looks definitions up: in ``known``, or else on the server, each class once."""

        def define(classes: Optional[Iterable[str]]) -> Mapping[str, Any]:
            nonlocal known
            if classes is None and known is None:
                assert self._server is not None
                known = self._server.all_object_info()
            if known is not None:
                return known if classes is None else {name: as_dict(known.get(name)) for name in classes}
            assert self._server is not None
            return {name: self._server.object_info(name) for name in sorted(set(classes or ()))}

        return define

    async def _connect(self) -> Server:
        """The server, looked for once."""
        if self._server is None:
            found, self.stats = await self.or_stop(self._find_server())
            self._server = found
        return self._server

    async def _inputs(self, loaded: Loaded) -> ExitStatus:
        """--inputs."""
        rows = describe_inputs(loaded.prompt, loaded.object_info)
        for row in rows:
            self.tell(None, {"event": "input", **row})
        if self.settings.printer != "json":
            self.printer.lines(inputs_table(rows))
        return ExitStatus.OK

    async def _check(self, loaded: Loaded) -> ExitStatus:
        """--check: all that is wrong, as far as it can be known without running."""
        prompt, info = loaded.prompt, loaded.object_info
        problems = check_prompt(prompt, info)
        if self._server is not None:
            coming = {ref for ref, _ in loaded.uploads}
            for ref in upload_inputs(prompt, info):
                value = prompt[ref.node_id]["inputs"].get(ref.input)
                listed = combo_options(input_spec(info, class_of(prompt, ref.node_id), ref.input)) or []
                if ref in coming or not isinstance(value, str) or value in listed:
                    continue
                if not await bounded(self._server.has_input, value, seconds=self._server.limits.read):
                    details = "%s - Invalid file: %s" % (ref.input, value)
                    error = {"type": "custom_validation_failed", "details": details,
                             "extra_info": {"input_name": ref.input, "received_value": value}}  # fmt: skip
                    problems += explain_answer({"node_errors": {ref.node_id: {"errors": [error]}}}, prompt, info)
        problems = self._offer_uploads(problems)
        for problem in problems:
            self.tell(None, problem_report(problem))
        status = ExitStatus.REJECTED if problems else ExitStatus.OK
        message = "%s found; nothing was run." % plural(len(problems), "problem")
        message = message if problems else "Nothing wrong was found in %s." % plural(len(prompt), "node")
        self.tell(None, {"event": "checked", "problems": len(problems), "message": message, "exit_status": int(status)})
        return status

    def _offer_uploads(self, problems: Iterable[Problem]) -> List[Problem]:
        """``problems``, with what to type where a file that the server lacks is on this machine."""
        offered = []
        for problem in problems:
            value = problem.value
            if problem.type in ("custom_validation_failed", "value_not_in_list") and isinstance(value, str):
                beside = os.path.join(os.path.dirname(self.settings.workflow), value)
                found = next((path for path in (value, beside) if os.path.isfile(path)), None)
                if found and not value.lower().endswith(MODEL_ENDINGS):
                    hint = 'It is on this machine: --image "%s=%s" uploads it.' % (problem.node_id, found)
                    problem = problem._replace(hints=(hint,))
            offered.append(problem)
        return offered

    async def _export(self, loaded: Loaded) -> ExitStatus:
        """--export-api FILE."""
        server = await self._connect() if loaded.uploads else None
        prompt = await self.ready_prompt(loaded, await self.upload(loaded, server) if server else {})
        path = self.settings.export_api
        text = json.dumps(prompt, indent=2, ensure_ascii=False) + "\n"
        if path == "-":
            self.printer.write(self.out, text)
            return ExitStatus.OK
        write_text_file(path, text)
        self.tell(None, {"event": "exported", "path": path, "nodes": len(prompt)})
        return ExitStatus.OK

    async def upload(self, loaded: Loaded, server: Server) -> Dict[InputRef, str]:
        """Uploads what the settings name; what the loaders call it."""
        values = {}
        for ref, path in loaded.uploads:
            values[ref] = await self.or_stop(in_thread(server.upload_file, path))
            message = "Uploaded %s as %s." % (path, values[ref])
            self.tell(None, {"event": "uploaded", "path": path, "value": values[ref], "message": message,
                             **describe_nodes(loaded.prompt, [ref.node_id])[0], "input": ref.input})  # fmt: skip
        return values

    async def ready_prompt(self, loaded: Loaded, uploaded: Mapping[InputRef, str]) -> Prompt:
        """The prompt of the next run: with the uploaded files and new seeds."""
        import random

        prompt = with_values(loaded.prompt, uploaded)
        return draw_seeds(prompt, loaded.drawn, random.random, loaded.object_info)

    async def _run(self, loaded: Loaded) -> ExitStatus:
        """One run, or with --batch and --repeat many."""
        settings = self.settings
        self.tell(None, {"event": "workflow", "file": loaded.path, **loaded.summary()._asdict()})
        if not settings.yes and not self.stdin.isatty():
            raise NotConfirmed(
                "There is no terminal to ask in, so nothing was run.", "Add --yes to run without being asked."
            )
        self.place(loaded.prompt, 1, settings.output or "")  # a pattern that names nothing spoils all rows
        server = await self._connect()
        if settings.task == "batch":
            return await self._batch(loaded, server)
        if not settings.yes:
            self._confirm("Run it? [y/N] ")
        for left in range(settings.retries, -1, -1):
            jar = server.fresh()
            try:
                status = await self._run_once(loaded, jar)
            except (ServerUnreachable, ServerAnswer) as error:
                if not is_lost(jar, error):
                    raise
                error.exit_status = status = ExitStatus.LOST
                if not left:
                    raise
            if status is not ExitStatus.LOST or not left:
                break
            self.tell(None, {"event": "notice", "message": "The run is lost: submitting it again (--retries)."})
            self.prompt_id = new_uuid()
        return status

    async def _run_once(self, loaded: Loaded, server: Server) -> ExitStatus:
        """``server`` was asked nothing yet: the WebSocket comes first, by which a load balancer chooses."""
        session = Session(server, parse_version(self.stats), self.tell)
        try:
            await self.or_stop(session.open())
            prompt = await self.ready_prompt(loaded, await self.upload(loaded, server))
            extra = loaded.extra(prompt)
            run = session.new_run(prompt, self.prompt_id, extra)
            status = await self._follow(session, run)
            workflow = extra["extra_data"]["extra_pnginfo"]["workflow"] if extra else None
            self._write_record(session, run, status, workflow)
            return status
        finally:
            await session.close()

    async def _attach(self) -> ExitStatus:
        """--attach: follows a prompt that somebody submitted. Ctrl+C leaves it alone: it may be another's."""
        import asyncio

        self.prompt_id = self.settings.attach
        server = await self._connect()
        sessions: List[Session] = []  # behind a load balancer the prompt is on one of its servers
        try:
            while True:
                session = Session(server.fresh(), parse_version(self.stats), self.tell)
                sessions.append(session)  # it stays open: so the next one is sent elsewhere, however busy that is
                try:
                    await self.or_stop(session.open())
                    run = await self.or_stop(session.attach(self.settings.attach))
                    break
                except PromptUnknown:
                    if len(sessions) == ATTACH_TRIES or not session.server.affinity:
                        raise
            await asyncio.gather(*(other.close() for other in sessions[:-1]))
            del sessions[:-1]
            status = await self._follow(session, run)
            self._write_record(session, run, status, None)
            return status
        finally:
            await asyncio.gather(*(other.close() for other in sessions))

    def _write_record(self, session: Session, run: Run, status: ExitStatus, workflow: Optional[Dict[str, Any]]) -> None:
        """--save-run: what ran and what came of it, in a file that the runner can run again."""
        import hashlib

        if not self.settings.save_run:
            return
        state, outputs = run.state, []
        for output in collect_outputs(state.outputs, run.prompt):
            entry: Dict[str, Any] = {**output._asdict(), "path": self._paths.get(output)}
            try:
                entry.update(fingerprint(session.server, output, entry["path"]))
            except (RunnerError, OSError) as error:
                entry["error"] = str(error)
            outputs.append(entry)
        for output, preview in zip(received_outputs(run, self.place(run.prompt, 1, "")[1]), run.received):
            whole = {"sha256": hashlib.sha256(preview.image).hexdigest(), "bytes": len(preview.image)}
            outputs.append({**output._asdict(), "path": self._paths.get(output), **whole})
        record = {
            "runner": __version__, "prompt_id": run.prompt_id, "created": round(time.time(), 3),
            "server": {"url": session.server.address.url, **server_in_words(self.stats)},
            **{name: self._end[name] for name in ("status", "message", "seconds", "wholly_cached")},
            "exit_status": int(status),
            "seeds": {"%s.%s" % (i, name): run.prompt[i]["inputs"][name] for i, name in seed_inputs(run.prompt, {})},
            "node_times": [{**describe_nodes(run.prompt, [i])[0], "seconds": round(took, 3)}
                      for i, took in state.finished.items()],
            "cached": sorted(state.cached),
            "outputs": outputs, "prompt": run.prompt,
            **({"workflow": workflow} if workflow else {}),
        }  # fmt: skip
        write_text_file(self.settings.save_run, json.dumps(plain_json(record), indent=2, ensure_ascii=False) + "\n")
        self.tell(run, {"event": "exported", "path": self.settings.save_run, "nodes": len(run.prompt)})

    # -- batches -----------------------------------------------------------------------------------

    def _rows(self, loaded: Loaded) -> Iterator[Row]:
        """The rows of --batch, each --repeat times. Raises UsageError, EditError for a bad header."""
        settings = self.settings
        if settings.batch is None:
            yield from (Row(number) for number in range(1, settings.repeat + 1))
            return
        try:
            with contextlib.ExitStack() as stack:
                file: TextIO = self.stdin
                if settings.batch != "-":
                    file = stack.enter_context(open(settings.batch, encoding="utf-8-sig", newline=""))
                lines = iter(file)
                first = next((line for line in lines if line.strip("\ufeff \t\r\n")), "").lstrip("\ufeff")
                json_lines = first.lstrip().startswith("{")
                unchecked = not json_lines
                for row in read_rows(itertools.chain([first], lines), json_lines):
                    if unchecked and not row.error:
                        check_columns(loaded.prompt, row.values, loaded.object_info)
                        unchecked = False
                    for again in range(settings.repeat):
                        yield row._replace(number=(row.number - 1) * settings.repeat + again + 1)
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
            raise UsageError("--batch %s cannot be read: %s." % (settings.batch, reason)) from None

    def _manifest_path(self) -> str:
        settings = self.settings
        if settings.manifest:
            return settings.manifest
        if settings.output and "{" not in settings.output:
            return os.path.join(settings.output, "manifest.jsonl")
        stem = settings.workflow if settings.batch in (None, "-") else settings.batch
        return os.path.splitext("batch" if stem == "-" else str(stem))[0] + ".manifest.jsonl"

    async def _batch(self, loaded: Loaded, server: Server) -> ExitStatus:
        """Many runs, --in-flight of them in ComfyUI's queue at a time; one that fails does not stop the rest."""
        import asyncio

        settings = self.settings
        file = settings.batch or ""
        streamed = file == "-" or (os.path.exists(file) and not os.path.isfile(file) and not os.path.isdir(file))
        # a batch in a file is read through once before the first row runs; a pipe can be read once only
        total = None if streamed else sum(1 for _ in self._rows(loaded))
        path = self._manifest_path()
        done: Dict[int, str] = {}
        if os.path.exists(path) and os.path.getsize(path):
            if not settings.resume:
                raise UsageError(
                    "There is a manifest of an earlier batch: %s." % path,
                    "Add --resume to go on with it, or name another with --manifest.",
                )
            try:
                with open(path, encoding="utf-8", errors="replace") as lines:
                    done = rows_done(lines)
            except OSError as error:
                raise UsageError("The manifest %s cannot be read: %s." % (path, error.strerror or error)) from None
        if not settings.yes:
            self._confirm("Run %s? [y/N] " % ("the rows as they come" if total is None else plural(total, "row")))
        job = self._job = BatchJob(self, loaded, server, total, done)
        try:
            os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
            job.manifest = open(path, "ab")  # noqa: SIM115 - closed below
        except OSError as error:
            raise UsageError("The manifest %s cannot be written: %s." % (path, error.strerror or error)) from None
        with job.manifest:
            if job.manifest.tell():
                job.manifest.write(b"\n")  # after a crash the last line may be cut off
            self.interrupts.farewell = "Left at once: prompts of ours may still run on the server."
            self.printer.begin(job.meter)
            assert self._stop is not None
            rows = self._rows(loaded)
            workers = [asyncio.ensure_future(job.work(rows)) for _ in range(settings.in_flight)]
            stop, ticker = asyncio.ensure_future(self._stop.wait()), asyncio.ensure_future(self._tick())
            everything: "asyncio.Future[Any]" = asyncio.ensure_future(asyncio.wait(workers))
            try:
                await asyncio.wait([everything, stop], return_when=asyncio.FIRST_COMPLETED)
                if not everything.done():
                    message = "%s: cancelling our prompts, and nothing else." % self.interrupts.name
                    self.tell(None, {"event": "notice", "message": message})
                    await asyncio.gather(*(session.cancel(run) for session, run in list(job.runs.values())))
                    await asyncio.wait([everything], timeout=2.0)
                for worker in workers:
                    if worker.done():
                        worker.result()  # a fault of ours must not pass in silence
            finally:
                await end_tasks([*workers, everything, stop, ticker])
        self.printer.close()
        status = ExitStatus.OK
        if self.stopping():
            status = self.interrupts.exit_status
        elif job.fatal is not None:
            status = job.fatal.exit_status
        elif job.tally.failed:
            status = ExitStatus.FAILED
        tally = job.counted()
        message = "%s done in %s" % (plural(tally.done, "row"), duration(tally.seconds))
        message += ", %d were done before" % tally.skipped if tally.skipped else ""
        message += ", %d failed" % tally.failed if tally.failed else ""
        if job.fatal is not None:
            message += "\n%s %s" % (job.fatal.message, job.fatal.remedy)
        if status:
            message += "\nThe same command with --resume does what is left. The manifest: %s" % path
        self.tell(None, {"event": "batch", "prompt_id": None, "done": tally.done, "failed": tally.failed,
                         "skipped": tally.skipped, "seconds": round(tally.seconds, 3), "manifest": path,
                         "message": message, "exit_status": int(status)})  # fmt: skip
        return status

    def tell_of_row(self, run: Optional[Run], report: Report) -> None:
        """Hands a report of a row's run to the printer; a person reads only how the rows end."""
        number = self._job.number_of(run) if self._job is not None and run is not None else None
        read = ("problem", "failure", "not_saved", "connection", "notice", "row")
        if self.settings.printer == "human" and report["event"] not in read:
            return
        if number is not None and report["event"] not in ("row", "saved", "output"):
            self.printer.prefix = "[row %d] " % number
        self.printer.report({"prompt_id": run.prompt_id if run else None, "row": number, **report})
        self.printer.prefix = ""

    async def or_stop(self, work: Awaitable[Result]) -> Result:
        """``work``, unless Ctrl+C comes first: nothing is submitted yet, so it is simply left."""
        import asyncio

        assert self._stop is not None
        task, stop = asyncio.ensure_future(work), asyncio.ensure_future(self._stop.wait())
        await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if self.stopping():  # even if the work is done as well
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
            self.tell(None, {"event": "server", "url": address.url, **server_in_words(stats), "tried": tried})
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
        project = os.path.dirname(os.path.abspath(__file__))
        package = os.path.join(project, "comfyui_runner", "simulator")
        if not os.path.isdir(package):
            raise UsageError(
                f"--demo needs the folder {package}, which is missing.", "Get the whole project, not this script alone."
            )
        import_third_party("websockets")
        if project not in sys.path:
            sys.path.insert(0, project)  # python -I leaves it out
        from comfyui_runner.simulator import Simulator  # here, since only --demo needs it

        self._simulator = Simulator(step_seconds=0.15, previews=True)
        self._simulator.start()
        return parse_address(self._simulator.url)

    def _confirm(self, question: str) -> None:
        """Asks. Raises NotConfirmed for no, Stopped for Ctrl+C and for the end of the input."""
        while True:
            self.printer.question(question)
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
        execution = asyncio.ensure_future(session.finish(run, {}) if run.attached else session.execute(run))
        stop = asyncio.ensure_future(self._stop.wait())
        self.interrupts.farewell = "Left at once: prompt %s may still run on the server." % run.prompt_id
        self.printer.begin(
            lambda width, ascii_only: meter(
                run.state, run.prompt, time.monotonic(), run.began, width, ascii_only, session.note
            )
        )
        ticker = asyncio.ensure_future(self._tick())
        stopped: Optional[str] = None
        try:
            await asyncio.wait([execution, stop], timeout=self.settings.timeout, return_when=asyncio.FIRST_COMPLETED)
            if not execution.done():
                stopped = self.interrupts.name if stop.done() else "the timeout"
                if run.attached:
                    left = Stopped("Not followed any more (%s): prompt %s goes on." % (stopped, run.prompt_id))
                    left.exit_status = self.interrupts.exit_status if stop.done() else ExitStatus.TIMEOUT
                    raise left
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
            for problem in self._offer_uploads(await session.explain(error.answer, run.prompt)):
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
        failure = failure_report(state, run.prompt, None if self.settings.verbose else 2)
        if failure:
            self.tell(run, failure)
        folder = self.settings.output
        if folder is None and self.settings.demo:
            import tempfile

            folder = tempfile.mkdtemp(prefix="comfyui-demo-")
        outputs = collect_outputs(state.outputs, run.prompt)
        save = None if stopped and stopped != "the timeout" else folder
        for output in outputs:
            url = session.server.url_of(output) if output.text is None else None
            kept = save is not None and not self.stopping()
            self.tell(run, {"event": "output", **output._asdict(), "url": url, "will_be_saved": kept})
        if run.received and save is None:
            self.tell(run, websocket_notice(run))
        if save is not None:
            saved = await self._save(session, run, outputs, save)
            if not saved and self.interrupts.signal:  # a press that came too late changes nothing
                status = self.interrupts.exit_status
            elif not saved and session.server.gone:
                run.state = state = lost(state._replace(phase=Phase.RUNNING), GONE, time.monotonic())
                status = ExitStatus.LOST
            elif not saved and status is ExitStatus.OK:
                status = ExitStatus.NOT_SAVED
        self._end = end_report(state, status, time.monotonic(), run.prompt, stopped, len(run.received))
        self.tell(run, self._end)
        return status

    async def _save(self, session: Session, run: Run, outputs: Sequence[Output], folder: str) -> bool:
        """Saves all; False if one could not be. Ctrl+C leaves the rest on the server."""
        import asyncio

        assert self._stop is not None
        stop = asyncio.ensure_future(self._stop.wait())
        complete = True
        overwrite = self.settings.overwrite
        folder, rename = self.place(run.prompt, 1, folder)
        for output, save in save_jobs(session.server, run, outputs, folder, overwrite, self.stopping, rename):
            task = None
            if not self.stopping():
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
                self._paths[output] = saved.path
                self.tell(run, {"event": "saved", "title": output.title, "path": saved.path, "bytes": saved.bytes})
        return complete

    def place(self, prompt: Prompt, number: int, folder: str) -> Tuple[str, Callable[[str], str]]:
        """The folder for what row ``number`` makes, and what --name makes of a file's name. Raises UsageError."""
        fields = {"row": "%05d" % number}

        def rename(filename: str) -> str:
            if not self.settings.name:
                return filename
            stem, ending = os.path.splitext(filename)
            return fill_pattern(self.settings.name, {"name": stem, **fields}, prompt) + ending

        rename("x")  # what is wrong with it is told before anything runs
        return fill_pattern(folder, fields, prompt), rename

    def stopping(self) -> bool:
        """Whether Ctrl+C or SIGTERM came."""
        return self.interrupts.signal is not None


class BatchJob:
    """A batch that runs: how far it is, and what its workers do with a row."""

    def __init__(
        self, program: Program, loaded: Loaded, server: Server, total: Optional[int], before: Mapping[int, str]
    ) -> None:
        import asyncio

        self.program, self.settings, self.loaded = program, program.settings, loaded
        self.server, self.before = server, before
        self.tally = Tally(total)
        self.began = time.monotonic()
        self.runs: Dict[int, Tuple[Session, Run]] = {}  # on their way
        self.fatal: Optional[RunnerError] = None  # the server is gone: no row can run
        self.manifest: Any = None
        self.lock = asyncio.Lock()
        self._uploading = asyncio.Lock()
        self._uploaded: Optional[Dict[InputRef, str]] = None

    def counted(self) -> Tally:
        """The tally as it is now."""
        return self.tally._replace(seconds=time.monotonic() - self.began)

    def number_of(self, run: Run) -> Optional[int]:
        """The row that ``run`` is for."""
        return next((number for number, (_, other) in self.runs.items() if other is run), None)

    def meter(self, width: int, ascii_only: bool) -> List[List[Line]]:
        """What a live terminal shows."""
        flying = sorted(self.runs.items(), key=lambda item: item[0])
        note = next((session.note for _, (session, _) in flying if session.note), "")
        states = [(number, run.state) for number, (_, run) in flying[:8]]
        return batch_meter(self.counted(), states, time.monotonic(), width, ascii_only, note)

    async def work(self, rows: Iterator[Row]) -> None:
        """Runs one row after another, until there are no more."""
        while self.fatal is None:
            try:
                async with self.lock:  # standard input may be slow
                    row = await self.program.or_stop(in_thread(next, rows, None))
                if row is None:
                    return
                if self.before.get(row.number) == row_key(row.values) and not row.error:
                    self.tally = self.tally._replace(skipped=self.tally.skipped + 1)
                    continue
                for left in range(self.settings.retries, -1, -1):
                    if not await self._row(row, left):
                        break
            except Stopped:
                return
            except (ServerUnreachable, ServerAnswer) as error:
                self.fatal = self.fatal or error

    async def _row(self, row: Row, retries: int) -> bool:
        """One run of a row, on a connection of its own, by which a load balancer chooses a server anew; whether it
        is to be repeated: its server lost it, and there are ``retries`` left."""
        entry: Dict[str, Any] = {"row": row.number, "key": row_key(row.values), "values": row.values}
        session = Session(self.server.fresh(), parse_version(self.program.stats), self.program.tell_of_row)
        try:
            if row.error:
                raise UsageError("The row cannot be read: %s." % row.error)
            await self.program.or_stop(session.open(self.settings.limits.give_up))
            prompt, drawn = await self._prompt(row, session.server)
            if self.program.stopping():  # while a file of the row was uploaded
                raise Stopped("Stopped: the row was not submitted.")
            folder = self.settings.output
            together = folder is None or "{" in folder or self.settings.name
            wanted = (folder or "") if together else os.path.join(str(folder), "{row}")
            place, rename = self.program.place(prompt, row.number, wanted)
            run = session.new_run(prompt, new_uuid(), self.loaded.extra(prompt))
            self.runs[row.number] = session, run
            seeds = {"%s.%s" % ref: prompt[ref.node_id]["inputs"].get(ref.input) for ref in drawn}
            entry.update(prompt_id=run.prompt_id, seeds=seeds)
            try:
                await self._execute(session, run)
            except PromptRejected as error:
                problems = await session.explain(error.answer, prompt)
                for problem in problems:
                    self.program.tell_of_row(run, problem_report(problem))
                entry["problems"] = [problem._asdict() for problem in problems]
                raise
            if run.state.phase is Phase.LOST and retries and not run.cancelling:
                raise ServerGone(run.state.reason + ".")
            await self._finish(session, run, entry, None if folder is None else place, rename)
        except (ServerUnreachable, ServerAnswer, Stopped) as error:
            refused = isinstance(error, ServerAnswer) and error.status in (400, 413, 500)
            gone = not isinstance(error, Stopped) and is_lost(session.server, error)
            if not gone and not (refused and self._uploaded is not None):
                raise
            if gone and retries:
                message = "Row %d is lost: %s Submitting it again." % (row.number, error.message)
                self.program.tell_of_row(self._run_of(row), {"event": "notice", "message": message})
                return True
            error.exit_status = ExitStatus.LOST if gone else ExitStatus.REJECTED  # it takes other rows
            self._end(self._run_of(row), entry, "failed", error)
        except RunnerError as error:
            self._end(self._run_of(row), entry, "failed", error)
        finally:
            self.runs.pop(row.number, None)
            await session.close()
        return False

    def _run_of(self, row: Row) -> Optional[Run]:
        return self.runs[row.number][1] if row.number in self.runs else None

    async def _prompt(self, row: Row, server: Server) -> Tuple[Prompt, Sequence[InputRef]]:
        """The workflow with the row's values, files and seeds, and which seeds were drawn."""
        loaded, info = self.loaded, self.loaded.object_info
        edits, uploads = resolve_edits(row_edits(loaded.prompt, row, info), loaded.prompt, info)
        prompt, drawn = apply_edits(loaded.prompt, edits, info)
        own = {edit.ref for edit in edits}
        if self.settings.seed.isdigit() and self.settings.repeat > 1:
            again = (row.number - 1) % self.settings.repeat
            seeds = [ref for ref in loaded.seeds if ref not in own]
            prompt = with_values(prompt, dict.fromkeys(seeds, int(self.settings.seed) + again))
        async with self._uploading:
            if self._uploaded is None or server.affinity:  # each server behind a load balancer has its own files
                self._uploaded = await self.program.upload(loaded, server)
        uploaded = {ref: value for ref, value in self._uploaded.items() if ref not in own}
        for ref, path in uploads:
            uploaded[ref] = await self.program.or_stop(in_thread(server.upload_file, path))
        drawn += [ref for ref in loaded.drawn if ref not in own]
        loaded = loaded._replace(prompt=prompt, drawn=tuple(drawn))
        return await self.program.ready_prompt(loaded, uploaded), drawn

    async def _execute(self, session: Session, run: Run) -> None:
        import asyncio

        execution = asyncio.ensure_future(session.execute(run))
        try:
            await asyncio.wait([execution], timeout=self.settings.timeout)
            if not execution.done():
                await session.cancel(run)
                await asyncio.wait([execution], timeout=2.0)
            if execution.done():
                await execution  # raises what it failed with
        finally:
            await end_tasks([execution])

    async def _finish(
        self, session: Session, run: Run, entry: Dict[str, Any], folder: Optional[str], rename: Callable[[str], str]
    ) -> None:
        program, state = self.program, run.state
        stopped: Optional[str] = None
        if run.cancelling:
            stopped = program.interrupts.name if program.interrupts.signal is not None else "the timeout"
        if stopped == "the timeout" and state.phase in (Phase.SUCCESS, Phase.ERROR):
            stopped = None  # it ended in time
        status = exit_status_of(state, bool(run.dropped))
        if stopped and state.phase is not Phase.SUCCESS:
            status = ExitStatus.TIMEOUT if stopped == "the timeout" else program.interrupts.exit_status
        failure = failure_report(state, run.prompt, None if self.settings.verbose else 2)
        if failure:
            program.tell_of_row(run, failure)
        if run.received and folder is None:
            program.tell_of_row(run, websocket_notice(run))
        outputs, told = collect_outputs(state.outputs, run.prompt), []
        for output in outputs:
            url = session.server.url_of(output) if output.text is None else None
            told.append({**output._asdict(), "url": url})
            program.tell_of_row(run, {"event": "output", **told[-1], "will_be_saved": folder is not None})
        if folder is not None and status in (ExitStatus.OK, ExitStatus.PARTIAL):
            told = []
            never = lambda: False  # noqa: E731 - what a run made is kept, whoever presses Ctrl+C
            server, overwrite = session.server, self.settings.overwrite
            for output, save in save_jobs(server, run, outputs, folder, overwrite, never, rename):
                try:
                    saved = await in_thread(save)
                except SaveError as error:
                    if server.gone:
                        raise ServerGone(GONE + ".") from None
                    status = ExitStatus.NOT_SAVED if status is ExitStatus.OK else status
                    program.tell_of_row(run, {"event": "not_saved", "message": error.message, "remedy": error.remedy})
                else:
                    told.append({**output._asdict(), "path": saved.path})
                    program.tell_of_row(
                        run, {"event": "saved", "title": output.title, "path": saved.path, "bytes": saved.bytes}
                    )
        end = end_report(state, status, time.monotonic(), run.prompt, stopped, len(run.received))
        program.tell_of_row(run, end)
        entry.update(end=end["status"], seconds=end["seconds"], outputs=told)
        how = RunnerError(end["message"])
        how.exit_status = status
        self._end(run, entry, "failed" if status else "done", how)

    def _end(self, run: Optional[Run], entry: Dict[str, Any], status: str, error: RunnerError) -> None:
        """Writes a row's line of the manifest, in one piece, and tells it."""
        entry = {**entry, "status": status, "exit_status": int(error.exit_status),
                 "message": error.message, "time": round(time.time(), 3)}  # fmt: skip
        self.manifest.write((json.dumps(plain_json(entry), ensure_ascii=False) + "\n").encode(errors="replace"))
        self.manifest.flush()
        counted = {"done": self.tally.done + 1} if status == "done" else {"failed": self.tally.failed + 1}
        self.tally = self.tally._replace(**counted)
        self.program.tell_of_row(run, {
            "event": "row", "row": entry["row"], "status": status, "message": error.message,
            "exit_status": entry["exit_status"], "done": self.tally.ended, "total": self.tally.total,
        })  # fmt: skip


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
        if settings.export_api == "-":
            printer.out = err  # the prompt alone goes to the output
        try:
            return int(run_loop(program.main()))
        except RunnerError as error:
            if isinstance(error, Stopped) and interrupts.signal is not None:
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
