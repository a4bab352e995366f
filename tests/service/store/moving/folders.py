"""Folders to move, and what must be true of a ClickHouse that one was moved to.

    python -m tests.service.store.moving.folders FOLDER URL

moves a folder two rows at a time, and prints a line after each step, so that it can be killed in the middle.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import numpy as np

from moescope.service.counts.account import Account
from moescope.service.store.clickhouse.store import ClickHouseStore
from moescope.service.store.limits import Retention
from moescope.service.store.moving import mover
from moescope.service.store.moving.mover import Mover
from moescope.service.store.moving.source import Source
from moescope.service.store.moving.tally import Tally, Teller
from moescope.service.store.moving.target import Target
from moescope.service.store.moving.way import Way
from moescope.service.store.records import PLACEMENT, ArrivedPart, Document, Posting, TraceQuery, name_of
from moescope.service.store.sqlite.store import SqliteStore
from tests.service.frames import EPOCH, frame, producer
from tests.service.trace_parts import experts_of, part

RANKS: Final = 3
SECONDS: Final = 12
TRACES: Final = 20
BORN: Final = EPOCH / 1e9
LONG: Final = Retention(fine_s=1e10, middle_s=1e10, coarse_s=1e10, trace_s=1e10)
"""Nothing is too old: the rows are of 2023."""


def counts_of(rank: int, second: int) -> list[int]:
    """What a rank has counted after so many seconds, over both of its starts."""
    return [10 * (second + 1) * (rank + 1)] * 8


def make_folder(folder: Path, retention: Retention = LONG, name: str = "prod") -> None:
    """A store that was closed in order: ranks that start again in the middle, traces, a baseline."""
    with closing(SqliteStore(folder, retention)) as store:
        for rank in range(RANKS):
            who, account = producer(server=name, dp_rank=rank, dp_size=RANKS), Account(4)
            for second in range(SECONDS):
                later = second >= SECONDS // 2
                before = np.array(counts_of(rank, SECONDS // 2 - 1)) if later else np.zeros(8, int)
                told = (np.array(counts_of(rank, second)) - before).tolist()
                epoch = EPOCH + later * 10**10
                lost = {"drops": {"steps_lost": second}, "traces": {"captured": 9, "dropped_refused": rank}}
                made = frame({0: told, 4: told}, epoch=epoch, seq=second + 1, who=who, **lost)
                account.post(made, at=BORN + second)
                store.save([Posting(who.key, BORN, BORN + second, account.state())])
        for number in range(1, TRACES + 1):
            its = {"dp_size": RANKS, "server": name}
            store.save([ArrivedPart(part(number, tokens=number, who=its), BORN + number)])
        store.save([Document("baseline", f"pinned {name}", b"what it says")])
        store.save([Document("aged", "aged", repr(BORN).encode())])
        for server in (name, "gone"):  # one that an earlier moescope left
            store.save([Document(PLACEMENT, name_of(producer(server=server).key), b"where experts are")])


def move(
    folder: Path,
    url: str,
    merge: bool = False,
    retention: Retention = LONG,
    say: Callable[[str], Any] = lambda _: None,
    batch_bytes: int = mover.BATCH_BYTES,
) -> Tally:
    """Move a folder, as the command does."""
    with closing(Source(folder)) as source, closing(ClickHouseStore(url, retention)) as store:
        target = Target(store.connection, source.name)
        way = Way(source, target, retention, store.clock, say)
        moving = Mover(way, batch_bytes)
        moving.check(merge)
        if not moving.done_ms:
            moving.move()
        found = Teller(way).tally(moving.theirs)
        if not moving.done_ms:
            moving.end(not found.differs)
        return found


def check(url: str, traces: int = TRACES, skip: frozenset[int] = frozenset()) -> None:
    """All that :func:`make_folder` made is there, once; but for the traces that are to be skipped."""
    with closing(ClickHouseStore(url, LONG)) as store:
        accounts = {item.key[2]: item for item in store.accounts()}
        assert set(accounts) == set(range(RANKS))
        for rank, posting in accounts.items():
            assert posting.account.totals.counts.tolist() == counts_of(rank, SECONDS - 1) * 2
            assert [life.epoch for life in posting.account.epochs] == [EPOCH, EPOCH + 10**10]
            found = store.totals_at(posting.key, [BORN + second for second in range(SECONDS)])
            counted = [None if item is None else item.totals.counts.tolist() for item in found]
            assert counted == [counts_of(rank, second) * 2 for second in range(SECONDS)]
            assert [item.at for item in found if item] == [BORN + second for second in range(SECONDS)]
        requests = store.traced_requests(TraceQuery(limit=1000))
        numbers = [int(item.names[-1][1:]) for item in requests]
        assert numbers == [number for number in range(traces, 0, -1) if number not in skip]
        for request, number in zip(requests, numbers, strict=True):
            [trace] = store.traces(request.number, None)
            for ids, expected in zip(trace.experts, experts_of(number, number), strict=True):
                np.testing.assert_array_equal(ids, expected)
        assert store.documents("baseline") == [("pinned prod", b"what it says")]


def rows(url: str) -> dict[str, int]:
    """How many rows there are, each once."""
    with closing(ClickHouseStore(url, LONG)) as store:
        return {
            table: store.connection.rows(f"SELECT toInt64(count()) FROM {table} FINAL", "i")[0][0]
            for table in ("account", "life", "snapshot", "trace_part", "routing", "gone")
        }


if __name__ == "__main__":
    mover._BATCH_ROWS = 2  # type: ignore[misc]
    move(Path(sys.argv[1]), sys.argv[2], say=lambda said: print(said, flush=True))
