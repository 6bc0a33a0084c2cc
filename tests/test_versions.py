"""Which versions of ComfyUI are worked with."""

from __future__ import annotations

from typing import Any, Dict, Tuple

import pytest

from comfyui_runner.errors import ExitStatus, ServerTooOld
from comfyui_runner.versions import parse_version, refuse_old_version, server_in_words, version_warning

Json = Dict[str, Any]

URL = "http://127.0.0.1:8188"


def stats_of(version: Any) -> Json:
    """An answer of GET /system_stats with this version."""
    return {"system": {"comfyui_version": version}}


@pytest.mark.parametrize(
    ("stats", "version"),
    [
        (stats_of("0.3.64"), (0, 3, 64)),
        (stats_of("v0.33.0-12-gabc"), (0, 33, 0)),
        (stats_of("unknown"), ()),
        (stats_of(None), ()),
        ({"system": {}}, ()),
        ({"system": None}, ()),
        ({}, ()),
    ],
)
def test_the_version_of_comfyui(stats: Json, version: Tuple[int, ...]) -> None:
    assert parse_version(stats) == version
    assert bool(version_warning(stats, URL)) is not bool(version)


@pytest.mark.parametrize("version", ["0.0.0", "0.2.99", "0.3.45", "0.3.56"])
def test_a_version_before_0_3_57_is_refused(version: str) -> None:
    with pytest.raises(ServerTooOld) as caught:
        refuse_old_version(stats_of(version), URL)
    assert caught.value.message == (
        f"ComfyUI {version} at {URL} is too old: update it to 0.3.57 (September 2025) or newer."
    )
    assert caught.value.exit_status == ExitStatus.NO_SERVER


@pytest.mark.parametrize("version", ["0.3.57", "v0.3.57", "0.3.64", "0.33.0", "1.0.0", "unknown", None])
def test_a_later_version_and_one_that_cannot_be_read_are_not_refused(version: Any) -> None:
    refuse_old_version(stats_of(version), URL)


def test_the_warning_says_what_an_older_version_would_do() -> None:
    assert version_warning({}, URL) == (
        f"ComfyUI at {URL} does not report its version. A version before 0.3.57 would interrupt whatever runs: "
        "make sure that it is newer."
    )


@pytest.mark.parametrize(
    ("stats", "words"),
    [
        ({**stats_of("0.3.64"), "devices": [{"name": "cuda:0\n RTX"}]}, ("0.3.64", "cuda:0 RTX")),
        ({**stats_of(None), "devices": [{}]}, ("", "")),
        ({**stats_of(""), "devices": [None]}, ("", "")),
        ({"devices": []}, ("", "")),
        ({}, ("", "")),
    ],
)
def test_the_server_in_words(stats: Json, words: Tuple[str, str]) -> None:
    assert tuple(server_in_words(stats).values()) == words
