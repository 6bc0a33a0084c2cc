"""Commands that a person copies into a shell: sh, and Windows' cmd and PowerShell.

cmd does not know single quotes. In Windows PowerShell, a line that begins with a quotation mark is
a string and not a command, and ``curl`` is another program.
"""

from __future__ import annotations

import os
import re
from typing import Mapping, Sequence

IS_WINDOWS = os.name == "nt"


def name_of_curl(is_windows: bool) -> str:
    """What curl is called: in Windows PowerShell ``curl`` is Invoke-WebRequest."""
    if is_windows:
        return "curl.exe"
    return "curl"


#: curl, as it is called in the shells of this machine.
CURL = name_of_curl(IS_WINDOWS)


def install_commands(
    python: str, packages: Sequence[str], is_windows: bool, is_found_as_python: bool
) -> str:
    """The lines that install ``packages`` for the interpreter whose path is ``python``.

    ``is_found_as_python``: the command ``python`` starts this interpreter.
    """
    names = " ".join(packages)
    arguments = f"-m pip install {names}"
    if is_found_as_python:
        return f"python {arguments}"
    if not is_windows:
        escaped = re.sub(r"([^\w@%+=:,./-])", r"\\\1", python)
        return f"{escaped} {arguments}"
    if not _needs_quotes(python):
        return f"{python} {arguments}"
    # The path cannot begin the line in quotation marks, so the program is started in its folder.
    folder, _, program = python.rpartition("\\")
    return f'pushd "{folder}"\n.\\{program} {arguments}'


def _needs_quotes(path: str) -> bool:
    """Whether a character in ``path`` has a meaning of its own in cmd or PowerShell."""
    return any(character in path for character in " \t&()[]{}^=;',`$@#%")


def quote_argument(text: str, is_windows: bool) -> str:
    """``text`` as one argument of a command, for sh or, on Windows, for both cmd and PowerShell."""
    if is_windows:
        return _quote_for_windows(text)
    if re.fullmatch(r"[\w@%+=:,./-]+", text, re.ASCII):
        return text
    # A quotation mark ends the quoted part, comes in double quotes, and another part begins.
    escaped = text.replace("'", "'\"'\"'")
    return f"'{escaped}'"


def _quote_for_windows(text: str) -> str:
    if text and not _needs_quotes(text):
        return text
    if text.endswith("\\"):
        text += "\\"  # a single backslash would escape the closing quotation mark
    return f'"{text}"'


def remedy_without_terminal(is_windows: bool, variables: Mapping[str, str]) -> str:
    """What to do where a question cannot be asked.

    In the window of Git Bash, Windows programs have no terminal unless winpty starts them.
    """
    if is_windows and variables.get("MSYSTEM"):
        return (
            "Add --yes to run without being asked, or begin the command with winpty: "
            "winpty python comfyui_workflow_runner.py"
        )
    return "Add --yes to run without being asked."
