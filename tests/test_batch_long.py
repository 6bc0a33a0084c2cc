"""Ten thousand rows: flat memory, killed in the middle, resumed, and every row done exactly once."""

from __future__ import annotations

import faulthandler
import json
import os
import re
import subprocess
import sys
import time
from typing import Any, Dict, Iterator, List, Optional

import pytest
import requests
from support import ROOT, SCRIPT, node

pytestmark = pytest.mark.long

ROWS, IN_FLIGHT = 10_000, 3

#: How far the manifest is when the program is killed; between the two it is one process.
KILLED_AT = (1_500, 9_100)

#: Between these rows memory is compared, in MiB.
MEASURED, GROWTH = (2_000, 9_000), 15.0


def _environment() -> Dict[str, str]:
    """The environment of a person who set nothing; asyncio's debug mode slows a process down."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("COMFYUI_")}
    mine.pop("PYTHONASYNCIODEBUG", None)
    return {**mine, "PYTHONUTF8": "1"}


@pytest.fixture
def server(tmp_path: Any) -> Iterator[str]:
    """A simulator in a process of its own, which does not share our processor lock or memory."""
    command = [
        sys.executable,
        os.path.join(ROOT, "comfyui_runner", "simulator", "__main__.py"),
        "--port",
        "0",
        "--step-seconds",
        "0",
    ]
    process = subprocess.Popen(
        [*command, "--root", str(tmp_path / "root")], stdout=subprocess.PIPE, text=True, env=_environment()
    )
    with process:
        assert process.stdout is not None
        try:
            found = re.search(r"http://\S+", process.stdout.readline())
            assert found, "the simulator did not start"
            yield found.group(0)
        finally:
            process.kill()


class Manifest:
    """A manifest that is read as it grows."""

    def __init__(self, path: str) -> None:
        self.path, self.lines, self._at = path, 0, 0

    def count(self) -> int:
        """How many whole lines there are."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self._at)
                data = file.read()
        except FileNotFoundError:
            return 0
        self._at += len(data)
        self.lines += data.count(b"}\n")
        return self.lines

    def entries(self) -> List[Dict[str, Any]]:
        """All lines that can be read; what a kill cut off cannot."""
        entries = []
        with open(self.path, encoding="utf-8") as file:
            for line in file:
                try:
                    entries.append(json.loads(line))
                except ValueError:
                    continue
        return entries


def _resident(pid: int) -> Optional[float]:
    """The resident memory of a process in MiB, where the system shows it so."""
    try:
        with open("/proc/%d/status" % pid, encoding="ascii", errors="replace") as file:
            found = re.search(r"VmRSS:\s+(\d+) kB", file.read())
    except OSError:
        return None
    return int(found.group(1)) / 1024 if found else None


def _run_until(command: List[str], manifest: Manifest, rows: int, samples: Dict[int, float], seconds: float) -> int:
    """Runs the program until the manifest has ``rows`` lines, and kills it then; its exit status.

    Its memory goes into ``samples`` by the lines that there were.
    """
    end = time.monotonic() + seconds
    with open(manifest.path + ".err", "ab") as err:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=err, env=_environment()
        )
    try:
        while process.poll() is None and manifest.count() < rows:
            assert time.monotonic() < end, "%d rows after %.0f s" % (manifest.lines, seconds)
            memory = _resident(process.pid)
            if memory is not None:
                samples[manifest.lines] = memory
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    return process.returncode


def test_ten_thousand_rows_are_done_once_each_in_flat_memory_though_it_is_killed(server: str, tmp_path: Any) -> None:
    """Killed with SIGKILL twice, resumed twice: the manifest lists every row as done exactly once, the
    server ran no more than what was on its way at the kills twice, and memory does not grow with the rows."""
    faulthandler.cancel_dump_traceback_later()  # it takes longer than a test that hangs
    workflow, rows = tmp_path / "flow.json", tmp_path / "rows.csv"
    workflow.write_text(json.dumps({"1": node("TextOut", text="")}), encoding="utf-8")
    rows.write_text("1.text\n" + "".join("row %d\n" % number for number in range(1, ROWS + 1)), encoding="utf-8")
    manifest = Manifest(str(tmp_path / "manifest.jsonl"))
    command = [sys.executable, SCRIPT, str(workflow), "--server", server]
    command += ["--yes", "--quiet", "--batch", str(rows), "--manifest", manifest.path, "--in-flight", str(IN_FLIGHT)]
    lives: List[Dict[int, float]] = []
    began = time.monotonic()
    for place, until in enumerate((*KILLED_AT, ROWS + 1)):
        lives.append({})
        status = _run_until([*command, *(["--resume"] if place else [])], manifest, until, lives[-1], 300.0)
        with open(manifest.path + ".err", encoding="utf-8") as file:
            assert file.read() == ""
        assert (status == 0) is (until > ROWS), "status %d with %d rows" % (status, manifest.lines)
    took = time.monotonic() - began

    entries = manifest.entries()
    assert sorted(entry["row"] for entry in entries) == list(range(1, ROWS + 1))
    assert all(entry["status"] == "done" for entry in entries)
    assert all(entry["values"] == {"1.text": "row %d" % entry["row"]} for entry in entries)
    assert all(entry["outputs"][0]["text"] == "row %d" % entry["row"] for entry in entries)
    probe = {"prompt": {"1": node("TextOut", text="probe")}}
    taken = requests.post(server + "/prompt", json=probe, timeout=10).json()["number"]  # it numbers what it takes
    assert ROWS <= taken <= ROWS + IN_FLIGHT * len(KILLED_AT)

    samples = {count: memory for count, memory in lives[1].items() if MEASURED[0] <= count <= MEASURED[1]}
    words = "%.0f rows/s" % (ROWS / took)
    if samples:
        counts = sorted(samples)
        assert counts[0] < MEASURED[0] + 500 and counts[-1] > MEASURED[1] - 500
        first, peak = samples[counts[0]], max(samples.values())
        words += ", %.1f MiB at row %d, at most %.1f MiB up to row %d" % (first, counts[0], peak, counts[-1])
        assert peak - first < GROWTH, words
    print(words)
    if not samples:
        pytest.skip("this system does not show the memory of a process in /proc; all else holds")
