"""Traces of which five fill a block, and what a store must have of them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np

from moescope.service.store.records import ArrivedPart, TraceQuery
from moescope.service.store.sqlite.packing import BLOCK_TOKENS
from moescope.service.store.sqlite.store import FILE, SqliteStore
from tests.service.store.accounts import BORN
from tests.service.trace_parts import LAYERS, experts_of, part

TOKENS = BLOCK_TOKENS // 5  # five traces fill a block
TTL = 1000.0


def arrived(number: int, at: float = BORN) -> ArrivedPart:
    return ArrivedPart(part(number, tokens=TOKENS), at)


def rows(folder: Path, table: str) -> int:
    with closing(sqlite3.connect(folder / FILE)) as connection:
        [found] = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    return int(found)


def check(store: SqliteStore, numbers: list[int], tokens: int = TOKENS) -> None:
    """These traces are there, each as it came, and no other; and each is found by what it took."""
    found = store.traced_requests(TraceQuery(limit=10_000))
    assert [int(item.names[-1].removeprefix("x")) for item in found] == numbers[::-1]
    for item, number in zip(found, numbers[::-1], strict=True):
        [trace] = store.traces(item.number, None)
        for ids, expected in zip(trace.experts, experts_of(number, tokens), strict=True):
            np.testing.assert_array_equal(ids, expected)
        [one] = store.traces(item.number, [LAYERS[1].layer])
        np.testing.assert_array_equal(one.experts[0], experts_of(number, tokens)[1])
