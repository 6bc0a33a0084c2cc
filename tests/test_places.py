"""Who has one of the places of the service, without a socket."""

from __future__ import annotations

from typing import List

from comfyui_runner.places import PLACES, PLACES_FOR_HEALTH, Places


def fill(places: Places, count: int, held: bool) -> List[str]:
    """Connections that are let in; those that are held have shown that they may use the service."""
    connections = [f"{held} {number}" for number in range(count)]
    for connection in connections:
        assert places.enter(connection).is_let_in
        if held:
            assert places.hold(connection)
    return connections


def test_there_are_places_for_all_and_more_for_health() -> None:
    places = Places()
    fill(places, PLACES, held=True)
    for number in range(PLACES_FOR_HEALTH):
        entry = places.enter(number)
        assert entry.is_let_in and entry.loser is None and places.is_crowded(number)
    assert not places.enter("one more").is_let_in
    assert len(places) == PLACES + PLACES_FOR_HEALTH
    places.leave(0)
    assert places.enter("one more").is_let_in and places.is_crowded("one more")


def test_the_longest_wait_loses_its_place() -> None:
    places = Places()
    waiting = fill(places, PLACES, held=False)
    assert places.hold(waiting[0])
    entry = places.enter("new")
    assert (entry.is_let_in, entry.loser) == (True, waiting[1])
    assert not places.is_crowded("new") and len(places) == PLACES
    assert not places.hold(waiting[1])  # what it asks for now is not done
    places.leave(waiting[1])
    places.offer(waiting[1])
    assert places.enter("newer").loser == waiting[2]


def test_an_answer_begins_the_wait_anew() -> None:
    places = Places()
    first, second, *_ = fill(places, PLACES, held=False)
    places.hold(first)
    places.offer(first)
    places.offer(second)  # without the token
    losers = [places.enter(f"new {number}").loser for number in range(PLACES)]
    assert losers[-2:] == [first, second]


def test_a_place_for_health_is_not_waited_in() -> None:
    places = Places()
    fill(places, PLACES, held=True)
    places.enter("watchdog")
    places.offer("watchdog")
    entry = places.enter("new")
    assert entry.loser is None and places.is_crowded("new")
