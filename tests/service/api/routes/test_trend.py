"""What /v1/trend reads of the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from moescope.service.api.routes.trend import KnownIntervals
from moescope.service.live.past import Archive
from moescope.service.live.state import LiveState
from moescope.service.settings import Settings
from moescope.service.store.open import open_writer
from moescope.service.store.records import Key, StoredTotals
from moescope.service.windows.trend_points import TrendWish
from tests.service.conftest import Clock
from tests.service.frames import EPOCH, frame, producer

RANKS, SECONDS = 2, 30
BORN = EPOCH / 1e9


class Noting:
    """An archive that notes which totals were asked for."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self.asked: list[tuple[Key, float]] = []

    def totals_of(self, keys: Sequence[Key], instants: Sequence[float]) -> list[list[StoredTotals | None]]:
        return [self.totals_at(key, instants) for key in keys]

    def oldest_of(self, keys: Sequence[Key]) -> list[StoredTotals | None]:
        return [self.oldest(key) for key in keys]

    def totals_at(self, key: Key, instants: Sequence[float]) -> list[StoredTotals | None]:
        self.asked += [(key, instant) for instant in instants]
        return self._archive.totals_at(key, instants)

    def begins(self) -> Mapping[Key, float]:
        return self._archive.begins()

    def oldest(self, key: Key) -> StoredTotals | None:
        return self._archive.oldest(key)


def test_each_boundary_is_read_once_and_what_is_settled_never_again(tmp_path: Path) -> None:
    clock = Clock(BORN + 1)
    settings = Settings(store=tmp_path, port=0)
    with open_writer(settings, clock) as writer:
        assert writer is not None
        state = LiveState(settings, clock, writer.store)
        for second in range(1, SECONDS + 1):
            clock.now = BORN + second
            for rank in range(RANKS):
                who = producer(dp_rank=rank, dp_size=RANKS)
                state.ingest(frame({0: [2 * second, 0]}, seq=second, who=who, after_s=second))
            writer.submit(state.take_records()).result(30)
        archive = Noting(writer.store)
        later = LiveState(settings, clock, archive)
        later.restore(list(writer.store.accounts()))
        clock.now = BORN + SECONDS + 70
        known, wanted = KnownIntervals(), TrendWish(("prod", "tiny"), None, None, None)
        cuts = [BORN + second for second in range(2, SECONDS)]
        points = known.points(later, wanted, cuts)
        assert [point.rates for point in points] == [{0: 1.0, 1: 1.0}] * (SECONDS - 3)
        assert sorted(archive.asked) == sorted(set(archive.asked))
        assert len(archive.asked) == RANKS * len(cuts)
        archive.asked.clear()
        assert known.points(later, wanted, [BORN + 1, *cuts])[1:] == points
        assert len(archive.asked) == 2 * RANKS  # of the one interval that is new
        for few in (KnownIntervals(most=3), KnownIntervals(most_rates=3 * RANKS)):
            assert few.points(later, wanted, cuts) == points
            archive.asked.clear()
            assert few.points(later, wanted, cuts[-4:]) == points[-3:]
            assert not archive.asked
            few.points(later, wanted, cuts[-5:])
            assert len(archive.asked) == 2 * RANKS
