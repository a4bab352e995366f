"""SQLite's log goes into the database without the writer's help, and doesn't grow for ever."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from moescope.service.store.limits import Retention
from moescope.service.store.records import ArrivedPart
from moescope.service.store.sqlite.checkpoints import DUE_BYTES, MOST_BYTES
from moescope.service.store.sqlite.store import FILE, SqliteStore
from tests.service.store.accounts import BORN
from tests.service.trace_parts import LAYERS, part

TOKENS = 20_000
BYTES = TOKENS * sum(layer.top_k for layer in LAYERS)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    made = SqliteStore(tmp_path, Retention())
    yield made
    made.close()


def test_the_log_is_copied_beside_the_writer(store: SqliteStore, tmp_path: Path) -> None:
    store._writer.execute("PRAGMA wal_autocheckpoint = 0")
    before = (tmp_path / FILE).stat().st_size
    arrived = ArrivedPart(part(1, tokens=TOKENS), BORN)
    saves = DUE_BYTES // BYTES + 1
    for number in range(1, saves + 1):
        arrived.part.trace, arrived.part.request_id = number, f"r{number}"
        store.save([arrived])
    deadline = time.monotonic() + 60
    while (tmp_path / FILE).stat().st_size < before + saves * BYTES / 2:
        assert time.monotonic() < deadline, "the log was not copied"
        time.sleep(0.01)


def test_the_log_is_bounded(store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite copies it itself where the thread doesn't; the file then begins anew, and shrinks."""
    monkeypatch.setattr(store._checkpointer, "wrote", lambda _: None)
    log, largest = tmp_path / f"{FILE}-wal", 0
    arrived = ArrivedPart(part(1, tokens=TOKENS), BORN)
    for number in range(1, 3 * MOST_BYTES // BYTES):
        arrived.part.trace, arrived.part.request_id = number, f"r{number}"
        store.save([arrived])
        largest = max(largest, log.stat().st_size)
    assert MOST_BYTES / 2 < largest < 1.5 * MOST_BYTES
