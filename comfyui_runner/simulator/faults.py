"""What goes wrong, as a test or the command line asks for it."""

from __future__ import annotations

import dataclasses


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
    #: accepted), "after" (accepted, then cut), "late:SECONDS" (cut, accepted that much later),
    #: "unnamed" (refused without a node, as by old servers and packs that change the answer).
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
    #: Path -> the status of an answer that quotes the request, with its headers and its body, and
    #: whether it is "text", as of some proxies, or "json", a refusal of a prompt.
    echo: dict[str, tuple[int, str]] = dataclasses.field(default_factory=dict)
    #: Path -> seconds before the answer.
    http_hang: dict[str, float] = dataclasses.field(default_factory=dict)
    #: Interrupts are accepted and ignored, as by a node that never checks.
    ignore_interrupt: bool = False
    #: Path -> number of requests whose connection is cut without an answer.
    cut_http: dict[str, int] = dataclasses.field(default_factory=dict)
    #: One is used up by each answer with a file: the bytes of it after which it is cut.
    cut_files: list[int] = dataclasses.field(default_factory=list)
    #: One is used up by each GET /view: the media type of a page that comes in place of the file.
    web_pages: list[str] = dataclasses.field(default_factory=list)
    #: Path -> what body the answer has in place of its own, whatever its status is: "endless" (JSON
    #: as fast as it is taken), "drip" (the same, 20 bytes a second), "bomb" (the same, packed with
    #: gzip to a thousandth). Or its own body, packed: "gzip" (as ComfyUI packs its answers with
    #: --enable-compress-response-body), any other word (that is said, and not done).
    bodies: dict[str, str] = dataclasses.field(default_factory=dict)


def keys_of_path(path: str) -> tuple[str, str]:
    """The keys in the mappings of Faults that cover a path: itself and its first part."""
    first_part = path.split("/")[1]
    return path, "/" + first_part
