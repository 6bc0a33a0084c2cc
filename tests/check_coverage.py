"""Fails unless the tests of the pure sections cover every statement and branch there:

    python tests/check_coverage.py

The pure sections of comfyui_workflow_runner.py are those from TEXT to COMFYUI OVER THE WIRE. They are
measured with their own tests alone: what a story over sockets passes by chance is not tested by it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Any, Dict, List

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
RUNNER = "comfyui_workflow_runner.py"
TESTS = [
    os.path.join("tests", "test_%s.py" % section)
    for section in (
        "text",
        "workflow_documents",
        "state",
        "problems",
        "conversion",
        "edits",
        "values",
        "batches",
        "reports",
        "settings",
    )
]
RULE = "# " + "=" * 98


def line_of_banner(lines: List[str], title: str) -> int:
    """The number, from 1, of the line that has the banner of a section."""
    for number in range(1, len(lines) - 1):
        if lines[number].startswith("# %s:" % title) and lines[number - 1] == lines[number + 1] == RULE:
            return number + 1
    raise SystemExit("%s has no section %s." % (RUNNER, title))


def measure() -> Dict[str, Any]:
    """coverage.py's report on the runner; ends here if a test fails."""
    with tempfile.TemporaryDirectory() as folder:
        data, report = os.path.join(folder, "data"), os.path.join(folder, "report.json")
        coverage = [sys.executable, "-m", "coverage"]
        measured = ["--branch", "--include", RUNNER, "--data-file", data]
        tests = subprocess.run(
            [*coverage, "run", *measured, "-m", "pytest", "-p", "no:cacheprovider", *TESTS], cwd=ROOT, check=False
        )
        command = [*coverage, "json", "--data-file", data, "--include", RUNNER, "-q", "-o", report]
        subprocess.run(command, cwd=ROOT, check=True)
        with open(report, encoding="utf-8") as file:
            found: Dict[str, Any] = json.load(file)["files"][RUNNER]
    found["tests_passed"] = tests.returncode == 0
    return found


def main() -> int:
    """Prints what is not covered; 0 if there is nothing and all tests passed."""
    with open(os.path.join(ROOT, RUNNER), encoding="utf-8") as file:
        lines = file.read().split("\n")
    first, last = line_of_banner(lines, "TEXT"), line_of_banner(lines, "COMFYUI OVER THE WIRE")
    found = measure()
    missing = {line: "is not reached" for line in found["missing_lines"] if first < line < last}
    excluded = {line: "is excluded from the measure" for line in found["excluded_lines"] if first < line < last}
    for source, target in found["missing_branches"]:
        if first < abs(source) < last:
            where = "line %d" % target if target > 0 else "the end of the function"
            missing.setdefault(source, "never leads to %s" % where)
    for line, what in sorted({**missing, **excluded}.items()):
        print("%s:%d: %s: %s" % (RUNNER, line, what, lines[line - 1].strip()))
    measured = [line for line in found["executed_lines"] if first < line < last]
    print("The pure sections: %d lines reached, %d with gaps." % (len(measured), len(missing) + len(excluded)))
    if not measured:
        print("Nothing was measured.")
    if not found["tests_passed"]:
        print("Some of their tests failed.")
    return 0 if measured and not missing and not excluded and found["tests_passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
