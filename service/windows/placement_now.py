"""Where the copies of each layer's experts are now, and since when, by what the workers told last."""

from __future__ import annotations

from collections import Counter
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
from moescope.service.windows.health import absent_layers, silent_stages


@dataclass(frozen=True, slots=True)
class PlacedLayer:
    """One layer's placement; ``reason`` says why it isn't known, and all the others are None then.

    Attributes:
        shape: its id, experts and top-k.
        version: the placement's; it rises with each rearrangement.
        since: when the first worker told it, seconds of Unix time on the service's clock; None: before the
            service's own start.
        everywhere_since: when the last worker did; None: some worker still tells another one, or none.
        table: where each physical expert is.
        reason: why all this isn't known, or None.
        partial: which workers tell another placement, or none, so that it may not be so everywhere; or None.
    """

    shape: MoeLayer
    version: int | None = None
    since: float | None = None
    everywhere_since: float | None = None
    table: PlacementTable | None = None
    reason: str | None = None
    partial: str | None = None


@dataclass(frozen=True, slots=True)
class PlacedLayers:
    """The placement of a deployment, as far as the workers of its present start tell it.

    Attributes:
        layers: those that are counted, rising by id.
        uncovered: layers whose routing can't be seen, to the reason; nobody tells where their experts are.
        absent: layers that the model's config has and that were not found; None: it isn't known which.
        silent_stages: pipeline stages of which no worker has reported, so that their layers aren't known.
    """

    layers: list[PlacedLayer]
    uncovered: Mapping[int, str]
    absent: Mapping[int | None, str]
    silent_stages: tuple[int, ...]


Told = tuple[tuple[MoeLayer, ...], Placement]
"""The layers that a worker has, and where their experts are."""
_Dated = tuple[float | None, float | None, str | None]


def placement_now(state: LiveState, deployment: Deployment) -> PlacedLayers:
    """Where the experts of a deployment are, of which one producer at least has reported."""
    known = state.producers(deployment)
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
    counting = [frozenset(item.latest.counted.layout.layers) for item in mine]
    dated = {
        id(placement): _dated(layers, placement, told, history, counting)
        for layers, placement in newest.values()
    }
    shapes = {layer.layer: layer for item in mine for layer in item.latest.counted.layout.layers}
    shapes |= {layer.layer: layer for layer in newest}
    reason = conflict or _why_unknown(mine)
    uncovered = {layer.layer: layer.reason for item in mine for layer in item.latest.uncovered}
    return PlacedLayers(
        layers=[_placed(shapes[number], newest, dated, reason) for number in sorted(shapes)],
        uncovered={number: uncovered[number] for number in sorted(uncovered) if number not in shapes},
        absent=absent_layers([item.latest for item in mine], {*shapes, *uncovered}),
        silent_stages=silent_stages(mine),
    )


def _placed(
    shape: MoeLayer,
    newest: Mapping[MoeLayer, Told],
    dated: Mapping[int, _Dated],
    reason: str,
) -> PlacedLayer:
    if shape not in newest:
        return PlacedLayer(shape, reason=reason)
    layers, placement = newest[shape]
    since, everywhere, behind = dated[id(placement)]
    table = placement.tables[placement.table_of_layer[layers.index(shape)]]
    return PlacedLayer(shape, placement.version, since, everywhere, table, partial=behind)


def _dated(
    layers: tuple[MoeLayer, ...],
    placement: Placement,
    told: list[Told],
    history: list[DatedPlacement],
    counting: list[frozenset[MoeLayer]],
) -> _Dated:
    """When the first worker and the last one told a placement, and who does not: see :class:`PlacedLayer`.

    ``counting`` are the layers of each worker.
    """
    found = next(
        (item for item in reversed(history) if item.layers == layers and item.placement == placement), None
    )
    alike = [other for others, other in told if others == layers]
    workers = counting.count(frozenset(layers))
    behind = _why_behind([other.version for other in alike if other != placement], len(alike), workers)
    if found is None:
        return None, None, behind
    return found.at, None if behind else found.everywhere_at, behind


def _why_behind(versions: list[int], telling: int, workers: int) -> str | None:
    """Which of the workers that have the same layers don't tell the newest placement, or None.

    Args:
        versions: of the placements that others tell.
        telling: workers that tell any.
        workers: all of them; one that tells no placement may have another one.
    """
    said = [
        f"{count} of {max(workers, telling)} workers {'tell' if count > 1 else 'tells'} version {version}"
        for version, count in sorted(Counter(versions).items())
    ]
    silent = workers - telling
    if silent > 0:
        said.append(f"{silent} of {workers} workers {'tell' if silent > 1 else 'tells'} no placement")
    return f"partial: {' and '.join(said)}" if said else None


def _why_unknown(producers: list[ProducerState]) -> str:
    told = why_unavailable(producers, "placement")
    if told is not None:
        return told
    if heard_last(producers).ep_size == 1:
        return "ep_size is 1: the experts are not spread over ranks"
    return "no worker has told where the experts of this layer are"
