"""Routing that is joined from several traces, each position from one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from moescope.capture.wire import Int64Array, MoeLayer
from moescope.service.traces.routing import BoolArray, Routing, Rows
from moescope.service.traces.spans import common, inside, span
from moescope.service.traces.weights import Computed


class Given(NamedTuple):
    """The positions, as spans, that come from a trace; it has them all."""

    routing: Routing
    positions: Int64Array


class JoinedRouting(Routing):
    """The experts of the positions ``first`` to before ``end``, each from the trace that gives it, or -1.

    Where a trace lacks a layer its rows have -1 there. ``times_computed`` is how often the trace that gives
    a position computed it; 0: none gives it.

    Args:
        first, end: the positions.
        layers: the layers of the answer, rising.
        given: what each trace gives; no position is given twice.
        weights: see :class:`Routing`.
    """

    def __init__(
        self,
        first: int,
        end: int,
        layers: Sequence[MoeLayer],
        given: Sequence[Given],
        weights: Sequence[Computed],
    ) -> None:
        super().__init__(first, end, layers, (), weights)
        place = {layer.layer: at for at, layer in enumerate(layers)}
        self._given = [item for item in given if len(item.positions)]
        self._places = [[place[layer.layer] for layer in item.routing.layers] for item in self._given]

    def rows(self, start: int, end: int) -> Rows:
        """See :class:`Routing`. Each trace is read once, from its first position to its last."""
        experts = np.full((end - start, *self.shape[1:]), -1, np.int16)
        times = np.zeros(end - start, np.int64)
        for item, places in zip(self._given, self._places, strict=True):
            found = self._part(item, start, end)
            if found is None:
                continue
            first, last, mine = found
            rows = item.routing.rows(first, last)
            at = np.flatnonzero(mine)
            times[at + first - start] = rows.times[at]
            for here, there in enumerate(places):
                top_k = item.routing.layers[here].top_k
                experts[at + first - start, there, :top_k] = rows.experts[at, here, :top_k]
        return Rows(experts, times)

    def times_of(self, start: int, end: int) -> Int64Array:
        """See :class:`Routing`."""
        times = np.zeros(end - start, np.int64)
        for item in self._given:
            found = self._part(item, start, end)
            if found is not None:
                first, last, mine = found
                at = np.flatnonzero(mine)
                times[at + first - start] = item.routing.times_of(first, last)[at]
        return times

    def computed_of(self, start: int, end: int) -> BoolArray:
        """See :class:`Routing`."""
        computed = np.zeros(end - start, np.bool_)
        for item in self._given:
            found = self._part(item, start, end)
            if found is not None and len(item.routing.layers) == len(self.layers):
                first, last, mine = found
                at = np.flatnonzero(mine)
                computed[at + first - start] = item.routing.computed_of(first, last)[at]
        return computed

    @staticmethod
    def _part(item: Given, start: int, end: int) -> tuple[int, int, BoolArray] | None:
        """From where to where a trace gives positions, and which of those between; None: it gives none."""
        shared = common(item.positions, span(start, end))
        if not len(shared):
            return None
        first, last = int(shared[0, 0]), int(shared[-1, 1])
        return first, last, inside(shared, np.arange(first, last))
