"""Boundaries of windows: memory's, or those of a store where it has totals nearer to the instant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import cast

import pytest

from moescope.capture.wire import MoeLayer
from moescope.service.counts.layers import Layout
from moescope.service.counts.narrow import narrowed
from moescope.service.counts.totals import no_totals
from moescope.service.live.past import READ_BYTES, Archive, Remembered, improve, improve_all
from moescope.service.live.spans import Snapshot
from moescope.service.store.limits import Retention
from moescope.service.store.records import Key, StoredTotals, StoreError
from moescope.service.store.sqlite.store import FILE, SqliteStore
from tests.service.store.accounts import BORN, key, posting


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[SqliteStore]:
    """Totals 3 and 5 seconds after the birth; expert 0 has two slots a second."""
    with closing(SqliteStore(tmp_path, Retention())) as store:
        store.save([posting([2 * second, 0], second) for second in (3, 5)])
        yield store


def _snapshot(second: float) -> Snapshot:
    return Snapshot(BORN + second, posting([2 * int(second), 0], second).account.totals)


def _memory(instants: list[float | None], found: list[float], complete_since: float = 8) -> Remembered:
    """Seconds are counted from the birth."""
    return Remembered(
        birth=BORN,
        complete_since=BORN + complete_since,
        instants=tuple(None if second is None else BORN + second for second in instants),
        found=tuple(map(_snapshot, found)),
    )


@pytest.mark.parametrize(
    ("instant", "in_memory", "expected"),
    [
        (4.0, 8, 3),  # memory has only what came later
        (7.0, 4, 5),  # both have earlier totals, the store later ones of these
        (7.0, 6, 6),  # memory is nearer
        (2.0, 8, 3),  # neither has totals so old: the oldest that there are
        (2.0, 2.5, 2.5),  # which may be memory's
        (9.0, 8, 8),  # from here on memory has all that the store can have
        (-1.0, 0, 0),  # before the birth there is nothing
    ],
)
def test_the_totals_nearest_to_the_instant_count(
    archive: SqliteStore, instant: float, in_memory: float, expected: float
) -> None:
    found = improve(archive, key(), _memory([instant, None], [in_memory, 10])).found
    assert [item.at - BORN for item in found] == [expected, 10]
    assert found[0].totals.counts[0] == 2 * int(expected)


def test_spans_lie_between_the_boundaries(archive: SqliteStore) -> None:
    spans = improve(archive, key(), _memory([4, 7, None], [8, 8, 10])).spans()
    assert [int(span.delta.counts[0]) for span in spans] == [4, 10]
    assert [(span.start - BORN, span.end - BORN, span.truncated) for span in spans] == [
        (3, 5, False),
        (5, 10, False),
    ]
    [beyond] = improve(archive, key(), _memory([2, None], [8, 10])).spans()
    assert (beyond.start - BORN, beyond.truncated) == (3, True)


def test_the_store_is_not_asked_for_what_memory_has(archive: SqliteStore, tmp_path: Path) -> None:
    archive.close()
    (tmp_path / FILE).write_bytes(b"no database" * 100)
    memory = _memory([8, None], [8, 10])
    assert improve(archive, key(), memory) is memory
    with pytest.raises(StoreError):
        improve(archive, key(), _memory([4, None], [8, 10]))


class _Counting:
    """An archive that has nothing, and notes how much is asked of it at once."""

    def __init__(self) -> None:
        self.most = 0

    def totals_of(self, keys: Sequence[Key], instants: Sequence[float]) -> list[list[StoredTotals | None]]:
        self.most = max(self.most, len(keys) * len(instants))
        return [[None for _ in instants] for _ in keys]

    def oldest_of(self, keys: Sequence[Key]) -> list[StoredTotals | None]:
        return [None for _ in keys]


@pytest.mark.parametrize("narrow", [False, True])
def test_what_is_read_at_once_is_bounded_however_narrow_memory_is(narrow: bool) -> None:
    wide = no_totals(Layout([MoeLayer(0, 1 << 17, 2)]))
    held = Snapshot(BORN + 10, narrowed(wide) if narrow else wide)
    instants = tuple(BORN + 1 + 0.1 * i for i in range(30))
    memory = Remembered(BORN, BORN + 20, instants, (held,) * len(instants))
    archive = _Counting()
    improve_all(cast("Archive", archive), [(key(rank), memory) for rank in range(3)])
    assert READ_BYTES / 2 < archive.most * wide.nbytes <= READ_BYTES
