"""The HTTP interface: requests, routes and answers, and the listener."""

from __future__ import annotations

import base64
import http.client
import http.server
import json
import os
import re
import socket
import socketserver
import sys
import time
import traceback
import urllib.parse
import uuid
from typing import Any

from comfyui_runner.simulator.forms import Body, Cut, TooLarge, Upload, digest_of, discard, read_form
from comfyui_runner.simulator.installation import FOLDERS, MIME, MODELS, Installation, annotation, basename, inside
from comfyui_runner.simulator.jobs import JOB_STATES, all_jobs
from comfyui_runner.simulator.life import Life
from comfyui_runner.simulator.nodes import NODES
from comfyui_runner.simulator.pictures import draw, measure
from comfyui_runner.simulator.prompts import Job, Json, is_job_id
from comfyui_runner.simulator.replies import TROUBLE, Reply, as_json, as_text
from comfyui_runner.simulator.running import work
from comfyui_runner.simulator.sockets import Socket, abort
from comfyui_runner.simulator.validation import Validation, problem


class Handler(http.server.BaseHTTPRequestHandler):
    """Reads requests, routes them and writes the answers."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version = "ComfyUI-simulator"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing by default, unlike the base class."""
        self.server.sim.log(format % args)

    def do_GET(self) -> None:
        """Answer one request, of whatever method."""
        self.sim, self.life = self.server.sim, self.server.life
        try:
            self.body = Body(self, self.sim.max_upload_size)
            try:
                reply = self.answer()
                self.body.drop()
            except TooLarge:
                self.body.drop()
                message = "Maximum request body size {} exceeded, actual body size {}"
                message = message.format(self.sim.max_upload_size, self.body.seen)
                reply = as_text(message, 413)
            except (Cut, OSError, Exception) as exc:
                if isinstance(exc, (Cut, ConnectionError)):
                    raise
                self.sim.log(traceback.format_exc())
                self.body.drop()
                reply = TROUBLE
            if reply.status != 101:
                self.reply(reply)
        except Exception:  # also a client that is gone
            self.close_connection = True
            abort(self.connection)

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_GET

    def answer(self) -> Reply:
        """Find the answer to a request."""
        url = urllib.parse.urlsplit(self.path)
        path, base = urllib.parse.unquote(url.path), self.sim.base_path
        if not path.startswith(base + "/"):
            return Reply(404, kind="application/octet-stream")
        path = path[len(base) :]
        self.sim.asked.append((self.command, path))
        self.sim.received.append((self.command, self.path, dict(self.headers)))
        self.query = {key: values[0] for key, values in urllib.parse.parse_qs(url.query, True).items()}
        bare = path[4:] if path.startswith("/api/") and self.sim.has("released") else path
        self.misbehave(bare)
        if not self.authorized():
            challenge = (("WWW-Authenticate", 'Bearer realm="ComfyUI simulator"'),)
            return as_text("401: Unauthorized", 401)._replace(headers=challenge)
        if self.foreign():
            return Reply(403)
        fixed = self.find(self.sim.faults.http_status, bare)
        if fixed:
            return as_text(f"{fixed}: simulated", fixed)
        method, allowed = "GET" if self.command == "HEAD" else self.command, False
        for each in (path, bare):
            for wanted, pattern, name in ROUTES:
                match = re.fullmatch(pattern, each)
                if match and (not name.startswith("job") or self.sim.has("jobs")):
                    allowed = True
                    if wanted == method:
                        reply: Reply = getattr(self, "on_" + name)(*match.groups())
                        return reply
        if allowed:
            return as_text("405: Method Not Allowed", 405)
        return Reply(404, kind="application/octet-stream")

    def find(self, faults: dict[str, Any], path: str) -> Any:
        """The fault for a path or for its first part."""
        return faults.get(path, faults.get("/" + path.split("/")[1]))

    def misbehave(self, path: str) -> None:
        """Hang or cut, if a fault says so."""
        faults = self.sim.faults
        with self.life.lock:
            for key in (path, "/" + path.split("/")[1]):
                if faults.cut_http.get(key, 0) > 0:
                    faults.cut_http[key] -= 1
                    raise Cut()
        self.life.dead.wait(self.find(faults.http_hang, path) or 0)
        if self.life.dead.is_set():
            raise Cut()

    def authorized(self) -> bool:
        """Whether the token is right, as Bearer or as the password of Basic."""
        if self.sim.token is None:
            return True
        scheme, _, value = self.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "basic":
            value = base64.b64decode(value).decode("utf-8", "replace").partition(":")[2]
        return scheme.lower() in ("basic", "bearer") and value.strip() == self.sim.token

    def foreign(self) -> bool:
        """Whether a page of another origin asks a server on a loopback address."""
        if self.sim.has("jobs") and self.headers.get("Sec-Fetch-Site") == "cross-site":
            return True
        host, origin = self.headers.get("Host"), self.headers.get("Origin")
        if not host or not origin:
            return False
        ours, theirs = urllib.parse.urlsplit("//" + host), urllib.parse.urlsplit(origin)
        local = ours.hostname in ("localhost", "::1") or str(ours.hostname).startswith("127.")
        same = (ours.hostname, ours.port) == (theirs.hostname, theirs.port)
        return local and not same

    def reply(self, reply: Reply) -> None:
        """Write an answer; headers and body in one piece, since two cost 40 ms."""
        with open(reply.path or os.devnull, "rb") as file:
            status, headers = reply.status, list(reply.headers)
            start, length = 0, len(reply.body)
            if reply.path:
                size = length = os.fstat(file.fileno()).st_size
                headers.append(("Accept-Ranges", "bytes"))
                wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
                if wanted and wanted[0] != "bytes=-":
                    first, last = wanted.groups()
                    start = int(first) if first else max(0, size - int(last))
                    end = min(size, int(last) + 1) if first and last else size
                    status, length, part = 206, end - start, f"{start}-{end - 1}"
                    if length <= 0:
                        status, length, part = 416, 0, "*"
                    headers.append(("Content-Range", f"bytes {part}/{size}"))
            if reply.kind:
                headers.append(("Content-Type", reply.kind))
            if self.close_connection:
                headers.append(("Connection", "close"))
            headers += [("Content-Length", str(length)), ("Date", self.date_time_string())]
            lines = [f"HTTP/1.1 {status} {http.client.responses.get(status, 'Simulated')}"]
            lines += [re.sub(r"[\r\n]", " ", "{}: {}".format(*header)) for header in headers]
            data = "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n"
            if self.command == "HEAD":
                length = 0
            elif not reply.path:
                data, length = data + reply.body, 0
            file.seek(start)
            piece = file.read(min(length, 65536))
            data += piece
            while data:
                self.connection.sendall(data)
                length -= len(piece)
                data = piece = file.read(min(length, 65536))

    # Routes.

    def on_ws(self) -> Reply:
        """Turn into a WebSocket until it is closed."""
        if "websocket" not in self.headers.get("Upgrade", "").lower():
            text = 'No WebSocket UPGRADE hdr: None\n Can "Upgrade" only to "WebSocket".'
            return as_text(text, 400)
        Socket(self, self.life, self.query.get("clientId") or uuid.uuid4().hex).serve()
        self.close_connection = True
        return Reply(101)

    def on_get_prompt(self) -> Reply:
        """The length of the queue."""
        return as_json(self.life.status())

    def on_prompt(self) -> Reply:
        """Accept a prompt, or tell what is wrong with it."""
        data, faults, life = json.loads(self.body.all()), self.sim.faults, self.life
        with life.lock:
            fault = faults.lose_post.pop(0) if faults.lose_post else "ok"
        kind, _, seconds = fault.partition(":")
        if kind.isdigit():
            return as_text(f"{kind}: simulated", int(kind))
        if kind == "late":
            life.later(float(seconds), self.accept, data)
        if kind in ("before", "late"):
            raise Cut()
        reply = self.accept(data)
        if kind == "after":
            raise Cut()
        return reply

    def accept(self, data: Json) -> Reply:
        """Validate a prompt and queue it."""
        life, sim = self.life, self.sim
        with life.lock:
            if "number" in data:
                number = float(data["number"])
            else:
                number = -life.number if data.get("front") else life.number
                life.number += 1
        if "prompt" not in data:
            text = "No prompt provided"
            return as_json({"error": problem("no_prompt", text, text), "node_errors": {}}, 400)
        prompt_id = str(uuid.uuid4())
        if sim.has("jobs"):
            given = data.get("prompt_id")
            if given is not None and not is_job_id(given):
                details = "prompt_id must be a UUID string in canonical lowercase hyphenated form;"
                details += " omit it to let the server generate one"
                error = problem("invalid_prompt_id", "prompt_id must be a valid UUID", details)
                return as_json({"error": error, "node_errors": {}}, 400)
            prompt_id = given or prompt_id
        elif sim.has("progress_state"):
            prompt_id = str(data.get("prompt_id", prompt_id))
        prompt = data["prompt"]
        targets = data.get("partial_execution_targets") if sim.has("partial_execution") else None
        checked = Validation(sim, prompt, targets)
        if checked.error:
            return as_json({"error": checked.error, "node_errors": checked.node_errors}, 400)
        extra_data = dict(data.get("extra_data") or {})
        if "client_id" in data:
            extra_data["client_id"] = data["client_id"]
        if sim.has("jobs"):
            extra_data = {key: extra_data[key] for key in extra_data if key not in SECRETS}
            extra_data["create_time"] = int(time.time() * 1000)
        life.put(Job(number, prompt_id, prompt, extra_data, checked.good))
        known = {"prompt_id": prompt_id, "number": number, "node_errors": checked.node_errors}
        return as_json(known)

    def on_get_queue(self) -> Reply:
        """What runs and what waits."""
        running, pending = self.life.snapshot()
        queue = {"queue_running": running, "queue_pending": pending}
        return as_json({key: [job.item() for job in jobs] for key, jobs in queue.items()})

    def on_queue(self) -> Reply:
        """Clear the queue or delete from it."""
        data = json.loads(self.body.all())
        if data.get("clear"):
            self.life.clear()
        for prompt_id in data.get("delete", []):
            self.life.delete(prompt_id)
        return Reply()

    def on_interrupt(self) -> Reply:
        """Stop what runs, or only if it is a certain prompt."""
        try:
            data = json.loads(self.body.all())
        except ValueError:
            data = {}
        if self.sim.has("targeted_interrupt"):
            self.life.interrupt(data.get("prompt_id"))
        else:
            self.life.interrupt()
        return Reply()

    def on_get_history(self) -> Reply:
        """Finished prompts, the oldest first."""
        with self.life.lock:
            entries = list(self.life.history.items())
        count = int(self.query["max_items"]) if "max_items" in self.query else None
        offset = int(self.query.get("offset", -1))
        if offset < 0:
            offset = max(0, len(entries) - count) if count is not None else 0
        entries = entries[offset:] if count is None else entries[offset : offset + max(1, count)]
        return as_json(dict(entries))

    def on_get_history_entry(self, prompt_id: str) -> Reply:
        """One finished prompt; {} if there is none."""
        with self.life.lock:
            entry = self.life.history.get(prompt_id)
        return as_json({prompt_id: entry} if entry else {})

    def on_history(self) -> Reply:
        """Clear the history or delete from it."""
        data = json.loads(self.body.all())
        with self.life.lock:
            if data.get("clear"):
                self.life.history.clear()
            for prompt_id in data.get("delete", []):
                self.life.history.pop(prompt_id, None)
        return Reply()

    def on_view(self) -> Reply:
        """A file of the input, output or temp folder, or a small picture in its place."""
        if "filename" not in self.query:
            return Reply(404)
        name, kind = annotation(self.query["filename"], self.query.get("type", "output"))
        if not name or name[0] == "/" or ".." in name or kind not in FOLDERS:
            return Reply(400)
        try:
            path = inside(self.sim.folder(kind, self.query.get("subfolder", "")), basename(name))
        except PermissionError:
            return Reply(403)
        if not os.path.isfile(path):
            return Reply(404)
        kind = MIME.guess_type(path)[0] or "application/octet-stream"
        shown: tuple[tuple[str, str], ...] = (("Content-Disposition", f'filename="{basename(path)}"'),)
        if "preview" in self.query:
            if not kind.startswith("image/"):
                return TROUBLE  # as for a file that Pillow cannot open
            image = measure(path)
            scale = max(1.0, image.width / 512, image.height / 512)
            size = max(1, int(image.width / scale)), max(1, int(image.height / scale))
            return Reply(200, draw(*size, image.seed, ["SIMULATED", "PREVIEW"]), "image/png", shown)
        active = {"text/html", "text/css", "text/javascript", "application/javascript"}
        drawn = {"image/svg+xml", "application/xml", "text/xml"}
        if kind in active or (kind in drawn and self.sim.has("jobs")):
            kind = "application/octet-stream"
        return Reply(200, kind=kind, headers=shown, path=path)

    def on_upload(self, what: str) -> Reply:
        """Store a file, or the picture of a mask."""
        content_type = self.headers.get("Content-Type", "")
        boundary = re.search(r'boundary="?([^";]+)', content_type)
        if not content_type.startswith("multipart/form-data") or not boundary:
            return Reply(400)
        form = read_form(self.body, boundary[1], self.sim.root)
        try:
            return self.store(form, what)
        finally:
            discard(form)

    def store(self, form: dict[str, str | Upload], what: str) -> Reply:
        """Put an uploaded file where its form says."""
        image, kind = form.get("image"), str(form.get("type", "input"))
        if kind not in FOLDERS:
            raise ValueError("no such folder: " + kind)
        if not image:
            return Reply(400)
        if isinstance(image, str):
            raise TypeError("the image is a text field")
        subfolder, name = str(form.get("subfolder", "")), image.filename
        stem, suffix = os.path.splitext(name)
        try:
            folder = self.sim.folder(kind, subfolder)
            path = inside(folder, name)
            inside(self.sim.folder(kind), os.path.join(folder, name))
        except PermissionError:
            return Reply(400)
        original = json.loads(str(form["original_ref"])) if what == "mask" else None
        with self.sim.files:
            os.makedirs(folder, exist_ok=True)
            number = 1
            while os.path.exists(path) and form.get("overwrite") not in ("true", "1"):
                if self.sim.has("released") and digest_of(path) == digest_of(image.path):
                    break
                name = f"{stem} ({number}){suffix}"
                path, number = inside(folder, name), number + 1
            else:
                if original is None:
                    os.replace(image.path, path)
                else:
                    self.store_mask(original, path)
        return as_json({"name": name, "subfolder": subfolder, "type": kind})

    def store_mask(self, original: Json, path: str) -> None:
        """Stand in for the original with the mask's alpha; if there is none, write nothing."""
        name, kind = annotation(original["filename"], original.get("type", "output"))
        try:
            source = inside(self.sim.folder(kind, original.get("subfolder", "")), name)
        except (KeyError, PermissionError):
            return  # a real server also answers 200 here
        if os.path.isfile(source):
            image = measure(source)
            with open(path, "wb") as file:
                file.write(draw(image.width, image.height, image.seed, ["SIMULATED", "MASKED"]))

    def on_object_info(self) -> Reply:
        """All node classes."""
        return as_json({name: node.info(self.sim) for name, node in NODES.items()})

    def on_object_info_class(self, name: str) -> Reply:
        """One node class; {} if there is none."""
        return as_json({name: NODES[name].info(self.sim)} if name in NODES else {})

    def on_system_stats(self) -> Reply:
        """The system; its device says that it is simulated."""
        system: Json = {"os": sys.platform if self.sim.has("jobs") else os.name}
        system.update(ram_total=16 << 30, ram_free=8 << 30)
        if self.sim.has("released"):
            system["comfyui_version"] = self.sim.version
        system.update(python_version=sys.version, embedded_python=False)
        system.update(pytorch_version="simulated", argv=["main.py"])
        device: Json = {"name": "simulated (no GPU)", "type": "cpu", "index": None}
        for key in ("vram_total", "torch_vram_total"):
            device[key], device[key.replace("total", "free")] = 16 << 30, 8 << 30
        return as_json({"system": system, "devices": [device]})

    def on_features(self) -> Reply:
        """The feature flags of the server."""
        return as_json(self.sim.features())

    def on_embeddings(self) -> Reply:
        """The names of embeddings, without suffix."""
        return as_json([os.path.splitext(name)[0] for name in MODELS["embeddings"]])

    def on_models(self) -> Reply:
        """The model folders."""
        return as_json(list(MODELS))

    def on_models_folder(self, folder: str) -> Reply:
        """The models in a folder."""
        return as_json(MODELS[folder]) if folder in MODELS else Reply(404)

    def on_extensions(self) -> Reply:
        """There is no frontend."""
        return as_json([])

    def on_free(self) -> Reply:
        """Forget the cache after the current prompt, if asked to free memory."""
        self.life.free = bool(json.loads(self.body.all()).get("free_memory")) or self.life.free
        return Reply()

    def on_jobs(self) -> Reply:
        """Jobs, filtered, sorted and cut into pages."""
        query = self.query
        wanted = [each.strip().lower() for each in query.get("status", "").split(",") if each]
        by, order = query.get("sort_by", "created_at"), query.get("sort_order", "desc")
        sort_keys = ("created_at", "execution_duration")
        try:
            limit = int(query["limit"]) if "limit" in query else None
            offset = max(0, int(query.get("offset", 0)))
        except ValueError:
            return as_json({"error": "limit and offset must be integers"}, 400)
        if set(wanted) - set(JOB_STATES) or by not in sort_keys or order not in ("asc", "desc"):
            return as_json({"error": "invalid status, sort_by or sort_order"}, 400)
        if limit is not None and limit <= 0:
            return as_json({"error": "limit must be a positive integer"}, 400)
        jobs = [job for job in all_jobs(self.life) if not wanted or job["status"] in wanted]
        if "workflow_id" in query:
            jobs = [job for job in jobs if job.get("workflow_id") == query["workflow_id"]]

        def sort_key(job: Json) -> float:
            if by == "created_at":
                return float(job["create_time"])
            return float(job.get("execution_end_time", 0) - job.get("execution_start_time", 0))

        jobs.sort(key=sort_key, reverse=order == "desc")
        page = jobs[offset:] if limit is None else jobs[offset : offset + limit]
        pages = {"offset": offset, "limit": limit, "total": len(jobs)}
        pages["has_more"] = offset + len(page) < len(jobs)
        return as_json({"jobs": page, "pagination": pages})

    def on_job(self, prompt_id: str) -> Reply:
        """One job."""
        for job in all_jobs(self.life, detailed=True)[::-1]:
            if job["id"] == prompt_id:
                return as_json(job)
        return as_json({"error": "Job not found"}, 404)

    def on_job_cancel(self, prompt_id: str) -> Reply:
        """Interrupt a job or take it off the queue."""
        return as_json({"cancelled": self.cancel([prompt_id])})

    def on_jobs_cancel(self) -> Reply:
        """The same for several jobs."""
        try:
            data = json.loads(self.body.all())
        except ValueError:
            return as_json({"error": "Request body must be valid JSON"}, 400)
        ids = data.get("job_ids") if isinstance(data, dict) else None
        if not isinstance(ids, list):
            return as_json({"error": "job_ids must be a list"}, 400)
        invalid = [each if isinstance(each, str) else repr(each) for each in ids]
        invalid = [text for text, each in zip(invalid, ids) if not is_job_id(each)]
        if invalid:
            error = {"error": "job_ids contains invalid id(s)", "invalid_ids": invalid}
            return as_json(error, 400)
        return as_json({"cancelled": self.cancel(ids)})

    def cancel(self, ids: list[str]) -> bool:
        """Cancel jobs; False if there was nothing to cancel."""
        done = [bool(each) and (self.life.interrupt(each) or self.life.delete(each)) for each in ids]
        return any(done)


SECRETS = ("auth_token_comfy_org", "api_key_comfy_org")

#: Method, path and the method of Handler; all but the jobs are also there below /api.
ROUTES = [
    ("GET", "/ws", "ws"),
    ("GET", "/prompt", "get_prompt"),
    ("POST", "/prompt", "prompt"),
    ("GET", "/queue", "get_queue"),
    ("POST", "/queue", "queue"),
    ("POST", "/interrupt", "interrupt"),
    ("GET", "/history", "get_history"),
    ("POST", "/history", "history"),
    ("GET", "/history/([^/]+)", "get_history_entry"),
    ("GET", "/view", "view"),
    ("POST", "/upload/(image|mask)", "upload"),
    ("GET", "/object_info", "object_info"),
    ("GET", "/object_info/([^/]+)", "object_info_class"),
    ("GET", "/system_stats", "system_stats"),
    ("GET", "/features", "features"),
    ("GET", "/embeddings", "embeddings"),
    ("GET", "/models", "models"),
    ("GET", "/models/([^/]+)", "models_folder"),
    ("GET", "/extensions", "extensions"),
    ("POST", "/free", "free"),
    ("GET", "/api/jobs", "jobs"),
    ("POST", "/api/jobs/cancel", "jobs_cancel"),
    ("GET", "/api/jobs/([^/]+)", "job"),
    ("POST", "/api/jobs/([^/]+)/cancel", "job_cancel"),
]


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """Listens; its threads belong to a life, and it knows its connections to cut them."""

    request_queue_size = 128
    allow_reuse_address = os.name != "nt"  # on Windows it would let two servers share a port

    def __init__(self, sim: Installation, address: tuple[str, int]) -> None:
        self.sim = sim
        self.connections: set[socket.socket] = set()
        super().__init__(address, Handler)
        self.life = Life(sim)
        self.life.spawn(work, self.life)
        self.life.spawn(self.serve_forever, 0.02)

    def server_bind(self) -> None:
        """Bind without the base class's look-up of the host's name, which can take seconds."""
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread of this life."""
        with self.life.lock:
            self.connections.add(request)
        self.life.spawn(self.process_request_thread, request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        with self.life.lock:
            self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks is nothing special."""
        self.sim.log(traceback.format_exc())

    def end(self) -> None:
        """Stop listening and cut everything."""
        self.life.end()
        self.shutdown()
        self.server_close()
        with self.life.lock:
            for each in self.connections:
                abort(each)
        self.life.join(3.0)
