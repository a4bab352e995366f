"""ClickHouse over HTTP, with retries: clickhouse-connect underneath, RowBinary on the wire."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import SplitResult, unquote, urlsplit

from moescope.service.store.clickhouse.rowbinary import Value, decode_rows, encode_rows
from moescope.service.store.records import StoreError

_WAITS_S: Final = (0.1, 0.5, 2.0)
_PORT, _TLS_PORT = 8123, 8443
_TIMEOUT_S: Final = 30
# The server gathers what several services insert, and answers when it is written.
_INSERT: Final = {"async_insert": 1, "wait_for_async_insert": 1}


class Connection:
    """One server and database; safe for many threads.

    Args:
        url: ``clickhouse://user:password@host:8123/database``; ``clickhouses://`` for TLS. The database
            is made if it isn't there; absent: ``moescope``.
        sleep: waits that many seconds between two tries.

    Raises:
        StoreError: the URL is no such, the client isn't installed, or the server can't be reached.
    """

    def __init__(self, url: str, sleep: Callable[[float], None] = time.sleep) -> None:
        # The client is an optional extra: it is imported only where a store in ClickHouse is asked for.
        try:
            from clickhouse_connect import common, get_client
            from clickhouse_connect.driver.exceptions import ClickHouseError
            from urllib3.exceptions import HTTPError
        except ImportError as error:
            raise StoreError(
                f"a store in ClickHouse needs its client ({error}): pip install 'moescope[clickhouse]'"
            ) from None
        parts = urlsplit(url)
        self.name = f"{parts.scheme}://{parts.hostname}:{_port(parts)}"
        self.database = parts.path.strip("/") or "moescope"
        if not self.database.isidentifier() or parts.hostname is None:
            raise StoreError(f"{self.name}: expected clickhouse://user:password@host:8123/database")
        self._sleep = sleep
        self._failures = (ClickHouseError, HTTPError, OSError)
        # Threads share the client: without a session a query needs no other to have ended.
        common.set_setting("autogenerate_session_id", False)
        self._client: Any = self._tried(
            lambda: get_client(
                host=parts.hostname,
                port=_port(parts),
                username=unquote(parts.username or "default"),
                password=unquote(parts.password or ""),
                secure=parts.scheme == "clickhouses",
                connect_timeout=5,
                send_receive_timeout=_TIMEOUT_S,
                query_retries=0,
            )
        )
        self.command(f"CREATE DATABASE IF NOT EXISTS {self.database}", database=False)
        self._client.database = self.database

    def command(
        self, sql: str, parameters: Mapping[str, object] | None = None, database: bool = True
    ) -> None:
        """Run a statement without an answer."""
        self._tried(lambda: self._client.raw_query(sql, parameters, use_database=database))

    def rows(self, sql: str, kinds: str, parameters: Mapping[str, object] | None = None) -> list[Any]:
        """The rows of a query; for ``kinds`` see :func:`decode_rows`. Parameters are ``{name:Type}``."""
        answer = self._tried(lambda: self._client.raw_query(sql, parameters, fmt="RowBinary"))
        with contextlib.suppress(ValueError):
            return decode_rows(answer, kinds)
        raise StoreError(f"{self.name} gave an answer that can't be read: is it ClickHouse?")

    def insert(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Value]]) -> None:
        """Insert rows; when it returns they are written.

        Inserting them again is harmless: see :mod:`moescope.service.store.clickhouse.schema`.
        """
        if not rows:
            return
        body = encode_rows(rows)
        self._tried(
            lambda: self._client.raw_insert(
                f"{self.database}.{table}", columns, body, settings=_INSERT, fmt="RowBinary"
            )
        )

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()

    def _tried(self, call: Callable[[], Any]) -> Any:
        """The result of a call, which is tried again while the server can't be reached or is busy."""
        for wait_s in (*_WAITS_S, None):
            try:
                return call()
            except self._failures as error:
                if wait_s is None or not _passes(error):
                    raise StoreError(
                        f"the store {self.name} failed: {_first_line(error)}; is the server up, and may this "
                        "user write there?"
                    ) from error
                self._sleep(wait_s)
        raise AssertionError("unreachable")


# ClickHouse's "not now": timeouts, too many queries or parts, memory, network, keeper.
_NOT_NOW: Final = frozenset({159, 202, 209, 210, 241, 242, 252, 285, 319, 999})


def _passes(error: Exception) -> bool:
    """Whether a failure may pass by itself: no answer, one of a proxy, or "not now"."""
    code = getattr(error, "code", None)
    return code is None or code in _NOT_NOW


def _first_line(error: Exception) -> str:
    return (str(error) or repr(error)).splitlines()[0][:300]


def _port(parts: SplitResult) -> int:
    try:
        return parts.port or (_TLS_PORT if parts.scheme == "clickhouses" else _PORT)
    except ValueError as error:
        raise StoreError(f"{parts.scheme}://{parts.hostname}: {error}") from None
