"""One prompt that is submitted and followed: what a Session knows of it."""

from __future__ import annotations

import asyncio
from typing import Any, FrozenSet, List, Mapping, Optional

from comfyui_runner.documents import Prompt
from comfyui_runner.events import Preview
from comfyui_runner.nodes import class_of, planned_nodes
from comfyui_runner.problems import Problem
from comfyui_runner.remedies import NO_ORIGIN
from comfyui_runner.reports import PROGRESS_INTERVAL, Throttle
from comfyui_runner.state import Phase, PromptState


class Run:
    """One prompt that a Session submits and follows. Made by Session.new_run().

    ``now`` is the time on the clock of the session. ``over`` is set when ``state.phase.over``.
    """

    def __init__(self, prompt: Prompt, prompt_id: str, now: float, over: "asyncio.Event") -> None:
        self.prompt = prompt
        self.state = PromptState(prompt_id, planned=planned_nodes(prompt))
        self.over = over
        self.began = now

        # Submitting.
        self.extra: Mapping[str, Any] = {}  #: more fields of POST /prompt
        self.origin = NO_ORIGIN  #: what helps to explain why it is refused
        self.patience: Optional[float] = None  #: seconds to try the POST for; None: limits.give_up
        self.dropped: FrozenSet[str] = frozenset()  #: outputs that the server refused
        self.problems: List[Problem] = []  #: what the server refused of it, in words
        self.posting = False  #: a POST is on its way and not answered yet
        self.repeated = False  #: it was posted twice, so it may be in the queue twice
        self.cancelling = False
        self.attached = False  #: somebody else submitted it: its messages go elsewhere

        # Pictures.
        self.preview: Optional[Preview] = None  #: the newest one
        self.received: List[Preview] = []  #: whole pictures of SaveImageWebsocket nodes

        # When it was heard of, looked at and reported.
        self.heard = now
        self.checked = now
        self.checks = 0  #: readings of queue and history since the last message
        self.hinted_at: Optional[float] = None  #: a status message hinted then that it may be over
        self.hint_followed_at: Optional[float] = None  #: the history was read then for a hint
        self.silence_reported = 0.0  #: the length of the silence, in seconds
        self.progress_throttle = Throttle(PROGRESS_INTERVAL)

    @property
    def prompt_id(self) -> str:
        """The id under which it is submitted."""
        return self.state.prompt_id

    @property
    def is_open(self) -> bool:
        """Whether the server has it, as far as is known, and it is not over."""
        return self.state.phase in (Phase.QUEUED, Phase.RUNNING)

    def note_message(self, at: float) -> None:
        """A message about it came: any silence is over."""
        self.heard = at
        self.checks = 0
        self.silence_reported = 0.0

    def note_gap(self) -> None:
        """The socket is closed: messages may be missing from now on."""
        self.state = self.state._replace(gaps=self.state.gaps + 1)

    def keep_preview(self, preview: Preview) -> None:
        """Keeps the newest picture, and every picture of a SaveImageWebsocket node."""
        node_id = preview.node_id
        if node_id is None:  # without metadata: one node runs at a time
            node_id = next(iter(self.state.running), None)
        self.preview = preview._replace(node_id=node_id)
        if node_id is not None and class_of(self.prompt, node_id) == "SaveImageWebsocket":
            self.received.append(self.preview)
