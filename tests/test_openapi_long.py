"""What the service answers is what /openapi.json declares: schemathesis asks every operation for it."""

from __future__ import annotations

import base64
import collections
import json
import re
import signal
import subprocess
import sys
from typing import Any, Callable, Dict, Iterator, Set

import pytest
import requests
from support import SCRIPT, node, wait_until

from comfyui_runner.routes import ROUTES
from comfyui_runner.simulator import draw

pytestmark = pytest.mark.long
pytest.importorskip("schemathesis")

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "unsupported_method",
    "allow_header_conformance",
)

PNG_URI = "data:image/png;base64," + base64.b64encode(draw(8, 8, 1, ["A"])).decode()

WORKFLOW = {
    "1": node("LoadImage", image="example.png"),
    "2": node("CheckpointLoaderSimple", ckpt_name="sd_xl_base_1.0.safetensors"),
    "3": node("CLIPTextEncode", "Positive", text="a lighthouse", clip=["2", 1]),
    "4": node("CLIPTextEncode", "Negative", text="blurry", clip=["2", 1]),
    "5": node("VAEEncode", pixels=["1", 0], vae=["2", 2]),
    "6": node(
        "KSampler", model=["2", 0], positive=["3", 0], negative=["4", 0], latent_image=["5", 0],
        seed=1, steps=3, cfg=7.0, sampler_name="euler", scheduler="normal", denoise=1.0,
    ),
    "7": node("VAEDecode", samples=["6", 0], vae=["2", 2]),
    "8": node("SaveImage", images=["7", 0], filename_prefix="openapi"),
    "9": node("SlowProgress", "Slow", steps=3, seconds=0.1, seed=1, preview=True),
    "10": node("SaveImage", images=["9", 0], filename_prefix="slow"),
    "11": node("SaveImageWebsocket", images=["7", 0]),
}  # fmt: skip


@pytest.fixture
def url(make_simulator: Callable[..., Any], workflow_file: Callable[..., str], tmp_path: Any) -> Iterator[str]:
    """A service on a simulator, in a process of its own."""
    simulator = make_simulator(previews=True)
    arguments = ["--server", simulator.url, "--mode", "continuous", "--port", "0", "--max-queue", "6"]
    command = [sys.executable, SCRIPT, *arguments, workflow_file(WORKFLOW)]
    console = tmp_path / "console.txt"
    with open(console, "wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        pattern = r"Open (http://127\.0\.0\.1:\d+) in a browser"
        found = wait_until(lambda: re.search(pattern, console.read_text("utf-8")), 20.0, "the service's address")
        wait_until(lambda: requests.get(found[1] + "/status", timeout=5).json()["comfyui"]["connected"])
        yield found[1]
        assert process.poll() is None, console.read_text("utf-8")[-4000:]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def with_examples(url: str, prompt_id: str, filename: str, number: str) -> Dict[str, Any]:
    """The service's own document, with requests that lead to successes, and with short waits."""
    document: Dict[str, Any] = requests.get(url + "/openapi.json", timeout=5).json()
    examples = {"prompt_id": prompt_id, "filename": filename, "type": "output", "number": number, "wait": 0.2}
    examples["model"] = requests.get(url + "/v1/models", timeout=5).json()["data"][0]["id"]
    for methods in document["paths"].values():
        for operation in methods.values():
            for parameter in operation.get("parameters", []):
                if parameter["name"] in examples:
                    parameter["example"] = examples[parameter["name"]]
                if parameter["name"] == "wait":
                    parameter["schema"]["maximum"] = 0.2
    # Without a limit, a call behind the runs that block the queue would wait for a minute.
    (wait,) = [each for each in document["paths"]["/run"]["post"]["parameters"] if each["name"] == "wait"]
    wait["required"] = True
    for name in ("ImagesRequest", "EditsRequest"):  # ten runs for one answer take too long
        document["components"]["schemas"][name]["properties"]["n"]["maximum"] = 1
    for name in ("ImagesForm", "EditsUpload"):
        document["components"]["schemas"][name]["properties"]["n"]["pattern"] = "^1$"
    for parameter in document["paths"]["/upload/image"]["post"]["parameters"]:
        if parameter["name"] == "force":  # what schemathesis uploads are not pictures
            parameter.update(required=True, schema={"type": "string", "enum": ["true"]})
    for method, path, bodies in (
        ("put", "/workflow", [WORKFLOW, {"1": node("Nope"), "2": node("SaveImage", images=["1", 0])}]),
        ("post", "/update/prompt", [{"type": "positive", "text": "a fox"}, {"title": "Slow", "text": "none there"}]),
        ("post", "/update/inputs", [
            {"node_id": "6", "inputs": {"seed": "random", "steps": 4}}, {"node_id": "6", "inputs": {"steps": 0}},
            {"node_id": "6", "inputs": {"cfg": "7"}}, {"node_id": "6", "inputs": {"model": "x"}},
            {"title": "Slow", "inputs": {"seed": 2, "sead": 2}}, {"node_id": "8", "inputs": {"filename_prefix": ""}}]),
        ("post", "/queue", [{}, {"clear": True}]),
        ("post", "/prompt", [{"prompt": WORKFLOW}, {"prompt": {}}, {"number": "first"}, {"prompt": WORKFLOW,
                             "partial_execution_targets": 5}, {"prompt": {"1": node("SaveImage")}}]),
        ("post", "/run", [{"positive": "a fox", "6.seed": "random"}, {"6.steps": 0}, {"positve": "a fox"}]),
        ("post", "/v1/images/generations", [{"prompt": "a fox", "response_format": "url"}, {"prompt": "", "n": 11}]),
        ("post", "/v1/images/edits", [{"prompt": "a fox", "images": [{"image_url": PNG_URI}]}, {"prompt": "a fox"}]),
        ("post", "/interrupt", [{}, {"prompt_id": prompt_id}]),
    ):  # fmt: skip
        content = document["paths"][path][method]["requestBody"]["content"]["application/json"]
        content["examples"] = {"example-%d" % number: {"value": body} for number, body in enumerate(bodies)}
    for path, form in (
        ("/update/prompt", {"type": "positive", "text": "a fox"}),
        ("/update/inputs", {"node_id": "6", "inputs.seed": "random", "inputs.steps": "4"}),
        ("/run", {"positive": "a fox", "6.steps": "4"}),
        ("/v1/images/generations", {"prompt": "a fox", "6.steps": "4"}),
    ):
        content = document["paths"][path]["post"]["requestBody"]["content"]["application/x-www-form-urlencoded"]
        content["examples"] = {"example": {"value": form}}
    return document


def ask(url: str, document: Dict[str, Any], folder: Any, *more: str) -> Dict[str, Set[int]]:
    """One run of schemathesis: the statuses that each operation ("GET /runs/{}") answered with."""
    path, archive = folder / "openapi.json", folder / "answers.har"
    path.write_text(json.dumps(document), encoding="utf-8")
    done = subprocess.run(
        [
            sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", "run", str(path),
            "--url", url, "--exclude-path", "/events", "--checks", ",".join(CHECKS), "--max-examples", "20",
            "--generation-deterministic", "--continue-on-failure", "--phases", "examples,coverage,fuzzing",
            "--request-timeout", "10", "--no-color", "--report-har-path", str(archive), *more,
        ],
        cwd=str(folder), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=150,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-8000:]
    answered: Dict[str, Set[int]] = collections.defaultdict(set)
    for entry in json.loads(archive.read_text("utf-8"))["log"]["entries"]:
        asked = entry["request"]["url"][len(url) :].partition("?")[0]
        name = re.sub(r"^/runs/[^/]*", "/runs/{prompt_id}", asked)
        name = re.sub(r"/files/.*", "/files/{number}", name)
        name = re.sub(r"^/v1/models/.*", "/v1/models/{model}", name)
        answered[entry["request"]["method"] + " " + name].add(entry["response"]["status"])
    return answered


def run_with_picture(url: str) -> Any:
    """A run that succeeded; None while the service's WebSocket was not open."""
    prompt_id = requests.get(url + "/queue", timeout=10).json()["prompt_id"]
    run = requests.get("%s/runs/%s?wait=20" % (url, prompt_id), timeout=30).json()
    assert run["phase"] == "success"
    return run if "websocket" in [output["source"] for output in run["outputs"]] else None


def test_every_answer_is_declared(url: str, tmp_path: Any) -> None:
    run = wait_until(lambda: run_with_picture(url), 30.0, "a picture over the WebSocket")
    prompt_id = run["prompt_id"]
    (number,) = [str(at) for at, output in enumerate(run["outputs"]) if output["source"] == "websocket"]
    document = with_examples(url, prompt_id, run["outputs"][0]["filename"], number)
    operations = {
        "%s %s" % (method.upper(), path): {int(status) for status in operation["responses"]}
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if path != "/events"
    }
    assert len(operations) == len(ROUTES) - 1
    # PUT /workflow comes second: it leaves behind what can't run
    answered = ask(url, document, tmp_path, "--exclude-operation-id", "put_workflow")
    blocker = {**WORKFLOW, "9": node("SlowProgress", "Slow", steps=600, seconds=60.0, seed=7, preview=True)}
    requests.put(url + "/workflow", json=blocker, timeout=10).raise_for_status()
    for _ in range(6):
        requests.post(url + "/queue", timeout=10).raise_for_status()
    # Runs that are over keep no preview, and schemathesis interrupts the running one before it asks for it.
    wait_until(lambda: requests.get(url + "/preview", timeout=10).status_code == 200, 30.0, "a preview")
    answered["GET /preview"].add(200)
    # Behind the runs that block the queue, OpenAI's routes would wait for a minute.
    for name, statuses in ask(url, document, tmp_path, "--exclude-path-regex", "^/v1/images/").items():
        answered[name] |= statuses
    for name, declared in operations.items():
        assert answered[name] <= declared, name
        # nobody knows the token of a service that has none
        assert name == "POST /login" or min(answered[name]) < 300, (name, answered[name])
    assert 429 in answered["GET /queue"] and {200, 409} <= answered["POST /interrupt"]
