"""Straggler cost of a window: what waiting for the busiest EP rank took, from steps and from the window.

In each layer of each step the EP ranks wait for the one with most slots. If time goes with slots, an average
rank works ``mean`` of the ``max`` that the layer takes. The **straggler cost** is the share of that time that
is waited: ``1 - sum of means / sum of maxes``, summed over steps and, for the whole model, over layers. The
**windowed share** takes the sums of the whole window by rank as if they were one step. It is lower than the
cost where different ranks are hot in different steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moescope.service.counts.totals import Totals
from moescope.service.live.producers import ProducerSpan
from moescope.service.measures.arrays import FloatArray
from moescope.service.measures.loads import max_and_mean
from moescope.service.windows.layer_window import LayerWindow
from moescope.service.windows.window import ModelWindow


@dataclass(frozen=True, slots=True)
class LayerCost:
    """One layer over its joined steps; see :class:`moescope.service.counts.step_costs.Stragglers`.

    Attributes:
        layer: its id.
        max_slots: sum over steps of the busiest EP rank's slots; ``mean_slots`` of the mean.
        busy_steps: steps with any slot.
        hottest: in how many of them each EP rank was the busiest, float64 [R].
        caused: waiting that each EP rank caused, slots, float64 [R].
    """

    layer: int
    max_slots: int
    mean_slots: float
    busy_steps: int
    hottest: FloatArray
    caused: FloatArray


@dataclass(frozen=True, slots=True)
class StageSteps:
    """Steps of one pipeline stage."""

    joined: int
    incomplete: int


@dataclass(frozen=True, slots=True)
class Cost:
    """All layers, rising by id, and all stages in which any step was joined or given up."""

    layers: tuple[LayerCost, ...]
    stages: Mapping[int, StageSteps]

    @property
    def sums(self) -> tuple[int, float]:
        """Sums over layers of max_slots and of mean_slots."""
        return sum(item.max_slots for item in self.layers), sum(item.mean_slots for item in self.layers)

    @property
    def hottest(self) -> FloatArray:
        """In how many (layer, step) pairs each EP rank was the busiest, float64 [R]."""
        return _over_layers([item.hottest for item in self.layers])

    @property
    def caused(self) -> FloatArray:
        """Waiting that each EP rank caused, slots, over steps and layers, float64 [R]."""
        return _over_layers([item.caused for item in self.layers])


def _over_layers(by_rank: Sequence[FloatArray]) -> FloatArray:
    total = np.zeros(max(map(len, by_rank), default=0))
    for item in by_rank:
        total[: len(item)] += item
    return total


def cost_of(spans: Sequence[ProducerSpan]) -> Cost:
    """What the producers of one deployment were credited with in a window."""
    # Only the first worker of each stage is credited. Making the others' differences would cost time only.
    credited = (item for item in spans if item.span.last.stragglers is not None)
    return cost_in((item.producer.latest.producer.pp_rank, item.span.delta) for item in credited)


def cost_in(totals: Iterable[tuple[int, Totals]]) -> Cost:
    """What workers were credited with.

    Args:
        totals: the pipeline stage of each worker, and its totals, or a difference of two of them.
    """
    layers: dict[int, LayerCost] = {}
    stages: dict[int, StageSteps] = {}
    for pp_rank, delta in totals:
        found = delta.stragglers
        if found is None or not (found.joined or found.incomplete):
            continue
        stages[pp_rank] = StageSteps(found.joined, found.incomplete)
        if not found.joined:
            continue
        for i, layer in enumerate(delta.layout.layers):
            layers[layer.layer] = LayerCost(
                layer=layer.layer,
                max_slots=int(found.max_slots[i]),
                mean_slots=float(found.mean_slots[i]),
                busy_steps=int(found.busy_steps[i]),
                hottest=found.hottest[i],
                caused=np.maximum(found.caused[i], 0.0),  # differences of sums of floats
            )
    return Cost(tuple(layers[layer] for layer in sorted(layers)), dict(sorted(stages.items())))


def straggler_cost(most: float, mean: float) -> float | None:
    """``1 - mean / max`` of sums, from 0 (nobody waits) to 1 - 1 / R; None: no work."""
    return None if most <= 0 else max(0.0, 1.0 - mean / most)


def windowed_sums(window: ModelWindow, only: set[int] | None = None) -> tuple[float, float]:
    """Sums over the layers that are seen whole of the busiest EP rank's and the mean slots of the window."""
    loads = [
        max_and_mean(layer.ep_slots)
        for layer in window.layers
        if is_whole(layer) and (only is None or layer.shape.layer in only)
    ]
    most, mean = (np.nansum([float(pair[i]) for pair in loads]) for i in (0, 1))
    return float(most), float(mean)


def is_whole(layer: LayerWindow) -> bool:
    """Whether the load of every EP rank is known."""
    return not (layer.ep_reason or layer.not_seen or layer.missing or layer.broken)
