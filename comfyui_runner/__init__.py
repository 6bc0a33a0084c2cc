"""What comfyui_workflow_runner.py stands on, and the Python API (docs/PYTHON.md).

    from comfyui_runner import connect

The script beside this folder tells the story.
"""

from __future__ import annotations

__version__ = "0.2.0"

# -- the Python API: its modules are imported when one of these names is first used ----------------

TYPE_CHECKING = False  # typing has it too, but takes milliseconds to import

if TYPE_CHECKING:
    from typing import List

    from comfyui_runner.edits import EditError
    from comfyui_runner.errors import (
        NodeFailed,
        NotConfirmed,
        PromptRejected,
        RunCancelled,
        RunFailed,
        RunInterrupted,
        RunLost,
        RunnerError,
        RunTimeout,
        SaveError,
        ServerError,
        ServerUnreachable,
        UsageError,
        WorkflowError,
    )
    from comfyui_runner.extras.python_api import AsyncComfy, Comfy, connect, connect_async
    from comfyui_runner.extras.python_results import RunOutput, RunResult

#: The modules of the names.
_MODULES = {
    "comfyui_runner.edits": ("EditError",),
    "comfyui_runner.errors": (
        "NodeFailed",
        "NotConfirmed",
        "PromptRejected",
        "RunCancelled",
        "RunFailed",
        "RunInterrupted",
        "RunLost",
        "RunTimeout",
        "RunnerError",
        "SaveError",
        "ServerError",
        "ServerUnreachable",
        "UsageError",
        "WorkflowError",
    ),
    "comfyui_runner.extras.python_api": ("AsyncComfy", "Comfy", "connect", "connect_async"),
    "comfyui_runner.extras.python_results": ("RunOutput", "RunResult"),
}

__all__ = [
    "AsyncComfy",
    "Comfy",
    "EditError",
    "NodeFailed",
    "NotConfirmed",
    "PromptRejected",
    "RunCancelled",
    "RunFailed",
    "RunInterrupted",
    "RunLost",
    "RunOutput",
    "RunResult",
    "RunTimeout",
    "RunnerError",
    "SaveError",
    "ServerError",
    "ServerUnreachable",
    "UsageError",
    "WorkflowError",
    "connect",
    "connect_async",
]


if not TYPE_CHECKING:  # a type checker sees the imports above

    def __getattr__(name):
        """One of the names of the Python API (PEP 562)."""
        import importlib

        for module, names in _MODULES.items():
            if name in names:
                return getattr(importlib.import_module(module), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> List[str]:
    return sorted([*globals(), *__all__])
