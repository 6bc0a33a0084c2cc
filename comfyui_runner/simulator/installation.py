"""A simulated installation: version, settings and files, which a restart keeps."""

from __future__ import annotations

import collections
import mimetypes
import os
import re
import threading
from typing import Callable

from comfyui_runner.simulator.faults import SINCE, Faults
from comfyui_runner.simulator.prompts import Json

#: Model folders and what seems to be in them; 24 loras, since over 20 options are not listed back.
MODELS: dict[str, list[str]] = {
    "checkpoints": [
        "random_sd15.safetensors",
        "random_sdxl.safetensors",
        "sd_xl_base_1.0.safetensors",
        "v1-5-pruned-emaonly.safetensors",
    ],
    "configs": ["v1-inference.yaml"],
    "loras": [f"style_{number:02}.safetensors" for number in range(1, 25)],
    "vae": ["pixel_space", "sdxl_vae.safetensors"],
    "text_encoders": ["clip_l.safetensors", "t5xxl_fp16.safetensors"],
    "diffusion_models": ["flux1-dev.safetensors"],
    "embeddings": ["easynegative.safetensors"],
    "controlnet": [],
    "upscale_models": [],
}


#: The types of files, the same on every system and for every Python.
MIME = mimetypes.MimeTypes()
for _suffix, _kind in (
    ("webp", "image/webp"),
    ("flac", "audio/flac"),
    ("glb", "model/gltf-binary"),
):
    MIME.add_type(_kind, "." + _suffix)


FOLDERS = ("input", "output", "temp")
basename = os.path.basename


def annotation(name: str, kind: str) -> tuple[str, str]:
    """Split "name [output]"; without such an ending it is of the folder `kind`."""
    for each in FOLDERS:
        if name.endswith(f"[{each}]"):
            return name[: -len(each) - 2].rstrip(), each
    return name, kind


def inside(folder: str, name: str) -> str:
    """The path of a file; raises PermissionError if it, or what it links to, is outside."""
    folder = os.path.realpath(folder)
    path = os.path.realpath(os.path.join(folder, name))
    if not path.startswith(os.path.join(folder, "")) and path != folder:
        raise PermissionError("outside of the folder: " + name)
    return path


class Installation:
    """What outlives a restart: version, settings, files, faults, and the counts that tests look at.

    Args:
        version: The ComfyUI version to play (see SINCE).
        host, port: Where to listen; port 0 takes a free one.
        root: The folder of input/, output/ and temp/; if None, a temporary one until stop().
        base_path: Everything is below it, as behind a proxy.
        step_seconds: How long a sampler step takes.
        token: If set, "Authorization: Bearer TOKEN" (or Basic with it as password) is needed.
        faults: What goes wrong.
        log: Is called with a line for each request and with tracebacks.
        previews: Samplers send previews without being asked.
        max_upload_size: The limit for the body of a request.
    """

    def __init__(
        self,
        *,
        version: str = "0.33.0",
        host: str = "127.0.0.1",
        port: int = 0,
        root: str | None = None,
        base_path: str = "",
        step_seconds: float = 0.0,
        token: str | None = None,
        faults: Faults | None = None,
        log: Callable[[str], None] | None = None,
        previews: bool = False,
        max_upload_size: int = 100 << 20,
    ) -> None:
        self.version, self.host, self.port, self.token = version, host, port, token
        self.base_path = ("/" + base_path.strip("/")).rstrip("/")
        self.step_seconds, self.previews = step_seconds, previews
        self.max_upload_size = max_upload_size
        self.faults = faults or Faults()
        self.log = log or (lambda line: None)
        self.asked: collections.deque[tuple[str, str]] = collections.deque(maxlen=10000)
        #: The same requests as they came: method, path with query, headers.
        self.received: collections.deque[tuple[str, str, dict[str, str]]] = collections.deque(maxlen=10000)
        #: prompt_id -> how many times it was begun, and the nodes that really ran.
        self.executions: dict[str, int] = {}
        self.executed_nodes: dict[str, list[str]] = {}
        self.files = threading.Lock()
        self.root = str(root or "")
        self._temporary = root is None
        self._release = tuple(map(int, re.findall(r"\d+", version)[:3]))

    @property
    def url(self) -> str:
        """Where it is, known after start()."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}{self.base_path}"

    @property
    def requests(self) -> list[tuple[str, str]]:
        """(method, path without query and base path) of the last 10000 requests."""
        return list(self.asked)

    def has(self, behaviour: str) -> bool:
        """Whether the version that is played has a behaviour of SINCE."""
        return self._release >= SINCE[behaviour]

    def features(self) -> Json:
        """The feature flags of the server."""
        flags: Json = {"supports_preview_metadata": True, "max_upload_size": self.max_upload_size}
        if self.has("jobs"):
            flags.update(supports_model_type_tags=True, node_replacements=True, assets=False)
            flags["extension"] = {"manager": {"supports_v4": True}}
        return flags

    # Files.

    def folder(self, kind: str, subfolder: str = "") -> str:
        """The path of a folder; raises PermissionError for a subfolder outside of it."""
        path = os.path.join(self.root, kind)
        return inside(path, subfolder) if subfolder else path

    def annotated(self, name: str) -> str:
        """The path of a file that a loader names, perhaps as "name [output]"; "" if outside."""
        plain, kind = annotation(name, "input")
        try:
            return inside(self.folder(kind), plain)
        except PermissionError:
            return ""

    def options(self, kind: str) -> list[str]:
        """The models of a folder, or the image, audio or video files in input/."""
        if kind in MODELS:
            return MODELS[kind]
        names = sorted(os.listdir(self.folder("input")))
        return [name for name in names if str(MIME.guess_type(name)[0]).startswith(kind)]

    def save(self, kind: str, prefix: str, data: bytes, suffix: str = ".png") -> Json:
        """Write PREFIX_00001_.png, or with the next number, and return its entry for a ui."""
        subfolder, stem = os.path.split(os.path.normpath(prefix))
        folder = inside(self.folder(kind), subfolder)
        with self.files:
            os.makedirs(folder, exist_ok=True)
            taken = re.compile(re.escape(stem) + r"_(\d+)_")
            numbers = [int(m[1]) for m in map(taken.match, os.listdir(folder)) if m]
            name = f"{stem}_{max(numbers, default=0) + 1:05}_{suffix}"
            with open(os.path.join(folder, name), "wb") as file:
                file.write(data)
        return {"filename": name, "subfolder": subfolder.replace("\\", "/"), "type": kind}
