"""Text in the columns of a terminal: how wide it is, where it is broken, where it is cut."""

from __future__ import annotations

import itertools
import os
import re
import unicodedata
from typing import List, TextIO

#: In fewer columns nothing can be read: the terminal breaks lines as it likes.
LEAST_COLUMNS = 10

#: A label (words with one space between them) and the gap behind it: what follows hangs there.
_LABEL = re.compile(r" *\S+(?: \S+)* {2,}(?=\S)")

#: A word with the spaces before it; a number and its unit are one ("1.4 s").
_WORD = re.compile(r" *[^ ]+(?:(?<=[0-9]) (?:s|[KMG]?B)(?=[ ,.;)]|$))?")

#: How a line begins that is a command.
_COMMANDS = ("python ", "curl ", "curl.exe ")

#: A slash in a path or a URL; the one of "3/12" is not.
_PATH = re.compile(r"/[^\d ]|[^\d ]/")

#: A word that begins a path, from a root, from home or from this folder; "and/or" does not.
_BEGINNING_OF_PATH = re.compile(
    r" *[\"'(\[]*"  # it may be quoted
    r"(?:~?/\w|\.\.?[/\\]|[A-Za-z]:[/\\]\w|\\\\\w)"  # /a ~/a ./ ../ C:\a \\server
)


def width_of(text: str) -> int:
    """How many columns ``text`` takes."""
    if text.isascii():
        return len(text)
    return sum(_width_of_character(character) for character in text)


def _width_of_character(character: str) -> int:
    """0 for an accent or an invisible mark, 2 for Chinese and the like, else 1."""
    # Marks without a width of their own (Mn), around a character (Me), and of format (Cf).
    is_mark = unicodedata.category(character) in ("Mn", "Me", "Cf")
    if is_mark or unicodedata.combining(character):
        return 0
    is_wide = unicodedata.east_asian_width(character) in ("W", "F")  # wide, full width
    if is_wide:
        return 2
    return 1


def cut(text: str, columns: int) -> str:
    """``text`` if it fits into ``columns``, else its beginning and "…"."""
    if width_of(text) <= columns:
        return text
    return _beginning(text, columns - 1) + "…"


def pad(text: str, columns: int) -> str:
    """``text`` with spaces up to ``columns``."""
    return text + " " * (columns - width_of(text))


def _beginning(text: str, columns: int) -> str:
    """As much of ``text`` as fits into ``columns``."""
    widths_so_far = itertools.accumulate(map(_width_of_character, text))
    fitting = [character for character, width in zip(text, widths_so_far) if width <= columns]
    return "".join(fitting)


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
    indentation = " " * hang

    lines: List[str] = []
    current = ""
    for word in _unbroken_words(line):
        if current and width_of(current + word) > columns:
            lines.append(current)
            current = indentation
            word = word.lstrip(" ")
        current += word
        # A word that is longer than a line is cut, unless it is copied.
        while width_of(current) > columns and not _is_copied(word):
            beginning = _beginning(current, columns)
            lines.append(beginning)
            current = indentation + current[len(beginning) :]
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

    # The path ends with the last word that has a slash. A URL is not part of it: it has no spaces.
    (first,) = beginnings
    last = first
    for index, word in enumerate(words):
        is_part = _is_copied(word) and "://" not in word
        if is_part and index > first:
            last = index
    path = "".join(words[first : last + 1])
    return [*words[:first], path, *words[last + 1 :]]


def _is_copied(text: str) -> bool:
    """Whether a person may want to copy ``text``: it has a URL or a path in it, not just 3/12."""
    is_windows_path = os.sep == "\\" and "\\" in text
    return is_windows_path or bool(_PATH.search(text))


def columns_of(stream: TextIO) -> int:
    """How many columns the terminal has that ``stream`` writes to; 0 where it is not a terminal."""
    try:
        if not stream.isatty():
            return 0
        return os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):  # it is closed, or has no file descriptor
        return 0
