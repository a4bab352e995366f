"""Which MoE layers an account's arrays hold, and where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypeVar
from weakref import ReferenceType, WeakValueDictionary, ref

import numpy as np

from moescope.capture.wire import Int64Array, MoeLayer
from moescope.service.measures.arrays import FloatArray

Numbers = TypeVar("Numbers", FloatArray, Int64Array)


class Layout:
    """The MoE layers of an account and where their experts are in a flat array.

    Attributes:
        layers: L layers, rising by id.
        offsets: int64 [L + 1]; layer i's experts are at ``offsets[i]:offsets[i + 1]``.
        index: layer id to i.
        widest: experts of the layer that has most.
        top_k: experts that a token takes in each layer, int64 [L].
    """

    __slots__ = ("__weakref__", "_hash", "_summed", "index", "layers", "offsets", "top_k", "widest")

    def __init__(self, layers: Iterable[MoeLayer]) -> None:
        self.layers: tuple[MoeLayer, ...] = tuple(layers)
        sizes = [layer.num_experts for layer in self.layers]
        self.offsets: Int64Array = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64))).astype(np.int64)
        self.index: dict[int, int] = {layer.layer: i for i, layer in enumerate(self.layers)}
        self.widest = max(sizes, default=0)
        self.top_k: Int64Array = np.array([layer.top_k for layer in self.layers], dtype=np.int64)
        self._hash = hash(self.layers)
        self._summed: dict[int, tuple[ReferenceType[Int64Array], Int64Array]] = {}

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Layout) and self.layers == other.layers)

    def __hash__(self) -> int:
        return self._hash

    def conflict(self, other: Layout) -> tuple[MoeLayer, MoeLayer] | None:
        """The first layer that both have with another number of experts or another top-k, or None."""
        if self is other:
            return None
        for mine in self.layers:
            at = other.index.get(mine.layer)
            if at is not None and other.layers[at] != mine:
                return mine, other.layers[at]
        return None

    def union(self, other: Layout) -> Layout:
        """Layers of both, which must not conflict."""
        if self == other or not other.layers:
            return self
        if not self.layers:
            return other
        merged = {layer.layer: layer for layer in (*self.layers, *other.layers)}
        return Layout(merged[key] for key in sorted(merged))

    def sums(self, counts: Int64Array) -> Int64Array:
        """Sum over experts of each layer: [sum of experts] to int64 [L]."""
        if not self.layers:
            return np.zeros(0, dtype=np.int64)
        return np.asarray(np.add.reduceat(counts, self.offsets[:-1]), dtype=np.int64)

    def known_sums(self, counts: Int64Array) -> Int64Array:
        """:meth:`sums` of counts that are never changed, made once for as long as anybody has the array."""
        known = self._summed.get(id(counts))
        if known is not None and known[0]() is counts:
            return known[1]
        found = self.sums(counts)
        self._know(counts, found)
        return found

    def pass_on_sums(self, counts: Int64Array, equal: Int64Array) -> None:
        """Let the :meth:`known_sums` of counts be those of an equal array too, which never changes either."""
        known = self._summed.get(id(counts))
        if known is not None and known[0]() is counts and equal is not counts:
            self._know(equal, known[1])

    def _know(self, counts: Int64Array, found: Int64Array) -> None:
        summed, key = self._summed, id(counts)
        summed[key] = ref(counts, lambda _: summed.pop(key, None)), found

    def widened_experts(self, smaller: Layout, values: Int64Array) -> Int64Array:
        """Values by expert of a smaller layout in the order of this one: int64 [sum of experts].

        All layers of ``smaller`` must be here; experts of the others get zeros.
        """
        wide = np.zeros(int(self.offsets[-1]), dtype=np.int64)
        for i, layer in enumerate(smaller.layers):
            at = self.index[layer.layer]
            wide[self.offsets[at] : self.offsets[at + 1]] = values[
                smaller.offsets[i] : smaller.offsets[i + 1]
            ]
        return wide

    def widened_layers(self, smaller: Layout, values: Int64Array) -> Int64Array:
        """Values by layer of a smaller layout in the order of this one: int64 [L].

        They are ``values`` themselves where the layouts are equal.
        """
        if smaller == self:
            return values
        wide = np.zeros(len(self.layers), dtype=np.int64)
        wide[[self.index[layer.layer] for layer in smaller.layers]] = values
        return wide

    def widened_ranks(self, smaller: Layout, values: Numbers, ranks: int) -> Numbers:
        """Values by layer and EP rank of a smaller layout in the order of this one: [L, ``ranks``].

        ``ranks`` is at least the number of EP ranks of ``values``.
        """
        wide = np.zeros((len(self.layers), ranks), dtype=values.dtype)
        wide[[self.index[layer.layer] for layer in smaller.layers], : values.shape[1]] = values
        return wide


class Layouts:
    """Gives equal layouts as one object, as long as anybody has it: comparing them then costs nothing."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[tuple[MoeLayer, ...], Layout] = WeakValueDictionary()

    def of(self, layers: Sequence[MoeLayer]) -> Layout:
        """The layout of these layers."""
        key = tuple(layers)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = Layout(key)
        return found


class Shapes:
    """How many producers of each deployment have each layout: few, however many producers there are."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], Counter[Layout]] = {}

    def change(self, deployment: tuple[str, str], old: Layout | None, new: Layout | None) -> None:
        """Note a producer's change of layout; None: the producer was not there before, or is gone now."""
        if old is new:
            return
        counts = self._counts.setdefault(deployment, Counter())
        if new is not None:
            counts[new] += 1
        if old is not None:
            counts[old] -= 1
            if not counts[old]:
                del counts[old]
        if not counts:
            del self._counts[deployment]

    def conflict(self, deployment: tuple[str, str], layout: Layout) -> bool:
        """Whether a layer of some producer has another number of experts or another top-k."""
        return any(map(layout.conflict, self._counts.get(deployment, ())))

    def layers_with(self, deployment: tuple[str, str], layout: Layout) -> int:
        """How many layers the producers have together, once one has this layout."""
        known = self._counts.get(deployment, Counter())
        if layout in known or not known:
            return len(layout.layers)  # almost always: no need to look at all
        return len(set().union(layout.index, *(other.index for other in known)))
