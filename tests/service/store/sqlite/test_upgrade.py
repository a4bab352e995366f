"""A store that an earlier moescope wrote.

``upgrade/schema2.sqlite`` was written by the code of commit 5540124, the last one with schema 2,
``schema3.sqlite`` by that of 6ef10e3, ``schema4.sqlite`` by that of c16ea6a: two DP ranks with three frames
each, three traces. A schema that is released gets a file of its own here.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from moescope.service.store.limits import Retention
from moescope.service.store.records import ArrivedPart, TraceQuery
from moescope.service.store.sqlite.backup import examine
from moescope.service.store.sqlite.schema import MIGRATIONS
from moescope.service.store.sqlite.store import FILE, SqliteStore
from tests.service.trace_parts import LAYERS, experts_of, part

OLD = sorted((Path(__file__).parent / "upgrade").glob("schema*.sqlite"))


def test_there_is_a_file_of_the_previous_schema() -> None:
    schemas = [int(path.stem.removeprefix("schema")) for path in OLD]
    assert [examine(path).schema for path in OLD] == schemas
    assert schemas
    assert max(schemas) == len(MIGRATIONS) - 1


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.stem)
def test_everything_is_there_after_an_upgrade(tmp_path: Path, path: Path) -> None:
    shutil.copy(path, tmp_path / FILE)
    store = SqliteStore(tmp_path, Retention())
    try:
        accounts = {posting.key[2]: posting for posting in store.accounts()}
        for rank, posting in accounts.items():
            expected = [2 * 3 * (rank + 1)] * 8 + [4 * 3] * 8
            np.testing.assert_array_equal(posting.account.totals.counts, expected)
            assert posting.account.totals.ep_slots.floats().sum() == sum(expected)
            [past] = store.totals_at(posting.key, [1_700_000_002.5])
            assert past is not None
            assert past.at == 1_700_000_002.0
            assert past.totals.counts[0] == 2 * 2 * (rank + 1)
        assert set(accounts) == {0, 1}
        found = store.traced_requests(TraceQuery())
        assert len(found) == 3
        for request in found:
            [trace] = store.traces(request.number, None)
            for ids, expected in zip(trace.experts, experts_of(request.number, 20), strict=True):
                np.testing.assert_array_equal(ids, expected)
        assert_found_by_hits(store)
        assert_goes_on(store)
    finally:
        store.close()
    with closing(sqlite3.connect(tmp_path / FILE)) as upgraded:
        assert upgraded.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)


def assert_found_by_hits(store: SqliteStore) -> None:
    """Each old trace by the experts that it took, and only by these."""
    for index, layer in enumerate(LAYERS):
        for expert in range(layer.num_experts):
            found = store.traced_requests(TraceQuery(layer=layer.layer, expert=expert))
            expected = [n for n in (3, 2, 1) if expert in experts_of(n, 20)[index]]
            assert [item.number for item in found] == expected


def assert_goes_on(store: SqliteStore) -> None:
    """New traces beside the old ones, in a block and out of one; one that comes again stays as it was."""
    store.save([ArrivedPart(part(number, tokens=900), 1_700_000_020.0) for number in (1, 4, 5, 6, 7)])
    found = {int(item.names[-1][1:]): item.number for item in store.traced_requests(TraceQuery())}
    assert list(found) == [7, 6, 5, 4, 3, 2, 1]
    for name, number in found.items():
        [trace] = store.traces(number, None)
        tokens = 20 if name < 4 else 900
        for ids, expected in zip(trace.experts, experts_of(name, tokens), strict=True):
            np.testing.assert_array_equal(ids, expected)
