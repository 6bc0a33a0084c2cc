"""The recipes that need other programs, as docs/RECIPES.md has them: inotifywait, systemd's unit, nginx."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import Any, Callable, Dict, Iterator, List, NamedTuple

import pytest
import requests
from debian import require_program
from support import CERTIFICATE, FIXTURES, ROOT, node, wait_until
from test_recipes import read_recipes

from comfyui_runner.simulator import Simulator, draw

pytestmark = [
    pytest.mark.long,
    pytest.mark.script_and_folder,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="these recipes are for Linux"),
]

Make = Callable[..., Any]
LOADER = {
    "1": node("LoadImage", image="example.png"),
    "2": node("SaveImage", images=["1", 0], filename_prefix="done"),
}
#: Seconds: a deadline, not a delay.
LONGEST_WAIT = 60.0
TOKEN = "a-long-random-text"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


def block(language: str, word: str) -> str:
    """The text of the one block of the document in a language that has ``word`` in it."""
    blocks = re.findall(rf"(?ms)^```{language}\n(.*?)^```$", read_recipes())
    (text,) = (text for text in blocks if word in text)
    return str(text)


def line_with(word: str) -> str:
    """The one command of the document that has ``word`` in it."""
    (line,) = (line for line in re.findall(r"(?m)^    (\S.*)$", read_recipes()) if word in line)
    return str(line)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Workplace(NamedTuple):
    """A folder from which the commands of the document work: the script, the workflow, and ``python``."""

    folder: Any
    environment: Dict[str, str]

    def start(self, command: Any, **more: str) -> "subprocess.Popen[str]":
        """Starts a command, or a line of the shell, in a process group of its own."""
        return subprocess.Popen(
            command, shell=isinstance(command, str), cwd=str(self.folder), env={**self.environment, **more},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip


@pytest.fixture
def workplace(tmp_path: Any, simulator: Simulator) -> Workplace:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "python").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    (programs / "python").chmod(0o755)
    for name in ("comfyui_workflow_runner.py", "comfyui_runner"):
        (tmp_path / name).symlink_to(os.path.join(ROOT, name))
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    return Workplace(tmp_path, {**os.environ, "PATH": path, "COMFYUI_URL": simulator.url, "NO_PROXY": "127.0.0.1"})


@pytest.fixture(scope="module")
def inotifywait() -> str:
    return require_program("inotifywait", "inotify-tools")


@pytest.fixture(scope="module")
def nginx() -> str:
    return require_program("nginx", "nginx-light")


def end(process: "subprocess.Popen[str]", number: int) -> str:
    """Sends a signal to a whole process group, as Ctrl+C does. Returns what the command printed."""
    os.killpg(process.pid, number)
    try:
        out, _ = process.communicate(timeout=30)
        return out
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_pictures_that_come_into_a_watched_folder_run_one_after_the_other(
    inotifywait: str, workplace: Workplace
) -> None:
    photos = workplace.folder / "photos"
    photos.mkdir()
    (photos / "before.png").write_bytes(draw(8, 8, 1, ["A"]))
    (workplace.folder / "flow.json").write_text(json.dumps(LOADER))
    process = workplace.start(line_with("inotifywait"))
    assert process.stdout is not None
    try:
        first_lines = iter(process.stdout.readline, "")
        assert any("Watches established" in line for line in first_lines)

        def saved() -> List[str]:
            return sorted(path.parent.name for path in workplace.folder.glob("results/*/*/done_*.png"))

        (photos / "one, two.png").write_bytes(draw(8, 8, 2, ["B"]))
        wait_until(lambda: saved() == ["00001"], seconds=LONGEST_WAIT, what="the first picture")
        (photos / "notes.txt").write_text("no picture")
        (photos / "broken.jpg").write_text("no picture")
        (photos / ".late.png.part").write_bytes(draw(8, 8, 3, ["C"]))
        os.replace(str(photos / ".late.png.part"), str(photos / "late.png"))
        wait_until(lambda: saved() == ["00001", "00003"], seconds=LONGEST_WAIT, what="the last picture")
        (manifest,) = workplace.folder.glob("results/*/manifest.jsonl")
        wait_until(lambda: '"row": 3' in manifest.read_text(), seconds=LONGEST_WAIT, what="the row of the last picture")
    finally:
        out = end(process, signal.SIGINT)
    assert "Row 2" in out and "is not a picture" in out
    assert "2 rows done" in out and "1 failed" in out


def test_systemd_finds_nothing_wrong_with_the_unit(workplace: Workplace) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze")
    unit = workplace.folder / "comfyui-workflow-runner.service"
    unit.write_text(block("ini", "ExecStart=").replace("/opt/comfyui-workflow-runner/.venv/bin/python", sys.executable))
    checked = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )
    assert checked.returncode == 0 and unit.name not in checked.stderr, checked.stderr


def wait_for_comfyui(process: "subprocess.Popen[str]", url: str) -> None:
    """Until the service answers at ``url``, and has found ComfyUI; ``process`` may not end before."""

    def is_ready() -> bool:
        assert process.poll() is None
        try:
            answer = requests.get(url + "/health", verify=CERTIFICATE, timeout=10)
        except requests.ConnectionError:
            return False
        return bool(answer.json()["comfyui"])

    wait_until(is_ready, seconds=LONGEST_WAIT, what=f"the service at {url}")


@pytest.fixture
def public_url(nginx: str, workplace: Workplace, simulator: Simulator) -> Iterator[str]:
    """The service as the unit starts it, behind nginx as it is configured there; its address for clients."""
    port, inner_port = free_port(), free_port()
    url = f"https://127.0.0.1:{port}/runner"
    unit = block("ini", "ExecStart=")
    (line,) = re.findall(r"(?m)^ExecStart=(.*)$", unit)
    line = line.replace("/opt/comfyui-workflow-runner/.venv/bin/python", "python")
    line = line.replace("https://gpu.example/runner", url)
    line = line.replace("/var/lib/comfyui-workflow-runner", str(workplace.folder))
    assignments = [*re.findall(r"(?m)^Environment=(.*)$", unit), *block("ini", "TOKEN=").split()]
    variables = {"COMFYUI_RUNNER_PORT": str(inner_port)}
    for name, _, value in (each.partition("=") for each in assignments):
        variables[name] = value.replace("http://127.0.0.1:8188", simulator.url)
    shutil.copy(os.path.join(ROOT, "workflow_api.json"), str(workplace.folder / "my_workflow_api.json"))

    configuration = block("nginx", "location")
    for old, new in (
        ("listen 443", f"listen 127.0.0.1:{port}"),
        ("/etc/letsencrypt/live/gpu.example/fullchain.pem", CERTIFICATE),
        ("/etc/letsencrypt/live/gpu.example/privkey.pem", os.path.join(FIXTURES, "tls", "key.pem")),
        ("http://127.0.0.1:8189/", f"http://127.0.0.1:{inner_port}/"),
    ):
        assert old in configuration
        configuration = configuration.replace(old, new)
    folder = workplace.folder / "nginx"
    folder.mkdir()
    temporary = "".join(
        f"{name}_temp_path {folder / name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder / 'nginx.pid'}; {user}\nevents {{}}\n"
        f"http {{ access_log off;\n{temporary}{configuration}}}\n"
    )
    with contextlib.ExitStack() as stack:
        service = workplace.start(shlex.split(line), **variables)
        stack.callback(end, service, signal.SIGTERM)
        wait_for_comfyui(service, f"http://127.0.0.1:{inner_port}")
        proxy = workplace.start([nginx, "-c", str(folder / "nginx.conf"), "-e", str(folder / "errors.log")])
        stack.callback(end, proxy, signal.SIGTERM)
        wait_for_comfyui(proxy, url)
        yield url
    errors = (folder / "errors.log").read_text()
    assert "[error]" not in errors and "[crit]" not in errors, errors


def test_the_unit_behind_nginx_serves_pictures_events_and_the_page_with_tls_and_a_prefix(
    workplace: Workplace, public_url: str
) -> None:
    line = line_with("fox.png").replace("https://gpu.example/runner", public_url)
    process = workplace.start(line, CURL_CA_BUNDLE=CERTIFICATE)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, out
    picture = (workplace.folder / "fox.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert (workplace.folder / "runs.sqlite3").exists()

    with requests.Session() as client:
        client.verify, client.trust_env = CERTIFICATE, False  # the environment comes first
        assert client.get(public_url + "/status").status_code == 401
        page = client.get(public_url, headers={"Accept": "text/html"})  # without the slash, as people type it
        assert page.url == public_url + "/" and "<title>" in page.text
        client.headers.update(BEARER)
        (run,) = client.get(public_url + "/runs").json()["runs"]
        (output,) = run["outputs"]
        assert output["absolute_url"].startswith(public_url + "/")
        assert client.get(output["absolute_url"]).content == picture
        big = draw(8, 8, 1, ["A"], [("padding", "x" * 5_000_000)])
        upload = client.post(public_url + "/upload/image", files={"image": ("big.png", big)})
        assert "load" in upload.json()["error"]["message"]  # by the service, whose workflow loads no picture

        with client.get(public_url + "/events", stream=True) as events:
            asked = time.monotonic()
            line = next(each for each in events.iter_lines(chunk_size=1) if each)
            assert line == b"event: state" and time.monotonic() - asked < 10
