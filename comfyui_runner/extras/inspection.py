"""--inputs, --check and --export-api: look at a workflow, and run nothing."""

from __future__ import annotations

import json
from typing import Any, Dict, List

from comfyui_runner.comfyui import ComfyUI
from comfyui_runner.console import Console
from comfyui_runner.errors import ExitStatus
from comfyui_runner.extras.checks import check_prompt, describe_inputs, inputs_table
from comfyui_runner.files import write_text_file
from comfyui_runner.loading import Loaded
from comfyui_runner.nodes import spec_of, value_of
from comfyui_runner.problems import Problem, explain_answer
from comfyui_runner.remedies import add_remedies
from comfyui_runner.reports import problem_report
from comfyui_runner.server import Server
from comfyui_runner.settings import Settings
from comfyui_runner.steps import (
    complete_prompt,
    draw_texts,
    load_workflow,
    show_warnings,
    upload_files,
)
from comfyui_runner.text import plural
from comfyui_runner.threads import bounded, in_thread
from comfyui_runner.upload_inputs import upload_inputs


async def inspect(settings: Settings, console: Console) -> ExitStatus:
    """Do what settings.task says: "inputs", "check" or "export"."""
    async with ComfyUI(settings, console) as comfyui:
        loaded = await load_workflow(settings, comfyui, console)
        show_warnings(loaded, console)
        if settings.task == "inputs":
            return list_inputs(loaded, settings, console)
        if settings.task == "check":
            return await check(loaded, comfyui, settings, console)
        return await export(loaded, comfyui, settings, console)


def list_inputs(loaded: Loaded, settings: Settings, console: Console) -> ExitStatus:
    """--inputs: list what can be set."""
    rows = describe_inputs(loaded.prompt, loaded.object_info)
    for row in rows:
        console.report(None, {"event": "input", **row})
    if settings.printer != "json":
        console.printer.lines(inputs_table(rows, console.printer.columns()))
    return ExitStatus.OK


async def check(
    loaded: Loaded, comfyui: ComfyUI, settings: Settings, console: Console
) -> ExitStatus:
    """--check: report everything that is wrong, as far as it can be known without running."""
    problems = check_prompt(loaded.prompt, loaded.object_info)
    if comfyui.server is not None:
        problems += await missing_files(loaded, comfyui.server)
    problems = add_remedies(problems, loaded.prompt, loaded.origin)
    for problem in problems:
        console.report(None, problem_report(problem))
    exit_status = ExitStatus.OK
    message = f"No problems found in {plural(len(loaded.prompt), 'node')}."
    if problems:
        exit_status = ExitStatus.REJECTED
        message = f"{plural(len(problems), 'problem')} found; nothing was run."
    report = {
        "event": "checked",
        "problems": len(problems),
        "message": message,
        "exit_status": int(exit_status),
    }
    console.report(None, report)
    return exit_status


async def missing_files(loaded: Loaded, server: Server) -> List[Problem]:
    """The files that loaders name and the server lacks, unless they are to be uploaded."""
    prompt, object_info = loaded.prompt, loaded.object_info
    to_upload = {ref for ref, _ in loaded.uploads}
    errors: Dict[str, Any] = {}
    for ref in upload_inputs(prompt, object_info):
        value = value_of(prompt, ref)
        is_listed = value in (spec_of(prompt, ref, object_info).choices or [])
        if ref in to_upload or is_listed or not isinstance(value, str):
            continue
        if await bounded(server.has_input, value, seconds=server.limits.read):
            continue
        error = {
            "type": "custom_validation_failed",
            "details": f"{ref.input} - Invalid file: {value}",  # the words of ComfyUI's own answer
            "extra_info": {"input_name": ref.input, "received_value": value},
        }
        errors.setdefault(ref.node_id, {"errors": []})["errors"].append(error)
    return explain_answer({"node_errors": errors}, prompt, object_info)


async def export(
    loaded: Loaded, comfyui: ComfyUI, settings: Settings, console: Console
) -> ExitStatus:
    """--export-api: write the converted and edited prompt to a file; "-" is standard output."""
    uploaded = {}
    if loaded.uploads:
        uploaded = await upload_files(loaded, await comfyui.find(), console)
    prompt = draw_texts(loaded, complete_prompt(loaded, uploaded)).prompt
    if settings.export_api == "-":
        # In ASCII, which arrives whole through any pipe, whatever its two ends think it is.
        text = json.dumps(prompt, indent=2) + "\n"
        # In a thread: Ctrl+C must not wait for somebody who does not read.
        await console.unless_stopped(in_thread(console.printer.write, console.stdout, text))
        return ExitStatus.OK
    write_text_file(settings.export_api, json.dumps(prompt, indent=2, ensure_ascii=False) + "\n")
    console.report(None, {"event": "exported", "path": settings.export_api, "nodes": len(prompt)})
    return ExitStatus.OK
