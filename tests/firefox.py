"""A Firefox without a window, driven by WebDriver BiDi: JSON over a WebSocket, which Firefox speaks itself."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import subprocess
import tempfile
import time
from typing import Any, Dict, Iterator, List

from websockets.sync.client import ClientConnection, connect

#: Seconds for the browser to start, and to answer one command: a deadline, not a delay.
WAIT = 120.0

#: What Firefox changes for tests stays as people have it; and it asks nobody for updates.
PREFERENCES = {
    "remote.prefs.recommended": False,
    "app.update.disabledForTesting": True,
    "browser.aboutwelcome.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "security.warn_submit_secure_to_insecure": False,  # somebody who is asked says yes
    "network.socket.ip_addr_any.disabled": False,  # 0.0.0.0 leads to this machine, as in older versions
}

#: A page is read; where nothing answers it is Firefox's own about:neterror.
PAGE_IS_READ = "browsingContext.domContentLoaded"


class FirefoxError(Exception):
    """What Firefox answers to a command that it cannot carry out."""


class Firefox:
    """One tab of a running Firefox."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self._events: List[Dict[str, Any]] = []  # that nobody has looked at
        self._call("session.new", capabilities={})
        self._call("session.subscribe", events=[PAGE_IS_READ])
        self._tab = self._call("browsingContext.create", type="tab")["context"]

    def go(self, url: str) -> None:
        """Opens an address, as by the address bar, and waits until its page is read. Raises FirefoxError."""
        self._events.clear()
        # Its answer may be the error of a frame, of this page or the one before: the event counts.
        with contextlib.suppress(FirefoxError):
            self._call("browsingContext.navigate", context=self._tab, url=url, wait="none")
        while url not in self._pages_read():
            if any(page.startswith("about:neterror") for page in self._pages_read()):
                raise FirefoxError(f"{url} cannot be opened")
            self._receive()

    def evaluate(self, expression: str) -> None:
        """Runs JavaScript in the page; a promise is waited for. Raises FirefoxError for an exception."""
        target = {"context": self._tab}
        answer = self._call("script.evaluate", expression=expression, target=target, awaitPromise=True)
        if answer["type"] != "success":
            raise FirefoxError(answer["exceptionDetails"]["text"])

    def leave_for(self, page_url: str, url: str) -> None:
        """Has a page itself go elsewhere, and waits until the browser is there, or has given up."""
        self.go(page_url)
        self._events.clear()
        self.evaluate(f"setTimeout(() => {{ location = {json.dumps(url)}; }})")
        while not self._pages_read():
            self._receive()

    def _pages_read(self) -> List[str]:
        """The addresses of the pages that the tab, not a frame in it, has read."""
        about = [event["params"] for event in self._events]
        return [page["url"] for page in about if page["context"] == self._tab]

    def close(self) -> None:
        """Ends the browser."""
        self._call("browser.close")

    def _call(self, method: str, **params: Any) -> Any:
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": params}))
        answer = self._receive()
        while answer.get("id") != number:
            answer = self._receive()
        if answer["type"] == "error":
            raise FirefoxError(f"{method}: {answer['message']}")
        return answer["result"]

    def _receive(self) -> Dict[str, Any]:
        """The next message; events are kept."""
        message: Dict[str, Any] = json.loads(self._connection.recv(timeout=WAIT))
        if message["type"] == "event":
            self._events.append(message)
        return message


@contextlib.contextmanager
def start_firefox(executable: str) -> Iterator[Firefox]:
    """A Firefox with a profile of its own; it is over at the end of the block."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in PREFERENCES.items()]
        with open(os.path.join(profile, "user.js"), "w", encoding="utf-8") as file:
            file.writelines(lines)
        log = os.path.join(profile, "log.txt")
        with open(log, "wb") as out:
            process = subprocess.Popen(
                [executable, "--headless", "--no-remote", "--profile", profile, "--remote-debugging-port", "0"],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        try:
            with connect(f"{wait_for_address(process, log)}/session", max_size=None, open_timeout=WAIT) as connection:
                firefox = Firefox(connection)
                yield firefox
                firefox.close()
                process.wait(WAIT)
        finally:
            process.kill()
            process.wait()


def wait_for_address(process: "subprocess.Popen[bytes]", log: str) -> str:
    """Where Firefox listens, once it says so."""
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        with open(log, encoding="utf-8", errors="replace") as file:
            text = file.read()
        found = re.search(r"WebDriver BiDi listening on (ws://\S+)", text)
        if found:
            return found[1]
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise AssertionError(f"Firefox did not start:\n{text}")
