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


def test_the_rate_of_a_pool_is_its_tokens_over_its_longest_time() -> None:
    """One deployment began five seconds ago: what it counted in them is not what it counts in a hundred."""
    made = windows([[1000] * 4] * 3)
    made[2] = replace(made[2], seconds=5.0)
    longest = made[0].seconds
    found = pool_window(made)
    assert found.sum.per_second.value == pytest.approx(12_000 / longest)
    assert found.roles[""].per_second == found.sum.per_second


def test_who_is_left_out_is_in_no_mean_and_does_not_stand_out() -> None:
    made = windows([[1000] * 4] * 2 + [[9000, 100, 100, 100]])
    assert {server for server, _ in outstanding(pool_window(made))} >= {"s002"}
    made[2] = replace(made[2], left_out="conflict: two processes")
    found = pool_window(made)
    assert found.stand_out == ()
    assert [item.share.value for item in found.standings] == [1, 1, None]
    assert found.standings[2].share.reason == "conflict: two processes"
    assert found.standings[2].divergence.reason == "conflict: two processes"
    assert found.sum.tokens == 17_300


@pytest.mark.parametrize("measure", ["ep_imbalance_ratio", "max_vio"])
def test_a_nearly_idle_replica_stands_out_by_its_tokens_only(measure: str) -> None:
    """Six tokens fall where chance has them: in no measure of evenness is that a fault."""
    even = [[1000] * 4] * 2
    idle = outstanding(pool_window(windows([*even, [3, 2, 1, 0]])))
    assert {item for item in idle if item[0] == "s002"} == {("s002", "tokens_over_mean")}
    assert ("s002", measure) in outstanding(pool_window(windows([*even, [3000, 2000, 1000, 0]])))


def test_a_nearly_idle_replica_does_not_stand_out_over_dp_ranks_or_in_steps() -> None:
    made = windows([[1000] * 4, [1000] * 4, [2, 1, 2, 1]])
    numbers = {"dp_imbalance": Known(1.0), "straggler_cost": Known(0.1)}
    made = [replace(item, dp_size=2, **numbers) for item in made]
    made[2] = replace(made[2], dp_imbalance=Known(1.6), straggler_cost=Known(0.6))
    assert outstanding(pool_window(made)) >= {("s002", "tokens_over_mean")}
    assert not {"dp_imbalance_ratio", "straggler_cost"} & {name for _, name in outstanding(pool_window(made))}
    made[1] = replace(made[1], dp_imbalance=Known(1.6), straggler_cost=Known(0.6))
    found = outstanding(pool_window(made))
    assert {("s001", "dp_imbalance_ratio"), ("s001", "straggler_cost")} <= found
