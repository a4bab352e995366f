"""What other services keep of producers, in the order in which the server has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from moescope.service.store.clickhouse.account_rows import note, postings
from moescope.service.store.clickhouse.connection import Connection
from moescope.service.store.clickhouse.history import KEYS, key_of
from moescope.service.store.clickhouse.kept import Kept
from moescope.service.store.records import Key, Posting

_SERVER_US: Final = "toUnixTimestamp64Micro(now64(6))"
OVERLAP_US: Final = 60_000_000
"""How much later than it was written a row may be seen: an insert takes time, and so does a replica."""
_AT_ONCE: Final = 1024
"""Accounts that are asked for at once, at most."""
_THESE: Final = (
    "account PREWHERE written IN {written:Array(Int64)} AND epoch IN {epochs:Array(Int64)} "
    "WHERE writer != {me:String}"
)


class Row(NamedTuple):
    """Which row of a producer's epoch; of two the higher one has the newer account.

    Attributes:
        seq: of its newest frame.
        written: when the server had it, microseconds of Unix time on its clock.
    """

    seq: int
    written: int


_NONE: Final = Row(-1, 0)


class News:
    """Accounts that other services keep.

    The server's own time of each row is what goes by: the services' clocks may be wrong. What was told is
    remembered for as long as the query finds it: memory is bounded by the producers and epochs of which other
    services kept an account in the last minute.

    Args:
        connection: the server.
        writer: this service.
        kept: gets what is read.
        leave_out: is told of a producer's account that can't be read.
    """

    def __init__(
        self, connection: Connection, writer: str, kept: Kept, leave_out: Callable[[Key, ValueError], None]
    ) -> None:
        self._connection = connection
        self._writer = writer
        self._kept = kept
        self._leave_out = leave_out
        self._newest_us = 0
        self._reading: dict[tuple[Key, int], Row] = {}
        self.seen: dict[tuple[Key, int], Row] = {}
        """Producer and epoch to the row that was read."""

    def read(self) -> list[Posting]:
        """Accounts that other services kept since the last call; of a producer there may be several.

        When rows were written is looked at first. Accounts are read of the rows that are news, by that time:
        the last minute has each account many times. A row that isn't found then is looked for again.
        """
        told = self._told()
        news = sorted((row.written, of[1]) for of, row in told.items() if self.seen.get(of, _NONE) < row)
        found: list[Posting] = []
        self._reading.clear()
        for start in range(0, len(news), _AT_ONCE):
            written, epochs = zip(*news[start : start + _AT_ONCE], strict=True)
            asked: dict[str, object] = {"written": sorted({*written}), "epochs": sorted({*epochs})}
            found += postings(self._connection, _THESE, {**asked, "me": self._writer}, self)
        self.seen |= self._reading
        oldest = self._newest_us - OVERLAP_US
        self.seen = {of: row for of, row in self.seen.items() if oldest < row.written <= self._newest_us}
        return found

    def _told(self) -> dict[tuple[Key, int], Row]:
        """The newest row of each producer and epoch that others wrote in the last minute."""
        # A time to come is damage: it would be the newest for good. The clock may be set back.
        rows = self._connection.rows(
            f"SELECT {KEYS}, epoch, max(seq), argMax(written, (seq, written)), max(written), {_SERVER_US} "
            "FROM account WHERE writer != {me:String} "
            f"AND written > least({{newest:Int64}}, {_SERVER_US}) - {{overlap:Int64}} "
            f"AND written <= {_SERVER_US} GROUP BY {KEYS}, epoch",
            "ttiiiiiiii",
            {"me": self._writer, "newest": self._newest_us, "overlap": OVERLAP_US},
        )
        for row in rows:
            self._newest_us = min(max(self._newest_us, row[8]), row[9])
        return {(key_of(row), row[5]): Row(row[6], row[7]) for row in rows}

    def wants(self, key: Key, epoch: int, seq: int, written: int) -> bool:
        """Whether a row is news."""
        row = Row(seq, written)
        is_new = max(self.seen.get((key, epoch), _NONE), self._reading.get((key, epoch), _NONE)) < row
        if is_new:
            self._reading[key, epoch] = row
        return is_new

    def note(self, posting: Posting, epoch: int) -> None:
        """A row was read."""
        note(self._kept, posting, epoch)

    def left_out(self, key: Key, error: ValueError) -> None:
        """A row can't be read."""
        self._leave_out(key, error)
