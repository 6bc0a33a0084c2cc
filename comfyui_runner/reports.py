"""What happened to a run: as data (docs/JSON.md lists the events), and in words for people."""

from __future__ import annotations

from typing import (
    Any,
    Callable,
    Dict,
    FrozenSet,
    Iterable,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

from comfyui_runner.errors import ExitStatus
from comfyui_runner.files import path_for_people
from comfyui_runner.nodes import InputRef, class_of, describe_node, linked_nodes, node_in_words
from comfyui_runner.outputs import SENDS_PICTURES, collect_outputs
from comfyui_runner.problems import Problem, explain_failure, traceback_lines
from comfyui_runner.seeds import seeds_by_name
from comfyui_runner.state import Phase, PromptState, run_seconds, wholly_cached
from comfyui_runner.text import clean, duration, one_line, plural, size_in_words

#: A flat dict: "event", and the fields that docs/JSON.md lists for it. Console.report() adds the
#: prompt_id, and the printer for --json the time.
Report = Dict[str, Any]

#: A line for people: a style ("", "ok", "bad", "warn", "dim" or "bold") and its text.
Line = Tuple[str, str]

#: The steps of a node are reported at most this often, in seconds (its first and its last always).
PROGRESS_INTERVAL = 0.1

#: Entries of one kind in the summary of a workflow; the rest are counted.
ENTRIES_SHOWN = 12

#: Values of a row that are shown, and characters of each.
VALUES_SHOWN, VALUE_SHOWN = 6, 24

#: Characters of a problem that are shown behind a message.
PROBLEM_SHOWN = 500

#: Characters of a text output that are shown; the whole text is in its file, and in --json.
TEXT_SHOWN = 2000


class Throttle:
    """Lets through what comes too often once in ``interval`` seconds.

    It has no clock of its own: each call passes the time in, in seconds of any one clock.
    """

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self._due_at = float("-inf")

    def is_due(self, now: float) -> bool:
        """Whether ``interval`` seconds have passed since the last restart()."""
        return now >= self._due_at

    def restart(self, now: float) -> None:
        """Lets nothing through for the next ``interval`` seconds."""
        self._due_at = now + self.interval

    def lets_through(self, now: float) -> bool:
        """Whether it is due; if so, it is restarted."""
        if not self.is_due(now):
            return False
        self.restart(now)
        return True


# -- reports of what changed ---------------------------------------------------------------------


class RunTexts(NamedTuple):
    """The texts that one run alone has: drawn from {a|b}, or the names of its files.

    ``number`` is what they were drawn from, None where nothing was.
    """

    number: Optional[int] = None
    texts: Mapping[InputRef, str] = {}

    def to_json(self) -> Dict[str, Any]:
        """Fields of reports and records, beside the seeds."""
        texts_by_name = {ref.full_name: text for ref, text in self.texts.items()}
        return {"draw": self.number, "texts": texts_by_name}


#: Of a prompt that is submitted as it is.
NO_RUN_TEXTS = RunTexts()


def changes(
    before: PromptState,
    after: PromptState,
    prompt: Mapping[str, Any],
    throttle: Throttle,
    now: float,
    *,
    run_texts: RunTexts = NO_RUN_TEXTS,
    attached: bool = False,
) -> Iterator[Report]:
    """The reports that lead from ``before`` to ``after``, wherever the change was learned.

    ``throttle`` is the run's own: this is the one place that decides which steps are reported.
    ``attached``: somebody else has submitted the prompt.
    """
    is_found_in_queue = before.phase is Phase.SUBMITTING and after.phase is Phase.QUEUED
    if attached and is_found_in_queue:
        yield {"event": "following", "seeds": seeds_by_name(prompt)}
    else:
        yield from _changes_in_queue(before, after, prompt, run_texts)
    if after.cached != before.cached:
        nodes = sorted(after.cached)
        yield {"event": "cached", "nodes": nodes, "nodes_total": len(after.planned)}
    # Of a state nothing is changed in place: what is the same object has not changed.
    if after.finished is not before.finished:
        yield from _finished_nodes(before, after, prompt)
    if after.running is not before.running:
        yield from _running_nodes(before, after, prompt, throttle, now)
    if after.blocked is not before.blocked:
        for node_id in set(after.blocked) - set(before.blocked):
            yield node_report("node_blocked", prompt, node_id, message=after.blocked[node_id])


def node_report(event: str, prompt: Mapping[str, Any], node_id: str, **fields: Any) -> Report:
    """A report of one node, with ``fields`` besides those that name the node."""
    return {"event": event, **describe_node(prompt, node_id), **fields}


def _changes_in_queue(
    before: PromptState, after: PromptState, prompt: Mapping[str, Any], run_texts: RunTexts
) -> Iterator[Report]:
    is_on_server = after.phase in (Phase.QUEUED, Phase.RUNNING)
    if before.phase is Phase.SUBMITTING and is_on_server:
        seeds = seeds_by_name(prompt)
        yield {"event": "submitted", "seeds": seeds, **run_texts.to_json()}

    place_is_known = after.phase is Phase.QUEUED and after.ahead is not None
    if place_is_known and after.ahead != before.ahead:
        yield {"event": "queued", "ahead": after.ahead}

    if after.phase is Phase.RUNNING and before.phase is not Phase.RUNNING:
        yield {"event": "started"}


def _finished_nodes(
    before: PromptState, after: PromptState, prompt: Mapping[str, Any]
) -> Iterator[Report]:
    counts = nodes_done(after)
    for node_id, seconds in after.finished.items():
        seconds_before = before.finished.get(node_id)
        if seconds == seconds_before:
            continue
        took = seconds - (seconds_before or 0.0)  # a node in a loop runs more than once
        yield node_report("node_finished", prompt, node_id, seconds=round(took, 3), **counts)


def _running_nodes(
    before: PromptState,
    after: PromptState,
    prompt: Mapping[str, Any],
    throttle: Throttle,
    now: float,
) -> Iterator[Report]:
    for node_id, progress in after.running.items():
        progress_before = before.running.get(node_id)
        if progress_before is None:
            yield node_report("node_started", prompt, node_id)

        has_steps = progress.max > 1 and progress.value
        if not has_steps or progress == progress_before:
            continue
        is_first = progress_before is None or progress_before.max != progress.max
        is_last = progress.value == progress.max
        if is_first or is_last or throttle.lets_through(now):
            yield node_report(
                "progress",
                prompt,
                node_id,
                value=progress.value,
                max=progress.max,
                **nodes_done(after),
            )


def nodes_done(state: PromptState) -> Dict[str, int]:
    """How many nodes are done (cached ones too), and of how many."""
    if state.phase is Phase.SUCCESS:
        done = state.planned  # what was missed while the socket was down is done too
    else:
        done = (state.cached | frozenset(state.finished)) & state.planned
    return {"nodes_done": len(done), "nodes_total": len(state.planned)}


def problem_report(problem: Problem) -> Report:
    """The report of a problem."""
    return {"event": "problem", **problem._asdict(), "hints": list(problem.hints)}


def failure_report(
    state: PromptState, prompt: Mapping[str, Any], frames: Optional[int]
) -> Optional[Report]:
    """The report of the node that raised an error; None if none did.

    ``frames`` says how many of the last frames of its traceback are in the report (None: all).
    """
    if state.phase is not Phase.ERROR or not state.failure:
        return None
    report = problem_report(explain_failure(state.failure, prompt))
    return {**report, "event": "failure", "traceback": traceback_lines(state.failure, frames)}


# -- how a run ended -----------------------------------------------------------------------------


def exit_status_of(state: PromptState, dropped: bool) -> ExitStatus:
    """The exit status of a run that nobody stopped. ``dropped``: ComfyUI refused some outputs."""
    if state.phase is Phase.SUCCESS and dropped:
        return ExitStatus.PARTIAL
    by_phase = {
        Phase.SUCCESS: ExitStatus.OK,
        Phase.ERROR: ExitStatus.FAILED,
        Phase.INTERRUPTED: ExitStatus.INTERRUPTED,
        Phase.DELETED: ExitStatus.INTERRUPTED,
        Phase.LOST: ExitStatus.LOST,
        Phase.REJECTED: ExitStatus.REJECTED,
    }
    return by_phase.get(state.phase, ExitStatus.ERROR)


def end_report(
    state: PromptState,
    exit_status: ExitStatus,
    now: float,
    prompt: Mapping[str, Any],
    *,
    cancelled: bool = False,
    received: int = 0,
    unsaved: Sequence[str] = (),
) -> Report:
    """The last report of a run.

    ``cancelled``: we stopped it (Ctrl+C, SIGTERM, --timeout, the service). ``received`` counts the
    pictures that came over the WebSocket alone. ``unsaved`` are the names of what could not be
    saved.
    """
    seconds = run_seconds(state, now)
    count = len(collect_outputs(state.outputs, prompt)) + received
    outputs = plural(count, "output")
    if cancelled and exit_status is ExitStatus.TIMEOUT:
        status = "timeout"
        message = "Cancelled by --timeout: " + _describe_cancelling(state, prompt, outputs)
    elif cancelled:
        status = "cancelled"
        message = "Cancelled: " + _describe_cancelling(state, prompt, outputs)
    else:
        status = state.phase.value
        message = _describe_ending(state, prompt, duration(seconds), outputs)
        made_nothing = state.phase is Phase.SUCCESS and not wholly_cached(state) and not count
        if made_nothing:
            message += explain_no_outputs(state, prompt)
        if exit_status is ExitStatus.PARTIAL:
            message += (
                "\nIt ran only in part: the outputs that ComfyUI refused are missing (see above)."
            )
    if unsaved:
        message += f"\nNot saved: {list_some(unsaved)}."
    return {
        "event": "end",
        "status": status,
        "exit_status": int(exit_status),
        "message": message,
        "seconds": round(seconds, 3),
        "wholly_cached": wholly_cached(state),
        **nodes_done(state),
    }


def _describe_ending(state: PromptState, prompt: Mapping[str, Any], took: str, outputs: str) -> str:
    """How a run ended that we did not stop. ``took`` and ``outputs`` are in words."""
    if wholly_cached(state):
        return (
            f"Nothing was rendered: every result came from ComfyUI's cache ({outputs}).\n"
            "To render again, change a value or add --seed random."
        )
    seeds = seeds_in_words(seeds_by_name(prompt))
    made = ", ".join(filter(None, [outputs, seeds]))
    at_node = _at_node(state, prompt)
    reason = state.reason or "how it ended is unknown"
    messages = {
        Phase.SUCCESS: f"Done in {took}, {made}.",
        Phase.ERROR: f"The run failed after {took}{at_node}.",
        Phase.INTERRUPTED: f"Someone else interrupted the run{at_node}.",
        Phase.DELETED: "Someone else removed the prompt from the queue before it ran.",
        Phase.LOST: (
            f"The run is lost: {reason}.\n"
            "Before you run it again, check the server's output folder."
        ),
        Phase.REJECTED: "ComfyUI refused the prompt: nothing ran.",
    }
    return messages.get(state.phase, "The run was not followed to its end.")


def explain_no_outputs(state: PromptState, prompt: Mapping[str, Any]) -> str:
    """Which nodes should have made something and reported nothing; "" if there are none.

    Nodes that save files need not report them: Image Save of WAS Node Suite does not without
    show_previews. The text is for the end of a message: its lines begin with a newline.
    """
    last_nodes = (state.targets or state.planned) - upstream_of_others(prompt, state.planned)
    senders = []
    others = []
    for node_id in sorted(last_nodes):
        has_reported = any(state.outputs.get(node_id, {}).values())
        if has_reported:
            continue
        name = node_in_words(prompt, node_id)
        if class_of(prompt, node_id) == SENDS_PICTURES:
            senders.append(name)
        else:
            others.append(name)

    text = ""
    if senders:
        text += (
            f"\n{list_some(senders)}: ComfyUI sends these pictures only over the WebSocket, and "
            "none arrived."
        )
    if others:
        text += (
            f"\nNothing was reported by {list_some(others)}. Look in the server's output folder, "
            "or for an option of the node that makes it report what it saves (such as "
            "show_previews)."
        )
    return text


def plain_notice(message: str) -> Report:
    """A notice of what happens as it was asked for, or as it always does: it is not a warning."""
    return {"event": "notice", "message": message, "warning": False}


def upstream_of_others(prompt: Mapping[str, Any], node_ids: Iterable[str]) -> FrozenSet[str]:
    """The nodes whose results others of ``node_ids`` use."""
    return frozenset(used for node_id in node_ids for used in linked_nodes(prompt, node_id))


def _describe_cancelling(state: PromptState, prompt: Mapping[str, Any], outputs: str) -> str:
    """What became of a run that we cancelled. ``outputs`` says how many it had, in words."""
    at_node = _at_node(state, prompt)
    reason = state.reason or "reason unknown"
    messages = {
        Phase.INTERRUPTED: f"ComfyUI interrupted our run{at_node}.",
        Phase.DELETED: "removed from the queue before it ran.",
        Phase.SUCCESS: f"the run had already finished ({outputs}).",
        Phase.ERROR: f"the run had already failed{at_node}.",
        Phase.REJECTED: "nothing was submitted.",
        Phase.LOST: f"the server no longer has the run ({reason}).",
    }
    unconfirmed = (
        f"ComfyUI has not confirmed it, so prompt {state.prompt_id} may still be running.\n"
        "Check the queue in ComfyUI. Some nodes cannot be interrupted and run to their end."
    )
    return messages.get(state.phase, unconfirmed)


def _at_node(state: PromptState, prompt: Mapping[str, Any]) -> str:
    """Where the run stopped: `` at "KSampler" (node 3)``, or nothing if that is unknown."""
    node_id = str(state.failure.get("node_id") or "")
    if not node_id:
        return ""
    return f" at {node_in_words(prompt, node_id)}"


# -- in words ------------------------------------------------------------------------------------


def describe(report: Report) -> List[Line]:
    """What a person reads of a report; [] for those that only the meter or a program needs."""
    describe_event = _DESCRIPTIONS.get(report["event"])
    if describe_event is None:
        return []
    return describe_event(report)


def result_of(report: Report) -> Optional[str]:
    """The path, URL or text that a report gives as a result; None for other reports."""
    event = report["event"]
    if event == "saved":
        return str(report["path"])
    if event == "listening":
        return str(report["url"])
    if event != "output" or report["will_be_saved"]:
        return None
    if report["text"] is not None:
        return str(report["text"])
    if report["url"] is not None:
        return str(report["url"])
    return None  # we have its content: only -o gives it a path


_EVENTS_OF_TROUBLE = frozenset(
    ["error", "problem", "refused", "failure", "not_saved", "hook_failed", "notice"]
)

#: Events with an exit status: something ended, well or not.
_EVENTS_WITH_STATUS = frozenset(["end", "row", "batch", "checked", "workflows"])


def is_about_trouble(report: Report) -> bool:
    """Whether a report says that something went wrong, so that --quiet shows it too."""
    event = report["event"]
    if event in _EVENTS_OF_TROUBLE:
        return True
    if event == "end" and report.get("row"):
        return False  # a row's own report says the same
    return event in _EVENTS_WITH_STATUS and bool(report["exit_status"])


def indent(lines: List[str]) -> List[Line]:
    """Lines that belong to the line above them."""
    return [("", f"    {line}") for line in lines]


def style_of_result(is_good: bool) -> str:
    """The style of a line that says how something ended."""
    return "ok" if is_good else "bad"


#: What the summary of a workflow lists, and the label of each list.
_PARTS_OF_SUMMARY = (
    ("models", "Model"),
    ("texts", "Text"),
    ("sampling", "Sampling"),
    ("sizes", "Size"),
    ("files", "File"),
    ("values", "Set"),
    ("saves", "Saves"),
)

#: What a text is called whose node needs no name: there is one of each.
_ROLES = {"positive": "Positive", "negative": "Negative"}


def describe_workflow(report: Report) -> List[Line]:
    lines: List[Line] = [("bold", f"{report['file']}: {plural(report['nodes'], 'node')}")]
    if report["brief"]:
        return lines
    for field, label in _PARTS_OF_SUMMARY:
        entries = report[field]
        shows_titles = len(entries) > 1 or field in ("texts", "values")
        for title, text in entries[:ENTRIES_SHOWN]:
            is_role = field == "texts" and title in _ROLES
            if is_role:
                lines.append(("", f"  {_ROLES[title]:<9} {text}"))
            elif shows_titles:
                lines.append(("", f"  {label:<9} {title}: {text}"))
            else:
                lines.append(("", f"  {label:<9} {text}"))
        more = len(entries) - ENTRIES_SHOWN
        if more > 0:
            lines.append(("dim", f"  {label:<9} {more} more"))
    return lines


def describe_server(report: Report) -> List[Line]:
    version = report["version"] or "(version unknown)"
    device = report["device"] or "device unknown"
    lines: List[Line] = [("", message) for message in report["tried"]]
    lines.append(("bold", f"ComfyUI {version} at {report['url']}, {device}"))
    return lines


def describe_listening(report: Report) -> List[Line]:
    where = f"Open {report['url']} in a browser"
    if report["lan_url"] is not None:
        where += f", on a phone {report['lan_url']}"
    return [("bold", where)]


def describe_submitted(report: Report) -> List[Line]:
    lines: List[Line] = [("dim", f"Submitted as {report['prompt_id']}.")]
    if report["texts"]:
        texts = [f"{name}={one_line(text, 60)}" for name, text in report["texts"].items()]
        lines.append(("dim", f"Texts: {list_some(texts)}"))
    return lines


def describe_following(report: Report) -> List[Line]:
    return [("dim", f"Following {report['prompt_id']}.")]


def seeds_in_words(seeds: Mapping[str, Any]) -> str:
    """``seed 42``; of several, which is which; "" of none."""
    if not seeds:
        return ""
    if len(seeds) == 1:
        (seed,) = seeds.values()
        return f"seed {seed}"
    return f"seeds {list_seeds(seeds)}"


def list_seeds(seeds: Mapping[str, Any]) -> str:
    """Seeds as --set takes them: ``3.seed=42, 8.noise_seed=7``."""
    return list_some([f"{name}={value}" for name, value in seeds.items()])


def list_some(entries: Sequence[str]) -> str:
    """The first ENTRIES_SHOWN of ``entries``, and how many more there are."""
    listed = ", ".join(entries[:ENTRIES_SHOWN])
    if len(entries) > ENTRIES_SHOWN:
        listed += f" and {len(entries) - ENTRIES_SHOWN} more"
    return listed


def describe_queued(report: Report) -> List[Line]:
    if not report["ahead"]:
        return [("", "Waiting: next in the queue.")]
    return [("", f"Waiting: {plural(report['ahead'], 'prompt')} ahead.")]


def describe_started(report: Report) -> List[Line]:
    return [("", "Running.")]


def describe_cached(report: Report) -> List[Line]:
    count = len(report["nodes"])
    if not count:
        return []
    return [("dim", f"{count} of {plural(report['nodes_total'], 'node')} cached.")]


def describe_node_finished(report: Report) -> List[Line]:
    return [("ok", f"{report['title']}: {duration(report['seconds'])}")]


def describe_node_blocked(report: Report) -> List[Line]:
    return [("warn", f"{report['title']} produced no result: {report['message']}")]


def describe_progress(report: Report) -> List[Line]:
    """A line of progress, for output that has no bars."""
    percent = int(100 * report["value"] / report["max"])
    steps = f"{report['value']:g}/{report['max']:g} ({percent}%)"
    nodes = f"{report['nodes_done']}/{report['nodes_total']} nodes"
    return [("dim", f"{report['title']}: {steps}, {nodes}")]


def describe_connection(report: Report) -> List[Line]:
    if report["state"] == "restored":
        return [("ok", "Connection restored.")]
    reason = report["reason"]
    if report["state"] == "unavailable":
        return [("warn", f"No WebSocket ({reason}): following the queue and history instead.")]
    return [("warn", f"Connection lost ({reason}): reconnecting. The run continues.")]


def describe_silence(report: Report) -> List[Line]:
    return [("", f"No message for {duration(report['seconds'])}; {report['server_says']}")]


def describe_notice(report: Report) -> List[Line]:
    style = "warn"
    if not report.get("warning", True):  # see plain_notice()
        style = ""
    return [(style, report["message"])]


def describe_problem(report: Report) -> List[Line]:
    message = report["message"]
    if report["node_id"]:
        message = f"{_name_node(report)}: {message}"
    return [("bad", message), *indent(report["hints"])]


def add_first_problem(message: str, problems: Sequence[Problem]) -> str:
    """``message`` with the first of ``problems`` behind it, and how many more there are."""
    if not problems:
        return message
    first, *others = problems
    sentence, *hints = [one_line(text) for _, text in describe_problem(problem_report(first))]
    shown = one_line(sentence, PROBLEM_SHOWN)
    for hint in hints:  # whole or not at all: half of a command would do harm
        if len(shown) + len(hint) < PROBLEM_SHOWN:
            shown += f" {hint}"
    if others:
        shown += f" ({plural(len(others), 'more problem')}.)"
    return f"{message} {shown}"


def describe_refused(report: Report) -> List[Line]:
    client = report["client"]
    if report["page"]:
        client += f" (page {report['page']})"
    request = f"{report['method']} {report['path']}".strip() or "a request"
    refused = "refused"
    if report["count"] > 1:
        refused += f" {report['count']} more times"
    return [("warn", f"{client}: {request} {refused} ({report['status']}): {report['message']}")]


def describe_failure(report: Report) -> List[Line]:
    node = _name_node(report)
    first, *more = report["message"].split("\n")
    lines: List[Line] = [("bad", f"{node} raised {report['type']}: {first}")]
    lines += indent([line for line in more if line.strip()])
    lines += [("dim", line) for line in report["traceback"]]
    lines += indent(report["hints"])
    return lines


def _name_node(report: Report) -> str:
    """``"Sampler" (KSampler, node 3)``, as node_in_words() has it."""
    if not report["node_id"]:
        return "A node"
    details = f"node {report['node_id']}"
    if report["class_type"]:
        details = f"{report['class_type']}, {details}"
    return f'"{report["title"]}" ({details})'


#: How a file came that is not on the server.
IN_WORDS_OF_SOURCE = {"websocket": "over the WebSocket", "base64": "as base64"}


def describe_output(report: Report) -> List[Line]:
    title = report["title"]
    if report["text"] is not None:
        text = clean(report["text"])
        if len(text) > TEXT_SHOWN:
            text = text[:TEXT_SHOWN] + "…"
        return [("ok", f"{title}:"), *indent(text.split("\n"))]

    if report["will_be_saved"]:
        return []  # "saved" follows
    way = IN_WORDS_OF_SOURCE.get(report["source"])
    if report["url"] is None and way is not None:
        return [("ok", f"{title}: {report['kind']} {way}, {size_in_words(report['size'])}")]
    path = "/".join(filter(None, (report["subfolder"], report["filename"])))
    lines: List[Line] = [("ok", f"{title}: {path}")]
    if report["url"] is not None:
        lines.append(("dim", f"    {report['url']}"))
    return lines


def describe_saved(report: Report) -> List[Line]:
    size = size_in_words(report["bytes"])
    return [("ok", f"Saved {path_for_people(report['path'])} ({size})")]


def describe_not_saved(report: Report) -> List[Line]:
    lines: List[Line] = [("bad", report["message"])]
    if report["remedy"]:
        lines += indent([report["remedy"]])
    return lines


def describe_uploaded(report: Report) -> List[Line]:
    return [("dim", report["message"])]


def describe_checked(report: Report) -> List[Line]:
    style = style_of_result(is_good=not report["problems"])
    return [(style, report["message"])]


def describe_exported(report: Report) -> List[Line]:
    return [("ok", f"Wrote {report['path']}")]


def describe_hook_failed(report: Report) -> List[Line]:
    return [("warn", report["message"])]


def describe_freed(report: Report) -> List[Line]:
    return [("dim", report["message"])]


def describe_row(report: Report) -> List[Line]:
    """``3/12  seed 8812, 255, red  out/00003/red_00003_.png  1.4 s``."""
    if report["total"] is None:
        parts = [f"Row {report['row']}"]
    else:
        parts = [f"{report['place']}/{report['total']}"]
    parts.append(values_in_words(report))

    is_done = report["status"] == "done"
    if is_done:
        parts.append(files_in_words(report["files"]))
        if report["seconds"] is not None:
            parts.append(duration(report["seconds"]))
    else:
        parts.append(_failure_of_row(report))
    return [(style_of_result(is_good=is_done), "  ".join(filter(None, parts)))]


def _failure_of_row(report: Report) -> str:
    """How a row ended that is not done, on one line."""
    if report["status"] == "cancelled":
        return "cancelled"  # the line above says by what
    lines = report["message"].split("\n")
    words = f"{report['status']}: {lines[0]}"
    if report["exit_status"] == ExitStatus.NOT_SAVED:
        words += f" {lines[-1]}"  # it lists what is not saved
    return words


def values_in_words(report: Report) -> str:
    """What makes a row different: its seeds, its values, and the texts that were drawn for it."""
    seeds = report["seeds"]
    seeds_shown = set(map(str, seeds.values()))
    words = [seeds_in_words(seeds)]
    for name, value in {**report["values"], **report["texts"]}.items():
        # A seed is there by the node's id, and here by whatever name was typed.
        is_seed_again = name.endswith("seed") and str(value) in seeds_shown
        if not is_seed_again:
            words.append(one_line(value, VALUE_SHOWN))
    shown = [word for word in words if word]
    if len(shown) > VALUES_SHOWN:
        shown = [*shown[:VALUES_SHOWN], "…"]
    return ", ".join(shown)


def files_in_words(files: Sequence[str]) -> str:
    """The first of a row's files, and how many more there are."""
    if not files:
        return ""
    words = path_for_people(files[0])
    if len(files) > 1:
        words += f" and {len(files) - 1} more"
    return words


def describe_batch(report: Report) -> List[Line]:
    first, *others = report["message"].split("\n")
    style = style_of_result(is_good=not report["exit_status"])
    lines: List[Line] = [(style, first)]
    lines += [("", line) for line in others]
    return lines


def describe_error(report: Report) -> List[Line]:
    lines: List[Line] = [("bad", report["message"])]
    if report["remedy"]:
        lines.append(("", report["remedy"]))
    return lines


def describe_end(report: Report) -> List[Line]:
    styles = {"success": "ok", "cancelled": "bold", "timeout": "bold"}
    style = styles.get(report["status"], "bad")
    if report["status"] == "success" and report["exit_status"]:
        style = "warn"  # it succeeded, but outputs are missing
    return [(style, line) for line in report["message"].split("\n")]


_DESCRIPTIONS: Mapping[str, Callable[[Report], List[Line]]] = {
    "workflow": describe_workflow,
    "server": describe_server,
    "listening": describe_listening,
    "submitted": describe_submitted,
    "following": describe_following,
    "queued": describe_queued,
    "started": describe_started,
    "cached": describe_cached,
    "node_finished": describe_node_finished,
    "node_blocked": describe_node_blocked,
    "progress": describe_progress,
    "connection": describe_connection,
    "silence": describe_silence,
    "notice": describe_notice,
    "problem": describe_problem,
    "refused": describe_refused,
    "failure": describe_failure,
    "output": describe_output,
    "saved": describe_saved,
    "not_saved": describe_not_saved,
    "uploaded": describe_uploaded,
    "checked": describe_checked,
    "exported": describe_exported,
    "hook_failed": describe_hook_failed,
    "freed": describe_freed,
    "row": describe_row,
    "batch": describe_batch,
    "workflows": describe_batch,
    "error": describe_error,
    "end": describe_end,
}
