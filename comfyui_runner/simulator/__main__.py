#!/usr/bin/env python3
# /// script
# requires-python = ">=3.8"
# dependencies = ["websockets>=13.1"]
# ///
"""Runs the simulator: python -m comfyui_runner.simulator, or this file by its path."""

from __future__ import annotations

import os
import sys

# The package must be found whatever is on the path: nothing of the project is with -I or -P, and
# the Python that comes with ComfyUI for Windows has a ._pth file, which leaves out the script's own
# folder and puts ComfyUI first, with top-level modules named server, nodes, utils, app, execution.
PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
if sys.path[:1] != [PROJECT]:
    sys.path.insert(0, PROJECT)

from comfyui_runner.simulator.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
