"""What is printed cannot command a terminal, and what is written stays in its folder."""

from __future__ import annotations

import json
import math
import ntpath
import os
import posixpath
from typing import Any, List

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import anything, few

from comfyui_runner.errors import (
    EXIT_MEANINGS,
    ExitStatus,
    NotConfirmed,
    PromptRejected,
    RunnerError,
    SaveError,
    ServerAnswer,
    ServerError,
    ServerGone,
    ServerUnreachable,
    Stopped,
    UsageError,
    WorkflowError,
)
from comfyui_runner.text import (
    as_number,
    clean,
    duration,
    make_encodable,
    numbered_name,
    one_line,
    plain_json,
    plural,
    safe_path_parts,
    size_in_words,
)

# ------------------------------------------------------------------------------------------------
# Text that is safe to print
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "printed"),
    [
        ("plain words, ünïcödé, 日本語, 🦊", "plain words, ünïcödé, 日本語, 🦊"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b[2J\x1b[1;1Hgone", "gone"),
        ("\x1b[?25l\x1b[38;2;1;2;3mhidden\x1b[ q", "hidden"),
        ("\x1b]0;a new window title\x07text", "text"),
        ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]52;c;c3RvbGVu", ""),
        ("bell\x07 back\x08 null\x00 delete\x7f", "bell back null delete"),
        ("\x9b31mC1", "31mC1"),
        ("\x85\x90\x9c", ""),
        ("photo\u202egnp.exe", "photognp.exe"),
        ("\u200e\u200f\u202a\u2066\u2069turned", "turned"),
        ("\u061cturned", "turned"),
        ("two\u2028lines\u2029there", "twolinesthere"),
        ("broken \ud800\udfff text", "broken  text"),
        ("a\r\nb\rc\nd", "a\nbc\nd"),
        ("a\tb", "a    b"),
        ("\x1b", ""),
        ("\x1b\x1b[31m[31m", "[31m"),
    ],
)
def test_a_terminal_gets_nothing_that_it_would_obey(sent: str, printed: str) -> None:
    assert clean(sent) == printed


@few
@given(st.lists(st.sampled_from(["\x1b", "[", "]", "31m", "\x07", "\x1b\\", "\x9d", "\u202e", "a", "\n", "\ud800"])))
def test_what_is_cleaned_holds_no_command_however_it_was_put_together(pieces: List[str]) -> None:
    text = clean("".join(pieces))
    assert not [mark for mark in text if mark != "\n" and (mark < " " or "\x7f" <= mark <= "\x9f")]
    assert clean(text) == text
    text.encode()


def test_anything_can_be_cleaned() -> None:
    assert clean(None) == "None"
    assert clean(["\x1b[31m", 1]) == "['\\x1b[31m', 1]"


def test_one_line_is_one_line() -> None:
    assert one_line("  a\n\n b\t\x1b[1mc  ") == "a b c"
    assert one_line(7) == "7"


@pytest.mark.parametrize(
    ("limit", "shown"), [(0, "lighthouse"), (10, "lighthouse"), (9, "lighthou…"), (2, "l…"), (1, "…")]
)
def test_a_long_line_ends_in_an_ellipsis(limit: int, shown: str) -> None:
    assert one_line("lighthouse", limit) == shown


# ------------------------------------------------------------------------------------------------
# Durations, sizes, numbers
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-1, "0.0 s"),
        (0, "0.0 s"),
        (0.44, "0.4 s"),
        (12.34, "12.3 s"),
        (59.94, "59.9 s"),
        (59.95, "1:00"),
        (60, "1:00"),
        (125.4, "2:05"),
        (3599.6, "1:00:00"),
        (3723, "1:02:03"),
        (360000, "100:00:00"),
    ],
)
def test_a_duration_as_a_person_says_it(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KB"),
        (1536, "1.5 KB"),
        (1024**2 - 1, "1.0 MB"),
        (5 * 1024**2, "5.0 MB"),
        (3 * 1024**3, "3.0 GB"),
        (5000 * 1024**3, "5000.0 GB"),
    ],
)
def test_a_size_as_a_person_says_it(count: float, words: str) -> None:
    assert size_in_words(count) == words


def test_a_count_with_its_noun() -> None:
    assert [plural(count, "node") for count in (0, 1, 2)] == ["0 nodes", "1 node", "2 nodes"]


@pytest.mark.parametrize("value", [None, "7", [7], {}, True, math.nan, math.inf, -math.inf, 10**400])
def test_what_is_no_finite_number_is_the_default(value: Any) -> None:
    assert as_number(value) == 0.0
    assert as_number(value, 3.0) == 3.0


def test_a_number_is_kept_as_it_is() -> None:
    assert [as_number(value) for value in (7, -2, 0.5)] == [7, -2, 0.5]


# ------------------------------------------------------------------------------------------------
# Strict JSON
# ------------------------------------------------------------------------------------------------


def test_what_json_cannot_hold_is_replaced() -> None:
    assert plain_json(
        {1: math.nan, "a": (math.inf, -math.inf, 0.5), "b": {True}, "c": b"\x89PNG", "d": frozenset(["x"]), "e": None}
    ) == {"1": None, "a": [None, None, 0.5], "b": [True], "c": "<4 bytes>", "d": ["x"], "e": None}


@few
@given(anything)
def test_every_plain_value_is_strict_json(value: Any) -> None:
    text = json.dumps(plain_json(value), allow_nan=False)
    assert plain_json(json.loads(text)) == json.loads(text)


# ------------------------------------------------------------------------------------------------
# Names of files
# ------------------------------------------------------------------------------------------------

#: What no file may be called on Windows, whatever its ending (as CPython's ntpath.isreserved has it).
DEVICES = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"} | {
    device + digit for device in ("COM", "LPT") for digit in "0123456789¹²³"
}


def is_fine_on_every_system(part: str) -> bool:
    return (
        part not in ("", ".", "..")
        and part[-1] not in ". "
        and not set(part) & set('<>:"/\\|?*')
        and min(part) >= " "
        and part.partition(".")[0].rstrip(" ").upper() not in DEVICES
        and len(part.encode()) <= 200
    )


@pytest.mark.parametrize(
    ("subfolder", "filename", "parts"),
    [
        ("", "ComfyUI_00001_.png", ["ComfyUI_00001_.png"]),
        ("2024/fox", "a.png", ["2024", "fox", "a.png"]),
        ("sub\\folder", "a.png", ["sub", "folder", "a.png"]),
        ("../../etc", "passwd", ["etc", "passwd"]),
        ("..\\..\\Windows", "system.ini", ["Windows", "system.ini"]),
        ("/etc", "/passwd", ["etc", "passwd"]),
        ("//server/share", "a.png", ["server", "share", "a.png"]),
        ("C:\\Windows", "D:a.png", ["C_", "Windows", "D_a.png"]),
        ("", "a.png:stream", ["a.png_stream"]),
        ("...", ". .", ["output"]),
        ("", "", ["output"]),
        ("a//b/./c", "d.png", ["a", "b", "c", "d.png"]),
        ("", "CON.txt", ["_CON.txt"]),
        ("nul", "com1", ["_nul", "_com1"]),
        ("COM0", "lpt0.png", ["_COM0", "_lpt0.png"]),
        ("", "LPT¹.a.b", ["_LPT¹.a.b"]),
        ("", "console.png", ["console.png"]),
        ("", "a.png. . ", ["a.png"]),
        (" padded ", " a.png", ["padded", "a.png"]),
        ("", 'what? <is> *this* | "that"', ["what_ _is_ _this_ _ _that_"]),
        ("", "\x1b[31mred\x00\n.png", ["red_.png"]),
        ("", "photo\u202egnp.exe", ["photognp.exe"]),
        ("", "狐\ud800.png", ["狐.png"]),
        ("", ".bashrc", ["_bashrc"]),
        (".git/hooks", "post-checkout", ["_git", "hooks", "post-checkout"]),
        ("a/...b\\ .c", "\x1b[31m.d.png", ["a", "_..b", "_c", "_d.png"]),
        ("\x1b]0;x\x07..", "a", ["a"]),
    ],
)
def test_a_name_from_the_server_as_parts_of_a_path(subfolder: str, filename: str, parts: List[str]) -> None:
    assert safe_path_parts(subfolder, filename) == parts


@pytest.mark.parametrize("name", ["NUL .txt", "con  .a.b", "CONIN$", "conout$.txt"])
def test_a_device_of_windows_is_never_opened(name: str) -> None:
    (part,) = safe_path_parts("", name)
    assert is_fine_on_every_system(part)


def test_a_long_name_keeps_its_ending() -> None:
    (part,) = safe_path_parts("", "狐" * 300 + ".png")
    assert part == "狐" * 65 + ".png"
    (part,) = safe_path_parts("", "a" * 300)
    assert part == "a" * 200
    (part,) = safe_path_parts("", "a" * 300 + "." + "b" * 16)
    assert part == "a" * 183 + "." + "b" * 16
    (part,) = safe_path_parts("", "a" * 190 + "." + "b" * 17)
    assert part == "a" * 190 + "." + "b" * 9
    (part,) = safe_path_parts("", "a." + "b" * 300)
    assert part == "a." + "b" * 198


@pytest.mark.parametrize(
    ("name", "encoding", "made"),
    [
        ("a fox.png", "ascii", "a fox.png"),
        ("狐狸 é fox.png", "ascii", "__ _ fox.png"),
        ("狐 é.png", "latin-1", "_ é.png"),
        ("狐\ud800.png", "utf-8", "狐_.png"),
        ("aé" * 2000, "ascii", "a_" * 2000),
    ],
)
def test_what_a_file_system_cannot_encode_is_replaced(name: str, encoding: str, made: str) -> None:
    assert make_encodable(name, encoding) == made


def test_bytes_of_a_name_that_python_keeps_as_surrogates_stay() -> None:
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    assert make_encodable(name, "utf-8", "surrogateescape") == name


@pytest.mark.parametrize("mark", [".", " ", ". .", "\u00e9."])
def test_a_long_name_is_not_cut_where_windows_would_cut_on(mark: str) -> None:
    (part,) = safe_path_parts("", "a" * (200 - len(mark.encode())) + mark + "b" * 50)
    assert is_fine_on_every_system(part)


_pieces = st.sampled_from(
    [
        "..", ".", "/", "\\", "C:", "\\\\?\\", "CON", "nul", "COM¹", ".txt", " ", "a", "~", "é" * 90, "b" * 195,
        "\x00", "\x1b[31m", "\n", "\u202e", "\ud800", "*", "\x7f", "狐", ".png",
    ]
)  # fmt: skip
_names = st.lists(_pieces | st.text(max_size=4), max_size=6).map("".join)


@few
@given(_names, _names)
def test_no_name_leads_out_of_the_folder_or_is_refused_by_windows(subfolder: str, filename: str) -> None:
    parts = safe_path_parts(subfolder, filename)
    assert parts and all(is_fine_on_every_system(part) for part in parts), parts
    inside = posixpath.normpath(posixpath.join("/out", *parts))
    assert inside == "/out/" + "/".join(parts)
    inside = ntpath.normpath(ntpath.join("C:\\out", *parts))
    assert inside == "C:\\out\\" + "\\".join(parts)
    root = os.path.abspath("out")
    assert os.path.commonpath([root, os.path.join(root, *parts)]) == root


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("a.png", ["a.png", "a (1).png", "a (2).png"]),
        ("a.tar.gz", ["a.tar.gz", "a.tar (1).gz", "a.tar (2).gz"]),
        ("noending", ["noending", "noending (1)", "noending (2)"]),
        (".hidden", [".hidden", ".hidden (1)", ".hidden (2)"]),
    ],
)
def test_a_name_that_is_taken_gets_a_number(name: str, names: List[str]) -> None:
    assert [numbered_name(name, number) for number in range(3)] == names


# ------------------------------------------------------------------------------------------------
# Errors
# ------------------------------------------------------------------------------------------------


def test_every_exit_status_is_explained() -> None:
    assert list(EXIT_MEANINGS) == list(ExitStatus)
    assert all(EXIT_MEANINGS.values())


@pytest.mark.parametrize(
    ("error", "exit_status", "http_status"),
    [
        (RunnerError("m", "r"), 1, 500),
        (UsageError("m", "r"), 2, 400),
        (WorkflowError("m", "r"), 3, 400),
        (NotConfirmed("m", "r"), 4, 409),
        (ServerUnreachable("m", "r"), 5, 503),
        (ServerAnswer("m", "r", status=404), 5, 503),
        (PromptRejected("m", "r", answer={}), 6, 400),
        (SaveError("m", "r"), 11, 500),
        (Stopped("m", "r"), 130, 500),
    ],
)
def test_an_error_says_what_to_do_and_what_it_leads_to(error: Any, exit_status: int, http_status: int) -> None:
    assert isinstance(error, RunnerError)
    assert (error.message, error.remedy, str(error)) == ("m", "r", "m")
    assert (error.exit_status, error.http_status) == (exit_status, http_status)


def test_an_error_of_the_server_keeps_what_the_server_said() -> None:
    assert ServerAnswer("m", status=418, body={"a": 1}).body == {"a": 1}
    assert ServerAnswer("m", status=418).status == 418
    assert PromptRejected("m", answer={"error": "x"}).answer == {"error": "x"}
    assert ServerUnreachable("m", refused=True).refused and not ServerUnreachable("m").refused


def test_every_error_of_the_server_has_a_status_and_says_whether_the_connection_was_refused() -> None:
    errors: List[ServerError] = [ServerUnreachable("m"), ServerGone("m"), ServerAnswer("m", status=502)]
    assert [(error.status, error.refused) for error in errors] == [(None, False), (None, False), (502, False)]


def test_what_lies_too_deep_for_a_reader_is_left_out_of_json() -> None:
    deep: Any = "bottom"
    for _ in range(5000):
        deep = [deep]
    text = json.dumps(plain_json(deep))
    assert "bottom" not in text and text.count("[") == 61 and "\\u2026" in text
