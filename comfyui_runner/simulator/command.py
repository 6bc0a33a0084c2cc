"""The command line."""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
import time
from typing import Any, Sequence

from comfyui_runner.simulator.faults import Faults
from comfyui_runner.simulator.server import Simulator


def _fault(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    if name not in {field.name for field in dataclasses.fields(Faults)}:
        raise argparse.ArgumentTypeError(f"there is no fault {name!r}")
    try:
        parsed = json.loads(value)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{name}: not JSON: {exc}") from exc
    return name, frozenset(parsed) if name == "drop_events" else parsed


def main(argv: Sequence[str] | None = None) -> int:
    """Run a simulated server until Ctrl+C or SIGTERM."""
    parser = argparse.ArgumentParser(description="A ComfyUI stand-in: no GPU, simulated pictures.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8188)
    parser.add_argument("--version", default="0.33.0", help="the ComfyUI version to play")
    parser.add_argument("--root", metavar="DIR", help="folder of input/, output/ and temp/")
    parser.add_argument("--step-seconds", type=float, default=0.15, metavar="S")
    parser.add_argument("--token", help="ask for this token")
    parser.add_argument("--base-path", default="", metavar="PATH")
    parser.add_argument(
        "--fault",
        action="append",
        type=_fault,
        default=[],
        metavar="NAME=JSON",
        help="something that goes wrong, e.g. drop_end=true (may be repeated)",
    )
    args = vars(parser.parse_args(argv))
    simulator = Simulator(faults=Faults(**dict(args.pop("fault"))), previews=True, **args)

    def terminate(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        simulator.start()
        print(f"Simulated ComfyUI {simulator.version} at {simulator.url}", flush=True)
        while True:
            time.sleep(3600)
    except (OSError, OverflowError) as exc:
        where = f"{args['host']}:{args['port']}"
        known = isinstance(exc, OSError) and exc.filename is None  # it was not about a file
        print(f"Cannot listen on {where}: {exc}" if known else exc, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        simulator.stop()
        signal.signal(signal.SIGTERM, previous)
