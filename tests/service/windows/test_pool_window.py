"""A pool of whatever deployments: its sum is that of its parts, and comparing has no favourites."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moescope.service.live.pools import live_replicas
from moescope.service.live.state import LiveState
from moescope.service.settings import Settings
from moescope.service.windows.pool_window import PoolWindow, pool_window
from moescope.service.windows.replica_window import Known, LayerRouting, ReplicaWindow, replica_window
from moescope.service.windows.routing_distance import divergences_of
from tests.service.frames import EPOCH, frame, halves, producer

NOW = EPOCH / 1e9 + 100


def windows(loads: list[list[int]], role: str = "") -> list[ReplicaWindow]:
    """Deployments of one DP rank and two EP ranks, with these slots by expert."""
    state = LiveState(Settings(), lambda: NOW)
    for number, counts in enumerate(loads):
        who = producer(server=f"s{number:03}", pool="p", role=role, ep_size=2)
        state.ingest(frame({0: counts}, top_k=1, who=who, after_s=100, placement=halves(len(counts), 1)))
    return [
        replica_window(item, state.spans(item.deployment, None, None), NOW, 1)
        for item in live_replicas(state.producers())
    ]


def outstanding(found: PoolWindow) -> set[tuple[str, str]]:
    return {(item.server, item.measure) for item in found.stand_out}


LOADS = st.lists(st.lists(st.integers(0, 1000), min_size=4, max_size=4), min_size=1, max_size=6)


@given(loads=LOADS)
def test_the_sum_is_that_of_the_deployments(loads: list[list[int]]) -> None:
    found = pool_window(windows(loads))
    assert found.sum.tokens == sum(map(sum, loads))
    assert found.sum.reason is None
    shares = [item.share.value for item in found.standings if item.share.value is not None]
    assert not shares or np.mean(shares) == pytest.approx(1)


@given(loads=LOADS, order=st.randoms(use_true_random=False))
def test_the_order_of_deployments_changes_nothing(loads: list[list[int]], order) -> None:  # type: ignore[no-untyped-def]
    made = windows(loads)
    shuffled = list(made)
    order.shuffle(shuffled)
    assert outstanding(pool_window(made)) == outstanding(pool_window(shuffled))


@given(counts=st.lists(st.integers(0, 1000), min_size=4, max_size=4), number=st.integers(1, 6))
def test_equal_deployments_never_stand_out(counts: list[int], number: int) -> None:
    found = pool_window(windows([counts] * number))
    assert found.stand_out == ()
    for item in found.standings:
        assert item.divergence.median in (None, pytest.approx(0, abs=1e-9))


def test_a_straggler_cost_far_above_stands_out() -> None:
    made = windows([[100] * 4] * 3)
    costs = (0.30, 0.31, 0.41)
    found = pool_window([replace(item, straggler_cost=Known(c)) for item, c in zip(made, costs, strict=True)])
    assert outstanding(found) == {("s002", "straggler_cost")}


def test_what_is_not_known_is_no_outlier_and_has_its_reason() -> None:
    made = windows([[100] * 4] * 3)
    made[1] = replace(made[1], reason="capture is disabled", tokens=0)
    found = pool_window(made)
    assert found.stand_out == ()
    assert found.sum.reason == "partial: the tokens of s001 are not known (capture is disabled)"
    assert found.sum.per_second == Known(None, "capture is disabled")
    assert [item.share.value for item in found.standings] == [1, None, 1]


def test_layers_of_other_shapes_or_unknown_ones_are_not_compared() -> None:
    alike = LayerRouting(np.array([5, 5]), 5)
    three = LayerRouting(np.array([5, 5, 5]), 5)
    unknown = LayerRouting(np.array([1, 9]), 5, "not covered")
    idle = LayerRouting(np.array([0, 0]), 0)
    first, second = divergences_of([{0: alike, 1: alike, 2: alike}, {0: alike, 1: three, 2: unknown}])
    assert list(first.by_layer) == list(second.by_layer) == [0]
    reasons = [item.reason for item in divergences_of([{0: unknown}, {0: alike}, {0: idle}])]
    assert reasons == [
        "not covered",
        "no sibling has known slots in a layer of the same number of experts",
        "idle: no slots in the window",
    ]
