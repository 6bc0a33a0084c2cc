"""What the simulator puts on the wire: the heads of its answers, their bodies, the frames of its sockets."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import socket
import struct
import threading
import time
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Dict, List, Optional, cast

import pytest
import requests
from simulated import KEY, WAIT, WS, Json, accept, busy, get, interrupt, raw, receive, slow, txt2img, until
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from comfyui_runner.simulator import Faults, Simulator, draw
from comfyui_runner.simulator.command import (
    describe_failure,
    main,
    make_parser,
    make_simulator,
    parse_fault,
)
from comfyui_runner.simulator.life import Life
from comfyui_runner.simulator.order import execution_order
from comfyui_runner.simulator.sockets import Socket, abort


def head_of(sim: Simulator, method: str, path: str, *lines: str, body: bytes = b"") -> List[str]:
    """The lines of an answer's head, without its Date."""
    length = [f"Content-Length: {len(body)}"] if body else []
    request = [f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", *length, *lines, "", ""]
    answered = raw(sim, "\r\n".join(request).encode() + body).partition(b"\r\n\r\n")[0]
    *found, date = answered.decode("latin-1").split("\r\n")
    assert re.fullmatch(r"Date: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", date)
    return found


def body_of(sim: Simulator, method: str, path: str, *lines: str) -> bytes:
    request = [f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", *lines, "", ""]
    return raw(sim, "\r\n".join(request).encode()).partition(b"\r\n\r\n")[2]


JSON, TEXT = "Content-Type: application/json; charset=utf-8", "Content-Type: text/plain; charset=utf-8"
OCTETS, CLOSE = "Content-Type: application/octet-stream", "Connection: close"


# ------------------------------------------------------------------------------------------------
# HTTP
# ------------------------------------------------------------------------------------------------


def test_the_heads_of_answers(simulate: Callable[..., Simulator]) -> None:
    sim = simulate(max_upload_size=10, base_path="base")
    sim.faults.http_status = {"/embeddings": 302, "/extensions": 599, "/models/x": 299}
    sim.faults.http_status.update({"/models/a": 300, "/models/b": 399, "/models/c": 400})
    moved = "Location: /elsewhere"
    for method, path, lines, expected in (
        ("GET", "/base/prompt", (), ["200 OK", JSON, CLOSE, "Content-Length: 37"]),
        ("HEAD", "/base/prompt", (), ["200 OK", JSON, CLOSE, "Content-Length: 37"]),
        ("GET", "/base/nowhere", (), ["404 Not Found", OCTETS, CLOSE, "Content-Length: 0"]),
        ("GET", "/prompt", (), ["404 Not Found", OCTETS, CLOSE, "Content-Length: 0"]),
        ("PUT", "/base/api/queue", (), ["405 Method Not Allowed", TEXT, CLOSE, "Content-Length: 23"]),
        ("POST", "/base/free", (), ["500 Internal Server Error", TEXT, CLOSE, "Content-Length: 55"]),
        ("GET", "/base/view", (), ["404 Not Found", CLOSE, "Content-Length: 0"]),
        ("GET", "/base/queue", ("Sec-Fetch-Site: cross-site",), ["403 Forbidden", CLOSE, "Content-Length: 0"]),
        ("GET", "/base/embeddings", (), ["302 Found", moved, TEXT, CLOSE, "Content-Length: 14"]),
        ("GET", "/base/models/a", (), ["300 Multiple Choices", moved, TEXT, CLOSE, "Content-Length: 14"]),
        ("GET", "/base/models/b", (), ["399 Simulated", moved, TEXT, CLOSE, "Content-Length: 14"]),
        ("GET", "/base/models/c", (), ["400 Bad Request", TEXT, CLOSE, "Content-Length: 14"]),
        ("GET", "/base/extensions", (), ["599 Simulated", TEXT, CLOSE, "Content-Length: 14"]),
        ("GET", "/base/api/models/x", (), ["299 Simulated", TEXT, CLOSE, "Content-Length: 14"]),
    ):
        first, *rest = head_of(sim, method, path, *lines)
        assert [first.replace("HTTP/1.1 ", ""), *rest] == expected, path
    assert body_of(sim, "HEAD", "/base/prompt") == b""
    assert body_of(sim, "GET", "/base/embeddings") == b"302: simulated"
    too_large = b"Maximum request body size 10 exceeded, actual body size 11"
    answer = raw(sim, b"POST /base/free HTTP/1.1\r\nConnection: close\r\nContent-Length: 11\r\n\r\n" + b"x" * 11)
    assert answer.startswith(b"HTTP/1.1 413 ") and answer.endswith(too_large)
    answer = raw(sim, b"POST /base/free HTTP/1.1\r\nConnection: close\r\nContent-Length: 10\r\n\r\n" + b'"12345678"')
    assert answer.startswith(b"HTTP/1.1 500 ")
    sim.restart()  # although the port has just been in use
    assert get(sim, "/prompt").ok


def test_a_connection_that_is_kept_has_no_close(sim: Simulator) -> None:
    with requests.Session() as session:
        first = session.get(sim.url + "/queue", timeout=WAIT)
        assert "Connection" not in first.headers
        connections = list(sim._server.connections)  # type: ignore[union-attr]
        session.post(sim.url + "/nowhere", data=b"x" * 100, timeout=WAIT)
        Path(sim.root, "output", "a.bin").write_bytes(b"0123456789")
        sim.faults.cut_files = [10]  # no less than it has
        assert session.get(sim.url + "/view?filename=a.bin", timeout=WAIT).content == b"0123456789"
        session.get(sim.url + "/queue", timeout=WAIT)
        assert list(sim._server.connections) == connections  # type: ignore[union-attr]


def test_who_has_no_token_is_asked_for_one(simulate: Callable[..., Simulator]) -> None:
    sim = simulate(token="s3cret")
    challenge = 'WWW-Authenticate: Bearer realm="ComfyUI simulator"'
    refused = ["HTTP/1.1 401 Unauthorized", challenge, TEXT, CLOSE, "Content-Length: 17"]
    assert head_of(sim, "GET", "/queue") == refused
    assert body_of(sim, "GET", "/queue") == b"401: Unauthorized"
    assert head_of(sim, "GET", "/queue", "Authorization: Bearer s3cret")[0] == "HTTP/1.1 200 OK"


def test_a_file_and_a_part_of_it(sim: Simulator) -> None:
    content = bytes(range(256)) * 1000  # more than is sent at a time
    path = Path(sim.root, "output", "a.bin")
    path.write_bytes(content)
    os.utime(path, (100, 100))
    etag = f'ETag: "{100 * 10**9:x}-{len(content):x}"'
    named = 'Content-Disposition: filename="a.bin"'
    begin = [named, OCTETS, etag, "Last-Modified: Thu, 01 Jan 1970 00:01:40 GMT", "Accept-Ranges: bytes"]
    beyond_the_end = f"416 {HTTPStatus(416).phrase}"  # Python 3.13 left "Requested" out
    for lines, status, more, part in (
        ((), "200 OK", ["Content-Length: 256000"], content),
        (("Range: bytes=9-11",), "206 Partial Content", ["Content-Length: 3"], content[9:12]),
        (("Range: bytes=99000-",), "206 Partial Content", ["Content-Length: 157000"], content[99000:]),
        (("Range: bytes=256000-",), beyond_the_end, ["Content-Length: 0"], b""),
        (
            ("Range: bytes=9-11", "If-Range: Thu, 01 Jan 1970 00:01:39 GMT"),
            *("200 OK", ["Content-Length: 256000"], content),
        ),
    ):
        found = head_of(sim, "GET", "/view?filename=a.bin", *lines)
        ranges = {
            "206": "Content-Range: bytes {}-{}/256000".format(*([9, 11] if len(part) == 3 else [99000, 255999])),
            "416": "Content-Range: bytes */256000",
        }
        content_range = [ranges[status[:3]]] if status[:3] in ranges else []
        assert found == ["HTTP/1.1 " + status, *begin, *content_range, CLOSE, *more], lines
        assert body_of(sim, "GET", "/view?filename=a.bin", *lines) == part
    head = head_of(sim, "HEAD", "/view?filename=a.bin")
    assert head == ["HTTP/1.1 200 OK", *begin, CLOSE, "Content-Length: 256000"]
    known = "If-None-Match: " + etag[len("ETag: ") :]
    assert head_of(sim, "GET", "/view?filename=a.bin", known) == [
        *("HTTP/1.1 304 Not Modified", named, OCTETS, etag, CLOSE)
    ]


def test_answers_with_files_are_cut_one_after_the_other(sim: Simulator) -> None:
    Path(sim.root, "output", "a.bin").write_bytes(b"0123456789")
    sim.faults.cut_files = [4, 0, 10, 11, 9]
    for expected in (b"0123", b"", b"0123456789", b"0123456789", b"012345678", b"0123456789"):
        answer = raw(sim, b"GET /view?filename=a.bin HTTP/1.1\r\nConnection: close\r\n\r\n")
        head, _, content = answer.partition(b"\r\n\r\n")
        assert b"Content-Length: 10\r\n" in head
        assert content == expected
    sim.faults.cut_files = [2]
    assert body_of(sim, "GET", "/view?filename=a.bin", "Range: bytes=5-8") == b"56"


def test_an_endless_body_comes_in_chunks(sim: Simulator) -> None:
    sim.faults.bodies = {"/queue": "drip", "/features": "endless"}
    chunks = b'a\r\n{"text": "\r\n1\r\nx\r\n1\r\nx\r\n'
    for path, begin in (("/queue", chunks), ("/features", b'a\r\n{"text": "\r\n100000\r\nxxx')):
        with socket.create_connection(("127.0.0.1", sim.port), timeout=WAIT) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            answer = b""
            while len(answer.partition(b"\r\n\r\n")[2]) < len(begin):
                answer += connection.recv(1000)
        head, _, content = answer.partition(b"\r\n\r\n")
        assert content.startswith(begin)
        assert b"\r\nTransfer-Encoding: chunked\r\n" in head + b"\r\n"
        assert b"Content-Length" not in head


def test_a_drip_takes_its_time(sim: Simulator) -> None:
    sim.faults.bodies = {"/queue": "drip"}
    begun = time.monotonic()
    with get(sim, "/queue", stream=True) as answer:
        pieces = answer.iter_content(1)
        assert b"".join(next(pieces) for _ in range(13)) == b'{"text": "xxx'
    assert time.monotonic() - begun >= 0.14


def test_requests_are_remembered_as_they_came(simulate: Callable[..., Simulator]) -> None:
    lines: List[str] = []
    sim = simulate(base_path="/base", log=lines.append)
    requests.get(sim.url + "/api/models/a%20b?c=d", headers={"X-Key": "k"}, timeout=WAIT)
    requests.post(sim.url + "/free", data=b"{", timeout=WAIT)
    assert sim.requests == [("GET", "/api/models/a b"), ("POST", "/free")]
    method, target, headers = sim.received[0]
    assert (method, target, headers["X-Key"]) == ("GET", "/base/api/models/a%20b?c=d", "k")
    assert len(lines) == 1
    assert lines[0].startswith("Traceback") and "JSONDecodeError" in lines[0]


def test_faults_of_one_path_leave_the_others_alone(sim: Simulator) -> None:
    sim.faults.cut_http = {"/history": 1, "/history/x": 1, "/queue": 0}
    for path, is_cut in (("/history/y", True), ("/history", False), ("/api/history/x", True), ("/history/x", False)):
        assert (raw(sim, f"GET {path} HTTP/1.1\r\nConnection: close\r\n\r\n".encode()) == b"") is is_cut, path
    assert sim.faults.cut_http == {"/history": 0, "/history/x": 0, "/queue": 0}
    assert get(sim, "/queue").ok
    sim.faults.http_status = {"/prompt": 503}
    sim.faults.echo = {"/queue": (500, "text"), "/prompt": (400, "json")}
    sim.faults.bodies = {"/prompt": "zstd", "/queue": "gzip"}
    with get(sim, "/prompt", stream=True) as answer:
        assert (answer.status_code, answer.headers["Content-Encoding"]) == (503, "zstd")
    answer = requests.post(sim.url + "/queue", data=b"b\xf6dy", timeout=WAIT)
    assert (answer.status_code, answer.headers["Content-Encoding"]) == (500, "gzip")
    assert answer.text.startswith("500: refused\n") and answer.text.endswith("\n\nb\ufffddy")


def test_an_answer_hangs_once_as_long_as_its_own_path_says(sim: Simulator) -> None:
    sim.faults.http_hang = {"/history/x": 0.05, "/history": 3600.0}
    begun = time.monotonic()
    assert get(sim, "/history/x").json() == {}
    assert time.monotonic() - begun >= 0.04
    assert get(sim, "/prompt").ok


def reset(connection: socket.socket) -> None:
    """Close a connection as a client that crashes does."""
    linger = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    connection.close()


def test_a_client_that_crashes_is_logged_only_between_requests(simulate: Callable[..., Simulator]) -> None:
    lines: List[str] = []
    sim = simulate(log=lines.append)
    connections = sim._server.connections  # type: ignore[union-attr]
    for begun, is_logged in ((b"POST /prompt HTTP/1.1\r\nContent-Length: 9\r\n\r\n{", False), (b"GET", True)):
        connection = socket.create_connection(("127.0.0.1", sim.port))
        connection.sendall(begun)
        until(lambda: connections)
        if not is_logged:
            until(lambda: sim.requests)
        reset(connection)
        until(lambda: not connections)
        assert ["Connection" in line for line in lines] == [True] * is_logged


def test_a_server_that_ends_cuts_who_waits(sim: Simulator) -> None:
    sim.faults.http_hang = {"/queue": 3600.0}
    answers: List[bytes] = []
    request = b"GET /queue HTTP/1.1\r\nHost: x\r\n\r\n"
    waiting = threading.Thread(target=lambda: answers.append(raw(sim, request)))
    waiting.start()
    until(lambda: sim.requests)
    begun = time.monotonic()
    sim.crash()
    waiting.join(WAIT)
    assert answers == [b""]
    assert time.monotonic() - begun < WAIT


# ------------------------------------------------------------------------------------------------
# Start and stop
# ------------------------------------------------------------------------------------------------


def test_a_temporary_installation_has_an_example(tmp_path: Path) -> None:
    with Simulator() as sim:
        root = Path(sim.root)
        assert root.name.startswith("comfyui-simulator-")
        assert sorted(path.name for path in root.iterdir()) == ["input", "output", "temp"]
        picture = (root / "input" / "example.png").read_bytes()
        assert picture == draw(512, 512, 0, ["SIMULATED", "EXAMPLE"])
        assert sim.port > 0
        sim.restart()
        assert Path(sim.root) == root and picture
    assert (root.exists(), sim.root) == (False, "")
    sim.cut_websockets()  # of none

    with Simulator() as sim:
        shutil.rmtree(sim.root)
    assert sim.root == ""

    with Simulator(root=str(tmp_path / "new" / ".." / "kept")) as sim:
        assert sim.root == os.path.realpath(tmp_path / "kept")
        assert sorted(path.name for path in Path(sim.root).iterdir()) == ["input", "output", "temp"]
        assert list(Path(sim.root, "input").iterdir()) == []
        port = sim.port
        sim.revive()
        assert sim.port == port
        shutil.rmtree(sim.folder("temp"))
        sim.restart()
        assert Path(sim.folder("temp")).is_dir()
    with Simulator(root=sim.root) as again:  # its folders are those of before
        assert again.root == sim.root
    assert Path(sim.root).is_dir()


# ------------------------------------------------------------------------------------------------
# Sockets
# ------------------------------------------------------------------------------------------------


class Kept(Socket):
    """A socket that keeps what it would send, until nothing is queued."""

    def __init__(self, life: Life, client_id: str = "me") -> None:
        super().__init__(cast(Any, SimpleNamespace()), life, client_id)
        self.batches: List[Any] = []
        self.is_cut = False

    def send_frames(self, frames: List[Any]) -> None:
        self.batches.append(frames)
        if not self.queue:
            self.stop_writing()

    def abort(self) -> None:
        self.stop_writing()
        self.is_cut = True


def test_frames_are_sent_many_at_a_time(begin: Callable[..., Life]) -> None:
    kept = Kept(begin())
    for number in range(1203):
        kept.put(str(number))
    assert kept.queued_bytes == sum(len(str(number)) for number in range(1203))
    kept.write()
    assert [len(batch) for batch in kept.batches] == [500, 500, 203]
    assert [frame for batch in kept.batches for frame in batch] == [str(number) for number in range(1203)]
    assert (kept.queued_bytes, kept.sent, kept.is_cut) == (0, 1203, False)


@pytest.mark.parametrize(("limit", "batches"), [(3, [3]), (7, [7]), (8, [7]), (None, [7]), (502, [7]), (1, [1])])
def test_a_socket_is_cut_after_so_many_frames(
    begin: Callable[..., Life], limit: Optional[int], batches: List[int]
) -> None:
    life = begin()
    life.installation.faults.cut_ws_after = limit
    kept = Kept(life)
    for _ in range(7):
        kept.put(b"x")
    kept.write()
    assert [len(batch) for batch in kept.batches] == batches
    assert kept.is_cut is (limit is not None and limit <= 7)


def test_the_frames_before_a_cut_are_counted_over_all_batches(begin: Callable[..., Life]) -> None:
    life = begin()
    life.installation.faults.cut_ws_after = 5
    kept = Kept(life)
    for count, batches, is_cut in ((3, [3], False), (4, [3, 2], True)):
        kept.closed = False
        for _ in range(count):
            kept.put("x")
        kept.write()
        assert ([len(batch) for batch in kept.batches], kept.is_cut) == (batches, is_cut)


def test_a_client_that_leaves_too_much_unread_is_cut(begin: Callable[..., Life]) -> None:
    assert Socket.limit == 2**28
    kept = Kept(begin())
    kept.limit = 10
    kept.put("12345")
    kept.put(b"67890")
    assert not kept.is_cut
    kept.put("1")
    assert kept.is_cut


def test_a_socket_that_is_over_sends_nothing_more(begin: Callable[..., Life]) -> None:
    kept = Kept(begin())
    kept.put("x")
    kept.stop_writing()
    kept.write()
    assert kept.batches == []

    class Broken(Kept):
        def send_frames(self, frames: List[Any]) -> None:
            raise BrokenPipeError

    broken = Broken(begin())
    broken.put("x")
    broken.write()
    assert (broken.sent, broken.is_cut) == (0, False)


STATUS = '{"type": "status", "data": {"status": {"exec_info": {"queue_remaining": %d}}, "sid": "me"}}'
EXECUTING = '{"type": "executing", "data": {"node": "7"}}'


def test_a_new_socket_hears_how_long_the_queue_is(begin: Callable[..., Life]) -> None:
    life = begin()
    accept(life, slow(), client_id="me")
    kept = Kept(life)
    kept.register()
    assert list(kept.queue) == [STATUS % 1]
    assert (life.sockets, life.clients) == ({"me": kept}, {"me"})
    life.take()
    for client, last_node, is_waited_for in (("me", "7", True), ("me", None, False), ("other", "7", False)):
        life.client, life.last_node = client, last_node
        again = Kept(life)
        again.register()
        assert list(again.queue) == [STATUS % 1, EXECUTING][: 1 + is_waited_for]
        assert life.sockets == {"me": again}
    kept.unregister()  # another one has its name by now
    assert life.sockets == {"me": again}
    again.unregister()
    assert life.sockets == {}
    again.unregister()
    life.dead.set()
    late = Kept(life)
    late.register()
    assert late.is_cut


def test_a_deaf_socket_hears_its_first_status_only(begin: Callable[..., Life]) -> None:
    life = begin()
    life.installation.faults.deaf_reconnect = True
    first, second = Kept(life), Kept(life)
    first.register()
    assert not first.is_deaf
    life.client, life.last_node = "me", "7"
    second.register()
    assert second.is_deaf
    assert list(second.queue) == [STATUS % 0]
    assert life.sockets == {}
    assert second.negotiate(b'{"type": "feature_flags", "data": {"a": 1}}') is True
    assert (second.flags, len(second.queue)) == ({}, 1)
    life.installation.faults.deaf_reconnect = False
    third = Kept(life)
    third.register()
    assert (third.is_deaf, len(third.queue)) == (False, 2)


@pytest.mark.parametrize(
    ("message", "counts", "flags", "is_answered"),
    [
        (b'{"type": "feature_flags", "data": {"a": 1}}', True, {"a": 1}, True),
        (b'{"type": "feature_flags", "data": [1]}', True, {}, True),
        (b'{"type": "feature_flags"}', True, {}, True),
        (b'{"type": "hello", "data": {"a": 1}}', True, {}, False),
        (b"{}", True, {}, False),
        (b"[1]", False, {}, False),
        (b"not JSON", False, {}, False),
        (b"\xff", False, {}, False),
    ],
)
def test_which_message_negotiates(
    begin: Callable[..., Life], message: bytes, counts: bool, flags: Json, is_answered: bool
) -> None:
    life = begin()
    kept = Kept(life)
    kept.register()
    assert kept.negotiate(message) is counts
    assert kept.flags == flags
    assert len(kept.queue) == 1 + is_answered
    if is_answered:
        assert kept.queue[1] == (
            '{"type": "feature_flags", "data": {"supports_preview_metadata": true, '
            '"max_upload_size": 104857600, "supports_model_type_tags": true, "node_replacements": true, '
            '"assets": false, "extension": {"manager": {"supports_v4": true}}}}'
        )


def test_a_message_may_come_in_pieces_and_only_texts_count(
    sim: Simulator, open_ws: Callable[..., ClientConnection]
) -> None:
    ws = open_ws(sim, "me")
    assert receive(ws)["data"]["sid"] == "me"
    ws.send(b'{"type": "feature_flags", "data": {}}')  # a binary frame
    ws.send("[]")
    ws.send(['{"type": "feature_flags", ', '"data": {"supports_preview_', 'metadata": true}}'])
    assert receive(ws)["type"] == "feature_flags"
    assert sim._server.life.takes_metadata("me")  # type: ignore[union-attr]
    ws.send('{"type": "feature_flags", "data": {}}')  # the first one counts
    assert ws.ping().wait(WAIT)
    assert sim._server.life.takes_metadata("me")  # type: ignore[union-attr]
    unnamed = open_ws(sim)
    assert re.fullmatch("[0-9a-f]{32}", receive(unnamed)["data"]["sid"])

    ws.send("x" * (4 << 20))
    assert ws.ping().wait(WAIT)
    with pytest.raises(ConnectionClosed) as info:
        ws.send("x" * ((4 << 20) + 1))
        ws.recv(timeout=WAIT)
    # The connection is closed with bytes unread, so that the reason may be lost.
    assert info.value.rcvd is None or info.value.rcvd.code == 1009
    until(lambda: "me" not in sim._server.life.sockets)  # type: ignore[union-attr]


def test_a_client_that_connects_again_hears_which_node_runs(
    sim: Simulator, open_ws: Callable[..., ClientConnection]
) -> None:
    busy(sim, client_id="me")
    until(lambda: sim._server.life.last_node == "1")  # type: ignore[union-attr]
    for client_id, more in (("me", [{"type": "executing", "data": {"node": "1"}}]), ("other", [])):
        ws = open_ws(sim, client_id)
        assert receive(ws)["data"]["sid"] == client_id
        assert [receive(ws) for _ in more] == more
    interrupt(sim)


def test_a_socket_ends_with_the_close_code_of_its_client(sim: Simulator) -> None:
    for code in (1000, 1001, 4000):
        close = b"\x88\x82\0\0\0\0" + code.to_bytes(2, "big")
        answer = raw(sim, WS + KEY + close)
        assert answer.endswith(b"\x88\x02" + code.to_bytes(2, "big"))
    assert b"HTTP/1.1 101 " in answer
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in answer
    refused = raw(sim, WS + b"Sec-WebSocket-Version: 13\r\n\r\n")
    assert refused.startswith(b"HTTP/1.1 400 ")
    assert not sim._server.life.sockets  # type: ignore[union-attr]


def test_a_cut_drops_what_was_not_sent() -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        client = stack.enter_context(socket.create_connection(server.getsockname(), timeout=WAIT))
        connection, _ = server.accept()
        connection.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                connection.send(b"x" * 65536)
        abort(connection)
        connection.close()
        with pytest.raises(ConnectionError):
            while client.recv(65536):
                pass


def test_a_cut_wakes_who_waits_and_may_come_twice() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        connection, _ = server.accept()
        ended = threading.Event()

        def wait() -> None:
            connection.recv(1)
            ended.set()

        waiting = threading.Thread(target=wait)
        waiting.start()
        abort(connection)
        assert ended.wait(5)
        waiting.join(5)
        abort(connection)
        connection.close()
        abort(connection)
        client.settimeout(5)
        assert client.recv(1) == b""


# ------------------------------------------------------------------------------------------------
# The order of nodes
# ------------------------------------------------------------------------------------------------


def chain(length: int, name: str) -> Json:
    """Nodes NAME0, NAME1 … of which the last, an output, is so many links behind the first."""
    prompt: Json = {f"{name}0": {"class_type": "EmptyImage", "inputs": {}}}
    for number in range(1, length + 1):
        class_type = "PreviewImage" if number == length else "ImageInvert"
        inputs = {"image": [f"{name}{number - 1}", 0]}
        prompt[f"{name}{number}"] = {"class_type": class_type, "inputs": inputs}
    return prompt


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(3, 2, "b0"), (2, 3, "a0"), (2, 2, "a0"), (2, 1, "b0"), (1, 0, "b0"), (4, 3, "a0"), (5, 2, "b0")],
)
def test_a_node_near_an_output_runs_first(first: int, second: int, expected: str) -> None:
    prompt = {**chain(first, "a"), **chain(second, "b")}
    if second == 0:
        prompt["b0"]["class_type"] = "TextOut"
    outputs = [f"a{first}", f"b{second}"]
    order = execution_order(prompt, outputs, lambda node_id: False)
    assert order[0] == expected
    assert sorted(order) == sorted(prompt)
    for name, length in (("a", first), ("b", second)):
        assert [each for each in order if each[0] == name] == [f"{name}{at}" for at in range(length + 1)]


def test_only_what_an_output_waits_for_runs() -> None:
    prompt = {**chain(3, "a"), **chain(1, "b"), "c": {"class_type": "TextOut", "inputs": {"x": ["404", 0]}}}
    assert execution_order(prompt, ["a3"], lambda node_id: node_id == "a1") == ["a2", "a3"]
    assert execution_order(prompt, ["a3"], lambda node_id: node_id == "a3") == ["a0", "a1", "a2", "a3"]
    assert execution_order(prompt, ["c"], lambda node_id: False) == ["c"]
    assert execution_order(prompt, ["b1", "c"], lambda node_id: True) == ["b1", "c"]
    assert execution_order(prompt, [], lambda node_id: False) == []
    whole = txt2img()
    assert execution_order(whole, ["9"], lambda node_id: node_id == "3") == ["4", "8", "9"]


# ------------------------------------------------------------------------------------------------
# The command line
# ------------------------------------------------------------------------------------------------


def made_by(*line: str) -> Dict[str, Any]:
    """The settings of the server that a command line makes."""
    sim = make_simulator(make_parser().parse_args(line))
    names = ("version", "host", "port", "root", "is_temporary", "base_path", "step_seconds", "token", "previews")
    return {**{name: getattr(sim, name) for name in names}, "faults": sim.faults}


def test_the_command_line_makes_a_server() -> None:
    assert made_by() == {
        "version": "0.33.0",
        "host": "127.0.0.1",
        "port": 8188,
        "root": "",
        "is_temporary": True,
        "base_path": "",
        "step_seconds": 0.15,
        "token": None,
        "previews": True,
        "faults": Faults(),
    }
    line = "--version 0.3.64 --host ::1 --port 7 --root r --base-path b --step-seconds 2 --token t"
    faults = ["--fault", "drop_end=true", "--fault", 'drop_events=["progress"]']
    assert made_by(*line.split(), *faults) == {
        "version": "0.3.64",
        "host": "::1",
        "port": 7,
        "root": "r",
        "is_temporary": False,
        "base_path": "/b",
        "step_seconds": 2.0,
        "token": "t",
        "previews": True,
        "faults": Faults(drop_end=True, drop_events=frozenset({"progress"})),
    }


def test_a_fault_is_a_name_and_json() -> None:
    assert parse_fault('http_status={"/queue": 500}') == ("http_status", {"/queue": 500})
    assert parse_fault('web_pages=["a=b"]') == ("web_pages", ["a=b"])
    name, events = parse_fault('drop_events=["a", "a"]')
    assert (name, events, type(events)) == ("drop_events", {"a"}, frozenset)
    for text, message in (
        ("odd=1", "there is no fault 'odd'"),
        ("", "there is no fault ''"),
        ("stall=x", "stall: not JSON: Expecting value: line 1 column 1 (char 0)"),
        ("stall", "stall: not JSON: Expecting value: line 1 column 1 (char 0)"),
    ):
        with pytest.raises(argparse.ArgumentTypeError) as info:
            parse_fault(text)
        assert str(info.value) == message


def test_a_server_that_cannot_start_says_why(
    sim: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    before = signal.getsignal(signal.SIGTERM)
    in_use = f"Cannot listen on 127.0.0.1:{sim.port}: "
    for line, message in (
        (["--port", str(sim.port)], in_use),
        (["--port", "99999"], "Cannot listen on 127.0.0.1:99999: "),
        (["--port", "0", "--root", str(tmp_path / "file")], "["),
    ):
        assert main(line) == 1
        out, err = capsys.readouterr()
        assert (out, err[: len(message)], err.count("\n")) == ("", message, 1)
    assert signal.getsignal(signal.SIGTERM) is before
    assert describe_failure(OSError(1, "no", "file"), "h", 1) == "[Errno 1] no: 'file'"
    assert describe_failure(OSError("no"), "h", 1) == "Cannot listen on h:1: no"
