"""Stories of the page of continuous mode: a real Chromium, the service in a process of its own, the simulator.

What pages of others may do is tried in Firefox as well. PAGE_SHOTS=FOLDER keeps the screenshots.
"""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import functools
import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

import pytest
import requests
from browsers import CHROMIUM, FIREFOX, require_browser
from firefox import start_firefox
from support import ROOT, SCRIPT, copy_with_crlf, node, slow_prompt, wait_until

from comfyui_runner.comfyui import START_COMFYUI_THERE
from comfyui_runner.http_failures import CREDENTIALS_REMEDY, LOGIN_REMEDY
from comfyui_runner.outputs import Output, view_path
from comfyui_runner.simulator import Simulator, draw, measure
from comfyui_runner.state import Phase
from comfyui_runner.state_file import open_state_file
from comfyui_runner.stored_state import StoredRun

pytestmark = pytest.mark.long
playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
expect = playwright.expect

Json = Dict[str, Any]

PNG = draw(96, 64, 5, ["CAT"])
HOSTILE = '<img src=x onerror="window.hacked = 1"><script>window.hacked = 2</script>'

with open(os.path.join(ROOT, "workflow_api.json"), encoding="utf-8") as file:
    #: A checkpoint, two texts, a sampler, a picture that is saved.
    TEXTS: Json = json.load(file)
TEXTS["4"]["inputs"].update(width=256, height=192)
TEXTS["5"]["inputs"].update(steps=10)

LOADER: Json = {
    "1": node("LoadImage", "Photo", image="example.png"),
    "2": node("SaveImage", "Save", filename_prefix="loaded", images=["1", 0]),
}

#: The field of the positive text, and of the sampler's inputs, in TEXTS.
TEXT, SAMPLER = "#field-2-text", "#field-5-"


# ------------------------------------------------------------------------------------------------
# A browser, the service, and what ComfyUI was asked for
# ------------------------------------------------------------------------------------------------


def require_node_package(name: str) -> str:
    """The folder of a package that tests/run.py installs by npm. In CI its absence is a failure."""
    path = os.path.join(ROOT, "tests", "node_modules", name)
    if not os.path.isdir(path):
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no {name}: tests/run.py --long installs it by npm")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium without a window."""
    path = require_browser(CHROMIUM)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONASYNCIODEBUG", raising=False)  # it is for our loops
        starting = playwright.sync_playwright()
        play = starting.__enter__()
    try:
        chromium = play.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        yield chromium
        chromium.close()
    finally:
        starting.__exit__()


class Service:
    """The program in continuous mode as a process of its own, that can be killed and started again."""

    def __init__(self, folder: Any, simulator: Any, prompt: Json, *arguments: str, script: str = SCRIPT) -> None:
        self.simulator, self.port, self._script = simulator, 0, script
        self.held, self._console = folder / "held.json", folder / "console.txt"
        self.held.write_text(json.dumps(prompt), encoding="utf-8")
        self._arguments = ["--mode", "continuous", "--server", simulator.url, *arguments, str(self.held)]
        self._process: Optional[subprocess.Popen[bytes]] = None

    @property
    def url(self) -> str:
        return "http://127.0.0.1:%d" % self.port

    @property
    def console(self) -> str:
        """What it wrote since it was started."""
        return str(self._console.read_text("utf-8"))

    def start(self) -> None:
        """Starts it, on the port that it had before."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("COMFYUI_")}
        environment.pop("PYTHONASYNCIODEBUG", None)
        with open(self._console, "wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, self._script, *self._arguments, "--port", str(self.port)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=environment,
            )
        address = re.compile(r"Open http://[\d.]+:(\d+) in a browser")
        process = self._process
        wait_until(lambda: address.search(self.console) or process.poll() is not None, 20.0, "the service's start")
        found = address.search(self.console)
        assert found, self.console
        self.port = int(found[1])

    def kill(self) -> None:
        """Ends it without a word, as a power cut does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        """Ends it by SIGTERM; it must leave in order."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                assert self._process.wait(20) == 0, self.console
            finally:
                self.kill()
            assert "Traceback" not in self.console, self.console

    def get(self, path: str) -> Any:
        answer = requests.get(self.url + path, timeout=10)
        answer.raise_for_status()
        return answer.json()

    def edit(self, node_id: str, **inputs: Any) -> None:
        """An edit by somebody with curl."""
        body = {"node_id": node_id, "inputs": inputs}
        requests.post(self.url + "/update/inputs", json=body, timeout=10).raise_for_status()

    def value(self, node_id: str, name: str) -> Any:
        """An input of the held workflow."""
        return self.get("/workflow")["prompt"][node_id]["inputs"][name]

    def phases(self) -> List[str]:
        """How its runs are, the newest first."""
        return [run["phase"] for run in self.get("/runs")["runs"]]


@pytest.fixture(scope="module")
def later() -> Iterator[Callable[[Callable[[], None]], Any]]:
    """Does what ends a story while the next one begins; what fails there fails at the end."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        given: List[concurrent.futures.Future[None]] = []
        yield lambda work: given.append(pool.submit(work))
    for each in given:
        each.result()


@pytest.fixture
def make_service(later: Any, tmp_path: Any) -> Iterator[Callable[..., Service]]:
    """Starts services, each on a simulator that sends previews."""
    started = []

    def make(prompt: Json, *arguments: str, connected: bool = True, script: str = SCRIPT, **options: Any) -> Service:
        made = Service(tmp_path, Simulator(previews=True, **options).start(), prompt, *arguments, script=script)
        started.append(made)
        if not connected:
            made.simulator.crash()
        made.start()
        return made

    def end(service: Service) -> None:
        try:
            service.end()
        finally:
            service.simulator.stop()

    yield make
    for each in started:
        later(lambda each=each: end(each))


def prompts(simulator: Any) -> List[Json]:
    """The prompts that reached ComfyUI and were accepted, the oldest first."""
    life = simulator._server.life
    running, pending = life.snapshot()
    with life.lock:
        done = [entry["prompt"][2] for entry in life.history.values()]
    return done + [job.prompt for job in (*running, *pending)]


def post_elsewhere(simulator: Any, prompt: Json) -> str:
    """Somebody else's prompt: its prompt_id."""
    body = {"prompt": prompt, "client_id": "somebody else"}
    answer = requests.post(simulator.url + "/prompt", json=body, timeout=10)
    return str(answer.json()["prompt_id"])


def phase_elsewhere(simulator: Any, prompt_id: str) -> str:
    """Where a prompt is by ComfyUI's own word."""
    life = simulator._server.life
    running, pending = life.snapshot()
    if any(job.prompt_id == prompt_id for job in running):
        return "running"
    if any(job.prompt_id == prompt_id for job in pending):
        return "pending"
    with life.lock:
        return str(life.history[prompt_id]["status"]["status_str"]) if prompt_id in life.history else "gone"


class Visit(NamedTuple):
    """What pages of one visit asked for and complained of."""

    foreign: List[str]
    complaints: List[str]


@pytest.fixture
def visit(browser: Any, make_service: Callable[..., Service]) -> Iterator[Callable[..., Any]]:
    """Opens the page in a context of its own, or beside another page of it.

    At the end no page may have asked for anything of another origin, nor have complained in the console: what a
    Content-Security-Policy refuses is among them, and an exception that nobody caught.
    """
    contexts, seen = [], Visit([], [])

    def watch(page: Any, url: str) -> None:
        own = (url + "/", "data:", "blob:" + url)

        def watch_request(request: Any) -> None:
            if not request.url.startswith(own):
                seen.foreign.append(request.url)

        def watch_console(message: Any) -> None:
            # an answer of 400 or none at all is shown there as well, and is what some stories are about
            is_of_a_story = message.text.startswith("Failed to load resource")
            if message.type in ("error", "warning") and not is_of_a_story:
                seen.complaints.append(message.text)

        page.on("request", watch_request)
        page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        page.on("console", watch_console)

    def open_page(service: Service, beside: Any = None, ready: bool = True, **options: Any) -> Any:
        if beside is None:
            contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options}))
            contexts[-1].set_default_timeout(10_000)
        page = (beside.context if beside else contexts[-1]).new_page()
        watch(page, service.url)
        page.goto(service.url + "/")
        if ready:
            # quicker than expect(), which looks at ever longer intervals
            wait_until(lambda: "ComfyUI 0." in page.locator("#server").text_content(), what="ComfyUI")
            wait_until(lambda: page.locator("[data-input]").count(), what="the form")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert seen == Visit([], [])


@pytest.fixture
def shot(tmp_path: Any) -> Callable[..., None]:
    """Takes a screenshot; in both schemes where somebody wants to look at them."""
    folder = os.environ.get("PAGE_SHOTS") or str(tmp_path)
    os.makedirs(folder, exist_ok=True)

    def take(page: Any, name: str, **options: Any) -> None:
        for scheme in ("dark", "light") if "PAGE_SHOTS" in os.environ else ("light",):
            page.emulate_media(color_scheme=scheme)
            page.screenshot(path=os.path.join(folder, "%s_%s.png" % (name, scheme)), animations="disabled", **options)

    return take


def phone(**options: Any) -> Json:
    """A phone 360 px wide."""
    return {
        "viewport": {"width": 360, "height": 740}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True,
        **options,
    }  # fmt: skip


def error(page: Any, field: str) -> Any:
    """The words beside a field, "5-steps"."""
    return page.locator("#error-" + field)


def alerts(page: Any) -> Any:
    return page.locator("#alert")


def state(page: Any) -> Any:
    return page.locator("#state")


def run(page: Any) -> None:
    page.get_by_role("button", name="Run", exact=True).click()


def holds(field: Any, value: str) -> None:
    """Comes back when a field has this value; expect() looks at ever longer intervals."""
    wait_until(lambda: field.input_value() == value, what="the value %r" % value)


def width_of(picture: Any) -> int:
    """The width that the picture itself has; 0 until it is loaded."""
    return int(picture.evaluate("element => element.naturalWidth"))


def loaded(picture: Any, width: int) -> None:
    """Comes back when the picture is shown."""
    expect(picture).to_be_visible()
    wait_until(lambda: width_of(picture) == width, what="the picture")


def finished(page: Any, figures: int = 1) -> None:
    """Comes back when a run is done and its outputs are shown."""
    wait_until(lambda: "Done" in state(page).text_content(), what="the end of the run")
    wait_until(lambda: page.locator("#outputs figure").count() == figures, what="the outputs")


def drop_file(page: Any, target: Any, path: Any) -> None:
    """A file dragged from the desktop and let go over ``target``: trusted events, as the browser itself makes them."""
    target.scroll_into_view_if_needed()
    box = target.bounding_box()
    data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
    session = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send(
            "Input.dispatchDragEvent",
            {"type": kind, "x": box["x"] + box["width"] / 2, "y": box["y"] + 20, "data": data},
        )
    session.detach()


# ------------------------------------------------------------------------------------------------
# Edits
# ------------------------------------------------------------------------------------------------


def test_a_text_that_is_typed_is_held_and_runs(make_service: Any, visit: Any, shot: Any) -> None:
    service = make_service(TEXTS)
    page = visit(service)
    shot(page, "first")
    page.get_by_label("Positive Prompt").fill("a fox in the snow, 雪 🦊")
    wait_until(lambda: service.value("2", "text") == "a fox in the snow, 雪 🦊", what="the edit")
    expect(page.locator("#file")).to_have_text("held.json (changed)")
    run(page)
    finished(page)
    (prompt,) = prompts(service.simulator)
    assert prompt["2"]["inputs"]["text"] == "a fox in the snow, 雪 🦊"
    assert ("POST", "/prompt") in service.simulator.requests


def test_run_takes_along_what_was_typed_a_moment_before_and_two_clicks_run_once(make_service: Any, visit: Any) -> None:
    service = make_service(TEXTS)
    page = visit(service)
    page.locator(TEXT).fill("typed")
    page.locator(SAMPLER + "cfg").fill("3.5")

    def late(route: Any) -> None:
        """The answer comes when the run is over: its events have overtaken it."""
        answer = route.fetch()
        wait_until(lambda: "Done" in page.locator("#runs").text_content(), what="the end of the run")
        route.fulfill(response=answer)

    page.route("**/queue", late)
    with page.expect_response("**/queue"):
        page.locator("#run").dblclick()
    expect(page.locator("#run")).to_have_attribute("aria-busy", "false")
    finished(page)
    (prompt,) = prompts(service.simulator)
    assert (prompt["2"]["inputs"]["text"], prompt["5"]["inputs"]["cfg"]) == ("typed", 3.5)
    assert service.phases() == ["success"]


def test_the_dice_draws_a_seed_for_every_run_and_a_number_is_kept(make_service: Any, visit: Any) -> None:
    service = make_service(TEXTS)
    page = visit(service)
    seed = page.locator(SAMPLER + "seed")
    expect(seed).to_have_value("20240817")
    page.get_by_role("button", name=re.compile("^Random seed")).click()
    expect(seed).to_have_value("")
    expect(seed).to_have_attribute("placeholder", "random")
    expect(page.locator("#note-5-seed")).to_contain_text("A new one for every run.")
    run(page)
    finished(page)
    run(page)
    expect(page.locator("#runs li")).to_have_count(2)
    finished(page)
    first, second = (prompt["5"]["inputs"]["seed"] for prompt in prompts(service.simulator))
    assert len({first, second, 20240817}) == 3
    page.get_by_role("button", name="Use %d" % second).click()  # this one was liked
    expect(seed).to_have_value(str(second))
    wait_until(lambda: not seed_is_random(service), what="the fixed seed")
    assert service.value("5", "seed") == second
    seed.fill("18446744073709551615")  # more than a number of JavaScript holds
    wait_until(lambda: service.value("5", "seed") == 2**64 - 1, what="the seed")
    page.reload()
    expect(seed).to_have_value("18446744073709551615")


def seed_is_random(service: Service) -> bool:
    (seed,) = [field for field in service.get("/workflow")["fields"] if field["kind"] == "seed"]
    return bool(seed["random"])


def test_settings_are_set_and_what_is_out_of_range_is_said_beside_its_field(
    make_service: Any, visit: Any, shot: Any
) -> None:
    service = make_service({**TEXTS, "8": node("SlowProgress", "Slow", steps=3, seconds=0.0, seed=1, preview=False)})
    page = visit(service)
    before = service.get("/workflow")["prompt"]
    steps = page.locator(SAMPLER + "steps")
    steps.fill("0")
    expect(error(page, "5-steps")).to_have_text("Allowed: 1 to 10000.")
    expect(steps).to_have_attribute("aria-invalid", "true")
    page.locator(SAMPLER + "seed").fill("seven")
    expect(error(page, "5-seed")).to_contain_text("whole number")
    run(page)
    expect(alerts(page).locator("span")).to_have_text("Not started. See Seed, Steps.")
    expect(page.locator(SAMPLER + "seed")).to_be_focused()
    shot(page, "out_of_range")
    assert service.get("/workflow")["prompt"] == before and service.phases() == []
    steps.fill("12")
    expect(error(page, "5-steps")).to_have_text("")
    steps.press("ArrowUp")
    page.get_by_role("button", name="More: Cfg").click()
    page.locator(SAMPLER + "sampler_name").select_option("euler")
    page.locator("#more > summary").click()
    page.get_by_role("switch", name="Preview").check()
    wait_until(lambda: service.value("8", "preview") is True, what="the switch")
    wait_until(lambda: service.value("5", "cfg") == 7.1, what="the button")
    assert (service.value("5", "steps"), service.value("5", "sampler_name")) == (13, "euler")


def test_a_run_shows_what_was_drawn_and_undo_brings_choices_back(make_service: Any, visit: Any, tmp_path: Any) -> None:
    with open(os.path.join(ROOT, "workflow.json"), encoding="utf-8") as file:
        workflow = json.load(file)
    values = {each["id"]: each.get("widgets_values") for each in workflow["nodes"]}
    values[2][0], values[4][:2], values[5][2] = "a {red|blue} fox", [64, 64], 1
    service = make_service(workflow)
    page = visit(service)
    expect(page.locator(TEXT)).to_have_value("a {red|blue} fox")
    page.get_by_role("button", name="Run").click()
    used = re.compile("^Seed: 20240817\\s+Drawn: a (red|blue) fox$")
    expect(page.locator("#seeds")).to_have_text(used, timeout=15_000)
    expect(page.locator(TEXT)).to_have_value("a {red|blue} fox")
    other = tmp_path / "other.json"
    other.write_text(json.dumps(LOADER), encoding="utf-8")
    page.locator("#load-file").set_input_files(str(other))
    expect(alerts(page)).to_contain_text("other.json is loaded.")
    page.get_by_role("button", name="Undo").click()
    expect(alerts(page)).to_contain_text("Undone.")
    assert service.get("/workflow")["draws"] == ["2.text"]


def test_any_workflow_gets_its_form(make_service: Any, visit: Any, tmp_path: Any) -> None:
    service = make_service(TEXTS)
    page = visit(service)
    other = tmp_path / "other.json"
    other.write_text(json.dumps(LOADER), encoding="utf-8")
    page.get_by_role("button", name=re.compile("^Random seed")).click()
    expect(page.locator("#note-5-seed")).to_contain_text("A new one for every run.")
    page.get_by_label("Menu").click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Load workflow").click()
    chooser.value.set_files(str(other))
    expect(alerts(page)).to_contain_text("other.json is loaded.")
    expect(page.get_by_role("group", name="Photo")).to_be_visible()
    expect(page.locator(TEXT)).to_have_count(0)
    assert service.get("/workflow")["prompt"] == LOADER
    expect(page.locator("#file")).to_have_text("other.json")
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(TEXT)).to_be_visible()
    expect(page.locator("#file")).to_have_text("held.json")
    assert service.get("/workflow")["prompt"] == TEXTS and seed_is_random(service)
    other.write_text(json.dumps({"1": node("Nope", "Mine")}), encoding="utf-8")
    page.locator("#load-file").set_input_files(str(other))
    expect(alerts(page)).to_contain_text("does not have the class Nope")
    expect(page.locator(TEXT)).to_be_visible()
    missing = {**TEXTS, "1": node("CheckpointLoaderSimple", "Model", ckpt_name="not here.safetensors")}
    other.write_text(json.dumps(missing), encoding="utf-8")
    page.locator("#load-file").set_input_files(str(other))
    expect(alerts(page)).to_contain_text("other.json is loaded.")
    expect(alerts(page)).to_contain_text("not here.safetensors")
    assert service.get("/workflow")["prompt"] == missing
    page.get_by_role("button", name="Undo").click()
    expect(alerts(page)).to_contain_text("Undone.")
    page.locator(TEXT).fill("changed")
    wait_until(lambda: service.value("2", "text") == "changed", what="the edit")
    page.get_by_label("Menu").click()
    page.get_by_role("button", name="Reset to the file").click()
    expect(page.locator(TEXT)).to_have_value(TEXTS["2"]["inputs"]["text"])


# ------------------------------------------------------------------------------------------------
# Pictures to load
# ------------------------------------------------------------------------------------------------


def test_a_picture_is_dropped_on_its_field_and_runs(make_service: Any, visit: Any, shot: Any, tmp_path: Any) -> None:
    service = make_service(LOADER)
    page = visit(service)
    zone = page.get_by_role("group", name="Photo").locator(".drop")
    loaded(zone.locator("> img"), 512)
    cat = tmp_path / "cat.png"
    cat.write_bytes(PNG)
    drop_file(page, zone, cat)
    expect(page.locator("#note-1-image")).to_have_text("Loaded.")
    loaded(zone.locator("> img"), 96)
    shot(page, "upload")
    assert service.value("1", "image") == "cat.png"
    with open(os.path.join(service.simulator.folder("input"), "cat.png"), "rb") as file:
        assert file.read() == PNG
    run(page)
    finished(page)
    loaded(page.locator("#outputs img"), 96)
    (prompt,) = prompts(service.simulator)
    assert prompt["1"]["inputs"]["image"] == "cat.png"
    page.get_by_role("combobox", name="On the server: Photo").select_option(label="example.png")
    wait_until(lambda: service.value("1", "image") == "example.png", what="the choice")


def test_a_picture_dropped_anywhere_finds_its_field_and_the_page_stays(
    make_service: Any, visit: Any, tmp_path: Any
) -> None:
    service = make_service({**TEXTS, "8": LOADER["1"], "9": node("PreviewImage", images=["8", 0])})
    page = visit(service)
    cat = tmp_path / "my cat.png"
    cat.write_bytes(PNG)
    drop_file(page, page.locator("#results"), cat)
    expect(page.locator("#note-8-image")).to_have_text("Loaded.")
    assert (page.url, service.value("8", "image")) == (service.url + "/", "my cat.png")
    sound = tmp_path / "sound.wav"
    sound.write_bytes(b"RIFF")
    drop_file(page, page.locator("#results"), sound)
    expect(alerts(page)).to_have_text(re.compile("no field for that file"))


def test_a_picture_is_pasted(make_service: Any, visit: Any) -> None:
    service = make_service(LOADER)
    page = visit(service, permissions=["clipboard-read", "clipboard-write"])
    page.evaluate(
        """async (url) => navigator.clipboard.write([
            new ClipboardItem({"image/png": await (await fetch(url)).blob()})])""",
        "view?filename=example.png&type=input",
    )
    page.keyboard.press("Control+V")
    expect(page.locator("#note-1-image")).to_have_text("Loaded.")
    name = service.value("1", "image")
    assert name != "example.png"
    assert measure(service.simulator.annotated(name))[:2] == (512, 512)


def test_a_picture_is_chosen_on_a_computer_and_taken_on_a_phone(make_service: Any, visit: Any, tmp_path: Any) -> None:
    service = make_service(LOADER)
    cat = tmp_path / "cat.png"
    cat.write_bytes(PNG)
    page = visit(service)
    expect(page.locator("input[capture]")).to_have_count(0)
    with page.expect_file_chooser() as chooser:
        page.get_by_text("Choose a picture").click()
    chooser.value.set_files(str(cat))
    expect(page.locator("#note-1-image")).to_have_text("Loaded.")
    assert service.value("1", "image") == "cat.png"
    hand = visit(service, **phone())
    camera = hand.get_by_label("Camera: Photo")
    assert (camera.get_attribute("capture"), camera.get_attribute("accept")) == ("environment", "image/*")
    taken = {"name": "IMG_0001.jpg.png", "mimeType": "image/png", "buffer": PNG}
    with hand.expect_file_chooser() as chooser:
        hand.get_by_text("Camera", exact=True).tap()
    chooser.value.set_files(taken)
    expect(hand.locator("#note-1-image")).to_have_text("Loaded.")
    wait_until(lambda: service.value("1", "image") == "IMG_0001.jpg.png", what="the picture")
    expect(page.locator(".drop > img")).to_have_attribute("alt", "Chosen: IMG_0001.jpg.png")  # the other page as well
    service.simulator.max_upload_size = 1000
    big = {"name": "big.png", "mimeType": "image/png", "buffer": PNG + bytes(100_000)}
    page.locator("#file-1-image").set_input_files(big)
    expect(error(page, "1-image")).to_contain_text("big.png was not loaded.")
    assert service.value("1", "image") == "IMG_0001.jpg.png"


# ------------------------------------------------------------------------------------------------
# Run and stop
# ------------------------------------------------------------------------------------------------


def test_a_run_waits_moves_previews_and_shows_its_picture(make_service: Any, visit: Any, shot: Any) -> None:
    service = make_service(TEXTS, step_seconds=0.15)
    page = visit(service)
    foreign = post_elsewhere(service.simulator, slow_prompt(steps=400, seconds=60.0))
    run(page)
    expect(state(page)).to_have_text("Waiting: 1 ahead")
    expect(page.locator("#progress-title")).to_have_text("Waiting: 1 ahead")
    service.simulator._server.life.interrupt(foreign)
    expect(state(page)).to_have_text("Running")
    overall = page.get_by_role("progressbar", name="Overall progress")
    sampler = page.get_by_role("progressbar", name="Progress of KSampler")
    seen = []
    for value in (2, 5):

        def has_reached(goal: int = 10 * value) -> bool:
            return int(sampler.get_attribute("aria-valuenow") or 0) >= goal

        wait_until(has_reached, what="a step")
        seen.append(int(overall.get_attribute("aria-valuenow")))
    assert 0 < seen[0] < seen[1] < 100
    expect(page.locator("#overall-text")).to_have_text("4 of 7 nodes")
    assert re.match(r"\d+% – held.json", page.title())
    loaded(page.get_by_role("img", name="Live preview"), 128)
    shot(page, "running")
    service.simulator.step_seconds = 0.0
    finished(page)
    picture = page.locator("#outputs img")
    loaded(picture, 256)
    shot(page, "finished")
    expect(page.locator("#progress")).to_be_hidden()
    with page.expect_download() as download:
        page.get_by_role("link", name=re.compile("^Download ComfyUI_00001_.png")).click()
    assert download.value.suggested_filename == "ComfyUI_00001_.png"
    output = os.path.join(service.simulator.folder("output"), "ComfyUI_00001_.png")
    with open(download.value.path(), "rb") as ours, open(output, "rb") as theirs:
        assert ours.read() == theirs.read()
    page.locator("#times summary").click()
    expect(page.locator("#times li").first).to_contain_text(re.compile(r"\d\.\d s"))


def test_earlier_runs_can_be_looked_at(make_service: Any, visit: Any) -> None:
    service = make_service(slow_prompt(steps=2, seconds=0.0))
    page = visit(service)
    for number in (1, 2, 3):
        page.locator("#field-1-seed").fill(str(number))
        run(page)
        expect(page.locator("#runs li")).to_have_count(number)
        finished(page)
    picture = page.locator("#outputs img")
    expect(picture).to_have_attribute("src", re.compile("slow_00003_"))
    page.locator("#runs li .show").last.click()
    expect(picture).to_have_attribute("src", re.compile("slow_00001_"))
    expect(page.locator("#runs li .show").last).to_have_attribute("aria-current", "true")
    loaded(picture, 64)
    page.get_by_role("button", name="Show the latest").click()
    expect(picture).to_have_attribute("src", re.compile("slow_00003_"))
    page.reload()
    expect(page.locator("#runs li")).to_have_count(3)
    loaded(page.locator("#outputs img"), 64)


def test_the_settings_of_an_earlier_run_come_back(make_service: Any, visit: Any, shot: Any) -> None:
    service = make_service(TEXTS)
    page = visit(service)
    page.locator(TEXT).fill("a red fox " + HOSTILE)
    page.locator(SAMPLER + "seed").fill("11")
    run(page)
    finished(page)
    expect(page.locator("#runs-end")).to_have_text("")
    page.locator(TEXT).fill("a blue fox")
    page.locator(SAMPLER + "seed").fill("22")
    page.locator(SAMPLER + "steps").fill("7")
    run(page)
    expect(page.locator("#runs li")).to_have_count(2)
    wait_until(lambda: service.phases() == ["success"] * 2, what="the end of the run")
    rows = page.locator("#runs li .show")
    expect(rows.first).to_contain_text(re.compile(r"a blue fox.*Done in .* s.*Seed: 22"))
    loaded(rows.first.locator("img"), 256)
    assert "preview=webp" in rows.first.locator("img").get_attribute("src")
    expect(page.locator("#differ")).to_be_hidden()  # those of the last run are in the form

    rows.last.click()
    expect(page.locator("#positive")).to_have_text("a red fox " + HOSTILE)
    expect(page.locator("#differences li")).to_have_count(3)
    expect(page.locator("#differences")).to_contain_text("Steps 10 now 7")
    shot(page, "earlier_run")
    page.get_by_role("button", name="Use these settings").click()
    wait_until(lambda: service.value("5", "steps") == 10, what="the settings")
    expect(alerts(page)).to_contain_text("The settings of that run are in the form.")
    assert (service.value("2", "text"), service.value("5", "seed")) == ("a red fox " + HOSTILE, 11)
    holds(page.locator(TEXT), "a red fox " + HOSTILE)
    expect(page.locator("#differ")).to_be_hidden()
    page.get_by_role("button", name="Undo").click()
    wait_until(lambda: service.value("5", "seed") == 22, what="the way back")
    wait_until(lambda: service.value("2", "text") == "a blue fox", what="the way back")

    page.locator("#times-to-run").fill("5")  # how often Run runs, not this button
    page.get_by_role("button", name="Run again with a new seed").click()
    expect(page.locator("#runs li")).to_have_count(3)
    wait_until(lambda: service.phases() == ["success"] * 3, what="the end of the run")
    expect(alerts(page).get_by_role("button", name="Undo")).to_be_visible()  # what was typed is not lost
    newest = prompts(service.simulator)[-1]
    assert newest["2"]["inputs"]["text"] == "a red fox " + HOSTILE
    assert newest["5"]["inputs"]["steps"] == 10 and newest["5"]["inputs"]["seed"] not in (11, 22)
    assert not page.evaluate("() => window.hacked")


def test_the_settings_of_a_run_of_another_workflow_bring_that_back(make_service: Any, visit: Any) -> None:
    service = make_service(slow_prompt(steps=2, seconds=0.0))
    page = visit(service)
    run(page)
    finished(page)
    requests.put(service.url + "/workflow", json=LOADER, timeout=10).raise_for_status()
    expect(page.locator("#file-1-image")).to_be_attached()
    page.locator("#runs li .show").click()
    page.get_by_role("button", name="Use these settings").click()
    expect(alerts(page)).to_contain_text("The workflow of that run is loaded.")
    assert service.get("/workflow")["prompt"]["1"]["class_type"] == slow_prompt()["1"]["class_type"]
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#file-1-image")).to_be_attached()


@pytest.mark.parametrize("width", [360, 768, 1440])
def test_pictures_are_looked_at_in_full_screen(make_service: Any, visit: Any, shot: Any, width: int) -> None:
    service = make_service(slow_prompt(steps=2, seconds=0.0))
    page = visit(service, has_touch=True, viewport={"width": width, "height": 800})
    for seed in ("1", "2", "3"):
        page.locator("#field-1-seed").fill(seed)
        run(page)
        expect(page.locator("#runs li")).to_have_count(int(seed))
        finished(page)
    about, viewer = page.locator("#viewer-about"), page.locator("#viewer")
    page.locator("#outputs figure a").first.click()
    expect(about).to_contain_text("1 of 3 · slow_00003_.png")
    loaded(page.locator("#viewer-picture"), 64)
    box = viewer.bounding_box()
    assert (box["width"], box["height"]) == (width, 800)
    page.keyboard.press("ArrowRight")
    expect(about).to_contain_text("2 of 3 · slow_00002_.png")
    shot(page, f"viewer_{width}")
    page.get_by_role("button", name="Older picture").click()
    expect(about).to_contain_text("3 of 3 · slow_00001_.png")
    expect(page.get_by_role("button", name="Older picture")).to_be_disabled()
    swipe(page, 80, 240)
    expect(about).to_contain_text("2 of 3 · slow_00002_.png")
    swipe(page, 240, 80)
    expect(about).to_contain_text("3 of 3 · slow_00001_.png")
    page.keyboard.press("Escape")
    expect(viewer).to_be_hidden()
    assert len(page.context.pages) == 1  # no tab was opened


def swipe(page: Any, start: int, end: int) -> None:
    """A finger that goes from one x to another."""
    session = page.context.new_cdp_session(page)
    for kind, x in (("touchStart", start), ("touchMove", (start + end) // 2), ("touchMove", end)):
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": 300}]})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    session.detach()


def test_a_picture_that_was_made_becomes_the_input(make_service: Any, visit: Any, shot: Any) -> None:
    service = make_service(LOADER)
    page = visit(service)
    run(page)
    finished(page)
    page.get_by_role("button", name="Use as input").click()
    wait_until(lambda: str(service.value("1", "image")).startswith("loaded_00001_"), what="the picture in the loader")
    expect(page.get_by_text("Loaded.")).to_be_visible()
    shot(page, "used_as_input")
    requests.put(
        service.url + "/workflow",
        json={**LOADER, "3": LOADER["1"], "4": node("PreviewImage", images=["3", 0])},
        timeout=10,
    )
    expect(page.get_by_role("button", name=re.compile("^Use in Photo"))).to_have_count(2)  # each loader has its own


def test_a_run_is_removed_from_the_list_of_every_tab(make_service: Any, visit: Any) -> None:
    service = make_service(slow_prompt(steps=2, seconds=0.0))
    page = visit(service)
    for seed in ("1", "2"):
        page.locator("#field-1-seed").fill(seed)
        run(page)
        finished(page)
    expect(page.locator("#runs li")).to_have_count(2)
    other = visit(service, beside=page)
    expect(other.locator("#runs li")).to_have_count(2)
    page.bring_to_front()
    page.locator("#runs li .show").last.click()
    page.get_by_role("button", name="Remove from the list").click()
    expect(page.locator("#runs li")).to_have_count(1)
    other.bring_to_front()
    expect(other.locator("#runs li")).to_have_count(1)
    assert service.phases() == ["success"]
    assert len(os.listdir(service.simulator.folder("output"))) == 2  # its picture stays


def store_runs(path: str, count: int) -> None:
    """A state file with runs that have ended, each with a picture that ComfyUI has."""
    file = open_state_file(path)
    for number in range(1, count + 1):
        output = Output("7", "Save", "image", f"old_{number}.png", "", "output")
        shown = {
            "prompt_id": f"id-{number}", "phase": "success", "over": True, "ahead": None, "nodes_done": 1,
            "nodes_total": 1, "message": "Done.", "wholly_cached": False, "created": float(number), "seconds": 2.0,
            "seeds": {"5.seed": number}, "positive": f"picture number {number}", "draw": None, "texts": {},
            "running": [], "nodes": [], "problems": [], "failure": None,
            "outputs": [{**output.to_json(), "url": view_path(output).lstrip("/")}],
        }  # fmt: skip
        run = StoredRun(number, f"id-{number}", float(number), Phase.SUCCESS, json.dumps(shown))
        file.add(run, kept=count)
    file.close()


def test_two_thousand_runs_are_scrolled_and_searched(make_service: Any, visit: Any, tmp_path: Any, shot: Any) -> None:
    store_runs(str(tmp_path / "held.runs.sqlite3"), 2000)
    service = make_service(TEXTS)
    page = visit(service)
    expect(page.locator("#runs li").first).to_contain_text("picture number 2000")
    assert page.locator("#runs li").count() <= 400  # the others come when they are scrolled to
    count_pictures = "() => document.querySelectorAll('#runs img[src]').length"
    wait_until(lambda: page.evaluate(count_pictures) > 0, what="a picture in view")
    assert page.evaluate(count_pictures) < 60  # only those that are in view

    asked: List[Any] = []  # thumbnails that are on their way
    page.route("**/view?*preview=webp*", lambda route: asked.append(route))
    page.locator("#runs li").nth(100).scroll_into_view_if_needed()

    def four_are_asked_for() -> bool:
        """After the page has seen what is in view; while that is asked, Playwright hands over the requests."""
        page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 50)))")
        return len(asked) == 4

    wait_until(four_are_asked_for, what="the first thumbnails")
    assert four_are_asked_for()  # no more than these, though more are in view
    asked.pop().continue_()
    wait_until(four_are_asked_for, what="another one in its place")
    for route in asked:  # it grows meanwhile
        route.continue_()
    page.unroute("**/view?*preview=webp*")

    def scroll_to_the_end() -> bool:
        page.locator("#runs li").last.scroll_into_view_if_needed()
        return bool(page.locator("#runs li").count() == 2000)

    wait_until(scroll_to_the_end, 60.0, what="the oldest run")
    expect(page.locator("#runs li").last).to_contain_text("picture number 1")
    seconds = page.evaluate("() => { const start = performance.now(); drawNow(); return performance.now() - start; }")
    assert seconds < 200  # on a machine that is busy
    page.locator("#find").fill("number 777")
    expect(page.locator("#runs li")).to_have_count(1)
    shot(page, "found")
    page.locator("#find").fill("nothing like it")
    expect(page.locator("#runs-end")).to_have_text("No runs match.")
    page.reload()
    page.locator("#find").fill("number 1")
    expect(page.locator("#runs li")).to_have_count(1111)  # on pages that were not scrolled to


def record_video(browser: Any) -> bytes:
    """A short WebM, made by the browser itself."""
    page = browser.new_page()
    try:
        url = page.evaluate(
            """() => new Promise((resolve) => {
                const canvas = document.createElement("canvas"), context = canvas.getContext("2d");
                const recorder = new MediaRecorder(canvas.captureStream(30), {mimeType: "video/webm;codecs=vp8"});
                const parts = [], paint = setInterval(() => {
                    context.fillStyle = `hsl(${performance.now() % 360} 90% 50%)`;
                    context.fillRect(0, 0, canvas.width, canvas.height);
                }, 20);
                recorder.ondataavailable = (event) => {
                    if (event.data.size > 0) parts.push(event.data);  // a busy machine has none at times
                    if (parts.length === 5) recorder.stop();
                };
                recorder.onstop = () => {
                    clearInterval(paint);
                    const reader = new FileReader();
                    reader.onload = () => resolve(reader.result);
                    reader.readAsDataURL(new Blob(parts));
                };
                recorder.start(100);
            })"""
        )
        return base64.b64decode(url.partition(",")[2])
    finally:
        page.close()


def test_pictures_that_came_over_the_socket_and_files_of_text_are_shown(make_service: Any, visit: Any) -> None:
    prompt = {
        "1": node("EmptyImage", width=24, height=16, batch_size=1, color=1),
        "2": node("SaveImageWebsocket", "Send", images=["1", 0]),
        "3": node("SimulatedOutput", "Table", ui=json.dumps({"files": [{"filename": "data.csv"}]})),
    }
    page = visit(make_service(prompt))
    run(page)
    finished(page, figures=2)
    loaded(page.locator("#outputs img"), 24)
    links = page.locator("#outputs figcaption a")
    assert sorted(link.get_attribute("download") for link in links.all()) == ["Send_00001.png", "data.csv"]
    assert all(page.request.get(link.evaluate("a => a.href")).ok for link in links.all())
    loaded(page.locator("#runs img"), 24)


def test_a_video_plays_sound_has_controls_and_a_text_is_read(
    make_service: Any, visit: Any, browser: Any, shot: Any
) -> None:
    files = {
        "images": [{"filename": "clip.webm", "subfolder": "", "type": "output"}], "animated": [True],
        "audio": [{"filename": "song.flac", "subfolder": "", "type": "output"}],
        "text": ["a caption\n" + HOSTILE],
    }  # fmt: skip
    service = make_service({"1": node("SimulatedOutput", "Out", ui=json.dumps(files))})
    page = visit(service)
    run(page)
    finished(page, figures=3)
    expect(page.locator("#outputs audio")).to_have_attribute("controls", "")
    expect(page.locator("#outputs pre")).to_have_text("a caption\n" + HOSTILE)
    with open(os.path.join(service.simulator.folder("output"), "clip.webm"), "wb") as file:
        file.write(record_video(browser))  # the simulator's own is a file of no content
    page = visit(service)  # in a browser that has not seen the other file
    video = page.locator("#outputs video")
    expect(video).to_have_attribute("controls", "")
    page.bring_to_front()  # a muted video in a page that is not seen is not played
    # A load that begins meanwhile ends play(), so it is asked for until the video has moved.
    play = """(video) => {
        video.muted = true;
        if (video.paused) video.play().catch(() => {});
        return video.currentTime;
    }"""
    wait_until(lambda: video.evaluate(play) > 0, what="the video")
    shot(page, "video")


def test_stop_cancels_ours_while_it_runs_and_nobody_elses(make_service: Any, visit: Any) -> None:
    service = make_service(slow_prompt(steps=400, seconds=60.0))
    page = visit(service)
    expect(page.locator("#stop")).to_be_disabled()
    run(page)
    expect(state(page)).to_have_text("Running")
    expect(page.get_by_text(re.compile(r"^\d+ of 400$"))).to_be_visible()
    foreign = post_elsewhere(service.simulator, slow_prompt(steps=400, seconds=60.0, seed=9))
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.locator("#runs li")).to_contain_text("Stopped")
    expect(state(page)).to_have_text(re.compile(r"^Stopped at .+, step \d+ of 400$"))
    expect(page.locator("#stop")).to_be_disabled()
    assert service.phases() == ["interrupted"]
    wait_until(lambda: phase_elsewhere(service.simulator, foreign) == "running", what="the other's run")


def test_several_runs_are_started_at_once_and_all_of_them_stopped(make_service: Any, visit: Any, shot: Any) -> None:
    service = make_service(slow_prompt(steps=400, seconds=60.0))
    page = visit(service)
    page.get_by_role("button", name="Random seed").click()
    page.get_by_label("How many runs").fill("4")
    run(page)
    expect(page.locator("#runs li")).to_have_count(4)
    expect(state(page)).to_have_text("Running")
    expect(page.locator("#waiting")).to_have_text("+3 waiting")
    assert len({each["1"]["inputs"]["seed"] for each in prompts(service.simulator)}) == 4
    shot(page, "several")
    page.get_by_role("button", name=re.compile("^Remove the run of")).first.click()
    expect(page.locator("#runs li").first).to_contain_text("Removed from the queue")
    assert service.phases()[1:] == ["queued", "queued", "running"]
    page.get_by_role("button", name="Stop all").click()
    expect(page.locator("#stop")).to_be_disabled()
    assert service.phases() == ["deleted", "deleted", "deleted", "interrupted"]  # none began when the first one stopped
    expect(page.get_by_role("button", name="Stop all")).to_be_hidden()


def test_the_page_says_who_else_is_in_comfyuis_queue(make_service: Any, visit: Any, shot: Any) -> None:
    service = make_service(slow_prompt())
    page = visit(service)
    others = page.locator("#others")
    expect(others).to_be_hidden()
    foreign = [
        post_elsewhere(service.simulator, slow_prompt(steps=400, seconds=60.0, seed=seed)) for seed in range(5, 8)
    ]
    expect(others).to_have_text("Others in ComfyUI's queue: 1 running, 2 waiting")
    run(page)
    expect(state(page)).to_have_text("Waiting: 3 ahead")
    expect(others).to_have_text("Others in ComfyUI's queue: 1 running, 2 waiting")
    shot(page, "others")
    service.simulator._server.life.delete(foreign[1])
    service.simulator._server.life.interrupt(foreign[0])
    expect(others).to_have_text("Others in ComfyUI's queue: 1 running")
    service.simulator._server.life.interrupt(foreign[2])
    expect(state(page)).to_contain_text("Done")
    expect(others).to_be_hidden()


def test_stop_takes_ours_off_the_queue_and_leaves_the_one_that_runs(make_service: Any, visit: Any) -> None:
    service = make_service(slow_prompt())
    page = visit(service)
    foreign = post_elsewhere(service.simulator, slow_prompt(steps=400, seconds=60.0))
    run(page)
    expect(state(page)).to_have_text("Waiting: 1 ahead")
    page.locator("#field-1-seed").fill("2")
    run(page)
    expect(page.locator("#runs li")).to_have_count(2)
    expect(page.locator("#waiting")).to_have_text("+1 waiting")
    page.get_by_role("button", name=re.compile("^Remove the run of")).click()  # the second, in the list
    expect(page.locator("#runs li").first).to_contain_text("Removed from the queue")
    page.locator("#stop").click()
    expect(page.locator("#runs li").last).to_contain_text("Removed from the queue")
    assert service.phases() == ["deleted", "deleted"]
    assert phase_elsewhere(service.simulator, foreign) == "running"


# ------------------------------------------------------------------------------------------------
# What goes wrong, in words
# ------------------------------------------------------------------------------------------------


def test_a_node_that_raises_is_named_with_its_words(make_service: Any, visit: Any, shot: Any) -> None:
    service = make_service({
        "1": node("EmptyImage", "Blank", width=64, height=64, batch_size=1, color=0),
        "2": node("FailNode", "Fragile", message="the moon is in the way", image=["1", 0]),
        "3": node("SaveImage", "Save", filename_prefix="never", images=["2", 0]),
    })  # fmt: skip
    page = visit(service)
    run(page)
    faults = page.locator("#faults")
    expect(faults).to_contain_text("Fragile")
    expect(faults).to_contain_text("the moon is in the way")
    expect(state(page)).to_have_text("Failed at Fragile after 0.0 s")
    expect(error(page, "2-message")).to_have_text("the moon is in the way")  # its only field
    faults.locator("summary").click()
    expect(faults.locator("pre")).to_contain_text("ValueError")
    shot(page, "failed")


def test_a_prompt_that_comfyui_refuses_is_explained_beside_its_field(make_service: Any, visit: Any, shot: Any) -> None:
    prompt = json.loads(json.dumps(TEXTS))
    prompt["1"]["inputs"]["ckpt_name"] = "sd_xl_base_1.0.safetensor"
    prompt["5"]["inputs"]["steps"] = 0
    service = make_service(prompt)
    page = visit(service)
    run(page)
    expect(alerts(page).locator("span")).to_have_text("Not started. See Load Checkpoint, Steps.")
    expect(error(page, "5-steps")).to_have_text("steps = 0 is too small.\nAllowed: 1 to 10000.")
    expect(error(page, "1-ckpt_name")).to_contain_text("sd_xl_base_1.0.safetensors")
    expect(page.locator("#field-1-ckpt_name")).to_be_visible()  # what is folded away is opened
    expect(page.locator("#runs li")).to_contain_text("Refused")
    expect(page.get_by_text("is too small")).to_have_count(1)  # it is said once, beside the field
    shot(page, "refused")
    page.locator("#field-1-ckpt_name").select_option(label="sd_xl_base_1.0.safetensors")
    page.locator(SAMPLER + "steps").fill("3")
    expect(error(page, "1-ckpt_name")).to_have_text("")
    expect(alerts(page)).to_have_text("")  # nothing is wrong any more
    run(page)
    finished(page)


#: What the runner says to people at a terminal, and what becomes of it on the page.
PAGE_WORDS = {
    f"ComfyUI at http://10.0.0.2:8188 does not answer. {START_COMFYUI_THERE}": (
        "ComfyUI at http://10.0.0.2:8188 does not answer."
    ),
    f"http://10.0.0.2:8188 wants a login. {LOGIN_REMEDY}": "http://10.0.0.2:8188 wants a login.",
    f"http://10.0.0.2:8188 refused the password. {CREDENTIALS_REMEDY}": "http://10.0.0.2:8188 refused the password.",
    'Enter a number. For a random seed, use --seed random, or set it to "random".': (
        "Enter a number. For a random seed, press the dice."
    ),
    "Cancelled by --timeout: stopped at KSampler.": "Cancelled by the time limit: stopped at KSampler.",
    'text = "a fox, --ar 16:9" is too long.': 'text = "a fox, --ar 16:9" is too long.',
    "--server is wrong.": "--server is wrong.",  # all of it: better than nothing
}


def test_a_comfyui_that_is_away_is_said_and_comes_back(make_service: Any, visit: Any, shot: Any) -> None:
    service = make_service(TEXTS)
    page = visit(service)
    service.simulator.crash()
    expect(page.locator("#server")).to_have_text("ComfyUI does not answer", timeout=15_000)
    expect(state(page)).to_contain_text("ComfyUI at %s does not answer." % service.simulator.url)
    page.locator(TEXT).fill("typed meanwhile")
    wait_until(lambda: service.value("2", "text") == "typed meanwhile", what="the edit")
    run(page)
    expect(alerts(page)).to_contain_text("does not answer")
    assert "--" not in alerts(page).text_content()  # flags are for those who start the runner
    assert page.evaluate("(texts) => texts.map(inPageWords)", list(PAGE_WORDS)) == list(PAGE_WORDS.values())
    shot(page, "away")
    service.simulator.revive()
    expect(page.locator("#server")).to_contain_text("ComfyUI 0.", timeout=15_000)
    run(page)
    finished(page)
    assert prompts(service.simulator)[0]["2"]["inputs"]["text"] == "typed meanwhile"


def test_what_comfyui_would_refuse_is_marked_before_run_is_pressed(make_service: Any, visit: Any, shot: Any) -> None:
    prompt = json.loads(json.dumps(TEXTS))
    prompt["1"]["inputs"]["ckpt_name"] = "gone.safetensors"
    prompt["5"]["inputs"]["steps"] = 0
    service = make_service(prompt)
    page = visit(service)
    expect(error(page, "1-ckpt_name")).to_have_text("ComfyUI does not have gone.safetensors.")
    expect(error(page, "5-steps")).to_have_text("Allowed: 1 to 10000.")
    expect(error(page, "5-seed")).to_have_text("")
    shot(page, "foreseen")
    service.edit("5", steps=4)  # by somebody else
    expect(error(page, "5-steps")).to_have_text("")
    page.locator("#field-1-ckpt_name").select_option(label="sd_xl_base_1.0.safetensors")
    expect(error(page, "1-ckpt_name")).to_have_text("")
    assert service.phases() == []
    texts, model = page.locator(TEXT).bounding_box(), page.locator("#field-1-ckpt_name").bounding_box()
    assert model["width"] == texts["width"]  # it is as wide as a text, and follows the texts
    order = page.evaluate("() => [...document.querySelectorAll('#form [data-input]')].map((one) => one.dataset.input)")
    assert order[:3] == ["text", "text", "ckpt_name"]
    page.locator("#more > summary").click()
    expect(page.get_by_label("Save Image: filename prefix")).to_be_visible()


def test_texts_are_areas_before_comfyui_was_ever_there(make_service: Any, visit: Any) -> None:
    page = visit(make_service(TEXTS, connected=False), ready=False)
    expect(page.locator(TEXT)).to_be_visible()
    assert page.locator(TEXT).evaluate("element => element.tagName") == "TEXTAREA"


@pytest.mark.parametrize("width", [360, 768, 1440])
def test_a_big_workflow_is_folded_by_node_and_searched(make_service: Any, visit: Any, shot: Any, width: int) -> None:
    blanks = {
        str(number): node("EmptyImage", f"Blank {number}", width=64, height=64, batch_size=1, color=number)
        for number in range(100, 130)
    }
    saves = {
        str(number): node("SaveImage", f"Save {number}", filename_prefix="x", images=[str(number - 100), 0])
        for number in range(200, 230)
    }
    service = make_service({**blanks, **saves})
    page = visit(service, viewport={"width": width, "height": 800})
    height = "() => document.querySelector('#work > section').scrollHeight"
    assert page.evaluate(height) < 3500  # of 60 nodes; unfolded they take three times as much
    page.locator("#more > summary").click()
    assert page.evaluate(height) < 6500
    assert overflow(page) <= width
    shot(page, f"folded_{width}")
    page.get_by_label("Find a setting").fill("save 217")
    expect(page.locator(".node:visible")).to_have_count(1)  # of those that are not folded too
    page.locator("#field-217-filename_prefix").fill("seventeen")
    wait_until(lambda: service.value("217", "filename_prefix") == "seventeen", what="the edit")
    page.get_by_label("Find a setting").fill("nothing like it")
    expect(page.get_by_text("No setting matches.")).to_be_visible()
    assert page.locator(".node:visible, #more:visible").count() == 0
    page.get_by_label("Find a setting").fill("")
    expect(page.locator("#field-217-filename_prefix")).to_be_visible()  # what was opened stays open
    assert page.locator("#more details.fold").count() >= 30


def test_the_workflow_is_downloaded_as_it_is_edited(make_service: Any, visit: Any) -> None:
    service = make_service(TEXTS)
    page = visit(service)
    page.locator(SAMPLER + "seed").fill(str(2**64 - 1))  # more than a number of JavaScript holds
    page.locator(TEXT).fill("a fox, not sent yet")
    page.get_by_label("Menu").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as a file").click()
    assert download.value.suggested_filename == "held_api.json"
    with open(download.value.path(), encoding="utf-8") as file:
        prompt = json.load(file)
    assert prompt == service.get("/workflow")["prompt"]
    assert (prompt["2"]["inputs"]["text"], prompt["5"]["inputs"]["seed"]) == ("a fox, not sent yet", 2**64 - 1)


@pytest.mark.parametrize("width", [360, 1440])
def test_the_workflow_is_saved_for_comfyuis_editor(make_service: Any, visit: Any, shot: Any, width: int) -> None:
    image = {
        "id": 1,
        "type": "EmptyImage",
        "outputs": [{"type": "IMAGE", "links": [1]}],
        "widgets_values": [64, 128, 1, 0],
    }
    save = {"id": 2, "type": "SaveImage", "inputs": [{"name": "images", "type": "IMAGE", "link": 1}]}
    workflow = {"nodes": [image, {**save, "widgets_values": ["x"]}], "links": [[1, 1, 0, 2, 0, "IMAGE"]]}
    service = make_service(workflow)
    page = visit(service, **(phone() if width == 360 else {"viewport": {"width": width, "height": 900}}))
    page.locator("#field-1-width").fill("256")
    page.get_by_label("Menu").click()
    shot(page, f"menu_{width}")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save for ComfyUI's editor").click()
    assert download.value.suggested_filename == "held.json"
    with open(download.value.path(), encoding="utf-8") as file:
        saved = json.load(file)
    assert saved["nodes"][0]["widgets_values"] == [256, 128, 1, 0]
    expect(alerts(page)).to_be_empty()

    prompt = service.get("/workflow")["prompt"]
    prompt["1"]["inputs"]["more"] = 5  # no widget has it
    name = service.get("/status")["workflow"]["file"]
    requests.put(service.url + "/workflow", params={"name": name}, json=prompt, timeout=10).raise_for_status()
    page.get_by_label("Menu").click()
    with page.expect_download():
        page.get_by_role("button", name="Save for ComfyUI's editor").click()
    expect(alerts(page)).to_contain_text("without these values")
    expect(alerts(page)).to_contain_text("Empty Image – More")
    shot(page, f"not_saved_{width}")

    requests.put(service.url + "/workflow", params={"name": "x.json"}, json=TEXTS, timeout=10).raise_for_status()
    expect(page.locator(TEXT)).to_be_visible()
    page.get_by_label("Menu").click()
    expect(page.get_by_role("button", name="Save as a file")).to_be_visible()
    expect(page.get_by_role("button", name="Save for ComfyUI's editor")).to_be_hidden()


@pytest.mark.parametrize("width", [360, 1440])
def test_the_menu_says_what_to_open_on_a_phone(make_service: Any, visit: Any, shot: Any, width: int) -> None:
    options = phone() if width == 360 else {"viewport": {"width": width, "height": 900}}
    service = make_service(TEXTS)
    page = visit(service, **options)
    page.get_by_label("Menu").click()
    expect(page.locator("#phone")).to_have_text(
        "To open this page on a phone, start the service with --host 0.0.0.0 and --token SECRET."
    )
    shot(page, f"phone_none_{width}")
    public = make_service(TEXTS, "--public-url", "https://gpu.example/comfy")
    page = visit(public, **options)
    page.get_by_label("Menu").click()
    expect(page.locator("#phone a")).to_have_attribute("href", "https://gpu.example/comfy")
    expect(page.locator("#phone")).to_have_text("On your phone, open https://gpu.example/comfy")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    shot(page, f"phone_{width}")


@pytest.mark.parametrize("width", [360, 1440])
def test_one_of_several_workflows_is_chosen_and_each_keeps_its_edits(
    make_service: Any, visit: Any, tmp_path: Any, shot: Any, width: int
) -> None:
    flows = tmp_path / "flows"
    flows.mkdir()
    (flows / "photo.json").write_text(json.dumps(LOADER), encoding="utf-8")
    (flows / "broken.json").write_text("{", encoding="utf-8")
    service = make_service(TEXTS, str(flows))
    options = phone() if width == 360 else {"viewport": {"width": width, "height": 900}}
    page = visit(service, **options)
    beside = visit(service, beside=page)
    choices = page.get_by_label("Workflow", exact=True)
    assert choices.locator("option").all_text_contents() == [
        "photo.json", "broken.json (cannot be read)", "held.json",
    ]  # fmt: skip
    holds(choices, "photo.json")
    choices.select_option("held.json")
    expect(page.locator(TEXT)).to_be_visible()
    expect(beside.locator(TEXT)).to_be_visible()  # the other tab has it too
    page.locator(TEXT).fill("a fox, not sent yet")
    shot(page, f"choices_{width}")
    choices.select_option("photo.json")
    expect(page.get_by_label("Choose a picture", exact=False)).to_be_attached()
    expect(page.locator(TEXT)).to_have_count(0)
    assert choices.locator("option").all_text_contents()[2] == "held.json (changed)"
    run(page)
    finished(page)
    choices.select_option("held.json")
    holds(page.locator(TEXT), "a fox, not sent yet")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    choices.select_option("broken.json")
    expect(alerts(page)).to_contain_text("broken.json is not JSON")
    holds(choices, "held.json")
    shot(page, f"choices_broken_{width}")
    (flows / "broken.json").write_text(json.dumps(LOADER), encoding="utf-8")
    choices.blur()
    choices.focus()
    expect(choices.locator("option").nth(1)).to_have_text("broken.json")


def test_one_workflow_is_no_choice_until_another_one_is_loaded(make_service: Any, visit: Any, tmp_path: Any) -> None:
    service = make_service(TEXTS)
    page = visit(service)
    choices = page.locator("#choices")
    expect(choices).to_be_hidden()
    expect(page.locator("#file")).to_have_css("position", "static")
    page.locator(TEXT).fill("a fox")
    (tmp_path / "photo.json").write_text(json.dumps(LOADER), encoding="utf-8")
    page.locator("#load-file").set_input_files(str(tmp_path / "photo.json"))
    holds(choices, "photo.json")
    choices.select_option("held.json")
    holds(page.locator(TEXT), "a fox")
    expect(page).to_have_title(re.compile("held"))


def test_undo_brings_back_what_was_typed_before_another_workflow_was_loaded(
    make_service: Any, visit: Any, tmp_path: Any
) -> None:
    service = make_service(TEXTS)
    page = visit(service)
    page.locator(TEXT).fill("a fox")
    wait_until(lambda: service.value("2", "text") == "a fox", what="the edit")
    page.locator("#field-3-text").fill("a cat, not sent yet")
    (tmp_path / "photo.json").write_text(json.dumps(LOADER), encoding="utf-8")
    page.locator("#load-file").set_input_files(str(tmp_path / "photo.json"))
    page.get_by_role("button", name="Undo").click()
    holds(page.locator(TEXT), "a fox")
    holds(page.locator("#field-3-text"), "a cat, not sent yet")


def test_a_page_that_comes_before_comfyui_has_its_form_all_the_same(make_service: Any, visit: Any) -> None:
    service = make_service(LOADER, connected=False)
    page = visit(service, ready=False)
    expect(page.locator("#server")).to_have_text("ComfyUI does not answer")
    expect(page.locator("#field-1-image")).to_have_value("example.png")
    service.simulator.revive()
    expect(page.locator("#server")).to_contain_text("ComfyUI 0.", timeout=15_000)
    expect(page.get_by_text("Choose a picture")).to_be_visible()  # only ComfyUI knows that this is a picture


def test_texts_of_others_are_shown_and_never_run(make_service: Any, visit: Any, shot: Any) -> None:
    service = make_service({
        "1": node("EmptyImage", HOSTILE, width=64, height=64, batch_size=1, color=0),
        "2": node("FailNode", HOSTILE, message=HOSTILE, image=["1", 0]),
        "3": node("SaveImage", HOSTILE, filename_prefix="x", images=["2", 0]),
        HOSTILE: node("CLIPTextEncode", HOSTILE, text=HOSTILE, clip=["5", 1]),
        "5": node("CheckpointLoaderSimple", HOSTILE, ckpt_name=HOSTILE),
        "6": node("PreviewAny", "Show", source=[HOSTILE, 0]),
    })  # fmt: skip
    page = visit(service)
    expect(page.get_by_label(HOSTILE).first).to_have_value(HOSTILE)
    run(page)
    expect(page.locator("#faults strong")).to_contain_text([HOSTILE[:50], HOSTILE[:50]])
    expect(page.locator("#faults li").first).to_contain_text(HOSTILE)
    expect(error(page, "5-ckpt_name")).to_contain_text("<script>")
    shot(page, "hostile")
    expect(page.locator("img:not(#preview, #viewer-picture)")).to_have_count(0)
    assert page.evaluate("() => [window.hacked, document.scripts.length]") == [None, 1]


def test_a_page_whose_lines_end_with_crlf_works(make_service: Any, visit: Any, tmp_path: Any) -> None:
    """In a clone on Windows: what the browser hashes of a script, and the policy allows, has LF."""
    copy_with_crlf(tmp_path / "clone")
    service = make_service(TEXTS, script=str(tmp_path / "clone" / "comfyui_workflow_runner.py"))
    page = visit(service)
    page.get_by_label("Positive Prompt").fill("a fox in the snow")
    wait_until(lambda: service.value("2", "text") == "a fox in the snow", what="the edit")
    run(page)
    finished(page)


# ------------------------------------------------------------------------------------------------
# It stays: restarts, two tabs, a token
# ------------------------------------------------------------------------------------------------


def test_the_page_survives_a_restart_of_the_service(make_service: Any, visit: Any, shot: Any) -> None:
    service = make_service(TEXTS)
    page = visit(service)
    run(page)
    finished(page)
    service.kill()
    expect(page.locator("#server")).to_have_text("Connection lost")
    expect(state(page)).to_contain_text("Connection lost")
    page.locator(TEXT).fill("typed while it was gone")
    expect(error(page, "2-text")).to_contain_text("Not sent yet")
    run(page)
    expect(alerts(page)).to_contain_text("Not started. See")
    shot(page, "lost")
    service.start()
    expect(page.locator("#server")).to_contain_text("ComfyUI 0.", timeout=15_000)
    expect(error(page, "2-text")).to_have_text("")
    wait_until(lambda: service.value("2", "text") == "typed while it was gone", what="the edit")
    expect(alerts(page)).to_have_text("")  # it was sent
    expect(page.locator("#runs li")).to_have_count(1)  # it still knows the run, and its picture
    loaded(page.locator("#outputs img"), 256)
    run(page)
    expect(page.locator("#runs li")).to_have_count(2)
    finished(page)
    assert prompts(service.simulator)[-1]["2"]["inputs"]["text"] == "typed while it was gone"


def test_two_tabs_show_each_others_edits_and_no_typing_is_lost(make_service: Any, visit: Any) -> None:
    service = make_service(TEXTS)
    one = visit(service)
    two = visit(service, beside=one)
    one.locator(TEXT).fill("written in one")
    holds(two.locator(TEXT), "written in one")
    one.locator(SAMPLER + "steps").fill("7")
    holds(two.locator(SAMPLER + "steps"), "7")
    # Somebody is in the middle of a word when the other tab writes, elsewhere and into the same field.
    typing = two.locator(TEXT)
    typing.press("End")
    typing.press_sequentially(" and tw")
    one.locator(SAMPLER + "cfg").fill("4")
    one.locator("#field-3-text").fill("no fog")
    holds(two.locator("#field-3-text"), "no fog")
    holds(two.locator(SAMPLER + "cfg"), "4")
    expect(typing).to_be_focused()
    holds(typing, "written in one and tw")
    typing.press_sequentially("o")
    holds(one.locator(TEXT), "written in one and two")
    one.locator(TEXT).fill("one again")
    wait_until(lambda: service.value("2", "text") == "one again", what="the edit")
    holds(typing, "written in one and two")  # not under the fingers
    two.locator("#field-3-text").focus()
    holds(typing, "one again")
    run(one)
    finished(one)
    finished(two)
    loaded(two.locator("#outputs img"), 256)
    # The value of the field that somebody is in is what runs.
    typing.fill("mine")
    wait_until(lambda: service.value("2", "text") == "mine", what="the edit")
    service.edit("2", text="theirs")
    holds(one.locator(TEXT), "theirs")
    two.keyboard.press("Control+Enter")
    expect(two.locator("#runs li")).to_have_count(2)
    finished(two)
    assert [prompt["2"]["inputs"]["text"] for prompt in prompts(service.simulator)] == ["one again", "mine"]


class Streams:
    """The event streams that the tabs beside a page hold open, from the page's next load on."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self._open: List[Any] = []
        page.context.on("request", self._note_begin)
        page.context.on("requestfailed", self._note_end)
        page.context.on("requestfinished", self._note_end)
        page.reload()

    def _note_begin(self, request: Any) -> None:
        if request.url.endswith("/events"):
            self._open.append(request)

    def _note_end(self, request: Any) -> None:
        if request in self._open:
            self._open.remove(request)

    def count(self) -> int:
        self.page.evaluate("0")  # events come while the browser is asked something
        return len(self._open)


def test_seven_tabs_wait_for_their_runs_and_all_of_them_work(make_service: Any, visit: Any) -> None:
    """A browser opens six connections to a host. Each of the tabs must know what happens, and one must be free."""
    service = make_service(slow_prompt(steps=400, seconds=60.0))
    first = visit(service)
    streams = Streams(first)
    tabs = [first]
    for number in range(1, 7):
        tabs.append(visit(service, beside=first))
        run(tabs[-1])
        for tab in tabs:
            expect(tab.locator("#runs li")).to_have_count(number, timeout=30_000)
    assert streams.count() == 1
    seventh = visit(service, beside=first)
    seventh.locator("#field-1-seed").fill("77")
    for tab in tabs:
        holds(tab.locator("#field-1-seed"), "77")
    seventh.get_by_role("button", name="Stop", exact=True).click()
    for tab in [*tabs, seventh]:
        expect(tab.locator("#runs")).to_contain_text("Stopped", timeout=30_000)
    assert service.phases().count("interrupted") == 1
    for tab in [seventh, *tabs]:  # whoever listens for all goes, and another takes its place
        survivor = tabs[-1]
        if tab is not survivor:
            tab.close()
        seed = str(1000 + tabs.index(tab) if tab in tabs else 999)
        service.edit("1", seed=int(seed))
        holds(survivor.locator("#field-1-seed"), seed)
    while "running" in service.phases() or "queued" in service.phases():
        requests.post(service.url + "/interrupt", json={}, timeout=20)


#: Makes a page hidden or shown, as far as it can see; without a window all pages are shown.
SET_HIDDEN = """(hidden) => {
    Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
    document.dispatchEvent(new Event("visibilitychange"));
}"""


def test_a_hidden_tab_holds_no_stream_and_catches_up_when_it_is_shown(make_service: Any, visit: Any) -> None:
    service = make_service(slow_prompt(steps=2, seconds=0.0))
    page = visit(service)
    streams = Streams(page)
    wait_until(lambda: streams.count() == 1, what="the stream")
    page.evaluate(SET_HIDDEN, True)
    wait_until(lambda: streams.count() == 0, what="the end of the stream")
    service.edit("1", seed=77)
    requests.post(service.url + "/queue", timeout=10).raise_for_status()
    wait_until(lambda: service.phases() == ["success"], what="the end of the run")
    page.evaluate(SET_HIDDEN, False)
    holds(page.locator("#field-1-seed"), "77")
    finished(page)
    wait_until(lambda: streams.count() == 1, what="the stream")


def test_a_hidden_tab_follows_the_run_that_was_started_in_it(make_service: Any, visit: Any) -> None:
    service = make_service(slow_prompt(steps=400, seconds=60.0))
    page = visit(service)
    streams = Streams(page)
    run(page)
    expect(state(page)).to_have_text("Running")
    page.evaluate(SET_HIDDEN, True)
    requests.post(service.url + "/interrupt", json={}, timeout=20).raise_for_status()
    wait_until(lambda: page.title() == "Stopped – held.json", what="the title")
    wait_until(lambda: streams.count() == 0, what="the end of the stream")


def test_without_locks_every_tab_that_is_shown_listens_for_itself(make_service: Any, visit: Any) -> None:
    """So it is over plain HTTP from another machine."""
    service = make_service(slow_prompt(steps=400, seconds=60.0))
    one = visit(service)
    one.context.add_init_script("Object.defineProperty(Navigator.prototype, 'locks', { value: undefined });")
    one.reload()
    two = visit(service, beside=one)
    one.locator("#field-1-seed").fill("77")
    holds(two.locator("#field-1-seed"), "77")
    run(two)
    expect(state(one)).to_have_text("Running")
    expect(state(two)).to_have_text("Running")
    two.evaluate(SET_HIDDEN, True)
    one.get_by_role("button", name="Stop", exact=True).click()
    wait_until(lambda: two.title() == "Stopped – held.json", what="the title")


def test_a_run_shows_its_seeds(make_service: Any, visit: Any) -> None:
    prompt = {**slow_prompt(steps=2, seconds=0.0, seed=2**63 + 1)}
    service = make_service(prompt)
    page = visit(service)
    run(page)
    finished(page)
    expect(page.locator("#seeds")).to_have_text(f"Seed: {2**63 + 1}")
    more = {**prompt, "3": node("SlowProgress", "Other", steps=1, seconds=0.0, seed=5, preview=False)}
    more["4"] = node("PreviewImage", images=["3", 0])
    requests.put(service.url + "/workflow", json=more, timeout=10).raise_for_status()
    expect(page.locator("#field-3-seed")).to_have_value("5")
    run(page)
    finished(page, 2)
    expect(page.locator("#seeds")).to_have_text(f"Seeds: Slow #1: {2**63 + 1}, Other #3: 5")


def test_the_token_is_asked_for_once_and_not_again_after_a_restart(make_service: Any, visit: Any, shot: Any) -> None:
    service = make_service(TEXTS, "--token", "a secret of nine words")
    page = visit(service, ready=False)
    token = page.get_by_label("Token")
    expect(token).to_be_focused()
    expect(page.locator("#page")).to_be_hidden()
    token.fill("a guess")
    token.press("Enter")
    expect(page.get_by_role("alert").filter(has_text="Wrong token.")).to_be_visible()
    shot(page, "login")
    token.fill("a secret of nine words")
    page.get_by_role("button", name="Log in").click()
    expect(page.locator(TEXT)).to_be_visible()
    expect(page.locator("#login")).to_be_hidden()
    (cookie,) = page.context.cookies()
    assert cookie["httpOnly"] and cookie["sameSite"] == "Strict" and "secret" not in cookie["value"]
    page.reload()
    expect(page.locator(TEXT)).to_be_visible()
    beside = visit(service, beside=page)
    expect(beside.locator(TEXT)).to_be_visible()
    run(page)
    finished(page)
    loaded(page.locator("#outputs img"), 256)
    service.end()
    service.held.write_text(json.dumps(LOADER), encoding="utf-8")
    service.start()
    expect(page.get_by_role("group", name="Photo")).to_be_visible(timeout=15_000)  # the workflow is another one
    expect(page.locator(TEXT)).to_have_count(0)
    expect(page.locator("#login")).to_be_hidden()


# ------------------------------------------------------------------------------------------------
# Who uses it: small and wide, light and dark, keyboard, screen reader
# ------------------------------------------------------------------------------------------------


def test_on_a_phone_nothing_is_cut_off_and_run_is_in_reach(make_service: Any, visit: Any, shot: Any) -> None:
    photo = {**LOADER["1"], "_meta": {"title": "Photo_" + "y" * 80}}
    prompt = {**TEXTS, "8": photo, "9": node("PreviewImage", images=["8", 0])}
    service = make_service(prompt, step_seconds=0.3)
    page = visit(service, **phone())
    shot(page, "phone")
    page.locator(TEXT).fill("https://example.invalid/" + "x" * 400)
    page.locator("#more > summary").tap()
    assert overflow(page) <= 360
    shot(page, "phone_whole", full_page=True)
    page.locator(SAMPLER + "steps").fill("0")
    page.locator("#run").tap()
    expect(error(page, "5-steps")).to_be_in_viewport(ratio=1)
    expect(alerts(page)).to_contain_text("Not started. See Steps.")
    expect(page.locator("#run")).to_be_in_viewport(ratio=1)
    shot(page, "phone_error")
    assert overflow(page) <= 360
    page.locator(SAMPLER + "steps").fill("10")
    page.locator("#run").tap()
    loaded(page.locator("#preview"), 128)
    expect(page.locator("#stop")).to_be_in_viewport(ratio=1)
    expect(page.locator("#overall")).to_be_in_viewport()  # the page goes to the run
    shot(page, "phone_running")
    assert overflow(page) <= 360
    service.simulator.step_seconds = 0.0
    finished(page, figures=2)
    loaded(page.get_by_role("img", name="Save Image: "), 256)
    shot(page, "phone_finished")
    page.get_by_label("Menu").tap()
    shot(page, "phone_menu")
    assert overflow(page) <= 360
    small = page.evaluate(
        """() => [...document.querySelectorAll("button, select, summary, .button, input:not([type=file])")]
            .filter((one) => one.checkVisibility() && one.getBoundingClientRect().height < 44)
            .filter((one) => !one.matches("[role=switch]")).map((one) => one.outerHTML)"""
    )
    assert small == []  # all can be hit with a thumb


def overflow(page: Any) -> int:
    """How wide all of the page is."""
    return int(page.evaluate("() => document.documentElement.scrollWidth"))


#: The widths at which the main states of the page are looked at, and those where axe-core is asked too.
WIDTHS, ASKED_WIDTHS = (360, 768, 1440), (360, 1440)

#: What leaves the window at its sides, and what cuts off its own text without dots at the end.
CUT_OFF = """() => {
    const isCut = (one) => {
        const box = one.getBoundingClientRect(), { overflowX, textOverflow } = getComputedStyle(one);
        const leaves = box.left < -1 || box.right > innerWidth + 1;
        const clips = one.matches("input[type=number]")
            || (["hidden", "clip"].includes(overflowX) && textOverflow !== "ellipsis" && !one.matches("input, select"));
        return leaves || (clips && one.scrollWidth > one.clientWidth + 1);
    };
    const shown = [...document.querySelectorAll("body *")].filter((one) => one.checkVisibility());
    return shown.filter((one) => !one.closest(".unseen, svg") && isCut(one)).map((one) => one.outerHTML.slice(0, 300));
}"""

#: What is wrong by axe-core, as "rule: element"; in the dark scheme by its rules for colors, as nothing else differs.
ASK_AXE = """async (scheme) => {
    const some = scheme === "dark" ? { runOnly: ["color-contrast", "link-in-text-block"] } : {};
    const { violations } = await axe.run(document, { resultTypes: ["violations"], ...some });
    const bad = violations.filter(({ impact }) => ["serious", "critical"].includes(impact));
    return bad.flatMap(({ id, nodes }) => nodes.map(({ html, failureSummary }) => `${id}: ${html} ${failureSummary}`));
}"""


@pytest.fixture(scope="module")
def axe() -> str:
    """The script axe-core, which finds what keeps people with a disability from using a page."""
    with open(os.path.join(require_node_package("axe-core"), "axe.min.js"), encoding="utf-8") as file:
        return file.read()


@pytest.fixture
def look_at(axe: str, shot: Any) -> Callable[..., None]:
    """Looks at a state of the page in every width, light and dark: nothing is cut off, axe-core finds nothing bad."""

    def look(page: Any, name: str) -> None:
        page.evaluate(axe)
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            assert overflow(page) <= width, (name, width)
            assert page.evaluate(CUT_OFF) == [], (name, width)
            if "PAGE_SHOTS" in os.environ:
                shot(page, f"state_{name}_{width}", full_page=True)
            for scheme in ("dark", "light") if width in ASKED_WIDTHS else ():
                page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # colors are there at once
                assert page.evaluate(ASK_AXE, scheme) == [], (name, width, scheme)

    return look


def test_everybody_can_use_the_page_in_its_main_states(make_service: Any, visit: Any, look_at: Any) -> None:
    """First load, running with preview, results with several outputs and earlier runs, a refusal, ComfyUI away."""
    prompt = {
        **TEXTS,
        "8": {**LOADER["1"], "_meta": {"title": "Photo_" + "y" * 80}},
        "9": node("PreviewImage", images=["8", 0]),
        "10": node("SimulatedOutput", "Caption", ui=json.dumps({"text": ["a word " * 40 + "z" * 90]})),
        "11": node("SlowProgress", "Slow", steps=2, seconds=0.0, seed=2**63, preview=False),
        "12": node("PreviewImage", images=["11", 0]),
    }
    service = make_service(prompt)
    page = visit(service)
    page.locator("#more > summary").click()
    look_at(page, "first")
    run(page)
    finished(page, figures=4)
    service.simulator.step_seconds = 1.0
    service.edit("2", text="https://example.invalid/" + "x" * 400)
    service.edit("5", seed=2**64 - 1, steps=1000)
    expect(page.locator(SAMPLER + "seed")).to_have_value(str(2**64 - 1))
    run(page)
    loaded(page.locator("#preview"), 128)
    look_at(page, "running")
    service.simulator.step_seconds = 0.0
    finished(page, figures=4)
    page.locator("#runs button.show").last.click()
    expect(page.locator("#differences li")).to_have_count(3)
    page.locator("#times summary").click()
    look_at(page, "results")
    page.get_by_role("button", name="Show the latest").click()
    refused = json.loads(json.dumps(TEXTS))
    refused["1"]["inputs"]["ckpt_name"] = "a_very_long_name_" * 6 + ".safetensors"
    refused["5"]["inputs"]["steps"] = 0
    requests.put(service.url + "/workflow", json=refused, timeout=10).raise_for_status()
    expect(page.locator(SAMPLER + "steps")).to_have_value("0")
    run(page)
    expect(alerts(page)).to_contain_text("Not started. See Load Checkpoint, Steps.")
    look_at(page, "refused")
    service.simulator.crash()
    expect(page.locator("#server")).to_have_text("ComfyUI does not answer", timeout=15_000)
    look_at(page, "away")


def test_everybody_can_log_in(make_service: Any, visit: Any, look_at: Any) -> None:
    page = visit(make_service(TEXTS, "--token", "a secret of nine words"), ready=False)
    page.get_by_label("Token").fill("a guess")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert").filter(has_text="Wrong token.")).to_be_visible()
    look_at(page, "login")


def test_a_wide_window_is_used_and_both_schemes_can_be_read(make_service: Any, visit: Any, shot: Any) -> None:
    service = make_service(TEXTS)
    page = visit(service, viewport={"width": 1600, "height": 900})
    form, results = page.locator("#form").bounding_box(), page.locator("#results").bounding_box()
    assert form["x"] + form["width"] <= results["x"] and form["y"] == results["y"]
    page.keyboard.press("Control+Enter")
    finished(page)
    loaded(page.locator("#outputs img"), 256)
    page.locator(SAMPLER + "cfg").fill("-1")
    expect(error(page, "5-cfg")).to_have_text("Allowed: 0 to 100.")
    expect(page.locator("#run")).to_be_in_viewport(ratio=1)
    assert overflow(page) <= 1600
    shot(page, "wide")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        back = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", back)[:3])) < 200) == (scheme == "dark")
        for selector in ("#state", "#server", "#run", "label", "#results-about", "#error-5-cfg", "#runs small"):
            assert contrast(page, selector) >= 4.5, (scheme, selector)


def contrast(page: Any, selector: str) -> float:
    """WCAG's ratio between a text and what is behind it."""
    pair = page.locator(selector).first.evaluate(
        """(element) => {
            const style = (one) => getComputedStyle(one), clear = "rgba(0, 0, 0, 0)";
            let behind = element;
            while (behind.parentElement && style(behind).backgroundColor === clear) behind = behind.parentElement;
            return [style(element).color, style(behind).backgroundColor];
        }"""
    )
    light = []
    for colour in pair:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        light.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(light) + 0.05) / (min(light) + 0.05)


def test_everything_is_done_with_the_keyboard(make_service: Any, visit: Any, shot: Any) -> None:
    service = make_service(TEXTS, step_seconds=0.3)
    page = visit(service)

    def tab_to(wanted: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("() => document.activeElement.id") == wanted:
                return
        raise AssertionError("Tab does not come to %s" % wanted)

    tab_to("field-2-text")
    page.keyboard.press("Control+A")
    page.keyboard.type("a fox")
    shot(page, "focus")
    page.keyboard.press("Control+Enter")
    expect(state(page)).to_have_text("Running")
    tab_to("stop")
    page.keyboard.press("Enter")
    expect(page.locator("#runs li")).to_contain_text("Stopped")
    assert prompts(service.simulator)[0]["2"]["inputs"]["text"] == "a fox"
    service.simulator.step_seconds = 0.0
    page.locator(SAMPLER + "seed").fill("2")
    page.locator("#run").focus()
    page.keyboard.press("Enter")
    finished(page)
    assert service.phases() == ["success", "interrupted"]


def test_a_screen_reader_finds_names_and_is_told(make_service: Any, visit: Any) -> None:
    prompt = {**TEXTS, "8": LOADER["1"], "9": node("PreviewImage", images=["8", 0]),
              "10": node("SlowProgress", "Slow", steps=3, seconds=0.0, seed=1, preview=True)}  # fmt: skip
    service = make_service(prompt)
    page = visit(service, has_touch=True)
    page.locator("#more > summary").click()
    run(page)
    finished(page, figures=2)
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    shown = [each for each in nodes if not each.get("ignored")]
    roles = {
        role: [each.get("name", {}).get("value", "") for each in shown if each["role"]["value"] == role]
        for role in ("textbox", "spinbutton", "combobox", "switch", "button", "link", "image", "progressbar")
    }
    for role, names in roles.items():
        assert all(names), (role, names)
    for role, least in (("textbox", 4), ("spinbutton", 5), ("combobox", 3), ("switch", 1), ("button", 10)):
        assert len(roles[role]) >= least, (role, roles[role])
    assert "Positive Prompt" in roles["textbox"] and "Random seed: Seed" in roles["button"]
    expect(page.get_by_role("status").first).to_have_id("state")
    assert page.locator("#alert").get_attribute("role") == "alert"
    assert page.locator("html").get_attribute("lang") == "en"
    described = page.locator(SAMPLER + "steps").get_attribute("aria-describedby")
    assert "error-5-steps" in described.split()
    assert page.locator("#error-5-steps").get_attribute("aria-live") == "polite"
    expect(page.locator("main")).to_have_count(1)


def test_firefox_loads_edits_runs_previews_and_stops(make_service: Any) -> None:
    service = make_service(TEXTS, step_seconds=0.3)
    require_node_package("puppeteer-core")
    walk = ["node", os.path.join(ROOT, "tests", "firefox_walk.mjs"), require_browser(FIREFOX), service.url]
    done = subprocess.run(walk, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300, check=False)
    assert done.returncode == 0, done.stdout.decode(errors="replace")
    assert service.phases() == ["interrupted", "success"]
    assert service.value("2", "text") == "a fox in the snow"


# ------------------------------------------------------------------------------------------------
# Pages of others
# ------------------------------------------------------------------------------------------------

#: A page that tries to start runs, and hides where the requests come from. ``tried`` is over when every try is.
FOREIGN_PAGE = """<!doctype html><meta name="referrer" content="no-referrer"><body><script>
const add = (name, values) => document.body.appendChild(Object.assign(document.createElement(name), values));
const over = picture => new Promise(done => { picture.onload = picture.onerror = done; });
// Firefox has no event for a frame that cannot connect; but its page is no longer one that may be looked at.
const left = frame => new Promise(done => {
  const look = setInterval(() => {
    let address = "";
    try { address = frame.contentWindow.location.href; } catch {}
    if (address !== "about:blank") { clearInterval(look); done(); }
  }, 20);
});
const tries = [];
for (const url of URLS) {
  tries.push(over(add("img", {src: url, referrerPolicy: "no-referrer"})));
  tries.push(left(add("iframe", {src: url})));
  for (const method of ["GET", "POST"]) {
    tries.push(fetch(url, {mode: "no-cors", method}).catch(() => {}));
    const frame = add("iframe", {name: method + url});
    add("form", {action: url, method, target: frame.name}).submit();
    tries.push(left(frame));
  }
}
window.tried = Promise.all(tries).then(() => true);
</script>"""

PLAIN_PAGE = '<!doctype html><meta name="referrer" content="no-referrer"><title>plain</title>'

#: How a browser's request came about, by its method and Sec-Fetch-Dest.
WAYS = {
    ("GET", "image"),
    ("GET", "iframe"),
    ("POST", "iframe"),
    ("GET", "empty"),
    ("POST", "empty"),
    ("GET", "document"),
}


class Stranger(http.server.SimpleHTTPRequestHandler):
    """Serves a page, and what the page asks for at /queue: ``seen`` has the ways by which that came."""

    seen: Set[Tuple[str, str]]

    def do_GET(self) -> None:
        if self.path.startswith("/queue"):
            self.do_POST()
        else:
            super().do_GET()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.seen.add((self.command, self.headers["Sec-Fetch-Dest"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


class ForeignSite:
    """A site of somebody else: its pages can be opened on another port, under another name, and as files."""

    def __init__(self, folder: Any, port: int, seen: Set[Tuple[str, str]]) -> None:
        self.folder, self.port, self.seen = folder, port, seen

    def write(self, name: str, page: str) -> List[str]:
        """Writes a page; the addresses by which it can be opened."""
        path = self.folder / name
        path.write_text(page, encoding="utf-8")
        return [*(f"http://{host}:{self.port}/{name}" for host in ("127.0.0.1", "localhost")), path.as_uri()]


@pytest.fixture
def foreign_site(tmp_path: Any) -> Iterator[ForeignSite]:
    """A site that is served until the end of the test."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    seen: Set[Tuple[str, str]] = set()
    handler = functools.partial(type("Handler", (Stranger,), {"seen": seen}), directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield ForeignSite(folder, server.server_address[1], seen)
    server.shutdown()
    server.server_close()


class Chromium:
    """A tab of Chromium, with the same three steps as Firefox."""

    def __init__(self, browser: Any) -> None:
        self._browser = browser
        self._page = browser.new_page()

    def go(self, url: str) -> None:
        self._page.goto(url)

    def evaluate(self, expression: str) -> None:
        self._page.evaluate(expression)

    def leave_for(self, page_url: str, url: str) -> None:
        page = self._browser.new_page()  # one whose navigation failed is on its way to an error page
        page.goto(page_url)
        with contextlib.suppress(playwright.Error), page.expect_navigation():  # nobody may listen there
            page.evaluate("url => { location = url; }", url)
        page.close()

    def close(self) -> None:
        self._page.close()


@pytest.fixture(params=["chromium", "firefox"])
def visitor(request: Any) -> Iterator[Any]:
    """Somebody who looks at pages of others, with a Chromium or a Firefox."""
    if request.param == "firefox":
        with start_firefox(require_browser(FIREFOX)) as firefox:
            yield firefox
        return
    chromium = Chromium(request.getfixturevalue("browser"))
    yield chromium
    chromium.close()


@pytest.mark.parametrize("listening", [[], ["--host", "::", "--no-token"]])
def test_a_page_of_somebody_else_starts_nothing(
    listening: List[str], make_service: Any, visitor: Any, foreign_site: ForeignSite
) -> None:
    service = make_service(TEXTS, *listening)
    hosts = ("127.0.0.1", "localhost", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]")
    urls = [f"http://{host}:{service.port}/queue" for host in hosts]
    witness = f"http://127.0.0.1:{foreign_site.port}/queue"  # to see that the tries are made at all
    pages = foreign_site.write("page.html", FOREIGN_PAGE.replace("URLS", json.dumps([*urls, witness])))
    plain_pages = foreign_site.write("plain.html", PLAIN_PAGE)
    for page, plain_page in zip(pages, plain_pages):
        foreign_site.seen.clear()
        visitor.go(page)
        visitor.evaluate("window.tried")
        for url in (*urls, witness):
            visitor.leave_for(plain_page, url)
        assert service.phases() == [], page
        assert foreign_site.seen == WAYS, page
    visitor.go(service.url + "/queue")  # the address bar may
    wait_until(lambda: len(service.phases()) == 1)
