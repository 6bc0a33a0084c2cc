"""Files of the package that the program serves. In the one file, their texts are part of it."""

from __future__ import annotations

import pkgutil


def read_resource(name: str) -> str:
    """The text of a file in extras/. Its lines end with "\\n": on Windows git may write others."""
    data = pkgutil.get_data("comfyui_runner.extras", name)
    assert data is not None
    return data.decode().replace("\r\n", "\n")
