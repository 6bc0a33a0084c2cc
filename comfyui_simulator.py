#!/usr/bin/env python3
# /// script
# requires-python = ">=3.8"
# dependencies = ["websockets>=13.1"]
# ///
"""A stand-in for a ComfyUI server: no GPU, no models, and every picture says SIMULATED.

It answers the routes and sends the WebSocket messages of a real server, in the order of a real
server, so that a client can be shown, tested and written without one. Usage:

    python comfyui_simulator.py --port 8188 --step-seconds 0.15

    with Simulator(version="0.3.64") as server:
        requests.get(server.url + "/queue")
        server.faults.drop_events = frozenset({"execution_success"})

Nothing is computed: a node only passes on the size and the seed of a picture. ``Simulator`` plays
the server versions told apart in ``SINCE``, and misbehaves as asked in ``Faults``.

Sections: settings and faults; pictures; nodes; validation; running prompts; jobs; sockets; HTTP;
the simulator; command line.
"""

from __future__ import annotations

import argparse
import base64
import collections
import dataclasses
import hashlib
import heapq
import http.client
import http.server
import json
import mimetypes
import os
import re
import shutil
import signal
import socket
import socketserver
import struct
import sys
import tempfile
import threading
import time
import traceback
import urllib.parse
import uuid
import zlib
from typing import Any, Callable, Dict, Iterable, NamedTuple, Optional, Sequence, Tuple

Json = Dict[str, Any]

# ------------------------------------------------------------------------------------------------
# Settings and faults
# ------------------------------------------------------------------------------------------------

#: The first version that has a behaviour; "0.0.0" stands for a server of early 2024.
SINCE: dict[str, tuple[int, ...]] = {
    "released": (0, 0, 1),  # /api, execution_success, timestamps, display_node, history meta
    "progress_state": (0, 3, 45),  # also feature flags, binary type 4, the client's prompt_id
    "partial_execution": (0, 3, 48),
    "targeted_interrupt": (0, 3, 57),  # older servers ignore the body: whatever runs is stopped
    "jobs": (0, 26),  # also UUID-only prompt ids, create_time, missing_node_type
}


@dataclasses.dataclass
class Faults:
    """What goes wrong; every default means "nothing". May be changed while the server runs.

    A path in the mappings is without base path and ``/api``; "/history" also covers "/history/ID".
    """

    #: Types of WebSocket messages that are never sent.
    drop_events: frozenset[str] = frozenset()
    #: The ``executing`` with ``node: null`` that ends a run is not sent.
    drop_end: bool = False
    #: Seconds from the end of a run (events sent, queue left) to its entry in /history.
    history_delay: float = 0.0
    #: Finished prompts never show up in /history.
    history_evict: bool = False
    #: One is used up by each POST /prompt: "ok", "500", "502", "503", "before" (cut, not
    #: accepted), "after" (accepted, then cut), "late:SECONDS" (cut, accepted that much later).
    lose_post: list[str] = dataclasses.field(default_factory=list)
    #: A client_id that connects again gets its first status and then never anything, as when
    #: ComfyUI's handler of the old socket ends late and unregisters the new one.
    deaf_reconnect: bool = False
    #: Each socket is cut after that many messages.
    cut_ws_after: int | None = None
    #: In every run the first node that reports progress hangs for that many seconds.
    stall: float | None = None
    #: A run also sends messages that no client can use.
    noise: bool = False
    #: A run also sends one text frame and one preview frame padded by that many bytes.
    big_frame: int = 0
    #: Path -> status that is answered with a text body.
    http_status: dict[str, int] = dataclasses.field(default_factory=dict)
    #: Path -> seconds before the answer.
    http_hang: dict[str, float] = dataclasses.field(default_factory=dict)
    #: Interrupts are accepted and ignored, as by a node that never checks.
    ignore_interrupt: bool = False
    #: Path -> number of requests whose connection is cut without an answer.
    cut_http: dict[str, int] = dataclasses.field(default_factory=dict)


# ------------------------------------------------------------------------------------------------
# Pictures
# ------------------------------------------------------------------------------------------------


class Image(NamedTuple):
    """All that is known of a simulated picture (or latent): nothing else is ever computed."""

    width: int
    height: int
    seed: int
    batch: int = 1


#: A 3x5 font: one octal digit per row, its three bits are the pixels.
_GLYPHS = """25755 65656 34443 65556 74647 74644 34553 55755 72227 11152 55655 44447 57755 65555
    25552 65644 25573 65655 34216 72222 55557 55552 55775 55255 55222 71247 75557 26227 71747
    71717 55711 74717 74757 71111 75757 75717 00002 02020 00700 11244 00007 00000"""
_FONT = dict(zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.:-/_ ", _GLYPHS.split()))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def draw(width: int, height: int, seed: int, lines: Sequence[str], texts: Iterable[tuple[str, str]] = ()) -> bytes:
    """A PNG with `lines` written on colours that depend on `seed`; `texts` become tEXt chunks."""
    colours = hashlib.sha256(str(seed).encode()).digest()
    top, bottom = ([part // 2 for part in colours[at : at + 3]] for at in (0, 3))
    scale = min(width // (4 * max(map(len, lines)) + 2), height // (7 * len(lines) + 2))
    scale = max(1, scale)
    first = (height - 7 * scale * len(lines)) // 2
    packer, packed = zlib.compressobj(1), []
    for y in range(height):
        paper = bytes(a + (b - a) * y // height for a, b in zip(top, bottom))
        row = paper * width
        line, within = divmod((y - first) // scale, 7)
        if 0 <= line < len(lines) and within < 5:
            glyphs = (_FONT.get(char, "77777")[within] for char in lines[line].upper())
            bits = "".join(f"{int(digit, 8):03b}0" for digit in glyphs)
            ink = b"".join((b"\xff\xff\xff" if bit == "1" else paper) * scale for bit in bits)
            left = max(0, (width - len(bits) * scale) // 2) * 3
            row = (row[:left] + ink + row[left + len(ink) :])[: 3 * width]
        packed.append(packer.compress(b"\0" + row))
    packed.append(packer.flush())
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))]
    for key, text in (("Software", "ComfyUI simulator"), *texts):
        chunks.append((b"tEXt", key.encode("latin-1", "replace") + b"\0" + text.encode("ascii")))
    chunks += [(b"IDAT", b"".join(packed)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def label(name: str, size: int = 0) -> bytes:
    """Content for a file that is not a picture: it says what it is, then is padded to `size`."""
    return f"SIMULATED: {name} of the ComfyUI simulator\n".encode().ljust(size, b".")


def measure(path: str) -> Image:
    """Size and seed for an image file: of a PNG its own size, else 512 x 512."""
    with open(path, "rb") as file:
        data = file.read()
    width, height = 512, 512
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
    return Image(width, height, zlib.crc32(data))


# ------------------------------------------------------------------------------------------------
# Nodes
# ------------------------------------------------------------------------------------------------

Spec = Tuple[Any, Json]  # (type or list of options, settings), as in /object_info
Ran = Tuple[Tuple[Any, ...], Optional[Json]]  # (outputs, ui)
Run = Callable[["Running", Json], Ran]


class Node:
    """A node class: what /object_info tells of it, and what it does with its inputs."""

    def __init__(self, row: str) -> None:
        head, outputs, self.category, self.display, inputs, action = row.split("|")
        self.name, self.output_node = head.rstrip("!"), head.endswith("!")
        self.outputs = [entry.partition(":")[0] for entry in outputs.split()]
        self.run = _ACTIONS.get(action) or _pass(action[1:], self.outputs)
        self.output_names = [entry.partition(":")[2] or entry for entry in outputs.split()]
        self.specs: dict[str, Spec] = {}
        self.optional: set[str] = set()
        for entry in inputs.split():
            key, _, kind = entry.partition(":")
            if key.endswith("?"):
                self.optional.add(key[:-1])
            self.specs[key.rstrip("?")] = _SPECS.get(kind, (kind, {}))

    def inputs(self, sim: Simulator) -> dict[str, Spec]:
        """The specs with lists of files filled in: "@loras", or "@image" of the input folder."""
        return {
            key: (sim.options(kind[1:]) if kind[0][0] == "@" else kind, settings)
            for key, (kind, settings) in self.specs.items()
        }

    def info(self, sim: Simulator) -> Json:
        """The entry in /object_info."""
        specs: dict[str, Json] = {"required": {}}
        for key, (kind, settings) in self.inputs(sim).items():
            group = specs.setdefault("optional" if key in self.optional else "required", {})
            group[key] = [kind, settings] if settings else [kind]
        info: Json = {
            "input": specs,
            "input_order": {group: list(entries) for group, entries in specs.items()},
            "output": self.outputs,
            "output_is_list": [False] * len(self.outputs),
            "output_name": self.output_names,
            "name": self.name,
            "display_name": self.display,
            "description": "",
            "python_module": "comfyui_simulator" if self.category == "test" else "nodes",
            "category": self.category,
            "output_node": self.output_node,
        }
        if sim.has("jobs"):
            info.update(is_input_list=False, has_intermediate_output=False, search_aliases=[])
        return info


def _number(kind: str, default: float, low: float, high: float, **more: Any) -> Spec:
    return kind, {"default": default, "min": low, "max": high, **more}


def _text(default: str | None = None, **more: Any) -> Spec:
    return "STRING", more if default is None else {"default": default, **more}


_SAMPLERS = """euler euler_cfg_pp euler_ancestral euler_ancestral_cfg_pp heun heunpp2 exp_heun_2_x0
    exp_heun_2_x0_sde dpm_2 dpm_2_ancestral lms dpm_fast dpm_adaptive dpmpp_2s_ancestral
    dpmpp_2s_ancestral_cfg_pp dpmpp_sde dpmpp_sde_gpu dpmpp_2m dpmpp_2m_cfg_pp dpmpp_2m_sde
    dpmpp_2m_sde_gpu dpmpp_2m_sde_heun dpmpp_2m_sde_heun_gpu dpmpp_3m_sde dpmpp_3m_sde_gpu ddpm lcm
    ipndm ipndm_v deis res_multistep res_multistep_cfg_pp res_multistep_ancestral
    res_multistep_ancestral_cfg_pp gradient_estimation gradient_estimation_cfg_pp er_sde seeds_2
    seeds_3 sa_solver sa_solver_pece ddim uni_pc uni_pc_bh2"""
_SCHEDULERS = """simple sgm_uniform karras exponential ddim_uniform beta normal linear_quadratic
    kl_optimal"""
_DTYPES = "default fp8_e4m3fn fp8_e4m3fn_fast fp8_e5m2"
_AUTO = {"default": "auto", "multiselect": False}

#: The inputs in the table of nodes; a name that is not here is a type without settings.
_SPECS: dict[str, Spec] = {
    "add_noise": (["enable", "disable"], {"advanced": True}),
    "audio": ("@audio", {"multiselect": False, "audio_upload": True}),
    "batch": _number("INT", 1, 1, 4096),
    "cfg": _number("FLOAT", 8.0, 0.0, 100.0, step=0.1, round=0.01),
    "codec": ("COMBO", {**_AUTO, "options": ["auto", "h264"]}),
    "color": _number("INT", 0, 0, 0xFFFFFF, step=1, display="color"),
    "denoise": _number("FLOAT", 1.0, 0.0, 1.0, step=0.01),
    "format": ("COMBO", {**_AUTO, "options": ["auto", "mp4"]}),
    "image": ("@image", {"image_upload": True}),
    "latent_side": _number("INT", 512, 16, 16384, step=8),
    "leftover": (["disable", "enable"], {"advanced": True}),
    "message": _text("boom"),
    "preview": ("BOOLEAN", {"default": False}),
    "samplers": (_SAMPLERS.split(), {}),
    "schedulers": (_SCHEDULERS.split(), {}),
    "seconds": _number("FLOAT", 10.0, 0.0, 3600.0),
    "seed": _number("INT", 0, 0, 2**64 - 1, control_after_generate=True),
    "side": _number("INT", 512, 1, 16384, step=1),
    "side0": _number("INT", 512, 0, 16384, step=1),
    "slow_steps": _number("INT", 20, 1, 1000000),
    "start": _number("INT", 0, 0, 10000, advanced=True),
    "steps": _number("INT", 20, 1, 10000),
    "strength": _number("FLOAT", 1.0, -100.0, 100.0, step=0.01),
    "stop": _number("INT", 10000, 0, 10000, advanced=True),
    "text": _text(multiline=True),
    "to_audio": _text("audio/ComfyUI", multiline=False),
    "to_image": _text("ComfyUI"),
    "to_video": _text("video/ComfyUI", multiline=False),
    "words": _text(multiline=True, dynamicPrompts=True),
    "upscale": (["nearest-exact", "bilinear", "area", "bicubic", "lanczos"], {}),
    "crop": (["disabled", "center"], {}),
    "channel": (["alpha", "red", "green", "blue"], {}),
    "video": ("@video", {"multiselect": False, "video_upload": True}),
    "dtype": (_DTYPES.split(), {"advanced": True}),
}

#: Class (! = output node) | outputs, TYPE or TYPE:name | category | title
#: | inputs, ? = optional | action.
#: ComfyUI's own classes, as its /object_info lists them, then those for tests.
_TABLE = """
CheckpointLoaderSimple|MODEL CLIP VAE|model/loaders|Load Checkpoint|ckpt_name:@checkpoints|
CLIPTextEncode|CONDITIONING|model/conditioning|CLIP Text Encode (Prompt)|text:words
  clip:CLIP|=text
EmptyLatentImage|LATENT|model/latent|Empty Latent Image|width:latent_side height:latent_side
  batch_size:batch|empty
KSampler|LATENT|model/sampling|KSampler|model:MODEL seed:seed steps:steps cfg:cfg
  sampler_name:samplers scheduler:schedulers positive:CONDITIONING negative:CONDITIONING
  latent_image:LATENT denoise:denoise|sample
KSamplerAdvanced|LATENT|model/sampling|KSampler (Advanced)|model:MODEL add_noise:add_noise
  noise_seed:seed steps:steps cfg:cfg sampler_name:samplers scheduler:schedulers
  positive:CONDITIONING negative:CONDITIONING latent_image:LATENT start_at_step:start
  end_at_step:stop return_with_leftover_noise:leftover|sample
VAEDecode|IMAGE|model/latent|VAE Decode|samples:LATENT vae:VAE|=samples
VAEEncode|LATENT|model/latent|VAE Encode|pixels:IMAGE vae:VAE|=pixels
VAELoader|VAE|model/loaders|Load VAE|vae_name:@vae|
LoraLoader|MODEL CLIP|model/loaders|Load LoRA (Model and CLIP)|model:MODEL clip:CLIP
  lora_name:@loras strength_model:strength strength_clip:strength|
UNETLoader|MODEL|model/loaders|Load Diffusion Model|unet_name:@diffusion_models
  weight_dtype:dtype|
LoadImage|IMAGE MASK|image|Load Image|image:image|load
LoadImageMask|MASK|image|Load Image (as Mask)|image:image channel:channel|load
SaveImage!|IMAGE:images|image|Save Image|images:IMAGE filename_prefix:to_image|save
PreviewImage!|IMAGE:images|image|Preview Image|images:IMAGE|save
EmptyImage|IMAGE|image|Empty Image|width:side height:side batch_size:batch color:color|empty
ImageScale|IMAGE|image/upscaling|Upscale Image|image:IMAGE upscale_method:upscale width:side0
  height:side0 crop:crop|scale
ImageInvert|IMAGE|image/color|Invert Image Colors|image:IMAGE|=image
ImageBatch|IMAGE|image/batch|Batch Images (DEPRECATED)|image1:IMAGE image2:IMAGE|batch
PreviewAny!|STRING|utilities|Preview as Text|source:*|show
SaveImageWebsocket!||image|Save Image (Websocket)|images:IMAGE|send
LoadAudio|AUDIO|audio|Load Audio|audio:audio|=audio
SaveAudio!|AUDIO:audio|audio|Save Audio (FLAC) (DEPRECATED)|audio:AUDIO
  filename_prefix:to_audio|save_audio
LoadVideo|VIDEO|video|Load Video|file:video|=file
SaveVideo!|VIDEO:video|video|Save Video|video:VIDEO filename_prefix:to_video format:format
  codec:codec|save_video
SlowProgress|IMAGE|test|Slow Progress (test)|steps:slow_steps seconds:seconds seed:seed
  preview:preview|slow
FailNode|IMAGE|test|Fail (test)|message:message image:IMAGE|fail
TextOut!||test|Text Out (test)|text:text|text
SimulatedOutput!||test|Simulated Output (test)|ui:text source?:*|simulate
"""

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


def _pass(name: str, outputs: list[str]) -> Run:
    return lambda running, inputs: ((inputs[name],) if name else tuple(outputs), None)


def _empty(running: Running, inputs: Json) -> Ran:
    seed = inputs.get("color", 0)
    return (Image(inputs["width"], inputs["height"], seed, inputs["batch_size"]),), None


def _sample(running: Running, inputs: Json) -> Ran:
    steps, latent = inputs["steps"], inputs["latent_image"]
    seed = inputs.get("seed", inputs.get("noise_seed"))
    if "end_at_step" in inputs:
        steps = max(0, min(steps, inputs["end_at_step"]) - inputs["start_at_step"])
    for step in range(1, steps + 1):
        running.sleep(running.life.sim.step_seconds)
        running.check()
        running.progress(step, steps, seed if running.previews else None)
    return (latent._replace(seed=seed),), None


def _slow(running: Running, inputs: Json) -> Ran:
    steps, pause = inputs["steps"], inputs["seconds"] / inputs["steps"]
    for step in range(1, steps + 1):
        until = time.monotonic() + pause
        while pause > 0 and time.monotonic() < until:
            running.check()  # more often than once a step, as its original does
            running.sleep(min(0.05, max(0.0, until - time.monotonic())))
        running.check()
        running.progress(step, steps, inputs["seed"] if inputs["preview"] else None)
    return (Image(64, 64, inputs["seed"]),), None


def _scale(running: Running, inputs: Json) -> Ran:
    image = inputs["image"]
    width, height = inputs["width"], inputs["height"]
    width = width or max(1, round(image.width * height / image.height)) if height else width
    height = height or max(1, round(image.height * width / image.width)) if width else height
    return (image._replace(width=width or image.width, height=height or image.height),), None


def _batch(running: Running, inputs: Json) -> Ran:
    image = inputs["image1"]
    return (image._replace(batch=image.batch + inputs["image2"].batch),), None


def _load_image(running: Running, inputs: Json) -> Ran:
    image = measure(running.life.sim.annotated(inputs["image"]))
    return (image, image), None


def _save_image(running: Running, inputs: Json) -> Ran:
    kind = "output" if "filename_prefix" in inputs else "temp"
    prefix = inputs.get("filename_prefix", "ComfyUI_temp_" + uuid.uuid4().hex[:5])
    image = inputs["images"]
    texts = [("prompt", json.dumps(running.job.prompt))]
    for key, value in (running.job.extra_data.get("extra_pnginfo") or {}).items():
        texts.append((key, json.dumps(value)))
    saved = []
    for number in range(image.batch):
        size = f"{image.width}x{image.height}"
        lines = ["SIMULATED", f"SEED {image.seed}", f"{size} NO {number + 1}"]
        data = draw(image.width, image.height, image.seed + number, lines, texts)
        prefix = prefix.replace("%width%", str(image.width)).replace("%height%", str(image.height))
        saved.append(running.life.sim.save(kind, prefix.replace("%batch_num%", str(number)), data))
    return (image,), {"images": saved}


def _send_image(running: Running, inputs: Json) -> Ran:
    image = inputs["images"]
    for number in range(image.batch):
        lines = ["SIMULATED", f"SEED {image.seed}"]
        data = draw(image.width, image.height, image.seed + number, lines)
        running.progress(number + 1, image.batch, data)
    return (), None


def _save_file(media: str, source: str, suffix: str) -> Run:
    def run(running: Running, inputs: Json) -> Ran:
        sim = running.life.sim
        saved = sim.save("output", inputs["filename_prefix"], label(suffix[1:] + " file"), suffix)
        ui = {media: [saved], "animated": [True]} if media == "images" else {media: [saved]}
        return (inputs[source],), ui

    return run


def _preview_any(running: Running, inputs: Json) -> Ran:
    value = inputs["source"]
    text = value if isinstance(value, str) else json.dumps(value)
    return (text,), {"text": [text]}


def _fail(running: Running, inputs: Json) -> Ran:
    raise ValueError(inputs["message"])


def _simulated_output(running: Running, inputs: Json) -> Ran:
    """Write what a ui names, in a folder that a ui may name."""
    ui = json.loads(inputs["ui"])
    for items in ui.values():
        for item in items if isinstance(items, list) else ():
            if isinstance(item, dict) and "filename" in item:
                name, size = item["filename"], item.pop("bytes", 0)
                picture = name.lower().endswith(".png") and not size
                data = draw(64, 64, zlib.crc32(name.encode()), ["SIMULATED"]) if picture else b""
                subfolder = item.get("subfolder", "")
                folder = running.life.sim.folder(item.get("type", "output"), subfolder)
                path = inside(folder, name)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "wb") as file:
                    file.write(data or label(name, size))
    return (), ui


#: The last column of the table; "=name" passes that input on, nothing means names for the outputs.
_ACTIONS: dict[str, Run] = {
    "batch": _batch,
    "empty": _empty,
    "fail": _fail,
    "load": _load_image,
    "sample": _sample,
    "save": _save_image,
    "save_audio": _save_file("audio", "audio", ".flac"),
    "save_video": _save_file("images", "video", ".mp4"),
    "scale": _scale,
    "send": _send_image,
    "show": _preview_any,
    "simulate": _simulated_output,
    "slow": _slow,
    "text": lambda running, inputs: ((), {"text": [inputs["text"]]}),
}

#: Every class there is.
NODES: dict[str, Node] = {node.name: node for node in map(Node, _TABLE.replace("\n  ", " ").strip().splitlines())}


# ------------------------------------------------------------------------------------------------
# Validation
# ------------------------------------------------------------------------------------------------


def problem(kind: str, message: str, details: str = "", **extra: Any) -> Json:
    """An error in the form that /prompt answers with."""
    return {"type": kind, "message": message, "details": details, "extra_info": extra}


def is_link(value: Any, prompt: Json) -> bool:
    """Whether an input is [node_id, slot] of a node that is there."""
    pair = isinstance(value, list) and len(value) == 2
    return pair and isinstance(value[0], str) and value[0] in prompt


def _caught(exc: Exception, inner: Json | None = None) -> Json:
    trace = {"traceback": traceback.format_tb(exc.__traceback__)}
    known = {"exception_type": type(exc).__name__, **trace}
    if inner is None:
        return problem("exception_during_validation", "Exception when validating node", str(exc), **known)
    message = "Exception when validating inner node"
    extra = {"exception_message": str(exc), **inner, **known}
    return problem("exception_during_inner_validation", message, str(exc), **extra)


def _types_fit(received: Any, wanted: Any) -> bool:
    if received == wanted:
        return True
    if not isinstance(received, str) or not isinstance(wanted, str):
        return False
    offers, accepts = set(received.split(",")), set(wanted.split(","))
    return "*" in offers | accepts or bool(offers & accepts)


class Validation:
    """Checks a prompt as the server does, converting its values in place.

    An output is good if everything that it depends on is; the good ones run even if others fail.
    """

    def __init__(self, sim: Simulator, prompt: Json, targets: list[str] | None) -> None:
        self.sim, self.prompt = sim, prompt
        self.good: list[str] = []
        self.node_errors: Json = {}
        self.checked: dict[str, list[Json]] = {}  # node_id -> its own errors
        self.sound: dict[str, bool] = {}  # False also for a node below a bad one
        self.error = self._check(targets)

    def _check(self, targets: list[str] | None) -> Json | None:
        outputs = []
        for node_id, node in self.prompt.items():
            if "class_type" not in node or node["class_type"] not in NODES:
                return self._unknown_class(node_id, node)
            if NODES[node["class_type"]].output_node and (targets is None or node_id in targets):
                outputs.append(node_id)
        if not outputs:
            return problem("prompt_no_outputs", "Prompt has no outputs")
        details = []
        for output in outputs:
            try:
                sound = self._node(output, [])
            except Exception as exc:  # whatever a malformed prompt raises becomes its error
                sound = self.sound[output] = False
                self.checked[output] = [_caught(exc)]
            if sound:
                self.good.append(output)
                continue
            details += self.checked[output]
            for node_id, errors in self.checked.items():
                if errors:
                    entry: Json = {"errors": errors, "dependent_outputs": []}
                    entry["class_type"] = self.prompt[node_id]["class_type"]
                    self.node_errors.setdefault(node_id, entry)["dependent_outputs"].append(output)
        if self.good:
            return None
        text = "\n".join("{message}: {details}".format(**error) for error in details)
        return problem("prompt_outputs_failed_validation", "Prompt outputs failed validation", text)

    def _unknown_class(self, node_id: str, node: Json) -> Json:
        where = f"Node ID '#{node_id}'"
        class_type = node.get("class_type") if isinstance(node, dict) else None
        if not self.sim.has("jobs"):
            what = f"node {class_type} does not exist."
            if class_type is None:
                what = "a node is missing the class_type property."
            return problem("invalid_prompt", "Cannot execute because " + what, where)
        title = node.get("_meta", {}).get("title", class_type)
        what = f"Node '{title}' not found. The custom node may not be installed."
        if class_type is None:
            what = "Node '{}' has no class_type. The workflow may be corrupted or a custom node is"
            what = what.format(title or "ID #" + node_id) + " missing."
        extra = {"node_id": node_id, "class_type": class_type, "node_title": title}
        return problem("missing_node_type", what, where, **extra)

    def _node(self, node_id: str, path: list[str]) -> bool:
        if node_id in self.sound:
            return self.sound[node_id]
        if node_id in path and self.sim.has("jobs"):
            return self._cycle(path[path.index(node_id) :])
        inputs, node = self.prompt[node_id]["inputs"], NODES[self.prompt[node_id]["class_type"]]
        errors, sound = [], True
        for name, (kind, settings) in node.inputs(self.sim).items():
            known: Json = {"input_name": name}
            if name not in inputs:
                if name not in node.optional:
                    missing = "Required input is missing"
                    errors.append(problem("required_input_missing", missing, name, **known))
                continue
            value = inputs[name]
            known["input_config"] = [kind, settings]
            if isinstance(value, list):  # always read as a link: a literal comes in __value__
                error = self._link(name, value, kind, known)
                if error is None:
                    try:
                        sound = self._node(value[0], [*path, node_id]) and sound
                    except Exception as exc:
                        self.sound[value[0]] = sound = False
                        self.checked[value[0]] = [_caught(exc, {**known, "linked_node": value})]
            else:
                error = self._value(node, inputs, name, kind, settings, known)
            if error is not None:
                errors.append(error)
        errors = self.checked.get(node_id, []) + errors  # a cycle may have been found meanwhile
        self.checked[node_id] = errors
        self.sound[node_id] = sound and not errors
        return self.sound[node_id]

    def _cycle(self, ring: list[str]) -> bool:
        names = ["{} ({})".format(each, self.prompt[each]["class_type"]) for each in ring]
        for each in ring:
            extra = {"node_id": each, "cycle_nodes": ring}
            details = " -> ".join(names + names[:1])
            error = problem("dependency_cycle", "Dependency cycle detected", details, **extra)
            self.sound[each], self.checked[each] = False, [error]
        return False

    def _link(self, name: str, value: list[Any], kind: Any, known: Json) -> Json | None:
        if len(value) != 2:
            message = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
            return problem("bad_linked_input", message, name, **known, received_value=value)
        received = NODES[self.prompt[value[0]]["class_type"]].outputs[value[1]]
        if _types_fit(received, kind):
            return None
        details = f"{name}, received_type({received}) mismatch input_type({kind})"
        extra = {**known, "received_type": received, "linked_node": value}
        message = "Return type mismatch between linked nodes"
        return problem("return_type_mismatch", message, details, **extra)

    def _value(self, node: Node, inputs: Json, name: str, kind: Any, settings: Json, known: Json) -> Json | None:
        value = inputs[name]
        convert = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}.get(str(kind))
        try:
            if isinstance(value, dict) and "__value__" in value:
                inputs[name] = value = value["__value__"]
            if convert:
                inputs[name] = value = convert(value)
        except Exception as exc:
            message = f"Failed to convert an input value to a {kind} value"
            details = f"{name}, {value}, {exc}"
            extra = {**known, "received_value": value, "exception_message": str(exc)}
            return problem("invalid_input_type", message, details, **extra)
        known = {**known, "received_value": value}
        if node.name.startswith("Load") and name in ("image", "audio", "file"):
            if os.path.isfile(self.sim.annotated(value)):  # such a class checks its own input
                return None
            details = "{} - Invalid {} file: {}".format(name, name.replace("file", "video"), value)
            message = "Custom validation failed for node"
            return problem("custom_validation_failed", message, details, input_name=name)
        for key, word, wrong in (("min", "smaller", -1), ("max", "bigger", 1)):
            if key in settings and (value - settings[key]) * wrong > 0:
                message = f"Value {value} {word} than {key} of {settings[key]}"
                return problem(f"value_{word}_than_{key}", message, name, **known)
        choices = settings.get("options") if kind == "COMBO" else kind
        if isinstance(choices, list) and value not in choices:
            listed: Any = choices
            if len(choices) > 20:
                known["input_config"], listed = None, f"(list of length {len(choices)})"
            details = f"{name}: {value!r} not in {listed}"
            if not self.sim.has("jobs"):
                details = f"{name}: '{value}' not in {listed}"
            return problem("value_not_in_list", "Value not in list", details, **known)
        return None


# ------------------------------------------------------------------------------------------------
# Running prompts
# ------------------------------------------------------------------------------------------------


class Interrupted(Exception):
    """The running prompt was told to stop."""


@dataclasses.dataclass
class Job:
    """A prompt that was accepted."""

    number: float
    prompt_id: str
    prompt: Json
    extra_data: Json
    outputs: list[str]

    def item(self) -> list[Any]:
        """The form in /queue and /history."""
        return [self.number, self.prompt_id, self.prompt, self.extra_data, self.outputs]


def execution_order(prompt: Json, outputs: list[str], cached: Callable[[str], bool]) -> list[str]:
    """The nodes that must run, in the server's order: outputs and what leads to one come first."""
    pending: dict[str, set[str]] = {}  # node_id -> the pending nodes that it waits for
    stack = outputs[::-1]
    while stack:
        node_id = stack.pop()
        if node_id not in pending:
            values = prompt[node_id]["inputs"].values()
            links = [value[0] for value in values if is_link(value, prompt)]
            links = [origin for origin in links if not cached(origin)]
            pending[node_id] = set(links)
            stack += links
    ends = {each for each in pending if NODES[prompt[each]["class_type"]].output_node}
    order = []
    while pending:
        ready = [node_id for node_id, waits in pending.items() if not waits]
        reach = {each: {each} for each in ready}  # what is up to two links behind a ready node
        chosen = ""
        for _ in range(3):
            chosen = chosen or next((each for each in ready if reach[each] & ends), "")
            for each, seen in reach.items():
                reach[each] = {follower for follower in pending if pending[follower] & seen}
        chosen = chosen or ready[0]
        order.append(chosen)
        del pending[chosen]
        for waits in pending.values():
            waits.discard(chosen)
    return order


class Running:
    """One execution of a job: its messages, its progress and what its nodes may ask for."""

    def __init__(self, life: Life, job: Job) -> None:
        self.life, self.job, self.prompt = life, job, job.prompt
        self.client: str | None = job.extra_data.get("client_id")
        self.messages: list[list[Any]] = []
        self.ui: Json = {}
        self.executed: list[str] = []
        self.node_id = job.outputs[0]
        self.current: Json = {}
        self.states: dict[str, str] = {}  # node_id -> its part of progress_state, as JSON
        self.signatures: dict[str, str] = {}
        self.stall = life.sim.faults.stall
        method = job.extra_data.get("preview_method", "none")
        self.previews = life.sim.previews or method not in ("none", "default")

    # What nodes use.

    def check(self) -> None:
        """Raise Interrupted if the prompt was told to stop; a killed server stops as well."""
        if self.life.take_interrupt() or self.life.dead.is_set():
            raise Interrupted()

    def sleep(self, seconds: float) -> None:
        """Wait, though not beyond the end of the server."""
        if seconds > 0:
            self.life.dead.wait(seconds)

    def progress(self, value: int, total: int, preview: int | bytes | None = None) -> None:
        """Report a step, with a preview drawn from a seed or an image that is ready to send."""
        node_id, life = self.node_id, self.life
        if self.stall is not None:
            self.sleep(self.stall)
            self.stall = None
        self.set_state(value, total, "running")
        image = preview if isinstance(preview, bytes) else None
        if isinstance(preview, int):
            lines = ["SIMULATED", f"{value} OF {total}"]
            image = draw(128, 128, preview + value, lines)
        if image is not None and life.takes_metadata(self.client):
            head = json.dumps({**self.about(), "image_type": "image/png"}).encode()
            life.emit(struct.pack(">II", 4, len(head)) + head + image, self.client)
            image = None
        done = {"value": value, "max": total, "prompt_id": self.job.prompt_id, "node": node_id}
        life.send("progress", done, self.client)
        if image is not None:
            life.emit(struct.pack(">II", 1, 2) + image, self.client)

    # How it runs.

    def about(self) -> Json:
        """The current node, as progress and previews tell of it."""
        ids: Json = dict.fromkeys(("node_id", "display_node_id", "real_node_id"), self.node_id)
        return {**ids, "prompt_id": self.job.prompt_id, "parent_node_id": None}

    def set_state(self, value: float, total: float, state: str) -> None:
        """Send progress_state; the parts of the other nodes are kept as JSON."""
        sim, node_id = self.life.sim, self.node_id
        part = {"value": value, "max": total, "state": state, **self.about()}
        self.states[node_id] = f"{json.dumps(node_id)}: {json.dumps(part)}"
        self.total = total
        if sim.has("progress_state") and "progress_state" not in sim.faults.drop_events:
            nodes = ", ".join(self.states.values())
            head = f'"prompt_id": {json.dumps(self.job.prompt_id)}, "nodes": {{{nodes}}}'
            self.life.emit(f'{{"type": "progress_state", "data": {{{head}}}}}', self.client)

    def announce(self, kind: str, everyone: bool = False, **data: Any) -> None:
        """Send a message that /history keeps."""
        if self.life.sim.has("released"):
            data["timestamp"] = int(time.time() * 1000)
        self.messages.append([kind, data])
        if self.client is not None or everyone:
            self.life.send(kind, data, self.client)

    def tell(self, kind: str, **data: Any) -> None:
        """Send a message of this prompt to its client, if it has one."""
        if self.client is not None:
            self.life.send(kind, {**data, "prompt_id": self.job.prompt_id}, self.client)

    def signature(self, node_id: str) -> str:
        """What the cache knows a node by: class, values, files and the same of what it links to."""
        if node_id not in self.signatures:
            self.signatures[node_id] = "cycle"
            node = self.prompt[node_id]
            parts: list[Any] = [node["class_type"]]
            inputs = node.get("inputs")
            for name, value in sorted(inputs.items()) if isinstance(inputs, dict) else ():
                if is_link(value, self.prompt):
                    value = [self.signature(value[0]), value[1]]
                elif name == "image" and isinstance(value, str):
                    path = self.life.sim.annotated(value)
                    value = [value, os.path.isfile(path) and os.stat(path).st_mtime_ns]
                parts.append([name, value])
            digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
            self.signatures[node_id] = digest
        return self.signatures[node_id]

    def cached(self, node_id: str) -> bool:
        """Whether a node need not run."""
        return self.signature(node_id) in self.life.cache

    def run(self) -> Json:
        """Execute the prompt and return its entry in /history."""
        life, job = self.life, self.job
        self.announce("execution_start", prompt_id=job.prompt_id)
        success = False
        try:
            signatures = {self.signature(node_id) for node_id in self.prompt}
            for signature in set(life.cache) - signatures:  # only the previous prompt's are kept
                del life.cache[signature]
            known = [node_id for node_id in self.prompt if self.cached(node_id)]
            self.announce("execution_cached", nodes=known, prompt_id=job.prompt_id)
            life.misbehave(self.client, begins=True)
            for node_id in execution_order(self.prompt, job.outputs, self.cached):
                self.node_id = node_id
                self.execute(NODES[self.prompt[node_id]["class_type"]])
            success = True
            life.misbehave(self.client, begins=False)
            if life.sim.has("released"):
                self.announce("execution_success", prompt_id=job.prompt_id)
        except Exception as exc:  # whatever a node raises is the client's to hear of
            self.fail(exc)
        if not life.sim.has("jobs"):  # older servers list what is cached as well
            for node_id in self.prompt:
                if self.cached(node_id) and life.cache[self.signature(node_id)][1]:
                    self.ui[node_id] = life.cache[self.signature(node_id)][1]
        status = {"status_str": "success" if success else "error", "completed": success}
        entry: Json = {"prompt": job.item(), "outputs": self.ui}
        entry["status"] = {**status, "messages": self.messages}
        if life.sim.has("released"):
            ids = ("node_id", "display_node", "real_node_id")
            entry["meta"] = {each: {**dict.fromkeys(ids, each), "parent_node": None} for each in self.ui}
        return entry

    def execute(self, node: Node) -> None:
        """Run the current node, or take what the cache has for it."""
        life, node_id, signature = self.life, self.node_id, self.signature(self.node_id)
        shown = {"display_node": node_id} if life.sim.has("released") else {}
        self.current = {}
        if signature in life.cache:
            ui = life.cache[signature][1]
            if life.sim.has("released"):
                self.tell("executed", node=node_id, **shown, output=ui)
            if ui:
                self.ui[node_id] = ui
            self.set_state(1, 1, "finished")
            return
        self.set_state(0.0, 1.0, "running")
        if self.client is not None:
            life.last_node = node_id
        self.tell("executing", node=node_id, **shown)
        self.check()
        life.sim.executed_nodes[self.job.prompt_id].append(node_id)
        for name, value in self.prompt[node_id]["inputs"].items():
            if name in node.specs:
                if is_link(value, self.prompt):
                    value = life.cache[self.signature(value[0])][0][value[1]]
                self.current[name] = value
        outputs, ui = node.run(self, dict(self.current))
        if ui:
            self.ui[node_id] = ui
            self.tell("executed", node=node_id, **shown, output=ui)
        life.cache[signature] = (outputs, ui)
        self.set_state(self.total, self.total, "finished")
        self.executed.append(node_id)

    def fail(self, exc: Exception) -> None:
        """Tell that the prompt was interrupted, or why its current node failed."""
        about: Json = {"prompt_id": self.job.prompt_id, "node_id": self.node_id}
        about["node_type"] = self.prompt[self.node_id]["class_type"]
        about["executed"] = list(self.executed)
        if isinstance(exc, Interrupted):
            self.announce("execution_interrupted", everyone=True, **about)
            return
        plain = (int, float, str, type(None))
        about["exception_message"] = f"{exc}\n"
        about["exception_type"] = type(exc).__name__
        about["traceback"] = traceback.format_tb(exc.__traceback__)
        about["current_inputs"] = {
            name: [value if isinstance(value, plain) else "SIMULATED " + repr(value)]
            for name, value in self.current.items()
        }
        about["current_outputs"] = list(self.prompt)
        self.announce("execution_error", **about)


class Life:
    """All that a server keeps in memory, and its worker; a restart begins a new one."""

    def __init__(self, sim: Simulator) -> None:
        self.sim = sim
        self.lock = threading.RLock()
        self.wake = threading.Condition(self.lock)
        self.dead = threading.Event()
        self.threads: set[threading.Thread] = set()
        self.sockets: dict[str, Socket] = {}
        self.clients: set[str] = set()  # all that were ever connected
        self.pending: list[tuple[float, str, int, Job]] = []
        self.running: Job | None = None
        self.history: dict[str, Json] = {}
        self.cache: dict[str, tuple[tuple[Any, ...], Json | None]] = {}
        self.number = self.accepted = 0
        self.interrupted = self.free = False
        self.client: str | None = None
        self.last_node: str | None = None
        self.spawn(self.work)

    def spawn(self, target: Callable[..., None], *args: Any) -> None:
        """Start a thread that end() will join."""

        def run() -> None:
            try:
                target(*args)
            finally:
                with self.lock:
                    self.threads.discard(thread)

        thread = threading.Thread(target=run, name="comfyui-simulator", daemon=True)
        with self.lock:
            self.threads.add(thread)
        thread.start()

    def later(self, seconds: float, target: Callable[..., Any], *args: Any) -> None:
        """Call something in a while, unless the server is gone by then."""

        def wait() -> None:
            if not self.dead.wait(seconds):
                target(*args)

        self.spawn(wait)

    def end(self) -> None:
        """Cut the sockets and stop the threads."""
        with self.lock:
            self.dead.set()
            self.wake.notify_all()
        self.cut_websockets()

    def join(self, seconds: float) -> None:
        """Wait for the threads, but not for long."""
        until = time.monotonic() + seconds
        with self.lock:
            threads = self.threads - {threading.current_thread()}
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))

    def cut_websockets(self) -> None:
        """Cut all sockets without a close frame."""
        with self.lock:
            sockets, self.sockets = list(self.sockets.values()), {}
        for each in sockets:
            each.abort()

    # Messages.

    def send(self, kind: str, data: Json, sid: str | None) -> None:
        """Send a message to one client, or to all; a client that is not there misses it."""
        faults = self.sim.faults
        if kind in faults.drop_events:
            return
        if faults.drop_end and kind == "executing" and data["node"] is None:
            return
        self.emit(json.dumps({"type": kind, "data": data}), sid)

    def emit(self, frame: str | bytes, sid: str | None) -> None:
        """Send a frame as it is."""
        with self.lock:
            for name, each in list(self.sockets.items()):
                if sid in (None, name):
                    each.put(frame)

    def takes_metadata(self, sid: str | None) -> bool:
        """Whether a client asked for previews with metadata (binary type 4 in place of 1)."""
        with self.lock:
            flags = self.sockets[sid].flags if sid in self.sockets else {}
        return flags.get("supports_preview_metadata") is True

    def status(self) -> Json:
        """The data of a status message."""
        with self.lock:
            remaining = len(self.pending) + (self.running is not None)
        return {"exec_info": {"queue_remaining": remaining}}

    def changed(self) -> None:
        """Tell everybody that the queue changed."""
        self.send("status", {"status": self.status()}, None)

    def misbehave(self, client: str | None, begins: bool) -> None:
        """Send what the faults ask for, at the begin and the end of a run."""
        faults = self.sim.faults
        if faults.noise:
            other = {"prompt_id": str(uuid.uuid4()), "node": "1"}
            self.send("simulated_unknown_event", {"anything": [1, None]}, client)
            self.send("progress", {"value": 1, "max": 2, **other}, client)
            self.send("executing", {**other, "node": None}, client)
            self.send("execution_error", other, client)
            self.send("progress", {"value": float("nan"), "max": float("inf")}, client)
            for frame in ('{"type": "executed"}', '{"type": "progress", "data": null}', "[1, 2]"):
                self.emit(frame, client)
            self.emit("this is not JSON", client)
            head = json.dumps({"node_id": "1"}).encode()
            for body in (
                struct.pack(">II", 1, 2) + b"not a picture",
                struct.pack(">II", 2, 1) + b"never sent by a real server",
                struct.pack(">II", 3, 1) + b"1" + "SIMULATED text \u00fc".encode(),
                struct.pack(">II", 4, len(head)) + head + b"not a picture",
                struct.pack(">II", 4, 4096) + b"{",
                struct.pack(">I", 99) + b"unknown type",
                b"\0\0",
                b"",
            ):
                self.emit(body, client)
        if faults.big_frame and begins:
            self.send("simulated_big_event", {"padding": "x" * faults.big_frame}, client)
            image = draw(64, 64, 0, ["SIMULATED"], [("padding", "x" * faults.big_frame)])
            self.emit(struct.pack(">II", 1, 2) + image, client)

    # The queue.

    def put(self, job: Job) -> None:
        """Queue a job."""
        with self.lock:
            self.accepted += 1
            heapq.heappush(self.pending, (job.number, job.prompt_id, self.accepted, job))
            self.changed()
            self.wake.notify()

    def delete(self, prompt_id: str) -> bool:
        """Take one pending prompt off the queue."""
        with self.lock:
            for entry in self.pending:
                if entry[1] == prompt_id:
                    self.pending.remove(entry)
                    heapq.heapify(self.pending)
                    if not self.pending:
                        self.changed()  # a real server says it twice when none is left
                    self.changed()
                    return True
        return False

    def clear(self) -> None:
        """Take all pending prompts off the queue."""
        with self.lock:
            self.pending.clear()
            self.changed()

    def interrupt(self, prompt_id: str | None = None) -> bool:
        """Interrupt what runs, or only if it is a certain prompt."""
        with self.lock:
            if prompt_id and (self.running is None or self.running.prompt_id != prompt_id):
                return False
            self.interrupted = not self.sim.faults.ignore_interrupt
            return True

    def take_interrupt(self) -> bool:
        """Whether there was an interrupt, which is used up by this."""
        with self.lock:
            taken, self.interrupted = self.interrupted, False
        return taken

    def snapshot(self) -> tuple[list[Job], list[Job]]:
        """What runs and what waits."""
        with self.lock:
            return [self.running] if self.running else [], [entry[3] for entry in self.pending]

    def remember(self, prompt_id: str, entry: Json) -> None:
        """Add to the history, which holds 10000 prompts."""
        with self.lock:
            if len(self.history) > 10000:
                del self.history[next(iter(self.history))]
            self.history[prompt_id] = entry

    # The worker.

    def work(self) -> None:
        """Run one prompt after the other."""
        while True:
            with self.lock:
                while not self.pending and not self.dead.is_set():
                    self.wake.wait()
                if self.dead.is_set():
                    return
                job = self.running = heapq.heappop(self.pending)[3]
                self.interrupted = False
                running = Running(self, job)
                self.client, self.last_node = running.client, None
                self.changed()
            self.sim.executions[job.prompt_id] = self.sim.executions.get(job.prompt_id, 0) + 1
            self.sim.executed_nodes.setdefault(job.prompt_id, [])
            entry = running.run()
            if self.dead.is_set():
                return
            with self.lock:
                self.running, self.last_node = None, None
                if not self.sim.faults.history_delay and not self.sim.faults.history_evict:
                    self.remember(job.prompt_id, entry)
                self.changed()
            running.tell("executing", node=None)
            if self.sim.faults.history_delay and not self.sim.faults.history_evict:
                delay = self.sim.faults.history_delay
                self.later(delay, self.remember, job.prompt_id, entry)
            if self.free:
                self.free = False
                self.cache.clear()


# ------------------------------------------------------------------------------------------------
# Jobs: /api/jobs looks at the queue and the history in another form
# ------------------------------------------------------------------------------------------------

_SUFFIXES_3D = (".obj", ".fbx", ".gltf", ".glb", ".usdz")
_SUFFIXES_TEXT = (".txt", ".md", ".json")
_STATES = ("pending", "in_progress", "completed", "failed", "cancelled")


def outputs_summary(outputs: Json) -> Json:
    """Count the outputs and choose one to show: a saved picture before a text."""
    count = shown = 0
    ranked: list[tuple[int, Json]] = []
    for node_id, ui in outputs.items():
        for media, items in ui.items():
            for item in items if isinstance(items, list) and media != "animated" else ():
                entry = {"nodeId": node_id, "mediaType": media}
                if isinstance(item, str) and item.lower().endswith(_SUFFIXES_3D):
                    item = {"filename": item, "type": "output", "subfolder": "", "mediaType": "3d"}
                if isinstance(item, dict):
                    count += 1
                    name = item.get("filename", "").lower()
                    text = media == "text" or name.endswith(_SUFFIXES_TEXT)
                    known = media in ("images", "video", "audio", "3d", "text")
                    form = item.get("format", "").startswith(("video/", "audio/"))
                    if known or form or name.endswith(_SUFFIXES_3D + _SUFFIXES_TEXT):
                        shown += 1
                        rank = 2 if text else 0 if item.get("type") == "output" else 1
                        ranked.append((rank, {**entry, **item}))
                elif media == "text":
                    cut = {"truncated": True} if len(str(item)) > 1024 else {}
                    ranked.append((3, {"content": str(item)[:1024], **cut, **entry}))
    summary: Json = {"outputs_count": count, "previewable_outputs_count": shown}
    if ranked:
        summary["preview_output"] = min(ranked, key=lambda each: each[0])[1]
    return summary


def describe_job(item: list[Any], state: str, entry: Json | None, detailed: bool) -> Json:
    """A prompt in the form of /api/jobs; `entry` is its history."""
    number, prompt_id, prompt, extra_data, _ = item
    job = {"id": prompt_id, "status": state, "priority": number}
    job["create_time"] = extra_data.get("create_time")
    for kind, data in entry["status"]["messages"] if entry else ():
        if kind == "execution_start":
            job["execution_start_time"] = data["timestamp"]
        elif kind != "execution_cached":
            job["execution_end_time"] = data["timestamp"]
        if kind == "execution_error":
            job["execution_error"] = data
    job.update(outputs_summary(entry["outputs"] if entry else {}))
    workflow = (extra_data.get("extra_pnginfo") or {}).get("workflow") or {}
    if workflow.get("id") is not None:
        job["workflow_id"] = workflow["id"]
    if entry and detailed:
        job.update(outputs=entry["outputs"], execution_status=entry["status"])
    if detailed:
        job["workflow"] = {"prompt": prompt, "extra_data": extra_data}
    return job


def all_jobs(life: Life, detailed: bool = False) -> list[Json]:
    """Every job that the server knows of."""
    with life.lock:
        running, pending = life.snapshot()
        history = dict(life.history)
    jobs = [describe_job(job.item(), "pending", None, detailed) for job in pending]
    jobs += [describe_job(job.item(), "in_progress", None, detailed) for job in running]
    for entry in history.values():
        last = entry["status"]["messages"][-1][0]
        state = {"execution_error": "failed", "execution_interrupted": "cancelled"}
        jobs.append(describe_job(entry["prompt"], state.get(last, "completed"), entry, detailed))
    return jobs


# ------------------------------------------------------------------------------------------------
# Sockets
# ------------------------------------------------------------------------------------------------


#: The types of files, the same on every system and for every Python.
_MIME = mimetypes.MimeTypes()
for _suffix, _kind in (
    ("webp", "image/webp"),
    ("flac", "audio/flac"),
    ("glb", "model/gltf-binary"),
):
    _MIME.add_type(_kind, "." + _suffix)

_LINGER = "hh" if os.name == "nt" else "ii"  # the fields of struct linger


def abort(connection: socket.socket) -> None:
    """Cut a TCP connection with a reset; a thread that waits on it wakes up."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack(_LINGER, 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it is gone already


class Socket:
    """A WebSocket: the thread of its HTTP request reads, one of its own writes what is queued."""

    #: What a client may leave unread before it is cut off, since nobody else is to wait for it.
    limit = 1 << 28

    def __init__(self, handler: Handler, sid: str) -> None:
        from websockets.exceptions import WebSocketException  # here, to import this module fast
        from websockets.server import ServerProtocol

        self.life, self.sid, self.handler = handler.server.life, sid, handler
        self.protocol = ServerProtocol(max_size=4 << 20)
        self.broken: tuple[type[BaseException], ...] = (OSError, WebSocketException)
        self.flags: Json = {}
        self.queue: collections.deque[str | bytes] = collections.deque()
        self.queued = self.sent = 0
        self.ready = threading.Condition()
        self.wire = threading.Lock()
        self.closed = False

    def put(self, frame: str | bytes) -> None:
        """Queue a frame."""
        with self.ready:
            self.queue.append(frame)
            self.queued += len(frame)
            self.ready.notify()
        if self.queued > self.limit:
            self.abort()

    def abort(self) -> None:
        """Cut the connection."""
        with self.ready:
            self.closed = True
            self.ready.notify()
        abort(self.handler.connection)

    def serve(self) -> None:
        """Shake hands, then read until the connection is over."""
        handler, protocol, life = self.handler, self.protocol, self.life
        lines = [f"{key}: {value}\r\n" for key, value in handler.headers.items()]
        # The request goes in as bytes: a protocol that did not read one itself stays deaf.
        request = handler.requestline.encode("latin-1") + b"\r\n" + "".join(lines).encode("latin-1") + b"\r\n"
        protocol.receive_data(request)
        for event in protocol.events_received():
            protocol.send_response(protocol.accept(event))  # type: ignore[arg-type]
        handler.connection.sendall(b"".join(protocol.data_to_send()))
        if protocol.handshake_exc is not None:
            return
        with life.lock:
            deaf = self.sid in life.clients and life.sim.faults.deaf_reconnect
            life.clients.add(self.sid)
            status = json.dumps({"status": life.status(), "sid": self.sid})
            self.put(f'{{"type": "status", "data": {status}}}')
            life.sockets.pop(self.sid, None)
            if not deaf:
                life.sockets[self.sid] = self  # whoever had this id before gets nothing any more
                if life.client == self.sid and life.last_node is not None:
                    life.send("executing", {"node": life.last_node}, self.sid)
            if life.dead.is_set():
                self.abort()
        life.spawn(self.write)
        try:
            self.read(deaf)
        except self.broken:
            pass
        finally:
            with life.lock:
                if life.sockets.get(self.sid) is self:
                    del life.sockets[self.sid]
            with self.ready:
                self.closed = True
                self.ready.notify()

    def read(self, deaf: bool) -> None:
        """Answer pings and the closing handshake; take the feature flags."""
        first, text = True, b""
        while not self.closed:
            data = self.handler.rfile.read1(65536)
            with self.wire:
                if data:
                    self.protocol.receive_data(data)
                else:
                    self.protocol.receive_eof()
                events = self.protocol.events_received()
                self.handler.connection.sendall(b"".join(self.protocol.data_to_send()))
            if not data or self.protocol.close_expected():
                return
            for frame in events:
                if frame.opcode not in (0, 1):  # type: ignore[union-attr]
                    continue
                text += frame.data  # type: ignore[union-attr]
                if frame.fin:  # type: ignore[union-attr]
                    message, text = text, b""
                    first = first and not self.negotiate(message, deaf)

    def negotiate(self, message: bytes, deaf: bool) -> bool:
        """Only the first message counts, and only if it is about feature flags."""
        try:
            data = json.loads(message)
        except ValueError:
            return False
        if not isinstance(data, dict):
            return False
        if data.get("type") == "feature_flags" and self.life.sim.has("progress_state") and not deaf:
            flags = data.get("data")
            self.flags = flags if isinstance(flags, dict) else {}
            self.life.send("feature_flags", self.life.sim.features(), self.sid)
        return True

    def write(self) -> None:
        """Send what is queued, many frames at a time."""
        while True:
            with self.ready:
                while not self.queue and not self.closed:
                    self.ready.wait()
                if self.closed:
                    return
                limit = self.life.sim.faults.cut_ws_after
                room = 500 if limit is None else limit - self.sent
                frames = [self.queue.popleft() for _ in range(min(room, len(self.queue)))]
                self.queued -= sum(map(len, frames))
            try:
                with self.wire:
                    for frame in frames:
                        if isinstance(frame, str):
                            self.protocol.send_text(frame.encode())
                        else:
                            self.protocol.send_binary(frame)
                    self.handler.connection.sendall(b"".join(self.protocol.data_to_send()))
            except self.broken:
                return
            self.sent += len(frames)
            if limit is not None and self.sent >= limit:
                self.abort()


# ------------------------------------------------------------------------------------------------
# HTTP
# ------------------------------------------------------------------------------------------------


class Cut(Exception):
    """The connection is to be cut without an answer."""


class TooLarge(Exception):
    """The request body is over the limit."""


class Body:
    """A request body, read in pieces and never beyond its end."""

    def __init__(self, handler: Handler) -> None:
        self.file, self.limit, self.seen = handler.rfile, handler.server.sim.max_upload_size, 0
        self.chunked = "chunked" in handler.headers.get("Transfer-Encoding", "").lower()
        length = handler.headers.get("Content-Length") or "0"
        if not length.isdigit():
            raise Cut()
        self.left = 0 if self.chunked else int(length)

    def read(self, size: int = 65536) -> bytes:
        """Up to `size` bytes; b"" at the end. Raises TooLarge, or Cut if the client went away."""
        if not self.left and self.chunked:
            length = self.file.readline(1024).split(b";")[0].strip()
            if not re.fullmatch(rb"[0-9a-fA-F]{1,16}", length):
                raise Cut()
            self.left = int(length, 16)
            if not self.left:
                self.chunked = False
                while self.file.readline(1024).strip():
                    pass
        data = self.file.read(min(size, self.left))
        if self.left and not data:
            raise Cut()
        self.left -= len(data)
        self.seen += len(data)
        if not self.left and self.chunked:
            self.file.readline(1024)
        if self.seen > self.limit:
            raise TooLarge()
        return data

    def all(self) -> bytes:
        """The whole body."""
        return b"".join(iter(self.read, b""))

    def drop(self) -> None:
        """Read what is left, so that the client hears the answer and may send the next request."""
        self.limit = 1 << 40
        while self.read():
            pass


class Upload(NamedTuple):
    """A file field of a form, kept in a temporary file."""

    filename: str
    path: str


_FIELD = re.compile(r';\s*(name|filename)(\*?)=(?:"((?:[^"\\]|\\.)*)"|([^;\s]+))', re.IGNORECASE)


def read_form(body: Body, boundary: str, folder: str) -> dict[str, str | Upload]:
    """Read multipart/form-data in pieces; files go to temporary files in `folder`."""
    mark, buffer = b"\r\n--" + boundary.encode(), b"\r\n"
    form: dict[str, str | Upload] = {}

    def copy_until(end: bytes, write: Callable[[bytes], Any]) -> None:
        nonlocal buffer
        while end not in buffer:
            keep = max(0, len(buffer) - len(end) + 1)
            write(buffer[:keep])
            data = body.read()
            if not data:
                raise ValueError("the form ends too early")
            buffer = buffer[keep:] + data
        content, _, buffer = buffer.partition(end)
        write(content)

    copy_until(mark, len)
    try:
        while True:
            head = bytearray()
            copy_until(b"\n", head.extend)
            if head.startswith(b"--"):
                return form
            copy_until(b"\r\n\r\n", head.extend)
            names: dict[str, str] = {}
            disposition = re.search(rb"content-disposition:(.*)", head, re.IGNORECASE)
            found = _FIELD.findall((disposition or [b"", b""])[1].decode("utf-8", "replace"))
            for key, extended, quoted, bare in found:
                value = re.sub(r"\\(.)", r"\1", quoted) or bare
                names[key] = urllib.parse.unquote(value.split("''")[-1]) if extended else value
            if names.get("filename"):
                handle, path = tempfile.mkstemp(dir=folder, prefix=".upload-")
                form[names["name"]] = Upload(names["filename"], path)
                with os.fdopen(handle, "wb") as file:
                    copy_until(mark, file.write)
            else:
                value_bytes = bytearray()
                copy_until(mark, value_bytes.extend)
                form[names["name"]] = value_bytes.decode()
    except BaseException:
        discard(form)
        raise


def discard(form: dict[str, str | Upload]) -> None:
    """Remove the temporary files of a form that are still there."""
    for field in form.values():
        if isinstance(field, Upload) and os.path.exists(field.path):
            os.unlink(field.path)


def digest_of(path: str) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for data in iter(lambda: file.read(65536), b""):
            digest.update(data)
    return digest.hexdigest()


class Reply(NamedTuple):
    """An answer: `body`, or else the file at `path` (a part of it if Range asks for one)."""

    status: int = 200
    body: bytes = b""
    kind: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    path: str = ""


def as_json(data: Any, status: int = 200) -> Reply:
    """A reply with JSON (that may hold NaN, as a real one's may)."""
    return Reply(status, json.dumps(data).encode(), "application/json; charset=utf-8")


def as_text(text: str, status: int) -> Reply:
    """A reply with plain text."""
    return Reply(status, text.encode(), "text/plain; charset=utf-8")


TROUBLE = as_text("500 Internal Server Error\n\nServer got itself in trouble", 500)


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
            self.body = Body(self)
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
        Socket(self, self.query.get("clientId") or uuid.uuid4().hex).serve()
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
        kind = _MIME.guess_type(path)[0] or "application/octet-stream"
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
        system.update(pytorch_version="simulated", argv=["comfyui_simulator.py"])
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
        if set(wanted) - set(_STATES) or by not in sort_keys or order not in ("asc", "desc"):
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


def is_job_id(value: Any) -> bool:
    """Whether a value is a UUID in the one form that newer servers take."""
    try:
        return isinstance(value, str) and str(uuid.UUID(value)) == value
    except ValueError:
        return False


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """Listens; its threads belong to a life, and it knows its connections to cut them."""

    request_queue_size = 128
    allow_reuse_address = os.name != "nt"  # on Windows it would let two servers share a port

    def __init__(self, sim: Simulator, address: tuple[str, int]) -> None:
        self.sim = sim
        self.connections: set[socket.socket] = set()
        super().__init__(address, Handler)
        self.life = Life(sim)
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


# ------------------------------------------------------------------------------------------------
# The simulator
# ------------------------------------------------------------------------------------------------

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


class Simulator:
    """A simulated ComfyUI server in threads of this process.

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
        self._server: Server | None = None
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

    # Life.

    def start(self) -> Simulator:
        """Make the folders and listen. Raises OSError if the port is taken."""
        if self._temporary and not self.root:
            self.root = tempfile.mkdtemp(prefix="comfyui-simulator-")
        self.root = os.path.realpath(self.root)
        for folder in FOLDERS:
            os.makedirs(self.folder(folder), exist_ok=True)
        if self._temporary:
            with open(os.path.join(self.folder("input"), "example.png"), "wb") as file:
                file.write(draw(512, 512, 0, ["SIMULATED", "EXAMPLE"]))
        self.revive()
        return self

    def stop(self) -> None:
        """Stop, cut everything and remove the temporary folder."""
        self.crash()
        if self._temporary and self.root:
            shutil.rmtree(self.root, ignore_errors=True)
            self.root = ""

    def __enter__(self) -> Simulator:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def restart(self) -> None:
        """Be killed and started again: queue, history, temp/, sockets, running prompt are gone."""
        self.crash()
        self.revive()

    def crash(self) -> None:
        """Stop listening and cut everything, as a killed process does."""
        if self._server is not None:
            self._server.end()
            self._server = None

    def revive(self) -> None:
        """Listen again on the same port, with nothing in memory."""
        if self._server is None:
            shutil.rmtree(self.folder("temp"), ignore_errors=True)
            os.makedirs(self.folder("temp"), exist_ok=True)
            self._server = Server(self, (self.host, self.port))
            self.port = self._server.server_address[1]

    def cut_websockets(self) -> None:
        """Cut all sockets without a close frame."""
        if self._server is not None:
            self._server.life.cut_websockets()

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
        return [name for name in names if str(_MIME.guess_type(name)[0]).startswith(kind)]

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


# ------------------------------------------------------------------------------------------------
# Command line
# ------------------------------------------------------------------------------------------------


def _fault(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    if name not in {field.name for field in dataclasses.fields(Faults)}:
        raise argparse.ArgumentTypeError(f"there is no fault {name!r}")
    try:
        parsed = json.loads(value)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{name}: not JSON: {exc}") from exc
    return name, frozenset(parsed) if name == "drop_events" else parsed


def main(argv: Sequence[str] | None = None) -> int:
    """Run a simulated server until Ctrl+C or SIGTERM."""
    parser = argparse.ArgumentParser(description="A ComfyUI stand-in: no GPU, simulated pictures.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8188)
    parser.add_argument("--version", default="0.33.0", help="the ComfyUI version to play")
    parser.add_argument("--root", metavar="DIR", help="folder of input/, output/ and temp/")
    parser.add_argument("--step-seconds", type=float, default=0.15, metavar="S")
    parser.add_argument("--token", help="ask for this token")
    parser.add_argument("--base-path", default="", metavar="PATH")
    parser.add_argument(
        "--fault",
        action="append",
        type=_fault,
        default=[],
        metavar="NAME=JSON",
        help="something that goes wrong, e.g. drop_end=true (may be repeated)",
    )
    args = vars(parser.parse_args(argv))
    simulator = Simulator(faults=Faults(**dict(args.pop("fault"))), previews=True, **args)

    def terminate(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        simulator.start()
        print(f"Simulated ComfyUI {simulator.version} at {simulator.url}", flush=True)
        while True:
            time.sleep(3600)
    except (OSError, OverflowError) as exc:
        where = f"{args['host']}:{args['port']}"
        known = isinstance(exc, OSError) and exc.filename is None  # it was not about a file
        print(f"Cannot listen on {where}: {exc}" if known else exc, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        simulator.stop()
        signal.signal(signal.SIGTERM, previous)


if __name__ == "__main__":
    sys.exit(main())
