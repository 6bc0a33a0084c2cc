"""Messages and answers of a server become the state of one prompt, whatever is missing, late or mad."""

from __future__ import annotations

import math
import time
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import VERSIONS, answers, anything, few, history_entries, many, messages, numbers, recorded
from support import node, slow_prompt

from comfyui_runner.events import Event, parse_message
from comfyui_runner.limits import DEFAULT_LIMITS, Limits
from comfyui_runner.nodes import planned_nodes
from comfyui_runner.problems import dropped_outputs
from comfyui_runner.state import (
    NOT_IN_QUEUE,
    NextCheck,
    NodeProgress,
    Phase,
    PromptState,
    QueuePlace,
    Reading,
    is_hint,
    lost,
    place_in_queue,
    prompt_on_server,
    prompts_in_queue,
    reconcile,
    reduce,
    run_seconds,
    seconds_to_check,
    seconds_to_hinted_look,
    wholly_cached,
)

#: A chain of three nodes; the last one saves.
CHAIN = {
    "1": node("Loader", "Loader"),
    "2": node("Sampler", "Sampler", model=["1", 0]),
    "3": node("SaveImage", "Save", images=["2", 0]),
}


def new(phase: Phase = Phase.QUEUED, **known: Any) -> PromptState:
    """The state of CHAIN under the prompt_id "p"."""
    return PromptState("p", phase, planned=frozenset(CHAIN), **known)


def after(state: PromptState, *events: Tuple[str, Dict[str, Any]], at: float = 10.0) -> PromptState:
    """``state`` after these messages, which come a second apart; the first one at ``at``."""
    for number, (kind, data) in enumerate(events):
        state = reduce(state, Event(kind, "p", {"prompt_id": "p", **data}, at + number))
    return state


START = ("execution_start", {"timestamp": 1000})
OVER = ("executing", {"node": None})


def executing(node_id: str, **more: Any) -> Tuple[str, Dict[str, Any]]:
    return ("executing", {"node": node_id, "display_node": node_id, **more})


def progress_state(**states: Tuple[float, float, str]) -> Tuple[str, Dict[str, Any]]:
    """Nodes with (value, max, state); ``n5`` stands for node 5."""
    nodes = {
        key[1:]: {"value": value, "max": maximum, "state": state, "node_id": key[1:], "display_node_id": key[1:]}
        for key, (value, maximum, state) in states.items()
    }
    return ("progress_state", {"nodes": nodes})


# ------------------------------------------------------------------------------------------------
# What real servers said
# ------------------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """What a recorded prompt came to."""

    phases: str  # each phase once, in its order
    ending: Optional[Phase] = None  # as the socket reported it
    finished: str = ""  # nodes in the order in which they ended
    cached: str = ""
    outputs: str = ""  # nodes that gave something
    failed_at: str = ""
    wholly_cached: bool = False


class Followed(NamedTuple):
    """One prompt of a recording, followed from its POST to its end."""

    seen: Seen
    state: PromptState
    history: List[PromptState]  # the state after each message


def follow(version: str, scenario: str, number: int) -> Followed:
    """Follows the ``number``-th prompt that a recording posted, as a Session would."""
    steps = recorded(version, scenario)
    posts = [step for step in steps if step.route == "POST /prompt" and step.status == 200]
    post = posts[number]
    prompt, prompt_id = post.request["prompt"], post.body["prompt_id"]
    state = PromptState(prompt_id, planned=planned_nodes(prompt, dropped_outputs(post.body)))
    history = [state]
    socket_ending: Optional[Phase] = None

    def look(state: PromptState, queue: Any, entries: Any, at: float) -> PromptState:
        return reconcile(state, Reading(place_in_queue(queue, prompt_id), entries.get(prompt_id)), prompt, at)

    for step in steps:
        if step is post and state.phase is Phase.SUBMITTING:
            state = state._replace(phase=Phase.QUEUED)
        elif step.socket:
            event = parse_message(step.frame, step.at)
            assert event.type != "unknown", step
            ours = event.prompt_id == prompt_id or (event.prompt_id is None and state.phase is Phase.RUNNING)
            state = reduce(state, event) if ours else state
            socket_ending = state.ending
        elif step.route == "GET /queue" and step.at > post.at:
            state = look(state, step.body, {}, step.at)
        elif step.route == "GET /history/" + prompt_id:
            state = look(state, {}, step.body, step.at)
        history.append(state)
    for at in (steps[-1].at, steps[-1].at + DEFAULT_LIMITS.settle):  # nothing was read of some: it is gone by now
        state = look(state, {}, {}, at)
        history.append(state)
    phases: List[str] = []
    for known in history:
        if known.phase.value not in phases[-1:]:
            phases.append(known.phase.value)
    seen = Seen(
        " ".join(phases), socket_ending, " ".join(state.finished), " ".join(sorted(state.cached)),
        " ".join(state.outputs), str(state.failure.get("node_id", "")), wholly_cached(state),
    )  # fmt: skip
    return Followed(seen, state, history)


RAN = Seen("submitting queued running success", Phase.SUCCESS, "1 2", "", "2")
STOPPED = Seen("submitting queued running interrupted", Phase.INTERRUPTED, failed_at="1")
RECORDED: Mapping[str, List[Seen]] = {
    "normal_run": [RAN],
    "client_prompt_id": [RAN],
    "preview_frames": [RAN],
    "preview_frames_with_metadata": [RAN],
    "reconnect_same_client": [RAN],
    "cached_run": [RAN, Seen(RAN.phases, Phase.SUCCESS, "", "1 2", "2", wholly_cached=True)],
    "txt2img": [Seen(RAN.phases, Phase.SUCCESS, "4 5 7 6 3 8 9", "", "9")],
    "text_output": [Seen(RAN.phases, Phase.SUCCESS, "1", "", "1")],
    "node_error": [Seen("submitting queued running error", Phase.ERROR, "1", "", "", "2")],
    "interrupt_running": [STOPPED],
    "interrupt_targeted": [STOPPED, STOPPED],
    "delete_pending": [STOPPED, Seen("submitting queued deleted")],
    "jobs_cancel": [STOPPED, Seen("submitting queued deleted")],
}
RECORDED_PROMPTS = [
    (version, scenario, number)
    for version in VERSIONS
    for scenario, prompts in RECORDED.items()
    for number in range(len(prompts))
    if (version, scenario) != ("0.3.64", "jobs_cancel")
]


@pytest.mark.parametrize(("version", "scenario", "number"), RECORDED_PROMPTS)
def test_a_recorded_prompt_comes_to_the_end_that_it_had(version: str, scenario: str, number: int) -> None:
    assert follow(version, scenario, number).seen == RECORDED[scenario][number]


@pytest.mark.parametrize(("version", "scenario", "number"), RECORDED_PROMPTS)
def test_what_is_known_of_a_recorded_prompt_only_grows(version: str, scenario: str, number: int) -> None:
    history = follow(version, scenario, number).history
    order = list(Phase)
    for before, state in zip(history, history[1:]):
        assert order.index(before.phase) <= order.index(state.phase)
        assert set(before.finished) <= set(state.finished)
        assert before.cached <= state.cached
        assert set(before.outputs) <= set(state.outputs)
        assert not set(state.running) & set(state.finished)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_recorded_run_took_as_long_by_our_clock_as_by_the_servers(version: str) -> None:
    state = follow(version, "normal_run", 0).state
    assert state.server_seconds is not None and 10.0 < state.server_seconds < 10.3
    assert run_seconds(state, 99.0) == pytest.approx(state.server_seconds, abs=0.05)
    assert state.finished["1"] == pytest.approx(10.02, abs=0.01)


@pytest.mark.parametrize(("version", "scenario", "number"), RECORDED_PROMPTS)
def test_no_recorded_node_took_longer_than_the_run(version: str, scenario: str, number: int) -> None:
    state = follow(version, scenario, number).state
    assert sum(state.finished.values()) <= run_seconds(state, 99.0) + 1e-9


@pytest.mark.parametrize("version", VERSIONS)
def test_the_progress_of_a_recorded_sampler(version: str) -> None:
    ticks = []
    for state in follow(version, "txt2img", 0).history:
        if "3" in state.running and state.running["3"].value not in ticks:
            ticks.append(state.running["3"].value)
            assert list(state.running) == ["3"]
    assert ticks == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_recorded_run_of_half_a_prompt(version: str) -> None:
    (post,) = (step for step in answers(version, "validation_errors", "POST /prompt") if step.status == 200)
    prompt, prompt_id = post.request["prompt"], post.body["prompt_id"]
    dropped = dropped_outputs(post.body)
    assert dropped == {"77"}
    state = PromptState(prompt_id, Phase.QUEUED, planned=planned_nodes(prompt, dropped))
    assert state.planned == {"1", "2", "3"}
    (history,) = answers(version, "queries", "GET /history?max_items=1")
    state = reconcile(state, Reading(NOT_IN_QUEUE, history.body[prompt_id]), prompt, 1.0)
    assert (state.phase, state.targets, list(state.outputs)) == (Phase.SUCCESS, frozenset({"3"}), ["3"])


# ------------------------------------------------------------------------------------------------
# Message by message
# ------------------------------------------------------------------------------------------------


def test_a_prompt_begins() -> None:
    state = after(new(ahead=3, missing_since=9.0), START)
    assert (state.phase, state.ahead, state.started_at, state.missing_since) == (Phase.RUNNING, 0, 10.0, None)


@pytest.mark.parametrize(
    "event",
    [
        ("execution_start", {}),
        ("execution_cached", {"nodes": []}),
        executing("1"),
        ("progress", {"node": "1", "value": 1, "max": 4}),
        ("progress_state", {"nodes": {}}),
        ("executed", {"node": "3", "output": {}}),
        ("execution_success", {}),
        ("execution_error", {"node_id": "1"}),
        ("execution_interrupted", {"node_id": "1"}),
    ],
)
def test_any_message_of_the_run_shows_that_it_began(event: Tuple[str, Dict[str, Any]]) -> None:
    state = after(new(Phase.SUBMITTING), event)
    assert (state.phase, state.started_at) == (Phase.RUNNING, 10.0)
    assert after(state, START, at=20.0) is state


def test_cached_nodes_are_those_that_we_planned() -> None:
    state = after(new(), START, ("execution_cached", {"nodes": ["1", 2, "5.0.0.1", None]}))
    assert state.cached == {"1", "2"}


@pytest.mark.parametrize("nodes", [None, "12", {"1": 1}, 5])
def test_cached_nodes_that_are_no_list_are_none(nodes: Any) -> None:
    assert after(new(), START, ("execution_cached", {"nodes": nodes})).cached == frozenset()


def test_a_second_word_on_the_cache_takes_nothing_back() -> None:
    state = after(new(), ("execution_cached", {"nodes": ["1", "2"]}), ("execution_cached", {"nodes": []}))
    assert state.cached == {"1", "2"}


def test_a_node_that_runs_twice_has_the_sum_of_its_times() -> None:
    """A loop, or parts that are made one after the other."""
    runs, ends = progress_state(n2=(0, 1, "running")), progress_state(n2=(1, 1, "finished"))
    state = after(new(), START, runs, ends, runs, ends)
    assert not state.running and state.finished == {"2": 2.0}


def test_a_lazy_node_is_executed_twice_and_runs_all_the_time() -> None:
    state = after(new(), START, executing("2"), executing("1"), executing("2"))
    assert state.running == {"2": NodeProgress(11.0), "1": NodeProgress(12.0)}


def test_a_clock_that_went_back_gives_no_negative_time() -> None:
    state = after(after(new(), executing("1"), at=10.0), progress_state(n1=(1, 1, "finished")), at=5.0)
    assert state.finished == {"1": 0.0}


def test_a_node_that_was_made_at_run_time_shows_as_the_one_that_the_person_knows() -> None:
    state = after(new(), START, ("executing", {"node": "2.0.0.1", "display_node": "2"}))
    assert list(state.running) == ["2"]
    assert after(state, ("executing", {"node": "2.0.0.7", "display_node": "2"})) is state


def test_node_ids_of_subgraphs_and_of_run_time_are_kept_as_they_are() -> None:
    state = after(new(), executing("12:34"), ("executed", {"node": "12:34", "output": {"text": ["a"]}}))
    state = after(state, executing("5.0.0.1"))
    assert list(state.running) == ["12:34", "5.0.0.1"] and list(state.outputs) == ["12:34"]


def test_the_executing_that_a_reconnect_sends_names_no_prompt_and_is_believed() -> None:
    state = reduce(new(Phase.RUNNING), Event("executing", None, {"node": "2"}, 12.0))
    assert state.running == {"2": NodeProgress(12.0)}


def test_an_executing_of_null_without_prompt_id_says_nothing() -> None:
    running = new(Phase.RUNNING)
    assert reduce(running, Event("executing", None, {"node": None}, 12.0)) is running
    assert reduce(running, Event("executing", "p", {"prompt_id": "p"}, 12.0)) is running


def test_executing_null_says_over_and_not_how() -> None:
    state = after(new(Phase.RUNNING), OVER)
    assert (state.over_seen, state.ending, state.phase) == (True, None, Phase.RUNNING)


def test_progress_of_the_node_that_runs() -> None:
    state = after(new(), executing("2"), ("progress", {"node": "2", "value": 1, "max": 20}))
    assert state.running == {"2": NodeProgress(10.0, 1, 20, 11.0, 1, 11.0)}
    state = after(state, ("progress", {"node": "2", "value": 5, "max": 20}), at=13.0)
    assert state.running == {"2": NodeProgress(10.0, 5, 20, 13.0, 1, 11.0)}


@pytest.mark.parametrize(("value", "maximum"), [(2, 20), (5, 40)])
def test_a_node_that_begins_a_second_pass_has_a_new_pace(value: float, maximum: float) -> None:
    state = after(new(), executing("2"), ("progress", {"node": "2", "value": 5, "max": 20}))
    state = after(state, ("progress", {"node": "2", "value": value, "max": maximum}), at=30.0)
    assert state.running == {"2": NodeProgress(10.0, value, maximum, 30.0, value, 30.0)}


def test_progress_that_is_reported_twice_is_reported_once() -> None:
    tick = ("progress", {"node": "2", "value": 5, "max": 20})
    state = after(new(), executing("2"), tick)
    assert after(state, tick) is state


@pytest.mark.parametrize("node_id", ["1", "9", None])
def test_progress_of_a_node_that_does_not_run_changes_nothing(node_id: Any) -> None:
    """It came late, or says not whose it is: progress_state comes first."""
    state = after(new(), START, executing("1"), progress_state(n1=(1, 1, "finished"), n2=(0, 1, "running")))
    assert after(state, ("progress", {"node": node_id, "value": 5, "max": 20})) is state


def test_progress_without_numbers_is_progress_of_zero() -> None:
    state = after(new(), executing("2"), ("progress", {"node": "2", "value": "5", "max": float("nan")}))
    assert state.running == {"2": NodeProgress(10.0)}


def test_the_server_says_when_a_node_is_done() -> None:
    state = after(new(), START, progress_state(n1=(0, 1, "running")), executing("1"), executing("2"))
    assert list(state.running) == ["1", "2"] and not state.finished  # nodes that wait for something else interleave
    state = after(state, progress_state(n1=(1, 1, "finished"), n2=(0, 1, "running")), at=20.0)
    assert list(state.running) == ["2"] and state.finished == {"1": 9.0}


def test_progress_state_counts_steps() -> None:
    state = after(new(), progress_state(n2=(0, 1, "running")), progress_state(n2=(1, 20, "running")))
    assert state.running == {"2": NodeProgress(10.0, 1, 20, 11.0, 1, 11.0)}
    assert after(state, progress_state(n2=(1, 20, "running"))) is state
    assert after(state, ("progress", {"node": "2", "value": 1, "max": 20})) is state


def test_a_node_of_one_step_does_not_tick() -> None:
    state = after(new(), progress_state(n1=(0, 1, "running")))
    assert after(state, progress_state(n1=(1, 1, "running"))) is state


def test_a_node_in_parts_is_done_when_all_its_parts_are() -> None:
    def parts(first: str, second: str) -> Tuple[str, Dict[str, Any]]:
        nodes = {"2.0.0.1": {"state": first}, "2.0.0.2": {"state": second}}
        return ("progress_state", {"nodes": {key: {**part, "display_node_id": "2"} for key, part in nodes.items()}})

    state = after(new(), START, parts("running", "finished"))
    assert list(state.running) == ["2"]
    assert list(after(state, parts("finished", "running")).running) == ["2"]
    state = after(state, parts("finished", "finished"), at=15.0)
    assert not state.running and state.finished == {"2": 4.0}


def test_a_node_that_finished_before_we_saw_it_run_is_not_timed() -> None:
    state = after(new(), START, progress_state(n1=(1, 1, "finished")))
    assert not state.running and not state.finished


@pytest.mark.parametrize("nodes", [None, [], "x", {"2": None}, {"2": "running"}, {"2": ["running"]}])
def test_a_malformed_progress_state_only_shows_that_it_runs(nodes: Any) -> None:
    state = after(new(), ("progress_state", {"nodes": nodes}))
    assert state == new(Phase.RUNNING, ahead=0, started_at=10.0)


def test_a_broken_part_of_a_progress_state_hides_no_other() -> None:
    state = after(new(), ("progress_state", {"nodes": {"1": None, "2": {"value": 1, "max": 20, "state": "running"}}}))
    assert set(state.running) == {"2"}


def test_a_progress_state_that_misses_everything_is_a_node_that_runs() -> None:
    state = after(new(), ("progress_state", {"nodes": {"2": {}}}))
    assert state.running == {"2": NodeProgress(10.0)}


def test_an_output_is_kept_under_the_node_that_the_person_knows() -> None:
    images = {"images": [{"filename": "a.png"}]}
    state = after(new(), ("executed", {"node": "3.0.0.1", "display_node": "3", "output": images}))
    assert state.outputs == {"3": images}
    state = after(state, ("executed", {"node": "2", "output": {"text": ["x"]}}))
    assert state.outputs == {"3": images, "2": {"text": ["x"]}}


@pytest.mark.parametrize("data", [{"node": "3", "output": None}, {"node": "3", "output": []}, {"output": {}}, {}])
def test_a_node_may_be_executed_without_output(data: Dict[str, Any]) -> None:
    state = after(new(), START)
    assert after(state, ("executed", data)) is state


def test_success_is_noted_and_final_only_with_the_history() -> None:
    state = after(new(), START, ("execution_success", {}))
    assert (state.ending, state.phase) == (Phase.SUCCESS, Phase.RUNNING)


def test_an_error_is_noted_with_what_the_server_said() -> None:
    state = after(new(), START, ("execution_error", {"node_id": "2", "exception_type": "ValueError"}))
    assert (state.ending, state.phase) == (Phase.ERROR, Phase.RUNNING)
    assert state.failure == {"prompt_id": "p", "node_id": "2", "exception_type": "ValueError"}


def test_an_interrupt_is_noted_with_its_node() -> None:
    state = after(new(), START, ("execution_interrupted", {"node_id": "2"}))
    assert (state.ending, state.failure["node_id"]) == (Phase.INTERRUPTED, "2")


def test_a_blocked_branch_stops_and_the_run_goes_on() -> None:
    what = {"node_id": "2", "exception_type": "ExecutionBlocked", "exception_message": "no\nmask\n"}
    blocked = ("execution_error", what)
    state = after(new(), START, executing("2"), blocked, executing("3"), ("execution_success", {}), OVER)
    assert state.blocked == {"2": "no mask"}
    assert (state.ending, state.failure, state.over_seen) == (Phase.SUCCESS, {}, True)


LATE = [
    START, OVER, executing("1"), ("execution_cached", {"nodes": ["1"]}),
    ("progress", {"node": "1", "value": 1, "max": 2}), progress_state(n1=(0, 1, "running")),
    ("executed", {"node": "3", "output": {"text": ["x"]}}), ("execution_success", {}),
    ("execution_error", {"node_id": "1"}), ("execution_interrupted", {"node_id": "1"}),
    ("execution_error", {"node_id": "1", "exception_type": "ExecutionBlocked"}),
]  # fmt: skip


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase.over])
@pytest.mark.parametrize("event", LATE, ids=[kind for kind, _ in LATE])
def test_nothing_follows_an_end(phase: Phase, event: Tuple[str, Dict[str, Any]]) -> None:
    state = new(phase)
    assert after(state, event) is state


@pytest.mark.parametrize(
    "kind", ["status", "logs", "unknown", "feature_flags", "execution_complete", "", "crystools.x"]
)
def test_messages_that_tell_nothing_about_a_run_change_nothing(kind: str) -> None:
    for phase in Phase:
        state = new(phase)
        assert after(state, (kind, {"node": "1", "status": {}})) is state


@pytest.mark.parametrize("event", LATE, ids=[kind for kind, _ in LATE])
def test_what_is_reported_twice_changes_nothing(event: Tuple[str, Dict[str, Any]]) -> None:
    state = after(new(), START, event)
    assert after(state, event, at=11.0) is state


def test_there_are_six_ends() -> None:
    assert [phase.value for phase in Phase if phase.over] == [
        "success", "error", "interrupted", "deleted", "lost", "rejected",
    ]  # fmt: skip


@pytest.mark.long
@many
@given(st.lists(messages, max_size=12), st.sampled_from([Phase.SUBMITTING, Phase.QUEUED, Phase.RUNNING]))
def test_no_sequence_of_messages_breaks_the_state(events: List[Tuple[str, Any]], phase: Phase) -> None:
    state = new(phase)
    order = list(Phase)
    for number, (kind, data) in enumerate(events):
        before = state
        state = reduce(state, Event(kind, data.get("prompt_id"), data, float(number)))
        assert order.index(before.phase) <= order.index(state.phase) and not state.phase.over
        assert set(before.finished) <= set(state.finished)
        assert before.cached <= state.cached <= state.planned
        assert all(isinstance(output, dict) for output in state.outputs.values())
        assert all(
            isinstance(number, (int, float)) and number == number and abs(number) < 1e300
            for progress in state.running.values()
            for number in progress
        )


@pytest.mark.parametrize(
    ("end", "phase"),
    [
        ([], Phase.SUCCESS),
        ([("execution_success", {})], Phase.SUCCESS),
        ([("execution_error", {"node_id": "3"})], Phase.ERROR),
        ([("execution_interrupted", {"node_id": "3"})], Phase.INTERRUPTED),
    ],
)
def test_where_the_history_has_no_status_the_socket_tells_how_it_ended(end: Any, phase: Phase) -> None:
    state = after(new(), executing("1"), executing("2"), progress_state(n1=(1, 1, "finished")), *end, OVER)
    images = {"images": [{"filename": "a.png"}]}
    entry = {"prompt": [1, "p", CHAIN, {}, ["3"]], "outputs": {"3": images}, "status": None}
    state = reconcile(state, Reading(NOT_IN_QUEUE, entry), CHAIN, 20.0)
    assert state.phase is phase
    assert state.outputs == {"3": images} and not state.running
    assert set(state.finished) == ({"1", "2"} if phase is Phase.SUCCESS else {"1"})
    assert state.server_seconds is None and run_seconds(state, 99.0) == (3.0 if end else 10.0)


# ------------------------------------------------------------------------------------------------
# The queue
# ------------------------------------------------------------------------------------------------


def item(number: float, prompt_id: str, *targets: str) -> List[Any]:
    return [number, prompt_id, {}, {}, list(targets)]


def test_a_prompt_that_runs() -> None:
    queue = {"queue_running": [item(1, "p", "3")], "queue_pending": [item(2, "q")]}
    place = place_in_queue(queue, "p")
    assert place == QueuePlace(1, 0, 0, frozenset({"3"})) and place.found


def test_all_prompts_in_the_queue_are_counted_and_what_is_broken_is_not() -> None:
    assert prompts_in_queue({}) == prompts_in_queue({"queue_running": None, "queue_pending": [3, [1]]}) == 0
    assert prompts_in_queue({"queue_running": [item(1, "p")], "queue_pending": [item(2, "q"), item(3, "q")]}) == 3


def test_the_pending_list_is_a_heap_and_not_in_order() -> None:
    pending = [item(-2, "front"), item(7, "p", "3"), item(5, "b"), item(9, "c"), item(6.5, "d")]
    queue = {"queue_running": [item(1, "a")], "queue_pending": pending}
    assert place_in_queue(queue, "p") == QueuePlace(0, 1, 4, frozenset({"3"}))
    assert place_in_queue(queue, "front").ahead == 1
    assert place_in_queue(queue, "c").ahead == 5


def test_a_prompt_that_was_posted_twice_stands_there_twice() -> None:
    waiting = {"queue_running": [item(1, "a")], "queue_pending": [item(4, "p", "9"), item(2, "p", "3"), item(3, "b")]}
    assert place_in_queue(waiting, "p") == QueuePlace(0, 2, 1, frozenset({"3"}))
    running = {"queue_running": [item(1, "p", "3")], "queue_pending": [item(2, "p", "9")]}
    assert place_in_queue(running, "p") == QueuePlace(1, 1, 0, frozenset({"3"}))


@pytest.mark.parametrize(
    "queue",
    [
        {}, {"queue_running": None, "queue_pending": {}}, {"queue_running": [None, 5, [], ["p"]], "queue_pending": "p"},
        {"queue_running": [item(1, "q")], "queue_pending": [{"p": 1}, [2]]},
    ],
)  # fmt: skip
def test_a_prompt_that_is_not_there(queue: Dict[str, Any]) -> None:
    place = place_in_queue(queue, "p")
    assert place == QueuePlace(0, 0, 0, frozenset()) and not place.found


@pytest.mark.parametrize(
    ("queue", "found", "prompt"),
    [
        ({}, {"prompt": [1, "p", CHAIN, {}, []]}, CHAIN),
        ({"queue_running": [[1, "p", CHAIN]]}, None, CHAIN),
        ({"queue_pending": [item(1, "q"), [2, "p", {"1": CHAIN["1"], "2": None}]]}, {}, {"1": CHAIN["1"]}),
        ({"queue_running": [[1, "p"]], "queue_pending": [[1, "p", None]]}, None, None),
        ({"queue_running": [[1, "q", CHAIN]]}, {"prompt": [1, "q", CHAIN]}, None),
        ({}, None, None),
    ],
)
def test_the_prompt_of_somebody_else_is_in_the_history_or_the_queue(queue: Any, found: Any, prompt: Any) -> None:
    assert prompt_on_server(queue, found, "p") == prompt


@pytest.mark.parametrize(
    ("place", "found", "answer"),
    [
        (QueuePlace(1, 0, 0, frozenset()), None, True),
        (NOT_IN_QUEUE, {}, True),
        (NOT_IN_QUEUE, None, False),
    ],
)
def test_the_server_has_a_prompt_that_is_in_queue_or_history(place: QueuePlace, found: Any, answer: bool) -> None:
    assert Reading(place, found).found is answer


def test_malformed_items_do_not_count() -> None:
    queue = {"queue_running": [None, item(0, "a")], "queue_pending": [[None, "p"], ["x"], [float("nan"), "b"], 7]}
    assert place_in_queue(queue, "p") == QueuePlace(0, 1, 1, frozenset())


items = st.tuples(numbers, st.just("p") | anything, anything, anything, anything).map(list)


@few
@given(
    st.fixed_dictionaries(
        {}, optional={key: st.lists(items | anything) | anything for key in ("queue_running", "queue_pending")}
    )
)
def test_any_queue_can_be_read(queue: Dict[str, Any]) -> None:
    place = place_in_queue(queue, "p")
    assert place.ahead >= 0 and place.found == bool(place.running or place.pending)


# ------------------------------------------------------------------------------------------------
# Queue and history against what the socket reported
# ------------------------------------------------------------------------------------------------

RUNNING = QueuePlace(1, 0, 0, frozenset())
PENDING = QueuePlace(0, 1, 2, frozenset())
ABSENT = NOT_IN_QUEUE
SETTLE = 5.0


def reconciled(state: PromptState, place: QueuePlace, entry: Any = None, at: float = 20.0) -> PromptState:
    return reconcile(state, Reading(place, entry), CHAIN, at, SETTLE)


@pytest.mark.parametrize(
    ("phase", "place", "found"),
    [
        (Phase.SUBMITTING, RUNNING, Phase.RUNNING),
        (Phase.SUBMITTING, PENDING, Phase.QUEUED),
        (Phase.SUBMITTING, ABSENT, Phase.SUBMITTING),
        (Phase.QUEUED, RUNNING, Phase.RUNNING),
        (Phase.QUEUED, PENDING, Phase.QUEUED),
        (Phase.QUEUED, ABSENT, Phase.QUEUED),
        (Phase.RUNNING, RUNNING, Phase.RUNNING),
        (Phase.RUNNING, PENDING, Phase.RUNNING),  # the answer is older than the message that it began
        (Phase.RUNNING, ABSENT, Phase.RUNNING),
    ],
)
def test_what_a_look_at_the_queue_says(phase: Phase, place: Any, found: Phase) -> None:
    assert reconciled(new(phase), place).phase is found


def test_a_look_that_finds_it_ends_the_doubt() -> None:
    for phase in (Phase.QUEUED, Phase.RUNNING):
        for place in (RUNNING, PENDING):
            assert reconciled(new(phase, missing_since=19.0), place).missing_since is None


def test_a_look_that_finds_it_waiting_says_how_many_are_ahead() -> None:
    assert reconciled(new(), PENDING).ahead == 2
    assert reconciled(new(Phase.RUNNING, ahead=0), PENDING).ahead == 0


def test_a_look_that_finds_it_running_says_since_when_at_the_latest() -> None:
    assert reconciled(new(), RUNNING).started_at == 20.0
    assert reconciled(new(Phase.RUNNING, started_at=3.0), RUNNING).started_at == 3.0


def test_the_queue_tells_which_outputs_were_accepted() -> None:
    prompt = {**CHAIN, "4": node("SaveImage", images=["9", 0])}
    state = PromptState("p", Phase.QUEUED, planned=frozenset(prompt))
    state = reconcile(state, Reading(PENDING._replace(targets=frozenset({"3"})), None), prompt, 20.0)
    assert state.targets == {"3"} and state.planned == {"1", "2", "3"}
    # A server that names none does not take them back.
    assert reconcile(state, Reading(PENDING, None), prompt, 21.0).targets == {"3"}


def test_what_is_over_stays_over_whatever_the_queue_says() -> None:
    for phase in Phase:
        if phase.over:
            state = new(phase)
            assert all(reconciled(state, place, {}) is state for place in (RUNNING, PENDING, ABSENT))


@pytest.mark.parametrize("phase", [Phase.QUEUED, Phase.RUNNING])
def test_an_absent_prompt_has_time_to_settle(phase: Phase) -> None:
    state = reconciled(new(phase), ABSENT, at=20.0)
    assert (state.phase, state.missing_since) == (phase, 20.0)
    assert reconciled(state, ABSENT, at=24.9) is state
    assert reconciled(state, ABSENT, at=25.0).phase.over


NEITHER = "it is no longer in the server's queue or history (a restart loses both)"


@pytest.mark.parametrize(
    ("known", "phase", "reason"),
    [
        ({"phase": Phase.QUEUED}, Phase.DELETED, ""),
        ({"phase": Phase.QUEUED, "gaps": 1}, Phase.LOST, NEITHER),
        ({"phase": Phase.QUEUED, "over_seen": True}, Phase.LOST, NEITHER),
        ({"phase": Phase.RUNNING}, Phase.LOST, NEITHER),
        ({"phase": Phase.RUNNING, "over_seen": True}, Phase.LOST, NEITHER),
        ({"phase": Phase.RUNNING, "ending": Phase.SUCCESS}, Phase.SUCCESS, ""),
        ({"phase": Phase.RUNNING, "ending": Phase.ERROR, "gaps": 2}, Phase.ERROR, ""),
        ({"phase": Phase.RUNNING, "ending": Phase.INTERRUPTED}, Phase.INTERRUPTED, ""),
    ],
)
def test_a_prompt_that_stays_absent_is_over(known: Dict[str, Any], phase: Phase, reason: str) -> None:
    state = reconciled(new(missing_since=10.0, **known), ABSENT)
    assert (state.phase, state.reason, state.ended_at, state.missing_since) == (phase, reason, 20.0, None)


def test_when_the_sockets_success_counts_the_last_node_is_done() -> None:
    state = after(new(), executing("2"))
    state = reduce(state, Event("execution_success", "p", {}, 14.0))
    state = reconciled(state._replace(missing_since=10.0), ABSENT, at=20.0)
    assert (state.phase, state.finished, state.running) == (Phase.SUCCESS, {"2": 4.0}, {})
    assert (state.ended_at, run_seconds(state, 99.0)) == (14.0, 4.0)


def test_a_node_that_was_stopped_is_not_done() -> None:
    state = after(new(), executing("2"), ("execution_error", {"node_id": "2"}))
    state = reconciled(state._replace(missing_since=10.0), ABSENT, at=20.0)
    assert (state.phase, state.finished, state.running) == (Phase.ERROR, {}, {})


def test_a_run_is_lost_once() -> None:
    state = lost(new(Phase.RUNNING), "the server was restarted", 30.0)
    assert (state.phase, state.reason, state.ended_at) == (Phase.LOST, "the server was restarted", 30.0)
    assert lost(state, "another reason", 40.0) is state
    done = new(Phase.SUCCESS)
    assert lost(done, "never", 40.0) is done


def entry(
    status: str = "success", *history_messages: Any, outputs: Any = None, targets: Tuple[str, ...] = ("3",)
) -> Dict[str, Any]:
    """A history entry of CHAIN."""
    return {
        "prompt": [1, "p", CHAIN, {}, list(targets)],
        "outputs": {} if outputs is None else outputs,
        "status": {"status_str": status, "completed": status == "success", "messages": list(history_messages)},
    }


BEGAN = ["execution_start", {"timestamp": 100000}]
ENDED = ["execution_success", {"timestamp": 102500}]


@pytest.mark.parametrize("phase", [Phase.SUBMITTING, Phase.QUEUED, Phase.RUNNING])
@pytest.mark.parametrize(
    ("entry_of_history", "end"),
    [
        (entry("success", BEGAN, ENDED), Phase.SUCCESS),
        (entry("error", BEGAN, ["execution_error", {"node_id": "2", "timestamp": 101000}]), Phase.ERROR),
        (entry("success", BEGAN, ["execution_error", {"node_id": "2"}]), Phase.ERROR),  # status_str can lie
        (entry("error", BEGAN, ["execution_interrupted", {"node_id": "2"}]), Phase.INTERRUPTED),
        (entry("success", BEGAN, ["execution_error", {"exception_type": "ExecutionBlocked"}], ENDED), Phase.SUCCESS),
        (entry("error"), Phase.ERROR),
        (entry("success"), Phase.SUCCESS),
        (entry("success", None, ["x"], "text", ["a", "b", "c"], ["execution_error", None]), Phase.ERROR),
        ({}, Phase.SUCCESS),
        ({"status": None, "outputs": None, "prompt": None}, Phase.SUCCESS),
        ({"status": {"messages": {}}, "outputs": [], "prompt": [1, 2]}, Phase.SUCCESS),
    ],
)
def test_the_history_has_the_last_word(phase: Phase, entry_of_history: Dict[str, Any], end: Phase) -> None:
    state = reconciled(new(phase), ABSENT, entry_of_history)
    assert (state.phase, state.ended_at) == (end, 20.0)


def test_the_history_overrules_the_socket() -> None:
    seen = new(Phase.RUNNING, ending=Phase.SUCCESS)
    assert reconciled(seen, ABSENT, entry("error", ["execution_interrupted", {}])).phase is Phase.INTERRUPTED
    seen = new(Phase.RUNNING, ending=Phase.ERROR, failure={"node_id": "2"})
    assert reconciled(seen, ABSENT, entry("error")).failure == {"node_id": "2"}


def test_the_history_of_a_failure_says_what_failed() -> None:
    failure = {"node_id": "2", "exception_type": "ValueError"}
    assert reconciled(new(), ABSENT, entry("error", ["execution_error", failure])).failure == failure
    assert reconciled(new(), ABSENT, entry("error", ["execution_interrupted", failure])).failure == failure


@pytest.mark.parametrize(
    ("history_messages", "seconds"),
    [
        ([BEGAN, ["execution_cached", {"nodes": [], "timestamp": 100100}], ENDED], 2.5),
        ([BEGAN], 0.0),
        ([ENDED], None),
        ([BEGAN, ["execution_success", {"timestamp": 90000}]], 0.0),
        ([["execution_start", {"timestamp": float("nan")}], ENDED], None),
        ([], None),
    ],
)
def test_the_server_tells_how_long_it_ran(history_messages: Any, seconds: Optional[float]) -> None:
    assert reconciled(new(), ABSENT, entry("success", *history_messages)).server_seconds == seconds


def test_the_history_completes_what_the_socket_missed() -> None:
    outputs = {"3": {"text": ["b"]}, "x": 5}
    known_entry = entry("success", BEGAN, ["execution_cached", {"nodes": ["1"]}], ENDED, outputs=outputs)
    state = reconciled(new(outputs={"2": {"text": ["a"]}}), ABSENT, known_entry)
    assert state.cached == {"1"} and state.targets == {"3"}
    assert state.outputs == {"2": {"text": ["a"]}, "3": {"text": ["b"]}}
    assert state.started_at == 20.0


def test_the_history_tells_which_outputs_ran() -> None:
    prompt = {**CHAIN, "4": node("SaveImage", images=["1", 0])}
    state = PromptState("p", Phase.QUEUED, planned=frozenset(prompt))
    assert reconcile(state, Reading(ABSENT, entry(targets=("4",))), prompt, 1.0).planned == {"1", "4"}
    foreign = reconcile(state, Reading(ABSENT, entry(targets=("99",))), prompt, 1.0)
    assert foreign.targets == {"99"} and foreign.planned == frozenset(prompt)


@pytest.mark.parametrize("end", ["execution_success", "execution_error", "execution_interrupted"])
def test_a_run_ends_when_its_message_says_so_and_not_when_the_history_is_read(end: str) -> None:
    state = reduce(after(new(), executing("1")), Event(end, "p", {}, 12.5))
    assert not state.phase.over and run_seconds(state, 99.0) == 2.5
    assert run_seconds(reconciled(state, ABSENT, entry("success")), 99.0) == 2.5


@few
@given(st.lists(st.tuples(messages, st.floats(0.0, 10.0)), max_size=12), st.floats(0.0, 9.0), st.integers(0, 2000))
def test_no_node_takes_longer_than_the_run(events: List[Tuple[Any, float]], pause: float, milliseconds: int) -> None:
    """The server's clock, and the time that messages need, count for both or for none."""
    state, now = new(), 10.0
    for (kind, data), seconds in events:
        now += seconds
        state = reduce(state, Event(kind, "p", data, now))
    ended = ["execution_success", {"timestamp": 100000 + milliseconds}]
    state = reconciled(state, ABSENT, entry("success", BEGAN, ended), at=now + pause)
    for seconds in state.finished.values():
        assert seconds <= run_seconds(state, 1e9) + 1e-6


@few
@given(
    history_entries | anything.filter(lambda value: isinstance(value, dict)),
    st.sampled_from([Phase.SUBMITTING, Phase.QUEUED, Phase.RUNNING]),
    st.lists(messages, max_size=3),
)
def test_any_history_entry_is_an_end(known_entry: Dict[str, Any], phase: Phase, events: List[Tuple[str, Any]]) -> None:
    state = new(phase)
    for kind, data in events:
        state = reduce(state, Event(kind, "p", data, 1.0))
    end = reconciled(state, ABSENT, known_entry)
    assert end.phase in (Phase.SUCCESS, Phase.ERROR, Phase.INTERRUPTED)
    assert set(state.outputs) <= set(end.outputs) and not end.running
    assert run_seconds(end, 99.0) >= 0


@few
@given(st.lists(st.sampled_from([RUNNING, PENDING, ABSENT, "message", "entry"]), max_size=10), st.data())
def test_a_prompt_only_moves_forward_whatever_is_seen_of_it(sights: List[Any], data: Any) -> None:
    order, state = list(Phase), new(Phase.SUBMITTING)
    for number, sight in enumerate(sights):
        before = state
        if sight == "message":
            kind, content = data.draw(messages)
            state = reduce(state, Event(kind, "p", content, 2.0 * number))
        elif sight == "entry":
            state = reconciled(state, ABSENT, data.draw(history_entries), 2.0 * number)
        else:
            state = reconciled(state, sight, None, 2.0 * number)
        assert order.index(before.phase) <= order.index(state.phase)
        assert state is before or not before.phase.over


# ------------------------------------------------------------------------------------------------
# Of a run that is over, and of one that is not
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "answer"),
    [
        ({"phase": Phase.SUCCESS, "cached": frozenset("123")}, True),
        ({"phase": Phase.SUCCESS, "cached": frozenset("13"), "targets": frozenset("3")}, True),
        ({"phase": Phase.SUCCESS, "cached": frozenset("12")}, False),
        ({"phase": Phase.SUCCESS, "cached": frozenset("12"), "targets": frozenset("3")}, False),
        ({"phase": Phase.SUCCESS, "cached": frozenset("123"), "finished": {"2": 1.0}}, False),
        ({"phase": Phase.RUNNING, "cached": frozenset("123")}, False),
        ({"phase": Phase.ERROR, "cached": frozenset("123")}, False),
    ],
)
def test_a_run_is_wholly_cached_when_every_output_was_and_nothing_ran(known: Dict[str, Any], answer: bool) -> None:
    assert wholly_cached(new(**known)) is answer


def test_a_run_of_nothing_is_not_wholly_cached() -> None:
    assert not wholly_cached(PromptState("p", Phase.SUCCESS))


@pytest.mark.parametrize(
    ("known", "seconds"),
    [
        ({}, 0.0),
        ({"started_at": 10.0}, 90.0),
        ({"started_at": 10.0, "ended_at": 15.0}, 5.0),
        ({"started_at": 10.0, "ended_at": 15.0, "server_seconds": 4.9}, 4.9),
        ({"started_at": 10.0, "ended_at": 15.0, "server_seconds": 4.9, "finished": {"1": 4.95}}, 5.0),
        # Another process has submitted it, and nobody heard how it began.
        ({"started_at": 10.0, "ended_at": 15.0, "server_seconds": 30.0, "finished": {"1": 2.0}, "gaps": 1}, 30.0),
        ({"started_at": 10.0, "ended_at": 15.0, "server_seconds": 4.9, "finished": {"1": 2.0}, "gaps": 1}, 5.0),
        ({"started_at": 10.0, "ended_at": 15.0, "finished": {"1": 2.0}, "gaps": 1}, 5.0),
        ({"started_at": 15.0, "ended_at": 14.0}, 0.0),
        ({"ended_at": 15.0}, 0.0),
    ],
)
def test_how_long_it_ran(known: Dict[str, Any], seconds: float) -> None:
    assert run_seconds(new(**known), 100.0) == seconds


LIMITS = Limits(poll=5.0)
CALM = NextCheck(
    now=100.0, heard=100.0, checked=100.0, checks=0, connected=True, deaf=False, queue_moved=False, repeated=False
)
ON = {"phase": Phase.RUNNING}
WAITS = {"phase": Phase.QUEUED, "ahead": 1}


@pytest.mark.parametrize(
    ("known", "view", "seconds"),
    [
        # an end is checked at once, or a little after execution_success, and then more and more seldom
        ({**ON, "over_seen": True}, {}, 0.0),
        ({**ON, "over_seen": True, "ending": Phase.SUCCESS}, {}, 0.0),
        ({**ON, "ending": Phase.SUCCESS}, {}, 0.25),
        ({**ON, "ending": Phase.SUCCESS}, {"checked": 99.9, "heard": 99.0}, 0.15),
        ({**ON, "ending": Phase.SUCCESS}, {"checked": 90.0, "heard": 99.9}, 0.15),
        ({**ON, "missing_since": 99.0}, {}, 0.25),
        ({**ON, "over_seen": True}, {"checks": 1}, 0.1),
        ({**ON, "over_seen": True}, {"checks": 2}, 0.2),
        ({**ON, "ending": Phase.ERROR}, {"checks": 4}, 0.8),
        ({**ON, "ending": Phase.ERROR}, {"checks": 5}, 1.0),
        ({**ON, "ending": Phase.ERROR}, {"checks": 99, "checked": 98.0, "heard": 98.0}, -1.0),
        # without the socket, or with one that may be deaf
        (ON, {"connected": False}, 0.5),
        (ON, {"connected": False, "checks": 1}, 1.0),
        (ON, {"connected": False, "checks": 2}, 2.0),
        (ON, {"connected": False, "checks": 9}, 4.0),
        (ON, {"connected": False, "checks": 9, "checked": 97.0}, 1.0),
        (ON, {"deaf": True, "checks": 3}, 4.0),
        # the queue moved while we wait
        (WAITS, {"queue_moved": True}, 0.3),
        (WAITS, {"queue_moved": True, "checked": 99.0}, -0.7),
        (ON, {"queue_moved": True}, 5.0),
        (ON, {"queue_moved": True, "repeated": True}, 0.3),
        # its place in the queue is not known yet
        ({"phase": Phase.QUEUED}, {}, 0.5),
        ({"phase": Phase.SUBMITTING}, {"checked": 99.9}, 0.4),
        # silence
        (ON, {}, 5.0),
        (WAITS, {}, 5.0),
        (ON, {"checks": 1}, 5.0),
        (ON, {"checks": 50}, 5.0),
        (ON, {"heard": 97.0, "checked": 90.0}, 2.0),
        (ON, {"heard": 90.0, "checked": 96.0}, 1.0),
        (ON, {"heard": 90.0, "checked": 90.0}, -5.0),
    ],
)
def test_when_queue_and_history_are_read(known: Dict[str, Any], view: Dict[str, Any], seconds: float) -> None:
    assert seconds_to_check(new(**known), CALM._replace(**view), LIMITS) == pytest.approx(seconds)


@pytest.mark.parametrize(("poll", "seconds"), [(0.6, 0.6), (5.0, 4.0)])
def test_a_short_poll_holds_without_the_socket_too(poll: float, seconds: float) -> None:
    view = CALM._replace(connected=False, checks=9)
    assert seconds_to_check(new(Phase.RUNNING), view, Limits(poll=poll)) == seconds


@pytest.mark.parametrize(
    ("before", "remaining", "is_one"),
    [
        (1, 0, True),  # ours ended
        (2, 1, True),
        (1, 1, True),  # ours ended and another was added, or one began
        (1, 2, False),  # somebody added one
        (None, 5, True),  # the socket is new: who knows
        (3, None, True),
    ],
)
def test_a_status_hints_that_ours_is_over_unless_its_count_is_higher(
    before: Optional[int], remaining: Optional[int], is_one: bool
) -> None:
    assert is_hint(remaining, before) is is_one


@pytest.mark.parametrize(
    ("known", "hinted_at", "followed_at", "seconds"),
    [
        (ON, None, None, math.inf),
        (ON, None, 50.0, math.inf),
        (ON, 100.0, None, 0.3),
        (ON, 99.7, None, 0.0),
        (ON, 90.0, None, -9.7),
        # at most one look a second
        (ON, 100.0, 99.8, 0.8),
        (ON, 99.9, 99.1, 0.2),
        (ON, 100.0, 99.0, 0.3),
        # the end came by itself
        ({**ON, "ending": Phase.SUCCESS}, 100.0, None, math.inf),
        ({**ON, "over_seen": True}, 100.0, None, math.inf),
    ],
)
def test_a_hint_is_followed_a_little_later_unless_the_end_came(
    known: Dict[str, Any], hinted_at: Optional[float], followed_at: Optional[float], seconds: float
) -> None:
    assert seconds_to_hinted_look(new(**known), hinted_at, followed_at, 100.0) == pytest.approx(seconds)


def test_the_prompt_of_the_recordings_is_the_one_that_the_tests_use() -> None:
    posts: Iterator[Any] = answers("0.33.0", "normal_run", "POST /prompt")
    recorded_prompt = next(posts).request["prompt"]
    assert {key: value["class_type"] for key, value in recorded_prompt.items()} == {
        key: value["class_type"] for key, value in slow_prompt().items()
    }


def test_a_run_of_very_many_nodes_ends_at_once() -> None:
    """Ids that a server makes up count too. A copy of all nodes for each of them would take minutes."""
    names = [str(number) for number in range(50_000)]
    state = new(Phase.RUNNING, running={name: NodeProgress(10.0) for name in names})
    entry = {"outputs": {}, "status": {"status_str": "success", "completed": True, "messages": []}}
    began = time.process_time()
    state = reconcile(state, Reading(NOT_IN_QUEUE, entry), CHAIN, 12.0)
    assert time.process_time() - began < 3.0
    assert (state.phase, state.running) == (Phase.SUCCESS, {})
    assert state.finished == dict.fromkeys(names, 2.0)
