"""The routes that say what a server is and has."""

from __future__ import annotations

import os
import sys

from comfyui_runner.simulator.http_request import Request
from comfyui_runner.simulator.installation import MODELS
from comfyui_runner.simulator.nodes import NODES
from comfyui_runner.simulator.prompts import Json
from comfyui_runner.simulator.replies import Reply, as_json

GIB = 1 << 30


def get_object_info(request: Request) -> Reply:
    """All node classes."""
    object_info = {name: node.info(request.installation) for name, node in NODES.items()}
    return as_json(object_info)


def get_object_info_of_class(request: Request, name: str) -> Reply:
    """One node class; {} if there is none of that name."""
    if name not in NODES:
        return as_json({})
    info = NODES[name].info(request.installation)
    return as_json({name: info})


def get_system_stats(request: Request) -> Reply:
    """The system; its device says that it is simulated."""
    installation = request.installation
    platform = os.name
    if installation.has("jobs"):
        platform = sys.platform
    system: Json = {
        "os": platform,
        "ram_total": 16 * GIB,
        "ram_free": 8 * GIB,
        "comfyui_version": installation.version,
        "python_version": sys.version,
        "embedded_python": False,
        "pytorch_version": "simulated",
        "argv": ["main.py"],
    }
    device = {
        "name": "simulated (no GPU)",
        "type": "cpu",
        "index": None,
        "vram_total": 16 * GIB,
        "vram_free": 8 * GIB,
        "torch_vram_total": 16 * GIB,
        "torch_vram_free": 8 * GIB,
    }
    return as_json({"system": system, "devices": [device]})


def get_features(request: Request) -> Reply:
    """The feature flags of the server."""
    return as_json(request.installation.features())


def get_embeddings(request: Request) -> Reply:
    """The names of embeddings, without suffix."""
    names = [os.path.splitext(name)[0] for name in MODELS["embeddings"]]
    return as_json(names)


def get_models(request: Request) -> Reply:
    """The model folders."""
    return as_json(list(MODELS))


def get_models_of_folder(request: Request, folder: str) -> Reply:
    """The models in a folder."""
    if folder not in MODELS:
        return Reply(404)
    return as_json(MODELS[folder])


def get_extensions(request: Request) -> Reply:
    """The scripts of the frontend's extensions: none, as there is no frontend."""
    return as_json([])
