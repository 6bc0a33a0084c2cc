"""What it costs to follow many runs at a time:  python tests/bench_scaling.py [RUNS ...]

For 1, 8, 32 and 64 runs in flight (``--repeat K --in-flight K``), each on a simulator of its own behind HAProxy with
the configuration of docs/SCALING.md, it prints a row of a table. Each run does 5 steps a second, and every step
sends ``progress_state``, ``progress`` and a preview of 32 KiB. The runner writes JSON lines to a file.

CPU, events and bytes are counted in the runner's process, from when all runs have begun until the first one ends; the
CPU that each run costs besides (its connection, its cookie, POST, history, manifest) is a column of its own, which
has the start of the program in it. A second table has 8 to 64 runs of a second in flight on 4 servers, so that most
of them wait: what the waiting costs, in CPU of the whole process and in requests. The simulators and HAProxy are
processes on the same machine: they take its processors too, but not these figures. Exits with 1 if an event that a
simulator sent was not received.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any, Dict, List

from support import script, slow_prompt

from comfyui_runner.environment import Environment
from comfyui_runner.session import Session
from comfyui_runner.simulator import Simulator, draw
from comfyui_runner.simulator.life import Life
from comfyui_runner.simulator.running import Running

RUNS = (1, 8, 32, 64)
WAITING = (8, 32, 64)
STEPS_PER_SECOND = 5
PREVIEW = 32 << 10

#: The text frames that are counted: all that come before a run's end, no matter who sends them.
COUNTED = '{"type": "progress'


class Watch:
    """Counts what a runner in this process receives, and its CPU while all runs are on their way."""

    def __init__(self, runs: int) -> None:
        self.runs = runs
        self.events = self.bytes = 0
        self.begun: set[int] = set()
        self.window: List[Dict[str, float]] = []
        receive = Session._receive

        def counted(session: Any, frame: Any) -> None:
            receive(session, frame)
            if isinstance(frame, bytes) or frame.startswith(COUNTED):
                self.events += 1
                self.bytes += len(frame)
                if not self.window:
                    self.begun.add(id(session))
                    if len(self.begun) == self.runs:
                        self.mark()
            elif frame.startswith('{"type": "execution_success"') and len(self.window) == 1:
                self.mark()

        Session._receive = counted  # type: ignore[method-assign,assignment]

    def mark(self) -> None:
        """Takes the figures of now."""
        fds = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        self.window.append(
            {
                "at": time.monotonic(),
                "cpu": time.process_time(),
                "events": self.events,
                "bytes": self.bytes,
                "files": fds,
            }
        )


def follow(runs: int, arguments: List[str]) -> int:
    """The runner in this process; prints what was counted on standard error."""
    watch = Watch(runs)
    status: int = script.main(Environment(arguments))
    figures_of_process = {"events": watch.events, "window": watch.window, "cpu": time.process_time()}
    sys.stderr.write("\n" + json.dumps(figures_of_process) + "\n")
    return status


def simulate(count: int) -> int:
    """``count`` simulators in this process, until standard input ends; then how many events they sent."""
    picture = draw(128, 128, 1, ["A", "PREVIEW"])
    preview = picture.ljust(PREVIEW, b"\0")
    Running.draw_preview = lambda *_: preview  # type: ignore[method-assign]  # it is not what is measured
    sent = [0]
    emit = Life.emit

    def counted(life: Any, frame: Any, sid: Any) -> None:
        with life.lock:
            if sid is not None and (isinstance(frame, bytes) or frame.startswith(COUNTED)):
                sent[0] += 1
        emit(life, frame, sid)

    Life.emit = counted  # type: ignore[method-assign,assignment]
    simulators = [Simulator().start() for _ in range(count)]
    print(json.dumps([simulator.port for simulator in simulators]), flush=True)
    sys.stdin.read()
    print(sent[0], sum(len(simulator.requests) for simulator in simulators), flush=True)
    for simulator in simulators:
        simulator.stop()
    return 0


def measure(runs: int, haproxy: str, seconds: float, servers: int = 0, repeat: int = 0) -> Dict[str, float]:
    """The figures for ``repeat`` runs, ``runs`` of them in flight at a time, on ``servers`` (0: one for each)."""
    from test_balancer_long import documented

    here = [sys.executable, os.path.abspath(__file__)]
    with tempfile.TemporaryDirectory(prefix="scaling-") as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        simulators = subprocess.Popen(
            [*here, "--simulate", str(servers or runs)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert simulators.stdin is not None and simulators.stdout is not None
        balancer: Any = None
        try:
            ports = json.loads(simulators.stdout.readline())
            text = documented().replace("/run/haproxy/admin.sock", os.path.join(folder, "admin.sock"))
            text = text.replace("bind :8188", "bind fd@%d" % listener.fileno())
            text = re.sub(r"(?m)^ +server .*\n", "", text)
            text += "".join("    server s%d 127.0.0.1:%d cookie s%d\n" % (port, port, port) for port in ports)
            for name, content in (
                ("haproxy.cfg", text),
                ("api.json", json.dumps(slow_prompt(int(seconds * STEPS_PER_SECOND), seconds, preview=True))),
            ):
                with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
                    file.write(content)
            command = [haproxy, "-db", "-f", os.path.join(folder, "haproxy.cfg")]
            balancer = subprocess.Popen(command, pass_fds=[listener.fileno()], stderr=subprocess.DEVNULL)
            arguments = ["--server", "http://127.0.0.1:%d" % listener.getsockname()[1], "--yes", "--json"]
            arguments += ["--repeat", str(repeat or runs), "--in-flight", str(runs)]
            arguments += ["--manifest", os.path.join(folder, "m.jsonl"), os.path.join(folder, "api.json")]
            with open(os.path.join(folder, "out"), "wb") as out, open(os.path.join(folder, "err"), "w+b") as err:
                child = subprocess.Popen(
                    [*here, "--follow", str(runs), *arguments], stdin=subprocess.DEVNULL, stdout=out, stderr=err
                )
                began = time.monotonic()
                _, status, usage = os.wait4(child.pid, 0)
                whole = time.monotonic() - began
                child.returncode = status
                err.seek(0)
                said = err.read().decode()
            if status:
                with open(os.path.join(folder, "out"), encoding="utf-8") as file:
                    raise SystemExit("The runner failed: %s\n%s" % (said, file.read()[-3000:]))
            figures_of_process = json.loads(said.splitlines()[-1])
            simulators.stdin.close()
            sent, requests = map(int, simulators.stdout.readline().split())
        finally:
            if balancer is not None:
                balancer.kill()
                balancer.wait()
            simulators.kill()
            simulators.wait()
            for pipe in (simulators.stdin, simulators.stdout):
                pipe.close()
    figures = {
        "lost": sent - figures_of_process["events"],
        "runs": runs,
        "whole": whole,
        "busy": figures_of_process["cpu"] / whole,
    }
    figures["mib"] = usage.ru_maxrss / (1024 if sys.platform.startswith("linux") else 1 << 20)
    if servers:
        return {**figures, "asked": requests / repeat, "per_second": requests / whole, "servers": servers}
    first, last = figures_of_process["window"]
    took, cpu = last["at"] - first["at"], last["cpu"] - first["cpu"]
    return {
        **figures, "cpu": cpu / took / runs, "core": cpu / took,
        "events": (last["events"] - first["events"]) / took,
        "bytes": (last["bytes"] - first["bytes"]) / took,
        "files": last["files"], "besides": (figures_of_process["cpu"] - cpu) / runs,
    }  # fmt: skip


def main(arguments: List[str]) -> int:
    from debian import find_program

    if arguments[:1] == ["--simulate"]:
        return simulate(int(arguments[1]))
    if arguments[:1] == ["--follow"]:
        return follow(int(arguments[1]), arguments[2:])
    haproxy = find_program("haproxy")
    if haproxy is None:
        raise SystemExit("HAProxy is needed: apt-get install haproxy")
    print(
        "| runs | CPU s a run-second | of one core | peak MiB | events/s | MiB/s | CPU s a run besides | files | lost |"
    )
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    lost = 0.0
    for runs in map(int, arguments or RUNS):
        figures: Any = measure(runs, haproxy, seconds=6.0 + runs / 8)
        lost += abs(figures["lost"])
        figures.update(core=figures["core"] * 100, bytes=figures["bytes"] / (1 << 20))
        print(
            "| {runs:d} | {cpu:.4f} | {core:.0f} % | {mib:.0f} | {events:.0f} | {bytes:.1f} | {besides:.3f} |"
            " {files:d} | {lost:d} |".format(**figures),
            flush=True,
        )
    print("\n| in flight | servers | of one core | peak MiB | requests per run | requests/s | lost |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for runs in () if arguments else WAITING:
        figures = measure(runs, haproxy, 1.0, servers=4, repeat=64)
        lost += abs(figures["lost"])
        figures["busy"] *= 100
        row = "| {runs:d} | {servers:d} | {busy:.0f} % | {mib:.0f} | {asked:.1f} | {per_second:.0f} | {lost:d} |"
        print(row.format(**figures), flush=True)
    if lost:
        print("Events were lost.")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
