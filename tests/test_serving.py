"""What the steps of continuous mode say, without a socket."""

from __future__ import annotations

import asyncio
import datetime
import errno
import json
import os
import time
from pathlib import Path
from typing import Any, Callable, List, Optional, Tuple

import pytest
from asked import Asked, Serve
from desk import Desk, settings_of
from support import FAST, slow_prompt

from comfyui_runner.addresses import parse_address
from comfyui_runner.comfyui import ComfyUI
from comfyui_runner.documents import Conversion
from comfyui_runner.errors import UsageError
from comfyui_runner.loading import Loaded
from comfyui_runner.server import Server
from comfyui_runner.serving import (
    ExpectedServers,
    address_in_network,
    cannot_listen,
    choose_workflows,
    find_or_expect_servers,
    load_when_possible,
    make_service,
    name_in_folder,
    open_state,
    refuse_own_address,
    restore_workflow,
    url_in_network,
    url_of_service,
)
from comfyui_runner.settings import Settings
from comfyui_runner.state_keeper import Restored
from comfyui_runner.threads import in_thread


class WindowsError(OSError):
    """An error of Windows, on any system."""

    winerror = 10048


@pytest.mark.parametrize("error", [OSError(errno.EADDRINUSE, "x"), WindowsError(0, "x")])
def test_a_port_in_use_is_named_with_another_one(error: OSError) -> None:
    refusal = cannot_listen(error, "127.0.0.1", 8189)
    assert (refusal.message, refusal.remedy) == ("Port 8189 is already in use.", "Choose another one: --port 8190")
    assert cannot_listen(error, "127.0.0.1", 65535).remedy == "Choose another one: --port 65534"
    assert "--port 65534" in cannot_listen(error, "127.0.0.1", 65535, is_ours=True).remedy


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", None),
        ("127.3.2.1", None),
        ("localhost", None),
        ("::1", None),
        ("192.168.1.20", "http://192.168.1.20:8189"),
        ("gpu.example", "http://gpu.example:8189"),
        ("fe80::2", "http://[fe80::2]:8189"),
    ],
)
def test_where_a_phone_finds_the_service(host: str, url: Optional[str]) -> None:
    assert url_in_network(host, 8189) == url


def test_the_address_of_this_machine_is_named_where_it_listens_to_the_network() -> None:
    own = address_in_network()
    expected = None if own is None else f"http://{own}:8189"
    assert url_in_network("0.0.0.0", 8189) == url_in_network("::", 8189) == expected
    assert own is None or not own.startswith("127.")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.EACCES, "Permission denied"), "Permission denied"),
        (OSError("the name is not known"), "the name is not known"),
    ],
)
def test_another_reason_is_not_called_a_port_in_use(error: OSError, reason: str) -> None:
    refusal = cannot_listen(error, "gpu.example", 80)
    assert refusal.message == f"The service cannot listen on gpu.example, port 80: {reason}."
    assert refusal.remedy == "Check --host and --port."


def test_a_port_that_windows_forbids_keeps_its_reason() -> None:
    error = WindowsError(errno.EACCES, "An attempt was made to access a socket in a way forbidden by its permissions.")
    error.winerror = 10013
    refusal = cannot_listen(error, "127.0.0.1", 8189)
    assert refusal.message == (
        "The service cannot listen on 127.0.0.1, port 8189: "
        "An attempt was made to access a socket in a way forbidden by its permissions."
    )
    assert "Another program has the port for itself, or Windows has reserved it" in refusal.remedy
    assert refusal.remedy.endswith("--port 8190")


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8189"),
        ("0.0.0.0", "http://127.0.0.1:8189"),
        ("::", "http://127.0.0.1:8189"),
        ("::1", "http://[::1]:8189"),
        ("gpu.example", "http://gpu.example:8189"),
    ],
)
def test_the_address_for_a_browser(host: str, url: str) -> None:
    assert url_of_service(host, 8189) == url


def serve_from(port: int, *addresses: str) -> None:
    refuse_own_address([Server(parse_address(address)) for address in addresses], port)


def test_a_service_is_not_its_own_comfyui() -> None:
    with pytest.raises(UsageError, match=r"--server is the address of this service itself \(port 8189\)"):
        serve_from(8189, "http://localhost:8189")
    with pytest.raises(UsageError):  # nor the second address that is tried
        serve_from(8000, "http://127.0.0.1:8188", "http://127.0.0.1:8000")
    serve_from(8189, "http://127.0.0.1:8188", "http://127.0.0.1:8000")
    serve_from(8189, "http://192.0.2.1:8189")  # the same port of another machine


# -- a ComfyUI that comes later --------------------------------------------------------------------


def tell(story: Callable[[Desk, ComfyUI, Settings], Any], *arguments: str) -> str:
    """A story of a service that is about to start; what a person reads of it."""
    shown: List[str] = []

    async def work() -> None:
        desk = Desk()
        settings = settings_of("--mode", "continuous", "--state", "none", *arguments)._replace(limits=FAST)
        await story(desk, ComfyUI(settings, desk.console), settings)
        shown.append(desk.out.getvalue())

    asyncio.run(work())
    return shown[0]


def test_without_a_comfyui_the_service_listens_and_says_so() -> None:
    async def story(desk: Desk, comfyui: ComfyUI, settings: Settings) -> None:
        servers, is_shown = await find_or_expect_servers(settings, comfyui, desk.console)
        assert not is_shown
        assert [server.address for server in servers] == list(settings.servers)
        assert {server.limits for server in servers} == {FAST}
        assert {id(server.secrets) for server in servers} == {id(desk.console.secrets)}

    shown = tell(story, "--server", "http://127.0.0.1:1")
    assert "http://127.0.0.1:1" in shown
    assert shown.endswith(" Listening anyway: runs can start when ComfyUI answers.\n")


def test_a_comfyui_that_is_too_old_is_expected_and_the_service_says_so_later(serve: Serve) -> None:
    asked = Asked(serve, {"/system_stats": (200, {"system": {"comfyui_version": "0.3.1"}})})

    async def story(desk: Desk, comfyui: ComfyUI, settings: Settings) -> None:
        (server,), is_shown = await find_or_expect_servers(settings, comfyui, desk.console)
        assert server.address.url == asked.server.address.url and not is_shown

    assert tell(story, "--server", asked.server.address.url) == ""


def test_a_workflow_that_needs_a_comfyui_waits_for_it_and_says_so_once(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr("comfyui_runner.serving.LOAD_INTERVAL", 0.01)
    old, new = ({"system": {"comfyui_version": version}} for version in ("0.3.1", "0.31.0"))
    asked = Asked(serve, {"/system_stats": (200, old), "/object_info": (200, {"A": {"input": {}, "output": []}})})
    path = tmp_path / "ui.json"
    path.write_text('{"nodes": [{"id": 1, "type": "A"}], "links": [], "version": 0.4}', encoding="utf-8")

    async def story(desk: Desk, comfyui: ComfyUI, settings: Settings) -> None:
        loading = asyncio.ensure_future(load_when_possible(settings, comfyui, desk.console))
        while len(asked.requests) < 3 and not loading.done():
            await asyncio.sleep(0.01)
        assert not loading.done()
        assert desk.out.getvalue().count("Waiting for it: it is needed to read the workflow.") == 1
        asked.answers["/system_stats"] = (200, new)
        loaded = await asyncio.wait_for(loading, 20.0)
        assert list(loaded.prompt) == ["1"]

    tell(story, "--server", asked.server.address.url, str(path))


def test_where_runs_are_kept_is_said_by_verbose_alone(tmp_path: Any) -> None:
    async def story(desk: Desk, comfyui: ComfyUI, settings: Settings) -> None:
        state = await open_state(settings, Loaded(slow_prompt(), str(tmp_path / "a.json")), desk.console)
        await in_thread(state.keeper.close)

    path = str(tmp_path / "runs.sqlite3")
    assert tell(story, "--state", path) == ""
    said = f"Runs and edits are kept in {path} (--state none: in memory only).\n"
    assert tell(story, "--state", path, "--verbose") == said


def test_what_concerns_a_run_has_its_number_in_front(tmp_path: Any) -> None:
    async def story(desk: Desk, comfyui: ComfyUI, settings: Settings) -> None:
        loaded = Loaded(slow_prompt(), "a.json")
        state = await open_state(settings, loaded, desk.console)
        service = make_service(ExpectedServers([desk.server]), loaded, state, settings, desk.console)
        service._show("0123456789abcdef", {"event": "notice", "message": "of a run"})
        service._show(None, {"event": "notice", "message": "of all"})
        options = service.options
        assert (options.max_queue, options.timeout, options.output) == (5, 60.0, "out")
        assert (options.overwrite, options.auto_execute) == (True, True)
        assert options.public_url == "https://gpu.example"
        assert options.guard is settings.guard and options.secrets is desk.console.secrets

    flags = "--max-queue 5 --timeout 60 -o out --overwrite --auto-execute --public-url https://gpu.example"
    assert tell(story, *flags.split()) == "[01234567] of a run\nof all\n"


def test_a_workflow_is_read_again_from_its_file_but_not_from_standard_input(tmp_path: Any) -> None:
    path = tmp_path / "flow.json"
    path.write_text(json.dumps(slow_prompt(seed=1)), encoding="utf-8")

    async def story(desk: Desk, comfyui: ComfyUI, settings: Settings) -> None:
        first = Loaded(slow_prompt(seed=1), str(path))
        path.write_text(json.dumps(slow_prompt(seed=2)), encoding="utf-8")
        state = await open_state(settings, first, desk.console)
        service = make_service(ExpectedServers([desk.server]), first, state, settings, desk.console)
        assert service.options.load(str(path)).prompt == slow_prompt(seed=2)
        settings = settings._replace(workflow="-")
        from_input = make_service(ExpectedServers([desk.server]), first, state, settings, desk.console)
        assert from_input.options.load("-") is first

    tell(story, str(path))


@pytest.mark.parametrize(
    ("is_edited", "by_client", "has_changed", "words"),
    [
        (False, False, False, ""),  # it is what its file has
        (True, False, False, "It has the edits of the last service"),
        (False, True, False, "It has the edits of the last service"),
        (False, False, True, ""),
        (True, False, True, "a.json has changed since the last service ended"),
        (False, True, True, "a.json has changed since the last service ended"),
    ],
)
def test_what_the_last_service_held_is_said_where_it_is_not_the_file(
    is_edited: bool, by_client: bool, has_changed: bool, words: str
) -> None:
    async def story(desk: Desk, comfyui: ComfyUI, settings: Settings) -> None:
        loaded = Loaded(slow_prompt(), "a.json")
        state = await open_state(settings, loaded, desk.console)
        service = make_service(ExpectedServers([desk.server]), loaded, state, settings, desk.console)
        held = service.held.as_stored()._replace(is_edited=is_edited)
        if by_client:
            held = held._replace(client=loaded._replace(path="of a client"))
        if has_changed:
            held = held._replace(fingerprint="another")
        restore_workflow(service, Restored(held), desk.console)
        restore_workflow(service, Restored(), desk.console)  # nothing was kept

    shown = tell(story)
    assert shown.startswith(words) and bool(shown) is bool(words)


def test_a_file_that_has_changed_is_said_to_once_and_dropped_edits_stay_dropped(tmp_path: Path) -> None:
    path = str(tmp_path / "a.json")
    prompts = [slow_prompt(seed=seed) for seed in (1, 2)]
    first, second = (Loaded(prompt, path, None, Conversion(prompt)) for prompt in prompts)
    edited = slow_prompt(seed=3)

    def start(loaded: Loaded, edit: Any = None) -> Tuple[str, Any]:
        """What the service says at its start that finds ``loaded`` in the file, and what it holds."""
        held: List[Any] = []

        async def story(desk: Desk, comfyui: ComfyUI, settings: Settings) -> None:
            state = await open_state(settings, loaded, desk.console)
            service = make_service(ExpectedServers([desk.server]), loaded, state, settings, desk.console)
            held.append(service.held.now.prompt)
            if edit is not None:
                service.held.hold(edit)
            state.keeper.close()

        return tell(story, "--state", str(tmp_path / "a.runs.sqlite3")), held[0]

    start(first, edited)
    said, held = start(second)
    assert "has changed since the last service ended" in said and held == second.prompt
    assert start(second) == ("", second.prompt)
    assert start(first) == ("", first.prompt)


def test_a_damaged_state_file_that_cannot_be_renamed_is_no_reason_not_to_serve(tmp_path: Path) -> None:
    path = tmp_path / "a.runs.sqlite3"
    path.write_bytes(b"text")
    for seconds in range(60):  # every new name for it that the clock may ask for is a folder's
        now = datetime.datetime.now() + datetime.timedelta(seconds=seconds)
        (tmp_path / f"{path.name}.unusable-{now:%Y%m%d-%H%M%S}").mkdir()

    async def story(desk: Desk, comfyui: ComfyUI, settings: Settings) -> None:
        state = await open_state(settings, Loaded(slow_prompt(), str(tmp_path / "a.json")), desk.console)
        await asyncio.sleep(0)  # the notice comes from a thread
        assert not state.keeper.has_file

    shown = tell(story, "--state", str(path))
    assert "cannot be used: it is not a database, and it cannot be renamed: " in shown
    assert shown.endswith("Runs and edits are kept in memory only.\n")
    assert path.read_bytes() == b"text"


@pytest.mark.parametrize(("is_edited", "words"), [(True, "b.json is kept as it was"), (False, "")])
def test_edits_of_another_workflow_than_the_first_are_said_to_be_kept(is_edited: bool, words: str) -> None:
    async def story(desk: Desk, comfyui: ComfyUI, settings: Settings) -> None:
        loaded = Loaded(slow_prompt(), "a.json")
        state = await open_state(settings, loaded, desk.console)
        settings = settings._replace(workflows=("a.json", "b.json"))
        service = make_service(ExpectedServers([desk.server]), loaded, state, settings, desk.console)
        stored = service.workflows.as_stored()._replace(name="b.json", is_edited=is_edited)
        restore_workflow(service, Restored(stored), desk.console)

    shown = tell(story)
    assert shown.startswith(words) and bool(shown) is bool(words)


def test_workflows_are_files_patterns_and_folders_and_the_first_is_loaded(tmp_path: Any) -> None:
    for name in ("b.json", "a.json"):
        (tmp_path / name).write_text(json.dumps(slow_prompt()), encoding="utf-8")
    paths = tuple(str(tmp_path / name) for name in ("a.json", "b.json"))
    cases = [
        ((paths[1],), (paths[1],), ""),
        ((paths[1], paths[0]), (paths[1], paths[0]), ""),
        ((str(tmp_path / "*.json"),), paths, ""),
        ((str(tmp_path),), paths, str(tmp_path)),
    ]

    async def story(desk: Desk, comfyui: ComfyUI, settings: Settings) -> None:
        for words, expected, folder in cases:
            given = settings._replace(workflow=words[0], workflows=words)
            chosen = await choose_workflows(given, desk.console)
            assert (chosen.workflow, chosen.workflows, chosen.folder) == (expected[0], expected, folder)
        by_variable = await choose_workflows(settings._replace(workflow=str(tmp_path)), desk.console)
        assert by_variable.workflows == paths

    tell(story)


def test_the_state_of_a_folder_is_not_named_after_one_of_its_files(tmp_path: Any) -> None:
    assert name_in_folder("") == ""
    assert name_in_folder("flows/") == os.path.join("flows/", "flows")
    assert os.path.basename(name_in_folder(".")) == os.path.basename(os.getcwd())


def test_what_a_session_reports_is_shown_and_published_with_its_time() -> None:
    async def story(desk: Desk, comfyui: ComfyUI, settings: Settings) -> None:
        loaded = Loaded(slow_prompt(), "a.json")
        state = await open_state(settings, loaded, desk.console)
        service = make_service(ExpectedServers([desk.server]), loaded, state, settings, desk.console)
        before = time.time()
        stream = service.streams.open(None)
        service.report(desk.run, {"event": "notice", "message": "of the run"})
        service.report(None, {"event": "notice", "message": "of all"})
        service.report(desk.run, {"event": "output", "filename": "a.png"})  # the list of the run has it
        service.streams.end()
        sent: List[bytes] = []
        stream.send_until_end(sent.append, 60.0)
        lines = [line for line in b"".join(sent).decode().splitlines() if line.startswith("data: ")]
        first, second, *rest = (json.loads(line[len("data: ") :]) for line in lines)
        assert not any("filename" in event for event in rest)
        assert (first["prompt_id"], first["event"], first["message"]) == ("id", "notice", "of the run")
        assert (second["prompt_id"], second["message"]) == (None, "of all")
        assert all(before - 1.0 <= event["time"] <= time.time() + 1.0 for event in (first, second))

    assert tell(story) == "[id] of the run\nof all\n"
