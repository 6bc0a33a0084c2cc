"""What a run is told: flags over environment variables over the script's constants."""

from __future__ import annotations

import re
from typing import Any, Mapping, NamedTuple, Optional, Sequence, Tuple

from comfyui_runner.addresses import Address, parse_address
from comfyui_runner.errors import UsageError
from comfyui_runner.flags import Defaults, make_parser
from comfyui_runner.guard import Guard, make_guard
from comfyui_runner.limits import DEFAULT_LIMITS, Limits


class Settings(NamedTuple):
    """Everything that a run can be told, after flags, environment and constants were weighed."""

    workflow: str
    workflow_named: bool  # by flag or environment; else it is also looked for in example_folders
    mode: str
    auto_execute: bool
    servers: Tuple[Address, ...]
    example_folders: Tuple[str, ...] = ()
    demo: bool = False
    yes: bool = False
    output: Optional[str] = None
    overwrite: bool = False
    timeout: Optional[float] = None
    printer: str = "human"
    verbose: bool = False
    sets: Tuple[str, ...] = ()  # NODE.INPUT=VALUE
    images: Tuple[str, ...] = ()  # [NODE=]FILE
    seed: str = "keep"  # or "random", or a number
    task: str = "run"  # or "inputs", "check", "export", "attach", "batch"
    object_info: Optional[str] = None  # a file, in place of the server's
    export_api: str = ""
    attach: str = ""
    save_run: Optional[str] = None
    repeat: int = 1
    batch: Optional[str] = None
    in_flight: int = 2
    manifest: str = ""
    resume: bool = False
    retries: int = 0  # of a run that its server lost
    name: str = ""  # the pattern of the names of saved files
    host: str = "127.0.0.1"  # continuous mode: where it listens
    port: int = 8189
    max_queue: int = 16
    guard: Guard = Guard()
    limits: Limits = DEFAULT_LIMITS


def make_settings(
    arguments: Sequence[str], environment: Mapping[str, str], defaults: Defaults
) -> Settings:
    """The settings: a flag, else the environment, else the default.

    Raises UsageError; leaves through SystemExit for --help and --version.
    """
    parser = make_parser(defaults)
    flags, unknown = parser.parse_known_args(list(arguments))
    if unknown:
        names = [
            word.partition("=")[0] if word[:2] == "--" else word[:2]
            for word in unknown
            if word[0:1] == "-"
        ]
        raise UsageError(
            "Unknown option: %s." % ", ".join(names)
            if names
            else "There is more than one workflow.",
            "See --help.",
        )

    def weigh(flag: Any, variable: str, constant: Any) -> Any:
        return flag if flag not in (None, False) else environment.get(variable) or constant

    mode = str(weigh(flags.mode, "COMFYUI_RUN_MODE", defaults.mode))
    if mode not in ("single_shot", "continuous"):
        raise UsageError(
            "The mode must be single_shot or continuous.",
            "Set --mode, COMFYUI_RUN_MODE or RUN_MODE so.",
        )
    auto_execute = weigh(
        flags.auto_execute, "COMFYUI_AUTO_EXECUTE_ON_UPLOAD", defaults.auto_execute
    )
    if isinstance(auto_execute, str):
        known = {
            "1": True,
            "true": True,
            "yes": True,
            "on": True,
            "0": False,
            "false": False,
            "no": False,
            "off": False,
        }
        if auto_execute.strip().lower() not in known:
            raise UsageError("COMFYUI_AUTO_EXECUTE_ON_UPLOAD must be true or false.")
        auto_execute = known[auto_execute.strip().lower()]
    timeout = weigh(flags.timeout, "COMFYUI_TIMEOUT", None)
    if timeout is not None:
        try:
            timeout = float(timeout)
        except ValueError:
            timeout = -1.0
        if not 0 < timeout < 1e8:
            raise UsageError(
                "The timeout must be a number of seconds above 0.", "Example: --timeout 600"
            )
    if flags.demo and flags.server:
        raise UsageError(
            "--demo brings its own server, so --server cannot be given with it.",
            "Leave one of them out.",
        )
    numbers = {"port": 8189, "max-queue": 16, "in-flight": 2, "repeat": 1, "retries": 0}
    given = {"port": weigh(flags.port, "COMFYUI_RUNNER_PORT", None), "max-queue": flags.max_queue}
    given.update({"in-flight": flags.in_flight, "repeat": flags.repeat, "retries": flags.retries})
    for name, text in given.items():
        if text is not None and not (re.match(r"^\d{1,5}$", str(text)) and int(text) < 65536):
            raise UsageError("--%s must be a number below 65536." % name)
        numbers[name] = int(text) if text is not None else numbers[name]
    if not numbers["in-flight"] or not numbers["repeat"]:
        raise UsageError("--in-flight and --repeat must be at least 1.")
    seed = (flags.seed or ("random" if flags.repeat else "keep")).lower()
    if not re.match(r"^(keep|random|\d{1,20})$", seed):
        raise UsageError("--seed takes a number, random or keep.")
    many = bool(flags.batch or flags.repeat or flags.resume)
    wished = {"inputs": flags.inputs, "check": flags.check, "export": flags.export_api, "attach": flags.attach,
              "batch": many}  # fmt: skip
    tasks = [task for task, flag in wished.items() if flag]
    for option in ("attach", "export_api", "object_info", "save_run"):
        if (
            getattr(flags, option) == ""
        ):  # a variable of a script that is not set: it must not run something else
            raise UsageError("--%s is empty." % option.replace("_", "-"))
    if len(tasks) > 1 or (tasks and flags.mode == "continuous"):
        raise UsageError(
            "--inputs, --check, --export-api, --attach, --batch and continuous mode exclude each other."
        )
    if flags.save_run and (tasks not in ([], ["attach"]) or mode == "continuous"):
        raise UsageError("--save-run is for a single run; a batch has its manifest.")
    if flags.attach and (flags.set or flags.image or flags.seed):
        raise UsageError(
            "--attach follows a prompt that is submitted already: nothing can be set in it."
        )
    if flags.object_info and not (flags.inputs or flags.check or flags.export_api):
        raise UsageError(
            "--object-info is for --inputs, --check and --export-api: a run asks its server."
        )
    host = flags.host or "127.0.0.1"
    token = weigh(flags.token, "COMFYUI_RUNNER_TOKEN", None)
    guard = make_guard(
        host, token, flags.no_token, flags.allow_host or (), flags.allow_origin or ()
    )
    headers = list(filter(None, environment.get("COMFYUI_HEADERS", "").splitlines())) + (
        flags.header or []
    )
    url = weigh(flags.server, "COMFYUI_URL", None)
    servers = tuple(
        parse_address(text, headers) for text in (defaults.servers if url is None else [url])
    )
    named = weigh(flags.workflow, "COMFYUI_WORKFLOW", None)
    if named == "-" == flags.batch:
        raise UsageError(
            "Standard input is either the workflow or the rows.", "Put one of them into a file."
        )
    return Settings(
        workflow=str(named or defaults.workflow), workflow_named=bool(named), mode=mode, auto_execute=bool(auto_execute),
        servers=servers, example_folders=defaults.example_folders, demo=flags.demo, yes=flags.yes, output=weigh(flags.output, "COMFYUI_OUTPUT", None),
        overwrite=flags.overwrite, timeout=timeout,
        printer="quiet" if flags.quiet or flags.export_api == "-" else "json" if flags.json else "human",
        verbose=flags.verbose,
        sets=tuple(flags.set or ()), images=tuple(flags.image or ()), seed=seed, task=tasks[0] if tasks else "run",
        object_info=flags.object_info, export_api=flags.export_api or "", attach=flags.attach or "",
        save_run=flags.save_run, repeat=numbers["repeat"], batch=flags.batch, in_flight=numbers["in-flight"],
        manifest=flags.manifest or "", resume=flags.resume, retries=numbers["retries"], name=flags.name or "",
        host=host, port=numbers["port"], max_queue=numbers["max-queue"], guard=guard,
    )  # fmt: skip
