"""Text in the columns of a terminal: how wide it is, where it is broken, where it is cut."""

from __future__ import annotations

import itertools
import os
import re
import unicodedata
from typing import List, TextIO

#: In fewer columns nothing can be read: the terminal breaks lines as it likes.
LEAST_COLUMNS = 10

#: A label, and the gap behind it: what follows hangs there.
_LABEL = re.compile(r" *\S+(?: \S+)* {2,}(?=\S)")

#: A word with the spaces before it; a number and its unit are one ("1.4 s").
_WORD = re.compile(r" *[^ ]+(?:(?<=[0-9]) (?:s|[KMG]?B)(?=[ ,.;)]|$))?")

#: How a line begins that is a command.
_COMMANDS = ("python ", "curl ", "curl.exe ")

#: A word with a part of a path or a URL in it; "3/12" is none.
_PATH = re.compile(r"/[^\d ]|[^\d ]/")

#: A word that begins a path, from a root, from home or from this folder; "and/or" begins none.
_BEGINNING_OF_PATH = re.compile(r" *[\"'(\[]*(?:~?/\w|\.\.?[/\\]|[A-Za-z]:[/\\]\w|\\\\\w)")


def width_of(text: str) -> int:
    """How many columns ``text`` takes: those of Chinese and the like are two, of accents none."""
    if text.isascii():
        return len(text)
    return sum(_width_of_character(character) for character in text)


def _width_of_character(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    if unicodedata.east_asian_width(character) in "WF":
        return 2
    return 1


def cut(text: str, columns: int) -> str:
    """``text`` if it has room in ``columns``, else its beginning and "…"."""
    if width_of(text) <= columns:
        return text
    return _beginning(text, columns - 1) + "…"


def pad(text: str, columns: int) -> str:
    """``text`` with spaces up to ``columns``."""
    return text + " " * (columns - width_of(text))


def _beginning(text: str, columns: int) -> str:
    """As much of ``text`` as has room in ``columns``."""
    widths = itertools.accumulate(map(_width_of_character, text))
    return "".join(character for character, width in zip(text, widths) if width <= columns)


def hang_of(line: str) -> int:
    """How far what does not fit into ``line`` is indented: behind its label, else as it is."""
    label = _LABEL.match(line)
    if label is not None:
        return width_of(label.group())
    return _indent_of(line)


def _indent_of(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def wrap(line: str, columns: int) -> List[str]:
    """``line`` in lines of at most ``columns``, broken between words; 0 columns: any number.

    What is copied (a path, a URL, a command) is not broken, however long: a terminal breaks it, and
    gives it back in one piece.
    """
    is_short = columns < LEAST_COLUMNS or width_of(line) <= columns
    if is_short or line.lstrip(" ").startswith(_COMMANDS):
        return [line]
    deepest = columns // 2  # beyond it what hangs has too little room
    hang = hang_of(line)
    if hang > deepest:
        hang = min(_indent_of(line), deepest)

    lines: List[str] = []
    current = ""
    for word in _unbroken_words(line):
        if current and width_of(current + word) > columns:
            lines.append(current)
            current = " " * hang
            word = word.lstrip(" ")
        current += word
        while width_of(current) > columns and not _is_copied(word):
            beginning = _beginning(current, columns)
            lines.append(beginning)
            current = " " * hang + current[len(beginning) :]
    return [*lines, current]


def _unbroken_words(line: str) -> List[str]:
    """The words of ``line``, each with the spaces before it, a path with spaces in one piece.

    Where a line has two paths, nobody knows what between them belongs to the first. A line with a
    label has texts and values, in which a "/" is most often no path.
    """
    words = _WORD.findall(line)
    beginnings = [index for index, word in enumerate(words) if _BEGINNING_OF_PATH.match(word)]
    if len(beginnings) != 1 or _LABEL.match(line):
        return words
    first = beginnings[0]
    # A URL has no spaces.
    parts = [index for index, word in enumerate(words) if _is_copied(word) and "://" not in word]
    last = max([first, *parts])
    return [*words[:first], "".join(words[first : last + 1]), *words[last + 1 :]]


def _is_copied(text: str) -> bool:
    """Whether a person may want to copy ``text``: it has a URL or a path in it, not just 3/12."""
    return bool(_PATH.search(text)) or (os.sep == "\\" and os.sep in text)


def columns_of(stream: TextIO) -> int:
    """How many columns the terminal has that ``stream`` writes to; 0 where it is no terminal."""
    try:
        if not stream.isatty():
            return 0
        return os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):  # it is closed, or has no number
        return 0
