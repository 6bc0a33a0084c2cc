#!/usr/bin/env python3
"""Fill the examples of docs/COMFYUI_API.md from the recordings of real ComfyUI servers.

    python docs/build_api.py            writes the examples into the document
    python docs/build_api.py --check    writes nothing; exit 1 names the examples that differ

An example stands between two comments. The first says where it comes from; what is between them is
replaced:

    <!-- example: 0.33.0/queries step 1 answer -->
    <!-- /example -->

``0.33.0/queries`` is a file of tests/fixtures/recordings, without ``.json``; ``step`` counts its
steps from 0. The last word chooses what is shown:

    request     the JSON that was sent
    answer      status and body of the answer
    message     a WebSocket message
    frame       the first bytes of a binary WebSocket message

``0.33.0/cached_run order second`` shows the names of all that came, in order: the answers, and the
messages of the socket that the recording calls ``second``.

Long values are shortened by one rule: a text ends after 100 characters with "…", a list after 5
items with "… (n more)". Nothing else differs from what the server said.
"""

from __future__ import annotations

import base64
import json
import os
import re
import sys
import textwrap
from typing import Any, Dict, List

DOCS = os.path.dirname(os.path.abspath(__file__))
DOCUMENT = os.path.join(DOCS, "COMFYUI_API.md")
RECORDINGS = os.path.join(os.path.dirname(DOCS), "tests", "fixtures", "recordings")

LONGEST_TEXT, LONGEST_LIST = 100, 5
WIDTH = 100

_EXAMPLE = re.compile(r"<!-- example: (.+?) -->\n(.*?)<!-- /example -->", re.S)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def shorten(value: Any) -> Any:
    """``value`` with its long texts and lists cut by the rule at the top."""
    if isinstance(value, dict):
        return {key: shorten(item) for key, item in value.items()}
    if isinstance(value, list):
        more = len(value) - LONGEST_LIST
        return [shorten(item) for item in value[:LONGEST_LIST]] + (["… (%d more)" % more] if more > 0 else [])
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        return value[:LONGEST_TEXT] + "…"
    return value


def pretty(value: Any, indent: str = "", key: str = "") -> str:
    """JSON (after ``key``) whose objects and lists stand on one line where they fit."""
    before = json.dumps(key, ensure_ascii=False) + ": " if key else ""
    line = before + json.dumps(value, ensure_ascii=False)
    if len(indent) + len(line) <= WIDTH or not value or not isinstance(value, (dict, list)):
        return line
    inner = indent + "  "
    if isinstance(value, dict):
        items = [pretty(item, inner, name) for name, item in value.items()]
    else:
        items = [pretty(item, inner) for item in value]
    first, last = "{}" if isinstance(value, dict) else "[]"
    return before + first + "\n" + ",\n".join(inner + item for item in items) + "\n" + indent + last


def steps_of(recording: str) -> List[Dict[str, Any]]:
    """The steps of a recording."""
    with open(os.path.join(RECORDINGS, recording + ".json"), encoding="utf-8") as file:
        steps: List[Dict[str, Any]] = json.load(file)["steps"]
    return steps


def fence(kind: str, text: str) -> str:
    """``text`` as a block of code."""
    return "```%s\n%s\n```\n" % (kind, text)


def body(value: Any) -> str:
    """A recorded body as a block; bytes and plain text in words."""
    if isinstance(value, dict) and set(value) == {"base64", "bytes"}:
        return fence("text", "(empty)" if not value["bytes"] else "(%d bytes)" % value["bytes"])
    if isinstance(value, str):
        return fence("text", value)
    return fence("json", pretty(shorten(value)))


def dump(head: bytes) -> str:
    """The first 64 bytes: in hex, and as text."""
    lines = []
    for at in range(0, min(len(head), 64), 16):
        part = head[at : at + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        lines.append("%04x  %-47s  %s" % (at, " ".join("%02x" % byte for byte in part), text.rstrip()))
    return "\n".join(lines)


def name_of(step: Dict[str, Any]) -> str:
    """One step of a run in a word or two."""
    if "http" in step:
        return _UUID.sub("{prompt_id}", str(step["http"]))
    if "binary" in step:
        return "binary %d" % step["binary"]["event_type"]
    kind, data = str(step["json"]["type"]), step["json"]["data"]
    return "executing(%s)" % (data["node"] or "null") if kind == "executing" else kind


def order(version: str, steps: List[Dict[str, Any]], socket: str) -> str:
    """What came, in order; repetitions are counted."""
    names: List[str] = []
    counts: List[int] = []
    for step in steps:
        if step.get("ws", socket) != socket:
            continue
        name = name_of(step)
        if names and names[-1] == name:
            counts[-1] += 1
        else:
            names.append(name)
            counts.append(1)
    words = [name + (" ×%d" % count if count > 1 else "") for name, count in zip(names, counts)]
    whole = " → ".join(word.replace(" ", "\u00a0") for word in words)  # lines break between steps only
    text = textwrap.fill(whole, WIDTH, break_long_words=False)
    return "%s, in the order of arrival:\n" % version + fence("text", text.replace("\u00a0", " "))


def example(source: str) -> str:
    """What stands between the comments of the example that comes from ``source``."""
    found = re.match(r"^(([\d.]+)/[\w/]+) (?:order (\w+)|step (\d+) (request|answer|message|frame))$", source)
    if not found:
        raise ValueError("no such kind of example: " + source)
    recording, version, socket, number, part = found.groups()
    steps = steps_of(recording)
    if socket:
        return order(version, steps, socket)
    step = steps[int(number)]
    if part == "message":
        return "%s sent:\n" % version + fence("json", pretty(shorten(step["json"])))
    if part == "frame":
        head = base64.b64decode(step["binary"]["head_base64"])
        return "%s sent %d bytes, which begin with:\n" % (version, step["binary"]["bytes"]) + fence("text", dump(head))
    call = "`%s`" % _UUID.sub("{prompt_id}", step["http"])
    if part == "request":
        return "%s was sent:\n" % call + body(step["request_json"])
    note = " (%s)" % step["note"] if step.get("note") else ""
    return "%s%s: %s answered %d:\n" % (call, note, version, step["status"]) + body(step["body"])


def sources(text: str) -> List[str]:
    """Where the examples of a document come from."""
    return [found.group(1) for found in _EXAMPLE.finditer(text)]


def fill(text: str) -> str:
    """The document ``text`` with its examples as the recordings have them."""
    return _EXAMPLE.sub(
        lambda found: "<!-- example: %s -->\n%s<!-- /example -->" % (found.group(1), example(found.group(1))), text
    )


def differing(text: str) -> List[str]:
    """The sources of those examples in ``text`` that are not as the recordings have them."""
    return [found.group(1) for found in _EXAMPLE.finditer(text) if found.group(2) != example(found.group(1))]


def main(arguments: List[str]) -> int:
    if arguments not in ([], ["--check"]):
        print(__doc__.split("\n\n")[1], file=sys.stderr)
        return 2
    with open(DOCUMENT, encoding="utf-8") as file:
        text = file.read()
    wrong = differing(text)
    if arguments:
        for source in wrong:
            print("docs/COMFYUI_API.md: this example differs: " + source)
        return 1 if wrong else 0
    if wrong:
        with open(DOCUMENT, "w", encoding="utf-8", newline="\n") as file:
            file.write(fill(text))
    print("%d examples, %d of them new or changed" % (len(sources(text)), len(wrong)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
