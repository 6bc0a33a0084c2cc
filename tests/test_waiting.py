"""Clients that wait for runs: how many may, how long they do, and what becomes of those that leave."""

from __future__ import annotations

import threading
import time

import pytest

from comfyui_runner.messages import HttpError
from comfyui_runner.places import PLACES
from comfyui_runner.waiting import MOST_CLIENTS_WAITING, WaitingRoom, wait_unless_left


def stays() -> bool:
    return False


def leaves() -> bool:
    return True


def test_places_are_left_for_those_who_do_not_wait() -> None:
    assert MOST_CLIENTS_WAITING == 48 == PLACES - 16


def test_one_too_many_is_asked_to_come_again() -> None:
    room = WaitingRoom(most=2)
    with room.place():
        with room.place(), pytest.raises(HttpError) as caught, room.place():
            pass
        assert len(room) == 1
        with room.place():
            assert len(room) == 2
    assert len(room) == 0
    assert (caught.value.http_status, caught.value.type) == (429, "too_many_waiting")
    assert caught.value.headers == (("Retry-After", "2"),)
    assert caught.value.message.startswith("2 clients are already waiting for runs.")


def test_a_place_is_free_again_whatever_happens_in_it() -> None:
    room = WaitingRoom()
    with pytest.raises(ValueError), room.place():
        raise ValueError
    assert len(room) == 0


def test_it_waits_until_the_end() -> None:
    over = threading.Event()
    threading.Timer(0.05, over.set).start()
    assert wait_unless_left(over, float("inf"), stays)
    assert over.is_set()
    assert wait_unless_left(over, 0.0, leaves)


def test_it_waits_no_longer_than_it_may() -> None:
    over = threading.Event()
    began = time.monotonic()
    assert wait_unless_left(over, 0.4, stays)  # longer than between two looks
    assert 0.4 <= time.monotonic() - began < 5.0
    assert wait_unless_left(over, 0.0, leaves)
    assert not over.is_set()


def test_who_leaves_is_noticed() -> None:
    assert not wait_unless_left(threading.Event(), float("inf"), leaves)


def test_who_leaves_just_after_the_end_has_waited_for_it() -> None:
    over = threading.Event()

    def ends_meanwhile() -> bool:
        over.set()
        return True

    assert wait_unless_left(over, float("inf"), ends_meanwhile)
