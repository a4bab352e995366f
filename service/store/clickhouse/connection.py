"""ClickHouse over HTTP, with retries: clickhouse-connect underneath, RowBinary on the wire."""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from moescope.service.remote.address import Address, parse_address
from moescope.service.store.clickhouse.access import DIRECT, Access, Sockets, pool_for
from moescope.service.store.clickhouse.fields import in_fields
from moescope.service.store.clickhouse.rowbinary import Value, decode_rows, encode_rows
from moescope.service.store.clickhouse.schema import for_cluster
from moescope.service.store.records import StoreAwayError, StoreError

_WAITS_S: Final = (0.1, 0.5, 2.0)
_CONNECT_S: Final = 5
_SECRET_LENGTH: Final = 4  # a shorter one may be a part of any word
_LONG_S: Final = 600.0
"""For so long maintenance may take over one statement."""
_LOOKS_S: Final = (0.02, 0.5)
"""How long to wait before looking whether it has, first and at most."""
_CHANGES: Final = (
    "SELECT latest_fail_reason FROM system.mutations WHERE database = {database:String} "
    "AND table = {table:String} AND NOT is_done ORDER BY latest_fail_reason DESC LIMIT 1"
)
# The server gathers what several services insert, and answers when it is written.
# A batch may have traces of any number of days, if their workers' clocks are off; it has MAX_BATCH at most.
# Nothing needs the server's own deduplication, as a row replaces the row about the same thing. It would leave
# out rows that come again after they were deleted.
_INSERT: Final[dict[str, int | str]] = {
    "async_insert": 1,
    "wait_for_async_insert": 1,
    "max_partitions_per_insert_block": 0,
    "insert_deduplicate": 0,
    "async_insert_deduplicate": 0,
}
# What is acknowledged is on most of the replicas.
_IN_CLUSTER: Final[dict[str, int | str]] = {"insert_quorum": "auto", "insert_quorum_parallel": 1}


class Connection:
    """One server and database; safe for many threads.

    Args:
        url: see :func:`moescope.service.remote.address.parse_address`. A database that isn't there is made.
        sleep: waits that many seconds between two tries.
        access: how to reach the server.

    Raises:
        StoreError: the URL is no such, the client isn't installed, or the server can't be reached.
    """

    def __init__(
        self, url: str, sleep: Callable[[float], None] = time.sleep, access: Access = DIRECT
    ) -> None:
        # The client is an optional extra: it is imported only where a store in ClickHouse is asked for.
        try:
            from clickhouse_connect import common
            from clickhouse_connect.driver.exceptions import ClickHouseError
            from urllib3.exceptions import HTTPError
        except ImportError as error:
            raise StoreError(
                f"a store in ClickHouse needs its client ({error}): pip install 'moescope[clickhouse]'"
            ) from None
        try:
            self._address = parse_address(url)
        except ValueError as error:
            raise StoreError(f"the store: {error}") from None
        self.name = self._address.name
        self.database = self._address.database
        self._sleep = sleep
        self._failures = (ClickHouseError, HTTPError, OSError)
        self._timeout_s = access.timeout_s
        self._sockets = Sockets()
        self._pool = pool_for(access, self._address.secure, self._sockets)
        # Threads share the client: without a session a query needs no other to have ended.
        common.set_setting("autogenerate_session_id", False)
        self._client: Any = self._tried(lambda: self._open(access.timeout_s))
        self.cluster = access.cluster
        self._insert = _INSERT if self.cluster is None else _INSERT | _IN_CLUSTER
        statement = f"CREATE DATABASE IF NOT EXISTS {self.database}"
        self.command(for_cluster(statement, self.cluster), database=False)
        self._client.database = self.database
        self._patient: Any = None

    def command(
        self, sql: str, parameters: Mapping[str, object] | None = None, database: bool = True
    ) -> None:
        """Run a statement without an answer."""
        self._tried(lambda: self._client.raw_query(*in_fields(sql, parameters), use_database=database))

    def maintain(self, sql: str, parameters: Mapping[str, object] | None = None) -> None:
        """Run a statement without an answer that may take minutes; for one thread."""
        if self._patient is None:
            self._patient = self._tried(lambda: self._open(_LONG_S))
            self._patient.database = self.database
        self._tried(lambda: self._patient.raw_query(*in_fields(sql, parameters)))

    def delete(self, table: str, where: str, parameters: Mapping[str, object] | None = None) -> None:
        """Delete rows, and wait until they are gone, which may take minutes; for one thread.

        The server does that in its background. So a query that has to wait for the one that runs does not
        wait for that, and no proxy takes a statement of minutes for one that hangs, and has it sent again.

        Raises:
            StoreError: it failed, or an earlier change of the table did: more are not queued behind that.
        """
        self._settle(table)
        # Asked for how far it is, another replica may not have heard of it: then the server waits for all.
        begin = "" if self.cluster is not None else " SETTINGS lightweight_deletes_sync = 0"
        self.maintain(f"DELETE FROM {table} WHERE {where}{begin}", parameters)
        self._settle(table)

    def _settle(self, table: str) -> None:
        """Wait until the server has done what changes rows of a table."""
        began, wait_s = time.monotonic(), _LOOKS_S[0]
        asked = {"database": self.database, "table": table}
        while changes := self.rows(_CHANGES, "t", asked):
            [(failure,)] = changes
            if failure or time.monotonic() - began > _LONG_S:
                said = failure[:300] or f"it is not done after {_LONG_S:.0f} s"
                raise StoreError(f"the store {self.name} could not delete from {table}: {said}")
            self._sleep(wait_s)
            wait_s = min(2 * wait_s, _LOOKS_S[1])

    def rows(self, sql: str, kinds: str, parameters: Mapping[str, object] | None = None) -> list[Any]:
        """The rows of a query; for ``kinds`` see :func:`decode_rows`. Parameters are ``{name:Type}``."""
        answer = self._tried(lambda: self._client.raw_query(*in_fields(sql, parameters), fmt="RowBinary"))
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
                f"{self.database}.{table}", columns, body, settings=self._insert, fmt="RowBinary"
            )
        )

    def give_up(self) -> None:
        """Wait for the server no more: whoever does gets a :class:`StoreError`, now and later."""
        self._sockets.hang_up()

    def close(self) -> None:
        """Let go of the connections."""
        self._pool.clear()

    def _open(self, timeout_s: float) -> Any:
        """A client, which asks the server for its version and its settings."""
        from clickhouse_connect import get_client

        return get_client(
            host=self._address.host,
            port=self._address.port,
            username=self._address.user,
            password=self._address.password,
            secure=self._address.secure,
            connect_timeout=min(_CONNECT_S, timeout_s),
            send_receive_timeout=timeout_s,
            query_retries=0,
            pool_mgr=self._pool,
        )

    def _tried(self, call: Callable[[], Any]) -> Any:
        """The result of a call, which is tried again while the server can't be reached or is busy.

        No try begins later than the longest silence that is allowed: a server that is silent is not asked
        again and again.
        """
        began = time.monotonic()
        for wait_s in (*_WAITS_S, None):
            if self._sockets.hung_up:
                raise StoreAwayError(f"the store {self.name} did not answer before the service ended")
            try:
                return call()
            except self._failures as error:
                late = time.monotonic() - began >= self._timeout_s
                if wait_s is None or late or not _passes(error):
                    raise self._failure(error) from None
                self._sleep(wait_s)
        raise AssertionError("unreachable")

    def _failure(self, error: Exception) -> StoreError:
        kind = StoreError if getattr(error, "code", None) is not None else StoreAwayError
        return kind(
            f"the store {self.name} failed: {_said(error, self._address)}; is the server up, and may this "
            "user write there?"
        )


# ClickHouse's "not now": timeouts, too many queries or parts, memory, network, keeper.
_NOT_NOW: Final = frozenset({159, 202, 209, 210, 241, 242, 252, 285, 319, 999})


def _passes(error: Exception) -> bool:
    """Whether a failure may pass by itself: no answer, one of a proxy, or "not now"."""
    code = getattr(error, "code", None)
    return code is None or code in _NOT_NOW


def _said(error: Exception, address: Address) -> str:
    """The first line of an error, without the password, which a proxy or a server may have sent back."""
    said = (str(error) or repr(error)).splitlines()[0][:300]
    token = base64.b64encode(f"{address.user}:{address.password}".encode()).decode()
    for secret in (address.password, token):
        if len(secret) >= _SECRET_LENGTH:
            said = said.replace(secret, "***")
    return said
