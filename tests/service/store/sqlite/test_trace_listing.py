"""Searches by expert: what is packed, what waits, and what is damaged."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from moescope.service.store.limits import Retention
from moescope.service.store.records import ArrivedPart, TraceQuery
from moescope.service.store.sqlite.store import FILE, SqliteStore
from tests.service.store.accounts import BORN
from tests.service.store.sqlite.damage import TRACES
from tests.service.trace_parts import LAYERS, experts_of, part


def test_hits_are_found_in_blocks_and_in_what_waits(tmp_path: Path) -> None:
    """Three tokens a trace, so that most experts are in few of them; more than one look at the newest."""
    with closing(SqliteStore(tmp_path, Retention())) as store:
        for number in range(1, 301):
            store.save([ArrivedPart(part(number, tokens=3), BORN)])
        for index, layer in enumerate(LAYERS):
            for expert in range(0, layer.num_experts, 5):
                expected = [n for n in range(300, 0, -1) if expert in experts_of(n, 3)[index]]
                found = store.traced_requests(TraceQuery(layer=layer.layer, expert=expert, limit=1000))
                assert [item.number for item in found] == expected
                page = store.traced_requests(TraceQuery(layer=layer.layer, expert=expert, limit=3))
                assert [item.number for item in page] == expected[:3]
                if len(expected) > 3:
                    rest = TraceQuery(layer=layer.layer, expert=expert, limit=2, before=page[-1].number)
                    assert [item.number for item in store.traced_requests(rest)] == expected[3:5]


def test_a_damaged_block_is_left_out_of_searches(
    tmp_path: Path, whole: bytes, log: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).write_bytes(whole)
    connection = sqlite3.connect(tmp_path / FILE)
    with connection:
        connection.execute("UPDATE block SET hits = randomblob(80)")
        [packed] = connection.execute("SELECT count(*) FROM piece").fetchone()
    connection.close()
    store = SqliteStore(tmp_path, Retention())
    found = store.traced_requests(TraceQuery(layer=1, expert=3, limit=1000))
    store.close()
    expected = [n for n in range(TRACES, packed, -1) if 3 in experts_of(n, 40)[0]]
    assert [item.number for item in found] == expected
    assert "left out of searches by expert: a damaged map" in log.text


def test_a_damaged_segment_is_left_out_of_searches(
    waiting: SqliteStore, log: pytest.LogCaptureFixture
) -> None:
    expert = int(experts_of(2, part(2).tokens)[0][0, 0])
    waiting._writer.execute(
        "UPDATE segment SET experts = randomblob(80) WHERE trace = (SELECT id FROM trace WHERE request = 1)"
    )
    for _ in range(2):
        found = waiting.traced_requests(TraceQuery(layer=LAYERS[0].layer, expert=expert))
        assert [item.number for item in found] == [2]
    [line] = [record.getMessage() for record in log.records]
    assert "a segment of request 1 is left out of searches by expert: a damaged segment" in line
