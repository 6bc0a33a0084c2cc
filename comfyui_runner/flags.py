"""What the command line takes.

``--help`` imports this module and errors.py alone, and argparse only where a parser is made.
"""

from __future__ import annotations

import os
import re
import sys
from functools import partial
from typing import Any, NamedTuple, NoReturn, Sequence, Tuple

from comfyui_runner import __version__
from comfyui_runner.errors import EXIT_MEANINGS, ExitStatus, UsageError
from comfyui_runner.last_words import try_for

MODES = ("single_shot", "continuous")

#: Columns of --help: at most (all of it where it is no terminal that shows it), and at least.
HELP_WIDTH, LEAST_HELP_WIDTH = 100, 40

#: What --state takes for no file.
NO_STATE = "none"

#: Seconds at the end for a console to take what Python still keeps.
FLUSH_SECONDS = 1.0


class Defaults(NamedTuple):
    """What counts where neither a flag nor an environment variable does: the script's settings."""

    workflow: str
    mode: str
    auto_execute: bool
    servers: Tuple[str, ...]
    example_folders: Tuple[str, ...] = ()  # where the default workflow is also looked for


# -- reading values ------------------------------------------------------------------------------
#
# Each takes the name of the flag, variable or constant that the text comes from. The text itself
# may be a secret that was typed in the wrong place, so no message repeats it.


def read_text(source: str, text: str) -> str:
    """``text``, which must not be empty: a shell variable that is not set must change nothing."""
    if not text:
        raise UsageError(f"{source} is empty.", "Give it a value, or leave it out.")
    return text


def read_mode(source: str, text: str) -> str:
    """The name of a mode."""
    if text not in MODES:
        raise UsageError(f"{source} must be single_shot or continuous.", "See --help.")
    return text


def read_seconds(source: str, text: str) -> float:
    """A number of seconds above 0."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    is_usable = 0 < seconds < 1e8  # neither NaN nor infinity, and no overflow in a wait
    if not is_usable:
        raise UsageError(f"{source} must be a number of seconds above 0.", "Example: 600")
    return seconds


def read_whole_number(source: str, text: str, at_least: int = 0) -> int:
    """A whole number below 65536, as ports and counts are."""
    number = int(text) if re.fullmatch(r"[0-9]{1,5}", text) else -1
    if not at_least <= number < 65536:
        raise UsageError(f"{source} must be a whole number from {at_least} to 65535.")
    return number


def read_seed(source: str, text: str) -> str:
    """What --seed takes: "keep", "random", or the digits of a whole number."""
    seed = text.lower()
    if not re.fullmatch(r"keep|random|[0-9]{1,20}", seed):
        remedy = ""
        if seed == "-1":  # other programs draw a seed then
            remedy = f"For a random seed, write {source} random."
        raise UsageError(f"{source} must be a whole number (0 or more), random or keep.", remedy)
    return seed


def read_yes_or_no(source: str, text: str) -> bool:
    """Whether ``text`` means yes."""
    words = {"1": True, "true": True, "yes": True, "on": True}
    words.update({"0": False, "false": False, "no": False, "off": False})
    answer = words.get(text.strip().lower())
    if answer is None:
        raise UsageError(f"{source} must be true or false.")
    return answer


# -- the parser ----------------------------------------------------------------------------------


def parse_flags(
    arguments: Sequence[str], defaults: Defaults, is_windows: bool = os.name == "nt"
) -> Any:
    """The argparse namespace of ``arguments``.

    Raises UsageError; leaves through SystemExit for --help and --version.
    """
    parser = make_parser(defaults)
    flags, unknown = parser.parse_known_args(list(arguments))
    options = [name_option(word) for word in unknown if word.startswith("-")]
    if options:
        raise UsageError(f"Unknown option: {', '.join(options)}.", offer_options(options, parser))
    flags.workflow += unknown  # argparse leaves those that come after an option
    refuse_swallowed_rest(flags, is_windows)
    return flags


def offer_options(unknown: Sequence[str], parser: Any) -> str:
    """What may have been meant by the first of the ``unknown`` options."""
    from comfyui_runner.nodes import did_you_mean  # --help imports little

    names = [name for action in parser._actions for name in action.option_strings]
    known = [name[len("--") :] for name in names if name.startswith("--")]
    return did_you_mean(unknown[0].lstrip("-"), known, prefix="--") or "See --help."


#: The flags whose values are paths, by their names in the namespace.
PATH_FLAGS = {
    "workflow": "the workflow",
    "image": "--image",
    "export_api": "--export-api",
    "object_info": "--object-info",
    "output": "-o",
    "save_run": "--save-run",
    "batch": "--batch",
    "manifest": "--manifest",
    "state": "--state",
}


def refuse_swallowed_rest(flags: Any, is_windows: bool) -> None:
    """Raises UsageError for a path that has a quotation mark in it, which no name in Windows has.

    It comes from ``-o "C:\\my dir\\"``: a backslash before a quotation mark makes it a part of the
    text (CommandLineToArgvW), so that the path has the rest of the line in it.
    """
    if not is_windows:
        return
    for name, flag in PATH_FLAGS.items():
        value = getattr(flags, name) or ""
        paths = [value] if isinstance(value, str) else value
        if any('"' in path for path in paths):
            raise UsageError(
                f'The path of {flag} has a quotation mark in it: a backslash before the closing " '
                "makes it, and the rest of the line, a part of the path.",
                'Leave that backslash out, as in: -o "C:\\my dir"',
            )


def name_option(word: str) -> str:
    """The name of the option in ``word``, without its value: --server=URL, -oDIR."""
    if word.startswith("--"):
        return word.partition("=")[0]
    return word[:2]


def describe_parser_error(message: str) -> str:
    """argparse's message in words of ours: its own repeats what was typed."""
    flag, _, problem = message.partition(": ")  # "argument -o/--output: expected one argument"
    flag = flag.replace("argument ", "")
    if problem.startswith("expected"):
        return f"{flag} needs a value."
    if problem.startswith("not allowed with argument "):
        return f"{flag} cannot be combined with {problem.split()[-1]}."
    if problem.startswith("ignored explicit argument"):
        return f"{flag} takes no value."
    return "The command line cannot be read."


def make_parser(defaults: Defaults) -> Any:
    """The argparse parser. What it cannot follow raises UsageError."""
    import argparse  # importing the script must stay cheap, and parses nothing

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> Any:
            raise UsageError(describe_parser_error(message), "See --help.")

    statuses = "\n".join(f"  {status:3d}  {EXIT_MEANINGS[status]}" for status in ExitStatus)
    parser = Parser(
        description="Run a ComfyUI workflow: confirm it, follow it live, save its outputs.",
        epilog=f"exit statuses:\n{statuses}",
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, width=width_of_help()),
        allow_abbrev=False,
    )
    add_general_flags(parser, defaults)
    add_server_flags(parser.add_argument_group("which ComfyUI"), defaults)
    add_value_flags(parser.add_argument_group("change values"))
    add_inspection_flags(parser.add_argument_group("inspect without running"))
    add_saving_flags(parser.add_argument_group("save results"))
    add_flags_for_afterwards(parser.add_argument_group("after a run"))
    add_batch_flags(parser.add_argument_group("many runs"))
    add_service_flags(parser.add_argument_group("continuous mode"))
    add_printing_flags(parser.add_argument_group("output"))
    return parser


def width_of_help() -> int:
    """How wide --help is: as the terminal, and never so narrow that nothing can be read."""
    try:
        columns = os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):  # it is no terminal
        return HELP_WIDTH
    return max(min(columns, HELP_WIDTH), LEAST_HELP_WIDTH)


def add_general_flags(parser: Any, defaults: Defaults) -> None:
    parser.add_argument(
        "workflow",
        nargs="*",
        metavar="WORKFLOW",
        help="a workflow in API or UI format, a PNG or WebP picture made by ComfyUI, or - for "
        f"standard input (default: {defaults.workflow}; env COMFYUI_WORKFLOW); several run one "
        "after the other",
    )
    parser.add_argument("-y", "--yes", action="store_true", help="run without asking")
    parser.add_argument(
        "--allow-spend",
        action="store_true",
        help="with --yes and in continuous mode: also run nodes that cost credits of a Comfy "
        "account, whose key is in env COMFY_API_KEY",
    )
    parser.add_argument(
        "--demo", action="store_true", help="run on the built-in simulator: no ComfyUI, no GPU"
    )
    parser.add_argument(
        "--setup",
        action="store_true",
        help="make a .venv beside the script, once, with the packages, and go on with it",
    )
    parser.add_argument(
        "--mode",
        metavar="MODE",
        type=partial(read_mode, "--mode"),
        help=f"single_shot or continuous (default: {defaults.mode}; env COMFYUI_RUN_MODE)",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=partial(read_seconds, "--timeout"),
        help="cancel a run that takes longer than this (env COMFYUI_TIMEOUT)",
    )
    parser.add_argument(
        "--attach",
        metavar="PROMPT_ID",
        type=partial(read_text, "--attach"),
        help="follow a prompt that is already in the queue, or report how it ended",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")


def add_server_flags(group: Any, defaults: Defaults) -> None:
    group.add_argument(
        "--server",
        metavar="URL",
        action="append",
        help="the address of ComfyUI, http or https, with user:password@ and a base path if needed "
        f"(default: {', then '.join(defaults.servers)}; env COMFYUI_URL); repeatable for many runs",
    )
    group.add_argument(
        "--header",
        metavar="LINE",
        action="append",
        help='a header to send with HTTP and WebSocket, "Name: value"; repeatable '
        "(env COMFYUI_HEADERS, one per line)",
    )


def add_value_flags(group: Any) -> None:
    group.add_argument("-p", "--positive", metavar="TEXT", help="set the positive text")
    group.add_argument("-n", "--negative", metavar="TEXT", help="set the negative text")
    group.add_argument("--size", metavar="WxH", help="set the size of the picture: 768x512")
    group.add_argument(
        "--set",
        metavar="NODE.INPUT=VALUE",
        action="append",
        help="set an input; NODE is an id, a title, or a class that occurs once; @FILE as the "
        "VALUE reads it from a file; repeatable",
    )
    group.add_argument(
        "--image",
        metavar="[NODE=]FILE",
        action="append",
        help="upload a file and load it in that node; repeatable",
    )
    group.add_argument(
        "--seed",
        metavar="SEED",
        type=partial(read_seed, "--seed"),
        help="set every seed of the workflow: a number, random, or keep (the default)",
    )


def add_inspection_flags(group: Any) -> None:
    group.add_argument(
        "--inputs",
        action="store_true",
        help="list the inputs that can be set (with --json: one object per input)",
    )
    group.add_argument(
        "--check",
        action="store_true",
        help="report everything that is wrong: nodes, models, files, values",
    )
    group.add_argument(
        "--export-api",
        metavar="FILE",
        type=partial(read_text, "--export-api"),
        help="write the converted and edited prompt in API format (- for standard output)",
    )
    group.add_argument(
        "--object-info",
        metavar="FILE",
        type=partial(read_text, "--object-info"),
        help="for these three: read a saved /object_info instead of asking a server",
    )


def add_saving_flags(group: Any) -> None:
    group.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        help="save all outputs here; {row} and {NODE.INPUT} are filled in (env COMFYUI_OUTPUT)",
    )
    group.add_argument(
        "--name",
        metavar="PATTERN",
        help="how to name saved files: {name}, {row}, {NODE.INPUT}",
    )
    group.add_argument(
        "--overwrite",
        action="store_true",
        help="replace existing files instead of adding ' (1)' to the name",
    )
    group.add_argument(
        "--open", action="store_true", help="show what was saved: the picture, or a batch's sheet"
    )
    group.add_argument(
        "--save-run",
        metavar="FILE",
        type=partial(read_text, "--save-run"),
        help="write a record of the run, which can itself be run again",
    )


def add_flags_for_afterwards(group: Any) -> None:
    group.add_argument(
        "--hook",
        metavar="COMMAND",
        action="append",
        type=partial(read_text, "--hook"),
        help="after each run, give this command to the shell, and the run as JSON to its standard "
        "input; repeatable (docs/RECIPES.md)",
    )
    group.add_argument(
        "--free",
        action="store_true",
        help="when the last run has ended and nobody else waits, ask ComfyUI to unload its models",
    )


def add_batch_flags(group: Any) -> None:
    group.add_argument(
        "--repeat",
        metavar="N",
        type=partial(read_whole_number, "--repeat", at_least=1),
        help="run N times, with new seeds each time",
    )
    group.add_argument(
        "--each",
        metavar="NODE.INPUT=VALUES",
        action="append",
        help="run once per value: 4,6,8 or 1..8, @FILE with a text per line, a pattern of files; "
        "repeatable: all combinations",
    )
    group.add_argument(
        "--batch",
        metavar="FILE",
        type=partial(read_text, "--batch"),
        help="run once per row of a CSV file (header: NODE.INPUT), of JSON Lines, or of -",
    )
    group.add_argument(
        "--in-flight",
        metavar="K",
        type=partial(read_whole_number, "--in-flight", at_least=1),
        help="keep this many runs in the queue of each ComfyUI (default: 2)",
    )
    group.add_argument(
        "--manifest",
        metavar="FILE",
        help="file for how each row ended (default: next to the outputs or the batch)",
    )
    group.add_argument(
        "--retries",
        metavar="N",
        type=partial(read_whole_number, "--retries"),
        help="submit a run again if its server lost it, up to N times (default: 0)",
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="skip the rows that the manifest lists as done",
    )


def add_service_flags(group: Any) -> None:
    group.add_argument(
        "--host",
        metavar="NAME",
        help="the address to listen on (default: 127.0.0.1; any other needs a token)",
    )
    group.add_argument(
        "--port",
        metavar="PORT",
        type=partial(read_whole_number, "--port"),
        help="the port to listen on (default: 8189; env COMFYUI_RUNNER_PORT)",
    )
    group.add_argument(
        "--token",
        metavar="SECRET",
        help="the token that clients must send (env COMFYUI_RUNNER_TOKEN)",
    )
    group.add_argument(
        "--no-token", action="store_true", help="let other machines in without a token"
    )
    group.add_argument(
        "--allow-host",
        metavar="NAME",
        action="append",
        help="also answer to this name or address; repeatable",
    )
    group.add_argument(
        "--allow-origin",
        metavar="URL",
        action="append",
        help="also accept requests from web pages of this origin; repeatable",
    )
    group.add_argument(
        "--public-url",
        metavar="URL",
        help="where clients reach the service through a proxy, with its path if it has one",
    )
    group.add_argument(
        "--max-queue",
        metavar="N",
        type=partial(read_whole_number, "--max-queue"),
        help="how many of our runs may wait (default: 16)",
    )
    group.add_argument(
        "--state",
        metavar="FILE",
        type=partial(read_text, "--state"),
        help="keep runs and edits in this file, or (none) in memory only "
        "(default: beside the workflow, NAME.runs.sqlite3)",
    )
    group.add_argument(
        "--keep-runs",
        metavar="N",
        type=partial(read_whole_number, "--keep-runs", at_least=1),
        help="how many runs to keep there (default: 2000)",
    )
    group.add_argument(
        "--auto-execute",
        action="store_true",
        help="start a run with every upload (env COMFYUI_AUTO_EXECUTE_ON_UPLOAD)",
    )


def add_printing_flags(group: Any) -> None:
    either = group.add_mutually_exclusive_group()
    either.add_argument(
        "-q",
        "--quiet",
        action="store_true",
        help="print only the results, one path or URL per line",
    )
    either.add_argument(
        "--json", action="store_true", help="print one JSON object per line (docs/JSON.md)"
    )
    group.add_argument("-v", "--verbose", action="store_true", help="show whole tracebacks")


# -- leaving -------------------------------------------------------------------------------------


def leave_if_help_is_asked(defaults: Defaults, arguments: Sequence[str]) -> None:
    """Prints --help and ends the process; returns if something else is wrong with the arguments."""
    try:
        make_parser(defaults).parse_known_args(list(arguments))
    except SystemExit:
        leave(0)
    except UsageError:
        pass  # main() reports it


def leave(status: int) -> NoReturn:
    """Ends the process at once, without waiting for threads that still wait for a server."""
    try_for(FLUSH_SECONDS, flush_streams)
    os._exit(status)


def flush_streams() -> None:
    """Writes what Python keeps of the output and of the errors."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        pass  # nobody reads any more
