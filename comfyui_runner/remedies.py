"""What the file of a workflow, and the folder that it is in, say about the problems of its prompt.

ComfyUI knows neither: a model that it lacks has an address in the file, a picture may be on this
machine, and a link that is missing may be one that a node makes in the browser.
"""

from __future__ import annotations

import os
import re
import shlex
import urllib.parse
from typing import Any, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Tuple

from comfyui_runner.nodes import MODEL_ENDINGS, class_of, node_in_words
from comfyui_runner.problems import Problem
from comfyui_runner.shells import IS_WINDOWS, name_of_curl
from comfyui_runner.text import JsonObject, as_dict, as_list, one_line
from comfyui_runner.values import MODEL_FOLDERS


class Origin(NamedTuple):
    """Where a prompt comes from: its workflow in UI format, and the folder of the file.

    The folder is None where no files can be named for upload.
    """

    workflow: Mapping[str, Any] = {}
    folder: Optional[str] = None


NO_ORIGIN = Origin()


def workflow_in_extra(extra: JsonObject) -> JsonObject:
    """The workflow in UI format in further fields of POST /prompt (``extra``), {} without one."""
    extra_data = as_dict(extra.get("extra_data"))
    return as_dict(as_dict(extra_data.get("extra_pnginfo")).get("workflow"))


def add_remedies(problems: Iterable[Problem], prompt: JsonObject, origin: Origin) -> List[Problem]:
    """``problems``, with hints at what ``origin`` has: addresses, files, links of the browser."""
    sources = list(models_in_workflow(origin.workflow))
    completed = []
    for problem in problems:
        hints = problem.hints
        path = _path_on_this_machine(problem, origin.folder)
        if path is not None:  # the server's own choice of other files is of no use then
            hints = (f'It is on this machine: --image "{problem.node_id}={path}" uploads it.',)
        elif problem.type == "value_not_in_list":
            hints += _hint_at_download(problem, sources)
        elif problem.type == "required_input_missing":
            hints = _hint_at_browser_links(prompt, origin.workflow) + hints
        completed.append(problem._replace(hints=hints))
    return completed


# -- files on this machine -------------------------------------------------------------------------

#: What ComfyUI's loaders take behind the name of a file (folder_paths.py, annotated_filepath()).
_find_annotation = re.compile(r" \[(input|output|temp)\]$").search


def _path_on_this_machine(problem: Problem, folder: Optional[str]) -> Optional[str]:
    """The path of the file that ``problem`` says the server lacks, or None.

    It is looked for in the current folder and in ``folder``. Models are not uploaded.
    """
    name = problem.value
    may_be_a_file = problem.type in ("custom_validation_failed", "value_not_in_list")
    if folder is None or not may_be_a_file or not isinstance(name, str):
        return None
    annotation = _find_annotation(name)
    if annotation:
        name = name[: annotation.start()]
    if name.lower().endswith(MODEL_ENDINGS):
        return None
    for path in (name, os.path.join(folder, name)):
        if os.path.isfile(path):
            return path
    return None


# -- models whose addresses are in the file --------------------------------------------------------


class ModelSource(NamedTuple):
    """Where a workflow says that a model can be downloaded: an entry of ``properties.models``."""

    name: str
    url: str
    directory: str  # the folder below ComfyUI's models


#: The folders below models that ComfyUI itself has (its folder_paths.py). A file must not choose
#: another one: what is in custom_nodes is run.
_FOLDERS_OF_COMFYUI = frozenset(
    (
        *("checkpoints", "loras", "vae", "vae_approx", "text_encoders", "clip", "clip_vision"),
        *("diffusion_models", "unet", "model_patches", "style_models", "embeddings", "diffusers"),
        *("controlnet", "t2i_adapter", "gligen", "upscale_models", "latent_upscale_models"),
        *("hypernetworks", "photomaker", "classifiers", "audio_encoders", "geometry_estimation"),
        *("background_removal", "frame_interpolation", "optical_flow", "detection"),
    )
)

# Only characters that no shell gives a meaning of their own in the quotes of download_command().
_is_safe_url = re.compile(
    r"https://[A-Za-z0-9.-]+(:\d+)?/[A-Za-z0-9._~:/?#\[\]@!&()*+,;=%-]*"
).fullmatch
_is_safe_name = re.compile(r"[\w .()+,=@~#-]+").fullmatch


def models_in_workflow(workflow: JsonObject) -> Iterator[ModelSource]:
    """The models that nodes of ``workflow`` (or the workflow itself) name with their addresses."""
    waiting: List[Any] = [workflow]
    while waiting:
        item = waiting.pop()
        if isinstance(item, list):
            waiting.extend(item)
            continue
        values = as_dict(item)
        waiting.extend(values.values())
        for entry in map(as_dict, as_list(values.get("models"))):
            name = entry.get("name")
            url = entry.get("url")
            if isinstance(name, str) and isinstance(url, str):
                yield ModelSource(name, url, str(entry.get("directory")))


def _hint_at_download(problem: Problem, sources: Iterable[ModelSource]) -> Tuple[str, ...]:
    """How to get the model that ``problem`` is about, where one of ``sources`` has it."""
    if not isinstance(problem.value, str):
        return ()
    name = _name_of_file(problem.value)
    same_name = [source for source in sources if _name_of_file(source.name) == name]
    if not same_name:
        return ()
    # Files of one name may be in several folders: a model, and its VAE.
    folder = MODEL_FOLDERS.get(problem.input)
    in_folder = [source for source in same_name if source.directory == folder]
    source, *_ = [*in_folder, *same_name]
    path = problem.value.replace("\\", "/")
    command = download_command(source, path, is_windows=IS_WINDOWS)
    if command is None:
        return (f"The workflow says that it is at {one_line(source.url, 500)}",)
    return ("The workflow has its address. To download it, run this in ComfyUI's folder:", command)


def _name_of_file(path: str) -> str:
    """The last part of a path, with the slashes of any system."""
    _, _, name = path.replace("\\", "/").rpartition("/")
    return name


def download_command(source: ModelSource, path: str, is_windows: bool) -> Optional[str]:
    """A line for a shell that downloads a model to ``path`` below its folder of ComfyUI's.

    None where something in it could be more than a name to the shell, or leads elsewhere: the file
    may come from anybody.
    """
    is_safe = (
        bool(_is_safe_url(source.url))
        # What is before an @ looks like the host, and is not.
        and "@" not in urllib.parse.urlsplit(source.url).netloc
        and source.directory in _FOLDERS_OF_COMFYUI
        and _is_safe_path(path)
    )
    if not is_safe:
        return None

    target = f"models/{source.directory}/{path}"
    options = "-L"  # addresses of models redirect to where the file is
    if "/" in path:
        options += " --create-dirs"
    if is_windows:
        arguments = f'-o "{target}" "{source.url}"'
    else:
        arguments = f"-o {shlex.quote(target)} {shlex.quote(source.url)}"
    return f"{name_of_curl(is_windows)} {options} {arguments}"


def _is_safe_path(path: str) -> bool:
    """Whether ``path`` stays below its folder, and every part of it is a plain name."""
    parts = path.split("/")
    return all(_is_safe_name(part) and part.strip(". ") == part for part in parts)


# -- links that are made in the browser ------------------------------------------------------------

#: In the names of all classes of the pack cg-use-everywhere that send what they get to other nodes.
_SENDS_EVERYWHERE = "Everywhere"

#: A node's mode in UI format: muted, bypassed (LiteGraph's NEVER and the frontend's BYPASS).
_MODES_OFF = (2, 4)


def _hint_at_browser_links(prompt: JsonObject, workflow: JsonObject) -> Tuple[str, ...]:
    """The node whose links exist in the browser only, if there is one."""
    sender = _find_sender(prompt, workflow)
    if not sender:
        return ()
    return (
        f"{sender} makes its links in the browser only. If this is one of them, right-click the "
        'canvas in ComfyUI, choose "Convert all UEs to real links", and export the workflow again.',
    )


def _find_sender(prompt: JsonObject, workflow: JsonObject) -> str:
    """A node of cg-use-everywhere in words, "" without one."""
    for node_id in prompt:
        if _SENDS_EVERYWHERE in class_of(prompt, node_id):
            return node_in_words(prompt, node_id)
    # Where ComfyUI lacks the pack, the conversion has left its nodes out.
    subgraphs = as_list(as_dict(workflow.get("definitions")).get("subgraphs"))
    for graph in map(as_dict, [workflow, *subgraphs]):
        for node in map(as_dict, as_list(graph.get("nodes"))):
            node_type = str(node.get("type"))
            is_on = node.get("mode") not in _MODES_OFF
            if is_on and _SENDS_EVERYWHERE in node_type:
                return f'"{one_line(node_type, 60)}" (node {one_line(node.get("id"), 40)})'
    return ""
