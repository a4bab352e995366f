"""What all DP ranks of a deployment counted, as arrays over ranks and layers.

With hundreds of ranks a loop over ranks and layers would take most of a scrape's time. Counts by expert are
added up over the ranks at once: to keep those of each rank, 30 MiB for 256 ranks, takes longer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import numpy.typing as npt

from moescope.capture.wire import Int64Array
from moescope.service.counts.ep_slots import carried
from moescope.service.counts.layers import Layout
from moescope.service.counts.totals import Totals
from moescope.service.live.spans import Rise
from moescope.service.measures.arrays import FloatArray
from moescope.service.windows.shared_sums import SharedSums

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False, slots=True)
class Stack:
    """Totals of D DP ranks over the L layers that any of their producers has.

    Attributes:
        layout: the L layers.
        counts: slots per logical expert over the DP ranks, int64 [sum of experts]; of the DP ranks that have
            the layer and lost nothing there, without those that were left out; zeros if nobody wants them.
        slots: slots, int64 [D, L].
        rows: tokens counted, int64 [D, L].
        present: whether the DP rank has a producer with the layer, bool [D, L].
        lost: whether the DP rank computed tokens, none of which was seen in the layer, bool [D, L].
        partial: whether some were seen and it isn't known that these are all, bool [D, L].
        ep_slots: slots per EP rank, L arrays of float64 [R]; of the DP ranks that have the layer and lost
            nothing there. R is the ``ep_size`` asked for, or more if slots went to further ranks.
        unplaced: slots of these DP ranks of which it isn't known where they went, L numbers.
        estimated: those of ``ep_slots`` that are an even split over copies on several EP ranks, L numbers.
    """

    layout: Layout
    counts: Int64Array
    slots: Int64Array
    rows: Int64Array
    present: BoolArray
    lost: BoolArray
    partial: BoolArray
    ep_slots: list[FloatArray]
    unplaced: list[int]
    estimated: list[int]


@dataclass(frozen=True, eq=False, slots=True)
class Doubt:
    """Which workers of a DP rank don't count.

    Attributes:
        layers: layers that they have, bool [L].
        counting: of each producer that is added, whether it counts.
        may_be_whole: whether another worker may have counted all tokens all the same.
    """

    layers: BoolArray
    counting: Sequence[bool]
    may_be_whole: bool = True


class Stacker:
    """Builds a :class:`Stack` from one DP rank after the other. It keeps none of the arrays that it is given.

    Args:
        layouts: of all producers.
        ranks: D, the number of DP ranks.
        ep_size: EP ranks there are now; further ones matter only if something went to them.
        sums: where sums over totals are that other stacks have too; then the totals that are added are held
            until the stack is made. None: nothing is held.
        begins_again: other stacks begin with the same totals too, so that those are held that are subtracted.
        experts: whether counts by expert are wanted.
    """

    def __init__(
        self,
        layouts: Iterable[Layout],
        ranks: int,
        ep_size: int,
        sums: SharedSums | None = None,
        experts: bool = True,
        begins_again: bool = False,
    ) -> None:
        self._layout = reduce(Layout.union, layouts)
        size = (ranks, len(self._layout.layers))
        self._counts = np.zeros(int(self._layout.offsets[-1]), dtype=np.int64)
        self._slots, self._rows = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
        self._present = np.zeros(size, dtype=np.bool_)
        self._lost, self._partial = np.zeros(size, dtype=np.bool_), np.zeros(size, dtype=np.bool_)
        self._ep_size = ep_size
        self._ep_slots = np.zeros((size[1], ep_size), dtype=np.int64)
        self._ep_parts = np.zeros((size[1], ep_size), dtype=np.int64)
        self._unplaced = np.zeros(size[1], dtype=np.int64)
        self._estimated = np.zeros(size[1], dtype=np.int64)
        self._known: dict[Layout, tuple[Int64Array | None, Int64Array | None]] = {}
        self._rank = 0
        self._sums, self._experts = sums, experts
        self._held: dict[np.ufunc, list[Totals]] = {} if sums is None else {np.add: []}
        if sums is not None and begins_again:
            self._held[np.subtract] = []

    @property
    def layout(self) -> Layout:
        """The layers of the stack."""
        return self._layout

    def rows_of(self, producers: Sequence[Totals]) -> Int64Array:
        """The rows of producers, summed in the layers of the stack, int64 [L]."""
        found = np.zeros(len(self._layout.layers), dtype=np.int64)
        for totals in producers:
            _, layers = self._where(totals.layout)
            found[slice(None) if layers is None else layers] += totals.rows
        return found

    def add(
        self,
        producers: Sequence[Rise],
        computed: bool | BoolArray,
        doubt: Doubt | None = None,
        left_out: BoolArray | None = None,
    ) -> None:
        """Add the next DP rank.

        Args:
            producers: what each of its producers counted; they add up.
            computed: whether it computed any token, or may have; bool [L] where that is not the same for all
                layers.
            doubt: which of them don't count; None: all that there are count.
            left_out: layers in which its slots are not added to those of others, bool [L]; None: none.
        """
        rank = self._rank
        self._rank += 1
        rows = self._rows[rank]
        for rise in producers:
            _, layers = self._where(rise.layout)
            here = slice(None) if layers is None else layers
            rows[here] += rise.rows
            self._present[rank, here] = True
        lost = None if rows.all() else (rows == 0) & computed
        if lost is not None:
            self._lost[rank] = lost
        if doubt is not None:
            self._partial[rank] = doubt.layers & (rows != 0) & ~self._whole(producers, doubt)
        seen = ~lost if lost is not None and lost.any() else None
        added = seen
        if left_out is not None:
            added = ~left_out if seen is None else seen & ~left_out
        for rise in producers:
            for totals, add in rise.terms:
                self._sum(rank, totals, add)
                held = added is None and add in self._held and not rise.made
                if held and totals.layout == self._layout:
                    self._held[add].append(totals)
                else:
                    self._count(totals, add, added)
                    self._place(totals, add, seen)

    def _whole(self, producers: Sequence[Rise], doubt: Doubt) -> BoolArray:
        """Layers in which one worker alone counted all tokens, so nothing is left for others; bool [L]."""
        found = np.zeros(len(self._layout.layers), dtype=np.bool_)
        for rise, counts in zip(producers, doubt.counting, strict=True):
            if not counts or not rise.tokens:
                continue
            _, layers = self._where(rise.layout)
            found[slice(None) if layers is None else layers] |= rise.rows >= rise.tokens
        return found if doubt.may_be_whole else np.zeros_like(found)

    def stack(self) -> Stack:
        """All ranks that were added."""
        self._add_held()
        return Stack(
            layout=self._layout,
            counts=self._counts,
            slots=self._slots,
            rows=self._rows,
            present=self._present,
            lost=self._lost,
            partial=self._partial,
            ep_slots=[
                _trimmed(row, self._ep_size) for row in carried(self._ep_slots, self._ep_parts).floats()
            ],
            unplaced=self._unplaced.tolist(),
            estimated=self._estimated.tolist(),
        )

    def _sum(self, rank: int, totals: Totals, add: np.ufunc) -> None:
        """Add a producer's slots in each layer that it has."""
        _, layers = self._where(totals.layout)
        here, slots = slice(None) if layers is None else layers, self._slots[rank]
        slots[here] = add(slots[here], totals.layout.known_sums(totals.counts))

    def _add_held(self) -> None:
        """Add or subtract the totals that are held, and let them go."""
        for add, totals in self._held.items():
            if self._sums is None or not totals:
                continue
            found = self._sums.of(totals, experts=self._experts, begins=add is np.subtract)
            if self._experts and found.counts is not None:
                add(self._counts, found.counts, out=self._counts)
            width = found.ep_slots.shape[1]
            self._widen(width)
            self._ep_slots[:, :width] = add(self._ep_slots[:, :width], found.ep_slots)
            self._ep_parts[:, :width] = add(self._ep_parts[:, :width], found.ep_parts)
            self._unplaced = add(self._unplaced, found.unplaced)
            self._estimated = add(self._estimated, found.estimated)
        self._held.clear()

    def _count(self, totals: Totals, add: np.ufunc, added: BoolArray | None) -> None:
        """Add a producer's slots by expert in some layers, bool [L]; None: in all that it has."""
        if not self._experts:
            return
        experts, layers = self._where(totals.layout)
        if experts is None and added is None:
            add(self._counts, totals.counts, out=self._counts)
            return
        here = slice(None) if layers is None else layers
        own = np.ones(len(totals.layout.layers), np.bool_) if added is None else added[here]
        kept = np.repeat(own, np.diff(totals.layout.offsets))
        where = np.flatnonzero(kept) if experts is None else experts[kept]
        self._counts[where] = add(self._counts[where], totals.counts[kept])

    def _place(self, totals: Totals, add: np.ufunc, seen: BoolArray | None) -> None:
        """Add a producer's slots by EP rank in some layers, bool [L]; None: in all that it has."""
        width = totals.ep_slots.ranks
        self._widen(width)
        _, layers = self._where(totals.layout)
        slots = totals.ep_slots
        if layers is None and seen is None:  # almost always
            so_far = self._ep_slots[:, :width]
            add(so_far, slots.whole, out=so_far)
            add(self._unplaced, totals.unplaced, out=self._unplaced)
            add(self._estimated, totals.estimated, out=self._estimated)
            if slots.parts is not None:
                self._ep_parts[:, :width] = add(self._ep_parts[:, :width], slots.parts)
            return
        where = np.arange(len(self._layout.layers)) if layers is None else layers
        own = np.ones(len(where), np.bool_) if seen is None else seen[where]
        here = where[own]
        self._ep_slots[here, :width] = add(self._ep_slots[here, :width], slots.whole[own])
        self._unplaced[here] = add(self._unplaced[here], totals.unplaced[own])
        self._estimated[here] = add(self._estimated[here], totals.estimated[own])
        if slots.parts is not None:
            self._ep_parts[here, :width] = add(self._ep_parts[here, :width], slots.parts[own])

    def _widen(self, ranks: int) -> None:
        """Have room for so many EP ranks."""
        if ranks > self._ep_slots.shape[1]:
            more = ((0, 0), (0, ranks - self._ep_slots.shape[1]))
            self._ep_slots, self._ep_parts = np.pad(self._ep_slots, more), np.pad(self._ep_parts, more)

    def _where(self, part: Layout) -> tuple[Int64Array | None, Int64Array | None]:
        found = self._known.get(part)
        if found is None:
            found = self._known[part] = _where(self._layout, part)
        return found


def _where(layout: Layout, part: Layout) -> tuple[Int64Array | None, Int64Array | None]:
    """Where a layout's experts and layers are in a larger one; None, None if they are the same."""
    if part == layout:
        return None, None
    layers = np.array([layout.index[layer.layer] for layer in part.layers], dtype=np.int64)
    shift = np.repeat(layout.offsets[layers] - part.offsets[:-1], np.diff(part.offsets))
    return np.arange(int(part.offsets[-1])) + shift, layers


def _trimmed(slots: FloatArray, ep_size: int) -> FloatArray:
    if len(slots) == ep_size:
        return slots
    used = np.flatnonzero(slots)
    return slots[: max(ep_size, int(used[-1]) + 1 if used.size else 0)]
