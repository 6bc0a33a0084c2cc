"""The steps that involve several modules: load, show, upload, confirm, conclude, finish, retry."""

from __future__ import annotations

import datetime
import functools
import os
import random
import sys
from typing import Any, Awaitable, Callable, Dict, Iterable, Mapping, NamedTuple, Optional, Tuple

from comfyui_runner.afterwards import make_afterwards
from comfyui_runner.comfyui import ComfyUI, definitions_in, definitions_on
from comfyui_runner.conclusion import Ending, conclude, is_saved_after
from comfyui_runner.console import Console
from comfyui_runner.documents import Document, Prompt
from comfyui_runner.edits import with_values
from comfyui_runner.errors import ExitStatus, NotConfirmed, SaveError, ServerError, UsageError
from comfyui_runner.files import WrittenFiles, make_writable_folder
from comfyui_runner.flags import command_of
from comfyui_runner.interrupts import Stop
from comfyui_runner.loading import (
    Define,
    Loaded,
    load_document,
    looks_at_values,
    prepare_workflow,
    read_object_info,
)
from comfyui_runner.model_names import classes_that_load_models, with_names_of_server
from comfyui_runner.nodes import InputRef, class_of, describe_node
from comfyui_runner.partner_nodes import (
    NO_SPENDING,
    Spending,
    find_partner_nodes,
    key_for_nodes,
    spending_in_words,
)
from comfyui_runner.patterns import fill_pattern, folder_before_fields
from comfyui_runner.reports import Report
from comfyui_runner.run_prompts import RunPrompt, draw_number, make_run_prompt
from comfyui_runner.runs import Run
from comfyui_runner.saving import Destination
from comfyui_runner.seeds import draw_seeds
from comfyui_runner.server import Server, new_uuid, split_look_up
from comfyui_runner.session import Session, is_lost
from comfyui_runner.settings import Settings
from comfyui_runner.shells import (
    IS_WINDOWS,
    quote_argument,
    remedy_without_terminal,
)
from comfyui_runner.text import JsonObject
from comfyui_runner.threads import bounded, in_thread
from comfyui_runner.windows_files import reason_not_written

#: What a call does: one of the two modes, or what a flag asks for beyond them.
Program = Callable[[Settings, Console], Awaitable[ExitStatus]]


class PreparedRun(NamedTuple):
    """What a person confirms: what runs, with the seeds of this run in it, where, and its cost."""

    workflow: Loaded
    server: Server
    spending: Spending


class ConcludedRun(NamedTuple):
    """A run that has ended, and how. Its session may be closed."""

    session: Session
    run: Run
    ending: Ending


# -- the workflow ----------------------------------------------------------------------------------


async def load_workflow(settings: Settings, comfyui: ComfyUI, console: Console) -> Loaded:
    """The workflow with the settings' values in it.

    ComfyUI is asked only where it must be: to convert a UI file, and to know what may be set.
    Raises WorkflowError (BAD_WORKFLOW), UsageError, EditError, Stopped, and ServerError.
    """
    document, path = await read_workflow_file(settings, console)
    return await prepare_document(document, path, settings, comfyui, console)


async def read_workflow_file(settings: Settings, console: Console) -> Tuple[Document, str]:
    """What the workflow file contains, and the path that it was read from.

    Standard input can be read once only. Raises WorkflowError, Stopped.
    """
    # In a thread: Ctrl+C must not wait for a drive that is slow, or for standard input.
    reading = in_thread(load_document, settings, console.stdin)
    return await console.unless_stopped(reading)


async def prepare_document(
    document: Document, path: str, settings: Settings, comfyui: ComfyUI, console: Console
) -> Loaded:
    """What is left of load_workflow() when the file at ``path`` was read. May be repeated."""
    if settings.object_info is not None and settings.images:
        raise UsageError("--image uploads to a server, so it cannot be used with --object-info.")
    is_ui_format = document.prompt is None
    define = await find_definitions(settings, comfyui, console, is_ui_format=is_ui_format)
    work = in_thread(prepare_workflow, document, path, settings, define)
    return await console.unless_stopped(work)


async def find_definitions(
    settings: Settings, comfyui: ComfyUI, console: Console, is_ui_format: bool
) -> Define:
    """Where to look up definitions of classes, if they are needed."""
    if settings.object_info is not None:
        reading = in_thread(read_object_info, settings.object_info)
        return definitions_in(await console.unless_stopped(reading))
    if is_ui_format or looks_at_values(settings):
        return definitions_on(await comfyui.find())
    return definitions_in({})


def show_workflow(workflow: Loaded, console: Console, *, is_brief: bool = False) -> None:
    """Reports what is about to run, and then what is odd about it.

    ``is_brief``: people read a line of it.
    """
    summary = workflow.summary()
    report: Report = {"event": "workflow", "file": workflow.path, **summary._asdict()}
    console.report(None, {**report, "brief": is_brief})
    show_warnings(workflow, console)


def show_warnings(workflow: Loaded, console: Console) -> None:
    """Reports what is odd about the workflow, and which names were taken for others."""
    for warning in workflow.warnings:
        console.notice(warning)
    for notice in workflow.notices:
        console.note(notice)


def draw_seeds_once(workflow: Loaded) -> Loaded:
    """The workflow of a single run with its random seeds drawn: they are shown before it runs."""
    return workflow._replace(
        prompt=complete_prompt(workflow, {}), edited=workflow.edited + workflow.drawn, drawn=()
    )


def check_patterns(settings: Settings, prompt: Prompt) -> None:
    """Raises UsageError if a pattern in -o or --name names nothing: no run could be saved."""
    destination = make_destination(settings, prompt, 1, settings.output or "")
    destination.rename("x")


def check_output_folder(settings: Settings) -> None:
    """Makes the folder of -o. Raises UsageError if files cannot be written in it.

    A run may take hours: that must not be known only when it is over. Folders below it that are
    named by a pattern are made when there is something to save.
    """
    if settings.output is None:
        return
    folder = folder_before_fields(settings.output)
    try:
        make_writable_folder(folder)
    except OSError as error:
        reason = reason_not_written(error)
        if isinstance(error, FileExistsError):
            reason = "it is not a folder"
        raise UsageError(
            f"Outputs cannot be saved in {folder}: {reason}.",
            "Nothing was run. Choose another folder with -o.",
        ) from None


async def upload_files(workflow: Loaded, server: Server, console: Console) -> Dict[InputRef, str]:
    """Uploads the files that the settings name: the names that the server gives them, by input.

    Raises UsageError for a file that cannot be read, ServerError, and Stopped.
    """
    names = {}
    for ref, path in workflow.uploads:
        names[ref] = await console.unless_stopped(in_thread(server.upload_file, path))
        report_upload(workflow.prompt, ref, path, names[ref], console)
    return names


def report_upload(prompt: Prompt, ref: InputRef, path: str, value: str, console: Console) -> None:
    """Reports that the file ``path`` was uploaded for an input, and is ``value`` on the server."""
    report: Report = {
        "event": "uploaded",
        "path": path,
        "value": value,
        "message": f"Uploaded {path} as {value}.",
        **describe_node(prompt, ref.node_id),
        "input": ref.input,
    }
    console.report(None, report)


def complete_prompt(workflow: Loaded, uploaded: Mapping[InputRef, str]) -> Prompt:
    """The prompt of the next run: it has the names of uploaded files, and its own random seeds."""
    prompt = with_values(workflow.prompt, uploaded)
    return draw_seeds(prompt, workflow.drawn, random.random, workflow.object_info)


async def name_models(
    prompt: Prompt,
    object_info: JsonObject,
    server: Server,
    console: Console,
    *,
    is_one_of_several: bool = False,
) -> Prompt:
    """A copy of ``prompt`` whose models have the names that ``server`` gives them.

    ``object_info`` has what is known of the classes; where the server ``is_one_of_several``, it may
    be about another one. Where nothing more can be known, it is left to the server. Raises Stopped.
    """
    needed = classes_that_load_models(prompt)
    # Behind a load balancer each server may have others too.
    has_own_models = is_one_of_several or bool(server.affinity)
    unknown = [name for name in needed if has_own_models or name not in object_info]
    try:
        definitions = {**object_info, **await look_up_classes(unknown, server, console)}
    except ServerError:
        return prompt
    named, notices = with_names_of_server(prompt, definitions)
    for notice in notices:
        console.note(notice)
    return named


async def look_up_classes(
    classes: Iterable[str], server: Server, console: Console
) -> Dict[str, Any]:
    """The definitions of ``classes``, as ``server`` gives them. Raises ServerError, and Stopped."""
    definitions: Dict[str, Any] = {}
    for part in split_look_up(sorted(classes)):
        look_up = bounded(server.definitions, part, seconds=server.limits.read)
        definitions.update(await console.unless_stopped(look_up))
    return definitions


def draw_texts(workflow: Loaded, prompt: Prompt) -> RunPrompt:
    """The next run: ``prompt`` with texts of its own, and the date in the names of its files."""
    return make_run_prompt(prompt, workflow, draw_number(), datetime.datetime.now())


# -- the question ----------------------------------------------------------------------------------


def require_terminal_or_yes(settings: Settings, console: Console) -> None:
    """Raises NotConfirmed where the question could not be asked, before anything else is done."""
    if not settings.yes and not console.stdin.isatty():
        raise NotConfirmed(
            "Nothing was run: the question needs a terminal.",
            remedy_without_terminal(IS_WINDOWS, console.variables),
        )


async def find_spending(
    workflow: Loaded, server: Server, settings: Settings, console: Console
) -> Spending:
    """What a run of ``workflow`` costs. Nothing is looked up unless COMFY_API_KEY is set.

    Raises NotConfirmed where --yes does not cover it, ServerError, and Stopped.
    """
    if not settings.api_key:
        return NO_SPENDING
    classes = {class_of(workflow.prompt, node_id) for node_id in workflow.prompt}
    unknown = classes - set(workflow.object_info)
    definitions = await look_up_classes(unknown, server, console)
    node_ids = find_partner_nodes(workflow.prompt, {**workflow.object_info, **definitions})
    if not node_ids:
        return NO_SPENDING

    words = spending_in_words(workflow.prompt, node_ids)
    if settings.yes and not settings.allow_spend:
        raise NotConfirmed(
            f"Nothing was run: --yes does not allow nodes that cost credits. {words}",
            "Add --allow-spend, or leave --yes out to be asked.",
        )
    return Spending(words, key_for_nodes(settings.api_key))


def confirm(question: str, settings: Settings, console: Console) -> None:
    """Asks, unless --yes was given. Raises NotConfirmed or Stopped."""
    if not settings.yes:
        console.confirm(question)


# -- the end ---------------------------------------------------------------------------------------


async def conclude_run(
    session: Session, run: Run, stop: Optional[Stop], settings: Settings, console: Console
) -> ConcludedRun:
    """Reports how a single run ended, and saves what it made."""
    destination = None
    if is_saved_after(stop):
        destination = destination_of_run(settings, run.prompt, console)
    ending = await conclude(
        session,
        run,
        stop,
        destination,
        whole_traceback=settings.verbose,
        has_urls=not settings.demo,
    )
    is_one_of_several = bool(console.context)  # then it is said once, at the end of the call
    if settings.demo and ending.exit_status is ExitStatus.OK and not is_one_of_several:
        outputs_are_gone = bool(ending.outputs) and ending.saved is None
        workflows = [settings.workflow] if settings.workflow_named else []
        show_next_step(workflows, outputs_are_gone, console)
    return ConcludedRun(session, run, ending)


async def finish_run(
    concluded: ConcludedRun, settings: Settings, comfyui: ComfyUI, console: Console
) -> None:
    """Does what is asked for when a single run is over: --open, --save-run, --hook and --free.

    Raises SaveError where the record of --save-run cannot be written; all else is done even then.
    """
    session, run, ending = concluded
    if settings.open and not console.stopping:  # a person who presses Ctrl+C wants to leave
        open_saved((ending.saved or {}).values(), console)
    try:
        save_record(session, run, ending, settings, comfyui)
    finally:
        await do_afterwards(session, run, ending, settings, console)


def open_saved(paths: Iterable[str], console: Console) -> None:
    """--open: shows the first of the saved files that can be shown."""
    from comfyui_runner.extras.opening import choose_what_to_open, open_file  # --open alone

    path = choose_what_to_open(paths)
    if path is None:
        console.notice("--open: there is no picture, video or sound to open.")
        return
    trouble = open_file(path)
    if trouble:
        console.notice(trouble)


def show_next_step(workflows: Iterable[str], outputs_are_gone: bool, console: Console) -> None:
    """Says after runs of --demo what to do next, and whether what they made is gone."""
    if outputs_are_gone:
        console.say("This was the built-in simulator, which keeps nothing without -o.")
    else:
        console.say("This was the built-in simulator.")
    names = "".join(f"{quote_argument(workflow, IS_WINDOWS)} " for workflow in workflows)
    console.say("Next, start your own ComfyUI, then:")
    console.say(f"    {command_of(os.path.basename(sys.argv[0]))} {names}-o results")


def destination_of_run(
    settings: Settings, prompt: Prompt, console: Console
) -> Optional[Destination]:
    """Where a single run is saved; None without -o. Ctrl+C and SIGTERM end the saving."""
    if settings.output is None:
        return None
    destination = make_destination(settings, prompt, 1, settings.output)
    return destination._replace(
        stopping=console.stop,
        status_if_stopped=lambda: console.what_stopped.exit_status,
        written=WrittenFiles(),
    )


def make_destination(
    settings: Settings, prompt: Prompt, row_number: int, folder: str
) -> Destination:
    """Where a run of ``prompt`` is saved: patterns in ``folder`` and --name are filled in.

    ``row_number`` is that of a batch's row, 1 for a single run. Raises UsageError for a pattern
    that names nothing, and so does the destination's ``rename``.
    """
    fields = {"row": f"{row_number:05d}"}

    def rename(filename: str) -> str:
        stem, ending = os.path.splitext(filename)
        return fill_pattern(settings.name, {"name": stem, **fields}, prompt) + ending

    folder = fill_pattern(folder, fields, prompt)
    if not settings.name:
        return Destination(folder, settings.overwrite)
    return Destination(folder, settings.overwrite, rename)


def save_record(
    session: Session, run: Run, ending: Ending, settings: Settings, comfyui: ComfyUI
) -> None:
    """Writes a record of the run to --save-run, where that is given.

    Raises SaveError. It has the exit status of the run, unless that is OK: what is wrong with the
    run itself matters more.
    """
    if settings.save_run is None:
        return
    from comfyui_runner.extras.record import write_record  # only this flag needs it

    try:
        write_record(settings.save_run, session, run, ending, comfyui.stats)
    except SaveError as error:
        if ending.exit_status is not ExitStatus.OK:
            error.exit_status = ending.exit_status
        raise
    session.report(run, {"event": "exported", "path": settings.save_run, "nodes": len(run.prompt)})


async def do_afterwards(
    session: Session, run: Run, ending: Ending, settings: Settings, console: Console
) -> None:
    """What is asked for after a single run: --hook, --free. It never changes how the run ended."""
    report = functools.partial(session.report, run)
    afterwards = make_afterwards(settings, console)
    afterwards.note_run()
    afterwards.note_end(session, run, ending, report)
    await afterwards.finish(report, console.event_to_come())


# -- retries ---------------------------------------------------------------------------------------

RunOnce = Callable[[Server], Awaitable[ExitStatus]]


async def retry_lost_runs(
    run_once: RunOnce, server: Server, settings: Settings, console: Console
) -> ExitStatus:
    """``run_once`` on a fresh connection to ``server``; again while it is LOST and --retries last.

    Raises what the last call raises.
    """
    for _ in range(settings.retries):
        try:
            exit_status = await run_on_fresh_connection(run_once, server)
        except ServerError as error:
            exit_status = error.exit_status
            if exit_status is not ExitStatus.LOST:
                raise
        if exit_status is not ExitStatus.LOST:
            return exit_status
        console.notice("The run is lost: submitting it again (--retries).")
        console.prompt_id = new_uuid()
    return await run_on_fresh_connection(run_once, server)


async def run_on_fresh_connection(run_once: RunOnce, server: Server) -> ExitStatus:
    """``run_once``; an error by which the run is lost with its server leads to LOST."""
    connection = server.fresh()
    try:
        return await run_once(connection)
    except ServerError as error:
        if is_lost(connection, error):
            error.exit_status = ExitStatus.LOST
        raise
