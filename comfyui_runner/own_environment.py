"""--setup: a virtual environment beside the script, with the packages that the runner needs.

It is the same in every shell and on every system, also where pip refuses to install (PEP 668:
Debian, Ubuntu, Homebrew), and it touches no other environment.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from importlib.machinery import PathFinder
from typing import Iterator, List, NamedTuple, NoReturn, Sequence

from comfyui_runner.errors import ExitStatus
from comfyui_runner.flags import leave

#: The folder of the environment, beside the script.
ENVIRONMENT_FOLDER = ".venv"

#: A file in that folder: what --setup made it for. Without it, the folder is somebody else's.
MARK_FILE = "made-by-setup"

#: The mark of an environment that is not complete.
UNFINISHED = "unfinished"

#: What a run cannot do without; rich is optional.
NEEDED_PACKAGES = ("websockets", "requests")

#: Seconds that Python may take to make an environment.
MAKE_SECONDS = 600.0

#: Seconds that pip may take to fill it.
INSTALL_SECONDS = 1800.0


class EnvironmentState(NamedTuple):
    """What there is when the program starts."""

    is_inside: bool  # this Python is that of the environment
    has_packages: bool  # this Python has what a run needs
    has_folder: bool
    has_python: bool  # the environment's Python can be started
    mark: str  # "" without one


def choose_step(state: EnvironmentState, wants_setup: bool, wanted_mark: str) -> str:
    """What comes before the program: "nothing", "switch", "make", "fill" or "refuse".

    "switch": the environment's Python takes over. "make": the environment is made, and takes over.
    "fill": this Python is the environment's, and gets the packages. "refuse": there is a folder of
    that name which is not ours.
    """
    is_ours = state.mark != ""
    is_complete = is_ours and state.has_python and state.mark != UNFINISHED
    is_up_to_date = state.mark == wanted_mark

    if not wants_setup:
        can_help = is_complete and not state.is_inside
        if can_help and not state.has_packages:
            return "switch"
        return "nothing"

    if state.is_inside and not is_ours:
        if state.has_packages:
            return "nothing"
        return "refuse"
    if state.is_inside:
        if state.has_packages and is_up_to_date:
            return "nothing"
        return "fill"  # it cannot be made anew while its Python runs

    if is_complete and is_up_to_date:
        return "switch"
    if state.has_folder and not is_ours:
        return "refuse"
    return "make"


def find_requirements(text: str) -> List[str]:
    """What pip is given: what the script lists in its ``text`` for uv, in the form of PEP 723.

    A requirements.txt beside it is not read: one that is beside the one file is somebody else's,
    such as ComfyUI's.
    """
    block = re.search(r"(?ms)^# dependencies = \[$(.*?)^# \]$", text)
    if block is None:
        return list(NEEDED_PACKAGES)
    return re.findall(r'"([^"]+)"', block.group(1))


def make_mark(requirements: Sequence[str], version: str) -> str:
    """The mark of an environment of Python ``version`` that has what pip was given."""
    return "\n".join([f"Made by --setup, with Python {version}, for:", *requirements])


def explain_no_venv(module: str, python: str, version: str, is_embedded: bool) -> str:
    """What to do where ``python`` cannot make an environment, because it lacks ``module``."""
    message = (
        f"This Python cannot create an environment: it does not have the module {module} "
        f"({python})."
    )
    if is_embedded:
        return (
            f"{message}\n"
            "The Python of ComfyUI portable does not have it. In its folder, install the "
            "packages for it:\n"
            r".\python.exe -s -m pip install websockets requests rich"
        )
    return (
        f"{message}\n"
        f"Debian and Ubuntu: sudo apt install python{version}-venv\n"
        "With uv, nothing has to be installed: uv run comfyui_workflow_runner.py"
    )


def use_own_environment(script: str, arguments: Sequence[str]) -> List[str]:
    """``arguments`` without --setup, where this Python is the one that runs the program.

    With --setup, or where this Python lacks the packages, the environment's takes over: the process
    becomes another one. It ends with a message where there can be no such environment.
    """
    wants_setup = "--setup" in arguments
    rest = [argument for argument in arguments if argument != "--setup"]
    has_packages = all(PathFinder.find_spec(name) for name in NEEDED_PACKAGES)
    if has_packages and not wants_setup:
        return rest

    folder = os.path.join(os.path.dirname(os.path.abspath(script)), ENVIRONMENT_FOLDER)
    python = python_of(folder)
    with open(script, encoding="utf-8") as file:
        requirements = find_requirements(file.read())
    wanted_mark = make_mark(requirements, python_version())
    state = EnvironmentState(
        is_inside=os.path.realpath(sys.prefix) == os.path.realpath(folder),
        has_packages=has_packages,
        has_folder=os.path.isdir(folder),
        has_python=os.path.exists(python),  # not where it is a link to one that is gone
        mark=read_mark(folder),
    )
    step = choose_step(state, wants_setup, wanted_mark)
    if step == "nothing":
        return rest
    if step == "refuse":
        end_with(
            f"--setup did not make {folder}, so it leaves it alone.\n"
            "Remove it, or install the packages into it yourself: "
            "python -m pip install websockets requests rich"
        )
    if step == "make":
        make_own_environment(folder, requirements, wanted_mark)
    elif step == "fill":
        fill_own_environment(folder, requirements, wanted_mark)
    elif not wants_setup:
        show_progress(
            f"This Python does not have the packages: continuing with the one in {folder}."
        )
    return become([python, script, *rest])


def python_version() -> str:
    """This Python's version, as in the names of Debian's packages: "3.11"."""
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def python_of(folder: str) -> str:
    """The Python of the environment in ``folder``."""
    if os.name == "nt":
        return os.path.join(folder, "Scripts", "python.exe")
    return os.path.join(folder, "bin", "python")


def read_mark(folder: str) -> str:
    """The mark of the environment in ``folder``; "" if it has none."""
    try:
        with open(os.path.join(folder, MARK_FILE), encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""


def write_mark(folder: str, mark: str) -> None:
    """Marks the environment in ``folder`` as ours."""
    with open(os.path.join(folder, MARK_FILE), "w", encoding="utf-8", newline="\n") as file:
        file.write(mark)


def make_own_environment(folder: str, requirements: Sequence[str], mark: str) -> None:
    """Makes the environment anew, by this Python's venv and pip; ends the process if it cannot."""
    # Only --setup needs these.
    import shutil
    import subprocess

    try:
        # On Debian they are in a package of their own; an embedded Python has neither.
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        names = os.listdir(os.path.dirname(sys.executable))
        is_embedded = any(name.endswith("._pth") for name in names)
        module = str(error.name)
        end_with(explain_no_venv(module, sys.executable, python_version(), is_embedded))

    show_progress(f"Creating {folder}. This happens only once, and takes a moment.")
    way = "--symlinks"  # a copy of Homebrew's Python does not start
    if os.name == "nt":
        way = "--copies"
    make_environment = [sys.executable, "-m", "venv", way, folder]
    with ending_with_reason(folder, "start it again."):
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder, exist_ok=True)
        write_mark(folder, UNFINISHED)  # the next --setup knows whose it is
        subprocess.run(make_environment, check=True, timeout=MAKE_SECONDS)
        install_packages(folder, requirements)
        write_mark(folder, mark)


def fill_own_environment(folder: str, requirements: Sequence[str], mark: str) -> None:
    """Installs what the environment lacks, whose Python is this one; ends the process if it cannot.

    It was left unfinished, or made for another version of the program.
    """
    show_progress(f"Installing the packages in {folder}.")
    # Half-made, it may lack pip.
    remedy = "start it again. To create it anew, leave it first (deactivate)."
    with ending_with_reason(folder, remedy):
        write_mark(folder, UNFINISHED)
        install_packages(folder, requirements)
        write_mark(folder, mark)


def install_packages(folder: str, requirements: Sequence[str]) -> None:
    """Calls the pip of the environment in ``folder``. Raises OSError, and SubprocessError."""
    import subprocess  # only --setup needs it

    install = [python_of(folder), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, *requirements], check=True, timeout=INSTALL_SECONDS)


@contextlib.contextmanager
def ending_with_reason(folder: str, remedy: str) -> Iterator[None]:
    """What keeps the block from filling ``folder`` ends the process, with a message."""
    import subprocess  # only --setup needs it

    try:
        yield
    except KeyboardInterrupt:
        show_progress(f"Stopped: {folder} is not complete. The next --setup completes it.")
        leave(ExitStatus.CANCELLED)
    except subprocess.SubprocessError:
        end_with(
            f"{folder} is not complete: the lines above say why.\n"
            f"Check the connection (behind a proxy, set HTTPS_PROXY), and {remedy}"
        )
    except OSError as error:
        end_with(
            f"{folder} cannot be created: {error.strerror or error}.\n"
            "Move the project to a folder that you may write to."
        )


def become(command: Sequence[str]) -> NoReturn:
    """Goes on as ``command``: its exit status is that of this process."""
    if os.name != "nt":
        os.execv(command[0], list(command))
    # On Windows, exec returns to the shell at once, and two programs then share the console.
    import signal
    import subprocess

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the program itself
    os._exit(subprocess.call(list(command)))


def show_progress(message: str) -> None:
    """A line for the person: standard output belongs to the program."""
    print(message, file=sys.stderr, flush=True)


def end_with(message: str) -> NoReturn:
    """Ends the process with ``message``."""
    show_progress(message)
    leave(ExitStatus.ERROR)
