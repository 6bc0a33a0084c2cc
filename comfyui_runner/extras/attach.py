"""--attach: follow a prompt that somebody submitted, or report how it ended."""

from __future__ import annotations

import asyncio
from typing import List, Tuple

from comfyui_runner.comfyui import ComfyUI
from comfyui_runner.console import Console
from comfyui_runner.errors import ExitStatus, PromptUnknown
from comfyui_runner.runs import Run
from comfyui_runner.server import Server
from comfyui_runner.session import Session
from comfyui_runner.settings import Settings
from comfyui_runner.steps import check_output_folder, conclude_run, finish_run
from comfyui_runner.watch import Watch

#: Connections that are opened behind a load balancer before no server counts as having the prompt.
ATTACH_TRIES = 32

#: What a person wonders who follows a prompt.
WHY_NO_STEPS = "(ComfyUI sends steps only to the client that submitted it: none can be shown here.)"


async def attach(settings: Settings, console: Console) -> ExitStatus:
    """Follows the prompt ``settings.attach`` to its end.

    Ctrl+C leaves it alone, as it may be somebody else's. Raises PromptUnknown (LOST), ServerError.
    """
    console.prompt_id = settings.attach
    async with ComfyUI(settings, console) as comfyui:
        check_output_folder(settings)
        server = await comfyui.find()
        session, run = await find_prompt(settings.attach, server, console)
        async with session:
            if not run.state.phase.over:
                console.say(WHY_NO_STEPS)
            watch = Watch(session, run, settings, console)
            with console.live(watch.meter):
                await watch.until_stopped(session.follow)
            concluded = await conclude_run(session, run, watch.stop, settings, console)
            await finish_run(concluded, settings, comfyui, console)
            return concluded.ending.exit_status


async def find_prompt(prompt_id: str, server: Server, console: Console) -> Tuple[Session, Run]:
    """A session with the server that has ``prompt_id``, and its run. Raises PromptUnknown.

    Behind a load balancer the prompt is on one of its servers. The sessions stay open until it is
    found: so the next one is sent elsewhere, however busy that is.
    """
    sessions: List[Session] = []
    try:
        while True:
            session = Session(server.fresh(), console.report)
            sessions.append(session)
            try:
                await console.unless_stopped(session.open())
                run = await console.unless_stopped(session.attach(prompt_id))
            except PromptUnknown:
                has_other_servers = bool(session.server.affinity)
                if len(sessions) == ATTACH_TRIES or not has_other_servers:
                    raise
            else:
                sessions.remove(session)
                return session, run
    finally:
        await asyncio.gather(*(other.close() for other in sessions))
