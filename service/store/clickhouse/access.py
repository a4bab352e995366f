"""How a ClickHouse is reached: the pool of connections under the client, which can be hung up."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from moescope.service.store.records import StoreError

_CONNECTIONS: Final = 16
"""Connections that are kept for the next query; more are opened and closed as needed."""

_PROXY: Final = re.compile(r"https?://([^@\s]*@)?(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?/?")


@dataclass(frozen=True, slots=True)
class Access:
    """The way to a server.

    Attributes:
        ca_file: the authority of its certificate, PEM; None: those that the system trusts.
        proxy: URL of a proxy; None: none, whatever the environment says of proxies.
        cluster: whose servers have replicas of all tables; None: there is one server.
        timeout_s: how long the server may be silent while it is asked.
    """

    ca_file: Path | None = None
    proxy: str | None = field(default=None, repr=False)
    cluster: str | None = None
    timeout_s: float = 20.0


DIRECT: Final = Access()


class Sockets:
    """The sockets of a pool, so that who waits for an answer can be told that none will come."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self.hung_up = False

    def add(self, opened: socket.socket) -> None:
        """Note a socket; once hung up, it is of no use."""
        with self._lock:
            self._open.add(opened)
            hung_up = self.hung_up
        if hung_up:
            _shut(opened)

    def hang_up(self) -> None:
        """End all of them, for good."""
        with self._lock:
            self.hung_up = True
            found = list(self._open)
        for item in found:
            _shut(item)


def pool_for(access: Access, secure: bool, sockets: Sockets) -> Any:
    """A pool manager of urllib3 that opens sockets as ``access`` says, and notes them in ``sockets``.

    Raises:
        StoreError: the authority's file or the proxy's URL can't be used.
    """
    from clickhouse_connect.driver.httputil import get_pool_manager
    from urllib3 import HTTPConnectionPool, HTTPSConnectionPool

    options: dict[str, Any] = {"maxsize": _CONNECTIONS, "retries": 0}
    if access.ca_file is not None:
        try:
            ssl.create_default_context(cafile=str(access.ca_file))
        except (OSError, ssl.SSLError) as error:
            raise StoreError(f"clickhouse_ca: {access.ca_file} can't be used: {error}") from None
        options["ca_cert"] = str(access.ca_file)
    if access.proxy is not None:
        if _PROXY.fullmatch(access.proxy) is None:
            raise StoreError("clickhouse_proxy: expected http://host:port or https://host:port")
        options["https_proxy" if secure else "http_proxy"] = access.proxy
    manager = get_pool_manager(**options)

    def noting(pool: type[Any]) -> type[Any]:
        connection = pool.ConnectionCls

        class NotedConnection(connection):  # type: ignore[misc, valid-type]
            def connect(self) -> None:
                super().connect()
                sockets.add(self.sock)

        return type(pool.__name__, (pool,), {"ConnectionCls": NotedConnection})

    manager.pool_classes_by_scheme = {
        "http": noting(HTTPConnectionPool),
        "https": noting(HTTPSConnectionPool),
    }
    return manager


def _shut(opened: socket.socket) -> None:
    with contextlib.suppress(OSError):
        opened.shutdown(socket.SHUT_RDWR)
