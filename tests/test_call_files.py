"""Files of calls come to ComfyUI."""

from __future__ import annotations

import os
from typing import Any

import pytest
from served import PNG

from comfyui_runner.addresses import parse_address
from comfyui_runner.call_files import upload_call_file
from comfyui_runner.call_values import CallFile, file_of_bytes
from comfyui_runner.server import Server


def uploaded(simulator: Any, file: CallFile) -> Any:
    """The value by which a loader names ``file``, and what ComfyUI has under it."""
    value = upload_call_file(Server(parse_address(simulator.url)), file)
    with open(os.path.join(simulator.folder("input"), value), "rb") as stored:
        return value, stored.read()


def test_a_file_comes_to_comfyui_as_it_is_and_once_only(simulator: Any) -> None:
    data = PNG + os.urandom(600_000)
    file = CallFile("cat.png", data[:1024], lambda: (data[:1000], data[1000:]))
    assert uploaded(simulator, file) == ("cat.png", data)
    assert uploaded(simulator, file) == ("cat.png", data)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("../../cat.png", "cat.png"),
        ("C:\\pictures\\cat.png", "cat.png"),
        ('a "cat".png', "a _cat_.png"),
        ("cat\r\nX: y.png", "cat__X: y.png"),
        ("狐.png", "狐.png"),
        ("folder/", "upload"),
    ],
)
def test_a_name_that_a_client_gave_leads_nowhere_else(simulator: Any, name: str, value: str) -> None:
    assert uploaded(simulator, file_of_bytes(PNG, "png", name)) == (value, PNG)
