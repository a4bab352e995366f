"""A request's routing in the shape that another program takes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from moescope.capture.wire import Int64Array, MoeLayer
from moescope.service.store.records import StoreError
from moescope.service.traces.routing import BoolArray, ExpertRows, Rows
from moescope.service.traces.weights import Computed

_SMALL: Final = 256
"""Most experts whose ids vLLM returns as uint8 (vllm 0.32 and 0.33, `RoutedExpertsCapturer.__init__`)."""
_AT_ONCE: Final = 1 << 15  # positions that are looked through at once for missing ones


class Shaped(Protocol):
    """Routing [T, L, K] in some shape, made some positions at a time.

    Attributes:
        first: position of the first row.
        layers: the layers, in their order in the array.
        shape: (T, L, K).
        weights: see :class:`moescope.service.traces.routing.Routing`.
        dtype: of the experts.
        has_gaps: a position that was not computed is -1, and null in tables; else no number is special.
    """

    first: int
    layers: tuple[MoeLayer, ...]
    shape: tuple[int, int, int]
    weights: tuple[Computed, ...]

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """See above."""

    @property
    def has_gaps(self) -> bool:
        """See above."""

    def chunks(self, positions: int) -> Iterator[Rows]:
        """All positions, in chunks of at most ``positions``; at least one chunk."""

    def times(self, positions: int) -> Iterator[Int64Array]:
        """Only how often each position was computed, in chunks of the same kind."""

    def computed(self, positions: int) -> Iterator[BoolArray]:
        """Only whether each position was computed in every layer, in chunks of the same kind."""


def missing_runs(routing: Shaped, most: int) -> tuple[list[tuple[int, int]], bool]:
    """The first ``most`` runs (first position, one past the last) that some layer did not compute, and
    whether there are more. Nothing is read from the store for it.
    """
    found: list[tuple[int, int]] = []
    start = routing.first
    for computed in routing.computed(_AT_ONCE):
        edges = start + np.flatnonzero(np.diff(computed, prepend=True, append=True))
        for begin, end in edges.reshape(-1, 2).tolist():
            if found and found[-1][1] == begin:
                found[-1] = (found[-1][0], end)
            else:
                found.append((begin, end))
        if len(found) > most:
            return found[:most], True
        start += len(computed)
    return found, False


@dataclass(frozen=True, slots=True)
class VllmShape:
    """What vLLM's own ``routed_experts`` of a model looks like.

    vLLM keeps a row for each position that it computed, which is all but the last token, and in each row all
    decoder layers; those without experts stay 0. Its ids are uint8 up to 256 experts, else uint16 (vllm 0.32
    and 0.33, ``routed_experts_capturer.py`` and ``take_output`` of ``aux_output_connector/connector.py``).

    Attributes:
        depth: decoder layers of the model.
        top_k: experts that a token takes, the most of any layer.
        num_experts: logical experts, the most of any layer.
    """

    depth: int
    top_k: int
    num_experts: int

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Of the ids."""
        return np.dtype("<u1" if self.num_experts <= _SMALL else "<u2")

    def layers(self, wanted: Collection[int] | None, known: Collection[MoeLayer]) -> tuple[MoeLayer, ...]:
        """The decoder layers wanted, rising; None: all. Those that are not ``known`` have no experts."""
        numbers = range(self.depth) if wanted is None else sorted({n for n in wanted if n < self.depth})
        experts = {layer.layer: layer.num_experts for layer in known}
        return tuple(MoeLayer(number, experts.get(number, 0), self.top_k) for number in numbers)


class VllmRouting:
    """Routing in vLLM's shape: zeros in layers without experts, and where a position is missing.

    A position that lacks a layer counts as not computed, since nothing else tells its zeros from experts.
    Whoever wants no zeros for missing positions looks at :func:`missing_runs` before.

    Args:
        routing: what there is.
        shape: of the model.
        wanted: its decoder layers; None: all.
    """

    has_gaps: Final = False

    def __init__(self, routing: Shaped, shape: VllmShape, wanted: Collection[int] | None) -> None:
        self._routing = routing
        self.first, self.weights, self.dtype = routing.first, routing.weights, shape.dtype
        self.layers = shape.layers(wanted, routing.layers)
        self.shape = (routing.shape[0], len(self.layers), shape.top_k)
        place = {layer.layer: at for at, layer in enumerate(self.layers)}
        self._places = [place.get(layer.layer) for layer in routing.layers]

    @property
    def zero_layers(self) -> list[int]:
        """The layers that have zeros only."""
        return [layer.layer for layer in self.layers if layer.num_experts == 0]

    def chunks(self, positions: int) -> Iterator[Rows]:
        """See :class:`Shaped`.

        Raises:
            StoreError: a computed row has a masked slot, which vLLM's shape can't say.
        """
        for rows, computed in zip(self._routing.chunks(positions), self.computed(positions), strict=True):
            experts = self._convert(rows.experts, computed, self._routing.layers)
            yield Rows(experts, np.where(computed, rows.times, 0))

    def times(self, positions: int) -> Iterator[Int64Array]:
        """See :class:`Shaped`."""
        for times, computed in zip(self._routing.times(positions), self.computed(positions), strict=True):
            yield np.where(computed, times, 0)

    def computed(self, positions: int) -> Iterator[BoolArray]:
        """See :class:`Shaped`."""
        return self._routing.computed(positions)

    def _convert(self, experts: ExpertRows, computed: BoolArray, layers: Sequence[MoeLayer]) -> ExpertRows:
        made = np.zeros((len(experts), *self.shape[1:]), self.dtype)
        for at, (place, layer) in enumerate(zip(self._places, layers, strict=True)):
            if place is None:
                continue
            ids = experts[:, at, : layer.top_k]
            if (ids[computed] < 0).any():
                raise StoreError(
                    f"layer {layer.layer} masked a slot of a token: take form=moescope, which can say so"
                )
            made[:, place, : layer.top_k] = np.maximum(ids, 0)
        result: ExpertRows = made
        return result
