"""Stories of continuous mode: files that ComfyUI made."""

from __future__ import annotations

from typing import Any

import pytest
from served import PNG, Middleware, put_file, read_answer


def test_a_file_is_streamed_with_its_type_and_ranges(service: Middleware, comfyui: Any) -> None:
    data = bytes(range(256)) * 2000
    put_file(comfyui, "clip.mp4", data)
    whole = service.get("/view?filename=clip.mp4")
    assert (whole.status, whole.body, whole.headers["content-type"]) == (200, data, "video/mp4")
    assert whole.headers["content-disposition"].startswith("inline")
    part = service.get("/view?filename=clip.mp4", Range="bytes=10-19")
    assert (part.status, part.body) == (206, data[10:20])
    assert part.headers["content-range"] == "bytes 10-19/%d" % len(data)
    assert service.get("/view?filename=clip.mp4", Range="bytes=9999999-").status == 416
    download = service.get("/view?filename=clip.mp4&download=1")
    assert download.headers["content-disposition"].startswith("attachment")


def test_a_web_page_in_place_of_a_file_is_an_error(service: Middleware, comfyui: Any) -> None:
    put_file(comfyui, "cat.png", PNG)
    comfyui.faults.web_pages = ["text/html"]
    answer = service.get("/view?filename=cat.png")
    assert answer.status == 503
    assert "a web page arrived instead of the file" in answer.json["error"]["message"]
    assert service.get("/view?filename=cat.png").body == PNG


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("encoding", ["gzip", "br"])
def test_a_file_that_comes_compressed_is_an_error(
    encoding: str, method: str, service: Middleware, comfyui: Any
) -> None:
    """Its length would be that of the packed file, and the connection could not be kept."""
    put_file(comfyui, "cat.png", PNG)
    comfyui.faults.bodies = {"/view": encoding}
    with service.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(b"%s /view?filename=cat.png HTTP/1.1\r\nHost: localhost\r\n\r\n" % method.encode())
        answer = read_answer(file, method)
        assert answer.status == 502
        if method == "GET":
            assert answer.error == "compressed_file"
            assert "it arrived compressed, which the runner did not ask for" in answer.json["error"]["message"]
        comfyui.faults.bodies = {}
        connection.sendall(b"GET /view?filename=cat.png HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert read_answer(file).body == PNG  # on the same connection
    asked_for = [headers["Accept-Encoding"] for _, path, headers in comfyui.received if path.startswith("/view")]
    assert set(asked_for) == {"identity"}


@pytest.mark.parametrize("name", ["page.html", "drawing.svg", "page.xhtml", "style.css", "data.json", "no_ending"])
def test_what_a_browser_might_run_is_downloaded(service: Middleware, comfyui: Any, name: str) -> None:
    put_file(comfyui, name, b"<script>alert(1)</script>")
    answer = service.get("/view?filename=" + name)
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    "query",
    [
        "",
        "filename=",
        "filename=../secret.txt",
        "filename=..%2Fsecret.txt",
        "filename=..%5Csecret.txt",
        "filename=/etc/passwd",
        "filename=a.png&subfolder=../..",
        "filename=a.png&subfolder=/etc",
        "filename=a.png&type=nonsense",
        "filename=passwd&subfolder=../../../../etc",
    ],
)
def test_no_file_outside_of_comfyuis_folders_is_shown(service: Middleware, query: str) -> None:
    answer = service.get("/view?" + query)
    assert answer.status in (400, 404)
    assert answer.json["error"]["type"]


def test_a_file_that_is_not_there_is_not_found(service: Middleware) -> None:
    assert service.get("/view?filename=none.png").status == 404


def test_a_name_with_odd_characters_stays_in_its_header(service: Middleware, comfyui: Any) -> None:
    put_file(comfyui, '狐 "a".png', PNG)
    answer = service.get("/view?filename=%E7%8B%90%20%22a%22.png")
    assert answer.status == 200
    names = """filename="_ _a_.png"; filename*=UTF-8''%E7%8B%90%20%22a%22.png"""
    assert answer.headers["content-disposition"] == f"inline; {names}"
    assert service.get("/view?filename=%0d%0aSet-Cookie:x.png").status in (400, 404)


def test_a_file_that_the_client_has_is_not_sent_again(service: Middleware, comfyui: Any) -> None:
    """ComfyUI's 304 has no length."""
    put_file(comfyui, "kept.png", PNG)
    etag = service.get("/view?filename=kept.png").headers["etag"]
    head = "GET /view?filename=kept.png HTTP/1.1\r\nHost: localhost\r\nIf-None-Match: %s\r\n\r\n"
    with service.connect() as connection, connection.makefile("rb") as file:
        for _ in range(2):  # on one connection
            connection.sendall((head % etag).encode())
            answer = read_answer(file)
            assert (answer.status, answer.headers["etag"]) == (304, etag)
        connection.sendall((head % '"another"').encode())
        assert read_answer(file).body == PNG


def test_asking_for_a_file_with_head_leaves_no_connection_behind(service: Middleware, comfyui: Any) -> None:
    put_file(comfyui, "head.png", PNG)
    with service.connect() as connection, connection.makefile("rb") as file:
        for _ in range(15):
            connection.sendall(b"HEAD /view?filename=head.png HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = read_answer(file, "HEAD")
            assert (answer.status, answer.headers["content-length"]) == (200, str(len(PNG)))
