#!/usr/bin/env python3
# /// script
# requires-python = ">=3.8"
# dependencies = ["websockets>=13.1"]
# ///
"""Runs the simulator: python -m comfyui_runner.simulator, or this file by its path."""

from __future__ import annotations

import os
import sys

# The project's folder must be on the path, before the first import of the package. Run by its path,
# this file has its own folder there instead, and with -I or -P nothing. The Python that comes with
# ComfyUI for Windows has a ._pth file: it leaves out the script's folder as well, and puts ComfyUI
# first, whose top-level modules are named server, nodes, utils, app and execution.
PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
if sys.path[:1] != [PROJECT]:
    sys.path.insert(0, PROJECT)

from comfyui_runner.simulator.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
