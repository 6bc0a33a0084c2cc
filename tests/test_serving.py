"""What the steps of continuous mode say, without a socket."""

from __future__ import annotations

import errno

import pytest

from comfyui_runner.addresses import parse_address
from comfyui_runner.errors import UsageError
from comfyui_runner.server import Server
from comfyui_runner.serving import cannot_listen, refuse_own_address, url_of_service


class WindowsError(OSError):
    """An error of Windows, on any system."""

    winerror = 10048


@pytest.mark.parametrize("error", [OSError(errno.EADDRINUSE, "x"), WindowsError(0, "x")])
def test_a_port_in_use_is_named_with_another_one(error: OSError) -> None:
    refusal = cannot_listen(error, "127.0.0.1", 8189)
    assert (refusal.message, refusal.remedy) == ("Port 8189 is already in use.", "Choose another one: --port 8190")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.EACCES, "Permission denied"), "Permission denied"),
        (OSError("the name is not known"), "the name is not known"),
    ],
)
def test_another_reason_is_not_called_a_port_in_use(error: OSError, reason: str) -> None:
    refusal = cannot_listen(error, "gpu.example", 80)
    assert refusal.message == f"The service cannot listen on gpu.example, port 80: {reason}."
    assert refusal.remedy == "Check --host and --port."


def test_a_port_that_windows_forbids_keeps_its_reason() -> None:
    error = WindowsError(errno.EACCES, "An attempt was made to access a socket in a way forbidden by its permissions.")
    error.winerror = 10013
    refusal = cannot_listen(error, "127.0.0.1", 8189)
    assert refusal.message == (
        "The service cannot listen on 127.0.0.1, port 8189: "
        "An attempt was made to access a socket in a way forbidden by its permissions."
    )
    assert "Another program has the port for itself, or Windows has reserved it" in refusal.remedy
    assert refusal.remedy.endswith("--port 8190")


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8189"),
        ("0.0.0.0", "http://127.0.0.1:8189"),
        ("::", "http://127.0.0.1:8189"),
        ("::1", "http://[::1]:8189"),
        ("gpu.example", "http://gpu.example:8189"),
    ],
)
def test_the_address_for_a_browser(host: str, url: str) -> None:
    assert url_of_service(host, 8189) == url


def serve_from(port: int, *addresses: str) -> None:
    refuse_own_address([Server(parse_address(address)) for address in addresses], port)


def test_a_service_is_not_its_own_comfyui() -> None:
    with pytest.raises(UsageError, match=r"--server is the address of this service itself \(port 8189\)"):
        serve_from(8189, "http://localhost:8189")
    with pytest.raises(UsageError):  # nor the second address that is tried
        serve_from(8000, "http://127.0.0.1:8188", "http://127.0.0.1:8000")
    serve_from(8189, "http://127.0.0.1:8188", "http://127.0.0.1:8000")
    serve_from(8189, "http://192.0.2.1:8189")  # the same port of another machine
