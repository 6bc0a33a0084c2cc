"""Who prints what: plain lines, one result a line, one object a line, and bars that move."""

from __future__ import annotations

import io
import json
import re
import sys
from typing import Any, Iterator, List, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import few
from support import ROOT, Terminal, module_names

from comfyui_runner.environment import Environment
from comfyui_runner.errors import UsageError
from comfyui_runner.meter import Bar, Meter
from comfyui_runner.redaction import Secrets
from comfyui_runner.terminal import (
    JsonPrinter,
    LivePrinter,
    Printer,
    QuietPrinter,
    choose_printer,
    is_yes,
    report_error,
    report_fault,
)

PROGRESS = {
    "event": "progress", "title": "Sampler", "value": 1, "max": 4, "nodes_done": 1, "nodes_total": 3,
}  # fmt: skip


def make(printer_class: Any) -> Any:
    """A printer that prints into memory."""
    return printer_class(io.StringIO(), io.StringIO())


def printed(printer: Printer) -> List[str]:
    """What is on the output and on the error stream."""
    return [stream.getvalue() for stream in (printer.out, printer.err)]  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------------
# Lines
# ------------------------------------------------------------------------------------------------


def test_a_line_has_no_control_characters_and_no_secrets() -> None:
    printer = make(Printer)
    printer.secrets = Secrets(["hunter2"])
    printer.report({"event": "notice", "message": "\x1b[31mpassword hunter2"}, prefix="[row 1] ")
    assert printed(printer) == ["[row 1] password ***\n", ""]


def test_an_error_goes_to_the_error_stream() -> None:
    printer = make(Printer)
    assert report_error(printer, UsageError("Wrong.", "Do."), "p") is UsageError.exit_status
    assert printed(printer) == ["", "Wrong.\nDo.\n"]


def test_lines_of_progress_come_one_in_two_seconds() -> None:
    printer = make(Printer)
    for _ in range(3):
        printer.report(PROGRESS)
    assert printed(printer) == ["Sampler: 1/4 (25%), 1/3 nodes\n", ""]


def test_a_stream_that_lacks_a_character_gets_a_question_mark() -> None:
    data = io.BytesIO()
    out = io.TextIOWrapper(data, encoding="ascii", write_through=True)
    Printer(out, out).lines([("", "fox 狐")])
    assert data.getvalue().splitlines() == [b"fox ?"]


def test_a_stream_without_an_encoding_gets_ascii() -> None:
    class Strict(io.StringIO):
        encoding = None  # type: ignore[assignment]

        def write(self, text: str) -> int:
            text.encode("ascii")
            return super().write(text)

    out = Strict()
    Printer(out, out).lines([("", "fox 狐")])
    assert out.getvalue() == "fox ?\n"


class Unread(io.StringIO):
    """A pipe that nobody reads any more."""

    def write(self, text: str) -> int:
        raise BrokenPipeError("nobody reads")


def test_a_stream_that_nobody_reads_does_not_end_the_run() -> None:
    closed = io.StringIO()
    closed.close()
    for out in (Unread(), closed):
        Printer(out, out).lines([("", "text")])


def test_a_bug_says_how_to_report_it_and_shows_its_traceback_when_asked() -> None:
    try:
        raise ZeroDivisionError("by zero")
    except ZeroDivisionError as error:
        for arguments, is_shown in (([], False), (["-v"], True), (["--verbose"], True)):
            printer = make(Printer)
            assert report_fault(printer, error, arguments) == 1
            (_, err) = printed(printer)
            assert "ZeroDivisionError: by zero\nThis is a bug in this program." in err
            assert ("Traceback" in err) is is_shown


# ------------------------------------------------------------------------------------------------
# Results only, and JSON
# ------------------------------------------------------------------------------------------------


def test_quiet_prints_results_and_trouble() -> None:
    printer = make(QuietPrinter)
    printer.report({"event": "started"})
    printer.report({"event": "saved", "path": "out/a.png"})
    printer.report({"event": "notice", "message": "Look."})
    printer.question("Run it? ")
    assert printed(printer) == ["out/a.png\n", "Look.\nRun it? "]


def test_json_is_strict_and_has_no_secrets() -> None:
    printer = make(JsonPrinter)
    printer.secrets = Secrets(["hunter2"])
    printer.report({"event": "notice", "message": "hunter2", "list": [float("nan"), {"hunter2": 1}]})
    printer.report({"event": "error", "message": "Wrong.", "remedy": ""})
    printer.question("Run it? ")
    out, err = printed(printer)
    first, second = map(json.loads, out.splitlines())
    assert first.pop("time") > 1.7e9
    assert first == {"event": "notice", "message": "***", "list": [None, {"***": 1}]}
    assert second["event"] == "error"
    assert err == "Wrong.\nRun it? "


# ------------------------------------------------------------------------------------------------
# Which printer
# ------------------------------------------------------------------------------------------------


def choose(kind: str, out: io.StringIO, **variables: str) -> type:
    """The class of the printer for a call with this output."""
    environment = Environment([], stdout=out, stderr=io.StringIO(), variables=variables)
    return type(choose_printer(kind, environment))


def test_a_printer_is_chosen_by_flag_and_terminal() -> None:
    assert choose("json", Terminal()) is JsonPrinter
    assert choose("quiet", Terminal()) is QuietPrinter
    assert choose("human", io.StringIO()) is Printer
    assert choose("human", Terminal(), TERM="dumb") is Printer


def test_a_terminal_gets_bars_where_rich_is_installed() -> None:
    pytest.importorskip("rich")
    assert choose("human", Terminal(), TERM="xterm") is LivePrinter


@pytest.fixture
def _without_rich(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As where rich is not installed."""
    for name in [name for name in sys.modules if name.split(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)
    yield


@pytest.mark.usefixtures("_without_rich")
def test_a_terminal_without_rich_gets_plain_lines() -> None:
    assert choose("human", Terminal(), TERM="xterm") is Printer


@pytest.mark.script_and_folder
def test_nothing_but_the_live_printer_imports_rich() -> None:
    for name in module_names():
        path = f"{ROOT}/{name.replace('.', '/')}"
        try:
            file = open(path + ".py", encoding="utf-8")  # noqa: SIM115
        except OSError:
            file = open(path + "/__init__.py", encoding="utf-8")  # noqa: SIM115
        with file:
            source = file.read()
        imports = re.findall(r"(?m)^( *)(?:from|import) rich\b", source)
        if name == "comfyui_runner.terminal":
            live_printer = source[source.index("class LivePrinter") : source.index("def make_early")]
            assert len(imports) == len(re.findall(r"(?m)^ +from rich\b", live_printer)) > 0
        else:
            assert not imports, name


@pytest.mark.parametrize(
    ("answer", "meaning"),
    [("y\n", True), (" YES ", True), ("n", False), ("No\n", False), ("\n", False), ("maybe", None)],
)
def test_what_an_answer_means(answer: str, meaning: Optional[bool]) -> None:
    assert is_yes(answer) is meaning


# ------------------------------------------------------------------------------------------------
# Bars
# ------------------------------------------------------------------------------------------------

RUNNING = Meter(bars=(Bar("Overall", 0.5, "3/7 nodes", "bold"), Bar("狐 Sampler", 0.0, "1/4  1.0 it/s")))


class Screen(Terminal):
    """A terminal with an encoding."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding


def draw(meter: Meter, monkeypatch: Any, width: int = 80, encoding: str = "utf-8") -> List[str]:
    """The lines of the meter on a terminal, without colors."""
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm-256color")
    printer = LivePrinter(Screen(encoding), io.StringIO())
    printer.start_meter(lambda: meter)
    printer.draw_meter()
    out: str = printer.out.getvalue()  # type: ignore[attr-defined]
    printer.close()
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]|\r", "", out)
    return [line.rstrip() for line in text.split("\n") if line.strip()]


def test_the_bars_stand_below_each_other(monkeypatch: Any) -> None:
    overall, sampler = draw(RUNNING, monkeypatch)
    assert re.match(r"Overall +━+[╸╺]?━+ 3/7 nodes$", overall)
    assert re.match(r"狐 Sampler +━+ 1/4  1.0 it/s$", sampler)
    assert overall.index("━") == sampler.index("━") + 1  # the fox is two columns wide
    assert len(overall[: overall.index("3/7")]) == len(sampler[: sampler.index("1/4")]) + 1


def test_a_wide_terminal_does_not_make_the_bars_longer_than_forty(monkeypatch: Any) -> None:
    (overall, _) = draw(RUNNING, monkeypatch, width=200)
    assert len(re.findall("[━╸╺]", overall)) == 40


@pytest.mark.parametrize(("width", "label_width"), [(24, 8), (34, 8), (82, 20), (200, 26)])
def test_a_long_label_leaves_room_for_the_bar_and_its_text(width: int, label_width: int, monkeypatch: Any) -> None:
    (line,) = draw(Meter(bars=(Bar("L" * 60, 0.5, "3/7"),)), monkeypatch, width=width)
    label = line.split()[0]
    assert label == "L" * (label_width - 1) + "…"
    assert "3/7" in line


def test_a_number_that_gets_another_digit_does_not_move_the_bars(monkeypatch: Any) -> None:
    ends = []
    for text in ("9/12 nodes", "10/12 nodes  1:02 left", "10/12 nodes  1:02 left, and so"):
        (line,) = draw(Meter(bars=(Bar("Overall", 1.0, text),)), monkeypatch, width=80)
        ends.append(line.index(text))
    assert len(set(ends)) == 1


def test_a_terminal_without_unicode_gets_bars_of_ascii(monkeypatch: Any) -> None:
    (overall, _) = draw(RUNNING, monkeypatch, encoding="cp1252")
    assert re.match(r"Overall +-+ *-* 3/7 nodes$", overall)


def test_a_prompt_that_waits_has_a_line_and_what_is_wrong_another(monkeypatch: Any) -> None:
    meter = Meter(headline="Waiting", note="connection lost")
    assert draw(meter, monkeypatch) == ["Waiting", "connection lost"]


@few
@given(
    st.builds(
        Meter,
        headline=st.text(max_size=100),
        bars=st.lists(
            st.builds(Bar, st.text(max_size=40), st.floats(0, 1), st.text(max_size=60), st.just("ok")), max_size=3
        ).map(tuple),
        note=st.text(max_size=100),
    ),
    st.integers(20, 200),
)
def test_the_meter_leaves_room_at_the_end_of_every_line(meter: Meter, width: int) -> None:
    """For the ^C that the terminal writes: a line that is full would be wrapped by it."""
    pytest.importorskip("rich")
    from rich.cells import cell_len

    with pytest.MonkeyPatch.context() as monkeypatch:
        lines = draw(meter, monkeypatch, width)
    assert all(cell_len(line) <= width - 2 for line in lines)


def test_while_bars_move_there_are_no_lines_of_progress(monkeypatch: Any) -> None:
    pytest.importorskip("rich")
    monkeypatch.setenv("TERM", "xterm")
    printer = LivePrinter(Screen(), io.StringIO())
    printer.report(PROGRESS)
    assert printer.out.getvalue().count("Sampler: 1/4") == 1  # type: ignore[attr-defined]
    printer.start_meter(lambda: RUNNING)
    printer.report(PROGRESS)
    printer.report({"event": "end", "status": "success", "exit_status": 0, "message": "Done."})
    printer.draw_meter()
    out: str = printer.out.getvalue()  # type: ignore[attr-defined]
    assert out.count("Sampler: 1/4") == 1 and "Overall" not in out and "Done." in out


def test_a_url_or_a_path_is_not_broken_into_lines(monkeypatch: Any) -> None:
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    printer = LivePrinter(Screen(), io.StringIO())
    url = "http://127.0.0.1:8188/view?filename=" + "a" * 60
    printer.lines([("", f"    {url}"), ("", "word " * 20)])
    lines = printer.out.getvalue().splitlines()  # type: ignore[attr-defined]
    assert any(url in line for line in lines) and len(lines) > 3


def test_a_terminal_that_is_gone_does_not_end_the_run(monkeypatch: Any) -> None:
    pytest.importorskip("rich")
    monkeypatch.setenv("TERM", "xterm")
    screen = Screen()
    printer = LivePrinter(screen, io.StringIO())
    printer.start_meter(lambda: RUNNING)
    screen.close()
    printer.draw_meter()
    printer.lines([("", "text")])
    printer.close()


def test_an_old_console_of_windows_gets_bars_that_its_fonts_have(monkeypatch: Any) -> None:
    rich_console = pytest.importorskip("rich.console")
    monkeypatch.setattr(rich_console, "detect_legacy_windows", lambda: True)
    lines = draw(RUNNING, monkeypatch)
    assert any(line.startswith("Overall") and "---" in line for line in lines)
    assert not any("\N{BOX DRAWINGS HEAVY HORIZONTAL}" in line for line in lines)
