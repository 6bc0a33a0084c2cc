"""The moving part of the screen, as lines of styled text."""

from __future__ import annotations

import functools
import unicodedata
from typing import Any, List, Mapping, Tuple

from comfyui_runner.nodes import node_title
from comfyui_runner.reports import Line, nodes_done
from comfyui_runner.state import NodeProgress, Phase, PromptState, run_seconds
from comfyui_runner.text import duration, one_line, plural


def bar(fraction: float, width: int, ascii_only: bool) -> Tuple[str, str]:
    """A bar of ``width`` characters as its full and its empty part."""
    full = int(max(0.0, min(fraction, 1.0)) * width)
    marks = ("#", "-") if ascii_only else ("━", "─")
    return marks[0] * full, marks[1] * (width - full)


def rate_in_words(progress: NodeProgress) -> str:
    """The pace of a node and the time that it has left: "3.2 it/s, 0:05 left" (or "s/it")."""
    steps, seconds = progress.value - progress.first_value, progress.at - progress.first_at
    if steps <= 0 or seconds <= 0:
        return ""
    pace = "%.1f it/s" % (steps / seconds) if steps >= seconds else "%.1f s/it" % (seconds / steps)
    return "%s, %s left" % (pace, duration(max(progress.max - progress.value, 0) * seconds / steps))


def meter_row(
    width: int, ascii_only: bool, label: str, fraction: float, style: str, text: str
) -> List[Line]:
    name = min(max(width // 4, 8), 26)
    label = fit_line([("", one_line(label, name))], name)[0][1]
    full, empty = bar(
        fraction, max(min(width - name - max(34, cells(text) + 3), 40), 6), ascii_only
    )
    padding = " " * (name - cells(label) + 1)
    return [("", label + padding), (style, full), ("dim", empty), ("", " " + text)]


def meter(
    state: PromptState,
    prompt: Mapping[str, Any],
    now: float,
    began: float,
    width: int,
    ascii_only: bool,
    note: str = "",
) -> List[List[Line]]:
    """The moving part of the screen: lines of (style, text) pieces, none wider than ``width``.

    ``began`` is when we submitted; ``note`` is what is wrong at the moment, if anything.
    """
    row = functools.partial(meter_row, width, ascii_only)
    lines: List[List[Line]] = []
    if state.phase in (Phase.SUBMITTING, Phase.QUEUED):
        waiting = "Submitting" if state.ahead is None else "Waiting, next in the queue"
        if state.ahead:
            waiting = "Waiting, %s ahead" % plural(state.ahead, "prompt")
        lines.append([("", "%s  %s" % (waiting, duration(now - began)))])
    else:
        done, total = nodes_done(state).values()
        part = sum(
            p.value / p.max for p in state.running.values() if p.max > 0 and 0 <= p.value <= p.max
        )
        text = "%d/%d nodes  %s" % (done, total, duration(run_seconds(state, now)))
        lines.append(
            row("Overall", (done + min(part, 1.0)) / total if total else 0.0, "bold", text)
        )
        for node_id, progress in list(state.running.items())[:3]:
            fraction = progress.value / progress.max if progress.max > 0 else 0.0
            if progress.max > 1:
                text = "%g/%g  %s" % (progress.value, progress.max, rate_in_words(progress))
            else:
                fraction, text = 0.0, duration(now - progress.started)
            lines.append(row(node_title(prompt, node_id), fraction, "ok", text))
    if note:
        lines.append([("warn", note)])
    return [fit_line(line, width) for line in lines]


def cells(text: str) -> int:
    """How many columns a terminal gives ``text``: wide characters (Chinese, emoji) take two."""

    return (
        len(text)
        if text.isascii()
        else sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in text)
    )


def fit_line(line: List[Line], width: int) -> List[Line]:
    fitted = []
    for style, text in line:
        while cells(text) > max(width, 0):
            text = text[:-1]
        fitted.append((style, text))
        width -= cells(text)
    return fitted
