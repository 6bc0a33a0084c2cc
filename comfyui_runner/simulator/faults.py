"""What goes wrong, as a test or the command line asks for it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
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
    #: Each POST /prompt takes one: "ok"; "500", "502" or "503"; "before" (cut, not accepted);
    #: "after" (accepted, then cut); "late:SECONDS" (cut, and accepted that much later); "unnamed"
    #: (refused without a node, as by old servers and packs that change the answer).
    lose_post: list[str] = field(default_factory=list)
    #: A client_id that connects again gets its first status and nothing after it, as when
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
    #: Path -> the status of the answer, whose body is a text.
    http_status: dict[str, int] = field(default_factory=dict)
    #: Path -> the status and the form of an answer that quotes the headers and the body of the
    #: request: "text", as some proxies do, or "json", as a refusal of a prompt.
    echo: dict[str, tuple[int, str]] = field(default_factory=dict)
    #: Path -> seconds before the answer.
    http_hang: dict[str, float] = field(default_factory=dict)
    #: Interrupts are accepted and ignored, as by a node that never checks.
    ignore_interrupt: bool = False
    #: Path -> number of requests whose connection is cut without an answer.
    cut_http: dict[str, int] = field(default_factory=dict)
    #: Each answer with a file takes one: after how many bytes of the file it is cut.
    cut_files: list[int] = field(default_factory=list)
    #: Each GET /view takes one: the media type of a page that comes in place of the file.
    web_pages: list[str] = field(default_factory=list)
    #: Path -> the body of the answer in place of its own, whatever its status is: "endless" (JSON
    #: as fast as it is taken), "drip" (the same, 20 bytes a second), "bomb" (the same, packed with
    #: gzip to a thousandth). Or its own body, packed with "gzip" (as ComfyUI packs its answers with
    #: --enable-compress-response-body), or declared as packed with any other encoding, and not.
    bodies: dict[str, str] = field(default_factory=dict)


def keys_of_path(path: str) -> tuple[str, str]:
    """The keys in the mappings of Faults that cover a path: itself and its first part."""
    first_part = path.split("/")[1]
    return path, "/" + first_part
