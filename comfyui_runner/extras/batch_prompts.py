"""The prompts of a batch: the workflow with a row's values, files and seeds in it."""

from __future__ import annotations

import asyncio
import os
from typing import (
    Any,
    Dict,
    Iterable,
    Iterator,
    Mapping,
    NamedTuple,
    Optional,
    Set,
    Tuple,
)

from comfyui_runner.console import Console
from comfyui_runner.edits import InputEdit, apply_edits, notices_of_names, with_values
from comfyui_runner.extras.batches import Row, row_edits
from comfyui_runner.loading import Loaded, notices_of_files, resolve_edits
from comfyui_runner.model_names import other_names_of_edits
from comfyui_runner.nodes import InputRef
from comfyui_runner.run_prompts import RunPrompt
from comfyui_runner.seeds import seeds_by_name
from comfyui_runner.server import Server
from comfyui_runner.settings import Settings
from comfyui_runner.steps import complete_prompt, draw_texts, name_models, upload_files
from comfyui_runner.text import one_line
from comfyui_runner.threads import in_thread


class RowPrompt(NamedTuple):
    """The run of a row, and the seeds in it."""

    run: RunPrompt
    seeds: Mapping[str, Any]  # by NODE.INPUT


# -- rules -----------------------------------------------------------------------------------------


def apply_row(workflow: Loaded, row: Row, settings: Settings) -> Tuple[Loaded, Set[InputRef]]:
    """``workflow`` with what the row sets, and the inputs whose values the row gives.

    Its ``uploads`` are the row's own files, its ``drawn`` the seeds yet to be drawn for the row,
    its ``warnings`` and ``notices`` are about the row. Looks at files. Raises EditError, and
    UsageError for a file that cannot be uploaded.
    """
    object_info = workflow.object_info
    wanted = row_edits(workflow.prompt, row, object_info)
    edits, uploads = resolve_edits(wanted, workflow.prompt, object_info)
    prompt, drawn = apply_edits(workflow.prompt, edits, object_info)

    set_by_row = {edit.ref for edit in edits}
    seed = seed_of_repetition(row.number, settings)
    if seed is not None:
        other_seeds = [ref for ref in workflow.seeds if ref not in set_by_row]
        prompt = with_values(prompt, dict.fromkeys(other_seeds, seed))
    drawn += [ref for ref in workflow.drawn if ref not in set_by_row]
    wanted_files = {edit.ref: edit.file for edit in wanted}
    row_workflow = workflow._replace(
        prompt=prompt,
        drawn=tuple(drawn),
        uploads=tuple(uploads),
        warnings=tuple(warn_of_unread_files(edits)),
        notices=(
            *other_names_of_edits(prompt, edits),
            *notices_of_names(prompt, wanted),
            *notices_of_files(wanted_files, uploads),
        ),
    )
    return row_workflow, set_by_row


def warn_of_unread_files(edits: Iterable[InputEdit]) -> Iterator[str]:
    """What to say of a text ``@FILE`` that is sent as it is, though there is such a file."""
    for edit in edits:
        value = edit.value
        begins_with_at = isinstance(value, str) and value.startswith("@")
        if begins_with_at and os.path.isfile(value[1:]):
            shown = one_line(value, 60)
            yield (
                f"{edit.ref.full_name}: a text such as {shown} is sent unchanged, although a file "
                "of that name exists. In rows, @FILE works only in the columns of nodes that load "
                "files."
            )


def warnings_of_new_places(warnings: Iterable[str], places: Set[str]) -> Iterator[str]:
    """The warnings about nodes and inputs that are not in ``places`` yet, which gets them.

    A warning begins with its place. Those of the other rows would say the same.
    """
    for warning in warnings:
        place = warning.partition(": ")[0]
        if place not in places:
            places.add(place)
            yield warning


def seed_of_repetition(row_number: int, settings: Settings) -> Optional[int]:
    """With --repeat and --seed NUMBER, seeds count up from that number. None: they do not."""
    if settings.repeat == 1 or not settings.seed.isdigit():
        return None
    if not settings.has_rows:
        return int(settings.seed) + row_number - 1  # a second call goes on with them
    return int(settings.seed) + (row_number - 1) % settings.repeat


# -- uploads ---------------------------------------------------------------------------------------


class RowPrompts:
    """Makes the prompt of each row. Files for all rows are uploaded once to each server."""

    def __init__(self, workflow: Loaded, settings: Settings, console: Console) -> None:
        self.workflow = workflow
        self.settings = settings
        self.console = console
        self._uploaded: Dict[str, Dict[InputRef, str]] = {}  # by the address of the server
        self._warned_of: Set[str] = set()  # places of warnings that were shown
        self._uploading: Dict[str, asyncio.Lock] = {}

    def has_uploaded_to(self, server: Server) -> bool:
        """Whether the files for all rows are on ``server``."""
        return server.address.url in self._uploaded

    def forget_uploads(self, server: Server) -> None:
        """``server`` is lost: when it comes back, it may have no files."""
        self._uploaded.pop(server.address.url, None)

    async def make(self, row: Row, server: Server) -> RowPrompt:
        """The prompt of ``row``, whose files are on ``server`` then.

        Raises EditError, UsageError, ServerError, and Stopped.
        """
        applying = in_thread(apply_row, self.workflow, row, self.settings)
        workflow, set_by_row = await self.console.unless_stopped(applying)
        self._show_warnings(workflow)
        shared = await self._upload_shared_files(server)
        uploaded = {ref: name for ref, name in shared.items() if ref not in set_by_row}
        for ref, path in workflow.uploads:
            upload = in_thread(server.upload_file, path)
            uploaded[ref] = await self.console.unless_stopped(upload)
        if self.console.stopping:  # while another row uploaded the files for all
            raise self.console.stopped()
        prompt = complete_prompt(workflow, uploaded)
        prompt = await name_models(
            prompt,
            workflow.object_info,
            server,
            self.console,
            is_one_of_several=self.settings.spreads_rows,
        )
        run = draw_texts(workflow, prompt)
        # Rows name files by other means: @FILE in a cell.
        run = run._replace(origin=run.origin._replace(folder=None))
        return RowPrompt(run, seeds_by_name(run.prompt, workflow.drawn))

    def _show_warnings(self, workflow: Loaded) -> None:
        """Shows what is new in a row's warnings and notices."""
        for warning in warnings_of_new_places(workflow.warnings, self._warned_of):
            self.console.notice(warning)
        for notice in warnings_of_new_places(workflow.notices, self._warned_of):
            self.console.note(notice)

    async def _upload_shared_files(self, server: Server) -> Dict[InputRef, str]:
        """Uploads the files for all rows, unless that is done: their names on ``server``."""
        url = server.address.url
        async with self._uploading.setdefault(url, asyncio.Lock()):
            each_server_has_its_own_files = bool(server.affinity)
            if url not in self._uploaded or each_server_has_its_own_files:
                self._uploaded[url] = await upload_files(self.workflow, server, self.console)
            return self._uploaded[url]
