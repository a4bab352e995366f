"""What questions hold of the store stays within what they said before, however many ask at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import pytest

from moescope.service.counts.narrow import narrowed
from moescope.service.counts.totals import Totals
from moescope.service.live import large, past, walk
from moescope.service.live.large import NoRoomError
from moescope.service.live.state import LiveState
from moescope.service.settings import Settings
from moescope.service.store.open import open_writer
from tests.service.conftest import Clock
from tests.service.frames import EPOCH, frame, producer

RANKS, SECONDS, EXPERTS = 8, 12, 64
BORN = EPOCH / 1e9
WHICH = ("prod", "tiny")
INSTANTS = [BORN + second for second in range(2, SECONDS)]

Question = Callable[[LiveState], object]


def walked(state: LiveState) -> None:
    for spans in state.walk(WHICH, INSTANTS):
        assert sum(int(item.span.delta.counts.sum()) for item in spans) == RANKS * EXPERTS * 1000


def in_parts(state: LiveState) -> None:
    whole, parts = state.whole_and_parts(WHICH, INSTANTS)
    total = sum(int(item.span.delta.counts.sum()) for item in whole)
    assert total == sum(int(item.span.delta.counts.sum()) for spans in parts for item in spans)


def one_by_one(state: LiveState) -> None:
    ends, boundaries = state.one_by_one(WHICH, INSTANTS)
    assert sum(len(memory.found) for _, memory in boundaries()) == len(ends) * len(INSTANTS)


QUESTIONS: dict[str, Question] = {
    "spans": lambda state: state.spans(WHICH, INSTANTS[0], INSTANTS[-1]),
    "walk": walked,
    "parts": in_parts,
    "one by one": one_by_one,
}


class Held:
    """The totals of the store that are held, and what questions said that they will hold."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._held: WeakSet[Totals] = WeakSet()
        self._lock = threading.Lock()
        self.most = self.claimed = 0
        monkeypatch.setattr(past, "narrowed", self._narrowed)
        monkeypatch.setattr(walk, "claim", self._claim)

    def _narrowed(self, totals: Totals) -> Totals:
        narrow = narrowed(totals)
        with self._lock:
            self._held.add(narrow)
            self.most = max(self.most, sum(item.nbytes for item in self._held))
        return narrow

    def _claim(self, nbytes: int) -> None:
        self.claimed = max(self.claimed, nbytes)
        large.claim(nbytes)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveState]:
    """A state that was started anew: all but the newest totals are in the store only."""
    monkeypatch.setattr(large, "LITTLE_BYTES", 0)
    monkeypatch.setattr(walk, "HELD_BYTES", 1)
    clock = Clock(BORN + 1)
    settings = Settings(store=tmp_path, port=0, max_question_mib=16)
    with open_writer(settings, clock) as writer:
        assert writer is not None
        before = LiveState(settings, clock, writer.store)
        for second in range(1, SECONDS + 1):
            clock.now = BORN + second
            for rank in range(RANKS):
                who = producer(dp_rank=rank, dp_size=RANKS)
                counts = {0: [1000 * second] * EXPERTS}
                before.ingest(frame(counts, seq=second, who=who, after_s=second, decode=counts))
            writer.submit(before.take_records()).result(30)
        later = LiveState(settings, clock, writer.store)
        later.restore(list(writer.store.accounts()))
        yield later


@pytest.mark.parametrize("kind", QUESTIONS)
def test_eight_at_once_hold_what_one_of_them_said(
    state: LiveState, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    held = Held(monkeypatch)
    together = threading.Barrier(8)

    def ask() -> None:
        together.wait(60)
        with state.large.question():
            kept = QUESTIONS[kind](state)
            threading.Event().wait(0.02)  # as long as an answer takes to be made
            del kept

    with ThreadPoolExecutor(8) as threads:
        for job in [threads.submit(ask) for _ in range(8)]:
            job.result(60)
    narrow = 512 + 2 * 2 * EXPERTS  # bytes of one producer's totals at least: counts, and those of decode
    assert 2 * RANKS * narrow <= held.most <= held.claimed


def test_more_than_is_allowed_is_refused_before_it_is_read(
    state: LiveState, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    monkeypatch.setattr(state.large, "_most", 4096)
    for question in QUESTIONS.values():
        with state.large.question(), pytest.raises(NoRoomError, match="max_question_mib"):
            question(state)
    assert held.most == 0


def test_what_memory_has_is_not_counted(state: LiveState, monkeypatch: pytest.MonkeyPatch) -> None:
    held: Any = Held(monkeypatch)
    monkeypatch.setattr(state.large, "_most", 0)
    with state.large.question():
        spans = state.spans(WHICH, None, None)
    assert sum(int(item.span.delta.counts.sum()) for item in spans) == RANKS * SECONDS * EXPERTS * 1000
    assert all(item.span.last.counts.dtype == np.int64 for item in spans)
    assert held.most == held.claimed == 0
