#!/usr/bin/env python3
# /// script
# requires-python = ">=3.8"
# dependencies = [
#     "websockets>=13.1,<18",
#     "requests>=2.31,<3",
#     "rich>=12.6,<16",
# ]
# ///
"""Run a ComfyUI workflow outside the browser: confirm, follow it live, cancel it exactly.

    python comfyui_workflow_runner.py                     runs workflow_api.json
    python comfyui_workflow_runner.py flow.json -o out    runs another one and saves what it makes
    python comfyui_workflow_runner.py --mode continuous   keeps a service on port 8189
    python comfyui_workflow_runner.py --demo              needs no ComfyUI and no GPU

``--help`` lists every option and exit status.

This is the script that you read, edit and run: the settings come first, then the story of a run,
step by step. How a step is done is in the folder comfyui_runner/ beside it, one subject a module.
To have the whole program as one file that runs anywhere:

    python comfyui_runner/onefile.py my_runner.py
"""

from __future__ import annotations

import os
import sys
from typing import Optional

# -- settings: a flag overrides an environment variable, which overrides these ---------------------

#: The workflow that runs when none is named: a file in API or UI format, or a picture that ComfyUI
#: made.
curr_workflow = "workflow_api.json"

#: "single_shot" runs it once; "continuous" keeps a small service on port 8189.
RUN_MODE = "single_shot"

#: Continuous mode: an uploaded picture starts a run at once.
AUTO_EXECUTE_ON_UPLOAD = False

#: Where ComfyUI is when neither --server nor COMFYUI_URL says so. The second one is tried when the
#: first does not answer (8188: ComfyUI's default; 8000: ComfyUI Desktop's).
DEFAULT_SERVERS = ("http://127.0.0.1:8188", "http://127.0.0.1:8000")

# -- the folder beside this script -----------------------------------------------------------------

HERE = os.path.dirname(os.path.abspath(__file__))

# Python does not always look beside the script for modules: not with -I or -P, and not in ComfyUI
# portable, whose embedded Python has a ._pth file that puts ComfyUI's own modules first.
if sys.path[:1] != [HERE]:
    sys.path.insert(0, HERE)

try:
    from comfyui_runner.flags import Defaults, leave, leave_if_help_is_asked
except ModuleNotFoundError as error:
    if error.name != "comfyui_runner":
        raise
    sys.exit(
        "The folder comfyui_runner, which belongs beside this script, is missing.\n"
        "Get the whole project, or one file that has all of it: "
        "python comfyui_runner/onefile.py FILE"
    )


def collect_defaults() -> Defaults:
    """The settings above, and where the example workflow is: beside the script, or installed."""
    return Defaults(
        workflow=curr_workflow,
        mode=RUN_MODE,
        auto_execute=AUTO_EXECUTE_ON_UPLOAD,
        servers=DEFAULT_SERVERS,
        example_folders=(HERE, os.path.join(HERE, "comfyui_runner")),
    )


if __name__ == "__main__" and {"-h", "--help"}.intersection(sys.argv):
    # Importing the rest would take most of the time, and --help needs none of it.
    leave_if_help_is_asked(collect_defaults(), sys.argv[1:])

from comfyui_runner.comfyui import ComfyUI  # noqa: E402
from comfyui_runner.console import Console  # noqa: E402
from comfyui_runner.environment import Environment, replace_missing_streams  # noqa: E402
from comfyui_runner.errors import ExitStatus, RunnerError, Stopped  # noqa: E402
from comfyui_runner.interrupts import Interrupts  # noqa: E402
from comfyui_runner.own_environment import use_own_environment  # noqa: E402
from comfyui_runner.server import Server  # noqa: E402
from comfyui_runner.session import Session  # noqa: E402
from comfyui_runner.settings import Settings, make_settings  # noqa: E402
from comfyui_runner.steps import (  # noqa: E402
    ConcludedRun,
    PreparedRun,
    Program,
    check_output_folder,
    check_patterns,
    complete_prompt,
    conclude_run,
    confirm,
    draw_seeds_once,
    draw_texts,
    find_spending,
    finish_run,
    load_workflow,
    name_models,
    require_terminal_or_yes,
    retry_lost_runs,
    show_workflow,
    upload_files,
)
from comfyui_runner.terminal import (  # noqa: E402
    Printer,
    make_early_printer,
    make_printer,
    report_error,
    report_fault,
)
from comfyui_runner.threads import run_loop  # noqa: E402
from comfyui_runner.watch import Watch  # noqa: E402

# -- the two modes: a step that fails ends the program with the exit status in its comment ---------


async def single_shot(settings: Settings, console: Console) -> ExitStatus:
    """Run the workflow once: load, show, find, confirm, connect, submit, follow, save."""
    async with ComfyUI(settings, console) as comfyui:
        prepared = await prepare_run(settings, comfyui, console)
        # Names the nodes that cost credits.
        question = prepared.spending.before("Run it? [y/N] ")
        confirm(question, settings, console)  # NOT_CONFIRMED: the answer was no
        return await run_prepared(prepared, settings, comfyui, console)


async def prepare_run(settings: Settings, comfyui: ComfyUI, console: Console) -> PreparedRun:
    """Load, show, find: what is confirmed then is what runs."""
    workflow = await load_workflow(settings, comfyui, console)  # BAD_WORKFLOW
    workflow = draw_seeds_once(workflow)  # those that are random
    show_workflow(workflow, console)
    check_patterns(settings, workflow.prompt)  # USAGE: -o or --name names an unknown input
    check_output_folder(settings)  # USAGE: -o is made, and cannot be written
    require_terminal_or_yes(settings, console)  # NOT_CONFIRMED: nobody could answer
    server = await comfyui.find()  # NO_SERVER: nothing answers, or it refuses us
    spending = await find_spending(workflow, server, settings, console)  # NOT_CONFIRMED
    return PreparedRun(workflow, server, spending)


async def run_prepared(
    prepared: PreparedRun, settings: Settings, comfyui: ComfyUI, console: Console
) -> ExitStatus:
    """Connect, submit, follow, save."""
    workflow, server, spending = prepared
    concluded: Optional[ConcludedRun] = None  # the run that ended last

    async def run_once(connection: Server) -> ExitStatus:
        nonlocal concluded
        # The WebSocket comes first: what ComfyUI sent before it is open does not come again.
        async with Session(connection, console.report) as session:
            await console.unless_stopped(session.open())  # NO_SERVER
            uploaded = await upload_files(workflow, connection, console)
            prompt = complete_prompt(workflow, uploaded)
            prompt = await name_models(prompt, workflow.object_info, connection, console)
            new = draw_texts(workflow, prompt)  # and puts the date in file names
            run = session.new_run(
                *(new.prompt, console.prompt_id, new.extra, new.origin, new.texts),
                own_extra_data=spending.extra_data,
            )

            # Ctrl+C, SIGTERM and --timeout cancel this run, and no other.
            watch = Watch(session, run, settings, console)
            with console.live(watch.meter):
                await watch.until_stopped(session.submit)  # REJECTED: ComfyUI refuses it
                await watch.until_stopped(session.follow)  # reports its progress, to its end

            concluded = await conclude_run(session, run, watch.stop, settings, console)
            # OK, PARTIAL, FAILED, INTERRUPTED, LOST, NOT_SAVED, TIMEOUT, CANCELLED, TERMINATED
            return concluded.ending.exit_status

    try:
        # Once; again only if the server loses the run, and --retries allows it.
        return await retry_lost_runs(run_once, server, settings, console)
    finally:
        # For the last of these runs only: --open, --save-run (NOT_SAVED), --hook, --free.
        if concluded is not None:
            await finish_run(concluded, settings, comfyui, console)


async def continuous(settings: Settings, console: Console) -> ExitStatus:
    """Keep a service that holds the workflow: load, find, listen, serve, stop."""
    # Single-shot runs start without all of this.
    from comfyui_runner.serving import (
        choose_workflows,
        find_or_expect_servers,
        listen,
        load_when_possible,
        make_service,
        open_state,
        serve,
        stop_serving,
    )

    async with ComfyUI(settings, console) as comfyui:
        check_output_folder(settings)  # USAGE: -o is made, and cannot be written
        try:
            settings = await choose_workflows(settings, console)  # several, or a folder
            workflow = await load_when_possible(settings, comfyui, console)  # BAD_WORKFLOW
            show_workflow(workflow, console, is_brief=not settings.verbose)
            # ComfyUI may come later.
            expected = await find_or_expect_servers(settings, comfyui, console)
        except Stopped:  # that is how a service ends, even before it listens
            return ExitStatus.OK

        # USAGE: another service uses the file of --state
        async with await open_state(settings, workflow, console) as state:
            service = make_service(expected, workflow, state, settings, console)
            listener = listen(service, expected, settings, console)  # USAGE: the port is in use
            try:
                await serve(service, console)  # until Ctrl+C or SIGTERM
            finally:
                await stop_serving(service, listener)  # cancels our runs, and no others
    return ExitStatus.OK


# -- the call --------------------------------------------------------------------------------------


def main(environment: Environment) -> int:
    """Run the program that RUN_MODE chooses. Errors become a message and the status returned."""
    interrupts = Interrupts()
    interrupts.install()
    printer = make_early_printer(environment)
    try:
        settings = make_settings(environment.arguments, environment.variables, collect_defaults())
        settings = settings._replace(limits=environment.limits)
        printer = make_printer(settings, environment)

        if settings.task != "run":
            program = import_extra(settings.task)
        elif settings.mode == "continuous":
            program = continuous
        else:
            program = single_shot
        # The service chooses between them by itself: it holds one workflow at a time.
        if settings.may_be_several and program is not continuous:
            program = import_for_several(program)
        return run_loop(run_program(program, settings, printer, interrupts, environment))
    except RunnerError as error:
        return report_error(printer, error)
    except SystemExit as error:  # --help, --version
        return int(error.code or 0)
    except Exception as error:
        return report_fault(printer, error, environment.arguments)
    finally:
        printer.finish(lambda: interrupts.cause is not None)
        if not environment.ends_process:
            interrupts.restore()


def import_extra(task: str) -> Program:
    """What a flag asks for beyond the two modes, which start without it."""
    if task == "batch":  # --batch and --repeat
        from comfyui_runner.extras.batch_job import run_batch

        return run_batch

    if task == "attach":
        from comfyui_runner.extras.attach import attach

        return attach

    from comfyui_runner.extras.inspection import inspect  # --inputs, --check and --export-api

    return inspect


def import_for_several(program: Program) -> Program:
    """``program`` for several workflows in one call, one after the other."""
    from comfyui_runner.extras.several_workflows import one_after_the_other

    return one_after_the_other(program, prepare_run, run_prepared)


async def run_program(
    program: Program,
    settings: Settings,
    printer: Printer,
    interrupts: Interrupts,
    environment: Environment,
) -> ExitStatus:
    """Run ``program`` with a console of its own, and report the error that ends it."""
    console = Console(printer, interrupts, environment)
    for notice in settings.notices:  # --seed is used for --Seed
        console.note(notice)
    try:
        return await program(settings, console)
    except RunnerError as error:
        return console.report_error(error)
    finally:
        printer.close()


def run_from_command_line() -> None:
    """The command comfyui-workflow-runner, where the program is installed."""
    replace_missing_streams()
    leave(main(Environment(ends_process=True)))


if __name__ == "__main__":
    # With --setup, or where this Python lacks the packages, another one takes over here.
    sys.argv[1:] = use_own_environment(__file__, sys.argv[1:])
    run_from_command_line()
