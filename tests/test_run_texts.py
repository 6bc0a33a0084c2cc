"""Stories of texts that are drawn and of names that are dated, for each run anew."""

from __future__ import annotations

import copy
import datetime
import functools
import json
import os
import random
import re
from typing import Any, Callable, Dict, List

import pytest
from served import Middleware, submitted
from support import ROOT, Outcome, node, run

from comfyui_runner.extras.dynamic_texts import choose_from_dynamic_prompt

Json = Dict[str, Any]
Make = Callable[..., Any]

CHOICES = "a {red|blue|green|white|black|brown} {fox|cat|dog|owl|hen} in {May|June|July}"
#: A picture that is dated, and a text.
API: Json = {
    "1": node("EmptyImage", width=8, height=8, batch_size=1, color=0),
    "2": node("SaveImage", "Save", filename_prefix="%date:yyyy-MM-dd%/a", images=["1", 0]),
    "3": node("TextOut", "Words", text=CHOICES),
}
DATED = re.compile(r"\d{4}-\d\d-\d\d/a").fullmatch


@pytest.fixture
def ui() -> Json:
    """The example in UI format, with choices in its text and a date in its name."""
    with open(os.path.join(ROOT, "workflow.json"), encoding="utf-8") as file:
        workflow: Json = json.load(file)
    values = {each["id"]: each["widgets_values"] for each in workflow["nodes"] if "widgets_values" in each}
    values[2][0], values[7][0] = CHOICES, "%date:yyyy-MM-dd%/a"
    values[4][:2] = [64, 64]
    values[5][2] = 1
    return workflow


def go(simulator: Any, *arguments: str) -> Outcome:
    result = run("--server", simulator.url, "--yes", "--json", *arguments)
    assert result.status == 0, result.err
    return result


def texts_of(simulator: Any) -> List[str]:
    return [prompt["2"]["inputs"]["text"] for prompt in submitted(simulator)]


def names_of(simulator: Any, node_id: str = "2") -> List[str]:
    return [prompt[node_id]["inputs"]["filename_prefix"] for prompt in submitted(simulator)]


def read(path: Any) -> Any:
    with open(path, encoding="utf-8") as file:
        return json.load(file)


# -- single shot and batches -----------------------------------------------------------------------


def test_repeat_draws_a_text_for_each_run_and_records_the_number(
    simulator: Any, workflow_file: Make, ui: Json, tmp_path: Any
) -> None:
    manifest = tmp_path / "m.jsonl"
    result = go(simulator, workflow_file(ui), "--repeat", "4", "--in-flight", "1", "--manifest", str(manifest))
    lines = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    assert len({line["draw"] for line in lines}) == 4
    drawn = [choose_from_dynamic_prompt(CHOICES, random.Random(line["draw"])) for line in lines]
    assert texts_of(simulator) == drawn == [line["texts"]["2.text"] for line in lines]
    assert all(DATED(name) for name in names_of(simulator, "7"))
    for event in ("submitted", "row"):
        reports = [each for each in result.events if each["event"] == event]
        assert [(each["draw"], each["texts"]) for each in reports] == [(line["draw"], line["texts"]) for line in lines]


def test_a_record_has_what_was_drawn_and_runs_again_with_the_same_texts(
    simulator: Any, workflow_file: Make, ui: Json, tmp_path: Any
) -> None:
    path = str(tmp_path / "run.json")
    result = go(simulator, workflow_file(ui), "--save-run", path)
    record = read(path)
    assert (record["draw"], record["texts"]) == (result.event("submitted")["draw"], result.event("submitted")["texts"])
    assert record["texts"]["2.text"] == choose_from_dynamic_prompt(CHOICES, random.Random(record["draw"]))
    again = go(simulator, path)
    first, second = submitted(simulator)
    assert first == second and "{" not in texts_of(simulator)[0]
    assert again.event("submitted")["texts"] == {}


def test_a_person_reads_what_was_drawn(simulator: Any, workflow_file: Make, ui: Json) -> None:
    result = run("--server", simulator.url, "--yes", workflow_file(ui))
    assert f"Texts: 2.text={texts_of(simulator)[0]}, 7.filename_prefix=" in result.out


def test_an_export_is_a_finished_prompt(simulator: Any, workflow_file: Make, ui: Json, tmp_path: Any) -> None:
    path = str(tmp_path / "api.json")
    go(simulator, workflow_file(ui, "ui.json"), "--export-api", path)
    prompt = read(path)
    assert "{" not in prompt["2"]["inputs"]["text"] and DATED(prompt["7"]["inputs"]["filename_prefix"])


def test_texts_can_be_read_in_what_is_written(simulator: Any, workflow_file: Make, tmp_path: Any) -> None:
    """Not as \\u72d0: people look for a picture by the words that made it."""
    path = workflow_file(API)
    files = [str(tmp_path / name) for name in ("run.json", "api.json", "m.jsonl")]
    words = ("--set", "3.text=狐 Füchse")
    go(simulator, path, *words, "--save-run", files[0])
    go(simulator, path, *words, "--export-api", files[1])
    rows = tmp_path / "rows.csv"
    rows.write_text("3.text\n狐 Füchse\n", "utf-8")
    go(simulator, path, "--batch", str(rows), "--manifest", files[2])
    for name in files:
        with open(name, encoding="utf-8") as file:
            text = file.read()
        assert "狐 Füchse" in text, name
        has_lines = '\n  "' in text
        assert has_lines == name.endswith(".json")  # a line for each row, and one for each field


def test_a_file_in_api_format_is_dated_and_its_braces_stay(simulator: Any, workflow_file: Make) -> None:
    result = go(simulator, workflow_file(API))
    (name,) = names_of(simulator)
    assert DATED(name) and result.event("submitted")["texts"] == {"2.filename_prefix": name}
    assert submitted(simulator)[0]["3"]["inputs"]["text"] == CHOICES


def test_names_that_are_set_are_dated_in_single_runs_and_in_batches(
    simulator: Any, workflow_file: Make, tmp_path: Any
) -> None:
    path = workflow_file(API)
    go(simulator, path, "--set", "2.filename_prefix=%date:yyyy%-%date:MM%-01/a")
    rows = tmp_path / "rows.csv"
    rows.write_text(
        "2.filename_prefix,1.color\n%date:yyyy-MM-dd%/a,1\n%date:yyyy%-02-%EmptyImage.color%3/a,2\n", "utf-8"
    )
    go(simulator, path, "--batch", str(rows), "--in-flight", "1")
    names = names_of(simulator)
    assert len(names) == 3 and all(DATED(name) for name in names)
    assert names[0].endswith("-01/a") and names[2].endswith("-02-23/a")


# -- continuous mode -------------------------------------------------------------------------------


@pytest.fixture
def comfyui(simulator: Any) -> Any:
    """A ComfyUI that has seen no other prompts."""
    return simulator


@pytest.fixture
def ui_service(make_middleware: Make, comfyui: Any, ui: Json) -> Middleware:
    service: Middleware = make_middleware(comfyui, prompt=ui)
    return service


def test_each_run_of_the_service_draws_and_the_held_text_stays_open(ui_service: Middleware, comfyui: Any) -> None:
    runs = [ui_service.end(ui_service.start()) for _ in range(3)]
    posted = ui_service.post("/prompt")  # without a body: the held workflow
    assert posted.status == 200
    runs.append(ui_service.end(posted.json["prompt_id"]))
    assert [each["texts"]["2.text"] for each in runs] == texts_of(comfyui)
    assert len({each["draw"] for each in runs}) == 4
    for each in runs:
        assert each["texts"]["2.text"] == choose_from_dynamic_prompt(CHOICES, random.Random(each["draw"]))
    held = ui_service.get("/workflow").json
    assert held["prompt"]["2"]["inputs"]["text"] == CHOICES and held["draws"] == ["2.text"]
    assert held["revision"] == 1 and ui_service.get("/status").json["workflow"]["changed"] is False


def test_the_date_is_that_of_the_day_on_which_a_run_starts(ui_service: Middleware, comfyui: Any) -> None:
    for day in (1, 2):
        ui_service.service.held.clock = functools.partial(datetime.datetime, 2026, 3, day)
        ui_service.end(ui_service.start())
    assert names_of(comfyui, "7") == ["2026-03-01/a", "2026-03-02/a"]


def test_an_edit_takes_the_place_of_the_text_that_was_drawn(ui_service: Middleware, comfyui: Any) -> None:
    ui_service.post("/update/prompt", {"node_id": "2", "text": "https://a/b {c}"})
    assert ui_service.get("/workflow").json["draws"] == []
    run = ui_service.end(ui_service.start())
    assert run["draw"] is None and texts_of(comfyui)[-1] == "https://a/b {c}"
    ui_service.post("/update/prompt", {"node_id": "2", "text": "{hen|hen}"})
    assert ui_service.get("/workflow").json["draws"] == ["2.text"]
    ui_service.end(ui_service.start())
    assert texts_of(comfyui)[-1] == "hen"


def test_what_the_service_holds_can_be_held_again(ui_service: Middleware, comfyui: Any) -> None:
    """So does Undo on the page."""
    held = ui_service.get("/workflow").json
    ui_service.hold(API)
    assert ui_service.get("/workflow").json["draws"] == []
    ui_service.hold(held)
    assert ui_service.get("/workflow").json["draws"] == ["2.text"]
    ui_service.end(ui_service.start())
    assert "{" not in texts_of(comfyui)[-1]


def test_a_prompt_in_the_body_passes_as_it_came(ui_service: Middleware, comfyui: Any) -> None:
    prompt = copy.deepcopy(API)
    prompt["2"]["inputs"]["filename_prefix"] = "%date:yyyy%"
    answer = ui_service.post("/prompt", {"prompt": prompt})
    run = ui_service.end(answer.json["prompt_id"])
    assert (run["draw"], run["texts"]) == (None, {})
    assert submitted(comfyui)[-1]["2"]["inputs"]["filename_prefix"] == "%date:yyyy%"
    assert submitted(comfyui)[-1]["3"]["inputs"]["text"] == CHOICES
