"""Stories of continuous mode: start and stop."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any, Callable, List, Optional

import pytest
from served import Events, Make, Middleware, phase_elsewhere, post_elsewhere, put_file, read_answer
from support import FAST, SCRIPT, run, slow_prompt, wait_until

from comfyui_runner.edits import example_of_edit
from comfyui_runner.errors import ExitStatus
from comfyui_runner.routes import ROUTES, fit_route
from comfyui_runner.serving import url_in_network
from comfyui_runner.simulator import Faults
from comfyui_runner.state_file import open_state_file


def test_the_start_is_three_lines_the_last_one_says_where(service: Middleware) -> None:
    lines = service.out.getvalue().splitlines()
    assert lines[0].endswith(": 7 nodes") and lines[1].startswith("ComfyUI ")
    assert lines[2] == f"Open http://127.0.0.1:{service.port} in a browser"


def test_the_routes_and_a_line_of_curl_for_each_come_when_asked_for(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator, "--verbose")
    printed = service.out.getvalue()
    for row in ROUTES:
        if row.curl:
            fitting = fit_route(row, example_of_edit(slow_prompt()))  # the example is one of this workflow
            assert fitting.curl_command("http://127.0.0.1:%d" % service.port) in printed
    assert "  Sampling " in printed  # and the whole summary


def test_a_port_that_another_copy_has_is_said_to_be_so(service: Middleware, comfyui: Any, workflow_file: Make) -> None:
    port = str(service.port)
    result = run("--mode", "continuous", "--server", comfyui.url, "--port", port, workflow_file(slow_prompt()))
    assert result.status == ExitStatus.USAGE
    assert f"Port {port} is already in use by another copy of this program." in result.err
    assert f"Open http://127.0.0.1:{port} in a browser" in result.err


def test_a_port_that_is_taken_is_named_with_the_way_out(simulator: Any, workflow_file: Make, tmp_path: Any) -> None:
    path, state = workflow_file(slow_prompt()), str(tmp_path / "runs.sqlite3")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        flags = ("--server", simulator.url, "--port", str(port), "--state", state)
        result = run("--mode", "continuous", *flags, path)
    assert result.status == ExitStatus.USAGE
    assert "Port %d is already in use." % port in result.err
    assert "Choose another one: --port %d" % (port + 1) in result.err
    open_state_file(state).close()  # it is not in use any more


def test_a_server_that_is_this_service_is_refused(workflow_file: Make) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = "http://127.0.0.1:%d" % port
    result = run("--mode", "continuous", "--server", address, "--port", str(port), workflow_file(slow_prompt()))
    assert result.status == ExitStatus.USAGE
    assert "itself" in result.err


def test_a_server_that_is_another_such_service_is_refused(service: Middleware, workflow_file: Make) -> None:
    """Before it listens: its port is taken, and that is not what is wrong."""
    address = "http://127.0.0.1:%d" % service.port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = str(taken.getsockname()[1])
        result = run("--mode", "continuous", "--server", address, "--port", port, workflow_file(slow_prompt()))
    assert result.status not in (ExitStatus.OK, ExitStatus.ERROR)
    assert address in result.err and port not in result.err


def test_a_missing_workflow_is_reported_at_the_start(simulator: Any) -> None:
    result = run("--mode", "continuous", "--server", simulator.url, "--port", "0", "nowhere.json")
    assert result.status == ExitStatus.BAD_WORKFLOW


def test_quiet_prints_the_address_and_nothing_else(make_simulator: Make, tmp_path: Any) -> None:
    path = tmp_path / "held.json"
    path.write_text(json.dumps(slow_prompt(steps=1, seconds=0.0)), encoding="utf-8")
    command = [sys.executable, SCRIPT, "--mode", "continuous", "--port", "0"]
    program = subprocess.Popen(
        [*command, "--server", make_simulator().url, "--quiet", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert program.stdout is not None
        assert re.match(rb"^http://127\.0\.0\.1:\d+\r?\n$", program.stdout.readline())
    finally:
        program.terminate()
        rest, _ = program.communicate(timeout=15)
    assert rest == b""


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], lambda port: None),
        (["--public-url", "https://gpu.example"], lambda port: "https://gpu.example"),
        (["--host", "0.0.0.0", "--no-token"], lambda port: url_in_network("0.0.0.0", port)),
    ],
)
def test_the_status_says_where_other_machines_find_the_service(
    make_middleware: Make, simulator: Any, flags: List[str], says: Callable[[int], Optional[str]]
) -> None:
    service = make_middleware(simulator, *flags)
    assert service.get("/status").json["network_url"] == says(service.port)


def test_the_output_as_json_stays_json(make_middleware: Make, simulator: Any, tmp_path: Any) -> None:
    path = tmp_path / "held.json"
    path.write_text(json.dumps(slow_prompt(steps=1, seconds=0.0)), encoding="utf-8")
    command = [sys.executable, SCRIPT, "--mode", "continuous", "--port", "0"]
    program = subprocess.Popen(
        [*command, "--server", simulator.url, "--json", str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert program.stdout is not None
        events: List[Any] = []
        while not events or events[-1]["event"] != "listening":  # the last one that comes by itself
            events.append(json.loads(program.stdout.readline()))
        assert [event["event"] for event in events] == ["workflow", "server", "listening"]
        assert set(events[-1]) == {"event", "time", "prompt_id", "url", "lan_url", "routes"}
    finally:
        program.terminate()
        program.communicate(timeout=15)


def test_a_stop_cancels_our_runs_and_ends_the_streams(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator, prompt=slow_prompt(steps=20, seconds=60.0))
    events = service.events()
    first, second = service.start(), service.start()
    service.running(first)
    assert service.stop() == 0
    seen = []
    while True:
        event = events.next()
        if event is None:
            break
        seen.append(event)
    events.close()
    assert seen[-1][0] == "end"
    phases = {data["prompt_id"]: data["phase"] for name, data in seen if name == "run"}
    assert phases[first] == "interrupted"
    assert phases[second] in ("deleted", "interrupted")  # it may have begun when the first one stopped
    running, pending = simulator._server.life.snapshot()
    assert not running and not pending
    with pytest.raises(OSError):
        service.connect()


def seconds_to_stop(service: Middleware) -> float:
    """Stops the service; how long it took."""
    began = time.monotonic()
    assert service.stop() == 0
    return time.monotonic() - began


def test_a_service_that_is_stopping_starts_nothing(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator)
    service.inside["loop"].call_soon_threadsafe(service.service.stopping.set)
    wait_until(service.service.stopping.is_set)
    answer = service.get("/queue")
    assert (answer.status, answer.error) == (503, "service_stopping") and "retry-after" in answer.headers
    assert ("POST", "/prompt") not in simulator.requests


def test_what_is_being_started_when_the_service_stops_is_not_sent(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator)
    simulator.faults = Faults(http_hang={"/queue": 1.2})
    body = {"prompt": slow_prompt(), "prompt_id": "01234567-89ab-cdef-0123-456789abcdef"}
    asked = simulator.requests.count(("GET", "/queue"))
    answers = []
    client = threading.Thread(target=lambda: answers.append(service.post("/prompt", body)))
    client.start()
    wait_until(lambda: simulator.requests.count(("GET", "/queue")) > asked, what="the look for the prompt_id")
    assert service.stop() == 0
    client.join(10.0)
    (answer,) = answers
    assert (answer.status, answer.error) == (503, "service_stopping")
    assert ("POST", "/prompt") not in simulator.requests


def test_a_service_that_does_nothing_stops_at_once(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator)
    with service.connect() as kept, kept.makefile("rb") as file:
        kept.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert read_answer(file).status == 200
        assert seconds_to_stop(service) < 1.5


def slow_reader(service: Middleware, simulator: Any) -> Events:
    """Somebody who has read no more than the head of a file of 16 MB."""
    put_file(simulator, "large.bin", b"x" * (16 << 20))
    return service.events("/view?filename=large.bin&type=output", buffer=1 << 18)


def test_a_stop_waits_for_an_answer_that_is_being_read(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator)
    reader = slow_reader(service, simulator)
    stopping = threading.Thread(target=service.stop)
    stopping.start()
    wait_until(lambda: not len(service.service.streams) and service.service.stopping.is_set(), what="the stop")
    stopping.join(0.7)
    assert stopping.is_alive() and service.listener.busy
    assert len(reader.file.read(16 << 20)) == 16 << 20
    stopping.join(10.0)
    assert service.status == 0 and not service.listener.busy
    reader.close()


def test_a_stop_does_not_wait_for_a_client_that_stops_reading(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator)
    reader = slow_reader(service, simulator)
    assert 1.5 < seconds_to_stop(service) < 6.0
    reader.close()


def test_a_stop_does_not_wait_for_a_client_that_stops_sending(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator)
    wait_until(lambda: not service.listener.busy, what="the end of the requests that look for ComfyUI")
    with service.connect() as connection:
        connection.sendall(b"POST /update/prompt HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        wait_until(lambda: service.listener.busy, what="the request")
        assert 1.5 < seconds_to_stop(service) < 6.0


def test_a_stop_does_not_wait_for_a_file_that_trickles(
    make_middleware: Make, make_slow: Make, simulator: Any, tmp_path: Any
) -> None:
    proxy = make_slow(simulator)
    service = make_middleware(proxy.url, "-o", str(tmp_path / "out"))
    wait_until(lambda: service.get("/status").json["comfyui"]["connected"], what="the connection to ComfyUI")
    proxy.trickling = {"GET /view": 1}
    service.start()
    wait_until(lambda: proxy.trickled, what="the download")
    assert seconds_to_stop(service) < 6.0


def test_a_stop_does_not_wait_for_a_comfyui_that_says_nothing(
    make_middleware: Make, make_slow: Make, simulator: Any
) -> None:
    proxy = make_slow(simulator)
    prompt = slow_prompt(steps=100, seconds=30.0)
    service = make_middleware(proxy.url, prompt=prompt, limits=FAST._replace(cancel=0.6, read=20.0))
    wait_until(lambda: service.get("/status").json["comfyui"]["connected"], what="the connection to ComfyUI")
    service.running(service.start())
    proxy.trickling = {"GET /queue": 100}
    assert seconds_to_stop(service) < 6.0


def test_a_fault_of_ours_ends_the_service_and_is_not_a_success(make_middleware: Make, simulator: Any) -> None:
    service = make_middleware(simulator)
    session = service.service.session
    wait_until(lambda: session.connected, what="the WebSocket")
    service.service.publish_changed_runs = lambda: 1 // 0  # again at the end, when it stops
    service.thread.join(15.0)
    assert service.status == ExitStatus.ERROR
    assert "ZeroDivisionError" in service.err.getvalue()
    assert session._socket.transport.is_closing()
    with pytest.raises(OSError):
        service.connect()


def test_an_ipv6_address_is_shown_in_brackets(simulator: Any, workflow_file: Make) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    path = workflow_file(slow_prompt())
    service = Middleware(["--server", simulator.url, "--host", "::1", path], {}, FAST)
    try:
        url = "http://[::1]:%d" % service.port
        assert "Open %s" % url in service.out.getvalue()
        with socket.create_connection(("::1", service.port), 10.0) as connection, connection.makefile("rb") as file:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: [::1]:%d\r\n\r\n" % service.port)
            assert read_answer(file).status == 200
    finally:
        assert service.stop() == 0


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals between processes")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_what_is_ours_and_leaves_the_rest_alone(number: int, simulator: Any, tmp_path: Any) -> None:
    path = tmp_path / "held.json"
    path.write_text(json.dumps(slow_prompt(steps=20, seconds=60.0, seed=71)), encoding="utf-8")
    foreign = post_elsewhere(simulator, slow_prompt(steps=20, seconds=60.0, seed=72))
    wait_until(lambda: phase_elsewhere(simulator, foreign) == "running")
    command = [sys.executable, SCRIPT, "--mode", "continuous", "--port", "0"]
    program = subprocess.Popen(
        [*command, "--yes", "--server", simulator.url, str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        assert program.stdout is not None
        match = None
        while not match:
            line = program.stdout.readline().decode()
            assert line, "it ended"
            match = re.search(r"Open http://127\.0\.0\.1:(\d+)", line)
        port = int(match.group(1))
        events = Events(port)
        assert events.next()

        def start() -> Any:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10.0)
            connection.request("GET", "/queue")
            response = connection.getresponse()
            body = json.loads(response.read())
            connection.close()
            return body["prompt_id"] if response.status == 202 else None

        ours = wait_until(start, what="a run of ours")
        program.send_signal(number)
        rest, _ = program.communicate(timeout=20)
        assert program.returncode == 0, rest
        assert events.until(lambda name, data: name == "end")
        events.close()
        assert phase_elsewhere(simulator, ours) == "gone"
        assert phase_elsewhere(simulator, foreign) == "running"
        assert b"Traceback" not in rest
    finally:
        program.kill()
        program.wait()
