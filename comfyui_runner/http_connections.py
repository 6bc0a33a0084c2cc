"""How HTTP connects: to the address of the host that answers, or to a proxy."""

from __future__ import annotations

from typing import Any

from comfyui_runner.host_routes import HostRoute
from comfyui_runner.third_party import import_third_party


def make_adapter(route: HostRoute) -> Any:
    """The adapter of a requests.Session that connects by ``route``.

    Not through a proxy: that looks the name up itself.
    """
    adapter: Any = import_third_party("requests.adapters").HTTPAdapter()
    pools = import_third_party("urllib3.connectionpool")
    adapter.poolmanager.pool_classes_by_scheme = {
        "http": make_pool_class(pools.HTTPConnectionPool, route),
        "https": make_pool_class(pools.HTTPSConnectionPool, route),
    }
    return adapter


def proxy_of_system(url: str) -> str:
    """The URL of the proxy that HTTP uses for ``url``, "" for none: of a variable, or the system's.

    That of a variable may lack its scheme, and means http:// then.
    """
    utils = import_third_party("requests.utils")
    proxy = utils.select_proxy(url, utils.get_environ_proxies(url)) or ""
    if proxy and "://" not in proxy:
        return f"http://{proxy}"
    return str(proxy)


def make_pool_class(base: Any, route: HostRoute) -> Any:
    """urllib3's class of pools ``base``, but its connections go by ``route``."""

    class RoutedConnection(base.ConnectionCls):  # type: ignore[misc]
        _dns_host: str  # urllib3's: what is connected to

        def _new_conn(self) -> Any:
            """The socket of a new connection.

            The name is put back before it is used for the Host header and for TLS.
            """
            name = self._dns_host
            self._dns_host = route.find(float(self.timeout))
            try:
                return super()._new_conn()
            except Exception:
                route.forget()
                raise
            finally:
                self._dns_host = name

    class RoutedPool(base):  # type: ignore[misc]
        ConnectionCls = RoutedConnection

    return RoutedPool
