"""Reading workflow files: API format, UI format, an entry of ComfyUI's history, pictures."""

from __future__ import annotations

import json
from typing import Any, Dict, Mapping, NamedTuple, Optional, Tuple

from comfyui_runner.contents import describe_content, guess_encoding, save_as_utf_8
from comfyui_runner.errors import WorkflowError
from comfyui_runner.json_text import parse_json
from comfyui_runner.nodes import InputRef
from comfyui_runner.text import JsonObject, as_dict, as_list, one_line

#: A prompt in API format: nodes by node_id, each with a class_type and inputs.
Prompt = Dict[str, Dict[str, Any]]

EXPORT_REMEDY = (
    "Open the workflow in ComfyUI, choose Save or Export (API) in the File menu, and run that "
    "file. A picture made by ComfyUI works too."
)

#: How PNG and WebP files begin (WebP is one of several formats in a RIFF container).
PICTURE_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"RIFF")


class Document(NamedTuple):
    """What a file contains: a prompt (API format), a workflow (UI format), or both of one run."""

    prompt: Optional[Prompt] = None
    workflow: Optional[Dict[str, Any]] = None
    #: More for the nodes, such as the key of an API: sent along, never stored or shown.
    extra_data: Mapping[str, Any] = {}
    #: The inputs of the prompt whose {a|b} are drawn for each run, as GET /workflow lists them.
    draws: Tuple[InputRef, ...] = ()


#: Not kept of a file's extra_data: what ComfyUI adds itself (server.py), and the workflow.
EXTRA_DATA_NOT_KEPT = ("client_id", "create_time", "extra_pnginfo")


class ValueInFileName(NamedTuple):
    """What %Node.widget% in the name of a file stands for: an input's value, or a fixed one."""

    ref: Optional[InputRef]
    value: Any


class Conversion(NamedTuple):
    """The prompt of a workflow, and what a person should know about the conversion.

    ``places`` leads from a node of the prompt back to the file: to its node there, and, by the name
    of an input, to where in that node's ``widgets_values`` the value is. The nodes of a subgraph
    that is used several times have none.
    """

    prompt: Dict[str, Any]
    warnings: Tuple[str, ...] = ()
    places: Mapping[str, Tuple[JsonObject, JsonObject]] = {}
    #: The PrimitiveNode that feeds an input, and nothing else.
    primitives: Mapping[str, Mapping[str, JsonObject]] = {}
    #: The inputs whose texts may have choices {a|b}: one is drawn for each run.
    draws: Tuple[InputRef, ...] = ()
    #: What the names of files mean, by Node.widget.
    named_values: Mapping[str, ValueInFileName] = {}


def parse_document(data: bytes, name: str) -> Document:
    """The prompt and the workflow in ``data``; ``name`` is for the messages.

    Reads JSON (UTF-8, -16 or -32) and the PNG and WebP pictures that ComfyUI makes. Raises
    WorkflowError, which says what was found instead of a workflow.
    """
    if data.startswith(PICTURE_SIGNATURES):
        # Only pictures need it.
        from comfyui_runner.extras.pictures import embedded_texts, parse_embedded_texts

        texts = embedded_texts(data)
        if texts is not None:
            return parse_embedded_texts(texts, name)
    _refuse_other_content(data, name)
    return unwrap_document(_parse_file(data, name), name)


def _refuse_other_content(data: bytes, name: str) -> None:
    """Raises WorkflowError for a file that is known to be something other than JSON."""
    content = describe_content(data)
    if content.kind == "":
        return
    if content.kind == "empty":
        raise WorkflowError(f"{name} is empty.", EXPORT_REMEDY)

    remedy = EXPORT_REMEDY
    if content.is_picture:
        remedy = (
            "ComfyUI writes workflows into PNG and WebP pictures, and programs that convert these "
            "lose them. Get the picture as ComfyUI saved it, or the workflow's file."
        )
    elif content.kind == "a web page":
        remedy = "This is the page of a download: get the file itself (on GitHub: Raw)."
    raise WorkflowError(f"{name} is {content.kind}, not a workflow.", remedy)


def _parse_file(data: bytes, name: str) -> Any:
    """What the JSON in ``data`` says. Raises WorkflowError, with the place of what is wrong."""
    try:
        return parse_json(data)
    except UnicodeDecodeError as error:
        raise _wrong_encoding(error, data, name) from None
    except json.JSONDecodeError as error:
        raise WorkflowError(
            f"{name} is not JSON: line {error.lineno}, column {error.colno}: {error.msg}.",
            "Fix it there, or export the workflow again.",
        ) from None
    except ValueError as error:
        raise WorkflowError(f"{name} cannot be read as JSON: {error}.") from None


def _wrong_encoding(error: UnicodeDecodeError, data: bytes, name: str) -> WorkflowError:
    """The error for JSON that is not in UTF-8, or for what is not text."""
    encoding = guess_encoding(data)
    is_json = data.lstrip().startswith((b"{", b"["))
    if not is_json or not encoding:
        return WorkflowError(f"{name} is neither text nor a PNG or WebP picture.", EXPORT_REMEDY)
    line_number = data.count(b"\n", 0, error.start) + 1
    return WorkflowError(
        f"{name} is not in UTF-8, which JSON requires, but probably in {encoding} (line "
        f"{line_number}).",
        save_as_utf_8(encoding),
    )


def unwrap_document(document: Any, name: str) -> Document:
    """The prompt and the workflow in what ComfyUI, its clients and --save-run wrap around them.

    A prompt may come alone, as ``{"prompt": ...}`` with or without its workflow, as
    ``{"workflow": ...}``, as the job of a hosted worker, or as an entry of the history. Raises
    WorkflowError.
    """
    if not isinstance(document, dict):
        raise WorkflowError(
            f"{name} is not a workflow: it contains {describe_json_type(document)}, "
            "not an object of nodes.",
            EXPORT_REMEDY,
        )
    if _is_ui_format(document):
        return Document(workflow=document)

    document = _unwrap_history_entry(_unwrap_job(document))
    wrapped = document.get("workflow")
    extra_data = as_dict(document.get("extra_data"))
    kept = {key: value for key, value in extra_data.items() if key not in EXTRA_DATA_NOT_KEPT}
    workflow = wrapped
    if not workflow:  # as in the body of POST /prompt
        workflow = as_dict(extra_data.get("extra_pnginfo")).get("workflow")
    if not _is_ui_format(workflow):
        workflow = None

    prompt = document.get("prompt")
    is_prompt = isinstance(prompt, dict) and "class_type" not in prompt
    if is_prompt:  # else it may be a node whose id is "prompt"
        draws = _parse_draws(document.get("draws"))
        return Document(_check_nodes(prompt, name), workflow, kept, draws)
    if workflow is not None:
        return Document(None, workflow, kept)
    if has_nodes(wrapped):  # in API format, as hosted services call it
        return Document(_check_nodes(wrapped, name), extra_data=kept)
    return Document(_check_nodes(document, name))


def _parse_draws(names: object) -> Tuple[InputRef, ...]:
    """The inputs in a list of NODE.INPUT; what is not a text is ignored."""
    parts = [name.partition(".") for name in as_list(names) if isinstance(name, str)]
    return tuple(InputRef(node_id, input_name) for node_id, _, input_name in parts)


def _is_ui_format(document: Any) -> bool:
    """Whether ``document`` is a workflow in UI format: its nodes are a list."""
    return isinstance(as_dict(document).get("nodes"), list)


def is_node(entry: object) -> bool:
    """Whether ``entry`` is a node of a prompt: an object with a class_type."""
    return isinstance(as_dict(entry).get("class_type"), str)


def has_nodes(document: object) -> bool:
    """Whether an entry of ``document`` is a node of a prompt."""
    return any(is_node(entry) for entry in as_dict(document).values())


def _unwrap_job(document: Dict[str, Any]) -> Dict[str, Any]:
    """The input of a job, as RunPod's workers take it; any other document as it is.

    The job is ``{"input": {"workflow": ...}}`` (runpod-workers/worker-comfyui, handler.py); other
    workers call the workflow prompt. A node whose id is "input" has a class_type.
    """
    job_input = as_dict(document.get("input"))
    has_workflow = any(isinstance(job_input.get(key), dict) for key in ("workflow", "prompt"))
    if has_workflow and not is_node(job_input):
        return job_input
    return document


def _unwrap_history_entry(document: Dict[str, Any]) -> Dict[str, Any]:
    """An entry of the history as the body that was posted; any other document as it is.

    The entry comes alone or as GET /history/PROMPT_ID answers it, ``{prompt_id: entry}``. What it
    calls prompt is the item of the queue: number, prompt_id, prompt, extra_data (execution.py).
    """
    candidates = [document]
    if len(document) == 1:
        candidates.extend(document.values())
    for candidate in candidates:
        queue_item = as_list(as_dict(candidate).get("prompt"))
        if len(queue_item) > 3 and isinstance(queue_item[2], dict):
            _number, _prompt_id, prompt, extra_data, *_ = queue_item
            return {"prompt": prompt, "extra_data": extra_data}
    return document


def _check_nodes(document: Dict[str, Any], name: str) -> Prompt:
    """``document`` as a prompt. Raises WorkflowError if something in it is not a node."""
    if not document:
        raise WorkflowError(f"{name} has no nodes: it is an empty object.", EXPORT_REMEDY)

    prompt = {}
    for node_id, node in document.items():
        if not is_node(node):
            quoted_id = json.dumps(one_line(node_id, 40), ensure_ascii=False)
            raise WorkflowError(
                f"{name} is not a workflow: its entry {quoted_id} is {describe_json_type(node)} "
                "without a class_type, not a node.",
                EXPORT_REMEDY,
            )
        if not isinstance(node.get("inputs"), dict):
            shown_id = one_line(node_id, 40)
            class_type = one_line(node["class_type"], 60)
            raise WorkflowError(
                f"{name}: node {shown_id} ({class_type}) has no inputs object.", EXPORT_REMEDY
            )
        # A picture or the history has what IS_CHANGED returned in its run; ComfyUI would take it
        # for the answer in this one (comfy_execution/caching.py).
        prompt[node_id] = {key: value for key, value in node.items() if key != "is_changed"}
    return prompt


def describe_json_type(value: object) -> str:
    """What ``value`` is in JSON, for messages: "a list"."""
    words = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "true or false",
        type(None): "null",
    }
    return words.get(type(value), "a number")
