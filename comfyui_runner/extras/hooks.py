"""--hook: commands that run after each run, and get on standard input what became of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from typing import Any, BinaryIO, Callable, Dict, Mapping, NamedTuple, Optional, Sequence

from comfyui_runner.conclusion import Ending, output_entry
from comfyui_runner.reports import Report, failure_report, plain_notice, problem_report
from comfyui_runner.runs import Run
from comfyui_runner.seeds import seeds_by_name
from comfyui_runner.session import Session
from comfyui_runner.shells import IS_WINDOWS
from comfyui_runner.text import duration, one_line, plain_json, plural
from comfyui_runner.threads import done_or_set, end_tasks, in_thread

#: Hooks that run at a time; the others wait.
MOST_AT_ONCE = 4

#: Hooks that run or wait. More are not started, as each keeps what it is to be given.
MOST_STARTED = 200

#: Bytes at the end of what a hook wrote to standard error, in which its last line is looked for.
LAST_ERRORS = 4096

#: Characters of that line, and of the command, that are shown.
LONGEST_SHOWN = 300

#: Seconds before people are told that hooks are waited for.
QUIET_SECONDS = 1.0

#: Seconds for a hook that was killed, and its children, to be gone.
KILL_SECONDS = 5.0

#: The variables of ours that let somebody in. What a hook needs of them has another name.
SECRET_VARIABLES = ("COMFY_API_KEY", "COMFYUI_HEADERS", "COMFYUI_RUNNER_TOKEN")


class EndedRun(NamedTuple):
    """What a hook is given of a run."""

    prompt_id: str
    status: str
    document: bytes  # run_as_json() in UTF-8, with secrets hidden


# -- rules -----------------------------------------------------------------------------------------


def run_as_json(
    session: Session, run: Run, ending: Ending, row: Optional[int] = None
) -> Dict[str, Any]:
    """The run as docs/JSON.md describes it. ``row`` is the number of the row of a batch."""
    outputs = [
        {**output_entry(session, output), "path": (ending.saved or {}).get(output)}
        for output in ending.outputs
    ]
    end = {name: value for name, value in ending.report.items() if name != "event"}
    return {
        "prompt_id": run.prompt_id,
        "row": row,
        "time": round(time.time(), 3),
        "server": session.server.address.url,
        **end,
        "seeds": seeds_by_name(run.prompt),
        **run.texts.to_json(),
        "outputs": outputs,
        "problems": [without_event(problem_report(problem)) for problem in run.problems],
        "failure": without_event(failure_report(run.state, run.prompt, None)),
    }


def without_event(report: Optional[Report]) -> Optional[Report]:
    """``report`` without its name; None for None."""
    if report is None:
        return None
    return {name: value for name, value in report.items() if name != "event"}


def ended_run(session: Session, run: Run, ending: Ending, row: Optional[int] = None) -> EndedRun:
    """What hooks are given of ``run``, without secrets: a hook may send it anywhere."""
    shown = run_as_json(session, run, ending, row)
    shown = session.server.secrets.hide_in(plain_json(shown))
    document = json.dumps(shown, ensure_ascii=False) + "\n"
    encoded = document.encode(errors="replace")
    return EndedRun(run.prompt_id, ending.report["status"], encoded)


def variables_for_hook(variables: Mapping[str, str], run: EndedRun) -> Dict[str, str]:
    """The variables of a hook: ours, without those that let somebody in, and two about the run."""
    passed_on = {name: text for name, text in variables.items() if name not in SECRET_VARIABLES}
    has_login = "@" in passed_on.get("COMFYUI_URL", "")
    if has_login:
        del passed_on["COMFYUI_URL"]
    return {**passed_on, "COMFYUI_RUN_ID": run.prompt_id, "COMFYUI_RUN_STATUS": run.status}


def last_line(errors: bytes) -> str:
    """The last line of what a hook wrote to standard error, without escape codes; "" of nothing."""
    lines = errors.decode(errors="replace").splitlines()
    return next(filter(None, (one_line(line, LONGEST_SHOWN) for line in reversed(lines))), "")


def end_in_words(exit_code: int, errors: bytes) -> str:
    """How a hook failed; "" for one that succeeded."""
    if exit_code == 0:
        return ""
    ending = f"ended with exit code {exit_code}"
    if exit_code < 0:
        ending = f"was ended by signal {-exit_code}"
    line = last_line(errors)
    if not line:
        return ending
    return f"{ending}: {line}"


def hook_report(command: str, failure: str) -> Report:
    """The report of a hook that failed."""
    shown = one_line(command, LONGEST_SHOWN)
    return {
        "event": "hook_failed",
        "command": shown,
        "message": f"The hook {shown} {failure.rstrip('.')}.",
    }


# -- one hook --------------------------------------------------------------------------------------


class HookCall:
    """A command after a run. run() is called in a thread, end() in any other."""

    def __init__(self, command: str, run: EndedRun, variables: Mapping[str, str]) -> None:
        self.command = command
        self._document = run.document
        self._variables = variables_for_hook(variables, run)
        self._lock = threading.Lock()
        self._process: Optional["subprocess.Popen[bytes]"] = None
        self._reason = ""  # why it was ended

    def run(self) -> str:
        """Runs the command to its end: "", or how it failed. Blocks until then, or until end()."""
        try:
            # Files, not pipes: a hook need not read its input, and may leave children behind that
            # keep its standard error open.
            with tempfile.TemporaryFile() as document, tempfile.TemporaryFile() as errors:
                document.write(self._document)
                document.seek(0)
                with self._lock:
                    if self._reason:
                        return self._reason
                    self._process = self._start(document, errors)
                exit_code = self._process.wait()
                return self._reason or end_in_words(exit_code, read_end(errors))
        except (OSError, ValueError) as error:  # ValueError: a null byte, or letters not encoded
            return f"could not be started: {getattr(error, 'strerror', None) or error}"

    def _start(self, document: Any, errors: Any) -> "subprocess.Popen[bytes]":
        """The command in the shell, as it was typed, at the head of a group of its own.

        Ctrl+C goes to our group: what a hook does is not cut off by it.
        """
        flags = 0
        if IS_WINDOWS:
            # No window opens where we have none.
            flags = subprocess_flag("CREATE_NEW_PROCESS_GROUP") | subprocess_flag(
                "CREATE_NO_WINDOW"
            )
        return subprocess.Popen(
            self.command,
            shell=True,
            stdin=document,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=self._variables,
            start_new_session=not IS_WINDOWS,
            creationflags=flags,
        )

    def end(self, reason: str) -> None:
        """Kills the command and its children, if it has not ended; ``reason`` is how it failed."""
        with self._lock:
            self._reason = reason
            if self._process is not None and self._process.poll() is None:
                kill_group(self._process)


def subprocess_flag(name: str) -> int:
    """A flag that the module subprocess has on Windows only."""
    return int(getattr(subprocess, name, 0))


def read_end(file: BinaryIO) -> bytes:
    """The last bytes of what was written to ``file``."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - LAST_ERRORS, 0))
    return file.read()


def kill_group(process: "subprocess.Popen[bytes]") -> None:
    """Kills a process and its children."""
    try:
        if IS_WINDOWS:
            subprocess.run(
                ["taskkill", "/F", "/T", "/PID", str(process.pid)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=KILL_SECONDS,
                check=False,
            )
        else:
            os.killpg(process.pid, signal.SIGKILL)
    except (OSError, subprocess.SubprocessError):
        pass  # the group is gone, or there is no taskkill
    with suppress(OSError):  # it has just ended
        process.kill()


# -- all of them -----------------------------------------------------------------------------------


class Hooks:
    """The commands of --hook, after each run. Made and used in the event loop.

    Each may take ``seconds``. ``variables`` are those of the program.
    """

    def __init__(
        self, commands: Sequence[str], variables: Mapping[str, str], seconds: float
    ) -> None:
        self.commands = commands
        self.variables = variables
        self.seconds = seconds
        self._calls: Dict["asyncio.Task[None]", HookCall] = {}
        self._turns = asyncio.Semaphore(MOST_AT_ONCE)

    def start(self, run: EndedRun, report: Callable[[Report], None]) -> None:
        """Starts all of them after ``run``; ``report`` takes what goes wrong."""
        for command in self.commands:
            if len(self._calls) >= MOST_STARTED:
                failure = f"was not started: {MOST_STARTED} hooks are already running or waiting"
                report(hook_report(command, failure))
                continue
            call = HookCall(command, run, self.variables)
            task = asyncio.ensure_future(self._run(call, report))
            self._calls[task] = call
            task.add_done_callback(self._calls.pop)

    async def _run(self, call: HookCall, report: Callable[[Report], None]) -> None:
        """Runs one of them, when it is its turn."""
        async with self._turns:
            running = asyncio.ensure_future(in_thread(call.run))
            await asyncio.wait([running], timeout=self.seconds)
            if not running.done():
                reason = f"took longer than {duration(self.seconds)}, and was killed"
                await in_thread(call.end, reason)
                await asyncio.wait([running], timeout=KILL_SECONDS)
            failure = reason_of(running)
        if failure:
            report(hook_report(call.command, failure))

    async def finish(
        self,
        report: Callable[[Report], None],
        stopping: Optional["asyncio.Event"] = None,
    ) -> None:
        """Waits until all have ended, for ``seconds`` at most, or until ``stopping`` is set.

        Those that have not are ended.
        """
        if not self._calls:
            return
        all_done: "asyncio.Future[Any]" = asyncio.ensure_future(asyncio.wait(list(self._calls)))
        stopping = stopping or asyncio.Event()
        await done_or_set(all_done, stopping, min(QUIET_SECONDS, self.seconds))
        if not all_done.done():
            count = plural(len(self._calls), "hook")
            message = f"Waiting up to {duration(self.seconds)} for {count} (--hook)."
            report(plain_notice(message))
            await done_or_set(all_done, stopping, max(self.seconds - QUIET_SECONDS, 0.0))
        reason = "had not ended, and was killed"
        await asyncio.gather(*(in_thread(call.end, reason) for call in self._calls.values()))
        await asyncio.wait([all_done], timeout=KILL_SECONDS)
        await end_tasks([*self._calls, all_done])


def reason_of(running: "asyncio.Future[str]") -> str:
    """How a hook failed, whose call has ended or cannot be ended."""
    if not running.done():
        return "could not be killed"
    return running.result()
