"""Questions about the past hold few of the totals that the store has, however many instants they name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakSet

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
    """An archive that counts how many of the totals that it gave are still held."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._held: WeakSet[Totals] = WeakSet()
        self.most = 0

    def totals_of(self, keys: Sequence[Key], instants: Sequence[float]) -> list[list[StoredTotals | None]]:
        return [self.totals_at(key, instants) for key in keys]

    def oldest_of(self, keys: Sequence[Key]) -> list[StoredTotals | None]:
        return [self.oldest(key) for key in keys]

    def totals_at(self, key: Key, instants: Sequence[float]) -> list[StoredTotals | None]:
        found = self._archive.totals_at(key, instants)
        self._held.update(item.totals for item in found if item is not None)
        self.most = max(self.most, len(self._held))
        return found

    def begins(self) -> Mapping[Key, float]:
        return self._archive.begins()

    def oldest(self, key: Key) -> StoredTotals | None:
        return self._archive.oldest(key)


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
