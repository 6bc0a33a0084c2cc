"""Which ComfyUI a call uses: the first address that answers or, with --demo, the simulator."""

from __future__ import annotations

import asyncio
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from comfyui_runner.addresses import Address, parse_address
from comfyui_runner.console import Console
from comfyui_runner.errors import ServerError, ServerTooOld, ServerUnreachable, UsageError
from comfyui_runner.loading import Define
from comfyui_runner.reports import Report
from comfyui_runner.retries import backoff, may_be_retried
from comfyui_runner.server import MOST_CLASSES_ONE_BY_ONE, Server
from comfyui_runner.settings import Settings
from comfyui_runner.text import as_dict
from comfyui_runner.third_party import import_third_party
from comfyui_runner.threads import bounded, bounded_here, end_tasks, in_thread
from comfyui_runner.versions import server_in_words, version_warning

#: Tries of the first request to a server that is slow to answer.
FIRST_TRIES = 3

START_COMFYUI = (
    "Start ComfyUI (in its folder: python main.py, or the Desktop app), give its address with\n"
    "--server URL, or try the runner without it: --demo"
)
START_COMFYUI_THERE = (
    "Start ComfyUI there, or give another address with --server URL. --demo works without ComfyUI."
)


class ComfyUI:
    """The server of a call, looked for when a step first needs it.

    At the end of its ``async with`` block the simulator is stopped, where --demo started one.
    """

    def __init__(self, settings: Settings, console: Console) -> None:
        self.settings = settings
        self.console = console
        self.server: Optional[Server] = None  #: once it is found
        self.stats: Dict[str, Any] = {}  #: its answer to GET /system_stats
        self.searched: List[Tuple[Server, Optional[ServerError]]] = []  #: by the last search
        self._simulator: Any = None
        self._notices_are_shown = False

    async def __aenter__(self) -> "ComfyUI":
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._simulator is not None:
            await in_thread(self._simulator.stop)

    async def find(self) -> Server:
        """The first server that answers. Raises ServerError (NO_SERVER), or Stopped.

        A batch that uses several looks for all of them: ``searched`` has the errors of those that
        do not answer.
        """
        if self.server is not None:
            return self.server
        server, self.stats = await self.console.unless_stopped(self._find())
        self.server = server
        return server

    async def _find(self) -> Tuple[Server, Dict[str, Any]]:
        limits = self.settings.limits
        if self.settings.spreads_rows:
            limits = limits._replace(give_up=limits.give_up_one)
        servers = [Server(address, limits, self.console.secrets) for address in self._addresses()]
        self._show_notices_of_addresses(servers)
        self.searched.clear()  # a service searches again and again until ComfyUI comes

        # At the same time: on Windows it takes two seconds until a port refuses.
        searches = [asyncio.ensure_future(ask_for_stats(server)) for server in servers]
        found: Optional[Tuple[Server, Dict[str, Any]]] = None
        errors: List[ServerError] = []
        try:
            for server, search in zip(servers, searches):
                try:
                    stats = await search
                except ServerError as error:
                    errors.append(error)
                    self.searched.append((server, error))
                    continue
                self.searched.append((server, None))
                found = found or (server, stats)
                if not self.settings.spreads_rows:
                    self._report_server(server.address, stats, tried=errors)
                    return found
                self._report_server(server.address, stats, tried=())
        finally:
            await end_tasks(searches)
        if found is None:
            raise error_of_search(errors)
        return found

    def _show_notices_of_addresses(self, servers: Sequence[Server]) -> None:
        """Shows what was changed in the addresses as they were typed, once."""
        notices = [server.address.notice for server in servers if server.address.notice]
        if not self._notices_are_shown:
            for notice in notices:
                self.console.note(notice)
        self._notices_are_shown = True

    def _addresses(self) -> Tuple[Address, ...]:
        """Where ComfyUI may be, in order of preference."""
        if self.settings.demo:
            return (self._start_simulator(),)
        return self.settings.servers

    def _start_simulator(self) -> Address:
        try:
            from comfyui_runner.simulator import Simulator  # only --demo needs it
        except ImportError:
            raise UsageError(
                "--demo needs the folder comfyui_runner/simulator, which is missing.",
                "Get the whole project: the one file does not contain the simulator.",
            ) from None
        import_third_party("websockets")
        self._simulator = Simulator(step_seconds=0.15, previews=True)
        self._simulator.start()
        return parse_address(self._simulator.url)

    def _report_server(
        self, address: Address, stats: Mapping[str, Any], tried: Sequence[ServerError]
    ) -> None:
        messages = [error.message for error in tried]
        report: Report = {"event": "server", "url": address.url, **server_in_words(stats)}
        self.console.report(None, {**report, "tried": messages})
        warning = version_warning(stats, address.url)
        if warning:
            self.console.notice(warning)


async def ask_for_stats(server: Server) -> Dict[str, Any]:
    """The server's answer to GET /system_stats, its first request. Raises ServerError.

    A connection that is refused is not tried again: nothing listens there.
    """
    seconds = server.limits.connect + 10.0
    for attempt in range(FIRST_TRIES - 1):
        try:
            return await bounded(server.system_stats, seconds=seconds)
        except ServerError as error:
            if error.refused or not may_be_retried(error):
                raise
        await asyncio.sleep(backoff(attempt, first=0.3))
    return await bounded(server.system_stats, seconds=seconds)


def error_of_search(errors: Sequence[ServerError]) -> ServerError:
    """The error of a search in which no address was right; ``errors`` has one for each of them."""
    for error in errors:
        if isinstance(error, ServerTooOld):
            return error  # it answers, so what helps is an update of it
    if len(errors) > 1:
        tried = " ".join(error.message for error in errors)
        return ServerUnreachable(f"No ComfyUI answers. Tried: {tried}", START_COMFYUI)
    error = errors[0]
    if not error.remedy:
        error.remedy = START_COMFYUI_THERE
    return error


# -- definitions of classes ------------------------------------------------------------------------


def definitions_in(object_info: Mapping[str, Any]) -> Define:
    """Looks definitions up in ``object_info``, an answer of GET /object_info."""

    def define(classes: Optional[Iterable[str]]) -> Mapping[str, Any]:
        if classes is None:
            return object_info
        return {name: as_dict(object_info.get(name)) for name in classes}

    return define


def definitions_on(server: Server) -> Define:
    """Looks definitions up on ``server``. Once all have been read, they are not read again.

    The lookups block, each of them for a bounded time: they are made in threads.
    """
    limits = server.limits
    everything: Dict[str, Any] = {}

    def define(classes: Optional[Iterable[str]]) -> Mapping[str, Any]:
        wanted = None if classes is None else sorted(set(classes))
        needs_everything = wanted is None or len(wanted) > MOST_CLASSES_ONE_BY_ONE
        if needs_everything and not everything:
            seconds = limits.connect + limits.post
            everything.update(bounded_here(server.all_object_info, seconds=seconds))
        if everything:
            return definitions_in(everything)(wanted)
        return {name: look_up(name) for name in wanted or ()}

    def look_up(class_type: str) -> Dict[str, Any]:
        seconds = limits.connect + limits.read
        return bounded_here(server.object_info, class_type, seconds=seconds)

    return define
