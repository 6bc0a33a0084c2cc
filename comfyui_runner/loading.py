"""From a workflow's file to the prompt that runs."""

from __future__ import annotations

import copy
import json
import os
import re
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    TextIO,
    Tuple,
)

from comfyui_runner.documents import (
    Conversion,
    Document,
    Prompt,
    describe_json_type,
    parse_document,
)
from comfyui_runner.edits import (
    EditError,
    InputEdit,
    apply_edits,
    find_loaders,
    parse_set,
    seed_inputs,
    upload_inputs,
    with_values,
)
from comfyui_runner.errors import UsageError, WorkflowError
from comfyui_runner.nodes import MODEL_ENDINGS, InputRef, class_of
from comfyui_runner.problems import Problem
from comfyui_runner.settings import Settings
from comfyui_runner.summary import Summary, summarize
from comfyui_runner.text import as_dict

#: The definitions of classes, as /object_info has them; None asks for every class.
Define = Callable[[Optional[Iterable[str]]], Mapping[str, Any]]


def make_prompt(document: Document, define: Define) -> Conversion:
    """The prompt of a document, converted if it has none. Raises WorkflowError."""

    if document.prompt is not None:
        return Conversion(document.prompt)
    from comfyui_runner.extras.conversion import (
        convert_workflow,  # only documents in UI format need it
    )

    made = convert_workflow(as_dict(document.workflow), define(None))
    if not made.prompt:
        raise WorkflowError("The workflow has no node that runs: all are muted, bypassed or notes.")
    return made


def edited_workflow(
    made: Conversion, workflow: Dict[str, Any], prompt: Mapping[str, Any]
) -> Dict[str, Any]:
    """A copy of a UI-format ``workflow`` with the values that ``prompt`` has and its conversion ``made`` had not.

    A value that a subgraph promotes, or that stands for several nodes, stays as it is in the file.
    """

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
                    if known in as_dict(
                        node.get("widgets_values_named")
                    ):  # newer frontends may read either
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
        return {
            "extra_data": {
                "extra_pnginfo": {"workflow": edited_workflow(self.made, self.workflow, prompt)}
            }
        }


def load_document(settings: Settings, stdin: TextIO) -> Tuple[Document, str]:
    """What the settings' workflow file holds, and the path that it was read from. Raises WorkflowError."""
    path = settings.workflow
    if path == "-":
        data = stdin.buffer.read() if hasattr(stdin, "buffer") else stdin.read().encode()
        return parse_document(data, "Standard input"), "-"
    if re.match(r"(?i)https?://", path):
        raise WorkflowError(
            "%s is a URL, and workflows are not fetched." % path,
            "Download it first: curl -OL URL, then name the file.",
        )
    if not settings.workflow_named and not os.path.exists(path):
        path = find_example(path, settings.example_folders) or path
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        folder = os.path.dirname(path) or "."
        try:
            there = sorted(
                name
                for name in os.listdir(folder)
                if name.lower().endswith((".json", ".png", ".webp"))
            )
        except OSError:
            there = []
        listed = ", ".join(there[:20]) + (
            ", %d more" % (len(there) - 20) if len(there) > 20 else ""
        )
        remedy = (
            "Files there: %s." % listed
            if there
            else "There are no workflows in %s." % os.path.abspath(folder)
        )
        raise WorkflowError("There is no workflow %s." % path, remedy) from None
    except (OSError, ValueError) as error:
        raise WorkflowError(
            "%s cannot be read: %s." % (path, getattr(error, "strerror", None) or error)
        ) from None
    return parse_document(data, path), path


def find_example(name: str, folders: Sequence[str]) -> Optional[str]:
    """The path of the file ``name`` in the first of ``folders`` that has it, or None."""
    paths = (os.path.join(folder, name) for folder in folders)
    return next((path for path in paths if os.path.exists(path)), None)


def offer_uploads(problems: Iterable[Problem], workflow_folder: str) -> List[Problem]:
    """``problems``, with what to type where a file that the server lacks is on this machine.

    The file is looked for in the current folder and in ``workflow_folder``.
    """
    offered = []
    for problem in problems:
        path = path_on_this_machine(problem, workflow_folder)
        if path is not None:
            hint = f'It is on this machine: --image "{problem.node_id}={path}" uploads it.'
            problem = problem._replace(hints=(hint,))
        offered.append(problem)
    return offered


def path_on_this_machine(problem: Problem, workflow_folder: str) -> Optional[str]:
    """The path of the file that ``problem`` says is missing on the server, or None. Models are not uploaded."""
    value = problem.value
    if problem.type not in ("custom_validation_failed", "value_not_in_list"):
        return None
    if not isinstance(value, str) or value.lower().endswith(MODEL_ENDINGS):
        return None
    paths = (value, os.path.join(workflow_folder, value))
    return next((path for path in paths if os.path.isfile(path)), None)


def prepare(document: Document, path: str, settings: Settings, define: Define) -> Loaded:
    """The prompt of ``document``, converted if need be, with --set, --image and --seed in it. Raises RunnerError."""

    made = make_prompt(document, define)
    prompt = made.prompt
    loaded = Loaded(prompt, path, document.workflow, made, made.warnings)
    if not (
        settings.sets
        or settings.images
        or settings.seed != "keep"
        or settings.task not in ("run", "export")
    ):
        return loaded
    info = define(class_of(prompt, node_id) for node_id in prompt)
    edits, uploads = resolve_edits(
        [parse_set(prompt, text) for text in settings.sets], prompt, info
    )
    for text in settings.images:
        name, equals, file = text.partition("=")
        loaders = upload_inputs(prompt, info)
        try:
            [ref, *_] = find_loaders(prompt, loaders, name if equals else None)
        except EditError as error:
            if not equals or error.type != "no_such_node" or not os.path.exists(text):
                raise
            [ref, *_], file = (
                find_loaders(prompt, loaders, None),
                text,
            )  # a name that contains a "="
        uploads.append((ref, file if equals else text))
    for _, file in uploads:
        if not os.path.isfile(file):
            raise UsageError("There is no file %s to upload." % file, "Check its path.")
    prompt, drawn = apply_edits(prompt, edits, info)
    named = {edit.ref for edit in edits}  # what --set says counts more than --seed
    seeds = (
        [ref for ref in seed_inputs(prompt, info) if ref not in named]
        if settings.seed != "keep"
        else []
    )
    if settings.seed == "random":
        drawn += [ref for ref in seeds if ref not in drawn]
    elif settings.seed != "keep":
        from comfyui_runner.extras.checks import check_prompt  # only --seed NUMBER needs it

        prompt = with_values(prompt, dict.fromkeys(seeds, int(settings.seed)))
        for problem in check_prompt(prompt, info):
            if InputRef(problem.node_id, problem.input) in seeds:
                raise UsageError("--seed: " + problem.message, " ".join(problem.hints))
    if settings.seed != "keep" and not seeds:
        loaded = loaded._replace(warnings=(*loaded.warnings, "The workflow has no seed to change."))
    return loaded._replace(
        prompt=prompt,
        drawn=tuple(drawn),
        seeds=tuple(seeds),
        uploads=tuple(uploads),
        object_info=info,
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
                raise UsageError(
                    "@%s cannot be read: %s." % (edit.file, reason), "@@ stands for a plain @."
                ) from None
        else:
            resolved.append(edit)
    return resolved, uploads


def read_object_info(path: str) -> Dict[str, Any]:
    """A saved answer of GET /object_info. Raises UsageError."""
    try:
        with open(path, "rb") as file:
            info = json.loads(file.read())
    except OSError as error:
        raise UsageError(f"--object-info {path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError):
        raise UsageError(
            f"--object-info {path} is not JSON.", "Save what ComfyUI's /object_info answers."
        ) from None
    if not isinstance(info, dict):
        raise UsageError(
            f"--object-info {path} is not an answer of ComfyUI's /object_info: "
            f"it contains {describe_json_type(info)}.",
            "Save what ComfyUI's /object_info answers.",
        )
    return info
