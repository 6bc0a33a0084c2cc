"""The official openai package draws with the held workflow, and so do the bodies that chat programs send.

The bodies are written down from the sources of the programs: what they send, not their code.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import threading
import urllib.request
import uuid
from typing import Any, Dict, Iterator, Optional, Tuple

import pytest
from served import PNG, TEXTS, Json, Middleware, submitted
from support import FAST, ROOT, node, wait_until
from test_service_openai import EDITING, INPAINTING, prompt_of, slow_with_text

from comfyui_runner.simulator import Simulator, draw

pytestmark = pytest.mark.long
openai = pytest.importorskip("openai")  # it needs Python 3.10

FAILING = {
    **TEXTS,
    "7": node("FailNode", "Broken", message="out of luck", image=["6", 0]),
    "8": node("SaveImage", "Save", filename_prefix="x", images=["7", 0]),
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: Any) -> Iterator[Tuple[Any, Middleware]]:
    """A simulator, and a service with a token."""
    path = tmp_path_factory.mktemp("openai") / "fox.json"
    path.write_text(json.dumps(TEXTS), encoding="utf-8")
    with Simulator() as simulator:
        arguments = ["--server", simulator.url, "--token", "sesame", str(path)]
        service = Middleware(arguments, {}, FAST._replace(cancel=1.0))
        right = {"Authorization": "Bearer sesame"}
        wait_until(lambda: service.call("GET", "/status", headers=right).json["comfyui"]["connected"])
        yield simulator, service
        assert service.stop() == 0


@pytest.fixture
def service(running: Tuple[Any, Middleware]) -> Middleware:
    hold(running[1], TEXTS)
    return running[1]


@pytest.fixture
def comfyui(running: Tuple[Any, Middleware]) -> Any:
    return running[0]


@pytest.fixture
def client(service: Middleware) -> Iterator[Any]:
    """A client as a user makes it: with the retries that it has by default."""
    with openai.OpenAI(base_url=f"http://127.0.0.1:{service.port}/v1", api_key="sesame") as made:
        yield made


def hold(service: Middleware, prompt: Json) -> None:
    answer = service.call("PUT", "/workflow?name=fox.json", prompt, {"Authorization": "Bearer sesame"})
    assert answer.status == 200, answer


def count_runs(comfyui: Any) -> int:
    """The runs that ComfyUI has finished."""
    return len(submitted(comfyui))


# -- the official package --------------------------------------------------------------------------


def test_it_generates(client: Any) -> None:
    answer = client.images.generate(model="gpt-image-2", prompt="a fox", n=2, size="512x384", quality="high")
    made_from = [prompt_of(base64.b64decode(image.b64_json)) for image in answer.data]
    assert [prompt["2"]["inputs"]["text"] for prompt in made_from] == ["a fox", "a fox"]
    assert made_from[0]["4"]["inputs"]["width"] == 512
    assert made_from[0]["5"]["inputs"]["seed"] != made_from[1]["5"]["inputs"]["seed"]
    assert (answer.output_format, answer.usage) == ("png", None)
    assert answer.created > 0


def test_it_passes_our_extensions(client: Any) -> None:
    extensions = {"seed": 7, "negative_prompt": "a dog", "5.steps": 3}
    answer = client.images.generate(prompt="a fox", extra_body=extensions)
    made_from = prompt_of(base64.b64decode(answer.data[0].b64_json))
    assert (made_from["5"]["inputs"]["seed"], made_from["5"]["inputs"]["steps"]) == (7, 3)
    assert made_from["3"]["inputs"]["text"] == "a dog"


def test_its_urls_need_no_key(client: Any) -> None:
    answer = client.images.generate(prompt="a fox", response_format="url")
    assert answer.data[0].b64_json is None
    with urllib.request.urlopen(answer.data[0].url, timeout=10) as picture:
        assert picture.headers["Content-Type"] == "image/png"
        assert prompt_of(picture.read())["2"]["inputs"]["text"] == "a fox"


def test_it_edits(client: Any, service: Middleware) -> None:
    hold(service, EDITING)
    sent = io.BytesIO(draw(48, 32, 7, ["E"]))
    sent.name = "bär.png"
    (image,) = client.images.edit(image=sent, prompt="a fox in the snow").data
    picture = base64.b64decode(image.b64_json)
    assert picture[16:24] == b"\0\0\0\x30\0\0\0\x20"
    assert prompt_of(picture)["3"]["inputs"]["text"] == "a fox in the snow"


def test_it_edits_with_a_list_and_a_mask(client: Any, service: Middleware) -> None:
    hold(service, INPAINTING)
    photo, mask = ("photo.png", PNG, "image/png"), ("mask.png", draw(8, 8, 1, ["M"]), "image/png")
    answer = client.images.edit(image=[photo], mask=mask, prompt="a fox", n=2)
    made_from = prompt_of(base64.b64decode(answer.data[1].b64_json))
    assert made_from["11"]["inputs"]["image"].startswith("photo")
    assert made_from["12"]["inputs"]["image"].startswith("mask")


def test_the_example_of_the_document_works(
    make_middleware: Any, make_simulator: Any, tmp_path: Any, monkeypatch: Any
) -> None:
    service = make_middleware(make_simulator(), prompt=TEXTS)  # without a token
    with open(os.path.join(ROOT, "docs", "OPENAI.md"), encoding="utf-8") as file:
        (example,) = re.findall(r"(?ms)^```python\n(.*?)^```$", file.read())
    monkeypatch.chdir(tmp_path)
    exec(compile(example.replace("127.0.0.1:8189", f"127.0.0.1:{service.port}"), "OPENAI.md", "exec"), {})
    for name in ("fox0.png", "fox1.png"):
        made_from = prompt_of((tmp_path / name).read_bytes())
        assert made_from["2"]["inputs"]["text"] == "a fox in the snow"
        assert made_from["3"]["inputs"]["text"] == "blurry"


def test_it_lists_the_workflow_as_a_model(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["fox"]
    assert client.models.retrieve("fox").owned_by == "comfyui"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-image-2")
    assert caught.value.code == "model_not_found"


def test_its_errors_say_what_is_wrong(client: Any, comfyui: Any) -> None:
    before = count_runs(comfyui)
    with pytest.raises(openai.BadRequestError) as wrong:
        client.images.generate(prompt="a fox", n=11)
    assert (wrong.value.param, wrong.value.code) == ("n", "invalid_value")
    assert "from 1 to 10" in str(wrong.value)
    with pytest.raises(openai.AuthenticationError) as unknown:
        client.with_options(api_key="sk-wrong").images.generate(prompt="a fox")
    assert unknown.value.code == "invalid_api_key"
    with pytest.raises(openai.ConflictError) as nowhere:
        client.images.edit(image=PNG, prompt="a fox")
    assert (nowhere.value.param, nowhere.value.code) == ("image", "no_loader")
    assert count_runs(comfyui) == before


def test_a_node_that_fails_renders_once_although_the_client_repeats_errors(
    client: Any, service: Middleware, comfyui: Any
) -> None:
    assert client.max_retries == 2
    hold(service, FAILING)
    before = count_runs(comfyui)
    with pytest.raises(openai.InternalServerError) as caught:
        client.images.generate(prompt="a fox")
    assert caught.value.code == "node_failed" and "out of luck" in str(caught.value)
    assert count_runs(comfyui) == before + 1


def test_a_cancelled_run_is_not_started_again(client: Any, service: Middleware, comfyui: Any) -> None:
    hold(service, slow_with_text())
    before = count_runs(comfyui)

    def cancel_when_running() -> None:
        wait_until(lambda: service.service.records.running(), what="the run")
        service.call("POST", "/interrupt", {}, {"Authorization": "Bearer sesame"})

    thread = threading.Thread(target=cancel_when_running)
    thread.start()
    with pytest.raises(openai.ConflictError) as caught:
        client.images.generate(prompt="a fox")
    thread.join(20)
    assert caught.value.code == "run_cancelled"
    assert count_runs(comfyui) == before + 1


def test_a_client_that_gives_up_cancels_its_run(client: Any, service: Middleware) -> None:
    hold(service, slow_with_text())
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=1.5, max_retries=0).images.generate(prompt="a fox")
    wait_until(lambda: not service.service.records.not_over(), what="the end of the run")


def test_its_asynchronous_client_works_too(service: Middleware) -> None:
    async def generate() -> Any:
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{service.port}/v1", api_key="sesame") as client:
            return await client.images.generate(prompt="a fox")

    assert base64.b64decode(asyncio.run(generate()).data[0].b64_json).startswith(b"\x89PNG")


# -- what chat programs send -----------------------------------------------------------------------


def post(service: Middleware, path: str, body: Any, **headers: str) -> Json:
    sent = {"Authorization": "Bearer sesame", **{name.replace("_", "-"): value for name, value in headers.items()}}
    answer = service.call("POST", path, body, sent)
    assert answer.status == 200, answer
    shown: Json = answer.json
    return shown


def form_of(fields: Dict[str, str], *files: Tuple[str, str, str, bytes], by: str) -> Tuple[bytes, str]:
    """A form as aiohttp writes it for Open WebUI (``by``), or as form-data does for LibreChat."""
    boundary = uuid.uuid4().hex
    pieces = []
    for name, text in fields.items():
        head = f'Content-Disposition: form-data; name="{name}"'
        if by == "aiohttp":
            head = f"Content-Type: text/plain; charset=utf-8\r\n{head}\r\nContent-Length: {len(text.encode())}"
        pieces.append((head, text.encode()))
    for name, filename, type_, content in files:
        disposition = f'Content-Disposition: form-data; name="{name}"; filename="{filename}"'
        pieces.append((f"{disposition}\r\nContent-Type: {type_}", content))
    parts = [f"--{boundary}\r\n{head}\r\n\r\n".encode() + content + b"\r\n" for head, content in pieces]
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


@pytest.mark.parametrize(("model", "response_format"), [("dall-e-2", "b64_json"), ("gpt-image-1", None)])
def test_open_webui_generates(service: Middleware, model: str, response_format: Optional[str]) -> None:
    # backend/open_webui/routers/images.py, image_generations(): response_format is left out for gpt-image models,
    # and it takes "url" before "b64_json" where both are there; URLs of this machine it refuses to fetch.
    body = {"model": model, "prompt": "a fox", "n": 1, "size": "512x512"}
    if response_format:
        body["response_format"] = response_format
    (image,) = post(service, "/v1/images/generations", body, Content_Type="application/json")["data"]
    assert list(image) == ["b64_json"]
    assert prompt_of(base64.b64decode(image["b64_json"]))["2"]["inputs"]["text"] == "a fox"


@pytest.mark.parametrize("name", ["image", "image[]"])
def test_open_webui_edits(service: Middleware, name: str) -> None:
    # image_edits(): a form of aiohttp; one picture is "image", a list "image[]"; the names are UUIDs
    hold(service, EDITING)
    fields = {"model": "None", "prompt": "a fox", "size": "512x512", "response_format": "b64_json"}
    file = (name, f"{uuid.uuid4()}.png", "image/png", draw(48, 32, 7, [name]))
    body, type_ = form_of(fields, file, by="aiohttp")
    (image,) = post(service, "/v1/images/edits", body, Content_Type=type_)["data"]
    assert base64.b64decode(image["b64_json"])[16:24] == b"\0\0\0\x30\0\0\0\x20"


def test_librechat_generates_and_edits(service: Middleware) -> None:
    # api/app/clients/tools/structured/OpenAIImageTools.js: the openai package for Node, and form-data with axios;
    # it shows data:image/{output_format} of the answer
    body = {
        "model": "gpt-image-2.5-flare", "prompt": "a fox", "n": 1, "background": "auto", "output_format": "png",
        "quality": "auto", "size": "auto", "response_format": "b64_json",
    }  # fmt: skip
    answer = post(service, "/v1/images/generations", body, Content_Type="application/json")
    assert answer["output_format"] == "png" and answer["data"][0]["b64_json"]
    hold(service, EDITING)
    fields = {"model": "gpt-image-1", "prompt": "a fox", "quality": "auto", "size": "auto", "output_format": "png"}
    form, type_ = form_of(fields, ("image[]", "cat.png", "image/png", PNG), by="form-data")
    assert post(service, "/v1/images/edits", form, Content_Type=type_)["data"][0]["b64_json"]


def test_quick_image_gen_of_sillytavern_generates(make_middleware: Any, make_simulator: Any) -> None:
    # platberlitz/sillytavern-image-gen, lib/provider-adapters.js, buildGptImagePayload(): sent by the browser,
    # from the page of SillyTavern, which asks first (CORS preflight)
    page = "http://127.0.0.1:8000"
    service = make_middleware(make_simulator(), "--allow-origin", page, prompt=TEXTS)
    wanted = {"Origin": page, "Access-Control-Request-Headers": "authorization,content-type"}
    asked = service.call("OPTIONS", "/v1/images/generations", headers=wanted)
    assert asked.status == 204 and "authorization" in asked.headers["access-control-allow-headers"]
    assert asked.headers["access-control-allow-origin"] == page
    body = {"model": "gpt-image-1", "prompt": "a fox", "size": "1024x1024", "n": 1, "quality": "high"}
    headers = {
        "Origin": page, "Content-Type": "application/json", "Authorization": "Bearer any",
        "User-Agent": "Mozilla/5.0", "Accept-Language": "en", "Sec-Fetch-Site": "same-site",
    }  # fmt: skip
    answer = service.call("POST", "/v1/images/generations", body, headers)
    assert answer.status == 200 and answer.headers["access-control-allow-origin"] == page
