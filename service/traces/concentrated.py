"""The requests of which one EP rank has the highest share of the slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moescope.capture.wire import MoeLayer, PlacementTable, unpack_ids
from moescope.service.measures.requests import Floats, busiest_share
from moescope.service.store.slots import begins_of
from moescope.service.traces.ranking import highest
from moescope.service.traces.slot_table import Group


@dataclass(frozen=True, slots=True)
class Concentrated:
    """A request, the EP rank that most of its slots go to, their share, and all slots that were placed."""

    number: int
    busiest_ep_rank: int
    busiest_ep_rank_share: float
    slots: int


def concentrated(
    groups: Sequence[Group], placed: Mapping[MoeLayer, PlacementTable], ep_size: int, limit: int
) -> list[Concentrated]:
    """The requests of which one EP rank has the highest share of the slots, highest first.

    Args:
        groups: the requests.
        placed: where the experts are; layers that are not among these don't count. The slots of an expert
            with several copies are shared out evenly.
        ep_size: EP ranks; a rank without an expert has no slots.
        limit: how many, at most.
    """
    of_kind: dict[tuple[MoeLayer, ...], _Copies] = {}
    for group in groups:
        if group.layers not in of_kind:
            of_kind[group.layers] = _Copies(group.layers, placed)

    def values(group: Group, rows: slice) -> Floats:
        return busiest_share(of_kind[group.layers].loads(group.counts[rows], ep_size))

    found = []
    for row in highest(groups, values, limit):
        loads = of_kind[row.group.layers].loads(row.group.counts[row.at : row.at + 1], ep_size)[0]
        found.append(
            Concentrated(
                number=row.number,
                busiest_ep_rank=int(loads.argmax()),
                busiest_ep_rank_share=float(busiest_share(loads)),
                slots=round(float(loads.sum())),
            )
        )
    return found


class _Copies:
    """The copies of the experts of some layers, in the order of their EP ranks.

    Args:
        layers: the layers of the counts.
        placed: see :func:`concentrated`.
    """

    def __init__(self, layers: Sequence[MoeLayer], placed: Mapping[MoeLayer, PlacementTable]) -> None:
        cells, ranks = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for layer, begin in zip(layers, begins_of(layers).tolist(), strict=True):
            if layer in placed:
                cells.append(begin + unpack_ids(placed[layer].physical_to_logical).astype(np.int64))
                ranks.append(unpack_ids(placed[layer].physical_to_ep_rank).astype(np.int64))
        cell, rank = np.concatenate(cells), np.concatenate(ranks)
        order = np.argsort(rank, kind="stable")
        self._cells, of_rank = cell[order], rank[order]
        self._ranks, self._begins = np.unique(of_rank, return_index=True)
        copies = np.bincount(self._cells)[self._cells]
        self._shares = None if (copies == 1).all() else 1.0 / copies

    def loads(self, counts: npt.NDArray[np.unsignedinteger], ep_size: int) -> npt.NDArray[np.float64]:
        """Slots by EP rank of counts [n, C], float64 [n, ep_size]."""
        found = np.zeros((len(counts), ep_size))
        if len(self._cells):
            taken = counts.take(self._cells, axis=1)
            if self._shares is None:
                sums = np.add.reduceat(taken, self._begins, axis=1, dtype=np.int64)
            else:
                sums = np.add.reduceat(taken * self._shares, self._begins, axis=1)
            inside = self._ranks < ep_size
            found[:, self._ranks[inside]] = sums[:, inside]
        return found
