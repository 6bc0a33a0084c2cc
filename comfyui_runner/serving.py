"""What a step of continuous mode needs: load, find, listen, serve, stop."""

from __future__ import annotations

import asyncio
import urllib.parse
from typing import Any, Optional, Sequence

from comfyui_runner.console import Console
from comfyui_runner.edits import with_values
from comfyui_runner.errors import ServerError, ServerTooOld, ServerUnreachable, UsageError
from comfyui_runner.http_server import make_http_server
from comfyui_runner.loading import Loaded, load_document, prepare
from comfyui_runner.reports import Report
from comfyui_runner.resources import read_resource
from comfyui_runner.routes import curl_lines
from comfyui_runner.server import Server
from comfyui_runner.service import Service, ServiceOptions
from comfyui_runner.settings import Settings
from comfyui_runner.steps import ComfyUI, load_workflow, upload_files
from comfyui_runner.threads import end_tasks, in_thread

#: Seconds between two tries to load a workflow that needs a ComfyUI which is not there yet.
LOAD_INTERVAL = 5.0

#: Seconds for answers that have begun when the service ends.
FINISH_ANSWERS = 2.0


async def load_when_possible(settings: Settings, comfyui: ComfyUI, console: Console) -> Loaded:
    """load_workflow(); where that needs a ComfyUI that does not answer yet, it waits for it."""

    async def load() -> Loaded:
        while True:
            try:
                return await load_workflow(settings, comfyui, console)
            except (ServerUnreachable, ServerTooOld) as error:
                if settings.demo:
                    raise
                console.notice(f"{error.message} The workflow needs it to be read: waiting for it.")
                await asyncio.sleep(LOAD_INTERVAL)

    loaded = await console.unless_stopped(load())
    if not loaded.uploads:
        return loaded
    uploaded = await upload_files(loaded, await comfyui.find(), console)
    return loaded._replace(prompt=with_values(loaded.prompt, uploaded))


async def find_or_expect_servers(
    settings: Settings, comfyui: ComfyUI, console: Console
) -> Sequence[Server]:
    """The server that answers, or all where one may come up later."""
    try:
        return [await comfyui.find()]
    except ServerError as error:
        if settings.demo:
            raise
        console.notice(f"{error.message} Listening all the same; runs are taken when it is there.")
        return [Server(address, settings.limits) for address in settings.servers]


def make_service(
    servers: Sequence[Server],
    loaded: Loaded,
    settings: Settings,
    comfyui: ComfyUI,
    console: Console,
) -> Service:
    """The service that holds ``loaded``."""
    uploaded = {
        ref: loaded.prompt[ref.node_id]["inputs"].get(ref.input) for ref, _ in loaded.uploads
    }

    def reload() -> Loaded:
        if settings.workflow == "-":
            return loaded
        comfyui.server = service.server  # the one that answers, which may have come later
        document, path = load_document(settings, console.stdin)
        again = prepare(document, path, settings, comfyui.definitions())
        return again._replace(prompt=with_values(again.prompt, uploaded))

    def report(prompt_id: Optional[str], report: Report) -> None:
        prefix = f"[{prompt_id[:8]}] " if prompt_id else ""
        console.report_as(prefix, {"prompt_id": prompt_id, **report})

    options = ServiceOptions(
        reload,
        guard=settings.guard,
        auto_execute=settings.auto_execute,
        max_queue=settings.max_queue,
        output=settings.output,
        overwrite=settings.overwrite,
        timeout=settings.timeout,
    )
    service = Service(servers, loaded, options, report)
    service.page = read_resource("console.html").encode()
    return service


def listen(
    service: Service, servers: Sequence[Server], settings: Settings, console: Console
) -> Any:
    """The listening http.server of ``service``. Raises UsageError if the port is taken, or is ComfyUI's own."""
    try:
        listener = make_http_server(service, settings.host, settings.port)
    except OSError as error:
        raise UsageError(
            f"Port {settings.port} on {settings.host} cannot be listened on: {error.strerror or error}.",
            "Something else may be there (comfy-api-proxy uses 8189 too): choose another with --port.",
        ) from None
    port = listener.server_address[1]
    addresses = [server.address for server in servers]
    if any(
        address.local and urllib.parse.urlsplit(address.url).port == port for address in addresses
    ):
        listener.server_close()
        raise UsageError(
            f"--server is this service itself (port {port}).",
            "Name ComfyUI's own address, or another --port.",
        )
    url = url_of_service(settings.host, port)
    console.report(
        None, {"event": "listening", "prompt_id": None, "url": url, "routes": curl_lines(url)}
    )
    listener.start()
    return listener


def url_of_service(host: str, port: int) -> str:
    """Where a browser on this machine finds the service that listens on ``host``."""
    if host in ("0.0.0.0", "::"):  # all addresses
        host = "127.0.0.1"
    if ":" in host:
        host = f"[{host}]"
    return f"http://{host}:{port}"


async def serve(service: Service, console: Console) -> None:
    """Serves until Ctrl+C or SIGTERM."""
    console.interrupts.farewell = "Left at once: runs of ours may still run on the server."
    following = asyncio.ensure_future(service.follow())
    try:
        await console.first_of(following)
        if following.done():
            following.result()  # it never ends but by a fault of ours
        message = f"{console.interrupts.name}: stopping."
        console.report(None, {"event": "notice", "prompt_id": None, "message": message})
    finally:
        await end_tasks([following])


async def stop_serving(service: Service, listener: Any) -> None:
    """Takes no more requests, cancels our runs and no others, and lets answers that have begun end."""
    await in_thread(listener.shutdown)
    listener.server_close()
    await service.stop()
    await in_thread(listener.finish, FINISH_ANSWERS)
