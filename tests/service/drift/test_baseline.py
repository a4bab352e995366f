"""Baselines: what is pinned of a window, how it is kept, and what can't be read again."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec
import pytest
from msgspec.structs import replace

from moescope.capture.wire import MoeLayer
from moescope.service.counts.phase_split import Phase
from moescope.service.drift.baseline import (
    KIND,
    MAX_BASELINES,
    Baseline,
    BaselineBook,
    BaselineError,
    baseline_of,
    removal,
)
from moescope.service.live.state import LiveState
from moescope.service.settings import Settings
from moescope.service.windows.phase_window import merge_spans_of_phase
from tests.service.frames import frame

NOW = 1_700_000_100.0
PROD = ("prod", "tiny")


def _pinned(name: str = "chat", phased: bool = True, min_tokens: int = 1) -> Baseline:
    state = LiveState(Settings(), lambda: NOW)
    phases = {"decode": {0: [6, 0], 3: [0, 2, 0]}} if phased else {}
    state.ingest(frame({0: [10, 4], 3: [2, 4, 8]}, **phases))
    spans = state.spans(PROD, None, None)
    whole, decode = (merge_spans_of_phase(spans, phase) for phase in (None, Phase.DECODE))
    return baseline_of(whole, decode, name, note="a note", now=NOW, min_tokens=min_tokens)


def _slots(baseline: Baseline, phase: Phase | None = None) -> dict[int, list[int]] | None:
    found = baseline.slots(phase)
    return None if found is None else {layer: counts.tolist() for layer, counts in found.counts.items()}


def test_a_baseline_has_the_window_s_slots_by_phase() -> None:
    pinned = _pinned()
    assert (pinned.tokens, pinned.start, pinned.end, pinned.pinned_at) == (7, NOW - 1, NOW, NOW)
    assert pinned.layers == (MoeLayer(0, 2, 2), MoeLayer(3, 3, 2))
    assert _slots(pinned) == {0: [10, 4], 3: [2, 4, 8]}
    assert _slots(pinned, Phase.DECODE) == {0: [6, 0], 3: [0, 2, 0]}
    assert _slots(pinned, Phase.PREFILL) == {0: [4, 4], 3: [2, 2, 8]}
    rows = pinned.slots(Phase.DECODE)
    assert rows is not None
    assert rows.rows == {0: 3, 3: 1}


def test_without_phases_there_is_a_baseline_of_both_only() -> None:
    pinned = _pinned(phased=False)
    assert _slots(pinned) == {0: [10, 4], 3: [2, 4, 8]}
    assert [pinned.slots(phase) for phase in Phase] == [None, None]


def test_too_few_tokens_are_no_baseline() -> None:
    with pytest.raises(BaselineError, match="has 7 tokens, a baseline needs 8") as caught:
        _pinned(min_tokens=8)
    assert caught.value.kind == "too-few-tokens"


def test_a_book_comes_back_from_its_documents() -> None:
    pinned = [_pinned("b"), _pinned("a"), replace(_pinned("a"), server="other")]
    documents = [item.document() for item in pinned]
    assert len({item.name for item in documents}) == 3
    assert {item.kind for item in documents} == {KIND}
    book = BaselineBook((item.name, item.content or b"") for item in documents)
    assert [(item.server, item.name) for item in book.all()] == [("other", "a"), ("prod", "a"), ("prod", "b")]
    assert [item.name for item in book.of(PROD)] == ["a", "b"]
    assert book.get(PROD, "a") == pinned[1]
    gone = removal(PROD, "a")
    assert (gone.name, gone.content) == (documents[1].name, None)


def test_what_is_pinned_under_a_name_replaces_what_was() -> None:
    book = BaselineBook()
    for note in ("old", "new"):
        book.pin(replace(_pinned(), note=note))
    [found] = book.all()
    assert (found.note, book.changes) == ("new", 2)
    book.remove(PROD, "chat")
    book.remove(PROD, "chat")
    assert (book.all(), book.get(PROD, "chat"), book.changes) == ([], None, 4)


def _fewer_counts(baseline: Baseline) -> Baseline:
    return replace(baseline, counts=baseline.counts[:-8])


def _fewer_decode_rows(baseline: Baseline) -> Baseline:
    return replace(baseline, decode_rows=b"")


@pytest.mark.parametrize("change", [_fewer_counts, _fewer_decode_rows])
def test_a_baseline_whose_arrays_do_not_fit_is_left_out(
    change: Callable[[Baseline], Baseline], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("moescope"), "propagate", True)
    whole = _pinned()
    kept = [
        ("broken", msgspec.msgpack.encode(change(whole))),
        ("no message", b"\xc1"),
        ("whole", whole.document().content or b""),
    ]
    assert BaselineBook(kept).all() == [whole]
    for name in ("broken", "no message"):
        assert f"the baseline {name} in the store can't be read and is left out" in caplog.text


def test_there_is_room_for_so_many_and_for_a_known_name() -> None:
    book = BaselineBook()
    for number in range(MAX_BASELINES):
        book.check_room(PROD, f"n{number}")
        book.pin(replace(_pinned(), name=f"n{number}"))
    book.check_room(PROD, "n0")
    with pytest.raises(BaselineError, match=f"There are {MAX_BASELINES} baselines"):
        book.check_room(PROD, "another")
