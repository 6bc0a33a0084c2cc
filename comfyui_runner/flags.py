"""What the command line takes.

``--help`` imports this module and errors.py alone, and argparse only where a parser is made.
"""

from __future__ import annotations

import os
import re
import sys
from functools import partial
from typing import Any, List, NamedTuple, NoReturn, Sequence, Tuple

from comfyui_runner import __version__
from comfyui_runner.errors import EXIT_MEANINGS, ExitStatus, UsageError
from comfyui_runner.last_words import try_for

MODES = ("single_shot", "continuous")

#: Columns of --help: at most (and without a terminal), and at least.
HELP_WIDTH, LEAST_HELP_WIDTH = 80, 40

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
    """The argparse namespace of ``arguments``, with ``notices`` of flags in another case.

    Raises UsageError; leaves through SystemExit for --help and --version.
    """
    parser = make_parser(defaults)
    arguments, notices = take_flags_in_other_case(arguments, list(parser._option_string_actions))
    flags, unknown = parser.parse_known_args(arguments)
    flags.notices = notices
    options = [name_option(word) for word in unknown if word.startswith("-")]
    if options:
        raise UsageError(f"Unknown option: {', '.join(options)}.", offer_options(options, parser))
    flags.workflow += unknown  # argparse leaves those that come after an option
    refuse_swallowed_rest(flags, is_windows)
    return flags


def take_flags_in_other_case(
    arguments: Sequence[str], names: Sequence[str]
) -> Tuple[List[str], Tuple[str, ...]]:
    """``arguments`` whose flags have the case of ``names`` (--Seed), and a notice of each.

    Words after a single ``--`` are not flags. Short ones differ in case alone (-p, -P), so they are
    only offered; --setup is for the script, which takes it before.
    """
    by_lower_case = {name: name for name in names if name.startswith("--") and name != "--setup"}
    taken: List[str] = []
    notices: List[str] = []
    for position, word in enumerate(arguments):
        if word == "--":
            return [*taken, *arguments[position:]], tuple(notices)
        typed, equals, value = word.partition("=")
        name = by_lower_case.get(typed.lower(), typed)
        if name != typed:
            notices.append(f"{name} is used for {typed}.")
        taken.append(f"{name}{equals}{value}")
    return taken, tuple(notices)


def offer_options(unknown: Sequence[str], parser: Any) -> str:
    """What may have been meant by the first of the ``unknown`` options."""
    from comfyui_runner.nodes import did_you_mean, only_other_case  # --help imports little

    names = list(parser._option_string_actions)
    other_case = only_other_case(unknown[0], names)
    if other_case is not None:  # -O
        return f"Did you mean {other_case}?"
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
        return f"{flag} does not take a value."
    return "The command line cannot be read."


def make_parser(defaults: Defaults) -> Any:
    """The argparse parser. What it cannot follow raises UsageError."""
    import argparse  # importing the script must stay cheap, and parses nothing

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> Any:
            raise UsageError(describe_parser_error(message), "See --help.")

    class Formatter(argparse.RawDescriptionHelpFormatter):
        def _format_action_invocation(self, action: argparse.Action) -> str:
            """``-o, --output DIR``, as Python 3.13 writes it."""
            value = self._format_args(action, str(action.metavar))
            names = ", ".join(action.option_strings) or str(action.metavar)
            return f"{names} {value}" if action.option_strings and value else names

        def _format_action(self, action: argparse.Action) -> str:
            """The lines of an option; a long one has its text behind it where both fit."""
            lines = super()._format_action(action).splitlines()
            is_long = lines[0].strip() == self._format_action_invocation(action)
            joined = "  ".join([lines[0], *(line.strip() for line in lines[1:2])])
            if is_long and len(joined) <= width:
                lines[:2] = [joined]
            return "".join(f"{line}\n" for line in lines)

    class Help(argparse.Action):
        def __call__(self, parser: Any, _: Any, values: Any, option: Any = None) -> None:
            if values == "exit":
                parser._print_message(describe_exit_statuses(), sys.stdout)
            else:
                parser.print_help()
            parser.exit()

    width = width_of_help()
    gap = " " if width >= 60 else "\n       "  # argparse does not break a usage of ours
    parser = Parser(
        usage=f"%(prog)s{gap}[WORKFLOW ...] [options]",
        description="Run a ComfyUI workflow:\nconfirm it, follow it live, save its outputs.",
        epilog=show_examples(os.path.basename(sys.argv[0])),
        formatter_class=partial(Formatter, width=width),
        allow_abbrev=False,
        add_help=False,
    )
    add_value_flags(parser.add_argument_group("what to run"), defaults)
    add_server_flags(parser.add_argument_group("server"), defaults)
    add_inspection_flags(parser.add_argument_group("inspect without running"))
    add_output_flags(parser.add_argument_group("output"))
    add_batch_flags(parser.add_argument_group("many runs"))
    add_service_flags(parser.add_argument_group("continuous mode"), defaults)
    others = parser.add_argument_group("others")
    others.add_argument(
        "-h",
        "--help",
        action=Help,
        nargs="?",
        metavar="exit",
        default=argparse.SUPPRESS,
        help="show this help, or the exit statuses",
    )
    add_other_flags(others)
    return parser


def describe_exit_statuses() -> str:
    """What --help exit prints."""
    lines = [f"  {status:3d}  {EXIT_MEANINGS[status]}" for status in ExitStatus]
    return "\n".join(["exit statuses:", *lines, ""])


def command_of(program: str) -> str:
    """What starts the program again that was called by the name ``program``.

    It is a script, or the command comfyui-workflow-runner where it is installed.
    """
    if program.endswith(".py"):
        return f"python {program}"
    return program


def show_examples(program: str) -> str:
    """The end of --help, where the program was called by the name ``program``."""
    command = command_of(program)
    arguments = ("-o out --seed random", "--repeat 6 -o out", "--mode continuous")
    examples = [f"  {command} flow.json {each}" for each in arguments]
    return "\n".join(["examples:", *examples]).replace("%", "%%")


def width_of_help() -> int:
    """How wide --help is: as the terminal, and never so narrow that nothing can be read."""
    try:
        columns = os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):  # it is not a terminal
        return HELP_WIDTH
    return max(min(columns, HELP_WIDTH), LEAST_HELP_WIDTH)


def add_value_flags(group: Any, defaults: Defaults) -> None:
    group.add_argument(
        "workflow",
        nargs="*",
        metavar="WORKFLOW",
        help="workflow files or pictures, or - for standard input "
        f"(default: {defaults.workflow}; env COMFYUI_WORKFLOW)",
    )
    group.add_argument("-p", "--positive", metavar="TEXT", help="set the positive text")
    group.add_argument("-n", "--negative", metavar="TEXT", help="set the negative text")
    group.add_argument("--size", metavar="WxH", help="set the size of the picture: 768x512")
    group.add_argument(
        "--seed",
        metavar="SEED",
        type=partial(read_seed, "--seed"),
        help="set every seed: a number, random, or keep (default)",
    )
    group.add_argument(
        "--image",
        metavar="[NODE=]FILE",
        action="append",
        help="upload a file for a node that loads one; repeatable",
    )
    group.add_argument(
        "--set",
        metavar="NODE.INPUT=VALUE",
        action="append",
        help="set an input; NODE is an id, a title or a class, @FILE inserts the text of a file; "
        "repeatable",
    )


def add_server_flags(group: Any, defaults: Defaults) -> None:
    short = [url.replace("http://127.0.0.1", "") for url in defaults.servers]
    group.add_argument(
        "--server",
        metavar="URL",
        action="append",
        help="ComfyUI's address; repeatable for many runs (default: "
        f"port {' or '.join(url.lstrip(':') for url in short)} of this machine; env COMFYUI_URL)",
    )
    group.add_argument(
        "--header",
        metavar="LINE",
        action="append",
        help='send "Name: value"; repeatable (env COMFYUI_HEADERS)',
    )
    group.add_argument(
        "--demo", action="store_true", help="use the built-in simulator: no ComfyUI, no GPU"
    )
    group.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=partial(read_seconds, "--timeout"),
        help="cancel a run that takes longer (env COMFYUI_TIMEOUT)",
    )
    group.add_argument(
        "--attach",
        metavar="PROMPT_ID",
        type=partial(read_text, "--attach"),
        help="follow a prompt that is already submitted",
    )
    group.add_argument(
        "--retries",
        metavar="N",
        type=partial(read_whole_number, "--retries"),
        help="resubmit a run if its server loses it (default: 0)",
    )
    group.add_argument(
        "--allow-spend",
        action="store_true",
        help="also run nodes that cost credits (env COMFY_API_KEY)",
    )
    group.add_argument(
        "--free", action="store_true", help="have ComfyUI unload its models after the last run"
    )


def add_inspection_flags(group: Any) -> None:
    group.add_argument("--inputs", action="store_true", help="list what you can set")
    group.add_argument(
        "--check", action="store_true", help="report every problem: nodes, models, values"
    )
    group.add_argument(
        "--export-api",
        metavar="FILE",
        type=partial(read_text, "--export-api"),
        help="write the prompt in API format (- for standard output)",
    )
    group.add_argument(
        "--object-info",
        metavar="FILE",
        type=partial(read_text, "--object-info"),
        help="with these, use a saved /object_info, not a server",
    )


def add_output_flags(group: Any) -> None:
    group.add_argument(
        "-o", "--output", metavar="DIR", help="save the outputs here (env COMFYUI_OUTPUT)"
    )
    group.add_argument(
        "--name", metavar="PATTERN", help="pattern for files (and -o): {name}, {row}, {NODE.INPUT}"
    )
    group.add_argument(
        "--overwrite", action="store_true", help="replace existing files instead of adding ' (1)'"
    )
    group.add_argument(
        "--open", action="store_true", help="open the saved picture, or the sheet of a batch"
    )
    group.add_argument(
        "--save-run",
        metavar="FILE",
        type=partial(read_text, "--save-run"),
        help="write a record of the run that you can run again",
    )
    either = group.add_mutually_exclusive_group()
    either.add_argument(
        "-q", "--quiet", action="store_true", help="print only results: a path or URL per line"
    )
    either.add_argument(
        "--json", action="store_true", help="print a JSON object per line (docs/JSON.md)"
    )
    group.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="show full tracebacks, all routes and the state file",
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
        help="run once per value (4,6,8 or 1..8), line of @FILE or file of a pattern; repeatable",
    )
    group.add_argument(
        "--batch",
        metavar="FILE",
        type=partial(read_text, "--batch"),
        help="run once per row of a CSV, JSON Lines or text file, or -",
    )
    group.add_argument(
        "--in-flight",
        metavar="K",
        type=partial(read_whole_number, "--in-flight", at_least=1),
        help="runs in the queue of each ComfyUI (default: 2)",
    )
    group.add_argument(
        "--manifest", metavar="FILE", help="record here how each row ended (default: in -o)"
    )
    group.add_argument(
        "--resume", action="store_true", help="skip rows that the manifest lists as done"
    )


def add_service_flags(group: Any, defaults: Defaults) -> None:
    other_mode = next(mode for mode in reversed(MODES) if mode != defaults.mode)
    group.add_argument(
        "--mode",
        metavar="MODE",
        type=partial(read_mode, "--mode"),
        help=f"{other_mode} (default: {defaults.mode}; env COMFYUI_RUN_MODE)",
    )
    group.add_argument(
        "--host", metavar="NAME", help="listen here (default: 127.0.0.1; others need a token)"
    )
    group.add_argument(
        "--port",
        metavar="PORT",
        type=partial(read_whole_number, "--port"),
        help="the port (default: 8189; env COMFYUI_RUNNER_PORT)",
    )
    group.add_argument(
        "--token", metavar="SECRET", help="what clients must send (env COMFYUI_RUNNER_TOKEN)"
    )
    group.add_argument(
        "--no-token", action="store_true", help="allow other machines without a token"
    )
    group.add_argument(
        "--allow-host", metavar="NAME", action="append", help="also answer to this name; repeatable"
    )
    group.add_argument(
        "--allow-origin",
        metavar="URL",
        action="append",
        help="also accept requests from this origin; repeatable",
    )
    group.add_argument(
        "--public-url", metavar="URL", help="where clients reach the service through a proxy"
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
        help="keep runs and edits in this file; none: in memory "
        "(default: NAME.runs.sqlite3 beside the workflow)",
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
        help="run on each upload (env COMFYUI_AUTO_EXECUTE_ON_UPLOAD)",
    )


def add_other_flags(group: Any) -> None:
    group.add_argument("-y", "--yes", action="store_true", help="run without asking")
    group.add_argument(
        "--hook",
        metavar="COMMAND",
        action="append",
        type=partial(read_text, "--hook"),
        help="run this in the shell after each run; repeatable",
    )
    group.add_argument(
        "--setup",
        action="store_true",
        help="create a .venv with the packages beside the script",
    )
    group.add_argument(
        "--version",
        action="version",
        version=f"%(prog)s {__version__}",
        help="show the version",
    )


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
