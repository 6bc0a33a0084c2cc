"""A run that has ended, as the text in JSON that clients are shown. Pure.

The text is made once. What is still open in it is the address of the service, by which each client
reaches it in its own way: lists of hundreds of runs are answered without reading their texts.
"""

from __future__ import annotations

import re
from typing import Mapping

from comfyui_runner.messages import strict_json
from comfyui_runner.text import JsonObject

#: Stands for the address of the service. Nobody has it in a text by accident.
ADDRESS_MARK = "service-5e0c64ff8a2b4c7d9be1d3a7f2c60918"

# In a text within the JSON, there is a backslash before each quotation mark.
_OPEN_ADDRESS = re.compile(rf', "absolute_url": (?:null|"{ADDRESS_MARK}[^"]*")')

_may_have_spooled_files = re.compile('"url": "runs/').search


def with_absolute_urls(shown: JsonObject, service_url: str) -> JsonObject:
    """``shown``, a run, with absolute URLs too where ``service_url`` is known."""
    if not service_url:
        return shown
    outputs = [
        {**output, "absolute_url": output["url"] and f"{service_url}/{output['url']}"}
        for output in shown["outputs"]
    ]
    return {**shown, "outputs": outputs}


def with_open_address(shown: JsonObject) -> str:
    """``shown``, a run, as a text in which the address of the service is open."""
    return strict_json(with_absolute_urls(shown, ADDRESS_MARK))


def with_address(text: str, service_url: str) -> str:
    """``text``, which with_open_address() made, as with_absolute_urls() shows the run."""
    if not service_url:
        return _OPEN_ADDRESS.sub("", text)
    return text.replace(ADDRESS_MARK, strict_json(service_url)[1:-1])


def may_have_lost_files(text: str, spooled: Mapping[int, str]) -> bool:
    """Whether ``text`` may have addresses of files that are not in the spool any more.

    ``spooled`` has those that are: all of them, or none after a restart.
    """
    return not spooled and _may_have_spooled_files(text) is not None


def without_lost_files(shown: JsonObject, spooled: Mapping[int, str]) -> JsonObject:
    """``shown``, a run, without the addresses of files that were in the spool and are not any more.

    The spool ends with its process; what ComfyUI keeps stays where it is.
    """
    outputs = []
    for turn, output in enumerate(shown["outputs"]):
        was_spooled = str(output["url"]).startswith("runs/")
        if was_spooled and turn not in spooled:
            output = {**output, "url": None, "absolute_url": None}
        outputs.append(output)
    return {**shown, "outputs": outputs}
