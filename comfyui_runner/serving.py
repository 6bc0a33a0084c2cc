"""What a step of continuous mode needs: load, find, listen, serve, stop."""

from __future__ import annotations

import asyncio
import datetime
import errno
import http.client
import os
import socket
import urllib.parse
from contextlib import suppress
from typing import Callable, NamedTuple, Optional, Sequence, Tuple

from comfyui_runner.afterwards import make_afterwards
from comfyui_runner.comfyui import ComfyUI, definitions_on
from comfyui_runner.console import Console
from comfyui_runner.edits import example_of_edit, with_values
from comfyui_runner.errors import ServerError, ServerTooOld, ServerUnreachable, UsageError
from comfyui_runner.http_server import NAME_IN_ANSWERS, HttpListener
from comfyui_runner.loading import Loaded, prepare_workflow, read_document
from comfyui_runner.nodes import value_of
from comfyui_runner.page import read_page
from comfyui_runner.reports import Report, plain_notice
from comfyui_runner.routes import curl_lines
from comfyui_runner.server import Server
from comfyui_runner.service import Service, ServiceOptions
from comfyui_runner.service_routes import ServiceRoutes
from comfyui_runner.settings import Settings
from comfyui_runner.state_file import (
    ForeignFile,
    StateFile,
    StateFileError,
    open_state_file,
    set_aside,
)
from comfyui_runner.state_keeper import Restored, StateKeeper, read_state
from comfyui_runner.steps import prepare_document, read_workflow_file, upload_files
from comfyui_runner.stored_state import choose_state_path
from comfyui_runner.text import plural
from comfyui_runner.threads import end_tasks, in_thread
from comfyui_runner.windows_files import reason_not_written

#: Seconds between two tries to load a workflow that needs a ComfyUI which does not answer yet.
LOAD_INTERVAL = 5.0

#: Seconds for answers that have begun when the service ends.
FINISH_ANSWERS = 2.0

#: Seconds for another copy of this program to answer at a port that is taken.
COPY_ANSWERS = 2.0

#: The highest port that there is.
LAST_PORT = 65535

#: Windows' error for a port that is in use (WSAEADDRINUSE).
WINDOWS_PORT_IN_USE = 10048

#: Windows' error for a port that it has reserved, or that another program has for itself
#: (WSAEACCES).
WINDOWS_PORT_IS_FORBIDDEN = 10013


async def choose_workflows(settings: Settings, console: Console) -> Settings:
    """``settings`` with the files of all workflows that the service can hold; the first is loaded.

    Raises WorkflowError, UsageError, Stopped.
    """
    is_folder = await console.unless_stopped(in_thread(os.path.isdir, settings.workflow))
    if not (settings.may_be_several or is_folder):
        return settings
    from comfyui_runner.extras.several_workflows import find_workflows  # one workflow is usual

    words = settings.workflows or (settings.workflow,)
    paths = await console.unless_stopped(in_thread(find_workflows, words))
    return settings._replace(
        workflow=paths[0],
        workflows=tuple(paths),
        folder=settings.workflow if is_folder else "",
    )


async def load_when_possible(settings: Settings, comfyui: ComfyUI, console: Console) -> Loaded:
    """load_workflow(); where it needs ComfyUI, it waits until one answers. Files are uploaded."""
    document, path = await read_workflow_file(settings, console)

    async def prepare() -> Loaded:
        last_reason = ""
        while True:
            try:
                return await prepare_document(document, path, settings, comfyui, console)
            except (ServerUnreachable, ServerTooOld) as error:
                if settings.demo:
                    raise
                reason = error.message
            if reason != last_reason:  # it may take hours
                console.notice(f"{reason} Waiting for it: it is needed to read the workflow.")
            last_reason = reason
            await asyncio.sleep(LOAD_INTERVAL)

    loaded = await console.unless_stopped(prepare())
    if not loaded.uploads:
        return loaded
    uploaded = await upload_files(loaded, await comfyui.find(), console)
    return loaded._replace(prompt=with_values(loaded.prompt, uploaded))


class ExpectedServers(NamedTuple):
    """Where ComfyUI is, or may be later."""

    servers: Sequence[Server]
    is_shown: bool = False  # it answers, and people have been shown which one it is


async def find_or_expect_servers(
    settings: Settings, comfyui: ComfyUI, console: Console
) -> ExpectedServers:
    """The server that answers, or every server that may answer later."""
    try:
        return ExpectedServers([await comfyui.find()], is_shown=True)
    except ServerTooOld:
        pass  # the service says so itself, with its first check
    except ServerError as error:
        if settings.demo:
            raise
        console.notice(f"{error.message} Listening anyway: runs can start when ComfyUI answers.")
    return ExpectedServers(
        [Server(address, settings.limits, console.secrets) for address in settings.servers]
    )


class State(NamedTuple):
    """What keeps the runs and the held workflow, and what it has kept of them.

    ``async with`` closes its file, also where the service does not start.
    """

    keeper: StateKeeper
    restored: Restored

    async def __aenter__(self) -> "State":
        return self

    async def __aexit__(self, *error: object) -> None:
        await in_thread(self.keeper.close)  # again, after a service that has stopped


async def open_state(settings: Settings, loaded: Loaded, console: Console) -> State:
    """What keeps the state of the service that holds ``loaded``.

    A file that cannot be used is no reason not to serve: a notice says why runs are kept in memory
    only. Raises UsageError where the file that --state names is in use, or another program's.
    """
    loop = asyncio.get_running_loop()

    def notify(message: str) -> None:
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(console.notice, message)

    file, restored = None, Restored()
    # The first file of a folder may be another one tomorrow.
    named_after = name_in_folder(settings.folder) or loaded.path
    path = choose_state_path(settings.state, named_after, settings.demo)
    if path is not None:
        try:
            file, restored = await in_thread(open_or_replace, path, notify)
        except StateFileError as error:
            reason = explain_state_error(error, path, is_named=settings.state is not None)
            notify(reason)
    if file is not None and settings.verbose:
        console.note(f"Runs and edits are kept in {path} (--state none: in memory only).")
    keeper = StateKeeper(file, settings.keep_runs, console.secrets, notify)
    return State(keeper, restored)


def name_in_folder(folder: str) -> str:
    """A name for what belongs to all of ``folder``: ``flows/flows`` for ``flows``; "" for none."""
    if not folder:
        return ""
    return os.path.join(folder, os.path.basename(os.path.abspath(folder)))


def open_or_replace(path: str, notify: Callable[[str], None]) -> Tuple[StateFile, Restored]:
    """The state file at ``path``, and what is in it; a damaged one is replaced. Blocks.

    Raises StateFileError.
    """
    try:
        return open_and_read(path)
    except StateFileError as error:
        if not error.damaged:
            raise
        new_path = set_damaged_aside(path, error)
        notify(
            f"The state file {path} cannot be used: {error.reason}. It was renamed to {new_path}, "
            "and a new one was started."
        )
        return open_and_read(path)


def set_damaged_aside(path: str, damage: StateFileError) -> str:
    """Renames the state file at ``path``: its new path. Blocks.

    Raises StateFileError where the system refuses that.
    """
    try:
        return set_aside(path, datetime.datetime.now())
    except OSError as error:
        reason = reason_not_written(error)
        raise StateFileError(f"{damage.reason}, and it cannot be renamed: {reason}") from None


def open_and_read(path: str) -> Tuple[StateFile, Restored]:
    """The state file at ``path``, and what is in it. Blocks. Raises StateFileError."""
    file = open_state_file(path)
    try:
        return file, read_state(file)
    except BaseException:
        file.close()
        raise


def explain_state_error(error: StateFileError, path: str, is_named: bool) -> str:
    """Why the service that starts keeps its runs in memory. ``is_named``: by --state.

    Raises UsageError where somebody has named a file that is another one's: what they want to be
    kept would not be.
    """
    remedy = "Name another file: --state FILE. Or keep runs in memory: --state none."
    if error.in_use and is_named:
        raise UsageError(f"Another service has the state file {path} open.", remedy)
    if isinstance(error, ForeignFile) and is_named:
        raise UsageError(f"{path} cannot be the state file: {error.reason}.", remedy)
    if error.in_use:
        return (
            f"Another service has the state file {path} open: this one keeps its runs and edits "
            "in memory only. To give it a file of its own: --state FILE."
        )
    return (
        f"The state file {path} cannot be used: {error.reason}. Runs and edits are kept in memory "
        "only."
    )


def restore_workflow(service: Service, restored: Restored, console: Console) -> None:
    """Have ``service`` hold what the last process did, unless its file has changed since."""
    stored = restored.held
    if stored is None:
        return
    is_different = stored.is_edited or stored.client is not None
    if service.workflows.remember(stored):
        if is_different:
            console.note(
                f"{stored.name} is kept as it was when the last service ended, with its edits: "
                "choose it to continue with them."
            )
        return
    is_restored = service.held.restore(stored)
    if not is_restored:  # else the next start would compare with the file of that time again
        service.keeper.hold(service.held.as_stored())
    if is_restored and is_different:
        console.note(
            "It has the edits of the last service; POST /workflow/reset reads the file again."
        )
    elif is_different:
        console.notice(
            f"{service.held.path} has changed since the last service ended (or what the command "
            "line sets in it): it is held as it is now, without its earlier edits."
        )


def make_service(
    expected: ExpectedServers,
    loaded: Loaded,
    state: State,
    settings: Settings,
    console: Console,
) -> Service:
    """The service that holds ``loaded``, or what ``state`` has of it."""
    #: The names of uploaded files on the server, by the paths of the workflow and of the file.
    uploaded = {(loaded.path, file): value_of(loaded.prompt, ref) for ref, file in loaded.uploads}

    def load(path: str) -> Loaded:
        if path == "-":  # standard input can be read once only
            return loaded
        server = service.backend.server
        document = read_document(path)
        again = prepare_workflow(document, path, settings, definitions_on(server))
        values = {}
        for ref, file in again.uploads:  # another file may have taken the place of the workflow's
            if (path, file) not in uploaded:
                uploaded[path, file] = server.upload_file(file)
            values[ref] = uploaded[path, file]
        return again._replace(prompt=with_values(again.prompt, values))

    def report(prompt_id: Optional[str], report: Report) -> None:
        prefix = f"[{prompt_id[:8]}] " if prompt_id else ""
        console.report(None, {"prompt_id": prompt_id, **report}, prefix)

    options = ServiceOptions(
        load,
        console.secrets,
        guard=settings.guard,
        auto_execute=settings.auto_execute,
        max_queue=settings.max_queue,
        output=settings.output,
        overwrite=settings.overwrite,
        timeout=settings.timeout,
        public_url=settings.public_url,
        api_key=settings.api_key,
        allow_spend=settings.allow_spend,
        afterwards=make_afterwards(settings, console),
        comfyui_is_shown=expected.is_shown,
    )
    service = Service(
        expected.servers,
        loaded,
        options=options,
        report=report,
        keeper=state.keeper,
        restored=state.restored,
        paths=settings.workflows,
    )
    restore_workflow(service, state.restored, console)
    if state.restored.runs:
        count = plural(len(state.restored.runs), "run")
        console.note(f"{count} of the last service had not ended: asking ComfyUI about them.")
    return service


def listen(
    service: Service, expected: ExpectedServers, settings: Settings, console: Console
) -> HttpListener:
    """Listen for requests, and show where.

    Raises UsageError if the port cannot be used, or if one of those ``expected`` leads to it.
    """
    routes = ServiceRoutes(service, page=read_page())
    try:
        listener = HttpListener(routes, settings.host, settings.port)
    except OSError as error:
        url = url_of_service(settings.host, settings.port)
        is_ours = is_port_in_use(error) and is_copy_of_ours(url)
        raise cannot_listen(error, settings.host, settings.port, is_ours) from None

    port = listener.server_port
    try:
        refuse_own_address(expected.servers, port)
    except UsageError:
        listener.server_close()
        raise
    url = url_of_service(settings.host, port)
    lan_url = url_in_network(settings.host, port)
    service.network_url = settings.public_url or lan_url
    report: Report = {
        "event": "listening",
        "prompt_id": None,
        "url": url,
        "lan_url": lan_url,
        "routes": curl_lines(url, example_of_edit(service.held.now.prompt)),
    }
    if settings.verbose:
        for route in report["routes"]:
            console.say(f"  {route}")
    console.report(None, report)
    listener.start()
    return listener


def is_port_in_use(error: OSError) -> bool:
    """Whether ``error`` came of listening at a port that is taken."""
    windows_error = getattr(error, "winerror", None)
    return error.errno == errno.EADDRINUSE or windows_error == WINDOWS_PORT_IN_USE


def is_copy_of_ours(url: str) -> bool:
    """Whether this program answers at ``url``: its answers name it."""
    address = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(
        address.hostname or "", address.port, timeout=COPY_ANSWERS
    )
    try:
        connection.request("GET", "/health")
        return connection.getresponse().getheader("Server", "").startswith(NAME_IN_ANSWERS)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def cannot_listen(error: OSError, host: str, port: int, is_ours: bool = False) -> UsageError:
    """The error for a person: ``error`` came of listening at ``host`` and ``port``.

    ``is_ours``: another copy of this program listens there.
    """
    other_port = port + 1
    if port == LAST_PORT:
        other_port = port - 1
    another = f"Choose another one: --port {other_port}"
    if is_ours:
        url = url_of_service(host, port)
        return UsageError(
            f"Port {port} is already in use by another copy of this program.",
            f"Open {url} in a browser, or choose another port for this one: --port {other_port}",
        )
    if is_port_in_use(error):
        return UsageError(f"Port {port} is already in use.", another)
    windows_error = getattr(error, "winerror", None)
    reason = str(error.strerror or error).rstrip(".")  # Windows ends its reasons with one
    remedy = "Check --host and --port."
    if windows_error == WINDOWS_PORT_IS_FORBIDDEN:
        remedy = (
            "Another program has the port for itself, or Windows has reserved it "
            "(netsh interface ipv4 show excludedportrange protocol=tcp lists what is reserved). "
            + another
        )
    return UsageError(f"The service cannot listen on {host}, port {port}: {reason}.", remedy)


def refuse_own_address(servers: Sequence[Server], port: int) -> None:
    """Raises UsageError if one of ``servers`` is what listens at ``port`` of this machine."""
    for server in servers:
        if server.address.local and server.address.port == port:
            raise UsageError(
                f"--server is the address of this service itself (port {port}).",
                "Give the address of ComfyUI, or choose another --port.",
            )


def url_of_service(host: str, port: int) -> str:
    """Where a browser on this machine finds the service that listens on ``host``."""
    if host in ("0.0.0.0", "::"):  # all addresses
        host = "127.0.0.1"
    if ":" in host:
        host = f"[{host}]"
    return f"http://{host}:{port}"


def url_in_network(host: str, port: int) -> Optional[str]:
    """Where other machines of the network, such as a phone, find the service; None for nowhere."""
    if host in ("0.0.0.0", "::"):  # all addresses
        own = address_in_network()
        return url_of_service(own, port) if own is not None else None
    if host == "localhost" or host == "::1" or host.startswith("127."):
        return None
    return url_of_service(host, port)


def address_in_network() -> Optional[str]:
    """The address by which this machine leaves it; None without a network. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # of documentation (RFC 5737): nobody has it
            own = str(probe.getsockname()[0])
        except OSError:
            return None
    return None if own.startswith("127.") else own


async def serve(service: Service, console: Console) -> None:
    """Serve until Ctrl+C or SIGTERM."""
    console.interrupts.farewell = "Exited at once: our runs may still be running on the server."
    following = asyncio.ensure_future(service.follow())
    try:
        await console.done_or_stopped(following)
        if following.done():
            following.result()  # it ends only by a fault of ours, which is raised here
        message = f"{console.interrupts.name}: stopping."
        console.report(None, {**plain_notice(message), "prompt_id": None})
    finally:
        await end_tasks([following])


async def stop_serving(service: Service, listener: HttpListener) -> None:
    """Take no more requests, cancel our runs and no others, and let answers that have begun end."""
    await in_thread(listener.shutdown)
    listener.server_close()
    await service.stop()
    await in_thread(listener.wait_for_answers, FINISH_ANSWERS)
