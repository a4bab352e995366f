"""The thread that writes: in order, in batches, told when it is done, alive whatever happens."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from moescope.capture.wire.traces import TracePart
from moescope.service.counts.refusals import RefusedError
from moescope.service.store.records import (
    ArrivedPart,
    Document,
    Forgotten,
    Posting,
    Record,
    StoreAwayError,
    StoreError,
    TraceShape,
    UnkeepableError,
)
from moescope.service.store.waiting import MAX_BATCH, MAX_WAITING, PART_BYTES
from moescope.service.store.writer import StoreWriter
from tests.service.store.accounts import BORN, key, posting
from tests.service.trace_parts import LAYERS, part
from tests.waiting import PATIENCE_S, wait_until


class Disk:
    """A store that is slow or broken on demand."""

    def __init__(self) -> None:
        self.saved: list[list[Record]] = []
        self.aged: list[Document] = []
        self.free = threading.Event()
        self.free.set()
        self.broken: Exception | None = None
        self.maintained: list[float] = []
        self.closed = False
        self.is_remote = self.shared = False
        self.given_up = False

    def save(self, records: Sequence[Record]) -> None:
        self.free.wait(60)
        if self.broken is not None:
            raise self.broken
        if records and isinstance(records[0], Document):
            self.aged.append(records[0])  # the writer's own
        else:
            self.saved.append(list(records))

    def shapes(self, parts: Sequence[TracePart]) -> list[TraceShape | None]:
        return [None] * len(parts)

    def documents(self, kind: str) -> list[tuple[str, bytes]]:
        return [(item.name, item.content) for item in self.aged[-1:] if item.content is not None]

    def maintain(self, now: float, history_now: float | None = None) -> None:
        self.maintained.append(now)
        if self.broken is not None:
            raise self.broken

    def give_up(self) -> None:
        self.given_up = True

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def writer(disk: Disk) -> Iterator[StoreWriter]:
    made = StoreWriter(disk, lambda: 77.0, maintenance_s=0.02)  # type: ignore[arg-type]
    yield made
    disk.free.set()
    if not disk.closed:
        made.close()


def test_the_future_ends_after_the_write(disk: Disk, writer: StoreWriter) -> None:
    disk.free.clear()
    future = writer.submit([Forgotten(key())])
    time.sleep(0.02)
    assert not future.done()
    disk.free.set()
    future.result(PATIENCE_S)
    assert disk.saved == [[Forgotten(key())]]


def test_what_waits_goes_into_one_transaction(disk: Disk, writer: StoreWriter) -> None:
    disk.free.clear()
    first = writer.submit([Forgotten(key(0))])
    wait_until(writer._waiting.empty, "it is not being written", every=0.001)
    futures = [writer.submit([posting([2, 0], second)]) for second in (1.0, 1.5, 2.0)]
    disk.free.set()
    for future in (first, *futures):
        future.result(PATIENCE_S)
    assert len(disk.saved) == 2
    # 1.5 replaces 1.0, which is of the same second
    assert [item.at - BORN for item in disk.saved[1] if isinstance(item, Posting)] == [1.5, 2.0]


def test_a_failure_is_told_and_the_next_write_goes_on(disk: Disk, writer: StoreWriter) -> None:
    for broken in (StoreError("disk full"), RuntimeError("bug")):
        disk.broken = broken
        with pytest.raises(StoreError, match=r"disk full|bug"):
            writer.submit([Forgotten(key())]).result(PATIENCE_S)
    disk.broken = None
    writer.submit([Forgotten(key())]).result(PATIENCE_S)


def test_a_sender_that_gives_up_harms_nobody(disk: Disk, writer: StoreWriter) -> None:
    disk.free.clear()
    first = writer.submit([Forgotten(key(0))])
    wait_until(writer._waiting.empty, "it is not being written", every=0.001)
    gone, other = writer.submit([Forgotten(key(1))]), writer.submit([Forgotten(key(2))])
    assert gone.cancel(), "it waits: a server that ends cancels its requests"
    assert not first.cancel(), "it is being written"
    disk.free.set()
    first.result(PATIENCE_S)
    other.result(PATIENCE_S)
    assert disk.saved[1] == [Forgotten(key(1)), Forgotten(key(2))]


def test_too_many_waiting_writes_are_refused(
    disk: Disk, writer: StoreWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.free.clear()
    futures = [writer.submit([]) for _ in range(MAX_WAITING + MAX_BATCH + 1)]
    assert isinstance(futures[-1].exception(0), StoreError)
    disk.free.set()
    futures[0].result(PATIENCE_S)


def test_maintenance_happens_and_may_fail(disk: Disk, writer: StoreWriter) -> None:
    disk.broken = RuntimeError("bug")
    wait_until(lambda: len(disk.maintained) >= 3, "no maintenance", every=0.005)
    assert set(disk.maintained) == {77.0}
    disk.broken = None
    wait_until(lambda: disk.aged, "it did not age", every=0.005)
    assert disk.aged[0].content == b"77.0"


@pytest.mark.parametrize("content", [b"soon", b"nan", b"inf", b""])
def test_how_far_history_aged_may_be_damaged(
    disk: Disk, content: bytes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("moescope"), "propagate", True)
    disk.aged = [Document("aged", "aged", content)]
    writer = StoreWriter(disk, lambda: 77.0, maintenance_s=0.02)  # type: ignore[arg-type]
    wait_until(lambda: len(disk.aged) >= 2, "it did not age", every=0.005)
    writer.close()
    assert disk.aged[1].content == b"77.0"
    [line] = [record.getMessage() for record in caplog.records]
    assert "how far the history in the store has aged can't be read" in line


def test_closing_writes_what_waits(disk: Disk, writer: StoreWriter) -> None:
    disk.free.clear()
    futures = [writer.submit([Forgotten(key(rank))]) for rank in range(3)]
    disk.free.set()
    writer.close()
    assert all(future.done() for future in futures)
    assert [item for batch in disk.saved for item in batch] == [Forgotten(key(rank)) for rank in range(3)]
    assert disk.closed


def test_a_part_that_contradicts_one_of_its_batch_fails_alone(disk: Disk, writer: StoreWriter) -> None:
    disk.free.clear()
    first = writer.submit([Forgotten(key())])
    wait_until(writer._waiting.empty, "it is not being written")  # what follows waits and becomes one batch
    good = [ArrivedPart(part(1, part=0, parts=2), BORN), ArrivedPart(part(2), BORN)]
    wrong = ArrivedPart(part(1, part=1, parts=2, layers=LAYERS[:1]), BORN)
    futures = [writer.submit([record]) for record in (good[0], wrong, good[1])]
    disk.free.set()
    first.result(PATIENCE_S)
    futures[0].result(PATIENCE_S)
    futures[2].result(PATIENCE_S)
    with pytest.raises(RefusedError, match=r"^layers\[1\]: no more layer, but earlier parts of trace 1 "):
        futures[1].result(PATIENCE_S)
    assert disk.saved[1] == good


def test_a_frame_waits_for_one_large_part_not_for_all_that_came_before(
    disk: Disk, writer: StoreWriter
) -> None:
    """Twenty long traces of one client kept the frames of all others for 10 s."""
    large = [ArrivedPart(_of_bytes(number, PART_BYTES), BORN) for number in range(20)]
    disk.free.clear()
    futures = [writer.submit([item]) for item in large]
    wait_until(lambda: futures[0].running(), "the first part is not being written")
    frame = writer.submit([posting([1, 1, 1, 1], 5)])
    small = [writer.submit([ArrivedPart(_of_bytes(number, 8), BORN)]) for number in range(20, 24)]
    disk.free.set()
    frame.result(PATIENCE_S)
    for future in (*futures, *small):
        future.result(PATIENCE_S)
    order = [tuple(type(record).__name__ for record in batch) for batch in disk.saved]
    assert order.index(("Posting",)) <= 2, "after the part that was being written, and one more"
    assert order[-1] == ("ArrivedPart",) * 4
    parts = [record for batch in disk.saved for record in batch if isinstance(record, ArrivedPart)]
    assert [item.part.trace for item in parts] == list(range(24))


def test_what_waits_at_the_end_is_written_before_it(disk: Disk, writer: StoreWriter) -> None:
    large = [ArrivedPart(_of_bytes(number, PART_BYTES), BORN) for number in range(4)]
    disk.free.clear()
    futures = [writer.submit([item]) for item in large]
    wait_until(lambda: futures[0].running(), "the first part is not being written")
    futures.append(writer.submit([posting([1, 1, 1, 1], 5)]))
    threading.Timer(0.1, disk.free.set).start()
    writer.close()
    assert all(future.done() for future in futures)
    assert disk.closed


def test_a_server_that_is_away_fails_all_that_wait(disk: Disk, writer: StoreWriter) -> None:
    """Each batch would wait for it as long again: the senders gave up long before."""
    disk.free.clear()
    futures = [writer.submit([posting([2, 0], second)]) for second in range(3)]
    disk.broken = StoreAwayError("silent")
    disk.free.set()
    for future in futures:
        with pytest.raises(StoreAwayError, match="silent"):
            future.result(PATIENCE_S)
    assert writer.trouble() == "silent"


def test_what_failed_is_tried_again_until_it_works(disk: Disk, writer: StoreWriter) -> None:
    disk.broken = StoreError("disk full")
    future = writer.submit([posting([2, 0], 1.0)])
    assert isinstance(future.exception(PATIENCE_S), StoreError)
    assert writer.trouble() == "disk full"
    time.sleep(0.1)
    assert writer.trouble() == "disk full"
    disk.broken = None
    wait_until(lambda: writer.trouble() is None, "it was not tried again", every=0.005)
    [[kept]] = disk.saved
    assert isinstance(kept, Posting)
    assert kept.at == BORN + 1.0


def test_what_can_never_be_kept_says_nothing_of_the_store(disk: Disk, writer: StoreWriter) -> None:
    for error in (UnkeepableError("too large a number"), RuntimeError("bug")):
        disk.broken = error
        assert writer.submit([posting([2, 0], 1.0)]).exception(PATIENCE_S) is not None
        assert writer.trouble() is None


def test_a_write_that_is_not_answered_is_told(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moescope.service.store.failing.SLOW_S", 0.05)
    writer = StoreWriter(disk)  # type: ignore[arg-type]
    disk.free.clear()
    future = writer.submit([posting([2, 0], 1.0)])
    wait_until(lambda: writer.trouble() is not None, "it isn't told", every=0.005)
    assert "has not answered for" in str(writer.trouble())
    disk.free.set()
    future.result(PATIENCE_S)
    assert writer.trouble() is None
    writer.close()


def test_a_round_of_news_that_is_not_answered_is_told(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames waited behind it for the 20 s that a server may be silent, and the service said it was ready."""
    monkeypatch.setattr("moescope.service.store.failing.SLOW_S", 0.05)
    monkeypatch.setattr("moescope.service.store.writer.NEWS_S", 0.01)
    disk.shared, silent, gone = True, threading.Event(), threading.Event()

    def heed(_store: object) -> None:
        silent.set()
        gone.wait(PATIENCE_S)
        if disk.broken is not None:
            raise disk.broken

    writer = StoreWriter(disk)  # type: ignore[arg-type]
    writer.watch(heed)
    assert silent.wait(PATIENCE_S)
    future = writer.submit([posting([2, 0], 1.0)])
    wait_until(lambda: writer.trouble() is not None, "it isn't told", every=0.005)
    disk.broken = StoreAwayError("silent")
    gone.set()
    with pytest.raises(StoreAwayError, match="silent"):
        future.result(PATIENCE_S)
    assert writer.trouble() == "silent"
    disk.broken = None
    wait_until(lambda: writer.trouble() is None, "it was not tried again", every=0.005)
    writer.close()


def test_a_remote_store_is_maintained_beside_its_writes(disk: Disk) -> None:
    """A round of maintenance took a minute, and no frame was kept meanwhile."""
    disk.is_remote = True
    working, done = threading.Event(), threading.Event()

    def maintain(*_: object) -> None:
        working.set()
        done.wait(PATIENCE_S)

    disk.maintain = maintain  # type: ignore[method-assign]
    writer = StoreWriter(disk, lambda: 77.0, maintenance_s=0.01)  # type: ignore[arg-type]
    assert working.wait(PATIENCE_S)
    writer.submit([posting([2, 0], 1.0)]).result(PATIENCE_S)
    assert not disk.aged
    done.set()
    wait_until(lambda: disk.aged, "how far history has aged is not kept", every=0.005)
    writer.close()
    assert disk.closed


def test_a_remote_store_is_written_to_seldom(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each write costs the server as much as many frames: there was one for each frame."""
    monkeypatch.setattr("moescope.service.store.writer.GATHER_S", 0.2)
    disk.is_remote = True
    writer = StoreWriter(disk)  # type: ignore[arg-type]
    began = time.monotonic()
    writer.submit([Forgotten(key(0))]).result(PATIENCE_S)
    assert time.monotonic() - began < 0.15, "what comes alone waits for nothing"
    futures = []
    for _ in range(20):
        futures.append(writer.submit([Forgotten(key(1))]))
        time.sleep(0.005)
    for future in futures:
        future.result(PATIENCE_S)
    assert len(disk.saved) <= 2 + (time.monotonic() - began) / 0.2
    assert sum(map(len, disk.saved)) == 21
    last = writer.submit([Forgotten(key(0))])
    writer.close()
    assert last.done()


def test_a_remote_store_that_is_silent_is_left(disk: Disk, log: pytest.LogCaptureFixture) -> None:
    disk.is_remote = True
    writer = StoreWriter(disk)  # type: ignore[arg-type]
    disk.free.clear()
    writer.submit([posting([2, 0], 1.0)])
    wait_until(writer._waiting.empty, "it is not being written")
    writer.submit([posting([2, 0], 2.0), Document("a", "b", b"")])
    writer.submit([ArrivedPart(part(1), BORN)])
    writer.close()
    assert disk.given_up
    assert not disk.closed, "its thread is still in it"
    assert "2 frames, 1 parts of traces and 1 documents" in log.text
    disk.free.set()


def _of_bytes(number: int, nbytes: int) -> TracePart:
    """A part whose ids have so many bytes; nobody looks at them here."""
    return part(number, layers=LAYERS[:1], experts=[np.zeros(nbytes, np.uint8)], tokens=nbytes // 2)
