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


def main(argv: Sequence[str] | None = None) -> int:
    """Run a simulated server until Ctrl+C or SIGTERM. Returns the exit status."""
    options = make_parser().parse_args(argv)
    simulator = make_simulator(options)
    before = signal.signal(signal.SIGTERM, raise_keyboard_interrupt)
    try:
        simulator.start()
        print(f"Simulated ComfyUI {simulator.version} at {simulator.url}", flush=True)
        while True:
            time.sleep(3600)
    except (OSError, OverflowError) as error:  # OverflowError: a number that is not a port
        print(describe_failure(error, options.host, options.port), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        simulator.stop()
        signal.signal(signal.SIGTERM, before)


def make_simulator(options: argparse.Namespace) -> Simulator:
    """The server that the command line asks for, not started yet; its samplers send previews."""
    return Simulator(
        version=options.version,
        host=options.host,
        port=options.port,
        root=options.root,
        base_path=options.base_path,
        step_seconds=options.step_seconds,
        token=options.token,
        faults=Faults(**dict(options.fault)),
        previews=True,
    )


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m comfyui_runner.simulator",
        description="A ComfyUI stand-in: no GPU, simulated pictures.",
    )
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
        type=parse_fault,
        default=[],
        metavar="NAME=JSON",
        help="something that goes wrong, e.g. drop_end=true (may be repeated)",
    )
    return parser


def parse_fault(text: str) -> tuple[str, Any]:
    """The name and the value in NAME=JSON. Raises ArgumentTypeError."""
    name, _, value_as_json = text.partition("=")
    names = [field.name for field in dataclasses.fields(Faults)]
    if name not in names:
        raise argparse.ArgumentTypeError(f"there is no fault {name!r}")
    try:
        value = json.loads(value_as_json)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{name}: not JSON: {error}") from error
    if name == "drop_events":
        value = frozenset(value)
    return name, value


def raise_keyboard_interrupt(number: int, frame: object) -> None:
    """Make SIGTERM end the server as Ctrl+C does."""
    raise KeyboardInterrupt


def describe_failure(error: Exception, host: str, port: int) -> str:
    """Why the server did not start: it cannot listen, unless the error names a file."""
    if isinstance(error, OSError) and error.filename is not None:
        return str(error)
    return f"Cannot listen on {host}:{port}: {error}"
