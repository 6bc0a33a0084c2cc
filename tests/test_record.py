"""The record of a run: what it says of the files."""

from __future__ import annotations

import hashlib
from typing import Any

from comfyui_runner.conclusion import Ending
from comfyui_runner.errors import ExitStatus
from comfyui_runner.extras.record import fingerprint, record_output
from comfyui_runner.outputs import Output

PICTURE = Output("1", "Save", "image", filename="a.png")


def ending(saved: Any) -> Ending:
    return Ending(ExitStatus.OK, {}, [PICTURE], saved)


def test_a_file_that_is_saved_has_its_size_and_its_sum(tmp_path: Any) -> None:
    path = tmp_path / "a.png"
    data = bytes(range(256)) * 1000  # more than is read at once
    path.write_bytes(data)
    known = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": 256000}
    assert fingerprint(str(path)) == known
    assert record_output(PICTURE, ending({PICTURE: str(path)})) == {**PICTURE.to_json(), "path": str(path), **known}


def test_a_file_that_is_not_saved_has_no_path() -> None:
    for saved in (None, {}, {PICTURE._replace(filename="b.png"): "b.png"}):
        assert record_output(PICTURE, ending(saved)) == {**PICTURE.to_json(), "path": None}


def test_a_file_that_somebody_has_removed_is_an_error_in_the_record_alone(tmp_path: Any) -> None:
    path = str(tmp_path / "a.png")
    entry = record_output(PICTURE, ending({PICTURE: path}))
    assert entry["path"] == path and "No such file" in entry["error"] and "sha256" not in entry
