"""Which of several servers gets a row of a batch, and which get none for a while."""

from __future__ import annotations

import asyncio
from typing import Any, List, Optional, Sequence

import pytest
from support import FAST

from comfyui_runner.addresses import parse_address
from comfyui_runner.errors import ServerAnswer, ServerError, ServerUnreachable
from comfyui_runner.extras.server_pool import (
    MOST_LOSSES,
    Member,
    ServerPool,
    choose_member,
    error_of_all,
    is_lost_for_good,
)
from comfyui_runner.server import Server

DOWN = ServerUnreachable("It does not answer.")
REFUSED = ServerAnswer("It refuses us.", status=401)


def server_at(port: int) -> Server:
    """A server at a port of this machine, where nothing listens."""
    return Server(parse_address(f"http://127.0.0.1:{port}"), FAST)


def member_with(port: int, rows: int = 0, error: Optional[ServerError] = None) -> Member:
    member = Member(server_at(port))
    member.rows, member.error = rows, error
    return member


def port_of(member: Optional[Member]) -> Optional[int]:
    return None if member is None else member.server.address.port


@pytest.mark.parametrize(
    ("members", "avoided", "port"),
    [
        ([member_with(1), member_with(2)], (), 1),
        ([member_with(1, rows=1), member_with(2)], (), 2),
        ([member_with(1, rows=1), member_with(2, rows=1)], (), 1),
        ([member_with(1, rows=2), member_with(2, rows=2)], (), None),
        ([member_with(1, error=DOWN), member_with(2, rows=1)], (), 2),
        ([member_with(1, error=DOWN), member_with(2, rows=2)], (), None),
        # A server that has refused the row gets it again only if no other is left.
        ([member_with(1), member_with(2, rows=1)], ("http://127.0.0.1:1",), 2),
        ([member_with(1), member_with(2, rows=2)], ("http://127.0.0.1:1",), None),
        ([member_with(1), member_with(2, error=DOWN)], ("http://127.0.0.1:1",), 1),
    ],
)
def test_a_row_goes_where_most_places_are_free(
    members: Sequence[Member], avoided: Sequence[str], port: Optional[int]
) -> None:
    assert port_of(choose_member(members, 2, avoided)) == port


@pytest.mark.parametrize(
    ("losses", "error", "expected"),
    [(1, DOWN, False), (MOST_LOSSES, DOWN, True), (1, REFUSED, True)],
)
def test_a_server_that_refuses_us_or_is_lost_again_and_again_is_used_no_more(
    losses: int, error: ServerError, expected: bool
) -> None:
    member = member_with(1)
    member.losses = losses
    assert is_lost_for_good(member, error) is expected


def test_the_end_of_all_servers_names_the_reason_of_each() -> None:
    error = error_of_all([member_with(1, error=DOWN), member_with(2, error=REFUSED)])
    assert error.message == "No server is left for the rows. It does not answer. It refuses us."


def test_who_waits_for_a_place_gets_it_when_a_row_ends() -> None:
    async def story() -> None:
        pool = ServerPool([server_at(1), server_at(2)], 1, print, print)
        first, second = await pool.take_place(9.0), await pool.take_place(9.0)
        assert (port_of(first), port_of(second)) == (1, 2)
        waiting = asyncio.ensure_future(pool.take_place(9.0))
        assert not (await asyncio.wait([waiting], timeout=0.05))[0]
        pool.leave_place(second)
        assert port_of(await asyncio.wait_for(waiting, 5.0)) == 2

    asyncio.run(story())


def test_a_lost_server_gets_rows_again_when_it_answers(simulator: Any) -> None:
    async def story() -> None:
        warnings: List[str] = []
        news: List[str] = []
        simulator.crash()
        pool = ServerPool([Server(parse_address(simulator.url), FAST), server_at(1)], 1, warnings.append, news.append)
        for member in pool.members:
            pool.note_loss(member, DOWN)
            pool.note_loss(member, DOWN)  # by another of its rows: it is said once
        waiting = asyncio.ensure_future(pool.take_place(9.0))
        await asyncio.sleep(0)
        simulator.revive()
        assert (await asyncio.wait_for(waiting, 9.0)).url == simulator.url
        await pool.close()
        assert warnings == [
            f"{simulator.url} gets no rows until it answers: It does not answer.",
            "http://127.0.0.1:1 gets no rows until it answers: It does not answer.",
        ]
        assert news == [f"{simulator.url} answers, and gets rows."]

    asyncio.run(story())


def test_nobody_waits_longer_than_patience_for_servers_that_are_all_lost() -> None:
    async def story() -> None:
        pool = ServerPool([server_at(1), server_at(2)], 1, lambda _: None, lambda _: None)
        for member in pool.members:
            pool.note_loss(member, DOWN)
        with pytest.raises(ServerUnreachable, match="No server is left"):
            await pool.take_place(0.1)
        await pool.close()

    asyncio.run(story())


def test_servers_that_all_refuse_us_are_not_waited_for() -> None:
    async def story() -> None:
        pool = ServerPool([server_at(1), server_at(2)], 1, lambda _: None, lambda _: None)
        for member in pool.members:
            pool.note_loss(member, REFUSED)
        with pytest.raises(ServerUnreachable, match="It refuses us"):
            await asyncio.wait_for(pool.take_place(300.0), 5.0)

    asyncio.run(story())


def test_a_row_that_is_done_makes_up_for_losses() -> None:
    pool = ServerPool([server_at(1)], 1, print, print)
    pool.members[0].losses = 3
    pool.note_done(pool.members[0])
    assert pool.members[0].losses == 0 and not pool.has_several
