"""Text in the columns of a terminal."""

from __future__ import annotations

import io
import os
from typing import List

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import few
from support import Terminal

from comfyui_runner.layout import columns_of, cut, hang_of, pad, width_of, wrap


@pytest.mark.parametrize(
    ("text", "width"),
    [("", 0), ("fox", 3), ("狐狐", 4), ("e\u0301", 1), ("a\u200db", 2), ("\uff21", 2), ("…", 1)],
)
def test_how_wide_a_text_is(text: str, width: int) -> None:
    assert width_of(text) == width


@pytest.mark.parametrize(
    ("text", "columns", "shown"),
    [("a red fox", 9, "a red fox"), ("a red fox", 8, "a red f…"), ("狐狐狐", 4, "狐…"), ("狐狐狐", 6, "狐狐狐")],
)
def test_a_text_that_is_too_long_is_cut(text: str, columns: int, shown: str) -> None:
    assert cut(text, columns) == shown


def test_a_text_is_padded_by_its_width() -> None:
    assert (pad("狐", 4), pad("fox", 2)) == ("狐  ", "fox")


@pytest.mark.parametrize(
    ("line", "hang"),
    [
        ("Done in 3 s.", 0),
        ("    the same", 4),
        ("  Model     sd.safetensors", 12),
        ("  Two words  text", 13),
        ("3/12  seed 8", 6),
        ("ends with a gap   ", 0),
    ],
)
def test_what_follows_hangs_behind_the_label(line: str, hang: int) -> None:
    assert hang_of(line) == hang


@pytest.mark.parametrize(
    ("line", "columns", "lines"),
    [
        ("a red fox in the snow", 0, ["a red fox in the snow"]),
        ("a red fox in the snow", 21, ["a red fox in the snow"]),
        ("a red fox in the snow", 12, ["a red fox in", "the snow"]),
        ("  Text  a red fox in", 16, ["  Text  a red", "        fox in"]),
        # a hang that leaves too little room is none
        ("  A label that is long  a red fox", 24, ["  A label that is long ", "  a red fox"]),
        ("              a b c d", 16, ["              a", "        b c d"]),
        ("a-word-that-is-long and", 10, ["a-word-tha", "t-is-long", "and"]),
        ("狐" * 12, 11, ["狐" * 5, "狐" * 5, "狐狐"]),
        ("       狐" + "狐" * 6, 10, ["       狐", "     狐狐", "     狐狐", "     狐狐"]),
        ("a red fox", 9, ["a red fox"]),
        ("a red fox in the snow", 9, ["a red fox in the snow"]),  # nothing can be read in so few
        # what is copied is in one piece, with the spaces that a path may have
        ("Saved /home/me/my fox/a.png (1 KB)", 20, ["Saved", "/home/me/my fox/a.png", "(1 KB)"]),
        ("See http://host:8188/view?x=1 for more", 12, ["See", "http://host:8188/view?x=1", "for more"]),
        ("Open http://127.0.0.1:8 here, there http://a:8", 26, ["Open http://127.0.0.1:8", "here, there http://a:8"]),
        ("  File  /a/very/long/path.png", 20, ["  File", "        /a/very/long/path.png"]),
        ("    python runner.py flow.json -o results", 20, ["    python runner.py flow.json -o results"]),
        ("done in 12.5 s", 12, ["done in", "12.5 s"]),
        ("12.55 s, 3.25 KB or 44 BB", 10, ["12.55 s,", "3.25 KB or", "44 BB"]),
        ("In ./my fox/and a cat/a.png now", 12, ["In", "./my fox/and a cat/a.png", "now"]),
        # of two paths nobody knows where the first one ends
        ("Copied /a/red fox.png to /b/c.png now", 16, ["Copied /a/red", "fox.png to", "/b/c.png now"]),
        # a URL has no spaces, and the words after it have a "/" too
        ("See https://a/b about and/or and w/o", 15, ["See https://a/b", "about and/or", "and w/o"]),
        # nor is a path what only has a "/" in it, or what is in a text or a value
        ("Load and/or save it in the black/white node", 15, ["Load and/or", "save it in the", "black/white", "node"]),
        (
            "  Text  a fox w/ a hat /photo of and/or",
            20,
            ["  Text  a fox w/ a", "        hat /photo", "        of and/or"],
        ),
        # a count is not a path
        ("3/12 rows and 4/12 rows", 12, ["3/12 rows", "and 4/12", "rows"]),
    ],
)
def test_a_line_is_broken_between_words(line: str, columns: int, lines: List[str]) -> None:
    assert [each.rstrip() for each in wrap(line, columns)] == [each.rstrip() for each in lines]


@few
@given(st.text(st.characters(exclude_characters="\n/\\", exclude_categories=["Cc"]), max_size=80), st.integers(10, 40))
def test_any_text_is_broken_and_nothing_is_lost(text: str, columns: int) -> None:
    lines = wrap(text, columns)
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert all(width_of(line) <= columns for line in lines)


@few
@given(st.text("ab /.:~\\", max_size=60), st.integers(10, 40))
def test_of_any_paths_nothing_is_lost(text: str, columns: int) -> None:
    assert "".join("".join(wrap(text, columns)).split()) == "".join(text.split())


def test_a_path_of_windows_is_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sep", "\\")
    assert wrap("Saved C:\\Users\\Jo Fox\\a.png (1 KB)", 12) == ["Saved", "C:\\Users\\Jo Fox\\a.png", "(1 KB)"]


def test_what_is_no_terminal_has_no_columns() -> None:
    closed = io.StringIO()
    closed.close()
    assert [columns_of(stream) for stream in (io.StringIO(), Terminal(), closed)] == [0, 0, 0]


def test_the_columns_of_a_terminal() -> None:
    pty = pytest.importorskip("pty")
    fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, b"\x14\0\x32\0\0\0\0\0")
    with open(leader, "rb"), open(follower, "w", encoding="utf-8") as stream:
        assert columns_of(stream) == 50
