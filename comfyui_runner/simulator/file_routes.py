"""The routes of files: /view and /upload."""

from __future__ import annotations

import functools
import json
import os
import re

from comfyui_runner.simulator.folders import (
    FOLDERS,
    guess_media_type,
    path_inside,
    split_annotation,
    when_not_in_use,
)
from comfyui_runner.simulator.forms import Form, Upload, discard_form, hash_file, read_form
from comfyui_runner.simulator.http_request import Request
from comfyui_runner.simulator.installation import Installation
from comfyui_runner.simulator.pictures import draw, measure
from comfyui_runner.simulator.prompts import Json
from comfyui_runner.simulator.replies import TROUBLE, Reply, as_json

LONGEST_SIDE_OF_PREVIEW = 512
#: Types that a browser would run or draw: they are sent as application/octet-stream.
ACTIVE_TYPES = ("text/html", "text/css", "text/javascript", "application/javascript")
#: Newer servers count these among them.
DRAWN_TYPES = ("image/svg+xml", "application/xml", "text/xml")


def get_view(request: Request) -> Reply:
    """A file of the input, output or temp folder, or a small picture in its place."""
    query = request.query
    web_pages = request.installation.faults.web_pages
    if web_pages:
        return Reply(200, b"<html><title>Please wait</title></html>", web_pages.pop(0))
    if "filename" not in query:
        return Reply(404)
    name, folder = split_annotation(query["filename"], query.get("type", "output"))
    leads_elsewhere = name.startswith("/") or ".." in name
    if not name or leads_elsewhere or folder not in FOLDERS:
        return Reply(400)
    try:
        path_of_folder = request.installation.folder(folder, query.get("subfolder", ""))
        path = path_inside(path_of_folder, os.path.basename(name))
    except PermissionError:
        return Reply(403)
    if not os.path.isfile(path):
        return Reply(404)
    media_type = guess_media_type(path)
    headers = (("Content-Disposition", f'filename="{os.path.basename(path)}"'),)
    if "preview" in query:
        if not media_type.startswith("image/"):
            return TROUBLE  # as for a file that Pillow cannot open
        return Reply(200, draw_small(path), "image/png", headers)
    is_active = media_type in ACTIVE_TYPES
    if media_type in DRAWN_TYPES and request.installation.has("jobs"):
        is_active = True
    if is_active:
        media_type = "application/octet-stream"
    return Reply(200, content_type=media_type, headers=headers, path=path)


def draw_small(path: str) -> bytes:
    """A picture of the proportions of an image file, not larger than a preview."""
    image = measure(path)
    longest_side = max(image.width, image.height)
    scale = max(1.0, longest_side / LONGEST_SIDE_OF_PREVIEW)
    width = max(1, int(image.width / scale))
    height = max(1, int(image.height / scale))
    return draw(width, height, image.seed, ["SIMULATED", "PREVIEW"])


def post_upload(request: Request, what: str) -> Reply:
    """Store a file ("image", of whatever type), or the picture of a "mask"."""
    content_type = request.headers.get("Content-Type", "")
    boundary = re.search(r'boundary="?([^";]+)', content_type)
    is_form = content_type.lower().startswith("multipart/form-data")
    if not is_form or boundary is None:
        return Reply(400)
    form = read_form(request.body, boundary[1], request.installation.root)
    try:
        return store_upload(request.installation, form, is_mask=what == "mask")
    finally:
        discard_form(form)


def store_upload(installation: Installation, form: Form, is_mask: bool) -> Reply:
    """Put an uploaded file where its form says, under a name that is free unless it overwrites."""
    upload = form.get("image")
    folder = str(form.get("type", "input"))
    subfolder = str(form.get("subfolder", ""))
    if folder not in FOLDERS:
        raise ValueError("no such folder: " + folder)
    if not upload:
        return Reply(400)
    if isinstance(upload, str):
        raise TypeError("the image is a text field")
    try:
        directory = installation.folder(folder, subfolder)
        path = path_inside(directory, upload.filename)
        path_inside(installation.folder(folder), os.path.join(directory, upload.filename))
    except PermissionError:
        return Reply(400)
    original = None
    if is_mask:
        original = json.loads(str(form["original_ref"]))
    may_overwrite = form.get("overwrite") in ("true", "1")
    with installation.naming:
        os.makedirs(directory, exist_ok=True)
        name = upload.filename
        exists_already = False
        if not may_overwrite:
            name, exists_already = choose_name(directory, upload)
            path = path_inside(directory, name)
        if not exists_already:
            if original is None:
                when_not_in_use(functools.partial(os.replace, upload.path, path))
            else:
                store_mask(installation, original, path)
    return as_json({"name": name, "subfolder": subfolder, "type": folder})


def choose_name(directory: str, upload: Upload) -> tuple[str, bool]:
    """A free name for an upload, or the name of the same file if it exists already.

    Returns the name, and whether the same file exists already.
    """
    stem, suffix = os.path.splitext(upload.filename)
    name = upload.filename
    number = 0
    while True:
        path = path_inside(directory, name)
        if not os.path.exists(path):
            return name, False
        if hash_file(path) == hash_file(upload.path):
            return name, True
        number += 1
        name = f"{stem} ({number}){suffix}"


def store_mask(installation: Installation, original: Json, path: str) -> None:
    """Replace the original by one with the mask's alpha; if it is missing, write nothing."""
    name, folder = split_annotation(original["filename"], original.get("type", "output"))
    try:
        directory = installation.folder(folder, original.get("subfolder", ""))
        source = path_inside(directory, name)
    except PermissionError:
        return  # a real server also answers 200 here
    if not os.path.isfile(source):
        return
    image = measure(source)
    picture = draw(image.width, image.height, image.seed, ["SIMULATED", "MASKED"])
    with open(path, "wb") as file:
        file.write(picture)
