"""A download that is cut goes on where it was cut."""

from __future__ import annotations

import http.server
import os
import threading
from typing import Any, List, Mapping, Optional

import pytest

from comfyui_runner.addresses import parse_address
from comfyui_runner.downloads import (
    CHANGES,
    Download,
    FileMissing,
    Part,
    is_same_file,
    no_file,
    part_in_answer,
    range_headers,
    version_in,
)
from comfyui_runner.errors import SaveError, ServerAnswer, ServerUnreachable
from comfyui_runner.limits import DEFAULT_LIMITS
from comfyui_runner.outputs import Output
from comfyui_runner.saving import Destination, download
from comfyui_runner.server import Server

CONTENT = bytes(range(256)) * 1200  # 300 KB

#: The output that the tests download.
CLIP = Output("1", "Clip", "video", "clip.mp4")


# -- the rules -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "headers", "part"),
    [
        (200, {"Content-Length": "9"}, Part(0, 9, "")),
        (200, {}, Part(0, None, "")),
        (200, {"Content-Length": "nine"}, Part(0, None, "")),
        (200, {"Content-Length": "9", "ETag": '"a"', "Last-Modified": "then"}, Part(0, 9, '"a"')),
        (206, {"Content-Range": "bytes 3-8/9", "Content-Length": "6"}, Part(3, 9, "")),
        (206, {"Content-Range": "bytes 3-8/*", "Last-Modified": "then"}, Part(3, None, "then")),
    ],
)
def test_an_answer_has_the_whole_file_or_a_part(status: int, headers: Mapping[str, str], part: Part) -> None:
    assert part_in_answer(status, headers) == part


@pytest.mark.parametrize(
    ("status", "headers"),
    [(206, {}), (206, {"Content-Range": "pages 1-2/3"}), (200, {"Content-Length": "9", "Content-Encoding": "gzip"})],
)
def test_an_answer_whose_part_is_not_clear_is_refused(status: int, headers: Mapping[str, str]) -> None:
    with pytest.raises(ServerUnreachable):
        part_in_answer(status, headers)


def test_a_weak_etag_is_no_version() -> None:
    assert version_in({"ETag": 'W/"a"', "Last-Modified": "then"}) == "then"
    assert version_in({"ETag": 'W/"a"'}) == ""


def test_the_rest_is_asked_for_if_the_file_is_the_same() -> None:
    identity = {"Accept-Encoding": "identity"}
    assert range_headers(0, '"a"') == identity
    assert range_headers(7, "") == {**identity, "Range": "bytes=7-"}
    assert range_headers(7, '"a"') == {**identity, "Range": "bytes=7-", "If-Range": '"a"'}


@pytest.mark.parametrize(
    ("part", "first", "same"),
    [
        (Part(3, 9, '"a"'), Part(0, 9, '"a"'), True),
        (Part(3, 9, '"b"'), Part(0, 9, '"a"'), False),
        (Part(3, 9, ""), Part(0, 9, '"a"'), False),
        (Part(3, 9, ""), Part(0, 9, ""), True),
        (Part(3, 8, ""), Part(0, 9, ""), False),
        (Part(3, None, ""), Part(0, None, ""), False),
    ],
)
def test_a_part_is_of_the_same_file_by_version_or_else_by_size(part: Part, first: Part, same: bool) -> None:
    assert is_same_file(part, first) is same


# -- the whole -------------------------------------------------------------------------------------


@pytest.fixture
def clip(simulator: Any) -> str:
    """A file of CONTENT in the simulator's output folder."""
    path = os.path.join(simulator.root, "output", "clip.mp4")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(CONTENT)
    return path


def save(url: str, folder: Any, notices: Optional[List[str]] = None) -> bytes:
    """What download() saves of CLIP."""
    server = Server(parse_address(url), DEFAULT_LIMITS._replace(give_up=3.0))
    notes: List[str] = [] if notices is None else notices
    saved = download(server, CLIP, ["clip.mp4"], Destination(str(folder), overwrite=True), notes.append)
    with open(saved.path, "rb") as file:
        return file.read()


def ranges_asked_for(simulator: Any) -> List[Optional[str]]:
    return [headers.get("Range") for _, path, headers in simulator.received if path.startswith("/view")]


def test_a_download_that_is_cut_goes_on_where_it_was_cut_and_says_so(simulator: Any, clip: str, tmp_path: Any) -> None:
    simulator.faults.cut_files = [100000, 70000, 10]
    notices: List[str] = []
    assert save(simulator.url, tmp_path, notices) == CONTENT
    assert ranges_asked_for(simulator) == [None, "bytes=100000-", "bytes=170000-", "bytes=170010-"]
    assert notices == ["clip.mp4 was cut off at 97.7 KB of 300.0 KB: continuing."]


def test_three_answers_that_bring_nothing_new_are_enough(simulator: Any, clip: str, tmp_path: Any) -> None:
    simulator.faults.cut_files = [100000, 0, 0, 5, 0, 0, 0, 0, 0]
    with pytest.raises(SaveError) as caught:
        save(simulator.url, tmp_path)
    assert "clip.mp4 could not be downloaded after 97.7 KB of 300.0 KB (3 tries in a row" in caught.value.message
    assert len(ranges_asked_for(simulator)) == 7  # two in vain, one that brought five bytes, three in vain
    assert os.listdir(tmp_path) == []


def test_a_file_that_changes_meanwhile_comes_anew(simulator: Any, clip: str, tmp_path: Any) -> None:
    simulator.faults.cut_files = [100000]

    def change(message: str) -> None:
        with open(clip, "wb") as file:
            file.write(CONTENT[::-1])
        os.utime(clip, (1, 1))

    server = Server(parse_address(simulator.url))
    saved = download(server, CLIP, ["clip.mp4"], Destination(str(tmp_path), overwrite=True), change)
    with open(saved.path, "rb") as file:
        assert file.read() == CONTENT[::-1]


@pytest.mark.parametrize("pages", [1, 2])
def test_a_web_page_is_not_taken_for_the_file(pages: int, simulator: Any, clip: str, tmp_path: Any) -> None:
    simulator.faults.web_pages = ["text/html; charset=utf-8"] * pages
    assert save(simulator.url, tmp_path) == CONTENT


def test_a_web_page_that_comes_each_time_is_an_error(simulator: Any, clip: str, tmp_path: Any) -> None:
    simulator.faults.web_pages = ["Text/HTML"] * 9
    with pytest.raises(SaveError) as caught:
        save(simulator.url, tmp_path)
    assert "a web page arrived instead of the file" in caught.value.message
    assert len(simulator.faults.web_pages) == 6


@pytest.mark.parametrize("encoding", ["gzip", "bomb", "br"])
def test_a_file_that_comes_compressed_is_an_error(encoding: str, simulator: Any, clip: str, tmp_path: Any) -> None:
    """What it unpacks to could fill the disk."""
    simulator.faults.bodies = {"/view": encoding}
    folder = tmp_path / "saved"
    with pytest.raises(SaveError) as caught:
        save(simulator.url, folder)
    assert "it arrived compressed, which the runner did not ask for" in caught.value.message
    assert not folder.exists() or not list(folder.iterdir())
    asked_for = [headers["Accept-Encoding"] for _, path, headers in simulator.received if path.startswith("/view")]
    assert asked_for == ["identity"] * 3


class WithoutRanges(http.server.BaseHTTPRequestHandler):
    """Sends the whole file whatever is asked for, 100000 bytes more of it each time, and no ETag."""

    sent = 0

    def do_GET(self) -> None:
        type(self).sent += 100000
        self.send_response(200)
        self.send_header("Content-Type", "video/mp4")
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[: self.sent])

    def log_message(self, *arguments: Any) -> None:
        """Nothing is logged."""


def test_a_server_without_ranges_sends_once_more_what_is_here(tmp_path: Any) -> None:
    WithoutRanges.sent = 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), WithoutRanges) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            assert save("http://127.0.0.1:%d" % server.server_address[1], tmp_path) == CONTENT
        finally:
            server.shutdown()
    assert WithoutRanges.sent == 400000


def test_a_file_that_a_proxy_refuses_is_not_said_to_be_gone() -> None:
    error = no_file(ServerAnswer("", status=404, from_proxy=True), "a.png", "http://gpu/view?filename=a.png")
    assert "HTTP 404 of a proxy in front of ComfyUI" in error.message
    assert error.remedy == "The file is at http://gpu/view?filename=a.png"


def test_a_file_that_changes_each_time_is_given_up(simulator: Any, clip: str, tmp_path: Any) -> None:
    simulator.faults.cut_files = [100000] * 9
    changes: List[str] = []

    def change(message: str) -> None:
        changes.append(message)
        os.utime(clip, (len(changes), len(changes)))

    server = Server(parse_address(simulator.url), DEFAULT_LIMITS._replace(give_up=3.0))
    with pytest.raises(SaveError) as caught:
        download(server, CLIP, ["clip.mp4"], Destination(str(tmp_path)), change)
    assert caught.value.message == "clip.mp4 could not be downloaded: it changed each time that it was cut off."
    assert caught.value.remedy.startswith(f"The file is at {simulator.url}/view?filename=clip.mp4")
    assert len(changes) == CHANGES == 3
    assert os.listdir(tmp_path) == []


def test_a_file_that_cannot_be_written_says_where_it_is(simulator: Any, clip: str, tmp_path: Any) -> None:
    (tmp_path / "file").write_bytes(b"")
    server = Server(parse_address(simulator.url), DEFAULT_LIMITS)
    with pytest.raises(SaveError) as caught:
        download(server, CLIP, ["clip.mp4"], Destination(str(tmp_path / "file")), print)
    assert caught.value.message.startswith(f"clip.mp4 could not be saved in {tmp_path / 'file'}: ")
    assert caught.value.remedy.startswith("Choose another folder with -o; the file is at http://")


# -- giving up, without a server -------------------------------------------------------------------


def download_of(is_stopped: bool = False, gone: bool = False, give_up: float = 0.0) -> Any:
    """A download that has not begun, and what it notifies of."""
    server = Server(parse_address("http://127.0.0.1:1"), DEFAULT_LIMITS._replace(give_up=give_up))
    server.cookies.gone = gone
    notices: List[str] = []
    return Download(server, CLIP, lambda: is_stopped, notices.append), notices


def reason_of(download: Any, give: Any) -> str:
    with pytest.raises(SaveError) as caught:
        give(download)
    assert caught.value.remedy.startswith("The file is at http://127.0.0.1:1/view?")
    return caught.value.message


def test_a_server_that_does_not_answer_is_given_up_after_three_tries_at_least() -> None:
    download, _ = download_of()
    for _ in range(2):
        download._note_no_answer(ServerUnreachable("Nothing listens"))
    message = reason_of(download, lambda each: each._note_no_answer(ServerUnreachable("Nothing listens")))
    assert message == "clip.mp4 could not be downloaded (Nothing listens)"


@pytest.mark.parametrize(("is_stopped", "gone"), [(True, False), (False, True)])
def test_nobody_waits_for_a_server_that_is_gone_or_after_a_press(is_stopped: bool, gone: bool) -> None:
    download, _ = download_of(is_stopped, gone, give_up=300.0)
    assert "(gone)" in reason_of(download, lambda each: each._note_no_answer(ServerUnreachable("gone")))
    assert "(cut)" in reason_of(download, lambda each: each._note_cut(ServerUnreachable("cut"), True))


def test_what_breaks_is_named_and_a_cut_is_said_once() -> None:
    download, notices = download_of()
    download._size, download._first = 2048, Part(0, 4096, "")
    for _ in range(2):
        download._note_cut(ConnectionResetError(), has_progressed=True)
    assert notices == ["clip.mp4 was cut off at 2.0 KB of 4.0 KB: continuing."]
    for _ in range(2):
        download._note_cut(ConnectionResetError(), has_progressed=False)
    message = reason_of(download, lambda each: each._note_cut(ConnectionResetError(), has_progressed=False))
    assert message == (
        "clip.mp4 could not be downloaded after 2.0 KB of 4.0 KB "
        "(3 tries in a row brought no new data: the connection broke: ConnectionResetError)"
    )


def test_a_size_that_is_not_announced_is_not_named() -> None:
    download, _ = download_of()
    download._size, download._first = 2048, Part(0, None, "")
    assert download._progress() == "2.0 KB"


@pytest.mark.parametrize(
    ("status", "is_missing", "remedy"),
    [(400, True, "The file is at u"), (403, True, "The file is at u"), (500, False, "The file is at u")],
)
def test_an_error_in_place_of_a_file_says_its_status(status: int, is_missing: bool, remedy: str) -> None:
    error = no_file(ServerAnswer("", status=status), "a.png", "u")
    assert (error.message, error.remedy) == (f"a.png could not be downloaded (HTTP {status}).", remedy)
    assert isinstance(error, FileMissing) is is_missing


def test_a_file_that_is_gone_can_be_rendered_again() -> None:
    error = no_file(ServerAnswer("", status=404), "a.png", "u")
    assert isinstance(error, FileMissing)
    assert error.remedy.endswith("change a seed to render it again.")
