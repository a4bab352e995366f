"""Balance of a deployment in a window, along three axes, with a reason wherever there is no sample.

Over EP ranks: who got the slots. Over DP ranks: whose tokens they were. Over experts: which experts they
chose. Loads are differences of cumulative counts between the window's ends, along the named axis only:
nothing is averaged over ranks first, which would make every skew look like balance.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from moescope.service.measures.arrays import FloatArray
from moescope.service.measures.balance import MEASURES, measure_all
from moescope.service.measures.measure import Axis
from moescope.service.measures.summary import Summary, summarise
from moescope.service.windows.layer_window import LayerWindow
from moescope.service.windows.window import ModelWindow

_MASKED: Final = "no slots: the tokens of the window chose no expert here"


@dataclass(frozen=True, slots=True)
class Cell:
    """One layer along one axis: its loads and measures, or the reason why there is no sample.

    ``loads`` are slots, float64 [N]; ``measures`` is keyed as ``balance.MEASURES``, None without a sample.
    """

    loads: FloatArray | None
    measures: Mapping[str, float] | None
    reason: str | None


@dataclass(frozen=True)
class AxisBalance:
    """All layers along one axis; ``cells`` and ``layer_ids`` run parallel to ``ModelWindow.layers``."""

    cells: tuple[Cell, ...]
    layer_ids: tuple[int, ...]

    @cached_property
    def summary(self) -> Summary:
        """The imbalance ratio across the layers, made when it is first asked for."""
        most, mean = np.full((2, len(self.cells)), np.nan)
        for i, cell in enumerate(self.cells):
            if cell.loads is not None and cell.measures is not None:  # so they don't sum to zero
                most[i], mean[i] = cell.loads.max(), cell.loads.sum() / cell.loads.size
        return summarise(list(self.layer_ids), most, mean)


@dataclass(frozen=True, slots=True)
class Assessment:
    """Balance of a window. ``dp_tokens`` is that of the DP ranks' tokens, whatever the layer."""

    window: ModelWindow
    min_tokens: int
    ep_ranks: AxisBalance
    dp_ranks: AxisBalance
    experts: AxisBalance
    dp_tokens: Cell
    dp_rank_ids: tuple[int, ...]

    def cells(self, i: int) -> Mapping[Axis, Cell]:
        """The cells of layer ``window.layers[i]`` along every axis."""
        return {
            "over_ep_ranks": self.ep_ranks.cells[i],
            "over_dp_ranks": self.dp_ranks.cells[i],
            "over_experts": self.experts.cells[i],
        }


def assess(window: ModelWindow, min_tokens: int, names: Collection[str] = MEASURES) -> Assessment:
    """Measure a window; layers with fewer than ``min_tokens`` tokens (or none) are no sample.

    Args:
        window: what was counted.
        min_tokens: see above.
        names: the measures that cells get; the summaries don't depend on it.
    """
    # A rank that fell silent and computed nothing in the window is gone, not idle.
    alive = tuple(rank.rank for rank in window.dp_ranks if rank.present or rank.worked)
    tokens = {rank.rank: rank.tokens for rank in window.dp_ranks}
    no_dp = window.sizes_reason or _too_few(alive)
    gates = [_gate(int(layer.rows.sum()), min_tokens, layer.not_seen) for layer in window.layers]
    whole = [layer.why_partial or layer.not_conserved for layer in window.layers]
    return Assessment(
        window=window,
        min_tokens=min_tokens,
        ep_ranks=_axis(
            window,
            [
                None if layer.ep_reason or layer.not_seen or partial else layer.ep_slots
                for layer, partial in zip(window.layers, whole, strict=True)
            ],
            [
                layer.ep_reason or gate or partial
                for layer, gate, partial in zip(window.layers, gates, whole, strict=True)
            ],
            names,
        ),
        dp_ranks=_axis(
            window,
            [
                None if window.sizes_reason or layer.not_seen or partial else _dp_loads(layer, alive)
                for layer, partial in zip(window.layers, whole, strict=True)
            ],
            [no_dp or gate or partial for gate, partial in zip(gates, whole, strict=True)],
            names,
        ),
        experts=_axis(
            window,
            [None if layer.not_seen else layer.counts.astype(np.float64) for layer in window.layers],
            [gate or layer.not_conserved for gate, layer in zip(gates, window.layers, strict=True)],
            names,
        ),
        dp_tokens=_cells(
            [None if window.reason else np.array([float(tokens[rank]) for rank in alive])],
            [window.conflict or window.reason or no_dp or _gate(window.tokens, min_tokens, None)],
            names,
        )[0],
        dp_rank_ids=alive,
    )


def _axis(
    window: ModelWindow,
    loads: Sequence[FloatArray | None],
    reasons: Sequence[str | None],
    names: Collection[str],
) -> AxisBalance:
    return AxisBalance(_cells(loads, reasons, names), tuple(layer.shape.layer for layer in window.layers))


def _cells(
    loads: Sequence[FloatArray | None], reasons: Sequence[str | None], names: Collection[str]
) -> tuple[Cell, ...]:
    """Measure all layers that have a sample, those of one width together."""
    whys = [
        _MASKED if reason is None and load is not None and not load.any() else reason
        for load, reason in zip(loads, reasons, strict=True)
    ]
    cells = [Cell(loads=load, measures=None, reason=why) for load, why in zip(loads, whys, strict=True)]
    by_width: dict[int, list[int]] = {}
    for i, (load, why) in enumerate(zip(loads, whys, strict=True)):
        if load is not None and why is None:
            by_width.setdefault(len(load), []).append(i)
    for members in by_width.values():
        stacked = np.stack([load for i in members if (load := loads[i]) is not None])
        values = measure_all(stacked, names)
        for row, i in enumerate(members):
            measures = {name: float(value[row]) for name, value in values.items()}
            cells[i] = Cell(loads=loads[i], measures=measures, reason=None)
    return tuple(cells)


def _dp_loads(layer: LayerWindow, alive: tuple[int, ...]) -> FloatArray:
    """Slots of each DP rank, float64 [len(alive)]."""
    if layer.dp_ranks == alive:  # almost always
        return layer.slots.astype(np.float64)
    slots = dict(zip(layer.dp_ranks, layer.slots.tolist(), strict=True))
    return np.array([float(slots.get(rank, 0)) for rank in alive])


def _gate(tokens: int, min_tokens: int, not_seen: str | None) -> str | None:
    if not tokens:
        return not_seen or "idle: no tokens in the window"
    if tokens < min_tokens:
        return f"too few tokens: {tokens} of at least {min_tokens}"
    return None


def _too_few(alive: tuple[int, ...]) -> str | None:
    return "fewer than two DP ranks take part: nothing to balance" if len(alive) < 2 else None
