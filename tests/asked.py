"""A server of a few fixed answers, which notes what it is asked."""

from __future__ import annotations

import http.server
import json
from typing import Any, Callable, Dict, List, Tuple

from support import FAST

from comfyui_runner.addresses import parse_address
from comfyui_runner.server import Server

Serve = Callable[[Any], str]


class Asked:
    """What came to a server that answers as ``answers`` says: path -> status and JSON."""

    def __init__(self, serve: Serve, answers: Dict[str, Tuple[int, Any]]) -> None:
        self.answers = answers
        self.requests: List[Tuple[str, str, Any]] = []
        self.headers: List[Dict[str, str]] = []
        asked = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                sent = json.loads(body) if self.headers.get("Content-Type") == "application/json" else None
                asked.requests.append((self.command, self.path, sent))
                asked.headers.append(dict(self.headers))
                status, answer = asked.answers.get(self.path.partition("?")[0], (404, {}))
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = answer

            def log_message(self, *_: Any) -> None:
                pass

        self.server = Server(parse_address(serve(Handler)), FAST)
