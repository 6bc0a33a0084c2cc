"""Which ComfyUI is used, as far as it needs no server: the error of a search, and saved definitions."""

from __future__ import annotations

import asyncio

import pytest
from desk import NOWHERE, Desk, settings_of
from support import FAST

from comfyui_runner.comfyui import START_COMFYUI, START_COMFYUI_THERE, ComfyUI, definitions_in, error_of_search
from comfyui_runner.errors import ServerAnswer, ServerTooOld, ServerUnreachable


def test_one_address_keeps_its_own_error() -> None:
    refused, asked = ServerUnreachable("Nothing listens at a."), ServerAnswer("401", "Log in.", status=401)
    assert error_of_search([refused]) is refused
    assert refused.remedy == START_COMFYUI_THERE
    assert error_of_search([asked]) is asked
    assert asked.remedy == "Log in."


def test_of_several_addresses_every_one_is_listed() -> None:
    error = error_of_search([ServerUnreachable("Nothing at a."), ServerUnreachable("Nothing at b.")])
    assert error.message == "No ComfyUI answers. Tried: Nothing at a. Nothing at b."
    assert error.remedy == START_COMFYUI


def test_one_that_is_too_old_is_what_there_is_to_mend() -> None:
    too_old = ServerTooOld("ComfyUI 0.3.40 is too old.", "Update it.")
    assert error_of_search([ServerUnreachable("Nothing at a."), too_old]) is too_old


def test_saved_definitions_are_looked_up_by_class() -> None:
    define = definitions_in({"A": {"input": {}}, "B": None})
    assert define(None) == {"A": {"input": {}}, "B": None}
    assert define(["A", "B", "C"]) == {"A": {"input": {}}, "B": {}, "C": {}}


def test_a_search_forgets_the_one_before() -> None:
    async def story() -> None:
        comfyui = ComfyUI(settings_of()._replace(limits=FAST), Desk().console)
        for _ in range(3):
            with pytest.raises(ServerUnreachable):
                await comfyui.find()
            assert [server.address.url for server, _ in comfyui.searched] == [NOWHERE]

    asyncio.run(story())
