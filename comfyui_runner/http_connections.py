"""How HTTP connects: to the address of the host that answers."""

from __future__ import annotations

import functools
import socket
import ssl
from typing import Any, Optional

from comfyui_runner.host_routes import HostRoute
from comfyui_runner.third_party import import_third_party
from comfyui_runner.threads import ConnectionDeadline


def make_adapter(route: HostRoute, tls: Optional[ssl.SSLContext]) -> Any:
    """The adapter of a requests.Session that connects by ``route``, for https:// with ``tls``.

    Not through a proxy: that looks the name up itself.
    """
    adapter: Any = import_third_party("requests.adapters").HTTPAdapter()
    if tls is not None:
        adapter.poolmanager.connection_pool_kw["ssl_context"] = tls
        adapter.proxy_manager_for = functools.partial(adapter.proxy_manager_for, ssl_context=tls)
    pools = import_third_party("urllib3.connectionpool")
    adapter.poolmanager.pool_classes_by_scheme = {
        "http": make_pool_class(pools.HTTPConnectionPool, route),
        "https": make_pool_class(pools.HTTPSConnectionPool, route),
    }
    return adapter


def make_pool_class(base: Any, route: HostRoute) -> Any:
    """urllib3's class of pools ``base``, with connections that take ``route``."""

    class RoutedConnection(base.ConnectionCls):  # type: ignore[misc]
        _dns_host: str  # urllib3's: what is connected to
        seconds_for_head: float

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

        def getresponse(self, *arguments: Any, **options: Any) -> Any:
            """The head of an answer. Raises socket.timeout where it takes too long as a whole.

            A read timeout is not enough: it begins anew with each byte, and with each 100 Continue.
            """
            with ConnectionDeadline(self.sock.fileno(), self.seconds_for_head) as deadline:
                try:
                    response = super().getresponse(*arguments, **options)
                except Exception:
                    if deadline.has_passed:
                        raise socket.timeout from None
                    raise
            if deadline.has_passed:  # a head that was cut off looks like a whole one
                response.close()
                raise socket.timeout
            return response

    class RoutedPool(base):  # type: ignore[misc]
        ConnectionCls = RoutedConnection

        def _make_request(self, conn: Any, *arguments: Any, timeout: Any, **options: Any) -> Any:
            conn.seconds_for_head = timeout.read_timeout
            return super()._make_request(conn, *arguments, timeout=timeout, **options)

    return RoutedPool
