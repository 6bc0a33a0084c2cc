"""What a step of continuous mode needs: load, find, listen, serve, stop."""

from __future__ import annotations

import asyncio
import errno
from typing import Optional, Sequence

from comfyui_runner.afterwards import make_afterwards
from comfyui_runner.comfyui import ComfyUI, definitions_on
from comfyui_runner.console import Console
from comfyui_runner.edits import with_values
from comfyui_runner.errors import ServerError, ServerTooOld, ServerUnreachable, UsageError
from comfyui_runner.http_server import HttpListener
from comfyui_runner.loading import Loaded, load_document, prepare_workflow
from comfyui_runner.reports import Report
from comfyui_runner.resources import read_resource
from comfyui_runner.routes import curl_lines
from comfyui_runner.server import Server
from comfyui_runner.service import Service, ServiceOptions
from comfyui_runner.service_routes import ServiceRoutes
from comfyui_runner.settings import Settings
from comfyui_runner.steps import load_workflow, upload_files
from comfyui_runner.threads import end_tasks, in_thread

#: Seconds between two tries to load a workflow that needs a ComfyUI which does not answer yet.
LOAD_INTERVAL = 5.0

#: Seconds for answers that have begun when the service ends.
FINISH_ANSWERS = 2.0

#: Windows' error for a port that is in use (WSAEADDRINUSE).
WINDOWS_PORT_IN_USE = 10048

#: Windows' error for a port that it has reserved, or that another program has for itself
#: (WSAEACCES).
WINDOWS_PORT_IS_FORBIDDEN = 10013


async def load_when_possible(settings: Settings, comfyui: ComfyUI, console: Console) -> Loaded:
    """load_workflow(); where it needs ComfyUI, it waits until one answers. Files are uploaded."""

    async def load() -> Loaded:
        last_reason = ""
        while True:
            try:
                return await load_workflow(settings, comfyui, console)
            except (ServerUnreachable, ServerTooOld) as error:
                if settings.demo:
                    raise
                reason = error.message
            if reason != last_reason:  # it may take hours
                console.notice(f"{reason} Waiting for it: it is needed to read the workflow.")
            last_reason = reason
            await asyncio.sleep(LOAD_INTERVAL)

    loaded = await console.unless_stopped(load())
    if not loaded.uploads:
        return loaded
    uploaded = await upload_files(loaded, await comfyui.find(), console)
    return loaded._replace(prompt=with_values(loaded.prompt, uploaded))


async def find_or_expect_servers(
    settings: Settings, comfyui: ComfyUI, console: Console
) -> Sequence[Server]:
    """The server that answers, or every server that may answer later."""
    try:
        return [await comfyui.find()]
    except ServerTooOld:
        pass  # the service says so itself, with its first check
    except ServerError as error:
        if settings.demo:
            raise
        console.notice(f"{error.message} Listening anyway: runs can start when ComfyUI answers.")
    servers = settings.servers
    return [Server(address, settings.limits, console.secrets) for address in servers]


def make_service(
    servers: Sequence[Server],
    loaded: Loaded,
    settings: Settings,
    console: Console,
) -> Service:
    """The service that holds ``loaded``."""
    uploaded = {
        ref: loaded.prompt[ref.node_id]["inputs"].get(ref.input) for ref, _ in loaded.uploads
    }

    def reload() -> Loaded:
        if settings.workflow == "-":  # standard input can be read once only
            return loaded
        document, path = load_document(settings, console.stdin)
        again = prepare_workflow(document, path, settings, definitions_on(service.backend.server))
        return again._replace(prompt=with_values(again.prompt, uploaded))

    def report(prompt_id: Optional[str], report: Report) -> None:
        prefix = f"[{prompt_id[:8]}] " if prompt_id else ""
        console.report(None, {"prompt_id": prompt_id, **report}, prefix)

    options = ServiceOptions(
        reload,
        console.secrets,
        guard=settings.guard,
        auto_execute=settings.auto_execute,
        max_queue=settings.max_queue,
        output=settings.output,
        overwrite=settings.overwrite,
        timeout=settings.timeout,
        public_url=settings.public_url,
        afterwards=make_afterwards(settings, console),
    )
    service = Service(servers, loaded, options, report)
    return service


def listen(
    service: Service, servers: Sequence[Server], settings: Settings, console: Console
) -> HttpListener:
    """Listen for requests, and show where.

    Raises UsageError if the port cannot be used, or if ``servers`` lead to it.
    """
    routes = ServiceRoutes(service, page=read_resource("console.html").encode())
    try:
        listener = HttpListener(routes, settings.host, settings.port)
    except OSError as error:
        raise cannot_listen(error, settings.host, settings.port) from None

    port = listener.server_port
    try:
        refuse_own_address(servers, port)
    except UsageError:
        listener.server_close()
        raise
    url = url_of_service(settings.host, port)
    report = {"event": "listening", "prompt_id": None, "url": url, "routes": curl_lines(url)}
    console.report(None, report)
    listener.start()
    return listener


def cannot_listen(error: OSError, host: str, port: int) -> UsageError:
    """The error for a person: ``error`` came of listening at ``host`` and ``port``."""
    windows_error = getattr(error, "winerror", None)
    is_in_use = error.errno == errno.EADDRINUSE or windows_error == WINDOWS_PORT_IN_USE
    if is_in_use:
        return UsageError(
            f"Port {port} is already in use.", f"Choose another one: --port {port + 1}"
        )
    reason = str(error.strerror or error).rstrip(".")  # Windows ends its reasons with one
    remedy = "Check --host and --port."
    if windows_error == WINDOWS_PORT_IS_FORBIDDEN:
        remedy = (
            "Another program has the port for itself, or Windows has reserved it "
            "(netsh interface ipv4 show excludedportrange protocol=tcp lists what is reserved). "
            f"Choose another one: --port {port + 1}"
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


async def serve(service: Service, console: Console) -> None:
    """Serve until Ctrl+C or SIGTERM."""
    console.interrupts.farewell = "Left at once: runs of ours may still be running on the server."
    following = asyncio.ensure_future(service.follow())
    try:
        await console.done_or_stopped(following)
        if following.done():
            following.result()  # it ends only by a fault of ours, which is raised here
        message = f"{console.interrupts.name}: stopping."
        console.report(None, {"event": "notice", "prompt_id": None, "message": message})
    finally:
        await end_tasks([following])


async def stop_serving(service: Service, listener: HttpListener) -> None:
    """Take no more requests, cancel our runs and no others, and let answers that have begun end."""
    await in_thread(listener.shutdown)
    listener.server_close()
    await service.stop()
    await in_thread(listener.wait_for_answers, FINISH_ANSWERS)
