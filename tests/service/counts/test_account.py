"""Exact accounting, whatever happens to frames on their way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moescope.capture import wire
from moescope.service.counts.account import Account, Verdict
from moescope.service.counts.phase_split import Phase, of_phase
from moescope.service.counts.refusals import RefusedError
from moescope.service.counts.totals import no_decode
from tests.service.frames import EPOCH, frame, halves, pack, placement, producer

TWO = producer(dp_size=2, ep_size=2)


def test_a_frame_is_counted_once() -> None:
    account = Account(max_epochs=4)
    assert account.post(frame({0: [2, 2]}, seq=2)) is Verdict.ACCEPTED
    assert account.post(frame({0: [2, 2]}, seq=2)) is Verdict.DUPLICATE
    assert account.post(frame({0: [1, 1]}, seq=1)) is Verdict.STALE
    assert account.totals.counts.tolist() == [2, 2]
    assert (account.totals.tokens, account.restarts) == (2, 0)


def test_counts_of_one_epoch_are_in_memory_once() -> None:
    account = Account(max_epochs=4)
    for seq in (1, 2):
        account.post(frame({0: [2 * seq, 2]}, seq=seq, decode={0: [seq, 1]}))
    counted = account.state().epochs[0].counted
    assert account.totals.counts is counted.counts
    assert account.totals.decode is not None
    assert counted.decode is not None
    assert account.totals.decode.counts is counted.decode.counts
    account.post(frame({0: [2, 2]}, epoch=EPOCH + 1))
    assert account.totals.counts.tolist() == [6, 4]


def test_a_restart_adds_and_late_frames_of_the_old_epoch_still_count() -> None:
    account = Account(max_epochs=4)
    account.post(frame({0: [2, 2]}, seq=1))
    account.post(frame({0: [10, 0]}, epoch=EPOCH + 1, seq=1))
    assert account.post(frame({0: [4, 4]}, seq=3)) is Verdict.ACCEPTED
    assert account.post(frame({0: [3, 3]}, seq=2)) is Verdict.STALE
    assert account.totals.counts.tolist() == [14, 4]
    assert account.restarts == 1
    assert account.latest is not None
    assert account.latest.epoch == EPOCH + 1


def test_memory_of_epochs_is_bounded_and_their_totals_stay() -> None:
    account = Account(max_epochs=2)
    for restart in range(5):
        account.post(frame({0: [1, 1]}, epoch=EPOCH + restart), at=60 * restart)
    with pytest.raises(RefusedError, match=r"^epoch: .* none of the 2 epochs") as refused:
        account.post(frame({0: [9, 9]}, epoch=EPOCH + 1, seq=9), at=300)
    assert refused.value.reason == "epoch_forgotten"
    assert account.totals.counts.tolist() == [5, 5]
    account.post(frame({0: [3, 3]}, epoch=EPOCH + 3, seq=2))
    assert account.totals.counts.tolist() == [7, 7]


@dataclass(frozen=True)
class History:
    """All frames that a producer made over several starts, and which of them arrive, in which order."""

    epochs: list[list[wire.Frame]]
    arrivals: list[wire.Frame]


@st.composite
def histories(draw: st.DrawFn) -> History:
    layers = draw(st.integers(1, 3))
    experts = draw(st.integers(1, 5))
    epochs = []
    for start in range(draw(st.integers(1, 4))):
        counts = np.zeros((layers, experts), dtype=np.int64)
        decode, phased = counts, draw(st.booleans())
        tokens, frames = 0, []
        for seq in range(1, draw(st.integers(1, 5)) + 1):
            step = draw(st.lists(st.integers(0, 50), min_size=layers * experts, max_size=layers * experts))
            counts = counts + np.array(step).reshape(layers, experts)
            if draw(st.booleans()):
                decode = decode + np.array(step).reshape(layers, experts)
            tokens += draw(st.integers(0, 9))
            frames.append(
                frame(
                    {2 * i: row.tolist() for i, row in enumerate(counts)},
                    top_k=1,
                    epoch=EPOCH + start,
                    seq=seq,
                    tokens=tokens,
                    decode={2 * i: row.tolist() for i, row in enumerate(decode)} if phased else None,
                    decode_tokens=tokens if phased else 0,
                    who=producer(ep_size=3, dp_size=3),
                    placement=placement(
                        range(experts),
                        draw(st.lists(st.integers(0, 2), min_size=experts, max_size=experts)),
                        layers,
                    ),
                )
            )
        epochs.append(frames)
    sent = [made for frames in epochs for made in frames]
    arrivals = draw(st.lists(st.sampled_from(sent), max_size=30))
    last = [frames[-1] for frames in epochs]
    return History(epochs, draw(st.permutations([*arrivals, *last])))


@given(histories())
def test_any_order_doubling_loss_and_restart_leaves_the_truth(history: History) -> None:
    account = Account(max_epochs=4)
    for made in history.arrivals:
        account.post(made)
    last = [frames[-1] for frames in history.epochs]
    truth = np.sum([wire.unpack_counts(made.counts) for made in last], axis=0)
    assert account.totals.counts.tolist() == truth.tolist()
    assert (
        account.totals.rows.tolist()
        == np.sum([wire.unpack_counts(made.rows) for made in last], axis=0).tolist()
    )
    assert account.totals.tokens == sum(made.tokens for made in last)
    assert account.restarts == len(history.epochs) - 1
    told = [made for made in last if made.decode_counts]
    part = account.totals.decode or no_decode(account.totals)
    nothing = np.zeros(len(truth), dtype=np.int64)
    truth = sum((wire.unpack_counts(made.decode_counts) for made in told), nothing)
    assert part.counts.tolist() == truth.tolist()
    assert part.tokens == sum(made.decode_tokens for made in told)
    untold = [made for made in last if not made.decode_counts]
    unphased = sum((wire.unpack_counts(made.rows) for made in untold), nothing[: len(last[0].layers)])
    assert account.totals.unphased_rows.tolist() == unphased.tolist()
    assert account.totals.unphased_tokens == sum(made.tokens for made in untold)
    assert part.ep_slots.floats().sum(axis=1).tolist() == account.totals.layout.sums(part.counts).tolist()
    slots = account.totals.layout.sums(account.totals.counts)
    assert account.totals.ep_slots.floats().sum(axis=1).tolist() == slots.tolist()


@pytest.mark.parametrize(
    ("second", "field"),
    [
        (
            frame({0: [9, 1]}, seq=2, rows=[5], tokens=9, steps=9, idle_steps=9, drops={"steps_lost": 9}),
            r"counts\[1\]",
        ),
        (
            frame({0: [9, 9]}, seq=2, rows=[1], tokens=9, steps=9, idle_steps=9, drops={"steps_lost": 9}),
            r"rows\[0\]",
        ),
        (frame({0: [9, 9]}, seq=2, tokens=1, steps=9, idle_steps=9, drops={"steps_lost": 9}), "tokens"),
        (frame({0: [9, 9]}, seq=2, tokens=9, steps=1, idle_steps=9, drops={"steps_lost": 9}), "steps"),
        (frame({0: [9, 9]}, seq=2, tokens=9, steps=9, idle_steps=1, drops={"steps_lost": 9}), "idle_steps"),
        (frame({0: [9, 9]}, seq=2, tokens=9, steps=9, idle_steps=9), r"drops\.steps_lost"),
        (frame({1: [9, 9]}, seq=2), "layers"),
        (frame({0: [9, 9, 9]}, seq=2), "layers"),
        (frame({0: [9, 9]}, seq=2, top_k=1), "layers"),
    ],
)
def test_a_lying_producer_is_refused_by_field_and_leaves_no_trace(second: wire.Frame, field: str) -> None:
    account = Account(max_epochs=4)
    account.post(frame({0: [4, 4]}, tokens=4, steps=4, idle_steps=4, drops={"steps_lost": 4}))
    before = account.totals
    with pytest.raises(RefusedError, match=f"^{field}: "):
        account.post(second)
    assert account.totals is before
    assert account.post(frame({0: [4, 4]}, seq=1)) is Verdict.DUPLICATE


PHASED = {"steps": 9, "decode_steps": 4, "mixed_steps": 2}


@pytest.mark.parametrize(
    ("second", "field"),
    [
        (frame({0: [9, 9]}, seq=2, decode={0: [1, 2]}, **PHASED), r"decode_counts\[0\]"),
        (frame({0: [4, 8]}, seq=2, decode={0: [3, 2]}, **PHASED), r"counts less decode_counts\[0\]"),
        (
            frame({0: [9, 9]}, seq=2, decode={0: [2, 2]}, decode_rows=pack([[1]]), **PHASED),
            r"decode_rows\[0\]",
        ),
        (frame({0: [9, 9]}, seq=2, decode={0: [2, 2]}, decode_tokens=1, **PHASED), "decode_tokens"),
        (
            frame({0: [9, 9]}, seq=2, tokens=4, decode={0: [2, 2]}, decode_tokens=3, **PHASED),
            "tokens less decode_tokens",
        ),
        (frame({0: [9, 9]}, seq=2, decode={0: [2, 2]}, **{**PHASED, "decode_steps": 3}), "decode_steps"),
        (frame({0: [9, 9]}, seq=2, decode={0: [2, 2]}, **{**PHASED, "mixed_steps": 1}), "mixed_steps"),
        (
            frame({0: [9, 9]}, seq=2, decode={0: [2, 2]}, **{**PHASED, "decode_steps": 5}),
            "steps less .*",
        ),
    ],
)
def test_a_phase_that_shrinks_is_refused_and_leaves_no_trace(second: wire.Frame, field: str) -> None:
    account = Account(max_epochs=4)
    account.post(frame({0: [4, 4]}, decode={0: [2, 2]}, **PHASED))
    before = account.totals
    with pytest.raises(RefusedError, match=f"^{field}: ") as refused:
        account.post(second)
    assert refused.value.reason == "shrunk"
    assert account.totals is before


def test_what_no_frame_told_the_phase_of_is_unphased_not_prefill() -> None:
    account = Account(max_epochs=4)
    account.post(frame({0: [2, 2]}, seq=1))
    account.post(frame({0: [4, 4]}, seq=2, decode={0: [3, 3]}))  # of which some came with the frame before
    account.post(frame({0: [6, 8]}, seq=3, decode={0: [5, 5]}, steps=3, decode_steps=2))
    totals = account.totals
    assert totals.decode is not None
    assert totals.unphased_rows.tolist() == [4]
    assert (totals.unphased_tokens, totals.unphased_steps) == (4, 1)
    assert totals.decode.counts.tolist() == [2, 2]
    assert (totals.decode.tokens, totals.decode.steps) == (2, 2)
    assert of_phase(totals, Phase.PREFILL).rows.tolist() == [1]
    account.post(frame({0: [8, 8]}, seq=4, steps=3))
    account.post(frame({0: [8, 10]}, seq=5, decode={0: [6, 6]}, steps=3))
    assert account.totals.unphased_rows.tolist() == [6]


def test_phases_are_apart_by_ep_rank_too() -> None:
    account = Account(max_epochs=4)
    account.post(frame({0: [6, 4]}, who=TWO, decode={0: [4, 0]}, placement=halves(2, 1)))
    account.post(frame({0: [6, 8]}, who=TWO, decode={0: [4, 2]}, seq=2))
    decode, prefill = (of_phase(account.totals, phase) for phase in (Phase.DECODE, Phase.PREFILL))
    assert decode.ep_slots.floats().tolist() == [[4, 0]]
    assert prefill.ep_slots.floats().tolist() == [[2, 4]]
    assert (decode.unplaced.tolist(), prefill.unplaced.tolist()) == ([2], [2])
    assert (decode.tokens, prefill.tokens) == (3, 4)


def test_more_than_a_double_can_hold_is_refused() -> None:
    account = Account(max_epochs=4)
    account.post(frame({0: [2**52, 2**52]}))
    with pytest.raises(RefusedError, match=r"^counts: layer 0"):
        account.post(frame({0: [1, 1]}, epoch=EPOCH + 1))
    with pytest.raises(RefusedError, match=r"^counts: layer 0"):
        account.post(frame({0: [2**63 - 1, 2**63 - 1]}, epoch=EPOCH + 2, rows=[1]))
    assert account.totals.counts.tolist() == [2**52, 2**52]


def test_losses_that_can_not_be_true_are_refused() -> None:
    """Sums of them over epochs would be more than any store holds, and fail all that is written with them."""
    account = Account(max_epochs=4)
    account.post(frame({0: [1, 1]}, drops={"steps_lost": 2**53}))
    for epoch, drops in ((EPOCH, 2**63 - 1), (EPOCH + 1, 1)):
        with pytest.raises(RefusedError, match=r"^drops\.steps_lost: \d+ is more than 2\*\*53"):
            account.post(frame({0: [1, 1]}, epoch=epoch, seq=2, drops={"steps_lost": drops}))


def test_a_rearrangement_never_rewrites_the_past() -> None:
    account = Account(max_epochs=4)
    swapped = placement([0, 1], [1, 0], layers=1, version=2)
    account.post(frame({0: [10, 4]}, who=TWO, seq=1, placement=halves(2, 1)))
    account.post(frame({0: [16, 4]}, who=TWO, seq=2, placement=swapped))
    assert account.totals.ep_slots.floats().tolist() == [[10, 10]]
    assert account.latest is not None
    assert account.latest.placement_version == 2


def test_slots_without_a_placement_are_unplaced_not_zero_load() -> None:
    account = Account(max_epochs=4)
    account.post(frame({0: [3, 1]}, who=TWO, seq=1))
    account.post(frame({0: [5, 1]}, who=TWO, seq=2, placement=halves(2, 1)))
    assert account.totals.unplaced.tolist() == [4]
    assert account.totals.ep_slots.floats().tolist() == [[2, 0]]


def test_another_model_under_the_same_name_begins_again() -> None:
    account = Account(max_epochs=4)
    account.post(frame({0: [2, 2]}))
    account.post(frame({0: [1, 1, 2]}, epoch=EPOCH + 5))
    assert account.totals.counts.tolist() == [1, 1, 2]
    assert account.generation == 1
    with pytest.raises(RefusedError, match=r"^layers: .*pid 7 on host a\b.*MOESCOPE_SERVER") as refused:
        account.post(frame({0: [4, 4]}, seq=2, who=producer(host="a", pid=7)))
    assert refused.value.reason == "shape"


def test_totals_of_one_start_share_their_arrays_with_what_its_newest_frame_told() -> None:
    account = Account(max_epochs=2)
    who = producer(ep_size=2)
    counts, decode = {1: [2, 2, 1, 1], 3: [0, 0, 0, 2]}, {1: [1, 0, 1, 0], 3: [0, 0, 0, 2]}
    slots = {
        "ep_slots": wire.pack_counts(np.array([4, 2, 0, 2])),
        "decode_ep_slots": wire.pack_counts(np.array([1, 1, 0, 2])),
    }
    for seq in (1, 2):
        account.post(frame(counts, seq=seq, who=who, decode=decode, placement=halves(4, 2), **slots))
    totals, counted = account.totals, account.life.counted
    assert totals.counts is counted.counts
    assert totals.ep_slots is counted.ep_slots
    assert totals.decode is not None
    assert counted.decode is not None
    assert totals.decode.ep_slots is counted.decode.ep_slots
