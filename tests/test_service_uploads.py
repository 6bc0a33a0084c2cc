"""Stories of continuous mode: uploads."""

from __future__ import annotations

import os
from typing import Any, List

import pytest
from served import LOADER, PNG, TWO_LOADERS, Make, Middleware, multipart, read_answer, submitted
from support import node, wait_until

from comfyui_runner.simulator import draw


def uploads(simulator: Any) -> int:
    return [path for _, path in simulator.requests].count("/upload/image")


def files(simulator: Any) -> List[str]:
    return sorted(name for _, _, names in os.walk(simulator.root) for name in names)


def test_a_form_is_a_form_in_capitals_too(service: Middleware) -> None:
    service.hold(LOADER)
    body, content_type = multipart("capitals.png", PNG)
    kind, boundary = content_type.split(";")
    assert kind == "multipart/form-data"
    answer = service.post("/upload/image", body, Content_Type=f"Multipart/Form-Data;{boundary}")
    assert (answer.status, answer.json["name"]) == (200, "capitals.png")


def test_a_picture_goes_into_the_one_loader(service: Middleware, comfyui: Any) -> None:
    service.hold(LOADER)
    answer = service.upload(name="only.png")
    assert answer.status == 200
    assert (answer.json["name"], answer.json["nodes"]) == ("only.png", ["1"])
    assert service.held()["1"]["inputs"]["image"] == "only.png"
    with open(os.path.join(comfyui.folder("input"), "only.png"), "rb") as file:
        assert file.read() == PNG
    assert service.end(service.start())["phase"] == "success"


def test_the_name_that_comfyui_gives_is_the_one_that_is_set(service: Middleware) -> None:
    service.hold(LOADER)
    assert service.upload(name="taken.png").json["name"] == "taken.png"
    other = draw(8, 8, 2, ["B"])
    assert service.upload(name="taken.png", data=other).json["name"] == "taken (1).png"
    assert service.held()["1"]["inputs"]["image"] == "taken (1).png"
    assert service.upload(name="taken.png", data=other, overwrite="true").json["name"] == "taken.png"
    assert service.held()["1"]["inputs"]["image"] == "taken.png"


@pytest.mark.parametrize(
    ("fields", "value"),
    [
        ({"subfolder": "deep"}, "deep/f.png"),
        ({"type": "temp"}, "f.png [temp]"),
        ({"type": "output", "subfolder": "a/b"}, "a/b/f.png [output]"),
    ],
)
def test_every_field_of_the_upload_passes(service: Middleware, fields: Any, value: str) -> None:
    service.hold(LOADER)
    assert service.upload(name="f.png", **fields).status == 200
    assert service.held()["1"]["inputs"]["image"] == value
    assert service.end(service.start())["phase"] == "success"


def test_several_loaders_are_listed_and_nothing_is_forwarded(service: Middleware, comfyui: Any) -> None:
    service.hold(TWO_LOADERS)
    answer = service.upload()
    assert (answer.status, answer.error) == (409, "ambiguous_node")
    assert [(each["node_id"], each["title"]) for each in answer.json["error"]["details"]] == [
        ("1", "Photo"),
        ("2", "Style"),
    ]
    assert uploads(comfyui) == 0
    assert service.held() == TWO_LOADERS


@pytest.mark.parametrize(("name", "changed"), [("2", ["2"]), ("Style", ["2"]), ("Photo", ["1"]), ("all", ["1", "2"])])
def test_a_loader_is_named_by_id_or_title_or_all_are(service: Middleware, name: str, changed: List[str]) -> None:
    service.hold(TWO_LOADERS)
    answer = service.upload("/upload/image?node_id=" + name, "named.png")
    assert (answer.status, answer.json["nodes"]) == (200, changed)
    held = service.held()
    assert [i for i in ("1", "2") if held[i]["inputs"]["image"] == "named.png"] == changed


@pytest.mark.parametrize(
    ("name", "status", "reason"),
    [("99", 400, "no_such_node"), ("4", 409, "no_loader"), ("LoadImage", 409, "ambiguous_node")],
)
def test_a_node_that_loads_no_file_is_refused(
    service: Middleware, comfyui: Any, name: str, status: int, reason: str
) -> None:
    service.hold(TWO_LOADERS)
    answer = service.upload("/upload/image?node_id=" + name)
    assert (answer.status, answer.error) == (status, reason)
    assert uploads(comfyui) == 0


def test_without_a_loader_nothing_is_forwarded(service: Middleware, comfyui: Any) -> None:
    answer = service.upload()
    assert (answer.status, answer.error) == (409, "no_loader")
    assert uploads(comfyui) == 0


def test_masks_videos_and_audio_are_loaders_by_their_marks(service: Middleware) -> None:
    for class_type, name, file_name in [("LoadVideo", "file", "a.mp4"), ("LoadAudio", "audio", "a.flac")]:
        service.service.held.hold({"1": node(class_type, **{name: "old"})})
        assert service.upload(name=file_name, data=b"media").status == 200
        assert service.held()["1"]["inputs"][name] == file_name
    service.service.held.hold({"1": node("LoadImageMask", image="example.png", channel="red")})
    assert service.upload(name="mask.png").json["nodes"] == ["1"]


def test_an_upload_that_is_not_a_form_is_refused(service: Middleware, comfyui: Any) -> None:
    service.hold(LOADER)
    assert service.post("/upload/image", PNG, Content_Type="image/png").error == "not_multipart"
    assert service.post("/upload/image", b"").error == "not_multipart"
    assert uploads(comfyui) == 0


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (b'name="file"; filename="cat.png"\r\n\r\n' + PNG, 'has "file", but not the field "image": curl -F image=@'),
        (b'name="image"\r\n\r\ncat.png', 'The field "image" has no file: curl -F image=@cat.png, with the @.'),
        (b'name="image"; filename="a.png"\r\n\r\n<html>', "a.png is not a picture: it is a web page."),
        (b'name="image"; filename="a.png"\r\n\r\n', "a.png is not a picture: it is empty."),
    ],
)
def test_a_form_without_a_picture_says_what_is_needed(
    service: Middleware, comfyui: Any, form: bytes, words: str
) -> None:
    service.hold(LOADER)
    body = b"--cut\r\nContent-Disposition: form-data; " + form + b"\r\n--cut--\r\n"
    answer = service.post("/upload/image", body, Content_Type="multipart/form-data; boundary=cut")
    assert answer.status == 400
    assert words in answer.json["error"]["message"]
    assert uploads(comfyui) == 0


def test_a_picture_of_an_odd_format_is_taken_where_it_is_forced(service: Middleware) -> None:
    service.hold(LOADER)
    targa = b"\0\0\2" + bytes(15) + b"pixels"
    answer = service.upload(name="odd.tga", data=targa)
    assert (answer.status, answer.error) == (400, "not_a_picture")
    assert "its format is not known" in answer.json["error"]["message"]
    assert "?force=true" in answer.json["error"]["message"]
    refusal = service.upload("/upload/image?force=1", "odd.tga", targa)
    assert (refusal.status, refusal.error) == (400, "wrong_value")
    assert service.upload("/upload/image?force=true", "odd.tga", targa).status == 200
    assert service.held()["1"]["inputs"]["image"] == "odd.tga"


def test_an_upload_that_comfyui_refuses_gets_400(service: Middleware) -> None:
    service.hold(LOADER)
    nothing = service.post("/upload/image", b"--cut--\r\n", Content_Type="multipart/form-data; boundary=cut")
    assert nothing.status == 400
    fields: Any
    for fields in ({"subfolder": "../../.."}, {"subfolder": "/etc"}):
        answer = service.upload(name="out.png", **fields)
        assert answer.status == 400, answer
    assert service.held() == LOADER


def test_no_name_leads_out_of_comfyuis_folders(service: Middleware, comfyui: Any) -> None:
    service.hold(LOADER)
    before = {name for name in os.listdir(os.path.dirname(comfyui.root)) if "evil" in name}
    for name in ("../evil.png", "..\\\\evil.png", "/tmp/evil-of-the-tests.png"):
        assert service.upload(name=name).status in (200, 400)
    assert {name for name in os.listdir(os.path.dirname(comfyui.root)) if "evil" in name} == before
    assert not os.path.exists("/tmp/evil-of-the-tests.png")


def test_with_auto_execute_an_upload_runs(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator, "--auto-execute", prompt=LOADER)
    answer = service.upload()
    assert (answer.status, answer.json["name"]) == (202, "cat.png")
    assert service.end(answer.json["prompt_id"])["phase"] == "success"
    assert submitted(simulator)[-1]["1"]["inputs"]["image"] == "cat.png"


def test_a_client_that_goes_away_in_the_middle_leaves_nothing_in_comfyui(service: Middleware, comfyui: Any) -> None:
    service.hold(LOADER)
    before = files(comfyui)
    body, content_type = multipart("half.png", b"x" * 300000)
    head = "POST /upload/image HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
    with service.connect() as connection:
        connection.sendall((head % (content_type, len(body))).encode() + body[:200000])
    wait_until(lambda: not len(service.listener.places), what="the end of the connection")
    assert uploads(comfyui) == 0
    assert files(comfyui) == before
    assert service.held() == LOADER


def test_too_large_an_upload_is_refused_before_its_body_is_read(service: Middleware, comfyui: Any) -> None:
    service.hold(LOADER)
    head = b"POST /upload/image HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=cut\r\n"
    answer = service.raw(head + b"Content-Length: %d\r\n\r\n" % (5 << 20))
    assert (answer.status, answer.error) == (413, "too_large")
    assert answer.headers["connection"] == "close"
    assert uploads(comfyui) == 0


def test_a_client_that_sends_on_can_still_read_that_it_is_too_large(service: Middleware) -> None:
    service.hold(LOADER)
    for _ in range(5):
        answer = service.upload(data=b"x" * (5 << 20))
        assert (answer.status, answer.error) == (413, "too_large")
        assert service.call("PUT", "/workflow", b" " * ((16 << 20) + 1)).status == 413


def test_json_of_more_than_16_mib_is_refused(service: Middleware) -> None:
    for method, path in [
        ("PUT", "/workflow"),
        ("POST", "/update/prompt"),
        ("POST", "/update/inputs"),
        ("POST", "/queue"),
        ("POST", "/prompt"),
        ("POST", "/interrupt"),
        ("POST", "/login"),
    ]:
        head = "%s %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (method, path, (16 << 20) + 1)
        assert service.raw(head.encode()).status == 413


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/upload/image", "Content-Type: multipart/form-data; boundary=cut\r\nContent-Length: 99999999", 413),
        ("/upload/image", "Content-Type: image/png\r\nContent-Length: 10", 400),
        ("/upload/image", "Origin: http://evil.example\r\nContent-Length: 10", 403),
        ("/upload/image?node_id=99", "Content-Type: multipart/form-data; boundary=cut\r\nContent-Length: 10", 400),
        ("/nowhere", "Content-Length: 10", 404),
        ("/status", "Content-Length: 10", 405),
    ],
)
def test_a_client_that_asks_first_gets_the_refusal_at_once(
    service: Middleware, path: str, headers: str, status: int
) -> None:
    service.hold(LOADER)
    head = "POST %s HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n%s\r\n\r\n" % (path, headers)
    answer = service.raw(head.encode())
    assert answer.status == status
    assert answer.headers["connection"] == "close"  # whether the body comes now cannot be known


def test_a_client_that_asks_first_is_told_to_go_on(service: Middleware) -> None:
    service.hold(LOADER)
    body, content_type = multipart("asked.png", PNG)
    head = (
        "POST /upload/image HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Type: %s\r\n" % content_type
    )
    with service.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body))
        assert read_answer(file).status == 100
        connection.sendall(body)
        assert read_answer(file).json["name"] == "asked.png"
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert read_answer(file).status == 200
