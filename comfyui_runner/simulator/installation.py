"""A simulated installation: version, settings and files, which a restart keeps."""

from __future__ import annotations

import collections
import os
import re
import threading
from typing import Callable

from comfyui_runner.simulator.faults import Faults
from comfyui_runner.simulator.folders import guess_media_type, path_inside, split_annotation
from comfyui_runner.simulator.prompts import Json
from comfyui_runner.simulator.versions import has_behavior

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

#: How many requests are remembered for tests to look at.
REMEMBERED_REQUESTS = 10000


class Installation:
    """What outlives a restart: version, settings, files, faults, and the counts for tests.

    Args:
        version: The ComfyUI version to play: any text, but see versions.SINCE.
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
        self.version = version
        self.host = host
        self.port = port
        self.is_temporary = root is None
        self.root = str(root or "")
        self.base_path = ("/" + base_path.strip("/")).rstrip("/")
        self.step_seconds = step_seconds
        self.token = token
        self.faults = faults or Faults()
        self.log = log or ignore_line
        self.previews = previews
        self.max_upload_size = max_upload_size
        #: Held while a file gets its name.
        self.naming = threading.Lock()
        #: (method, path without query and base path) of the last requests.
        self.asked: collections.deque[tuple[str, str]]
        self.asked = collections.deque(maxlen=REMEMBERED_REQUESTS)
        #: The same requests as they came: method, path with query, headers.
        self.received: collections.deque[tuple[str, str, dict[str, str]]]
        self.received = collections.deque(maxlen=REMEMBERED_REQUESTS)
        #: The keys that came with the prompts of partner nodes that ran.
        self.partner_keys: list[str] = []
        #: How many times it was asked to unload its models.
        self.unloads = 0
        #: prompt_id -> how many times it was begun.
        self.executions: dict[str, int] = {}
        #: prompt_id -> the nodes that really ran.
        self.executed_nodes: dict[str, list[str]] = {}

    @property
    def url(self) -> str:
        """Where it is, known after start()."""
        host = self.host
        if ":" in host:
            host = f"[{host}]"
        return f"http://{host}:{self.port}{self.base_path}"

    @property
    def requests(self) -> list[tuple[str, str]]:
        """(method, path without query and base path) of the last 10000 requests."""
        return list(self.asked)

    def has(self, behavior: str) -> bool:
        """Whether the version that is played has a behavior of versions.SINCE."""
        return has_behavior(self.version, behavior)

    def features(self) -> Json:
        """The feature flags of the server."""
        flags: Json = {"supports_preview_metadata": True, "max_upload_size": self.max_upload_size}
        if self.has("jobs"):
            flags["supports_model_type_tags"] = True
            flags["node_replacements"] = True
            flags["assets"] = False
            flags["extension"] = {"manager": {"supports_v4": True}}
        return flags

    # Files.

    def folder(self, name: str, subfolder: str = "") -> str:
        """The path of input, output or temp; raises PermissionError for a subfolder outside."""
        path = os.path.join(self.root, name)
        if not subfolder:
            return path
        return path_inside(path, subfolder)

    def annotated(self, name: str) -> str:
        """The path of a file that a loader names, perhaps as "name [output]"; "" if outside."""
        plain_name, folder = split_annotation(name, "input")
        try:
            return path_inside(self.folder(folder), plain_name)
        except PermissionError:
            return ""

    def options(self, what: str) -> list[str]:
        """The models of a folder, or the files in input/ that are "image", "audio" or "video"."""
        if what in MODELS:
            return MODELS[what]
        names = sorted(os.listdir(self.folder("input")))
        return [name for name in names if guess_media_type(name).startswith(what + "/")]

    def save(self, folder: str, prefix: str, content: bytes, suffix: str = ".png") -> Json:
        """Write PREFIX_00001_.png, or with the next number.

        Returns the file's entry in a node's outputs. Raises PermissionError if it were outside.
        """
        subfolder, stem = os.path.split(os.path.normpath(prefix))
        path = path_inside(self.folder(folder), subfolder)
        numbered = re.compile(re.escape(stem) + r"_(\d+)_")
        with self.naming:
            os.makedirs(path, exist_ok=True)
            taken = [numbered.match(name) for name in os.listdir(path)]
            number = 1 + max((int(match[1]) for match in taken if match), default=0)
            name = f"{stem}_{number:05}_{suffix}"
            with open(os.path.join(path, name), "wb") as file:
                file.write(content)
        return {"filename": name, "subfolder": subfolder.replace("\\", "/"), "type": folder}


def ignore_line(line: str) -> None:
    """The log of an installation that has none."""
