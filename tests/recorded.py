"""What real servers said (tests/fixtures/recordings), and what a server may say at its worst (hypothesis)."""

from __future__ import annotations

import base64
import json
import os
from typing import Any, Dict, Iterator, List, NamedTuple, Union

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from support import FIXTURES

Json = Dict[str, Any]

#: The versions of ComfyUI that were recorded: an older one and a newer one.
VERSIONS = ("0.3.64", "0.33.0")


class Step(NamedTuple):
    """One thing that a recorded server said: an answer (``route``) or a WebSocket frame (``socket``)."""

    at: float
    socket: str
    frame: Union[str, bytes]
    route: str
    status: int
    body: Any
    request: Any
    note: str


def recorded(version: str, scenario: str) -> List[Step]:
    """The steps of a recording, in their order."""
    with open(os.path.join(FIXTURES, "recordings", version, scenario + ".json"), encoding="utf-8") as file:
        steps = json.load(file)["steps"]
    return [
        Step(
            step["at"], step.get("ws", ""), _frame(step), step.get("http", ""), step.get("status", 0),
            step.get("body"), step.get("request_json"), step.get("note", ""),
        )
        for step in steps
    ]  # fmt: skip


def _frame(step: Json) -> Union[str, bytes]:
    if "binary" not in step:
        return json.dumps(step["json"]) if "json" in step else ""
    head = base64.b64decode(step["binary"]["head_base64"])
    if b"prompt_id" in head:  # the recorder cut the JSON of a frame of type 4; its length shows what was in it
        prompt_id = head.split(b'"')[7].decode()
        known = {"node_id": "1", "prompt_id": prompt_id, "display_node_id": "1", "parent_node_id": None}
        meta = json.dumps({**known, "real_node_id": "1", "image_type": "image/jpeg"}).encode()
        assert len(meta) == int.from_bytes(head[4:8], "big") and (head[:8] + meta).startswith(head)
        head = head[:8] + meta
    return head.ljust(step["binary"]["bytes"], b"\0")


def answers(version: str, scenario: str, route: str) -> Iterator[Step]:
    """The recorded answers to calls whose "METHOD /path" begins with ``route``."""
    return (step for step in recorded(version, scenario) if step.route.startswith(route))


# ------------------------------------------------------------------------------------------------
# At its worst
# ------------------------------------------------------------------------------------------------

#: The same examples every time, as many as are worth their time.
few = settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)

#: For the few properties that all else depends on.
many = settings(few, max_examples=300)

#: Any JSON, with the NaN and the infinities that Python's own encoder lets through.
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)

#: Ids of nodes as they come: plain, in a subgraph, made at run time, null, not even a text.
node_ids = st.sampled_from(["1", "2", "3", "9", "12:34", "3.0.0.1", "", None, 2])

numbers = st.sampled_from([0, 1, 2, 20, -1, 0.5, 1e299, 10**400, float("nan"), float("inf"), None, "7", True])

_ids = {"node": node_ids, "display_node": node_ids}
_part = st.fixed_dictionaries(
    {},
    optional={
        "value": numbers,
        "max": numbers,
        "state": st.sampled_from(["running", "finished", "error", None]),
        "display_node_id": node_ids,
    },
)
_failure = {
    "node_id": node_ids | anything,
    "node_type": st.just("KSampler") | anything,
    "exception_type": st.sampled_from(["ValueError", "torch.OutOfMemoryError", "ExecutionBlocked"]) | anything,
    "exception_message": st.just("boom\n") | anything,
    "traceback": st.lists(st.text(max_size=8) | anything, max_size=3) | anything,
}
_fields = {
    "execution_start": {},
    "execution_cached": {"nodes": st.lists(node_ids, max_size=4) | anything},
    "executing": _ids,
    "progress": {**_ids, "value": numbers, "max": numbers},
    "progress_state": {"nodes": st.dictionaries(node_ids.map(str), _part | anything, max_size=3) | anything},
    "executed": {
        **_ids,
        "output": st.fixed_dictionaries({}, optional={"text": anything, "images": anything}) | anything,
    },
    "execution_success": {},
    "execution_error": _failure,
    "execution_interrupted": _failure,
    "status": {"status": anything},
}


def _message(kind: str, fields: Any) -> Any:
    common = {"prompt_id": st.just("p"), "timestamp": numbers}
    return st.tuples(st.just(kind), st.fixed_dictionaries({}, optional={**common, **fields}))


#: (type, data) of WebSocket messages, likely and unlikely ones.
messages = st.one_of([_message(kind, fields) for kind, fields in _fields.items()]) | st.tuples(
    st.sampled_from([*_fields, "logs", "unknown", "execution_complete"]),
    st.dictionaries(st.text(max_size=8), anything, max_size=3),
)

_history_messages = st.lists(messages.map(list) | anything, max_size=4)

#: History entries, likely and unlikely ones.
history_entries = st.fixed_dictionaries(
    {},
    optional={
        "prompt": st.tuples(numbers, st.just("p"), anything, anything, st.lists(node_ids, max_size=3)).map(list)
        | anything,
        "outputs": st.dictionaries(node_ids.map(str), anything, max_size=2) | anything,
        "status": st.fixed_dictionaries(
            {}, optional={"status_str": st.sampled_from(["success", "error"]), "messages": _history_messages | anything}
        )
        | anything,
    },
)
