"""What a person sees: the program in a terminal, in two sizes, with and without colors.

The golden files are in tests/fixtures/screens; docs/TESTING.md says how to renew them.
"""

from __future__ import annotations

import json
import re
from typing import Any, Iterator, List

import pytest
from screens import SIZES, InTerminal, Size, compare, has_colors
from served import LOADER, PNG, TEXTS, post_elsewhere
from support import node, slow_prompt

pytest.importorskip("pty", reason="Windows has no pseudo-terminals of this kind")
pytest.importorskip("pyte")

WIDE, NARROW = SIZES


def name_variant(size: Size, colors: bool) -> str:
    return f"{size}" if colors else f"{size}-no-color"


#: Each story is told in each of them; those of the fast set only in two.
VARIANTS = [(size, colors) for size in SIZES for colors in (True, False)]
FEW = [(WIDE, False), (NARROW, True)]
ALL_VARIANTS = [
    pytest.param(*variant, marks=[] if variant in FEW else [pytest.mark.long], id=name_variant(*variant))
    for variant in VARIANTS
]
LONG_VARIANTS = [pytest.param(*variant, marks=pytest.mark.long, id=name_variant(*variant)) for variant in VARIANTS]


class Terminals:
    """Terminals in which the program runs in a folder of its own."""

    def __init__(self, folder: Any, size: Size, colors: bool) -> None:
        self.folder = folder
        self.size = size
        self.colors = colors
        self.started: List[InTerminal] = []

    def start(self, *arguments: str) -> InTerminal:
        """The program with these arguments, in a terminal."""
        self.started.append(InTerminal(arguments, self.size, self.folder, colors=self.colors))
        return self.started[-1]

    def write(self, name: str, content: Any) -> str:
        """Writes a file into the folder: its name."""
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (self.folder / name).write_bytes(data)
        return name

    def compare(self, story: str, shown: InTerminal) -> None:
        """Compares what is shown with the golden file of the story."""
        picture = shown.picture()
        assert self.colors or not has_colors(picture)
        compare(f"{story}-{name_variant(self.size, self.colors)}", picture)


@pytest.fixture
def terminals(tmp_path: Any, size: Size, colors: bool) -> Iterator[Terminals]:
    """Terminals of one kind, which are closed at the end of the test."""
    started = Terminals(tmp_path, size, colors)
    yield started
    for each in started.started:
        each.close()


@pytest.mark.parametrize(("size", "colors"), ALL_VARIANTS)
def test_a_run(terminals: Terminals, simulator: Any) -> None:
    workflow = terminals.write("flow.json", TEXTS)
    shown = terminals.start(workflow, "--server", simulator.url, "-o", "out", "--set", "5.steps=4")
    shown.wait_for("[y/N]").type("y\n")
    assert shown.end() == 0
    terminals.compare("run", shown)


@pytest.mark.parametrize(("size", "colors"), LONG_VARIANTS)
def test_what_will_be_uploaded_and_set(terminals: Terminals, simulator: Any) -> None:
    workflow = terminals.write("loader.json", LOADER)
    picture = terminals.write("cat.png", PNG)
    shown = terminals.start(workflow, "--server", simulator.url, "--image", picture, "--set", "2.filename_prefix=cat")
    shown.wait_for("[y/N]").type("n\n")
    assert shown.end() == 4
    terminals.compare("changed", shown)


@pytest.mark.parametrize(("size", "colors"), LONG_VARIANTS)
def test_a_run_that_is_stopped(terminals: Terminals, simulator: Any) -> None:
    workflow = terminals.write("slow.json", slow_prompt(steps=4, seconds=3600.0))
    shown = terminals.start(workflow, "--server", simulator.url, "--yes")
    shown.wait_for("0/2 nodes")
    terminals.compare("running", shown)
    shown.type("\x03")
    assert shown.end() == 130
    terminals.compare("stopped", shown)


@pytest.mark.parametrize(("size", "colors"), LONG_VARIANTS)
def test_several_workflows(terminals: Terminals, simulator: Any) -> None:
    first = terminals.write("first.json", slow_prompt(seconds=0.0))
    second = terminals.write("second.json", {"1": node("Nope")})
    shown = terminals.start(first, second, "--server", simulator.url, "-o", "out")
    shown.wait_for("[y/N]").type("y\n")
    assert shown.end() == 6
    terminals.compare("several", shown)


@pytest.mark.parametrize(("size", "colors"), LONG_VARIANTS)
def test_the_inputs(terminals: Terminals, simulator: Any) -> None:
    workflow = terminals.write("flow.json", TEXTS)
    shown = terminals.start(workflow, "--server", simulator.url, "--inputs")
    assert shown.end() == 0
    terminals.compare("inputs", shown)


@pytest.mark.parametrize(("size", "colors"), LONG_VARIANTS)
def test_the_demo(terminals: Terminals) -> None:
    workflow = terminals.write("slow.json", slow_prompt(seconds=0.0))
    shown = terminals.start(workflow, "--demo", "--yes")
    assert shown.end() == 0
    terminals.compare("demo", shown)


SAMPLED = {**slow_prompt(steps=4, seconds=0.0), "3": node("TextOut", "Words", text="red")}


@pytest.mark.parametrize(("size", "colors"), LONG_VARIANTS)
def test_a_batch(terminals: Terminals, simulator: Any) -> None:
    workflow = terminals.write("flow.json", SAMPLED)
    rows = terminals.write("rows.csv", b"1.seed,3.text,1.steps\n7,a red fox in the snow,4\n8,red,0\n8812,red,3\n")
    words = ["--server", simulator.url, "--batch", rows, "-o", "out", "--name", "{3.text}", "--in-flight", "1"]
    shown = terminals.start(workflow, *words)
    shown.wait_for("[y/N]").type("y\n")
    assert shown.end() == 7
    terminals.compare("batch", shown)


@pytest.mark.parametrize(("size", "colors"), LONG_VARIANTS)
def test_a_product_of_values(terminals: Terminals, simulator: Any) -> None:
    workflow = terminals.write("flow.json", TEXTS)
    prompts = terminals.write("prompts.txt", b"a red fox\nan owl\na blue whale\n")
    words = ["--server", simulator.url, "--each", f"positive=@{prompts}", "--each", "seed=1..4", "-o", "out"]
    shown = terminals.start(workflow, *words)
    shown.wait_for("[y/N]").type("n\n")
    assert shown.end() == 4
    terminals.compare("each", shown)


@pytest.mark.parametrize(("size", "colors"), LONG_VARIANTS)
def test_a_batch_that_is_stopped(terminals: Terminals, simulator: Any) -> None:
    workflow = terminals.write("flow.json", slow_prompt(steps=4, seconds=3600.0))
    shown = terminals.start(workflow, "--server", simulator.url, "--repeat", "6", "--seed", "40", "--in-flight", "1")
    shown.wait_for("[y/N]").type("y\n")
    shown.wait_for("0/2 nodes")
    terminals.compare("batch-running", shown)
    shown.type("\x03")
    assert shown.end() == 130
    terminals.compare("batch-stopped", shown)


@pytest.mark.parametrize(("size", "colors"), LONG_VARIANTS)
def test_somebody_elses_prompt(terminals: Terminals, simulator: Any) -> None:
    prompt_id = post_elsewhere(simulator, slow_prompt(steps=4, seconds=3600.0))
    shown = terminals.start("--server", simulator.url, "--attach", prompt_id)
    shown.wait_for("Running  ")
    terminals.compare("attached", shown)
    shown.type("\x03")
    assert shown.end() == 130
    terminals.compare("attached-left", shown)


@pytest.mark.parametrize(("size", "colors"), LONG_VARIANTS)
def test_continuous_mode(terminals: Terminals, simulator: Any) -> None:
    workflow = terminals.write("flow.json", TEXTS)
    words = ("--server", simulator.url, "--mode", "continuous", "--port", "0", "--state", "none")
    shown = terminals.start(workflow, *words)
    shown.wait_for("in a browser")
    terminals.compare("continuous", shown)
    port = re.findall(r":([0-9]+) in a", shown.text().replace("\n", " "))[-1]
    second = terminals.start(workflow, *words[:-3], port, "--state", "none")
    assert second.end() == 2
    terminals.compare("continuous-twice", second)


@pytest.mark.parametrize(("size", "colors"), LONG_VARIANTS)
def test_typos(terminals: Terminals, simulator: Any) -> None:
    workflow = terminals.write("flow.json", TEXTS)
    shown = terminals.start(workflow, "--sed", "5")
    assert shown.end() == 2
    terminals.compare("typo-flag", shown)
    shown = terminals.start("flo.json")
    assert shown.end() == 3
    terminals.compare("typo-file", shown)
    words = ("--set", "ksampler.STEPS=4", "--set", "KSampler.sampler_name=eular")
    shown = terminals.start(workflow, "--server", simulator.url, *words)
    assert shown.end() == 2
    terminals.compare("typo-value", shown)


@pytest.mark.parametrize(("size", "colors"), LONG_VARIANTS)
def test_names_in_another_case(terminals: Terminals, simulator: Any) -> None:
    terminals.write("flow.json", LOADER)
    terminals.write("cat.png", PNG)
    if (terminals.folder / "FLOW.json").exists():
        pytest.skip("the names of files have no case here")
    words = ("--Image", "CAT.png", "--set", "saveimage.filename_prefix=cat")
    shown = terminals.start("FLOW.json", "--server", simulator.url, *words)
    shown.wait_for("[y/N]").type("n\n")
    assert shown.end() == 4
    terminals.compare("other-case", shown)


@pytest.mark.parametrize(("size", "colors"), LONG_VARIANTS)
def test_the_help_has_the_width_of_the_terminal(terminals: Terminals) -> None:
    shown = terminals.start("--help")
    assert shown.end() == 0
    terminals.compare("help", shown)
