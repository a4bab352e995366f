"""Traces that are gone are wiped from the blocks that they shared."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from moescope.service.store.limits import Retention
from moescope.service.store.records import TraceQuery
from moescope.service.store.sqlite.segments import read_packed
from moescope.service.store.sqlite.store import FILE, SqliteStore
from tests.service.store.accounts import BORN
from tests.service.store.sqlite.packed_traces import TOKENS, TTL, arrived, check, rows
from tests.service.trace_parts import LAYERS, experts_of


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    made = SqliteStore(tmp_path, Retention(trace_s=TTL))
    yield made
    made.close()


def test_traces_that_are_gone_are_wiped_from_their_block(store: SqliteStore, tmp_path: Path) -> None:
    """What a removed trace held is nowhere, not even where another trace of its block stays."""
    for number in range(1, 6):
        store.save([arrived(number, BORN + number)])
    assert rows(tmp_path, "block") == 1
    store.maintain(BORN + TTL + 3.5)
    check(store, [4, 5])
    block = store_block(tmp_path)
    assert not block[0, : 3 * TOKENS].any()
    assert block[0, 3 * TOKENS :].any()
    gone = store.traced_requests(TraceQuery(layer=3, expert=int(experts_of(1, TOKENS)[1][0, 0])))
    assert {item.names[-1] for item in gone} <= {"x4", "x5"}
    assert rows(tmp_path, "to_wipe") == 0
    store.maintain(BORN + TTL + 5.5)
    check(store, [])
    assert (rows(tmp_path, "block"), rows(tmp_path, "piece"), rows(tmp_path, "to_wipe")) == (0, 0, 0)


def store_block(folder: Path) -> np.ndarray:
    """Ids of the first layer of the only block: [1, tokens, top_k]."""
    with closing(sqlite3.connect(folder / FILE)) as connection:
        [(tokens, blob)] = connection.execute("SELECT tokens, experts FROM block").fetchall()
    return np.stack(read_packed(blob, LAYERS, 1, tokens, [LAYERS[0].layer]))
