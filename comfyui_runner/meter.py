"""What the moving part of the screen shows. How it looks is up to the printer that draws it."""

from __future__ import annotations

import itertools
from typing import Any, Iterator, List, Mapping, NamedTuple, Tuple

from comfyui_runner.nodes import node_title
from comfyui_runner.reports import nodes_done
from comfyui_runner.state import NodeProgress, Phase, PromptState, run_seconds
from comfyui_runner.text import duration, plural

#: Nodes that run at the same time and have a bar; seldom does more than one run.
NODES_SHOWN = 3


class Bar(NamedTuple):
    """A row of the meter: ``fraction`` (from 0 to 1) as a bar, between a label and a text.

    ``style`` is one of a report's Line.
    """

    label: str
    fraction: float
    text: str
    style: str = "ok"


class Meter(NamedTuple):
    """The moving part of the screen, from top to bottom; what is empty takes no line."""

    headline: str = ""
    bars: Tuple[Bar, ...] = ()
    note: str = ""  # what is wrong at the moment


def make_meter(
    state: PromptState,
    prompt: Mapping[str, Any],
    now: float,
    began: float,
    note: str = "",
    *,
    attached: bool = False,
) -> Meter:
    """The meter of one run. ``began`` is when it was submitted, by the same clock as ``now``.

    ``attached``: somebody else has submitted it, so nothing is known of its nodes.
    """
    if state.phase in (Phase.SUBMITTING, Phase.QUEUED):
        headline = f"{describe_wait(state)}  {duration(now - began)}"
        return Meter(headline=headline, note=note)
    if attached:
        return Meter(headline=f"Running  {duration(run_seconds(state, now))}", note=note)
    bars = (overall_bar(state, now), *node_bars(state, prompt, now))
    return Meter(bars=bars, note=note)


def describe_wait(state: PromptState) -> str:
    """Why a prompt does not run yet."""
    if state.ahead is None:
        return "Submitting"
    if state.ahead == 0:
        return "Waiting, next in the queue"
    return f"Waiting, {plural(state.ahead, 'prompt')} ahead"


def overall_bar(state: PromptState, now: float) -> Bar:
    """How far the run is: the nodes that are done, and of one more the steps that are done."""
    counts = nodes_done(state)
    done = counts["nodes_done"]
    total = counts["nodes_total"]
    # Never more than one node: the bar would go back when the next one starts.
    begun = min(sum(fractions_done(state)), 1.0)
    text = f"{done}/{total} nodes  {duration(run_seconds(state, now))}"
    return Bar("Overall", divide(done + begun, total), text, "bold")


def fractions_done(state: PromptState) -> Iterator[float]:
    """The fraction that is done of each node that runs and says how far it is."""
    for progress in state.running.values():
        is_plausible = 0 <= progress.value <= progress.max and progress.max > 0
        if is_plausible:
            yield progress.value / progress.max


def node_bars(state: PromptState, prompt: Mapping[str, Any], now: float) -> List[Bar]:
    """A bar for each node that runs, for NODES_SHOWN at most."""
    first_nodes = itertools.islice(state.running.items(), NODES_SHOWN)
    return [node_bar(node_title(prompt, node_id), node, now) for node_id, node in first_nodes]


def node_bar(title: str, progress: NodeProgress, now: float) -> Bar:
    """The bar of one node: its steps; of a node without steps how long it has run."""
    has_steps = progress.max > 1
    if not has_steps:
        return Bar(title, 0.0, duration(now - progress.started))
    text = f"{progress.value:g}/{progress.max:g}  {describe_pace(progress)}"
    return Bar(title, divide(progress.value, progress.max), text)


def describe_pace(progress: NodeProgress) -> str:
    """The pace of a node and the time that it has left: ``3.2 it/s, 5.0 s left``.

    Steps that take longer than a second are counted the other way round (``2.5 s/it``), as tqdm
    and so ComfyUI's own console do. "" before there are two steps to compare.
    """
    steps = progress.value - progress.first_value
    seconds = progress.at - progress.first_at
    if steps <= 0 or seconds <= 0:
        return ""
    steps_left = max(progress.max - progress.value, 0)
    seconds_left = steps_left * seconds / steps
    if steps >= seconds:
        pace = f"{steps / seconds:.1f} it/s"
    else:
        pace = f"{seconds / steps:.1f} s/it"
    return f"{pace}, {duration(seconds_left)} left"


def divide(part: float, whole: float) -> float:
    """``part`` of ``whole`` as a fraction from 0 to 1; 0 of nothing."""
    if whole <= 0:
        return 0.0
    return max(0.0, min(part / whole, 1.0))
