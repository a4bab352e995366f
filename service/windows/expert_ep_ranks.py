"""On which EP rank each expert is, by the newest placement that the producers reported."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from moescope.capture.wire import MoeLayer, Placement, PlacementTable, unpack_ids

UNKNOWN: Final = -1
SEVERAL: Final = -2


def ep_ranks_of_experts(
    layer: MoeLayer, placements: Iterable[tuple[tuple[MoeLayer, ...], Placement]]
) -> list[int] | None:
    """The EP rank of each logical expert of a layer; :data:`SEVERAL` where copies are on several ranks.

    Args:
        layer: whose experts.
        placements: the layers of each producer, and the placement of their experts.

    Returns:
        num_experts ranks; None when no producer knows.
    """
    newest: Placement | None = None
    table: PlacementTable | None = None
    for layers, placement in placements:
        if layer in layers and (newest is None or placement.version > newest.version):
            newest, table = placement, placement.tables[placement.table_of_layer[layers.index(layer)]]
    return None if table is None else _owners(table, layer.num_experts)


def _owners(table: PlacementTable, experts: int) -> list[int]:
    owners = [UNKNOWN] * experts
    logical, ranks = unpack_ids(table.physical_to_logical), unpack_ids(table.physical_to_ep_rank)
    for expert, rank in zip(logical.tolist(), ranks.tolist(), strict=True):
        owners[expert] = rank if owners[expert] in (UNKNOWN, rank) else SEVERAL
    return owners


def distinct(
    placements: Iterable[tuple[tuple[MoeLayer, ...], Placement]],
) -> list[tuple[tuple[MoeLayer, ...], Placement]]:
    """What is enough for :func:`ep_ranks_of_experts` of many layers: hundreds of producers tell the same.

    Args:
        placements: the layers of each producer, and the placement of their experts.

    Returns:
        Those that are unlike the one before them of the same version and the same first layer.
    """
    found, before = [], {}
    for layers, placement in placements:
        key = placement.version, layers[:1]
        if before.get(key) != (layers, placement):
            before[key] = layers, placement
            found.append((layers, placement))
    return found
