"""What HTTP and the WebSocket connect to, and whom they trust: the same proxy, the same certificates."""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
import socket
import socketserver
import ssl
from typing import Any, Dict, FrozenSet, Iterator, List

import pytest
import websockets.version
from support import CERTIFICATE, FAST, needs_ipv6, pump_to_port, run, slow_prompt

from comfyui_runner.addresses import parse_address
from comfyui_runner.certificates import certifi_bundle, make_ssl_context, make_ssl_context_for_http
from comfyui_runner.errors import ExitStatus, ServerUnreachable
from comfyui_runner.host_routes import HostRoute
from comfyui_runner.http_connections import make_adapter
from comfyui_runner.proxies import name_proxy_of, proxy_of_system, require_package_for_proxy
from comfyui_runner.server import Server
from comfyui_runner.websocket import close_websocket, connect_websocket

PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ws_proxy", "wss_proxy", "socks_proxy")

knows_proxies = pytest.mark.skipif(
    int(websockets.version.version.partition(".")[0]) < 15, reason="this websockets uses no proxy"
)


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: Any) -> Iterator[None]:
    """No proxy, whatever the machine has."""
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    yield


@pytest.mark.parametrize(
    ("variables", "proxy"),
    [
        ({}, ""),
        ({"HTTP_PROXY": "http://proxy:3128"}, "http://proxy:3128"),
        ({"HTTP_PROXY": "proxy:3128"}, "http://proxy:3128"),
        ({"HTTPS_PROXY": "http://proxy:3128"}, ""),
        ({"ALL_PROXY": "socks5://proxy:1080"}, "socks5://proxy:1080"),
        ({"HTTP_PROXY": "http://proxy:3128", "NO_PROXY": "comfy.example"}, ""),
        ({"WS_PROXY": "http://proxy:3128", "SOCKS_PROXY": "socks5://proxy:1080"}, ""),  # not HTTP's
    ],
)
def test_the_proxy_of_http(variables: Dict[str, str], proxy: str, monkeypatch: Any) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
        monkeypatch.setenv(name.lower(), value)
    assert proxy_of_system("http://comfy.example:8188") == proxy


@knows_proxies
def test_the_websocket_goes_through_the_proxy_of_http(simulator: Any, serve_tcp: Any, monkeypatch: Any) -> None:
    asked: List[bytes] = []

    class Proxy(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            """Leads to the simulator, whatever host is asked for: the proxy knows its name, we do not."""
            asked.append(self.rfile.readline())
            while self.rfile.readline().strip():
                pass
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            pump_to_port(self.connection, simulator.port)

    port = serve_tcp(Proxy)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("ws_proxy", "http://127.0.0.1:1")
    server = Server(parse_address("http://comfy.invalid:8188"), FAST)

    async def open_and_close() -> None:
        await close_websocket(await connect_websocket(server, "client"))

    asyncio.run(open_and_close())
    assert asked == [b"CONNECT comfy.invalid:8188 HTTP/1.1\r\n"]


no_python_socks = pytest.mark.skipif(
    importlib.util.find_spec("python_socks") is not None, reason="the package is installed here"
)


def test_a_proxy_is_named_without_its_login() -> None:
    assert name_proxy_of("socks5h://user:p%40ss@proxy.example:1080/") == "socks5h://proxy.example:1080"


@no_python_socks
@pytest.mark.parametrize("scheme", ["socks4", "socks5", "socks5h"])
def test_a_socks_proxy_needs_a_package(scheme: str) -> None:
    with pytest.raises(
        ServerUnreachable, match=f"the proxy {scheme}://proxy:1080 needs the Python package python-socks"
    ):
        require_package_for_proxy(f"{scheme}://user:pass@proxy:1080")
    require_package_for_proxy("http://proxy:3128")  # needs none


@no_python_socks
@knows_proxies
@needs_ipv6
def test_without_the_package_a_run_goes_on_without_websocket(
    simulator: Any, workflow_file: Any, monkeypatch: Any
) -> None:
    # HTTP has PySocks, which is a package of its own: here it reaches the server without it.
    monkeypatch.setattr("comfyui_runner.websocket.proxy_of_system", lambda url: "socks5://me:secret@proxy:1080")
    url = f"http://[::ffff:127.0.0.1]:{simulator.port}"  # does not count as local
    result = run("--server", url, "--yes", workflow_file(slow_prompt(steps=2, seconds=0.0)))
    assert result.status == ExitStatus.OK
    assert "No WebSocket (the proxy socks5://proxy:1080 needs the Python package python-socks)" in result.out
    assert "secret" not in result.out + result.err


@pytest.mark.skipif(importlib.util.find_spec("socks") is not None, reason="PySocks is installed here")
def test_http_through_a_socks_proxy_names_it_and_what_it_needs(workflow_file: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://me:secret@proxy:1080")
    result = run("--server", "http://comfy.example:8188", "--yes", workflow_file(slow_prompt()))
    assert result.status == ExitStatus.NO_SERVER
    assert "http://comfy.example:8188: the proxy socks5://proxy:1080 needs the Python package PySocks." in result.err
    assert "secret" not in result.err


def subjects(context: ssl.SSLContext) -> FrozenSet[Any]:
    return frozenset(certificate["subject"] for certificate in context.get_ca_certs())


def subjects_in(path: str) -> FrozenSet[Any]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(path)
    return subjects(context)


def test_the_authorities_of_certifi_the_system_and_the_variable_count_together(monkeypatch: Any) -> None:
    own = make_ssl_context(CERTIFICATE)
    assert subjects(own) >= subjects_in(certifi_bundle()) | subjects_in(CERTIFICATE)
    assert own.verify_mode is ssl.CERT_REQUIRED and own.check_hostname

    monkeypatch.setenv("SSL_CERT_FILE", CERTIFICATE)  # OpenSSL takes it for the system's store
    make_ssl_context.cache_clear()
    assert subjects(make_ssl_context("")) >= subjects_in(certifi_bundle()) | subjects_in(CERTIFICATE)
    make_ssl_context.cache_clear()


@pytest.mark.parametrize(("version", "python_compares"), [("1.26.20", False), ("2.0.0", True), ("11.0", True)])
def test_the_name_in_a_certificate_is_compared_once(version: str, python_compares: bool, monkeypatch: Any) -> None:
    """urllib3 1.26 compares it itself, and gives Python nothing to compare it with."""
    monkeypatch.setattr("urllib3.__version__", version)
    context = make_ssl_context_for_http("")
    assert context.check_hostname is python_compares and context.verify_mode is ssl.CERT_REQUIRED


def test_a_folder_of_authorities_counts_too(tls_port: int, tmp_path: Any) -> None:
    shutil.copyfile(CERTIFICATE, tmp_path / "55bd2b6e.0")  # as `openssl rehash` names it, by its subject
    context = make_ssl_context(str(tmp_path))
    with socket.create_connection(("127.0.0.1", tls_port), 10.0) as connection:
        context.wrap_socket(connection, server_hostname="127.0.0.1").close()  # raises SSLError if it is not trusted


def test_a_file_that_cannot_be_read_is_left_to_http(tmp_path: Any) -> None:
    assert subjects(make_ssl_context(str(tmp_path / "missing.pem"))) >= subjects_in(certifi_bundle())


def test_http_and_websocket_trust_the_store_of_the_system(tls_port: int, workflow_file: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", CERTIFICATE)  # for OpenSSL alone: the program does not see the variable
    make_ssl_context.cache_clear()
    url = f"https://127.0.0.1:{tls_port}"
    result = run("--server", url, "--yes", "--json", workflow_file(slow_prompt(steps=2, seconds=0.1)))
    make_ssl_context.cache_clear()
    assert result.status == ExitStatus.OK
    assert "connection" not in result.names()  # else the WebSocket was refused


def test_http_uses_the_certificates_that_it_is_given_also_through_a_proxy() -> None:
    context = make_ssl_context(CERTIFICATE)
    adapter = make_adapter(HostRoute("comfy.example", 8188), context)
    for pools in (adapter.poolmanager, adapter.proxy_manager_for("http://proxy.example:3128")):
        assert pools.connection_from_url("https://comfy.example:8188").conn_kw["ssl_context"] is context
    without_tls = make_adapter(HostRoute("comfy.example", 8188), None)
    assert "ssl_context" not in without_tls.poolmanager.connection_pool_kw
    assert without_tls.proxy_manager_for("http://proxy.example:3128").proxy_config.ssl_context is None


def test_a_certificate_of_another_name_is_refused(tls_port: int, workflow_file: Any, monkeypatch: Any) -> None:
    look_up = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *more, **options: look_up("127.0.0.1", *more, **options))
    url = f"https://other.example:{tls_port}"
    result = run("--server", url, "--yes", workflow_file(slow_prompt()), environment={"SSL_CERT_FILE": CERTIFICATE})
    assert result.status == ExitStatus.NO_SERVER
    assert f"{url}: the TLS connection failed" in result.err and "other.example" in result.err
