"""How shells and Windows take a line apart, for tests of the lines that people copy."""

from __future__ import annotations

import re
from typing import List


def split_as_windows(line: str) -> List[str]:
    """The words of a command line by the rules of CommandLineToArgvW and of Microsoft's C runtime.

    2n backslashes before a quotation mark are n of them, and the mark begins or ends a quoted part; with one more,
    the mark is a character. Backslashes elsewhere are themselves. ``""`` within quotes is a mark.
    """
    words = []
    word, is_word, is_quoted, position = "", False, False, 0
    while position < len(line):
        slashes = len(re.compile(r"\\*").match(line, position)[0])  # type: ignore[index]
        position += slashes
        character = line[position : position + 1]
        if slashes:
            is_word = True
        if character != '"':
            word += "\\" * slashes
            if character in (" ", "\t") and not is_quoted:
                if is_word:
                    words.append(word)
                word, is_word = "", False
            elif character:
                word, is_word = word + character, True
            position += 1
            continue
        word, is_word = word + "\\" * (slashes // 2), True
        is_doubled = is_quoted and line[position + 1 : position + 2] == '"'
        if slashes % 2:
            word += '"'
        elif is_doubled:
            word += '"'
            position += 1
        else:
            is_quoted = not is_quoted
        position += 1
    return [*words, word] if is_word else words


def troubles_in(line: str) -> List[str]:
    """What sh, zsh, cmd or PowerShell would read otherwise than the others, in words; [] if it works in all."""
    found = []
    if line.startswith('"'):
        found.append("PowerShell reads a line that begins with a quotation mark as a text")
    if "`" in line or "$" in line:
        found.append("$ and ` are replaced, also within quotes")
    parts = line.split('"')
    if len(parts) % 2 == 0:
        found.append("a quotation mark is not closed")
    for quoted in parts[1::2]:
        if quoted.endswith("\\"):
            found.append("a backslash before a quotation mark takes in the rest of the line")
        if "!" in quoted:
            found.append("bash replaces ! within quotes")
    # What is in quotes counts as one letter.
    bare = "x".join(parts[::2])
    for word in bare.split():
        if word[0] in "#@":
            found.append(f"{word} begins with what PowerShell or sh does not take for a character")
        if re.search(r"['&|;<>(){}^!,*?\[\]]", word):
            found.append(f"{word} has what a shell does not take for a character")
        if re.match(r"-[^-\s][^=\s]*[.:]", word):
            found.append(f"Windows PowerShell makes two words of {word}")
    return found
