"""How true and how fast the conversion is, against comfy-cli's, in one run:  python tests/bench_conversion.py [SET]

Converts every workflow of the larger set (shared/comfyui/conversion beside the repository, or SET) and
prints how many of the comparable ones are equal to the letter, and how many are server-equivalent, to
what ComfyUI's own frontend exported (the set's compare.py says what that means), and the time of all
conversions together. Exits with 1 if a bar is missed.

The ratio of time against comfy-cli's converter is measured where comfy-cli can be imported:

    python -m venv comfy-cli-venv && comfy-cli-venv/bin/pip install comfy-cli
    comfy-cli-venv/bin/python tests/bench_conversion.py

The two convert each workflow in turns, so that both meet the same machine; of five rounds the best counts.
"""

from __future__ import annotations

import copy
import gzip
import importlib
import json
import logging
import os
import sys
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [os.path.dirname(os.path.abspath(__file__)), ROOT]

ROUNDS = 5


def comfy_cli_converter() -> Optional[Callable[[Any, Any], Any]]:
    """comfy-cli's converter, or None where it is not installed."""
    try:
        module: Any = importlib.import_module("comfy_cli.workflow_to_api")
    except ImportError:
        return None
    converter: Callable[[Any, Any], Any] = module.convert_ui_to_api
    return converter


def timed(convert: Callable[[Any, Any], Any], workflow: Any, object_info: Any) -> Tuple[float, Any]:
    """The seconds that one conversion took, and the prompt (None: it refused)."""
    began = time.perf_counter()
    try:
        made = convert(workflow, object_info)
    except Exception:
        made = None
    return time.perf_counter() - began, getattr(made, "prompt", made)


def main(folder: str) -> int:
    """Measures and prints; 1 if a bar is missed."""
    if not os.path.isdir(folder):
        print(f"The set of workflows is not at {folder}: name its folder to measure the conversion.")
        return 0
    conversion: Any = importlib.import_module("comfyui_runner.extras.conversion")
    sys.path.insert(0, folder)
    compare: Any = importlib.import_module("compare")
    with gzip.open(os.path.join(folder, "object_info.json.gz")) as packed:
        object_info = json.load(packed)
    with open(os.path.join(folder, "index.json"), encoding="utf-8") as file:
        index = json.load(file)
    workflows: Dict[str, Any] = {}
    for name in sorted(index):
        with open(os.path.join(folder, "workflows", name + ".json"), encoding="utf-8") as file:
            workflows[name] = json.load(file)

    comparable = exact = equivalent = 0
    for name, about in index.items():
        if not about["comparable"]:
            continue
        comparable += 1
        _, made = timed(conversion.convert_workflow, workflows[name], object_info)
        with open(os.path.join(folder, "prompts", name + ".json"), encoding="utf-8") as file:
            truth = json.load(file)
        if made is not None:
            exact += not compare.differences(truth, made)
            views = [compare.server_view(a, b, object_info) for a, b in ((truth, made), (made, truth))]
            equivalent += not compare.differences(*views)

    logging.disable()  # comfy-cli's
    theirs = comfy_cli_converter()
    rounds: List[Tuple[float, float]] = []
    for _ in range(ROUNDS):
        ours_took = theirs_took = 0.0
        for workflow in workflows.values():
            ours_took += timed(conversion.convert_workflow, workflow, object_info)[0]
            if theirs:
                theirs_took += timed(theirs, copy.deepcopy(workflow), object_info)[0]
        rounds.append((ours_took, theirs_took))
    ours_best, theirs_best = (min(took) for took in zip(*rounds))

    rows = [
        ("server-equivalent", f"{equivalent} of {comparable}", equivalent == comparable),
        ("equal to the letter", f"{exact} of {comparable}", exact >= 0.97 * comparable),
        (f"all {len(workflows)} conversions", f"{ours_best:.2f} s", True),
    ]
    if theirs:
        figures = f"{ours_best / theirs_best:.2f} x  ({ours_best:.2f} s against {theirs_best:.2f} s)"
        rows.append(("time against comfy-cli's", figures, ours_best < theirs_best))
    for name, figures, met in rows:
        print(f"{name:28} {figures:34} {'ok' if met else 'MISSED'}")
    if not theirs:
        print(f"comfy-cli is not installed for {sys.executable}; the docstring of this file says how to compare.")
    return 0 if all(met for _, _, met in rows) else 1


if __name__ == "__main__":
    default = os.environ.get("CONVERSION_SET") or os.path.join(os.path.dirname(ROOT), "shared", "comfyui", "conversion")
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else default))
