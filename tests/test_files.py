"""Where outputs go: files are written whole or not at all, below the folder, and not over others."""

from __future__ import annotations

import os
import stat
from typing import Any, Callable, Iterator, List

import pytest
from support import limited_disk

from comfyui_runner.addresses import parse_address
from comfyui_runner.errors import SaveError
from comfyui_runner.files import (
    PAUSES_WHILE_IN_USE,
    WrittenFiles,
    make_writable_folder,
    path_for_people,
    read_regular_file,
    save_bytes,
    when_not_in_use,
    write_file,
    write_text_file,
)
from comfyui_runner.outputs import Output
from comfyui_runner.saving import Destination, save_jobs
from comfyui_runner.server import Server


def write(folder: Any, *parts: str, overwrite: bool = False, data: bytes = b"new") -> str:
    """Writes a file below ``folder``; its path there."""
    saved = write_file(str(folder), parts, overwrite, [data[:1], data[1:]])
    assert saved.bytes == len(data)
    return os.path.relpath(saved.path, os.path.realpath(folder)).replace(os.sep, "/")


def files_in(folder: Any) -> List[str]:
    return sorted(
        os.path.relpath(os.path.join(where, name), folder).replace(os.sep, "/")
        for where, _, names in os.walk(folder)
        for name in names
    )


def test_an_output_is_written_below_the_folder_which_is_made(tmp_path: Any) -> None:
    assert write(tmp_path / "new" / "out", "sub", "a.png") == "sub/a.png"
    assert (tmp_path / "new" / "out" / "sub" / "a.png").read_bytes() == b"new"
    assert files_in(tmp_path) == ["new/out/sub/a.png"]  # nothing temporary is left


def test_a_file_that_is_there_is_kept(tmp_path: Any) -> None:
    (tmp_path / "a.png").write_bytes(b"old")
    assert [write(tmp_path, "a.png"), write(tmp_path, "a.png")] == ["a (1).png", "a (2).png"]
    assert (tmp_path / "a.png").read_bytes() == b"old"


def test_with_overwrite_it_is_replaced(tmp_path: Any) -> None:
    (tmp_path / "a.png").write_bytes(b"old")
    assert write(tmp_path, "a.png", overwrite=True) == "a.png"
    assert (tmp_path / "a.png").read_bytes() == b"new" and files_in(tmp_path) == ["a.png"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_that_name_is_kept(tmp_path: Any, overwrite: bool) -> None:
    (tmp_path / "a.png").mkdir()
    assert write(tmp_path, "a.png", overwrite=overwrite) == "a (1).png"
    assert (tmp_path / "a.png").is_dir()


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_link_does_not_lead_out_of_the_folder(tmp_path: Any) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SaveError) as caught:
        write(tmp_path / "out", "sub", "a.png")
    assert caught.value.message == "%s leads out of %s." % (os.path.join("sub", "a.png"), tmp_path / "out")
    assert caught.value.remedy == "Remove the link."
    assert files_in(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_link_to_a_file_is_replaced_and_its_target_is_kept(tmp_path: Any) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "mine.txt").write_bytes(b"mine")
    (tmp_path / "out" / "a.png").symlink_to(tmp_path / "mine.txt")
    assert write(tmp_path / "out", "a.png", overwrite=True) == "a.png"
    assert (tmp_path / "mine.txt").read_bytes() == b"mine"
    assert not (tmp_path / "out" / "a.png").is_symlink()


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_the_folder_itself_may_be_a_link(tmp_path: Any) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "real")
    assert write(tmp_path / "out", "a.png") == "a.png"
    assert files_in(tmp_path / "real") == ["a.png"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
def test_others_may_read_an_output_as_any_file(tmp_path: Any) -> None:
    before = os.umask(0o027)
    try:
        write(tmp_path, "a.png")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.png").stat().st_mode) == 0o640


def test_an_output_that_breaks_off_leaves_nothing_behind(tmp_path: Any) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"half"
        raise ConnectionError("broken off")

    with pytest.raises(ConnectionError):
        write_file(str(tmp_path), ["a.png"], False, chunks())
    assert files_in(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows removes no open file")
def test_an_output_whose_file_somebody_removed_fails_with_its_own_reason(tmp_path: Any) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"half"
        for name in os.listdir(tmp_path):
            os.unlink(tmp_path / name)
        raise ConnectionError("cut")

    with pytest.raises(ConnectionError, match="cut"):
        write_file(str(tmp_path), ["a.png"], False, chunks())


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_name_below_a_file_leaves_nothing_behind(tmp_path: Any, overwrite: bool) -> None:
    (tmp_path / "a.png").write_bytes(b"old")
    with pytest.raises(OSError):
        write(tmp_path, "a.png", "b.png", overwrite=overwrite)
    assert files_in(tmp_path) == ["a.png"]


def test_when_the_last_step_fails_nothing_is_left_behind(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError):
        write(tmp_path, "a.png")
    assert files_in(tmp_path) == []


class SharingViolation(PermissionError):
    """What Windows raises while another program has a file open."""

    winerror = 32


def in_use_for(tries: int, function: Callable[..., None]) -> Callable[..., None]:
    """``function`` of a system on which a virus scanner holds the file for so many tries."""
    left = [tries]

    def try_it(*paths: str) -> None:
        if left[0]:
            left[0] -= 1
            raise SharingViolation(13, "used by another process", *paths)
        function(*paths)

    return try_it


def test_a_file_that_a_virus_scanner_holds_for_a_moment_is_saved(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "replace", in_use_for(3, os.replace))
    assert write(tmp_path, "a.png") == "a.png"
    assert files_in(tmp_path) == ["a.png"]


def test_a_temporary_file_that_a_virus_scanner_holds_for_a_moment_is_removed(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "unlink", in_use_for(3, os.unlink))
    make_writable_folder(str(tmp_path))
    assert files_in(tmp_path) == []


def test_a_file_that_stays_in_use_is_given_up_and_leaves_nothing_behind(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sum(PAUSES_WHILE_IN_USE) == 2.5
    monkeypatch.setattr("comfyui_runner.files.PAUSES_WHILE_IN_USE", (0.01, 0.01))
    monkeypatch.setattr(os, "replace", in_use_for(3, os.replace))
    with pytest.raises(SharingViolation):
        write(tmp_path, "a.png")
    assert files_in(tmp_path) == []


def test_only_a_file_in_use_is_tried_again() -> None:
    tries = []

    def refuse() -> None:
        tries.append(1)
        raise PermissionError(13, "Permission denied", "a.png")

    with pytest.raises(PermissionError):
        when_not_in_use(refuse)
    assert len(tries) == 1


def test_names_that_the_system_takes_for_one_do_not_overwrite_each_other(tmp_path: Any) -> None:
    """A hard link is one file under two names, as "A.png" and "a.png" are on Windows and macOS."""
    written = WrittenFiles()

    def save(name: str, data: bytes) -> str:
        saved = write_file(str(tmp_path), [name], True, [data], written)
        return os.path.basename(saved.path)

    assert save("A.png", b"first") == "A.png"
    os.link(tmp_path / "A.png", tmp_path / "a.png")
    assert save("a.png", b"second") == "a (1).png"
    assert (tmp_path / "A.png").read_bytes() == b"first"
    assert save("A.png", b"third") == "A.png"  # under its own name it may be replaced
    assert (tmp_path / "A.png").read_bytes() == b"third"
    written = WrittenFiles()  # the next batch
    assert save("a.png", b"fourth") == "a.png"


def test_on_a_full_disk_nothing_is_left_of_an_output(tmp_path: Any) -> None:
    with limited_disk(2), pytest.raises(OSError):
        write(tmp_path, "a.png")
    assert files_in(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps lone surrogates in names")
def test_what_the_file_system_cannot_encode_becomes_a_mark(tmp_path: Any) -> None:
    make_writable_folder(str(tmp_path / "out\ud800"))
    write_file(str(tmp_path / "out\ud800"), ["sub\udfff", "狐\ud800.png"], False, [b"x"])
    write_text_file(str(tmp_path / "run\ud800.json"), "text")
    assert files_in(tmp_path) == ["out_/sub_/狐_.png", "run_.json"]


# -- files that a person names ---------------------------------------------------------------------


def test_on_a_full_disk_a_text_that_is_there_stays(tmp_path: Any) -> None:
    path = tmp_path / "run.json"
    path.write_text("old")
    with limited_disk(4), pytest.raises(SaveError) as caught:
        write_text_file(str(path), "a longer text")
    assert caught.value.message.startswith(f"{path} cannot be written: File too large")
    assert path.read_text() == "old" and files_in(tmp_path) == ["run.json"]


def test_a_text_is_not_written_over_a_folder_or_beside_it(tmp_path: Any) -> None:
    (tmp_path / "place").mkdir()
    with pytest.raises(SaveError) as caught:
        write_text_file(str(tmp_path / "place"), "text")
    assert caught.value.message == f"{tmp_path / 'place'} cannot be written: it is a folder."
    assert caught.value.remedy == "Name a file in it."
    assert os.listdir(tmp_path) == ["place"] and files_in(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_text_goes_where_a_link_leads(tmp_path: Any) -> None:
    (tmp_path / "link.json").symlink_to(tmp_path / "mine.json")
    for text in ("new", "newer"):
        write_text_file(str(tmp_path / "link.json"), text)
        assert (tmp_path / "link.json").is_symlink()
        assert (tmp_path / "mine.json").read_text() == text


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_text_for_a_device_goes_into_it(tmp_path: Any) -> None:
    """By links: a program that is wrong would put a file in the place of the device."""
    (tmp_path / "null").symlink_to("/dev/null")
    (tmp_path / "full").symlink_to("/dev/full")
    write_text_file(str(tmp_path / "null"), "text")
    with pytest.raises(SaveError, match="cannot be written: No space left on device"):
        write_text_file(str(tmp_path / "full"), "text")
    assert stat.S_ISCHR((tmp_path / "null").stat().st_mode) and stat.S_ISCHR((tmp_path / "full").stat().st_mode)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes in folders")
def test_a_text_for_a_pipe_needs_a_reader(tmp_path: Any) -> None:
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)
    with pytest.raises(SaveError, match="pipe cannot be written: "):
        write_text_file(pipe, "text")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_text_file(pipe, "text")
        assert os.read(reader, 100) == b"text"
    finally:
        os.close(reader)


# -- what is read, and what is saved ---------------------------------------------------------------


def test_a_text_is_saved_under_the_title_of_its_node(tmp_path: Any) -> None:
    output = Output("1", "My/Text: 1", "text", text="狐\ud800")
    server = Server(parse_address("host"))
    ((saved_of, save),) = save_jobs(server, [output], Destination(str(tmp_path)), print)
    saved = save()
    assert saved_of == output
    assert os.path.basename(saved.path) == "My_Text_ 1.txt"
    assert (tmp_path / "My_Text_ 1.txt").read_bytes() == "狐?".encode()


def test_a_picture_that_cannot_be_saved_says_why(tmp_path: Any) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SaveError) as caught:
        save_bytes(b"x", "a.png", str(tmp_path / "file"), False)
    assert caught.value.message.startswith("a.png could not be saved in %s: " % (tmp_path / "file"))
    assert caught.value.remedy == "Choose another folder with -o."


def test_a_file_is_read_up_to_a_limit(tmp_path: Any) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_regular_file(str(path), 5) == b"12345"
    with pytest.raises(ValueError, match="larger than"):
        read_regular_file(str(path), 4)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
def test_a_file_that_is_larger_than_its_size_has_the_limit_too() -> None:
    assert os.path.getsize("/proc/self/status") == 0
    with pytest.raises(ValueError, match="larger than"):
        read_regular_file("/proc/self/status", 10)


def test_a_saved_file_has_the_path_from_here(tmp_path: Any, monkeypatch: Any) -> None:
    (tmp_path / "gone").mkdir()
    path = str(tmp_path / "out" / "a.png")
    monkeypatch.chdir(tmp_path)
    assert path_for_people(path) == os.path.join("out", "a.png")
    monkeypatch.chdir(tmp_path / "gone")
    assert path_for_people(path) == path
    if os.name != "nt":  # Windows keeps the folder that a program is in
        (tmp_path / "gone").rmdir()
        assert path_for_people(path) == path
