"""The simulator's rules that need no server: ranges, access, forms, the order of nodes, jobs."""

from __future__ import annotations

import base64
import io
import time
from email.message import Message
from pathlib import Path
from typing import Any, List, Optional

import pytest
from simulated import Json, txt2img

from comfyui_runner.simulator.bodies import Body, Cut, TooLarge
from comfyui_runner.simulator.folders import (
    IN_USE_ERRORS,
    PAUSES_WHILE_IN_USE,
    guess_media_type,
    path_inside,
    split_annotation,
    when_not_in_use,
)
from comfyui_runner.simulator.forms import Upload, discard_form, parse_disposition, read_form
from comfyui_runner.simulator.http_request import is_authorized, is_foreign
from comfyui_runner.simulator.jobs import summarize_outputs
from comfyui_runner.simulator.order import execution_order
from comfyui_runner.simulator.replies import Range, choose_range
from comfyui_runner.simulator.validation import types_fit


def headers_of(**headers: str) -> Message:
    message = Message()
    for name, value in headers.items():
        message[name.replace("_", "-")] = value
    return message


# ------------------------------------------------------------------------------------------------
# HTTP
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=2-4", Range(206, 2, 3, "bytes 2-4/10")),
        ("bytes=7-", Range(206, 7, 3, "bytes 7-9/10")),
        ("bytes=-3", Range(206, 7, 3, "bytes 7-9/10")),
        ("bytes=0-99", Range(206, 0, 10, "bytes 0-9/10")),
        ("bytes=-99", Range(206, 0, 10, "bytes 0-9/10")),
        ("bytes=10-", Range(416, 0, 0, "bytes */10")),
        ("bytes=5-2", Range(416, 0, 0, "bytes */10")),
        ("bytes=-0", Range(416, 0, 0, "bytes */10")),
        ("bytes=-", Range(200, 0, 10, "")),
        ("lines=1-2", Range(200, 0, 10, "")),
        ("", Range(200, 0, 10, "")),
    ],
)
def test_a_part_of_ten_bytes(header: str, expected: Range) -> None:
    assert choose_range(header, 10) == expected


@pytest.mark.parametrize(
    ("authorization", "expected"),
    [
        ("Bearer s3cret", True),
        ("bearer s3cret", True),
        ("BEARER  s3cret ", True),
        ("BASIC " + base64.b64encode(b"a:s3cret ").decode(), True),
        ("Basic " + base64.b64encode(b":s3cret").decode(), True),
        ("Basic " + base64.b64encode(b"user:a:s3cret").decode(), False),
        ("Basic " + base64.b64encode(b"user:s3cret").decode(), True),
        ("Basic " + base64.b64encode(b"s3cret").decode(), False),
        ("Bearer other", False),
        ("Digest s3cret", False),
        ("s3cret", False),
        ("", False),
    ],
)
def test_who_has_the_token(authorization: str, expected: bool) -> None:
    assert is_authorized(headers_of(Authorization=authorization), "s3cret") is expected
    assert is_authorized(headers_of(Authorization=authorization), None)


@pytest.mark.parametrize(
    ("host", "origin", "expected"),
    [
        ("127.0.0.1:8188", "http://127.0.0.1:8188", False),
        ("127.0.0.1:8188", "http://127.0.0.1:8189", True),
        ("127.0.0.1:8188", "http://evil.example", True),
        ("localhost:8188", "http://evil.example", True),
        ("[::1]:8188", "http://evil.example", True),
        ("gpu.example:8188", "http://evil.example", False),  # not a loopback address
        ("127.0.0.1:8188", "", False),
        ("127.9.9.9:8188", "http://evil.example", True),
        ("localhost:8188", "https://localhost:8188", False),
        ("localhost", "http://localhost", False),
        ("localhost", "http://localhost:8188", True),
        ("localhost:8188", "http://127.0.0.1:8188", True),
        ("127.0.0.1.example:1", "http://evil.example", True),  # by its beginning only
        ("", "http://evil.example", False),
    ],
)
def test_pages_of_other_origins(host: str, origin: str, expected: bool) -> None:
    assert is_foreign(headers_of(Host=host, Origin=origin), refuses_cross_site=True) is expected


def test_newer_servers_refuse_what_a_browser_calls_cross_site() -> None:
    headers = headers_of(Host="gpu.example", Sec_Fetch_Site="cross-site")
    assert is_foreign(headers, refuses_cross_site=True)
    assert not is_foreign(headers, refuses_cross_site=False)


# ------------------------------------------------------------------------------------------------
# Bodies and forms
# ------------------------------------------------------------------------------------------------


class InPieces(io.BytesIO):
    """A connection on which so many bytes come at a time."""

    def __init__(self, data: bytes, most: int) -> None:
        super().__init__(data)
        self.most = most

    def read(self, size: Optional[int] = -1) -> bytes:
        return super().read(min(self.most, self.most if size is None or size < 0 else size))


def body_of(data: bytes, limit: int = 1 << 20, most: int = 1 << 16, **headers: str) -> Body:
    headers.setdefault("Content_Length", str(len(data)))
    return Body(InPieces(data, most), headers_of(**headers), limit)


def test_a_body_ends_where_its_head_says() -> None:
    assert body_of(b"12345 and the next request", Content_Length="5").read_all() == b"12345"
    assert body_of(b"", Content_Length="").read_all() == b""


def test_chunks_are_put_together() -> None:
    data = b"5\r\n12345\r\n3;note=x\r\n678\r\n0\r\ntrailer: x\r\n\r\nnext"
    for most in (1, 2, 100):
        assert body_of(data, most=most, Transfer_Encoding="chunked").read_all() == b"12345678"


@pytest.mark.parametrize(
    ("data", "headers"),
    [
        (b"123", {"Content_Length": "5"}),
        (b"123", {"Content_Length": "-5"}),
        (b"zz\r\n", {"Transfer_Encoding": "chunked"}),
        (b"5\r\n123", {"Transfer_Encoding": "chunked"}),
    ],
)
def test_a_body_that_breaks_off_cuts_the_connection(data: bytes, headers: Any) -> None:
    with pytest.raises(Cut):
        body_of(data, **headers).read_all()


def test_a_body_over_the_limit_is_refused_and_can_be_dropped() -> None:
    body = body_of(b"x" * 100, limit=50, most=30)
    with pytest.raises(TooLarge):
        body.read_all()
    body.drop()
    assert body.seen == 100


FORM = (
    b'--B\r\nContent-Disposition: form-data; name="image"; filename="a.bin"\r\n\r\n'
    b"line\r\n--not the end\r\n\r\n"
    b'--B\r\nContent-Disposition: form-data; name="type"\r\n\r\ninput\r\n--B--\r\n'
)


@pytest.mark.parametrize("most", [1, 2, 3, 7, 1000])
def test_a_form_is_read_whatever_the_pieces(most: int, tmp_path: Path) -> None:
    form = read_form(body_of(FORM, most=most), "B", str(tmp_path))
    image = form["image"]
    assert isinstance(image, Upload)
    assert (image.filename, form["type"]) == ("a.bin", "input")
    assert Path(image.path).parent == tmp_path
    assert Path(image.path).name.startswith(".upload-")  # a hidden file
    assert Path(image.path).read_bytes() == b"line\r\n--not the end\r\n"
    discard_form(form)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cut", range(0, len(FORM) - 4, 9))
def test_a_form_that_breaks_off_leaves_no_file(cut: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        read_form(body_of(FORM[:cut]), "B", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("disposition", "expected"),
    [
        ('form-data; name="image"; filename="a b.png"', {"name": "image", "filename": "a b.png"}),
        ("form-data; name=image; filename=a.png", {"name": "image", "filename": "a.png"}),
        (r'form-data; filename="quo\"te.png"', {"filename": 'quo"te.png'}),
        ("form-data; filename*=UTF-8''%C3%BCml.png", {"filename": "\u00fcml.png"}),
        ("form-data", {}),
    ],
)
def test_the_name_of_a_field(disposition: str, expected: Json) -> None:
    assert parse_disposition(f"Content-Disposition: {disposition}\r\n".encode()) == expected
    assert parse_disposition(b"Content-Type: image/png\r\n") == {}


# ------------------------------------------------------------------------------------------------
# Names of files
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.png", ("a.png", "input")),
        ("a.png [output]", ("a.png", "output")),
        ("a.png[temp]", ("a.png", "temp")),
        ("a.png [other]", ("a.png [other]", "input")),
        ("[output]", ("", "output")),
    ],
)
def test_a_name_may_say_its_folder(name: str, expected: Any) -> None:
    assert split_annotation(name, "input") == expected


def test_media_types_are_the_same_on_every_system() -> None:
    names = {"a.glb": "model/gltf-binary", "a.flac": "audio/flac", "a.webp": "image/webp", "a.png": "image/png"}
    for name, expected in {**names, "a.unknown": "application/octet-stream"}.items():
        assert guess_media_type(name) == expected


def test_a_file_in_use_is_tried_again_while_windows_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (sum(PAUSES_WHILE_IN_USE), IN_USE_ERRORS) == (2.5, (5, 32, 33))
    monkeypatch.setattr("comfyui_runner.simulator.folders.PAUSES_WHILE_IN_USE", (0.0, 0.01, 0.02))
    for winerror, failures, tries in ((5, 0, 1), (32, 1, 2), (33, 3, 4), (32, 4, None), (2, 1, None), (None, 1, None)):
        tried: List[float] = []

        def act(winerror: Any = winerror, failures: int = failures, tried: List[float] = tried) -> None:
            tried.append(time.monotonic())
            if len(tried) <= failures:
                error = OSError("in use")
                error.winerror = winerror  # type: ignore[attr-defined,unused-ignore]
                raise error

        if tries is not None:
            when_not_in_use(act)
            assert len(tried) == tries
            assert tried[-1] - tried[0] >= (0.025 if tries == 4 else 0)
        else:
            with pytest.raises(OSError, match="in use"):
                when_not_in_use(act)
            assert len(tried) == (4 if winerror == 32 else 1)


def test_paths_stay_in_their_folder(tmp_path: Path) -> None:
    folder = tmp_path / "output"
    folder.mkdir()
    (tmp_path / "outputs").mkdir()
    assert path_inside(str(folder), "x/../a.png") == str((folder / "a.png").resolve())
    assert path_inside(str(folder), "") == str(folder.resolve())
    for name in ("../a.png", "../outputs/a.png", str(tmp_path / "a.png")):
        with pytest.raises(PermissionError):
            path_inside(str(folder), name)


# ------------------------------------------------------------------------------------------------
# Prompts
# ------------------------------------------------------------------------------------------------


def order_of(prompt: Json, outputs: List[str], *cached: str) -> List[str]:
    return execution_order(prompt, outputs, lambda node_id: node_id in cached)


def test_what_leads_to_an_output_soon_runs_first() -> None:
    prompt = txt2img()
    assert order_of(prompt, ["9"]) == ["4", "5", "7", "6", "3", "8", "9"]
    assert order_of(prompt, ["9"], "4", "5", "6", "7") == ["3", "8", "9"]
    prompt["1"] = {"class_type": "TextOut", "inputs": {"text": "x"}}
    assert order_of(prompt, ["9", "1"])[0] == "1"
    assert order_of(prompt, ["1"]) == ["1"]
    prompt["2"] = {"class_type": "EmptyImage", "inputs": {}}
    prompt["10"] = {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}}
    assert order_of(prompt, ["9", "10"])[:2] == ["2", "10"]


@pytest.mark.parametrize(
    ("offered", "accepted", "expected"),
    [
        ("IMAGE", "IMAGE", True),
        ("IMAGE", "MASK", False),
        ("IMAGE", "*", True),
        ("*", "MASK", True),
        ("IMAGE", "MASK,IMAGE", True),
        ("MASK,IMAGE", "IMAGE", True),
        ("MASK,IMAGE", "LATENT,IMAGE", True),
        ("MASK,IMAGE", "LATENT,VAE", False),
        ("IMAGE", "LATENT,*", True),
        ("LATENT,*", "IMAGE", True),
        ("*", ["a"], False),
        (["a"], "*", False),
        (["a"], ["a"], True),
        (["a"], ["b"], False),
        ("IMAGE", ["a"], False),
    ],
)
def test_types_that_fit(offered: Any, accepted: Any, expected: bool) -> None:
    assert types_fit(offered, accepted) is expected


def test_a_job_shows_a_saved_file_before_a_temporary_one_before_a_text() -> None:
    text: Json = {"text": ["x" * 2000]}
    report = {"images": [{"filename": "a.txt", "type": "output"}]}
    temporary = {"images": [{"filename": "a.png", "type": "temp"}]}
    saved = {"images": [{"filename": "b.png", "type": "output"}], "animated": [True]}
    unknown = {"other": [{"filename": "a.bin", "type": "output"}, 7]}
    ranked = [saved, temporary, report, text]
    for number in range(len(ranked)):
        outputs = {str(key): ui for key, ui in enumerate([unknown, *ranked[number:][::-1]])}
        summary = summarize_outputs(outputs)
        files = len(ranked) - number - 1  # all but the text
        assert (summary["outputs_count"], summary["previewable_outputs_count"]) == (files + 1, files)
        best = summary["preview_output"]
        assert best["nodeId"] == str(len(ranked) - number)
    assert (best["content"], best["truncated"]) == ("x" * 1024, True)
    assert summarize_outputs({}) == {"outputs_count": 0, "previewable_outputs_count": 0}
    assert summarize_outputs({"1": saved, "2": saved})["preview_output"]["nodeId"] == "1"
