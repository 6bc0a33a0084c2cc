"""The program where it is installed: from a wheel, by uv as one file, and in an embedded Python."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from typing import Any, Dict

import pytest
from run import make_environment
from support import ROOT, make_decoys, node, slow_prompt

from comfyui_runner.errors import ExitStatus

pytestmark = [pytest.mark.long, pytest.mark.script_and_folder]

BIN = "Scripts" if os.name == "nt" else "bin"


def clean_environment() -> Dict[str, str]:
    """The environment without what would help Python to find this folder, and without our settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COMFYUI_"))}


def call(*command: str, cwd: Any, seconds: int = 60) -> "subprocess.CompletedProcess[str]":
    """Run a command in the folder ``cwd``, where nobody can be asked."""
    return subprocess.run(
        command,
        cwd=str(cwd),
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=seconds,
        check=False,
    )


def install(python: str, *packages: str) -> None:
    """Install packages by pip; the test is skipped where the package index cannot be reached."""
    done = call(python, "-m", "pip", "install", "--quiet", *packages, cwd=ROOT, seconds=300)
    if "No matching distribution" in done.stderr or "Could not find a version" in done.stderr:
        pytest.skip(f"pip cannot get {packages}: {done.stderr[-200:]}")
    assert done.returncode == 0, done.stderr


def new_python(folder: Any) -> str:
    """The Python of a fresh virtual environment."""
    make_environment(str(folder))
    return os.path.join(str(folder), BIN, "python")


# -- an environment beside the script ------------------------------------------------------------------


def test_setup_makes_an_environment_that_later_starts_use(tmp_path: Any) -> None:
    """The Python that starts it has no packages; it stays so."""
    bare = new_python(tmp_path / "bare")
    project = tmp_path / "my project"
    project.mkdir()
    for name in ("comfyui_workflow_runner.py", "requirements.txt", "workflow_api.json"):
        shutil.copy(os.path.join(ROOT, name), str(project))
    shutil.copytree(os.path.join(ROOT, "comfyui_runner"), str(project / "comfyui_runner"))
    script = str(project / "comfyui_workflow_runner.py")

    first = call(bare, script, "--setup", "--demo", "--yes", "--quiet", "-o", "out", cwd=tmp_path, seconds=300)
    if "No matching distribution" in first.stderr:
        pytest.skip("pip cannot reach the package index.")
    assert first.returncode == ExitStatus.OK, first.stderr
    assert first.stdout.strip().endswith(".png")
    assert "Creating " in first.stderr
    again = call(bare, script, "--setup", "--demo", "--yes", "--quiet", cwd=tmp_path)
    assert (again.returncode, again.stderr) == (ExitStatus.OK, "")
    later = call(bare, script, "--demo", "--yes", "--quiet", cwd=tmp_path)
    assert later.returncode == ExitStatus.OK
    assert later.stderr.startswith("This Python does not have the packages: continuing with the one in ")
    assert call(bare, "-c", "import requests", cwd=tmp_path).returncode == 1


def test_setup_of_the_one_file_reads_its_packages_from_itself(tmp_path: Any) -> None:
    bare = new_python(tmp_path / "bare")
    one_file = str(tmp_path / "runner.py")
    assert call(bare, os.path.join(ROOT, "comfyui_runner", "onefile.py"), one_file, cwd=tmp_path).returncode == 0
    workflow = tmp_path / "flow.json"
    workflow.write_text(json.dumps(slow_prompt()), encoding="utf-8")
    done = call(bare, one_file, "--setup", "--check", "--server", "127.0.0.1:1", "flow.json", cwd=tmp_path, seconds=300)
    if "No matching distribution" in done.stderr:
        pytest.skip("pip cannot reach the package index.")
    assert done.returncode == ExitStatus.NO_SERVER, done.stderr
    assert sorted(os.listdir(tmp_path)) == [".venv", "bare", "flow.json", "runner.py"]


# -- installed from a wheel --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: Any) -> str:
    """The wheel, built from a copy of the project as git has it: building leaves nothing behind here."""
    project = tmp_path_factory.mktemp("project")
    listed = call("git", "ls-files", "-z", cwd=ROOT).stdout.split("\0")
    if not any(listed):
        pytest.skip("This folder is not a clone: which files belong to the project is not known.")
    for name in filter(None, listed):
        target = project / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(os.path.join(ROOT, name), str(target))

    python = new_python(tmp_path_factory.mktemp("builder"))
    folder = tmp_path_factory.mktemp("wheel")
    done = call(python, "-m", "pip", "wheel", "--no-deps", "-w", str(folder), ".", cwd=project, seconds=300)
    if "hatchling" in done.stderr and "No matching distribution" in done.stderr:
        pytest.skip("pip cannot get hatchling, which builds the wheel.")
    assert done.returncode == 0, done.stderr
    (name,) = os.listdir(str(folder))
    return str(folder / name)


@pytest.fixture(scope="module")
def installed(wheel: str, tmp_path_factory: Any) -> str:
    """The folder of commands of a fresh environment that the wheel was installed in, with what it requires."""
    python = new_python(tmp_path_factory.mktemp("installed"))
    install(python, wheel)
    return os.path.dirname(python)


@pytest.mark.skipif(os.name == "nt", reason="Windows has copies, which do start there")
def test_the_python_of_an_environment_is_a_link(tmp_path: Any) -> None:
    """A copy of Homebrew's, Xcode's or uv's Python does not start."""
    python = new_python(tmp_path / "environment")
    assert os.path.islink(python)
    assert call(python, "-m", "pip", "--version", cwd=tmp_path).returncode == 0


def test_the_installed_command_runs_the_demo_from_an_empty_folder(installed: str, tmp_path: Any) -> None:
    command = os.path.join(installed, "comfyui-workflow-runner")
    done = call(command, "--demo", "--yes", "--json", "-o", "out", cwd=tmp_path)
    assert done.returncode == ExitStatus.OK, done.stderr
    events = {event["event"]: event for event in map(json.loads, done.stdout.splitlines())}
    assert events["workflow"]["nodes"] == 7  # the example came along
    assert os.path.getsize(os.path.join(str(tmp_path), events["saved"]["path"])) > 0
    assert os.listdir(tmp_path) == ["out"]


def test_the_installed_command_shows_its_help(installed: str, tmp_path: Any) -> None:
    command = os.path.join(installed, "comfyui-workflow-runner")
    done = call(command, "--help", cwd=tmp_path)
    assert done.returncode == ExitStatus.OK
    assert done.stdout.startswith("usage: comfyui-workflow-runner ")
    assert done.stderr == ""


def test_what_the_service_serves_is_installed_too(installed: str, tmp_path: Any) -> None:
    code = (
        "from comfyui_runner.resources import read_resource;"
        "from comfyui_runner.page import read_page;"
        "print(len(read_page()), len(read_resource('openapi.json')))"
    )
    done = call(os.path.join(installed, "python"), "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(int(size) > 10000 for size in done.stdout.split())


def test_programs_can_import_what_is_installed(installed: str, tmp_path: Any) -> None:
    code = (
        "from comfyui_runner import connect\n"
        "with connect(demo=True) as comfy:\n"
        "    result = comfy.run({'1': {'class_type': 'EmptyImage', 'inputs': "
        "{'width': 8, 'height': 8, 'batch_size': 1, 'color': 0}}, "
        "'2': {'class_type': 'SaveImage', 'inputs': {'images': ['1', 0], 'filename_prefix': 'x'}}})\n"
        "    print(result.outputs[0].save('out/'))\n"
    )
    done = call(os.path.join(installed, "python"), "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert os.listdir(tmp_path / "out") == [os.path.basename(done.stdout.strip())]


def test_the_simulator_is_installed_too(installed: str, tmp_path: Any) -> None:
    done = call(os.path.join(installed, "python"), "-m", "comfyui_runner.simulator", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--step-seconds" in done.stdout


def test_the_wheel_holds_the_program_and_nothing_else(wheel: str) -> None:
    import zipfile

    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    tops = {name.partition("/")[0].partition("-")[0] for name in names}
    assert tops == {"comfyui_runner", "comfyui_workflow_runner.py", "comfyui_workflow_runner"}  # the last: .dist-info
    endings = {os.path.splitext(name)[1] for name in names if name.startswith("comfyui_runner/")}
    assert endings <= {".py", ".html", ".css", ".js", ".json", ".typed"}


# -- the one file, run by uv -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uv(tmp_path_factory: Any) -> str:
    """The command uv: the machine's own, or one that is installed for this test."""
    found = shutil.which("uv")
    if found:
        return found
    python = new_python(tmp_path_factory.mktemp("uv"))
    install(python, "uv")
    return os.path.join(os.path.dirname(python), "uv")


def test_uv_runs_the_one_file_in_an_empty_folder(uv: str, simulator: Any, workflow_file: Any, tmp_path: Any) -> None:
    folder = tmp_path / "alone"
    folder.mkdir()
    build = call(sys.executable, os.path.join("comfyui_runner", "onefile.py"), str(folder / "runner.py"), cwd=ROOT)
    assert build.returncode == 0, build.stderr

    command = [uv, "run", "--no-project", "runner.py", "--server", simulator.url, "--yes", "-o", "out"]
    done = call(*command, workflow_file(slow_prompt()), cwd=folder, seconds=300)
    if "error sending request" in done.stderr or "dns error" in done.stderr:
        pytest.skip("uv cannot reach the package index.")
    assert done.returncode == ExitStatus.OK, done.stderr
    assert os.listdir(folder / "out") == ["slow_00001_.png"]


# -- an embedded Python, as ComfyUI portable has it ----------------------------------------------------


def unpack_python(folder: Any) -> str:
    """A Python with a ._pth file in ``folder``, as the embeddable zip of python.org unpacks to it, and its packages.

    EMBEDDED_PYTHON names a folder where that zip was unpacked (docs/TESTING.md). Without it, this Python is copied,
    which takes a ._pth file since 3.11.
    """
    unpacked = os.environ.get("EMBEDDED_PYTHON")
    if unpacked:
        shutil.copytree(unpacked, str(folder))
        return str(folder / ("python.exe" if os.name == "nt" else "python"))
    if sys.version_info < (3, 11) or os.name == "nt":
        pytest.skip("Only Python for Windows reads ._pth files before 3.11; there, EMBEDDED_PYTHON must name a folder.")
    folder.mkdir()
    shutil.copy(os.path.realpath(sys.executable), str(folder / "python"))
    library = os.path.join(sysconfig.get_config_var("prefix"), "lib", "python%d.%d" % sys.version_info[:2])
    paths = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    paths += [os.path.join(parent, "lib-dynload") for parent in (sysconfig.get_path("platstdlib"), library)]
    lines = [*dict.fromkeys(paths), "import site", ""]
    (folder / "python._pth").write_text("\n".join(lines), encoding="utf-8")
    return str(folder / "python")


@pytest.fixture
def embedded_python(tmp_path: Any) -> str:
    """A Python as ComfyUI portable has it: its ._pth file puts ComfyUI's modules first, here decoys that raise."""
    decoys = make_decoys(tmp_path / "ComfyUI")
    folder = tmp_path / "python_embeded"  # so ComfyUI spells it
    python = unpack_python(folder)
    (path_file,) = folder.glob("*._pth")
    path_file.write_text("../ComfyUI\n" + path_file.read_text(encoding="utf-8"), encoding="utf-8")
    code = "import os, sys, socket, requests; print(sys.flags.isolated, os.path.realpath(sys.path[0]))"
    probe = call(python, "-c", code, cwd=tmp_path)
    if probe.returncode != 0 and "EMBEDDED_PYTHON" not in os.environ:
        pytest.skip(f"A copy of this Python does not start: {probe.stderr[-200:]}")
    assert probe.stdout.split(maxsplit=1) == ["1", os.path.realpath(decoys) + "\n"], probe.stderr
    return python


def test_an_embedded_python_runs_the_script_beside_modules_of_comfyuis_names(
    embedded_python: str, tmp_path: Any
) -> None:
    script = os.path.join(ROOT, "comfyui_workflow_runner.py")
    done = call(embedded_python, script, "--demo", "--yes", "-o", "out", cwd=tmp_path)
    assert done.returncode == ExitStatus.OK, done.stderr
    assert len(os.listdir(tmp_path / "out")) == 1


def test_an_embedded_python_builds_the_one_file_and_runs_it(
    embedded_python: str, simulator: Any, workflow_file: Any, tmp_path: Any
) -> None:
    build = call(embedded_python, os.path.join(ROOT, "comfyui_runner", "onefile.py"), "runner.py", cwd=tmp_path)
    assert build.returncode == 0, build.stderr
    command = [embedded_python, "runner.py", "--server", simulator.url, "--yes", workflow_file(slow_prompt())]
    done = call(*command, cwd=tmp_path)
    assert done.returncode == ExitStatus.OK, done.stderr


@pytest.mark.parametrize("path", ["simulator", os.path.join("simulator", "__main__.py")])
def test_an_embedded_python_starts_the_simulator(path: str, embedded_python: str, tmp_path: Any) -> None:
    done = call(embedded_python, os.path.join(ROOT, "comfyui_runner", path), "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "A ComfyUI stand-in" in done.stdout


def test_an_embedded_python_checks_and_converts_too(embedded_python: str, tmp_path: Any) -> None:
    script = os.path.join(ROOT, "comfyui_workflow_runner.py")
    workflow = os.path.join(ROOT, "workflow.json")
    done = call(embedded_python, script, "--demo", "--export-api", "api.json", workflow, cwd=tmp_path)
    assert done.returncode == ExitStatus.OK, done.stderr
    assert len(json.loads((tmp_path / "api.json").read_text(encoding="utf-8"))) == 7


def test_an_embedded_python_keeps_the_service(embedded_python: str, simulator: Any, tmp_path: Any) -> None:
    """The modules of continuous mode are called server, routes and service."""
    import requests

    workflow = tmp_path / "flow.json"
    workflow.write_text(json.dumps({"1": node("EmptyImage", width=8, height=8, batch_size=1, color=0)}))
    script = os.path.join(ROOT, "comfyui_workflow_runner.py")
    command = [embedded_python, script, "--server", simulator.url, "--mode", "continuous", "--port", "0", "--json"]
    service = subprocess.Popen(
        [*command, str(workflow)], cwd=str(tmp_path), env=clean_environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        assert service.stdout is not None
        listening: Dict[str, Any] = {}
        for line in service.stdout:  # it ends with the process
            listening = json.loads(line)
            if listening["event"] == "listening":
                break
        assert listening["event"] == "listening", listening
        assert "<title>" in requests.get(listening["url"] + "/", headers={"Accept": "text/html"}, timeout=10).text
    finally:
        service.terminate()
        service.communicate(timeout=30)
