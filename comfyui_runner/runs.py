"""One prompt that is submitted and followed: what a Session knows of it."""

from __future__ import annotations

import asyncio
from typing import Any, FrozenSet, List, Mapping, Optional, Set

from comfyui_runner.documents import Prompt
from comfyui_runner.events import MessageData, Preview
from comfyui_runner.media import ending_of_data
from comfyui_runner.nodes import class_of, planned_nodes
from comfyui_runner.outputs import (
    SENDS_PICTURES,
    Output,
    choose_received,
    collect_outputs,
    count_missing,
    received_outputs,
)
from comfyui_runner.problems import Problem
from comfyui_runner.remedies import NO_ORIGIN
from comfyui_runner.reports import NO_RUN_TEXTS, PROGRESS_INTERVAL, Throttle
from comfyui_runner.state import Phase, PromptState, node_on_screen

#: Pictures of a node with steps that are kept until it is known that they are not outputs.
PREVIEWS_KEPT = 64


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
        #: More of its extra_data, which the other one overrides: sent, and stored nowhere.
        self.own_extra_data: Mapping[str, Any] = {}
        self.origin = NO_ORIGIN  #: what helps to explain why it is refused
        self.texts = NO_RUN_TEXTS  #: what was drawn for it
        self.patience: Optional[float] = None  #: seconds to try the POST for; None: limits.give_up
        self.dropped: FrozenSet[str] = frozenset()  #: outputs that the server refused
        self.problems: List[Problem] = []  #: what the server refused of it, in words
        self.posting = False  #: a POST is on its way and not answered yet
        self.repeated = False  #: it was posted twice, so it may be in the queue twice
        self.cancelling = False
        self.attached = False  #: somebody else submitted it: its messages go elsewhere

        # Pictures.
        self.preview: Optional[Preview] = None  #: the newest one
        self.pictures: List[Preview] = []  #: those that may be outputs, in their order
        self.pictures_bytes = 0
        self.most_picture_bytes: Optional[int] = None  #: None: there is no limit
        self.dropped_pictures = 0  #: how many came when that many bytes were there already
        self._with_steps: Set[str] = set()  # nodes that reported steps: they send previews

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

    def without_content(self) -> "Run":
        """It when it is over: its id and its end, without prompt, pictures and outputs."""
        run = Run({}, self.prompt_id, self.began, self.over)
        run.state = PromptState(self.prompt_id, self.state.phase, ahead=self.state.ahead)
        return run

    def note_message(self, at: float) -> None:
        """A message about it came: any silence is over."""
        self.heard = at
        self.checks = 0
        self.silence_reported = 0.0

    def note_gap(self) -> None:
        """The socket is closed: messages may be missing from now on."""
        self.state = self.state._replace(gaps=self.state.gaps + 1)

    def note_steps(self, progress: MessageData) -> None:
        """A node reported a step: the pictures that it sends are previews, unless it says else."""
        node_id = node_on_screen(progress)
        if node_id is not None:
            self._with_steps.add(node_id)

    def keep_preview(self, preview: Preview) -> None:
        """Keeps the newest picture, and those that may be outputs."""
        node_id = preview.node_id
        is_guessed = node_id is None  # without metadata
        if is_guessed:  # one node runs at a time
            node_id = next(iter(self.state.running), None)
        self.preview = preview = preview._replace(node_id=node_id)
        if node_id is None:
            return

        progress = self.state.running.get(node_id)
        if progress is not None and progress.max:
            self._with_steps.add(node_id)
        sends_pictures = class_of(self.prompt, node_id) == SENDS_PICTURES
        if not sends_pictures and not ending_of_data(preview.image):
            return  # not a whole picture
        # Right after a reconnection, ComfyUI sends previews without metadata. Another node may run
        # by then than the last one of which a message came.
        if is_guessed and self.state.gaps and not sends_pictures:
            return
        size = self.pictures_bytes + len(preview.image)
        if self.most_picture_bytes is not None and size > self.most_picture_bytes:
            self.dropped_pictures += 1
            return
        self.pictures.append(preview)
        self.pictures_bytes = size
        if node_id in self._with_steps and not sends_pictures:
            self._drop_old_preview(node_id)

    def _drop_old_preview(self, node_id: str) -> None:
        """Keeps only the newest pictures of a node with steps, which are probably previews."""
        of_node = [number for number, each in enumerate(self.pictures) if each.node_id == node_id]
        if len(of_node) > PREVIEWS_KEPT:
            dropped = self.pictures.pop(of_node[0])
            self.pictures_bytes -= len(dropped.image)

    def received(self) -> List[Preview]:
        """The pictures that came over the WebSocket alone and are outputs."""
        return choose_received(self.pictures, self.state.outputs, self.prompt, self._with_steps)

    def outputs(self) -> List[Output]:
        """All that it made, as far as is known."""
        listed = collect_outputs(self.state.outputs, self.prompt)
        return listed + received_outputs(self.received(), self.prompt)

    def count_missing_pictures(self) -> int:
        """How many pictures did not come that nodes say they sent."""
        return count_missing(self.received(), self.state.outputs)
