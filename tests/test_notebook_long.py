"""The Python API in a real notebook: its cells run in a kernel, whose event loop is running."""

from __future__ import annotations

import os
import threading
from typing import Any, Dict, List

import pytest
from support import ROOT, slow_prompt, wait_until

nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
nbformat = pytest.importorskip("nbformat", reason="nbclient brings it")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")

pytestmark = [
    pytest.mark.long,
    pytest.mark.script_and_folder,
    pytest.mark.filterwarnings("default"),  # those of Jupyter's packages are not ours
]

CONNECT = "from comfyui_runner import connect\ncomfy = connect({url!r})"


def start(cells: List[str], folder: Any) -> Any:
    """A notebook of these cells, and the client that executes it."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    return nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}})


@pytest.fixture(autouse=True)
def kernel_finds_the_package(monkeypatch: Any) -> None:
    monkeypatch.setenv("PYTHONPATH", ROOT)
    monkeypatch.delenv("PYTHONASYNCIODEBUG", raising=False)


def outputs_of(notebook: Any, cell: int) -> List[Dict[str, Any]]:
    return list(notebook.cells[cell].outputs)


def test_a_picture_is_shown_in_a_cell_and_progress_where_it_was_asked_for(simulator: Any, tmp_path: Any) -> None:
    cells = [
        CONNECT.format(url=simulator.url),
        f"result = comfy.run({slow_prompt()!r}, on_progress=print)",
        "result.outputs[0]",
        "result",
        "import asyncio\nassert asyncio.get_running_loop().is_running()\ncomfy.close()",
    ]
    notebook = start(cells, tmp_path).execute()
    text = "".join(output["text"] for output in outputs_of(notebook, 1))
    assert "Running." in text and "Done in" in text
    (shown,) = outputs_of(notebook, 2)
    assert set(shown["data"]) == {"image/png", "text/plain"}
    assert shown["data"]["image/png"].startswith("iVBOR")
    assert shown["data"]["text/plain"] == "<image slow_00001_.png of Save Image>"
    (shown,) = outputs_of(notebook, 3)
    assert shown["data"]["text/plain"].startswith("<RunResult success in ")


def test_a_video_is_shown_as_html(simulator: Any, tmp_path: Any) -> None:
    with open(os.path.join(simulator.folder("output"), "a.mp4"), "wb") as file:
        file.write(b"not quite a video")
    ui = {"gifs": [{"filename": "a.mp4", "subfolder": "", "type": "output"}]}
    cells = [
        CONNECT.format(url=simulator.url),
        "import json\n"
        f"prompt = {{'1': {{'class_type': 'SimulatedOutput', 'inputs': {{'ui': json.dumps({ui!r})}}}}}}\n"
        "comfy.run(prompt).outputs[0]",
        "comfy.close()",
    ]
    notebook = start(cells, tmp_path).execute()
    (shown,) = outputs_of(notebook, 1)
    assert shown["data"]["text/html"].startswith('<video src="data:video/mp4;base64,')


def test_interrupting_the_kernel_cancels_the_run(simulator: Any, tmp_path: Any) -> None:
    cells = [
        CONNECT.format(url=simulator.url),
        f"comfy.run({slow_prompt(steps=100000, seconds=3600.0)!r})",
        f"comfy.run({slow_prompt()!r}).status",
        "comfy.close()",
    ]
    cells[1] = f"try:\n    {cells[1]}\nexcept KeyboardInterrupt:\n    print('interrupted')"
    client = start(cells, tmp_path)

    def interrupt() -> None:
        wait_until(lambda: sum(simulator.executions.values()), seconds=60.0, what="the run")
        client.km.provisioner.process.send_signal(2)

    thread = threading.Thread(target=interrupt)
    thread.start()
    notebook = client.execute()
    thread.join()
    assert "".join(output["text"] for output in outputs_of(notebook, 1)) == "interrupted\n"
    (shown,) = outputs_of(notebook, 2)
    assert shown["data"]["text/plain"] == "'success'"


def test_the_notebooks_own_loop_runs_it_too(simulator: Any, tmp_path: Any) -> None:
    cells = [
        "from comfyui_runner import connect_async\n"
        f"async with connect_async({simulator.url!r}) as comfy:\n"
        f"    result = await comfy.run({slow_prompt()!r})\n"
        "result.outputs[0]",
    ]
    notebook = start(cells, tmp_path).execute()
    (shown,) = outputs_of(notebook, 0)
    assert "image/png" in shown["data"]
