"""What changed between a base and a window: divergence, experts that died, experts that became hot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from moescope.capture.wire import Int64Array
from moescope.service.measures.balance import HOT
from moescope.service.measures.divergence import jensen_shannon, sampling_noise, total_variation
from moescope.service.windows.layer_window import LayerWindow
from moescope.service.windows.window import ModelWindow

GROWN: Final = 1.5
"""A hot expert is newly hot if its share is also this multiple of what it was."""
CERTAIN: Final = 5.0
"""Standard deviations by which a share must have grown, so that chance makes none hot."""
EXPECTED: Final = 20.0
"""Least number of slots that an expert which got none would have got at the base's share.

The probability of none by chance is then at most e^-20.
"""


@dataclass(frozen=True, slots=True)
class LayerSlots:
    """A base: layer to slots per logical expert, int64 [num_experts], and layer to tokens."""

    counts: Mapping[int, Int64Array]
    rows: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class LayerDrift:
    """One layer against the base.

    Attributes:
        tokens: seen in the window, ``base_tokens`` in the base.
        divergence: Jensen-Shannon divergence of the experts' shares, bits; None for the reason given.
        noise: what sampling alone would show, bits.
        moved: total variation distance: the share of slots that went to other experts.
        new_dead: experts that got nothing, though the base would have given them at least 20 slots.
        new_hot: experts with 3 times a fair share or more, and 1.5 times their share in the base or more.
        hot: all experts with 3 times a fair share or more.
    """

    layer: int
    tokens: int
    base_tokens: int
    divergence: float | None = None
    noise: float | None = None
    moved: float | None = None
    new_dead: tuple[int, ...] = ()
    new_hot: tuple[int, ...] = ()
    hot: tuple[int, ...] = ()
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class DriftSummary:
    """Over the layers that have a sample; None where none has."""

    worst: float | None = None
    worst_layer: int | None = None
    median: float | None = None
    noise: float | None = None
    moved: float | None = None
    new_dead: int = 0
    new_hot: int = 0
    layers: int = 0


def layer_drifts(
    window: ModelWindow, base: LayerSlots, min_tokens: int, why_not: str | None = None
) -> list[LayerDrift]:
    """Each layer of the window against the base; ``why_not``: why they aren't compared at all, or None."""
    if why_not is not None:
        return [
            LayerDrift(
                layer=layer.shape.layer,
                tokens=int(layer.rows.sum()),
                base_tokens=base.rows.get(layer.shape.layer, 0),
                reason=why_not,
            )
            for layer in window.layers
        ]
    return [
        _layer(layer, base.counts.get(layer.shape.layer), base.rows.get(layer.shape.layer, 0), min_tokens)
        for layer in window.layers
    ]


def slots_of(window: ModelWindow) -> LayerSlots:
    """A window as a base, of the layers that were seen and whose rows add up."""
    seen = [layer for layer in window.layers if not (layer.not_seen or layer.not_conserved)]
    return LayerSlots(
        counts={layer.shape.layer: layer.counts for layer in seen},
        rows={layer.shape.layer: int(layer.rows.sum()) for layer in seen},
    )


def summary_of(layers: list[LayerDrift]) -> DriftSummary:
    """The summary over layers; ``noise`` and ``moved`` are medians over them, as ``median`` is."""
    found = [item for item in layers if item.divergence is not None and item.noise is not None]
    if not found:
        return DriftSummary()
    values = np.array([item.divergence for item in found], dtype=np.float64)
    worst = int(np.argmax(values))
    return DriftSummary(
        worst=float(values[worst]),
        worst_layer=found[worst].layer,
        median=float(np.median(values)),
        noise=float(np.median([item.noise or 0.0 for item in found])),
        moved=float(np.median([item.moved or 0.0 for item in found])),
        new_dead=sum(len(item.new_dead) for item in found),
        new_hot=sum(len(item.new_hot) for item in found),
        layers=len(found),
    )


def _layer(layer: LayerWindow, base: Int64Array | None, base_rows: int, min_tokens: int) -> LayerDrift:
    counts, tokens = layer.counts, int(layer.rows.sum())
    reason = layer.not_seen or layer.not_conserved or _why_not(counts, tokens, base, base_rows, min_tokens)
    if reason is not None or base is None:
        return LayerDrift(layer=layer.shape.layer, tokens=tokens, base_tokens=base_rows, reason=reason)
    share, before = counts / counts.sum(), base / base.sum()
    hot = share >= HOT / len(share)
    chance = np.sqrt(before * (1 - before) * (1 / counts.sum() + 1 / base.sum()))
    new_hot = hot & (share >= GROWN * before) & (share - before > CERTAIN * chance)
    dead = (counts == 0) & (before * counts.sum() >= EXPECTED)
    return LayerDrift(
        layer=layer.shape.layer,
        tokens=tokens,
        base_tokens=base_rows,
        divergence=float(jensen_shannon(counts, base)),
        noise=float(sampling_noise(counts, base)),
        moved=float(total_variation(counts, base)),
        new_dead=_ids(dead),
        new_hot=_ids(new_hot),
        hot=_ids(hot),
        reason=None,
    )


def _why_not(
    counts: Int64Array, tokens: int, base: Int64Array | None, base_rows: int, min_tokens: int
) -> str | None:
    if base is None:
        return "the base has not seen this layer, or not all of its tokens"
    if len(base) != len(counts):
        return f"the base has {len(base)} experts here, the window {len(counts)}"
    for name, found, slots in (("window", tokens, counts), ("base", base_rows, base)):
        if not found:
            return f"idle: no tokens in the {name}"
        if found < min_tokens:
            return f"too few tokens in the {name}: {found} of at least {min_tokens}"
        if not slots.any():
            return f"no slots: the tokens of the {name} chose no expert here"
    return None


def _ids(mask: np.ndarray) -> tuple[int, ...]:
    return tuple(np.flatnonzero(mask).tolist())
