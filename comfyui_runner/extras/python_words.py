"""Messages of the program in the words of its Python API: arguments in place of flags. Pure."""

from __future__ import annotations

import contextlib
import re
from typing import Iterable, Iterator, List

from comfyui_runner.errors import PromptRejected, RunnerError
from comfyui_runner.problems import Problem
from comfyui_runner.redaction import Secrets
from comfyui_runner.reports import describe, problem_report
from comfyui_runner.text import clean, plain_json

#: Problems of a prompt that are shown in a traceback; the others are in ``problems``.
PROBLEMS_IN_TRACEBACK = 10

NO_SECRETS = Secrets()

#: What messages say to people at a command line, and what that is in Python. In this order.
_WORDS = (
    (
        r"(?s)Let the script create an environment.*\nOr install the packages",
        "Install the packages",
    ),
    (
        r"Start ComfyUI \((.*?)\), give its address with\n",
        r"Start ComfyUI (\1), give its address with ",
    ),
    (r"--server (https?://\S+?)(?=[,. ])", r'connect("\1")'),
    (r"--server URL", "connect(URL)"),
    (r"([Gg]ive) --server", r"\1 connect()"),
    (r"--server", "the URL of connect()"),
    (r'--header "([\w-]+): ([^"]*)"', r'connect(headers={"\1": "\2"})'),
    (r"--header", "connect(headers=…)"),
    (r"--yes does not allow", "connect() does not allow"),
    (r"Add --allow-spend, or leave .*", "Allow them: connect(allow_spend=True)."),
    (r"--demo", "connect(demo=True)"),
    (r"add --seed random", 'add seed="random"'),
    (r"--seed random", 'seed="random"'),
    (r"--seed", "seed"),
    (r"--timeout", "timeout"),
    (r'--image "[^"]*?=([^"]*)" uploads it', r'pathlib.Path("\1") as the value uploads it'),
    (r"Choose another folder with -o", "Choose another folder"),
    (r"with --set (NODE\.\w+)=NAME", r'as the value of "\1"'),
)


def in_python_words(text: str) -> str:
    """``text`` with arguments of connect() and run() in place of the program's flags."""
    for flag, argument in _WORDS:
        text = re.sub(flag, argument, text)
    return text


def hide_in_problems(problems: Iterable[Problem], secrets: Secrets) -> List[Problem]:
    """``problems`` without secrets, and in the words of the Python API."""
    return [
        problem._replace(
            message=secrets.hide(in_python_words(problem.message)),
            value=secrets.hide_in(problem.value),
            hints=tuple(secrets.hide(in_python_words(hint)) for hint in problem.hints),
        )
        for problem in problems
    ]


@contextlib.contextmanager
def errors_in_python_words(secrets: Secrets = NO_SECRETS) -> Iterator[None]:
    """Errors that leave the block are for programs: see put_in_python_words()."""
    try:
        yield
    except RunnerError as error:
        put_in_python_words(error, secrets)
        raise


def put_in_python_words(error: RunnerError, secrets: Secrets) -> None:
    """Makes ``error`` one for programs: a traceback shows what happened and what to do next."""

    def reword(text: str) -> str:
        return secrets.hide(clean(in_python_words(text)))

    error.message = reword(error.message)
    error.remedy = reword(error.remedy)
    lines = [error.message]
    if isinstance(error, PromptRejected):
        error.answer = secrets.hide_in(plain_json(error.answer))
        error.problems = hide_in_problems(error.problems, secrets)
        for problem in error.problems[:PROBLEMS_IN_TRACEBACK]:
            lines += [clean(text) for _, text in describe(problem_report(problem))]
        more = len(error.problems) - PROBLEMS_IN_TRACEBACK
        if more > 0:
            lines.append(f"{more} more: see the error's problems.")
    if error.remedy:
        lines.append(error.remedy)
    error.args = ("\n".join(lines),)
