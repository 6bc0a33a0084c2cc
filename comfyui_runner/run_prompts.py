"""What is submitted for one run: a prompt whose texts are drawn and whose file names are dated.

A prompt that may run several times keeps such texts open. ComfyUI's frontend fills them in whenever
it queues: choices {a|b} only where the class of a node asks for it, and only in workflows in UI
format; names of files in every format.
"""

from __future__ import annotations

import datetime
import random
import re
from typing import Any, Callable, Mapping, NamedTuple, Tuple

from comfyui_runner.documents import Conversion, Prompt
from comfyui_runner.edits import with_values
from comfyui_runner.loading import Loaded
from comfyui_runner.nodes import InputRef, inputs_of
from comfyui_runner.remedies import NO_ORIGIN, Origin
from comfyui_runner.reports import NO_RUN_TEXTS, RunTexts
from comfyui_runner.server import Server

#: Texts are drawn from numbers below this one: every reader of JSON keeps them exact.
DRAW_RANGE = 2**50

_is_open_file_name = re.compile("%(date:[^%]*|[^%.]+[.][^%.]+)%").search


#: Uploads a file to a server once more: the value by which a node names it there.
UploadAgain = Callable[[Server], str]


class RunPrompt(NamedTuple):
    """The prompt of one run, what belongs to it, and the texts that it alone has."""

    prompt: Prompt
    extra: Mapping[str, Any] = {}  # more fields of POST /prompt
    origin: Origin = NO_ORIGIN  # helps to explain why it is refused
    texts: RunTexts = NO_RUN_TEXTS
    uploads: Tuple[Tuple[InputRef, UploadAgain], ...] = ()  # its own files, for another server


def draw_number() -> int:
    """A number from which the texts of a run are drawn."""
    return random.randrange(DRAW_RANGE)


def make_run_prompt(
    prompt: Prompt, workflow: Loaded, number: int, now: datetime.datetime
) -> RunPrompt:
    """The run of ``prompt``, which is that of ``workflow`` with other values.

    Choices in texts are drawn from ``number``, always in the same way; ``now`` is the date in the
    names of files.
    """
    if not may_have_open_texts(prompt, workflow.conversion):
        return RunPrompt(prompt, workflow.extra(prompt), workflow.origin)
    # Only such texts need it.
    from comfyui_runner.extras.dynamic_texts import fill_texts

    filled = fill_texts(prompt, workflow.conversion, random.Random(number), now)
    # The workflow that goes along says what was drawn, but keeps the names of files open, as that
    # of the frontend does (dynamicPrompts.ts, saveImageExtraOutput.ts).
    prompt = with_values(prompt, filled.drawn)
    extra = workflow.extra(prompt)
    texts = RunTexts(number if filled.drawn else None, {**filled.drawn, **filled.file_names})
    return RunPrompt(with_values(prompt, filled.file_names), extra, workflow.origin, texts)


def may_have_open_texts(prompt: Prompt, conversion: Conversion) -> bool:
    """Whether something may be drawn, dated or named for each run of ``prompt``."""
    if conversion.draws:
        return True
    names = (inputs_of(prompt, node_id).get("filename_prefix") for node_id in prompt)
    return any(isinstance(name, str) and _is_open_file_name(name) for name in names)
