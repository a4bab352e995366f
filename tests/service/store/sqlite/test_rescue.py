"""Damaged files of a store: it opens, says what is lost, keeps what can be read, and goes on."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from moescope.service.store.limits import Retention
from moescope.service.store.records import ArrivedPart
from moescope.service.store.sqlite.store import FILE, SqliteStore
from tests.service.frames import producer
from tests.service.store.sqlite.damage import NOW, RANKS, TRACES, check, damage
from tests.service.trace_parts import part


@pytest.mark.parametrize("seed", range(12))
def test_a_damaged_file_is_survived(tmp_path: Path, whole: bytes, seed: int) -> None:
    """A third bits flipped, a third truncated, a third with a page overwritten; soak does it 100 times."""
    damage(tmp_path, whole, seed)


def test_what_was_lost_is_said_and_the_damaged_file_is_kept(
    tmp_path: Path, whole: bytes, log: pytest.LogCaptureFixture
) -> None:
    broken = whole[: len(whole) // 2]
    (tmp_path / FILE).write_bytes(broken)
    check(tmp_path)
    [line] = [record.getMessage() for record in log.records if record.levelno == logging.ERROR]
    [aside] = tmp_path.glob("moescope.sqlite.damaged-*")
    assert str(aside) in line
    assert "lost: some or all rows of" in line
    assert aside.stat().st_size == len(broken)
    log.clear()
    check(tmp_path)
    assert not log.records, "it is mended for good"


def test_blocks_say_again_what_shape_their_traces_have(tmp_path: Path, whole: bytes) -> None:
    """The table of shapes is small and all traces need it: where its page is lost it is made again."""
    (tmp_path / FILE).write_bytes(whole)
    connection = sqlite3.connect(tmp_path / FILE)
    [(page,)] = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'shape'").fetchall()
    connection.close()
    begin = (page - 1) * 4096
    (tmp_path / FILE).write_bytes(whole[:begin] + b"\x99" * 4096 + whole[begin + 4096 :])
    assert check(tmp_path) == (RANKS, TRACES)


def test_nothing_is_left_of_a_request_that_can_not_be_shown(tmp_path: Path) -> None:
    """Its complete trace is lost, another worker's is incomplete: it would stay beyond its time to live."""
    whole, half = part(1), part(1, part=0, parts=2)
    whole = replace(whole, producer=producer(tp_size=2))
    half = replace(half, producer=producer(tp_rank=1, tp_size=2))
    store = SqliteStore(tmp_path, Retention())
    store.save([ArrivedPart(item, NOW) for item in (whole, half)])
    store._writer.execute("DELETE FROM trace WHERE complete")
    [(page,)] = store._writer.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'document'").fetchall()
    [size] = store._writer.execute("PRAGMA page_size").fetchone()
    store.close()
    data = (tmp_path / FILE).read_bytes()
    begin = (page - 1) * size
    (tmp_path / FILE).write_bytes(data[:begin] + b"\x99" * size + data[begin + size :])
    SqliteStore(tmp_path, Retention()).close()
    with closing(sqlite3.connect(tmp_path / FILE)) as rescued:
        assert rescued.execute("PRAGMA foreign_key_check").fetchall() == []
        assert rescued.execute("SELECT count(*) FROM segment").fetchone() == (0,)
    assert (tmp_path / FILE).stat().st_mode & 0o077 == 0
