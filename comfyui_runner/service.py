"""Continuous mode: the held workflow, its runs, and what the routes do."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import json
import queue
import random
import re
import tempfile
import threading
import time
import urllib.parse
import weakref
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
)

from comfyui_runner import __version__
from comfyui_runner.conclusion import THE_TIMEOUT, conclude, stop_that_counts
from comfyui_runner.documents import Prompt, parse_document
from comfyui_runner.edits import (
    EditError,
    draw_seeds,
    find_loaders,
    find_node,
    find_text,
    set_inputs,
    upload_inputs,
    with_values,
)
from comfyui_runner.errors import (
    ExitStatus,
    PromptRejected,
    RunnerError,
    ServerAnswer,
    ServerError,
    ServerGone,
    ServerTooOld,
    ServerUnreachable,
)
from comfyui_runner.events import Preview
from comfyui_runner.guard import COOKIE, Guard
from comfyui_runner.interrupts import Stop
from comfyui_runner.loading import Loaded, make_prompt
from comfyui_runner.messages import (
    INLINE_TYPES,
    JSON_LIMIT,
    HttpError,
    Request,
    Response,
    json_response,
    parse_fields,
    strict_json,
)
from comfyui_runner.nodes import InputRef, class_of, describe_nodes, input_spec, is_link, is_seed
from comfyui_runner.outputs import collect_outputs, view_path
from comfyui_runner.reports import Report, Throttle, exit_status_of, failure_report, nodes_done
from comfyui_runner.resources import read_resource
from comfyui_runner.routes import curl_lines
from comfyui_runner.runs import Run
from comfyui_runner.saving import Destination
from comfyui_runner.server import Server, new_uuid, uploaded_value
from comfyui_runner.session import Session
from comfyui_runner.state import Phase, lost, run_seconds, wholly_cached
from comfyui_runner.text import as_dict, as_list, as_number, one_line, plural
from comfyui_runner.threads import bounded, in_thread
from comfyui_runner.versions import version_warning

RUNS_KEPT = 200  #: runs that are told by GET /runs

STREAM_QUEUE = 2000  #: events that wait for a slow reader before it is dropped

EVENT_BYTES_PER_SECOND = (
    1e6  #: of the `run` events of one run: one with thousands of nodes is told less often
)


class Record:
    """A run as the service tells it."""

    def __init__(self, run: Run, session: Session) -> None:
        self.run, self.session = run, session
        self.created = time.time()
        self.failure: Optional[Report] = None
        self.message = ""
        self.over = threading.Event()
        self.told_preview: Optional[Preview] = None
        self.throttle = Throttle(0.0)  #: of its `run` events

    def to_json(self) -> Dict[str, Any]:
        """The run as GET /runs/{prompt_id} answers it."""
        run, state = self.run, self.run.state
        named = {i: describe_nodes(run.prompt, [i])[0] for i in [*state.running, *state.finished]}
        mark = (
            "&prompt_id=" + urllib.parse.quote(run.prompt_id)
            if self.session.server.affinity
            else ""
        )
        return {
            "prompt_id": run.prompt_id, "phase": state.phase.value, "over": self.over.is_set(), "ahead": state.ahead,
            **nodes_done(state), "message": self.message, "wholly_cached": wholly_cached(state),
            "created": round(self.created, 3), "seconds": round(run_seconds(state, time.monotonic()), 3),
            "running": [{**named[i], "value": p.value, "max": p.max} for i, p in state.running.items()],
            "nodes": [{**named[i], "seconds": round(took, 3)} for i, took in state.finished.items()],
            "outputs": [
                {**output._asdict(), "url": view_path(output)[1:] + mark if output.text is None else None}
                for output in collect_outputs(state.outputs, run.prompt)
            ],
            "problems": [{**problem._asdict(), "hints": list(problem.hints)} for problem in run.problems],
            "failure": self.failure,
        }  # fmt: skip


class Stream:
    """One reader of the events: a queue of what it has not been sent yet."""

    def __init__(self, prompt_id: Optional[str]) -> None:
        self.prompt_id = prompt_id
        self.waiting: "queue.Queue[Optional[bytes]]" = queue.Queue(STREAM_QUEUE)
        self.dropped = False

    def put(self, data: Optional[bytes]) -> None:
        """Hands it an event (None: the end); a reader that is too slow is dropped."""

        try:
            self.waiting.put_nowait(data)
        except queue.Full:
            self.dropped = True


def upload_form(file: Any, content_type: str, server: Server) -> str:
    """Uploads the multipart body in ``file``; the value by which a loader names what was in it."""
    file.seek(0)
    return uploaded_value(server.upload(file, content_type))


def sse(event: str, data: Any) -> bytes:
    """A Server-Sent Event."""
    return ("event: %s\ndata: %s\n\n" % (event, strict_json(data))).encode()


class ServiceOptions(NamedTuple):
    """What the service is told."""

    reload: Callable[[], Loaded]  # reads the workflow's file again
    guard: Guard = Guard()
    auto_execute: bool = False
    max_queue: int = 16
    output: Optional[str] = None  # the folder that outputs are saved in
    overwrite: bool = False
    timeout: Optional[float] = None  # seconds after which a run is cancelled


class Service:
    """Continuous mode: the held workflow, the runs, the routes.

    The routes are called in the threads of the http.server; the runs live in the asyncio loop.
    ``_lock`` guards what both touch.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        loaded: Loaded,
        options: "ServiceOptions",
        say: Callable[[Optional[str], Report], None],
    ) -> None:
        self.server = servers[0]
        self._servers = servers  # where ComfyUI may be; the first one that answers is kept
        self.options = options
        self._path = loaded.path
        self._say = say
        self._lock, self._uploading = threading.RLock(), threading.Lock()
        self._prompt, self._from_file, self._revision = loaded.prompt, loaded.prompt, 1
        self._loaded = loaded  # what was held before all edits
        self._random: Set[InputRef] = set(loaded.drawn)
        #: behind a load balancer: what inputs were set to by an upload, and how to upload it to another server
        self._files: Dict[InputRef, Tuple[Any, Callable[[Server], str]]] = {
            ref: (
                loaded.prompt[ref.node_id]["inputs"].get(ref.input),
                functools.partial(Server.upload_file, path=path),
            )
            for ref, path in loaded.uploads
        }
        self._object_info: Dict[str, Any] = {}
        self._records: Dict[str, Record] = {}
        self._dirty: Set[str] = set()
        self._streams: List[Stream] = []
        self._stats: Dict[str, Any] = {}
        self._connected = False
        self._features: Dict[str, Any] = {}
        self._closing = asyncio.Event()
        self._tasks: Set["asyncio.Future[None]"] = set()
        self._loop = asyncio.get_event_loop()
        self.session = Session(self.server, self.tell)
        self._failures = 0  # of GET /system_stats, in a row
        self._too_old = ""  #: what was last said of a ComfyUI that is too old
        self.page = b""

    # -- in the loop -----------------------------------------------------------------------------

    async def follow(self) -> None:
        """Keeps in touch with ComfyUI and tells the streams what changes, until it is cancelled."""

        self.session.begin()
        touched = -60.0
        while True:
            now = time.monotonic()
            steady = self._connected and self.session.connected
            if now - touched >= (15.0 if steady else 2.0):
                await self._touch()
                touched = time.monotonic()
            self._tell_changes()
            await asyncio.sleep(0.1)

    async def _touch(self) -> None:
        was = self._connected
        for server in self._servers:
            try:
                stats = await bounded(server.system_stats, seconds=server.limits.connect + 10.0)
                if not was:
                    self._features = as_dict(
                        await bounded(server.features, seconds=server.limits.read)
                    )
            except ServerError as error:
                if isinstance(error, ServerGone):  # the load balancer has others
                    self._servers = (server.fresh(),)
                    self.server = self.session.server = self._servers[0]
                    continue
                if isinstance(error, ServerTooOld) and error.message != self._too_old:
                    self._connected, self._too_old = False, error.message
                    self._notice(error.message)
                self._failures += 1
                if self._connected and (error.refused or self._failures > 1):  # once is an accident
                    self._connected = False
                    self._notice("ComfyUI does not answer (%s) Trying again." % error.message)
                continue
            self.server = self.session.server = server
            self._servers, self._connected, self._failures = (server,), True, 0
            self._stats, self._too_old = stats, ""
            break
        if self._connected != was:
            if self._connected:
                self._object_info = {}  # it may have other nodes and files now
                self._notice("ComfyUI is there: %s." % self.server.address.url)
                warning = version_warning(self._stats, self.server.address.url)
                if warning:
                    self._notice(warning)
                await in_thread(self._learn, self._prompt)
                self._publish(
                    None, sse("workflow", {"revision": self._revision})
                )  # more is known of it now
            self._publish(None, sse("status", self.status()))

    def _tell_changes(self) -> None:
        with self._lock:
            dirty, self._dirty = self._dirty, set()
        for prompt_id in dirty:
            record = self._records.get(prompt_id)
            if record is None:
                continue
            if not record.throttle.is_due(time.monotonic()) and not record.over.is_set():
                self._dirty.add(prompt_id)
                continue
            data = sse("run", record.to_json())
            record.throttle.interval = len(data) / EVENT_BYTES_PER_SECOND
            record.throttle.restart(time.monotonic())
            self._publish(prompt_id, data)
            if record.run.preview is not record.told_preview:
                record.told_preview = record.run.preview
                self._publish(prompt_id, sse("preview", {"prompt_id": prompt_id}))

    def tell(self, run: Optional[Run], report: Report) -> None:
        """What the session says: to the console, the record of the run, and the streams."""
        if report["event"] == "output":
            return  # GET /runs/{prompt_id} lists them
        prompt_id = run.prompt_id if run is not None else None
        self._say(prompt_id, report)
        if run is not None:
            self._dirty.add(run.prompt_id)
        self._publish(
            prompt_id,
            sse("report", {"prompt_id": prompt_id, "time": round(time.time(), 3), **report}),
        )

    def _notice(self, message: str) -> None:
        self._say(None, {"event": "notice", "message": message})

    def _publish(self, prompt_id: Optional[str], data: bytes) -> None:
        with self._lock:
            for stream in list(self._streams):
                if prompt_id is None or stream.prompt_id in (None, prompt_id):
                    stream.put(data)
                if stream.dropped:
                    self._streams.remove(stream)

    async def launch(
        self, prompt: Prompt, extra: Mapping[str, Any]
    ) -> Tuple[Record, Dict[str, Any]]:
        """Submits a run and follows it; comes back when ComfyUI has it. Raises what submit() raises."""

        session = self.session
        if (
            session.server.affinity
        ):  # a load balancer chooses a server for each run, by its connection
            session = Session(self.server.fresh(), self.tell)
            try:
                await session.open()
                prompt = with_values(
                    prompt, await in_thread(self._upload_again, prompt, session.server)
                )
            except BaseException:
                await session.close()
                raise
        run = session.new_run(prompt, str(extra.get("prompt_id") or new_uuid()), extra)
        run.patience = 5.0
        record = Record(run, session)
        with self._lock:
            waiting = self._waiting()
            if waiting >= self.options.max_queue:
                await self._leave(record)
                message = "%s of ours wait already (--max-queue)." % plural(waiting, "run")
                raise HttpError(429, "queue_full", message, Retry_After="10")
            self._records[run.prompt_id] = record
            ended = [i for i, other in self._records.items() if other.over.is_set()]
            for old in ended[: max(len(self._records) - RUNS_KEPT, 0)]:
                del self._records[old]
        try:
            answer = await session.submit(run)
            await session.look(run)
        except BaseException as error:
            if isinstance(error, PromptRejected):
                run.problems = error.problems = await session.explain(error.answer, prompt)
            record.message = (
                error.message if isinstance(error, RunnerError) else type(error).__name__
            )
            await self._ended(record)
            raise
        task = asyncio.ensure_future(self._finish(record))
        self._tasks.add(task)  # else it may be collected in the middle
        task.add_done_callback(self._tasks.discard)
        return record, answer or {"prompt_id": run.prompt_id, "number": None, "node_errors": {}}

    async def _finish(self, record: Record) -> None:
        """Follows a run to its end, and concludes it. A fault of ours must not leave a run that never ends."""
        run, session = record.run, record.session
        try:
            stopped_by = await self._follow(run, session)
        except Exception as error:
            self._notice("The runner failed: %s: %s" % (type(error).__name__, error))
            run.state = lost(
                run.state, "the runner failed (%s)" % type(error).__name__, time.monotonic()
            )
            stopped_by = None
        exit_status = exit_status_of(run.state, bool(run.dropped))
        record.failure = failure_report(run.state, run.prompt, None)
        destination = None
        if self.options.output is not None:
            destination = Destination(
                self.options.output, self.options.overwrite, stopping=self._closing
            )
        stop = None
        if stopped_by is not None:
            if stopped_by == THE_TIMEOUT:
                exit_status = ExitStatus.TIMEOUT
            stop = stop_that_counts(run.state, Stop(stopped_by, exit_status))
        ending = await conclude(session, run, stop, destination)
        record.message = ending.report["message"]
        await self._ended(record)

    async def _follow(self, run: Run, session: Session) -> Optional[str]:
        """Follows a run to its end or to --timeout; who cancelled it, or None."""
        try:
            await asyncio.wait_for(session.follow(run), self.options.timeout)
        except asyncio.TimeoutError:
            await session.cancel(run)
            await session.follow(run)
            return THE_TIMEOUT
        if not run.cancelling:
            return None
        return "the end of the service" if self._closing.is_set() else "POST /interrupt"

    async def _ended(self, record: Record) -> None:
        record.run.received.clear()  # 200 runs are kept: their pictures would fill the memory
        record.over.set()
        self._dirty.add(record.run.prompt_id)
        await self._leave(record)

    async def _leave(self, record: Record) -> None:
        record.session.forget(record.run)
        if record.session is not self.session:
            await record.session.close()

    async def stop(self) -> None:
        """Cancels our runs, tells the streams, closes the session."""

        self._closing.set()
        records = [record for record in self._records.values() if not record.over.is_set()]
        if records:
            self._notice("Stopping: cancelling %s of ours." % plural(len(records), "run"))
        await asyncio.gather(*(record.session.cancel(record.run) for record in records))
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2.0)
        self._tell_changes()
        with self._lock:
            for stream in self._streams:
                stream.put(sse("end", {}))
                stream.put(None)
        await self.session.close()

    # -- in the threads: helpers -------------------------------------------------------------------

    def _in_loop(self, work: Any, seconds: float) -> Any:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(seconds)
        except concurrent.futures.TimeoutError:
            raise ServerUnreachable("ComfyUI did not answer in time.") from None

    def _learn(self, prompt: Mapping[str, Any], anew: Iterable[str] = ()) -> Dict[str, Any]:
        """object_info of the prompt's classes, as far as it is known or can be had now; of the nodes
        ``anew`` it is read again, as lists of files grow."""
        again = {class_of(prompt, node_id) for node_id in anew}
        for class_type in sorted({class_of(prompt, node_id) for node_id in prompt}):
            if (class_type in again or class_type not in self._object_info) and self._connected:
                try:
                    info = self.server.object_info(class_type)
                except ServerError:
                    break
                if info is not None:
                    self._object_info[class_type] = info
        return self._object_info

    def _learn_all(self, classes: Optional[Iterable[str]]) -> Mapping[str, Any]:
        """object_info of every class; where ComfyUI is away nothing can be converted."""
        self._ready()
        self._object_info = self.server.all_object_info()
        return self._object_info

    def _hold(self, prompt: Prompt, random_inputs: Set[InputRef]) -> int:
        with self._lock:
            self._prompt, self._random = (
                prompt,
                {ref for ref in random_inputs if ref.node_id in prompt},
            )
            self._revision += 1
        self._publish(None, sse("workflow", {"revision": self._revision}))
        return self._revision

    def _edit(self, node_id: str, inputs: Mapping[str, Any]) -> Tuple[bool, int]:
        """Sets inputs of the held workflow. A value that is not in a list is looked up once more, as
        lists of files grow. The look-ups hold no lock; if another edit comes first, ours is made anew."""
        anew: Tuple[str, ...] = ()
        while True:
            prompt, drawn, fixed = self._prompt, set(self._random), dict(inputs)
            if node_id not in prompt:
                raise EditError(
                    "no_such_node", "The workflow has no node %s any more." % one_line(node_id, 40)
                )
            info = self._learn(prompt, anew)
            for name, value in inputs.items():
                spec, known = (
                    input_spec(info, class_of(prompt, node_id), name),
                    prompt[node_id]["inputs"],
                )
                drawn.discard(InputRef(node_id, name))
                if (
                    value == "random"
                    and is_seed(name, spec)
                    and name in known
                    and not is_link(known[name])
                ):
                    drawn.add(InputRef(node_id, name))
                    fixed[name] = known[name]
            try:
                changed, checked = set_inputs(prompt, node_id, fixed, info)
            except EditError as error:
                if error.type != "value_not_in_list" or anew:
                    raise
                anew = (node_id,)
                continue
            with self._lock:
                if self._prompt is prompt:
                    return checked, self._hold(changed, drawn)

    def _ready(self) -> None:
        if self._closing.is_set() or not self._connected:
            raise HttpError(
                503,
                "comfyui_unreachable",
                self._too_old or "ComfyUI at %s does not answer." % self.server.address.url,
                Retry_After="5",
            )

    def _start(self, prompt: Prompt, extra: Mapping[str, Any]) -> Tuple[Record, Dict[str, Any]]:
        self._ready()
        limits = self.server.limits
        record, answer = self._in_loop(
            self.launch(prompt, extra), limits.post + limits.give_up + 10.0
        )
        return record, answer

    def _held(self) -> Tuple[Prompt, Dict[str, Any]]:
        """The held workflow for a run, and what goes along with it. Seeds that are drawn are kept in it, for
        who likes the picture."""

        with self._lock:
            if self._random:
                self._hold(
                    draw_seeds(self._prompt, self._random, random.random, self._object_info),
                    self._random,
                )
            return self._prompt, self._loaded.extra(self._prompt)

    def _run_held(self) -> Response:
        prompt, extra = self._held()
        try:
            record, _ = self._start(prompt, extra)
        except PromptRejected as error:
            problems = [{**p._asdict(), "hints": list(p.hints)} for p in error.problems]
            raise HttpError(
                400,
                "prompt_rejected",
                error.message,
                {"problems": problems, "answer": error.answer},
            ) from None
        run = record.run
        return json_response(
            202,
            {"message": "execution started", "prompt_id": run.prompt_id, "ahead": run.state.ahead},
        )

    def _waiting(self) -> int:
        """How many runs of ours are on their way to ComfyUI or wait in its queue."""
        records = list(self._records.values())
        return sum(not r.over.is_set() and r.run.state.phase is not Phase.RUNNING for r in records)

    def status(self) -> Dict[str, Any]:
        """GET /status."""
        records = list(self._records.values())
        running = [
            r.run.prompt_id
            for r in records
            if r.run.state.phase is Phase.RUNNING and not r.over.is_set()
        ]
        devices = as_list(self._stats.get("devices"))
        return {
            "version": __version__,
            "comfyui": {
                "url": self.server.address.url, "connected": self._connected,
                "version": as_dict(self._stats.get("system")).get("comfyui_version"),
                "device": as_dict(devices[0]).get("name") if devices else None,
            },
            "workflow": {"file": self._path, "nodes": len(self._prompt), "revision": self._revision,
                         "changed": self._prompt != self._from_file},
            "runs": {"waiting": self._waiting(), "running": running[0] if running else None},
            "auto_execute_on_upload": self.options.auto_execute, "token_required": bool(self.options.guard.token),
        }  # fmt: skip

    # -- the routes: one method each; ``body`` reads the request's body ------------------------------

    def get_page(self, request: Request, body: Callable[[int], bytes]) -> Response:
        """The page for browsers; the list of routes for all others."""
        if self.page and "text/html" in request.headers.get("accept", ""):
            return Response(200, self.page, "text/html; charset=utf-8")
        url = "http://" + request.headers.get("host", "127.0.0.1")
        return Response(
            200, ("\n".join(curl_lines(url)) + "\n").encode(), "text/plain; charset=utf-8"
        )

    def get_health(self, request: Request, body: Callable[[int], bytes]) -> Response:
        """200 as long as this program runs."""
        return json_response(200, {"status": "ok", "comfyui": self._connected})

    def get_status(self, request: Request, body: Callable[[int], bytes]) -> Response:
        """The state of all."""
        return json_response(200, self.status())

    def get_workflow(self, request: Request, body: Callable[[int], bytes]) -> Response:
        """The held workflow, with what can be set in it."""

        from comfyui_runner.extras.checks import form_fields  # only this route needs it

        info = self._learn(self._prompt)
        with self._lock:
            prompt, fields = self._prompt, form_fields(self._prompt, info, self._random)
            return json_response(
                200,
                {
                    "file": self._path,
                    "revision": self._revision,
                    "prompt": prompt,
                    "fields": fields,
                },
            )

    def put_workflow(self, request: Request, body: Callable[[int], bytes]) -> Response:
        """Another workflow."""

        from comfyui_runner.extras.checks import check_prompt  # only this route needs it

        document = parse_document(body(JSON_LIMIT), "The body")
        made = make_prompt(document, self._learn_all)
        prompt = made.prompt
        info = self._learn(prompt)
        problems = check_prompt(prompt, info)
        if problems:
            info = self._learn(prompt, {problem.node_id for problem in problems})
            problems = check_prompt(prompt, info)
        if problems:
            listed = [{**problem._asdict(), "hints": list(problem.hints)} for problem in problems]
            raise HttpError(
                400, "invalid_workflow", "The workflow cannot run here.", {"problems": listed}
            )
        checked = all(class_of(prompt, node_id) in info for node_id in prompt)
        with self._lock:
            self._loaded = Loaded(prompt, self._path, document.workflow, made)
            revision = self._hold(prompt, set())
        told = {
            "nodes": len(prompt),
            "revision": revision,
            "checked": checked,
            "warnings": list(made.warnings),
        }
        return json_response(200, told)

    def reset_workflow(self, request: Request, body: Callable[[int], bytes]) -> Response:
        """The workflow from its file, as it is there now."""
        loaded = self.options.reload()
        with self._lock:
            self._from_file, self._loaded = loaded.prompt, loaded
            revision = self._hold(loaded.prompt, set(loaded.drawn))
        return json_response(200, {"nodes": len(loaded.prompt), "revision": revision})

    def update_prompt(self, request: Request, body: Callable[[int], bytes]) -> Response:
        """A text."""
        fields = parse_fields(
            body(JSON_LIMIT), {"text": str}, {"node_id": str, "title": str, "type": str}
        )
        role, node = fields.get("type"), fields.get("node_id", fields.get("title"))
        if role not in (
            ("positive", "negative") if node is None else ("positive", "negative", None)
        ):
            raise HttpError(
                400,
                "missing_field",
                'Name the text: "node_id", "title", or "type": "positive" or "negative".',
            )
        ref = find_text(self._prompt, node, role)
        checked, revision = self._edit(ref.node_id, {ref.input: fields["text"]})
        changed = {"node_id": ref.node_id, "changed": {ref.input: fields["text"]}}
        return json_response(200, {**changed, "checked": checked, "revision": revision})

    def update_inputs(self, request: Request, body: Callable[[int], bytes]) -> Response:
        """Inputs of one node."""
        fields = parse_fields(body(JSON_LIMIT), {"inputs": dict}, {"node_id": str, "title": str})
        name = fields.get("node_id", fields.get("title"))
        if name is None:
            raise HttpError(400, "missing_field", 'Name the node: "node_id" or "title".')
        node_id = find_node(self._prompt, name)
        checked, revision = self._edit(node_id, fields["inputs"])
        return json_response(
            200,
            {
                "node_id": node_id,
                "changed": fields["inputs"],
                "checked": checked,
                "revision": revision,
            },
        )

    def upload_image(self, request: Request, body: Callable[[int], bytes]) -> Response:
        """A file for a loader: spooled first, so that a client that goes away leaves nothing behind."""

        self._ready()
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise HttpError(
                400, "not_multipart", "Send the file as multipart/form-data: curl -F image=@cat.png"
            )
        refs = self._loaders(request.query.get("node_id"))
        content_type = request.headers["content-type"]
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(tempfile.TemporaryFile())
            limit = int(as_number(self._features.get("max_upload_size"), 100 << 20))
            body(limit, file)  # type: ignore[call-arg]
            file.seek(0)
            try:
                answer = self.server.upload(file, content_type)
                if self.server.affinity:
                    stack.pop_all()  # the file is kept for the servers of the runs to come
            except ServerAnswer as error:
                if error.status not in (400, 403, 413, 500):  # 500: a form that ComfyUI cannot read
                    raise
                status = 413 if error.status == 413 else 400
                message = "ComfyUI does not take this upload (HTTP %d)." % error.status
                raise HttpError(status, "not_uploaded", message) from None
        value = uploaded_value(answer)
        name, folder, kind = (str(answer.get(key) or "") for key in ("name", "subfolder", "type"))
        self._learn(self._prompt, [ref.node_id for ref in refs])  # its list has grown
        with self._lock:
            if self.server.affinity:
                again = functools.partial(upload_form, file, content_type)
                weakref.finalize(again, file.close)
                self._files.update(dict.fromkeys(refs, (value, again)))
            revision = self._hold(
                with_values(self._prompt, dict.fromkeys(refs, value)), self._random
            )
        told = {
            "name": name,
            "subfolder": folder,
            "type": kind,
            "nodes": [ref.node_id for ref in refs],
            "revision": revision,
        }
        if self.options.auto_execute:
            started = json.loads(self._run_held().body)
            return json_response(202, {**told, **started})
        return json_response(200, told)

    def _upload_again(self, prompt: Prompt, server: Server) -> Dict[InputRef, str]:
        """What ``server`` calls the files that were uploaded for ``prompt``, after it has them too."""
        with self._lock:
            files = list(self._files.items())
        inputs = {
            ref: as_dict(as_dict(prompt.get(ref.node_id)).get("inputs")).get(ref.input)
            for ref, _ in files
        }
        with self._uploading:  # a file is read by one at a time; the loop must not wait for that
            return {ref: upload(server) for ref, (value, upload) in files if inputs[ref] == value}

    def _loaders(self, name: Optional[str]) -> List[InputRef]:
        return find_loaders(
            self._prompt, upload_inputs(self._prompt, self._learn(self._prompt)), name
        )

    def start_run(self, request: Request, body: Callable[[int], bytes]) -> Response:
        """A run of the held workflow."""
        if request.method == "POST":
            fields = parse_fields(body(JSON_LIMIT), {}, {})
            if "clear" in fields or "delete" in fields:
                raise HttpError(
                    400,
                    "not_supported",
                    "The queue is ComfyUI's: POST /interrupt stops a run of ours.",
                )
        return self._run_held()

    def post_prompt(self, request: Request, body: Callable[[int], bytes]) -> Response:
        """ComfyUI's POST /prompt, followed like any run."""
        fields = parse_fields(
            body(JSON_LIMIT), {}, {"prompt": dict, "prompt_id": str, "extra_data": dict}
        )
        prompt, along = (fields["prompt"], {}) if "prompt" in fields else self._held()
        extra = {
            **along,
            **{
                name: value for name, value in fields.items() if name not in ("prompt", "client_id")
            },
        }
        if along and "extra_data" in fields:
            extra["extra_data"] = {**along["extra_data"], **fields["extra_data"]}
        if not isinstance(fields.get("number", 0), (int, float)) or not isinstance(
            fields.get("partial_execution_targets", []), list
        ):  # ComfyUI answers these with a 500
            raise HttpError(
                400, "wrong_type", "number must be a number, partial_execution_targets a list."
            )
        if "prompt_id" in extra and not re.match(
            r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", extra["prompt_id"]
        ):
            raise HttpError(400, "invalid_prompt_id", "The prompt_id must be a UUID in lower case.")
        if extra.get("prompt_id") in self._records:
            raise HttpError(400, "invalid_prompt_id", "This prompt_id is taken.")
        if not all(
            isinstance(node, dict) and isinstance(node.get("inputs"), dict)
            for node in prompt.values()
        ):
            raise HttpError(400, "invalid_prompt", "Every node needs a class_type and inputs.")
        try:
            return json_response(200, self._start(prompt, extra)[1])
        except PromptRejected as error:
            return json_response(400, error.answer)

    def interrupt(self, request: Request, body: Callable[[int], bytes]) -> Response:
        """Stops the run that is named, else the one that runs, else the one that waits first."""
        wanted = parse_fields(body(JSON_LIMIT), {}, {"prompt_id": str}).get("prompt_id")
        ours = [record for record in list(self._records.values()) if not record.over.is_set()]
        ours.sort(key=lambda record: record.run.state.phase is not Phase.RUNNING)
        found = [record for record in ours if wanted in (None, record.run.prompt_id)]
        if not found:
            raise HttpError(
                409,
                "nothing_to_interrupt",
                "No run of ours %s." % ("has that prompt_id" if wanted else "waits or runs"),
            )
        record = found[0]
        self._in_loop(record.session.cancel(record.run), self.server.limits.cancel + 10.0)
        over = record.run.state.phase.over
        if over:
            record.over.wait(5.0)
        message = record.message if over else "requested"
        told = {
            "prompt_id": record.run.prompt_id,
            "phase": record.run.state.phase.value,
            "message": message,
        }
        return json_response(200 if over else 202, told)

    def get_runs(self, request: Request, body: Callable[[int], bytes]) -> Response:
        """The runs, newest first."""
        return json_response(
            200, {"runs": [record.to_json() for record in reversed(list(self._records.values()))]}
        )

    def get_run(self, request: Request, body: Callable[[int], bytes], prompt_id: str) -> Response:
        """One run."""
        record = self._records.get(prompt_id)
        if record is None:
            raise HttpError(
                404,
                "no_such_run",
                "No run of ours has this prompt_id (the last %d are kept)." % RUNS_KEPT,
            )
        wait = request.query.get("wait", "0")
        if not re.match(r"^\d{1,9}(\.\d{1,9})?$", wait):
            raise HttpError(400, "wrong_type", "wait must be a number of seconds.")
        record.over.wait(min(float(wait), 60.0))
        return json_response(200, record.to_json())

    def get_events(self, request: Request, body: Callable[[int], bytes]) -> Response:
        """All that happens, as it happens."""

        stream = Stream(request.query.get("prompt_id"))

        def write(connection: Any) -> None:
            with self._lock:
                runs = [
                    r.to_json()
                    for r in reversed(list(self._records.values()))
                    if stream.prompt_id in (None, r.run.prompt_id)
                ]
                stream.put(sse("state", {"status": self.status(), "runs": runs}))
                self._streams.append(stream)
            try:
                while not stream.dropped:
                    try:
                        data = stream.waiting.get(timeout=15.0)
                    except queue.Empty:
                        data = b": nothing new\n\n"
                    pieces = [data]
                    while not stream.waiting.empty() and len(pieces) < 500:
                        pieces.append(stream.waiting.get_nowait())
                    connection.write(b"".join(piece for piece in pieces if piece is not None))
                    if None in pieces:
                        return
            finally:
                with self._lock:
                    if stream in self._streams:
                        self._streams.remove(stream)

        return Response(200, type="text/event-stream", stream=write)

    def get_preview(self, request: Request, body: Callable[[int], bytes]) -> Response:
        """The newest preview picture, of one run or of any."""
        wanted = request.query.get("prompt_id")
        for record in reversed(list(self._records.values())):
            preview = record.run.preview
            if (
                preview is not None
                and wanted in (None, record.run.prompt_id)
                and INLINE_TYPES.match(preview.mime)
            ):
                return Response(200, preview.image, preview.mime)
        raise HttpError(
            404,
            "no_preview",
            "There is no preview (ComfyUI sends them with --preview-method auto).",
        )

    def get_view(self, request: Request, body: Callable[[int], bytes]) -> Response:
        """A file of ComfyUI's, streamed."""
        query = {
            name: request.query[name]
            for name in ("filename", "subfolder", "type", "preview", "channel")
            if name in request.query
        }
        sent = {
            name.title(): request.headers[name]
            for name in ("range", "if-range", "if-none-match")
            if name in request.headers
        }
        sent["Accept-Encoding"] = "identity"  # else the lengths would not fit
        if not re.match(r"^(?!/)(?!.*\.\.)[^\0]+$", query.get("filename", "")) or "\0" in query.get(
            "subfolder", ""
        ):
            raise HttpError(400, "wrong_filename", "filename must name a file.")
        path = "/view?" + urllib.parse.urlencode(query, errors="replace")
        record = self._records.get(request.query.get("prompt_id", ""))
        server = record.session.server if record else self.server
        try:
            response = server.open("GET", path, accept=(200, 206, 304), headers=sent)
        except ServerAnswer as error:
            if error.status in (400, 403, 404, 416):
                status = 400 if error.status == 403 else error.status
                raise HttpError(
                    status,
                    "not_viewable",
                    "ComfyUI does not give this file (HTTP %d)." % error.status,
                ) from None
            raise HttpError(503, "comfyui_unreachable", error.message) from None
        kind = response.headers.get("Content-Type", "application/octet-stream")
        opens = bool(INLINE_TYPES.match(kind)) and "download" not in request.query
        name = urllib.parse.quote(
            query["filename"].replace("\\", "/").rpartition("/")[2], errors="replace"
        )
        headers = [
            (k, response.headers[k])
            for k in ("Content-Length", "Content-Range", "Accept-Ranges", "ETag", "Last-Modified")
            if k in response.headers
        ]
        headers.append(
            (
                "Content-Disposition",
                "%s; filename*=UTF-8''%s" % ("inline" if opens else "attachment", name),
            )
        )

        if request.method == "HEAD":
            response.close()

        def write(connection: Any) -> None:
            try:
                for chunk in response.iter_content(1 << 16):
                    connection.write(chunk)
            finally:
                response.close()

        kind = kind if INLINE_TYPES.match(kind) else "application/octet-stream"
        return Response(response.status_code, type=kind, headers=tuple(headers), stream=write)

    def login(self, request: Request, body: Callable[[int], bytes]) -> Response:
        """The token for a cookie."""
        guard = self.options.guard
        if not guard.is_token(parse_fields(body(JSON_LIMIT), {"token": str}, {})["token"]):
            raise HttpError(403, "wrong_token", "This is not the token.")
        cookie = "%s=%s; HttpOnly; SameSite=Strict; Path=/; Max-Age=31536000" % (
            COOKIE,
            guard.cookie(),
        )
        return Response(204, headers=(("Set-Cookie", cookie),))

    def get_openapi(self, request: Request, body: Callable[[int], bytes]) -> Response:
        """The table of routes."""

        return Response(200, read_resource("openapi.json").encode())
