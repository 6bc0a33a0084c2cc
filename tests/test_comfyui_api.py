"""docs/COMFYUI_API.md: its examples are the recordings', its routes and messages the program's."""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import os
import re
from typing import Any, Dict, Iterator, List, Set, Tuple

import pytest
from support import FIXTURES, ROOT, program_modules

from comfyui_runner.events import parse_message
from comfyui_runner.runs import Run
from comfyui_runner.state import REDUCERS
from comfyui_runner.versions import OLDEST_COMFYUI

_spec = importlib.util.spec_from_file_location("build_api", os.path.join(ROOT, "docs", "build_api.py"))
assert _spec and _spec.loader
build_api = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build_api)

with open(build_api.DOCUMENT, encoding="utf-8") as _file:
    DOCUMENT = _file.read()

#: What people wrote; the examples have names of their own.
PROSE = build_api._EXAMPLE.sub("", DOCUMENT)


def section(title: str, level: str = "##") -> str:
    """The text below a heading, up to the next one of its level or above."""
    found = re.search(r"(?ms)^%s %s\n(.*?)(?=^#{1,%d} |\Z)" % (level, re.escape(title), len(level)), PROSE)
    assert found, title
    return found.group(1)


def rows(text: str) -> Iterator[List[str]]:
    """The cells of the tables in ``text``, without their heads."""
    for block in re.findall(r"(?m)(?:^\|.*\|\n)+", text):
        for line in block.splitlines()[2:]:
            yield [cell.strip() for cell in line.strip("|").split(" |")]


def quoted(text: str) -> List[str]:
    return re.findall(r"`([^`\n]+)`", text)


def same_path(path: str) -> str:
    """A path whose parameters have no names, and without its query."""
    return re.sub(r"\{\w*\}", "{}", path.partition("?")[0])


@functools.lru_cache(maxsize=None)
def steps() -> List[Dict[str, Any]]:
    """The steps of all recordings."""
    found: List[Dict[str, Any]] = []
    for folder, _, names in os.walk(os.path.join(FIXTURES, "recordings")):
        for name in names:
            with open(os.path.join(folder, name), encoding="utf-8") as file:
                found += json.load(file).get("steps", [])
    return found


def exists(name: str) -> bool:
    """Whether the runner has what is called ``name``, such as Session.open."""
    first, *parts = name.split(".")
    thing: Any = next((getattr(module, first) for module in program_modules() if hasattr(module, first)), None)
    for part in parts:
        if not hasattr(thing, part):
            return part in vars(Run({}, "", 0.0, None)) if thing is Run else False  # type: ignore[arg-type]
        thing = getattr(thing, part)
    return thing is not None


# ------------------------------------------------------------------------------------------------
# Examples
# ------------------------------------------------------------------------------------------------


def test_the_examples_are_what_the_servers_said() -> None:
    assert build_api.differing(DOCUMENT) == [], "run docs/build_api.py"
    assert len(build_api.sources(DOCUMENT)) == DOCUMENT.count("<!-- example: ") > 50
    assert len(set(build_api.sources(DOCUMENT))) == len(build_api.sources(DOCUMENT))


def test_an_example_that_was_changed_is_found_and_named(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    document = tmp_path / "COMFYUI_API.md"
    wrong = DOCUMENT.replace('"queue_remaining": 0', '"queue_remaining": 7', 1)
    document.write_text(wrong, encoding="utf-8")
    monkeypatch.setattr(build_api, "DOCUMENT", str(document))
    assert build_api.main(["--check"]) == 1 and document.read_text(encoding="utf-8") == wrong
    (said,) = capsys.readouterr().out.splitlines()
    assert said.endswith(" 0.33.0/queries step 2 answer")
    assert build_api.main([]) == 0 and document.read_text(encoding="utf-8") == DOCUMENT
    assert build_api.main(["--check"]) == 0
    assert build_api.main(["--wrong"]) == 2


def test_the_rule_by_which_values_are_shortened() -> None:
    assert build_api.shorten({"a": ["x" * 101, 1, 2, 3, 4, 5, 6]}) == {"a": ["x" * 100 + "…", 1, 2, 3, 4, "… (2 more)"]}
    kept = {"a": ["x" * 100, 2, 3, 4, 5], "b": None, "c": {"d": 1.5}}
    assert build_api.shorten(kept) == kept
    assert json.loads(build_api.pretty({"a": [kept] * 5, "b": {}, "c": "é\n"})) == {
        "a": [kept] * 5,
        "b": {},
        "c": "é\n",
    }
    assert max(map(len, build_api.pretty(kept).splitlines())) <= 111  # the longest text, its quotes and its indent


@pytest.mark.parametrize("source", ["0.33.0/queries", "0.33.0/queries step 1", "0.33.0/queries step 1 nothing", "x"])
def test_an_example_from_nowhere_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match="no such kind of example"):
        build_api.example(source)


# ------------------------------------------------------------------------------------------------
# Routes
# ------------------------------------------------------------------------------------------------


class Calls(ast.NodeVisitor):
    """(method, path, function) of every call of ComfyUI in the program."""

    def __init__(self) -> None:
        self.found: Set[Tuple[str, str, str]] = set()
        self.where: List[str] = []
        self.values: Dict[str, ast.AST] = {}

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.where.append(node.name)
        self.generic_visit(node)
        self.where.pop()

    def visit_FunctionDef(self, node: Any) -> None:
        self.where.append(node.name)
        self.values = {
            assigned.targets[0].id: assigned.value
            for assigned in ast.walk(node)
            if isinstance(assigned, ast.Assign) and isinstance(assigned.targets[0], ast.Name)
        }
        self.generic_visit(node)
        self.where.pop()

    visit_AsyncFunctionDef = visit_FunctionDef

    def path(self, node: ast.AST) -> str:
        """The path that an expression makes; what is put in is {}."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return node.value
        if isinstance(node, ast.JoinedStr):
            return "".join(map(self.path, node.values))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
            return re.sub(r"%\w", "{}", self.path(node.left))
        if isinstance(node, ast.BinOp):
            return self.path(node.left) + self.path(node.right)
        if isinstance(node, ast.Name) and node.id in self.values:
            return self.path(self.values[node.id])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "view_path":
            return "/view"
        if isinstance(node, ast.Attribute):  # the address in front
            return ""
        return "{}"

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        first = node.args[0] if node.args else None
        function = ".".join(self.where)
        if name in ("call", "open") and isinstance(first, ast.Constant) and str(first.value).isupper():
            self.found.add((str(first.value), same_path(self.path(node.args[1])), function))
        elif name == "connect" and first is not None and "/" in self.path(first):  # not a socket, nor a database
            self.found.add(("GET", same_path(self.path(first)), function))
        self.generic_visit(node)


def routes() -> Dict[Tuple[str, str], List[str]]:
    """Method and path of each documented route, and the functions that are said to call it."""
    found = {}
    for route, _, since, used in rows(section("Routes")):
        (name,) = quoted(route)
        method, _, path = name.partition(" ")
        assert re.search(r"^(\d{4}-\d\d-\d\d|\d+\.\d+\.\d+) \([0-9a-f]{8}\)$", since), (name, since)
        found[method, same_path(path)] = quoted(used)
    return found


def test_the_routes_that_the_program_calls_are_documented_where_it_calls_them() -> None:
    calls = Calls()
    for module in program_modules():
        with open(module.__file__, encoding="utf-8") as file:
            calls.visit(ast.parse(file.read()))
    documented = {(*route, function) for route, used in routes().items() for function in used}
    assert documented == calls.found
    assert len({call[:2] for call in calls.found}) > 12


def test_every_route_that_was_recorded_is_documented() -> None:
    patterns = [(method, re.sub(r"\\\{\\\}", "[^/]+", re.escape(path))) for method, path in routes()]
    for step in steps():
        method, _, path = step.get("http", "").partition(" ")
        if method and step["status"] not in (404, 405):
            path = path.partition("?")[0]
            assert any(method == known and re.match(pattern + "$", path) for known, pattern in patterns), step["http"]


def test_every_route_that_the_program_calls_has_an_example() -> None:
    shown = set(re.findall(r"(?m)^`([A-Z]+ /\S*)`.*:$", DOCUMENT))
    shown = {(call.split(" ")[0], same_path(call.split(" ")[1])) for call in shown}
    for (method, path), used in routes().items():
        if used and path not in ("/ws", "/view", "/free", "/object_info"):  # no JSON (three), megabytes
            pattern = re.sub(r"\\\{\\\}", "[^/]+", re.escape(path))
            assert any(method == other and re.match(pattern + "$", name) for other, name in shown), path


def test_every_error_that_was_recorded_is_documented() -> None:
    documented = {name for cells in rows(section("`POST /prompt`")) for name in quoted(cells[0])}
    seen = set()
    for step in steps():
        answer = step.get("body")
        if step.get("http") == "POST /prompt" and isinstance(answer, dict):
            seen |= {answer["error"]["type"]} if "error" in answer else set()
            seen |= {item["type"] for node in answer["node_errors"].values() for item in node["errors"]}
    assert len(seen) > 10 and seen <= documented


def test_every_field_of_a_prompt_that_is_sent_is_documented() -> None:
    fields = next(iter(re.findall(r"(?s)\| field \|.*?\n\n", section("`POST /prompt`"))))
    documented = {name for cells in rows(fields) for name in quoted(cells[0])}
    assert {"prompt", "client_id", "prompt_id", "extra_data", "number"} <= documented
    for step in steps():
        if step.get("http") == "POST /prompt" and isinstance(step.get("request_json"), dict):
            assert set(step["request_json"]) <= documented


# ------------------------------------------------------------------------------------------------
# Messages
# ------------------------------------------------------------------------------------------------


def tables_of_messages() -> Tuple[Dict[str, List[str]], Dict[str, str]]:
    """Type to what the runner does with it, and type to the words about its data."""
    found = list(rows(section("Messages")))
    used = {quoted(cells[0])[0]: quoted(cells[3]) for cells in found if len(cells) == 4}
    return used, {quoted(cells[0])[0]: cells[1] for cells in found if len(cells) == 2}


def test_every_message_that_was_recorded_is_documented_with_its_data() -> None:
    used, data = tables_of_messages()
    seen: Dict[str, Set[str]] = {}
    for step in steps():
        if "ws" in step and "json" in step:
            seen.setdefault(step["json"]["type"], set()).update(step["json"]["data"])
    assert len(seen) >= 11 and set(seen) <= set(used) and set(seen) <= set(data)
    for kind, keys in seen.items():
        if kind != "feature_flags":  # "as GET /features"
            assert keys <= set(re.findall(r"\w+", " ".join(quoted(data[kind])))), kind


def test_the_messages_that_the_program_reduces_are_marked_so() -> None:
    used, _ = tables_of_messages()
    marked = {kind: names[0] for kind, names in used.items() if names and names[0].startswith("_on_")}
    assert marked == {kind: handler.__name__ for kind, handler in REDUCERS.items()}
    assert used["status"] == ["Session._receive"] and used["feature_flags"] == []


def test_the_binary_frames_are_documented() -> None:
    documented = {cells[0]: cells for cells in rows(section("Binary frames"))}
    seen = {str(step["binary"]["event_type"]) for step in steps() if "binary" in step}
    assert seen == {"1", "3", "4"} and seen < set(documented)
    for kind in documented:  # what the runner takes as a picture is marked so
        meta = json.dumps({"display_node_id": "1", "image_type": "image/png"}).encode()
        rest = len(meta).to_bytes(4, "big") + meta if kind == "4" else bytes([0, 0, 0, 1])
        event = parse_message(int(kind).to_bytes(4, "big") + rest, 0.0)
        assert (event.type == "preview") == ("`Run.keep_preview`" in documented[kind][3]), kind


def test_the_order_that_is_reported_is_the_recorded_one() -> None:
    documented = [
        name for line in re.findall(r"(?m)^\d\. .*(?:\n   .*)*", section("Order of a run")) for name in quoted(line)
    ]
    names = [name for name in documented if name in REDUCERS or name == "status"]
    frames = [step["json"] for step in build_api.steps_of("0.33.0/client_prompt_id") if "ws" in step][1:]
    seen = [frame["type"] for frame in frames]
    assert (seen[:2], seen[2:4], seen[-3:]) == (names[:2], names[2:4], names[-3:])
    assert set(seen) == set(names)
    assert frames[-1]["data"]["node"] is None


# ------------------------------------------------------------------------------------------------
# The rest
# ------------------------------------------------------------------------------------------------


def test_what_is_said_to_be_in_the_program_is_there() -> None:
    names = {name for name in quoted(PROSE) if re.match(r"^(Server|Session|Service|Run|Loaded)\.\w+$", name)}
    tables = (section("Routes"), section("Messages"), section("Binary frames"))
    names |= {name for text in tables for cells in rows(text) if len(cells) == 4 for name in quoted(cells[3])}
    traps = [cells[2] for cells in rows(section("Races and traps", "#"))]
    names |= {name for text in traps for name in quoted(text) if re.match(r"^_?[a-z]\w+$", name) and name != "number"}
    assert len(names) > 45
    assert [name for name in sorted(names) if not exists(name)] == []


def test_the_interaction_is_drawn() -> None:
    (drawn,) = re.findall(r"(?s)```mermaid\n(sequenceDiagram\n.*?)```", PROSE)
    calls = {(method, same_path(path)) for method, path in re.findall(r": (GET|POST) (/[\w/{}]+)", drawn)}
    assert calls < set(routes())
    assert {("GET", "/ws"), ("POST", "/prompt"), ("GET", "/history/{}"), ("POST", "/api/jobs/{}/cancel")} < calls
    messages = set(REDUCERS) - {"execution_error"} | {"status", "feature_flags"}
    assert [name for name in sorted(messages) if name not in drawn] == []
    steps_in_order = ["/system_stats", "/ws", "/prompt", "execution_start", "execution_success", "node: null", "/view"]
    assert re.findall(r"W-->>R: (\w+)", drawn)[0] == "status"
    places = [drawn.index(step) for step in steps_in_order]
    assert places == sorted(places)
    assert len(re.findall(r"(?m)^ +(alt|loop|opt) ", drawn)) == len(re.findall(r"(?m)^ +end$", drawn))


def test_the_versions_that_the_program_knows_are_the_documents() -> None:
    versions = {name: cells[0] for cells in rows(section("Versions", "#")) for name in quoted(cells[1])}
    assert versions["OLDEST_COMFYUI"] == ".".join(map(str, OLDEST_COMFYUI))
    documented = [cells[0] for cells in rows(section("Versions", "#"))]
    numbers = [tuple(map(int, text.split("."))) for text in documented if "-" not in text]
    assert numbers == sorted(numbers) and len(documented) > 20


def test_the_links_lead_somewhere() -> None:
    headings = re.findall(r"(?m)^#+ (.+)$", PROSE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    targets = re.findall(r"\]\(([^)]+)\)", PROSE)
    assert len(targets) > 10
    for target in targets:
        if target.startswith("#"):
            assert target[1:] in anchors, target
        else:
            assert os.path.exists(os.path.join(ROOT, "docs", target)), target
