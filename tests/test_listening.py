"""The port of continuous mode, as each system takes it."""

from __future__ import annotations

import http.server
import os
import socket
from typing import Any

import pytest
from served import Middleware
from support import FAST, ROOT, needs_ipv6

from comfyui_runner.http_server import WINDOWS_EXCLUSIVE_USE, options_of_listener

BOTH_FAMILIES = (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
ALONE = (socket.SOL_SOCKET, WINDOWS_EXCLUSIVE_USE, 1)


@pytest.mark.parametrize(
    ("family", "is_windows", "options"),
    [
        (socket.AF_INET, False, []),
        (socket.AF_INET, True, [ALONE]),
        (socket.AF_INET6, False, [BOTH_FAMILIES]),
        (socket.AF_INET6, True, [BOTH_FAMILIES, ALONE]),
    ],
)
def test_how_a_port_is_taken(family: int, is_windows: bool, options: Any) -> None:
    assert options_of_listener(family, is_windows) == options


def test_the_option_is_the_one_that_windows_has() -> None:
    assert getattr(socket, "SO_EXCLUSIVEADDRUSE", -5) == WINDOWS_EXCLUSIVE_USE
    assert ~socket.SO_REUSEADDR == WINDOWS_EXCLUSIVE_USE or socket.SO_REUSEADDR != 4  # 4 on Windows


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="the system shares no ports")
def test_no_port_is_shared_though_pythons_own_server_allows_it(simulator: Any, monkeypatch: Any) -> None:
    """The second service would take a part of the first one's requests, and nobody would know."""
    monkeypatch.setattr(http.server.HTTPServer, "allow_reuse_port", True, raising=False)
    arguments = ["--server", simulator.url, os.path.join(ROOT, "workflow_api.json")]
    service = Middleware(arguments, {}, FAST)
    try:
        listening = service.listener.socket
        assert listening.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0
        # But a service that is started again gets its port, though old connections linger there.
        assert listening.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    finally:
        assert service.stop() == 0


@needs_ipv6
def test_all_addresses_are_those_of_both_families(simulator: Any) -> None:
    arguments = ["--server", simulator.url, "--host", "::", os.path.join(ROOT, "workflow_api.json")]
    service = Middleware(arguments, {"COMFYUI_RUNNER_TOKEN": "s3cret-of-the-tests"}, FAST)
    try:
        assert service.listener.socket.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 0
        with socket.create_connection(("127.0.0.1", service.listener.server_port), timeout=10):
            pass
    finally:
        assert service.stop() == 0
