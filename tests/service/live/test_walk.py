"""Questions about the past hold few of the totals that the store has, however many instants they name."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from moescope.service.counts.totals import Totals
from moescope.service.live.past import Archive
from moescope.service.live.state import LiveState
from moescope.service.settings import Settings
from moescope.service.store.open import open_writer
from moescope.service.store.records import Key, StoredTotals
from tests.service.conftest import Clock
from tests.service.frames import EPOCH, frame, producer

RANKS, SECONDS = 4, 60


class Counting:
    """An archive that counts how many of the totals that it gave are still held: those are narrow."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._before = len(_narrow_ones())
        self.most = 0

    def totals_of(self, keys: Sequence[Key], instants: Sequence[float]) -> list[list[StoredTotals | None]]:
        return [self.totals_at(key, instants) for key in keys]

    def oldest_of(self, keys: Sequence[Key]) -> list[StoredTotals | None]:
        return [self.oldest(key) for key in keys]

    def totals_at(self, key: Key, instants: Sequence[float]) -> list[StoredTotals | None]:
        found = self._archive.totals_at(key, instants)
        self.most = max(self.most, len(_narrow_ones()) - self._before)
        return found

    def begins(self) -> Mapping[Key, float]:
        return self._archive.begins()

    def oldest(self, key: Key) -> StoredTotals | None:
        return self._archive.oldest(key)


@pytest.fixture
def new_objects_only() -> Iterator[None]:
    """`gc` knows what the test makes: to go through all modules two hundred times takes long."""
    gc.freeze()
    yield
    gc.unfreeze()


def _narrow_ones() -> list[Totals]:
    return [item for item in gc.get_objects() if type(item) is Totals and item.counts.dtype != np.int64]


@pytest.mark.usefixtures("new_objects_only")
def test_a_series_holds_the_totals_of_few_boundaries(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("moescope.service.live.walk.HELD_BYTES", 1)
    clock = Clock(EPOCH / 1e9 + 1)
    settings = Settings(store=tmp_path, port=0, history_mib=1)
    with open_writer(settings, clock) as writer:
        assert writer is not None
        state = LiveState(settings, clock, writer.store)
        begun = clock.now
        for second in range(1, SECONDS + 1):
            clock.now = begun + second
            for rank in range(RANKS):
                who = producer(dp_rank=rank, dp_size=RANKS)
                state.ingest(frame({0: [2 * second, 0]}, seq=second, who=who, after_s=second))
            writer.submit(state.take_records()).result(30)
        archive = Counting(writer.store)
        later = LiveState(settings, clock, archive)
        later.restore(list(writer.store.accounts()))
        instants = [begun + second for second in range(1, SECONDS)]
        per_interval = [
            sum(int(item.span.delta.counts.sum()) for item in spans)
            for spans in later.walk(("prod", "tiny"), instants)
        ]
        assert per_interval == [2 * RANKS] * (SECONDS - 2)
        assert RANKS <= archive.most <= 4 * RANKS
        archive.most = 0
        whole, parts = later.whole_and_parts(("prod", "tiny"), instants)
        total = sum(int(item.span.delta.counts.sum()) for item in whole)
        assert total == sum(int(item.span.delta.counts.sum()) for spans in parts for item in spans)
        assert RANKS <= archive.most <= 5 * RANKS
