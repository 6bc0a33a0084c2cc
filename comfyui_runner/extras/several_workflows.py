"""Several workflows in one call: one after the other, with one question and one end."""

from __future__ import annotations

import glob
import os
from typing import Dict, Iterable, List, NamedTuple, Sequence

from comfyui_runner.comfyui import ComfyUI
from comfyui_runner.console import Console
from comfyui_runner.errors import (
    EXIT_MEANINGS,
    ExitStatus,
    RunnerError,
    ServerError,
    Stopped,
    UsageError,
    WorkflowError,
)
from comfyui_runner.extras.batch_files import find_files_of
from comfyui_runner.reports import Report, list_some
from comfyui_runner.server import new_uuid
from comfyui_runner.settings import PROGRAMS, Settings
from comfyui_runner.steps import (
    Program,
    check_output_folder,
    confirm,
    find_spending,
    load_workflow,
    require_terminal_or_yes,
    show_workflow,
)
from comfyui_runner.text import plural
from comfyui_runner.threads import in_thread

#: Which exit status the call has when workflows end differently: the first of these that occurred.
#: What keeps everything from running comes before what is wrong with one workflow, and that before
#: what is missing of a run.
WORST_FIRST = (
    *(ExitStatus.TERMINATED, ExitStatus.CANCELLED, ExitStatus.ERROR, ExitStatus.NO_SERVER),
    *(ExitStatus.NOT_CONFIRMED, ExitStatus.USAGE, ExitStatus.BAD_WORKFLOW, ExitStatus.REJECTED),
    *(ExitStatus.FAILED, ExitStatus.LOST, ExitStatus.INTERRUPTED, ExitStatus.TIMEOUT),
    *(ExitStatus.NOT_SAVED, ExitStatus.PARTIAL, ExitStatus.OK),
)

#: How many of the workflows that did not end well the last message lists.
MOST_LISTED_WORKFLOWS = 20


class WorkflowCall(NamedTuple):
    """One of the workflows: its file, and the settings of a call with this one alone."""

    path: str
    settings: Settings


#: How workflows ended, by their numbers from 0.
Ends = Dict[int, ExitStatus]

# -- rules -----------------------------------------------------------------------------------------


def worst_status(statuses: Iterable[ExitStatus]) -> ExitStatus:
    """The exit status of a call whose workflows ended with ``statuses``."""
    return min(statuses, key=WORST_FIRST.index, default=ExitStatus.OK)


def refuse_flags_for_one(settings: Settings, paths: Sequence[str]) -> None:
    """Raises UsageError for what can be done with one workflow only."""
    if "-" in paths:
        raise UsageError(
            "Standard input cannot be one of several workflows.", "Save it to a file first."
        )
    needs_one = ""
    if settings.save_run is not None:
        needs_one = "--save-run"
    elif settings.task not in ("run", "inputs", "check"):
        needs_one = PROGRAMS[settings.task]
    elif settings.mode == "continuous" and settings.task == "run":
        needs_one = PROGRAMS["continuous"]
    if needs_one:
        raise UsageError(
            f"{len(paths)} workflows were given. There can only be one with {needs_one}.",
            "Name one workflow, or call the program once for each of them.",
        )


def names_of_folders(paths: Sequence[str]) -> List[str]:
    """A folder for the outputs of each workflow, named after its file and different from all."""
    names: List[str] = []
    for path in paths:
        stem = os.path.splitext(os.path.basename(path))[0]
        stem = stem.replace("{", "_").replace("}", "_")  # they would be fields of a pattern
        name, number = stem, 1
        taken = {other.lower() for other in names}  # some systems do not tell A from a
        while name.lower() in taken:
            number += 1
            name = f"{stem} ({number})"
        names.append(name)
    return names


def split_call(settings: Settings, paths: Sequence[str]) -> List[WorkflowCall]:
    """The workflows of a call. Each one's outputs have a folder of their own below that of -o."""
    calls = []
    for number, (path, folder) in enumerate(zip(paths, names_of_folders(paths)), 1):
        output = settings.output
        if output is not None:
            output = os.path.join(output, folder)
        is_last = number == len(paths)
        own = settings._replace(
            workflow=path,
            workflows=(),
            output=output,
            # Models that the next workflow needs too would be loaded again.
            free=settings.free and is_last,
        )
        calls.append(WorkflowCall(path, own))
    return calls


def end_of_all(paths: Sequence[str], ends: Ends, stopped_with: ExitStatus) -> Report:
    """The last report of the call.

    A workflow without an end was not started, because of what leads to ``stopped_with``.
    """
    statuses = [ends.get(number, stopped_with) for number in range(len(paths))]
    good = sum(status is ExitStatus.OK for status in ends.values())
    message = f"{good} of {len(paths)} workflows ended well."
    if good == len(paths):
        message = f"{len(paths)} workflows ended well."
    others = [
        f"{path}: {describe_status(ends, number)}"
        for number, path in enumerate(paths)
        if ends.get(number) is not ExitStatus.OK
    ]
    lines = [message, *others[:MOST_LISTED_WORKFLOWS]]
    if len(others) > MOST_LISTED_WORKFLOWS:
        lines.append(f"and {len(others) - MOST_LISTED_WORKFLOWS} more")
    listed = [{"file": path, "exit_status": ends.get(number)} for number, path in enumerate(paths)]
    return {
        "event": "workflows",
        "prompt_id": None,
        "workflows": listed,
        "message": "\n".join(lines),
        "exit_status": int(worst_status(statuses)),
    }


def refuse_missing_files(paths: Sequence[str]) -> None:
    """Raises WorkflowError if one of the files does not exist: nothing runs then.

    The words of a text without quotation marks would be taken for workflows.
    """
    missing = [path for path in paths if not os.path.exists(path)]
    if missing:
        raise WorkflowError(
            f"Not all of the {len(paths)} workflows exist. Missing: {list_some(missing)}.",
            "Nothing was run. If these are words of a text, put it in quotation marks.",
        )


def describe_status(ends: Ends, number: int) -> str:
    """How one workflow ended, for people."""
    status = ends.get(number)
    if status is None:
        return "not started"
    return f"exit status {int(status)} ({EXIT_MEANINGS[status]})"


# -- the call --------------------------------------------------------------------------------------


def expand_workflows(words: Sequence[str]) -> List[str]:
    """The files that are meant, where no shell has expanded patterns: Windows' shells do not.

    A word that no file fits is left as it is.
    """
    paths: List[str] = []
    for word in words:
        is_pattern = glob.has_magic(word) and not os.path.exists(word)
        if is_pattern:
            paths += find_files_of(word) or [word]
        else:
            paths.append(word)
    return paths


def one_after_the_other(program: Program) -> Program:
    """``program`` for each of the settings' workflows."""

    async def run_each(settings: Settings, console: Console) -> ExitStatus:
        expanding = in_thread(expand_workflows, settings.workflows)
        paths = await console.unless_stopped(expanding)
        if len(paths) == 1:
            return await program(settings._replace(workflow=paths[0]), console)
        refuse_flags_for_one(settings, paths)
        await console.unless_stopped(in_thread(refuse_missing_files, paths))
        calls = split_call(settings, paths)
        ends: Ends = {}
        if settings.task == "run" and not settings.yes:
            await ask_once(calls, ends, settings, console)
            # The question was about credits too.
            calls = [call._replace(settings=as_confirmed(call.settings)) for call in calls]

        for number, call in enumerate(calls):
            if number in ends or console.stopping:
                continue
            console.say(f"\n{number + 1}/{len(calls)}  {call.path}")
            ends[number] = await run_one_workflow(program, call, console)
        console.say("")
        report = end_of_all(paths, ends, console.what_stopped.exit_status)
        console.report(None, report)
        return ExitStatus(report["exit_status"])

    return run_each


def as_confirmed(settings: Settings) -> Settings:
    """``settings`` after the question was answered with yes."""
    return settings._replace(yes=True, allow_spend=True)


async def run_one_workflow(program: Program, call: WorkflowCall, console: Console) -> ExitStatus:
    """Runs one workflow, and reports the error that ends it: how it ended."""
    console.prompt_id = new_uuid()
    console.context = {"workflow": call.path}
    try:
        return await program(call.settings, console)
    except RunnerError as error:
        return console.report_error(error)
    finally:
        console.printer.close()
        console.context = {}


async def ask_once(
    calls: Sequence[WorkflowCall], ends: Ends, settings: Settings, console: Console
) -> None:
    """Shows all workflows, and asks whether they are to run. ``ends`` gets those that cannot.

    Raises NotConfirmed, ServerError, and Stopped: then none is run.
    """
    require_terminal_or_yes(settings, console)
    check_output_folder(settings)
    costs: List[str] = []
    async with ComfyUI(settings, console) as comfyui:
        for number, call in enumerate(calls):
            console.context = {"workflow": call.path}
            try:
                loaded = await load_workflow(call.settings, comfyui, console)
                show_workflow(loaded, console)
                server = await comfyui.find()
                spending = await find_spending(loaded, server, call.settings, console)
            except (ServerError, Stopped):
                raise
            except RunnerError as error:
                ends[number] = console.report_error(error)
                continue
            finally:
                console.context = {}
            if spending.words:
                costs.append(f"{call.path}: {spending.words}")
    count = len(calls) - len(ends)
    if count:
        question = f"Run {plural(count, 'workflow')}? [y/N] "
        confirm("\n".join([*costs, question]), settings, console)
