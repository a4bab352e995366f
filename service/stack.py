"""The totals of all DP ranks of a deployment as arrays over ranks and layers, to reduce windows whole.

With hundreds of ranks a scrape would otherwise spend its time in a loop over ranks and layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import numpy.typing as npt

from moescope.capture.wire import Int64Array
from moescope.service.layout import FloatArray, Layout
from moescope.service.totals import Totals

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False, slots=True)
class Stack:
    """Totals of D DP ranks over the L layers that any of their producers has.

    Attributes:
        layout: the L layers.
        counts: slots per logical expert, int64 [D, sum of experts].
        rows: tokens counted, int64 [D, L].
        present: whether the DP rank has a producer with the layer, bool [D, L].
        members: producers, each with the index of its DP rank, and where its layers are among the L (None: it
            has them all).
    """

    layout: Layout
    counts: Int64Array
    rows: Int64Array
    present: BoolArray
    members: tuple[tuple[int, Totals, Int64Array | None], ...]

    def placed(self, of: BoolArray, ep_size: int) -> tuple[list[FloatArray], list[int]]:
        """Slots per EP rank and slots without a placement, of some DP ranks in each layer.

        Args:
            of: whether the DP rank counts in the layer, bool [D, L].
            ep_size: EP ranks there are now; further ones matter only if something went to them.

        Returns:
            L arrays, float64 [R] with R >= ep_size, and L numbers.
        """
        widths = [totals.ep_slots.shape[1] for _, totals, _ in self.members]
        slots = np.zeros((len(self.layout.layers), max(ep_size, *widths)))
        unplaced = np.zeros(len(slots), dtype=np.int64)
        all_of: list[bool] = np.all(of, axis=1).tolist()
        for rank, totals, layers in self.members:
            width = totals.ep_slots.shape[1]
            if layers is None and all_of[rank]:  # as good as always
                slots[:, :width] += totals.ep_slots
                unplaced += totals.unplaced
                continue
            where = np.arange(len(slots)) if layers is None else layers
            kept = of[rank, where]
            slots[where[kept], :width] += totals.ep_slots[kept]
            unplaced[where[kept]] += totals.unplaced[kept]
        return [_trimmed(row, ep_size) for row in slots], unplaced.tolist()


def stacked(by_rank: Mapping[int, Sequence[Totals]]) -> Stack:
    """Stack the producers of each DP rank, in the order given; those of one rank add up."""
    every = [totals for producers in by_rank.values() for totals in producers]
    layout = reduce(Layout.union, (totals.layout for totals in every))
    where = {id(totals.layout): _where(layout, totals.layout) for totals in every}
    size = (len(by_rank), len(layout.layers))
    counts = np.zeros((size[0], int(layout.offsets[-1])), dtype=np.int64)
    rows, present = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.bool_)
    members = []
    for rank, producers in enumerate(by_rank.values()):
        for totals in producers:
            experts, layers = where[id(totals.layout)]
            members.append((rank, totals, layers))
            if experts is None or layers is None:
                counts[rank] += totals.counts
                rows[rank] += totals.rows
                present[rank] = True
            else:
                counts[rank, experts] += totals.counts
                rows[rank, layers] += totals.rows
                present[rank, layers] = True
    return Stack(layout, counts, rows, present, tuple(members))


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
