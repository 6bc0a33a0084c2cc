"""What the tests share: the program called in this process, simulators, prompts."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import os
import pkgutil
import socket
import sys
import threading
import time
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, TextIO

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FIXTURES = os.path.join(ROOT, "tests", "fixtures")
#: A certificate for 127.0.0.1, ::ffff:127.0.0.1 and localhost that is its own authority, valid until 2126.
CERTIFICATE = os.path.join(FIXTURES, "tls", "certificate.pem")
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

#: The program as it is called: the script, or (python tests/run.py --onefile) the one file that was built.
SCRIPT = os.environ.get("COMFYUI_RUNNER_UNDER_TEST") or os.path.join(ROOT, "comfyui_workflow_runner.py")
IS_ONE_FILE = "COMFYUI_RUNNER_UNDER_TEST" in os.environ

import pytest  # noqa: E402

import comfyui_runner  # noqa: E402


def module_names() -> List[str]:
    """The names of the modules that the program is made of."""
    names = [name for _, name, _ in pkgutil.walk_packages(comfyui_runner.__path__, "comfyui_runner.")]
    return [name for name in names if not name.startswith(("comfyui_runner.simulator", "comfyui_runner.onefile"))]


def load_one_file() -> Any:
    """The one file as a module, which from then on is also every module of the package."""
    names = module_names()
    spec = importlib.util.spec_from_file_location("comfyui_workflow_runner", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    for name in names:
        sys.modules[name] = module
        if name.count(".") == 1:
            setattr(comfyui_runner, name.partition(".")[2], module)
    return module


script: Any = load_one_file() if IS_ONE_FILE else importlib.import_module("comfyui_workflow_runner")

from comfyui_runner.environment import Environment  # noqa: E402
from comfyui_runner.limits import Limits  # noqa: E402

#: Waits short enough for tests, in seconds; the rules are the same.
FAST = Limits(
    connect=2.0,
    read=4.0,
    post=4.0,
    websocket=3.0,
    settle=1.2,
    absent=0.6,
    silence=2.0,
    poll=0.6,
    give_up=8.0,
    give_up_one=1.5,
    cancel=4.0,
    hook=3.0,
)


def program_modules() -> List[Any]:
    """The modules of the program: the script, and the package without the simulator."""
    return [script, *map(importlib.import_module, module_names())]


def program_text() -> str:
    """The source of the program, for tests that compare it with the documents."""
    texts = []
    for module in program_modules():
        with open(module.__file__, encoding="utf-8") as file:
            texts.append(file.read())
    return "\n".join(texts)


def call(
    arguments: Sequence[str],
    stdin: TextIO,
    out: TextIO,
    err: TextIO,
    variables: Optional[Mapping[str, str]] = None,
    limits: Optional[Limits] = None,
) -> int:
    """The exit status of the program, called in this process."""
    environment = Environment(
        arguments, stdin=stdin, stdout=out, stderr=err, variables=variables or {}, limits=limits or FAST
    )
    status: int = script.main(environment)
    return status


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Outcome(NamedTuple):
    """What one call of the program came to."""

    status: int
    out: str
    err: str

    @property
    def events(self) -> List[Dict[str, Any]]:
        """The JSON lines of the output."""
        return [json.loads(line) for line in self.out.splitlines()]

    def event(self, name: str) -> Dict[str, Any]:
        """The one event of that name."""
        (found,) = [event for event in self.events if event["event"] == name]
        return found

    def names(self) -> List[str]:
        """The events' names in order."""
        return [event["event"] for event in self.events]


def run(
    *arguments: str,
    answers: Optional[str] = None,
    limits: Limits = FAST,
    environment: Optional[Mapping[str, str]] = None,
    out: Optional[io.StringIO] = None,
) -> Outcome:
    """main() with these arguments; ``answers`` are typed at a terminal (None: no terminal)."""
    stdin = io.StringIO() if answers is None else Terminal(answers)
    out, err = out or io.StringIO(), io.StringIO()
    status = call(arguments, stdin, out, err, environment, limits)
    return Outcome(status, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def count_calls(*names: str) -> Iterator[Dict[str, int]]:
    """Counts the calls of functions of these names in this thread."""
    calls = dict.fromkeys(names, 0)

    def note(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_name in calls:
            calls[frame.f_code.co_name] += 1

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(before)


def node(class_type: str, title: str = "", **inputs: Any) -> Dict[str, Any]:
    """A node of a prompt."""
    made: Dict[str, Any] = {"class_type": class_type, "inputs": inputs}
    if title:
        made["_meta"] = {"title": title}
    return made


def slow_prompt(steps: int = 4, seconds: float = 0.2, seed: int = 1, preview: bool = False) -> Dict[str, Any]:
    """A node with progress, and a picture that is saved."""
    return {
        "1": node("SlowProgress", "Slow", steps=steps, seconds=seconds, seed=seed, preview=preview),
        "2": node("SaveImage", "Save Image", filename_prefix="slow", images=["1", 0]),
    }


def copy_with_crlf(folder: Any) -> None:
    """Copies the script and its package into ``folder``, with CRLF as git may have written them on Windows."""
    for parent, _, names in os.walk(os.path.join(ROOT, "comfyui_runner")):
        paths = [
            os.path.join(parent, name) for name in names if name.endswith((".py", ".html", ".css", ".js", ".json"))
        ]
        if parent.endswith("comfyui_runner"):
            paths.append(os.path.join(ROOT, "comfyui_workflow_runner.py"))
        for path in paths:
            target = folder / os.path.relpath(path, ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "rb") as file:
                target.write_bytes(file.read().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))


#: Modules at the top of ComfyUI's folder; several of ours have the same names.
COMFYUI_MODULES = ("server", "nodes", "utils", "app", "execution", "middleware", "comfy", "folder_paths")


def make_decoys(folder: Any) -> str:
    """Makes ``folder`` with modules of ComfyUI's names, and of our package's; each ends a program that imports it."""
    folder.mkdir()
    for name in (*COMFYUI_MODULES, "comfyui_runner"):
        path = folder / f"{name}.py"
        path.write_text(f"raise SystemExit('another module {name} was imported')", encoding="utf-8")
    return str(folder)


def seconds_since(began: float) -> float:
    """The seconds that have passed since ``began`` (time.monotonic()), as many as they can be.

    Windows' clock ticks every 15.6 ms up to Python 3.12: the test may miss one tick, and what it measures another.
    """
    return time.monotonic() - began + 2 * time.get_clock_info("monotonic").resolution


def wait_until(condition: Callable[[], Any], seconds: float = 30.0, what: str = "the condition") -> Any:
    """The first true value of ``condition()``; fails after ``seconds``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError("%s did not come true in %s s" % (what, seconds))


def has_ipv6() -> bool:
    """Whether this machine has ::1."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
        probe.bind(("::1", 0))
        return True
    return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")


def pump(source: socket.socket, target: socket.socket) -> None:
    """Hands on what comes until either end closes."""
    with contextlib.suppress(OSError):
        while True:
            data = source.recv(65536)
            if not data:
                break
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def pump_to_port(client: socket.socket, port: int) -> None:
    """Hands on what comes between ``client`` and ``port`` of this machine, until either end closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as server:
        upwards = threading.Thread(target=pump, args=(client, server), daemon=True)
        upwards.start()
        pump(server, client)
        upwards.join(5)


@contextlib.contextmanager
def limited_disk(size: int) -> Iterator[None]:
    """No file of this process can grow beyond ``size`` bytes: writing more fails as it does on a full disk."""
    resource = pytest.importorskip("resource", reason="Windows has no limit for the size of a file")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))  # Python ignores SIGXFSZ
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def no_more_files() -> Iterator[None]:
    """This process can open no more files: each try fails with EMFILE, whoever runs it."""
    resource = pytest.importorskip("resource", reason="Windows has no limit for open files")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
