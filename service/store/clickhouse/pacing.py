"""Maintenance leaves the server to everything else for half of the time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

from moescope.service.store.clickhouse.rowbinary import Value

_MOST_S: Final = 0.5
"""The longest pause, so that a service that is to end needn't wait for longer."""
Answer = TypeVar("Answer")


class Server(Protocol):
    """What maintenance asks; see :class:`moescope.service.store.clickhouse.connection.Connection`."""

    @property
    def database(self) -> str:
        """Its database."""

    def rows(self, sql: str, kinds: str, parameters: Mapping[str, object] | None = None) -> list[Any]:
        """The rows of a query."""

    def maintain(self, sql: str, parameters: Mapping[str, object] | None = None) -> None:
        """Run a statement without an answer that may take minutes."""

    def delete(self, table: str, where: str, parameters: Mapping[str, object] | None = None) -> None:
        """Delete rows, and wait until they are gone, which may take minutes."""

    def insert(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Value]]) -> None:
        """Insert rows."""


class Paced:
    """A server that after each statement is left alone for as long as that took; for one thread.

    A frame needs several statements. Where statements wait for each other, it so waits for one of maintenance
    at most, and not for one before each of its own.

    Args:
        server: the server.
        sleep: waits that many seconds.
    """

    def __init__(self, server: Server, sleep: Callable[[float], None]) -> None:
        self._server = server
        self._sleep = sleep

    @property
    def database(self) -> str:
        """Its database."""
        return self._server.database

    def rows(self, sql: str, kinds: str, parameters: Mapping[str, object] | None = None) -> list[Any]:
        """The rows of a query."""
        return self._then_pause(lambda: self._server.rows(sql, kinds, parameters))

    def maintain(self, sql: str, parameters: Mapping[str, object] | None = None) -> None:
        """Run a statement without an answer that may take minutes."""
        self._then_pause(lambda: self._server.maintain(sql, parameters))

    def delete(self, table: str, where: str, parameters: Mapping[str, object] | None = None) -> None:
        """Delete rows, and wait until they are gone, which may take minutes."""
        self._then_pause(lambda: self._server.delete(table, where, parameters))

    def insert(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Value]]) -> None:
        """Insert rows."""
        self._then_pause(lambda: self._server.insert(table, columns, rows))

    def _then_pause(self, ask: Callable[[], Answer]) -> Answer:
        began = time.monotonic()
        answer = ask()
        self._sleep(min(_MOST_S, time.monotonic() - began))
        return answer
