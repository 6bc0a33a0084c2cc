"""One jar of cookies per run, for HTTP and the WebSocket alike; a small load balancer of our own, not HAProxy."""

from __future__ import annotations

import asyncio
import collections
import io
import json
import os
import threading
from typing import Any, Callable, Deque, Dict, Iterator, List, NamedTuple, Set, Tuple

import pytest
from fault_proxy import Message, read_message
from served import LOADER, TWO_LOADERS, Middleware
from support import FAST, node, run, slow_prompt, wait_until

from comfyui_runner.addresses import parse_address
from comfyui_runner.errors import ExitStatus, ServerGone
from comfyui_runner.redaction import SHORTEST_COOKIE
from comfyui_runner.server import Server

Make = Callable[..., Any]
Cookies = Dict[str, str]

#: A prompt that is over at once.
QUICK = slow_prompt(steps=1, seconds=0.0)


class Seen(NamedTuple):
    """A request as it came to the balancer."""

    method: str
    path: str
    cookies: Cookies
    server: int


def parse_cookies(request: Message) -> Cookies:
    """The cookies of a request."""
    pairs = [pair.partition("=") for pair in request.header("cookie").split(";") if "=" in pair]
    return {name.strip(): value.strip() for name, _, value in pairs}


class Balancer:
    """Listens in a thread of its own; passes each request to the server that ``rule`` says.

    ``rule(cookies)`` gives the number of a server, and lines of Set-Cookie for the answer.
    """

    def __init__(self, urls: List[str], rule: Callable[[Cookies], Tuple[int, List[str]]]) -> None:
        self.ports = [int(url.rpartition(":")[2]) for url in urls]
        self.rule = rule
        self.seen: List[Seen] = []
        self._tasks: Set["asyncio.Task[None]"] = set()
        self._sockets: Set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._loop.set_debug(False)
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.url = "http://127.0.0.1:%d" % self._server.sockets[0].getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def close(self) -> None:
        """Cuts everything."""

        async def end() -> None:
            self._server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(5.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5.0)
        self._loop.close()

    def cut_websockets(self) -> None:
        """Cuts the WebSockets that are open."""

        def cut() -> None:
            for writer in self._sockets:
                writer.transport.abort()

        self._loop.call_soon_threadsafe(cut)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        writers = [writer]
        try:
            await self._pass(await read_message(reader), reader, writer, writers)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            for each in writers:
                self._sockets.discard(each)
                each.transport.abort()

    async def _pass(self, request: Message, reader: Any, writer: Any, writers: List[Any]) -> None:
        cookies = parse_cookies(request)
        number, lines = self.rule(cookies)
        method, path = request.first[:2]
        self.seen.append(Seen(method, path.partition("?")[0], cookies, number))
        upgrade = bool(request.header("upgrade"))
        there, back = await asyncio.open_connection("127.0.0.1", self.ports[number])
        writers.append(back)
        head = request.head
        if not upgrade:  # each request chooses its server
            kept = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
            head = b"\r\n".join([*kept[:-2], b"Connection: close", b"", b""])
        back.write(head + request.body)
        answer = await read_message(there, "HEAD" if upgrade else method)
        added = "".join("Set-Cookie: %s\r\n" % line for line in lines).encode()
        writer.write(answer.head[:-2] + added + b"\r\n" + answer.body)
        if upgrade:
            self._sockets.add(writer)
            await asyncio.wait(
                [asyncio.ensure_future(_pump(reader, back)), asyncio.ensure_future(_pump(there, writer))],
                return_when=asyncio.FIRST_COMPLETED,
            )
        await writer.drain()
        writer.close()
        await writer.wait_closed()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        data = await reader.read(65536)
        while data:
            writer.write(data)
            await writer.drain()
            data = await reader.read(65536)
    except OSError:
        pass


class Sticky:
    """The rule of a balancer with an affinity cookie, as HAProxy's ``cookie … insert indirect``."""

    def __init__(self, count: int) -> None:
        self.up = list(range(count))
        self.next = 0

    def __call__(self, cookies: Cookies) -> Tuple[int, List[str]]:
        given = cookies.get("GPU", "")
        if given.isdigit() and int(given) in self.up:
            return int(given), []
        self.next += 1
        number = self.up[self.next % len(self.up)]
        return number, ["GPU=%d; path=/; HttpOnly" % number]


class Login:
    """The rule of a login proxy before one server: its cookie changes with every answer."""

    def __init__(self) -> None:
        self.given: Deque[str] = collections.deque()

    def __call__(self, cookies: Cookies) -> Tuple[int, List[str]]:
        self.given.append("t%d" % len(self.given))
        return 0, ["LOGIN=%s; Path=/" % self.given[-1]]


@pytest.fixture
def make_balancer(make_simulator: Make) -> Iterator[Callable[..., Balancer]]:
    """Starts balancers that are stopped at the end of the test, before their servers."""
    made: List[Balancer] = []

    def make(servers: List[Any], rule: Callable[[Cookies], Tuple[int, List[str]]]) -> Balancer:
        made.append(Balancer([server.url for server in servers], rule))
        return made[-1]

    yield make
    for balancer in made:
        balancer.close()


# ------------------------------------------------------------------------------------------------
# The jar, without a server
# ------------------------------------------------------------------------------------------------


def server_at(url: str = "http://127.0.0.1:1", *headers: str) -> Any:
    return Server(parse_address(url, headers), FAST)


def cookie_of(server: Any) -> Cookies:
    """The cookies of the next handshake."""
    line = dict(server.cookies.handshake_headers()).get("Cookie", "")
    return dict(pair.split("=", 1) for pair in line.split("; ") if pair)


def test_cookies_of_the_handshake_are_kept_and_given_back() -> None:
    server = server_at()
    assert cookie_of(server) == {}
    server.cookies.take(["GPU=a; path=/; HttpOnly", "LOGIN=x; Path=/"])
    assert cookie_of(server) == {"GPU": "a", "LOGIN": "x"}
    assert cookie_of(server.fresh()) == {}
    server.cookies.take(["LOGIN=; Path=/; Max-Age=0"])
    assert cookie_of(server) == {"GPU": "a"}


def test_secure_cookies_go_over_tls_only() -> None:
    for url, sent in (("https://127.0.0.1:1", {"GPU": "a"}), ("http://192.0.2.1:1", {})):
        server = server_at(url)
        server.cookies.take(["GPU=a; path=/; Secure"])
        assert cookie_of(server) == sent


def test_a_users_own_cookies_stand_beside_the_servers() -> None:
    server = server_at("http://127.0.0.1:1", "Cookie: mine=1; other=a=b", "X-Key: k")
    server.cookies.take(["GPU=a; path=/"])
    assert cookie_of(server) == {"mine": "1", "other": "a=b", "GPU": "a"}
    headers = server.cookies.handshake_headers()
    assert [name.lower() for name, _ in headers] == ["x-key", "cookie"]
    assert cookie_of(server.fresh()) == {"mine": "1", "other": "a=b"}


def test_a_users_own_cookie_that_the_server_renews_is_sent_once_and_is_no_affinity() -> None:
    """As a login proxy does that prolongs a session."""
    for url in ("http://127.0.0.1:1", "http://localhost:1", "http://gpu:1", "http://[::1]:1", "http://gpu.example:1"):
        server = server_at(url, "Cookie: login=old; mine=1")
        assert cookie_of(server) == {"login": "old", "mine": "1"}, url
        server.cookies.take(["login=new; path=/", "GPU=a; path=/"])
        assert cookie_of(server) == {"login": "new", "mine": "1", "GPU": "a"}, url
        line = dict(server.cookies.handshake_headers())["Cookie"]
        assert line.count("login=") == 1, url
        assert server.cookies.from_server == {"GPU": "a"}, url


def test_cookies_reach_http_and_the_handshake_behind_a_host_of_the_users_own(make_simulator: Make) -> None:
    simulator = make_simulator()
    server = server_at(simulator.url, "Host: studio.example")
    server.cookies.take(["GPU=a; path=/"])
    server.queue()
    method, path, headers = simulator.received[-1]
    assert (method, path, headers["Host"], headers["Cookie"]) == ("GET", "/queue", "studio.example", "GPU=a")
    assert cookie_of(server) == {"GPU": "a"}


def test_a_cookie_that_is_too_short_to_be_a_secret_is_not_hidden_as_one() -> None:
    server = server_at("http://127.0.0.1:1", "Cookie: mine=my-own-long-session; dark=1")
    server.cookies.take([f"GPU={'a' * (SHORTEST_COOKIE - 1)}; path=/", f"LOGIN={'b' * SHORTEST_COOKIE}; path=/"])
    assert sorted(server.cookies.credentials) == ["b" * SHORTEST_COOKIE, "my-own-long-session"]


def test_a_changed_affinity_cookie_means_that_the_server_is_gone() -> None:
    server = server_at()
    server.cookies.take(["GPU=a; path=/", "LOGIN=1; path=/"])
    server.cookies.affinity = {"GPU": "a"}
    server.cookies.take(["LOGIN=2; path=/"])
    server.cookies.take(["GPU=a; path=/"])
    with pytest.raises(ServerGone):
        server.cookies.take(["GPU=b; path=/"])
    for again in (server.cookies.handshake_headers, server.queue):
        with pytest.raises(ServerGone):  # port 1 would be refused: nothing is sent
            again()


# ------------------------------------------------------------------------------------------------
# Whole runs
# ------------------------------------------------------------------------------------------------


def test_without_cookies_nothing_changes(make_simulator: Make, workflow_file: Make) -> None:
    simulator = make_simulator()
    result = run("--server", simulator.url, "--yes", workflow_file(QUICK))
    assert result.status == 0, result.err
    paths = [path.split("/")[1] for _, path in simulator.requests]
    assert paths == ["system_stats", "ws", "prompt", "history"]  # no request more than these


def test_a_run_stays_on_the_server_of_its_handshake(
    make_simulator: Make, make_balancer: Make, workflow_file: Make, tmp_path: Any
) -> None:
    servers = [make_simulator() for _ in range(3)]
    balancer = make_balancer(servers, Sticky(3))
    picture = tmp_path / "cat.png"
    picture.write_bytes(b"\xff\xd8\xff a picture")
    prompt = {
        "1": node("LoadImage", image="example.png"),
        "2": node("SaveImage", images=["1", 0], filename_prefix="x"),
    }
    out = str(tmp_path / "out")
    result = run(
        "--server", balancer.url, "--yes", "--image", str(picture), "-o", out,
        "--header", "Cookie: mine=1", workflow_file(prompt),
    )  # fmt: skip
    assert result.status == 0, result.err
    handshake = next(i for i, seen in enumerate(balancer.seen) if seen.path == "/ws")
    mine = balancer.seen[handshake:]
    assert mine[0].cookies == {"mine": "1"}  # its jar was empty: the balancer chose
    assert {seen.path.split("/")[1] for seen in mine} == {"ws", "queue", "upload", "prompt", "history", "view"}
    assert {seen.server for seen in mine} == {mine[0].server}
    assert all(seen.cookies == {"mine": "1", "GPU": str(mine[0].server)} for seen in mine[1:])


def test_cookies_of_http_reach_the_next_handshake(
    make_simulator: Make, make_balancer: Make, workflow_file: Make
) -> None:
    rule = Login()
    balancer = make_balancer([make_simulator()], rule)
    done: List[Any] = []
    prompt = workflow_file(slow_prompt(steps=8, seconds=1.2))
    thread = threading.Thread(target=lambda: done.append(run("--server", balancer.url, "--yes", prompt)))
    thread.start()
    wait_until(lambda: any(seen.path == "/prompt" for seen in balancer.seen), what="the POST")
    balancer.cut_websockets()
    thread.join(15.0)
    (result,) = done
    assert result.status == 0, result.out + result.err  # it changes with every answer: no affinity
    assert "gone" not in result.out + result.err
    handshakes = [i for i, seen in enumerate(balancer.seen) if seen.path == "/ws"]
    assert len(handshakes) == 2
    for i in range(handshakes[0] + 1, len(balancer.seen)):
        given = balancer.seen[i].cookies["LOGIN"]
        assert given in rule.given and given != "t0"
    later = [int(seen.cookies["LOGIN"][1:]) for seen in balancer.seen[handshakes[0] + 1 :]]
    assert later == sorted(later) and later[-1] > later[0]  # the newest each time


def test_a_connection_is_restored_when_both_the_socket_is_open_and_the_queue_can_be_read(
    make_simulator: Make, make_balancer: Make, workflow_file: Make
) -> None:
    """A proxy answers for a server that restarts: its socket comes back before its routes do."""
    simulator = make_simulator()
    simulator.faults.drop_events = frozenset(["progress", "progress_state"])  # so that the queue is read
    balancer = make_balancer([simulator], lambda cookies: (0, []))
    out, done = io.StringIO(), []
    path = workflow_file(slow_prompt(steps=100, seconds=60.0))
    thread = threading.Thread(
        target=lambda: done.append(run("--server", balancer.url, "--yes", "--json", path, out=out))
    )
    thread.start()

    def seen(path: str) -> int:
        return sum(request.path == path for request in balancer.seen)

    wait_until(lambda: simulator.executions, what="the run")
    simulator.faults.http_status = {"/queue": 503}
    wait_until(lambda: '"lost"' in out.getvalue(), what="a reading that failed")
    balancer.cut_websockets()
    wait_until(lambda: seen("/ws") == 2, what="the second socket")
    readings = seen("/queue")
    wait_until(lambda: seen("/queue") > readings + 1, what="a reading after it")
    simulator.faults.http_status = {}
    wait_until(lambda: '"restored"' in out.getvalue(), what="the end of the trouble")
    simulator._server.life.interrupt(next(iter(simulator.executions)))
    thread.join(15.0)
    states = [event["state"] for event in done[0].events if event["event"] == "connection"]
    assert states == ["lost", "restored"]
    assert done[0].status == ExitStatus.INTERRUPTED


def lose(
    make_simulator: Make, make_balancer: Make, path: str, *arguments: str
) -> Tuple[Any, List[Seen], List[Any], int]:
    """A run whose server the balancer takes away while it runs: its outcome, what came since, the servers."""
    servers = [make_simulator(), make_simulator()]
    rule = Sticky(2)
    balancer = make_balancer(servers, rule)
    done: List[Any] = []
    thread = threading.Thread(target=lambda: done.append(run("--server", balancer.url, "--yes", *arguments, path)))
    thread.start()
    wait_until(lambda: any(server.executions for server in servers), what="the run")
    first = next(seen.server for seen in balancer.seen if seen.path == "/prompt")
    before = len(balancer.seen)
    rule.up.remove(first)
    balancer.cut_websockets()
    thread.join(15.0)
    assert done, "it does not end"
    return done[0], balancer.seen[before:], servers, first


def test_a_run_whose_server_is_gone_is_lost(make_simulator: Make, make_balancer: Make, workflow_file: Make) -> None:
    path = workflow_file(slow_prompt(steps=40, seconds=6.0))
    result, since, servers, first = lose(make_simulator, make_balancer, path, "--json")
    assert result.status == 9, result.out + result.err
    assert "its server is gone" in result.event("end")["message"]
    assert len(since) == 1, since  # the one by which it was learned; nothing more is sent
    assert since[0].server != first
    assert not servers[1 - first].executions


def test_a_lost_run_is_submitted_again_on_another_server(
    make_simulator: Make, make_balancer: Make, workflow_file: Make
) -> None:
    path = workflow_file(slow_prompt(steps=10, seconds=1.0))
    result, since, servers, first = lose(make_simulator, make_balancer, path, "--json", "--retries", "1")
    assert result.status == 0, result.out + result.err
    assert [len(server.executions) for server in servers] == [1, 1]
    assert {seen.server for seen in since} == {1 - first}
    assert since[1].path == "/ws" and since[1].cookies == {}  # a jar of its own
    ends = [event for event in result.events if event["event"] == "end"]
    assert [end["exit_status"] for end in ends] == [9, 0]
    assert ends[0]["prompt_id"] != ends[1]["prompt_id"]


def test_files_that_are_gone_with_their_server_make_a_run_lost(
    make_simulator: Make, make_balancer: Make, workflow_file: Make, tmp_path: Any
) -> None:
    """The server is taken away between the end of the run and the fetching of its file."""
    servers = [make_simulator(), make_simulator()]
    for arguments, statuses in (((), [9]), (("--retries", "1"), [9, 0])):
        rule = Sticky(2)
        made: List[Balancer] = []

        def watched(cookies: Cookies, rule: Sticky = rule, made: List[Balancer] = made) -> Tuple[int, List[str]]:
            if len(rule.up) == 2 and any(seen.path.startswith("/history/") for seen in list(made[0].seen)):
                rule.up.remove(int(cookies["GPU"]))
            return rule(cookies)

        made.append(make_balancer(servers, watched))
        out = str(tmp_path / ("out%d" % len(arguments)))
        result = run("--server", made[0].url, "--yes", "--json", "-o", out, *arguments, workflow_file(QUICK))
        ends = [event for event in result.events if event["event"] == "end"]
        assert [end["exit_status"] for end in ends] == statuses, result.out
        assert result.status == statuses[-1] and "gone" in ends[0]["message"]
        assert len([seen for seen in made[0].seen if seen.path == "/view"]) == len(statuses)


def test_a_server_that_dies_during_an_upload_costs_its_row_alone(
    make_simulator: Make, make_balancer: Make, workflow_file: Make, tmp_path: Any
) -> None:
    servers = [make_simulator(), make_simulator()]
    servers[0].faults.http_status = {"/upload/image": 502}  # as a balancer answers for it
    picture = tmp_path / "cat.png"
    picture.write_bytes(b"\xff\xd8\xff a picture")
    prompt = {
        "1": node("LoadImage", image="example.png"),
        "2": node("SaveImage", images=["1", 0], filename_prefix="x"),
    }
    path = workflow_file(prompt)
    for arguments, status, row_statuses in (((), 7, {0, 9}), (("--retries", "1"), 0, {0})):
        balancer = make_balancer(servers, Sticky(2))
        manifest = str(tmp_path / ("manifest%d" % len(arguments)))
        result = run(
            "--server", balancer.url, "--yes", "--json", "--repeat", "4", "--in-flight", "1", "--image", str(picture),
            "--manifest", manifest, *arguments, path,
        )  # fmt: skip
        rows = [event for event in result.events if event["event"] == "row"]
        assert [row["row"] for row in rows] == [1, 2, 3, 4], result.out + result.err
        assert {row["exit_status"] for row in rows} == row_statuses
        assert result.status == status
    assert not servers[0].executions and servers[1].executions


def test_a_file_is_fetched_again_where_the_balancer_could_not_give_it(
    make_simulator: Make, make_balancer: Make, workflow_file: Make, tmp_path: Any
) -> None:
    """502 is what HAProxy answers while a server dies; the next answer shows whether ours did."""
    simulator = make_simulator()
    simulator.faults.http_status = {"/view": 502}
    rule = Sticky(1)

    def heal(cookies: Cookies) -> Tuple[int, List[str]]:
        if [seen.path for seen in made.seen].count("/view") == 2:
            simulator.faults.http_status = {}
        return rule(cookies)

    made = make_balancer([simulator], heal)
    result = run("--server", made.url, "--yes", "-o", str(tmp_path / "out"), workflow_file(QUICK))
    assert result.status == 0, result.out + result.err
    assert [seen.path for seen in made.seen].count("/view") == 3


# ------------------------------------------------------------------------------------------------
# Continuous mode
# ------------------------------------------------------------------------------------------------


@pytest.fixture
def two(make_simulator: Make, make_balancer: Make, tmp_path: Any) -> Iterator[Tuple[List[Any], Middleware]]:
    """Two simulators behind a balancer with affinity, and a service that holds a loader."""
    servers = [make_simulator(), make_simulator()]
    balancer = make_balancer(servers, Sticky(2))
    path = tmp_path / "held.json"
    path.write_text(json.dumps(LOADER), encoding="utf-8")
    service = Middleware(["--server", balancer.url, str(path)], {}, FAST)
    try:
        wait_until(lambda: service.service.session.server.affinity, what="the affinity")
        wait_until(lambda: service.get("/status").json["comfyui"]["connected"], what="the connection")
        yield servers, service
    finally:
        service.stop()


def test_an_upload_goes_along_with_each_run_and_holds_nothing_up(two: Tuple[List[Any], Middleware]) -> None:
    servers, service = two
    assert service.upload(name="cat.png").status == 200
    for server in servers:
        server.asked.clear()
        server.faults.http_hang = {"/upload/image": 1.0}
    answers: List[Any] = []
    thread = threading.Thread(target=lambda: answers.append(service.post("/queue")))
    thread.start()
    wait_until(lambda: any(("POST", "/upload/image") in server.requests for server in servers), what="the upload")
    ticks = asyncio.run_coroutine_threadsafe(asyncio.sleep(0.3), service.inside["loop"])
    ticks.result(0.8)  # the loop goes on
    assert not answers
    thread.join(10.0)
    assert answers[0].status == 202, answers
    record = service.get("/runs/%s?wait=10" % answers[0].json["prompt_id"]).json
    assert record["phase"] == "success" and service.get("/" + record["outputs"][0]["url"]).status == 200


def test_a_run_that_cannot_have_its_upload_leaves_no_connection(two: Tuple[List[Any], Middleware]) -> None:
    servers, service = two
    assert service.upload(name="cat.png").status == 200
    for server in servers:
        server.faults.http_status = {"/upload/image": 502}
    for _ in range(3):
        assert service.post("/queue").status == 503

    def sockets() -> int:
        return sum(len(server._server.life.sockets) for server in servers)

    wait_until(lambda: sockets() == 1, 3.0, "the service's own connection alone")


def test_what_is_refused_is_reported_in_words_with_an_upload_too(two: Tuple[List[Any], Middleware]) -> None:
    servers, service = two
    service.hold(TWO_LOADERS)
    assert service.upload("/upload/image?node_id=1").status == 200
    for server in servers:
        os.unlink(os.path.join(server.root, "input", "example.png"))
    answer = service.post("/queue")
    assert answer.status == 400, answer
    (problem,) = answer.json["error"]["details"]["problems"]
    assert problem["value"] == "example.png"
