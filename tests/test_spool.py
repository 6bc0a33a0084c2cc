"""Files that no server keeps, in a bounded temporary folder."""

from __future__ import annotations

import os
import tempfile
from typing import Any, List

import pytest
from test_files import in_use_for

from comfyui_runner.spool import Spool


@pytest.fixture(autouse=True)
def temporary(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Where temporary folders are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def files_below(folder: Any) -> List[str]:
    return sorted(name for _, _, names in os.walk(str(folder)) for name in names)


def test_what_is_kept_is_found_until_the_end(temporary: Any) -> None:
    spool = Spool()
    assert os.listdir(str(temporary)) == []  # nothing is made before it is needed
    keys = [spool.add(b"one"), spool.add(b"two")]
    assert [spool.read(str(key)) for key in keys] == [b"one", b"two"]
    assert spool.read("9") is None
    spool.close()
    spool.close()
    assert os.listdir(str(temporary)) == []
    assert spool.read(str(keys[0])) is None and spool.add(b"late") is None


def test_the_oldest_make_room(temporary: Any) -> None:
    spool = Spool(most_files=3, most_bytes=10)
    keys = [str(spool.add(data)) for data in (b"a", b"b", b"c", b"d")]
    assert [spool.read(key) for key in keys] == [None, b"b", b"c", b"d"]
    large = str(spool.add(b"123456789"))
    assert [spool.read(key) for key in [*keys, large]] == [None, None, None, b"d", b"123456789"]
    assert spool.read(str(spool.add(b"12345678901"))) is None  # larger than all that is kept
    assert files_below(temporary) == []
    spool.close()


def test_a_file_that_cannot_be_written_leaves_nothing_behind(temporary: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool()
    first = str(spool.add(b"first"))
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", lambda *_: os.close(-1))
        with pytest.raises(OSError):
            spool.add(b"second")
    assert files_below(temporary) == ["1"]
    os.unlink(os.path.join(str(temporary), os.listdir(str(temporary))[0], "1"))
    assert spool.read(first) is None  # somebody has emptied the folder
    spool.close()


def test_a_file_that_a_virus_scanner_holds_for_a_moment_is_removed(
    temporary: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(most_files=1)
    spool.add(b"one")
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", in_use_for(3, os.unlink))
        spool.add(b"two")
    assert files_below(temporary) == ["2"]
    spool.close()


def test_the_folder_is_removed_though_a_virus_scanner_holds_it_for_a_moment(
    temporary: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool()
    spool.add(b"one")
    cleanup = tempfile.TemporaryDirectory.cleanup
    monkeypatch.setattr(tempfile.TemporaryDirectory, "cleanup", in_use_for(3, cleanup))
    spool.close()
    assert os.listdir(str(temporary)) == []
