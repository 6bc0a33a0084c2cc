"""What a run is asked to do: a flag overrides an environment variable, and that a default."""

from __future__ import annotations

from glob import has_magic
from typing import Any, Callable, FrozenSet, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from comfyui_runner.addresses import (
    Address,
    choose_ca_bundle,
    parse_address,
    read_public_url,
    split_origin,
)
from comfyui_runner.errors import UsageError
from comfyui_runner.flags import (
    NO_STATE,
    Defaults,
    parse_flags,
    read_mode,
    read_seconds,
    read_text,
    read_whole_number,
    read_yes_or_no,
)
from comfyui_runner.guard import Guard, make_guard
from comfyui_runner.limits import DEFAULT_LIMITS, Limits
from comfyui_runner.redaction import secrets_in_headers, secrets_in_proxies

#: What excludes each other: the flags of a task, in the order of the messages.
TASK_FLAGS = {
    "inputs": ("--inputs",),
    "check": ("--check",),
    "export": ("--export-api",),
    "attach": ("--attach",),
    "batch": ("--batch", "--each", "--repeat", "--resume"),
}

#: What a call can be, in the order of the messages: a single run, continuous mode, or a task.
PROGRAMS = {
    "run": "a single run",
    "continuous": "--mode continuous",
    "batch": "--batch, --each and --repeat",
    "attach": "--attach",
    "inputs": "--inputs",
    "check": "--check",
    "export": "--export-api",
}

_PROGRAMS_THAT_FOLLOW_RUNS = ("run", "continuous", "batch", "attach")

#: The flags that only some programs use. Any other is used, or means nothing wrong, in all of them.
PROGRAMS_THAT_USE = {
    "--timeout": _PROGRAMS_THAT_FOLLOW_RUNS,
    "--output": _PROGRAMS_THAT_FOLLOW_RUNS,
    "--overwrite": _PROGRAMS_THAT_FOLLOW_RUNS,
    "--hook": _PROGRAMS_THAT_FOLLOW_RUNS,
    "--free": _PROGRAMS_THAT_FOLLOW_RUNS,
    "--name": ("run", "batch", "attach"),
    "--open": ("run", "batch", "attach"),
    "--retries": ("run", "batch"),
    "--in-flight": ("batch",),
    "--manifest": ("batch",),
    "--resume": ("batch",),
    "--host": ("continuous",),
    "--port": ("continuous",),
    "--token": ("continuous",),
    "--no-token": ("continuous",),
    "--allow-host": ("continuous",),
    "--allow-origin": ("continuous",),
    "--public-url": ("continuous",),
    "--max-queue": ("continuous",),
    "--state": ("continuous",),
    "--keep-runs": ("continuous",),
    "--auto-execute": ("continuous",),
    "--allow-spend": ("run", "continuous", "batch"),
}


class Settings(NamedTuple):
    """Everything that a run is asked to do, from flags, environment and defaults."""

    workflow: str
    workflow_named: bool  # by flag or environment; else it is also looked for in example_folders
    mode: str
    auto_execute: bool
    servers: Tuple[Address, ...]  # the first one that answers is used
    example_folders: Tuple[str, ...] = ()
    workflows: Tuple[str, ...] = ()  # the words of the command line, patterns among them
    demo: bool = False
    yes: bool = False
    allow_spend: bool = False  # nodes that cost credits run without a question
    api_key: str = ""  # of a Comfy account, for these nodes
    output: Optional[str] = None
    overwrite: bool = False
    open: bool = False  # what was saved is shown by the system's programs
    timeout: Optional[float] = None
    printer: str = "human"  # or "quiet", "json"
    verbose: bool = False
    sets: Tuple[str, ...] = ()  # NODE.INPUT=VALUE
    short_values: Tuple[Tuple[str, str], ...] = ()  # of --positive, --negative and --size
    images: Tuple[str, ...] = ()  # [NODE=]FILE
    seed: str = "keep"  # or "random", or a number
    task: str = "run"  # or a key of TASK_FLAGS
    object_info: Optional[str] = None  # a file, in place of the server's
    export_api: str = ""
    attach: str = ""
    save_run: Optional[str] = None
    repeat: int = 1
    first_row: int = 1  # the number of the first run of --repeat, which goes on in a manifest
    batch: Optional[str] = None
    each: Tuple[str, ...] = ()  # NODE.INPUT=VALUES
    in_flight: int = 2
    spreads_rows: bool = False  # a batch uses all ``servers`` at a time
    manifest: str = ""
    resume: bool = False
    retries: int = 0  # of a run that its server lost
    name: str = ""  # the pattern of the names of saved files
    hooks: Tuple[str, ...] = ()  # commands for the shell, after each run
    free: bool = False  # ComfyUI is asked to unload its models when no run is left
    host: str = "127.0.0.1"  # continuous mode: where it listens
    port: int = 8189
    public_url: str = ""  # where clients reach the service; "": where their requests say
    max_queue: int = 16
    state: Optional[str] = None  # the file that runs are kept in; "none"; None: beside the workflow
    folder: str = ""  # where the workflows of the service are, if a folder was named
    keep_runs: int = 2000
    guard: Guard = Guard()
    limits: Limits = DEFAULT_LIMITS
    notices: Tuple[str, ...] = ()  # of flags that were typed in another case

    @property
    def may_be_several(self) -> bool:
        """Whether several workflows are named, or a pattern that several may fit."""
        return len(self.workflows) > 1 or any(map(has_magic, self.workflows))

    @property
    def has_rows(self) -> bool:
        """Whether a batch has rows of values, beyond the number of a --repeat."""
        return self.batch is not None or bool(self.each)


def given_secrets(settings: Settings, environment: Mapping[str, str]) -> List[str]:
    """What must not be shown: credentials of ComfyUI and of proxies, the service's token, and the
    key of a Comfy account.
    """
    headers = [header for address in settings.servers for header in address.headers]
    ours = (settings.guard.token or "", settings.api_key)
    return [*secrets_in_headers(headers), *secrets_in_proxies(environment), *ours]


def make_settings(
    arguments: Sequence[str], environment: Mapping[str, str], defaults: Defaults
) -> Settings:
    """The settings of a call. ``defaults`` are the script's constants.

    Raises UsageError; leaves through SystemExit for --help and --version.
    """
    flags = parse_flags(arguments, defaults)
    mode = choose_mode(flags, environment, defaults)
    task = choose_task(flags)
    refuse_contradictions(flags, environment, mode, task)

    def choose(
        flag: Any, variable: str, default: Any = None, read: Callable[[str, str], Any] = read_text
    ) -> Any:
        return choose_value(flag, environment, variable, default=default, read=read)

    first_word = next(iter(flags.workflow), None)
    workflow = choose(first_word, "COMFYUI_WORKFLOW")
    if workflow == "-" == flags.batch:
        raise UsageError(
            "Standard input cannot be both the workflow and the rows.", "Put one of them in a file."
        )
    return Settings(
        workflow=workflow or defaults.workflow,
        workflow_named=bool(workflow),
        mode=mode,
        auto_execute=choose(
            flags.auto_execute or None,
            "COMFYUI_AUTO_EXECUTE_ON_UPLOAD",
            default=defaults.auto_execute,
            read=read_yes_or_no,
        ),
        servers=choose_servers(flags, environment, defaults),
        example_folders=defaults.example_folders,
        workflows=tuple(flags.workflow),
        demo=flags.demo,
        yes=flags.yes,
        allow_spend=flags.allow_spend,
        # Never a flag: others can read the command lines of programs.
        api_key=read_api_key(environment),
        output=choose(flags.output, "COMFYUI_OUTPUT"),
        overwrite=flags.overwrite,
        open=flags.open,
        timeout=choose(flags.timeout, "COMFYUI_TIMEOUT", read=read_seconds),
        printer=choose_printer_kind(flags),
        verbose=flags.verbose,
        sets=tuple(flags.set or ()),
        short_values=short_values_given(flags),
        images=tuple(flags.image or ()),
        seed=choose_seed(flags),
        task=task,
        object_info=flags.object_info,
        export_api=flags.export_api or "",
        attach=flags.attach or "",
        save_run=flags.save_run,
        repeat=flags.repeat or 1,
        batch=flags.batch,
        each=tuple(flags.each or ()),
        in_flight=flags.in_flight or 2,
        spreads_rows=len(flags.server or ()) > 1,
        manifest=flags.manifest or "",
        resume=flags.resume,
        retries=flags.retries or 0,
        name=flags.name or "",
        hooks=tuple(flags.hook or ()),
        free=flags.free,
        host=choose_host(flags),
        port=choose(flags.port, "COMFYUI_RUNNER_PORT", default=8189, read=read_whole_number),
        public_url=choose_public_url(flags),
        max_queue=choose_max_queue(flags),
        state=flags.state,
        keep_runs=flags.keep_runs or 2000,
        guard=choose_guard(flags, choose(flags.token, "COMFYUI_RUNNER_TOKEN")),
        notices=flags.notices,
    )


def read_api_key(environment: Mapping[str, str]) -> str:
    """The key of a Comfy account, for nodes that cost credits; "" where none is set."""
    return environment.get("COMFY_API_KEY", "").strip()


def choose_value(
    flag: Any,
    environment: Mapping[str, str],
    variable: str,
    *,
    default: Any,
    read: Callable[[str, str], Any],
) -> Any:
    """``flag`` if it was given, else what ``variable`` says, else ``default``.

    A variable that is set but empty counts as not set. ``read`` takes its name and its text.
    """
    if flag is not None:
        return flag
    text = environment.get(variable)
    if not text:
        return default
    return read(variable, text)


def choose_mode(flags: Any, environment: Mapping[str, str], defaults: Defaults) -> str:
    """The mode. That of the script is checked too, as people edit it."""
    mode = choose_value(flags.mode, environment, "COMFYUI_RUN_MODE", default=None, read=read_mode)
    return mode or read_mode("RUN_MODE", defaults.mode)


def choose_servers(
    flags: Any, environment: Mapping[str, str], defaults: Defaults
) -> Tuple[Address, ...]:
    """Where ComfyUI may be, by the flags."""
    addresses = choose_addresses(flags.server, flags.header or [], environment, defaults.servers)
    refuse_repeated_addresses(addresses)
    return addresses


def refuse_repeated_addresses(addresses: Sequence[Address]) -> None:
    """Raises UsageError if a server is given twice: it would get twice as many rows at a time."""
    urls = [address.url for address in addresses]
    repeated = next((url for url in urls if urls.count(url) > 1), None)
    if repeated is not None:
        raise UsageError(
            f"--server {repeated} appears twice.",
            "Name each server once. --in-flight says how many runs each of them gets at a time.",
        )


def choose_addresses(
    urls: Optional[Sequence[str]],
    headers: Sequence[str],
    environment: Mapping[str, str],
    default_urls: Sequence[str],
) -> Tuple[Address, ...]:
    """Where ComfyUI may be: at ``urls``, where COMFYUI_URL says, else at one of ``default_urls``.

    ``headers`` are "Name: value" lines; they replace those of COMFYUI_HEADERS. Raises UsageError.
    """
    lines = environment.get("COMFYUI_HEADERS", "").splitlines()
    headers = [line for line in lines if line] + list(headers)
    if urls is None:
        url = environment.get("COMFYUI_URL")
        urls = (url,) if url else default_urls
    ca_bundle = choose_ca_bundle(environment)
    return tuple(parse_address(url, headers, ca_bundle) for url in urls)


def choose_seed(flags: Any) -> str:
    """--seed; runs that are repeated get new seeds, as they would all be the same otherwise."""
    if flags.seed is None and flags.repeat:
        return "random"
    return flags.seed or "keep"


def choose_host(flags: Any) -> str:
    """Where the service listens: on this machine only, unless --host says otherwise."""
    return flags.host or "127.0.0.1"


def choose_public_url(flags: Any) -> str:
    """Where clients reach the service through a proxy, "" if nothing says so. Raises UsageError."""
    if flags.public_url is None:
        return ""
    return read_public_url(flags.public_url)


def choose_guard(flags: Any, token: Optional[str]) -> Guard:
    """Who may use the service. The page at --public-url is its own page. Raises UsageError."""
    hosts = list(flags.allow_host or ())
    origins = list(flags.allow_origin or ())
    if flags.public_url is not None:
        origin, host = split_origin(choose_public_url(flags))
        hosts.append(host)
        origins.append(origin)
    return make_guard(choose_host(flags), token, flags.no_token, hosts, origins)


def choose_max_queue(flags: Any) -> int:
    """How many runs of the service may wait: 0 is a number too."""
    if flags.max_queue is None:
        return 16
    return int(flags.max_queue)


def choose_printer_kind(flags: Any) -> str:
    """How things are printed. With --export-api -, the prompt alone goes to the output."""
    if flags.quiet or flags.export_api == "-":
        return "quiet"
    if flags.json:
        return "json"
    return "human"


# -- what cannot be combined ---------------------------------------------------------------------


def choose_task(flags: Any) -> str:
    """What is asked for besides a single run: a key of TASK_FLAGS, or "run"."""
    given = flags_given(flags)
    tasks = [task for task, names in TASK_FLAGS.items() if given.intersection(names)]
    if len(tasks) > 1:
        first, second = (name_task_flag(task, given) for task in tasks[:2])
        raise cannot_combine(first, second)
    if tasks:
        return tasks[0]
    return "run"


def flags_given(flags: Any) -> FrozenSet[str]:
    """The names of the flags that were given."""
    names = [
        name for name, value in vars(flags).items() if value is not None and value is not False
    ]
    return frozenset("--" + name.replace("_", "-") for name in names)


def name_task_flag(task: str, given: FrozenSet[str]) -> str:
    """The flag of ``task`` that was given."""
    return next(name for name in TASK_FLAGS[task] if name in given)


def cannot_combine(first: str, second: str) -> UsageError:
    return UsageError(f"{first} and {second} cannot be combined.", "Leave one of them out.")


def short_values_given(flags: Any) -> Tuple[Tuple[str, str], ...]:
    """The short names that are set, each with its text."""
    texts = {"positive": flags.positive, "negative": flags.negative, "size": flags.size}
    return tuple((name, text) for name, text in texts.items() if text is not None)


def refuse_contradictions(flags: Any, environment: Mapping[str, str], mode: str, task: str) -> None:
    """Raises UsageError for flags that cannot all be followed."""
    if flags.setup:  # the script itself follows it, and takes it away
        raise UsageError(
            "--setup is for the script, which needs an environment; this program has its packages."
        )
    if flags.demo and flags.server is not None:
        raise UsageError(
            "--demo starts its own server, so it cannot be combined with --server.",
            "Leave one of them out.",
        )
    if len(flags.server or ()) > 1 and task != "batch":
        raise UsageError(
            "--server can be given more than once only with --batch, --each and --repeat, whose "
            "rows are spread over the servers.",
            "Name one server.",
        )
    if flags.demo and flags.state not in (None, NO_STATE):
        raise UsageError(
            "--demo forgets its runs when it ends, so it cannot be combined with --state FILE.",
            "Leave one of them out.",
        )
    if task != "run" and flags.mode == "continuous":
        raise cannot_combine(name_task_flag(task, flags_given(flags)), "--mode continuous")

    is_single_run = task in ("run", "attach") and mode == "single_shot"
    if flags.save_run and not is_single_run:
        raise UsageError(
            "--save-run is for a single run.", "Leave it out. A batch writes a manifest."
        )
    if flags.open and not (flags.output or environment.get("COMFYUI_OUTPUT")):
        raise UsageError("--open opens what -o saves, but nothing is saved.", "Add -o DIR.")
    sets_values = flags.set or flags.image or flags.seed or short_values_given(flags)
    if flags.attach and sets_values:
        raise UsageError(
            "--attach follows a prompt that was submitted before: its values cannot be changed.",
            "Leave out --set, --image, --seed, --positive, --negative and --size.",
        )
    if flags.object_info and task not in ("inputs", "check", "export"):
        raise UsageError(
            "--object-info is for --inputs, --check and --export-api: a run asks its server.",
            "Leave it out, or add one of these three.",
        )
    refuse_unused_flags(flags, mode, task)


def refuse_unused_flags(flags: Any, mode: str, task: str) -> None:
    """Raises UsageError for a flag that the program does not use: somebody expects it to count."""
    if task == "batch" and not (flags.batch or flags.each or flags.repeat):
        raise UsageError(
            "--resume continues a batch, but you did not name one.",
            "Add --batch FILE, --each or --repeat N, as in the command that started it.",
        )
    if flags.batch and flags.each:
        raise cannot_combine("--batch", "--each")
    program = task
    if task == "run" and mode == "continuous":
        program = "continuous"
    given = flags_given(flags)
    for flag, programs in PROGRAMS_THAT_USE.items():
        if flag in given and program not in programs:
            uses = ", ".join(PROGRAMS[name] for name in programs)
            raise UsageError(
                f"{flag} has no effect on {PROGRAMS[program]}. It works with: {uses}.",
                "Leave it out, or see --help.",
            )
