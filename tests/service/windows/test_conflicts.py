"""Conflicts of lives, interval by interval."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from weakref import ref

from moescope.service.counts.totals import Totals
from moescope.service.live.past import Remembered
from moescope.service.live.producers import ProducerState
from moescope.service.live.spans import Snapshot
from moescope.service.live.state import LiveState
from moescope.service.settings import Settings
from moescope.service.windows.conflicts import conflicts_of
from tests.service.conftest import Clock
from tests.service.frames import EPOCH, frame


def test_each_producer_is_let_go_and_each_interval_has_its_own_reason() -> None:
    clock = Clock(EPOCH / 1e9 + 1)
    state = LiveState(Settings(store=None), clock)
    state.ingest(frame({0: [2, 2]}))
    [one] = state.producers()
    gone: list[ref[Totals]] = []

    def boundaries() -> Iterator[tuple[ProducerState, Remembered]]:
        for rank in range(4):
            assert all(item() is None for item in gone[:-1]), "those before the last one are let go"
            mine = [replace(one.totals) for _ in range(3)]
            gone.append(ref(mine[0]))
            found = tuple(Snapshot(float(at), totals) for at, totals in zip((1, 2, 3), mine, strict=True))
            del mine
            item = replace(one, conflicts=((2.2, 2.8),)) if rank == 1 else one
            yield item, Remembered(0.0, 0.0, (1.0, 2.0, 3.0), found)
            del found

    first, second = conflicts_of(boundaries(), 2)
    assert first is None
    assert second is not None
    assert "from 2 to 3" in second
    assert len(gone) == 4
