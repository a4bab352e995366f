"""Questions about many requests: the most unusual ones, the most concentrated ones, those like another one.

All requests are ranked in float32; those that are answered are measured again in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from moescope.capture.wire import Int64Array, MoeLayer, PlacementTable, unpack_ids
from moescope.service.measures.requests import (
    Floats,
    Surprises,
    busiest_share,
    expected_bits,
    roots_of,
    similarity,
)
from moescope.service.store.slots import RequestSlots, begins_of
from moescope.service.traces.slot_table import Group, histogram_of
from moescope.service.wanted import check_wanted

TELLING: Final = 5
"""Experts that are named of an unusual request."""
_SPARE: Final = 16
"""Requests that are measured again beyond those wanted, since ranks in float32 may be wrong by rounding."""
_BYTES_AT_ONCE: Final = 512 << 10  # of counts as float32: they stay in a core's cache

SurpriseName = Literal["surprise_score", "divergence_bits", "surprise_bits"]


@dataclass(frozen=True, slots=True)
class Row:
    """A request among those of its group, and what it was ranked by."""

    group: Group
    at: int
    value: float

    @property
    def number(self) -> int:
        """The request's."""
        return int(self.group.numbers[self.at])


@dataclass(frozen=True, slots=True)
class Telling:
    """An expert that a request took more often than others did.

    Attributes:
        layer, expert: which.
        slots: the request's.
        share: of the request's slots in the layer.
        usual_share: its likelihood in the histogram of all requests that are compared.
        bits: slots x log2(share / usual_share), the expert's part of the log-likelihood ratio.
    """

    layer: int
    expert: int
    slots: int
    share: float
    usual_share: float
    bits: float


@dataclass(frozen=True, slots=True)
class Unusual:
    """An unusual request, its measures, and the experts that make it so, the most telling first."""

    number: int
    surprise_score: float
    divergence_bits: float
    surprise_bits: float
    telling: tuple[Telling, ...]


def unusual(
    groups: Sequence[Group], by: SurpriseName, layers: Sequence[int] | None, limit: int
) -> list[Unusual]:
    """The requests of the highest surprise under the histogram of all of them, highest first.

    Args:
        groups: the requests.
        by: what they are ranked by.
        layers: the layers that count; None: all.
        limit: how many, at most.
    """
    slots = histogram_of(groups)
    of_kind = {group.layers: _Expecting(group.layers, slots, layers) for group in groups}

    def values(group: Group, rows: slice) -> Floats:
        found: Floats = getattr(of_kind[group.layers].surprises(group, rows, np.float32), by)
        return found

    measured = []
    for row in _highest(groups, values, limit + _SPARE):
        found = of_kind[row.group.layers].surprises(row.group, slice(row.at, row.at + 1), np.float64)
        measured.append((row, {name: float(getattr(found, name)[0]) for name in get_args(SurpriseName)}))
    measured.sort(key=lambda item: (-item[1][by], -item[0].number))
    return [
        Unusual(row.number, telling=of_kind[row.group.layers].telling(row), **known)
        for row, known in measured[:limit]
    ]


class _Expecting:
    """What a histogram expects of requests that have some layers.

    Args:
        kind: their layers.
        slots: the histogram.
        layers: the layers that count; None: all.
    """

    def __init__(
        self, kind: Sequence[MoeLayer], slots: Mapping[MoeLayer, Int64Array], layers: Sequence[int] | None
    ) -> None:
        self._kind = kind
        self._begins = begins_of(kind)
        self._counts_at_all = np.array([layers is None or layer.layer in layers for layer in kind], bool)
        self._experts = np.array([layer.num_experts for layer in kind])
        bits = expected_bits(np.concatenate([slots[layer] for layer in kind]), self._begins)
        self._bits = np.where(np.repeat(self._counts_at_all, self._experts), bits, 0.0)
        self._rough = self._bits.astype(np.float32)

    def surprises(self, group: Group, rows: slice, dtype: type[np.floating[Any]]) -> Surprises:
        """Those of some requests."""
        return Surprises.of(
            group.counts[rows],
            np.where(self._counts_at_all, group.of_layer[rows], 0),
            np.where(self._counts_at_all, group.own[rows], 0.0),
            self._rough if dtype is np.float32 else self._bits,
            self._experts,
        )

    def telling(self, row: Row) -> tuple[Telling, ...]:
        """The experts that a request took more often than the histogram has it."""
        counts = row.group.counts[row.at].astype(np.int64)
        of_layer = np.maximum(row.group.of_layer[row.at], 1)
        shares = counts / np.repeat(of_layer, self._experts)
        chosen = np.repeat(self._counts_at_all, self._experts) & (counts > 0)
        above = np.where(chosen, counts * (np.log2(np.where(chosen, shares, 1.0)) + self._bits), 0.0)
        found = []
        for cell in np.argsort(-above, kind="stable")[:TELLING].tolist():
            if above[cell] <= 0:
                break
            at = int(np.searchsorted(self._begins, cell, side="right")) - 1
            found.append(
                Telling(
                    layer=self._kind[at].layer,
                    expert=cell - int(self._begins[at]),
                    slots=int(counts[cell]),
                    share=float(shares[cell]),
                    usual_share=float(2.0 ** -self._bits[cell]),
                    bits=float(above[cell]),
                )
            )
        return tuple(found)


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
    for row in _highest(groups, values, limit):
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


@dataclass(frozen=True, slots=True)
class Similar:
    """A request, how similar it is, and in how many layers it was compared."""

    number: int
    similarity: float
    layers: int


def similar(
    groups: Sequence[Group], to: RequestSlots, layers: Sequence[int] | None, limit: int
) -> list[Similar]:
    """The requests that are most like another one, which is not among them, the most similar first.

    Args:
        groups: the requests.
        to: the other one.
        layers: the layers that count; None: all.
        limit: how many, at most.
    """
    roots = roots_of(to.counts, begins_of(to.layers))
    of_layer = {
        layer: roots[begin : begin + layer.num_experts]
        for layer, begin in zip(to.layers, begins_of(to.layers).tolist(), strict=True)
        if layers is None or layer.layer in layers
    }
    of_kind = {
        group.layers: np.concatenate(
            [of_layer.get(layer, np.zeros(layer.num_experts)) for layer in group.layers]
        )
        for group in groups
    }
    rough = {kind: found.astype(np.float32) for kind, found in of_kind.items()}

    def values(group: Group, rows: slice) -> Floats:
        alike = similarity(group.counts[rows], group.of_layer[rows], rough[group.layers], group.begins)
        return np.where(group.numbers[rows] == to.number, np.nan, alike)

    found = []
    for row in _highest(groups, values, limit + _SPARE):
        group, wanted = row.group, of_kind[row.group.layers]
        alike = similarity(group.counts[row.at], group.of_layer[row.at], wanted, group.begins)
        both = (np.add.reduceat(wanted, group.begins) > 0) & (group.of_layer[row.at] > 0)
        found.append(Similar(row.number, float(alike), int(both.sum())))
    return sorted(found, key=lambda item: (-item.similarity, -item.number))[:limit]


def _highest(groups: Sequence[Group], values: Callable[[Group, slice], Floats], limit: int) -> list[Row]:
    """The requests of the highest values, highest first, the newest among equals; none whose value is NaN."""
    found: list[Row] = []
    for group in groups:
        measured = np.concatenate([values(group, rows) for rows in _slices(group)])
        known = np.flatnonzero(~np.isnan(measured))
        best = known[np.lexsort((-group.numbers[known], -measured[known]))][:limit]
        found += [Row(group, at, float(measured[at])) for at in best.tolist()]
    return sorted(found, key=lambda row: (-row.value, -row.number))[:limit]


def _slices(group: Group) -> Iterator[slice]:
    size = max(1, _BYTES_AT_ONCE // (4 * group.counts.shape[1]))
    for start in range(0, len(group.numbers), size):
        check_wanted()
        yield slice(start, start + size)
