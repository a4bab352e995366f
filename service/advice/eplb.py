"""Placement of experts by load: replicate the hot ones, pack copies onto ranks, keep groups within nodes.

Pure numpy, vectorised over layers. The algorithm is that of DeepSeek's EPLB, which vLLM's default policy
follows, so that what is predicted here is what vLLM would do. It may put several copies of an expert on one
rank; :mod:`moescope.service.advice.distinct` doesn't. In all of it L is the number of layers, E of
logical experts, P of physical experts (copies, P >= E), G of EP ranks and N of nodes; loads are slots, of any
numeric dtype, not negative.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from moescope.capture.wire import Int64Array
from moescope.service.measures.arrays import FloatArray
from moescope.service.measures.loads import Loads

NodePolicy = Callable[[FloatArray, int, int], Int64Array]
"""Places the experts of X nodes alike: loads [X, E], P and G of a node to int64 [X, P]."""


def place(loads: Loads, physical: int, groups: int, nodes: int, ranks: int) -> Int64Array:
    """Which logical expert each physical one is a copy of.

    With ``groups`` a multiple of ``nodes`` the experts of a group stay on one node (hierarchical), as vLLM
    does; otherwise nodes play no part.

    Args:
        loads: slots per (layer, logical expert), [L, E].
        physical: P, a multiple of ``ranks``, at least E.
        groups: expert groups of the model's router, a divisor of E; 1 where it has none.
        nodes: N, a divisor of ``ranks``.
        ranks: G; physical expert p is on rank ``p // (P / G)``.

    Returns:
        int64 [L, P]; every logical expert is in each row at least once.

    Raises:
        ValueError: these numbers don't fit together.
    """
    return place_by_node(loads, physical, groups, nodes, ranks, place_node)


def place_by_node(
    loads: Loads, physical: int, groups: int, nodes: int, ranks: int, of_node: NodePolicy
) -> Int64Array:
    """As :func:`place`, with any policy for the experts of a node."""
    weights = np.asarray(loads, dtype=np.float64)
    layers, experts = weights.shape
    if groups % nodes:
        groups = nodes = 1
    check_fits(experts, physical, groups, nodes, ranks)
    order = _experts_by_node(weights, groups, nodes)
    node_experts, node_physical = experts // nodes, physical // nodes
    local = np.take_along_axis(weights, order, axis=1).reshape(layers * nodes, node_experts)
    placed = of_node(local, node_physical, ranks // nodes)
    offsets = node_experts * np.arange(nodes).reshape(1, nodes, 1)
    in_order = placed.reshape(layers, nodes, node_physical) + offsets
    return np.take_along_axis(order, in_order.reshape(layers, physical), axis=1)


def place_node(loads: Loads, physical: int, ranks: int) -> Int64Array:
    """Place the experts of a node, int64 [X, P]: see :func:`place`.

    Args:
        loads: [X, E].
        physical: P of this node, a multiple of ``ranks``, at least E.
        ranks: G of this node.
    """
    weights = np.asarray(loads, dtype=np.float64)
    logical, copies = replicate(weights, physical)
    per_copy = np.take_along_axis(weights / copies, logical, axis=1)
    pack, place_in_pack = balanced_packing(per_copy, ranks)
    position = pack * (physical // ranks) + place_in_pack
    placed = np.empty_like(logical)
    np.put_along_axis(placed, position, logical, axis=1)
    return placed


def check_fits(experts: int, physical: int, groups: int, nodes: int, ranks: int) -> None:
    """Check that experts can be placed at all.

    Raises:
        ValueError: names the two numbers that don't fit.
    """
    for name, value, of, divisor in (
        ("physical experts", physical, "ranks", ranks),
        ("ranks", ranks, "nodes", nodes),
        ("experts", experts, "groups", groups),
        ("groups", groups, "nodes", nodes),
    ):
        if divisor < 1 or value % divisor:
            raise ValueError(f"{value} {name} are no multiple of {divisor} {of}")
    if physical < experts:
        raise ValueError(f"{physical} physical experts are fewer than {experts} logical ones")


def replicate(loads: Loads, physical: int) -> tuple[Int64Array, Int64Array]:
    """Give each redundant copy to the expert whose copies carry most, one after the other.

    That makes the largest load of a copy as small as any choice of P copies can (exchange argument: a copy
    taken from the expert that got it leaves that one at least as loaded as it was when chosen).

    Args:
        loads: [X, E].
        physical: P, at least E.

    Returns:
        Logical expert of each copy, int64 [X, P], the first E of them 0..E-1; copies of each expert, int64
        [X, E].
    """
    weights = np.asarray(loads, dtype=np.float64)
    rows, experts = weights.shape
    logical = np.tile(np.arange(physical, dtype=np.int64), (rows, 1))
    copies = np.ones((rows, experts), dtype=np.int64)
    per_copy = weights.copy()
    row = np.arange(rows)
    for column in range(experts, physical):
        heaviest = np.argmax(per_copy, axis=1)
        logical[:, column] = heaviest
        copies[row, heaviest] += 1
        per_copy[row, heaviest] = weights[row, heaviest] / copies[row, heaviest]
    return logical, copies


def balanced_packing(loads: Loads, packs: int) -> tuple[Int64Array, Int64Array]:
    """Share n items out over m packs of n / m items each: the heaviest first, each to the lightest open pack.

    Optimal for two items a pack (it pairs the heaviest with the lightest), a heuristic for more.

    Args:
        loads: [X, n], n a multiple of ``packs``.
        packs: m.

    Returns:
        The pack of each item, int64 [X, n], and its place in the pack in order of arrival, int64 [X, n].
    """
    weights = np.asarray(loads, dtype=np.float64)
    rows, items = weights.shape
    capacity = items // packs
    pack_of = np.empty((rows, items), dtype=np.int64)
    place_of = np.zeros((rows, items), dtype=np.int64)
    if capacity == 1:  # any order is equally good; vLLM leaves items in theirs
        pack_of[:] = np.arange(items)
        return pack_of, place_of
    order = np.argsort(-weights, axis=1, kind="stable")
    falling = np.take_along_axis(weights, order, axis=1)
    carried = np.zeros((rows, packs))
    held = np.zeros((rows, packs), dtype=np.int64)
    row = np.arange(rows)
    for turn in range(items):
        lightest = np.argmin(carried, axis=1)
        item = order[:, turn]
        pack_of[row, item] = lightest
        place_of[row, item] = held[row, lightest]
        held[row, lightest] += 1
        carried[row, lightest] += falling[:, turn]
        carried[row, lightest] = np.where(held[row, lightest] == capacity, np.inf, carried[row, lightest])
    return pack_of, place_of


def _experts_by_node(weights: FloatArray, groups: int, nodes: int) -> Int64Array:
    """Experts node by node, int64 [L, E]: whole groups, so that the nodes carry alike.

    ``weights`` is [L, E]; ``groups`` is a multiple of ``nodes``.
    """
    layers, experts = weights.shape
    size = experts // groups
    node, place_in_node = balanced_packing(weights.reshape(layers, groups, size).sum(axis=2), nodes)
    position = node * (groups // nodes) + place_in_node
    group_at = np.empty_like(position)
    np.put_along_axis(group_at, position, np.tile(np.arange(groups), (layers, 1)), axis=1)
    return np.asarray((group_at[:, :, np.newaxis] * size + np.arange(size)).reshape(layers, experts))
