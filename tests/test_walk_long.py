"""The commands of README.md and docs/COMMAND_LINE.md, one after the other, as a newcomer types them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from typing import Any, Callable, Dict, List

import pytest
import requests
from support import ROOT, node, run

from comfyui_runner.simulator import Simulator, draw

pytestmark = [pytest.mark.long, pytest.mark.script_and_folder]

Make = Callable[..., Any]
RUNNER = "python comfyui_workflow_runner.py "

#: What a line has that another test runs: a service, other people's addresses, a second way to start.
ELSEWHERE = ("--mode continuous", "example.com", "--setup")

with open(os.path.join(ROOT, "workflow_api.json"), encoding="utf-8") as file:
    TEXT_TO_IMAGE: Dict[str, Any] = json.load(file)
TEXT_TO_IMAGE["4"]["inputs"].update(width=64, height=64)  # is drawn sooner

#: The same from a picture that is loaded.
IMAGE_TO_IMAGE = {
    **{node_id: item for node_id, item in TEXT_TO_IMAGE.items() if item["class_type"] != "EmptyLatentImage"},
    "8": node("LoadImage", "Photo", image="example.png"),
    "4": node("VAEEncode", pixels=["8", 0], vae=["1", 2]),
}
TWO_PICTURES = {
    "1": node("LoadImage", "Photo", image="example.png"),
    "2": node("LoadImage", "Style", image="example.png"),
    "3": node("ImageBatch", image1=["1", 0], image2=["2", 0]),
    "4": node("SaveImage", filename_prefix="both", images=["3", 0]),
}


def commands(name: str, program: str) -> List[str]:
    """The lines of a document, outside its blocks, that begin with a program."""
    with open(os.path.join(ROOT, name), encoding="utf-8") as file:
        text = re.sub(r"(?ms)^```.*?^```$", "", file.read())
    return re.findall(rf"(?m)^    ({re.escape(program)}.*)$", text)


def workflow_for(line: str) -> Dict[str, Any]:
    """A workflow that has what a line sets."""
    if "Style=" in line:
        return TWO_PICTURES
    return IMAGE_TO_IMAGE if "image" in line else TEXT_TO_IMAGE


@pytest.fixture
def folder(tmp_path: Any, simulator: Simulator, monkeypatch: Any) -> Any:
    """A folder with the files that the commands name."""
    monkeypatch.chdir(tmp_path)
    picture = draw(8, 8, 1, ["A"])
    for name in ("cat.png", "style.png", "photos/1.png", "photos/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(picture)
    (tmp_path / "prompt.txt").write_text("a fox\n")
    (tmp_path / "prompts.txt").write_text("a fox\na wolf\n")
    (tmp_path / "rows.csv").write_text("positive,seed\na cat,1\na dog,2\n")
    shutil.copy(os.path.join(ROOT, "workflow.json"), "my_workflow.json")
    shutil.copy(os.path.join(ROOT, "workflow_api.json"), "my_workflow_api.json")
    for name in ("flow_api.json", "first.json", "second.json"):
        shutil.copy("my_workflow_api.json", name)

    done = run("--server", simulator.url, "--yes", "--json", "-o", "pictures", "first.json")
    (made,) = (tmp_path / "pictures").iterdir()
    shutil.copy(str(made), "ComfyUI_00042_.png")
    history = requests.get(simulator.url + "/history/" + done.event("end")["prompt_id"], timeout=10)
    (tmp_path / "earlier.json").write_bytes(history.content)
    return tmp_path


@pytest.mark.parametrize("name", ["README.md", "docs/COMMAND_LINE.md"])
def test_every_command_of_the_runner_runs_as_it_is_typed(
    name: str, folder: Any, simulator: Simulator, make_simulator: Make
) -> None:
    second = make_simulator()
    count = 0
    for line in commands(name, RUNNER):
        if any(mark in line for mark in ELSEWHERE):
            continue
        (folder / "flow.json").write_text(json.dumps(workflow_for(line)))
        line = line.replace("--repeat 20", "--repeat 2")  # which would only take longer
        line = line.replace("http://127.0.0.1:8188", simulator.url).replace("http://127.0.0.1:8190", second.url)
        arguments = [word for word in shlex.split(line)[2:] if word != "--open"]
        only_looks = {"--inputs", "--check"} & set(arguments)
        if not only_looks and "--yes" not in arguments:
            arguments.append("--yes")
        done = run(*arguments, environment={**os.environ, "COMFYUI_URL": simulator.url})
        assert done.status == 0, (line, done.out, done.err)
        count += 1
    assert count > 8


@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl")
def test_every_curl_line_of_the_readme_gets_its_answer(
    folder: Any, simulator: Simulator, make_middleware: Make
) -> None:
    service = make_middleware(simulator, prompt=IMAGE_TO_IMAGE)
    prompt_id = ""
    for line in commands("README.md", "curl "):
        line = line.replace("127.0.0.1:8189", f"127.0.0.1:{service.port}").replace("PROMPT_ID", prompt_id)
        answer = subprocess.run(shlex.split(line), capture_output=True, timeout=60, check=True).stdout
        if " -o " in line:
            saved = folder / shlex.split(line)[shlex.split(line).index("-o") + 1]
            assert saved.read_bytes().startswith(b"\x89PNG"), line
            continue
        document = json.loads(answer)
        prompt_id = document.get("prompt_id", prompt_id)
        is_over = line.endswith("/interrupt")  # the line before has waited for the end
        assert ("error" in document) == is_over, (line, document)
    assert prompt_id
