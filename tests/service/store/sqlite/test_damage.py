"""Damaged files of a store: it opens, says what is lost, keeps what can be read, and goes on."""

from __future__ import annotations

import logging
import random
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from moescope.service.counts.account import Account
from moescope.service.store.limits import Retention
from moescope.service.store.records import ArrivedPart, Posting, StoreError, TraceQuery
from moescope.service.store.sqlite.store import FILE, SqliteStore
from tests.service.frames import frame, producer
from tests.service.trace_parts import LAYERS, experts_of, part

RANKS = 4
SECONDS = 12
TRACES = 70  # tiny ones: 64 of them share a block, the others wait
NOW = 1_700_000_000.0


def counts_of(dp_rank: int, second: int) -> list[int]:
    return [2 * (second + 1) * (dp_rank + 1)] * 64


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a store that was closed in order."""
    return whole_store(tmp_path_factory.mktemp("whole"))


def whole_store(folder: Path) -> bytes:
    """The file of a store that was filled in this folder, then closed in order."""
    store = SqliteStore(folder, Retention())
    accounts = {rank: Account(8) for rank in range(RANKS)}
    for second in range(SECONDS):
        for rank, account in accounts.items():
            who = producer(dp_rank=rank, dp_size=RANKS)
            account.post(frame({0: counts_of(rank, second)}, seq=second + 1, who=who, after_s=second + 1))
            store.save([Posting(who.key, NOW, NOW + second, account.state())])
    for number in range(1, TRACES + 1):
        store.save([ArrivedPart(part(number, tokens=40), NOW)])
    store.close()
    return (folder / FILE).read_bytes()


def check(folder: Path) -> tuple[int, int]:
    """What is there is right, whatever is left of it: accounts and traces that were read."""
    store = SqliteStore(folder, Retention())
    try:
        read = 0
        for posting in store.accounts():
            second = posting.account.latest.seq - 1
            np.testing.assert_array_equal(
                posting.account.totals.counts, counts_of(posting.account.latest.producer.dp_rank, second)
            )
            read += 1
            at = store.totals_at(posting.key, [NOW + 1e6])[0]
            assert at is None or at.totals.counts[0] % (2 * (posting.key[2] + 1)) == 0
        traces = 0
        for found in store.traced_requests(TraceQuery(limit=1000)):
            try:
                workers = store.traces(found.number, None)
            except StoreError as error:
                assert "damaged" in str(error)  # noqa: PT017 the message is what matters
                continue
            for trace in workers:
                for ids, expected in zip(trace.experts, experts_of(found.number, 40), strict=True):
                    np.testing.assert_array_equal(ids, expected)
            traces += bool(workers)
        # and it goes on
        account = Account(8)
        who = producer(dp_rank=0, dp_size=RANKS)
        account.post(frame({0: counts_of(0, 99)}, seq=100, who=who, after_s=100))
        store.save([Posting(who.key, NOW, NOW + 100, account.state())])
        return read, traces
    finally:
        store.close()


def flip(data: bytes, places: Sequence[int]) -> bytes:
    changed = bytearray(data)
    for place in places:
        changed[place // 8] ^= 1 << (place % 8)
    return bytes(changed)


@pytest.mark.parametrize("seed", range(12))
def test_a_damaged_file_is_survived(tmp_path: Path, whole: bytes, seed: int) -> None:
    """A third bits flipped, a third truncated, a third with a page overwritten; soak does it 100 times."""
    damage(tmp_path, whole, seed)


def damage(folder: Path, whole: bytes, seed: int) -> tuple[int, int]:
    """Damage a file and open the store: accounts and traces that were kept."""
    break_file(folder, whole, seed)
    return check(folder)


def break_file(folder: Path, whole: bytes, seed: int) -> None:
    rng = random.Random(seed)
    if seed % 3 == 0:
        broken = flip(whole, [rng.randrange(len(whole) * 8) for _ in range(rng.choice((1, 1, 8, 100)))])
    elif seed % 3 == 1:
        broken = whole[: rng.randrange(1, len(whole))]
    else:
        page = rng.randrange(len(whole) // 4096) * 4096
        broken = whole[:page] + rng.randbytes(4096) + whole[page + 4096 :]
    (folder / FILE).write_bytes(broken)


def test_what_was_lost_is_said_and_the_damaged_file_is_kept(
    tmp_path: Path, whole: bytes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("moescope"), "propagate", True)
    broken = whole[: len(whole) // 2]
    (tmp_path / FILE).write_bytes(broken)
    check(tmp_path)
    [line] = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    [aside] = tmp_path.glob("moescope.sqlite.damaged-*")
    assert str(aside) in line
    assert "lost: some or all rows of" in line
    assert aside.stat().st_size == len(broken)
    caplog.clear()
    check(tmp_path)
    assert not caplog.records, "it is mended for good"


def test_damage_in_one_row_costs_that_row_only(
    tmp_path: Path, whole: bytes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("moescope"), "propagate", True)
    (tmp_path / FILE).write_bytes(whole)
    connection = sqlite3.connect(tmp_path / FILE)
    [blob] = connection.execute("SELECT account FROM producer WHERE dp_rank = 2").fetchone()
    with connection:
        connection.execute(
            "UPDATE producer SET account = ? WHERE dp_rank = 2", (flip(blob, [len(blob) * 4]),)
        )
    connection.close()
    assert check(tmp_path) == (RANKS - 1, TRACES)
    told = "the account of ('prod', 'tiny', 2, 0, 0) can't be read and is left out: a damaged blob"
    assert told in caplog.text


def test_a_damaged_snapshot_is_passed_over(tmp_path: Path, whole: bytes) -> None:
    (tmp_path / FILE).write_bytes(whole)
    connection = sqlite3.connect(tmp_path / FILE)
    with connection:
        at_ms = round((NOW + 5) * 1000)
        connection.execute("UPDATE snapshot SET totals = randomblob(50) WHERE at_ms = ?", (at_ms,))
    connection.close()
    store = SqliteStore(tmp_path, Retention())
    [found] = store.totals_at(producer(dp_rank=1, dp_size=RANKS).key, [NOW + 5.5])
    store.close()
    assert found is not None
    assert found.at == NOW + 4
    assert found.totals.counts[0] == counts_of(1, 4)[0]


def test_blocks_say_again_what_shape_their_traces_have(tmp_path: Path, whole: bytes) -> None:
    """The table of shapes is small and all traces need it: where its page is lost it is made again."""
    (tmp_path / FILE).write_bytes(whole)
    connection = sqlite3.connect(tmp_path / FILE)
    [(page,)] = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'shape'").fetchall()
    connection.close()
    begin = (page - 1) * 4096
    (tmp_path / FILE).write_bytes(whole[:begin] + b"\x99" * 4096 + whole[begin + 4096 :])
    assert check(tmp_path) == (RANKS, TRACES)


def test_a_damaged_block_is_left_out_of_searches(
    tmp_path: Path, whole: bytes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("moescope"), "propagate", True)
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
    assert "left out of searches by expert: a damaged map" in caplog.text


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[SqliteStore]:
    """Two whole traces and a part of a third one, each in a segment of its own."""
    store = SqliteStore(tmp_path, Retention())
    store.save([ArrivedPart(item, NOW) for item in (part(1), part(2), part(3, part=0, parts=2))])
    yield store
    store.close()


def test_a_damaged_segment_is_left_out_of_searches(
    waiting: SqliteStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("moescope"), "propagate", True)
    expert = int(experts_of(2, part(2).tokens)[0][0, 0])
    waiting._writer.execute(
        "UPDATE segment SET experts = randomblob(80) WHERE trace = (SELECT id FROM trace WHERE request = 1)"
    )
    for _ in range(2):
        found = waiting.traced_requests(TraceQuery(layer=LAYERS[0].layer, expert=expert))
        assert [item.number for item in found] == [2]
    [line] = [record.getMessage() for record in caplog.records]
    assert "a segment of request 1 is left out of searches by expert: a damaged segment" in line


def test_damaged_layers_of_a_trace_hold_up_nothing_else(
    waiting: SqliteStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parts of a batch are compared with those before them: what cannot be compared is kept unchecked."""
    monkeypatch.setattr(logging.getLogger("moescope"), "propagate", True)
    waiting._writer.execute("UPDATE shape SET layers = x'c1'")
    rest, new = part(3, part=1, parts=2), part(4)
    assert waiting.shapes([rest, new]) == [None, None]
    [line] = [record.getMessage() for record in caplog.records]
    assert "the layers of a trace of request" in line
    waiting.save([ArrivedPart(item, NOW + 1) for item in (rest, new)])
    broken, whole = (waiting.traced_requests(TraceQuery(name=f"x{number}")) for number in (3, 4))
    assert len(waiting.traces(whole[0].number, None)) == 1
    with pytest.raises(StoreError, match="can't be read"):
        waiting.traces(broken[0].number, None)


def test_nothing_is_left_of_a_request_that_can_not_be_shown(tmp_path: Path) -> None:
    """Its complete trace is lost, another worker's is incomplete: it would stay beyond its time to live."""
    whole, half = part(1), part(1, part=0, parts=2)
    half = replace(half, producer=replace(half.producer, tp_rank=1, tp_size=2))
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
