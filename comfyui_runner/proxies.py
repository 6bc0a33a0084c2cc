"""The proxy that leads to a server: the same for HTTP and the WebSocket."""

from __future__ import annotations

import importlib.util
import urllib.parse

from comfyui_runner.errors import ServerUnreachable
from comfyui_runner.third_party import import_third_party


def proxy_of_system(url: str) -> str:
    """The URL of the proxy that HTTP uses for ``url``, "" for none.

    It comes from the environment or the system's settings. Without a scheme it means http://.
    """
    utils = import_third_party("requests.utils")
    proxy = utils.select_proxy(url, utils.get_environ_proxies(url)) or ""
    if proxy and "://" not in proxy:
        return f"http://{proxy}"
    return str(proxy)


def require_package_for_proxy(proxy: str) -> None:
    """Raises ServerUnreachable if websockets cannot use ``proxy``: python-socks is missing."""
    is_socks = proxy.startswith("socks")
    if is_socks and importlib.util.find_spec("python_socks") is None:
        message = f"the proxy {name_proxy_of(proxy)} needs the Python package python-socks"
        raise ServerUnreachable(message)


def name_proxy_of(proxy: str) -> str:
    """A proxy's URL without its user and password, for messages."""
    parts = urllib.parse.urlsplit(proxy)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
