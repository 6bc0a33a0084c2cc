"""Several workflows in one call: one after the other, with one question and one end."""

from __future__ import annotations

import contextlib
import glob
import os
from typing import (
    Awaitable,
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Sequence,
    Tuple,
)

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
from comfyui_runner.loading import files_that_fit, read_document
from comfyui_runner.reports import Report, list_some
from comfyui_runner.server import new_uuid
from comfyui_runner.settings import PROGRAMS, Settings
from comfyui_runner.steps import (
    PreparedRun,
    Program,
    check_output_folder,
    confirm,
    require_terminal_or_yes,
    show_next_step,
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
    prompt_id: str  # of its run


#: How workflows ended, by their numbers from 0.
Ends = Dict[int, ExitStatus]

# -- rules -----------------------------------------------------------------------------------------


def worst_status(statuses: Iterable[ExitStatus]) -> ExitStatus:
    """The exit status of a call whose workflows ended with ``statuses``."""
    return min(statuses, key=WORST_FIRST.index, default=ExitStatus.OK)


def refuse_standard_input(paths: Sequence[str]) -> None:
    """Raises UsageError if standard input is one of several workflows."""
    if "-" in paths:
        raise UsageError(
            "Standard input cannot be one of several workflows.", "Save it to a file first."
        )


def refuse_flags_for_one(settings: Settings, paths: Sequence[str]) -> None:
    """Raises UsageError for what can be done with one workflow only."""
    refuse_standard_input(paths)
    needs_one = ""
    if settings.save_run is not None:
        needs_one = "--save-run"
    elif settings.task not in ("run", "inputs", "check"):
        needs_one = PROGRAMS[settings.task]
    if needs_one:
        raise UsageError(
            f"{len(paths)} workflows are too many. There can only be one with {needs_one}.",
            "Name one workflow, or run the program once for each of them.",
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
    for path, folder in zip(paths, names_of_folders(paths)):
        output = settings.output
        if output is not None:
            output = os.path.join(output, folder)
        own = settings._replace(workflow=path, workflows=(), output=output)
        calls.append(WorkflowCall(path, own, new_uuid()))
    return calls


def end_of_all(paths: Sequence[str], ends: Ends, stopped_with: ExitStatus) -> Report:
    """The last report of the call.

    A workflow without an end was not started, because of what leads to ``stopped_with``.
    """
    statuses = [ends.get(number, stopped_with) for number in range(len(paths))]
    good = sum(status is ExitStatus.OK for status in ends.values())
    message = f"{good} of {len(paths)} workflows succeeded."
    if good == len(paths):
        message = f"{len(paths)} workflows succeeded."
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
        paths += files_that_fit(word) or [word]
    return paths


def find_workflows(words: Sequence[str]) -> List[str]:
    """The files that the service can hold: those of ``words``, of patterns and of folders.

    Of a folder, the first one is the first that can be read: it is held at the start, and nobody
    has named it. Raises WorkflowError, UsageError.
    """
    paths: List[str] = []
    for path in expand_workflows(words):
        if os.path.isdir(path):
            paths += find_workflows_of_folder(path)
        else:
            paths.append(path)
    paths = list({os.path.normpath(path): path for path in paths}.values())
    if len(paths) > 1:
        refuse_standard_input(paths)
        refuse_missing_files(paths)
    return paths


def find_workflows_of_folder(folder: str) -> List[str]:
    """The JSON files of ``folder``, those first that can be read. Raises WorkflowError."""
    paths = files_that_fit(os.path.join(glob.escape(folder), "*.json"))
    if not paths:
        raise WorkflowError(
            f"There are no workflows in the folder {folder}: it has no JSON files.",
            "Name another folder, or a workflow.",
        )
    return sorted(paths, key=lambda path: not is_readable(path))


def is_readable(path: str) -> bool:
    """Whether the file is a workflow."""
    try:
        read_document(path)
    except WorkflowError:
        return False
    return True


#: The two halves of a single run: up to the question, and after it.
Prepare = Callable[[Settings, ComfyUI, Console], Awaitable[PreparedRun]]
RunPrepared = Callable[[PreparedRun, Settings, ComfyUI, Console], Awaitable[ExitStatus]]


def one_after_the_other(program: Program, prepare: Prepare, run_prepared: RunPrepared) -> Program:
    """``program`` for each of the settings' workflows.

    Where a person is asked, all are prepared before the question, and what was confirmed runs.
    """

    async def run_each(settings: Settings, console: Console) -> ExitStatus:
        expanding = in_thread(expand_workflows, settings.workflows)
        paths = await console.unless_stopped(expanding)
        if len(paths) == 1:
            return await program(settings._replace(workflow=paths[0]), console)
        refuse_flags_for_one(settings, paths)
        await console.unless_stopped(in_thread(refuse_missing_files, paths))
        calls = split_call(settings, paths)
        if settings.task == "run" and not settings.yes:
            ends = await ask_and_run(calls, settings, console)
        else:
            ends = await run_all(calls, dict.fromkeys(range(len(calls)), program), console)
        console.say("")
        report = end_of_all(paths, ends, console.what_stopped.exit_status)
        console.report(None, report)
        exit_status = ExitStatus(report["exit_status"])
        is_run_of_demo = settings.demo and settings.task == "run"
        if is_run_of_demo and exit_status is ExitStatus.OK:
            show_next_step(settings.workflows, settings.output is None, console)
        return exit_status

    async def ask_and_run(
        calls: Sequence[WorkflowCall], settings: Settings, console: Console
    ) -> Ends:
        require_terminal_or_yes(settings, console)
        check_output_folder(settings)
        async with ComfyUI(settings, console) as comfyui:
            prepared, ends = await prepare_all(calls, prepare, comfyui, console)
            confirm_all(calls, prepared, settings, console)
            programs = {
                number: program_of(each, run_prepared, comfyui) for number, each in prepared.items()
            }
            ends.update(await run_all(calls, programs, console))
        return ends

    return run_each


def program_of(prepared: PreparedRun, run_prepared: RunPrepared, comfyui: ComfyUI) -> Program:
    """The program that runs what was confirmed."""

    async def run_confirmed(settings: Settings, console: Console) -> ExitStatus:
        return await run_prepared(prepared, settings, comfyui, console)

    return run_confirmed


async def prepare_all(
    calls: Sequence[WorkflowCall], prepare: Prepare, comfyui: ComfyUI, console: Console
) -> Tuple[Dict[int, PreparedRun], Ends]:
    """Shows all workflows: those that can run, by their numbers, and how the others ended.

    Raises ServerError, and Stopped: then none is run.
    """
    prepared: Dict[int, PreparedRun] = {}
    ends: Ends = {}
    for number, call in enumerate(calls):
        with reporting_about(call, console):
            try:
                prepared[number] = await prepare(call.settings, comfyui, console)
            except (ServerError, Stopped):
                raise
            except RunnerError as error:
                ends[number] = console.report_error(error)
    return prepared, ends


def confirm_all(
    calls: Sequence[WorkflowCall],
    prepared: Mapping[int, PreparedRun],
    settings: Settings,
    console: Console,
) -> None:
    """Asks whether all are to run, unless none can. Raises NotConfirmed, and Stopped."""
    if not prepared:
        return
    costs = [
        f"{calls[number].path}: {each.spending.words}"
        for number, each in prepared.items()
        if each.spending.words
    ]
    question = f"Run {plural(len(prepared), 'workflow')}? [y/N] "
    confirm("\n".join([*costs, question]), settings, console)


async def run_all(
    calls: Sequence[WorkflowCall], programs: Mapping[int, Program], console: Console
) -> Ends:
    """Runs each workflow that has a program, until Ctrl+C comes. Errors are reported."""
    ends: Ends = {}
    console.left_for_end = {}
    for number, program in programs.items():
        if console.stopping:
            break
        call = calls[number]
        console.say(f"\n{number + 1}/{len(calls)}  {call.path}")
        with reporting_about(call, console):
            try:
                ends[number] = await program(call.settings, console)
            except RunnerError as error:
                ends[number] = console.report_error(error)
            finally:
                console.printer.close()
    for do in console.left_for_end.values():
        await do()
    return ends


@contextlib.contextmanager
def reporting_about(call: WorkflowCall, console: Console) -> Iterator[None]:
    """In the block, reports are about this workflow and its run."""
    console.prompt_id = call.prompt_id
    console.context = {"workflow": call.path}
    try:
        yield
    finally:
        console.context = {}
