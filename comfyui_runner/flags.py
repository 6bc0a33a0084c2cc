"""What the command line takes."""

from __future__ import annotations

import os
import re
import sys
from typing import Any, NamedTuple, Sequence, Tuple

from comfyui_runner import __version__
from comfyui_runner.errors import EXIT_MEANINGS, ExitStatus, UsageError


class Defaults(NamedTuple):
    """What counts where no flag and no environment variable does: the settings at the top of the script."""

    workflow: str
    mode: str
    auto_execute: bool
    servers: Tuple[str, ...]
    example_folders: Tuple[str, ...] = ()  # where the default workflow is also looked for


def make_parser(defaults: Defaults) -> Any:
    """The argparse parser. What it cannot follow raises UsageError."""
    import argparse

    class Parser(argparse.ArgumentParser):
        """argparse's messages repeat what was typed, which may be a secret: ours name the flag alone."""

        def error(self, message: str) -> Any:
            found = re.match(
                r"(?s)(argument [^:]+): (expected .*argument|not allowed with .*|invalid)", message
            )
            words = "%s: %s" % found.groups() if found else message.partition(":")[0]
            raise UsageError("%s." % words.rstrip(".").capitalize(), "See --help.")

    statuses = "\n".join("  %3d  %s" % (status, EXIT_MEANINGS[status]) for status in ExitStatus)
    parser = Parser(
        description="Run a ComfyUI workflow: confirm, follow it live, save what it makes.",
        epilog="exit statuses:\n" + statuses,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=100),
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "workflow",
        nargs="?",
        metavar="WORKFLOW",
        help="a workflow in API or UI format, a PNG or WebP picture that ComfyUI made, or - for standard input "
        "(default: %s; env COMFYUI_WORKFLOW)" % defaults.workflow,
    )
    add("-y", "--yes", action="store_true", help="do not ask before running")
    add(
        "--demo",
        action="store_true",
        help="run on the simulator that comes along: no ComfyUI, no GPU",
    )
    add("--mode", metavar="MODE", help="single_shot or continuous (env COMFYUI_RUN_MODE)")
    add("--timeout", metavar="SECONDS", help="cancel a run after so long (env COMFYUI_TIMEOUT)")
    add(
        "--attach",
        metavar="PROMPT_ID",
        help="follow a prompt that waits or runs, or tell how it ended",
    )
    add("--version", action="version", version="%(prog)s " + __version__)
    add = parser.add_argument_group("which ComfyUI").add_argument
    add(
        "--server",
        metavar="URL",
        help="ComfyUI's address, http or https, with a base path and user:password@ if need be "
        "(default: %s; env COMFYUI_URL)" % ", then ".join(defaults.servers),
    )
    add(
        "--header",
        metavar="LINE",
        action="append",
        help="a header for HTTP and WebSocket, 'Name: value'; repeatable (env COMFYUI_HEADERS, one a line)",
    )
    add = parser.add_argument_group("change values").add_argument
    add(
        "--set",
        metavar="NODE.INPUT=VALUE",
        action="append",
        help="set an input; NODE is an id, a title, or a class that is there once; @FILE: what is in the file",
    )
    add(
        "--image",
        metavar="[NODE=]FILE",
        action="append",
        help="upload a file and load it in that node; repeatable",
    )
    add(
        "--seed",
        metavar="SEED",
        help="every seed of the workflow: a number, random, or keep (default)",
    )
    add = parser.add_argument_group("look, and run nothing").add_argument
    add("--inputs", action="store_true", help="list what can be set (with --json: an object each)")
    add("--check", action="store_true", help="tell all that is wrong: nodes, models, files, values")
    add("--export-api", metavar="FILE", help="write the converted and edited prompt in API format")
    add(
        "--object-info",
        metavar="FILE",
        help="for these three: a saved /object_info in place of a server's",
    )
    add = parser.add_argument_group("keep results").add_argument
    add(
        "-o",
        "--output",
        metavar="DIR",
        help="save all outputs here; {row} and {NODE.INPUT} are filled in (env COMFYUI_OUTPUT)",
    )
    add("--name", metavar="PATTERN", help="how to call saved files: {name}, {row}, {NODE.INPUT}")
    add(
        "--overwrite",
        action="store_true",
        help="replace files that are there; else a name gets ' (1)'",
    )
    add("--save-run", metavar="FILE", help="write a record of the run, which can be run again")
    add = parser.add_argument_group("many runs").add_argument
    add("--repeat", metavar="N", help="run it N times, with new seeds each time")
    add(
        "--batch",
        metavar="FILE",
        help="a run for each row: CSV with a header of NODE.INPUT, JSON Lines, or -",
    )
    add("--in-flight", metavar="K", help="runs that are in ComfyUI's queue at a time (default: 2)")
    add(
        "--manifest",
        metavar="FILE",
        help="where each row's end is written (default: beside the outputs or the batch)",
    )
    add(
        "--retries",
        metavar="N",
        help="submit a run that its server lost again, up to N times (default: 0)",
    )
    add("--resume", action="store_true", help="leave out the rows that the manifest tells as done")
    served = parser.add_argument_group("continuous mode")
    served.add_argument(
        "--host",
        metavar="NAME",
        help="the address to listen on (default: 127.0.0.1; others need a token)",
    )
    served.add_argument(
        "--port",
        metavar="PORT",
        help="the port to listen on (default: 8189; env COMFYUI_RUNNER_PORT)",
    )
    served.add_argument(
        "--token", metavar="SECRET", help="what clients must show (env COMFYUI_RUNNER_TOKEN)"
    )
    served.add_argument(
        "--no-token", action="store_true", help="let other machines in without a token"
    )
    served.add_argument(
        "--allow-host", metavar="NAME", action="append", help="another name of this service"
    )
    served.add_argument(
        "--allow-origin", metavar="URL", action="append", help="a web page's origin that may use it"
    )
    served.add_argument("--max-queue", metavar="N", help="runs of ours that may wait (default: 16)")
    served.add_argument(
        "--auto-execute",
        action="store_true",
        help="an upload starts a run (env COMFYUI_AUTO_EXECUTE_ON_UPLOAD)",
    )
    told = parser.add_argument_group("how it is told")
    show = told.add_mutually_exclusive_group()
    show.add_argument(
        "-q", "--quiet", action="store_true", help="print only what was made: a path or URL a line"
    )
    show.add_argument(
        "--json", action="store_true", help="print one JSON object a line (docs/JSON.md)"
    )
    told.add_argument("-v", "--verbose", action="store_true", help="show whole tracebacks")
    return parser


def leave_if_help_is_asked(defaults: Defaults, arguments: Sequence[str]) -> None:
    """Prints --help and ends the process; comes back where there is something wrong with the other arguments."""
    try:
        make_parser(defaults).parse_known_args(list(arguments))
    except SystemExit:
        leave(0)
    except UsageError:
        pass  # main() reports it


def leave(status: int) -> None:
    """Ends the process at once: threads that still wait for a server do not hold the exit up."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        pass  # nobody reads any more
    os._exit(status)
