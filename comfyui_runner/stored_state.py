"""What the state file holds of each run, and what follows from it at the next start. Pure."""

from __future__ import annotations

import enum
import json
import os
import zlib
from typing import Dict, Mapping, NamedTuple, Optional

from comfyui_runner.documents import Prompt
from comfyui_runner.flags import NO_STATE
from comfyui_runner.json_text import parse_json
from comfyui_runner.nodes import InputRef
from comfyui_runner.reports import NO_RUN_TEXTS, RunTexts
from comfyui_runner.state import Phase
from comfyui_runner.text import JsonObject, as_dict

#: What the name of a state file ends with, where nobody has chosen another one.
STATE_ENDING = ".runs.sqlite3"

#: How quickly prompts are packed: the most common texts in them shrink to a fifth at once.
PACK_LEVEL = 1

#: A longer prompt, packed, is not kept when its run has ended: it may have pictures in it.
MOST_BYTES_OF_PROMPT = 1 << 20


def choose_state_path(state: Optional[str], workflow: str, is_demo: bool) -> Optional[str]:
    """Where the state is kept: None for in memory only.

    ``state`` is --state (None: it was not given), ``workflow`` the path of the workflow's file.
    """
    if state == NO_STATE or is_demo:
        return None
    if state is not None:
        return state
    if workflow == "-":  # standard input has no folder
        return None
    return os.path.splitext(workflow)[0] + STATE_ENDING


# -- a run -----------------------------------------------------------------------------------------


class StoredRun(NamedTuple):
    """A row of the state file."""

    number: int  # runs are numbered in the order of their start
    prompt_id: str
    created: float  # seconds since 1970
    phase: Phase
    #: As with_open_address() makes it; of a run that has not ended, at its start. Empty where it
    #: cannot be read any more.
    shown: str
    prompt: bytes = b""  # packed; not read where it is not needed
    is_cancelled: bool = False  # whether somebody asked for that, and its end is not known yet
    spooled: Mapping[int, str] = {}  # as in RunRecord


def pack_text(text: str) -> bytes:
    """``text``, JSON, as it is stored."""
    return zlib.compress(text.encode(), PACK_LEVEL)


def unpack_prompt(packed: bytes) -> Prompt:
    """The prompt that pack_text() made ``packed`` of. Raises ValueError."""
    try:
        prompt = parse_json(zlib.decompress(packed))
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if not isinstance(prompt, dict):
        raise ValueError("it is not a prompt")
    return prompt


def check_run(run: StoredRun) -> None:
    """Raises ValueError if ``run``, which has not ended, cannot be taken up."""
    unpack_prompt(run.prompt)
    texts_of_run(run)


def spooled_as_text(spooled: Mapping[int, str]) -> str:
    """``spooled`` as it is stored."""
    return json.dumps(spooled)


def spooled_from_text(text: str) -> Dict[int, str]:
    """What spooled_as_text() made ``text`` of; empty where it is something else."""
    try:
        return {int(turn): str(key) for turn, key in as_dict(parse_json(text)).items()}
    except ValueError:
        return {}


def texts_of_run(run: StoredRun) -> RunTexts:
    """The texts that ``run`` alone has; none where they cannot be read any more."""
    if not run.shown:
        return NO_RUN_TEXTS
    return texts_of(as_dict(parse_json(run.shown)))


def texts_of(shown: JsonObject) -> RunTexts:
    """The texts that a run alone has, from how it is shown."""
    texts: Dict[InputRef, str] = {}
    for name, text in as_dict(shown.get("texts")).items():
        node_id, _, input_name = name.partition(".")
        texts[InputRef(node_id, input_name)] = str(text)
    return RunTexts(shown.get("draw"), texts)


# -- at the next start -----------------------------------------------------------------------------


class TakeUp(enum.Enum):
    """What becomes of a run that the last process did not see end."""

    LOOK_UP = "look up"  # whether ComfyUI ever got it is not known; it is not sent again
    FOLLOW = "follow"
    CANCEL = "cancel"  # somebody asked for that, and ComfyUI had not confirmed it


#: By the phase that was stored last. All other phases are ends.
_TAKE_UP = {
    Phase.SUBMITTING: TakeUp.LOOK_UP,
    Phase.QUEUED: TakeUp.FOLLOW,
    Phase.RUNNING: TakeUp.FOLLOW,
}


def how_to_take_up(phase: Phase, is_cancelled: bool) -> TakeUp:
    """What to do about a run that had not ended when the last process did, in ``phase``."""
    if is_cancelled:
        return TakeUp.CANCEL
    return _TAKE_UP[phase]


def seconds_left(timeout: Optional[float], created: float, now: float) -> Optional[float]:
    """What is left of ``timeout`` of a run that was started at ``created``; None: no limit."""
    if timeout is None:
        return None
    age = max(now - created, 0.0)  # the clock may have been set back
    return max(timeout - age, 0.0)


# -- a file that cannot be used --------------------------------------------------------------------

#: How every SQLite file begins (https://www.sqlite.org/fileformat.html).
SQLITE_SIGNATURE = b"SQLite format 3\0"

#: What the header of our files has at APPLICATION_ID_PLACE: "CfyR".
APPLICATION_ID = 0x43667952
APPLICATION_ID_PLACE = 68


class FileKind(enum.Enum):
    """What the file is that is where the state file should be."""

    OURS = "ours"  # or empty
    DAMAGED = "damaged"  # it was probably ours
    FOREIGN = "foreign"  # it must not be touched


def kind_of_file(head: bytes, name: str) -> FileKind:
    """What a file is that begins with ``head``, of 100 bytes, and is called ``name``."""
    if not head:
        return FileKind.OURS
    id_bytes = head[APPLICATION_ID_PLACE : APPLICATION_ID_PLACE + 4]
    application_id = int.from_bytes(id_bytes, "big")
    is_sqlite = head.startswith(SQLITE_SIGNATURE)
    if is_sqlite and application_id == APPLICATION_ID:
        return FileKind.OURS
    # By its name it is ours, and no other program's mark is in it: a disk that lost power, or is
    # full, leaves zeros and parts of files.
    has_another_mark = is_sqlite and application_id != 0
    if name.endswith(STATE_ENDING) and not has_another_mark:
        return FileKind.DAMAGED
    return FileKind.FOREIGN
