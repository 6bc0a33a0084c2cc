"""The commands of docs/RECIPES.md, as they are typed, against a listener and a stand-in of this machine."""

from __future__ import annotations

import http.server
import json
import os
import re
import shlex
import shutil
import sys
from typing import Any, Callable, List

import pytest
from support import ROOT, run, slow_prompt

Make = Callable[..., Any]


def read_recipes() -> str:
    with open(os.path.join(ROOT, "docs", "RECIPES.md"), encoding="utf-8") as file:
        return file.read()


def recipe(word: str) -> List[str]:
    """The arguments of the one line of the document that has ``word`` in it."""
    (line,) = re.findall(rf"(?m)^    python comfyui_workflow_runner.py (.*{word}.*)$", read_recipes())
    return shlex.split(line)


def follow(recipe: List[str], url: str, path: str, out: str, **variables: str) -> Any:
    arguments = [{"flow.json": path, "results": out}.get(argument, argument) for argument in recipe]
    return run("--server", url, "--json", *arguments, environment={**os.environ, **variables})


@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl")
def test_the_webhook_sends_the_run_to_a_web_server(
    simulator: Any, workflow_file: Make, serve: Make, tmp_path: Any
) -> None:
    posted: List[Any] = []
    statuses = [204, 404]

    class Listener(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            posted.append((self.path, self.headers["Content-Type"], json.loads(self.rfile.read(length))))
            self.send_response(statuses.pop(0))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    url = serve(Listener)
    arguments = [each.replace("https://example.com", url) for each in recipe("curl")]
    path, out = workflow_file(slow_prompt()), str(tmp_path / "out")
    result = follow(arguments, simulator.url, path, out, NO_PROXY="127.0.0.1", no_proxy="127.0.0.1")
    assert result.status == 0 and "hook_failed" not in result.names()
    ((route, content_type, document),) = posted
    assert route == "/runs" and content_type == "application/json"
    assert document["prompt_id"] == result.event("end")["prompt_id"] and document["status"] == "success"

    refused = follow(arguments, simulator.url, path, out, NO_PROXY="127.0.0.1", no_proxy="127.0.0.1")
    assert refused.status == 0 and "404" in refused.event("hook_failed")["message"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no cp")
def test_the_results_are_copied_to_elsewhere(simulator: Any, workflow_file: Make, tmp_path: Any) -> None:
    saved, copied = tmp_path / "results", tmp_path / "mnt"
    copied.mkdir()
    places = {"results/.": f"{saved}/.", "/mnt/pictures": str(copied)}
    arguments = recipe("cp -R")
    for old, new in places.items():
        assert old in arguments[-1]
        arguments[-1] = arguments[-1].replace(old, new)
    result = follow(arguments, simulator.url, workflow_file(slow_prompt()), str(saved))
    assert result.status == 0 and "hook_failed" not in result.names()
    files = {path.name: path.read_bytes() for path in saved.iterdir()}
    assert files == {path.name: path.read_bytes() for path in copied.iterdir()} != {}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere it calls another program")
def test_a_notification_says_how_the_run_ended(
    simulator: Any, workflow_file: Make, tmp_path: Any, monkeypatch: Any
) -> None:
    folder, shown = tmp_path / "bin", tmp_path / "shown"
    folder.mkdir()
    for name, code in (
        ("notify-send", f'printf "%s|" "$@" > {shlex.quote(str(shown))}'),
        ("python", f'exec {shlex.quote(sys.executable)} "$@"'),
    ):
        (folder / name).write_text(f"#!/bin/sh\n{code}\n")
        (folder / name).chmod(0o755)
    (code,) = re.findall(r"```python\n(.*?)```", read_recipes(), re.S)
    (tmp_path / "notify.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    path_variable = f"{folder}{os.pathsep}{os.environ['PATH']}"
    path, out = workflow_file(slow_prompt()), str(tmp_path / "out")
    result = follow(recipe("notify.py"), simulator.url, path, out, PATH=path_variable)
    assert result.status == 0 and "hook_failed" not in result.names()
    assert shown.read_text() == f"ComfyUI|success: {result.event('end')['message']}|"
