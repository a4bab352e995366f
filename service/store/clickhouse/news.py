"""What other services keep of producers, in the order in which the server has it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple

from moescope.service.store.clickhouse.account_rows import MAX_EPOCHS, note, postings
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


class _Told(NamedTuple):
    """When the server had rows of a producer's epoch, microseconds of Unix time on its clock.

    Attributes:
        last: the last of them. ``newest``: that with the newest frame.
    """

    last: int
    newest: int


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
        self._read: Counter[Key] = Counter()
        self._reading: dict[tuple[Key, int], int] = {}
        self.seen: dict[tuple[Key, int], int] = {}
        """Producer and epoch to when the server had the row that was read."""

    def read(self) -> list[Posting]:
        """Accounts that other services kept since the last call; of a producer there may be several.

        When rows were written is looked at first. Accounts are read of the rows that are news, by that time:
        the last minute has each account many times.
        """
        told = self._told()
        wanted = {row: item for row, item in told.items() if self.seen.get(row, 0) < item.last}
        news = sorted(
            (item.newest, row[1]) for row, item in wanted.items() if self.seen.get(row, 0) < item.newest
        )
        found: list[Posting] = []
        self._read.clear()
        self._reading.clear()
        for start in range(0, len(news), _AT_ONCE):
            written, epochs = zip(*news[start : start + _AT_ONCE], strict=True)
            asked: dict[str, object] = {"written": sorted({*written}), "epochs": sorted({*epochs})}
            found += postings(self._connection, _THESE, {**asked, "me": self._writer}, self)
        for row, item in wanted.items():
            # What was not among them is a row that a newer frame's has replaced, or there were too many.
            if self._read[row[0]] < MAX_EPOCHS:
                self._reading[row] = max(item.last, self._reading.get(row, 0))
        self.seen |= self._reading
        self._newest_us = max([self._newest_us, *self.seen.values()])
        oldest = self._newest_us - OVERLAP_US
        self.seen = {row: written for row, written in self.seen.items() if written > oldest}
        return found

    def _told(self) -> dict[tuple[Key, int], _Told]:
        """What others wrote in the last minute, by producer and epoch."""
        # A time to come is damage: it would be the newest for good.
        rows = self._connection.rows(
            f"SELECT {KEYS}, epoch, max(written), argMax(written, (seq, written)) FROM account "
            f"WHERE writer != {{me:String}} AND written > {{since:Int64}} AND written <= {_SERVER_US} "
            f"GROUP BY {KEYS}, epoch",
            "ttiiiiii",
            {"me": self._writer, "since": self._newest_us - OVERLAP_US},
        )
        return {(key_of(row), row[5]): _Told(*row[6:]) for row in rows}

    def wants(self, key: Key, epoch: int, written: int) -> bool:
        """Whether a row is news."""
        self._read[key] += 1
        is_new = self.seen.get((key, epoch), 0) < written
        if is_new:
            self._reading[key, epoch] = max(written, self._reading.get((key, epoch), 0))
        return is_new

    def note(self, posting: Posting, epoch: int) -> None:
        """A row was read."""
        note(self._kept, posting, epoch)

    def left_out(self, key: Key, error: ValueError) -> None:
        """A row can't be read."""
        self._leave_out(key, error)
