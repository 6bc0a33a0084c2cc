"""What is submitted for one run: a prompt whose texts are drawn and whose file names are dated.

A prompt that may run several times keeps such texts open, and each run fills them in, as ComfyUI's
frontend does when it queues. Names of files (%date:yyyy%) are filled in for workflows of both
formats, choices ({a|b}) only in the UI format, and there only where the class of the node asks for
it.
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

#: A date, or the value of an input: "%date:yyyy-MM-dd%", "%KSampler.seed%".
_is_open_file_name = re.compile("%(date:[^%]*|[^%.]+[.][^%.]+)%").search


#: Uploads a file to another server. Returns the value by which a node there names it.
UploadAgain = Callable[[Server], str]


class RunPrompt(NamedTuple):
    """The prompt of one run, and what belongs to it."""

    prompt: Prompt
    extra: Mapping[str, Any] = {}  # more fields of POST /prompt
    origin: Origin = NO_ORIGIN  # helps to explain why it is refused
    texts: RunTexts = NO_RUN_TEXTS  # those that were filled in
    uploads: Tuple[Tuple[InputRef, UploadAgain], ...] = ()  # its own files, for another server


def draw_number() -> int:
    """A number from which the texts of a run are drawn."""
    return random.randrange(DRAW_RANGE)


def make_run_prompt(
    prompt: Prompt, workflow: Loaded, number: int, now: datetime.datetime
) -> RunPrompt:
    """The run of ``prompt``, which is the prompt of ``workflow`` with other values.

    The same ``number`` always draws the same choices. ``now`` is the date in names of files.
    """
    if not may_have_open_texts(prompt, workflow.conversion):
        return RunPrompt(prompt, workflow.extra(prompt), workflow.origin)
    # Only open texts need it.
    from comfyui_runner.extras.dynamic_texts import fill_texts

    filled = fill_texts(prompt, workflow.conversion, random.Random(number), now)
    # The workflow that is sent along has what was drawn, but keeps the names of files open, as the
    # frontend's does (dynamicPrompts.ts, saveImageExtraOutput.ts).
    drawn_prompt = with_values(prompt, filled.drawn)
    extra = workflow.extra(drawn_prompt)
    run_prompt = with_values(drawn_prompt, filled.file_names)

    drawn_from = None
    if filled.drawn:
        drawn_from = number
    texts = RunTexts(drawn_from, {**filled.drawn, **filled.file_names})
    return RunPrompt(run_prompt, extra, workflow.origin, texts)


def may_have_open_texts(prompt: Prompt, conversion: Conversion) -> bool:
    """Whether something may be drawn, dated or named for each run of ``prompt``."""
    if conversion.draws:
        return True
    for node_id in prompt:
        name = inputs_of(prompt, node_id).get("filename_prefix")
        if isinstance(name, str) and _is_open_file_name(name):
            return True
    return False
