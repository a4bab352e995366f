"""Where the copies of each layer's experts are now, and since when, by what the workers told last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moescope.capture.wire import MoeLayer, Placement, PlacementTable
from moescope.service.live.placements import DatedPlacement
from moescope.service.live.producers import (
    Deployment,
    ProducerState,
    heard_last,
    of_present_start,
    why_unavailable,
)
from moescope.service.live.state import LiveState


@dataclass(frozen=True, slots=True)
class PlacedLayer:
    """One layer's placement; ``reason`` says why it isn't known, and all the others are None then.

    Attributes:
        shape: its id, experts and top-k.
        version: the placement's; it rises with each rearrangement.
        since: when the first worker told it, seconds of Unix time on the service's clock; None: before the
            service's own start.
        everywhere_since: when the last worker did; None: some worker still tells another one.
        table: where each physical expert is.
        reason: why all this isn't known, or None.
    """

    shape: MoeLayer
    version: int | None = None
    since: float | None = None
    everywhere_since: float | None = None
    table: PlacementTable | None = None
    reason: str | None = None


Told = tuple[tuple[MoeLayer, ...], Placement]
"""The layers that a worker has, and where their experts are."""


def placement_now(state: LiveState, deployment: Deployment) -> list[PlacedLayer]:
    """All layers that the workers of the deployment's present start count, rising by id.

    One producer at least has reported.
    """
    known = [item for item in state.producers() if item.latest.producer.key[:2] == deployment]
    conflict = next((item.conflict.reason for item in known if item.conflict is not None), None)
    mine = known if conflict else of_present_start(known)
    # Of several deployments under one name it can't be known which one's placement is meant.
    told = [] if conflict else state.placements(deployment)
    history = state.placement_history(deployment)
    newest: dict[MoeLayer, Told] = {}
    for layers, placement in told:
        for layer in layers:
            if layer not in newest or placement.version > newest[layer][1].version:
                newest[layer] = layers, placement
    dated = {id(placement): _dated(layers, placement, told, history) for layers, placement in newest.values()}
    shapes = {layer.layer: layer for item in mine for layer in item.latest.counted.layout.layers}
    shapes |= {layer.layer: layer for layer in newest}
    reason = conflict or _why_unknown(mine)
    return [_placed(shapes[number], newest, dated, reason) for number in sorted(shapes)]


def _placed(
    shape: MoeLayer,
    newest: Mapping[MoeLayer, Told],
    dated: Mapping[int, tuple[float | None, float | None]],
    reason: str,
) -> PlacedLayer:
    if shape not in newest:
        return PlacedLayer(shape, reason=reason)
    layers, placement = newest[shape]
    since, everywhere = dated[id(placement)]
    table = placement.tables[placement.table_of_layer[layers.index(shape)]]
    return PlacedLayer(shape, placement.version, since, everywhere, table)


def _dated(
    layers: tuple[MoeLayer, ...], placement: Placement, told: list[Told], history: list[DatedPlacement]
) -> tuple[float | None, float | None]:
    """When the first worker and the last one told a placement; None: see :class:`PlacedLayer`."""
    found = next(
        (item for item in reversed(history) if item.layers == layers and item.placement == placement), None
    )
    if found is None:
        return None, None
    behind = any(others == layers and other != placement for others, other in told)
    return found.at, None if behind else found.everywhere_at


def _why_unknown(producers: list[ProducerState]) -> str:
    told = why_unavailable(producers, "placement")
    if told is not None:
        return told
    if heard_last(producers).ep_size == 1:
        return "ep_size is 1: the experts are not spread over ranks"
    return "no worker has told where the experts of this layer are"
