"""The simulator's files: views and uploads."""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path
from typing import Any, Dict, Iterator

import pytest
import requests
from simulated import WAIT, get, slow, submit, until
from test_files import in_use_for

from comfyui_runner.simulator import Simulator, draw


@pytest.fixture
def secret(sim: Simulator) -> Path:
    """A file beside the folders that nobody may read, and one that anybody may."""
    path = Path(sim.root, "secret.txt")
    path.write_text("secret")
    Path(sim.root, "output", "open.txt").write_text("0123456789")
    os.makedirs(Path(sim.root, "outputs"))
    Path(sim.root, "outputs", "secret.txt").write_text("secret")
    return path


@pytest.mark.parametrize(
    "query",
    [
        "filename=../secret.txt",
        "filename=..%2fsecret.txt",
        "filename=%2e%2e%2fsecret.txt",
        "filename=..%5csecret.txt",
        "filename=secret.txt&subfolder=..",
        "filename=secret.txt&subfolder=../outputs",
        "filename=secret.txt&subfolder=x/../..",
        "filename=secret.txt&subfolder=%2f{root}",
        "filename={root}/secret.txt",
        "filename=//{root}/secret.txt",
        "filename=secret.txt&type=..",
        "filename=secret.txt&type=outputs",
        "filename=secret.txt%00.png&subfolder=..",
        "filename=secret.txt [..]",
        "filename=link.txt",
        "filename=",
        "filename=.",
        "filename= [output]",
    ],
)
def test_view_stays_in_its_folders(sim: Simulator, secret: Path, query: str) -> None:
    with contextlib.suppress(OSError, NotImplementedError):
        os.symlink(str(secret), str(Path(sim.root, "output", "link.txt")))
    answer = get(sim, "/view?" + query.format(root=sim.root))
    assert answer.status_code in (400, 403, 404, 500)
    assert b"secret" not in answer.content


def test_view(sim: Simulator, secret: Path) -> None:
    for more in ("", "&type=output", "&subfolder=", "&subfolder=."):
        assert get(sim, "/view?filename=open.txt" + more).text == "0123456789"
    assert get(sim, "/view?filename=open.txt [output]&type=input").ok
    assert get(sim, "/view?filename=folder/open.txt").ok  # the folder is dropped
    assert get(sim, "/view?filename=open.txt&preview=webp").status_code == 500
    Path(sim.root, "output", "a.html").write_text("<script>")
    Path(sim.root, "output", "a.svg").write_text("<svg/>")
    for name in ("a.html", "a.svg"):
        kind = get(sim, "/view?filename=" + name).headers["Content-Type"]
        assert kind == "application/octet-stream"
    Path(sim.root, "output", "a.png").write_bytes(draw(2000, 500, 1, ["X"]))
    small = get(sim, "/view?filename=a.png&preview=webp;90").content
    assert struct.unpack(">II", small[16:24]) == (512, 128)


def test_ranges(sim: Simulator, secret: Path) -> None:
    for wanted, status, content, text in (
        ("bytes=2-4", 206, "bytes 2-4/10", "234"),
        ("bytes=7-", 206, "bytes 7-9/10", "789"),
        ("bytes=-3", 206, "bytes 7-9/10", "789"),
        ("bytes=0-99", 206, "bytes 0-9/10", "0123456789"),
        ("bytes=-99", 206, "bytes 0-9/10", "0123456789"),
        ("bytes=10-", 416, "bytes */10", ""),
        ("bytes=5-2", 416, "bytes */10", ""),
        ("lines=1-2", 200, None, "0123456789"),
        ("bytes=-", 200, None, "0123456789"),
    ):
        answer = get(sim, "/view?filename=open.txt", headers={"Range": wanted})
        assert (answer.status_code, answer.text) == (status, text), wanted
        assert answer.headers.get("Content-Range") == content
    head = requests.head(sim.url + "/view?filename=open.txt", timeout=WAIT)
    assert (head.headers["Content-Length"], head.content) == ("10", b"")


def test_a_file_that_the_client_has_is_304_without_a_length(sim: Simulator) -> None:
    Path(sim.root, "output", "etag.txt").write_text("0123456789")
    etag = get(sim, "/view?filename=etag.txt").headers["ETag"]
    for known in (etag, f'"other", W/{etag}', "*"):
        answer = get(sim, "/view?filename=etag.txt", headers={"If-None-Match": known})
        assert (answer.status_code, answer.content, answer.headers["ETag"]) == (304, b"", etag)
        assert "Content-Length" not in answer.headers
    assert get(sim, "/view?filename=etag.txt", headers={"If-None-Match": '"other"'}).status_code == 200


def upload(sim: Simulator, name: str, data: Any = b"data", **form: str) -> requests.Response:
    files = {"image": (name, data)}
    return requests.post(sim.url + "/upload/image", files=files, data=form, timeout=WAIT)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("../evil", {}),
        ("../../evil", {}),
        ("/evil", {}),
        ("evil", {"subfolder": ".."}),
        ("evil", {"subfolder": "x/../../.."}),
        ("evil", {"subfolder": "/"}),
        ("evil", {"subfolder": "/tmp"}),
        ("../evil", {"subfolder": "x"}),
        ("evil", {"type": "../.."}),
        ("evil", {"type": "root"}),
        ("evil", {"subfolder": "link"}),
        ("x/evil", {}),
        ("evil\x00", {}),
    ],
)
def test_uploads_stay_in_their_folders(sim: Simulator, name: str, form: Dict[str, str]) -> None:
    with contextlib.suppress(OSError, NotImplementedError):
        os.symlink("..", str(Path(sim.root, "input", "link")))
    assert upload(sim, name, **form).status_code in (400, 500) or name == "../evil"
    for folder in (Path(sim.root), Path(sim.root).parent, Path("/"), Path("/tmp")):
        assert not (folder / "evil").exists()
    assert not list(Path(sim.root).glob(".upload*"))


def test_uploads_keep_odd_names(sim: Simulator) -> None:
    names = ["a b.png", "\u00fcml\u00e4ut.png", "100%.png", "x.tar.gz"]
    for name in [*names, *([] if os.name == "nt" else ['quo"te.png'])]:
        body = (
            b'--B\r\ncontent-disposition: form-data; name="image"; filename="'
            + name.replace('"', '\\"').encode()
            + b'"\r\nContent-Type: image/png\r\n\r\nline\r\n--not the end\r\n\r\n--B--\r\n'
        )
        headers = {"Content-Type": 'multipart/form-data; boundary="B"'}
        answer = requests.post(sim.url + "/upload/image", data=body, headers=headers, timeout=WAIT)
        assert answer.json()["name"] == name
        assert Path(sim.root, "input", name).read_bytes() == b"line\r\n--not the end\r\n"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_names_do_not_add_headers(sim: Simulator) -> None:
    name = "a\r\nX-Evil: yes.png"
    Path(sim.root, "output", name).write_bytes(b"x")
    answer = get(sim, "/view", params={"filename": name})
    assert (answer.content, "X-Evil" in answer.headers) == (b"x", False)


def test_uploads_with_the_same_name(sim: Simulator) -> None:
    names = [upload(sim, "a.b.png", data).json()["name"] for data in (b"1", b"2", b"1", b"2", b"3")]
    assert names == ["a.b.png", "a.b (1).png", "a.b.png", "a.b (1).png", "a.b (2).png"]
    assert upload(sim, "a.b.png", b"4", overwrite="yes").json()["name"] == "a.b (3).png"
    assert upload(sim, "a.b.png", b"5", overwrite="1").json()["name"] == "a.b.png"
    assert Path(sim.root, "input", "a.b.png").read_bytes() == b"5"


def test_a_file_that_a_virus_scanner_holds_for_a_moment_is_stored_and_removed(
    sim: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "replace", in_use_for(2, os.replace))
    monkeypatch.setattr(os, "unlink", in_use_for(2, os.unlink))
    for _ in range(2):  # the second one is there already, so its copy is removed
        form = {"image": ("a.png", draw(8, 8, 1, ["A"]))}
        answer = requests.post(sim.url + "/upload/image", files=form, timeout=WAIT)
        assert (answer.status_code, answer.json()["name"]) == (200, "a.png")
    assert os.listdir(sim.folder("input")) == ["a.png"]


def test_a_mask_needs_its_original(sim: Simulator) -> None:
    Path(sim.root, "output", "o.png").write_bytes(draw(30, 20, 1, ["X"]))
    files = {"image": ("m.png", b"mask")}
    for ref, status, written in (
        (None, 500, False),
        ("not JSON", 500, False),
        ('{"filename": "none.png"}', 200, False),
        ('{"filename": "../secret.png"}', 200, False),
        ('{"filename": "o.png"}', 200, True),
    ):
        form = {"original_ref": ref} if ref else {}
        answer = requests.post(sim.url + "/upload/mask", files=files, data=form, timeout=WAIT)
        assert answer.status_code == status
        assert Path(sim.root, "input", "m.png").exists() == written
    assert struct.unpack(">II", Path(sim.root, "input", "m.png").read_bytes()[16:24]) == (30, 20)


def test_big_uploads_do_not_fill_the_memory(sim: Simulator) -> None:
    import tracemalloc

    size = 50 << 20
    head = b'--B\r\nContent-Disposition: form-data; name="image"; filename="big.bin"\r\n\r\n'
    piece = b"0123456789abcdef" * 4096

    def body() -> Iterator[bytes]:
        yield head
        for _ in range(size // len(piece)):
            yield piece
        yield b"\r\n--B--\r\n"

    headers = {"Content-Type": "multipart/form-data; boundary=B"}
    tracemalloc.start()
    try:
        answer = requests.post(  # a generator is sent in chunks
            sim.url + "/upload/image", data=body(), headers=headers, timeout=30
        )
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert answer.json()["name"] == "big.bin"
    assert Path(sim.root, "input", "big.bin").stat().st_size == size


@pytest.mark.parametrize("content_type", ["multipart/form-data", "text/plain; boundary=B", ""])
def test_an_upload_without_a_form_or_its_boundary_is_refused(sim: Simulator, content_type: str) -> None:
    headers = {"Content-Type": content_type}
    answer = requests.post(sim.url + "/upload/image", data=b"--B--", headers=headers, timeout=WAIT)
    assert answer.status_code == 400


def test_a_range_counts_beside_an_etag_and_not_beside_an_older_date(sim: Simulator) -> None:
    """As aiohttp does it: an ETag in If-Range is ignored, whatever it is."""
    submit(sim, slow())
    path = "/view?filename=slow_00001_.png"
    until(lambda: get(sim, path).status_code == 200)
    whole = get(sim, path)
    assert whole.headers["ETag"].startswith('"') and "Last-Modified" in whole.headers

    part = {"Range": "bytes=10-"}
    for if_range in (whole.headers["ETag"], '"other"', whole.headers["Last-Modified"]):
        answer = get(sim, path, headers={**part, "If-Range": if_range})
        assert (answer.status_code, answer.content) == (206, whole.content[10:])
        assert answer.headers["ETag"] == whole.headers["ETag"]
    answer = get(sim, path, headers={**part, "If-Range": "Mon, 01 Jan 2001 00:00:00 GMT"})
    assert (answer.status_code, answer.content) == (200, whole.content)
