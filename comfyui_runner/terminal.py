"""Who prints what. Every text passes clean() and Secrets.hide() on its way out."""

from __future__ import annotations

import json
import time
import traceback
from contextlib import suppress
from typing import Any, Callable, List, Mapping, Optional, Sequence, TextIO

from comfyui_runner.environment import Environment
from comfyui_runner.errors import ExitStatus, RunnerError
from comfyui_runner.layout import columns_of, wrap
from comfyui_runner.meter import Bar, Meter
from comfyui_runner.output_thread import OutputThread, queue_for
from comfyui_runner.redaction import Secrets
from comfyui_runner.reports import (
    Line,
    Report,
    Throttle,
    describe,
    is_about_trouble,
    result_of,
)
from comfyui_runner.settings import Settings, given_secrets
from comfyui_runner.text import clean, plain_json

#: Seconds between two lines of progress, where there are no bars.
LINE_INTERVAL = 2.0

#: What a stream raises that nobody reads any more (OSError), or that is closed (ValueError).
STREAM_ERRORS = (OSError, ValueError)

#: Seconds after Ctrl+C, at the end of the program, for what a console has not taken yet.
LAST_TEXTS = 2.0


class Printer:
    """Plain lines, for pipes, logs and terminals without rich; the base of the other printers."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self.out = out
        self.err = err
        self.secrets = Secrets()  #: what is hidden in all that is printed
        self._columns = columns_of(out)
        self._progress_throttle = Throttle(LINE_INTERVAL)
        self._thread: Optional[OutputThread] = None

    def print_in(self, thread: OutputThread) -> None:
        """From now on ``thread`` writes to streams that can stand still."""
        self._thread = thread
        self.out = queue_for(thread, self.out)
        self.err = queue_for(thread, self.err)

    @property
    def is_behind(self) -> bool:
        """Whether the streams stand still, so that progress is not printed."""
        return self._thread is not None and self._thread.is_behind

    def finish(self, is_stopped: Callable[[], bool]) -> None:
        """Waits until all is written; after ``is_stopped``, for LAST_TEXTS at most."""
        if self._thread is not None:
            self._thread.end(is_stopped, LAST_TEXTS)

    def report(self, report: Report, prefix: str = "") -> None:
        """Prints what a person should read of ``report``, with ``prefix`` before each line."""
        is_progress = report["event"] == "progress"
        if is_progress and self.is_behind:
            return
        if is_progress and not self._progress_throttle.lets_through(time.monotonic()):
            return
        self.lines(describe(report), error=report["event"] == "error", prefix=prefix)

    def lines(self, lines: Sequence[Line], error: bool = False, prefix: str = "") -> None:
        """Prints lines to the output, or to the error stream."""
        stream = self.err if error else self.out
        columns = self.columns()
        shown = [wrap(self.safe(prefix + text), columns) for _, text in lines]
        self.write(stream, "".join(f"{line}\n" for part in shown for line in part))

    def columns(self) -> int:
        """How wide lines may be; 0 for any width, where it is not a terminal."""
        return self._columns

    def say(self, text: str) -> None:
        """Prints a line for people that is not a report."""
        self.lines([("", text)])

    def safe(self, text: str) -> str:
        """``text`` without control characters and secrets."""
        return self.secrets.hide(clean(text))

    def write(self, stream: TextIO, text: str) -> None:
        """Writes and flushes; a stream that nobody reads any more does not end the run."""
        with suppress(*STREAM_ERRORS):
            try:
                stream.write(text)
            except UnicodeEncodeError:
                encoding = getattr(stream, "encoding", None) or "ascii"
                stream.write(text.encode(encoding, "replace").decode(encoding))
            stream.flush()

    def question(self, text: str) -> None:
        """Prints a question; the cursor stays behind it."""
        self.write(self.out, text)

    def start_meter(self, read_meter: Callable[[], Meter]) -> None:
        """From now on draw_meter() shows what ``read_meter()`` returns, in printers that draw."""

    def draw_meter(self) -> None:
        """Draws the meter as it is now."""

    def close(self) -> None:
        """Takes the meter off the screen, and leaves the terminal as it was."""


class QuietPrinter(Printer):
    """Only the results, one path, URL or text a line; what went wrong goes to the error stream."""

    def report(self, report: Report, prefix: str = "") -> None:
        result = result_of(report)
        if result is not None:
            self.lines([("", result)], prefix=prefix)
        elif is_about_trouble(report):
            self.lines(describe(report), error=True, prefix=prefix)

    def question(self, text: str) -> None:
        self.write(self.err, text)

    def say(self, text: str) -> None:
        pass

    def columns(self) -> int:
        return 0  # a result is one line, whatever its length


class JsonPrinter(Printer):
    """One JSON object a line on the output; errors in words as well, on the error stream."""

    def report(self, report: Report, prefix: str = "") -> None:
        if report["event"] == "progress" and self.is_behind:
            return
        line = {"event": report["event"], "time": round(time.time(), 3), **report}
        shown = self.secrets.hide_in(plain_json(line))
        self.write(self.out, json.dumps(shown, allow_nan=False) + "\n")
        if report["event"] == "error":
            self.lines(describe(report), error=True, prefix=prefix)

    def question(self, text: str) -> None:
        self.write(self.err, text)

    def say(self, text: str) -> None:
        pass

    def columns(self) -> int:
        return 0


class LivePrinter(Printer):
    """A terminal: lines scroll above bars that move. Raises ImportError without rich."""

    _STYLES: Mapping[str, str] = {
        "ok": "green",
        "bad": "bold red",
        "warn": "yellow",
        "dim": "dim",
        "bold": "bold",
        "": "",
    }

    #: Columns of a bar, at most; of a label, at most; and of the text beside a bar, at least, so
    #: that the bars do not move when a number gets another digit.
    _BAR_WIDTH, _LABEL_WIDTH, _TEXT_WIDTH = 40, 26, 33

    def __init__(self, out: TextIO, err: TextIO) -> None:
        super().__init__(out, err)
        # rich is optional, and nothing but this class uses it.
        from rich.console import Console
        from rich.live import Live

        self._console = Console(file=out, highlight=False, markup=False, emoji=False)
        self._live = Live(
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._read_meter: Optional[Callable[[], Meter]] = None

    def print_in(self, thread: OutputThread) -> None:
        # In old consoles of Windows, rich sets colors by calls between the texts.
        if not self._console.legacy_windows:
            super().print_in(thread)
            self._console.file = self.out

    def report(self, report: Report, prefix: str = "") -> None:
        if report["event"] == "end":
            self.close()
        is_shown_by_meter = report["event"] == "progress" and self._read_meter is not None
        if not is_shown_by_meter:
            super().report(report, prefix)

    def lines(self, lines: Sequence[Line], error: bool = False, prefix: str = "") -> None:
        columns = self.columns()
        for style, text in lines:
            for line in wrap(self.safe(prefix + text), columns):
                with suppress(*STREAM_ERRORS):
                    self._console.print(self._styled(line, style), soft_wrap=True)

    def columns(self) -> int:
        return int(self._console.width)

    def start_meter(self, read_meter: Callable[[], Meter]) -> None:
        self._read_meter = read_meter
        with suppress(*STREAM_ERRORS):
            self._live.start()

    def draw_meter(self) -> None:
        if self._read_meter is None or not self._live.is_started or self.is_behind:
            return
        with suppress(*STREAM_ERRORS):
            self._live.update(self._render(self._read_meter()), refresh=True)

    def close(self) -> None:
        self._read_meter = None
        with suppress(*STREAM_ERRORS):
            self._live.stop()

    def _styled(self, text: str, style: str) -> Any:
        """A rich.text.Text that is safe to print."""
        from rich.text import Text

        return Text(self.safe(text), style=self._STYLES[style])

    def _styled_line(self, text: str, style: str) -> Any:
        """A rich.text.Text for the meter, which is cut to the width that there is."""
        line = self._styled(text.replace("\n", " "), style)
        line.no_wrap = True
        line.overflow = "ellipsis"
        return line

    def _render(self, meter: Meter) -> Any:
        """A rich renderable, whose lines leave room for the ``^C`` that a terminal writes.

        A line that is full would be wrapped by it, and rich would erase one line too few.
        """
        from rich.console import Group
        from rich.constrain import Constrain

        width = max(self._console.width - len("^C"), 1)
        parts = []
        if meter.headline:
            parts.append(self._styled_line(meter.headline, ""))
        if meter.bars:
            parts.append(self._render_bars(meter.bars, width))
        if meter.note:
            parts.append(self._styled_line(meter.note, "warn"))
        return Constrain(Group(*parts), width)

    def _render_bars(self, bars: Sequence[Bar], width: int) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        table = Table.grid(padding=(0, 1, 0, 0))
        table.add_column(width=max(8, min(width // 4, self._LABEL_WIDTH)), no_wrap=True)
        table.add_column(max_width=self._BAR_WIDTH)
        table.add_column(min_width=min(width // 2, self._TEXT_WIDTH), no_wrap=True)
        for bar in bars:
            style = self._STYLES[bar.style]
            table.add_row(
                self._styled_line(bar.label, ""),
                ProgressBar(1.0, bar.fraction, complete_style=style, finished_style=style),
                self._styled_line(bar.text, ""),
            )
        return table


def make_early_printer(environment: Environment) -> Printer:
    """The printer for errors in the settings themselves."""
    if "--json" in environment.arguments:
        return JsonPrinter(environment.stdout, environment.stderr)
    return Printer(environment.stdout, environment.stderr)


def make_printer(settings: Settings, environment: Environment) -> Printer:
    """The printer that the settings ask for: live in a terminal where rich is installed."""
    printer = choose_printer(settings.printer, environment)
    printer.secrets = Secrets(given_secrets(settings, environment.variables))
    if settings.export_api == "-":
        printer.out = environment.stderr  # the prompt alone goes to the output
    printer.print_in(OutputThread())
    return printer


def choose_printer(kind: str, environment: Environment) -> Printer:
    """The printer for ``kind``: "human", "quiet" or "json"."""
    out, err = environment.stdout, environment.stderr
    if kind == "json":
        return JsonPrinter(out, err)
    if kind == "quiet":
        return QuietPrinter(out, err)

    can_draw = out.isatty() and environment.variables.get("TERM") != "dumb"
    if can_draw:
        with suppress(ImportError):  # without rich, plain lines do
            return LivePrinter(out, err)
    return Printer(out, err)


def report_error(
    printer: Printer,
    error: RunnerError,
    prompt_id: Optional[str] = None,
    context: Mapping[str, Any] = {},
) -> ExitStatus:
    """Reports the error that ends the call; the exit status that it leads to.

    ``context`` are more fields of the report.
    """
    report: Report = {
        "event": "error",
        "prompt_id": prompt_id,
        **context,
        "type": type(error).__name__,
        "message": error.message,
        "remedy": error.remedy,
        "exit_status": int(error.exit_status),
    }
    printer.report(report)
    return error.exit_status


def report_fault(printer: Printer, error: Exception, arguments: Sequence[str]) -> ExitStatus:
    """Reports an error that is a bug of the program; the exit status that it leads to."""
    if "--verbose" in arguments or "-v" in arguments:
        frames = traceback.format_exception(type(error), error, error.__traceback__)
        lines: List[Line] = [("dim", line) for line in "".join(frames).splitlines()]
        printer.lines(lines, error=True)
    message = f"{type(error).__name__}: {error}"
    remedy = "This is a bug in this program. Please report it with the output of --verbose."
    return report_error(printer, RunnerError(message, remedy))


def is_yes(answer: str) -> Optional[bool]:
    """Whether an answer means yes or no; None if it means neither. An empty one means no."""
    answers = {"y": True, "yes": True, "n": False, "no": False, "": False}
    return answers.get(answer.strip().lower())
