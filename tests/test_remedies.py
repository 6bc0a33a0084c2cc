"""What the workflow's own file says about a problem: addresses of models, files, links of the browser."""

from __future__ import annotations

import os
from typing import Any, Dict, Tuple

import pytest
from support import node

from comfyui_runner.problems import Problem
from comfyui_runner.remedies import (
    ModelSource,
    Origin,
    add_remedies,
    download_command,
    models_in_workflow,
    workflow_in_extra,
)

URL = "https://huggingface.co/a/b/resolve/main/x.safetensors?download=true"
MISSING = Problem("value_not_in_list", "It is missing.", "4", input="ckpt_name", value="x.safetensors", hints=("Or.",))


def entry(name: str = "x.safetensors", url: str = URL, directory: str = "checkpoints") -> Dict[str, str]:
    return {"name": name, "url": url, "directory": directory}


def workflow_with(*entries: Any) -> Dict[str, Any]:
    return {"nodes": [{"id": 4, "properties": {"models": list(entries)}}]}


def hints_for(problem: Problem, *entries: Any) -> Tuple[str, ...]:
    (completed,) = add_remedies([problem], {}, Origin(workflow_with(*entries)))
    assert completed._replace(hints=problem.hints) == problem
    return completed.hints


# -- models ------------------------------------------------------------------------------------------


def test_a_missing_model_is_downloaded_by_a_line_that_is_ready() -> None:
    hints = hints_for(MISSING, entry("other.safetensors"), entry())
    assert hints[:2] == ("Or.", "The workflow has its address. To download it, run this in ComfyUI's folder:")
    assert hints[2].startswith("curl") and URL in hints[2] and "models/checkpoints/x.safetensors" in hints[2]


def test_a_model_without_an_address_has_no_more_hints() -> None:
    assert hints_for(MISSING) == ("Or.",)
    assert hints_for(MISSING, entry("other.safetensors")) == ("Or.",)
    assert hints_for(MISSING._replace(value=7), entry()) == ("Or.",)
    assert hints_for(MISSING._replace(type="invalid_input_type"), entry()) == ("Or.",)


def test_of_two_models_of_one_name_the_one_for_the_input_is_taken() -> None:
    both = entry(directory="vae", url="https://a.example/vae"), entry(url="https://a.example/model")
    assert "https://a.example/model" in hints_for(MISSING, *both)[2]
    assert "https://a.example/vae" in hints_for(MISSING._replace(input="vae_name"), *both)[2]
    assert "https://a.example/vae" in hints_for(MISSING._replace(input="odd_name"), *both)[2]


def test_a_model_in_a_folder_goes_into_that_folder() -> None:
    for value in ("SDXL/x.safetensors", "SDXL\\x.safetensors"):
        command = hints_for(MISSING._replace(value=value), entry())[2]
        assert "--create-dirs" in command and "models/checkpoints/SDXL/x.safetensors" in command


@pytest.mark.parametrize(
    ("is_windows", "url", "line"),
    [
        (False, "https://a.example/x", "curl -L -o models/vae/x.pt https://a.example/x"),
        (False, "https://a.example/x?a=1&b=(2)", "curl -L -o models/vae/x.pt 'https://a.example/x?a=1&b=(2)'"),
        (True, "https://a.example:8443/x?a=%20", 'curl.exe -L -o "models/vae/x.pt" "https://a.example:8443/x?a=%20"'),
    ],
)
def test_the_line_is_quoted_for_the_shell_at_hand(is_windows: bool, url: str, line: str) -> None:
    assert download_command(ModelSource("x.pt", url, "vae"), "x.pt", is_windows) == line


def test_a_name_with_blanks_is_quoted() -> None:
    source = ModelSource("a b.pt", "https://a.example/x", "vae")
    assert download_command(source, "狐/a b.pt", False) == (
        "curl -L --create-dirs -o 'models/vae/狐/a b.pt' https://a.example/x"
    )


@pytest.mark.parametrize("is_windows", [True, False])
@pytest.mark.parametrize(
    ("url", "directory", "path"),
    [
        ("http://a.example/x", "vae", "x.pt"),
        ("HTTPS://a.example/x", "vae", "x.pt"),
        ("javascript:alert(1)", "vae", "x.pt"),
        ("https://a.example", "vae", "x.pt"),
        ("https:///x", "vae", "x.pt"),
        ("https://user@a.example/x", "vae", "x.pt"),
        ('https://a.example/";id', "vae", "x.pt"),
        ("https://a.example/';id", "vae", "x.pt"),
        ("https://a.example/$(id)", "vae", "x.pt"),
        ("https://a.example/`id`", "vae", "x.pt"),
        ("https://a.example/\nid", "vae", "x.pt"),
        ("https://a.example/a b", "vae", "x.pt"),
        ("https://a.example/\u201d", "vae", "x.pt"),
        ("https://a.example/x", "custom_nodes", "x.pt"),
        ("https://a.example/x", "../vae", "x.pt"),
        ("https://a.example/x", "", "x.pt"),
        ("https://a.example/x", "vae", "../x.pt"),
        ("https://a.example/x", "vae", "a/../x.pt"),
        ("https://a.example/x", "vae", "/x.pt"),
        ("https://a.example/x", "vae", "a//x.pt"),
        ("https://a.example/x", "vae", "C:/x.pt"),
        ("https://a.example/x", "vae", "$x.pt"),
        ("https://a.example/x", "vae", "x`.pt"),
        ("https://a.example/x", "vae", 'x".pt'),
        ("https://a.example/x", "vae", "x\u201d.pt"),
        ("https://a.example/x", "vae", "x\n.pt"),
        ("https://a.example/x", "vae", "%PATH%.pt"),
        ("https://a.example/x", "vae", "!x.pt"),
    ],
)
def test_what_a_shell_could_obey_makes_no_line(url: str, directory: str, path: str, is_windows: bool) -> None:
    assert download_command(ModelSource("x.pt", url, directory), path, is_windows) is None


def test_an_address_that_makes_no_line_is_shown_as_text() -> None:
    hints = hints_for(MISSING, entry(url="http://a.example/\x1b[31m$(id)\nx"))
    assert hints == ("Or.", "The workflow says that it is at http://a.example/$(id) x")


def test_the_models_of_a_workflow_are_found_wherever_they_are() -> None:
    inner = {"nodes": [{"properties": {"models": [entry("inner")]}}]}
    workflow = {
        **workflow_with(entry("outer"), "odd", {"name": "no url"}, {"url": URL}, {"name": 1, "url": URL}),
        "definitions": {"subgraphs": [inner]},
        "models": [entry("root"), {"name": "no folder", "url": URL}],
    }
    found = {source.name: source.directory for source in models_in_workflow(workflow)}
    assert found == {"inner": "checkpoints", "outer": "checkpoints", "root": "checkpoints", "no folder": "None"}


# -- files -------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Any, monkeypatch: Any) -> Any:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("error_type", ["custom_validation_failed", "value_not_in_list"])
@pytest.mark.parametrize("file", ["fox.png", os.path.join("flows", "fox.png")])
@pytest.mark.parametrize("value", ["fox.png", "fox.png [output]"])
def test_a_file_that_the_server_lacks_can_be_uploaded_from_here(
    folder: Any, error_type: str, file: str, value: str
) -> None:
    (folder / "flows").mkdir()
    (folder / file).write_bytes(b"x")
    problem = Problem(error_type, "image: Invalid image file: fox.png.", "2", value=value, hints=("Upload it.",))
    (offered,) = add_remedies([problem], {}, Origin(folder="flows"))
    assert offered.hints == (f'It is on this machine: --image "2={file}" uploads it.',)
    assert offered._replace(hints=problem.hints) == problem
    assert add_remedies([problem], {}, Origin()) == [problem]  # where nothing can be named


@pytest.mark.parametrize(
    ("error_type", "value"),
    [
        ("custom_validation_failed", "elsewhere.png"), ("value_bigger_than_max", "fox.png"),
        ("value_not_in_list", "fox.safetensors"), ("value_not_in_list", 7),
    ],
)  # fmt: skip
def test_nothing_else_is_offered_for_upload(folder: Any, error_type: str, value: Any) -> None:
    """Models are too large to upload, and the server would look for them in another folder."""
    for name in ("fox.png", "fox.safetensors", "7"):
        (folder / name).write_bytes(b"x")
    problem = Problem(error_type, "It is wrong.", "2", value=value)
    assert add_remedies([problem], {}, Origin(folder="")) == [problem]


# -- links of the browser ----------------------------------------------------------------------------

NO_INPUT = Problem("required_input_missing", "the input images is missing.", "3", hints=("Give it.",))
EVERYWHERE = {"id": 2, "type": "Anything Everywhere", "mode": 0}


@pytest.mark.parametrize(
    ("prompt", "nodes", "sender"),
    [
        ({"2": node("Anything Everywhere", anything=["1", 0])}, [], '"Anything Everywhere" (node 2)'),
        ({"2": node("Seed Everywhere", "Seed", seed=1)}, [], '"Seed" (Seed Everywhere, node 2)'),
        ({}, [{"type": "SaveImage"}, EVERYWHERE], '"Anything Everywhere" (node 2)'),
        ({}, [{"type": "Prompts Everywhere", "id": "5:1"}], '"Prompts Everywhere" (node 5:1)'),
    ],
)
def test_a_missing_input_may_be_a_link_that_the_browser_makes(prompt: Any, nodes: Any, sender: str) -> None:
    (completed,) = add_remedies([NO_INPUT], prompt, Origin({"nodes": nodes}))
    assert completed.hints == (
        f"{sender} makes its links in the browser only. If this is one of them, right-click the "
        'canvas in ComfyUI, choose "Convert all UEs to real links", and export the workflow again.',
        "Give it.",
    )


def test_such_a_node_in_a_subgraph_counts_too() -> None:
    workflow = {"nodes": [], "definitions": {"subgraphs": ["odd", {"nodes": [EVERYWHERE]}]}}
    (completed,) = add_remedies([NO_INPUT], {}, Origin(workflow))
    assert completed.hints[0].startswith('"Anything Everywhere" (node 2) makes its links in the browser only.')


@pytest.mark.parametrize("nodes", [[], [{**EVERYWHERE, "mode": 4}], [{**EVERYWHERE, "mode": 2}], ["odd"], None])
def test_without_such_a_node_nothing_is_said_of_the_browser(nodes: Any) -> None:
    assert add_remedies([NO_INPUT], {"3": node("SaveImage")}, Origin({"nodes": nodes})) == [NO_INPUT]
    other = NO_INPUT._replace(type="bad_linked_input")
    assert add_remedies([other], {}, Origin({"nodes": [EVERYWHERE]})) == [other]


def test_the_workflow_of_a_request_is_in_its_extra_data() -> None:
    workflow: Dict[str, Any] = {"nodes": []}
    assert workflow_in_extra({"extra_data": {"extra_pnginfo": {"workflow": workflow}}}) == workflow
    assert workflow_in_extra({}) == {} == workflow_in_extra({"extra_data": {"extra_pnginfo": []}})
