"""Totals of one producer, as immutable values that add up and subtract.

A :class:`Layout` says which layers the arrays hold and where; :class:`Totals` holds the arrays. Nothing
here mutates an array that it has handed out, so readers need no lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from moescope.capture.wire import Frame, Int64Array, MoeLayer, unpack_counts

FloatArray = npt.NDArray[np.float64]


class Layout:
    """The MoE layers of an account and where their experts are in a flat array.

    Attributes:
        layers: L layers, rising by id.
        offsets: int64 [L + 1]; layer i's experts are at ``offsets[i]:offsets[i + 1]``.
        index: layer id to i.
    """

    __slots__ = ("index", "layers", "offsets")

    def __init__(self, layers: Iterable[MoeLayer]) -> None:
        self.layers: tuple[MoeLayer, ...] = tuple(layers)
        sizes = [layer.num_experts for layer in self.layers]
        self.offsets: Int64Array = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64))).astype(np.int64)
        self.index: dict[int, int] = {layer.layer: i for i, layer in enumerate(self.layers)}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and self.layers == other.layers

    def __hash__(self) -> int:
        return hash(self.layers)

    @property
    def top_k(self) -> Int64Array:
        """Experts that a token takes in each layer, int64 [L]."""
        return np.array([layer.top_k for layer in self.layers], dtype=np.int64)

    def conflict(self, other: Layout) -> tuple[MoeLayer, MoeLayer] | None:
        """The first layer that both have with another number of experts or another top-k, or None."""
        for mine in self.layers:
            at = other.index.get(mine.layer)
            if at is not None and other.layers[at] != mine:
                return mine, other.layers[at]
        return None

    def union(self, other: Layout) -> Layout:
        """Layers of both, which must not conflict."""
        if self == other:
            return self
        merged = {layer.layer: layer for layer in (*self.layers, *other.layers)}
        return Layout(merged[key] for key in sorted(merged))

    def sums(self, counts: Int64Array) -> Int64Array:
        """Sum over experts of each layer: [sum of experts] to int64 [L]."""
        if not self.layers:
            return np.zeros(0, dtype=np.int64)
        return np.asarray(np.add.reduceat(counts, self.offsets[:-1]), dtype=np.int64)


@dataclass(frozen=True, eq=False, slots=True)
class Totals:
    """Cumulative totals, or the difference of two.

    Attributes:
        layout: what the arrays hold.
        counts: slots per (layer, logical expert), int64 [sum of experts].
        rows: tokens counted in each layer, int64 [L].
        ep_slots: slots that went to each EP rank, float64 [L, R] (a replicated expert's slots are split
            evenly over its copies); R is 0 until an EP placement was known.
        unplaced: slots counted while no placement was known, int64 [L].
        tokens: tokens computed by the DP rank; ``steps`` and ``idle_steps`` likewise.
        drops: what the producer lost or put off, by reason.
    """

    layout: Layout
    counts: Int64Array
    rows: Int64Array
    ep_slots: FloatArray
    unplaced: Int64Array
    tokens: int = 0
    steps: int = 0
    idle_steps: int = 0
    drops: Mapping[str, int] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes that the arrays take, with a little for the object itself."""
        arrays = (self.counts, self.rows, self.ep_slots, self.unplaced)
        return 512 + sum(array.nbytes for array in arrays)

    def counts_of(self, index: int) -> Int64Array:
        """Slots per logical expert of the layer at ``index`` of the layout, int64 [num_experts]."""
        start, end = self.layout.offsets[index : index + 2]
        return self.counts[start:end]

    def plus(self, other: Totals) -> Totals:
        """Sum of both, over the union of their layers."""
        return _combine(self, other, 1)

    def minus(self, earlier: Totals) -> Totals:
        """What came since ``earlier``; no check of signs."""
        return _combine(self, earlier, -1)


def no_totals(layout: Layout) -> Totals:
    """Nothing counted yet."""
    size = len(layout.layers)
    return Totals(
        layout=layout,
        counts=np.zeros(int(layout.offsets[-1]), dtype=np.int64),
        rows=np.zeros(size, dtype=np.int64),
        ep_slots=np.zeros((size, 0)),
        unplaced=np.zeros(size, dtype=np.int64),
    )


def totals_of(frame: Frame, layout: Layout) -> Totals:
    """What a checked frame says, with no EP ranks yet; ``layout`` is that of ``frame.layers``."""
    size = len(layout.layers)
    return Totals(
        layout=layout,
        counts=unpack_counts(frame.counts),
        rows=unpack_counts(frame.rows),
        ep_slots=np.zeros((size, 0)),
        unplaced=np.zeros(size, dtype=np.int64),
        tokens=frame.tokens,
        steps=frame.steps,
        idle_steps=frame.idle_steps,
        drops=dict(frame.drops),
    )


def _combine(a: Totals, b: Totals, sign: int) -> Totals:
    layout = a.layout.union(b.layout)
    ranks = max(a.ep_slots.shape[1], b.ep_slots.shape[1])
    a, b = _widen(a, layout, ranks), _widen(b, layout, ranks)
    return Totals(
        layout=layout,
        counts=a.counts + sign * b.counts,
        rows=a.rows + sign * b.rows,
        ep_slots=a.ep_slots + sign * b.ep_slots,
        unplaced=a.unplaced + sign * b.unplaced,
        tokens=a.tokens + sign * b.tokens,
        steps=a.steps + sign * b.steps,
        idle_steps=a.idle_steps + sign * b.idle_steps,
        drops={key: a.drops.get(key, 0) + sign * b.drops.get(key, 0) for key in {**a.drops, **b.drops}},
    )


def _widen(totals: Totals, layout: Layout, ranks: int) -> Totals:
    """The same totals in the arrays of a larger layout and at least as many EP ranks."""
    if totals.layout == layout and totals.ep_slots.shape[1] == ranks:
        return totals
    at = [layout.index[layer.layer] for layer in totals.layout.layers]
    wide = no_totals(layout)
    ep_slots = np.zeros((len(layout.layers), ranks))
    ep_slots[at, : totals.ep_slots.shape[1]] = totals.ep_slots
    wide.rows[at] = totals.rows
    wide.unplaced[at] = totals.unplaced
    for i, target in enumerate(at):
        wide.counts_of(target)[:] = totals.counts_of(i)
    return Totals(
        layout=layout,
        counts=wide.counts,
        rows=wide.rows,
        ep_slots=ep_slots,
        unplaced=wide.unplaced,
        tokens=totals.tokens,
        steps=totals.steps,
        idle_steps=totals.idle_steps,
        drops=totals.drops,
    )
