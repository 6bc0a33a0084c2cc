"""Stories of runs: the real program against the simulator, which misbehaves as asked."""

from __future__ import annotations

import asyncio
import base64
import importlib.metadata
import json
import os
import signal
import threading
import time
from typing import Any, Callable, Dict, Iterator, List

import pytest
import requests
import websockets.asyncio.client
import websockets.asyncio.server
from simulated import txt2img
from slow_proxy import HurriedLoop
from support import FAST, Outcome, node, run, slow_prompt, wait_until

from comfyui_runner.addresses import parse_address
from comfyui_runner.errors import ExitStatus, SaveError
from comfyui_runner.files import write_file
from comfyui_runner.limits import DEFAULT_LIMITS
from comfyui_runner.nodes import parse_spec
from comfyui_runner.reports import PROGRESS_INTERVAL
from comfyui_runner.runs import Run
from comfyui_runner.server import Server, new_uuid
from comfyui_runner.session import Session
from comfyui_runner.simulator import draw
from comfyui_runner.simulator.installation import MODELS as MODELS_OF_SIMULATOR
from comfyui_runner.state import Phase
from comfyui_runner.text import safe_path_parts
from comfyui_runner.threads import run_loop

Make = Callable[..., Any]


def go(simulator: Any, path: str, *arguments: str, **options: Any) -> Outcome:
    return run("--server", simulator.url, "--yes", "--json", path, *arguments, **options)


def executions(simulator: Any) -> int:
    return sum(simulator.executions.values())


@pytest.fixture
def quick() -> Iterator[Callable[[float], None]]:
    """Fails unless the test took less than so many seconds up to here."""
    began = time.monotonic()

    def check(seconds: float) -> None:
        taken = time.monotonic() - began
        assert taken < seconds, "it took %.1f s" % taken

    yield check


@pytest.fixture
def press() -> Iterator[Callable[[Callable[[], Any], str], None]]:
    """Presses Ctrl+C as soon as a condition comes true."""
    if os.name == "nt":
        pytest.skip("Windows cannot send SIGINT to one thread")
    before = signal.signal(signal.SIGINT, lambda number, frame: None)  # a press that comes too late hits nobody
    threads: List[threading.Thread] = []

    def begin(condition: Callable[[], Any], what: str) -> None:
        def work() -> None:
            wait_until(condition, what=what)
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, signal.SIGINT)

        threads.append(threading.Thread(target=work))
        threads[-1].start()

    yield begin
    for thread in threads:
        thread.join()
    signal.signal(signal.SIGINT, before)


# -- the main job ----------------------------------------------------------------------------------


def test_a_run_is_followed_from_the_file_to_the_saved_picture(
    simulator: Any, workflow_file: Make, tmp_path: Any
) -> None:
    result = go(simulator, workflow_file(slow_prompt(steps=4, seconds=0.6)), "-o", str(tmp_path / "out"))
    assert result.status == ExitStatus.OK
    names = [name for name in result.names() if name not in ("progress", "queued", "cached")]
    assert names == [
        "workflow", "server", "submitted", "started", "node_started", "node_finished", "node_started",
        "node_finished", "output", "saved", "end",
    ]  # fmt: skip
    assert [event["value"] for event in result.events if event["event"] == "progress"] == [1, 2, 3, 4]
    saved = result.event("saved")
    with open(saved["path"], "rb") as file:
        data = file.read()
    assert data.startswith(b"\x89PNG") and len(data) == saved["bytes"]
    assert os.listdir(tmp_path / "out") == [os.path.basename(saved["path"])]
    assert len({event["prompt_id"] for event in result.events}) == 1
    assert result.err == ""


def test_progress_is_reported_ten_times_a_second_at_most_with_first_and_last(
    simulator: Any, workflow_file: Make
) -> None:
    result = go(simulator, workflow_file(slow_prompt(steps=300, seconds=0.6)))
    values = [event["value"] for event in result.events if event["event"] == "progress"]
    assert values[0] == 1 and values[-1] == 300
    assert len(values) <= 2 + result.event("end")["seconds"] / PROGRESS_INTERVAL + 4


def test_the_socket_is_open_and_its_status_read_before_the_post(simulator: Any, workflow_file: Make) -> None:
    go(simulator, workflow_file(slow_prompt()))
    calls = [call for call in simulator.requests if call[1] in ("/ws", "/prompt")]
    assert calls == [("GET", "/ws"), ("POST", "/prompt")]


def test_the_same_prompt_again_renders_nothing_and_says_so(simulator: Any, workflow_file: Make) -> None:
    path = workflow_file(slow_prompt())
    assert not go(simulator, path).event("end")["wholly_cached"]
    again = go(simulator, path)
    assert again.status == ExitStatus.OK
    assert again.event("end")["wholly_cached"]
    assert again.event("end")["message"].startswith("Nothing was rendered")
    assert again.event("output")["filename"] == "slow_00001_.png"


def test_outputs_of_every_kind_are_reported_and_saved(simulator: Any, workflow_file: Make, tmp_path: Any) -> None:
    kinds = {
        "images": "a.png", "gifs": "b.mp4", "audio": "c.flac", "3d": "d.glb", "custom": "e.xyz",
    }  # fmt: skip
    ui: Dict[str, Any] = {
        key: [{"filename": name, "subfolder": "deep/er", "type": "output"}] for key, name in kinds.items()
    }
    ui["text"] = ["a caption", "another"]
    prompt = {"1": node("SimulatedOutput", "Every Kind", ui=json.dumps(ui))}
    result = go(simulator, workflow_file(prompt), "-o", str(tmp_path / "out"))
    assert result.status == ExitStatus.OK
    reports = [(event["kind"], event["filename"]) for event in result.events if event["event"] == "output"]
    assert reports == [
        ("image", "a.png"), ("video", "b.mp4"), ("audio", "c.flac"), ("3d", "d.glb"), ("file", "e.xyz"),
        ("text", ""), ("text", ""),
    ]  # fmt: skip
    deep = tmp_path / "out" / "deep" / "er"
    assert sorted(os.listdir(deep)) == ["a.png", "b.mp4", "c.flac", "d.glb", "e.xyz"]
    assert (tmp_path / "out" / "Every Kind.txt").read_text() == "a caption"
    assert (tmp_path / "out" / "Every Kind (1).txt").read_text() == "another"


def test_pictures_that_come_over_the_socket_alone_are_kept(simulator: Any, workflow_file: Make, tmp_path: Any) -> None:
    prompt = {
        "1": node("EmptyImage", width=32, height=16, batch_size=1, color=255),
        "2": node("SaveImageWebsocket", "Over the Wire", images=["1", 0]),
    }
    path = workflow_file(prompt)
    result = go(simulator, path)
    assert "add -o DIR to save" in result.event("notice")["message"]
    output = result.event("output")
    assert (output["kind"], output["source"], output["url"]) == ("image", "websocket", None) and output["size"] > 50
    prompt["1"]["inputs"]["color"] = 128
    saved = go(simulator, workflow_file(prompt), "-o", str(tmp_path / "out")).event("saved")
    with open(saved["path"], "rb") as file:
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], ["Over_the Wire_00001.png", "Over_the Wire_00002.png"]),
        (["--name", "{name}-{1.color}-new"], ["Over_the Wire_00001-255-new.png", "Over_the Wire_00002-255-new.png"]),
        (["--name", "same"], ["same.png", "same (1).png"]),
    ],
)
def test_pictures_that_come_over_the_socket_are_named_after_their_node(
    arguments: List[str], names: List[str], simulator: Any, workflow_file: Make, tmp_path: Any
) -> None:
    """With a number each; what leads to other folders is taken out of the title."""
    prompt = {
        "1": node("EmptyImage", width=32, height=16, batch_size=2, color=255),
        "2": node("SaveImageWebsocket", "Over/the Wire", images=["1", 0]),
    }
    result = go(simulator, workflow_file(prompt), "-o", str(tmp_path / "out"), *arguments)
    paths = [event["path"] for event in result.events if event["event"] == "saved"]
    assert paths == [os.path.join(os.path.realpath(str(tmp_path)), "out", name) for name in names]
    assert [event["title"] for event in result.events if event["event"] == "saved"] == ["Over/the Wire"] * 2


def test_only_the_node_that_sends_pictures_is_heard_as_such(simulator: Any, workflow_file: Make, tmp_path: Any) -> None:
    """The previews of another node are not pictures to keep."""
    prompt = slow_prompt(steps=3, seconds=0.3, preview=True)
    prompt["3"] = node("SaveImageWebsocket", "Send", images=["1", 0])
    go(simulator, workflow_file(prompt), "-o", str(tmp_path / "out"))
    assert sorted(os.listdir(tmp_path / "out")) == ["Send_00001.png", "slow_00001_.png"]


WEBSOCKET = {"source": "websocket", "content-type": "image/png", "type": "output"}


def shows(ui: Any, title: str = "Out") -> Dict[str, Any]:
    """A node that makes what ``ui`` says."""
    return {"1": node("SimulatedOutput", title, ui=json.dumps(ui))}


@pytest.mark.parametrize("listed", [True, False])
def test_pictures_of_any_class_that_come_over_the_socket_alone_are_outputs(
    listed: bool, simulator: Any, workflow_file: Make, tmp_path: Any
) -> None:
    """As ETN_SendImageWebSocket sends them: without steps, and in its output or not."""
    path = workflow_file(shows({"images": [{**WEBSOCKET, "listed": listed}] * 2}, "Send"))
    result = go(simulator, path, "-o", str(tmp_path / "out"))
    assert result.status == ExitStatus.OK
    assert sorted(os.listdir(tmp_path / "out")) == ["Send_00001.png", "Send_00002.png"]
    assert result.event("end")["message"].endswith("2 outputs.")


def test_pictures_that_a_cached_node_does_not_send_again_are_missed(
    simulator: Any, workflow_file: Make, tmp_path: Any
) -> None:
    path = workflow_file(shows({"images": [WEBSOCKET]}, "Send"))
    go(simulator, path)
    result = go(simulator, path, "-o", str(tmp_path / "out"))
    assert "1 picture sent over the WebSocket did not arrive" in result.event("notice")["message"]
    assert result.status == ExitStatus.NOT_SAVED
    assert result.event("end")["message"].endswith("Not saved: 1 picture sent over the WebSocket.")


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("version", ["0.3.57", "0.38.1"])
def test_the_previews_of_a_sampler_are_no_outputs_even_with_one_step(
    version: str, steps: int, make_simulator: Make, workflow_file: Make
) -> None:
    simulator = make_simulator(version=version)
    result = go(simulator, workflow_file(slow_prompt(steps=steps, seconds=0.0, preview=True)))
    assert [event["filename"] for event in result.events if event["event"] == "output"] == ["slow_00001_.png"]


def test_a_3d_file_that_is_named_by_a_bare_path_is_saved(simulator: Any, workflow_file: Make, tmp_path: Any) -> None:
    """As ComfyUI's own Save3DAdvanced and its like report it."""
    prompt = shows({"result": ["3d/mesh_00001.glb", None, []]})
    prompt["2"] = node("SimulatedOutput", "Preview", ui=json.dumps({"result": ["temp\\bg.obj"]}))
    result = go(simulator, workflow_file(prompt), "-o", str(tmp_path / "out"))
    assert result.status == ExitStatus.OK
    assert [(event["kind"], event["type"]) for event in result.events if event["event"] == "output"] == [
        ("3d", "output"), ("3d", "temp"),
    ]  # fmt: skip
    assert b"mesh_00001.glb" in (tmp_path / "out" / "3d" / "mesh_00001.glb").read_bytes()
    assert sorted(os.listdir(tmp_path / "out")) == ["3d", "bg.obj"]


@pytest.mark.parametrize(
    "text", ["cats/input.png", "../secret.glb", "/etc/passwd.png", "C:\\secret.png", "temp/../../a.png"]
)
def test_a_text_that_is_the_name_of_no_output_is_saved_as_a_text(
    text: str, simulator: Any, workflow_file: Make, tmp_path: Any
) -> None:
    result = go(simulator, workflow_file(shows({"text": [text]}, "Show")), "-o", str(tmp_path / "out"))
    assert result.status == ExitStatus.OK
    assert os.listdir(tmp_path / "out") == ["Show.txt"]
    assert (tmp_path / "out" / "Show.txt").read_text() == text


def test_a_file_that_a_node_saved_and_that_is_gone_is_an_error(
    simulator: Any, workflow_file: Make, tmp_path: Any
) -> None:
    prompt = shows({"result": ["mesh_00001.glb"]})
    go(simulator, workflow_file(prompt))
    os.unlink(os.path.join(simulator.folder("output"), "mesh_00001.glb"))
    result = go(simulator, workflow_file(prompt), "-o", str(tmp_path / "out"))
    assert result.status == ExitStatus.NOT_SAVED and os.listdir(tmp_path / "out") == []


def test_base64_is_reported_by_kind_and_size_and_saved_as_a_file(
    simulator: Any, workflow_file: Make, tmp_path: Any
) -> None:
    encoded = base64.b64encode(draw(64, 64, 1, ["A"])).decode()
    path = workflow_file(shows({"text": [encoded, encoded + "!"]}, "To Base64"))
    told = run("--server", simulator.url, path, "--yes")
    assert "To Base64: image as base64," in told.out and encoded not in told.out
    assert "came as base64 in a text: add -o DIR to save them." in told.out + told.err
    go(simulator, path, "-o", str(tmp_path / "out"))
    assert (tmp_path / "out" / "To Base64.png").read_bytes() == draw(64, 64, 1, ["A"])
    assert (tmp_path / "out" / "To Base64.txt").read_text() == encoded + "!"


def test_files_of_the_input_folder_are_no_outputs_and_temporary_ones_come_last(
    simulator: Any, workflow_file: Make
) -> None:
    files = [{"filename": "%s.png" % type_, "type": type_} for type_ in ("input", "temp", "output")]
    result = go(simulator, workflow_file(shows({"images": files, "text": [832]})))
    told = [event["filename"] or event["text"] for event in result.events if event["event"] == "output"]
    assert told == ["output.png", "832", "temp.png"]


def test_no_outputs_are_explained(simulator: Any, workflow_file: Make) -> None:
    result = go(simulator, workflow_file(shows({"images": []}, "Image Save")))
    assert 'Nothing was reported by "Image Save" (SimulatedOutput, node 1).' in result.event("end")["message"]


def test_a_name_that_is_taken_gets_a_number_unless_overwrite(
    simulator: Any, workflow_file: Make, tmp_path: Any
) -> None:
    path, out = workflow_file(slow_prompt()), str(tmp_path)
    names = [os.path.basename(go(simulator, path, "-o", out).event("saved")["path"]) for _ in range(3)]
    assert names == ["slow_00001_.png", "slow_00001_ (1).png", "slow_00001_ (2).png"]
    again = go(simulator, path, "-o", out, "--overwrite").event("saved")["path"]
    assert os.path.basename(again) == "slow_00001_.png"
    assert not [name for name in os.listdir(out) if name.startswith(".part")]


@pytest.mark.parametrize(
    "name", ["../../evil.png", "/etc/evil.png", "..\\evil.png", "C:\\evil.png", "a/../../evil.png"]
)
def test_no_name_leads_out_of_the_folder(name: str, workflow_file: Make, tmp_path: Any) -> None:
    out = tmp_path / "out"
    saved = write_file(str(out), safe_path_parts("../..", name), False, [b"x"])
    assert os.path.realpath(saved.path).startswith(os.path.realpath(str(out)) + os.sep)


def test_no_saved_file_is_hidden_or_obeyed_by_another_program(
    simulator: Any, workflow_file: Make, tmp_path: Any
) -> None:
    files = {"images": [
        {"filename": ".bashrc", "subfolder": "", "type": "output"},
        {"filename": "post-checkout", "subfolder": ".git/hooks", "type": "output"},
    ]}  # fmt: skip
    for entry in files["images"]:
        path = os.path.join(simulator.folder("output"), entry["subfolder"], entry["filename"])
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(b"x")
    path = workflow_file({"1": node("SimulatedOutput", "Out", ui=json.dumps(files))})
    out = tmp_path / "out"
    go(simulator, path, "-o", str(out))
    saved = sorted(each.relative_to(out).as_posix() for each in out.rglob("*") if each.is_file())
    assert saved == ["_bashrc", "_git/hooks/post-checkout"]


@pytest.mark.skipif(os.name == "nt", reason="making links needs a privilege on Windows")
def test_a_link_in_the_folder_that_leads_out_is_refused(tmp_path: Any) -> None:
    (tmp_path / "out").mkdir()
    os.symlink(str(tmp_path), str(tmp_path / "out" / "sub"))
    with pytest.raises(SaveError, match="leads out of"):
        write_file(str(tmp_path / "out"), ["sub", "a.png"], False, [b"x"])
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["sub"]


# -- what is wrong with a workflow -----------------------------------------------------------------


def test_a_refused_prompt_names_node_input_value_and_what_is_allowed(simulator: Any, workflow_file: Make) -> None:
    prompt = slow_prompt(steps=10**9)
    result = go(simulator, workflow_file(prompt))
    assert result.status == ExitStatus.REJECTED
    problem = result.event("problem")
    assert (problem["title"], problem["node_id"], problem["input"], problem["value"]) == ("Slow", "1", "steps", 10**9)
    assert "Allowed" in problem["hints"][0]
    assert result.event("error")["exit_status"] == ExitStatus.REJECTED
    assert executions(simulator) == 0


def with_lora(name: str) -> Dict[str, Any]:
    """A prompt with a list of so many options that the server's refusal leaves them out."""
    strengths = {"strength_model": 1.0, "strength_clip": 1.0}
    sampling: Any = {"seed": 1, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    return {
        "1": node("CheckpointLoaderSimple", ckpt_name="sd_xl_base_1.0.safetensors"),
        "2": node("LoraLoader", "Style", model=["1", 0], clip=["1", 1], lora_name=name, **strengths),
        "3": node("CLIPTextEncode", text="x", clip=["2", 1]),
        "4": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "5": node("KSampler", model=["2", 0], positive=["3", 0], negative=["3", 0], latent_image=["4", 0], **sampling),
        "6": node("VAEDecode", samples=["5", 0], vae=["1", 2]),
        "7": node("SaveImage", images=["6", 0], filename_prefix="x"),
    }


def test_an_option_out_of_many_is_offered_nearest_first(simulator: Any, workflow_file: Make) -> None:
    options = requests.get(simulator.url + "/object_info/LoraLoader", timeout=5).json()["LoraLoader"]["input"][
        "required"
    ]
    names = parse_spec(options["lora_name"]).choices
    assert names and len(names) > 20  # so many that the server's answer leaves them out
    wrong = names[-1].replace(".safetensors", "_v2.safetensors")
    problem = go(simulator, workflow_file(with_lora(wrong))).event("problem")
    assert problem["hints"][0].startswith("Did you mean %s, " % names[-1])
    assert problem["hints"][0].count(".safetensors") == 3


def test_every_missing_class_is_named_not_only_the_first(simulator: Any, workflow_file: Make) -> None:
    prompt = {**slow_prompt(), "8": node("NotThere"), "9": node("NorThis")}
    result = go(simulator, workflow_file(prompt))
    assert result.status == ExitStatus.REJECTED
    assert [event["class_type"] for event in result.events if event["event"] == "problem"] == ["NotThere", "NorThis"]


def test_a_node_that_raises_is_reported_with_its_title_and_traceback(simulator: Any, workflow_file: Make) -> None:
    prompt = {
        "1": node("EmptyImage", width=8, height=8, batch_size=1, color=0),
        "2": node("FailNode", "Breaks", message="no\x1b[31m way", image=["1", 0]),
        "3": node("SaveImage", images=["2", 0], filename_prefix="x"),
    }
    path = workflow_file(prompt)
    result = go(simulator, path)
    assert result.status == ExitStatus.FAILED
    failure = result.event("failure")
    assert (failure["title"], failure["class_type"], failure["type"]) == ("Breaks", "FailNode", "ValueError")
    assert failure["message"] == "no way"
    plain = run("--server", simulator.url, "--yes", path)
    assert '"Breaks" (FailNode, node 2) raised ValueError: no way' in plain.out
    assert "\x1b" not in plain.out
    verbose = run("--server", simulator.url, "--yes", "-v", path)
    assert verbose.out.count("  File ") > plain.out.count("  File ") or "left out" not in plain.out


def test_outputs_that_the_server_refuses_are_reported_before_and_after(simulator: Any, workflow_file: Make) -> None:
    prompt = {**slow_prompt(), "3": node("SaveImage", "Broken", filename_prefix="y", images=["404", 0])}
    result = go(simulator, workflow_file(prompt))
    assert result.status == ExitStatus.PARTIAL
    names = result.names()
    assert '"Broken"' in result.event("notice")["message"]
    assert names.index("notice") < names.index("end")
    assert "links to node 404" in result.event("problem")["message"]
    assert "only in part" in result.event("end")["message"]
    assert [event["title"] for event in result.events if event["event"] == "output"] == ["Save Image"]


# -- never losing a run ----------------------------------------------------------------------------


@pytest.mark.parametrize("dropped", [
    ["execution_success"], ["executing"], ["execution_success", "executing"], ["executed"],
    ["execution_start", "execution_cached", "progress_state", "progress"],
    ["execution_start", "execution_cached", "executing", "progress", "progress_state", "executed", "execution_success"],
])  # fmt: skip
def test_messages_that_never_come_change_nothing(dropped: List[str], make_simulator: Make, workflow_file: Make) -> None:
    simulator = make_simulator()
    simulator.faults.drop_events = frozenset(dropped)
    result = go(simulator, workflow_file(slow_prompt()))
    assert result.status == ExitStatus.OK
    assert result.event("output")["filename"] == "slow_00001_.png"


def test_a_late_history_entry_is_waited_for(simulator: Any, workflow_file: Make) -> None:
    simulator.faults.history_delay = FAST.settle / 2
    result = go(simulator, workflow_file(slow_prompt()))
    assert (result.status, result.event("output")["filename"]) == (ExitStatus.OK, "slow_00001_.png")


def test_an_evicted_history_entry_leaves_the_sockets_word(simulator: Any, workflow_file: Make) -> None:
    simulator.faults.history_evict = True
    result = go(simulator, workflow_file(slow_prompt()))
    assert (result.status, result.event("output")["filename"]) == (ExitStatus.OK, "slow_00001_.png")


def test_evicted_and_not_reported_is_lost_and_not_called_a_success(simulator: Any, workflow_file: Make) -> None:
    simulator.faults.history_evict = True
    simulator.faults.drop_events = frozenset(["execution_success"])
    result = go(simulator, workflow_file(slow_prompt()))
    assert result.status == ExitStatus.LOST
    assert "no longer in the server's queue or history" in result.event("end")["message"]


def looks_at_history(simulator: Any) -> int:
    return sum(path.startswith("/history/") for _, path in simulator.requests)


def test_an_end_whose_messages_are_lost_is_noticed_by_the_status_behind_it(
    simulator: Any, workflow_file: Make, quick: Make
) -> None:
    simulator.faults.drop_end = True
    simulator.faults.drop_events = frozenset(["execution_success"])
    result = go(simulator, workflow_file(slow_prompt()), limits=FAST._replace(poll=30.0))
    assert (result.status, result.event("output")["filename"]) == (ExitStatus.OK, "slow_00001_.png")
    quick(10.0)


def test_an_attached_run_is_noticed_by_the_status_behind_it(simulator: Any) -> None:
    """Its messages go to the client that submitted it; status messages go to everybody."""
    prompt_id = new_uuid()
    body = {"prompt": slow_prompt(seconds=4.0), "client_id": "other", "prompt_id": prompt_id}
    requests.post(simulator.url + "/prompt", json=body, timeout=5)
    result = run("--server", simulator.url, "--json", "--attach", prompt_id, limits=FAST._replace(poll=30.0))
    over = time.time() * 1000
    assert result.status == ExitStatus.OK
    entry = requests.get(simulator.url + "/history/" + prompt_id, timeout=5).json()[prompt_id]
    ended = max(data["timestamp"] for _, data in entry["status"]["messages"])
    assert over - ended < 1500.0  # without hints it is looked for every four seconds


def test_other_peoples_prompts_that_come_and_go_are_looked_after_once_a_second(
    simulator: Any, workflow_file: Make
) -> None:
    def come_and_go() -> None:
        wait_until(lambda: executions(simulator), what="the run's begin")
        for _ in range(20):
            other = {"prompt": slow_prompt(seed=99), "client_id": "other", "prompt_id": new_uuid()}
            requests.post(simulator.url + "/prompt", json=other, timeout=5)
            requests.post(simulator.url + "/queue", json={"delete": [other["prompt_id"]]}, timeout=5)

    others = threading.Thread(target=come_and_go)
    others.start()
    try:
        result = go(simulator, workflow_file(slow_prompt(seconds=2.5)), limits=FAST._replace(poll=30.0))
    finally:
        others.join()
    assert result.status == ExitStatus.OK
    assert 2 <= looks_at_history(simulator) <= 6  # one for each second, and one or two for the end


@pytest.mark.parametrize("after", [1, 2, 5, 9])
def test_a_socket_that_is_cut_is_opened_again(after: int, simulator: Any, workflow_file: Make) -> None:
    simulator.faults.cut_ws_after = after
    result = go(simulator, workflow_file(slow_prompt(steps=6, seconds=0.6)))
    assert result.status == ExitStatus.OK
    states = {event["state"] for event in result.events if event["event"] == "connection"}
    is_cut_while_it_opens = after == 1  # right after its status, which ends the opening
    assert "lost" in states or (is_cut_while_it_opens and states == {"unavailable"})
    assert executions(simulator) == 1


def test_a_socket_that_is_deaf_after_a_reconnect_does_not_lose_the_end(simulator: Any, workflow_file: Make) -> None:
    simulator.faults.deaf_reconnect = True
    simulator.faults.cut_ws_after = 6
    result = go(simulator, workflow_file(slow_prompt(steps=6, seconds=0.8)))
    assert (result.status, result.event("output")["filename"]) == (ExitStatus.OK, "slow_00001_.png")


@pytest.mark.parametrize(
    "lost", [["after"], ["before"], ["before", "before"], ["before", "after"], ["502"], ["503", "after"]]
)
def test_a_post_whose_answer_is_lost_runs_once(lost: List[str], simulator: Any, workflow_file: Make) -> None:
    simulator.faults.lose_post = list(lost)
    result = go(simulator, workflow_file(slow_prompt()))
    assert (result.status, result.event("output")["filename"]) == (ExitStatus.OK, "slow_00001_.png")
    assert executions(simulator) == 1


BROKEN = {
    "1": node("NoSuchNode", "Odd"),
    "2": node("EmptyImage", width=8, height=8, batch_size=0, color=0),
    "3": node("SaveImage", images=["2", 0], filename_prefix="x"),
}


@pytest.mark.parametrize("answer", ["500", "400", "unnamed"])
def test_a_refusal_that_names_no_node_is_explained_by_our_own_check(
    answer: str, simulator: Any, workflow_file: Make
) -> None:
    simulator.faults.lose_post = [answer]
    result = go(simulator, workflow_file(BROKEN))
    assert result.status == ExitStatus.REJECTED
    problems = [event for event in result.events if event["event"] == "problem" and event["node_id"]]
    assert [(problem["node_id"], problem["type"]) for problem in problems] == [
        ("1", "missing_node_type"),
        ("2", "value_smaller_than_min"),
    ]
    message = result.event("error")["message"]
    assert (f"answered HTTP {answer} to POST /prompt" in message) is (answer != "unnamed")


@pytest.mark.parametrize("version", ["0.3.64", "0.33.0"])
@pytest.mark.parametrize("arguments", [[], ["--check"]])
def test_links_that_go_in_a_circle_are_named_though_older_servers_give_no_reason(
    arguments: List[str], version: str, make_simulator: Make, workflow_file: Make
) -> None:
    circle = {
        "1": node("ImageInvert", image=["2", 0]),
        "2": node("ImageInvert", image=["1", 0]),
        "3": node("SaveImage", images=["1", 0], filename_prefix="x"),
    }
    result = go(make_simulator(version=version), workflow_file(circle), *arguments)
    assert result.status == ExitStatus.REJECTED
    problem = next(event for event in result.events if event["event"] == "problem")
    assert (problem["type"], problem["node_id"]) == ("dependency_cycle", "1")
    assert problem["message"] == "its links go in a circle: 1 (ImageInvert) -> 2 (ImageInvert) -> 1 (ImageInvert)."


@pytest.mark.parametrize("version", ["0.3.64", "0.33.0"])
def test_outputs_that_need_a_circle_of_links_are_missed_though_older_servers_do_not_mention_them(
    version: str, make_simulator: Make, workflow_file: Make
) -> None:
    prompt = {
        **slow_prompt(),
        "6": node("ImageInvert", image=["7", 0]),
        "7": node("ImageInvert", image=["6", 0]),
        "8": node("SaveImage", "Save the other", images=["7", 0], filename_prefix="x"),
    }
    result = go(make_simulator(version=version), workflow_file(prompt))
    assert result.status == ExitStatus.PARTIAL
    assert 'runs the rest, without: "Save the other".' in result.event("notice")["message"]
    assert "dependency_cycle" in [event["type"] for event in result.events if event["event"] == "problem"]


def test_a_500_over_a_prompt_that_seems_right_is_not_blamed_on_it(simulator: Any, workflow_file: Make) -> None:
    simulator.faults.lose_post = ["500"]
    result = go(simulator, workflow_file(slow_prompt()))
    assert result.status == ExitStatus.NO_SERVER
    assert "problem" not in result.names()
    assert result.event("error")["remedy"] == "ComfyUI's own console says why."


URL = "https://huggingface.co/a/b/resolve/main/fox.safetensors"
MODELS = [{"name": "fox.safetensors", "url": URL, "directory": "checkpoints"}]


@pytest.mark.parametrize("arguments", [[], ["--check"], ["--seed", "7"], ["--repeat", "1"]])
def test_the_hint_at_a_missing_model_has_the_line_that_downloads_it(
    arguments: List[str], simulator: Any, workflow_file: Make, tmp_path: Any
) -> None:
    prompt = txt2img()
    prompt["4"]["inputs"]["ckpt_name"] = "fox.safetensors"
    workflow = {"nodes": [{"id": 4, "type": "CheckpointLoaderSimple", "properties": {"models": MODELS}}]}
    path = workflow_file({"prompt": prompt, "workflow": workflow})
    result = go(simulator, path, *arguments, *(["--manifest", str(tmp_path / "m")] if "--repeat" in arguments else []))
    assert result.status in (ExitStatus.REJECTED, ExitStatus.FAILED)
    (problem,) = [event for event in result.events if event["event"] == "problem"]
    assert problem["value"] == "fox.safetensors"
    curl = "curl.exe -L -o" if os.name == "nt" else "curl -L -o models/checkpoints/fox.safetensors " + URL
    assert problem["hints"][-1].startswith(curl)


FOLDERS = ["SDXL/sd_xl_base_1.0.safetensors", "random_sdxl.safetensors"]


@pytest.mark.parametrize("name", ["SDXL\\sd_xl_base_1.0.safetensors", "sd_xl_base_1.0.safetensors"])
@pytest.mark.parametrize(
    "arguments", [[], ["--seed", "7"], ["--repeat", "1"], ["--set", "4.ckpt_name={}"], ["--check"]]
)
def test_a_model_that_the_server_has_under_another_name_is_taken_with_a_notice(
    arguments: List[str], name: str, simulator: Any, workflow_file: Make, monkeypatch: Any, tmp_path: Any
) -> None:
    monkeypatch.setitem(MODELS_OF_SIMULATOR, "checkpoints", FOLDERS)
    prompt = txt2img(steps=1)
    prompt["4"]["inputs"]["ckpt_name"] = name
    if "--set" in arguments:
        prompt["4"]["inputs"]["ckpt_name"] = FOLDERS[1]
    if "--repeat" in arguments:
        arguments = [*arguments, "--manifest", str(tmp_path / "m.jsonl")]
    result = go(simulator, workflow_file(prompt), *[argument.format(name) for argument in arguments])
    assert result.status == ExitStatus.OK
    notices = [event["message"] for event in result.events if event["event"] == "notice"]
    assert [notice.partition(": ")[2] for notice in notices] == [
        f"{FOLDERS[0]} is used for {name}, which the server does not list under this name."
    ]
    if "--check" not in arguments:
        (entry,) = simulator._server.life.history.values()
        assert entry["prompt"][2]["4"]["inputs"]["ckpt_name"] == FOLDERS[0]


def test_a_server_that_says_nothing_of_its_models_gets_the_prompt_as_it_is(simulator: Any, workflow_file: Make) -> None:
    simulator.faults.http_status = {"/object_info": 503}
    assert go(simulator, workflow_file(txt2img(steps=1))).status == ExitStatus.OK


def test_a_file_of_the_output_folder_is_not_to_be_uploaded_to_the_input_folder(
    simulator: Any, workflow_file: Make
) -> None:
    prompt = {"1": node("LoadImage", image="none.png [output]")}
    prompt["2"] = node("SaveImage", images=["1", 0], filename_prefix="x")
    for arguments in ([], ["--check"]):
        result = go(simulator, workflow_file(prompt), *arguments)
        assert result.status == ExitStatus.REJECTED
        (hint,) = result.event("problem")["hints"]
        assert "in its output folder" in hint and "Upload" not in hint
    prompt["1"]["inputs"]["image"] = "none.png [temp]"
    (hint,) = go(simulator, workflow_file(prompt)).event("problem")["hints"]
    assert "temp folder, which it empties" in hint


def test_a_post_is_repeated_only_after_two_seconds_of_absence(simulator: Any, workflow_file: Make) -> None:
    simulator.faults.lose_post = ["before"]
    times: List[float] = []
    original = Server.submit

    def submit(self: Server, body: Any) -> Any:
        times.append(time.monotonic())
        return original(self, body)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Server, "submit", submit)
        result = go(simulator, workflow_file(slow_prompt()), limits=FAST._replace(absent=DEFAULT_LIMITS.absent))
    assert result.status == ExitStatus.OK
    assert len(times) == 2 and times[1] - times[0] >= 2.0


def test_a_prompt_that_arrives_twice_runs_once(simulator: Any, workflow_file: Make) -> None:
    blocker = slow_prompt(steps=20, seconds=4.0, seed=99)
    requests.post(simulator.url + "/prompt", json={"prompt": blocker, "client_id": "other"}, timeout=5)
    simulator.faults.lose_post = ["late:%s" % (FAST.absent + 0.5)]  # taken after we gave it up
    result = go(simulator, workflow_file(slow_prompt()))
    assert result.status == ExitStatus.OK
    ours = result.events[-1]["prompt_id"]
    assert simulator.executions[ours] == 1
    assert requests.get(simulator.url + "/queue", timeout=5).json() == {"queue_running": [], "queue_pending": []}


def test_noise_and_messages_over_a_megabyte_are_taken_in_stride(simulator: Any, workflow_file: Make) -> None:
    simulator.faults.noise = True
    simulator.faults.big_frame = 3 << 20
    result = go(simulator, workflow_file(slow_prompt(steps=5, preview=True)))
    assert result.status == ExitStatus.OK
    assert "connection" not in result.names()
    values = [event["value"] for event in result.events if event["event"] == "progress"]
    assert values[0] == 1 and values[-1] == 5 and values == sorted(values)


def test_a_server_that_stalls_is_reported_with_what_its_queue_says(simulator: Any, workflow_file: Make) -> None:
    simulator.faults.stall = 1.5
    result = go(simulator, workflow_file(slow_prompt()), limits=FAST._replace(silence=0.5, poll=0.2))
    assert result.status == ExitStatus.OK
    silence = [event for event in result.events if event["event"] == "silence"]
    assert silence and "queue says that it is running" in silence[0]["server_says"]
    assert len(silence) <= 3  # reported at 0.5 s, then at twice the time before


def test_a_server_that_restarts_has_lost_the_job(simulator: Any, workflow_file: Make) -> None:
    def restart() -> None:
        wait_until(lambda: executions(simulator), what="the run's begin")
        simulator.restart()

    thread = threading.Thread(target=restart)
    thread.start()
    result = go(simulator, workflow_file(slow_prompt(steps=50, seconds=30.0)))
    thread.join()
    assert result.status == ExitStatus.LOST
    assert "The run is lost" in result.event("end")["message"]


def test_a_server_that_dies_is_given_up_after_a_while(simulator: Any, workflow_file: Make) -> None:
    def crash() -> None:
        wait_until(lambda: executions(simulator), what="the run's begin")
        simulator.crash()

    thread = threading.Thread(target=crash)
    thread.start()
    result = go(simulator, workflow_file(slow_prompt(steps=50, seconds=30.0)), limits=FAST._replace(give_up=1.5))
    thread.join()
    assert result.status == ExitStatus.LOST
    assert "did not answer for" in result.event("end")["message"]


@pytest.fixture
def asleep(monkeypatch: pytest.MonkeyPatch) -> List[float]:
    """How many seconds the clock of the program has jumped, as it does on Windows after a sleep."""
    jumped = [0.0]
    monotonic = time.monotonic

    def read_clock() -> float:
        is_program = threading.current_thread() is threading.main_thread()
        return monotonic() + (jumped[0] if is_program else 0.0)

    monkeypatch.setattr(time, "monotonic", read_clock)
    return jumped


@pytest.mark.long
def test_a_computer_that_sleeps_does_not_lose_its_run(simulator: Any, workflow_file: Make, asleep: List[float]) -> None:
    """Its network is back some seconds later."""

    def sleep() -> None:
        wait_until(lambda: executions(simulator), what="the run's begin")
        simulator.faults.http_status = dict.fromkeys(["/queue", "/history", "/ws"], 503)
        asleep[0] = 600.0
        simulator.cut_websockets()
        time.sleep(3.0)
        simulator.faults.http_status = {}

    thread = threading.Thread(target=sleep)
    thread.start()
    result = go(simulator, workflow_file(slow_prompt(steps=8, seconds=8.0)))
    thread.join()
    assert result.status == ExitStatus.OK, result.out
    states = [event["state"] for event in result.events if event["event"] == "connection"]
    assert states == ["lost", "restored"]


def test_a_computer_that_sleeps_while_it_submits_submits_once_it_is_awake(
    simulator: Any, workflow_file: Make, asleep: List[float]
) -> None:
    simulator.faults.http_status = {"/prompt": 503}

    def sleep() -> None:
        wait_until(lambda: any(path == "/prompt" for _, path, _ in simulator.received), what="the first try")
        asleep[0] = 600.0
        time.sleep(1.0)
        simulator.faults.http_status = {}

    thread = threading.Thread(target=sleep)
    thread.start()
    result = go(simulator, workflow_file(slow_prompt()))
    thread.join()
    assert result.status == ExitStatus.OK, result.out
    assert executions(simulator) == 1


def test_one_connection_follows_several_prompts(simulator: Any) -> None:
    prompts = [slow_prompt(steps=3, seconds=0.3, seed=seed) for seed in range(5)]
    prompts[3] = {"1": node("NotThere")}

    async def follow() -> List[Run]:
        reports: List[Any] = []
        server = Server(parse_address(simulator.url), FAST)
        session = Session(server, lambda run, report: reports.append((run, report)))
        await session.open()

        async def execute(run: Run) -> None:
            await session.submit(run)
            await session.follow(run)

        try:
            runs = [session.new_run(prompt, new_uuid()) for prompt in prompts]
            results = await asyncio.gather(*map(execute, runs), return_exceptions=True)
        finally:
            await session.close()
        assert [type(result).__name__ for result in results] == ["NoneType"] * 3 + ["PromptRejected", "NoneType"]
        assert {id(run) for run, _ in reports if run is not None} == set(map(id, runs[:3] + runs[4:]))
        return runs

    runs = run_loop(follow())
    phases = [run.state.phase for run in runs]
    assert phases == [Phase.SUCCESS] * 3 + [Phase.REJECTED, Phase.SUCCESS]
    made = [run.state.outputs["2"]["images"][0]["filename"] for run in runs if run.state.outputs]
    assert sorted(made) == ["slow_0000%d_.png" % number for number in (1, 2, 3, 4)]
    assert [call for call in simulator.requests if call[1] == "/ws"] == [("GET", "/ws")]


def test_node_ids_of_subgraphs_are_followed(simulator: Any, workflow_file: Make) -> None:
    prompt = slow_prompt()
    prompt["12:34"] = prompt.pop("1")
    prompt["7.1"] = prompt.pop("2")
    prompt["7.1"]["inputs"]["images"] = ["12:34", 0]
    result = go(simulator, workflow_file(prompt))
    assert result.status == ExitStatus.OK
    assert [(e["node_id"], e["title"]) for e in result.events if e["event"] == "node_finished"] == [
        ("12:34", "Slow"), ("7.1", "Save Image"),
    ]  # fmt: skip
    assert result.event("end")["nodes_done"] == 2


def test_somebody_else_interrupts_our_run(simulator: Any, workflow_file: Make) -> None:
    def interrupt() -> None:
        wait_until(lambda: executions(simulator), what="the run's begin")
        requests.post(simulator.url + "/interrupt", timeout=5)

    thread = threading.Thread(target=interrupt)
    thread.start()
    result = go(simulator, workflow_file(slow_prompt(steps=50, seconds=30.0)))
    thread.join()
    assert result.status == ExitStatus.INTERRUPTED
    assert "Someone else interrupted the run" in result.event("end")["message"]


def test_somebody_else_takes_our_prompt_off_the_queue(simulator: Any, workflow_file: Make) -> None:
    blocker = requests.post(
        simulator.url + "/prompt",
        json={"prompt": slow_prompt(steps=100, seconds=30.0), "client_id": "other"},
        timeout=5,
    ).json()["prompt_id"]

    def clear() -> None:
        wait_until(lambda: requests.get(simulator.url + "/queue", timeout=5).json()["queue_pending"], what="our prompt")
        requests.post(simulator.url + "/queue", json={"clear": True}, timeout=5)

    thread = threading.Thread(target=clear)
    thread.start()
    result = go(simulator, workflow_file(slow_prompt()))
    thread.join()
    requests.post(simulator.url + "/interrupt", json={"prompt_id": blocker}, timeout=5)
    assert result.status == ExitStatus.INTERRUPTED
    assert "removed the prompt from the queue" in result.event("end")["message"]


def submit_blocker(simulator: Any, seed: int) -> str:
    """Somebody else's prompt, which runs until it is interrupted: its id."""
    post = {"client_id": "other", "prompt": slow_prompt(steps=600, seconds=60.0, seed=seed), "prompt_id": new_uuid()}
    requests.post(simulator.url + "/prompt", json=post, timeout=20).raise_for_status()
    return str(post["prompt_id"])


def ended(simulator: Any) -> Any:
    """The ids of the prompts that have ended."""
    return requests.get(simulator.url + "/history", timeout=20).json()


def end_blocker(simulator: Any, prompt_id: str) -> None:
    wait_until(lambda: simulator._server.life.snapshot()[0], what="a running prompt")
    requests.post(simulator.url + "/interrupt", json={"prompt_id": prompt_id}, timeout=20)


def test_the_place_in_the_queue_is_reported_while_waiting(simulator: Any, workflow_file: Make) -> None:
    first, second = (submit_blocker(simulator, seed) for seed in (1, 2))
    look = ("GET", "/queue")

    def end_one_after_the_other() -> None:
        wait_until(lambda: look in simulator.requests, what="the look at two prompts in front")
        end_blocker(simulator, first)
        wait_until(lambda: first in ended(simulator), what="the end of the first")
        seen = simulator.requests.count(look)
        # A request is counted before it is answered: the second one shows that the first was answered.
        wait_until(lambda: simulator.requests.count(look) > seen + 1, what="looks at one prompt in front")
        end_blocker(simulator, second)

    thread = threading.Thread(target=end_one_after_the_other)
    thread.start()
    result = go(simulator, workflow_file(slow_prompt(seed=3)))
    thread.join()
    assert result.status == ExitStatus.OK
    ahead = [event["ahead"] for event in result.events if event["event"] == "queued"]
    assert ahead == sorted(ahead, reverse=True) and ahead[0] == 2 and 1 in ahead


# -- the timeout -----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.33.0", "0.3.64"])
def test_the_timeout_cancels_ours(version: str, make_simulator: Make, workflow_file: Make) -> None:
    simulator = make_simulator(version=version)
    result = go(simulator, workflow_file(slow_prompt(steps=100, seconds=30.0)), "--timeout", "0.7")
    assert result.status == ExitStatus.TIMEOUT
    assert "Cancelled by --timeout: ComfyUI interrupted our run" in result.event("end")["message"]
    queue = requests.get(simulator.url + "/queue", timeout=5).json()
    assert queue == {"queue_running": [], "queue_pending": []}


def test_the_first_version_that_interrupts_one_prompt_is_asked_so(
    make_simulator: Make, make_slow: Make, workflow_file: Make
) -> None:
    proxy = make_slow(make_simulator(version="0.3.57"))
    result = go(proxy, workflow_file(slow_prompt(steps=100, seconds=30.0)), "--timeout", "0.7")
    assert result.status == ExitStatus.TIMEOUT
    (interrupt,) = [asked for asked in proxy.asked if asked.path == "/interrupt"]
    assert json.loads(interrupt.body) == {"prompt_id": result.events[-1]["prompt_id"]}


@pytest.mark.parametrize("version", ["0.33.0", "0.3.64"])
def test_the_timeout_takes_a_waiting_prompt_off_and_leaves_the_other(
    version: str, make_simulator: Make, workflow_file: Make
) -> None:
    simulator = make_simulator(version=version)
    blocker = slow_prompt(steps=20, seconds=2.0, seed=9)
    other = requests.post(simulator.url + "/prompt", json={"prompt": blocker, "client_id": "other"}, timeout=5)
    result = go(simulator, workflow_file(slow_prompt()), "--timeout", "0.6")
    assert result.status == ExitStatus.TIMEOUT
    assert "removed from the queue" in result.event("end")["message"]
    prompt_id = other.json()["prompt_id"]
    url = "%s/history/%s" % (simulator.url, prompt_id)
    entry = wait_until(lambda: requests.get(url, timeout=5).json().get(prompt_id), what="the other's end")
    assert list(entry["outputs"]) == ["2"]
    assert executions(simulator) == 1


def test_a_server_that_never_confirms_is_reported(simulator: Any, workflow_file: Make) -> None:
    simulator.faults.ignore_interrupt = True
    limits = FAST._replace(cancel=1.0)
    result = go(simulator, workflow_file(slow_prompt(steps=100, seconds=20.0)), "--timeout", "0.5", limits=limits)
    assert result.status == ExitStatus.TIMEOUT
    assert "may still be running" in result.event("end")["message"]


# -- answers that trickle: a read timeout does not end them ------------------------------------------

#: No read timeout ends before the slow answers do by themselves.
PATIENT = FAST._replace(read=30.0, connect=0.5)


@pytest.mark.parametrize("chatter", [None, {"type": "crystools.monitor", "data": {}}])
def test_a_socket_that_never_tells_its_status_is_gone_without(
    chatter: Any, simulator: Any, make_slow: Make, workflow_file: Make, quick: Make
) -> None:
    proxy = make_slow(simulator)
    proxy.mute, proxy.chatter = True, chatter
    result = go(proxy, workflow_file(slow_prompt()), limits=FAST._replace(websocket=0.3))
    assert (result.status, result.event("output")["filename"]) == (ExitStatus.OK, "slow_00001_.png")
    assert result.event("connection")["state"] == "unavailable"
    assert executions(simulator) == 1
    quick(9.0)


def test_a_socket_may_take_its_time_to_tell_its_status(simulator: Any, make_slow: Make, workflow_file: Make) -> None:
    proxy = make_slow(simulator)
    proxy.first_message_after = 0.5
    result = go(proxy, workflow_file(slow_prompt()))
    assert result.status == ExitStatus.OK
    assert "connection" not in result.names()
    assert proxy.count("GET", "/ws") == 1


def test_a_look_for_affinity_that_trickles_is_made_again(
    simulator: Any, make_slow: Make, workflow_file: Make, quick: Make
) -> None:
    proxy = make_slow(simulator)
    proxy.handshake_header = b"Set-Cookie: lb=one; Path=/"
    proxy.trickling = {"GET /queue": 1}
    result = go(proxy, workflow_file(slow_prompt()), limits=FAST._replace(read=0.5))
    assert result.status == ExitStatus.OK
    assert "connection" not in result.names()
    assert (proxy.trickled, proxy.count("GET", "/ws")) == (1, 2)
    quick(9.0)


def test_an_answer_to_a_post_that_trickles_is_as_good_as_lost(
    simulator: Any, make_slow: Make, workflow_file: Make, quick: Make
) -> None:
    proxy = make_slow(simulator)
    proxy.trickling = {"POST /prompt": 1}
    result = go(proxy, workflow_file(slow_prompt()), limits=FAST._replace(post=0.4, connect=0.3, absent=0.3))
    assert result.status == ExitStatus.OK
    assert (proxy.trickled, executions(simulator)) == (1, 1)
    quick(9.0)


@pytest.mark.parametrize("route", ["/queue", "/history/"])
def test_an_end_that_trickles_is_read_again(
    route: str, simulator: Any, make_slow: Make, workflow_file: Make, quick: Make
) -> None:
    simulator.faults.drop_events = frozenset(["execution_success", "executing"])
    proxy = make_slow(simulator)
    proxy.trickling = {"GET " + route: 1}
    limits = FAST._replace(read=0.4, connect=0.4, poll=0.2)
    result = go(proxy, workflow_file(slow_prompt()), limits=limits)
    assert (result.status, result.event("output")["filename"]) == (ExitStatus.OK, "slow_00001_.png")
    assert proxy.trickled == 1
    quick(9.0)


@pytest.mark.long
def test_the_history_that_trickles_after_the_sockets_word_is_given_up(
    simulator: Any, make_slow: Make, workflow_file: Make, quick: Make
) -> None:
    proxy = make_slow(simulator)
    proxy.trickling = {"GET /history/": 100}
    limits = FAST._replace(read=0.3, connect=0.3, give_up=3.0)
    result = go(proxy, workflow_file(slow_prompt()), limits=limits)
    assert result.status == ExitStatus.LOST
    assert "did not answer for" in result.event("end")["message"]
    assert proxy.trickled >= 2
    quick(12.0)


def test_a_refused_prompt_is_reported_though_the_definitions_trickle(
    simulator: Any, make_slow: Make, workflow_file: Make, quick: Make
) -> None:
    proxy = make_slow(simulator)
    proxy.trickling = {"GET /object_info": 100}
    result = go(proxy, workflow_file(with_lora("none")), limits=FAST._replace(read=0.3))
    assert result.status == ExitStatus.REJECTED
    assert result.event("problem")["input"] == "lora_name"
    assert proxy.trickled == 7  # once before it is submitted, and six times when it is refused
    quick(9.0)


@pytest.mark.parametrize("route", ["GET /queue", "GET /history/", "POST /api/jobs/"])
def test_a_cancel_takes_no_longer_than_it_may(
    route: str, simulator: Any, make_slow: Make, workflow_file: Make, quick: Make
) -> None:
    proxy = make_slow(simulator)
    proxy.trickling = {route: 100}
    limits = PATIENT._replace(cancel=0.6)
    path = workflow_file(slow_prompt(steps=100, seconds=30.0))
    result = go(proxy, path, "--timeout", "0.5", limits=limits)
    assert result.status == ExitStatus.TIMEOUT
    assert "may still be running" in result.event("end")["message"]
    assert proxy.trickled
    quick(8.0)


@pytest.mark.parametrize("slow", ["GET /queue", "POST /queue"])
def test_taking_copies_off_the_queue_does_not_hold_the_end_up(slow: str, simulator: Any, make_slow: Make) -> None:
    post = {"client_id": "other", "prompt": slow_prompt(steps=100, seconds=30.0)}
    requests.post(simulator.url + "/prompt", json=post, timeout=5)
    copy = {**post, "prompt_id": new_uuid()}
    requests.post(simulator.url + "/prompt", json=copy, timeout=5)
    proxy = make_slow(simulator)
    proxy.trickling = {slow: 1}

    async def story() -> None:
        session = Session(Server(parse_address(proxy.url), PATIENT), lambda run, report: None)
        run = session.new_run(slow_prompt(), str(copy["prompt_id"]))
        run.repeated = True
        run.over.set()
        await session.follow(run)

    began = time.monotonic()
    loop = HurriedLoop(10.0)
    try:
        loop.run_until_complete(story())
    finally:
        loop.close()
    assert proxy.trickled == 1
    assert time.monotonic() - began < 9.0


def test_taking_copies_off_the_queue_does_not_hold_the_run_up(
    simulator: Any, make_slow: Make, workflow_file: Make, quick: Make
) -> None:
    blocker = submit_blocker(simulator, seed=99)
    simulator.faults.lose_post = ["late:%s" % (FAST.absent + 0.5)]  # taken after we gave it up
    proxy = make_slow(simulator)
    proxy.trickling = {"POST /queue": 1}

    def end_blocker_later() -> None:
        wait_until(lambda: proxy.trickled, what="the removal of the copy")
        end_blocker(simulator, blocker)

    thread = threading.Thread(target=end_blocker_later)
    thread.start()
    result = go(proxy, workflow_file(slow_prompt()), limits=FAST._replace(read=0.5))
    thread.join()
    assert result.status == ExitStatus.OK
    assert proxy.trickled == 1
    quick(12.0)


def test_attaching_to_a_prompt_whose_history_trickles_is_given_up(simulator: Any, make_slow: Make, quick: Make) -> None:
    proxy = make_slow(simulator)
    proxy.trickling = {"GET /history/": 100}
    result = run("--server", proxy.url, "--attach", new_uuid(), limits=FAST._replace(read=0.5, connect=0.5))
    assert result.status == ExitStatus.NO_SERVER
    assert "did not arrive completely in" in result.err
    quick(9.0)


# -- one press of Ctrl+C ---------------------------------------------------------------------------


def test_a_press_ends_a_download_that_trickles(
    simulator: Any, make_slow: Make, workflow_file: Make, tmp_path: Any, press: Make, quick: Make
) -> None:
    proxy = make_slow(simulator)
    proxy.trickling = {"GET /view": 1}
    press(lambda: proxy.trickled, "the download")
    result = go(proxy, workflow_file(slow_prompt()), "-o", str(tmp_path / "out"))
    assert result.status == ExitStatus.CANCELLED
    assert [event for event in result.events if event["event"] == "notice"][-1]["message"].startswith("Stopped: ")
    assert "saved" not in result.names()
    quick(8.0)


def test_a_press_between_two_posts_ends_the_run_before_the_next(
    simulator: Any, make_slow: Make, workflow_file: Make, press: Make, quick: Make
) -> None:
    simulator.faults.http_status = {"/prompt": 503}
    proxy = make_slow(simulator)

    def between() -> bool:
        """The third try failed, and the prompt is looked for."""
        return bool(proxy.count("POST", "/prompt") == 3 and proxy.asked[-1].path != "/prompt")

    press(between, "three tries")
    result = go(proxy, workflow_file(slow_prompt()), limits=FAST._replace(absent=0.05, give_up=60.0))
    assert result.status == ExitStatus.CANCELLED
    assert proxy.count("POST", "/prompt") == 3
    assert "nothing was submitted" in result.out + result.err
    assert executions(simulator) == 0
    quick(12.0)


# -- saving ----------------------------------------------------------------------------------------


def test_a_file_that_is_gone_has_its_own_status(simulator: Any, workflow_file: Make, tmp_path: Any) -> None:
    simulator.faults.http_status = {"/view": 404}
    result = go(simulator, workflow_file(slow_prompt()), "-o", str(tmp_path))
    assert result.status == ExitStatus.NOT_SAVED
    assert "change a seed" in result.event("not_saved")["remedy"]
    assert os.listdir(tmp_path) == ["workflow_api.json"]


def test_a_download_that_breaks_is_tried_again(simulator: Any, workflow_file: Make, tmp_path: Any) -> None:
    simulator.faults.cut_http = {"/view": 2}
    result = go(simulator, workflow_file(slow_prompt()), "-o", str(tmp_path / "out"))
    assert result.status == ExitStatus.OK
    assert os.listdir(tmp_path / "out") == ["slow_00001_.png"]


def test_a_download_that_is_cut_goes_on_and_people_are_told(simulator: Any, workflow_file: Make, tmp_path: Any) -> None:
    simulator.faults.cut_files = [100]
    result = go(simulator, workflow_file(slow_prompt()), "-o", str(tmp_path / "out"))
    assert result.status == ExitStatus.OK
    assert result.event("notice")["message"].startswith("slow_00001_.png was cut off at 100 B of ")
    folder = os.path.join(simulator.root, "output")
    with open(os.path.join(folder, "slow_00001_.png"), "rb") as file:
        assert (tmp_path / "out" / "slow_00001_.png").read_bytes() == file.read()


@pytest.mark.parametrize("folder", ["taken", os.path.join("taken", "{row}"), os.path.join("taken", "below")])
def test_a_folder_that_cannot_be_written_is_refused_before_anything_runs(
    simulator: Any, workflow_file: Make, tmp_path: Any, folder: str
) -> None:
    (tmp_path / "taken").write_text("a file")
    for more in ([], ["--repeat", "2"], ["--attach", "p"], ["--mode", "continuous", "--port", "0"]):
        result = go(simulator, workflow_file(slow_prompt()), "-o", str(tmp_path / folder), *more)
        assert result.status == ExitStatus.USAGE
        assert "Outputs cannot be saved in" in result.err and "Nothing was run." in result.err
    assert ("POST", "/prompt") not in simulator.requests


def test_the_folder_is_made_before_the_question(simulator: Any, workflow_file: Make, tmp_path: Any) -> None:
    folder = tmp_path / "new" / "out"
    result = run("--server", simulator.url, workflow_file(slow_prompt()), "-o", str(folder / "{row}"), answers="n\n")
    assert result.status == ExitStatus.NOT_CONFIRMED
    assert os.listdir(folder) == []  # what tried it is gone


def test_the_last_line_says_what_is_not_saved(simulator: Any, workflow_file: Make, tmp_path: Any) -> None:
    """A folder that can be written may still have a file where a folder belongs."""
    files = [
        {"filename": name, "subfolder": place, "type": "output"} for name, place in (("a.png", ""), ("b.png", "s"))
    ]
    prompt = {"1": node("SimulatedOutput", ui=json.dumps({"images": files}))}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "s").write_text("in the way")
    result = go(simulator, workflow_file(prompt), "-o", str(tmp_path / "out"))
    assert result.status == ExitStatus.NOT_SAVED
    assert "could not be saved in" in result.event("not_saved")["message"]
    assert result.event("end")["message"].split("\n")[-1] == "Not saved: b.png."


def test_what_custom_nodes_tell_everybody_is_no_word_of_our_run() -> None:
    """Monitors send to all sockets every second: that must not put off the look at queue and history."""

    async def story() -> None:
        session = Session(Server(parse_address("127.0.0.1:1")), lambda run, report: None)
        run = session.new_run(slow_prompt(), new_uuid())
        run.state = run.state._replace(phase=Phase.RUNNING)
        heard = run.heard = run.heard - 60.0
        for message in ({"type": "crystools.monitor", "data": {}}, {"type": "feature_flags", "data": {}}):
            session._receive(json.dumps(message))
            assert run.heard == heard
        session._receive(json.dumps({"type": "progress", "data": {"value": 1, "max": 2}}))
        assert run.heard > heard

    asyncio.run(story())


@pytest.mark.long
@pytest.mark.skipif(
    int(importlib.metadata.version("websockets").split(".")[0]) < 14,
    reason="it gives up what has come when it is closed",
)
def test_a_flood_of_messages_leaves_the_loop_its_turns() -> None:
    """Frames that came together wait in the library: to take them needs no turn of the loop."""
    frames = 20_000  # to take them needs many times the 20 ms after which others have a turn
    turns = 0

    async def flood(socket: Any) -> None:
        for _ in range(frames):
            await socket.send(json.dumps({"type": "progress", "data": {"value": 1, "max": 2}}))

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def story() -> None:
        session = Session(Server(parse_address("127.0.0.1:1")), lambda run, report: None)
        # The flood may begin before the client has ended the handshake.
        async with websockets.asyncio.server.serve(flood, "127.0.0.1", 0, open_timeout=None) as server:
            url = "ws://127.0.0.1:%d" % server.sockets[0].getsockname()[1]
            socket = await websockets.asyncio.client.connect(url, max_queue=2 * frames, open_timeout=None)
            await socket.wait_closed()  # all of them have come
            session._use_socket(socket)
            counting = asyncio.ensure_future(count_turns())
            await session._read_socket()
            counting.cancel()

    asyncio.run(story())
    assert turns > 1
