"""The ComfyUI behind the service: where it is, whether it answers, what is known of its nodes."""

from __future__ import annotations

import asyncio
import time
from typing import (
    Any,
    Callable,
    Collection,
    Dict,
    Iterable,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

from comfyui_runner.documents import Prompt
from comfyui_runner.edits import EditError
from comfyui_runner.errors import ServerError, ServerGone, ServerTooOld
from comfyui_runner.messages import RETRY_AFTER, HttpError
from comfyui_runner.model_names import nodes_with_unknown_models, with_names_of_server
from comfyui_runner.nodes import class_of
from comfyui_runner.others import UNKNOWN_LENGTH, QueueLength
from comfyui_runner.problems import Problem
from comfyui_runner.remedies import Origin, add_remedies
from comfyui_runner.server import Server, split_look_up
from comfyui_runner.text import JsonObject, as_dict, as_list, as_number
from comfyui_runner.threads import Result, bounded, bounded_here, end_tasks
from comfyui_runner.versions import version_warning

#: Bytes of an upload where ComfyUI does not say what it takes (its own default).
DEFAULT_UPLOAD_LIMIT = 100 << 20


class Check(NamedTuple):
    """Whether ComfyUI came or went, and what people should know of it."""

    has_changed: bool
    warnings: Tuple[str, ...] = ()
    news: str = ""  # that it is available now


async def ask_for_stats_once(server: Server) -> Dict[str, Any]:
    """The server's answer to one GET /system_stats. Raises ServerError."""
    return await bounded(server.system_stats, seconds=server.limits.connect + 10.0)


async def ask_for_queue_length(server: Server) -> QueueLength:
    """How many prompts the server has; not known where it does not say. Raises ServerGone."""
    try:
        prompts = await bounded(server.queue_length, seconds=server.limits.read)
    except ServerGone:
        raise
    except ServerError:
        prompts = None
    return QueueLength(prompts, time.monotonic())


class Backend:
    """The first of ``servers`` that answers.

    check() runs in the loop, the other methods in any thread: each attribute is set in one step.
    """

    def __init__(self, servers: Sequence[Server], is_shown: bool = False) -> None:
        """``is_shown``: people have been shown that it answers, and its version."""
        self.server = servers[0]
        self.connected = False
        self.queue_length = UNKNOWN_LENGTH  #: at the last check
        #: every class that was asked for so far, as GET /object_info has it
        self.object_info: Dict[str, Any] = {}
        self._candidates = servers
        self._stats: JsonObject = {}
        self._features: JsonObject = {}
        self._is_shown = is_shown
        self._failures = 0  # of GET /system_stats, in a row
        self._too_old = ""  # what was said of a ComfyUI that is too old

    @property
    def upload_limit(self) -> int:
        """Bytes of an upload that ComfyUI takes."""
        return int(as_number(self._features.get("max_upload_size"), DEFAULT_UPLOAD_LIMIT))

    def to_json(self) -> JsonObject:
        """ComfyUI's part of GET /status."""
        devices = as_list(self._stats.get("devices"))
        first_device = as_dict(next(iter(devices), None))
        return {
            "url": self.server.address.url,
            "connected": self.connected,
            "version": as_dict(self._stats.get("system")).get("comfyui_version"),
            "device": first_device.get("name"),
        }

    def require_connection(self) -> None:
        """Raises HttpError 503 while ComfyUI does not answer, or is too old."""
        if self.connected:
            return
        reason = self._too_old or f"ComfyUI at {self.server.address.url} does not answer."
        headers = (("Retry-After", RETRY_AFTER),)
        raise HttpError(503, "comfyui_unreachable", reason, headers=headers)

    # -- in the loop -----------------------------------------------------------------------------

    async def check(self) -> Check:
        """Ask every candidate until one answers; from then on that one alone is asked."""
        was_connected = self.connected
        warnings: List[str] = []
        # At the same time: on Windows it takes two seconds until a port refuses.
        candidates = self._candidates
        searches = [asyncio.ensure_future(ask_for_stats_once(server)) for server in candidates]
        try:
            for server, search in zip(candidates, searches):
                try:
                    await self._use(server, await search)
                except ServerGone:  # the load balancer has other servers
                    self.server = server.fresh()
                    self._candidates = (self.server,)
                except ServerError as error:
                    warnings += self._note_failure(error)
                else:
                    break
        finally:
            await end_tasks(searches)
        news = ""
        if self.connected and not was_connected:
            self.object_info = {}  # it may have other nodes and files now
            url = self.server.address.url
            if not self._is_shown:
                news = f"Connected to ComfyUI at {url}."
                warnings.append(version_warning(self._stats, url))
            self._is_shown = False  # when it comes back, it is news
        has_changed = self.connected != was_connected
        return Check(has_changed, tuple(filter(None, warnings)), news)

    async def _use(self, server: Server, stats: JsonObject) -> None:
        """Keep ``server``, which answered with ``stats``. Raises ServerError if it has gone."""
        if not self.connected:
            features = await bounded(server.features, seconds=server.limits.read)
            self._features = as_dict(features)
        self.queue_length = await ask_for_queue_length(server)
        self._stats = stats
        self.server, self._candidates = server, (server,)
        self.connected, self._failures, self._too_old = True, 0, ""

    def _note_failure(self, error: ServerError) -> List[str]:
        """Count a failure, and see whether the connection is lost by it; warnings for people."""
        self._failures += 1
        if isinstance(error, ServerTooOld):
            return self._note_old_version(error)

        is_lost = error.refused or self._failures > 1  # one failure may be an accident
        if not self.connected or not is_lost:
            return []
        self.connected = False
        return [f"ComfyUI does not answer; trying again. ({error.message})"]

    def _note_old_version(self, error: ServerTooOld) -> List[str]:
        """It answers, but counts as not connected; a warning for people, once."""
        self.connected = False
        if error.message == self._too_old:
            return []
        self._too_old = error.message
        return [error.message]

    # -- in the threads: what is known of the nodes ----------------------------------------------

    def look_up(self, prompt: JsonObject, again: Iterable[str] = ()) -> JsonObject:
        """The definitions of the classes in ``prompt``, as far as they are known or can be had now.

        Those of the nodes in ``again`` are read anew: their lists of files may have grown.
        """
        limits = self.server.limits
        seconds = limits.connect + max(limits.read, limits.post)
        classes_again = {class_of(prompt, node_id) for node_id in again}
        classes = {class_of(prompt, node_id) for node_id in prompt}
        wanted = [name for name in classes if name not in self.object_info or name in classes_again]
        for part in split_look_up(sorted(wanted)):
            if not self.connected:
                break
            try:
                found = bounded_here(self.server.definitions, part, seconds=seconds)
                self.object_info.update(found)
            except ServerError:
                break  # the next ones would fail as slowly
        return self.object_info

    def with_fresh_lists(
        self,
        prompt: JsonObject,
        attempt: Callable[[JsonObject], Result],
        find_doubtful: Callable[[Result], Collection[str]] = lambda result: (),
    ) -> Result:
        """``attempt(object_info)``, for the classes in ``prompt``. Raises what it raises.

        Where a value is not in a list, or nodes of the result are doubtful (``find_doubtful()``),
        it is called once more, with the lists as they are now: lists of files grow.
        """
        try:
            result = attempt(self.look_up(prompt))
        except EditError as error:
            if error.type != "value_not_in_list" or error.node_id is None:
                raise
            stale_nodes: Collection[str] = [error.node_id]
        else:
            stale_nodes = find_doubtful(result)
            if not stale_nodes:
                return result
        return attempt(self.look_up(prompt, stale_nodes))

    def name_models(self, prompt: Prompt) -> Tuple[Prompt, Sequence[str]]:
        """A copy of ``prompt`` whose models have ComfyUI's own names, and a notice of each."""
        object_info = self.look_up(prompt)
        unknown = nodes_with_unknown_models(prompt, object_info)
        if unknown:  # they may have come meanwhile
            object_info = self.look_up(prompt, unknown)
        return with_names_of_server(prompt, object_info)

    def find_problems(self, prompt: JsonObject, origin: Origin) -> Tuple[JsonObject, List[Problem]]:
        """What is known of the nodes of ``prompt``, and what ComfyUI would refuse of it."""
        # Only the start of the service and PUT /workflow need it.
        from comfyui_runner.extras.checks import check_prompt

        object_info = self.look_up(prompt)
        problems = check_prompt(prompt, object_info)
        if problems:  # what was wrong when it was last looked up may have come meanwhile
            object_info = self.look_up(prompt, {problem.node_id for problem in problems})
            problems = check_prompt(prompt, object_info)
        return object_info, add_remedies(problems, prompt, origin)

    def look_up_all(self, classes: Optional[Iterable[str]]) -> JsonObject:
        """The definitions of every class, not only ``classes``. Raises HttpError, ServerError."""
        self.require_connection()
        seconds = self.server.limits.connect + self.server.limits.post
        self.object_info = bounded_here(self.server.all_object_info, seconds=seconds)
        return self.object_info
