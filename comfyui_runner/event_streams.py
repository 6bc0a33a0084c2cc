"""Server-Sent Events: everything that happens, sent to every client that listens."""

from __future__ import annotations

import queue
import threading
from typing import Any, Callable, List, Optional

from comfyui_runner.messages import strict_json
from comfyui_runner.redaction import Secrets

#: Events that are sent in one piece at most.
EVENTS_PER_PIECE = 500

#: Bytes of events that wait for a client before it is dropped: an event can have megabytes.
BYTES_WAITING = 32 << 20

#: Sent when nothing else is, so that the client and every proxy know that the stream lives.
KEEP_ALIVE = b": nothing new\n\n"


def encode_event(name: str, data: Any, secrets: Secrets) -> bytes:
    """A Server-Sent Event with ``data`` as JSON, in which ``secrets`` are hidden."""
    return encode_text_event(name, strict_json(data), secrets)


def encode_text_event(name: str, text: str, secrets: Secrets) -> bytes:
    """A Server-Sent Event with ``text``, which is JSON, in which ``secrets`` are hidden."""
    shown = secrets.hide_in_json(text)
    return f"event: {name}\ndata: {shown}\n\n".encode()


class EventStream:
    """One client that listens: a queue of what it has not been sent yet.

    put() is called from any thread, with the service's lock; send_until_end() in the thread of the
    client's connection.
    """

    def __init__(self, prompt_id: Optional[str], queue_size: int) -> None:
        self.prompt_id = prompt_id  #: the run that it is about; None: all
        self.was_dropped = False
        self._waiting: "queue.Queue[Optional[bytes]]" = queue.Queue(queue_size)
        # Bytes of all events so far. Each number is changed in one place: put() is called by one
        # thread at a time, and _next_events() by another one.
        self._bytes_put = 0
        self._bytes_taken = 0

    def wants(self, prompt_id: Optional[str]) -> bool:
        """Whether it gets an event about ``prompt_id`` (None: about no run in particular)."""
        return prompt_id is None or self.prompt_id in (None, prompt_id)

    def put(self, event: Optional[bytes]) -> None:
        """Hand it an event, or None for the end.

        A client that reads too slowly is dropped: it connects again and gets the state anew.
        """
        waiting = self._bytes_put - self._bytes_taken
        size = len(event or b"")
        if waiting and waiting + size > BYTES_WAITING:  # alone, any event is let through
            self.was_dropped = True
            return
        self._bytes_put += size
        try:
            self._waiting.put_nowait(event)
        except queue.Full:
            self.was_dropped = True

    def send_until_end(self, send: Callable[[bytes], None], keep_alive_seconds: float) -> None:
        """Send the events as they come. Raises OSError when the client is gone."""
        while not self.was_dropped:
            events = self._next_events(keep_alive_seconds)
            send(b"".join(event for event in events if event is not None))
            if None in events:
                return

    def _next_events(self, keep_alive_seconds: float) -> List[Optional[bytes]]:
        """What waits, or KEEP_ALIVE when nothing came for so long."""
        try:
            events = [self._waiting.get(timeout=keep_alive_seconds)]
        except queue.Empty:
            return [KEEP_ALIVE]
        while len(events) < EVENTS_PER_PIECE and not self._waiting.empty():
            events.append(self._waiting.get_nowait())
        self._bytes_taken += sum(len(event or b"") for event in events)
        return events


class EventStreams:
    """All clients that listen. ``lock`` is the service's."""

    def __init__(
        self,
        lock: "threading.RLock",
        secrets: Secrets,
        queue_size: int = 2000,
        keep_alive_seconds: float = 15.0,
    ) -> None:
        self.queue_size = queue_size  #: events that wait for a client before it is dropped
        self.keep_alive_seconds = keep_alive_seconds
        self._lock = lock
        self._secrets = secrets
        self._streams: List[EventStream] = []

    def __len__(self) -> int:
        return len(self._streams)

    def open(self, prompt_id: Optional[str]) -> EventStream:
        """A stream of all events, or of those about one run. To be given back to close()."""
        stream = EventStream(prompt_id, self.queue_size)
        with self._lock:
            self._streams.append(stream)
        return stream

    def close(self, stream: EventStream) -> None:
        """Send nothing to ``stream`` any more."""
        with self._lock:
            if stream in self._streams:
                self._streams.remove(stream)

    def publish(self, name: str, data: Any, prompt_id: Optional[str] = None) -> int:
        """Send an event to everybody who wants it; its size in bytes."""
        event = encode_event(name, data, self._secrets)
        with self._lock:
            for stream in list(self._streams):
                if stream.wants(prompt_id):
                    stream.put(event)
                if stream.was_dropped:
                    self._streams.remove(stream)
        return len(event)

    def end(self) -> None:
        """Send every client the news that the service ends."""
        with self._lock:
            for stream in self._streams:
                stream.put(encode_event("end", {}, self._secrets))
                stream.put(None)
