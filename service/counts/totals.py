"""Totals of one producer, as immutable values that add up and subtract.

A :class:`Layout` says which layers the arrays hold and where; :class:`Totals` holds the arrays. Nothing
here mutates an array that it has handed out, so readers need no lock, and totals share those that are equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np

from moescope.capture.wire import Frame, Int64Array, unpack_counts
from moescope.service.counts.ep_slots import EpSlots, no_ep_slots
from moescope.service.counts.layers import Layout
from moescope.service.counts.reasons import known_drops
from moescope.service.counts.step_costs import Stragglers, no_stragglers
from moescope.service.counts.weights import WeightsTold


@dataclass(frozen=True, eq=False, slots=True)
class Decode:
    """The decode part of totals; its arrays are laid out as theirs.

    ``steps`` are those with decode tokens only, ``mixed_steps`` those with tokens of both phases.
    """

    counts: Int64Array
    rows: Int64Array
    ep_slots: EpSlots
    unplaced: Int64Array
    estimated: Int64Array
    tokens: int = 0
    steps: int = 0
    mixed_steps: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes that the arrays take."""
        arrays = (self.counts, self.rows, self.ep_slots, self.unplaced, self.estimated)
        return sum(array.nbytes for array in arrays)


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Totals:
    """Cumulative totals, or the difference of two.

    Attributes:
        layout: what the arrays hold.
        counts: slots per (layer, logical expert), int64 [sum of experts].
        rows: tokens counted in each layer, int64 [L].
        ep_slots: slots that went to each EP rank, [L, R]; R is 0 until it was known where slots go. In the
            totals of one frame they are what the frame tells; R is 0 where it tells none.
        unplaced: slots of which it isn't known where they went, int64 [L].
        estimated: of the slots in ``ep_slots``, how many were split evenly over copies of their expert on
            several EP ranks, because the worker doesn't count which copy they went to, int64 [L].
        tokens: tokens computed by the DP rank.
        steps, idle_steps: its steps with tokens, and its dummy steps.
        drops: what the producer lost or put off, by reason.
        decode: the part of these totals that is of decode tokens; None: no phase was ever told.
        unphased_rows: tokens among ``rows`` whose phase is not known, int64 [L]. What is neither of these nor
            of ``decode`` is of prefill.
        unphased_tokens, unphased_steps: those of ``tokens`` and ``steps`` whose phase is not known.
        stragglers: what the joined steps of a pipeline stage cost; only the stage's first worker has it.
        dp_size, ep_size: DP and EP ranks of the deployment when these totals were true, or at the later end
            of a difference; 0: not known.
        accepted_drafts, rejected_drafts: draft tokens of speculative decoding among ``tokens``: those
            that are in answers, and those computed in vain.
        former_tokens: of ``tokens``, how many were counted before the present sizes; 0: these never changed.
            Also at the later end of a difference.
        weights: which weights the producer has. Also at the later end of a difference.
        switches: how often capture has been disabled, or has begun again after that: odd while it is
            disabled. Also at the later end of a difference.
    """

    layout: Layout
    counts: Int64Array
    rows: Int64Array
    ep_slots: EpSlots
    unplaced: Int64Array
    unphased_rows: Int64Array
    estimated: Int64Array
    tokens: int = 0
    steps: int = 0
    idle_steps: int = 0
    drops: Mapping[str, int] = field(default_factory=dict)
    decode: Decode | None = None
    unphased_tokens: int = 0
    unphased_steps: int = 0
    stragglers: Stragglers | None = None
    dp_size: int = 0
    ep_size: int = 0
    switches: int = 0
    former_tokens: int = 0
    accepted_drafts: int = 0
    rejected_drafts: int = 0
    weights: WeightsTold = field(default_factory=WeightsTold)

    @property
    def nbytes(self) -> int:
        """Bytes that the arrays take, with a little for the object itself."""
        arrays = (self.counts, self.rows, self.ep_slots, self.unplaced, self.unphased_rows, self.estimated)
        parts = (part.nbytes for part in (self.decode, self.stragglers) if part is not None)
        return 512 + sum(array.nbytes for array in arrays) + sum(parts)

    def counts_of(self, index: int) -> Int64Array:
        """Slots per logical expert of the layer at ``index`` of the layout, int64 [num_experts]."""
        start, end = self.layout.offsets[index : index + 2]
        return self.counts[start:end]

    def plus(self, other: Totals) -> Totals:
        """Sum of both, over the union of their layers; sizes and switches are this one's."""
        return _combine(self, other, 1)

    def minus(self, earlier: Totals) -> Totals:
        """What came since ``earlier``; no check of signs."""
        return _combine(self, earlier, -1)

    def with_stragglers(self, layout: Layout, more: Stragglers) -> Totals:
        """These totals with more joined steps, in arrays of ``layout``; all its layers must be here."""
        wide = more.widened(layout, self.layout)
        return replace(self, stragglers=wide if self.stragglers is None else self.stragglers.plus(wide))

    def sharing(self, other: Totals) -> Totals:
        """These totals, with what of ``other``'s is equal in its place: memory has it once."""
        if self.layout != other.layout or not np.array_equal(self.counts, other.counts):
            return self
        mine, its = self.decode, other.decode
        if mine is not None and its is not None and np.array_equal(mine.counts, its.counts):
            mine = replace(mine, counts=its.counts, ep_slots=_shared(mine.ep_slots, its.ep_slots))
        shared = _shared(self.ep_slots, other.ep_slots)
        return replace(self, counts=other.counts, ep_slots=shared, decode=mine)


def _shared(mine: EpSlots, its: EpSlots) -> EpSlots:
    """The second if it is equal to the first and has no parts, as what a worker counted has none."""
    equal = mine.parts is None and its.parts is None and np.array_equal(mine.whole, its.whole)
    return its if equal else mine


def no_totals(layout: Layout) -> Totals:
    """Nothing counted yet."""
    size = len(layout.layers)
    none = np.zeros(size, dtype=np.int64)
    return Totals(
        layout=layout,
        counts=np.zeros(int(layout.offsets[-1]), dtype=np.int64),
        rows=none,
        ep_slots=no_ep_slots(size),
        unplaced=none,
        unphased_rows=none,
        estimated=none,
    )


def nothing_of(totals: Totals) -> Totals:
    """What came since the same totals: zeros, in arrays that all of one shape share."""
    zeros = _zeros(totals.layout, totals.ep_slots.ranks, totals.decode is not None)
    return replace(
        zeros,
        drops=dict.fromkeys(totals.drops, 0),
        stragglers=totals.stragglers and totals.stragglers.plus(totals.stragglers, -1),
        dp_size=totals.dp_size,
        ep_size=totals.ep_size,
        switches=totals.switches,
        former_tokens=totals.former_tokens,
        weights=totals.weights,
    )


@lru_cache(maxsize=16)
def _zeros(layout: Layout, ranks: int, phases: bool) -> Totals:
    nothing = replace(no_totals(layout), ep_slots=no_ep_slots(len(layout.layers), ranks))
    return replace(nothing, decode=no_decode(nothing)) if phases else nothing


def no_decode(totals: Totals) -> Decode:
    """No decode token yet, in arrays of the same shapes."""
    none = np.zeros_like(totals.rows)
    nowhere = no_ep_slots(len(none), totals.ep_slots.ranks)
    return Decode(np.zeros_like(totals.counts), none, nowhere, unplaced=none, estimated=none)


def totals_of(frame: Frame, layout: Layout) -> Totals:
    """The totals that a checked frame tells; by EP ranks only if it counts the slots of each.

    Where the frame tells no phases ``decode`` is None, and nothing is marked as unphased: whoever takes the
    difference of two frames marks it.

    Args:
        frame: the frame.
        layout: the layout of ``frame.layers``.
    """
    counts, rows, nothing = unpack_counts(frame.counts), unpack_counts(frame.rows), no_totals(layout)
    return replace(
        nothing,
        counts=counts,
        rows=rows,
        tokens=frame.tokens,
        steps=frame.steps,
        idle_steps=frame.idle_steps,
        drops=known_drops(frame.drops),
        ep_slots=_ep_slots_of(frame.ep_slots, frame),
        decode=_decode_of(frame, nothing),
        accepted_drafts=frame.accepted_drafts,
        rejected_drafts=frame.rejected_drafts,
    )


def _ep_slots_of(told: bytes, frame: Frame) -> EpSlots:
    """Slots by EP rank as a frame tells them, [L, R]; R is 0 where it tells none."""
    if not told:
        return no_ep_slots(len(frame.layers))
    return EpSlots(unpack_counts(told).reshape(len(frame.layers), frame.producer.ep_size))


def _decode_of(frame: Frame, nothing: Totals) -> Decode | None:
    if not frame.decode_counts and (frame.layers or frame.wire < (1, 3)):
        return None
    return Decode(
        counts=unpack_counts(frame.decode_counts),
        rows=unpack_counts(frame.decode_rows),
        ep_slots=_ep_slots_of(frame.decode_ep_slots, frame),
        unplaced=nothing.unplaced,
        estimated=nothing.estimated,
        tokens=frame.decode_tokens,
        steps=frame.decode_steps,
        mixed_steps=frame.mixed_steps,
    )


def _combine(a: Totals, b: Totals, sign: int) -> Totals:
    layout = a.layout.union(b.layout)
    ranks = max(a.ep_slots.ranks, b.ep_slots.ranks)
    a, b = _widen(a, layout, ranks), _widen(b, layout, ranks)
    return Totals(
        layout=layout,
        counts=_sum(a.counts, b.counts, sign),
        rows=_sum(a.rows, b.rows, sign),
        ep_slots=a.ep_slots.plus(b.ep_slots, sign),
        unplaced=_sum(a.unplaced, b.unplaced, sign),
        unphased_rows=_sum(a.unphased_rows, b.unphased_rows, sign),
        estimated=_sum(a.estimated, b.estimated, sign),
        tokens=a.tokens + sign * b.tokens,
        steps=a.steps + sign * b.steps,
        idle_steps=a.idle_steps + sign * b.idle_steps,
        drops={key: a.drops.get(key, 0) + sign * b.drops.get(key, 0) for key in {**a.drops, **b.drops}},
        decode=_combine_decode(a, b, sign),
        unphased_tokens=a.unphased_tokens + sign * b.unphased_tokens,
        unphased_steps=a.unphased_steps + sign * b.unphased_steps,
        stragglers=_combine_stragglers(a, b, sign),
        accepted_drafts=a.accepted_drafts + sign * b.accepted_drafts,
        rejected_drafts=a.rejected_drafts + sign * b.rejected_drafts,
        dp_size=a.dp_size,
        ep_size=a.ep_size,
        switches=a.switches,
        former_tokens=a.former_tokens,
        weights=a.weights,
    )


def _combine_decode(a: Totals, b: Totals, sign: int) -> Decode | None:
    """The decode part of ``a + sign * b``, which have one layout and one number of EP ranks."""
    if b.decode is None:
        return a.decode
    first, second = a.decode or no_decode(a), b.decode
    return Decode(
        counts=_sum(first.counts, second.counts, sign),
        rows=_sum(first.rows, second.rows, sign),
        ep_slots=first.ep_slots.plus(second.ep_slots, sign),
        unplaced=_sum(first.unplaced, second.unplaced, sign),
        estimated=_sum(first.estimated, second.estimated, sign),
        tokens=first.tokens + sign * second.tokens,
        steps=first.steps + sign * second.steps,
        mixed_steps=first.mixed_steps + sign * second.mixed_steps,
    )


def _combine_stragglers(a: Totals, b: Totals, sign: int) -> Stragglers | None:
    """The stragglers of ``a + sign * b``, which have one layout."""
    if b.stragglers is None:
        return a.stragglers
    first = a.stragglers or no_stragglers(len(a.layout.layers))
    return first.plus(b.stragglers, sign)


def _sum(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], sign: int) -> np.ndarray[Any, Any]:
    """``a + sign * b``; ``a`` itself where there is nothing to add, so that snapshots share it."""
    if sign < 0:
        return np.asarray(a - b)  # which takes no longer than to look for something to subtract
    return np.asarray(a + b) if b.any() else a


def _widen(totals: Totals, layout: Layout, ranks: int) -> Totals:
    """These totals in the arrays of a larger layout and of at least as many EP ranks."""
    if totals.layout == layout and totals.ep_slots.ranks == ranks:
        return totals
    old, decode = totals.layout, totals.decode
    return replace(
        totals,
        layout=layout,
        counts=layout.widened_experts(old, totals.counts),
        rows=layout.widened_layers(old, totals.rows),
        ep_slots=totals.ep_slots.widened(old, layout, ranks),
        unplaced=layout.widened_layers(old, totals.unplaced),
        unphased_rows=layout.widened_layers(old, totals.unphased_rows),
        estimated=layout.widened_layers(old, totals.estimated),
        decode=decode
        and replace(
            decode,
            counts=layout.widened_experts(old, decode.counts),
            rows=layout.widened_layers(old, decode.rows),
            ep_slots=decode.ep_slots.widened(old, layout, ranks),
            unplaced=layout.widened_layers(old, decode.unplaced),
            estimated=layout.widened_layers(old, decode.estimated),
        ),
        stragglers=totals.stragglers and totals.stragglers.widened(old, layout),
    )
