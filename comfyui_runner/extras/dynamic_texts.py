"""Texts that the frontend works on when it queues: dynamic prompts, and names of files."""

from __future__ import annotations

import datetime
import json
import random
import re
from typing import Any, List

#: How many braces inside each other are chosen from. Deeper ones stay as they are.
DEEPEST_BRACES = 100


def choose_from_dynamic_prompt(text: str, rng: random.Random, depth: int = 0) -> str:
    """``text`` without comments, and with one of the choices of each {a|b} (formatUtil.ts).

    A backslash before a brace or a bar makes it an ordinary character. What follows a brace that is
    never closed is a choice like any other.
    """
    if not re.search(r"[{/\\]", text):
        return text
    text = re.sub(r"/\*[\s\S]*?\*/|//[^\n\r\u2028\u2029]*", "", text)
    tokens = [text]
    if depth < DEEPEST_BRACES:
        tokens = re.findall(r"\\[\s\S]?|[^\\]", text)

    def choose(choices: List[str]) -> str:
        choice = choices[int(rng.random() * len(choices))]
        return choose_from_dynamic_prompt(choice, rng, depth + 1)

    parts: List[str] = []
    choices: List[str] = []
    open_braces = 0
    for token in tokens:
        if open_braces == 0:
            if token == "{":
                open_braces = 1
                choices = [""]
            else:
                parts.append(token)
        elif token == "|" and open_braces == 1:
            choices.append("")
        elif token == "}" and open_braces == 1:
            open_braces = 0
            parts.append(choose(choices))
        else:
            choices[-1] += token
            if token == "{":
                open_braces += 1
            elif token == "}":
                open_braces -= 1
    if open_braces:
        parts.append(choose(choices))
    return re.sub(r"\\([{}|])", r"\1", "".join(parts))


def format_date(pattern: str, now: datetime.datetime) -> str:
    """``now`` as a pattern like "yyyy-MM-dd" says (formatUtil.ts, formatDate)."""
    numbers = {"d": now.day, "M": now.month, "h": now.hour, "m": now.minute, "s": now.second}

    def format_part(match: re.Match[str]) -> str:
        part = match.group()
        if part == "yyyy":
            return str(now.year)
        if part == "yy":
            return f"{now.year % 100:02}"
        if part == "yyy":
            return part
        return str(numbers[part[0]]).zfill(len(part))

    return re.sub("dd?|MM?|hh?|mm?|ss?|yyy?y?", format_part, pattern)


def text_in_file_name(value: Any) -> str:
    """A value as JavaScript writes it, with "_" for what a file name cannot have.

    searchAndReplace.ts.
    """
    if value is None:
        return ""
    if isinstance(value, float) and value % 1 == 0:
        value = int(value)
    text = str(value)
    if isinstance(value, bool):
        text = json.dumps(value)
    return re.sub(r'[/?<>\\:*|"\x00-\x1f\x7f]', "_", text)
