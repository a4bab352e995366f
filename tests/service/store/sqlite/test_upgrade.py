"""A store that an earlier moescope wrote.

``upgrade/schema2.sqlite`` was written by the code of commit 5540124, the last one with schema 2,
``schema3.sqlite`` by that of 6ef10e3, ``schema4.sqlite`` by that of c16ea6a, ``schema5.sqlite`` by that of
28105de: two DP ranks with three frames each, three traces; in the last one also half of a fourth. A
schema that is released gets a file of its own here.
"""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Final

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
        assert_numbers_go_on(store)
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


def assert_numbers_go_on(store: SqliteStore) -> None:
    """All of them are removed; still no number is used again, and their names are remembered."""
    last = max(item.number for item in store.traced_requests(TraceQuery()))
    store.maintain(1_700_000_021.0 + Retention().trace_s)
    assert store.traced_requests(TraceQuery()) == []
    assert [store.why_absent(name) for name in ("x1", "x7", "x8")] == ["expired", "expired", None]
    for table in ("request_name", "trace", "trace_part", "segment", "piece", "block"):
        assert store._writer.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table
    store.save([ArrivedPart(part(8), 1_700_000_020.0)])
    assert [item.number > last for item in store.traced_requests(TraceQuery())] == [True]


def test_numbers_of_requests_that_were_removed_before_are_not_used_again(tmp_path: Path) -> None:
    shutil.copy(OLD[-1], tmp_path / FILE)
    with closing(sqlite3.connect(tmp_path / FILE)) as old, old:
        [last] = old.execute("SELECT max(id) FROM request").fetchone()
        for table in ("segment", "trace_part", "trace", "request_name", "request"):
            old.execute(f"DELETE FROM {table}")
    with closing(SqliteStore(tmp_path, Retention())) as store:
        store.save([ArrivedPart(part(8), 1_700_000_020.0)])
        assert [item.number for item in store.traced_requests(TraceQuery())] == [last + 1]


def test_half_a_trace_from_before_becomes_whole(tmp_path: Path) -> None:
    shutil.copy(OLD[-1], tmp_path / FILE)
    with closing(SqliteStore(tmp_path, Retention())) as store:
        assert store.why_absent("x9") == "incomplete"
        ids = [array[10:] for array in experts_of(9, 20)]
        store.save([ArrivedPart(part(9, experts=ids, runs=[(10, 10)], part=1, parts=2), 1_700_000_020.0)])
        [found] = store.traced_requests(TraceQuery(name="x9"))
        [trace] = store.traces(found.number, None)
        for mine, expected in zip(trace.experts, experts_of(9, 20), strict=True):
            np.testing.assert_array_equal(mine, expected)
        assert found.tokens == 20
        assert trace.steps(0, 20).tolist() == [-1] * 20


_KILLED: Final = """
import os, signal, sqlite3, sys
from moescope.service.store.sqlite.schema import migrate
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA journal_mode = WAL")
left = int(sys.argv[2])
def tick():
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
connection.set_progress_handler(tick, 10)
migrate(connection, sys.argv[1])
"""


def test_an_upgrade_that_is_killed_has_not_begun(tmp_path: Path) -> None:
    path = tmp_path / FILE
    ticks, killed = 40, 0
    while True:
        shutil.copy(OLD[-1], path)
        ended = subprocess.run([sys.executable, "-c", _KILLED, str(path), str(ticks)], check=False)
        with closing(sqlite3.connect(path)) as connection:
            [version] = connection.execute("PRAGMA user_version").fetchone()
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL
        assert version == len(MIGRATIONS) - 1
        killed, ticks = killed + 1, 2 * ticks
        with closing(SqliteStore(tmp_path, Retention())) as store:
            assert len(store.traced_requests(TraceQuery())) == 3
            assert_goes_on(store)
        for left in tmp_path.iterdir():
            left.unlink()
    assert version == len(MIGRATIONS)
    assert killed >= 3


_FULL: Final = """
import resource, sys
from pathlib import Path
from moescope.service.store.limits import Retention
from moescope.service.store.records import StoreError
from moescope.service.store.sqlite.store import SqliteStore
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))  # stands for a full disk
try:
    SqliteStore(Path(sys.argv[1]), Retention())
except StoreError as error:
    print(error)
"""


def test_an_upgrade_on_a_full_disk_has_not_begun(tmp_path: Path) -> None:
    shutil.copy(OLD[-1], tmp_path / FILE)
    said = subprocess.run(
        [sys.executable, "-c", _FULL, str(tmp_path)], check=True, capture_output=True, text=True
    ).stdout
    assert "is its disk full or read-only?" in said
    with closing(sqlite3.connect(tmp_path / FILE)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS) - 1,)
    with closing(SqliteStore(tmp_path, Retention())) as store:
        assert len(store.traced_requests(TraceQuery())) == 3
        assert_goes_on(store)
