"""What nodes do: pass on the size and the seed of a picture, and write files."""

from __future__ import annotations

import json
import os
import time
import uuid
import zlib
from typing import Any, Callable, Optional, Protocol, Tuple

from comfyui_runner.simulator.installation import Installation, inside
from comfyui_runner.simulator.pictures import Image, draw, label, measure
from comfyui_runner.simulator.prompts import Json

Ran = Tuple[Tuple[Any, ...], Optional[Json]]  # (outputs, ui)
Run = Callable[["Context", Json], Ran]


class Context(Protocol):
    """What a node may ask of the run that it is in."""

    prompt: Json
    extra_data: Json
    previews: bool

    @property
    def sim(self) -> Installation: ...

    def check(self) -> None: ...

    def sleep(self, seconds: float) -> None: ...

    def progress(self, value: int, total: int, preview: int | bytes | None = None) -> None: ...


def pass_on(name: str, outputs: list[str]) -> Run:
    return lambda running, inputs: ((inputs[name],) if name else tuple(outputs), None)


def _empty(running: Context, inputs: Json) -> Ran:
    seed = inputs.get("color", 0)
    return (Image(inputs["width"], inputs["height"], seed, inputs["batch_size"]),), None


def _sample(running: Context, inputs: Json) -> Ran:
    steps, latent = inputs["steps"], inputs["latent_image"]
    seed = inputs.get("seed", inputs.get("noise_seed"))
    if "end_at_step" in inputs:
        steps = max(0, min(steps, inputs["end_at_step"]) - inputs["start_at_step"])
    for step in range(1, steps + 1):
        running.sleep(running.sim.step_seconds)
        running.check()
        running.progress(step, steps, seed if running.previews else None)
    return (latent._replace(seed=seed),), None


def _slow(running: Context, inputs: Json) -> Ran:
    steps, pause = inputs["steps"], inputs["seconds"] / inputs["steps"]
    for step in range(1, steps + 1):
        until = time.monotonic() + pause
        while pause > 0 and time.monotonic() < until:
            running.check()  # more often than once a step, as its original does
            running.sleep(min(0.05, max(0.0, until - time.monotonic())))
        running.check()
        running.progress(step, steps, inputs["seed"] if inputs["preview"] else None)
    return (Image(64, 64, inputs["seed"]),), None


def _scale(running: Context, inputs: Json) -> Ran:
    image = inputs["image"]
    width, height = inputs["width"], inputs["height"]
    width = width or max(1, round(image.width * height / image.height)) if height else width
    height = height or max(1, round(image.height * width / image.width)) if width else height
    return (image._replace(width=width or image.width, height=height or image.height),), None


def _batch(running: Context, inputs: Json) -> Ran:
    image = inputs["image1"]
    return (image._replace(batch=image.batch + inputs["image2"].batch),), None


def _load_image(running: Context, inputs: Json) -> Ran:
    image = measure(running.sim.annotated(inputs["image"]))
    return (image, image), None


def _save_image(running: Context, inputs: Json) -> Ran:
    kind = "output" if "filename_prefix" in inputs else "temp"
    prefix = inputs.get("filename_prefix", "ComfyUI_temp_" + uuid.uuid4().hex[:5])
    image = inputs["images"]
    texts = [("prompt", json.dumps(running.prompt))]
    for key, value in (running.extra_data.get("extra_pnginfo") or {}).items():
        texts.append((key, json.dumps(value)))
    saved = []
    for number in range(image.batch):
        size = f"{image.width}x{image.height}"
        lines = ["SIMULATED", f"SEED {image.seed}", f"{size} NO {number + 1}"]
        data = draw(image.width, image.height, image.seed + number, lines, texts)
        prefix = prefix.replace("%width%", str(image.width)).replace("%height%", str(image.height))
        saved.append(running.sim.save(kind, prefix.replace("%batch_num%", str(number)), data))
    return (image,), {"images": saved}


def _send_image(running: Context, inputs: Json) -> Ran:
    image = inputs["images"]
    for number in range(image.batch):
        lines = ["SIMULATED", f"SEED {image.seed}"]
        data = draw(image.width, image.height, image.seed + number, lines)
        running.progress(number + 1, image.batch, data)
    return (), None


def _save_file(media: str, source: str, suffix: str) -> Run:
    def run(running: Context, inputs: Json) -> Ran:
        sim = running.sim
        saved = sim.save("output", inputs["filename_prefix"], label(suffix[1:] + " file"), suffix)
        ui = {media: [saved], "animated": [True]} if media == "images" else {media: [saved]}
        return (inputs[source],), ui

    return run


def _preview_any(running: Context, inputs: Json) -> Ran:
    value = inputs["source"]
    text = value if isinstance(value, str) else json.dumps(value)
    return (text,), {"text": [text]}


def _fail(running: Context, inputs: Json) -> Ran:
    raise ValueError(inputs["message"])


def _simulated_output(running: Context, inputs: Json) -> Ran:
    """Write what a ui names, in a folder that a ui may name."""
    ui = json.loads(inputs["ui"])
    for items in ui.values():
        for item in items if isinstance(items, list) else ():
            if isinstance(item, dict) and "filename" in item:
                name, size = item["filename"], item.pop("bytes", 0)
                picture = name.lower().endswith(".png") and not size
                data = draw(64, 64, zlib.crc32(name.encode()), ["SIMULATED"]) if picture else b""
                subfolder = item.get("subfolder", "")
                folder = running.sim.folder(item.get("type", "output"), subfolder)
                path = inside(folder, name)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "wb") as file:
                    file.write(data or label(name, size))
    return (), ui


#: The last column of the table; "=name" passes that input on, nothing means names for the outputs.
ACTIONS: dict[str, Run] = {
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
