"""What nodes do: pass on the size and the seed of a picture, and write files.

An action takes the run that it is part of and the values of the node's inputs.
"""

from __future__ import annotations

import json
import os
import time
import uuid
import zlib
from typing import Any, Callable, List, NamedTuple, Optional, Protocol, Tuple

from comfyui_runner.simulator.folders import SUFFIXES_3D, path_inside
from comfyui_runner.simulator.installation import Installation
from comfyui_runner.simulator.pictures import Image, draw, make_label, measure
from comfyui_runner.simulator.prompts import Json


class Context(Protocol):
    """What a node may use of the run that it is part of."""

    installation: Installation
    prompt: Json
    extra_data: Json
    #: Whether samplers send previews.
    previews: bool
    #: The credentials that came with the prompt.
    secrets: Json

    def check(self) -> None:
        """Raise Interrupted if the prompt was interrupted."""

    def sleep(self, seconds: float) -> None:
        """Wait, but not beyond the end of the server."""

    def progress(self, value: int, total: int, preview: int | bytes | None = None) -> None:
        """Report a step, with a preview drawn from a seed or an image that is ready to send."""

    def send_picture(self, picture: bytes) -> None:
        """Send a picture that belongs to no step."""


class Result(NamedTuple):
    """What an action returns: the values of the outputs, and what /history shows of the node."""

    outputs: Tuple[Any, ...] = ()
    ui: Optional[Json] = None


Action = Callable[[Context, Json], Result]

#: What ComfyUI's own 3D nodes name by a bare path (comfy_extras/nodes_save_3d.py).
SUFFIXES_OF_PATHS = (*SUFFIXES_3D, ".stl", ".ply", ".splat", ".ksplat", ".spz")

#: The width and the height of pictures whose size no input says.
SMALL_SIDE = 64

#: Seconds between two looks for an interrupt, in a node that waits.
LOOK_INTERVAL = 0.05


def pass_names(*names: str) -> Action:
    """An action whose outputs are mere names: nobody looks into a model."""
    return lambda context, inputs: Result(names)


def pass_input(name: str) -> Action:
    """An action that passes one input on."""
    return lambda context, inputs: Result((inputs[name],))


def make_image(context: Context, inputs: Json) -> Result:
    """EmptyImage and EmptyLatentImage."""
    image = Image(
        inputs["width"],
        inputs["height"],
        seed=inputs.get("color", 0),
        batch=inputs["batch_size"],
    )
    return Result((image,))


def sample(context: Context, inputs: Json) -> Result:
    """KSampler."""
    latent = inputs["latent_image"]
    return sample_steps(context, latent, inputs["seed"], inputs["steps"])


def sample_advanced(context: Context, inputs: Json) -> Result:
    """KSamplerAdvanced, which makes a part of the steps."""
    latent = inputs["latent_image"]
    last = min(inputs["steps"], inputs["end_at_step"])
    steps = max(0, last - inputs["start_at_step"])
    return sample_steps(context, latent, inputs["noise_seed"], steps)


def sample_steps(context: Context, latent: Image, seed: int, steps: int) -> Result:
    """Report steps, each after the step_seconds of the installation."""
    preview = None
    if context.previews:
        preview = seed
    for step in range(1, steps + 1):
        context.sleep(context.installation.step_seconds)
        context.check()
        context.progress(step, steps, preview)
    return Result((latent._replace(seed=seed),))


def run_slowly(context: Context, inputs: Json) -> Result:
    """SlowProgress: steps that take a number of seconds together."""
    seed = inputs["seed"]
    steps = inputs["steps"]
    seconds_per_step = inputs["seconds"] / steps
    preview = None
    if inputs["preview"]:
        preview = seed
    for step in range(1, steps + 1):
        sleep_attentively(context, seconds_per_step)
        context.check()
        context.progress(step, steps, preview)
    return Result((Image(SMALL_SIDE, SMALL_SIDE, seed),))


def sleep_attentively(context: Context, seconds: float) -> None:
    """Wait, and look for an interrupt more often than once a step, as the recorded node does."""
    if seconds <= 0:
        return
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        context.check()
        left = max(0.0, end - time.monotonic())
        context.sleep(min(LOOK_INTERVAL, left))


def scale_image(context: Context, inputs: Json) -> Result:
    """ImageScale. A side of 0 is chosen so that the proportions stay; two of them keep the size."""
    image = inputs["image"]
    width = inputs["width"]
    height = inputs["height"]
    if not width and not height:
        return Result((image,))
    if not width:
        width = max(1, round(image.width * height / image.height))
    elif not height:
        height = max(1, round(image.height * width / image.width))
    return Result((image._replace(width=width, height=height),))


def batch_images(context: Context, inputs: Json) -> Result:
    """ImageBatch."""
    image = inputs["image1"]
    number = image.batch + inputs["image2"].batch
    return Result((image._replace(batch=number),))


def load_image(context: Context, inputs: Json) -> Result:
    """LoadImage and LoadImageMask: picture and mask have one size."""
    path = context.installation.annotated(inputs["image"])
    image = measure(path)
    return Result((image, image))


def save_images(context: Context, inputs: Json) -> Result:
    """SaveImage: pictures in output/, with prompt and workflow in them."""
    return write_images(context, inputs["images"], "output", inputs["filename_prefix"])


def preview_images(context: Context, inputs: Json) -> Result:
    """PreviewImage: the same in temp/, with five random characters in the name."""
    prefix = "ComfyUI_temp_" + uuid.uuid4().hex[:5]
    return write_images(context, inputs["images"], "temp", prefix)


def write_images(context: Context, image: Image, folder: str, prefix: str) -> Result:
    """Write each picture of a batch to a file."""
    prefix = prefix.replace("%width%", str(image.width))
    prefix = prefix.replace("%height%", str(image.height))
    size = f"{image.width}x{image.height}"
    texts = collect_texts(context)
    entries = []
    for index in range(image.batch):
        lines = ["SIMULATED", f"SEED {image.seed}", f"{size} NO {index + 1}"]
        picture = draw(image.width, image.height, image.seed + index, lines, texts)
        numbered_prefix = prefix.replace("%batch_num%", str(index))
        entry = context.installation.save(folder, numbered_prefix, picture)
        entries.append(entry)
    return Result((image,), {"images": entries})


def collect_texts(context: Context) -> List[Tuple[str, str]]:
    """What a saved picture contains: the prompt and, if it came along, the workflow."""
    texts = [("prompt", json.dumps(context.prompt))]
    extra_texts = context.extra_data.get("extra_pnginfo") or {}
    for key, value in extra_texts.items():
        texts.append((key, json.dumps(value)))
    return texts


def send_images(context: Context, inputs: Json) -> Result:
    """SaveImageWebsocket: pictures go to the client as previews, none to a file."""
    image = inputs["images"]
    lines = ["SIMULATED", f"SEED {image.seed}"]
    for index in range(image.batch):
        picture = draw(image.width, image.height, image.seed + index, lines)
        context.progress(index + 1, image.batch, picture)
    return Result()


def save_audio(context: Context, inputs: Json) -> Result:
    """SaveAudio."""
    content = make_label("flac file")
    prefix = inputs["filename_prefix"]
    entry = context.installation.save("output", prefix, content, ".flac")
    return Result((inputs["audio"],), {"audio": [entry]})


def save_video(context: Context, inputs: Json) -> Result:
    """SaveVideo, whose files are listed as animated images."""
    content = make_label("mp4 file")
    prefix = inputs["filename_prefix"]
    entry = context.installation.save("output", prefix, content, ".mp4")
    return Result((inputs["video"],), {"images": [entry], "animated": [True]})


def show_value(context: Context, inputs: Json) -> Result:
    """PreviewAny: a value as text."""
    text = inputs["source"]
    if not isinstance(text, str):
        text = json.dumps(text)
    return Result((text,), {"text": [text]})


def show_text(context: Context, inputs: Json) -> Result:
    """TextOut."""
    return Result(ui={"text": [inputs["text"]]})


def ask_partner(context: Context, inputs: Json) -> Result:
    """PartnerImage: a picture that costs credits of the account whose key came along."""
    token = context.secrets.get("auth_token_comfy_org")
    key = token or context.secrets.get("api_key_comfy_org")
    if not key:
        # ComfyUI: comfy_api_nodes/util/client.py, _friendly_http_message() for 401
        raise Exception("Unauthorized: Please login first to use this node.")
    context.installation.partner_keys.append(key)
    return Result((Image(SMALL_SIDE, SMALL_SIDE, inputs["seed"]),))


def raise_error(context: Context, inputs: Json) -> Result:
    """FailNode."""
    raise ValueError(inputs["message"])


def simulate_output(context: Context, inputs: Json) -> Result:
    """SimulatedOutput: its input is what /history shows of it.

    Files that are named there are written: by "filename" (with "type", "subfolder" and "bytes", the
    size of the file), or by a bare path, as Save3DAdvanced and its like do. For `{"source":
    "websocket"}` a picture is sent, as ETN_SendImageWebSocket of comfyui-tooling-nodes does; with
    `"listed": false` it is sent, and /history does not show it.
    """
    ui = json.loads(inputs["ui"])
    for media, entries in ui.items():
        if not isinstance(entries, list):
            continue
        shown = [entry for entry in entries if simulate_entry(context, entry)]
        ui[media] = shown
    return Result(ui=ui)


def simulate_entry(context: Context, entry: Any) -> bool:
    """Write the file or send the picture of an entry. Returns whether /history shows it."""
    if isinstance(entry, str) and entry.lower().endswith(SUFFIXES_OF_PATHS):
        path = entry.replace("\\", "/")
        write_file_of_path(context.installation, path)
    if not isinstance(entry, dict):
        return True
    if entry.get("source") == "websocket":
        picture = draw_square(seed=len(entry))
        context.send_picture(picture)
        return bool(entry.pop("listed", True))
    if "filename" in entry:
        size = entry.pop("bytes", 0)
        write_simulated_file(context.installation, entry, size)
    return True


def write_file_of_path(installation: Installation, path: str) -> None:
    """Write a file below output/, or below temp/ if the path begins with it."""
    if ".." in path:
        return
    folder_type = "output"
    if path.startswith("temp/"):
        folder_type = "temp"
        path = path[len("temp/") :]
    subfolder, _, name = path.rpartition("/")
    entry = {"filename": name, "type": folder_type, "subfolder": subfolder}
    write_simulated_file(installation, entry, size=0)


def write_simulated_file(installation: Installation, entry: Json, size: int) -> None:
    """Write a picture for a .png without a size, a label for anything else."""
    name = entry["filename"]
    if name.lower().endswith(".png") and not size:
        content = draw_square(seed=zlib.crc32(name.encode()))
    else:
        content = make_label(name, size)
    folder_type = entry.get("type", "output")
    subfolder = entry.get("subfolder", "")
    folder = installation.folder(folder_type, subfolder)
    path = path_inside(folder, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(content)


def draw_square(seed: int) -> bytes:
    """A small picture for which only the seed matters."""
    return draw(SMALL_SIDE, SMALL_SIDE, seed, ["SIMULATED"])
