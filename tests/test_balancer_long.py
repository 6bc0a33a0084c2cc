"""Real HAProxy in front of three simulators, with the configuration of docs/SCALING.md."""

from __future__ import annotations

import collections
import csv
import json
import os
import re
import socket
import subprocess
import tempfile
import threading
import urllib.parse
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Set, Tuple

import pytest
from debian import require_program
from served import PNG, Middleware, multipart
from support import FAST, ROOT, Outcome, node, run, slow_prompt, wait_until

from comfyui_runner.server import Server
from comfyui_runner.simulator import Simulator

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.name == "nt", reason="HAProxy does not run on Windows"),
]

Json = Dict[str, Any]

#: The header by which a test recognizes the requests of one jar.
MARK = "x-test-jar"

#: FAST, with room for HAProxy's retries: two, a second each, until it has noticed that a server is gone.
PATIENT = FAST._replace(websocket=6.0, read=8.0, post=8.0)


@pytest.fixture(scope="session")
def haproxy() -> str:
    """HAProxy's path."""
    return require_program("haproxy", "haproxy")


def documented() -> str:
    """The configuration in the document."""
    with open(os.path.join(ROOT, "docs", "SCALING.md"), encoding="utf-8") as file:
        (block,) = re.findall(r"(?ms)^```haproxy\n(.*?)^```$", file.read())
    return str(block)


class Studio:
    """Three simulators, HAProxy before them, and what reached each."""

    names = ("a", "b", "c")

    def __init__(self, haproxy: str, folder: str) -> None:
        self.servers = {name: Simulator().start() for name in self.names}
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = "http://127.0.0.1:%d" % self._listener.getsockname()[1]
        self._admin = os.path.join(folder, "admin.sock")
        self._log = open(os.path.join(folder, "haproxy.log"), "wb")  # noqa: SIM115 - closed in close()
        path = os.path.join(folder, "haproxy.cfg")
        with open(path, "w", encoding="utf-8") as file:
            file.write(self._placed(documented()))
        self._command = [haproxy, "-db", "-f", path]
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
            pass_fds=[self._listener.fileno()],
        )  # fmt: skip
        try:
            wait_until(lambda: self._process.poll() is not None or self._answers(), what="HAProxy")
            with open(self._log.name, encoding="utf-8") as file:
                said = file.read()
            assert self._process.poll() is None, said
            assert "ALERT" not in said and "WARNING" not in said, said
        except BaseException:
            self.close()
            raise

    def _placed(self, text: str) -> str:
        """The configuration with the places of this machine; nothing else is replaced."""

        def replace(pattern: str, new: str, old: str) -> str:
            changed, count = re.subn(pattern, lambda _: new, old)
            assert count == 1, (pattern, old)
            return changed

        text = replace(r"(?<=stats socket )\S+", self._admin, text)
        text = replace(r"(?<=bind ):8188\b", "fd@%d" % self._listener.fileno(), text)
        for number, (name, server) in enumerate(self.servers.items(), 11):
            text = replace(r"(?<=server %s )10\.0\.0\.%d:8188" % (name, number), "127.0.0.1:%d" % server.port, text)
        return text

    def _answers(self) -> bool:
        try:
            return all(state == "UP" for state in self.states().values())
        except OSError:
            return False

    def admin(self, command: str) -> str:
        """HAProxy's answer on its admin socket."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5.0)
            connection.connect(self._admin)
            connection.sendall(command.encode() + b"\n")
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()

    def states(self) -> Dict[str, str]:
        """What HAProxy says of each server: UP, DOWN, DRAIN."""
        rows = csv.DictReader(self.admin("show stat").lstrip("# ").splitlines())
        return {row["svname"]: row["status"] for row in rows if row["pxname"] == "gpus" and row["svname"] in self.names}

    def drain(self, name: str) -> None:
        """Takes a server out for new runs."""
        assert not self.admin("set server gpus/%s state drain" % name).strip()
        assert self.states()[name].startswith("DRAIN")

    def ran(self, name: str) -> List[str]:
        """The prompts that a server began."""
        return list(self.servers[name].executions)

    def where(self, prompt_id: str) -> List[str]:
        """The servers that began a prompt."""
        return [name for name in self.names if prompt_id in self.servers[name].executions]

    def requests_of(self, jars: Iterable[str]) -> List[Tuple[str, str, str, str]]:
        """The requests of some jars, for a test that failed."""
        return [
            (headers[MARK], name, method, path)
            for name, server in self.servers.items()
            for method, path, headers in list(server.received)
            if MARK in headers and headers[MARK] in jars
        ]

    def jars(self) -> Dict[str, "collections.Counter[str]"]:
        """For each jar, how many of its requests reached which server."""
        found: Dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        for name, server in self.servers.items():
            for _, _, headers in list(server.received):
                if MARK in headers:
                    found[headers[MARK]][name] += 1
        return dict(found)

    def restart(self) -> None:
        """Ends HAProxy and starts it again, with nothing in memory."""
        self._end()
        self._start()

    def _end(self) -> None:
        self._process.terminate()
        self._process.wait(10.0)

    def close(self) -> None:
        self._end()
        self._log.close()
        self._listener.close()
        for server in self.servers.values():
            server.stop()


@pytest.fixture
def studio(haproxy: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Studio]:
    """A studio; each jar of the program marks its requests."""
    fresh, count = Server.fresh, iter(range(1 << 20))

    def marked(server: Any) -> Any:
        other = fresh(server)
        kept = tuple(pair for pair in other.address.headers if pair[0] != MARK)
        return Server(other.address._replace(headers=(*kept, (MARK, str(next(count))))), other.limits)

    monkeypatch.setattr(Server, "fresh", marked)
    with tempfile.TemporaryDirectory(prefix="studio-") as folder:  # a short path, for the socket
        made = Studio(haproxy, folder)
        yield made
        made.close()


class Started:
    """The program in a thread."""

    def __init__(self, *arguments: str) -> None:
        self._outcome: Optional[Outcome] = None

        def work() -> None:
            self._outcome = run(*arguments, limits=PATIENT)

        self._thread = threading.Thread(target=work)
        self._thread.start()

    def end(self, seconds: float = 60.0) -> Outcome:
        self._thread.join(seconds)
        assert self._outcome is not None, "it does not end"
        return self._outcome


def printed(result: Outcome) -> str:
    """What a failed test has to say of a run with --json: its errors, and how it and its rows ended."""
    shown = ("row", "batch", "notice", "not_saved", "connection", "error", "end", "problem")
    return "\n".join(str(event) for event in result.events if event["event"] in shown) + "\n" + result.err


def write_rows(folder: Any, count: int) -> str:
    """A table of rows whose files are named after them."""
    path = folder / "rows.csv"
    lines = ["1.seed,2.filename_prefix", *("%d,row%03d" % (i, i) for i in range(1, count + 1))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def read_manifest(folder: Any) -> List[Json]:
    text = (folder / "out" / "manifest.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def rows_of_views(server: Any) -> Set[int]:
    """The rows whose files were fetched from a server."""
    found = set()
    for _, path, _ in list(server.received):
        if path.startswith("/view?"):
            (name,) = urllib.parse.parse_qs(urllib.parse.urlsplit(path).query)["filename"]
            found.add(int(name[3:6]))
    return found


def batch(studio: Studio, folder: Any, write: Callable[..., str], seconds: float, count: int, *more: str) -> Started:
    return Started(
        "--server", studio.url, "--yes", "--json", "--batch", write_rows(folder, count), "-o", str(folder / "out"),
        *more, write(slow_prompt(steps=2, seconds=seconds)),
    )  # fmt: skip


def assert_sticky(studio: Studio, lost: int = 0) -> None:
    """Every jar's requests reached one server; of a lost run's, others were reached by those alone that were on
    their way when it was learned: the handshake and a question, each again where no answer came, and no POST."""
    jars = studio.jars()
    assert jars
    split = {jar: counts for jar, counts in jars.items() if len(counts) > 1}
    assert len(split) <= lost, studio.requests_of(split)
    for jar, counts in split.items():
        sent = studio.requests_of([jar])
        assert sum(counts.values()) - max(counts.values()) <= 8, sent
        assert len({name for _, name, method, _ in sent if method == "POST"}) <= 1, sent


# ------------------------------------------------------------------------------------------------
# Batches
# ------------------------------------------------------------------------------------------------


def test_ninety_rows_spread_and_each_run_stays_on_its_server(
    studio: Studio, tmp_path: Any, workflow_file: Callable[..., str]
) -> None:
    result = batch(studio, tmp_path, workflow_file, 0.2, 90, "--in-flight", "9").end()
    assert result.status == 0, printed(result)
    share = {name: len(studio.ran(name)) for name in studio.names}
    assert sum(share.values()) == 90 and max(share.values()) <= 1.3 * 30, share
    assert_sticky(studio)
    rows = {entry["row"]: entry["prompt_id"] for entry in read_manifest(tmp_path)}
    assert len(rows) == 90
    fetched: List[int] = []
    for name, server in studio.servers.items():
        ran = set(studio.ran(name))
        histories = {path.rpartition("/")[2] for _, path in server.requests if path.startswith("/history/")}
        assert histories == ran
        views = rows_of_views(server)
        assert {rows[row] for row in views} == ran
        fetched += views
        counted = collections.Counter(path.split("/")[1] for _, path in server.requests)
        assert counted["ws"] == counted["prompt"] == len(ran)
    assert sorted(fetched) == list(range(1, 91))
    assert len(list((tmp_path / "out").rglob("row*.png"))) == 90


def wait_for_the_middle(studio: Studio, name: str) -> None:
    """Until a server has begun some runs, and each that was sent there has been posted."""

    def middle() -> bool:
        counted = collections.Counter(path.split("/")[1] for _, path in studio.servers[name].requests)
        return len(studio.ran(name)) >= 2 and counted["ws"] == counted["prompt"]

    wait_until(middle, 20.0, "runs on " + name)


def test_without_retries_the_runs_of_a_killed_server_are_reported_as_lost(
    studio: Studio, tmp_path: Any, workflow_file: Callable[..., str]
) -> None:
    started = batch(studio, tmp_path, workflow_file, 0.4, 30, "--in-flight", "6")
    wait_for_the_middle(studio, "b")
    studio.servers["b"].crash()
    result = started.end()
    assert result.status == 7, printed(result)
    entries = {entry["row"]: entry for entry in read_manifest(tmp_path)}
    assert len(entries) == 30
    failed = [entry for entry in entries.values() if entry["status"] != "done"]
    assert 1 <= len(failed) <= 3, failed  # what was on it: a third of six, and one that was on its way
    for entry in failed:
        assert entry["exit_status"] == 9 and "gone" in entry["message"], entry
    assert_sticky(studio, len(failed))
    assert studio.states()["b"] == "DOWN"
    rows = [event for event in result.events if event["event"] == "row" and event["status"] == "failed"]
    assert {event["row"] for event in rows} == {entry["row"] for entry in failed}


@pytest.mark.parametrize("how", ["killed", "marked down"])
def test_with_retries_they_are_submitted_again_on_another(
    studio: Studio, tmp_path: Any, workflow_file: Callable[..., str], how: str
) -> None:
    started = batch(studio, tmp_path, workflow_file, 0.4, 24, "--in-flight", "6", "--retries", "3")
    wait_for_the_middle(studio, "b")
    if how == "killed":
        studio.servers["b"].crash()
    else:  # as HAProxy does with a server that does not answer its checks
        assert not studio.admin("set server gpus/b state maint").strip()
    result = started.end()
    assert result.status == 0, printed(result)
    entries = {entry["row"]: entry for entry in read_manifest(tmp_path)}
    assert sorted(entries) == list(range(1, 25)) and len(read_manifest(tmp_path)) == 24  # each once
    assert {entry["status"] for entry in entries.values()} == {"done"}
    again = [event for event in result.events if event["event"] == "notice" and "again" in event["message"]]
    assert 1 <= len(again) <= 3 and all("its server is gone" in event["message"] for event in again), again
    assert_sticky(studio, len(again))
    for event in again:
        assert studio.where(entries[event["row"]]["prompt_id"]) in (["a"], ["c"])
    assert len(list((tmp_path / "out").rglob("row*.png"))) == 24


def test_the_runs_of_a_drained_server_finish(studio: Studio, tmp_path: Any, workflow_file: Callable[..., str]) -> None:
    started = batch(studio, tmp_path, workflow_file, 0.4, 24, "--in-flight", "6")
    wait_until(lambda: studio.ran("b"), 20.0, "a run on b")
    studio.drain("b")
    on_its_way = {jar for jar, counts in studio.jars().items() if counts["b"]}
    result = started.end()
    assert result.status == 0, printed(result)
    assert {jar for jar, counts in studio.jars().items() if counts["b"]} == on_its_way
    assert_sticky(studio)
    assert {entry["status"] for entry in read_manifest(tmp_path)} == {"done"}
    assert len(studio.ran("b")) == len(on_its_way) <= 3
    assert len(studio.ran("a")) + len(studio.ran("c")) == 24 - len(on_its_way)


# ------------------------------------------------------------------------------------------------
# One run
# ------------------------------------------------------------------------------------------------


def test_single_runs_go_where_the_fewest_are(studio: Studio, tmp_path: Any, workflow_file: Callable[..., str]) -> None:
    """Three at a time, each with an upload of its own and a file to fetch."""
    picture = tmp_path / "cat.png"
    picture.write_bytes(PNG)
    prompt = {
        **slow_prompt(steps=4, seconds=2.0),
        "3": node("LoadImage", image="example.png"),
        "4": node("SaveImage", images=["3", 0], filename_prefix="loaded"),
    }
    path = workflow_file(prompt)
    started = []
    for number in range(3):
        out = str(tmp_path / str(number))
        started.append(Started("--server", studio.url, "--yes", "--image", str(picture), "-o", out, path))

        def has_run(number: int = number) -> bool:
            return sum(len(studio.ran(name)) for name in studio.names) > number

        wait_until(has_run, what="the run")
    for each in started:
        assert each.end().status == 0
    assert [len(studio.ran(name)) for name in studio.names] == [1, 1, 1]
    assert_sticky(studio)
    for number, server in enumerate(studio.servers.values()):
        assert os.listdir(os.path.join(server.root, "input")).count("cat.png") == 1
        assert len(os.listdir(str(tmp_path / str(number)))) == 2


def test_a_single_run_on_a_killed_server(studio: Studio, workflow_file: Callable[..., str]) -> None:
    """One run is reported as lost; the other, with --retries, is submitted again and done elsewhere."""
    path = workflow_file(slow_prompt(steps=10, seconds=1.5))
    lost, again = Started("--server", studio.url, "--yes", "--json", path), None
    wait_until(lambda: any(map(studio.ran, studio.names)), what="the first run")
    (first,) = [name for name in studio.names if studio.ran(name)]
    again = Started("--server", studio.url, "--yes", "--json", "--retries", "2", path)
    wait_until(lambda: sum(len(studio.ran(name)) for name in studio.names) == 2, what="the second run")
    (second,) = [name for name in studio.names if name != first and studio.ran(name)]
    for name in (first, second):
        studio.servers[name].crash()
    result = lost.end()
    assert result.status == 9, printed(result)
    assert "its server is gone" in result.event("end")["message"]
    result = again.end()
    assert result.status == 0, printed(result)
    (third,) = [name for name in studio.names if name not in (first, second)]
    ends = [event for event in result.events if event["event"] == "end"]
    assert [end["exit_status"] for end in ends] == [9, 0]
    assert studio.where(ends[0]["prompt_id"]) == [second] and studio.where(ends[1]["prompt_id"]) == [third]
    assert_sticky(studio, 2)


@pytest.mark.parametrize("what", ["server", "HAProxy"])
def test_a_restart(studio: Studio, workflow_file: Callable[..., str], what: str) -> None:
    """Of the server, which forgets its prompts: the run is lost. Of HAProxy: the cookie leads back, and it ends."""
    started = Started("--server", studio.url, "--yes", "--json", workflow_file(slow_prompt(steps=10, seconds=3.0)))
    wait_until(lambda: any(map(studio.ran, studio.names)), what="the run")
    (where,) = [name for name in studio.names if studio.ran(name)]
    if what == "server":
        studio.servers[where].restart()
    else:
        studio.restart()
    result = started.end()
    assert result.status == (9 if what == "server" else 0), printed(result)
    assert [event["state"] for event in result.events if event["event"] == "connection"] == ["lost", "restored"]
    assert_sticky(studio)


def test_attach_finds_the_server_of_a_prompt(studio: Studio, workflow_file: Callable[..., str]) -> None:
    """Its server is the one with the most WebSockets open: those who submitted and follow there."""
    path = workflow_file(slow_prompt(steps=10, seconds=4.0))
    owner = Started("--server", studio.url, "--yes", "--json", path)
    wait_until(lambda: any(studio.ran(name) for name in studio.names), what="the run")
    (where,) = [name for name in studio.names if studio.ran(name)]
    (prompt_id,) = studio.ran(where)
    result = Started("--server", studio.url, "--yes", "--json", "--attach", prompt_id).end()
    assert result.status == 0, printed(result)
    assert result.event("end")["prompt_id"] == prompt_id
    assert owner.end().status == 0
    unknown = Started("--server", studio.url, "--yes", "--attach", "00000000-0000-4000-8000-000000000000").end()
    assert unknown.status == 9 and "does not know the prompt" in unknown.err


# ------------------------------------------------------------------------------------------------
# Continuous mode
# ------------------------------------------------------------------------------------------------


@pytest.fixture
def service(studio: Studio, workflow_file: Callable[..., str]) -> Iterator[Middleware]:
    """The program in continuous mode, connected."""
    path = workflow_file(slow_prompt(steps=4, seconds=1.0))
    made = Middleware(["--server", studio.url, path], {}, PATIENT)
    try:
        wait_until(lambda: made.get("/status").json["comfyui"]["connected"], what="the connection to ComfyUI")
        wait_until(lambda: made.service.session.connected, what="the WebSocket")
        yield made
    finally:
        made.stop()


def start(service: Middleware, seed: int) -> str:
    """A run of the held workflow with this seed; its prompt_id."""
    answer = service.post("/update/inputs", {"node_id": "1", "inputs": {"seed": seed}})
    assert answer.status == 200, answer
    answer = service.post("/queue")
    assert answer.status == 202, answer
    return str(answer.json["prompt_id"])


def ended(service: Middleware, prompt_id: str) -> Json:
    """A run when it is over."""
    record: Json = service.get("/runs/%s?wait=30" % prompt_id).json
    assert record["over"], record
    return record


def test_runs_of_the_service_spread_and_their_files_are_seen(studio: Studio, service: Middleware) -> None:
    ids = [start(service, seed) for seed in range(6)]
    records = [ended(service, prompt_id) for prompt_id in ids]
    assert [record["phase"] for record in records] == ["success"] * 6
    assert [len(studio.ran(name)) for name in studio.names] == [2, 2, 2]
    for record in records:
        (where,) = studio.where(record["prompt_id"])
        (output,) = record["outputs"]
        answer = service.get("/" + output["url"])
        path = os.path.join(studio.servers[where].root, "output", output["filename"])
        with open(path, "rb") as file:
            assert answer.status == 200 and answer.body == file.read()
    assert_sticky(studio)


def test_an_upload_reaches_whichever_server_runs_it(studio: Studio, service: Middleware) -> None:
    prompt = {
        "1": node("LoadImage", "Photo", image="example.png"),
        "2": node("SaveImage", "Save", filename_prefix="loaded", images=["1", 0]),
        "3": node("SlowProgress", "Slow", steps=2, seconds=1.0, seed=1, preview=False),
        "4": node("SaveImage", "Save too", filename_prefix="slow", images=["3", 0]),
    }
    service.hold(prompt)
    assert service.upload(name="cat.png").status == 200
    ids = []
    for seed in range(3):
        service.post("/update/inputs", {"node_id": "3", "inputs": {"seed": seed}})
        ids.append(service.post("/queue").json["prompt_id"])
    for prompt_id in ids:
        record = ended(service, prompt_id)
        assert record["phase"] == "success", record
    assert [len(studio.ran(name)) for name in studio.names] == [1, 1, 1]
    for server in studio.servers.values():
        with open(os.path.join(server.root, "input", "cat.png"), "rb") as file:
            assert file.read() == PNG
    assert_sticky(studio)


def test_the_file_of_a_call_reaches_the_server_that_runs_it_and_its_picture_comes_from_there(
    studio: Studio, service: Middleware
) -> None:
    prompt = {
        "1": node("LoadImage", "Photo", image="example.png"),
        "2": node("SlowProgress", "Slow", steps=2, seconds=1.0, seed=1, preview=False),
        "3": node("ImageBatch", image1=["1", 0], image2=["2", 0]),
        "4": node("SaveImage", "Save", filename_prefix="called", images=["3", 0]),
    }
    service.hold(prompt)
    answers: Dict[int, Any] = {}

    def call(seed: int) -> None:
        body, content_type = multipart(f"cat{seed}.png", PNG, **{"2.seed": str(seed)})
        answers[seed] = service.post("/run", body, Content_Type=content_type, Accept="image/*")

    clients = [threading.Thread(target=call, args=(seed,)) for seed in range(3)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(60.0)
    assert [len(studio.ran(name)) for name in studio.names] == [1, 1, 1]
    for seed, answer in answers.items():
        assert answer.status == 200, answer
        (where,) = studio.where(answer.headers["x-prompt-id"])
        root = studio.servers[where].root
        with open(os.path.join(root, "input", f"cat{seed}.png"), "rb") as file:
            assert file.read() == PNG
        name = answer.headers["content-disposition"].partition("''")[2]
        with open(os.path.join(root, "output", name), "rb") as file:
            assert answer.body == file.read()
    assert_sticky(studio)


def test_the_service_outlives_a_server(studio: Studio, service: Middleware) -> None:
    """Whichever is killed: its run is reported as lost, the others end, and the next runs are done elsewhere."""
    ids = [start(service, seed) for seed in range(3)]
    wait_until(lambda: sum(len(studio.ran(name)) for name in studio.names) == 3, what="three runs")
    service_is_at = service.service.backend.server.affinity["COMFYUI_SERVER"]
    studio.servers[service_is_at].crash()  # the one that the service itself talks to
    for prompt_id in ids:
        record = ended(service, prompt_id)
        gone = studio.where(prompt_id) == [service_is_at]
        assert record["phase"] == ("lost" if gone else "success"), record
        assert ("its server is gone" in record["message"]) == gone
    wait_until(lambda: service.get("/status").json["comfyui"]["connected"], 30.0, "another server")
    wait_until(lambda: service.service.backend.server.affinity.get("COMFYUI_SERVER") not in (None, service_is_at), 30.0)
    for prompt_id in [start(service, seed) for seed in range(10, 14)]:
        record = ended(service, prompt_id)
        assert record["phase"] == "success", record
        assert service.get("/" + record["outputs"][0]["url"]).status == 200
    assert_sticky(studio, 1)
