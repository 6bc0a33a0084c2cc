"""Messages in the words of the Python API. No socket."""

from __future__ import annotations

from typing import Any

import pytest

from comfyui_runner.comfyui import START_COMFYUI, START_COMFYUI_THERE
from comfyui_runner.errors import PromptRejected, RunnerError, ServerUnreachable
from comfyui_runner.extras.python_words import errors_in_python_words, hide_in_problems, in_python_words
from comfyui_runner.http_failures import CREDENTIALS_REMEDY, LOGIN_REMEDY
from comfyui_runner.problems import Problem
from comfyui_runner.redaction import Secrets
from comfyui_runner.third_party import import_third_party


@pytest.mark.parametrize(
    ("flags", "arguments"),
    [
        ("Check the spelling in --server.", "Check the spelling in the URL of connect()."),
        ("Give --server the address that it means.", "Give connect() the address that it means."),
        ("Give --server URL.", "Give connect(URL)."),
        (
            "To render again, change a value or add --seed random.",
            'To render again, change a value or add seed="random".',
        ),
        (
            'Give the credentials: --server https://user:password@host, or --header "Authorization: Bearer …".',
            'Give the credentials: connect("https://user:password@host"), '
            'or connect(headers={"Authorization": "Bearer …"}).',
        ),
        ("Cancelled by --timeout: it", "Cancelled by timeout: it"),
        (
            'It is on this machine: --image "6=in/cat.png" uploads it.',
            'It is on this machine: pathlib.Path("in/cat.png") as the value uploads it.',
        ),
        ("start ComfyUI with --lowvram.", "start ComfyUI with --lowvram."),
    ],
)
def test_messages_name_arguments_and_not_flags(flags: str, arguments: str) -> None:
    assert in_python_words(flags) == arguments


@pytest.mark.parametrize("remedy", [START_COMFYUI, START_COMFYUI_THERE, LOGIN_REMEDY, CREDENTIALS_REMEDY])
def test_what_to_do_about_the_server_is_said_without_flags(remedy: str) -> None:
    assert "--" not in in_python_words(remedy)
    assert "connect(" in in_python_words(remedy)


def test_a_missing_package_is_installed_with_pip() -> None:
    """--setup and uv make environments for the script, not for the program that imports us."""
    with pytest.raises(RunnerError) as missing, errors_in_python_words():
        import_third_party("no_such_package")
    first, *lines = missing.value.remedy.splitlines()
    assert first == "Install the packages for this Python:"
    assert lines and all("--setup" not in line and "uv run" not in line for line in lines)
    assert any("pip install" in line for line in lines)
    assert str(missing.value).endswith(missing.value.remedy)


def raised(error: RunnerError, *secrets: str) -> Any:
    """What a program gets of ``error``."""
    with pytest.raises(RunnerError) as caught, errors_in_python_words(Secrets(secrets)):
        raise error
    assert caught.value is error
    return error


def test_a_traceback_shows_the_message_and_what_to_do_next() -> None:
    error = raised(ServerUnreachable("No ComfyUI answers.", "Give its address with\n--server URL, or --demo"))
    assert error.message == "No ComfyUI answers."
    assert error.remedy == "Give its address with\nconnect(URL), or connect(demo=True)"
    assert str(error) == f"{error.message}\n{error.remedy}"
    assert str(raised(RunnerError("Nothing to add."))) == "Nothing to add."


def test_an_error_has_no_escape_codes_and_no_secrets() -> None:
    error = raised(RunnerError("\x1b[31mno s3cret-token", "not s3cret-token either"), "s3cret-token")
    assert str(error) == "no ***\nnot *** either"


def test_a_refusal_lists_its_problems_up_to_a_number() -> None:
    error = PromptRejected("Refused.", answer={"error": "has s3cret-token"})
    error.problems = [
        Problem(
            "t", f"s3cret-token {number}: use --seed random.", "3", "Sampler", "KSampler", hints=("add s3cret-token",)
        )
        for number in range(12)
    ]
    lines = str(raised(error, "s3cret-token")).split("\n")
    assert lines[:3] == ["Refused.", '"Sampler" (KSampler, node 3): *** 0: use seed="random".', "    add ***"]
    assert lines[-1] == "2 more: see the error's problems."
    assert len(lines) == 22
    assert error.answer == {"error": "has ***"}
    assert len(error.problems) == 12
    error.problems = error.problems[:10]
    assert "more:" not in str(raised(error, "s3cret-token"))
    error.problems = error.problems[:1]
    assert len(str(raised(error)).split("\n")) == 3


def test_secrets_are_hidden_in_every_part_of_a_problem() -> None:
    problem = Problem("t", "m s3cret-token", "1", value=["s3cret-token"], hints=("h s3cret-token",))
    (hidden,) = hide_in_problems([problem], Secrets(["s3cret-token"]))
    assert (hidden.message, hidden.value, hidden.hints) == ("m ***", ["***"], ("h ***",))
