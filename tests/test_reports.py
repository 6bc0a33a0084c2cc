"""What happened becomes reports, and reports become the lines and the bars that a person sees."""

from __future__ import annotations

import ast
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import Json, anything, few, history_entries, messages
from support import node, program_text

import comfyui_runner.errors
import comfyui_runner.state
from comfyui_runner.events import Event
from comfyui_runner.extras.batches import Tally, make_batch_meter
from comfyui_runner.meter import Bar, Meter, describe_pace, make_meter
from comfyui_runner.problems import Problem
from comfyui_runner.reports import (
    PROGRESS_INTERVAL,
    Report,
    Throttle,
    add_first_problem,
    changes,
    describe,
    end_report,
    exit_status_of,
    failure_report,
    is_about_trouble,
    nodes_done,
    plain_notice,
    problem_report,
    result_of,
    seeds_in_words,
)
from comfyui_runner.state import NOT_IN_QUEUE, NodeProgress, PromptState, Reading, reconcile, reduce

Phase = comfyui_runner.state.Phase
ExitStatus = comfyui_runner.errors.ExitStatus

PROMPT = {
    "1": node("CheckpointLoaderSimple", "Load Checkpoint"),
    "2": node("KSampler", "Sampler", model=["1", 0], seed=7),
    "3": node("SaveImage", "Save", images=["2", 0]),
}
ALL = frozenset(PROMPT)
PICTURE = {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}]}


def new(phase: comfyui_runner.state.Phase = Phase.QUEUED, **known: Any) -> PromptState:
    """The state of PROMPT under the prompt_id "p"."""
    return PromptState("p", phase, planned=ALL, **known)


def reported(before: PromptState, after: PromptState) -> List[Report]:
    """The reports between two states, where the last step was reported long ago."""
    return list(changes(before, after, PROMPT, Throttle(0.0), 0.0))


def lines(event: str, **fields: Any) -> List[str]:
    """What a person reads of a report."""
    return [text for _, text in describe({"event": event, **fields})]


def styles(event: str, **fields: Any) -> List[str]:
    return [style for style, _ in describe({"event": event, **fields})]


# ------------------------------------------------------------------------------------------------
# From one state to the next
# ------------------------------------------------------------------------------------------------


def test_the_story_of_a_run() -> None:
    state = new(Phase.SUBMITTING)
    story: List[Report] = []

    def then(after: PromptState) -> None:
        nonlocal state
        story.extend(reported(state, after))
        state = after

    def message(kind: str, at: float, **data: Any) -> None:
        then(reduce(state, Event(kind, "p", {"prompt_id": "p", **data}, at)))

    then(state._replace(phase=Phase.QUEUED, ahead=1))
    then(state._replace(ahead=0))
    message("execution_start", 10.0)
    message("execution_cached", 10.0, nodes=["1"])
    message("executing", 10.0, node="2")
    message("progress", 11.0, node="2", value=1, max=4)
    message("progress", 12.0, node="2", value=4, max=4)
    message("progress_state", 12.5, nodes={"2": {"state": "finished"}})
    message("executing", 12.5, node="3")
    message("executed", 13.0, node="3", output=PICTURE)
    message("execution_success", 13.0)
    then(reconcile(state, Reading(NOT_IN_QUEUE, {"outputs": {"3": PICTURE}}), PROMPT, 13.5))
    sampler = {"node_id": "2", "title": "Sampler", "class_type": "KSampler"}
    save = {"node_id": "3", "title": "Save", "class_type": "SaveImage"}
    assert story == [
        {"event": "submitted", "seeds": {"2.seed": 7}, "draw": None, "texts": {}},
        {"event": "queued", "ahead": 1},
        {"event": "queued", "ahead": 0},
        {"event": "started"},
        {"event": "cached", "nodes": ["1"], "nodes_total": 3},
        {"event": "node_started", **sampler},
        {"event": "progress", **sampler, "value": 1, "max": 4, "nodes_done": 1, "nodes_total": 3},
        {"event": "progress", **sampler, "value": 4, "max": 4, "nodes_done": 1, "nodes_total": 3},
        {"event": "node_finished", **sampler, "seconds": 2.5, "nodes_done": 2, "nodes_total": 3},
        {"event": "node_started", **save},
        {"event": "node_finished", **save, "seconds": 0.5, "nodes_done": 3, "nodes_total": 3},
    ]


def test_nothing_changed_and_nothing_is_reported() -> None:
    for phase in (phase for phase in Phase if phase is not Phase.SUBMITTING):
        assert reported(new(phase), new(phase)) == []


def test_a_prompt_that_began_before_the_answer_came_is_submitted_and_started() -> None:
    assert [report["event"] for report in reported(new(Phase.SUBMITTING), new(Phase.RUNNING))] == [
        "submitted",
        "started",
    ]


def test_submitted_is_reported_when_it_is_and_not_before() -> None:
    assert reported(new(Phase.SUBMITTING), new(Phase.SUBMITTING, over_seen=True)) == []


def test_a_prompt_of_somebody_else_is_followed_and_was_not_submitted_by_us() -> None:
    before, after = new(Phase.SUBMITTING), new()
    assert list(changes(before, after, PROMPT, Throttle(0.1), 1.0, attached=True)) == [
        {"event": "following", "seeds": {"2.seed": 7}}
    ]
    assert list(changes(after, new(ahead=2), PROMPT, Throttle(0.1), 1.0, attached=True)) == [
        {"event": "queued", "ahead": 2}
    ]


def test_a_prompt_that_was_refused_is_not_reported_as_submitted() -> None:
    assert reported(new(Phase.SUBMITTING), new(Phase.REJECTED)) == []


def test_a_place_in_the_queue_is_reported_when_it_changes() -> None:
    assert reported(new(ahead=2), new(ahead=2)) == []
    assert reported(new(ahead=2), new(ahead=1)) == [{"event": "queued", "ahead": 1}]
    assert reported(new(ahead=2), new(Phase.RUNNING, ahead=0)) == [{"event": "started"}]


def test_a_node_that_ran_again_is_reported_with_the_time_that_it_took_then() -> None:
    (report,) = reported(new(Phase.RUNNING, finished={"2": 2.0}), new(Phase.RUNNING, finished={"2": 3.5}))
    assert (report["event"], report["seconds"]) == ("node_finished", 1.5)


def test_progress_of_one_step_is_no_progress() -> None:
    def progress(value: float, maximum: float) -> List[Report]:
        before = new(Phase.RUNNING, running={"2": NodeProgress(1.0)})
        return reported(before, new(Phase.RUNNING, running={"2": NodeProgress(1.0, value, maximum)}))

    assert progress(1, 1) == progress(0, 20) == []
    assert [report["value"] for report in progress(5, 20)] == [5]


def test_a_node_that_is_met_in_its_middle_is_started_and_has_progress() -> None:
    after = new(Phase.RUNNING, running={"2": NodeProgress(1.0, 5, 20)})
    assert [report["event"] for report in reported(new(Phase.RUNNING), after)] == ["node_started", "progress"]
    assert reported(after, after._replace(running=dict(after.running))) == []


def test_a_blocked_node_is_reported_once_with_its_reason() -> None:
    after = new(Phase.RUNNING, blocked={"1": "known", "2.0.0.1": "no mask"})
    assert reported(new(Phase.RUNNING, blocked={"1": "known"}), after) == [
        {
            "event": "node_blocked", "node_id": "2.0.0.1", "title": "Sampler", "class_type": "KSampler",
            "message": "no mask",
        },
    ]  # fmt: skip


def test_nodes_that_are_done_are_counted_once_and_only_ours() -> None:
    state = new(Phase.RUNNING, cached=frozenset({"1"}), finished={"1": 1.0, "2": 1.0, "5.0.0.1": 1.0})
    assert nodes_done(state) == {"nodes_done": 2, "nodes_total": 3}
    assert nodes_done(PromptState("p")) == {"nodes_done": 0, "nodes_total": 0}


def steps_reported(*values: float, maximum: float = 100.0, seconds: float = 0.01) -> List[float]:
    """The steps that are reported of a node whose steps take ``seconds`` each."""
    throttle = Throttle(PROGRESS_INTERVAL)
    reports: List[Any] = []
    state, now = new(Phase.RUNNING, running={"2": NodeProgress(0.0)}), 0.0
    for value in values:
        now += seconds
        after = state._replace(running={"2": NodeProgress(0.0, value, maximum, now)})
        reports += changes(state, after, PROMPT, throttle, now)
        state = after
    return [report["value"] for report in reports if report["event"] == "progress"]


def test_of_quick_steps_the_first_the_last_and_ten_a_second_are_reported() -> None:
    values = [float(value) for value in range(1, 101)]
    shown = steps_reported(*values)
    assert shown[0] == 1 and shown[-1] == 100
    assert 10 <= len(shown) <= 12
    assert steps_reported(1, 2, 3, 4, 5, maximum=5) == [1, 2, 5]


def test_of_slow_steps_each_one_is_reported() -> None:
    assert steps_reported(1, 2, 3, seconds=0.11) == [1, 2, 3]


def test_a_second_bar_of_the_same_node_has_a_first_step_again() -> None:
    throttle = Throttle(60.0)
    first = new(Phase.RUNNING, running={"2": NodeProgress(0.0, 3, 20)})
    second = new(Phase.RUNNING, running={"2": NodeProgress(0.0, 1, 40)})
    throttle.restart(5.0)
    (report,) = changes(first, second, PROMPT, throttle, 5.0)
    assert (report["value"], report["max"]) == (1, 40)


def test_a_throttle_lets_one_thing_through_in_its_interval() -> None:
    throttle = Throttle(2.0)
    times = [10.0, 10.5, 11.9, 12.0, 12.1, 14.5]
    assert [throttle.lets_through(now) for now in times] == [True, False, False, True, False, True]
    throttle.interval = 5.0
    throttle.restart(20.0)
    assert not throttle.is_due(24.9) and throttle.is_due(25.0) and throttle.is_due(26.0)


# ------------------------------------------------------------------------------------------------
# In words
# ------------------------------------------------------------------------------------------------

WORKFLOW: Json = {
    "file": "w.json", "nodes": 1, "models": [], "texts": [], "sampling": [], "sizes": [], "files": [], "saves": [],
    "values": [], "brief": False,
}  # fmt: skip
ROW: Json = {
    "row": 9, "place": 3, "total": 12, "status": "done", "exit_status": 0, "message": "Done.", "seconds": 1.4,
    "seeds": {"5.seed": 8812}, "values": {"5.seed": "8812", "4.width": 255, "3.text": "red"}, "texts": {},
    "files": ["out/a.png"],
}  # fmt: skip
OUTPUT: Json = {
    "title": "Save", "kind": "image", "filename": "a.png", "subfolder": "", "type": "output", "text": None,
    "source": "file", "url": "http://127.0.0.1:8188/view?filename=a.png", "will_be_saved": False,
}  # fmt: skip
PROBLEM: Json = {"node_id": "2", "title": "Sampler", "class_type": "KSampler", "type": "ValueError", "hints": []}
NODE: Json = {"node_id": "2", "title": "Sampler", "class_type": "KSampler"}


@pytest.mark.parametrize(
    ("event", "fields", "shown"),
    [
        ("workflow", WORKFLOW, ["w.json: 1 node"]),
        (
            "workflow",
            {**WORKFLOW, "nodes": 7, "models": [("Load", "m.pt")], "texts": [("Style", "a fox")],
             "sampling": [("KSampler", "seed 1, steps 4")], "sizes": [("Empty", "64 x 64")],
             "files": [("Load Image", "a.png")], "saves": [("Save", "out")]},
            ["w.json: 7 nodes", "  Model     m.pt", "  Text      Style: a fox",
             "  Sampling  seed 1, steps 4", "  Size      64 x 64", "  File      a.png", "  Saves     out"],
        ),
        (
            "workflow",
            {**WORKFLOW, "texts": [("positive", "a fox"), ("negative", "blurry"), ("Style", "oil")],
             "files": [("Photo", "a.png"), ("Mask", "b.png (to be uploaded)")], "values": [("4.eta", "0.5")]},
            ["w.json: 1 node", "  Positive  a fox", "  Negative  blurry", "  Text      Style: oil",
             "  File      Photo: a.png", "  File      Mask: b.png (to be uploaded)", "  Set       4.eta: 0.5"],
        ),
        (
            "workflow",
            {**WORKFLOW, "nodes": 14, "saves": [("S", str(number)) for number in range(14)]},
            ["w.json: 14 nodes", *("  Saves     S: %d" % number for number in range(12)), "  Saves     2 more"],
        ),
        (
            "workflow",
            {**WORKFLOW, "nodes": 13, "saves": [("S", "x")] * 13},
            ["w.json: 13 nodes", *["  Saves     S: x"] * 12, "  Saves     1 more"],
        ),
        ("workflow", {**WORKFLOW, "nodes": 7, "saves": [("S", "x")], "brief": True}, ["w.json: 7 nodes"]),
        ("listening", {"url": "http://127.0.0.1:8189", "lan_url": None}, ["Open http://127.0.0.1:8189 in a browser"]),
        (
            "listening",
            {"url": "http://127.0.0.1:8189", "lan_url": "http://10.0.0.2:8189"},
            ["Open http://127.0.0.1:8189 in a browser, on a phone http://10.0.0.2:8189"],
        ),
        (
            "server",
            {"tried": [], "url": "http://h:1", "version": "0.3.64", "device": "RTX"},
            ["ComfyUI 0.3.64 at http://h:1, RTX"],
        ),
        (
            "server",
            {"tried": ["http://a does not answer."], "url": "http://b", "version": "", "device": ""},
            ["http://a does not answer.", "ComfyUI (version unknown) at http://b, device unknown"],
        ),
        ("submitted", {"prompt_id": "6c1e", "seeds": {}, "texts": {}}, ["Submitted as 6c1e."]),
        (
            "submitted",
            {"prompt_id": "6c1e", "seeds": {}, "texts": {"6.text": "a red fox\n" + "x" * 80, "9.name": "2026/a"}},
            ["Submitted as 6c1e.", "Texts: 6.text=a red fox " + "x" * 49 + "…, 9.name=2026/a"],
        ),
        ("following", {"prompt_id": "6c1e", "seeds": {}}, ["Following 6c1e."]),
        ("queued", {"ahead": 0}, ["Waiting: next in the queue."]),
        ("queued", {"ahead": 1}, ["Waiting: 1 prompt ahead."]),
        ("queued", {"ahead": 2}, ["Waiting: 2 prompts ahead."]),
        ("started", {}, ["Running."]),
        ("cached", {"nodes": [], "nodes_total": 3}, []),
        ("cached", {"nodes": ["1", "2"], "nodes_total": 3}, ["2 of 3 nodes cached."]),
        ("node_finished", {**NODE, "seconds": 2.5}, ["Sampler: 2.5 s"]),
        ("node_finished", {**NODE, "seconds": 125}, ["Sampler: 2:05"]),
        (
            "progress",
            {**NODE, "value": 2.0, "max": 3, "nodes_done": 1, "nodes_total": 7},
            ["Sampler: 2/3 (66%), 1/7 nodes"],
        ),
        ("node_blocked", {**NODE, "message": "no mask"}, ["Sampler produced no result: no mask"]),
        (
            "problem",
            {**PROBLEM, "message": "m.", "hints": ["a", "b"]},
            ['"Sampler" (KSampler, node 2): m.', "    a", "    b"],
        ),
        ("problem", {**PROBLEM, "node_id": "", "message": "No outputs."}, ["No outputs."]),
        ("problem", {**PROBLEM, "class_type": "", "message": "m."}, ['"Sampler" (node 2): m.']),
        (
            "failure",
            {**PROBLEM, "message": "boom", "traceback": []},
            ['"Sampler" (KSampler, node 2) raised ValueError: boom'],
        ),
        (
            "failure",
            {**PROBLEM, "message": "boom\n\n  and\nmore", "traceback": ["  File x", "    raise"], "hints": ["Less."]},
            ['"Sampler" (KSampler, node 2) raised ValueError: boom', "      and", "    more", "  File x", "    raise",
             "    Less."],
        ),
        ("failure", {**PROBLEM, "node_id": "", "message": "boom", "traceback": []}, ["A node raised ValueError: boom"]),
        ("output", OUTPUT, ["Save: a.png", "    http://127.0.0.1:8188/view?filename=a.png"]),
        (
            "output",
            {**OUTPUT, "subfolder": "fox/x"},
            ["Save: fox/x/a.png", "    http://127.0.0.1:8188/view?filename=a.png"],
        ),
        ("output", {**OUTPUT, "will_be_saved": True}, []),
        ("output", {**OUTPUT, "url": None}, ["Save: a.png"]),  # of --demo
        (
            "output",
            {**OUTPUT, "url": None, "source": "websocket", "size": 1536},
            ["Save: image over the WebSocket, 1.5 KB"],
        ),
        ("output", {**OUTPUT, "url": None, "source": "base64", "size": 2}, ["Save: image as base64, 2 B"]),
        ("output", {**OUTPUT, "text": "hello\n\x1b[31mfrom comfy"}, ["Save:", "    hello", "    from comfy"]),
        ("output", {**OUTPUT, "text": "t" * 2001, "will_be_saved": True}, ["Save:", "    " + "t" * 2000 + "…"]),
        ("output", {**OUTPUT, "text": "t" * 2000}, ["Save:", "    " + "t" * 2000]),
        ("saved", {"title": "Save", "path": "out/a.png", "bytes": 1536}, ["Saved out/a.png (1.5 KB)"]),
        ("not_saved", {"message": "No.", "remedy": ""}, ["No."]),
        ("not_saved", {"message": "No.", "remedy": "Do."}, ["No.", "    Do."]),
        ("connection", {"state": "restored"}, ["Connection restored."]),
        (
            "connection",
            {"state": "unavailable", "reason": "HTTP 403"},
            ["No WebSocket (HTTP 403): following the queue and history instead."],
        ),
        (
            "connection",
            {"state": "lost", "reason": "closed"},
            ["Connection lost (closed): reconnecting. The run continues."],
        ),
        (
            "silence",
            {"seconds": 65.0, "server_says": "the server's queue says that it is running."},
            ["No message for 1:05; the server's queue says that it is running."],
        ),
        ("notice", {"message": "Cancelling."}, ["Cancelling."]),
        ("checked", {"problems": 0, "message": "Nothing."}, ["Nothing."]),
        ("exported", {"path": "a.json"}, ["Wrote a.json"]),
        ("hook_failed", {"command": "curl", "message": "The hook curl failed."}, ["The hook curl failed."]),
        ("freed", {"message": "Asked ComfyUI to unload its models."}, ["Asked ComfyUI to unload its models."]),
        ("uploaded", {"message": "Uploaded a as b."}, ["Uploaded a as b."]),
        ("row", ROW, ["3/12  seed 8812, 255, red  out/a.png  1.4 s"]),
        ("row", {**ROW, "files": ["out/a.png", "out/b.png", "c.txt"], "seconds": None},
         ["3/12  seed 8812, 255, red  out/a.png and 2 more"]),
        ("row", {**ROW, "total": None, "values": {}, "files": []}, ["Row 9  seed 8812  1.4 s"]),
        # a seed that the row sets is not said twice, whatever the row calls it
        ("row", {**ROW, "total": None, "values": {"seed": 8812, "KSampler.seed": "8812"}, "files": []},
         ["Row 9  seed 8812  1.4 s"]),
        ("row", {**ROW, "total": None, "values": {"steps": 8812}, "files": []}, ["Row 9  seed 8812, 8812  1.4 s"]),
        (
            "row",
            {**ROW, "seeds": {}, "values": {str(number): "x" * 30 for number in range(8)}, "files": []},
            ["3/12  " + ", ".join(["x" * 23 + "…"] * 6) + ", …  1.4 s"],
        ),
        ("row", {**ROW, "values": {}, "texts": {"6.text": "a red fox"}, "files": []},
         ["3/12  seed 8812, a red fox  1.4 s"]),
        ("row", {**ROW, "status": "failed", "exit_status": 7, "message": "It failed.\nMore."},
         ["3/12  seed 8812, 255, red  failed: It failed."]),
        ("row", {**ROW, "status": "failed", "exit_status": 11, "message": "Done.\nNot saved: a.png."},
         ["3/12  seed 8812, 255, red  failed: Done. Not saved: a.png."]),
        ("row", {**ROW, "status": "cancelled", "exit_status": 130, "message": "Cancelled: at a node."},
         ["3/12  seed 8812, 255, red  cancelled"]),
        ("batch", {"exit_status": 7, "message": "2 rows done\nMore."}, ["2 rows done", "More."]),
        ("error", {"message": "No server.", "remedy": ""}, ["No server."]),
        ("error", {"message": "No server.", "remedy": "Start it."}, ["No server.", "Start it."]),
        ("end", {"status": "success", "exit_status": 0, "message": "Done.\nMore."}, ["Done.", "More."]),
    ],
)  # fmt: skip
def test_a_report_in_words(event: str, fields: Json, shown: List[str]) -> None:
    assert lines(event, **fields) == shown


@pytest.mark.parametrize(
    ("status", "exit_status", "style"),
    [
        ("success", 0, "ok"),
        ("success", 10, "warn"),
        ("success", 11, "warn"),
        ("cancelled", 130, "bold"),
        ("timeout", 124, "bold"),
        ("error", 7, "bad"),
        ("interrupted", 8, "bad"),
        ("lost", 9, "bad"),
    ],
)
def test_an_end_looks_as_it_is(status: str, exit_status: int, style: str) -> None:
    assert styles("end", status=status, exit_status=exit_status, message="a\nb") == [style, style]


def test_a_row_a_batch_and_a_check_look_as_they_are() -> None:
    assert [styles("row", **{**ROW, "status": status}) for status in ("done", "failed", "cancelled")] == [
        ["ok"], ["bad"], ["bad"],
    ]  # fmt: skip
    assert [styles("batch", exit_status=status, message="m\nn") for status in (0, 7)] == [["ok", ""], ["bad", ""]]
    assert [styles("checked", problems=count, message="m") for count in (0, 2)] == [["ok"], ["bad"]]


def test_what_always_happens_is_no_warning() -> None:
    plain: List[Report] = [
        plain_notice("Stopping."),
        {"event": "silence", "seconds": 65.0, "server_says": "it runs."},
        {"event": "server", "tried": ["Nothing at 8188."], "url": "u", "version": "1", "device": "d"},
    ]
    assert [describe(report)[0][0] for report in plain] == ["", "", ""]
    assert describe({"event": "notice", "message": "A model is missing."}) == [("warn", "A model is missing.")]


def test_what_is_bad_looks_bad() -> None:
    assert styles("problem", **PROBLEM, message="m") == ["bad"]
    assert styles("failure", **{**PROBLEM, "hints": ["h"]}, message="m\nn", traceback=["t"]) == ["bad", "", "dim", ""]
    assert styles("error", message="m", remedy="r") == ["bad", ""]
    assert styles("not_saved", message="m", remedy="r") == ["bad", ""]
    assert styles("connection", state="lost", reason="r") == styles("notice", message="m") == ["warn"]
    assert styles("connection", state="restored") == styles("node_finished", **NODE, seconds=1) == ["ok"]


@pytest.mark.parametrize(
    ("report", "result"),
    [
        ({"event": "saved", "path": "out/a.png"}, "out/a.png"),
        ({"event": "listening", "url": "http://127.0.0.1:8189"}, "http://127.0.0.1:8189"),
        ({"event": "output", **OUTPUT}, OUTPUT["url"]),
        ({"event": "output", **OUTPUT, "text": "a fox", "url": None}, "a fox"),
        ({"event": "output", **OUTPUT, "will_be_saved": True}, None),
        ({"event": "output", **OUTPUT, "url": None}, None),
        ({"event": "started"}, None),
    ],
)
def test_what_a_report_gives_as_a_result(report: Report, result: Optional[str]) -> None:
    assert result_of(report) == result


@pytest.mark.parametrize(
    ("report", "is_trouble"),
    [
        *(({"event": event}, True) for event in ("error", "problem", "refused", "failure", "not_saved", "notice")),
        ({"event": "hook_failed"}, True),
        *(({"event": event}, False) for event in ("started", "progress", "saved", "output", "freed")),
        *(({"event": event, "exit_status": 7}, True) for event in ("end", "row", "batch", "checked")),
        *(({"event": event, "exit_status": 0}, False) for event in ("end", "row", "batch", "checked")),
        ({"event": "end", "exit_status": 7, "row": 2}, False),  # its "row" says the same
        ({"event": "end", "exit_status": 7, "row": None}, True),
    ],
)
def test_which_reports_are_about_trouble(report: Report, is_trouble: bool) -> None:
    assert is_about_trouble(report) is is_trouble


#: Reports that only the meter or a program needs.
WITHOUT_WORDS = {"node_started", "input"}


def events_in_the_source() -> Iterator[str]:
    """The name of every report that the runner makes, as its source has them."""
    tree = ast.parse(program_text())
    for found in ast.walk(tree):
        if isinstance(found, ast.Dict):
            for key, value in zip(found.keys, found.values):
                if isinstance(key, ast.Constant) and key.value == "event" and isinstance(value, ast.Constant):
                    yield str(value.value)
        elif isinstance(found, ast.Call) and isinstance(found.func, ast.Name) and found.func.id == "node_report":
            (name, *_) = found.args
            assert isinstance(name, ast.Constant)
            yield str(name.value)


def test_every_report_has_its_words_or_needs_none() -> None:
    names = set(events_in_the_source())
    assert {"workflow", "node_finished", "progress", "problem", "end"} <= names
    fields = Anything()
    for name in names - WITHOUT_WORDS:
        fields["event"] = name
        assert describe(fields) or name == "cached", name
    for name in WITHOUT_WORDS:
        assert name in names and describe({"event": name}) == []


class Anything(Dict[str, Any]):
    """A report that has every field, with a value of the kind that it has."""

    VALUES: Mapping[str, Any] = {
        **WORKFLOW, **OUTPUT, **PROBLEM, "message": "m", "remedy": "r", "seconds": 1.0, "ahead": 1, "nodes": 1,
        "traceback": ["t"], "path": "p", "bytes": 1, "prompt_id": "p", "tried": [], "version": "1", "device": "d",
        "state": "lost", "reason": "r", "server_says": "s", "exit_status": 0, "status": "success", "nodes_total": 1,
        "will_be_saved": False, "seeds": {}, "routes": ["r"], "lan_url": None, "problems": 1, "row": 1, "value": 1,
        "max": 2,
        "nodes_done": 1, "client": "c", "page": "p", "method": "m", "count": 2,
    }  # fmt: skip

    def __missing__(self, key: str) -> Any:
        if self["event"] == "cached" and key == "nodes":
            return ["1"]
        if self["event"] == "row":
            return ROW[key]
        return self.VALUES[key]


def test_a_message_has_the_first_problem_behind_it() -> None:
    first = Problem("value_not_in_list", "No such\nmodel.", "2", "Loader", "Loading", hints=("Nearest: a.", "Or b."))
    second = Problem("unknown", "Odd.")
    assert add_first_problem("Refused.", []) == "Refused."
    shown = 'Refused. "Loader" (Loading, node 2): No such model. Nearest: a. Or b.'
    assert add_first_problem("Refused.", [first]) == shown
    assert add_first_problem("Refused.", [first, second]) == f"{shown} (1 more problem.)"
    assert add_first_problem("Refused.", [second, first, first]) == "Refused. Odd. (2 more problems.)"
    assert len(add_first_problem("", [Problem("odd", "x" * 9999)])) < 600
    with_command = first._replace(hints=("curl -L -o x http://" + "x" * 500, "Nearest: a."))
    assert add_first_problem("Refused.", [with_command, second]) == (
        'Refused. "Loader" (Loading, node 2): No such model. Nearest: a. (1 more problem.)'
    )


def test_an_event_that_a_later_version_adds_is_passed_over() -> None:
    assert describe({"event": "something_new"}) == []


# ------------------------------------------------------------------------------------------------
# The end
# ------------------------------------------------------------------------------------------------

NO_OUTPUTS = (
    "Done in %s s, 0 outputs, seed 7.\n"
    'Nothing was reported by "Save" (SaveImage, node 3). Look in the server\'s output folder, or for an option of the '
    "node that makes it report what it saves (such as show_previews)."
)
FAILED_AT = {"failure": {"node_id": "2.0.0.1"}}


def end(
    phase: comfyui_runner.state.Phase,
    exit_status: comfyui_runner.errors.ExitStatus = ExitStatus.OK,
    cancelled: bool = False,
    **known: Any,
) -> Report:
    """The last report of a run of 12.3 seconds."""
    state = new(phase, started_at=10.0, ended_at=22.3, **known)
    return end_report(state, exit_status, 99.0, PROMPT, cancelled=cancelled)


def test_the_last_line_names_what_could_not_be_saved() -> None:
    state = PromptState("p", phase=Phase.SUCCESS, ended_at=1.0, started_at=0.0)
    report = end_report(state, ExitStatus.NOT_SAVED, 9.0, PROMPT, unsaved=["a.png", "b.png"])
    assert report["message"].splitlines()[-1] == "Not saved: a.png, b.png."
    assert "Not saved" not in end_report(state, ExitStatus.OK, 9.0, PROMPT)["message"]


@pytest.mark.parametrize(
    ("phase", "known", "message"),
    [
        (Phase.SUCCESS, {}, NO_OUTPUTS % "12.3"),
        (Phase.SUCCESS, {"targets": frozenset({"1", "3"})}, NO_OUTPUTS % "12.3"),
        (Phase.SUCCESS, {"outputs": {"3": {"images": []}}}, NO_OUTPUTS % "12.3"),
        (
            Phase.SUCCESS,
            {"outputs": {"3": {"images": [{"filename": "a.png", "type": "input"}]}}},
            "Done in 12.3 s, 0 outputs, seed 7.",
        ),
        (Phase.SUCCESS, {"outputs": {"3": PICTURE}}, "Done in 12.3 s, 1 output, seed 7."),
        (
            Phase.SUCCESS,
            {"server_seconds": 125.0, "outputs": {"3": {"text": ["a", "b"]}}},
            "Done in 2:05, 2 outputs, seed 7.",
        ),
        (Phase.ERROR, {}, "The run failed after 12.3 s."),
        (Phase.ERROR, FAILED_AT, 'The run failed after 12.3 s at "Sampler" (KSampler, node 2.0.0.1).'),
        (Phase.INTERRUPTED, {}, "Someone else interrupted the run."),
        (Phase.INTERRUPTED, FAILED_AT, 'Someone else interrupted the run at "Sampler" (KSampler, node 2.0.0.1).'),
        (Phase.DELETED, {}, "Someone else removed the prompt from the queue before it ran."),
        (
            Phase.LOST,
            {"reason": "the server was restarted"},
            "The run is lost: the server was restarted.\nBefore you run it again, check the server's output folder.",
        ),
        (
            Phase.LOST,
            {},
            "The run is lost: how it ended is unknown.\nBefore you run it again, check the server's output folder.",
        ),
        (Phase.REJECTED, {}, "ComfyUI refused the prompt: nothing ran."),
        (Phase.RUNNING, {}, "The run was not followed to its end."),
        (
            Phase.SUCCESS,
            {"cached": ALL, "outputs": {"3": PICTURE}},
            "Nothing was rendered: every result came from ComfyUI's cache (1 output).\n"
            "To render again, change a value or add --seed random.",
        ),
    ],
)
def test_how_a_run_ended(phase: comfyui_runner.state.Phase, known: Json, message: str) -> None:
    assert end(phase, **known)["message"] == message


UNCONFIRMED = (
    "Cancelled: ComfyUI has not confirmed it, so prompt p may still be running.\n"
    "Check the queue in ComfyUI. Some nodes cannot be interrupted and run to their end."
)


@pytest.mark.parametrize(
    ("phase", "known", "message"),
    [
        (Phase.INTERRUPTED, {}, "Cancelled: ComfyUI interrupted our run."),
        (
            Phase.INTERRUPTED,
            FAILED_AT,
            'Cancelled: ComfyUI interrupted our run at "Sampler" (KSampler, node 2.0.0.1).',
        ),
        (Phase.DELETED, {}, "Cancelled: removed from the queue before it ran."),
        (Phase.SUCCESS, {"outputs": {"3": PICTURE}}, "Cancelled: the run had already finished (1 output)."),
        (Phase.ERROR, {}, "Cancelled: the run had already failed."),
        (Phase.REJECTED, {}, "Cancelled: nothing was submitted."),
        (Phase.LOST, {"reason": "restarted"}, "Cancelled: the server no longer has the run (restarted)."),
        (Phase.LOST, {}, "Cancelled: the server no longer has the run (reason unknown)."),
        (Phase.SUBMITTING, {}, UNCONFIRMED),
        (Phase.QUEUED, {}, UNCONFIRMED),
        (Phase.RUNNING, {}, UNCONFIRMED),
    ],
)
def test_how_a_cancelled_run_ended(phase: comfyui_runner.state.Phase, known: Json, message: str) -> None:
    report = end(phase, ExitStatus.CANCELLED, cancelled=True, **known)
    assert (report["message"], report["status"], report["exit_status"]) == (message, "cancelled", 130)


def test_the_timeout_is_an_end_of_its_own() -> None:
    report = end(Phase.INTERRUPTED, ExitStatus.TIMEOUT, cancelled=True)
    assert report["message"] == "Cancelled by --timeout: ComfyUI interrupted our run."
    assert (report["status"], report["exit_status"]) == ("timeout", 124)


@pytest.mark.parametrize(
    ("seeds", "words"),
    [
        ({}, ""),
        ({"3.seed": 42}, "seed 42"),
        ({"3.seed": 42, "8.noise_seed": 7}, "seeds 3.seed=42, 8.noise_seed=7"),
        (
            {f"{number}.seed": 1 for number in range(15)},
            "seeds " + ", ".join(f"{number}.seed=1" for number in range(12)) + " and 3 more",
        ),
    ],
)
def test_seeds_in_words(seeds: Json, words: str) -> None:
    assert seeds_in_words(seeds) == words


def test_half_a_run_says_so() -> None:
    message = end(Phase.SUCCESS, ExitStatus.PARTIAL, outputs={"3": PICTURE})["message"]
    assert message == (
        "Done in 12.3 s, 1 output, seed 7.\n"
        "It ran only in part: the outputs that ComfyUI refused are missing (see above)."
    )  # fmt: skip


def test_pictures_that_should_have_come_over_the_socket_are_missed() -> None:
    state = new(Phase.SUCCESS, started_at=0.0, ended_at=1.0)
    prompt = {**PROMPT, "3": node("SaveImageWebsocket", "Send", images=["2", 0])}
    assert end_report(state, ExitStatus.OK, 9.0, prompt)["message"] == (
        "Done in 1.0 s, 0 outputs, seed 7.\n"
        '"Send" (SaveImageWebsocket, node 3): ComfyUI sends these pictures only over the WebSocket, and none arrived.'
    )
    assert end_report(state, ExitStatus.OK, 9.0, prompt, received=1)["message"] == "Done in 1.0 s, 1 output, seed 7."


def test_the_last_report_in_full() -> None:
    known: Dict[str, Any] = {"server_seconds": 2.34567, "cached": frozenset({"1"}), "finished": {"2": 1.0, "3": 1.0}}
    assert end(Phase.SUCCESS, **known) == {
        "event": "end", "status": "success", "exit_status": 0, "message": NO_OUTPUTS % "12.3",
        "seconds": 12.3, "wholly_cached": False, "nodes_done": 3, "nodes_total": 3,
    }  # fmt: skip
    assert end(Phase.SUCCESS, cached=ALL)["wholly_cached"] is True
    assert [end(phase)["status"] for phase in Phase if phase.over] == [phase.value for phase in Phase if phase.over]


@pytest.mark.parametrize(
    ("phase", "dropped", "exit_status"),
    [
        (Phase.SUCCESS, False, ExitStatus.OK),
        (Phase.SUCCESS, True, ExitStatus.PARTIAL),
        (Phase.ERROR, False, ExitStatus.FAILED),
        (Phase.ERROR, True, ExitStatus.FAILED),
        (Phase.INTERRUPTED, False, ExitStatus.INTERRUPTED),
        (Phase.DELETED, False, ExitStatus.INTERRUPTED),
        (Phase.LOST, False, ExitStatus.LOST),
        (Phase.REJECTED, False, ExitStatus.REJECTED),
        (Phase.RUNNING, False, ExitStatus.ERROR),
    ],
)
def test_the_exit_status_of_a_run(
    phase: comfyui_runner.state.Phase, dropped: bool, exit_status: comfyui_runner.errors.ExitStatus
) -> None:
    assert exit_status_of(new(phase), dropped) is exit_status


FAILURE: Json = {
    "node_id": "2", "exception_type": "ValueError", "exception_message": "boom\n",
    "traceback": ["  File one\n", "  File two\n", "  File three\n"],
}  # fmt: skip


@pytest.mark.parametrize(("frames", "count"), [(None, 3), (2, 2)])
def test_the_node_that_failed_is_reported_with_its_traceback(frames: Optional[int], count: int) -> None:
    report = failure_report(new(Phase.ERROR, failure=FAILURE), PROMPT, frames)
    assert report is not None
    assert (report["event"], report["node_id"], report["title"]) == ("failure", "2", "Sampler")
    assert len([line for line in report["traceback"] if "File" in line]) == count
    assert lines(**report)[0] == '"Sampler" (KSampler, node 2) raised ValueError: boom'


@pytest.mark.parametrize("state", [new(Phase.ERROR), new(Phase.SUCCESS, failure=FAILURE)])
def test_a_run_in_which_no_node_failed_has_no_such_report(state: PromptState) -> None:
    assert failure_report(state, PROMPT, None) is None


def test_a_problem_is_reported_with_its_hints_as_json_has_them() -> None:
    report = problem_report(Problem("value_not_in_list", "No such model.", "2", hints=("a.safetensors",)))
    assert (report["event"], report["type"], report["hints"]) == ("problem", "value_not_in_list", ["a.safetensors"])


# ------------------------------------------------------------------------------------------------
# The meter
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("progress", "words"),
    [
        (NodeProgress(0.0, 17, 33, 6.0, 1, 1.0), "3.2 it/s, 5.0 s left"),
        (NodeProgress(0.0, 3, 33, 6.0, 1, 1.0), "2.5 s/it, 1:15 left"),
        (NodeProgress(0.0, 2, 2, 2.0, 1, 1.0), "1.0 it/s, 0.0 s left"),
        (NodeProgress(0.0, 9, 5, 2.0, 1, 1.0), "8.0 it/s, 0.0 s left"),
        (NodeProgress(0.0, 1, 20, 1.0, 1, 1.0), ""),
        (NodeProgress(0.0, 5, 20, 1.0, 1, 1.0), ""),
        (NodeProgress(0.0), ""),
    ],
)
def test_the_pace_of_a_node(progress: NodeProgress, words: str) -> None:
    assert describe_pace(progress) == words


def shown(state: PromptState, note: str = "", now: float = 20.0) -> Meter:
    """The meter 12.3 seconds after the prompt was submitted."""
    return make_meter(state, PROMPT, now, 7.7, note)


@pytest.mark.parametrize(
    ("state", "headline"),
    [
        (new(Phase.SUBMITTING), "Submitting  12.3 s"),
        (new(), "Submitting  12.3 s"),
        (new(ahead=0), "Waiting, next in the queue  12.3 s"),
        (new(ahead=1), "Waiting, 1 prompt ahead  12.3 s"),
        (new(ahead=5), "Waiting, 5 prompts ahead  12.3 s"),
    ],
)
def test_the_meter_before_a_prompt_runs(state: PromptState, headline: str) -> None:
    assert shown(state) == Meter(headline)


def test_the_meter_of_somebody_elses_run_has_no_bars() -> None:
    running = new(Phase.RUNNING, started_at=10.0)
    assert make_meter(running, PROMPT, 20.0, 7.7, "note", attached=True) == Meter("Running  10.0 s", note="note")
    waiting = new(ahead=1)
    assert make_meter(waiting, PROMPT, 20.0, 7.7, attached=True) == Meter("Waiting, 1 prompt ahead  12.3 s")


def test_the_meter_of_a_run() -> None:
    state = new(
        Phase.RUNNING, started_at=10.0, cached=frozenset({"1"}),
        running={"2": NodeProgress(12.0, 10, 20, 20.0, 1, 11.0), "3": NodeProgress(15.0)},
    )  # fmt: skip
    assert shown(state).bars == (
        Bar("Overall", 0.5, "1/3 nodes  10.0 s", "bold"),
        Bar("Sampler", 0.5, "10/20  1.0 it/s, 10.0 s left"),
        Bar("Save", 0.0, "5.0 s"),
    )


@pytest.mark.parametrize(
    ("value", "maximum", "fraction"),
    [(0.5, 1, 1 / 6), (20, 20, 1 / 3), (0, 20, 0), (30, 20, 0), (-5, 20, 0), (5, 0, 0)],
)
def test_a_node_moves_the_whole_by_its_own_part_and_no_further(value: float, maximum: float, fraction: float) -> None:
    state = new(Phase.RUNNING, started_at=10.0, running={"2": NodeProgress(12.0, value, maximum)})
    assert shown(state).bars[0] == Bar("Overall", fraction, "0/3 nodes  10.0 s", "bold")


def test_two_nodes_at_once_move_the_whole_by_one_node_at_most() -> None:
    running = {"2": NodeProgress(12.0, 3, 4), "3": NodeProgress(12.0, 3, 4)}
    assert shown(new(Phase.RUNNING, running=running)).bars[0].fraction == 1 / 3


def test_a_node_of_one_step_shows_how_long_it_runs() -> None:
    state = new(Phase.RUNNING, started_at=10.0, running={"2": NodeProgress(12.0, 1, 1, 12.0)})
    assert shown(state).bars[1] == Bar("Sampler", 0.0, "8.0 s")


def test_the_meter_shows_three_nodes_at_most() -> None:
    running = {str(number): NodeProgress(15.0) for number in range(9)}
    assert len(shown(new(Phase.RUNNING, running=running)).bars) == 4


def test_the_meter_of_a_run_of_which_nothing_is_known() -> None:
    assert shown(PromptState("p", Phase.RUNNING)).bars == (Bar("Overall", 0.0, "0/0 nodes  0.0 s", "bold"),)


def test_what_is_wrong_at_the_moment_stands_below() -> None:
    for state in (new(ahead=0), new(Phase.RUNNING)):
        assert shown(state, "connection lost, trying again").note == "connection lost, trying again"


def test_the_meter_of_a_batch_shows_the_rows_that_have_begun() -> None:
    waiting, running = new(), new(Phase.RUNNING, finished={"1": 1.0}, started_at=1.0)
    sampling = new(
        Phase.RUNNING, finished={"1": 1.0}, started_at=1.0, running={"2": NodeProgress(1.0, 1, 4, 1.0, 0.0, 1.0)}
    )
    tally = Tally(4, done=1, seconds=2.0, noun="run")
    saving = new(Phase.RUNNING, started_at=1.0, running={"3": NodeProgress(1.0)})
    runs = [(2, waiting), (3, running), (4, sampling), (5, saving)]
    assert make_batch_meter(tally, runs, 3.0, "Connection lost") == Meter(
        bars=(
            Bar("Overall", 0.25, "1/4 runs, 30.0/min, 6.0 s left", "bold"),
            Bar("Run 2", 0.0, "waiting"),
            Bar("Run 3", 1 / 3, "1/3 nodes  2.0 s"),
            Bar("Run 4", 1.25 / 3, "1/4 steps  2.0 s"),
            Bar("Run 5", 0.0, "0/3 nodes  2.0 s"),
        ),
        note="Connection lost",
    )


def test_the_meter_of_a_batch_of_which_little_is_known() -> None:
    unknown = PromptState("p", Phase.RUNNING)
    assert make_batch_meter(Tally(None), [(1, unknown)], 0.0) == Meter(
        bars=(Bar("Overall", 0.0, "0 rows", "bold"), Bar("Row 1", 0.0, "0/0 nodes  0.0 s"))
    )


def test_a_meter_that_never_ends_still_has_words_for_the_time() -> None:
    """A custom node may count in tiny steps: no number of seconds may break the screen."""
    progress = NodeProgress(12.0, 5e-324, 20, 20.0, 0.0, 11.0)
    assert len(shown(new(Phase.RUNNING, started_at=10.0, running={"2": progress})).bars) == 2


FINITE = st.one_of(
    st.integers(-10, 10**6), st.floats(-1e9, 1e9, allow_subnormal=False), st.sampled_from([1e299, -1e299])
)


@few
@given(
    st.builds(
        new,
        st.sampled_from(list(Phase)),
        ahead=st.none() | st.integers(0, 10**6),
        cached=st.frozensets(st.sampled_from(["1", "2", "3"])),
        running=st.dictionaries(
            st.sampled_from(["1", "2", "3.0.1", "99" * 20]), st.builds(NodeProgress, *[FINITE] * 6)
        ),
        started_at=st.none() | st.floats(0, 1e6),
        server_seconds=st.none() | st.floats(0, 1e6),
    )
)
def test_a_bar_is_never_longer_than_whole(state: PromptState) -> None:
    meter = shown(state, now=1e6)
    assert meter.headline or meter.bars
    assert all(0.0 <= bar.fraction <= 1.0 and bar.text for bar in meter.bars)


# ------------------------------------------------------------------------------------------------
# Whatever happens
# ------------------------------------------------------------------------------------------------


@few
@given(
    st.lists(messages, max_size=6),
    history_entries | st.none(),
    st.booleans(),
    st.sampled_from(list(ExitStatus)),
)
def test_every_run_can_be_reported(
    events: List[Tuple[str, Any]], entry: Any, cancelled: bool, exit_status: comfyui_runner.errors.ExitStatus
) -> None:
    state, reports = new(Phase.SUBMITTING), []
    for number, (kind, data) in enumerate(events):
        before, state = state, reduce(state, Event(kind, "p", data, float(number)))
        reports += reported(before, state)
        make_meter(state, PROMPT, 9.0, 0.0)
    before, state = state, reconcile(state, Reading(NOT_IN_QUEUE, entry), PROMPT, 9.0)
    reports += [*reported(before, state), end_report(state, exit_status, 9.0, PROMPT, cancelled=cancelled)]
    for report in reports:
        for style, text in describe({"prompt_id": "p", **report}):
            assert style in ("", "ok", "bad", "warn", "dim", "bold") and "\n" not in text


@few
@given(st.lists(st.tuples(st.text(max_size=8), anything.map(str)), max_size=20), anything.map(str))
def test_any_text_can_be_reported(pairs: List[Tuple[str, str]], text: str) -> None:
    assert lines("workflow", **{**WORKFLOW, "texts": pairs})
    assert all("\n" not in line for line in lines("output", **{**OUTPUT, "text": text}))


def test_what_happens_as_it_was_asked_for_is_no_warning() -> None:
    assert styles("notice", message="m") == ["warn"]
    assert styles("notice", message="m", warning=False) == [""]
