"""Fails unless the tests of the pure modules cover every statement and branch there:

    python tests/check_coverage.py

The pure modules are measured with their own tests alone: what a story over sockets reaches by chance, it does
not test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Any, Dict, List

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PURE_MODULES = [
    "run_prompts", "addresses", "versions", "http_failures", "retries", "events", "state", "outputs", "media",
    "text", "redaction", "json_text", "contents", "answer_body",
    "documents", "extras/pictures", "nodes", "summary", "problems", "extras/conversion",
    "extras/dynamic_texts", "extras/graph", "extras/graph_loading", "extras/group_nodes", "extras/node_ids",
    "extras/pack_values", "extras/proxy_widgets", "extras/python_words", "extras/sweeps", "extras/templates",
    "extras/widgets",
    "values", "edits", "seeds", "prompt_texts", "upload_inputs", "extras/checks", "extras/batches", "loading",
    "reports", "meter", "settings", "patterns",
    "guard", "messages", "page", "routes", "http_head", "http_body", "event_streams", "held_workflow", "run_records",
    "refusals", "forms", "others", "limits", "places", "remedies", "model_names", "windows_files", "shells",
    "multipart", "call_values", "waiting", "run_answers", "layout", "partner_nodes",
    "extras/openai_images",
    "stored_state", "stored_workflow", "shown_runs", "workflow_list", "extras/ui_saving",
]  # fmt: skip
PATHS = [os.path.join("comfyui_runner", *module.split("/")) + ".py" for module in PURE_MODULES]
SUBJECTS = [
    "run_prompts", "addresses", "versions", "http_failures", "retries", "events", "state", "outputs", "media",
    "text", "redaction", "json_text", "contents", "answer_body",
    "workflow_documents", "problems", "conversion", "python_words", "edits", "values", "batches", "sweeps", "reports",
    "settings", "guard", "messages", "page", "routes", "http_head", "http_body", "event_streams", "held_workflow",
    "run_records", "refusals", "forms", "others", "places", "remedies", "model_names", "windows_files", "shells",
    "multipart", "call_values", "waiting", "run_answers", "layout", "partner_nodes",
    "openai_images",
    "stored_state", "stored_workflow", "shown_runs", "workflow_list", "ui_saving",
]  # fmt: skip
TESTS = [os.path.join("tests", f"test_{subject}.py") for subject in SUBJECTS]


def measure() -> Dict[str, Any]:
    """coverage.py's report on the pure modules, and whether their tests passed."""
    with tempfile.TemporaryDirectory() as folder:
        data, report = os.path.join(folder, "data"), os.path.join(folder, "report.json")
        coverage = [sys.executable, "-m", "coverage"]
        include = ["--include", ",".join(PATHS), "--data-file", data]
        pytest = ["-m", "pytest", "-p", "no:cacheprovider", *TESTS]
        tests = subprocess.run([*coverage, "run", "--branch", *include, *pytest], cwd=ROOT, check=False)
        subprocess.run([*coverage, "json", *include, "-q", "-o", report], cwd=ROOT, check=True)
        with open(report, encoding="utf-8") as file:
            found: Dict[str, Any] = json.load(file)
    found["tests_passed"] = tests.returncode == 0
    return found


def gaps_of(path: str, measured: Dict[str, Any]) -> List[str]:
    """What is not covered in one module, a line of text each."""
    gaps = dict.fromkeys(measured["missing_lines"], "is not reached")
    gaps.update(dict.fromkeys(measured["excluded_lines"], "is excluded from the measure"))
    for source, target in measured["missing_branches"]:
        where = f"line {target}" if target > 0 else "the end of the function"
        gaps.setdefault(abs(source), f"never leads to {where}")
    with open(os.path.join(ROOT, path), encoding="utf-8") as file:
        lines = file.read().split("\n")
    return [f"{path}:{line}: {gaps[line]}: {lines[line - 1].strip()}" for line in sorted(gaps)]


def main() -> int:
    """Prints what is not covered; 0 if there is nothing and all tests passed."""
    found = measure()
    not_measured = [path for path in PATHS if path not in found["files"]]
    for path in not_measured:
        print(f"{path} was not measured.")
    gaps = [gap for path in PATHS if path in found["files"] for gap in gaps_of(path, found["files"][path])]
    for gap in gaps:
        print(gap)
    reached = sum(len(measured["executed_lines"]) for measured in found["files"].values())
    print(f"The pure modules: {reached} lines reached, {len(gaps)} gaps.")
    if not found["tests_passed"]:
        print("Some of their tests failed.")
    return 0 if not gaps and not not_measured and found["tests_passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
