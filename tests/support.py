"""What the tests share: the program called in this process, simulators, prompts."""

from __future__ import annotations

import glob
import io
import json
import os
import sys
import time
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FIXTURES = os.path.join(ROOT, "tests", "fixtures")
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

import comfyui_workflow_runner as cwr  # noqa: E402
from comfyui_runner.limits import Limits


def program_text() -> str:
    """The source of the program, script and package, for tests that compare it with the documents."""
    paths = [os.path.join(ROOT, "comfyui_workflow_runner.py")]
    for pattern in ("*.py", os.path.join("extras", "*.py")):
        paths += sorted(glob.glob(os.path.join(ROOT, "comfyui_runner", pattern)))
    texts = []
    for path in paths:
        with open(path, encoding="utf-8") as file:
            texts.append(file.read())
    return "\n".join(texts)


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
    cancel=4.0,
)


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
    status = cwr.main(list(arguments), stdin, out, err, environment or {}, limits)
    return Outcome(status, out.getvalue(), err.getvalue())


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


def wait_until(condition: Callable[[], Any], seconds: float = 10.0, what: str = "the condition") -> Any:
    """The first true value of ``condition()``; fails after ``seconds``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError("%s did not come true in %s s" % (what, seconds))
