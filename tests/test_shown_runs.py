"""A run that has ended, as the text that clients are shown."""

from __future__ import annotations

import json
from typing import Any, Dict, List, Optional

import pytest

from comfyui_runner.shown_runs import (
    may_have_lost_files,
    with_absolute_urls,
    with_address,
    with_open_address,
    without_lost_files,
)

VIEW = "view?filename=b.png&subfolder="


def run(*urls: Optional[str], **more: Any) -> Dict[str, Any]:
    outputs: List[Dict[str, Any]] = [{"text": 'a "url": "runs/x" b', "url": url} for url in urls]
    return {"message": 'He said: , "absolute_url": null', "outputs": outputs, "over": True, **more}


@pytest.mark.parametrize("url", ["", "http://127.0.0.1:8189", 'https://gpu.example/ru"nner\\'])
@pytest.mark.parametrize("urls", [(), (VIEW,), (VIEW, None, "runs/a/files/2"), (None,)])
def test_the_address_is_filled_in_as_if_it_had_been_known(url: str, urls: Any) -> None:
    shown = run(*urls)
    text = with_address(with_open_address(shown), url)
    assert json.loads(text) == with_absolute_urls(shown, url)
    assert list(json.loads(text)) == list(shown)


def test_without_an_address_there_are_no_absolute_urls() -> None:
    shown = run(VIEW, None)
    assert with_absolute_urls(shown, "") == shown and "absolute_url" not in shown["outputs"][0]
    assert [each["absolute_url"] for each in with_absolute_urls(shown, "http://x")["outputs"]] == [
        "http://x/" + VIEW,
        None,
    ]


def test_files_may_be_lost_where_some_were_in_the_spool_and_none_is() -> None:
    spooled, other = with_open_address(run("runs/a/files/0")), with_open_address(run(VIEW, None))
    assert may_have_lost_files(spooled, {}) and not may_have_lost_files(spooled, {0: "7"})
    assert not may_have_lost_files(other, {})


def test_only_what_is_in_the_spool_has_an_address_there() -> None:
    urls = ["runs/a/files/0", "runs/a/files/1", VIEW, None]
    shown = with_absolute_urls(run(*urls), "http://x")
    left = without_lost_files(shown, {1: "7"})
    assert [output["url"] for output in left["outputs"]] == [None, *urls[1:]]
    absolute_urls = [output["absolute_url"] for output in left["outputs"]]
    assert absolute_urls == [None, f"http://x/{urls[1]}", "http://x/" + VIEW, None]
    assert left["message"] == shown["message"] and shown["outputs"][0]["url"] == urls[0]
