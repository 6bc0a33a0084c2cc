"""Partner nodes in every mode: the key goes to them alone, and nothing is spent without a word about it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sqlite3
import sys
import zlib
from typing import Any, Callable, Dict, List

import requests
from simulated import png_text, txt2img
from support import Outcome, node, run, slow_prompt, wait_until

from comfyui_runner.simulator import draw

Make = Callable[..., Any]
KEY = "comfyui-5ec2e7f0a1b2c3d4"
WITH_KEY = {"COMFY_API_KEY": KEY}
PAID = {
    "1": node("PartnerImage", "Painter", text="a fox", seed=5),
    "2": node("SaveImage", images=["1", 0], filename_prefix="paid"),
}
FREE = slow_prompt(seconds=0.0)


def go(simulator: Any, path: str, *arguments: str, **options: Any) -> Outcome:
    return run("--server", simulator.url, "--json", path, *arguments, **options)


def looked_up(simulator: Any) -> List[str]:
    return [path for _, path in simulator.requests if path.startswith("/object_info")]


def extra_data_of(simulator: Any) -> Dict[str, Any]:
    """The extra_data of the newest prompt, as ComfyUI shows it, with what it does not show."""
    history = requests.get(simulator.url + "/history", timeout=5).json()
    extra_data: Dict[str, Any] = list(history.values())[-1]["prompt"][3]
    return extra_data


# -- single shot -----------------------------------------------------------------------------------


def test_the_question_names_the_nodes_and_a_yes_sends_the_key(simulator: Any, workflow_file: Make) -> None:
    result = run("--server", simulator.url, workflow_file(PAID), answers="y\n", environment=WITH_KEY)
    assert result.status == 0
    assert 'A run costs credits of your Comfy account: "Painter" (PartnerImage, node 1).\nRun it? [y/N]' in result.out
    assert simulator.partner_keys == [KEY]
    assert KEY not in result.out + result.err


def test_a_no_spends_nothing(simulator: Any, workflow_file: Make) -> None:
    result = run("--server", simulator.url, workflow_file(PAID), answers="n\n", environment=WITH_KEY)
    assert result.status == 4 and simulator.partner_keys == []


def test_yes_alone_does_not_spend(simulator: Any, workflow_file: Make) -> None:
    result = go(simulator, workflow_file(PAID), "--yes", environment=WITH_KEY)
    assert result.status == 4 and simulator.executions == {}
    error = result.event("error")
    assert "--yes does not allow nodes that cost credits" in error["message"] and '"Painter"' in error["message"]
    assert "--allow-spend" in error["remedy"]
    assert go(simulator, workflow_file(PAID), "--yes", "--allow-spend", environment=WITH_KEY).status == 0
    assert simulator.partner_keys == [KEY]


def test_allow_spend_alone_answers_no_question(simulator: Any, workflow_file: Make) -> None:
    arguments = ["--server", simulator.url, workflow_file(PAID), "--allow-spend"]
    result = run(*arguments, answers="n\n", environment=WITH_KEY)
    assert result.status == 4 and "costs credits" in result.out and simulator.partner_keys == []


def test_the_key_goes_along_only_where_it_is_needed(simulator: Any, make_simulator: Make, workflow_file: Make) -> None:
    old = make_simulator(version="0.3.64")  # it shows the key to all who ask for its history
    assert go(old, workflow_file(FREE), "--yes", environment=WITH_KEY).status == 0
    assert "api_key_comfy_org" not in extra_data_of(old)
    assert go(old, workflow_file(PAID), "--yes", "--allow-spend", environment=WITH_KEY).status == 0
    assert extra_data_of(old)["api_key_comfy_org"] == KEY
    assert KEY not in json.dumps(extra_data_of(old).get("extra_pnginfo"))


def test_without_the_variable_nothing_is_looked_up_and_the_login_error_names_it(
    simulator: Any, workflow_file: Make
) -> None:
    result = go(simulator, workflow_file(PAID), "--yes")
    assert result.status == 7 and looked_up(simulator) == []
    failure = result.event("failure")
    assert failure["message"] == "Unauthorized: Please login first to use this node."
    assert any("COMFY_API_KEY" in hint for hint in failure["hints"])
    empty = go(simulator, workflow_file(PAID), "--yes", environment={"COMFY_API_KEY": ""})
    assert empty.status == 7 and looked_up(simulator) == []


def test_only_the_classes_of_the_prompt_are_looked_up(simulator: Any, workflow_file: Make) -> None:
    assert go(simulator, workflow_file(PAID), "--yes", "--allow-spend", environment=WITH_KEY).status == 0
    assert sorted(looked_up(simulator)) == ["/object_info/PartnerImage", "/object_info/SaveImage"]


def test_where_it_cannot_be_known_what_a_run_costs_nothing_runs(simulator: Any, workflow_file: Make) -> None:
    simulator.faults.http_status = {"/object_info": 500}
    result = go(simulator, workflow_file(PAID), "--yes", "--allow-spend", environment=WITH_KEY)
    assert result.status == 5 and simulator.executions == {}


def test_the_key_is_in_no_file_and_in_no_output(make_simulator: Make, workflow_file: Make, tmp_path: Any) -> None:
    """The node fails with the key in its message, as a partner's error may quote it."""
    simulator = make_simulator(version="0.3.64")
    ui = {"nodes": [], "links": [], "version": 0.4}
    document = {"prompt": PAID, "workflow": ui}
    out, record, noted = str(tmp_path / "out"), str(tmp_path / "run.json"), tmp_path / "noted"
    code = tmp_path / "hook.py"
    code.write_text(
        "import os, sys\nnoted = sys.stdin.buffer.read().decode() + repr(dict(os.environ))\n"
        f"open({str(noted)!r}, 'w', encoding='utf-8').write(noted)"
    )
    hook = f'"{sys.executable}" "{code}"'
    arguments = ["--yes", "--allow-spend", "-o", out, "--save-run", record, "--hook", hook]
    result = go(simulator, workflow_file(document), *arguments, environment={**os.environ, **WITH_KEY})
    assert result.status == 0 and simulator.partner_keys == [KEY]
    (name,) = os.listdir(out)
    with open(os.path.join(out, name), "rb") as file:
        picture = file.read()
    assert "workflow" in png_text(picture) and KEY.encode() not in picture
    for path in (record, noted):
        with open(path, encoding="utf-8") as file:
            assert KEY not in file.read()
    assert KEY not in result.out + result.err

    prompt = {"1": node("FailNode", message=f"the partner says: {KEY} is revoked", image=["2", 0]), "2": PAID["1"]}
    prompt["3"] = node("SaveImage", images=["1", 0], filename_prefix="x")
    arguments = ["--yes", "--allow-spend", "--verbose", "--save-run", record]
    failed = go(simulator, workflow_file(prompt), *arguments, environment=WITH_KEY)
    assert failed.status == 7 and failed.event("failure")["message"] == "the partner says: *** is revoked"
    assert KEY not in failed.out + failed.err


def test_a_key_in_the_workflows_file_wins(simulator: Any, workflow_file: Make) -> None:
    document = {"prompt": PAID, "extra_data": {"api_key_comfy_org": "key-of-the-file"}}
    arguments = ["--yes", "--allow-spend"]
    assert go(simulator, workflow_file(document), *arguments, environment=WITH_KEY).status == 0
    assert simulator.partner_keys == ["key-of-the-file"]


# -- a batch ---------------------------------------------------------------------------------------


def test_the_question_of_a_batch_names_them_too(simulator: Any, workflow_file: Make, tmp_path: Any) -> None:
    manifest = str(tmp_path / "m.jsonl")
    arguments = ["--server", simulator.url, workflow_file(PAID), "--repeat", "2", "--manifest", manifest]
    refused = run(*arguments, "--yes", environment=WITH_KEY)
    assert refused.status == 4 and "--allow-spend" in refused.err and simulator.partner_keys == []
    result = run(*arguments, answers="y\n", environment=WITH_KEY)
    assert result.status == 0
    assert '"Painter" (PartnerImage, node 1).\nRun it 2 times? [y/N]' in result.out
    assert simulator.partner_keys == [KEY, KEY]
    with open(manifest, encoding="utf-8") as file:
        assert KEY not in file.read()


def unpack(cell: Any) -> str:
    """What is in a cell of the state file, which compresses prompts."""
    if not isinstance(cell, bytes):
        return str(cell)
    with contextlib.suppress(zlib.error):
        cell = zlib.decompress(cell)
    return str(cell, "latin-1")


# -- continuous mode -------------------------------------------------------------------------------


def test_the_service_refuses_them_without_allow_spend(simulator: Any, make_middleware: Make) -> None:
    service = make_middleware(simulator, prompt=PAID, environment=WITH_KEY)
    for answer in (service.get("/queue"), service.post("/prompt", {"prompt": PAID})):
        assert answer.status == 403 and answer.error == "spending_not_allowed"
        message = answer.json["error"]["message"]
        assert '"Painter" (PartnerImage, node 1)' in message and "--allow-spend" in message
    service.hold(FREE)
    service.end(service.start())
    assert simulator.partner_keys == [] and KEY not in service.out.getvalue() + service.err.getvalue()


def test_calls_are_refused_in_the_form_of_their_route(simulator: Any, make_middleware: Make) -> None:
    save = node("SaveImage", images=["21", 0], filename_prefix="paid")
    prompt = {**txt2img(), "21": PAID["1"], "22": save, "23": node("LoadImage", "Photo", image="example.png")}
    service = make_middleware(simulator, prompt=prompt, environment=WITH_KEY)
    call = service.post("/run", {"seed": 6})
    assert call.status == 403 and call.error == "spending_not_allowed"
    images = service.post("/v1/images/generations", {"prompt": "a fox"})
    assert images.status == 403 and "--allow-spend" in images.json["error"]["message"]
    picture = base64.b64encode(draw(8, 8, 1, ["A"])).decode()
    assert service.post("/run", {"image": f"data:image/png;base64,{picture}"}).error == "spending_not_allowed"
    assert simulator.executions == {}
    assert ("POST", "/upload/image") not in simulator.requests

    arguments = ["--allow-spend", "--state", "none"]
    paying = make_middleware(simulator, *arguments, prompt=prompt, environment=WITH_KEY)
    assert paying.post("/run", {"seed": 7}).json["phase"] == "success"
    assert simulator.partner_keys == [KEY]


def test_the_key_is_not_in_the_state_file(simulator: Any, make_middleware: Make, tmp_path: Any) -> None:
    state = tmp_path / "state.sqlite3"
    arguments = ["--allow-spend", "--state", str(state)]
    service = make_middleware(simulator, *arguments, prompt=PAID, environment=WITH_KEY)
    service.end(service.start())
    body = {"prompt": PAID, "extra_data": {"api_key_comfy_org": KEY + "-of-a-client"}}
    service.end(service.post("/prompt", body).json["prompt_id"])
    assert service.stop() == 0 and len(simulator.partner_keys) == 1  # the second run is cached
    with contextlib.closing(sqlite3.connect(str(state))) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        cells = [cell for name in tables for row in connection.execute(f"SELECT * FROM {name}") for cell in row]
    texts = [unpack(cell) for cell in cells]
    assert any("PartnerImage" in text for text in texts)
    assert not any(KEY in text for text in texts)


def test_the_service_sends_the_key_with_allow_spend_and_shows_it_nowhere(simulator: Any, make_middleware: Make) -> None:
    service = make_middleware(simulator, "--allow-spend", prompt=PAID, environment=WITH_KEY)
    reader = service.events()
    prompt_id = service.start()
    service.end(prompt_id)
    seen = reader.until(lambda name, data: name == "run" and data["over"])
    assert simulator.partner_keys == [KEY]
    shown = [service.get(path).body.decode() for path in ("/runs", "/runs/" + prompt_id, "/status", "/workflow")]
    assert KEY not in "".join(shown) + json.dumps(seen) + service.out.getvalue()


def test_a_key_of_the_client_passes_and_wins(simulator: Any, make_middleware: Make) -> None:
    """Who brings the key decides to spend."""
    service = make_middleware(simulator, prompt=PAID, environment=WITH_KEY)
    body = {"prompt": PAID, "extra_data": {"api_key_comfy_org": "key-of-the-client"}}
    answer = service.post("/prompt", body)
    assert answer.status == 200
    service.end(answer.json["prompt_id"])
    assert simulator.partner_keys == ["key-of-the-client"]


def test_the_service_explains_the_login_error_where_there_is_no_key(simulator: Any, make_middleware: Make) -> None:
    service = make_middleware(simulator, prompt=PAID)
    ended = service.end(service.start())
    assert ended["phase"] == "error"
    assert any("COMFY_API_KEY" in hint for hint in ended["failure"]["hints"])
    wait_until(lambda: "COMFY_API_KEY" in service.out.getvalue(), what="the hint on the console")
