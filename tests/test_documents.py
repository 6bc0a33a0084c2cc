"""The documents say what is true: help, statuses, settings, events, links, the files themselves."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import threading
from typing import Any, Callable, Dict, Set

import pytest
import requests
from support import ROOT, node, program_text, run, script, slow_prompt, wait_until

from comfyui_runner.environment import Environment
from comfyui_runner.nodes import is_link
from comfyui_runner.resources import read_resource
from comfyui_runner.routes import ROUTES

Make = Callable[..., Any]
OPENAPI = json.loads(read_resource("openapi.json"))


def read(name: str) -> str:
    with open(os.path.join(ROOT, name), encoding="utf-8") as file:
        return file.read()


@pytest.mark.skipif(not (3, 10) <= sys.version_info[:2] <= (3, 12), reason="argparse words its help otherwise")
def test_the_help_in_the_document_is_the_programs(capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["comfyui_workflow_runner.py"])
    for arguments, name in ((["--help"], "help"), (["--help", "exit"], "exit")):
        assert script.main(Environment(arguments)) == 0
        shown = re.search(rf"<!-- {name} -->\n```\n(.*?)```\n<!-- /{name} -->", read("docs/COMMAND_LINE.md"), re.S)
        assert shown and shown.group(1) == capsys.readouterr().out


def test_every_setting_is_documented() -> None:
    readme = read("docs/COMMAND_LINE.md")
    for name in set(re.findall(r'"(COMFYUI_[A-Z_]+)"', program_text())):
        assert "`%s`" % name in readme
    for name in ("curr_workflow", "RUN_MODE", "AUTO_EXECUTE_ON_UPLOAD", "DEFAULT_SERVERS"):
        assert hasattr(script, name) and name in readme and name in read("README.md")


def test_the_messages_under_troubleshooting_are_the_programs() -> None:
    source = program_text()
    table = read("README.md").partition("## Troubleshooting")[2].partition("\n## ")[0]
    cells = re.findall(r"(?m)^\| (.*?) \| .* \|$", table)
    messages = [quoted for cell in cells for quoted in re.findall(r"`([^`]*)`", cell) if " " in quoted]
    assert len(messages) > 8
    for message in messages:
        for part in re.split(r"…|\d+", message):  # what differs from case to case
            assert part.strip(" ().") in source, message


def test_the_links_of_the_documents_lead_somewhere() -> None:
    documents = [f"docs/{name}" for name in os.listdir(os.path.join(ROOT, "docs")) if name.endswith(".md")]
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", *documents):
        for target in re.findall(r"\]\(([^)#]+)\)", read(name)):
            if "://" not in target:
                assert os.path.exists(os.path.join(ROOT, os.path.dirname(name), target)), (name, target)


def columns_of_row(line: str) -> int:
    """The columns of a row of a table: a pipe without a backslash ends one, in code too."""
    return len(re.findall(r"(?<!\\)\|", line)) - 1


def test_the_rows_of_a_table_have_its_columns() -> None:
    documents = [f"docs/{name}" for name in os.listdir(os.path.join(ROOT, "docs")) if name.endswith(".md")]
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", *documents):
        text = re.sub(r"(?ms)^```.*?^```$", "", read(name))
        for table in re.findall(r"(?m)(?:^\|.*\n)+", text):
            rows = table.splitlines()
            assert {columns_of_row(row) for row in rows} == {columns_of_row(rows[0])}, (name, rows)


def documented_events() -> Dict[str, Set[str]]:
    rows = re.findall(r"(?m)^\| `(\w+)` \|(.*?)\| [^|]*\|$", read("docs/JSON.md"))
    fields = {}
    for name, text in rows:
        if name not in ("event", "time", "prompt_id"):
            fields[name] = set(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", text)))
    fields["failure"] |= fields["problem"] - {"problem"}
    fields["failure"].discard("problem")
    return fields


def test_every_event_has_the_fields_that_the_documents_say(
    simulator: Any, make_simulator: Make, workflow_file: Make, tmp_path: Any
) -> None:
    blocker = {"prompt": slow_prompt(steps=300, seconds=60.0, seed=5), "client_id": "other"}
    requests.post(simulator.url + "/prompt", json=blocker, timeout=5)
    first_out = io.StringIO()

    def let_the_first_run() -> None:
        wait_until(lambda: '"event": "queued"' in first_out.getvalue(), what="a run that waits")
        requests.post(simulator.url + "/interrupt", timeout=5)

    threading.Thread(target=let_the_first_run, daemon=True).start()
    failing = {
        "1": node("EmptyImage", width=8, height=8, batch_size=1, color=0),
        "2": node("FailNode", message="boom", image=["1", 0]),
        "3": node("SaveImage", images=["2", 0], filename_prefix="x"),
        "4": node("TextOut", text="words"),
        "5": node("SaveImage", images=["404", 0], filename_prefix="x"),
    }
    cut = make_simulator()
    cut.faults.cut_ws_after = 4
    no_file = make_simulator()
    no_file.faults.http_status = {"/view": 404, "/ws": 404}
    out = str(tmp_path / "out")
    seen: Dict[str, Set[str]] = {}
    for target, prompt, more in (
        (simulator, slow_prompt(), ["-o", out]), (simulator, slow_prompt(), []), (simulator, failing, ["-o", out]),
        (cut, slow_prompt(steps=6, seconds=1.0), []), (no_file, slow_prompt(), ["-o", out]),
        (simulator, {"1": node("Nope")}, []),
    ):  # fmt: skip
        out_stream = first_out if not seen else None
        result = run("--server", target.url, "--yes", "--json", *more, workflow_file(prompt), out=out_stream)
        for event in result.events:
            extra = set(event) - {"event", "time", "prompt_id"}
            known = seen.setdefault(event["event"], extra)
            known |= extra
    picture = tmp_path / "cat.png"
    picture.write_bytes(b"\xff\xd8\xff a picture, for the simulator")
    loader = {"1": node("LoadImage", image="cat.png"), "2": node("SaveImage", images=["1", 0], filename_prefix="x")}
    for more, names in (
        (["--inputs"], {"input"}),
        (["--check"], {"checked"}),
        (["--check", str(workflow_file(slow_prompt(), "other.json"))], {"workflows"}),
        (["--image", str(picture), "--export-api", str(tmp_path / "api.json")], {"uploaded", "exported"}),
        (["--yes", "--repeat", "2", "--manifest", str(tmp_path / "m.jsonl")], {"row", "batch"}),
    ):
        result = run("--server", simulator.url, "--json", *more, workflow_file(loader))
        for event in result.events:
            if event["event"] in names:
                seen[event["event"]] = set(event) - {"event", "time", "prompt_id"}
    documented = documented_events()
    # These have stories of their own.
    hard_to_meet = {"node_blocked", "silence", "listening", "refused", "hook_failed", "freed", "following"}
    assert set(seen) | hard_to_meet == set(documented)
    for name, fields in seen.items():
        assert fields == documented[name], name


def test_every_event_for_people_is_documented() -> None:
    source = program_text()
    used = set(re.findall(r'"event": "(\w+)"', source)) | set(re.findall(r'node_report\(\s*"(\w+)"', source))
    assert used == set(documented_events())


def test_the_workflow_and_its_twin_are_the_same_graph() -> None:
    prompt, workflow = json.loads(read("workflow_api.json")), json.loads(read("workflow.json"))
    nodes = {str(item["id"]): item for item in workflow["nodes"] if "Note" not in item["type"]}
    assert {node_id: item["type"] for node_id, item in nodes.items()} == {
        node_id: item["class_type"] for node_id, item in prompt.items()
    }
    links = {(str(link[1]), link[2], str(link[3])) for link in workflow["links"]}
    assert links == {
        (value[0], value[1], node_id)
        for node_id, item in prompt.items()
        for value in item["inputs"].values()
        if is_link(value)
    }
    notes = json.dumps([item["widgets_values"] for item in workflow["nodes"] if "Note" in item["type"]])
    assert "sd_xl_base_1.0.safetensors" in notes and "models/checkpoints" in notes


def test_the_dependencies_are_the_same_wherever_they_stand() -> None:
    listed = [line for line in read("requirements.txt").splitlines() if line and not line.startswith("#")]
    block = re.search(r"# dependencies = \[\n(.*?)# \]", program_text(), re.S)
    assert block and re.findall(r'"(.*?)"', block.group(1)) == listed


def test_the_routes_in_the_documents_are_the_programs() -> None:
    rows = re.findall(r"(?m)^\| `([A-Z]+) (/\S*)` \| .+ \| ([\d ]+) \|$", read("docs/MIDDLEWARE.md"))
    documented = [(method, path, tuple(map(int, statuses.split()))) for method, path, statuses in rows]
    assert documented == [(row.method, row.path, tuple(sorted(row.statuses))) for row in ROUTES]


def test_the_statuses_in_the_documents_are_the_programs() -> None:
    errors = read("docs/MIDDLEWARE.md").partition("## Errors")[2].partition("\n## ")[0]
    rows = re.findall(r"(?m)^\| ([\d, ]+) \|", errors)
    documented = {status for row in rows for status in row.replace(" ", "").split(",")}
    answered = {
        status
        for methods in OPENAPI["paths"].values()
        for operation in methods.values()
        for status in operation["responses"]
        if int(status) >= 400
    }
    assert documented - {"405"} == answered - {"416"}  # no operation of its own; of /view alone


def test_the_events_of_a_stream_are_documented() -> None:
    events = read("docs/MIDDLEWARE.md").partition("## Events")[2].partition("\n## ")[0]
    used = set(re.findall(r'(?:publish|encode_event|encode_text_event)\(\s*"(\w+)"', program_text()))
    assert set(re.findall(r"(?m)^\| `(\w+)` \|", events)) == used


def test_the_fields_of_a_run_are_documented() -> None:
    runs = read("docs/MIDDLEWARE.md").partition("## Runs")[2].partition("\n## ")[0]
    cells = re.findall(r"(?m)^\| (`\w.*?) \| (.*) \|$", runs)
    documented = {name for first, _ in cells for name in re.findall(r"`(\w+)`", first)} | {"message"}
    assert documented == set(OPENAPI["components"]["schemas"]["Run"]["required"])
