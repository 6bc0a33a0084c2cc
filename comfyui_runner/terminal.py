"""Who prints what. Every text passes clean() and hide_secrets() on its way out."""

from __future__ import annotations

import json
import os
import time
import traceback
from typing import Any, Callable, List, Mapping, Optional, Sequence, TextIO, Tuple

from comfyui_runner.environment import Environment
from comfyui_runner.errors import ExitStatus, RunnerError
from comfyui_runner.reports import Line, Report, Throttle, describe
from comfyui_runner.settings import Settings
from comfyui_runner.text import clean, hide_secrets, plain_json

#: Seconds between two lines of progress, where there are no bars.
LINE_INTERVAL = 2.0


class Printer:
    """Plain lines, for pipes, logs and terminals without rich; the base of the other printers."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self.out, self.err = out, err
        self.secrets: Tuple[str, ...] = ()
        self.prefix = ""  #: what each line begins with
        self._progress_throttle = Throttle(LINE_INTERVAL)

    def report(self, report: Report) -> None:
        """Prints what a person should read of ``report``."""
        is_progress = report["event"] == "progress"
        if is_progress and not self._progress_throttle.lets_through(time.monotonic()):
            return
        self.lines(describe(report), error=report["event"] == "error")

    def lines(self, lines: Sequence[Line], error: bool = False) -> None:
        """Prints lines to the output, or to the error stream."""
        stream = self.err if error else self.out
        self.write(stream, "".join(self.prefix + self.safe(text) + "\n" for _, text in lines))

    def safe(self, text: str) -> str:
        """``text`` without control characters and secrets."""
        return hide_secrets(clean(text), self.secrets)

    def write(self, stream: TextIO, text: str) -> None:
        """Writes and flushes; a stream that nobody reads any more does not end the run."""
        try:
            stream.write(text)
            stream.flush()
        except UnicodeEncodeError:
            encoding = getattr(stream, "encoding", None) or "ascii"
            self.write(stream, text.encode(encoding, "replace").decode(encoding))
        except (OSError, ValueError):
            pass

    def question(self, text: str) -> None:
        """Prints a question; the cursor stays behind it."""
        self.write(self.out, text)

    def begin(self, rows: Callable[[int, bool], List[List[Line]]]) -> None:
        """Something begins that ``rows(width, ascii_only)`` draws, for printers that draw."""

    def draw(self) -> None:
        """Draws the moving part anew, where there is one."""

    def close(self) -> None:
        """Leaves the terminal as it was."""


class QuietPrinter(Printer):
    """Only what was made, one path or URL (or text) a line; errors go to the error stream."""

    def report(self, report: Report) -> None:
        event = report["event"]
        if event == "saved":
            self.lines([("", report["path"])])
        elif event == "listening":
            self.lines([("", report["url"])])
        elif event == "output" and not report["will_be_saved"]:
            self.lines([("", report["url"] if report["text"] is None else report["text"])])
        elif event == "end" and report.get("row"):
            pass  # "row" tells the same
        elif event in ("error", "problem", "failure", "not_saved", "notice") or (
            event in ("end", "row", "batch", "checked") and report["exit_status"]
        ):
            self.lines(describe(report), error=True)

    def question(self, text: str) -> None:
        self.write(self.err, text)


class JsonPrinter(Printer):
    """One JSON object a line on the output, nothing else there; errors in words on the error stream."""

    def report(self, report: Report) -> None:
        line = {"event": report["event"], "time": round(time.time(), 3), **report}
        self.write(self.out, json.dumps(self._safe(plain_json(line)), allow_nan=False) + "\n")
        if report["event"] == "error":
            self.lines(describe(report), error=True)

    def _safe(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {
                hide_secrets(key, self.secrets): self._safe(item) for key, item in value.items()
            }
        if isinstance(value, list):
            return [self._safe(item) for item in value]
        return hide_secrets(value, self.secrets) if isinstance(value, str) else value

    def question(self, text: str) -> None:
        self.write(self.err, text)


class LivePrinter(Printer):
    """A terminal: lines scroll above bars that move. Needs rich."""

    _STYLES: Mapping[str, str] = {
        "ok": "green",
        "bad": "bold red",
        "warn": "yellow",
        "dim": "dim",
        "bold": "bold",
        "": "",
    }

    def __init__(self, out: TextIO, err: TextIO) -> None:
        super().__init__(out, err)
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        self._text = Text
        self._console = Console(file=out, highlight=False, markup=False, emoji=False)
        self._ascii = not str(self._console.encoding).lower().replace("-", "").startswith("utf")
        self._live: Any = Live(
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._rows: Optional[Callable[[int, bool], List[List[Line]]]] = None

    def lines(self, lines: Sequence[Line], error: bool = False) -> None:
        for style, text in lines:
            line = self._text(self.prefix + self.safe(text), style=self._STYLES[style])
            try:
                self._console.print(
                    line, soft_wrap="://" in text or os.sep in text
                )  # to be copied in one piece
            except (OSError, ValueError):
                pass

    def report(self, report: Report) -> None:
        if report["event"] == "end":
            self.close()
        if report["event"] != "progress" or self._rows is None:
            super().report(report)

    def begin(self, rows: Callable[[int, bool], List[List[Line]]]) -> None:
        self._rows = rows
        self._live.start()

    def draw(self) -> None:
        if self._rows is None or not self._live.is_started:
            return
        rows = self._rows(self._console.width - 1, self._ascii)
        text = self._text(no_wrap=True, overflow="crop", end="")
        for number, row in enumerate(rows):
            text.append("\n" if number else "")
            for style, piece in row:
                text.append(self.safe(piece), style=self._STYLES[style])
        try:
            self._live.update(text, refresh=True)
        except (OSError, ValueError):
            pass

    def close(self) -> None:
        self._rows = None
        try:
            self._live.stop()
        except (OSError, ValueError):
            pass


def make_early_printer(environment: Environment) -> Printer:
    """The printer for errors in the settings themselves."""
    if "--json" in environment.arguments:
        return JsonPrinter(environment.stdout, environment.stderr)
    return Printer(environment.stdout, environment.stderr)


def make_printer(settings: Settings, environment: Environment) -> Printer:
    """The printer that the settings ask for: live in a terminal where rich is installed."""
    printer = choose_printer(settings.printer, environment.stdout, environment.stderr)
    printer.secrets = tuple(
        dict.fromkeys(secret for address in settings.servers for secret in address.secrets)
    )
    if settings.export_api == "-":
        printer.out = environment.stderr  # the prompt alone goes to the output
    return printer


def choose_printer(kind: str, out: TextIO, err: TextIO) -> Printer:
    """The printer for ``kind``: "human", "quiet" or "json"."""
    if kind == "json":
        return JsonPrinter(out, err)
    if kind == "quiet":
        return QuietPrinter(out, err)
    if out.isatty() and os.environ.get("TERM") != "dumb":
        try:
            return LivePrinter(out, err)
        except ImportError:
            pass  # without rich, plain lines do
    return Printer(out, err)


def report_error(
    printer: Printer, error: RunnerError, prompt_id: Optional[str] = None
) -> ExitStatus:
    """Reports the error that ends the call; the exit status that it leads to."""
    printer.report(
        {
            "event": "error",
            "prompt_id": prompt_id,
            "type": type(error).__name__,
            "message": error.message,
            "remedy": error.remedy,
            "exit_status": int(error.exit_status),
        }
    )
    return error.exit_status


def report_fault(printer: Printer, error: Exception, arguments: Sequence[str]) -> ExitStatus:
    """Reports an error that the runner should not have: a fault of its own."""
    if "--verbose" in arguments or "-v" in arguments:
        frames = traceback.format_exception(type(error), error, error.__traceback__)
        printer.lines([("dim", line) for line in "".join(frames).splitlines()], error=True)
    remedy = "This is a fault of the runner: please report it, with what --verbose shows."
    return report_error(printer, RunnerError(f"{type(error).__name__}: {error}", remedy))


def is_yes(answer: str) -> Optional[bool]:
    """What an answer to the question means; None: ask again. An empty one means no."""
    return {"y": True, "yes": True, "n": False, "no": False, "": False}.get(answer.strip().lower())
