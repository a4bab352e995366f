"""Drift for scrapes: at once the first time, then no scrape waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest

from moescope.service.counts.phase_split import Phase
from moescope.service.drift.baseline import PREVIOUS_HOUR, BaselineBook, baseline_of
from moescope.service.drift.watch import Drifted, DriftWatch, previous_hour
from moescope.service.live.state import LiveState
from moescope.service.settings import Settings
from moescope.service.store.records import Key, StoredTotals, StoreError
from moescope.service.windows.phase_window import merge_spans_of_phase
from tests.service.conftest import Clock
from tests.service.frames import EPOCH, frame

PROD = ("prod", "tiny")
BEGUN = EPOCH - 7200 * 10**9


class Archive:
    """A store without totals, whose reads can be held up, or fail."""

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.fails = False
        self.reads = 0

    def totals_of(self, keys: Sequence[Key], instants: Sequence[float]) -> list[list[StoredTotals | None]]:
        return [self.totals_at(key, instants) for key in keys]

    def oldest_of(self, keys: Sequence[Key]) -> list[StoredTotals | None]:
        return [self.oldest(key) for key in keys]

    def totals_at(self, key: Key, instants: Sequence[float]) -> list[StoredTotals | None]:
        self.reads += 1
        assert self.may_answer.wait(60)
        if self.fails:
            raise StoreError("no disk")
        return [None] * len(instants)

    def oldest(self, key: Key) -> StoredTotals | None:
        return None

    @contextmanager
    def held_up(self) -> Iterator[None]:
        self.may_answer.clear()
        try:
            yield
        finally:
            self.may_answer.set()


class Traffic:
    """A deployment of one rank that had counted for two hours before the service started.

    So what was an hour ago is not in memory, and the archive is asked for it.
    """

    def __init__(self, clock: Clock, archive: Archive) -> None:
        self.state = LiveState(Settings(), clock, archive)
        self._clock = clock
        self._total = np.zeros(4, dtype=np.int64)
        self._seq = 0

    def run(self, slots: list[int], minutes: int) -> None:
        """In each minute its layer gets these slots."""
        for _ in range(minutes):
            self._clock.now += 60
            self._seq += 1
            self._total += slots
            after = self._clock.now - BEGUN / 1e9
            self.state.ingest(frame({3: self._total.tolist()}, epoch=BEGUN, seq=self._seq, after_s=after))


@pytest.fixture
def archive() -> Archive:
    return Archive()


@pytest.fixture
def traffic(clock: Clock, archive: Archive) -> Traffic:
    made = Traffic(clock, archive)
    made.run([40, 40, 40, 40], minutes=20)
    return made


def _bits(found: Sequence[Drifted], base: str = PREVIOUS_HOUR) -> float:
    [drifted] = [item for item in found if (item.base, item.phase) == (base, None)]
    [layer] = drifted.layers
    assert layer.divergence is not None
    return layer.divergence


def _until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_first_scrape_has_it_and_the_next_have_the_same_for_a_minute(
    traffic: Traffic, clock: Clock
) -> None:
    watch = DriftWatch(traffic.state, BaselineBook(), 1)
    first = watch.latest(PROD)
    assert _bits(first) == 0
    assert {item.phase for item in first} == {None, *Phase}
    traffic.run([160, 0, 0, 0], minutes=1)
    clock.now -= 1  # less than a minute since
    assert watch.latest(PROD) is first


def test_later_figures_come_from_a_thread_and_no_scrape_waits(
    traffic: Traffic, clock: Clock, archive: Archive
) -> None:
    watch = DriftWatch(traffic.state, BaselineBook(), 1)
    first = watch.latest(PROD)
    traffic.run([160, 0, 0, 0], minutes=5)
    reads = archive.reads
    with archive.held_up():
        for _ in range(3):
            assert watch.latest(PROD) is first
        _until(lambda: archive.reads > reads)
        assert archive.reads == reads + 1, "one thread makes them"
    _until(lambda: watch.latest(PROD) is not first)
    assert _bits(watch.latest(PROD)) > 0.2


def test_one_thread_makes_those_of_many_deployments_one_after_the_other(
    traffic: Traffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = [(f"fleet-{number}", "tiny") for number in range(20)]
    release, made, beside = threading.Event(), list[tuple[str, str]](), list[int]()

    def making(_: DriftWatch, deployment: tuple[str, str]) -> tuple[Drifted, ...]:
        assert release.wait(60)
        beside.append(sum(thread.name == "moescope-drift" for thread in threading.enumerate()))
        made.append(deployment)
        return ()

    monkeypatch.setattr(DriftWatch, "_measure", making)
    watch = DriftWatch(traffic.state, BaselineBook(), 1)
    for deployment in fleet:
        assert watch.newest(deployment, lambda: False) is None
    release.set()
    _until(lambda: len(made) == len(fleet))
    assert made == fleet
    assert max(beside) == 1


def test_a_failure_leaves_the_old_figures_and_the_next_scrape_tries_again(
    traffic: Traffic, clock: Clock, archive: Archive
) -> None:
    watch = DriftWatch(traffic.state, BaselineBook(), 1)
    first = watch.latest(PROD)
    traffic.run([160, 0, 0, 0], minutes=5)
    archive.fails = True
    for attempt in range(2):
        reads = archive.reads
        _until(lambda reads=reads: watch.latest(PROD) is first and archive.reads > reads)  # type: ignore[misc]
        assert watch.latest(PROD) is first, attempt
    archive.fails = False
    _until(lambda: watch.latest(PROD) is not first)


def test_a_change_of_baselines_is_due_at_once(traffic: Traffic, clock: Clock) -> None:
    book = BaselineBook()
    watch = DriftWatch(traffic.state, book, 1)
    first = watch.latest(PROD)
    spans = traffic.state.spans(PROD, None, None)
    whole, decode = (merge_spans_of_phase(spans, phase) for phase in (None, Phase.DECODE))
    pinned = baseline_of(whole, decode, "chat", note="", now=clock.now, min_tokens=1)
    book.pin(pinned)
    _until(lambda: watch.latest(PROD) is not first)
    assert _bits(watch.latest(PROD), "chat") == 0
    assert {item.phase for item in watch.latest(PROD) if item.base == "chat"} == {None}, "it knows no phases"


def test_a_clock_that_is_set_back_is_no_reason_to_wait(traffic: Traffic, clock: Clock) -> None:
    watch = DriftWatch(traffic.state, BaselineBook(), 1)
    first = watch.latest(PROD)
    clock.now -= 3600
    _until(lambda: watch.latest(PROD) is not first)


def test_the_hour_before_a_window(traffic: Traffic, clock: Clock) -> None:
    start = clock.now - 300
    hour, window = previous_hour(traffic.state, PROD, start, None, None)
    assert (hour.tokens, window.tokens) == (14 * 80, 5 * 80)
    assert hour.used.end_latest == window.used.start_earliest == start
    assert (hour.used.truncated, window.used.truncated) == (True, False)
