"""The commands that documents and messages give people work in sh, cmd and PowerShell alike."""

from __future__ import annotations

import ast
import functools
import re
import shlex
from typing import Iterator, List, Sequence, Tuple

import pytest
from shells import split_as_windows, troubles_in
from support import program_modules, script
from test_docs_assets import COMMANDS

from comfyui_runner.errors import UsageError
from comfyui_runner.flags import PATH_FLAGS, parse_flags
from comfyui_runner.remedies import ModelSource, download_command
from comfyui_runner.routes import ROUTES
from comfyui_runner.shells import install_commands, name_of_curl, quote_argument, remedy_without_terminal

URL = "http://127.0.0.1:8189"
PACKAGES = ("websockets", "requests", "rich")
INSTALLS = "-m pip install websockets requests rich"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a b\tc", ["a", "b", "c"]),
        ('"a b" c  d', ["a b", "c", "d"]),
        (r'"a\"b" c', ['a"b', "c"]),
        (r"a\\b c\ d", [r"a\\b", "c\\", "d"]),
        (r'a\\"b c" d', [r"a\b c", "d"]),
        (r"a\\\"b c d", [r"a\"b", "c", "d"]),
        (r'a\\\\"b c" d e', [r"a\\b c", "d", "e"]),
        ('a "" "b""c"', ["a", "", 'b"c']),
        (r'-o "C:\my dir\" flow.json --yes', ["-o", r'C:\my dir" flow.json --yes']),
        (r'-o "C:\my dir\\" flow.json', ["-o", "C:\\my dir\\", "flow.json"]),
        ("", []),
    ],
)  # examples of learn.microsoft.com, "Parsing C command-line arguments", and ours
def test_windows_takes_a_line_apart(line: str, words: List[str]) -> None:
    assert split_as_windows(line) == words


@pytest.mark.parametrize(
    "line",
    [
        "curl -d '{}' http://x/y",
        "a && b",
        "curl http://x/y | python z.py -",
        "python z.py  # does this",
        "curl -d @request.json http://x/y",
        "curl http://x/y?z",
        '"C:\\Program Files\\python.exe" -m pip',
        'python z.py -o "C:\\my dir\\"',
        'python z.py --name "{row}',
        "python z.py --name {row}",
        'python z.py --set "6.text=hi!"',
        'python z.py --set "6.text=$HOME"',
        "curl -Fimage.x http://x",
    ],
)
def test_what_a_shell_reads_in_its_own_way_is_found(line: str) -> None:
    assert troubles_in(line)


def assert_works_everywhere(line: str) -> List[str]:
    """The words of ``line``, which every shell takes in the same way."""
    assert troubles_in(line) == [], line
    words = split_as_windows(line)
    is_for_windows_alone = "\\" in line
    assert is_for_windows_alone or words == shlex.split(line)
    assert not any('"' in word for word in words), line  # Windows PowerShell takes them away
    return words


#: Without those of GitHub's workflows, which are filled in before a shell reads them.
LINES = sorted({command.line for command in COMMANDS if "${{" not in command.line})


@pytest.mark.parametrize("line", LINES)
def test_a_command_of_the_documents_works_in_every_shell(line: str) -> None:
    assert_works_everywhere(line)


@pytest.mark.parametrize("curl", ["curl", "curl.exe"])
def test_the_lines_of_the_routes_work_in_every_shell(curl: str) -> None:
    for route in ROUTES:
        if route.curl:
            words = assert_works_everywhere(route.curl_command(URL, curl))
            assert words[0] == curl and any(word.startswith(URL) for word in words)


def test_the_line_that_downloads_a_model_works_in_every_shell() -> None:
    source = ModelSource("a b.pt", "https://a.example/x?a=1&b=(2)", "vae")
    line = download_command(source, "SDXL/a b.pt", is_windows=True)
    assert line is not None
    words = assert_works_everywhere(line)
    assert words[-3:] == ["-o", "models/vae/SDXL/a b.pt", "https://a.example/x?a=1&b=(2)"]


@pytest.mark.parametrize(
    ("python", "is_windows", "is_found_as_python", "lines"),
    [
        ("/usr/bin/python3", False, False, [f"/usr/bin/python3 {INSTALLS}"]),
        ("/my venv/bin/python", False, True, [f"python {INSTALLS}"]),
        ("C:\\Python312\\python.exe", True, False, [f"C:\\Python312\\python.exe {INSTALLS}"]),
        ("C:\\Program Files\\Python312\\python.exe", True, True, [f"python {INSTALLS}"]),
        (
            "C:\\Program Files (x86)\\Python312\\python.exe",
            True,
            False,
            ['pushd "C:\\Program Files (x86)\\Python312"', f".\\python.exe {INSTALLS}"],
        ),
    ],
)
def test_the_lines_that_install_packages_work_in_every_shell(
    python: str, is_windows: bool, is_found_as_python: bool, lines: Sequence[str]
) -> None:
    made = install_commands(python, PACKAGES, is_windows, is_found_as_python).split("\n")
    assert made == lines
    for line in made:
        assert_works_everywhere(line)


@pytest.mark.parametrize("python", ["/my venv/bin/python3", "/it's/$HOME/(a)&b/python", "/狐/python"])
def test_the_line_that_installs_packages_does_not_begin_with_a_quote(python: str) -> None:
    line = install_commands(python, PACKAGES, is_windows=False, is_found_as_python=False)
    assert shlex.split(line)[0] == python and line[0] not in "\"'"


def test_windows_calls_curl_by_its_file() -> None:
    assert (name_of_curl(is_windows=True), name_of_curl(is_windows=False)) == ("curl.exe", "curl")


@functools.lru_cache(maxsize=None)
def texts_of_the_program() -> List[str]:
    """Every text in the code of the program that is not a docstring; values in it are {}."""
    return list(find_texts_of_the_program())


def find_texts_of_the_program() -> Iterator[str]:
    for module in program_modules():
        with open(module.__file__, encoding="utf-8") as file:
            tree = ast.parse(file.read())
        nodes = list(ast.walk(tree))
        expressions = {node.value for node in nodes if isinstance(node, ast.Expr)}
        parts = {part for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in nodes:
            if isinstance(node, ast.JoinedStr):
                pieces = [str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values]
                yield "".join(pieces)
            is_whole_text = isinstance(node, ast.Constant) and node not in expressions and node not in parts
            if is_whole_text and isinstance(node.value, str):  # type: ignore[attr-defined]
                yield node.value  # type: ignore[attr-defined]


def test_messages_name_curl_as_the_shell_at_hand_does_and_use_double_quotes() -> None:
    texts = texts_of_the_program()
    assert len(texts) > 1000
    for text in texts:
        assert "curl -" not in text and "curl http" not in text, text  # {CURL} stands for it
        assert " && " not in text, text
        for flag in ("--header", "--set", "--name", "--image", "-d", "--data-urlencode"):
            assert f"{flag} '" not in text, text


#: A flag and what it is given, as messages name them: '--set 5.steps=30', '--header "Cookie: …"'.
FLAG_AND_VALUE = re.compile(r"(?<![\w-])(--?[a-z][\w-]*) (\"[^\"]*\"|[^\s\"]+)")


def flags_with_values(text: str) -> List[Tuple[str, str]]:
    """What ``text`` would have a person type: flags of this program or of curl, each with its value.

    What a message fills in is a name with a space where it stands in quotation marks, else one without.
    """
    pairs = []
    for flag, typed in FLAG_AND_VALUE.findall(text):
        is_quoted = typed.startswith('"')
        value = typed if is_quoted else typed.rstrip(",.:;)")
        pairs.append((flag, value.replace("{}", "a fox.png" if is_quoted else "fox.png")))
    return pairs


def test_a_flag_and_its_value_are_found_in_a_message() -> None:
    text = 'Use --name "{}_{row}" or -o FILE, --batch {}; a-b c, not - d.'
    assert flags_with_values(text) == [
        ("--name", '"a fox.png_{row}"'),
        ("-o", "FILE"),
        ("--batch", "fox.png"),
    ]


def test_every_flag_that_a_message_names_reaches_the_program_with_its_value_from_every_shell() -> None:
    texts = (text for text in texts_of_the_program() if "\\w" not in text and "(?" not in text)  # no patterns
    pairs = [pair for text in texts for pair in flags_with_values(text)]
    assert len(pairs) > 40
    for flag, value in pairs:
        words = assert_works_everywhere(f"program {flag} {value}")
        assert words == ["program", flag, value.strip('"')]


# -- a backslash before a quotation mark -----------------------------------------------------------


def refused(line: str, is_windows: bool = True) -> UsageError:
    with pytest.raises(UsageError) as caught:
        parse_flags(split_as_windows(line), script.collect_defaults(), is_windows)
    return caught.value


@pytest.mark.parametrize(
    ("line", "name"),
    [
        (r'-o "C:\my dir\" flow.json --yes', "-o"),
        (r'-o"C:\my dir\" flow.json --yes', "-o"),
        (r'--output="C:\my dir\" flow.json --batch "rows.csv" --nonsense', "-o"),
        (r'flow.json --manifest "D:\out\" --resume', "--manifest"),
        (r'"C:\flows\" --yes', "the workflow"),
        (r'flow.json --image "5=C:\pictures\" --yes', "--image"),
    ],
)
def test_a_path_that_has_taken_in_the_rest_of_its_line_is_refused(line: str, name: str) -> None:
    error = refused(line)
    assert error.message.startswith(f"The path of {name} has a quotation mark in it: a backslash before")
    assert "my dir\\" not in error.message
    assert error.remedy == 'Leave that backslash out, as in: -o "C:\\my dir"'


def test_a_quotation_mark_elsewhere_is_a_character() -> None:
    defaults = script.collect_defaults()
    words = split_as_windows(r'flow.json -o "C:\my dir" --set "6.text=a \"quoted\" fox"')
    assert parse_flags(words, defaults, is_windows=True).set == ['6.text=a "quoted" fox']
    assert parse_flags(["-o", 'a "b"'], defaults, is_windows=False).output == 'a "b"'
    flags = vars(parse_flags([], defaults))
    assert set(PATH_FLAGS) <= set(flags)


def test_git_bash_is_given_a_terminal_by_winpty() -> None:
    in_git_bash = remedy_without_terminal(True, {"MSYSTEM": "MINGW64"})
    assert in_git_bash.startswith("Add --yes to run without being asked")
    assert "winpty python comfyui_workflow_runner.py" in in_git_bash
    for is_windows, variables in [(True, {}), (True, {"MSYSTEM": ""}), (False, {"MSYSTEM": "MINGW64"})]:
        assert remedy_without_terminal(is_windows, variables) == "Add --yes to run without being asked."


@pytest.mark.parametrize(
    ("text", "in_sh", "in_windows"),
    [
        ("flow.json", "flow.json", "flow.json"),
        ("my flow.json", "'my flow.json'", '"my flow.json"'),
        ("it's.json", "'it'\"'\"'s.json'", '"it\'s.json"'),
        (r"C:\flows\a.json", r"'C:\flows\a.json'", r"C:\flows\a.json"),
        ("狐.json", "'狐.json'", "狐.json"),
        ("C:\\my dir\\", r"'C:\my dir\'", '"C:\\my dir\\\\"'),
        ("", "''", '""'),
    ],
)
def test_an_argument_is_quoted_where_it_must_be(text: str, in_sh: str, in_windows: str) -> None:
    assert quote_argument(text, is_windows=False) == in_sh
    assert quote_argument(text, is_windows=True) == in_windows
