"""The size of the store where somebody reads it for long: nothing waits, and nothing is removed in vain."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from moescope.service.store.limits import Retention
from moescope.service.store.records import ArrivedPart, TraceQuery
from moescope.service.store.sqlite.store import FILE, SqliteStore
from tests.service.store.accounts import BORN
from tests.service.trace_parts import part

TRACES = 40


def test_a_reader_that_stays_costs_no_traces_and_no_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It cost 70 of 90 traces, and the writer's senders 40 s, without a line."""
    caplog.set_level("INFO")
    store = SqliteStore(tmp_path, Retention(trace_s=1e6, max_bytes=1 << 20))
    with closing(sqlite3.connect(tmp_path / FILE, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM request").fetchall()
        for number in range(1, TRACES + 1):
            store.save([ArrivedPart(part(number, tokens=20_000, name=f"r{number}"), BORN + number)])
        began = time.monotonic()
        for _ in range(3):
            store.maintain(BORN + TRACES)
        assert time.monotonic() - began < 20  # it was 10 s for each look at the size: 30 s
        assert store.usage().traces == TRACES
        assert caplog.text.count("nothing is removed") == 1
        reader.execute("ROLLBACK")
    store.maintain(BORN + TRACES)
    assert 0 < len(store.traced_requests(TraceQuery())) < TRACES
    assert store.usage().nbytes <= 1 << 20
    assert "within its size again" in caplog.text
    store.close()
