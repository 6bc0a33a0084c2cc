"""What happened, as data (docs/JSON.md lists it) and in words."""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple

from comfyui_runner.errors import ExitStatus
from comfyui_runner.nodes import class_of, node_in_words, node_title
from comfyui_runner.outputs import collect_outputs
from comfyui_runner.problems import Problem, explain_failure, traceback_lines
from comfyui_runner.state import Phase, PromptState, run_seconds, wholly_cached
from comfyui_runner.text import clean, duration, plural, size_in_words

#: A report is a flat dict with "event" and the fields of docs/JSON.md; Program.tell adds prompt_id, JSON a time.
Report = Dict[str, Any]

#: A line for people: a style ("", "ok", "bad", "warn", "dim", "bold") and its text.
Line = Tuple[str, str]


def changes(before: PromptState, after: PromptState, prompt: Mapping[str, Any]) -> Iterator[Report]:
    """The reports that lead from ``before`` to ``after``, whatever the change came from."""

    def node(event: str, node_id: str, **more: Any) -> Report:
        known = {
            "node_id": node_id,
            "title": node_title(prompt, node_id),
            "class_type": class_of(prompt, node_id),
        }
        return {"event": event, **known, **more}

    if before.phase is Phase.SUBMITTING and after.phase in (Phase.QUEUED, Phase.RUNNING):
        yield {"event": "submitted"}
    if after.phase is Phase.QUEUED and after.ahead is not None and after.ahead != before.ahead:
        yield {"event": "queued", "ahead": after.ahead}
    if before.phase is not Phase.RUNNING and after.phase is Phase.RUNNING:
        yield {"event": "started"}
    if after.cached != before.cached:
        yield {"event": "cached", "nodes": sorted(after.cached), "nodes_total": len(after.planned)}
    if after.finished is not before.finished:
        for node_id, seconds in after.finished.items():
            if seconds != before.finished.get(node_id):
                took = seconds - before.finished.get(node_id, 0.0)
                yield node("node_finished", node_id, seconds=round(took, 3), **nodes_done(after))
    if after.running is not before.running:
        for node_id, progress in after.running.items():
            known = before.running.get(node_id)
            if known is None:
                yield node("node_started", node_id)
            if progress.max > 1 and progress.value and (known is None or progress != known):
                yield node(
                    "progress", node_id, value=progress.value, max=progress.max, **nodes_done(after)
                )
    if after.blocked is not before.blocked:
        for node_id in set(after.blocked) - set(before.blocked):
            yield node("node_blocked", node_id, message=after.blocked[node_id])


#: Steps of a node are told at most this often (seconds); the first and the last of a node always.
PROGRESS_INTERVAL = 0.1


def is_mere_progress(before: PromptState, after: PromptState) -> bool:
    """Whether nothing but the values of the same running nodes changed, and none takes its first step."""
    if (
        after.finished is not before.finished
        or after.phase is not before.phase
        or after.ending is not before.ending
    ):
        return False
    for node_id, progress in after.running.items():
        known = before.running.get(node_id)
        if known is None or progress.max != known.max:
            return False
    return (
        after.running is not before.running
        and after.outputs is before.outputs
        and after.cached is before.cached
    )


def nodes_done(state: PromptState) -> Dict[str, int]:
    """How many nodes are done (cached ones too) of how many."""
    done = (state.cached | frozenset(state.finished)) & state.planned
    if state.phase is Phase.SUCCESS:
        done = state.planned  # what was missed while the socket was down is done too
    return {"nodes_done": len(done), "nodes_total": len(state.planned)}


def describe(report: Report) -> List[Line]:
    """What a person reads of a report; [] for those that only the meter or a program needs."""
    teller = _TELLERS.get(report["event"])
    return teller(report) if teller else []


def _tell_workflow(report: Report) -> List[Line]:
    lines: List[Line] = [("bold", "%s: %s" % (report["file"], plural(report["nodes"], "node")))]
    names = (("models", "Model"), ("texts", "Text"), ("sampling", "Sampling"), ("sizes", "Size"),
             ("files", "File"), ("saves", "Saves"))  # fmt: skip
    for key, word in names:
        for title, text in report[key][:12]:
            lines.append(("", "  %-9s %s: %s" % (word, title, text)))
        if len(report[key]) > 12:
            lines.append(("dim", "  %-9s %d more" % (word, len(report[key]) - 12)))
    return lines


def _tell_server(report: Report) -> List[Line]:
    lines: List[Line] = [("warn", text) for text in report["tried"]]
    version = (
        "ComfyUI %s" % report["version"]
        if report["version"]
        else "ComfyUI (it does not tell its version)"
    )
    lines.append(
        ("bold", "%s at %s, %s" % (version, report["url"], report["device"] or "device unknown"))
    )
    return lines


def _tell_queued(report: Report) -> List[Line]:
    if not report["ahead"]:
        return [("", "Waiting: next in the queue.")]
    return [("", "Waiting: %s ahead." % plural(report["ahead"], "prompt"))]


def _tell_cached(report: Report) -> List[Line]:
    count = len(report["nodes"])
    return (
        [("dim", "%d of %s cached." % (count, plural(report["nodes_total"], "node")))]
        if count
        else []
    )


def _tell_problem(report: Report) -> List[Line]:
    inside = ", ".join(part for part in (report["class_type"], "node " + report["node_id"]) if part)
    place = '"%s" (%s): ' % (report["title"], inside) if report["node_id"] else ""
    return [("bad", place + report["message"])] + [("", "    " + hint) for hint in report["hints"]]


def _tell_failure(report: Report) -> List[Line]:
    place = (
        '"%s" (%s, node %s)' % (report["title"], report["class_type"], report["node_id"])
        if report["node_id"]
        else "A node"
    )
    first, _, rest = report["message"].partition("\n")
    lines: List[Line] = [("bad", "%s raised %s: %s" % (place, report["type"], first))]
    lines += [("", "    " + line) for line in rest.split("\n") if line.strip()]
    lines += [("dim", line) for line in report["traceback"]]
    lines += [("", "    " + hint) for hint in report["hints"]]
    return lines


def _tell_output(report: Report) -> List[Line]:
    if report["text"] is not None:
        text = clean(report["text"])
        shown = text if len(text) <= 2000 else text[:2000] + "…"
        return [("ok", "%s:" % report["title"])] + [
            ("", "    " + line) for line in shown.split("\n")
        ]
    if report["will_be_saved"]:
        return []  # "saved" follows
    name = (
        report["subfolder"] + "/" + report["filename"]
        if report["subfolder"]
        else report["filename"]
    )
    return [("ok", "%s: %s" % (report["title"], name)), ("dim", "    " + report["url"])]


def _tell_saved(report: Report) -> List[Line]:
    return [
        (
            "ok",
            "%s: saved %s (%s)" % (report["title"], report["path"], size_in_words(report["bytes"])),
        )
    ]


def _tell_connection(report: Report) -> List[Line]:
    if report["state"] == "restored":
        return [("ok", "Connection restored.")]
    if report["state"] == "unavailable":
        return [
            (
                "warn",
                "No WebSocket (%s): following by the queue and history alone." % report["reason"],
            )
        ]
    return [("warn", "Connection lost (%s): trying again; the run goes on." % report["reason"])]


def _tell_silence(report: Report) -> List[Line]:
    return [
        ("warn", "No message for %s; %s" % (duration(report["seconds"]), report["server_says"]))
    ]


def _tell_end(report: Report) -> List[Line]:
    style = {"success": "ok", "cancelled": "warn", "timeout": "warn"}.get(report["status"], "bad")
    if report["status"] == "success" and report["exit_status"]:
        style = "warn"
    return [(style, line) for line in report["message"].split("\n")]


_TELLERS: Mapping[str, Callable[[Report], List[Line]]] = {
    "workflow": _tell_workflow,
    "server": _tell_server,
    "submitted": lambda report: [("dim", "Submitted as %s." % report["prompt_id"])],
    "queued": _tell_queued,
    "started": lambda report: [("", "Running.")],
    "cached": _tell_cached,
    "node_finished": lambda report: [
        ("ok", "%s: %s" % (report["title"], duration(report["seconds"])))
    ],
    "node_blocked": lambda report: [
        ("warn", "%s gave no result: %s" % (report["title"], report["message"]))
    ],
    "problem": _tell_problem,
    "failure": _tell_failure,
    "output": _tell_output,
    "saved": _tell_saved,
    "not_saved": lambda report: (
        [("bad", report["message"])]
        + ([("", "    " + report["remedy"])] if report["remedy"] else [])
    ),
    "connection": _tell_connection,
    "silence": _tell_silence,
    "listening": lambda report: [
        ("bold", "Continuous mode at %s" % report["url"]),
        *(("", "  " + line) for line in report["routes"]),
    ],
    "notice": lambda report: [("warn", report["message"])],
    "input": lambda report: [],
    "uploaded": lambda report: [("dim", report["message"])],
    "checked": lambda report: [("bad" if report["problems"] else "ok", report["message"])],
    "exported": lambda report: [("ok", "Written: %s" % report["path"])],
    "row": lambda report: [
        (
            "ok" if report["status"] == "done" else "bad",
            "Row %d: %s" % (report["row"], report["message"].partition("\n")[0]),
        )
    ],
    "batch": lambda report: [
        ("bad" if report["exit_status"] else "ok", line) for line in report["message"].split("\n")
    ],
    "error": lambda report: (
        [("bad", report["message"])] + ([("", report["remedy"])] if report["remedy"] else [])
    ),
    "end": _tell_end,
}


def end_report(
    state: PromptState,
    exit_status: ExitStatus,
    now: float,
    prompt: Mapping[str, Any],
    stopped: Optional[str] = None,
    received: int = 0,
) -> Report:
    """The last report. ``stopped`` says who cancelled: "Ctrl+C", "SIGTERM", "the timeout", or None;
    ``received`` counts the pictures that came over the WebSocket alone."""
    took = duration(run_seconds(state, now))
    node = str(state.failure.get("node_id") or "")
    at_node = " at %s" % node_in_words(prompt, node) if node else ""
    count = len(collect_outputs(state.outputs, prompt)) + received
    status = state.phase.value
    words = {
        Phase.SUCCESS: "Done in %s, %s." % (took, plural(count, "output")),
        Phase.ERROR: "The run failed after %s%s." % (took, at_node),
        Phase.INTERRUPTED: "Somebody else interrupted the run%s." % at_node,
        Phase.DELETED: "Somebody else took the prompt off the queue: it did not run.",
        Phase.LOST: "The run is lost: %s.\nIf it matters, look at the server's output folder, and run it again."
        % (state.reason or "how it ended cannot be known"),
        Phase.REJECTED: "ComfyUI refused the prompt: nothing was run.",
    }
    message = words.get(state.phase, "The run was left.")
    if wholly_cached(state):
        message = (
            "Nothing new was rendered: ComfyUI had every result in its cache (%s).\n"
            "Change a value to render anew, or give --seed random." % plural(count, "output")
        )
    if exit_status is ExitStatus.PARTIAL:
        message += (
            "\nIt ran in part only: the outputs that ComfyUI refused are missing (see above)."
        )
    if stopped:
        status = "timeout" if exit_status is ExitStatus.TIMEOUT else "cancelled"
        cancelled = {
            Phase.INTERRUPTED: "ComfyUI interrupted our run%s." % at_node,
            Phase.DELETED: "our prompt was waiting and is off the queue: it did not run.",
            Phase.SUCCESS: "it had already finished: %s." % plural(count, "output"),
            Phase.ERROR: "it had already failed%s." % at_node,
            Phase.REJECTED: "nothing was submitted.",
            Phase.LOST: "the server does not have it any more (%s)."
            % (state.reason or "reason unknown"),
        }
        unconfirmed = (
            "ComfyUI has not confirmed it: prompt %s may still run.\n"
            "See the queue in ComfyUI; a node that never checks ends by itself." % state.prompt_id
        )
        message = "Cancelled by %s: %s" % (stopped, cancelled.get(state.phase, unconfirmed))
    return {
        "event": "end", "status": status, "exit_status": int(exit_status), "message": message,
        "seconds": round(run_seconds(state, now), 3), "wholly_cached": wholly_cached(state), **nodes_done(state),
    }  # fmt: skip


def exit_status_of(state: PromptState, dropped: bool) -> ExitStatus:
    """The exit status for a run that was left to end. ``dropped``: ComfyUI refused some outputs."""
    by_phase = {
        Phase.ERROR: ExitStatus.FAILED,
        Phase.INTERRUPTED: ExitStatus.INTERRUPTED,
        Phase.DELETED: ExitStatus.INTERRUPTED,
        Phase.LOST: ExitStatus.LOST,
        Phase.REJECTED: ExitStatus.REJECTED,
    }
    if state.phase is Phase.SUCCESS:
        return ExitStatus.PARTIAL if dropped else ExitStatus.OK
    return by_phase.get(state.phase, ExitStatus.ERROR)


def problem_report(problem: Problem) -> Report:
    """The report of a problem."""
    return {"event": "problem", **problem._asdict(), "hints": list(problem.hints)}


def failure_report(
    state: PromptState, prompt: Mapping[str, Any], frames: Optional[int]
) -> Optional[Report]:
    """The report of the node that raised, with the last ``frames`` of its traceback (None: all); None if none did."""
    if state.phase is not Phase.ERROR or not state.failure:
        return None
    report = problem_report(explain_failure(state.failure, prompt))
    return {**report, "event": "failure", "traceback": traceback_lines(state.failure, frames)}
