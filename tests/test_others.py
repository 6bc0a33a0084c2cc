"""How many prompts of others are in ComfyUI's queue, by its number and ours."""

from __future__ import annotations

from comfyui_runner.others import UNKNOWN_LENGTH, Others, QueueLength, SettledOthers, count_others


def test_others_are_what_is_not_ours_and_one_prompt_runs_at_a_time() -> None:
    assert count_others(UNKNOWN_LENGTH, 0, False) is None
    assert count_others(QueueLength(0, 1.0), 0, False) == Others(0, 0)
    assert count_others(QueueLength(3, 1.0), 0, False) == Others(1, 2)
    assert count_others(QueueLength(3, 1.0), 1, True) == Others(0, 2)  # ours runs, theirs wait
    assert count_others(QueueLength(3, 1.0), 1, False) == Others(1, 1)  # ours waits behind theirs
    assert count_others(QueueLength(1, 1.0), 1, True) == Others(0, 0)
    assert count_others(QueueLength(0, 1.0), 2, False) == Others(0, 0)  # ours are still on their way
    assert Others(1, 2).to_json() == {"running": 1, "waiting": 2}


def test_a_number_is_shown_when_it_has_been_the_same_for_a_while() -> None:
    others = SettledOthers(0.5)
    assert not others.look(Others(0, 0), 1.0) and others.shown is None
    assert others.look(Others(0, 0), 1.5) and others.shown == Others(0, 0)
    assert not others.look(Others(0, 0), 1.6)
    assert not others.look(Others(1, 0), 2.0)  # a run of ours ended: its number came a moment later
    assert not others.look(Others(0, 0), 2.1)
    assert not others.look(Others(1, 0), 3.0)
    assert not others.look(Others(1, 1), 3.4)
    assert not others.look(Others(1, 1), 3.8) and others.shown == Others(0, 0)
    assert others.look(Others(1, 1), 3.9) and others.shown == Others(1, 1)
    assert not others.look(None, 4.0)
    assert others.look(None, 5.0) and others.shown is None
