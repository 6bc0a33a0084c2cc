"""Files of the package that the program serves. The one-file build has their texts in the file itself."""

from __future__ import annotations

import pkgutil


def read_resource(name: str) -> str:
    """The text of a file in extras/, with "\\n" at the ends of its lines: git may write others on Windows."""
    data = pkgutil.get_data("comfyui_runner.extras", name)
    assert data is not None
    return data.decode().replace("\r\n", "\n")
