"""Reading workflow files: API format, UI format, history entries and pictures."""

from __future__ import annotations

import json
from typing import Any, Dict, Mapping, NamedTuple, Optional, Tuple

from comfyui_runner.errors import WorkflowError
from comfyui_runner.text import as_dict, one_line

Prompt = Dict[str, Dict[str, Any]]

EXPORT_REMEDY = (
    "In ComfyUI open the workflow, choose Save or Export (API) in the File menu, and run the file that this gives; "
    "a picture that ComfyUI made will do as well."
)


def describe_json_type(value: object) -> str:
    kinds = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "true or false",
        type(None): "null",
    }
    return kinds.get(type(value), "a number")


class Document(NamedTuple):
    """What a file holds: a prompt (API format), a workflow (UI format), or both, made from each other."""

    prompt: Optional[Prompt] = None
    workflow: Optional[Dict[str, Any]] = None


#: How PNG and WebP files begin (WebP is one of several formats in a RIFF container).
PICTURE_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"RIFF")


def parse_document(data: bytes, name: str) -> Document:
    """The prompt and the workflow in ``data``; ``name`` is for the messages.

    JSON (UTF-8, -16 or -32): API format, alone, as ``{"prompt": ...}`` or as an entry of ComfyUI's history;
    UI format. Or a PNG or WebP picture that ComfyUI made. Raises WorkflowError, which says what was found instead.
    """

    if data.startswith(PICTURE_SIGNATURES):
        from comfyui_runner.extras.pictures import (  # only pictures need it
            embedded_texts,
            parse_embedded_texts,
        )

        texts = embedded_texts(data)
        if texts is not None:
            return parse_embedded_texts(texts, name)
    try:
        document = json.loads(data)
    except UnicodeDecodeError:
        raise WorkflowError(
            "%s is neither text nor a PNG or WebP picture." % name, EXPORT_REMEDY
        ) from None
    except json.JSONDecodeError as error:
        raise WorkflowError(
            "%s is not JSON: line %d, column %d: %s."
            % (name, error.lineno, error.colno, error.msg),
            "Mend it there, or export the workflow again.",
        ) from None
    except (RecursionError, ValueError) as error:
        raise WorkflowError("%s cannot be read as JSON: %s." % (name, error)) from None
    return unwrap_document(document, name)


def unwrap_document(document: Any, name: str) -> Document:
    """The prompt in what ComfyUI, its clients and --save-run put around one."""
    if not isinstance(document, dict):
        if isinstance(document, list) and len(document) > 3 and isinstance(document[2], dict):
            return unwrap_document(
                {"prompt": document[2], "extra_data": document[3]}, name
            )  # an item of /queue
        raise WorkflowError(
            "%s is no prompt: it holds %s, not an object of nodes."
            % (name, describe_json_type(document)),
            EXPORT_REMEDY,
        )
    if isinstance(document.get("nodes"), list):
        return Document(workflow=document)
    inner = document.get("prompt")
    if isinstance(inner, list) and len(inner) > 3:  # an entry of /history
        return unwrap_document(inner, name)
    workflow = document.get("workflow") or as_dict(
        as_dict(document.get("extra_data")).get("extra_pnginfo")
    ).get("workflow")
    workflow = (
        workflow if isinstance(workflow, dict) and isinstance(workflow.get("nodes"), list) else None
    )
    if isinstance(inner, dict) and "class_type" not in inner:
        return Document(_check_nodes(inner, name), workflow)
    if workflow is not None:
        return Document(workflow=workflow)
    entries = [
        entry for entry in document.values() if isinstance(as_dict(entry).get("prompt"), list)
    ]
    if entries and len(entries) == len(document):  # a whole /history
        if len(entries) > 1:
            raise WorkflowError(
                "%s holds %d prompts of ComfyUI's history." % (name, len(entries)),
                "Keep one of them: /history/PROMPT_ID gives it alone.",
            )
        return unwrap_document(entries[0], name)
    return Document(_check_nodes(document, name))


def _check_nodes(document: Dict[str, Any], name: str) -> Prompt:
    if not document:
        raise WorkflowError("%s has no nodes: it is an empty object." % name, EXPORT_REMEDY)
    for node_id, node in document.items():
        if not isinstance(node, dict) or not isinstance(node.get("class_type"), str):
            raise WorkflowError(
                "%s is no prompt: the entry %s is %s without a class_type, not a node."
                % (
                    name,
                    json.dumps(one_line(node_id, 40), ensure_ascii=False),
                    describe_json_type(node),
                ),
                EXPORT_REMEDY,
            )
        if not isinstance(node.get("inputs"), dict):
            raise WorkflowError(
                "%s: node %s (%s) has no inputs object."
                % (name, one_line(node_id, 40), one_line(node["class_type"], 60)),
                EXPORT_REMEDY,
            )
    # what a picture or the history carries from its run: ComfyUI would take it for this run's (caching.py)
    return {i: {k: v for k, v in node.items() if k != "is_changed"} for i, node in document.items()}


class Conversion(NamedTuple):
    """The prompt of a workflow, and what a person should know of how it was made.

    ``places`` tells of nodes of the prompt which node of the file they come from, and by the name of an input
    where in its ``widgets_values`` the value is; nodes of a subgraph that stands in several places have none.
    """

    prompt: Dict[str, Any]
    warnings: Tuple[str, ...] = ()
    places: Mapping[str, Tuple[Mapping[str, Any], Mapping[str, Any]]] = {}
    primitives: Mapping[
        str, Mapping[str, Mapping[str, Any]]
    ] = {}  # which PrimitiveNode leads to an input alone
