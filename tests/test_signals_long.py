"""Ctrl+C and SIGTERM pressed on a real process: ours ends as it should, and nobody else's does.

Everything about a press comes from its seed: the phase, the server's version, the signal, the other
client's job and the time. The seed is in the message of a failure; COMFYUI_SIGNALS_SEED=that
makes this press alone, COMFYUI_SIGNALS_BASE=N another set and COMFYUI_SIGNALS_RUNS=N more or fewer.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import glob
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import traceback
from typing import Any, Callable, Counter, Dict, Iterator, List, NamedTuple, Optional, Sequence

import pytest
import requests
from support import SCRIPT, node, slow_prompt

from comfyui_runner.errors import ExitStatus
from comfyui_runner.limits import DEFAULT_LIMITS
from comfyui_runner.simulator import Simulator

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.name == "nt", reason="Windows cannot send SIGINT to one process, and has no pty"),
]


#: One with the jobs API, and one that is cancelled by POST /queue and POST /interrupt.
VERSIONS = ("0.33.0", "0.3.64")

#: How long the program waits for the server's word on a cancel, and what it may take besides.
CANCEL, MARGIN = DEFAULT_LIMITS.cancel, 4.0

#: A fault that lasts longer than any test.
FOR_EVER = 60.0

#: A round of presses; 200 presses are ten of them.
ROUND = (
    *("starting",) * 2,
    *("connecting",) * 3,
    *("posting",) * 4,
    *("waiting",) * 3,
    *("running",) * 3,
    *("ending",) * 3,
    *("downloading",) * 2,
)

#: What the text can say of our prompt; one of these, and no other.
LAST_WORDS = {
    "not submitted": r"nothing was submitted",
    "deleted": r"removed from the queue before it ran",
    "interrupted": r"ComfyUI interrupted our run",
    "finished": r"the run had already finished|\bDone in ",
    "unknown": r"may still be running",
}


@pytest.fixture(autouse=True)
def _sigint_is_not_ignored() -> Iterator[None]:
    """A shell starts background jobs with SIGINT ignored, and children inherit that."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _environment(**more: str) -> Dict[str, str]:
    """The environment of a person who set nothing; asyncio's debug mode slows a process down."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("COMFYUI_")}
    mine.pop("PYTHONASYNCIODEBUG", None)
    return {**mine, "PYTHONUTF8": "1", **more}


class Process:
    """The program as a process of its own, which writes to files in ``folder``."""

    def __init__(self, folder: str, prompt: Dict[str, Any], *arguments: str) -> None:
        workflow = os.path.join(folder, "workflow_api.json")
        with open(workflow, "w", encoding="utf-8") as file:
            json.dump(prompt, file)
        self._files = [os.path.join(folder, name) for name in ("stdout", "stderr")]
        command = [sys.executable, "-X", "faulthandler", SCRIPT, *arguments, workflow]
        with open(self._files[0], "wb") as out, open(self._files[1], "wb") as err:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=_environment()
            )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.alive:
            self._process.kill()
        self._process.wait()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def text(self) -> str:
        """Both streams so far."""
        return self.out + self.err

    @property
    def out(self) -> str:
        return self._read(0)

    @property
    def err(self) -> str:
        return self._read(1)

    def _read(self, number: int) -> str:
        with open(self._files[number], encoding="utf-8") as file:
            return file.read()

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Waits for a condition of the living process."""
        _until(lambda: condition() or not self.alive, what)
        assert condition(), "the process ended before %s:\n%s" % (what, self.text)

    def press(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self, seconds: float) -> int:
        """The exit status; a process that lives longer shows where its threads are."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.press(signal.SIGABRT)
            self._process.wait()
            raise AssertionError("it still lived after %.1f s:\n%s" % (seconds, self.text)) from None


def _until(condition: Callable[[], object], what: str, seconds: float = 30.0) -> None:
    """Like wait_until(), but more leisurely: many presses share the processors."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "%s did not come in %s s" % (what, seconds)
        time.sleep(0.02)


def _post(url: str, prompt: Dict[str, Any]) -> Dict[str, Any]:
    """The answer to a prompt of another client."""
    answer = requests.post(url + "/prompt", json={"prompt": prompt, "client_id": "other"}, timeout=10)
    assert answer.status_code == 200, answer.text
    accepted: Dict[str, Any] = answer.json()
    return accepted


def _get(url: str, path: str) -> Dict[str, Any]:
    found: Dict[str, Any] = requests.get(url + path, timeout=10).json()
    return found


def _last_words(text: str) -> str:
    """What the text says of our prompt."""
    (said,) = [name for name, pattern in LAST_WORDS.items() if re.search(pattern, text)]
    return said


class Record(NamedTuple):
    """What the server knows of our prompt at the end."""

    fate: str  # one of LAST_WORDS
    ended: float  # when, by the wall clock


def _record(simulator: Any, others: Sequence[str]) -> Record:
    """The server's record, once its queue is empty; the others' prompts all succeeded."""
    _until(lambda: not any(_get(simulator.url, "/queue").values()), "the end of the queue", 20.0)
    history = _get(simulator.url, "/history")
    for prompt_id in others:
        assert history.pop(prompt_id)["status"]["status_str"] == "success", "the other client's job was hit"
        assert simulator.executions[prompt_id] == 1
    assert all(count == 1 for count in simulator.executions.values()), simulator.executions
    if history:
        (entry,) = history.values()
        names = {name: data["timestamp"] for name, data in entry["status"]["messages"]}
        for name, fate in (("execution_interrupted", "interrupted"), ("execution_success", "finished")):
            if name in names:
                return Record(fate, names[name] / 1000)
        raise AssertionError(entry["status"])
    assert set(simulator.executions) == set(others)
    taken = _post(simulator.url, {"1": node("TextOut", text="probe")})["number"]  # it numbers what it takes
    assert taken in (len(others), len(others) + 1)
    return Record("not submitted" if taken == len(others) else "deleted", 0.0)


class Press(NamedTuple):
    """What one press showed."""

    phase: str
    version: str
    number: int
    said: str
    seconds: float  # from the press to the end of the process


def one_press(seed: int, folder: str) -> Press:
    """One press in one phase against a server of its own; all is asserted here."""
    rng = random.Random(seed)
    place = seed % 100000
    phase = ROUND[place % len(ROUND)]
    version = VERSIONS[(place % len(ROUND) + place // len(ROUND)) % len(VERSIONS)]
    number = signal.SIGTERM if rng.random() < 0.25 else signal.SIGINT
    before = phase in ("starting", "connecting", "waiting") or rng.random() < 0.5
    prompt = slow_prompt(steps=20, seconds={"ending": 0.3, "downloading": 0.1}.get(phase, FOR_EVER), seed=seed)
    other = slow_prompt(steps=10, seconds=rng.uniform(0.3, 1.0) + (phase == "waiting"), seed=-seed & 0xFFFFFF)
    saved_to = os.path.join(folder, "out")
    save = phase == "downloading" or rng.random() < 0.3
    arguments = ["--yes", *(["--json"] if rng.random() < 0.5 else []), *(["-o", saved_to] if save else [])]
    others: List[str] = []
    with Simulator(version=version) as simulator:
        faults = simulator.faults

        def posted() -> bool:
            return simulator.requests.count(("POST", "/prompt")) > len(others)

        def began() -> bool:
            return bool(set(simulator.executions) - set(others))

        def add_other() -> None:
            faults.http_hang, faults.lose_post = {}, []
            others.append(_post(simulator.url, other)["prompt_id"])

        if before:
            add_other()
        delay = rng.uniform(0.0, {"starting": 0.3, "connecting": 0.5, "waiting": 0.8}.get(phase, 0.6))
        if phase == "connecting":
            route = rng.choice(("/system_stats", "/ws"))
            faults.http_hang = {route: FOR_EVER}
        elif phase == "posting":
            hang = rng.choice((0.0, rng.uniform(0.1, 2.5)))
            faults.http_hang = {"/prompt": hang}
            faults.lose_post = rng.choice(([], [], ["before"], ["after"]))
            delay = rng.uniform(0.0, hang + 0.2)
        elif phase == "ending":
            delay = rng.uniform(0.22, 0.42)
        elif phase == "downloading":
            faults.http_hang = {"/view": rng.choice((rng.uniform(0.1, 2.0), FOR_EVER))}
        with Process(folder, prompt, "--server", simulator.url, *arguments) as process:
            if phase == "starting":
                process.until(lambda: "\n" in process.out, "the first line")
            elif phase == "connecting":
                process.until(lambda: ("GET", route) in simulator.requests, "the connection")
            elif phase == "posting":
                process.until(posted, "the POST")
            elif phase == "waiting":
                process.until(lambda: "ubmitted" in process.out, "the prompt's acceptance")
            elif phase == "downloading":
                process.until(lambda: ("GET", "/view") in simulator.requests, "the download")
            else:
                process.until(began, "the run's begin")
            start = time.monotonic()
            if not before and phase in ("running", "ending"):
                add_other()  # right behind ours
            time.sleep(max(0.0, start + delay - time.monotonic()))
            alive, pressed, at = process.alive, time.monotonic(), time.time()
            process.press(number)
            if not before and phase not in ("running", "ending"):
                if phase == "posting":
                    _until(lambda: began() or not process.alive, "our prompt's begin")
                add_other()
            status = process.wait(max(0.0, pressed + CANCEL + MARGIN - time.monotonic()))
            seconds = time.monotonic() - pressed
            try:
                record = _record(simulator, others)
                said = _last_words(process.text)
                assert said == record.fate, "the text says %s, the server %s" % (said, record.fate)
                _check_status(status, phase, number, alive, record, at)
                _check_text(process, status, number)
                _check_files(process, said, status, saved_to if save else None)
                if phase == "connecting":
                    assert (said, seconds < 3.0) == ("not submitted", True), (said, seconds)
                elif phase in ("running", "waiting"):
                    assert said in ("interrupted", "deleted")
            except (AssertionError, KeyError, ValueError) as error:
                about = "%s, %s, signal %d, %s ours, %s: status %d after %.2f s" % (
                    phase, version, number, "before" if before else "behind", arguments, status, seconds
                )  # fmt: skip
                raise AssertionError("%s\n%s\n%s" % (error, about, process.text)) from error
    return Press(phase, version, number, said, seconds)


def _check_status(status: int, phase: str, number: int, alive: bool, record: Record, at: float) -> None:
    """The signal's status, or the run's own if it had ended before."""
    if status != 128 + number:
        assert status == ExitStatus.OK, "status %d" % status
        assert phase in ("ending", "downloading") and record.fate == "finished"
        assert record.ended <= at + 0.3  # the press and the end can meet on their way
    else:
        assert alive


def _check_text(process: Process, status: int, number: int) -> None:
    """Nothing of Python in it; it names what was pressed; JSON stays JSON and ends with the status."""
    assert "Traceback" not in process.text and "Interrupt\n" not in process.text
    if status != ExitStatus.OK:
        assert re.search("Stopped" if "Done in" in process.text else cwr_name(number), process.text)
    if process.out.startswith("{"):
        last = [json.loads(line) for line in process.out.splitlines()][-1]
        assert last["event"] in ("end", "error") and last["exit_status"] == status


def cwr_name(number: int) -> str:
    """What a person calls the signal."""
    return "SIGTERM" if number == signal.SIGTERM else r"Ctrl\+C"


def _check_files(process: Process, said: str, status: int, saved_to: Optional[str]) -> None:
    """What is reported as saved exists and nothing else; all of it if the status says so."""
    if saved_to is None:
        return
    files = [name for name in glob.glob(os.path.join(saved_to, "**"), recursive=True) if os.path.isfile(name)]
    hidden = glob.glob(os.path.join(saved_to, ".*"))
    assert not hidden, "left over: %s" % hidden
    assert len(files) <= (said == "finished")
    assert len(files) == len(re.findall(r'(?m)^Saved |"event": "saved"', process.out))
    if status == ExitStatus.OK:
        assert len(files) == 1, "the status says that all is saved"


def test_a_press_in_any_phase_ends_our_prompt_as_reported_and_no_other(tmp_path: Any) -> None:
    """200 presses while it starts, connects, POSTs, waits, runs, ends and downloads: our prompt was
    never submitted, taken off the queue, interrupted, or had finished; the text says which of these
    the server's record shows; the status is 130 (143 for SIGTERM), or 0 if the run had ended before;
    no file is left half-written; the process is gone in time. The other client's job, before ours or
    right behind it, always succeeds.
    """
    alone = os.environ.get("COMFYUI_SIGNALS_SEED")
    base = int(os.environ.get("COMFYUI_SIGNALS_BASE", "1"))
    count = int(os.environ.get("COMFYUI_SIGNALS_RUNS", "200"))
    seeds = [int(alone)] if alone else [base * 100000 + number for number in range(count)]

    def press(seed: int) -> Press:
        (tmp_path / str(seed)).mkdir()
        return one_press(seed, str(tmp_path / str(seed)))

    with concurrent.futures.ThreadPoolExecutor(6) as crew:
        futures = {seed: crew.submit(press, seed) for seed in seeds}
    failures = [(seed, error) for seed, future in futures.items() for error in [future.exception()] if error]
    if failures:
        lines = ["COMFYUI_SIGNALS_SEED=%d: %s" % (seed, str(error).partition("\n")[0]) for seed, error in failures]
        heading = "%d of %d presses failed, each can be made alone:" % (len(lines), len(seeds))
        first = failures[0][1]
        shown = "".join(traceback.format_exception(type(first), first, first.__traceback__))
        pytest.fail("\n".join([heading, *lines, "", "The first one:", shown]), pytrace=False)
    presses = [future.result() for future in futures.values()]
    if not alone and count >= 200:
        seen = {(press.phase, press.version) for press in presses}
        assert seen == {(phase, version) for phase in ROUND for version in VERSIONS}
        assert {press.said for press in presses} == set(LAST_WORDS) - {"unknown"}
        tally: Counter[str] = collections.Counter("%s: %s" % (press.phase, press.said) for press in presses)
        print(sorted(tally.items()), "slowest %.1f s" % max(press.seconds for press in presses))


# -- servers that do not follow ----------------------------------------------------------------------


class Stubborn(NamedTuple):
    """A server that does not follow: what Faults is set to, when to press, what is reported then."""

    hang: Dict[str, float]
    ignores: bool
    moment: Callable[[Any], bool]


STUBBORN: Dict[str, Stubborn] = {
    "interrupts are ignored": Stubborn({}, True, lambda simulator: bool(simulator.executions)),
    "the POST hangs": Stubborn(
        {"/prompt": FOR_EVER}, False, lambda simulator: ("POST", "/prompt") in simulator.requests
    ),
    "the queue hangs": Stubborn({"/queue": FOR_EVER}, False, lambda simulator: bool(simulator.executions)),
}


@contextlib.contextmanager
def _stubborn(case: str, version: str, folder: Any) -> Iterator[Process]:
    """Our process at the moment to press it; the server still has its prompt afterwards."""
    folder.mkdir()
    with Simulator(version=version) as simulator:
        simulator.faults.http_hang = dict(STUBBORN[case].hang)
        simulator.faults.ignore_interrupt = STUBBORN[case].ignores
        prompt = slow_prompt(steps=100, seconds=FOR_EVER)
        with Process(str(folder), prompt, "--server", simulator.url, "--yes", "--json") as process:
            process.until(lambda: STUBBORN[case].moment(simulator), "the moment")
            yield process
        simulator.faults.http_hang = {}
        queue = _get(simulator.url, "/queue")
        running = [item[1] for item in queue["queue_running"]]
        prompt_id = json.loads(process.out.splitlines()[-1])["prompt_id"]
        assert running == ([] if case == "the POST hangs" else [prompt_id])
        assert "prompt %s may still be running" % prompt_id in process.text


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", STUBBORN)
def test_a_second_press_leaves_at_once(case: str, version: str, second: int, tmp_path: Any) -> None:
    """In less than a second, with the second press's status, and the text says that the job may
    still run (which the server's queue confirms); threads that wait for an answer hold nothing up."""
    with _stubborn(case, version, tmp_path / "run") as process:
        process.press(signal.SIGINT)
        process.until(lambda: "cancelling our prompt" in process.out, "the notice")
        pressed = time.monotonic()
        process.press(second)
        assert process.wait(1.0) == 128 + second
        assert time.monotonic() - pressed < 1.0
    assert "Exited at once" in process.err and "Traceback" not in process.text


def test_a_second_press_leaves_a_download_at_once(tmp_path: Any) -> None:
    """In less than a second, though the server does not send the file."""
    with Simulator() as simulator:
        simulator.faults.http_hang = {"/view": FOR_EVER}
        arguments = ["--server", simulator.url, "--yes", "-o", str(tmp_path / "out")]
        with Process(str(tmp_path), slow_prompt(seconds=0.1), *arguments) as process:
            process.until(lambda: ("GET", "/view") in simulator.requests, "the download")
            pressed = time.monotonic()
            process.press(signal.SIGTERM)
            process.press(signal.SIGINT)
            assert process.wait(1.0) in (130, 143)
            assert time.monotonic() - pressed < 1.0


def test_a_single_press_gives_up_when_the_server_never_confirms(tmp_path: Any) -> None:
    """After 8 seconds, with status 130, and the text says that it is not confirmed; no sooner and
    not much later, whether interrupts are ignored or a request hangs."""

    def give_up(place: int) -> None:
        case, version = list(STUBBORN)[place % len(STUBBORN)], VERSIONS[place // len(STUBBORN)]
        with _stubborn(case, version, tmp_path / str(place)) as process:
            pressed = time.monotonic()
            process.press(signal.SIGINT)
            assert process.wait(CANCEL + MARGIN) == 130, (case, version)
            seconds = time.monotonic() - pressed
        assert seconds >= CANCEL - 0.1, (case, version, seconds)
        end = json.loads(process.out.splitlines()[-1])
        assert (end["event"], end["status"], end["exit_status"]) == ("end", "cancelled", 130)
        assert end["message"].startswith("Cancelled: ComfyUI has not confirmed it"), end

    with concurrent.futures.ThreadPoolExecutor(9) as crew:
        for future in [crew.submit(give_up, place) for place in range(len(STUBBORN) * len(VERSIONS))]:
            future.result()


# -- a terminal --------------------------------------------------------------------------------------

#: Makes its terminal the one that Ctrl+C comes from, and becomes the program.
LAUNCHER = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""

SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"


class Terminal:
    """The program in a terminal of its own, at which a person types."""

    def __init__(self, *arguments: str) -> None:
        import fcntl
        import pty
        import struct
        import termios

        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, SCRIPT, *arguments],
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            env=_environment(TERM="xterm-256color"),
        )  # fmt: skip
        os.close(slave)
        self._data = b""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        os.close(self._master)

    def _read(self, seconds: float) -> bool:
        """Reads once; False when the program has gone and all is read."""
        import select

        if select.select([self._master], [], [], seconds)[0]:
            try:
                data = os.read(self._master, 1 << 16)
            except OSError:  # so Linux reports the end
                return False
            self._data += data
            return bool(data)
        return True

    @property
    def text(self) -> str:
        """What was written so far."""
        return self._data.decode("utf-8", "replace")

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Reads until the condition is true."""
        end = time.monotonic() + 20.0
        while not condition():
            assert time.monotonic() < end and self._read(0.02), "%s did not come:\n%r" % (what, self.text)

    def wait(self, seconds: float) -> int:
        """Reads to the end; the exit status."""
        end = time.monotonic() + seconds
        while self._read(0.05):
            assert time.monotonic() < end, "it still lived after %.1f s:\n%r" % (seconds, self.text)
        return self._process.wait(max(0.1, end - time.monotonic()))


def _shown_last(text: str) -> bool:
    """Whether the cursor was hidden, and is shown at the end."""
    return -1 < text.rfind(HIDE_CURSOR) < text.rfind(SHOW_CURSOR)


def test_ctrl_c_typed_at_the_question_submits_nothing(simulator: Any, workflow_file: Any) -> None:
    """It leaves with 130 and says so; the server was never given a prompt."""
    with Terminal("--server", simulator.url, workflow_file(slow_prompt())) as terminal:
        terminal.until(lambda: "Run it? [y/N] " in terminal.text, "the question")
        terminal.type("\x03")
        assert terminal.wait(3.0) == 130
    assert "Stopped by Ctrl+C: nothing was submitted." in terminal.text
    assert "Traceback" not in terminal.text
    assert HIDE_CURSOR not in terminal.text or _shown_last(terminal.text)
    assert ("POST", "/prompt") not in simulator.requests


@pytest.mark.parametrize("version", VERSIONS)
def test_ctrl_c_typed_during_the_run_cancels_it(version: str, make_simulator: Any, workflow_file: Any) -> None:
    """After a yes to the question: it is interrupted and says so, and the cursor is shown again."""
    simulator = make_simulator(version=version)
    path = workflow_file(slow_prompt(steps=100, seconds=FOR_EVER))
    with Terminal("--server", simulator.url, path) as terminal:
        terminal.until(lambda: "Run it? [y/N] " in terminal.text, "the question")
        terminal.type("y\n")
        terminal.until(lambda: simulator.executions and HIDE_CURSOR in terminal.text, "the run's begin")
        terminal.type("\x03")
        assert terminal.wait(CANCEL + MARGIN) == 130
    assert "Ctrl+C: cancelling our prompt and nothing else." in terminal.text
    assert "Cancelled: ComfyUI interrupted our run" in terminal.text
    assert "Traceback" not in terminal.text
    assert _shown_last(terminal.text)
    assert _record(simulator, []).fate == "interrupted"


def test_a_second_ctrl_c_in_a_terminal_leaves_at_once_with_the_cursor_shown(simulator: Any, workflow_file: Any) -> None:
    """In less than a second, while the server ignores the interrupt."""
    simulator.faults.ignore_interrupt = True
    path = workflow_file(slow_prompt(steps=100, seconds=FOR_EVER))
    with Terminal("--server", simulator.url, "--yes", path) as terminal:
        terminal.until(lambda: simulator.executions and HIDE_CURSOR in terminal.text, "the run's begin")
        terminal.type("\x03")
        terminal.until(lambda: "cancelling our prompt" in terminal.text, "the notice")
        terminal.type("\x03")
        assert terminal.wait(1.0) == 130
    assert re.search(r"Exited at once: prompt \S+ may still be running", terminal.text)
    assert _shown_last(terminal.text)
