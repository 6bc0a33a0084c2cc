"""From a workflow's file to the prompt that runs."""

from __future__ import annotations

import copy
import glob
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
    Type,
)

from comfyui_runner.call_values import is_size, resolve_short_name
from comfyui_runner.contents import (
    HEAD_SIZE,
    describe_content,
    guess_encoding,
    save_as_utf_8,
    text_encoding,
    why_no_picture,
)
from comfyui_runner.documents import (
    Conversion,
    Document,
    Prompt,
    describe_json_type,
    parse_document,
)
from comfyui_runner.edits import (
    MOST_LISTED,
    EditError,
    InputEdit,
    apply_edits,
    input_edit,
    list_first,
    notices_of_names,
    parse_set,
    with_values,
)
from comfyui_runner.errors import RunnerError, UsageError, WorkflowError
from comfyui_runner.files import read_head, read_regular_file, reason_not_read
from comfyui_runner.json_text import parse_json
from comfyui_runner.model_names import other_names_of_edits, with_names_of_server
from comfyui_runner.nodes import (
    InputRef,
    class_of,
    did_you_mean,
    inputs_of,
    node_in_words,
    only_other_case,
    spec_of,
)
from comfyui_runner.prompt_texts import prompt_texts
from comfyui_runner.remedies import Origin
from comfyui_runner.seeds import seed_inputs
from comfyui_runner.settings import Settings
from comfyui_runner.shells import CURL
from comfyui_runner.summary import Summary, summarize
from comfyui_runner.text import JsonObject, as_dict
from comfyui_runner.upload_inputs import find_loaders, upload_inputs
from comfyui_runner.values import describe_fault, find_fault

#: Looks up the definitions of classes, as /object_info has them; None asks for every class.
Define = Callable[[Optional[Iterable[str]]], JsonObject]

#: A text that --set or a batch reads from a file: more is a mistake, and would fill the memory.
MOST_BYTES_OF_TEXT = 1 << 26

# -- reading files ---------------------------------------------------------------------------------


def load_document(settings: Settings, stdin: TextIO) -> Tuple[Document, str]:
    """What the settings' workflow file contains, and the path that it was read from.

    "-" is standard input. Raises WorkflowError.
    """
    path = settings.workflow
    if path == "-":
        data = stdin.buffer.read() if hasattr(stdin, "buffer") else stdin.read().encode()
        return parse_document(data, "Standard input"), path
    if re.match(r"(?i)https?://", path):
        raise WorkflowError(
            f"{path} is a URL. The runner does not download workflows.",
            f"Download it first: {CURL} -OL URL, then name the file.",
        )
    if not settings.workflow_named and not os.path.exists(path):
        path = find_example(path, settings.example_folders) or path
    path = find_file(path, WorkflowError)
    return read_document(path), path


def read_document(path: str) -> Document:
    """What the workflow file at ``path`` contains. Raises WorkflowError."""
    return parse_document(_read_workflow(path), path)


def find_example(name: str, folders: Sequence[str]) -> Optional[str]:
    """The path of the file ``name`` in the first of ``folders`` that has it, or None."""
    for folder in folders:
        path = os.path.join(folder, name)
        if os.path.exists(path):
            return path
    return None


def find_file(path: str, error: Type[RunnerError]) -> str:
    """The file that ``path`` means: a pattern, or a name in another case.

    ``path`` itself, if there is such a file, or none that fits. Raises ``error`` for several.
    """
    path = expand_pattern(path, error)
    if os.path.exists(path):
        return path
    folder, name = os.path.split(path)
    in_other_case = only_other_case(name, _files_in(folder or "."))
    if in_other_case is None:
        return path
    return os.path.join(folder, in_other_case)


def notices_of_other_case(typed: str, path: str) -> List[str]:
    """The notice that the file ``path`` is used for ``typed``, if they differ only in case."""
    if typed == path or typed.casefold() != path.casefold():
        return []
    return [f"{path} is used for {typed}."]


def notices_of_files(
    typed: Mapping[InputRef, str], uploads: Iterable[Tuple[InputRef, str]]
) -> List[str]:
    """notices_of_other_case() of ``uploads``, by the names that were ``typed``, each once."""
    notices: List[str] = []
    for ref, path in uploads:
        notices += notices_of_other_case(typed[ref], path)
    return list(dict.fromkeys(notices))


def expand_pattern(path: str, error: Type[RunnerError]) -> str:
    """The file that ``flow*.json`` means; ``path`` itself if no file fits.

    Folders, pipes and devices are named without a pattern. Raises ``error`` for several files.
    """
    matches = files_that_fit(path)
    if len(matches) > 1:
        message = f"Several files match {path}, and only one can be used."
        raise error(message, f"Name one of them: {_listed(matches)}.")
    return next(iter(matches), path)


def files_that_fit(pattern: str) -> List[str]:
    """The file ``pattern``, if it exists (``a[1].png`` is a name too), else the files that fit it.

    They are in the order of the numbers in their names. No shell of Windows expands patterns.
    """
    if os.path.isfile(pattern):
        return [pattern]
    if os.path.exists(pattern) or not glob.has_magic(pattern):
        return []
    return sorted(filter(os.path.isfile, glob.glob(pattern)), key=numbers_in_order)


def numbers_in_order(name: str) -> List[Tuple[int, str]]:
    """A key by which "a2" comes before "a10"."""
    parts = re.findall(r"\d+|\D+", name)
    return [(int(part), "") if part.isdecimal() else (-1, part.lower()) for part in parts]


def _read_workflow(path: str) -> bytes:
    if os.path.isdir(path):  # Windows says of a folder that permission is denied
        raise WorkflowError(f"{path} is a folder, not a workflow.", _list_workflows(path, ""))
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        folder, name = os.path.split(path)
        raise WorkflowError(
            f"The workflow {path} does not exist.", _list_workflows(folder or ".", name)
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        reason = getattr(error, "strerror", None) or error
        raise WorkflowError(f"{path} cannot be read: {reason}.") from None


def _list_workflows(folder: str, name: str) -> str:
    """A remedy: the workflows of ``folder`` that are like ``name``, else its first ones."""
    workflows = _files_in(folder, (".json", ".png", ".webp"))
    if not workflows:
        return f"There are no workflows in {os.path.abspath(folder)}."
    return did_you_mean(name, workflows) or f"Workflows there: {_listed(workflows)}."


def _files_in(folder: str, endings: Tuple[str, ...] = ("",)) -> List[str]:
    """The names in ``folder`` with one of ``endings``, sorted; [] if it cannot be read."""
    try:
        names = sorted(os.listdir(folder))
    except (OSError, ValueError):  # ValueError: a path with a null byte
        return []
    return [name for name in names if name.lower().endswith(endings)]


def offer_files(path: str) -> str:
    """A remedy for a file that does not exist: those beside it that are called like it."""
    folder, name = os.path.split(path)
    return did_you_mean(name, _files_in(folder or ".")) or "Check its path."


def _listed(names: Sequence[str]) -> str:
    """The first of ``names``, and how many more there are."""
    return list_first(names[:MOST_LISTED], len(names))


def read_object_info(path: str) -> Dict[str, Any]:
    """A saved answer of GET /object_info. Raises UsageError."""
    remedy = f"Save it with: {CURL} -o FILE http://127.0.0.1:8188/object_info"
    try:
        with open(path, "rb") as file:
            info = parse_json(file.read())
    except OSError as error:
        reason = reason_not_read(path, error)
        raise UsageError(f"--object-info {path} cannot be read: {reason}.") from None
    except ValueError:
        raise UsageError(f"--object-info {path} is not JSON.", remedy) from None
    if not isinstance(info, dict):
        raise UsageError(
            f"--object-info {path} is not an answer of ComfyUI's /object_info: "
            f"it contains {describe_json_type(info)}.",
            remedy,
        )
    return info


# -- a workflow that can run -----------------------------------------------------------------------


class Loaded(NamedTuple):
    """A workflow with the settings' values in it."""

    prompt: Prompt
    path: str
    workflow: Optional[Dict[str, Any]] = None  # in UI format, to send along
    conversion: Conversion = Conversion({})  # from which the prompt came, unedited
    warnings: Tuple[str, ...] = ()
    notices: Tuple[str, ...] = ()  # of names that were taken for others: no warnings
    drawn: Tuple[InputRef, ...] = ()  # seeds to draw for each run
    seeds: Tuple[InputRef, ...] = ()  # all of them, where the settings change them
    edited: Tuple[InputRef, ...] = ()  # what the settings set
    uploads: Tuple[Tuple[InputRef, str], ...] = ()  # files to upload before the first run
    object_info: Mapping[str, Any] = {}  # empty where it was not needed
    extra_data: Mapping[str, Any] = {}  # of the file; it may contain secrets
    varied: Mapping[InputRef, str] = {}  # what the rows of a batch set, in words

    @property
    def origin(self) -> Origin:
        """What helps to explain what is wrong with the prompt."""
        return Origin(self.workflow or {}, os.path.dirname(self.path))

    def summary(self) -> Summary:
        """What a person is shown before a run: not what the file has where that does not run."""
        others = {**dict.fromkeys(self.drawn, "random"), **self.varied}
        prompt = with_values(self.prompt, others)
        roles = {
            ref: role for role in ("negative", "positive") for ref in prompt_texts(prompt, role)
        }
        return summarize(prompt, roles, dict(self.uploads), [*self.edited, *others])

    def extra(self, prompt: Prompt) -> Dict[str, Any]:
        """More fields for POST /prompt: the file's, and the workflow with the values of ``prompt``.

        ComfyUI writes it into the pictures that it saves, so it must say what ran. A picture that
        carried both was not converted: where its values were edited, its workflow is left out, and
        ComfyUI embeds the prompt alone.
        """
        was_converted = bool(self.conversion.places)
        is_unedited = prompt == self.conversion.prompt
        extra_data = dict(self.extra_data)
        if self.workflow and (was_converted or is_unedited):
            workflow = edited_workflow(self.conversion, self.workflow, prompt)
            extra_data["extra_pnginfo"] = {"workflow": workflow}
        if not extra_data:
            return {}
        return {"extra_data": extra_data}


def make_prompt(document: Document, define: Define) -> Conversion:
    """The prompt of a document, converted if it has none; what each run draws is open in it.

    Raises WorkflowError.
    """
    if document.prompt is not None:
        return Conversion(document.prompt, draws=document.draws)
    # Only documents in UI format need it.
    from comfyui_runner.extras.conversion import convert_with_open_texts

    conversion = convert_with_open_texts(as_dict(document.workflow), define(None))
    if not conversion.prompt:
        raise WorkflowError(
            "The workflow has nothing to run: all of its nodes are muted, bypassed or notes."
        )
    return conversion


def edited_workflow(
    conversion: Conversion, workflow: Dict[str, Any], prompt: JsonObject
) -> Dict[str, Any]:
    """A copy of a UI-format ``workflow`` with the values that ``prompt`` has since its conversion.

    A value that a subgraph promotes, or that is used by several nodes, stays as it is in the file.
    """
    memo: Dict[int, Any] = {}  # leads from what the file contains to its copy
    edited: Dict[str, Any] = copy.deepcopy(workflow, memo)
    for node_id, (raw_node, places) in conversion.places.items():
        converted = conversion.prompt[node_id]["inputs"]
        primitives = conversion.primitives.get(node_id, {})
        for name, value in inputs_of(prompt, node_id).items():
            if name not in places or value == converted.get(name):
                continue
            _set_widget(memo[id(raw_node)], places[name], name, value)
            primitive = primitives.get(name)
            if primitive and id(primitive) in memo:
                _set_widget(memo[id(primitive)], 0, "value", value)
    return edited


def _set_widget(node: Dict[str, Any], place: Any, name: str, value: Any) -> None:
    node["widgets_values"][place] = value
    named_values = as_dict(node.get("widgets_values_named"))
    if name in named_values:  # newer frontends may read either
        named_values[name] = value


# -- the settings' values --------------------------------------------------------------------------


def looks_at_values(settings: Settings) -> bool:
    """Whether the settings set values, or list or check them: this needs the definitions."""
    sets_values = bool(
        settings.sets or settings.short_values or settings.images or settings.seed != "keep"
    )
    only_submits = settings.task in ("run", "export")
    return sets_values or not only_submits


def prepare_workflow(document: Document, path: str, settings: Settings, define: Define) -> Loaded:
    """The prompt of ``document``, converted if need be, with --set, --image and --seed in it.

    Raises RunnerError.
    """
    conversion = make_prompt(document, define)
    prompt, warnings = conversion.prompt, conversion.warnings
    loaded = Loaded(prompt, path, document.workflow, conversion, warnings)
    loaded = loaded._replace(
        extra_data=document.extra_data,
        notices=tuple(notices_of_other_case(settings.workflow, path)),
    )
    if not looks_at_values(settings):
        return loaded

    info = define(class_of(prompt, node_id) for node_id in prompt)
    prompt, other_names = with_names_of_server(prompt, info)
    # --set is more precise than --positive, so it comes last.
    wanted = short_edits(prompt, settings.short_values)
    wanted += [parse_set(prompt, text) for text in settings.sets]
    edits, uploads = resolve_edits(wanted, prompt, info)
    loaders = upload_inputs(prompt, info)
    typed_files = {edit.ref: edit.file for edit in wanted}
    for text in settings.images:
        refs, file = _parse_image(text, prompt, loaders)
        typed_files.update(dict.fromkeys(refs, file))
        file = find_file(file, UsageError)
        for ref in refs:
            _check_upload(file, loaders[ref])
            uploads.append((ref, file))
    _check_one_file_each(uploads, prompt)
    prompt, drawn = apply_edits(prompt, edits, info)
    notices = (
        *loaded.notices,
        *other_names,
        *other_names_of_edits(prompt, edits),
        *notices_of_names(prompt, wanted),
        *notices_of_files(typed_files, uploads),
    )

    seeds: List[InputRef] = []
    if settings.seed != "keep":
        named = {edit.ref for edit in edits}  # --set is more precise than --seed
        seeds = [ref for ref in seed_inputs(prompt, info) if ref not in named]
        if not seeds:
            warnings = (*warnings, "The workflow has no seed to change.")
    if settings.seed == "random":
        drawn += [ref for ref in seeds if ref not in drawn]
    elif settings.seed != "keep":
        prompt = _set_seeds(prompt, seeds, int(settings.seed), info)
    return loaded._replace(
        prompt=prompt,
        warnings=warnings,
        notices=notices,
        drawn=tuple(drawn),
        seeds=tuple(seeds),
        edited=tuple(edit.ref for edit in edits),
        uploads=tuple(uploads),
        object_info=info,
    )


def _set_seeds(
    prompt: Prompt, seeds: Sequence[InputRef], number: int, object_info: JsonObject
) -> Prompt:
    """A copy of ``prompt`` with the number of --seed in its ``seeds``. Raises UsageError."""
    for ref in seeds:
        spec = spec_of(prompt, ref, object_info)
        fault_type = find_fault(spec, number)
        if fault_type is not None:
            fault = describe_fault(fault_type, spec, ref.input, number)
            raise UsageError(f"--seed: {fault.message}", " ".join(fault.hints))
    return with_values(prompt, dict.fromkeys(seeds, number))


def _parse_image(
    text: str, prompt: JsonObject, loaders: Iterable[InputRef]
) -> Tuple[List[InputRef], str]:
    """The loaders and the file in ``FILE`` or ``NODE=FILE``; ``all`` names every loader.

    Raises EditError.
    """
    name, equals, file = text.partition("=")
    if not equals:
        return find_loaders(prompt, loaders, None), text
    try:
        return find_loaders(prompt, loaders, name), file
    except EditError as error:
        # The name of a file may contain "=" too.
        if error.type == "no_such_node" and os.path.exists(text):
            return find_loaders(prompt, loaders, None), text
        raise


def short_edits(prompt: JsonObject, values: Sequence[Tuple[str, str]]) -> List[InputEdit]:
    """The edits that --positive, --negative and --size ask for: names and texts. Raises EditError.

    ``@FILE`` is the text of a file, as for --set.
    """
    for name, text in values:
        if name == "size" and not is_size(text):
            message = f"--size {text} is not a size: write it as 768x512."
            raise EditError("wrong_value", message)
    return [
        input_edit(ref, value)
        for name, text in values
        for ref, value in resolve_short_name(prompt, name, text, (), {})
    ]


def resolve_edits(
    edits: Iterable[InputEdit], prompt: JsonObject, object_info: JsonObject
) -> Tuple[List[InputEdit], List[Tuple[InputRef, str]]]:
    """``edits`` with the texts of their files read, and the files to upload. Raises UsageError."""
    loaders = upload_inputs(prompt, object_info)
    resolved: List[InputEdit] = []
    uploads: List[Tuple[InputRef, str]] = []
    for edit in edits:
        if not edit.file:
            resolved.append(edit)
        elif edit.ref in loaders:
            file = find_file(edit.file, UsageError)
            _check_upload(file, loaders[edit.ref])
            uploads.append((edit.ref, file))
        else:
            resolved.append(edit._replace(value=read_text_file(edit.file), file=""))
    return resolved, uploads


def read_text_file(path: str) -> str:
    """The text of a file, with plain newlines. Raises UsageError."""
    try:
        data = read_regular_file(path, MOST_BYTES_OF_TEXT)
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte, or no file
        reason = getattr(error, "strerror", None) or error
        remedy = "For a plain @, write @@."
        if isinstance(error, FileNotFoundError):
            remedy = f"{offer_files(path)} {remedy}"
        raise UsageError(f"@{path} cannot be read: {reason}.", remedy) from None

    try:
        text = data.decode(text_encoding(data))
    except UnicodeDecodeError:
        raise _not_utf_8(path, data) from None
    if "\0" in text:  # UTF-16 without its mark: every second byte of English text is a zero
        raise _not_utf_8(path, data)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _not_utf_8(path: str, data: bytes) -> UsageError:
    """The error for the file of a text that is not in UTF-8."""
    kind = describe_content(data).kind
    encoding = guess_encoding(data)
    if kind:
        return UsageError(f"@{path} cannot be read: it is {kind}, not text in UTF-8.")
    if not encoding:
        return UsageError(f"@{path} cannot be read: it is not text in UTF-8.")
    return UsageError(
        f"@{path} cannot be read: it is in {encoding}, not in UTF-8.", save_as_utf_8(encoding)
    )


def _check_upload(path: str, media: str) -> None:
    """Raises UsageError for what cannot be uploaded: not a file that ends, or not a picture.

    ``media`` is what its loader loads: "image", or another medium, which is not looked at.
    """
    try:
        head = read_head(path, HEAD_SIZE)
    except FileNotFoundError:
        raise UsageError(f"There is no file {path} to upload.", offer_files(path)) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path} cannot be uploaded: {reason}.", "Name a file.") from None

    reason = why_no_picture(head)
    if media == "image" and reason:
        raise UsageError(
            f"{path} is not a picture: {reason}.",
            "Name a picture. If its format is rare, upload it to ComfyUI yourself, and then name "
            "it with --set NODE.image=NAME.",
        )


def _check_one_file_each(uploads: Iterable[Tuple[InputRef, str]], prompt: JsonObject) -> None:
    """Raises UsageError if two of ``uploads`` are for one loader: only one would be loaded."""
    files: Dict[InputRef, str] = {}
    for ref, file in uploads:
        if ref in files:
            raise UsageError(
                f"{node_in_words(prompt, ref.node_id)} loads one file, but you named two: "
                f"{files[ref]} and {file}.",
                "Leave one of them out, or name another node: --image NODE=FILE. To run the "
                "workflow with each of them, use --batch.",
            )
        files[ref] = file
