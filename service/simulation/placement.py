"""Where the experts of a simulated deployment are: linearly at first, by load after a rearrangement."""

from __future__ import annotations

import numpy as np

from moescope.capture import wire
from moescope.capture.wire import Int64Array
from moescope.service.measures.arrays import FloatArray
from moescope.service.simulation.plan import Plan


def linear(plan: Plan) -> tuple[wire.Placement, Int64Array]:
    """A placement in contiguous spans, alike in all layers; each expert's EP rank, int64 [L, E]."""
    experts = np.arange(plan.shape.experts)
    ranks = experts * plan.ranks // plan.shape.experts
    table = wire.PlacementTable(wire.pack_ids(experts), wire.pack_ids(ranks))
    layers = len(plan.covered_layers)
    placement = wire.Placement(version=1, tables=[table], table_of_layer=[0] * layers)
    return placement, np.tile(ranks, (layers, 1))


def by_load(plan: Plan, inclusion: FloatArray, version: int) -> tuple[wire.Placement, Int64Array]:
    """A placement by popularity; each expert's EP rank, int64 [L, E].

    Each layer's experts are dealt to the ranks from the most popular on: to rank 0, 1, ..., R - 1, then back.

    Args:
        plan: the deployment.
        inclusion: probability that a token chooses an expert, float64 [L, E].
        version: of the placement.
    """
    turn = np.arange(plan.shape.experts)
    there, lap = turn % plan.ranks, turn // plan.ranks
    ranks = np.where(lap % 2 == 0, there, plan.ranks - 1 - there)
    order = np.argsort(-inclusion, axis=1)
    tables = [wire.PlacementTable(wire.pack_ids(experts), wire.pack_ids(ranks)) for experts in order]
    owners = np.zeros_like(order)
    np.put_along_axis(owners, order, ranks[np.newaxis].repeat(len(order), axis=0), axis=1)
    placement = wire.Placement(version=version, tables=tables, table_of_layer=list(range(len(tables))))
    return placement, owners
