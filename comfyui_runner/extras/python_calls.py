"""One call of the Python API's run(): the steps of a single run, for a program and not a person."""

from __future__ import annotations

import io
import json
import numbers
import os
import re
from inspect import iscoroutinefunction
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    Type,
    Union,
)

from comfyui_runner.call_files import upload_call_file
from comfyui_runner.call_values import CallFile, CallValues, file_of_bytes, read_call_values
from comfyui_runner.comfyui import definitions_on
from comfyui_runner.conclusion import Ending
from comfyui_runner.console import Console
from comfyui_runner.contents import HEAD_SIZE
from comfyui_runner.documents import Document, Prompt, parse_document, unwrap_document
from comfyui_runner.environment import Environment
from comfyui_runner.errors import (
    ExitStatus,
    NodeFailed,
    RunCancelled,
    RunFailed,
    RunInterrupted,
    RunLost,
    RunTimeout,
    UsageError,
    WorkflowError,
)
from comfyui_runner.extras.python_results import RunOutput, RunResult
from comfyui_runner.extras.python_words import hide_in_problems, in_python_words
from comfyui_runner.files import read_head
from comfyui_runner.flags import read_seconds
from comfyui_runner.interrupts import Interrupts
from comfyui_runner.json_text import parse_json
from comfyui_runner.loading import Loaded, load_document, prepare_workflow
from comfyui_runner.media import ending_of_data
from comfyui_runner.model_names import nodes_with_unknown_models, with_names_of_server
from comfyui_runner.nodes import InputRef, class_of
from comfyui_runner.redaction import Secrets
from comfyui_runner.reports import Report, describe, failure_report
from comfyui_runner.runs import Run
from comfyui_runner.seeds import seeds_by_name
from comfyui_runner.server import Server
from comfyui_runner.settings import Settings
from comfyui_runner.steps import report_upload
from comfyui_runner.terminal import Printer
from comfyui_runner.text import JsonObject, clean, plain_json
from comfyui_runner.threads import in_thread

#: A workflow: the path of its file, what that contains, or the document (in API or UI format).
Workflow = Union[str, "os.PathLike[str]", bytes, Mapping[str, Any]]

#: Whether a text is an object in JSON, and not the path of a file.
looks_like_json = re.compile(r'\s*\{\s*["}]').match

#: Bytes of a file to upload that are read at a time.
UPLOAD_PIECE_SIZE = 1 << 16


class RunReport(Dict[str, Any]):
    """What happened to a run: ``event``, and the fields that docs/JSON.md lists for it.

    As a text it is in words.
    """

    def __str__(self) -> str:
        lines = [text for _, text in describe(self)]
        if lines:
            return clean(in_python_words("\n".join(lines)))
        event = self["event"].replace("_", " ")
        return clean(f"{event}: {self['title']}" if self.get("title") else event)


class Call(NamedTuple):
    """What a call of run() asks for. For any thread: ``interrupts.stop()`` cancels its run."""

    workflow: Workflow
    values: Mapping[str, Any]
    timeout: Optional[float]
    send: Callable[[RunReport], object]  # takes, in the loop, each report of what happens
    interrupts: Interrupts


class CalledWorkflow(NamedTuple):
    """The workflow of a call, and the values to run it with."""

    loaded: Loaded
    values: CallValues


# -- what a call asks for --------------------------------------------------------------------------


def make_call(
    workflow: Workflow,
    values: Optional[Mapping[str, Any]],
    seed: Union[int, str, None],
    timeout: Optional[float],
    send: Callable[[RunReport], object],
) -> Call:
    """The call of run() with these arguments. Raises UsageError."""
    if values is not None and not isinstance(values, Mapping):
        kind = type(values).__name__
        raise UsageError(
            f"The values must be a dict, not {kind}.", 'Example: {"positive": "a fox"}'
        )
    values = dict(values or {})
    for key in values:
        if not isinstance(key, str):
            raise UsageError(f"The key {key!r} is not a string.", 'Example: {"5.steps": 30}')
    if seed is not None and "seed" in values:
        message = "Both seed=… and the value seed are set."
        raise UsageError(message, "Leave one of them out.")
    if seed is not None:
        values["seed"] = seed
    if timeout is not None:
        timeout = read_seconds("timeout", str(timeout))
    return Call(workflow, values, timeout, send, Interrupts())


def refuse_callback(on_progress: Any, *, may_be_awaited: bool) -> None:
    """Raises UsageError for what cannot take the events of a run: nothing was submitted yet."""
    if on_progress is None:
        return
    if not callable(on_progress):
        kind = type(on_progress).__name__
        raise UsageError(
            f"on_progress must be a function, not {kind}.", "Example: on_progress=print"
        )
    if iscoroutinefunction(on_progress) and not may_be_awaited:
        raise UsageError(
            "on_progress is a coroutine function, which only connect_async() can await.",
            'Make it a function: "def" in place of "async def".',
        )


def read_workflow(workflow: Workflow, settings: Settings) -> Tuple[Document, str]:
    """What a workflow contains, and its path ("" where it is not a file).

    Raises WorkflowError, and UsageError for what is not a workflow at all.
    """
    if isinstance(workflow, str) and looks_like_json(workflow):
        raise UsageError(
            "A string must be the path of a workflow. This one is a workflow itself.",
            "Pass it as bytes, or as the dict that json.loads() returns.",
        )
    if isinstance(workflow, (str, os.PathLike)):
        path = os.fsdecode(workflow)
        return load_document(settings._replace(workflow=path), io.StringIO())
    if isinstance(workflow, (bytes, bytearray)):
        return parse_document(bytes(workflow), "The workflow"), ""
    if isinstance(workflow, Mapping):
        return unwrap_document(copy_json(workflow), "The workflow"), ""
    kind = type(workflow).__name__
    raise UsageError(f"A workflow must be a path, a dict or bytes, not {kind}.")


def copy_json(document: Mapping[str, Any]) -> Any:
    """A copy of a document, which nobody else changes. Raises WorkflowError if it is not JSON."""
    try:
        return parse_json(json.dumps(dict(document)))
    except (TypeError, ValueError, RecursionError) as error:
        raise WorkflowError(f"The workflow has a value that is not JSON: {error}.") from None


def read_python_value(value: Any) -> Any:
    """``value`` as read_call_values() takes it: JSON or a CallFile. Looks at files.

    A path and bytes are files to upload; an output of another run is its file, or its text.
    Numbers may be those of another package, such as numpy. Raises UsageError and SaveError.
    """
    if isinstance(value, os.PathLike):
        return file_of_path(os.fsdecode(value))
    if isinstance(value, (bytes, bytearray)):
        data = bytes(value)
        return file_of_bytes(data, ending_of_data(data) or "bin")
    if isinstance(value, RunOutput) and not value.filename:
        return value.text
    if isinstance(value, RunOutput):
        data = value.bytes
        return file_of_bytes(data, ending_of_data(data) or "bin", value.filename)
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    return value


def file_of_path(path: str) -> CallFile:
    """A file of this machine. Raises UsageError if it cannot be read."""

    def read_pieces_of_file() -> Iterator[bytes]:
        try:
            with open(path, "rb") as file:
                yield from iter(lambda: file.read(UPLOAD_PIECE_SIZE), b"")
        except OSError as error:
            raise cannot_upload(path, error) from None

    try:
        head = read_head(path, HEAD_SIZE)
    except FileNotFoundError:
        raise UsageError(f"There is no file {path} to upload.", "Check its path.") from None
    except (OSError, ValueError) as error:
        raise cannot_upload(path, error) from None
    return CallFile(os.path.basename(path), head, read_pieces_of_file)


def cannot_upload(path: str, error: Exception) -> UsageError:
    """The error for a file that cannot be read."""
    reason = getattr(error, "strerror", None) or error
    return UsageError(f"{path} cannot be uploaded: {reason}.", "Name a file.")


class KnownDefinitions:
    """The definitions of classes, each looked up once until it is renewed. For any thread."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._known: Dict[str, Any] = {}  # {} for a class that the server does not have
        self._has_all = False

    @property
    def knows_some(self) -> bool:
        """Whether some were looked up, which may be out of date by now."""
        return bool(self._known)

    def define(self, classes: Optional[Iterable[str]]) -> JsonObject:
        """What loading.Define says. Blocks."""
        if classes is None:
            if not self._has_all:
                self._known.update(definitions_on(self._server)(None))
                self._has_all = True
            # A copy: other threads may look for more meanwhile.
            return {name: found for name, found in list(self._known.items()) if found}
        wanted = set(classes)
        self.renew(name for name in wanted if name not in self._known)
        return {name: self._known[name] for name in wanted}

    def renew(self, classes: Iterable[str]) -> None:
        """Looks ``classes`` up, whether they are known or not. Blocks."""
        self._known.update(definitions_on(self._server)(classes))


def load_called_workflow(call: Call, settings: Settings, known: KnownDefinitions) -> CalledWorkflow:
    """The workflow of a call with its values. Blocks. Raises RunnerError.

    Definitions are looked up only where they are needed: to convert a workflow in UI format, and to
    check values. Those of nodes whose models are not listed are looked up anew: a model may have
    come meanwhile, and must not be mistaken for another one.
    """
    document, path = read_workflow(call.workflow, settings)
    loaded = prepare_workflow(document, path, settings, known.define)
    prompt = loaded.prompt
    if not call.values:
        return CalledWorkflow(loaded, read_call_values(prompt, {}, {}))

    classes = {class_of(prompt, node_id) for node_id in prompt}
    unknown = nodes_with_unknown_models(prompt, known.define(classes))
    known.renew({class_of(prompt, node_id) for node_id in unknown})
    info = known.define(classes)
    prompt, other_names = with_names_of_server(prompt, info)
    given = {key: read_python_value(value) for key, value in call.values.items()}
    values = read_call_values(prompt, info, given)
    if values.renamed:
        known.renew({class_of(prompt, ref.node_id) for ref in values.renamed})
        info = known.define(classes)
        values = read_call_values(prompt, info, given)
    notices = (*loaded.notices, *other_names)
    return CalledWorkflow(loaded._replace(object_info=info, notices=notices), values)


async def complete_called_prompt(
    workflow: CalledWorkflow, server: Server, console: Console
) -> Prompt:
    """The prompt of a call, whose files are on ``server`` then. Raises RunnerError."""
    uploaded: Dict[InputRef, str] = {}
    for ref, file in workflow.values.files:
        uploading = in_thread(upload_call_file, server, file)
        uploaded[ref] = await console.unless_stopped(uploading)
        report_upload(workflow.loaded.prompt, ref, file.name, uploaded[ref], console)
    return workflow.values.complete(uploaded, (), workflow.loaded.object_info)


# -- what is reported ------------------------------------------------------------------------------


class ReportPrinter(Printer):
    """Hands each report to a function, and keeps the notices."""

    def __init__(self, send: Callable[[RunReport], object], secrets: Secrets) -> None:
        super().__init__(io.StringIO(), io.StringIO())
        self.secrets = secrets
        self.notices: List[str] = []
        self._send = send

    def report(self, report: Report, prefix: str = "") -> None:
        shown = RunReport(self.secrets.hide_in(plain_json(report)))
        if "message" in shown:
            shown["message"] = in_python_words(shown["message"])
        if shown["event"] == "notice":
            self.notices.append(shown["message"])
        self._send(shown)


def silent_environment() -> Environment:
    """No arguments, no variables, and streams that nobody reads."""
    stream = io.StringIO()
    return Environment([], stdin=io.StringIO(), stdout=stream, stderr=stream, variables={})


# -- how a run ended -------------------------------------------------------------------------------

#: The errors of runs that ended with another exit status than OK and PARTIAL.
ERRORS_OF_RUNS: Mapping[ExitStatus, Type[RunFailed]] = {
    error.exit_status: error for error in (RunInterrupted, RunLost, RunTimeout, RunCancelled)
}


def make_result(
    run: Run,
    ending: Ending,
    outputs: Sequence[RunOutput],
    notices: Sequence[str],
    secrets: Secrets,
) -> RunResult:
    """The result of a run that has ended."""
    status = ending.report["status"]
    if ending.exit_status is ExitStatus.PARTIAL:
        status = "partial"
    texts = run.texts.to_json()["texts"]
    return RunResult(
        status=status,
        prompt_id=run.prompt_id,
        message=secrets.hide(in_python_words(ending.report["message"])),
        seeds=seeds_by_name(run.prompt),
        seconds=ending.report["seconds"],
        node_seconds={key: round(seconds, 3) for key, seconds in run.state.finished.items()},
        outputs=tuple(outputs),
        texts=texts,
        notices=tuple(notices),
        problems=tuple(hide_in_problems(run.problems, secrets)),
    )


def raise_unless_succeeded(run: Run, ending: Ending, result: RunResult, secrets: Secrets) -> None:
    """Raises the error of a run that did not succeed."""
    if ending.exit_status in (ExitStatus.OK, ExitStatus.PARTIAL):
        return
    failure = failure_report(run.state, run.prompt, None)
    if ending.exit_status is ExitStatus.FAILED and failure is not None:
        failure = secrets.hide_in(plain_json(failure))
        lines = [text.strip() for _, text in describe({**failure, "traceback": [], "hints": []})]
        hints = " ".join(failure["hints"])
        raise NodeFailed("\n".join(lines), hints, failure=failure, result=result)
    raise ERRORS_OF_RUNS.get(ending.exit_status, RunFailed)(result.message, result=result)
