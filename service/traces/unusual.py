"""The requests whose routing is most unusual, and the experts that make it so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np

from moescope.capture.wire import Int64Array, MoeLayer
from moescope.service.measures.requests import Floats, Surprises, expected_bits
from moescope.service.store.slots import begins_of
from moescope.service.traces.ranking import SPARE, Row, highest
from moescope.service.traces.slot_table import Group, histogram_of

TELLING: Final = 5
"""Experts that are named of an unusual request."""

SurpriseName = Literal["surprise_score", "divergence_bits", "surprise_bits"]


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
    for row in highest(groups, values, limit + SPARE):
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
