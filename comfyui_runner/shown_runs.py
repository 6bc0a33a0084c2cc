"""A run that has ended, as the text in JSON that clients are shown. Pure.

The text is made once, so that lists of hundreds of runs are answered without parsing them. Only the
address of the service stays open in it, because clients may reach the service at different ones.
"""

from __future__ import annotations

import re
from typing import Mapping

from comfyui_runner.messages import strict_json
from comfyui_runner.text import JsonObject

#: Stands for the address of the service. The digits are random: no other text contains them.
ADDRESS_MARK = "service-5e0c64ff8a2b4c7d9be1d3a7f2c60918"

# Cannot match inside a text of the run: there, each quotation mark has a backslash before it.
_OPEN_ADDRESS = re.compile(rf', "absolute_url": (?:null|"{ADDRESS_MARK}[^"]*")')

_may_have_spooled_files = re.compile('"url": "runs/').search


def with_absolute_urls(shown: JsonObject, service_url: str) -> JsonObject:
    """``shown``, a run, with absolute URLs too where ``service_url`` is known."""
    if not service_url:
        return shown
    outputs = []
    for output in shown["outputs"]:
        url = output["url"]
        absolute_url = None
        if url:
            absolute_url = f"{service_url}/{url}"
        outputs.append({**output, "absolute_url": absolute_url})
    return {**shown, "outputs": outputs}


def with_open_address(shown: JsonObject) -> str:
    """``shown``, a run, as a text in which the address of the service is open."""
    return strict_json(with_absolute_urls(shown, ADDRESS_MARK))


def with_address(text: str, service_url: str) -> str:
    """``text``, which with_open_address() made, as with_absolute_urls() shows the run."""
    if not service_url:
        return _OPEN_ADDRESS.sub("", text)
    quoted = strict_json(service_url)
    without_quotes = quoted[1:-1]
    return text.replace(ADDRESS_MARK, without_quotes)


def may_have_lost_files(text: str, spooled: Mapping[int, str]) -> bool:
    """Whether ``text`` may have URLs of files that are no longer in the spool.

    ``spooled`` are those that are in it: all of them, or none after a restart.
    """
    return not spooled and _may_have_spooled_files(text) is not None


def without_lost_files(shown: JsonObject, spooled: Mapping[int, str]) -> JsonObject:
    """``shown``, a run, without the URLs of files that were in the spool and no longer are.

    The spool ends with its process. Files that ComfyUI keeps stay where they are.
    """
    outputs = []
    for turn, output in enumerate(shown["outputs"]):
        was_spooled = str(output["url"]).startswith("runs/")
        if was_spooled and turn not in spooled:
            output = {**output, "url": None, "absolute_url": None}
        outputs.append(output)
    return {**shown, "outputs": outputs}
