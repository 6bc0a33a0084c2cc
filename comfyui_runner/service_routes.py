"""What the routes of continuous mode do: one method each, in the threads of the connections."""

from __future__ import annotations

import contextlib
import re
import time
import urllib.parse
from typing import Callable, Iterable, Mapping, NamedTuple, Optional, Tuple

from comfyui_runner.call_bodies import open_call
from comfyui_runner.documents import Prompt, has_nodes, is_node, parse_document
from comfyui_runner.edits import InputExample, example_of_edit, find_node, read_inputs
from comfyui_runner.errors import PromptRejected, ServerAnswer
from comfyui_runner.event_streams import encode_text_event
from comfyui_runner.forms import check_form
from comfyui_runner.guard import FailedGuesses, starts_or_changes, too_many_guesses, url_of_host
from comfyui_runner.held_workflow import EditedPrompt, HeldCopy, HeldPrompt, edit_inputs
from comfyui_runner.http_body import RequestBody
from comfyui_runner.loading import Loaded, make_prompt
from comfyui_runner.media import media_type_of_name
from comfyui_runner.messages import (
    JSON_LIMIT,
    FormTexts,
    HttpError,
    Request,
    Response,
    as_http_error,
    check_names,
    check_types,
    choose_disposition,
    error_response,
    json_response,
    parse_fields,
    parse_object,
    parse_object_or_form,
    strict_json,
)
from comfyui_runner.model_names import model_values
from comfyui_runner.nodes import InputRef, class_of, describe_node, quote_name
from comfyui_runner.outputs import Output
from comfyui_runner.prompt_texts import find_text
from comfyui_runner.refusals import Refusal
from comfyui_runner.remedies import Origin, workflow_in_extra
from comfyui_runner.reports import add_first_problem
from comfyui_runner.resources import read_resource
from comfyui_runner.routes import (
    Route,
    check_query,
    curl_lines,
    find_route,
    fit_route,
    options_response,
    show_body,
)
from comfyui_runner.run_answers import (
    RUNS_LISTED,
    WantedFile,
    failure_of_run,
    prompt_id_header,
    read_flag,
    read_page_query,
    read_turn,
    read_wait,
    read_wanted_file,
)
from comfyui_runner.run_prompts import RunPrompt
from comfyui_runner.run_records import AnyRun, RunRecord, problem_as_json
from comfyui_runner.server import uploaded_value
from comfyui_runner.service import Service
from comfyui_runner.service_files import (
    UploadedFile,
    disposition_header,
    open_output,
    open_view,
    require_form,
    upload_refusal,
)
from comfyui_runner.state import Phase
from comfyui_runner.text import JsonObject, one_line
from comfyui_runner.upload_inputs import find_loaders, upload_inputs
from comfyui_runner.waiting import wait_unless_left

#: The longest wait of GET /runs/{prompt_id}?wait= in seconds.
MAX_WAIT = 60.0

#: The longest wait of POST /interrupt, in seconds, for the conclusion of the run that it stopped.
INTERRUPT_WAIT = 5.0

#: Handlers that are not called for HEAD, which must not start anything.
NOT_FOR_HEAD = ("start_run", "get_events")

#: The largest body of POST /login in bytes: it is read without a token.
LOGIN_LIMIT = 4096

#: For how long browsers keep the cookie of the login: a year.
COOKIE_SECONDS = 365 * 24 * 60 * 60

#: How the paths of OpenAI's API begin.
OPENAI_PATH = "/v1/"

_is_uuid = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch


class Client(NamedTuple):
    """What the routes need to know about the other end of a connection."""

    is_crowded: bool = False  # too many connections were open already: only /health is answered
    has_left: Callable[[], bool] = lambda: False  # returns whether it has closed the connection


class ServiceRoutes:
    """The answers to requests. ``page`` is shown to browsers."""

    def __init__(self, service: Service, page: bytes) -> None:
        self.service = service
        self.page = page
        self.guard = service.options.guard
        self.failed_guesses = FailedGuesses()
        self.started = int(time.time())
        #: the status that was shown last, and its answer
        self._shown_status: Tuple[JsonObject, Response] = ({}, json_response(200, {}))

    def respond(self, request: Request, body: RequestBody, client: Client) -> Response:
        """The answer to a request, whatever happens."""
        try:
            if client.is_crowded and request.path != "/health":
                raise too_many_connections()
            if request.method == "OPTIONS":
                wanted_headers = request.header("access-control-request-headers")
                return options_response(request.path, wanted_headers)
            if self.guard.carries_guess(request) and not self._may_guess(request):
                raise too_many_guesses()
            refusal = self.guard.refusal(request)
            if refusal is not None:
                raise refusal

            url = self.url_for(request)
            route, parts = find_route(request.method, request.path, url, self.find_example)
            if request.method == "HEAD" and route.handler in NOT_FOR_HEAD:
                return Response(200)
            return self._call(route, parts, RouteCall(self, request, body, client))
        except Exception as error:  # a fault of ours is answered too, and the service goes on
            is_wrong_guess = self.guard.is_wrong_guess(request, error)
            if starts_or_changes(request) or is_wrong_guess:
                self.note_refusal(request, error)
            if is_wrong_guess:
                with self.failed_guesses.late_answer(request.client, time.monotonic()) as seconds:
                    time.sleep(seconds)
            return show_error(request, error)

    def note_refusal(self, request: Request, error: BaseException) -> None:
        """Have the console show that ``request`` ended with ``error``."""
        self.service.note_refusal(refusal_of(request, error))

    def _may_guess(self, request: Request) -> bool:
        return self.failed_guesses.may_guess(request.client, time.monotonic())

    def _call(self, route: Route, parts: Mapping[str, str], call: "RouteCall") -> Response:
        request = call.request
        handler: Callable[..., Response] = getattr(call, route.handler)
        try:
            if not starts_or_changes(request):
                return handler(**parts)
            check_query(request.query, route)
            response = handler(**parts)
            self.service.keeper.flush()  # what was answered is not forgotten
            return response
        except HttpError as error:
            raise show_body(error, fit_route(route, self.find_example())) from None

    def show_status(self) -> Response:
        """The state of everything.

        Clients ask for it all the time, and it rarely changes. Encoding it takes a third of the
        answer's time, so that is done only after a change.
        """
        status = self.service.status()
        shown, response = self._shown_status
        if status != shown:
            response = json_response(200, status)
            self._shown_status = (status, response)
        return response

    def find_example(self) -> Optional[InputExample]:
        """An input of the held workflow with a value, for messages."""
        return example_of_edit(self.service.held.now.prompt)

    def url_for(self, request: Request) -> str:
        """The URL by which the client of ``request`` reaches the service.

        Only for requests that the guard has let through: another Host could lead anywhere.
        """
        return self.service.options.public_url or url_of_host(request.header("host"))


def refusal_of(request: Request, error: BaseException) -> Refusal:
    """What the console shows of a request that ended with ``error``: who wanted what, and why not.

    The query is left out because it may be private.
    """
    http_error = as_http_error(error)
    page = ""
    if http_error.type == "foreign_origin":
        referer, _, _ = request.header("referer").partition("?")
        page = request.header("origin") or referer
    return Refusal(
        client=request.client,
        page=page,
        method=request.method,
        path=request.path,
        status=http_error.http_status,
        type=http_error.type,
        message=http_error.message,
    )


def too_many_connections() -> HttpError:
    """The answer when no more connections are served."""
    headers = (("Retry-After", "1"),)
    return HttpError(503, "too_many_connections", "Too many connections are open.", headers=headers)


def show_error(request: Request, error: BaseException) -> Response:
    """The answer to a request that ended with ``error``, as its client expects errors."""
    if not request.path.startswith(OPENAI_PATH):
        return error_response(error)
    from comfyui_runner.extras.openai_images import openai_error  # only its clients need it

    return openai_error(error)


class RouteCall:
    """One request, and what the service does for it: one method a route."""

    def __init__(
        self, routes: ServiceRoutes, request: Request, body: RequestBody, client: Client
    ) -> None:
        self.request = request
        self.body = body
        self.client = client
        self.page = routes.page
        self.guard = routes.guard
        self.service = routes.service
        self.backend = self.service.backend
        self.held = self.service.held
        self.workflows = self.service.workflows
        self.records = self.service.records
        self.options = self.service.options
        self.url_for = routes.url_for
        self.show_status = routes.show_status
        self.started = routes.started

    def read_fields(self, required: Mapping[str, type], optional: Mapping[str, type]) -> JsonObject:
        """The fields of a body in JSON, or of a form. Raises HttpError as parse_fields() does."""
        body = self.body.read(JSON_LIMIT)
        return parse_fields(body, required, optional, self.request.header("content-type"))

    # -- the service itself ----------------------------------------------------------------------

    def get_page(self) -> Response:
        """The page for browsers; the list of routes for all others."""
        if self.page and "text/html" in self.request.header("accept"):
            return Response(200, self.page, "text/html; charset=utf-8")
        example = example_of_edit(self.held.now.prompt)
        text = "".join(f"{line}\n" for line in curl_lines(self.url_for(self.request), example))
        return Response(200, text.encode(), "text/plain; charset=utf-8")

    def get_openapi(self) -> Response:
        """The OpenAPI document."""
        return Response(200, read_resource("openapi.json").encode())

    def get_health(self) -> Response:
        """200 as long as this program runs."""
        return json_response(200, {"status": "ok", "comfyui": self.backend.connected})

    def get_status(self) -> Response:
        """The state of everything."""
        return self.show_status()

    def log_in(self) -> Response:
        """A cookie for the token."""
        fields = parse_fields(self.body.read(LOGIN_LIMIT), {"token": str}, {})
        if not self.guard.is_token(fields["token"]):
            raise HttpError(403, "wrong_token", "This is not the token.")
        cookie = (
            f"{self.guard.cookie_name()}={self.guard.cookie_value()}; "
            f"HttpOnly; SameSite=Strict; Path=/; Max-Age={COOKIE_SECONDS}"
        )
        return Response(204, headers=(("Set-Cookie", cookie),))

    # -- the held workflow -----------------------------------------------------------------------

    def get_workflow(self) -> Response:
        """The held workflow, with what can be set in it."""
        from comfyui_runner.extras.checks import form_fields  # only this route needs it

        wanted_format = self.request.query.get("format", "api")
        if wanted_format == "ui":
            return self._get_workflow_for_editor()
        if wanted_format != "api":
            message = f"?format= must be api or ui, not {quote_name(wanted_format)}."
            raise HttpError(400, "wrong_value", message)
        held = self.held.now
        object_info = self.backend.look_up(held.prompt)
        draws = [ref.full_name for ref in self.held.draws(held.prompt)]
        answer = {
            "file": self.held.path,
            "revision": held.revision,
            "prompt": held.prompt,
            "draws": draws,
            "has_ui_format": self.held.copy().loaded.workflow is not None,
            "fields": form_fields(held.prompt, object_info, held.random_seeds),
        }
        return json_response(200, answer)

    def _get_workflow_for_editor(self) -> Response:
        """The held workflow in UI format, with its edited values. Raises HttpError 409."""
        from comfyui_runner.extras.ui_saving import save_for_editor  # only this format needs it

        copy = self.held.copy()
        workflow = copy.loaded.workflow
        prompt = copy.held.prompt
        if workflow is None:
            message = (
                "The held workflow did not come from a file in UI format, which ComfyUI's editor "
                "saves. GET /workflow has it in API format."
            )
            raise HttpError(409, "not_in_ui_format", message)
        saved = save_for_editor(workflow, prompt, self.backend.look_up_all(None))
        not_saved = []
        for ref in saved.not_saved:
            not_saved.append({**describe_node(prompt, ref.node_id), "input": ref.input})
        answer = {
            "file": self.held.path,
            "revision": copy.held.revision,
            "workflow": saved.workflow,
            "not_saved": not_saved,
        }
        return json_response(200, answer)

    def put_workflow(self) -> Response:
        """Replace the held workflow with the one in the body, or, without a body, with the one of
        the list that ``?name=`` names.

        It may have problems, which are listed: a model can be installed, and a value edited. But if
        ComfyUI lacks the class of a node, no text or seed can be found in it, and it is refused.
        """
        body = self.body.read(JSON_LIMIT)
        wanted = self.request.query.get("name")
        if wanted and not body:
            return self._choose_workflow(wanted)
        document = parse_document(body, "The body")
        conversion = make_prompt(document, self.backend.look_up_all)
        prompt, notices = self.backend.name_models(conversion.prompt)
        origin = Origin(document.workflow or {})
        object_info, problems = self.backend.find_problems(prompt, origin)
        listed = [problem_as_json(problem) for problem in problems]
        missing = [problem for problem in problems if problem.type == "missing_node_type"]
        if missing:
            message = "The workflow has nodes of classes that this ComfyUI does not have."
            message = add_first_problem(message, missing)
            raise HttpError(400, "invalid_workflow", message, {"problems": listed})

        name = one_line(self.request.query.get("name", ""), 200)
        loaded = Loaded(prompt, name, document.workflow, conversion)
        loaded = loaded._replace(extra_data=document.extra_data)
        revision = self.workflows.hold_client(loaded)
        answer = {
            "nodes": len(prompt),
            "revision": revision,
            "checked": are_classes_known(prompt, object_info),
            "warnings": [*conversion.warnings, *notices],
            "problems": listed,
        }
        return json_response(200, answer)

    def _choose_workflow(self, name: str) -> Response:
        """Hold a workflow of the list."""
        chosen = self.workflows.choose(name)
        prompt = self.held.now.prompt
        named, _ = self.backend.name_models(prompt)  # a run does the same
        object_info, problems = self.backend.find_problems(named, self.held.origin)
        answer = {
            "nodes": len(prompt),
            "revision": chosen.revision,
            "checked": are_classes_known(prompt, object_info),
            "warnings": list(chosen.warnings),
            "problems": [problem_as_json(problem) for problem in problems],
        }
        return json_response(200, answer)

    def get_workflows(self) -> Response:
        """The workflows that can be held."""
        return json_response(200, {"workflows": self.workflows.to_json()})

    def reset_workflow(self) -> Response:
        """Hold the file again that was chosen last, as it is now."""
        self.read_fields({}, {})
        chosen = self.workflows.reset()
        answer = {"nodes": len(chosen.loaded.prompt), "revision": chosen.revision}
        return json_response(200, answer)

    def update_prompt(self) -> Response:
        """Set a text."""
        known = {"node_id": str, "title": str, "type": str}
        fields = self.read_fields({"text": str}, known)
        node_name = name_of_node(fields)
        role = fields.get("type")
        if role not in (None, "positive", "negative"):
            message = f'The field type must be "positive" or "negative", not {quote_name(role)}.'
            raise HttpError(400, "wrong_value", message)
        if role is None and node_name is None:
            message = 'Name the text: "node_id", "title", or "type": "positive" or "negative".'
            raise HttpError(400, "missing_field", message)
        ref = find_text(self.held.now.prompt, node_name, role)
        return self._edit(ref.node_id, {ref.input: fields["text"]})

    def update_inputs(self) -> Response:
        """Set inputs of one node."""
        known = {"node_id": str, "title": str}
        fields = self.read_fields({"inputs": dict}, known)
        node_name = name_of_node(fields)
        if node_name is None:
            raise HttpError(400, "missing_field", 'Name the node: "node_id" or "title".')
        prompt = self.held.now.prompt
        inputs = fields["inputs"]
        node_id = find_node(prompt, node_name)
        if isinstance(inputs, FormTexts):
            inputs = read_inputs(prompt, node_id, inputs, self.backend.look_up(prompt))
        return self._edit(node_id, inputs)

    def _edit(self, node_id: str, inputs: JsonObject) -> Response:
        """Set inputs of the held workflow.

        ComfyUI may be slow, so it is asked without the lock. If another edit is made meanwhile,
        this one is repeated on the workflow that is held then.
        """
        revision = None
        while revision is None:
            before = self.held.now
            edited = self._try_edit(before, node_id, inputs)
            revision = self.held.hold_edit(before, edited)
        answer = {
            "node_id": node_id,
            "changed": {**inputs, **model_values(edited.prompt, node_id, inputs)},
            "checked": edited.is_checked,
            "revision": revision,
        }
        return json_response(200, answer)

    def _try_edit(self, held: HeldPrompt, node_id: str, inputs: JsonObject) -> EditedPrompt:
        """``held`` with inputs set in it. Raises EditError."""
        return self.backend.with_fresh_lists(
            held.prompt, lambda object_info: edit_inputs(held, node_id, inputs, object_info)
        )

    # -- uploads ---------------------------------------------------------------------------------

    def upload_image(self) -> Response:
        """Upload a file to ComfyUI, and set it in the nodes that load one."""
        is_forced = read_flag(self.request.query, "force")
        self.service.require_comfyui()
        content_type = require_form(self.request)
        prompt = self.held.now.prompt
        loaders = upload_inputs(prompt, self.backend.look_up(prompt))
        refs = find_loaders(prompt, loaders, self.request.query.get("node_id"))
        file = UploadedFile(self.body, self.backend.upload_limit, content_type)
        loads_picture = any(loaders[ref] == "image" for ref in refs)
        check_form(file.fields(), must_be_picture=loads_picture and not is_forced)
        uploaded = self._upload(file, refs)

        names = {key: str(uploaded.get(key) or "") for key in ("name", "subfolder", "type")}
        node_ids = [ref.node_id for ref in refs]
        # Looked up anew: the file is now in their lists.
        self.backend.look_up(self.held.now.prompt, node_ids)
        revision = self.held.hold_values(dict.fromkeys(refs, uploaded_value(uploaded)))
        answer = {**names, "nodes": node_ids, "revision": revision}
        if not self.options.auto_execute:
            return json_response(200, answer)
        return self._run_held(answer)

    def _upload(self, file: UploadedFile, refs: Iterable[InputRef]) -> JsonObject:
        """ComfyUI's answer to an upload.

        Behind a load balancer the file is kept for ``refs``, because the servers of later runs need
        it too.
        """
        server = self.backend.server
        try:
            uploaded = file.upload(server)
        except ServerAnswer as error:
            file.close()
            raise upload_refusal(error) or error from None
        if server.affinity:
            self.held.remember_upload(refs, uploaded_value(uploaded), file.upload_again)
        else:
            file.close()
        return uploaded

    # -- runs ------------------------------------------------------------------------------------

    def start_run(self) -> Response:
        """Run the held workflow. GET may have a body too: curl -X GET -d sends one."""
        content_type = self.request.header("content-type")
        fields = parse_object_or_form(self.body.read(JSON_LIMIT), content_type)
        if "clear" in fields or "delete" in fields:  # ComfyUI's own POST /queue
            message = "The queue is ComfyUI's: POST /interrupt stops a run of this service."
            raise HttpError(400, "not_supported", message)
        check_names(fields, ())
        return self._run_held({})

    def _run_held(self, fields: JsonObject) -> Response:
        """Run the held workflow: the answer, with ``fields`` in it.

        Raises HttpError if ComfyUI refuses it.
        """
        new = self.held.take_for_run(self.backend.object_info)
        try:
            record, _ = self.service.start(new)
        except PromptRejected as error:
            raise as_refusal(error) from None
        if is_lost_at_start(record):
            return self._show_end(record, None)
        ahead = record.run.state.ahead
        answer = {
            "message": start_in_words(ahead),
            "prompt_id": record.prompt_id,
            "ahead": ahead,
        }
        return json_response(202, {**fields, **answer})

    def run_call(self) -> Response:
        """Run a copy of the held workflow with the values in the body, and wait for its end."""
        query = self.request.query
        wanted = read_wanted_file(self.request)
        seconds = read_wait(query, float("inf"))
        is_detached = read_flag(query, "detach")
        with self._place_to_wait(seconds):
            with open_call(self.request, self.body) as values:
                record = self.start_call(self.held.copy(), values)
            self.service.wait_for_calls(
                [record], seconds, self.client.has_left, is_detached=is_detached
            )
        if record.over.is_set():
            return self._show_end(record, wanted)
        base_path = urllib.parse.urlsplit(self.options.public_url).path
        location = f"{base_path}/runs/{record.prompt_id}"
        headers = (("Location", location), *prompt_id_header(record.prompt_id))
        return json_response(202, record.to_json(self.url_for(self.request)), headers)

    def start_call(self, copy: HeldCopy, values: JsonObject) -> RunRecord:
        """Service.start_call(), with errors as answers. Raises HttpError, EditError."""
        try:
            return self.service.start_call(copy, values)
        except PromptRejected as error:
            raise as_refusal(error) from None

    def _place_to_wait(self, seconds: float) -> "contextlib.AbstractContextManager[None]":
        """A place among the clients that wait; 0 ``seconds`` need none. Raises HttpError 429."""
        if seconds == 0.0:
            return contextlib.nullcontext()
        return self.service.waiting_room.place()

    def _wait_for(self, record: AnyRun, seconds: float) -> None:
        """Wait for the end of a run. If the client leaves, that ends the wait, but not the run."""
        if record.over.is_set():
            return
        with self._place_to_wait(seconds):
            wait_unless_left(record.over, seconds, self.client.has_left)

    def _show_end(self, record: AnyRun, wanted: Optional[WantedFile]) -> Response:
        """The answer to the start of a run that has ended. Raises HttpError for a missing file."""
        shown = record.to_json(self.url_for(self.request))
        failure = failure_of_run(shown)
        if failure is not None:
            # Returned, because the console would show an error that is raised as a refusal. It
            # shows the end of the run anyway.
            return error_response(failure)
        if wanted is None:
            return json_response(200, shown, prompt_id_header(record.prompt_id))
        # Without the client's headers: a Range in them does not mean the file.
        whole_file = self.request._replace(headers={})
        return self._open_wanted(record, wanted, whole_file)

    def _open_wanted(self, record: AnyRun, wanted: WantedFile, request: Request) -> Response:
        """A file of a run that has ended. Raises HttpError."""
        prompt_id = prompt_id_header(record.prompt_id)
        try:
            turn = wanted.choose(record.outputs or [])
            response = self.open_output(record, turn, request)
        except HttpError as error:
            error.headers = (*error.headers, *prompt_id)
            raise
        return response._replace(headers=(*response.headers, *prompt_id))

    def open_output(self, record: AnyRun, turn: int, request: Request) -> Response:
        """A file of a run, by its turn among the outputs. Raises HttpError."""
        spooled = record.spooled_file(turn)
        if spooled is not None:
            output, key = spooled
            return self._read_spooled(output, key, is_download=False)
        assert record.outputs is not None
        output = record.outputs[turn]
        if not output.is_on_server:
            message = f"{output.filename} is no longer kept, or could not be kept."
            raise HttpError(404, "no_such_file", message)
        return open_output(output, record.server or self.backend.server, request)

    def get_run_output(self, prompt_id: str) -> Response:
        """A file of a run, when it has ended."""
        wanted = read_wanted_file(self.request, is_required=True)
        assert wanted is not None
        record = self._find_run(prompt_id)
        self._wait_for(record, read_wait(self.request.query, 0.0))
        if not record.over.is_set():
            message = "The run has not ended yet: ?wait=30 waits for its end."
            raise HttpError(409, "not_over", message, headers=prompt_id_header(record.prompt_id))
        if not any(output.filename for output in record.outputs or []):
            message = f"The run made no file. {record.message}"
            raise HttpError(404, "no_such_file", message)
        return self._open_wanted(record, wanted, self.request)

    def post_prompt(self) -> Response:
        """ComfyUI's own POST /prompt. Runs the prompt in the body or, without one, what is held."""
        prompt, extra = split_prompt_body(parse_object(self.body.read(JSON_LIMIT)))
        if prompt is None:
            new = self.held.take_for_run(self.backend.object_info)
        else:
            check_prompt_request(prompt, extra)
            new = RunPrompt(prompt, extra, Origin(workflow_in_extra(extra)))  # as it came
        record, answer = self.service.start(new)  # the answer of a PromptRejected is passed on
        if is_lost_at_start(record):
            return self._show_end(record, None)
        return json_response(200, answer)

    def interrupt_run(self) -> Response:
        """Stop a run by its prompt_id; by default the one that is running, or the next."""
        fields = self.read_fields({}, {"prompt_id": str})
        prompt_id = fields.get("prompt_id")
        record = self.records.to_interrupt(prompt_id)
        if record is None:
            message = "No run of this service is running or waiting."
            if prompt_id is not None:
                message = "No run of this service with that prompt_id is running or waiting."
            raise HttpError(409, "nothing_to_interrupt", message)

        self.service.cancel(record)
        state = record.run.state
        answer = {"prompt_id": record.prompt_id, "phase": state.phase.value, "message": "requested"}
        if not state.phase.over:
            return json_response(202, answer)
        record.over.wait(INTERRUPT_WAIT)
        return json_response(200, {**answer, "message": record.message})

    def get_runs(self) -> Response:
        """The runs, newest first, a page at a time."""
        limit, before = read_page_query(self.request.query)
        page = self.records.page(limit, before)
        next_page = None
        if page.next_before is not None:
            next_page = f"runs?limit={limit}&before={page.next_before}"
        url = self.url_for(self.request)
        listed = ", ".join(run.to_text(url) for run in page.runs)
        text = f'{{"runs": [{listed}], "next": {strict_json(next_page)}}}\n'
        return Response(200, text.encode())

    def get_run(self, prompt_id: str) -> Response:
        """One run, at once or when it has ended."""
        record = self._find_run(prompt_id)
        self._wait_for(record, min(read_wait(self.request.query, 0.0), MAX_WAIT))
        return json_response(200, record.to_json(self.url_for(self.request)))

    def get_run_prompt(self, prompt_id: str) -> Response:
        """The prompt of a run: its settings, as ComfyUI got them."""
        prompt = self.records.prompt_of(self._find_run(prompt_id))
        if prompt is None:
            message = "The prompt of this run was too large to be kept, or cannot be read any more."
            raise HttpError(404, "prompt_not_kept", message)
        return json_response(200, {"prompt": prompt})

    def remove_run(self, prompt_id: str) -> Response:
        """Take a run off the list; what it made stays in ComfyUI."""
        if not self._find_run(prompt_id).over.is_set():
            message = "The run has not ended yet: POST /interrupt stops it."
            raise HttpError(409, "not_over", message, headers=prompt_id_header(prompt_id))
        self.service.remove_run(prompt_id)
        return Response(204)

    def _find_run(self, prompt_id: str) -> AnyRun:
        """A run of this service. Raises HttpError 404."""
        record = self.records.get(prompt_id)
        if record is None:
            kept = f"the last {self.records.kept} are kept"
            message = f"No run of this service has this prompt_id ({kept})."
            raise HttpError(404, "no_such_run", message)
        return record

    def get_run_file(self, prompt_id: str, number: str) -> Response:
        """A file that a run made and no server keeps."""
        record = self._find_run(prompt_id)
        turn = read_turn(number)
        spooled = None
        if turn is not None:
            spooled = record.spooled_file(turn)
        if spooled is None:
            message = "The run has no such file: its outputs list those that it has."
            raise HttpError(404, "no_such_file", message)
        output, key = spooled
        is_download = "download" in self.request.query
        return self._read_spooled(output, key, is_download=is_download)

    def _read_spooled(self, output: Output, key: str, *, is_download: bool) -> Response:
        """A file from the spool. Raises HttpError 404 if it is no longer there."""
        data = self.service.spool.read(key)
        if data is None:
            message = f"{output.filename} is no longer kept: newer files took its place."
            raise HttpError(404, "no_such_file", message)
        type_, disposition = choose_disposition(media_type_of_name(output.filename))
        if is_download:
            disposition = "attachment"
        headers = (disposition_header(output.filename, disposition),)
        return Response(200, data, type_, headers)

    # -- what happens ----------------------------------------------------------------------------

    def get_events(self) -> Response:
        """Everything that happens, as it happens."""
        prompt_id = self.request.query.get("prompt_id")
        streams, records = self.service.streams, self.records

        def send_events(send: Callable[[bytes], None]) -> None:
            stored = records.read_page(RUNS_LISTED, prompt_id)  # without the lock: disks are slow
            with self.service.lock:  # so that no event is missed between the state and the stream
                stream = streams.open(prompt_id)
                url = self.options.public_url  # the same as in the events that follow
                listed = records.with_records(stored, RUNS_LISTED)
                wanted = [run for run in listed.runs if prompt_id in (None, run.prompt_id)]
                runs = ", ".join(run.to_text(url) for run in wanted)
                status = strict_json(self.service.status())
                state = f'{{"status": {status}, "runs": [{runs}]}}'
                stream.put(encode_text_event("state", state, self.options.secrets))
            try:
                stream.send_until_end(send, streams.keep_alive_seconds)
            finally:
                streams.close(stream)

        return Response(200, type="text/event-stream", stream=send_events)

    def get_preview(self) -> Response:
        """The newest preview picture, of one run or of any."""
        self.service.looked_at = time.monotonic()
        prompt_id = self.request.query.get("prompt_id")
        for record in self.records.newest_in_memory():
            preview = record.run.preview
            is_wanted = prompt_id in (None, record.prompt_id)
            if is_wanted and preview is not None:
                type_, disposition = choose_disposition(preview.mime)
                headers = (("Content-Disposition", disposition),)
                return Response(200, preview.image, type_, headers)
        message = (
            "There is no preview. ComfyUI sends them for runs that start while somebody is "
            "watching, or (before 0.5.0) if you start it with --preview-method auto."
        )
        raise HttpError(404, "no_preview", message)

    def get_view(self) -> Response:
        """A file of ComfyUI, passed on as it is."""
        run = self.records.get(self.request.query.get("prompt_id"))
        server = None
        if run is not None:
            server = run.server  # behind a load balancer each run has its own
        return open_view(self.request, server or self.backend.server)

    # -- OpenAI's images API: only its clients need it -------------------------------------------

    def create_images(self) -> Response:
        """Pictures of the held workflow, for a text."""
        from comfyui_runner.extras.openai_calls import make_pictures

        return make_pictures(self, is_edit=False)

    def edit_images(self) -> Response:
        """Pictures of the held workflow, for a text and pictures."""
        from comfyui_runner.extras.openai_calls import make_pictures

        return make_pictures(self, is_edit=True)

    def get_models(self) -> Response:
        """The held workflow as a model."""
        from comfyui_runner.extras.openai_calls import list_models

        return list_models(self)

    def get_model(self, model: str) -> Response:
        """The same by its name."""
        from comfyui_runner.extras.openai_calls import show_model

        return show_model(self, model)


def as_refusal(error: PromptRejected) -> HttpError:
    """The answer if ComfyUI refuses a prompt that is not the client's own: what is wrong."""
    problems = [problem_as_json(problem) for problem in error.problems]
    details = {"problems": problems, "answer": error.answer}
    return HttpError(400, "prompt_rejected", error.message, details)


def is_lost_at_start(record: RunRecord) -> bool:
    """Whether a run that has just been started is over already, and ComfyUI does not have it."""
    return record.over.is_set() and record.phase is Phase.LOST


def are_classes_known(prompt: JsonObject, object_info: JsonObject) -> bool:
    """Whether ``object_info`` has the class of every node, so that all of them were checked."""
    return all(class_of(prompt, node_id) in object_info for node_id in prompt)


def start_in_words(ahead: Optional[int]) -> str:
    """What happens to a run that was started; ``ahead`` is how many prompts come first."""
    if not ahead:
        return "execution started"
    return f"queued, {ahead} ahead"


def name_of_node(fields: JsonObject) -> Optional[str]:
    """How a request names a node: by its id, or else by its title; None if it names none."""
    name: Optional[str] = fields.get("node_id", fields.get("title"))
    return name


def split_prompt_body(fields: JsonObject) -> Tuple[Optional[Prompt], JsonObject]:
    """The prompt in a body of POST /prompt, and ComfyUI's other fields.

    The body is as ComfyUI has it, or just a workflow in API format. For an empty one, the prompt is
    None. Raises HttpError 400 for any other body: the held workflow must not run in place of what
    was sent.
    """
    if not fields:
        return None, {}
    strays = [name for name, entry in fields.items() if not is_node(entry)]
    if not strays:
        return dict(fields), {}
    if "prompt" in fields:
        check_types(fields, {"prompt": dict, "prompt_id": str, "extra_data": dict})
        extra = {key: fields[key] for key in fields if key not in ("prompt", "client_id")}
        return fields["prompt"], extra

    if has_nodes(fields):
        stray = quote_name(strays[0])
        message = f"The entry {stray} of the workflow in the body is not a node with a class_type."
        raise HttpError(400, "invalid_prompt", message)
    listed = ", ".join(quote_name(name) for name in strays[:3])
    message = (
        f'The body has {listed}, but not the field "prompt". Send {{"prompt": …}}, a '
        "workflow in API format alone, or no body, which runs the held workflow. "
        "PUT /workflow takes a workflow in any format."
    )
    raise HttpError(400, "missing_field", message)


def check_prompt_request(prompt: JsonObject, extra: JsonObject) -> None:
    """Raises HttpError 400 for what ComfyUI would answer with 500, or for an odd prompt_id."""
    is_number_fine = isinstance(extra.get("number", 0), (int, float))
    are_targets_fine = isinstance(extra.get("partial_execution_targets", []), list)
    if not is_number_fine or not are_targets_fine:
        message = "number must be a number, partial_execution_targets a list."
        raise HttpError(400, "wrong_type", message)
    if "prompt_id" in extra and not _is_uuid(extra["prompt_id"]):
        message = "The prompt_id must be a UUID in lower case."
        raise HttpError(400, "invalid_prompt_id", message)
    for node in prompt.values():
        if not isinstance(node, dict) or not isinstance(node.get("inputs"), dict):
            message = "Every node needs a class_type and inputs."
            raise HttpError(400, "invalid_prompt", message)
