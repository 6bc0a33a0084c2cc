"""The documents lead somewhere: links, anchors, commands, routes; and the pictures are those of the text."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shlex
import struct
import sys
import urllib.parse
from typing import Any, Dict, Iterator, List, NamedTuple, Set, Tuple

import pytest
from support import ROOT, program_text, script

from comfyui_runner.flags import make_parser
from comfyui_runner.routes import ROUTES
from comfyui_runner.settings import make_settings
from comfyui_runner.simulator.command import main as simulator_main

SIMULATOR = "comfyui_runner/simulator/__main__.py"
ASSETS = os.path.join(ROOT, "_assets")
ARCHITECTURE = os.path.join("docs", "ARCHITECTURE.md")

#: The sections of README.md, in the order in which a person needs them.
SECTIONS = (
    "Get it", "First run on your ComfyUI", "Change the prompt, the seed, the size, the picture",
    "Many runs, and the sheet", "The page, on the phone too", "One call, one picture", "OpenAI clients", "Python",
    "Scripts and exit statuses", "Settings", "Troubleshooting", "How it is tested", "License",
)  # fmt: skip


def load(path: str) -> Any:
    """A Python file of the project as a module."""
    name = os.path.splitext(os.path.basename(path))[0]
    spec = importlib.util.spec_from_file_location(name, os.path.join(ROOT, path))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


build_assets = load(os.path.join("docs", "build_assets.py"))


def documents() -> List[str]:
    """Every Markdown file of the project."""
    found = []
    for place, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "node_modules"]
        found += [os.path.relpath(os.path.join(place, name), ROOT) for name in files if name.endswith(".md")]
    return sorted(found)


DOCUMENTS = documents()


def read(name: str) -> str:
    with open(os.path.join(ROOT, name), encoding="utf-8") as file:
        return file.read()


def without_code(text: str) -> str:
    """A document without its blocks and pieces of code."""
    text = re.sub(r"(?ms)^```.*?^```$", "", text)
    text = re.sub(r"(?m)^(?: {4}|\t).*$", "", text)
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(text: str) -> Set[str]:
    """What GitHub calls a document's headings."""
    found: Set[str] = set()
    for heading in re.findall(r"(?m)^#{1,6} +(.*?) *$", re.sub(r"(?ms)^```.*?^```$", "", text)):
        name = base = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        number = 0
        while name in found:
            number += 1
            name = "%s-%d" % (base, number)
        found.add(name)
    return found


def test_there_are_documents() -> None:
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", os.path.join("docs", "TESTING.md")} <= set(DOCUMENTS)
    assert len(read("CONTRIBUTING.md").splitlines()) < 60


# ------------------------------------------------------------------------------------------------
# Links
# ------------------------------------------------------------------------------------------------


def links(name: str) -> List[str]:
    """The targets of a document's links and pictures."""
    text = without_code(read(name))
    return re.findall(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_and_pictures_lead_somewhere(name: str) -> None:
    for target in links(name):
        if re.match(r"[a-z]+:", target):
            assert target.startswith(("https://", "http://127.0.0.1", "mailto:")), target
            continue
        path, _, anchor = target.partition("#")
        path = urllib.parse.unquote(path)
        full = os.path.join(ROOT, os.path.dirname(name), path) if path else os.path.join(ROOT, name)
        assert os.path.exists(full), target
        assert os.path.realpath(full).startswith(os.path.realpath(ROOT) + os.sep), target
        if anchor and full.endswith(".md"):
            with open(full, encoding="utf-8") as file:
                assert anchor in anchors(file.read()), target


def test_anchors_are_made_as_github_makes_them() -> None:
    assert anchors("# `--json`: one, two\n## The APIs\n## The APIs\n```\n# no\n```\n") == {
        "--json-one-two", "the-apis", "the-apis-1"}  # fmt: skip


# ------------------------------------------------------------------------------------------------
# Commands
# ------------------------------------------------------------------------------------------------


class Command(NamedTuple):
    """A command that a document gives people to type."""

    document: str
    line: str
    words: Tuple[str, ...]


def split(line: str) -> List[str]:
    """The words of a line of shell, without a comment; ``(cmd /c "...")`` is another shell's."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    return list(lexer)


def commands() -> Iterator[Command]:
    """Every command in blocks and pieces of code that begins with python, uv, curl or the like, pipes taken apart."""
    for name in DOCUMENTS:
        text = read(name)
        fenced = re.findall(r"(?ms)^```(?:\w*)\n(.*?)^```$", text)
        lines = [line for block in fenced for line in block.splitlines()]
        rest = re.sub(r"(?ms)^```.*?^```$", "", text)
        lines += re.findall(r"(?m)^(?: {4}|\t)(.*)$", rest)
        lines += re.findall(r"`([^`\n]+)`", rest)
        lines += re.findall(r"(?m)^ExecStart=(.*)$", text)
        for line in lines:
            line = line.strip()
            line = re.sub(r"^(?:\$|(?:- )?run:) ", "", line)
            line = re.sub(r"^(?:[A-Z_]+=\S* )+(?=python)", "", line)
            if not re.match(
                r"(?:\S*[/\\])?(?:python3?|curl|uv|pip|pipx|schtasks|netstat|taskkill)(?:\.exe)?(?: |$)", line
            ):
                continue
            words: List[str] = []
            for word in [*split(line), "|"]:
                if word and not set(word) - set("|&;"):
                    if words:
                        yield Command(name, line, tuple(words))
                    words = []
                else:
                    words.append(word)


COMMANDS = list(commands())


def options_of(parser: argparse.ArgumentParser) -> Dict[str, bool]:
    """The parser's options, and whether each takes a value."""
    return {name: action.nargs != 0 for action in parser._actions for name in action.option_strings}


def program_words(command: Command) -> List[str]:
    """What follows ``python`` or ``uv run``, a module of ours as its file; [] for other commands."""
    first = re.split(r"[/\\]", command.words[0])[-1]
    if first in ("python", "python3"):
        words = list(command.words[1:])
        if words[:1] == ["-m"] and words[1].startswith("comfyui_runner."):
            path = words[1].replace(".", "/")
            is_package = os.path.isdir(os.path.join(ROOT, path))
            return [path + ("/__main__.py" if is_package else ".py"), *words[2:]]
        return words
    if command.words[:2] == ("uv", "run"):
        return list(command.words[2:])
    return []


def own_parser(path: str, monkeypatch: Any) -> argparse.ArgumentParser:
    """The parser that a script's main() makes."""

    class Seen(Exception):
        pass

    caught: List[argparse.ArgumentParser] = []

    def seen(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> Any:
        caught.append(parser)
        raise Seen

    main = simulator_main if path == SIMULATOR else load(path).main
    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", seen)
        with pytest.raises(Seen):
            main()
    return caught[0]


def test_commands_name_scripts_and_options_that_exist(monkeypatch: Any) -> None:
    known: Dict[str, Dict[str, bool]] = {
        "comfyui_workflow_runner.py": options_of(make_parser(script.collect_defaults()))
    }
    for path in (SIMULATOR, "tests/run.py", "docs/build_assets.py"):
        known[path] = options_of(own_parser(path, monkeypatch))
    met = set()
    for command in COMMANDS:
        words = program_words(command)
        if not words or words[0].startswith("-"):  # python -c, python -m
            continue
        if words[0] in ("main.py", "my_runner.py"):  # ComfyUI's own; the one file
            continue
        path = words[0].replace("\\", "/")
        assert os.path.exists(os.path.join(ROOT, path)), command
        met.add(path)
        for position, word in enumerate(words[1:], 1):
            if word == "--":
                break
            if re.match(r"-{1,2}\w", word) and path in known:
                name, equals, _ = word.partition("=")
                assert name in known[path], command
                assert known[path][name] or not equals, command
                if known[path][name] and not equals and words[position + 1 :]:
                    assert words[position + 1] != "--", command
    assert set(known) <= met


def test_commands_of_the_runner_are_accepted() -> None:
    """Not only each flag: the whole line, as far as that can be seen without running it."""
    count = 0
    for command in COMMANDS:
        words = program_words(command)
        if words and words[0] == "comfyui_workflow_runner.py":
            # --setup is taken away before the rest is looked at.
            arguments = [word for word in words[1:] if word not in ("...", "…", "--setup")]
            if "--version" not in arguments and "--help" not in arguments:
                make_settings(arguments, {}, script.collect_defaults())
                count += 1
    assert count > 20


def flags_in(text: str) -> Set[str]:
    return set(re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", text))


@pytest.mark.parametrize(
    "name", ["README.md", *(os.path.join("docs", f"{name}.md") for name in ("COMMAND_LINE", "JSON", "MIDDLEWARE"))]
)
def test_flags_in_the_text_exist(name: str, monkeypatch: Any) -> None:
    known = set(options_of(make_parser(script.collect_defaults())))
    for path in (SIMULATOR, "tests/run.py", "docs/build_assets.py"):
        known |= set(options_of(own_parser(path, monkeypatch)))
    known |= {"--listen", "--preview-method", "--data-urlencode"}  # ComfyUI's own, and curl's
    text = re.sub(r"(?ms)^```.*?^```$", "", read(name))
    pieces = " ".join(re.findall(r"`([^`\n]+)`", text))
    assert flags_in(pieces) <= known


def routes_of_the_service() -> List[Tuple[str, str]]:
    return [(row.method, row.path) for row in ROUTES]


def has_route(method: str, path: str) -> bool:
    """Whether continuous mode answers this; placeholders stand for anything."""
    for known_method, known_path in routes_of_the_service():
        pattern = "".join(
            "[^/]+" if part.startswith("{") else re.escape(part) for part in re.split(r"(\{\w+\})", known_path)
        )
        if known_method == method and re.match(pattern + "$", path):
            return True
    return False


def test_curl_lines_name_routes_that_exist() -> None:
    count = 0
    for command in COMMANDS:
        if command.words[0] not in ("curl", "curl.exe"):
            continue
        words = list(command.words[1:])
        urls = [word for word in words if re.match(r"https?://", word)]
        for url in urls:
            parts = urllib.parse.urlsplit(url)
            if parts.port in (8188, 8000):  # ComfyUI's own
                continue
            assert parts.hostname in ("127.0.0.1", "localhost") or ".example" in str(parts.hostname), command
            method = "POST" if {"-d", "-F"} & set(words) else "PUT" if "-T" in words else "GET"
            if "-X" in words:
                method = words[words.index("-X") + 1]
            path = re.sub(r"^/runner(?=/)", "", parts.path)  # the prefix of the recipe for nginx
            assert has_route(method, path or "/"), command
            count += 1
    assert count > 6


@pytest.mark.parametrize(
    "name", ["README.md", os.path.join("docs", "MIDDLEWARE.md"), os.path.join("docs", "OPENAI.md")]
)
def test_routes_in_the_text_exist(name: str) -> None:
    """``GET /path`` in a piece of code."""
    for method, path in re.findall(r"`(GET|POST|PUT|DELETE|HEAD) (/[^\s`?]*)`", read(name)):
        assert has_route(method, path), (name, method, path)


def test_every_route_is_in_the_document_of_the_service() -> None:
    table = read(os.path.join("docs", "MIDDLEWARE.md")).partition("## The routes")[2].partition("\n## ")[0]
    assert set(re.findall(r"`([A-Z]+) (/[^`]*)`", table)) == set(routes_of_the_service())


def test_what_the_documents_say_is_asked_of_comfyui_is_asked() -> None:
    source = program_text()
    table = read(ARCHITECTURE).partition("## What it asks of ComfyUI")[2].partition("\n## ")[0]
    paths = re.findall(r"`(?:GET|POST) (/[^`]*)`", table)
    assert len(paths) > 10
    for path in paths:
        fixed = re.match(r"[^{]*", path)
        assert fixed and '"' + fixed[0] in source, path


def test_the_example_of_the_module_works(monkeypatch: Any, capsys: Any) -> None:
    (example,) = re.findall(r"(?ms)^```python\n(.*?)^```$", read(ARCHITECTURE))
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(sys.modules, "comfyui_workflow_runner", script)
    exec(compile(example, ARCHITECTURE, "exec"), {})
    assert "steps 30" in capsys.readouterr().out


def test_files_that_the_text_names_exist() -> None:
    for name in DOCUMENTS:
        for path in re.findall(r"`((?:tests|docs|_assets|\.ci)/[\w./]+)`", read(name)):
            assert os.path.exists(os.path.join(ROOT, path)), (name, path)


def test_the_workflow_for_other_systems_is_yaml_and_names_files_that_exist() -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML comes with the linters, which need Python 3.10")
    (workflow,) = re.findall(r"(?ms)^```yaml\n(.*?)^```$", read(os.path.join("docs", "TESTING.md")))
    jobs = yaml.safe_load(workflow)["jobs"]
    assert {"windows-latest", "macos-latest"} <= set(jobs["fast"]["strategy"]["matrix"]["os"])
    paths = set(re.findall(r"\btests/\w+\.py", workflow))
    assert "tests/test_install_long.py" in paths
    assert all(os.path.exists(os.path.join(ROOT, path)) for path in paths)


# ------------------------------------------------------------------------------------------------
# The order of the README, and the pictures
# ------------------------------------------------------------------------------------------------


def test_the_readme_is_in_the_order_that_a_person_needs() -> None:
    text = re.sub(r"(?ms)^```.*?^```$", "", read("README.md"))
    sections = re.findall(r"(?m)^## (.*)$", text)
    assert sections == list(SECTIONS)
    assert read("README.md").count("\n") <= 220
    assert "_assets/running.gif" in text.partition("\n## ")[0]


def test_the_map_has_every_module() -> None:
    _, _, table = read(ARCHITECTURE).partition("<!-- map -->")
    named = re.findall(r"(?m)^\| `(\w+)` \|", table.partition("<!-- /map -->")[0])
    package = os.path.join(ROOT, "comfyui_runner")
    files = [name for _, _, names in os.walk(package) for name in names if name.endswith(".py")]
    assert sorted(named) == sorted(name[:-3] for name in files if not name.startswith("__"))


def test_the_architecture_has_its_diagrams() -> None:
    found = build_assets.diagrams()
    assert {"script_test_api_flow", "comfyui_api_interaction"} <= set(found)
    drawn = {name: diagram for name, diagram in found.items() if diagram.document == ARCHITECTURE}
    kinds = {name: diagram.source.split()[0] for name, diagram in drawn.items()}
    assert kinds["script_test_api_flow"] == "flowchart"
    assert kinds["single_shot"] == kinds["continuous"] == "sequenceDiagram"
    assert kinds["architecture"] in ("flowchart", "graph")


@pytest.mark.parametrize("name", sorted(build_assets.diagrams()))
def test_a_diagrams_pictures_are_made_from_it(name: str) -> None:
    remedy = "python docs/build_assets.py --only %s" % name
    with open(build_assets.HASHES, encoding="utf-8") as file:
        made_from = json.load(file)
    assert made_from[name]["sha256"] == build_assets.diagrams()[name].sha256, remedy
    svg = read(os.path.join("_assets", name + ".svg"))
    assert svg.startswith("<svg") and svg.rstrip().endswith("</svg>"), remedy
    assert "<foreignObject" not in svg, "its labels are HTML, which only browsers show"
    with open(os.path.join(ASSETS, name + ".png"), "rb") as png:
        head = png.read(24)
    assert head[:8] == b"\x89PNG\r\n\x1a\n", remedy
    assert min(struct.unpack(">II", head[16:])) > 400, remedy


def test_no_diagram_is_left_of_a_block_that_is_gone() -> None:
    with open(build_assets.HASHES, encoding="utf-8") as file:
        assert set(json.load(file)) == set(build_assets.diagrams())


def test_the_pictures_are_few_and_small() -> None:
    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(ASSETS)}
    assert sum(sizes.values()) < 6_000_000
    assert sizes["running.gif"] < 1_500_000
    diagrams = {name + ending for name in build_assets.diagrams() for ending in (".png", ".svg")}
    screens = {"console_%s.png" % name for name in ("light", "dark", "phone")}
    assert set(sizes) == diagrams | screens | {"running.gif", "diagrams.json"}


def test_the_recording_is_long_enough_to_be_read() -> None:
    with open(os.path.join(ASSETS, "running.gif"), "rb") as file:
        data = file.read()
    assert data[:6] == b"GIF89a"
    delays = [
        struct.unpack("<H", found)[0] / 100 for found in re.findall(rb"\x21\xf9\x04.(..).\x00[\x2c\x21]", data, re.S)
    ]
    assert len(delays) > 30
    assert 8 < sum(delays) < 20
