"""JSON from elsewhere. However deep it nests, the program must not end."""

from __future__ import annotations

import gc
import json
from typing import Any, Union

#: How deep arrays and objects may nest. What ComfyUI and its frontend write stays under 30 levels,
#: and code that walks a value by recursion has room for 100.
DEEPEST_JSON = 100


def parse_json(text: Union[str, bytes]) -> Any:
    """The value of ``text``; bytes are in UTF-8, UTF-16 or UTF-32.

    Raises ValueError: JSONDecodeError with line and column, UnicodeDecodeError, or ValueError
    itself where arrays and objects nest too deep.
    """
    if not may_be_deep(text):
        return json.loads(text)
    value = _parse_deep_json(text)
    if _is_deeper_than(DEEPEST_JSON, value):
        raise _too_deep()
    return value


def may_be_deep(text: Union[str, bytes]) -> bool:
    """Whether ``text`` opens so many arrays and objects that they could nest too deep."""
    if isinstance(text, str):
        opened = text.count("[") + text.count("{")
    else:
        opened = text.count(b"[") + text.count(b"{")
    return opened > DEEPEST_JSON


def _parse_deep_json(text: Union[str, bytes]) -> Any:
    # The scanner recurses in C. If the garbage collector runs a finalizer near the end of the
    # stack, Python 3.8 aborts ("Cannot recover from stack overflow"), so it must wait.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return json.loads(text)
    except RecursionError:
        raise _too_deep() from None
    finally:
        if was_enabled:
            gc.enable()


def _is_deeper_than(limit: int, value: Any) -> bool:
    """Whether arrays and objects nest deeper than ``limit`` levels; without recursion."""
    items = [value]  # all those of one level
    for _ in range(limit + 1):
        containers = [item for item in items if isinstance(item, (dict, list))]
        if not containers:
            return False
        items = []
        for container in containers:
            if isinstance(container, dict):
                items.extend(container.values())
            else:
                items.extend(container)
    return True


def _too_deep() -> ValueError:
    return ValueError(f"arrays and objects nest deeper than {DEEPEST_JSON} levels")
