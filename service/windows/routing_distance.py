"""How far the routing of deployments of one pool is apart, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

import numpy as np

from moescope.capture.wire import Int64Array
from moescope.service.measures.divergence import jensen_shannon, sampling_noise
from moescope.service.windows.replica_window import LayerRouting, ReplicaWindow

_NOTHING: Final[Int64Array] = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Divergence:
    """How far the routing of one replica is from that of its siblings together.

    Attributes:
        median: over layers, bits; None for ``reason``.
        worst: the largest among layers, bits; ``worst_layer`` is its layer.
        noise: median over layers of what sampling alone would show, bits.
        by_layer: layer to bits.
    """

    median: float | None
    worst: float | None
    worst_layer: int | None
    noise: float | None
    by_layer: Mapping[int, float]
    reason: str | None


@dataclass(frozen=True, slots=True)
class PhaseLayer:
    """A layer of the prefill instances together against that of the decode instances together.

    ``divergence`` and ``noise`` in bits are None for ``reason``.
    """

    layer: int
    prefill_tokens: int
    decode_tokens: int
    divergence: float | None
    noise: float | None
    reason: str | None


def divergences_of(routings: Sequence[Mapping[int, LayerRouting]]) -> list[Divergence]:
    """How far the routing of each of several deployments is from that of the others together.

    In each layer the deployments are compared whose tokens there are known and not none.
    """
    bits: list[dict[int, float]] = [{} for _ in routings]
    noises: list[list[float]] = [[] for _ in routings]
    for layer in sorted({layer for routing in routings for layer in routing}):
        here = [
            i
            for i, routing in enumerate(routings)
            if layer in routing and routing[layer].unknown is None and routing[layer].counts.any()
        ]
        sizes = {len(routings[i][layer].counts) for i in here}
        if len(here) < 2 or len(sizes) > 1:
            continue
        own = np.stack([routings[i][layer].counts for i in here])
        others = own.sum(axis=0) - own
        found, noise = jensen_shannon(own, others), sampling_noise(own, others)
        for at, i in enumerate(here):
            bits[i][layer] = float(found[at])
            noises[i].append(float(noise[at]))
    reasons = [_why_not_comparable(routings, i) for i in range(len(routings))]
    return [
        _divergence(by_layer, noise, reason)
        for by_layer, noise, reason in zip(bits, noises, reasons, strict=True)
    ]


def _divergence(by_layer: Mapping[int, float], noise: Sequence[float], reason: str) -> Divergence:
    if not by_layer:
        return Divergence(None, None, None, None, by_layer, reason)
    worst = max(by_layer, key=lambda layer: (by_layer[layer], -layer))
    return Divergence(median(by_layer.values()), by_layer[worst], worst, median(noise), by_layer, None)


def _why_not_comparable(routings: Sequence[Mapping[int, LayerRouting]], i: int) -> str:
    if len(routings) < 2:
        return "no sibling: no other deployment of the pool has its role"
    own = routings[i].values()
    unknown = next((layer.unknown for layer in own if layer.unknown), None)
    if unknown:
        return unknown
    if not any(layer.counts.any() for layer in own):
        return "idle: no slots in the window"
    return "no sibling has known slots in a layer of the same number of experts"


def phase_layers(prefill: Sequence[ReplicaWindow], decode: Sequence[ReplicaWindow]) -> list[PhaseLayer]:
    """Each layer of the prefill instances together against that of the decode instances together."""
    layers = sorted({layer for item in (*prefill, *decode) for layer in item.routing})
    return [_phase_layer(layer, _together(prefill, layer), _together(decode, layer)) for layer in layers]


def _phase_layer(layer: int, prefill: LayerRouting, decode: LayerRouting) -> PhaseLayer:
    reason = prefill.unknown or decode.unknown
    for side, name in ((prefill, "prefill"), (decode, "decode")):
        if reason is None and not side.counts.any():
            reason = f"idle: the {name} instances have no slots here in the window"
    if reason is None and len(prefill.counts) != len(decode.counts):
        reason = "prefill and decode instances have other numbers of experts here"
    known = reason is None
    return PhaseLayer(
        layer=layer,
        prefill_tokens=prefill.tokens,
        decode_tokens=decode.tokens,
        divergence=float(jensen_shannon(prefill.counts, decode.counts)) if known else None,
        noise=float(sampling_noise(prefill.counts, decode.counts)) if known else None,
        reason=reason,
    )


def _together(members: Sequence[ReplicaWindow], layer: int) -> LayerRouting:
    """What several deployments' tokens chose in a layer; unknown if those of one of them are."""
    found = [item.routing[layer] for item in members if layer in item.routing]
    tokens = sum(item.tokens for item in found)
    for item in members:
        why = _why_unknown(item, layer)
        if why:
            return LayerRouting(_NOTHING, tokens, f"{item.replica.deployment[0]}: {why}")
    if len({len(item.counts) for item in found}) > 1:
        return LayerRouting(_NOTHING, tokens, "its deployments have other numbers of experts here")
    return LayerRouting(np.sum([item.counts for item in found], axis=0) if found else _NOTHING, tokens)


def _why_unknown(item: ReplicaWindow, layer: int) -> str | None:
    if layer not in item.routing:
        return "the layer isn't counted there" if item.tokens or item.reason else None
    return item.routing[layer].unknown
