"""Rolling up and removing history in ClickHouse, a piece of time after the other, beside all else."""

from __future__ import annotations

from typing import Final

from moescope.service.store.clickhouse import documents
from moescope.service.store.clickhouse.history import KEY, delete
from moescope.service.store.clickhouse.pacing import Server
from moescope.service.store.limits import Retention
from moescope.service.store.records import Document

ROLLED_UP: Final = "rolled_up"
"""Kind of the documents that say, by a bucket's length, up to which instant history is rolled up."""
_DAY_MS: Final = 86_400_000
_LEAST_MS: Final = 300_000
_MOST_ROWS: Final = 50_000
"""Rows that are looked at in one piece of time, about: what a piece has to remember on the server."""
_GROWTH: Final = 4
_LATE_MS: Final = 600_000
"""Totals that come so late are rolled up as well."""
_NOTED_MS: Final = 8 * _DAY_MS
"""What is rolled up before it is noted how far that is."""
_SLACK: Final = 100
"""History is removed once it is over its age by the hundredth part of that: of 90 days once a day. A DELETE
takes long, whatever it removes."""
_OFTEN_MS: Final = 60_000
_SELDOM_MS: Final = 600_000
_LAST: Final = {"snapshot": "max(at_ms)", "life": "tupleElement(max((seq, at_ms)), 2)"}
"""When the totals were kept that stay: of a start those of its newest frame, whatever came after that."""


class Rolling:
    """Keeps history as coarse as its age says; for one thread.

    How far it got is in the store, so that no service begins again when it starts, and services that share a
    store go on where another one was.

    Args:
        connection: the server.
        retention: ages.
    """

    def __init__(self, connection: Server, retention: Retention) -> None:
        self._connection = connection
        self._retention = retention
        self._removed_ms: int | None = None
        self._length_ms = _DAY_MS

    def keep(self, now_ms: int) -> None:
        """Roll up history that is old enough and remove what is too old.

        Args:
            now_ms: milliseconds of Unix time.
        """
        coarse_ms = _until(300_000, now_ms, self._retention.middle_s)
        self._roll_up(300_000, now_ms - int(self._retention.coarse_s * 1000) - _DAY_MS, coarse_ms)
        self._roll_up(10_000, coarse_ms, _until(10_000, now_ms, self._retention.fine_s))
        removed_ms = self._removed_ms
        if removed_ms is None or not 0 <= now_ms - removed_ms < _SELDOM_MS:
            self._remove(now_ms - int(self._retention.coarse_s * 1000))
            self._removed_ms = now_ms

    def _roll_up(self, bucket_ms: int, from_ms: int, until_ms: int) -> None:
        """Keep the last totals of each bucket between two instants.

        What is older than the first is rolled up further, or removed, or of a clock that was wrong.
        """
        done_ms = self._done(bucket_ms)
        if done_ms is not None and 0 <= until_ms - done_ms < _OFTEN_MS:
            return
        first_ms = self._first()
        if first_ms is None or first_ms >= until_ms:
            return
        at_ms = max(first_ms, from_ms)
        if done_ms is not None:  # where a clock was ahead, what came since is behind what was done
            at_ms = max(at_ms, min(done_ms, until_ms) - _LATE_MS)
        at_ms = at_ms // bucket_ms * bucket_ms
        tables = self._tables()
        while at_ms < until_ms:
            noted_ms = at_ms + _NOTED_MS
            while at_ms < min(until_ms, noted_ms):
                end_ms = self._piece(at_ms, until_ms)
                for table in tables:
                    self._roll_up_piece(table, bucket_ms, at_ms, end_ms)
                at_ms = end_ms
            self._note(bucket_ms, at_ms)

    def _piece(self, at_ms: int, until_ms: int) -> int:
        """Where the piece that begins at an instant ends: after a day, or earlier if it has many rows."""
        length, growth = self._length_ms, _GROWTH
        while length > _LEAST_MS:
            span = {"since": at_ms // 1000, "until": (at_ms + length) // 1000}
            [(rows,)] = self._connection.rows(
                "SELECT toInt64(count()) FROM life WHERE second >= {since:Int64} AND second < {until:Int64}",
                "i",
                span,
            )
            if rows <= _MOST_ROWS:
                growth = min(_GROWTH, _MOST_ROWS // max(1, rows))
                break
            length = max(_LEAST_MS, min(length // 2, length * _MOST_ROWS // rows))
        self._length_ms = min(_DAY_MS, length * growth)  # the next one has about as many rows
        return min(until_ms, at_ms + length // _LEAST_MS * _LEAST_MS)

    def _roll_up_piece(self, table: str, bucket_ms: int, since_ms: int, until_ms: int) -> None:
        """Keep the last of each producer's totals in a bucket, or of each of its starts."""
        key = ", ".join(_one_of(table))
        # By seconds the server skips what is of other times.
        span = (
            "second >= intDiv({since:Int64}, 1000) AND second <= intDiv({until:Int64}, 1000) "
            "AND at_ms >= {since:Int64} AND at_ms < {until:Int64}"
        )
        asked = {"since": since_ms, "until": until_ms}
        # Which rows are too many takes longer to find than how many: most pieces have none.
        [(too_many,)] = self._connection.rows(
            f"SELECT toInt64(count() - uniqExact({key}, intDiv(at_ms, {bucket_ms}))) FROM {table} "
            f"WHERE {span}",
            "i",
            asked,
        )
        if too_many <= 0:
            return
        doomed = (
            f"{span} AND ({key}, at_ms) NOT IN (SELECT {key}, {_LAST[table]} FROM {table} "
            f"WHERE {span} GROUP BY {key}, intDiv(at_ms, {bucket_ms}))"
        )
        delete(self._connection, table, doomed, asked)

    def _remove(self, before_ms: int) -> None:
        """Remove what is from before an instant, but for the newest of each."""
        before, key = {"before": before_ms}, ", ".join(KEY)
        delete(
            self._connection,
            "snapshot",
            f"at_ms < {{before:Int64}} AND ({key}, at_ms) NOT IN "
            f"(SELECT {key}, max(at_ms) FROM snapshot GROUP BY {key})",
            before,
        )
        # Rows of one time may each lack what another has, until a later one has it all.
        delete(
            self._connection,
            "account",
            f"at_ms < {{before:Int64}} AND ({key}) IN (SELECT {key} FROM account GROUP BY {key} "
            f"HAVING max(at_ms) >= {{before:Int64}} + {_LATE_MS})",
            before,
        )
        self._remove_lives(before_ms, before_ms - int(self._retention.coarse_s * 1000) // _SLACK)

    def _remove_lives(self, before_ms: int, old_ms: int) -> None:
        """Remove history by start from before an instant, if some of it is from before an earlier one.

        Of each start the newest totals before that stay: they are in every sum after that.
        """
        if not self._has_before(old_ms):  # epochs are no order: they are of the clocks of hosts
            return
        key = ", ".join(_one_of("life"))
        # By seconds the server skips what is of other times.
        span = "second <= intDiv({before:Int64}, 1000) AND at_ms < {before:Int64}"
        if self._has_more_than_the_newest(before_ms, old_ms):
            self._connection.delete(
                "life",
                f"{span} AND ({key}, at_ms) NOT IN "
                f"(SELECT {key}, {_LAST['life']} FROM life WHERE {span} GROUP BY {key})",
                {"before": before_ms},
            )

    def _has_more_than_the_newest(self, before_ms: int, old_ms: int) -> bool:
        """Whether a start that has totals from before ``old_ms`` has several from before ``before_ms``.

        The first piece of time is looked at first: where much is too old, it tells, and takes little time.
        """
        first_ms = self._first()
        pieces = [] if first_ms is None or first_ms >= before_ms else [self._piece(first_ms, before_ms)]
        key = ", ".join(_one_of("life"))
        for until_ms in dict.fromkeys([*pieces, before_ms]):
            several = self._connection.rows(
                f"SELECT min(at_ms) FROM life WHERE second <= intDiv({{until:Int64}}, 1000) "
                f"AND at_ms < {{until:Int64}} GROUP BY {key} "
                "HAVING min(at_ms) < {old:Int64} AND uniqExact(at_ms) > 1 LIMIT 1",
                "i",
                {"until": until_ms, "old": old_ms},
            )
            if several:
                return True
        return False

    def _has_before(self, before_ms: int) -> bool:
        """Whether there is history by start from before an instant; reads as little as can tell."""
        [(rows,)] = self._connection.rows(
            "SELECT toInt64(count()) FROM life WHERE second <= {before:Int64}",
            "i",
            {"before": before_ms // 1000},
        )
        return bool(rows)

    def _tables(self) -> list[str]:
        """The tables of history that have any."""
        [(former,)] = self._connection.rows("SELECT toInt64(count()) FROM snapshot", "i")
        return ["snapshot", "life"] if former else ["life"]

    def _first(self) -> int | None:
        """The second of the oldest totals that are after 1970, in milliseconds; None: there are none."""
        found = [
            row[0]
            for table in ("snapshot", "life")
            for row in self._connection.rows(
                f"SELECT min(second) * 1000 FROM {table} WHERE second >= 0 HAVING count() > 0", "i"
            )
        ]
        return min(found, default=None)

    def _done(self, bucket_ms: int) -> int | None:
        """Up to where history is rolled up; None: nobody has said, or it can't be read."""
        kept = dict(documents.of_kind(self._connection, ROLLED_UP)).get(str(bucket_ms))
        try:
            return None if kept is None else int(kept)
        except ValueError:
            return None

    def _note(self, bucket_ms: int, until_ms: int) -> None:
        document = Document(ROLLED_UP, str(bucket_ms), str(until_ms).encode())
        rows = documents.rows_of(self._connection, [document])
        self._connection.insert("document", documents.COLUMNS, rows)


def _until(bucket_ms: int, now_ms: int, age_s: float) -> int:
    """The end of the last whole bucket that has an age."""
    return (now_ms - int(age_s * 1000)) // bucket_ms * bucket_ms


def _one_of(table: str) -> tuple[str, ...]:
    """What has a series of totals of its own in a table."""
    return (*KEY, "epoch") if table == "life" else KEY
