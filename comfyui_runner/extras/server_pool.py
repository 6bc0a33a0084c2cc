"""Several ComfyUIs for one batch: which of them gets a row, and which get none for a while."""

from __future__ import annotations

import asyncio
from typing import Callable, Collection, List, Optional, Sequence, Set

from comfyui_runner.errors import ServerError, ServerUnreachable
from comfyui_runner.retries import backoff, may_be_retried
from comfyui_runner.server import Server
from comfyui_runner.threads import bounded, end_tasks

#: Seconds between two questions whether a server answers again: at first, and at most.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 10.0

#: How often a server may be lost without doing a row in between, before it is used no more.
MOST_LOSSES = 5


class Member:
    """One of the servers, and what is known of it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.rows = 0  #: rows that are on it at the moment
        self.losses = 0  #: how often it was lost since it last did a row
        self.error: Optional[ServerError] = None  #: why it is not used at the moment
        self.is_out = False  #: whether it is used no more

    @property
    def url(self) -> str:
        """Its address, by which people know it."""
        return self.server.address.url

    @property
    def is_usable(self) -> bool:
        """Whether it may get rows."""
        return self.error is None


# -- rules -----------------------------------------------------------------------------------------


def choose_member(
    members: Sequence[Member], in_flight: int, avoided: Collection[str] = ()
) -> Optional[Member]:
    """Which server gets the next row: of those with a free place, the one with the fewest rows.

    None: a place must become free first. ``avoided`` are addresses that have refused the row; they
    count only where nothing else is usable.
    """
    usable = [member for member in members if member.is_usable]
    wanted = [member for member in usable if member.url not in avoided] or usable
    free = [member for member in wanted if member.rows < in_flight]
    return min(free, key=lambda member: member.rows, default=None)


def is_lost_for_good(member: Member, error: ServerError) -> bool:
    """Whether a server that failed with ``error`` is to be used no more.

    One that answers, and refuses us, goes on doing so.
    """
    return member.losses >= MOST_LOSSES or not may_be_retried(error)


def error_of_all(members: Sequence[Member]) -> ServerUnreachable:
    """The error of a batch none of whose servers is left."""
    reasons = " ".join(member.error.message for member in members if member.error is not None)
    return ServerUnreachable(f"No server is left for the rows. {reasons}".rstrip())


async def ask_whether_it_answers(member: Member) -> Optional[ServerError]:
    """The error of one question to a server; None if it answers."""
    server = member.server.fresh()
    seconds = server.limits.connect + server.limits.read
    try:
        await bounded(server.system_stats, seconds=seconds)
    except ServerError as error:
        return error
    finally:
        server.close()
    return None


# -- the pool --------------------------------------------------------------------------------------


class ServerPool:
    """The servers of a batch, each of which takes ``in_flight`` rows at a time.

    A server that is lost gets no rows until it answers again; ``warn`` takes what is to be said of
    that, and ``note`` that it answers again. A batch with one server never loses it here: that one
    is waited for.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        in_flight: int,
        warn: Callable[[str], None],
        note: Callable[[str], None],
    ) -> None:
        self.members = [Member(server) for server in servers]
        self.in_flight = in_flight
        self._warn = warn
        self._note = note
        self._waiting: Set["asyncio.Future[None]"] = set()  # for a place
        self._asking: List["asyncio.Task[None]"] = []  # those that are lost

    @property
    def has_several(self) -> bool:
        """Whether a row that one server cannot do may go to another one."""
        return len(self.members) > 1

    @property
    def places(self) -> int:
        """How many rows can be on their way at a time."""
        return self.in_flight * len(self.members)

    def has_other(self, avoided: Collection[str]) -> bool:
        """Whether a usable server is left beside those with the addresses ``avoided``."""
        return any(member.is_usable and member.url not in avoided for member in self.members)

    async def take_place(self, patience: float, avoided: Collection[str] = ()) -> Member:
        """The server of the next row, which has one row more then; leave_place() ends that.

        Raises ServerUnreachable if no server is usable any more, at the latest ``patience`` seconds
        after the last one was lost.
        """
        while True:
            member = choose_member(self.members, self.in_flight, avoided)
            if member is not None:
                member.rows += 1
                return member
            if all(member.is_out for member in self.members):
                raise error_of_all(self.members)
            any_is_usable = any(member.is_usable for member in self.members)
            if not await self._wait_for_change(None if any_is_usable else patience):
                raise error_of_all(self.members)

    async def _wait_for_change(self, seconds: Optional[float]) -> bool:
        """Waits until a place may be free; False if ``seconds`` were not enough."""
        change: "asyncio.Future[None]" = asyncio.get_running_loop().create_future()
        self._waiting.add(change)
        try:
            await asyncio.wait([change], timeout=seconds)
        finally:
            self._waiting.discard(change)
        return change.done()

    def _note_change(self) -> None:
        for change in self._waiting:
            if not change.done():
                change.set_result(None)

    def leave_place(self, member: Member) -> None:
        """A row is on ``member`` no more."""
        member.rows -= 1
        self._note_change()

    def note_done(self, member: Member) -> None:
        """A row was done there."""
        member.losses = 0

    def note_loss(self, member: Member, error: ServerError) -> None:
        """``member`` failed with ``error``: its rows go elsewhere, until it answers again."""
        if not member.is_usable:
            return  # another of its rows has said so
        member.error = error
        member.losses += 1
        member.is_out = is_lost_for_good(member, error)
        self._note_change()
        if member.is_out:
            self._warn(f"{member.url} gets no more rows: {error.message}")
            return
        self._warn(f"{member.url} gets no rows until it answers: {error.message}")
        self._asking.append(asyncio.ensure_future(self._wait_for_answer(member)))

    async def _wait_for_answer(self, member: Member) -> None:
        """Asks a server that is lost again and again. It ends with the batch, at the latest."""
        attempt = 0
        while member.error is not None:
            await asyncio.sleep(backoff(attempt, first=FIRST_PAUSE, longest=LONGEST_PAUSE))
            attempt += 1
            if await ask_whether_it_answers(member) is None:
                member.error = None
        self._note(f"{member.url} answers, and gets rows.")
        self._note_change()

    async def close(self) -> None:
        """Asks no server any more."""
        await end_tasks(self._asking)
