"""Who answers a worker has what is to be kept of its frame, whatever the store's thread does meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from moescope.service.api.limits.keeping import Keeper
from moescope.service.api.routes.ingest import _count_frame
from moescope.service.live.state import LiveState
from moescope.service.metrics.instruments import Instruments
from moescope.service.settings import Settings
from moescope.service.store.limits import Retention
from moescope.service.store.records import Posting
from moescope.service.store.sqlite.store import SqliteStore
from tests.service.conftest import Clock
from tests.service.frames import frame, producer


def test_a_round_of_news_takes_nothing_of_a_frame_that_is_answered(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It took its records, could not keep them, and the worker was told that all of its none were kept."""
    store = SqliteStore(tmp_path, Retention())
    state = LiveState(Settings(store=tmp_path), clock, store)

    @contextmanager
    def others_turn() -> Iterator[None]:
        state.take_unkept()
        yield

    monkeypatch.setattr(state, "_counting", others_turn())
    _, (records, _) = _count_frame(frame({0: [1, 0]}), 0.0, state, Instruments(), Keeper(state, None))
    assert [item.key for item in records if isinstance(item, Posting)] == [producer().key]
    store.close()
