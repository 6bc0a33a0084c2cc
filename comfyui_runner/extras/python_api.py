"""The Python API: a connection to ComfyUI over which workflows run. docs/PYTHON.md shows its use.

``AsyncComfy`` is the connection. ``Comfy`` keeps one in a thread of its own, for programs without
an event loop, and for those whose loop is not theirs, such as notebooks.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import queue
import threading
from inspect import isawaitable
from typing import (
    Any,
    Awaitable,
    Callable,
    Dict,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    Union,
)

from comfyui_runner.comfyui import ComfyUI
from comfyui_runner.conclusion import Ending, conclude
from comfyui_runner.console import Console
from comfyui_runner.edits import EditError
from comfyui_runner.errors import (
    ExitStatus,
    PromptRejected,
    RunCancelled,
    RunnerError,
    Stopped,
    UsageError,
    WorkflowError,
)
from comfyui_runner.extras.python_calls import (
    Call,
    CalledWorkflow,
    KnownDefinitions,
    ReportPrinter,
    RunReport,
    Workflow,
    complete_called_prompt,
    load_called_workflow,
    make_call,
    make_result,
    raise_unless_succeeded,
    refuse_callback,
    silent_environment,
)
from comfyui_runner.extras.python_results import RunOutput, RunResult
from comfyui_runner.extras.python_words import errors_in_python_words
from comfyui_runner.interrupts import Interrupts, Stop
from comfyui_runner.limits import DEFAULT_LIMITS, Limits
from comfyui_runner.redaction import Secrets
from comfyui_runner.reports import Report
from comfyui_runner.runs import Run
from comfyui_runner.session import Session
from comfyui_runner.settings import Settings, choose_addresses, given_secrets, read_api_key
from comfyui_runner.steps import draw_texts, find_spending, name_models, show_warnings
from comfyui_runner.threads import end_tasks, in_thread, run_loop, start_thread
from comfyui_runner.watch import Watch

#: Where ComfyUI is when neither connect() nor COMFYUI_URL says so, as in the script.
USUAL_URLS = ("http://127.0.0.1:8188", "http://127.0.0.1:8000")

#: Seconds between two looks for Ctrl+C: in Windows, a wait does not end by it.
PRESS_INTERVAL = 0.2

#: What cancels runs, in their messages.
PRESSED = Stop("Ctrl+C", ExitStatus.CANCELLED)
CLOSED = Stop("The connection was closed", ExitStatus.CANCELLED)
GIVEN_UP = Stop("The caller stopped waiting", ExitStatus.CANCELLED)

#: Takes each report of a run.
OnProgress = Callable[[RunReport], object]


# -- connecting ------------------------------------------------------------------------------------


def connect(
    url: Optional[str] = None,
    *,
    demo: bool = False,
    headers: Mapping[str, str] = {},
    allow_spend: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> "Comfy":
    """A connection to the ComfyUI at ``url``, for ``with``. Otherwise, call its close().

    Without a URL it is looked for where COMFYUI_URL says, or on this machine; with ``demo``, a
    simulator is started. ``headers`` are sent with each request, besides those of COMFYUI_HEADERS;
    the URL may have a user and a password. ``allow_spend``: nodes that cost credits of the account
    whose key is in COMFY_API_KEY may run. ``limits`` say how long each wait may take.

    Raises UsageError, and ServerError if no ComfyUI answers.
    """
    with errors_in_python_words():
        return Comfy(make_api_settings(url, demo, headers, allow_spend, limits))


def connect_async(
    url: Optional[str] = None,
    *,
    demo: bool = False,
    headers: Mapping[str, str] = {},
    allow_spend: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> "AsyncComfy":
    """connect() for programs with an event loop of their own: ``async with connect_async()``."""
    with errors_in_python_words():
        return AsyncComfy(make_api_settings(url, demo, headers, allow_spend, limits))


def make_api_settings(
    url: Optional[str], demo: bool, headers: Mapping[str, str], allow_spend: bool, limits: Limits
) -> Settings:
    """The settings of a connection. Raises UsageError."""
    if url is not None and not isinstance(url, str):
        raise UsageError(
            f"The URL must be a string, not {type(url).__name__}.", "Example: http://127.0.0.1:8188"
        )
    if not isinstance(headers, Mapping):
        raise UsageError(
            f"The headers must be a dict, not {type(headers).__name__}.",
            'Example: {"Authorization": "Bearer …"}',
        )
    if demo and url is not None:
        raise UsageError("demo=True starts its own server.", "Leave out the URL, or demo.")
    lines = [f"{name}: {value}" for name, value in headers.items()]
    urls = None if url is None else (url,)
    addresses = choose_addresses(urls, lines, os.environ, USUAL_URLS)
    return Settings(
        workflow="",
        workflow_named=True,
        mode="single_shot",
        auto_execute=False,
        servers=addresses,
        demo=demo,
        yes=True,  # there is nobody to ask
        allow_spend=allow_spend,
        api_key=read_api_key(os.environ),
        limits=limits,
    )


# -- for programs with an event loop ---------------------------------------------------------------


class AsyncComfy:
    """A connection to a ComfyUI, over which any number of workflows run at a time.

    It is open inside ``async with``, once.
    """

    def __init__(self, settings: Settings) -> None:
        self.interrupts = Interrupts()  #: its stop() ends the search for a server
        self._settings = settings
        self._secrets = Secrets(given_secrets(settings, os.environ))
        self._comfyui: Optional[ComfyUI] = None  # where it was entered
        self._is_open = False
        self._sessions: List[Session] = []  # the last one is for new runs
        self._in_use: List[Session] = []  # that of each call
        self._calls: Dict["asyncio.Task[Any]", Call] = {}
        self._consoles: Dict[str, Console] = {}  # of the runs, by prompt_id

    @property
    def url(self) -> str:
        """Where ComfyUI is. Raises RunnerError where it was not looked for yet."""
        with errors_in_python_words():
            if self._comfyui is None or self._comfyui.server is None:
                raise connection_is_closed()
        return self._comfyui.server.address.url

    async def __aenter__(self) -> "AsyncComfy":
        with errors_in_python_words():
            if self._comfyui is not None:
                raise RunnerError(
                    "A connection can be opened only once.",
                    "Create another one: async with connect_async(...) as comfy:",
                )
        printer = ReportPrinter(log_notice, self._secrets)
        console = Console(printer, self.interrupts, silent_environment())
        self._comfyui = ComfyUI(self._settings, console)
        self._opening = asyncio.Lock()
        try:
            with errors_in_python_words(self._secrets):
                self._server = await self._comfyui.find()
                await console.unless_stopped(self._use_session())
        except BaseException:
            await self.close()
            self._comfyui = None  # it may be tried again
            raise
        self._is_open = True
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancels the runs that are not over, and closes all connections."""
        if self._comfyui is None:
            return
        self._is_open = False
        tasks = list(self._calls)
        for call in self._calls.values():
            call.interrupts.stop(CLOSED)
        try:
            if tasks:
                await asyncio.wait(tasks)
        finally:
            await end_tasks(tasks)
            await asyncio.gather(*(session.close() for session in self._sessions))
            for server in [self._comfyui.server, *(session.server for session in self._sessions)]:
                if server is not None:
                    server.close()
            await self._comfyui.__aexit__()  # stops the simulator

    # -- running ---------------------------------------------------------------------------------

    async def run(
        self,
        workflow: Workflow,
        values: Optional[Mapping[str, Any]] = None,
        *,
        seed: Union[int, str, None] = None,
        timeout: Optional[float] = None,
        on_progress: Optional[OnProgress] = None,
    ) -> RunResult:
        """Comfy.run(). Where its task is cancelled, the run is cancelled first."""
        reports: "asyncio.Queue[Optional[RunReport]]" = asyncio.Queue()
        with errors_in_python_words():
            refuse_callback(on_progress, may_be_awaited=True)
            call = make_call(workflow, values, seed, timeout, reports.put_nowait)
        task = asyncio.ensure_future(self.perform(call))
        task.add_done_callback(lambda _: reports.put_nowait(None))
        try:
            while True:
                report = await reports.get()
                if report is None:
                    return result_of_call(task)
                if on_progress is not None:
                    waiting = on_progress(report)
                    if isawaitable(waiting):  # of an "async def"
                        await waiting
        finally:
            if not task.done():  # we are cancelled, or on_progress() raised
                call.interrupts.stop(GIVEN_UP)
                await asyncio.wait([task])
            await end_tasks([task])

    async def perform(self, call: Call) -> RunResult:
        """Does what ``call`` asks for. Raises RunnerError."""
        task = asyncio.current_task()
        assert task is not None
        self._calls[task] = call
        try:
            with errors_in_python_words(self._secrets):
                if not self._is_open:
                    raise connection_is_closed()
                return await self._perform(call)
        except Stopped:
            name = call.interrupts.name
            raise RunCancelled(f"{name}: nothing was submitted.") from None
        finally:
            del self._calls[task]

    async def _perform(self, call: Call) -> RunResult:
        """The steps of a run, as single_shot() in the script has them."""
        printer = ReportPrinter(call.send, self._secrets)
        console = Console(printer, call.interrupts, silent_environment())
        session = await console.unless_stopped(self._use_session())
        self._in_use.append(session)
        try:
            run, ending = await self._run_in(session, call, console)
        finally:
            self._in_use.remove(session)

        outputs = [
            RunOutput(output, session.server, self._secrets, self._simulator_is_gone)
            for output in ending.outputs
        ]
        result = make_result(run, ending, outputs, printer.notices, self._secrets)
        raise_unless_succeeded(run, ending, result, self._secrets)
        return result

    async def _run_in(self, session: Session, call: Call, console: Console) -> Tuple[Run, Ending]:
        """Makes the run that ``call`` asks for, submits it and follows it: how it ended."""
        settings = self._settings._replace(timeout=call.timeout)
        run = await self._make_run(call, session, settings, console)
        self._consoles[run.prompt_id] = console
        try:
            watch = Watch(session, run, settings, console)
            await watch.until_stopped(session.submit)
            await watch.until_stopped(session.follow)
            ending = await conclude(
                session, run, watch.stop, None, whole_traceback=True, is_served=True
            )
            return run, ending
        except asyncio.CancelledError:
            # Before Python 3.11, asyncio.run() answers Ctrl+C by cancelling every task at once.
            await session.cancel(run)
            raise
        except PromptRejected:
            self._forget_definitions()
            raise
        finally:
            session.forget(run)
            del self._consoles[run.prompt_id]

    async def _make_run(
        self, call: Call, session: Session, settings: Settings, console: Console
    ) -> Run:
        """The run that ``call`` asks for, whose files are on the server. Raises RunnerError."""
        workflow = await self._load(call, console)
        loaded = workflow.loaded
        spending = await find_spending(loaded, session.server, settings, console)
        prompt = await complete_called_prompt(workflow, session.server, console)
        prompt = await name_models(prompt, loaded.object_info, session.server, console)
        new = draw_texts(loaded, prompt)
        return session.new_run(
            *(new.prompt, console.prompt_id, new.extra, new.origin, new.texts),
            own_extra_data=spending.extra_data,
        )

    async def _load(self, call: Call, console: Console) -> CalledWorkflow:
        """The workflow of a call. What is refused is looked at once more, with new definitions."""
        known = self._known
        knows_some = known.knows_some

        def load(known: KnownDefinitions) -> Awaitable[CalledWorkflow]:
            return in_thread(load_called_workflow, call, self._settings, known)

        try:
            workflow = await console.unless_stopped(load(known))
        except (EditError, WorkflowError):
            if not knows_some:
                raise
            self._forget_definitions()
            workflow = await console.unless_stopped(load(self._known))
        show_warnings(workflow.loaded, console)
        return workflow

    async def _use_session(self) -> Session:
        """The session for the next run: a new one where a load balancer took the server from us."""
        async with self._opening:
            await self._close_unused_sessions()
            if not self._sessions or self._sessions[-1].server.gone:
                session = Session(self._server.fresh(), self._report)
                # The one before stays open: runs on it may not have seen their end.
                self._sessions.append(session)
                try:
                    await session.open()
                except BaseException:
                    self._sessions.remove(session)
                    await session.close()
                    session.server.close()
                    raise
                self._forget_definitions()
            return self._sessions[-1]

    async def _close_unused_sessions(self) -> None:
        """Closes the sessions that no call uses, except the last one."""
        for session in self._sessions[:-1]:
            if session in self._in_use:
                continue
            await session.close()
            session.server.close()
            self._sessions.remove(session)

    def _simulator_is_gone(self) -> bool:
        return self._settings.demo and not self._is_open

    def _forget_definitions(self) -> None:
        """Has the definitions of classes looked up anew: what is known may be out of date."""
        self._known = KnownDefinitions(self._sessions[-1].server)

    def _report(self, run: Optional[Run], report: Report) -> None:
        """Hands a report to the call that it is about, or to all."""
        if report["event"] == "connection" and report["state"] == "restored":
            self._forget_definitions()  # it may have been restarted, with other nodes and files
        if run is None:
            for console in list(self._consoles.values()):
                console.report(None, report)
        elif run.prompt_id in self._consoles:
            self._consoles[run.prompt_id].report(run, report)


def log_notice(report: RunReport) -> None:
    """Takes the reports of no run: a person should read the notices."""
    if report["event"] == "notice":
        logging.getLogger("comfyui_runner").warning("%s", report["message"])


def connection_is_closed() -> RunnerError:
    """The error of a call that came too late, or too early."""
    return RunnerError(
        "The connection is not open.",
        "Run workflows inside the block: with connect(...) as comfy:",
    )


# -- for programs without one ----------------------------------------------------------------------


class Comfy:
    """A connection to a ComfyUI, for any number of threads. Its event loop is in its own thread.

    It is open from the beginning to close(), or to the end of its ``with`` block.
    """

    def __init__(self, settings: Settings) -> None:
        self._comfy = AsyncComfy(settings)
        self._closing = threading.Lock()  # held while a call is handed to the loop
        self._is_open = True
        self._started: "concurrent.futures.Future[None]" = concurrent.futures.Future()
        self._ended = start_thread(self._keep_open)
        try:
            wait_for_any([self._started, self._ended])
        except BaseException:  # Ctrl+C
            self.close()
            raise
        if not self._started.done():
            self._ended.result()  # raises why

    def _keep_open(self) -> None:
        run_loop(self._serve_calls())

    async def _serve_calls(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._close = asyncio.Event()
        async with self._comfy:
            self._started.set_result(None)
            if self._is_open:  # else close() came before it could know of the loop
                await self._close.wait()

    @property
    def url(self) -> str:
        """Where ComfyUI is."""
        return self._comfy.url

    def __enter__(self) -> "Comfy":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancels the runs that are not over, and closes all connections."""
        with self._closing:
            self._is_open = False
            self._comfy.interrupts.stop(PRESSED)  # where it is still opening
            if self._started.done():
                with contextlib.suppress(RuntimeError):  # it was closed before
                    self._loop.call_soon_threadsafe(self._close.set)
        wait_for_any([self._ended])

    def run(
        self,
        workflow: Workflow,
        values: Optional[Mapping[str, Any]] = None,
        *,
        seed: Union[int, str, None] = None,
        timeout: Optional[float] = None,
        on_progress: Optional[OnProgress] = None,
    ) -> RunResult:
        """Runs a workflow to its end.

        ``workflow`` is the path of a file, what it contains, or the document, in API or UI format.
        It does not change. ``values`` are set in it, by ``NODE.INPUT``, where NODE is an id, a
        title or a class, or by positive, negative, seed, image and size; a path or bytes are
        uploaded. ``seed`` is a number for every seed, or "random". After ``timeout`` seconds the
        run is cancelled. ``on_progress`` is called, in this thread, with each report of the run
        (docs/JSON.md lists them). Ctrl+C, and an error that it raises, cancel the run.

        Raises RunnerError, whose subclasses docs/PYTHON.md lists.
        """
        reports: "queue.SimpleQueue[Optional[RunReport]]" = queue.SimpleQueue()
        with errors_in_python_words():
            refuse_callback(on_progress, may_be_awaited=False)
            call = make_call(workflow, values, seed, timeout, reports.put)
            future = self._hand_over(call)
        future.add_done_callback(lambda _: reports.put(None))
        try:
            for report in reports_until_end(reports):
                if on_progress is not None:
                    on_progress(report)
            return result_of_call(future)
        finally:
            if not future.done():
                # Ctrl+C, or on_progress() raised. A second Ctrl+C ends this wait.
                call.interrupts.stop(PRESSED)
                wait_for_any([future])

    def _hand_over(self, call: Call) -> "concurrent.futures.Future[RunResult]":
        """Has the loop perform ``call``. Raises RunnerError if it is closed."""
        with self._closing:
            if not self._is_open:
                raise connection_is_closed()
            return asyncio.run_coroutine_threadsafe(self._comfy.perform(call), self._loop)


def result_of_call(
    future: Union["asyncio.Future[RunResult]", "concurrent.futures.Future[RunResult]"],
) -> RunResult:
    """The result of AsyncComfy.perform(), which is done.

    Raises its error, with a traceback that begins at the caller: the steps of a run are not theirs.
    """
    try:
        return future.result()
    except RunnerError as error:
        raise error.with_traceback(None) from None
    except concurrent.futures.CancelledError:  # the loop ended first
        raise RunCancelled(f"{CLOSED.name}.") from None


def wait_for_any(futures: Sequence["concurrent.futures.Future[Any]"]) -> None:
    """Waits until one of ``futures`` is done. Raises KeyboardInterrupt for Ctrl+C."""
    while not concurrent.futures.wait(
        futures, PRESS_INTERVAL, return_when=concurrent.futures.FIRST_COMPLETED
    ).done:
        pass


def reports_until_end(
    reports: "queue.SimpleQueue[Optional[RunReport]]",
) -> Iterator[RunReport]:
    """The reports of a queue, up to None. Raises KeyboardInterrupt for Ctrl+C."""
    while True:
        try:
            report = reports.get(timeout=PRESS_INTERVAL)
        except queue.Empty:
            continue
        if report is None:
            return
        yield report
